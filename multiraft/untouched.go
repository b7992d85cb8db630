package multiraft

import (
	"fmt"

	"github.com/flotillakv/flotilla/internal/mutants"
	"github.com/flotillakv/flotilla/multiraft/raft"
)

// Groups that nobody used yet
//
// A cluster may be formed with a million shards. Of a group of which nobody asked anything
// yet there is nothing to know but its descriptor, and that follows from how the shards were
// dealt. So its replicas have no record in the store: they are stubs from the start,
// and the store says, once for all of them, that they are there.
//
//	U1  The first records of such a replica are written when it wakes, before anything
//	    else is written or said by it: a batch of its own, which later ones of
//	    its loop, and tables that the store takes in, come behind.
//	U2  So one without a record has promised nothing, voted for nobody and holds nothing,
//	    and a crash that takes its first records takes all that rests on them.
//	U3  One that was destroyed here has a tombstone, and does not come back.
//
// Nobody elects a leader for such a group before it is used: whoever asks for it first
// wakes it, and the others are woken by the campaign. It is the replica on the node that
// the shard was dealt to as its leader that campaigns, if that node is alive, so that groups
// that are used first by the thousand are led as evenly as they were dealt (Host.electRank).

// Dealt tells which groups were dealt to this node. What it says must never change.
type Dealt interface {
	// Each calls f with the shards that have a replica here and their members, until it
	// reports false. The members are read-only, and may be shared between shards.
	Each(f func(shard raft.ShardID, members []raft.Replica) bool)
	// Descriptor returns the first descriptor of a shard; ok is false if it was not dealt.
	Descriptor(shard raft.ShardID) (d raft.Descriptor, ok bool)
	// Leader returns the node that a shard was dealt to as its leader, the same on all nodes.
	// Zero: it was not dealt, or to nobody in particular.
	Leader(shard raft.ShardID) raft.NodeID
}

// AddUntouched adds, asleep, all replicas that were dealt to this node and of which the
// store has neither state nor tombstone: they were never used. It is called once, before
// Start and after AddGroups. The caller keeps a durable note of d (engine.SetDealt); without
// it a store that was lost would look like one that was never used.
func (h *Host) AddUntouched(d Dealt) error {
	h.mu.Lock()
	defer h.mu.Unlock()
	switch {
	case h.closed:
		return ErrClosed
	case h.started && h.stepper == nil || h.dealt != nil:
		return fmt.Errorf("multiraft: groups that were dealt are added once, before the start")
	}
	gone := make(map[raft.ShardID]raft.ReplicaID)
	if err := h.engine.EachTombstone(func(s raft.ShardID, lowest raft.ReplicaID) { gone[s] = lowest }); err != nil {
		return fmt.Errorf("multiraft: %w", err)
	}
	h.dealt = d
	restarted := h.engine.BootEpoch() > 1
	g := ground{kind: kindUnsure, flag: restarted}
	d.Each(func(shard raft.ShardID, members []raft.Replica) bool {
		if h.has(shard) {
			return true
		}
		g.members = g.members[:0]
		self := raft.ReplicaID(0)
		for _, m := range members {
			g.members = append(g.members, raft.NapMember{Node: m.Node, ID: m.ID, Role: m.Role})
			if m.Node == h.node {
				self = m.ID
			}
		}
		if lowest, dead := gone[shard]; self == 0 || dead && self < lowest && !mutants.On("U3") {
			return true
		}
		h.loopOf(shard).stubs.put(stub{shard: shard, gen: h.gens.Add(1), fresh: true}, &g)
		return true
	})
	return nil
}

// dealtDesc returns the first descriptor of a shard that is not touched. It is read-only.
func (h *Host) dealtDesc(shard raft.ShardID) (raft.Descriptor, bool) {
	if h.dealt == nil {
		return raft.Descriptor{}, false
	}
	return h.dealt.Descriptor(shard)
}

// dealtLeader returns the node that a shard was dealt to as its leader; zero: none.
func (h *Host) dealtLeader(shard raft.ShardID) raft.NodeID {
	if h.dealt == nil {
		return 0
	}
	return h.dealt.Leader(shard)
}

// begin writes the first records of a replica that wakes for the first time (U1), and
// returns its state. They are durable with the next batch that is synced.
func (h *Host) begin(shard raft.ShardID) (raft.State, bool, error) {
	d, ok := h.dealtDesc(shard)
	if !ok {
		return raft.State{}, false, nil
	}
	d = d.Clone()
	if !mutants.On("U1") {
		b := h.engine.NewBatch()
		b.CreateGroup(&d)
		err := b.Commit(false)
		b.Close()
		if err != nil {
			return raft.State{}, false, err
		}
	}
	return raft.State{Desc: d}, true, nil
}
