package engine

import (
	"errors"
	"fmt"
	"testing"

	"github.com/flotillakv/flotilla/internal/sim/simfs"
)

// TestMarkAmnesiac: a store that is known to have forgotten something fails, and
// never opens again, whatever a power cut leaves of it.
func TestMarkAmnesiac(t *testing.T) {
	fs := simfs.New()
	var fatal error
	o := Options{Dir: "/s", FS: fs, Create: true, Node: 1, MemTableBytes: 256 << 10, CacheBytes: 1 << 20, OnFatal: func(err error) { fatal = err }}
	e, err := Open(o)
	if err != nil {
		t.Fatal(err)
	}
	why := errors.New("node 2 says so")
	if err := e.MarkAmnesiac(why); !errors.Is(err, ErrAmnesia) || !errors.Is(err, ErrFailed) || !errors.Is(fatal, why) {
		t.Fatalf("%v; told: %v", err, fatal)
	}
	if err := e.SyncNow(); !errors.Is(err, ErrFailed) {
		t.Fatalf("it still writes: %v", err)
	}
	if err := refusedEverywhere(fs, o); err != nil {
		t.Fatal(err)
	}
}

// refusedEverywhere opens every image of a crash now.
func refusedEverywhere(fs *simfs.FS, o Options) error {
	for _, mode := range simfs.Modes {
		o.FS = fs.Image(mode, 3)
		var oe *OpenError
		e, err := Open(o)
		if err == nil {
			err = e.Close()
		}
		if !errors.As(err, &oe) || oe.Reason != Amnesia {
			return fmt.Errorf("image %v opens: %v", mode, err)
		}
	}
	return nil
}

// TestMarkAmnesiacOfAnother: a process that was left behind, while another one
// opened the directory, fails alone.
func TestMarkAmnesiacOfAnother(t *testing.T) {
	fs := simfs.New()
	o := Options{Dir: "/s", FS: fs, Create: true, Node: 1, MemTableBytes: 256 << 10, CacheBytes: 1 << 20, OnFatal: func(error) {}}
	e, err := Open(o)
	if err != nil {
		t.Fatal(err)
	}
	next := e.identRec
	next.BootEpoch++
	if err := writeIdentFile(fs, e.identPath(), &next); err != nil {
		t.Fatal(err)
	}
	if err := e.MarkAmnesiac(errors.New("x")); !errors.Is(err, ErrFailed) {
		t.Fatal(err)
	}
	o.FS = fs.Image(simfs.All, 1)
	again, err := Open(o)
	if err != nil {
		t.Fatalf("the other process's store: %v", err)
	}
	if err := again.Close(); err != nil {
		t.Fatal(err)
	}
}
