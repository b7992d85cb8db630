package multiraft

import (
	"sync"
	"sync/atomic"

	"github.com/flotillakv/flotilla/multiraft/raft"
)

// replicaTable finds the replicas that are awake. Looking one up takes no lock; what
// was put in or taken out before the call is seen.
type replicaTable struct {
	mu   sync.Mutex // of writers
	cur  atomic.Pointer[[]atomic.Pointer[replica]]
	live int
	used int // live ones and graves
}

// grave stands where a replica was, so that others are found behind it.
var grave = &replica{}

func (t *replicaTable) get(s raft.ShardID) *replica {
	slots := t.cur.Load()
	if slots == nil {
		return nil
	}
	mask := uint64(len(*slots) - 1)
	for i := mix(uint64(s)) >> 16 & mask; ; i = (i + 1) & mask {
		r := (*slots)[i].Load()
		if r == nil {
			return nil
		}
		if r.shard == s && r != grave {
			return r
		}
	}
}

// put adds r, in the place of another one of its shard if there is one.
func (t *replicaTable) put(r *replica) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if slots := t.cur.Load(); slots == nil || 4*(t.used+1) > 3*len(*slots) {
		t.rebuild()
	}
	slots := *t.cur.Load()
	mask := uint64(len(slots) - 1)
	for i := mix(uint64(r.shard)) >> 16 & mask; ; i = (i + 1) & mask {
		switch o := slots[i].Load(); {
		case o == nil:
			t.live++
			t.used++
		case o == grave || o.shard != r.shard:
			continue // a grave is not filled: r may stand behind it
		}
		slots[i].Store(r)
		return
	}
}

// remove takes r out, if it is the one of its shard.
func (t *replicaTable) remove(r *replica) {
	t.mu.Lock()
	defer t.mu.Unlock()
	slots := t.cur.Load()
	if slots == nil {
		return
	}
	mask := uint64(len(*slots) - 1)
	for i := mix(uint64(r.shard)) >> 16 & mask; ; i = (i + 1) & mask {
		switch o := (*slots)[i].Load(); o {
		case nil:
			return
		case r:
			(*slots)[i].Store(grave)
			t.live--
			return
		}
	}
}

// rebuild makes a table without graves that is at most three eighths full.
func (t *replicaTable) rebuild() {
	n := 64
	for 8*(t.live+1) > 3*n {
		n *= 2
	}
	slots := make([]atomic.Pointer[replica], n)
	mask := uint64(n - 1)
	for _, r := range t.all() {
		i := mix(uint64(r.shard)) >> 16 & mask
		for slots[i].Load() != nil {
			i = (i + 1) & mask
		}
		slots[i].Store(r)
	}
	t.cur.Store(&slots)
	t.used = t.live
}

// shed gives back memory that is not in use.
func (t *replicaTable) shed() {
	t.mu.Lock()
	defer t.mu.Unlock()
	if slots := t.cur.Load(); slots != nil && len(*slots) > 64 && 16*t.live < len(*slots) {
		t.rebuild()
	}
}

// count returns how many replicas are awake.
func (t *replicaTable) count() int {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.live
}

// all returns the replicas that are awake, in no order.
func (t *replicaTable) all() []*replica {
	slots := t.cur.Load()
	if slots == nil {
		return nil
	}
	var out []*replica
	for i := range *slots {
		if r := (*slots)[i].Load(); r != nil && r != grave {
			out = append(out, r)
		}
	}
	return out
}
