package engine

import (
	"github.com/cockroachdb/pebble/v2"
	"github.com/cockroachdb/pebble/v2/vfs"
)

// Flushes and compactions compute for as long as the scheduler lets them, which is
// 10 ms at a time: with two processors and three such goroutines, every step of a
// write (loop, sync, stream, loop again) may find itself behind all of them. So they
// yield, with every so many keys and with every block: what waits behind one then
// waits for tens of microseconds. Where nobody waits a yield costs next to nothing.

// politeKeys is how many keys a table gets between two yields.
const politeKeys = 64

// politeFilter is a filter policy whose writers yield: they see each key of a table,
// on the goroutine that writes it.
type politeFilter struct {
	pebble.FilterPolicy
	yield func()
}

// NewWriter implements pebble.FilterPolicy.
func (p politeFilter) NewWriter(t pebble.FilterType) pebble.FilterWriter {
	return &politeFilterWriter{FilterWriter: p.FilterPolicy.NewWriter(t), yield: p.yield}
}

type politeFilterWriter struct {
	pebble.FilterWriter
	yield func()
	keys  uint
}

// AddKey implements pebble.FilterWriter.
func (w *politeFilterWriter) AddKey(key []byte) {
	w.FilterWriter.AddKey(key)
	if w.keys++; w.keys%politeKeys == 0 {
		w.yield()
	}
}

// politeTable is a table that is being written; its blocks come from a goroutine of
// their own.
type politeTable struct {
	vfs.File
	yield func()
}

// Write implements vfs.File.
func (t *politeTable) Write(p []byte) (int, error) {
	n, err := t.File.Write(p)
	t.yield()
	return n, err
}
