//go:build mutants

package multiraft

import (
	"testing"

	"github.com/flotillakv/flotilla/internal/mutants"
)

// TestLogCapMutants plants one bug at a time and shows that a case fails.
func TestLogCapMutants(t *testing.T) {
	for _, id := range []string{"LC1", "LC2", "LC4"} {
		t.Run(id, func(t *testing.T) {
			mutants.Set(id)
			defer mutants.Set("")
			for _, c := range logCapCases {
				if err := c.run(t); err != nil {
					t.Logf("found by %q: %v", c.name, err)
					return
				}
			}
			t.Fatal("not found")
		})
	}
}
