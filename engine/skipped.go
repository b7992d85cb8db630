package engine

import (
	"encoding/binary"
	"fmt"

	"github.com/cockroachdb/pebble/v2"

	"github.com/flotillakv/flotilla/multiraft/raft"
)

// Skipped names commands of one entry that were not carried out by a state machine
// outside of the store: tries of a session whose command had been. When the entry is
// handed to that machine again after a restart, they are left out again; the session's
// record of now could not tell. It is the replica's own, and goes when the entry goes.
type Skipped struct {
	Index raft.Index
	Slots []uint32 // ascending, at least one
}

// maxSkippedSlots bounds the slots of a record: the commands of an entry.
const maxSkippedSlots = 1 << 16

// encode appends: version u8, then per slot its distance from the one before (the first
// one's from -1), uvarint.
func (k *Skipped) encode(dst []byte) []byte {
	dst = append(dst, 1)
	next := uint32(0)
	for _, s := range k.Slots {
		dst = binary.AppendUvarint(dst, uint64(s-next)+1)
		next = s + 1
	}
	return dst
}

// decodeSkipped is the inverse of encode. Errors wrap raft.ErrCorrupt.
func decodeSkipped(i raft.Index, b []byte) (Skipped, error) {
	k := Skipped{Index: i}
	bad := func() (Skipped, error) {
		return Skipped{}, fmt.Errorf("skipped commands %x are damaged: %w", b[:min(len(b), 64)], raft.ErrCorrupt)
	}
	if len(b) < 2 || b[0] != 1 {
		return bad()
	}
	next := uint64(0)
	for r := b[1:]; len(r) > 0; {
		d, n := binary.Uvarint(r)
		if n <= 0 || d == 0 || d > maxSkippedSlots || next+d > maxSkippedSlots || n > 1 && r[n-1] == 0 {
			return bad()
		}
		next += d
		k.Slots = append(k.Slots, uint32(next-1))
		r = r[n:]
	}
	return k, nil
}

// SetSkipped notes which commands of an entry were not carried out.
func (b *Batch) SetSkipped(s raft.ShardID, k Skipped) {
	b.key = skippedKey(b.key[:0], s, k.Index)
	b.val = k.encode(b.val[:0])
	b.set(b.key, b.val)
}

// DeleteSkipped deletes what SetSkipped noted of an entry.
func (b *Batch) DeleteSkipped(s raft.ShardID, i raft.Index) {
	b.key = skippedKey(b.key[:0], s, i)
	b.delete(b.key)
}

// skippedSpan holds the records of a group.
func skippedSpan(s raft.ShardID) pebble.KeyRange {
	prefix := append(HardPrefix(s), suffixSkipped)
	return pebble.KeyRange{Start: prefix, End: PrefixEnd(prefix)}
}

// Skipped returns what SetSkipped noted of a group, ascending. A record that is damaged
// is a *GroupError.
func (e *Engine) Skipped(s raft.ShardID) (out []Skipped, err error) {
	if err := e.enter(); err != nil {
		return nil, err
	}
	defer e.leave()
	span := skippedSpan(s)
	it, err := e.newRawIter(span.Start, span.End)
	if err != nil {
		return nil, err
	}
	defer it.Close()
	for ok := it.First(); ok; ok = it.Next() {
		k, err := ParseKey(it.Key())
		if err != nil {
			return nil, &GroupError{Shard: s, Err: err}
		}
		v, err := it.ValueAndErr()
		if err != nil {
			return nil, e.iterError(err)
		}
		skip, err := decodeSkipped(k.Index, v)
		if err != nil {
			return nil, &GroupError{Shard: s, Index: k.Index, Err: err}
		}
		out = append(out, skip)
	}
	return out, e.iterError(it.Error())
}
