package liveness

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"
	"time"

	"github.com/flotillakv/flotilla/multiraft/raft"
)

// TestSupportIsCountedOnlyWhileItStands runs an asker and a supporter whose
// clocks drift apart by up to rho, over a network that delays, loses and
// repeats, with slow disks and crashes on both sides. Whenever the asker counts
// an epoch, the supporter must show it as standing, and no epoch comes back.
func TestSupportIsCountedOnlyWhileItStands(t *testing.T) {
	for seed := range uint64(150) {
		rng := rand.New(rand.NewPCG(seed, 1))
		drift := 0.005 * (2*rng.Float64() - 1)
		if seed%3 == 0 {
			drift = -0.005 // the worst: the asker's clock is slow
		}
		w := newPair(seed, drift, -drift)
		if v := w.run(40 * time.Second); v != "" {
			t.Fatalf("seed %d, clock of the asker %+.3f%%, of the supporter %+.3f%%: %s", seed, 100*drift, -100*drift, v)
		}
		if w.counted == 0 {
			t.Fatalf("seed %d: the asker was never supported, nothing was shown", seed)
		}
	}
}

// TestDriftBeyondRhoIsCaught shows that the test above can fail: with clocks
// further apart than rho allows, some run counts support that was withdrawn.
func TestDriftBeyondRhoIsCaught(t *testing.T) {
	for seed := range uint64(100) {
		if v := newPair(seed, -0.02, 0.02).run(40 * time.Second); v != "" {
			return
		}
	}
	t.Fatal("no violation in 100 runs with clocks 4% apart")
}

// pair is an asker (node 1) and a supporter (node 2) in real time.
type pair struct {
	rng     *rand.Rand
	real    raft.Time
	n       [2]*pairNode
	queue   []pairEvent
	lastSeq int
	cut     [2]bool // messages from node i are lost
	counted int
	ended   raft.Epoch // the supporter showed that support up to here has ended
}

type pairNode struct {
	id     raft.NodeID
	peer   raft.NodeID
	rate   float64
	offset raft.Time
	boot   uint64
	rules  *Rules
	disk   []Record
	life   int
	timing Timing
}

type pairEvent struct {
	at   raft.Time
	seq  int
	node int
	life int // -1: whatever life
	run  func()
}

func newPair(seed uint64, driftA, driftB float64) *pair {
	w := &pair{rng: rand.New(rand.NewPCG(seed, 2))}
	w.n[0] = &pairNode{id: 1, peer: 2, rate: 1 + driftA}
	w.n[1] = &pairNode{id: 2, peer: 1, rate: 1 + driftB}
	for i := range w.n {
		if seed%5 == 4 { // settings that do not agree
			w.n[i].timing = Timing{Interval: 200 * time.Millisecond, Duration: time.Second + time.Duration(w.rng.Int64N(int64(2*time.Second)))}
		}
		w.boot(i)
	}
	return w
}

func (n *pairNode) clock(real raft.Time) raft.Time {
	return n.offset + raft.Time(float64(real)*n.rate)
}

// realAt returns the first instant at which the node's clock shows at least t.
func (n *pairNode) realAt(t raft.Time) raft.Time {
	r := raft.Time(float64(t-n.offset)/n.rate) - 2
	for n.clock(r) < t {
		r++
	}
	return r
}

func (w *pair) after(node int, d time.Duration, life int, run func()) {
	w.lastSeq++
	w.queue = append(w.queue, pairEvent{at: w.real.Add(d), seq: w.lastSeq, node: node, life: life, run: run})
}

func (w *pair) boot(i int) {
	n := w.n[i]
	n.boot++
	n.life++
	n.offset = raft.Time(w.rng.Int64N(int64(time.Hour))) + raft.Time(time.Hour)
	var fx Effects
	r, err := NewRules(RulesConfig{Node: n.id, BootEpoch: n.boot, Timing: n.timing}, slices.Clone(n.disk), n.clock(w.real), &fx)
	if err != nil {
		panic(err)
	}
	n.rules = r
	if i == 0 {
		r.AddPeer(n.clock(w.real), n.peer, &fx)
	}
}

func (w *pair) carryOut(i int, fx *Effects) {
	n := w.n[i]
	for _, s := range fx.Sends {
		if w.cut[i] || w.rng.IntN(20) == 0 {
			continue
		}
		for range 1 + w.rng.IntN(8)/7 { // some arrive twice
			d := time.Duration(w.rng.Int64N(int64(3 * time.Millisecond)))
			if w.rng.IntN(10) == 0 {
				d = time.Duration(w.rng.Int64N(int64(4 * time.Second)))
			}
			to, c := w.n[1-i], s.Ctl
			w.after(1-i, d, -1, func() {
				var fx Effects
				now := to.clock(w.real)
				to.rules.Step(At{Now: now}, n.id, now, c, &fx)
				w.carryOut(1-i, &fx)
			})
		}
	}
	for _, p := range fx.Persists {
		d := time.Duration(w.rng.Int64N(int64(time.Millisecond)))
		if w.rng.IntN(4) == 0 {
			d = 0
		} else if w.rng.IntN(10) == 0 {
			d = time.Duration(w.rng.Int64N(int64(3 * time.Second)))
		}
		w.after(i, d, n.life, func() {
			n.disk = []Record{p.Record}
			if w.rng.IntN(20) == 0 {
				w.boot(i) // durable, and dead before anyone could tell
				return
			}
			var fx Effects
			n.rules.Done(At{Now: n.clock(w.real)}, p.Token, &fx)
			w.carryOut(i, &fx)
		})
	}
}

// check is the invariant. It is evaluated after every event, thus at every
// instant at which what the supporter shows can have changed. It also holds
// that an epoch whose end was shown never comes back, over crashes too.
func (w *pair) check() string {
	a, b := w.n[0], w.n[1]
	shown, live := b.rules.SupportFor(a.id)
	if live && shown <= w.ended {
		return fmt.Sprintf("at %v the supporter shows %s, whose end it had shown before", time.Duration(w.real), showEpoch(shown))
	}
	if !live {
		w.ended = max(w.ended, shown)
	} else {
		w.ended = max(w.ended, shown-1)
	}
	epoch, until := a.rules.SupportFrom(b.id)
	now := a.clock(w.real)
	if now >= until {
		return ""
	}
	w.counted++
	if shown != epoch || !live {
		return fmt.Sprintf("at %v the asker counts %s for another %v, the supporter shows %s live=%v",
			time.Duration(w.real), showEpoch(epoch), until.Sub(now), showEpoch(shown), live)
	}
	return ""
}

func (w *pair) run(d time.Duration) string {
	end := w.real.Add(d)
	nextFault := w.real.Add(time.Duration(w.rng.Int64N(int64(5 * time.Second))))
	for w.real < end {
		// The earliest of: queued event, either node's tick, the next fault.
		at, which := nextFault, -1
		for i, n := range w.n {
			if r := max(n.realAt(n.rules.Deadline()), w.real); r < at {
				at, which = r, i
			}
		}
		pick := -1
		for i, ev := range w.queue {
			if ev.at < at || ev.at == at && pick >= 0 && ev.seq < w.queue[pick].seq {
				at, pick = ev.at, i
			}
		}
		w.real = at
		switch {
		case pick >= 0:
			ev := w.queue[pick]
			w.queue = slices.Delete(w.queue, pick, pick+1)
			if ev.life < 0 || ev.life == w.n[ev.node].life {
				ev.run()
			}
		case which >= 0:
			n := w.n[which]
			var fx Effects
			n.rules.Tick(At{Now: n.clock(w.real)}, Gate{Beat: true, Self: true}, &fx)
			w.carryOut(which, &fx)
		default:
			switch k := w.rng.IntN(9); {
			case k < 2:
				w.cut[k] = true
			case k < 6:
				w.cut[0], w.cut[1] = false, false
			case k == 6:
				w.boot(w.rng.IntN(2))
			case k == 8: // as on a disk that stands still; it goes on at once
				n := w.n[0]
				var fx Effects
				n.rules.Yield(n.clock(w.real), &fx)
				if v := w.check(); v != "" {
					return v
				}
				w.carryOut(0, &fx)
			case k == 7:
				n := w.n[0]
				var fx Effects
				n.rules.Relinquish(n.clock(w.real), &fx)
				if v := w.check(); v != "" {
					return v
				}
				w.carryOut(0, &fx)
				w.after(0, time.Second, n.life, func() { w.boot(0) })
			}
			nextFault = w.real.Add(time.Duration(w.rng.Int64N(int64(5 * time.Second))))
		}
		if v := w.check(); v != "" {
			return v
		}
	}
	return ""
}
