package kv

import (
	"math/rand/v2"
	"runtime"
	"sync/atomic"
	"time"
)

// Bounds of a yielder, see there.
const (
	yieldOften, yieldSeldom = 8, 64 // reads between two yields
	// A yield that takes longer, or less long, moves the number of reads.
	yieldLong, yieldShort = 50 * time.Millisecond, 12 * time.Millisecond
)

// yielder lets other goroutines run now and then. Reads that wait for nothing, by
// many callers in a loop, would each keep a processor until the scheduler takes
// it away (10 ms), and everything else would queue behind all of them: measured
// with 64 callers on two processors, heartbeats were late by seconds and leases
// were lost.
//
// How long a yield takes is how long whoever else became runnable has to wait: the
// number of goroutines in line, times what each does until it yields. So that is
// kept to a few milliseconds by yielding after fewer reads, and a yield that costs
// nothing, because nobody is in line, is made seldom.
type yielder struct {
	less atomic.Uint32 // the yielder yields once in less+1 reads, a power of two
}

func (y *yielder) init() { y.less.Store(yieldSeldom/2 - 1) }

// read is called once per read.
func (y *yielder) read() {
	less := y.less.Load()
	if rand.Uint32()&less != 0 {
		return
	}
	began := time.Now()
	runtime.Gosched()
	if now := nextYield(less, time.Since(began)); now != less {
		y.less.Store(now)
	}
}

// nextYield returns what follows less, once a yield took that long.
func nextYield(less uint32, took time.Duration) uint32 {
	switch {
	case took > yieldLong:
		return max(less/2, yieldOften-1)
	case took < yieldShort:
		return min(2*less+1, yieldSeldom-1)
	}
	return less
}

// yieldRefused lets other goroutines run before one that was refused does: callers
// that try again at once, by the thousand, are what keeps a node overloaded.
func yieldRefused() { runtime.Gosched() }
