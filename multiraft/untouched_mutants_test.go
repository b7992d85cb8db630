//go:build mutants

package multiraft

import (
	"testing"

	"github.com/flotillakv/flotilla/internal/mutants"
)

// TestUntouchedMutants plants one bug at a time and shows that the case of its rule fails.
func TestUntouchedMutants(t *testing.T) {
	cases := map[string]func(*testing.T) error{}
	for _, c := range untouchedCases {
		cases[c.name] = c.run
	}
	for id, name := range map[string]string{"U1": "vote", "U3": "gone", "Z5": "turns", "Z6": "storm", "U4": "line", "Z8": "line", "Z9": "calls"} {
		t.Run(id, func(t *testing.T) {
			mutants.Set(id)
			defer mutants.Set("")
			err := cases[name](t)
			if err == nil {
				t.Fatal("not found")
			}
			t.Logf("found: %.200v", err)
		})
	}
}
