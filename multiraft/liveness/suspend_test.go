package liveness

import (
	"testing"
	"time"

	"github.com/flotillakv/flotilla/multiraft/raft"
)

// suspendRig is node 1, which asks node 2 for support.
type suspendRig struct {
	r  *Rules
	fx Effects
	at At
}

func newSuspendRig(t *testing.T) *suspendRig {
	s := &suspendRig{at: At{Now: 1e12, Wall: 1e18}}
	var err error
	if s.r, err = NewRules(RulesConfig{Node: 1, BootEpoch: 1}, nil, s.at.Now, &s.fx); err != nil {
		t.Fatal(err)
	}
	s.r.AddPeer(s.at.Now, 2, &s.fx)
	s.beat()
	return s
}

// pass lets time pass, on both clocks.
func (s *suspendRig) pass(d time.Duration) {
	s.at.Now = s.at.Now.Add(d)
	s.at.Wall += uint64(d)
}

// beat ticks, and lets node 2 answer what is asked.
func (s *suspendRig) beat() (asked bool) {
	s.fx.Reset()
	s.r.Tick(s.at, Gate{Beat: true, Self: true}, &s.fx)
	sends := s.fx.Sends
	for _, m := range sends {
		if m.Ctl.Kind == raft.CtlHeartbeat {
			asked = true
			var fx Effects
			s.r.Step(s.at, 2, s.at.Now, raft.Ctl{Kind: raft.CtlReply, Epoch: m.Ctl.Epoch, Seq: m.Ctl.Seq}, &fx)
		}
	}
	return asked
}

// held reports whether a lease that rests on node 2 holds.
func (s *suspendRig) held() bool {
	now, ok := s.r.LeaseTime(s.at)
	_, until := s.r.SupportFrom(2)
	return ok && now < until
}

// TestSuspend: a machine that was suspended counts on nothing from before, even
// before its rules have noticed.
func TestSuspend(t *testing.T) {
	s := newSuspendRig(t)
	if !s.held() {
		t.Fatal("no support")
	}
	e, _ := s.r.SupportFrom(2)
	s.at.Wall += uint64(10 * time.Second) // the monotonic clock stood still
	if s.held() {
		t.Fatal("held before the rules noticed")
	}
	s.fx.Reset()
	s.r.Tick(s.at, Gate{Self: true}, &s.fx) // no heartbeat leaves
	if _, until := s.r.SupportFrom(2); until != 0 || s.held() {
		t.Fatalf("held until %v after the rules noticed", until)
	}
	if len(s.fx.Table) != 1 || !s.fx.Table[0].Notify {
		t.Fatalf("nobody is told: %+v", s.fx.Table)
	}
	s.pass(time.Second)
	if !s.beat() || !s.held() {
		t.Fatal("support does not come back with the next answer")
	}
	if again, _ := s.r.SupportFrom(2); again != e {
		t.Fatalf("epoch %x became %x", e, again)
	}
}

// TestSuspendShort: what a short standstill hides counts as time that passed.
func TestSuspendShort(t *testing.T) {
	s := newSuspendRig(t)
	_, until := s.r.SupportFrom(2)
	s.pass(until.Sub(s.at.Now) - 30*time.Millisecond)
	if !s.held() {
		t.Fatal("not held 30 ms before the end")
	}
	s.at.Wall += uint64(40 * time.Millisecond)
	if s.held() {
		t.Fatal("held although 40 ms were missed")
	}
}

// TestSuspendAnswer: an answer to a heartbeat from before the suspend counts for nothing.
func TestSuspendAnswer(t *testing.T) {
	s := newSuspendRig(t)
	s.pass(time.Second)
	s.fx.Reset()
	s.r.Tick(s.at, Gate{Beat: true, Self: true}, &s.fx)
	beat := s.fx.Sends[0].Ctl
	s.at.Wall += uint64(10 * time.Second)
	s.r.Step(s.at, 2, s.at.Now, raft.Ctl{Kind: raft.CtlReply, Epoch: beat.Epoch, Seq: beat.Seq}, &s.fx)
	if s.held() {
		t.Fatal("held by an answer to a question of before the suspend")
	}
}

// TestWallClockSet: setting the wall clock costs leases until the next answer; it
// never prolongs one.
func TestWallClockSet(t *testing.T) {
	for _, d := range []time.Duration{-time.Hour, -time.Second, time.Second, time.Hour} {
		s := newSuspendRig(t)
		s.at.Wall += uint64(d)
		if s.held() {
			t.Errorf("set by %v: held", d)
		}
		s.pass(time.Second)
		s.beat() // notices, and asks
		if !s.held() {
			t.Errorf("set by %v: not held after the next answer", d)
		}
	}
	s := newSuspendRig(t)
	for range 1000 { // small corrections are followed
		s.pass(500 * time.Millisecond)
		s.at.Wall += uint64(100 * time.Microsecond)
		s.beat()
		if !s.held() {
			t.Fatal("lost by a wall clock that is corrected slowly")
		}
	}
}

// TestLeaseTokens plays the order in which a reader and the manager act around a
// suspend: whatever token the reader took, it does not count old promises.
func TestLeaseTokens(t *testing.T) {
	m, clock, _, net := handManager(t, Config{})
	if _, ok := m.LeaseNow(m.LeaseArm()); ok {
		t.Fatal("a lease may be judged before the clocks were compared")
	}
	m.AddPeer(2)
	clock.at(m, 0)
	clock.at(m, 0)
	q := net.take()[0].Ctl
	m.OnCtl(2, clock.now, raft.Ctl{Kind: raft.CtlReply, Epoch: q.Epoch, Seq: q.Seq})
	m.Step()
	if _, until := m.SupportFrom(2); until == 0 {
		t.Fatal("no support")
	}
	token := m.LeaseArm()
	if token == notAnchored {
		t.Fatal("no token after a step")
	}
	if now, ok := m.LeaseNow(token); !ok || now != clock.Now() {
		t.Fatalf("time %v, %v", now, ok)
	}
	clock.wall += uint64(10 * time.Second)
	if _, ok := m.LeaseNow(token); ok {
		t.Fatal("a token of before the suspend counts behind it")
	}
	m.Step()
	if _, ok := m.LeaseNow(token); ok {
		t.Fatal("a token of before the suspend counts behind it, after it was noticed")
	}
	if _, until := m.SupportFrom(2); until != 0 {
		t.Fatalf("promises of before the suspend are published: until %v", until)
	}
	if _, ok := m.LeaseNow(m.LeaseArm()); !ok {
		t.Fatal("a token of after the suspend does not count")
	}
	if _, ok := m.LeaseNow(notAnchored); ok {
		t.Fatal("no token counts")
	}
}
