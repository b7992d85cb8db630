package flotilla

import (
	"context"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/flotillakv/flotilla/internal/sim/simfs"
)

// gate holds back the syncs of a file system while it is closed.
type gate struct {
	mu     sync.Mutex
	cond   sync.Cond
	closed bool
}

func newGate(fs *simfs.FS) *gate {
	g := new(gate)
	g.cond.L = &g.mu
	fs.OnSync(func(s simfs.Sync) {
		g.mu.Lock()
		defer g.mu.Unlock()
		for g.closed && !s.After {
			g.cond.Wait()
		}
	})
	return g
}

func (g *gate) set(closed bool) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.closed = closed
	g.cond.Broadcast()
}

// TestDiskStall: the disk of a node stands still, while it is written to and while
// it is idle. The node gives the others' promises back instead of letting them run
// out (how long that takes is a matter of the simulator's clock: oracle L1); all its
// shards have other leaders, which take writes; the node says what is wrong. When the
// disk goes on, the node is back by itself.
func TestDiskStall(t *testing.T) {
	for _, busy := range []bool{true, false} {
		c := newDiskCluster(t, 6, Timing{})
		gates := [3]*gate{}
		for i := range gates {
			gates[i] = newGate(c.disks[i].FS)
		}
		stop := make(chan struct{})
		var wg sync.WaitGroup
		halt := sync.OnceFunc(func() { close(stop); wg.Wait() })
		t.Cleanup(func() {
			gates[0].set(false)
			halt()
		})
		until(t, "n1 leads a shard", func() bool { return c.nodes[0].Metrics().Leaders > 0 })
		if busy {
			for i := range 6 {
				wg.Go(func() {
					for {
						select {
						case <-stop:
							return
						default:
						}
						ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
						c.nodes[1].Put(ctx, []byte{byte(i * 42)}, []byte("x"))
						cancel()
					}
				})
			}
		}
		ledElsewhere := func() bool {
			led := 0
			for _, n := range c.nodes[1:] {
				for _, v := range n.host.Views() {
					if v.IsLeader && v.IsReady {
						led++
					}
				}
			}
			return led == 7 // the catalog's is one
		}
		began := time.Now()
		gates[0].set(true)
		until(t, "other nodes lead everything", ledElsewhere)
		t.Logf("busy %t: all leaders elsewhere after %v", busy, time.Since(began).Round(time.Millisecond))
		until(t, "n1 gives all promises back", func() bool {
			return c.nodes[1].Metrics().Live.Returned > 0 && c.nodes[2].Metrics().Live.Returned > 0
		})
		for i := range 6 {
			if _, err := c.nodes[1].Put(t.Context(), []byte{byte(i * 42)}, []byte("y")); err != nil {
				t.Errorf("write to shard %d while n1 stands still: %v", i, err)
			}
		}
		until(t, "n1 says what is wrong", func() bool {
			s, err := c.nodes[1].Status(t.Context())
			return err == nil && s.State == "DEGRADED" && len(s.Warnings) == 1 && strings.HasPrefix(s.Warnings[0], "the disk of n1 takes no writes now")
		})
		if m := c.nodes[0].Metrics(); !m.Disk.Stalled || m.Disk.Stalls != 1 || m.Live.Yields != 1 {
			t.Errorf("metrics of n1: %+v, %+v", m.Disk, m.Live)
		}
		halt()
		gates[0].set(false)
		until(t, "n1 is back", func() bool {
			s, err := c.nodes[1].Status(t.Context())
			return err == nil && s.State == "HEALTHY" && !c.nodes[0].diskStats().Stalled
		})
		until(t, "n1 is supported again", func() bool {
			for _, n := range c.nodes[1:] {
				if _, live := n.live.SupportFor(1); !live {
					return false
				}
			}
			return true
		})
		if ev := c.eventsOf(0); len(ev) != 2 || !ev[0].Stalled || ev[1].Stalled {
			t.Errorf("events of n1: %+v", ev)
		}
		for _, n := range c.nodes {
			n.Close()
		}
	}
}
