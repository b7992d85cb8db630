package engine

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"slices"
	"sort"
	"sync"
	"sync/atomic"
	"time"

	"github.com/cockroachdb/pebble/v2"

	"github.com/flotillakv/flotilla/internal/mutants"
	"github.com/flotillakv/flotilla/multiraft/raft"
)

// The journal holds the log entries of all groups: one record per batch, whose key
// ascends, with everything that the batch appends. A key per entry would be sorted
// into the memtable at a place of its own, which for a thousand groups costs more
// than everything else that the log asks of the processor.
//
// What is needed to know of the records is in memory: which runs of entries each of
// them has (journal.recs, in the order of writing), and per group how far its log is
// cut. Nothing is looked up when a batch appends. A group's entries are found by an
// index that is made when somebody asks (a peer that lags, a restart) and dropped
// when it is old.
//
//	LR1  A run takes the place of everything the group had from its first index on.
//	LR2  Entries through the group's cut do not count, whether their record is still
//	    there or not; runs in records before the group's void mark neither (its log
//	    began anew: a snapshot was installed, or the replica was destroyed).
//	LR3  A record is deleted, oldest first, when none of its entries counts any more,
//	    in the batch that says so or a later one. It is a plain deletion, though a key is
//	    written once only: where Pebble cannot read a block, its compactions panic amid a
//	    SINGLEDEL, and a disk's fault would end the process instead of the store.
//	LR4  Where groups that are cut seldom hold up the deletion, the entries of the
//	    oldest records that still count are moved to keys of their own (prefix 01), in
//	    one batch with the deletion of the record: after each flush, if they are few,
//	    and whatever they are while Options.JournalBytes are exceeded. Stores of layouts
//	    1 and 2 have all entries there.
//
// So a group's log is: its keys below 01, then its runs, by index.
type journal struct {
	// gate is held shared while a batch with log entries is committed. It is held
	// exclusively while entries are moved, and while a batch is committed that cuts or
	// overwrites logs: what another batch deletes on the strength of that comes behind it
	// in the write-ahead log (LR3). It is taken before mu.
	gate sync.RWMutex

	mu      sync.Mutex
	epoch   uint64 // of this boot
	next    uint64 // number of the next record
	recs    []recordMeta
	head    uint64 // number, counted from the opening, of recs[0]
	nextRun uint64 // number, counted from the opening, of the next run
	headRun int    // runs of recs[0] that are known not to count any more
	// sweeping: the last batch did not look at all that may be deleted.
	sweeping  bool
	flushMark uint64 // number of the first record behind the last flush's beginning
	groups    map[raft.ShardID]groupLog
	pruned    int                          // how many were left by prune
	overs     map[raft.ShardID][]overwrite // overwritten ends of logs
	index     *logIndex                    // nil: nobody asked lately

	bytes atomic.Int64 // of recs, with their keys
	moved atomic.Int64 // of entries below keys of their own

	counted   int64 // part of memory
	countedAt time.Time

	sizes   map[raft.ShardID]int64 // see LogSize
	sizesAt time.Time
}

// recordID orders records: the boot that wrote it, and its number in that boot.
type recordID struct{ epoch, seq uint64 }

func (r recordID) less(o recordID) bool {
	return r.epoch < o.epoch || r.epoch == o.epoch && r.seq < o.seq
}

type recordMeta struct {
	id    recordID
	bytes uint32
	first uint64 // number of its first run
	runs  []run
}

// run is entries of one group, with consecutive indexes, in one record.
type run struct {
	shard raft.ShardID
	first raft.Index
	n     uint32
	off   uint32 // of the run in the record
}

func (r *run) last() raft.Index { return r.first + raft.Index(r.n) - 1 }

// overwrite says that a run, by its number, took the place of what its group had from an
// index on.
type overwrite struct {
	run   uint64
	first raft.Index
}

// groupLog is what is known of the log of one group.
type groupLog struct {
	trunc  raft.Index // entries through here do not count
	void   uint64     // runs in records before this one do not count
	lo, hi raft.Index // entries below keys of their own; zero: none
	sizes  []uint32   // of [lo, hi], with their keys
	moved  int64      // the sum of sizes
	busy   bool       // an install or a destruction is under way: nothing is moved
}

// openJournal reads what is in the store. Damage is an *OpenError.
func (e *Engine) openJournal() error {
	j := &e.journal
	j.epoch, j.groups, j.overs = e.bootEpoch, make(map[raft.ShardID]groupLog), make(map[raft.ShardID][]overwrite)
	ends := make(map[raft.ShardID]raft.Index)
	err := e.eachRecord(func(id recordID, val []byte) error {
		runs, err := parseRecord(nil, val)
		if err != nil {
			return fmt.Errorf("record %d.%d of the log: %w", id.epoch, id.seq, err)
		}
		j.add(id, len(val), runs)
		return nil
	})
	for i := range j.recs {
		for k := range j.recs[i].runs {
			r := &j.recs[i].runs[k]
			if _, known := j.groups[r.shard]; !known && err == nil {
				j.groups[r.shard], err = e.groupLog(r.shard)
			}
			if r.first <= ends[r.shard] {
				j.overs[r.shard] = append(j.overs[r.shard], overwrite{j.recs[i].first + uint64(k), r.first})
			}
			ends[r.shard] = r.last()
		}
	}
	if err == nil {
		err = e.findMoved()
	}
	if err != nil {
		return e.openErr(Corrupt, e.replaceHint(), err)
	}
	return nil
}

// eachRecord calls f with the records of the store, oldest first.
func (e *Engine) eachRecord(f func(id recordID, val []byte) error) error {
	return e.eachRaw([]byte{prefixRecord}, []byte{prefixRecord + 1}, func(k Key, v []byte) (bool, error) {
		return true, f(recordID{k.Epoch, k.Seq}, v)
	})
}

// eachRaw calls f with the raw keys [lower, upper) of Pebble, ascending, until it
// reports false or fails. v counts during the call.
func (e *Engine) eachRaw(lower, upper []byte, f func(k Key, v []byte) (more bool, err error)) error {
	it, err := e.newRawIter(lower, upper)
	if err != nil {
		return err
	}
	defer it.Close()
	for ok := it.First(); ok; ok = it.Next() {
		k, err := ParseKey(it.Key())
		if err != nil {
			return err
		}
		v, err := it.ValueAndErr()
		if err != nil {
			return e.iterError(err)
		}
		if more, err := f(k, v); err != nil || !more {
			return err
		}
	}
	return e.iterError(it.Error())
}

// groupLog reads how far the log of s counts, as of the opening.
func (e *Engine) groupLog(s raft.ShardID) (g groupLog, err error) {
	as, _, err := e.readApplied(e.getRaw, s)
	if err != nil {
		return g, err
	}
	g.trunc = as.TruncIndex
	b, ok, err := e.getRaw(truncKey(nil, s))
	if err != nil {
		return g, err
	}
	if ok {
		i, _, err := decodeTrunc(b)
		if err != nil {
			return g, &GroupError{Shard: s, Err: err}
		}
		g.trunc = max(g.trunc, i)
	}
	if b, ok, err = e.getRaw(voidKey(nil, s)); err != nil || !ok {
		return g, err
	}
	id, err := decodeVoid(b)
	if err != nil {
		return g, &GroupError{Shard: s, Err: err}
	}
	recs := e.journal.recs
	g.void = uint64(sort.Search(len(recs), func(i int) bool { return !recs[i].id.less(id) }))
	return g, nil
}

// maxMoved bounds the entries of a group below keys of their own.
const maxMoved = 1 << 28

// findMoved notes which groups have entries below keys of their own, and how much.
func (e *Engine) findMoved() error {
	return e.eachRaw([]byte{prefixLog}, []byte{prefixLog + 1}, func(k Key, v []byte) (bool, error) {
		j := &e.journal
		g := j.groups[k.Shard]
		if g.hi != 0 && k.Index-g.lo > maxMoved {
			return false, &GroupError{Shard: k.Shard, Index: k.Index, Err: fmt.Errorf("%d entries behind entry %d: %w", k.Index-g.lo, g.lo, raft.ErrCorrupt)}
		}
		j.groups[k.Shard] = j.grown(g, k.Index, logKeyLen+len(v))
		return true, nil
	})
}

// seal puts what a batch says of logs into its Pebble batch and makes it known. The
// gate is held then; the caller gives it back, with what is returned, after the commit.
func (b *Batch) seal() (done func()) {
	j := &b.e.journal
	var op *pebble.DeferredBatchOp
	var mine []run
	if len(b.runs) > 0 {
		mine = slices.Clone(b.runs)
		b.rec = binary.BigEndian.AppendUint32(b.rec, crc32.Checksum(b.rec, castagnoli))
		op = b.b.SetDeferred(logKeyLen, len(b.rec))
		copy(op.Value, b.rec)
	}
	if len(b.cuts)+len(b.over) > 0 && !mutants.On("LR3b") {
		j.gate.Lock()
		done = j.gate.Unlock
	} else {
		j.gate.RLock()
		done = j.gate.RUnlock
	}
	j.mu.Lock()
	defer j.mu.Unlock()
	if op != nil {
		j.next++
		id := recordID{j.epoch, j.next}
		putRecordKey(op.Key, id)
		j.add(id, len(b.rec), mine)
	}
	for _, c := range b.over {
		if all := j.overs[c.shard]; len(all) > 0 && len(j.recs) > 0 {
			j.overs[c.shard] = slices.DeleteFunc(all, func(o overwrite) bool { return o.run < j.recs[0].first })
		}
		j.overs[c.shard] = append(j.overs[c.shard], overwrite{j.nextRun - uint64(len(b.runs)-c.run), c.to})
		if g := j.groups[c.shard]; g.hi >= c.to && g.hi != 0 {
			b.deleteMoved(c.shard, max(c.to, g.lo), g.hi)
			j.groups[c.shard] = j.shrunk(g, g.lo, c.to-1)
		}
	}
	for _, c := range b.cuts {
		g := j.groups[c.shard]
		if g.hi != 0 {
			b.deleteMoved(c.shard, g.lo, min(c.to, g.hi))
			g = j.shrunk(g, max(g.lo, c.to+1), g.hi)
		}
		g.trunc = max(g.trunc, c.to)
		j.groups[c.shard] = g
	}
	if len(b.cuts) > 0 || j.sweeping {
		j.sweep(b)
	}
	return done
}

// grown returns g with entry i, of size bytes with its key, behind its moved entries.
// Called with mu held.
func (j *journal) grown(g groupLog, i raft.Index, size int) groupLog {
	if g.hi == 0 {
		g.lo = i
	}
	g.hi = i
	for gap := int(i - g.lo); len(g.sizes) < gap; {
		g.sizes = append(g.sizes, 0)
	}
	g.sizes = append(g.sizes, uint32(size))
	g.moved += int64(size)
	j.moved.Add(int64(size))
	return g
}

// shrunk returns g with [lo, hi] left of its moved entries, or nothing. Called with mu held.
func (j *journal) shrunk(g groupLog, lo, hi raft.Index) groupLog {
	if lo > hi {
		j.moved.Add(-g.moved)
		g.lo, g.hi, g.sizes, g.moved = 0, 0, nil, 0
		return g
	}
	was := g.moved
	for _, n := range g.sizes[:lo-g.lo] {
		g.moved -= int64(n)
	}
	for _, n := range g.sizes[hi+1-g.lo:] {
		g.moved -= int64(n)
	}
	g.sizes = slices.Clone(g.sizes[lo-g.lo : hi+1-g.lo])
	j.moved.Add(g.moved - was)
	g.lo, g.hi = lo, hi
	return g
}

// sweepRuns bounds the runs that are looked at in one go.
const sweepRuns = 1 << 13

// sweep deletes the oldest records in which nothing counts any more, some in each
// batch. Called with mu held.
func (j *journal) sweep(b *Batch) {
	j.sweeping = false
	for left := sweepRuns; len(j.recs) > 0; {
		r := &j.recs[0]
		for ; j.headRun < len(r.runs); j.headRun++ {
			if !j.dead(r, j.headRun) && !(mutants.On("LR3") && j.headRun > 0) {
				return
			}
			if left--; left < 0 {
				j.sweeping = true
				return
			}
		}
		putRecordKey(b.b.DeleteDeferred(logKeyLen).Key, r.id)
		j.pop()
	}
}

// dead reports whether no entry of a run of the oldest record counts any more. Called
// with mu held.
func (j *journal) dead(rec *recordMeta, k int) bool {
	r := &rec.runs[k]
	g, ok := j.groups[r.shard]
	return ok && (j.head < g.void || r.last() <= g.trunc || len(j.overs) > 0 && j.standing(rec, k) <= g.trunc)
}

// add notes the newest record. Called with mu held.
func (j *journal) add(id recordID, bytes int, runs []run) {
	j.recs = append(j.recs, recordMeta{id: id, bytes: uint32(bytes), first: j.nextRun, runs: runs})
	j.nextRun += uint64(len(runs))
	j.bytes.Add(int64(bytes) + logKeyLen)
}

// pop forgets the oldest record. Called with mu held.
func (j *journal) pop() {
	r := &j.recs[0]
	j.bytes.Add(-int64(r.bytes) - logKeyLen)
	r.runs = nil
	j.recs = j.recs[1:]
	j.head++
	j.headRun = 0
	if x := j.index; x != nil && j.head > x.from+uint64(len(j.recs)) { // most of it is of records that are gone
		j.index = nil
	}
}

// settle moves entries that count out of the oldest records (LR4), some at a time,
// while the journal is too large.
func (e *Engine) settle() error {
	_, _, err := e.settleWhile(func(j *journal) bool { return j.bytes.Load() > e.opts.JournalBytes })
	return err
}

// settleFlushed moves what still counts out of the records from before the last
// flush, so that they die in the memtable they are in, if that is little: of groups
// that are cut seldom.
func (e *Engine) settleFlushed() error {
	j := &e.journal
	j.mu.Lock()
	mark, budget := j.flushMark, 0
	for i := 0; i < len(j.recs) && j.head+uint64(i) < mark; i++ {
		budget += int(j.recs[i].bytes) / 8
	}
	j.mu.Unlock()
	for more := true; more && budget > 0; {
		moved, again, err := e.settleWhile(func(j *journal) bool { return j.head < mark })
		if err != nil {
			return err
		}
		more = again
		budget -= moved
	}
	return nil
}

// settleWhile moves entries that count out of the oldest records, some, while want
// says so. It returns how many bytes it moved, and whether there is more to do.
func (e *Engine) settleWhile(want func(*journal) bool) (moved int, more bool, err error) {
	j := &e.journal
	j.gate.Lock()
	defer j.gate.Unlock()
	j.mu.Lock()
	defer j.mu.Unlock()
	pb := e.db.NewBatch()
	left := sweepRuns
	for len(j.recs) > 0 && want(j) {
		if moved >= settleStep || left <= 0 {
			more = true
			break
		}
		r := &j.recs[0]
		left -= len(r.runs)
		for j.headRun < len(r.runs) && j.dead(r, j.headRun) {
			j.headRun++
		}
		if j.headRun < len(r.runs) {
			n, ok, err := e.moveOut(pb, r)
			if err != nil {
				return moved, false, errors.Join(err, pb.Close())
			} else if !ok {
				break
			}
			moved += n
		}
		if mutants.On("LR4") {
			_ = e.db.Delete(Key{Kind: KindRecord, Epoch: r.id.epoch, Seq: r.id.seq}.Raw(), pebble.Sync)
		} else {
			putRecordKey(pb.DeleteDeferred(logKeyLen).Key, r.id)
		}
		j.pop()
		e.stats.settled.Add(1)
	}
	if !pb.Empty() {
		if err := e.commitUnsynced(pb); err != nil {
			return moved, false, err
		}
	}
	return moved, more, pb.Close()
}

// settleStep bounds what is moved at a time.
const settleStep = 1 << 20

// moveOut adds the entries of the oldest record that count to pb, and returns their
// bytes. It reports false if one of their groups is busy. Called with gate and mu held.
func (e *Engine) moveOut(pb *pebble.Batch, r *recordMeta) (bytes int, ok bool, err error) {
	j := &e.journal
	for i := j.headRun; i < len(r.runs); i++ {
		if j.groups[r.runs[i].shard].busy && !j.dead(r, i) {
			return 0, false, nil
		}
	}
	var kb [logKeyLen]byte
	putRecordKey(kb[:], r.id)
	val, c, err := e.db.Get(kb[:])
	if err != nil {
		return bytes, false, e.fail(fmt.Errorf("record %d.%d of the log: %w", r.id.epoch, r.id.seq, err))
	}
	defer c.Close()
	for ; j.headRun < len(r.runs); j.headRun++ {
		run := &r.runs[j.headRun]
		g := j.groups[run.shard]
		lo, hi := max(run.first, g.trunc+1), j.standing(r, j.headRun)
		if hi < lo || j.dead(r, j.headRun) {
			continue
		}
		err := eachOf(val, run.off, func(i raft.Index, v []byte) bool {
			if i >= lo && i <= hi {
				op := pb.SetDeferred(logKeyLen, len(v))
				putLogKey(op.Key, run.shard, i)
				copy(op.Value, v)
				bytes += len(v)
				g = j.grown(g, i, logKeyLen+len(v))
			}
			return true
		})
		if err != nil {
			return bytes, false, e.fail(err)
		}
		j.groups[run.shard] = g
	}
	return bytes, true, nil
}

// standing returns through which index a run of the oldest record was not overwritten
// later. Called with mu held.
func (j *journal) standing(rec *recordMeta, k int) raft.Index {
	r := &rec.runs[k]
	all, ok := j.overs[r.shard]
	if !ok {
		return r.last()
	}
	all = slices.DeleteFunc(all, func(o overwrite) bool { return o.run < rec.first })
	if j.overs[r.shard] = all; len(all) == 0 {
		delete(j.overs, r.shard)
	}
	last := r.last()
	for _, o := range all {
		if o.run > rec.first+uint64(k) {
			last = min(last, o.first-1)
		}
	}
	return last
}

// oldest returns the number of the oldest record.
func (j *journal) oldest() uint64 {
	j.mu.Lock()
	defer j.mu.Unlock()
	return j.head
}

// flushBegun notes which records the flush that begins makes superfluous.
func (j *journal) flushBegun() {
	j.mu.Lock()
	defer j.mu.Unlock()
	j.flushMark = j.head + uint64(len(j.recs))
	j.prune()
}

// swept reports whether all was looked at that may be deleted.
func (j *journal) swept() bool {
	j.mu.Lock()
	defer j.mu.Unlock()
	return !j.sweeping
}

// hold keeps the entries of a group where they are while busy is set: what takes its
// log away is under way.
func (j *journal) hold(s raft.ShardID, busy bool) {
	j.mu.Lock()
	defer j.mu.Unlock()
	g := j.groups[s]
	g.busy = busy
	j.groups[s] = g
}

// voidMark returns the void mark of a group whose log begins anew now: nothing of it
// is committed until then.
func (j *journal) voidMark() []byte {
	j.mu.Lock()
	defer j.mu.Unlock()
	return encodeVoid(nil, recordID{j.epoch, j.next + 1})
}

// voided says that the log of s began anew, behind index trunc.
func (j *journal) voided(s raft.ShardID, trunc raft.Index) {
	j.mu.Lock()
	defer j.mu.Unlock()
	j.moved.Add(-j.groups[s].moved)
	j.groups[s] = groupLog{trunc: trunc, void: j.head + uint64(len(j.recs))}
	if j.index != nil {
		delete(j.index.groups, s)
	}
}

// shards returns the groups of which it knows something.
func (j *journal) shards() map[raft.ShardID]bool {
	j.mu.Lock()
	defer j.mu.Unlock()
	all := make(map[raft.ShardID]bool, len(j.groups))
	for s := range j.groups {
		all[s] = true
	}
	return all
}

// orphaned says which groups are not here: nobody needs their entries.
func (j *journal) orphaned(gone map[raft.ShardID]bool) {
	j.mu.Lock()
	defer j.mu.Unlock()
	for s := range gone {
		g := j.groups[s]
		g.void = j.head + uint64(len(j.recs))
		j.groups[s] = g
	}
}

// pruneFrom is from how many groups on it is looked whose may be forgotten, if they are
// twice as many as were left the last time.
const pruneFrom = 4096

// prune forgets groups that have no entries: what is known of their logs is of no use, and
// of a million groups that rest it would fill the memory. Called with mu held.
func (j *journal) prune() {
	if len(j.groups) >= pruneFrom && len(j.groups) >= 2*j.pruned {
		j.pruneNow()
	}
}

// pruneNow is prune, however many there are. Called with mu held.
func (j *journal) pruneNow() {
	keep := make(map[raft.ShardID]groupLog)
	for i := range j.recs {
		for k := range j.recs[i].runs {
			s := j.recs[i].runs[k].shard
			if g, ok := j.groups[s]; ok {
				keep[s] = g
			}
		}
	}
	for s, g := range j.groups {
		if g.hi != 0 || g.busy {
			keep[s] = g
		}
	}
	j.groups, j.pruned = keep, len(keep)
}
