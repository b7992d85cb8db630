package catalog

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"

	"github.com/flotillakv/flotilla/internal/fuzzing"
	"github.com/flotillakv/flotilla/multiraft/raft"
	"github.com/flotillakv/flotilla/shard"
)

var goldenLayout = Layout{Keyspace: 1, First: 2, Count: 3, Splits: [][]byte{[]byte("g"), []byte("p")}, Nodes: []raft.NodeID{1, 2, 300}, Replicas: 2, Turn: 1}

func layoutPlan(t testing.TB, nodes, replicas int, splits [][]byte, n int) Plan {
	t.Helper()
	ids, _ := testNodes(nodes)
	p, err := NewLayoutPlan(ids, replicas, 1, splits, n)
	if err != nil {
		t.Fatal(err)
	}
	return p
}

// A layout deals like NewPlan, evenly, whatever the numbers.
func TestLayoutDeals(t *testing.T) {
	for n := 1; n <= 24; n++ {
		for replicas := 1; replicas <= min(n, raft.MaxReplicas); replicas++ {
			ids, _ := testNodes(n)
			l := layoutPlan(t, n, replicas, nil, 3*n+5)
			listed, err := NewPlan(ids, replicas, 1, SplitKeys(3*n+5))
			if err != nil {
				t.Fatal(err)
			}
			var got Plan
			for r := range l.All {
				if r.Desc.Shard == raft.MetaShard {
					got.Meta = r
				} else {
					got.Shards = append(got.Shards, r)
				}
			}
			checkBalance(t, got, ids, replicas)
			if n <= 3 && fmt.Sprintf("%+v", got.Shards) != fmt.Sprintf("%+v", listed.Shards) {
				t.Fatalf("%d nodes, %d replicas: %+v, listed %+v", n, replicas, got.Shards, listed.Shards)
			}
		}
	}
}

// Find, Range, Index and ending agree with the list of all ranges.
func TestLayoutRanges(t *testing.T) {
	for _, l := range []*Layout{layoutPlan(t, 3, 3, nil, 1000).Layout, layoutPlan(t, 3, 3, nil, 1).Layout, layoutPlan(t, 5, 3, SplitKeys(77), 0).Layout} {
		n := 0
		for i, r := range l.All {
			n++
			if got := l.Range(i); fmt.Sprintf("%+v", got) != fmt.Sprintf("%+v", r) {
				t.Fatalf("range %d: %+v and %+v", i, got, r)
			}
			if at := l.Find(r.Desc.Start); at != i {
				t.Fatalf("the start of range %d is found in %d", i, at)
			}
			if at, ok := l.Index(r.Desc.Shard); !ok || at != i {
				t.Fatalf("shard %d is range %d, %t", r.Desc.Shard, at, ok)
			}
			if got, ok := l.ending(r.Desc.End); !ok || got.Desc.Shard != r.Desc.Shard {
				t.Fatalf("range %d does not end where it ends", i)
			}
			if _, ok := l.ending(append(bytes.Clone(r.Desc.End), 7)); ok {
				t.Fatalf("a range ends behind range %d", i)
			}
		}
		if n != l.Count {
			t.Fatalf("%d ranges, want %d", n, l.Count)
		}
	}
}

// What a layout must not be is refused, by name.
func TestLayoutRefused(t *testing.T) {
	for name, spoil := range map[string]func(l *Layout){
		"keyspace": func(l *Layout) { l.Keyspace = 0 }, "count": func(l *Layout) { l.Count = 0 }, "many": func(l *Layout) { l.Count = MaxLayoutShards + 1 },
		"splits": func(l *Layout) { l.Splits = l.Splits[:1] }, "order": func(l *Layout) { l.Splits[0] = []byte("z") }, "first": func(l *Layout) { l.First = 1 },
		"wrap": func(l *Layout) { l.First = ^raft.ShardID(0) }, "replicas": func(l *Layout) { l.Replicas = 4 }, "none": func(l *Layout) { l.Replicas = 0 },
		"node": func(l *Layout) { l.Nodes = []raft.NodeID{1, 1, 2} }, "sorted": func(l *Layout) { l.Nodes = []raft.NodeID{3, 1, 2} }, "turn": func(l *Layout) { l.Turn = -1 },
	} {
		l := goldenLayout
		l.Splits = slices.Clone(l.Splits)
		spoil(&l)
		var arg *shard.ArgumentError
		var limit *shard.LimitError
		if err := l.Check(); !errors.As(err, &arg) && !errors.As(err, &limit) {
			t.Errorf("%s: %v", name, err)
		}
		if l.Count > 0 && l.Turn >= 0 {
			if _, err := DecodeLayout(l.Encode(nil)); !errors.Is(err, ErrCorrupt) {
				t.Errorf("%s, decoded: %v", name, err)
			}
		}
	}
}

// FuzzLayout: what decodes can be used, and comes back the same.
func FuzzLayout(tf *testing.F) {
	f := fuzzing.New(tf)
	f.Add(goldenLayout.Encode(nil))
	even := *layoutPlan(f, 3, 3, nil, 1000).Layout
	f.Add(even.Encode(nil))
	f.Fuzz(func(t testing.TB, b []byte) {
		fuzzing.Decode(t, len(b), func() { DecodeLayout(b) })
		l, err := DecodeLayout(b)
		if err != nil {
			return
		}
		if again := l.Encode(nil); !bytes.Equal(again, b) {
			if _, err := DecodeLayout(again); err != nil {
				t.Fatalf("does not come back: %v", err)
			}
		}
		for _, i := range []int{0, l.Count / 2, l.Count - 1} {
			if r := l.Range(i); !r.Desc.Contains(r.Desc.Start) || l.Find(r.Desc.Start) != i {
				t.Fatalf("range %d: %+v", i, r)
			}
		}
	})
}

// Ranges that were split, merged, moved or got another leader are recorded; what is
// read back is the same as if all ranges had been recorded one by one.
func TestLayoutOverlay(t *testing.T) {
	for seed := range uint64(300) {
		if err := overlayRun(seed); err != nil {
			t.Fatal(err)
		}
	}
}

// keepingKV is a LayoutKeeper.
type keepingKV struct {
	*memKV
	l *Layout
}

func (k *keepingKV) KnownLayout(uint32) *Layout { return k.l }
func (k *keepingKV) KeepLayout(l *Layout)       { k.l = l }

func overlayRun(seed uint64) error {
	rnd := rand.New(rand.NewPCG(seed, 1))
	ctx := context.Background()
	plan, err := NewLayoutPlan([]raft.NodeID{1, 2, 3}, 3, 1, nil, 1+rnd.IntN(12))
	if err != nil {
		return err
	}
	l := plan.Layout
	var model []Route // all ranges, in key order
	for _, r := range l.All {
		model = append(model, r)
	}
	kv := newMemKV()
	put := func(key, value []byte) {
		kv.m[string(key)] = shard.Value{Bytes: value, Version: shard.Version{Lineage: 1, Index: 1}}
	}
	put(layoutKey(1), l.Encode(nil))
	next := raft.ShardID(100)
	record := func(r Route) { put(routeKey(1, r.Desc.End), r.Encode(nil)) }
	for range rnd.IntN(8) {
		i := rnd.IntN(len(model))
		switch r := model[i]; rnd.IntN(3) {
		case 0: // another leader
			model[i].Leader, model[i].Term = 9, r.Term+2
			record(model[i])
		case 1: // split
			mid := append(bytes.Clone(r.Desc.Start), 0, byte(seed), byte(rnd.IntN(256)))
			if bytes.Compare(mid, r.Desc.Start) <= 0 || len(r.Desc.End) > 0 && bytes.Compare(mid, r.Desc.End) >= 0 {
				continue
			}
			left, right := r, r
			left.Desc.End, left.Desc.Version = mid, r.Desc.Version+1
			right.Desc.Start, right.Desc.Version, right.Desc.Shard = mid, r.Desc.Version+1, next
			next++
			model = slices.Replace(model, i, i+1, left, right)
			record(left)
			record(right)
		case 2: // merge with the next one
			if i+1 == len(model) {
				continue
			}
			delete(kv.m, string(routeKey(1, r.Desc.End)))
			r.Desc.End, r.Desc.Version = model[i+1].Desc.End, max(r.Desc.Version, model[i+1].Desc.Version)+1
			model = slices.Replace(model, i, i+2, r)
			record(r)
		}
	}
	same := func(what string, got, want []Route) error {
		if fmt.Sprintf("%+v", got) != fmt.Sprintf("%+v", want) {
			return fmt.Errorf("seed %d, %s:\n%+v\nwant\n%+v", seed, what, got, want)
		}
		return nil
	}
	cached := &keepingKV{memKV: kv}
	for range 20 {
		key := []byte{byte(rnd.IntN(256)), byte(rnd.IntN(256))}
		if rnd.IntN(3) == 0 {
			key = model[rnd.IntN(len(model))].Desc.Start
		}
		n := 1 + rnd.IntN(5)
		i := slices.IndexFunc(model, func(r Route) bool { return r.Desc.Contains(key) })
		got, err := LookupRange(ctx, cached, 1, key, n)
		if err == nil {
			err = same(fmt.Sprintf("%d ranges from %q", n, key), got, model[i:min(i+n, len(model))])
		}
		if err != nil {
			return err
		}
	}
	var all []Route
	for cursor := []byte(nil); ; {
		routes, nextPage, err := ListShards(ctx, cached, cursor, 1+rnd.IntN(4))
		if err != nil {
			return err
		}
		all = append(all, routes...)
		if cursor = nextPage; cursor == nil {
			break
		}
	}
	if err := same("the list", all, model); err != nil {
		return err
	}
	r := model[rnd.IntN(len(model))]
	if got, err := FindShard(ctx, cached, r.Desc.Shard); err != nil || got.Desc.Shard != r.Desc.Shard || !bytes.Equal(got.Desc.Start, r.Desc.Start) {
		return fmt.Errorf("seed %d: shard %d: %+v, %w", seed, r.Desc.Shard, got, err)
	}
	if _, err := FindShard(ctx, cached, 9999); !errors.Is(err, shard.ErrNotFound) {
		return fmt.Errorf("a shard that is not there: %w", err)
	}
	return nil
}

// Leaders and members of ranges that have no record yet: as they were dealt they need
// none, else they get one, and it wins from then on.
func TestLayoutUpdates(t *testing.T) {
	if err := leadersRun(); err != nil {
		t.Fatal(err)
	}
	ctx := context.Background()
	p := layoutPlan(t, 3, 3, nil, 100)
	kv := newMemKV()
	nodes := []NodeInfo{{ID: 1, Addr: "a:1"}, {ID: 2, Addr: "b:1"}, {ID: 3, Addr: "c:1"}}
	if err := Bootstrap(ctx, kv, Cluster{ID: [16]byte{1}}, nodes, p); err != nil {
		t.Fatal(err)
	}
	before := len(kv.m)
	if before > 10 {
		t.Fatalf("%d records for 100 shards", before)
	}
	if id, err := AllocShards(ctx, kv, 1); err != nil || id != 102 {
		t.Fatalf("the next shard gets %d, %v", id, err)
	}
	var ups []LeaderUpdate
	for _, r := range p.Layout.All {
		ups = append(ups, LeaderUpdate{Keyspace: 1, End: r.Desc.End, Shard: r.Desc.Shard, Node: r.Leader, Term: 3})
	}
	if n, err := UpdateLeaders(ctx, kv, ups); n != 0 || err != nil || len(kv.m) != before {
		t.Fatalf("leaders as dealt: %d changed, %v, %d records", n, err, len(kv.m)-before)
	}
	other := ups[42]
	other.Node, other.Term = other.Node%3+1, 4
	if n, err := UpdateLeaders(ctx, kv, []LeaderUpdate{other, ups[43]}); n != 1 || err != nil || len(kv.m) != before+1 {
		t.Fatalf("another leader: %d changed, %v", n, err)
	}
	back := ups[42]
	back.Term = 5
	if n, err := UpdateLeaders(ctx, kv, []LeaderUpdate{back}); n != 1 || err != nil {
		t.Fatalf("back to the one it was dealt to: %d changed, %v", n, err)
	}
	if r, err := FindShard(ctx, kv, back.Shard); err != nil || r.Leader != back.Node || r.Term != 5 {
		t.Fatalf("%+v, %v", r, err)
	}
	seventh := p.Layout.Range(7).Desc
	d := seventh.Clone()
	if news, err := PutDescriptor(ctx, kv, d); news || err != nil {
		t.Fatalf("the descriptor as it was made: %t, %v", news, err)
	}
	d.ConfVer++
	d.Replicas[2].Node = 9
	if news, err := PutDescriptor(ctx, kv, d); !news || err != nil {
		t.Fatalf("other members: %t, %v", news, err)
	}
	if r, err := FindShard(ctx, kv, d.Shard); err != nil || r.Desc.ConfVer != 2 || r.Leader != p.Layout.Range(7).Leader {
		t.Fatalf("%+v, %v", r, err)
	}
	if p.Layout.Range(7).Desc.Replicas[2].Node == 9 {
		t.Fatal("a clone shares its members with the layout")
	}
	d.Start = append(d.Start, 1)
	var arg *shard.ArgumentError
	if _, err := PutDescriptor(ctx, kv, d); !errors.As(err, &arg) {
		t.Fatalf("a range that begins elsewhere: %v", err)
	}
}

// leadersRun: a shard is led by another node than it was dealt to, and by that one again.
func leadersRun() error {
	ctx := context.Background()
	p, err := NewLayoutPlan([]raft.NodeID{1, 2, 3}, 3, 1, nil, 10)
	if err != nil {
		return err
	}
	kv := newMemKV()
	if err := Bootstrap(ctx, kv, Cluster{ID: [16]byte{1}}, nil, p); err != nil {
		return err
	}
	r := p.Layout.Range(4)
	for i, node := range []raft.NodeID{r.Leader, r.Leader%3 + 1, r.Leader, r.Leader} {
		u := LeaderUpdate{Keyspace: 1, End: r.Desc.End, Shard: r.Desc.Shard, Node: node, Term: raft.Term(i + 1)}
		if _, err := UpdateLeaders(ctx, kv, []LeaderUpdate{u}); err != nil {
			return err
		}
		got, err := FindShard(ctx, kv, r.Desc.Shard)
		if err != nil {
			return err
		}
		if got.Leader != node || i > 0 && got.Term != u.Term {
			return fmt.Errorf("node %d leads in term %d, the catalog says %d in term %d", node, u.Term, got.Leader, got.Term)
		}
	}
	return nil
}

// BenchmarkLayoutLookup finds the range of a key among a million that have no record.
func BenchmarkLayoutLookup(b *testing.B) {
	l := layoutPlan(b, 3, 3, nil, 1_000_000).Layout
	keys := make([][]byte, 1024)
	rnd := rand.New(rand.NewPCG(1, 2))
	for i := range keys {
		keys[i] = fmt.Appendf(nil, "%016x", rnd.Uint64())
	}
	b.ReportAllocs()
	i := 0
	for b.Loop() {
		overlay(l, nil, keys[i%len(keys)], 1)
		i++
	}
}
