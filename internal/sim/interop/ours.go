package interop

import (
	"fmt"
	"slices"
	"time"

	"github.com/flotillakv/flotilla/multiraft/raft"
)

// image is what a store of ours holds.
type image struct {
	hard      raft.HardState
	ents      []raft.Entry // (trunc, last]
	trunc     raft.Index
	truncTerm raft.Term
	applied   raft.Index
	appTerm   raft.Term
	st        state
}

func (im *image) clone() image {
	c := *im
	c.ents = slices.Clone(im.ents)
	return c
}

func (im *image) last() raft.Index { return im.trunc + raft.Index(len(im.ents)) }

func (im *image) load() raft.State {
	s := raft.State{
		Hard: im.hard, Desc: im.st.desc, Last: im.last(),
		Applied: raft.AppliedState{
			Applied: im.applied, AppliedTerm: im.appTerm, TruncIndex: im.trunc, TruncTerm: im.truncTerm, ConfIndex: im.st.confIndex,
		},
	}
	for i := range im.ents {
		e := &im.ents[i]
		if n := len(s.Runs); n == 0 || s.Runs[n-1].Term != e.Term {
			s.Runs = append(s.Runs, raft.TermRun{First: e.Index, Term: e.Term})
		}
		if e.Index > im.applied {
			s.Tail = append(s.Tail, *e)
		}
	}
	return s
}

// pending is a batch that is visible and not yet durable.
type pending struct {
	image image
	marks []raft.LogMark
	held  []raft.Msg
}

// ours is a member that runs Flotilla's core.
type ours struct {
	w       *world
	n       *node
	id      raft.ReplicaID
	core    *raft.Core
	out     raft.Out
	durable image
	visible image
	syncs   []pending
	life    uint64 // number of starts; events of older ones are void
	alarmAt int64
	lead    bool
	busy    bool // a snapshot is being sent
}

func newOurs(w *world, n *node, id raft.ReplicaID, first *snapshot) *ours {
	m := &ours{w: w, n: n, id: id}
	m.durable = image{trunc: first.index, truncTerm: first.term, applied: first.index, appTerm: first.term, st: first.state}
	m.durable.hard = raft.HardState{Term: first.term, Commit: first.index}
	m.boot()
	return m
}

func (m *ours) boot() {
	m.life++
	m.visible, m.syncs = m.durable.clone(), nil
	m.out, m.lead, m.alarmAt = raft.Out{}, false, 0
	var err error
	m.core, err = raft.NewCore(raft.Config{
		Node: m.n.id, Replica: m.id, Liveness: m.n, Rand: m.w.rng.Uint64(),
		Tuning: raft.Tuning{
			MaxMsgBytes: 4 << 10, InflightMsgs: 16, TailBytes: 2 << 10,
			LogKeepEntries: m.w.keep, IdleTruncate: 300 * time.Millisecond, SnapshotTimeout: 3 * time.Second,
		},
	}, m.durable.load(), m.now())
	m.w.must(err)
	m.round(nil)
}

func (m *ours) now() raft.Time { return raft.Time(m.w.now) }

func (m *ours) replica() raft.ReplicaID { return m.id }

func (m *ours) descriptor() *raft.Descriptor { return &m.visible.st.desc }

func (m *ours) crash() { m.core = nil; m.life++ }

func (m *ours) appliedAt() raft.Index { return m.visible.applied }

func (m *ours) leads() bool { return m.core.Status().Role == raft.RoleLeader }

func (m *ours) tick() {}

func (m *ours) alarm() {
	if now := m.now(); m.core.Deadline() <= now {
		m.round(func(o *raft.Out) { m.core.Tick(now, o) })
		return
	}
	m.arm()
}

func (m *ours) livenessChanged(n raft.NodeID) {
	m.round(func(o *raft.Out) { m.core.LivenessChanged(m.now(), n, o) })
}

// beats makes the heartbeats that members of theirs expect of a leader out of
// the heartbeats between the nodes.
func (m *ours) beats() {
	if !m.leads() {
		return
	}
	for _, r := range m.visible.st.desc.Replicas {
		if m.w.kindOf(r.Node) == kindTheirs {
			m.w.send(&packet{from: m.n.id, to: r.Node, ours: &raft.Msg{
				Type: raft.MsgCommit, Shard: group, From: m.n.id, To: r.Node, FromReplica: m.id, ToReplica: r.ID, Term: m.core.Status().Term,
			}})
		}
	}
}

func (m *ours) deliver(p *packet) {
	switch {
	case p.snap != nil:
		m.install(p)
	case p.ours != nil:
		m.round(func(o *raft.Out) { m.core.Step(m.now(), p.ours, o) })
	case p.theirs != nil:
		msg, err := toOurs(p.theirs, p.from, p.to)
		if err != nil {
			m.w.fail("a message of replica %d: %v", p.theirs.GetFrom(), err)
		}
		if msg != nil {
			m.round(func(o *raft.Out) { m.core.Step(m.now(), msg, o) })
		}
	}
}

// install takes a snapshot over, durably, as one step.
func (m *ours) install(p *packet) {
	s := p.snap
	if s.to != m.id {
		return
	}
	// Who sends a snapshot leads that term.
	lead := &raft.Msg{Type: raft.MsgCommit, Shard: group, From: p.from, To: p.to, FromReplica: s.from, ToReplica: m.id, Term: s.sender}
	m.round(func(o *raft.Out) { m.core.Step(m.now(), lead, o) })
	if !m.core.WantsSnapshot(s.index, s.term) {
		return
	}
	for len(m.syncs) > 0 {
		m.synced()
	}
	im := image{trunc: s.index, truncTerm: s.term, applied: s.index, appTerm: s.term, st: s.state, hard: m.visible.hard}
	im.hard.Term, im.hard.Commit = max(im.hard.Term, s.term), s.index
	m.visible, m.durable = im, im.clone()
	m.w.res.Snaps++
	m.w.orc.state(m.w, m.id, s.index, &im.st)
	m.round(func(o *raft.Out) { m.core.Restore(m.now(), im.load(), o) })
}

func (m *ours) propose(body []byte) bool {
	ok := false
	m.round(func(o *raft.Out) {
		_, err := m.core.Propose(m.now(), raft.EntryHeader{}, []raft.Command{{Op: 1, Body: body}}, o)
		ok = err == nil
	})
	return ok
}

func (m *ours) change(cc raft.ConfChange) bool {
	ok := false
	m.round(func(o *raft.Out) {
		_, err := m.core.ProposeConf(m.now(), cc, raft.EntryHeader{}, o)
		ok = err == nil
	})
	return ok
}

func (m *ours) transfer(to raft.ReplicaID) {
	m.round(func(o *raft.Out) { _ = m.core.Transfer(m.now(), to, o) })
}

func (m *ours) read(ctx uint64) {
	m.round(func(o *raft.Out) { m.core.ReadIndex(m.now(), ctx, o) })
}

func (m *ours) snapshotSent(to raft.ReplicaID, index raft.Index, term raft.Term, ok bool) {
	m.busy = false
	m.round(func(o *raft.Out) { m.core.SnapshotSent(m.now(), to, index, term, ok, o) })
}

// round steps the core and carries out what comes of it.
func (m *ours) round(f func(o *raft.Out)) {
	o := &m.out
	if f != nil {
		f(o)
	}
	m.core.Flush(m.now(), o)
	im := &m.visible
	for i := 0; i < len(o.Applies); i++ {
		for _, e := range o.Applies[i].Entries {
			m.apply(e, o)
		}
		m.core.Flush(m.now(), o)
	}
	for i := 0; i < len(o.Fetches); i++ {
		m.fetch(o.Fetches[i], o)
		m.core.Flush(m.now(), o)
	}
	p := pending{held: slices.Clone(o.Held)}
	for _, t := range o.HardStates {
		im.hard = t.State
		p.marks = append(p.marks, raft.LogMark{Term: t.State.Term})
	}
	for _, t := range o.Appends {
		im.ents = append(im.ents[:t.Entries[0].Index-im.trunc-1:t.Entries[0].Index-im.trunc-1], t.Entries...)
		p.marks = append(p.marks, t.Mark)
	}
	for _, t := range o.Truncates {
		if t.Index > im.trunc && t.Index <= im.applied {
			im.ents = slices.Clone(im.ents[t.Index-im.trunc:])
			im.trunc, im.truncTerm = t.Index, t.Term
			m.core.Truncated(t.Index, t.Term)
		}
	}
	for _, r := range o.Reads {
		if r.Err == nil {
			m.w.orc.answered(m.w, r.Context, r.Index)
		}
	}
	for _, r := range o.Roles {
		if r.IsLeader && !m.lead {
			m.w.orc.leader(m.w, r.Term, m.id, "ours")
			m.w.res.OurTerms++
		}
		m.lead = r.IsLeader
	}
	for i := range o.Msgs {
		m.sendOne(&o.Msgs[i])
	}
	for _, t := range o.Snapshots {
		if to, ok := im.st.desc.Replica(t.ToReplica); ok {
			m.w.sendSnapshot(m.n, &snapshot{
				from: m.id, to: to.ID, sender: m.core.Status().Term, index: im.applied, term: im.appTerm, state: im.st,
			})
		}
	}
	o.Reset()
	if len(p.marks) > 0 {
		p.image = im.clone()
		m.syncs = append(m.syncs, p)
		life := m.life
		m.w.after(m.w.syncTime(), func() {
			if m.life == life && len(m.syncs) > 0 {
				m.synced()
			}
		})
	} else if len(p.held) > 0 {
		if n := len(m.syncs); n > 0 { // they rest on what is in flight
			m.syncs[n-1].held = append(m.syncs[n-1].held, p.held...)
		} else {
			m.sendHeld(p.held)
		}
	}
	m.arm()
}

// synced makes the oldest batch durable.
func (m *ours) synced() {
	p := m.syncs[0]
	m.syncs = m.syncs[1:]
	m.durable = p.image
	m.sendHeld(p.held)
	m.round(func(o *raft.Out) {
		for _, k := range p.marks {
			m.core.Appended(m.now(), k, o)
		}
	})
}

func (m *ours) sendHeld(held []raft.Msg) {
	for i := range held {
		if m.core.StillHolds(&held[i]) {
			m.sendOne(&held[i])
		}
	}
}

func (m *ours) sendOne(msg *raft.Msg) {
	switch msg.Type {
	case raft.MsgFortify:
		return // mixed groups make no promises
	case raft.MsgVote:
		m.w.orc.vote(m.w, m.id, msg.Term, m.id)
	case raft.MsgVoteResp:
		if !msg.Reject() {
			m.w.orc.vote(m.w, m.id, msg.Term, msg.ToReplica)
		}
	}
	c := *msg
	c.Flags &^= raft.FlagFortify
	c.Entries = slices.Clone(msg.Entries)
	m.w.send(&packet{from: m.n.id, to: msg.To, ours: &c})
}

func (m *ours) apply(e raft.Entry, o *raft.Out) {
	im := &m.visible
	if e.Index != im.applied+1 {
		m.w.fail("replica %d applies %d after %d", m.id, e.Index, im.applied)
	}
	m.w.orc.apply(m.w, m.id, &im.st, e)
	im.applied, im.appTerm = e.Index, e.Term
	if e.Type == raft.EntryConf {
		m.core.ConfApplied(m.now(), im.st.desc, e.Index, o)
	}
	m.core.Applied(e.Index, e.Term, len(e.Value), o)
}

func (m *ours) fetch(t raft.FetchTask, o *raft.Out) {
	im := &m.visible
	if t.Next <= im.trunc {
		m.core.Fetched(m.now(), t.To, 0, nil, raft.ErrCompacted, o)
		return
	}
	lo, hi := t.Next-im.trunc-1, min(t.Last, im.last())-im.trunc
	prev := im.truncTerm
	if lo > 0 {
		prev = im.ents[lo-1].Term
	}
	if hi > lo+8 {
		hi = lo + 8
	}
	if lo >= hi {
		m.core.Fetched(m.now(), t.To, 0, nil, raft.ErrCompacted, o)
		return
	}
	m.core.Fetched(m.now(), t.To, prev, slices.Clone(im.ents[lo:hi]), nil, o)
}

// arm sets the alarm for the core's deadline.
func (m *ours) arm() {
	d := m.core.Deadline()
	if d == raft.Never {
		return
	}
	at := max(int64(d), m.w.now+1)
	if m.alarmAt > m.w.now && m.alarmAt <= at {
		return
	}
	m.alarmAt = at
	life := m.life
	m.w.at(at, func() {
		if m.life == life && m.core != nil && m.alarmAt == at {
			m.alarmAt = 0
			m.alarm()
		}
	})
}

func (m *ours) describe() string {
	s := m.core.Status()
	return fmt.Sprintf("ours %v term %d lead %d commit %d applied %d last %d", s.Role, s.Term, s.Lead, s.Commit, s.Applied, s.Last)
}
