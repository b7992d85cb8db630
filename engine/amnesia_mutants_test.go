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

// cutLogOpens cuts the end of a log off that was synced, and opens the store.
func cutLogOpens(t *testing.T) error {
	fs := simfs.New()
	o := crashOptions(fs)
	e, err := Open(o)
	if err != nil {
		t.Fatal(err)
	}
	write := func(k string) {
		b := e.NewBatch()
		defer b.Close()
		b.Set(1, []byte(k), make([]byte, 100))
		if err := errors.Join(b.Commit(true), b.Wait(), e.SyncNow()); err != nil {
			t.Fatal(err)
		}
	}
	write("a")
	old := fs.Image(simfs.None, 1)
	write("b")
	img := fs.Crash(simfs.None, 1).Image(simfs.All, 1)
	replaceFiles(t, img, old, ".log")
	o.FS = img
	e, err = Open(o)
	if err == nil {
		_ = e.Close()
		return errors.New("a store whose log was cut opens")
	}
	return nil
}
