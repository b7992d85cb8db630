package engine

import (
	"math/bits"
	"sync/atomic"
	"time"
)

// Metrics are figures of the store. Counters count from Open.
type Metrics struct {
	DiskBytes      uint64 // all files of the store, old ones included
	LiveBytes      uint64 // tables in use
	WALBytes       uint64 // write-ahead logs in use
	BytesWritten   uint64 // log, flushes and compactions
	MemTableBytes  uint64
	MemTableCount  int64
	L0Sublevels    int32
	L0Files        int64
	CompactionDebt uint64
	Stalled        bool          // writes wait for flushes or compactions now
	Stalls         uint64        // how often they did
	SlowWrites     uint64        // disk operations that took longer than 5 s
	Misuse         uint64        // suspicious deletes that Pebble reported
	Batches        uint64        // committed batches
	Syncs          uint64        // synced batches
	FsyncP50       time.Duration // from commit to durable, bucket of about 20 %
	FsyncP99       time.Duration
	FsyncMax       time.Duration
	CacheHitRate   float64
	DeferredBytes  int64  // applied in memory, not in tables yet
	RedoBytes      int64  // of the write-ahead log since the last flush of those
	Flushes        uint64 // of what was applied in memory
	Resting        bool   // nothing was applied lately, and all that Engine.Rest does is done
	ThroughBytes   uint64 // applied in memory, and written through the log with a descriptor
}

// stats are the counters the engine keeps itself.
type stats struct {
	batches, syncs, stalls, slowWrites, misuse, flushes, settled, through atomic.Uint64
	stalled                                                               atomic.Bool
	maxNanos                                                              atomic.Int64
	buckets                                                               [64 * 4]atomic.Uint64
}

func (s *stats) now() time.Time { return time.Now() }

// bucket maps nanoseconds to a logarithmic scale of four steps per octave.
func bucket(d time.Duration) int {
	n := uint64(max(d, 1))
	exp := bits.Len64(n) - 1
	if exp < 2 {
		return exp * 4
	}
	return exp*4 + int(n>>(exp-2)&3)
}

// bucketTop returns the upper end of a bucket.
func bucketTop(b int) time.Duration {
	exp, step := b/4, b%4
	if exp < 2 {
		return time.Duration(uint64(2)<<exp - 1)
	}
	return time.Duration(uint64(5+step)<<(exp-2) - 1)
}

func (s *stats) noteSync(d time.Duration) {
	s.syncs.Add(1)
	s.buckets[bucket(d)].Add(1)
	for {
		m := s.maxNanos.Load()
		if int64(d) <= m || s.maxNanos.CompareAndSwap(m, int64(d)) {
			return
		}
	}
}

// quantile returns the upper end of the bucket that holds the q-quantile.
func (s *stats) quantile(q float64) time.Duration {
	var total uint64
	var counts [len(s.buckets)]uint64
	for i := range s.buckets {
		counts[i] = s.buckets[i].Load()
		total += counts[i]
	}
	if total == 0 {
		return 0
	}
	left := uint64(q * float64(total))
	for i, c := range counts {
		if c > left {
			return min(bucketTop(i), time.Duration(s.maxNanos.Load()))
		}
		left -= c
	}
	return time.Duration(s.maxNanos.Load())
}

// Metrics returns the figures of the store. It costs some tens of microseconds.
func (e *Engine) Metrics() Metrics {
	m := Metrics{
		Stalled: e.stats.stalled.Load(), Stalls: e.stats.stalls.Load(), SlowWrites: e.stats.slowWrites.Load(),
		Misuse: e.stats.misuse.Load(), Batches: e.stats.batches.Load(), Syncs: e.stats.syncs.Load(),
		FsyncP50: e.stats.quantile(0.50), FsyncP99: e.stats.quantile(0.99), FsyncMax: time.Duration(e.stats.maxNanos.Load()),
	}
	if e.enter() != nil {
		return m
	}
	defer e.leave()
	if d := e.def; d != nil {
		d.mu.RLock()
		m.DeferredBytes, m.RedoBytes = int64(d.mem.size()), int64(d.logBytes+d.immLog)
		if d.imm != nil {
			m.DeferredBytes += int64(d.imm.size())
		}
		d.mu.RUnlock()
		m.Flushes, m.ThroughBytes = e.stats.flushes.Load(), e.stats.through.Load()
	}
	p := e.db.Metrics()
	m.Resting = e.resting(p)
	m.DiskBytes = p.DiskSpaceUsage()
	m.LiveBytes = p.Table.Local.LiveSize
	m.WALBytes = p.WAL.PhysicalSize
	m.MemTableBytes, m.MemTableCount = p.MemTable.Size, p.MemTable.Count
	m.L0Sublevels, m.L0Files = p.Levels[0].Sublevels, p.Levels[0].TablesCount
	m.CompactionDebt = p.Compact.EstimatedDebt
	m.BytesWritten = p.WAL.BytesWritten
	for i := range p.Levels {
		m.BytesWritten += p.Levels[i].TableBytesFlushed + p.Levels[i].TableBytesCompacted
	}
	if n := p.BlockCache.Hits + p.BlockCache.Misses; n > 0 {
		m.CacheHitRate = float64(p.BlockCache.Hits) / float64(n)
	}
	return m
}

// DataSize estimates the bytes of the user keys [start, end) in tables.
func (e *Engine) DataSize(ks uint32, start, end []byte) (uint64, error) {
	lower, upper := DataSpan(ks, start, end)
	return e.diskUsage(lower, upper)
}

func (e *Engine) diskUsage(lower, upper []byte) (uint64, error) {
	if err := e.enter(); err != nil {
		return 0, err
	}
	defer e.leave()
	n, err := e.db.EstimateDiskUsage(lower, upper)
	return n, e.iterError(err)
}
