package multiraft

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"testing"
	"time"

	"github.com/flotillakv/flotilla/engine"
	"github.com/flotillakv/flotilla/multiraft/raft"
)

// scenarios show, each, one thing that membership changes and the end of a
// replica owe to everybody. They return what was wrong, or "". Planted bugs name
// the scenario that finds them (removal_mutants_test.go).
var scenarios = map[string]func(*rig) string{
	"lingers":       lingers,
	"durable first": durableFirst,
	"persisted":     persisted,
	"answers all":   answersAll,
	"stays dead":    staysDead,
	"restart":       removedRestarts,
	"newest counts": newestCounts,
	"one destroyer": oneDestroyer,
	"readded":       readded,
	"installed":     installedConf,
	"told again":    toldAgain,
	"plans":         func(*rig) string { return plans() },
	"lagging":       laggingLearner,
}

func TestMembership(t *testing.T) {
	for name, f := range scenarios {
		t.Run(name, func(t *testing.T) {
			if bad := f(newRig(t)); bad != "" {
				t.Error(bad)
			}
		})
	}
}

// without returns the descriptor of the rig's group without its node 1.
func without() raft.Descriptor {
	d := rigDesc()
	d.ConfVer, d.Replicas = 2, d.Replicas[1:]
	return d
}

// removeSelf lets the rig's replica apply its removal, at index 2.
func (r *rig) removeSelf() {
	r.t.Helper()
	cc := raft.ConfChange{ConfVer: 1, Steps: []raft.ConfStep{{Remove: true, Replica: raft.Replica{Node: 1, ID: 1}}}}
	e := raft.Entry{Index: 2, Term: 1, Type: raft.EntryConf}
	e.Value = raft.EncodeEntry(nil, 2, 1, raft.EntryConf, raft.EntryHeader{}, []raft.Command{{Body: cc.Encode(nil)}})
	r.follow(0, rigEntry(1, raft.EntryEmpty, ""), e)
	if !r.rep().isRemoved() {
		r.t.Fatalf("not removed: %+v", r.rep().desc)
	}
}

// wait lets time pass.
func (r *rig) wait(d time.Duration) {
	r.t.Helper()
	r.now = r.now.Add(d)
	r.turn()
}

// gone gives the rig's replica the answer of a member: it is none, by d.
func (r *rig) gone(from raft.NodeID, d raft.Descriptor) {
	r.t.Helper()
	r.in(raft.Msg{Type: raft.MsgMemberResp, From: from, Term: 1, Entries: []raft.Entry{{Index: 1, Term: 1, Type: raft.EntryAdmin,
		Value: raft.EncodeEntry(nil, 1, 1, raft.EntryAdmin, raft.EntryHeader{}, []raft.Command{{Body: d.Encode(nil)}})}}})
}

func (r *rig) took(typ raft.MsgType) (out []raft.Msg) {
	for _, m := range r.sent {
		if m.Type == typ {
			out = append(out, m)
		}
	}
	r.sent = nil
	return out
}

// destroyed waits until the replica's destruction, which runs aside, is over.
func (r *rig) destroyed() string {
	for range 2000 {
		r.turn()
		if r.l.dying[7] == nil {
			break
		}
		select {
		case <-r.l.in.wake:
		case <-time.After(time.Millisecond):
		}
	}
	if r.l.dying[7] != nil || r.h.table.get(7) != nil {
		return "the replica is still here"
	}
	if _, ok, err := r.e.Load(7); ok || err != nil {
		return fmt.Sprintf("the store still holds the group (%v)", err)
	}
	if low, ok, err := r.e.Tombstone(7); !ok || err != nil {
		return fmt.Sprintf("no tombstone: %d %v %v", low, ok, err)
	}
	if es, err := r.e.Entries(nil, 7, 1, 3, 1<<20); err == nil && len(es) > 0 {
		return "log records are left"
	}
	return ""
}

// A removed replica votes on, asks, and goes when a quorum of those that are left
// has its removal, not before.
func lingers(r *rig) string {
	r.removeSelf()
	r.took(raft.MsgMember)
	r.wait(askFirst)
	asked := r.took(raft.MsgMember)
	if len(asked) != 2 || asked[0].To == asked[1].To || asked[0].FromReplica != 1 {
		return fmt.Sprintf("it asks %+v", asked)
	}
	r.in(raft.Msg{Type: raft.MsgVote, From: 3, Term: 5, Index: 9, LogTerm: 4})
	if v := r.took(raft.MsgVoteResp); len(v) != 1 || v[0].Reject() {
		return fmt.Sprintf("its vote: %+v", v)
	}
	r.gone(2, without())
	if r.rep() == nil {
		return "it went with the word of one of two"
	}
	r.gone(2, without())
	r.gone(4, without()) // no member
	if r.rep() == nil {
		return "it went with the word of one of two, said twice"
	}
	r.gone(3, without())
	if r.rep() != nil {
		return "it does not go"
	}
	return r.destroyed()
}

// Who is asked answers when its own descriptor is durable, and not to members.
func durableFirst(r *rig) string {
	r.lead(2)
	r.ack(2)
	r.on(func(now raft.Time) {
		cc := raft.ConfChange{ConfVer: 1, Steps: []raft.ConfStep{{Remove: true, Replica: raft.Replica{Node: 3, ID: 3}}}}
		if _, err := r.rep().core.ProposeConf(now, cc, raft.EntryHeader{}, &r.l.out); err != nil {
			r.t.Fatal(err)
		}
	})
	r.ack(2)
	r.took(0)
	ask := raft.Msg{Type: raft.MsgMember, Shard: 7, From: 3, To: 1, FromReplica: 3, Term: 1}
	r.l.in.putMsgs([]raft.Msg{ask})
	r.now += 1000
	r.l.step(r.now)
	if r.l.inFlight != 1 || len(r.took(raft.MsgMemberResp)) != 0 {
		return fmt.Sprintf("an answer before the sync (%d in flight)", r.l.inFlight)
	}
	r.turn()
	a := r.took(raft.MsgMemberResp)
	if len(a) != 1 || a[0].To != 3 || a[0].ToReplica != 3 || len(a[0].Entries) != 1 {
		return fmt.Sprintf("answers %+v", a)
	}
	if _, err := raft.DecodeEntry(1, a[0].Entries[0].Value); err != nil { // what the transport looks at
		return err.Error()
	}
	ask.From, ask.FromReplica = 2, 2
	r.l.in.putMsgs([]raft.Msg{ask})
	r.turn()
	if a := r.took(raft.MsgMemberResp); len(a) != 0 {
		return fmt.Sprintf("a member is told %+v", a)
	}
	return ""
}

// The store knows of the removal as soon as the loop does.
func persisted(r *rig) string {
	r.removeSelf()
	st, _, err := r.e.Load(7)
	if err != nil || st.Desc.ConfVer != 2 || len(st.Desc.Replicas) != 2 {
		return fmt.Sprintf("the store has configuration %d %v (%v)", st.Desc.ConfVer, st.Desc.Replicas, err)
	}
	return ""
}

// Whoever waits for a replica that is destroyed is answered, once; and nothing is
// applied to it any more.
func answersAll(r *rig) string {
	r.lead(2)
	r.ack(2)
	w := r.propose("x")
	rd := r.read()
	r.turn()
	if w.n != 0 || rd.n != 0 {
		return "answered too early"
	}
	late := r.proposeOnly("y") // in the inbox still
	for _, from := range []raft.NodeID{2, 3} {
		r.gone(from, without())
	}
	term := raft.Term(1)
	r.in(raft.Msg{Type: raft.MsgAppResp, From: 2, Term: term, Index: 3})
	if bad := r.destroyed(); bad != "" {
		return bad
	}
	r.in(raft.Msg{Type: raft.MsgApp, From: 3, Term: 9, Index: 3, LogTerm: 1, Entries: []raft.Entry{rigEntry(4, raft.EntryNormal, "z")}, Commit: 3})
	if es, _ := r.e.Entries(nil, 7, 4, 4, 1<<20); len(es) > 0 {
		return "a message behind the end was written"
	}
	if w.n != 1 || !errors.Is(w.err, ErrAmbiguous) {
		return fmt.Sprintf("the write was answered %d times: %v", w.n, w.err)
	}
	if rd.n != 1 || !errors.Is(rd.err, ErrUnknownShard) {
		return fmt.Sprintf("the read was answered %d times: %v", rd.n, rd.err)
	}
	if late.n != 1 || late.err == nil {
		return fmt.Sprintf("the late write was answered %d times: %v", late.n, late.err)
	}
	if o := r.propose("z"); o.n != 1 || !errors.Is(o.err, ErrUnknownShard) {
		return fmt.Sprintf("a write behind the end: %v", o.err)
	}
	if len(r.applied) != 0 {
		return fmt.Sprintf("applied %q", r.applied)
	}
	if n := r.h.pending.Load(); n != 0 {
		return fmt.Sprintf("%d bytes are still accounted for", n)
	}
	return ""
}

// bury destroys the rig's replica, which has missed its removal.
func (r *rig) bury() string {
	r.follow(0, rigEntry(1, raft.EntryEmpty, ""))
	r.gone(2, without())
	r.gone(3, without())
	return r.destroyed()
}

// A destroyed replica does not come back: not by a late message, a snapshot or
// the forming of the cluster. Leaders are told.
func staysDead(r *rig) string {
	if bad := r.bury(); bad != "" {
		return bad
	}
	r.took(0)
	r.in(raft.Msg{Type: raft.MsgApp, From: 2, Term: 3, Index: 1, LogTerm: 1})
	if n := len(r.sent); n != 1 || r.sent[0].Type != raft.MsgMemberResp || !r.sent[0].Reject() || r.sent[0].Index != 2 {
		return fmt.Sprintf("a late append is answered with %+v", r.sent)
	}
	r.took(0)
	r.in(raft.Msg{Type: raft.MsgVote, From: 2, Term: 9, Index: 9, LogTerm: 9})
	if len(r.sent) != 0 {
		return fmt.Sprintf("a dead replica answers %+v", r.sent)
	}
	if err := r.h.CreateGroups([]raft.Descriptor{rigDesc()}); err != nil || r.h.table.get(7) != nil {
		return fmt.Sprintf("created again (%v)", err)
	}
	if err := r.put(9, raft.HardState{}); !errors.Is(err, engine.ErrTombstone) {
		return fmt.Sprintf("a snapshot for it: %v", err)
	}
	return ""
}

// A removed replica is still there after a restart, knows who it was, and goes.
func removedRestarts(r *rig) string {
	r.removeSelf()
	r.h.Close()
	groups, err := r.e.Boot()
	if err != nil || len(groups) != 1 {
		return fmt.Sprintf("%d groups, %v", len(groups), err)
	}
	h, err := New(Config{Node: 1, Engine: r.e, Net: r, Liveness: r, Clock: r, Machine: r, Loops: 1, Seed: 1})
	if err != nil {
		return err.Error()
	}
	defer h.Close()
	if err := h.AddGroups([]raft.State{groups[0].State}); err != nil {
		return err.Error()
	}
	r.h, r.l = h, h.loops[0]
	r.turn()
	v, ok := h.View(7)
	if !ok || !v.Removed || v.Replica != 1 {
		return fmt.Sprintf("after the restart: %+v", v)
	}
	r.wait(askFirst)
	if len(r.took(raft.MsgMember)) == 0 {
		return "it does not ask"
	}
	r.gone(2, without())
	r.gone(3, without())
	return r.destroyed()
}

// Of several configurations without the replica the newest is decisive.
func newestCounts(r *rig) string {
	d := without()
	d.ConfVer, d.NextReplica = 5, 7
	for n := raft.NodeID(4); n <= 6; n++ {
		d.Replicas = append(d.Replicas, raft.Replica{Node: n, ID: raft.ReplicaID(n), Role: raft.Voter})
	}
	r.gone(4, d)
	r.gone(2, without())
	r.gone(3, without())
	if r.rep() == nil {
		return "it went with 3 of 5, counted as 2 of 2"
	}
	r.gone(5, d)
	if r.rep() == nil {
		return "it went at once, and one of five had not answered"
	}
	r.wait(lingerAll)
	r.gone(5, d)
	return r.destroyed()
}

// While a replica is being destroyed nothing is installed in its place.
func oneDestroyer(r *rig) string {
	rep := r.rep()
	r.removeSelf()
	r.l.dying[7] = rep
	delete(r.l.byID, 7)
	called := false
	err := r.l.install(r.now, 7, 9, 1, func(raft.HardState, raft.AppliedState, bool, bool) (raft.State, error) {
		called = true
		return raft.State{}, errors.New("no")
	})
	if err == nil || called {
		return "a snapshot was installed meanwhile"
	}
	r.took(0)
	r.in(raft.Msg{Type: raft.MsgApp, From: 2, Term: 3, Index: 1, LogTerm: 1})
	if len(r.sent) != 0 {
		return fmt.Sprintf("answered meanwhile: %+v", r.sent)
	}
	return ""
}

// A message for a newer replica on this node makes the old one ask; when it is
// gone, the new one is asked for, gets its snapshot, and is another replica.
func readded(r *rig) string {
	r.follow(0, rigEntry(1, raft.EntryEmpty, ""))
	r.took(0)
	d := without()
	d.ConfVer, d.NextReplica = 3, 5
	d.Replicas = append([]raft.Replica{{Node: 1, ID: 4, Role: raft.Learner}}, d.Replicas...)
	app := raft.Msg{Type: raft.MsgApp, Shard: 7, From: 2, To: 1, FromReplica: 2, ToReplica: 4, Term: 1, Index: 5, LogTerm: 1}
	r.l.in.putMsgs([]raft.Msg{app})
	r.turn()
	if len(r.took(raft.MsgMember)) != 2 {
		return "it does not ask"
	}
	r.gone(2, d)
	r.gone(3, d)
	if bad := r.destroyed(); bad != "" {
		return bad
	}
	r.took(0)
	r.l.in.putMsgs([]raft.Msg{app})
	r.turn()
	if n := r.took(raft.MsgNeedSnapshot); len(n) != 1 || n[0].FromReplica != 4 {
		return fmt.Sprintf("the new replica says %+v", n)
	}
	if err := r.l.install(r.now, 7, 9, 1, bring(r, d)); err != nil {
		return err.Error()
	}
	r.h.wg.Wait() // the replica is added aside, and nobody runs this loop but the test
	for range 2000 {
		r.turn()
		if v, ok := r.h.View(7); ok && r.rep() != nil {
			if v.Replica != 4 || v.Removed {
				return fmt.Sprintf("the new replica: %+v", v)
			}
			return ""
		}
		select {
		case <-r.l.in.wake:
		case <-time.After(time.Millisecond):
		}
	}
	return "the new replica is not there"
}

// A snapshot brings its configuration, in memory as on disk.
func installedConf(r *rig) string {
	r.follow(0, rigEntry(1, raft.EntryEmpty, ""))
	d := rigDesc()
	d.ConfVer, d.NextReplica = 4, 5
	d.Replicas = append(d.Replicas[:2:2], raft.Replica{Node: 4, ID: 4, Role: raft.Voter})
	var err error
	r.on(func(now raft.Time) { err = r.l.install(now, 7, 9, 1, bring(r, d)) })
	if err != nil {
		return err.Error()
	}
	v, _ := r.h.View(7)
	if v.Desc.ConfVer != 4 || !slices.Equal(v.Desc.Replicas, d.Replicas) || r.rep().as.ConfIndex != 6 {
		return fmt.Sprintf("in memory: configuration %d %v", v.Desc.ConfVer, v.Desc.Replicas)
	}
	return ""
}

// bring installs a snapshot of (9, 1) that holds d.
func bring(r *rig, d raft.Descriptor) InstallFunc {
	return func(hs raft.HardState, _ raft.AppliedState, _, _ bool) (raft.State, error) {
		hs.Term, hs.Commit = 1, 9
		if err := r.e.InstallSnapshot(engine.Install{Desc: d, Applied: raft.AppliedState{Applied: 9, AppliedTerm: 1, ConfIndex: 6}, Hard: hs}); err != nil {
			return raft.State{}, err
		}
		st, _, err := r.e.Load(7)
		return st, err
	}
}

// A leader tells a replica that it removed, until that says that it is gone.
func toldAgain(r *rig) string {
	r.lead(2)
	r.ack(2)
	r.on(func(now raft.Time) {
		cc := raft.ConfChange{ConfVer: 1, Steps: []raft.ConfStep{{Remove: true, Replica: raft.Replica{Node: 3, ID: 3}}}}
		if _, err := r.rep().core.ProposeConf(now, cc, raft.EntryHeader{}, &r.l.out); err != nil {
			r.t.Fatal(err)
		}
	})
	r.ack(2)
	for i := range 3 {
		r.took(0)
		r.wait(tellMost)
		if a := r.took(raft.MsgMemberResp); len(a) != 1 || a[0].ToReplica != 3 {
			return fmt.Sprintf("time %d: told %+v", i, a)
		}
	}
	r.in(raft.Msg{Type: raft.MsgMemberResp, Flags: raft.FlagReject, From: 3, Term: 1, Index: 4})
	r.took(0)
	r.wait(tellMost)
	if a := r.took(raft.MsgMemberResp); len(a) != 0 {
		return fmt.Sprintf("told again: %+v", a)
	}
	return ""
}

// The plan of a change: learners first, votes and removals together, the leader
// last of all; nothing for what is so already.
func plans() string {
	d := rigDesc()
	up := func(ids ...raft.ReplicaID) (out []raft.PeerStatus) {
		for _, id := range ids {
			out = append(out, raft.PeerStatus{Replica: raft.Replica{ID: id}, CaughtUp: true})
		}
		return out
	}
	step := func(remove bool, node raft.NodeID, id raft.ReplicaID, role raft.Role) raft.ConfStep {
		return raft.ConfStep{Remove: remove, Replica: raft.Replica{Node: node, ID: id, Role: role}}
	}
	with := d.Clone()
	with.ConfVer, with.NextReplica = 2, 6
	with.Replicas = append(with.Replicas, raft.Replica{Node: 4, ID: 4, Role: raft.Learner}, raft.Replica{Node: 5, ID: 5, Role: raft.Learner})
	alone := raft.Descriptor{Shard: 7, ConfVer: 9, NextReplica: 3, Replicas: []raft.Replica{{Node: 1, ID: 1, Role: raft.Voter}, {Node: 2, ID: 2, Role: raft.Learner}}}
	joint := d.Clone()
	joint.Replicas[2].Role = raft.VoterOutgoing
	replace := []Change{{4, raft.Voter}, {3, 0}}
	for _, c := range []struct {
		name    string
		d       raft.Descriptor
		changes []Change
		peers   []raft.PeerStatus
		want    Step
		refused bool
	}{
		{name: "nothing", d: d, want: Step{}},
		{name: "as it is", d: d, changes: []Change{{2, raft.Voter}, {9, 0}}, want: Step{}},
		{name: "learner first", d: d, changes: replace, peers: up(1, 2, 3), want: Step{Kind: StepPropose, Conf: raft.ConfChange{ConfVer: 1, Steps: []raft.ConfStep{step(false, 4, 0, raft.Learner)}}}},
		{name: "several", d: d, changes: []Change{{4, raft.Voter}, {5, raft.Learner}, {2, 0}}, want: Step{Kind: StepPropose, Conf: raft.ConfChange{ConfVer: 1, Steps: []raft.ConfStep{step(false, 4, 0, raft.Learner), step(false, 5, 0, raft.Learner)}}}},
		{name: "catching up", d: with, changes: replace, peers: up(1, 2, 3, 5), want: Step{Kind: StepWait}},
		{name: "promote and remove", d: with, changes: replace, peers: up(1, 2, 3, 4), want: Step{Kind: StepPropose, Conf: raft.ConfChange{ConfVer: 2, Steps: []raft.ConfStep{step(false, 4, 4, raft.Voter), step(true, 3, 3, 0)}}}},
		{name: "demote", d: d, changes: []Change{{2, raft.Learner}}, want: Step{Kind: StepPropose, Conf: raft.ConfChange{ConfVer: 1, Steps: []raft.ConfStep{step(false, 2, 2, raft.Learner)}}}},
		{name: "leader goes", d: d, changes: []Change{{1, 0}}, peers: up(1, 3), want: Step{Kind: StepTransfer, To: 3}},
		{name: "leader is demoted", d: d, changes: []Change{{1, raft.Learner}}, peers: up(1, 2, 3), want: Step{Kind: StepTransfer, To: 2}},
		{name: "only voter goes", d: alone, changes: []Change{{1, 0}, {2, raft.Voter}}, peers: up(1, 2), want: Step{Kind: StepPropose, Conf: raft.ConfChange{ConfVer: 9, Steps: []raft.ConfStep{step(false, 2, 2, raft.Voter)}}}},
		{name: "joint", d: joint, changes: replace, want: Step{Kind: StepWait}},
		{name: "no voter", d: alone, changes: []Change{{1, 0}}, refused: true},
		{name: "twice", d: d, changes: []Change{{4, raft.Voter}, {4, 0}}, refused: true},
		{name: "no node", d: d, changes: []Change{{0, raft.Voter}}, refused: true},
		{name: "odd role", d: d, changes: []Change{{4, raft.VoterIncoming}}, refused: true},
	} {
		s, err := NextStep(&c.d, 1, c.changes, c.peers)
		var refused *RefusedError
		if c.refused != errors.As(err, &refused) {
			return fmt.Sprintf("%s: %v", c.name, err)
		}
		if s.Kind != c.want.Kind || s.To != c.want.To || !slices.Equal(s.Conf.Steps, c.want.Conf.Steps) || len(s.Conf.Steps) > 0 && s.Conf.ConfVer != c.want.Conf.ConfVer {
			return fmt.Sprintf("%s: %+v, want %+v", c.name, s, c.want)
		}
	}
	return ""
}

// A new replica never begins as a voter, and a learner that lags gets no vote.
func laggingLearner(r *rig) string {
	r.lead(2)
	r.ack(2)
	conf := func(s ...raft.ConfStep) (err error) {
		ctx, cancel := context.WithCancel(context.Background())
		defer cancel()
		done := make(chan error, 1)
		go func() {
			done <- r.h.ChangeConf(ctx, 7, raft.ConfChange{ConfVer: r.rep().pub.Load().desc.ConfVer, Steps: s}, nil)
		}()
		until(r.t, "handed in", func() bool { r.l.in.mu.Lock(); defer r.l.in.mu.Unlock(); return len(r.l.in.in.funcs) > 0 })
		r.turn()
		return <-done
	}
	if err := conf(raft.ConfStep{Replica: raft.Replica{Node: 4, Role: raft.Voter}}); !errors.Is(err, ErrVoterFirst) {
		return fmt.Sprintf("a new voter: %v", err)
	}
	if err := conf(raft.ConfStep{Replica: raft.Replica{Node: 4, Role: raft.Learner}}); err != nil {
		return err.Error()
	}
	r.ack(2)
	promote := raft.ConfStep{Replica: raft.Replica{Node: 4, ID: 4, Role: raft.Voter}}
	if err := conf(promote); !errors.Is(err, raft.ErrConfLagging) {
		return fmt.Sprintf("promotion of a learner that never answered: %v", err)
	}
	st := r.rep().core.Status()
	r.l.in.putMsgs([]raft.Msg{{Type: raft.MsgAppResp, Shard: 7, From: 4, To: 1, FromReplica: 4, ToReplica: 1, Term: st.Term, Index: st.Last}})
	r.turn()
	if err := conf(promote); err != nil {
		return fmt.Sprintf("promotion of a learner that has everything: %v", err)
	}
	return ""
}
