package simfs

import "testing"

// TestHistory shows that an image can go back behind syncs that were not
// settled, that it then holds what was synced before and of what came after only
// what no later sync preceded, and that settling ends that.
func TestHistory(t *testing.T) {
	fs := New()
	fs.Keep()
	log := create(t, fs, "/000001.log")
	syncDir(t, fs, "/") // 1
	put(t, log, "a")
	must(t, log.Sync()) // 2
	table := create(t, fs, "/000002.sst")
	put(t, log, "b")
	must(t, log.Sync()) // 3
	put(t, table, "t")
	must(t, table.Sync()) // 4
	syncDir(t, fs, "/")   // 5
	if fs.Syncs() != 5 || fs.Settled() != 0 {
		t.Fatal(fs.Syncs(), fs.Settled())
	}
	for _, c := range []struct {
		mode       Mode
		at         int
		log, table string
	}{
		{None, 0, "-", "-"}, {None, 1, "", "-"}, {None, 2, "a", "-"}, {None, 3, "ab", "-"}, {None, 4, "ab", "-"}, {None, 5, "ab", "t"},
		{All, 0, "", "-"}, {All, 1, "a", "-"}, {All, 2, "ab", ""}, {All, 3, "ab", "t"}, {All, 5, "ab", "t"},
	} {
		img := fs.ImageAt(c.mode, 7, c.at)
		if l, s := content(t, img, "/000001.log"), content(t, img, "/000002.sst"); l != c.log || s != c.table {
			t.Errorf("%v at %d: log %q, table %q; want %q, %q", c.mode, c.at, l, s, c.log, c.table)
		}
	}
	fs.Settle(3)
	if l := content(t, fs.ImageAt(None, 7, 0), "/000001.log"); l != "ab" {
		t.Errorf("settled, and lost: %q", l)
	}
	put(t, log, "c")
	must(t, log.Sync()) // 6
	if l := content(t, fs.ImageAt(None, 7, 5), "/000001.log"); l != "ab" {
		t.Errorf("not settled, and there: %q", l)
	}
	fs.Settle(6)
	if l := content(t, fs.ImageAt(None, 7, 6), "/000001.log"); l != "abc" {
		t.Errorf("log after all: %q", l)
	}
}

// TestHistoryLog shows that what survives of a log does not depend on how its
// writes were cut, nor on what was written behind its newest sync.
func TestHistoryLog(t *testing.T) {
	build := func(cuts ...int) *FS {
		fs := New()
		fs.Keep()
		f := create(t, fs, "/000001.log")
		syncDir(t, fs, "/")
		put(t, f, "head")
		must(t, f.Sync())
		fs.Settle(fs.Syncs())
		b := make([]byte, 5000)
		for i := range b {
			b[i] = byte(i % 251)
		}
		from := 0
		for _, to := range append(cuts, len(b)) {
			put(t, f, string(b[from:to]))
			from = to
		}
		must(t, f.Sync())
		if len(cuts) > 0 {
			put(t, f, "written by chance")
		}
		return fs
	}
	a, b := build(), build(3, 700, 4096)
	sizes := map[int]bool{}
	for seed := range uint64(100) {
		for _, m := range []Mode{Prefix, Torn, Subset} {
			x, y := content(t, a.ImageAt(m, seed, 0), "/000001.log"), content(t, b.ImageAt(m, seed, 0), "/000001.log")
			if x != y {
				t.Fatalf("seed %d: %d and %d bytes survive", seed, len(x), len(y))
			}
			sizes[len(x)] = true
		}
	}
	if len(sizes) < 5 {
		t.Fatalf("only %v", sizes)
	}
}
