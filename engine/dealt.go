package engine

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"

	"github.com/flotillakv/flotilla/multiraft/raft"
)

// A store may hold groups of which it has no record: those that were dealt to the node when
// its cluster was formed, and that nobody used since. One record, of which the engine
// knows no more than its checksum, says which they are (SetDealt). Such a group has its
// first records with CreateGroup, before anything else is written for it; one
// that was destroyed has a tombstone.
//
// Value: version u8, CRC-32C of the rest u32, rest.
const dealtHead = 5

// MaxDealt bounds the record of SetDealt in bytes.
const MaxDealt = 16 << 20

func encodeDealt(dst, v []byte) []byte {
	dst = append(dst, 1)
	dst = binary.BigEndian.AppendUint32(dst, crc32.Checksum(v, castagnoli))
	return append(dst, v...)
}

// decodeDealt returns what was given to encodeDealt. It shares memory with b.
func decodeDealt(b []byte) ([]byte, error) {
	if len(b) < dealtHead || len(b) > dealtHead+MaxDealt || b[0] != 1 || binary.BigEndian.Uint32(b[1:]) != crc32.Checksum(b[dealtHead:], castagnoli) {
		return nil, fmt.Errorf("record of the groups that were dealt, %d bytes, is damaged: %w", len(b), raft.ErrCorrupt)
	}
	return b[dealtHead:], nil
}

// SetDealt says which groups are in the store without a record of their own; what v, at
// most MaxDealt bytes, means is a matter of the caller's. It is durable when it returns nil. An
// error, but for one of the length, means that the store has failed.
func (e *Engine) SetDealt(v []byte) error {
	if len(v) > MaxDealt {
		return fmt.Errorf("engine: record of the groups that were dealt has %d bytes, at most %d are allowed", len(v), MaxDealt)
	}
	if err := e.enter(); err != nil {
		return err
	}
	defer e.leave()
	pb := e.db.NewBatch()
	if err := pb.Set(dealtKey(nil), encodeDealt(nil, v), nil); err != nil {
		return errors.Join(err, pb.Close())
	}
	return e.applySynced(pb)
}

// Dealt returns what SetDealt was given; ok is false if that was never called. A damaged
// record is an error.
func (e *Engine) Dealt() (v []byte, ok bool, err error) {
	if err := e.enter(); err != nil {
		return nil, false, err
	}
	defer e.leave()
	b, ok, err := e.getRaw(dealtKey(nil))
	if err != nil || !ok {
		return nil, false, err
	}
	if v, err = decodeDealt(b); err != nil {
		return nil, false, e.openErr(Corrupt, e.replaceHint(), err)
	}
	return v, true, nil
}

// EachTombstone calls f with all tombstones, by shard (see Tombstone).
func (e *Engine) EachTombstone(f func(s raft.ShardID, minReplica raft.ReplicaID)) error {
	if err := e.enter(); err != nil {
		return err
	}
	defer e.leave()
	prefix := []byte{prefixStore, tagTombstone}
	return e.eachRaw(prefix, PrefixEnd(prefix), func(k Key, v []byte) (bool, error) {
		r, err := decodeTombstone(v)
		if err == nil {
			f(k.Shard, r)
		}
		return err == nil, err
	})
}

// CreateGroup writes the first records of a group of which the store holds nothing, and
// which was never here before. Where applying is deferred they go around memory, where
// nothing of the group is: that costs less than SetDescriptor, which looks for it there.
func (b *Batch) CreateGroup(d *raft.Descriptor) {
	put := func() {
		op := b.b.SetDeferred(len(b.key), len(b.val))
		copy(op.Key, b.key)
		copy(op.Value, b.val)
	}
	b.key, b.val = hardKey(b.key[:0], d.Shard), raft.HardState{}.Encode(b.val[:0])
	put()
	b.key, b.val = appliedKey(b.key[:0], d.Shard), raft.AppliedState{}.Encode(b.val[:0])
	put()
	b.key, b.val = descKey(b.key[:0], d.Shard), d.Encode(b.val[:0])
	put()
	b.around = true
}
