package raft

import (
	"reflect"
	"testing"
)

// TestSpares: a core that is made of the memory of another one has nothing of it, and
// takes none of its own.
func TestSpares(t *testing.T) {
	desc := testDesc(Voter, Voter, Voter)
	live := &fakeLive{}
	cfg := Config{Node: 2, Liveness: live, Shared: new(Tuning)}
	*cfg.Shared = Tuning{}.WithDefaults()
	st := State{Desc: desc}
	made := func(s *Spares) *Core {
		c := cfg
		c.Spares = s
		core, err := NewCore(c, st, 5)
		if err != nil {
			t.Fatal(err)
		}
		return core
	}
	var s Spares
	used := made(&s)
	var o Out
	used.peers[0].behind, used.peers[1].inflight = &behind{lost: 3}, &inflight{size: 1}
	used.own().drops = []DropTask{{Shard: 1}}
	used.Step(9, &Msg{Type: MsgVote, Shard: desc.Shard, From: 1, To: 2, FromReplica: 1, ToReplica: 2, Term: 7, Index: 1, LogTerm: 1}, &o)
	s.Put(used)
	again := made(&s)
	if again != used || len(s.free) != 0 {
		t.Fatal("the memory was not used again")
	}
	if want := made(nil); !reflect.DeepEqual(again, want) {
		t.Errorf("something of the last one is left:\n%+v\n%+v", again, want)
	}
	if allocs := testing.AllocsPerRun(10, func() { s.Put(again); again = made(&s) }); allocs > 3 { // the descriptor
		t.Errorf("%v allocations", allocs)
	}
	for range maxSpares + 9 {
		s.Put(made(nil))
	}
	if len(s.free) != maxSpares {
		t.Errorf("%d are kept", len(s.free))
	}
}
