package flotilla

import (
	"cmp"
	"context"
	"time"
)

const (
	// scrubRate bounds what a scrub reads, in bytes per second: 1 TiB in three days.
	scrubRate = 4 << 20
	// scrubEvery is Timing.Scrub if that is zero.
	scrubEvery = 6 * time.Hour
)

// scrubLoop reads all tables on the disk again and again, slowly: a block that has
// rotted is found while other replicas are well, not when they are gone.
func (n *Node) scrubLoop() {
	pause := cmp.Or(n.o.Timing.Scrub, scrubEvery)
	if pause < 0 {
		return
	}
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	n.wg.Go(func() { <-n.stop; cancel() })
	t := time.NewTimer(pause)
	defer t.Stop()
	for {
		select {
		case <-t.C:
		case <-ctx.Done():
			return
		}
		read, err := n.eng.Scrub(ctx, scrubRate)
		n.scrubbed.Add(read)
		if err != nil {
			return // the node stops
		}
		t.Reset(pause)
	}
}
