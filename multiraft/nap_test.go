package multiraft

import (
	"errors"
	"fmt"
	"slices"
	"testing"
	"time"

	"github.com/flotillakv/flotilla/multiraft/raft"
)

// asleep returns whether the group of the rig sleeps.
func (r *rig) asleep() bool {
	v, ok := r.h.View(7)
	if !ok {
		r.t.Fatal("the replica is not found")
	}
	return v.Asleep
}

// settleDown lets the leader of the rig have nothing to do any more: its followers
// hold all, were told so, and the logs are cut.
func (r *rig) settleDown() {
	r.t.Helper()
	for _, n := range []raft.NodeID{2, 3} {
		s := r.rep().core.Status()
		r.in(raft.Msg{Type: raft.MsgAppResp, From: n, Term: s.Term, Index: s.Last, Epoch: 1 << 32})
	}
	for range 4 { // commit records, the cut, the two looks
		r.now = r.now.Add(2 * time.Second)
		r.turn()
		r.now = r.now.Add(DefaultIdleAfter)
		r.turn()
	}
}

// TestNap: a leader falls asleep, serves reads by its lease meanwhile, and goes on
// where it was when something comes.
func TestNap(t *testing.T) {
	r := newRigWith(t, true)
	r.h.digestEvery = -1 // the others would have to answer
	r.lead(2)
	r.ack(2)
	core := r.rep().core
	r.settleDown()
	if !r.asleep() {
		t.Fatalf("it does not sleep: %+v", r.rep().core.Status())
	}
	before, _ := r.h.View(7)
	if !before.IsLeader || !before.IsReady || before.Applied != before.Last || before.Last == 0 || before.Desc.Shard != 7 {
		t.Fatalf("%+v", before)
	}
	if n := r.h.Census(); n != (Census{Replicas: 1, Asleep: 1, Leaders: 1, Ready: 1}) {
		t.Fatalf("%+v", n)
	}
	g, ok := r.h.Grant(7)
	if !ok || !g.Stands() || g.Desc().Shard != 7 {
		t.Fatal("no read while it sleeps")
	}
	r.sent = nil
	r.now = r.now.Add(time.Hour)
	r.turn()
	if len(r.sent) > 0 || !r.asleep() {
		t.Fatalf("asleep it sends %v", r.sent)
	}
	if _, has, busy := r.l.next(); has && r.l.sweepAt == 0 || busy {
		t.Fatal("the loop has something to do")
	}
	// What it knows already does not wake it, what it does not know does.
	r.in(raft.Msg{Type: raft.MsgAppResp, From: 2, Term: before.Term, Index: before.Last})
	if !r.asleep() {
		t.Fatal("an old acknowledgement woke it")
	}
	var got []byte
	r.h.Propose(7, raft.Command{Op: raft.Op(128), Body: []byte("x")}, func(data []byte, _ raft.Index, _ uint32, err error) {
		if err != nil {
			t.Error(err)
		}
		got = data
	})
	r.turn()
	if r.asleep() || !g.Stands() {
		t.Fatalf("asleep %v, the grant stands %v", r.asleep(), g.Stands())
	}
	if r.rep().core != core {
		t.Error("it woke in other memory than that it had given back")
	}
	r.ack(2)
	if string(got) != "x" {
		t.Fatalf("applied %q", got)
	}
	if v, _ := r.h.View(7); v.Term != before.Term || v.Last != before.Last+1 || v.Generation != before.Generation || !v.IsLeader {
		t.Fatalf("%+v after %+v", v, before)
	}
}

// napCases are the rules of sleep that a test can break one by one.
var napCases = []struct {
	name string
	run  func(*testing.T) error
}{{"lease", napLease}, {"held", napHeld}, {"unsure", napUnsure}, {"lost", napNobody}}

func TestNapRules(t *testing.T) {
	for _, c := range napCases {
		t.Run(c.name, func(t *testing.T) {
			if err := c.run(t); err != nil {
				t.Fatal(err)
			}
		})
	}
}

// napLease: a sleeping leader serves no read when a quorum's promise has ended, or
// the clock must not be used.
func napLease(t *testing.T) error {
	r := newRigWith(t, true)
	r.h.digestEvery = -1 // the others would have to answer
	r.lead(2)
	r.ack(2)
	r.settleDown()
	if !r.asleep() || !r.h.LeaseRead(7) {
		return errors.New("no read while it sleeps")
	}
	r.until = r.now
	if r.h.LeaseRead(7) {
		return errors.New("a read after the promises ended")
	}
	r.until = 1 << 61
	r.unsound = true
	if r.h.LeaseRead(7) {
		return errors.New("a read by a clock that must not be used")
	}
	return nil
}

// napHeld: a replica does not fall asleep while a promise of it is on its way to the
// disk, and what was to be said then is said.
func napHeld(t *testing.T) error {
	r := newRigWith(t, true)
	r.h.digestEvery = -1 // the others would have to answer
	app := raft.Msg{Type: raft.MsgApp, From: 2, Term: 1, Flags: raft.FlagFortify, Entries: []raft.Entry{{Index: 1, Term: 1, Type: raft.EntryEmpty}}}
	app.Entries[0].Value = raft.EncodeEntry(nil, 1, 1, raft.EntryEmpty, raft.EntryHeader{}, nil)
	app.Commit, app.CompactTo = 1, 1
	r.in(app)
	r.now = r.now.Add(3 * time.Second)
	r.in(raft.Msg{Type: raft.MsgCommit, From: 2, Term: 1, Commit: 1, CompactTo: 1})
	r.now = r.now.Add(3 * time.Second)
	r.turn()
	if s := r.rep().core.Status(); s.Trunc != 1 || s.Lead != 2 {
		return fmt.Errorf("not quiet: %+v", s)
	}
	// It promises anew, and the disk takes its time.
	r.sent = nil
	r.l.in.putMsgs([]raft.Msg{{Type: raft.MsgFortify, From: 2, Term: 1, Shard: 7, To: 1, ToReplica: 1, FromReplica: 2}})
	for range 20 {
		r.now = r.now.Add(DefaultIdleAfter)
		r.l.step(r.now)
	}
	if r.asleep() {
		return errors.New("it sleeps with a promise on its way to the disk")
	}
	r.turn()
	if !slices.ContainsFunc(r.sent, func(m raft.Msg) bool { return m.Type == raft.MsgFortifyResp }) {
		return fmt.Errorf("the promise was not told: %v", r.sent)
	}
	for range 6 {
		r.now = r.now.Add(DefaultIdleAfter)
		r.turn()
	}
	if !r.asleep() {
		return errors.New("it does not sleep")
	}
	return nil
}

// napUnsure: a replica that sleeps from the start is woken by the first request, which
// is told that there is no leader yet, and campaigns.
func napUnsure(t *testing.T) error {
	r := newRig(t)
	d := rigDesc()
	d.Shard, d.Keyspace = 8, 2
	r.h.awake = 0
	r.until = 0 // nobody is heard
	if err := r.h.CreateGroups([]raft.Descriptor{d}); err != nil {
		return err
	}
	r.turn() // the loop comes by, and finds no reason to wake it
	r.l.scanLeft = 0
	v, ok := r.h.View(8)
	if !ok || !v.Asleep || v.Leader != 0 || v.Desc.Keyspace != 2 {
		return fmt.Errorf("%+v", v)
	}
	r.until = 1 << 61
	var err error
	r.h.Propose(8, raft.Command{Op: raft.Op(128)}, func(_ []byte, _ raft.Index, _ uint32, e error) { err = e })
	var elsewhere *NotLeaderError
	if !errors.As(err, &elsewhere) || elsewhere.Leader != 0 {
		return fmt.Errorf("the proposal got %v", err)
	}
	r.sent = nil
	r.turn()
	for range 2 { // its turn comes
		r.now = r.now.Add(standBack)
		r.turn()
	}
	asked := 0
	for _, m := range r.sent {
		if m.Type == raft.MsgPreVote && m.Shard == 8 {
			asked++
		}
	}
	if v, _ := r.h.View(8); v.Asleep || asked != 2 {
		return fmt.Errorf("%+v, sent %v", v, r.sent)
	}
	return nil
}

// napNobody: a replica without a leader sleeps when nobody could elect one, as long as that
// is so, and not before.
func napNobody(t *testing.T) error {
	r := newRig(t)
	idle := func() {
		for range 4 * napLost * napSecond {
			r.now = r.now.Add(DefaultIdleAfter / napSecond)
			r.turn()
		}
	}
	if idle(); r.asleep() {
		return errors.New("it sleeps though others are alive")
	}
	r.deaf = true
	r.h.LivenessChanged(2)
	r.h.LivenessChanged(3)
	if idle(); !r.asleep() {
		return fmt.Errorf("it goes on to campaign: %+v", r.rep().core.Status())
	}
	r.sent = nil
	if idle(); len(r.sent) > 0 || !r.asleep() {
		return fmt.Errorf("asleep it sends %v", r.sent)
	}
	r.deaf = false
	r.h.LivenessChanged(2)
	r.now = r.now.Add(scanEvery)
	for range 30 {
		r.now = r.now.Add(scanEvery)
		r.turn()
	}
	if r.asleep() {
		return errors.New("it sleeps on")
	}
	r.lead(2)
	return nil
}
