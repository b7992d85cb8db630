//go:build mutants

package rafttest

import (
	"testing"

	"github.com/flotillakv/flotilla/internal/mutants"
)

// TestNapMutants plants one bug at a time and shows that it is found.
func TestNapMutants(t *testing.T) {
	for id, run := range map[string]func() error{
		"N4": napReads, "N1": napUncut, "N5": napCommitBelowLast, "N6": napLostCommit, "N7": napKeptForTheDead,
	} {
		t.Run(id, func(t *testing.T) {
			mutants.Set(id)
			defer mutants.Set("")
			err := run()
			if err == nil {
				t.Fatal("not found")
			}
			t.Logf("found: %.200v", err)
		})
	}
}
