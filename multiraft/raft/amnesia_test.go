package raft

import (
	"testing"
	"time"
)

// A restarted replica that was a learner as far as it knows was made a voter
// meanwhile, and of the voters that it knows one is dead for good: it waits for
// all, then for a majority, and votes in the end, since others go by a newer
// configuration in which it decides. It does not vote before anybody answered.
func TestRestartedLearnerVotes(t *testing.T) {
	desc := testDesc(Learner, Voter, Voter)
	r := &rig{t: t, live: &fakeLive{down: map[NodeID]bool{2: true, 3: true}}, now: 1e9}
	st := stateOf(desc, HardState{Term: 4}, terms(4))
	c, err := NewCore(Config{Node: 1, Liveness: r.live, Rand: 1, Restarted: true}, st, r.now)
	if err != nil {
		t.Fatal(err)
	}
	r.c, r.hard = c, st.Hard
	grants := func() bool {
		a := find(r.step(Msg{Type: MsgPreVote, From: 2, Term: 5, Index: 1, LogTerm: 4}), MsgPreVoteResp, 2)
		return a != nil && !a.Reject()
	}
	boot := r.now
	r.now = boot.Add(2 * time.Second)
	if grants() {
		t.Error("it votes before anybody answered")
	}
	r.live.down[2] = false
	r.now = boot.Add(mostGraces*time.Second - 1)
	if grants() {
		t.Error("it votes before a majority had its time")
	}
	r.now = boot.Add(mostGraces * time.Second)
	r.live.down[2] = true
	if grants() {
		t.Error("it votes, and nobody answered by now")
	}
	r.live.down[2] = false
	if !grants() {
		t.Error("it waits for the dead for ever")
	}
}
