package catalog

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"slices"
	"sort"

	"github.com/flotillakv/flotilla/internal/mutants"
	"github.com/flotillakv/flotilla/multiraft/raft"
	"github.com/flotillakv/flotilla/shard"
)

// Layout describes many ranges at once: how a keyspace was cut when it was made, and
// how the shards were dealt to nodes. One record of it stands for all of them, so a
// million empty shards are made with one write. A range of a layout holds as long as
// no record of a range overlaps it: whatever happens to a range (another leader or
// member, a split or a merge) is recorded range by range, and records win.
//
// What a layout means never changes: nodes make their replicas by it.
type Layout struct {
	Keyspace uint32
	// First is the shard of the first range; the others follow.
	First raft.ShardID
	// Splits are the boundaries, ascending; nil: those of SplitKeys(Count).
	Splits [][]byte
	Count  int
	// Nodes, ascending, get Replicas voters of each shard: see Deal.
	Nodes    []raft.NodeID
	Replicas int
	// Turn is how many shards had been dealt to the nodes before the first one.
	Turn int

	deals []deal // one turn around
}

const (
	// MaxLayoutShards bounds the ranges of a layout.
	MaxLayoutShards = 1 << 22
	// MaxLayoutBytes bounds the boundaries of a layout that names them.
	MaxLayoutBytes = 2 << 20
	maxLayoutNodes = 1024
)

// deal is who gets one shard.
type deal struct {
	replicas []raft.Replica // ascending by node; shared by all descriptors made from it
	leader   raft.NodeID
}

// Check says what is wrong with a layout, and makes it ready for use.
func (l *Layout) Check() error {
	switch {
	case l.Keyspace == 0:
		return &shard.ArgumentError{Field: "keyspace", Reason: "0 is the catalog's own"}
	case l.Count < 1 || l.Count > MaxLayoutShards:
		return &shard.LimitError{What: "shards of a layout", Limit: MaxLayoutShards, Got: l.Count}
	case l.Splits != nil && len(l.Splits) != l.Count-1:
		return &shard.ArgumentError{Field: "split keys", Reason: fmt.Sprintf("%d of them make %d shards, not %d", len(l.Splits), len(l.Splits)+1, l.Count)}
	case l.First <= raft.MetaShard || uint64(l.First)+uint64(l.Count) < uint64(l.First):
		return &shard.ArgumentError{Field: "first shard", Reason: fmt.Sprintf("%d leaves no room for %d shards", l.First, l.Count)}
	case len(l.Nodes) > maxLayoutNodes:
		return &shard.LimitError{What: "nodes of a layout", Limit: maxLayoutNodes, Got: len(l.Nodes)}
	case l.Turn < 0 || l.Replicas < 1 || l.Replicas > min(len(l.Nodes), raft.MaxReplicas):
		return &shard.ArgumentError{Field: "replicas", Reason: fmt.Sprintf("%d of them cannot be dealt to %d nodes", l.Replicas, len(l.Nodes))}
	case !slices.IsSorted(l.Nodes):
		return &shard.ArgumentError{Field: "nodes", Reason: "they are not ascending"}
	}
	if err := checkPlan(l.Nodes, l.Keyspace, l.Splits); err != nil {
		return err
	}
	size := 0
	for _, k := range l.Splits {
		size += len(k)
	}
	if size > MaxLayoutBytes {
		return &shard.LimitError{What: "bytes of the split keys of a layout", Limit: MaxLayoutBytes, Got: size}
	}
	l.deals = dealAround(l.Nodes, l.Replicas)
	return nil
}

// dealAround deals as many shards as there are nodes. Then all nodes have the same
// number of replicas and lead one shard each, and it begins anew.
func dealAround(nodes []raft.NodeID, replicas int) []deal {
	deals := make([]deal, len(nodes))
	leads := make([]bool, len(nodes))
	for i := range deals {
		reps := make([]raft.Replica, replicas)
		leader := -1
		for k := range reps {
			n := (i*replicas + k) % len(nodes)
			reps[k] = raft.Replica{Node: nodes[n], Role: raft.Voter}
			if leader < 0 || leads[leader] && !leads[n] {
				leader = n
			}
		}
		leads[leader] = true
		slices.SortFunc(reps, func(a, b raft.Replica) int { return int(int64(a.Node) - int64(b.Node)) })
		for k := range reps {
			reps[k].ID = raft.ReplicaID(k + 1)
		}
		deals[i] = deal{replicas: reps, leader: nodes[leader]}
	}
	return deals
}

// Members returns who got range i, ascending by node. They are shared, and read-only.
func (l *Layout) Members(i int) []raft.Replica { return l.deals[(l.Turn+i)%len(l.deals)].replicas }

// Leader returns the node that range i was dealt to as its leader, one of its members.
func (l *Layout) Leader(i int) raft.NodeID { return l.deals[(l.Turn+i)%len(l.deals)].leader }

// end returns the end of range i (empty: it is open).
func (l *Layout) end(i int) []byte {
	switch {
	case i >= l.Count-1:
		return nil
	case l.Splits != nil:
		return l.Splits[i]
	}
	return quantile(uint64(i+1), uint64(l.Count))
}

func (l *Layout) start(i int) []byte {
	if i == 0 {
		return nil
	}
	return l.end(i - 1)
}

// Range returns range i as it was made. Its replicas are shared with other ranges:
// whoever changes them clones the descriptor.
func (l *Layout) Range(i int) Route {
	return l.between(i, l.start(i), l.end(i))
}

func (l *Layout) between(i int, start, end []byte) Route {
	d := &l.deals[(l.Turn+i)%len(l.deals)]
	return Route{Leader: d.leader, Desc: raft.Descriptor{
		Shard: l.First + raft.ShardID(i), Keyspace: l.Keyspace, Start: start, End: end,
		ConfVer: 1, Version: 1, NextReplica: raft.ReplicaID(l.Replicas) + 1, Replicas: d.replicas,
	}}
}

// Find returns which range held key.
func (l *Layout) Find(key []byte) int {
	if l.Splits != nil {
		return sort.Search(l.Count-1, func(i int) bool { return bytes.Compare(key, l.Splits[i]) < 0 })
	}
	var buf [32]byte
	below := func(i int) bool { // of the end of range i
		return i >= l.Count-1 || bytes.Compare(key, appendQuantile(buf[:0], uint64(i+1), uint64(l.Count))) < 0
	}
	i := share(key, l.Count)
	for i > 0 && below(i-1) {
		i--
	}
	for !below(i) {
		i++
	}
	return i
}

// Index returns which range shard id was; ok is false if it is none of them.
func (l *Layout) Index(id raft.ShardID) (i int, ok bool) {
	if id < l.First || uint64(id-l.First) >= uint64(l.Count) {
		return 0, false
	}
	return int(id - l.First), true
}

// ending returns the range that ended at end.
func (l *Layout) ending(end []byte) (Route, bool) {
	i := l.Count - 1
	if len(end) > 0 {
		if i = l.Find(end) - 1; i < 0 || !bytes.Equal(l.end(i), end) {
			return Route{}, false
		}
	}
	return l.Range(i), true
}

// All yields the ranges in key order.
func (l *Layout) All(yield func(int, Route) bool) {
	var start []byte
	for i := range l.Count {
		end := l.end(i)
		if !yield(i, l.between(i, start, end)) {
			return
		}
		start = end
	}
}

// Encode appends the record of l to dst.
func (l *Layout) Encode(dst []byte) []byte {
	at := len(dst)
	dst = append(dst, recordVersion, kindLayout)
	for _, x := range []uint64{uint64(l.Keyspace), uint64(l.First), uint64(l.Count), uint64(l.Replicas), uint64(l.Turn), uint64(len(l.Nodes))} {
		dst = binary.AppendUvarint(dst, x)
	}
	for _, n := range l.Nodes {
		dst = binary.AppendUvarint(dst, uint64(n))
	}
	dst = binary.AppendUvarint(dst, uint64(len(l.Splits))) // zero: evenly, or one range
	for _, k := range l.Splits {
		dst = append(binary.AppendUvarint(dst, uint64(len(k))), k...)
	}
	return seal(dst, at)
}

// DecodeLayout decodes and checks a layout. The result shares no memory with v.
func DecodeLayout(v []byte) (Layout, error) {
	rd, err := open(v, kindLayout, "layout")
	if err != nil {
		return Layout{}, err
	}
	l := Layout{Keyspace: rd.u32(), First: raft.ShardID(rd.uvarint())}
	small := func(limit uint64) int {
		n := rd.uvarint()
		if n > limit {
			rd.bad = true
			return 0
		}
		return int(n)
	}
	l.Count, l.Replicas, l.Turn = small(MaxLayoutShards), small(raft.MaxReplicas), small(MaxLayoutShards)
	for range small(min(maxLayoutNodes, uint64(len(rd.b)))) {
		l.Nodes = append(l.Nodes, raft.NodeID(rd.u32()))
	}
	for range small(min(MaxLayoutShards, uint64(len(rd.b)))) {
		l.Splits = append(l.Splits, bytes.Clone(rd.take(rd.uvarint())))
	}
	if err := rd.close("layout"); err != nil {
		return Layout{}, err
	}
	if err := l.Check(); err != nil {
		return Layout{}, fmt.Errorf("%w: layout: %w", ErrCorrupt, err)
	}
	return l, nil
}

// LayoutKeeper is a KV that remembers the layouts that were read: they never change.
// Without one they are read and decoded for each lookup.
type LayoutKeeper interface {
	KV
	// KnownLayout returns what KeepLayout was given last for a keyspace, or nil.
	KnownLayout(keyspace uint32) *Layout
	KeepLayout(l *Layout)
}

// layoutOf returns the layout of a keyspace, or nil.
func layoutOf(ctx context.Context, kv KV, keyspace uint32) (*Layout, error) {
	if keyspace == 0 {
		return nil, nil
	}
	keeper, _ := kv.(LayoutKeeper)
	if keeper != nil {
		if l := keeper.KnownLayout(keyspace); l != nil {
			return l, nil
		}
	}
	v, err := kv.Get(ctx, layoutKey(keyspace))
	if errors.Is(err, shard.ErrNotFound) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	l, err := DecodeLayout(v.Bytes)
	if err != nil {
		return nil, err
	}
	if l.Keyspace != keyspace {
		return nil, fmt.Errorf("%w: layout of keyspace %d filed under %d", ErrCorrupt, l.Keyspace, keyspace)
	}
	if keeper != nil {
		keeper.KeepLayout(&l)
	}
	return &l, nil
}

// nextKeyspace returns the lowest keyspace above after that has ranges.
func nextKeyspace(ctx context.Context, kv KV, after uint32) (uint32, bool, error) {
	if after == ^uint32(0) {
		return 0, false, nil
	}
	next, ok := uint32(0), false
	for _, prefix := range []string{layoutPrefix, routePrefix} {
		pairs, err := kv.Scan(ctx, binary.BigEndian.AppendUint32([]byte(prefix), after+1), prefixEnd([]byte(prefix)), 1)
		if err != nil {
			return 0, false, err
		}
		if len(pairs) > 0 && len(pairs[0].Key) >= len(prefix)+4 {
			if id := binary.BigEndian.Uint32(pairs[0].Key[len(prefix):]); !ok || id < next {
				next, ok = id, true
			}
		}
	}
	return next, ok, nil
}

// overlay merges recorded ranges with those of a layout, from the range that holds
// key on, up to n. recorded are the first n at least of those that end above key.
func overlay(l *Layout, recorded []Route, key []byte, n int) []Route {
	out := make([]Route, 0, n)
	i := l.Find(key)
	var start []byte // of range i
	if i > 0 {
		start = l.start(i)
	}
	dead := false // a record overlaps range i
	for len(out) < n && (i < l.Count || len(recorded) > 0) {
		if i == l.Count {
			out, recorded = append(out, recorded[0]), recorded[1:]
			continue
		}
		end := l.end(i)
		behind := len(recorded) == 0 || len(end) > 0 && bytes.Compare(end, recorded[0].Desc.Start) <= 0
		if behind && (!dead || mutants.On("R-overlay")) {
			out = append(out, l.between(i, start, end))
		}
		if behind {
			i, start, dead = i+1, end, false
			continue
		}
		r := &recorded[0].Desc
		if len(end) > 0 && (len(r.End) == 0 || bytes.Compare(r.End, end) > 0) { // it reaches into the next range
			i, start, dead = i+1, end, false
			continue
		}
		dead = dead || len(r.End) == 0 || bytes.Compare(r.End, start) > 0
		out, recorded = append(out, recorded[0]), recorded[1:]
	}
	return out
}
