package router

import (
	"context"
	"fmt"
	"testing"
	"time"

	"github.com/flotillakv/flotilla/shard"
)

// BenchmarkDoorRouter is the way from a caller to the sender of requests and
// back, over 48 shards: the lookup of a key's shard and leader alone, a put and a
// get of 128 bytes. With a context that has no deadline the router makes one.
func BenchmarkDoorRouter(b *testing.B) {
	ctx, cancel := context.WithTimeout(context.Background(), time.Hour)
	defer cancel()
	r := New(Options{Sender: okSender{&shard.Response{Found: true, Value: &shard.Value{Bytes: make([]byte, 128)}}}})
	defer r.Close()
	ranges := manyRanges(48, func(i int) string { return fmt.Sprintf("user%012d", i*977) })
	r.Table().Merge(ranges...)
	keys := make([][]byte, 1024)
	for i := range keys {
		keys[i] = fmt.Appendf(nil, "user%012d", i*977*48/len(keys))
	}
	value := make([]byte, 128)
	b.Run("lookup", func(b *testing.B) {
		b.ReportAllocs()
		for i := 0; b.Loop(); i++ {
			route, ok := r.Table().Lookup(1, keys[i%len(keys)])
			if !ok {
				b.Fatal("miss")
			}
			route.Leader()
		}
	})
	put := func(ctx context.Context) func(b *testing.B) {
		return func(b *testing.B) {
			b.ReportAllocs()
			for i := 0; b.Loop(); i++ {
				if _, err := r.Space(1).Put(ctx, keys[i%len(keys)], value); err != nil {
					b.Fatal(err)
				}
			}
		}
	}
	b.Run("put", put(ctx))
	b.Run("put/no-deadline", put(context.Background()))
	b.Run("get", func(b *testing.B) {
		b.ReportAllocs()
		for i := 0; b.Loop(); i++ {
			if _, err := r.Space(1).Get(ctx, keys[i%len(keys)], shard.Linearizable); err != nil {
				b.Fatal(err)
			}
		}
	})
}
