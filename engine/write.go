package engine

import (
	"fmt"
	"time"

	"github.com/cockroachdb/pebble/v2"

	"github.com/flotillakv/flotilla/internal/mutants"
)

// SyncNow makes everything committed so far durable: the proof that the disk
// is alive. At most once a second it also moves the watermark. An error means
// that the store has failed.
func (e *Engine) SyncNow() error {
	if err := e.enter(); err != nil {
		return err
	}
	defer e.leave()
	if mutants.On("B18b") { // a watermark of what is not synced yet
		pb := e.db.NewBatch()
		_ = pb.LogData(nil, nil)
		_ = e.db.Apply(pb, pebble.NoSync)
		_ = e.noteDurable(uint64(pb.SeqNum())+1, true)
	}
	seq, err := e.syncLogSeq()
	if err != nil {
		return err
	}
	if err := e.noteDurable(seq, false); err != nil {
		return e.fail(fmt.Errorf("write watermark: %w", err))
	}
	e.flushIfOld()
	return nil
}

// syncLog writes an empty record and syncs the log. It precedes every act
// outside the log (I4, I6). It is called between enter and leave.
func (e *Engine) syncLog() error {
	_, err := e.syncLogSeq()
	return err
}

// syncLogSeq is syncLog; it returns the sequence number up to which (excluded)
// writes are durable now.
func (e *Engine) syncLogSeq() (seq uint64, err error) {
	pb := e.db.NewBatch()
	_ = pb.LogData(nil, nil) // never fails
	err = e.commitSynced(pb)
	if err != nil {
		return 0, err
	}
	seq = uint64(pb.SeqNum())
	return seq, pb.Close()
}

// applySynced commits pb durably and closes it. It is called between enter and leave.
func (e *Engine) applySynced(pb *pebble.Batch) error {
	if err := e.commitSynced(pb); err != nil {
		return err
	}
	return pb.Close()
}

// commitSynced commits pb durably.
func (e *Engine) commitSynced(pb *pebble.Batch) (err error) {
	t := e.stats.now()
	if err := e.commitSyncing(pb); err != nil {
		return err
	}
	return e.endSync(pb, t)
}

// commitSyncing commits pb so that it is visible, and begins to make it durable.
func (e *Engine) commitSyncing(pb *pebble.Batch) (err error) {
	defer func() {
		if p := recover(); p != nil {
			err = e.fail(fmt.Errorf("commit: %v", p))
		}
	}()
	if err := e.db.ApplyNoSyncWait(pb, pebble.Sync); err != nil {
		return e.fail(fmt.Errorf("commit: %w", err))
	}
	return nil
}

// endSync waits until pb, committed at time t, is durable.
func (e *Engine) endSync(pb *pebble.Batch, t time.Time) error {
	if err := pb.SyncWait(); err != nil {
		return e.fail(fmt.Errorf("sync: %w", err))
	}
	e.stats.noteSync(e.stats.now().Sub(t))
	e.opts.OnDurable()
	return nil
}

// commitUnsynced commits pb without waiting for the disk.
func (e *Engine) commitUnsynced(pb *pebble.Batch) (err error) {
	defer func() {
		if p := recover(); p != nil {
			err = e.fail(fmt.Errorf("commit: %v", p))
		}
	}()
	if err := e.db.Apply(pb, pebble.NoSync); err != nil {
		return e.fail(fmt.Errorf("commit: %w", err))
	}
	e.walBytes.Add(int64(pb.Len()))
	return nil
}

// setSynced writes one raw key durably.
func (e *Engine) setSynced(key, val []byte) error {
	if err := e.enter(); err != nil {
		return err
	}
	defer e.leave()
	pb := e.db.NewBatch()
	if err := pb.Set(key, val, nil); err != nil {
		return err
	}
	return e.applySynced(pb)
}
