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

// TestMembershipRefusals: what cannot be done is refused with a type and a reason,
// and changes nothing; what is so already is done.
func TestMembershipRefusals(t *testing.T) {
	c := flotillatest.NewCluster(t, 4, flotillatest.WithShards(1), flotillatest.WithReplicas(3),
		flotillatest.WithTiming(flotilla.Timing{Heartbeat: 50 * time.Millisecond, Support: 500 * time.Millisecond}))
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	all, err := c.Node(0).Shards(ctx)
	if err != nil {
		t.Fatal(err)
	}
	s := all[len(all)-1]
	free, others := uint32(10), []uint32{} // members that do not lead
	for _, r := range s.Replicas {
		free -= r.Node
		if r.Node != s.Leader {
			others = append(others, r.Node)
		}
	}
	n := c.Node(int(s.Leader) - 1)
	refused := func(err error) bool {
		var m *flotilla.MembershipError
		return errors.As(err, &m) && m.Reason != "" && !m.Unfinished
	}
	var argument *flotilla.ArgumentError
	change := func(node uint32, role string) error {
		_, err := n.ChangeReplicas(ctx, s.ID, flotilla.ReplicaChange{Node: node, Role: role})
		return err
	}
	if err := change(9, flotilla.RoleVoter); !errors.Is(err, flotilla.ErrNotFound) {
		t.Errorf("a node that is not there: %v", err)
	}
	if _, err := n.ChangeReplicas(ctx, 99, flotilla.ReplicaChange{Node: 1, Role: flotilla.RoleVoter}); !errors.Is(err, flotilla.ErrNotFound) {
		t.Errorf("a shard that is not there: %v", err)
	}
	if err := change(1, "king"); !errors.As(err, &argument) {
		t.Errorf("a role that is none: %v", err)
	}
	if err := n.TransferLeader(ctx, s.ID, free); !errors.Is(err, flotilla.ErrNotFound) {
		t.Errorf("a transfer to a node without a replica: %v", err)
	}
	if err := change(others[0], flotilla.RoleVoter); err != nil {
		t.Errorf("a voter that is one: %v", err)
	}
	got, err := n.Shard(ctx, s.ID)
	if err != nil || got.ConfVer != s.ConfVer {
		t.Errorf("something changed: %+v, %v", got, err)
	}

	// Of three voters one is dead: to remove another would stop the shard.
	c.Kill(int(others[0]) - 1)
	if err := n.TransferLeader(ctx, s.ID, others[0]); !refused(err) { // once it is known to be dead
		t.Errorf("a transfer to a dead node: %v", err)
	}
	if err := change(others[1], flotilla.RoleNone); !refused(err) {
		t.Errorf("the removal of one of two live voters: %v", err)
	}
	// The leader itself may go: it hands over first. So may the dead one.
	info, err := n.ChangeReplicas(ctx, s.ID, flotilla.ReplicaChange{Node: free, Role: flotilla.RoleVoter},
		flotilla.ReplicaChange{Node: others[0], Role: flotilla.RoleNone})
	if err != nil || len(info.Replicas) != 3 {
		t.Fatalf("replace the dead: %+v, %v", info, err)
	}
	info, err = n.ChangeReplicas(ctx, s.ID, flotilla.ReplicaChange{Node: n.ID(), Role: flotilla.RoleNone})
	if err != nil || len(info.Replicas) != 2 || info.Leader == n.ID() {
		t.Fatalf("remove the leader: %+v, %v", info, err)
	}
	gone(t, ctx, c, s.ID, n.ID())
	if _, err := c.KV().Put(ctx, []byte("k"), []byte("v")); err != nil {
		t.Error(err)
	}
	c.Restart(int(others[0]) - 1)
	gone(t, ctx, c, s.ID, others[0])
}
