package liveness

import (
	"encoding/binary"
	"slices"
	"time"

	"github.com/flotillakv/flotilla/multiraft/raft"
)

// This file is for explicit-state exploration (package internal/sim/explore):
// copies of the rules, a canonical form by which equal ones are recognised, and
// the passing of time as a change of everything that names an instant. A test
// holds it complete.

// Clone returns rules that behave as r and share no memory with it.
func (r *Rules) Clone() *Rules {
	n := *r
	n.peers = make([]*peer, len(r.peers))
	for i, p := range r.peers {
		c := *p
		n.peers[i] = &c
	}
	return &n
}

// Age lets d pass while the clock stays at now: every instant in r moves back by
// d. What lies too far back to matter any more is brought to where it just does not.
func (r *Rules) Age(now raft.Time, d time.Duration) {
	back := func(t *raft.Time, floor raft.Time) { *t = max(t.Add(-d), floor) }
	past := now.Add(-2 * r.cfg.Duration)
	back(&r.nextBeat, now)
	if !slices.ContainsFunc(r.peers, func(p *peer) bool { return p.sup.token != 0 }) {
		r.lastToken = 0 // all tokens given out are done with
	}
	for _, p := range r.peers {
		s, q := &p.sup, &p.req
		switch s.state {
		case supportAccepting, supportLive:
			back(&s.until, now)
		default:
			s.until = 0
		}
		if s.later.epoch != 0 {
			back(&s.later.recv, past)
		}
		if q.until != 0 {
			back(&q.until, now)
		}
		if q.since != 0 {
			back(&q.since, past)
		}
		for i := range q.sent {
			if b := &q.sent[i]; b.seq != 0 {
				back(&b.at, past)
			}
		}
		back(&p.offsetAt, past)
	}
}

// AppendState appends a form of r at instant now that is equal for rules of one
// configuration that behave alike from now on. Wall clocks are left out: it is
// for nodes that have none (At.Wall zero).
func (r *Rules) AppendState(dst []byte, now raft.Time) []byte {
	u := binary.AppendUvarint
	at := func(t raft.Time) {
		if t == 0 {
			dst = append(dst, 0)
			return
		}
		dst = binary.AppendVarint(append(dst, 1), int64(t-now))
	}
	dst = u(u(dst, r.cfg.BootEpoch), r.lastToken)
	dst = append(dst, bit(r.blocked), bit(r.stopped), bit(r.selfOpen), r.score)
	at(r.nextBeat)
	for _, p := range r.peers {
		s, q := &p.sup, &p.req
		dst = append(u(dst, uint64(p.node)), p.score, byte(s.state), bit(s.shownLive))
		dst = u(u(u(u(dst, uint64(s.epoch)), uint64(s.shown)), s.token), s.seq)
		at(s.until)
		dst = u(u(u(dst, uint64(s.giveUp)), uint64(s.later.epoch)), s.later.seq)
		at(s.later.recv)
		dst = u(append(dst, bit(q.asking), bit(q.ahead)), uint64(q.epoch))
		at(q.until)
		at(q.since)
		dst = u(dst, q.seq)
		for i := range q.sent {
			b := &q.sent[i]
			dst = u(u(dst, b.seq), uint64(b.epoch))
			at(b.at)
		}
	}
	return dst
}

func bit(b bool) byte {
	if b {
		return 1
	}
	return 0
}
