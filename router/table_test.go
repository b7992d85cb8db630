package router

import (
	"bytes"
	"errors"
	"fmt"
	"math/rand/v2"
	"runtime"
	"slices"
	"sync"
	"testing"

	"github.com/flotillakv/flotilla/multiraft/raft"
)

// rangeOf builds a descriptor with three voters on nodes 1-3.
func rangeOf(shard raft.ShardID, start, end string, version, confVer uint64) raft.Descriptor {
	return raft.Descriptor{
		Shard: shard, Keyspace: 1, Start: []byte(start), End: []byte(end), Version: version, ConfVer: confVer, NextReplica: 4,
		Replicas: []raft.Replica{{Node: 1, ID: 1, Role: raft.Voter}, {Node: 2, ID: 2, Role: raft.Voter}, {Node: 3, ID: 3, Role: raft.Voter}},
	}
}

// show prints a table as "shard[start,end)v.c ...".
func show(t *Table) string {
	var b bytes.Buffer
	for r := range t.All(1) {
		if b.Len() > 0 {
			b.WriteByte(' ')
		}
		fmt.Fprintf(&b, "%d[%s,%s)%d.%d", r.Desc.Shard, r.Desc.Start, r.Desc.End, r.Desc.Version, r.Desc.ConfVer)
	}
	return b.String()
}

// TestMerge goes through the merge rules: what stays when a descriptor meets
// what is cached.
func TestMerge(t *testing.T) {
	type D = raft.Descriptor
	tests := []struct {
		name string
		have []D
		add  D
		want string
	}{
		{"first", nil, rangeOf(2, "", "", 1, 1), "2[,)1.1"},
		{"same again", []D{rangeOf(2, "", "", 1, 1)}, rangeOf(2, "", "", 1, 1), "2[,)1.1"},
		{"newer configuration", []D{rangeOf(2, "", "", 1, 1)}, rangeOf(2, "", "", 1, 2), "2[,)1.2"},
		{"older configuration", []D{rangeOf(2, "", "", 1, 2)}, rangeOf(2, "", "", 1, 1), "2[,)1.2"},
		{"newer range beats newer configuration", []D{rangeOf(2, "", "m", 2, 1)}, rangeOf(2, "", "", 1, 9), "2[,m)2.1"},
		{"left half of a split leaves a hole", []D{rangeOf(2, "", "", 1, 1)}, rangeOf(2, "", "m", 2, 1), "2[,m)2.1"},
		{"right half of a split", []D{rangeOf(2, "", "m", 2, 1)}, rangeOf(3, "m", "", 2, 1), "2[,m)2.1 3[m,)2.1"},
		{"right half first removes the parent", []D{rangeOf(2, "", "", 1, 1)}, rangeOf(3, "m", "", 2, 1), "3[m,)2.1"},
		{"parent after the split is refused", []D{rangeOf(2, "", "m", 2, 1), rangeOf(3, "m", "", 2, 1)}, rangeOf(2, "", "", 1, 1), "2[,m)2.1 3[m,)2.1"},
		{"merged range swallows both", []D{rangeOf(2, "a", "m", 2, 1), rangeOf(3, "m", "z", 2, 1), rangeOf(4, "z", "", 1, 1)}, rangeOf(2, "a", "z", 3, 1), "2[a,z)3.1 4[z,)1.1"},
		{"newer than one, older than the other", []D{rangeOf(2, "", "m", 1, 1), rangeOf(3, "m", "", 5, 1)}, rangeOf(4, "k", "p", 3, 1), "2[,m)1.1 3[m,)5.1"},
		{"equal version, younger shard", []D{rangeOf(2, "", "m", 2, 1)}, rangeOf(3, "k", "", 2, 1), "3[k,)2.1"},
		{"equal version, older shard", []D{rangeOf(3, "k", "", 2, 1)}, rangeOf(2, "", "m", 2, 1), "3[k,)2.1"},
		{"touching is not overlapping", []D{rangeOf(2, "b", "d", 9, 9)}, rangeOf(3, "d", "e", 1, 1), "2[b,d)9.9 3[d,e)1.1"},
		{"touching below", []D{rangeOf(2, "b", "d", 9, 9)}, rangeOf(3, "a", "b", 1, 1), "3[a,b)1.1 2[b,d)9.9"},
		{"empty range is ignored", []D{rangeOf(2, "", "", 1, 1)}, rangeOf(3, "m", "m", 9, 9), "2[,)1.1"},
		{"no shard is ignored", nil, rangeOf(0, "", "", 9, 9), ""},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			var table Table
			if n := table.Merge(tt.have...); n != len(tt.have) {
				t.Fatalf("setup took %d of %d descriptors", n, len(tt.have))
			}
			was := show(&table)
			changed := table.Merge(tt.add)
			if got := show(&table); got != tt.want {
				t.Errorf("got  %s\nwant %s", got, tt.want)
			}
			if (changed == 1) != (was != tt.want) {
				t.Errorf("reported %d changes, table %q -> %q", changed, was, tt.want)
			}
		})
	}
}

// TestHints shows that leader hints move forward by term only, survive a newer
// descriptor of their shard, and can be dropped and confirmed by node.
func TestHints(t *testing.T) {
	var table Table
	table.Merge(rangeOf(2, "", "", 1, 1))
	expect := func(step string, node raft.NodeID, term raft.Term) {
		t.Helper()
		r, ok := table.Lookup(1, []byte("k"))
		if !ok {
			t.Fatalf("%s: range is gone", step)
		}
		if n, tm := r.Leader(); n != node || tm != term {
			t.Errorf("%s: leader %d in term %d, want %d in %d", step, n, tm, node, term)
		}
	}
	set := func(node raft.NodeID, term raft.Term) bool { return table.SetLeader(1, []byte("k"), 2, node, term) }
	expect("fresh", 0, 0)
	if !set(1, 5) {
		t.Error("a first hint is news")
	}
	expect("set", 1, 5)
	if set(2, 4) || set(2, 5) || set(0, 5) {
		t.Error("a hint of a lower or the same term was taken")
	}
	expect("older ignored", 1, 5)
	table.Merge(rangeOf(2, "", "", 1, 2))
	expect("kept by a newer descriptor", 1, 5)
	set(0, 6)
	expect("a new term without leader", 0, 6)
	set(3, 6)
	expect("its leader shows", 3, 6)
	r, _ := table.Lookup(1, []byte("k"))
	r.DropLeader(1)
	expect("another node's denial", 3, 6)
	r.DropLeader(3)
	expect("its own denial", 0, 6)
	r.ConfirmLeader(2)
	expect("confirmed by an answer", 2, 6)
	if table.SetLeader(1, []byte("k"), 9, 1, 99) {
		t.Error("a hint for another shard was taken")
	}
	if table.SetLeader(7, []byte("k"), 2, 1, 99) {
		t.Error("a hint for another keyspace was taken")
	}
}

// TestEvict shows that only the very entry that was found is removed.
func TestEvict(t *testing.T) {
	var table Table
	table.Merge(rangeOf(2, "", "m", 1, 1), rangeOf(3, "m", "", 1, 1))
	old, _ := table.Lookup(1, []byte("a"))
	table.Merge(rangeOf(2, "", "m", 1, 2))
	if table.Evict(old) {
		t.Error("evicting a replaced entry removed its successor")
	}
	cur, _ := table.Lookup(1, []byte("a"))
	if !table.Evict(cur) || show(&table) != "3[m,)1.1" || table.Len(1) != 1 {
		t.Errorf("after evict: %s, len %d", show(&table), table.Len(1))
	}
	last, _ := table.Lookup(1, []byte("z"))
	if !table.Evict(last) || table.Len(1) != 0 {
		t.Error("the last entry stays")
	}
	if table.Evict(Route{}) {
		t.Error("the zero route was evicted")
	}
	if _, ok := table.Lookup(1, []byte("z")); ok {
		t.Error("lookup in an empty keyspace found something")
	}
}

// TestKeepsCopies shows that the table does not alias what it was given.
func TestKeepsCopies(t *testing.T) {
	d := rangeOf(2, "b", "m", 1, 1)
	var table Table
	table.Merge(d)
	d.Start[0], d.End[0], d.Replicas[0].Node = 'x', 'x', 77
	if got := show(&table); got != "2[b,m)1.1" {
		t.Errorf("got %s", got)
	}
	r, _ := table.Lookup(1, []byte("c"))
	if r.Desc.Replicas[0].Node != 1 {
		t.Error("replicas are shared with the caller")
	}
}

// model is the table as a plain list, searched from front to back.
type model []raft.Descriptor

func (m model) merge(d raft.Descriptor) model {
	if !before(d.Start, d.End) {
		return m
	}
	overlaps := func(o raft.Descriptor) bool { return before(d.Start, o.End) && before(o.Start, d.End) }
	for _, o := range m {
		if overlaps(o) && !newer(&d, &o) {
			return m
		}
	}
	out := append(slices.DeleteFunc(slices.Clone(m), overlaps), d)
	slices.SortFunc(out, func(a, b raft.Descriptor) int { return bytes.Compare(a.Start, b.Start) })
	return out
}

func (m model) lookup(key []byte) raft.ShardID {
	for _, d := range m {
		if bytes.Compare(d.Start, key) <= 0 && before(key, d.End) {
			return d.Shard
		}
	}
	return 0
}

func (m model) lookupBefore(end []byte) raft.ShardID {
	for _, d := range m {
		if before(d.Start, end) && (len(d.End) == 0 || len(end) > 0 && bytes.Compare(end, d.End) <= 0) {
			return d.Shard
		}
	}
	return 0
}

// TestAgainstModel merges and evicts random ranges over keys of awkward shapes
// (shared prefixes, zero bytes, prefixes of each other) and compares every
// lookup with a plain list.
func TestAgainstModel(t *testing.T) {
	rng := rand.New(rand.NewPCG(1, 2))
	randKey := func() []byte {
		switch rng.IntN(4) {
		case 0:
			return bytes.Repeat([]byte{0}, rng.IntN(10))
		case 1:
			return fmt.Appendf(nil, "user%05d", rng.IntN(1200))
		case 2:
			return fmt.Appendf(nil, "user%05d\x00", rng.IntN(1200))
		}
		k := make([]byte, rng.IntN(4))
		for i := range k {
			k[i] = "\x00au\xff"[rng.IntN(4)]
		}
		return k
	}
	for round := range 4 {
		var table Table
		var m model
		for step := range 3000 {
			start, end := randKey(), randKey()
			if rng.IntN(3) > 0 { // mostly narrow ranges, so that the table grows
				n := rng.IntN(1200)
				start, end = fmt.Appendf(nil, "user%05d", n), fmt.Appendf(nil, "user%05d", n+1)
			}
			d := rangeOf(raft.ShardID(1+rng.IntN(3000)), string(start), string(end), uint64(1+step/300+rng.IntN(4)), uint64(rng.IntN(3)))
			if rng.IntN(20) == 0 {
				k := randKey()
				if r, ok := table.Lookup(1, k); ok {
					s := r.Desc.Start
					table.Evict(r)
					m = slices.DeleteFunc(slices.Clone(m), func(o raft.Descriptor) bool { return bytes.Equal(o.Start, s) })
				}
			}
			table.Merge(d)
			m = m.merge(d)
			for range 3 {
				k := randKey()
				var got raft.ShardID
				if r, ok := table.Lookup(1, k); ok {
					got = r.Desc.Shard
				}
				if want := m.lookup(k); got != want {
					t.Fatalf("round %d step %d: lookup %q found shard %d, want %d", round, step, k, got, want)
				}
				got = 0
				if r, ok := table.LookupBefore(1, k); ok {
					got = r.Desc.Shard
				}
				if want := m.lookupBefore(k); got != want {
					t.Fatalf("round %d step %d: lookup before %q found shard %d, want %d", round, step, k, got, want)
				}
			}
			if table.Len(1) != len(m) {
				t.Fatalf("round %d step %d: %d entries, want %d", round, step, table.Len(1), len(m))
			}
		}
	}
}

// TestManyInOneMerge shows that one call may bring many ranges in any order.
func TestManyInOneMerge(t *testing.T) {
	const n = 5000
	var table Table
	if got := table.Merge(manyRanges(n, func(i int) string { return fmt.Sprintf("user%08d", i) })...); got != n {
		t.Fatalf("took %d of %d", got, n)
	}
	for i := range n {
		r, ok := table.Lookup(1, fmt.Appendf(nil, "user%08dx", i))
		if !ok || r.Desc.Shard != raft.ShardID(i+2) {
			t.Fatalf("key %d: %v %v", i, r.Desc, ok)
		}
	}
}

// TestConcurrentMerge lets writers race for one table: nothing is lost, and
// readers never see a range without its key.
func TestConcurrentMerge(t *testing.T) {
	const writers, each = 4, 200
	all := manyRanges(writers*each, func(i int) string { return fmt.Sprintf("%04d", i) })
	var table Table
	var wg sync.WaitGroup
	for w := range writers {
		wg.Go(func() {
			for i := w; i < len(all); i += writers {
				table.Merge(all[i])
				key := all[i].Start
				if r, ok := table.Lookup(1, key); !ok || r.Desc.Shard != all[i].Shard {
					t.Errorf("range %d is not there after its merge", i)
				}
				table.SetLeader(1, key, all[i].Shard, raft.NodeID(w+1), 1)
			}
		})
	}
	wg.Wait()
	if table.Len(1) != len(all) {
		t.Errorf("%d entries, want %d", table.Len(1), len(all))
	}
}

// manyRanges builds n ranges that cover the keyspace, in shuffled order; range
// i is shard i+2 and starts at key(i), the first at the empty key.
func manyRanges(n int, key func(int) string) []raft.Descriptor {
	out := make([]raft.Descriptor, n)
	for i := range out {
		start, end := key(i), ""
		if i == 0 {
			start = ""
		}
		if i < n-1 {
			end = key(i + 1)
		}
		out[i] = rangeOf(raft.ShardID(i+2), start, end, 1, 1)
	}
	rng := rand.New(rand.NewPCG(7, 7))
	rng.Shuffle(n, func(i, j int) { out[i], out[j] = out[j], out[i] })
	return out
}

// TestLookupAllocatesNothing holds the corridor's promise.
// A table with a limit keeps what is used, forgets other ranges, and can learn them
// again.
func TestTableLimit(t *testing.T) {
	if err := limited(); err != nil {
		t.Fatal(err)
	}
}

func limited() error {
	const n, limit, page = 100_000, 4000, 128
	var table Table
	table.SetLimit(limit)
	all := manyRanges(n, func(i int) string { return fmt.Sprintf("user%08d", i) })
	slices.SortFunc(all, func(a, b raft.Descriptor) int { return bytes.Compare(a.Start, b.Start) })
	hot := []int{10, 20_000, 50_000, 99_999}
	for _, i := range hot {
		table.Merge(all[i])
	}
	for at := 0; at < n; at += page {
		table.Merge(all[at:min(at+page, n)]...)
		if got := table.Len(1); got > limit+2*blockMax {
			return fmt.Errorf("%d ranges are kept, the limit is %d", got, limit)
		}
		for _, i := range hot {
			if _, ok := table.Lookup(1, all[i].Start); !ok {
				return fmt.Errorf("at %d: range %d was forgotten though it is used all the time", at, i)
			}
		}
	}
	if got := table.Len(1); got < limit/2 {
		return fmt.Errorf("only %d ranges are kept, the limit is %d", got, limit)
	}
	table.Merge(all[30_000:30_128]...)
	if r, ok := table.Lookup(1, all[30_000].Start); !ok || r.Desc.Shard != all[30_000].Shard {
		return errors.New("a range that was forgotten is not learned again")
	}
	return nil
}

func TestLookupAllocatesNothing(t *testing.T) {
	var table Table
	table.Merge(manyRanges(1000, func(i int) string { return fmt.Sprintf("user%08d", i) })...)
	key := []byte("user00000500")
	n := testing.AllocsPerRun(100, func() {
		if r, ok := table.Lookup(1, key); ok {
			r.Leader()
		}
		table.LookupBefore(1, key)
	})
	if n > 0 {
		t.Errorf("a lookup allocates %v times", n)
	}
}

func BenchmarkLookup(b *testing.B) {
	shapes := []struct {
		name string
		key  func(int) string
	}{
		{"binary", func(i int) string { return string([]byte{byte(i >> 16), byte(i >> 8), byte(i)}) }},
		{"text", func(i int) string { return fmt.Sprintf("user%08d", i*977) }},
	}
	for _, s := range shapes {
		for _, n := range []int{48, 100_000, 1_000_000} {
			b.Run(fmt.Sprintf("%s/%d", s.name, n), func(b *testing.B) {
				var table Table
				descs := manyRanges(n, s.key)
				before := heapInUse()
				table.Merge(descs...)
				size := float64(heapInUse()-before) / float64(n)
				rng := rand.New(rand.NewPCG(3, 4))
				keys := make([][]byte, 1<<16) // one after the other: a caller's key is in the cache already
				buf := make([]byte, 0, 16<<16)
				for i := range keys {
					at := len(buf)
					buf = append(buf, s.key(rng.IntN(n))...)
					keys[i] = buf[at:]
				}
				b.ReportAllocs()
				for i := 0; b.Loop(); i++ {
					if _, ok := table.Lookup(1, keys[i&(1<<16-1)]); !ok {
						b.Fatal("miss")
					}
				}
				b.ReportMetric(size, "B/range")
				runtime.KeepAlive(descs)
			})
		}
	}
}

func heapInUse() int64 {
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return int64(m.HeapAlloc)
}

func BenchmarkMergeOne(b *testing.B) {
	const n = 100_000
	var table Table
	all := manyRanges(n, func(i int) string { return fmt.Sprintf("user%08d", i) })
	table.Merge(all...)
	b.ReportAllocs()
	b.ResetTimer()
	for i := 0; i < b.N; i++ {
		d := all[i%n]
		d.ConfVer = uint64(2 + i)
		if table.Merge(d) != 1 {
			b.Fatal("not taken")
		}
	}
}
