package engine

import (
	"time"
	"unsafe"

	"github.com/flotillakv/flotilla/internal/mutants"
)

// MemoryUse is what the store holds in memory, in bytes, by who holds it.
type MemoryUse struct {
	// BlockCache holds blocks of tables; of all stores that share it.
	BlockCache int64
	// MemTables are those of Pebble: the present one, those that wait to be flushed, one
	// that is kept to be used again, and those that an iterator or a view still reads.
	MemTables int64
	// Deferred is what was applied in memory: what is not in tables yet, and what is
	// kept of that for reads.
	Deferred int64
	// Batches were committed and are not durable yet.
	Batches int64
	// LogIndex is what is known of where the entries of the logs are.
	LogIndex int64
	// FileCache are open tables.
	FileCache int64
}

// Total returns the sum.
func (u MemoryUse) Total() int64 {
	return u.BlockCache + u.MemTables + u.Deferred + u.Batches + u.LogIndex + u.FileCache
}

// MemoryUse counts what the store holds in memory. It costs some tens of microseconds.
func (e *Engine) MemoryUse() (u MemoryUse) {
	u.Batches, u.LogIndex = e.batchBytes.Load(), e.journal.memory(time.Now())
	if d := e.def; d != nil {
		d.mu.RLock()
		u.Deferred = int64(d.mem.size())
		if d.imm != nil {
			u.Deferred += int64(d.imm.size())
		}
		for _, t := range d.clean {
			u.Deferred += int64(t.size())
		}
		d.mu.RUnlock()
	}
	if e.enter() != nil {
		return u
	}
	defer e.leave()
	p := e.db.Metrics()
	u.BlockCache, u.FileCache = p.BlockCache.Size, p.FileCache.Size
	u.MemTables = int64(p.MemTable.Size + p.MemTable.ZombieSize)
	return u
}

// Rest gives back memory that is of no use at rest: what was flushed and is kept for reads,
// if no read found anything there since the last call; and, if nothing was applied
// either, what is known of the logs that have no entries. What the store takes of its disk is made
// small then, too, on a goroutine of the store's (see tidy.go). Its owner calls it every few seconds.
func (e *Engine) Rest() {
	d := e.def
	if d == nil || mutants.On("GV8") {
		return
	}
	d.mu.Lock()
	still := d.seq == d.restSeq
	quiet := d.seq-d.restSeq <= restBatches && d.mem.empty() && d.imm == nil && d.idle == nil
	d.restSeq = d.seq
	if !d.cleanRead.Swap(false) {
		d.clean = nil
	}
	d.mu.Unlock()
	if still {
		e.journal.mu.Lock()
		e.journal.pruneNow()
		e.journal.mu.Unlock()
	}
	if quiet {
		e.tidy()
	}
}

// ReserveCache takes n bytes of the block cache for other purposes; less than before
// gives the rest back. Blocks beyond what is left are dropped. It does nothing to a
// cache that is shared with other stores. The memtables are part of the cache's size
// besides: what they take is not the cache's.
func (e *Engine) ReserveCache(n int64) {
	e.cacheMu.Lock()
	defer e.cacheMu.Unlock()
	if e.cache == nil || n == e.reserved {
		return
	}
	old := e.unreserve
	e.unreserve, e.reserved = e.cache.Reserve(int(n)), n
	if old != nil {
		old()
	}
}

// closeCache gives up the cache that belongs to this store alone.
func (e *Engine) closeCache() {
	e.cacheMu.Lock()
	defer e.cacheMu.Unlock()
	if e.cache != nil {
		e.cache.Unref()
		e.cache = nil
	}
}

// Memory of the journal is counted anew at most this often where many groups have
// entries with keys of their own.
const journalCountEvery = 5 * time.Second

// memory returns about what the journal holds in memory, in bytes.
func (j *journal) memory(now time.Time) int64 {
	j.mu.Lock()
	defer j.mu.Unlock()
	n := int64(len(j.recs))*int64(unsafe.Sizeof(recordMeta{})) + int64(len(j.groups))*2*int64(unsafe.Sizeof(groupLog{}))
	if len(j.recs) > 0 {
		n += int64(j.nextRun-j.recs[0].first) * int64(unsafe.Sizeof(run{}))
	}
	if now.Sub(j.countedAt) > journalCountEvery {
		j.countedAt, j.counted = now, 0
		if j.moved.Load() > 0 {
			for _, g := range j.groups {
				j.counted += 4 * int64(cap(g.sizes))
			}
		}
		if j.index != nil {
			for _, l := range j.index.groups {
				j.counted += int64(cap(*l)) * int64(unsafe.Sizeof(loc{}))
			}
		}
	}
	return n + j.counted
}
