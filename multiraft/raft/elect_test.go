package raft

import (
	"errors"
	"fmt"
	"testing"
	"time"
)

// electCases tell who campaigns when.
var electCases = []struct {
	name string
	run  func(t *testing.T) error
}{{"give way", giveWay}, {"a learner knows", learnerKnows}}

func TestElect(t *testing.T) {
	for _, c := range electCases {
		t.Run(c.name, func(t *testing.T) {
			if err := c.run(t); err != nil {
				t.Fatal(err)
			}
		})
	}
}

// giveWay: who hears of another one's campaign puts its own off, once until there is a
// leader, and campaigns then though it is asked again and again.
func giveWay(t *testing.T) error {
	r := newRig(t, stateOf(three, HardState{}, nil))
	asked := func() Time {
		r.want(r.step(Msg{Type: MsgPreVote, From: 2, Term: r.c.hs.Term + 1, Index: 9, LogTerm: 9}), MsgPreVoteResp, 2)
		return r.c.electionAt
	}
	for _, again := range []bool{false, true} {
		from := r.now
		at := asked()
		if at < from.Add(r.c.tun.PreVoteRetry) {
			return fmt.Errorf("after a leader %v: it campaigns %v after it was asked", again, at.Sub(from))
		}
		for r.now = r.now.Add(time.Millisecond); r.now < at; r.now = r.now.Add(10 * time.Millisecond) {
			if next := asked(); next != at {
				return fmt.Errorf("after a leader %v: it puts its campaign off once more, by %v", again, next.Sub(at))
			}
		}
		r.now = at
		r.do(true, func(o *Out) { r.c.Tick(r.now, o) })
		r.want(r.take(), MsgPreVote, 2)
		if again {
			break
		}
		r.step(Msg{Type: MsgApp, From: 3, Term: r.c.hs.Term + 1}) // a leader
		r.live.down[3] = true
		r.c.LivenessChanged(r.now, 3, &r.o)
	}
	return nil
}

// learnerKnows: 2 of the voters {1, 2} is down, and the only one who knows that an entry
// is committed that makes 3 a voter is a learner. Its vote does not count, but it is asked
// in the end, and what it knows is in its answer, though that is a vote.
func learnerKnows(t *testing.T) error {
	cc := ConfChange{ConfVer: 1, Steps: []ConfStep{{Replica: Replica{Node: 3, ID: 3, Role: Voter}}}}
	conf := Entry{Index: 2, Term: 1, Type: EntryConf, Value: EncodeEntry(nil, 2, 1, EntryConf, EntryHeader{}, []Command{{Body: cc.Encode(nil)}})}
	log := append(terms(1), conf)
	r := newRig(t, stateOf(testDesc(Voter, Voter, Learner, Learner), HardState{Commit: 1}, log))
	for n := 1; ; n++ {
		r.now = r.c.electionAt
		r.do(true, func(o *Out) { r.c.Tick(r.now, o) })
		ms := r.take()
		r.want(ms, MsgPreVote, 2)
		if find(ms, MsgPreVote, 4) != nil {
			break
		}
		if n == 5 {
			return errors.New("no learner is asked")
		}
	}
	learner := newRig(t, stateOf(testDesc(Voter, Voter, Learner, Learner), HardState{Commit: 2}, log))
	a := learner.want(learner.step(Msg{Type: MsgPreVote, From: 2, Term: r.c.hs.Term + 1, Index: 2, LogTerm: 1}), MsgPreVoteResp, 2)
	if a.Reject() || a.Commit != 2 || a.LogTerm != 1 {
		return fmt.Errorf("the learner answers %+v", a)
	}
	a.From = 4
	r.step(a)
	if r.c.log.commit != 2 || len(r.done) == 0 || r.done[len(r.done)-1].Index != 2 {
		return fmt.Errorf("commit %d, applied %d", r.c.log.commit, len(r.done))
	}
	if r.c.role == RoleCandidate || r.c.role == RoleLeader {
		return errors.New("the vote of a learner counts")
	}
	return nil
}
