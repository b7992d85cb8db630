package fleet

import (
	"context"
	"errors"
	"fmt"
	"os"
	"runtime"
	"runtime/debug"
	"time"

	"github.com/flotillakv/flotilla"
	"github.com/flotillakv/flotilla/bench"
	"github.com/flotillakv/flotilla/internal/localcluster"
	"github.com/flotillakv/flotilla/router/catalog"
)

// Nodes is the number of nodes of a cluster, and of replicas of each shard.
const Nodes = 3

// Config says what to measure.
type Config struct {
	// Shards is the number of user shards.
	Shards int
	// Dir is where a directory for the data is made, and removed in the end.
	Dir string
	// Settle bounds how long a measurement waits for the cluster to come to rest;
	// Window is how long it looks at a cluster at rest.
	Settle, Window time.Duration
	// Memory bounds the resident memory of the process in bytes. Beyond it the
	// measurement is given up with *MemoryError.
	Memory int64
	// Used is how many shards are written to before the cluster is left alone, at least sample.
	Used int
	// Awake is how many shards are written to before a node is killed. Zero: none is killed.
	Awake int
	// Asleep is how many shards hold something and sleep when a node is killed. Zero: none is killed.
	Asleep int
	// Hot is the number of busy shards, Clients how many clients keep them busy, for
	// Duration after Warmup, Pairs times with the others and alone. Hot zero: this part is left out.
	Hot, Clients     int
	Pairs            int
	Duration, Warmup time.Duration
	// Step is told what begins. Nil: nobody.
	Step func(format string, args ...any)
}

func (c *Config) step(format string, args ...any) {
	if c.Step != nil {
		c.Step(format, args...)
	}
}

// MemoryError says that a measurement was given up since the process grew too large.
type MemoryError struct {
	Shards     int
	Got, Limit int64 // bytes
	WhileDoing string
}

// Error says what did not fit.
func (e *MemoryError) Error() string {
	return fmt.Sprintf("%d shards do not fit into %d MiB: the process had %d MiB while %s", e.Shards, e.Limit>>20, e.Got>>20, e.WhileDoing)
}

// Memory is what the process holds.
type Memory struct {
	Heap int64 `json:"heap_bytes"` // live objects, after a collection
	RSS  int64 `json:"rss_bytes"`  // resident, after what was free was given back
}

// readMemory collects garbage, gives memory back and reads what is left.
func readMemory() Memory {
	runtime.GC()
	debug.FreeOSMemory() // which collects once more
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return Memory{Heap: int64(m.HeapAlloc), RSS: bench.Resident()}
}

// site is a cluster under measurement.
type site struct {
	c     *Config
	o     localcluster.Options
	fleet *localcluster.Cluster
}

// open makes a directory and starts a cluster of shards in it.
func (c *Config) open(ctx context.Context, o localcluster.Options) (*site, error) {
	dir, err := os.MkdirTemp(c.Dir, "flotilla-fleet-")
	if err != nil {
		return nil, fmt.Errorf("making a directory for the data: %w", err)
	}
	o.Nodes, o.Dir = Nodes, dir
	s := &site{c: c, o: o}
	if err := s.start(ctx, "creating the shards"); err != nil {
		return nil, errors.Join(err, s.close())
	}
	return s, nil
}

// start starts the cluster, or gives up when the process grows too large.
func (s *site) start(ctx context.Context, doing string) error {
	return s.guard(ctx, doing, func(ctx context.Context) error {
		fleet, err := localcluster.Start(ctx, s.o)
		if err != nil {
			return err
		}
		s.fleet = fleet
		return nil
	})
}

// guard runs f with a context that ends when the process grows too large.
func (s *site) guard(ctx context.Context, doing string, f func(ctx context.Context) error) error {
	ctx, cancel := context.WithCancelCause(ctx)
	look := func() {
		if rss := bench.Resident(); s.c.Memory > 0 && rss > s.c.Memory {
			cancel(&MemoryError{Shards: s.c.Shards, Got: rss, Limit: s.c.Memory, WhileDoing: doing})
		}
	}
	over, done := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(done)
		tick := time.NewTicker(200 * time.Millisecond)
		defer tick.Stop()
		for {
			select {
			case <-over:
				return
			case <-tick.C:
				look()
			}
		}
	}()
	err := f(ctx)
	close(over)
	<-done
	look()
	var full *MemoryError
	if errors.As(context.Cause(ctx), &full) {
		err = full
	}
	cancel(nil)
	return err
}

func (s *site) close() error {
	var err error
	if s.fleet != nil {
		err = s.fleet.Close()
	}
	return errors.Join(err, os.RemoveAll(s.o.Dir))
}

// ready counts the shards that some node leads and serves.
func (s *site) ready() int {
	n := 0
	for _, node := range s.fleet.Nodes() {
		n += node.Metrics().Ready
	}
	return n
}

// await polls until cond holds. What cond says besides is for the error.
func (s *site) await(ctx context.Context, cond func() (bool, string)) error {
	pause := time.Millisecond
	for {
		ok, what := cond()
		if ok {
			return nil
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("%s: %w", what, ctx.Err())
		case <-time.After(pause):
		}
		pause = min(2*pause, 50*time.Millisecond)
	}
}

// keys returns a key in each of n of the shards, evenly chosen, in order.
func (c *Config) keys(n int) [][]byte {
	n = min(n, c.Shards)
	splits := catalog.SplitKeys(c.Shards)
	out := make([][]byte, 0, n)
	for i := range n {
		at := i * c.Shards / n
		if at == 0 {
			out = append(out, []byte{0})
			continue
		}
		out = append(out, splits[at-1])
	}
	return out
}

// put writes one small value under each key, depth at a time, and again what a
// cluster that just lost a node could not take: each key by itself, as soon as its
// write has failed. Values do not change, so that a repeated write does no harm. It
// returns after how long each key had accepted its write, in order, and how many
// writes were made again.
func (s *site) put(ctx context.Context, keys [][]byte, depth int) (took []time.Duration, again int, err error) {
	depth = max(1, min(depth, len(keys)))
	p, err := s.fleet.Nodes()[0].NewPipeline(flotilla.PipelineOptions{Depth: depth})
	if err != nil {
		return nil, 0, err
	}
	defer p.Close()
	began, next := time.Now(), 0
	send := func(key int) error { return p.Put(ctx, keys[key], []byte("fleet"), key) }
	var failed []int
	soon := time.NewTicker(putAgain)
	defer soon.Stop()
	for len(took) < len(keys) {
		for ; next < len(keys) && next-len(took) < depth; next++ {
			if err := send(next); err != nil {
				return took, again, err
			}
		}
		select {
		case c := <-p.Done():
			if c.Err == nil {
				took = append(took, time.Since(began))
				continue
			}
			failed, err = append(failed, c.Tag.(int)), c.Err
		case <-soon.C:
			for _, key := range failed {
				if err := send(key); err != nil {
					return took, again, err
				}
			}
			again += len(failed)
			failed = failed[:0]
		}
		if ctx.Err() != nil {
			return took, again, fmt.Errorf("%d of %d writes not accepted: %w", len(keys)-len(took), len(keys), errors.Join(context.Cause(ctx), err))
		}
	}
	return took, again, nil
}

// putDepth is how many writes are under way while shards are filled or woken.
const putDepth = 4096

// putAgain is how often put makes writes again that have failed.
const putAgain = 5 * time.Millisecond
