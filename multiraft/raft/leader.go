package raft

import (
	"errors"
	"slices"
	"time"

	"github.com/flotillakv/flotilla/internal/mutants"
)

// becomeLeader starts to lead the present term: with an empty entry, because
// only through an entry of its own term may a leader commit (paper sections
// 5.4.2 and 8), and with a promise to itself.
func (c *Core) becomeLeader(now Time, o *Out) {
	c.role = RoleLeader
	c.lead, c.leadNode = c.id, c.node
	c.electionAt, c.attempts, c.gaveWay = Never, 0, false
	c.preLeading, c.ready, c.uncommitted = c.log.last, false, 0
	c.transferTo, c.transferAt, c.timeoutSent, c.grantSent = 0, Never, false, false
	c.readRound = 0
	if mutants.On("D3") { // what this replica asked as a follower, it answers itself now
		a := &c.own().asking
		for _, r := range a.reads {
			o.Reads = append(o.Reads, ReadState{Shard: c.shard, Context: r.ctx, Index: c.log.commit})
		}
		a.reads = a.reads[:0]
	}
	if s := c.seldom; s != nil {
		s.reads, s.readSent, s.leaving = s.reads[:0], 0, s.leaving[:0]
	}
	c.commitAt = Never
	c.wish, c.cutAsked, c.cutRetry = 0, 0, 0
	c.quorumFrom, c.quorumLost = now.Add(c.tun.QuorumGrace), false
	for i := range c.peers {
		p := &c.peers[i]
		round, match, lost := p.round, p.match, p.gap().lost
		*p = progress{node: p.node, id: p.id, role: p.role, next: c.log.last + 1, inflight: p.inflight, mem: p.mem, forgot: p.forgot}
		if lost != 0 {
			p.behind = &behind{lost: lost}
		}
		if mutants.On("D8") {
			p.round = round
		}
		if mutants.On("K18") {
			p.match = min(match, c.log.last)
		}
		p.inflight.reset()
	}
	c.hs.Leased = c.leased
	if e, _ := c.live.SupportFrom(c.node); e != 0 {
		c.hs.Lead, c.hs.LeadNode, c.hs.LeadEpoch = c.id, c.node, e
		c.peers[c.self].epoch = e
		c.writeHard(o)
	}
	c.appendOwn(EntryEmpty, EntryHeader{}, nil, o)
}

// stopLeading gives up the present term for good and says so to all members,
// whose promises would hold up an election otherwise.
func (c *Core) stopLeading(o *Out) {
	c.keepAcks()
	if s := c.seldom; s != nil {
		for i := range s.reads {
			if mutants.On("D4") {
				o.Reads = append(o.Reads, ReadState{Shard: c.shard, Context: s.reads[i].ctx, Index: s.reads[i].index})
				continue
			}
			o.Reads = append(o.Reads, ReadState{Shard: c.shard, Context: s.reads[i].ctx, Err: ErrNotLeader})
		}
		s.reads = s.reads[:0]
	}
	for i := range c.peers {
		if p := &c.peers[i]; i != c.self {
			if mutants.On("B0-C1d") {
				continue
			}
			c.send(o, p.node, p.id, Msg{Type: MsgStepDown, Epoch: p.epoch})
			p.inflight.reset()
		}
	}
	c.hs.Lead, c.hs.LeadNode, c.hs.LeadEpoch = 0, 0, 0
	c.role = RoleFollower
	c.ready, c.uncommitted = false, 0
	c.transferTo, c.transferAt, c.timeoutSent = 0, Never, false
	c.commitAt = Never
}

// appendOwn appends an entry of this leader's term.
func (c *Core) appendOwn(typ EntryType, h EntryHeader, cmds []Command, o *Out) LogMark {
	l := &c.log
	h.DescVersion = c.desc.Version
	e := [1]Entry{{Index: l.last + 1, Term: c.hs.Term, Type: typ}}
	e[0].Value = EncodeEntry(l.room(EntrySize(cmds)), l.last+1, c.hs.Term, typ, h, cmds)
	l.accTerm = c.hs.Term
	l.append(e[:])
	c.uncommitted += len(e[0].Value)
	c.writeLog(o, l.last-1, l.last)
	return LogMark{Term: c.hs.Term, Index: l.last}
}

// Propose appends one entry that holds cmds. h.DescVersion is filled in.
// Errors, with nothing proposed: ErrNotLeader, ErrTransferring, ErrTooLarge,
// *BusyError. With a nil error the outcome is open until the entry at the
// returned mark is applied: an entry of another term at its index means that
// it is lost.
func (c *Core) Propose(now Time, h EntryHeader, cmds []Command, o *Out) (LogMark, error) {
	c.touch(now)
	if !c.leads() {
		return LogMark{}, ErrNotLeader
	}
	if c.transferTo != 0 {
		if mutants.On("B24") {
			c.appendOwn(EntryNormal, h, cmds, o)
		}
		return LogMark{}, ErrTransferring
	}
	size := EntrySize(cmds)
	if len(cmds) == 0 || size > MaxEntryBytes {
		return LogMark{}, ErrTooLarge
	}
	if c.uncommitted > 0 && c.uncommitted+size > c.tun.UncommittedBytes && !mutants.On("B11") {
		return LogMark{}, &BusyError{Uncommitted: c.uncommitted, RetryAfter: 10 * time.Millisecond}
	}
	return c.appendOwn(EntryNormal, h, cmds, o), nil
}

// leads reports whether this replica leads and is going to: one that has just
// applied a configuration without its vote steps down with the next Flush.
func (c *Core) leads() bool { return c.role == RoleLeader && c.isVoter() }

// Leads reports whether this replica leads the group, as far as it knows.
func (c *Core) Leads() bool { return c.leads() }

// flushLeader sends what the round made due.
func (c *Core) flushLeader(now Time, o *Out) {
	if !c.isVoter() && !(mutants.On("C6") && c.self >= 0) {
		c.becomeFollower(now, c.hs.Term, o) // the configuration took the right away
		return
	}
	c.maybeCommit()
	if c.mustLeaveJoint() {
		c.leaveJoint(now, o)
	}
	c.updateCompactTo(now, o)
	ping := c.nextReadRound(now)
	commitDue := now >= c.commitAt
	owed := false
	for i := range c.peers {
		p := &c.peers[i]
		if i == c.self || p.forgot {
			continue
		}
		c.sendAppends(now, p, o)
		c.sendFortify(now, p, o)
		if mutants.On("A18") && (p.paused || p.inflight.full(c.tun.InflightMsgs, c.tun.InflightBytes)) {
			break // it waits for this peer
		}
		know := min(c.log.commit, p.next-1)
		news := p.state == stateReplicate && know > p.sentCommit
		compact := p.state == stateReplicate && c.truncNow && p.sentCompact < c.compactTo
		if ping && p.role.IsVoter() || news && commitDue || compact {
			m := Msg{Type: MsgCommit, Commit: c.log.commit, CompactTo: c.compactTo}
			if ping {
				m.Round = c.readRound
			}
			if p.state == stateReplicate {
				p.sentCommit, p.sentCompact = know, c.compactTo
			}
			c.send(o, p.node, p.id, m)
		} else if news {
			owed = true
		}
	}
	switch {
	case !owed:
		c.commitAt = Never
	case c.commitAt == Never || commitDue:
		c.commitAt = now.Add(c.tun.CommitDelay)
	}
	if s := c.seldom; s != nil {
		for _, p := range s.leaving {
			// So that a removed replica gets to know it.
			c.send(o, p.Node, p.ID, Msg{Type: MsgCommit, Commit: c.log.commit})
		}
		s.leaving = s.leaving[:0]
	}
	c.maybeTimeoutNow(o)
	c.confirmReads(o)
}

// maybeCommit advances the commit index to what a quorum holds durably, but
// only through an entry of the own term (paper section 5.4.2, figure 8).
func (c *Core) maybeCommit() {
	self := &c.peers[c.self]
	self.next, self.state = c.log.last+1, stateReplicate
	if mutants.On("A15") && len(c.peers) == 1 {
		return // only answers of peers trigger the check
	}
	i := c.heldByQuorum()
	if i <= c.log.commit || i <= c.preLeading && !mutants.On("K3") {
		return
	}
	c.commitTo(i)
	if !c.ready {
		c.ready = true
		for k := range c.few().reads {
			c.seldom.reads[k].index = c.log.commit
		}
	}
}

// heldByQuorum returns through which index a quorum holds the log durably.
func (c *Core) heldByQuorum() Index {
	if c.self >= 0 {
		c.peers[c.self].match = c.log.stable
		if mutants.On("K10") {
			c.peers[c.self].match = c.log.last
		}
	}
	return Index(quorumOf(c.peers, matchOf))
}

// canCommit reports whether a leader that is ready has something to commit.
func (c *Core) canCommit() bool { return c.heldByQuorum() > c.log.commit }

// sendAppends sends what the peer's window takes.
func (c *Core) sendAppends(now Time, p *progress, o *Out) {
	l := &c.log
	if p.wantSnap && p.state != stateSnapshot {
		p.wantSnap = false
		c.startSnapshot(now, p, o)
	}
	for p.state != stateSnapshot && !p.paused {
		prevTerm, ok := l.term(p.next - 1)
		if mutants.On("B4") && !ok {
			prevTerm = 0
		} else if !ok || p.next <= l.trunc && p.next <= l.prev {
			c.startSnapshot(now, p, o)
			return
		}
		var ents []Entry
		if p.state == stateReplicate {
			if p.next > l.last || p.fetching || p.inflight.full(c.tun.InflightMsgs, c.tun.InflightBytes) {
				return
			}
			if ents = l.slice(p.next, l.last, c.tun.MaxMsgBytes); ents == nil {
				c.startFetch(now, p, o)
				return
			}
		} else if p.next <= l.last && p.retryWait <= c.tun.ProbeRetry {
			ents = l.slice(p.next, l.last, c.tun.MaxMsgBytes) // nil: a bare probe will do
		}
		c.sendApp(now, p, prevTerm, ents, o)
	}
}

// sendApp sends one append that begins at p.next.
func (c *Core) sendApp(now Time, p *progress, prevTerm Term, ents []Entry, o *Out) {
	m := Msg{
		Type: MsgApp, Index: p.next - 1, LogTerm: prevTerm, Entries: ents,
		Commit: c.log.commit, CompactTo: c.compactTo,
	}
	last := m.Index + Index(len(ents))
	if mutants.On("K20") {
		p.match = last
	}
	if p.state == stateProbe {
		if e, _ := c.live.SupportFrom(p.node); p.epoch == 0 || p.epoch != e {
			m.Flags |= FlagFortify
			p.fortifyAt = now.Add(c.tun.ProbeRetry)
		}
		if len(ents) == 0 {
			m.Flags |= FlagProbe
		}
		p.paused = true
		c.armRetry(now, p)
	} else {
		if p.inflight.count() == 0 {
			c.armRetry(now, p)
		}
		size := 0
		for i := range ents {
			size += len(ents[i].Value)
		}
		if p.inflight == nil {
			p.inflight = new(inflight)
		}
		p.inflight.add(last, size)
		p.next = last + 1
		p.sentCommit = max(p.sentCommit, min(c.log.commit, last))
		p.sentCompact = c.compactTo
	}
	c.send(o, p.node, p.id, m)
}

func (c *Core) armRetry(now Time, p *progress) {
	if p.retryWait == 0 {
		p.retryWait = c.tun.ProbeRetry
	}
	p.retryAt = now.Add(p.retryWait)
}

// retryDue returns when silence of the peer has to be answered. Nodes that are
// not alive are left alone; LivenessChanged brings them back.
func (c *Core) retryDue(p *progress) Time {
	switch {
	case p.forgot && c.alive(p.node):
		return p.retryAt // it has to be told
	case p.forgot:
	case p.state == stateSnapshot:
		return p.gap().snapSince.Add(c.tun.SnapshotTimeout)
	case p.match < c.log.last && (p.paused || p.inflight.count() > 0 || p.fetching) && c.alive(p.node):
		return p.retryAt
	}
	return Never
}

// retry sends again to a peer that did not answer, ever more seldom.
func (c *Core) retry(now Time, p *progress, o *Out) {
	if mutants.On("B0-C3b") {
		c.armRetry(now, p)
		return
	}
	if p.forgot {
		c.tellForgetter(p, o)
		p.retryWait = min(2*p.retryWait, 10*c.tun.ProbeRetry)
		c.armRetry(now, p)
		return
	}
	if p.state == stateSnapshot {
		c.snapshotFailed(now, p)
		return
	}
	wait := p.retryWait
	if p.state == stateProbe {
		p.toProbe(p.next) // which may be behind a snapshot that is being installed
	} else {
		p.toProbe(p.match + 1)
	}
	p.retryWait = min(2*wait, 10*c.tun.ProbeRetry)
}

// reassure answers a member that doubts the leader, with an append at its
// known match that brings it the commit index.
func (c *Core) reassure(now Time, p *progress, o *Out) {
	if p.state == stateSnapshot {
		c.send(o, p.node, p.id, Msg{Type: MsgCommit, Commit: c.log.commit, CompactTo: c.compactTo})
		return
	}
	if t, ok := c.log.term(p.match); ok {
		p.toProbe(p.match + 1)
		c.sendApp(now, p, t, nil, o)
	}
}

func (c *Core) startFetch(now Time, p *progress, o *Out) {
	p.fetching = true
	c.armRetry(now, p)
	o.Fetches = append(o.Fetches, FetchTask{
		Shard: c.shard, To: p.id, Next: p.next, Last: c.log.prev, MaxBytes: c.tun.MaxMsgBytes,
	})
}

// Fetched hands in entries that a FetchTask asked for; prevTerm is the term of
// the entry before the first one. err is nil or ErrCompacted.
func (c *Core) Fetched(now Time, to ReplicaID, prevTerm Term, ents []Entry, err error, o *Out) {
	c.touch(now)
	p := c.peer(to)
	if !c.leads() || p == nil || !p.fetching || p.forgot {
		return
	}
	p.fetching = false
	c.due = true
	switch {
	case errors.Is(err, ErrCompacted):
		c.startSnapshot(now, p, o)
	case err == nil && len(ents) > 0 && p.state == stateReplicate && ents[0].Index == p.next:
		c.sendApp(now, p, prevTerm, ents, o)
	}
}

// Awaits reports whether t is still to be answered through Fetched.
func (c *Core) Awaits(t *FetchTask) bool {
	p := c.peer(t.To)
	return c.leads() && p != nil && p.fetching && p.next == t.Next && !p.forgot
}

// Unacknowledged returns how many bytes of entries are on their way to a peer.
func (c *Core) Unacknowledged(to ReplicaID) int {
	if p := c.peer(to); p != nil && c.role == RoleLeader {
		return p.inflight.bytes()
	}
	return 0
}

// startSnapshot asks the owner to send a snapshot, if the peer can take one.
func (c *Core) startSnapshot(now Time, p *progress, o *Out) {
	if !c.alive(p.node) {
		p.toProbe(p.next)
		p.paused = true
		c.armRetry(now, p)
		return
	}
	p.toSnapshot(now, c.log.applied)
	if !mutants.On("LK2") { // a restarted member gets to know its leader now, not when all has come
		c.send(o, p.node, p.id, Msg{Type: MsgCommit, Commit: c.log.commit, CompactTo: c.compactTo})
	}
	o.Snapshots = append(o.Snapshots, SnapshotTask{Shard: c.shard, To: p.node, ToReplica: p.id})
}

func (c *Core) stepNeedSnapshot(now Time, m *Msg) {
	p := c.peer(m.FromReplica)
	if c.role != RoleLeader || p == nil || p.state == stateSnapshot || m.Term > c.hs.Term {
		return
	}
	p.wantSnap = true
	c.due = true
}

// SnapshotSent reports how a SnapshotTask ended: ok means that the peer has
// received the snapshot that ends at (idx, term). After a failure the peer is
// tried again, ever more seldom.
func (c *Core) SnapshotSent(now Time, to ReplicaID, idx Index, term Term, ok bool, _ *Out) {
	c.touch(now)
	p := c.peer(to)
	if c.role != RoleLeader || p == nil || p.forgot {
		return
	}
	if p.state != stateSnapshot {
		if ok && p.state == stateProbe && p.match < idx && c.log.matches(idx, term) {
			p.toProbe(idx + 1)
		}
		return
	}
	if !ok {
		c.snapshotFailed(now, p)
		return
	}
	p.toProbe(idx + 1)
	// Its acknowledgement comes by itself when the install is done.
	p.paused = true
	p.retryWait = c.tun.ProbeRetry / 8
	c.armRetry(now, p)
}

func (c *Core) snapshotFailed(now Time, p *progress) {
	if mutants.On("E8") {
		return
	}
	p.toProbe(p.match + 1)
	b := p.ownGap()
	b.failures++
	p.paused = true
	p.retryWait = min(c.tun.ProbeRetry<<min(b.failures-1, 8), 10*c.tun.ProbeRetry)
	c.armRetry(now, p)
}

// steady reports whether a leader has nothing to do for p but to take note of what
// it acknowledges: all was sent to it, and nobody waits for it.
func (c *Core) steady(p *progress) bool {
	return p.state == stateReplicate && (p.next > c.log.last || mutants.On("K22")) && !p.fetching && !p.wantSnap &&
		c.ready && len(c.few().reads) == 0 && c.transferTo == 0 && len(c.few().leaving) == 0 && !c.desc.IsJoint()
}

// stepAppResp takes the answer to an append. It reports whether that is all there
// is to do: nothing can be committed, sent or answered by it.
func (c *Core) stepAppResp(now Time, m *Msg, o *Out) (quiet bool) {
	p := c.peer(m.FromReplica)
	if c.role != RoleLeader || p == nil {
		return false
	}
	quiet = c.steady(p) && (m.Epoch == 0 || m.Epoch == p.epoch)
	if m.Epoch != 0 {
		p.epoch = m.Epoch
	}
	if m.Round > p.round {
		p.round = m.Round
		c.confirmReads(o)
	}
	if m.Reject() && !mutants.On("K19") {
		c.stepAppRefused(m, p)
		return false
	}
	if m.Index > c.log.last {
		c.anomalies++
		return false
	}
	if m.Index > p.match {
		if c.truncAt == Never && p.match < c.log.applied && !mutants.On("K24") {
			quiet = false // it may have held up the cutting of the logs, which no timer comes back to
		}
		retryAt := p.retryAt
		p.match = m.Index
		p.noteAck(m)
		p.retryWait = 0
		c.armRetry(now, p)
		quiet = quiet && p.retryAt >= retryAt
	}
	p.next = max(p.next, p.match+1)
	p.inflight.freeTo(m.Index)
	switch p.state {
	case stateProbe:
		// An older answer than the probe's is as good: the logs agree through it.
		p.toReplicate()
		p.retryWait = 0
		c.armRetry(now, p)
	case stateSnapshot:
		if p.match+1 > c.log.trunc && p.match >= p.gap().snapIndex {
			p.toReplicate()
		}
	}
	return quiet && (!c.canCommit() || mutants.On("K21"))
}

// stepAppRefused backs off to where the logs may agree.
func (c *Core) stepAppRefused(m *Msg, p *progress) {
	refused := m.Commit
	if p.state == stateSnapshot || refused <= p.match || p.state == stateProbe && refused != p.next-1 {
		return // of the past
	}
	i, _ := c.log.hint(min(m.Index, refused-1), m.LogTerm)
	p.retryWait = 0
	p.toProbe(min(i, refused-1) + 1)
}

// keepFloor is how many bytes of log a replica that is away may always hold back: a
// snapshot has costs of its own, however small the data are.
const keepFloor = 1 << 20

// KeepBytes returns how many bytes of log a replica that is away may hold back where
// the data of its shard take dataBytes: half of that, since what the log brings is
// taken in more slowly than a snapshot; at least 1 MiB, at most limit. Zero or less
// data: the size is not known, and limit holds alone.
func KeepBytes(limit, dataBytes int64) int64 {
	if dataBytes <= 0 {
		return limit
	}
	return min(limit, max(keepFloor, dataBytes/2))
}

// sizeEvery is how often the owner is asked for the size of the data, at most.
const sizeEvery = 10 * time.Second

// Sized answers a SizeTask: the data of this group take so many bytes.
func (c *Core) Sized(bytes int64) {
	c.dataBytes, c.stirred = max(1, bytes), true
}

// updateCompactTo decides how far the logs may be cut: what all live members
// hold; a dead one holds the log back only within LogKeepEntries and
// KeepBytes, a live one within sixteen times as much; a node that is short of room
// for logs keeps nothing for the dead, or for anybody (Press).
func (c *Core) updateCompactTo(now Time, o *Out) {
	l := &c.log
	keep := uint64(c.tun.LogKeepBytes)
	if c.dataBytes != 0 && !mutants.On("LK1") {
		keep = uint64(KeepBytes(int64(keep), c.dataBytes))
	}
	to := l.applied
	images := c.tun.Cut == CutLeaderImage
	if images {
		i := &c.own().image
		i.wanted, i.spared = false, true
	}
	for i := range c.peers {
		p := &c.peers[i]
		if i == c.self || p.forgot {
			continue
		}
		if images && (p.match < c.seldom.image.at || p.state == stateSnapshot) {
			c.seldom.image.spared = false
		}
		pos := max(p.match, l.trunc)
		if p.state == stateSnapshot {
			pos = max(pos, p.gap().snapIndex)
		}
		if pos >= to {
			continue
		}
		f := 1
		if c.alive(p.node) {
			f = 16
		}
		if c.pressure == PressureAll || c.pressure == PressureDead && f == 1 {
			continue
		}
		held := l.heldBytes(pos)
		if held > keepFloor && c.tun.LogKeepBytes > keepFloor && now >= c.sizeDue {
			c.sizeDue = now.Add(sizeEvery)
			o.Sizes = append(o.Sizes, SizeTask{Shard: c.shard})
		}
		within := l.last-pos <= Index(f*c.tun.LogKeepEntries) && held <= uint64(f)*keep
		if images {
			to = c.cover(f > 1, within, pos, to)
		} else if within {
			to = pos
		}
	}
	if c.tun.Cut == CutInLog {
		c.wish = max(c.wish, to)
		return
	}
	if to > c.compactTo {
		c.compactTo = to
		if c.truncAt == Never && !c.truncNow {
			c.truncAt = now.Add(c.tun.IdleTruncate)
		}
	}
}

// sendFortify asks a member for its promise again after an epoch changed.
func (c *Core) sendFortify(now Time, p *progress, o *Out) {
	if now >= c.fortifyDue(p) {
		p.fortifyAt = now.Add(c.tun.ProbeRetry * 2)
		c.send(o, p.node, p.id, Msg{Type: MsgFortify})
	}
}

func (c *Core) fortifyDue(p *progress) Time {
	e, until := c.live.SupportFrom(p.node)
	return c.fortifyFor(p, e, until)
}

// fortifyFor is fortifyDue for a node that supports this one at e until until.
func (c *Core) fortifyFor(p *progress, e Epoch, until Time) Time {
	if p.state != stateReplicate || p.forgot {
		return Never // the next append asks, or it has no state yet
	}
	if e == 0 || e == p.epoch || until <= c.now {
		return Never
	}
	return p.fortifyAt
}

// ReadIndex asks for an index at which a read is linearizable (thesis section
// 6.4). The answer comes through Out.Reads, perhaps at once; ctx comes back
// with it. All reads of a round share one confirmation by a quorum.
func (c *Core) ReadIndex(now Time, ctx uint64, o *Out) {
	c.touch(now)
	switch {
	case !c.leads():
		o.Reads = append(o.Reads, ReadState{Shard: c.shard, Context: ctx, Err: ErrNotLeader})
	case c.ready && (c.soleVoter() || mutants.On("D6")):
		o.Reads = append(o.Reads, ReadState{Shard: c.shard, Context: ctx, Index: c.log.commit})
	default:
		r := pendingRead{ctx: ctx, index: c.log.commit, round: c.readRound + 1}
		switch {
		case mutants.On("D2") && c.readRound > 0:
			r.round = c.readRound
		case mutants.On("D5"):
			r.index = c.log.applied
		}
		s := c.own()
		s.reads = append(s.reads, r)
	}
}

// nextReadRound opens a round if reads wait for one, or if the running one got
// no answer for too long.
func (c *Core) nextReadRound(now Time) bool {
	s := c.seldom
	if s == nil || len(s.reads) == 0 || s.reads[len(s.reads)-1].round <= c.readRound && now < c.readDue() {
		return false
	}
	c.readRound++
	s.readSent = now
	c.peers[c.self].round = c.readRound
	return true
}

func (c *Core) readDue() Time {
	sent := c.few().readSent
	if sent == 0 {
		return 0
	}
	return sent.Add(c.tun.ProbeRetry)
}

// confirmReads answers the reads whose round, or a later one, a quorum has
// confirmed in this term.
func (c *Core) confirmReads(o *Out) {
	s := c.seldom
	if s == nil || len(s.reads) == 0 || !c.ready && !mutants.On("D1") || c.role != RoleLeader {
		return
	}
	r := uint64(quorumOf(c.peers, roundOf))
	n := 0
	for n < len(s.reads) && s.reads[n].round <= r {
		o.Reads = append(o.Reads, ReadState{Shard: c.shard, Context: s.reads[n].ctx, Index: s.reads[n].index})
		n++
	}
	s.reads = s.reads[:copy(s.reads, s.reads[n:])]
}

// Transfer hands the leadership to another voter (thesis section 3.10). While
// it runs, proposals are refused; it is given up after TransferTimeout. Errors:
// ErrNotLeader, ErrTransferring, ErrTransferTarget.
func (c *Core) Transfer(now Time, to ReplicaID, o *Out) error {
	c.touch(now)
	if !c.leads() {
		return ErrNotLeader
	}
	if c.transferTo != 0 {
		if c.transferTo == to {
			return nil
		}
		return ErrTransferring
	}
	p := c.peer(to)
	if p == nil || p.id == c.id || !p.role.inNew() || p.forgot || !c.alive(p.node) {
		return ErrTransferTarget
	}
	c.transferTo, c.transferAt, c.timeoutSent = to, now.Add(c.tun.TransferTimeout), false
	c.due = true
	return nil
}

// maybeTimeoutNow lets the target campaign once it holds the whole log.
func (c *Core) maybeTimeoutNow(o *Out) {
	if c.transferTo == 0 || c.timeoutSent {
		return
	}
	if p := c.peer(c.transferTo); p != nil && (p.match == c.log.last || mutants.On("A20") || mutants.On("D10") && p.state == stateSnapshot) {
		c.timeoutSent, c.grantSent = true, true
		c.send(o, p.node, p.id, Msg{Type: MsgTimeoutNow, Flags: FlagGrant})
	}
}

// quorumUntil returns until when, by the own clock, a quorum supports this node.
func (c *Core) quorumUntil() Time {
	return Time(quorumOf(c.peers, func(p *progress) int64 {
		_, until := c.live.SupportFrom(p.node)
		return c.countedUntil(p, until)
	}))
}

// countedUntil returns until when the support of p's node counts, which stands for
// as long as until.
func (c *Core) countedUntil(p *progress, until Time) int64 {
	if p.forgot {
		until = 0
	}
	if mutants.Enabled && mutants.On("A9") && slices.ContainsFunc(c.peers, func(q progress) bool { return q.match == 0 && q.id != c.id }) {
		until = 0 // somebody was not heard of yet
	}
	return int64(until)
}

// checkQuorum judges whether a quorum can be reached. A leader whose quorum's
// support lapsed for longer than QuorumGrace steps down.
func (c *Core) checkQuorum(now Time, o *Out) {
	if c.role == RoleLeader {
		until := c.quorumUntil()
		if until > now || now < c.quorumFrom {
			c.quorumLost = false
			return
		}
		if !c.quorumLost {
			c.quorumLost, c.quorumSince = true, max(until, c.quorumFrom)
		}
		if now >= c.quorumSince.Add(c.tun.QuorumGrace) {
			c.attempts = 1
			c.becomeFollower(now, c.hs.Term, o)
			c.due = true
		}
		return
	}
	var hear, heard tally
	for i := range c.peers {
		p := &c.peers[i]
		_, live := c.live.SupportFor(p.node)
		_, until := c.live.SupportFrom(p.node)
		hear.add(p.role, live && !p.forgot || i == c.self)
		heard.add(p.role, until > now && !p.forgot || i == c.self)
	}
	switch {
	case c.lead != 0 || hear.won() && heard.won():
		c.quorumLost = false
	case now < c.quorumFrom:
	case !c.quorumLost:
		c.quorumLost, c.quorumSince = true, now
	}
}

func (c *Core) leaderDeadline() Time {
	d := min(c.transferAt, c.commitAt)
	if len(c.few().reads) > 0 {
		d = min(d, c.readDue())
	}
	var counted [MaxReplicas]int64
	for i := range c.peers {
		p := &c.peers[i]
		e, until := c.live.SupportFrom(p.node)
		counted[i] = c.countedUntil(p, until)
		if i != c.self {
			d = min(d, c.retryDue(p), c.fortifyFor(p, e, until))
		}
	}
	if c.quorumLost {
		return min(d, c.quorumSince.Add(c.tun.QuorumGrace))
	}
	return min(d, max(Time(quorumIn(c.peers, &counted)), c.quorumFrom))
}

func (c *Core) tickLeader(now Time, o *Out) {
	if now >= c.transferAt && !mutants.On("A17") {
		c.abortTransfer(now, o)
		if c.role != RoleLeader {
			return
		}
	}
	for i := range c.peers {
		if i != c.self && now >= c.retryDue(&c.peers[i]) {
			c.retry(now, &c.peers[i], o)
		}
	}
	c.checkQuorum(now, o)
}
