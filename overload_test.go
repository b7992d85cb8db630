package flotilla

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/flotillakv/flotilla/shard"
)

// TestOverload: three nodes whose queue is short are offered far more at once than
// fits. What is refused is refused with the typed error, which says when to come
// back and that nothing was applied, and was not; what was acknowledged is there;
// the bytes that wait are bounded all the time; no leader is lost and no support
// withdrawn; and when it is over, writes are taken again.
func TestOverload(t *testing.T) {
	if err := checkOverload(t); err != nil {
		t.Error(err)
	}
}

func checkOverload(t *testing.T) error {
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	const writers, valueBytes = 3000, 8 << 10
	nodes, _ := openThree(t, func(int) Options { return Options{Limits: Limits{Memory: 16 << 20, Wait: 20 * time.Millisecond}} })
	put := func(ctx context.Context, i int) error {
		_, err := nodes[i%3].Put(ctx, fmt.Appendf(nil, "k%04d", i), make([]byte, valueBytes))
		return err
	}
	if err := put(ctx, writers); err != nil {
		t.Fatal(err)
	}
	before := terms(ctx, t, nodes[0])

	short, cancelShort := context.WithTimeout(ctx, 3*time.Second)
	defer cancelShort()
	results := make([]error, writers)
	var most atomic.Int64
	var wg sync.WaitGroup
	for i := range writers {
		wg.Go(func() {
			results[i] = put(short, i)
			for _, n := range nodes {
				for b := n.Metrics().Host.PendingBytes; ; {
					if was := most.Load(); b <= was || most.CompareAndSwap(was, b) {
						break
					}
				}
			}
		})
	}
	wg.Wait()
	if most.Load() > 4<<20 {
		return fmt.Errorf("%d bytes waited on one node", most.Load())
	}
	served, refused := 0, 0
	for i, err := range results {
		v, getErr := nodes[(i+1)%3].Get(ctx, fmt.Appendf(nil, "k%04d", i))
		var busy *OverloadedError
		switch {
		case err == nil:
			if served++; getErr != nil || len(v.Bytes) != valueBytes {
				return fmt.Errorf("write %d was acknowledged: %d bytes, %v", i, len(v.Bytes), getErr)
			}
		case errors.As(err, &busy):
			if refused++; busy.RetryAfter <= 0 || shard.OutcomeOf(err) != shard.NotApplied {
				return fmt.Errorf("write %d: %w: come back after %s; outcome %v", i, err, busy.RetryAfter, shard.OutcomeOf(err))
			}
			fallthrough
		case shard.OutcomeOf(err) == shard.NotApplied:
			if !errors.Is(getErr, ErrNotFound) {
				return fmt.Errorf("write %d was not applied, it says (%w): %d bytes, %v", i, err, len(v.Bytes), getErr)
			}
		case !errors.Is(err, context.DeadlineExceeded):
			return fmt.Errorf("write %d: %w", i, err)
		}
	}
	turnedAway := uint64(0)
	for _, n := range nodes {
		turnedAway += n.Metrics().Host.Refused
	}
	if served < 31 || turnedAway == 0 { // 256 KiB fit however slow a node is
		return fmt.Errorf("of %d writes of %d MiB %d were served, %d refused, %d tries turned away", writers, writers*valueBytes>>20, served, refused, turnedAway)
	}
	if after := terms(ctx, t, nodes[0]); after != before {
		return fmt.Errorf("terms went from %d to %d", before, after)
	}
	for _, n := range nodes {
		m := n.Metrics()
		if m.Live.Withdrawn+m.Live.Lost > 0 || m.Host.PendingBytes != 0 {
			return fmt.Errorf("node %d: %d withdrawn, %d lost, %d bytes pending", n.ID(), m.Live.Withdrawn, m.Live.Lost, m.Host.PendingBytes)
		}
	}
	return put(ctx, 0)
}

// terms sums up the terms of all shards: it grows with each lost leader.
func terms(ctx context.Context, t *testing.T, n *Node) (sum uint64) {
	t.Helper()
	all, err := n.Shards(ctx)
	if err != nil {
		t.Fatal(err)
	}
	for i := range all {
		sum += all[i].Term
	}
	return sum
}
