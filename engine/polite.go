package engine

import (
	"time"

	"github.com/cockroachdb/pebble/v2"
	"github.com/cockroachdb/pebble/v2/vfs"
)

// Flushes and compactions compute for as long as the scheduler lets them, which is
// 10 ms at a time: with two processors and three such goroutines, every step of a
// write (loop, sync, stream, loop again) may find itself behind all of them. So they
// yield, with every so many keys and with every block: what waits behind one then
// waits for tens of microseconds. Where nobody waits a yield costs next to nothing.

// politeKeys is how many keys a table gets between two yields, at least.
const politeKeys = 64

// politeness decides when to yield. Whoever yields works at least as long before the
// next time as the last one took: a flush that waits for goroutines which never yield
// themselves, 10 ms each time, would otherwise take so long that commits wait for it.
type politeness struct {
	yield func()
	now   func() time.Time // nil: time.Now
	ended time.Time        // of the last yield
	took  time.Duration
}

func (p *politeness) pause() {
	now := p.now
	if now == nil {
		now = time.Now
	}
	began := now()
	if began.Sub(p.ended) < p.took {
		return
	}
	p.yield()
	p.ended = now()
	p.took = p.ended.Sub(began)
}

// politeFilter is a filter policy whose writers yield: they see each key of a table,
// on the goroutine that writes it.
type politeFilter struct {
	pebble.FilterPolicy
	yield func()
}

// NewWriter implements pebble.FilterPolicy.
func (p politeFilter) NewWriter(t pebble.FilterType) pebble.FilterWriter {
	return &politeFilterWriter{FilterWriter: p.FilterPolicy.NewWriter(t), polite: politeness{yield: p.yield}}
}

type politeFilterWriter struct {
	pebble.FilterWriter
	polite politeness
	keys   uint
}

// AddKey implements pebble.FilterWriter.
func (w *politeFilterWriter) AddKey(key []byte) {
	w.FilterWriter.AddKey(key)
	if w.keys++; w.keys%politeKeys == 0 {
		w.polite.pause()
	}
}

// politeTable is a table that is being written, by one goroutine at a time; its
// blocks come from a goroutine of their own.
type politeTable struct {
	vfs.File
	polite politeness
}

// Write implements vfs.File.
func (t *politeTable) Write(p []byte) (int, error) {
	n, err := t.File.Write(p)
	t.polite.pause()
	return n, err
}
