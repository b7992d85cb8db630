//go:build mutants

package sim

import (
	"flag"
	"fmt"
	"testing"
	"time"

	"github.com/flotillakv/flotilla/internal/mutants"
)

var (
	flagMutant      = flag.String("sim.mutant", "", "run only this planted bug")
	flagMutantSeeds = flag.Int("sim.mutantseeds", 0, "seeds per planted bug and profile at most; zero means 100, without the rare ones")
)

// TestMutants plants one bug after the other into the pure core and shows that
// the simulator finds each of them within a bounded number of seeds. It prints
// the score table: which oracle caught it, at which seed, after how long.
func TestMutants(t *testing.T) {
	defer mutants.Set("")
	limit := *flagMutantSeeds
	if limit == 0 {
		limit = 100
	}
	caught, total, rare := 0, 0, 0
	var worst time.Duration
	for _, m := range planted {
		if *flagMutant != "" && *flagMutant != m.id {
			continue
		}
		if m.rare && *flagMutantSeeds == 0 && *flagMutant == "" {
			rare++
			continue
		}
		total++
		mutants.Set(m.id)
		start := time.Now()
		runs := 0
		var hit *Result
		var where string
	search:
		for seed := uint64(1); seed <= uint64(limit); seed++ {
			for _, p := range m.profiles {
				runs++
				if r := Run(Options{Seed: seed, Profile: p}); r.Failure != nil {
					hit, where = r, fmt.Sprintf("%s/%d", p, seed)
					break search
				}
			}
		}
		took := time.Since(start)
		worst = max(worst, took)
		if hit == nil {
			t.Errorf("%-5s NOT CAUGHT in %d runs, %v: %s", m.id, runs, took.Round(time.Millisecond), m.title)
			continue
		}
		caught++
		t.Logf("%-5s %-6s %-10s %4d runs %8v  %s", m.id, hit.Failure.Oracle, where, runs, took.Round(time.Millisecond), m.title)
	}
	t.Logf("score: %d of %d planted bugs caught; worst %v; %d rare ones wait for -sim.mutantseeds=1000", caught, total, worst.Round(time.Millisecond), rare)
	if *flagMutant == "" && caught < 30 {
		t.Errorf("only %d planted bugs caught", caught)
	}
}

// TestNoMutantByDefault shows that with the build tag and nothing switched on
// the code is sound: the first seeds of each profile pass.
func TestNoMutantByDefault(t *testing.T) {
	mutants.Set("")
	for _, p := range Profiles {
		if r := Run(Options{Seed: 1, Profile: p}); r.Failure != nil {
			t.Fatalf("profile %s: %v", p, r.Failure)
		}
	}
}
