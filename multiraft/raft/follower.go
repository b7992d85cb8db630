package raft

import (
	"slices"
	"time"

	"github.com/flotillakv/flotilla/internal/invariants"
	"github.com/flotillakv/flotilla/internal/mutants"
)

// maxElectionBackoff bounds the wait between campaigns of a replica that
// cannot reach a quorum.
const maxElectionBackoff = time.Second

// fortified reports whether this replica's promise to a leader stands: it
// fortified it in the present term, and its node still supports that leader's
// node at the epoch of then. While it stands, this replica neither campaigns
// nor votes nor takes over a higher term from anyone but a leader, apart from
// the exceptions in blocksElection.
func (c *Core) fortified() bool {
	if c.released || c.hs.Lead == 0 || c.hs.LeadEpoch == 0 || c.hs.Lead == c.id && !mutants.On("B0-C5") {
		return false
	}
	e, live := c.live.SupportFor(c.hs.LeadNode)
	return live && e == c.hs.LeadEpoch
}

// blocksElection decides whether a (pre)vote request of a higher term must be
// refused for the sake of a leader. The exceptions: (a) that leader itself asks,
// so it leads no more; (b) it granted the campaign (transfer); (c) the asker's
// log shows a leader of a higher term. StepDown and LeadQuery (d, e) clear the
// promise elsewhere.
func (c *Core) blocksElection(m *Msg) bool {
	if m.Flags&FlagGrant != 0 && m.Term == c.hs.Term+1 && !mutants.On("B0-C1b") || m.LogTerm > c.hs.Term && !mutants.On("B0-C1c") {
		return false
	}
	if c.role == RoleLeader {
		return !c.quorumLost && c.quorumUntil() > c.now
	}
	if mutants.On("A12") {
		return false
	}
	if mutants.On("A10") {
		return false
	}
	if c.fortified() {
		return m.FromReplica != c.hs.Lead || mutants.On("B0-C1a")
	}
	// Nothing was promised. A leader that is known and alive is not disturbed by
	// pre-votes all the same (it has to re-fortify first).
	return m.Type == MsgPreVote && c.lead != 0 && m.FromReplica != c.lead && c.leaderLossAt() > c.now
}

// follow notes a message of the leader of the present term.
func (c *Core) follow(now Time, m *Msg, o *Out) bool {
	if c.role == RoleLeader || c.lead != 0 && c.lead != m.FromReplica {
		c.anomalies++ // two leaders in one term: not from a correct peer
		return false
	}
	c.role = RoleFollower
	if c.leadOver && !mutants.On("A20b") {
		return true
	}
	c.lead, c.leadNode, c.contactAt = m.FromReplica, m.From, now
	c.suspect, c.leadEpoch = false, 0
	if e, live := c.live.SupportFor(m.From); live {
		c.leadEpoch = e
	}
	c.electionAt, c.attempts, c.gaveWay = Never, 0, false
	c.quorumLost = false
	return true
}

// becomeFollower leaves any other role, without a known leader, in term, which
// is not lower than the present one.
func (c *Core) becomeFollower(now Time, term Term, o *Out) {
	invariants.Must(term >= c.hs.Term, "term %d after %d", term, c.hs.Term)
	if c.role == RoleLeader {
		c.stopLeading(o)
	}
	if mutants.On("C17") && c.role != RoleFollower && c.log.commit < c.log.last {
		c.log.cutSuffix(c.log.commit + 1)
	}
	if mutants.On("A4") && term == c.hs.Term {
		c.hs.Vote = 0
	}
	if term > c.hs.Term {
		c.leadOver = false
		c.hs = HardState{Term: term, Leased: c.hs.Leased}
		c.writeHard(o)
	}
	c.role = RoleFollower
	c.lead, c.leadNode = 0, 0
	c.armElection(now)
}

// armElection draws the delay of the next campaign: rank plus jitter, drawn
// anew each time, plus a wait after a campaign that came to nothing.
func (c *Core) armElection(now Time) {
	if !c.isVoter() {
		c.electionAt = Never
		return
	}
	d := time.Duration(c.rank())*c.tun.ElectionRank + time.Duration(c.rng.Uint64()%uint64(c.tun.ElectionJitter))
	if c.attempts > 0 {
		wait := c.tun.PreVoteRetry
		if c.quorumLost || c.role == RoleCandidate {
			wait = min(wait<<min(c.attempts, 8), max(maxElectionBackoff, wait))
		}
		d += wait
	}
	c.electionAt = now.Add(d)
}

// leaderLossAt returns when the believed leader counts as lost: at once when
// support for its node lapsed, after a silence when it never stood or changed
// its epoch, else never.
func (c *Core) leaderLossAt() Time {
	_, live := c.live.SupportFor(c.leadNode)
	switch {
	case c.suspect:
		return c.contactAt.Add(c.tun.LeaderGrace)
	case live:
		return Never
	case c.leadEpoch != 0:
		return c.contactAt
	}
	return c.contactAt.Add(c.tun.LeaderGrace)
}

// checkLeader gives up a believed leader whose node is gone.
func (c *Core) checkLeader(now Time) {
	if c.lead != 0 && c.role != RoleLeader && c.leaderLossAt() <= now {
		c.lead, c.leadNode, c.suspect = 0, 0, false
		c.attempts, c.gaveWay = 0, false
		c.armElection(now)
		c.due = true
	}
}

func (c *Core) tickFollower(now Time, o *Out) {
	c.checkLeader(now)
	c.checkQuorum(now, o)
	c.tickAsked(now, o)
	if now >= c.lagAt {
		c.lagAt = now.Add(c.tun.LagQuery)
		if c.lead != 0 && !mutants.On("B0-C3c") {
			c.queryLeader(now, c.leadNode, c.lead, o)
		}
	}
	if now >= c.electionAt {
		c.campaign(now, o)
	}
}

// queryLeader asks a believed leader whether it still leads, at most once per
// ProbeRetry.
func (c *Core) queryLeader(now Time, node NodeID, id ReplicaID, o *Out) {
	if now < c.queryAt || mutants.On("B0-C1e") {
		return
	}
	c.queryAt = now.Add(c.tun.ProbeRetry)
	c.send(o, node, id, Msg{Type: MsgLeadQuery})
}

// Campaign starts an election now (after a pre-vote), unless this replica
// leads, may not campaign, or its promise to a leader stands.
func (c *Core) Campaign(now Time, o *Out) {
	c.touch(now)
	if c.role != RoleLeader {
		c.campaign(now, o)
	}
}

func (c *Core) campaign(now Time, o *Out) {
	if !c.isVoter() {
		c.electionAt = Never
		return
	}
	if c.unsure(0) {
		c.attempts++
		c.armElection(now)
		return
	}
	if c.fortified() && !mutants.On("A10") {
		c.queryLeader(now, c.hs.LeadNode, c.hs.Lead, o)
		c.armElection(now)
		c.electionAt = c.electionAt.Add(c.tun.ProbeRetry)
		return
	}
	c.attempts++
	c.lead, c.leadNode = 0, 0
	if c.hasUnappliedConf() {
		c.armElection(now)
		return
	}
	if mutants.On("A10") {
		c.campaignForReal(now, false, o)
		return
	}
	c.role = RolePreCandidate
	c.armElection(now)
	for i := range c.peers {
		if c.peers[i].forgot {
			c.peers[i].preVote = voteRefused
			continue
		}
		c.peers[i].preVote = voteNone
		if i != c.self && (c.peers[i].role.IsVoter() || c.attempts > askLearners && !mutants.On("A19c")) {
			c.askVote(&c.peers[i], o)
		}
	}
	c.countPreVote(now, c.id, true, o)
}

// askLearners is after how many campaigns without success the learners are asked, too.
// Their votes do not count; but one of them may know that a configuration is committed
// in which there is a majority (learnCommit), and be the only one who does.
const askLearners = 2

// hasUnappliedConf reports whether a committed configuration is not applied:
// this replica's idea of the voters is old then.
func (c *Core) hasUnappliedConf() bool {
	if !c.confPending() || mutants.On("A19") {
		return false
	}
	for _, e := range c.log.ents {
		if e.Index > c.log.applied && e.Index <= c.log.commit && e.Type == EntryConf {
			return true
		}
	}
	return false
}

// askVote asks one voter. A vote request waits for the own vote to be durable:
// answers to a campaign that a crash erased, together with the end of the log
// it boasted of, must not count in the next one of the same term.
func (c *Core) askVote(p *progress, o *Out) {
	m := Msg{Type: MsgVote, Index: c.log.last, LogTerm: c.log.lastTerm, Term: c.hs.Term}
	if c.granted {
		m.Flags = FlagGrant
	}
	switch {
	case c.role == RolePreCandidate:
		m.Type, m.Flags, m.Term = MsgPreVote, 0, c.hs.Term+1
		c.send(o, p.node, p.id, m)
	case c.voteDurable:
		c.send(o, p.node, p.id, m)
	default:
		c.hold(o, p.node, p.id, m)
	}
}

// campaignForReal raises the term, votes for itself and asks for votes.
func (c *Core) campaignForReal(now Time, granted bool, o *Out) {
	c.hs = HardState{Term: c.hs.Term + 1, Vote: c.id, Leased: c.hs.Leased}
	c.leadOver = false
	c.role = RoleCandidate
	c.campaigned, c.granted = c.hs.Term, granted
	c.lead, c.leadNode = 0, 0
	c.voteDurable, c.voteMark = false, LogMark{}
	for i := range o.Appends {
		if o.Appends[i].Shard == c.shard {
			c.voteMark = o.Appends[i].Mark // durable together with the vote
		}
	}
	c.writeHard(o)
	if mutants.On("K14") {
		c.voteDurable = true
		c.peers[c.self].vote = voteGranted
	}
	c.attempts = max(c.attempts, 1)
	c.armElection(now)
	for i := range c.peers {
		if mutants.On("K15") {
			continue
		}
		if c.peers[i].forgot {
			c.peers[i].vote = voteRefused
			continue
		}
		c.peers[i].vote = voteNone
		if i != c.self && c.peers[i].role.IsVoter() {
			c.askVote(&c.peers[i], o)
		}
	}
}

// stepVoteRequest answers MsgVote and MsgPreVote (paper sections 5.2, 5.4.1;
// thesis section 9.6). Learners vote, too: they may have been promoted without
// knowing it yet.
func (c *Core) stepVoteRequest(now Time, m *Msg, o *Out) {
	resp := Msg{Type: MsgVoteResp, Flags: FlagReject}
	pre := m.Type == MsgPreVote
	if pre {
		resp.Type = MsgPreVoteResp
	}
	if mutants.On("A14") && !c.isVoter() {
		return
	}
	if mutants.On("A8") && pre && c.electionAt != Never {
		c.armElection(now)
		c.electionAt = c.electionAt.Add(2 * c.tun.PreVoteRetry)
	}
	resp.Commit = c.log.commit
	resp.LogTerm, _ = c.log.term(c.log.commit)
	if m.Term < c.hs.Term || pre && m.Term == c.hs.Term {
		c.send(o, m.From, m.FromReplica, resp)
		return
	}
	if c.unsure(m.From) {
		if !pre {
			resp.Term = m.Term // refused in that term, without entering it
		}
		c.send(o, m.From, m.FromReplica, resp)
		return
	}
	if pre && c.lead == m.FromReplica && c.role == RoleFollower {
		// Does the believed leader campaign? Then it leads no more, unless this
		// request is late. Its log may be too short to win (it crashed before its
		// own disk had what the others got), so it must not be waited for.
		c.queryLeader(now, m.From, m.FromReplica, o)
	}
	if m.Term > c.hs.Term && c.blocksElection(m) {
		if c.role != RoleLeader {
			if c.lead != 0 {
				c.queryLeader(now, c.leadNode, c.lead, o)
			} else {
				c.queryLeader(now, c.hs.LeadNode, c.hs.Lead, o)
			}
		}
		if !pre {
			resp.Term = m.Term // refused in that term, without entering it
		}
		c.send(o, m.From, m.FromReplica, resp)
		return
	}
	upToDate := m.LogTerm > c.log.lastTerm || m.LogTerm == c.log.lastTerm && m.Index >= c.log.last
	if mutants.On("K7") || mutants.On("A1") && m.Index >= c.log.last || mutants.On("A1b") && m.LogTerm >= c.log.lastTerm {
		upToDate = true
	}
	if pre {
		if upToDate {
			resp.Flags, resp.Term = 0, m.Term
			if mutants.On("A5") {
				resp.Term = 0 // the voter's own
			}
			c.giveWay(now)
		}
		c.send(o, m.From, m.FromReplica, resp)
		return
	}
	if m.Term > c.hs.Term {
		c.becomeFollower(now, m.Term, o)
	}
	free := c.hs.Vote == m.FromReplica || c.hs.Vote == 0 && c.lead == 0
	if mutants.On("A4b") {
		free = true
	}
	if !upToDate || !free || c.role == RoleLeader {
		c.send(o, m.From, m.FromReplica, resp)
		return
	}
	c.hs.Vote = m.FromReplica
	if mutants.On("K8") {
		c.send(o, m.From, m.FromReplica, Msg{Type: MsgVoteResp})
		return
	}
	c.writeHard(o) // also for a repeated request: the first write may be in flight
	c.armElection(now)
	if c.electionAt != Never {
		c.electionAt = c.electionAt.Add(c.tun.PreVoteRetry)
	}
	resp.Flags, resp.Commit, resp.LogTerm = 0, 0, 0
	if mutants.On("K1") {
		c.send(o, m.From, m.FromReplica, resp)
		return
	}
	c.hold(o, m.From, m.FromReplica, resp)
}

// giveWay puts the own campaign off for the sake of one that has just begun: where many
// groups elect at a time, what one's candidate sends takes longer than ranks are apart. It
// does so once since a leader was known, so that nobody can be kept from campaigning.
func (c *Core) giveWay(now Time) {
	if c.gaveWay || c.role != RoleFollower || c.electionAt == Never || mutants.On("A8c") {
		return
	}
	c.gaveWay, c.electionAt = true, max(c.electionAt, now.Add(c.tun.PreVoteRetry))
}

// learnCommit takes the commit index of an answer over, if the log holds
// that entry (those who vote do not tell it, those who would vote or refuse do): what is committed is so for everyone who has it. Without this a
// group can stand still for ever: {2, 3} becomes {3} while 3 leads, 3 crashes
// and forgets that this was committed, and 2, which is no voter any more, holds
// a longer log and refuses the vote that 3 believes to need.
func (c *Core) learnCommit(m *Msg) {
	if (m.Reject() || m.Type == MsgPreVoteResp) && c.role != RoleLeader && c.log.matches(m.Commit, m.LogTerm) {
		c.commitTo(m.Commit)
	}
}

func (c *Core) stepPreVoteResp(now Time, m *Msg, o *Out) {
	c.learnCommit(m)
	if !m.Reject() {
		if c.role == RolePreCandidate && m.Term == c.hs.Term+1 {
			c.countPreVote(now, m.FromReplica, true, o)
		}
		return
	}
	if m.Term > c.hs.Term {
		c.adopt(now, m, o)
		return
	}
	// The voter's term may be lower than the own one; a refusal it is.
	if c.role == RolePreCandidate {
		c.countPreVote(now, m.FromReplica, false, o)
	}
}

func (c *Core) countPreVote(now Time, from ReplicaID, granted bool, o *Out) {
	p := c.peer(from)
	if p == nil || !p.role.IsVoter() {
		return
	}
	p.preVote = voteRefused
	if granted {
		p.preVote = voteGranted
	}
	var yes, open tally
	for i := range c.peers {
		q := &c.peers[i]
		yes.add(q.role, q.preVote == voteGranted)
		open.add(q.role, q.preVote != voteRefused)
	}
	switch {
	case yes.won():
		c.campaignForReal(now, false, o)
	case !open.won():
		c.role = RoleFollower // tries again when electionAt comes
	}
}

func (c *Core) stepVoteResp(now Time, m *Msg, o *Out) {
	c.learnCommit(m)
	if p := c.peer(m.FromReplica); p != nil && !m.Reject() {
		p.noteVote(m)
	}
	if (c.role == RoleCandidate || c.role == RolePreCandidate) && c.campaigned == c.hs.Term {
		c.countVote(now, m.FromReplica, !m.Reject(), o)
	}
}

func (c *Core) countVote(now Time, from ReplicaID, granted bool, o *Out) {
	p := c.peer(from)
	if p == nil || !p.role.IsVoter() {
		return
	}
	if p.vote == voteNone {
		p.vote = voteRefused
		if granted {
			p.vote = voteGranted
		}
	}
	var yes, open tally
	for i := range c.peers {
		q := &c.peers[i]
		yes.add(q.role, q.vote == voteGranted)
		open.add(q.role, q.vote != voteRefused)
	}
	switch {
	case yes.won():
		c.becomeLeader(now, o)
	case !open.won() && c.role == RoleCandidate:
		c.becomeFollower(now, c.hs.Term, o)
	}
}

// stepTimeoutNow campaigns at once, by the leader's grant.
func (c *Core) stepTimeoutNow(now Time, m *Msg, o *Out) {
	if mutants.On("A3") {
		c.campaignForReal(now, true, o)
		return
	}
	if !c.isVoter() || c.hasUnappliedConf() || m.Flags&FlagGrant == 0 || c.unsure(m.From) {
		return
	}
	if mutants.On("A7") {
		c.campaign(now, o)
		return
	}
	c.campaignForReal(now, true, o)
}

// stepLeadQuery answers whether this replica leads m.Term.
func (c *Core) stepLeadQuery(now Time, m *Msg, o *Out) {
	switch {
	case m.Term > c.hs.Term:
		// It cannot have led a term it does not know.
	case m.Term == c.hs.Term && c.role == RoleLeader:
		if p := c.peer(m.FromReplica); p != nil {
			c.reassure(now, p, o)
		}
	case m.Term == c.hs.Term && c.campaigned == c.hs.Term && c.role != RoleFollower:
		// May still win this term.
	default:
		c.send(o, m.From, m.FromReplica, Msg{Type: MsgStepDown, Term: m.Term})
	}
}

// stepStepDown forgets a leader that says it leads no more. Its promise is void;
// the disk still has it until the next term, so a restart has to ask again.
func (c *Core) stepStepDown(now Time, m *Msg) {
	if c.role == RoleLeader || m.FromReplica != c.hs.Lead && m.FromReplica != c.lead && (c.hs.Lead != 0 || c.lead != 0) {
		return
	}
	c.leadOver = true
	if m.FromReplica == c.hs.Lead {
		c.released = true
	}
	if m.FromReplica == c.lead {
		c.lead, c.leadNode, c.suspect = 0, 0, false
	}
	if c.role == RoleFollower && c.lead == 0 {
		c.attempts, c.gaveWay = 0, false
		c.armElection(now)
	}
}

// fortify makes the promise to the leader, if this node supports its node, and
// returns the epoch of it (zero: none).
func (c *Core) fortify(o *Out) Epoch {
	e, live := c.live.SupportFor(c.leadNode)
	if !live || e == 0 || c.lead == 0 {
		return 0
	}
	c.hs.Lead, c.hs.LeadNode, c.hs.LeadEpoch = c.lead, c.leadNode, e
	c.released = false
	c.writeHard(o)
	return e
}

func (c *Core) stepFortify(m *Msg, o *Out) {
	if e := c.fortify(o); e != 0 && mutants.On("K13") {
		c.send(o, m.From, m.FromReplica, Msg{Type: MsgFortifyResp, Epoch: e})
	} else if e != 0 {
		c.hold(o, m.From, m.FromReplica, Msg{Type: MsgFortifyResp, Epoch: e})
	}
}

// stepCommit takes a commit record or a read-round ping. The record counts
// only if the log is a prefix of this leader's log: otherwise what stands at
// the committed indexes may be another leader's.
func (c *Core) stepCommit(now Time, m *Msg, o *Out) {
	if mutants.On("H11") && m.Term == c.log.accTerm {
		c.log.commit = max(c.log.commit, m.Commit)
	}
	if m.Term == c.log.accTerm || mutants.On("A5b") {
		c.commitTo(min(m.Commit, c.log.last))
		c.compactTo = max(c.compactTo, min(m.CompactTo, c.log.last))
	}
	if m.Round != 0 {
		c.send(o, m.From, m.FromReplica, Msg{Type: MsgCommitResp, Round: m.Round})
	}
}

// stepApp is AppendEntries (paper section 5.3).
func (c *Core) stepApp(now Time, m *Msg, o *Out) {
	l := &c.log
	var epoch Epoch // of the promise made here
	if m.Flags&FlagFortify != 0 {
		epoch = c.fortify(o)
	}
	prev, ents := m.Index, m.Entries
	if !wellFormed(m) {
		c.anomalies++
		return
	}
	switch {
	case prev < l.commit:
		// Everything committed is in the leader's log as well.
		ents = ents[min(Index(len(ents)), l.commit-prev):]
		prev = l.commit
	case !l.matches(prev, m.LogTerm) && !(mutants.On("K6") && prev <= l.last):
		c.rejectApp(m, o)
		return
	}
	lastNew := prev + Index(len(ents))
	for len(ents) > 0 && (l.matches(ents[0].Index, ents[0].Term) || mutants.On("K5") && ents[0].Index <= l.last) {
		ents = ents[1:]
	}
	if mutants.On("B1") && len(ents) == 0 && lastNew < l.last && lastNew > l.applying {
		l.commit = min(l.commit, lastNew)
		l.cutSuffix(lastNew + 1)
	}
	if mutants.On("B3") && len(ents) == 0 {
		lastNew = l.last
	}
	switch {
	case len(ents) > 0:
		c.takeEntries(m.Term, ents, o)
	case lastNew == l.last:
		l.accTerm = m.Term
	}
	switch {
	case mutants.On("K11"):
		c.commitTo(min(m.Commit, l.last))
	case mutants.On("B5"):
		l.commit = min(m.Commit, lastNew)
	default:
		c.commitTo(min(m.Commit, lastNew))
	}
	c.compactTo = max(c.compactTo, min(m.CompactTo, lastNew))
	if slices.ContainsFunc(ents, func(e Entry) bool { return e.Type == EntryConf }) && !mutants.On("A19b") {
		// A change is proposed only when the one before it is applied, so who
		// holds the second knows that the first is committed. It must not forget
		// that in a crash which comes before it applied the first: it would
		// campaign in a configuration two steps old, whose majorities need not
		// meet those of the newest. The commit index rides along here.
		c.writeHard(o)
	}

	resp := Msg{Type: MsgAppResp, Index: lastNew, Epoch: epoch, Round: m.Round}
	if len(ents) == 0 && epoch == 0 {
		if lastNew <= l.stable {
			c.send(o, m.From, m.FromReplica, resp)
			return
		}
		// What is acknowledged may still be in flight to the disk under another
		// leader's mark. A write of this round comes behind it.
		c.writeHard(o)
	}
	if m.Round != 0 {
		// Leadership is confirmed without waiting for the disk.
		resp.Round = 0
		c.send(o, m.From, m.FromReplica, Msg{Type: MsgCommitResp, Round: m.Round})
	}
	c.holdAppResp(o, m, resp)
}

// holdAppResp emits an acknowledgement that waits for the disk. Of several in
// one round only the last is needed.
func (c *Core) holdAppResp(o *Out, m *Msg, resp Msg) {
	if mutants.On("K2") {
		c.send(o, m.From, m.FromReplica, resp)
		return
	}
	if n := len(o.Held); n > 0 {
		h := &o.Held[n-1]
		if h.Shard == c.shard && h.Type == MsgAppResp && h.Flags == 0 && h.Term == c.hs.Term && h.ToReplica == m.FromReplica {
			h.Index = max(h.Index, resp.Index)
			if resp.Epoch != 0 {
				h.Epoch = resp.Epoch
			}
			return
		}
	}
	c.hold(o, m.From, m.FromReplica, resp)
}

// wellFormed reports whether the entries of an append follow each other and
// its previous entry, with terms that do not fall and do not pass the leader's.
func wellFormed(m *Msg) bool {
	t := m.LogTerm
	for i := range m.Entries {
		e := &m.Entries[i]
		if e.Index != m.Index+1+Index(i) || e.Term < t || e.Term > m.Term {
			return false
		}
		t = e.Term
	}
	return m.LogTerm <= m.Term
}

// rejectApp refuses an append whose previous entry does not match and hints at
// where the logs may agree.
func (c *Core) rejectApp(m *Msg, o *Out) {
	i, t := c.log.hint(m.Index, m.LogTerm)
	if mutants.On("B13") {
		i = min(m.Index-1, c.log.last)
		t, _ = c.log.term(i)
	}
	if i < c.log.commit {
		i = c.log.commit
		t, _ = c.log.term(i)
	}
	c.send(o, m.From, m.FromReplica, Msg{
		Type: MsgAppResp, Flags: FlagReject, Commit: m.Index, Index: i, LogTerm: t, Round: m.Round,
	})
}

// takeEntries appends the leader's entries, of which the first one differs
// from what the log holds there, if anything.
func (c *Core) takeEntries(term Term, ents []Entry, o *Out) {
	l := &c.log
	first, oldLast := ents[0].Index, l.last
	if first <= oldLast {
		c.noteDrop(first, l.lastTerm)
		l.cutSuffix(first)
		if c.confIndex >= first {
			c.confIndex = 0
			for i := range l.ents {
				if l.ents[i].Type == EntryConf {
					c.confIndex = l.ents[i].Index
				}
			}
		}
	}
	// One copy for all: the message's memory belongs to the transport.
	size := 0
	for i := range ents {
		size += len(ents[i].Value)
	}
	buf := l.room(size)
	for i := range ents {
		e := ents[i]
		at := len(buf)
		buf = append(buf, e.Value...)
		e.Value = buf[at:len(buf):len(buf)]
		l.append([]Entry{e})
		if e.Type == EntryConf && mutants.On("C8") {
			for _, cmd := range e.Commands() {
				if cc, err := DecodeConfChange(cmd.Body); err == nil {
					if next, err := c.desc.Apply(cc); err == nil {
						c.setDesc(next) // in force as soon as it is in the log
					}
				}
			}
		}
		if e.Type == EntryConf {
			c.confIndex = e.Index
		}
	}
	l.accTerm = term
	c.writeLog(o, oldLast, first)
}

// noteDrop remembers that proposals of this replica may have been overwritten
// from first on, in terms up to term.
func (c *Core) noteDrop(first Index, term Term) {
	s := c.own()
	for len(s.drops) > 0 && s.drops[len(s.drops)-1].Index >= first {
		term = max(term, s.drops[len(s.drops)-1].Term)
		s.drops = s.drops[:len(s.drops)-1]
	}
	s.drops = append(s.drops, DropTask{Shard: c.shard, Index: first, Term: term})
}

// Restore replaces the replica's state by a snapshot that the owner installed
// durably. The term and the vote of st are those that the owner gave it from
// HardState, or older ones, which do not count. The leader is told. It does
// nothing on a leader or if st is not ahead of the applied index.
func (c *Core) Restore(now Time, st State, o *Out) {
	c.touch(now)
	if c.role == RoleLeader || st.Applied.Applied < c.log.applied {
		return
	}
	installed := st.Hard
	if st.Hard.Term <= c.hs.Term {
		st.Hard = c.hs
	} else {
		c.lead, c.leadNode = 0, 0
	}
	st.Hard.Commit = max(st.Hard.Commit, st.Applied.Applied, c.log.commit)
	oldLast := c.log.last
	if mutants.On("C14") {
		st.Desc = *c.desc
	}
	err := c.load(now, st)
	if mutants.On("B23") && oldLast > c.log.last {
		c.log.last = oldLast
	}
	if mutants.On("E12") {
		c.log.commit++
	}
	invariants.Must(err == nil, "restore of an installed snapshot: %v", err)
	if c.hs != installed {
		c.writeHard(o)
	}
	if c.lead != 0 {
		c.electionAt = Never
		c.send(o, c.leadNode, c.lead, Msg{Type: MsgAppResp, Index: c.log.last})
	}
}

// HoldsFrom reports whether the state alone may be replaced by a snapshot that ends
// at (idx, term), and the log stay as it is: it holds that entry. Restore then takes
// the new state over.
func (c *Core) HoldsFrom(idx Index, term Term) bool {
	return c.role != RoleLeader && idx >= c.log.applied && c.log.matches(idx, term)
}

// WantsSnapshot reports whether a snapshot that ends at (idx, term) brings
// this replica forward. If the log holds that entry already, it does not: an
// install would throw away entries behind it that were acknowledged.
func (c *Core) WantsSnapshot(idx Index, term Term) bool {
	if mutants.On("E10") {
		return true
	}
	if mutants.On("B2") {
		return idx > c.log.applied
	}
	return c.role != RoleLeader && idx > c.log.commit && !c.log.matches(idx, term)
}
