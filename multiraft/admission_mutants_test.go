//go:build mutants

package multiraft

import (
	"testing"

	"github.com/flotillakv/flotilla/internal/mutants"
)

// TestAdmissionMutants plants one bug at a time and shows that a case fails.
func TestAdmissionMutants(t *testing.T) {
	for _, id := range []string{"S19-wait", "S19-stuck"} {
		t.Run(id, func(t *testing.T) {
			mutants.Set(id)
			defer mutants.Set("")
			for _, c := range admissionCases {
				if err := c.run(); err != nil {
					t.Logf("found by %q: %v", c.name, err)
					return
				}
			}
			t.Fatal("not found")
		})
	}
}

// TestOverloadedHostMutants: a host that refuses nobody, one that carries out what
// it refused, and one that does not say when to come back are found.
func TestOverloadedHostMutants(t *testing.T) {
	for _, id := range []string{"S19-wait", "S19-effect", "S19-retry"} {
		t.Run(id, func(t *testing.T) {
			mutants.Set(id)
			defer mutants.Set("")
			err := overloadedHost(t)
			if err == nil {
				t.Fatal("survived")
			}
			t.Logf("found: %.300v", err)
		})
	}
}
