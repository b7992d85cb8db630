package catalog_test

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"testing"

	"github.com/flotillakv/flotilla/multiraft/raft"
	"github.com/flotillakv/flotilla/router"
	"github.com/flotillakv/flotilla/router/catalog"
	"github.com/flotillakv/flotilla/shard"
)

// The two halves fit without knowing each other.
var (
	_ router.Source = catalog.Source{}
	_ catalog.KV    = router.Plain{}
)

// store is one node that leads every shard and keeps keyspaces in maps: enough
// to let a router read the catalog through itself.
type store struct {
	mu    sync.Mutex
	data  map[string]shard.Value // by keyspace and key
	asked map[raft.ShardID]int
	index raft.Index
}

func (s *store) Send(_ context.Context, node raft.NodeID, q *shard.Request) (*shard.Response, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.asked[q.Shard]++
	name := func(key []byte) string { return fmt.Sprintf("%d/%s", q.Keyspace, key) }
	resp := &shard.Response{}
	switch q.Kind {
	case shard.KindGet:
		if v, ok := s.data[name(q.Key)]; ok {
			resp.Found, resp.Value = true, &v
		}
	case shard.KindScan:
		for k := range s.data {
			var ks uint32
			var key string
			if n, _ := fmt.Sscanf(k, "%d/", &ks); n == 1 && ks == q.Keyspace {
				key = k[len(fmt.Sprintf("%d/", ks)):]
				if key >= string(q.Start) && (len(q.End) == 0 || key < string(q.End)) {
					resp.Pairs = append(resp.Pairs, shard.Pair{Key: []byte(key), Value: s.data[k].Bytes})
				}
			}
		}
		sortPairs(resp.Pairs)
		if q.Limit > 0 && len(resp.Pairs) > q.Limit {
			resp.More, resp.Resume = true, resp.Pairs[q.Limit].Key
			resp.Pairs = resp.Pairs[:q.Limit]
		}
	case shard.KindWrite:
		s.index++
		v, err := shard.DecodeTxn(q.Command.Body)
		if err != nil {
			return nil, err
		}
		resp.Txn = &shard.TxnResult{Succeeded: true}
		for c := range v.If.All() {
			have, ok := s.data[name(c.Key)]
			if c.Kind == shard.KeyAbsent && ok || c.Kind == shard.KeyVersion && have.Version != c.Version {
				resp.Txn.Succeeded = false
				return resp, nil
			}
		}
		for o := range v.Then.All() {
			s.data[name(o.Key)] = shard.Value{Bytes: append([]byte(nil), o.Value...), Version: shard.Version{Lineage: q.Shard, Index: s.index}}
		}
	}
	return resp, nil
}

func sortPairs(p []shard.Pair) {
	for i := range p {
		for j := i; j > 0 && string(p[j].Key) < string(p[j-1].Key); j-- {
			p[j], p[j-1] = p[j-1], p[j]
		}
	}
}

// TestRouterReadsCatalog bootstraps a cluster of 300 shards through a router
// that knows nothing but the meta shard's descriptor, and then finds keys of
// all shards through the catalog it wrote.
func TestRouterReadsCatalog(t *testing.T) {
	ctx := t.Context()
	p, err := catalog.NewPlan([]raft.NodeID{1}, 0, 1, catalog.SplitKeys(300))
	if err != nil {
		t.Fatal(err)
	}
	node := &store{data: map[string]shard.Value{}, asked: map[raft.ShardID]int{}}
	r := router.New(router.Options{Sender: node, Root: &p.Meta.Desc})
	defer r.Close()
	kv := r.Space(0).Plain()
	r.SetSource(catalog.Source{KV: kv})
	cluster := catalog.Cluster{ID: [16]byte{9}, Replicas: 1}
	if err := catalog.Bootstrap(ctx, kv, cluster, []catalog.NodeInfo{{ID: 1, Addr: "a:1"}}, p); err != nil {
		t.Fatal(err)
	}
	for _, route := range p.Shards {
		key := append([]byte(nil), route.Desc.Start...)
		if len(key) == 0 {
			key = []byte{0}
		}
		before := node.asked[route.Desc.Shard]
		if _, err := r.Space(1).Get(ctx, key, shard.Linearizable); !errors.Is(err, shard.ErrNotFound) {
			t.Fatal(err)
		}
		if node.asked[route.Desc.Shard] != before+1 {
			t.Fatalf("key %q did not go to shard %d", key, route.Desc.Shard)
		}
	}
	if n := r.Stats().Lookups; n != 3 { // 128 neighbours each
		t.Errorf("%d lookups for 300 shards", n)
	}
	if n := r.Table().Len(1); n != 300 {
		t.Errorf("%d ranges in the table", n)
	}
}

// ExampleNewPlan lays out three shards on three nodes.
func ExampleNewPlan() {
	p, err := catalog.NewPlan([]raft.NodeID{1, 2, 3}, 3, 1, [][]byte{[]byte("h"), []byte("q")})
	if err != nil {
		fmt.Println(err)
		return
	}
	for _, s := range p.Shards {
		fmt.Printf("shard %d [%s,%s) on %d nodes, led by node %d first\n", s.Desc.Shard, s.Desc.Start, s.Desc.End, len(s.Desc.Replicas), s.Leader)
	}
	// Output:
	// shard 2 [,h) on 3 nodes, led by node 2 first
	// shard 3 [h,q) on 3 nodes, led by node 3 first
	// shard 4 [q,) on 3 nodes, led by node 1 first
}
