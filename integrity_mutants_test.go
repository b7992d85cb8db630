//go:build mutants

package flotilla

import (
	"testing"

	"github.com/flotillakv/flotilla/internal/mutants"
)

// TestDamageMutants: a node that stops at a damaged table, and one that serves what it
// has dropped, are seen by who reads.
func TestDamageMutants(t *testing.T) {
	for _, id := range []string{"IG3", "IG9"} {
		t.Run(id, func(t *testing.T) {
			mutants.Set(id)
			defer mutants.Set("")
			err := checkFlippedTable(t, true)
			if err == nil {
				t.Fatal("survived")
			}
			t.Logf("found: %.300v", err)
		})
	}
}
