package t1

import (
	"context"
	"time"

	"github.com/flotillakv/flotilla/multiraft/raft"
)

// nodeClock is the clock of one node in one life: it started somewhere and runs
// a little too fast or too slow.
type nodeClock struct {
	w      *World
	origin raft.Time // reading at boot
	bootAt int64
	rate   float64 // 1 + drift
	wall   int64   // jump of the wall clock
	lost   int64   // for how long the machine was suspended
}

// Now implements multiraft.Clock, liveness.Clock and snapshot.Clock.
func (c *nodeClock) Now() raft.Time {
	return c.origin + raft.Time(float64(c.w.now-c.bootAt-c.lost)*c.rate)
}

// Wall implements multiraft.Clock: it drifts with the other one, but is set right
// after a suspend.
func (c *nodeClock) Wall() uint64 {
	return uint64(epochNanos + c.bootAt + c.lost + int64(c.Now()-c.origin) + c.wall)
}

// Wait implements liveness.Clock; nobody waits here.
func (c *nodeClock) Wait(raft.Time, <-chan struct{}) { panic("t1: a step function waits") }

// Sleep implements snapshot.Clock, for the coroutine that runs.
func (c *nodeClock) Sleep(ctx context.Context, d time.Duration) error {
	if !c.w.task.sleep(time.Duration(float64(d) / c.rate)) {
		return errStopped
	}
	return ctx.Err()
}

// world returns the first moment at which the clock shows t or more.
func (c *nodeClock) world(t raft.Time) int64 {
	at := c.bootAt + c.lost + int64(float64(t-c.origin)/c.rate)
	for c.origin+raft.Time(float64(at-c.bootAt-c.lost)*c.rate) < t {
		at++
	}
	return at
}

// epochNanos is the wall time at which simulations begin: 2026-01-01.
const epochNanos = 1767225600e9
