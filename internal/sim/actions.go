package sim

import (
	"fmt"
	"math/rand/v2"
	"runtime/debug"
	"slices"
	"time"

	"github.com/flotillakv/flotilla/multiraft/raft"
)

func stack() string { return string(debug.Stack()) }

// act carries out one action of the schedule.
func (w *World) act(a Action) {
	w.log(a.Node, a.Kind.String(), uint64(a.Peer+1), uint64(a.Dur))
	if a.Kind != ActPropose && a.Kind != ActRead && len(w.res.turns) < maxStory {
		w.res.turns = append(w.res.turns, turn{at: w.now, act: &a})
	}
	n := w.nodes[a.Node]
	switch a.Kind {
	case ActCrash:
		w.crash(n, a.Dur)
	case ActCrashAll:
		for _, n := range w.nodes {
			w.crash(n, a.Dur+time.Duration(w.rng.Int64N(int64(100*time.Millisecond))))
		}
	case ActKillLeader:
		if l := w.pickLeader(a.R); l != nil {
			w.crash(l, a.Dur)
		}
	case ActIsolate:
		w.isolate(a.Node, true, true, a.Dur)
	case ActIsolateIn:
		w.isolate(a.Node, true, false, a.Dur)
	case ActIsolateOut:
		w.isolate(a.Node, false, true, a.Dur)
	case ActFollow:
		if l := w.pickLeader(a.R); l != nil {
			w.isolate(l.idx, true, a.R>>40&1 == 0, a.Dur)
		}
	case ActSplit:
		var cuts [][2]int
		for i := range w.nodes {
			for j := range w.nodes {
				if a.R>>i&1 != a.R>>j&1 {
					cuts = append(cuts, [2]int{i, j})
				}
			}
		}
		w.cut(cuts, a.Dur)
	case ActCut:
		w.cut([][2]int{{a.Node, a.Peer}}, a.Dur)
	case ActCutBoth:
		w.cut([][2]int{{a.Node, a.Peer}, {a.Peer, a.Node}}, a.Dur)
	case ActClog:
		w.net.clogged[a.Node][a.Peer] = max(w.net.clogged[a.Node][a.Peer], w.now+int64(a.Dur))
	case ActSlowDisk:
		n.slowUntil, n.slow = w.now+int64(a.Dur)*3, a.Dur
	case ActPause:
		n.pausedUntil = max(n.pausedUntil, w.now+int64(a.Dur))
	case ActSuspend:
		if n.up {
			n.suspend(a.Dur)
		}
	case ActWall:
		if n.up && n.suspendEnd <= w.now && n.pausedUntil <= w.now {
			d := a.Dur
			if a.R%4 != 0 {
				d = -d
			}
			n.wallSet += d
			n.tickPairs() // not together with a suspend: that nobody could notice
		}
	case ActReset:
		w.net.reset(a.Node, a.Peer)
	case ActDropType:
		k := int(a.R % 18)
		if k == 0 {
			k = 31 // liveness records
		}
		w.net.dropType[k]++
		w.undo(a.Dur, func() { w.net.dropType[k] = max(w.net.dropType[k]-1, 0) })
	case ActStorm:
		w.net.storm++
		w.undo(a.Dur, func() { w.net.storm = max(w.net.storm-1, 0) })
	case ActPropose:
		w.ask(w.target(a), event{kind: inPropose, x: a.R >> 8})
	case ActRead:
		w.ask(w.target(a), event{kind: inRead})
	case ActTransfer:
		w.ask(w.target(a), event{kind: inTransfer, x: a.R >> 8 % uint64(len(w.nodes))})
	case ActCampaign:
		w.ask(n, event{kind: inCampaign})
	case ActSlowLeader:
		if l := w.pickLeader(a.R); l != nil {
			l.slowUntil, l.slow = w.now+int64(a.Dur)*3, a.Dur
		}
	case ActSnap:
		if to, ok := n.desc.ReplicaOn(raft.NodeID(a.Peer + 1)); ok && n.up && n.core != nil {
			n.buildSnapshot(raft.SnapshotTask{Shard: shard, To: to.Node, ToReplica: to.ID}, true)
		}
	case ActDuel:
		for _, n := range w.nodes {
			w.ask(n, event{kind: inCampaign})
		}
	case ActConf:
		w.ask(w.target(a), event{kind: inConf, x: a.R})
	}
}

// undo schedules the end of a fault. The liveness phase ends all faults itself.
func (w *World) undo(d time.Duration, f func()) {
	w.after(d, event{kind: evUndo, arg: func() {
		if !w.calm {
			f()
		}
	}})
}

func (w *World) crash(n *node, down time.Duration) {
	if !n.up {
		return
	}
	n.crash()
	w.after(down, event{kind: evRestart, node: int32(n.idx), gen: n.gen})
}

func (w *World) isolate(i int, in, out bool, d time.Duration) {
	var cuts [][2]int
	for j := range w.nodes {
		if j != i && in {
			cuts = append(cuts, [2]int{j, i})
		}
		if j != i && out {
			cuts = append(cuts, [2]int{i, j})
		}
	}
	w.cut(cuts, d)
}

func (w *World) cut(links [][2]int, d time.Duration) {
	for _, l := range links {
		w.net.block(l[0], l[1], 1)
	}
	w.undo(d, func() {
		for _, l := range links {
			w.net.block(l[0], l[1], -1)
		}
	})
}

// ask puts a client's request into a node's inbox.
func (w *World) ask(n *node, e event) {
	if n != nil && n.up {
		e.node, e.gen, e.at = int32(n.idx), n.gen, w.now
		w.after(1, e)
	}
}

// pickLeader returns one of the nodes that believe to lead, or nil.
func (w *World) pickLeader(r uint64) *node {
	var ls []*node
	for _, n := range w.nodes {
		if n.up && n.core != nil && n.core.Status().Role == raft.RoleLeader {
			ls = append(ls, n)
		}
	}
	if len(ls) == 0 {
		return nil
	}
	return ls[r%uint64(len(ls))]
}

// target returns whom a client asks: mostly somebody who believes to lead.
func (w *World) target(a Action) *node {
	if l := w.pickLeader(a.R >> 16); l != nil && a.R%8 != 0 {
		return l
	}
	return w.nodes[a.Node]
}

// proposeConf draws a membership change against the configuration the node knows.
func (n *node) proposeConf(now raft.Time, r uint64) {
	w := n.w
	rng := rand.New(rand.NewPCG(r, 1))
	d := &n.desc
	cc := raft.ConfChange{ConfVer: d.ConfVer}
	if rng.IntN(16) == 0 {
		cc.ConfVer -= uint64(rng.IntN(2)) // against an old configuration
	}
	next := d.NextReplica
	var voters, learners []raft.Replica
	var free []raft.NodeID
	for i := range w.nodes {
		id := raft.NodeID(i + 1)
		switch q, ok := d.ReplicaOn(id); {
		case !ok:
			free = append(free, id)
		case q.Role == raft.Learner:
			learners = append(learners, q)
		default:
			voters = append(voters, q)
		}
	}
	for range 1 + rng.IntN(3) {
		var s raft.ConfStep
		switch k := rng.IntN(5); {
		case k == 0 && len(free) > 0: // a new learner or voter
			i := rng.IntN(len(free))
			s.Replica = raft.Replica{Node: free[i], ID: next, Role: raft.Learner}
			if rng.IntN(8) == 0 && w.sched.Profile != "conf" { // there learners come first
				s.Role = raft.Voter
			}
			next++
			free = slices.Delete(free, i, i+1)
		case k <= 2 && len(learners) > 0: // promote
			i := rng.IntN(len(learners))
			s.Replica = learners[i]
			s.Role = raft.Voter
			learners = slices.Delete(learners, i, i+1)
		case k == 3 && len(learners) > 0: // remove a learner
			i := rng.IntN(len(learners))
			s.Remove, s.Replica = true, learners[i]
			learners = slices.Delete(learners, i, i+1)
		case len(voters) > 2 || len(voters) == 2 && rng.IntN(4) == 0: // remove or demote a voter
			i := rng.IntN(len(voters))
			s.Replica = voters[i]
			if rng.IntN(2) == 0 {
				s.Role = raft.Learner
			} else {
				s.Remove = true
			}
			voters = slices.Delete(voters, i, i+1)
		default:
			continue
		}
		cc.Steps = append(cc.Steps, s)
	}
	if len(cc.Steps) == 0 {
		return
	}
	n.lastTs = max(n.lastTs+1, uint64(w.now))
	mark, err := n.core.ProposeConf(now, cc, raft.EntryHeader{GroupTs: n.lastTs}, &n.out)
	w.log(n.idx, "ask-conf", uint64(mark.Index), errCode(err))
	if err == nil {
		n.waiting = append(n.waiting, proposal{mark: mark})
	}
}

// liveness ends the run: a random quorum is healed, the rest stays broken, and
// the group must commit, answer reads and bring its members up to date (L1, L3).
func (w *World) liveness() {
	set := w.healthy()
	if set == nil {
		w.res.Headless = true
		return
	}
	w.calm = true
	bits := uint64(0)
	for i, in := range set {
		if in {
			bits |= 1 << i
		}
	}
	w.log(-1, "heal", bits, 0)
	w.tell(-1, "heal", bits, 0)
	for i, n := range w.nodes {
		switch {
		case !set[i]:
			if n.up {
				n.crash()
			}
			n.held = true
		default:
			n.resume()
			n.pausedUntil = 0
			n.slowUntil = 0
			if !n.up {
				n.boot()
			}
		}
	}
	w.net.heal(set)

	start := w.now
	limit := 6*int64(w.p.Support) + int64(15*time.Second)
	reads, probes := w.res.Reads, 0
	var target raft.Index
	var moved raft.Term // the term from which a transfer was asked
	for w.now < start+limit {
		w.runUntil(w.now + int64(50*time.Millisecond))
		l := w.pickLeader(0)
		for _, n := range w.nodes { // the newest leader
			if n.up && n.core != nil && l != nil && n.core.Status().Role == raft.RoleLeader && n.core.Status().Term > l.core.Status().Term {
				l = n
			}
		}
		if l == nil {
			continue
		}
		if target == 0 || target > w.orc.last() {
			w.ask(l, event{kind: inPropose, x: uint64(probes) << 8})
			probes++
		}
		if w.res.Reads == reads {
			w.ask(l, event{kind: inRead})
		}
		if probes == 3 && target == 0 {
			target = w.orc.last() + 1
		}
		if target > 0 && w.orc.last() >= target && w.res.Reads > reads && w.caughtUp(set) {
			to := w.heir(l, set)
			if st := l.core.Status(); to >= 0 && (moved == 0 || st.Term == moved) {
				moved = st.Term
				w.ask(l, event{kind: inTransfer, x: uint64(to)})
				continue
			}
			w.log(-1, "live", uint64(w.now-start), uint64(target))
			w.tell(-1, "live", uint64(w.now-start), uint64(target))
			return
		}
	}
	d := time.Duration(limit)
	switch {
	case w.pickLeader(0) == nil:
		w.fail("L1", "nodes %b are healthy for %v and there is no leader: %s", bits, d, w.describe(set))
	case target == 0 || w.orc.last() < target:
		w.fail("L1", "nodes %b are healthy for %v and nothing new is committed (last %d): %s", bits, d, w.orc.last(), w.describe(set))
	case moved != 0:
		w.fail("L1", "nodes %b are healthy for %v and the leadership cannot be handed over: %s", bits, d, w.describe(set))
	case w.res.Reads == reads:
		w.fail("L1", "nodes %b are healthy for %v and no read was answered: %s", bits, d, w.describe(set))
	}
	w.fail("L3", "nodes %b are healthy for %v and not all caught up: %s", bits, d, w.describe(set))
}

// caughtUp reports whether every member on a healthy node applied all that was
// committed at some instant of the phase: what is missing is at most what the
// probes of the last steps added.
func (w *World) caughtUp(set []bool) bool {
	d := w.newestConf()
	for _, r := range d.Replicas {
		n := w.nodes[r.Node-1]
		if !set[n.idx] {
			continue
		}
		if n.core == nil || n.replica != r.ID || n.disk.visible.applied.Applied < w.orc.last() {
			return false
		}
	}
	return true
}

// heir returns a healthy node whose replica may take over from l, or -1.
func (w *World) heir(l *node, set []bool) int {
	for _, r := range l.desc.Replicas {
		if i := int(r.Node) - 1; i != l.idx && set[i] && (r.Role == raft.Voter || r.Role == raft.VoterIncoming) {
			return i
		}
	}
	return -1
}

// describe returns the state of the group: the newest configuration, and every
// node with whether it is healthy.
func (w *World) describe(set []bool) string {
	c := &w.orc.confs[len(w.orc.confs)-1]
	s := fmt.Sprintf("configuration %d of index %d %v", c.desc.ConfVer, c.index, c.desc.Replicas)
	for i, n := range w.nodes {
		s += fmt.Sprintf("\n  healthy=%v up=%v %s", set[i], n.up, n.describe())
	}
	return s
}

func (w *World) newestConf() *raft.Descriptor { return &w.orc.confs[len(w.orc.confs)-1].desc }

// healthy draws a set of nodes that holds a quorum of every configuration that
// may be in force: applied anywhere, or in anybody's log. It returns nil if not
// even all nodes do: a voter was added that never got its state, and its group
// cannot elect without it.
func (w *World) healthy() []bool {
	var descs []raft.Descriptor
	descs = append(descs, w.newestConf().Clone())
	for _, n := range w.nodes {
		im := &n.disk.durable
		if n.up {
			im = &n.disk.visible
		}
		if !im.exists || im.applied.ConfIndex < w.orc.confs[len(w.orc.confs)-1].index && w.stale(n, im) {
			continue
		}
		d := im.desc.Clone()
		descs = append(descs, d)
		for _, e := range im.entries(im.applied.Applied+1, im.last()) {
			if e.Type != raft.EntryConf {
				continue
			}
			dec, err := raft.DecodeEntry(e.Index, e.Value)
			if err != nil {
				continue
			}
			for _, c := range dec.Commands() {
				if cc, err := raft.DecodeConfChange(c.Body); err == nil {
					if next, err := d.Apply(cc); err == nil {
						d = next
						descs = append(descs, d.Clone())
					}
				}
			}
		}
	}
	set := make([]bool, len(w.nodes))
	for i := range set {
		set[i] = true
	}
	ok := func() bool {
		for i := range descs {
			if !quorum(&descs[i], func(r raft.Replica) bool {
				n := w.nodes[r.Node-1]
				im := &n.disk.durable
				if n.up && !n.held {
					im = &n.disk.visible
				}
				return set[n.idx] && im.exists && im.replica == r.ID
			}) {
				return false
			}
		}
		return true
	}
	if !ok() {
		return nil
	}
	for _, i := range w.rng.Perm(len(set)) {
		if w.rng.IntN(4) == 0 {
			continue
		}
		set[i] = false
		if !ok() {
			set[i] = true
		}
	}
	return set
}

// stale reports whether im is what a replica holds that was removed and does
// not know it.
func (w *World) stale(n *node, im *image) bool {
	r, ok := w.newestConf().ReplicaOn(n.id)
	return !ok || r.ID != im.replica
}

// describe returns a node's state as one line.
func (n *node) describe() string {
	if n.core == nil {
		im := &n.disk.durable
		return fmt.Sprintf("node %d: replica %d of the disk: %v conf %d %v", n.id, im.replica, im.exists, im.desc.ConfVer, im.desc.Replicas)
	}
	st := n.core.Status()
	return fmt.Sprintf("node %d: replica %d role %v term %d lead %d commit %d applied %d log (%d, %d] conf %d %v", n.id, n.replica,
		st.Role, st.Term, st.Lead, st.Commit, n.disk.visible.applied.Applied, n.disk.visible.applied.TruncIndex, n.disk.visible.last(), n.desc.ConfVer, n.desc.Replicas)
}
