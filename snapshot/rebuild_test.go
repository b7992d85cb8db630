package snapshot

import (
	"errors"
	"fmt"
	"sync"
	"testing"

	"github.com/flotillakv/flotilla/engine"
	"github.com/flotillakv/flotilla/internal/invariants"
	"github.com/flotillakv/flotilla/internal/sim/simfs"
	"github.com/flotillakv/flotilla/multiraft/raft"
)

// TestRebuildCrashes rebuilds a quarantined replica, whose log goes beyond the
// snapshot, and takes an image of the disk before every file operation. From every image
// the node comes back quarantined, or with the new state and without the mark; in both
// its vote and all of its log are there.
func TestRebuildCrashes(t *testing.T) {
	for _, keys := range []int{3, 400} { // in a batch, in tables
		for _, why := range []engine.QuarantineWhy{engine.QuarantineDiffers, engine.QuarantineUnreadable} {
			t.Run(fmt.Sprintf("%d keys, reason %d", keys, why), func(t *testing.T) { rebuildCrashes(t, keys, why) })
		}
	}
}

func rebuildCrashes(t *testing.T, keys int, why engine.QuarantineWhy) {
	p := newPair(t, keys)
	fs := simfs.New()
	var mu sync.Mutex
	var images []image
	recording := false
	fs.Inject(func(op simfs.Op) error {
		mu.Lock()
		defer mu.Unlock()
		if recording && op.Kind < simfs.OpOpen {
			for i, mode := range simfs.Modes {
				if keys < 100 || i == len(images)%len(simfs.Modes) {
					images = append(images, image{fmt.Sprintf("image %d (kind %d of %s), %v", len(images), op.Kind, op.Path, mode), fs.Image(mode, uint64(len(images)))})
				}
			}
		}
		return nil
	})
	to := openEngine(t, fs, 2)
	fill(t, to, p.desc, 2, 7)
	at := raft.Index(100 + keys) // of the snapshot
	last := at + 2
	var log []raft.Entry
	for i := raft.Index(103); i <= last; i++ {
		term := raft.Term(5)
		if i > at {
			term = 6
		}
		log = append(log, raft.Entry{Index: i, Term: term, Type: raft.EntryEmpty, Value: raft.EncodeEntry(nil, i, term, raft.EntryEmpty, raft.EntryHeader{}, nil)})
	}
	b := to.NewBatch()
	b.Append(shard1, 103, log)
	b.SetQuarantine(shard1, engine.Quarantine{Why: why, Index: 102})
	check(t, b.Commit(true))
	check(t, b.Wait())
	b.Close()
	st, _, err := to.Load(shard1)
	check(t, err)
	want := dump(t, p.from, p.desc)
	rec := record(t, p.send, p.desc)
	recv := newStore(t, to, 2, nil)
	mu.Lock()
	recording = true
	mu.Unlock()
	g, err := recv.Handle(1, rec.header, rec.next(), deaf)
	check(t, err)
	_, err = g.InstallOn(st.Hard, st.Applied, true, true)
	check(t, err)
	mu.Lock()
	recording = false
	done := image{"after the installation, nothing unsynced survives", fs.Image(simfs.None, 1)}
	mu.Unlock()
	g.Close()
	counts := map[string]int{}
	for i, im := range append(images, done) {
		if invariants.Enabled && i%4 != 0 && i < len(images) {
			continue
		}
		e, err := engine.Open(engine.Options{Dir: "/n", FS: im.fs, Node: 2, Cluster: [16]byte{1}, CacheBytes: 1 << 20, MemTableBytes: 1 << 20,
			OnFatal: func(err error) { t.Errorf("%s: store failed: %v", im.what, err) }})
		if err != nil {
			t.Fatalf("%s: does not open: %v", im.what, err)
		}
		s, _, err := e.Load(shard1)
		q, qerr := e.Quarantined(shard1)
		if err := errors.Join(err, qerr); err != nil {
			t.Fatalf("%s: %v", im.what, err)
		}
		if s.Hard.Term != st.Hard.Term || s.Hard.Vote != st.Hard.Vote || s.Last != last || s.Applied.TruncIndex != 102 {
			t.Fatalf("%s: hard state %+v, log (%d, %d]", im.what, s.Hard, s.Applied.TruncIndex, s.Last)
		}
		switch {
		case q.Why != 0:
			counts["old"]++
			if i == len(images) || q.Why != why || s.Applied.Applied != 102 {
				t.Fatalf("%s: %+v, applied %d", im.what, q, s.Applied.Applied)
			}
		case s.Applied.Applied == at && dump(t, e, p.desc) == want:
			counts["new"]++
		default:
			t.Fatalf("%s: no mark, and neither the old nor the new state: applied %d", im.what, s.Applied.Applied)
		}
		if err := e.Close(); err != nil {
			t.Fatalf("%s: close: %v", im.what, err)
		}
	}
	if counts["old"] == 0 || counts["new"] == 0 {
		t.Fatalf("the images show only one side: %v", counts)
	}
}
