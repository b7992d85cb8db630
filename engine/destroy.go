package engine

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"

	"github.com/cockroachdb/pebble/v2"

	"github.com/flotillakv/flotilla/internal/mutants"
	"github.com/flotillakv/flotilla/multiraft/raft"
)

// An intent says that the data of a destroyed replica is still to be removed:
// version u8, keyspace u32, replica u32, startLen uvarint, start, endLen
// uvarint, end.
type intent struct {
	Keyspace   uint32
	Replica    raft.ReplicaID // the lowest id that may live here from now on
	Start, End []byte
}

var errBadIntent = errors.New("destroy intent is damaged")

func (in intent) encode(dst []byte) []byte {
	dst = append(dst, 1)
	dst = binary.BigEndian.AppendUint32(dst, in.Keyspace)
	dst = binary.BigEndian.AppendUint32(dst, uint32(in.Replica))
	dst = binary.AppendUvarint(dst, uint64(len(in.Start)))
	dst = append(dst, in.Start...)
	dst = binary.AppendUvarint(dst, uint64(len(in.End)))
	return append(dst, in.End...)
}

func decodeIntent(b []byte) (intent, error) {
	var in intent
	if len(b) < 9 || b[0] != 1 {
		return in, errBadIntent
	}
	in.Keyspace = binary.BigEndian.Uint32(b[1:])
	in.Replica = raft.ReplicaID(binary.BigEndian.Uint32(b[5:]))
	b = b[9:]
	for _, p := range []*[]byte{&in.Start, &in.End} {
		n, used := binary.Uvarint(b)
		if used <= 0 || n > uint64(len(b)-used) || used != uvarintLen(n) {
			return intent{}, errBadIntent
		}
		*p = bytes.Clone(b[used : used+int(n)])
		b = b[used+int(n):]
	}
	if len(b) != 0 {
		return intent{}, errBadIntent
	}
	return in, nil
}

func uvarintLen(n uint64) int {
	var b [binary.MaxVarintLen64]byte
	return binary.PutUvarint(b[:], n)
}

// A tombstone's value: version u8, lowest replica id u32.
func encodeTombstone(dst []byte, r raft.ReplicaID) []byte {
	return binary.BigEndian.AppendUint32(append(dst, 1), uint32(r))
}

func decodeTombstone(b []byte) (raft.ReplicaID, error) {
	if len(b) != 5 || b[0] != 1 {
		return 0, fmt.Errorf("engine: tombstone %x is damaged", b)
	}
	return raft.ReplicaID(binary.BigEndian.Uint32(b[1:])), nil
}

// Tombstone returns the lowest replica id of s that may live on this node, and
// whether a replica of s was ever destroyed here.
func (e *Engine) Tombstone(s raft.ShardID) (minReplica raft.ReplicaID, ok bool, err error) {
	if err := e.enter(); err != nil {
		return 0, false, err
	}
	defer e.leave()
	return e.tombstone(s)
}

// SetTombstone says that replicas of s below minReplica are not to live here: it
// goes into the batch with which such a one learns that it was removed. It
// removes nothing by itself; Destroy does.
func (b *Batch) SetTombstone(s raft.ShardID, minReplica raft.ReplicaID) {
	b.key = tombstoneKey(b.key[:0], s)
	b.val = encodeTombstone(b.val[:0], minReplica)
	b.set(b.key, b.val)
}

func (e *Engine) tombstone(s raft.ShardID) (raft.ReplicaID, bool, error) {
	b, ok, err := e.getRaw(tombstoneKey(nil, s))
	if err != nil || !ok {
		return 0, false, err
	}
	r, err := decodeTombstone(b)
	return r, err == nil, err
}

// Destroy removes the replica of shard s and its data. desc is its last
// descriptor; replicas of s with an id below minReplica will never live here
// again. The order is that of I6: (1) one synced batch with tombstone,
// deletion of all Raft state and the intent; (2) removal of the data from the
// tables; (3) deletion of the intent. After a crash in between, Boot goes on.
// The owner of the group must have stopped using it.
func (e *Engine) Destroy(s raft.ShardID, desc *raft.Descriptor, minReplica raft.ReplicaID) error {
	if err := e.enter(); err != nil {
		return err
	}
	defer e.leave()
	if have, ok, err := e.tombstone(s); err != nil {
		return err
	} else if ok {
		minReplica = max(minReplica, have)
	}
	in := intent{Keyspace: desc.Keyspace, Replica: minReplica, Start: desc.Start, End: desc.End}
	if d := e.def; d != nil {
		// Nothing of the group comes to the tables from here on.
		d.flushMu.Lock()
		defer d.flushMu.Unlock()
	}
	e.journal.hold(s, true)
	defer e.journal.hold(s, false)
	pb := e.db.NewBatch()
	write := func(errs ...error) error { return errors.Join(errs...) }
	err := write(
		pb.Set(tombstoneKey(nil, s), encodeTombstone(nil, minReplica), nil),
		pb.Set(intentKey(nil, s), in.encode(nil), nil),
		e.clearRaft(pb, s),
	)
	if mutants.On("E-intent-early") {
		err = write(err, pb.Delete(intentKey(nil, s), nil))
	}
	if mutants.On("E-destroy-first") {
		lower, upper := DataSpan(in.Keyspace, in.Start, in.End)
		err = write(err, e.db.Excise(context.Background(), pebble.KeyRange{Start: lower, End: upper}))
	}
	if err != nil {
		return errors.Join(err, pb.Close())
	}
	begun := e.stats.now()
	commit := e.commitSyncing
	if mutants.On("E-destroy-unsynced") {
		commit = e.commitUnsynced
	}
	if err := e.takeWith(s, func() error { return commit(pb) }); err != nil {
		return err
	}
	if !mutants.On("E-destroy-unsynced") {
		if err := errors.Join(e.endSync(pb, begun), pb.Close()); err != nil {
			return err
		}
	}
	if !mutants.On("G14") {
		e.journal.voided(s, 0)
	}
	return e.carryOut(s, in)
}

// clearRaft adds the removal of a group's promises, log and applied side to pb.
func (e *Engine) clearRaft(pb *pebble.Batch, s raft.ShardID) error {
	err := errors.Join(
		pb.Delete(hardKey(nil, s), nil),
		pb.Delete(truncKey(nil, s), nil),
		pb.Delete(quarantineKey(nil, s), nil),
		pb.DeleteRange(StatePrefix(s), PrefixEnd(StatePrefix(s)), nil),
	)
	if !mutants.On("G14") {
		err = errors.Join(err, pb.DeleteRange(LogPrefix(s), PrefixEnd(LogPrefix(s)), nil), pb.Set(voidKey(nil, s), e.journal.voidMark(), nil))
	}
	left, lookErr := e.hasKeys(skippedSpan(s))
	if left {
		err = errors.Join(err, pb.DeleteRange(skippedSpan(s).Start, skippedSpan(s).End, nil))
	}
	return errors.Join(err, lookErr)
}

// takeWith takes a group out of memory in the same step in which commit takes it out of
// Pebble: no View sees it half gone.
func (e *Engine) takeWith(s raft.ShardID, commit func() error) error {
	d := e.def
	if d == nil {
		return commit()
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	sp := StatePrefix(s)
	d.takeLocked(pebble.KeyRange{Start: sp, End: PrefixEnd(sp)})
	return commit()
}

// carryOut removes the data of one intent, except what belongs to a live
// group, and then the intent. Everything the removal relies on is durable.
func (e *Engine) carryOut(s raft.ShardID, in intent) error {
	spans, err := e.deadSpans(in)
	if err != nil {
		return err
	}
	if mutants.On("G14c") {
		spans = nil
	}
	if d := e.def; d != nil {
		d.mu.Lock()
		d.takeLocked(spans...)
		d.mu.Unlock()
	}
	for _, sp := range spans {
		if err := e.db.Excise(context.Background(), sp); err != nil {
			return e.fail(fmt.Errorf("excise data of shard %d: %w", s, err))
		}
	}
	if err := e.db.Delete(intentKey(nil, s), pebble.NoSync); err != nil {
		return e.fail(fmt.Errorf("delete intent of shard %d: %w", s, err))
	}
	return nil
}

// carryOutIntents does what crashes left undone.
func (e *Engine) carryOutIntents() error {
	prefix := []byte{prefixStore, tagIntent}
	it, err := e.newRawIter(prefix, PrefixEnd(prefix))
	if err != nil {
		return err
	}
	defer it.Close()
	synced := false
	for ok := it.First(); ok; ok = it.Next() {
		k, err := ParseKey(it.Key())
		if err != nil {
			return err
		}
		v, err := it.ValueAndErr()
		if err != nil {
			return e.iterError(err)
		}
		in, err := decodeIntent(v)
		if err != nil {
			return &GroupError{Shard: k.Shard, Err: err}
		}
		if !synced {
			if err := e.syncLog(); err != nil {
				return err
			}
			synced = true
		}
		e.log.Info("removing the data of a destroyed replica", "shard", k.Shard)
		if err := e.carryOut(k.Shard, in); err != nil {
			return err
		}
	}
	return e.iterError(it.Error())
}

// deadSpans returns the raw spans of an intent minus those of all groups that
// live on this node: after a merge its span belongs to the neighbour, after a
// new addition to a newer replica.
func (e *Engine) deadSpans(in intent) ([]pebble.KeyRange, error) {
	lower, upper := DataSpan(in.Keyspace, in.Start, in.End)
	dead := []pebble.KeyRange{{Start: lower, End: upper}}
	err := e.eachDescriptor(func(d *raft.Descriptor) {
		if mutants.On("E-intent-all") {
			return
		}
		lo, hi := DataSpan(d.Keyspace, d.Start, d.End)
		var rest []pebble.KeyRange
		for _, sp := range dead {
			if bytes.Compare(hi, sp.Start) <= 0 || bytes.Compare(sp.End, lo) <= 0 {
				rest = append(rest, sp)
				continue
			}
			if bytes.Compare(sp.Start, lo) < 0 {
				rest = append(rest, pebble.KeyRange{Start: sp.Start, End: lo})
			}
			if bytes.Compare(hi, sp.End) < 0 {
				rest = append(rest, pebble.KeyRange{Start: hi, End: sp.End})
			}
		}
		dead = rest
	})
	return dead, err
}

// eachDescriptor calls f with every descriptor of the store, by shard.
func (e *Engine) eachDescriptor(f func(*raft.Descriptor)) error {
	it, err := e.newRawIter([]byte{prefixApplied}, []byte{prefixApplied + 1})
	if err != nil {
		return err
	}
	defer it.Close()
	var kb [logKeyLen]byte
	for ok := it.First(); ok; {
		k, err := ParseKey(it.Key())
		if err != nil {
			return err
		}
		v, found, err := itGetter(it)(descKey(kb[:0], k.Shard))
		if err != nil {
			return e.iterError(err)
		}
		if found {
			d, err := raft.DecodeDescriptor(v)
			if err != nil {
				return &GroupError{Shard: k.Shard, Err: err}
			}
			f(&d)
		}
		if k.Shard == ^raft.ShardID(0) {
			break
		}
		ok = it.SeekGE(appendGroup(kb[:0], prefixApplied, k.Shard+1))
	}
	return e.iterError(it.Error())
}
