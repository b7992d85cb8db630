package engine

import (
	"errors"
	"fmt"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"

	"github.com/flotillakv/flotilla/internal/sim/simfs"
)

// TestFullDisk: a disk fills up under a node. The node stops with that as the
// reason; it does not start without space, and says what it needs, again
// and again; and with space it starts, and everything that was acknowledged is there. A flush that finds no space is no
// reason to stop: the log decides.
func TestFullDisk(t *testing.T) {
	for _, room := range []int64{0, 1 << 10, 100 << 10, 1 << 20} {
		fs := simfs.New()
		o := Options{Dir: "/data/n1", FS: fs, Create: true, CacheBytes: 1 << 20, MemTableBytes: 16 << 20}
		var fatal error
		o.OnFatal = func(err error) { fatal = err }
		e, err := Open(o)
		must(t, err)
		createGroup(t, e, 1)
		fs.SetSpace(used(t, fs, o.Dir) + 2<<20 + room)
		val := make([]byte, 30_000)
		acked := 0
		for ; acked < 10_000; acked++ {
			b := e.NewBatch()
			b.Set(1, fmt.Appendf(nil, "key%05d", acked), val)
			if err = b.Commit(true); err == nil {
				err = b.Wait()
			}
			b.Close()
			if err != nil {
				break
			}
		}
		if err == nil || fatal == nil || !strings.Contains(fatal.Error(), syscall.ENOSPC.Error()) {
			t.Fatalf("after %d writes: %v; the node stops with %v", acked, err, fatal)
		}
		// What a process that ends leaves; not a byte is free.
		img := fs.Image(simfs.All, 1)
		for range 2 {
			full := img.Image(simfs.All, 1)
			full.SetSpace(used(t, full, o.Dir))
			o.FS, o.OnFatal = full, func(error) {}
			err := openWithin(t, o)
			var oe *OpenError
			if !errors.As(err, &oe) || oe.Reason != NoSpace || !errors.Is(err, syscall.ENOSPC) || !strings.Contains(oe.Hint, "free") {
				t.Fatalf("a store without a free byte, %d KiB in its log: %v", acked*len(val)>>10, err)
			}
			img = full.Image(simfs.All, 1)
		}
		o.FS = img
		img.SetSpace(0)
		o.OnFatal = func(err error) { t.Errorf("with space again: %v", err) }
		e, err = Open(o)
		must(t, err)
		for i := range acked {
			if _, ok, err := e.Get(1, fmt.Appendf(nil, "key%05d", i), nil); err != nil || !ok {
				t.Fatalf("acknowledged write %d of %d is gone (%v)", i, acked, err)
			}
		}
		// A background flush that finds no space is not the end.
		e.eventListener().BackgroundError(fmt.Errorf("flush: %w", syscall.ENOSPC))
		if err := e.SyncNow(); err != nil {
			t.Fatalf("a flush without space stops the node: %v", err)
		}
		must(t, e.Close())
	}
}

// openWithin opens a store, which must not take long.
func openWithin(t *testing.T, o Options) error {
	t.Helper()
	done := make(chan error, 1)
	go func() {
		_, err := Open(o)
		done <- err
	}()
	select {
	case err := <-done:
		return err
	case <-time.After(10 * time.Second):
		t.Fatal("the store neither opens nor says why not")
		return nil
	}
}

// used counts the bytes of the files below dir.
func used(t *testing.T, fs vfs.FS, dir string) (n int64) {
	t.Helper()
	names, err := fs.List(dir)
	must(t, err)
	for _, name := range names {
		path := fs.PathJoin(dir, name)
		info, err := fs.Stat(path)
		if err != nil { // removed meanwhile
			continue
		}
		if info.IsDir() {
			n += used(t, fs, path)
		} else {
			n += info.Size()
		}
	}
	return n
}
