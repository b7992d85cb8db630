package coverage

import (
	"slices"
	"strings"
	"testing"
)

// TestTable: hits are counted by cell, added up, printed, and what was not hit
// is told, but for what cannot be.
func TestTable(t *testing.T) {
	var none *Table
	none.Hit(Drop, Append, Leader) // a nil table counts nothing
	none.HitAll(Drop, 1<<Append, Leader)

	var a, b Table
	a.Hit(Drop, Append, Leader)
	a.HitAll(Pause, 1<<Append|1<<Election, Follower)
	a.HitAll(Pause, 0, Follower)
	b.Hit(Drop, Append, Follower)
	a.Add(&b)
	if k, s := a.Pair(Drop, Append); k != 2 || s != 2 {
		t.Errorf("%d hits in %d states", k, s)
	}
	if k, _ := a.Pair(Pause, Idle); k != 1 {
		t.Errorf("%d hits of an idle node", k)
	}
	if cells, hits := a.Reached(); cells != 5 || hits != 5 || len(a.Cells()) != 5 {
		t.Errorf("%d cells, %d hits, %v", cells, hits, a.Cells())
	}
	text := a.Text(T0)
	for _, want := range []string{"| message lost | - | none |", " 2/2 |", "| pause | 1/1 | 1/1 |", "| leader |"} {
		if !strings.Contains(text, want) {
			t.Errorf("%q is not in\n%s", want, text)
		}
	}
	if strings.Contains(text, "session") {
		t.Error("T0 has no sessions")
	}
	holes := a.Holes(T0)
	if slices.Contains(holes, Hole{Drop, Append}) || !slices.Contains(holes, Hole{Drop, Repair}) || slices.Contains(holes, Hole{Drop, Idle}) {
		t.Errorf("holes: %v", holes)
	}
	missing := a.Missing(T0)
	if slices.Contains(missing, "messages x append") || !slices.Contains(missing, "messages x repair") || !slices.Contains(missing, "message lost x at least 3 operations") {
		t.Errorf("missing: %v", missing)
	}
}

// TestReasons: whatever cannot be reached has a reason, and names are unique.
func TestReasons(t *testing.T) {
	for _, tier := range []Tier{T0, T1} {
		for _, r := range tier.Reasons() {
			if r == "" {
				t.Errorf("%s: cells without a reason", tier.Name)
			}
		}
	}
	seen := map[string]bool{}
	for o := range Ops {
		if back, ok := ParseOp(o.String()); !ok || back != o || seen[o.String()] {
			t.Errorf("operation %d is named %q", o, o)
		}
		seen[o.String()] = true
	}
	for f := range Faults {
		if seen[f.String()] || f.String() == "" {
			t.Errorf("fault %d is named %q", f, f)
		}
		seen[f.String()] = true
	}
}
