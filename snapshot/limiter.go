package snapshot

import (
	"time"

	"github.com/flotillakv/flotilla/multiraft/raft"
)

// Limiter is a token bucket of bytes. It is pure: time is handed in. Not safe
// for concurrent use.
type Limiter struct {
	rate   float64 // bytes per second; <= 0: no limit
	burst  float64
	tokens float64 // may be negative: debt
	last   raft.Time
	primed bool
}

// NewLimiter returns a limiter of bytesPerSecond with bursts of up to a
// quarter of a second's worth, but at least one chunk. Zero or less: no limit.
func NewLimiter(bytesPerSecond int64) *Limiter {
	l := &Limiter{rate: float64(bytesPerSecond), burst: max(float64(bytesPerSecond)/4, ChunkBytes)}
	l.tokens = l.burst
	return l
}

// Take takes n bytes at now and returns how long to wait before sending them.
// Bytes that were taken are gone: over any time t, at most burst + rate*t
// bytes are let through.
func (l *Limiter) Take(now raft.Time, n int) time.Duration {
	if l.rate <= 0 {
		return 0
	}
	if l.primed && now > l.last {
		l.tokens = min(l.burst, l.tokens+l.rate*now.Sub(l.last).Seconds())
	}
	if !l.primed || now > l.last {
		l.last, l.primed = now, true
	}
	l.tokens -= float64(n)
	if l.tokens >= 0 {
		return 0
	}
	return time.Duration(-l.tokens / l.rate * float64(time.Second))
}
