//go:build mutants

package multiraft

import (
	"testing"

	"github.com/flotillakv/flotilla/internal/mutants"
)

// TestLeaseMutants plants one bug at a time and shows that the case of its rule fails.
func TestLeaseMutants(t *testing.T) {
	cases := map[string]func(*testing.T) error{}
	for _, c := range leaseCases {
		cases[c.name] = c.run
	}
	for id, name := range map[string]string{
		"D8b": "clock of before", "D8c": "published before told",
		"D7c": "does not stand", "D9h": "expired", "D9i": "hidden before messages",
	} {
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
