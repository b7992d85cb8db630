package raft

import (
	"errors"
	"fmt"
	"testing"
)

// b0Cases are rules whose loss another rule would hide in a running group: they
// are shown one by one here. The names are those of the design's rules; a case
// returns what it saw of a violation.
var b0Cases = []struct {
	name string
	run  func(*testing.T) error
}{
	{"B0-C1a", func(t *testing.T) error { return promisedVote(t, Msg{From: 2, Term: 2, Index: 1, LogTerm: 1}) }},
	{"B0-C1c", func(t *testing.T) error { return promisedVote(t, Msg{From: 3, Term: 9, Index: 1, LogTerm: 8}) }},
	{"B0-C1d", stepDownIsSaid},
	{"B0-C3a", resetSendsAgain},
	{"B0-C3c", lagAsks},
	{"A5b", commitOfAnother},
	{"A5c", commitAfterRestart},
	{"A13", leaseGrant},
	{"A13b", leaseGivenUp},
}

// promisedVote asks a follower that made its promise to node 2 for a vote that
// it has to give all the same.
func promisedVote(t *testing.T, m Msg) error {
	r := newRig(t, stateOf(three, HardState{}, nil))
	r.step(Msg{Type: MsgApp, From: 2, Term: 1, Flags: FlagFortify, Entries: terms(1)})
	m.Type = MsgVote
	if a := find(r.step(m), MsgVoteResp, m.From); a == nil || a.Reject() {
		return fmt.Errorf("the vote of term %d was refused to node %d", m.Term, m.From)
	}
	return nil
}

// stepDownIsSaid makes a leader step down: all members are told, for their
// promises would hold up the next election.
func stepDownIsSaid(t *testing.T) error {
	r := newRig(t, stateOf(three, HardState{}, nil))
	r.lead()
	ms := r.step(Msg{Type: MsgApp, From: 2, Term: r.c.hs.Term + 1, Entries: nil})
	if find(ms, MsgStepDown, 3) == nil {
		return errors.New("node 3 is not told that the leader leads no more")
	}
	return nil
}

// resetSendsAgain breaks a stream with an append on it: it goes out again at
// once, not when a timer says so.
func resetSendsAgain(t *testing.T) error {
	r := newRig(t, stateOf(three, HardState{}, nil))
	r.lead()
	r.step(Msg{Type: MsgAppResp, From: 2, Term: r.c.hs.Term, Index: r.c.log.last})
	r.do(true, func(o *Out) {
		if _, err := r.c.Propose(r.now, EntryHeader{}, []Command{{Op: 1, Body: []byte("x")}}, o); err != nil {
			t.Fatal(err)
		}
	})
	if find(r.take(), MsgApp, 2) == nil {
		t.Fatal("nothing was sent")
	}
	r.do(true, func(o *Out) { r.c.PeerReset(r.now, 2, o) })
	if find(r.take(), MsgApp, 2) == nil {
		return errors.New("what was on the stream is not sent again")
	}
	return nil
}

// lagAsks keeps a follower in the dark about the commit index: it asks its leader.
func lagAsks(t *testing.T) error {
	r := newRig(t, stateOf(three, HardState{}, nil))
	r.step(Msg{Type: MsgApp, From: 2, Term: 1, Flags: FlagFortify, Entries: terms(1, 1)})
	r.now = r.now.Add(r.c.tun.LagQuery)
	r.do(true, func(o *Out) { r.c.Tick(r.now, o) })
	if find(r.take(), MsgLeadQuery, 2) == nil {
		return errors.New("it knows of uncommitted entries and does not ask")
	}
	return nil
}

// commitOfAnother lets the commit record of a leader arrive whose append, which
// would have overwritten the log, was lost.
func commitOfAnother(t *testing.T) error {
	r := newRig(t, stateOf(three, HardState{}, nil))
	r.step(Msg{Type: MsgApp, From: 2, Term: 1, Entries: terms(1, 1)})
	r.step(Msg{Type: MsgCommit, From: 3, Term: 2, Commit: 2})
	if r.c.log.commit != 0 {
		return fmt.Errorf("committed through %d by a leader whose log may be another", r.c.log.commit)
	}
	return nil
}

// commitAfterRestart is the same for a log that was accepted before a restart, in
// an earlier term than the one the replica has seen.
func commitAfterRestart(t *testing.T) error {
	r := newRig(t, stateOf(three, HardState{Term: 2}, terms(1, 1)))
	r.step(Msg{Type: MsgCommit, From: 3, Term: 2, Commit: 2})
	if r.c.log.commit != 0 {
		return fmt.Errorf("committed through %d by a leader whose log may be another", r.c.log.commit)
	}
	return nil
}

// TestB0_B1 shows that a leader that let somebody campaign has no lease in that
// term again.
func TestB0_B1(t *testing.T) {
	for _, run := range []func(*testing.T) error{leaseGrant, leaseGivenUp} {
		if err := run(t); err != nil {
			t.Fatal(err)
		}
	}
}

// TestB0 shows each rule at work.
func TestB0(t *testing.T) {
	for _, c := range b0Cases {
		t.Run(c.name, func(t *testing.T) {
			if err := c.run(t); err != nil {
				t.Fatal(err)
			}
		})
	}
}
