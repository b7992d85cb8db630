//go:build mutants

package multiraft

import (
	"testing"

	"github.com/flotillakv/flotilla/internal/mutants"
)

// TestNapMutants plants one bug at a time and shows that the case of its rule fails.
func TestNapMutants(t *testing.T) {
	cases := map[string]func(*testing.T) error{}
	for _, c := range napCases {
		cases[c.name] = c.run
	}
	for id, name := range map[string]string{"Z1": "unsure", "Z7": "lost", "Z2": "held", "D9l": "lease", "Z10": "thrash", "Z11": "sweep", "Z12": "lags", "N8": "kept", "Z14": "lags"} {
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
