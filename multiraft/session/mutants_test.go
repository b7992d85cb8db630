//go:build mutants

package session

import (
	"testing"

	"github.com/flotillakv/flotilla/internal/mutants"
)

// Shows that each planted bug of this package is found by the scenarios or by
// the random histories, and that nothing is found without one.
func TestMutants(t *testing.T) {
	defer mutants.Set("")
	caught := func() string {
		if err := checkScenarios(); err != nil {
			return err.Error()
		}
		for seed := range uint64(60) {
			if err := checkModel(seed); err != nil {
				return err.Error()
			}
		}
		return ""
	}
	for _, id := range []string{"F1", "F1c", "F1e", "F1g"} {
		mutants.Set(id)
		if why := caught(); why == "" {
			t.Errorf("planted bug %s survived", id)
		} else {
			t.Logf("%s: %s", id, why)
		}
	}
	mutants.Set("")
	if why := caught(); why != "" {
		t.Errorf("without a planted bug: %s", why)
	}
}
