//go:build mutants

package crashpoint

import (
	"testing"

	"github.com/flotillakv/flotilla/internal/mutants"
)

// planted are bugs that crashes must show.
var planted = []string{
	"B16", "E-ack-unsynced", "E-destroy-unsynced", "E-ingest-unsynced", "E-ingest-keeps-log",
}

// TestMutants plants one bug at a time and shows that a crash of some scenario
// finds it.
func TestMutants(t *testing.T) {
	for _, id := range planted {
		t.Run(id, func(t *testing.T) {
			mutants.Set(id)
			defer mutants.Set("")
			tally, err := Explore(Options{Images: 5000, PerOp: 4, Workers: 1, SecondEvery: 4})
			if err == nil {
				t.Fatalf("not found: %v", tally)
			}
			t.Logf("after %v: %.300v", tally, err)
		})
	}
}
