package engine

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/cockroachdb/pebble/v2"
	"github.com/cockroachdb/pebble/v2/objstorage/objstorageprovider"
	"github.com/cockroachdb/pebble/v2/sstable"
	"github.com/cockroachdb/pebble/v2/vfs"

	"github.com/flotillakv/flotilla/internal/mutants"
	"github.com/flotillakv/flotilla/multiraft/raft"
)

// fileOnlyBytes is the size of a data span, in tables, from which on a View
// uses a snapshot that pins files only. An iterator is cheaper but pins the
// memtables of its time, which is fine for the few milliseconds of a small group.
const fileOnlyBytes = 4 << 20

// View is a consistent cut of one group: its data and its applied side, as of
// one position of the write-ahead log. Writes go on meanwhile. It pins memory
// or files, so close it soon. A View is owned by one goroutine.
type View struct {
	e       *Engine
	base    *pebble.Iterator // small groups: clones of it share the view
	mem     *memView         // what memory held when base was made; nil: nothing
	efos    *pebble.EventuallyFileOnlySnapshot
	desc    raft.Descriptor
	applied raft.AppliedState
	size    int64
}

// ViewPart names one part of a View.
type ViewPart uint8

// The parts of a View.
const (
	// ViewData are the user keys of the group's span, without keyspace.
	ViewData ViewPart = 1
	// ViewState are the suffixes of the applied side, descriptor ("d") and
	// applied state ("a") included.
	ViewState ViewPart = 2
	// ViewMachine are the suffixes that the state machine wrote (Batch.SetGroup).
	// They sort behind descriptor and applied state.
	ViewMachine ViewPart = 3
)

// View takes a cut of the group of desc. The descriptor in the cut counts, not
// desc (View.Desc). It fails with a *GroupError if the group is not here, or is
// quarantined (ErrQuarantined).
func (e *Engine) View(desc *raft.Descriptor) (*View, error) {
	if err := e.enter(); err != nil {
		return nil, err
	}
	defer e.leave()
	want := desc.Clone()
	for try := 0; ; try++ {
		v, err := e.view(&want)
		if err != nil {
			return nil, err
		}
		if v.efos == nil || sameSpan(&want, &v.desc) {
			return v, nil
		}
		// The span changed between the caller's look and the cut.
		want = v.desc
		if err := v.Close(); err != nil {
			return nil, err
		}
		if try == 3 {
			return nil, &GroupError{Shard: want.Shard, Err: errors.New("its span keeps changing")}
		}
	}
}

func sameSpan(a, b *raft.Descriptor) bool {
	return a.Keyspace == b.Keyspace && bytes.Equal(a.Start, b.Start) && bytes.Equal(a.End, b.End)
}

func (e *Engine) view(d *raft.Descriptor) (*View, error) {
	v := &View{e: e}
	sp := StatePrefix(d.Shard)
	lower, upper := DataSpan(d.Keyspace, d.Start, d.End)
	size, err := e.db.EstimateDiskUsage(lower, upper)
	if err != nil {
		return nil, e.iterError(err)
	}
	v.size = int64(size)
	var it *pebble.Iterator
	if size >= fileOnlyBytes || mutants.On("B0-D1") {
		// Such a cut sees tables only: what is in memory goes there first.
		if err := e.flushAll(); err != nil {
			return nil, err
		}
		if size, err = e.db.EstimateDiskUsage(lower, upper); err != nil {
			return nil, e.iterError(err)
		}
		v.size = int64(size)
		v.efos = e.db.NewEventuallyFileOnlySnapshot([]pebble.KeyRange{{Start: sp, End: PrefixEnd(sp)}, {Start: lower, End: upper}})
		it, err = v.efos.NewIter(bounds(sp, PrefixEnd(sp)))
	} else {
		if e.def != nil {
			e.def.mu.Lock()
			v.mem = e.def.viewLocked()
		}
		it, err = e.newRawIter(sp, PrefixEnd(sp))
		v.base = it
		if e.def != nil {
			e.def.mu.Unlock()
		}
	}
	if err != nil {
		return nil, errors.Join(e.iterError(err), v.Close())
	}
	if v.base == nil {
		defer it.Close()
	}
	b, ok, err := itGetter(it)(descKey(nil, d.Shard))
	if err == nil && !ok {
		err = &GroupError{Shard: d.Shard, Err: errors.New("not on this node")}
	}
	if err != nil {
		return nil, errors.Join(e.iterError(err), v.Close())
	}
	got, err := raft.DecodeDescriptor(b)
	if err != nil {
		return nil, errors.Join(&GroupError{Shard: d.Shard, Err: err}, v.Close())
	}
	v.desc = got.Clone()
	get := itGetter(it)
	if v.mem != nil { // the cut is as of the view of memory, not of now
		get = v.memGetter(it, sp)
	}
	if v.applied, _, err = e.readApplied(get, d.Shard); err != nil {
		return nil, errors.Join(err, v.Close())
	}
	// The mark is on the disk before anything is missing.
	if q, err := e.quarantined(d.Shard); err != nil || q.Why != 0 {
		if err == nil {
			err = &GroupError{Shard: d.Shard, Err: ErrQuarantined}
		}
		return nil, errors.Join(err, v.Close())
	}
	return v, nil
}

// Applied returns the applied state of the cut.
func (v *View) Applied() raft.AppliedState { return v.applied }

// Desc returns the descriptor of the cut.
func (v *View) Desc() raft.Descriptor { return v.desc }

// Size returns about how many bytes of tables hold the data of the cut; what was in
// memory when it was made may be missing.
func (v *View) Size() int64 { return v.size }

// Iter returns an iterator over one part of the cut. It must be closed before
// the View.
func (v *View) Iter(part ViewPart) (*Iter, error) {
	if err := v.e.enter(); err != nil {
		return nil, err
	}
	defer v.e.leave()
	lower := StatePrefix(v.desc.Shard)
	upper, head := PrefixEnd(lower), lower
	if part == ViewMachine {
		lower = append(lower[:len(lower):len(lower)], suffixDesc+1)
	}
	if part == ViewData {
		lower, upper = DataSpan(v.desc.Keyspace, v.desc.Start, v.desc.End)
		head = lower[:dataHead:dataHead]
	}
	var it *pebble.Iterator
	var err error
	if v.efos != nil {
		it, err = v.efos.NewIter(bounds(lower, upper))
	} else {
		it, err = v.base.Clone(pebble.CloneOptions{IterOptions: bounds(lower, upper)})
	}
	if err != nil {
		return nil, v.e.iterError(err)
	}
	i := &Iter{it: it, e: v.e, head: head}
	if v.mem != nil {
		i.merge(v.mem, lower, upper, nil)
	}
	return i, nil
}

// memGetter reads through memory, as of the view.
func (v *View) memGetter(it *pebble.Iterator, sp []byte) getter {
	return func(key []byte) ([]byte, bool, error) {
		m := newMerged(v.mem, it, sp, PrefixEnd(sp), nil)
		if !m.seekGE(key) || string(m.cur) != string(key) {
			return nil, false, it.Error()
		}
		b, err := m.layers[m.at].value()
		return b, err == nil, err
	}
}

// Close releases the cut. It is idempotent.
func (v *View) Close() error {
	var err error
	if v.mem != nil {
		v.mem.close()
		v.mem = nil
	}
	if v.base != nil {
		err = v.base.Close()
		v.base = nil
	}
	if v.efos != nil {
		err = errors.Join(err, v.efos.Close())
		v.efos = nil
	}
	return v.e.iterError(err)
}

// SSTWriter writes one table of raw keys for InstallSnapshot. Points must come
// in ascending order, range deletions in ascending order of their starts; the
// two may be mixed. A point is not deleted by a range deletion of its own table.
type SSTWriter struct {
	w    *sstable.Writer
	fs   FS
	path string
	mem  *tableBuffer // nil: a file
}

// tableBuffer takes a table in memory.
type tableBuffer struct{ b []byte }

func (t *tableBuffer) Write(p []byte) error { t.b = append(t.b, p...); return nil }
func (t *tableBuffer) Finish() error        { return nil }
func (t *tableBuffer) Abort()               {}

// NewSSTWriter creates the file and the writer. The keys of a table must have
// one prefix: a table that spanned several would overlap every group.
func (e *Engine) NewSSTWriter(path string) (*SSTWriter, error) {
	if err := e.usable(); err != nil {
		return nil, err
	}
	// Level 6: where the data of a snapshot ends up.
	return e.newTableWriter(path, 6, choreCompaction)
}

// newTableWriter is NewSSTWriter with the options of a level.
func (e *Engine) newTableWriter(path string, level int, c chore) (*SSTWriter, error) {
	f, err := e.fs.Create(path, vfs.WriteCategoryUnspecified)
	if err != nil {
		return nil, fmt.Errorf("engine: create table: %w", err)
	}
	f = vfs.NewSyncingFile(f, vfs.SyncingFileOptions{BytesPerSync: bytesPerSync})
	wo := e.po.MakeWriterOptions(level, e.db.TableFormat())
	wo.FilterPolicy = e.filter(c)
	w := sstable.NewWriter(objstorageprovider.NewFileWritable(f), wo)
	return &SSTWriter{w: w, fs: e.fs, path: path}, nil
}

// NewTableBuffer is NewSSTWriter for a table that stays in memory, appended to dst:
// nothing of it touches the disk. Equal keys and values make equal bytes, on every
// node of a release.
func (e *Engine) NewTableBuffer(dst []byte) (*SSTWriter, error) {
	if err := e.usable(); err != nil {
		return nil, err
	}
	wo := e.po.MakeWriterOptions(6, e.db.TableFormat())
	wo.FilterPolicy = e.filter(choreSnapshot)
	buf := &tableBuffer{b: dst}
	return &SSTWriter{w: sstable.NewWriter(buf, wo), mem: buf}, nil
}

// Bytes returns the table of NewTableBuffer, after Finish.
func (w *SSTWriter) Bytes() []byte { return w.mem.b }

// Set adds a raw key and its value.
func (w *SSTWriter) Set(key, val []byte) error { return w.w.Set(key, val) }

// DeleteRange adds a deletion of the raw keys [start, end).
func (w *SSTWriter) DeleteRange(start, end []byte) error { return w.w.DeleteRange(start, end) }

// EstimatedSize returns about how many bytes the table has so far.
func (w *SSTWriter) EstimatedSize() uint64 { return w.w.Raw().EstimatedSize() }

// Finish completes the table, syncs the file and returns its size.
func (w *SSTWriter) Finish() (size int64, err error) {
	if err := w.w.Close(); err != nil {
		return 0, fmt.Errorf("engine: finish table: %w", err)
	}
	if w.mem != nil {
		return int64(len(w.mem.b)), nil
	}
	info, err := w.fs.Stat(w.path)
	if err != nil {
		return 0, fmt.Errorf("engine: finish table: %w", err)
	}
	return info.Size(), nil
}

// Abort gives the table up; the file may remain, without use.
func (w *SSTWriter) Abort() { _ = w.w.Close() }

// KV is a key (or suffix) with its value.
type KV struct{ Key, Value []byte }

// Install is a snapshot to be installed.
type Install struct {
	Desc    raft.Descriptor
	Applied raft.AppliedState
	Hard    raft.HardState // the current one, in memory, of the frozen group
	// State are the other records of the applied side, by suffix, ascending.
	// Suffixes "a" and "d" are ignored.
	State []KV
	// Data are the paths of finished tables of the data, made with NewSSTWriter,
	// that do not overlap and lie inside the span of Desc. They are consumed.
	Data []string
	// SmallKVs is the data itself, by user key, ascending, in place of Data. For
	// groups of up to some 100 KiB: it goes through the write-ahead log.
	SmallKVs []KV
	// KeepLog: the log, which holds the entry at Applied.Applied, stays as it is, cut
	// as far as it was. It is for a quarantined replica, which needs its state anew.
	KeepLog bool
	// Subsumed are shards that, by the history of Desc, became parts of it: each of their
	// replicas here, whose span lies in that of Desc, is destroyed in the same step, and
	// none of them may live here again. Those without a replica here are left out.
	Subsumed []raft.ShardID

	// What checkInstall found: the spans whose data are to go (of the shard, if it was
	// wider, and of those it subsumes), and since when none of them may live here.
	dead map[raft.ShardID]intent
}

// InstallSnapshot replaces everything this node holds of the group by the
// snapshot: data, applied side, hard state; its log becomes empty (but see
// Install.KeepLog), and a quarantine ends. It is
// atomic and durable when nil is returned. The caller has frozen the group: no
// batch of it is open or will be until InstallSnapshot returns.
//
// ErrTombstone, ErrOverlap and ErrStale refuse; nothing was written then. Any
// other error means that the store has failed.
func (e *Engine) InstallSnapshot(in Install) error {
	node := e.Ident().Node // before enter: SetIdent holds identMu across it
	if err := e.enter(); err != nil {
		return err
	}
	defer e.leave()
	if e.def != nil {
		e.def.flushMu.Lock()
		defer e.def.flushMu.Unlock()
	}
	if err := e.checkInstall(&in, node); err != nil {
		return err
	}
	for _, o := range in.Subsumed {
		e.journal.hold(o, true)
		defer e.journal.hold(o, false)
	}
	in.KeepLog = in.KeepLog && !mutants.On("IG6")
	if in.KeepLog {
		i, t, err := e.cutOf(in.Desc.Shard)
		if err != nil {
			return err
		}
		in.Applied.TruncIndex, in.Applied.TruncTerm = i, t
	} else {
		// The log of the installed replica is empty: it begins behind the snapshot.
		in.Applied.TruncIndex, in.Applied.TruncTerm = in.Applied.Applied, in.Applied.AppliedTerm
		e.journal.hold(in.Desc.Shard, true)
		defer e.journal.hold(in.Desc.Shard, false)
	}
	q, err := e.quarantined(in.Desc.Shard)
	if err != nil {
		return err
	}
	if len(in.Data) == 0 && q.Why != QuarantineUnreadable {
		err = e.installSmall(&in)
	} else {
		err = e.installTables(&in)
	}
	if err != nil {
		return err
	}
	if !in.KeepLog {
		e.journal.voided(in.Desc.Shard, in.Applied.Applied)
	}
	for _, s := range in.Subsumed {
		e.journal.voided(s, 0)
	}
	for _, s := range in.others() {
		if err := e.carryOut(s, in.dead[s]); err != nil {
			return err
		}
	}
	return nil
}

// others are the shards whose data are to go apart from what is replaced, ascending.
func (in *Install) others() []raft.ShardID { return slices.Sorted(maps.Keys(in.dead)) }

// buryOthers writes the records by which the data of Install.others go, now or at the next
// start (Destroy, I6), in the order of their keys: intents, then tombstones.
func (in *Install) buryOthers(set func(key, val []byte) error) error {
	for _, s := range in.others() {
		if mutants.On("E-narrow-kept") {
			continue
		}
		if err := set(intentKey(nil, s), in.dead[s].encode(nil)); err != nil {
			return err
		}
	}
	for _, s := range in.Subsumed {
		if err := set(tombstoneKey(nil, s), encodeTombstone(nil, in.dead[s].Replica)); err != nil {
			return err
		}
	}
	return nil
}

// cutOf returns how far the log of a group is cut.
func (e *Engine) cutOf(s raft.ShardID) (raft.Index, raft.Term, error) {
	as, _, err := e.readApplied(e.getRaw, s)
	if err != nil {
		return 0, 0, err
	}
	b, ok, err := e.getRaw(truncKey(nil, s))
	if err != nil || !ok {
		return as.TruncIndex, as.TruncTerm, err
	}
	i, t, err := decodeTrunc(b)
	if err != nil {
		return 0, 0, &GroupError{Shard: s, Err: err}
	}
	if i < as.TruncIndex {
		i, t = as.TruncIndex, as.TruncTerm
	}
	return i, t, nil
}

// checkInstall refuses what must not be installed here.
func (e *Engine) checkInstall(in *Install, node raft.NodeID) error {
	s := in.Desc.Shard
	rep, ok := in.Desc.ReplicaOn(node)
	if lowest, dead, err := e.tombstone(s); err != nil {
		return err
	} else if dead && (!ok || rep.ID < lowest) {
		return fmt.Errorf("%w: shard %d, replica %d below %d", ErrTombstone, s, rep.ID, lowest)
	}
	lo, hi := DataSpan(in.Desc.Keyspace, in.Desc.Start, in.Desc.End)
	var other raft.ShardID
	in.dead = make(map[raft.ShardID]intent)
	err := e.eachDescriptor(func(d *raft.Descriptor) {
		l, h := DataSpan(d.Keyspace, d.Start, d.End)
		inside := bytes.Compare(lo, l) <= 0 && bytes.Compare(h, hi) <= 0
		gone := intent{Keyspace: d.Keyspace, Start: bytes.Clone(d.Start), End: bytes.Clone(d.End)}
		switch {
		case d.Shard == s:
			if !inside {
				in.dead[s] = gone
			}
		case slices.Contains(in.Subsumed, d.Shard) && inside:
			here, _ := d.ReplicaOn(node)
			gone.Replica = here.ID + 1
			in.dead[d.Shard] = gone
		case !mutants.On("B0-A6b") && bytes.Compare(l, hi) < 0 && bytes.Compare(lo, h) < 0:
			other = d.Shard
		}
	})
	if err != nil {
		return err
	}
	if other != 0 {
		return fmt.Errorf("%w: shard %d overlaps shard %d", ErrOverlap, s, other)
	}
	in.Subsumed = slices.DeleteFunc(in.others(), func(o raft.ShardID) bool { return o == s || mutants.On("E-subsumed-stays") })
	for _, o := range in.Subsumed {
		if have, ok, err := e.tombstone(o); err != nil {
			return err
		} else if gone := in.dead[o]; ok && have > gone.Replica {
			gone.Replica = have
			in.dead[o] = gone
		}
	}
	as, ok, err := e.readApplied(e.getRaw, s)
	if err != nil {
		return err
	}
	if ok && in.Applied.Applied < as.Applied && !mutants.On("E3") {
		return fmt.Errorf("%w: shard %d is applied through %d, the snapshot through %d", ErrStale, s, as.Applied, in.Applied.Applied)
	}
	b, ok, err := e.getRaw(hardKey(nil, s))
	if err != nil || !ok {
		return err
	}
	hs, err := raft.DecodeHardState(b)
	if err != nil {
		return &GroupError{Shard: s, Err: err}
	}
	if in.Hard.Term < hs.Term || in.Hard.Term == hs.Term && hs.Vote != 0 && in.Hard.Vote != hs.Vote {
		return fmt.Errorf("%w: shard %d promised (term %d, vote %d), the install brings (term %d, vote %d)",
			ErrStale, s, hs.Term, hs.Vote, in.Hard.Term, in.Hard.Vote)
	}
	return nil
}

// installSmall is one synced batch. Range deletions are written only where
// there is something to delete: a new replica needs none.
func (e *Engine) installSmall(in *Install) error {
	s := in.Desc.Shard
	pb := e.db.NewBatch()
	err := func() error {
		lower, upper := DataSpan(in.Desc.Keyspace, in.Desc.Start, in.Desc.End)
		for _, sp := range []pebble.KeyRange{
			{Start: lower, End: upper},
			{Start: StatePrefix(s), End: PrefixEnd(StatePrefix(s))},
			{Start: LogPrefix(s), End: PrefixEnd(LogPrefix(s))},
			{Start: truncKey(nil, s), End: PrefixEnd(truncKey(nil, s))},
			{Start: quarantineKey(nil, s), End: PrefixEnd(quarantineKey(nil, s))},
			skippedSpan(s),
		} {
			log := sp.Start[0] == prefixLog || sp.Start[0] == prefixHard && (sp.Start[groupKeyLen] == suffixTrunc || sp.Start[groupKeyLen] == suffixSkipped)
			if mutants.On("E11") && sp.Start[0] == prefixLog || in.KeepLog && log {
				continue
			}
			if some, err := e.hasKeys(sp); err != nil {
				return err
			} else if some {
				if err := pb.DeleteRange(sp.Start, sp.End, nil); err != nil {
					return err
				}
			}
		}
		if mutants.On("E13") { // the descriptor is there before the data
			if err := in.state(func(k, v []byte) error { return pb.Set(k, v, nil) }, func(k, v []byte) error { return pb.Set(k, v, nil) }); err != nil {
				return err
			}
			if err := e.applySynced(pb); err != nil {
				return err
			}
			pb = e.db.NewBatch()
		}
		for _, kv := range in.SmallKVs {
			if err := pb.Set(DataKey(in.Desc.Keyspace, kv.Key), kv.Value, nil); err != nil {
				return err
			}
		}
		if mutants.On("E6") { // the data is there before the index it stands for
			if err := e.applySynced(pb); err != nil {
				return err
			}
			pb = e.db.NewBatch()
		}
		if !mutants.On("E11") && !in.KeepLog {
			if err := pb.Set(voidKey(nil, s), e.journal.voidMark(), nil); err != nil {
				return err
			}
		}
		if err := in.buryOthers(func(k, v []byte) error { return pb.Set(k, v, nil) }); err != nil {
			return err
		}
		for _, o := range in.Subsumed {
			if err := e.clearRaft(pb, o); err != nil {
				return err
			}
		}
		return in.state(func(k, v []byte) error { return pb.Set(k, v, nil) },
			func(k, v []byte) error { return pb.Set(k, v, nil) })
	}()
	if err != nil {
		return errors.Join(err, pb.Close())
	}
	if mutants.On("B0-A7") {
		return e.db.Apply(pb, pebble.NoSync)
	}
	return e.applyTaking(pb, in)
}

// applyTaking commits pb durably, and takes what memory holds of the group out in
// the same step: nobody sees the one without the other. Called with flushMu held.
func (e *Engine) applyTaking(pb *pebble.Batch, in *Install) error {
	if e.def == nil {
		return e.applySynced(pb)
	}
	err := e.taking(in, func() error { return e.commitUnsynced(pb) })
	if err != nil {
		return err
	}
	if err := pb.Close(); err != nil {
		return err
	}
	return e.syncLog()
}

// taking runs f, which replaces the applied side of a group in Pebble, and takes
// what memory holds of it, and of those it subsumes, out, as one step. Called with
// flushMu held.
func (e *Engine) taking(in *Install, f func() error) error {
	if e.def == nil {
		return f()
	}
	e.def.mu.Lock()
	defer e.def.mu.Unlock()
	if err := f(); err != nil {
		return err
	}
	sp := groupSpans(&in.Desc)
	e.def.takeLocked(sp[:]...)
	for _, o := range in.Subsumed {
		e.def.takeLocked(pebble.KeyRange{Start: StatePrefix(o), End: PrefixEnd(StatePrefix(o))})
	}
	return nil
}

func (e *Engine) hasKeys(sp pebble.KeyRange) (bool, error) {
	it, err := e.newRawIter(sp.Start, sp.End)
	if err != nil {
		return false, err
	}
	ok := it.First()
	return ok, e.iterError(it.Close())
}

// state writes the records of the applied side, ascending, with set, and the
// hard state with setHard.
func (in *Install) state(set, setHard func(key, val []byte) error) error {
	s := in.Desc.Shard
	a, d := in.Applied.Encode(nil), in.Desc.Encode(nil)
	recs := []KV{{[]byte{suffixApplied}, a}, {[]byte{suffixDesc}, d}}
	i := 0
	put := func(kv KV) error { return set(append(StatePrefix(s), kv.Key...), kv.Value) }
	for _, kv := range in.State {
		if len(kv.Key) == 1 && (kv.Key[0] == suffixApplied || kv.Key[0] == suffixDesc) {
			continue
		}
		if mutants.On("F1b") && kv.Key[0] == 's' {
			continue
		}
		for ; i < len(recs) && bytes.Compare(recs[i].Key, kv.Key) < 0; i++ {
			if err := put(recs[i]); err != nil {
				return err
			}
		}
		if err := put(kv); err != nil {
			return err
		}
	}
	for ; i < len(recs); i++ {
		if err := put(recs[i]); err != nil {
			return err
		}
	}
	return setHard(hardKey(nil, s), in.Hard.Encode(nil))
}

// installTables is one IngestAndExcise: the data span is excised, log, hard
// state and applied side are replaced by one table per prefix, which carry
// range deletions below their keys (I4).
func (e *Engine) installTables(in *Install) error {
	s := in.Desc.Shard
	dir := e.fs.PathJoin(e.StagingDir(), fmt.Sprintf("install-%d-%d-%d", e.bootEpoch, s, e.seq.Add(1)))
	if err := mkdirSynced(e.fs, dir); err != nil {
		return e.fail(fmt.Errorf("make staging directory: %w", err))
	}
	defer func() { _ = e.fs.RemoveAll(dir) }()
	paths := append([]string(nil), in.Data...)
	file := func(name string, fill func(w *SSTWriter) error) error {
		w, err := e.NewSSTWriter(e.fs.PathJoin(dir, name))
		if err != nil {
			return err
		}
		if err := fill(w); err != nil {
			w.Abort()
			return err
		}
		paths = append(paths, w.path)
		_, err = w.Finish()
		return err
	}
	table := func(name string, prefix []byte, fill func(w *SSTWriter) error) error {
		start := prefix
		if in.KeepLog && prefix[0] == prefixHard {
			start = quarantineKey(nil, s)
			prefix = start
		}
		return file(name, func(w *SSTWriter) error {
			err := w.DeleteRange(start, PrefixEnd(prefix))
			if err == nil && fill != nil {
				err = fill(w)
			}
			return err
		})
	}
	var hk, hv []byte
	if len(in.SmallKVs) > 0 { // in place of a batch: what is below must go, and cannot be read
		err := file("10", func(w *SSTWriter) error {
			for i := range in.SmallKVs {
				if err := w.Set(DataKey(in.Desc.Keyspace, in.SmallKVs[i].Key), in.SmallKVs[i].Value); err != nil {
					return err
				}
			}
			return nil
		})
		if err != nil {
			return e.fail(fmt.Errorf("write tables of shard %d: %w", s, err))
		}
	}
	err := table("03", StatePrefix(s), func(w *SSTWriter) error {
		return in.state(w.Set, func(k, v []byte) error { hk, hv = k, v; return nil })
	})
	if mutants.On("B0-D3") { // one table for hard state and applied side
		paths = paths[:len(paths)-1]
		err = table("02", HardPrefix(s), func(w *SSTWriter) error {
			return errors.Join(w.DeleteRange(StatePrefix(s), PrefixEnd(StatePrefix(s))), w.Set(hk, hv),
				in.state(w.Set, func([]byte, []byte) error { return nil }))
		})
	} else if err == nil {
		err = table("02", HardPrefix(s), func(w *SSTWriter) error {
			if mutants.On("E-ingest-keeps-log") || in.KeepLog {
				return w.Set(hk, hv)
			}
			return errors.Join(w.Set(hk, hv), w.Set(voidKey(nil, s), e.journal.voidMark()))
		})
	}
	if err == nil && !mutants.On("E-ingest-keeps-log") && !in.KeepLog {
		err = table("01", LogPrefix(s), nil)
	}
	if err == nil && len(in.dead) > 0 {
		err = file("00", func(w *SSTWriter) error { return in.buryOthers(w.Set) })
	}
	for _, o := range in.Subsumed {
		for _, prefix := range [...][]byte{LogPrefix(o), HardPrefix(o), StatePrefix(o)} {
			if err == nil {
				err = file(fmt.Sprintf("%02x-%d", prefix[0], o), func(w *SSTWriter) error {
					err := w.DeleteRange(prefix, PrefixEnd(prefix))
					if err == nil && prefix[0] == prefixHard {
						err = w.Set(voidKey(nil, o), e.journal.voidMark())
					}
					return err
				})
			}
		}
	}
	if err != nil {
		return e.fail(fmt.Errorf("write tables of shard %d: %w", s, err))
	}
	// The ingest outlives a crash that loses the end of the log, so the log is
	// made durable first.
	if !mutants.On("E-ingest-unsynced") {
		if err := e.syncLog(); err != nil {
			return err
		}
	}
	lower, upper := DataSpan(in.Desc.Keyspace, in.Desc.Start, in.Desc.End)
	if mutants.On("E17") {
		upper = lower // what was there stays
	}
	e.hurry.Add(1) // what the ingest waits for, commits wait for
	defer e.hurry.Add(-1)
	err = e.taking(in, func() error {
		_, err := e.db.IngestAndExcise(context.Background(), paths, nil, nil, pebble.KeyRange{Start: lower, End: upper})
		return err
	})
	if err != nil {
		return e.fail(fmt.Errorf("ingest shard %d: %w", s, err))
	}
	e.opts.OnDurable()
	for _, p := range in.Data {
		if err := e.fs.Remove(p); err != nil && !isNotExist(err) {
			e.log.Warn("staged table not removed", "path", p, "err", err)
		}
	}
	return nil
}

// StagingDir returns the directory for files under way: snapshots being
// received, tables being built. It exists while the store is open. What is in
// it survives a restart, as far as its owner synced it; CleanStaging removes
// what nobody will continue. Names that start with "install-" are the engine's; those that
// start with KeptPrefix are not under way, but images that are kept.
func (e *Engine) StagingDir() string { return e.fs.PathJoin(e.dir, stagingName) }

// KeptPrefix begins the names of images of shards in StagingDir.
const KeptPrefix = "image-"

// Smooth returns f with its writes on their way to the disk all along, so that a sync
// finds little left to do. It is for large files in StagingDir.
func Smooth(f File) File {
	return vfs.NewSyncingFile(f, vfs.SyncingFileOptions{BytesPerSync: bytesPerSync})
}

// FS returns the file system of the store, for files in StagingDir.
func (e *Engine) FS() FS { return e.fs }

// CleanStaging removes everything from the staging directory that keep (nil:
// nothing) does not want to keep. It is called before snapshots move.
func (e *Engine) CleanStaging(keep func(name string) bool) error {
	names, err := e.fs.List(e.StagingDir())
	if err != nil {
		return fmt.Errorf("engine: staging: %w", err)
	}
	for _, n := range names {
		if keep != nil && keep(n) {
			continue
		}
		if err := e.fs.RemoveAll(e.fs.PathJoin(e.StagingDir(), n)); err != nil {
			return fmt.Errorf("engine: staging: %w", err)
		}
	}
	return nil
}

// openStaging makes the staging directory and removes what the engine itself
// left there.
func (e *Engine) openStaging() error {
	err := mkdirSynced(e.fs, e.StagingDir())
	if err == nil {
		err = e.CleanStaging(func(name string) bool { return !strings.HasPrefix(name, "install-") })
	}
	if err != nil {
		return e.openErr(NotWritable, "check the path and its permissions", err)
	}
	return nil
}
