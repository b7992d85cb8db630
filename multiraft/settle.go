package multiraft

import (
	"errors"
	"slices"

	"github.com/flotillakv/flotilla/internal/mutants"
	"github.com/flotillakv/flotilla/multiraft/raft"
)

// Configuration changes of replicas with much in memory
//
// Where applying is deferred, the store writes a changed descriptor together with all
// that memory holds of its group, in one batch through the write-ahead log
// (engine.Batch.SetDescriptor). Of a group with 30 MiB there that batch takes over 100 ms,
// in which the loop does nothing else: no group on it takes a write or acknowledges an
// entry. So memory goes to tables first, beside the loop:
//
//   - a leader does not propose the change before (Host.ChangeConf);
//   - everybody else goes on to store and acknowledge entries and holds the change, and
//     what is committed behind it, back from applying until then.
//
// Applying may lag behind by any time, so nothing depends on when that ends: when the
// flush failed or the store is closed, the change is applied as it would have been.

// looseMost is how many bytes of entries may have been applied in memory since the
// last flush when a configuration change is applied without a pause.
const looseMost = 1 << 20

// loose counts what memory holds of a replica.
type loose struct {
	bytes int64      // of entries applied behind flushed; about
	upTo  raft.Index // through which all is in tables
	// held is not applied before the flush that was begun ended; nil: nothing is held. at is
	// the entry that was waited for last.
	at   raft.Index
	held *[]raft.Entry
}

// applied counts an entry.
func (o *loose) applied(e raft.Entry) { o.bytes += int64(len(e.Value)) }

// flushed says through which index all is in tables; applied is the last one in memory.
func (o *loose) flushed(index, applied raft.Index) {
	if index <= o.upTo {
		return
	}
	if index >= applied {
		o.bytes = 0
	} else {
		o.bytes = o.bytes / int64(applied-o.upTo) * int64(applied-index)
	}
	o.upTo = index
}

// errLoose says that too much of a replica is in memory for a change of its configuration.
var errLoose = errors.New("multiraft: memory has to be flushed first")

// settle reports whether rest, which begins with a configuration change, has to wait
// until memory is in tables. If so it is handed back by itself.
func (l *loop) settle(r *replica, rest []raft.Entry) bool {
	o, e := &r.loose, rest[0]
	if e.Index <= r.as.Applied || e.Index <= o.at || !l.h.engine.DefersApply() || mutants.On("ST3") {
		return false
	}
	simulated := l.h.stepper != nil // its flushes have no duration; some changes wait for a sync or a round
	if o.bytes <= looseMost && !simulated || simulated && (uint64(e.Index)+uint64(r.self))%2 == 0 {
		return false
	}
	held := slices.Clone(rest)
	o.at, o.held = e.Index, &held
	release := func(raft.Time) {
		if l.byID[r.shard] == r && !r.removed && o.held != nil {
			held := *o.held
			o.held = nil
			l.handBack(r, held)
		}
	}
	switch {
	case !simulated:
		l.h.engine.FlushAside(func() {
			l.in.put(func(it *items) { it.funcs = append(it.funcs, release) })
		})
	case l.inFlight > 0:
		l.afterAck = append(l.afterAck, release)
	default:
		l.in.put(func(it *items) { it.funcs = append(it.funcs, release) })
	}
	return true
}

// handBack has entries applied that were held: in this round, before what the core hands
// out at the end of it.
func (l *loop) handBack(r *replica, held []raft.Entry) {
	l.touch(r)
	if len(held) > 0 {
		l.out.Applies = append(l.out.Applies, raft.ApplyTask{Shard: r.shard, Entries: held})
	}
}
