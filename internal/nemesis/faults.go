package nemesis

import (
	"context"
	"fmt"
	"math/rand/v2"
	"slices"
	"sync"
	"syscall"
	"time"

	"github.com/flotillakv/flotilla"
)

// storm makes faults while a round lasts.
type storm struct {
	c      *cluster
	client statusSource
	admin  *flotilla.Client
	kinds  []kind
	event  func(string)
	ctx    context.Context // the round's; faults are mended although it ends

	mu     sync.Mutex // guards what follows
	counts map[string]int
	broken []string // violations that faults met, such as a stop that hung
}

// statusSource tells who leads what.
type statusSource interface {
	leaders(ctx context.Context) map[int]int // node -> shards led
}

// kind of fault. do breaks something and returns what was broken, and how to
// mend it (nil: nothing is left to mend). ok is false when it did not apply.
type kind struct {
	name   string
	weight int
	do     func(s *storm, r *rand.Rand) (what string, mend func(), ok bool)
	// packets: the network has to be one of packets.
	packets bool
}

var kinds = slices.Concat(anywhere, moves, ofPackets)

var anywhere = []kind{
	{name: "kill", weight: 12, do: func(s *storm, r *rand.Rand) (string, func(), bool) {
		return s.killed(s.grab(r, 1))
	}},
	{name: "kill-majority", weight: 4, do: func(s *storm, r *rand.Rand) (string, func(), bool) {
		return s.killed(s.grab(r, len(s.c.nodes)/2+1))
	}},
	{name: "kill-all", weight: 3, do: func(s *storm, r *rand.Rand) (string, func(), bool) {
		return s.killed(s.grab(r, len(s.c.nodes)))
	}},
	{name: "kill-leader", weight: 6, do: func(s *storm, r *rand.Rand) (string, func(), bool) {
		return s.killed(s.take(s.leader()))
	}},
	{name: "kill-again", weight: 4, do: killAgain},
	{name: "stop", weight: 6, do: func(s *storm, r *rand.Rand) (string, func(), bool) {
		return s.stopped(s.grab(r, 1))
	}},
	{name: "stop-all", weight: 2, do: func(s *storm, r *rand.Rand) (string, func(), bool) {
		return s.stopped(s.grab(r, len(s.c.nodes)))
	}},
	{name: "pause", weight: 8, do: func(s *storm, r *rand.Rand) (string, func(), bool) {
		return s.paused(s.grab(r, 1), upTo(r, 10*time.Millisecond, 2*time.Second))
	}},
	{name: "pause-long", weight: 6, do: func(s *storm, r *rand.Rand) (string, func(), bool) {
		return s.paused(s.grab(r, 1), upTo(r, 2600*time.Millisecond, 8*time.Second))
	}},
	{name: "pause-leader", weight: 6, do: func(s *storm, r *rand.Rand) (string, func(), bool) {
		return s.paused(s.take(s.leader()), upTo(r, 500*time.Millisecond, 6*time.Second))
	}},
	{name: "pause-majority", weight: 3, do: func(s *storm, r *rand.Rand) (string, func(), bool) {
		return s.paused(s.grab(r, len(s.c.nodes)/2+1), upTo(r, 500*time.Millisecond, 5*time.Second))
	}},
	{name: "one-way", weight: 8, do: func(s *storm, r *rand.Rand) (string, func(), bool) {
		a, b := s.two(r)
		return s.cut(r, pair{a, b})
	}},
	{name: "cut", weight: 6, do: func(s *storm, r *rand.Rand) (string, func(), bool) {
		a, b := s.two(r)
		return s.cut(r, pair{a, b}, pair{b, a})
	}},
	{name: "isolate", weight: 6, do: func(s *storm, r *rand.Rand) (string, func(), bool) {
		a, _ := s.two(r)
		return s.cut(r, append(s.from(a), s.to(a)...)...)
	}},
	{name: "isolate-leader", weight: 6, do: func(s *storm, r *rand.Rand) (string, func(), bool) {
		a := s.leader()
		return s.cut(r, append(s.from(a), s.to(a)...)...)
	}},
	{name: "deaf", weight: 5, do: func(s *storm, r *rand.Rand) (string, func(), bool) {
		a, _ := s.two(r)
		return s.cut(r, s.to(a)...)
	}},
	{name: "mute", weight: 5, do: func(s *storm, r *rand.Rand) (string, func(), bool) {
		a, _ := s.two(r)
		return s.cut(r, s.from(a)...)
	}},
	{name: "split", weight: 5, do: func(s *storm, r *rand.Rand) (string, func(), bool) {
		p := r.Perm(len(s.c.nodes))
		at := 1 + r.IntN(len(p)-1)
		var dirs []pair
		for _, a := range p[:at] {
			for _, b := range p[at:] {
				dirs = append(dirs, pair{a, b}, pair{b, a})
			}
		}
		return s.cut(r, dirs...)
	}},
	{name: "all-alone", weight: 2, do: func(s *storm, r *rand.Rand) (string, func(), bool) {
		var dirs []pair
		for a := range s.c.nodes {
			dirs = append(dirs, s.from(a)...)
		}
		return s.cut(r, dirs...)
	}},
	{name: "lost-answers", weight: 5, do: func(s *storm, r *rand.Rand) (string, func(), bool) {
		a, _ := s.two(r)
		return s.cut(r, pair{a, Clients})
	}},
	{name: "lost-requests", weight: 3, do: func(s *storm, r *rand.Rand) (string, func(), bool) {
		a, _ := s.two(r)
		return s.cut(r, pair{Clients, a})
	}},
	{name: "reset", weight: 8, do: func(s *storm, r *rand.Rand) (string, func(), bool) {
		a, b := s.two(r)
		if r.IntN(3) == 0 {
			b = Clients
		}
		k := s.c.net.reset(a, b)
		return fmt.Sprintf("%s-%s, %d connections", endName(a), endName(b), k), nil, k > 0
	}},
	{name: "refuse", weight: 4, do: func(s *storm, r *rand.Rand) (string, func(), bool) {
		a, b := s.two(r)
		return s.changed(fmt.Sprintf("%s-%s", endName(a), endName(b)), func(c *condition) { c.Refuse = true }, func(c *condition) { c.Refuse = false }, a, b)
	}},
	{name: "delay", weight: 6, do: func(s *storm, r *rand.Rand) (string, func(), bool) {
		a, b := s.two(r)
		d := upTo(r, 5*time.Millisecond, 300*time.Millisecond)
		return s.changed(fmt.Sprintf("%s-%s up to %s", endName(a), endName(b), short(d)), func(c *condition) { c.Delay = d }, func(c *condition) { c.Delay = 0 }, a, b)
	}},
	{name: "delay-all", weight: 3, do: func(s *storm, r *rand.Rand) (string, func(), bool) {
		d := upTo(r, 3*time.Millisecond, 60*time.Millisecond)
		return s.changed("all links up to "+short(d), func(c *condition) { c.Delay = d }, func(c *condition) { c.Delay = 0 }, s.all()...)
	}},
	{name: "slow", weight: 4, do: func(s *storm, r *rand.Rand) (string, func(), bool) {
		a, b := s.two(r)
		rate := 2_000 + r.IntN(60_000)
		return s.changed(fmt.Sprintf("%s-%s %d bytes/s", endName(a), endName(b), rate), func(c *condition) { c.Rate = rate }, func(c *condition) { c.Rate = 0 }, a, b)
	}},
	{name: "flap", weight: 5, do: flap},
}

// ofPackets are the faults that need packets. What the others call a cut loses
// packets there, a delay reorders them.
var ofPackets = []kind{
	{name: "loss", weight: 8, packets: true, do: func(s *storm, r *rand.Rand) (string, func(), bool) {
		share := 0.01 + 0.29*r.Float64()
		return s.changed(fmt.Sprintf("%.0f%% everywhere", 100*share), func(c *condition) { c.Loss = share }, func(c *condition) { c.Loss = 0 }, s.all()...)
	}},
	{name: "loss-link", weight: 8, packets: true, do: func(s *storm, r *rand.Rand) (string, func(), bool) {
		a, b := s.two(r)
		share := 0.01 + 0.6*r.Float64()
		return s.changed(fmt.Sprintf("%s-%s %.0f%%", endName(a), endName(b), 100*share), func(c *condition) { c.Loss = share }, func(c *condition) { c.Loss = 0 }, a, b)
	}},
	{name: "duplicate", weight: 4, packets: true, do: func(s *storm, r *rand.Rand) (string, func(), bool) {
		share := 0.5 * r.Float64()
		return s.changed(fmt.Sprintf("%.0f%% everywhere", 100*share), func(c *condition) { c.Duplicate = share }, func(c *condition) { c.Duplicate = 0 }, s.all()...)
	}},
}

// killAgain kills a node, and kills it again while it recovers.
func killAgain(s *storm, r *rand.Rand) (string, func(), bool) {
	ns := s.grab(r, 1)
	if len(ns) == 0 {
		return "", nil, false
	}
	n := ns[0]
	times := 2 + r.IntN(3)
	n.kill()
	for range times - 1 {
		s.begin(n)
		sleep(s.ctx, upTo(r, 5*time.Millisecond, 700*time.Millisecond))
		n.kill()
	}
	return fmt.Sprintf("%s, %d times", n.name(), times), func() { s.begin(n); n.busy.Unlock() }, true
}

// flap cuts a link and mends it again and again, breaking its connections.
func flap(s *storm, r *rand.Rand) (string, func(), bool) {
	a, b := s.two(r)
	every := upTo(r, 50*time.Millisecond, 2*time.Second)
	times := 2 + r.IntN(6)
	dirs := []pair{{a, b}, {b, a}}
	for range times {
		s.c.net.cut(true, dirs...)
		ok := sleep(s.ctx, every)
		s.c.net.cut(false, dirs...)
		if r.IntN(2) == 0 {
			s.c.net.reset(a, b)
		}
		if !ok || !sleep(s.ctx, every) {
			break
		}
	}
	return fmt.Sprintf("%s-%s, %d times, every %s", endName(a), endName(b), times, short(every)), nil, true
}

// grab reserves up to k nodes for a fault of processes; the caller unlocks busy.
func (s *storm) grab(r *rand.Rand, k int) []*node {
	return s.take(r.Perm(len(s.c.nodes))[:k]...)
}

// take reserves those of the nodes that no other fault works on. A set of more
// than one is worked on by nobody else, or not taken.
func (s *storm) take(which ...int) []*node {
	slices.Sort(which) // one order for all who take several
	var got []*node
	for _, i := range which {
		if n := s.c.nodes[i]; n.busy.TryLock() {
			got = append(got, n)
		}
	}
	if len(got) < len(which) {
		release(got)
		return nil
	}
	return got
}

func release(ns []*node) {
	for _, n := range ns {
		n.busy.Unlock()
	}
}

func names(ns []*node) string {
	out := ""
	for i, n := range ns {
		if i > 0 {
			out += " "
		}
		out += n.name()
	}
	return out
}

// begin starts a node again.
func (s *storm) begin(n *node) {
	if err := s.c.start(n); err != nil {
		s.violate(fmt.Sprintf("node %s cannot be started: %v", n.name(), err))
	}
}

func (s *storm) violate(what string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.broken = append(s.broken, what)
}

func (s *storm) killed(ns []*node) (string, func(), bool) {
	for _, n := range ns {
		n.signal(syscall.SIGKILL, true)
	}
	for _, n := range ns {
		n.kill() // waits
	}
	return names(ns), func() { s.restart(ns) }, len(ns) > 0
}

func (s *storm) restart(ns []*node) {
	for _, n := range ns {
		s.begin(n)
	}
	release(ns)
}

func (s *storm) stopped(ns []*node) (string, func(), bool) {
	var wg sync.WaitGroup
	for _, n := range ns {
		wg.Go(func() {
			if err := n.stop(); err != nil {
				s.violate(err.Error())
			}
		})
	}
	wg.Wait()
	return names(ns), func() { s.restart(ns) }, len(ns) > 0
}

func (s *storm) paused(ns []*node, d time.Duration) (string, func(), bool) {
	if len(ns) == 0 {
		return "", nil, false
	}
	for _, n := range ns {
		n.signal(syscall.SIGSTOP, false)
	}
	sleep(s.ctx, d)
	for _, n := range ns {
		n.signal(syscall.SIGCONT, false)
	}
	release(ns)
	return names(ns) + " for " + short(d), nil, true
}

// cut makes holes. When they are mended, what they held goes on, late, or the
// connections are reset.
func (s *storm) cut(r *rand.Rand, dirs ...pair) (string, func(), bool) {
	s.c.net.cut(true, dirs...)
	reset := r.IntN(2) == 0
	what := fmt.Sprint(dirs)
	if reset {
		what += ", then reset"
	}
	return what, func() {
		if reset {
			for _, d := range dirs {
				s.c.net.reset(d.from, d.to)
			}
		}
		s.c.net.cut(false, dirs...)
	}, true
}

// changed alters all directions between the given ends.
func (s *storm) changed(what string, f, back func(*condition), ends ...int) (string, func(), bool) {
	each := func(g func(*condition)) {
		for _, a := range ends {
			for _, b := range ends {
				if a != b {
					s.c.net.change(pair{a, b}, g)
				}
			}
		}
	}
	each(f)
	return what, func() { each(back) }, true
}

// all lists every end.
func (s *storm) all() []int {
	all := []int{Clients}
	for i := range s.c.nodes {
		all = append(all, i)
	}
	return all
}

// from and to are the directions between a node and all others.
func (s *storm) from(a int) (dirs []pair) {
	for b := range s.c.nodes {
		if b != a {
			dirs = append(dirs, pair{a, b})
		}
	}
	return dirs
}

func (s *storm) to(a int) (dirs []pair) {
	for b := range s.c.nodes {
		if b != a {
			dirs = append(dirs, pair{b, a})
		}
	}
	return dirs
}

func (s *storm) two(r *rand.Rand) (a, b int) {
	p := r.Perm(len(s.c.nodes))
	return p[0], p[1]
}

// leader returns the node that leads most, or node 0 when nobody tells.
func (s *storm) leader() int {
	ctx, cancel := context.WithTimeout(s.ctx, 500*time.Millisecond)
	defer cancel()
	best, most := 0, -1
	led := s.client.leaders(ctx)
	for i := range s.c.nodes {
		if led[i] > most {
			best, most = i, led[i]
		}
	}
	return best
}

// run makes faults until the round's context ends.
func (s *storm) run(r *rand.Rand) {
	total := 0
	for _, k := range s.kinds {
		total += k.weight
	}
	for s.ctx.Err() == nil {
		at := r.IntN(total)
		var f kind
		for _, k := range s.kinds {
			if at -= k.weight; at < 0 {
				f = k
				break
			}
		}
		hold := upTo(r, 50*time.Millisecond, 1500*time.Millisecond)
		if r.IntN(4) == 0 {
			hold = upTo(r, 2500*time.Millisecond, 6*time.Second)
		}
		pause := upTo(r, 50*time.Millisecond, 1200*time.Millisecond)
		if r.IntN(5) == 0 {
			pause = upTo(r, 2*time.Second, 5*time.Second)
		}
		what, mend, ok := f.do(s, r)
		if !ok {
			sleep(s.ctx, 50*time.Millisecond)
			continue
		}
		s.mu.Lock()
		s.counts[f.name]++
		s.mu.Unlock()
		s.event(f.name + " " + what)
		if mend != nil {
			sleep(s.ctx, hold)
			mend()
		}
		sleep(s.ctx, pause)
	}
}

// upTo draws a duration, the short ones as often as the long ones on a
// logarithmic scale.
func upTo(r *rand.Rand, least, most time.Duration) time.Duration {
	d := least
	for d < most && r.IntN(3) > 0 {
		d *= 2
	}
	d = min(d, most)
	return d/2 + time.Duration(r.Int64N(int64(d/2)+1)) + least/2
}

func short(d time.Duration) string { return d.Round(time.Millisecond).String() }
