package sim

import (
	"flag"
	"fmt"
	"os"
	"runtime/debug"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/flotillakv/flotilla/internal/sim/coverage"
)

var (
	flagSeed     = flag.Int64("sim.seed", -1, "run this one seed and print its trace tail if it fails")
	flagFrom     = flag.Int64("sim.from", 1, "first seed")
	flagSeeds    = flag.Int("sim.seeds", 0, "run this many seeds per profile; zero: as many as fit into -sim.budget or -sim.hours")
	flagHours    = flag.Float64("sim.hours", 0, "run until this many hours of cluster life have passed; zero: -sim.budget counts")
	flagBudget   = flag.Duration("sim.budget", 8*time.Second, "wall time for TestT0 when neither -sim.seeds nor -sim.hours is given")
	flagProfile  = flag.String("sim.profile", "", "profiles, separated by commas; empty: all but the long ones, in turn")
	flagDuration = flag.Duration("sim.duration", 0, "virtual length of a run's safety phase; zero: the seed draws it")
	flagNodes    = flag.Int("sim.nodes", 0, "number of nodes; zero: the seed draws it")
	flagTail     = flag.Int("sim.tail", 60, "lines of trace printed for a failure")
	flagShrink   = flag.Int("sim.shrink", 500, "most runs spent on a smaller schedule that fails, within half a minute")
	flagOut      = flag.String("sim.out", "testdata/regress", "folder for the schedules of failures; empty: they are not kept")
	flagWorkers  = flag.Int("sim.workers", 1, "runs side by side")
	flagTwice    = flag.Int("sim.twice", 100, "one run in so many is run twice, and both must be the same; zero: none")
)

// report prints a failure the way a reader needs it: what, when, the last
// events, and how to see it again. It is kept, shrunk, in the folder of -sim.out,
// whose schedules TestRegress runs from then on.
func report(t *testing.T, res *Result) {
	t.Helper()
	t.Error("\n" + res.Report(*flagTail))
	if *flagOut == "" {
		return
	}
	path, small, err := res.Keep(*flagOut, *flagShrink, 30*time.Second)
	t.Logf("shrunk from %d to %d actions, %s: %v", len(res.Schedule.Actions), len(small.Schedule.Actions), path, err)
}

// TestT0 runs seeds of the core simulator under all profiles. Every run checks
// all oracles after every step and ends with a liveness phase.
func TestT0(t *testing.T) {
	profiles := Profiles
	if *flagProfile != "" {
		profiles = strings.Split(*flagProfile, ",")
	}
	if *flagSeed >= 0 {
		for _, p := range profiles {
			o := Options{Seed: uint64(*flagSeed), Profile: p, Duration: *flagDuration, Nodes: *flagNodes}
			res := Run(o)
			t.Logf("seed %d profile %s: %s; %s", o.Seed, p, res.Figures(), res.Trace())
			if res.Failure != nil {
				report(t, res)
			}
		}
		return
	}
	if *flagHours > 0 {
		defer debug.SetGCPercent(debug.SetGCPercent(800)) // runs are small and make much garbage
	}
	var (
		mu   sync.Mutex
		wg   sync.WaitGroup
		next atomic.Int64
		sum  = tally{started: time.Now()}
		// covered is what the runs hit, if anybody wants to know.
		covered coverage.Table
	)
	done := func(n int) bool {
		mu.Lock()
		defer mu.Unlock()
		switch seed := n / len(profiles); {
		case sum.failures > 3:
			return true
		case *flagSeeds > 0:
			return seed >= *flagSeeds
		case *flagHours > 0:
			return sum.virtual.Hours() >= *flagHours
		default:
			return time.Since(sum.started) > *flagBudget
		}
	}
	for range max(*flagWorkers, 1) {
		wg.Go(func() {
			for {
				n := int(next.Add(1)) - 1
				if done(n) {
					return
				}
				seed := uint64(*flagFrom) + uint64(n/len(profiles))
				o := Options{Seed: seed, Profile: profiles[n%len(profiles)], Duration: *flagDuration, Nodes: *flagNodes}
				if *flagCoverage {
					o.Coverage = &coverage.Table{}
				}
				res := Run(o)
				again := *flagTwice > 0 && n%*flagTwice == 0
				if again {
					o.Coverage = nil
					if r := Run(o); r.Hash != res.Hash || r.Events != res.Events {
						t.Errorf("seed %d profile %s is not the same twice: %s and %s", o.Seed, o.Profile, res.Trace(), r.Trace())
					}
				}
				mu.Lock()
				sum.add(res)
				if res.opts.Coverage != nil {
					covered.Add(res.opts.Coverage)
				}
				sum.twice += int(b2u(again))
				if res.Failure != nil {
					report(t, res)
				}
				if *flagHours > 0 && n > 0 && n%500 == 0 {
					fmt.Fprintln(os.Stderr, sum.String())
				}
				mu.Unlock()
			}
		})
	}
	wg.Wait()
	t.Log(sum.String())
	if *flagCoverage {
		fmt.Println(covered.Text(coverage.T0))
		fmt.Println("not reached:", covered.Holes(coverage.T0))
	}
	if sum.commits == 0 || sum.leaders == 0 || sum.crashes == 0 || sum.reads == 0 {
		t.Errorf("the runs reached too little: %s", sum.String())
	}
}

// TestT0Replay shows that a seed decides everything: two runs of it have the
// same trace hash, and different seeds have different ones.
func TestT0Replay(t *testing.T) {
	seen := map[uint64]string{}
	for _, p := range slices.Concat(Profiles, Long) {
		for seed := uint64(1); seed <= 3; seed++ {
			a := Run(Options{Seed: seed, Profile: p, Duration: 3 * time.Second})
			b := Run(Options{Seed: seed, Profile: p, Duration: 3 * time.Second})
			if a.Hash != b.Hash || a.Events != b.Events {
				t.Fatalf("seed %d profile %s: hashes %x and %x, events %d and %d", seed, p, a.Hash, b.Hash, a.Events, b.Events)
			}
			name := fmt.Sprintf("%s/%d", p, seed)
			if other := seen[a.Hash]; other != "" {
				t.Fatalf("runs %s and %s have the same trace", name, other)
			}
			seen[a.Hash] = name
		}
	}
}

// tally sums up runs.
type tally struct {
	started                                                                      time.Time
	runs, failures, crashes, leaders, confs, snaps, acks, reads, headless, twice int
	events                                                                       uint64
	commits                                                                      uint64
	virtual                                                                      time.Duration
}

func (s *tally) add(r *Result) {
	s.runs++
	if r.Failure != nil {
		s.failures++
	}
	s.events += r.Events
	s.virtual += r.Virtual
	s.commits += uint64(r.Commits)
	s.leaders += r.Leaders
	s.confs += r.Confs
	s.crashes += r.Crashes
	s.snaps += r.Snaps
	s.acks += r.Acks
	s.reads += r.Reads
	s.headless += int(b2u(r.Headless))
}

func (s *tally) String() string {
	wall := time.Since(s.started)
	return fmt.Sprintf("%d runs, %d failed, %d of them run twice; %.2f cluster-hours in %v (%.0f times real time), %d events (%.0f/s); %d elections, %d entries, %d configurations, %d crashes, %d snapshots, %d acks, %d reads, %d headless",
		s.runs, s.failures, s.twice, s.virtual.Hours(), wall.Round(time.Second), s.virtual.Seconds()/wall.Seconds(), s.events, float64(s.events)/wall.Seconds(), s.leaders, s.commits, s.confs, s.crashes, s.snaps, s.acks, s.reads, s.headless)
}
