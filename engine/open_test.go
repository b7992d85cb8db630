package engine

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/cockroachdb/pebble/v2"

	"github.com/flotillakv/flotilla/internal/sim/simfs"
	"github.com/flotillakv/flotilla/multiraft/raft"
)

// wantReason opens and expects a refusal that names the path.
func wantReason(t *testing.T, o Options, want Reason) {
	t.Helper()
	e, err := Open(o)
	if err == nil {
		_ = e.Close()
		t.Fatalf("opened; want %v", want)
	}
	var oe *OpenError
	if !errors.As(err, &oe) || oe.Reason != want {
		t.Fatalf("%v; want %v", err, want)
	}
	if !strings.Contains(err.Error(), fmt.Sprintf("%q", o.Dir)) || oe.Hint == "" {
		t.Errorf("%q does not name path and remedy", err)
	}
}

// TestOpenRefusals goes through the reasons for which a store is not opened.
// Each refusal leaves the disk as it was.
func TestOpenRefusals(t *testing.T) {
	fs := simfs.New()
	o := crashOptions(fs)
	o.Cluster = [16]byte{7}
	e, err := Open(o)
	must(t, err)
	createGroup(t, e, 1)
	wantReason(t, o, Locked)
	must(t, e.Close())

	// change applies f to a copy of the disk and of the options.
	for name, c := range map[string]struct {
		change func(fs *simfs.FS, o *Options)
		want   Reason
	}{
		"other cluster": {func(fs *simfs.FS, o *Options) { o.Cluster = [16]byte{8} }, OtherCluster},
		"other node":    {func(fs *simfs.FS, o *Options) { o.Node = 2 }, OtherNode},
		"no directory":  {func(fs *simfs.FS, o *Options) { o.Dir, o.Create = "/data/n2", false }, NotAStore},
		"empty name":    {func(fs *simfs.FS, o *Options) { o.Dir = "" }, NotAStore},
		"a file":        {func(fs *simfs.FS, o *Options) { o.Dir = "/data/n1/IDENT" }, NotAStore},
		"empty directory": {func(fs *simfs.FS, o *Options) {
			o.Dir, o.Create = "/data/n2", false
			must(t, fs.MkdirAll("/data/n2", 0o755))
		}, NotAStore},
		"foreign directory": {func(fs *simfs.FS, o *Options) {
			o.Dir = "/data/n2"
			must(t, fs.MkdirAll("/data/n2/photos", 0o755))
		}, NotAStore},
		"database gone":      {func(fs *simfs.FS, o *Options) { must(t, fs.RemoveAll("/data/n1/db")) }, Corrupt},
		"identity file gone": {func(fs *simfs.FS, o *Options) { must(t, fs.Remove("/data/n1/IDENT")) }, Corrupt},
		"identity file rotten": {func(fs *simfs.FS, o *Options) {
			fs.Flip("/data/n1/IDENT", 200)
			fs.Flip("/data/n1/IDENT", identSlot*8+200)
		}, Corrupt},
		"manifest gone": {func(fs *simfs.FS, o *Options) {
			names, _ := fs.List("/data/n1/db")
			for _, n := range names {
				if strings.HasPrefix(n, "MANIFEST-") {
					must(t, fs.Remove("/data/n1/db/"+n))
				}
			}
		}, Corrupt},
		"database emptied": {func(fs *simfs.FS, o *Options) {
			must(t, fs.RemoveAll("/data/n1/db"))
			must(t, fs.MkdirAll("/data/n1/db", 0o755))
		}, Corrupt},
		"newer layout": {func(fs *simfs.FS, o *Options) {
			rec, err := readIdentFile(fs, "/data/n1/IDENT")
			must(t, err)
			rec.Layout = LayoutVersion + 1
			must(t, writeIdentFile(fs, "/data/n1/IDENT", &rec))
		}, NewerLayout},
		"newer identity file": {func(fs *simfs.FS, o *Options) {
			b := identRecord{State: stateReady, Seq: 99}.encode(nil)
			b[8] = identVersion + 1
			resum(b)
			f, err := fs.OpenReadWrite("/data/n1/IDENT", "")
			must(t, err)
			_, err = f.WriteAt(b, 0)
			must(t, errors.Join(err, f.Close()))
		}, NewerLayout},
		"newer database format": {func(fs *simfs.FS, o *Options) {
			db, err := pebble.Open("/data/n1/db", &pebble.Options{FS: fs, FormatMajorVersion: pebble.FormatNewest, Logger: quiet{}})
			must(t, err)
			must(t, db.Close())
		}, NewerLayout},
		"read-only": {func(fs *simfs.FS, o *Options) {
			fs.Inject(func(op simfs.Op) error {
				if op.Kind != simfs.OpOpen && op.Kind != simfs.OpRead {
					return syscall.EROFS
				}
				return nil
			})
		}, NotWritable},
		"no permission": {func(fs *simfs.FS, o *Options) {
			fs.Inject(func(op simfs.Op) error { return syscall.EACCES })
		}, NotWritable},
		"disk full": {func(fs *simfs.FS, o *Options) {
			o.Dir = "/data/n2"
			fs.Inject(func(op simfs.Op) error {
				if op.Kind == simfs.OpWrite {
					return syscall.ENOSPC
				}
				return nil
			})
		}, NoSpace},
		"two stores mixed": {func(fs *simfs.FS, o *Options) {
			o2 := *o
			o2.Dir = "/data/n2"
			e, err := Open(o2)
			must(t, err)
			must(t, e.Close())
			must(t, fs.RemoveAll("/data/n2/db"))
			must(t, fs.Rename("/data/n1/db", "/data/n2/db"))
			o.Dir = "/data/n2"
		}, Corrupt},
	} {
		t.Run(name, func(t *testing.T) {
			img := fs.Image(simfs.All, 1)
			o := o
			o.FS = img
			c.change(img, &o)
			var before uint64
			unchanged := c.want != Corrupt && name != "disk full"
			if unchanged {
				img.OnSync(func(simfs.Sync) { t.Error("a refusal synced something") })
				before = img.Digest()
			}
			wantReason(t, o, c.want)
			if unchanged && img.Digest() != before {
				t.Error("a refusal changed the disk")
			}
			// The lock was given back: the second refusal is the same one.
			wantReason(t, o, c.want)
		})
	}
	// After all that, the original still opens.
	e, err = Open(o)
	must(t, err)
	must(t, e.Close())
}

type quiet struct{}

func (quiet) Infof(string, ...any)      {}
func (quiet) Errorf(string, ...any)     {}
func (quiet) Fatalf(f string, a ...any) { panic(fmt.Sprintf(f, a...)) }

// TestOSStore goes once through the file system of the operating system: two
// names of a directory meet at one lock, in this process and from another one,
// and a restart finds what was there.
func TestOSStore(t *testing.T) {
	if dir := os.Getenv("ENGINE_TEST_DIR"); dir != "" {
		_, err := Open(Options{Dir: dir})
		fmt.Println(err)
		return
	}
	dir := filepath.Join(t.TempDir(), "store")
	o := Options{Dir: dir, Create: true, CacheBytes: 1 << 20, MemTableBytes: 1 << 20}
	e, err := Open(o)
	must(t, err)
	createGroup(t, e, 1)
	must(t, e.SetIdent([16]byte{1}, 5))
	for _, d := range []string{dir, e.StagingDir()} {
		info, err := os.Stat(d)
		if must(t, err); info.Mode().Perm() != 0o700 {
			t.Errorf("%s has mode %v: others can get in", d, info.Mode().Perm())
		}
	}
	alias := filepath.Join(filepath.Dir(dir), "alias")
	must(t, os.Symlink(dir, alias))
	wantReason(t, Options{Dir: alias}, Locked)
	cmd := exec.Command(os.Args[0], "-test.run", "^TestOSStore$")
	cmd.Env = append(os.Environ(), "ENGINE_TEST_DIR="+dir)
	out, err := cmd.CombinedOutput()
	if err != nil || !strings.Contains(string(out), Locked.String()) {
		t.Fatalf("another process: %v\n%s", err, out)
	}
	must(t, e.Close())
	must(t, e.Close())
	wantReason(t, Options{Dir: dir, Cluster: [16]byte{2}}, OtherCluster)
	e, err = Open(Options{Dir: alias, Node: 5})
	must(t, err)
	groups, err := e.Boot()
	must(t, err)
	if len(groups) != 1 || e.BootEpoch() != 2 || e.Ident().Cluster != [16]byte{1} {
		t.Fatalf("%d groups, boot epoch %d, %+v", len(groups), e.BootEpoch(), e.Ident())
	}
	must(t, e.Close())
}

// TestSetIdent: an identity is set once, part by part, and survives.
func TestSetIdent(t *testing.T) {
	fs := NewMemFS()
	e := openTest(t, fs)
	must(t, e.SetIdent([16]byte{9}, 0))
	must(t, e.SetIdent([16]byte{}, 3))
	must(t, e.SetIdent([16]byte{9}, 3))
	for _, err := range []error{e.SetIdent([16]byte{8}, 3), e.SetIdent([16]byte{9}, 4)} {
		if !errors.Is(err, ErrIdentity) {
			t.Errorf("another identity: %v", err)
		}
	}
	must(t, e.Close())
	if id := openTest(t, fs).Ident(); id.Cluster != [16]byte{9} || id.Node != 3 {
		t.Fatalf("%+v", id)
	}
}

// TestBootEpochOutsideLog: the epoch rises even if the database forgot it.
func TestBootEpochOutsideLog(t *testing.T) {
	fs := NewMemFS()
	for want := uint64(1); want <= 4; want++ {
		e := openTest(t, fs)
		if e.BootEpoch() != want {
			t.Fatalf("boot epoch %d, want %d", e.BootEpoch(), want)
		}
		must(t, e.setSynced(requesterKey(nil), encodeRequester(nil, 1)))
		must(t, e.Close())
	}
}

// TestFailedSync: a failed sync stops the store once, with its reason, and
// nothing is retried or written afterwards.
func TestFailedSync(t *testing.T) {
	fs := simfs.New()
	o := crashOptions(fs)
	var mu sync.Mutex
	var reasons []error
	o.OnFatal = func(err error) {
		mu.Lock()
		defer mu.Unlock()
		reasons = append(reasons, err)
	}
	e, err := Open(o)
	must(t, err)
	createGroup(t, e, 1)
	boom := errors.New("boom")
	fs.Inject(func(op simfs.Op) error {
		if op.Kind == simfs.OpSync && op.Class == simfs.ClassWAL {
			return boom
		}
		return nil
	})
	b := e.NewBatch()
	b.Append(1, 0, entries(1, 1, 1))
	must(t, b.Commit(true))
	if err := b.Wait(); !errors.Is(err, ErrFailed) || !errors.Is(err, boom) {
		t.Fatalf("wait: %v", err)
	}
	b.Close()
	fs.Inject(nil)
	b = e.NewBatch()
	b.Append(1, 1, entries(2, 2, 1))
	if err := b.Commit(true); !errors.Is(err, ErrFailed) {
		t.Errorf("commit after the failure: %v", err)
	}
	b.Close()
	if err := e.SyncNow(); !errors.Is(err, ErrFailed) {
		t.Errorf("sync after the failure: %v", err)
	}
	if _, _, err := e.Get(1, []byte("x"), nil); !errors.Is(err, ErrFailed) {
		t.Errorf("get after the failure: %v", err)
	}
	if err := e.Close(); !errors.Is(err, ErrFailed) {
		t.Errorf("close: %v", err)
	}
	mu.Lock()
	defer mu.Unlock()
	if len(reasons) != 1 || !errors.Is(reasons[0], boom) {
		t.Errorf("OnFatal: %v", reasons)
	}
	// The directory stays locked for this process; a new one finds what was
	// acknowledged.
	wantReason(t, o, Locked)
	o.FS, o.OnFatal = fs.Crash(simfs.None, 1), nil
	e, err = Open(o)
	must(t, err)
	st, ok, err := e.Load(1)
	if err != nil || !ok || st.Last != 0 {
		t.Errorf("after a restart: %v %v %+v", ok, err, st)
	}
	must(t, e.Close())
}

// parksIn runs f on a goroutine of its own and returns an error unless that
// goroutine ends in park, for good.
func parksIn(f func()) error {
	returned := make(chan struct{})
	go func() {
		defer close(returned)
		f()
	}()
	stacks := make([]byte, 1<<20)
	for end := time.Now().Add(10 * time.Second); time.Now().Before(end); {
		select {
		case <-returned:
			return errors.New("what Pebble said cannot be went on")
		case <-time.After(time.Millisecond):
		}
		if bytes.Contains(stacks[:runtime.Stack(stacks, true)], []byte("engine.park(")) {
			return nil
		}
	}
	return errors.New("neither parked nor returned")
}

// fatalParks returns an error if a failure that Pebble reports lets its caller go on.
func fatalParks(*testing.T) error {
	e, err := Open(Options{Dir: "d", FS: NewMemFS(), Create: true, CacheBytes: 1 << 20, OnFatal: func(error) {}})
	if err != nil {
		return err
	}
	return parksIn(func() { pebbleLogger{e}.Fatalf("boom") })
}

// TestFatalParks: what Pebble holds for fatal never returns to it.
func TestFatalParks(t *testing.T) {
	if err := fatalParks(t); err != nil {
		t.Error(err)
	}
}

// TestFailedManifest: Pebble reports a failed MANIFEST write by Fatalf from a
// goroutine of its own; it must not go on, and the node hears of it once.
func TestFailedManifest(t *testing.T) {
	fs := simfs.New()
	o := crashOptions(fs)
	told := make(chan error, 2)
	o.OnFatal = func(err error) { told <- err }
	e, err := Open(o)
	must(t, err)
	createGroup(t, e, 1)
	fs.Inject(func(op simfs.Op) error {
		if op.Class == simfs.ClassManifest && (op.Kind == simfs.OpSync || op.Kind == simfs.OpWrite) {
			return errors.New("boom")
		}
		return nil
	})
	if err := parksIn(func() { _ = e.db.Flush() }); err != nil {
		t.Error(err)
	}
	select {
	case err := <-told:
		if !strings.Contains(err.Error(), "boom") {
			t.Errorf("reason: %v", err)
		}
	case <-time.After(10 * time.Second):
		t.Fatal("nobody was told")
	}
	if err := e.Close(); !errors.Is(err, ErrFailed) {
		t.Errorf("close: %v", err)
	}
	select {
	case err := <-told:
		t.Errorf("told twice: %v", err)
	default:
	}
}

// flippedBit writes synced records, flips one bit in the middle of the
// write-ahead log, and returns an error if the store opens and has lost any.
func flippedBit(t *testing.T) error {
	fs := simfs.New()
	o := crashOptions(fs)
	o.MemTableBytes = 4 << 20
	e, err := Open(o)
	if err != nil {
		return err
	}
	const n = 200
	for i := range n {
		b := e.NewBatch()
		b.Set(1, fmt.Appendf(nil, "%04d", i), make([]byte, 1000))
		if err := errors.Join(b.Commit(true), b.Wait()); err != nil {
			return err
		}
		b.Close()
	}
	img := fs.Crash(simfs.None, 1)
	names, err := img.List("/data/n1/db")
	if err != nil {
		return err
	}
	for _, name := range names {
		path := "/data/n1/db/" + name
		if info, err := img.Stat(path); err == nil && strings.HasSuffix(name, ".log") && info.Size() > 100<<10 {
			img.Flip(path, info.Size()/2*8)
		}
	}
	o.FS = img
	e, err = Open(o)
	if err != nil {
		var oe *OpenError
		if errors.As(err, &oe) && oe.Reason == Corrupt {
			return nil
		}
		return fmt.Errorf("refused for another reason: %w", err)
	}
	defer e.Close()
	it, err := e.NewIter(1, nil, nil)
	if err != nil {
		return err
	}
	defer it.Close()
	got := 0
	for ok := it.First(); ok; ok = it.Next() {
		got++
	}
	return fmt.Errorf("opened with %d of %d synced records", got, n)
}

// TestFlippedBit: rot in the middle of the log is found at open, also in the
// first log that a store ever had.
func TestFlippedBit(t *testing.T) {
	must(t, flippedBit(t))
}

// intentBesideLiveGroup makes an intent whose span overlaps live groups (as
// after a merge, or a new addition) and returns an error if carrying it out
// removes anything of theirs, or leaves anything else.
func intentBesideLiveGroup(t *testing.T) error {
	fs := NewMemFS()
	e, err := Open(Options{Dir: "/n", FS: fs, Create: true, MemTableBytes: 1 << 20})
	if err != nil {
		return err
	}
	defer e.Close()
	for s := raft.ShardID(2); s <= 3; s++ {
		createGroup(t, e, s)
	}
	b := e.NewBatch()
	for _, k := range []string{"s0001/x", "s0002/x", "s00020", "s0003/x", "s0004/x", "t"} {
		b.Set(1, []byte(k), []byte("v"))
	}
	b.Set(2, []byte("s0001/x"), []byte("v"))
	if err := errors.Join(b.Commit(true), b.Wait()); err != nil {
		return err
	}
	b.Close()
	in := intent{Keyspace: 1, Replica: 5, Start: []byte("s0001/"), End: []byte("s0005")}
	if err := e.setSynced(intentKey(nil, 9), in.encode(nil)); err != nil {
		return err
	}
	if _, err := e.Boot(); err != nil {
		return err
	}
	var left []string
	for ks := uint32(1); ks <= 2; ks++ {
		it, err := e.NewIter(ks, nil, nil)
		if err != nil {
			return err
		}
		for ok := it.First(); ok; ok = it.Next() {
			left = append(left, string(it.Key()))
		}
		if err := it.Close(); err != nil {
			return err
		}
	}
	if got := strings.Join(left, " "); got != "s0002/x s0003/x t s0001/x" {
		return fmt.Errorf("left: %s", got)
	}
	if _, ok, _ := e.getRaw(intentKey(nil, 9)); ok {
		return errors.New("the intent is still there")
	}
	return nil
}

// TestIntentBesideLiveGroup: an intent removes its span minus those of live groups.
func TestIntentBesideLiveGroup(t *testing.T) {
	must(t, intentBesideLiveGroup(t))
}

// TestAmnesia: a store that lost the end of its log, or went back to an old
// copy of its database, is refused; one that lost only what was never synced
// is not.
func TestAmnesia(t *testing.T) {
	fs := simfs.New()
	o := crashOptions(fs)
	e, err := Open(o)
	must(t, err)
	write := func(k string) {
		t.Helper()
		b := e.NewBatch()
		defer b.Close()
		b.Set(1, []byte(k), make([]byte, 100))
		must(t, errors.Join(b.Commit(true), b.Wait()))
	}
	write("a")
	must(t, e.SyncNow())
	old := fs.Image(simfs.None, 1)
	write("b")
	must(t, e.SyncNow())
	write("c")
	now := fs.Crash(simfs.None, 1)

	o.FS = now.Image(simfs.All, 1)
	e2, err := Open(o)
	must(t, err)
	must(t, e2.Close())

	for name, spoil := range map[string]func(img *simfs.FS){
		"log cut": func(img *simfs.FS) {
			replaceFiles(t, img, old, ".log")
		},
		"old database": func(img *simfs.FS) {
			must(t, img.RemoveAll("/data/n1/db"))
			must(t, img.MkdirAll("/data/n1/db", 0o755))
			replaceFiles(t, img, old, "")
		},
	} {
		t.Run(name, func(t *testing.T) {
			img := now.Image(simfs.All, 1)
			spoil(img)
			o.FS = img
			wantReason(t, o, Amnesia)
		})
	}
}

// replaceFiles overwrites the database files whose names end in suffix by
// those of another disk.
func replaceFiles(t *testing.T, img, from *simfs.FS, suffix string) {
	t.Helper()
	names, err := from.List("/data/n1/db")
	must(t, err)
	for _, name := range names {
		if !strings.HasSuffix(name, suffix) {
			continue
		}
		r, err := from.Open("/data/n1/db/" + name)
		must(t, err)
		content, err := io.ReadAll(r)
		must(t, errors.Join(err, r.Close()))
		w, err := img.Create("/data/n1/db/"+name, "")
		must(t, err)
		_, err = w.Write(content)
		must(t, errors.Join(err, w.Close()))
	}
}

// TestFailedRotation: when the log cannot be rotated, the node hears why, once.
// The goroutine that committed is parked inside Pebble.
func TestFailedRotation(t *testing.T) {
	fs := simfs.New()
	o := crashOptions(fs)
	told := make(chan error, 2)
	o.OnFatal = func(err error) { told <- err }
	e, err := Open(o)
	must(t, err)
	boom := errors.New("boom")
	fs.Inject(func(op simfs.Op) error {
		if op.Class == simfs.ClassWAL && (op.Kind == simfs.OpCreate || op.Kind == simfs.OpRename) {
			return boom
		}
		return nil
	})
	go func() {
		for i := 0; ; i++ {
			b := e.NewBatch()
			b.Set(1, fmt.Append(nil, i), make([]byte, 2000))
			if b.Commit(false) != nil {
				return
			}
			b.Close()
		}
	}()
	select {
	case err := <-told:
		if !errors.Is(err, boom) || !errors.Is(err, ErrFailed) {
			t.Errorf("reason: %v", err)
		}
	case <-time.After(10 * time.Second):
		t.Fatal("nobody was told")
	}
	if err := e.Close(); !errors.Is(err, ErrFailed) {
		t.Errorf("close: %v", err)
	}
}

// TestLargeBatch: a batch larger than a memtable is committed and its memory
// can be used again.
func TestLargeBatch(t *testing.T) {
	e := openTest(t, NewMemFS())
	for round := range 3 {
		b := e.NewBatch()
		for i := range 300 {
			b.Set(1, fmt.Appendf(nil, "%d/%d", round, i), make([]byte, 10_000))
		}
		must(t, errors.Join(b.Commit(round%2 == 0), b.Wait()))
		b.Close()
		if v, ok, err := e.Get(1, fmt.Appendf(nil, "%d/299", round), nil); err != nil || !ok || len(v) != 10_000 {
			t.Fatalf("%v %v %d", err, ok, len(v))
		}
	}
}

// resum writes the checksum of an identity record again.
func resum(b []byte) {
	binary.BigEndian.PutUint32(b[identLen-4:], crc32.Checksum(b[:identLen-4], castagnoli))
}
