package snapshot

import (
	"context"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/flotillakv/flotilla/engine"
	"github.com/flotillakv/flotilla/multiraft/raft"
)

const shard1 = raft.ShardID(7)

// handClock sleeps by moving itself.
type handClock struct {
	mu  sync.Mutex
	now raft.Time
}

func (c *handClock) Now() raft.Time {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.now
}

func (c *handClock) Sleep(ctx context.Context, d time.Duration) error {
	c.mu.Lock()
	c.now = c.now.Add(d)
	c.mu.Unlock()
	return ctx.Err()
}

func openEngine(t testing.TB, fs engine.FS, node raft.NodeID) *engine.Engine {
	t.Helper()
	e, err := engine.Open(engine.Options{Dir: "/n", FS: fs, Create: true, Node: node, Cluster: [16]byte{1},
		CacheBytes: 1 << 20, MemTableBytes: 1 << 20, OnFatal: func(err error) { t.Errorf("store failed: %v", err) }})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { e.Close() })
	return e
}

func newStore(t testing.TB, e *engine.Engine, node raft.NodeID, change func(*Options)) *Store {
	t.Helper()
	o := Options{Engine: e, Node: node, Clock: &handClock{now: 1}, SmallBytes: 4 << 10, TableBytes: 700 << 10}
	if change != nil {
		change(&o)
	}
	s, err := New(o)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func descOf(s raft.ShardID, start, end string) raft.Descriptor {
	return raft.Descriptor{Shard: s, Keyspace: 1, Start: []byte(start), End: []byte(end), ConfVer: 3, Version: 2, NextReplica: 4,
		Replicas: []raft.Replica{{Node: 1, ID: 1, Role: raft.Voter}, {Node: 2, ID: 2, Role: raft.Voter}, {Node: 3, ID: 3, Role: raft.Learner}}}
}

func check(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// fill makes a replica with n keys of about 1 KiB, two session records, and a
// short log; applied through index 100+n.
func fill(t testing.TB, e *engine.Engine, d raft.Descriptor, n int, seed byte) {
	t.Helper()
	b := e.NewBatch()
	defer b.Close()
	b.SetDescriptor(&d)
	as := raft.AppliedState{Applied: raft.Index(100 + n), AppliedTerm: 5, TruncIndex: raft.Index(100 + n), TruncTerm: 5, ConfIndex: 3, WrittenKeys: uint64(n), GroupTs: 77}
	b.SetApplied(d.Shard, as)
	b.SetHardState(d.Shard, raft.HardState{Term: 6, Vote: 1})
	b.SetGroup(d.Shard, []byte("s-client-1"), []byte{seed, 1})
	b.SetGroup(d.Shard, []byte("z"), []byte{seed, 2})
	val := make([]byte, 1000)
	x := uint64(seed) + 1
	for i := range n {
		for j := 0; j+8 <= len(val); j += 8 { // does not compress
			x ^= x << 13
			x ^= x >> 7
			x ^= x << 17
			binary.LittleEndian.PutUint64(val[j:], x)
		}
		b.Set(d.Keyspace, fmt.Appendf(nil, "%sk%06d-%d", d.Start, i, seed), val)
		if b.Len() > 128<<10 {
			check(t, b.Commit(false))
			b.Close()
			b = e.NewBatch()
		}
	}
	v := raft.EncodeEntry(nil, as.Applied+1, 6, raft.EntryEmpty, raft.EntryHeader{}, nil)
	b.Append(d.Shard, as.Applied, []raft.Entry{{Index: as.Applied + 1, Term: 6, Type: raft.EntryEmpty, Value: v}})
	check(t, b.Commit(true))
	check(t, b.Wait())
}

// dump returns everything a snapshot must carry over: data and applied side,
// without the position of the local log.
func dump(t testing.TB, e *engine.Engine, d raft.Descriptor) string {
	t.Helper()
	v, err := e.View(&d)
	check(t, err)
	defer v.Close()
	var out strings.Builder
	for _, part := range []engine.ViewPart{engine.ViewState, engine.ViewData} {
		check(t, eachPair(t.Context(), v, part, nil, func(key, val []byte) error {
			if part == engine.ViewState && string(key) == "a" {
				as, err := raft.DecodeAppliedState(val)
				check(t, err)
				as.TruncIndex, as.TruncTerm = 0, 0
				val = as.Encode(nil)
			}
			fmt.Fprintf(&out, "%d %q=%x\n", part, key, val)
			return nil
		}))
	}
	return out.String()
}

// link carries snapshots from a sender to a receiver's Store in this process.
// The receiver's side runs on a goroutine of its own; its answer crosses as
// text, as with a real transport.
type link struct {
	to      *Store
	install func(*Staged) error
	cutAt   int   // the stream breaks after so many messages; 0: never
	cuts    []int // and when so many chunks were sent in all; ascending
	change  func(n int, msg []byte) []byte

	streams int
	chunks  int   // sent
	bytes   int64 // of chunks
	sent    map[hash]int
	err     error // of Handle, with its type
}

type linkStream struct {
	l    *link
	ch   chan []byte
	back chan []byte
	done chan error
	n    int
	cut  bool
}

var errBroken = errors.New("connection broke")

func (l *link) open(_ context.Context, header []byte) (Stream, error) {
	l.streams++
	s := &linkStream{l: l, ch: make(chan []byte), back: make(chan []byte, 1), done: make(chan error, 1)}
	header = slices.Clone(header)
	go func() {
		g, err := l.to.Handle(1, header, func() ([]byte, error) {
			b, ok := <-s.ch
			if !ok {
				return nil, io.EOF
			}
			return b, nil
		}, func(b []byte) error {
			s.back <- slices.Clone(b)
			return nil
		})
		l.err = err
		if err == nil {
			err = l.install(g)
			g.Close()
		}
		close(s.back)
		for range s.ch { // what a transport would drop
		}
		s.done <- err
	}()
	return s, nil
}

func (s *linkStream) Send(b []byte) error {
	if s.l.cutAt > 0 && s.n == s.l.cutAt {
		s.cut = true
		return errBroken
	}
	if s.cut {
		return errBroken
	}
	if len(s.l.cuts) > 0 && s.l.chunks == s.l.cuts[0] && b[1] == msgChunk {
		s.l.cuts, s.cut = s.l.cuts[1:], true
		return errBroken
	}
	s.n++
	b = slices.Clone(b)
	if b[1] == msgChunk {
		s.l.chunks++
		s.l.bytes += int64(len(b) - chunkHead)
		if s.l.sent == nil {
			s.l.sent = map[hash]int{}
		}
		s.l.sent[sha256.Sum256(b[chunkHead:])]++
	}
	if s.l.change != nil {
		b = s.l.change(s.n, b)
	}
	s.ch <- b
	return nil
}

func (s *linkStream) Recv() ([]byte, error) {
	b, ok := <-s.back
	if !ok {
		return nil, io.EOF
	}
	return b, nil
}

func (s *linkStream) CloseAndRecv() error {
	close(s.ch)
	err := <-s.done
	if s.cut {
		return errBroken
	}
	if err != nil {
		return fmt.Errorf("remote said: %s", err.Error())
	}
	return nil
}

// recorded is a snapshot as it is sent to somebody who has nothing.
type recorded struct {
	header []byte
	meta   Meta
	msgs   [][]byte
}

type recorder struct{ *recorded }

func (r recorder) Send(b []byte) error   { r.msgs = append(r.msgs, slices.Clone(b)); return nil }
func (r recorder) Recv() ([]byte, error) { return ready{}.encode(nil), nil }
func (r recorder) CloseAndRecv() error   { return nil }

func record(t testing.TB, s *Store, desc raft.Descriptor) *recorded {
	t.Helper()
	r := &recorded{}
	_, _, err := s.Send(t.Context(), &desc, 2, func(_ context.Context, header []byte) (Stream, error) {
		r.header = slices.Clone(header)
		return recorder{r}, nil
	})
	check(t, err)
	r.meta, err = DecodeMeta(r.header)
	check(t, err)
	for _, b := range r.msgs {
		if kind, body, err := open(b); err == nil && kind == msgFile {
			_, f, err := decodeFile(body)
			check(t, err)
			r.meta.Files = append(r.meta.Files, *f)
		}
	}
	return r
}

// next gives the messages in turn.
func (r *recorded) next() func() ([]byte, error) { return giving(r.msgs) }

func giving(msgs [][]byte) func() ([]byte, error) {
	return func() ([]byte, error) {
		if len(msgs) == 0 {
			return nil, io.EOF
		}
		b := slices.Clone(msgs[0])
		msgs = msgs[1:]
		return b, nil
	}
}

func deaf([]byte) error { return nil }

// pair is a sender (node 1) with a filled replica and an empty receiver (node 2).
type pair struct {
	from, to   *engine.Engine
	send, recv *Store
	desc       raft.Descriptor
	link       *link
	state      raft.State // after installation
}

func newPair(t *testing.T, keys int) *pair {
	p := &pair{from: openEngine(t, engine.NewMemFS(), 1), to: openEngine(t, engine.NewMemFS(), 2), desc: descOf(shard1, "a", "q")}
	fill(t, p.from, p.desc, keys, 1)
	p.send, p.recv = newStore(t, p.from, 1, nil), newStore(t, p.to, 2, nil)
	p.link = &link{to: p.recv}
	p.link.install = func(g *Staged) error {
		var hs raft.HardState
		var as raft.AppliedState
		st, ok, err := p.to.Load(shard1)
		if err != nil {
			return err
		}
		if ok {
			hs, as = st.Hard, st.Applied
		}
		p.state, err = g.InstallOn(hs, as, ok, false)
		return err
	}
	return p
}

func (p *pair) run(t *testing.T) error {
	t.Helper()
	idx, term, err := p.send.Send(t.Context(), &p.desc, 2, p.link.open)
	if err == nil && (idx == 0 || term != 5) {
		t.Fatalf("sent index %d term %d", idx, term)
	}
	return err
}

func staged(t testing.TB, e *engine.Engine) []string {
	t.Helper()
	names, err := e.FS().List(e.StagingDir())
	check(t, err)
	return names
}

func (p *pair) same(t *testing.T) {
	t.Helper()
	if a, b := dump(t, p.from, p.desc), dump(t, p.to, p.desc); a != b {
		t.Fatalf("receiver differs: %d bytes against %d", len(b), len(a))
	}
	for _, e := range []*engine.Engine{p.from, p.to} {
		if s := staged(t, e); len(s) != 0 {
			t.Fatalf("left in staging: %v", s)
		}
	}
}

// TestMoveShard sends shards of every class to an empty node and to one with
// an old replica: the receiver ends byte-identical, with an empty log, a hard
// state that forgot nothing, and nothing left in staging on either side.
func TestMoveShard(t *testing.T) {
	for _, tc := range []struct {
		name    string
		keys    int
		files   int // at least
		old     int // keys of the old replica; -1: none
		oldHard raft.HardState
		hard    raft.HardState
	}{
		{"no data", 0, 1, -1, raft.HardState{}, raft.HardState{Term: 5, Commit: 100}},
		{"small to nobody", 3, 2, -1, raft.HardState{}, raft.HardState{Term: 5, Commit: 103}},
		{"small over old", 3, 2, 1, raft.HardState{Term: 6, Vote: 1}, raft.HardState{Term: 6, Vote: 1, Commit: 103}},
		{"large to nobody", 3000, 4, -1, raft.HardState{}, raft.HardState{Term: 5, Commit: 3100}},
		{"large over small", 3000, 4, 2, raft.HardState{Term: 6, Vote: 1}, raft.HardState{Term: 6, Vote: 1, Commit: 3100}},
		{"large over large", 2000, 3, 1500, raft.HardState{Term: 6, Vote: 1}, raft.HardState{Term: 6, Vote: 1, Commit: 2100}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			p := newPair(t, tc.keys)
			other := descOf(8, "q", "")
			fill(t, p.to, other, 5, 9) // a neighbour that must stay as it is
			neighbour := dump(t, p.to, other)
			if tc.old >= 0 {
				fill(t, p.to, p.desc, tc.old, 2)
			}
			check(t, p.run(t))
			p.same(t)
			if dump(t, p.to, other) != neighbour {
				t.Fatal("the neighbour changed")
			}
			if p.state.Hard != tc.hard {
				t.Fatalf("hard state %+v, want %+v", p.state.Hard, tc.hard)
			}
			if p.state.Last != p.state.Applied.Applied || p.state.Applied.TruncIndex != p.state.Last || p.state.Applied.TruncTerm != 5 || len(p.state.Tail) != 0 {
				t.Fatalf("log after installation: %+v", p.state)
			}
			if p.link.streams != 1 {
				t.Fatalf("%d streams for one snapshot", p.link.streams)
			}
		})
	}
}

// TestGoesOnAfterABreak breaks the stream after every number of messages: the
// receiver says what arrived and the sender sends the rest; no chunk that arrived is
// sent again.
func TestGoesOnAfterABreak(t *testing.T) {
	p := newPair(t, 2000)
	r := record(t, p.send, p.desc)
	total := r.meta.Chunks()
	if total < 6 {
		t.Fatalf("only %d chunks", total)
	}
	for cut := 1; cut < len(r.msgs); cut++ {
		p := newPair(t, 2000)
		p.link.cutAt = cut
		first := true
		open := func(ctx context.Context, h []byte) (Stream, error) {
			if !first {
				p.link.cutAt = 0
			}
			first = false
			return p.link.open(ctx, h)
		}
		if _, _, err := p.send.Send(t.Context(), &p.desc, 2, open); err != nil {
			t.Fatalf("cut after %d: %v", cut, err)
		}
		if p.link.chunks != total || p.link.streams != 2 {
			t.Fatalf("cut after %d: %d chunks in %d streams, want %d in 2", cut, p.link.chunks, p.link.streams, total)
		}
		p.same(t)
	}
}

// TestReceiverRestartsInTheMiddle: chunks that are on disk are not sent again after the
// receiver came back as a new process, nor by another sender; what rotted is.
func TestReceiverRestartsInTheMiddle(t *testing.T) {
	for _, rot := range []bool{false, true} {
		fs := engine.NewMemFS()
		p := newPair(t, 2000)
		p.to.Close()
		p.to = openEngine(t, fs, 2)
		p.recv = newStore(t, p.to, 2, nil)
		r := record(t, p.send, p.desc)
		total := r.meta.Chunks()
		if _, err := p.recv.Handle(1, r.header, giving(r.msgs[:len(r.msgs)-3]), deaf); !errors.Is(err, ErrTruncated) {
			t.Fatal(err)
		}
		p.recv.Close()
		check(t, p.to.Close())
		if rot {
			path := "/n/staging/in-" + r.meta.ID.String() + "/0001.sst"
			f, err := fs.OpenReadWrite(path, "unspecified")
			check(t, err)
			_, err = f.WriteAt([]byte{1, 2, 3}, 1000)
			check(t, errors.Join(err, f.Close()))
		}
		p.to = openEngine(t, fs, 2)
		check(t, fs.MkdirAll(fs.PathJoin(p.to.StagingDir(), "out-0000"), 0o755)) // what a dead sender left
		p.recv = newStore(t, p.to, 2, nil)
		p.link.to = p.recv
		if got := staged(t, p.to); len(got) != 1 || got[0] != "in-"+r.meta.ID.String() {
			t.Fatalf("staging after the restart: %v", got)
		}
		check(t, p.run(t))
		p.same(t)
		want := 1 // the list, and the table that had begun has no whole chunk
		for _, f := range r.meta.Files {
			want = max(want, len(f.Sums))
		}
		if rot {
			want++
		}
		if p.link.chunks == 0 || p.link.chunks > want+1 || rot && p.link.chunks < 2 {
			t.Fatalf("%d of %d chunks were sent again (rotten: %v)", p.link.chunks, total, rot)
		}
	}
}

// TestNothingApplied: there is no snapshot of a replica that has applied nothing,
// and none that says so is taken in.
func TestNothingApplied(t *testing.T) {
	p := newPair(t, 0)
	fresh := descOf(8, "q", "")
	b := p.from.NewBatch()
	b.SetDescriptor(&fresh)
	b.SetApplied(8, raft.AppliedState{})
	b.SetHardState(8, raft.HardState{Term: 1})
	check(t, b.Commit(true))
	b.Close()
	before := dump(t, p.from, fresh)
	_, _, err := p.send.Send(t.Context(), &fresh, 2, func(context.Context, []byte) (Stream, error) {
		t.Error("a snapshot of nothing is offered")
		return nil, errBroken
	})
	if !errors.Is(err, ErrNothingApplied) || dump(t, p.from, fresh) != before || len(staged(t, p.from)) != 0 {
		t.Fatalf("sent: %v", err)
	}
	empty := Meta{ID: ID{1}, Shard: 8, Desc: fresh}
	if st, err := p.recv.Handle(1, empty.Encode(nil), func() ([]byte, error) { return nil, io.EOF }, deaf); !errors.Is(err, ErrCorrupt) {
		t.Fatalf("taken in: %+v, %v", st, err)
	}
	if _, ok, err := p.to.Load(8); ok || err != nil || len(staged(t, p.to)) != 0 {
		t.Fatalf("the receiver has it: %v, %v", ok, err)
	}
}

// TestRefused: whatever is wrong with a snapshot, it is refused as a whole,
// nothing changes, and nothing stays in staging.
func TestRefused(t *testing.T) {
	flip := func(at, bit int) func(int, []byte) []byte {
		return func(n int, b []byte) []byte {
			if n == 2 {
				i := at
				if i < 0 {
					i += len(b)
				}
				b[i] ^= 1 << bit
			}
			return b
		}
	}
	lastFile := 0
	without := func(nth int) func(int, []byte) []byte {
		return func(n int, b []byte) []byte {
			if n == nth {
				return nil
			}
			return b
		}
	}
	for _, tc := range []struct {
		name   string
		setup  func(t *testing.T, p *pair)
		change func(n int, b []byte) []byte
		header func(m *Meta)
		file   func(n int, f *File)
		raw    func(b []byte) []byte
		want   error
		kept   bool // something may stay for a retry
	}{
		{name: "flipped bit in the data", change: flip(5000, 3), want: ErrCorrupt},
		{name: "flipped bit at the end", change: flip(-1, 0), want: ErrCorrupt},
		{name: "unknown chunk version", change: flip(0, 1), want: ErrCorrupt},
		{name: "unknown kind of message", change: flip(1, 6), want: ErrCorrupt},
		{name: "unknown chunk flag", change: flip(2, 7), want: ErrCorrupt},
		{name: "chunk that claims to be compressed", change: flip(2, 0), want: ErrCorrupt},
		{name: "chunk of no file", change: flip(3, 0), want: ErrCorrupt},
		{name: "chunk out of order", change: without(2), want: ErrCorrupt},
		{name: "chunk of an unknown file", change: without(1), want: ErrCorrupt},
		{name: "flipped bit in a record", change: func(n int, b []byte) []byte {
			if n == 1 {
				b[20] ^= 4
			}
			return b
		}, want: ErrCorrupt},
		{name: "flipped bit in the end", change: func(n int, b []byte) []byte {
			if b[1] == msgEnd {
				b[10] ^= 4
			}
			return b
		}, want: ErrCorrupt},
		{name: "a table is missing", change: func(n int, b []byte) []byte {
			if n == lastFile {
				return nil
			}
			return b
		}, want: ErrCorrupt},
		{name: "keeps what nobody offered", change: func(n int, b []byte) []byte {
			if n == 2 {
				return encodeKeep(nil, 0, []int{0})
			}
			return b
		}, want: ErrCorrupt},
		{name: "chunk that is cut", change: func(n int, b []byte) []byte { return b[:len(b)-1] }, want: ErrCorrupt},
		{name: "manifest flipped", raw: func(b []byte) []byte { b[40] ^= 1; return b }, want: ErrCorrupt},
		{name: "manifest cut", raw: func(b []byte) []byte { return b[:len(b)-3] }, want: ErrCorrupt},
		{name: "manifest of another version", raw: func(b []byte) []byte { b[0] = 1; return b }, want: ErrCorrupt},
		{name: "wrong range below", file: func(n int, f *File) { f.First = engine.DataKey(1, nil) }, want: ErrCorrupt},
		{name: "wrong range above", file: func(n int, f *File) { f.Last = engine.DataKey(1, []byte("zz")) }, want: ErrCorrupt},
		{name: "other keyspace", header: func(m *Meta) { m.Desc.Keyspace = 2 }, want: ErrCorrupt},
		{name: "overlapping tables", file: func(n int, f *File) {
			if n == 1 {
				f.First = engine.DataKey(1, []byte("a"))
			}
		}, want: ErrCorrupt},
		{name: "nothing applied", header: func(m *Meta) { m.Applied.Applied = 0 }, want: ErrCorrupt},
		{name: "no such node in it", header: func(m *Meta) { m.Desc.Replicas = m.Desc.Replicas[:1] }, want: ErrNotMember},
		{name: "another incarnation", setup: func(t *testing.T, p *pair) {
			d := p.desc.Clone()
			d.Replicas[1].ID = 9
			fill(t, p.to, d, 1, 2)
		}, want: ErrNotMember},
		{name: "as far already", setup: func(t *testing.T, p *pair) { fill(t, p.to, p.desc, 2000, 1) }, want: ErrStale},
		{name: "newer descriptor", setup: func(t *testing.T, p *pair) {
			d := p.desc.Clone()
			d.Version++
			fill(t, p.to, d, 1, 2)
		}, want: ErrStale},
		{name: "destroyed here", setup: func(t *testing.T, p *pair) {
			fill(t, p.to, p.desc, 1, 2)
			check(t, p.to.Destroy(shard1, &p.desc, 3))
		}, want: ErrNotMember},
		{name: "another shard lives there", setup: func(t *testing.T, p *pair) {
			d := descOf(9, "p", "")
			fill(t, p.to, d, 1, 2)
			p.recv.o.Live = func(*raft.Descriptor) []raft.Descriptor { return []raft.Descriptor{d} }
		}, want: &OverlapError{}},
		{name: "another shard lives there, seen by the engine", setup: func(t *testing.T, p *pair) {
			fill(t, p.to, descOf(9, "p", ""), 1, 2)
		}, want: engine.ErrOverlap},
		{name: "stream ends early", change: func(n int, b []byte) []byte { return b }, want: ErrTruncated, kept: true},
	} {
		t.Run(tc.name, func(t *testing.T) {
			p := newPair(t, 2000)
			if tc.setup != nil {
				tc.setup(t, p)
			}
			before := "none"
			if _, ok, err := p.to.Load(shard1); err != nil {
				t.Fatal(err)
			} else if ok {
				before = dump(t, p.to, p.desc)
			}
			rec := record(t, p.send, p.desc)
			header := rec.header
			if tc.header != nil {
				meta, err := DecodeMeta(header)
				check(t, err)
				tc.header(&meta)
				header = meta.Encode(nil)
			}
			if tc.raw != nil {
				header = tc.raw(header)
			}
			for i, m := range rec.msgs {
				if m[1] == msgFile {
					n, f, err := decodeFile(reader{b: m[messageHead:]})
					check(t, err)
					if tc.file != nil && f.Kind == FileTable {
						tc.file(n, f)
						rec.msgs[i] = encodeFile(nil, n, f)
					}
					lastFile = i + 1
				}
			}
			n, sent := 0, 0
			g, err := p.recv.Handle(1, header, func() ([]byte, error) {
				for {
					if n == len(rec.msgs) || tc.kept && n == 3 {
						return nil, io.EOF
					}
					c := slices.Clone(rec.msgs[n])
					n++
					if tc.change != nil {
						c = tc.change(n, c)
					}
					if c != nil {
						sent++
						return c, nil
					}
				}
			}, deaf)
			if err == nil {
				err = g.Install(p.to, raft.HardState{})
				g.Close()
			}
			var overlap *OverlapError
			if !errors.Is(err, tc.want) && !(errors.As(tc.want, &overlap) && errors.As(err, &overlap)) {
				t.Fatalf("got %v, want %v", err, tc.want)
			}
			if tc.header != nil && tc.name != "other keyspace" && sent > 0 {
				t.Fatalf("%d messages were taken though the manifest says enough", sent)
			}
			after := "none"
			if _, ok, err := p.to.Load(shard1); err != nil {
				t.Fatal(err)
			} else if ok {
				after = dump(t, p.to, p.desc)
			}
			if before != after {
				t.Fatal("the old state changed")
			}
			if tc.kept {
				p.recv.Sweep(false)
				if s := staged(t, p.to); len(s) != 1 {
					t.Fatalf("staged: %v", s)
				}
				check(t, p.recv.o.Clock.Sleep(t.Context(), RetainFor))
				p.recv.Sweep(false)
			}
			if s := staged(t, p.to); len(s) != 0 {
				t.Fatalf("left in staging: %v", s)
			}
		})
	}
}

// TestVerdictsReachTheSender: the sender learns through the transport's text
// whether to go on, to try later, or to give up.
func TestVerdictsReachTheSender(t *testing.T) {
	t.Run("stale", func(t *testing.T) {
		p := newPair(t, 3)
		fill(t, p.to, p.desc, 3, 1)
		if err := p.run(t); !errors.Is(err, ErrStale) || p.link.streams != 1 {
			t.Fatalf("%v after %d streams", err, p.link.streams)
		}
	})
	t.Run("refused", func(t *testing.T) {
		p := newPair(t, 3)
		p.recv.o.Node = 55
		if err := p.run(t); !errors.Is(err, ErrRefused) || p.link.streams != 1 || !strings.Contains(err.Error(), "no replica of this node") {
			t.Fatalf("%v after %d streams", err, p.link.streams)
		}
	})
	t.Run("busy, then free", func(t *testing.T) {
		p := newPair(t, 3)
		hold, _, err := p.recv.enlist(&Meta{Shard: shard1}, 9, 1, 1<<40)
		check(t, err)
		streams := 0
		_, _, err = p.send.Send(t.Context(), &p.desc, 2, func(ctx context.Context, h []byte) (Stream, error) {
			if streams++; streams == 3 {
				p.recv.release(hold, false)
			}
			return p.link.open(ctx, h)
		})
		check(t, err)
		p.same(t)
	})
	t.Run("never free", func(t *testing.T) {
		p := newPair(t, 3)
		for i := range 2 {
			if _, _, err := p.recv.enlist(&Meta{Shard: raft.ShardID(100 + i)}, 9, 1, 1<<40); err != nil {
				t.Fatal(err)
			}
		}
		if err := p.run(t); !errors.Is(err, ErrBusy) || p.link.streams != sendAttempts {
			t.Fatalf("%v after %d streams", err, p.link.streams)
		}
	})
	t.Run("text", func(t *testing.T) { // the form is part of the protocol
		for err, want := range map[error]string{
			fmt.Errorf("%w: 3 of 5 chunks", ErrTruncated): "snapshot/1 more 3: snapshot: stream ended early: 3 of 5 chunks",
			ErrStale:            "snapshot/1 stale 0: snapshot: older than what is there",
			ErrBusy:             "snapshot/1 busy 0: snapshot: too many under way",
			corrupt("checksum"): "snapshot/1 refused 0: snapshot: checksum: snapshot: corrupt",
		} {
			if got := Verdict(err); !errors.Is(got, err) || !strings.HasPrefix(got.Error(), want[:len("snapshot/1 more")]) {
				t.Errorf("from outside: %q", got)
			}
			v := verdictOf(err, 3)
			if v.Error() != want || !errors.Is(v, err) {
				t.Errorf("%q, want %q", v.Error(), want)
			}
			code, n, ok := parseVerdict(fmt.Errorf("rpc error: code = Aborted desc = %w", v))
			if !ok || code != v.(*verdict).code || n != v.(*verdict).chunks {
				t.Errorf("%q parsed as %q %d %v", v, code, n, ok)
			}
		}
		for _, s := range []string{"", "connection reset", "snapshot/1", "snapshot/1 more", "snapshot/1 more -4: x", "snapshot/2 more 1: x"} {
			if _, _, ok := parseVerdict(errors.New(s)); ok {
				t.Errorf("%q was taken for a verdict", s)
			}
		}
	})
}

// TestCutIsConsistent builds while writes go on: every snapshot holds exactly
// the state at its applied index, no more and no less.
func TestCutIsConsistent(t *testing.T) {
	for _, keys := range []int{2, 500} {
		e := openEngine(t, engine.NewMemFS(), 1)
		d := descOf(shard1, "a", "q")
		fill(t, e, d, keys, 1)
		s := newStore(t, e, 1, nil)
		stop, done := make(chan struct{}), make(chan struct{})
		go func() {
			defer close(done)
			for i := uint64(1); ; i++ {
				select {
				case <-stop:
					return
				default:
				}
				b := e.NewBatch()
				n := binary.BigEndian.AppendUint64(nil, i)
				b.Set(1, []byte("a-first"), n)
				b.Set(1, []byte("p-last"), n)
				b.SetGroup(shard1, []byte("counter"), n)
				b.SetApplied(shard1, raft.AppliedState{Applied: raft.Index(i), AppliedTerm: 5})
				if err := b.Commit(false); err != nil {
					t.Error(err)
				}
				b.Close()
			}
		}()
		for seen := 0; seen < 4; {
			rec := record(t, s, d)
			to := openEngine(t, engine.NewMemFS(), 2)
			recv := newStore(t, to, 2, nil)
			g, err := recv.Handle(1, rec.header, rec.next(), deaf)
			check(t, err)
			check(t, g.Install(to, raft.HardState{}))
			g.Close()
			want := binary.BigEndian.AppendUint64(nil, uint64(rec.meta.Index))
			first, ok, err := to.Get(1, []byte("a-first"), nil)
			check(t, err)
			last, _, err := to.Get(1, []byte("p-last"), nil)
			check(t, err)
			counter, _, err := to.GetGroup(shard1, []byte("counter"))
			check(t, err)
			if ok {
				seen++
			}
			if ok && (string(first) != string(want) || string(last) != string(want) || string(counter) != string(want)) {
				t.Fatalf("snapshot at %d holds %x, %x, %x", rec.meta.Index, first, last, counter)
			}
			check(t, to.Close())
		}
		close(stop)
		<-done
	}
}

// TestCloseBeforeInstall: a caller that stopped waiting for the loop has closed
// the snapshot; the installation that comes late does nothing, and twice is once.
func TestCloseBeforeInstall(t *testing.T) {
	for _, keys := range []int{3, 2000} {
		p := newPair(t, keys)
		rec := record(t, p.send, p.desc)
		g, err := p.recv.Handle(1, rec.header, rec.next(), deaf)
		check(t, err)
		g.Close()
		if _, err := g.InstallOn(raft.HardState{}, raft.AppliedState{}, false, false); !errors.Is(err, ErrClosed) {
			t.Fatalf("installation after Close: %v", err)
		}
		if _, ok, err := p.to.Load(shard1); ok || err != nil {
			t.Fatalf("there is a replica: %v", err)
		}
		g, err = p.recv.Handle(1, rec.header, rec.next(), deaf)
		check(t, err)
		_, err = g.InstallOn(raft.HardState{}, raft.AppliedState{}, false, false)
		check(t, err)
		if err := g.Install(p.to, raft.HardState{}); !errors.Is(err, ErrClosed) {
			t.Fatalf("second installation: %v", err)
		}
		g.Close()
		g.Close()
		p.same(t)
	}
	p := newPair(t, 2000)
	rec := record(t, p.send, p.desc)
	g, err := p.recv.Handle(1, rec.header, rec.next(), deaf)
	check(t, err)
	check(t, p.to.FS().Remove(g.r.paths[1]))
	if _, err := g.InstallOn(raft.HardState{}, raft.AppliedState{}, false, false); !errors.Is(err, ErrCorrupt) {
		t.Fatalf("installation with a table missing: %v", err)
	}
}

// TestStalledStreamGivesWay: a stream that stands still for StallFor keeps no
// slot and blocks no other snapshot of its shard; when it moves again it is
// refused and leaves nothing behind.
func TestStalledStreamGivesWay(t *testing.T) {
	p := newPair(t, 2000)
	old := record(t, p.send, p.desc)
	next, arrived, ended := make(chan struct{}), make(chan struct{}), make(chan error)
	messages := old.next()
	n := 0
	go func() {
		_, err := p.recv.Handle(3, old.header, func() ([]byte, error) {
			if n++; n == 3 {
				close(arrived)
				<-next
			}
			return messages()
		}, deaf)
		ended <- err
	}()
	<-arrived
	clock := p.recv.o.Clock.(*handClock)
	check(t, clock.Sleep(t.Context(), StallFor-1))
	if err := p.run(t); !errors.Is(err, ErrBusy) {
		t.Fatalf("before its time: %v", err)
	}
	check(t, clock.Sleep(t.Context(), 1))
	check(t, p.run(t))
	close(next)
	if err := <-ended; !errors.Is(err, ErrBusy) {
		t.Fatalf("the stalled stream ended with %v", err)
	}
	p.same(t)
}

// TestPacing: what is sent keeps to the rate, by the clock.
func TestPacing(t *testing.T) {
	p := newPair(t, 3000)
	clock := &handClock{now: 1}
	p.send = newStore(t, p.from, 1, func(o *Options) { o.Clock, o.BytesPerSecond = clock, 1<<20 })
	check(t, p.run(t))
	p.same(t)
	if got := time.Duration(clock.Now()); got < 2*time.Second || got > 4*time.Second {
		t.Fatalf("3 MB at 1 MiB/s took %v", got)
	}
}

// TestSender: snapshots in the background, each answered once; Close ends them.
func TestSender(t *testing.T) {
	p := newPair(t, 3)
	s := NewSender(p.send, func(ctx context.Context, to raft.NodeID, h []byte) (Stream, error) {
		if to == 3 { // hangs until it is ended
			<-ctx.Done()
			return nil, ctx.Err()
		}
		return p.link.open(ctx, h)
	})
	type result struct {
		index raft.Index
		err   error
	}
	got := make(chan result, 8)
	done := func(i raft.Index, _ raft.Term, err error) { got <- result{i, err} }
	s.SendSnapshot(p.desc, 2, 2, done)
	if r := <-got; r.err != nil || r.index != 103 {
		t.Fatalf("%+v", r)
	}
	p.same(t)
	for range 3 { // two hang, one waits for a slot
		s.SendSnapshot(p.desc, 3, 3, done)
	}
	s.Close()
	s.Close()
	for range 3 {
		if r := <-got; !errors.Is(r.err, context.Canceled) {
			t.Fatalf("%+v", r)
		}
	}
	s.SendSnapshot(p.desc, 2, 2, done)
	if r := <-got; !errors.Is(r.err, ErrClosed) {
		t.Fatalf("%+v", r)
	}
	p.send.Close()
	p.send.Close()
	if _, _, err := p.send.Send(t.Context(), &p.desc, 2, p.link.open); !errors.Is(err, ErrClosed) {
		t.Fatalf("send after close: %v", err)
	}
}

// TestNoSpace: a snapshot for which there is no room is refused by its manifest,
// before anything is staged, or as soon as it turns out to be larger, and the sender is told that it may try again; room is
// promised once only, also to a reception that was interrupted; what came of that
// needs no room again.
func TestNoSpace(t *testing.T) {
	p := newPair(t, 2000)
	room := int64(0)
	p.recv = newStore(t, p.to, 2, func(o *Options) { o.Room = func() int64 { return room } })
	p.link.to = p.recv
	rec := record(t, p.send, p.desc)
	size := int64(0)
	for _, f := range rec.meta.Files {
		if f.Kind == FileTable {
			size += f.Size
		}
	}
	if size < 1<<20 {
		t.Fatalf("%d bytes of tables", size)
	}
	room = size - 1
	announced := rec.meta
	announced.Files, announced.Estimate = nil, size
	if _, err := p.recv.Handle(1, announced.Encode(nil), func() ([]byte, error) { t.Error("data is asked for"); return nil, io.EOF }, deaf); !errors.Is(err, ErrNoSpace) {
		t.Fatalf("announced: %v", err)
	}
	if err := p.run(t); !errors.Is(err, ErrBusy) || !strings.Contains(err.Error(), "no space for it") || !errors.Is(p.link.err, ErrNoSpace) {
		t.Fatalf("a byte short: the sender got %v, the receiver says %v", err, p.link.err)
	}
	if s := staged(t, p.to); len(s) != 0 {
		t.Fatalf("a byte short: staged are %v", s)
	}

	// Another shard comes in, and breaks off: its room stays promised.
	room = 2*size - 1
	other := newPair(t, 2000)
	other.desc = descOf(shard1+1, "q", "z")
	fill(t, other.from, other.desc, 2000, 1)
	first := record(t, other.send, other.desc)
	first.meta.Files, first.meta.Estimate = nil, size
	if _, err := p.recv.Handle(1, first.meta.Encode(nil), func() ([]byte, error) { return nil, io.EOF }, deaf); !errors.Is(err, ErrTruncated) {
		t.Fatal(err)
	}
	if err := p.run(t); !errors.Is(err, ErrBusy) || !errors.Is(p.link.err, ErrNoSpace) {
		t.Fatalf("room for one of two: the sender got %v, the receiver says %v", err, p.link.err)
	}
	room = 2*size + 64<<10
	check(t, p.run(t))
}
