//go:build mutants

package engine

import (
	"testing"

	"github.com/flotillakv/flotilla/internal/mutants"
	"github.com/flotillakv/flotilla/internal/sim/simfs"
)

// TestMutants plants one bug at a time and shows that the crash tests find it.
// It answers whether those tests can fail at all.
func TestMutants(t *testing.T) {
	everywhere := func(s *script) func(t *testing.T) error {
		return func(t *testing.T) error {
			_, _, err := crashEverywhere(s, simfs.Modes, 1, crashOptions)
			return err
		}
	}
	for id, run := range map[string]func(t *testing.T) error{
		"E-ack-unsynced":     everywhere(i1Script(1, 60)),
		"E-destroy-unsynced": everywhere(destroyScript(5)),
		"E-ingest-unsynced":  everywhere(ingestScript(4)),
		"E-ingest-keeps-log": everywhere(ingestScript(4)),
		"E-narrow-kept":      everywhere(reshapeScript(7)),
		"E-subsumed-stays":   everywhere(reshapeScript(7)),
		"LR3":                func(t *testing.T) error { return journalModelRun(t, 3) },
		"LR3b":               cutsInOrder,
		"LR4": func(t *testing.T) error {
			_, _, err := crashEverywhere(journalScript(6), simfs.Modes, 1, journalOptions)
			return err
		},
		"E17":              everywhere(ingestScript(4)),
		"E-no-reopen":      flippedBit,
		"E-old-format":     flippedBit,
		"E-fatalf-returns": fatalParks,
		"E-intent-all":     intentBesideLiveGroup,
		"B18":              cutLogOpens,
		"B18c":             amnesiacOpens,
		"B18f":             flippedFiles,
		"H12":              othersMayRead,
		"H-overlap":        overlapBoots,
		"F1-read-on":       unreadable,
	} {
		t.Run(id, func(t *testing.T) {
			mutants.Set(id)
			defer mutants.Set("")
			err := run(t)
			if err == nil {
				t.Fatal("not found")
			}
			t.Logf("found: %.200v", err)
		})
	}
}
