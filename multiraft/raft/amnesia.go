package raft

import "github.com/flotillakv/flotilla/internal/mutants"

// Raft counts on it that a replica forgets neither a vote nor an acknowledged
// entry. A store that comes back older than it was (a log that lost its end, an
// old copy put back) has, and whoever counts on it may elect two leaders of a
// term, or one that lacks committed entries. Most of these are found on the node
// itself, or by its boot epoch (packages engine, liveness and transport). This
// file finds the rest as far as a member can know: by what a replica says,
// against what the same replica promised to this one before.
//
//	M1  A replica that acknowledged entries through i to the leader of term t
//	    holds them in every later boot, while it is in term t.
//	M2  If they are committed as well, it holds them for good: in every later
//	    boot and in every higher term.
//	M3  A replica that voted in term t is never again in a lower one, in any
//	    later boot.
//
// "Later" must be certain, because messages overtake each other: a higher boot
// epoch of the sender, or for M2 a higher term in the same boot, says that a
// message was sent behind the promise. (Not a higher term alone: a replica may
// say a word in term 7, forget in a crash that it was there, and acknowledge
// entries in term 6.) So a healthy replica is never accused, however old the
// message. What contradicts a promise is not a log to be repaired: the replica
// has forgotten an unknown amount. It is told (MsgForgot), its owner is told
// (ForgetTask), and from then on it counts for nothing here: not for commits,
// elections, leases or reads; it gets no entries and no snapshot, until the
// configuration holds it no more. Once it hears of it, its node stops for good.
//
// What nobody knows cannot be found: when the only member that was promised
// something is gone, or was restarted, since this memory is not on disk.

// memory is what a member promised to this replica.
type memory struct {
	// index: it acknowledged entries through here, and they are committed.
	// ackTerm is the newest term this replica led when it did, ackBoot the boot of
	// the newest acknowledgement that told something new.
	index   Index
	ackTerm Term
	ackBoot uint64
	// voted is the newest term in which it is known to have voted, votedBoot the
	// boot in which it said so.
	voted     Term
	votedBoot uint64
}

// noteAck remembers that p acknowledged entries, in the present leadership.
func (p *progress) noteAck(m *Msg) { p.mem.ackBoot = max(p.mem.ackBoot, m.Boot) }

// noteVote remembers a vote that was durable before m was sent.
func (p *progress) noteVote(m *Msg) {
	if m.Term > p.mem.voted {
		p.mem.voted, p.mem.votedBoot = m.Term, m.Boot
	}
}

// keepAcks makes what was acknowledged in the term that ends part of the memory.
func (c *Core) keepAcks() {
	for i := range c.peers {
		if p := &c.peers[i]; i != c.self && p.match > 0 {
			p.mem.ackTerm = c.hs.Term
			p.mem.index = max(p.mem.index, min(p.match, c.log.commit))
		}
	}
}

// mustHold returns through which index p has to hold this replica's log when it
// says something in boot and, by itself, in term.
func (c *Core) mustHold(p *progress, term Term, boot uint64) Index {
	later := boot > p.mem.ackBoot
	if boot < p.mem.ackBoot {
		return 0
	}
	i := Index(0)
	if later || term > p.mem.ackTerm {
		i = p.mem.index // M2
	}
	if c.role == RoleLeader {
		switch {
		case term > c.hs.Term:
			i = max(i, min(p.match, c.log.commit)) // M2
		case later:
			i = max(i, p.match) // M1
		}
	}
	return i
}

// remembers holds m against what its sender promised before. It reports whether
// m shall be looked at further.
func (c *Core) remembers(m *Msg, o *Out) bool {
	if c.forgotten {
		return false
	}
	p := c.peer(m.FromReplica)
	if p == nil || p.id == c.id || m.Boot == 0 || mutants.On("B19") {
		return true // with an unknown boot nothing is certain
	}
	if p.forgot {
		return c.fromForgetter(p, m, o)
	}
	term, end, hasEnd := m.Term, m.Index, false // of the sender, when it sent m
	switch m.Type {
	case MsgPreVote:
		term--
		hasEnd = true
	case MsgVote:
		hasEnd = true
		if m.Term <= p.mem.voted && m.Boot > p.mem.votedBoot {
			term = m.Term - 1 // a campaign in a term in which, or after which, it voted
		}
	case MsgAppResp:
		hasEnd = m.Reject()
	case MsgNeedSnapshot:
		// It has nothing at all. The term is the leader's.
		if must := c.mustHold(p, 0, m.Boot); must > 0 {
			c.forget(p, 0, must, o)
			return false
		}
		return true
	case MsgApp, MsgCommit, MsgVoteResp:
	default:
		return true
	}
	if m.Boot > p.mem.votedBoot && term < p.mem.voted { // M3
		c.forget(p, end, 0, o)
		return false
	}
	if must := c.mustHold(p, term, m.Boot); hasEnd && end < must {
		c.forget(p, end, must, o)
		return false
	}
	if m.Type == MsgVote {
		p.noteVote(m)
	}
	return true
}

// fromForgetter handles a message of a member that has forgotten: it leads by
// the will of others perhaps, but nothing else it says counts.
func (c *Core) fromForgetter(p *progress, m *Msg, o *Out) bool {
	switch m.Type {
	case MsgApp, MsgCommit, MsgFortify, MsgTimeoutNow, MsgStepDown, MsgForgot:
		return true
	case MsgPreVote, MsgVote, MsgAppResp, MsgNeedSnapshot:
		c.tellForgetter(p, o)
	}
	return false
}

// forget is the judgement: p holds entries through has, and should through must,
// or, with must zero, it has lost a vote.
func (c *Core) forget(p *progress, has, must Index, o *Out) {
	if mutants.On("B19b") { // one that has forgotten is one that lags
		p.match, p.mem = 0, memory{}
		p.toProbe(has + 1)
		return
	}
	p.forgot, p.ownGap().lost = true, must
	p.toProbe(c.log.last + 1)
	p.match, p.next, p.epoch, p.round, p.wantSnap = 0, c.log.last+1, 0, 0, false
	p.vote, p.preVote = voteRefused, voteRefused
	p.retryWait = 0
	c.armRetry(c.now, p)
	if c.transferTo == p.id {
		c.transferTo, c.transferAt = 0, Never
	}
	t := ForgetTask{Shard: c.shard, Node: p.node, Replica: p.id, Has: has, Index: must}
	if must == 0 {
		t.Term = p.mem.voted
	}
	o.Forgets = append(o.Forgets, t)
	c.tellForgetter(p, o)
	c.due = true
}

func (c *Core) tellForgetter(p *progress, o *Out) {
	lost := p.gap().lost
	m := Msg{Type: MsgForgot, Index: lost}
	m.LogTerm, _ = c.log.term(lost)
	if lost == 0 {
		m.Commit = Index(p.mem.voted)
	}
	c.send(o, p.node, p.id, m)
}

// stepForgot handles the word of a member that this replica has forgotten what
// it promised. What it does hold it has not forgotten.
func (c *Core) stepForgot(m *Msg, o *Out) {
	if c.peer(m.FromReplica) == nil || m.Index > 0 && (m.Index <= c.log.commit || m.LogTerm != 0 && c.log.matches(m.Index, m.LogTerm)) {
		c.anomalies++
		return
	}
	t := ForgetTask{Shard: c.shard, Node: c.node, Replica: c.id, Has: c.log.last, Index: m.Index, By: m.From}
	if m.Index == 0 {
		t.Term = Term(m.Commit)
	}
	o.Forgets = append(o.Forgets, t)
	if c.role == RoleLeader {
		c.stopLeading(o)
	}
	c.role, c.forgotten, c.electionAt = RoleFollower, true, Never
	c.lead, c.leadNode = 0, 0
}

// mostGraces is for how many times the time that a leader may be silent a
// restarted replica waits for a majority.
const mostGraces = 5

// unsure reports whether this replica, of a node that was started again, has yet
// to hear from enough others: an old copy of a directory looks like a restart,
// but for the others, which were shown a later boot. They tell with the first
// answer to a heartbeat. A replica that voted before could vote a second time in
// a term. All voters' nodes are waited for as long as a leader may be silent: two
// old copies would otherwise be sure of each other. After that a majority, this
// one included, has to do, because some may be dead. At last one has to: this
// replica goes by the configuration it has applied, and others may know a newer one,
// in which those that are dead decide nothing. It may know of nobody who is left: then
// asker has to do, who wants its vote (zero: nobody does).
func (c *Core) unsure(asker NodeID) bool {
	if !c.restarted || mutants.On("H5") {
		return false
	}
	var heard tally
	all, anybody := true, false
	for i := range c.peers {
		p := &c.peers[i]
		_, until := c.live.SupportFrom(p.node)
		yes := i == c.self || until != 0
		heard.add(p.role, yes)
		all = all && (yes || !p.role.IsVoter())
		anybody = anybody || yes && i != c.self
	}
	if asker != 0 && !anybody && !mutants.On("C13b") {
		_, until := c.live.SupportFrom(asker)
		anybody = until != 0
	}
	enough := heard.won() || anybody && c.now >= c.waitMost
	c.restarted = !enough || !all && c.now < c.waitAll
	return c.restarted
}
