//go:build mutants

package router

import (
	"fmt"
	"testing"
	"testing/synctest"

	"github.com/flotillakv/flotilla/internal/mutants"
)

func checkSessions(t *testing.T) (caught error) {
	for _, c := range sessionCases {
		synctest.Test(t, func(t *testing.T) {
			if err := c.run(t); err != nil && caught == nil {
				caught = fmt.Errorf("%s: %w", c.name, err)
			}
		})
	}
	return caught
}

func checkPipelines(t *testing.T) (caught error) {
	for _, c := range pipelineCases {
		synctest.Test(t, func(t *testing.T) {
			if err := c.run(t); err != nil && caught == nil {
				caught = fmt.Errorf("%s: %w", c.name, err)
			}
		})
	}
	return caught
}

// Shows that each planted bug of the pipelines is found by their checks, and that
// nothing is found without one.
func TestPipelineMutants(t *testing.T) {
	defer mutants.Set("")
	if err := checkPipelines(t); err != nil {
		t.Fatalf("without a planted bug: %v", err)
	}
	for _, id := range []string{"F9b", "F6d", "F6e", "S19-pipeline", "H9b"} {
		t.Run(id, func(t *testing.T) {
			mutants.Set(id)
			defer mutants.Set("")
			err := checkPipelines(t)
			if err == nil {
				t.Fatal("survived")
			}
			t.Logf("found: %.300v", err)
		})
	}
}

// Shows that each planted bug of this package is found by one of the checks of
// sessions, and that nothing is found without one.
func TestMutants(t *testing.T) {
	defer mutants.Set("")
	if err := checkSessions(t); err != nil {
		t.Fatalf("without a planted bug: %v", err)
	}
	for _, id := range []string{"F1i", "F5", "F5b", "F9"} {
		t.Run(id, func(t *testing.T) {
			mutants.Set(id)
			defer mutants.Set("")
			err := checkSessions(t)
			if err == nil {
				t.Fatal("survived")
			}
			t.Logf("found: %.300v", err)
		})
	}
}

// A router that lets everybody wait is found out.
func TestPatienceMutants(t *testing.T) {
	t.Run("S19-patience", func(t *testing.T) {
		mutants.Set("S19-patience")
		defer mutants.Set("")
		err := patience(t)
		if err == nil {
			t.Fatal("survived")
		}
		t.Logf("found: %.300v", err)
	})
}

// A table that forgets nothing is found out.
func TestTableMutants(t *testing.T) {
	t.Run("R-limit", func(t *testing.T) {
		mutants.Set("R-limit")
		defer mutants.Set("")
		err := limited()
		if err == nil {
			t.Fatal("survived")
		}
		t.Logf("found: %v", err)
	})
}

// A router that asks everybody all the time for a leader that is not there is found out.
func TestHeadlessMutants(t *testing.T) {
	for id, run := range map[string]func(*testing.T) error{"R-headless": headless, "R-apart": crowd} {
		t.Run(id, func(t *testing.T) {
			mutants.Set(id)
			defer mutants.Set("")
			err := run(t)
			if err == nil {
				t.Fatal("survived")
			}
			t.Logf("found: %.300v", err)
		})
	}
}
