package flotilla

import (
	"context"
	"errors"
	"fmt"
	"testing"
	"time"

	"github.com/flotillakv/flotilla/engine"
)

// TestCompactionPolicies: under each policy the logs of three nodes are cut while one of
// them is away, which has everything soon after it is back.
func TestCompactionPolicies(t *testing.T) {
	for _, p := range []CompactionPolicy{CompactPiggybacked, CompactInLog, CompactByReplica} {
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
	if (images > 0) != (p == CompactInLog) {
		t.Errorf("%d snapshots were sent from images in the log", images)
	}
}

// TestCompactionOptions: what cannot be right is refused with what is allowed.
func TestCompactionOptions(t *testing.T) {
	for _, c := range []Compaction{{Policy: "sometimes"}, {Entries: -1}, {Bytes: -1}, {Age: -1}, {Idle: -1}} {
		var bad *OptionError
		if err := (&Options{InMemory: true, Compaction: c}).Validate(); !errors.As(err, &bad) {
			t.Errorf("%+v: %v", c, err)
		}
	}
}
