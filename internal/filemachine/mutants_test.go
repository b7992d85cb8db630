//go:build mutants

package filemachine

import (
	"testing"

	"github.com/flotillakv/flotilla/internal/mutants"
)

// TestOutsideMutants plants one bug at a time and shows that a crash, or a snapshot, brings it out.
func TestOutsideMutants(t *testing.T) {
	crash := func(eager bool) error { _, err := crashEverywhere(eager, 1); return err }
	for id, run := range map[string]func() error{
		"X1":  func() error { return crash(false) },
		"X1b": func() error { return crash(false) },
		"X2":  func() error { return crash(true) },
		"X3":  func() error { return crash(false) },
		"X5":  func() error { _, err := snapshotCrash(9, 1); return err },
	} {
		t.Run(id, func(t *testing.T) {
			mutants.Set(id)
			defer mutants.Set("")
			err := run()
			if err == nil {
				t.Fatal("not found")
			}
			t.Logf("found: %.300v", err)
		})
	}
}
