//go:build mutants

package multiraft

import (
	"errors"
	"testing"

	"github.com/flotillakv/flotilla/internal/mutants"
)

// Shows that each planted bug around sessions in this package is found.
func TestSessionMutants(t *testing.T) {
	defer mutants.Set("")
	if err := errors.Join(checkFlights(t), checkGroupTime(t)); err != nil {
		t.Fatalf("without a planted bug: %v", err)
	}
	for _, id := range []string{"F1d", "F1f", "F1h", "F6b"} {
		t.Run(id, func(t *testing.T) {
			mutants.Set(id)
			defer mutants.Set("")
			err := errors.Join(checkFlights(t), checkGroupTime(t))
			if err == nil {
				t.Fatal("survived")
			}
			t.Logf("found: %.300v", err)
		})
	}
}
