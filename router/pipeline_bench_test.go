package router

import (
	"context"
	"fmt"
	"testing"

	"github.com/flotillakv/flotilla/multiraft/raft"
	"github.com/flotillakv/flotilla/shard"
)

// okStarter answers at once.
type okStarter struct{ okSender }

func (s okStarter) Start(_ raft.NodeID, _ *shard.Request, a shard.Answerer) (shard.Abandoner, uint64, bool) {
	resp := *s.resp
	a.Answered(&resp, nil)
	return nil, 0, true
}

// BenchmarkDoorPipeline is the way of a call of a pipeline to the sender and back
// to Done, over 48 shards: puts and gets of 128 bytes, with a context that has no
// deadline.
func BenchmarkDoorPipeline(b *testing.B) {
	ctx := b.Context()
	r := New(Options{Sender: okStarter{okSender{&shard.Response{Found: true, Value: &shard.Value{Bytes: make([]byte, 128)}}}}})
	defer r.Close()
	r.Table().Merge(manyRanges(48, func(i int) string { return fmt.Sprintf("user%012d", i*977) })...)
	keys := make([][]byte, 1024)
	for i := range keys {
		keys[i] = fmt.Appendf(nil, "user%012d", i*977*48/len(keys))
	}
	value := make([]byte, 128)
	run := func(start func(ctx context.Context, p *Pipeline, key []byte) error) func(b *testing.B) {
		return func(b *testing.B) {
			p := r.Space(1).NewPipeline(64)
			defer p.Close()
			b.ReportAllocs()
			for i := 0; b.Loop(); i++ {
				if i >= p.Depth() {
					if c := <-p.Done(); c.Err != nil {
						b.Fatal(c.Err)
					}
				}
				if err := start(ctx, p, keys[i%len(keys)]); err != nil {
					b.Fatal(err)
				}
			}
		}
	}
	b.Run("put", run(func(ctx context.Context, p *Pipeline, key []byte) error { return p.Put(ctx, key, value, nil) }))
	b.Run("get", run(func(ctx context.Context, p *Pipeline, key []byte) error {
		return p.Get(ctx, key, shard.Linearizable, nil)
	}))
}
