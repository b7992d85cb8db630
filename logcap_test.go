package flotilla

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/flotillakv/flotilla/engine"
)

// TestLogCap: see checkLogCap.
func TestLogCap(t *testing.T) {
	if err := checkLogCap(t); err != nil {
		t.Error(err)
	}
}

// checkLogCap overwrites a constant set of keys for many times the cap of the logs,
// while one of three nodes is away for which the logs would be kept without the cap. All
// the time, as read from outside, the logs of each node stay below it; what is refused is
// refused with a typed error; and the node that was away comes back to the same content.
func checkLogCap(t *testing.T) error {
	ctx, cancel := context.WithTimeout(t.Context(), 120*time.Second)
	defer cancel()
	const (
		limit      = 16 << 20
		valueBytes = 4 << 10
		keys       = 400
		shards     = 25 // a MiB is kept of each, however small its data are
		writers    = 32
	)
	writes := int64(12_000) // 48 MiB, three times the cap
	if testing.Short() {    // with the race detector
		writes = 6_000
	}
	var splits [][]byte
	for i := 1; i < shards; i++ {
		splits = append(splits, fmt.Appendf(nil, "k%04d", i*keys/shards))
	}
	var disks [3]engine.FS
	for i := range disks {
		disks[i] = engine.NewMemFS()
	}
	nodes, open := openThree(t, func(i int) Options {
		return Options{
			FS: disks[i], SplitAt: splits, Limits: Limits{Memory: 16 << 20, Log: limit, LogKeep: 1 << 30},
			Timing: Timing{Heartbeat: 50 * time.Millisecond, Support: 1500 * time.Millisecond},
		}
	})
	put := func(i int) error {
		for {
			_, err := nodes[i%2].Put(ctx, fmt.Appendf(nil, "k%04d", i%keys), fmt.Appendf(make([]byte, valueBytes), "%d", i))
			var busy *OverloadedError
			var none *NoQuorumError // on a busy machine
			if err == nil || !errors.As(err, &busy) && !errors.As(err, &none) && !errors.Is(err, ErrLogBudget) && !errors.Is(err, ErrAmbiguous) {
				return err
			}
			if err := ctx.Err(); err != nil {
				return err
			}
		}
	}
	for i := range keys {
		if err := put(i); err != nil {
			t.Fatal(err)
		}
	}
	if err := nodes[2].Close(); err != nil {
		t.Fatal(err)
	}

	var next, most, zone atomic.Int64
	var over atomic.Pointer[error]
	var wg, sampling sync.WaitGroup
	stop := make(chan struct{})
	sample := func() {
		for _, n := range nodes[:2] {
			logs, wal, err := n.eng.CountLog()
			if err == nil && logs+wal > limit {
				err = fmt.Errorf("node %d: %d bytes of log, %d of write-ahead log; at most %d together", n.ID(), logs, wal, limit)
			}
			if err != nil {
				over.CompareAndSwap(nil, &err)
			}
			most.Store(max(most.Load(), logs+wal))
			zone.Store(max(zone.Load(), int64(n.host.LogStatus().Zone)))
		}
	}
	sampling.Go(func() {
		tick := time.NewTicker(20 * time.Millisecond)
		defer tick.Stop()
		for {
			select {
			case <-tick.C:
				sample()
			case <-stop:
				return
			}
		}
	})
	for range writers {
		wg.Go(func() {
			for i := next.Add(1); i <= writes; i = next.Add(1) {
				if err := put(int(i)); err != nil {
					over.CompareAndSwap(nil, &err)
					return
				}
			}
		})
	}
	wg.Wait()
	close(stop)
	sampling.Wait()
	sample()
	t.Logf("at most %.1f of %d MiB; zone %d was reached", float64(most.Load())/(1<<20), limit>>20, zone.Load())
	if err := over.Load(); err != nil {
		return *err
	}
	if zone.Load() == 0 {
		return errors.New("the logs never came near the cap: nothing was tested")
	}

	if err := open(2); err != nil {
		t.Fatal(err)
	}
	for {
		same := true
		for _, d := range nodes[0].descriptors() {
			if d.Keyspace == 0 {
				continue
			}
			a0, d0, err0 := nodes[0].LocalDigest(ctx, uint64(d.Shard))
			a2, d2, err2 := nodes[2].LocalDigest(ctx, uint64(d.Shard))
			if a0 == a2 && d0 != d2 {
				return fmt.Errorf("shard %d differs at index %d", d.Shard, a0)
			}
			same = same && err0 == nil && err2 == nil && a0 == a2
		}
		if same {
			return nil
		}
		if err := ctx.Err(); err != nil {
			return fmt.Errorf("the node that was away does not catch up: %w", err)
		}
	}
}
