package transport

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/flotillakv/flotilla/internal/mutants"
	"github.com/flotillakv/flotilla/multiraft/raft"
)

// peer is the way to one node: a queue and the goroutine that connects and
// drains it. The goroutine runs while the peer has an address.
type peer struct {
	t    *GRPC
	node raft.NodeID
	q    *queue
	kick chan struct{} // room for one: try to connect now

	mu struct {
		sync.Mutex
		addr     string // where to dial; empty: nowhere, and no goroutine runs
		setAddr  string // what SetPeer was told last
		addrBoot uint64 // boot epoch that announced addr in a hello, zero: SetPeer
		// forgotten says that SetPeer took the address away: hellos do not teach one.
		forgotten bool
		running   bool
		stream    context.CancelFunc // breaks the open stream or attempt
		lastErr   string
		up        bool
	}

	framesSent, bytesSent, msgsSent, ctlSent         atomic.Uint64
	framesRecv, bytesRecv, msgsRecv, ctlRecv         atomic.Uint64
	dropped, overflows, connects, refused, skippedRx atomic.Uint64
}

func newPeer(t *GRPC, node raft.NodeID) *peer {
	return &peer{t: t, node: node, q: newQueue(t.o.QueueBytes), kick: make(chan struct{}, 1)}
}

// send queues msgs; see Transport.Send.
func (p *peer) send(msgs []raft.Msg) {
	res := p.q.push(msgs)
	if res.dropped > 0 {
		p.dropped.Add(uint64(res.dropped))
	}
	if res.err != nil {
		p.t.rlog.warn(fmt.Sprintf("unsendable/%d", p.node), "a message cannot be sent", "peer", p.node, "err", res.err)
	}
	if res.overflow {
		p.overflows.Add(1)
		p.t.rlog.warn(fmt.Sprintf("overflow/%d", p.node), "the queue to a peer is full; it was dropped and the stream is reset",
			"peer", p.node, "limit_bytes", p.q.limit)
		p.breakStream("the queue was full")
	}
}

// breakStream ends the open stream or connection attempt, if any.
func (p *peer) breakStream(why string) {
	p.mu.Lock()
	cancel := p.mu.stream
	p.mu.lastErr = why
	p.mu.Unlock()
	if cancel != nil {
		cancel()
	}
}

// confirmAddr notes that the node announces the address it is dialled at.
func (p *peer) confirmAddr(h *Hello) {
	p.mu.Lock()
	if h.Addr == p.mu.addr {
		p.mu.addrBoot = max(p.mu.addrBoot, h.BootEpoch)
	}
	p.mu.Unlock()
}

func (p *peer) kickNow() {
	select {
	case p.kick <- struct{}{}:
	default:
	}
}

// run connects again and again until ctx ends or the peer is forgotten.
func (p *peer) run(ctx context.Context) {
	fails := 0
	for {
		p.mu.Lock()
		addr := p.mu.addr
		if addr == "" || ctx.Err() != nil {
			p.mu.running = false
			p.mu.Unlock()
			return
		}
		sctx, cancel := context.WithCancel(ctx)
		p.mu.stream = cancel
		p.mu.Unlock()

		p.q.setAccept(true)
		began := time.Now()
		wasUp, err := p.serve(sctx, addr)
		p.dropped.Add(uint64(p.q.setAccept(false)))
		cancel()
		if err != nil && ctx.Err() == nil {
			p.noteError(addr, err)
		}
		if wasUp && time.Since(began) > time.Second {
			fails = 0
		}
		p.pause(ctx, p.backoff(fails, err))
		fails++
		if mutants.On("H8") && fails > 4 { // given up for good
			<-ctx.Done()
		}
	}
}

// noteError records why there is no stream and tells of a refusal.
func (p *peer) noteError(addr string, err error) {
	p.mu.Lock()
	p.mu.lastErr = err.Error()
	p.mu.Unlock()
	var r *RefusedError
	if errors.As(err, &r) {
		if r.Reason != RefusedNotReady && r.Reason != RefusedReplaced {
			p.t.rlog.warn(fmt.Sprintf("refused/%d/%d", p.node, r.Reason), "no stream to a peer", "peer", p.node, "addr", addr, "err", err)
		}
		if p.t.o.OnRefused != nil {
			p.t.o.OnRefused(p.node, r)
		}
		return
	}
	p.t.rlog.info(fmt.Sprintf("down/%d", p.node), "no stream to a peer", "peer", p.node, "addr", addr, "err", err)
}

// backoff doubles from BackoffMin to BackoffMax and takes a random half of it
// away, so that many nodes do not come at once.
func (p *peer) backoff(fails int, err error) time.Duration {
	d := p.t.o.BackoffMax
	if fails < 16 {
		d = min(p.t.o.BackoffMin<<fails, d)
	}
	var r *RefusedError
	if errors.As(err, &r) && r.Reason == RefusedNotReady {
		d = min(d, 4*p.t.o.BackoffMin)
	}
	return d/2 + rand.N(d/2+1)
}

func (p *peer) pause(ctx context.Context, d time.Duration) {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
	case <-p.kick:
	case <-ctx.Done():
	}
}

// serve opens one stream and sends until it breaks. wasUp tells that it was open.
func (p *peer) serve(ctx context.Context, addr string) (wasUp bool, err error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	st := p.t.state.Load()
	if !st.id.ready() {
		return false, &RefusedError{Reason: RefusedNotReady, ByUs: true}
	}
	conn, stream, h, err := p.t.openStream(ctx, cancel, addr, p.node, framesMethod)
	if err != nil {
		return false, err
	}
	defer conn.Close()
	p.confirmAddr(&h)

	p.mu.Lock()
	p.mu.up, p.mu.lastErr = true, ""
	p.mu.Unlock()
	p.connects.Add(1)
	p.t.o.Logger.Debug("stream to a peer is open", "peer", p.node, "addr", addr)
	st.handler.OnPeer(p.node, true)

	over := make(chan error, 1)
	go func() { // watcher: ends with the stream
		var m rawBytes
		err := stream.RecvMsg(&m)
		over <- streamError(err, stream.Trailer().Get(refusalKey), addr)
		cancel()
		if mutants.Enabled && mutants.On("H9") {
			<-p.t.ctx.Done()
		}
	}()
	err = p.drain(ctx, stream, &st.id)
	cancel()
	if werr := <-over; err == nil || isRefused(werr) {
		err = werr
	}

	p.mu.Lock()
	p.mu.up = false
	p.mu.Unlock()
	p.q.setAccept(false)
	st.handler.OnPeer(p.node, false)
	return true, err
}

// drain is the sender's loop.
func (p *peer) drain(ctx context.Context, stream grpc.ClientStream, id *Identity) error {
	var ctlBuf []byte
	h := FrameHeader{From: id.Node, To: p.node, BootEpoch: id.BootEpoch}
	var f outFrame
	for {
		b, ctl, nCtl, ok := p.q.take(ctlBuf[:0])
		ctlBuf = ctl
		if !ok {
			select {
			case <-p.q.wake:
				if !p.q.hasCtl() { // heartbeats do not stand in line
					runtime.Gosched() // let other loops that are about to send join the frame
				}
				continue
			case <-ctx.Done():
				return nil
			}
		}
		h.Seq++
		f = seal(h, b, ctl, nCtl, p.t.o.Compress)
		size := f.len()
		if err := stream.SendMsg(&f); err != nil {
			p.dropped.Add(uint64(b.n))
			return fmt.Errorf("transport: send to node %d: %w", p.node, err)
		}
		p.framesSent.Add(1)
		p.bytesSent.Add(uint64(size))
		p.msgsSent.Add(uint64(b.n))
		p.ctlSent.Add(uint64(nCtl))
	}
}

func (p *peer) stats() PeerStats {
	p.mu.Lock()
	s := PeerStats{Node: p.node, Addr: p.mu.addr, Up: p.mu.up, LastError: p.mu.lastErr}
	p.mu.Unlock()
	s.FramesSent, s.BytesSent, s.MsgsSent, s.CtlSent = p.framesSent.Load(), p.bytesSent.Load(), p.msgsSent.Load(), p.ctlSent.Load()
	s.FramesReceived, s.BytesReceived, s.MsgsReceived, s.CtlReceived = p.framesRecv.Load(), p.bytesRecv.Load(), p.msgsRecv.Load(), p.ctlRecv.Load()
	s.MsgsDropped, s.Overflows, s.Connects = p.dropped.Load(), p.overflows.Load(), p.connects.Load()
	s.Refused, s.Skipped = p.refused.Load(), p.skippedRx.Load()
	s.QueueBytes = int64(p.q.size())
	return s
}

// streamError turns the end of a stream into the refusal it was, if it was one.
func streamError(err error, refusal []string, addr string) error {
	if len(refusal) > 0 {
		if r := decodeRefusal(refusal[0], addr); r != nil {
			return r
		}
	}
	if err == nil {
		return fmt.Errorf("transport: %s ended the stream", addr)
	}
	if status.Code(err) == codes.ResourceExhausted { // gRPC refused a message by its length
		return &RefusedError{Reason: RefusedFrame, Addr: addr, Detail: status.Convert(err).Message()}
	}
	return fmt.Errorf("transport: %s: %s", addr, plainStatus(status.Convert(err).Message()))
}

// plainStatus takes what gRPC wraps around the cause of a failed connection off.
func plainStatus(text string) string {
	for _, s := range []string{"connection error: desc = ", "error reading from server: "} {
		text = strings.TrimPrefix(text, s)
	}
	if inner, err := strconv.Unquote(text); err == nil {
		text = inner
	}
	// Which of the two it is depends on who is quicker.
	if _, why, ok := strings.Cut(text, "error reading server preface: "); ok && (why == "EOF" || strings.Contains(why, "connection reset")) {
		return "the connection ended before anything was said; if the other side uses TLS, it needs a certificate (--tls-ca, --tls-cert, --tls-key)"
	}
	if text == "EOF" {
		return "the connection ended"
	}
	return strings.TrimPrefix(text, "transport: Error while dialing: ")
}

func isRefused(err error) bool {
	var r *RefusedError
	return errors.As(err, &r)
}
