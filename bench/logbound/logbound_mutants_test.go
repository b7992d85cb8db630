//go:build mutants

package logbound

import (
	"testing"

	"github.com/flotillakv/flotilla/internal/mutants"
)

// TestBoundsMutants plants one bug at a time and shows that a bound is exceeded.
func TestBoundsMutants(t *testing.T) {
	for _, id := range []string{"LB1", "LB2"} {
		t.Run(id, func(t *testing.T) {
			mutants.Set(id)
			defer mutants.Set("")
			_, err := checkBounds(t)
			if err == nil {
				t.Fatal("not found")
			}
			t.Logf("found: %v", err)
		})
	}
}
