//go:build mutants

package explore

import (
	"flag"
	"strings"
	"testing"
	"time"

	"github.com/flotillakv/flotilla/internal/mutants"
)

var flagMutants = flag.String("explore.mutants", "", "only these planted bugs, by id")

// find is where a planted bug is looked for: the first scope that finds it ends
// the search.
type find struct {
	id     string
	scopes string // of the group, or "pair"
}

// Others of the core lie deeper than these scopes reach, or are no matter of
// safety; the simulators find them.
var finds = []find{
	{"A1b", "crash"}, {"A2", "swap"}, {"A2b", "swap"}, {"A4", "elect"}, {"A4b", "elect"}, {"A12", "lapse"},
	{"A13", "transfer"}, {"A13b", "transfer"}, {"B1", "append"}, {"B5", "append"},
	{"C1", "alonecrash"}, {"C3", "alonecrash"}, {"C3b", "alone"}, {"C4", "swap2"},
	{"D2b", "reads"}, {"D6", "oldread"}, {"D9d", "depose"}, {"D9f", "depose"}, {"D9b", "pair"}, {"D14", "pair"}, {"D14b", "pair"}, {"D14c", "pair"}, {"D14d", "pair"}, {"D14e", "pair"},
	{"K1", "elect"}, {"K2", "append"}, {"K4", "append"}, {"K5", "crash"}, {"K7", "crash"}, {"K8", "elect"}, {"K10", "slow"}, {"K20", "append"},
}

// TestMutants plants one bug after the other and shows that the exploration
// finds it, in how many states and how many steps.
func TestMutants(t *testing.T) {
	defer mutants.Set("")
	for _, f := range finds {
		if *flagMutants != "" && !strings.Contains(" "+*flagMutants+" ", " "+f.id+" ") {
			continue
		}
		t.Run(f.id, func(t *testing.T) {
			mutants.Set(f.id)
			start := time.Now()
			for _, name := range strings.Fields(f.scopes) {
				for _, o := range []Options{{States: 400_000, Time: time.Minute}, {Order: Depth, States: 600_000, Time: time.Minute}} {
					how := [...]string{"breadth first", "depth first"}[o.Order]
					r := explore(name, o)
					if r.Failure == nil {
						t.Logf("not in scope %s, %s: %v", name, how, r)
						continue
					}
					t.Logf("found: %s in scope %s, %s, %d states, %d steps, %v: %s", r.Failure.Rule, name, how, r.States, len(r.Acts),
						time.Since(start).Round(time.Millisecond), r.Failure.Text)
					if *flagMutants != "" {
						t.Logf("\n%s", r.Trace())
					}
					return
				}
			}
			t.Errorf("%s was not found", f.id)
		})
	}
}

func explore(scope string, o Options) Report {
	if scope == "pair" {
		return shrunk(NewPair(PairScope{Timing: sharp, AskerPPM: -5000, SupporterPPM: 5000, Beats: 2, AskerCrashes: 1, SupporterCrashes: 1}), o)
	}
	s, _ := ScopeOf(scope)
	return shrunk(NewGroup(s), o)
}

func shrunk[S any](m Model[S], o Options) Report {
	r := Run(m, o)
	if r.Failure != nil && o.Order == Depth {
		r.Acts, r.Failure, r.Steps = Shrink(m, r.Acts, r.Failure)
	}
	return r
}
