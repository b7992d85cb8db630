package sim

import (
	"os"
	"strings"
	"testing"
	"time"
)

// TestKeep: a failed run is kept as a smaller schedule that fails in the same way
// and is refused by nobody, with a text that names rule, seed, commit and command.
func TestKeep(t *testing.T) {
	dir := t.TempDir() + "/regress" // is made
	o := Options{Seed: 3, Duration: 2 * time.Second}
	r := Run(o)
	r.Failure = &Failure{Oracle: "S3", Detail: "seen"} // no run fails like that: nothing is deleted
	path, small, err := r.Keep(dir, 5, time.Minute)
	if err != nil || path != dir+"/swarm-3-s3.json" || len(small.Schedule.Actions) != len(r.Schedule.Actions) {
		t.Fatal(path, err)
	}
	f, err := ReadFile(path)
	if err != nil || f.Oracle != "S3" || f.Note != "seen" {
		t.Fatalf("%+v, %v", f.Oracle, err)
	}
	if again := Run(Options{Schedule: &f.Schedule}); again.Hash != r.Hash {
		t.Errorf("kept is %s, it was %s", again.Trace(), r.Trace())
	}
	text, err := os.ReadFile(strings.TrimSuffix(path, ".json") + ".txt")
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"found as: flotilla sim run --seed 3 --profile swarm --duration 2s", "runs again: flotilla sim replay " + path, "S3 (", "seen", "seed 3, profile swarm, commit ", "node 1 starts"} {
		if !strings.Contains(string(text), want) {
			t.Errorf("%q is not in\n%s", want, text)
		}
	}
}
