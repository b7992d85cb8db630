package engine

import (
	"errors"
	"fmt"
	"testing"

	"github.com/cockroachdb/pebble/v2"
)

// TestCancelledCompaction: a compaction that gives way to an excise (a snapshot
// is installed, a replica destroyed) is no failure of the store; one that fails is.
func TestCancelledCompaction(t *testing.T) {
	var fatal error
	e, err := Open(Options{Dir: "d", FS: NewMemFS(), Create: true, OnFatal: func(err error) { fatal = err }})
	if err != nil {
		t.Fatal(err)
	}
	l := e.eventListener()
	l.BackgroundError(fmt.Errorf("compaction: %w", pebble.ErrCancelledCompaction))
	if err := e.SyncNow(); err != nil || fatal != nil {
		t.Fatalf("the store has failed: %v, %v", err, fatal)
	}
	if err := e.Close(); err != nil {
		t.Fatal(err)
	}
	l.BackgroundError(errors.New("a table cannot be read"))
	if fatal == nil {
		t.Fatal("a failed compaction was taken for nothing")
	}
}
