package multiraft

import (
	"slices"

	"github.com/flotillakv/flotilla/internal/mutants"
	"github.com/flotillakv/flotilla/multiraft/raft"
)

// Reads under a lease. What a lease rests on changes seldom (an election, an
// epoch, a configuration), so the loop publishes it beside the commit index, and
// every goroutine judges by itself, without the loop:
//
//  1. load the View {lease, generation}, then commit, then applied: is all that
//     is committed applied?
//  2. take a token of the clock (LeaseArm), 3. look at the promises the lease
//     rests on, 4. read the clock (LeaseNow): is it before the promises' end?
//  5. read the engine; 6. is the View's generation still the shard's?
//
// Why the answer is linearizable, however long the goroutine is held up between
// any two steps:
//   - The lease holds at the instant of step 4. Until step 1 the leader had not
//     let go of it (rule P1 below), so at step 1 nobody led a later term, and every
//     write acknowledged by then was acknowledged by this leader or before it led.
//     The read began before step 1; what was acknowledged before it began is
//     covered by the commit index loaded then (rule P2), which is applied.
//   - Step 5 sees that or more, and nothing that is not committed: the engine only
//     moves forward. A write that it sees beyond that takes effect before the read
//     returns, one that it does not see was not acknowledged when the read began.
//   - Where the replica's data goes away (destroyed, cut), step 6 notices it (rule P3).
//
// The lease needs not hold any more at step 5, so a pause there does no harm.
//
// P1: a round that takes the lease's ground away (StepDown, a vote, a grant, a
// new configuration) hides it before its messages leave (hideLeases).
// P2: {commit, lease} are published before any client of that commit is told
// (commitRound publishes, then flushes the completions); and a lease never before
// the commit index as of which it was taken (replica.publish stores the positions
// first), since a new leader's predecessor may have answered up to there.
// P3: whoever takes data away changes the generation, or takes the replica out
// of the host's table, before the batch that does so becomes visible.

// LeaseClock is a Liveness that can tell whether the clock may be trusted. See
// package liveness (Manager) for how.
type LeaseClock interface {
	// LeaseArm returns a token; it is taken before promises are looked at.
	LeaseArm() int64
	// LeaseNow returns the time, and false if promises looked at under the token
	// must not be counted.
	LeaseNow(token int64) (now raft.Time, ok bool)
}

type noLeaseClock struct{}

func (noLeaseClock) LeaseArm() int64                  { return 0 }
func (noLeaseClock) LeaseNow(int64) (raft.Time, bool) { return 0, false }

// LeaseRead reports whether a linearizable read of shard, which began before the
// call, may be served from the engine at once. It asks nobody and takes no lock.
// The read counts only if Generation(shard), looked at before this and after the
// read, is the same. False says nothing about the shard; use Read.
func (h *Host) LeaseRead(shard raft.ShardID) bool {
	_, ok := h.Grant(shard)
	return ok
}

// Grant is LeaseRead that remembers what it rests on: the read counts only if
// Grant.Stands says so after it.
func (h *Host) Grant(shard raft.ShardID) (g Grant, ok bool) {
	if h.dead.Load() != nil {
		return Grant{}, false
	}
	r := h.table.get(shard)
	if r == nil {
		return h.grantAsleep(shard)
	}
	v := r.pub.Load()
	if v.lease == nil || v.fenced != nil {
		return Grant{}, false
	}
	if commit := r.pos.commit.Load(); r.pos.applied.Load() < commit {
		return Grant{}, false
	}
	token := h.leaseClock.LeaseArm()
	until := v.lease.Until(h.live)
	now, ok := h.leaseClock.LeaseNow(token)
	return Grant{h: h, r: r, v: v, shard: shard}, ok && (now < until || mutants.On("D9h"))
}

// grantAsleep is Grant of a leader that sleeps: all that is committed is applied, and
// what its lease rests on has not changed since it fell asleep. Whoever takes that away
// wakes it, and a message of it leaves only when its stub is gone (rule Z3 of nap.go),
// so the above holds with the stub in the place of the View.
func (h *Host) grantAsleep(shard raft.ShardID) (Grant, bool) {
	r, st, g := h.find(shard)
	if r != nil || g == nil || g.lease == nil {
		return Grant{}, false
	}
	d, ok := h.descOf(&st)
	if !ok {
		return Grant{}, false
	}
	token := h.leaseClock.LeaseArm()
	until := g.lease.Until(h.live)
	now, ok := h.leaseClock.LeaseNow(token)
	return Grant{h: h, v: &standing{desc: &d, generation: st.gen}, shard: shard}, ok && (now < until || mutants.On("D9l"))
}

// Grant lets one read of a shard be served from the engine.
type Grant struct {
	h     *Host
	r     *replica // nil: asleep
	v     *standing
	shard raft.ShardID
}

// Desc returns the descriptor of the shard as of the grant. It is read-only.
func (g *Grant) Desc() *raft.Descriptor { return g.v.desc }

// Stands reports, after the engine was read, whether what was read counts: the
// replica is still the one of the grant, and its range is the same.
func (g *Grant) Stands() bool {
	if mutants.On("D7c") {
		return true
	}
	r := g.h.table.get(g.shard)
	if r == nil || r != g.r {
		// It fell asleep, woke, or is another one, or none.
		v, ok := g.h.look(g.shard)
		return ok && v.Generation == g.v.generation && v.Desc.Version == g.v.desc.Version
	}
	v := r.pub.Load()
	return v == g.v || v.desc.Version == g.v.desc.Version && v.fenced == nil
}

// Generation returns the generation of the replica of shard on this node. Zero:
// there is none.
func (h *Host) Generation(shard raft.ShardID) uint64 {
	r, st, g := h.find(shard)
	switch {
	case r != nil:
		return r.pub.Load().generation
	case g != nil:
		return st.gen
	}
	return 0
}

// leaseTime returns the time of the round for leases, which is not before now. A
// time that must not be trusted is not used at all: a wall clock that was set
// forward by an hour would keep every timer of the round's replicas from running
// out for an hour.
func (l *loop) leaseTime(now raft.Time, token int64) (raft.Time, bool) {
	if mutants.On("D8b") {
		return now, l.h.leases
	}
	t, ok := l.h.leaseClock.LeaseNow(token)
	if !ok {
		return now, false
	}
	return max(now, t), true
}

// askReads settles the reads of the round: those that may rest on the lease by
// it, if it holds, all others of a group behind one question, to the quorum or to
// the leader.
func (l *loop) askReads(now raft.Time) {
	o := &l.out
	for i := range o.Asks {
		if r := l.byID[o.Asks[i].Shard]; r != nil { // a core asked: it is awake
			x := r.reading()
			x.asks = append(x.asks, o.Asks[i])
			r.asked = true
		}
	}
	for i := 0; i < len(l.touched); i++ {
		r := l.touched[i]
		if r.asked {
			r.asked = false
			l.askReplica(now, r)
		}
	}
}

func (l *loop) askReplica(now raft.Time, r *replica) {
	o := &l.out
	x := r.reading()
	n, asks := &x.fresh, x.asks
	x.asks = nil
	if len(n[byFollower]) > 0 {
		if r.core.Leads() {
			n[byLease] = append(n[byLease], n[byFollower]...)
		} else {
			l.readCtx++
			x.asked = append(x.asked, readGroup{ctx: l.readCtx, dones: n[byFollower]})
			r.core.FollowerRead(now, l.readCtx, o)
		}
		n[byFollower] = nil
	}
	if l.leaseOK && len(n[byLease])+len(asks) > 0 {
		if index, ok := r.core.LeaseRead(now); ok {
			for _, a := range asks {
				r.core.AnswerRead(a, index, true, o)
			}
			if len(n[byLease]) > 0 {
				x.ready = append(x.ready, readGroup{index: index, dones: n[byLease]})
			}
			n[byLease], asks = nil, nil
		}
	}
	dones := append(n[byQuorum], n[byLease]...)
	n[byQuorum], n[byLease] = nil, nil
	if len(dones)+len(asks) > 0 {
		l.readCtx++
		x.asked = append(x.asked, readGroup{ctx: l.readCtx, dones: dones, asks: asks})
		r.core.ReadIndex(now, l.readCtx, o)
	}
}

// hideLeases takes leases whose ground this round has changed out of the sight
// of other goroutines, before anybody else can hear of the change (rule P1).
func (l *loop) hideLeases() {
	if mutants.On("D9i") {
		return
	}
	for _, r := range l.touched {
		old := r.shown.lease
		if r.leaseKept = old != nil && !r.removed && r.lease(old) == old; r.leaseKept || old == nil {
			continue
		}
		v := *r.pub.Load()
		v.lease = nil
		r.show(&v)
	}
}

// lease returns what the replica's lease rests on: old's, if that is the same;
// nil if it claims none.
func (r *replica) lease(old *raft.Lease) *raft.Lease {
	l, ok := r.core.Lease(r.loop.leaseBuf[:0])
	if !ok || r.shut() != nil {
		return nil
	}
	if old != nil && old.Same(&l) {
		return old
	}
	kept := raft.Lease{Term: l.Term, Voters: slices.Clone(l.Voters)} // l itself stays off the heap
	return &kept
}
