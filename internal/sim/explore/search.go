package explore

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"time"
	"unsafe"
)

// Model is a system whose states are to be explored. S is a value without
// pointers that a copy duplicates. A model is used by one goroutine.
type Model[S any] interface {
	// Initial returns the first state.
	Initial() S
	// Fingerprint returns 64 bits that are equal exactly for states that behave
	// alike (states that differ in the names of nodes only may share one).
	Fingerprint(s *S) uint64
	// Successors appends what every enabled action leads to, always in the same order.
	Successors(s *S, out []Succ[S]) []Succ[S]
	// Describe says in a line what act does to s.
	Describe(s *S, act uint64) string
}

// Succ is one step out of a state.
type Succ[S any] struct {
	Act  uint64 // names the action; the same action has the same name in every state
	To   S
	Fail *Failure // the step breaks an invariant; To means nothing then
}

// Failure is a broken invariant.
type Failure struct {
	Rule string // S1.. of the oracles
	Text string
}

func (f *Failure) String() string { return f.Rule + ": " + f.Text }

// Order is the order in which states are visited.
type Order uint8

const (
	// Breadth visits states by their distance from the first one: a
	// counterexample is a shortest one.
	Breadth Order = iota
	// Depth follows the newest state first. It needs little memory for the
	// states that wait and reaches far, but a counterexample may be long.
	Depth
	// Walk takes random paths of Options.Depth steps, again and again, and
	// remembers no state but for counting. It never exhausts a scope.
	Walk
)

// Options bounds a search. Zero: no bound.
type Options struct {
	Order  Order
	States uint64 // distinct states at most
	Depth  int    // steps from the first state at most; Walk: 100 if zero
	Bytes  uint64 // of the tables of the search and of the states that wait (not of the model)
	Time   time.Duration
	Seed   uint64 // Walk
	// Progress is called about every ten seconds.
	Progress func(Report)
}

// Report says what a search has seen.
type Report struct {
	States      uint64 // distinct
	Transitions uint64
	Depth       int    // of the deepest state
	Waiting     int    // states not expanded yet
	Exhausted   bool   // nothing is left within the scope (and within Options.Depth)
	Clipped     uint64 // states not expanded for Options.Depth
	Bytes       uint64 // of the search's tables and the states that wait, at the end
	Elapsed     time.Duration
	Failure     *Failure
	Acts        []uint64 // the way to Failure
	Steps       []string // the same, to read
}

// String is one line.
func (r Report) String() string {
	s := fmt.Sprintf("%d states, %d transitions, depth %d, %d waiting, %.0f states/s, %d MiB, %v",
		r.States, r.Transitions, r.Depth, r.Waiting, float64(r.States)/max(r.Elapsed.Seconds(), 1e-9), r.Bytes>>20, r.Elapsed.Round(time.Millisecond))
	switch {
	case r.Failure != nil:
		s += fmt.Sprintf("; %s broken after %d steps", r.Failure.Rule, len(r.Acts))
	case r.Exhausted:
		s += "; exhausted"
	default:
		s += "; not exhausted"
	}
	return s
}

// Trace is the counterexample as numbered lines.
func (r Report) Trace() string {
	var b strings.Builder
	for i, s := range r.Steps {
		fmt.Fprintf(&b, "%3d  %s\n", i+1, s)
	}
	if r.Failure != nil {
		fmt.Fprintf(&b, "     %s\n", r.Failure)
	}
	return b.String()
}

// search is one run. States are numbered in the order in which they are found.
type search[S any] struct {
	m      Model[S]
	o      Options
	seen   set
	parent []uint32 // by number; the first state has none
	step   []uint16 // place among the parent's successors
	depth  []uint8  // Depth with a bound only: smallest distance seen
	wait   queue[S]
	rep    Report
	start  time.Time
	told   time.Time
}

// item is a state that waits to be expanded.
type item[S any] struct {
	s     S
	num   uint32
	depth uint32
}

// Run explores m.
func Run[S any](m Model[S], o Options) Report {
	x := &search[S]{m: m, o: o, start: time.Now()}
	x.told = x.start
	if o.Order == Walk {
		x.walk()
	} else {
		x.visit()
	}
	x.rep.Elapsed = time.Since(x.start)
	x.rep.Bytes = x.bytes()
	return x.rep
}

func (x *search[S]) bytes() uint64 {
	return x.seen.bytes() + uint64(cap(x.parent))*4 + uint64(cap(x.step))*2 + uint64(cap(x.depth)) + uint64(x.wait.n)*uint64(unsafe.Sizeof(item[S]{}))
}

// over reports whether a bound is reached, and tells about progress.
func (x *search[S]) over(waiting int) bool {
	if x.o.States > 0 && x.rep.States >= x.o.States {
		return true
	}
	if x.rep.Transitions&1023 != 0 && x.o.Order != Walk {
		return false
	}
	now := time.Now()
	if x.o.Time > 0 && now.Sub(x.start) > x.o.Time || x.o.Bytes > 0 && x.bytes() > x.o.Bytes {
		return true
	}
	if x.o.Progress != nil && now.Sub(x.told) > 10*time.Second {
		x.told = now
		x.rep.Elapsed, x.rep.Waiting, x.rep.Bytes = now.Sub(x.start), waiting, x.bytes()
		x.o.Progress(x.rep)
	}
	return false
}

func (x *search[S]) visit() {
	bounded := x.o.Order == Depth && x.o.Depth > 0
	x.seen.numbered = bounded
	wait := &x.wait
	wait.last = x.o.Order == Depth
	s := x.m.Initial()
	x.seen.add(x.m.Fingerprint(&s))
	x.parent, x.step = append(x.parent, 0), append(x.step, 0)
	if bounded {
		x.depth = append(x.depth, 0)
	}
	x.rep.States = 1
	wait.push(item[S]{s: s})
	var out []Succ[S]
	for wait.n > 0 {
		if x.over(wait.n) {
			x.rep.Waiting = wait.n
			return
		}
		it := wait.pop()
		if bounded && x.depth[it.num] < uint8(min(it.depth, 255)) {
			continue // found on a shorter way since
		}
		if x.o.Depth > 0 && int(it.depth) >= x.o.Depth {
			x.rep.Clipped++
			continue
		}
		out = x.m.Successors(&it.s, out[:0])
		x.rep.Transitions += uint64(len(out))
		for i := range out {
			n := &out[i]
			if n.Fail != nil {
				x.rep.Failure = n.Fail
				x.rep.Waiting = wait.n
				x.trace(it.num, uint16(i))
				return
			}
			num, fresh := x.seen.add(x.m.Fingerprint(&n.To))
			if fresh {
				x.rep.States++
				x.rep.Depth = max(x.rep.Depth, int(it.depth)+1)
				x.parent, x.step = append(x.parent, it.num), append(x.step, uint16(i))
				if bounded {
					x.depth = append(x.depth, uint8(min(it.depth+1, 255)))
				}
			} else if bounded && int(x.depth[num]) > int(it.depth)+1 {
				x.depth[num] = uint8(it.depth + 1)
				x.parent[num], x.step[num] = it.num, uint16(i)
			} else {
				continue
			}
			wait.push(item[S]{s: n.To, num: num, depth: it.depth + 1})
		}
	}
	x.rep.Waiting = 0
	x.rep.Exhausted = x.rep.Clipped == 0
}

// trace replays the way to successor last of state num.
func (x *search[S]) trace(num uint32, last uint16) {
	steps := []uint16{last}
	for num != 0 {
		steps = append(steps, x.step[num])
		num = x.parent[num]
	}
	slices.Reverse(steps)
	s := x.m.Initial()
	for _, k := range steps {
		out := x.m.Successors(&s, nil)
		x.rep.Acts = append(x.rep.Acts, out[k].Act)
		x.rep.Steps = append(x.rep.Steps, x.m.Describe(&s, out[k].Act))
		s = out[k].To
	}
}

// walk takes random ways until a bound is reached.
func (x *search[S]) walk() {
	rng := rand.New(rand.NewPCG(x.o.Seed, 1))
	limit := x.o.Depth
	if limit == 0 {
		limit = 100
	}
	var out []Succ[S]
	var acts []uint64
	for {
		s := x.m.Initial()
		acts = acts[:0]
		for d := range limit {
			if x.rep.Transitions&255 == 0 && x.over(0) {
				return
			}
			out = x.m.Successors(&s, out[:0])
			for i := range out {
				if out[i].Fail != nil {
					x.rep.Failure = out[i].Fail
					x.rep.Acts = append(slices.Clone(acts), out[i].Act)
					x.rep.Acts, x.rep.Failure, x.rep.Steps = Shrink(x.m, x.rep.Acts, x.rep.Failure)
					return
				}
			}
			if len(out) == 0 {
				break
			}
			n := &out[rng.IntN(len(out))]
			acts = append(acts, n.Act)
			s = n.To
			x.rep.Transitions++
			x.rep.Depth = max(x.rep.Depth, d+1)
			if _, fresh := x.seen.add(x.m.Fingerprint(&s)); fresh {
				x.rep.States++
			}
		}
	}
}

// Replay takes the actions one after the other, leaving out those that are not
// enabled where they come. It returns the ones taken, what each does, and the
// failure that ended it, if any.
func Replay[S any](m Model[S], acts []uint64) (took []uint64, steps []string, f *Failure) {
	s := m.Initial()
	var out []Succ[S]
	for _, a := range acts {
		out = m.Successors(&s, out[:0])
		for i := range out {
			if out[i].Act != a {
				continue
			}
			took = append(took, a)
			steps = append(steps, m.Describe(&s, a))
			if out[i].Fail != nil {
				return took, steps, out[i].Fail
			}
			s = out[i].To
			break
		}
	}
	return took, steps, nil
}

// Shrink leaves out actions of a way to a failure as long as the same rule is
// still broken.
func Shrink[S any](m Model[S], acts []uint64, f *Failure) ([]uint64, *Failure, []string) {
	best, steps, g := Replay(m, acts)
	if g == nil {
		return acts, f, nil
	}
	f = g
	for width := max(len(best)/2, 1); width >= 1; {
		shorter := false
		for at := 0; at < len(best); {
			try := slices.Concat(best[:at], best[min(at+width, len(best)):])
			if took, st, g := Replay(m, try); g != nil && g.Rule == f.Rule && len(took) < len(best) {
				best, steps, f, shorter = took, st, g, true
				continue
			}
			at += width
		}
		if width == 1 && !shorter {
			break
		}
		width = max(width/2, 1)
	}
	return best, f, steps
}
