package explore

import (
	"fmt"
	"testing"
)

// jugs is a model whose state graph is known: jugs of 3 and 5 litres.
type jugs struct{ want uint8 }

type jugState struct{ three, five uint8 }

func (jugs) Initial() jugState              { return jugState{} }
func (jugs) Fingerprint(s *jugState) uint64 { return uint64(s.three)<<8 | uint64(s.five) }
func (jugs) Describe(s *jugState, act uint64) string {
	return fmt.Sprintf("%d/%d: %d", s.three, s.five, act)
}
func (m jugs) Successors(s *jugState, out []Succ[jugState]) []Succ[jugState] {
	pour := func(from, to, room uint8) uint8 { return min(from, room-to) }
	a, b := pour(s.three, s.five, 5), pour(s.five, s.three, 3)
	for i, t := range []jugState{{3, s.five}, {s.three, 5}, {0, s.five}, {s.three, 0}, {s.three - a, s.five + a}, {s.three + b, s.five - b}} {
		n := Succ[jugState]{Act: uint64(i), To: t}
		if t.five == m.want {
			n.Fail = &Failure{"J", "measured"}
		}
		out = append(out, n)
	}
	return out
}

// TestSearchVisitsAll shows that each order visits all states of a model whose
// number is known, and that a bound on the depth is told.
func TestSearchVisitsAll(t *testing.T) {
	for _, o := range []Options{{Order: Breadth}, {Order: Depth}, {Order: Depth, Depth: 200}, {Order: Walk, States: 16, Depth: 50}} {
		r := Run(jugs{want: 99}, o)
		if r.States != 16 || r.Exhausted == (o.Order == Walk) {
			t.Errorf("%+v: %v", o, r)
		}
	}
	for _, order := range []Order{Breadth, Depth} {
		if r := Run(jugs{want: 99}, Options{Order: order, Depth: 3}); r.Exhausted || r.States != 8 {
			t.Errorf("order %d, three steps: %v", order, r)
		}
	}
}

// TestCounterexample shows that breadth first finds the shortest way, that the
// way of every order replays, and that Shrink leaves nothing to be left out.
func TestCounterexample(t *testing.T) {
	for _, o := range []Options{{Order: Breadth}, {Order: Depth}, {Order: Walk, Seed: 3}} {
		m := jugs{want: 4}
		r := Run(m, o)
		if r.Failure == nil || len(r.Acts) != len(r.Steps) {
			t.Fatalf("%+v: %v", o, r)
		}
		if o.Order == Breadth && len(r.Acts) != 6 {
			t.Errorf("breadth first took %d steps to 4 litres, the shortest way has 6:\n%s", len(r.Acts), r.Trace())
		}
		if _, _, f := Replay[jugState](m, r.Acts); f == nil {
			t.Errorf("%+v: the way does not lead to the failure again", o)
		}
		acts, f, steps := Shrink[jugState](m, r.Acts, r.Failure)
		if f == nil || len(acts) != len(steps) || len(acts) < 6 {
			t.Errorf("shrunk to %d steps, %v", len(acts), f)
		}
	}
}

// TestSet shows that the set finds each fingerprint again, zero too, with its number.
func TestSet(t *testing.T) {
	s := set{numbered: true}
	print := func(i int) uint64 { return mix(uint64(i), 3) * uint64(min(i, 1)) }
	for round := range 2 {
		for i := range 20000 {
			if num, fresh := s.add(print(i)); fresh != (round == 0) || num != uint32(i) {
				t.Fatalf("round %d, fingerprint %d: number %d, new %v", round, i, num, fresh)
			}
		}
	}
}

// TestQueue shows both orders over several chunks.
func TestQueue(t *testing.T) {
	for _, last := range []bool{false, true} {
		q := queue[int]{last: last}
		var want []int
		for i := range 3*chunkLen + 5 {
			q.push(item[int]{s: i})
			want = append(want, i)
			if i%3 == 2 {
				k := 0
				if last {
					k = len(want) - 1
				}
				if got := q.pop(); got.s != want[k] {
					t.Fatalf("last %v: popped %d, want %d", last, got.s, want[k])
				}
				want = append(want[:k:k], want[k+1:]...)
				if !last {
					want = want[:len(want):len(want)]
				}
			}
			if len(want) > 64 && !last {
				for len(want) > 0 {
					if got := q.pop(); got.s != want[0] {
						t.Fatalf("popped %d, want %d", got.s, want[0])
					}
					want = want[1:]
				}
			}
		}
		for q.n > 0 {
			q.pop()
		}
	}
}
