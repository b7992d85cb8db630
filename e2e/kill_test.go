package e2e

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/flotillakv/flotilla"
)

// Writers go on while a node is killed and comes back. Every acknowledged write
// is there afterwards, no error is wrong about what became of its write, and
// writes stall for no longer than the others need to notice and to elect.
func TestKillUnderWrites(t *testing.T) {
	c := startCluster(t, 3, "--shards", "48")
	client, err := flotilla.Dial(t.Context(), c.clients, flotilla.ClientOptions{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { client.Close() })

	const writers = 32
	type acked struct {
		keys      []string
		ambiguous []string
		stall     time.Duration // the longest time one write took
	}
	var (
		done    = make(chan struct{})
		total   atomic.Int64
		refused atomic.Int64
		results [writers]acked
		wg      sync.WaitGroup
	)
	for w := range writers {
		wg.Go(func() {
			r := &results[w]
			for i := 0; ; i++ {
				select {
				case <-done:
					return
				default:
				}
				// First bytes over the whole key space, so that every shard is written.
				key := fmt.Sprintf("%c/%d/%d", byte(i*37+w*8), w, i)
				begun := time.Now()
				_, err := client.Put(context.Background(), []byte(key), []byte(key))
				r.stall = max(r.stall, time.Since(begun))
				switch {
				case err == nil:
					r.keys = append(r.keys, key)
					total.Add(1)
				case errors.Is(err, flotilla.ErrAmbiguous):
					r.ambiguous = append(r.ambiguous, key)
				case flotilla.Outcome(err) == flotilla.NotApplied:
					refused.Add(1)
				default:
					t.Errorf("put %q: %v", key, err)
					return
				}
			}
		})
	}
	more := func(n int64) {
		t.Helper()
		from := total.Load()
		wait(t, time.Minute, fmt.Sprintf("%d more writes", n), func() bool { return total.Load() >= from+n })
	}
	more(500)
	for round := range *rounds {
		victim := round % 3
		c.nodes[victim].kill()
		killed := time.Now()
		wait(t, time.Minute, "a leader for every shard", func() bool {
			s := c.status(t, c.clients[(victim+1)%3])
			return s.Nodes[idOf(c, victim)-1].State == "down" && s.ShardsWithLeader == s.Shards
		})
		over := time.Since(killed)
		more(500)
		c.restart(t, victim)
		ready := time.Since(c.nodes[victim].started)
		c.healthy(t)
		t.Logf("node %d killed: every shard led again after %.2fs; back and serving %.2fs after its start, whole again after %.2fs",
			victim+1, over.Seconds(), ready.Seconds(), time.Since(c.nodes[victim].started).Seconds())
		more(500)
	}
	close(done)
	wg.Wait()

	there := make(map[string]bool)
	for p, err := range client.Scan(t.Context(), flotilla.Range{}) {
		if err != nil {
			t.Fatal(err)
		}
		if string(p.Key) != string(p.Value) {
			t.Fatalf("key %q has value %q", p.Key, p.Value)
		}
		there[string(p.Key)] = true
	}
	lost, ambiguous, stall := 0, 0, time.Duration(0)
	for _, r := range results {
		for _, k := range r.keys {
			if !there[k] {
				lost++
			}
			delete(there, k)
		}
		for _, k := range r.ambiguous {
			ambiguous++
			delete(there, k)
		}
		stall = max(stall, r.stall)
	}
	t.Logf("%d writes acknowledged, %d of unknown outcome, %d refused; the longest took %.2fs", total.Load(), ambiguous, refused.Load(), stall.Seconds())
	if lost > 0 {
		t.Errorf("%d acknowledged writes are lost", lost)
	}
	if len(there) > 0 {
		t.Errorf("%d records are there whose writes were said not to have been applied", len(there))
	}
	if stall > 8*time.Second {
		t.Errorf("a write took %s", stall)
	}
	for i, p := range c.nodes {
		if len(p.loud()) > 0 {
			t.Logf("node %d wrote above INFO:\n%s", i+1, p.loud())
		}
	}
	c.stopAll(t)
}
