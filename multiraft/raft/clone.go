package raft

import (
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"reflect"
	"slices"
	"time"
)

// This file is for explicit-state exploration (package internal/sim/explore):
// copies of a core, a canonical form by which equal cores are recognised, and
// an abstraction of time. A test holds it complete: a field added to Core, or to
// anything in it, has to be handled here.

// Clone returns a core that behaves as c and shares no memory with it that
// either of them ever changes. live takes the place of c's liveness table; nil
// keeps it.
func (c *Core) Clone(live Liveness) *Core {
	n := *c
	if live != nil {
		n.live = live
	}
	// Entries are never rewritten in place, but both would append behind them.
	n.log.ents = c.log.ents[:len(c.log.ents):len(c.log.ents)]
	n.log.runs = slices.Clone(c.log.runs)
	n.log.free = slices.Clone(c.log.free)
	n.peers = slices.Clone(c.peers)
	for i := range n.peers {
		p := &n.peers[i]
		if f := p.inflight; f != nil {
			p.inflight = &inflight{sent: slices.Clone(f.sent[f.head:]), size: f.size}
		}
		if b := p.behind; b != nil {
			own := *b
			p.behind = &own
		}
	}
	if c.seldom != nil {
		s := *c.seldom
		s.reads, s.leaving, s.drops = slices.Clone(s.reads), slices.Clone(s.leaving), slices.Clone(s.drops)
		s.asking.reads = slices.Clone(s.asking.reads)
		n.seldom = &s
	}
	return &n // desc is replaced as a whole and never changed
}

// FrozenTime is the instant at which a frozen core lives (see Freeze).
const FrozenTime Time = 1 << 50

// Freeze reduces the times in c to what they mean at FrozenTime: a deadline is
// unset or armed, never due; a silence has just begun; nothing that limits a
// rate stands in the way. The counters that only stretch delays and the random
// stream are reset. A core that is stepped at FrozenTime, frozen after each
// step, and whose armed deadlines Fire in any order, does all that the core
// does in real time, and more. keepTruncate leaves the cutting of logs on.
func (c *Core) Freeze(keepTruncate bool) {
	c.now = FrozenTime
	c.rng = rand.PCG{}
	for _, t := range [...]*Time{&c.electionAt, &c.lagAt, &c.transferAt, &c.commitAt, &c.truncAt} {
		if *t != Never {
			*t = FrozenTime + 1
		}
	}
	c.contactAt, c.quorumSince = 0, 0
	if s := c.seldom; s != nil {
		s.asking.sent, s.asking.tries = 0, 0
		if len(s.asking.reads) > 0 {
			s.asking.sent = FrozenTime
		}
		if s.readSent = min(s.readSent, FrozenTime); len(s.reads) == 0 {
			s.readSent = 0
		}
		s.image.wanted, s.image.spared = false, false
	}
	if c.lead != 0 {
		c.contactAt = FrozenTime
	}
	if c.quorumLost {
		c.quorumSince = FrozenTime
	}
	c.stirred = false // what is explored is at rest
	c.cutRetry = 0
	c.queryAt, c.quorumFrom, c.waitAll, c.waitMost, c.sizeDue = 0, FrozenTime, 0, 0, 0
	c.attempts, c.gaveWay, c.anomalies = 0, false, 0
	c.lastSeen, c.appliedAt = c.log.last, c.log.applied
	c.log.diskBytes = 0
	c.log.free, c.log.chunk = nil, 0
	c.log.deadEnts, c.log.deadBytes = 0, 0
	if !keepTruncate {
		c.truncAt, c.truncNow, c.compactTo, c.wish = Never, false, c.log.trunc, 0
		for i := range c.peers {
			c.peers[i].sentCompact = 0
		}
	}
	for i := range c.peers {
		p := &c.peers[i]
		p.retryAt = FrozenTime + 1
		p.retryWait = min(p.retryWait, 2*c.tun.ProbeRetry)
		if b := p.behind; b != nil {
			b.failures = min(b.failures, 1)
			b.snapSince = FrozenTime
		}
		p.mem = memory{} // no store of the exploration comes back older than it was
		if p.fortifyAt > FrozenTime {
			p.fortifyAt = FrozenTime + 1
		} else {
			p.fortifyAt = 0
		}
	}
}

// CheckQuiet holds Stirred against what it promises: where it says that nothing
// follows, a copy is flushed to see that nothing does. It is called in place of a
// Flush that is left out. now is the round's time.
func (c *Core) CheckQuiet(now Time) error {
	if c.Stirred() || c.Deadline() <= now {
		return nil // or time has more to say than what came in
	}
	if !reflect.DeepEqual(nothing, seldom{}) || notBehind != (behind{}) {
		return fmt.Errorf("what cores share that have nothing of it was written to: %+v, %+v", nothing, notBehind)
	}
	n := c.Clone(nil)
	var o Out
	n.Flush(now, &o)
	o.Truncates, o.Cuts = nil, nil // the log may be cut now, but need not be: the timer comes back to it
	if x := [...]int{len(o.Msgs), len(o.Held), len(o.Appends), len(o.HardStates), len(o.Applies), len(o.Fetches), len(o.Snapshots),
		len(o.Reads), len(o.Roles), len(o.Drops), len(o.Asks), len(o.Forgets)}; x != [len(x)]int{} {
		return fmt.Errorf("replica %d of shard %d is not stirred, and has a round to give out: %+v", c.id, c.shard, o)
	}
	if a, b := c.Status(), n.Status(); !reflect.DeepEqual(a, b) {
		return fmt.Errorf("replica %d of shard %d is not stirred, and comes from %+v to %+v", c.id, c.shard, a, b)
	}
	if a, b := c.Deadline(), n.Deadline(); b < a {
		return fmt.Errorf("replica %d of shard %d is not stirred, and its deadline comes from %d to %d", c.id, c.shard, a, b)
	}
	l, _ := c.Lease(nil)
	if m, _ := n.Lease(nil); !l.Same(&m) {
		return fmt.Errorf("replica %d of shard %d is not stirred, and its lease comes from %+v to %+v", c.id, c.shard, l, m)
	}
	return nil
}

// TimerKind names a deadline of a core.
type TimerKind uint8

// The deadlines of a core.
const (
	TimerElection   TimerKind = iota + 1 // campaign
	TimerLag                             // a follower asks for the rest
	TimerLeaderLoss                      // a leader without node support was silent for too long
	TimerTruncate                        // the quiet time before the whole applied log is cut
	TimerTransfer                        // a transfer is given up
	TimerCommit                          // a commit record has waited long enough
	TimerQuorum                          // a leader's quorum was gone for too long
	TimerRead                            // a read round got no answer
	TimerRetry                           // Peer was silent
	TimerFortify                         // Peer is asked for its promise again
	TimerAsk                             // the leader did not answer the question for a read index
)

// String returns the timer's name.
func (k TimerKind) String() string {
	return [...]string{"?", "election", "lag", "leader-loss", "truncate", "transfer", "commit", "quorum", "read", "retry", "fortify", "ask"}[k]
}

// Timer is one armed deadline.
type Timer struct {
	Kind TimerKind
	Peer ReplicaID // TimerRetry, TimerFortify
}

// Timers appends the armed deadlines of a frozen core to dst.
func (c *Core) Timers(dst []Timer) []Timer {
	add := func(k TimerKind, at Time, p ReplicaID) {
		if at != Never {
			dst = append(dst, Timer{k, p})
		}
	}
	add(TimerTruncate, c.truncAt, 0)
	if c.role != RoleLeader {
		add(TimerElection, c.electionAt, 0)
		add(TimerLag, c.lagAt, 0)
		add(TimerAsk, c.askDue(), 0)
		if c.lead != 0 {
			add(TimerLeaderLoss, c.leaderLossAt(), 0)
		}
		return dst
	}
	add(TimerTransfer, c.transferAt, 0)
	add(TimerCommit, c.commitAt, 0)
	if c.quorumLost {
		add(TimerQuorum, c.quorumSince, 0)
	}
	if len(c.few().reads) > 0 {
		add(TimerRead, c.readDue(), 0)
	}
	for i := range c.peers {
		if p := &c.peers[i]; i != c.self {
			add(TimerRetry, c.retryDue(p), p.id)
			add(TimerFortify, c.fortifyDue(p), p.id)
		}
	}
	return dst
}

// Fire lets t come, and no other deadline, and ticks. The caller calls Flush.
func (c *Core) Fire(t Timer, o *Out) {
	past := func(d time.Duration) Time { return FrozenTime.Add(-d) }
	p := c.peer(t.Peer)
	switch t.Kind {
	case TimerElection:
		c.electionAt = FrozenTime
	case TimerLag:
		c.lagAt = FrozenTime
	case TimerLeaderLoss:
		c.contactAt = past(c.tun.LeaderGrace)
	case TimerTruncate:
		c.truncAt = FrozenTime
	case TimerTransfer:
		c.transferAt = FrozenTime
	case TimerCommit:
		c.commitAt = FrozenTime
	case TimerQuorum:
		c.quorumSince = past(c.tun.QuorumGrace)
	case TimerRead:
		c.own().readSent = past(2 * c.tun.ProbeRetry)
	case TimerRetry:
		p.retryAt = FrozenTime
		if b := p.behind; b != nil {
			b.snapSince = past(c.tun.SnapshotTimeout)
		}
	case TimerFortify:
		p.fortifyAt = 0
	case TimerAsk:
		c.own().asking.sent = past(c.tun.ProbeRetry)
	}
	c.Tick(FrozenTime, o)
}

// StateForm says how AppendState writes names. The zero StateForm writes them
// as they are.
type StateForm struct {
	// Rename maps ids of nodes and of replicas below its length to others of its
	// length. Zero maps to zero. Nil: no change.
	Rename []uint32
	// Entry appends the form of an entry. Nil: its index and its bytes.
	Entry func(dst []byte, e *Entry) []byte
}

func (f *StateForm) id(i uint32) uint64 {
	if int(i) < len(f.Rename) {
		return uint64(f.Rename[i])
	}
	return uint64(i)
}

// AppendState appends a form of c to dst that is equal for frozen cores of the
// same tuning that behave alike, and different for others.
func (c *Core) AppendState(dst []byte, f *StateForm) []byte {
	u := binary.AppendUvarint
	dst = u(u(u(dst, uint64(c.shard)), f.id(uint32(c.node))), f.id(uint32(c.id)))
	dst = f.AppendHardState(dst, &c.hs)
	dst = append(dst, byte(c.role), flags(c.suspect, c.released, c.voteDurable, c.granted, c.ready, c.timeoutSent, c.quorumLost, c.truncNow), flags(c.due, c.leased, c.grantSent, c.leadOver, c.restarted, c.forgotten))
	dst = c.log.appendState(dst, f)
	dst = f.AppendDescriptor(dst, c.desc)
	dst = u(dst, uint64(len(c.peers)))
	for _, i := range f.order(len(c.peers), func(i int) uint32 { return uint32(c.peers[i].node) }) {
		dst = c.peers[i].appendState(dst, f)
	}
	dst = u(u(u(dst, f.id(uint32(c.lead))), f.id(uint32(c.leadNode))), uint64(c.leadEpoch))
	s := c.few()
	for _, t := range [...]Time{c.contactAt, c.lagAt, c.electionAt, c.transferAt, c.commitAt, c.quorumSince, c.truncAt, s.readSent, s.asking.sent} {
		dst = appendTime(dst, t)
	}
	dst = u(u(u(dst, uint64(c.campaigned)), uint64(c.voteMark.Term)), uint64(c.voteMark.Index))
	dst = u(u(u(u(dst, uint64(c.preLeading)), uint64(c.uncommitted)), uint64(c.confIndex)), f.id(uint32(c.transferTo)))
	dst = u(dst, uint64(len(s.reads)))
	for _, r := range s.reads {
		dst = u(u(u(dst, r.ctx), uint64(r.index)), r.round)
	}
	a := &s.asking
	dst = u(u(u(u(dst, a.seq), f.id(uint32(a.lead))), uint64(a.term)), uint64(len(a.reads)))
	for _, r := range a.reads {
		dst = u(u(dst, r.ctx), r.round)
	}
	dst = u(u(dst, c.readRound), uint64(len(s.leaving)))
	for _, i := range f.order(len(s.leaving), func(i int) uint32 { return uint32(s.leaving[i].Node) }) {
		dst = f.appendReplica(dst, s.leaving[i])
	}
	dst = u(u(u(dst, uint64(c.compactTo)), uint64(c.applyBytes)), uint64(len(s.drops)))
	for _, d := range s.drops {
		dst = u(u(u(dst, uint64(d.Shard)), uint64(d.Index)), uint64(d.Term))
	}
	dst = u(u(u(u(dst, uint64(c.cutTo)), uint64(c.cutEntry)), uint64(c.wish)), uint64(c.cutAsked))
	i := &s.image
	dst = append(u(u(u(dst, uint64(i.at)), uint64(i.bytes)), uint64(i.seen)), i.fails, flags(i.making, i.without, i.force, i.fresh))
	dst = append(u(u(dst, uint64(c.redo)), uint64(c.dataBytes)), flags(c.redoes), byte(c.pressure))
	t := &c.told
	dst = u(u(u(u(dst, uint64(t.Shard)), uint64(t.Term)), f.id(uint32(t.Lead))), f.id(uint32(t.LeadNode)))
	return u(append(dst, flags(t.IsLeader, t.IsReady)), uint64(t.FirstIndex))
}

func (l *raftLog) appendState(dst []byte, f *StateForm) []byte {
	u := binary.AppendUvarint
	dst = u(u(u(dst, uint64(l.trunc)), uint64(l.truncTerm)), uint64(len(l.runs)))
	for _, r := range l.runs {
		dst = u(u(dst, uint64(r.First)), uint64(r.Term))
	}
	dst = u(u(u(dst, uint64(l.prev)), uint64(l.prevTerm)), uint64(len(l.ents)))
	for i := range l.ents {
		dst = f.AppendEntry(dst, &l.ents[i])
	}
	for _, i := range [...]Index{l.last, l.stable, l.commit, l.applying, l.applied} {
		dst = u(dst, uint64(i))
	}
	return u(u(dst, uint64(l.lastTerm)), uint64(l.accTerm))
}

func (p *progress) appendState(dst []byte, f *StateForm) []byte {
	u := binary.AppendUvarint
	dst = f.appendReplica(dst, Replica{Node: p.node, ID: p.id, Role: p.role})
	dst = append(dst, p.vote, p.preVote, byte(p.state), flags(p.paused, p.fetching, p.wantSnap, p.forgot))
	for _, i := range [...]Index{p.match, p.next, p.gap().snapIndex, p.sentCommit, p.sentCompact, p.gap().lost, p.mem.index} {
		dst = u(dst, uint64(i))
	}
	dst = u(u(dst, uint64(p.inflight.bytes())), uint64(p.inflight.count()))
	if f := p.inflight; f != nil {
		for _, s := range f.sent[f.head:] {
			dst = u(u(dst, uint64(s.last)), uint64(s.bytes))
		}
	}
	dst = u(u(u(u(dst, uint64(p.retryWait)), uint64(p.gap().failures)), p.round), uint64(p.epoch))
	dst = u(u(u(u(dst, uint64(p.mem.ackTerm)), p.mem.ackBoot), uint64(p.mem.voted)), p.mem.votedBoot)
	return appendTime(dst, p.fortifyAt)
}

// appendTime tells the classes of time of a frozen core apart.
func appendTime(dst []byte, t Time) []byte {
	switch t {
	case 0:
		return append(dst, 0)
	case FrozenTime:
		return append(dst, 1)
	case FrozenTime + 1:
		return append(dst, 2)
	case Never:
		return append(dst, 3)
	}
	return binary.AppendVarint(append(dst, 4), int64(t))
}

// AppendHardState appends h in this form.
func (f *StateForm) AppendHardState(dst []byte, h *HardState) []byte {
	u := binary.AppendUvarint
	dst = u(u(u(dst, uint64(h.Term)), f.id(uint32(h.Vote))), f.id(uint32(h.Lead)))
	dst = u(u(u(dst, f.id(uint32(h.LeadNode))), uint64(h.LeadEpoch)), uint64(h.Commit))
	return append(dst, flags(h.Leased))
}

// AppendDescriptor appends the configuration of d in this form.
func (f *StateForm) AppendDescriptor(dst []byte, d *Descriptor) []byte {
	u := binary.AppendUvarint
	dst = u(u(u(dst, d.ConfVer), d.Version), uint64(d.NextReplica))
	dst = u(dst, uint64(len(d.Replicas)))
	for _, i := range f.order(len(d.Replicas), func(i int) uint32 { return uint32(d.Replicas[i].Node) }) {
		dst = f.appendReplica(dst, d.Replicas[i])
	}
	return dst
}

// AppendEntry appends e in this form.
func (f *StateForm) AppendEntry(dst []byte, e *Entry) []byte {
	if f.Entry != nil {
		return f.Entry(dst, e)
	}
	dst = binary.AppendUvarint(binary.AppendUvarint(dst, uint64(e.Index)), uint64(e.Term))
	dst = append(dst, byte(e.Type))
	return append(binary.AppendUvarint(dst, uint64(len(e.Value))), e.Value...)
}

// AppendMsg appends m in this form.
func (f *StateForm) AppendMsg(dst []byte, m *Msg) []byte {
	u := binary.AppendUvarint
	dst = append(dst, byte(m.Type), m.Flags)
	dst = u(u(u(dst, uint64(m.Shard)), f.id(uint32(m.From))), f.id(uint32(m.To)))
	dst = u(u(u(dst, f.id(uint32(m.FromReplica))), f.id(uint32(m.ToReplica))), uint64(m.Term))
	dst = u(u(u(dst, uint64(m.Index)), uint64(m.LogTerm)), uint64(m.Commit))
	dst = u(u(u(dst, uint64(m.CompactTo)), uint64(m.Epoch)), m.Round)
	dst = u(dst, m.Boot)
	dst = u(dst, uint64(len(m.Entries)))
	for i := range m.Entries {
		dst = f.AppendEntry(dst, &m.Entries[i])
	}
	return dst
}

func (f *StateForm) appendReplica(dst []byte, r Replica) []byte {
	dst = binary.AppendUvarint(dst, f.id(uint32(r.Node)))
	return append(binary.AppendUvarint(dst, f.id(uint32(r.ID))), byte(r.Role))
}

// order returns the places of n members by their renamed nodes.
func (f *StateForm) order(n int, node func(int) uint32) []int {
	var buf [MaxReplicas]int
	o := buf[:0]
	for i := range n {
		o = append(o, i)
	}
	if f.Rename != nil {
		slices.SortFunc(o, func(a, b int) int { return int(f.id(node(a))) - int(f.id(node(b))) })
	}
	return o
}

func flags(b ...bool) byte {
	var v byte
	for i, x := range b {
		if x {
			v |= 1 << i
		}
	}
	return v
}
