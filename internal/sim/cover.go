package sim

import (
	"math"
	"time"

	"github.com/flotillakv/flotilla/internal/sim/coverage"
	"github.com/flotillakv/flotilla/multiraft/raft"
)

// cover counts a fault that takes hold of a node.
func (w *World) cover(f coverage.Fault, n *node) {
	if w.cov == nil || !n.up {
		return
	}
	w.cov.HitAll(f, n.underWay(), n.state())
}

// coverOp counts a fault that hits one operation of a node.
func (w *World) coverOp(f coverage.Fault, o coverage.Op, n *node) {
	if w.cov != nil {
		w.cov.Hit(f, o, n.state())
	}
}

// drifting counts an operation that rests on a clock which is off by nearly as
// much as clocks may be.
func (w *World) drifting(n *node, o coverage.Op) {
	if w.cov != nil && math.Abs(w.p.Drift[n.idx]) > 0.004 {
		w.cov.Hit(coverage.Drift, o, n.state())
	}
}

// cargo is what a message carries, for the count of faults that hit it. The
// zero value is not counted.
type cargo struct {
	cov   *coverage.Table
	ops   coverage.Set
	state coverage.State
}

func (c cargo) hit(f coverage.Fault) { c.cov.HitAll(f, c.ops, c.state) }

// cargoOf returns the cargo of m, which n sends.
func (w *World) cargoOf(n *node, m *raft.Msg) cargo {
	if w.cov == nil {
		return cargo{}
	}
	conf := false
	for i := range m.Entries {
		conf = conf || m.Entries[i].Type == raft.EntryConf
	}
	return cargo{w.cov, coverage.Set(1<<coverage.OpOf(m)).With(coverage.Conf, conf), n.state()}
}

// cargoFor returns the cargo of something else that n sends.
func (w *World) cargoFor(n *node, o coverage.Op) cargo {
	if w.cov == nil {
		return cargo{}
	}
	return cargo{w.cov, 1 << o, n.state()}
}

// state returns the state of the node's core.
func (n *node) state() coverage.State {
	if n.core == nil {
		return coverage.Absent
	}
	st := n.core.Status()
	return coverage.StateOf(&st, &n.desc)
}

// underWay returns what the node is in the middle of.
func (n *node) underWay() (s coverage.Set) {
	w := n.w
	s = s.With(coverage.Restart, w.now-n.bootAt < int64(w.p.Support))
	s = s.With(coverage.SnapInstall, n.arriving > 0 || n.installed > 0 && w.now-n.installed < int64(100*time.Millisecond))
	for i := range n.disk.pending {
		b := &n.disk.pending[i]
		s = s.With(coverage.Support, len(b.token) > 0)
		for k := range b.ops {
			switch o := &b.ops[k]; o.kind {
			case opHard:
				s = s.With(coverage.Election, o.hard.Vote != 0).With(coverage.Fortify, o.hard.Lead != 0)
			case opAppend:
				s = s.With(coverage.Append, true).With(coverage.Repair, o.append.Entries[0].Index <= o.append.OldLast)
			case opTruncate:
				s = s.With(coverage.Compact, true)
			}
		}
	}
	if n.core == nil {
		return s
	}
	st := n.core.Status()
	leads := st.Role == raft.RoleLeader
	s = s.With(coverage.Election, st.Role == raft.RolePreCandidate || st.Role == raft.RoleCandidate).
		With(coverage.Append, leads && st.Last > st.Commit).
		With(coverage.Apply, st.Commit > n.disk.visible.applied.Applied).
		With(coverage.SnapSend, n.departing > 0).
		With(coverage.Conf, n.desc.IsJoint() || n.confPending()).
		With(coverage.Transfer, st.Transferee != 0).
		With(coverage.LeaseRead, n.couldServe()).
		With(coverage.QuorumRead, leads && len(n.reads)+len(n.asks) > 0).
		With(coverage.RemoteRead, !leads && len(n.reads) > 0).
		With(coverage.Command, len(n.waiting) > 0).
		With(coverage.Destroy, n.removed != 0)
	if leads {
		for _, p := range n.core.Peers(nil) {
			s = s.With(coverage.Repair, p.State == "probe" && p.Match < st.Last).With(coverage.SnapSend, p.State == "snapshot")
		}
	}
	return s
}
