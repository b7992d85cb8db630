package engine

import (
	"bytes"
	"fmt"
	"runtime"
	"sync/atomic"
	"testing"
	"time"
)

// TestPoliteTables: whoever writes tables, from memory or from other tables, yields
// between keys, and never while it holds a lock that commits and reads need.
// The tables have filters that work.
func TestPoliteTables(t *testing.T) {
	var e *Engine
	var yields atomic.Int64
	fs := NewMemFS()
	e = deferredEngine(t, fs, func(o *Options) {
		o.DeferBytes, o.DeferLogBytes = 1<<30, 1<<30
		o.yield = func() {
			var stack [4 << 10]byte
			if !bytes.Contains(stack[:runtime.Stack(stack[:], false)], []byte("AddKey")) {
				return // a block goes to the file, on a goroutine that holds nothing
			}
			if yields.Add(1); e == nil {
				return // while it opens
			}
			if !e.def.mu.TryLock() {
				t.Error("yields while it holds the lock of what is in memory")
				return
			}
			e.def.mu.Unlock()
		}
	})
	const keys = 10_000
	write := func(from int) {
		b := e.NewBatch()
		defer b.Close()
		for i := range keys {
			b.Set(1, fmt.Appendf(nil, "k%06d", from+2*i), fmt.Appendf(nil, "v%d", i))
		}
		must(t, b.Commit(false))
	}
	expect := func(what string) {
		t.Helper()
		if n := yields.Swap(0); n == 0 { // not many: those of this test take their time
			t.Errorf("%s: %d yields for %d keys", what, n, keys)
		}
	}
	for from := range 2 {
		write(from)
		yields.Store(0)
		must(t, e.flushAll())
		expect("flush")
	}
	before := e.db.Metrics().Filter.Hits
	for i := range 100 {
		if _, ok, err := e.Get(1, fmt.Appendf(nil, "k%06dx", i), nil); err != nil || ok {
			t.Errorf("%v %v", ok, err)
		}
	}
	if hits := e.db.Metrics().Filter.Hits - before; hits < 90 {
		t.Errorf("filters spared %d of 100 looks", hits)
	}
	must(t, e.db.Compact(t.Context(), []byte{prefixData}, []byte{prefixData + 1}, false))
	expect("compaction")
	if v, ok, err := e.Get(1, []byte("k000003"), nil); err != nil || !ok || string(v) != "v1" {
		t.Errorf("%q %v %v", v, ok, err)
	}
}

// TestPoliteness: yields that cost nothing are made each time, and those that take
// long do not take more time than the work between them.
func TestPoliteness(t *testing.T) {
	for _, each := range []time.Duration{0, time.Microsecond, time.Millisecond, 30 * time.Millisecond} {
		var clock time.Time
		var yielded, worked time.Duration
		n := 0
		p := politeness{now: func() time.Time { return clock }, yield: func() { n++; yielded += each; clock = clock.Add(each) }}
		const steps, step = 10_000, 50 * time.Microsecond
		for range steps {
			clock, worked = clock.Add(step), worked+step
			p.pause()
		}
		if each <= step && n != steps || yielded > worked+each || each > 0 && yielded < worked/2 && n < steps {
			t.Errorf("yields of %s: %d, which took %s of %s", each, n, yielded, worked)
		}
	}
}
