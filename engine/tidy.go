package engine

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"github.com/cockroachdb/pebble/v2"

	"github.com/flotillakv/flotilla/internal/mutants"
)

// A store that comes to rest is made small, once (Engine.Rest): of replicas that sleep
// it holds little, but each of their records three or four times, in tables that lie over each
// other, in log records that are deleted, and in write-ahead logs that wait to be used again.
//
//	Q1  Nothing is done while batches are committed, or applied writes are in memory alone.
//	Q2  What is done is what Pebble does by itself under load: the memtable goes to
//	    tables, tables are merged, the log goes over to a new file. So a crash
//	    finds nothing new.
//	Q3  It is done again only after restBytes more were written to the log, and tables
//	    are merged only where at most five times what lies above the last level is written.
//	    A store at rest, which syncs empty records, does it every hour or less often.
const (
	// restBatches is how many batches may be committed between two calls of Rest to a
	// store that is at rest: a replica that wakes and falls asleep again.
	restBatches = 16
	// restBytes is what is not worth the work: of a log, and of tables.
	restBytes = 256 << 10
	// restMost is the largest part of the store that is merged as a whole.
	restMost = 256 << 20
	// restShare: tables are merged if those above the last level are at least this part of those in it.
	restShare = 4
)

// tidier is what is known of making the store small. Guarded by deferred.mu.
type tidier struct {
	running bool
	done    bool   // once since the opening
	written uint64 // to the log when it was done last, in bytes
}

// resting reports whether all that Rest does is done.
func (e *Engine) resting(m *pebble.Metrics) bool {
	d := e.def
	if d == nil {
		return false
	}
	d.mu.RLock()
	defer d.mu.RUnlock()
	t := &d.tidier
	return t.done && !t.running && d.seq-d.restSeq <= restBatches && m.WAL.BytesWritten-t.written < uint64(e.opts.restBytes)
}

// tidy begins to make the store small if that is due. The caller has seen that it is at rest (Q1).
func (e *Engine) tidy() {
	d := e.def
	if e.opts.FlushInline || e.enter() != nil {
		return
	}
	defer e.leave()
	written := e.db.Metrics().WAL.BytesWritten
	d.mu.Lock()
	defer d.mu.Unlock()
	t := &d.tidier
	if t.running || d.closing || t.done && written-t.written < uint64(e.opts.restBytes) {
		return
	}
	t.running = true
	d.running.Add(1)
	go func() {
		defer d.running.Done()
		err := e.tidyUp()
		var end uint64
		if e.usable() == nil {
			end = e.db.Metrics().WAL.BytesWritten
		}
		d.mu.Lock()
		// After an error, too: who comes next does it, or it is not worth it.
		t.running, t.done, t.written = false, true, end
		d.mu.Unlock()
		if err != nil && e.usable() == nil {
			e.log.Warn("the store could not be made small", "err", err)
		}
	}()
}

// tidyUp makes the store small. It ends early when batches are committed again, and when the
// store is closed or fails. An error means that some of it was not done; the store is as good as before.
func (e *Engine) tidyUp() (err error) {
	defer func() {
		if p := recover(); p != nil {
			err = e.fail(fmt.Errorf("make the store small: %v", p))
		}
	}()
	if e.full.Load() || e.Space().State == SpaceCritical {
		return nil // a new log could find no room, which would stop the node
	}
	e.def.mu.RLock()
	began := e.def.seq
	e.def.mu.RUnlock()
	still := func() bool {
		e.def.mu.RLock()
		defer e.def.mu.RUnlock()
		return e.def.seq-began <= restBatches
	}
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	defer context.AfterFunc(e.ending, cancel)()
	// Pebble keeps logs to write over them, which is faster than to make new ones, and takes
	// the room of a memtable for each of them ahead. At rest that is most of what the store
	// takes. It uses the oldest first, so when the log went over to a new file as often
	// as there are old ones, all of them were replaced.
	e.dropLogs.Add(1)
	defer e.dropLogs.Add(-1)
	if logs, err := e.logBlocks(); err != nil {
		return err
	} else if logs >= e.opts.restBytes {
		if err := e.endMemtable(ctx); err != nil {
			return err
		}
	}
	for _, sp := range [...]pebble.KeyRange{{Start: []byte{prefixStore}, End: []byte{prefixData}}, {Start: []byte{prefixData}, End: []byte{prefixData + 1}}} {
		levels, err := e.levelSizes(sp)
		if err != nil {
			return err
		}
		if !mergeDue(levels, e.opts.restBytes) || mutants.On("GV9") || !still() {
			continue
		}
		if err := e.db.Compact(ctx, sp.Start, sp.End, false); err != nil {
			return err
		}
	}
	for range memTables + 1 {
		logs, err := e.logBlocks()
		if err != nil {
			return err
		}
		if logs < e.opts.restBytes || !still() {
			break
		}
		if err := e.endMemtable(ctx); err != nil {
			return err
		}
	}
	return nil
}

// endMemtable brings the memtable to a table, and lets the log go over to another file.
func (e *Engine) endMemtable(ctx context.Context) error {
	if err := e.usable(); err != nil {
		return err
	}
	done, err := e.db.AsyncFlush()
	if err != nil {
		return err
	}
	select {
	case <-done:
		return nil
	case <-ctx.Done(): // Pebble tries for ever where there is no space
		return ctx.Err()
	}
}

// logBlocks returns what the files of the write-ahead log take of the disk, in bytes.
func (e *Engine) logBlocks() (n int64, err error) {
	dir := e.disk.PathJoin(e.dir, dbName)
	names, err := e.disk.List(dir)
	if err != nil {
		return 0, err
	}
	for _, name := range names {
		if !strings.HasSuffix(name, ".log") {
			continue
		}
		info, err := e.disk.Stat(e.disk.PathJoin(dir, name))
		if err == nil {
			n += allocated(info)
		} else if !isNotExist(err) {
			return 0, err
		}
	}
	return n, nil
}

// levelSizes returns the bytes of the tables that overlap a raw span, by level.
func (e *Engine) levelSizes(sp pebble.KeyRange) (sizes []int64, err error) {
	tables, err := e.db.SSTables(pebble.WithKeyRangeFilter(sp.Start, sp.End))
	if err != nil {
		return nil, errors.Join(err, e.iterError(err))
	}
	sizes = make([]int64, len(tables))
	for level := range tables {
		for i := range tables[level] {
			sizes[level] += int64(tables[level][i].Size)
		}
	}
	return sizes, nil
}

// mergeDue reports whether a part of the store, whose tables take so many bytes of each
// level, is worth to be merged at rest (Q3).
func mergeDue(levels []int64, least int64) bool {
	last, above := int64(0), int64(0)
	for i := len(levels) - 1; i >= 0; i-- {
		if i > 0 && last == 0 {
			last = levels[i]
		} else {
			above += levels[i]
		}
	}
	return above >= least && above >= last/restShare && above+last <= restMost
}
