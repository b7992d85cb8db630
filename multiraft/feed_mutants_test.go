//go:build mutants

package multiraft

import (
	"testing"

	"github.com/flotillakv/flotilla/internal/mutants"
)

// TestFeedMutants plants a bug and shows that the case fails.
func TestFeedMutants(t *testing.T) {
	t.Run("LK3", func(t *testing.T) {
		mutants.Set("LK3")
		defer mutants.Set("")
		err := feedWindow(t)
		if err == nil {
			t.Fatal("not found")
		}
		t.Logf("found: %v", err)
	})
}
