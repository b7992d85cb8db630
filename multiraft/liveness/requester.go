package liveness

import (
	"time"

	"github.com/flotillakv/flotilla/internal/mutants"
	"github.com/flotillakv/flotilla/multiraft/raft"
)

// requester is the promise this node asks of a peer.
type requester struct {
	// asking: the peer is to be asked (it was added, not only heard of).
	asking bool
	// ahead: the peer remembers an epoch of a later boot of this node than the
	// present one. This store is older than what the peer was shown; support
	// cannot be had until the boot epoch has passed that one.
	ahead bool
	// epoch is what heartbeats ask for. It never decreases during a boot.
	epoch raft.Epoch
	// until is the time up to which the peer's support at epoch is counted.
	// Zero: none yet at this epoch.
	until raft.Time
	// since is when epoch was asked for first. Zero: not yet.
	since raft.Time
	seq   uint64
	// sent holds the last heartbeats, at seq modulo its length.
	sent [sentRing]sentBeat
}

type sentBeat struct {
	seq   uint64
	epoch raft.Epoch
	at    raft.Time
}

func (q *requester) deadline(d time.Duration) raft.Time {
	switch {
	case q.until != 0:
		return q.until
	case q.since != 0:
		return q.since.Add(d)
	}
	return FarFuture
}

// next takes up a new epoch above floor (B3). The old one is never asked for
// or counted again.
func (q *requester) next(floor raft.Epoch) {
	q.epoch = max(q.epoch, floor) + 1
	q.until, q.since = 0, 0
}

// ask sends the heartbeat that is due to p.
func (r *Rules) ask(p *peer, at At, e *Effects) {
	q := &p.req
	if !q.asking {
		return
	}
	r.lapse(p, at.Now, e)
	q.seq++
	s := &q.sent[q.seq%sentRing]
	s.seq, s.epoch, s.at = q.seq, q.epoch, at.Now
	if q.since == 0 {
		q.since = at.Now
	}
	e.send(p.node, raft.Ctl{Kind: raft.CtlHeartbeat, Epoch: q.epoch, Seq: q.seq, Wall: at.Wall, Score: r.score})
}

// lapse abandons the epoch when its support ran out by the own clock (C2), or
// never came within D. Otherwise, on a link that works one way only, the peer
// would support this node for ever while this node cannot lead.
func (r *Rules) lapse(p *peer, now raft.Time, e *Effects) {
	q := &p.req
	if !q.asking || now < q.deadline(r.cfg.Duration) {
		return
	}
	had := q.until != 0
	if mutants.On("B0-C2") {
		q.until, q.since = 0, 0
	} else {
		q.next(0)
	}
	p.publish(e, had)
}

// reply handles an answer to a heartbeat.
func (r *Rules) reply(p *peer, now raft.Time, c raft.Ctl, e *Effects) {
	q := &p.req
	r.lapse(p, now, e)
	s := q.sent[c.Seq%sentRing]
	if !q.asking || c.Seq == 0 || s.seq != c.Seq || s.epoch != q.epoch || r.stopped {
		return // an answer to an epoch that was abandoned, or too old to matter
	}
	if c.Refused {
		// The same epoch: either it was withdrawn, which cannot be while it is
		// counted (a promise outlasts its count), or this answers a very old
		// heartbeat, of another boot, with the number of a recent one.
		if c.Epoch > q.epoch || c.Epoch == q.epoch && (q.until == 0 || mutants.On("V2")) {
			r.refused(p, now, c.Epoch, e)
		}
		return
	}
	if c.Epoch != q.epoch {
		return
	}
	d := r.cfg.Duration
	if c.Wall != 0 && c.Wall < uint64(d) {
		d = time.Duration(c.Wall)
	}
	until := s.at.Add(r.cfg.counted(d))
	if mutants.On("D14c") {
		until = now.Add(d)
	}
	if until <= now || until <= q.until {
		return
	}
	first := q.until == 0
	q.until, q.ahead = until, false
	p.publish(e, first)
}

// withdrawnBy handles "I withdrew my support up to epoch".
func (r *Rules) withdrawnBy(p *peer, now raft.Time, epoch raft.Epoch, e *Effects) {
	r.lapse(p, now, e)
	if p.req.asking && !r.stopped && epoch >= p.req.epoch {
		r.refused(p, now, epoch, e)
	}
}

// refused takes up an epoch above the one the peer recorded, and asks at once.
func (r *Rules) refused(p *peer, now raft.Time, recorded raft.Epoch, e *Effects) {
	q := &p.req
	had := q.until != 0
	if uint64(recorded)>>32 > r.cfg.BootEpoch && !mutants.On("B18d") {
		// The peer was shown a later boot of this node. Jumping there would
		// make the epochs of two boots meet. Stay refused, and let it be seen.
		q.ahead = true
		q.next(0)
		p.publish(e, had)
		return
	}
	q.next(recorded)
	p.publish(e, had)
	r.nextBeat = min(r.nextBeat, now)
}

// giveBack stops counting p's support and tells p so (B6: in that order).
func (r *Rules) giveBack(p *peer, e *Effects) {
	q := &p.req
	if !q.asking {
		return
	}
	old := q.epoch
	if !mutants.On("B0-B6") {
		q.next(0)
		p.publish(e, true)
	}
	e.send(p.node, raft.Ctl{Kind: raft.CtlRelinquish, Epoch: old})
}
