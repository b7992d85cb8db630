package engine

import (
	"errors"
	"fmt"
	"slices"

	"github.com/flotillakv/flotilla/internal/mutants"
	"github.com/flotillakv/flotilla/multiraft/raft"
)

// The longest span of moved log entries (see journal) that is deleted key by key. A
// range deletion makes every later read of the memtable sort all of them again, so it
// is for the long spans only.
const pointDeletes = 64

// logCut says that the entries of a group through an index go, or from one on.
type logCut struct {
	shard raft.ShardID
	to    raft.Index
	run   int // that takes the place, of those of the batch
}

// Append writes entries, which are contiguous, to the log of s; what the log has from
// ents[0].Index through oldLast goes with it. Appends to one group are made in their
// order. The values are copied.
func (b *Batch) Append(s raft.ShardID, oldLast raft.Index, ents []raft.Entry) {
	if len(ents) == 0 {
		return
	}
	if len(b.rec) == 0 {
		b.rec = append(b.rec, recordVersion)
	}
	first := ents[0].Index
	if oldLast >= first {
		b.over = append(b.over, logCut{s, first, len(b.runs)})
	}
	b.runs = append(b.runs, run{shard: s, first: first, n: uint32(len(ents)), off: uint32(len(b.rec))})
	b.rec = appendRun(b.rec, s, ents)
}

// Truncate deletes the entries (from, to] of the log of s; term is that of to. The
// applied state with TruncIndex = to belongs into the same batch. Where applying is
// deferred, to must not be above what a flush has made durable (J3).
func (b *Batch) Truncate(s raft.ShardID, from, to raft.Index, term raft.Term) {
	if to <= from {
		return
	}
	b.cuts = append(b.cuts, logCut{shard: s, to: to})
	if b.e.def != nil && !mutants.On("E4") {
		b.key = truncKey(b.key[:0], s)
		b.val = encodeTrunc(b.val[:0], to, term)
		b.set(b.key, b.val)
	}
}

// deleteMoved deletes the entries [from, to] that have keys of their own. Such a key
// may have been written by any earlier process, and more than once: SINGLEDEL would
// be wrong.
func (b *Batch) deleteMoved(s raft.ShardID, from, to raft.Index) {
	if to >= from && to-from >= b.e.opts.PointDeletes {
		op := b.b.DeleteRangeDeferred(logKeyLen, logKeyLen)
		putLogKey(op.Key, s, from)
		putLogKey(op.Value, s, to+1)
		_ = op.Finish()
		return
	}
	for i := from; i <= to; i++ {
		if mutants.On("B0-E3") {
			putLogKey(b.b.SingleDeleteDeferred(logKeyLen).Key, s, i)
			continue
		}
		putLogKey(b.b.DeleteDeferred(logKeyLen).Key, s, i)
	}
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
	want, bytes := lo, 0
	var bad error
	err := e.lookEntries(s, lo, hi, func(i raft.Index, v []byte) bool {
		if bytes += len(v); maxBytes > 0 && bytes > maxBytes && want > lo {
			return false
		}
		en, err := raft.DecodeEntry(i, slices.Clone(v))
		if err != nil {
			bad = &GroupError{Shard: s, Index: i, Err: err}
			return false
		}
		dst = append(dst, en)
		want++
		return true
	})
	if err = errors.Join(bad, err); err != nil {
		return dst, err
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
	var t raft.Term
	found := false
	var bad error
	err := e.lookEntries(s, i, i, func(_ raft.Index, v []byte) bool {
		found = true
		t, _, bad = raft.PeekEntry(v)
		return false
	})
	if bad != nil {
		return 0, &GroupError{Shard: s, Index: i, Err: bad}
	}
	if err != nil || found {
		return t, err
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
