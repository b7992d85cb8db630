//go:build mutants

package flotilla_test

import (
	"testing"

	"github.com/flotillakv/flotilla/internal/mutants"
)

// TestBackupMutants plants one bug of cuts at a time and shows that it is found.
func TestBackupMutants(t *testing.T) {
	for id, run := range map[string]func(*testing.T) error{
		"H-cut-moves": func(t *testing.T) error { return backupUnderLoad(t, 30) },
		"H-cut-stale": backupWithStaleFollower,
	} {
		t.Run(id, func(t *testing.T) {
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
