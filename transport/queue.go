package transport

import (
	"sync"

	"github.com/golang/snappy"

	"github.com/flotillakv/flotilla/internal/mutants"
	"github.com/flotillakv/flotilla/multiraft/raft"
)

// bufPool recycles frame buffers. It is what gRPC gives a buffer back to once
// it was written to the connection.
type bufPool struct{ p sync.Pool }

const (
	bufMinBytes  = 8 << 10
	bufKeepBytes = 2 * FrameTargetBytes // larger buffers are left to the garbage collector
)

var frameBufs bufPool

// Get returns a buffer of length n.
func (p *bufPool) Get(n int) *[]byte {
	if b, _ := p.p.Get().(*[]byte); b != nil && cap(*b) >= n {
		*b = (*b)[:n]
		return b
	}
	b := make([]byte, n, max(n, bufMinBytes))
	return &b
}

// Put takes a buffer back.
func (p *bufPool) Put(b *[]byte) {
	if cap(*b) >= bufMinBytes && cap(*b) <= bufKeepBytes {
		*b = (*b)[:0]
		p.p.Put(b)
	}
}

// batch is the messages of one frame: room for the header, then the records.
type batch struct {
	buf *[]byte
	n   int
}

// queue collects the records for one peer into frames. Invariant: bytes is the
// size of all batches and never exceeds limit; cur, the batch being filled, is
// younger than all of sealed.
type queue struct {
	limit int
	// wake has room for one token, put there when the queue became non-empty.
	wake chan struct{}

	mu struct {
		sync.Mutex
		accept bool // otherwise everything is dropped
		ctl    []byte
		nCtl   int
		sealed []batch
		cur    batch
		bytes  int
	}
}

func newQueue(limit int) *queue { return &queue{limit: limit, wake: make(chan struct{}, 1)} }

type pushResult struct {
	queued, dropped int
	overflow        bool
	err             error // of the last message that can never be sent
}

// push encodes msgs. On overflow it empties the queue and drops the rest.
func (q *queue) push(msgs []raft.Msg) (res pushResult) {
	q.mu.Lock()
	if !q.mu.accept {
		q.mu.Unlock()
		res.dropped = len(msgs)
		return res
	}
	for i := range msgs {
		size, err := msgSize(&msgs[i])
		if err != nil {
			res.dropped++
			res.err = err
			continue
		}
		if q.mu.bytes+size > q.limit && q.mu.bytes > 0 {
			res.dropped += len(msgs) - i + q.lenLocked()
			res.queued = 0
			res.overflow = true
			q.clearLocked()
			break
		}
		q.room(size)
		b := q.mu.cur.buf
		*b = appendMsg(*b, &msgs[i], size)
		q.mu.cur.n++
		q.mu.bytes += size
		res.queued++
	}
	q.mu.Unlock()
	if res.queued > 0 {
		q.signal()
	}
	return res
}

// room makes cur a batch that size more bytes may be appended to.
func (q *queue) room(size int) {
	c := &q.mu.cur
	if c.n > 0 && (len(*c.buf)+size > FrameTargetBytes || c.n == maxMsgsPerFrame) {
		q.mu.sealed = append(q.mu.sealed, *c)
		*c = batch{}
	}
	if c.buf == nil {
		c.buf = frameBufs.Get(frameHeaderBytes)
	}
}

// pushCtl encodes c. When there are too many, the oldest is dropped.
func (q *queue) pushCtl(c *raft.Ctl) bool {
	q.mu.Lock()
	ok := q.mu.accept && !(mutants.On("H6") && q.mu.bytes > q.limit/2)
	if ok {
		if q.mu.nCtl == maxCtlPerFrame {
			q.mu.ctl = q.mu.ctl[:copy(q.mu.ctl, q.mu.ctl[ctlRecordBytes:])]
			q.mu.nCtl--
		}
		q.mu.ctl = appendCtl(q.mu.ctl, c)
		q.mu.nCtl++
	}
	q.mu.Unlock()
	if ok {
		q.signal()
	}
	return ok
}

func (q *queue) signal() {
	select {
	case q.wake <- struct{}{}:
	default:
	}
}

// take removes the next frame's content; ok is false when there is none. ctl is
// appended to ctlBuf.
func (q *queue) take(ctlBuf []byte) (b batch, ctl []byte, nCtl int, ok bool) {
	q.mu.Lock()
	defer q.mu.Unlock()
	if !mutants.On("H7") || len(q.mu.sealed) == 0 { // else they come behind all messages
		ctl, nCtl = append(ctlBuf, q.mu.ctl...), q.mu.nCtl
		q.mu.ctl, q.mu.nCtl = q.mu.ctl[:0], 0
	}
	switch {
	case len(q.mu.sealed) > 0:
		b = q.mu.sealed[0]
		n := copy(q.mu.sealed, q.mu.sealed[1:])
		q.mu.sealed[n] = batch{}
		q.mu.sealed = q.mu.sealed[:n]
	case q.mu.cur.n > 0:
		b, q.mu.cur = q.mu.cur, batch{}
	}
	if b.n > 0 {
		q.mu.bytes -= len(*b.buf) - frameHeaderBytes
	}
	return b, ctl, nCtl, b.n > 0 || nCtl > 0
}

// hasCtl reports whether control records wait.
func (q *queue) hasCtl() bool {
	q.mu.Lock()
	defer q.mu.Unlock()
	return q.mu.nCtl > 0
}

// setAccept opens the queue, or empties and closes it. It returns the number of
// messages dropped.
func (q *queue) setAccept(accept bool) (dropped int) {
	q.mu.Lock()
	defer q.mu.Unlock()
	if q.mu.accept && !accept {
		dropped = q.lenLocked()
		q.clearLocked()
	}
	q.mu.accept = accept
	return dropped
}

func (q *queue) lenLocked() int {
	n := q.mu.cur.n
	for _, b := range q.mu.sealed {
		n += b.n
	}
	return n
}

func (q *queue) clearLocked() {
	for _, b := range q.mu.sealed {
		frameBufs.Put(b.buf)
	}
	if q.mu.cur.buf != nil {
		frameBufs.Put(q.mu.cur.buf)
	}
	clear(q.mu.sealed)
	q.mu.sealed, q.mu.cur = q.mu.sealed[:0], batch{}
	q.mu.ctl, q.mu.nCtl, q.mu.bytes = q.mu.ctl[:0], 0, 0
}

func (q *queue) size() int {
	q.mu.Lock()
	defer q.mu.Unlock()
	return q.mu.bytes
}

// outFrame is one frame ready to be sent, in one or two parts.
type outFrame struct {
	head []byte  // header and control section; nil: the header is in body
	body *[]byte // owned by frameBufs
}

func (f *outFrame) len() int {
	n := len(f.head)
	if f.body != nil {
		n += len(*f.body)
	}
	return n
}

// seal turns the content of a frame into bytes. Without control records and
// compression nothing is copied.
func seal(h FrameHeader, b batch, ctl []byte, nCtl int, compress bool) outFrame {
	var body []byte // the messages
	if b.n > 0 {
		body = (*b.buf)[frameHeaderBytes:]
	}
	if compress && len(ctl)+len(body) >= CompressMinBytes {
		if f, ok := sealPacked(h, b, ctl, nCtl, body); ok {
			return f
		}
	}
	if nCtl == 0 {
		putFrameHeader(*b.buf, h, 0, 0, b.n, nil, body)
		return outFrame{body: b.buf}
	}
	head := make([]byte, frameHeaderBytes, frameHeaderBytes+len(ctl))
	head = append(head, ctl...)
	putFrameHeader(head, h, 0, nCtl, b.n, ctl, body)
	if b.n == 0 {
		return outFrame{head: head}
	}
	*b.buf = body // the unused header room is lost to the pool; control frames are rare
	return outFrame{head: head, body: b.buf}
}

func sealPacked(h FrameHeader, b batch, ctl []byte, nCtl int, body []byte) (outFrame, bool) {
	raw := body
	if nCtl > 0 {
		raw = append(append(make([]byte, 0, len(ctl)+len(body)), ctl...), body...)
	}
	out := frameBufs.Get(frameHeaderBytes + snappy.MaxEncodedLen(len(raw)))
	packed := snappy.Encode((*out)[frameHeaderBytes:], raw)
	if len(packed) >= len(raw) {
		frameBufs.Put(out)
		return outFrame{}, false
	}
	*out = (*out)[:frameHeaderBytes+len(packed)]
	putFrameHeader(*out, h, frameFlagSnappy, nCtl, b.n, nil, packed)
	if b.buf != nil {
		frameBufs.Put(b.buf)
	}
	return outFrame{body: out}, true
}
