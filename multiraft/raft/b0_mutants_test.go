//go:build mutants

package raft

import (
	"testing"

	"github.com/flotillakv/flotilla/internal/mutants"
)

// TestB0Mutants takes out one rule at a time and shows that its case sees it.
func TestB0Mutants(t *testing.T) {
	for _, c := range b0Cases {
		t.Run(c.name, func(t *testing.T) {
			mutants.Set(c.name)
			defer mutants.Set("")
			err := c.run(t)
			if err == nil {
				t.Fatal("not found")
			}
			t.Logf("found: %v", err)
		})
	}
}
