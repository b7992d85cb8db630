package snapshot

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"testing"
	"time"

	"github.com/flotillakv/flotilla/engine"
	"github.com/flotillakv/flotilla/internal/sim/simfs"
	"github.com/flotillakv/flotilla/multiraft/raft"
)

// keptCases tell what images are that a store keeps.
var keptCases = []struct {
	name string
	run  func(t *testing.T) error
}{
	{"a crash at each file operation, small", func(t *testing.T) error { return keptCrashes(t, 3) }},
	{"a crash at each file operation, large", func(t *testing.T) error { return keptCrashes(t, 400) }},
	{"an error of each file operation", keptErrors},
	{"a flipped bit", keptRot},
	{"what images may take", keptBound},
	{"one for each shard", keptOne},
	{"of no use after a restart", keptUseless},
	{"sent in two transfers", keptGoesOn},
}

func TestKept(t *testing.T) {
	for _, c := range keptCases {
		t.Run(c.name, func(t *testing.T) {
			if err := c.run(t); err != nil {
				t.Fatal(err)
			}
		})
	}
}

func keeps(bytes int64) func(*Options) {
	return func(o *Options) { o.KeepBytes, o.TableBytes = bytes, 150<<10 }
}

// goOn applies further entries, through at; the log is not cut.
func goOn(t testing.TB, e *engine.Engine, d raft.Descriptor, at raft.Index) {
	t.Helper()
	st, _, err := e.Load(d.Shard)
	check(t, err)
	b := e.NewBatch()
	defer b.Close()
	as := st.Applied
	var log []raft.Entry
	for i := st.Last + 1; i <= at+1; i++ {
		log = append(log, raft.Entry{Index: i, Term: 6, Type: raft.EntryEmpty, Value: raft.EncodeEntry(nil, i, 6, raft.EntryEmpty, raft.EntryHeader{}, nil)})
	}
	b.Append(d.Shard, st.Last, log)
	as.Applied, as.AppliedTerm, as.WrittenKeys = at, 6, as.WrittenKeys+1
	b.SetApplied(d.Shard, as)
	b.Set(d.Keyspace, fmt.Appendf(nil, "%sk%06d", d.Start, at), []byte("more"))
	check(t, b.Commit(true))
	check(t, b.Wait())
}

// arrives sends the image of shard1 that s keeps to an empty node, and returns what is there then.
func arrives(t testing.TB, s *Store, at raft.Index, d raft.Descriptor) (string, error) {
	t.Helper()
	to := openEngine(t, engine.NewMemFS(), 2)
	defer to.Close()
	recv := newStore(t, to, 2, nil)
	l := &link{to: recv, install: func(g *Staged) error {
		_, err := g.InstallOn(raft.HardState{}, raft.AppliedState{}, false, false)
		return err
	}}
	index, _, err := s.SendKept(t.Context(), d.Shard, at, 2, 2, l.open)
	if err != nil {
		return "", err
	}
	if index != at {
		return "", fmt.Errorf("sent index %d of %d", index, at)
	}
	return dump(t, to, d), nil
}

// keptCrashes makes an image where there is one already, and takes an image of the disk, in
// one of the ways a crash can leave it, before every file operation. From every one of them the node comes back with
// the one or the other, whole, and with nothing else.
func keptCrashes(t *testing.T, keys int) error {
	desc := descOf(shard1, "a", "q")
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
			if keys < 100 || i == ops%len(simfs.Modes) {
				images = append(images, image{fmt.Sprintf("op %d (kind %d of %s), %v", ops, op.Kind, op.Path, mode), fs.Image(mode, uint64(ops))})
			}
		}
		return nil
	})
	e := openEngine(t, fs, 1)
	fill(t, e, desc, keys, 1)
	s := newStore(t, e, 1, keeps(64<<20))
	old, _, err := s.Keep(t.Context(), &desc)
	check(t, err)
	want := map[raft.Index]string{old: dump(t, e, desc)}
	goOn(t, e, desc, old+5)
	mu.Lock()
	recording = true
	mu.Unlock()
	at, bytes, err := s.Keep(t.Context(), &desc)
	check(t, err)
	mu.Lock()
	recording = false
	images = append(images, image{"made, nothing unsynced survives", fs.Image(simfs.None, 1)})
	mu.Unlock()
	want[at] = dump(t, e, desc)
	if at != old+5 || bytes < int64(keys)*1000 || ops < 6 {
		t.Fatalf("%d operations, index %d, %d bytes", ops, at, bytes)
	}
	counts := map[raft.Index]int{}
	for i, im := range images {
		err := func() error {
			e, err := engine.Open(engine.Options{Dir: "/n", FS: im.fs, Node: 1, Cluster: [16]byte{1}, CacheBytes: 1 << 20, MemTableBytes: 1 << 20})
			if err != nil {
				return err
			}
			defer e.Close()
			s := newStore(t, e, 1, keeps(64<<20))
			index, _, ok := s.Kept(shard1)
			if !ok {
				return errors.New("no image is there")
			}
			if left := staged(t, e); len(left) != 1 {
				return fmt.Errorf("in staging: %v", left)
			}
			counts[index]++
			if i == len(images)-1 && index != at {
				return fmt.Errorf("the image of %d is gone", at)
			}
			got, err := arrives(t, s, index, desc)
			if err == nil && got != want[index] {
				err = fmt.Errorf("the image of %d holds %d bytes, not the %d that were there", index, len(got), len(want[index]))
			}
			return err
		}()
		if err != nil {
			return fmt.Errorf("%s: %w", im.what, err)
		}
	}
	t.Logf("%d images of the disk: %v", len(images), counts)
	if counts[old] == 0 || counts[at] == 0 || len(counts) != 2 {
		return fmt.Errorf("only one side was seen: %v", counts)
	}
	return nil
}

// keptErrors fails each file operation once: the image before is whole, nothing else stays.
func keptErrors(t *testing.T) error {
	full := errors.New("no space left on device")
	for nth := 1; ; nth++ {
		desc := descOf(shard1, "a", "q")
		fs := simfs.New()
		var mu sync.Mutex
		count, armed := 0, false
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
		e := openEngine(t, fs, 1)
		fill(t, e, desc, 300, 1)
		s := newStore(t, e, 1, keeps(64<<20))
		old, _, err := s.Keep(t.Context(), &desc)
		check(t, err)
		want := dump(t, e, desc)
		goOn(t, e, desc, old+1)
		mu.Lock()
		armed = true
		mu.Unlock()
		_, _, err = s.Keep(t.Context(), &desc)
		mu.Lock()
		armed = false
		hit := count >= nth
		mu.Unlock()
		if !hit {
			if nth < 6 {
				t.Fatalf("only %d operations in staging", nth-1)
			}
			return nil
		}
		if err == nil {
			return fmt.Errorf("operation %d failed and nobody noticed", nth)
		}
		if left := staged(t, e); len(left) != 1 {
			return fmt.Errorf("operation %d: in staging: %v", nth, left)
		}
		got, err := arrives(t, s, old, desc)
		if err != nil || got != want {
			return fmt.Errorf("operation %d: the image before: %d bytes of %d, %v", nth, len(got), len(want), err)
		}
		if _, _, err := s.Keep(t.Context(), &desc); err != nil {
			return fmt.Errorf("operation %d: the next one: %w", nth, err)
		}
	}
}

// keptRot flips a bit of each file in turn: nothing of it arrives, and the image goes.
func keptRot(t *testing.T) error {
	desc := descOf(shard1, "a", "q")
	e := openEngine(t, engine.NewMemFS(), 1)
	fill(t, e, desc, 300, 1)
	s := newStore(t, e, 1, keeps(64<<20))
	for n := 0; ; n++ {
		at, _, err := s.Keep(t.Context(), &desc)
		check(t, err)
		k := s.mu.kept[shard1]
		if n == len(k.meta.Files) {
			return nil
		}
		path := s.fs.PathJoin(k.dir, tableName(n))
		b, err := s.readFile(path, 1<<30)
		check(t, err)
		b[len(b)/2] ^= 4
		check(t, s.writeSynced(path, b))
		if _, err := arrives(t, s, at, desc); !errors.Is(err, errKept) {
			return fmt.Errorf("file %d with a flipped bit: %v", n, err)
		}
		if _, _, ok := s.Kept(shard1); ok {
			return fmt.Errorf("file %d has a flipped bit, and the image is offered again", n)
		}
		if left := staged(t, e); len(left) != 0 {
			return fmt.Errorf("in staging: %v", left)
		}
	}
}

// keptBound: images take no more than they may; those that are old make room.
func keptBound(t *testing.T) error {
	e := openEngine(t, engine.NewMemFS(), 1)
	var descs []raft.Descriptor
	for i, span := range []string{"ab", "bc", "cd"} {
		d := descOf(raft.ShardID(7+i), span[:1], span[1:])
		fill(t, e, d, 300, byte(i))
		descs = append(descs, d)
	}
	clock := &handClock{now: 1}
	room := int64(1 << 30)
	s := newStore(t, e, 1, func(o *Options) {
		o.KeepBytes, o.Clock, o.Room = 800<<10, clock, func() int64 { return room }
	})
	kept := func() (n int, bytes int64) {
		for _, d := range descs {
			if _, b, ok := s.Kept(d.Shard); ok {
				n, bytes = n+1, bytes+b
			}
		}
		return n, bytes
	}
	for i := range descs {
		_, _, err := s.Keep(t.Context(), &descs[i])
		if n, bytes := kept(); (err != nil) != (i == 2) || i == 2 && !errors.Is(err, ErrNoSpace) || n != min(2, i+1) || bytes > 800<<10 {
			return fmt.Errorf("image %d: %w; there are %d of %d bytes", i, err, n, bytes)
		}
	}
	if left := staged(t, e); len(left) != 2 {
		return fmt.Errorf("in staging: %v", left)
	}
	check(t, clock.Sleep(t.Context(), time.Hour))
	if _, _, err := s.Keep(t.Context(), &descs[2]); err != nil {
		return err
	}
	if n, bytes := kept(); n != 2 || bytes > 800<<10 {
		return fmt.Errorf("there are %d images of %d bytes", n, bytes)
	}
	room = 100 << 10
	if _, _, err := s.Keep(t.Context(), &descs[2]); !errors.Is(err, ErrNoSpace) {
		return fmt.Errorf("with 100 KiB left on the disk: %w", err)
	}
	s.Sweep(true)
	if left := staged(t, e); len(left) != 0 {
		return fmt.Errorf("the disk is full; in staging: %v", left)
	}
	room = 1 << 30
	if _, _, err := s.Keep(t.Context(), &descs[2]); !errors.Is(err, ErrNoSpace) {
		return fmt.Errorf("on a full disk: %w", err)
	}
	s.Sweep(false)
	_, _, err := s.Keep(t.Context(), &descs[2])
	return err
}

// keptOne: a new image takes the place of the one before, which stays while it is sent.
func keptOne(t *testing.T) error {
	desc := descOf(shard1, "a", "q")
	e := openEngine(t, engine.NewMemFS(), 1)
	fill(t, e, desc, 300, 1)
	s := newStore(t, e, 1, keeps(64<<20))
	at, _, err := s.Keep(t.Context(), &desc)
	check(t, err)
	goOn(t, e, desc, at+1)
	if at, _, err = s.Keep(t.Context(), &desc); err != nil {
		return err
	}
	if left := staged(t, e); len(left) != 1 {
		return fmt.Errorf("in staging: %v", left)
	}
	if _, _, err := s.SendKept(t.Context(), shard1, at-1, 2, 2, nil); !errors.Is(err, errKept) {
		return fmt.Errorf("an image that is gone: %w", err)
	}
	if _, _, err := s.SendKept(t.Context(), shard1, at, 2, 9, nil); !errors.Is(err, errKept) {
		return fmt.Errorf("to a replica it does not know: %w", err)
	}
	if at, _, err = s.Keep(t.Context(), &desc); err != nil {
		return err
	}
	var busy error
	var left []string
	r := &recorded{}
	_, _, err = s.SendKept(t.Context(), shard1, at, 2, 2, func(context.Context, []byte) (Stream, error) {
		_, _, busy = s.Keep(t.Context(), &desc)
		if !s.DropKept(shard1, at+1) {
			t.Error("not dropped")
		}
		s.aside.Wait()
		left = staged(t, e)
		return recorder{r}, nil
	})
	if err != nil || !errors.Is(busy, ErrBusy) || len(left) != 1 || len(r.msgs) < 3 {
		return fmt.Errorf("while it was sent: %w; %v; in staging: %v; %d messages", err, busy, left, len(r.msgs))
	}
	if left := staged(t, e); len(left) != 0 {
		return fmt.Errorf("in staging: %v", left)
	}
	if _, _, ok := s.Kept(shard1); ok {
		return errors.New("it is kept though it was dropped")
	}
	return nil
}

// keptUseless: an image from which nobody can go on, or that may be wrong, goes at the start.
func keptUseless(t *testing.T) error {
	for _, c := range []struct {
		name string
		do   func(e *engine.Engine, d raft.Descriptor, at raft.Index)
		keep int64
		stay bool
	}{
		{"a start", func(*engine.Engine, raft.Descriptor, raft.Index) {}, 64 << 20, true},
		{"another policy", func(*engine.Engine, raft.Descriptor, raft.Index) {}, 0, false},
		{"what follows is cut", func(e *engine.Engine, d raft.Descriptor, at raft.Index) {
			b := e.NewBatch()
			defer b.Close()
			b.SetApplied(d.Shard, raft.AppliedState{Applied: at + 2, AppliedTerm: 5, TruncIndex: at + 1, TruncTerm: 5})
			check(t, b.Commit(true))
			check(t, b.Wait())
		}, 64 << 20, false},
		{"a replica in quarantine", func(e *engine.Engine, d raft.Descriptor, at raft.Index) {
			b := e.NewBatch()
			defer b.Close()
			b.SetQuarantine(d.Shard, engine.Quarantine{Why: engine.QuarantineDiffers, Index: at})
			check(t, b.Commit(true))
			check(t, b.Wait())
		}, 64 << 20, false},
	} {
		desc := descOf(shard1, "a", "q")
		e := openEngine(t, engine.NewMemFS(), 1)
		fill(t, e, desc, 30, 1)
		s := newStore(t, e, 1, keeps(64<<20))
		at, _, err := s.Keep(t.Context(), &desc)
		check(t, err)
		c.do(e, desc, at)
		s.Close()
		s = newStore(t, e, 1, keeps(c.keep))
		if _, _, ok := s.Kept(shard1); ok != c.stay {
			return fmt.Errorf("%s: kept %v", c.name, ok)
		}
		if left := staged(t, e); (len(left) == 1) != c.stay {
			return fmt.Errorf("%s: in staging: %v", c.name, left)
		}
	}
	return nil
}

// keptGoesOn: an image of which a part has arrived is sent anew, by a transfer that knows
// nothing of the one before: what is there is not sent again, and the rest arrives.
func keptGoesOn(t *testing.T) error {
	desc := descOf(shard1, "a", "q")
	e := openEngine(t, engine.NewMemFS(), 1)
	fill(t, e, desc, 400, 1)
	s := newStore(t, e, 1, keeps(64<<20))
	at, _, err := s.Keep(t.Context(), &desc)
	check(t, err)
	m := &s.mu.kept[shard1].meta
	messages := len(m.Files) + m.Chunks()
	for n := 1; n <= messages; n++ {
		to := openEngine(t, engine.NewMemFS(), 2)
		l := &link{to: newStore(t, to, 2, nil), cutAt: n, install: func(g *Staged) error {
			_, err := g.InstallOn(raft.HardState{}, raft.AppliedState{}, false, false)
			return err
		}}
		opened := false
		if _, _, err = s.SendKept(t.Context(), shard1, at, 2, 2, func(ctx context.Context, h []byte) (Stream, error) {
			if opened {
				return nil, Verdict(errors.New("gone"))
			}
			opened = true
			return l.open(ctx, h)
		}); err == nil {
			return fmt.Errorf("the first transfer was not cut behind message %d of %d", n, messages)
		}
		l.cutAt = 0
		if _, _, err = s.SendKept(t.Context(), shard1, at, 2, 2, l.open); err != nil {
			return fmt.Errorf("%d of %d messages had arrived: %w", n, messages, err)
		}
		if l.chunks != m.Chunks() {
			return fmt.Errorf("%d of %d messages had arrived: %d chunks were sent of %d", n, messages, l.chunks, m.Chunks())
		}
		if got := dump(t, to, desc); got != dump(t, e, desc) {
			return fmt.Errorf("%d of %d messages had arrived: what is there then differs", n, messages)
		}
		to.Close()
	}
	return nil
}
