//go:build mutants

package raft

import (
	"testing"

	"github.com/flotillakv/flotilla/internal/mutants"
)

// TestHostileMutants plants one bug at a time and shows that it is found.
func TestHostileMutants(t *testing.T) {
	t.Run("H11b", func(t *testing.T) {
		mutants.Set("H11b")
		defer mutants.Set("")
		err := beyondReason(t)
		if err == nil {
			t.Fatal("not found")
		}
		t.Logf("found: %.200v", err)
	})
}
