//go:build mutants

package interop

import (
	"fmt"
	"testing"
	"time"

	"github.com/flotillakv/flotilla/internal/mutants"
)

// TestMutants plants bugs in our core and shows that a mixed group finds them.
func TestMutants(t *testing.T) {
	for _, id := range []string{"A4b", "B3", "K5", "K7", "K11", "K19", "K20"} {
		t.Run(id, func(t *testing.T) {
			mutants.Set(id)
			defer mutants.Set("")
			for seed := uint64(1); seed <= 25; seed++ {
				for _, mix := range mixes {
					if what := broken(Options{Seed: seed, Ours: mix[0], Theirs: mix[1], Duration: 10 * time.Second}); what != "" {
						t.Logf("found by seed %d, %d of ours and %d of theirs: %.200s", seed, mix[0], mix[1], what)
						return
					}
				}
			}
			t.Fatal("not found")
		})
	}
}

// broken runs o; a panic of either implementation counts as a violation.
func broken(o Options) (what string) {
	defer func() {
		if p := recover(); p != nil {
			what = fmt.Sprint(p)
		}
	}()
	if res := Run(o); res.Failure != nil {
		return res.Failure.Error()
	}
	return ""
}
