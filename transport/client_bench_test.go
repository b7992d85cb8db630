package transport

import (
	"context"
	"sync"
	"testing"

	"github.com/flotillakv/flotilla/shard"
)

// answering is a handler that answers at once on the goroutine that receives.
type answering struct{ handlerFunc }

func (h answering) DoAsync(ctx context.Context, r *shard.Request, a shard.Answerer) {
	a.Answered(h.Do(ctx, r), nil)
}

// tokens is an Answerer that gives a place in flight back.
type tokens chan struct{}

func (t tokens) Answered(*shard.Response, error) { t <- struct{}{} }

// BenchmarkDoorClient is the way of a request from a client to a node and back
// over a socket, without the store: puts and gets of 128 bytes, from one goroutine
// with 256 requests in flight, and from 256 goroutines that wait. Allocations are
// those of both sides.
func BenchmarkDoorClient(b *testing.B) {
	value := make([]byte, 128)
	_, c := startServer(b, answering{func(_ context.Context, r *shard.Request) *shard.Response {
		if r.Kind == shard.KindWrite {
			return &shard.Response{Receipt: shard.Receipt{Version: shard.Version{Lineage: r.Shard, Index: 1 << 20, Slot: 3}}}
		}
		return &shard.Response{Found: true, Value: &shard.Value{Bytes: value, Version: shard.Version{Lineage: r.Shard, Index: 1 << 20, Slot: 3}}}
	}}, Options{})
	const inFlight = 256
	cmd, err := shard.PutCommand([]byte("user000000012345"), value)
	if err != nil {
		b.Fatal(err)
	}
	for _, q := range []struct {
		name string
		req  *shard.Request
	}{
		{"put", &shard.Request{Shard: 7, DescVersion: 3, Keyspace: 1, Kind: shard.KindWrite, Command: cmd, TimeoutNanos: 10e9}},
		{"get", &shard.Request{Shard: 7, DescVersion: 3, Keyspace: 1, Kind: shard.KindGet, Key: []byte("user000000012345"), TimeoutNanos: 10e9}},
	} {
		b.Run(q.name+"/pipelined", func(b *testing.B) {
			free := make(tokens, inFlight)
			for range inFlight {
				free <- struct{}{}
			}
			b.ReportAllocs()
			b.ResetTimer()
			for range b.N {
				<-free
				if _, _, ok := c.Start(q.req, free); !ok {
					b.Fatal("not connected")
				}
			}
			for range inFlight {
				<-free
			}
		})
		b.Run(q.name+"/waiting", func(b *testing.B) {
			b.ReportAllocs()
			b.ResetTimer()
			var wg sync.WaitGroup
			for g := range inFlight {
				wg.Go(func() {
					for i := g; i < b.N; i += inFlight {
						if _, err := c.Do(b.Context(), q.req); err != nil {
							b.Error(err)
							return
						}
					}
				})
			}
			wg.Wait()
		})
	}
}
