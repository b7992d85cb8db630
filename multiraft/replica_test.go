package multiraft

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"

	"github.com/flotillakv/flotilla/multiraft/raft"
)

// TestWaitersOfSeveralTerms: a replica that led in term 1 and leads again in
// term 3 waits at index 10 for an entry of term 1 and at lower indexes for
// entries of term 3. Each learns its own fate: the entry applied at its index.
func TestWaitersOfSeveralTerms(t *testing.T) {
	r := &replica{loop: &loop{h: &Host{}}}
	r.loop.h.pending.Store(6)
	var log []string
	wait := func(term raft.Term, index raft.Index, name string) {
		r.await(pendingEntry{mark: raft.LogMark{Term: term, Index: index}, bytes: 1, dones: []Waiter{
			ProposeFunc(func(_ []byte, _ raft.Index, _ uint32, err error) {
				what := name + " applied"
				if errors.Is(err, ErrDropped) {
					what = name + " dropped"
				} else if err != nil {
					what = name + " " + err.Error()
				}
				log = append(log, what)
			})}})
	}
	apply := func(term raft.Term, index raft.Index) {
		var c completions
		for _, d := range r.takeWaiters(raft.Entry{Index: index, Term: term}, &c) {
			c.propose(d, nil, index, 0, nil)
		}
		c.flush()
	}
	wait(1, 9, "a")
	wait(1, 10, "b")
	wait(3, 8, "c")
	wait(3, 9, "d")
	wait(3, 10, "e")
	apply(1, 7)
	apply(3, 8)
	apply(3, 9)
	apply(3, 10)
	if want := []string{"a dropped", "b dropped", "c applied", "d applied", "e applied"}; !slices.Equal(log, want) {
		t.Fatalf("fates: %q", log)
	}
	if len(r.waiting) != 0 || r.mixed {
		t.Fatalf("%d still wait, mixed %t", len(r.waiting), r.mixed)
	}
	wait(5, 11, "f")
	var c completions
	r.passOver(20, 9, &c)
	if len(c.props) != 1 || !errors.Is(c.props[0].err, ErrAmbiguous) {
		t.Fatalf("a snapshot went over it: %v", c.props)
	}
	if n := r.loop.h.pending.Load(); n != 0 {
		t.Fatalf("%d bytes still counted", n)
	}
}

// cutWaiter: an entry of a leader that lost its place is cut off, and nothing follows at
// its index, or a snapshot comes that ends before it. As soon as one of the next term is
// applied, who proposed it is told that it will never be.
func cutWaiter(*testing.T) error {
	for _, how := range []string{"an entry", "a snapshot"} {
		r := &replica{loop: &loop{h: &Host{}}}
		r.loop.h.pending.Store(2)
		for i := range raft.Index(2) {
			r.await(pendingEntry{mark: raft.LogMark{Term: 1, Index: 3 + i}, bytes: 1, dones: []Waiter{ProposeFunc(func([]byte, raft.Index, uint32, error) {})}})
		}
		var c completions
		if r.takeWaiters(raft.Entry{Index: 1, Term: 1}, &c); len(c.props) != 0 {
			return errors.New("told before anything is known")
		}
		if how == "an entry" {
			r.takeWaiters(raft.Entry{Index: 2, Term: 2}, &c)
		} else {
			r.passOver(2, 2, &c)
		}
		if len(c.props) != 2 || !errors.Is(c.props[0].err, ErrDropped) || !errors.Is(c.props[1].err, ErrDropped) || len(r.waiting) != 0 || r.loop.h.pending.Load() != 0 {
			return fmt.Errorf("by %s: %d of 2 were told, %d wait: %+v", how, len(c.props), len(r.waiting), c.props)
		}
	}
	return nil
}

func TestCutWaiter(t *testing.T) {
	if err := cutWaiter(t); err != nil {
		t.Fatal(err)
	}
}

// TestTimerHeap compares the heap, which moves what is put off only when it comes
// to the top, with a list.
func TestTimerHeap(t *testing.T) {
	rng := rand.New(rand.NewPCG(1, 2))
	var h timerHeap
	rs := make([]*replica, 40)
	for i := range rs {
		rs[i] = &replica{heapPos: -1}
	}
	if h.first() != nil {
		t.Fatal("an empty heap has a first one")
	}
	for n := range 20000 {
		r := rs[rng.IntN(len(rs))]
		switch x := rng.IntN(10); {
		case x == 0:
			h.remove(r)
		default:
			d := raft.Time(rng.IntN(1000))
			if x == 1 {
				d = raft.Never
			}
			h.set(r, d)
			if r.dueAt != d {
				t.Fatalf("step %d: due at %d, want %d", n, r.dueAt, d)
			}
		}
		if rng.IntN(3) > 0 {
			continue // several moves between two looks
		}
		var want *replica
		in := 0
		for _, r := range rs {
			if r.heapPos >= 0 {
				in++
				if h[r.heapPos] != r {
					t.Fatalf("step %d: another one is at %d", n, r.heapPos)
				}
				if want == nil || r.dueAt < want.dueAt {
					want = r
				}
			}
		}
		if in != len(h) {
			t.Fatalf("step %d: %d in the heap, want %d", n, len(h), in)
		}
		if got := h.first(); (got == nil) != (want == nil) || got != nil && (got.dueAt != want.dueAt || h[0] != got) {
			t.Fatalf("step %d: the first is due at %d, want %d", n, got.dueAt, want.dueAt)
		}
	}
}
