//go:build mutants

package t1

import (
	"cmp"
	"flag"
	"fmt"
	"slices"
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

// sleepy is the schedule of a seed in which replicas sleep as soon as nothing comes for them, and
// leaders are cut off and asked for reads meanwhile.
func sleepy(seed uint64) *Schedule {
	s := Draw(seed, "net", 3*time.Second)
	p := &s.Params
	p.IdleAfter, p.Awake, p.NoLease, p.Defer, p.Compare, p.Stray, p.LogBytes = 5*time.Millisecond, -1, false, 0, 0, 0, 0
	p.Shards, p.Groups, p.Support = 1, 1, 200*time.Millisecond
	p.Beat = p.Support / 5
	p.Tuning.IdleTruncate, p.Tuning.Cut = 5*time.Millisecond, 0
	s.Actions = slices.DeleteFunc(s.Actions, func(a Action) bool {
		return a.Kind != ActOp && a.Kind != ActIsolate && a.Kind != ActFollow || a.Kind == ActOp && a.At/1e6%400 < 200
	})
	for at := int64(5e8); at < int64(s.Duration); at += 9e8 {
		s.Actions = append(s.Actions, Action{At: at, Kind: ActFollow, R: seed * uint64(at), Dur: 800 * time.Millisecond})
	}
	slices.SortStableFunc(s.Actions, func(a, b Action) int { return cmp.Compare(a.At, b.At) })
	return &s
}

// TestStaleSleeper: reads that a sleeping leader serves are checked like all others. Where they
// may come after its lease (D9l), some seed finds one that is stale.
func TestStaleSleeper(t *testing.T) {
	for _, id := range []string{"", "D9l"} {
		mutants.Set(id)
		defer mutants.Set("")
		var sum Counts
		found := ""
		for seed := uint64(1); seed <= 1000 && found == ""; seed++ {
			r := Run(Options{Schedule: sleepy(seed)})
			if sum.Add(&r.Counts); r.Failure != nil {
				found = fmt.Sprintf("%s, seed %d: %.200s", r.Failure.Oracle, seed, r.Failure.Detail)
			}
			if id == "" && seed == 40 {
				break
			}
		}
		t.Logf("%q: %d reads of sleeping leaders; %s", id, sum.AsleepRead, found)
		if (found != "") != (id != "") || sum.AsleepRead == 0 {
			t.Errorf("planted %q, found %q", id, found)
		}
	}
}
