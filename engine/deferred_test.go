package engine

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"

	"github.com/cockroachdb/pebble/v2"

	"github.com/flotillakv/flotilla/internal/sim/simfs"
	"github.com/flotillakv/flotilla/multiraft/raft"
)

// kvModel is what a store must hold: user keys of one keyspace.
type kvModel map[string]string

func (m kvModel) dump(start, end string) string {
	var keys []string
	for k := range m {
		if k >= start && (end == "" || k < end) {
			keys = append(keys, k)
		}
	}
	slices.Sort(keys)
	var b strings.Builder
	for _, k := range keys {
		fmt.Fprintf(&b, "%s=%s ", k, m[k])
	}
	return b.String()
}

func (m kvModel) clone() kvModel {
	c := kvModel{}
	for k, v := range m {
		c[k] = v
	}
	return c
}

func dumpIter(t *testing.T, it *Iter, backward bool) string {
	t.Helper()
	var out []string
	if backward {
		for ok := it.Last(); ok; ok = it.Prev() {
			out = append(out, fmt.Sprintf("%s=%s ", it.Key(), it.Value()))
		}
		slices.Reverse(out)
	} else {
		for ok := it.First(); ok; ok = it.Next() {
			out = append(out, fmt.Sprintf("%s=%s ", it.Key(), it.Value()))
		}
	}
	if err := it.Err(); err != nil {
		t.Fatal(err)
	}
	return strings.Join(out, "")
}

func deferredEngine(t *testing.T, fs FS, change func(*Options)) *Engine {
	t.Helper()
	o := Options{Dir: "/n", FS: fs, Create: true, Node: 1, CacheBytes: 1 << 20, MemTableBytes: 1 << 20, DeferBytes: 1 << 20, DeferLogBytes: 1 << 20,
		OnFatal: func(err error) { t.Error(err) }}
	if change != nil {
		change(&o)
	}
	e, err := Open(o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := e.Close(); err != nil {
			t.Error(err)
		}
	})
	return e
}

// TestLayout1 opens a store of layout 1, in which a log's cut stands in the applied
// state alone, and all entries (as in layout 2) have keys of their own.
func TestLayout1(t *testing.T) {
	fs := simfs.New()
	e, err := Open(crashOptions(fs)) // applies at once, as releases of layout 1 did
	must(t, err)
	s := newScript(1)
	s.create(1)
	for range 12 {
		s.round()
	}
	for _, st := range s.steps {
		must(t, st.do(e))
	}
	if s.m.groups[1].as.TruncIndex == 0 {
		t.Fatal("nothing was cut")
	}
	e.opts.JournalBytes = 0
	for e.journal.bytes.Load() > 0 {
		must(t, e.settle())
	}
	if none, err := e.hasKeys(pebble.KeyRange{Start: []byte{prefixRecord}, End: []byte{prefixRecord + 1}}); err != nil || none {
		t.Fatalf("records are left: %v", err)
	}
	must(t, e.Close())
	path := fs.PathJoin(crashOptions(fs).Dir, identName)
	rec, err := readIdentFile(fs, path)
	must(t, err)
	if rec.Layout != LayoutVersion {
		t.Fatalf("made with layout %d", rec.Layout)
	}
	rec.Layout = 1
	must(t, writeIdentFile(fs, path, &rec))

	e, err = Open(deferredOptions(fs))
	must(t, err)
	defer e.Close()
	if rec, err = readIdentFile(fs, path); err != nil || rec.Layout != LayoutVersion {
		t.Fatalf("opened as layout %d: %v", rec.Layout, err)
	}
	groups, err := e.Boot()
	must(t, err)
	got, err := printStore(e, groups)
	must(t, err)
	if want := s.prints[len(s.prints)-1]; got != want {
		t.Fatalf("holds:\n%s\nwant:\n%s", got, want)
	}
}

// What is read from memory and tables together is what was written, whichever of
// it was flushed; iterators and views see their moment.
func TestDeferredModel(t *testing.T) {
	for seed := range uint64(12) {
		t.Run(fmt.Sprint(seed), func(t *testing.T) { deferredModel(t, seed) })
	}
}

func deferredModel(t *testing.T, seed uint64) {
	rng := rand.New(rand.NewPCG(seed, 7))
	fs := NewMemFS()
	change := func(o *Options) {
		o.DeferBytes = int64(4<<10 + rng.IntN(60<<10))
		o.FlushInline = rng.IntN(2) == 0
	}
	e := deferredEngine(t, fs, change)
	d := raft.Descriptor{Shard: 1, Keyspace: 1, ConfVer: 1, Version: 1, NextReplica: 2, Replicas: []raft.Replica{{Node: 1, ID: 1, Role: raft.Voter}}}
	as := raft.AppliedState{Applied: 1, AppliedTerm: 1, TruncIndex: 1, TruncTerm: 1}
	b := e.NewBatch()
	b.SetDescriptor(&d)
	b.SetApplied(1, as)
	b.SetHardState(1, raft.HardState{Term: 1})
	if err := b.Commit(true); err != nil {
		t.Fatal(err)
	}
	b.Close()
	m := kvModel{}
	key := func() string { return fmt.Sprintf("k%0*d", 1+rng.IntN(3), rng.IntN(300)) }
	type open struct {
		it         *Iter
		want       string
		start, end string
	}
	var iters []open
	var flushes uint64
	var views []*View
	var viewWant []string
	var viewIndex []raft.Index
	check := func(o open) {
		t.Helper()
		for _, back := range []bool{false, true} {
			if got := dumpIter(t, o.it, back); got != o.want {
				t.Fatalf("[%q, %q) backward %v:\ngot  %s\nwant %s", o.start, o.end, back, got, o.want)
			}
		}
		// A walk that turns round.
		keys := strings.Fields(o.want)
		at := -1
		for range 20 {
			switch rng.IntN(4) {
			case 0:
				k := key()
				ok := o.it.SeekGE([]byte(k))
				at, _ = slices.BinarySearchFunc(keys, k, func(kv, k string) int { return strings.Compare(kv[:strings.IndexByte(kv, '=')], k) })
				if ok != (at < len(keys)) {
					t.Fatalf("seek %q: %v, want position %d of %d", k, ok, at, len(keys))
				}
			case 1:
				k := key()
				ok := o.it.SeekLT([]byte(k))
				at, _ = slices.BinarySearchFunc(keys, k, func(kv, k string) int { return strings.Compare(kv[:strings.IndexByte(kv, '=')], k) })
				at--
				if ok != (at >= 0) {
					t.Fatalf("seek below %q: %v, want position %d of %d", k, ok, at, len(keys))
				}
			case 2:
				if at >= 0 && at < len(keys) {
					at++
					o.it.Next()
				}
			case 3:
				if at >= 0 && at < len(keys) {
					at--
					o.it.Prev()
				}
			}
			if in := at >= 0 && at < len(keys); o.it.Valid() != in {
				t.Fatalf("valid %v at position %d of %d", o.it.Valid(), at, len(keys))
			} else if in {
				if got := string(o.it.Key()) + "=" + string(o.it.Value()); got != keys[at] {
					t.Fatalf("at %s, want %s", got, keys[at])
				}
			}
		}
	}
	for step := range 400 {
		switch n := rng.IntN(20); {
		case n < 12: // a batch
			b := e.NewBatch()
			now := m.clone()
			for range 1 + rng.IntN(30) {
				switch rng.IntN(12) {
				case 0, 1:
					k := key()
					b.Delete(1, []byte(k))
					delete(now, k)
				case 2:
					lo, hi := key(), key()
					if lo > hi {
						lo, hi = hi, lo
					}
					if rng.IntN(3) == 0 {
						b.DeleteRange(1, []byte(lo), []byte(hi))
						for k := range now {
							if k >= lo && k < hi {
								delete(now, k)
							}
						}
					}
				default:
					k, v := key(), fmt.Sprint(step, strings.Repeat("v", rng.IntN(60)))
					v = strings.ReplaceAll(v, " ", "_")
					b.Set(1, []byte(k), []byte(v))
					now[k] = v
				}
				if rng.IntN(20) == 0 {
					k := key()
					v, ok, err := b.Get(1, []byte(k))
					if want, has := now[k]; err != nil || ok != has || string(v) != want {
						t.Fatalf("in the batch %q: %q %v %v, want %q", k, v, ok, err, want)
					}
				}
			}
			if rng.IntN(10) == 0 {
				it, err := b.Iter(1, nil, nil)
				if err != nil {
					t.Fatal(err)
				}
				check(open{it, now.dump("", ""), "", ""})
				if err := it.Close(); err != nil {
					t.Fatal(err)
				}
			}
			if rng.IntN(8) == 0 {
				b.Close() // thrown away
				break
			}
			as.Applied++
			b.Append(1, as.Applied-1, entries(as.Applied, as.Applied, 1))
			b.SetApplied(1, as)
			b.SetGroup(1, []byte("s1"), []byte(fmt.Sprint(as.Applied)))
			if rng.IntN(12) == 0 {
				d.ConfVer++
				b.SetDescriptor(&d)
			}
			if err := b.Commit(rng.IntN(3) == 0); err != nil {
				t.Fatal(err)
			}
			b.Close()
			m = now
		case n < 14:
			k := key()
			v, ok, err := e.Get(1, []byte(k), nil)
			if want, has := m[k]; err != nil || ok != has || string(v) != want {
				t.Fatalf("%q: %q %v %v, want %q", k, v, ok, err, want)
			}
		case n < 16:
			start, end := key(), key()
			if start > end {
				start, end = end, start
			}
			it, err := e.NewIter(1, []byte(start), []byte(end))
			if err != nil {
				t.Fatal(err)
			}
			if start < end {
				iters = append(iters, open{it, m.dump(start, end), start, end})
			} else if err := it.Close(); err != nil {
				t.Fatal(err)
			}
		case n == 16 && len(iters) > 0:
			i := rng.IntN(len(iters))
			check(iters[i])
			if err := iters[i].it.Close(); err != nil {
				t.Fatal(err)
			}
			iters = slices.Delete(iters, i, i+1)
		case n == 17:
			v, err := e.View(&d)
			if err != nil {
				t.Fatal(err)
			}
			views, viewWant, viewIndex = append(views, v), append(viewWant, m.dump("", "")), append(viewIndex, as.Applied)
		case n == 18 && len(views) > 0:
			v := views[0]
			if v.Applied().Applied != viewIndex[0] {
				t.Fatalf("a view of %d, want %d", v.Applied().Applied, viewIndex[0])
			}
			it, err := v.Iter(ViewData)
			if err != nil {
				t.Fatal(err)
			}
			if got := dumpIter(t, it, false); got != viewWant[0] {
				t.Fatalf("view:\ngot  %s\nwant %s", got, viewWant[0])
			}
			st, err := v.Iter(ViewState)
			if err != nil {
				t.Fatal(err)
			}
			if got, want := dumpIter(t, st, false), fmt.Sprintf("s1=%d ", viewIndex[0]); viewIndex[0] > 1 && !strings.HasSuffix(got, want) {
				t.Fatalf("records %q, want %q last", got, want)
			}
			for _, i := range []*Iter{it, st} {
				if err := i.Close(); err != nil {
					t.Fatal(err)
				}
			}
			if err := v.Close(); err != nil {
				t.Fatal(err)
			}
			views, viewWant, viewIndex = views[1:], viewWant[1:], viewIndex[1:]
		case n == 19 && rng.IntN(3) == 0:
			if err := e.flushAll(); err != nil {
				t.Fatal(err)
			}
		}
		if rng.IntN(60) == 0 { // again, from the disk
			for _, o := range iters {
				check(o)
				if err := o.it.Close(); err != nil {
					t.Fatal(err)
				}
			}
			for _, v := range views {
				if err := v.Close(); err != nil {
					t.Fatal(err)
				}
			}
			iters, views, viewWant, viewIndex = nil, nil, nil, nil
			flushes += e.Metrics().Flushes
			if err := e.Close(); err != nil {
				t.Fatal(err)
			}
			e = deferredEngine(t, fs, change)
			groups, err := e.Boot()
			if err != nil {
				t.Fatal(err)
			}
			if len(groups) != 1 || groups[0].Applied.Applied != as.Applied && as.Applied > 1 {
				t.Fatalf("%+v, want applied %d", groups, as.Applied)
			}
		}
	}
	for _, o := range iters {
		check(o)
		if err := o.it.Close(); err != nil {
			t.Fatal(err)
		}
	}
	for _, v := range views {
		if err := v.Close(); err != nil {
			t.Fatal(err)
		}
	}
	it, err := e.NewIter(1, nil, nil)
	if err != nil {
		t.Fatal(err)
	}
	defer it.Close()
	if got := dumpIter(t, it, false); got != m.dump("", "") {
		t.Fatalf("at the end:\ngot  %s\nwant %s", got, m.dump("", ""))
	}
	if err := e.flushAll(); err != nil {
		t.Fatal(err)
	}
	if flushes+e.Metrics().Flushes == 0 {
		t.Fatal("nothing was ever flushed")
	}
}
