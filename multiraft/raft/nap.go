package raft

import (
	"slices"

	"github.com/flotillakv/flotilla/internal/mutants"
)

// A core with nothing to do can be put away: its owner keeps a Nap, drops the core,
// and makes another one from the disk and the Nap when something comes for the
// replica. To everybody else that is as if the core had been there all the time.
//
//	N1  Who naps has nothing open: all of its log is durable, committed, applied and
//	    cut (but see N2); nobody waits for it, and it waits for nobody. Its hard state is on the
//	    disk.
//	N2  A leader naps only when every member whose node is alive holds its whole log
//	    and was told that it is committed. Those whose nodes are dead may lag; the
//	    owner wakes the leader when such a node comes back.
//	N3  A follower naps only under a leader to which its durable promise stands. When
//	    it wakes it looks whether the promise stands still, since nobody told it of
//	    what changed meanwhile.
//	    One that has no leader naps only while its owner knows that no majority can be
//	    reached; the owner wakes it when that changes.
//	    What such members lack may be kept of a log that is cut as far as it may be, at the
//	    leader and, while some member's node is dead, at followers; the stub says so (Kept).
//	    Who naps with a whole log goes on cutting where it was.
//	N4  A round of reads, or a question to the leader, has a number that was never
//	    used before in its term by this replica, over naps too: what was answered to
//	    an earlier one must not count. The owner keeps the highest numbers of all its
//	    naps together.
//
// What members promised (memory) is kept as far as the log says it: a leader knows
// what everybody acknowledged. Votes are forgotten, which makes lost votes harder to
// find, and no more.

// Nap is what has to be remembered of a core that is put away.
type Nap struct {
	// Leads: it leads in Term, and Members are all members, itself included. Else it
	// follows, and Members is the leader alone, at the epoch of the promise to it.
	Leads  bool
	Leased bool // leads, and may claim leases
	// Lost: it has no leader. There are no Members; Restarted as in Config.
	Lost, Restarted bool
	Term            Term
	Last            Index // end of the log, which is of Term
	// Kept: some of the log is not cut, for members whose nodes were dead.
	Kept    bool
	Members []NapMember
	// Round and Asked are the numbers of N4.
	Round, Asked uint64
}

// NapMember is what a Nap says of one member.
type NapMember struct {
	Node NodeID
	ID   ReplicaID
	Role Role
	// Epoch at which it fortified the napping leader; of a follower's leader: at which
	// the follower fortified it. Zero: not.
	Epoch Epoch
	// Boot is the newest boot of its node that acknowledged the leader's log.
	Boot uint64
	// Lags: it does not hold the whole log. Its node was dead.
	Lags bool
}

// Nap returns what has to be remembered if the core is put away now, its members
// appended to dst; ok is false if it has to stay. The owner must have nothing for it
// either, and no batch with something of it that is not durable yet.
func (c *Core) Nap(dst []NapMember) (n Nap, ok bool) {
	l := &c.log
	kept := l.trunc < l.last && !mutants.On("N1")
	whole := (!kept || c.keepsForDead()) && l.applied == l.last && l.commit == l.last && l.stable == l.last
	if mutants.On("N5") { // what is not known to be committed does not count
		whole = l.trunc == l.applied && l.applied == l.commit
	}
	lost := c.lead == 0 && !c.suspect && (c.role == RoleFollower || c.role == RolePreCandidate)
	switch {
	case !whole:
		return n, false
	case c.due, c.stirred, c.forgotten, c.leadOver, c.released, c.pressure != PressureNone,
		c.redoes && c.redo < l.last, len(c.few().drops) > 0, len(c.few().asking.reads) > 0, c.confIndex > l.applied,
		c.self < 0, c.desc.IsJoint():
		return n, false
	case lost:
		return Nap{Lost: true, Restarted: c.restarted, Term: c.hs.Term, Last: l.last, Kept: kept, Round: c.readRound, Asked: c.few().asking.seq}, true
	case c.restarted, c.quorumLost, l.last == 0, l.lastTerm != c.hs.Term, l.accTerm != c.hs.Term:
		return n, false
	}
	for i := range c.peers {
		if c.peers[i].forgot {
			return n, false
		}
	}
	n = Nap{Term: c.hs.Term, Last: l.last, Kept: kept, Round: c.readRound, Asked: c.few().asking.seq}
	if c.role == RoleLeader {
		n.Leads, n.Leased = true, c.hs.Leased
		n.Members, ok = c.napMembers(dst)
		return n, ok && (!kept || slices.ContainsFunc(n.Members, func(m NapMember) bool { return m.Lags }))
	}
	if c.role != RoleFollower || c.lead == 0 || c.lead != c.hs.Lead || c.suspect || c.lagAt != Never && !mutants.On("N5") || !c.fortified() {
		return n, false
	}
	n.Members = append(dst, NapMember{Node: c.hs.LeadNode, ID: c.hs.Lead, Epoch: c.hs.LeadEpoch})
	return n, true
}

// keepsForDead reports whether the log is cut as far as it may be while some member's node is
// dead, which may lack the rest. Other policies than the default cut by rules of their own.
func (c *Core) keepsForDead() bool {
	if c.tun.Cut != CutPiggyback || max(c.compactTo, c.cutTo) > c.log.trunc {
		return false
	}
	for i := range c.peers {
		if i != c.self && !c.alive(c.peers[i].node) {
			return true
		}
	}
	return false
}

// napMembers is the part of Nap that a leader has for its members.
func (c *Core) napMembers(dst []NapMember) ([]NapMember, bool) {
	if !c.ready || !c.isVoter() || c.grantSent || c.transferTo != 0 || len(c.few().reads)+len(c.few().leaving) > 0 || c.uncommitted > 0 ||
		c.quorumUntil() <= c.now || c.hs.Lead != c.id {
		return dst, false
	}
	for i := range c.peers {
		p := &c.peers[i]
		m := NapMember{Node: p.node, ID: p.id, Role: p.role, Epoch: p.epoch, Boot: p.mem.ackBoot}
		if i == c.self {
			dst = append(dst, m)
			continue
		}
		m.Lags = p.match < c.log.last || p.state != stateReplicate
		if c.alive(p.node) {
			e, until := c.live.SupportFrom(p.node)
			if m.Lags || p.sentCommit < c.log.last || p.inflight.count() > 0 || p.fetching || p.wantSnap ||
				until > c.now && e != p.epoch && p.role.IsVoter() {
				return dst, false
			}
		}
		dst = append(dst, m)
	}
	return dst, true
}

// WakeCore makes a core from its durable state and what is remembered of it. Round
// and Asked of n may be larger than those it was put away with. The owner calls Flush
// in the same round.
func WakeCore(cfg Config, st State, n *Nap, now Time, o *Out) (*Core, error) {
	hard := st.Hard
	c, err := NewCore(cfg, st, now)
	if err != nil {
		return nil, err
	}
	l := &c.log
	if l.last != n.Last || l.applied != n.Last || (l.trunc < n.Last) != n.Kept || hard.Term != n.Term || len(n.Members) == 0 && !n.Lost {
		return nil, corrupt("state", "it is not as it was when the replica was put away")
	}
	c.restarted = n.Restarted
	if !mutants.On("N4") {
		c.readRound = n.Round
		if n.Asked != 0 {
			c.own().asking.seq = n.Asked
		}
	}
	if n.Lost {
		return c, nil
	}
	if !n.Leads {
		m := &n.Members[0]
		c.lead, c.leadNode, c.leadEpoch, c.contactAt = m.ID, m.Node, m.Epoch, now
		c.told = RoleChange{Shard: c.shard, Term: c.hs.Term, Lead: c.lead, LeadNode: c.leadNode}
		c.electionAt = Never
		c.LivenessChanged(now, c.leadNode, o)
		return c, nil
	}
	c.hs = hard
	c.role, c.ready = RoleLeader, true
	c.lead, c.leadNode, c.campaigned = c.id, c.node, hard.Term
	c.electionAt = Never
	c.preLeading = l.last
	c.quorumFrom = now.Add(c.tun.QuorumGrace)
	c.told = RoleChange{Shard: c.shard, Term: c.hs.Term, Lead: c.lead, LeadNode: c.leadNode, IsLeader: true, IsReady: true, FirstIndex: l.last + 1}
	for k := range n.Members {
		m := &n.Members[k]
		p := c.peer(m.ID)
		if p == nil || p.node != m.Node || p.role != m.Role {
			return nil, corrupt("state", "it has other members than when the replica was put away")
		}
		p.epoch = m.Epoch
		if m.Lags {
			p.toProbe(l.last + 1)
			continue
		}
		p.match = l.last
		p.toReplicate()
		p.sentCommit, p.sentCompact = l.last, l.trunc
		if mutants.On("N7") {
			p.sentCompact = l.last
		}
		p.mem.index, p.mem.ackTerm, p.mem.ackBoot = l.last, c.hs.Term, m.Boot
	}
	return c, nil
}
