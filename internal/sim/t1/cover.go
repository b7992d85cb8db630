package t1

import (
	"math"

	"github.com/flotillakv/flotilla/internal/sim/coverage"
	"github.com/flotillakv/flotilla/internal/sim/simfs"
	"github.com/flotillakv/flotilla/multiraft/raft"
	"github.com/flotillakv/flotilla/transport"
)

// crashFaults are the kinds of crashes, by what they leave.
var crashFaults = [...]coverage.Fault{
	simfs.None: coverage.CrashLost, simfs.All: coverage.Kill, simfs.Prefix: coverage.CrashPart, simfs.Torn: coverage.CrashTorn,
	simfs.Subset: coverage.CrashSubset, simfs.Zeroed: coverage.CrashZeroed, simfs.Blocks: coverage.CrashBlocks, simfs.Reordered: coverage.CrashReorder,
}

// cover counts a fault that takes hold of a node, for each of its replicas.
func (w *World) cover(f coverage.Fault, n *node) {
	if w.cov == nil || !n.up || n.lost {
		return
	}
	common := coverage.Set(0).With(coverage.Restart, w.now-n.clock.bootAt < int64(w.p.Support)).With(coverage.Support, n.live.DiskPending())
	any := false
	for _, g := range w.orc.order {
		ops, state, here := n.underWay(g)
		if any = any || here; here || ops != 0 {
			w.cov.HitAll(f, ops|common, state)
		}
	}
	if !any {
		w.cov.HitAll(f, common, coverage.Absent)
	}
}

// coverOp counts a fault that hits one operation of a replica.
func (w *World) coverOp(f coverage.Fault, o coverage.Op, n *node, s raft.ShardID) {
	if w.cov != nil {
		w.cov.Hit(f, o, n.state(s))
	}
}

// drifting counts an operation that rests on a clock which is off by nearly as
// much as clocks may be.
func (w *World) drifting(n *node, o coverage.Op, s raft.ShardID) {
	if w.cov != nil && math.Abs(w.p.Drift[n.idx]) > 0.004 {
		w.cov.Hit(coverage.Drift, o, n.state(s))
	}
}

// supportChanged counts a change of support that a clock decided which is off.
func (w *World) supportChanged(n *node) {
	for _, g := range w.orc.order {
		if w.cov != nil && n.shadow.visible[g.id] != nil {
			w.drifting(n, coverage.Support, g.id)
		}
	}
}

// state returns the state of a replica's core.
func (n *node) state(s raft.ShardID) coverage.State {
	if n.up && !n.lost && n.st != nil {
		if in, ok := n.st.Inside(s); ok {
			return coverage.StateOf(&in.Status, &in.Desc)
		}
	}
	return coverage.Absent
}

// underWay returns what a node is in the middle of as to one shard, the state
// of its replica, and whether there is one.
func (n *node) underWay(g *group) (ops coverage.Set, state coverage.State, here bool) {
	for _, s := range n.w.net.streams {
		ops = ops.With(coverage.SnapSend, s.a == n.idx && s.shard == g.id).With(coverage.SnapInstall, s.b == n.idx && s.shard == g.id)
	}
	in, ok := n.st.Inside(g.id)
	if !ok {
		return ops, coverage.Absent, false
	}
	for i := -1; i < len(n.shadow.rounds); i++ { // what is not told to be durable
		r := n.shadow.open
		if i >= 0 {
			r = n.shadow.rounds[i]
		}
		if r == nil {
			continue
		}
		for k := range r.ops {
			o := &r.ops[k]
			if o.shard != g.id {
				continue
			}
			ops = ops.With(coverage.Append, len(o.ents) > 0).With(coverage.Repair, o.over).With(coverage.Compact, o.trunc > 0)
			if o.hard != nil {
				ops = ops.With(coverage.Election, o.hard.Vote != 0).With(coverage.Fortify, o.hard.Lead != 0)
			}
		}
	}
	leads := in.Role == raft.RoleLeader
	conf := in.Desc.IsJoint()
	for i := in.Applied + 1; i <= in.Last && !conf; i++ {
		if t, ok := n.shadow.visible[g.id].term(i); ok {
			_, conf = g.changes[entryKey{i, t}]
		}
	}
	_, member := in.Desc.Replica(in.Replica)
	ops = ops.With(coverage.Election, in.Role == raft.RolePreCandidate || in.Role == raft.RoleCandidate).
		With(coverage.Append, leads && in.Last > in.Commit).
		With(coverage.Repair, in.Repairing).
		With(coverage.Apply, in.Commit > in.Applied).
		With(coverage.SnapSend, in.Sending).
		With(coverage.Conf, conf).
		With(coverage.Transfer, in.Transferee != 0).
		With(coverage.LeaseRead, n.host.LeaseRead(g.id)).
		With(coverage.QuorumRead, leads && in.Reads > 0).
		With(coverage.RemoteRead, leads && in.Asks > 0 || !leads && in.Reads > 0).
		With(coverage.Command, in.Commands > in.Sessions).
		With(coverage.Session, in.Sessions > 0).
		With(coverage.Destroy, !member)
	return ops, coverage.StateOf(&in.Status, &in.Desc), true
}

// cargo is what a frame carries, for the count of faults that hit it. What it
// points to is valid while the frame is being sent.
type cargo struct {
	n    *node // who sends it
	ctl  bool
	msgs []raft.Msg
}

func (c cargo) hit(f coverage.Fault) {
	if c.n == nil || c.n.w.cov == nil {
		return
	}
	w := c.n.w
	if c.ctl {
		for _, g := range w.orc.order {
			if c.n.shadow.visible[g.id] != nil {
				w.cov.Hit(f, coverage.Support, c.n.state(g.id))
			}
		}
	}
	for i := range c.msgs {
		m := &c.msgs[i]
		conf := false
		for k := range m.Entries {
			conf = conf || m.Entries[k].Type == raft.EntryConf
		}
		w.cov.HitAll(f, coverage.Set(1<<coverage.OpOf(m)).With(coverage.Conf, conf), c.n.state(m.Shard))
	}
}

// hitOld counts a frame of long ago that arrives once more.
func (t *network) hitOld(o *oldFrame) {
	if t.w.cov == nil {
		return
	}
	if f, err := transport.DecodeFrame(append([]byte(nil), o.data...)); err == nil {
		cargo{t.w.nodes[o.a], len(f.Ctl) > 0, f.Msgs}.hit(coverage.Late)
	}
}

// hit counts a fault of the link that a snapshot travels on.
func (s *snapStream) hit(f coverage.Fault) {
	w := s.t.w
	w.coverOp(f, coverage.SnapSend, w.nodes[s.a], s.shard)
	w.coverOp(f, coverage.SnapInstall, w.nodes[s.b], s.shard)
}

// hitClient counts a fault of a client's connection.
func (at *attempt) hit(f coverage.Fault) {
	if at.req.Command.Body == nil {
		return // a read
	}
	o := coverage.Command
	if at.req.Command.Session != nil {
		o = coverage.Session
	}
	at.c.w.coverOp(f, o, at.node, at.req.Shard)
}
