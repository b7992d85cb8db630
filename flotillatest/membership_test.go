package flotillatest_test

import (
	"context"
	"errors"
	"fmt"
	"testing"
	"time"

	"github.com/flotillakv/flotilla"
	"github.com/flotillakv/flotilla/flotillatest"
)

// TestReplace: the replica of every shard on one node moves to another node and
// back. The data are equal afterwards, and nothing of the shard is left on the
// node it went from.
func TestReplace(t *testing.T) {
	c := flotillatest.NewCluster(t, 4, flotillatest.WithShards(3), flotillatest.WithReplicas(3))
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	kv := c.KV()
	for i := range 200 {
		if _, err := kv.Put(ctx, fmt.Appendf(nil, "%c%d", byte(i), i), fmt.Appendf(nil, "value %d", i)); err != nil {
			t.Fatal(err)
		}
	}
	shards, err := c.Node(0).Shards(ctx)
	if err != nil {
		t.Fatal(err)
	}
	for _, s := range shards {
		from, to := uint32(0), uint32(0)
		held := map[uint32]bool{}
		for _, r := range s.Replicas {
			held[r.Node] = true
			from = r.Node
		}
		for id := uint32(1); id <= 4; id++ {
			if !held[id] {
				to = id
			}
		}
		for range 2 {
			got, err := c.Node(int(s.ID)%4).ChangeReplicas(ctx, s.ID, flotilla.ReplicaChange{Node: to, Role: flotilla.RoleVoter}, flotilla.ReplicaChange{Node: from, Role: flotilla.RoleNone})
			if err != nil {
				t.Fatalf("shard %d, %d to %d: %v", s.ID, from, to, err)
			}
			for _, r := range got.Replicas {
				if r.Node == from || r.Role != "voter" {
					t.Fatalf("shard %d, %d to %d: %+v", s.ID, from, to, got.Replicas)
				}
			}
			gone(t, ctx, c, s.ID, from)
			from, to = to, from
		}
	}
	c.AwaitEqualReplicas()
	for i := range 200 {
		v, err := kv.Get(ctx, fmt.Appendf(nil, "%c%d", byte(i), i))
		if err != nil || string(v.Bytes) != fmt.Sprintf("value %d", i) {
			t.Fatalf("key %d: %q %v", i, v.Bytes, err)
		}
	}
}

// gone waits until nothing of a shard is on a node.
func gone(t *testing.T, ctx context.Context, c *flotillatest.Cluster, shard uint64, node uint32) {
	t.Helper()
	for {
		_, _, err := c.Node(int(node)-1).LocalDigest(ctx, shard)
		if errors.Is(err, flotilla.ErrNotFound) {
			return
		}
		if ctx.Err() != nil {
			t.Fatalf("shard %d stays on node %d: %v", shard, node, err)
		}
		select {
		case <-ctx.Done():
		case <-time.After(time.Millisecond):
		}
	}
}
