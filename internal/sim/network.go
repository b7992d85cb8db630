package sim

import (
	"slices"
	"time"

	"github.com/flotillakv/flotilla/internal/sim/coverage"
	"github.com/flotillakv/flotilla/multiraft/raft"
)

// network is the model network. A directed link is up while nothing blocks it;
// blocks are counted so that overlapping faults compose.
type network struct {
	w        *World
	blocked  [maxNodes][maxNodes]int
	clogged  [maxNodes][maxNodes]int64 // until
	last     [maxNodes][maxNodes]int64 // last arrival; FIFO links keep to it
	resetAt  [maxNodes][maxNodes]int64 // a reset of the pair is under way until then
	dropType [32]int                   // message types that are lost, counted
	storm    int
	late     int
}

func (t *network) init(w *World) { t.w = w }

// route draws what happens to one message from a to b: the times at which
// copies of it arrive.
func (t *network) route(a, b int, c cargo) (first, second int64) {
	w := t.w
	loss, dup := w.p.Loss, w.p.Dup
	if t.storm > 0 {
		loss = max(loss, w.p.StormLoss)
		if !w.p.Stream {
			dup = max(dup, 0.33)
		}
	}
	if w.calm {
		loss, dup = 0, 0
	}
	if t.blocked[a][b] > 0 {
		if t.blocked[b][a] > 0 {
			c.hit(coverage.Cut)
		} else {
			c.hit(coverage.OneWay)
		}
		return 0, 0
	}
	if loss > 0 && w.rng.Float64() < loss {
		c.hit(coverage.Drop)
		if w.p.Stream {
			t.reset(a, b)
		}
		return 0, 0
	}
	delay := func() int64 {
		at := w.now + int64(w.p.DelayMin+w.exp(w.p.DelayMean))
		at = max(at, t.clogged[a][b])
		if w.p.Stream {
			at = max(at, t.last[a][b]+1)
			t.last[a][b] = at
		}
		return at
	}
	if t.clogged[a][b] > w.now {
		c.hit(coverage.Clog)
	}
	first = delay()
	if !w.p.Stream {
		if first < t.last[a][b] {
			c.hit(coverage.Reorder)
		}
		t.last[a][b] = max(first, t.last[a][b])
	}
	if dup > 0 && w.rng.Float64() < dup {
		second = delay()
		c.hit(coverage.Dup)
		if w.rng.IntN(8) == 0 {
			c.hit(coverage.Late)
			second += int64(w.exp(2 * time.Second)) // a very old copy
		}
	}
	if late := w.p.LateProb; !w.p.Stream && !w.calm && second == 0 && (late > 0 || t.late > 0) {
		mean := max(w.p.LateMean, 100*time.Millisecond)
		if t.late > 0 {
			late = 0.5
		}
		if w.rng.Float64() < late {
			second = first + int64(w.exp(mean))
			c.hit(coverage.Late)
		}
	}
	return first, second
}

// send takes one message from a core. It copies what the core may reuse.
func (t *network) send(m *raft.Msg) {
	w := t.w
	a, b := int(m.From)-1, int(m.To)-1
	if b < 0 || b >= len(w.nodes) || a == b {
		w.fail("S11", "message to node %d: %s", m.To, FormatMsg(m))
	}
	c := *m
	c.Entries = slices.Clone(m.Entries)
	c.Boot = w.nodes[a].bootEpoch
	w.trace.add(record{at: w.now, node: a, what: "send", msg: &c})
	load := w.cargoOf(w.nodes[a], m)
	if t.dropType[m.Type] > 0 && !w.calm {
		load.hit(coverage.DropType)
		return
	}
	first, second := t.route(a, b, load)
	gen := uint32(0)
	if w.p.Stream {
		gen = w.nodes[b].gen
	}
	if first > 0 {
		w.at(event{at: first, kind: evDeliver, node: int32(b), gen: gen, msg: &c})
	}
	if second > 0 {
		w.at(event{at: second, kind: evDeliver, node: int32(b), gen: gen, msg: &c})
	}
}

// sendCtl takes one liveness record.
func (t *network) sendCtl(from int, to raft.NodeID, c raft.Ctl) {
	w := t.w
	b := int(to) - 1
	load := w.cargoFor(w.nodes[from], coverage.Support)
	if t.dropType[31] > 0 && !w.calm {
		load.hit(coverage.DropType)
		return
	}
	first, second := t.route(from, b, load)
	if first > 0 {
		w.at(event{at: first, kind: evCtl, node: int32(b), ctl: c, x: uint64(from)})
	}
	if second > 0 {
		w.at(event{at: second, kind: evCtl, node: int32(b), ctl: c, x: uint64(from)})
	}
}

// block adds or removes (by -1) a block of the links from a to b.
func (t *network) block(a, b, by int) {
	t.blocked[a][b] += by
	if t.blocked[a][b] == 0 && by < 0 && t.w.p.Stream {
		t.reset(a, b)
	}
}

// reset breaks the streams between a and b: both ends are told a little later.
// One break at a time: making a new stream takes its while.
func (t *network) reset(a, b int) {
	if t.resetAt[a][b] > t.w.now {
		return
	}
	at := t.w.now + int64(5*time.Millisecond)
	t.resetAt[a][b], t.resetAt[b][a] = at, at
	t.w.cover(coverage.Reset, t.w.nodes[a])
	t.w.cover(coverage.Reset, t.w.nodes[b])
	for _, p := range [][2]int{{a, b}, {b, a}} {
		t.w.after(t.w.exp(2*time.Millisecond), event{kind: evReset, node: int32(p[0]), x: uint64(p[1])})
	}
}

// heal removes every fault of the network among the nodes of set. The links of
// the others are blocked as hurt says: bit 0 for what they would hear, bit 1
// for what they would say.
func (t *network) heal(set []bool, hurt []uint8) {
	for a := range t.w.nodes {
		for b := range t.w.nodes {
			t.clogged[a][b] = 0
			t.blocked[a][b] = 0
			if !set[a] && hurt[a]&2 != 0 || !set[b] && hurt[b]&1 != 0 {
				t.blocked[a][b] = 1 << 20
			}
			if set[a] && set[b] && a < b {
				t.reset(a, b)
			}
		}
	}
	t.dropType = [32]int{}
	t.storm, t.late = 0, 0
	t.hasten()
}

// hasten lets what a clogged link held back arrive within a second, in its
// order: on links that keep the order, everything sent later would wait for it,
// perhaps for an hour.
func (t *network) hasten() {
	if !t.w.p.Stream {
		return
	}
	late := t.w.now + int64(time.Second)
	for i := range t.w.heap {
		k := &t.w.heap[i]
		if e := &t.w.slab[k.slot]; k.at > late && (e.kind == evDeliver || e.kind == evCtl) {
			k.at, e.at = late, late
		}
	}
	t.w.sortHeap()
	for a := range t.last {
		for b := range t.last[a] {
			t.last[a][b] = min(t.last[a][b], late)
		}
	}
}
