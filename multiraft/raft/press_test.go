package raft

import (
	"fmt"
	"testing"
	"time"
)

// pressCases tell what a node that is short of room for logs gets from its cores.
var pressCases = []struct {
	name string
	run  func(t *testing.T) error
}{
	{"nothing is kept for the dead", pressDead},
	{"nothing is kept for anybody", pressAll},
	{"a follower cuts by itself", pressFollower},
	{"redo is kept", pressRedo},
	{"a vote for a stranger", strangersVote},
}

func TestPress(t *testing.T) {
	for _, c := range pressCases {
		t.Run(c.name, func(t *testing.T) {
			if err := c.run(t); err != nil {
				t.Fatal(err)
			}
		})
	}
}

// cut presses the core, and returns through where it cuts its log then; zero: not at all.
func (r *rig) cut(p LogPressure) (to Index) {
	r.t.Helper()
	r.c.Press(p)
	r.c.Flush(r.now, &r.o)
	for _, t := range r.o.Truncates {
		to = t.Index
		r.c.Truncated(t.Index, t.Term)
	}
	r.o.Reset()
	return to
}

// heldUp is a leader whose log node 3 holds up: ten entries are applied that it lacks.
func heldUp(t *testing.T) *rig {
	r := newSteadyRig(t)
	for range 10 {
		r.do(true, func(o *Out) {
			if _, err := r.c.Propose(r.now, EntryHeader{}, []Command{{Body: []byte("x")}}, o); err != nil {
				t.Fatal(err)
			}
		})
		r.step(Msg{Type: MsgAppResp, From: 2, Term: 1, Index: r.c.log.last, Epoch: 1<<32 | 1})
	}
	if st := r.c.Status(); st.Applied != st.Last || st.Last < 10 {
		t.Fatalf("%+v", st)
	}
	return r
}

func pressDead(t *testing.T) error {
	r := heldUp(t)
	match := r.c.log.last - 10
	if to := r.cut(PressureDead); to > match {
		return fmt.Errorf("cut through %d, and node 3 is alive and has %d", to, match)
	}
	r.live.down[3] = true
	r.do(true, func(o *Out) { r.c.LivenessChanged(r.now, 3, o) })
	if to := r.cut(PressureNone); to > match {
		return fmt.Errorf("cut through %d without need", to)
	}
	if to := r.cut(PressureDead); to != r.c.log.last {
		return fmt.Errorf("cut through %d of %d", to, r.c.log.last)
	}
	return nil
}

func pressAll(t *testing.T) error {
	r := heldUp(t)
	if to := r.cut(PressureAll); to != r.c.log.last {
		return fmt.Errorf("cut through %d of %d", to, r.c.log.last)
	}
	return nil
}

func pressFollower(t *testing.T) error {
	r := newRig(t, stateOf(three, HardState{Term: 1}, terms(1, 1, 1, 1)))
	r.step(Msg{Type: MsgCommit, From: 2, Term: 1, Commit: 3})
	r.step(Msg{Type: MsgApp, From: 2, Term: 1, Index: 4, LogTerm: 1, Commit: 3})
	if st := r.c.Status(); st.Applied != 3 {
		return fmt.Errorf("%+v", st)
	}
	if to := r.cut(PressureDead); to != 0 {
		return fmt.Errorf("cut through %d; its leader did not say so", to)
	}
	if to := r.cut(PressureAll); to != 3 {
		return fmt.Errorf("cut through %d; it has applied 3", to)
	}
	return nil
}

func pressRedo(t *testing.T) error {
	r := heldUp(t)
	r.c.Hold(r.c.log.last - 4)
	if to, want := r.cut(PressureAll), r.c.log.last-4; to != want {
		return fmt.Errorf("cut through %d; what is behind %d is needed as redo", to, want)
	}
	return nil
}

// strangersVote: a restarted replica knows of one other member, which is dead for good.
// Others made it a voter of a configuration with a third one, who wants its vote.
func strangersVote(t *testing.T) error {
	r := &rig{t: t, live: &fakeLive{down: map[NodeID]bool{2: true, 3: true}}, now: 1e9}
	st := stateOf(testDesc(Learner, Voter), HardState{Term: 4}, terms(4))
	c, err := NewCore(Config{Node: 1, Liveness: r.live, Rand: 1, Restarted: true}, st, r.now)
	if err != nil {
		t.Fatal(err)
	}
	r.c, r.hard = c, st.Hard
	grants := func() bool {
		a := find(r.step(Msg{Type: MsgPreVote, From: 3, Term: 5, Index: 1, LogTerm: 4}), MsgPreVoteResp, 3)
		return a != nil && !a.Reject()
	}
	boot := r.now
	r.now = boot.Add(mostGraces*time.Second - 1)
	r.live.down[3] = false
	if grants() {
		return fmt.Errorf("it votes before those that it knows had their time")
	}
	r.now = boot.Add(mostGraces * time.Second)
	r.live.down[3] = true
	if grants() {
		return fmt.Errorf("it votes, and nobody answered by now")
	}
	r.live.down[3] = false
	if !grants() {
		return fmt.Errorf("it waits for the dead for ever")
	}
	return nil
}
