package raft

import (
	"errors"
	"fmt"
	"testing"
	"time"
)

// leaseCases are the rules of leases and of reads at followers, one by one. Each
// plays a scenario on node 1 and returns what contradicts the rule.
var leaseCases = []struct {
	name string
	run  func(t *testing.T) error
}{
	{"majority", leaseMajority},
	{"joint", leaseJoint},
	{"learners", leaseLearners},
	{"epochs", leaseEpochs},
	{"own term first", leaseOwnTerm},
	{"grant", leaseGrant},
	{"given up transfer", leaseGivenUp},
	{"off", leaseOff},
	{"restarted leader", leaseRestart},
	{"restarted voter", leaseRestartedVoter},
	{"voter keeps its promise", leaseVoterPromise},
	{"step down is final", stepDownFinal},
	{"follower read", askOnce},
	{"follower read, earlier answer", askEarlier},
	{"follower read, earlier life", askEarlierLife},
	{"follower read, leader gone", askLeaderGone},
	{"follower read, silent leader", askSilent},
	{"question to a follower", askFollower},
	{"question to a leader", askLeader},
}

func TestLease(t *testing.T) {
	for _, c := range leaseCases {
		t.Run(c.name, func(t *testing.T) {
			if err := c.run(t); err != nil {
				t.Fatal(err)
			}
		})
	}
}

const epoch1 = Epoch(1<<32 | 1)

// newLeaseRig makes node 1 the leader of desc in term 1, with leases. Nobody has
// fortified it yet and nothing of its term is committed.
func newLeaseRig(t *testing.T, desc Descriptor) *rig {
	r := newRig(t, stateOf(desc, HardState{}, nil))
	r.c.leased = true
	r.live.from = map[NodeID]promise{}
	r.lead()
	return r
}

// fortify lets node n acknowledge everything, with a promise that stands for d.
func (r *rig) fortify(n NodeID, d time.Duration) {
	r.live.from[n] = promise{epoch1, r.now.Add(d)}
	r.step(Msg{Type: MsgAppResp, From: n, Term: r.c.hs.Term, Index: r.c.log.last, Epoch: epoch1})
}

// held reports for how long the lease holds from now on; negative: not at all.
func (r *rig) held() time.Duration {
	var buf [MaxReplicas]LeaseVoter
	l, ok := r.c.Lease(buf[:0])
	if !ok {
		return -1
	}
	d := l.Until(r.live).Sub(r.now)
	index, served := r.c.LeaseRead(r.now)
	if served != (d > 0) || served && index != r.c.log.commit {
		r.t.Errorf("LeaseRead says %d, %v; the lease holds for %v, committed is %d", index, served, d, r.c.log.commit)
	}
	if d <= 0 {
		return -1
	}
	return d
}

func expect(what string, got, want time.Duration) error {
	if got != want {
		return fmt.Errorf("%s: the lease holds for %v, want %v", what, got, want)
	}
	return nil
}

// The lease ends when fewer than a majority is known to stand by its promise.
func leaseMajority(t *testing.T) error {
	r := newLeaseRig(t, five)
	r.fortify(2, 3*time.Second)
	r.step(Msg{Type: MsgAppResp, From: 3, Term: 1, Index: r.c.log.last}) // no promise
	if err := expect("one promise of five", r.held(), -1); err != nil {
		return err
	}
	r.fortify(3, 2*time.Second)
	if err := expect("two promises of five", r.held(), 2*time.Second); err != nil {
		return err
	}
	r.fortify(4, 4*time.Second)
	if err := expect("three promises", r.held(), 3*time.Second); err != nil {
		return err
	}
	r.now = r.now.Add(3 * time.Second)
	if err := expect("at its end", r.held(), -1); err != nil {
		return err
	}
	r.now--
	r.live.from[1] = promise{1 << 32, 0} // the own gate is closed
	return expect("without oneself", r.held(), -1)
}

// Of a joint configuration both halves must promise.
func leaseJoint(t *testing.T) error {
	for _, c := range []struct {
		promise []NodeID
		want    time.Duration
	}{
		{[]NodeID{2, 3}, -1}, // the old half {1, 2, 3} alone
		{[]NodeID{4, 5}, -1}, // the new half {1, 4, 5} alone
		{[]NodeID{2, 4}, time.Second},
	} {
		r := newLeaseRig(t, testDesc(Voter, VoterOutgoing, VoterOutgoing, VoterIncoming, VoterIncoming))
		for n := NodeID(2); n <= 5; n++ { // commit needs no promises
			r.step(Msg{Type: MsgAppResp, From: n, Term: 1, Index: 1})
		}
		for _, n := range c.promise {
			r.fortify(n, time.Second)
		}
		if err := expect(fmt.Sprintf("promises of %v", c.promise), r.held(), c.want); err != nil {
			return err
		}
	}
	return nil
}

// Learners count for nothing.
func leaseLearners(t *testing.T) error {
	r := newLeaseRig(t, testDesc(Voter, Voter, Voter, Learner, Learner))
	r.step(Msg{Type: MsgAppResp, From: 2, Term: 1, Index: 1})
	r.fortify(4, time.Second)
	r.fortify(5, time.Second)
	return expect("promises of learners", r.held(), -1)
}

// A promise counts at the epoch at which it was made, no earlier and no later one.
func leaseEpochs(t *testing.T) error {
	r := newLeaseRig(t, three)
	r.fortify(2, time.Second)
	if err := expect("at the epoch", r.held(), time.Second); err != nil {
		return err
	}
	r.live.from[2] = promise{epoch1 + 1, r.now.Add(time.Second)}
	if err := expect("at another epoch", r.held(), -1); err != nil {
		return err
	}
	r.step(Msg{Type: MsgFortifyResp, From: 2, Term: 1, Epoch: epoch1 + 1})
	return expect("promised again", r.held(), time.Second)
}

// Before an entry of the own term is committed the leader does not know what was
// committed before it.
func leaseOwnTerm(t *testing.T) error {
	r := newLeaseRig(t, three)
	r.live.from[2] = promise{epoch1, r.now.Add(time.Second)}
	r.step(Msg{Type: MsgFortifyResp, From: 2, Term: 1, Epoch: epoch1})
	if err := expect("nothing of the term committed", r.held(), -1); err != nil {
		return err
	}
	r.fortify(2, time.Second)
	return expect("committed", r.held(), time.Second)
}

// Whoever was granted a campaign may be elected whatever the promises (B1).
func leaseGrant(t *testing.T) error {
	r := newLeaseRig(t, three)
	r.fortify(2, time.Hour)
	r.do(true, func(o *Out) { _ = r.c.Transfer(r.now, 3, o) })
	if find(r.take(), MsgTimeoutNow, 3) != nil {
		return errors.New("the target is behind and was told to campaign")
	}
	if err := expect("a transfer that has granted nothing", r.held(), time.Hour); err != nil {
		return err
	}
	if find(r.step(Msg{Type: MsgAppResp, From: 3, Term: 1, Index: r.c.log.last, Epoch: epoch1}), MsgTimeoutNow, 3) == nil {
		return errors.New("the target was not told to campaign")
	}
	return expect("after the grant", r.held(), -1)
}

// When a transfer comes to nothing, the lease comes back with the next term, in
// which the grant is worth nothing.
func leaseGivenUp(t *testing.T) error {
	r := newLeaseRig(t, three)
	r.fortify(2, time.Hour)
	r.fortify(3, time.Hour)
	r.do(true, func(o *Out) { _ = r.c.Transfer(r.now, 3, o) })
	r.take()
	r.now = r.now.Add(time.Second)
	r.do(true, func(o *Out) { r.c.Tick(r.now, o) })
	ms := r.take()
	if r.c.hs.Term == 1 {
		if err := expect("after a transfer that was given up", r.held(), -1); err != nil {
			return err
		}
		return errors.New("the leader waits with its election")
	}
	down, vote := find(ms, MsgStepDown, 2), find(ms, MsgVote, 2)
	if down == nil || down.Term != 1 || vote == nil || vote.Term != 2 || vote.Flags&FlagGrant != 0 {
		return fmt.Errorf("given up with %+v", ms)
	}
	r.step(Msg{Type: MsgVoteResp, From: 2, Term: 2})
	if r.c.role != RoleLeader || r.c.hs.Term != 2 {
		return fmt.Errorf("not elected: %+v", r.c.Status())
	}
	r.fortify(2, time.Hour)
	return expect("in the next term", r.held(), time.Hour)
}

// Without the option there is no lease, and what the disk says changes with the
// next election only.
func leaseOff(t *testing.T) error {
	r := newLeaseRig(t, three)
	if !r.hard.Leased {
		return errors.New("the disk does not say that leases are on")
	}
	r.c.leased = false
	r.step(Msg{Type: MsgApp, From: 2, Term: 7})
	r.live.down[2] = true
	r.do(true, func(o *Out) { r.c.LivenessChanged(r.now, 2, o) })
	r.lead()
	r.fortify(3, time.Hour)
	if r.hard.Leased {
		return errors.New("the disk says that leases are on")
	}
	return expect("without leases", r.held(), -1)
}

// A leader that restarts leads no more and claims nothing (C5).
func leaseRestart(t *testing.T) error {
	r := newLeaseRig(t, three)
	r.fortify(2, time.Hour)
	c, err := NewCore(Config{Node: 1, Liveness: r.live, Rand: 1, Leased: true}, stateOf(three, r.hard, terms(1)), r.now)
	if err != nil {
		t.Fatal(err)
	}
	r.c = c
	if err := expect("after a restart", r.held(), -1); err != nil {
		return err
	}
	r.do(true, func(o *Out) { r.c.Campaign(r.now, o) })
	if find(r.take(), MsgPreVote, 2) == nil {
		return errors.New("a restarted leader waits for itself")
	}
	return nil
}

// A voter that restarts is bound by what it promised before.
func leaseRestartedVoter(t *testing.T) error {
	r := newRig(t, stateOf(three, HardState{Term: 4, Lead: 2, LeadNode: 2, LeadEpoch: epoch1}, terms(4)))
	for _, typ := range []MsgType{MsgPreVote, MsgVote} {
		ms := r.step(Msg{Type: typ, From: 3, Term: 5, Index: 1, LogTerm: 4})
		if a := find(ms, typ+1, 3); a == nil || !a.Reject() {
			return fmt.Errorf("a restarted voter answers %+v while its promise stands", ms)
		}
	}
	r.do(true, func(o *Out) { r.c.Campaign(r.now, o) })
	if find(r.take(), MsgPreVote, 3) != nil {
		return errors.New("a restarted voter campaigns while its promise stands")
	}
	r.live.down[2] = true // withdrawn
	if a := find(r.step(Msg{Type: MsgVote, From: 3, Term: 5, Index: 1, LogTerm: 4}), MsgVoteResp, 3); a == nil || a.Reject() {
		return fmt.Errorf("the promise ended and the voter refuses: %+v", a)
	}
	return nil
}

// A voter keeps its promise, but for a grant, for the leader itself, and for
// proof of a newer leader.
func leaseVoterPromise(t *testing.T) error {
	for _, c := range []struct {
		name string
		m    Msg
		yes  bool
	}{
		{"a plain vote", Msg{Type: MsgVote, From: 3, Term: 2, Index: 1, LogTerm: 1}, false},
		{"a grant of this term", Msg{Type: MsgVote, From: 3, Term: 2, Index: 1, LogTerm: 1, Flags: FlagGrant}, true},
		{"a grant of a later term", Msg{Type: MsgVote, From: 3, Term: 3, Index: 1, LogTerm: 1, Flags: FlagGrant}, false},
		{"the leader itself", Msg{Type: MsgVote, From: 2, Term: 2, Index: 1, LogTerm: 1}, true},
		{"a log of a later term", Msg{Type: MsgVote, From: 3, Term: 4, Index: 2, LogTerm: 3}, true},
		{"an answer of a later term", Msg{Type: MsgAppResp, From: 3, Term: 4}, false},
		{"an append of a later term", Msg{Type: MsgApp, From: 3, Term: 4, Index: 1, LogTerm: 1}, true},
	} {
		r := newRig(t, stateOf(three, HardState{}, nil))
		r.step(Msg{Type: MsgApp, From: 2, Term: 1, Flags: FlagFortify, Entries: terms(1)})
		if r.hard.LeadEpoch != epoch1 || r.hard.Lead != 2 {
			return fmt.Errorf("no durable promise: %+v", r.hard)
		}
		r.step(c.m)
		if moved := r.c.hs.Term > 1; moved != c.yes {
			return fmt.Errorf("%s: the voter is in term %d", c.name, r.c.hs.Term)
		}
	}
	return nil
}

// A leader that said it leads no more is not believed in again because of what
// it had sent before that.
//
//  1. The leader sends a commit record, then becomes a learner and says StepDown.
//  2. StepDown overtakes the record (another stream, another path).
//  3. The only voter that is left would wait for that leader for ever.
func stepDownFinal(t *testing.T) error {
	for _, first := range []Msg{{Type: MsgApp, From: 2, Term: 1, Entries: terms(1)}, {Type: MsgStepDown, From: 2, Term: 1}} {
		r := newRig(t, stateOf(three, HardState{}, nil))
		r.step(first)
		r.step(Msg{Type: MsgStepDown, From: 2, Term: 1})
		ents := terms(1, 1)
		r.step(Msg{Type: MsgCommit, From: 2, Term: 1, Commit: 1})
		ms := r.step(Msg{Type: MsgApp, From: 2, Term: 1, Commit: 1, Flags: FlagFortify, Entries: ents})
		if a := find(ms, MsgAppResp, 2); a == nil || a.Reject() || a.Index != 2 || a.Epoch != 0 || r.hard.LeadEpoch != 0 {
			return fmt.Errorf("the entries are as good as before, a promise is not: %+v, %+v", a, r.hard)
		}
		if st := r.c.Status(); st.Lead != 0 || st.Commit != 1 || r.c.electionAt == Never {
			return fmt.Errorf("believed in again: %+v", st)
		}
		r.step(Msg{Type: MsgApp, From: 3, Term: 2, Index: 2, LogTerm: 1})
		if st := r.c.Status(); st.Lead != 3 || st.Term != 2 {
			return fmt.Errorf("the leader of the next term: %+v", st)
		}
	}
	return nil
}

// newAsker makes node 1 a follower of node 2 in term 1.
func newAsker(t *testing.T) *rig {
	r := newRig(t, stateOf(three, HardState{}, nil))
	r.live.from = map[NodeID]promise{1: {5, Never}}
	r.step(Msg{Type: MsgApp, From: 2, Term: 1, Entries: terms(1)})
	return r
}

// ask begins a read and returns its question, if one was sent.
func (r *rig) ask(ctx uint64) *Msg {
	r.do(true, func(o *Out) { r.c.FollowerRead(r.now, ctx, o) })
	return find(r.take(), MsgReadReq, 2)
}

// answer delivers an answer and returns what became of the reads.
func (r *rig) answer(m Msg) (reads []ReadState) {
	m.Shard, m.To, m.ToReplica, m.FromReplica = 7, 1, 1, ReplicaID(m.From)
	r.do(true, func(o *Out) {
		r.c.Step(r.now, &m, o)
		reads = append(reads, o.Reads...)
	})
	return reads
}

func askOnce(t *testing.T) error {
	r := newAsker(t)
	a, b := r.ask(1), r.ask(2)
	if a == nil || b == nil || a.Term != 1 {
		return fmt.Errorf("questions %v %v", a, b)
	}
	reads := r.answer(Msg{Type: MsgReadResp, From: 2, Term: 1, Round: b.Round, Index: 9, Commit: 9})
	if len(reads) != 2 || reads[0].Index != 9 || reads[0].Context != 1 || reads[1].Context != 2 || reads[1].Err != nil {
		return fmt.Errorf("answered with %+v", reads)
	}
	if r.c.log.commit != 1 {
		return fmt.Errorf("commit index %d, the log and the answer say 1", r.c.log.commit)
	}
	c := r.ask(3)
	if reads := r.answer(Msg{Type: MsgReadResp, From: 2, Term: 1, Round: c.Round, Flags: FlagReject}); len(reads) != 1 || !errors.Is(reads[0].Err, ErrNotLeader) {
		return fmt.Errorf("refused with %+v", reads)
	}
	return nil
}

// The answer to a question says nothing to reads that began later.
func askEarlier(t *testing.T) error {
	r := newAsker(t)
	a := r.ask(1)
	r.ask(2)
	if reads := r.answer(Msg{Type: MsgReadResp, From: 2, Term: 1, Round: a.Round, Index: 1}); len(reads) != 1 || reads[0].Context != 1 {
		return fmt.Errorf("the answer to the first question settles %+v", reads)
	}
	return nil
}

// Nor does one to a question from before a restart.
func askEarlierLife(t *testing.T) error {
	r := newAsker(t)
	a := r.ask(1)
	r = newAsker(t)
	r.live.from[1] = promise{6, Never} // the next boot
	r.ask(1)
	if reads := r.answer(Msg{Type: MsgReadResp, From: 2, Term: 1, Round: a.Round, Index: 1}); len(reads) != 0 {
		return fmt.Errorf("the answer to an earlier life settles %+v", reads)
	}
	return nil
}

func askLeaderGone(t *testing.T) error {
	r := newAsker(t)
	a := r.ask(1)
	var reads []ReadState
	m := Msg{Type: MsgApp, Shard: 7, From: 3, FromReplica: 3, To: 1, ToReplica: 1, Term: 2, Index: 1, LogTerm: 1}
	r.c.Step(r.now, &m, &r.o)
	r.c.Flush(r.now, &r.o)
	reads = append(reads, r.o.Reads...)
	r.o.Reset()
	if len(reads) != 1 || !errors.Is(reads[0].Err, ErrNotLeader) {
		return fmt.Errorf("the leader is another one, the read %+v", reads)
	}
	if reads := r.answer(Msg{Type: MsgReadResp, From: 2, Term: 1, Round: a.Round, Index: 1}); len(reads) != 0 {
		return fmt.Errorf("answered twice: %+v", reads)
	}
	r = newRig(t, stateOf(three, HardState{}, nil))
	r.c.FollowerRead(r.now, 1, &r.o)
	if len(r.o.Reads) != 1 || !errors.Is(r.o.Reads[0].Err, ErrNotLeader) {
		return fmt.Errorf("without a leader: %+v", r.o.Reads)
	}
	return nil
}

// A question is repeated for a while; then the read fails.
func askSilent(t *testing.T) error {
	r := newAsker(t)
	r.ask(1)
	for i := 1; ; i++ {
		if r.c.Deadline() > r.now.Add(time.Second) {
			return fmt.Errorf("no deadline after %d questions", i)
		}
		r.now = r.c.Deadline()
		var reads []ReadState
		r.do(true, func(o *Out) {
			r.c.Tick(r.now, o)
			reads = append(reads, o.Reads...)
		})
		again := find(r.take(), MsgReadReq, 2)
		if len(reads) == 1 {
			if !errors.Is(reads[0].Err, ErrNotLeader) || again != nil || i != askTries {
				return fmt.Errorf("after %d questions: %+v, %+v", i, reads, again)
			}
			return nil
		}
		if i > askTries {
			return errors.New("asks for ever")
		}
	}
}

// Who does not lead gives no read index.
func askFollower(t *testing.T) error {
	r := newAsker(t)
	for _, term := range []Term{1, 0} {
		ms := r.step(Msg{Type: MsgReadReq, From: 3, Term: term, Round: 8})
		if a := find(ms, MsgReadResp, 3); a == nil || !a.Reject() || a.Round != 8 || a.Index != 0 {
			return fmt.Errorf("a follower answers a question of term %d with %+v", term, ms)
		}
	}
	return nil
}

func askLeader(t *testing.T) error {
	r := newLeaseRig(t, three)
	r.fortify(2, time.Second)
	m := Msg{Type: MsgReadReq, Shard: 7, From: 3, FromReplica: 3, To: 1, ToReplica: 1, Term: 1, Round: 8}
	r.c.Step(r.now, &m, &r.o)
	if len(r.o.Asks) != 1 || r.o.Asks[0] != (ReadAsk{7, 3, 3, 8}) {
		return fmt.Errorf("asks %+v", r.o.Asks)
	}
	ask := r.o.Asks[0]
	r.c.AnswerRead(ask, 1, true, &r.o)
	r.c.AnswerRead(ask, 0, false, &r.o)
	for i, want := range []Msg{{Index: 1, Commit: 1}, {Flags: FlagReject}} {
		if a := r.o.Msgs[i]; a.Type != MsgReadResp || a.To != 3 || a.Round != 8 || a.Index != want.Index || a.Commit != want.Commit || a.Flags != want.Flags || a.Term != 1 {
			return fmt.Errorf("answer %d: %+v", i, a)
		}
	}
	r.o.Reset()
	m.FromReplica, m.From = 9, 9 // unknown, but of a configuration to come
	r.c.Step(r.now, &m, &r.o)
	if len(r.o.Asks) != 0 || len(r.o.Msgs) != 1 || !r.o.Msgs[0].Reject() {
		return fmt.Errorf("a stranger's question: %+v %+v", r.o.Asks, r.o.Msgs)
	}
	return nil
}
