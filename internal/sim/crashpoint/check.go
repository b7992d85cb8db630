package crashpoint

import (
	"errors"
	"fmt"
	"strings"

	"github.com/flotillakv/flotilla/engine"
	"github.com/flotillakv/flotilla/internal/sim/simfs"
	"github.com/flotillakv/flotilla/snapshot"
)

// bounds of what may be found in the image of a crash after at operations.
type bounds struct {
	least, most int // moments
	why         string
	epoch       uint64 // others may know of it
	mustExist   bool
}

// need fills in which moment each promise needs. A promise that was never true
// is an error of its own.
func (n *node) settle() error {
	for i := range n.promises {
		p := &n.promises[i]
		if p.test == nil {
			continue
		}
		p.state = -1
		for k, m := range n.moments {
			if p.test(m.s) {
				p.state = k
				break
			}
		}
		if p.state < 0 {
			return fmt.Errorf("node %d told %s, which never was so", n.id, p.what)
		}
		for k := p.state; p.keep != nil && k < len(n.moments); k++ {
			if s := n.moments[k].s; p.keep(s) && !p.test(s) {
				return fmt.Errorf("node %d told %s, and took it back at moment %d:\n%s", n.id, p.what, k, diff(s, n.moments[p.state].s))
			}
		}
	}
	return nil
}

// after returns the bounds for a crash after at operations.
func (n *node) after(at int) bounds {
	b := bounds{least: -1, most: -1}
	for k, m := range n.moments {
		if m.from <= at {
			b.most = k
		}
	}
	for i := range n.promises {
		if p := &n.promises[i]; p.at <= at && p.state > b.least {
			b.least, b.why = p.state, p.what
		}
	}
	for _, m := range n.epochs {
		if m.at <= at {
			b.epoch, b.mustExist = max(b.epoch, m.epoch), true
		}
	}
	return b
}

// booted is a node that came back.
type booted struct {
	moment int
	state  *State
	epoch  uint64
}

// recover opens the store of n on an image, as a node does, and checks it. done
// is called when the store is open and its epoch is known to others.
func (n *node) recover(img *simfs.FS, b bounds, exposed func(epoch uint64)) (out booted, err error) {
	var fatal error
	o := storeOptions(img, n.dir, n.id, n.r.deferred)
	o.OnFatal = func(err error) { fatal = err }
	e, err := engine.Open(o)
	if err != nil {
		return out, fmt.Errorf("node %d does not open: %w", n.id, err)
	}
	closed := false
	defer func() {
		if !closed {
			err = errors.Join(err, e.Close())
		}
		err = errors.Join(err, fatal)
	}()
	if e.BootEpoch() <= b.epoch {
		return out, fmt.Errorf("node %d: boot epoch %d, others know of %d", n.id, e.BootEpoch(), b.epoch)
	}
	out.epoch = e.BootEpoch()
	exposed(e.BootEpoch())
	if id := e.Ident(); id.Node != n.id || id.Cluster != o.Cluster {
		return out, fmt.Errorf("node %d: identity %+v", n.id, id)
	}
	snaps, err := snapshot.New(snapshot.Options{Engine: e, Node: n.id, Inline: true})
	if err != nil {
		return out, fmt.Errorf("node %d: %w", n.id, err)
	}
	states, err := e.Boot()
	if err != nil {
		return out, fmt.Errorf("node %d does not boot: %w", n.id, err)
	}
	snaps.Sweep(true) // what came of interrupted snapshots is kept for a while
	snaps.Close()
	s, err := Capture(e)
	if err != nil {
		return out, fmt.Errorf("node %d: %w", n.id, err)
	}
	if len(states) != len(s.Groups) {
		return out, fmt.Errorf("node %d: %d groups booted, %d on disk", n.id, len(states), len(s.Groups))
	}
	for _, st := range states {
		g := s.Groups[st.Desc.Shard]
		if g == nil || st.Last != g.Last() || st.Hard != g.Hard || st.Applied != g.Applied || len(st.Tail) != int(g.Last()-g.Applied.Applied) {
			return out, fmt.Errorf("node %d: shard %d booted with %+v, on disk is another", n.id, st.Desc.Shard, st)
		}
	}
	if len(s.Stray) > 0 {
		return out, fmt.Errorf("node %d: left behind: %s", n.id, strings.Join(s.Stray[:min(4, len(s.Stray))], "; "))
	}
	if names, err := img.List(e.StagingDir()); err != nil || len(names) > 0 {
		return out, fmt.Errorf("node %d: left in staging: %v %w", n.id, names, err)
	}
	out.state = s
	if out.moment, err = n.find(s, b); err != nil {
		return out, err
	}
	closed = true
	return out, e.Close()
}

// same reports whether a recovered state is that of moment k. Where applying is
// deferred, each group may have been applied as far as it was at an earlier moment:
// its log, which is as long as at moment k, makes up for that.
func (n *node) same(s *State, k int) bool {
	if n.r.deferred == 0 {
		return n.moments[k].s.text == s.text
	}
	if n.moments[k].s.raft != s.raft {
		return false
	}
	for id, g := range s.Groups {
		j := k
		for ; j >= 0; j-- {
			if was := n.moments[j].s.Groups[id]; was != nil && was.side == g.side {
				break
			}
		}
		if j < 0 {
			return false
		}
	}
	return true
}

// find tells which moment a recovered state is.
func (n *node) find(s *State, b bounds) (int, error) {
	for k := b.most; k >= 0 && k >= b.least; k-- {
		if n.same(s, k) {
			return k, nil
		}
	}
	empty := len(s.Groups) == 0 && len(s.Tombs) == 0 && len(s.Support) == 0
	if b.least < 0 && empty {
		return -1, nil
	}
	for k := range n.moments {
		if !n.same(s, k) {
			continue
		}
		if k < b.least {
			return k, fmt.Errorf("node %d came back at moment %d of %d, but it had told that moment %d is durable: %s\n%s",
				n.id, k, len(n.moments)-1, b.least, b.why, diff(s, n.moments[b.least].s))
		}
		return k, fmt.Errorf("node %d came back at moment %d, which was not written yet (%d was)", n.id, k, b.most)
	}
	if len(n.moments) == 0 {
		return -1, fmt.Errorf("node %d came back with\n%s", n.id, s)
	}
	near := max(b.least, 0)
	for k := near; k <= b.most; k++ {
		if len(diff(s, n.moments[k].s)) < len(diff(s, n.moments[near].s)) {
			near = k
		}
	}
	return -1, fmt.Errorf("node %d came back in a state that never was (told: moment %d, %s; written: %d); moment %d is nearest:\n%s",
		n.id, b.least, b.why, b.most, near, diff(s, n.moments[near].s))
}
