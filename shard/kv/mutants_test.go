//go:build mutants

package kv

import (
	"testing"

	"github.com/flotillakv/flotilla/internal/mutants"
)

// TestMutants plants one bug at a time and shows that a test finds it.
func TestMutants(t *testing.T) {
	for id, run := range map[string]func(*testing.T) error{
		"D7b": readReplaced,
	} {
		t.Run(id, func(t *testing.T) {
			mutants.Set(id)
			defer mutants.Set("")
			err := run(t)
			if err == nil {
				t.Fatal("not found")
			}
			t.Logf("found: %.200v", err)
		})
	}
}
