package sim

import (
	"math/rand/v2"
	"time"

	"github.com/flotillakv/flotilla/internal/sim/coverage"
	"github.com/flotillakv/flotilla/multiraft/raft"
)

// aim lets about every fourth fault of half of the seeds wait for an operation
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
		if a.Kind.aimed() && rng.IntN(4) == 0 {
			a.On = coverage.Moments[rng.IntN(len(coverage.Moments))]
		}
	}
}

// aimed reports whether an action can wait for an operation: a fault of a node or of its links.
func (k ActionKind) aimed() bool {
	switch k {
	case ActCrash, ActCrashAll, ActKillLeader, ActIsolate, ActIsolateIn, ActIsolateOut, ActCut, ActCutBoth, ActClog, ActSlowDisk, ActSlowLeader,
		ActPause, ActReset, ActDropType, ActFollow, ActStorm, ActMinority, ActStall, ActLate, ActStop, ActSuspend, ActWall:
		return true
	}
	return false
}

// aimLimit is for how long an action waits for its operation. Then it comes anyway.
const aimLimit = 500 * time.Millisecond

// hold keeps an action until a node is in the middle of the operation it waits for.
func (w *World) hold(a Action) {
	w.armed = append(w.armed, a)
	w.nextArm++
	id := w.nextArm
	w.armedIDs = append(w.armedIDs, id)
	w.after(aimLimit, event{kind: evUndo, arg: func() {
		for i := range w.armed {
			if w.armedIDs[i] == id {
				w.release(i)
				return
			}
		}
	}})
}

// release carries out an action that was held, unless the faults have ended.
func (w *World) release(i int) {
	a := w.armed[i]
	w.armed = append(w.armed[:i], w.armed[i+1:]...)
	w.armedIDs = append(w.armedIDs[:i], w.armedIDs[i+1:]...)
	if w.calm {
		return
	}
	a.On = coverage.Idle
	w.act(a)
}

// strike lets the actions that wait for what n is in the middle of hit it.
func (w *World) strike(n *node) {
	if !n.up {
		return
	}
	ops := n.underWay()
	for i := 0; i < len(w.armed); i++ {
		a := &w.armed[i]
		if ops>>a.On&1 == 0 || a.Kind.leaders() && (n.core == nil || n.core.Status().Role != raft.RoleLeader) {
			continue
		}
		if a.Kind == ActDropType {
			a.R = uint64(coverage.TypeOf(a.On, a.R>>8))
		}
		if a.Kind == ActKillLeader {
			a.Kind = ActCrash
		}
		if a.Node = n.idx; a.Peer == a.Node {
			a.Peer = (a.Node + 1) % len(w.nodes)
		}
		w.tell(n.idx, "struck", uint64(a.On), 0)
		w.release(i)
		return // the node may be another one now
	}
}

// leaders reports whether an action concerns whoever leads.
func (k ActionKind) leaders() bool {
	return k == ActKillLeader || k == ActFollow || k == ActSlowLeader || k == ActMinority
}
