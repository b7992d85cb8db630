package raft

import "github.com/flotillakv/flotilla/internal/mutants"

// A leader holds a lease while a majority of the voters cannot have helped to
// elect another leader. It rests on three things:
//
//	V1  A voter that fortified the leader of term t at pair epoch e (durably,
//	    before it said so) neither votes nor campaigns nor enters a higher term
//	    while its node supports the leader's node at e, except by proof that a
//	    leader of a higher term exists, by the leader's own grant, or when the
//	    leader itself said that it leads no more (see blocksElection).
//	V2  The voter's node ends its support for e not before the leader's node
//	    stops counting on it, and an ended epoch never stands again (package
//	    liveness).
//	V3  The leader says StepDown, grants, votes or enters another term only after
//	    it claimed its last lease of the term: what it claims is true of an
//	    instant, and nothing is promised for later.
//
// Hence, if the lease of term t holds at an instant, no leader of a higher term
// was elected before: let t1 be the lowest such term. Its voters and those the
// lease rests on have a voter in common (of consecutive configurations too),
// which by V1 and V2 did not vote in t1, unless it is the leader itself, which
// by V3 claims nothing afterwards. docs/leases.md has the long form.
//
// V3 is why a leader needs no record of how far into the future it may have
// claimed: whoever evaluates a Lease elsewhere than on the core's own goroutine
// must have loaded it after the read began, and the owner must have taken it out
// of sight before the messages of the round in which it changed leave.

// LeaseVoter is one voter in whose promise a lease may rest.
type LeaseVoter struct {
	Node NodeID
	// Epoch is the pair epoch at which it fortified the leader; zero: not.
	Epoch Epoch
	// New and Old tell in which halves of the configuration it votes.
	New, Old bool
}

// Lease is what a leader's right to read without asking rests on. It does not
// say that the lease holds: Until does.
type Lease struct {
	Term   Term
	Voters []LeaseVoter
}

// Until returns the instant, by the own clock, before which the lease holds: the
// earliest at which fewer than a majority of each half of the voters is known to
// support this node at the epoch at which they fortified it. Learners are not
// among the voters; the own node counts while its own gate is open.
func (l *Lease) Until(live Liveness) Time {
	var a, b [MaxReplicas]int64
	na, nb := 0, 0
	for i := range l.Voters {
		v := &l.Voters[i]
		e, until := live.SupportFrom(v.Node)
		if (e != v.Epoch || e == 0) && !mutants.On("D9d") {
			until = 0
		}
		if v.New {
			insertDesc(a[:na+1], int64(until))
			na++
		}
		if v.Old {
			insertDesc(b[:nb+1], int64(until))
			nb++
		}
	}
	switch {
	case na == 0 || nb == 0:
		return 0
	case mutants.On("D9e"):
		return Time(b[nb/2]) // by the old half alone
	case mutants.On("D9k"):
		return Time(a[na/2]) // by the new half alone
	case mutants.On("D9f"):
		return Time(a[0]) // by any promise at all
	}
	return Time(min(a[na/2], b[nb/2]))
}

// Same reports whether l and m rest on the same.
func (l *Lease) Same(m *Lease) bool {
	if l.Term != m.Term || len(l.Voters) != len(m.Voters) {
		return false
	}
	for i := range l.Voters {
		if l.Voters[i] != m.Voters[i] {
			return false
		}
	}
	return true
}

// Lease returns what this leader's lease rests on; its voters are appended to
// dst. ok is false if this replica must not claim one whatever the promises: it
// does not lead, was not told to claim leases, has not committed an entry of its
// term yet (so that it does not know what was committed before), or has granted
// another one a campaign in this term (rule B1: the grant goes past all
// promises, for as long as the term lasts).
func (c *Core) Lease(dst []LeaseVoter) (l Lease, ok bool) {
	if !c.leads() || !c.hs.Leased || !c.ready && !mutants.On("D11") || c.grantSent && !mutants.On("A13") {
		return Lease{}, false
	}
	for i := range c.peers {
		p := &c.peers[i]
		v := LeaseVoter{Node: p.node, Epoch: p.epoch, New: p.role.inNew(), Old: p.role.inOld()}
		if mutants.On("D9g") && p.role == Learner {
			v.New, v.Old = true, true
		}
		if v.New || v.Old {
			dst = append(dst, v)
		}
	}
	return Lease{Term: c.hs.Term, Voters: dst}, true
}

// LeaseRead returns the index at which a read that began before now is
// linearizable, if the lease holds at now: the caller may serve it once that
// index is applied, without asking anybody. The clock must have been read after
// the read came in, else it says nothing about what happened in between. With ok
// false nothing is known; ask by ReadIndex.
func (c *Core) LeaseRead(now Time) (index Index, ok bool) {
	c.touch(now)
	var buf [MaxReplicas]LeaseVoter
	l, ok := c.Lease(buf[:0])
	if !ok || l.Until(c.live) <= now {
		return 0, false
	}
	return c.log.commit, true
}

// abortTransfer gives up a transfer that took too long. If the target may hold
// a grant, this leader has no lease any more in its term (see Lease), so it
// starts another one as soon as it can: an election in the next term makes the
// grant worthless.
func (c *Core) abortTransfer(now Time, o *Out) {
	c.transferTo, c.transferAt, c.timeoutSent = 0, Never, false
	if mutants.On("A13b") {
		c.grantSent = false
	}
	if !c.grantSent || !c.leased || mutants.On("A13") {
		return
	}
	if !c.isVoter() || c.hasUnappliedConf() || c.quorumUntil() <= now {
		c.transferAt = now.Add(c.tun.TransferTimeout) // later
		return
	}
	c.becomeFollower(now, c.hs.Term, o)
	c.campaignForReal(now, false, o)
}
