package raft

import (
	"encoding/binary"

	"github.com/flotillakv/flotilla/internal/invariants"
	"github.com/flotillakv/flotilla/internal/mutants"
)

// peer returns what is known of a member, or nil.
func (c *Core) peer(id ReplicaID) *progress {
	for i := range c.peers {
		if c.peers[i].id == id {
			return &c.peers[i]
		}
	}
	return nil
}

// setDesc takes over an applied descriptor. Members that stay keep their
// progress; acknowledgements and votes of others stop to count here.
func (c *Core) setDesc(desc Descriptor) {
	old := c.peers
	own := desc.Clone()
	c.desc = &own
	if c.peers = c.peers[:0]; len(old) > 0 || cap(c.peers) < len(desc.Replicas) { // else it is spare memory
		c.peers = make([]progress, 0, len(desc.Replicas))
	}
	c.self = -1
	for _, r := range desc.Replicas {
		p := progress{node: r.Node, id: r.ID, role: r.Role, next: c.log.last + 1}
		for i := range old {
			if old[i].id == r.ID {
				p = old[i]
				p.role = r.Role
			}
		}
		if r.ID == c.id {
			c.self = len(c.peers)
		}
		if mutants.On("C1") && old == nil && p.role > Learner { // restored as if the change had ended
			p.role = map[bool]Role{true: Voter, false: Learner}[p.role.inNew()]
		}
		c.peers = append(c.peers, p)
	}
	if mutants.On("C7") {
		for i := range old {
			if _, ok := desc.Replica(old[i].id); !ok && old[i].role.IsVoter() && len(c.peers) < MaxReplicas {
				c.peers = append(c.peers, old[i])
			}
		}
	}
	for i := range old {
		if c.role == RoleLeader && c.peer(old[i].id) == nil && old[i].state == stateReplicate {
			s := c.own()
			s.leaving = append(s.leaving, Replica{Node: old[i].node, ID: old[i].id})
		}
	}
	if _, ok := desc.Replica(c.hs.Lead); !ok && c.hs.Lead != 0 && c.hs.Lead < desc.NextReplica {
		c.released = true // gone for good
	}
}

// isVoter reports whether this replica votes in some half.
func (c *Core) isVoter() bool { return c.self >= 0 && c.peers[c.self].role.IsVoter() }

// soleVoter reports whether this replica is a majority of every half by itself.
func (c *Core) soleVoter() bool {
	var t tally
	for i := range c.peers {
		t.add(c.peers[i].role, i == c.self)
	}
	return t.won()
}

// ProposeConf appends a configuration change (an empty one leaves a joint
// configuration). Errors, with nothing proposed: ErrNotLeader, ErrTransferring,
// ErrConfPending, ErrConfVersion, ErrConfInvalid, ErrConfUnsafe, ErrConfLagging.
// h.GroupTs is the caller's; DescVersion is filled in.
func (c *Core) ProposeConf(now Time, cc ConfChange, h EntryHeader, o *Out) (LogMark, error) {
	c.touch(now)
	switch {
	case !c.leads():
		return LogMark{}, ErrNotLeader
	case c.transferTo != 0:
		return LogMark{}, ErrTransferring
	case !c.ready || c.confPending():
		if mutants.On("C3c") {
			c.appendOwn(EntryConf, h, []Command{{Body: cc.Encode(nil)}}, o)
		}
		return LogMark{}, ErrConfPending
	}
	next, err := c.desc.Apply(cc)
	if err != nil {
		return LogMark{}, err
	}
	if r, ok := next.Replica(c.id); (!ok || !r.Role.inNew()) && !mutants.On("C6") && !mutants.On("C10b") && !mutants.On("C16") {
		return LogMark{}, ErrConfUnsafe
	}
	if c.promotesLagging(&next) && !mutants.On("C11") {
		return LogMark{}, ErrConfLagging
	}
	mark := c.appendOwn(EntryConf, h, []Command{{Body: cc.Encode(nil)}}, o)
	if !mutants.On("C2") {
		c.confIndex = mark.Index
	}
	if mutants.On("C4") {
		c.setDesc(next)
	}
	return mark, nil
}

// promotesLagging reports whether next gives a vote to a learner that is not
// close to the end of the log: the group could commit nothing until it is.
func (c *Core) promotesLagging(next *Descriptor) bool {
	for i := range c.peers {
		p := &c.peers[i]
		if r, ok := next.Replica(p.id); ok && p.role == Learner && r.Role.inNew() && !c.caughtUp(p) {
			return true
		}
	}
	return false
}

// caughtUp reports whether a peer follows the log closely.
func (c *Core) caughtUp(p *progress) bool {
	l := &c.log
	return p.state == stateReplicate && !p.fetching && c.alive(p.node) && p.match > 0 &&
		l.last-p.match <= Index(c.tun.PromoteLag) && l.heldBytes(p.match) <= uint64(c.tun.InflightBytes)
}

// confPending reports whether the log may hold a change that is not applied.
func (c *Core) confPending() bool { return c.confIndex > c.log.applied }

// mustLeaveJoint reports whether the leader has to end a joint configuration.
func (c *Core) mustLeaveJoint() bool { return c.ready && !c.confPending() && c.desc.IsJoint() }

// leaveJoint proposes the change that ends a joint configuration, or hands the
// leadership over first if this leader is on its way out.
func (c *Core) leaveJoint(now Time, o *Out) {
	if c.self < 0 || c.transferTo != 0 {
		return
	}
	if c.peers[c.self].role.inNew() || mutants.On("C16") {
		_, err := c.ProposeConf(now, ConfChange{ConfVer: c.desc.ConfVer}, EntryHeader{}, o)
		invariants.Must(err == nil, "leaving the joint configuration: %v", err)
		return
	}
	best := -1
	for i := range c.peers {
		p := &c.peers[i]
		if p.role.inNew() && c.alive(p.node) && (best < 0 || p.match > c.peers[best].match) {
			best = i
		}
	}
	if best >= 0 {
		_ = c.Transfer(now, c.peers[best].id, o) // tried again when it times out
	}
}

// ConfApplied says that the configuration entry at idx was applied, in the
// batch that is being built, and desc is the descriptor after it (the same as
// before, if the entry was rejected). Nothing is emitted.
func (c *Core) ConfApplied(now Time, desc Descriptor, idx Index, _ *Out) {
	c.touch(now)
	invariants.Must(idx <= c.log.commit, "configuration of %d applied, committed through %d", idx, c.log.commit)
	c.setDesc(desc)
	c.due = true
	c.quorumFrom = max(c.quorumFrom, now.Add(c.tun.QuorumGrace))
	if c.role != RoleLeader && !c.isVoter() {
		c.role = RoleFollower // a campaign ends with the right to vote
	}
	if c.role != RoleLeader && c.lead == 0 {
		c.armElection(now)
	}
}

// First reports whether this replica is the first of the voters in the order in which
// they campaign.
func (c *Core) First() bool { return c.isVoter() && c.rank() == 0 }

// rank returns this voter's place in the order in which voters campaign: its
// position among the voters, rotated by a hash of the shard so that the groups
// of a cluster do not all prefer the same node. Voters on their way out come
// behind all others.
func (c *Core) rank() int {
	n, pos := 0, -1
	for i := range c.peers {
		if !c.peers[i].role.inNew() {
			continue
		}
		if i == c.self {
			pos = n
		}
		n++
	}
	if pos < 0 {
		return n
	}
	return (pos - int(shardHash(c.shard)%uint64(n)) + n) % n
}

// shardHash spreads shard ids (FNV-1a over the eight bytes).
func shardHash(s ShardID) uint64 {
	var b [8]byte
	binary.BigEndian.PutUint64(b[:], uint64(s))
	h := uint64(14695981039346656037)
	for _, x := range b {
		h = (h ^ uint64(x)) * 1099511628211
	}
	return h >> 32
}
