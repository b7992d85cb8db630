package multiraft

import (
	"fmt"
	"sync/atomic"
	"time"

	"github.com/flotillakv/flotilla/engine"
	"github.com/flotillakv/flotilla/internal/mutants"
	"github.com/flotillakv/flotilla/multiraft/raft"
)

// logCap keeps what the Raft logs of a node take on the disk below Config.LogBytes. By
// how much of that is in use there are three zones:
//
//	soft  Nothing is kept any more for replicas on nodes that are not live; the slowest
//	      live one still gets its entries from the log.
//	firm  Logs are cut through all that is applied and in tables, and what is applied in
//	      memory only is brought to tables. Whoever lags needs a snapshot. A growing share
//	      of the proposals of the groups with the largest logs is refused as overloaded.
//	hard  All proposals are refused with ErrLogBudget, and a little later entries of other
//	      leaders are not taken in, as if they had been lost. What is vital to get out of
//	      that (the meta shard, changes of membership) passes.
//
// Groups are pressed largest log first, only as many as it takes to get below the soft
// zone. A zone is left well below where it is entered. Each node decides for itself: a
// replica may cut what it has applied whatever the leader says (raft.PressureAll).
type logCap struct {
	limit int64 // zero: none
	// Of loop 0:
	zone   LogZone
	lookAt raft.Time
	// For everybody:
	shown   atomic.Int32 // zone
	pressed atomic.Int32 // groups
	waiting atomic.Bool  // somebody was refused since the last look
	total   atomic.Int64 // bytes at the last look
}

// LogZone says how full the logs of a node are.
type LogZone uint8

// The zones, from the one in which nothing happens. See logCap.
const (
	ZoneNone LogZone = iota
	ZoneSoft
	ZoneFirm
	ZoneHard
)

// String returns the zone's name.
func (z LogZone) String() string {
	if int(z) >= len(zoneNames) {
		return fmt.Sprintf("zone %d", z)
	}
	return zoneNames[z]
}

var zoneNames = [...]string{"none", "soft", "firm", "hard"}

// Zones begin at these shares of the limit, in percent; they end at five sixths of them.
var zoneFrom = [...]int64{ZoneSoft: 50, ZoneFirm: 70, ZoneHard: 85}

const (
	// logFullPercent is where entries of leaders are not taken in any more: behind
	// ZoneHard, since what this node's peers have proposed already shall find room.
	logFullPercent = 92
	// lookEvery is how often the logs are looked at while something goes on.
	lookEvery = 100 * time.Millisecond
	// logRetry is what refused callers are told to wait: a flush takes about as long.
	logRetry = 250 * time.Millisecond
)

// zoneOf returns the zone for used bytes of limit, coming from zone was.
func zoneOf(used, limit int64, was LogZone) LogZone {
	z := ZoneHard
	for ; z > ZoneNone; z-- {
		from := limit / 100 * zoneFrom[z]
		if z <= was && !mutants.On("LC4") {
			from = from / 6 * 5
		}
		if used >= from {
			break
		}
	}
	return z
}

// LogStatus is what the logs of a node take.
type LogStatus struct {
	Bytes   int64 // at the last look, at most some 100 ms ago while writes are going on
	Limit   int64 // zero: none
	Zone    LogZone
	Pressed int    // groups that were told to cut their logs
	Turned  uint64 // messages whose entries were not taken in for want of room
}

// LogStatus returns what the logs of this node take.
func (h *Host) LogStatus() LogStatus {
	s := LogStatus{Bytes: h.logCap.total.Load(), Limit: h.logCap.limit, Zone: LogZone(h.logCap.shown.Load()),
		Pressed: int(h.logCap.pressed.Load()), Turned: h.stats.logTurned.Load()}
	if s.Zone == ZoneNone { // it may be long since anybody looked
		s.Bytes = h.engine.LogUsage().Total()
	}
	return s
}

// logSlow refuses a share of the proposals of a group.
type logSlow struct {
	share atomic.Int32 // per thousand
	seen  atomic.Uint64
}

// refuse reports whether the next proposal is one of those, spread evenly.
func (s *logSlow) refuse() bool {
	share := uint64(s.share.Load())
	if share == 0 {
		return false
	}
	n := s.seen.Add(1)
	return n*share/1000 != (n-1)*share/1000
}

// admitLog decides whether a proposal for r may make the logs grow.
func (h *Host) admitLog(r *replica, vital bool) error {
	c := &h.logCap
	if c.limit == 0 || vital || mutants.On("LC1") {
		return nil
	}
	// What was admitted is not in the log yet; there it will be in a record and in the
	// write-ahead log.
	if h.logBytes()+2*h.pending.Load() >= c.limit/100*zoneFrom[ZoneHard] {
		if !c.waiting.Swap(true) {
			h.loops[0].in.signal()
		}
		if e := h.unsynced.worst(); e != nil {
			return e
		}
		return ErrLogBudget
	}
	if r != nil && r.slow.refuse() {
		return &OverloadedError{RetryAfter: logRetry, Why: fmt.Sprintf("the logs of this node are nearly as large as they may be, and shard %d has one of the largest", r.shard)}
	}
	return nil
}

// logBytes is what the logs take, as far as it can be told at no cost.
func (h *Host) logBytes() int64 {
	if h.stepper != nil { // Pebble's flushes come when they come: the rest follows from the inputs
		return h.engine.JournalBytes()
	}
	return h.engine.LogBytes()
}

// nextLook returns when the logs have to be looked at even if nothing goes on.
func (l *loop) nextLook() raft.Time {
	c := &l.h.logCap
	if l.id != 0 || c.limit == 0 || c.zone == ZoneNone && !c.waiting.Load() {
		return raft.Never
	}
	return c.lookAt
}

// lookAtLog compares the logs with their cap, and sees to it that they are cut.
func (l *loop) lookAtLog(now raft.Time) {
	c := &l.h.logCap
	if c.limit == 0 {
		return
	}
	l.logFull = l.h.logBytes() >= c.limit/100*logFullPercent
	if l.id != 0 || now < c.lookAt {
		return
	}
	c.lookAt = now.Add(lookEvery)
	c.waiting.Store(false)
	_ = l.h.engine.LogUsage() // logBytes knows of what has gone then
	used := l.h.logBytes()
	c.total.Store(used)
	was := c.zone
	c.zone = zoneOf(used, c.limit, was)
	c.shown.Store(int32(c.zone))
	if c.zone != was {
		l.h.logger.Info("the logs of this node changed their zone", "zone", c.zone.String(), "bytes", used, "limit", c.limit)
	}
	if c.zone == ZoneNone {
		if was != ZoneNone {
			l.h.press(nil, 0)
		}
		return
	}
	if c.zone >= ZoneFirm {
		l.h.engine.ReclaimLog()
	}
	l.h.press(l.h.choose(used), l.h.share(used))
}

// share returns how many of a thousand proposals of the groups with the largest logs
// are refused: none at the beginning of the firm zone, most near the hard one.
func (h *Host) share(used int64) int32 {
	from, to := h.logCap.limit/100*zoneFrom[ZoneFirm], h.logCap.limit/100*zoneFrom[ZoneHard]
	return int32(min(max((used-from)*900/max(1, to-from), 0), 900))
}

// slowest is how many groups are slowed down at a time: those with the largest logs.
const slowest = 16

// choose returns how groups are pressed: the largest logs first, until all that is above
// the soft zone would be gone.
func (h *Host) choose(used int64) []pressedGroup {
	c := &h.logCap
	p := raft.PressureDead
	if c.zone >= ZoneFirm {
		p = raft.PressureAll
	}
	need := used - c.limit/100*zoneFrom[ZoneSoft]*5/6
	var out []pressedGroup
	for _, g := range h.engine.GroupLogs() {
		if need <= 0 || g.Bytes == 0 {
			break
		}
		// In records and in the write-ahead log.
		need -= 2 * g.Bytes
		out = append(out, pressedGroup{GroupLog: g, pressure: p})
	}
	return out
}

type pressedGroup struct {
	engine.GroupLog
	pressure raft.LogPressure
	share    int32 // of its proposals, in a thousand, are refused
}

// press tells the groups of all loops how much their logs are to be cut: those not in
// groups, no more than usually.
func (h *Host) press(groups []pressedGroup, share int32) {
	h.logCap.pressed.Store(int32(len(groups)))
	for _, l := range h.loops {
		var mine []pressedGroup
		for i, g := range groups {
			if h.loopOf(g.Shard) == l {
				if share > 0 && i < slowest {
					g.share = share
				}
				mine = append(mine, g)
			}
		}
		l.in.put(func(it *items) {
			it.funcs = append(it.funcs, func(now raft.Time) { l.press(now, mine) })
		})
	}
}

// press is Host.press for the groups of this loop. Those that sleep with a log that is not cut
// wake, some at a time: the others have their turn when the logs are looked at next.
func (l *loop) press(now raft.Time, groups []pressedGroup) {
	still := make(map[raft.ShardID]bool, len(groups))
	for _, g := range groups {
		still[g.Shard] = true
	}
	for _, g := range l.pressed {
		if r := l.byID[g.Shard]; r != nil && !still[g.Shard] {
			r.core.Press(raft.PressureNone)
			r.slow.share.Store(0)
		}
	}
	l.pressed = groups
	woken := 0
	for _, g := range groups {
		r := l.byID[g.Shard]
		if r == nil && woken < rouseAtOnce {
			if st, _, ok := l.stubs.get(g.Shard); ok && st.kept {
				r = l.wake(now, g.Shard)
				woken++
			}
		}
		if r != nil && !r.removed {
			r.core.Press(g.pressure)
			r.slow.share.Store(g.share)
			if r.out != nil {
				r.out.now = r.out.now || g.pressure == raft.PressureAll
			}
			l.touch(r)
		}
	}
}
