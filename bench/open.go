package bench

import (
	"context"
	"sync/atomic"
	"time"
)

// open is the state of an open loop: operations arrive at planned times, whether
// or not earlier ones have ended, and clients that are free take them.
type open struct {
	// arrivals hands over when an operation was planned, counted from the run's
	// start. Its room is what may wait beyond the clients.
	arrivals chan time.Duration
	// An operation is shed at its arrival, or taken and later ended.
	shed, taken, ended atomic.Int64
}

// arrive lets operations arrive at the run's rate until it stops. It sleeps until
// the next one is due and hands over all that are due then, so that a late
// wake-up delays arrivals (which counts as latency) and loses none.
func (r *run) arrive(ctx context.Context) {
	defer close(r.arrivals)
	timer := time.NewTimer(time.Hour)
	defer timer.Stop()
	for n := int64(0); !r.stopped.Load(); n++ {
		planned := time.Duration(float64(n) / r.Rate * float64(time.Second))
		if wait := planned - time.Since(r.start); wait > 0 {
			timer.Reset(wait)
			select {
			case <-timer.C:
			case <-ctx.Done():
				return
			}
		}
		r.taken.Add(1)
		select {
		case r.arrivals <- planned:
		default:
			r.taken.Add(-1)
			r.shed.Add(1)
		}
	}
}

// server is a client of an open loop, until nothing arrives any more.
func (r *run) server(ctx context.Context, i int) {
	gen, target, rec := r.Set.Client(i), r.Targets[i%len(r.Targets)], r.rec.shard(i)
	limited, done := r.limit(ctx)
	defer func() { done() }()
	for planned := range r.arrivals {
		if r.stopped.Load() || ctx.Err() != nil {
			return
		}
		if time.Since(limited.since) > r.Timeout/8 {
			done()
			limited, done = r.limit(ctx)
		}
		_ = r.turn(limited, gen, target, rec, r.start.Add(planned)) // counted by turn
		r.ended.Add(1)
	}
}
