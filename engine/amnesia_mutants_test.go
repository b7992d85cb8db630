//go:build mutants

package engine

import (
	"errors"
	"testing"

	"github.com/flotillakv/flotilla/internal/sim/simfs"
)

// amnesiacOpens marks a store and opens it again.
func amnesiacOpens(t *testing.T) error {
	fs := simfs.New()
	o := Options{Dir: "/s", FS: fs, Create: true, Node: 1, MemTableBytes: 256 << 10, CacheBytes: 1 << 20, OnFatal: func(error) {}}
	e, err := Open(o)
	if err != nil {
		t.Fatal(err)
	}
	_ = e.MarkAmnesiac(errors.New("x"))
	return refusedEverywhere(fs, o)
}
