package multiraft

import (
	"errors"
	"fmt"
	"time"

	"github.com/flotillakv/flotilla/engine"
	"github.com/flotillakv/flotilla/internal/mutants"
	"github.com/flotillakv/flotilla/multiraft/raft"
)

// Quarantine
//
// A replica whose state is not to be trusted (it differs from the majority's, or
// cannot be read) is quarantined: it serves no reads, takes no proposals, holds no
// lease, hands over if it leads, and applies nothing. That is durable before anything
// else happens. Its log and its promises are as good as before, so it goes on to vote,
// to store and to acknowledge: the group is no weaker for it.
//
// It asks its leader for a snapshot, ever more seldom, and the leader sends one if it
// sends none to anybody else of the group: no two replicas are rebuilt at once. The
// snapshot takes the place of the state alone. The log stays if it holds the
// snapshot's last entry, which is the rule, so nothing that was acknowledged is
// forgotten; if it ends before, it holds nothing that the snapshot does not. The mark on
// the disk goes in the same atomic step that brings the new state.

const (
	// A quarantined replica asks to be rebuilt at once, and then with pauses that
	// double up to rebuildMost.
	rebuildFirst = time.Second
	rebuildMost  = 5 * time.Minute
)

// ward is a quarantined replica's way out.
type ward struct {
	// mark is set while the replica is quarantined.
	mark engine.Quarantine
	dirt bool      // mark is to be written with this round
	at   raft.Time // next question; raft.Never: none
	wait time.Duration
}

// quarantined reports whether the replica waits to be rebuilt.
func (r *replica) quarantined() bool { return r.ill != nil && r.ill.ward.mark.Why != 0 }

// Distrust returns why the replica of shard on this node is not to be believed, an
// ErrDiverged, whatever was read from it; nil: it is. It is asked after a read.
func (h *Host) Distrust(shard raft.ShardID) error {
	r := h.table.get(shard)
	if r == nil || mutants.On("IG7") {
		return nil
	}
	if v := r.pub.Load(); v.fenced != nil && errors.Is(v.fenced, ErrDiverged) {
		return fmt.Errorf("%w: shard %d: %w", ErrFenced, shard, v.fenced)
	}
	return nil
}

// Damaged has the replicas quarantined that a damaged table overlaps, and the table
// dropped then. It is what Engine.OnDamage is to be given once all groups are loaded.
// It reports false if one of them has no other replica to be rebuilt from, or there is none.
func (h *Host) Damaged(d engine.Damage) bool {
	var hit []raft.ShardID
	for _, v := range h.Views() {
		if d.Overlaps(&v.Desc) {
			if len(v.Desc.Replicas) < 2 {
				return false
			}
			hit = append(hit, v.Shard)
		}
	}
	if len(hit) == 0 || !h.rebuilds {
		return false
	}
	for i, shard := range hit {
		l := h.loopOf(shard)
		l.in.put(func(it *items) {
			it.funcs = append(it.funcs, func(now raft.Time) {
				if r := l.get(now, shard); r != nil && !r.removed && !mutants.On("IG9") {
					l.unreadable(r, d.Err)
				}
				if i == 0 {
					h.spawn(func() { h.drop(d) })
				}
			})
		})
	}
	return true
}

// unreadable quarantines a replica that cannot be read.
func (l *loop) unreadable(r *replica, why error) {
	l.quarantine(r, &DivergedError{Shard: r.shard, Node: l.h.node, Replica: r.self, Index: r.as.Applied, Why: "it cannot be read: " + why.Error()}, true)
	l.touch(r)
}

// dropTries is how often drop looks whether all replicas are quarantined.
const dropTries = 600

// drop removes a damaged table as soon as it may.
func (h *Host) drop(d engine.Damage) {
	t := time.NewTicker(20 * time.Millisecond)
	defer t.Stop()
	for range dropTries {
		select {
		case <-h.stop:
			return
		case <-t.C:
		}
		if done, err := h.engine.DropDamaged(d); done || err != nil {
			return
		}
	}
	h.engine.GiveUp(d)
}

// quarantine takes r, which err is about, out of service.
func (l *loop) quarantine(r *replica, err *DivergedError, unreadable bool) {
	if r.quarantined() {
		if w := &r.ill.ward; unreadable && w.mark.Why != engine.QuarantineUnreadable {
			w.mark.Why, w.dirt, l.wantSync = engine.QuarantineUnreadable, true, true
			l.touch(r)
		}
		return
	}
	q := engine.Quarantine{Why: engine.QuarantineDiffers, Index: r.as.Applied}
	if unreadable {
		q.Why = engine.QuarantineUnreadable
	}
	r.illness().ward = ward{mark: q, dirt: true}
	l.wantSync = true
	l.voidImage(r)
	l.fence(r, r.as.Applied, err, nil)
	l.diverged(err)
}

// remain puts a replica back into quarantine when it is loaded.
func (r *replica) remain(q engine.Quarantine) {
	if q.Why == 0 {
		return
	}
	err := &DivergedError{Shard: r.shard, Node: r.loop.h.node, Replica: r.self, Index: q.Index, Why: "it was found faulty before the restart"}
	r.illness().ward = ward{mark: q}
	r.fenced = &fenceError{q.Index, err}
}

// askRebuild asks the leader for a snapshot when it is time to.
func (l *loop) askRebuild(now raft.Time, r *replica) {
	if !r.quarantined() || now < r.ill.ward.at {
		return
	}
	w := &r.ill.ward
	w.wait = min(max(2*w.wait, rebuildFirst), rebuildMost)
	w.at = now.Add(w.wait)
	st := r.core.Status()
	if st.LeadNode == 0 || st.LeadNode == l.h.node {
		w.at, w.wait = now.Add(rebuildFirst), 0
		return
	}
	p, ok := r.desc.ReplicaOn(st.LeadNode)
	if !ok {
		return
	}
	l.out.Msgs = append(l.out.Msgs, raft.Msg{
		Type: raft.MsgRebuild, Shard: r.shard, From: l.h.node, To: st.LeadNode, FromReplica: r.self, ToReplica: p.ID,
		Term: st.Term, Index: r.as.Applied,
	})
}

// rebuild sends a member that is quarantined a snapshot, if it is its turn.
func (l *loop) rebuild(r *replica, m *raft.Msg) {
	if r.closed() != nil || len(r.snapsBusy) > 0 || m.Index > r.as.Applied {
		return // it asks again
	}
	// Aside from its progress: it goes on to take entries and to acknowledge them.
	l.out.Snapshots = append(l.out.Snapshots, raft.SnapshotTask{Shard: r.shard, To: m.From, ToReplica: m.FromReplica, Fresh: true})
	l.h.logger.Info("a quarantined replica is rebuilt", "shard", r.shard, "to", m.From)
	l.touch(r)
}

// refuseSnapshot tells a core that its snapshot was not sent.
func (h *Host) refuseSnapshot(l *loop, t raft.SnapshotTask) {
	l.in.put(func(it *items) {
		it.funcs = append(it.funcs, func(now raft.Time) {
			if r := l.byID[t.Shard]; r != nil {
				r.core.SnapshotSent(now, t.ToReplica, 0, 0, false, &l.out)
				l.touch(r)
			}
		})
	})
}

// keepsLog reports whether a snapshot of (index, term) is to take the place of a
// quarantined replica's state, and of nothing else.
func (r *replica) keepsLog(index raft.Index, term raft.Term) bool {
	return r.quarantined() && index >= r.as.Applied && r.core.HoldsFrom(index, term)
}

// released takes note of a new state.
func (l *loop) released(r *replica) {
	if r.quarantined() {
		l.h.stats.rebuilt.Add(1)
		l.h.logger.Info("a quarantined replica was rebuilt", "shard", r.shard, "index", r.as.Applied)
		if l.h.onDiverged != nil {
			l.h.onDiverged(DivergedError{Shard: r.shard, Node: l.h.node, Replica: r.self, Index: r.as.Applied, Rebuilt: true})
		}
	}
	if r.ill != nil {
		r.ill.ward = ward{at: raft.Never}
	}
	if r.cmp.answer != nil {
		r.cmp.answer.to = 0
	}
	r.cmp.disputed, r.want = nil, 0
}
