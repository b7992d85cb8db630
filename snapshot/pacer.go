package snapshot

import (
	"context"
	"time"

	"github.com/flotillakv/flotilla/multiraft/raft"
)

const (
	// restAfter is how much work is done between two rests.
	restAfter = time.Millisecond
	// restMost is what of a piece of work counts at most: what took longer did not work,
	// it waited.
	restMost = 5 * time.Millisecond
	// restFactor is how much longer than it worked it rests. With 1 a transfer is half as
	// fast as it can be, and the slowest writes beside it waited up to ten times as long
	// as without it, on two processors; with 3 two to four times (docs/performance.md).
	restFactor = 3
)

// duty makes a goroutine that moves snapshots rest longer than it worked while the node
// serves others: processors and disk are its own a quarter of the time at most. So
// whoever waits for a write finds a gap every few milliseconds. It is owned by one goroutine.
type duty struct {
	s      *Store
	began  raft.Time
	worked time.Duration // since the last rest
}

// start begins a piece of work.
func (d *duty) start() {
	if d.s.o.Busy != nil {
		d.began = d.s.o.Clock.Now()
	}
}

// stop ends it, at most most of which was work, and rests if it is time to. It returns
// the context's error.
func (d *duty) stop(ctx context.Context, most time.Duration) error {
	if d.s.o.Busy == nil {
		return nil
	}
	now := d.s.o.Clock.Now()
	if d.worked += min(most, now.Sub(d.began)); d.worked < restAfter {
		return nil
	}
	rest := restFactor * min(d.worked, restMost)
	if d.worked = 0; !d.s.o.Busy() {
		return nil
	}
	err := d.s.o.Clock.Sleep(ctx, rest)
	d.s.count.paced.Add(uint64(d.s.o.Clock.Now().Sub(now)))
	return err
}
