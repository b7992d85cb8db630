package engine

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"slices"
	"sort"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/cockroachdb/pebble/v2"
	"github.com/cockroachdb/pebble/v2/batchrepr"

	"github.com/flotillakv/flotilla/internal/mutants"
	"github.com/flotillakv/flotilla/multiraft/raft"
)

// Deferred applying: what entries do to the applied side (prefixes 03 and 10) goes
// into memory, and from there to the tables of the store in bulk. Until then the
// Raft log is its redo: after a crash a group comes back as it was at the last
// flush, with the entries behind that in its log, and applies them again.
//
//	J1  A flush writes data and applied state of one moment, atomically: one ingest.
//	J2  The log is synced before the ingest, so that no applied state outlives the
//	    entries it stands on (compare I4).
//	J3  No entry is deleted from the log before the flush that covers it is durable:
//	    the owner of a group cuts its log up to what Engine.OnFlush said (Flushed).
//	J4  What else writes to the applied side in Pebble (a descriptor with the whole
//	    state of its group, a snapshot, the end of a replica) takes the group's
//	    writes out of memory in the same step, and no flush that began before it
//	    brings them back. What was flushed and is kept for reads goes, too.
type deferred struct {
	// mu guards the tables, the sequence and the snapshots. It is held while a batch
	// is put into memory, never across I/O but that of an install.
	mu    sync.RWMutex
	mem   *table   // takes the writes
	imm   *table   // is being flushed; nil: none
	clean []*table // were flushed, newest first: reads of what they hold need not ask Pebble
	now   func() time.Time
	seq   uint64 // of the last batch
	// Of Rest: whether a read found something in clean since the last one, and seq as of then.
	cleanRead atomic.Bool
	restSeq   uint64
	tidier    tidier
	open      int // open snapshots, and the newest of them
	keep      uint64

	logBytes int           // committed to Pebble since mem was begun
	immLog   int           // committed to Pebble while imm took the writes
	retryAt  time.Time     // when a flush is begun again that found the disk full
	uncut    int           // groups of the last flush whose logs are not cut yet
	rotate   bool          // most of them are: the memtable should end now
	idle     chan struct{} // closed when no flush is under way; nil: none is
	flushes  uint64        // begun
	full     error         // why imm was left in memory: the disk is full; nil: it was not
	closing  bool          // no flush begins any more

	// flushMu is held while the applied side in Pebble changes by another way than
	// a batch: it keeps a flush from bringing back what was taken out. It is taken
	// before mu.
	flushMu sync.Mutex
	running sync.WaitGroup
}

// Flushed says through which index the state of a group is in tables and durable.
// Entries up to there are not needed as redo any more.
type Flushed struct {
	Shard raft.ShardID
	Index raft.Index
}

// DefersApply reports whether the applied side is kept in memory between flushes:
// then entries may be truncated only as far as Engine.OnFlush has told.
func (e *Engine) DefersApply() bool { return e.def != nil }

// OnFlush has f told after each flush how far the groups in it are durable; n
// counts the flushes. It is called on a goroutine of the engine's, or within a
// commit (FlushInline), and must not block.
func (e *Engine) OnFlush(f func(n uint64, groups []Flushed)) { e.onFlush.Store(&f) }

// NextFlush returns the number of the first flush that will hold what is committed
// from now on.
func (e *Engine) NextFlush() uint64 {
	if e.def == nil {
		return 0
	}
	e.def.mu.RLock()
	defer e.def.mu.RUnlock()
	return e.def.flushes + 1
}

// deferrable reports whether a raw key belongs to the applied side.
func deferrable(key []byte) bool {
	return len(key) > 0 && (key[0] == prefixApplied || key[0] == prefixData)
}

// snapshotLocked opens a snapshot of the tables. Called with mu held.
func (d *deferred) snapshotLocked() uint64 {
	d.open++
	d.keep = max(d.keep, d.seq)
	return d.seq
}

func (d *deferred) closeSnapshot() {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.open--; d.open == 0 {
		d.keep = 0
	}
}

// get looks a raw key up in memory, and appends its value to dst.
func (d *deferred) get(key, dst []byte) ([]byte, entryKind) {
	d.mu.RLock()
	defer d.mu.RUnlock()
	return d.getLocked(key, dst)
}

func (d *deferred) getLocked(key, dst []byte) ([]byte, entryKind) {
	kind, val := d.mem.get(key)
	if kind == entryNone && d.imm != nil {
		kind, val = d.imm.get(key)
	}
	for i := 0; kind == entryNone && i < len(d.clean); i++ {
		if kind, val = d.clean[i].get(key); kind != entryNone && !d.cleanRead.Load() { // else nothing is written, and no processor takes the line from others
			d.cleanRead.Store(true)
		}
	}
	if kind == entrySet {
		dst = append(dst, val...)
	}
	return dst, kind
}

// retireLocked ends a flush of imm: what it holds is in Pebble now. It stays to be
// read, and for that older tables go until no more than room bytes are kept. Newer
// writes are in newer tables, which are asked first; and whatever else changes the
// applied side in Pebble drops what is kept (takeLocked). Called with mu held.
func (d *deferred) retireLocked(room int) {
	var kept []*table
	for _, t := range append([]*table{d.imm}, d.clean...) {
		if room -= t.size(); room < 0 && !mutants.On("GV5") {
			break
		}
		kept = append(kept, t)
	}
	d.clean, d.imm, d.immLog = kept, nil, 0
}

// groupSpans are the raw spans of the applied side of a group.
func groupSpans(desc *raft.Descriptor) [2]pebble.KeyRange {
	lower, upper := DataSpan(desc.Keyspace, desc.Start, desc.End)
	sp := StatePrefix(desc.Shard)
	return [2]pebble.KeyRange{{Start: sp, End: PrefixEnd(sp)}, {Start: lower, End: upper}}
}

// takeLocked takes spans out of memory. Called with flushMu and mu held.
func (d *deferred) takeLocked(spans ...pebble.KeyRange) {
	if len(spans) == 0 {
		return
	}
	d.seq++
	if !mutants.On("J4c") {
		d.clean = nil
	}
	for _, sp := range spans {
		if !mutants.On("J4b") {
			d.mem.take(d.seq, d.keep, sp.Start, sp.End)
		}
		if d.imm != nil && !mutants.On("J4") {
			d.imm.take(d.seq, d.keep, sp.Start, sp.End)
		}
	}
}

// writeThrough adds everything that memory holds of a group to pb: older tables
// first. Called with flushMu held.
func (d *deferred) writeThrough(pb *pebble.Batch, desc *raft.Descriptor) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	for _, t := range []*table{d.imm, d.mem} {
		if t == nil {
			continue
		}
		for _, sp := range groupSpans(desc) {
			for _, r := range t.ranges {
				start, end := maxKey(r.start, sp.Start), minKey(r.end, sp.End)
				if bytes.Compare(start, end) < 0 {
					if err := pb.DeleteRange(start, end, nil); err != nil {
						return err
					}
				}
			}
			var err error
			t.each(sp.Start, sp.End, func(r keyRef) {
				_, _, kind, val := t.version(t.newest(r))
				switch kind {
				case entrySet:
					err = errors.Join(err, pb.Set(t.key(r), val, nil))
				case entryDelete:
					err = errors.Join(err, pb.Delete(t.key(r), nil))
				}
			})
			if err != nil {
				return err
			}
		}
	}
	return nil
}

// writeThrough moves the groups whose descriptors the batch writes from memory and
// from the part for memory to Pebble's part. Called with flushMu held.
func (b *Batch) writeThrough() error {
	spans := b.throughSpans()
	before := b.b.Len()
	for i := range b.through {
		if err := b.e.def.writeThrough(b.b, &b.through[i]); err != nil {
			return err
		}
	}
	b.e.stats.through.Add(uint64(b.b.Len() - before))
	return eachOp(b.d.Repr(), func(kind pebble.InternalKeyKind, key, val []byte) error {
		if !within(spans, key) {
			return nil
		}
		switch kind {
		case pebble.InternalKeyKindSet:
			return b.b.Set(key, val, nil)
		case pebble.InternalKeyKindDelete:
			return b.b.Delete(key, nil)
		case pebble.InternalKeyKindRangeDelete: // within one group, as all operations are
			return b.b.DeleteRange(key, val, nil)
		}
		return nil
	})
}

// throughSpans returns the spans of the groups in through, which are disjoint, in
// order.
func (b *Batch) throughSpans() (spans []pebble.KeyRange) {
	for i := range b.through {
		sp := groupSpans(&b.through[i])
		spans = append(spans, sp[:]...)
	}
	slices.SortFunc(spans, func(a, b pebble.KeyRange) int { return bytes.Compare(a.Start, b.Start) })
	return spans
}

// within reports whether key is in one of spans, which are disjoint and in order.
func within(spans []pebble.KeyRange, key []byte) bool {
	i := sort.Search(len(spans), func(i int) bool { return bytes.Compare(spans[i].Start, key) > 0 })
	return i > 0 && bytes.Compare(key, spans[i-1].End) < 0
}

// eachOp calls f with the operations of a batch.
func eachOp(repr []byte, f func(kind pebble.InternalKeyKind, key, val []byte) error) error {
	if len(repr) <= batchrepr.HeaderLen {
		return nil
	}
	for r := batchrepr.Reader(repr[batchrepr.HeaderLen:]); len(r) > 0; {
		kind, key, val, ok, err := r.Next()
		if err != nil || !ok {
			panic(fmt.Sprintf("engine: damaged batch: %v", err)) // built by this package
		}
		if err := f(kind, key, val); err != nil {
			return err
		}
	}
	return nil
}

// applyBatch puts a batch that Pebble has committed into memory.
func (d *deferred) applyBatch(b *Batch) {
	if len(b.through) == 0 {
		d.mu.Lock()
		defer d.mu.Unlock()
	}
	d.logBytes += b.b.Len()
	if d.uncut > 0 && len(b.cuts) > 0 {
		if d.uncut -= len(b.cuts); d.uncut <= 0 {
			d.rotate = true
		}
	}
	spans := b.throughSpans()
	d.takeLocked(spans...)
	d.applyLocked(b.d.Repr(), spans)
}

func maxKey(a, b []byte) []byte {
	if bytes.Compare(a, b) < 0 {
		return b
	}
	return a
}

func minKey(a, b []byte) []byte {
	if bytes.Compare(a, b) < 0 {
		return a
	}
	return b
}

// applyLocked puts the operations of a batch into memory, but for those in skip,
// which went to Pebble. Called with mu held.
func (d *deferred) applyLocked(repr []byte, skip []pebble.KeyRange) {
	d.seq++
	if d.mem.empty() {
		d.mem.born = d.now()
	}
	var some [16]tableOp
	n := 0
	flush := func() {
		d.mem.putAll(d.seq, d.keep, some[:n])
		n = 0
	}
	_ = eachOp(repr, func(kind pebble.InternalKeyKind, key, val []byte) error {
		if len(skip) > 0 && within(skip, key) {
			return nil
		}
		switch kind {
		case pebble.InternalKeyKindSet:
			some[n] = tableOp{kind: entrySet, key: key, val: val}
			n++
		case pebble.InternalKeyKindDelete:
			some[n] = tableOp{kind: entryDelete, key: key}
			n++
		case pebble.InternalKeyKindRangeDelete:
			flush()
			d.mem.deleteRange(d.seq, d.keep, key, val)
		}
		if n == len(some) {
			flush()
		}
		return nil
	})
	flush()
}

// maxRanges is how many range deletions memory takes before a flush: each read that
// finds no point looks at all of them.
const maxRanges = 512

// room begins a flush when memory or log is full, and waits for one when both
// tables are. It is called without any lock, before a commit.
func (e *Engine) room() {
	d := e.def
	for {
		d.mu.RLock()
		bytes, log, idle, rotate := d.mem.size(), d.logBytes, d.idle, d.rotate
		all, allLog, ranges := bytes, log+d.immLog, len(d.mem.ranges)
		old := !d.mem.empty() && e.opts.Now().Sub(d.mem.born) >= flushAge
		wait := time.Until(d.retryAt)
		if d.imm != nil {
			all += d.imm.size()
		}
		d.mu.RUnlock()
		if rotate {
			e.rotate()
		}
		limit, logLimit := int(e.opts.DeferBytes), int(e.opts.DeferLogBytes)
		if bytes < limit && log < logLimit && ranges < maxRanges && !old {
			return
		}
		if e.failed.Load() != nil || e.closed.Load() {
			return
		}
		full := idle == nil && wait > 0 && !e.opts.FlushInline
		if idle == nil && !full {
			e.startFlush()
			return
		}
		if all < 2*limit && allLog < int(e.opts.DeferLogLimit) && ranges < 2*maxRanges {
			return
		}
		e.stats.stalls.Add(1)
		e.stats.stalled.Store(true)
		if full {
			t := time.NewTimer(min(wait, fullPause))
			select {
			case <-t.C:
			case <-e.down:
			}
			t.Stop()
		} else {
			select {
			case <-idle:
			case <-e.down:
			}
		}
		e.stats.stalled.Store(false)
	}
}

// rotate ends the memtable in which the log records up to the last flush are, now
// that the logs are cut behind it: Pebble writes none of them to a table then. Were it
// left to fill up, records that nobody deleted yet would be in it.
func (e *Engine) rotate() {
	d := e.def
	if !e.journal.swept() {
		return // the next commit will see to it
	}
	d.mu.Lock()
	due := d.rotate && !d.closing
	d.rotate = false
	if due {
		d.running.Add(1)
	}
	d.mu.Unlock()
	if !due {
		return
	}
	run := func() {
		defer d.running.Done()
		defer func() {
			if p := recover(); p != nil {
				e.fail(fmt.Errorf("rotate: %v", p))
			}
		}()
		if e.usable() != nil || e.settleFlushed() != nil || e.memBytes.Load() < e.opts.MemTableBytes/4 {
			return
		}
		if _, err := e.db.AsyncFlush(); err != nil {
			e.fail(fmt.Errorf("rotate: %w", err))
		}
	}
	if e.opts.FlushInline {
		run()
		return
	}
	go run()
}

// startFlush begins a flush unless one is under way. It returns a channel that is
// closed when it has ended (also by a failure).
func (e *Engine) startFlush() <-chan struct{} {
	d := e.def
	d.mu.Lock()
	if d.idle != nil {
		defer d.mu.Unlock()
		return d.idle
	}
	done := make(chan struct{})
	left := d.imm != nil // by a flush that failed, or found the disk full
	if d.closing || left && d.full == nil || !left && d.mem.empty() {
		d.logBytes = 0
		d.mu.Unlock()
		close(done)
		return done
	}
	d.idle = done
	d.mu.Unlock()
	run := func() {
		defer close(done)
		if !e.opts.FlushInline {
			defer flushTurn.give(flushTurn.take(e))
		}
		e.journal.flushBegun()
		d.mu.Lock()
		if !left {
			d.flushes++
			d.imm, d.mem = d.mem, newTable(e.opts.Now())
			d.immLog, d.logBytes = d.logBytes, 0
		}
		n := d.flushes
		d.mu.Unlock()
		defer func() {
			if p := recover(); p != nil { // of Pebble, or on damaged memory
				e.fail(fmt.Errorf("flush: %v", p))
			}
		}()
		groups, err := e.flushTable()
		d.mu.Lock()
		d.full = nil
		if err == nil {
			d.retireLocked(int(e.opts.DeferBytes))
		} else if errors.Is(err, syscall.ENOSPC) {
			d.full, d.retryAt = err, time.Now().Add(fullPause)
		}
		d.idle = nil
		d.uncut = min(len(groups), max(1, len(groups)*9/10)) // some may be held back by a peer
		d.mu.Unlock()
		if f := e.onFlush.Load(); err == nil && len(groups) > 0 && f != nil {
			(*f)(n, groups)
		}
	}
	if e.opts.FlushInline {
		run()
		return done
	}
	d.running.Add(1)
	go func() {
		defer d.running.Done()
		run()
	}()
	return done
}

// flushAll brings everything that was committed before the call into tables. An
// error means that the store has failed, or that the disk is full.
func (e *Engine) flushAll() error {
	if e.def == nil {
		return nil
	}
	e.hurry.Add(1)
	defer e.hurry.Add(-1)
	for range 2 { // one may be under way that began too early
		select {
		case <-e.startFlush():
		case <-e.down:
		}
		if f := e.failed.Load(); f != nil {
			return f.err
		}
		e.def.mu.RLock()
		full := e.def.full
		e.def.mu.RUnlock()
		if full != nil {
			return full
		}
	}
	return nil
}

// FlushAside brings everything that was committed before the call from memory into
// tables, beside the caller, and calls done once when that has ended: also when the
// flush failed, the disk is full or the store is closed. done must not block.
func (e *Engine) FlushAside(done func()) {
	d := e.def
	if d == nil {
		done()
		return
	}
	d.mu.Lock()
	due := !d.closing
	if due {
		d.running.Add(1)
	}
	d.mu.Unlock()
	if !due {
		done()
		return
	}
	go func() {
		defer done()
		defer d.running.Done()
		_ = e.flushAll() // what failed is known to the store
	}()
}

// flushTable writes d.imm to tables and ingests them. It returns through which index
// the groups in it are durable now.
func (e *Engine) flushTable() ([]Flushed, error) {
	// J2.
	if !mutants.On("J2") {
		if err := e.syncLog(); err != nil {
			return nil, err
		}
	}
	for try := 0; ; try++ {
		if f := e.failed.Load(); f != nil {
			return nil, f.err
		}
		groups, ok, err := e.flushOnce(try >= 2)
		if errors.Is(err, syscall.ENOSPC) {
			e.onFull(err)
			return nil, err // a later commit tries again
		}
		if err != nil {
			return nil, e.fail(fmt.Errorf("flush: %w", err))
		}
		if ok {
			e.stats.flushes.Add(1)
			return groups, nil
		}
	}
}

// flushOnce is flushTable, which reports false if something was taken out of d.imm
// meanwhile. alone keeps others from that: they wait for this flush, which else might
// never end while many groups change their replicas.
func (e *Engine) flushOnce(alone bool) (groups []Flushed, ok bool, err error) {
	if alone {
		e.def.flushMu.Lock()
		defer e.def.flushMu.Unlock()
		e.hurry.Add(1)
		defer e.hurry.Add(-1)
	}
	dir := e.fs.PathJoin(e.StagingDir(), fmt.Sprintf("install-flush-%d-%d", e.bootEpoch, e.seq.Add(1)))
	defer func() { _ = e.fs.RemoveAll(dir) }()
	groups, paths, taken, err := e.buildTables(dir)
	if err != nil {
		return nil, false, err
	}
	// Whoever waits for the next step waits for the end of this.
	e.hurry.Add(1)
	defer e.hurry.Add(-1)
	if err := e.flushThrough(); err != nil {
		return nil, false, err
	}
	if !alone {
		e.def.flushMu.Lock()
		defer e.def.flushMu.Unlock()
	}
	ok, err = e.ingestTables(paths, taken)
	return groups, ok, err
}

// flushThrough has the memtables flushed in which there may be writes to the applied
// side. Pebble ingests no table over them, and would wait for that flush in the midst
// of its commits, none of which would end meanwhile: 10 s where processors are full.
func (e *Engine) flushThrough() error {
	if e.opts.FlushInline || !e.through.Swap(false) {
		return nil
	}
	began := time.Now().UnixNano()
	done, err := e.db.AsyncFlush()
	if err != nil {
		return err
	}
	tick := time.NewTicker(fullPause)
	defer tick.Stop()
	for {
		select {
		case <-done:
			return nil
		case <-e.down:
			return e.failed.Load().err
		case <-tick.C: // Pebble tries for ever
			if e.fullTold.Load() > began {
				e.through.Store(true)
				return syscall.ENOSPC
			}
		}
	}
}

// ingestTables makes tables of d.imm part of the store, unless something was taken
// out of d.imm since they were written. Called with flushMu held.
func (e *Engine) ingestTables(paths []string, taken int) (ok bool, err error) {
	d := e.def
	d.mu.RLock()
	ok = d.imm.taken == taken
	d.mu.RUnlock()
	if !ok || len(paths) == 0 {
		return ok, nil
	}
	if mutants.On("J1") { // the data first, then what says through where it goes
		for i := range paths {
			if err := e.db.Ingest(context.Background(), paths[len(paths)-1-i:len(paths)-i]); err != nil {
				return false, err
			}
		}
		return true, nil
	}
	if err := e.db.Ingest(context.Background(), paths); err != nil {
		return false, err // nothing of it counts
	}
	return true, nil
}

// maxFlushTable bounds a table of a flush.
const maxFlushTable = 32 << 20

// buildTables writes d.imm, which does not take writes any more, to tables in dir:
// one or more per prefix.
func (e *Engine) buildTables(dir string) (groups []Flushed, paths []string, taken int, err error) {
	d := e.def
	d.mu.RLock()
	t := d.imm
	taken = t.taken
	ranges := slices.Clone(t.ranges)
	keys := *t // its keys do not change any more, so they are put in order without the lock
	keys.lanes = make(map[uint64]*lane, len(t.lanes))
	for id, l := range t.lanes {
		keys.lanes[id] = &lane{tail: slices.Clone(l.tail), runs: slices.Clone(l.runs)}
	}
	d.mu.RUnlock()
	polite := e.politeness(choreDeferred)
	keys.pause = polite.pause
	run := keys.oneRun()
	if err := mkdirSynced(e.fs, dir); err != nil {
		return nil, nil, 0, err
	}
	type entry struct {
		key, val []byte
		kind     entryKind
	}
	var now []entry
	var w *SSTWriter
	defer func() {
		if w != nil {
			w.Abort()
		}
	}()
	finish := func() error {
		if w == nil {
			return nil
		}
		done := w
		w = nil
		_, err := done.Finish()
		return err
	}
	open := func() error {
		path := e.fs.PathJoin(dir, fmt.Sprintf("%d.sst", len(paths)))
		if w, err = e.newTableWriter(path, flushLevel, choreDeferred); err != nil {
			return err
		}
		paths = append(paths, path)
		return nil
	}
	for _, prefix := range []byte{prefixApplied, prefixData} {
		end := keys.search(run, []byte{prefix + 1})
		mine := run[keys.search(run, []byte{prefix}):end]
		dels := spansOf(ranges, prefix)
		if len(dels) > 0 {
			if err := open(); err != nil {
				return nil, nil, 0, err
			}
			for _, r := range dels {
				if err := w.DeleteRange(r.Start, r.End); err != nil {
					return nil, nil, 0, err
				}
			}
		}
		// Some keys at a time, so that nobody is kept waiting, and written without the
		// lock: whoever holds it may lose the processor for as long as others have work.
		for len(mine) > 0 {
			some := mine[:min(256, len(mine))]
			mine = mine[len(some):]
			now = now[:0]
			d.mu.RLock()
			for _, r := range some {
				if _, _, kind, val := t.version(t.newest(r)); kind != entryNone {
					now = append(now, entry{t.key(r), val, kind}) // bytes that no longer change: only take touches t
				}
			}
			d.mu.RUnlock()
			for _, en := range now {
				key, kind, val := en.key, en.kind, en.val
				if w == nil {
					err = open()
				}
				if err == nil && kind == entryDelete {
					err = w.w.Delete(key)
				} else if err == nil {
					err = w.Set(key, val)
				}
				if err != nil {
					break
				}
				if prefix == prefixApplied && len(key) == groupKeyLen+1 && key[groupKeyLen] == suffixApplied && kind == entrySet {
					if as, err := raft.DecodeAppliedState(val); err == nil {
						groups = append(groups, Flushed{raft.ShardID(binary.BigEndian.Uint64(key[1:])), as.Applied})
					}
				}
			}
			// Range deletions of a table lie over all points of its prefix.
			if err == nil && w != nil && len(dels) == 0 && w.EstimatedSize() >= maxFlushTable {
				err = finish()
			}
			if err != nil {
				return nil, nil, 0, err
			}
		}
		if err := finish(); err != nil {
			return nil, nil, 0, err
		}
	}
	return groups, paths, taken, nil
}

// flushLevel is the level whose options the tables of a flush are written with:
// they are merged with others soon.
const flushLevel = 0

// spansOf returns the range deletions of one prefix as disjoint spans, ascending.
func spansOf(ranges []tableRange, prefix byte) []pebble.KeyRange {
	var out []pebble.KeyRange
	for _, r := range ranges {
		if len(r.start) > 0 && r.start[0] == prefix {
			out = append(out, pebble.KeyRange{Start: r.start, End: r.end})
		}
	}
	slices.SortFunc(out, func(a, b pebble.KeyRange) int { return bytes.Compare(a.Start, b.Start) })
	n := 0
	for _, r := range out {
		if n > 0 && bytes.Compare(r.Start, out[n-1].End) <= 0 {
			out[n-1].End = maxKey(out[n-1].End, r.End)
			continue
		}
		out[n] = r
		n++
	}
	return out[:n]
}

// flushAge is how long writes stay in memory alone if few follow.
const flushAge = 10 * time.Second

// flushIfOld begins a flush of what has been in memory for long, so that logs of
// idle groups are cut.
func (e *Engine) flushIfOld() {
	if e.def == nil {
		return
	}
	e.def.mu.RLock()
	old := !e.def.mem.empty() && e.opts.Now().Sub(e.def.mem.born) >= flushAge
	e.def.mu.RUnlock()
	if old {
		e.startFlush()
	}
}
