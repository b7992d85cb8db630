package multiraft

import (
	"errors"
	"fmt"
	"testing"
	"time"

	"github.com/flotillakv/flotilla/multiraft/raft"
)

// bay is a loop that resolves bytes at a fixed rate, first come, first served.
type bay struct {
	a        admission
	now      raft.Time
	perSec   float64 // what it can resolve
	stalled  bool
	queue    []arrival
	budget   float64
	served   int64
	refused  int64
	retry    time.Duration // the longest that was asked for lately
	slowest  time.Duration // of what was served
	maxBytes int64
}

type arrival struct {
	at   raft.Time
	size int
}

func newBay(perSec float64) *bay {
	b := &bay{perSec: perSec, now: raft.Time(time.Hour)}
	b.a.init(0)
	b.a.turn(b.now)
	return b
}

// offer lets proposals of size bytes arrive evenly at perSec bytes per second for
// a time, in steps of a millisecond.
func (b *bay) offer(perSec float64, size int, d time.Duration) {
	b.served, b.refused, b.retry, b.slowest, b.maxBytes = 0, 0, 0, 0, 0
	carry := 0.0
	for range d / time.Millisecond {
		b.now = b.now.Add(time.Millisecond)
		for carry += perSec / 1000; carry >= float64(size); carry -= float64(size) {
			b.arrive(size, false)
		}
		b.work()
		b.a.turn(b.now)
		b.maxBytes = max(b.maxBytes, b.a.pending.Load())
	}
}

func (b *bay) arrive(size int, hung bool) bool {
	retry, ok := b.a.admit(size, false)
	if !ok {
		b.refused += int64(size)
		b.retry = max(b.retry, retry)
		return false
	}
	if !hung {
		b.queue = append(b.queue, arrival{at: b.now, size: size})
	}
	return true
}

func (b *bay) work() {
	if b.stalled {
		return
	}
	b.budget = min(b.budget+b.perSec/1000, b.perSec/1000+1<<20)
	for len(b.queue) > 0 && b.budget >= float64(b.queue[0].size) {
		q := b.queue[0]
		b.queue = b.queue[1:]
		b.budget -= float64(q.size)
		b.served += int64(q.size)
		b.slowest = max(b.slowest, b.now.Sub(q.at))
		b.a.resolve(q.size)
	}
	if len(b.queue) == 0 {
		b.budget = 0
	}
}

const testWait = DefaultProposalWait

// admissionCases say what the admission of a loop does under load. An error says
// what it did instead.
var admissionCases = []struct {
	name string
	run  func() error
}{
	{"load below the peak is never refused", func() error {
		b := newBay(3e6)
		for range 3 {
			b.offer(2.8e6, 200, 5*time.Second)
			if b.refused > 0 {
				return fmt.Errorf("%d bytes refused", b.refused)
			}
			b.offer(0, 200, 20*time.Second) // an idle loop has not become slow
		}
		return nil
	}},
	{"a burst after idleness is taken in", func() error {
		b := newBay(3e6)
		b.offer(0, 200, time.Minute)
		for range 1000 {
			if !b.arrive(1000, false) {
				return fmt.Errorf("refused with %d bytes waiting", b.a.pending.Load())
			}
		}
		return nil
	}},
	{"overload is served at the peak, with a bounded queue", func() error {
		for _, times := range []float64{1.2, 2, 10, 100} {
			for _, size := range []int{48, 200, 1100, 64 << 10} {
				if times*float64(1100/size) > 100 { // many steps, and no news
					continue
				}
				b := newBay(3e6)
				b.offer(times*3e6, size, 10*time.Second) // it starts with a guess
				last := time.Duration(0)
				b.offer(times*3e6, size, 10*time.Second)
				last = b.slowest
				if b.served < 29e6 {
					return fmt.Errorf("%gx, %d bytes: served %d bytes of 30e6", times, size, b.served)
				}
				if last > testWait*5/4 {
					return fmt.Errorf("%gx, %d bytes: waited %s", times, size, last)
				}
			}
		}
		return nil
	}},
	{"who is refused is told for how long, more when more are", func() error {
		var retry []time.Duration
		for _, times := range []float64{2, 10} {
			b := newBay(3e6)
			b.offer(times*3e6, 200, 10*time.Second)
			b.offer(times*3e6, 200, 10*time.Second)
			retry = append(retry, b.retry)
		}
		if retry[0] < testWait || retry[0] > 2*testWait || retry[1] < 2*testWait || retry[1] > retryMax {
			return fmt.Errorf("%s at twice, %s at ten times the peak", retry[0], retry[1])
		}
		return nil
	}},
	{"a loop that becomes slower gets a shorter queue", func() error {
		b := newBay(6e6)
		b.offer(12e6, 200, 10*time.Second)
		b.perSec = 1.5e6
		b.offer(12e6, 200, 5*time.Second)
		b.offer(12e6, 200, 5*time.Second)
		if b.slowest > testWait*5/4 || b.served < 7.2e6 {
			return fmt.Errorf("waited %s, served %d", b.slowest, b.served)
		}
		return nil
	}},
	{"a loop that becomes faster is found out", func() error {
		b := newBay(1e6)
		b.offer(12e6, 200, 10*time.Second)
		b.perSec = 6e6
		b.offer(12e6, 200, 5*time.Second)
		b.offer(12e6, 200, 5*time.Second)
		if b.served < 29e6 {
			return fmt.Errorf("served %d of 30e6", b.served)
		}
		return nil
	}},
	{"after a stall of the disk the peak comes back, and the queue with it", func() error {
		b := newBay(3e6)
		b.offer(6e6, 200, 5*time.Second)
		for _, stall := range []time.Duration{300 * time.Millisecond, 3 * time.Second} {
			b.stalled = true
			b.offer(6e6, 200, stall)
			if b.maxBytes > int64((1.2+2*stall.Truncate(time.Second).Seconds()/3)*3e6*testWait.Seconds()) {
				return fmt.Errorf("%d bytes wait after a stall of %s", b.maxBytes, stall)
			}
			b.stalled = false
			b.offer(6e6, 200, 10*time.Second)
			if b.served < 29e6 {
				return fmt.Errorf("right after a stall of %s: served %d", stall, b.served)
			}
			b.offer(6e6, 200, 30*time.Second)
			b.offer(6e6, 200, 10*time.Second)
			if b.served < 29e6 || b.slowest > testWait*3/2 {
				return fmt.Errorf("after a stall of %s: served %d, waited %s", stall, b.served, b.slowest)
			}
		}
		return nil
	}},
	{"proposals that never resolve do not shut out the others", func() error {
		b := newBay(3e6)
		for b.arrive(1000, true) { // a group without a quorum fills the room
		}
		for range 5 {
			b.offer(1e6, 200, 2*time.Second)
		}
		b.offer(1e6, 200, 30*time.Second)
		if b.served < 27e6 {
			return fmt.Errorf("served %d of 30e6", b.served)
		}
		return nil
	}},
	{"a single proposal always fits, and vital ones do", func() error {
		b := newBay(3e6)
		if !b.arrive(3<<20, false) {
			return errors.New("one of 3 MiB does not fit into an empty loop")
		}
		for b.arrive(1<<20, false) {
		}
		if _, ok := b.a.admit(100, true); !ok {
			return errors.New("a vital one was refused")
		}
		return nil
	}},
}

func TestAdmission(t *testing.T) {
	for _, c := range admissionCases {
		t.Run(c.name, func(t *testing.T) {
			if err := c.run(); err != nil {
				t.Fatal(err)
			}
		})
	}
}

// At a host: what is beyond the queue is refused with the typed error before
// anything is done, the loop is woken to measure again though nothing is in its
// inbox, and once the queue has drained proposals are taken again. What was taken
// in is applied, what was refused is not, and nothing is counted for ever.
func TestOverloadedHost(t *testing.T) {
	if err := overloadedHost(t); err != nil {
		t.Error(err)
	}
}

func overloadedHost(t *testing.T) error {
	r := newRig(t)
	r.lead(2)
	r.ack(2)
	body := string(make([]byte, 64<<10))
	var taken []*outcome
	var busy *OverloadedError
	for range 1000 {
		o := r.proposeOnly(body)
		if errors.As(o.err, &busy) {
			break
		}
		taken = append(taken, o)
		r.now++
	}
	limit := int64(admitStart * testWait.Seconds())
	if busy == nil || busy.RetryAfter < retryMin || busy.RetryAfter > retryMax {
		return fmt.Errorf("%d of 64 KiB taken; %v", len(taken), busy)
	}
	if p := r.h.pending.Load(); p > limit || p < limit-100<<10 || r.h.Stats().Refused != 1 {
		return fmt.Errorf("%d bytes pending with a limit of %d, %d refused", p, limit, r.h.Stats().Refused)
	}
	<-r.l.in.wake
	r.now = r.now.Add(time.Second)
	if r.proposeOnly(body); len(r.l.in.wake) != 1 {
		return errors.New("the loop was not woken to look again")
	}
	for range 20 {
		r.turn()
		r.ack(2)
	}
	for i, o := range taken {
		if o.n != 1 || o.err != nil {
			return fmt.Errorf("proposal %d was told %d times: %v", i, o.n, o.err)
		}
	}
	if len(r.applied) != len(taken) {
		return fmt.Errorf("%d proposals were taken in, %d applied", len(taken), len(r.applied))
	}
	if a, p := r.l.admission.pending.Load(), r.h.pending.Load(); a != 0 || p != 0 {
		return fmt.Errorf("%d and %d bytes count on", a, p)
	}
	return r.propose("again").err
}

// TestSyncInterval: syncs are kept apart only while many proposals wait, whatever
// their size.
func TestSyncInterval(t *testing.T) {
	for _, c := range []struct {
		typical, n int64
		want       time.Duration
	}{
		{200, 0, 0}, {200, 1, 0}, {200, 31, 0}, {200, 32, time.Millisecond}, {200, 64, 2 * time.Millisecond}, {200, 5000, 2 * time.Millisecond},
		{1 << 20, 1, 0}, {1 << 20, 25, 0}, {1 << 20, 64, 2 * time.Millisecond}, {0, 0, 0},
	} {
		h := new(Host)
		h.typical.Store(c.typical)
		h.pending.Store(c.typical * c.n)
		if got := h.SyncInterval(); got != c.want {
			t.Errorf("%d proposals of %d bytes: %v, want %v", c.n, c.typical, got, c.want)
		}
	}
}
