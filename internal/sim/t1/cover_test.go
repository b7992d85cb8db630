package t1

import (
	"flag"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/flotillakv/flotilla/internal/sim/coverage"
)

var flagCoverage = flag.Bool("t1.coverage", false, "TestT1 prints which faults hit which operations, in which states")

// reach runs fixed seeds under all profiles until nothing is missing in the
// count of what was hit, at most so many, and returns what is missing then.
// change may alter the schedules.
func reach(t *testing.T, seeds uint64, change func(*Schedule)) (missing []string, runs int) {
	t.Helper()
	var sum coverage.Table
	for seed := uint64(1); seed <= seeds; seed++ {
		for _, p := range []string{"conf", "snap", "rot", "disk", "crash", "net"} {
			s := Draw(seed, p, 0)
			change(&s)
			if r := Run(Options{Schedule: &s, Coverage: &sum}); r.Failure != nil {
				t.Errorf("seed %d profile %s: %v", seed, p, r.Failure)
			}
			runs++
		}
		if missing = sum.Missing(coverage.T1); len(missing) == 0 {
			break
		}
	}
	return missing, runs
}

// TestCoverage: the schedules that seeds draw let every class of faults hit
// every operation, and every kind of fault several.
func TestCoverage(t *testing.T) {
	missing, runs := reach(t, 16, func(*Schedule) {})
	for _, m := range missing {
		t.Errorf("not reached in %d runs: %s", runs, m)
	}
	t.Logf("reached in %d runs", runs)
}

// TestCoverageNotices: a fault that is not drawn any more is missed.
func TestCoverageNotices(t *testing.T) {
	missing, _ := reach(t, 1, func(s *Schedule) {
		s.Actions = slices.DeleteFunc(s.Actions, func(a Action) bool { return a.Kind == ActSuspend })
	})
	if !slices.ContainsFunc(missing, func(m string) bool { return strings.HasPrefix(m, "suspend x") }) {
		t.Errorf("suspends were taken out of all schedules, and what is missed is %q", missing)
	}
}

// TestCoverageIsSilent: counting changes nothing in a run.
func TestCoverageIsSilent(t *testing.T) {
	for _, p := range Profiles {
		o := Options{Seed: 9, Profile: p, Duration: time.Second}
		a := Run(o)
		o.Coverage = &coverage.Table{}
		if b := Run(o); !a.Loose && (a.Hash != b.Hash || a.Events != b.Events) {
			t.Errorf("profile %s: %s, and counted %s", p, a.Summary(), b.Summary())
		}
		if cells, _ := o.Coverage.Reached(); cells == 0 && p != "calm" {
			t.Errorf("profile %s: nothing was counted", p)
		}
	}
}
