package flotilla

import (
	"context"
	"errors"
	"fmt"
	"testing"
	"time"

	"github.com/flotillakv/flotilla/engine"
	"github.com/flotillakv/flotilla/multiraft/raft"
)

// TestCompactionPolicies: under each policy the logs of three nodes are cut while one of
// them is away, which has everything soon after it is back.
func TestCompactionPolicies(t *testing.T) {
	for _, p := range CompactionPolicies() {
		t.Run(string(p), func(t *testing.T) { testCompaction(t, p) })
	}
}

func testCompaction(t *testing.T, p CompactionPolicy) {
	ctx, cancel := context.WithTimeout(t.Context(), 60*time.Second)
	defer cancel()
	var disks [3]engine.FS
	for i := range disks {
		disks[i] = engine.NewMemFS()
	}
	nodes, open := openThree(t, func(i int) Options {
		return Options{
			FS: disks[i], Shards: 2, Limits: Limits{Memory: 16 << 20, Log: 16 << 20, LogKeep: 4 << 10},
			Timing:     Timing{Heartbeat: 50 * time.Millisecond, Support: 1500 * time.Millisecond},
			Compaction: Compaction{Policy: p, Entries: 20, Bytes: 16 << 10, Idle: 100 * time.Millisecond},
		}
	})
	put := func(i int) {
		for {
			_, err := nodes[i%2].Put(ctx, fmt.Appendf(nil, "k%02d", i%40), fmt.Appendf(make([]byte, 1<<10), "%d", i))
			var none *NoQuorumError // on a busy machine
			if err == nil {
				return
			}
			if !errors.As(err, &none) && !errors.Is(err, ErrAmbiguous) || ctx.Err() != nil {
				t.Fatalf("put %d: %v", i, err)
			}
		}
	}
	until := func(what string, ok func() bool) {
		for !ok() {
			select {
			case <-ctx.Done():
				t.Fatalf("%s: %v", what, ctx.Err())
			case <-time.After(10 * time.Millisecond):
			}
		}
	}
	put(0)
	if err := nodes[2].Close(); err != nil {
		t.Fatal(err)
	}
	for i := range 200 {
		put(i)
	}
	for i := 0; p == CompactLeaderImage && i < 600; i++ { // more than leaders keep in memory
		put(i)
	}
	// The logs get short by themselves, though a replica lacks nearly all of what was in
	// them: 200 KiB were written, 4 KiB are kept for it, or an entry with the whole state
	// of each shard remains.
	until("logs are not cut", func() bool {
		for _, n := range nodes[:2] {
			n.eng.ReclaimLog() // so that what is applied is in tables, too
			var left int64
			for _, d := range n.descriptors() {
				if d.Keyspace != 0 {
					left += n.eng.LogSize(d.Shard)
				}
			}
			if left > 100<<10 {
				return false
			}
		}
		return true
	})
	if err := open(2); err != nil {
		t.Fatal(err)
	}
	until("the node that was away does not catch up", func() bool {
		for _, d := range nodes[0].descriptors() {
			a0, d0, err0 := nodes[0].LocalDigest(ctx, uint64(d.Shard))
			a2, d2, err2 := nodes[2].LocalDigest(ctx, uint64(d.Shard))
			if err0 != nil || err2 != nil || a0 != a2 {
				return false
			}
			if d0 != d2 {
				t.Fatalf("shard %d differs at index %d", d.Shard, a0)
			}
		}
		return true
	})
	images := nodes[0].host.Stats().Images + nodes[1].host.Stats().Images
	if (images > 0) != (p == CompactInLog || p == CompactLeaderImage) {
		t.Errorf("%d snapshots were sent from images", images)
	}
}

// TestCompactionOptions: what cannot be right is refused with what is allowed.
func TestCompactionOptions(t *testing.T) {
	for _, c := range []Compaction{{Policy: "sometimes"}, {Entries: -1}, {Bytes: -1}, {Age: -1}, {Idle: -1}, {ImageBytes: -1}} {
		var bad *OptionError
		if err := (&Options{InMemory: true, Compaction: c}).Validate(); !errors.As(err, &bad) {
			t.Errorf("%+v: %v", c, err)
		}
	}
}

// TestLeaderImageOverRestart: the image of a leader serves a replica that was away though
// the leader was started again in between, and is removed when nobody needs it any more.
func TestLeaderImageOverRestart(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), 60*time.Second)
	defer cancel()
	var disks [3]engine.FS
	for i := range disks {
		disks[i] = engine.NewMemFS()
	}
	nodes, open := openThree(t, func(i int) Options {
		return Options{
			FS: disks[i], Shards: 1, Limits: Limits{Memory: 16 << 20, Log: 16 << 20, LogKeep: 4 << 10},
			Timing:     Timing{Heartbeat: 50 * time.Millisecond, Support: 1500 * time.Millisecond},
			Compaction: Compaction{Policy: CompactLeaderImage, Entries: 20, Bytes: 16 << 10, Idle: 100 * time.Millisecond},
		}
	})
	wait := func(what string, ok func() bool) {
		for !ok() {
			select {
			case <-ctx.Done():
				t.Fatalf("%s: %v", what, ctx.Err())
			case <-time.After(10 * time.Millisecond):
			}
		}
	}
	write := func(what string) {
		wait(what, func() bool {
			_, err := nodes[0].Put(ctx, []byte("k"), make([]byte, 4<<10))
			return err == nil
		})
	}
	write("a first write")
	var shard raft.ShardID
	for _, d := range nodes[0].descriptors() {
		if d.Keyspace == userKeyspace {
			shard = d.Shard
		}
	}
	if err := nodes[2].Close(); err != nil {
		t.Fatal(err)
	}
	holder := -1
	wait("no image is made", func() bool {
		write("a write")
		for i, n := range nodes[:2] {
			if _, _, ok := n.snaps.Kept(shard); ok {
				holder = i
			}
		}
		return holder >= 0
	})
	// The log is cut under the image, and nothing more is written.
	wait("the log is not cut", func() bool {
		nodes[holder].eng.ReclaimLog() // so that what is applied is in tables, too
		at, _, ok := nodes[holder].snaps.Kept(shard)
		st, found, err := nodes[holder].eng.Load(shard)
		return ok && found && err == nil && st.Applied.TruncIndex == at
	})
	for i := range 2 {
		if err := nodes[i].Close(); err != nil {
			t.Fatal(err)
		}
	}
	opened := make(chan error, 2)
	for i := range 2 {
		go func() { opened <- open(i) }()
	}
	if err := errors.Join(<-opened, <-opened); err != nil {
		t.Fatal(err)
	}
	if _, _, ok := nodes[holder].snaps.Kept(shard); !ok {
		t.Fatal("the image did not survive the restart")
	}
	wait("the node with the image does not lead", func() bool {
		v, ok := nodes[holder].host.View(shard)
		if !ok || v.IsReady {
			return ok
		}
		for _, n := range nodes[:2] {
			_ = n.host.Transfer(ctx, shard, raft.NodeID(nodes[holder].ID()))
		}
		return false
	})
	if err := open(2); err != nil {
		t.Fatal(err)
	}
	wait("the node that was away does not catch up", func() bool {
		a0, d0, err0 := nodes[holder].LocalDigest(ctx, uint64(shard))
		a2, d2, err2 := nodes[2].LocalDigest(ctx, uint64(shard))
		return err0 == nil && err2 == nil && a0 == a2 && d0 == d2
	})
	if n := nodes[holder].host.Stats(); n.Images == 0 {
		t.Error("it was not sent the image")
	}
	wait("the image is still there", func() bool {
		write("a write")
		_, _, ok := nodes[holder].snaps.Kept(shard)
		return !ok
	})
}
