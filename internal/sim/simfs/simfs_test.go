package simfs

import (
	"errors"
	"io"
	"os"
	"slices"
	"strings"
	"testing"

	"github.com/cockroachdb/pebble/v2/vfs"
)

const cat = vfs.WriteCategoryUnspecified

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func create(t *testing.T, fs *FS, name string) vfs.File {
	t.Helper()
	f, err := fs.Create(name, cat)
	must(t, err)
	return f
}

func put(t *testing.T, f vfs.File, s string) {
	t.Helper()
	_, err := f.Write([]byte(s))
	must(t, err)
}

func syncDir(t *testing.T, fs *FS, name string) {
	t.Helper()
	d, err := fs.OpenDir(name)
	must(t, err)
	must(t, d.Sync())
	must(t, d.Close())
}

// content returns a file's content, "-" if there is no such file.
func content(t *testing.T, fs *FS, name string) string {
	t.Helper()
	f, err := fs.Open(name)
	if errors.Is(err, os.ErrNotExist) {
		return "-"
	}
	must(t, err)
	b, err := io.ReadAll(f)
	must(t, err)
	must(t, f.Close())
	return string(b)
}

// TestDurability shows what it takes to survive: a file's content needs its
// own sync, its name the directory's.
func TestDurability(t *testing.T) {
	fs := New()
	must(t, fs.MkdirAll("/d", 0o755))
	syncDir(t, fs, "/")
	f := create(t, fs, "/d/a")
	put(t, f, "one")
	must(t, f.Sync())
	if got := content(t, fs.Image(None, 1), "/d/a"); got != "-" {
		t.Fatalf("a synced file in an unsynced directory: %q", got)
	}
	syncDir(t, fs, "/d")
	put(t, f, "two")
	if got := content(t, fs.Image(None, 1), "/d/a"); got != "one" {
		t.Fatalf("unsynced write: %q", got)
	}
	if got := content(t, fs.Image(All, 1), "/d/a"); got != "onetwo" {
		t.Fatalf("all: %q", got)
	}
	must(t, fs.Rename("/d/a", "/d/b"))
	img := fs.Image(None, 1)
	if content(t, img, "/d/a") != "one" || content(t, img, "/d/b") != "-" {
		t.Fatal("an unsynced rename is durable")
	}
	must(t, f.Sync())
	syncDir(t, fs, "/d")
	img = fs.Image(None, 1)
	if content(t, img, "/d/a") != "-" || content(t, img, "/d/b") != "onetwo" {
		t.Fatal("a synced rename is not durable")
	}
	must(t, fs.Remove("/d/b"))
	if content(t, fs.Image(None, 1), "/d/b") != "onetwo" || content(t, fs.Image(All, 1), "/d/b") != "-" {
		t.Fatal("an unsynced removal")
	}
	if _, err := f.Stat(); err != nil {
		t.Fatalf("a removed file stays open: %v", err)
	}
}

// TestPrefix shows that over the seeds every prefix of a file's writes turns
// up, nothing else, and that a seed always gives the same image.
func TestPrefix(t *testing.T) {
	fs := New()
	f := create(t, fs, "/000001.log")
	put(t, f, "0")
	must(t, f.Sync())
	syncDir(t, fs, "/")
	for _, s := range []string{"1", "2", "3"} {
		put(t, f, s)
	}
	seen := map[string]bool{}
	for seed := range uint64(200) {
		got := content(t, fs.Image(Prefix, seed), "/000001.log")
		if again := content(t, fs.Image(Prefix, seed), "/000001.log"); again != got {
			t.Fatalf("seed %d: %q, then %q", seed, got, again)
		}
		if !strings.HasPrefix("0123", got) || got == "" {
			t.Fatalf("seed %d: %q is no prefix", seed, got)
		}
		seen[got] = true
	}
	if len(seen) != 4 {
		t.Fatalf("only %v", seen)
	}
}

// TestSeedIgnoresNumbering shows that an image depends on what files are for
// and their order, not on their numbers.
func TestSeedIgnoresNumbering(t *testing.T) {
	make := func(name string) *FS {
		fs := New()
		f := create(t, fs, name)
		syncDir(t, fs, "/")
		for range 9 {
			put(t, f, "x")
		}
		return fs
	}
	a, b := make("/000004.log"), make("/000093.log")
	for seed := range uint64(50) {
		x, y := content(t, a.Image(Prefix, seed), "/000004.log"), content(t, b.Image(Prefix, seed), "/000093.log")
		if x != y {
			t.Fatalf("seed %d: %q and %q", seed, x, y)
		}
	}
}

// TestTorn shows that a torn write ends at a sector of the disk.
func TestTorn(t *testing.T) {
	fs := New()
	f := create(t, fs, "/000001.log")
	syncDir(t, fs, "/")
	put(t, f, strings.Repeat("a", 100))
	put(t, f, strings.Repeat("b", 2000))
	sizes := map[int]bool{}
	for seed := range uint64(300) {
		sizes[len(content(t, fs.Image(Torn, seed), "/000001.log"))] = true
	}
	for _, want := range []int{0, 100, 512, 1024, 2100} {
		if !sizes[want] {
			t.Errorf("no image of %d bytes: %v", want, sizes)
		}
		delete(sizes, want)
	}
	for n := range sizes {
		if n%sector != 0 {
			t.Errorf("an image of %d bytes", n)
		}
	}
}

// TestSubset shows a later name surviving without an earlier one, and a
// removal surviving only after everything before it.
func TestSubset(t *testing.T) {
	fs := New()
	create(t, fs, "/old")
	syncDir(t, fs, "/")
	create(t, fs, "/a")
	create(t, fs, "/b")
	must(t, fs.Remove("/old"))
	onlyB := false
	for seed := range uint64(100) {
		names, err := fs.Image(Subset, seed).List("/")
		must(t, err)
		hasOld := slices.Contains(names, "old")
		if !hasOld && len(names) != 2 {
			t.Fatalf("seed %d: removal without what came before: %v", seed, names)
		}
		onlyB = onlyB || slices.Contains(names, "b") && !slices.Contains(names, "a")
		prefix, err := fs.Image(Prefix, seed).List("/")
		must(t, err)
		if slices.Contains(prefix, "b") && !slices.Contains(prefix, "a") {
			t.Fatalf("seed %d: prefix kept b without a", seed)
		}
	}
	if !onlyB {
		t.Fatal("no image kept b without a")
	}
}

// TestReuse shows that a recycled file keeps its content under its new name,
// and that writes to it are seen like all others.
func TestReuse(t *testing.T) {
	fs := New()
	f := create(t, fs, "/000001.log")
	put(t, f, "abcdef")
	must(t, f.Sync())
	must(t, f.Close())
	syncDir(t, fs, "/")
	var failed int
	fs.Inject(func(op Op) error {
		if op.Kind == OpWrite && op.Class == ClassWAL {
			failed++
			return errors.New("no")
		}
		return nil
	})
	f, err := fs.ReuseForWrite("/000001.log", "/000002.log", cat)
	must(t, err)
	if _, err := f.Write([]byte("x")); err == nil || failed != 1 {
		t.Fatalf("write to a recycled file: %v, %d", err, failed)
	}
	fs.Inject(nil)
	put(t, f, "XY")
	if got := content(t, fs, "/000002.log"); got != "XYcdef" {
		t.Fatalf("recycled: %q", got)
	}
	if got := content(t, fs.Image(None, 1), "/000001.log"); got != "abcdef" {
		t.Fatalf("not yet durable: %q", got)
	}
	fs.NoReuse()
	must(t, f.Close())
	if _, err = fs.ReuseForWrite("/000002.log", "/000003.log", cat); err != nil {
		t.Fatal(err)
	}
	if got := content(t, fs, "/000003.log"); got != "" {
		t.Fatalf("without reuse: %q", got)
	}
}

// TestLocks shows that a lock is exclusive, can be given back, and does not
// outlive a crash.
func TestLocks(t *testing.T) {
	fs := New()
	l, err := fs.Lock("/LOCK")
	must(t, err)
	if _, err := fs.Lock("/LOCK"); err == nil {
		t.Fatal("locked twice")
	}
	if _, err := fs.Image(All, 1).Lock("/LOCK"); err != nil {
		t.Fatal(err)
	}
	must(t, l.Close())
	if _, err := fs.Lock("/LOCK"); err != nil {
		t.Fatal(err)
	}
}

// TestCrash shows that nothing works after a crash, and that an image does.
func TestCrash(t *testing.T) {
	fs := New()
	f := create(t, fs, "/a")
	put(t, f, "x")
	img := fs.Crash(All, 1)
	if _, err := f.Write([]byte("y")); !errors.Is(err, ErrCrashed) {
		t.Fatalf("write after a crash: %v", err)
	}
	if _, err := fs.List("/"); !errors.Is(err, ErrCrashed) {
		t.Fatalf("list after a crash: %v", err)
	}
	if got := content(t, img, "/a"); got != "x" {
		t.Fatalf("image: %q", got)
	}
	before := img.Digest()
	if img.Image(None, 1).Digest() != before {
		t.Fatal("an image has something that is not durable")
	}
	if !img.Flip("/a", 3) || img.Digest() == before {
		t.Fatal("flip did nothing")
	}
}

// TestSyncHook shows that the hook sees the state before and after each sync.
func TestSyncHook(t *testing.T) {
	fs := New()
	f := create(t, fs, "/a")
	syncDir(t, fs, "/")
	put(t, f, "x")
	var got []string
	fs.OnSync(func(s Sync) {
		got = append(got, content(t, fs.Image(None, 1), "/a"))
	})
	must(t, f.Sync())
	if !slices.Equal(got, []string{"", "x"}) {
		t.Fatalf("hook saw %q", got)
	}
	if fs.Syncs() != 2 {
		t.Fatalf("%d syncs", fs.Syncs())
	}
}

// TestErrors goes through the refusals.
func TestErrors(t *testing.T) {
	fs := New()
	create(t, fs, "/file")
	must(t, fs.MkdirAll("/dir/sub", 0o755))
	_, openErr := fs.Open("/none")
	_, createErr := fs.Create("/none/x", cat)
	_, notDir := fs.Create("/file/x", cat)
	_, reuse := fs.ReuseForWrite("/none", "/x", cat)
	for name, c := range map[string]struct{ got, want error }{
		"open":       {openErr, os.ErrNotExist},
		"create":     {createErr, os.ErrNotExist},
		"remove":     {fs.Remove("/none"), os.ErrNotExist},
		"rename":     {fs.Rename("/none", "/x"), os.ErrNotExist},
		"link":       {fs.Link("/none", "/x"), os.ErrNotExist},
		"link over":  {fs.Link("/file", "/dir"), os.ErrExist},
		"reuse":      {reuse, os.ErrNotExist},
		"remove all": {fs.RemoveAll("/none"), nil},
	} {
		if !errors.Is(c.got, c.want) {
			t.Errorf("%s: %v", name, c.got)
		}
	}
	if notDir == nil || fs.Remove("/dir") == nil || fs.MkdirAll("/file/x", 0o755) == nil {
		t.Error("a file taken for a directory, or a full directory removed")
	}
	must(t, fs.RemoveAll("/dir"))
	if _, err := fs.Stat("/dir/sub"); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("after RemoveAll: %v", err)
	}
}
