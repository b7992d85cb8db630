package multiraft

import (
	"testing"
	"time"

	"github.com/flotillakv/flotilla/engine"
	"github.com/flotillakv/flotilla/multiraft/raft"
)

// rig is node 1 of group 7 with voters on nodes 1, 2 and 3, whose loop and syncer
// the test turns by hand.
type rig struct {
	t       *testing.T
	h       *Host
	l       *loop
	e       *engine.Engine
	now     raft.Time
	sent    []raft.Msg
	applied []string
	times   []uint64 // the group's time at each of them
	fail    error    // what the state machine says to "poison"
	fatal   chan error
	until   raft.Time   // of everybody's support
	unsound bool        // the clock may not be used for leases
	deaf    bool        // no other node is heard
	dead    raft.NodeID // this one is not heard
	silent  raft.NodeID // this one promises nothing
	ahead   time.Duration
	onSend  func(m *raft.Msg)
}

func (r *rig) Send(_ raft.NodeID, m []raft.Msg) {
	for i := range m {
		if r.onSend != nil {
			r.onSend(&m[i])
		}
	}
	r.sent = append(r.sent, m...)
}
func (r *rig) LeaseArm() int64                             { return 0 }
func (r *rig) LeaseNow(int64) (raft.Time, bool)            { return r.now.Add(r.ahead), !r.unsound }
func (r *rig) Now() raft.Time                              { return r.now }
func (r *rig) Wall() uint64                                { return uint64(r.now) }
func (r *rig) SupportFor(n raft.NodeID) (raft.Epoch, bool) { return 1 << 32, !r.deaf && n != r.dead }
func (r *rig) SupportFrom(n raft.NodeID) (raft.Epoch, raft.Time) {
	if n == r.silent {
		return 0, 0
	}
	return 1 << 32, r.until
}

func (r *rig) Apply(_ *engine.Batch, a *ApplyContext) error {
	for i, c := range a.Entry.Commands() {
		if string(c.Body) == "poison" {
			return r.fail
		}
		r.applied = append(r.applied, string(c.Body))
		r.times = append(r.times, a.GroupTime())
		if a.Results != nil {
			a.Results[i] = c.Body
		}
	}
	return nil
}

func rigDesc() raft.Descriptor {
	return raft.Descriptor{Shard: 7, Keyspace: 1, Version: 1, ConfVer: 1, NextReplica: 4, Replicas: []raft.Replica{
		{Node: 1, ID: 1, Role: raft.Voter}, {Node: 2, ID: 2, Role: raft.Voter}, {Node: 3, ID: 3, Role: raft.Voter}}}
}

func newRig(t *testing.T) *rig { return newRigWith(t, false) }

func newRigWith(t *testing.T, leases bool) *rig {
	r := &rig{t: t, now: raft.Time(time.Hour), fatal: make(chan error, 1), until: 1 << 61}
	var err error
	r.e, err = engine.Open(engine.Options{Dir: "s", FS: engine.NewMemFS(), Create: true, NoDiskWatch: true, Node: 1, CacheBytes: 1 << 20, MemTableBytes: 16 << 20,
		OnFatal: func(error) {}})
	if err != nil {
		t.Fatal(err)
	}
	r.h, err = New(Config{
		Node: 1, Engine: r.e, Net: r, Liveness: r, Clock: r, Machine: r, Loops: 1, Seed: 1, Leases: leases, StateEvery: -1,
		OnFatal: func(err error) { r.fatal <- err },
	})
	if err != nil {
		t.Fatal(err)
	}
	if err := r.h.CreateGroups([]raft.Descriptor{rigDesc()}); err != nil {
		t.Fatal(err)
	}
	r.l = r.h.loops[0]
	r.turn()
	t.Cleanup(func() { r.h.Close(); r.e.Close() })
	return r
}

// turn runs the loop until it rests and everything is durable.
func (r *rig) turn() {
	r.t.Helper()
	for range 100 {
		r.now += 1000
		did := r.l.step(r.now)
		if r.l.inFlight > 0 {
			r.l.syncer.step()
			continue
		}
		if !did || r.l.failed {
			return
		}
	}
	r.t.Fatal("the loop does not rest")
}

func (r *rig) in(m raft.Msg) {
	r.t.Helper()
	m.Shard, m.To, m.ToReplica, m.FromReplica = 7, 1, 1, raft.ReplicaID(m.From)
	r.l.in.putMsgs([]raft.Msg{m})
	r.turn()
}

func (r *rig) rep() *replica { return r.l.byID[7] }

// on runs f on the loop.
func (r *rig) on(f func(now raft.Time)) {
	r.t.Helper()
	r.l.in.put(func(it *items) {
		it.funcs = append(it.funcs, func(now raft.Time) { r.l.touch(r.rep()); f(now) })
	})
	r.turn()
}

// lead makes node 1 the leader of the next term, by the vote of one other node.
func (r *rig) lead(voter raft.NodeID) {
	r.t.Helper()
	term := r.rep().core.Status().Term + 1
	r.on(func(now raft.Time) { r.rep().core.Campaign(now, &r.l.out) })
	r.in(raft.Msg{Type: raft.MsgPreVoteResp, From: voter, Term: term})
	r.in(raft.Msg{Type: raft.MsgVoteResp, From: voter, Term: term})
	if s := r.rep().core.Status(); s.Role != raft.RoleLeader || s.Term != term {
		r.t.Fatalf("not leader of %d: %+v", term, s)
	}
}

// ack lets a follower acknowledge everything.
func (r *rig) ack(from raft.NodeID) {
	r.t.Helper()
	s := r.rep().core.Status()
	r.in(raft.Msg{Type: raft.MsgAppResp, From: from, Term: s.Term, Index: s.Last})
}

// outcome is what a proposer or a reader was told, and how often.
type outcome struct {
	n   int
	err error
}

func (r *rig) propose(body string) *outcome {
	r.t.Helper()
	o := r.proposeOnly(body)
	r.turn()
	return o
}

func (r *rig) proposeOnly(body string) *outcome {
	o := &outcome{}
	r.h.Propose(7, raft.Command{Op: 1, Body: []byte(body)}, func(_ []byte, _ raft.Index, _ uint32, err error) { o.n++; o.err = err })
	return o
}

func (r *rig) read() *outcome {
	o := &outcome{}
	r.h.ReadIndex(7, func(_ raft.Index, err error) { o.n++; o.err = err })
	return o
}

// follow takes in entries from the leader of term 1 on node 2, all committed.
func (r *rig) follow(after raft.Index, ents ...raft.Entry) {
	r.t.Helper()
	prev := raft.Term(0)
	if after > 0 {
		prev = 1
	}
	r.in(raft.Msg{Type: raft.MsgApp, From: 2, Term: 1, Index: after, LogTerm: prev, Entries: ents})
	r.in(raft.Msg{Type: raft.MsgCommit, From: 2, Term: 1, Commit: after + raft.Index(len(ents))})
}

func rigEntry(i raft.Index, typ raft.EntryType, body string) raft.Entry {
	var cmds []raft.Command
	if typ != raft.EntryEmpty {
		cmds = []raft.Command{{Op: 1, Body: []byte(body)}}
	}
	return raft.Entry{Index: i, Term: 1, Type: typ, Value: raft.EncodeEntry(nil, i, 1, typ, raft.EntryHeader{}, cmds)}
}
