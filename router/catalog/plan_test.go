package catalog

import (
	"bytes"
	"errors"
	"reflect"
	"slices"
	"testing"

	"github.com/flotillakv/flotilla/internal/fuzzing"
	"github.com/flotillakv/flotilla/multiraft/raft"
	"github.com/flotillakv/flotilla/shard"
)

// checkBalance verifies a plan: ranges without hole or overlap, the right
// number of distinct voters, leaders among them, and both dealt evenly.
func checkBalance(t testing.TB, p Plan, nodes []raft.NodeID, replicas int) {
	t.Helper()
	voters, leads := map[raft.NodeID]int{}, map[raft.NodeID]int{}
	var end []byte
	for i, r := range append([]Route{p.Meta}, p.Shards...) {
		d := &r.Desc
		if d.Shard != raft.ShardID(i+1) || d.Version != 1 || d.ConfVer != 1 || len(d.Replicas) != replicas || d.NextReplica != raft.ReplicaID(replicas+1) {
			t.Fatalf("shard %d: %+v", i+1, d)
		}
		if i > 0 && (d.Keyspace != 1 || !bytes.Equal(d.Start, end)) {
			t.Fatalf("shard %d starts at %q, the one before ends at %q", d.Shard, d.Start, end)
		}
		end = d.End
		for j, rep := range d.Replicas {
			voters[rep.Node]++
			if rep.Role != raft.Voter || rep.ID != raft.ReplicaID(j+1) || j > 0 && rep.Node <= d.Replicas[j-1].Node {
				t.Fatalf("shard %d: replicas %+v", d.Shard, d.Replicas)
			}
		}
		if _, ok := d.ReplicaOn(r.Leader); !ok || r.Term != 0 {
			t.Fatalf("shard %d: leader %d in term %d", d.Shard, r.Leader, r.Term)
		}
		leads[r.Leader]++
	}
	if len(end) > 0 {
		t.Fatalf("the last shard ends at %q", end)
	}
	for name, counts := range map[string]map[raft.NodeID]int{"replicas": voters, "leaders": leads} {
		lo, hi := 1<<30, 0
		for _, n := range nodes {
			lo, hi = min(lo, counts[n]), max(hi, counts[n])
		}
		if hi-lo > 1 {
			t.Fatalf("%s from %d to %d per node: %v", name, lo, hi, counts)
		}
	}
}

// TestPlanBalance deals many shapes of clusters.
func TestPlanBalance(t *testing.T) {
	for n := 1; n <= 12; n++ {
		ids, _ := testNodes(n)
		for _, shards := range []int{1, 2, 3, 5, 47, 48, 64, 200} {
			for wanted := range 6 {
				p, err := NewPlan(ids, wanted, 1, SplitKeys(shards))
				if err != nil {
					t.Fatal(err)
				}
				if len(p.Shards) != shards {
					t.Fatalf("%d shards, want %d", len(p.Shards), shards)
				}
				checkBalance(t, p, ids, Replicas(wanted, n))
			}
		}
	}
}

// TestPlanIsDeterministic shows that the order in which the nodes are named
// changes nothing.
func TestPlanIsDeterministic(t *testing.T) {
	a, err1 := NewPlan([]raft.NodeID{3, 9, 1, 7}, 3, 1, SplitKeys(10))
	b, err2 := NewPlan([]raft.NodeID{9, 7, 1, 3}, 3, 1, SplitKeys(10))
	if err1 != nil || err2 != nil || !reflect.DeepEqual(a, b) {
		t.Errorf("%v %v\n%+v\n%+v", err1, err2, a, b)
	}
}

// TestPlanRefuses goes through the arguments that make no plan.
func TestPlanRefuses(t *testing.T) {
	keys := func(s ...string) (k [][]byte) {
		for _, x := range s {
			k = append(k, []byte(x))
		}
		return k
	}
	ok := []raft.NodeID{1, 2, 3}
	tests := []struct {
		name     string
		nodes    []raft.NodeID
		keyspace uint32
		splits   [][]byte
	}{
		{"no nodes", nil, 1, nil},
		{"node zero", []raft.NodeID{0, 1}, 1, nil},
		{"a node twice", []raft.NodeID{2, 1, 2}, 1, nil},
		{"the catalog's keyspace", ok, 0, nil},
		{"an empty split key", ok, 1, keys("")},
		{"descending split keys", ok, 1, keys("b", "a")},
		{"equal split keys", ok, 1, keys("a", "a")},
		{"a split key that is too long", ok, 1, [][]byte{make([]byte, MaxSplitKeyBytes+1)}},
	}
	for _, tt := range tests {
		_, err := NewPlan(tt.nodes, 3, tt.keyspace, tt.splits)
		var arg *shard.ArgumentError
		var limit *shard.LimitError
		if !errors.As(err, &arg) && !errors.As(err, &limit) {
			t.Errorf("%s: %v", tt.name, err)
		}
	}
}

// FuzzPlan deals arbitrary clusters, split keys made from arbitrary bytes.
func FuzzPlan(tf *testing.F) {
	f := fuzzing.New(tf)
	f.Add(uint8(3), uint8(3), []byte("gpz"))
	f.Add(uint8(5), uint8(0), []byte{0, 0, 1, 255})
	f.Fuzz(func(t testing.TB, n, replicas uint8, raw []byte) {
		n = n%20 + 1
		ids, _ := testNodes(int(n))
		var splits [][]byte
		for len(raw) > 0 {
			k := min(len(raw), 1+int(raw[0])%4)
			splits, raw = append(splits, raw[:k]), raw[k:]
		}
		slices.SortFunc(splits, bytes.Compare)
		splits = slices.CompactFunc(splits, bytes.Equal)
		p, err := NewPlan(ids, int(replicas), 1, splits)
		if err != nil {
			t.Fatal(err)
		}
		checkBalance(t, p, ids, Replicas(int(replicas), int(n)))
	})
}

// TestSplitKeys shows that the keys ascend for any number of shards, that a
// large part of the shards lies among text and some among everything else, and
// holds the keys of a common number in place.
func TestSplitKeys(t *testing.T) {
	for _, n := range []int{-1, 0, 1} {
		if k := SplitKeys(n); k != nil {
			t.Errorf("%d shards: keys %q", n, k)
		}
	}
	for _, n := range []int{2, 3, 4, 7, 16, 48, 64, 257, 1000, 4096, 65536, 300_000} {
		keys := SplitKeys(n)
		if len(keys) != n-1 {
			t.Fatalf("%d shards: %d keys", n, len(keys))
		}
		text := 0
		for i, k := range keys {
			if len(k) == 0 || len(k) > 8 || i > 0 && bytes.Compare(keys[i-1], k) >= 0 {
				t.Fatalf("%d shards: key %d is %q after %q", n, i, k, keys[max(i-1, 0)])
			}
			if c := k[0]; '0' <= c && c <= '9' || 'a' <= c && c <= 'z' || 'A' <= c && c <= 'Z' {
				text++
			}
		}
		if n >= 48 && (text < n*6/10 || text > n*3/4) {
			t.Errorf("%d of %d shards are for text", text, n)
		}
	}
	want := []string{"3", "C", "V", "g", "p", "y", "\xb6"}
	for i, k := range SplitKeys(8) {
		if string(k) != want[i] {
			t.Errorf("8 shards: key %d is %q, want %q", i, k, want[i])
		}
	}
}
