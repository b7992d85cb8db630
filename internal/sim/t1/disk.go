package t1

import (
	"errors"
	"time"

	"github.com/flotillakv/flotilla/engine"
	"github.com/flotillakv/flotilla/internal/sim/coverage"
	"github.com/flotillakv/flotilla/internal/sim/simfs"
)

// What goes wrong with disks, and what has to come of it (F1): a node that
// cannot go on stops with a reason, is started again, and either serves what it
// served or says why not. Whatever it does, it serves nothing that is not so,
// which the other checks see.

// failDisk makes one of the next operations on the log fail; the node has to stop.
func (n *node) failDisk(r uint64) {
	if !n.up {
		return
	}
	kind := coverage.WriteError
	x := simfs.Fault{Kind: simfs.OpWrite, Class: simfs.ClassWAL, Nth: 1 + int(r>>8%4), Sticky: true}
	switch r % 4 {
	case 0:
		x.Effect, kind = simfs.TornWrite, coverage.TornWrite
	case 1:
		x.Kind, x.Effect, kind = simfs.OpSync, simfs.SyncLost, coverage.SyncLost
	case 2:
		x.Kind, kind = simfs.OpSync, coverage.SyncError
	}
	n.disk.SetFaults(x)
	n.w.cover(kind, n)
	n.faulty, n.affliction = true, kind
}

// fillDisk takes the space from a node for some time: where what is staged goes,
// which the node has to survive; for its log, or, where the profile says so, for
// all files at some byte or for tables alone, of which it may die. A node that
// died is started again, also while there is no space yet.
func (n *node) fillDisk(r uint64, d time.Duration) {
	w := n.w
	if !n.up || n.faulty {
		return
	}
	kind := r % 3
	if w.sched.Profile == "rot" {
		kind = r % 6
	}
	switch kind {
	case 0:
		n.disk.SetFaults(simfs.NoSpace(simfs.ClassStaging, false)...)
	case 1, 2, 3:
		n.disk.SetFaults(simfs.NoSpace(simfs.ClassWAL, false)...)
		n.faulty, n.fullUntil = true, w.now+int64(d)
	case 4:
		n.disk.SetFaults(simfs.NoSpace(simfs.ClassTable, false)...)
		n.faulty, n.full, w.res.Loose = true, true, true
	default:
		n.disk.SetSpace(n.disk.Used() + int64(r>>8%(64<<10)))
		n.faulty, n.full, n.fullUntil, w.res.Loose = true, true, w.now+int64(d), true
	}
	n.affliction = coverage.DiskFull
	w.cover(n.affliction, n)
	disk := n.disk
	w.undo(d, func() {
		if n.disk == disk && n.up {
			disk.SetFaults()
			disk.SetSpace(0)
			n.faulty = n.full || n.rotten != "" || n.died.Load() != nil // with tables, Pebble may still be at it
		}
	})
}

// startFull starts a node whose disk is full. It may refuse to, but must not
// take the full disk for a damaged one, nor leave it as one.
func (n *node) startFull() {
	w := n.w
	w.log(n.idx, "start-full", 0, 0)
	n.disk.SetFaults(simfs.NoSpace(0, true)...)
	n.died.Store(nil)
	n.dead = make(chan struct{})
	e, err := n.openEngine()
	n.tether.n.Store(nil)
	if err != nil {
		var why *engine.OpenError
		if !errors.As(err, &why) || n.rotten == "" && (why.Reason == engine.Corrupt || why.Reason == engine.Amnesia || why.Reason == engine.NewerLayout) {
			w.fail("F1", "node %d is started on a full disk and says: %v", n.id, err)
		}
	} else {
		_ = e.Close() // it may need space
	}
	n.wreck = e
	n.scrapped(simfs.All)
}

// scrapped puts in what a start that came to nothing leaves on the disk.
func (n *node) scrapped(mode simfs.Mode) {
	old := n.disk
	n.swap(old.Image(mode, 0))
	old.Scrap()
}

// failReads makes reads of files fail from one of the next on, or that one alone.
func (n *node) failReads(r uint64) {
	if !n.up || n.faulty {
		return
	}
	n.disk.SetFaults(simfs.Fault{Kind: simfs.OpRead, AnyClass: true, Nth: 1 + int(r>>8%6), Sticky: r&1 == 0})
	n.faulty, n.affliction, n.w.res.Loose = true, coverage.ReadError, true
	n.w.cover(n.affliction, n)
}

// rot inverts a bit of a file that one node of the cluster holds durably. From
// then on the node may stop, and refuse to start.
func (w *World) rot(n *node, r uint64) {
	for _, o := range w.nodes {
		if o.rotten != "" {
			return
		}
	}
	class := []simfs.Class{simfs.ClassIdent, simfs.ClassManifest, simfs.ClassTable}[min(r%6, 2)]
	name, ok := n.disk.Rot(class, r>>4)
	if !ok {
		return
	}
	n.rotten, n.faulty, n.affliction, w.res.Loose = name, true, coverage.Rot, true
	w.cover(n.affliction, n)
	w.res.fault("rotten-"+map[simfs.Class]string{simfs.ClassTable: "table", simfs.ClassIdent: "ident", simfs.ClassManifest: "manifest"}[class], 1)
}

// scrub reads everything that a rotten store holds. What it can read is what was
// written, which the caller checks; else the store has to stop.
func (n *node) scrub() bool {
	for _, g := range n.w.orc.order {
		if _, _, err := digest(n.eng, &g.desc); err != nil {
			if n.died.Load() == nil {
				n.w.fail("F1", "node %d cannot read shard %d and goes on: %v", n.id, g.id, err)
			}
			return false
		}
	}
	return n.died.Load() == nil
}

// refusal is thrown by a start that ends because bits have rotted.
type refusal struct{ err error }

// bootFail ends a start: that of a rotten store that has stopped is refused, any
// other one violates an oracle.
func (n *node) bootFail(oracle, format string, args ...any) {
	if p := n.died.Load(); p != nil && n.rotten != "" {
		panic(refusal{*p})
	}
	n.w.fail(oracle, format, args...)
}

// refused ends a start of a rotten store for good: somebody has to replace the node.
func (n *node) refused(err error) {
	w := n.w
	if err == nil {
		if p := n.died.Load(); p != nil {
			err = *p
		}
	}
	if err == nil || err.Error() == "" {
		w.fail("F1", "node %d refuses to start and does not say why", n.id)
	}
	w.say(n.idx, "refused", "%v", err)
	w.log(n.idx, "refused", 0, 0)
	w.res.Refusals++
	n.held = true
	n.tether.n.Store(nil)
	if n.up {
		n.up = false
		n.gen++
		w.net.died(n)
	}
	if n.host != nil {
		n.host.Close()
	}
	if n.live != nil {
		n.live.Close()
	}
	if n.eng != nil {
		_ = n.eng.Close()
		n.wreck = n.eng
	}
	n.eng, n.host, n.st, n.live, n.snaps, n.store = nil, nil, nil, nil, nil, nil
	n.scrapped(simfs.None)
}

// onFatal is the last word of the engine or the host, on any goroutine.
func (n *node) onFatal(err error) {
	if n.died.CompareAndSwap(nil, &err) {
		close(n.dead)
	}
}

// patience is how long, of real time, a call that a failed store holds may take to
// return, and one that waits for space before it gets some; hang is how long
// any may take.
const (
	patience = 300 * time.Millisecond
	hang     = time.Minute
)

// guarded runs f. On a node whose disk is to fail it does so aside: a failed
// store may keep the goroutine that called it for ever, which must not be the driver's.
func (n *node) guarded(f func()) {
	if !n.faulty {
		f()
		return
	}
	done, dead := make(chan any, 1), n.dead
	go func() {
		defer func() { done <- recover() }()
		f()
	}()
	var p any
	select {
	case p = <-done:
	case <-dead:
		select {
		case p = <-done:
		case <-time.After(patience):
			n.lost, n.w.task = true, nil
		}
	case <-n.noSpace():
		// A write waits for a flush, which waits for space.
		n.disk.SetFaults()
		n.disk.SetSpace(0)
		select {
		case p = <-done:
		case <-dead:
			n.lost, n.w.task = true, nil
		case <-time.After(hang):
			n.lost, n.w.task = true, nil
			n.w.fail("L1", "node %d hangs in its store, though there is space again", n.id)
		}
	}
	if p != nil {
		panic(p)
	}
}

// noSpace tells when a call waits for space. It never does on other disks.
func (n *node) noSpace() <-chan time.Time {
	if !n.full {
		return nil
	}
	return time.After(patience)
}

// restart boots the node if it is down and not to stay so.
func (n *node) restart() {
	switch {
	case n.up || n.held:
	case n.fullUntil > n.w.now:
		n.startFull()
		n.w.at(n.fullUntil, n.restart)
	default:
		n.boot()
	}
}
