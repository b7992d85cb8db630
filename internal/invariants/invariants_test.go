package invariants

import "testing"

// TestMust shows that a true claim passes and a false one panics with its text.
func TestMust(t *testing.T) {
	Must(true, "never seen")
	defer func() {
		if r := recover(); r != "invariant violated: applied 7 past committed 3" {
			t.Fatalf("panic = %v", r)
		}
	}()
	Must(false, "applied %d past committed %d", 7, 3)
}
