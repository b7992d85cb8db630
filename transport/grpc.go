package transport

import (
	"cmp"
	"context"
	"crypto/rand"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"slices"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/keepalive"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"

	"github.com/flotillakv/flotilla/multiraft/raft"
	"github.com/flotillakv/flotilla/shard"
)

// GRPC is the Transport over TCP.
type GRPC struct {
	o           Options
	rlog        *rateLog
	incarnation uint64
	ctx         context.Context // ends with Close
	cancel      context.CancelFunc
	wg          sync.WaitGroup // peers, receivers, servers
	state       atomic.Pointer[state]

	peerLis, clientLis net.Listener
	peerSrv, clientSrv *grpc.Server
	requests           *requestServer

	mu struct {
		sync.Mutex
		closed bool
	}
	peers   atomic.Pointer[map[raft.NodeID]*peer] // copied on write under mu
	inbound inboundTable

	hellosRefused [reasonMax + 1]atomic.Uint64
	framesRefused atomic.Uint64
	closeOnce     sync.Once
}

// state is what Activate sets.
type state struct {
	id       Identity
	handler  Handler
	requests RequestHandler
}

var _ Transport = (*GRPC)(nil)

// NewGRPC listens and serves. Errors to listen are *ListenError.
func NewGRPC(o Options) (*GRPC, error) {
	t := &GRPC{o: o.withDefaults(), incarnation: newIncarnation()}
	t.rlog = newRateLog(t.o.Logger)
	t.inbound.byID = map[raft.NodeID]*inbound{}
	t.ctx, t.cancel = context.WithCancel(context.Background())
	t.peers.Store(&map[raft.NodeID]*peer{})
	var err error
	if t.peerLis, err = listen("peers", o.Listen, o.Listener); err == nil {
		t.clientLis, err = listen("clients", o.ClientListen, o.ClientListener)
	}
	if err != nil {
		if t.peerLis != nil {
			t.peerLis.Close()
		}
		t.cancel()
		return nil, err
	}
	t.state.Store(&state{id: t.fillAddrs(o.Identity), handler: o.Handler, requests: o.Requests})
	t.requests = newRequestServer(t)
	if t.peerLis != nil {
		t.peerSrv = t.newPeerServer()
		t.serve(t.peerSrv, t.peerLis)
	}
	t.requests.setServing(o.Requests != nil)
	if t.clientLis != nil {
		t.clientSrv = newClientServer(t.requests, t.clientLis)
		t.serve(t.clientSrv, t.clientLis)
	}
	return t, nil
}

func listen(what, addr string, l net.Listener) (net.Listener, error) {
	if l != nil || addr == "" {
		return l, nil
	}
	l, err := net.Listen("tcp", addr)
	if err != nil {
		return nil, &ListenError{What: what, Addr: addr, InUse: errors.Is(err, syscall.EADDRINUSE), Err: err}
	}
	return l, nil
}

func newIncarnation() uint64 {
	var b [8]byte
	_, _ = rand.Read(b[:]) // never fails
	return binary.LittleEndian.Uint64(b[:]) | 1
}

func (t *GRPC) serve(s *grpc.Server, l net.Listener) {
	t.wg.Add(1)
	go func() {
		defer t.wg.Done()
		if err := s.Serve(l); err != nil && t.ctx.Err() == nil {
			t.o.Logger.Error("a listener stopped", "addr", l.Addr().String(), "err", err)
		}
	}()
}

// Activate gives the transport its identity and handlers after NewGRPC was
// called without them, so that a node can listen, and answer Join calls, before
// it knows its id. Later calls replace what is set for new streams only.
func (t *GRPC) Activate(id Identity, h Handler, rq RequestHandler) {
	t.state.Store(&state{id: t.fillAddrs(id), handler: h, requests: rq})
	t.requests.setServing(rq != nil)
	for _, p := range *t.peers.Load() {
		t.startPeer(p)
		p.kickNow()
	}
}

func (t *GRPC) fillAddrs(id Identity) Identity {
	if id.Addr == "" {
		id.Addr = reachable(t.peerLis)
	}
	if id.ClientAddr == "" {
		id.ClientAddr = reachable(t.clientLis)
	}
	return id
}

// reachable returns the listener's address unless it is a wildcard, which means
// nothing to others.
func reachable(l net.Listener) string {
	if l == nil {
		return ""
	}
	if a, ok := l.Addr().(*net.TCPAddr); ok && a.IP.IsUnspecified() {
		return ""
	}
	return l.Addr().String()
}

// Addr returns the address peers connect to, with the port that was picked;
// empty when there is no such listener.
func (t *GRPC) Addr() string { return lisAddr(t.peerLis) }

// ClientAddr returns the address clients connect to.
func (t *GRPC) ClientAddr() string { return lisAddr(t.clientLis) }

func lisAddr(l net.Listener) string {
	if l == nil {
		return ""
	}
	return l.Addr().String()
}

// Counters returns what was counted since the start.
func (t *GRPC) Counters() Counters {
	c := Counters{FramesRefused: t.framesRefused.Load()}
	for i := range t.hellosRefused {
		c.HellosRefused[i] = t.hellosRefused[i].Load()
	}
	c.RequestBytes, c.ResponseBytes, c.RequestsRefused = t.requests.bytes.Load(), t.requests.unsent.Load(), t.requests.refused.Load()
	c.RequestsInFlight, c.Requests = t.requests.inFlight.Load(), t.requests.total.Load()
	return c
}

func (t *GRPC) hello(id *Identity, to raft.NodeID) Hello {
	inc := id.Incarnation
	if inc == noIncarnation {
		inc = t.incarnation
	}
	return Hello{
		MinVersion: wireVersionMin, MaxVersion: wireVersionMax,
		Cluster: id.Cluster, Node: id.Node, To: to, BootEpoch: id.BootEpoch, Incarnation: inc, Before: id.Before,
		Addr: id.Addr, ClientAddr: id.ClientAddr,
	}
}

// --- peers

func (t *GRPC) peer(node raft.NodeID) *peer { return (*t.peers.Load())[node] }

// ensurePeer returns the peer, made if need be; nil after Close.
func (t *GRPC) ensurePeer(node raft.NodeID) *peer {
	if p := t.peer(node); p != nil {
		return p
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	old := *t.peers.Load()
	if p := old[node]; p != nil {
		return p
	}
	m := make(map[raft.NodeID]*peer, len(old)+1)
	for k, v := range old {
		m[k] = v
	}
	p := newPeer(t, node)
	m[node] = p
	t.peers.Store(&m)
	return p
}

// SetPeer is Transport.SetPeer. The own node is ignored.
func (t *GRPC) SetPeer(node raft.NodeID, addr string) {
	if node == 0 || node == t.state.Load().id.Node {
		return
	}
	p := t.ensurePeer(node)
	p.mu.Lock()
	if p.mu.setAddr == addr && addr != "" {
		p.mu.Unlock()
		return
	}
	p.mu.setAddr, p.mu.addrBoot, p.mu.forgotten = addr, 0, addr == ""
	changed := p.mu.addr != addr
	p.mu.addr = addr
	p.mu.Unlock()
	t.addrSet(p, changed)
}

// addrSet makes p dial the address that was just set.
func (t *GRPC) addrSet(p *peer, changed bool) {
	if changed {
		p.breakStream("the address changed")
	}
	t.startPeer(p)
	p.kickNow()
}

// startPeer starts p's goroutine unless it runs, or has nowhere to go.
func (t *GRPC) startPeer(p *peer) {
	t.mu.Lock()
	defer t.mu.Unlock()
	p.mu.Lock()
	defer p.mu.Unlock()
	st := t.state.Load()
	if t.mu.closed || p.mu.running || p.mu.addr == "" || !st.id.ready() || st.handler == nil || p.node == st.id.Node {
		return
	}
	p.mu.running = true
	t.wg.Add(1)
	go func() {
		defer t.wg.Done()
		p.run(t.ctx)
	}()
}

// heardFrom is called when a peer's stream was admitted: it lives, so the own
// stream to it is tried at once, at the address it announces if that is news.
func (t *GRPC) heardFrom(h Hello) *peer {
	p := t.ensurePeer(h.Node)
	p.mu.Lock()
	// An address that SetPeer gave is replaced only after the node itself said
	// that it was its own, and by a later incarnation. A node that was forgotten
	// is not called back because it calls.
	learn := !p.mu.forgotten && h.Addr != "" && h.Addr != p.mu.addr && (p.mu.addr == "" || h.BootEpoch > p.mu.addrBoot && p.mu.addrBoot != 0)
	if learn {
		p.mu.addrBoot, p.mu.addr = h.BootEpoch, h.Addr
	}
	p.mu.Unlock()
	p.confirmAddr(&h)
	if learn {
		t.addrSet(p, true)
	} else {
		p.kickNow()
	}
	return p
}

// Send is Transport.Send.
func (t *GRPC) Send(to raft.NodeID, msgs []raft.Msg) {
	if len(msgs) == 0 {
		return
	}
	if p := t.peer(to); p != nil {
		p.send(msgs)
	}
}

// SendCtl is Transport.SendCtl.
func (t *GRPC) SendCtl(to raft.NodeID, c raft.Ctl) {
	if p := t.peer(to); p != nil {
		p.q.pushCtl(&c)
	}
}

// Reset breaks the stream to node, as if the connection had broken, and connects again.
func (t *GRPC) Reset(node raft.NodeID) {
	if p := t.peer(node); p != nil {
		p.breakStream("the stream was reset")
		p.kickNow()
	}
}

// Stats is Transport.Stats.
func (t *GRPC) Stats() []PeerStats {
	var out []PeerStats
	for _, p := range *t.peers.Load() {
		out = append(out, p.stats())
	}
	slices.SortFunc(out, func(a, b PeerStats) int { return cmp.Compare(a.Node, b.Node) })
	return out
}

// Close is Transport.Close.
func (t *GRPC) Close() error {
	t.closeOnce.Do(func() {
		t.mu.Lock()
		t.mu.closed = true
		t.mu.Unlock()
		t.requests.health.Shutdown()
		t.cancel()
		if t.clientSrv != nil {
			t.clientSrv.Stop()
		}
		if t.peerSrv != nil {
			t.peerSrv.Stop()
		}
	})
	t.wg.Wait()
	return nil
}

// --- dialling

const (
	peerService    = "flotilla.peer.v1.Peer"
	framesMethod   = "/" + peerService + "/Frames"
	snapshotMethod = "/" + peerService + "/Snapshot"
	joinMethod     = "/" + peerService + "/Join"

	windowStream = 8 << 20
	windowConn   = 16 << 20
	ioBuffer     = 128 << 10
)

var (
	clientStreamDesc = grpc.StreamDesc{ClientStreams: true}
	bothStreamsDesc  = grpc.StreamDesc{ClientStreams: true, ServerStreams: true}
)

// dialOptions are those of every connection: static windows (no bandwidth
// probes), large buffers, no retries, no proxy, and a keepalive that finds a
// silently dead host within 15 s.
func dialOptions(creds credentials.TransportCredentials, dial func(context.Context, string) (net.Conn, error)) []grpc.DialOption {
	if dial == nil {
		d := &net.Dialer{}
		dial = func(ctx context.Context, addr string) (net.Conn, error) { return d.DialContext(ctx, "tcp", addr) }
	}
	return []grpc.DialOption{
		grpc.WithTransportCredentials(creds),
		grpc.WithContextDialer(dial),
		grpc.WithInitialWindowSize(windowStream),
		grpc.WithInitialConnWindowSize(windowConn),
		grpc.WithReadBufferSize(ioBuffer),
		grpc.WithWriteBufferSize(ioBuffer),
		grpc.WithDisableRetry(),
		grpc.WithDisableServiceConfig(),
		grpc.WithNoProxy(),
		grpc.WithIdleTimeout(0),
		grpc.WithKeepaliveParams(keepalive.ClientParameters{Time: 10 * time.Second, Timeout: 5 * time.Second}),
	}
}

func serverOptions(t *TLS, clients bool, log *rateLog, window int) []grpc.ServerOption {
	var out []grpc.ServerOption
	if t != nil {
		out = append(out, grpc.Creds(t.server(clients, log)))
	}
	return append(out,
		grpc.InitialWindowSize(int32(window)),
		grpc.InitialConnWindowSize(int32(2*window)),
		grpc.ReadBufferSize(ioBuffer),
		grpc.WriteBufferSize(ioBuffer),
		grpc.WaitForHandlers(true),
		grpc.ConnectionTimeout(10*time.Second),
		grpc.MaxHeaderListSize(64<<10),
		grpc.KeepaliveEnforcementPolicy(keepalive.EnforcementPolicy{MinTime: 5 * time.Second, PermitWithoutStream: true}),
		grpc.KeepaliveParams(keepalive.ServerParameters{Time: 15 * time.Second, Timeout: 5 * time.Second}),
	)
}

// dialPeer opens a connection of the raw codec; nothing is sent yet.
func dialPeer(addr string, creds credentials.TransportCredentials, dial func(context.Context, string) (net.Conn, error)) (*grpc.ClientConn, error) {
	opts := append(dialOptions(creds, dial), grpc.WithDefaultCallOptions(
		grpc.ForceCodecV2(rawCodec{}), grpc.MaxCallRecvMsgSize(MaxFrameBytes), grpc.MaxCallSendMsgSize(MaxFrameBytes)))
	conn, err := grpc.NewClient("passthrough:///"+addr, opts...)
	if err != nil {
		return nil, fmt.Errorf("transport: address %q: %w", addr, err)
	}
	return conn, nil
}

// openStream connects to node at addr, says hello and checks the answer. cancel
// must end ctx; it is called when the attempt takes longer than DialTimeout. The
// hello returned is the other side's.
func (t *GRPC) openStream(ctx context.Context, cancel func(), addr string, node raft.NodeID, method string) (_ *grpc.ClientConn, _ grpc.ClientStream, h Hello, err error) {
	st := t.state.Load()
	conn, err := dialPeer(t.o.Resolve(addr), t.o.TLS.client(node), t.o.Dial)
	if err != nil {
		return nil, nil, h, err
	}
	defer func() {
		if err != nil {
			conn.Close()
		}
	}()
	var late atomic.Bool
	timer := time.AfterFunc(t.o.DialTimeout, func() { late.Store(true); cancel() })
	defer timer.Stop()
	own := t.hello(&st.id, node)
	sctx := metadata.AppendToOutgoingContext(ctx, helloKey, string(own.Encode(nil)))
	desc := &clientStreamDesc
	if method == snapshotMethod {
		desc = &bothStreamsDesc
	}
	stream, err := conn.NewStream(sctx, desc, method)
	if err != nil {
		if late.Load() {
			return nil, nil, h, fmt.Errorf("transport: %s did not answer within %v", addr, t.o.DialTimeout)
		}
		return nil, nil, h, streamError(err, nil, addr)
	}
	md, err := stream.Header()
	v := md.Get(helloKey)
	if err != nil || len(v) != 1 {
		if late.Load() {
			return nil, nil, h, fmt.Errorf("transport: %s did not answer within %v", addr, t.o.DialTimeout)
		}
		if err == nil { // trailers only: the call was refused
			err = stream.RecvMsg(&rawBytes{})
		}
		return nil, nil, h, streamError(err, stream.Trailer().Get(refusalKey), addr)
	}
	h, err = DecodeHello([]byte(v[0]))
	if err != nil {
		return nil, nil, h, &RefusedError{Reason: RefusedHello, Addr: addr, ByUs: true, Detail: err.Error()}
	}
	if r := h.checkPeer(&st.id, node); r != nil {
		r.Addr = addr
		return nil, nil, h, r
	}
	if t.inbound.stale(&h) {
		return nil, nil, h, &RefusedError{Reason: RefusedStale, Addr: addr, ByUs: true, Detail: fmt.Sprintf("it has boot epoch %d", h.BootEpoch)}
	}
	return conn, stream, h, nil
}

// Remember tells that a node is known, from an earlier life of this process, to
// have reached a boot epoch: a process that comes with a lower one runs on an old
// copy of its store and is refused. Call it before Activate.
func (t *GRPC) Remember(node raft.NodeID, boot uint64) { t.inbound.remember(node, boot) }

// --- the peer server

func (t *GRPC) newPeerServer() *grpc.Server {
	s := grpc.NewServer(append(serverOptions(t.o.TLS, false, t.rlog, t.o.WindowBytes),
		grpc.ForceServerCodecV2(rawCodec{}),
		grpc.MaxRecvMsgSize(MaxFrameBytes), grpc.MaxSendMsgSize(MaxFrameBytes), grpc.MaxConcurrentStreams(64))...)
	s.RegisterService(&peerServiceDesc, t)
	return s
}

var peerServiceDesc = grpc.ServiceDesc{
	ServiceName: peerService,
	HandlerType: (*any)(nil),
	Methods:     []grpc.MethodDesc{{MethodName: "Join", Handler: serveJoin}},
	Streams: []grpc.StreamDesc{
		{StreamName: "Frames", ClientStreams: true, Handler: func(t any, s grpc.ServerStream) error { return t.(*GRPC).frames(s) }},
		{StreamName: "Snapshot", ClientStreams: true, ServerStreams: true, Handler: func(t any, s grpc.ServerStream) error { return t.(*GRPC).snapshot(s) }},
	},
	Metadata: "peer.go",
}

func serveJoin(srv any, ctx context.Context, dec func(any) error, _ grpc.UnaryServerInterceptor) (any, error) {
	t := srv.(*GRPC)
	var in rawBytes
	if err := dec(&in); err != nil {
		return nil, err
	}
	if t.o.OnJoin == nil {
		return nil, status.Error(codes.Unimplemented, "this node takes no join calls")
	}
	out, err := t.o.OnJoin(ctx, callerAddr(ctx), in.b)
	if err != nil {
		return nil, status.Error(codes.Unknown, err.Error())
	}
	return &rawBytes{out}, nil
}

// JoinCall sends one Join request to the peer listener at addr. The error is
// *shard.RemoteError when the other side answered with an error, and
// *shard.UnavailableError when it could not be reached or the answer was lost.
func JoinCall(ctx context.Context, addr string, in []byte) ([]byte, error) {
	return joinCall(ctx, nil, addr, in)
}

// JoinCall is the function JoinCall with the certificate of t.
func (t *TLS) JoinCall(ctx context.Context, addr string, in []byte) ([]byte, error) {
	return joinCall(ctx, t, addr, in)
}

func joinCall(ctx context.Context, t *TLS, addr string, in []byte) ([]byte, error) {
	conn, err := dialPeer(addr, t.client(0), nil)
	if err != nil {
		return nil, &shard.UnavailableError{Why: err.Error()}
	}
	defer conn.Close()
	var out rawBytes
	if err := conn.Invoke(ctx, joinMethod, &rawBytes{in}, &out); err != nil {
		s := status.Convert(err)
		if s.Code() == codes.Unknown || s.Code() == codes.Unimplemented {
			return nil, &shard.RemoteError{Text: s.Message()}
		}
		return nil, &shard.UnavailableError{Why: fmt.Sprintf("%s: %s", addr, s.Message()), Cause: ctx.Err()}
	}
	return out.b, nil
}
