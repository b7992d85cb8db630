package t1

import (
	"time"

	"github.com/flotillakv/flotilla/multiraft/raft"
)

// What is checked when the liveness phase has reached its aim.

// stays sees that leaders last: L2. Nobody has lost a quorum, and nobody hands over.
// One seed in four pays for it; where support lasts shortly, a slow sync may
// end it.
func (w *World) stays() {
	if w.p.Support < 500*time.Millisecond || mix(w.sched.Seed, 0x12)%4 != 0 {
		return
	}
	w.runUntil(w.now + 2*int64(w.p.Support))
	terms := make([]int, len(w.orc.order))
	for i, g := range w.orc.order {
		terms[i] = len(g.leaders)
	}
	w.runUntil(w.now + 3*int64(w.p.Support))
	for i, g := range w.orc.order {
		if len(g.leaders) != terms[i] {
			w.fail("L2", "shard %d changed its leader %d times, with a healthy quorum and without a fault: %s", g.id, len(g.leaders)-terms[i], w.describe())
		}
	}
	w.res.Stays++
}

// leftovers sees that nothing is left of what is gone (L5), and that what was
// held for those who waited was given back (S19).
func (w *World) leftovers() {
	for _, n := range w.nodes {
		if !n.up {
			continue
		}
		if st := n.host.Stats(); n.waiting == 0 && (st.PendingBytes != 0 || st.PendingReads != 0) {
			w.fail("S19", "node %d: nobody waits, and %d bytes of proposals and %d reads count as pending", n.id, st.PendingBytes, st.PendingReads)
		}
		for _, g := range w.orc.order {
			if n.shadow.visible[g.id] != nil {
				continue // a replica, or one that others still need
			}
			n.orphans(g)
		}
	}
}

// orphans looks for anything of a shard on a node without a replica of it.
func (n *node) orphans(g *group) {
	w := n.w
	if sum, keys, err := digest(n.eng, &g.desc); err != nil || keys > 0 || sum != 0 {
		w.fail("L5", "node %d has no replica of shard %d and %d of its keys, or records of it (%v)", n.id, g.id, keys, err)
	}
	if _, ok, err := n.eng.Load(g.id); ok || err != nil {
		w.fail("L5", "node %d has no replica of shard %d and its state (%v)", n.id, g.id, err)
	}
	if _, ok := n.host.View(g.id); ok {
		w.fail("L5", "node %d has no replica of shard %d and lists one", n.id, g.id)
	}
	var last raft.Index
	for _, old := range g.graves {
		last = max(last, old.last())
	}
	for i := last; i > 0 && i+8 > last; i-- {
		if _, err := n.eng.Term(g.id, i); err == nil {
			w.fail("L5", "node %d has no replica of shard %d and entry %d of its log", n.id, g.id, i)
		}
	}
}
