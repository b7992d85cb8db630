package transport

import (
	"context"
	"errors"
	"fmt"
	"io"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"

	"github.com/flotillakv/flotilla/internal/mutants"
	"github.com/flotillakv/flotilla/multiraft/raft"
)

// snapErrKey is the trailer with the receiver's refusal.
const snapErrKey = "flotilla-snapshot-bin"

// snapStream is one snapshot on a connection of its own. HTTP/2 flow control
// holds the sender back while the receiver writes to disk.
type snapStream struct {
	node   raft.NodeID
	conn   *grpc.ClientConn
	stream grpc.ClientStream
	cancel context.CancelFunc
	done   func() bool // unhooks the clean-up from the contexts
	// result is what ended the stream: nil is success. Valid once ended.
	result error
	ended  bool
}

// OpenSnapshot is Transport.OpenSnapshot. Errors are ErrUnknownNode,
// *RefusedError or the connection's; the receiver has not been called then.
func (t *GRPC) OpenSnapshot(ctx context.Context, to raft.NodeID, header []byte) (SnapshotStream, error) {
	p := t.peer(to)
	if p == nil {
		return nil, ErrUnknownNode
	}
	p.mu.Lock()
	addr := p.mu.addr
	p.mu.Unlock()
	if addr == "" {
		return nil, ErrUnknownNode
	}
	if t.ctx.Err() != nil {
		return nil, ErrClosed
	}
	if len(header) > MaxChunkBytes {
		return nil, fmt.Errorf("transport: a snapshot header of %d bytes, the limit is %d", len(header), MaxChunkBytes)
	}
	ctx, cancel := context.WithCancel(ctx)
	unhook := context.AfterFunc(t.ctx, cancel)
	conn, stream, _, err := t.openStream(ctx, cancel, addr, to, snapshotMethod)
	if err == nil {
		err = stream.SendMsg(&rawBytes{append([]byte(nil), header...)})
		if err != nil {
			conn.Close()
		}
	}
	if err != nil {
		unhook()
		cancel()
		return nil, err
	}
	s := &snapStream{node: to, conn: conn, stream: stream, cancel: cancel, done: unhook}
	context.AfterFunc(ctx, func() { conn.Close() })
	return s, nil
}

// Send is SnapshotStream.Send.
func (s *snapStream) Send(chunk []byte) error {
	if len(chunk) == 0 || len(chunk) > MaxChunkBytes {
		return fmt.Errorf("transport: a chunk of %d bytes, the limit is %d", len(chunk), MaxChunkBytes)
	}
	if err := s.stream.SendMsg(&rawBytes{append([]byte(nil), chunk...)}); err != nil {
		return fmt.Errorf("transport: the snapshot stream to node %d broke: %w", s.node, err)
	}
	return nil
}

// Recv is SnapshotStream.Recv.
func (s *snapStream) Recv() ([]byte, error) {
	if s.ended {
		return nil, io.EOF
	}
	var m rawBytes
	err := s.stream.RecvMsg(&m)
	if err == nil && len(m.b) > 0 {
		return m.b, nil
	}
	s.result, s.ended = err, true
	return nil, io.EOF
}

// CloseAndRecv is SnapshotStream.CloseAndRecv.
func (s *snapStream) CloseAndRecv() error {
	defer func() {
		s.done()
		s.cancel()
		s.conn.Close()
	}()
	_ = s.stream.CloseSend() // its failure shows in RecvMsg
	for !s.ended {
		_, _ = s.Recv() // replies that nobody waits for any more
	}
	err := s.result
	if err == nil {
		return nil
	}
	if v := s.stream.Trailer().Get(snapErrKey); len(v) > 0 {
		return &SnapshotError{Node: s.node, Text: v[0]}
	}
	return streamError(err, s.stream.Trailer().Get(refusalKey), fmt.Sprintf("node %d", s.node))
}

// snapshot serves one inbound snapshot.
func (t *GRPC) snapshot(stream grpc.ServerStream) error {
	st := t.state.Load()
	h, r := t.greet(stream, st)
	if r == nil && t.inbound.stale(&h) {
		r = &RefusedError{Reason: RefusedStale, ByUs: true}
	}
	if r != nil {
		return t.refuse(stream, r)
	}
	if err := t.answerHello(stream, st, h.Node); err != nil {
		return err
	}
	var header rawBytes
	if err := stream.RecvMsg(&header); err != nil {
		return err
	}
	err := st.handler.OnSnapshot(h.Node, header.b, func() ([]byte, error) {
		var m rawBytes
		err := stream.RecvMsg(&m)
		if err != nil {
			if errors.Is(err, io.EOF) {
				return nil, io.EOF
			}
			return nil, fmt.Errorf("transport: the snapshot stream of node %d broke: %s", h.Node, status.Convert(err).Message())
		}
		return m.b, nil
	}, func(b []byte) error {
		if len(b) == 0 || len(b) > MaxChunkBytes {
			return fmt.Errorf("transport: a reply of %d bytes, the limit is %d", len(b), MaxChunkBytes)
		}
		return stream.SendMsg(&rawBytes{append([]byte(nil), b...)})
	})
	if err != nil {
		if mutants.On("E16") { // nobody reads, and nobody says so
			<-stream.Context().Done()
		}
		text := err.Error()
		stream.SetTrailer(metadata.Pairs(snapErrKey, text[:min(len(text), 1024)]))
		return status.Error(codes.Aborted, "the snapshot was refused")
	}
	return stream.SendMsg(&rawBytes{})
}
