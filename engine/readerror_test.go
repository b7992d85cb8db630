package engine

import (
	"errors"
	"fmt"
	"syscall"
	"testing"

	"github.com/flotillakv/flotilla/internal/sim/simfs"
)

// unreadable reads from a store whose tables cannot be read any more, and returns
// an error if the store goes on.
func unreadable(*testing.T) error {
	fs := simfs.New()
	o := crashOptions(fs)
	e, err := Open(o)
	if err != nil {
		return err
	}
	b := e.NewBatch()
	b.Set(1, []byte("k"), []byte("v"))
	if err := errors.Join(b.Commit(true), b.Wait()); err != nil {
		return err
	}
	b.Close()
	if err := e.Close(); err != nil {
		return err
	}
	var reasons []error
	o.FS, o.OnFatal = fs.Image(simfs.All, 0), func(err error) { reasons = append(reasons, err) }
	if e, err = Open(o); err != nil { // what the log held is in a table now
		return err
	}
	defer e.Close()
	o.FS.(*simfs.FS).SetFaults(simfs.Fault{Kind: simfs.OpRead, AnyClass: true, Sticky: true})
	_, _, err = e.Get(1, []byte("k"), nil)
	if !errors.Is(err, syscall.EIO) {
		return fmt.Errorf("a table that cannot be read gives %w", err)
	}
	if !errors.Is(err, ErrFailed) || len(reasons) != 1 || !errors.Is(reasons[0], syscall.EIO) {
		return fmt.Errorf("the store goes on after %w, and told %v", err, reasons)
	}
	e.Discard()
	return nil
}

// TestReadError: a disk that cannot be read stops the node, with the reason.
func TestReadError(t *testing.T) { must(t, unreadable(t)) }
