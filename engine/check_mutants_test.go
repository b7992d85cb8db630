//go:build mutants

package engine

import (
	"testing"

	"github.com/flotillakv/flotilla/internal/mutants"
	"github.com/flotillakv/flotilla/internal/sim/simfs"
)

// TestCheckMutants: where Check leaves something out, a store that is broken there is
// not reported, and the tests say so.
func TestCheckMutants(t *testing.T) {
	healthy := checkStore(t)
	for id, name := range map[string]string{
		"E-check-blocks":  "a bit of a table",
		"E-check-wal":     "a bit of the write-ahead log",
		"E-check-mark":    "a write-ahead log cut short",
		"E-check-tomb":    "a replica that was removed",
		"E-check-gap":     "an entry that is missing",
		"E-check-entry":   "an entry whose checksum is wrong",
		"E-check-term":    "an entry of an older term",
		"E-check-overlap": "shards that overlap",
		"E-check-stray":   "keys of nobody",
		"E-check-session": "a session",
		"E-check-value":   "a value",
		"E-check-writes":  "",
	} {
		t.Run(id, func(t *testing.T) {
			run := func() error {
				if name == "" {
					_, err := sound(healthy.Image(simfs.All, 1), checkHooks)
					return err
				}
				return checkWrong(healthy, name)
			}
			must(t, run())
			mutants.Set(id)
			defer mutants.Set("")
			if err := run(); err == nil {
				t.Fatal("not found")
			}
		})
	}
}
