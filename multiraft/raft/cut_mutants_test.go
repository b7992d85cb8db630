//go:build mutants

package raft

import (
	"testing"

	"github.com/flotillakv/flotilla/internal/mutants"
)

// TestCutMutants plants one bug at a time and shows that a case fails.
func TestCutMutants(t *testing.T) {
	for _, id := range []string{"CP1", "CP2", "CI1"} {
		t.Run(id, func(t *testing.T) {
			mutants.Set(id)
			defer mutants.Set("")
			for _, c := range cutCases {
				if err := c.run(t); err != nil {
					t.Logf("found by %q: %v", c.name, err)
					return
				}
			}
			t.Fatal("not found")
		})
	}
}
