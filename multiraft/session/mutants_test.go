//go:build mutants

package session

import (
	"testing"

	"github.com/flotillakv/flotilla/internal/mutants"
)

func checkAll() error {
	err := checkScenarios()
	for seed := uint64(0); seed < 60 && err == nil; seed++ {
		err = checkModel(seed)
	}
	return err
}

// Shows that each planted bug of this package is found by the scenarios or by
// the random histories, and that nothing is found without one.
func TestMutants(t *testing.T) {
	defer mutants.Set("")
	if err := checkAll(); err != nil {
		t.Fatalf("without a planted bug: %v", err)
	}
	for _, id := range []string{"F1", "F1c", "F1e", "F1g"} {
		t.Run(id, func(t *testing.T) {
			mutants.Set(id)
			defer mutants.Set("")
			err := checkAll()
			if err == nil {
				t.Fatal("survived")
			}
			t.Logf("found: %.300v", err)
		})
	}
}
