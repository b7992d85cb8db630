package engine

import (
	"encoding/binary"
	"errors"
	"fmt"
	"time"

	"github.com/cockroachdb/pebble/v2"
	"github.com/cockroachdb/pebble/v2/batchrepr"

	"github.com/flotillakv/flotilla/internal/mutants"
	"github.com/flotillakv/flotilla/multiraft/raft"
)

// Batch collects the writes of one round over many groups and commits them
// atomically. Later writes win over earlier ones. Write methods copy their
// arguments and do not fail; a batch may grow to 4 GiB, but one of more than
// about half a memtable rotates it, so the host bounds its rounds.
//
// A Batch is owned by one goroutine at a time. Life: NewBatch, writes, Commit,
// Wait (if synced), Close. Close before Commit throws it away. A committed
// batch accepts no further writes.
type Batch struct {
	e *Engine
	b *pebble.Batch
	// d takes what belongs to the applied side: b itself, or, where applying is
	// deferred, a batch that only carries it to memory.
	d   *pebble.Batch
	key []byte // scratch
	val []byte // scratch

	// through are the descriptors written: with them goes the whole group.
	through    []raft.Descriptor
	throughSet map[raft.ShardID]bool // of through
	around     bool                  // something of the applied side is in b (CreateGroup)

	// What it says of logs: the record of its entries, which lacks the checksum, the
	// runs in it, groups whose log it overwrites from an index on, and which it cuts.
	rec  []byte
	runs []run
	over []logCut
	cuts []logCut

	overlay overlay
	arena   []byte // values handed out by Get

	counted   int64 // in the engine's batchBytes
	committed bool
	syncing   bool // committed with sync, Wait not called yet
	flushed   bool // Flushed has seen the end of the sync
	since     time.Time
}

const batchRetain = 4 << 20

// NewBatch returns an empty batch from a pool.
func (e *Engine) NewBatch() *Batch {
	b := e.batches.Get().(*Batch)
	if b.b == nil {
		b.b = e.db.NewBatch(pebble.WithInitialSizeBytes(4<<10), pebble.WithMaxRetainedSizeBytes(batchRetain))
	}
	switch {
	case e.def == nil:
		b.d = b.b
	case b.d == nil:
		b.d = e.db.NewBatch(pebble.WithInitialSizeBytes(4<<10), pebble.WithMaxRetainedSizeBytes(batchRetain))
	}
	return b
}

// part returns the batch that a raw key belongs into.
func (b *Batch) part(key []byte) *pebble.Batch {
	if deferrable(key) {
		return b.d
	}
	return b.b
}

func (b *Batch) set(key, val []byte) {
	op := b.part(key).SetDeferred(len(key), len(val))
	copy(op.Key, key)
	copy(op.Value, val)
}

func (b *Batch) delete(key []byte) {
	op := b.part(key).DeleteDeferred(len(key))
	copy(op.Key, key)
}

// Set writes a user key.
func (b *Batch) Set(ks uint32, key, val []byte) {
	op := b.d.SetDeferred(dataHead+len(key), len(val))
	op.Key[0] = prefixData
	binary.BigEndian.PutUint32(op.Key[1:], ks)
	copy(op.Key[dataHead:], key)
	copy(op.Value, val)
}

// Delete deletes a user key.
func (b *Batch) Delete(ks uint32, key []byte) {
	op := b.d.DeleteDeferred(dataHead + len(key))
	op.Key[0] = prefixData
	binary.BigEndian.PutUint32(op.Key[1:], ks)
	copy(op.Key[dataHead:], key)
}

// DeleteRange deletes the user keys [start, end) of a keyspace; an empty end
// means: to the last key of the keyspace.
func (b *Batch) DeleteRange(ks uint32, start, end []byte) {
	b.key = appendData(b.key[:0], ks, start)
	if len(end) == 0 {
		b.val = dataLimit(b.val[:0], ks)
	} else {
		b.val = appendData(b.val[:0], ks, end)
	}
	b.deleteRange(b.key, b.val)
}

// deleteRange deletes raw keys [start, end).
func (b *Batch) deleteRange(start, end []byte) {
	op := b.part(start).DeleteRangeDeferred(len(start), len(end))
	copy(op.Key, start)
	copy(op.Value, end)
	_ = op.Finish()
}

// Len returns the size of the batch in bytes.
func (b *Batch) Len() int {
	if b.Empty() {
		return 0
	}
	n := b.b.Len() + len(b.rec)
	if b.d != b.b && !b.d.Empty() {
		n += b.d.Len()
	}
	return n
}

// Empty reports whether nothing was written.
func (b *Batch) Empty() bool {
	return (b.b == nil || b.b.Empty()) && (b.d == nil || b.d.Empty()) && !b.logs()
}

// logs reports whether the batch says anything of logs.
func (b *Batch) logs() bool { return len(b.runs)+len(b.cuts) > 0 }

// Mark returns the present position for RollbackTo.
func (b *Batch) Mark() int { return b.d.Len() }

// Effects returns what was written to the applied side since Mark returned mark, in
// order, as Pebble's batches encode it: the same bytes for the same writes. It is valid
// until the next write.
func (b *Batch) Effects(mark int) []byte {
	if b.d.Len() <= mark {
		return nil
	}
	return b.d.Repr()[mark:]
}

// RollbackTo drops everything of the applied side that was written since Mark
// returned mark; nothing else may have been written since. Values that Get returned
// since are no longer valid.
func (b *Batch) RollbackTo(mark int) {
	data := b.d.Repr()
	if mark >= len(data) {
		return
	}
	b.overlay.reset()
	if mark <= batchrepr.HeaderLen {
		b.d.Reset()
		return
	}
	// The header counts the operations; count those that stay.
	r := batchrepr.Read(data)
	total := len(r)
	var n uint32
	for total-len(r) < mark-batchrepr.HeaderLen {
		kind, _, _, ok, err := r.Next()
		if !ok || err != nil {
			panic(fmt.Sprintf("engine: rollback to %d of a damaged batch: %v", mark, err))
		}
		if kind != pebble.InternalKeyKindLogData {
			n++
		}
	}
	binary.LittleEndian.PutUint32(data[8:], n)
	if err := b.d.SetRepr(data[:mark]); err != nil {
		panic(fmt.Sprintf("engine: rollback to %d: %v", mark, err))
	}
}

// Commit applies the batch. When it returns nil, the writes are visible to all
// readers; with sync, they are durable after Wait. Without sync they become
// durable with the next synced batch of any group. An empty batch with sync
// still syncs: it makes what was committed before durable. After an error, which is an ErrFailed or ErrClosed, the node stops.
func (b *Batch) Commit(sync bool) (err error) {
	if b.committed {
		return errors.New("engine: batch was committed before")
	}
	b.committed = true
	if b.Empty() && !sync {
		return nil
	}
	b.counted = int64(b.Len() + len(b.rec))
	b.e.batchBytes.Add(b.counted)
	if b.e.def != nil {
		b.e.room()
	}
	if err := b.e.enter(); err != nil {
		b.abandon()
		return err
	}
	defer b.e.leave()
	if b.logs() && b.e.journal.bytes.Load() > b.e.opts.JournalBytes {
		if err := b.e.settle(); err != nil {
			b.abandon()
			return err
		}
	}
	switch {
	case len(b.through) > 0:
		d := b.e.def
		d.flushMu.Lock()
		defer d.flushMu.Unlock()
		if err := b.writeThrough(); err != nil {
			b.abandon()
			return b.e.fail(fmt.Errorf("commit: %w", err))
		}
	case b.b.Empty() && !sync && !b.logs(): // the applied side alone
		b.e.stats.batches.Add(1)
		b.e.def.applyBatch(b)
		return nil
	}
	if b.logs() {
		defer b.seal()()
		if hook := b.e.opts.sealed; hook != nil {
			hook(b)
		}
	}
	if b.b.Empty() {
		_ = b.b.LogData(nil, nil) // never fails
	}
	defer func() {
		// Pebble panics when the log cannot be rotated or written.
		if p := recover(); p != nil {
			b.abandon()
			err = b.e.fail(fmt.Errorf("commit: %v", p))
		}
	}()
	if len(b.through) > 0 {
		b.e.through.Store(true)
		b.e.def.mu.Lock()
		defer b.e.def.mu.Unlock()
	}
	if b.around && b.e.def != nil {
		b.e.through.Store(true)
	}
	b.e.stats.batches.Add(1)
	if !sync || mutants.On("E-ack-unsynced") || mutants.On("H3") && b.e.seq.Add(1)%4 == 0 {
		err = b.e.db.Apply(b.b, pebble.NoSync)
	} else {
		b.since = time.Now()
		err = b.e.db.ApplyNoSyncWait(b.b, pebble.Sync)
		b.syncing = err == nil
	}
	if err != nil {
		b.abandon()
		return b.e.fail(fmt.Errorf("commit: %w", err))
	}
	b.e.grown.Add(int64(b.b.Len()))
	b.e.walBytes.Add(int64(b.b.Len()))
	if b.e.def != nil {
		b.e.memBytes.Add(int64(b.b.Len()))
		b.e.def.applyBatch(b)
	}
	return nil
}

// Wait returns when a batch committed with sync is durable. An error is an
// ErrFailed that OnFatal was told; the writes may or may not be durable.
func (b *Batch) Wait() error {
	if !b.syncing {
		return nil
	}
	b.syncing = false
	if !b.flushed {
		if err := b.b.SyncWait(); err != nil {
			b.b = nil // it may be stuck in Pebble's queues
			return b.e.fail(fmt.Errorf("sync: %w", err))
		}
	}
	b.flushed = false
	b.e.stats.noteSync(time.Since(b.since))
	return nil
}

// Flushed waits like Wait, but only for a batch that was committed with sync, and
// leaves it to Wait to end the sync: whoever owns the batch is not told.
func (b *Batch) Flushed() error {
	if !b.syncing || b.flushed {
		return nil
	}
	if err := b.b.SyncWait(); err != nil {
		b.syncing = false
		b.b = nil
		return b.e.fail(fmt.Errorf("sync: %w", err))
	}
	b.flushed = true
	return nil
}

// abandon leaves the Pebble batch to the garbage collector.
func (b *Batch) abandon() { b.b, b.d = nil, nil }

// Close gives the batch back; it waits first if Wait has not been called. The
// batch and the values that Get returned must not be used afterwards.
func (b *Batch) Close() {
	if b.e == nil {
		return
	}
	_ = b.Wait() // reported through OnFatal
	if b.b != nil {
		b.b.Reset()
	}
	if b.d != nil && b.d != b.b {
		b.d.Reset()
	}
	b.e.batchBytes.Add(-b.counted)
	b.counted = 0
	if len(b.through) > 16 {
		b.through, b.throughSet = nil, nil
	}
	b.through = b.through[:0]
	clear(b.throughSet)
	b.overlay.reset()
	b.rec, b.runs, b.over, b.cuts = b.rec[:0], b.runs[:0], b.over[:0], b.cuts[:0]
	if cap(b.rec) > batchRetain {
		b.rec = nil
	}
	b.arena = b.arena[:0]
	if cap(b.arena) > batchRetain {
		b.arena = nil
	}
	b.committed, b.flushed, b.around = false, false, false
	b.e.batches.Put(b)
}
