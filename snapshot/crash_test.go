package snapshot

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"testing"

	"github.com/flotillakv/flotilla/engine"
	"github.com/flotillakv/flotilla/internal/invariants"
	"github.com/flotillakv/flotilla/internal/sim/simfs"
	"github.com/flotillakv/flotilla/multiraft/raft"
)

// TestCrashAtEveryFileOperation receives and installs a snapshot over an old
// replica and takes an image of the disk, in one of the ways a crash can leave
// it, before every file operation. From every image the node comes back with
// the old replica or the new one, whole; its vote is not forgotten; and the
// snapshot, sent again, ends byte-identical with the sender's.
func TestCrashAtEveryFileOperation(t *testing.T) {
	for _, tc := range []struct {
		name      string
		keys, old int
	}{
		{"small over small", 3, 2},
		{"large over small", 400, 2},
		{"large over large", 400, 300},
		{"small over large", 3, 300},
		{"large to nobody", 400, -1},
	} {
		t.Run(tc.name, func(t *testing.T) { crashEverywhere(t, tc.keys, tc.old) })
	}
}

type image struct {
	what string
	fs   *simfs.FS
}

func crashEverywhere(t *testing.T, keys, old int) {
	p := newPair(t, keys)
	p.send = newStore(t, p.from, 1, func(o *Options) { o.TableBytes = 150 << 10 })
	ahead := p.from.NewBatch() // of any old replica
	ahead.SetApplied(shard1, raft.AppliedState{Applied: 9000, AppliedTerm: 5, TruncIndex: 8000, TruncTerm: 5, ConfIndex: 3, GroupTs: 78})
	check(t, ahead.Commit(false))
	ahead.Close()
	fs := simfs.New()
	var mu sync.Mutex
	var images []image
	ops, recording := 0, false
	fs.Inject(func(op simfs.Op) error {
		mu.Lock()
		defer mu.Unlock()
		if !recording || op.Kind >= simfs.OpOpen {
			return nil
		}
		ops++
		for i, mode := range simfs.Modes {
			// All ways for the few operations of a small snapshot, one each for the many of a large one.
			if keys < 100 || i == ops%len(simfs.Modes) {
				images = append(images, image{fmt.Sprintf("op %d (kind %d of %s), %v", ops, op.Kind, op.Path, mode), fs.Image(mode, uint64(ops))})
			}
		}
		return nil
	})
	to := openEngine(t, fs, 2)
	neighbour := descOf(8, "q", "")
	fill(t, to, neighbour, 3, 9)
	beside := dump(t, to, neighbour)
	before := "none"
	var hs raft.HardState
	var as raft.AppliedState
	if old >= 0 {
		fill(t, to, p.desc, old, 2)
		st, _, err := to.Load(shard1)
		check(t, err)
		hs, as = st.Hard, st.Applied
		before = dump(t, to, p.desc)
	}
	want := dump(t, p.from, p.desc)
	recv := newStore(t, to, 2, nil)
	rec := record(t, p.send, p.desc)

	mu.Lock()
	recording = true
	mu.Unlock()
	g, err := recv.Handle(1, rec.header, rec.next(), deaf)
	check(t, err)
	st, err := g.InstallOn(hs, as, old >= 0, false)
	check(t, err)
	mu.Lock()
	recording = false
	done := image{"after the installation, nothing unsynced survives", fs.Image(simfs.None, 1)}
	mu.Unlock()
	g.Close()
	if ops < 2 {
		t.Fatalf("only %d file operations seen", len(images))
	}
	counts := map[string]int{}
	spared := uint64(0)
	for i, im := range append(images, done) {
		if invariants.Enabled && i%4 != 0 && i < len(images)-8 {
			continue // the store is slow in this build; every image is for the plain one
		}
		e, err := engine.Open(engine.Options{Dir: "/n", FS: im.fs, Node: 2, Cluster: [16]byte{1}, CacheBytes: 1 << 20, MemTableBytes: 1 << 20,
			OnFatal: func(err error) { t.Errorf("%s: store failed: %v", im.what, err) }})
		if err != nil {
			t.Fatalf("%s: does not open: %v", im.what, err)
		}
		s, ok, err := e.Load(shard1)
		if err != nil {
			t.Fatalf("%s: does not load: %v", im.what, err)
		}
		got := "none"
		if ok {
			got = dump(t, e, p.desc)
		}
		switch {
		case got == before && (!ok || s.Hard == hs && s.Last == as.Applied+1):
			counts["old"]++
			if i == len(images) {
				t.Fatalf("%s: the old state is back", im.what)
			}
		case got == want && s.Hard == st.Hard && s.Last == st.Last && s.Applied == st.Applied:
			counts["new"]++
		default:
			t.Fatalf("%s: neither the old nor the new state: hard %+v (was %+v), last %d, applied %+v, %d bytes of content (old %d, new %d)",
				im.what, s.Hard, hs, s.Last, s.Applied, len(got), len(before), len(want))
		}
		if dump(t, e, neighbour) != beside {
			t.Fatalf("%s: the neighbour changed", im.what)
		}
		// A sender tries again, which takes what is there.
		r := newStore(t, e, 2, nil)
		_, _, err = p.send.Send(t.Context(), &p.desc, 2, func(_ context.Context, header []byte) (Stream, error) {
			return Pipe(func(next func() ([]byte, error), reply func([]byte) error) error {
				g, err := r.Handle(1, header, next, reply)
				if err != nil {
					return err
				}
				defer g.Close()
				_, err = g.InstallOn(s.Hard, s.Applied, ok, false)
				return err
			}), nil
		})
		if err != nil && (got != want || !errors.Is(err, ErrStale)) {
			t.Fatalf("%s: second try: %v", im.what, err)
		}
		spared += r.Counters().ReceivedSpared
		if dump(t, e, p.desc) != want {
			t.Fatalf("%s: the second installation made something else", im.what)
		}
		if left := staged(t, e); len(left) != 0 {
			t.Fatalf("%s: left in staging: %v", im.what, left)
		}
		if err := e.Close(); err != nil {
			t.Fatalf("%s: close: %v", im.what, err)
		}
	}
	t.Logf("%d images: %v, %d bytes were not sent a second time", len(images)+1, counts, spared)
	if keys > 100 && spared == 0 {
		t.Fatal("what was staged is never used")
	}
	if counts["old"] == 0 || counts["new"] == 0 {
		t.Fatalf("the images show only one side of the installation: %v", counts)
	}
}

// TestErrorAtEveryStagingOperation fails each file operation in the staging directory
// once: the snapshot fails, the old replica is whole, nothing stays behind, and the
// next try succeeds.
func TestErrorAtEveryStagingOperation(t *testing.T) {
	full := errors.New("no space left on device")
	for nth := 1; ; nth++ {
		p := newPair(t, 0)
		fs := simfs.New()
		var mu sync.Mutex
		count := 0
		armed := false
		fs.Inject(func(op simfs.Op) error {
			mu.Lock()
			defer mu.Unlock()
			if !armed || op.Class != simfs.ClassStaging || op.Kind == simfs.OpRemove {
				return nil
			}
			if count++; count == nth {
				return full
			}
			return nil
		})
		e := openEngine(t, fs, 2)
		s := newStore(t, e, 2, func(o *Options) { o.Inline = nth%2 == 0 })
		p.send = newStore(t, p.from, 1, func(o *Options) { o.TableBytes = 100 << 10 })
		p.to, p.recv, p.link.to = e, s, s
		fill(t, p.from, p.desc, 300, 1)
		fill(t, p.to, p.desc, 2, 2)
		rec := record(t, p.send, p.desc)
		mu.Lock()
		armed = true
		mu.Unlock()
		g, err := p.recv.Handle(1, rec.header, rec.next(), deaf)
		if err == nil {
			g.Close()
		}
		mu.Lock()
		armed = false
		hit := count >= nth
		mu.Unlock()
		if !hit {
			if nth < 6 {
				t.Fatalf("only %d operations in staging", nth-1)
			}
			return
		}
		if err == nil {
			t.Fatalf("operation %d failed and nobody noticed", nth)
		}
		if left := staged(t, e); len(left) != 0 {
			t.Fatalf("operation %d: left in staging: %v", nth, left)
		}
		check(t, p.run(t))
		p.same(t)
	}
}

// BenchmarkMove makes, streams and stages a shard of 64 MiB in memory.
func BenchmarkMove(b *testing.B) {
	from, to := openEngine(b, engine.NewMemFS(), 1), openEngine(b, engine.NewMemFS(), 2)
	d := descOf(shard1, "a", "q")
	fill(b, from, d, 64<<10, 1)
	send := newStore(b, from, 1, func(o *Options) { o.SmallBytes, o.TableBytes = 0, 0 })
	recv := newStore(b, to, 2, nil)
	b.SetBytes(64 << 20)
	for b.Loop() {
		_, _, err := send.Send(b.Context(), &d, 2, func(_ context.Context, header []byte) (Stream, error) {
			return Pipe(func(next func() ([]byte, error), reply func([]byte) error) error {
				g, err := recv.Handle(1, header, next, reply)
				if err == nil {
					g.Close()
				}
				return err
			}), nil
		})
		check(b, err)
	}
}
