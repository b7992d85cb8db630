//go:build mutants

package multiraft

import (
	"testing"

	"github.com/flotillakv/flotilla/internal/mutants"
)

// TestImageMutants plants one bug at a time and shows that a case fails.
func TestImageMutants(t *testing.T) {
	for _, id := range []string{"CI6", "CI7"} {
		t.Run(id, func(t *testing.T) {
			mutants.Set(id)
			defer mutants.Set("")
			for _, c := range imageCases {
				if err := c.run(t); err != nil {
					t.Logf("found by %q: %v", c.name, err)
					return
				}
			}
			t.Fatal("not found")
		})
	}
}
