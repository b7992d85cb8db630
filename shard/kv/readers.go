package kv

import (
	"runtime"
	"sync"

	"github.com/flotillakv/flotilla/internal/invariants"
	"github.com/flotillakv/flotilla/shard"
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
	// readerKeep bounds the buffer that a goroutine keeps for the next value.
	readerKeep = 64 << 10
)

// readJob is a call to be read that has begun at the store, or a get to be tried
// the short way.
type readJob struct {
	counted *call
	req     *shard.Request // if counted is nil
	to      shard.Answerer
}

// read reads and answers. It does not block.
func (j readJob) read(s *Store, r *reader) {
	if j.counted != nil {
		j.counted.readCounted()
		return
	}
	q := j.req
	var ok bool
	if r.value, r.resp.Found, ok = s.readNear(q.Shard, q.Keyspace, q.DescVersion, q.Key, &r.buf); !ok {
		s.doAsync(q, j.to)
		return
	}
	r.resp.ID, r.resp.Value = q.ID, nil
	if r.resp.Found {
		r.resp.Value = &r.value
	}
	j.to.Answered(&r.resp, nil)
	if invariants.Enabled { // nobody may have kept it
		for i := range r.buf {
			r.buf[i] = 0xdb
		}
	}
	if cap(r.buf) > readerKeep {
		r.buf = nil
	}
}

// reader is what one goroutine reads with.
type reader struct {
	resp  shard.Response // only what answers a get
	value shard.Value
	buf   []byte // holds the value
}

// readers are the goroutines that read the engine for calls that nobody waits for.
// They are kept, because the stack of a new one has to grow several times on the
// way down into the engine, which costs more than the read: with a goroutine per
// read, a third of a node's processor time went into that.
type readers struct {
	read func(r *reader, j readJob)
	few  int // so many are woken as long as there is work
	wg   sync.WaitGroup

	mu struct {
		sync.Mutex // held briefly
		queue      []readJob
		head       int // of the queue
		busy, idle int // goroutines; busy <= readersMax, idle <= readersIdle until closed
		closed     bool
	}
	wake sync.Cond // an idle one was made busy, or closed
}

func newReaders(read func(r *reader, j readJob)) *readers {
	p := &readers{read: read, few: max(4, 2*runtime.GOMAXPROCS(0))}
	p.wake.L = &p.mu
	return p
}

// push has a call read soon, unless readers are closed. It does not block.
func (p *readers) push(j readJob) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.mu.closed {
		return false
	}
	p.mu.queue = append(p.mu.queue, j)
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
	return true
}

// work reads until there is nothing to read and enough others are idle.
func (p *readers) work() {
	var mine [readerTake]readJob
	r := new(reader)
	p.mu.Lock()
	defer p.mu.Unlock()
	for {
		n := p.takeLocked(&mine)
		switch {
		case n > 0:
			p.mu.Unlock()
			for i := range n {
				p.read(r, mine[i])
				mine[i] = readJob{}
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
func (p *readers) takeLocked(mine *[readerTake]readJob) int {
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
