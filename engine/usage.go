package engine

import (
	"cmp"
	"maps"
	"slices"
	"time"

	"github.com/flotillakv/flotilla/internal/mutants"
	"github.com/flotillakv/flotilla/multiraft/raft"
)

// LogUsage is how many bytes the Raft logs of a store take.
type LogUsage struct {
	// Records holds the entries of many groups each; a record counts whole as long as
	// one of its entries is needed.
	Records int64
	// Moved are entries with keys of their own: of groups whose logs are cut seldom.
	Moved int64
	// WAL are the write-ahead logs of what is not in tables yet: log records above all.
	// What is in Records or Moved and not in tables counts here once more, since it is
	// on the disk here, and will be there.
	WAL int64
}

// Total returns the sum.
func (u LogUsage) Total() int64 { return u.Records + u.Moved + u.WAL }

// LogBytes returns LogUsage().Total() from what is counted with each commit: some loads
// from memory. What has gone from the write-ahead log since LogUsage was last called is
// still in it.
func (e *Engine) LogBytes() int64 {
	return e.JournalBytes() + e.walBytes.Load()
}

// JournalBytes is LogBytes without the write-ahead log.
func (e *Engine) JournalBytes() int64 {
	if mutants.On("LB2") {
		return 0
	}
	return e.journal.bytes.Load() + e.journal.moved.Load()
}

// LogUsage looks at how much of the write-ahead log is in use, and returns how much the
// logs take now. It costs some tens of microseconds.
func (e *Engine) LogUsage() LogUsage {
	if e.enter() == nil {
		e.usageMu.Lock()
		was := e.walBytes.Load() // what is committed meanwhile comes on top
		e.walBytes.Add(int64(e.db.Metrics().WAL.Size) - was)
		e.usageMu.Unlock()
		e.leave()
	}
	return LogUsage{Records: e.journal.bytes.Load(), Moved: e.journal.moved.Load(), WAL: e.walBytes.Load()}
}

// CountLog counts the bytes of all log records and entries, keys included, by reading
// them (Records and Moved of LogUsage together), and looks at the write-ahead logs: what
// LogUsage should say, for tests and benchmarks.
func (e *Engine) CountLog() (logs, wal int64, err error) {
	if err := e.enter(); err != nil {
		return 0, 0, err
	}
	defer e.leave()
	for _, p := range []byte{prefixLog, prefixRecord} {
		err := e.eachRaw([]byte{p}, []byte{p + 1}, func(_ Key, v []byte) (bool, error) {
			logs += int64(logKeyLen + len(v))
			return true, nil
		})
		if err != nil {
			return 0, 0, err
		}
	}
	return logs, int64(e.db.Metrics().WAL.Size), nil
}

// GroupLog is how much log one group has.
type GroupLog struct {
	Shard raft.ShardID
	Bytes int64
}

// GroupLogs returns how many bytes of entries that count each group has, the largest
// first, ties by shard. It looks at all runs of the journal.
func (e *Engine) GroupLogs() []GroupLog {
	sizes := e.journal.groupSizes()
	out := make([]GroupLog, 0, len(sizes))
	for s, n := range sizes {
		out = append(out, GroupLog{s, n})
	}
	slices.SortFunc(out, func(a, b GroupLog) int { return cmp.Or(cmp.Compare(b.Bytes, a.Bytes), cmp.Compare(a.Shard, b.Shard)) })
	return out
}

// LogSize returns the bytes of the log of s, as of some seconds ago.
func (e *Engine) LogSize(s raft.ShardID) int64 {
	j := &e.journal
	now := e.opts.Now()
	j.mu.Lock()
	sizes := j.sizes
	if now.Sub(j.sizesAt) >= sizesFor {
		sizes = nil
	}
	j.mu.Unlock()
	if sizes == nil {
		sizes = j.groupSizes()
		j.mu.Lock()
		j.sizes, j.sizesAt = sizes, now
		j.mu.Unlock()
	}
	return sizes[s]
}

// sizesFor is how long LogSize remembers.
const sizesFor = 5 * time.Second

// groupSizes adds up the bytes of the groups' entries that count.
func (j *journal) groupSizes() map[raft.ShardID]int64 {
	j.mu.Lock()
	recs, head := slices.Clone(j.recs), j.head
	cuts := maps.Clone(j.groups)
	j.mu.Unlock() // what was written does not change any more
	sizes := make(map[raft.ShardID]int64)
	for i := range recs {
		mine := recs[i].runs
		for k := range mine {
			end := recs[i].bytes - 4
			if k+1 < len(mine) {
				end = mine[k+1].off
			}
			if g := cuts[mine[k].shard]; head+uint64(i) >= g.void && mine[k].last() > g.trunc {
				sizes[mine[k].shard] += int64(end - mine[k].off)
			}
		}
	}
	for s, g := range cuts {
		if g.moved > 0 {
			sizes[s] += g.moved
		}
	}
	return sizes
}

// ReclaimLog begins to bring what was applied to tables, if that is not under way: the
// log that is its redo can be cut then, and goes from the disk with its memtable.
func (e *Engine) ReclaimLog() {
	if e.def == nil || e.enter() != nil {
		return
	}
	defer e.leave()
	e.startFlush()
}
