package explore

import (
	"flag"
	"runtime"
	"testing"
	"time"
)

var (
	flagScope  = flag.String("explore.scope", "", "explore this scope only (scopes.go)")
	flagStates = flag.Uint64("explore.states", 0, "distinct states at most; zero means 300000 and the small scopes")
	flagOrder  = flag.String("explore.order", "breadth", "breadth, depth or walk")
	flagDepth  = flag.Int("explore.depth", 0, "steps at most; zero means no bound (walk: 100)")
	flagSeed   = flag.Uint64("explore.seed", 1, "of a walk")
	flagTime   = flag.Duration("explore.time", 0, "time at most; zero means no bound")
	flagBytes  = flag.Uint64("explore.mib", 3072, "MiB of tables at most")
)

func options(t *testing.T) Options {
	order, ok := map[string]Order{"breadth": Breadth, "depth": Depth, "walk": Walk}[*flagOrder]
	if !ok {
		t.Fatalf("order %q is none of breadth, depth, walk", *flagOrder)
	}
	return Options{Order: order, States: *flagStates, Depth: *flagDepth, Bytes: *flagBytes << 20, Time: *flagTime, Seed: *flagSeed,
		Progress: func(r Report) { t.Logf("%v %v", time.Now().Format("15:04:05"), r) }}
}

// TestCore explores the group model over the real core: every state within a
// scope, or the first ones of a scope that is too large. Without flags the small
// scopes are exhausted.
func TestCore(t *testing.T) {
	small := map[string]bool{"elect": true, "append": true, "lapse": true, "reads": true, "swap": true}
	for _, s := range Scopes() {
		if *flagScope == "" && (*flagStates == 0 && !small[s.Name] || *flagStates != 0 && s.Name != "all") || *flagScope != "" && s.Name != *flagScope {
			continue
		}
		t.Run(s.Name, func(t *testing.T) {
			m := NewGroup(s)
			o := options(t)
			r := Run(m, o)
			nodes, msgs, steps := m.Figures()
			var mem runtime.MemStats
			runtime.ReadMemStats(&mem)
			t.Logf("scope %s: %v", s.Name, r)
			t.Logf("%d states of a node, %d messages, %d steps of a core, heap %d MiB", nodes, msgs, steps, mem.HeapSys>>20)
			if r.Failure != nil {
				t.Fatalf("%v\n%s", r.Failure, r.Trace())
			}
			if small[s.Name] && *flagStates == 0 && !r.Exhausted {
				t.Errorf("scope %s was not exhausted", s.Name)
			}
		})
	}
}
