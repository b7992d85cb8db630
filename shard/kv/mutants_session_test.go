//go:build mutants

package kv

import (
	"testing"

	"github.com/flotillakv/flotilla/internal/mutants"
)

func checkReplicas(t *testing.T) (err error) {
	for seed := uint64(0); seed < 4 && err == nil; seed++ {
		err = checkSessionDeterminism(t, seed)
	}
	return err
}

// Shows that session records lost over a snapshot are found.
func TestSessionMutants(t *testing.T) {
	defer mutants.Set("")
	if err := checkReplicas(t); err != nil {
		t.Fatalf("without a planted bug: %v", err)
	}
	for _, id := range []string{"F1b"} {
		t.Run(id, func(t *testing.T) {
			mutants.Set(id)
			defer mutants.Set("")
			err := checkReplicas(t)
			if err == nil {
				t.Fatal("survived")
			}
			t.Logf("found: %.300v", err)
		})
	}
}
