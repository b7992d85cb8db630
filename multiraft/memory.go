package multiraft

import (
	"math"
	"time"

	"github.com/flotillakv/flotilla/internal/mutants"
)

// MemoryUse is what a host holds in memory, in bytes, by who holds it.
type MemoryUse struct {
	// Proposals wait for their outcome here.
	Proposals int64
	// Inbox is the entries of messages that wait for the loops.
	Inbox int64
	// Tails are the entries that the groups hold: what is not applied and durable, and
	// what is kept for slow peers.
	Tails int64
	// Groups is how many replicas are awake.
	Groups int
}

// MemoryUse counts what the host holds in memory. It costs some loads per loop.
func (h *Host) MemoryUse() MemoryUse {
	u := MemoryUse{Proposals: h.pending.Load(), Groups: h.table.count()}
	for _, l := range h.loops {
		u.Tails += l.tailNow.Load()
		u.Inbox += l.in.bytes()
	}
	return u
}

// Brake has all proposals refused from now on with *OverloadedError, which tells their
// callers to come back after wait; zero takes them again. The shard of the catalog is
// not refused.
func (h *Host) Brake(wait time.Duration) { h.brake.Store(int64(wait)) }

// Loops returns the number of loops.
func (h *Host) Loops() int { return len(h.loops) }

// bytes returns what waits in the inbox, or did when the loop took it out.
func (b *inbox) bytes() int64 {
	b.mu.Lock()
	defer b.mu.Unlock()
	return int64(b.msgBytes + b.heldBytes)
}

// tailBytes is what its core holds, as far as it can be counted.
func (r *replica) tailBytes() int32 { return int32(min(r.core.TailBytes(), math.MaxInt32)) }

// countTail notes what the core of r holds now.
func (l *loop) countTail(r *replica) {
	if n := r.tailBytes(); n != r.tail && !mutants.On("GV6") {
		l.tails += int64(n - r.tail)
		r.tail = n
	}
}

// tailSteps bounds the groups that forget entries in one round.
const tailSteps = 256

// evictTails has groups forget entries that are kept for slow peers, one after the other,
// while all of them together hold more than they may. Entries that are not applied and
// durable stay: they are bounded by what proposers may have waiting.
func (l *loop) evictTails() {
	if limit := l.h.tailMax; limit > 0 && l.tails > limit && len(l.order) > 0 && !mutants.On("GV2") {
		keep := int(limit) / len(l.order) / 2
		for i := 0; i < min(tailSteps, len(l.order)) && l.tails > limit/8*7; i++ {
			if l.tailHand++; l.tailHand >= len(l.order) {
				l.tailHand = 0
				l.countTails()
			}
			r := l.order[l.tailHand]
			r.core.Evict(keep)
			l.countTail(r)
		}
	}
	l.tailNow.Store(l.tails)
}

// countTails counts anew: replicas may have gone.
func (l *loop) countTails() {
	l.tails = 0
	for _, r := range l.order {
		r.tail = r.tailBytes()
		l.tails += int64(r.tail)
	}
}
