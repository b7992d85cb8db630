package t1

import (
	"flag"
	"fmt"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/flotillakv/flotilla/internal/sim/coverage"
)

var (
	flagSeed    = flag.Int64("t1.seed", -1, "run this one seed and print its trace tail if it fails")
	flagFrom    = flag.Uint64("t1.from", 1, "first seed")
	flagSeeds   = flag.Int("t1.seeds", 0, "run this many seeds per profile; zero: as many as fit into -t1.budget")
	flagBudget  = flag.Duration("t1.budget", 5*time.Second, "wall time for TestT1 when -t1.seeds is zero")
	flagProfile = flag.String("t1.profile", "", "profile; empty: all in turn")
	flagWorkers = flag.Int("t1.workers", 2, "runs at the same time")
	flagTail    = flag.Int("t1.tail", 60, "lines of trace printed for a failure")
	flagOut     = flag.String("t1.out", "testdata/regress", "folder for the schedules of failures; empty: they are not kept")
	flagFile    = flag.String("t1.file", "", "replay the schedule of this file")
	flagShrink  = flag.Int("t1.shrink", 150, "most runs spent on a smaller schedule that fails, within a minute")
	flagTwice   = flag.Uint64("t1.twice", 100, "run one in so many seeds twice and compare")
)

// report prints a failure the way a reader needs it: what, when, the last
// events, and how to see it again. What is new is kept, shrunk, in the folder of
// -t1.out, whose schedules TestRegress runs from then on.
func report(t *testing.T, res *Result) {
	t.Helper()
	res = res.Verbose()
	t.Error("\n" + res.Report(*flagTail))
	if *flagOut == "" || res.opts.Schedule != nil {
		return
	}
	path, small, err := res.Keep(*flagOut, *flagShrink, time.Minute)
	t.Logf("shrunk from %d to %d actions, %s: %v", len(res.Schedule.Actions), len(small.Schedule.Actions), path, err)
}

// TestT1 runs whole clusters on real Pebble from seeds, under all profiles. All
// oracles are on, and each run ends with a liveness phase.
func TestT1(t *testing.T) {
	profiles := Profiles
	if *flagProfile != "" {
		profiles = strings.Split(*flagProfile, ",")
	}
	if *flagFile != "" {
		f, err := ReadFile(*flagFile)
		if err != nil {
			t.Fatal(err)
		}
		s := &f.Schedule
		o := Options{Seed: s.Seed, Profile: s.Profile, Schedule: s}
		res := Run(o)
		t.Logf("%s: %s", *flagFile, res.Summary())
		if res.Failure != nil {
			report(t, res)
		}
		return
	}
	if *flagSeed >= 0 {
		for _, p := range profiles {
			o := Options{Seed: uint64(*flagSeed), Profile: p}
			res := Run(o)
			t.Logf("seed %d profile %s: %s", o.Seed, p, res.Summary())
			if res.Failure != nil {
				report(t, res)
			}
		}
		return
	}
	var covered *coverage.Table
	if *flagCoverage {
		covered = &coverage.Table{}
	}
	sum := RunMany(ManyOptions{
		From: *flagFrom, Seeds: *flagSeeds, Budget: *flagBudget, Profiles: profiles, Workers: *flagWorkers, Twice: *flagTwice,
		OnFailure: func(_ Options, r *Result) { report(t, r) }, Coverage: covered,
	})
	t.Log(sum.String())
	if covered != nil {
		fmt.Println(covered.Text(coverage.T1))
		fmt.Println("not reached:", covered.Holes(coverage.T1))
	}
	if sum.Commits == 0 || sum.Leaders == 0 || sum.Reopens == 0 || sum.Reads == 0 || sum.Histories == 0 || sum.Naps == 0 || sum.Wakes == 0 || sum.AsleepRead == 0 {
		t.Errorf("the runs reached too little: %s", fmt.Sprint(sum))
	}
}

// TestT1Replay shows that a seed decides everything that counts: frames,
// batches, answers and the final state of two runs are equal, and those of
// different seeds are not.
func TestT1Replay(t *testing.T) {
	seen := map[uint64]string{}
	for i, p := range Profiles {
		seed := uint64(41 + i)
		a := Run(Options{Seed: seed, Profile: p, Duration: time.Second})
		b := Run(Options{Seed: seed, Profile: p, Duration: time.Second})
		if a.Failure != nil {
			report(t, a)
			continue
		}
		if a.Loose {
			continue
		}
		if a.Hash != b.Hash || a.Events != b.Events || a.Summary() != b.Summary() {
			t.Fatalf("profile %s:\n%s\n%s", p, a.Summary(), b.Summary())
		}
		name := fmt.Sprintf("%s/%d", p, seed)
		if other := seen[a.Hash]; other != "" {
			t.Fatalf("runs %s and %s have the same trace", name, other)
		}
		seen[a.Hash] = name
	}
}

// TestRegress replays the schedules of violations that were found and mended.
func TestRegress(t *testing.T) {
	files, err := filepath.Glob("testdata/regress/*.json")
	if err != nil || len(files) == 0 {
		t.Fatalf("no schedules: %v", err)
	}
	for _, f := range files {
		t.Run(filepath.Base(f), func(t *testing.T) {
			kept, err := ReadFile(f)
			if err != nil {
				t.Fatal(err)
			}
			s := &kept.Schedule
			if res := Run(Options{Schedule: s}); res.Failure != nil {
				report(t, res)
			}
		})
	}
}

// TestT1Fleet runs thousands of shards that sleep, wake and elect while nodes crash.
func TestT1Fleet(t *testing.T) {
	seeds := 2
	if testing.Short() {
		seeds = 1
	}
	var sum Counts
	for seed := range uint64(seeds) {
		r := Run(Options{Seed: 3 + seed, Profile: Fleet, Duration: 2 * time.Second})
		if r.Failure != nil {
			report(t, r)
		}
		t.Log(r.Summary())
		sum.Add(&r.Counts)
	}
	if sum.Naps < 1000 || sum.Wakes < 1000 || sum.Leaders < 1000 || sum.Reopens == 0 {
		t.Errorf("the runs reached too little: %s", fmt.Sprint(sum))
	}
}
