package engine

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
	"testing"

	"github.com/cockroachdb/pebble/v2"

	"github.com/flotillakv/flotilla/internal/sim/simfs"
	"github.com/flotillakv/flotilla/multiraft/raft"
)

// checkImage checks a store and shows that not a byte of the disk is changed by that.
func checkImage(fs *simfs.FS, o CheckOptions) (*CheckReport, error) {
	before := fs.Digest()
	o.FS = fs
	r, err := Check(context.Background(), "/data/n1", o)
	if fs.Digest() != before {
		return nil, fmt.Errorf("the disk is another one after the check")
	}
	return r, err
}

// sound fails if a store is not found to be without fault.
func sound(fs *simfs.FS, o CheckOptions) (*CheckReport, error) {
	r, err := checkImage(fs, o)
	if err == nil && len(r.Faults) > 0 {
		err = fmt.Errorf("%d faults; the first: %v", len(r.Faults), r.Faults[0])
	}
	return r, err
}

// TestCheckCrashImages: whatever a crash leaves behind has no fault, and the check
// changes nothing of it. The scripts are those of the crash tests.
func TestCheckCrashImages(t *testing.T) {
	images, entries, unapplied := 0, uint64(0), uint64(0)
	every, least := 24, 200
	if testing.Short() { // with the race detector
		every, least = 240, 20
	}
	for name, run := range map[string]struct {
		s    *script
		opts func(FS) Options
	}{
		"writes":            {i1Script(7, 60), crashOptions},
		"order":             {orderScript(7), crashOptions},
		"installs":          {ingestScript(7), crashOptions},
		"destroys":          {destroyScript(7), crashOptions},
		"journal":           {journalScript(7), journalOptions},
		"deferred":          {deferredRounds(7, 40), deferredOptions},
		"deferred installs": {deferredInstalls(7), deferredOptions},
		"deferred destroys": {deferredDestroys(7), deferredOptions},
	} {
		shots, err := runScript(run.s, simfs.Modes, every, run.opts)
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		for _, sh := range shots {
			r, err := sound(sh.img, CheckOptions{Digest: true})
			var oe *OpenError
			if errors.As(err, &oe) && oe.Reason == NotAStore && sh.acked == 0 {
				continue // before the store was made
			}
			if err != nil {
				t.Fatalf("%s: crash at %s: %v", name, sh.what, err)
			}
			images++
			entries += r.Entries
			unapplied += r.Unapplied
		}
	}
	t.Logf("%d images, %d entries in their logs, %d not applied in tables", images, entries, unapplied)
	if images < least || entries == 0 || unapplied == 0 {
		t.Errorf("too little was looked at: %d images, %d entries, %d not applied", images, entries, unapplied)
	}
}

// checkStore makes a store with two shards, entries in records and below keys of their
// own, tables and a write-ahead log that says something.
func checkStore(t testing.TB) *simfs.FS {
	fs := simfs.New()
	e, err := Open(crashOptions(fs))
	must(t, err)
	for s := raft.ShardID(1); s <= 2; s++ {
		createGroup(t, e, s)
	}
	at := raft.Index(0)
	round := func(n int) {
		for range n {
			at += 2
			b := e.NewBatch()
			for s := raft.ShardID(1); s <= 2; s++ {
				b.Append(s, at-2, entries(at-1, at, 3))
				b.SetHardState(s, raft.HardState{Term: 3, Vote: 1, Commit: at - 1})
				b.Set(1, fmt.Appendf(nil, "s%04d/%03d", s, at), fmt.Appendf(nil, "%04096d", at))
				b.SetGroup(s, []byte("sess"), []byte("x"))
				b.SetApplied(s, raft.AppliedState{Applied: at - 1, AppliedTerm: 3})
			}
			must(t, b.Commit(true))
			must(t, b.Wait())
			b.Close()
		}
	}
	round(20)
	must(t, e.Flush())
	must(t, e.Compact(context.Background()))
	round(10)
	must(t, e.settle())
	must(t, e.Close())
	return fs
}

// rewriteDB changes a store behind its back.
func rewriteDB(fs *simfs.FS, f func(b *pebble.Batch) error) error {
	db, err := pebble.Open("/data/n1/db", &pebble.Options{FS: fs, FormatMajorVersion: format, Logger: quiet{}})
	if err != nil {
		return err
	}
	b := db.NewBatch()
	err = errors.Join(f(b), b.Commit(pebble.Sync), db.Close())
	return errors.Join(err, (&Engine{fs: fs, dir: "/data/n1"}).forgetManifests())
}

// getOf reads a key of the store being rewritten.
func getOf(fs *simfs.FS, key []byte) (val []byte, err error) {
	db, err := pebble.Open("/data/n1/db", &pebble.Options{FS: fs, FormatMajorVersion: format, Logger: quiet{}, ReadOnly: true})
	if err != nil {
		return nil, err
	}
	v, c, err := db.Get(key)
	if err == nil {
		val = append([]byte{}, v...)
		err = c.Close()
	}
	return val, errors.Join(err, db.Close())
}

// dbFile returns the newest file of the database with a suffix or prefix that is not empty.
func dbFile(fs *simfs.FS, part string) (name string, size int64) {
	names, _ := fs.List("/data/n1/db")
	for _, n := range names {
		if info, err := fs.Stat("/data/n1/db/" + n); err == nil && (strings.HasSuffix(n, part) || strings.HasPrefix(n, part)) && info.Size() > 0 && n > name {
			name, size = n, info.Size()
		}
	}
	return name, size
}

// wrongs are things that can be wrong with a store, and what the report must say of
// them: kind, and words.
var wrongs = map[string]struct {
	damage func(fs *simfs.FS) error
	kind   FaultKind
	says   string
}{
	"a bit of a table": {func(fs *simfs.FS) error {
		name, size := dbFile(fs, ".sst")
		fs.Flip("/data/n1/db/"+name, size*4)
		return nil
	}, FaultTable, ".sst"},
	"a table that is gone": {func(fs *simfs.FS) error {
		name, _ := dbFile(fs, ".sst")
		return fs.Remove("/data/n1/db/" + name)
	}, FaultDatabase, "file does not exist"},
	"a bit of the write-ahead log": {func(fs *simfs.FS) error {
		name, size := dbFile(fs, ".log")
		fs.Flip("/data/n1/db/"+name, size*2)
		return nil
	}, FaultWAL, ".log"},
	"a write-ahead log cut short": {func(fs *simfs.FS) error {
		name, size := dbFile(fs, ".log")
		return cutFile(fs, "/data/n1/db/"+name, size/2)
	}, FaultAmnesia, "was durable"},
	"a bit of the manifest": {func(fs *simfs.FS) error {
		name, size := dbFile(fs, "MANIFEST-")
		fs.Flip("/data/n1/db/"+name, size*4)
		return nil
	}, FaultManifest, "is damaged"},
	"a bit of the identity file": {func(fs *simfs.FS) error {
		fs.Flip("/data/n1/IDENT", 8*40)
		return nil
	}, FaultIdentity, "copy 1 of 2 is damaged"},
	"a bit of the other copy": {func(fs *simfs.FS) error {
		fs.Flip("/data/n1/IDENT", 8*(identSlot+66))
		return nil
	}, FaultIdentity, "numbers of boots"},
	"both copies": {func(fs *simfs.FS) error {
		fs.Flip("/data/n1/IDENT", 8*40)
		fs.Flip("/data/n1/IDENT", 8*(identSlot+40))
		return nil
	}, FaultIdentity, "copy 2 of 2 is damaged"},
	"a bit of the watermark": {func(fs *simfs.FS) error {
		fs.Flip("/data/n1/WATERMARK", 8*(20))
		fs.Flip("/data/n1/WATERMARK", 8*(identSlot+20))
		return nil
	}, FaultWatermark, "is damaged"},
	"a bit of the checksums": {func(fs *simfs.FS) error {
		fs.Flip("/data/n1/CHECKSUM", 8*(identSlot+20))
		return nil
	}, FaultManifest, "CHECKSUM"},
	"a database that is gone": {func(fs *simfs.FS) error { return fs.RemoveAll("/data/n1/db") }, FaultDatabase, "missing"},
	"amnesiac": {func(fs *simfs.FS) error {
		rec, err := readIdentFile(fs, "/data/n1/IDENT")
		rec.State = stateAmnesiac
		return errors.Join(err, writeIdentFile(fs, "/data/n1/IDENT", &rec))
	}, FaultAmnesia, "forgotten"},
	"an entry whose checksum is wrong": {func(fs *simfs.FS) error {
		return rewriteEntry(fs, func(i raft.Index, v []byte) []byte {
			if i == 5 {
				v[len(v)-1] ^= 1
			}
			return v
		})
	}, FaultLog, "shard 1, index 5"},
	"an entry that is missing": {func(fs *simfs.FS) error {
		return rewriteEntry(fs, func(i raft.Index, v []byte) []byte {
			if i == 5 {
				return nil
			}
			return v
		})
	}, FaultLog, "shard 1, index 5: entries 5 to 5 are missing"},
	"an entry of an older term": {func(fs *simfs.FS) error {
		return rewriteEntry(fs, func(i raft.Index, v []byte) []byte {
			if i == 5 {
				return entry(5, 2).Value
			}
			return v
		})
	}, FaultLog, "shard 1, index 5: term 2 comes after term 3"},
	"a damaged log record": {func(fs *simfs.FS) error {
		return rewriteRecord(fs, func(v []byte) []byte { v[len(v)/2] ^= 1; return v })
	}, FaultLog, "record"},
	"a log record that is missing": {func(fs *simfs.FS) error {
		return rewriteRecord(fs, func([]byte) []byte { return nil })
	}, FaultLog, "are missing"},
	"a hard state": {func(fs *simfs.FS) error {
		return rewriteDB(fs, func(b *pebble.Batch) error { return b.Set(hardKey(nil, 2), []byte("junk"), nil) })
	}, FaultHard, "shard 2"},
	"an old hard state": {func(fs *simfs.FS) error {
		return rewriteDB(fs, func(b *pebble.Batch) error {
			return b.Set(hardKey(nil, 2), raft.HardState{Term: 2}.Encode(nil), nil)
		})
	}, FaultHard, "it is of term 2"},
	"a commit behind the log": {func(fs *simfs.FS) error {
		return rewriteDB(fs, func(b *pebble.Batch) error {
			return b.Set(hardKey(nil, 2), raft.HardState{Term: 3, Commit: 99}.Encode(nil), nil)
		})
	}, FaultHard, "99 is committed"},
	"applied behind the log": {func(fs *simfs.FS) error {
		return rewriteDB(fs, func(b *pebble.Batch) error {
			return b.Set(appliedKey(nil, 2), raft.AppliedState{Applied: 99, AppliedTerm: 3}.Encode(nil), nil)
		})
	}, FaultLog, "shard 2: the log ends at 60, but 99 is applied"},
	"applied with another term": {func(fs *simfs.FS) error {
		return rewriteDB(fs, func(b *pebble.Batch) error {
			return b.Set(appliedKey(nil, 2), raft.AppliedState{Applied: 59, AppliedTerm: 2}.Encode(nil), nil)
		})
	}, FaultApplied, "shard 2, index 59"},
	"no applied state": {func(fs *simfs.FS) error {
		return rewriteDB(fs, func(b *pebble.Batch) error { return b.Delete(appliedKey(nil, 2), nil) })
	}, FaultApplied, "shard 2: the applied state is missing"},
	"a descriptor": {func(fs *simfs.FS) error {
		return rewriteDB(fs, func(b *pebble.Batch) error { return b.Set(descKey(nil, 2), []byte("junk"), nil) })
	}, FaultDescriptor, "shard 2"},
	"no descriptor": {func(fs *simfs.FS) error {
		return rewriteDB(fs, func(b *pebble.Batch) error { return b.Delete(descKey(nil, 2), nil) })
	}, FaultDescriptor, "shard 2: the descriptor is missing"},
	"shards that overlap": {func(fs *simfs.FS) error {
		return rewriteDB(fs, func(b *pebble.Batch) error {
			d := testDesc(2)
			d.Start = testDesc(1).Start
			return b.Set(descKey(nil, 2), d.Encode(nil), nil)
		})
	}, FaultDescriptor, "are those of shard"},
	"a replica that was removed": {func(fs *simfs.FS) error {
		return rewriteDB(fs, func(b *pebble.Batch) error { return b.Set(tombstoneKey(nil, 2), encodeTombstone(nil, 2), nil) })
	}, FaultTombstone, "shard 2: replica 1 lives here"},
	"keys of nobody": {func(fs *simfs.FS) error {
		return rewriteDB(fs, func(b *pebble.Batch) error {
			return errors.Join(b.Set(DataKey(1, []byte("zz")), nil, nil), b.Set(DataKey(1, []byte("zy")), nil, nil))
		})
	}, FaultData, "2 keys are outside"},
	"an unknown key": {func(fs *simfs.FS) error {
		return rewriteDB(fs, func(b *pebble.Batch) error { return b.Set([]byte{0x07, 1}, nil, nil) })
	}, FaultKey, "0701"},
	"a support record": {func(fs *simfs.FS) error {
		return rewriteDB(fs, func(b *pebble.Batch) error { return b.Set(supporterKey(nil, 3), []byte{9}, nil) })
	}, FaultRecord, "support record"},
	"another node's database": {func(fs *simfs.FS) error {
		return rewriteDB(fs, func(b *pebble.Batch) error {
			return b.Set(identKey(nil), Ident{Node: 9, Layout: LayoutVersion}.encode(nil), nil)
		})
	}, FaultIdentity, "the database says"},
	"a session": {func(fs *simfs.FS) error {
		return rewriteDB(fs, func(b *pebble.Batch) error { return b.Set(append(StatePrefix(2), "sess"...), []byte("bad"), nil) })
	}, FaultSession, "shard 2: a bad record"},
	"a value": {func(fs *simfs.FS) error {
		return rewriteDB(fs, func(b *pebble.Batch) error { return b.Set(DataKey(1, []byte("s0002/002")), []byte("bad"), nil) })
	}, FaultData, `shard 2: key "s0002/002": a bad record`},
}

// rewriteEntry rewrites the log of shard 1 below keys of its own.
func rewriteEntry(fs *simfs.FS, f func(i raft.Index, v []byte) []byte) error {
	e := entries(1, 60, 3)
	return rewriteDB(fs, func(b *pebble.Batch) error {
		err := errors.Join(b.DeleteRange([]byte{prefixRecord}, []byte{prefixRecord + 1}, nil), b.DeleteRange([]byte{prefixLog}, []byte{prefixLog + 1}, nil))
		for s := raft.ShardID(1); s <= 2; s++ {
			for i := range e {
				v := append([]byte{}, e[i].Value...)
				if s == 1 {
					v = f(e[i].Index, v)
				}
				if v != nil {
					err = errors.Join(err, b.Set(appendLogKey(nil, s, e[i].Index), v, nil))
				}
			}
		}
		return err
	})
}

// rewriteRecord rewrites a log record that is not the last one.
func rewriteRecord(fs *simfs.FS, f func(v []byte) []byte) error {
	key := Key{Kind: KindRecord, Epoch: 1, Seq: 25}.Raw()
	v, err := getOf(fs, key)
	if err != nil {
		return err
	}
	return rewriteDB(fs, func(b *pebble.Batch) error {
		if v = f(v); v == nil {
			return b.Delete(key, nil)
		}
		return b.Set(key, v, nil)
	})
}

// cutFile leaves the first bytes of a file.
func cutFile(fs *simfs.FS, name string, size int64) error {
	f, err := fs.Open(name)
	if err != nil {
		return err
	}
	b, err := io.ReadAll(io.LimitReader(f, size))
	if err = errors.Join(err, f.Close()); err != nil {
		return err
	}
	out, err := fs.Create(name, "")
	if err != nil {
		return err
	}
	_, err = out.Write(b)
	return errors.Join(err, out.Sync(), out.Close())
}

// checkWrong breaks a store in one way and looks whether the report says so.
func checkWrong(healthy *simfs.FS, name string) error {
	w := wrongs[name]
	fs := healthy.Image(simfs.All, 1)
	if err := w.damage(fs); err != nil {
		return err
	}
	r, err := checkImage(fs, checkHooks)
	if err != nil {
		return err
	}
	for _, f := range r.Faults {
		if f.Kind == w.kind && strings.Contains(f.String(), w.says) && f.Next != "" {
			return nil
		}
	}
	return fmt.Errorf("nothing says %q of kind %q, but %v", w.says, w.kind, r.Faults)
}

var checkHooks = CheckOptions{
	Group: func(_ raft.ShardID, _, val []byte) error { return badRecord(val) },
	Value: func(_ uint32, _, val []byte) error { return badRecord(val) },
}

func badRecord(val []byte) error {
	if string(val) == "bad" {
		return errors.New("a bad record")
	}
	return nil
}

// TestCheckFaults: a store is broken in many ways, one at a time, and each is reported
// by its name; unbroken, nothing is.
func TestCheckFaults(t *testing.T) {
	healthy := checkStore(t)
	r, err := sound(healthy.Image(simfs.All, 1), checkHooks)
	must(t, err)
	if r.Shards != 2 || r.Entries != 120 || r.Unapplied != 2 || r.Keys != 60 || r.Records != 2 || r.Tables == 0 || r.Bytes < 100<<10 || r.Node != 1 {
		t.Errorf("the report of a sound store: %+v", r)
	}
	for name := range wrongs {
		if err := checkWrong(healthy, name); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// TestCheckAll: several faults at once are all in one report.
func TestCheckAll(t *testing.T) {
	fs := checkStore(t)
	must(t, wrongs["keys of nobody"].damage(fs))
	must(t, wrongs["a replica that was removed"].damage(fs))
	must(t, wrongs["a hard state"].damage(fs))
	must(t, wrongs["a bit of the identity file"].damage(fs))
	r, err := checkImage(fs, CheckOptions{})
	must(t, err)
	kinds := map[FaultKind]bool{}
	for _, f := range r.Faults {
		kinds[f.Kind] = true
	}
	for _, k := range []FaultKind{FaultData, FaultTombstone, FaultHard, FaultIdentity} {
		if !kinds[k] {
			t.Errorf("nothing is said of the %s: %v", k, r.Faults)
		}
	}
}

// TestCheckRefuses: what is no store, is in use, or is of a newer release.
func TestCheckRefuses(t *testing.T) {
	want := func(fs *simfs.FS, dir string, reason Reason) {
		t.Helper()
		_, err := Check(context.Background(), dir, CheckOptions{FS: fs})
		var oe *OpenError
		if !errors.As(err, &oe) || oe.Reason != reason || oe.Hint == "" {
			t.Errorf("%v, want %v", err, reason)
		}
	}
	fs := checkStore(t)
	want(fs, "", NotAStore)
	want(fs, "/data/n2", NotAStore)
	want(fs, "/data/n1/IDENT", NotAStore)
	must(t, fs.MkdirAll("/data/n3", 0o700))
	want(fs, "/data/n3", NotAStore)
	newer := fs.Image(simfs.All, 1)
	rec, err := readIdentFile(newer, "/data/n1/IDENT")
	must(t, err)
	rec.Layout = LayoutVersion + 1
	must(t, writeIdentFile(newer, "/data/n1/IDENT", &rec))
	want(newer, "/data/n1", NewerLayout)
	e, err := Open(crashOptions(fs))
	must(t, err)
	want(fs, "/data/n1", Locked)
	must(t, e.Close())
	if _, err := sound(fs, CheckOptions{}); err != nil {
		t.Error(err)
	}
}

// TestCheckDigest: stores that hold the same have the same digests, however their
// tables lie, and another value, key or record gives another one.
func TestCheckDigest(t *testing.T) {
	digests := func(fs *simfs.FS) string {
		t.Helper()
		r, err := checkImage(fs, CheckOptions{Digest: true})
		must(t, err)
		if len(r.Digests) != 2 || r.Digests[0].Applied != 59 || r.Digests[0].Last != 60 || r.Digests[0].Keys == 0 {
			t.Fatalf("digests %+v", r.Digests)
		}
		return r.Digests[0].Digest + " " + r.Digests[1].Digest
	}
	fs := checkStore(t)
	want := digests(fs)
	other := fs.Image(simfs.All, 1)
	e, err := Open(crashOptions(other))
	must(t, err)
	must(t, e.Compact(context.Background()))
	must(t, e.Close())
	if got := digests(other); got != want {
		t.Errorf("after a compaction: %s, before: %s", got, want)
	}
	seen := map[string]string{want: "as it was"}
	for name, f := range map[string]func(b *pebble.Batch) error{
		"a value":   func(b *pebble.Batch) error { return b.Set(DataKey(1, []byte("s0002/002")), []byte("other"), nil) },
		"a key":     func(b *pebble.Batch) error { return b.Delete(DataKey(1, []byte("s0002/002")), nil) },
		"a session": func(b *pebble.Batch) error { return b.Set(append(StatePrefix(2), "sess"...), []byte("y"), nil) },
	} {
		img := fs.Image(simfs.All, 1)
		must(t, rewriteDB(img, f))
		got := digests(img)
		if was, twice := seen[got]; twice {
			t.Errorf("%s: the digest is that of %s", name, was)
		}
		seen[got] = name
	}
}

// TestCheckFlips: a flipped bit anywhere in a table, in the list of tables that is in
// use, or in the write-ahead log but for its last record is found, and nothing is
// changed by the finding.
func TestCheckFlips(t *testing.T) {
	fs := checkStore(t)
	desc, err := pebble.Peek("/data/n1/db", fs)
	must(t, err)
	wal, _ := dbFile(fs, ".log")
	names, err := fs.List("/data/n1/db")
	must(t, err)
	tried := 0
	for _, n := range names {
		info, err := fs.Stat("/data/n1/db/" + n)
		must(t, err)
		size := info.Size()
		switch {
		case strings.HasSuffix(n, ".sst"), fs.PathBase(desc.ManifestFilename) == n:
		case n == wal:
			size -= 64 // the trailer, and the record before it
		default:
			continue
		}
		for k := range int64(20) {
			at := size * (2*k + 1) / 40
			img := fs.Image(simfs.All, 1)
			if !img.Flip("/data/n1/db/"+n, at*8+k%8) {
				t.Fatalf("%s has no byte %d", n, at)
			}
			r, err := checkImage(img, CheckOptions{})
			if err != nil {
				t.Fatalf("%s, byte %d: %v", n, at, err)
			}
			if tried++; len(r.Faults) == 0 {
				t.Errorf("%s: a flipped bit in byte %d of %d is not found", n, at, size)
			}
		}
	}
	if tried < 80 {
		t.Errorf("only %d flips", tried)
	}
}
