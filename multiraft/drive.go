package multiraft

import (
	"errors"
	"runtime"
	"time"

	"github.com/flotillakv/flotilla/engine"
	"github.com/flotillakv/flotilla/multiraft/raft"
)

func defaultLoops() int { return max(1, min(16, runtime.GOMAXPROCS(0)/2)) }

// Start begins to run the loops.
func (h *Host) Start() {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.started || h.closed {
		return
	}
	h.started = true
	for _, l := range h.loops {
		h.wg.Go(func() { l.drive() })
		h.syncs.Go(func() {
			for l.syncer.step() {
			}
		})
	}
}

// drive is goroutine "loop".
func (l *loop) drive() {
	timer := time.NewTimer(time.Hour)
	defer timer.Stop()
	for {
		select {
		case <-l.h.stop:
			return
		default:
		}
		if l.h.dead.Load() != nil {
			select {
			case <-l.h.stop: // Close answers what is open
			default:
				l.abandon()
			}
			return
		}
		now := l.h.clock.Now()
		l.idle.Store(false)
		l.roundAt.Store(int64(now))
		if l.step(now) {
			continue
		}
		deadline, has, busy := l.next()
		if busy {
			continue
		}
		var tick <-chan time.Time
		if has {
			timer.Reset(max(deadline.Sub(l.h.clock.Now()), 0))
			tick = timer.C
		}
		l.idle.Store(l.inFlight == 0)
		select {
		case <-l.in.wake:
		case <-tick:
		case <-l.h.stop:
			return
		}
	}
}

// Halt ends the loops without waiting for them: a round that is under way ends,
// no other begins, and no sync that returns later is acknowledged to anybody.
// What is open stays open until Close.
func (h *Host) Halt() {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.closed {
		return
	}
	h.closed = true
	close(h.stop)
	closed := error(ErrClosed)
	h.dead.CompareAndSwap(nil, &closed)
}

// closeGrace bounds how long Close waits for a loop once the store has failed:
// a loop may be in the store then and never come back.
const closeGrace = time.Second

// Close ends the loops and waits for them. Requests that were not proposed get
// ErrClosed; those that were get ErrAmbiguous. If the store has failed and a loop
// does not come back from it, Close does not wait for that loop, whose proposals
// are never answered then. Close is idempotent, and may be called by OnFatal.
func (h *Host) Close() {
	h.Halt()
	h.join.Do(func() {
		done := make(chan struct{})
		go func() {
			defer close(done)
			h.wg.Wait()
			for _, l := range h.loops {
				l.syncer.finish() // no loop submits any more
			}
			h.syncs.Wait()
			for _, l := range h.loops {
				l.abandon()
				for l.syncer.step() { // of a host that was not started
				}
			}
		}()
		if h.await(done) {
			return
		}
		h.logger.Error("a loop does not come back from the failed store; it is left there")
		for _, l := range h.loops {
			c := completions{waiting: &h.reads}
			l.refuseRest(&c)
			c.flush()
		}
	})
}

// await waits for done. It gives up, and reports false, some time after the store failed.
func (h *Host) await(done <-chan struct{}) bool {
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	var over <-chan time.Time
	for {
		select {
		case <-done:
			return true
		case <-over:
			return false
		case <-tick.C:
			if over != nil {
				continue
			}
			if _, _, err := h.engine.Tombstone(raft.MetaShard); errors.Is(err, engine.ErrFailed) {
				over = time.After(closeGrace)
			}
		}
	}
}

// refuseRest closes the inbox and refuses what was in it.
func (l *loop) refuseRest(c *completions) {
	rest := l.in.close()
	for i := range rest.props {
		c.propose(rest.props[i].done, nil, 0, 0, ErrClosed)
		l.release(rest.props[i].size)
	}
	for i := range rest.reads {
		c.read(rest.reads[i].done, 0, ErrClosed)
	}
}

// abandon answers everything that is still open, once. It is the last thing the
// loop's goroutine does when the node fails; else that goroutine is gone.
func (l *loop) abandon() {
	select {
	case <-l.gone:
		return
	default:
	}
	l.done.spoil()
	l.refuseRest(&l.done)
	for _, r := range l.inOrder() {
		r.failQueued(ErrClosed, &l.done)
		r.failWaiting(ErrAmbiguous, &l.done)
		r.failReads(ErrClosed, &l.done)
	}
	close(l.gone)
	l.done.flush()
	if l.batch != nil {
		l.batch.Close()
		l.batch = nil
	}
	l.out = raft.Out{}
}
