package liveness

import (
	"slices"
	"time"

	"github.com/flotillakv/flotilla/multiraft/raft"
)

// MaxClockAhead is how far the own wall clock may be ahead of the median of
// the peers' before this node should refuse proposals (rule C6): entries carry
// group time, which only moves forward, so one clock that runs ahead would
// drag every group it leads along.
const MaxClockAhead = 10 * time.Second

// noteWall remembers how far the peer's wall clock is from ours.
func (p *peer) noteWall(at At, recv raft.Time, wall uint64) {
	if wall == 0 || at.Wall == 0 {
		return
	}
	ours := int64(at.Wall) - int64(at.Now.Sub(recv))
	p.offset, p.offsetAt, p.hasOffset = time.Duration(int64(wall)-ours), recv, true
}

// ClockAhead returns how far the own wall clock is ahead of the median of the
// wall clocks of peers heard within the last four support durations (negative:
// behind), and how many those are. With an even number the later of the two
// middle clocks counts, so that a single peer whose clock is behind does not
// stop this node. Zero peers: zero.
func (r *Rules) ClockAhead(now raft.Time) (ahead time.Duration, peers int) {
	var buf [16]time.Duration
	offs := buf[:0]
	for _, p := range r.peers {
		if p.hasOffset && now.Sub(p.offsetAt) <= 4*r.cfg.Duration {
			offs = append(offs, p.offset)
		}
	}
	if len(offs) == 0 {
		return 0, 0
	}
	slices.Sort(offs)
	return -offs[len(offs)/2], len(offs)
}
