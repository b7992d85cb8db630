//go:build mutants

package snapshot

import (
	"testing"

	"github.com/flotillakv/flotilla/internal/mutants"
)

// withoutRule takes a rule out and shows that its scenario sees it.
func withoutRule(t *testing.T, id string, run func(*testing.T) error) {
	t.Helper()
	mutants.Set(id)
	defer mutants.Set("")
	err := run(t)
	if err == nil {
		t.Errorf("without the rule (%s) nothing is seen", id)
		return
	}
	t.Logf("without the rule (%s): %.200v", id, err)
}
