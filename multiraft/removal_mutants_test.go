//go:build mutants

package multiraft

import (
	"testing"

	"github.com/flotillakv/flotilla/internal/mutants"
)

// plantedHere are bugs of the runtime's membership, and the scenario that finds each.
var plantedHere = []struct{ id, scenario string }{
	{"C5", "persisted"},
	{"C5b", "durable first"},
	{"C6b", "plans"},
	{"C9", "installed"},
	{"C10", "plans"},
	{"C11", "lagging"},
	{"C13", "newest counts"},
	{"C15", "plans"},
	{"C18", "lagging"},
	{"F6", "answers all"},
	{"F7", "answers all"},
	{"G11", "restart"},
	{"G11b", "lingers"},
	{"G12", "stays dead"},
	{"G12b", "stays dead"},
	{"G13", "one destroyer"},
	{"G14", "lingers"},
	{"G15", "restart"},
	{"G15b", "stays dead"},
}

// TestMembershipMutants plants one bug at a time: its scenario must find it.
func TestMembershipMutants(t *testing.T) {
	for _, p := range plantedHere {
		t.Run(p.id, func(t *testing.T) {
			mutants.Set(p.id)
			defer mutants.Set("")
			bad := scenarios[p.scenario](newRig(t))
			if bad == "" {
				t.Fatalf("%s does not see it", p.scenario)
			}
			t.Logf("found: %s", bad)
		})
	}
}
