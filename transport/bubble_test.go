package transport

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"runtime"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/flotillakv/flotilla/multiraft/raft"
)

// Tests in virtual time: the real transport and the real gRPC over connections
// in memory, inside a bubble of testing/synctest. Time passes only while every
// goroutine waits, so what takes minutes of silence on a network takes
// milliseconds here; a deadlock, or a goroutine that outlives its transport,
// ends the test.

// memNet is a network in memory. Faults hold for a direction between two names.
type memNet struct {
	mu    sync.Mutex
	lis   map[string]*memListener
	rules map[[2]string]rule
	conns []*memConn
}

// rule is what befalls bytes on their way from one node to another.
type rule struct {
	lost    bool          // writes succeed and vanish: a half-open connection
	stalled bool          // the receiver does not read: its window fills
	hang    bool          // a dial gets no answer
	refused bool          // a dial is refused
	cutIn   int           // >0: the connection breaks after so many bytes
	delay   time.Duration // of the dial
	rate    int           // >0: bytes per second that the wire carries
}

func newMemNet() *memNet {
	return &memNet{lis: map[string]*memListener{}, rules: map[[2]string]rule{}}
}

func (l *memNet) set(from, to string, r rule) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.rules[[2]string{from, to}] = r
	for _, c := range l.conns {
		c.half.wake()
	}
}

func (l *memNet) both(a, b string, r rule) { l.set(a, b, r); l.set(b, a, r) }

func (l *memNet) rule(from, to string) rule {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.rules[[2]string{from, to}]
}

// breakAll resets every connection between a and b.
func (l *memNet) breakAll(a, b string) {
	l.mu.Lock()
	conns := append([]*memConn(nil), l.conns...)
	l.mu.Unlock()
	for _, c := range conns {
		if c.from == a && c.to == b || c.from == b && c.to == a {
			c.reset()
		}
	}
}

type memAddr string

func (memAddr) Network() string  { return "memory" }
func (a memAddr) String() string { return string(a) }

type memListener struct {
	name   string
	accept chan net.Conn
	done   chan struct{}
	once   sync.Once
	l      *memNet
}

func (l *memNet) listen(name string) *memListener {
	m := &memListener{name: name, accept: make(chan net.Conn), done: make(chan struct{}), l: l}
	l.mu.Lock()
	l.lis[name] = m
	l.mu.Unlock()
	return m
}

func (m *memListener) Accept() (net.Conn, error) {
	select {
	case c := <-m.accept:
		return c, nil
	case <-m.done:
		return nil, net.ErrClosed
	}
}

func (m *memListener) Close() error {
	m.once.Do(func() { close(m.done) })
	return nil
}

func (m *memListener) Addr() net.Addr { return memAddr(m.name) }

// dialer returns the dial function of a node.
func (l *memNet) dialer(from string) func(context.Context, string) (net.Conn, error) {
	return func(ctx context.Context, to string) (net.Conn, error) {
		r := l.rule(from, to)
		if r.hang {
			<-ctx.Done()
			return nil, ctx.Err()
		}
		if r.delay > 0 {
			select {
			case <-time.After(r.delay):
			case <-ctx.Done():
				return nil, ctx.Err()
			}
		}
		l.mu.Lock()
		lis := l.lis[to]
		l.mu.Unlock()
		if lis == nil || r.refused {
			return nil, errors.New("connection refused")
		}
		ab, ba := newHalf(l, from, to), newHalf(l, to, from)
		a := &memConn{l: l, from: from, to: to, half: ba, other: ab}
		b := &memConn{l: l, from: to, to: from, half: ab, other: ba}
		select {
		case lis.accept <- b:
		case <-lis.done:
			return nil, errors.New("connection refused")
		case <-ctx.Done():
			return nil, ctx.Err()
		}
		l.mu.Lock()
		l.conns = append(l.conns, a, b)
		l.mu.Unlock()
		return a, nil
	}
}

// half is one direction of a connection: a bounded buffer.
type half struct {
	l        *memNet
	from, to string
	mu       sync.Mutex
	changed  chan struct{} // closed and replaced on every change
	buf      []byte
	passed   int
	eof      bool
	dead     bool
	broken   error
}

const halfBytes = 64 << 10

func newHalf(l *memNet, from, to string) *half {
	return &half{l: l, from: from, to: to, changed: make(chan struct{})}
}

func (h *half) notify() {
	close(h.changed)
	h.changed = make(chan struct{})
}

func (h *half) wake() {
	h.mu.Lock()
	h.notify()
	h.mu.Unlock()
}

// memConn is one end. half is what it reads, other what it writes.
type memConn struct {
	l           *memNet
	from, to    string
	half, other *half
	mu          sync.Mutex
	rd, wd      time.Time
}

func (c *memConn) Read(p []byte) (int, error) {
	h := c.half
	for {
		r := c.l.rule(h.from, h.to)
		h.mu.Lock()
		switch {
		case h.broken != nil:
			h.mu.Unlock()
			return 0, h.broken
		case len(h.buf) > 0 && !r.stalled:
			n := copy(p, h.buf)
			h.buf = h.buf[n:]
			h.notify()
			h.mu.Unlock()
			return n, nil
		case h.eof && !r.stalled:
			h.mu.Unlock()
			return 0, io.EOF
		}
		changed := h.changed
		h.mu.Unlock()
		if err := c.wait(changed, &c.rd); err != nil {
			return 0, err
		}
	}
}

func (c *memConn) Write(p []byte) (n int, err error) {
	h := c.other
	for len(p) > 0 {
		r := c.l.rule(h.from, h.to)
		h.mu.Lock()
		switch {
		case h.broken != nil:
			h.mu.Unlock()
			return n, h.broken
		case h.eof:
			h.mu.Unlock()
			return n, net.ErrClosed
		case r.lost || h.dead:
			h.dead = true // a stream has no holes: what follows is lost as well
			h.mu.Unlock()
			return n + len(p), nil
		case len(h.buf) < halfBytes:
			k := min(len(p), halfBytes-len(h.buf))
			cut := r.cutIn > 0 && h.passed+k >= r.cutIn
			if cut {
				k = max(0, r.cutIn-h.passed)
			}
			h.buf = append(h.buf, p[:k]...)
			h.passed += k
			h.notify()
			h.mu.Unlock()
			n, p = n+k, p[k:]
			if r.rate > 0 {
				<-time.After(time.Duration(k) * time.Second / time.Duration(r.rate))
			}
			if cut {
				// What was sent arrives, then the connection is gone.
				h.mu.Lock()
				h.eof = true
				h.notify()
				h.mu.Unlock()
				c.half.mu.Lock()
				c.half.broken = errors.New("connection reset by peer")
				c.half.notify()
				c.half.mu.Unlock()
				return n, errors.New("connection reset by peer")
			}
			continue
		}
		changed := h.changed
		h.mu.Unlock()
		if err := c.wait(changed, &c.wd); err != nil {
			return n, err
		}
	}
	return n, nil
}

// wait waits for a change or for a deadline.
func (c *memConn) wait(changed chan struct{}, deadline *time.Time) error {
	c.mu.Lock()
	d := *deadline
	c.mu.Unlock()
	if d.IsZero() {
		<-changed
		return nil
	}
	left := time.Until(d)
	if left <= 0 {
		return os.ErrDeadlineExceeded
	}
	t := time.NewTimer(left)
	defer t.Stop()
	select {
	case <-changed:
	case <-t.C:
	}
	return nil
}

func (c *memConn) reset() {
	for _, h := range []*half{c.half, c.other} {
		h.mu.Lock()
		if h.broken == nil {
			h.broken = errors.New("connection reset by peer")
		}
		h.notify()
		h.mu.Unlock()
	}
}

func (c *memConn) Close() error {
	lost := c.l.rule(c.from, c.to).lost
	c.other.mu.Lock()
	if !lost && !c.other.dead { // the end of a half-open connection is not heard either
		c.other.eof = true
	}
	c.other.notify()
	c.other.mu.Unlock()
	c.half.mu.Lock()
	if c.half.broken == nil {
		c.half.broken = net.ErrClosed
	}
	c.half.notify()
	c.half.mu.Unlock()
	return nil
}

func (c *memConn) LocalAddr() net.Addr  { return memAddr(c.from) }
func (c *memConn) RemoteAddr() net.Addr { return memAddr(c.to) }

func (c *memConn) SetDeadline(t time.Time) error {
	_ = c.SetReadDeadline(t)
	return c.SetWriteDeadline(t)
}

func (c *memConn) SetReadDeadline(t time.Time) error {
	c.mu.Lock()
	c.rd = t
	c.mu.Unlock()
	c.half.wake()
	return nil
}

func (c *memConn) SetWriteDeadline(t time.Time) error {
	c.mu.Lock()
	c.wd = t
	c.mu.Unlock()
	c.other.wake()
	return nil
}

// fleet is a few transports on one link.
type fleet struct {
	t    testing.TB
	l    *memNet
	g    []*GRPC
	rec  []*recorder
	boot []uint64
}

func name(i int) string { return fmt.Sprintf("n%d", i+1) }

func newFleet(t testing.TB, n int, o Options) *fleet {
	f := &fleet{t: t, l: newMemNet(), g: make([]*GRPC, n), rec: make([]*recorder, n), boot: make([]uint64, n)}
	for i := range n {
		f.start(i, o)
	}
	return f
}

func (f *fleet) start(i int, o Options) {
	f.t.Helper()
	f.boot[i]++
	f.rec[i] = newRecorder()
	o.Identity = Identity{Cluster: testCluster, Node: raft.NodeID(i + 1), BootEpoch: f.boot[i]}
	o.Listener, o.Dial, o.Handler, o.Logger = f.l.listen(name(i)), f.l.dialer(name(i)), f.rec[i], quiet()
	g, err := NewGRPC(o)
	if err != nil {
		f.t.Fatal(err)
	}
	f.g[i] = g
	for j := range f.g {
		if j != i {
			g.SetPeer(raft.NodeID(j+1), name(j))
		}
	}
}

func (f *fleet) close() {
	for _, g := range f.g {
		g.Close()
	}
}

func (f *fleet) up(i, j int) bool {
	f.rec[i].mu.Lock()
	defer f.rec[i].mu.Unlock()
	return f.rec[i].up[raft.NodeID(j+1)]
}

// within lets virtual time pass until cond holds, and returns how much passed.
func (f *fleet) within(limit time.Duration, what string, cond func() bool) time.Duration {
	f.t.Helper()
	begin := time.Now()
	for {
		synctest.Wait()
		if cond() {
			return time.Since(begin)
		}
		if time.Since(begin) > limit {
			f.t.Fatalf("not within %v of virtual time: %s", limit, what)
		}
		<-time.After(time.Millisecond)
	}
}

func (f *fleet) allUp(limit time.Duration) time.Duration {
	f.t.Helper()
	return f.within(limit, "all streams are up", func() bool {
		for i := range f.g {
			for j := range f.g {
				if i != j && !f.up(i, j) {
					return false
				}
			}
		}
		return true
	})
}

func (f *fleet) say(from, to int, n uint64) {
	f.g[from].Send(raft.NodeID(to+1), []raft.Msg{{Type: raft.MsgCommit, Shard: 1, Term: 1, Commit: raft.Index(n)}})
}

func (f *fleet) heard(at, from int, n uint64) bool {
	r := f.rec[at]
	r.mu.Lock()
	defer r.mu.Unlock()
	msgs := r.msgs[raft.NodeID(from+1)]
	return len(msgs) > 0 && msgs[len(msgs)-1].Commit == raft.Index(n)
}

// A connection whose packets vanish in both directions is found out by
// keepalive within 15 s, and made anew once the network is well.
func TestBubbleHalfOpen(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFleet(t, 2, Options{})
		defer f.close()
		f.allUp(time.Second)
		f.l.both(name(0), name(1), rule{lost: true})
		took := f.within(16*time.Second, "the dead connection is found out", func() bool { return !f.up(0, 1) && !f.up(1, 0) })
		if took < 5*time.Second {
			t.Errorf("given up after %v of silence", took)
		}
		f.say(0, 1, 7) // of no use
		f.l.both(name(0), name(1), rule{})
		f.allUp(8 * time.Second)
		f.say(0, 1, 8)
		f.within(time.Second, "a message arrives", func() bool { return f.heard(1, 0, 8) })
	})
}

// One direction alone is dead: what is sent that way is lost and the stream
// there ends; nothing else is harmed for ever.
func TestBubbleOneWay(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFleet(t, 3, Options{})
		defer f.close()
		f.allUp(time.Second)
		f.l.set(name(0), name(1), rule{lost: true, hang: true})
		f.within(21*time.Second, "the one-way link is found out", func() bool { return !f.up(0, 1) })
		f.say(0, 2, 5)
		f.within(time.Second, "the third node hears", func() bool { return f.heard(2, 0, 5) })
		f.l.set(name(0), name(1), rule{})
		f.allUp(10 * time.Second)
	})
}

// A connection that breaks after any number of bytes, in the midst of a frame
// or of gRPC's own exchange: nothing but whole messages arrives, and the stream
// comes back.
func TestBubbleResetMidFrame(t *testing.T) {
	cuts := []int{1, 9, 24, 33, 50, 100, 150, 200, 256, 300, 351, 400, 512, 700, 1000, 1500, 4000, 10_000}
	for _, cut := range cuts {
		synctest.Test(t, func(t *testing.T) {
			f := newFleet(t, 2, Options{})
			defer f.close()
			f.l.set(name(0), name(1), rule{cutIn: cut})
			want := testEntry(8, 3, make([]byte, 300))
			for i := range 40 {
				<-time.After(20 * time.Millisecond)
				f.g[0].Send(2, []raft.Msg{{Type: raft.MsgApp, Shard: 2, Term: 3, Index: 7, LogTerm: 3, Commit: raft.Index(i), Entries: []raft.Entry{want}}})
			}
			synctest.Wait()
			f.rec[1].mu.Lock()
			for _, m := range f.rec[1].msgs[1] {
				if len(m.Entries) != 1 || string(m.Entries[0].Value) != string(want.Value) {
					t.Errorf("cut after %d bytes: a message came as %+v", cut, m)
				}
			}
			f.rec[1].mu.Unlock()
			if n := f.g[1].Counters().FramesRefused; n != 0 {
				t.Errorf("cut after %d bytes: %d frames were refused", cut, n)
			}
			if f.g[0].Stats()[0].Connects > 40 {
				t.Errorf("cut after %d bytes: %d connections in 0.8 s", cut, f.g[0].Stats()[0].Connects)
			}
			f.l.set(name(0), name(1), rule{})
			f.allUp(3 * time.Second)
			f.say(0, 1, 99)
			f.within(time.Second, "a message arrives", func() bool { return f.heard(1, 0, 99) })
		})
	}
}

// A receiver that stops reading fills its window and then the sender's queue:
// the queue stays bounded, Send does not block, other peers are served, and the
// stream is made anew.
func TestBubbleSlowReader(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const queueBytes = 1 << 20
		f := newFleet(t, 3, Options{QueueBytes: queueBytes})
		defer f.close()
		f.allUp(time.Second)
		f.l.set(name(0), name(1), rule{stalled: true})
		e := testEntry(8, 3, make([]byte, 64<<10))
		for i := range 400 { // 25 MiB: more than windows and queue hold
			began := time.Now()
			f.g[0].Send(2, []raft.Msg{{Type: raft.MsgApp, Shard: 2, Term: 3, Index: 7, LogTerm: 3, Entries: []raft.Entry{e}}})
			f.say(0, 2, uint64(i))
			if d := time.Since(began); d > 0 {
				t.Fatalf("Send took %v of virtual time", d)
			}
			if s := f.g[0].Stats()[0]; s.QueueBytes > queueBytes+(128<<10) {
				t.Fatalf("the queue holds %d bytes, its limit is %d", s.QueueBytes, queueBytes)
			}
			<-time.After(time.Millisecond)
		}
		f.within(time.Second, "the third node has all", func() bool { return f.heard(2, 0, 399) })
		if s := f.g[0].Stats()[0]; s.Overflows == 0 || s.MsgsDropped == 0 {
			t.Errorf("nothing overflowed: %+v", s)
		}
		f.l.set(name(0), name(1), rule{})
		f.allUp(20 * time.Second)
		f.say(0, 1, 1234)
		f.within(time.Second, "a message arrives", func() bool { return f.heard(1, 0, 1234) })
	})
}

// While a wire is full, and while more is sent than it carries, heartbeats get
// through: they overtake what waits in the queue, wait for no more than a window
// of bytes that are on the wire already, and a queue that overflows takes no
// second away.
func TestBubbleHeartbeatsUnderLoad(t *testing.T) {
	for _, overflow := range []bool{false, true} {
		synctest.Test(t, func(t *testing.T) {
			const rate = 16 << 20
			limit := time.Second * windowStream / rate * 5 / 4
			if overflow {
				limit += time.Second
			}
			f := newFleet(t, 2, Options{})
			defer f.close()
			f.allUp(time.Second)
			f.l.set(name(0), name(1), rule{rate: rate})
			msg := []raft.Msg{{Type: raft.MsgApp, Shard: 2, Term: 3, Index: 7, LogTerm: 3, Entries: []raft.Entry{testEntry(8, 3, make([]byte, 64<<10))}}}
			last, seen := time.Now(), 0
			for beat := range uint64(400) {
				f.g[0].SendCtl(2, raft.Ctl{Kind: raft.CtlHeartbeat, Seq: beat})
				if overflow {
					for range 3 * rate / 100 / (64 << 10) {
						f.g[0].Send(2, msg)
					}
				} else {
					for f.g[0].Stats()[0].QueueBytes < 7<<20 {
						f.g[0].Send(2, msg)
					}
				}
				<-time.After(10 * time.Millisecond)
				r := f.rec[1]
				r.mu.Lock()
				if n := len(r.ctl[1]); n > seen {
					seen, last = n, time.Now()
				}
				clear(r.msgs)
				r.order = nil
				r.mu.Unlock()
				if d := time.Since(last); d > limit {
					t.Fatalf("no heartbeat for %v of virtual time, overflow %v", d, overflow)
				}
			}
			if s := f.g[0].Stats()[0]; overflow != (s.Overflows > 0) {
				t.Errorf("overflow %v: %+v", overflow, s)
			}
		})
	}
}

// A receiver that ends a snapshot in its midst is heard at once, however much the
// sender has to send, and the next snapshot finds nothing of the last one.
func TestBubbleSnapshotRefused(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFleet(t, 2, Options{})
		defer f.close()
		f.allUp(time.Second)
		for try := range 3 {
			var first []byte
			f.rec[1].snap = func(_ raft.NodeID, _ []byte, next func() ([]byte, error), _ func([]byte) error) (err error) {
				if first, err = next(); err != nil {
					return err
				}
				return errors.New("no more of this")
			}
			begin := time.Now()
			s, err := f.g[0].OpenSnapshot(t.Context(), 2, []byte("header"))
			if err != nil {
				t.Fatal(err)
			}
			done := make(chan error, 1)
			go func() {
				chunk := make([]byte, 256<<10)
				chunk[0] = byte(try)
				for range 200 {
					if s.Send(chunk) != nil {
						break
					}
				}
				done <- s.CloseAndRecv()
			}()
			select {
			case err = <-done:
			case <-time.After(10 * time.Second):
				t.Fatal("the sender does not hear that its snapshot was refused")
			}
			var refused *SnapshotError
			if !errors.As(err, &refused) || refused.Text != "no more of this" || time.Since(begin) > time.Second {
				t.Fatalf("the sender hears %v after %v", err, time.Since(begin))
			}
			if len(first) == 0 || first[0] != byte(try) {
				t.Fatalf("snapshot %d begins with %d", try, first[0])
			}
		}
	})
}

// A node that answers no dial costs the others nothing.
func TestBubbleBlackHole(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := &fleet{t: t, l: newMemNet(), g: make([]*GRPC, 3), rec: make([]*recorder, 3), boot: make([]uint64, 3)}
		f.l.both(name(0), name(1), rule{hang: true})
		for i := range 3 {
			f.start(i, Options{})
		}
		defer f.close()
		f.within(time.Second, "the third node is connected", func() bool { return f.up(0, 2) && f.up(2, 0) })
		for i := range uint64(50) {
			f.say(0, 1, i)
			f.say(0, 2, i+1)
			f.within(time.Millisecond, "the third node hears at once", func() bool { return f.heard(2, 0, i+1) })
			<-time.After(200 * time.Millisecond)
		}
		f.l.both(name(0), name(1), rule{})
		f.allUp(6 * time.Second) // the attempt under way, and one pause
	})
}

var (
	bubbleSeed  = flag.Uint64("transport.seed", 1, "first seed of TestBubbleStorm")
	bubbleSeeds = flag.Int("transport.seeds", 12, "seeds of TestBubbleStorm")
)

// TestBubbleStorm draws faults at random: half-open links, resets, stalls, dials
// that hang, restarts, and a transport that is closed at any moment. Messages
// arrive whole and in order within a connection; afterwards all streams come up;
// nothing is left behind (the bubble checks that) and no Close hangs.
func TestBubbleStorm(t *testing.T) {
	for k := range *bubbleSeeds {
		seed := *bubbleSeed + uint64(k)
		synctest.Test(t, func(t *testing.T) {
			defer func() {
				if t.Failed() {
					t.Logf("replay: go test ./transport -run TestBubbleStorm -transport.seed=%d -transport.seeds=1", seed)
				}
			}()
			rng := rand.New(rand.NewPCG(seed, 21))
			n := 2 + rng.IntN(3)
			o := Options{QueueBytes: 256 << 10, Compress: rng.IntN(2) == 0}
			f := newFleet(t, n, o)
			defer f.close()
			f.allUp(time.Second)
			goroutines := runtime.NumGoroutine()
			seq := uint64(0)
			for range 150 {
				i, j := rng.IntN(n), rng.IntN(n)
				if i == j {
					continue
				}
				switch rng.IntN(12) {
				case 0:
					f.l.set(name(i), name(j), rule{lost: true})
				case 1:
					f.l.set(name(i), name(j), rule{stalled: true})
				case 2:
					f.l.set(name(i), name(j), rule{hang: true, lost: rng.IntN(2) == 0})
				case 3:
					f.l.set(name(i), name(j), rule{cutIn: 1 + rng.IntN(3000)})
				case 4:
					f.l.set(name(i), name(j), rule{refused: true})
				case 5:
					f.l.breakAll(name(i), name(j))
				case 6:
					f.l.set(name(i), name(j), rule{delay: time.Duration(rng.IntN(5000)) * time.Millisecond})
				case 7:
					f.g[i].Close()
					f.l.breakAll(name(i), name(j))
					f.start(i, o)
				default:
					f.l.both(name(i), name(j), rule{})
				}
				for range rng.IntN(6) {
					seq++
					f.g[i].Send(raft.NodeID(j+1), []raft.Msg{{
						Type: raft.MsgApp, Shard: 2, Term: 3, Index: 7, LogTerm: 3, Commit: raft.Index(seq),
						Entries: []raft.Entry{testEntry(8, 3, make([]byte, rng.IntN(3000)))},
					}})
				}
				<-time.After(time.Duration(rng.ExpFloat64() * float64(300*time.Millisecond)))
			}
			for i := range n {
				for j := range n {
					f.l.set(name(i), name(j), rule{})
				}
			}
			f.allUp(40 * time.Second)
			for i := range n {
				for j := range n {
					if i != j {
						// A stream may look fine and be half-open still: keepalive finds out.
						heard := false
						for try := 0; try < 25 && !heard; try++ {
							seq++
							f.say(i, j, seq)
							<-time.After(time.Second)
							synctest.Wait()
							heard = f.heard(j, i, seq)
						}
						if !heard {
							t.Errorf("node %d does not hear node %d: %+v", j+1, i+1, f.g[i].Stats())
						}
					}
				}
			}
			synctest.Wait()
			if g := runtime.NumGoroutine(); g > goroutines+8*n {
				t.Errorf("%d goroutines after the storm, %d before", g, goroutines)
			}
			for i := range n {
				f.rec[i].mu.Lock()
				for from, msgs := range f.rec[i].msgs {
					last := raft.Index(0)
					for _, m := range msgs {
						if m.Commit <= last {
							t.Errorf("node %d got message %d of node %d after %d", i+1, m.Commit, from, last)
						}
						last = m.Commit
					}
				}
				f.rec[i].mu.Unlock()
			}
		})
	}
}
