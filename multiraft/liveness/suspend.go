package liveness

import (
	"time"

	"github.com/flotillakv/flotilla/internal/mutants"
	"github.com/flotillakv/flotilla/multiraft/raft"
)

// The monotonic clock of a machine that is suspended stands still, while the
// promises of its peers run out. The wall clock is set right on resume. So when
// the wall clock has moved against the monotonic one by more than MaxSuspend,
// nothing that rests on an answer from before may be counted. The wall clock can
// only take leases away: setting it by hand costs the leases of one heartbeat,
// never a stale read. (Where all clocks of a machine stand still together, as
// under a hypervisor that freezes it and hides that, leases are not safe; see
// docs/leases.md.)

const (
	// MaxSuspend is how far the wall clock may move against the monotonic one
	// without voiding all promises. A smaller difference counts as time that passed.
	MaxSuspend = 50 * time.Millisecond
	// anchorSlew is how much of a smaller difference is taken as usual with each
	// heartbeat: a promise spans few of them, which Slack covers.
	anchorSlew = 200 * time.Microsecond
)

// anchor is the difference of the two clocks that is taken as usual.
type anchor struct {
	diff  time.Duration
	known bool
}

// time returns the monotonic time plus what it seems to have missed, and false
// if that is too much, or if the wall clock was set back.
func (a anchor) time(at At) (raft.Time, bool) {
	d := at.diff() - a.diff
	if mutants.On("D9") {
		return at.Now.Add(d), true // the wall clock is believed
	}
	if at.Wall == 0 || mutants.On("D9c") {
		d = 0
	}
	return at.Now.Add(max(d, 0)), d <= MaxSuspend && d >= -MaxSuspend
}

func (at At) diff() time.Duration { return time.Duration(int64(at.Wall) - int64(at.Now)) }

// noteClocks drops everything counted if the clocks show that this machine was
// suspended (or its wall clock was set). Epochs stay: whether the peers still
// support them, the next answers tell.
func (r *Rules) noteClocks(at At, e *Effects) {
	switch {
	case at.Wall == 0:
		return
	case !r.anchor.known:
		r.anchor = anchor{diff: at.diff(), known: true}
		return
	}
	if _, ok := r.anchor.time(at); ok {
		return
	}
	r.anchor.diff = at.diff()
	for _, p := range r.peers {
		q := &p.req
		had := q.until != 0
		q.sent = [sentRing]sentBeat{}
		if q.until, q.since = 0, 0; q.asking && had {
			q.since = at.Now
		}
		if had {
			p.publish(e, true)
		}
	}
	r.nextBeat = min(r.nextBeat, at.Now)
}

// LeaseTime returns the time for judging what SupportFrom says. With ok false
// nothing of it may be counted before the next Step or Tick.
func (r *Rules) LeaseTime(at At) (now raft.Time, ok bool) {
	if !r.anchor.known {
		return at.Now, at.Wall == 0
	}
	return r.anchor.time(at)
}

// slewAnchor follows small, slow movements.
func (r *Rules) slewAnchor(at At) {
	if at.Wall != 0 && r.anchor.known {
		r.anchor.diff += min(max(at.diff()-r.anchor.diff, -anchorSlew), anchorSlew)
	}
}

// notAnchored is the published anchor while none is known: no instant agrees with it.
const notAnchored = int64(-1 << 63)

// LeaseArm returns a token for LeaseNow. It has to be taken before the promises
// are looked at (SupportFrom): a token from after a suspend was noticed then
// comes with promises from after it, too. Any goroutine may call it.
func (m *Manager) LeaseArm() int64 { return m.anchor.Load() }

// LeaseNow returns the time for judging promises that were looked at under the
// token, and whether they may be counted at all: it does not let through what a
// suspend of the machine may have made void. Any goroutine may call it.
func (m *Manager) LeaseNow(token int64) (now raft.Time, ok bool) {
	at := m.at()
	if token == notAnchored {
		return at.Now, false
	}
	return anchor{diff: time.Duration(token), known: true}.time(at)
}

// Instant is a Clock that reads both clocks in one go.
type Instant interface {
	Instant() (now raft.Time, wall uint64)
}

// at reads the clocks. The monotonic one comes first: what passes between the
// two readings looks like a suspend, not like none.
func (m *Manager) at() At {
	if m.instant != nil {
		now, wall := m.instant.Instant()
		return At{Now: now, Wall: wall}
	}
	now := m.clock.Now()
	return At{Now: now, Wall: m.clock.Wall()}
}
