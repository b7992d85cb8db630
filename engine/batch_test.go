package engine

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"strings"
	"testing"
	"time"

	"github.com/cockroachdb/pebble/v2/batchrepr"

	"github.com/flotillakv/flotilla/multiraft/raft"
)

// TestBatchReads drives a batch with random writes, range deletions and
// rollbacks, over committed data, and compares Get and Iter with a map after
// each.
func TestBatchReads(t *testing.T) {
	e := openTest(t, NewMemFS())
	rng := rand.New(rand.NewPCG(1, 2))
	key := func(i int) string { return fmt.Sprintf("k%03d", i) }
	committed := map[string]string{}
	for round := range 30 {
		b := e.NewBatch()
		model := map[string]string{}
		for k, v := range committed {
			model[k] = v
		}
		type saved struct {
			mark  int
			model map[string]string
		}
		var marks []saved
		for op := range 60 {
			k := key(rng.IntN(80))
			switch rng.IntN(8) {
			case 0, 1, 2:
				v := fmt.Sprint(round, op)
				b.Set(1, []byte(k), []byte(v))
				model[k] = v
			case 3:
				b.Delete(1, []byte(k))
				delete(model, k)
			case 4:
				lo := rng.IntN(80)
				hi := lo + rng.IntN(10)
				b.DeleteRange(1, []byte(key(lo)), []byte(key(hi)))
				for i := lo; i < hi; i++ {
					delete(model, key(i))
				}
			case 5:
				c := map[string]string{}
				for k, v := range model {
					c[k] = v
				}
				marks = append(marks, saved{b.Mark(), c})
			case 6:
				if len(marks) > 0 && rng.IntN(3) == 0 {
					m := marks[len(marks)-1]
					marks = marks[:len(marks)-1]
					b.RollbackTo(m.mark)
					model = m.model
				}
			default:
				b.Append(9, 0, entries(1, 2, 1)) // other keys are in the way
			}
			for range 5 {
				k := key(rng.IntN(80))
				v, ok, err := b.Get(1, []byte(k))
				must(t, err)
				if want, has := model[k]; ok != has || string(v) != want {
					t.Fatalf("round %d, op %d: %s is %q %v, want %q %v", round, op, k, v, ok, want, has)
				}
			}
		}
		it, err := b.Iter(1, nil, nil)
		must(t, err)
		if got, want := readAll(it), printMap(model); got != want {
			t.Fatalf("iterator: %s\nwant %s", got, want)
		}
		must(t, it.Close())
		must(t, b.Commit(round%2 == 0))
		must(t, b.Wait())
		b.Close()
		committed = model
		it, err = e.NewIter(1, nil, nil)
		must(t, err)
		if got, want := readAll(it), printMap(model); got != want {
			t.Fatalf("committed: %s\nwant %s", got, want)
		}
		must(t, it.Close())
	}
}

func readAll(it *Iter) string {
	var b strings.Builder
	for ok := it.First(); ok; ok = it.Next() {
		fmt.Fprintf(&b, "%s=%s ", it.Key(), it.Value())
	}
	return b.String()
}

func printMap(m map[string]string) string {
	var b strings.Builder
	for _, k := range keysOf(m) {
		fmt.Fprintf(&b, "%s=%s ", k, m[k])
	}
	return b.String()
}

// kinds lists the operations of a committed batch on the log.
func kinds(b *Batch) string {
	var out []string
	for r := batchrepr.Read(b.b.Repr()); len(r) > 0; {
		kind, key, _, _, _ := r.Next()
		switch k, err := ParseKey(key); {
		case err != nil:
			out = append(out, fmt.Sprintf("%s:%v", kind, err))
		case k.Kind == KindEntry:
			out = append(out, fmt.Sprintf("%s:%d", kind, k.Index))
		case k.Kind == KindRecord:
			out = append(out, fmt.Sprintf("%s:record", kind))
		}
	}
	return strings.Join(out, " ")
}

// TestDeleteKinds shows which deletes the log uses: plain ones, and a range for long
// spans of entries with keys of their own.
func TestDeleteKinds(t *testing.T) {
	e := openTest(t, NewMemFS())
	createGroup(t, e, 1)
	createGroup(t, e, 2)
	step := func(want string, f func(b *Batch)) {
		t.Helper()
		b := e.NewBatch()
		defer b.Close()
		f(b)
		must(t, b.Commit(false))
		if got := kinds(b); got != want {
			t.Fatalf("got  %s\nwant %s", got, want)
		}
	}
	cut := func(b *Batch, s raft.ShardID, from, to raft.Index) {
		b.Truncate(s, from, to, 1)
		b.SetApplied(s, raft.AppliedState{Applied: to, TruncIndex: to, AppliedTerm: 1, TruncTerm: 1})
	}
	step("SET:record", func(b *Batch) { b.Append(1, 0, entries(1, 4, 1)); b.Append(2, 0, entries(1, 1, 1)) })
	step("SET:record", func(b *Batch) { b.Append(1, 4, entries(3, 3, 2)) })
	step("", func(b *Batch) { cut(b, 1, 0, 1) })
	step("", func(b *Batch) { cut(b, 2, 0, 1) })
	// What was overwritten does not keep its record.
	step("DEL:record", func(b *Batch) { cut(b, 1, 1, 2) })
	step("DEL:record", func(b *Batch) { cut(b, 1, 2, 3) })
	step("SET:record DEL:record", func(b *Batch) { b.Append(2, 1, entries(2, 2, 2)); cut(b, 2, 1, 2) })
	// With keys of their own.
	moved(t, e, 1, entries(4, 8, 2))
	step("DEL:4 DEL:5 DEL:6", func(b *Batch) { cut(b, 1, 3, 6) })
	step("SET:record DEL:8", func(b *Batch) { b.Append(1, 8, entries(8, 9, 3)) })
	step("DEL:7", func(b *Batch) { cut(b, 1, 6, 8) })
	step("DEL:record", func(b *Batch) { cut(b, 1, 8, 9) })
	// A long span of them is one range deletion.
	moved(t, e, 1, entries(10, 10+2*pointDeletes, 3))
	step("RANGEDEL:10", func(b *Batch) { cut(b, 1, 9, 10+pointDeletes) })
	st, _, err := e.Load(1)
	if err != nil || st.Last != 10+2*pointDeletes {
		t.Fatalf("%v %+v", err, st)
	}
	// A batch that is thrown away says nothing.
	b := e.NewBatch()
	b.Append(1, st.Last, entries(20, 20, 4))
	b.Truncate(1, 10, 20, 3)
	b.Close()
	if now, _, err := e.Load(1); err != nil || now.Last != st.Last || len(now.Tail) != len(st.Tail) {
		t.Fatalf("%v %+v, was %+v", err, now, st)
	}
}

// TestLogChurn appends, overwrites and truncates at random, flushes, compacts
// and restarts in between, and compares the log with a model: no delete ever
// brings an old entry back.
func TestLogChurn(t *testing.T) {
	for name, journal := range map[string]int64{"records": 1 << 30, "moved": 2 << 10, "at once": 1} {
		t.Run(name, func(t *testing.T) { logChurn(t, journal) })
	}
}

func logChurn(t *testing.T, journal int64) {
	s := newScript(11)
	fs := NewMemFS()
	o := testOptions(t, fs)
	o.JournalBytes = journal
	e, err := Open(o)
	must(t, err)
	s.create(1)
	s.create(2)
	done := 0
	misuse := uint64(0)
	for i := range 300 {
		s.round()
		for ; done < len(s.steps); done++ {
			must(t, s.steps[done].do(e))
		}
		switch {
		case i%25 == 24:
			must(t, e.db.Flush())
		case i%60 == 59:
			must(t, e.db.Compact(context.Background(), []byte{0}, []byte{0xff}, false))
		case i%41 == 40:
			misuse += e.Metrics().Misuse
			must(t, e.Close())
			e, err = Open(o)
			must(t, err)
		default:
			continue
		}
		groups, err := e.Boot()
		must(t, err)
		got, err := printStore(e, groups)
		must(t, err)
		if got != s.prints[done] {
			t.Fatalf("round %d:\n%s\nwant:\n%s", i, got, s.prints[done])
		}
	}
	misuse += e.Metrics().Misuse
	must(t, e.Close())
	if misuse != 0 {
		t.Errorf("%d suspicious deletes", misuse)
	}
}

// TestView shows that a cut is consistent and does not move: data and applied
// state of one moment, however small or large the group.
func TestView(t *testing.T) {
	e := openTest(t, NewMemFS())
	d := createGroup(t, e, 1)
	createGroup(t, e, 2)
	write := func(n int, applied raft.Index, val []byte) {
		t.Helper()
		b := e.NewBatch()
		defer b.Close()
		for i := range n {
			b.Set(1, fmt.Appendf(nil, "s0001/%06d", i), val)
		}
		b.Set(1, []byte("s0002/x"), val)
		b.SetGroup(1, []byte("sess"), fmt.Append(nil, applied))
		b.Append(1, applied-1, entries(applied, applied, 1))
		b.SetApplied(1, raft.AppliedState{Applied: applied, AppliedTerm: 1})
		must(t, b.Commit(false))
	}
	incompressible := make([]byte, 4000)
	r := rand.NewChaCha8([32]byte{})
	for _, large := range []bool{false, true} { // in this order: the second adds to the first
		t.Run(map[bool]string{false: "small", true: "large"}[large], func(t *testing.T) {
			_, _ = r.Read(incompressible)
			base := raft.Index(1)
			n := 10
			if large {
				base, n = 100, 100
				for i := range 20 { // several memtables, so that tables hold it
					b := e.NewBatch()
					for j := range 100 {
						_, _ = r.Read(incompressible)
						b.Set(1, fmt.Appendf(nil, "s0001/big%03d%03d", i, j), incompressible)
					}
					must(t, b.Commit(false))
					b.Close()
				}
				must(t, e.db.Flush())
			}
			write(n, base, []byte("old"))
			v, err := e.View(&d)
			must(t, err)
			if (v.efos != nil) != large {
				t.Fatalf("large %v, file-only %v", large, v.efos != nil)
			}
			write(n, base+1, []byte("new"))
			must(t, e.db.Flush())
			if v.Applied().Applied != base || v.Desc().Shard != 1 {
				t.Fatalf("cut at %+v", v.Applied())
			}
			it, err := v.Iter(ViewData)
			must(t, err)
			count := 0
			for ok := it.First(); ok; ok = it.Next() {
				if !bytes.HasPrefix(it.Key(), []byte("s0001/")) {
					t.Fatalf("foreign key %q", it.Key())
				}
				if string(it.Value()) == "old" {
					count++
				}
			}
			must(t, it.Close())
			if count != n {
				t.Fatalf("%d old values, want %d", count, n)
			}
			it, err = v.Iter(ViewState)
			must(t, err)
			var suffixes []string
			for ok := it.First(); ok; ok = it.Next() {
				suffixes = append(suffixes, string(it.Key()))
				if string(it.Key()) == "sess" && string(it.Value()) != fmt.Sprint(base) {
					t.Fatalf("session %q", it.Value())
				}
			}
			must(t, it.Close())
			if got := strings.Join(suffixes, " "); got != "a d sess" {
				t.Fatalf("state: %s", got)
			}
			must(t, v.Close())
			must(t, v.Close())
		})
	}
	absent := testDesc(3)
	var ge *GroupError
	if _, err := e.View(&absent); !errors.As(err, &ge) || ge.Shard != 3 {
		t.Fatalf("view of an absent group: %v", err)
	}
}

// TestInstallRefusals: what must not be installed, is not, and nothing changes.
func TestInstallRefusals(t *testing.T) {
	fs := NewMemFS()
	o := testOptions(t, fs)
	o.Node = 1
	e, err := Open(o)
	must(t, err)
	defer e.Close()
	createGroup(t, e, 1)
	b := e.NewBatch()
	b.SetHardState(1, raft.HardState{Term: 5, Vote: 2})
	b.Append(1, 0, entries(1, 3, 1))
	b.SetApplied(1, raft.AppliedState{Applied: 3, AppliedTerm: 1})
	must(t, errors.Join(b.Commit(true), b.Wait()))
	b.Close()
	d4 := createGroup(t, e, 4)
	must(t, e.Destroy(4, &d4, 2))
	ok := Install{Desc: testDesc(1), Applied: raft.AppliedState{Applied: 9, AppliedTerm: 5}, Hard: raft.HardState{Term: 5, Vote: 2}}
	before, err := e.Boot()
	must(t, err)
	for name, c := range map[string]struct {
		change func(in *Install)
		want   error
	}{
		"lower term":      {func(in *Install) { in.Hard = raft.HardState{Term: 4} }, ErrStale},
		"other vote":      {func(in *Install) { in.Hard.Vote = 3 }, ErrStale},
		"lower applied":   {func(in *Install) { in.Applied.Applied = 2 }, ErrStale},
		"overlap":         {func(in *Install) { in.Desc.Shard = 3 }, ErrOverlap},
		"destroyed":       {func(in *Install) { in.Desc = d4 }, ErrTombstone},
		"not for us":      {func(in *Install) { in.Desc = d4; in.Desc.Replicas = in.Desc.Replicas[1:] }, ErrTombstone},
		"overlap by span": {func(in *Install) { in.Desc.Shard = 3; in.Desc.Start, in.Desc.End = nil, []byte("s0001/b") }, ErrOverlap},
	} {
		in := ok
		c.change(&in)
		if err := e.InstallSnapshot(in); !errors.Is(err, c.want) {
			t.Errorf("%s: %v", name, err)
		}
	}
	after, err := e.Boot()
	must(t, err)
	if fmt.Sprint(before) != fmt.Sprint(after) {
		t.Errorf("a refusal changed %v to %v", before, after)
	}
	must(t, e.InstallSnapshot(ok))
	st, _, err := e.Load(1)
	if err != nil || st.Last != 9 || len(st.Tail) != 0 || st.Applied.TruncTerm != 5 {
		t.Fatalf("%v %+v", err, st)
	}
	if term, err := e.Term(1, 9); err != nil || term != 5 {
		t.Errorf("term of the last truncated index: %d %v", term, err)
	}
	if _, err := e.Entries(nil, 1, 3, 4, 0); !errors.Is(err, ErrCompacted) {
		t.Errorf("entries: %v", err)
	}
	// A newer replica of the destroyed shard is welcome.
	in := Install{Desc: d4, Applied: raft.AppliedState{Applied: 1, AppliedTerm: 1}, Hard: raft.HardState{Term: 1}}
	in.Desc.Replicas[0].ID = 2
	must(t, e.InstallSnapshot(in))
}

// TestDamagedGroup: Boot refuses a group whose parts do not belong together,
// and says which and why.
func TestDamagedGroup(t *testing.T) {
	for name, damage := range map[string]func(b *Batch){
		"gap in the log":      func(b *Batch) { b.delete(appendLogKey(nil, 1, 2)) },
		"log shorter":         func(b *Batch) { b.delete(appendLogKey(nil, 1, 4)); b.delete(appendLogKey(nil, 1, 3)) },
		"entry of elsewhere":  func(b *Batch) { b.set(appendLogKey(nil, 1, 4), entry(5, 1).Value) },
		"flipped bit":         func(b *Batch) { v := entry(4, 1).Value; v[len(v)-1] ^= 1; b.set(appendLogKey(nil, 1, 4), v) },
		"term goes back":      func(b *Batch) { b.set(appendLogKey(nil, 1, 3), entry(3, 2).Value) },
		"applied state":       func(b *Batch) { b.set(appliedKey(nil, 1), []byte("x")) },
		"hard state":          func(b *Batch) { b.set(hardKey(nil, 1), []byte("x")) },
		"descriptor":          func(b *Batch) { b.set(descKey(nil, 1), []byte("x")) },
		"other's descriptor":  func(b *Batch) { d := testDesc(2); b.set(descKey(nil, 1), d.Encode(nil)) },
		"truncated past done": func(b *Batch) { b.SetApplied(1, raft.AppliedState{Applied: 2, TruncIndex: 3}) },
	} {
		t.Run(name, func(t *testing.T) {
			e := openTest(t, NewMemFS())
			createGroup(t, e, 1)
			createGroup(t, e, 2)
			b := e.NewBatch()
			for _, en := range entries(1, 4, 1) {
				b.set(appendLogKey(nil, 1, en.Index), en.Value)
			}
			b.SetApplied(1, raft.AppliedState{Applied: 3, AppliedTerm: 1})
			damage(b)
			must(t, b.Commit(false))
			b.Close()
			_, err := e.Boot()
			var ge *GroupError
			if !errors.As(err, &ge) || ge.Shard != 1 || !errors.Is(err, raft.ErrCorrupt) {
				t.Fatalf("%v", err)
			}
		})
	}
}

// TestSupport: support records are kept per node, in order.
func TestSupport(t *testing.T) {
	fs := NewMemFS()
	e := openTest(t, fs)
	must(t, e.SaveSupport(SupportRecord{Node: 300, Epoch: 1}, SupportRecord{Node: 2, Epoch: 5, Withdrawn: true}))
	must(t, e.SaveSupport(SupportRecord{Node: 300, Epoch: 7<<32 | 1}))
	must(t, e.Close())
	recs, err := openTest(t, fs).LoadSupport()
	must(t, err)
	if want := "[{2 5 true} {300 30064771073 false}]"; fmt.Sprint(recs) != want {
		t.Fatalf("%v, want %s", recs, want)
	}
}

// TestMetrics: the figures move, and the quantiles are within their buckets.
func TestMetrics(t *testing.T) {
	e := openTest(t, NewMemFS())
	createGroup(t, e, 1)
	must(t, e.SyncNow())
	m := e.Metrics()
	if m.Syncs < 2 || m.Batches == 0 || m.FsyncP50 <= 0 || m.FsyncP99 < m.FsyncP50 || m.FsyncMax < m.FsyncP99 || m.DiskBytes == 0 || m.BytesWritten == 0 {
		t.Errorf("%+v", m)
	}
	for d := int64(1); d < 1<<50; d = d*5/4 + 1 {
		b := bucket(time.Duration(d))
		if top := bucketTop(b); int64(top) < d || float64(top) > 1.34*float64(d)+2 {
			t.Fatalf("%d is in bucket %d, whose top is %d", d, b, top)
		}
		if b > 0 && int64(bucketTop(b-1)) >= d && bucket(time.Duration(int64(bucketTop(b-1)))) == b-1 {
			t.Fatalf("%d is above bucket %d but within its top", d, b-1)
		}
	}
	if n := e.LogSize(1); n != 0 {
		t.Errorf("log size %d", n)
	}
	if _, err := e.DataSize(1, nil, nil); err != nil {
		t.Error(err)
	}
}

// TestUseAfterClose: everything is refused in an orderly way.
func TestUseAfterClose(t *testing.T) {
	e := openTest(t, NewMemFS())
	d := createGroup(t, e, 1)
	b := e.NewBatch()
	b.Set(1, []byte("k"), nil)
	must(t, e.Close())
	_, bootErr := e.Boot()
	_, _, loadErr := e.Load(1)
	_, iterErr := e.NewIter(1, nil, nil)
	_, viewErr := e.View(&d)
	_, entErr := e.Entries(nil, 1, 1, 1, 0)
	_, sstErr := e.NewSSTWriter("/x")
	_, _, getErr := b.Get(1, []byte("absent"))
	for name, err := range map[string]error{
		"commit": b.Commit(true), "boot": bootErr, "load": loadErr, "iter": iterErr, "view": viewErr, "entries": entErr,
		"table": sstErr, "batch get": getErr, "install": e.InstallSnapshot(Install{Desc: d}), "destroy": e.Destroy(1, &d, 2),
		"support": e.SaveSupport(SupportRecord{Node: 1}), "ident": e.SetIdent([16]byte{1}, 1),
	} {
		if !errors.Is(err, ErrClosed) {
			t.Errorf("%s: %v", name, err)
		}
	}
	b.Close()
	if e.Metrics().Batches == 0 {
		t.Error("counters are gone")
	}
}
