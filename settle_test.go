package flotilla

import (
	"bytes"
	"fmt"
	"testing"
)

// TestChangeOfAFullShard: what memory holds of a shard when its configuration changes
// goes to tables first, on the leader and on the others; none of it goes through the
// write-ahead log a second time, in one batch that everybody waits for.
func TestChangeOfAFullShard(t *testing.T) {
	const values, size = 64, 64 << 10
	nodes, _ := openThree(t, func(int) Options { return Options{Shards: 1} })
	ctx := testContext(t)
	for i := range values {
		if _, err := nodes[0].Put(ctx, fmt.Appendf(nil, "k%03d", i), bytes.Repeat([]byte{byte(i)}, size)); err != nil {
			t.Fatal(err)
		}
	}
	shards, err := nodes[0].ShardsFrom(ctx, []byte("k"), 1)
	if err != nil || len(shards) != 1 {
		t.Fatalf("%d shards, %v", len(shards), err)
	}
	var before [3]uint64
	for i, n := range nodes {
		until(t, fmt.Sprintf("n%d has everything in memory, or in tables", i+1), func() bool {
			m := n.eng.Metrics()
			return m.DeferredBytes > values*size || m.Flushes > 0 // on a machine so slow that it became old
		})
		before[i] = n.eng.Metrics().ThroughBytes
	}
	for _, n := range nodes {
		if n.ID() != shards[0].Leader {
			if _, err := nodes[0].ChangeReplicas(ctx, shards[0].ID, ReplicaChange{Node: n.ID(), Role: RoleLearner}); err != nil {
				t.Fatal(err)
			}
			break
		}
	}
	for i, n := range nodes {
		until(t, fmt.Sprintf("n%d knows the new configuration", i+1), func() bool {
			for _, v := range n.host.Views() {
				if uint64(v.Desc.Shard) == shards[0].ID {
					return v.Desc.ConfVer > shards[0].ConfVer && !v.Desc.IsJoint()
				}
			}
			return false
		})
		if got := n.eng.Metrics().ThroughBytes - before[i]; got > size {
			t.Errorf("n%d wrote %d bytes through the log with the descriptors; %d were in memory", i+1, got, values*size)
		}
		if v, err := n.Get(ctx, []byte("k001")); err != nil || len(v.Bytes) != size || v.Bytes[0] != 1 {
			t.Errorf("n%d: %d bytes, %v", i+1, len(v.Bytes), err)
		}
	}
}
