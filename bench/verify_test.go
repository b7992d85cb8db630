package bench

import (
	"context"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/flotillakv/flotilla/bench/workload"
)

// losing acknowledges some writes without doing them.
type losing struct {
	*memTarget
	every int64
	n     atomic.Int64
}

func (l *losing) Write(ctx context.Context, key, value []byte) error {
	if l.every > 0 && l.n.Add(1)%l.every == 0 {
		return nil
	}
	return l.memTarget.Write(ctx, key, value)
}

// After a run the followed records hold what was acknowledged last; a store
// that loses one write in five is found out.
func TestVerify(t *testing.T) {
	for _, every := range []int64{0, 5} {
		synctest.Test(t, func(t *testing.T) {
			spec, err := workload.Parse("W1")
			if err != nil {
				t.Fatal(err)
			}
			set, err := workload.New(workload.Config{Spec: spec, Records: 4000, ValueBytes: 32, Seed: 3})
			if err != nil {
				t.Fatal(err)
			}
			target := &losing{memTarget: newMemTarget(time.Millisecond)}
			if err := Load(t.Context(), set, []Target{target}, nil); err != nil {
				t.Fatal(err)
			}
			target.every = every
			res, err := Run(t.Context(), Config{Set: set, Targets: []Target{target}, Clients: 16, Duration: 3 * time.Second, Verify: 50})
			if every == 0 && (err != nil || res.Verified != 50) {
				t.Fatalf("verified %v: %v", res, err)
			}
			if every > 0 && (err == nil || !strings.Contains(err.Error(), "does not hold the value of its last acknowledged write")) {
				t.Fatalf("a store that loses writes passed: %v", err)
			}
		})
	}
}

// away fails reads for a while, as a shard without a leader does.
type away struct {
	*memTarget
	until time.Time
}

func (a *away) Read(ctx context.Context, key []byte) ([]byte, bool, error) {
	if time.Now().Before(a.until) {
		return nil, false, errRefused
	}
	return a.memTarget.Read(ctx, key)
}

// A store that cannot be read for some seconds is asked again; one that stays
// away has not proved its records.
func TestReadBack(t *testing.T) {
	for _, c := range []struct {
		out  time.Duration
		good bool
	}{{10 * time.Second, true}, {time.Minute, false}} {
		synctest.Test(t, func(t *testing.T) {
			set, target := newSet(t, "A", 10), &away{memTarget: newMemTarget(0)}
			if err := Load(t.Context(), set, []Target{target}, nil); err != nil {
				t.Fatal(err)
			}
			began := time.Now()
			target.until = began.Add(c.out)
			err := Sample(t.Context(), set, []Target{target}, 10)
			if took := time.Since(began); (err == nil) != c.good || took < readBackPause || took > 20*time.Second {
				t.Errorf("away for %s: %v after %s", c.out, err, took)
			}
		})
	}
}
