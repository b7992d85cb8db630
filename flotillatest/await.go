package flotillatest

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/flotillakv/flotilla"
)

// AwaitLeaders waits until every shard has a leader that a majority of its nodes
// can hear.
func (c *Cluster) AwaitLeaders() {
	c.t.Helper()
	c.await(func(ctx context.Context, shards []flotilla.ShardInfo) (string, error) {
		for _, s := range shards {
			if s.Leader == 0 {
				return fmt.Sprintf("shard %d has no leader", s.ID), nil
			}
		}
		return c.unconfirmed(ctx, shards), nil
	})
}

// unconfirmed says which shard's leader no majority confirms, if any: one that
// was cut off just now takes itself for the leader, and so do the others.
func (c *Cluster) unconfirmed(ctx context.Context, shards []flotilla.ShardInfo) string {
	ctx, cancel := context.WithTimeout(ctx, 2*time.Second)
	defer cancel()
	errs := make([]error, len(shards))
	var wg sync.WaitGroup
	for i, s := range shards {
		if s.Keyspace == 0 {
			continue
		}
		wg.Go(func() {
			_, err := c.kv.Get(ctx, append(bytes.Clone(s.Start), 0), flotilla.NoClock())
			if !errors.Is(err, flotilla.ErrNotFound) {
				errs[i] = err
			}
		})
	}
	wg.Wait()
	for i, err := range errs {
		if err != nil {
			return fmt.Sprintf("the leader of shard %d is not confirmed: %v", shards[i].ID, err)
		}
	}
	return ""
}

// AwaitCaughtUp waits until every replica on a node that runs has applied what
// its shard has committed.
func (c *Cluster) AwaitCaughtUp() {
	c.t.Helper()
	c.await(c.behind)
}

// behind says which replica is behind, if any.
func (c *Cluster) behind(_ context.Context, shards []flotilla.ShardInfo) (string, error) {
	for _, s := range shards {
		if s.Leader == 0 {
			return fmt.Sprintf("shard %d has no leader", s.ID), nil
		}
		last := uint64(0)
		for _, r := range s.Replicas {
			last = max(last, r.Last)
		}
		for _, r := range s.Replicas {
			if c.Node(int(r.Node)-1) != nil && (r.State != "up" || r.Applied < last) {
				return fmt.Sprintf("the replica of shard %d on node %d is %s and has applied %d of %d", s.ID, r.Node-1, r.State, r.Applied, last), nil
			}
		}
	}
	return "", nil
}

// AwaitEqualReplicas waits until all replicas on nodes that run have caught up
// and stand at one applied index per shard, and fails the test if two replicas
// of a shard then differ in any key, value or version. It waits as long as
// somebody writes.
func (c *Cluster) AwaitEqualReplicas() {
	c.t.Helper()
	c.await(func(ctx context.Context, shards []flotilla.ShardInfo) (string, error) {
		if why, err := c.behind(ctx, shards); why != "" || err != nil {
			return why, err
		}
		for _, s := range shards {
			type state struct{ applied, digest uint64 }
			var first state
			var at uint32
			for _, r := range s.Replicas {
				n := c.Node(int(r.Node) - 1)
				if n == nil {
					continue
				}
				applied, digest, err := n.LocalDigest(ctx, s.ID)
				if err != nil {
					return "", err
				}
				is := state{applied, digest}
				switch {
				case at == 0:
					first, at = is, r.Node
				case is.applied != first.applied:
					return fmt.Sprintf("shard %d is applied up to %d on one node and %d on another", s.ID, first.applied, applied), nil
				case is.digest != first.digest:
					return "", fmt.Errorf("shard %d differs between node %d and node %d, both at index %d", s.ID, at-1, r.Node-1, applied)
				}
			}
		}
		return "", nil
	})
}

// AwaitNoLeftovers waits until no shard is joint and every node that runs holds
// replicas of the shards that it is a member of, and of no others.
func (c *Cluster) AwaitNoLeftovers() {
	c.t.Helper()
	c.await(func(ctx context.Context, shards []flotilla.ShardInfo) (string, error) {
		for _, s := range shards {
			member := map[uint32]bool{}
			for _, r := range s.Replicas {
				member[r.Node] = true
				if r.Role != "voter" && r.Role != "learner" {
					return fmt.Sprintf("shard %d is joint", s.ID), nil
				}
			}
			for _, n := range c.Nodes() {
				if member[n.ID()] {
					continue
				}
				if _, _, err := n.LocalDigest(ctx, s.ID); !errors.Is(err, flotilla.ErrNotFound) {
					return fmt.Sprintf("node %d holds a replica of shard %d, whose members are %v", n.ID()-1, s.ID, s.Replicas), nil
				}
			}
		}
		return "", nil
	})
}

// await calls done with the shards as the nodes tell them until it has nothing
// more to wait for.
func (c *Cluster) await(done func(context.Context, []flotilla.ShardInfo) (wait string, err error)) {
	c.t.Helper()
	ctx, cancel := c.context()
	defer cancel()
	for d := time.Millisecond; ; d = min(2*d, 50*time.Millisecond) {
		shards := c.shards(ctx)
		why := "no node runs"
		if len(shards) > 0 {
			var err error
			if why, err = done(ctx, shards); err != nil {
				c.t.Fatalf("flotillatest: %v", err)
			}
			if why == "" {
				return
			}
		}
		if ctx.Err() != nil {
			c.t.Fatalf("flotillatest: waited for %v: %s", c.o.timeout, why)
		}
		pause(ctx, d)
	}
}

// shards asks every node that runs, since partitions keep them from asking each
// other, and takes what each says of itself.
func (c *Cluster) shards(ctx context.Context) []flotilla.ShardInfo {
	ctx, cancel := context.WithTimeout(ctx, 250*time.Millisecond)
	defer cancel()
	nodes := c.Nodes()
	views := make([][]flotilla.ShardInfo, len(nodes))
	var wg sync.WaitGroup
	for i, n := range nodes {
		wg.Go(func() { views[i], _ = n.Shards(ctx) }) // a node that is closed now says nothing
	}
	wg.Wait()
	var out []flotilla.ShardInfo
	at := map[uint64]int{}
	// A leader counts if a majority of the replicas' nodes can hear it: one that
	// is cut off still takes itself for the leader.
	type vote struct {
		shard  uint64
		leader uint32
		term   uint64
	}
	votes := map[vote]int{}
	for i, n := range nodes {
		for _, s := range views[i] {
			k, ok := at[s.ID]
			if !ok {
				k, at[s.ID] = len(out), len(out)
				out = append(out, s)
			}
			have := &out[k]
			if s.ConfVer > have.ConfVer { // other members: what was noted of those is void
				for v := range votes {
					if v.shard == s.ID {
						delete(votes, v)
					}
				}
				own := s
				own.Replicas = slices.Clone(s.Replicas)
				for j := range own.Replicas {
					own.Replicas[j].State = "unknown"
				}
				*have = own
			}
			for j := range have.Replicas {
				for _, r := range s.Replicas {
					if r.Node == n.ID() && r.Node == have.Replicas[j].Node && r.Replica == have.Replicas[j].Replica {
						r.Role = have.Replicas[j].Role
						have.Replicas[j] = r
						votes[vote{s.ID, s.Leader, s.Term}]++
					}
				}
			}
		}
	}
	for i := range out {
		s := &out[i]
		s.Leader, s.Term = 0, 0
		for v, n := range votes {
			if v.shard == s.ID && v.leader != 0 && n > len(s.Replicas)/2 {
				s.Leader, s.Term = v.leader, v.term
			}
		}
	}
	return out
}
