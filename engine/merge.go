package engine

import (
	"bytes"
	"slices"

	"github.com/cockroachdb/pebble/v2"
	"github.com/cockroachdb/pebble/v2/batchrepr"
)

// view is what memory holds, as of one moment, for iterators. It keeps what it
// sees from being overwritten until it is closed.
type memView struct {
	d      *deferred
	seq    uint64
	layers []memLayer // newest first
}

type memLayer struct {
	t      *table
	ranges []tableRange
}

// viewLocked opens a view of memory. Called with d.mu held; the caller makes its
// Pebble iterator under the same lock, so that no flush comes between the two.
func (d *deferred) viewLocked() *memView {
	v := &memView{d: d, seq: d.snapshotLocked()}
	for _, t := range []*table{d.mem, d.imm} {
		if t == nil || t.empty() {
			continue
		}
		v.layers = append(v.layers, memLayer{t, slices.Clone(t.ranges)})
	}
	return v
}

func (v *memView) close() { v.d.closeSnapshot() }

// cursor walks over the keys of one table that its view sees, within bounds.
type cursor struct {
	v    *memView
	t    *table
	runs [][]keyRef // cut to the bounds
	pos  []int      // forward: next key of each run; backward: one behind it
	at   int        // the run of the present key; -1: none
	key  []byte
	kind entryKind
	val  []byte
}

func (v *memView) cursor(l *memLayer, lower, upper []byte) *cursor {
	c := &cursor{v: v, t: l.t, at: -1}
	v.d.orderApart(l.t, lower, upper)
	v.d.mu.Lock()
	defer v.d.mu.Unlock()
	for _, lane := range l.t.within(lower, upper) {
		lane.scanned = true
		l.t.order(lane)
		for _, run := range lane.runs {
			from, to := l.t.search(run, lower), len(run)
			if upper != nil {
				to = l.t.search(run, upper)
			}
			if from < to {
				c.runs = append(c.runs, run[from:to])
			}
		}
	}
	c.pos = make([]int, len(c.runs))
	return c
}

// orderApart puts long tails of the lanes with keys in [lower, upper) in order, without
// holding the lock meanwhile: commits wait for it. Called without the lock.
func (d *deferred) orderApart(t *table, lower, upper []byte) {
	d.mu.RLock()
	lanes := t.within(lower, upper)
	d.mu.RUnlock()
	for _, l := range lanes {
		d.mu.RLock()
		var tail []keyRef
		if len(l.tail) >= sortApart {
			tail = slices.Clone(l.tail)
		}
		keys, ordered := *t, l.ordered // keys do not change, but new ones come
		d.mu.RUnlock()
		if len(tail) == 0 {
			continue
		}
		keys.sorted(tail)
		d.mu.Lock()
		if l.ordered == ordered { // nobody else did it: the tail has only become longer
			l.tail = slices.Clone(l.tail[len(tail):])
			l.ordered++
			t.addRun(l, tail)
		}
		d.mu.Unlock()
	}
}

func (c *cursor) seekGE(key []byte) {
	c.v.d.mu.RLock()
	defer c.v.d.mu.RUnlock()
	for i, run := range c.runs {
		c.pos[i] = c.t.search(run, key)
	}
	c.forward()
}

// forward goes to the least key that the view sees. The positions are at the next keys.
func (c *cursor) forward() {
	for {
		c.at = -1
		for i, run := range c.runs {
			if c.pos[i] < len(run) && (c.at < 0 || bytes.Compare(c.t.key(run[c.pos[i]]), c.key) < 0) {
				c.at, c.key = i, c.t.key(run[c.pos[i]])
			}
		}
		if c.at < 0 {
			return
		}
		if c.kind, c.val = c.t.seen(c.runs[c.at][c.pos[c.at]], c.v.seq); c.kind != entryNone {
			return
		}
		c.pos[c.at]++
	}
}

func (c *cursor) next() {
	c.v.d.mu.RLock()
	defer c.v.d.mu.RUnlock()
	c.pos[c.at]++
	c.forward()
}

func (c *cursor) seekLT(key []byte) {
	c.v.d.mu.RLock()
	defer c.v.d.mu.RUnlock()
	for i, run := range c.runs {
		c.pos[i] = len(run)
		if key != nil {
			c.pos[i] = c.t.search(run, key)
		}
	}
	c.backward()
}

func (c *cursor) backward() {
	for {
		c.at = -1
		for i, run := range c.runs {
			if c.pos[i] > 0 && (c.at < 0 || bytes.Compare(c.t.key(run[c.pos[i]-1]), c.key) > 0) {
				c.at, c.key = i, c.t.key(run[c.pos[i]-1])
			}
		}
		if c.at < 0 {
			return
		}
		if c.kind, c.val = c.t.seen(c.runs[c.at][c.pos[c.at]-1], c.v.seq); c.kind != entryNone {
			return
		}
		c.pos[c.at]--
	}
}

func (c *cursor) prev() {
	c.v.d.mu.RLock()
	defer c.v.d.mu.RUnlock()
	c.pos[c.at]--
	c.backward()
}

// layer is one source of a merged iterator: newer ones hide older ones.
type layer struct {
	c    *cursor          // nil: it is Pebble's
	p    *pebble.Iterator // of the last layer, and of a batch's
	dels []pebble.KeyRange
}

func (l *layer) valid() bool {
	if l.c != nil {
		return l.c.at >= 0
	}
	return l.p.Valid()
}

func (l *layer) key() []byte {
	if l.c != nil {
		return l.c.key
	}
	return l.p.Key()
}

func (l *layer) deleted() bool { return l.c != nil && l.c.kind == entryDelete }

func (l *layer) value() ([]byte, error) {
	if l.c != nil {
		return l.c.val, nil
	}
	return l.p.ValueAndErr()
}

func (l *layer) seekGE(key []byte) {
	if l.c != nil {
		l.c.seekGE(key)
	} else {
		l.p.SeekGE(key)
	}
}

func (l *layer) seekLT(key []byte) {
	switch {
	case l.c != nil:
		l.c.seekLT(key)
	case key == nil:
		l.p.Last()
	default:
		l.p.SeekLT(key)
	}
}

func (l *layer) step(forward bool) {
	switch {
	case l.c != nil && forward:
		l.c.next()
	case l.c != nil:
		l.c.prev()
	case forward:
		l.p.Next()
	default:
		l.p.Prev()
	}
}

// merged walks over layers as over one: of equal keys the newest counts, and what
// it or a range deletion of a newer layer deletes is passed over.
type merged struct {
	layers  []layer // newest first; Pebble's is the last
	lower   []byte
	at      int // the layer of the present key; -1: none
	forward bool
	cur     []byte // copy of the present key, for turning round
}

// newMerged merges the layers of a view, of which at least one has something in the
// bounds (upper nil: none above), over p. own are operations in front of all (nil: none).
func newMerged(v *memView, p *pebble.Iterator, lower, upper []byte, own *table) *merged {
	m := &merged{lower: lower, at: -1}
	ls := v.layers
	if own != nil {
		ls = slices.Concat([]memLayer{{own, own.ranges}}, ls)
	}
	for i := range ls {
		l := &ls[i]
		c := v.cursor(l, lower, upper)
		var dels []pebble.KeyRange
		for _, r := range l.ranges {
			if (upper == nil || bytes.Compare(r.start, upper) < 0) && bytes.Compare(lower, r.end) < 0 {
				dels = append(dels, pebble.KeyRange{Start: r.start, End: r.end})
			}
		}
		if len(c.runs) > 0 || len(dels) > 0 {
			m.layers = append(m.layers, layer{c: c, dels: dels})
		}
	}
	m.layers = append(m.layers, layer{p: p})
	return m
}

// hidden reports whether a newer layer than n deletes the span around key.
func (m *merged) hidden(n int, key []byte) bool {
	for i := range n {
		for _, r := range m.layers[i].dels {
			if bytes.Compare(r.Start, key) <= 0 && bytes.Compare(key, r.End) < 0 {
				return true
			}
		}
	}
	return false
}

// settle finds the next key to show in the direction of m.
func (m *merged) settle() bool {
	for {
		m.at = -1
		var key []byte
		for i := range m.layers {
			l := &m.layers[i]
			if !l.valid() {
				continue
			}
			k := l.key()
			if m.at >= 0 {
				if c := bytes.Compare(k, key); m.forward && c >= 0 || !m.forward && c <= 0 {
					continue
				}
			}
			m.at, key = i, k
		}
		if m.at < 0 {
			return false
		}
		show := !m.layers[m.at].deleted() && !m.hidden(m.at, key)
		m.cur = append(m.cur[:0], key...)
		// Older versions of the key.
		for i := m.at + 1; i < len(m.layers); i++ {
			if l := &m.layers[i]; l.valid() && bytes.Equal(l.key(), m.cur) {
				l.step(m.forward)
			}
		}
		if show {
			return true
		}
		m.layers[m.at].step(m.forward)
	}
}

func (m *merged) seekGE(key []byte) bool {
	if bytes.Compare(key, m.lower) < 0 {
		key = m.lower
	}
	m.forward = true
	for i := range m.layers {
		m.layers[i].seekGE(key)
	}
	return m.settle()
}

// seekLT goes to the last key below key; nil: to the last one.
func (m *merged) seekLT(key []byte) bool {
	m.forward = false
	for i := range m.layers {
		m.layers[i].seekLT(key)
	}
	return m.settle()
}

func (m *merged) next() bool {
	if m.at < 0 {
		if m.forward {
			return false
		}
		return m.seekGE(m.lower) // before the first key
	}
	if !m.forward {
		key := append(slices.Clone(m.cur), 0)
		return m.seekGE(key)
	}
	m.layers[m.at].step(true)
	return m.settle()
}

func (m *merged) prev() bool {
	if m.at < 0 {
		if !m.forward {
			return false
		}
		return m.seekLT(nil) // behind the last key
	}
	if m.forward {
		return m.seekLT(slices.Clone(m.cur))
	}
	m.layers[m.at].step(false)
	return m.settle()
}

// batchTable makes a table of the operations of a batch.
func batchTable(repr []byte) *table {
	t := &table{}
	if len(repr) <= batchrepr.HeaderLen {
		return t
	}
	for r := batchrepr.Reader(repr[batchrepr.HeaderLen:]); len(r) > 0; {
		kind, key, val, ok, err := r.Next()
		if !ok || err != nil {
			break
		}
		switch kind {
		case pebble.InternalKeyKindSet:
			t.put(0, 0, entrySet, key, val)
		case pebble.InternalKeyKindDelete:
			t.put(0, 0, entryDelete, key, nil)
		case pebble.InternalKeyKindRangeDelete:
			t.deleteRange(0, 0, key, val)
		}
	}
	return t
}
