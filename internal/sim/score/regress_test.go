//go:build mutants

package score

import (
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/flotillakv/flotilla/internal/mutants"
	"github.com/flotillakv/flotilla/internal/sim"
)

var flagKeep = flag.String("score.keep", "", "shrink what the simulator finds for the bugs of -score.only, and write the schedules into this folder")

// TestRegressAlive shows that the kept schedules are alive: each, run with the
// planted bug it names, violates the oracle it names.
func TestRegressAlive(t *testing.T) {
	if *flagKeep != "" {
		keep(t, *flagKeep, strings.Split(*flagOnly, ","))
		return
	}
	defer mutants.Set("")
	files, err := filepath.Glob("../testdata/regress/*.json")
	if err != nil || len(files) < 10 {
		t.Fatalf("%d schedules, %v", len(files), err)
	}
	for _, path := range files {
		f, err := sim.ReadFile(path)
		if err != nil {
			t.Error(err)
			continue
		}
		mutants.Set(f.Mutant)
		switch r := sim.Run(sim.Options{Schedule: &f.Schedule}); {
		case f.Mutant == "":
		case r.Failure == nil:
			t.Errorf("%s: finds nothing any more with %s planted; find it again with -score.keep", path, f.Mutant)
		case r.Failure.Oracle != f.Oracle:
			t.Errorf("%s: violates %s, not %s: %v", path, r.Failure.Oracle, f.Oracle, r.Failure)
		}
	}
}

// keep writes the shortest of a few shrunk schedules for each of the bugs ids.
func keep(t *testing.T, dir string, ids []string) {
	defer mutants.Set("")
	for n, id := range ids {
		todo, err := choose([]string{id})
		if err != nil || todo[0].tier != "T0" {
			t.Fatalf("%s: %v; only bugs of the core can be kept", id, err)
		}
		mutants.Set(id)
		var best *sim.File
		for seed, found := uint64(1), 0; seed < 1000 && found < 5; seed++ {
			profile := todo[0].profiles[int(seed)%len(todo[0].profiles)]
			r := sim.Run(sim.Options{Seed: seed, Profile: profile})
			if r.Failure == nil || r.Failure.Oracle == "panic" {
				continue
			}
			found++
			s := sim.Shrink(r.Schedule, r.Failure.Oracle, 250)
			t.Logf("%s, seed %d: %s, %d of %d actions", id, seed, r.Failure.Oracle, len(s.Actions), len(r.Schedule.Actions))
			if best == nil || len(s.Actions) < len(best.Schedule.Actions) {
				best = &sim.File{Oracle: r.Failure.Oracle, Mutant: id, Note: todo[0].title, Schedule: s}
			}
		}
		if best == nil {
			t.Errorf("%s: nothing finds it", id)
			continue
		}
		path := filepath.Join(dir, fmt.Sprintf("%03d-%s-%s.json", n+1, strings.ToLower(best.Oracle), strings.ToLower(id)))
		if err := os.WriteFile(path, best.Encode(), 0o644); err != nil {
			t.Fatal(err)
		}
	}
}
