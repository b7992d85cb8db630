//go:build !mutants

package mutants

import "testing"

// This line compiles only if Enabled is the constant false: constant keys of a
// map literal must differ.
var _ = map[bool]struct{}{true: {}, Enabled: {}}

// TestDefaultBuildHasNoMutants shows that no planted bug can be switched on in
// the default build: Enabled is the constant false (above) and On is false for
// any id.
func TestDefaultBuildHasNoMutants(t *testing.T) {
	for _, id := range []string{"", "A1", "B6", "K9"} {
		if On(id) {
			t.Fatalf("planted bug %q is on in the default build", id)
		}
	}
}
