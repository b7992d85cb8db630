package raft

import (
	"fmt"
	"testing"
	"time"
)

// electCases tell who campaigns when.
var electCases = []struct {
	name string
	run  func(t *testing.T) error
}{{"give way", giveWay}}

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
