package sim

import (
	"slices"

	"github.com/flotillakv/flotilla/internal/mutants"
	"github.com/flotillakv/flotilla/internal/sim/coverage"
	"github.com/flotillakv/flotilla/multiraft/raft"
)

// shown is what the rest of a node's process may know of its replica between
// rounds: on the strength of it any goroutine may serve a read by itself, at any
// instant.
type shown struct {
	lease   *raft.Lease // nil: none
	commit  raft.Index
	applied raft.Index
}

// hideLease takes the lease out of sight if this round changed what it rests on;
// called before the round's messages leave.
func (n *node) hideLease() {
	if n.shown.lease == nil || mutants.On("D9i") {
		return
	}
	if l, ok := n.claim(); !ok || !l.Same(n.shown.lease) {
		n.shown.lease = nil
	}
}

// show makes visible what the round has come to.
func (n *node) show() {
	old := n.shown.lease
	n.shown = shown{}
	if n.core == nil {
		return
	}
	st := n.core.Status()
	n.shown.commit, n.shown.applied = st.Commit, n.disk.visible.applied.Applied
	if l, ok := n.claim(); ok {
		if old != nil && old.Same(&l) {
			n.shown.lease = old
			return
		}
		l.Voters = slices.Clone(l.Voters)
		n.shown.lease = &l
	}
}

func (n *node) claim() (raft.Lease, bool) {
	if n.core == nil {
		return raft.Lease{}, false
	}
	n.leaseBuf = n.leaseBuf[:0]
	l, ok := n.core.Lease(n.leaseBuf)
	if ok {
		n.leaseBuf = l.Voters
	}
	return l, ok
}

// couldServe reports whether a read would be served here now, without asking
// anybody and without a round.
func (n *node) couldServe() bool {
	now, ok := n.leaseTime()
	return ok && n.shown.lease != nil && now < n.shown.lease.Until(n)
}

// leaseTime returns the time for judging leases, and whether this machine runs at
// all and may trust its clock.
func (n *node) leaseTime() (raft.Time, bool) {
	if !n.up || n.pairs == nil || n.suspendEnd > n.w.now {
		return 0, false
	}
	return n.pairs.LeaseTime(n.at())
}

// readShown serves a read as another goroutine would, if the lease holds.
func (n *node) readShown() {
	if !n.couldServe() || n.shown.applied < n.shown.commit {
		return
	}
	w := n.w
	w.log(n.idx, "read-lease", uint64(n.shown.lease.Term), uint64(n.shown.commit))
	w.orc.leased(n, n.shown.lease.Term)
	q := readWait{need: w.orc.last(), at: w.now}
	w.res.LeaseReads++
	w.drifting(n, coverage.LeaseRead)
	w.orc.read(n, &q, n.shown.commit)
}

// startRead hands a read to the core: by the lease, by a quorum, or by the word
// of the leader.
func (n *node) startRead(now raft.Time) {
	w, c := n.w, n.core
	w.nextID++
	id := w.nextID
	q := readWait{ctx: id, need: w.orc.last(), at: w.now}
	w.log(n.idx, "read", id, uint64(q.need))
	if t, sound := n.leaseTime(); sound && c.Leads() && id%4 != 0 {
		if index, ok := c.LeaseRead(t); ok {
			w.orc.leased(n, c.Status().Term)
			w.res.LeaseReads++
			w.orc.read(n, &q, index)
			return
		}
	}
	n.reads = append(n.reads, q)
	if len(n.reads) > 256 { // clients gave up long ago
		n.reads = slices.Clone(n.reads[128:])
	}
	if id%8 != 1 {
		c.FollowerRead(now, id, &n.out) // on the leader the same as ReadIndex
		return
	}
	c.ReadIndex(now, id, &n.out)
}

// settleAsks answers other members' questions for a read index.
func (n *node) settleAsks(now raft.Time) {
	w, c, o := n.w, n.core, &n.out
	for i := range o.Asks {
		a := o.Asks[i]
		w.nextID++
		if t, sound := n.leaseTime(); sound && w.nextID%4 != 0 {
			if index, ok := c.LeaseRead(t); ok {
				w.orc.leased(n, c.Status().Term)
				c.AnswerRead(a, index, true, o)
				continue
			}
		}
		n.asks = append(n.asks, askWait{w.nextID, a})
		if len(n.asks) > 256 {
			n.asks = slices.Clone(n.asks[128:])
		}
		c.ReadIndex(now, w.nextID, o)
	}
	o.Asks = o.Asks[:0]
}

// askWait is a member's question that waits for a quorum.
type askWait struct {
	ctx uint64
	ask raft.ReadAsk
}

// answerAsk answers a member's question, if r belongs to one.
func (n *node) answerAsk(r *raft.ReadState) bool {
	i := slices.IndexFunc(n.asks, func(q askWait) bool { return q.ctx == r.Context })
	if i < 0 {
		return false
	}
	n.core.AnswerRead(n.asks[i].ask, r.Index, r.Err == nil, &n.out)
	n.asks = slices.Delete(n.asks, i, i+1)
	return true
}

// leased checks a use of the lease of term at this instant (S14): nobody was
// elected in a later one.
func (o *oracle) leased(n *node, term raft.Term) {
	for i := range o.leaders {
		if l := &o.leaders[i]; l.term > term {
			o.w.fail("S14", "node %d serves by the lease of term %d, and node %d has been elected in term %d", n.id, term, l.node+1, l.term)
		}
	}
}

// disjoint checks, when a leader of term was elected, that no lease of an
// earlier one could still be used (S14).
func (o *oracle) disjoint(n *node, term raft.Term) {
	for _, m := range o.w.nodes {
		if m != n && m.couldServe() && m.shown.lease.Term < term {
			o.w.fail("S14", "node %d is elected in term %d, and node %d could serve by the lease of term %d for another %v",
				n.id, term, m.id, m.shown.lease.Term, m.shown.lease.Until(m).Sub(m.clock()))
		}
	}
}
