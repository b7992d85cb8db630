package t1

import (
	"fmt"
	"slices"

	"github.com/flotillakv/flotilla/engine"
	"github.com/flotillakv/flotilla/multiraft/raft"
)

// shadow is what a node's disk holds of the Raft side, as told by its rounds:
// visible with everything that was handed to the store, durable with what the
// node was told to be synced. A disk that a crash left must hold the durable
// state plus the first few of the rounds after it, whole and in order.
type shadow struct {
	visible map[raft.ShardID]*groupShadow
	durable map[raft.ShardID]*groupShadow
	rounds  []*round // synced, not told; ascending by marker
	open    *round   // of the step under way
	commits bool     // the step under way hands a batch to be synced
	// committed: the store has that batch; synced: something behind it in the same step
	// was synced, and the batch with it.
	committed, synced bool
	expect            *expectation
}

// round is what one synced batch holds.
type round struct {
	marker int // the physical sync that covers it
	ops    []shadowOp
	hash   uint64
}

type shadowOp struct {
	shard raft.ShardID
	hard  *raft.HardState
	first raft.Index // of an append
	last  raft.Index
	ents  []entryID
	over  bool // it overwrites
	trunc raft.Index
	term  raft.Term // of trunc
}

// entryID is an entry as oracles know it.
type entryID struct {
	term raft.Term
	hash uint64
}

// expectation is what the disk of a node that is down may hold.
type expectation struct {
	sure   int  // rounds that are there for certain
	maybe  bool // later ones may be there, too
	rounds []*round
}

// groupShadow is one replica's part.
type groupShadow struct {
	replica   raft.ReplicaID
	hard      raft.HardState
	trunc     raft.Index
	truncTerm raft.Term
	log       []entryID // (trunc, last]
}

func (g *groupShadow) last() raft.Index { return g.trunc + raft.Index(len(g.log)) }

func (g *groupShadow) term(i raft.Index) (raft.Term, bool) {
	switch {
	case i == 0:
		return 0, true
	case i == g.trunc:
		return g.truncTerm, true
	case i < g.trunc || i > g.last():
		return 0, false
	}
	return g.log[i-g.trunc-1].term, true
}

func (g *groupShadow) clone() *groupShadow {
	c := *g
	c.log = append([]entryID(nil), g.log...)
	return &c
}

func (g *groupShadow) apply(o *shadowOp) {
	switch {
	case o.hard != nil:
		g.hard = *o.hard
	case len(o.ents) > 0:
		if o.first <= g.trunc || o.first > g.last()+1 {
			return // the oracle has told
		}
		g.log = append(g.log[:o.first-g.trunc-1], o.ents...)
	default:
		if o.trunc > g.trunc && o.trunc <= g.last() {
			g.log = append([]entryID(nil), g.log[o.trunc-g.trunc:]...)
			g.trunc, g.truncTerm = o.trunc, o.term
		}
	}
}

func (s *shadow) begin() { s.commits, s.committed, s.synced = false, false, false }

// end returns the step's round if it was handed to be synced.
func (s *shadow) end() *round {
	if !s.commits {
		return nil // its truncations go with the next one
	}
	r := s.open
	s.open, s.commits = nil, false
	if r == nil {
		r = &round{}
	}
	for i := range r.ops {
		o := &r.ops[i]
		r.hash = mix(mix(r.hash, uint64(o.shard)<<32^uint64(o.first)), uint64(o.trunc))
		if o.hard != nil {
			r.hash = mix(mix(r.hash, uint64(o.hard.Term)<<32|uint64(o.hard.Vote)), uint64(o.hard.LeadEpoch)^uint64(o.hard.Lead))
		}
		for _, e := range o.ents {
			r.hash = mix(r.hash, e.hash)
		}
	}
	return r
}

func (s *shadow) note(o shadowOp) {
	if s.open == nil {
		s.open = &round{}
	}
	g := s.visible[o.shard]
	o.over = g != nil && len(o.ents) > 0 && o.first <= g.last()
	s.open.ops = append(s.open.ops, o)
	if g != nil {
		g.apply(&o)
	}
}

// settle moves rounds up to marker k to the durable side.
func (s *shadow) settle(n *node, k int) {
	for len(s.rounds) > 0 && s.rounds[0].marker <= k {
		s.promote(n, s.rounds[0])
		s.rounds = s.rounds[1:]
	}
}

func (s *shadow) promote(n *node, r *round) {
	for i := range r.ops {
		o := &r.ops[i]
		if g := s.durable[o.shard]; g != nil {
			g.apply(o)
			if o.hard != nil {
				n.w.orc.voted(n, o.shard, g.replica, o.hard)
			}
		}
	}
}

// created notes new groups.
func (s *shadow) created(n *node, descs []raft.Descriptor) {
	s.visible, s.durable = map[raft.ShardID]*groupShadow{}, map[raft.ShardID]*groupShadow{}
	for i := range descs {
		rep, _ := descs[i].ReplicaOn(n.id)
		s.visible[descs[i].Shard] = &groupShadow{replica: rep.ID}
		s.durable[descs[i].Shard] = &groupShadow{replica: rep.ID}
	}
}

// installed notes a snapshot that was made the state of a replica, durably.
func (s *shadow) installed(n *node, st *raft.State, keepLog bool) {
	rep, _ := st.Desc.ReplicaOn(n.id)
	if v := s.visible[st.Desc.Shard]; v != nil && keepLog {
		for _, r := range s.rounds { // the install made them durable
			s.promote(n, r)
		}
		s.rounds = nil
		v.hard = st.Hard
		s.durable[st.Desc.Shard] = v.clone()
		n.w.orc.installed(n, st, true)
		return
	}
	g := &groupShadow{replica: rep.ID, hard: st.Hard, trunc: st.Applied.TruncIndex, truncTerm: st.Applied.TruncTerm}
	s.visible[st.Desc.Shard], s.durable[st.Desc.Shard] = g, g.clone()
	n.w.orc.installed(n, st, false)
}

// destroyed notes that a replica is gone from the disk.
func (s *shadow) destroyed(n *node, id raft.ShardID, replica raft.ReplicaID) {
	w := n.w
	g := s.durable[id]
	if g == nil || g.replica != replica {
		w.fail("S11", "node %d destroys replica %d of shard %d, which it has not", n.id, replica, id)
	}
	if _, in := w.orc.groups[id].newest().Replica(replica); in {
		w.fail("S11", "node %d destroys replica %d of shard %d, which is a member", n.id, replica, id)
	}
	w.res.Destroyed++
	w.log(n.idx, "destroyed", uint64(id), uint64(replica))
	w.orc.groups[id].graves[replica] = g
	delete(s.durable, id)
	delete(s.visible, id)
}

// crashed notes that the disk holds sure rounds of those that were not told,
// and maybe more.
func (s *shadow) crashed(sure int, maybe bool) {
	s.expect = &expectation{sure: sure, maybe: maybe, rounds: s.rounds}
	s.rounds, s.open = nil, nil
}

// booted compares what a disk came back with with what it may hold: S6, S7, S8, S18.
func (s *shadow) booted(n *node, states []engine.GroupState) {
	w := n.w
	if s.durable == nil {
		return // a fresh disk
	}
	// The store may have failed in the middle of a destruction, which the start completes.
	for _, g := range w.orc.order {
		d := s.durable[g.id]
		if d == nil || slices.ContainsFunc(states, func(st engine.GroupState) bool { return st.Desc.Shard == g.id }) {
			continue
		}
		if lowest, dead, err := n.eng.Tombstone(g.id); err == nil && dead && d.replica < lowest {
			s.destroyed(n, g.id, d.replica)
		}
	}
	x := s.expect
	if x == nil {
		x = &expectation{}
	}
	s.expect = nil
	why := ""
	for r := 0; r <= len(x.rounds); r++ {
		if r > 0 {
			s.promote(n, x.rounds[r-1])
		}
		if r < x.sure || r > x.sure && !x.maybe {
			continue
		}
		bad := s.compare(n, states)
		if bad == "" {
			why = ""
			break
		}
		if why == "" {
			why = fmt.Sprintf("after %d rounds: %s", r, bad)
		} else if r == len(x.rounds) {
			why += fmt.Sprintf("; after %d rounds: %s", r, bad)
		}
	}
	if why != "" {
		w.fail("S8", "node %d came back with a disk that no crash leaves (%d rounds for certain, %d in all): %s", n.id, x.sure, len(x.rounds), why)
	}
	s.visible = map[raft.ShardID]*groupShadow{}
	for i := range states {
		st := &states[i].State
		g := s.durable[st.Desc.Shard]
		// What was cut off without a sync may be there again, or not.
		g.trunc, g.truncTerm = st.Applied.TruncIndex, st.Applied.TruncTerm
		g.log = g.log[:0]
		for k, run := range st.Runs {
			end := st.Last + 1
			if k+1 < len(st.Runs) {
				end = st.Runs[k+1].First
			}
			for i := run.First; i < end; i++ {
				g.log = append(g.log, entryID{term: run.Term})
			}
		}
		for _, e := range st.Tail {
			g.log[e.Index-g.trunc-1].hash = hashBytes(e.Value)
		}
		g.hard = st.Hard
		s.visible[st.Desc.Shard] = g.clone()
		w.orc.booted(n, st)
	}
}

// compare returns how the states differ from the durable side, or "".
func (s *shadow) compare(n *node, states []engine.GroupState) string {
	if len(states) != len(s.durable) {
		return fmt.Sprintf("%d groups, not %d", len(states), len(s.durable))
	}
	for i := range states {
		st := &states[i].State
		g := s.durable[st.Desc.Shard]
		if g == nil {
			return fmt.Sprintf("shard %d was never here", st.Desc.Shard)
		}
		if rep, ok := st.Desc.ReplicaOn(n.id); ok && rep.ID != g.replica {
			return fmt.Sprintf("shard %d: replica %d, not %d", st.Desc.Shard, rep.ID, g.replica)
		}
		have, want := st.Hard, g.hard
		have.Commit, want.Commit = 0, 0
		if have != want {
			return fmt.Sprintf("shard %d: hard state %+v, not %+v", st.Desc.Shard, have, want)
		}
		if st.Last != g.last() {
			return fmt.Sprintf("shard %d: the log ends at %d, not %d", st.Desc.Shard, st.Last, g.last())
		}
		for k, run := range st.Runs {
			end := st.Last + 1
			if k+1 < len(st.Runs) {
				end = st.Runs[k+1].First
			}
			for i := max(run.First, g.trunc+1); i < end; i++ {
				if t, ok := g.term(i); ok && t != run.Term {
					return fmt.Sprintf("shard %d: entry %d has term %d, not %d", st.Desc.Shard, i, run.Term, t)
				}
			}
		}
		for _, e := range st.Tail {
			if e.Index <= g.trunc {
				continue
			}
			if h := g.log[e.Index-g.trunc-1].hash; h != 0 && h != hashBytes(e.Value) {
				return fmt.Sprintf("shard %d: entry %d has other bytes", st.Desc.Shard, e.Index)
			}
		}
	}
	return ""
}
