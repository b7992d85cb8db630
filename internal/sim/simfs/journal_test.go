package simfs

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"slices"
	"strings"
	"syscall"
	"testing"

	"github.com/cockroachdb/pebble/v2/vfs"
)

// TestJournal does random operations and shows that at every moment the images
// made from the journal are those of the file system itself.
func TestJournal(t *testing.T) {
	rng := rand.New(rand.NewPCG(1, 2))
	fs := New()
	must(t, fs.MkdirAll("/d/e", 0o755))
	put(t, create(t, fs, "/d/before"), "was there")
	j := fs.Record()
	type moment struct {
		at     int
		images []uint64
	}
	images := func(image func(Mode, uint64) *FS) (out []uint64) {
		for _, m := range Modes {
			out = append(out, image(m, 7).Digest())
		}
		return out
	}
	var moments []moment
	var open []vfs.File
	name := func() string { return fmt.Sprintf("/d/%c", 'p'+rng.IntN(5)) }
	for range 300 {
		switch rng.IntN(9) {
		case 0:
			open = append(open, create(t, fs, name()))
		case 1, 2, 3:
			if len(open) > 0 {
				put(t, open[rng.IntN(len(open))], strings.Repeat("x", rng.IntN(9000)))
			}
		case 4:
			if len(open) > 0 {
				must(t, open[rng.IntN(len(open))].Sync())
			}
		case 5:
			syncDir(t, fs, "/d")
		case 6:
			_ = fs.Rename(name(), name())
		case 7:
			_ = fs.Remove(name())
		case 8:
			if f, err := fs.ReuseForWrite(name(), "/d/e/"+fmt.Sprint(rng.IntN(3)), cat); err == nil {
				open = append(open, f)
			}
		}
		moments = append(moments, moment{j.Len(), images(fs.Image)})
	}
	c := j.Cursor()
	for _, m := range moments {
		c.Seek(m.at)
		if got := images(c.Image); !slices.Equal(got, m.images) {
			t.Fatalf("after %d changes, the last of them %s, the images differ", m.at, j.Op(m.at-1))
		}
	}
	if len(c.Pending()) == 0 {
		t.Fatal("nothing is pending: the test shows nothing")
	}
}

// TestZeroed shows a file that is longer than what was written of it.
func TestZeroed(t *testing.T) {
	fs := New()
	f := create(t, fs, "/a")
	put(t, f, "AB")
	must(t, f.Sync())
	syncDir(t, fs, "/")
	put(t, f, "cd")
	put(t, f, "ef")
	got := map[string]bool{}
	for seed := range uint64(200) {
		got[content(t, fs.Image(Zeroed, seed), "/a")] = true
	}
	for _, want := range []string{"AB", "AB\x00\x00", "AB\x00\x00\x00\x00", "ABcd", "ABcd\x00\x00", "ABcdef"} {
		if !got[want] {
			t.Errorf("no image with %q", want)
		}
		delete(got, want)
	}
	if len(got) != 0 {
		t.Errorf("images that cannot be: %v", got)
	}
}

// TestBlocks shows blocks and writes that survive without earlier ones, and
// removals that survive before them.
func TestBlocks(t *testing.T) {
	fs := New()
	create(t, fs, "/old")
	f := create(t, fs, "/a")
	syncDir(t, fs, "/")
	put(t, f, strings.Repeat("a", block+100))
	put(t, f, strings.Repeat("b", 100))
	create(t, fs, "/new")
	must(t, fs.Remove("/old"))
	blocks, writes := map[string]bool{}, map[string]bool{}
	shape := func(s string) string {
		at := func(i int) string {
			if i >= len(s) {
				return "-"
			}
			return map[byte]string{0: "0", 'a': "a", 'b': "b"}[s[i]]
		}
		return at(0) + at(block) + at(block+100)
	}
	early := false
	for seed := range uint64(300) {
		blocks[shape(content(t, fs.Image(Blocks, seed), "/a"))] = true
		img := fs.Image(Reordered, seed)
		writes[shape(content(t, img, "/a"))] = true
		early = early || content(t, img, "/old") == "-" && content(t, img, "/new") == "-"
	}
	for _, want := range []string{"---", "a--", "0a-", "aa-", "00b", "a0b", "0ab", "aab"} {
		if !blocks[want] {
			t.Errorf("blocks: no image %q: %v", want, blocks)
		}
	}
	for _, want := range []string{"---", "aa-", "00b", "aab"} {
		if !writes[want] {
			t.Errorf("writes: no image %q: %v", want, writes)
		}
	}
	if len(writes) != 4 {
		t.Errorf("a write is torn: %v", writes)
	}
	if !early {
		t.Error("no image where the removal alone survived")
	}
}

// TestImagesAreTheirOwn shows that neither an image nor its original sees what
// is written to the other, though they share what nobody writes.
func TestImagesAreTheirOwn(t *testing.T) {
	fs := New()
	f := create(t, fs, "/a")
	put(t, f, "one")
	must(t, f.Sync())
	syncDir(t, fs, "/")
	img := fs.Image(All, 1)
	g, err := img.OpenReadWrite("/a", cat)
	must(t, err)
	_, err = g.WriteAt([]byte("X"), 0)
	must(t, err)
	_, err = f.(*file).WriteAt([]byte("Y"), 1)
	must(t, err)
	must(t, f.Sync())
	if a, b, c := content(t, fs, "/a"), content(t, img, "/a"), content(t, img.Image(None, 1), "/a"); a != "oYe" || b != "Xne" || c != "one" {
		t.Fatalf("original %q, image %q, image of the image %q", a, b, c)
	}
}

// TestFaults goes through the faults.
func TestFaults(t *testing.T) {
	setup := func(faults ...Fault) (*FS, vfs.File) {
		fs := New()
		f := create(t, fs, "/000001.log")
		syncDir(t, fs, "/")
		fs.SetFaults(faults...)
		return fs, f
	}
	const name = "/000001.log"
	fs, f := setup(Fault{Kind: OpWrite, Class: ClassWAL, Nth: 2, Effect: TornWrite})
	put(t, f, "x")
	if n, err := f.Write(make([]byte, 3000)); err == nil || n != 1024 || len(content(t, fs, name)) != 1025 {
		t.Errorf("torn write: %d, %v", n, err)
	}
	put(t, f, "y")
	if h := fs.Hits(); h[0] != 1 {
		t.Errorf("hits %v", h)
	}

	fs, f = setup(Fault{Kind: OpSync, Class: ClassWAL, Effect: SyncLost})
	put(t, f, "gone")
	if f.Sync() == nil {
		t.Error("the sync did not fail")
	}
	put(t, f, "kept")
	must(t, f.Sync())
	if content(t, fs, name) != "gonekept" || content(t, fs.Image(None, 1), name) != "\x00\x00\x00\x00kept" {
		t.Errorf("a failed sync: %q, durable %q", content(t, fs, name), content(t, fs.Image(None, 1), name))
	}

	fs, f = setup(Fault{Kind: OpSync, AnyClass: true, Sticky: true, Effect: SyncLies})
	put(t, f, "x")
	must(t, f.Sync())
	must(t, f.Sync())
	if content(t, fs.Image(None, 1), name) != "" {
		t.Error("the lie came true")
	}

	fs, f = setup(Fault{Kind: OpRead, Class: ClassWAL, Nth: 1, Effect: FlipRead, Bit: 1})
	put(t, f, "\x00\x00")
	var b [2]byte
	_, err := f.ReadAt(b[:], 0)
	must(t, err)
	if b[0] != 2 || content(t, fs, name) != "\x00\x00" {
		t.Errorf("flip on read: %x", b)
	}

	fs, f = setup(Fault{Kind: OpWrite, Class: ClassWAL, Effect: FlipWrite, Bit: 9}, Fault{Kind: OpWrite, Class: ClassWAL, Nth: 2, Effect: Misdirect})
	put(t, f, "\x00\x00")
	put(t, f, "z")
	if got := content(t, fs, name); got[:2] != "\x00\x02" || len(got) != block+3 || got[block+2] != 'z' {
		t.Errorf("flipped and misdirected: %d bytes, %x", len(got), got[:2])
	}

	fs, _ = setup(Fault{Kind: OpCreate, AnyClass: true})
	if _, err := fs.Create("/new", cat); err == nil {
		t.Error("create did not fail")
	}
}

// TestSpace fills the disk, frees some of it and goes on.
func TestSpace(t *testing.T) {
	fs := New()
	fs.SetSpace(10)
	put(t, create(t, fs, "/a"), "12345678")
	f := create(t, fs, "/b")
	if _, err := f.Write([]byte("123")); err == nil || !strings.Contains(err.Error(), "no space") {
		t.Fatalf("write to a full disk: %v", err)
	}
	put(t, f, "12")
	_, err := f.(*file).WriteAt([]byte("3"), 0) // overwrites need nothing
	must(t, err)
	must(t, fs.Remove("/a"))
	put(t, f, "34567")
	if _, err := fs.Stat("/a"); !os.IsNotExist(err) {
		t.Fatal(err)
	}
}

// TestDiskFaults: a full disk takes nothing and gives everything back, a rotten bit
// is in whatever is made of the file later, and what is scrapped is gone.
func TestDiskFaults(t *testing.T) {
	fs := New()
	fs.Keep()
	must(t, fs.MkdirAll("/d", 0o755))
	f, err := fs.Create("/d/000001.sst", "")
	must(t, err)
	put(t, f, "\x00\x00")
	must(t, f.Sync())
	fs.SetFaults(NoSpace(ClassTable, false)...)
	if _, err := f.Write([]byte("x")); !errors.Is(err, syscall.ENOSPC) {
		t.Errorf("a write to a full disk: %v", err)
	}
	if _, err := fs.Create("/d/000002.sst", ""); !errors.Is(err, syscall.ENOSPC) {
		t.Errorf("a file on a full disk: %v", err)
	}
	must(t, fs.MkdirAll("/d/e", 0o755)) // of another class
	fs.SetFaults(NoSpace(0, true)...)
	if err := fs.MkdirAll("/d/f", 0o755); !errors.Is(err, syscall.ENOSPC) {
		t.Errorf("a directory on a full disk: %v", err)
	}
	fs.SetFaults()
	put(t, f, "y")
	if fs.Used() != 3 {
		t.Errorf("%d bytes are used", fs.Used())
	}

	if _, ok := fs.Rot(ClassWAL, 1); ok {
		t.Error("rot in a file that is not there")
	}
	for _, bit := range []uint64{9, 16} { // the latter is of what is not synced
		if name, ok := fs.Rot(ClassTable, bit); !ok || name != "/d/000001.sst" {
			t.Errorf("rot in %q", name)
		}
	}
	must(t, f.Sync())
	for _, name := range []string{"/", "/d"} {
		dir, err := fs.OpenDir(name)
		must(t, err)
		must(t, dir.Sync())
	}
	fs.Settle(fs.Syncs() - 1)
	for _, img := range []*FS{fs, fs.ImageAt(All, 1, fs.Syncs()), fs.ImageAt(None, 1, fs.Syncs())} {
		if got := content(t, img, "/d/000001.sst"); got != "\x00\x02x" {
			t.Errorf("rotten: %q", got)
		}
	}

	img := fs.Image(All, 0)
	fs.Scrap()
	if _, err := f.Write([]byte("x")); !errors.Is(err, ErrCrashed) {
		t.Errorf("a write to a scrapped disk: %v", err)
	}
	if content(t, img, "/d/000001.sst") != "\x00\x02x" {
		t.Error("an image went with it")
	}
}
