package catalog

import (
	"bytes"
	"fmt"
	"slices"

	"github.com/flotillakv/flotilla/multiraft/raft"
	"github.com/flotillakv/flotilla/shard"
)

// Plan is the layout of a new cluster: the meta shard and the first user
// shards, each with its voters and the node that shall lead it first.
type Plan struct {
	Meta   Route
	Layout *Layout // of the user shards; nil: they are listed
	Shards []Route // in key order; ids from 2 upward
}

// All yields the meta shard and the user shards, in order of their ids. The
// replicas of a layout's ranges are shared.
func (p *Plan) All(yield func(Route) bool) {
	if !yield(p.Meta) {
		return
	}
	if p.Layout != nil {
		for _, r := range p.Layout.All {
			if !yield(r) {
				return
			}
		}
		return
	}
	for _, r := range p.Shards {
		if !yield(r) {
			return
		}
	}
}

// Len returns how many shards All yields.
func (p *Plan) Len() int {
	if p.Layout != nil {
		return 1 + p.Layout.Count
	}
	return 1 + len(p.Shards)
}

// NewLayoutPlan is NewPlan with the user shards as a Layout: cut at splits or, if
// there are none, evenly into n.
func NewLayoutPlan(nodes []raft.NodeID, replicas int, keyspace uint32, splits [][]byte, n int) (Plan, error) {
	nodes = slices.Clone(nodes)
	slices.Sort(nodes)
	if err := checkPlan(nodes, keyspace, splits); err != nil {
		return Plan{}, err
	}
	if len(splits) > 0 {
		n = len(splits) + 1
	}
	l := &Layout{Keyspace: keyspace, First: raft.MetaShard + 1, Splits: splits, Count: max(n, 1), Nodes: nodes, Replicas: Replicas(replicas, len(nodes)), Turn: 1}
	if err := l.Check(); err != nil {
		return Plan{}, err
	}
	d := &l.deals[0]
	meta := raft.Descriptor{Shard: raft.MetaShard, ConfVer: 1, Version: 1, NextReplica: raft.ReplicaID(l.Replicas) + 1, Replicas: d.replicas}
	return Plan{Meta: Route{Desc: meta, Leader: d.leader}, Layout: l}, nil
}

// Replicas returns the number of voters per shard in a cluster of n nodes.
// Wanted zero means 3; never more than n.
func Replicas(wanted, n int) int {
	if wanted <= 0 {
		wanted = 3
	}
	return min(wanted, n)
}

// NewPlan deals the shards of a keyspace to nodes. splits are the ascending
// boundaries between the shards; none makes one shard. The result depends on
// the arguments alone (the order of nodes does not matter), so that every node
// works out the same plan:
//
//   - Voters are dealt like cards: each shard takes the next Replicas nodes in
//     turn, the meta shard first. No node has two replicas more than another.
//   - The first leader is the voter that leads the fewest shards so far, the
//     first of them in dealing order. No node leads two shards more than another.
//
// It refuses a plan without nodes, with a node named twice or zero, with split
// keys that are not ascending or longer than MaxSplitKeyBytes, or with keyspace
// 0, which is the catalog's own.
func NewPlan(nodes []raft.NodeID, replicas int, keyspace uint32, splits [][]byte) (Plan, error) {
	nodes = slices.Clone(nodes)
	slices.Sort(nodes)
	if err := checkPlan(nodes, keyspace, splits); err != nil {
		return Plan{}, err
	}
	d := dealer{nodes: nodes, leads: make([]int, len(nodes)), replicas: Replicas(replicas, len(nodes))}
	p := Plan{Meta: d.deal(raft.MetaShard, 0, nil, nil), Shards: make([]Route, len(splits)+1)}
	var start []byte
	for i := range p.Shards {
		var end []byte
		if i < len(splits) {
			end = splits[i]
		}
		p.Shards[i] = d.deal(raft.MetaShard+1+raft.ShardID(i), keyspace, start, end)
		start = end
	}
	return p, nil
}

func checkPlan(nodes []raft.NodeID, keyspace uint32, splits [][]byte) error {
	switch {
	case len(nodes) == 0:
		return &shard.ArgumentError{Field: "nodes", Reason: "a plan needs at least one"}
	case nodes[0] == 0:
		return &shard.ArgumentError{Field: "nodes", Reason: "0 is no node id"}
	case keyspace == 0:
		return &shard.ArgumentError{Field: "keyspace", Reason: "0 is the catalog's own"}
	}
	for i := range nodes[1:] {
		if nodes[i] == nodes[i+1] {
			return &shard.ArgumentError{Field: "nodes", Reason: fmt.Sprintf("node %d is named twice", nodes[i])}
		}
	}
	var last []byte
	for _, k := range splits {
		if len(k) > MaxSplitKeyBytes {
			return &shard.LimitError{What: "bytes of a split key", Limit: MaxSplitKeyBytes, Got: len(k)}
		}
		if bytes.Compare(last, k) >= 0 {
			return &shard.ArgumentError{Field: "split keys", Reason: fmt.Sprintf("they are empty or not ascending at %.64q", k)}
		}
		last = k
	}
	return nil
}

// dealer deals replicas and leaders to nodes.
type dealer struct {
	nodes    []raft.NodeID // ascending
	leads    []int         // shards led so far, by node
	replicas int           // per shard, at most len(nodes)
	next     int           // whose turn it is
}

func (d *dealer) deal(id raft.ShardID, keyspace uint32, start, end []byte) Route {
	desc := raft.Descriptor{
		Shard: id, Keyspace: keyspace, Start: start, End: end,
		ConfVer: 1, Version: 1, NextReplica: raft.ReplicaID(d.replicas) + 1,
		Replicas: make([]raft.Replica, d.replicas),
	}
	leader := -1
	for i := range desc.Replicas {
		n := (d.next + i) % len(d.nodes)
		desc.Replicas[i] = raft.Replica{Node: d.nodes[n], Role: raft.Voter}
		if leader < 0 || d.leads[n] < d.leads[leader] {
			leader = n
		}
	}
	d.next = (d.next + d.replicas) % len(d.nodes)
	d.leads[leader]++
	slices.SortFunc(desc.Replicas, func(a, b raft.Replica) int { return int(int64(a.Node) - int64(b.Node)) })
	for i := range desc.Replicas {
		desc.Replicas[i].ID = raft.ReplicaID(i + 1)
	}
	return Route{Desc: desc, Leader: d.nodes[leader]}
}
