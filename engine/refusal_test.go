package engine

import (
	"bufio"
	"errors"
	"fmt"
	"hash/fnv"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/cockroachdb/pebble/v2/vfs"

	"github.com/flotillakv/flotilla/internal/sim/simfs"
	"github.com/flotillakv/flotilla/multiraft/raft"
)

// crowded is a disk with little free space.
type crowded struct {
	FS
	free uint64
}

func (c crowded) GetDiskUsage(string) (vfs.DiskUsage, error) {
	return vfs.DiskUsage{AvailBytes: c.free, TotalBytes: 1 << 40}, nil
}

// says opens and expects a refusal of that kind that reads so.
func says(t *testing.T, o Options, want Reason, text string) {
	t.Helper()
	e, err := Open(o)
	if err == nil {
		_ = e.Close()
		t.Fatalf("opened; want: %s", text)
	}
	var oe *OpenError
	if !errors.As(err, &oe) || oe.Reason != want || err.Error() != text {
		t.Errorf("got  %v\nwant %s", err, text)
	}
}

const replaceN3 = "(it cannot be repaired, and no older copy may take its place; start the node with an empty directory and --rejoin, then take n3 out: flotilla node remove n3)"

// TestRefusalTexts: the sentence with which each store is refused that cannot be
// opened: which one, why, with which values, and what to do.
func TestRefusalTexts(t *testing.T) {
	fs := simfs.New()
	o := crashOptions(fs)
	o.Cluster, o.Node = [16]byte{7}, 3
	e, err := Open(o)
	must(t, err)
	says(t, o, Locked, `engine: cannot open store "/data/n1": locked: lock /data/n1/LOCK: resource temporarily unavailable (stop the other process that uses this directory, or choose another one)`)
	must(t, e.Close())
	for name, c := range map[string]struct {
		change func(fs *simfs.FS, o *Options)
		want   Reason
		text   string
	}{
		"another cluster": {func(_ *simfs.FS, o *Options) { o.Cluster = [16]byte{8} }, OtherCluster,
			`engine: cannot open store "/data/n1": other cluster: it belongs to cluster 07000000000000000000000000000000, wanted 08000000000000000000000000000000 (choose the directory of this cluster, or an empty one)`},
		"another node": {func(_ *simfs.FS, o *Options) { o.Node = 2 }, OtherNode,
			`engine: cannot open store "/data/n1": other node: it belongs to node 3, wanted 2 (choose the directory of this node, or an empty one)`},
		"a newer layout": {func(fs *simfs.FS, o *Options) {
			rec, err := readIdentFile(fs, "/data/n1/IDENT")
			must(t, err)
			rec.Layout = LayoutVersion + 1
			must(t, writeIdentFile(fs, "/data/n1/IDENT", &rec))
		}, NewerLayout, fmt.Sprintf(`engine: cannot open store "/data/n1": newer layout: layout %d, this release reads up to %d (start the release that wrote it, or a newer one)`, LayoutVersion+1, LayoutVersion)},
		"inside a store": {func(_ *simfs.FS, o *Options) { o.Dir = "/data/n1/sub/n2" }, InsideStore,
			`engine: cannot open store "/data/n1/sub/n2": inside another store: "/data/n1" is the directory of another store (choose a directory outside of it)`},
		"inside a store's database": {func(_ *simfs.FS, o *Options) { o.Dir = "/data/n1/db" }, NotAStore,
			`engine: cannot open store "/data/n1/db": not a store: the directory holds "`},
		"around a store": {func(_ *simfs.FS, o *Options) { o.Dir = "/data" }, NotAStore,
			`engine: cannot open store "/data": not a store: the directory holds "n1", which is no part of a store (choose an empty directory)`},
		"a full disk": {func(_ *simfs.FS, o *Options) { o.FS = crowded{o.FS, 12 << 20} }, NoSpace,
			`engine: cannot open store "/data/n1": no space: 12 MiB are free on its disk, 64 MiB are needed (free at least 64 MiB on its disk, or choose another one)`},
		"a full disk for a new store": {func(_ *simfs.FS, o *Options) { o.Dir, o.FS = "/data/x/y/z", crowded{o.FS, 0} }, NoSpace,
			`engine: cannot open store "/data/x/y/z": no space: 0 MiB are free on its disk, 64 MiB are needed (free at least 64 MiB on its disk, or choose another one)`},
		"a read-only disk": {func(fs *simfs.FS, _ *Options) {
			fs.Inject(func(op simfs.Op) error {
				if op.Kind != simfs.OpOpen && op.Kind != simfs.OpRead {
					return syscall.EROFS
				}
				return nil
			})
		}, NotWritable, `engine: cannot open store "/data/n1": not writable: `},
		"no permission": {func(fs *simfs.FS, _ *Options) {
			fs.Inject(func(simfs.Op) error { return syscall.EACCES })
		}, NotWritable, `engine: cannot open store "/data/n1": not writable: `},
		"database gone": {func(fs *simfs.FS, _ *Options) { must(t, fs.RemoveAll("/data/n1/db")) }, Corrupt,
			`engine: cannot open store "/data/n1": corrupt: the database directory is missing ` + replaceN3},
		"marked": {func(fs *simfs.FS, _ *Options) {
			rec, err := readIdentFile(fs, "/data/n1/IDENT")
			must(t, err)
			rec.State = stateAmnesiac
			must(t, writeIdentFile(fs, "/data/n1/IDENT", &rec))
		}, Amnesia, `engine: cannot open store "/data/n1": amnesia: it was found to have forgotten what it had promised to other nodes ` + replaceN3},
	} {
		t.Run(name, func(t *testing.T) {
			img := fs.Image(simfs.All, 1)
			o := o
			o.FS = img
			c.change(img, &o)
			before := img.Digest()
			_, err := Open(o)
			var oe *OpenError
			if !errors.As(err, &oe) || oe.Reason != c.want {
				t.Fatalf("%v; want %v", err, c.want)
			}
			if strings.HasSuffix(c.text, ")") && err.Error() != c.text || !strings.HasPrefix(err.Error(), c.text) || !strings.HasSuffix(err.Error(), ")") {
				t.Errorf("got  %v\nwant %s", err, c.text)
			}
			if img.Digest() != before {
				t.Error("the refusal changed the disk")
			}
		})
	}
	img := fs.Image(simfs.All, 1)
	o.FS = crowded{img, MinFreeBytes}
	e, err = Open(o)
	must(t, err)
	must(t, e.Close())
}

// TestLockNamesTheProcess: who uses a directory is told who holds it, another
// process or this one, and the question does not take the lock away.
func TestLockNamesTheProcess(t *testing.T) {
	if dir := os.Getenv("ENGINE_TEST_HOLD"); dir != "" {
		e, err := Open(Options{Dir: dir, Create: true, CacheBytes: 1 << 20, MemTableBytes: 1 << 20})
		fmt.Println(err)
		if err == nil {
			_, _ = io.ReadAll(os.Stdin) // until the test is through
			_ = e.Close()
		}
		return
	}
	dir := filepath.Join(t.TempDir(), "store")
	cmd := exec.Command(os.Args[0], "-test.run", "^TestLockNamesTheProcess$")
	cmd.Env = append(os.Environ(), "ENGINE_TEST_HOLD="+dir)
	in, err := cmd.StdinPipe()
	must(t, err)
	out, err := cmd.StdoutPipe()
	must(t, err)
	must(t, cmd.Start())
	line, err := bufio.NewReader(out).ReadString('\n')
	if err != nil || line != "<nil>\n" {
		t.Fatalf("the other process: %q, %v", line, err)
	}
	text := func(pid int) string {
		return fmt.Sprintf("engine: cannot open store %q: locked: process %d uses it (stop that process, or choose another directory)", dir, pid)
	}
	o := Options{Dir: dir, CacheBytes: 1 << 20, MemTableBytes: 1 << 20}
	for range 3 {
		says(t, o, Locked, text(cmd.Process.Pid))
	}
	must(t, in.Close())
	must(t, cmd.Wait())
	e, err := Open(o)
	must(t, err)
	for range 2 {
		says(t, o, Locked, text(os.Getpid()))
	}
	must(t, e.Close())
}

// TestModes: whatever the umask, nothing in the directory is for other users.
func TestModes(t *testing.T) { must(t, othersMayRead(t)) }

// othersMayRead lives three lives of a store under the widest umask and returns
// what is for other users then.
func othersMayRead(t *testing.T) error {
	old := syscall.Umask(0)
	defer syscall.Umask(old)
	dir := filepath.Join(t.TempDir(), "store")
	var faults []error
	for range 3 {
		e, err := Open(Options{Dir: dir, Create: true, CacheBytes: 1 << 20, MemTableBytes: 1 << 20, ManifestBytes: 1, markAlways: true})
		must(t, err)
		createGroup(t, e, 1)
		for i := range 40 {
			b := e.NewBatch()
			b.Set(1, fmt.Append(nil, i), make([]byte, 64<<10))
			must(t, errors.Join(b.Commit(true), b.Wait()))
			b.Close()
		}
		must(t, errors.Join(e.Flush(), e.SyncNow()))
		w, err := e.NewSSTWriter(filepath.Join(e.StagingDir(), "x.sst"))
		must(t, err)
		must(t, w.Set(DataKey(1, []byte("k")), []byte("v")))
		_, err = w.Finish()
		must(t, err)
		faults = append(faults, checkModes(t, dir))
		must(t, e.Close())
	}
	return errors.Join(append(faults, checkModes(t, dir))...)
}

func checkModes(t *testing.T, dir string) (fault error) {
	t.Helper()
	kinds := map[string]bool{}
	must(t, filepath.WalkDir(dir, func(path string, d os.DirEntry, err error) error {
		if err != nil {
			return err
		}
		info, err := d.Info()
		if errors.Is(err, os.ErrNotExist) {
			return nil // Pebble has removed it
		}
		if err != nil {
			return err
		}
		want := os.FileMode(0o600)
		if d.IsDir() {
			want = 0o700
		}
		if got := info.Mode().Perm(); got != want {
			fault = fmt.Errorf("%s has mode %v, want %v", path, got, want)
		}
		base := filepath.Base(path)
		kind, _, _ := strings.Cut(base, "-")
		if ext := filepath.Ext(base); ext != "" && !strings.HasPrefix(base, "marker") {
			kind = ext
		}
		kinds[kind] = true
		return nil
	}))
	for _, k := range []string{"IDENT", "WATERMARK", "LOCK", "MANIFEST", ".log", ".sst", "OPTIONS"} {
		if !kinds[k] {
			t.Errorf("there is no file %q among %v", k, kinds)
		}
	}
	return fault
}

// overlapBoots returns an error if a store with two replicas of the same keys boots.
func overlapBoots(t *testing.T) error {
	e := openTest(t, NewMemFS())
	createGroup(t, e, 1)
	createGroup(t, e, 2)
	b := e.NewBatch()
	defer b.Close()
	d := testDesc(2)
	d.Start = []byte("s0001/z")
	b.SetDescriptor(&d)
	must(t, b.Commit(false))
	if _, err := e.Boot(); err == nil {
		return errors.New("two replicas of the same keys are booted")
	}
	return nil
}

// TestOverlap: a store with two replicas of the same keys is not booted.
func TestOverlap(t *testing.T) {
	if err := overlapBoots(t); err != nil {
		t.Error(err)
	}
}

// TestDamagedRecords: each kind of record, damaged as no checksum of a block
// would show, or contradicting its neighbours, keeps the store from being
// booted, with a sentence that names the directory, the shard, the place in its
// log and the next command.
func TestDamagedRecords(t *testing.T) {
	flip := func(v []byte, bit int) []byte { v[bit/8] ^= 1 << (bit % 8); return v }
	for name, c := range map[string]struct {
		damage func(b *Batch)
		shard  raft.ShardID
		index  raft.Index
		text   string // behind the shard and the index
	}{
		"entry, last bit":        {func(b *Batch) { b.set(appendLogKey(nil, 1, 4), flip(entry(4, 1).Value, 8*len(entry(4, 1).Value)-1)) }, 1, 4, ""},
		"entry, first bit":       {func(b *Batch) { b.set(appendLogKey(nil, 1, 4), flip(entry(4, 1).Value, 0)) }, 1, 4, ""},
		"entry, applied":         {func(b *Batch) { b.set(appendLogKey(nil, 1, 2), nil) }, 1, 2, ""},
		"entry of elsewhere":     {func(b *Batch) { b.set(appendLogKey(nil, 1, 4), entry(5, 1).Value) }, 1, 4, ""},
		"gap in the log":         {func(b *Batch) { b.delete(appendLogKey(nil, 1, 2)) }, 1, 3, "entry 3 follows index 1 (applied 3, truncated 0)"},
		"log begins late":        {func(b *Batch) { b.delete(appendLogKey(nil, 1, 1)) }, 1, 2, "entry 2 follows index 0 (applied 3, truncated 0)"},
		"applied past the log":   {func(b *Batch) { b.delete(appendLogKey(nil, 1, 4)); b.delete(appendLogKey(nil, 1, 3)) }, 1, 0, "log ends at 2, applied through 3"},
		"committed past the log": {func(b *Batch) { b.SetHardState(1, raft.HardState{Term: 1, Commit: 5}) }, 1, 0, "log ends at 4, committed through 5"},
		"term goes back":         {func(b *Batch) { b.set(appendLogKey(nil, 1, 3), entry(3, 2).Value) }, 1, 4, "term 1 after term 2"},
		"hard state":             {func(b *Batch) { b.set(hardKey(nil, 1), []byte("x")) }, 1, 0, "hard state: "},
		"hard state of a newer version": {func(b *Batch) {
			v := raft.HardState{Term: 1}.Encode(nil)
			v[0]++
			b.set(hardKey(nil, 1), v)
		}, 1, 0, "hard state: "},
		"applied state": {func(b *Batch) { b.set(appliedKey(nil, 1), []byte("x")) }, 1, 0, "applied state: "},
		"applied state of a newer version": {func(b *Batch) {
			v := raft.AppliedState{Applied: 3, AppliedTerm: 1}.Encode(nil)
			v[0]++
			b.set(appliedKey(nil, 1), v)
		}, 1, 0, "applied state: "},
		"truncated past applied": {func(b *Batch) { b.SetApplied(1, raft.AppliedState{Applied: 2, TruncIndex: 3}) }, 1, 0, "applied state: raft: applied state: log cut above the applied index"},
		"descriptor":             {func(b *Batch) { b.set(descKey(nil, 1), []byte("x")) }, 1, 0, "descriptor: "},
		"descriptor of a newer version": {func(b *Batch) {
			d := testDesc(1)
			v := d.Encode(nil)
			v[0]++
			b.set(descKey(nil, 1), v)
		}, 1, 0, "descriptor: "},
		"descriptor of another": {func(b *Batch) { d := testDesc(2); b.set(descKey(nil, 1), d.Encode(nil)) }, 1, 0, "descriptor of shard 2"},
		"overlap": {func(b *Batch) { d := testDesc(2); d.Start = []byte("s0001/z"); b.SetDescriptor(&d) }, 2, 0,
			`descriptor: its keys from "s0001/z" on are those of shard 1 too`},
		"overlap without an end": {func(b *Batch) { d := testDesc(1); d.End = nil; b.SetDescriptor(&d) }, 2, 0,
			`descriptor: its keys from "s0002/" on are those of shard 1 too`},
		"destroy intent": {func(b *Batch) { b.set(intentKey(nil, 9), []byte("x")) }, 0, 0, ""},
	} {
		t.Run(name, func(t *testing.T) {
			fs := NewMemFS()
			o := testOptions(t, fs)
			o.Node = 3
			e, err := Open(o)
			must(t, err)
			defer e.Close()
			createGroup(t, e, 1)
			createGroup(t, e, 2)
			b := e.NewBatch()
			for _, en := range entries(1, 4, 1) {
				b.set(appendLogKey(nil, 1, en.Index), en.Value)
			}
			b.SetApplied(1, raft.AppliedState{Applied: 3, AppliedTerm: 1})
			c.damage(b)
			must(t, b.Commit(false))
			b.Close()
			_, err = e.Boot()
			var oe *OpenError
			if !errors.As(err, &oe) || oe.Reason != Corrupt {
				t.Fatalf("%v", err)
			}
			where := fmt.Sprintf("engine: shard %d: ", c.shard)
			if c.index != 0 {
				where = fmt.Sprintf("engine: shard %d, log index %d: ", c.shard, c.index)
			}
			var ge *GroupError
			switch {
			case c.shard == 0:
				where = ""
			case !errors.As(err, &ge) || ge.Shard != c.shard || ge.Index != c.index || !errors.Is(err, raft.ErrCorrupt):
				t.Errorf("%v: %+v", err, ge)
			}
			if want := `engine: cannot open store "/n1": corrupt: ` + where + c.text; !strings.HasPrefix(err.Error(), want) || !strings.HasSuffix(err.Error(), replaceN3) {
				t.Errorf("got  %v\nwant %s ... %s", err, want, replaceN3)
			}
		})
	}
}

// TestFlippedFiles: see flippedFiles.
func TestFlippedFiles(t *testing.T) { must(t, flippedFiles(t)) }

// flippedFiles flips one bit of one file of a closed store, at many places of
// every file. The store is refused, or stops at the damage, with a reason, or
// holds what it held. It returns an error if a store goes on with anything else.
func flippedFiles(t *testing.T) error {
	fs := simfs.New()
	o := testOptions(t, fs)
	o.Dir, o.Node = "/data/n1", 3
	content := func(e *Engine) (string, error) {
		h := fnv.New64a()
		err := e.EachKey(func(k, v []byte) error {
			if k[0] != prefixStore {
				fmt.Fprintf(h, "%x=%x\n", k, v)
			}
			return nil
		})
		return fmt.Sprintf("%x", h.Sum64()), err
	}
	var want string
	for round := range 2 { // the second finds the first one's log and makes tables of it
		e, err := Open(o)
		must(t, err)
		for s := raft.ShardID(1); s <= 3; s++ {
			if round == 0 {
				createGroup(t, e, s)
			}
			b := e.NewBatch()
			b.Append(s, 0, entries(raft.Index(1+10*round), raft.Index(10+10*round), 1))
			for i := range 10 {
				b.Set(1, fmt.Appendf(nil, "s%04d/%d/%d", s, round, i), make([]byte, 500))
			}
			must(t, errors.Join(b.Commit(true), b.Wait()))
			b.Close()
		}
		want, err = content(e)
		must(t, err)
		must(t, e.Close())
	}
	var fault error
	counts := map[string]int{}
	refused := map[string]bool{}
	for _, dir := range []string{"/data/n1", "/data/n1/db"} {
		names, err := fs.List(dir)
		must(t, err)
		for _, name := range names {
			file := dir + "/" + name
			info, err := fs.Stat(file)
			if must(t, err); info.IsDir() || info.Size() == 0 {
				continue
			}
			places := int64(4)
			if strings.HasPrefix(name, "MANIFEST-") {
				places = 8
			}
			for k := range places {
				bit := (info.Size()*8 - 1) * k / (places - 1)
				img := fs.Image(simfs.All, 1)
				img.Flip(file, bit)
				o := o
				o.FS = img
				stopped := make(chan error, 1)
				o.OnFatal = func(err error) { stopped <- err }
				e, err := Open(o)
				if err != nil {
					var oe *OpenError
					if !errors.As(err, &oe) || oe.Reason == Locked || oe.Hint == "" || oe.Err == nil {
						fault = errors.Join(fault, fmt.Errorf("%s, bit %d: %w", file, bit, err))
					}
					counts["refused"]++
					refused[strings.TrimRight(name, "0123456789")] = true
					continue
				}
				got, err := content(e)
				_ = e.Close()
				if errors.Is(err, ErrFailed) { // who found it may be about to say so
					stopped <- <-stopped
				}
				switch {
				case len(stopped) > 0:
					counts["stopped"]++
				case err != nil:
					fault = errors.Join(fault, fmt.Errorf("%s, bit %d: it goes on after %w", file, bit, err))
				case got != want:
					fault = errors.Join(fault, fmt.Errorf("%s, bit %d: the store has other content", file, bit))
				default:
					counts["of no account"]++
				}
			}
		}
	}
	t.Log(counts, refused)
	if !refused["MANIFEST-"] {
		fault = errors.Join(fault, errors.New("no flip in the MANIFEST was noticed"))
	}
	return fault
}

// TestChecksumOfOldNumbers: the records of MANIFESTs of a creation that was cut
// short say nothing about those of the next one, which have the same numbers.
func TestChecksumOfOldNumbers(t *testing.T) {
	fs := simfs.New()
	o := crashOptions(fs)
	e, err := Open(o)
	must(t, err)
	must(t, e.Close())
	sums, err := readSums(fs, "/data/n1/CHECKSUM")
	if must(t, err); len(sums) == 0 {
		t.Fatal("nothing was noted")
	}
	for _, s := range sums {
		s.CRC, s.Seq = s.CRC+1, s.Seq+100
		f, err := fs.OpenReadWrite("/data/n1/CHECKSUM", "")
		must(t, err)
		_, err = f.WriteAt(s.encode(nil), int64(s.Seq%sumSlots)*identSlot)
		must(t, errors.Join(err, f.Close()))
	}
	_, err = Open(o)
	if err == nil || !strings.Contains(err.Error(), "MANIFEST-") || !strings.Contains(err.Error(), "is damaged: its first ") {
		t.Fatalf("a wrong checksum: %v", err)
	}
	rec, err := readIdentFile(fs, "/data/n1/IDENT")
	must(t, err)
	rec.State = stateCreating
	must(t, writeIdentFile(fs, "/data/n1/IDENT", &rec))
	must(t, fs.Remove("/data/n1/WATERMARK"))
	e, err = Open(o)
	must(t, err)
	must(t, e.Close())
}
