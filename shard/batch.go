package shard

import (
	"encoding/binary"
	"iter"

	"github.com/flotillakv/flotilla/multiraft/raft"
)

// batchHeader is the u32 count in front of a batch's operations.
const batchHeader = 4

// Batch collects puts, deletes and range deletes that are applied together, in
// the order in which they were added, as one command with one Version. Keys and
// values are copied when added. The zero Batch is empty and ready for use; it
// is not safe for concurrent use. A batch never takes effect in part.
//
// Sizes are checked when the batch is written (Command), so that adding needs
// no error: keys of 1 to MaxKeyBytes, values up to MaxValueBytes, the whole up
// to MaxBatchBytes encoded and MaxBatchOps operations.
type Batch struct {
	n   int
	buf []byte // the body of OpBatch; its count is filled in by Command
}

// Put adds an operation that stores value under key.
func (b *Batch) Put(key, value []byte) { b.Add(PutOp(key, value)) }

// Delete adds an operation that removes key.
func (b *Batch) Delete(key []byte) { b.Add(DeleteOp(key)) }

// DeleteRange adds an operation that removes [start, end). An empty end is the
// end of the keyspace.
func (b *Batch) DeleteRange(start, end []byte) { b.Add(DeleteRangeOp(start, end)) }

// Add adds an operation.
func (b *Batch) Add(o Op) {
	if len(b.buf) == 0 {
		b.buf = append(b.buf, 0, 0, 0, 0)
	}
	b.buf = appendOp(b.buf, o)
	b.n++
}

// Len returns the number of operations.
func (b *Batch) Len() int { return b.n }

// Bytes returns the size of the encoded batch, which MaxBatchBytes bounds.
func (b *Batch) Bytes() int { return len(b.buf) }

// Reset empties the batch and keeps its memory.
func (b *Batch) Reset() { b.n, b.buf = 0, b.buf[:0] }

// Clone returns an independent copy.
func (b *Batch) Clone() *Batch { return &Batch{n: b.n, buf: append([]byte(nil), b.buf...)} }

// Ops yields the operations in order. Their slices alias the batch and are valid
// until it is changed.
func (b *Batch) Ops() iter.Seq[Op] {
	if b.n == 0 {
		return func(func(Op) bool) {}
	}
	return OpView{n: b.n, body: b.buf[batchHeader:]}.All()
}

// Check returns nil when the batch may be written, else *ArgumentError or
// *LimitError. An empty batch is an *ArgumentError.
func (b *Batch) Check() error {
	if b.n == 0 {
		return &ArgumentError{Field: "batch", Reason: "it is empty"}
	}
	binary.BigEndian.PutUint32(b.buf, uint32(b.n))
	_, err := DecodeBatch(b.buf)
	return err
}

// Command returns the checked command of the batch, or the error of Check. Its
// body is a copy, because a write whose caller gave up may still be on its way
// into a log: the batch may be changed at once.
func (b *Batch) Command() (raft.Command, error) {
	if err := b.Check(); err != nil {
		return raft.Command{}, err
	}
	return raft.Command{Op: OpBatch, Body: append(make([]byte, 0, len(b.buf)), b.buf...)}, nil
}

// DecodeBatch validates an OpBatch body and returns a view of its operations.
func DecodeBatch(body []byte) (OpView, error) {
	if len(body) > MaxBatchBytes {
		return OpView{}, &LimitError{What: "bytes of a batch", Limit: MaxBatchBytes, Got: len(body)}
	}
	if len(body) < batchHeader {
		return OpView{}, errMalformed(OpBatch)
	}
	r := reader{b: body[batchHeader:]}
	v, err := r.ops(uint64(binary.BigEndian.Uint32(body)), false)
	if err != nil {
		return OpView{}, err
	}
	if !r.done() || v.n == 0 {
		return OpView{}, errMalformed(OpBatch)
	}
	return v, nil
}
