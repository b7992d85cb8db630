package flotilla

import (
	"context"
	"fmt"

	"github.com/flotillakv/flotilla/router"
	"github.com/flotillakv/flotilla/shard"
)

// PipelineOptions configure a Pipeline. The zero value will do.
type PipelineOptions struct {
	// Depth is how many calls the pipeline can hold, from their start until they
	// are received from Done: 1 to MaxPipelineDepth. Zero: DefaultPipelineDepth.
	Depth int
}

// Bounds of PipelineOptions.Depth.
const (
	DefaultPipelineDepth = router.DefaultPipelineDepth
	MaxPipelineDepth     = router.MaxPipelineDepth
)

// ErrPipelineFull says that a pipeline holds as many calls as it can. The call was
// not started; receive from Done first.
var ErrPipelineFull = router.ErrPipelineFull

// Call is an operation of a Pipeline that is over.
type Call = router.Call

// Pipeline starts operations without waiting for them, so that one goroutine can
// have many under way. Each method starts what the method of KV with its name
// does, and returns: nil, ErrPipelineFull or ErrClosed, and in the last two cases
// nothing was started. When the operation is over its Call comes out of Done, with
// the result and the error (Call.Err) that the method of KV would have returned,
// ErrAmbiguous and argument errors included, and with the tag it was started with.
//
//	p, err := node.NewPipeline(flotilla.PipelineOptions{Depth: 256})
//	defer p.Close()
//	for i := range keys {
//		if p.Pending() == p.Depth() {
//			check(<-p.Done())
//		}
//		err := p.Put(ctx, keys[i], values[i], i)
//	}
//	for p.Pending() > 0 {
//		check(<-p.Done())
//	}
//
// No method blocks on the store. The depth bounds the memory: a call takes a place
// from its start until it is received from Done, so whoever does not receive
// cannot start more, and no part of the store ever waits for a receiver.
//
// Order: calls under way at the same time are concurrent, like calls of several
// goroutines. They may take effect in any order, even on the same key, and come
// out of Done in any order. A call that is started after another one was received
// with a nil Err sees what that one did. What has to happen in order and together
// belongs into one Batch or Txn.
//
// The context of a call bounds all of it. If it ends while the call is under way,
// a write ends with ErrAmbiguous. Calls started with one and the same context
// share the cost of watching it; Options.Timeout bounds calls whose context has no
// deadline. Keys and values are copied when the method is called; a Batch must not
// be changed until its call was received.
//
// In a Session (Session.NewPipeline) writes take effect exactly once; see Session.
// When the node or client is closed, calls under way end as the methods of KV do,
// with ErrClosed or ErrAmbiguous, and can still be received.
//
// The embedded node carries out a call without a goroutine of its own when it
// leads the shard, as does a Client that is connected to the leader; an operation
// that has to be tried again takes one for as long as that lasts, and so does a
// write over several shards. A Get that the node may answer from its own store at
// once is carried out before Get returns.
//
// All methods may be called from many goroutines.
type Pipeline struct{ p *router.Pipeline }

// NewPipeline returns a pipeline, which must be closed. *OptionError: the depth
// cannot be.
func (a *access) NewPipeline(o PipelineOptions) (*Pipeline, error) {
	if o.Depth < 0 || o.Depth > MaxPipelineDepth {
		return nil, &OptionError{Field: "Depth", Value: fmt.Sprint(o.Depth), Reason: fmt.Sprintf("must be between 1 and %d", MaxPipelineDepth)}
	}
	return &Pipeline{a.space.NewPipeline(o.Depth)}, nil
}

// Done hands out each call once, when it is over. It is closed when the pipeline
// is closed and every call has been handed out.
func (p *Pipeline) Done() <-chan *Call { return p.p.Done() }

// Pending returns how many calls were started and not yet received from Done.
// While it is not zero, receiving from Done ends.
func (p *Pipeline) Pending() int { return p.p.Pending() }

// Depth returns how many calls the pipeline can hold.
func (p *Pipeline) Depth() int { return p.p.Depth() }

// Get starts KV.Get. The result is Call.Value.
func (p *Pipeline) Get(ctx context.Context, key []byte, tag any, o ...ReadOption) error {
	return p.p.Get(ctx, key, readOpts(o).consistency, tag)
}

// Put starts KV.Put. The result is Call.Receipt.
func (p *Pipeline) Put(ctx context.Context, key, val []byte, tag any) error {
	return p.p.Put(ctx, key, val, tag)
}

// Delete starts KV.Delete. The result is Call.Receipt.
func (p *Pipeline) Delete(ctx context.Context, key []byte, tag any) error {
	return p.p.Delete(ctx, key, tag)
}

// DeleteRange starts KV.DeleteRange. The result is Call.Receipt.
func (p *Pipeline) DeleteRange(ctx context.Context, r Range, tag any, o ...WriteOption) error {
	return p.p.DeleteRange(ctx, r.Start, r.End, writeOpts(o).nonAtomic, tag)
}

// Write starts KV.Write. The result is Call.Receipt.
func (p *Pipeline) Write(ctx context.Context, b *Batch, tag any, o ...WriteOption) error {
	if b == nil {
		return p.p.Fail(ctx, &shard.ArgumentError{Field: "batch", Reason: "it is nil"}, tag)
	}
	return p.p.Write(ctx, b, writeOpts(o).nonAtomic, tag)
}

// CAS starts KV.CAS. The result is Call.Receipt.
func (p *Pipeline) CAS(ctx context.Context, key []byte, want Version, val []byte, tag any) error {
	return p.p.CAS(ctx, key, want, val, tag)
}

// Txn starts KV.Txn. The result is Call.Txn.
func (p *Pipeline) Txn(ctx context.Context, t Txn, tag any) error {
	return p.p.Txn(ctx, t, tag)
}

// Close refuses further calls with ErrClosed and ends those under way as if their
// contexts had been cancelled: a write that was handed to its shard ends with
// ErrAmbiguous. It returns when every call can be received from Done, which is
// closed then. It is idempotent and leaves no goroutine.
func (p *Pipeline) Close() error { return p.p.Close() }
