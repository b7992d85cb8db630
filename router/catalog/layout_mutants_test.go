//go:build mutants

package catalog

import (
	"testing"

	"github.com/flotillakv/flotilla/internal/mutants"
)

// Shows that each planted bug of layouts is found, and nothing without one.
func TestLayoutMutants(t *testing.T) {
	defer mutants.Set("")
	check := func() error {
		for seed := range uint64(300) {
			if err := overlayRun(seed); err != nil {
				return err
			}
		}
		return leadersRun()
	}
	if err := check(); err != nil {
		t.Fatalf("without a planted bug: %v", err)
	}
	for _, id := range []string{"R-overlay", "R-dealt"} {
		t.Run(id, func(t *testing.T) {
			mutants.Set(id)
			defer mutants.Set("")
			err := check()
			if err == nil {
				t.Fatal("not found")
			}
			t.Logf("found: %v", err)
		})
	}
}
