package engine

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
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
		<-e.startFlush() // nobody is in a hurry
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

// TestPoliteness: background work that pauses takes its share of the processors and
// not much more, also when its sleeps end late; several workers share it; and what is
// urgent does not sleep.
func TestPoliteness(t *testing.T) {
	const share, step, total = 0.5, 70 * time.Microsecond, 4 * time.Second
	for _, workers := range []int{1, 3} {
		for _, late := range []time.Duration{0, 50 * time.Microsecond, time.Millisecond} {
			var bucket pacer
			clock := time.Unix(1, 0)
			var worked time.Duration
			yields := 0
			all := make([]politeness, workers)
			wake := make([]time.Time, workers)
			for i := range all {
				all[i] = politeness{
					now:   func() time.Time { return clock },
					yield: func() { yields++ },
					sleep: func(d time.Duration) { wake[i] = clock.Add(d + late) },
					pace: func(now time.Time, w time.Duration) time.Duration {
						return bucket.take(now, w, share)
					},
				}
			}
			for start := clock; clock.Sub(start) < total; {
				busy := false
				for i := range all {
					if clock.Before(wake[i]) {
						continue
					}
					if !wake[i].IsZero() { // sleep returns
						wake[i], all[i].began = time.Time{}, clock
					}
					busy = true
					clock, worked = clock.Add(step), worked+step
					all[i].pause()
				}
				if !busy {
					clock = clock.Add(10 * time.Microsecond)
				}
			}
			got := float64(worked) / float64(total)
			if got > share*1.1 || got < share*0.75 {
				t.Errorf("%d workers, sleeps %s late: they took %.2f of a processor instead of %.2f (%d yields)", workers, late, got, share, yields)
			}
		}
	}
	rests := 0
	p := politeness{now: time.Now, yield: func() { rests++ }, sleep: func(time.Duration) { rests++ }}
	p.pace = func(time.Time, time.Duration) time.Duration { return -1 }
	p.began = time.Now().Add(-time.Second)
	if p.pause(); rests != 0 {
		t.Error("urgent work rested")
	}

	// Processors are full: each pause ends 20 ms late. A third of the time is left.
	var clock time.Time
	var bucket pacer
	worked := time.Duration(0)
	full := func(d time.Duration) { clock = clock.Add(d + 20*time.Millisecond) }
	p = politeness{now: func() time.Time { return clock }, yield: func() { full(0) }, sleep: full}
	p.pace = func(now time.Time, w time.Duration) time.Duration { return bucket.take(now, w, share) }
	clock = clock.Add(time.Hour)
	for start := clock; clock.Sub(start) < total; {
		clock, worked = clock.Add(step), worked+step
		p.pause()
	}
	if got := float64(worked) / float64(total); got < 0.25 || got > share {
		t.Errorf("with full processors it worked for %.2f of the time", got)
	}
}

// TestUrgency: background work becomes urgent as what it makes room for fills up, and
// when somebody waits for it.
func TestUrgency(t *testing.T) {
	e := deferredEngine(t, NewMemFS(), func(o *Options) {
		o.MemTableBytes, o.DeferBytes, o.DeferLogBytes = 1<<20, 1<<30, 1<<30
	})
	now := time.Now()
	expect := func(what string, c chore, low, high float64) {
		t.Helper()
		if u := e.urgency(c, now); u < low || u > high {
			t.Errorf("%s: urgency %.2f, expected %.2f to %.2f", what, u, low, high)
		}
	}
	mine := flushTurn.take(e)
	e.levelsAt.Store(now.UnixMilli()) // nobody looks at them
	for c := range chores {
		expect("at the start", c, 0, 0.01)
	}
	e.memBytes.Store(700 << 10)
	expect("two thirds of a memtable", choreDeferred, 0.2, 0.8)
	expect("two thirds of a memtable", choreMemtable, 0, 0)
	e.memBytes.Store(1 << 20)
	expect("a memtable", choreDeferred, 1, 1)
	e.memBytes.Store(600 << 10)
	e.memtables.Store(1)
	expect("half a memtable behind one", choreMemtable, 0.2, 0.8)
	e.memtables.Store(2)
	expect("half a memtable behind two", choreMemtable, 1, 1)
	e.memBytes.Store(0)
	e.memtables.Store(0)
	e.levelsAt.Store(now.UnixMilli())
	e.sublevels.Store(l0Compaction + 5)
	expect("level 0 grows", choreCompaction, 0.2, 0.8)
	e.sublevels.Store(l0Stop)
	expect("level 0 is full", choreCompaction, 1, 1)
	e.sublevels.Store(0)
	e.hurry.Add(1)
	for c := range chores {
		expect("somebody waits", c, 1, 1)
	}
	e.hurry.Add(-1)

	// Whoever waits for its turn hurries the one whose turn it is.
	other := deferredEngine(t, NewMemFS(), func(o *Options) { o.MemTableBytes = 1 << 20 })
	took := make(chan *turn)
	go func() { took <- flushTurn.take(other) }()
	for len(flushTurn.all()) < 2 {
		runtime.Gosched()
	}
	expect("another waits, at leisure", choreDeferred, 0, 0.01)
	other.memBytes.Store(1 << 20)
	expect("another waits, full", choreDeferred, 1, 1)
	flushTurn.give(mine)
	flushTurn.give(<-took)
}

// TestTurns: stores take turns in the order in which they came, but nobody waits for
// ever for one that keeps its turn.
func TestTurns(t *testing.T) {
	line := turns{wait: time.Hour}
	e := &Engine{down: make(chan struct{})}
	first := line.take(e)
	came := make(chan *turn)
	for n := range 2 {
		go func() { came <- line.take(e) }()
		for len(line.all()) < n+2 {
			runtime.Gosched()
		}
	}
	second, third := line.all()[1], line.all()[2]
	line.give(first)
	if got := <-came; got != second {
		t.Error("the third came before the second")
	}
	short := turns{wait: time.Millisecond}
	kept := short.take(e)
	short.give(short.take(e))
	short.give(kept)
	close(e.down)
	if got := <-came; got != third {
		t.Error("a store that has failed waits")
	}
	line.give(third)
	line.give(second)
	if n := len(line.all()); n != 0 {
		t.Errorf("%d are left in line", n)
	}
}

// TestRemove: a table is cut to a small size before it is removed, unless another name
// of it stays.
func TestRemove(t *testing.T) {
	dir := t.TempDir()
	e, err := Open(Options{Dir: filepath.Join(dir, "store"), Create: true, OnFatal: func(err error) { t.Error(err) }})
	if err != nil {
		t.Fatal(err)
	}
	defer func() { must(t, e.Close()) }()
	const size = 5 * removeStep / 2
	for _, c := range []struct {
		what string
		link bool
		left int64 // at most that much is removed at once
	}{{"a large table", false, removeStep}, {"a table with another name", true, size}} {
		name := filepath.Join(dir, "1.sst")
		must(t, os.WriteFile(name, make([]byte, size), 0o600))
		if c.link {
			must(t, os.Link(name, name+"x"))
		}
		var left int64
		must(t, e.removeTable(name, func(name string) error {
			info, err := os.Stat(name)
			must(t, err)
			left = info.Size()
			return os.Remove(name)
		}))
		if left > c.left || left < c.left/4 {
			t.Errorf("%s: %d bytes were left of %d", c.what, left, size)
		}
	}
	if info, err := os.Stat(filepath.Join(dir, "1.sstx")); err != nil || info.Size() != size {
		t.Errorf("the other name: %v %v", info, err)
	}
	name := filepath.Join(dir, "2.sst")
	must(t, os.WriteFile(name, []byte("table"), 0o600))
	must(t, e.fs.Remove(name))
	if _, err := os.Stat(name); !os.IsNotExist(err) {
		t.Errorf("not removed: %v", err)
	}
}
