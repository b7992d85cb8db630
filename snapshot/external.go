package snapshot

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"

	"github.com/flotillakv/flotilla/multiraft/raft"
)

// The state of a machine outside of the store travels as the last files of a snapshot,
// FileExternal: pieces of one stream, which begins with
//
//	version u8 | index u64: as of which the machine's state is
//
// and goes on with what the machine wrote. There is always a first piece. The machine is
// as far as the store or ahead of it: its state is taken after the view.
const (
	externalVersion = 1
	externalHead    = 9
	// keptPieces are kept by a sender, to be sent again if the stream breaks: a machine's
	// state cannot be made again. Beyond them the snapshot fails, and the next one finds
	// what came (leftovers).
	keptPieces = 3
)

// externalSource is a machine's state on its way out.
type externalSource struct {
	s    io.ReadCloser
	head []byte // still to be sent
}

// sourceOf is source with what is outside of the store.
func (s *Store) sourceOf(ctx context.Context, desc *raft.Descriptor) (*source, error) {
	c, err := s.source(desc)
	if err != nil || s.o.External == nil {
		return c, err
	}
	stream, at, err := s.o.External(ctx, desc)
	if err != nil {
		return nil, errors.Join(fmt.Errorf("snapshot: the state of shard %d outside of the store: %w", desc.Shard, err), c.close())
	}
	if stream == nil {
		return c, nil
	}
	c.ext = &externalSource{s: stream, head: appendExternalHead(nil, at)}
	if at < c.meta.Index {
		return nil, errors.Join(fmt.Errorf("snapshot: the machine of shard %d is at index %d, the store at %d", desc.Shard, at, c.meta.Index), c.close())
	}
	return c, nil
}

func appendExternalHead(dst []byte, at raft.Index) []byte {
	return binary.BigEndian.AppendUint64(append(dst, externalVersion), uint64(at))
}

// externalIndex decodes the head of a machine's state.
func (m *Meta) externalIndex(head []byte) (raft.Index, error) {
	if len(head) < externalHead || head[0] != externalVersion {
		return 0, corrupt("the state of the machine is of an unknown version, or too short")
	}
	at := raft.Index(binary.BigEndian.Uint64(head[1:]))
	if at < m.Index {
		return 0, corrupt("the state of the machine is as of index %d, the snapshot as of %d", at, m.Index)
	}
	return at, nil
}

// piece makes the next piece of the machine's state, or returns one of the last again.
func (c *source) piece(ctx context.Context, n int) (*builtFile, error) {
	if n < len(c.known) {
		for _, f := range c.pieces {
			if f.n == n {
				return f, nil
			}
		}
		return nil, fmt.Errorf("snapshot: piece %d of the machine's state is gone; the next snapshot goes on", n)
	}
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	size := int64(c.s.o.TableBytes) << min(3, n/growAfter)
	var buf bytes.Buffer
	buf.Write(c.ext.head)
	c.ext.head = nil
	_, err := io.CopyN(&buf, c.ext.s, size-int64(buf.Len()))
	if errors.Is(err, io.EOF) {
		c.over, err = true, nil
	}
	if err != nil {
		return nil, fmt.Errorf("snapshot: read the state of the machine of shard %d: %w", c.meta.Shard, err)
	}
	f := listFile(n, FileExternal, buf.Bytes())
	if f == nil {
		return nil, nil
	}
	if len(c.pieces) == keptPieces {
		c.pieces = append(c.pieces[:0], c.pieces[1:]...)
	}
	c.pieces = append(c.pieces, f)
	return f, nil
}

// HasExternal reports whether the snapshot holds the state of a machine outside of the store.
func (m *Meta) HasExternal() bool {
	n := len(m.Files)
	return n > 0 && m.Files[n-1].Kind == FileExternal
}

// LoadExternal hands the state of the machine to load, as a stream and with the index as
// of which it is. It comes before InstallOn, which is refused without it. An error is
// load's, ErrCorrupt, ErrClosed, or the store's.
func (g *Staged) LoadExternal(load func(at raft.Index, r io.Reader) error) error {
	g.mu.Lock()
	if g.mu.closed || g.mu.used || g.mu.installing {
		g.mu.Unlock()
		return ErrClosed
	}
	g.mu.installing = true // Close waits
	g.mu.Unlock()
	err := g.loadExternal(load)
	g.mu.Lock()
	g.mu.installing = false
	closed := g.mu.closed
	g.mu.Unlock()
	if closed {
		g.s.release(g.r, false)
	}
	return err
}

func (g *Staged) loadExternal(load func(at raft.Index, r io.Reader) error) error {
	r := &pieceReader{g: g}
	for r.next < len(g.Meta.Files) && g.Meta.Files[r.next].Kind != FileExternal {
		r.next++
	}
	defer r.close()
	var head [externalHead]byte
	if _, err := io.ReadFull(r, head[:]); err != nil {
		return corrupt("the state of the machine is too short: %v", err)
	}
	at, err := g.Meta.externalIndex(head[:])
	if err != nil {
		return err
	}
	if err := load(at, r); err != nil {
		return err
	}
	g.loaded.Store(true)
	return nil
}

// pieceReader reads the pieces one after the other, each against its checksums.
type pieceReader struct {
	g    *Staged
	next int // file
	f    io.ReadCloser
	rec  *File
	n    int // chunk of rec
	b    []byte
	buf  []byte
}

func (r *pieceReader) Read(p []byte) (int, error) {
	for len(r.b) == 0 {
		if r.f == nil {
			if r.next == len(r.g.Meta.Files) {
				return 0, io.EOF
			}
			f, err := r.g.s.fs.Open(r.g.r.paths[r.next])
			if err != nil {
				return 0, fmt.Errorf("snapshot: open staged piece: %w", err)
			}
			r.f, r.rec, r.n = f, &r.g.Meta.Files[r.next], 0
			r.next++
		}
		if r.n == len(r.rec.Sums) {
			r.close()
			continue
		}
		if r.buf == nil {
			r.buf = make([]byte, ChunkBytes)
		}
		b := r.buf[:r.rec.chunkLen(r.n)]
		if _, err := io.ReadFull(r.f, b); err != nil {
			return 0, fmt.Errorf("snapshot: read staged piece: %w", err)
		}
		if sum(b) != r.rec.Sums[r.n] {
			return 0, corrupt("chunk %d of staged piece %s changed", r.n, r.g.r.paths[r.next-1])
		}
		r.b = b
		r.n++
	}
	n := copy(p, r.b)
	r.b = r.b[n:]
	return n, nil
}

func (r *pieceReader) close() {
	if r.f != nil {
		_ = r.f.Close()
		r.f = nil
	}
}
