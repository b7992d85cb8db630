package kv

import (
	"runtime"
	"sync"
)

const (
	// readersMax bounds the goroutines that read, readersIdle those that are kept
	// while there is nothing to read.
	readersMax, readersIdle = 64, 16
	// readerBacklog is how many calls per working goroutine may wait before one
	// more is started: more than that means that they wait for the disk.
	readerBacklog = 16
	// readerTake bounds the calls that one goroutine takes at a time.
	readerTake = 8
)

// readers are the goroutines that read the engine for calls that nobody waits for.
// They are kept, because the stack of a new one has to grow several times on the
// way down into the engine, which costs more than the read: with a goroutine per
// read, a third of a node's processor time went into that.
type readers struct {
	read func(c *call)
	few  int // so many are woken as long as there is work
	wg   sync.WaitGroup

	mu struct {
		sync.Mutex // held briefly
		queue      []*call
		head       int // of the queue
		busy, idle int // goroutines; busy <= readersMax, idle <= readersIdle until closed
		closed     bool
	}
	wake sync.Cond // an idle one was made busy, or closed
}

func newReaders(read func(c *call)) *readers {
	p := &readers{read: read, few: max(4, 2*runtime.GOMAXPROCS(0))}
	p.wake.L = &p.mu
	return p
}

// push has a call read soon. It does not block.
func (p *readers) push(c *call) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.mu.queue = append(p.mu.queue, c)
	switch {
	case p.mu.busy >= p.few && len(p.mu.queue)-p.mu.head <= readerBacklog*p.mu.busy:
	case p.mu.idle > 0:
		p.mu.idle--
		p.mu.busy++
		p.wake.Signal()
	case p.mu.busy < readersMax:
		p.mu.busy++
		p.wg.Go(p.work)
	}
}

// work reads until there is nothing to read and enough others are idle.
func (p *readers) work() {
	var mine [readerTake]*call
	p.mu.Lock()
	defer p.mu.Unlock()
	for {
		n := p.takeLocked(&mine)
		switch {
		case n > 0:
			p.mu.Unlock()
			for i := range n {
				p.read(mine[i])
				mine[i] = nil
			}
			p.mu.Lock()
		case p.mu.closed || p.mu.idle >= readersIdle:
			p.mu.busy--
			return
		default:
			p.mu.busy--
			p.mu.idle++
			p.wake.Wait() // whoever wakes it counts it as busy again
		}
	}
}

// takeLocked moves a share of the queue's oldest calls to mine.
func (p *readers) takeLocked(mine *[readerTake]*call) int {
	waiting := p.mu.queue[p.mu.head:]
	n := min(readerTake, (len(waiting)+p.mu.busy-1)/p.mu.busy)
	copy(mine[:n], waiting)
	clear(waiting[:n])
	p.mu.head += n
	switch rest := len(waiting) - n; {
	case rest == 0:
		p.mu.queue, p.mu.head = p.mu.queue[:0], 0
	case p.mu.head > 1024 && p.mu.head > rest: // move each call once on average
		copy(p.mu.queue, p.mu.queue[p.mu.head:])
		clear(p.mu.queue[rest:])
		p.mu.queue, p.mu.head = p.mu.queue[:rest], 0
	}
	return n
}

// close ends the goroutines once they have read what was pushed, and waits.
func (p *readers) close() {
	p.mu.Lock()
	p.mu.closed = true
	p.mu.busy, p.mu.idle = p.mu.busy+p.mu.idle, 0
	p.mu.Unlock()
	p.wake.Broadcast()
	p.wg.Wait()
}
