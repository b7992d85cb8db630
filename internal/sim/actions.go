package sim

import (
	"fmt"
	"math/rand/v2"
	"runtime/debug"
	"slices"
	"time"

	"github.com/flotillakv/flotilla/internal/sim/coverage"
	"github.com/flotillakv/flotilla/multiraft/raft"
)

func stack() string { return string(debug.Stack()) }

// act carries out one action of the schedule.
func (w *World) act(a Action) {
	if a.On != coverage.Idle {
		w.hold(a)
		return
	}
	w.trace.add(record{at: w.now, node: a.Node, what: a.Kind.String(), a: uint64(a.Peer + 1), b: uint64(a.Dur), act: true})
	if a.Kind != ActPropose && a.Kind != ActRead && len(w.res.turns) < maxStory {
		w.res.turns = append(w.res.turns, turn{at: w.now, act: &a})
	}
	n := w.nodes[a.Node]
	switch a.Kind {
	case ActCrash:
		w.crash(n, a.Dur)
	case ActCrashAll:
		for _, n := range w.nodes {
			w.cover(coverage.PowerCut, n)
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
		w.cover(coverage.Pause, n)
		n.pausedUntil = max(n.pausedUntil, w.now+int64(a.Dur))
	case ActSuspend:
		if n.up {
			w.cover(coverage.Suspend, n)
			n.suspend(a.Dur)
		}
	case ActWall:
		if n.up && n.suspendEnd <= w.now && n.pausedUntil <= w.now {
			d := a.Dur
			if a.R%4 != 0 {
				d = -d
			}
			w.cover(coverage.WallJump, n)
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
		to := a.R >> 8 % uint64(len(w.nodes))
		if k := len(w.orc.leaders); k > 1 && a.R>>60 < 6 { // back to where the leadership came from
			to = uint64(w.orc.leaders[k-2].node)
		}
		w.ask(w.target(a), event{kind: inTransfer, x: to})
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
	case ActStop:
		n.stop(a.Dur)
	case ActMinority:
		if l := w.pickLeader(a.R); l != nil {
			w.minority(l, a.R>>32, a.Dur)
		}
	case ActStall:
		n.stalledUntil = max(n.stalledUntil, w.now+int64(a.Dur))
	case ActLate:
		w.net.late++
		w.undo(a.Dur, func() { w.net.late = max(w.net.late-1, 0) })
	case ActOldDisk:
		w.oldDisk(n, a)
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

// stop ends the node in order: first it gives back the support of the others,
// and says so, then the process ends, with everything synced.
func (n *node) stop(down time.Duration) {
	w := n.w
	if !n.up || n.pausedUntil > w.now {
		return
	}
	w.cover(coverage.Stop, n)
	n.eff.Reset()
	n.pairs.Relinquish(n.clock(), &n.eff)
	n.pairEffects()
	gen := n.gen
	w.after(time.Millisecond+w.exp(30*time.Millisecond), event{kind: evUndo, arg: func() {
		if !n.up || n.gen != gen {
			return
		}
		if !n.disk.busy {
			n.syncAll()
		}
		w.crash(n, down)
	}})
}

// minority leaves l with less than half of the voters. When d is over the links
// come back one by one.
func (w *World) minority(l *node, r uint64, d time.Duration) {
	rng := rand.New(rand.NewPCG(r, 2))
	var others []int
	voters := 1
	for _, q := range l.desc.Replicas {
		if i := int(q.Node) - 1; i != l.idx && q.Role != raft.Learner {
			others = append(others, i)
			voters++
		}
	}
	in := map[int]bool{l.idx: true}
	if small := (voters - 1) / 2; small > 0 { // l and up to small-1 others
		rng.Shuffle(len(others), func(i, j int) { others[i], others[j] = others[j], others[i] })
		for _, i := range others[:min(rng.IntN(small+1), len(others))] {
			in[i] = true
		}
		if len(in) > small {
			delete(in, others[0])
		}
	}
	for i := range w.nodes {
		for j := range w.nodes {
			if in[i] == in[j] {
				continue
			}
			w.net.block(i, j, 1)
			back := d + time.Duration(float64(d)*rng.Float64()*float64(rng.IntN(2)))
			w.undo(back, func() { w.net.block(i, j, -1) })
		}
	}
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
	if rng.IntN(6) == 0 {
		n.proposeBad(now, rng)
		return
	}
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
	last := n.core.Status().Last
	mark, err := n.core.ProposeConf(now, cc, raft.EntryHeader{GroupTs: n.lastTs}, &n.out)
	w.log(n.idx, "ask-conf", uint64(mark.Index), errCode(err))
	if err != nil && n.core.Status().Last != last {
		w.fail("S16", "node %d refuses a configuration change (%v) and appends it all the same", n.id, err)
	}
	if err == nil {
		n.waiting = append(n.waiting, proposal{mark: mark})
	}
}

// broken is how a node outside of the healthy quorum stays broken.
type broken uint8

const (
	brokenDown    broken = iota // crashed for good
	brokenCut                   // runs, and hears and says nothing
	brokenDeaf                  // says, and hears nothing
	brokenMute                  // hears, and says nothing
	brokenDisk                  // no sync of its disk ends
	brokenPaused                // stands still
	brokenFlapper               // crashes and starts again, over and over
	brokenKinds
)

var brokenWords = [...]string{"down", "cut off", "unable to hear anybody", "unheard by anybody", "without a disk that syncs", "standing still", "crashing over and over"}

// hurt breaks a node that is not of the healthy quorum, for good.
func (w *World) hurt(n *node) uint8 {
	k := broken(0)
	if w.rng.IntN(2) == 0 {
		k = broken(w.rng.IntN(int(brokenKinds)))
	}
	if n.forgot.ghost != nil {
		k = brokenDown
	}
	n.hurt = k
	w.log(n.idx, "hurt", uint64(k), 0)
	w.tell(n.idx, "hurt", uint64(k), 0)
	if k != brokenDown && k != brokenFlapper && !n.up {
		n.boot()
	}
	switch k {
	case brokenDown:
		if n.up {
			n.crash()
		}
		n.held = true
	case brokenDisk:
		n.stalledUntil = 1 << 62
		n.pausedUntil = 0
	case brokenPaused:
		n.pausedUntil = 1 << 62
	case brokenFlapper:
		n.pausedUntil = 0
		w.flap(n)
	}
	switch k {
	case brokenDeaf:
		return 1
	case brokenMute:
		return 2
	case brokenDisk, brokenPaused, brokenFlapper:
		return 0
	}
	return 3
}

// flap crashes n and starts it again, for ever.
func (w *World) flap(n *node) {
	w.after(200*time.Millisecond+w.exp(time.Second), event{kind: evUndo, arg: func() {
		if n.up {
			n.crash()
		} else {
			n.boot()
		}
		w.flap(n)
	}})
}

// proposeBad asks for a change that makes no sense. It must be refused, and
// leave no trace (F2).
func (n *node) proposeBad(now raft.Time, rng *rand.Rand) {
	w, d := n.w, &n.desc
	if len(d.Replicas) == 0 {
		return
	}
	cc := raft.ConfChange{ConfVer: d.ConfVer}
	var free raft.NodeID
	for i := range w.nodes {
		if _, ok := d.ReplicaOn(raft.NodeID(i + 1)); !ok {
			free = raft.NodeID(i + 1)
		}
	}
	some := d.Replicas[rng.IntN(len(d.Replicas))]
	what := ""
	switch rng.IntN(5) {
	case 0:
		what = "removes a replica of a node that holds none"
		cc.Steps = []raft.ConfStep{{Remove: true, Replica: raft.Replica{Node: raft.NodeID(len(w.nodes) + 1)}}}
	case 1:
		what = "leaves no voter"
		for _, q := range d.Replicas {
			if q.Role != raft.Learner {
				q.Role = raft.Learner
				cc.Steps = append(cc.Steps, raft.ConfStep{Replica: q})
			}
		}
	case 2:
		what = "uses the id of a replica again"
		if free == 0 {
			return
		}
		cc.Steps = []raft.ConfStep{{Replica: raft.Replica{Node: free, ID: some.ID, Role: raft.Learner}}}
	case 3:
		what = "names a node twice"
		cc.Steps = []raft.ConfStep{{Remove: true, Replica: some}, {Remove: true, Replica: some}}
	case 4:
		what = "was checked against a configuration of the future"
		cc.ConfVer += 1 + uint64(rng.IntN(3))
		some.Role = raft.Learner
		cc.Steps = []raft.ConfStep{{Replica: some}}
	}
	last := n.core.Status().Last
	mark, err := n.core.ProposeConf(now, cc, raft.EntryHeader{GroupTs: n.lastTs + 1}, &n.out)
	w.log(n.idx, "ask-bad", uint64(mark.Index), errCode(err))
	if err == nil || n.core.Status().Last != last {
		w.fail("F2", "node %d takes a configuration change that %s: %+v for %v", n.id, what, cc, d.Replicas)
	}
}

// liveness ends the run: a random quorum is healed, the rest stays broken, and
// the group must commit, answer reads and bring its members up to date (L1, L3),
// keep its leader while nobody disturbs it (L2), serve after a pause (L4), and
// let every healthy voter lead in turn.
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
	hurt := make([]uint8, len(set))
	for i, n := range w.nodes {
		if !set[i] {
			hurt[i] = w.hurt(n)
			continue
		}
		n.resume()
		n.pausedUntil = 0
		n.slowUntil, n.stalledUntil = 0, 0
		if !n.up {
			n.boot()
		}
		w.hasten(n)
	}
	w.net.heal(set, hurt)
	w.progress(set, bits, -1, 6*int64(w.p.Support)+int64(15*time.Second))
	w.stable(set, bits)
	for _, r := range w.newestConf().Clone().Replicas { // every healthy voter leads in turn
		if set[r.Node-1] && (r.Role == raft.Voter || r.Role == raft.VoterIncoming) {
			w.progress(set, bits, int(r.Node)-1, 3*int64(w.p.Support)+int64(10*time.Second))
		}
	}
	for i, n := range w.nodes {
		if set[i] && n.core != nil && n.removed != 0 && w.now-n.removedAt > int64(10*time.Second) {
			w.fail("L5", "node %d holds replica %d, which knows for %v that it was removed: %s", n.id, n.replica, time.Duration(w.now-n.removedAt), w.describe(set))
		}
	}
	w.log(-1, "live", 0, uint64(w.orc.last()))
	w.tell(-1, "live", 0, uint64(w.orc.last()))
}

// hasten brings forward what a pause or a stalled disk had put off, perhaps by
// minutes: syncs under way, timers, work that waited.
func (w *World) hasten(n *node) {
	late := w.now + int64(time.Second)
	for i := range w.heap {
		k := &w.heap[i]
		e := &w.slab[k.slot]
		if int(e.node) != n.idx || e.gen != n.gen || k.at <= late {
			continue
		}
		switch e.kind {
		case evPairs:
			n.pairsAt = w.now + 1
		case evSync, evTick, evRound, evApply:
		default:
			continue
		}
		k.at, e.at = w.now+1, w.now+1
	}
	w.sortHeap()
}

// sortHeap makes a heap of w.heap again after times in it were changed.
func (w *World) sortHeap() {
	slices.SortFunc(w.heap, func(a, b key) int { // sorted is a heap
		if a.before(&b) {
			return -1
		}
		return 1
	})
}

// newestLeader returns the leader of the highest term among the nodes that
// believe to lead, or nil.
func (w *World) newestLeader() *node {
	var l *node
	for _, n := range w.nodes {
		if n.up && n.core != nil && n.core.Status().Role == raft.RoleLeader && (l == nil || n.core.Status().Term > l.core.Status().Term) {
			l = n
		}
	}
	return l
}

// progress requires that within limit the group commits new commands, answers a
// read, and brings all healthy members up to date: under any healthy leader, or
// (to >= 0) once the leadership was handed to node to.
func (w *World) progress(set []bool, bits uint64, to int, limit int64) {
	start := w.now
	reads, probes := w.res.Reads, 0
	var target raft.Index
	var moved raft.Term // the term from which the transfer was asked
	if l := w.newestLeader(); to >= 0 && l != nil && l.idx != to {
		w.tell(to, "hand", 0, 0)
	}
	for w.now < start+limit {
		w.runUntil(w.now + int64(50*time.Millisecond))
		l := w.newestLeader()
		if l == nil {
			continue
		}
		if to >= 0 && l.idx != to {
			if st := l.core.Status(); moved == 0 || st.Term == moved || w.rng.IntN(8) == 0 {
				moved = st.Term
				w.ask(l, event{kind: inPropose, x: uint64(probes) << 8}) // right in front of it
				w.ask(l, event{kind: inTransfer, x: uint64(to)})
			}
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
			return
		}
	}
	d := time.Duration(limit)
	l := w.newestLeader()
	switch {
	case l == nil:
		w.fail("L1", "%s are healthy for %v and there is no leader: %s", nodeList(bits), d, w.describe(set))
	case to >= 0 && l.idx != to:
		w.fail("L1", "%s are healthy and for %v the leadership cannot be handed to node %d: %s", nodeList(bits), d, to+1, w.describe(set))
	case target == 0 || w.orc.last() < target:
		w.fail("L1", "%s are healthy for %v and nothing new is committed (last %d): %s", nodeList(bits), d, w.orc.last(), w.describe(set))
	case w.res.Reads == reads:
		w.fail("L1", "%s are healthy for %v and no read was answered: %s", nodeList(bits), d, w.describe(set))
	}
	w.fail("L3", "%s are healthy for %v and not all caught up: %s", nodeList(bits), d, w.describe(set))
}

// stable requires that the leader stays while a healthy quorum supports it,
// whatever the broken nodes do; some commands come, then none, then one (L4).
func (w *World) stable(set []bool, bits uint64) {
	var l *node
	flaps := slices.ContainsFunc(w.nodes, func(n *node) bool { return !set[n.idx] && n.hurt == brokenFlapper })
	for start := w.now; ; {
		// The old promises run out, new ones are made. A broken node may lead until
		// then, one that comes and goes also later.
		w.runUntil(w.now + 2*int64(w.p.Support) + int64(200*time.Millisecond))
		// A leader on its way out hands over in its own time.
		if l = w.newestLeader(); l != nil && set[l.idx] && !w.newestConf().IsJoint() && !l.confPending() {
			break
		}
		switch late := w.now-start > 4*int64(w.p.Support)+int64(8*time.Second); {
		case late && flaps:
			return
		case late && l != nil && set[l.idx]:
			w.fail("L1", "%s are healthy for %v and a configuration change does not end: %s", nodeList(bits), time.Duration(w.now-start), w.describe(set))
		case late:
			w.fail("L2", "%s are healthy, had a leader, and have none of them for long: %s", nodeList(bits), w.describe(set))
		}
	}
	term := l.core.Status().Term
	check := func() {
		if st := l.core; !l.up || st == nil || st.Status().Role != raft.RoleLeader || st.Status().Term != term {
			w.fail("L2", "%s are healthy and node %d led them in term %d, and lost that without a reason: %s", nodeList(bits), l.id, term, w.describe(set))
		}
	}
	for i := range 8 {
		w.runUntil(w.now + int64(w.p.Support)/4)
		check()
		if i < 4 {
			w.ask(l, event{kind: inPropose, x: uint64(i) << 8})
		}
	}
	w.orc.quiet(set)
	last, asked := w.orc.last(), w.now
	for w.orc.last() == last {
		w.ask(l, event{kind: inPropose, x: 1 << 8})
		w.runUntil(w.now + int64(100*time.Millisecond))
		check()
		if w.now-asked > int64(5*time.Second) {
			w.fail("L4", "%s were idle and a command after that is not committed in 5 s: %s", nodeList(bits), w.describe(set))
		}
	}
}

// confPending reports whether the node's log holds a change that is not applied.
func (n *node) confPending() bool {
	im := &n.disk.visible
	return slices.ContainsFunc(im.entries(im.applied.Applied+1, im.last()), func(e raft.Entry) bool { return e.Type == raft.EntryConf })
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

// describe returns the state of the group: the newest configuration, and every
// node with whether it is healthy.
func (w *World) describe(set []bool) string {
	c := &w.orc.confs[len(w.orc.confs)-1]
	s := fmt.Sprintf("configuration %d of index %d %v", c.desc.ConfVer, c.index, c.desc.Replicas)
	for i, n := range w.nodes {
		how := "healthy"
		if !set[i] {
			how = brokenWords[n.hurt]
		}
		s += fmt.Sprintf("\n  %s (%s)", n.describe(), how)
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
		set[i] = w.nodes[i].forgot.ghost == nil
	}
	ok := func() bool {
		for i := range descs {
			if !quorum(&descs[i], func(r raft.Replica) bool {
				n := w.nodes[r.Node-1]
				im := &n.disk.durable
				if n.up && !n.held {
					im = &n.disk.visible
				}
				return set[n.idx] && im.exists && im.replica == r.ID && n.forgot.ghost == nil
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
		was := set[i]
		set[i] = false
		if !ok() {
			set[i] = was
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
