package transport

import (
	"sync"
	"sync/atomic"

	"google.golang.org/protobuf/encoding/protowire"
)

// outbuf collects messages of one kind into RequestBatches or ResponseBatches.
// Each is closed at FrameTargetBytes, which its last message may exceed.
type outbuf struct {
	wake chan struct{} // room for one token, put there when there is something to take

	mu     sync.Mutex
	closed bool
	sealed []part
	cur    part
	bytes  int
	all    *atomic.Int64 // bytes of several buffers; nil: nobody asks
	lastID uint64
	room   sync.Cond // bytes fell, or closed
}

// part is one batch. last is the highest id in it, ids being handed out by add.
type part struct {
	buf  *[]byte
	last uint64
}

func newOutbuf() *outbuf {
	q := &outbuf{wake: make(chan struct{}, 1)}
	q.room.L = &q.mu
	return q
}

// add appends one element, which encode appends to its argument given the next
// id. ok is false, and encode was not called, when the buffer is closed. reg, if
// set, is called with the id before anyone can take the element.
func (q *outbuf) add(encode func(b []byte, id uint64) []byte, reg func(id uint64)) (id uint64, ok bool) {
	q.mu.Lock()
	if q.closed {
		q.mu.Unlock()
		return 0, false
	}
	q.lastID++
	id = q.lastID
	if reg != nil {
		reg(id)
	}
	b := q.begin()
	before := len(*b)
	out, at := open(*b, 1)
	*b = shut(encode(out, id), at)
	q.end(before, id)
	q.mu.Unlock()
	q.signal()
	return id, true
}

// addCancel appends an id to field 2.
func (q *outbuf) addCancel(id uint64) {
	q.mu.Lock()
	if q.closed {
		q.mu.Unlock()
		return
	}
	b := q.begin()
	before := len(*b)
	*b = protowire.AppendVarint(protowire.AppendTag(*b, 2, protowire.VarintType), id)
	q.end(before, 0)
	q.mu.Unlock()
	q.signal()
}

func (q *outbuf) begin() *[]byte {
	if q.cur.buf == nil {
		q.cur.buf = frameBufs.Get(0)
	}
	return q.cur.buf
}

func (q *outbuf) end(before int, id uint64) {
	q.count(len(*q.cur.buf) - before)
	q.cur.last = max(q.cur.last, id)
	if len(*q.cur.buf) >= FrameTargetBytes {
		q.sealed = append(q.sealed, q.cur)
		q.cur = part{}
	}
}

// count notes that n bytes more wait. Called with mu held.
func (q *outbuf) count(n int) {
	q.bytes += n
	if q.all != nil {
		q.all.Add(int64(n))
	}
}

func (q *outbuf) signal() {
	select {
	case q.wake <- struct{}{}:
	default:
	}
}

// take removes the oldest batch. onTake is called with its highest id while
// nothing can be added or closed.
func (q *outbuf) take(onTake func(last uint64)) (*[]byte, bool) {
	q.mu.Lock()
	defer q.mu.Unlock()
	var p part
	switch {
	case q.closed:
		return nil, false
	case len(q.sealed) > 0:
		p = q.sealed[0]
		n := copy(q.sealed, q.sealed[1:])
		q.sealed[n] = part{}
		q.sealed = q.sealed[:n]
	case q.cur.buf != nil:
		p, q.cur = q.cur, part{}
	default:
		return nil, false
	}
	q.count(-len(*p.buf))
	q.room.Broadcast()
	if onTake != nil && p.last > 0 {
		onTake(p.last)
	}
	return p.buf, true
}

// waitBelow returns when fewer than limit bytes wait, or the buffer is closed.
func (q *outbuf) waitBelow(limit int) {
	q.mu.Lock()
	for q.bytes >= limit && !q.closed {
		q.room.Wait()
	}
	q.mu.Unlock()
}

func (q *outbuf) close() {
	q.mu.Lock()
	q.closed = true
	q.sealed, q.cur = nil, part{}
	q.count(-q.bytes)
	q.room.Broadcast()
	q.mu.Unlock()
}
