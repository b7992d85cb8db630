//go:build mutants

package t1

import (
	"flag"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/flotillakv/flotilla/engine"
	"github.com/flotillakv/flotilla/internal/mutants"
)

var (
	flagMutants = flag.String("t1.mutants", "", "plant these bugs (comma separated) instead of the list")
	flagHunt    = flag.Duration("t1.hunt", time.Minute, "wall time to find one planted bug")
)

// hunt runs seeds with a planted bug until one fails.
func hunt(id string, profiles []string, budget time.Duration) (*Result, int) {
	mutants.Set(id)
	defer mutants.Set("")
	cache := engine.NewCache(2 << 20)
	defer cache.Close()
	start := time.Now()
	for i := 0; time.Since(start) < budget; i++ {
		res := Run(Options{Seed: uint64(1 + i/len(profiles)), Profile: profiles[i%len(profiles)], Cache: cache})
		if res.Failure != nil {
			return res, i + 1
		}
	}
	return nil, 0
}

// TestMutants plants the bugs one after the other: each must be found.
func TestMutants(t *testing.T) {
	list := Plants
	if *flagMutants != "" {
		list = nil
		for _, id := range strings.Split(*flagMutants, ",") {
			list = append(list, Plant{ID: id, Profiles: []string{"swarm", "crash", "conf", "snap"}})
		}
	}
	for _, p := range list {
		t.Run(p.ID, func(t *testing.T) {
			profiles := p.Profiles
			if *flagProfile != "" {
				profiles = strings.Split(*flagProfile, ",")
			}
			began := time.Now()
			res, runs := hunt(p.ID, profiles, *flagHunt)
			if res == nil {
				t.Fatalf("not found in %v", *flagHunt)
			}
			d := res.Failure.Detail
			t.Logf("found: %s", fmt.Sprintf("%s after %d runs, %v, seed %d profile %s: %s", res.Failure.Oracle, runs, time.Since(began).Round(time.Millisecond), res.Schedule.Seed, res.Schedule.Profile, d[:min(len(d), 160)]))
		})
	}
}
