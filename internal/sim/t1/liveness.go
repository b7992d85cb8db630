package t1

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"time"

	"github.com/flotillakv/flotilla/internal/sim/linear"
	"github.com/flotillakv/flotilla/multiraft/raft"
	"github.com/flotillakv/flotilla/shard"
)

// liveness ends the faults for a random core of nodes that holds a quorum of
// every shard; the others stay down. Every operation under way must end, every
// shard must take a write and answer a read, and every replica of the core must
// catch up, in bounded virtual time: L1, L3.
func (w *World) liveness() {
	set := w.core()
	if set == nil {
		w.res.Headless++
		w.log(-1, "headless", 0, 0)
		return
	}
	w.calm = true
	bits := uint64(0)
	for i, n := range w.nodes {
		if set[i] {
			bits |= 1 << i
			continue
		}
		if n.up {
			n.crash(n.mode())
		}
		n.held = true
	}
	w.log(-1, "heal", bits, 0)
	w.net.heal(set)
	for i, n := range w.nodes {
		if set[i] {
			n.jump(0)
			n.slowUntil = 0
			n.disk.SetFaults()
			n.disk.SetSpace(0)
			n.fullUntil = 0
			n.restart()
		}
	}
	start := w.now
	limit := 8*int64(w.p.Support) + int64(20*time.Second)
	done := make([]int, w.p.Shards) // how far the probe of a shard is
	var target []raft.Index
	for w.now < start+limit {
		w.runUntil(w.now + int64(20*time.Millisecond))
		for _, g := range w.orc.order {
			// A change that was on its way when the core was drawn may need others.
			if !quorum(g.newest(), func(r raft.Replica) bool { return set[r.Node-1] }) {
				w.res.Headless++
				w.log(-1, "headless", uint64(g.id), 0)
				return
			}
		}
		all := true
		for s := range done {
			all = w.probe(s, done) && all
		}
		if !all || w.clients.open > 0 {
			continue
		}
		if target == nil {
			for _, g := range w.orc.order {
				target = append(target, g.last())
			}
		}
		if w.caughtUp(set, target) {
			w.log(-1, "live", uint64(w.now-start), 0)
			w.stays()
			w.leftovers()
			return
		}
	}
	if w.stray.hung() {
		w.res.Headless++
		w.log(-1, "headless", uint64(w.stray.shard), 0)
		return
	}
	what := ""
	for s, k := range done {
		if k < 4 {
			what += fmt.Sprintf(" shard %d takes no write (%d);", s+1, k)
		}
	}
	if what != "" {
		w.fail("L1", "nodes %b are healthy for %v and%s %s", bits, time.Duration(limit), what, w.describe())
	}
	if w.clients.open > 0 {
		w.fail("L1", "nodes %b are healthy for %v and %d operations have not ended: %s", bits, time.Duration(limit), w.clients.open, w.describe())
	}
	w.fail("L3", "nodes %b are healthy for %v and not all replicas have caught up with %d: %s", bits, time.Duration(limit), target, w.describe())
}

// probe drives a write and a read through a shard: 0 idle, 1 writing, 2 written,
// 3 reading, 4 done.
func (w *World) probe(s int, done []int) bool {
	if done[s] == 4 {
		return true
	}
	if done[s]%2 == 1 {
		return false
	}
	if w.custom != nil {
		done[s]++
		op := w.opt.Custom.Next(rand.New(rand.NewPCG(w.rng.Uint64(), 3)), 0)
		w.clients.open++
		w.custom.send(1000+done[s], op, w.now+int64(2*time.Second), 1, func(ok bool) {
			if ok {
				done[s]++
			} else {
				done[s]--
			}
		})
		return false
	}
	c := &client{w: w, id: 1000 + s*10 + done[s], hint: make([]int, w.p.Shards)}
	c.hint[s] = w.rng.IntN(w.p.Nodes)
	kind, before := 50, w.res.Writes // a put
	if done[s] == 2 {
		kind, before = 0, w.res.Reads // a get
	}
	done[s]++
	c.begin(s, 2*time.Second, func(salt uint64) func() (*shard.Request, *linear.Op) {
		return func() (*shard.Request, *linear.Op) {
			return w.clients.build(s, kind, rand.New(rand.NewPCG(salt, 2)))
		}
	}(w.rng.Uint64()))
	var watch func()
	watch = func() {
		switch {
		case c.busy:
			w.after(5*time.Millisecond, watch)
		case kind == 50 && w.res.Writes > before && c.ok, kind == 0 && w.res.Reads > before && c.ok:
			done[s]++
		default:
			done[s]--
		}
	}
	w.after(time.Millisecond, watch)
	return false
}

// core draws a set of nodes that holds a quorum of every configuration that may
// be in force: applied anywhere, in anybody's log, or the newest that the set
// itself knows to be committed. A change takes effect when it is applied: if
// only a node outside the set knows that it is committed, the set goes by the
// configuration before it. It returns nil if not even all nodes do: a voter was
// added that never got its state.
func (w *World) core() []bool {
	type need struct {
		g *group
		d raft.Descriptor
	}
	var needs []need
	for _, g := range w.orc.order {
		needs = append(needs, need{g, *g.newest()})
		for _, n := range w.nodes {
			s := n.shadow.durable[g.id]
			if n.up {
				s = n.shadow.visible[g.id]
			}
			if s == nil {
				continue
			}
			d := g.newest().Clone()
			for i := g.confs[len(g.confs)-1].index + 1; i <= s.last(); i++ {
				t, ok := s.term(i)
				if !ok {
					continue
				}
				if cc, ok := g.changes[entryKey{i, t}]; ok {
					if next, err := d.Apply(cc); err == nil {
						d = next
						needs = append(needs, need{g, d.Clone()})
					}
				}
			}
		}
	}
	set := make([]bool, len(w.nodes))
	for i := range set {
		set[i] = w.nodes[i].rotten == ""
	}
	ok := func() bool {
		for i := range needs {
			k := &needs[i]
			if !quorum(&k.d, func(r raft.Replica) bool {
				s := w.nodes[r.Node-1].shadow.durable[k.g.id]
				return set[r.Node-1] && s != nil && s.replica == r.ID
			}) {
				return false
			}
		}
		for _, g := range w.orc.order {
			d := g.at(w.known(g, set))
			if !quorum(d, func(r raft.Replica) bool { return set[r.Node-1] }) {
				return false
			}
		}
		return true
	}
	if !ok() {
		return nil
	}
	if w.stray.strayed { // two that differ cannot tell who is right
		return set
	}
	for _, i := range w.rng.Perm(len(set)) {
		if w.rng.IntN(3) == 0 || !set[i] {
			continue
		}
		set[i] = false
		if !ok() {
			set[i] = true
		}
	}
	return set
}

// known returns up to where the nodes of a set know for certain that the log of
// a group is committed.
func (w *World) known(g *group, set []bool) (commit raft.Index) {
	for i, n := range w.nodes {
		if !set[i] {
			continue
		}
		if s := n.shadow.durable[g.id]; s != nil {
			commit = max(commit, s.hard.Commit, s.trunc)
		}
		if !n.up {
			continue
		}
		if v, ok := n.host.View(g.id); ok {
			commit = max(commit, v.Commit)
		}
	}
	return commit
}

// caughtUp reports whether every replica of the core has applied target.
func (w *World) caughtUp(set []bool, target []raft.Index) bool {
	if !w.stray.settled(set) {
		return false
	}
	for i, n := range w.nodes {
		if !set[i] {
			continue
		}
		if !n.up {
			return false
		}
		for k, g := range w.orc.order {
			r, ok := g.newest().ReplicaOn(n.id)
			if !ok {
				continue
			}
			if v, ok := n.host.View(g.id); !ok || v.Replica != r.ID || v.Applied < target[k] || v.Fenced != nil {
				return false
			}
		}
	}
	return true
}

// describe returns the state of everybody.
func (w *World) describe() string {
	var b strings.Builder
	for _, g := range w.orc.order {
		c := g.confs[len(g.confs)-1]
		fmt.Fprintf(&b, "\n  shard %d: configuration %d of entry %d %v", g.id, c.desc.ConfVer, c.index, c.desc.Replicas)
	}
	for _, n := range w.nodes {
		fmt.Fprintf(&b, "\n  node %d: up=%v", n.id, n.up)
		if !n.up {
			for _, g := range w.orc.order {
				if s := n.shadow.durable[g.id]; s != nil {
					fmt.Fprintf(&b, " [shard %d replica %d term %d log (%d, %d]]", g.id, s.replica, s.hard.Term, s.trunc, s.last())
				}
			}
			continue
		}
		for _, v := range n.host.Views() {
			fmt.Fprintf(&b, " [shard %d replica %d of configuration %d %v, term %d lead %d commit %d applied %d last %d of %d]", v.Shard, v.Replica, v.Desc.ConfVer, v.Desc.Replicas, v.Term, v.Leader, v.Commit, v.Applied, v.Last, w.orc.groups[v.Shard].last())
		}
	}
	return b.String()
}

// finalChecks ends a run that met no violation.
func (w *World) finalChecks() {
	for _, n := range w.nodes {
		if !n.up {
			continue
		}
		n.countSleep()
		// Everything that is staged is either under way, or gone.
		for _, v := range n.host.Views() {
			g := w.orc.groups[v.Shard]
			w.orc.content(n, g, v.Applied)
			w.log(n.idx, "final", uint64(v.Shard)<<40|uint64(v.Applied), g.model.sum)
		}
	}
	w.orc.audit()
	w.clients.giveUp()
	if w.custom != nil {
		w.custom.check()
		w.res.Runs = 1
		return
	}
	good, bad := linear.Check(w.clients.h, w.opt.Check)
	w.res.Histories = good
	bad = slices.DeleteFunc(bad, func(v *linear.Violation) bool {
		undecided := strings.Contains(v.What, "not decided")
		w.res.Undecided += int(b2u(undecided))
		return undecided
	})
	if len(bad) > 0 {
		w.fail("S15", "%v", bad[0])
	}
	w.res.Runs = 1
}
