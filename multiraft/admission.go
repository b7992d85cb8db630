package multiraft

import (
	"fmt"
	"sync/atomic"
	"time"

	"github.com/flotillakv/flotilla/internal/mutants"
	"github.com/flotillakv/flotilla/multiraft/raft"
)

const (
	// DefaultProposalWait is how long proposals may be expected to wait, unless
	// Config.ProposalWait says otherwise.
	DefaultProposalWait = 500 * time.Millisecond
	// admitWindow is the time over which a loop's drain is measured.
	admitWindow = 200 * time.Millisecond
	// admitMemory is how many windows the measurement looks back.
	admitMemory = 5
	// admitFloor is what may wait for a loop however slow it is, in bytes.
	admitFloor = 256 << 10
	// admitStart is the drain assumed before anything was measured, in bytes per second.
	admitStart = 8 << 20
	// admitGrowth bounds by how much a window may raise the measured drain.
	admitGrowth = 1.5
	// stuckReturn is how many bytes have to drain for one that was stuck to count again.
	stuckReturn = 32
	// stuckAfter is for how many windows nothing has to drain until what waits is
	// held for stuck; then twice as many, and so on. A disk may well take a second.
	stuckAfter = 5
	// Bounds of what a refused caller is told to wait.
	retryMin, retryMax = 10 * time.Millisecond, 5 * time.Second
)

// admission decides which proposals a loop takes in. By Little's law what waits
// divided by what is resolved per second is how long a newcomer will wait; above
// the promised time it is refused, before anything was done for it. So a loop
// that is offered more than it can do serves at its full rate, with a queue of
// bounded length, instead of working for callers that have given up.
//
// The drain is measured, and believed to have fallen only while the loop was
// under pressure: an idle loop has not become slow. What did not move at all for a
// second (proposals of a group that cannot commit) is no queue: it is left out,
// and counts again little by little while others drain. Otherwise a group without a
// quorum, whose proposals stay, would shut out all others of its loop.
//
// The loop calls turn; everybody else only touches the atomics.
type admission struct {
	wait time.Duration
	why  string // told to who is refused

	pending atomic.Int64 // bytes admitted and not resolved
	drained atomic.Int64 // bytes resolved so far
	limit   atomic.Int64 // of pending
	refused atomic.Int64 // bytes refused so far
	retry   atomic.Int64 // what a refused caller is told to wait, ns
	next    atomic.Int64 // when turn has something to do (raft.Time)

	// Of the loop:
	began              raft.Time // of this window
	drainedAt, refusAt int64     // drained and refused when it began
	past               [admitMemory]window
	rate               float64 // bytes per second the loop can resolve
	stuck              int64   // bytes that do not move
	still, patience    int     // windows in which nothing drained; how many make what waits stuck
}

type window struct {
	took  time.Duration
	bytes int64
}

func (a *admission) init(wait time.Duration) {
	if wait <= 0 {
		wait = DefaultProposalWait
	}
	a.wait, a.patience = wait, stuckAfter
	a.why = fmt.Sprintf("writes would wait longer than %s on this node", wait)
	a.rate = max(admitStart, admitFloor/wait.Seconds())
	a.limit.Store(int64(a.rate * wait.Seconds()))
	a.retry.Store(int64(wait))
}

// admit counts a proposal of size bytes, or says how long its caller should stay
// away. vital ones are counted and never refused.
func (a *admission) admit(size int, vital bool) (retry time.Duration, ok bool) {
	n := a.pending.Add(int64(size))
	if limit := a.limit.Load(); n <= limit || vital || n == int64(size) || mutants.On("S19-wait") {
		return 0, true
	}
	a.pending.Add(-int64(size))
	a.refused.Add(int64(size))
	return time.Duration(a.retry.Load()), false
}

// resolve forgets proposals that were admitted.
func (a *admission) resolve(bytes int) {
	a.pending.Add(-int64(bytes))
	a.drained.Add(int64(bytes))
}

// withdraw forgets one that the loop never saw.
func (a *admission) withdraw(size int) { a.pending.Add(-int64(size)) }

// due reports whether turn has something to do at now. A loop that refuses
// everything may have nothing else to wake it.
func (a *admission) due(now raft.Time) bool { return int64(now) >= a.next.Load() }

// turn ends the window if it is over, and computes the limit anew.
func (a *admission) turn(now raft.Time) {
	if !a.due(now) {
		return
	}
	took := now.Sub(a.began)
	drained, refused, pending := a.drained.Load(), a.refused.Load(), a.pending.Load()
	bytes, turnedAway := drained-a.drainedAt, refused-a.refusAt
	first := a.began == 0
	a.began, a.drainedAt, a.refusAt = now, drained, refused
	a.next.Store(int64(now.Add(admitWindow)))
	if first {
		return
	}
	copy(a.past[1:], a.past[:admitMemory-1])
	a.past[0] = window{took, bytes}

	if a.still++; bytes > 0 {
		a.still, a.patience = 0, stuckAfter
		a.stuck = max(0, min(a.stuck, pending)-bytes/stuckReturn)
	} else if a.still >= a.patience && !mutants.On("S19-stuck") {
		a.still, a.patience = 0, 2*a.patience
		a.stuck = max(pending, 0)
	}
	// A stall ends in a burst: a single window may show more than the loop can do
	// in the long run, and all of them together may show the stall. Believe the
	// better one.
	var sum window
	for _, w := range a.past {
		sum.took += w.took
		sum.bytes += w.bytes
	}
	seen := max(a.past[0].rate(), sum.rate())
	if pressed := turnedAway > 0 || 2*pending > a.limit.Load(); pressed && bytes > 0 || seen > a.rate {
		a.rate = min(seen, admitGrowth*a.rate) // no burst is believed in full
	}
	queue := max(admitFloor, a.rate*a.wait.Seconds())
	a.limit.Store(int64(queue) + a.stuck)
	// Come back when the queue has drained, and those who were turned away, too,
	// could have been served.
	retry := time.Duration(float64(pending-a.stuck+turnedAway) / max(a.rate, 1) * float64(time.Second))
	a.retry.Store(int64(min(max(retry, retryMin), retryMax)))
}

func (w window) rate() float64 {
	if w.took <= 0 {
		return 0
	}
	return float64(w.bytes) / w.took.Seconds()
}

// release forgets proposals of this loop that are resolved.
func (l *loop) release(bytes int) {
	l.admission.resolve(bytes)
	l.h.release(bytes)
}

// admit decides about a proposal of size bytes for a shard of loop l, whose replica r
// is nil while it sleeps: it counts it and returns nil, or returns why it is refused.
func (h *Host) admit(l *loop, r *replica, shard raft.ShardID, size int) error {
	if n := h.pending.Add(int64(size)); n > h.maxBytes && n > int64(size) {
		h.pending.Add(-int64(size))
		h.stats.refused.Add(1)
		return &OverloadedError{RetryAfter: time.Duration(l.admission.retry.Load()), Why: "too many bytes of proposals wait on this node"}
	}
	if t := h.typical.Load(); int64(size) > 2*t || 2*int64(size) < t {
		h.typical.Store(max(1, (7*t+int64(size))/8))
	}
	// The table of shards and nodes is what everybody needs to get away from here.
	vital := shard == raft.MetaShard
	if wait := h.brake.Load(); wait > 0 && !vital && !mutants.On("GV1") {
		h.pending.Add(-int64(size))
		h.stats.refused.Add(1)
		return &OverloadedError{RetryAfter: time.Duration(wait), Why: "the memory of this node is used up (Limits.Memory)"}
	}
	if err := h.admitLog(r, vital); err != nil {
		h.pending.Add(-int64(size))
		h.stats.refused.Add(1)
		return err
	}
	retry, ok := l.admission.admit(size, vital)
	if ok {
		return nil
	}
	h.pending.Add(-int64(size))
	h.stats.refused.Add(1)
	if l.admission.due(h.clock.Now()) {
		l.in.signal()
	}
	if mutants.On("S19-retry") {
		retry = 0
	}
	return &OverloadedError{RetryAfter: retry, Why: l.admission.why}
}

// Syncs are kept apart while many writes wait, up to this long.
const (
	syncApart    = 2 * time.Millisecond
	apartFrom    = 32 // proposals that wait on the node
	apartLongest = 64
)

// SyncInterval says how long to keep syncs of the log apart now. Where many writes
// wait, each of them waits for others anyway, and fewer, larger rounds cost less: with
// 1024 clients 10 to 20 % more writes are done, and at 70,000 writes/s a write costs a
// fifth less. Where few wait a sync begins at once.
func (h *Host) SyncInterval() time.Duration {
	n := h.pending.Load() / max(1, h.typical.Load())
	if n < apartFrom {
		return 0
	}
	return syncApart * time.Duration(min(n, apartLongest)) / apartLongest
}
