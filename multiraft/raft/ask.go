package raft

import (
	"math/bits"
	"slices"

	"github.com/flotillakv/flotilla/internal/mutants"
)

// Linearizable reads at any replica: the replica asks the leader for a read
// index (MsgReadReq), waits until that index is applied here, and reads its own
// store. What it reads holds everything that was committed when the leader
// answered, which was after the read began.

// ReadAsk is a member's request for a read index. The owner settles it like a
// read of its own (LeaseRead, else ReadIndex) and answers with AnswerRead as
// soon as the index is known; nothing has to be applied for that.
type ReadAsk struct {
	Shard   ShardID
	From    NodeID
	Replica ReplicaID
	Round   uint64
}

// askTries is how often a question to the leader is repeated before the reads
// that wait for it are failed.
const askTries = 5

// asking is the follower's side: reads that wait for the leader's answer. One
// question covers all reads that were begun before it was sent.
type asking struct {
	reads []askedRead // in order of round
	seq   uint64      // of the newest question; unique over restarts of this replica
	sent  Time
	tries int
	lead  ReplicaID // who was asked, and in which term
	term  Term
}

type askedRead struct {
	ctx   uint64
	round uint64
}

// FollowerRead asks the leader, wherever it is, for an index at which a read is
// linearizable; the answer comes through Out.Reads. Err is ErrNotLeader if no
// leader is known, or it does not answer, or it leads no more: the read may be
// tried again, best at the leader. On the leader it is ReadIndex.
func (c *Core) FollowerRead(now Time, ctx uint64, o *Out) {
	c.touch(now)
	if c.role == RoleLeader {
		c.ReadIndex(now, ctx, o)
		return
	}
	if c.lead == 0 {
		o.Reads = append(o.Reads, ReadState{Shard: c.shard, Context: ctx, Err: ErrNotLeader})
		return
	}
	a := &c.own().asking
	c.checkAsked(o)
	if a.seq == 0 {
		// The boot epoch keeps the answers to an earlier life apart: they know
		// nothing of what was committed since.
		e, _ := c.live.SupportFrom(c.node)
		if mutants.On("D2c") {
			e = 1
		}
		a.seq = bits.RotateLeft64(uint64(e), 32)
	}
	a.seq++
	a.reads = append(a.reads, askedRead{ctx: ctx, round: a.seq})
	a.lead, a.term, a.tries = c.lead, c.hs.Term, 0
	c.ask(now, o)
}

func (c *Core) ask(now Time, o *Out) {
	a := &c.own().asking
	a.sent = now
	a.tries++
	c.send(o, c.leadNode, c.lead, Msg{Type: MsgReadReq, Round: a.seq})
}

// askDue returns when a question to the leader has to be repeated.
func (c *Core) askDue() Time {
	a := &c.few().asking
	if len(a.reads) == 0 {
		return Never
	}
	return a.sent.Add(c.tun.ProbeRetry)
}

func (c *Core) tickAsked(now Time, o *Out) {
	if now < c.askDue() {
		return
	}
	c.checkAsked(o)
	switch a := &c.few().asking; {
	case len(a.reads) == 0:
	case a.tries >= askTries:
		c.failAsked(a.seq, o)
	default:
		c.ask(now, o)
	}
}

// checkAsked fails the reads whose leader is not the leader any more.
func (c *Core) checkAsked(o *Out) {
	a := &c.few().asking
	if mutants.On("D3") { // they may be answered yet
		return
	}
	if len(a.reads) > 0 && (a.lead != c.lead || a.term != c.hs.Term || c.role == RoleLeader) {
		c.failAsked(a.seq, o)
	}
}

// failAsked fails the reads of questions up to round.
func (c *Core) failAsked(round uint64, o *Out) {
	if len(c.few().asking.reads) == 0 {
		return
	}
	a := &c.own().asking
	n := 0
	for n < len(a.reads) && a.reads[n].round <= round {
		o.Reads = append(o.Reads, ReadState{Shard: c.shard, Context: a.reads[n].ctx, Err: ErrNotLeader})
		n++
	}
	a.reads = slices.Delete(a.reads, 0, n)
}

// stepReadReq takes a member's question.
func (c *Core) stepReadReq(m *Msg, o *Out) {
	if mutants.On("D13") && c.role == RoleFollower {
		c.send(o, m.From, m.FromReplica, Msg{Type: MsgReadResp, Round: m.Round, Index: c.log.commit})
		return
	}
	if !c.leads() || c.peer(m.FromReplica) == nil {
		c.send(o, m.From, m.FromReplica, Msg{Type: MsgReadResp, Flags: FlagReject, Round: m.Round})
		return
	}
	o.Asks = append(o.Asks, ReadAsk{Shard: c.shard, From: m.From, Replica: m.FromReplica, Round: m.Round})
}

// AnswerRead sends the answer to a member's question: the index that LeaseRead
// or ReadIndex gave in this term, or, with ok false, that there is none.
func (c *Core) AnswerRead(a ReadAsk, index Index, ok bool, o *Out) {
	m := Msg{Type: MsgReadResp, Round: a.Round, Index: index, Commit: c.log.commit, CompactTo: c.compactTo}
	if !ok || !c.leads() {
		m = Msg{Type: MsgReadResp, Flags: FlagReject, Round: a.Round}
	}
	c.send(o, a.From, a.Replica, m)
}

// stepReadResp takes the leader's answer. It settles the reads that had begun
// when the question was sent, and no others.
func (c *Core) stepReadResp(m *Msg, o *Out) {
	if c.seldom == nil {
		return // nothing was asked
	}
	a := &c.seldom.asking
	if m.FromReplica != a.lead || m.Term != a.term || m.Round > a.seq {
		return
	}
	if m.Reject() {
		c.failAsked(m.Round, o)
		return
	}
	if m.Term == c.log.accTerm { // as with a commit record
		c.commitTo(min(m.Commit, c.log.last))
		c.compactTo = max(c.compactTo, min(m.CompactTo, c.log.last))
	}
	n := 0
	for n < len(a.reads) && (a.reads[n].round <= m.Round || mutants.On("D2b")) {
		o.Reads = append(o.Reads, ReadState{Shard: c.shard, Context: a.reads[n].ctx, Index: m.Index})
		n++
	}
	a.reads = slices.Delete(a.reads, 0, n)
}
