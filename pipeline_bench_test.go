package flotilla_test

import (
	"context"
	"fmt"
	"testing"

	"github.com/flotillakv/flotilla"
	"github.com/flotillakv/flotilla/engine"
)

// BenchmarkDoorPipeline is BenchmarkDoorNode with all calls in flight from one
// goroutine: at the node itself, and at a client over a socket.
func BenchmarkDoorPipeline(b *testing.B) {
	n, err := flotilla.Open(b.Context(), flotilla.Options{InMemory: true, FS: engine.NewMemFS(), Dir: "/n", Shards: 1, ClientListen: "127.0.0.1:0"})
	if err != nil {
		b.Fatal(err)
	}
	defer n.Close()
	c, err := flotilla.Dial(b.Context(), []string{n.Addr()}, flotilla.ClientOptions{})
	if err != nil {
		b.Fatal(err)
	}
	defer c.Close()
	keys := make([][]byte, 1024)
	value := make([]byte, 128)
	for i := range keys {
		keys[i] = fmt.Appendf(nil, "user%012d", i)
		if _, err := c.Put(b.Context(), keys[i], value); err != nil {
			b.Fatal(err)
		}
	}
	all := func(kv flotilla.KV, op func(ctx context.Context, p *flotilla.Pipeline, key []byte) error) func(b *testing.B) {
		return func(b *testing.B) {
			p, err := kv.NewPipeline(flotilla.PipelineOptions{Depth: 256})
			if err != nil {
				b.Fatal(err)
			}
			defer p.Close()
			receive := func() {
				if c := <-p.Done(); c.Err != nil {
					b.Fatal(c.Err)
				}
			}
			b.ReportAllocs()
			b.ResetTimer()
			for i := range b.N {
				if i >= p.Depth() {
					receive()
				}
				if err := op(b.Context(), p, keys[i%len(keys)]); err != nil {
					b.Fatal(err)
				}
			}
			for p.Pending() > 0 {
				receive()
			}
		}
	}
	put := func(ctx context.Context, p *flotilla.Pipeline, key []byte) error { return p.Put(ctx, key, value, nil) }
	get := func(ctx context.Context, p *flotilla.Pipeline, key []byte) error { return p.Get(ctx, key, nil) }
	b.Run("node/put", all(n, put))
	b.Run("node/get", all(n, get))
	b.Run("client/put", all(c, put))
	b.Run("client/get", all(c, get))
}
