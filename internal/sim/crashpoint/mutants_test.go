//go:build mutants

package crashpoint

import (
	"maps"
	"slices"
	"strings"
	"testing"

	"github.com/flotillakv/flotilla/internal/mutants"
)

// planted are bugs that crashes must show, and the scenarios that look for each,
// by the beginning of their names.
var planted = map[string]string{
	"B15c":               "host-elections-in-turn",
	"B15b":               "host-writes",
	"B16":                "install-twice",
	"B16b":               "start",
	"B18b":               "watermark",
	"D14f":               "reopen",
	"E5":                 "host-truncation",
	"E5b":                "host-snapshot-tables",
	"J3":                 "host-truncation",
	"E6":                 "install-small",
	"E11":                "install-",
	"E13":                "install-small",
	"F2c":                "host-writes",
	"G14":                "destroy",
	"H3":                 "append-",
	"H4":                 "failed-sync",
	"K2":                 "host-writes",
	"K13":                "host-new-epochs",
	"E-ack-unsynced":     "votes",
	"E-destroy-unsynced": "destroy",
	"E-destroy-first":    "destroy",
	"E-intent-early":     "destroy",
	"E-ingest-unsynced":  "install-",
	"E-ingest-keeps-log": "install-",
}

// TestMutants plants one bug at a time and shows that a crash finds it.
func TestMutants(t *testing.T) {
	for _, id := range slices.Sorted(maps.Keys(planted)) {
		t.Run(id, func(t *testing.T) {
			mutants.Set(id)
			defer mutants.Set("")
			var some []Scenario
			for _, s := range Scenarios {
				if strings.HasPrefix(s.Name, planted[id]) {
					some = append(some, s)
				}
			}
			o := Options{Scenarios: some, Images: 1500, PerOp: 2, Workers: 2, SecondEvery: 4}
			switch id {
			case "E5": // deferred, the record goes with the entries
				o.Defer, o.Images = DeferNever, 6000
			case "J3":
				o.Defer, o.PerOp = DeferAlways, 0.2
			}
			tally, err := Explore(o)
			if err == nil {
				t.Fatalf("not found: %v", tally)
			}
			t.Logf("after %v: %.300v", tally, err)
		})
	}
}
