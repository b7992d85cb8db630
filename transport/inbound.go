package transport

import (
	"errors"
	"fmt"
	"io"
	"sync"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	grpcpeer "google.golang.org/grpc/peer"
	"google.golang.org/grpc/status"

	"github.com/flotillakv/flotilla/internal/mutants"
	"github.com/flotillakv/flotilla/multiraft/raft"
)

// maxInbound bounds the nodes with an open stream to this one.
const maxInbound = 4096

// inbound is the open stream from one node, or the memory of the last one.
type inbound struct {
	hello Hello
	live  bool
	end   chan *RefusedError // room for one; what is put there ends the stream
}

// inboundTable knows the newest incarnation of each node that came here.
type inboundTable struct {
	mu   sync.Mutex
	byID map[raft.NodeID]*inbound
	// least is the boot epoch that each node is known to have reached before this
	// process began.
	least map[raft.NodeID]uint64
}

// remember notes that a node was seen with a boot epoch.
func (t *inboundTable) remember(node raft.NodeID, boot uint64) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.least == nil {
		t.least = map[raft.NodeID]uint64{}
	}
	t.least[node] = max(t.least[node], boot)
}

// admit decides whether a stream of h may be read, and ends the one it replaces.
// The newest boot epoch wins; among equal ones the same process may replace its
// own stream, another process is a duplicate while the first one lives, and an old
// copy afterwards.
func (t *inboundTable) admit(h Hello) (*inbound, *RefusedError) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if least := t.least[h.Node]; h.BootEpoch < least {
		return nil, &RefusedError{Reason: RefusedStale, ByUs: true,
			Detail: fmt.Sprintf("node %d has boot epoch %d, %d is on record", h.Node, h.BootEpoch, least)}
	}
	old := t.byID[h.Node]
	if old != nil {
		switch o := &old.hello; {
		case h.BootEpoch < o.BootEpoch:
			return nil, &RefusedError{Reason: RefusedStale, ByUs: true,
				Detail: fmt.Sprintf("node %d has boot epoch %d, %d was seen before", h.Node, h.BootEpoch, o.BootEpoch)}
		case h.forks(o) && (h.BootEpoch != o.BootEpoch || !old.live):
			return nil, &RefusedError{Reason: RefusedStale, ByUs: true,
				Detail: fmt.Sprintf("node %d was seen in boot %d as another process than this one's store knows of", h.Node, o.BootEpoch)}
		case h.BootEpoch == o.BootEpoch && h.Incarnation != o.Incarnation && old.live:
			return nil, &RefusedError{Reason: RefusedDuplicate, ByUs: true,
				Detail: fmt.Sprintf("node %d is connected already, from %s", h.Node, o.Addr)}
		}
		if old.live {
			reason := RefusedReplaced
			if h.Incarnation != old.hello.Incarnation {
				reason = RefusedStale
			}
			old.close(&RefusedError{Reason: reason, ByUs: true, Detail: fmt.Sprintf("node %d connected with boot epoch %d", h.Node, h.BootEpoch)})
		}
	} else if len(t.byID) >= maxInbound {
		return nil, &RefusedError{Reason: RefusedNotReady, ByUs: true, Detail: "too many nodes"}
	}
	in := &inbound{hello: h, live: true, end: make(chan *RefusedError, 1)}
	t.byID[h.Node] = in
	return in, nil
}

// forks reports whether h comes from another line of boots than o, which was seen
// earlier: each boot has a number of its own, and remembers that of the boot in
// front of it. A copy of a store that was made before its last boot, and is
// started, reaches the same boot epoch with another number.
func (h *Hello) forks(o *Hello) bool {
	if mutants.On("B18e") {
		return false
	}
	return h.BootEpoch == o.BootEpoch && h.Incarnation != o.Incarnation ||
		h.BootEpoch == o.BootEpoch+1 && h.Before != noIncarnation && o.Incarnation != noIncarnation && h.Before != o.Incarnation
}

// close ends the stream; the first reason counts. t.mu is held.
func (in *inbound) close(why *RefusedError) {
	in.live = false
	select {
	case in.end <- why:
	default:
	}
}

// stale reports whether a newer incarnation than h was seen.
func (t *inboundTable) stale(h *Hello) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	old := t.byID[h.Node]
	return old != nil && (h.BootEpoch < old.hello.BootEpoch || h.forks(&old.hello)) || h.BootEpoch < t.least[h.Node]
}

func (t *inboundTable) isLive(in *inbound) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	return in.live
}

func (t *inboundTable) gone(in *inbound) {
	t.mu.Lock()
	defer t.mu.Unlock()
	in.live = false
}

// helloOf reads the hello from a call's metadata.
func helloOf(stream grpc.ServerStream) (Hello, error) {
	md, _ := metadata.FromIncomingContext(stream.Context())
	v := md.Get(helloKey)
	if len(v) != 1 {
		return Hello{}, fmt.Errorf("%w: %d of them", ErrHello, len(v))
	}
	return DecodeHello([]byte(v[0]))
}

func remoteAddr(stream grpc.ServerStream) string {
	if p, ok := grpcpeer.FromContext(stream.Context()); ok && p.Addr != nil {
		return p.Addr.String()
	}
	return "an unknown address"
}

// refuse ends a call with a reason the other side can read.
func (t *GRPC) refuse(stream grpc.ServerStream, r *RefusedError) error {
	if int(r.Reason) < len(t.hellosRefused) {
		t.hellosRefused[r.Reason].Add(1)
	}
	if r.Reason != RefusedNotReady && r.Reason != RefusedReplaced {
		addr := remoteAddr(stream)
		t.rlog.warn(fmt.Sprintf("in/%d", r.Reason), "a stream was refused", "from", addr, "reason", r.Reason.String(), "detail", r.Detail)
	}
	stream.SetTrailer(metadata.Pairs(refusalKey, r.encode()))
	return status.Error(codes.FailedPrecondition, r.Reason.String())
}

// greet checks the hello of a call of a peer and answers with the own.
func (t *GRPC) greet(stream grpc.ServerStream, st *state) (Hello, *RefusedError) {
	if !st.id.ready() || st.handler == nil {
		return Hello{}, &RefusedError{Reason: RefusedNotReady, ByUs: true}
	}
	h, err := helloOf(stream)
	if err != nil {
		return Hello{}, &RefusedError{Reason: RefusedHello, ByUs: true, Detail: err.Error()}
	}
	if r := h.checkPeer(&st.id, 0); r != nil {
		return h, r
	}
	if t.o.TLS != nil {
		if id, _ := CallerIdentity(stream.Context()); id.Node != h.Node && !mutants.On("H-cert-unpinned") {
			return h, &RefusedError{Reason: RefusedNode, ByUs: true, Detail: fmt.Sprintf("it calls itself node %d and its certificate is of %s; this is %s", h.Node, id, t.o.TLS.Identity())}
		}
	}
	return h, nil
}

func (t *GRPC) answerHello(stream grpc.ServerStream, st *state, to raft.NodeID) error {
	own := t.hello(&st.id, to)
	return stream.SendHeader(metadata.Pairs(helloKey, string(own.Encode(nil))))
}

// frames serves one inbound stream.
func (t *GRPC) frames(stream grpc.ServerStream) error {
	st := t.state.Load()
	h, r := t.greet(stream, st)
	if r != nil {
		return t.refuse(stream, r)
	}
	in, r := t.inbound.admit(h)
	if r != nil {
		if r.Reason == RefusedDuplicate && t.o.OnRefused != nil {
			t.o.OnRefused(h.Node, r)
		}
		return t.refuse(stream, r)
	}
	defer t.inbound.gone(in)
	if err := t.answerHello(stream, st, h.Node); err != nil {
		return err
	}
	p := t.heardFrom(h)
	done := make(chan error, 1)
	t.wg.Add(1)
	go func() { // receiver: ends with the call
		defer t.wg.Done()
		done <- t.receive(stream, st, in, p)
	}()
	select {
	case err := <-done:
		var r *RefusedError
		if errors.As(err, &r) {
			return t.refuse(stream, r)
		}
		return err
	case r := <-in.end:
		return t.refuse(stream, r)
	}
}

// receive reads frames until the stream ends or a frame is refused.
func (t *GRPC) receive(stream grpc.ServerStream, st *state, in *inbound, p *peer) error {
	for seq := uint64(1); ; seq++ {
		var raw inFrame
		if err := stream.RecvMsg(&raw); err != nil {
			if err == io.EOF {
				return nil
			}
			if status.Code(err) == codes.ResourceExhausted { // larger than MaxFrameBytes
				return t.badFrame(p, err)
			}
			return err
		}
		f, err := DecodeFrame(raw.b)
		if err == nil {
			err = checkFrame(&f.FrameHeader, &in.hello, st.id.Node, seq)
		}
		if err != nil {
			return t.badFrame(p, err)
		}
		if !t.inbound.isLive(in) {
			return nil
		}
		p.countFrame(len(raw.b), &f)
		if len(f.Ctl) > 0 {
			st.handler.OnCtl(f.From, f.Ctl)
		}
		if len(f.Msgs) > 0 {
			st.handler.OnMessages(f.From, f.Msgs)
		}
	}
}

func (p *peer) countFrame(size int, f *Frame) {
	p.framesRecv.Add(1)
	p.bytesRecv.Add(uint64(size))
	p.msgsRecv.Add(uint64(len(f.Msgs)))
	p.ctlRecv.Add(uint64(len(f.Ctl)))
	p.skippedRx.Add(uint64(f.Skipped))
}

// checkFrame holds a frame against the hello of its stream.
func checkFrame(f *FrameHeader, h *Hello, self raft.NodeID, seq uint64) error {
	switch {
	case f.From != h.Node:
		return frameErr("from node %d on a stream of node %d", f.From, h.Node)
	case f.To != self:
		return frameErr("for node %d at node %d", f.To, self)
	case f.BootEpoch != h.BootEpoch:
		return frameErr("of boot epoch %d on a stream of boot epoch %d", f.BootEpoch, h.BootEpoch)
	case f.Seq != seq:
		return frameErr("number %d where %d was due", f.Seq, seq)
	}
	return nil
}

func (t *GRPC) badFrame(p *peer, err error) *RefusedError {
	p.refused.Add(1)
	t.framesRefused.Add(1)
	t.rlog.warn(fmt.Sprintf("frame/%d", p.node), "a frame was refused; its stream is closed", "peer", p.node, "err", err)
	return &RefusedError{Reason: RefusedFrame, ByUs: true, Detail: err.Error()}
}
