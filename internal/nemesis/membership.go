package nemesis

import (
	"context"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"time"

	"github.com/flotillakv/flotilla"
)

const (
	// orderWithin bounds one administrative call while faults last.
	orderWithin = 5 * time.Second
	userShards  = userKeyspace
)

// moves are the faults that an operator makes: leaderships and replicas move.
// They may fail, like everything in a storm.
var moves = []kind{
	{name: "transfer", weight: 6, do: func(s *storm, r *rand.Rand) (string, func(), bool) {
		what := ""
		for range 1 + r.IntN(3) {
			sh, ok := s.someShard(r)
			if !ok {
				break
			}
			to := sh.Replicas[r.IntN(len(sh.Replicas))].Node
			what += fmt.Sprintf(" shard %d to n%d%s", sh.ID, to, s.order(func(ctx context.Context) error { return s.admin.TransferLeader(ctx, sh.ID, to) }))
		}
		return strings.TrimSpace(what), nil, what != ""
	}},
	{name: "replicas", weight: 6, do: moveReplica},
}

// moveReplica takes a voter of a shard away: to a node that has no replica of
// it, if there is one, else it becomes a learner until it is mended.
func moveReplica(s *storm, r *rand.Rand) (string, func(), bool) {
	sh, ok := s.someShard(r)
	if !ok {
		return "", nil, false
	}
	from := sh.Replicas[r.IntN(len(sh.Replicas))].Node
	var free []uint32
	for i := range s.c.nodes {
		id := uint32(i + 1)
		if !slices.ContainsFunc(sh.Replicas, func(x flotilla.ReplicaInfo) bool { return x.Node == id }) {
			free = append(free, id)
		}
	}
	change := func(cs ...flotilla.ReplicaChange) string {
		return s.order(func(ctx context.Context) error {
			_, err := s.admin.ChangeReplicas(ctx, sh.ID, cs...)
			return err
		})
	}
	if len(free) > 0 {
		to := free[r.IntN(len(free))]
		how := change(flotilla.ReplicaChange{Node: from, Role: flotilla.RoleNone}, flotilla.ReplicaChange{Node: to, Role: flotilla.RoleVoter})
		return fmt.Sprintf("shard %d: n%d for n%d%s", sh.ID, to, from, how), nil, true
	}
	how := change(flotilla.ReplicaChange{Node: from, Role: flotilla.RoleLearner})
	return fmt.Sprintf("shard %d: n%d becomes a learner%s", sh.ID, from, how),
		func() { change(flotilla.ReplicaChange{Node: from, Role: flotilla.RoleVoter}) }, true
}

// someShard draws a shard of the users'.
func (s *storm) someShard(r *rand.Rand) (sh flotilla.ShardInfo, ok bool) {
	ctx, cancel := context.WithTimeout(s.ctx, 2*time.Second)
	defer cancel()
	all, err := s.admin.Shards(ctx)
	all = slices.DeleteFunc(all, func(x flotilla.ShardInfo) bool { return x.Keyspace != userShards || len(x.Replicas) == 0 })
	if err != nil || len(all) == 0 {
		return sh, false
	}
	return all[r.IntN(len(all))], true
}

// order gives an order and says, for the log, if it failed.
func (s *storm) order(f func(context.Context) error) string {
	ctx, cancel := context.WithTimeout(s.ctx, orderWithin)
	defer cancel()
	if f(ctx) != nil {
		return " (not done in time)"
	}
	return ""
}

// restore gives every shard its number of voters back, and nothing else; it
// returns what is in the way when the time is over.
func (x *run) restore(ctx context.Context, limit time.Duration) string {
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	var c *flotilla.Client
	defer func() {
		if c != nil {
			c.Close()
		}
	}()
	return await(ctx, limit, func(context.Context) string {
		if c == nil {
			var err error
			if c, err = flotilla.Dial(ctx, x.addrs(), flotilla.ClientOptions{}); err != nil {
				c = nil
				return err.Error()
			}
		}
		all, err := c.Shards(ctx)
		if err != nil {
			return err.Error()
		}
		for _, s := range all {
			cs := missing(s.Replicas, min(3, len(x.c.nodes)))
			if len(cs) == 0 {
				continue
			}
			one, stop := context.WithTimeout(ctx, 30*time.Second)
			_, err := c.ChangeReplicas(one, s.ID, cs...)
			stop()
			if err != nil {
				return fmt.Sprintf("shard %d cannot be given its %d voters back: %v", s.ID, min(3, len(x.c.nodes)), err)
			}
		}
		return ""
	})
}

// missing says what makes exactly so many voters of the replicas, none if they are.
func missing(rs []flotilla.ReplicaInfo, voters int) (cs []flotilla.ReplicaChange) {
	rs = slices.Clone(rs)
	rank := func(role string) int {
		return slices.Index([]string{"voter", "incoming", "learner", "demoting", "outgoing"}, role)
	}
	slices.SortStableFunc(rs, func(a, b flotilla.ReplicaInfo) int { return rank(a.Role) - rank(b.Role) })
	whole := len(rs) == voters
	for i, r := range rs {
		role := flotilla.RoleVoter
		if i >= voters {
			role = flotilla.RoleNone
		}
		whole = whole && r.Role == "voter"
		cs = append(cs, flotilla.ReplicaChange{Node: r.Node, Role: role})
	}
	if whole {
		return nil
	}
	return cs
}
