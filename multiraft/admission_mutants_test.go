//go:build mutants

package multiraft

import (
	"testing"

	"github.com/flotillakv/flotilla/internal/mutants"
)

// TestAdmissionMutants plants one bug at a time and shows that a case fails.
func TestAdmissionMutants(t *testing.T) {
	for _, id := range []string{"S19-wait", "S19-stuck"} {
		t.Run(id, func(t *testing.T) {
			mutants.Set(id)
			defer mutants.Set("")
			for _, c := range admissionCases {
				if err := c.run(); err != nil {
					t.Logf("found by %q: %v", c.name, err)
					return
				}
			}
			t.Fatal("not found")
		})
	}
}
