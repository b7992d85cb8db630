//go:build mutants

package flotilla

import (
	"testing"

	"github.com/flotillakv/flotilla/internal/mutants"
)

// TestOverloadMutants: a node that refuses nobody is found by what waits on it.
func TestOverloadMutants(t *testing.T) {
	mutants.Set("S19-wait")
	defer mutants.Set("")
	err := checkOverload(t)
	if err == nil {
		t.Fatal("survived")
	}
	t.Logf("found: %.300v", err)
}
