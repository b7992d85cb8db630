package flotillatest_test

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"sync"
	"testing"
	"time"

	"github.com/flotillakv/flotilla"
	"github.com/flotillakv/flotilla/flotillatest"
)

// TestSessions: counters are incremented in sessions while answers get lost,
// leaders die and all machines lose their power. Each increment names the version
// of the one before: it succeeds, without a conflict, and its receipt is true.
func TestSessions(t *testing.T) {
	c := flotillatest.NewCluster(t, 3, flotillatest.WithShards(2))
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	stop := make(chan struct{})
	var wg sync.WaitGroup
	const counters = 6
	counts := make([]int, counters)
	for i := range counters {
		wg.Go(func() {
			s, err := c.Client().NewSession(flotilla.SessionOptions{})
			if err != nil {
				t.Error(err)
				return
			}
			defer s.Close()
			key := []byte(fmt.Sprintf("%c-counter", 'A'+i*40))
			var at flotilla.Version
			for {
				select {
				case <-stop:
					return
				default:
				}
				next := []byte(fmt.Sprint(counts[i] + 1))
				r, err := s.CAS(ctx, key, at, next)
				if refused := (*flotilla.NoQuorumError)(nil); errors.As(err, &refused) {
					continue // of the only try: not applied
				}
				if err != nil {
					t.Errorf("counter %d, step %s: %v", i, next, err)
					return
				}
				counts[i]++
				at = r.Version
			}
		})
	}
	rnd := rand.New(rand.NewPCG(1, 2))
	for range 8 {
		n := rnd.IntN(3)
		switch rnd.IntN(4) {
		case 0:
			c.Kill(n)
			c.Restart(n)
		case 1:
			c.PowerLoss()
			c.RestartAll()
		default:
			c.OneWay(n, flotillatest.Clients)
			pause(ctx, 150*time.Millisecond)
			c.Heal()
		}
		pause(ctx, 50*time.Millisecond)
	}
	close(stop)
	wg.Wait()
	total := 0
	for i := range counters {
		key := []byte(fmt.Sprintf("%c-counter", 'A'+i*40))
		if v, err := c.KV().Get(ctx, key); counts[i] > 0 && (err != nil || string(v.Bytes) != fmt.Sprint(counts[i])) {
			t.Errorf("counter %d holds %q after %d increments: %v", i, v.Bytes, counts[i], err)
		}
		total += counts[i]
	}
	var replayed uint64
	for _, n := range c.Nodes() {
		replayed += n.Metrics().Sessions.Replayed
	}
	t.Logf("%d increments, %d of the tries since the last start had taken effect before", total, replayed)
	if total < 50 {
		t.Errorf("only %d increments came through", total)
	}
	c.AwaitEqualReplicas()
}

func pause(ctx context.Context, d time.Duration) {
	select {
	case <-ctx.Done():
	case <-time.After(d):
	}
}

// TestSessionOptions: bounds of the time to live; a closed session writes no more
// and still reads; Close is idempotent.
func TestSessionOptions(t *testing.T) {
	c := flotillatest.NewCluster(t, 1)
	for _, ttl := range []time.Duration{-1, time.Millisecond, 2 * time.Hour} {
		if _, err := c.Client().NewSession(flotilla.SessionOptions{TTL: ttl}); err == nil {
			t.Errorf("a time to live of %v was accepted", ttl)
		}
	}
	s, err := c.Node(0).NewSession(flotilla.SessionOptions{TTL: flotilla.MinSessionTTL})
	if err != nil {
		t.Fatal(err)
	}
	if len(s.ID()) != 32 {
		t.Error(s.ID())
	}
	ctx := t.Context()
	if _, err := s.Put(ctx, []byte("k"), []byte("v")); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		if err := s.Close(); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := s.Put(ctx, []byte("k"), []byte("w")); !errors.Is(err, flotilla.ErrClosed) || flotilla.Outcome(err) != flotilla.NotApplied {
		t.Error(err)
	}
	if v, err := s.Get(ctx, []byte("k")); err != nil || string(v.Bytes) != "v" {
		t.Error(v, err)
	}
}
