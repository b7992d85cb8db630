package raft

import (
	"errors"
	"fmt"
	"slices"
	"testing"
	"time"
)

// The tests of this file go through sections 5 to 8 of the Raft paper (extended
// version, 2014). Each names its section and says the claim in its own words.
// Node 1 is the core under test; the test plays the others.

var three = testDesc(Voter, Voter, Voter)
var five = testDesc(Voter, Voter, Voter, Voter, Voter)

// Section 5.1: whoever sees a higher term takes it over; a candidate or leader
// that finds itself behind becomes a follower at once.
func TestPaper51HigherTermMakesFollower(t *testing.T) {
	for _, role := range []RaftRole{RoleFollower, RolePreCandidate, RoleCandidate, RoleLeader} {
		r := newRig(t, stateOf(three, HardState{}, nil))
		switch role {
		case RolePreCandidate:
			r.do(true, func(o *Out) { r.c.Campaign(r.now, o) })
		case RoleCandidate:
			r.do(true, func(o *Out) { r.c.Campaign(r.now, o) })
			r.step(Msg{Type: MsgPreVoteResp, From: 2, Term: 1})
		case RoleLeader:
			r.lead()
		}
		if r.c.role != role {
			t.Fatalf("%v did not come about: %v", role, r.c.role)
		}
		r.step(Msg{Type: MsgApp, From: 2, Term: 9})
		if st := r.c.Status(); st.Role != RoleFollower || st.Term != 9 || st.Lead != 2 {
			t.Errorf("%v after an append of term 9: %+v", role, st)
		}
		if r.hard.Term != 9 {
			t.Errorf("%v: term on disk %d", role, r.hard.Term)
		}
	}
}

// Section 5.1: a request with an old term is refused, and the answer carries
// the newer term, so that a stale leader steps down.
func TestPaper51StaleTermIsRefused(t *testing.T) {
	r := newRig(t, stateOf(three, HardState{Term: 5}, terms(1, 5)))
	for _, m := range []Msg{
		{Type: MsgApp, From: 2, Term: 4, Index: 2, LogTerm: 5},
		{Type: MsgCommit, From: 2, Term: 4, Commit: 2},
		{Type: MsgFortify, From: 2, Term: 4},
	} {
		a := r.want(r.step(m), MsgAppResp, 2)
		if !a.Reject() || a.Term != 5 {
			t.Errorf("answer to type %d: %+v", m.Type, a)
		}
	}
	if a := r.want(r.step(Msg{Type: MsgVote, From: 2, Term: 4, Index: 9, LogTerm: 4}), MsgVoteResp, 2); !a.Reject() || a.Term != 5 {
		t.Errorf("vote of an old term: %+v", a)
	}
	if st := r.c.Status(); st.Lead != 0 || st.Term != 5 || st.Commit != 0 {
		t.Errorf("state changed: %+v", st)
	}
}

// Section 5.2: a server starts as a follower and stays one as long as a leader
// makes itself felt (here: as long as the leader's node is supported).
func TestPaper52StartsAndStaysFollower(t *testing.T) {
	r := newRig(t, stateOf(three, HardState{}, nil))
	if r.c.role != RoleFollower {
		t.Fatalf("starts as %v", r.c.role)
	}
	r.step(Msg{Type: MsgApp, From: 2, Term: 1})
	if d := r.c.Deadline(); d < r.now.Add(time.Hour) {
		t.Fatalf("a follower of a living leader has a deadline in %v", d.Sub(r.now))
	}
	r.live.down[2] = true
	r.do(true, func(o *Out) { r.c.LivenessChanged(r.now, 2, o) })
	if d := r.c.Deadline(); d > r.now.Add(200*time.Millisecond) {
		t.Fatalf("the leader's node is gone, election only in %v", d.Sub(r.now))
	}
}

// Section 5.2: to begin an election a follower raises its term, votes for
// itself and asks all others. The vote requests leave when the vote is durable.
func TestPaper52ElectionBegins(t *testing.T) {
	r := newRig(t, stateOf(three, HardState{Term: 3}, terms(3, 3)))
	r.do(true, func(o *Out) { r.c.Campaign(r.now, o) })
	ms := r.take()
	if m := r.want(ms, MsgPreVote, 3); m.Term != 4 || r.c.hs.Term != 3 {
		t.Fatalf("pre-vote %+v at term %d: it must not raise the own term", m, r.c.hs.Term)
	}
	grant := Msg{Type: MsgPreVoteResp, From: 2, Term: 4, FromReplica: 2, To: 1, ToReplica: 1, Shard: 7}
	r.do(false, func(o *Out) {
		r.c.Step(r.now, &grant, o)
		if len(o.HardStates) != 1 || o.HardStates[0].State.Vote != 1 || o.HardStates[0].State.Term != 4 {
			t.Errorf("hard states %+v", o.HardStates)
		}
		if find(o.Msgs, MsgVote, 2) != nil || find(o.Held, MsgVote, 2) == nil || find(o.Held, MsgVote, 3) == nil {
			t.Errorf("vote requests must wait for the disk: %+v", o)
		}
	})
}

// Section 5.2: votes of a majority win, in groups of every size; the own vote
// counts only when it is durable.
func TestPaper52MajorityWins(t *testing.T) {
	for n := 1; n <= 7; n++ {
		for votes := 0; votes < n; votes++ {
			desc := testDesc(slices.Repeat([]Role{Voter}, n)...)
			r := newRig(t, stateOf(desc, HardState{}, nil))
			r.do(true, func(o *Out) { r.c.Campaign(r.now, o) })
			for i := 2; i <= n; i++ {
				r.step(Msg{Type: MsgPreVoteResp, From: NodeID(i), Term: 1})
			}
			for i := 2; i < 2+votes; i++ {
				r.step(Msg{Type: MsgVoteResp, From: NodeID(i), Term: 1})
			}
			if won := r.c.role == RoleLeader; won != (votes+1 > n/2) {
				t.Errorf("%d of %d votes: %v", votes+1, n, r.c.role)
			}
		}
	}
	r := newRig(t, stateOf(testDesc(Voter, Voter), HardState{}, nil))
	r.do(true, func(o *Out) { r.c.Campaign(r.now, o) })
	for _, m := range []Msg{{Type: MsgPreVoteResp, Term: 1}, {Type: MsgVoteResp, Term: 1}} {
		m.Shard, m.From, m.FromReplica, m.To, m.ToReplica = 7, 2, 2, 1, 1
		r.do(false, func(o *Out) { r.c.Step(r.now, &m, o) }) // the disk is slow
	}
	if r.c.role != RoleCandidate {
		t.Errorf("elected by a vote that is not on disk: %v", r.c.role)
	}
}

// Section 5.2: one vote per term, first come first served; and the vote holds
// over a restart. A repeated request of the same candidate is answered again.
func TestPaper52OneVotePerTerm(t *testing.T) {
	r := newRig(t, stateOf(three, HardState{}, nil))
	ask := func(r *rig, from NodeID) bool {
		t.Helper()
		a := r.want(r.step(Msg{Type: MsgVote, From: from, Term: 2}), MsgVoteResp, from)
		return !a.Reject()
	}
	if !ask(r, 3) || ask(r, 2) || !ask(r, 3) {
		t.Error("votes of term 2 must all go to 3")
	}
	if r.hard.Vote != 3 || r.hard.Term != 2 {
		t.Errorf("on disk: %+v", r.hard)
	}
	again := newRig(t, stateOf(three, r.hard, nil))
	if ask(again, 2) || !ask(again, 3) {
		t.Error("the restart forgot the vote")
	}
}

// Section 5.2: the answer to a vote request leaves only when the vote is durable.
func TestPaper52VoteIsDurableFirst(t *testing.T) {
	r := newRig(t, stateOf(three, HardState{}, nil))
	m := Msg{Type: MsgVote, Shard: 7, From: 2, FromReplica: 2, To: 1, ToReplica: 1, Term: 1}
	r.do(false, func(o *Out) {
		r.c.Step(r.now, &m, o)
		if len(o.HardStates) != 1 || find(o.Held, MsgVoteResp, 2) == nil || find(o.Msgs, MsgVoteResp, 2) != nil {
			t.Errorf("effects %+v", o)
		}
	})
}

// Section 5.2: a candidate that hears a leader of its term (or a later one)
// follows it; one of an older term it refuses.
func TestPaper52CandidateMeetsLeader(t *testing.T) {
	for _, c := range []struct {
		term    Term
		follows bool
	}{{1, false}, {2, true}, {3, true}} {
		r := newRig(t, stateOf(three, HardState{Term: 1}, nil))
		r.do(true, func(o *Out) { r.c.Campaign(r.now, o) })
		r.step(Msg{Type: MsgPreVoteResp, From: 3, Term: 2})
		r.step(Msg{Type: MsgApp, From: 2, Term: c.term})
		if follows := r.c.role == RoleFollower && r.c.lead == 2; follows != c.follows {
			t.Errorf("term %d: %+v", c.term, r.c.Status())
		}
	}
}

// Section 5.2: when votes split nobody wins, and the candidates try again in a
// higher term.
func TestPaper52SplitVote(t *testing.T) {
	r := newRig(t, stateOf(three, HardState{}, nil))
	r.do(true, func(o *Out) { r.c.Campaign(r.now, o) })
	r.step(Msg{Type: MsgPreVoteResp, From: 2, Term: 1})
	r.step(Msg{Type: MsgVoteResp, From: 2, Term: 1, Flags: FlagReject})
	if r.c.role != RoleCandidate {
		t.Fatalf("one refusal of three: %v", r.c.role)
	}
	r.step(Msg{Type: MsgVoteResp, From: 3, Term: 1, Flags: FlagReject})
	if r.c.role == RoleLeader {
		t.Fatal("elected by refusals")
	}
	r.now = r.c.Deadline()
	r.do(true, func(o *Out) { r.c.Tick(r.now, o) })
	if m := r.want(r.take(), MsgPreVote, 2); m.Term != 2 {
		t.Errorf("next campaign %+v", m)
	}
}

// Section 5.2: the delays before elections are random, so that split votes are
// rare. Here: a rank, which differs between the voters of a group, and a
// jitter at least as wide as one rank step, drawn anew for each attempt.
func TestPaper52DelaysDiffer(t *testing.T) {
	seen := map[Time]bool{}
	r := newRig(t, stateOf(three, HardState{}, nil))
	for range 20 {
		r.c.armElection(0)
		seen[r.c.electionAt] = true
	}
	if len(seen) < 15 {
		t.Errorf("20 draws gave %d delays", len(seen))
	}
	first := map[int]int{}
	for s := ShardID(1); s <= 300; s++ {
		var ranks []int
		for n := NodeID(1); n <= 3; n++ {
			d := three.Clone()
			d.Shard = s
			c := newTestCore(t, n, d, r.live, Tuning{})
			ranks = append(ranks, c.rank())
			if c.rank() == 0 {
				first[int(n)]++
			}
		}
		slices.Sort(ranks)
		if !slices.Equal(ranks, []int{0, 1, 2}) {
			t.Fatalf("shard %d: ranks %v", s, ranks)
		}
	}
	for n, k := range first {
		if k < 60 {
			t.Errorf("node %d comes first for %d of 300 shards", n, k)
		}
	}
	if err := (Tuning{ElectionJitter: time.Millisecond}).WithDefaults().Validate(); err == nil {
		t.Error("a jitter narrower than a rank step passes")
	}
}

// Section 5.3: the leader appends a command to its log and sends it to all; it
// is committed when a majority holds it, and applied; the commit index goes out
// with the next messages.
func TestPaper53CommitByMajority(t *testing.T) {
	r := newRig(t, stateOf(three, HardState{}, nil))
	r.lead()
	r.step(Msg{Type: MsgAppResp, From: 2, Term: 1, Index: 1})
	r.step(Msg{Type: MsgAppResp, From: 3, Term: 1, Index: 1})
	var mark LogMark
	r.do(true, func(o *Out) {
		var err error
		if mark, err = r.c.Propose(r.now, EntryHeader{GroupTs: 5}, []Command{{Op: 1, Body: []byte("x")}}, o); err != nil {
			t.Fatal(err)
		}
	})
	ms := r.take()
	for _, n := range []NodeID{2, 3} {
		if m := r.want(ms, MsgApp, n); len(m.Entries) != 1 || m.Index != 1 || m.LogTerm != 1 {
			t.Errorf("append to %d: %+v", n, m)
		}
	}
	if r.c.log.commit != 1 {
		t.Fatal("committed by the leader alone")
	}
	r.step(Msg{Type: MsgAppResp, From: 3, Term: 1, Index: mark.Index})
	if r.c.log.commit != mark.Index || len(r.done) != 2 || r.done[1].Index != mark.Index {
		t.Fatalf("commit %d, applied %d entries", r.c.log.commit, len(r.done))
	}
	r.now = r.now.Add(5 * time.Millisecond)
	r.do(true, func(o *Out) {})
	r.now = r.now.Add(r.c.tun.CommitDelay)
	r.do(true, func(o *Out) {})
	if m := r.want(r.take(), MsgCommit, 3); m.Commit != mark.Index {
		t.Errorf("commit record %+v", m)
	}
}

// Section 5.3: a follower acknowledges what is on its disk, applies what the
// leader says is committed, in log order, and never beyond what it was sent.
func TestPaper53FollowerCommits(t *testing.T) {
	log := terms(1, 1, 1, 1)
	for commit := Index(0); commit <= 6; commit++ {
		r := newRig(t, stateOf(three, HardState{}, nil))
		a := r.want(r.step(Msg{Type: MsgApp, From: 2, Term: 1, Entries: log, Commit: commit}), MsgAppResp, 2)
		if a.Reject() || a.Index != 4 {
			t.Fatalf("answer %+v", a)
		}
		if want := min(commit, 4); r.c.log.commit != want || len(r.done) != int(want) {
			t.Errorf("leader's commit %d: commit %d, applied %d", commit, r.c.log.commit, len(r.done))
		}
		for i, e := range r.done {
			if e.Index != Index(i+1) {
				t.Errorf("applied %d at place %d", e.Index, i)
			}
		}
	}
}

// Section 5.3: an append whose previous entry is missing or of another term is
// refused (log matching).
func TestPaper53ConsistencyCheck(t *testing.T) {
	for _, c := range []struct {
		index Index
		term  Term
		ok    bool
	}{{0, 0, true}, {1, 1, true}, {2, 2, true}, {2, 1, false}, {3, 2, false}, {3, 3, false}, {1, 2, false}} {
		r := newRig(t, stateOf(three, HardState{Term: 2}, terms(1, 2)))
		a := r.want(r.step(Msg{Type: MsgApp, From: 2, Term: 3, Index: c.index, LogTerm: c.term}), MsgAppResp, 2)
		if a.Reject() == c.ok {
			t.Errorf("previous entry %d/%d: %+v", c.index, c.term, a)
		}
	}
}

// Section 5.3, figure 7: whatever the follower's log looks like - entries
// missing, superfluous, or both, of several terms - the leader of term 8 makes
// it equal to its own, in few round trips.
func TestPaper53Figure7(t *testing.T) {
	leaderLog := terms(1, 1, 1, 4, 4, 5, 5, 6, 6, 6)
	for name, log := range map[string][]Term{
		"a": {1, 1, 1, 4, 4, 5, 5, 6, 6},
		"b": {1, 1, 1, 4},
		"c": {1, 1, 1, 4, 4, 5, 5, 6, 6, 6, 6},
		"d": {1, 1, 1, 4, 4, 5, 5, 6, 6, 6, 7, 7},
		"e": {1, 1, 1, 4, 4, 4, 4},
		"f": {1, 1, 1, 2, 2, 2, 3, 3, 3, 3, 3},
	} {
		t.Run(name, func(t *testing.T) {
			l := newRig(t, stateOf(three, HardState{Term: 7}, leaderLog))
			f := newRig(t, stateOf(three, HardState{Term: 7}, terms(log...)))
			out := l.lead()
			trips := 0
			for {
				m := find(out, MsgApp, 2)
				if m == nil {
					break
				}
				trips++
				m.From = 3 // the follower's core calls itself 1
				a := f.want(f.step(*m), MsgAppResp, 3)
				a.From = 2
				out = l.step(a)
			}
			if !slices.Equal(f.logTerms(), l.logTerms()) || len(f.logTerms()) != 11 {
				t.Errorf("follower %v, leader %v", f.logTerms(), l.logTerms())
			}
			if trips > 4 {
				t.Errorf("%d round trips", trips)
			}
		})
	}
}

// Section 5.3: a leader never overwrites or deletes entries of its own log.
func TestPaper53LeaderAppendsOnly(t *testing.T) {
	r := newRig(t, stateOf(three, HardState{Term: 2}, terms(1, 2, 2)))
	r.lead()
	before := r.logTerms()
	r.step(Msg{Type: MsgApp, From: 2, Term: 3, Index: 1, LogTerm: 1, Entries: terms(1, 3)[1:]})
	r.step(Msg{Type: MsgAppResp, From: 2, Term: 3, Flags: FlagReject, Commit: 3, Index: 0})
	if !slices.Equal(before, r.logTerms()) || r.c.role != RoleLeader {
		t.Errorf("log %v, was %v", r.logTerms(), before)
	}
}

// Section 5.4.1: a vote goes only to a candidate whose log is at least as up to
// date: first the term of the last entry counts, then its index.
func TestPaper541UpToDate(t *testing.T) {
	for _, c := range []struct {
		mine  []Term
		term  Term
		index Index
		ok    bool
	}{
		{nil, 0, 0, true}, {nil, 1, 1, true},
		{[]Term{1}, 1, 1, true}, {[]Term{1}, 1, 2, true}, {[]Term{1, 1}, 1, 1, false},
		{[]Term{1, 1}, 2, 1, true}, {[]Term{1, 1, 1}, 2, 1, true},
		{[]Term{2}, 1, 1, false}, {[]Term{2}, 1, 9, false}, {[]Term{1, 2}, 2, 2, true},
	} {
		for _, typ := range []MsgType{MsgPreVote, MsgVote} {
			r := newRig(t, stateOf(three, HardState{}, terms(c.mine...)))
			a := r.want(r.step(Msg{Type: typ, From: 2, Term: 9, Index: c.index, LogTerm: c.term}), typ+1, 2)
			if a.Reject() == c.ok {
				t.Errorf("log %v, candidate's last %d/%d, type %d: %+v", c.mine, c.index, c.term, typ, a)
			}
		}
	}
}

// Section 5.4.2: entries of older terms are not committed by counting replicas,
// only together with one of the leader's own term (figure 8).
func TestPaper542OnlyOwnTermByCounting(t *testing.T) {
	r := newRig(t, stateOf(five, HardState{Term: 2}, terms(1, 2)))
	r.lead()
	for _, n := range []NodeID{2, 3, 4, 5} {
		r.step(Msg{Type: MsgAppResp, From: n, Term: 3, Index: 2})
	}
	if r.c.log.commit != 0 {
		t.Fatalf("entry of term 2 committed by counting at term 3: %d", r.c.log.commit)
	}
	r.step(Msg{Type: MsgAppResp, From: 2, Term: 3, Index: 3})
	r.step(Msg{Type: MsgAppResp, From: 3, Term: 3, Index: 3})
	if r.c.log.commit != 3 || len(r.done) != 3 {
		t.Fatalf("commit %d, applied %d", r.c.log.commit, len(r.done))
	}
}

// Section 5.5: messages may be lost and repeated. A repeated append changes
// nothing, an old short one does not cut the log, and a silent peer is asked
// again and again, ever more seldom.
func TestPaper55LostAndRepeated(t *testing.T) {
	r := newRig(t, stateOf(three, HardState{}, nil))
	log := terms(1, 1, 1)
	whole := Msg{Type: MsgApp, From: 2, Term: 1, Entries: log, Commit: 1}
	short := Msg{Type: MsgApp, From: 2, Term: 1, Entries: log[:1]}
	for _, m := range []Msg{whole, whole, short, whole, short} {
		a := r.want(r.step(m), MsgAppResp, 2)
		if a.Reject() || a.Index != Index(len(m.Entries)) && a.Index != r.c.log.commit {
			t.Errorf("answer %+v", a)
		}
		if !slices.Equal(r.logTerms(), []Term{1, 1, 1}) {
			t.Fatalf("log %v", r.logTerms())
		}
	}
	if r.c.log.commit != 1 || len(r.done) != 1 {
		t.Errorf("commit %d, applied %d", r.c.log.commit, len(r.done))
	}

	l := newRig(t, stateOf(three, HardState{}, nil))
	l.lead()
	var sent []Time
	for l.now < Time(11e9) {
		l.now = max(l.c.Deadline(), l.now+1)
		l.do(true, func(o *Out) { l.c.Tick(l.now, o) })
		if find(l.take(), MsgApp, 2) != nil {
			sent = append(sent, l.now)
		}
	}
	if len(sent) < 5 || len(sent) > 15 {
		t.Errorf("%d appends to a silent peer in 10 s", len(sent))
	}
}

// Section 6: in a joint configuration elections and commits need a majority of
// the old and one of the new half.
func TestPaper6JointMajorities(t *testing.T) {
	desc := testDesc(Voter, VoterOutgoing, VoterOutgoing, VoterIncoming, VoterIncoming)
	for _, c := range []struct {
		votes []NodeID
		ok    bool
	}{
		{[]NodeID{2, 3}, false}, {[]NodeID{4, 5}, false}, {[]NodeID{2}, false}, {[]NodeID{4}, false},
		{[]NodeID{2, 4}, true}, {[]NodeID{3, 5}, true},
	} {
		r := newRig(t, stateOf(desc, HardState{}, nil))
		r.do(true, func(o *Out) { r.c.Campaign(r.now, o) })
		for n := NodeID(2); n <= 5; n++ {
			r.step(Msg{Type: MsgPreVoteResp, From: n, Term: 1})
		}
		for _, n := range c.votes {
			r.step(Msg{Type: MsgVoteResp, From: n, Term: 1})
		}
		if (r.c.role == RoleLeader) != c.ok {
			t.Errorf("votes %v: %v", c.votes, r.c.role)
		}
		r = newRig(t, stateOf(desc, HardState{}, nil))
		r.lead()
		for _, n := range c.votes {
			r.step(Msg{Type: MsgAppResp, From: n, Term: 1, Index: 1})
		}
		if (r.c.log.commit >= 1) != c.ok {
			t.Errorf("acks %v: commit %d", c.votes, r.c.log.commit)
		}
	}
}

// Section 6: new servers join as learners first: they receive the log and do
// not count, neither for commits nor for elections.
func TestPaper6LearnersDoNotCount(t *testing.T) {
	r := newRig(t, stateOf(testDesc(Voter, Voter, Learner), HardState{}, nil))
	out := r.lead()
	r.want(out, MsgApp, 3)
	r.step(Msg{Type: MsgAppResp, From: 3, Term: 1, Index: 1})
	if r.c.log.commit != 0 {
		t.Error("a learner's copy counted")
	}
	r = newRig(t, stateOf(testDesc(Learner, Voter, Voter), HardState{}, nil))
	if r.do(true, func(o *Out) { r.c.Campaign(r.now, o) }); len(r.take()) != 0 || r.c.electionAt != Never {
		t.Error("a learner campaigns")
	}
}

// Section 6: one change at a time, only by a leader that has committed an entry
// of its own term, and never one that takes the leader itself out.
func TestPaper6OneChangeAtATime(t *testing.T) {
	add := func(ver uint64, n NodeID) ConfChange {
		return ConfChange{ConfVer: ver, Steps: []ConfStep{{Replica: Replica{Node: n, Role: Learner}}}}
	}
	r := newRig(t, stateOf(three, HardState{}, nil))
	try := func(cc ConfChange, want error) {
		t.Helper()
		r.do(true, func(o *Out) {
			if _, err := r.c.ProposeConf(r.now, cc, EntryHeader{}, o); !errors.Is(err, want) {
				t.Errorf("%+v: %v, want %v", cc, err, want)
			}
		})
	}
	try(add(1, 4), ErrNotLeader)
	r.lead()
	try(add(1, 4), ErrConfPending)
	r.step(Msg{Type: MsgAppResp, From: 2, Term: 1, Index: 1})
	try(add(9, 4), ErrConfVersion)
	try(add(1, 2), nil)
	try(add(1, 4), ErrConfPending)
	self := ConfChange{ConfVer: 1, Steps: []ConfStep{{Remove: true, Replica: Replica{Node: 1}}}}
	r = newRig(t, stateOf(three, HardState{}, nil))
	r.lead()
	r.step(Msg{Type: MsgAppResp, From: 2, Term: 1, Index: 1})
	try(self, ErrConfUnsafe)
}

// Section 6: a server that was removed, or is cut off, cannot disturb a group
// whose leader is alive: vote requests are disregarded meanwhile.
func TestPaper6DisruptiveServers(t *testing.T) {
	r := newRig(t, stateOf(three, HardState{}, nil))
	r.step(Msg{Type: MsgApp, From: 2, Term: 1, Flags: FlagFortify, Entries: terms(1)})
	for _, typ := range []MsgType{MsgPreVote, MsgVote} {
		r.step(Msg{Type: typ, From: 3, Term: 5, Index: 9, LogTerm: 1})
		if r.c.hs.Term != 1 || r.c.lead != 2 {
			t.Errorf("type %d disturbed: %+v", typ, r.c.Status())
		}
	}
	desc := testDesc(Voter, Voter, Voter)
	desc.NextReplica = 9 // replica 7 was removed long ago
	r = newRig(t, stateOf(desc, HardState{}, nil))
	gone := Msg{Type: MsgVote, Shard: 7, From: 4, FromReplica: 7, To: 1, ToReplica: 1, Term: 5, Index: 9, LogTerm: 9}
	r.do(true, func(o *Out) { r.c.Step(r.now, &gone, o) })
	if len(r.take()) != 0 || r.c.hs.Term != 0 {
		t.Error("a removed replica was heard")
	}
}

// Section 7: a leader that has discarded the entries a follower needs sends its
// snapshot; the follower discards its log for it, unless the log holds the
// snapshot's last entry already.
func TestPaper7Snapshot(t *testing.T) {
	st := State{Desc: three, Hard: HardState{Term: 2}, Applied: AppliedState{Applied: 10, AppliedTerm: 2, TruncIndex: 10, TruncTerm: 2}, Last: 10}
	r := newRig(t, st)
	r.lead()
	m := Msg{Type: MsgAppResp, Shard: 7, From: 2, FromReplica: 2, To: 1, ToReplica: 1, Term: 3, Flags: FlagReject, Commit: 10, Index: 4, LogTerm: 1}
	r.do(false, func(o *Out) {
		r.c.Step(r.now, &m, o)
		r.c.Flush(r.now, o)
		if len(o.Snapshots) != 1 || o.Snapshots[0].To != 2 || o.Snapshots[0].ToReplica != 2 {
			t.Errorf("snapshots %+v", o.Snapshots)
		}
	})
	f := newRig(t, stateOf(three, HardState{}, terms(1, 1, 2, 2)))
	for _, c := range []struct {
		index Index
		term  Term
		want  bool
	}{{4, 2, false}, {3, 2, false}, {5, 2, true}, {3, 3, true}, {0, 0, false}} {
		if got := f.c.WantsSnapshot(c.index, c.term); got != c.want {
			t.Errorf("wants snapshot %d/%d: %v", c.index, c.term, got)
		}
	}
	f.step(Msg{Type: MsgApp, From: 2, Term: 3, Index: 20, LogTerm: 3})
	f.do(true, func(o *Out) { st.Hard = f.c.HardState(); f.c.Restore(f.now, st, o) })
	if a := f.want(f.take(), MsgAppResp, 2); a.Index != 10 || a.Term != 3 {
		t.Errorf("after the install: %+v", a)
	}
	if s := f.c.Status(); s.Commit != 10 || s.Last != 10 || s.Term != 3 {
		t.Errorf("status %+v", s)
	}
}

// Section 8: a new leader does not know what is committed until an entry of its
// own term is; it appends an empty one at once, and reads wait for it.
func TestPaper8EmptyEntryFirst(t *testing.T) {
	r := newRig(t, stateOf(three, HardState{}, terms(1, 1)))
	m := r.want(r.lead(), MsgApp, 2)
	if len(m.Entries) != 1 || m.Entries[0].Type != EntryEmpty || m.Entries[0].Term != 2 {
		t.Fatalf("first append %+v", m)
	}
	var reads []ReadState
	r.do(true, func(o *Out) { r.c.ReadIndex(r.now, 5, o); reads = append(reads, o.Reads...) })
	ping := r.want(r.take(), MsgCommit, 2)
	answer := Msg{Type: MsgCommitResp, Shard: 7, From: 2, FromReplica: 2, To: 1, ToReplica: 1, Term: 2, Round: ping.Round}
	r.do(true, func(o *Out) { r.c.Step(r.now, &answer, o); reads = append(reads, o.Reads...) })
	if len(reads) != 0 {
		t.Fatalf("read answered before the own term's entry is committed: %+v", reads)
	}
	ack := Msg{Type: MsgAppResp, Shard: 7, From: 2, FromReplica: 2, To: 1, ToReplica: 1, Term: 2, Index: 3}
	r.do(false, func(o *Out) {
		r.c.Step(r.now, &ack, o)
		r.c.Flush(r.now, o)
		if len(o.Reads) != 1 || o.Reads[0].Index != 3 || o.Reads[0].Err != nil {
			t.Errorf("reads %+v", o.Reads)
		}
	})
}

// Section 8: a leader checks that it has not been deposed before it answers a
// read, by hearing from a majority after the read came; answers to earlier
// rounds, of other terms and of learners do not count.
func TestPaper8ReadsAreConfirmed(t *testing.T) {
	r := newRig(t, stateOf(testDesc(Voter, Voter, Voter, Learner), HardState{}, nil))
	r.lead()
	r.step(Msg{Type: MsgAppResp, From: 2, Term: 1, Index: 1})
	var reads []ReadState
	count := func(m Msg) int {
		m.Shard, m.FromReplica, m.To, m.ToReplica = 7, ReplicaID(m.From), 1, 1
		r.do(true, func(o *Out) { r.c.Step(r.now, &m, o); reads = append(reads, o.Reads...) })
		return len(reads)
	}
	r.do(true, func(o *Out) { r.c.ReadIndex(r.now, 1, o) })
	first := r.want(r.take(), MsgCommit, 2).Round
	r.do(true, func(o *Out) { r.c.ReadIndex(r.now, 2, o) })
	second := r.want(r.take(), MsgCommit, 2).Round
	if first == 0 || second <= first {
		t.Fatalf("rounds %d and %d", first, second)
	}
	for _, m := range []Msg{
		{Type: MsgCommitResp, From: 4, Term: 1, Round: second},
		{Type: MsgCommitResp, From: 2, Term: 1, Round: first - 1},
		{Type: MsgCommitResp, From: 2, Term: 0, Round: second},
	} {
		if n := count(m); n != 0 {
			t.Fatalf("%+v confirmed %d reads", m, n)
		}
	}
	if n := count(Msg{Type: MsgCommitResp, From: 2, Term: 1, Round: first}); n != 1 || reads[0].Context != 1 {
		t.Fatalf("first round confirmed %+v", reads)
	}
	if n := count(Msg{Type: MsgApp, From: 3, Term: 2}); n != 2 || !errors.Is(reads[1].Err, ErrNotLeader) {
		t.Fatalf("deposed: %+v", reads)
	}
}

// Section 8 (and thesis 6.4): a leader whose quorum's support has lapsed steps
// down and says so, instead of leading alone for ever.
func TestPaper8LeaderWithoutQuorum(t *testing.T) {
	r := newRig(t, stateOf(three, HardState{}, nil))
	r.lead()
	r.live.down[2], r.live.down[3] = true, true
	for range 4 {
		r.now = max(r.c.Deadline(), r.now+1)
		r.do(true, func(o *Out) { r.c.Tick(r.now, o) })
		if r.c.role != RoleLeader {
			break
		}
	}
	if st := r.c.Status(); st.Role == RoleLeader || !st.QuorumLost || fmt.Sprint(st.QuorumDown) != "[2 3]" {
		t.Fatalf("status %+v", st)
	}
	r.want(r.take(), MsgStepDown, 2)
}
