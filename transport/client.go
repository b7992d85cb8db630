package transport

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"runtime"
	"sync"
	"sync/atomic"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"

	"github.com/flotillakv/flotilla/internal/mutants"
	"github.com/flotillakv/flotilla/multiraft/raft"
	"github.com/flotillakv/flotilla/shard"
	"github.com/flotillakv/flotilla/transport/transportpb"
)

// ClientOptions configure a Client.
type ClientOptions struct {
	// Cluster the server must belong to. Zero: any.
	Cluster [16]byte
	// Node the server must be. Zero: any.
	Node raft.NodeID
	// DialTimeout bounds one connection attempt. Zero: 3 s.
	DialTimeout time.Duration
	// BackoffMin and BackoffMax bound the time after a failed attempt in which
	// requests fail at once. Zero: 20 ms and 1 s.
	BackoffMin, BackoffMax time.Duration
	// TLS proves who this process is and checks the server. Nil: no TLS.
	TLS *TLS
	// Dial replaces the TCP dialler, for tests.
	Dial func(ctx context.Context, addr string) (net.Conn, error)
}

// Client sends requests to one node over one stream, many at a time. It
// connects when it is used and reconnects by itself. All methods are safe for
// concurrent use.
type Client struct {
	addr   string
	o      ClientOptions
	ctx    context.Context
	cancel context.CancelFunc
	wg     sync.WaitGroup

	mu struct {
		sync.Mutex
		closed  bool
		conn    *clientConn   // usable, or nil
		dialing chan struct{} // closed when the attempt under way is over
		lastErr error
		fails   int
		notTill time.Time // no attempt before
	}
}

// clientConn is one stream of a client.
type clientConn struct {
	node   raft.NodeID
	hello  Hello
	cc     *grpc.ClientConn
	stream grpc.ClientStream
	cancel context.CancelFunc
	out    *outbuf
	// sent is the highest id that was handed to the stream: up to it the outcome
	// of a write is unknown when the stream breaks.
	sent   atomic.Uint64
	frames atomic.Uint64 // handed to the stream

	mu      sync.Mutex
	pending map[uint64]waiter
}

// waiter is who waits for an answer: a call, or an Answerer.
type waiter struct {
	call *call
	to   shard.Answerer
	// What an Answerer's request was.
	id    uint64
	shard raft.ShardID
	kind  shard.Kind
}

// call is a request that waits for its answer.
type call struct {
	done chan callResult // room for one
}

type callResult struct {
	resp *shard.Response
	err  error // the stream broke: why
	sent bool  // with err: the request had been handed to the stream
}

var callPool = sync.Pool{New: func() any { return &call{done: make(chan callResult, 1)} }}

// NewClient returns a client of the node at addr (host:port of its client
// listener). Nothing is connected yet.
func NewClient(addr string, o ClientOptions) *Client {
	if o.DialTimeout <= 0 {
		o.DialTimeout = 3 * time.Second
	}
	if o.BackoffMin <= 0 {
		o.BackoffMin = 20 * time.Millisecond
	}
	if o.BackoffMax < o.BackoffMin {
		o.BackoffMax = max(time.Second, o.BackoffMin)
	}
	c := &Client{addr: addr, o: o}
	c.ctx, c.cancel = context.WithCancel(context.Background())
	return c
}

// DialClient returns a connected client. When it fails nothing is left behind;
// the error is a *RefusedError (wrong cluster, wrong node), or a
// *shard.UnavailableError when the address cannot be reached.
func DialClient(ctx context.Context, addr string, o ClientOptions) (*Client, error) {
	c := NewClient(addr, o)
	if _, err := c.connection(ctx); err != nil {
		c.Close()
		var r *RefusedError
		if errors.As(err, &r) {
			return nil, r
		}
		return nil, err
	}
	return c, nil
}

// Addr returns the address given to NewClient.
func (c *Client) Addr() string { return c.addr }

// Server returns the hello of the node the client is connected to; ok is false
// when it is not connected.
func (c *Client) Server() (h Hello, ok bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.mu.conn == nil {
		return Hello{}, false
	}
	return c.mu.conn.hello, true
}

// Do sends r and waits for its response, whose Err is the server's. The error of
// Do itself says that there is no response: *shard.UnavailableError when the
// request was certainly not served (it was not sent, or is a read), and
// *shard.AmbiguousError (shard.ErrAmbiguous) when a write was sent and the
// connection broke or ctx ended before the answer. Both unwrap to the context's
// error if that was the cause. The server gets the time left until ctx's
// deadline unless r.TimeoutNanos states one. r.ID is free for the caller's use;
// the response carries it. r is encoded before Do waits and not retained.
func (c *Client) Do(ctx context.Context, r *shard.Request) (*shard.Response, error) {
	if err := ctx.Err(); err != nil {
		return nil, &shard.UnavailableError{Node: c.o.Node, Why: "its time was over before it was sent", Cause: err}
	}
	cn, err := c.connection(ctx)
	if err != nil {
		return nil, err
	}
	w := callPool.Get().(*call)
	timeout := timeLeft(ctx, r)
	id, ok := cn.out.add(
		func(b []byte, id uint64) []byte { return appendRequest(b, r, id, timeout) },
		func(id uint64) { cn.register(id, waiter{call: w}) })
	if !ok {
		callPool.Put(w)
		return nil, &shard.UnavailableError{Node: cn.node, Why: "the connection to " + c.addr + " broke"}
	}
	var res callResult
	select {
	case res = <-w.done:
	case <-ctx.Done():
		if cn.forget(id) {
			callPool.Put(w)
			cn.out.addCancel(id)
			return nil, lostAnswer(r.Kind, r.Shard, cn.node, ctx.Err(), "the time ended before the answer came")
		}
		res = <-w.done // it is coming
	}
	callPool.Put(w)
	switch {
	case res.resp != nil:
		res.resp.ID = r.ID
		return res.resp, nil
	case !res.sent:
		return nil, notSent(cn.node, res.err)
	}
	return nil, lostAnswer(r.Kind, r.Shard, cn.node, nil, res.err.Error())
}

// Start is Do without waiting: a is told what Do would return, maybe before Start
// returns, else on the goroutine that receives, which it must not block. ok is
// false, and nothing was done, when there is no connection yet; Do waits for one.
// The request can be given up at conn by id. r is encoded before Start returns and
// not retained.
func (c *Client) Start(r *shard.Request, a shard.Answerer) (conn shard.Abandoner, id uint64, ok bool) {
	c.mu.Lock()
	cn, closed := c.mu.conn, c.mu.closed
	c.mu.Unlock()
	switch {
	case closed:
		a.Answered(nil, shard.ErrClosed)
		return nil, 0, true
	case cn == nil:
		return nil, 0, false
	}
	id, ok = cn.out.add(
		func(b []byte, id uint64) []byte { return appendRequest(b, r, id, r.TimeoutNanos) },
		func(id uint64) { cn.register(id, waiter{to: a, id: r.ID, shard: r.Shard, kind: r.Kind}) })
	if !ok {
		a.Answered(nil, &shard.UnavailableError{Node: cn.node, Why: "the connection to " + c.addr + " broke"})
		return nil, 0, true
	}
	return cn, id, true
}

// Abandon implements shard.Abandoner.
func (cn *clientConn) Abandon(id uint64) {
	if cn.forget(id) {
		cn.out.addCancel(id)
	}
}

// lostAnswer is the error of a request that was sent and not answered.
func lostAnswer(kind shard.Kind, id raft.ShardID, node raft.NodeID, cause error, why string) error {
	if kind == shard.KindWrite {
		return &shard.AmbiguousError{Shard: id, Why: why, Cause: cause}
	}
	return &shard.UnavailableError{Node: node, Why: why, Cause: cause}
}

// notSent is the error of a request that waited for the stream when it broke.
func notSent(node raft.NodeID, why error) error {
	return &shard.UnavailableError{Node: node, Why: "the connection broke before it was sent: " + why.Error()}
}

// timeLeft is what the server is told as the request's timeout.
func timeLeft(ctx context.Context, r *shard.Request) int64 {
	if r.TimeoutNanos != 0 {
		return r.TimeoutNanos
	}
	if d, ok := ctx.Deadline(); ok {
		return max(1, int64(time.Until(d)))
	}
	return 0
}

// Admin sends a named query; in and the answer are JSON. The error is the
// server's, or a *shard.UnavailableError when no answer came.
func (c *Client) Admin(ctx context.Context, method string, in []byte) ([]byte, error) {
	cn, err := c.connection(ctx)
	if err != nil {
		return nil, err
	}
	var out transportpb.AdminResponse
	if err := cn.cc.Invoke(ctx, transportpb.KV_Admin_FullMethodName, &transportpb.AdminRequest{Method: method, Json: in}, &out); err != nil {
		return nil, &shard.UnavailableError{Node: cn.node, Why: status.Convert(err).Message(), Cause: ctx.Err()}
	}
	if err := shard.DecodeError(shard.Code(out.GetErrorCode()), out.GetError()); err != nil {
		return nil, err
	}
	return out.GetJson(), nil
}

// Close breaks the connection. Requests under way end as if it had broken. It is
// idempotent and leaves no goroutine.
func (c *Client) Close() error {
	c.mu.Lock()
	c.mu.closed = true
	c.mu.Unlock()
	c.cancel()
	c.wg.Wait()
	return nil
}

// connection returns the open connection, or waits for one attempt to make it.
func (c *Client) connection(ctx context.Context) (*clientConn, error) {
	c.mu.Lock()
	switch {
	case c.mu.closed:
		c.mu.Unlock()
		return nil, shard.ErrClosed
	case c.mu.conn != nil:
		cn := c.mu.conn
		c.mu.Unlock()
		return cn, nil
	case c.mu.dialing == nil && time.Now().Before(c.mu.notTill):
		err := c.mu.lastErr
		c.mu.Unlock()
		return nil, c.unreachable(err)
	}
	dialing := c.mu.dialing
	if dialing == nil {
		dialing = make(chan struct{})
		c.mu.dialing = dialing
		c.wg.Add(1)
		go func() {
			defer c.wg.Done()
			c.dialOnce(dialing)
		}()
	}
	c.mu.Unlock()
	select {
	case <-dialing:
	case <-ctx.Done():
		return nil, &shard.UnavailableError{Node: c.o.Node, Why: "its time was over before " + c.addr + " could be reached", Cause: ctx.Err()}
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.mu.closed {
		return nil, shard.ErrClosed
	}
	if c.mu.conn != nil {
		return c.mu.conn, nil
	}
	return nil, c.unreachable(c.mu.lastErr)
}

func (c *Client) unreachable(err error) error {
	e := &shard.UnavailableError{Node: c.o.Node, Cause: err}
	if err == nil {
		e.Why = c.addr + " cannot be reached"
	}
	return e
}

// dialOnce makes one attempt and publishes its result.
func (c *Client) dialOnce(dialing chan struct{}) {
	cn, err := c.dial()
	c.mu.Lock()
	c.mu.dialing = nil
	if err != nil {
		c.mu.lastErr = err
		d := c.o.BackoffMax
		if c.mu.fails < 16 {
			d = min(c.o.BackoffMin<<c.mu.fails, d)
		}
		c.mu.fails++
		c.mu.notTill = time.Now().Add(d/2 + rand.N(d/2+1))
	} else {
		c.mu.fails = 0
		c.mu.conn = cn
		c.wg.Add(2)
		go func() { // sender
			defer c.wg.Done()
			cn.send()
		}()
		go func() { // receiver
			defer c.wg.Done()
			err := cn.receive()
			c.mu.Lock()
			c.mu.conn = nil
			c.mu.lastErr = err
			c.mu.Unlock()
			cn.fail(err)
		}()
	}
	c.mu.Unlock()
	close(dialing)
}

// dial connects, says hello and checks the answer.
func (c *Client) dial() (_ *clientConn, err error) {
	cc, err := grpc.NewClient("passthrough:///"+c.addr, append(dialOptions(c.o.TLS.client(c.o.Node), c.o.Dial), grpc.WithDefaultCallOptions(
		grpc.ForceCodecV2(kvCodec{}), grpc.MaxCallRecvMsgSize(maxWireBytes), grpc.MaxCallSendMsgSize(maxWireBytes)))...)
	if err != nil {
		return nil, fmt.Errorf("transport: address %q: %w", c.addr, err)
	}
	ctx, cancel := context.WithCancel(c.ctx)
	defer func() {
		if err != nil {
			cancel()
			cc.Close()
		}
	}()
	timer := time.AfterFunc(c.o.DialTimeout, cancel)
	defer timer.Stop()
	h := Hello{MinVersion: wireVersionMin, MaxVersion: wireVersionMax, Client: true, Cluster: c.o.Cluster, To: c.o.Node, Incarnation: noIncarnation}
	stream, err := cc.NewStream(metadata.AppendToOutgoingContext(ctx, helloKey, string(h.Encode(nil))),
		&grpc.StreamDesc{ClientStreams: true, ServerStreams: true}, transportpb.KV_Stream_FullMethodName)
	if err != nil {
		return nil, c.dialError(err, nil)
	}
	md, err := stream.Header()
	v := md.Get(helloKey)
	if err != nil || len(v) != 1 {
		if err == nil {
			err = stream.RecvMsg(&rawBytes{})
		}
		return nil, c.dialError(err, stream.Trailer().Get(refusalKey))
	}
	sh, err := DecodeHello([]byte(v[0]))
	if err != nil {
		return nil, &RefusedError{Reason: RefusedHello, Addr: c.addr, ByUs: true, Detail: err.Error()}
	}
	if c.o.Cluster != [16]byte{} && sh.Cluster != c.o.Cluster {
		return nil, &RefusedError{Reason: RefusedCluster, Addr: c.addr, ByUs: true, Detail: fmt.Sprintf("its cluster is %x, %x was expected", sh.Cluster, c.o.Cluster)}
	}
	if !timer.Stop() {
		return nil, fmt.Errorf("transport: %s did not answer within %v", c.addr, c.o.DialTimeout)
	}
	return &clientConn{node: sh.Node, hello: sh, cc: cc, stream: stream, cancel: cancel, out: newOutbuf(), pending: map[uint64]waiter{}}, nil
}

func (c *Client) dialError(err error, refusal []string) error {
	if len(refusal) == 0 && status.Code(err) == codes.Canceled && c.ctx.Err() == nil {
		return fmt.Errorf("transport: %s did not answer within %v", c.addr, c.o.DialTimeout)
	}
	return streamError(err, refusal, c.addr)
}

func (cn *clientConn) register(id uint64, w waiter) {
	cn.mu.Lock()
	cn.pending[id] = w
	cn.mu.Unlock()
}

// forget takes back a registration; false means that its result is on the way.
func (cn *clientConn) forget(id uint64) bool {
	cn.mu.Lock()
	defer cn.mu.Unlock()
	_, ok := cn.pending[id]
	delete(cn.pending, id)
	return ok
}

func (cn *clientConn) send() {
	for {
		buf, ok := cn.out.take(func(last uint64) { cn.sent.Store(last) })
		if !ok {
			select {
			case <-cn.out.wake:
				runtime.Gosched() // let others that are about to send join the batch
				continue
			case <-cn.stream.Context().Done():
				return
			}
		}
		cn.frames.Add(1)
		if err := cn.stream.SendMsg(&outFrame{body: buf}); err != nil {
			cn.cancel() // the receiver tells why
			return
		}
	}
}

// receive completes calls until the stream ends; it returns why.
func (cn *clientConn) receive() error {
	resp := new(response) // one at a time
	for {
		var in rawBytes
		if err := cn.stream.RecvMsg(&in); err != nil {
			return streamError(err, cn.stream.Trailer().Get(refusalKey), cn.cc.CanonicalTarget()[len("passthrough:///"):])
		}
		err := decodeBatch(in.b, func(b []byte) error {
			if err := resp.decode(b); err != nil {
				return err
			}
			cn.mu.Lock()
			w := cn.pending[resp.ID]
			delete(cn.pending, resp.ID)
			cn.mu.Unlock()
			switch {
			case w.call != nil:
				w.call.done <- callResult{resp: resp.clone()}
			case w.to != nil:
				resp.ID = w.id
				w.to.Answered(&resp.Response, nil)
			}
			return nil
		}, nil)
		if err != nil {
			return err
		}
	}
}

// fail completes what is pending after the stream ended.
func (cn *clientConn) fail(err error) {
	cn.cancel()
	cn.out.close() // from here on nothing is added, and nothing more is sent
	cn.mu.Lock()
	pending := cn.pending
	cn.pending = map[uint64]waiter{}
	cn.mu.Unlock()
	sent := cn.sent.Load()
	if mutants.On("F9c") {
		sent = 0
	}
	for id, w := range pending {
		switch {
		case w.call != nil:
			w.call.done <- callResult{err: err, sent: id <= sent}
		case id <= sent:
			w.to.Answered(nil, lostAnswer(w.kind, w.shard, cn.node, nil, err.Error()))
		default:
			w.to.Answered(nil, notSent(cn.node, err))
		}
	}
	cn.cc.Close()
}
