package flotillatest_test

import (
	"context"

	"github.com/flotillakv/flotilla"
)

// piped is a KV whose single operations go through a pipeline, so that whatever
// is shown of calls that wait is shown of those that do not.
type piped struct{ flotilla.KV }

// through starts one call and receives it.
func (k piped) through(start func(p *flotilla.Pipeline) error) *flotilla.Call {
	p, err := k.NewPipeline(flotilla.PipelineOptions{Depth: 1})
	if err != nil {
		return &flotilla.Call{Err: err}
	}
	defer p.Close()
	if err := start(p); err != nil {
		return &flotilla.Call{Err: err}
	}
	return <-p.Done()
}

func (k piped) Get(ctx context.Context, key []byte, o ...flotilla.ReadOption) (flotilla.Value, error) {
	c := k.through(func(p *flotilla.Pipeline) error { return p.Get(ctx, key, nil, o...) })
	return c.Value, c.Err
}

func (k piped) Put(ctx context.Context, key, val []byte, _ ...flotilla.WriteOption) (flotilla.Receipt, error) {
	c := k.through(func(p *flotilla.Pipeline) error { return p.Put(ctx, key, val, nil) })
	return c.Receipt, c.Err
}

func (k piped) Delete(ctx context.Context, key []byte, _ ...flotilla.WriteOption) (flotilla.Receipt, error) {
	c := k.through(func(p *flotilla.Pipeline) error { return p.Delete(ctx, key, nil) })
	return c.Receipt, c.Err
}

func (k piped) DeleteRange(ctx context.Context, r flotilla.Range, o ...flotilla.WriteOption) (flotilla.Receipt, error) {
	c := k.through(func(p *flotilla.Pipeline) error { return p.DeleteRange(ctx, r, nil, o...) })
	return c.Receipt, c.Err
}

func (k piped) Write(ctx context.Context, b *flotilla.Batch, o ...flotilla.WriteOption) (flotilla.Receipt, error) {
	c := k.through(func(p *flotilla.Pipeline) error { return p.Write(ctx, b, nil, o...) })
	return c.Receipt, c.Err
}

func (k piped) CAS(ctx context.Context, key []byte, want flotilla.Version, val []byte, _ ...flotilla.WriteOption) (flotilla.Receipt, error) {
	c := k.through(func(p *flotilla.Pipeline) error { return p.CAS(ctx, key, want, val, nil) })
	return c.Receipt, c.Err
}

func (k piped) Txn(ctx context.Context, t flotilla.Txn, _ ...flotilla.WriteOption) (flotilla.TxnResult, error) {
	c := k.through(func(p *flotilla.Pipeline) error { return p.Txn(ctx, t, nil) })
	return c.Txn, c.Err
}
