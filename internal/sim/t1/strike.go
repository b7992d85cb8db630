package t1

import (
	"math/rand/v2"
	"slices"
	"time"

	"github.com/flotillakv/flotilla/internal/sim/coverage"
	"github.com/flotillakv/flotilla/multiraft/raft"
)

// aim lets about every second fault of half of the seeds wait for an operation
// that is rare or over in a moment, and strike in the middle of it: by chance
// alone a node would hardly ever stop just then. Everything else in a schedule
// is as it would be without.
func (s *Schedule) aim() {
	rng := rand.New(rand.NewPCG(s.Seed, 0xa1b))
	if rng.IntN(2) == 0 || s.Profile == "calm" {
		return
	}
	for i := range s.Actions {
		a := &s.Actions[i]
		if a.Kind.aimed() && rng.IntN(2) == 0 {
			a.On = coverage.Moments[rng.IntN(len(coverage.Moments))]
		}
	}
}

// aimed reports whether an action can wait for an operation: a fault of a node,
// of its disk or of its links.
func (k ActionKind) aimed() bool {
	switch k {
	case ActOp, ActTransfer, ActCampaign, ActConf, ActOld:
		return false
	}
	return true
}

// aimLimit is for how long an action waits for its operation. Then it comes anyway.
const aimLimit = 300 * time.Millisecond

// hold keeps an action until a node is in the middle of the operation it waits for.
func (w *World) hold(a Action) {
	h := &a
	w.armed = append(w.armed, h)
	w.after(aimLimit, func() { w.release(h) })
}

// release carries out an action that was held, unless the faults have ended.
func (w *World) release(a *Action) {
	i := slices.Index(w.armed, a)
	if i < 0 {
		return
	}
	w.armed = slices.Delete(w.armed, i, i+1)
	if !w.calm {
		a.On = coverage.Idle
		w.act(*a)
	}
}

// strike lets the first action that waits for what n is in the middle of hit it.
func (w *World) strike(n *node) {
	if !n.up || n.lost || n.died.Load() != nil {
		return
	}
	for _, g := range w.orc.order {
		ops, state, here := n.underWay(g)
		if !here && ops == 0 {
			continue
		}
		ops = ops.With(coverage.Restart, w.now-n.clock.bootAt < int64(w.p.Support)).With(coverage.Support, n.live.DiskPending())
		leads := state == coverage.Leader || state == coverage.NewLeader || state == coverage.JointLeader || state == coverage.JointNewLead
		for _, a := range w.armed {
			if ops>>a.On&1 == 0 || (a.Kind == ActKillLeader || a.Kind == ActFollow) && !leads {
				continue
			}
			switch a.Kind {
			case ActDropType:
				a.R = uint64(coverage.TypeOf(a.On, a.R>>8))
			case ActKillLeader:
				a.Kind = ActCrash
			case ActFollow:
				a.Kind = ActIsolate
			case ActCrashSome:
				a.R |= 1 << n.idx
			}
			if a.Node = n.idx; a.Peer%len(w.nodes) == a.Node {
				a.Peer = (a.Node + 1) % len(w.nodes)
			}
			w.alongSnapshot(a, g.id)
			w.after(0, func() { w.release(a) })
			a.On = coverage.Idle // it waits for nothing more
			return
		}
	}
}

// alongSnapshot turns a fault of a link that waited for a snapshot to the link on
// which that travels.
func (w *World) alongSnapshot(a *Action, s raft.ShardID) {
	if a.On != coverage.SnapSend && a.On != coverage.SnapInstall {
		return
	}
	switch a.Kind {
	case ActCut, ActCutBoth, ActClog, ActReset, ActFlap:
		for _, x := range w.net.streams {
			if x.shard == s && (x.a == a.Node || x.b == a.Node) {
				a.Node, a.Peer = x.a, x.b
				return
			}
		}
	}
}

// typeOf is the type of message that an action names.
func typeOf(a *Action) int { return int(a.R % uint64(raft.MsgMemberResp+1)) }
