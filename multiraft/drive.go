package multiraft

import (
	"runtime"
	"time"

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
		h.wg.Go(func() {
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
			<-l.h.stop
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
	closed := error(ErrClosed)
	h.dead.CompareAndSwap(nil, &closed)
	close(h.stop)
	for _, l := range h.loops {
		l.syncer.finish()
	}
}

// Close ends the loops and waits for them. Requests that were not proposed get
// ErrClosed; those that were get ErrAmbiguous. Close is idempotent.
func (h *Host) Close() {
	h.Halt()
	h.wg.Wait()
	h.abandoned.Do(func() {
		for _, l := range h.loops {
			l.abandon()
		}
	})
}

// abandon answers everything that is still open. The loop's goroutine is gone.
func (l *loop) abandon() {
	rest := l.in.close()
	for i := range rest.props {
		l.done.propose(rest.props[i].done, nil, 0, 0, ErrClosed)
	}
	for i := range rest.reads {
		l.done.read(rest.reads[i].done, 0, ErrClosed)
	}
	for _, r := range l.order {
		r.failQueued(ErrClosed, &l.done)
		r.failWaiting(ErrAmbiguous, &l.done)
		r.failReads(ErrClosed, &l.done)
	}
	l.done.flush()
	if l.batch != nil {
		l.batch.Close()
		l.batch = nil
	}
	l.out = raft.Out{}
}
