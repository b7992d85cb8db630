package snapshot

import (
	"testing"
	"time"

	"github.com/flotillakv/flotilla/multiraft/raft"
)

// workClock moves on with every look at it, as if work was done.
type workClock struct {
	handClock
}

func (c *workClock) Now() raft.Time {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.now = c.now.Add(300 * time.Microsecond)
	return c.now
}

// TestRestsWhileBusy: while the node serves others, both ends and the making of tables
// rest about three times as long as they work, and no longer than that; else they do not rest.
func TestRestsWhileBusy(t *testing.T) {
	for _, busy := range []bool{false, true} {
		p := newPair(t, 3000)
		clocks := map[*Store]*workClock{}
		for _, s := range []**Store{&p.send, &p.recv} {
			clock := &workClock{handClock: handClock{now: 1}}
			e := p.from
			if s == &p.recv {
				e = p.to
			}
			*s = newStore(t, e, (*s).o.Node, func(o *Options) { o.Clock, o.Busy = clock, func() bool { return busy } })
			clocks[*s] = clock
		}
		p.link.to = p.recv
		check(t, p.run(t))
		p.same(t)
		for _, s := range []*Store{p.send, p.recv} {
			paced, all := time.Duration(s.Counters().PacedNanos), time.Duration(clocks[s].Now())
			if !busy && paced != 0 || busy && (paced < all*3/10 || paced > all*8/10) {
				t.Errorf("busy %v, node %d: rested %v of %v", busy, s.o.Node, paced, all)
			}
		}
	}
}
