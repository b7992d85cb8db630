package piped

import (
	"context"
	"sync"

	"github.com/flotillakv/flotilla"
)

// KV is a flotilla.KV of which Get and the writes go through a pipeline. Close it.
type KV struct {
	flotilla.KV
	p  *flotilla.Pipeline
	wg sync.WaitGroup
}

// New returns kv with a pipeline of depth calls. Callers beyond that get
// flotilla.ErrPipelineFull. kv stays the caller's.
func New(kv flotilla.KV, depth int) (*KV, error) {
	p, err := kv.NewPipeline(flotilla.PipelineOptions{Depth: depth})
	if err != nil {
		return nil, err
	}
	k := &KV{KV: kv, p: p}
	k.wg.Go(func() {
		for c := range p.Done() {
			c.Tag.(chan *flotilla.Call) <- c // room for one; a second would be noticed: the callers hang
		}
	})
	return k, nil
}

// Close ends what is under way, and the pipeline.
func (k *KV) Close() error {
	err := k.p.Close()
	k.wg.Wait()
	return err
}

// through starts one call and waits until it comes out of the pipeline.
func (k *KV) through(start func(tag any) error) *flotilla.Call {
	done := make(chan *flotilla.Call, 1)
	if err := start(done); err != nil {
		return &flotilla.Call{Err: err}
	}
	return <-done
}

// Get implements flotilla.KV.
func (k *KV) Get(ctx context.Context, key []byte, o ...flotilla.ReadOption) (flotilla.Value, error) {
	c := k.through(func(tag any) error { return k.p.Get(ctx, key, tag, o...) })
	return c.Value, c.Err
}

// Put implements flotilla.KV.
func (k *KV) Put(ctx context.Context, key, val []byte, _ ...flotilla.WriteOption) (flotilla.Receipt, error) {
	c := k.through(func(tag any) error { return k.p.Put(ctx, key, val, tag) })
	return c.Receipt, c.Err
}

// Delete implements flotilla.KV.
func (k *KV) Delete(ctx context.Context, key []byte, _ ...flotilla.WriteOption) (flotilla.Receipt, error) {
	c := k.through(func(tag any) error { return k.p.Delete(ctx, key, tag) })
	return c.Receipt, c.Err
}

// DeleteRange implements flotilla.KV.
func (k *KV) DeleteRange(ctx context.Context, r flotilla.Range, o ...flotilla.WriteOption) (flotilla.Receipt, error) {
	c := k.through(func(tag any) error { return k.p.DeleteRange(ctx, r, tag, o...) })
	return c.Receipt, c.Err
}

// Write implements flotilla.KV.
func (k *KV) Write(ctx context.Context, b *flotilla.Batch, o ...flotilla.WriteOption) (flotilla.Receipt, error) {
	c := k.through(func(tag any) error { return k.p.Write(ctx, b, tag, o...) })
	return c.Receipt, c.Err
}

// CAS implements flotilla.KV.
func (k *KV) CAS(ctx context.Context, key []byte, want flotilla.Version, val []byte, _ ...flotilla.WriteOption) (flotilla.Receipt, error) {
	c := k.through(func(tag any) error { return k.p.CAS(ctx, key, want, val, tag) })
	return c.Receipt, c.Err
}

// Txn implements flotilla.KV.
func (k *KV) Txn(ctx context.Context, t flotilla.Txn, _ ...flotilla.WriteOption) (flotilla.TxnResult, error) {
	c := k.through(func(tag any) error { return k.p.Txn(ctx, t, tag) })
	return c.Txn, c.Err
}
