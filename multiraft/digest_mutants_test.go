//go:build mutants

package multiraft

import (
	"testing"

	"github.com/flotillakv/flotilla/internal/mutants"
)

// TestIntegrityMutants: each rule of comparing and rebuilding replicas that is taken
// out is seen by a scenario.
func TestIntegrityMutants(t *testing.T) {
	for id, run := range integrityScenarios {
		t.Run(id, func(t *testing.T) {
			mutants.Set(id)
			defer mutants.Set("")
			err := run(newRig(t))
			if err == nil {
				t.Fatal("survived")
			}
			t.Logf("found: %v", err)
		})
	}
}
