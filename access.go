package flotilla

import (
	"context"
	"iter"

	"github.com/flotillakv/flotilla/router"
	"github.com/flotillakv/flotilla/shard"
)

// access is KV over a router. Node and Client embed it.
type access struct{ space router.Space }

// Get implements KV.
func (a *access) Get(ctx context.Context, key []byte, o ...ReadOption) (Value, error) {
	return a.space.Get(ctx, key, readOpts(o).consistency)
}

// Put implements KV.
func (a *access) Put(ctx context.Context, key, val []byte, _ ...WriteOption) (Receipt, error) {
	return a.space.Put(ctx, key, val)
}

// Delete implements KV.
func (a *access) Delete(ctx context.Context, key []byte, _ ...WriteOption) (Receipt, error) {
	return a.space.Delete(ctx, key)
}

// DeleteRange implements KV.
func (a *access) DeleteRange(ctx context.Context, r Range, o ...WriteOption) (Receipt, error) {
	return a.space.DeleteRange(ctx, r.Start, r.End, writeOpts(o).nonAtomic)
}

// Scan implements KV.
func (a *access) Scan(ctx context.Context, r Range, o ...ReadOption) iter.Seq2[Pair, error] {
	return a.space.Scan(ctx, router.Scan{
		Start: r.Start, End: r.End, Limit: r.Limit, Reverse: r.Reverse, Consistency: readOpts(o).consistency,
	})
}

// Write implements KV.
func (a *access) Write(ctx context.Context, b *Batch, o ...WriteOption) (Receipt, error) {
	if b == nil {
		return Receipt{}, &shard.ArgumentError{Field: "batch", Reason: "it is nil"}
	}
	return a.space.Write(ctx, b, writeOpts(o).nonAtomic)
}

// CAS implements KV.
func (a *access) CAS(ctx context.Context, key []byte, want Version, val []byte, _ ...WriteOption) (Receipt, error) {
	return a.space.CAS(ctx, key, want, val)
}

// Txn implements KV.
func (a *access) Txn(ctx context.Context, t Txn, _ ...WriteOption) (TxnResult, error) {
	return a.space.Txn(ctx, t)
}
