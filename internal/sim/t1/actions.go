package t1

import (
	"context"
	"math/rand/v2"
	"slices"
	"time"

	"github.com/flotillakv/flotilla/internal/sim/coverage"
	"github.com/flotillakv/flotilla/multiraft"
	"github.com/flotillakv/flotilla/multiraft/raft"
)

// act carries out one action of the schedule.
func (w *World) act(a Action) {
	if a.Kind == ActOp {
		if w.custom != nil {
			w.custom.begin(a)
		} else {
			w.clients.begin(a)
		}
		return
	}
	if a.On != coverage.Idle {
		w.hold(a)
		return
	}
	w.trace.add(line{at: w.now, node: a.Node, what: a.Kind.String(), a: uint64(a.Peer + 1), b: uint64(a.Dur), act: true})
	w.res.fault(a.Kind.String(), 1)
	n := w.nodes[a.Node%len(w.nodes)]
	peer := a.Peer % len(w.nodes)
	switch a.Kind {
	case ActCrash:
		w.crash(n, a.Dur)
	case ActCrashSome:
		for i, n := range w.nodes {
			if a.R>>i&1 == 1 {
				w.cover(coverage.PowerCut, n)
				w.crash(n, a.Dur+w.exp(10*time.Millisecond))
			}
		}
	case ActCrashAll:
		for _, n := range w.nodes {
			w.cover(coverage.PowerCut, n)
			w.crash(n, a.Dur+w.exp(30*time.Millisecond))
		}
	case ActKillLeader:
		if l := w.pickLeader(a.R); l != nil {
			w.crash(l, a.Dur)
		}
	case ActStop:
		if n.up {
			n.stop()
			w.after(a.Dur, n.restart)
		}
	case ActIsolate:
		w.isolate(n.idx, true, true, a.Dur)
	case ActDeaf:
		w.isolate(n.idx, true, false, a.Dur)
	case ActMute:
		w.isolate(n.idx, false, true, a.Dur)
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
		w.cut([][2]int{{n.idx, peer}}, a.Dur)
	case ActCutBoth:
		w.cut([][2]int{{n.idx, peer}, {peer, n.idx}}, a.Dur)
	case ActFlap:
		w.flap([][2]int{{n.idx, peer}, {peer, n.idx}}, w.now+int64(a.Dur))
	case ActClog:
		w.net.clogged[n.idx][peer] = max(w.net.clogged[n.idx][peer], w.now+int64(a.Dur))
	case ActSwizzle:
		w.swizzle(a.Dur)
	case ActReset:
		w.net.reset(n.idx, peer)
	case ActDropType:
		k := typeOf(&a)
		w.net.drop[k]++
		w.undo(a.Dur, func() { w.net.drop[k] = max(w.net.drop[k]-1, 0) })
	case ActStorm:
		w.net.storm++
		w.undo(a.Dur, func() { w.net.storm = max(w.net.storm-1, 0) })
	case ActPause:
		if n.pausedUntil <= w.now {
			w.cover(coverage.Pause, n)
			n.pausedUntil = w.now + int64(a.Dur)
		}
	case ActSuspend:
		if n.up && n.pausedUntil <= w.now {
			n.pausedUntil = w.now + int64(a.Dur)
			w.cover(coverage.Suspend, n)
			n.clock.lost += int64(a.Dur) // nobody looks at it meanwhile
		}
	case ActSlowDisk:
		n.slowUntil, n.slow = w.now+int64(a.Dur)*3, a.Dur
	case ActWall:
		w.cover(coverage.WallJump, n)
		n.jump(int64(a.R%uint64(2*time.Hour)) - int64(time.Hour))
		w.undo(a.Dur, func() { n.jump(0) })
	case ActTransfer:
		w.transfer(a.R)
	case ActCampaign:
		w.onCore(n, raft.ShardID(a.R%uint64(w.p.Shards)+1), func(now raft.Time, c *raft.Core, o *raft.Out) { c.Campaign(now, o) })
	case ActConf:
		s := raft.ShardID(a.R%uint64(w.p.Shards) + 1)
		if a.R>>60&1 == 0 {
			w.changeReplicas(a.R, w.drawChanges(a.R>>8), 25)
		} else if l := w.pickLeader(a.R); l != nil {
			w.changeConf(l, s, a.R>>8)
		}
	case ActOld:
		w.net.replay(1 + int(a.R%8))
	case ActDiskFault:
		n.failDisk(a.R)
	case ActFull:
		n.fillDisk(a.R, a.Dur)
	case ActReadError:
		n.failReads(a.R)
	case ActRot:
		w.rot(n, a.R)
	}
}

// undo schedules the end of a fault. The liveness phase ends all faults itself.
func (w *World) undo(d time.Duration, f func()) {
	w.after(d, func() {
		if !w.calm {
			f()
		}
	})
}

func (w *World) crash(n *node, down time.Duration) {
	if !n.up {
		return
	}
	n.crash(n.mode())
	gen := n.gen
	w.after(down, func() {
		if n.gen == gen {
			n.restart()
		}
	})
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

// flap cuts links and mends them again and again until a time.
func (w *World) flap(links [][2]int, until int64) {
	if w.now >= until || w.calm {
		return
	}
	w.cut(links, 10*time.Millisecond+w.exp(40*time.Millisecond))
	w.after(20*time.Millisecond+w.exp(80*time.Millisecond), func() { w.flap(links, until) })
}

// swizzle clogs links one after the other and clears them in another order.
func (w *World) swizzle(d time.Duration) {
	n := len(w.nodes)
	links := w.rng.Perm(n * n)
	for i, l := range links {
		a, b := l/n, l%n
		if a == b || w.rng.IntN(2) == 0 {
			continue
		}
		until := w.now + int64(d) + w.rng.Int64N(int64(d)+1)
		w.after(d*time.Duration(i)/time.Duration(len(links)), func() {
			if !w.calm {
				w.net.clogged[a][b] = max(w.net.clogged[a][b], until)
			}
		})
	}
}

// jump sets the error of the wall clock.
func (n *node) jump(by int64) {
	n.wallJump = by
	if n.clock != nil {
		n.clock.wall = by
	}
}

// pickLeader returns a node that leads some shard, or nil.
func (w *World) pickLeader(r uint64) *node {
	s := raft.ShardID(r%uint64(w.p.Shards) + 1)
	for i := range w.nodes {
		n := w.nodes[(i+int(r>>32%7))%len(w.nodes)]
		if !n.up {
			continue
		}
		if v, ok := n.host.View(s); ok && v.IsLeader {
			return n
		}
	}
	return nil
}

// transfer moves the leadership of a shard to some other replica.
func (w *World) transfer(r uint64) {
	n := w.pickLeader(r)
	if n == nil {
		return
	}
	s := raft.ShardID(r%uint64(w.p.Shards) + 1)
	d, ok := n.host.Descriptor(s)
	if !ok {
		return
	}
	to := d.Replicas[int(r>>8%uint64(len(d.Replicas)))]
	w.onCore(n, s, func(now raft.Time, c *raft.Core, o *raft.Out) { _ = c.Transfer(now, to.ID, o) }) // may be refused
}

// changeConf draws a membership change of a shard against the configuration that
// a node knows, and proposes it there.
func (w *World) changeConf(n *node, s raft.ShardID, r uint64) {
	d, ok := n.host.Descriptor(s)
	if !ok {
		return
	}
	rng := rand.New(rand.NewPCG(r, 1))
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
	if len(learners) > 0 && len(voters) > 1 && rng.IntN(2) == 0 { // one for another, through a joint configuration
		in, out := learners[rng.IntN(len(learners))], voters[rng.IntN(len(voters))]
		in.Role = raft.Voter
		cc.Steps = []raft.ConfStep{{Replica: in}, {Remove: true, Replica: out}}
		if rng.IntN(3) == 0 {
			out.Role = raft.Learner
			cc.Steps[1] = raft.ConfStep{Replica: out}
		}
	}
	for range 1 + rng.IntN(3) {
		if len(cc.Steps) > 1 {
			break
		}
		var st raft.ConfStep
		switch k := rng.IntN(5); {
		case k == 0 && len(free) > 0: // a new learner
			i := rng.IntN(len(free))
			st.Replica = raft.Replica{Node: free[i], ID: next, Role: raft.Learner}
			next++
			free = slices.Delete(free, i, i+1)
		case k <= 2 && len(learners) > 0: // promote
			i := rng.IntN(len(learners))
			st.Replica = learners[i]
			st.Role = raft.Voter
			learners = slices.Delete(learners, i, i+1)
		case k == 3 && len(learners) > 0: // remove a learner
			i := rng.IntN(len(learners))
			st.Remove, st.Replica = true, learners[i]
			learners = slices.Delete(learners, i, i+1)
		case len(voters) > 2 || len(voters) == 2 && rng.IntN(4) == 0: // remove or demote a voter
			i := rng.IntN(len(voters))
			st.Replica = voters[i]
			if rng.IntN(2) == 0 {
				st.Role = raft.Learner
			} else {
				st.Remove = true
			}
			voters = slices.Delete(voters, i, i+1)
		default:
			continue
		}
		cc.Steps = append(cc.Steps, st)
	}
	if len(cc.Steps) == 0 {
		return
	}
	w.on(n, w.now, func() {
		if w.calm { // it was paused meanwhile
			return
		}
		ctx, cancel := context.WithCancel(context.Background())
		cancel()                               // do not wait
		_ = n.host.ChangeConf(ctx, s, cc, nil) // may be refused
	})
}

// onCore hands a function to the loop of a replica.
func (w *World) onCore(n *node, s raft.ShardID, f func(raft.Time, *raft.Core, *raft.Out)) {
	if !n.up {
		return
	}
	w.on(n, w.now, func() {
		ctx, cancel := context.WithCancel(context.Background())
		cancel() // do not wait
		_ = n.host.On(ctx, s, func(now raft.Time, c *raft.Core, o *raft.Out) error {
			f(now, c, o)
			return nil
		})
	})
}

// drawChanges draws what some nodes shall hold of a shard.
func (w *World) drawChanges(r uint64) []multiraft.Change {
	rng := rand.New(rand.NewPCG(r, 0xcf))
	var out []multiraft.Change
	for _, i := range rng.Perm(len(w.nodes))[:1+rng.IntN(2)] {
		out = append(out, multiraft.Change{Node: raft.NodeID(i + 1), Role: []raft.Role{0, raft.Voter, raft.Voter, raft.Learner}[rng.IntN(4)]})
	}
	return out
}

// changeReplicas leads a shard to changes step by step as the product does
// (multiraft.NextStep), whoever leads it at each step.
func (w *World) changeReplicas(r uint64, changes []multiraft.Change, tries int) {
	if tries == 0 || w.calm {
		return
	}
	again := func() {
		w.after(5*time.Millisecond+w.exp(20*time.Millisecond), func() { w.changeReplicas(r, changes, tries-1) })
	}
	n := w.pickLeader(r)
	if n == nil {
		again()
		return
	}
	s := raft.ShardID(r%uint64(w.p.Shards) + 1)
	w.onCore(n, s, func(now raft.Time, c *raft.Core, o *raft.Out) {
		v, ok := n.host.View(s)
		if st := c.Status(); !ok || st.Role != raft.RoleLeader || !st.Ready {
			again()
			return
		}
		step, err := multiraft.NextStep(&v.Desc, v.Replica, changes, c.Peers(nil))
		if err != nil {
			w.res.fault("plan-refused", 1)
			return
		}
		switch step.Kind {
		case multiraft.StepDone:
			w.res.fault("plan-done", 1)
			return
		case multiraft.StepTransfer:
			if to, ok := v.Desc.ReplicaOn(step.To); ok {
				_ = c.Transfer(now, to.ID, o) // looked at again
			}
		case multiraft.StepPropose:
			ctx, cancel := context.WithCancel(context.Background())
			cancel()                                      // do not wait
			_ = n.host.ChangeConf(ctx, s, step.Conf, nil) // looked at again
		}
		w.res.fault("plan-step", 1)
		again()
	})
}
