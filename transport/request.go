package transport

import (
	"context"
	"fmt"
	"net"
	"runtime"
	"sync"
	"sync/atomic"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/encoding"
	protocodec "google.golang.org/grpc/encoding/proto"
	"google.golang.org/grpc/health"
	healthpb "google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/mem"
	"google.golang.org/grpc/metadata"
	grpcpeer "google.golang.org/grpc/peer"
	"google.golang.org/grpc/reflection"
	"google.golang.org/grpc/status"

	"github.com/flotillakv/flotilla/internal/mutants"
	"github.com/flotillakv/flotilla/multiraft/raft"
	"github.com/flotillakv/flotilla/shard"
	"github.com/flotillakv/flotilla/transport/transportpb"
)

// requestServer is the service of the client listener.
type requestServer struct {
	t        *GRPC
	slots    chan struct{} // one token per request being served
	health   *health.Server
	inFlight atomic.Int64
	total    atomic.Uint64
	bytes    atomic.Int64 // of messages with requests that are being served
	unsent   atomic.Int64 // bytes of responses that wait in the sessions
	refused  atomic.Uint64
	reads    atomic.Int64 // being served
	typical  atomic.Int64 // size of the answer to a read
	workers  workers
}

// maxUnsentResponses bounds the bytes of responses that wait for a client that
// does not read; its requests are not read meanwhile.
const maxUnsentResponses = 8 << 20

func newRequestServer(t *GRPC) *requestServer {
	return &requestServer{t: t, slots: make(chan struct{}, t.o.MaxInFlight), health: health.NewServer(),
		workers: workers{jobs: make(chan func()), stop: t.ctx.Done()}}
}

// kvCodec passes the messages that wire.go encodes as bytes, and leaves all
// others (health, reflection) to generated code.
type kvCodec struct{ rawCodec }

func (kvCodec) Name() string { return protocodec.Name }

func (c kvCodec) Marshal(v any) (mem.BufferSlice, error) {
	switch v.(type) {
	case *rawBytes, *outFrame:
		return c.rawCodec.Marshal(v)
	}
	return encoding.GetCodecV2(protocodec.Name).Marshal(v)
}

func (c kvCodec) Unmarshal(data mem.BufferSlice, v any) error {
	if _, ok := v.(*rawBytes); ok {
		return c.rawCodec.Unmarshal(data, v)
	}
	return encoding.GetCodecV2(protocodec.Name).Unmarshal(data, v)
}

func newClientServer(s *requestServer, l net.Listener) *grpc.Server {
	g := grpc.NewServer(append(serverOptions(s.t.o.TLS, true, s.t.rlog, s.t.o.ClientWindowBytes), grpc.ForceServerCodecV2(kvCodec{}),
		grpc.MaxRecvMsgSize(maxWireBytes), grpc.MaxSendMsgSize(maxWireBytes), grpc.MaxConcurrentStreams(1024))...)
	g.RegisterService(&kvServiceDesc, s)
	healthpb.RegisterHealthServer(g, s.health)
	if a, ok := l.Addr().(*net.TCPAddr); ok && a.IP.IsLoopback() {
		reflection.Register(g)
	}
	return g
}

// kvServiceDesc is the service of kv.proto with handlers that bypass generated messages.
var kvServiceDesc = grpc.ServiceDesc{
	ServiceName: transportpb.KV_ServiceDesc.ServiceName,
	HandlerType: (*any)(nil),
	Methods: []grpc.MethodDesc{
		{MethodName: "Do", Handler: serveDo},
		{MethodName: "Admin", Handler: serveAdmin},
	},
	Streams: []grpc.StreamDesc{{StreamName: "Stream", ClientStreams: true, ServerStreams: true,
		Handler: func(s any, stream grpc.ServerStream) error { return s.(*requestServer).stream(stream) }}},
	Metadata: transportpb.KV_ServiceDesc.Metadata,
}

func callerAddr(ctx context.Context) string {
	if p, ok := grpcpeer.FromContext(ctx); ok && p.Addr != nil {
		return p.Addr.String()
	}
	return ""
}

// setServing tells the health service.
func (s *requestServer) setServing(ok bool) {
	st := healthpb.HealthCheckResponse_NOT_SERVING
	if ok {
		st = healthpb.HealthCheckResponse_SERVING
	}
	s.health.SetServingStatus("", st)
	s.health.SetServingStatus(kvServiceDesc.ServiceName, st)
}

var errNotServing = &shard.UnavailableError{Why: "the node does not serve yet"}

// admit takes a slot; false when ctx ended first.
func (s *requestServer) admit(ctx context.Context) bool {
	select {
	case s.slots <- struct{}{}:
	case <-ctx.Done():
		return false
	}
	s.inFlight.Add(1)
	s.total.Add(1)
	return true
}

func (s *requestServer) release() {
	s.inFlight.Add(-1)
	<-s.slots
}

// do runs one request to its end, which answers nil never.
func (s *requestServer) do(ctx context.Context, h RequestHandler, r *shard.Request) *shard.Response {
	if h == nil {
		return r.Failed(errNotServing)
	}
	if resp := h.Do(ctx, r); resp != nil {
		return resp
	}
	return r.Failed(&shard.AmbiguousError{Shard: r.Shard, Why: "the node gave no answer"})
}

func serveDo(srv any, ctx context.Context, dec func(any) error, _ grpc.UnaryServerInterceptor) (any, error) {
	s := srv.(*requestServer)
	var in rawBytes
	if err := dec(&in); err != nil {
		return nil, err
	}
	r, err := decodeRequest(in.b)
	if err != nil {
		return nil, status.Error(codes.InvalidArgument, err.Error())
	}
	if !s.admit(ctx) {
		return nil, status.FromContextError(ctx.Err()).Err()
	}
	defer s.release()
	if r.TimeoutNanos > 0 {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, time.Duration(r.TimeoutNanos))
		defer cancel()
	}
	return &rawBytes{encodeResponse(nil, s.do(ctx, s.t.state.Load().requests, r), r.ID)}, nil
}

// encodeResponse is appendResponse with a bound: what no message can hold is
// answered with an error instead.
func encodeResponse(b []byte, r *shard.Response, id uint64) []byte {
	if responseSize(r) > maxWireBytes-FrameTargetBytes-1024 {
		r = &shard.Response{Err: &shard.RemoteError{Text: fmt.Sprintf("transport: the answer is larger than %d bytes", maxWireBytes)}}
	}
	return appendResponse(b, r, id)
}

func serveAdmin(srv any, ctx context.Context, dec func(any) error, _ grpc.UnaryServerInterceptor) (any, error) {
	s := srv.(*requestServer)
	var in transportpb.AdminRequest
	if err := dec(&in); err != nil {
		return nil, err
	}
	h := s.t.state.Load().requests
	var out []byte
	var err error = errNotServing
	if h != nil {
		out, err = h.Admin(ctx, in.GetMethod(), in.GetJson())
	}
	if err != nil {
		code, payload := shard.EncodeError(err)
		return &transportpb.AdminResponse{ErrorCode: uint32(code), Error: payload}, nil
	}
	return &transportpb.AdminResponse{Json: out}, nil
}

// clientHello judges the hello of a client; there may be none.
func (s *requestServer) clientHello(stream grpc.ServerStream, st *state) *RefusedError {
	if st.requests == nil {
		return &RefusedError{Reason: RefusedNotReady, ByUs: true}
	}
	md, _ := metadata.FromIncomingContext(stream.Context())
	if len(md.Get(helloKey)) == 0 {
		return nil
	}
	h, err := helloOf(stream)
	switch {
	case err != nil:
		return &RefusedError{Reason: RefusedHello, ByUs: true, Detail: err.Error()}
	case !h.versionsMeet():
		return &RefusedError{Reason: RefusedVersion, ByUs: true}
	case h.Cluster != [16]byte{} && h.Cluster != st.id.Cluster:
		return &RefusedError{Reason: RefusedCluster, ByUs: true, Detail: fmt.Sprintf("the client expects cluster %x, this is %x", h.Cluster, st.id.Cluster)}
	case h.To != 0 && h.To != st.id.Node:
		return &RefusedError{Reason: RefusedNode, ByUs: true, Detail: fmt.Sprintf("the client looks for node %d, this is node %d", h.To, st.id.Node)}
	}
	return nil
}

// session is one client's stream.
type session struct {
	s   *requestServer
	ctx context.Context
	out *outbuf

	mu      sync.Mutex
	cancels map[uint64]context.CancelFunc // of requests running in a goroutine
}

// stream serves one client: this goroutine receives, another sends.
func (s *requestServer) stream(stream grpc.ServerStream) error {
	st := s.t.state.Load()
	if r := s.clientHello(stream, st); r != nil {
		return s.t.refuse(stream, r)
	}
	if err := s.t.answerHello(stream, st, 0); err != nil {
		return err
	}
	ctx, cancel := context.WithCancel(stream.Context())
	c := &session{s: s, ctx: ctx, out: newOutbuf(), cancels: map[uint64]context.CancelFunc{}}
	c.out.all = &s.unsent
	sent := make(chan error, 1)
	go func() { sent <- c.send(stream) }()
	err := c.receive(stream, st.requests)
	cancel()
	c.out.close()
	if serr := <-sent; err == nil {
		err = serr
	}
	return err
}

// send writes responses until the stream ends. A client that closed its side
// gets no more: whoever closes does not wait for answers.
func (c *session) send(stream grpc.ServerStream) error {
	for {
		buf, ok := c.out.take(nil)
		if !ok {
			select {
			case <-c.out.wake:
				runtime.Gosched() // let others that are about to send join the batch
				continue
			case <-c.ctx.Done():
				return nil
			}
		}
		if err := stream.SendMsg(&outFrame{body: buf}); err != nil {
			return err
		}
	}
}

func (c *session) receive(stream grpc.ServerStream, h RequestHandler) error {
	async, _ := h.(AsyncRequestHandler)
	for {
		c.out.waitBelow(maxUnsentResponses)
		var in rawBytes
		if err := stream.RecvMsg(&in); err != nil {
			return nil // the client is gone
		}
		msg := c.s.hold(len(in.b))
		err := decodeBatch(in.b, func(b []byte) error {
			in := &serving{c: c, msg: msg}
			if err := decodeRequestTo(&in.req, b); err != nil {
				return err
			}
			if in.read = in.req.Kind != shard.KindWrite; !in.read && c.s.tooMuch() || in.read && c.s.tooManyReads() {
				c.s.refused.Add(1)
				in.req.Command = raft.Command{}
				c.out.add(func(b []byte, _ uint64) []byte { return encodeResponse(b, in.req.Failed(errRequestBytes), in.req.ID) }, nil)
				return nil
			}
			if !c.s.admit(c.ctx) {
				return c.ctx.Err()
			}
			msg.add()
			if in.read {
				c.s.reads.Add(1)
			}
			if in.id = in.req.ID; async != nil {
				async.DoAsync(c.ctx, &in.req, in)
			} else {
				c.start(h, in)
			}
			return nil
		}, c.cancel)
		msg.done()
		if err != nil {
			return status.Error(codes.InvalidArgument, err.Error())
		}
	}
}

// errRequestBytes refuses a write before anything was done for it.
var errRequestBytes = &shard.OverloadedError{RetryAfter: requestRetry, Why: "too many bytes of requests are being served by this node"}

// requestRetry is what a client is told to wait whose request finds no room.
const requestRetry = 50 * time.Millisecond

// tooMuch reports whether a further write has to be refused. One alone never is.
func (s *requestServer) tooMuch() bool {
	limit := s.t.o.RequestBytes
	return limit > 0 && s.bytes.Load() > limit && s.inFlight.Load() > 0 && !mutants.On("GV3")
}

// tooManyReads reports whether a further read has to be refused: what those being served
// will answer, by what reads answered lately, and what waits to be sent is too much.
func (s *requestServer) tooManyReads() bool {
	limit, n := s.t.o.RequestBytes, s.reads.Load()
	return limit > 0 && n > 0 && n*s.typical.Load()+s.unsent.Load() > limit && !mutants.On("GV7")
}

// answeredRead notes the size of what a read answered.
func (s *requestServer) answeredRead(resp *shard.Response) {
	s.reads.Add(-1)
	if resp == nil || resp.Err != nil {
		return
	}
	// At once up, and slowly down: the large ones count.
	n, was := int64(responseSize(resp)), s.typical.Load()
	if n < was {
		n = was - (was-n)/64
	}
	if n != was {
		s.typical.Store(n)
	}
}

// inMessage is a message that requests which are being served are a part of: its memory
// is there as long as one of them is.
type inMessage struct {
	s    *requestServer
	size int64
	refs atomic.Int32
}

// hold counts a message that came in until done was called once more than add.
func (s *requestServer) hold(size int) *inMessage {
	m := &inMessage{s: s, size: int64(size)}
	m.refs.Store(1)
	s.bytes.Add(m.size)
	return m
}

func (m *inMessage) add() { m.refs.Add(1) }

func (m *inMessage) done() {
	if m.refs.Add(-1) == 0 {
		m.s.bytes.Add(-m.size)
	}
}

// serving is a request of a session that is being served.
type serving struct {
	c    *session
	msg  *inMessage
	id   uint64 // as its client chose it
	read bool
	req  shard.Request
}

// Answered implements shard.Answerer.
func (in *serving) Answered(resp *shard.Response, _ error) {
	if in.read {
		in.c.s.answeredRead(resp)
	}
	in.c.answer(in.id, &in.req, resp)
	in.msg.done()
}

func (c *session) start(h RequestHandler, in *serving) {
	r := &in.req
	var ctx context.Context
	var cancel context.CancelFunc
	if r.TimeoutNanos > 0 {
		ctx, cancel = context.WithTimeout(c.ctx, time.Duration(r.TimeoutNanos))
	} else {
		ctx, cancel = context.WithCancel(c.ctx)
	}
	c.mu.Lock()
	c.cancels[r.ID] = cancel
	c.mu.Unlock()
	c.s.t.wg.Add(1)
	c.s.workers.run(func() {
		defer c.s.t.wg.Done()
		id := r.ID
		resp := c.s.do(ctx, h, r)
		c.mu.Lock()
		delete(c.cancels, id)
		c.mu.Unlock()
		cancel()
		r.ID = id // the handler may have changed it
		in.id = id
		in.Answered(resp, nil)
	})
}

func (c *session) answer(id uint64, r *shard.Request, resp *shard.Response) {
	if resp == nil {
		resp = r.Failed(&shard.AmbiguousError{Shard: r.Shard, Why: "the node gave no answer"})
	}
	c.out.add(func(b []byte, _ uint64) []byte { return encodeResponse(b, resp, id) }, nil)
	c.s.release()
}

func (c *session) cancel(id uint64) {
	c.mu.Lock()
	cancel := c.cancels[id]
	c.mu.Unlock()
	if cancel != nil {
		cancel()
	}
}

// workers keeps a few goroutines, whose stacks have grown, for the next job.
type workers struct {
	jobs chan func()
	stop <-chan struct{}
	idle atomic.Int32
}

const maxIdleWorkers = 256

// run hands job to an idle worker or starts one.
func (w *workers) run(job func()) {
	select {
	case w.jobs <- job:
		return
	default:
	}
	go func() {
		for {
			job()
			if w.idle.Add(1) > maxIdleWorkers {
				w.idle.Add(-1)
				return
			}
			select {
			case job = <-w.jobs:
				w.idle.Add(-1)
			case <-w.stop:
				return
			}
		}
	}()
}
