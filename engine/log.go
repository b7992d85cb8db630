package engine

import (
	"errors"
	"fmt"
	"slices"
	"sync"

	"github.com/cockroachdb/pebble/v2"

	"github.com/flotillakv/flotilla/internal/mutants"
	"github.com/flotillakv/flotilla/multiraft/raft"
)

// The longest span of log entries that is deleted key by key. A range deletion makes
// every later read of the memtable sort all of them again, so it is for the rare long
// spans only. Where applying is deferred, logs are cut rarely and far: each flush is
// followed by one cut of each log, and the memtable ends with it (Engine.rotate).
const (
	pointDeletes         = 4096
	pointDeletesDeferred = 64
)

// Append writes entries, which are contiguous, to the log of s. Entries
// [ents[0].Index, oldLast] that exist are deleted first, so that each key has
// exactly one SET. The values are copied.
func (b *Batch) Append(s raft.ShardID, oldLast raft.Index, ents []raft.Entry) {
	if len(ents) == 0 {
		return
	}
	first := ents[0].Index
	if oldLast >= first && !mutants.On("B17b") {
		b.deleteLog(s, first-1, oldLast)
	}
	for i := range ents {
		op := b.b.SetDeferred(logKeyLen, len(ents[i].Value))
		putLogKey(op.Key, s, ents[i].Index)
		copy(op.Value, ents[i].Value)
	}
	b.noteSets(s, first)
}

// Truncate deletes the entries (from, to] of the log of s; term is that of to. The
// applied state with TruncIndex = to belongs into the same batch. Where applying is
// deferred, to must not be above what a flush has made durable (J3).
func (b *Batch) Truncate(s raft.ShardID, from, to raft.Index, term raft.Term) {
	if to <= from {
		return
	}
	b.deleteLog(s, from, to)
	b.cuts++
	if b.e.def != nil && !mutants.On("E4") {
		b.key = truncKey(b.key[:0], s)
		b.val = encodeTrunc(b.val[:0], to, term)
		b.set(b.key, b.val)
	}
}

// deleteLog deletes (from, to]. SINGLEDEL removes a key's one SET together
// with itself already in the memtable, but is right only for a key that was
// set exactly once since it was last deleted. Of that the engine is sure for
// indexes that this process wrote; all others (from before a restart, or from
// a snapshot) get a plain delete.
func (b *Batch) deleteLog(s raft.ShardID, from, to raft.Index) {
	if to-from > b.e.opts.PointDeletes {
		op := b.b.DeleteRangeDeferred(logKeyLen, logKeyLen)
		putLogKey(op.Key, s, from+1)
		putLogKey(op.Value, s, to+1)
		_ = op.Finish()
		return
	}
	low := b.e.ownFrom(s)
	if mutants.On("B0-E3") {
		low = 1
	}
	for i := from + 1; i <= to; i++ {
		var op *pebble.DeferredBatchOp
		if low != 0 && i >= low {
			op = b.b.SingleDeleteDeferred(logKeyLen)
		} else {
			op = b.b.DeleteDeferred(logKeyLen)
		}
		putLogKey(op.Key, s, i)
	}
}

// Which log entries this process wrote: per group the lowest index from which
// on every entry of the log is its own. An append that overwrites a suffix
// rewrites everything behind it, so one number per group says it all.
const trackStripes = 32

type trackStripe struct {
	sync.Mutex
	low map[raft.ShardID]raft.Index
	_   [40]byte // one cache line each
}

func (e *Engine) stripe(s raft.ShardID) *trackStripe { return &e.tracks[s%trackStripes] }

func (e *Engine) ownFrom(s raft.ShardID) raft.Index {
	t := e.stripe(s)
	t.Lock()
	defer t.Unlock()
	return t.low[s]
}

// noteSets records that the log of s is this process's own from first on. The
// batch remembers how it was, for the case that it is never committed.
func (b *Batch) noteSets(s raft.ShardID, first raft.Index) {
	t := b.e.stripe(s)
	t.Lock()
	defer t.Unlock()
	old := t.low[s]
	if old != 0 && old <= first {
		return
	}
	if t.low == nil {
		t.low = make(map[raft.ShardID]raft.Index)
	}
	t.low[s] = first
	b.undo = append(b.undo, trackUndo{s, old, b.b.Len()})
}

// trackUndo is an entry of the undo list of a batch: before the write at
// offset at, the group was the process's own from low on.
type trackUndo struct {
	shard raft.ShardID
	low   raft.Index
	at    int
}

// undoTracks takes back what was noted for writes behind offset mark.
func (b *Batch) undoTracks(mark int) {
	for n := len(b.undo); n > 0 && b.undo[n-1].at > mark; n-- {
		u := b.undo[n-1]
		b.undo = b.undo[:n-1]
		b.e.setOwnFrom(u.shard, u.low)
	}
}

// setOwnFrom sets the mark of s; zero forgets it (nothing is known to be the
// process's own, everything gets plain deletes).
func (e *Engine) setOwnFrom(s raft.ShardID, low raft.Index) {
	t := e.stripe(s)
	t.Lock()
	defer t.Unlock()
	if low == 0 {
		delete(t.low, s)
		return
	}
	if t.low == nil {
		t.low = make(map[raft.ShardID]raft.Index)
	}
	t.low[s] = low
}

// Entries appends the entries [lo, hi] of the log of s to dst, at least one,
// and no more than fit into maxBytes (values; zero: no bound). Checksums are
// verified. It fails with ErrCompacted if lo is truncated or not there.
func (e *Engine) Entries(dst []raft.Entry, s raft.ShardID, lo, hi raft.Index, maxBytes int) ([]raft.Entry, error) {
	if err := e.enter(); err != nil {
		return dst, err
	}
	defer e.leave()
	if lo == 0 || hi < lo {
		return dst, fmt.Errorf("engine: entries [%d, %d] of shard %d: no such span", lo, hi, s)
	}
	var kb [2][logKeyLen]byte
	putLogKey(kb[0][:], s, lo)
	putLogKey(kb[1][:], s, hi+1)
	it, err := e.newRawIter(kb[0][:], kb[1][:])
	if err != nil {
		return dst, err
	}
	defer it.Close()
	want, bytes := lo, 0
	for ok := it.First(); ok; ok = it.Next() {
		k, err := ParseKey(it.Key())
		if err != nil {
			return dst, err
		}
		if k.Index != want {
			break
		}
		v, err := it.ValueAndErr()
		if err != nil {
			return dst, e.iterError(err)
		}
		if bytes += len(v); maxBytes > 0 && bytes > maxBytes && want > lo {
			return dst, nil
		}
		en, err := raft.DecodeEntry(k.Index, slices.Clone(v))
		if err != nil {
			return dst, &GroupError{Shard: s, Index: k.Index, Err: err}
		}
		dst = append(dst, en)
		want++
	}
	if err := it.Error(); err != nil {
		return dst, e.iterError(err)
	}
	if want == lo {
		return dst, fmt.Errorf("engine: entry %d of shard %d: %w", lo, s, ErrCompacted)
	}
	return dst, nil
}

// Term returns the term of entry i of the log of s; of the last truncated
// index as well. ErrCompacted: the entry is truncated, or not there.
func (e *Engine) Term(s raft.ShardID, i raft.Index) (raft.Term, error) {
	if err := e.enter(); err != nil {
		return 0, err
	}
	defer e.leave()
	var kb [logKeyLen]byte
	putLogKey(kb[:], s, i)
	v, c, err := e.db.Get(kb[:])
	if err == nil {
		t, _, err := raft.PeekEntry(v)
		if err = errors.Join(err, c.Close()); err != nil {
			return 0, &GroupError{Shard: s, Index: i, Err: err}
		}
		return t, nil
	}
	if !errors.Is(err, pebble.ErrNotFound) {
		return 0, e.iterError(err)
	}
	as, ok, err := e.readApplied(e.getRaw, s)
	if err != nil {
		return 0, err
	}
	if ok && i == as.TruncIndex {
		return as.TruncTerm, nil
	}
	if b, ok, err := e.getRaw(truncKey(nil, s)); err != nil {
		return 0, err
	} else if ok {
		at, t, err := decodeTrunc(b)
		if err != nil {
			return 0, &GroupError{Shard: s, Err: err}
		}
		if at == i {
			return t, nil
		}
	}
	return 0, fmt.Errorf("engine: term of entry %d of shard %d: %w", i, s, ErrCompacted)
}
