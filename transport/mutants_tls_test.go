//go:build mutants

package transport

import (
	"testing"

	"github.com/flotillakv/flotilla/internal/mutants"
)

// Shows that a door that does not compare a node's certificate with its hello is found.
func TestTLSMutants(t *testing.T) {
	t.Run("H-cert-unpinned", func(t *testing.T) {
		mutants.Set("H-cert-unpinned")
		defer mutants.Set("")
		err := checkTLSRefusals(t)
		if err == nil {
			t.Fatal("survived")
		}
		t.Logf("found: %v", err)
	})
}
