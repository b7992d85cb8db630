package sim

import (
	"encoding/binary"
	"fmt"
	"slices"

	"github.com/flotillakv/flotilla/internal/sim/coverage"
	"github.com/flotillakv/flotilla/multiraft/liveness"
	"github.com/flotillakv/flotilla/multiraft/raft"
)

// oracle knows what no node knows: everything that ever became durable,
// committed or acknowledged anywhere. Its methods are called at every round of
// every node and end the run at the first violation.
type oracle struct {
	w *World

	leaders []leader             // by order of election
	byTerm  map[raft.Term]int    // term -> index in leaders
	votes   map[voteKey]voteInfo // durable votes, ever
	entries map[entryKey]entryInfo
	log     []committed // log[i] is index i+1
	sums    []uint64    // sums[i]: state digest after applying index i+1
	confs   []confInfo  // ascending by index; confs[0] is the bootstrap
	seen    map[uint64]raft.Index
	never   map[uint64]bool // definitely not applied, by what a client was told
	// graves hold what destroyed replicas had on disk. An acknowledgement of a
	// replica that is gone still counts in the configuration that held it: it
	// votes for nobody any more, and quorums of the next configuration meet the
	// old ones outside of it.
	graves map[raft.ReplicaID]*image
	back   map[[3]uint64]backing // term, follower, leader: refused appends
}

type leader struct {
	term    raft.Term
	node    int
	replica raft.ReplicaID
	first   raft.Index     // its empty entry
	runs    []raft.TermRun // its log when elected
	trunc   raft.Index
}

type voteKey struct {
	replica raft.ReplicaID
	term    raft.Term
}

type voteInfo struct{ cand raft.ReplicaID }

type entryKey struct {
	index raft.Index
	term  raft.Term
}

type entryInfo struct {
	hash uint64
	prev raft.Term
}

type committed struct {
	term raft.Term // of the entry
	by   raft.Term // of the leader that committed it
	hash uint64
}

// backing is how far back a follower refused appends, and in how many steps.
type backing struct {
	at    raft.Index
	steps int
}

type confInfo struct {
	index raft.Index
	desc  raft.Descriptor
}

// observed is what a node's life has shown so far.
type observed struct {
	commit  raft.Index
	applied raft.Index
	term    raft.Term
}

func (o *oracle) init(w *World) {
	*o = oracle{w: w, byTerm: map[raft.Term]int{}, votes: map[voteKey]voteInfo{}, entries: map[entryKey]entryInfo{},
		seen: map[uint64]raft.Index{}, never: map[uint64]bool{}, graves: map[raft.ReplicaID]*image{}, back: map[[3]uint64]backing{}}
}

// last returns the last index known to be committed anywhere.
func (o *oracle) last() raft.Index { return raft.Index(len(o.log)) }

// quorum reports whether has holds for a majority of every half of d.
func quorum(d *raft.Descriptor, has func(raft.Replica) bool) bool {
	var in, inYes, out, outYes int
	for _, r := range d.Replicas {
		yes := 0
		if has(r) {
			yes = 1
		}
		if r.Role == raft.Voter || r.Role == raft.VoterIncoming {
			in++
			inYes += yes
		}
		if r.Role == raft.Voter || r.Role == raft.VoterOutgoing || r.Role == raft.VoterDemoting {
			out++
			outYes += yes
		}
	}
	return in > 0 && inYes > in/2 && outYes > out/2
}

// role checks a change of leadership: S1, S3, and the election's votes (S7, S10).
func (o *oracle) role(n *node, r *raft.RoleChange) {
	o.w.log(n.idx, "role", uint64(r.Term), uint64(r.Lead)<<2|b2u(r.IsLeader)<<1|b2u(r.IsReady))
	if !r.IsLeader {
		return
	}
	if i, ok := o.byTerm[r.Term]; ok {
		if l := o.leaders[i]; l.replica != n.replica {
			o.w.fail("S1", "term %d has two leaders: replica %d on node %d and replica %d on node %d", r.Term, l.replica, l.node+1, n.replica, n.id)
		}
		o.ready(n, r)
		return
	}
	o.disjoint(n, r.Term)
	me, ok := n.desc.ReplicaOn(n.id)
	if !ok || me.Role == raft.Learner {
		o.w.fail("S10", "node %d leads term %d but is no voter of configuration %d", n.id, r.Term, n.desc.ConfVer)
	}
	if !quorum(&n.desc, func(q raft.Replica) bool { return o.votes[voteKey{q.ID, r.Term}].cand == n.replica }) {
		o.w.fail("S10", "node %d leads term %d without durable votes of a quorum: %s", n.id, r.Term, o.ballot(&n.desc, r.Term))
	}
	im := n.asOf(r.Term)
	l := leader{term: r.Term, node: n.idx, replica: n.replica, first: im.last() + 1, runs: im.state().Runs, trunc: im.applied.TruncIndex}
	if r.FirstIndex != 0 {
		l.first = r.FirstIndex
	}
	// S3: every entry committed by an earlier leader is in this one's log.
	for i := o.last(); i > 0; i-- {
		c := o.log[i-1]
		if c.by >= r.Term {
			continue
		}
		if i <= im.applied.TruncIndex {
			break
		}
		if t, ok := im.term(i); !ok || t != c.term {
			o.w.fail("S3", "node %d leads term %d without entry %d of term %d, committed in term %d (its log: (%d, %d], term %d there)",
				n.id, r.Term, i, c.term, c.by, im.applied.TruncIndex, im.last(), t)
		}
		break // log matching covers those before
	}
	o.w.tell(n.idx, "leads", uint64(r.Term), uint64(im.last()))
	o.w.drifting(n, coverage.Election)
	o.byTerm[r.Term] = len(o.leaders)
	o.leaders = append(o.leaders, l)
	o.ready(n, r)
}

// ready checks a leader that says it can serve: an entry of its term is committed.
func (o *oracle) ready(n *node, r *raft.RoleChange) {
	if !r.IsReady || n.core == nil {
		return
	}
	o.commit(n, n.core)
	if o.last() < r.FirstIndex || o.log[r.FirstIndex-1].term != r.Term {
		o.w.fail("S15", "node %d says that it leads term %d and is ready to serve, and no entry of that term is committed (first is %d, committed anywhere is %d)", n.id, r.Term, r.FirstIndex, o.last())
	}
}

// asOf returns the visible store with this round's appends of earlier terms.
func (n *node) asOf(t raft.Term) *image {
	im := n.disk.visible.clone()
	for i := range n.out.Appends {
		if a := n.out.Appends[i]; a.Mark.Term < t {
			im.do(&op{kind: opAppend, append: a})
		}
	}
	return &im
}

func (o *oracle) ballot(d *raft.Descriptor, t raft.Term) string {
	s := ""
	for _, r := range d.Replicas {
		s += fmt.Sprintf("[replica %d role %d voted %d] ", r.ID, r.Role, o.votes[voteKey{r.ID, t}].cand)
	}
	return s
}

// leaderTerm returns the term of index i in the log of the leader of term t, if known.
func (o *oracle) leaderTerm(t raft.Term, i raft.Index) (raft.Term, bool) {
	k, ok := o.byTerm[t]
	if !ok {
		return 0, false
	}
	l := &o.leaders[k]
	switch {
	case i == 0:
		return 0, true
	case i >= l.first:
		return t, true
	case i <= l.trunc:
		return 0, false
	}
	at := raft.Term(0)
	for _, r := range l.runs {
		if r.First <= i {
			at = r.Term
		}
	}
	return at, at != 0
}

// appending checks an append: S2, S18, and that nothing committed is overwritten (S3).
func (o *oracle) appending(n *node, t *raft.AppendTask, b *batch) {
	last, trunc := n.disk.visible.last(), n.disk.visible.applied.TruncIndex
	prev := raft.Term(0)
	first := t.Entries[0].Index
	prev, _ = n.disk.visible.term(first - 1)
	for i := range b.ops { // appends of the same round
		if b.ops[i].kind == opAppend {
			e := b.ops[i].append.Entries
			last = e[len(e)-1].Index
			for _, x := range e {
				if x.Index == first-1 {
					prev = x.Term
				}
			}
		}
	}
	if t.OldLast != last {
		o.w.fail("S18", "node %d: append at %d says the log ends at %d, it ends at %d", n.id, first, t.OldLast, last)
	}
	if first > last+1 || first <= trunc {
		o.w.fail("S18", "node %d: append at %d leaves a hole or goes below the log (%d, %d]", n.id, first, trunc, last)
	}
	for i, e := range t.Entries {
		if e.Index != first+raft.Index(i) {
			o.w.fail("S18", "node %d: append is not contiguous at %d", n.id, e.Index)
		}
		if e.Term < prev {
			o.w.fail("S2", "node %d: entry %d has term %d after term %d", n.id, e.Index, e.Term, prev)
		}
		h := hashBytes(e.Value)
		k := entryKey{e.Index, e.Term}
		switch known, ok := o.entries[k]; {
		case !ok:
			if _, ok := o.byTerm[e.Term]; !ok && e.Type == raft.EntryEmpty {
				// Elected and deposed within one round: nobody was told.
				o.role(n, &raft.RoleChange{Shard: shard, Term: e.Term, Lead: n.replica, LeadNode: n.id, IsLeader: true, FirstIndex: e.Index})
			}
			if l, ok := o.byTerm[e.Term]; !ok || o.leaders[l].replica != n.replica {
				o.w.fail("S2", "node %d creates entry %d of term %d without leading it", n.id, e.Index, e.Term)
			}
			o.entries[k] = entryInfo{hash: h, prev: prev}
			if e.Type == raft.EntryConf {
				o.oneChange(n, e.Index)
			}
		case known.hash != h:
			o.w.fail("S2", "node %d: entry %d of term %d has other bytes than elsewhere", n.id, e.Index, e.Term)
		case known.prev != prev:
			o.w.fail("S2", "node %d: entry %d of term %d follows term %d here and term %d elsewhere", n.id, e.Index, e.Term, prev, known.prev)
		}
		if e.Index <= n.obs.commit && o.log[e.Index-1].term != e.Term && !overwritten(n, t, e.Index) {
			o.w.fail("S3", "node %d overwrites entry %d, which it knows to be committed", n.id, e.Index)
		}
		prev = e.Term
	}
	if t.Mark.Index != t.Entries[len(t.Entries)-1].Index {
		o.w.fail("S18", "node %d: mark %d of an append that ends at %d", n.id, t.Mark.Index, t.Entries[len(t.Entries)-1].Index)
	}
}

// oneChange checks that the leader that proposes a change at index has applied
// every earlier one of its log: a change is checked against the applied
// configuration, and quorums of changes two apart need not meet.
func (o *oracle) oneChange(n *node, index raft.Index) {
	im := &n.disk.visible
	for i := n.core.Status().Applied + 1; i < index; i++ {
		if e, ok := o.entryAt(n, im, i); ok && e.Type == raft.EntryConf {
			o.w.fail("S10", "node %d proposes the configuration change %d while the change %d of its log is not applied", n.id, index, i)
		}
	}
}

// overwritten reports whether a later append of the same round replaces index i of t.
func overwritten(n *node, t *raft.AppendTask, i raft.Index) bool {
	after := false
	for k := range n.out.Appends {
		a := &n.out.Appends[k]
		if after && a.Entries[0].Index <= i {
			return true
		}
		after = after || a.Mark == t.Mark && a.Entries[0].Index == t.Entries[0].Index
	}
	return false
}

// durable records what a batch that has just become durable promises: S5, S7.
func (o *oracle) durable(n *node, b *batch) {
	for i := range b.ops {
		if b.ops[i].kind != opHard && b.ops[i].kind != opInstall {
			continue
		}
		h, r := &b.ops[i].hard, n.disk.durable.replica
		if b.ops[i].kind == opInstall {
			r = b.ops[i].replica
		}
		if h.Vote == 0 {
			continue
		}
		k := voteKey{r, h.Term}
		if v, ok := o.votes[k]; ok && v.cand != h.Vote {
			o.w.fail("S7", "replica %d on node %d voted for replica %d and for replica %d in term %d", r, n.id, v.cand, h.Vote, h.Term)
		}
		o.votes[k] = voteInfo{h.Vote}
	}
}

// sending checks a message that leaves: S6, S11.
func (o *oracle) sending(n *node, m *raft.Msg) {
	d := &n.disk.durable
	if m.From != n.id {
		o.w.fail("S11", "node %d sends in the name of node %d: %s", n.id, m.From, FormatMsg(m))
	}
	mine := d.exists && d.replica == m.FromReplica
	switch m.Type {
	case raft.MsgTimeoutNow:
		o.handing(n, m)
	case raft.MsgAppResp:
		if m.Reject() && mine {
			o.refused(n, m)
		}
		if m.Reject() || !mine || d.hard.Term > m.Term {
			break // of the past: the same batch brought a newer leader's entries, too
		}
		if m.Index > d.last() {
			o.w.fail("S6", "node %d acknowledges entry %d, its durable log ends at %d: %s", n.id, m.Index, d.last(), FormatMsg(m))
		}
		want, known := o.leaderTerm(m.Term, m.Index)
		if have, ok := d.term(m.Index); ok && known && have != want {
			o.w.fail("S6", "node %d acknowledges entry %d to the leader of term %d, durable there is term %d, the leader's is %d", n.id, m.Index, m.Term, have, want)
		}
		o.fortified(n, m)
	case raft.MsgFortifyResp:
		if !m.Reject() && mine {
			o.fortified(n, m)
		}
	case raft.MsgVoteResp:
		if m.Reject() || !mine {
			break
		}
		k := voteKey{m.FromReplica, m.Term}
		if _, ok := o.votes[k]; !ok && d.hard.Term > m.Term {
			// The same batch brought a higher term: no other vote is possible in this one.
			o.votes[k] = voteInfo{m.ToReplica}
		}
		if v := o.votes[k]; v.cand != m.ToReplica {
			o.w.fail("S6", "node %d grants replica %d a vote in term %d, durable is a vote for replica %d", n.id, m.ToReplica, m.Term, v.cand)
		}
	case raft.MsgApp:
		if l, ok := o.byTerm[m.Term]; !ok || o.leaders[l].replica != m.FromReplica {
			o.w.fail("S1", "node %d sends appends in term %d, which it never led", n.id, m.Term)
		}
		o.claim(n, m)
	case raft.MsgCommit:
		o.claim(n, m)
	}
}

// handing checks who is told to campaign at once: somebody who can win, for the
// leader's promise is given up for it. The target has to hold the leader's log
// (its disk may lag behind what it has acknowledged to nobody).
func (o *oracle) handing(n *node, m *raft.Msg) {
	t := o.w.nodes[m.To-1]
	im := &t.disk.durable
	if !im.exists || im.replica != m.ToReplica || n.core == nil || t.forgot.ghost != nil {
		return // it was replaced, or crashed for good, or forgot what it held, in between
	}
	st := n.core.Status()
	if have, ok := im.term(st.Last); !ok || have != st.LastTerm {
		o.w.fail("L1", "node %d hands the leadership of term %d to node %d, which holds (%d, %d] durably and not entry %d of term %d: it cannot win",
			n.id, st.Term, t.id, im.applied.TruncIndex, im.last(), st.Last, st.LastTerm)
	}
}

// refused counts how often a follower refuses appends of one leadership ever
// further back: a divergent tail is found in one step per term, not per entry.
func (o *oracle) refused(n *node, m *raft.Msg) {
	if m.Term != n.core.Status().Term || m.Commit == 0 {
		return
	}
	k := [3]uint64{uint64(m.Term), uint64(m.FromReplica), uint64(m.ToReplica)}
	b := o.back[k]
	switch {
	case b.at == 0 || m.Commit < b.at:
		b.steps++
	case m.Commit > b.at: // forward again: a new search
		b.steps = 1
	}
	b.at = m.Commit
	o.back[k] = b
	if limit := len(o.leaders) + 4; b.steps > limit {
		o.w.fail("L3", "node %d is led back to where its log agrees with the leader's of term %d in %d steps and more, there were %d leaders", n.id, m.Term, b.steps, len(o.leaders))
	}
}

// fortified checks the promise in m's epoch.
func (o *oracle) fortified(n *node, m *raft.Msg) {
	h := &n.disk.durable.hard
	if m.Epoch == 0 || h.Term > m.Term {
		return
	}
	if h.Term != m.Term || h.Lead != m.ToReplica || h.LeadEpoch != m.Epoch {
		o.w.fail("S6", "node %d promises epoch %d.%d to replica %d in term %d, durable is %+v", n.id, m.Epoch>>32, uint32(m.Epoch), m.ToReplica, m.Term, *h)
	}
}

// claim checks the commit index a leader tells.
func (o *oracle) claim(n *node, m *raft.Msg) {
	if c := n.core; c != nil && m.FromReplica == n.replica {
		o.commit(n, c)
	}
	if m.Commit > o.last() {
		o.w.fail("S5", "node %d tells commit index %d, committed anywhere is %d", n.id, m.Commit, o.last())
	}
}

// round checks a node after a round: S3, S5, S6.
func (o *oracle) round(n *node) {
	if n.core == nil {
		return
	}
	o.commit(n, n.core)
	o.bounds(n)
	if d := n.core.Descriptor(); d.ConfVer != n.desc.ConfVer || !slices.Equal(d.Replicas, n.desc.Replicas) {
		o.w.fail("S10", "node %d counts by configuration %d %v, it has applied %d %v", n.id, d.ConfVer, d.Replicas, n.desc.ConfVer, n.desc.Replicas)
	}
	// Who was no voter when the round began neither campaigns in it nor leads after it.
	st := n.core.Status()
	me, ok := n.desc.Replica(n.replica)
	if st.Role == raft.RoleFollower || n.before.voter || ok && me.Role != raft.Learner {
		return
	}
	if st.Role == raft.RoleLeader || st.Role != n.before.role {
		o.w.fail("S11", "node %d is %v in term %d and no voter of configuration %d", n.id, st.Role, st.Term, n.desc.ConfVer)
	}
}

// bounds checks what a node may hold in memory: S19.
func (o *oracle) bounds(n *node) {
	t := o.w.tun
	one := 3*(o.w.p.Payload+64) + 256 // bytes of the largest entry of a run
	if u := n.core.Status().Uncommitted; u > t.UncommittedBytes+2*one {
		o.w.fail("S19", "node %d took proposals of %d bytes that are not committed, its bound is %d", n.id, u, t.UncommittedBytes)
	}
	held := 0
	for i := range n.applyQ {
		held += len(n.applyQ[i].Value)
	}
	if held > t.ApplyBytes+2*one {
		o.w.fail("S19", "node %d handed out %d bytes of committed entries before the ones in front were applied, its bound is %d", n.id, held, t.ApplyBytes)
	}
}

// commit looks at a core's commit index. Whoever is first to raise it must have
// a quorum that holds the entries durably.
func (o *oracle) commit(n *node, c *raft.Core) {
	st := c.Status()
	if st.Term < n.obs.term {
		o.w.fail("S5", "node %d: the term goes back from %d to %d", n.id, n.obs.term, st.Term)
	}
	n.obs.term = st.Term
	if st.Commit < n.obs.commit {
		o.w.fail("S5", "node %d: the commit index goes back from %d to %d", n.id, n.obs.commit, st.Commit)
	}
	if st.Commit == n.obs.commit {
		return
	}
	if st.Commit > st.Last {
		o.w.fail("S5", "node %d: commit index %d is beyond its log, which ends at %d", n.id, st.Commit, st.Last)
	}
	im := &n.disk.visible
	for i := n.obs.commit + 1; i <= st.Commit; i++ {
		e, ok := o.entryAt(n, im, i)
		if !ok {
			continue // came with a snapshot
		}
		h := hashBytes(e.Value)
		if i <= o.last() {
			if g := o.log[i-1]; g.term != e.Term || g.hash != h {
				o.w.fail("S3", "node %d holds entry %d of term %d as committed, elsewhere term %d was committed there in term %d", n.id, i, e.Term, g.term, g.by)
			}
			continue
		}
		if i != o.last()+1 {
			o.w.fail("S5", "node %d commits entry %d, the last one committed anywhere is %d", n.id, i, o.last())
		}
		if i == st.Commit && e.Term != st.Term {
			o.w.fail("S3", "node %d leads term %d and declares entry %d of term %d committed because a quorum holds it. That is the commit rule: "+
				"only entries of the leader's own term are committed by counting; a leader elected without entry %d could still overwrite it (figure 8 of the Raft paper)",
				n.id, st.Term, i, e.Term, i)
		}
		o.addCommitted(n, &st, e, h)
	}
	n.obs.commit = st.Commit
}

// entryAt returns entry i of n's log, including what the present round appends.
func (o *oracle) entryAt(n *node, im *image, i raft.Index) (raft.Entry, bool) {
	for k := len(n.out.Appends) - 1; k >= 0; k-- {
		e := n.out.Appends[k].Entries
		if e[0].Index <= i && i <= e[len(e)-1].Index {
			return e[i-e[0].Index], true
		}
	}
	trunc := im.applied.TruncIndex
	if i <= trunc || i > im.last() {
		return raft.Entry{}, false
	}
	return im.log[i-trunc-1], true
}

func (o *oracle) addCommitted(n *node, st *raft.Status, e raft.Entry, h uint64) {
	w := o.w
	has := func(r raft.Replica) bool {
		d := &w.nodes[r.Node-1].disk.durable
		if !d.exists || d.replica != r.ID {
			if d = o.graves[r.ID]; d == nil {
				return false
			}
		}
		t, ok := d.term(e.Index)
		if g := w.nodes[r.Node-1].forgot.ghost; !ok && g != nil && g.replica == r.ID {
			d = g
			t, ok = g.term(e.Index)
		}
		return ok && t == e.Term || d.applied.TruncIndex >= e.Index
	}
	if !quorum(&n.desc, has) {
		s := ""
		for _, r := range n.desc.Replicas {
			d := &w.nodes[r.Node-1].disk.durable
			t, _ := d.term(e.Index)
			s += fmt.Sprintf("[node %d role %d last %d term there %d] ", r.Node, r.Role, d.last(), t)
		}
		w.fail("S6", "node %d commits entry %d of term %d, but it is durable on no quorum of configuration %d: %s", n.id, e.Index, e.Term, n.desc.ConfVer, s)
	}
	if l, ok := o.byTerm[st.Term]; !ok || o.leaders[l].replica != n.replica {
		w.fail("S3", "node %d is the first to commit entry %d and does not lead term %d", n.id, e.Index, st.Term)
	}
	o.log = append(o.log, committed{term: e.Term, by: st.Term, hash: h})
	w.log(n.idx, "commit", uint64(e.Index), uint64(e.Term))
	dec, err := raft.DecodeEntry(e.Index, e.Value)
	if err != nil || dec.Term != e.Term || dec.Type != e.Type {
		w.fail("S4", "entry %d of term %d does not decode: %v", e.Index, e.Term, err)
	}
	prev := uint64(0)
	if e.Index > 1 {
		prev = o.sums[e.Index-2]
	}
	o.sums = append(o.sums, mix(mix(prev, uint64(e.Index)), h))
	if e.Type != raft.EntryNormal {
		return
	}
	for _, c := range dec.Commands() {
		id := binary.LittleEndian.Uint64(c.Body)
		if at, ok := o.seen[id]; ok {
			w.fail("S9", "command %d is committed at %d and at %d", id, at, e.Index)
		}
		o.seen[id] = e.Index
		if o.never[id] {
			w.fail("S16", "command %d was reported as never applied and is committed at %d", id, e.Index)
		}
	}
}

// apply checks an entry handed to the state machine and returns the digest after it: S4, S5.
func (o *oracle) apply(n *node, applied raft.Index, e raft.Entry) uint64 {
	if e.Index != applied+1 {
		o.w.fail("S4", "node %d applies entry %d after %d", n.id, e.Index, applied)
	}
	o.commit(n, n.core)
	if e.Index > o.last() || e.Index > n.obs.commit {
		o.w.fail("S5", "node %d applies entry %d, committed here is %d and anywhere %d", n.id, e.Index, n.obs.commit, o.last())
	}
	if c := o.log[e.Index-1]; c.term != e.Term || c.hash != hashBytes(e.Value) {
		o.w.fail("S4", "node %d applies at %d an entry of term %d, committed is one of term %d", n.id, e.Index, e.Term, c.term)
	}
	n.obs.applied = e.Index
	return o.sums[e.Index-1]
}

// buried records a replica that is about to be destroyed or replaced.
func (o *oracle) buried(im *image) {
	if im.exists {
		c := im.clone()
		o.graves[im.replica] = &c
	}
}

// recovered checks a state a core is about to be made from: S5, S20.
func (o *oracle) recovered(n *node) {
	im := &n.disk.visible
	if o.graves[im.replica] != nil {
		o.w.fail("S11", "replica %d was destroyed and is back on node %d", im.replica, n.id)
	}
	a := im.applied.Applied
	if a > o.last() {
		o.w.fail("S5", "node %d recovers with applied index %d, committed anywhere is %d", n.id, a, o.last())
	}
	if a > 0 && im.sum != o.sums[a-1] {
		o.w.fail("S20", "node %d recovers at %d with another state than everybody else", n.id, a)
	}
	if im.applied.TruncIndex > a {
		o.w.fail("S18", "node %d recovers with a log cut at %d and applied %d", n.id, im.applied.TruncIndex, a)
	}
	o.foldOf(n, a, &im.desc)
}

// quiet checks a group that was idle for a while: S19.
func (o *oracle) quiet(set []bool) {
	keep := raft.Index(16*o.w.p.Tuning.WithDefaults().LogKeepEntries) + 8192
	for i, n := range o.w.nodes {
		if im := &n.disk.visible; set[i] && n.core != nil && im.last()-im.applied.TruncIndex > keep {
			o.w.fail("S19", "node %d is idle and keeps %d entries of its log, bounded by %d", n.id, im.last()-im.applied.TruncIndex, keep)
		}
	}
}

// truncating checks a cut of the log.
func (o *oracle) truncating(n *node, t *raft.TruncateTask, applied raft.Index) {
	if t.Index > applied {
		o.w.fail("S18", "node %d cuts its log at %d, applied is %d", n.id, t.Index, applied)
	}
	if c := o.log[t.Index-1]; c.term != t.Term {
		o.w.fail("S18", "node %d cuts its log at %d and says term %d, it is %d", n.id, t.Index, t.Term, c.term)
	}
}

// installed checks a state taken over from a snapshot.
func (o *oracle) installed(n *node, s *snapshot) {
	if a := s.applied.Applied; a > 0 && s.sum != o.sums[a-1] {
		o.w.fail("S17", "node %d installs a snapshot at %d with another state than everybody else", n.id, a)
	}
	if a := s.applied; a.Applied > 0 && o.log[a.Applied-1].term != a.AppliedTerm {
		o.w.fail("S17", "node %d installs a snapshot of entry %d and term %d, the entry is of term %d", n.id, a.Applied, a.AppliedTerm, o.log[a.Applied-1].term)
	}
	o.foldOf(n, s.applied.Applied, &s.desc)
}

// addConf records the configuration produced at index.
func (o *oracle) addConf(index raft.Index, d raft.Descriptor) {
	o.confs = append(o.confs, confInfo{index, d})
}

// conf checks the configuration a node arrives at by applying index: S10.
func (o *oracle) conf(n *node, index raft.Index, term raft.Term, d raft.Descriptor) {
	if st := n.core.Status(); st.Role == raft.RoleLeader && st.Term == term {
		if r, ok := d.ReplicaOn(n.id); !ok || r.Role != raft.Voter && r.Role != raft.VoterIncoming && !d.IsJoint() {
			o.w.fail("L1", "node %d leads term %d and takes itself out by configuration %d: the group has no leader then", n.id, term, d.ConfVer)
		}
	}
	last := &o.confs[len(o.confs)-1]
	if index > last.index {
		o.intersect(&last.desc, &d)
		o.addConf(index, d.Clone())
		o.w.tell(n.idx, "conf", uint64(index), d.ConfVer)
		return
	}
	o.foldOf(n, index, &d)
}

// foldOf checks that d is the configuration after applying index.
func (o *oracle) foldOf(n *node, index raft.Index, d *raft.Descriptor) {
	want := &o.confs[0].desc
	for i := range o.confs {
		if o.confs[i].index <= index {
			want = &o.confs[i].desc
		}
	}
	if want.ConfVer != d.ConfVer || !slices.Equal(want.Replicas, d.Replicas) {
		o.w.fail("S10", "node %d at index %d has configuration %d %v, the log says %d %v", n.id, index, d.ConfVer, d.Replicas, want.ConfVer, want.Replicas)
	}
}

// intersect checks by enumeration that every quorum of a meets every quorum of b.
func (o *oracle) intersect(a, b *raft.Descriptor) {
	var all []raft.ReplicaID
	for _, d := range []*raft.Descriptor{a, b} {
		for _, r := range d.Replicas {
			if !slices.Contains(all, r.ID) {
				all = append(all, r.ID)
			}
		}
	}
	in := func(set uint) func(raft.Replica) bool {
		return func(r raft.Replica) bool { return set>>slices.Index(all, r.ID)&1 != 0 }
	}
	full := uint(1)<<len(all) - 1
	for set := uint(0); set <= full; set++ {
		if quorum(a, in(set)) && quorum(b, in(full&^set)) {
			o.w.fail("S10", "quorums of configurations %d %v and %d %v need not meet", a.ConfVer, a.Replicas, b.ConfVer, b.Replicas)
		}
	}
}

// acked checks commands whose clients are told "applied".
func (o *oracle) acked(n *node, e raft.Entry, ids []uint64) {
	o.w.res.Acks += len(ids)
	for _, id := range ids {
		if at := o.seen[id]; at != e.Index && e.Type == raft.EntryNormal {
			o.w.fail("S9", "node %d acknowledges command %d at %d, it is committed at %d", n.id, id, e.Index, at)
		}
	}
}

// definite records commands whose clients are told "never applied": S16.
func (o *oracle) definite(ids []uint64) {
	for _, id := range ids {
		if at, ok := o.seen[id]; ok {
			o.w.fail("S16", "command %d is reported as never applied and was committed at %d", id, at)
		}
		o.never[id] = true
	}
}

// dropped takes a core's word that proposals are lost for good.
func (o *oracle) dropped(n *node, t *raft.DropTask) {
	o.w.log(n.idx, "drop", uint64(t.Index), uint64(t.Term))
	keep := n.waiting[:0]
	for _, p := range n.waiting {
		if p.mark.Index >= t.Index && p.mark.Term <= t.Term {
			o.definite(p.ids)
			continue
		}
		keep = append(keep, p)
	}
	n.waiting = keep
}

// read checks the answer to a read: it sees everything committed before it began (S15).
func (o *oracle) read(n *node, q *readWait, index raft.Index) {
	o.w.res.Reads++
	o.commit(n, n.core)
	if index < q.need {
		o.w.fail("S15", "node %d answers a read of %.6f s with index %d, committed by then was %d", n.id, float64(q.at)/1e9, index, q.need)
	}
	if index > o.last() {
		o.w.fail("S15", "node %d answers a read with index %d, committed anywhere is %d", n.id, index, o.last())
	}
}

// support checks what a node publishes about its support for another one: when
// it shows the end of a promise, nobody may count on that promise (S14).
func (o *oracle) support(n *node, t *liveness.Entry) {
	if t.Node == n.id || t.For == 0 {
		return
	}
	if d := n.disk.durable.support[t.Node-1]; !t.ForLive && (d.epoch != t.For || !d.withdrawn) {
		o.w.fail("S6", "node %d shows epoch %x of node %d as ended, durable is %x withdrawn=%v", n.id, t.For, t.Node, d.epoch, d.withdrawn)
	}
	p := o.w.nodes[t.Node-1]
	now, ok := p.leaseTime()
	if !ok {
		return
	}
	if e, until := p.pairs.SupportFrom(n.id); e != 0 && until > now && (e < t.For || e == t.For && !t.ForLive) {
		o.w.fail("S14", "node %d shows epoch %d.%d of node %d as live=%v, which counts on epoch %d.%d for another %v",
			n.id, t.For>>32, uint32(t.For), t.Node, t.ForLive, e>>32, uint32(e), until.Sub(p.clock()))
	}
}

// promise checks a liveness record that leaves: S6.
func (o *oracle) promise(n *node, s *liveness.Send) {
	d := n.disk.durable.support[s.To-1]
	switch {
	case s.Ctl.Kind == raft.CtlReply && !s.Ctl.Refused && (d.epoch != s.Ctl.Epoch || d.withdrawn):
		o.w.fail("S6", "node %d promises node %d epoch %x, durable is %x withdrawn=%v", n.id, s.To, s.Ctl.Epoch, d.epoch, d.withdrawn)
	case s.Ctl.Kind == raft.CtlWithdrawn && (d.epoch < s.Ctl.Epoch || d.epoch == s.Ctl.Epoch && !d.withdrawn):
		o.w.fail("S6", "node %d tells node %d that epoch %x ended before that is durable", n.id, s.To, s.Ctl.Epoch)
	}
}
