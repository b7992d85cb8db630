//go:build mutants

package flotilla

import (
	"testing"

	"github.com/flotillakv/flotilla/internal/mutants"
)

// TestMemoryMutants: a consumer without a bound, or one that is not counted, is found.
func TestMemoryMutants(t *testing.T) {
	for id, check := range map[string]func(t *testing.T) error{
		"GV1": checkGovernor, "GV2": checkMemoryCounted, "GV4": checkGovernor, "GV5": checkMemoryCounted, "GV6": checkMemoryCounted,
	} {
		t.Run(id, func(t *testing.T) {
			mutants.Set(id)
			defer mutants.Set("")
			err := check(t)
			if err == nil {
				t.Fatal("survived")
			}
			t.Logf("found: %.300v", err)
		})
	}
}
