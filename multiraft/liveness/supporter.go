package liveness

import (
	"github.com/flotillakv/flotilla/internal/mutants"
	"github.com/flotillakv/flotilla/multiraft/raft"
)

// supportState is where a promise stands.
type supportState uint8

const (
	// supportNone: nothing stands; epoch is zero or withdrawn, durably.
	supportNone supportState = iota
	// supportAccepting: epoch is being written; it was neither shown nor answered.
	supportAccepting
	// supportLive: epoch is durable and stands until until.
	supportLive
	// supportWithdrawing: the end of epoch is being written; still shown, no
	// longer extended or answered (B2).
	supportWithdrawing
)

// supporter is the promise this node makes to a peer.
type supporter struct {
	state supportState
	// epoch is the highest epoch accepted or being accepted. It never decreases.
	epoch raft.Epoch
	until raft.Time
	// shown and shownLive are what SupportFor says. shownLive goes false, and
	// shown moves on, only when what makes it so is durable.
	shown     raft.Epoch
	shownLive bool
	// token of the write in flight: accepting or withdrawing. Zero otherwise.
	token uint64
	// seq of the heartbeat that is answered once the acceptance is durable.
	seq uint64
	// giveUp: support up to this epoch was given back while a write was in flight.
	giveUp raft.Epoch
	// later is the newest heartbeat that came while a write was in flight.
	later struct {
		epoch raft.Epoch
		seq   uint64
		recv  raft.Time
	}
}

// restore takes over what the disk says. A promise that was not withdrawn
// stands until the time given: longer than any extension that was lost.
func (s *supporter) restore(rec Record, until raft.Time) {
	s.epoch, s.shown = rec.Epoch, rec.Epoch
	if rec.Withdrawn || mutants.On("D14d") {
		return
	}
	s.state, s.shownLive, s.until = supportLive, true, until
}

func (s *supporter) deadline() raft.Time {
	if s.state == supportLive {
		return s.until
	}
	return FarFuture
}

// heartbeat handles the question of p for support at epoch.
func (r *Rules) heartbeat(p *peer, now, recv raft.Time, epoch raft.Epoch, seq uint64, e *Effects) {
	s := &p.sup
	if s.token != 0 {
		// A write is in flight. Whatever the end of that epoch is, a question
		// for it or an older one is not answered before; a newer one waits.
		if s.state == supportWithdrawing && epoch <= s.epoch || epoch < s.epoch || epoch < s.later.epoch {
			return
		}
		s.later.epoch, s.later.seq, s.later.recv = epoch, seq, recv
		return
	}
	r.expire(p, recv, e) // a promise that had run out is withdrawn, not extended
	if s.token != 0 {
		if epoch > s.epoch {
			s.later.epoch, s.later.seq, s.later.recv = epoch, seq, recv
		}
		return
	}
	switch {
	case epoch > s.epoch:
		// The asker abandoned every older epoch before it sent this one, so a
		// standing promise may be replaced; it is shown until the new one is durable.
		s.state, s.epoch, s.seq, s.until = supportAccepting, epoch, seq, recv.Add(r.cfg.Duration)
		r.persist(p, Record{Node: p.node, Epoch: epoch}, e)
		if mutants.On("D14b") {
			r.answer(p, seq, e)
		}
	case epoch == s.epoch && (s.state == supportLive || mutants.On("D14e")):
		if mutants.On("D14e") {
			s.state, s.shownLive = supportLive, true
		}
		s.until = max(s.until, recv.Add(r.cfg.Duration))
		r.answer(p, seq, e)
	default:
		// Old or withdrawn: tell which epoch is recorded, so that the asker jumps over it.
		e.send(p.node, raft.Ctl{Kind: raft.CtlReply, Refused: true, Epoch: s.epoch, Seq: seq, Score: r.score})
	}
}

// persisted handles the end of the write in flight of p.
func (r *Rules) persisted(p *peer, now raft.Time, e *Effects) {
	s := &p.sup
	s.token = 0
	later := s.later
	s.later.epoch, s.later.seq, s.later.recv = 0, 0, 0
	switch s.state {
	case supportAccepting:
		s.state, s.shown, s.shownLive = supportLive, s.epoch, true
		p.publish(e, true)
		if later.epoch == s.epoch {
			s.until = max(s.until, later.recv.Add(r.cfg.Duration))
			s.seq = max(s.seq, later.seq)
			later.epoch = 0
		}
		if s.giveUp >= s.epoch || now >= s.until {
			r.withdraw(p, e)
		} else if later.epoch == 0 {
			r.answer(p, s.seq, e)
		}
	case supportWithdrawing:
		s.state, s.shownLive = supportNone, false
		p.publish(e, true)
		e.send(p.node, raft.Ctl{Kind: raft.CtlWithdrawn, Epoch: s.epoch, Score: r.score})
	}
	if later.epoch != 0 {
		r.heartbeat(p, now, later.recv, later.epoch, later.seq, e)
	}
}

// expire decides to withdraw a promise that ran out.
func (r *Rules) expire(p *peer, now raft.Time, e *Effects) {
	if p.sup.state == supportLive && now >= p.sup.until {
		r.withdraw(p, e)
	}
}

// relinquishedBy handles "I give back your promise at epoch".
func (r *Rules) relinquishedBy(p *peer, now raft.Time, epoch raft.Epoch, e *Effects) {
	s := &p.sup
	if epoch < s.epoch || s.epoch == 0 {
		return
	}
	switch s.state {
	case supportLive:
		r.withdraw(p, e)
	case supportAccepting:
		s.giveUp = s.epoch
	}
}

// withdraw is the decision (B2): from here on the epoch is neither extended
// nor answered; it is shown as standing until the record is durable.
func (r *Rules) withdraw(p *peer, e *Effects) {
	p.sup.state = supportWithdrawing
	if mutants.On("D14") {
		p.sup.shownLive = false
		p.publish(e, true)
	}
	r.persist(p, Record{Node: p.node, Epoch: p.sup.epoch, Withdrawn: true}, e)
}

func (r *Rules) persist(p *peer, rec Record, e *Effects) {
	r.lastToken++
	p.sup.token = r.lastToken
	e.Persists = append(e.Persists, Persist{Token: r.lastToken, Record: rec})
}

// answer says yes. Wall, which answers have no other use for, carries this
// node's support duration in nanoseconds.
func (r *Rules) answer(p *peer, seq uint64, e *Effects) {
	e.send(p.node, raft.Ctl{Kind: raft.CtlReply, Epoch: p.sup.epoch, Seq: seq, Score: r.score, Wall: uint64(r.cfg.Duration)})
}
