package t1

import (
	"fmt"
	"sync"
	"time"

	"github.com/flotillakv/flotilla/engine"
	"github.com/flotillakv/flotilla/internal/sim/coverage"
)

// ManyOptions chooses many runs.
type ManyOptions struct {
	From     uint64   // first seed
	Seeds    int      // per profile; zero: as many as fit into Budget
	Profiles []string // empty: all, in turn
	Budget   time.Duration
	Workers  int // zero: one
	// Twice is the share of seeds that are run twice and compared, one in Twice.
	// Zero: one in a hundred.
	Twice uint64
	// OnFailure is told of each failure, one call at a time. Nil: nobody.
	OnFailure func(o Options, r *Result)
	// Trial changes the options of every run. Nil: nobody does.
	Trial func(*Options)
	// Coverage, if not nil, counts the faults that take hold in all runs.
	Coverage *coverage.Table
	// MaxFailures ends the runs early. Zero: four.
	MaxFailures int
}

// Tally sums up many runs.
type Tally struct {
	Counts
	Failures int
	Twice    int // seeds that were run twice
	Virtual  time.Duration
	Wall     time.Duration
	Next     uint64 // the seed behind the last one that was run
}

// String returns the tally as text.
func (t *Tally) String() string {
	per := 0.0
	if t.Runs > 0 {
		per = t.Wall.Seconds() * 1000 / float64(t.Runs)
	}
	return fmt.Sprintf("%d runs, %d failures, %d run twice, %.1f virtual minutes in %v (%.1f ms per run)\n%s",
		t.Runs+t.Failures, t.Failures, t.Twice, t.Virtual.Minutes(), t.Wall.Round(time.Millisecond), per, t.Counts.String())
}

// RunMany runs seeds until their number or the time is used up.
func RunMany(o ManyOptions) *Tally {
	if len(o.Profiles) == 0 {
		o.Profiles = Profiles
	}
	if o.Workers <= 0 {
		o.Workers = 1
	}
	if o.Twice == 0 {
		o.Twice = 100
	}
	if o.MaxFailures == 0 {
		o.MaxFailures = 4
	}
	t := &Tally{}
	start := time.Now()
	var mu sync.Mutex // guards what follows
	next := 0
	take := func() (Options, bool) {
		mu.Lock()
		defer mu.Unlock()
		seed := o.From + uint64(next/len(o.Profiles))
		if o.Seeds > 0 && next >= o.Seeds*len(o.Profiles) || o.Seeds == 0 && o.Budget > 0 && time.Since(start) > o.Budget || o.Seeds == 0 && o.Budget == 0 || t.Failures >= o.MaxFailures {
			return Options{}, false
		}
		p := o.Profiles[next%len(o.Profiles)]
		next++
		t.Next = seed + 1
		return Options{Seed: seed, Profile: p}, true
	}
	var wg sync.WaitGroup
	for range o.Workers {
		wg.Go(func() {
			cache := engine.NewCache(2 << 20)
			defer cache.Close()
			for {
				r, ok := take()
				if !ok {
					return
				}
				r.Cache = cache
				if o.Trial != nil {
					o.Trial(&r)
				}
				if o.Coverage != nil {
					r.Coverage = &coverage.Table{}
				}
				res := Run(r)
				counted := r.Coverage
				r.Coverage = nil
				again := (o.Twice == 1 || mix(r.Seed, 0x2)%o.Twice == 0) && !res.Loose
				if again && res.Failure == nil {
					if second := Run(r); second.Hash != res.Hash || second.Events != res.Events {
						res.Failure = &Failure{Oracle: "replay", Detail: fmt.Sprintf("two runs have the hashes %016x and %016x, %d and %d events", res.Hash, second.Hash, res.Events, second.Events)}
						if second.Failure != nil {
							res.Failure.Detail += ": " + second.Failure.Error()
						}
					}
				}
				r.Cache = nil
				mu.Lock()
				t.Counts.Add(&res.Counts)
				if counted != nil {
					o.Coverage.Add(counted)
				}
				t.Virtual += res.Virtual
				if again {
					t.Twice++
				}
				if res.Failure != nil {
					t.Failures++
					if o.OnFailure != nil {
						o.OnFailure(r, res)
					}
				}
				mu.Unlock()
			}
		})
	}
	wg.Wait()
	t.Wall = time.Since(start)
	return t
}
