package rafttest

import (
	"fmt"
	"slices"
	"strings"

	"github.com/flotillakv/flotilla/multiraft/raft"
)

func (s *store) clone() store {
	n := *s
	n.desc = s.desc.Clone()
	n.ents = slices.Clone(s.ents)
	n.data = slices.Clone(s.data)
	return n
}

func (s *store) last() raft.Index { return s.as.TruncIndex + raft.Index(len(s.ents)) }

func (s *store) term(i raft.Index) (raft.Term, bool) {
	switch {
	case i == s.as.TruncIndex:
		return s.as.TruncTerm, true
	case i < s.as.TruncIndex || i > s.last():
		return 0, false
	}
	return s.ents[i-s.as.TruncIndex-1].Term, true
}

func (s *store) state() raft.State {
	st := raft.State{Hard: s.hard, Applied: s.as, Desc: s.desc.Clone(), Last: s.last(), Tail: slices.Clone(s.ents)}
	for _, e := range s.ents {
		if k := len(st.Runs); k == 0 || st.Runs[k-1].Term != e.Term {
			st.Runs = append(st.Runs, raft.TermRun{First: e.Index, Term: e.Term})
		}
	}
	return st
}

// log draws the log: cut part, then index/term:command.
func (s *store) log() string {
	var b strings.Builder
	if s.as.TruncIndex > 0 {
		fmt.Fprintf(&b, "..%d/%d] ", s.as.TruncIndex, s.as.TruncTerm)
	}
	for _, e := range s.ents {
		fmt.Fprintf(&b, "%d/%d:%s ", e.Index, e.Term, body(e))
	}
	return strings.TrimSpace(b.String())
}

func body(e raft.Entry) string {
	switch e.Type {
	case raft.EntryEmpty:
		return "-"
	case raft.EntryConf:
		return "conf"
	case raft.EntryCut:
		return "cut"
	}
	for _, c := range e.Commands() {
		return string(c.Body)
	}
	return "?"
}

func (n *node) config() raft.Config {
	return raft.Config{Node: n.id, Replica: n.replica, Liveness: liveness{n.env, int(n.id - 1)}, Rand: uint64(n.id), Tuning: n.env.tun}
}

// sleep puts the core away, if it has nothing to do.
func (n *node) sleep() {
	if n.core == nil || n.nap != nil || len(n.pending) > 0 {
		return
	}
	if nap, ok := n.core.Nap(nil); ok && !nap.Lost { // nobody here knows whether a majority is alive
		n.rounds, n.asked = max(n.rounds, nap.Round), max(n.asked, nap.Asked)
		n.nap = &nap
		n.env.naps++
		n.env.traffic("%d naps", n.id)
	}
}

// wake makes the core anew.
func (n *node) wake(o *raft.Out) {
	if n.nap == nil {
		return
	}
	nap := *n.nap
	n.nap = nil
	nap.Round, nap.Asked = n.rounds, n.asked
	c, err := raft.WakeCore(n.config(), n.durable.state(), &nap, n.env.now, o)
	if err != nil {
		n.env.printf("error: %v", err)
		return
	}
	n.core = c
	n.env.traffic("%d wakes", n.id)
}

func (n *node) start() error {
	r, ok := n.durable.desc.ReplicaOn(n.id)
	if !n.durable.has || !ok {
		return nil
	}
	n.replica = r.ID
	var err error
	n.core, err = raft.NewCore(n.config(), n.durable.state(), n.env.now)
	if err == nil {
		n.round(func(*raft.Core, *raft.Out) {})
	}
	return err
}

// crash loses what was not synced.
func (n *node) crash() {
	n.core, n.nap, n.down, n.pending = nil, nil, true, nil
	n.visible = n.durable.clone()
	n.lead = ""
}

// restart brings the process back with a new boot epoch. Supporters take the
// new epoch over; the node's own promises stand until they lapse.
func (n *node) restart() error {
	e := n.env
	n.down = false
	i := int(n.id - 1)
	e.epoch[i] = (e.epoch[i]>>32+1)<<32 | 1
	for j := range e.nodes {
		if j != i && !e.cut[i][j] && !e.nodes[j].down {
			e.sup[j][i] = e.epoch[i]
		}
		if j == i {
			e.sup[i][i] = e.epoch[i]
		}
	}
	if err := n.start(); err != nil {
		return err
	}
	for _, p := range e.nodes {
		if p != n {
			p.livenessChanged(n.id)
			if p.nap == nil {
				p.round(func(c *raft.Core, o *raft.Out) { c.PeerReset(e.now, n.id, o) })
			}
		}
	}
	return nil
}

// write puts an operation into the round's batch.
func (n *node) write(op func(*store)) {
	op(&n.visible)
	n.ops = append(n.ops, op)
}

// round hands an input to the core and carries out what comes of it, in the
// order that package raft asks for.
func (n *node) round(in func(*raft.Core, *raft.Out)) {
	if n.core == nil {
		return
	}
	e := n.env
	var o raft.Out
	n.wake(&o)
	in(n.core, &o)
	n.core.Flush(e.now, &o)
	n.ops = nil
	for _, r := range o.Roles {
		n.tellRole(r)
	}
	for _, m := range o.Msgs {
		e.send(m)
	}
	for _, t := range o.HardStates {
		n.write(func(s *store) { s.hard = t.State })
	}
	for _, t := range o.Appends {
		n.write(func(s *store) {
			s.ents = append(s.ents[:t.Entries[0].Index-s.as.TruncIndex-1:t.Entries[0].Index-s.as.TruncIndex-1], t.Entries...)
		})
		e.traffic("%d appends %s", n.id, formatEntries(t.Entries))
	}
	sync := len(n.ops) > 0
	for _, t := range o.Applies {
		for _, ent := range t.Entries {
			n.apply(ent, &o)
		}
	}
	for _, d := range o.Drops {
		e.printf("%d reports proposals at %d and behind of terms up to %d as lost", n.id, d.Index, d.Term)
	}
	for _, t := range o.Truncates {
		n.write(func(s *store) {
			s.ents = slices.Clone(s.ents[t.Index-s.as.TruncIndex:])
			s.as.TruncIndex, s.as.TruncTerm = t.Index, t.Term
		})
		n.core.Truncated(t.Index, t.Term)
		e.traffic("%d cuts its log through %d/%d", n.id, t.Index, t.Term)
	}
	for _, t := range o.Snapshots {
		s := n.visible.clone()
		s.ents = nil
		s.as.TruncIndex, s.as.TruncTerm = s.as.Applied, s.as.AppliedTerm
		e.traffic("%d sends a snapshot of %d/%d to %d", n.id, s.as.Applied, s.as.AppliedTerm, t.To)
		e.net = append(e.net, packet{m: raft.Msg{From: n.id, To: t.To}, snap: &s, want: t.ToReplica})
	}
	for _, r := range o.Reads {
		if r.Err != nil {
			e.printf("%d answers read %d: %v", n.id, r.Context, r.Err)
		} else {
			e.printf("%d answers read %d: index %d", n.id, r.Context, r.Index)
		}
	}
	b := batch{ops: n.ops}
	if sync {
		for _, t := range o.HardStates {
			b.marks = append(b.marks, raft.LogMark{Term: t.State.Term})
		}
		for _, t := range o.Appends {
			b.marks = append(b.marks, t.Mark)
		}
	}
	b.held = o.Held
	switch {
	case len(b.ops) == 0 && len(b.held) == 0:
	case len(b.ops) == 0 && len(n.pending) == 0:
		for _, m := range b.held {
			e.send(m)
		}
	default:
		n.pending = append(n.pending, b)
	}
	for _, t := range o.Fetches {
		n.fetch(t)
	}
}

func (n *node) fetch(t raft.FetchTask) {
	var ents []raft.Entry
	err := error(raft.ErrCompacted)
	prev, ok := n.visible.term(t.Next - 1)
	if ok && t.Next > n.visible.as.TruncIndex {
		err = nil
		at := t.Next - n.visible.as.TruncIndex - 1
		size := 0
		for _, x := range n.visible.ents[at : t.Last-n.visible.as.TruncIndex] {
			size += len(x.Value)
			if size > t.MaxBytes && len(ents) > 0 {
				break
			}
			ents = append(ents, x)
		}
	}
	n.env.traffic("%d reads %d entries from %d on for replica %d", n.id, len(ents), t.Next, t.To)
	n.round(func(c *raft.Core, o *raft.Out) { c.Fetched(n.env.now, t.To, prev, ents, err, o) })
}

func (n *node) apply(ent raft.Entry, o *raft.Out) {
	e := n.env
	next, changed := n.visible.desc, false
	if ent.Type == raft.EntryConf {
		cc, err := ent.ConfChange()
		if err == nil {
			next, err = n.visible.desc.Apply(cc)
		}
		changed = err == nil
		if err != nil {
			next = n.visible.desc
			e.printf("%d rejects the configuration at %d: %v", n.id, ent.Index, err)
		}
	}
	n.write(func(s *store) {
		s.as.Applied, s.as.AppliedTerm = ent.Index, ent.Term
		if ent.Type == raft.EntryNormal {
			s.data = append(s.data, body(ent))
		}
		if changed {
			s.desc = next.Clone()
			s.as.ConfIndex = ent.Index
		}
	})
	e.traffic("%d applies %d/%d:%s", n.id, ent.Index, ent.Term, body(ent))
	if ent.Type == raft.EntryConf {
		if changed {
			e.printf("%d is in configuration %d: %s", n.id, next.ConfVer, formatConf(&next))
		}
		n.core.ConfApplied(e.now, next, ent.Index, o)
	}
	n.core.Applied(ent.Index, ent.Term, len(ent.Value), o)
}

// sync makes all pending batches durable, in order.
func (n *node) sync() bool {
	if len(n.pending) == 0 {
		return false
	}
	bs := n.pending
	n.pending = nil
	for _, b := range bs {
		for _, op := range b.ops {
			op(&n.durable)
		}
	}
	for _, b := range bs {
		for _, m := range b.held {
			n.env.send(m)
		}
		if len(b.marks) > 0 {
			n.round(func(c *raft.Core, o *raft.Out) {
				for _, m := range b.marks {
					c.Appended(n.env.now, m, o)
				}
			})
		}
	}
	return true
}

// install takes over a snapshot, durably.
func (n *node) install(snap *store, id raft.ReplicaID) {
	n.sync()
	s := snap.clone()
	s.has = true
	s.hard = n.visible.hard
	if n.core != nil {
		s.hard = n.core.HardState()
	}
	s.hard.Term = max(s.hard.Term, s.as.AppliedTerm)
	n.visible, n.durable = s, s.clone()
	n.env.printf("%d installs the snapshot of %d/%d", n.id, s.as.Applied, s.as.AppliedTerm)
	if n.core == nil {
		if err := n.start(); err != nil {
			n.env.printf("error: %v", err)
		}
		return
	}
	n.round(func(c *raft.Core, o *raft.Out) { c.Restore(n.env.now, n.durable.state(), o) })
}

func (n *node) tellRole(r raft.RoleChange) {
	s := fmt.Sprintf("follows %d", r.LeadNode)
	switch {
	case r.IsReady:
		s = "leads and may serve reads"
	case r.IsLeader:
		s = "leads"
	case r.Lead == 0:
		s = "knows no leader"
	}
	s = fmt.Sprintf("%d %s in term %d", n.id, s, r.Term)
	if s != n.lead {
		n.lead = s
		n.env.printf("%s", s)
	}
}

func (n *node) status() string {
	if n.down {
		return fmt.Sprintf("%d: down", n.id)
	}
	if n.core == nil {
		return fmt.Sprintf("%d: no replica", n.id)
	}
	st := n.core.Status()
	role := st.Role.String()
	if st.Learner {
		role = "learner"
	}
	s := fmt.Sprintf("%d: %-13s term %d  lead %d  last %d/%d  commit %d  applied %d", n.id, role, st.Term, st.LeadNode, st.Last, st.LastTerm, st.Commit, st.Applied)
	if st.QuorumLost {
		s += fmt.Sprintf("  no quorum, down %v", st.QuorumDown)
	}
	return s
}
