package raft

import (
	"slices"
	"testing"
)

// terms builds the log of a replica from the terms of its entries 1, 2, ...
func terms(ts ...Term) []Entry {
	var out []Entry
	for i, t := range ts {
		idx := Index(i + 1)
		out = append(out, Entry{Index: idx, Term: t, Type: EntryEmpty, Value: EncodeEntry(nil, idx, t, EntryEmpty, EntryHeader{}, nil)})
	}
	return out
}

func stateOf(desc Descriptor, hs HardState, log []Entry) State {
	st := State{Desc: desc, Hard: hs, Tail: log}
	for _, e := range log {
		if k := len(st.Runs); k == 0 || st.Runs[k-1].Term != e.Term {
			st.Runs = append(st.Runs, TermRun{First: e.Index, Term: e.Term})
		}
		st.Last = e.Index
		st.Hard.Term = max(st.Hard.Term, e.Term)
	}
	return st
}

// rig is one core under test with an owner that syncs when told. Node 1 is the
// core; the test plays the other nodes.
type rig struct {
	t    testing.TB
	c    *Core
	live *fakeLive
	now  Time
	o    Out
	msgs []Msg // everything sent since the last take, held ones after the sync
	hard HardState
	done []Entry // applied
}

func newRig(t testing.TB, st State) *rig {
	t.Helper()
	r := &rig{t: t, live: &fakeLive{down: map[NodeID]bool{}}, now: 1e9, hard: st.Hard}
	c, err := NewCore(Config{Node: 1, Liveness: r.live, Rand: 1}, st, r.now)
	if err != nil {
		t.Fatal(err)
	}
	r.c = c
	return r
}

// do runs one round; without sync its writes stay volatile and its promises unsent.
func (r *rig) do(sync bool, f func(o *Out)) {
	r.t.Helper()
	f(&r.o)
	r.c.Flush(r.now, &r.o)
	r.msgs = append(r.msgs, r.o.Msgs...)
	for i := 0; i < len(r.o.Applies); i++ {
		for _, e := range r.o.Applies[i].Entries {
			r.done = append(r.done, e)
			r.c.Applied(e.Index, e.Term, len(e.Value), &r.o)
		}
	}
	if !sync {
		r.o.Reset()
		return
	}
	held, marks := slices.Clone(r.o.Held), []LogMark{}
	for _, h := range r.o.HardStates {
		r.hard = h.State
		marks = append(marks, LogMark{Term: h.State.Term})
	}
	for _, a := range r.o.Appends {
		marks = append(marks, a.Mark)
	}
	r.o.Reset()
	r.msgs = append(r.msgs, held...)
	if len(marks) > 0 {
		r.do(true, func(o *Out) {
			for _, m := range marks {
				r.c.Appended(r.now, m, o)
			}
		})
	}
}

// step delivers a message from node m.From (replica ids equal node ids).
func (r *rig) step(m Msg) []Msg {
	r.t.Helper()
	m.Shard, m.To, m.ToReplica, m.FromReplica = 7, 1, 1, ReplicaID(m.From)
	r.do(true, func(o *Out) { r.c.Step(r.now, &m, o) })
	return r.take()
}

func (r *rig) take() []Msg {
	ms := r.msgs
	r.msgs = nil
	return ms
}

// lead makes the core the leader of the next term with everybody's votes.
func (r *rig) lead() []Msg {
	r.t.Helper()
	r.do(true, func(o *Out) { r.c.Campaign(r.now, o) })
	for _, kind := range []MsgType{MsgPreVoteResp, MsgVoteResp} {
		for _, p := range r.c.desc.Replicas {
			if p.Node == 1 || !p.Role.IsVoter() || r.c.role == RoleLeader {
				continue
			}
			term := r.c.hs.Term
			if kind == MsgPreVoteResp {
				if r.c.role != RolePreCandidate {
					continue
				}
				term++
			}
			ms := r.msgs
			r.msgs = append(ms, r.step(Msg{Type: kind, From: p.Node, Term: term})...)
		}
	}
	if r.c.role != RoleLeader {
		r.t.Fatalf("not elected: %+v", r.c.Status())
	}
	return r.take()
}

func (r *rig) logTerms() []Term {
	var ts []Term
	for _, e := range r.c.log.ents {
		ts = append(ts, e.Term)
	}
	return ts
}

func find(ms []Msg, typ MsgType, to NodeID) *Msg {
	for i := range ms {
		if ms[i].Type == typ && ms[i].To == to {
			return &ms[i]
		}
	}
	return nil
}

func (r *rig) want(ms []Msg, typ MsgType, to NodeID) Msg {
	r.t.Helper()
	m := find(ms, typ, to)
	if m == nil {
		r.t.Fatalf("no message of type %d to node %d in %+v", typ, to, ms)
	}
	return *m
}
