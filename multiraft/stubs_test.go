package multiraft

import (
	"math/rand/v2"
	"sync"
	"testing"
	"unsafe"

	"github.com/flotillakv/flotilla/multiraft/raft"
)

func threeMembers(k kind, epoch raft.Epoch) *ground {
	g := &ground{kind: k, flag: true}
	for n := raft.NodeID(1); n <= 3; n++ {
		g.members = append(g.members, raft.NapMember{Node: n, ID: raft.ReplicaID(n), Role: raft.Voter, Epoch: epoch})
	}
	return g
}

// TestStubs holds the stubs of a loop against a map, over random puts and removals.
func TestStubs(t *testing.T) {
	rng := rand.New(rand.NewPCG(3, 4))
	var s stubs
	want := map[raft.ShardID]stub{}
	epochs := map[raft.ShardID]raft.Epoch{}
	for i := range 60_000 {
		id := raft.ShardID(1 + rng.Uint64N(9000))
		if _, ok := want[id]; ok && rng.IntN(3) > 0 {
			s.remove(id)
			delete(want, id)
			delete(epochs, id)
		} else if !ok {
			e := raft.Epoch(1 + rng.IntN(5))
			st := stub{shard: id, last: raft.Index(i), gen: uint64(i), term: uint32(i), nap: uint8(i)}
			s.put(st, threeMembers(kindLeader, e))
			want[id], epochs[id] = st, e
		} else {
			s.remove(id + 9000) // not there
		}
	}
	if s.count() != len(want) || len(want) < 1000 {
		t.Fatalf("%d stubs, want %d", s.count(), len(want))
	}
	for id := raft.ShardID(1); id <= 9000; id++ {
		st, g, ok := s.get(id)
		w, there := want[id]
		if ok != there {
			t.Fatalf("shard %d: found %v, want %v", id, ok, there)
		}
		if st.ground = 0; ok && (st != w || g.members[2].Epoch != epochs[id] || len(g.lease.Voters) != 3) {
			t.Fatalf("shard %d: %+v on %+v, want %+v", id, st, g, w)
		}
	}
	if n := len(s.grounds) - len(s.free); n > 5 || len(s.byKey) != n {
		t.Fatalf("%d grounds, %d by key, want at most 5", n, len(s.byKey))
	}
	for id := range want {
		s.remove(id)
	}
	if s.count() != 0 || len(s.byKey) != 0 || len(s.free) != len(s.grounds) {
		t.Fatalf("%d stubs, %d grounds left", s.count(), len(s.byKey))
	}
}

// TestStubBytes bounds what a sleeping replica costs: 64 bytes of heap, the index
// included, and nothing for the garbage collector to look at.
func TestStubBytes(t *testing.T) {
	if n := unsafe.Sizeof(stub{}); n != 40 {
		t.Fatalf("a stub has %d bytes", n)
	}
	const n = 200_000
	var s stubs
	g := threeMembers(kindFollower, 7)
	for id := raft.ShardID(1); id <= n; id++ {
		s.put(stub{shard: id}, g)
	}
	// What is allocated besides does not grow with them (what the collector says
	// of the heap is no measure here: tests before this one may still give back theirs).
	if len(s.grounds) != 1 || len(s.byKey) != 1 || cap(s.free) > 1 {
		t.Fatalf("%d grounds, %d keys, %d free", len(s.grounds), len(s.byKey), cap(s.free))
	}
	all := len(s.chunks)*int(unsafe.Sizeof(*s.chunks[0])) + cap(s.chunks)*8 + cap(s.index)*4
	bytes := float64(all) / n
	t.Logf("%.1f bytes for a stub", bytes)
	if bytes > 64 {
		t.Fatalf("a sleeping replica takes %.1f bytes", bytes)
	}
}

// TestReplicaTable: who is in the table is found while others come and go.
func TestReplicaTable(t *testing.T) {
	var tab replicaTable
	if tab.get(1) != nil || tab.all() != nil {
		t.Fatal("an empty table holds something")
	}
	stays := make([]*replica, 100)
	for i := range stays {
		stays[i] = &replica{shard: raft.ShardID(1000 + i)}
		tab.put(stays[i])
	}
	stop := make(chan struct{})
	var wg sync.WaitGroup
	for range 2 {
		wg.Go(func() {
			for i := 0; ; i++ {
				select {
				case <-stop:
					return
				default:
				}
				if r := stays[i%100]; tab.get(r.shard) != r {
					t.Errorf("shard %d is not found", r.shard)
					return
				}
			}
		})
	}
	rng := rand.New(rand.NewPCG(1, 2))
	in := map[raft.ShardID]*replica{}
	for range 20_000 {
		id := raft.ShardID(1 + rng.IntN(500))
		if r := in[id]; r != nil && rng.IntN(2) == 0 {
			tab.remove(r)
			delete(in, id)
		} else {
			in[id] = &replica{shard: id}
			tab.put(in[id])
		}
	}
	close(stop)
	wg.Wait()
	for id := raft.ShardID(1); id <= 500; id++ {
		if tab.get(id) != in[id] {
			t.Fatalf("shard %d: %p, want %p", id, tab.get(id), in[id])
		}
	}
	if n := len(tab.all()); n != len(in)+100 || tab.live != n {
		t.Fatalf("%d replicas of %d", n, len(in)+100)
	}
}
