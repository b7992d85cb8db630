package flotilla_test

import (
	"context"
	"fmt"
	"sync"
	"testing"

	"github.com/flotillakv/flotilla"
	"github.com/flotillakv/flotilla/engine"
)

// BenchmarkDoorNode is the whole way through one node that is its own majority,
// with its store in memory: puts and gets of 128 bytes by 256 clients at the same
// time, on one shard. ns/op is the time from one answer to the next.
func BenchmarkDoorNode(b *testing.B) {
	n, err := flotilla.Open(b.Context(), flotilla.Options{InMemory: true, FS: engine.NewMemFS(), Dir: "/n", Shards: 1})
	if err != nil {
		b.Fatal(err)
	}
	defer n.Close()
	const clients = 256
	keys := make([][]byte, 1024)
	value := make([]byte, 128)
	for i := range keys {
		keys[i] = fmt.Appendf(nil, "user%012d", i)
		if _, err := n.Put(b.Context(), keys[i], value); err != nil {
			b.Fatal(err)
		}
	}
	all := func(b *testing.B, op func(ctx context.Context, key []byte) error) {
		b.ReportAllocs()
		b.ResetTimer()
		var wg sync.WaitGroup
		for c := range clients {
			wg.Go(func() {
				for i := c; i < b.N; i += clients {
					if err := op(b.Context(), keys[i%len(keys)]); err != nil {
						b.Error(err)
						return
					}
				}
			})
		}
		wg.Wait()
	}
	b.Run("put", func(b *testing.B) {
		all(b, func(ctx context.Context, key []byte) error {
			_, err := n.Put(ctx, key, value)
			return err
		})
	})
	b.Run("get", func(b *testing.B) {
		all(b, func(ctx context.Context, key []byte) error {
			_, err := n.Get(ctx, key)
			return err
		})
	})
}
