package catalog

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"slices"
	"sort"
	"testing"

	"github.com/flotillakv/flotilla/multiraft/raft"
	"github.com/flotillakv/flotilla/shard"
)

// memKV is keyspace 0 in memory. before, if set, runs ahead of each Txn, so
// that a test can slip in another writer.
type memKV struct {
	m      map[string]shard.Value
	index  raft.Index
	before func()
	txns   int // transactions
	writes int // keys they wrote
	fail   error
}

func newMemKV() *memKV { return &memKV{m: map[string]shard.Value{}} }

func (kv *memKV) Get(_ context.Context, key []byte) (shard.Value, error) {
	if v, ok := kv.m[string(key)]; ok {
		return v, nil
	}
	return shard.Value{}, shard.ErrNotFound
}

func (kv *memKV) Scan(_ context.Context, start, end []byte, limit int) ([]shard.Pair, error) {
	if err := shard.CheckBounds(start, end); err != nil {
		return nil, err
	}
	var out []shard.Pair
	for k, v := range kv.m {
		if k >= string(start) && (len(end) == 0 || k < string(end)) {
			out = append(out, shard.Pair{Key: []byte(k), Value: v.Bytes, Version: v.Version})
		}
	}
	sort.Slice(out, func(i, j int) bool { return bytes.Compare(out[i].Key, out[j].Key) < 0 })
	if limit > 0 && len(out) > limit {
		out = out[:limit]
	}
	return out, nil
}

func (kv *memKV) Txn(_ context.Context, t shard.Txn) (shard.TxnResult, error) {
	if _, err := t.Command(); err != nil {
		return shard.TxnResult{}, err
	}
	if f := kv.before; f != nil {
		kv.before = nil
		f()
	}
	if kv.fail != nil {
		return shard.TxnResult{}, kv.fail
	}
	kv.txns++
	for _, c := range t.If {
		v, ok := kv.m[string(c.Key)]
		if c.Kind == shard.KeyAbsent && ok || c.Kind == shard.KeyVersion && v.Version != c.Version {
			return shard.TxnResult{}, nil
		}
	}
	kv.index++
	res := shard.TxnResult{Succeeded: true}
	for _, o := range t.Then {
		if o.Kind == shard.OpGet {
			v, ok := kv.m[string(o.Key)]
			res.Gets = append(res.Gets, shard.TxnGet{Found: ok, Value: v})
			continue
		}
		kv.writes++
		kv.m[string(o.Key)] = shard.Value{Bytes: o.Value, Version: shard.Version{Lineage: 1, Index: kv.index}}
	}
	return res, nil
}

var testCluster = Cluster{ID: [16]byte{1, 2, 3}, CreatedAt: 1700000000e9, Replicas: 3}

func testNodes(n int) (ids []raft.NodeID, infos []NodeInfo) {
	for i := 1; i <= n; i++ {
		ids = append(ids, raft.NodeID(i))
		infos = append(infos, NodeInfo{ID: raft.NodeID(i), Addr: fmt.Sprintf("10.0.0.%d:7101", i), ClientAddr: fmt.Sprintf("10.0.0.%d:7100", i), JoinedAt: int64(i), Version: "v0.1"})
	}
	return ids, infos
}

// bootstrapped returns a catalog of 3 nodes with user shards 2 and on, split at
// the given keys.
func bootstrapped(t *testing.T, splits ...string) (*memKV, Plan) {
	t.Helper()
	ids, infos := testNodes(3)
	keys := make([][]byte, len(splits))
	for i, s := range splits {
		keys[i] = []byte(s)
	}
	p, err := NewPlan(ids, 0, 1, keys)
	if err != nil {
		t.Fatal(err)
	}
	kv := newMemKV()
	if err := Bootstrap(t.Context(), kv, testCluster, infos, p); err != nil {
		t.Fatal(err)
	}
	return kv, p
}

// TestBootstrap shows what a new cluster's catalog holds, that a second
// bootstrap writes nothing, and that another cluster's is refused.
func TestBootstrap(t *testing.T) {
	ctx := t.Context()
	empty := newMemKV()
	if _, err := GetCluster(ctx, empty); !errors.Is(err, ErrNoCluster) {
		t.Errorf("cluster record of an empty catalog: %v", err)
	}
	if _, err := RegisterNode(ctx, empty, NodeInfo{}); !errors.Is(err, ErrNoCluster) {
		t.Errorf("registering with an empty catalog: %v", err)
	}
	kv, p := bootstrapped(t, "g", "p")
	if c, err := GetCluster(ctx, kv); err != nil || c != testCluster {
		t.Errorf("cluster record %+v, %v", c, err)
	}
	_, infos := testNodes(3)
	if nodes, err := ListNodes(ctx, kv); err != nil || !slices.Equal(nodes, infos) {
		t.Errorf("nodes %+v, %v", nodes, err)
	}
	was := len(kv.m)
	if err := Bootstrap(ctx, kv, testCluster, infos, p); err != nil || len(kv.m) != was {
		t.Errorf("second bootstrap: %v, %d keys, had %d", err, len(kv.m), was)
	}
	other := testCluster
	other.ID[0]++
	if err := Bootstrap(ctx, kv, other, infos, p); !errors.Is(err, ErrOtherCluster) {
		t.Errorf("bootstrap of another cluster: %v", err)
	}
}

// TestBootstrapInterrupted stops a large bootstrap after its first transaction:
// the cluster is not there yet, and running it again completes it.
func TestBootstrapInterrupted(t *testing.T) {
	ctx := t.Context()
	ids, infos := testNodes(3)
	p, err := NewPlan(ids, 0, 1, SplitKeys(2*bootstrapChunk))
	if err != nil {
		t.Fatal(err)
	}
	kv := newMemKV()
	kv.before = func() { kv.before = func() { kv.fail = shard.ErrAmbiguous } }
	if err := Bootstrap(ctx, kv, testCluster, infos, p); !errors.Is(err, shard.ErrAmbiguous) {
		t.Fatalf("interrupted bootstrap: %v", err)
	}
	if _, err := GetCluster(ctx, kv); !errors.Is(err, ErrNoCluster) {
		t.Errorf("half a catalog says %v", err)
	}
	kv.fail = nil
	if err := Bootstrap(ctx, kv, testCluster, infos, p); err != nil {
		t.Fatal(err)
	}
	var got []raft.ShardID
	for cursor := []byte(nil); ; {
		routes, next, err := ListShards(ctx, kv, cursor, 1000)
		if err != nil {
			t.Fatal(err)
		}
		for _, r := range routes {
			got = append(got, r.Desc.Shard)
		}
		if cursor = next; cursor == nil {
			break
		}
	}
	if len(got) != len(p.Shards)+1 || got[0] != raft.MetaShard || !slices.IsSorted(got) {
		t.Errorf("%d shards listed, want %d in order", len(got), len(p.Shards)+1)
	}
}

// TestLookupRange looks up keys at, below and above boundaries, far too long
// keys, and keyspaces that do not exist.
func TestLookupRange(t *testing.T) {
	kv, _ := bootstrapped(t, "g", "g\x00", "p") // shards 2 [,g) 3 [g,g\0) 4 [g\0,p) 5 [p,)
	long := string(bytes.Repeat([]byte{'g'}, shard.MaxKeyBytes))
	tests := []struct {
		keyspace uint32
		key      string
		n        int
		want     []raft.ShardID
	}{
		{1, "", 1, []raft.ShardID{2}},
		{1, "f\xff\xff", 2, []raft.ShardID{2, 3}},
		{1, "g", 1, []raft.ShardID{3}},
		{1, "g\x00", 1, []raft.ShardID{4}},
		{1, "g\x00\x00", 9, []raft.ShardID{4, 5}},
		{1, long, 1, []raft.ShardID{4}},
		{1, "p", 0, []raft.ShardID{5}},
		{1, "\xff\xff", 1, []raft.ShardID{5}},
		{0, "route|", 9, []raft.ShardID{1}},
		{2, "a", 9, nil},
	}
	for _, tt := range tests {
		routes, err := LookupRange(t.Context(), kv, tt.keyspace, []byte(tt.key), tt.n)
		var got []raft.ShardID
		for _, r := range routes {
			got = append(got, r.Desc.Shard)
		}
		if err != nil || !slices.Equal(got, tt.want) {
			t.Errorf("lookup of %.20q in keyspace %d: %v, %v, want %v", tt.key, tt.keyspace, got, err, tt.want)
		}
	}
	if r, err := FindShard(t.Context(), kv, 4); err != nil || string(r.Desc.Start) != "g\x00" {
		t.Errorf("shard 4: %+v, %v", r, err)
	}
	if _, err := FindShard(t.Context(), kv, 77); !errors.Is(err, shard.ErrNotFound) {
		t.Errorf("shard 77: %v", err)
	}
	descs, hints, err := Source{kv}.Lookup(t.Context(), 1, []byte("h"), 2)
	if err != nil || len(descs) != 2 || len(hints) != 2 || hints[1].Shard != 5 || hints[1].Node == 0 {
		t.Errorf("source: %v %v %v", descs, hints, err)
	}
	if nodes, err := (Source{kv}).Nodes(t.Context()); err != nil || len(nodes) != 3 {
		t.Errorf("source's nodes: %v %v", nodes, err)
	}
}

// TestUpdateLeaders shows that recorded leaders move forward by term only, also
// when a newer report slips in between reading and writing.
func TestUpdateLeaders(t *testing.T) {
	ctx := t.Context()
	kv, _ := bootstrapped(t, "m")
	leaderOf := func(key string) (raft.NodeID, raft.Term) {
		r, err := LookupRange(ctx, kv, 1, []byte(key), 1)
		if err != nil {
			t.Fatal(err)
		}
		return r[0].Leader, r[0].Term
	}
	update := func(ups ...LeaderUpdate) int {
		t.Helper()
		n, err := UpdateLeaders(ctx, kv, ups)
		if err != nil {
			t.Fatal(err)
		}
		return n
	}
	up := func(id raft.ShardID, node raft.NodeID, term raft.Term) LeaderUpdate {
		u := LeaderUpdate{Keyspace: 1, End: []byte("m"), Shard: id, Node: node, Term: term}
		if id == 3 {
			u.End = nil
		}
		return u
	}
	if n := update(up(2, 2, 5), up(3, 3, 1)); n != 2 {
		t.Errorf("two first reports changed %d records", n)
	}
	writes := kv.writes
	if n := update(up(2, 1, 4), up(2, 3, 5), up(3, 0, 9), up(9, 1, 99)); n != 0 || kv.writes != writes {
		t.Errorf("old news changed %d records and wrote %d", n, kv.writes-writes)
	}
	if n := update(LeaderUpdate{Keyspace: 1, End: []byte("nowhere"), Shard: 2, Node: 1, Term: 99}); n != 0 {
		t.Error("a range that is not there was updated")
	}
	kv.before = func() { kv.before = func() { update(up(2, 1, 8)) } } // between reading and writing
	if n := update(up(2, 3, 7), up(3, 1, 2)); n != 1 {
		t.Errorf("%d records changed, want the one without newer news", n)
	}
	if node, term := leaderOf("a"); node != 1 || term != 8 {
		t.Errorf("leader of shard 2: node %d in term %d went backwards", node, term)
	}
	if node, term := leaderOf("z"); node != 1 || term != 2 {
		t.Errorf("leader of shard 3: node %d in term %d", node, term)
	}
	kv.fail = shard.ErrAmbiguous
	if _, err := UpdateLeaders(ctx, kv, []LeaderUpdate{up(2, 2, 99)}); !errors.Is(err, shard.ErrAmbiguous) {
		t.Errorf("ambiguous update: %v", err)
	}
}

// TestUpdateManyLeaders records the leaders of 300 shards, each reported twice:
// a few transactions, whatever their number.
func TestUpdateManyLeaders(t *testing.T) {
	ctx := t.Context()
	ids, infos := testNodes(3)
	p, err := NewPlan(ids, 0, 1, SplitKeys(300))
	if err != nil {
		t.Fatal(err)
	}
	kv := newMemKV()
	if err := Bootstrap(ctx, kv, testCluster, infos, p); err != nil {
		t.Fatal(err)
	}
	var ups []LeaderUpdate
	for _, r := range p.Shards {
		for _, term := range []raft.Term{7, 3} {
			ups = append(ups, LeaderUpdate{Keyspace: 1, End: r.Desc.End, Shard: r.Desc.Shard, Node: raft.NodeID(term), Term: term})
		}
	}
	txns := kv.txns
	if n, err := UpdateLeaders(ctx, kv, ups); n != 300 || err != nil || kv.txns-txns > 10 {
		t.Errorf("%d records, %v, %d transactions", n, err, kv.txns-txns)
	}
	routes, err := LookupRange(ctx, kv, 1, nil, 300)
	if err != nil || len(routes) != 300 {
		t.Fatalf("%d routes, %v", len(routes), err)
	}
	for _, r := range routes {
		if r.Leader != 7 || r.Term != 7 {
			t.Fatalf("shard %d: leader %d in term %d", r.Desc.Shard, r.Leader, r.Term)
		}
	}
}

// TestPutDescriptor shows that a recorded descriptor never goes back, that its
// leader stays, and that ranges cannot be made to overlap.
func TestPutDescriptor(t *testing.T) {
	ctx := t.Context()
	kv, p := bootstrapped(t, "m")
	if _, err := UpdateLeaders(ctx, kv, []LeaderUpdate{{Keyspace: 1, End: []byte("m"), Shard: 2, Node: 2, Term: 5}}); err != nil {
		t.Fatal(err)
	}
	with := func(f func(*raft.Descriptor)) raft.Descriptor {
		d := p.Shards[0].Desc.Clone()
		f(&d)
		return d
	}
	tests := []struct {
		name string
		d    raft.Descriptor
		news bool
		bad  bool
	}{
		{"the same", with(func(d *raft.Descriptor) {}), false, false},
		{"newer configuration", with(func(d *raft.Descriptor) { d.ConfVer = 4 }), true, false},
		{"older configuration", with(func(d *raft.Descriptor) { d.ConfVer = 3 }), false, false},
		{"newer version", with(func(d *raft.Descriptor) { d.Version = 2 }), true, false},
		{"older version, newer configuration", with(func(d *raft.Descriptor) { d.ConfVer = 9 }), false, false},
		{"another shard of the same version", with(func(d *raft.Descriptor) { d.Shard, d.Version, d.ConfVer = 7, 2, 9 }), false, false},
		{"overlap", with(func(d *raft.Descriptor) { d.Start, d.Version = []byte("c"), 9 }), false, true},
		{"a new keyspace", with(func(d *raft.Descriptor) { d.Keyspace, d.Shard = 2, 8 }), true, false},
		{"a bound that is too long", with(func(d *raft.Descriptor) { d.End = make([]byte, MaxSplitKeyBytes+1) }), false, true},
	}
	for _, tt := range tests {
		news, err := PutDescriptor(ctx, kv, tt.d)
		if news != tt.news || (err != nil) != tt.bad {
			t.Errorf("%s: news %v, %v", tt.name, news, err)
		}
	}
	kv.before = func() {
		if _, err := PutDescriptor(ctx, kv, with(func(d *raft.Descriptor) { d.Version = 9 })); err != nil {
			t.Error(err)
		}
	}
	if news, err := PutDescriptor(ctx, kv, with(func(d *raft.Descriptor) { d.Version = 8 })); news || err != nil {
		t.Errorf("a version that another writer overtook: news %v, %v", news, err)
	}
	r, err := LookupRange(ctx, kv, 1, []byte("a"), 1)
	if err != nil || r[0].Desc.Version != 9 || r[0].Leader != 2 || r[0].Term != 5 {
		t.Errorf("record %+v, %v", r, err)
	}
}

// TestRegisterNode shows that ids are given out once, that a known node may
// change its addresses, and that an id nobody gave out is refused.
func TestRegisterNode(t *testing.T) {
	ctx := t.Context()
	kv, _ := bootstrapped(t)
	kv.before = func() {
		if n, err := RegisterNode(ctx, kv, NodeInfo{Addr: "first:1"}); err != nil || n.ID != 4 {
			t.Errorf("the faster node: %+v, %v", n, err)
		}
	}
	n, err := RegisterNode(ctx, kv, NodeInfo{Addr: "second:1", JoinedAt: 55})
	if err != nil || n.ID != 5 {
		t.Fatalf("the slower node: %+v, %v", n, err)
	}
	n.Addr, n.JoinedAt = "moved:1", 99
	if n, err = RegisterNode(ctx, kv, n); err != nil || n.Addr != "moved:1" || n.JoinedAt != 55 {
		t.Errorf("after it moved: %+v, %v", n, err)
	}
	txns := kv.txns
	if again, err := RegisterNode(ctx, kv, n); err != nil || again != n || kv.txns != txns {
		t.Errorf("nothing new: %+v, %v, %d transactions", again, err, kv.txns-txns)
	}
	if got, err := GetNode(ctx, kv, 5); err != nil || got != n {
		t.Errorf("read back: %+v, %v", got, err)
	}
	var next *NextNodeError
	if _, err := RegisterNext(ctx, kv, NodeInfo{Addr: "third:1"}, 9); !errors.As(err, &next) || next.Next != 6 || next.Expected != 9 {
		t.Errorf("a node that can only be 9: %v", err)
	}
	if n, err := RegisterNext(ctx, kv, NodeInfo{Addr: "third:1"}, 6); err != nil || n.ID != 6 {
		t.Errorf("a node that can only be 6: %+v, %v", n, err)
	}
	if _, err := RegisterNode(ctx, kv, NodeInfo{ID: 77}); !errors.Is(err, shard.ErrNotFound) {
		t.Errorf("an id that was never given out: %v", err)
	}
}

// TestAllocShards shows that blocks of ids do not overlap, under a race too.
func TestAllocShards(t *testing.T) {
	ctx := t.Context()
	kv, _ := bootstrapped(t, "m") // shards 1, 2, 3
	var other raft.ShardID
	kv.before = func() {
		var err error
		if other, err = AllocShards(ctx, kv, 10); err != nil {
			t.Error(err)
		}
	}
	first, err := AllocShards(ctx, kv, 5)
	if err != nil || other != 4 || first != 14 {
		t.Errorf("blocks at %d and %d, %v", other, first, err)
	}
	var arg *shard.ArgumentError
	if _, err := AllocShards(ctx, kv, 0); !errors.As(err, &arg) {
		t.Errorf("no ids: %v", err)
	}
}

// TestContention shows that a writer that is always overtaken ends with a
// definite error.
func TestContention(t *testing.T) {
	ctx := t.Context()
	kv, _ := bootstrapped(t)
	var overtake func()
	overtake = func() {
		v := kv.m[nextShardKey]
		kv.index++
		v.Version.Index = kv.index
		kv.m[nextShardKey] = v
		kv.before = overtake
	}
	kv.before = overtake
	_, err := AllocShards(ctx, kv, 1)
	var unavailable *shard.UnavailableError
	if !errors.As(err, &unavailable) || shard.OutcomeOf(err) != shard.NotApplied {
		t.Errorf("got %v", err)
	}
}

// TestCorruptRecords shows that a damaged record is an error, not a panic and
// not a wrong answer.
func TestCorruptRecords(t *testing.T) {
	ctx := t.Context()
	for key := range map[string]bool{clusterKey: true, nextNodeKey: true, nextShardKey: true, string(nodeKey(1)): true, string(routeKey(1, nil)): true} {
		kv, _ := bootstrapped(t)
		v := kv.m[key]
		v.Bytes = bytes.Clone(v.Bytes)
		v.Bytes[len(v.Bytes)/2] ^= 4
		kv.m[key] = v
		_, e1 := GetCluster(ctx, kv)
		_, e2 := RegisterNode(ctx, kv, NodeInfo{})
		_, e3 := AllocShards(ctx, kv, 1)
		_, e4 := ListNodes(ctx, kv)
		_, _, e5 := ListShards(ctx, kv, nil, 10)
		_, e6 := UpdateLeaders(ctx, kv, []LeaderUpdate{{Keyspace: 1, Shard: 2, Node: 1, Term: 9}})
		bad := 0
		for _, err := range []error{e1, e2, e3, e4, e5, e6} {
			if errors.Is(err, ErrCorrupt) {
				bad++
			}
		}
		if bad == 0 {
			t.Errorf("nothing noticed that %q was damaged", key)
		}
	}
}
