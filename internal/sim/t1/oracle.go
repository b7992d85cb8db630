package t1

import (
	"errors"
	"fmt"

	"github.com/flotillakv/flotilla/internal/sim/coverage"
	"github.com/flotillakv/flotilla/multiraft"
	"github.com/flotillakv/flotilla/multiraft/raft"
)

// oracle knows what no node knows: everything that ever became durable,
// committed or acknowledged anywhere, per shard. It ends the run at the first
// violation. The names are those of the ledger's checkers.
type oracle struct {
	w      *World
	groups map[raft.ShardID]*group
	order  []*group
	// proposals that were answered, for the audit at the end.
	refused map[uint64]error // hash of a command that was refused for certain, and why
	sent    map[uint64]bool  // commands that were proposed
	twice   map[uint64]bool  // more than once
}

// group is what is known of one shard.
type group struct {
	id      raft.ShardID
	desc    raft.Descriptor // the first one; its span is that of all
	confs   []confAt        // ascending; the first is the bootstrap
	leaders map[raft.Term]leader
	votes   map[voteKey]raft.ReplicaID // durable ones, ever
	entries map[entryKey]entryInfo
	log     []committed // log[i] is index i+1
	model   *model
	acked   raft.Index // highest index of which a client was told
	changes map[entryKey]raft.ConfChange
	sums    map[raft.Index]uint64 // digests of a user's machine
	serving raft.Term             // the newest one in which a lease was served by
	// graves hold what destroyed replicas had on disk: their acknowledgements
	// still count in the configurations that held them.
	graves map[raft.ReplicaID]*groupShadow
}

// confAt is a configuration and the entry that made it.
type confAt struct {
	index raft.Index
	desc  raft.Descriptor
}

// at returns the configuration that entries up to i make.
func (g *group) at(i raft.Index) *raft.Descriptor {
	k := len(g.confs) - 1
	for k > 0 && g.confs[k].index > i {
		k--
	}
	return &g.confs[k].desc
}

// newest returns the newest configuration that was applied anywhere.
func (g *group) newest() *raft.Descriptor { return &g.confs[len(g.confs)-1].desc }

type leader struct {
	node    int
	replica raft.ReplicaID
}

type voteKey struct {
	replica raft.ReplicaID
	term    raft.Term
}

type entryKey struct {
	index raft.Index
	term  raft.Term
}

type entryInfo struct {
	hash uint64
	prev raft.Term
}

type committed struct {
	entryID
	by      raft.Term // of the leader that committed it, at most
	value   []byte
	results [][]byte
	sum     uint64 // digest of the shard's content after it
}

func (o *oracle) init(w *World) {
	*o = oracle{w: w, groups: map[raft.ShardID]*group{}, refused: map[uint64]error{}, sent: map[uint64]bool{}, twice: map[uint64]bool{}}
	for _, d := range w.descriptors() {
		g := &group{id: d.Shard, desc: d, leaders: map[raft.Term]leader{}, votes: map[voteKey]raft.ReplicaID{}, entries: map[entryKey]entryInfo{}, model: newModel(d),
			confs: []confAt{{0, d}}, sums: map[raft.Index]uint64{}, changes: map[entryKey]raft.ConfChange{}, graves: map[raft.ReplicaID]*groupShadow{}}
		o.groups[d.Shard] = g
		o.order = append(o.order, g)
	}
}

func (g *group) last() raft.Index { return raft.Index(len(g.log)) }

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

// onCommit is the host's word that the round's batch is about to be synced.
func (n *node) onCommit(int) { n.shadow.commits = true }

// onRound sees the effects of a round.
func (n *node) onRound(_ int, out *raft.Out) {
	o := &n.w.orc
	for i := range out.Roles {
		o.role(n, &out.Roles[i], out)
	}
	for i := range out.HardStates {
		t := &out.HardStates[i]
		hs := t.State
		n.shadow.note(shadowOp{shard: t.Shard, hard: &hs})
	}
	for i := range out.Appends {
		o.appending(n, &out.Appends[i])
	}
	for i := range out.Applies {
		o.applying(n, &out.Applies[i])
	}
	for i := range out.Truncates {
		t := &out.Truncates[i]
		n.shadow.note(shadowOp{shard: t.Shard, trunc: t.Index, term: t.Term})
	}
}

// role checks a change of leadership: S1, S3, S10.
func (o *oracle) role(n *node, r *raft.RoleChange, out *raft.Out) {
	w, g := o.w, o.groups[r.Shard]
	w.log(n.idx, "role", uint64(r.Shard)<<40|uint64(r.Term), uint64(r.Lead)<<2|b2u(r.IsLeader)<<1|b2u(r.IsReady))
	if !r.IsLeader {
		return
	}
	s := n.shadow.visible[r.Shard]
	if l, ok := g.leaders[r.Term]; ok {
		if l.replica != s.replica {
			w.fail("S1", "shard %d term %d has two leaders: node %d and node %d", g.id, r.Term, l.node+1, n.id)
		}
		return
	}
	w.res.Leaders++
	w.drifting(n, coverage.Election, r.Shard)
	g.leaders[r.Term] = leader{n.idx, s.replica}
	from := raft.Index(0)
	if v, ok := n.host.View(r.Shard); ok {
		from = v.Applied
	}
	elected := false
	for k := range g.confs { // by what it had applied, or applied in this round
		if k+1 < len(g.confs) && g.confs[k+1].index <= from {
			continue
		}
		d := &g.confs[k].desc
		me, ok := d.Replica(s.replica)
		elected = elected || ok && me.Role != raft.Learner && quorum(d, func(q raft.Replica) bool { return g.votes[voteKey{q.ID, r.Term}] == s.replica })
	}
	if !elected {
		w.fail("S10", "node %d leads shard %d term %d without durable votes of a quorum", n.id, g.id, r.Term)
	}
	// S3: what was committed in earlier terms is in the leader's log. The round's
	// own appends may have come before the election.
	for i := g.last(); i > 0; i-- {
		c := &g.log[i-1]
		if c.by >= r.Term {
			continue
		}
		t, ok := s.term(i)
		for k := range out.Appends {
			if a := &out.Appends[k]; a.Shard == r.Shard && a.Mark.Term < r.Term {
				for _, e := range a.Entries {
					if e.Index == i {
						t, ok = e.Term, true
					}
				}
			}
		}
		if i > s.trunc && (!ok || t != c.term) {
			w.fail("S3", "node %d leads shard %d term %d without entry %d of term %d, committed in term %d", n.id, g.id, r.Term, i, c.term, c.by)
		}
		break
	}
}

// appending checks an append: S2, S18, S3.
func (o *oracle) appending(n *node, t *raft.AppendTask) {
	w, g, s := o.w, o.groups[t.Shard], n.shadow.visible[t.Shard]
	first := t.Entries[0].Index
	if t.OldLast != s.last() {
		w.fail("S18", "node %d shard %d: append at %d says the log ends at %d, it ends at %d", n.id, g.id, first, t.OldLast, s.last())
	}
	if first > s.last()+1 || first <= s.trunc {
		w.fail("S18", "node %d shard %d: append at %d leaves a hole or goes below the log (%d, %d]", n.id, g.id, first, s.trunc, s.last())
	}
	prev, _ := s.term(first - 1)
	op := shadowOp{shard: t.Shard, first: first, last: t.Mark.Index}
	for i, e := range t.Entries {
		if e.Index != first+raft.Index(i) || e.Term < prev {
			w.fail("S2", "node %d shard %d: entry %d of term %d follows entry of term %d", n.id, g.id, e.Index, e.Term, prev)
		}
		id := entryID{e.Term, hashBytes(e.Value)}
		k := entryKey{e.Index, e.Term}
		switch known, ok := g.entries[k]; {
		case !ok:
			if l, ok := g.leaders[e.Term]; ok && l.replica != s.replica {
				w.fail("S2", "node %d creates entry %d of shard %d in term %d, which node %d leads", n.id, e.Index, g.id, e.Term, l.node+1)
			}
			g.entries[k] = entryInfo{id.hash, prev}
			o.noteChange(g, k, e)
		case known.hash != id.hash:
			w.fail("S2", "node %d shard %d: entry %d of term %d has other bytes than elsewhere", n.id, g.id, e.Index, e.Term)
		case known.prev != prev:
			w.fail("S2", "node %d shard %d: entry %d of term %d follows term %d here and term %d elsewhere", n.id, g.id, e.Index, e.Term, prev, known.prev)
		}
		op.ents = append(op.ents, id)
		prev = e.Term
	}
	n.shadow.note(op)
}

// applying checks what is handed to the state machine: S4, S5, S6, S9.
func (o *oracle) applying(n *node, t *raft.ApplyTask) {
	w, g := o.w, o.groups[t.Shard]
	for _, e := range t.Entries {
		w.res.Applies++
		if e.Index <= g.last() {
			if c := &g.log[e.Index-1]; c.term != e.Term || c.hash != hashBytes(e.Value) {
				w.fail("S4", "node %d applies entry %d of term %d to shard %d, elsewhere it is of term %d", n.id, e.Index, e.Term, g.id, c.term)
			}
			continue
		}
		if e.Index != g.last()+1 {
			w.fail("S4", "node %d applies entry %d to shard %d, the last one committed anywhere is %d", n.id, e.Index, g.id, g.last())
		}
		o.commit(n, g, e)
	}
}

// commit records the first sight of a committed entry.
func (o *oracle) commit(n *node, g *group, e raft.Entry) {
	w := o.w
	has := func(r raft.Replica) bool {
		d := w.nodes[r.Node-1].shadow.durable[g.id]
		if d == nil || d.replica != r.ID {
			if d = g.graves[r.ID]; d == nil {
				return false
			}
		}
		t, ok := d.term(e.Index)
		return ok && t == e.Term || d.trunc >= e.Index
	}
	// A change takes effect when it is applied, and the next one waits for that:
	// the leader counted by the last configuration before this entry, or by the one before.
	stored := false
	for k := len(g.confs) - 1; k >= 0 && k >= len(g.confs)-2; k-- {
		stored = stored || quorum(&g.confs[k].desc, has)
	}
	if !stored {
		s := fmt.Sprintf(" configuration %d", g.newest().ConfVer)
		for _, r := range g.newest().Replicas {
			d := w.nodes[r.Node-1].shadow.durable[g.id]
			if d == nil {
				continue
			}
			t, _ := d.term(e.Index)
			s += fmt.Sprintf(" [node %d: log ends at %d, term there %d]", r.Node, d.last(), t)
		}
		w.fail("S6", "node %d applies entry %d of term %d to shard %d, but it is durable on no quorum:%s", n.id, e.Index, e.Term, g.id, s)
	}
	by := e.Term
	for t := range g.leaders {
		by = max(by, t) // not earlier than that, as far as the check of leaders is concerned
	}
	dec, err := raft.DecodeEntry(e.Index, e.Value)
	if err != nil || dec.Term != e.Term || dec.Type != e.Type {
		w.fail("S4", "entry %d of shard %d does not decode: %v", e.Index, g.id, err)
	}
	w.res.Commits++
	w.log(n.idx, "commit", uint64(g.id)<<40|uint64(e.Index), hashBytes(e.Value))
	if dec.Type == raft.EntryConf {
		for _, c := range dec.Commands() {
			cc, err := raft.DecodeConfChange(c.Body)
			if err != nil {
				continue
			}
			if next, err := g.newest().Apply(cc); err == nil {
				g.confs = append(g.confs, confAt{e.Index, next.Clone()})
				w.res.Confs++
				w.log(n.idx, "conf", uint64(g.id)<<40|uint64(e.Index), next.ConfVer)
			}
		}
	}
	var results [][]byte
	if w.custom == nil {
		results, err = g.model.apply(dec)
	}
	if err != nil {
		w.fail("S4", "entry %d of shard %d cannot be applied: %v", e.Index, g.id, err)
	}
	g.log = append(g.log, committed{entryID: entryID{e.Term, hashBytes(e.Value)}, by: by, value: e.Value, results: results, sum: g.model.sum})
}

// voted records a vote that became durable: S7.
func (o *oracle) voted(n *node, s raft.ShardID, replica raft.ReplicaID, hs *raft.HardState) {
	if hs.Vote == 0 {
		return
	}
	g, k := o.groups[s], voteKey{replica, hs.Term}
	if v, ok := g.votes[k]; ok && v != hs.Vote {
		o.w.fail("S7", "replica %d of shard %d on node %d voted for replica %d and for replica %d in term %d", replica, s, n.id, v, hs.Vote, hs.Term)
	}
	g.votes[k] = hs.Vote
}

// sending checks a message that leaves: S6, S11.
func (o *oracle) sending(n *node, m *raft.Msg) {
	w := o.w
	d := n.shadow.durable[m.Shard]
	if m.From != n.id {
		w.fail("S11", "node %d sends in the name of node %d", n.id, m.From)
	}
	if d == nil || d.replica != m.FromReplica || d.hard.Term > m.Term {
		return
	}
	g := o.groups[m.Shard]
	switch m.Type {
	case raft.MsgAppResp:
		if m.Reject() {
			return
		}
		if m.Index > d.last() {
			w.fail("S6", "node %d acknowledges entry %d of shard %d in term %d, its durable log ends at %d", n.id, m.Index, g.id, m.Term, d.last())
		}
		o.fortified(n, m, d)
	case raft.MsgFortifyResp:
		if !m.Reject() {
			o.fortified(n, m, d)
		}
	case raft.MsgVoteResp:
		if !m.Reject() && g.votes[voteKey{m.FromReplica, m.Term}] != m.ToReplica {
			w.fail("S6", "node %d grants replica %d of shard %d a vote in term %d, durable is a vote for replica %d", n.id, m.ToReplica, g.id, m.Term, g.votes[voteKey{m.FromReplica, m.Term}])
		}
	case raft.MsgApp:
		if l, ok := g.leaders[m.Term]; ok && l.replica != m.FromReplica {
			w.fail("S1", "node %d sends appends of shard %d in term %d, which node %d leads", n.id, g.id, m.Term, l.node+1)
		}
	}
}

// fortified checks the promise in m's epoch.
func (o *oracle) fortified(n *node, m *raft.Msg, d *groupShadow) {
	if m.Epoch == 0 || d.hard.Term > m.Term {
		return
	}
	// A later promise to the same leader may have become durable meanwhile.
	if h := &d.hard; h.Term != m.Term || h.Lead != m.ToReplica || h.LeadEpoch < m.Epoch {
		o.w.fail("S6", "node %d promises epoch %d.%d to replica %d of shard %d in term %d, durable is %+v", n.id, m.Epoch>>32, uint32(m.Epoch), m.ToReplica, m.Shard, m.Term, *h)
	}
}

// checkViews holds what a loop publishes against what is known: S5.
func (n *node) checkViews(loop int) {
	w := n.w
	if n.died.Load() != nil {
		return // it has something else to say
	}
	for _, g := range w.orc.order {
		id := g.id
		if n.shadow.visible[id] == nil || n.st.LoopOf(id) != loop {
			continue
		}
		v, ok := n.host.View(id)
		if !ok {
			continue
		}
		if v.Commit > v.Last || v.Applied > v.Commit {
			w.fail("S5", "node %d shard %d: applied %d, commit %d, last %d", n.id, id, v.Applied, v.Commit, v.Last)
		}
		if v.Applied > g.last() {
			w.fail("S5", "node %d shard %d: applied %d, committed anywhere is %d", n.id, id, v.Applied, g.last())
		}
		if v.Fenced != nil && !w.stray.excuses(id, v.Fenced) {
			w.fail("S4", "node %d shard %d is fenced: %v", n.id, id, v.Fenced)
		}
	}
}

// booted checks the applied side of a disk: S5, S8, S20.
func (o *oracle) booted(n *node, st *raft.State) {
	g := o.groups[st.Desc.Shard]
	if st.Applied.Applied > g.last() {
		o.w.fail("S5", "node %d shard %d: the disk is applied through %d, committed anywhere is %d", n.id, g.id, st.Applied.Applied, g.last())
	}
	for _, at := range []entryKey{{st.Applied.Applied, st.Applied.AppliedTerm}, {st.Applied.TruncIndex, st.Applied.TruncTerm}} {
		if at.index > 0 && g.log[at.index-1].term != at.term {
			o.w.fail("S8", "node %d shard %d: the disk says that entry %d has term %d, it has term %d", n.id, g.id, at.index, at.term, g.log[at.index-1].term)
		}
	}
	if want := g.at(st.Applied.Applied); string(want.Encode(nil)) != string(st.Desc.Encode(nil)) {
		o.w.fail("S10", "node %d shard %d: applied through %d, the descriptor is %+v, by the log %+v", n.id, g.id, st.Applied.Applied, st.Desc, *want)
	}
	o.content(n, g, st.Applied.Applied)
}

// noteChange remembers a configuration change that is in somebody's log.
func (o *oracle) noteChange(g *group, k entryKey, e raft.Entry) {
	if e.Type != raft.EntryConf {
		return
	}
	dec, err := raft.DecodeEntry(e.Index, e.Value)
	if err != nil {
		return
	}
	for _, c := range dec.Commands() {
		if cc, err := raft.DecodeConfChange(c.Body); err == nil {
			g.changes[k] = cc
		}
	}
}

// installed checks a snapshot that has just replaced a replica: S17.
func (o *oracle) installed(n *node, st *raft.State, keepLog bool) {
	g := o.groups[st.Desc.Shard]
	a := &st.Applied
	if a.Applied == 0 || a.Applied > g.last() || g.log[a.Applied-1].term != a.AppliedTerm {
		o.w.fail("S17", "node %d shard %d: a snapshot of index %d, term %d; committed through %d", n.id, g.id, a.Applied, a.AppliedTerm, g.last())
	}
	if !keepLog && (st.Last != a.Applied || a.TruncIndex != a.Applied) {
		o.w.fail("S17", "node %d shard %d: after the snapshot of %d the log is (%d, %d]", n.id, g.id, a.Applied, a.TruncIndex, st.Last)
	}
	if want := g.at(a.Applied); string(want.Encode(nil)) != string(st.Desc.Encode(nil)) {
		o.w.fail("S17", "node %d shard %d: a snapshot of %d with the descriptor %+v, by the log %+v", n.id, g.id, a.Applied, st.Desc, *want)
	}
	o.content(n, g, a.Applied)
}

// content compares what a node's disk holds of a shard with the model after
// entry i.
func (o *oracle) content(n *node, g *group, i raft.Index) {
	want := uint64(0)
	if i > 0 {
		want = g.log[i-1].sum
	}
	d := &g.desc
	sum, keys, err := digest(n.eng, d)
	if err != nil && n.died.Load() != nil && n.faulty {
		return // it has stopped, which is checked elsewhere
	}
	if err != nil {
		o.w.fail("F1", "node %d shard %d: %v", n.id, g.id, err)
	}
	if o.w.custom != nil { // without a model, replicas are held against each other
		if known, ok := g.sums[i]; !ok {
			g.sums[i] = sum
			return
		} else if known != sum {
			o.w.fail("S20", "node %d shard %d: applied through %d, and the keys differ from those of another replica that is", n.id, g.id, i)
		}
		return
	}
	if sum != want && !o.w.stray.shows(n, g.id, sum-want) {
		o.w.fail("S8", "node %d shard %d: the disk is applied through %d and holds something else than the log up to there (%d keys)", n.id, g.id, i, keys)
	}
}

// answered notes what became of a proposal: S9, and S16 at the end.
func (o *oracle) answered(n *node, s raft.ShardID, cmd *raft.Command, data []byte, index raft.Index, slot uint32, err error) {
	w, g := o.w, o.groups[s]
	if err != nil {
		w.log(n.idx, "denied", uint64(s), b2u(errors.Is(err, multiraft.ErrAmbiguous)))
		if !errors.Is(err, multiraft.ErrAmbiguous) {
			o.refused[commandHash(s, cmd)] = err
		}
		return
	}
	w.log(n.idx, "answer", uint64(s)<<40|uint64(index), uint64(slot)<<32|uint64(len(data)))
	if index == 0 || index > g.last() {
		w.fail("S9", "node %d acknowledges entry %d of shard %d, committed through %d", n.id, index, s, g.last())
	}
	c := &g.log[index-1]
	e, derr := raft.DecodeEntry(index, c.value)
	if derr != nil {
		w.fail("S4", "entry %d of shard %d: %v", index, s, derr)
	}
	for i, have := range e.Commands() {
		if i != int(slot) {
			continue
		}
		if have.Op != cmd.Op || string(have.Body) != string(cmd.Body) {
			w.fail("S9", "node %d gives a client the answer of another command: entry %d slot %d of shard %d", n.id, index, slot, s)
		}
		want := []byte(nil)
		if i < len(c.results) {
			want = c.results[i]
		}
		if string(want) != string(data) && w.custom == nil {
			w.fail("S9", "node %d answers %x for entry %d slot %d of shard %d, the log says %x", n.id, data, index, slot, s, want)
		}
		g.acked = max(g.acked, index)
		return
	}
	w.fail("S9", "node %d acknowledges slot %d of entry %d of shard %d, which has none", n.id, slot, index, s)
}

// proposed notes that a command goes out; one that goes out twice cannot be told apart.
func (o *oracle) proposed(s raft.ShardID, cmd *raft.Command) {
	h := commandHash(s, cmd)
	if o.sent[h] {
		o.twice[h] = true
	}
	o.sent[h] = true
}

func commandHash(s raft.ShardID, cmd *raft.Command) uint64 {
	return mix(uint64(s), hashBytes(cmd.Body)^uint64(cmd.Op))
}

// audit finds commands that were refused for certain and took effect: S16.
func (o *oracle) audit() {
	for _, g := range o.order {
		for i := range g.log {
			e, err := raft.DecodeEntry(raft.Index(i+1), g.log[i].value)
			if err != nil || e.Type != raft.EntryNormal {
				continue
			}
			for k, c := range e.Commands() {
				h := commandHash(g.id, &c)
				if why, bad := o.refused[h]; bad && !o.twice[h] {
					o.w.fail("S16", "a command was refused (%v) and is entry %d slot %d of shard %d", why, i+1, k, g.id)
				}
			}
		}
	}
}
