package simfs

import (
	"fmt"
	"strings"
	"sync"
	"testing"

	"github.com/cockroachdb/pebble/v2"
	"github.com/cockroachdb/pebble/v2/vfs"
)

// The tests of this file are about simfs, not about Pebble: they look for two
// failures of Pebble v2.1.7 that are known to be there, in Pebble as it comes. A
// simfs that does not find them is broken (or Pebble was mended, and the cures in
// package engine can go).

func openPebble(fs vfs.FS, format pebble.FormatMajorVersion, manifestBytes, memTable int) (*pebble.DB, error) {
	return pebble.Open("/db", &pebble.Options{
		FS: fs, FormatMajorVersion: format, MaxManifestFileSize: int64(manifestBytes), MemTableSize: uint64(memTable),
		Logger: quiet{}, L0CompactionThreshold: 2,
	})
}

type quiet struct{}

func (quiet) Infof(string, ...any)       {}
func (quiet) Errorf(string, ...any)      {}
func (quiet) Fatalf(f string, a ...any)  { panic(fmt.Sprintf(f, a...)) }
func (quiet) Eventf(string, ...any)      {}
func (quiet) IsTracingEnabled(bool) bool { return false }

// TestFindsLostManifest: a power cut while the MANIFEST is rotated can leave the
// marker without the MANIFEST that it names.
func TestFindsLostManifest(t *testing.T) {
	fs := New()
	db, err := openPebble(fs, pebble.FormatNewest, 1, 64<<10)
	must(t, err)
	j := fs.Record()
	for i := range 12 {
		must(t, db.Set(fmt.Appendf(nil, "key%d", i), []byte("value"), pebble.Sync))
		must(t, db.Flush())
	}
	must(t, db.Close())
	c := j.Cursor()
	images, broken, first := 0, 0, ""
	for i := range j.Len() {
		c.Seek(i)
		for seed := range uint64(4) {
			img := c.Image(Subset, seed)
			images++
			db, err := openPebble(img, pebble.FormatNewest, 1, 64<<10)
			if err != nil {
				if !strings.Contains(err.Error(), "MANIFEST") {
					t.Fatalf("before %s: %v", j.Op(i), err)
				}
				if broken++; broken == 1 {
					first = fmt.Sprintf("before %s: %v", j.Op(i), err)
				}
				continue
			}
			must(t, db.Close())
		}
	}
	t.Logf("%d of %d images do not open; %s", broken, images, first)
	if broken == 0 {
		t.Fatal("not found")
	}
}

// TestFindsSilentRot: with Pebble's default format one flipped bit in the middle
// of the write-ahead log ends the log there, without an error; with sync chunks
// in the log Pebble refuses, but not in the first log of a new store.
func TestFindsSilentRot(t *testing.T) {
	kept := func(format pebble.FormatMajorVersion, reopen bool) (keys int, err error) {
		fs := New()
		db, err := openPebble(fs, format, 1<<20, 4<<20)
		must(t, err)
		if reopen {
			must(t, db.Close())
			db, err = openPebble(fs, format, 1<<20, 4<<20)
			must(t, err)
		}
		for i := range 200 {
			must(t, db.Set(fmt.Appendf(nil, "key%04d", i), []byte(strings.Repeat("v", 1000)), pebble.Sync))
		}
		img := fs.Image(None, 1)
		flipped := false
		names, err := img.List("/db")
		must(t, err)
		for _, name := range names {
			if info, err := img.Stat("/db/" + name); err == nil && strings.HasSuffix(name, ".log") && info.Size() > 150<<10 {
				flipped = img.Flip("/db/"+name, info.Size()/4*8)
			}
		}
		must(t, db.Close())
		if !flipped {
			t.Fatalf("no log with all the keys among %v", names)
		}
		db, err = openPebble(img, format, 1<<20, 4<<20)
		if err != nil {
			return 0, err
		}
		it, err := db.NewIter(nil)
		must(t, err)
		for ok := it.First(); ok; ok = it.Next() {
			keys++
		}
		must(t, it.Close())
		must(t, db.Close())
		return keys, nil
	}
	n, err := kept(pebble.FormatMinSupported, true)
	if err != nil || n == 0 || n >= 200 {
		t.Errorf("default format: %d of 200 keys, %v; expected a silent loss", n, err)
	}
	m, err := kept(pebble.FormatNewest, false)
	if err != nil || m >= 200 {
		t.Errorf("first log of a new store: %d of 200 keys, %v; expected a silent loss", m, err)
	}
	if k, err := kept(pebble.FormatNewest, true); err == nil {
		t.Errorf("with sync chunks: %d keys, no error", k)
	}
	t.Logf("silently lost of 200 synced keys: %d with the default format, %d in the first log of a new store", 200-n, 200-m)
}

// TestSeesRecycledLogs: what is written to a recycled log is seen, and two
// goroutines may take images and recycle at once.
func TestSeesRecycledLogs(t *testing.T) {
	fs := New()
	db, err := openPebble(fs, pebble.FormatNewest, 1<<20, 64<<10)
	must(t, err)
	j := fs.Record()
	var wg sync.WaitGroup
	stop := make(chan struct{})
	wg.Go(func() {
		for n := uint64(0); ; n++ {
			select {
			case <-stop:
				return
			default:
				fs.Image(Prefix, n)
			}
		}
	})
	for i := range 400 {
		must(t, db.Set(fmt.Appendf(nil, "key%d", i), make([]byte, 2000), pebble.Sync))
	}
	close(stop)
	wg.Wait()
	recycled := map[string]bool{}
	written := 0
	for i := range j.Len() {
		switch op := j.Op(i); {
		case op.Class != ClassWAL:
		case op.Kind == OpRename:
			recycled[op.Path] = true
		case op.Kind == OpWrite && recycled[op.Path]:
			written++
		}
	}
	must(t, db.Close())
	if len(recycled) == 0 || written == 0 {
		t.Fatalf("%d recycled logs, %d writes to them seen", len(recycled), written)
	}
}
