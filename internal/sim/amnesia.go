package sim

import (
	"slices"
	"time"

	"github.com/flotillakv/flotilla/multiraft/raft"
)

// amnesia is a disk that comes back older than it was.
type amnesia struct {
	// ghost is what the disk had held; nil: it never forgot. What it promised then
	// still counts: who stops for good votes for nobody any more.
	ghost *image
	// judged: found out, and stopped for good.
	judged bool
	at     int64
	// old are copies of the disk: old[0] of before the present boot, old[1] of
	// before the boot in front of that. epochs are the boots they were made in.
	old [2]image
	// watched: the leader that can tell has not found out yet.
	watched bool
	epochs  [2]uint64
}

// forgets carries out what the core found. It reports whether this node was found
// out and stops.
func (n *node) forgets() bool {
	w := n.w
	for i := range n.out.Forgets {
		t := &n.out.Forgets[i]
		f := w.nodes[t.Node-1]
		if f.forgot.ghost == nil {
			w.fail("F1", "node %d accuses node %d of having forgotten what it promised (entries through %d, has %d; term %d), and its disk never was older than it is",
				n.id, t.Node, t.Index, t.Has, t.Term)
		}
		w.log(n.idx, "forgot", uint64(t.Node), uint64(t.Index))
		w.tell(n.idx, "forgot", uint64(t.Node), uint64(t.Index))
		if f == n {
			n.halt()
			return true
		}
	}
	return false
}

// halt stops the node for good: its store is marked and never opened again.
func (n *node) halt() {
	w := n.w
	w.log(n.idx, "halt", n.bootEpoch, 0)
	w.tell(n.idx, "halt", n.bootEpoch, 0)
	n.forgot.judged, n.held = true, true
	w.res.Forgot++
	n.crash()
}

// keepOld takes the copies of the disk, when the node starts.
func (n *node) keepOld() {
	f := &n.forgot
	f.old[1], f.epochs[1] = f.old[0], f.epochs[0]
	f.old[0], f.epochs[0] = n.disk.durable.clone(), n.bootEpoch
}

// known reports whether all other nodes have written down that n is in its
// present boot: they will not support an earlier one.
func (n *node) known() bool {
	for _, p := range n.w.nodes {
		if p != n && !p.held && uint64(p.disk.durable.support[n.idx].epoch)>>32 < n.bootEpoch {
			return false
		}
	}
	return true
}

// forgetBoot puts the copy of before the boot in front of the present one in the
// place of the disk, and starts the node from it. It does nothing where the
// others could not tell that from a restart, or where there is no such copy.
func (n *node) forgetBoot() bool {
	w := n.w
	f := &n.forgot
	im := &f.old[1]
	if !n.up || f.ghost != nil || f.epochs[1] == 0 || !im.exists || im.replica != n.disk.durable.replica || !n.disk.durable.exists || !n.known() {
		return false
	}
	n.putBack(im.clone(), f.epochs[1])
	w.after(10*time.Millisecond+w.exp(200*time.Millisecond), event{kind: evRestart, node: int32(n.idx), gen: n.gen})
	return true
}

// putBack ends the process and makes im its disk.
func (n *node) putBack(im image, boot uint64) {
	w := n.w
	n.crash()
	ghost := n.disk.durable.clone()
	n.forgot.ghost, n.forgot.at = &ghost, w.now
	w.log(n.idx, "old-disk", boot, uint64(im.last()))
	w.tell(n.idx, "old-disk", n.bootEpoch-boot, uint64(im.last()))
	n.disk.durable, n.disk.visible, n.bootEpoch = im, im.clone(), boot
	w.res.Amnesias++
}

// forgetTail puts a copy that was made in the present boot in the place of the
// disk. Only the leader can tell, by what this node acknowledged to it, so until
// it is found out nobody else can reach it; if the leader goes away before that,
// somebody pulls the plug.
func (n *node) forgetTail(im image, gen uint32) {
	w := n.w
	l := w.newestLeader()
	if !n.up || n.gen != gen || n.forgot.ghost != nil || !im.exists || im.replica != n.disk.durable.replica || l == nil || l == n || n.removed != 0 {
		return
	}
	match := raft.Index(0)
	for _, p := range l.core.Peers(nil) {
		if p.ID == n.replica {
			match = p.Match
		}
	}
	if match <= im.last() || match <= im.hard.Commit {
		return // nothing that the leader counts on is missing
	}
	n.putBack(im, n.bootEpoch)
	for i := range w.nodes {
		if i != n.idx && i != l.idx {
			w.net.block(i, n.idx, 1<<10)
			w.net.block(n.idx, i, 1<<10)
		}
	}
	n.boot()
	n.forgot.watched = true
	n.watch(l, l.gen, l.core.Status().Term, w.now)
}

// patience is how long a leader that is in reach has for a replica that lost
// what it acknowledged.
const patience = 4 * time.Second

// watch waits for the judgement. since is from when on nothing stood between the
// leader and n.
func (n *node) watch(l *node, gen uint32, term raft.Term, since int64) {
	w := n.w
	w.after(50*time.Millisecond, event{kind: evUndo, arg: func() {
		if n.forgot.judged {
			n.forgot.watched = false
			return
		}
		lost := !l.up || l.gen != gen || l.core == nil || l.core.Status().Role != raft.RoleLeader || l.core.Status().Term != term
		if _, in := l.desc.Replica(n.replica); lost || !in || !n.up || w.calm {
			w.log(n.idx, "pulled", 0, 0)
			n.forgot.judged, n.held, n.forgot.watched = true, true, false
			if n.up {
				n.crash()
			}
			return
		}
		t := &w.net
		if t.blocked[n.idx][l.idx] > 0 || t.blocked[l.idx][n.idx] > 0 || t.storm > 0 || t.dropType != [32]int{} ||
			t.clogged[n.idx][l.idx] > w.now || t.clogged[l.idx][n.idx] > w.now ||
			max(n.pausedUntil, l.pausedUntil, n.suspendEnd, l.suspendEnd, n.stalledUntil, l.stalledUntil, n.slowUntil, l.slowUntil) > w.now {
			since = w.now
		}
		if time.Duration(w.now-since) > patience {
			w.fail("F1", "node %d came back with an older disk and lacks what it acknowledged to node %d, which leads term %d, is in reach for %v, and did not find out", n.id, l.id, term, patience)
		}
		n.watch(l, gen, term, since)
	}})
}

// oldDisk tries to put an old disk back. A group bears as many of them as it
// bears dead nodes.
func (w *World) oldDisk(n *node, a Action) {
	gone, most := 0, (w.p.Voters-1)/2
	for _, p := range w.nodes {
		if p.forgot.ghost != nil {
			gone++
		}
	}
	if n.forgot.ghost != nil || gone >= most || gone > 0 && a.R%8 != 0 {
		return
	}
	if a.R>>3%2 == 0 {
		n.forgetBoot()
		return
	}
	if !n.up {
		return
	}
	im, gen := n.disk.durable.clone(), n.gen
	w.after(a.Dur, event{kind: evUndo, arg: func() {
		if !w.calm && n.forgot.ghost == nil {
			n.forgetTail(im, gen)
		}
	}})
}

// await gives leaders the time to find out replicas that forgot, when no new
// faults come any more.
func (w *World) await() {
	for end := w.now + int64(2*patience); w.now < end && slices.ContainsFunc(w.nodes, func(n *node) bool { return n.forgot.watched }); {
		w.runUntil(w.now + int64(100*time.Millisecond))
	}
}

// halts ends a run in which a majority of the voters comes back with old disks at
// once, while everybody can reach everybody. All of them have to find out and
// stop, nobody may be elected or commit anything afterwards, and those that are
// left have to know that there is no quorum.
func (w *World) halts() {
	w.calm = true
	all := make([]bool, len(w.nodes))
	for i, n := range w.nodes {
		all[i] = true
		n.resume()
		n.pausedUntil, n.slowUntil, n.stalledUntil = 0, 0, 0
		if !n.up {
			n.boot()
		}
		w.hasten(n)
	}
	w.net.heal(all, make([]uint8, len(all)))
	settle := func() { w.runUntil(w.now + 3*int64(w.p.Support) + int64(4*time.Second)) }
	settle()
	d := w.newestConf().Clone()
	var voters []*node
	for _, r := range d.Replicas {
		if n := w.nodes[r.Node-1]; r.Role == raft.Voter && n.core != nil && n.replica == r.ID {
			voters = append(voters, n)
		}
	}
	if d.IsJoint() || len(voters) < 3 || w.newestConf().ConfVer != d.ConfVer {
		w.res.Headless = true // no scene for this
		return
	}
	w.rng.Shuffle(len(voters), func(i, j int) { voters[i], voters[j] = voters[j], voters[i] })
	old := voters[:len(voters)/2+1]
	for range 2 { // so that there is a copy of an earlier boot
		for _, n := range old {
			n.crash()
			n.boot()
			w.ask(w.newestLeader(), event{kind: inPropose, x: 1 << 8})
			settle()
		}
	}
	ends := raft.Index(0)
	for _, n := range w.nodes {
		ends = max(ends, n.disk.visible.last())
	}
	for _, n := range old {
		if !n.known() || n.forgot.epochs[1] == 0 || !n.forgot.old[1].exists || n.forgot.old[1].replica != n.replica {
			w.res.Headless = true
			return
		}
	}
	for _, n := range old {
		n.putBack(n.forgot.old[1].clone(), n.forgot.epochs[1])
	}
	terms := len(w.orc.leaders)
	for _, n := range old {
		n.boot()
		w.ask(n, event{kind: inCampaign})
		for _, p := range w.nodes {
			// The old ones hear each other at once; the others object a little later.
			if p.forgot.ghost == nil {
				w.net.clogged[p.idx][n.idx] = w.now + w.rng.Int64N(int64(w.tun.LeaderGrace)*3/4)
			}
		}
	}
	settle()
	for _, n := range old {
		if !n.forgot.judged {
			w.fail("F1", "node %d came back with an old disk, as a majority did, all others know its later boot, and it goes on: %s", n.id, n.describe())
		}
	}
	for _, n := range w.nodes {
		w.ask(n, event{kind: inPropose, x: 1 << 8})
	}
	settle()
	if w.orc.last() > ends || len(w.orc.leaders) > terms {
		w.fail("S3", "a majority of %v came back with old disks; entry %d is committed since (the logs ended at %d), %d leaders were elected", d.Replicas, w.orc.last(), ends, len(w.orc.leaders)-terms)
	}
	for _, n := range voters[len(old):] {
		if st := n.core.Status(); n.up && (st.Role == raft.RoleLeader || !st.QuorumLost) {
			w.fail("L1", "a majority has forgotten what it promised, and node %d does not say that there is no quorum: %s", n.id, n.describe())
		}
	}
	w.res.Halted = true
}
