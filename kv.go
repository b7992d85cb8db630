package flotilla

import (
	"context"
	"iter"

	"github.com/flotillakv/flotilla/shard"
)

// The vocabulary of requests, shared with the layers below.
type (
	// Version identifies the write that produced a value; the zero Version means "absent".
	Version = shard.Version
	// Receipt says where a write stands in its shard's log. Keys it wrote have its Version.
	Receipt = shard.Receipt
	// Value is a value with its version. Bytes belong to the caller.
	Value = shard.Value
	// Pair is a key with its value and version.
	Pair = shard.Pair
	// Batch collects puts and deletes to be applied together. The zero Batch is
	// empty and ready. It must not be changed while a Write of it is under way.
	Batch = shard.Batch
	// Txn is a conditional transaction over keys of one shard.
	Txn = shard.Txn
	// Cond is one condition of a Txn; see IfVersion, IfExists, IfAbsent, IfValue.
	Cond = shard.Cond
	// Op is one operation of a Txn; see PutOp, DeleteOp, DeleteRangeOp, GetOp.
	Op = shard.Op
	// TxnResult tells which branch of a Txn was applied, and what its gets read.
	TxnResult = shard.TxnResult
)

// Limits of keys and values, in bytes.
const (
	MaxKeyBytes   = shard.MaxKeyBytes
	MaxValueBytes = shard.MaxValueBytes
	MaxBatchBytes = shard.MaxBatchBytes
)

// IfVersion holds when the key's version is v (the zero Version: when it is absent).
func IfVersion(key []byte, v Version) Cond { return shard.IfVersion(key, v) }

// IfExists holds when the key has a value, be it empty.
func IfExists(key []byte) Cond { return shard.IfExists(key) }

// IfAbsent holds when the key has no value.
func IfAbsent(key []byte) Cond { return shard.IfAbsent(key) }

// IfValue holds when the key exists and its value equals value.
func IfValue(key, value []byte) Cond { return shard.IfValue(key, value) }

// PutOp sets a key.
func PutOp(key, value []byte) Op { return shard.PutOp(key, value) }

// DeleteOp removes a key; a key that is absent stays absent.
func DeleteOp(key []byte) Op { return shard.DeleteOp(key) }

// DeleteRangeOp removes all keys of [start, end).
func DeleteRangeOp(start, end []byte) Op { return shard.DeleteRangeOp(start, end) }

// GetOp reads a key within a transaction, as it was before the transaction's own writes.
func GetOp(key []byte) Op { return shard.GetOp(key) }

// Range is a range of keys to scan or delete: [Start, End). An empty Start
// begins at the first key, an empty End ends after the last. Start after End is
// refused.
type Range struct {
	Start, End []byte
	// Limit bounds the pairs a scan yields. Zero: no bound. Not used by DeleteRange.
	Limit int
	// Reverse scans from End down to Start. Not used by DeleteRange.
	Reverse bool
}

// Prefix returns the range of all keys that begin with p.
func Prefix(p []byte) Range {
	end := append([]byte(nil), p...)
	for i := len(end) - 1; i >= 0; i-- {
		if end[i] < 0xff {
			end[i]++
			return Range{Start: append([]byte(nil), p...), End: end[:i+1]}
		}
	}
	return Range{Start: append([]byte(nil), p...)}
}

// KV is the store, as a Node, a Client and a test cluster serve it. All methods
// may be called from many goroutines. A context that ends after a write was
// handed to its shard gives ErrAmbiguous; see Outcome.
type KV interface {
	// Get returns the value of key; ErrNotFound when there is none.
	Get(ctx context.Context, key []byte, o ...ReadOption) (Value, error)
	// Put sets key to val.
	Put(ctx context.Context, key, val []byte, o ...WriteOption) (Receipt, error)
	// Delete removes key. Removing an absent key is no error.
	Delete(ctx context.Context, key []byte, o ...WriteOption) (Receipt, error)
	// DeleteRange removes all keys of [r.Start, r.End). Within one shard it is
	// atomic; a range over several shards is refused with *CrossShardError
	// unless NonAtomic is given.
	DeleteRange(ctx context.Context, r Range, o ...WriteOption) (Receipt, error)
	// Scan yields the pairs of r in key order. An error is yielded once and
	// last, with a zero Pair. Each page of a shard is a consistent view; a scan as
	// a whole is not. A yielded pair belongs to the caller.
	Scan(ctx context.Context, r Range, o ...ReadOption) iter.Seq2[Pair, error]
	// Write applies a batch: atomically, in order. A batch over several shards
	// is refused with *CrossShardError unless NonAtomic is given.
	Write(ctx context.Context, b *Batch, o ...WriteOption) (Receipt, error)
	// CAS sets key to val if its version is want, else *ConflictError. The zero
	// Version wants the key to be absent.
	CAS(ctx context.Context, key []byte, want Version, val []byte, o ...WriteOption) (Receipt, error)
	// Txn applies t.Then if all conditions hold, else t.Else, atomically. All
	// keys must be of one shard, else *CrossShardError.
	Txn(ctx context.Context, t Txn, o ...WriteOption) (TxnResult, error)
	// NewPipeline returns a way to start operations without waiting for them, for
	// a goroutine that wants to have many under way.
	NewPipeline(o PipelineOptions) (*Pipeline, error)
}

// ReadOption changes how one read is served.
type ReadOption func(*readOptions)

type readOptions struct{ consistency shard.Consistency }

// Linearizable reads see every write acknowledged before the read began. The default.
func Linearizable() ReadOption {
	return func(o *readOptions) { o.consistency = shard.Linearizable }
}

// NoClock is Linearizable without any reliance on clocks: always a quorum round.
// Options.NoClock makes it so for everything a node serves.
func NoClock() ReadOption { return func(o *readOptions) { o.consistency = shard.NoClock } }

// Follower is Linearizable, served by the nearest replica: it asks the leader how
// far it has to be, and reads its own store when it is. It takes load off leaders
// at the price of one message to them; all reads of a shard that a node starts
// together share it.
func Follower() ReadOption { return func(o *readOptions) { o.consistency = shard.Follower } }

// Local reads what the nearest replica has applied. It may lag without bound,
// but needs no quorum.
func Local() ReadOption { return func(o *readOptions) { o.consistency = shard.Local } }

// WriteOption changes how one write is carried out.
type WriteOption func(*writeOptions)

type writeOptions struct{ nonAtomic bool }

// NonAtomic lets a batch or a range deletion that spans shards be applied shard
// by shard. If some shards applied their part and others did not, the error's
// Outcome is MaybeApplied.
func NonAtomic() WriteOption { return func(o *writeOptions) { o.nonAtomic = true } }

func readOpts(o []ReadOption) readOptions {
	if len(o) == 0 {
		return readOptions{}
	}
	r := new(readOptions) // escapes into the options; most calls have none
	for _, f := range o {
		f(r)
	}
	return *r
}

func writeOpts(o []WriteOption) writeOptions {
	if len(o) == 0 {
		return writeOptions{}
	}
	w := new(writeOptions)
	for _, f := range o {
		f(w)
	}
	return *w
}
