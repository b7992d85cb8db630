package engine

import (
	"runtime"
	"slices"
	"sync"
	"time"

	"github.com/cockroachdb/pebble/v2"
	"github.com/cockroachdb/pebble/v2/bloom"
	"github.com/cockroachdb/pebble/v2/vfs"
)

// Flushes and compactions compute for as long as the scheduler lets them, which is
// 10 ms at a time: with two processors and three such goroutines, every step of a
// write (loop, sync, stream, loop again) may find itself behind all of them. So they
// pause after every so many keys: they yield, and all of the process together take no
// more than a share of its processors, unless what they write is needed soon
// (Engine.urgency). A pause is a sleep and not a yield alone: a processor whose
// goroutines only yield does not look at the network.

const (
	// politeKeys is how many keys a table gets between two pauses, at least.
	politeKeys = 64
	// politeWork is how long one works between two pauses, at least.
	politeWork = 100 * time.Microsecond
	// politeNap bounds one sleep: what is urgent can change meanwhile.
	politeNap = 5 * time.Millisecond
	// politeCredit is how much of a share that was not taken may be taken later: a
	// sleep ends late where processors are busy.
	politeCredit = 10 * time.Millisecond
	// politeDebt bounds what one pause is asked to make up for: work is measured by
	// the clock, which goes on while others have the processor.
	politeDebt = 2 * time.Millisecond
)

// chore is a kind of background work.
type chore int

const (
	choreDeferred   chore = iota // what was applied in memory goes to tables
	choreMemtable                // memtables go to tables
	choreCompaction              // tables are merged
	choreSnapshot                // tables are made for another node, at the pace of whoever sends them
	chores
)

// background is what all stores of the process share: of each processor, so much is
// for each chore while nothing is urgent. Deferred writes come first: a memtable that
// fills up before they are in tables is written with all the log entries in it.
var background = [chores]struct {
	pacer
	share float64
}{{share: 0.2}, {share: 0.1}, {share: 0.1}, {share: 1}}

// pacer is a leaky bucket of processor time (GCRA: due is when all that was taken
// has been paid for).
type pacer struct {
	mu  sync.Mutex
	due time.Time
}

// take takes processor time, and returns how long to sleep for it.
func (p *pacer) take(now time.Time, worked time.Duration, share float64) time.Duration {
	p.mu.Lock()
	defer p.mu.Unlock()
	if start := now.Add(-politeCredit); p.due.Before(start) {
		p.due = start
	}
	wait := p.due.Sub(now)
	p.due = p.due.Add(time.Duration(float64(worked) / share))
	return min(max(0, wait), politeNap)
}

// politeness makes a goroutine of background work pause.
type politeness struct {
	yield func()
	sleep func(time.Duration)
	now   func() time.Time
	// pace returns how long to sleep for that much work; negative: no pause at all.
	pace  func(time.Time, time.Duration) time.Duration
	began time.Time     // to work, after the last pause
	late  time.Duration // how much longer the last pause took than it should have
}

// pause is called between two steps of the work. Where processors are full a pause ends
// late, by 10 ms and more behind goroutines that never pause themselves: then work goes
// on for half as long before the next one. Else a flush would never end, and writes
// would wait for it.
func (p *politeness) pause() {
	now := p.now()
	if p.began.IsZero() {
		p.began = now
	}
	worked := now.Sub(p.began)
	if worked < max(politeWork, p.late/2) {
		return
	}
	wait := p.pace(now, min(worked, max(politeDebt, p.late)))
	switch {
	case wait < 0:
		p.began = now
		return
	case wait == 0:
		p.yield()
	default:
		p.sleep(wait)
	}
	p.began = p.now()
	p.late = p.began.Sub(now) - wait
}

func (e *Engine) politeness(c chore) politeness {
	p := politeness{yield: e.yield, sleep: time.Sleep, now: time.Now}
	p.pace = func(now time.Time, worked time.Duration) time.Duration {
		rest := 1 - e.urgency(c, now)
		if rest <= 0 {
			return -1
		}
		b := &background[c]
		return b.take(now, time.Duration(float64(worked)*rest), b.share*float64(min(runtime.GOMAXPROCS(0), runtime.NumCPU())))
	}
	if e.opts.yield != nil {
		p.sleep = func(time.Duration) { e.yield() }
	}
	return p
}

func (e *Engine) yield() {
	if e.opts.yield != nil {
		e.opts.yield()
		return
	}
	runtime.Gosched()
}

// urgency says how soon background work has to be done, from 0 to 1: at 1 it takes
// all the processor it gets, as when writes or somebody else waits for it.
func (e *Engine) urgency(c chore, now time.Time) (u float64) {
	if !e.paced.Load() || e.closed.Load() || e.stats.stalled.Load() || e.hurry.Load() > 0 {
		return 1
	}
	switch c {
	case choreDeferred: // and others may wait for their turn
		for _, t := range flushTurn.all() {
			u = max(u, t.e.deferredUrgency())
		}
	case choreMemtable:
		e.lookAtLevels(now)
		u = over(e.memtableFill()+float64(e.memtables.Load()-1), 0.3, 0.9)
	case choreCompaction: // level 0 makes reads slow
		e.lookAtLevels(now)
		u = over(float64(e.sublevels.Load()), l0Compaction+2, l0Stop-8)
	}
	return u
}

// memtableFill says how full the present memtable is.
func (e *Engine) memtableFill() float64 {
	return float64(e.memBytes.Load()) / float64(e.opts.MemTableBytes)
}

// deferredUrgency is that of a flush of what the store deferred.
func (e *Engine) deferredUrgency() float64 {
	if e.closed.Load() || e.stats.stalled.Load() || e.hurry.Load() > 0 {
		return 1
	}
	u := over(e.memtableFill(), 0.6, 0.8)
	d := e.def
	if !d.mu.TryRLock() { // of a store that may be held up
		return u
	}
	defer d.mu.RUnlock()
	return max(u, over(float64(d.mem.size())/float64(e.opts.DeferBytes), 0.4, 0.9),
		over(float64(d.logBytes+d.immLog)/float64(e.opts.DeferLogLimit), 0.6, 0.9))
}

// lookAtLevels notes how many memtables wait to be flushed, and what is in level 0.
func (e *Engine) lookAtLevels(now time.Time) {
	last := e.levelsAt.Load()
	if at := now.UnixMilli(); at-last >= 100 && e.levelsAt.CompareAndSwap(last, at) {
		m := e.db.Metrics()
		e.sublevels.Store(m.Levels[0].Sublevels)
		e.memtables.Store(int32(m.MemTable.Count - 1))
	}
}

// flushTurn lets the stores of a process write what they deferred one after the
// other: the sooner one is done, the less of the log that is written meanwhile has to
// be kept.
var flushTurn = turns{wait: 3 * time.Second}

// turns is a line of stores, the first of which has its turn. It is a courtesy and no
// lock: nobody waits longer than wait, since a store whose disk hangs keeps its turn.
type turns struct {
	wait time.Duration
	mu   sync.Mutex
	line []*turn // replaced and never changed
}

type turn struct {
	e     *Engine
	first chan struct{} // closed when it has come
}

// take returns when it is the turn of e, or when e need not wait any more.
func (t *turns) take(e *Engine) *turn {
	mine := &turn{e, make(chan struct{})}
	t.mu.Lock()
	t.line = append(slices.Clone(t.line), mine)
	if len(t.line) == 1 {
		close(mine.first)
	}
	t.mu.Unlock()
	timer := time.NewTimer(t.wait)
	defer timer.Stop()
	select {
	case <-mine.first:
	case <-timer.C:
	case <-e.down:
	}
	return mine
}

func (t *turns) give(mine *turn) {
	t.mu.Lock()
	defer t.mu.Unlock()
	i := slices.Index(t.line, mine)
	t.line = slices.Concat(t.line[:i], t.line[i+1:])
	if i == 0 && len(t.line) > 0 {
		close(t.line[0].first)
	}
}

// all returns who has the turn and who waits.
func (t *turns) all() []*turn {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.line
}

// over is 0 up to low, 1 from high on, and rises in between.
func over(x, low, high float64) float64 { return min(1, max(0, (x-low)/(high-low))) }

// politeFilter is a filter policy whose writers pause: they see each key of a table,
// on the goroutine that writes it.
type politeFilter struct {
	pebble.FilterPolicy
	e *Engine
	c chore
}

func (e *Engine) filter(c chore) pebble.FilterPolicy {
	return politeFilter{bloom.FilterPolicy(10), e, c}
}

// NewWriter implements pebble.FilterPolicy.
func (p politeFilter) NewWriter(t pebble.FilterType) pebble.FilterWriter {
	return &politeFilterWriter{FilterWriter: p.FilterPolicy.NewWriter(t), polite: p.e.politeness(p.c)}
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
// blocks come from a goroutine of their own, which holds up the one above.
type politeTable struct {
	vfs.File
	yield func()
}

// Write implements vfs.File.
func (t politeTable) Write(p []byte) (int, error) {
	n, err := t.File.Write(p)
	t.yield()
	return n, err
}
