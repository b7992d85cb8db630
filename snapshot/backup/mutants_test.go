//go:build mutants

package backup

import (
	"testing"

	"github.com/flotillakv/flotilla/internal/mutants"
)

// TestMutants plants one bug at a time and shows that it is found.
func TestMutants(t *testing.T) {
	for id, run := range map[string]func(testing.TB) error{
		"H-backup-early": interrupted, "H-backup-unchecked": damaged, "H-backup-short": short, "H-backup-tail": interrupted,
		"H-prune-alone": pruneBesides, "H-prune-order": pruneCrash, "H-prune-snapshots": pruned,
	} {
		t.Run(id, func(t *testing.T) {
			mutants.Set("")
			if err := run(t); err != nil {
				t.Fatalf("without the bug: %v", err)
			}
			mutants.Set(id)
			defer mutants.Set("")
			err := run(t)
			if err == nil {
				t.Fatal("not found")
			}
			t.Logf("found: %v", err)
		})
	}
}
