//go:build mutants

package sim

import (
	"testing"

	"github.com/flotillakv/flotilla/internal/mutants"
)

// withoutRule plants id and shows that some seed violates an oracle.
func withoutRule(t *testing.T, profiles []string, id string) {
	t.Helper()
	mutants.Set(id)
	defer mutants.Set("")
	for seed := uint64(1); seed <= 600; seed++ {
		for _, p := range profiles {
			if r := Run(Options{Seed: seed, Profile: p}); r.Failure != nil {
				t.Logf("without the rule (%s): %s/%d: %.200v", id, p, seed, r.Failure)
				return
			}
		}
	}
	t.Errorf("without the rule (%s) nothing is seen", id)
}

// TestAmnesiaMutants takes the guards against a disk that forgets out, one by one.
func TestAmnesiaMutants(t *testing.T) {
	for _, id := range []string{"B18d", "B19", "B19b", "H5"} {
		withoutRule(t, []string{"amnesia"}, id)
	}
}
