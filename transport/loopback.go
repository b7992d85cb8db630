package transport

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/flotillakv/flotilla/multiraft/raft"
	"github.com/flotillakv/flotilla/shard"
)

// LinkState says how a directed link of a Network misbehaves. The zero value is
// a link without faults.
type LinkState struct {
	// Drop loses everything; the sender sees the peer down.
	Drop bool
	// Loss is the probability, 0 to 1, that a frame vanishes. Nobody is told.
	Loss float64
	// Corrupt is the probability that one bit of a frame is flipped. The
	// receiver refuses such a frame and the sender sees the peer go down and up.
	Corrupt float64
	// Delay is added to each frame. Frames of a link stay in order.
	Delay time.Duration
}

// Network connects transports within one process. Frames are encoded, faulted,
// decoded and delivered by one goroutine per directed link, which the sending
// node owns. All nodes reach each other by id. Node id 0 in SetLink stands for
// clients outside.
type Network struct {
	mu    sync.Mutex
	nodes map[raft.NodeID]*Loopback
	links map[linkKey]LinkState
	rand  *rand.Rand
}

type linkKey struct{ from, to raft.NodeID }

// NewNetwork returns an empty network without faults. Losses are drawn from seed 1.
func NewNetwork() *Network {
	return &Network{nodes: map[raft.NodeID]*Loopback{}, links: map[linkKey]LinkState{}, rand: rand.New(rand.NewPCG(1, 0))}
}

// Seed sets the source of losses and corruptions.
func (n *Network) Seed(seed uint64) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.rand = rand.New(rand.NewPCG(seed, 0))
}

// Join connects a node. A node of the same id that is still there is closed first.
func (n *Network) Join(id Identity, h Handler, rq RequestHandler) *Loopback {
	return n.JoinWith(Options{Identity: id, Handler: h, Requests: rq})
}

// JoinWith connects a node; of o it uses Identity, Handler, Requests, OnJoin and
// QueueBytes.
func (n *Network) JoinWith(o Options) *Loopback {
	o = o.withDefaults()
	n.mu.Lock()
	old := n.nodes[o.Identity.Node]
	n.mu.Unlock()
	if old != nil {
		old.Close()
	}
	l := &Loopback{net: n, o: o, id: o.Identity}
	l.ctx, l.cancel = context.WithCancel(context.Background())
	n.mu.Lock()
	defer n.mu.Unlock()
	for _, other := range n.nodes {
		other.addLink(l.id.Node)
		l.addLink(other.id.Node)
	}
	n.nodes[l.id.Node] = l
	n.poke()
	return l
}

// SetLink sets the faults of the link from one node to another; 0 stands for clients.
func (n *Network) SetLink(from, to raft.NodeID, s LinkState) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.setLink(from, to, s)
	n.poke()
}

func (n *Network) setLink(from, to raft.NodeID, s LinkState) {
	if s == (LinkState{}) {
		delete(n.links, linkKey{from, to})
	} else {
		n.links[linkKey{from, to}] = s
	}
}

// Partition lets only nodes of the same group talk to each other. Nodes in no
// group are alone. Other faults of the links are kept.
func (n *Network) Partition(groups ...[]raft.NodeID) {
	side := map[raft.NodeID]int{}
	for i, g := range groups {
		for _, id := range g {
			side[id] = i + 1
		}
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	for a := range n.nodes {
		for b := range n.nodes {
			s := n.links[linkKey{a, b}]
			s.Drop = a != b && (side[a] == 0 || side[a] != side[b])
			n.setLink(a, b, s)
		}
	}
	n.poke()
}

// Isolate cuts all links of a node, in both directions, clients included.
func (n *Network) Isolate(node raft.NodeID) {
	n.mu.Lock()
	defer n.mu.Unlock()
	cut := func(from, to raft.NodeID) {
		s := n.links[linkKey{from, to}]
		s.Drop = true
		n.setLink(from, to, s)
	}
	for other := range n.nodes {
		if other != node {
			cut(node, other)
			cut(other, node)
		}
	}
	cut(0, node)
	cut(node, 0)
	n.poke()
}

// Heal removes all faults.
func (n *Network) Heal() {
	n.mu.Lock()
	defer n.mu.Unlock()
	clear(n.links)
	n.poke()
}

// poke lets all links look at the network again. n.mu is held.
func (n *Network) poke() {
	for _, l := range n.nodes {
		for _, k := range l.links() {
			k.q.signal()
		}
	}
}

// look returns the state of a link, and its target unless it is down or cut off.
func (n *Network) look(from, to raft.NodeID) (*Loopback, LinkState) {
	n.mu.Lock()
	defer n.mu.Unlock()
	s := n.links[linkKey{from, to}]
	t := n.nodes[to]
	if s.Drop || t != nil && t.o.Handler == nil {
		return nil, s // down, or there only to answer join calls
	}
	return t, s
}

// faults draws what happens to one frame of n bytes: lost, or the bit to flip (-1: none).
func (n *Network) faults(s *LinkState, size int) (lost bool, bit int) {
	if s.Loss == 0 && s.Corrupt == 0 {
		return false, -1
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.rand.Float64() < s.Loss {
		return true, -1
	}
	if n.rand.Float64() < s.Corrupt {
		return false, n.rand.IntN(size * 8)
	}
	return false, -1
}

// Loopback is the Transport of one node of a Network.
type Loopback struct {
	net    *Network
	o      Options
	id     Identity
	ctx    context.Context
	cancel context.CancelFunc
	wg     sync.WaitGroup // links and snapshot receivers

	// calls is held for reading during each call of the handler by another
	// node's link, and for writing by Close.
	calls struct {
		sync.RWMutex
		closed bool
	}
	out       atomic.Pointer[map[raft.NodeID]*link]
	refused   atomic.Uint64
	closeOnce sync.Once
}

var _ Transport = (*Loopback)(nil)

// link is one directed link, driven by its goroutine.
type link struct {
	from    *Loopback
	to      raft.NodeID
	q       *queue
	target  *Loopback // whom the peer is up with; nil: down. Goroutine only.
	seq     uint64
	up      atomic.Bool
	flight  []flying
	dropped atomic.Uint64
	frames  atomic.Uint64
	msgs    atomic.Uint64
	bytes   atomic.Uint64
	resets  atomic.Uint64
	reset   atomic.Bool // break the stream at the next occasion
}

type flying struct {
	due   time.Time
	bytes []byte
}

func (l *Loopback) links() map[raft.NodeID]*link {
	if m := l.out.Load(); m != nil {
		return *m
	}
	return nil
}

// addLink adds the link to node. net.mu is held.
func (l *Loopback) addLink(node raft.NodeID) {
	old := l.links()
	if old[node] != nil || l.ctx.Err() != nil {
		return
	}
	m := make(map[raft.NodeID]*link, len(old)+1)
	for k, v := range old {
		m[k] = v
	}
	k := &link{from: l, to: node, q: newQueue(l.o.QueueBytes)}
	m[node] = k
	l.out.Store(&m)
	l.wg.Add(1)
	go func() {
		defer l.wg.Done()
		k.run(l.ctx)
	}()
	k.q.signal()
}

func (k *link) run(ctx context.Context) {
	timer := time.NewTimer(time.Hour)
	defer timer.Stop()
	for {
		wait := k.step()
		if wait >= 0 {
			timer.Reset(wait)
		} else {
			timer.Stop()
		}
		select {
		case <-ctx.Done():
			k.setTarget(nil)
			return
		case <-k.q.wake:
		case <-timer.C:
		}
	}
}

// step moves frames and returns how long until the next one is due, or -1.
func (k *link) step() time.Duration {
	target, s := k.from.net.look(k.from.id.Node, k.to)
	if target != k.target || k.reset.Swap(false) {
		k.setTarget(nil)
		k.setTarget(target)
	}
	if k.target == nil {
		return -1
	}
	now := time.Now()
	for {
		b, ctl, nCtl, ok := k.q.take(nil)
		if !ok {
			break
		}
		k.seq++
		h := FrameHeader{From: k.from.id.Node, To: k.to, BootEpoch: k.from.id.BootEpoch, Seq: k.seq}
		f := seal(h, b, ctl, nCtl, k.from.o.Compress)
		buf := append([]byte(nil), f.head...)
		if f.body != nil {
			buf = append(buf, *f.body...)
			frameBufs.Put(f.body)
		}
		k.frames.Add(1)
		k.msgs.Add(uint64(b.n))
		k.bytes.Add(uint64(len(buf)))
		lost, bit := k.from.net.faults(&s, len(buf))
		if lost {
			continue
		}
		if bit >= 0 {
			buf[bit/8] ^= 1 << (bit % 8)
		}
		if s.Delay == 0 && len(k.flight) == 0 {
			k.arrive(buf)
			continue
		}
		k.flight = append(k.flight, flying{now.Add(s.Delay), buf})
	}
	for len(k.flight) > 0 {
		if d := time.Until(k.flight[0].due); d > 0 {
			return d
		}
		buf := k.flight[0].bytes
		k.flight = k.flight[1:]
		k.arrive(buf)
	}
	return -1
}

// setTarget tells the owner of a change; what is on the way to another target is lost.
func (k *link) setTarget(t *Loopback) {
	if t == k.target {
		return
	}
	k.target, k.seq, k.flight = t, 0, nil
	k.up.Store(t != nil)
	k.dropped.Add(uint64(k.q.setAccept(t != nil)))
	if k.from.o.Handler == nil {
		return
	}
	k.from.o.Handler.OnPeer(k.to, t != nil)
}

// arrive decodes one frame and calls the target's handler.
func (k *link) arrive(buf []byte) {
	t := k.target
	f, err := DecodeFrame(buf)
	if err == nil && (f.From != k.from.id.Node || f.To != t.id.Node || f.BootEpoch != k.from.id.BootEpoch) {
		err = ErrFrame
	}
	if err == nil && k.from.id.Cluster != t.id.Cluster {
		err = ErrFrame
	}
	if err != nil {
		t.refused.Add(1)
		k.reset.Store(true)
		k.q.signal()
		return
	}
	t.calls.RLock()
	defer t.calls.RUnlock()
	if t.calls.closed {
		return
	}
	if len(f.Ctl) > 0 {
		t.o.Handler.OnCtl(f.From, f.Ctl)
	}
	if len(f.Msgs) > 0 {
		t.o.Handler.OnMessages(f.From, f.Msgs)
	}
}

// SetPeer does nothing: nodes of a Network reach each other by id.
func (l *Loopback) SetPeer(raft.NodeID, string) {}

// Send is Transport.Send.
func (l *Loopback) Send(to raft.NodeID, msgs []raft.Msg) {
	k := l.links()[to]
	if k == nil || len(msgs) == 0 {
		return
	}
	res := k.q.push(msgs)
	k.dropped.Add(uint64(res.dropped))
	if res.overflow {
		k.resets.Add(1)
		k.reset.Store(true)
		k.q.signal()
	}
}

// SendCtl is Transport.SendCtl.
func (l *Loopback) SendCtl(to raft.NodeID, c raft.Ctl) {
	if k := l.links()[to]; k != nil {
		k.q.pushCtl(&c)
	}
}

// Stats is Transport.Stats; it counts the sending side only.
func (l *Loopback) Stats() []PeerStats {
	var out []PeerStats
	for _, k := range l.links() {
		out = append(out, PeerStats{
			Node: k.to, Up: k.up.Load(), FramesSent: k.frames.Load(), BytesSent: k.bytes.Load(), MsgsSent: k.msgs.Load(),
			MsgsDropped: k.dropped.Load(), Overflows: k.resets.Load(), QueueBytes: int64(k.q.size()),
		})
	}
	slices.SortFunc(out, func(a, b PeerStats) int { return cmp.Compare(a.Node, b.Node) })
	return out
}

// Refused returns how many frames this node refused.
func (l *Loopback) Refused() uint64 { return l.refused.Load() }

// Close is Transport.Close. It must not be called from a Handler.
func (l *Loopback) Close() error {
	l.closeOnce.Do(func() {
		l.net.mu.Lock()
		l.cancel()
		if l.net.nodes[l.id.Node] == l {
			delete(l.net.nodes, l.id.Node)
		}
		l.net.poke()
		l.net.mu.Unlock()
		l.calls.Lock()
		l.calls.closed = true
		l.calls.Unlock()
	})
	l.wg.Wait()
	return nil
}

// --- snapshots

// loopSnap is a snapshot within the process: a goroutine of the target runs its
// OnSnapshot and takes chunks from a channel.
type loopSnap struct {
	from   *Loopback
	to     raft.NodeID
	target *Loopback
	ctx    context.Context // ends with the caller's, or with either node
	cancel context.CancelFunc
	chunks chan []byte
	back   chan []byte // replies
	result chan error
}

// OpenSnapshot is Transport.OpenSnapshot.
func (l *Loopback) OpenSnapshot(ctx context.Context, to raft.NodeID, header []byte) (SnapshotStream, error) {
	target, _ := l.net.look(l.id.Node, to)
	if target == nil {
		return nil, fmt.Errorf("transport: node %d cannot be reached", to)
	}
	ctx, cancel := context.WithCancel(ctx)
	s := &loopSnap{from: l, to: to, target: target, ctx: ctx, cancel: cancel, chunks: make(chan []byte, 4), back: make(chan []byte, 4), result: make(chan error, 1)}
	target.calls.RLock()
	closed := target.calls.closed || l.ctx.Err() != nil
	if !closed {
		target.wg.Add(1)
	}
	target.calls.RUnlock()
	if closed {
		cancel()
		return nil, ErrClosed
	}
	unhookA, unhookB := context.AfterFunc(l.ctx, cancel), context.AfterFunc(target.ctx, cancel)
	head := append([]byte(nil), header...)
	go func() {
		defer target.wg.Done()
		defer unhookA()
		defer unhookB()
		s.result <- target.o.Handler.OnSnapshot(l.id.Node, head, s.next, s.reply)
		cancel()
	}()
	return s, nil
}

func (s *loopSnap) next() ([]byte, error) {
	select {
	case c, ok := <-s.chunks:
		if !ok {
			return nil, io.EOF
		}
		return c, nil
	case <-s.ctx.Done():
		return nil, errSnapBroke
	}
}

// reply is the other direction of next.
func (s *loopSnap) reply(b []byte) error {
	select {
	case s.back <- append([]byte(nil), b...):
		return nil
	case <-s.ctx.Done():
		return errSnapBroke
	}
}

// Recv is SnapshotStream.Recv.
func (s *loopSnap) Recv() ([]byte, error) {
	select {
	case b := <-s.back:
		return b, nil
	case <-s.ctx.Done(): // also when the receiver is done
		return nil, io.EOF
	}
}

var errSnapBroke = errors.New("transport: the snapshot stream broke")

// Send is SnapshotStream.Send.
func (s *loopSnap) Send(chunk []byte) error {
	if len(chunk) == 0 || len(chunk) > MaxChunkBytes {
		return fmt.Errorf("transport: a chunk of %d bytes, the limit is %d", len(chunk), MaxChunkBytes)
	}
	if t, _ := s.from.net.look(s.from.id.Node, s.to); t != s.target {
		s.cancel()
		return errSnapBroke
	}
	select {
	case s.chunks <- append([]byte(nil), chunk...):
		return nil
	case <-s.ctx.Done():
		return errSnapBroke
	}
}

// CloseAndRecv is SnapshotStream.CloseAndRecv.
func (s *loopSnap) CloseAndRecv() error {
	close(s.chunks)
	var err error
	select {
	case err = <-s.result:
	case <-s.ctx.Done():
		select {
		case err = <-s.result: // the receiver was done before
		default:
			return errSnapBroke
		}
	}
	s.cancel()
	if err != nil && !errors.Is(err, errSnapBroke) {
		return &SnapshotError{Node: s.to, Text: err.Error()}
	}
	return err
}

// --- requests

// Caller is what a client of a node can do; *Client and the network's callers
// implement it.
type Caller interface {
	// Do sends r and waits for the answer. See Client.Do for its errors.
	Do(ctx context.Context, r *shard.Request) (*shard.Response, error)
	// Admin sends a named query; in and the answer are JSON.
	Admin(ctx context.Context, method string, in []byte) ([]byte, error)
	// Close lets go of the connection.
	Close() error
}

type loopCaller struct {
	net      *Network
	from, to raft.NodeID
}

// Caller returns the way to node to for node from (0: a client). Links that
// drop in the direction of the request make it definitely unsent, in the other
// direction ambiguous.
func (n *Network) Caller(from, to raft.NodeID) Caller { return &loopCaller{n, from, to} }

func (c *loopCaller) handler() (RequestHandler, error) {
	t, _ := c.net.look(c.from, c.to)
	if t == nil || t.o.Requests == nil {
		return nil, &shard.UnavailableError{Node: c.to, Why: "the node cannot be reached"}
	}
	return t.o.Requests, nil
}

func (c *loopCaller) lost() bool {
	c.net.mu.Lock()
	defer c.net.mu.Unlock()
	return c.net.links[linkKey{c.to, c.from}].Drop
}

// Do implements Caller.
func (c *loopCaller) Do(ctx context.Context, r *shard.Request) (*shard.Response, error) {
	h, err := c.handler()
	if err != nil {
		return nil, err
	}
	in, err := decodeRequest(appendRequest(nil, r, r.ID, timeLeft(ctx, r)))
	if err != nil {
		return nil, err
	}
	out := h.Do(ctx, in)
	if c.lost() {
		return nil, lostAnswer(r.Kind, r.Shard, c.to, ctx.Err(), "the answer was lost")
	}
	return decodeResponse(appendResponse(nil, out, r.ID))
}

// Start is Client.Start. It takes a goroutine.
func (c *loopCaller) Start(r *shard.Request, a shard.Answerer) (shard.Abandoner, uint64, bool) {
	go func() {
		ctx, cancel := context.WithTimeout(context.Background(), max(time.Duration(r.TimeoutNanos), 1))
		defer cancel()
		a.Answered(c.Do(ctx, r))
	}()
	return nil, 0, true
}

// Admin implements Caller.
func (c *loopCaller) Admin(ctx context.Context, method string, in []byte) ([]byte, error) {
	h, err := c.handler()
	if err != nil {
		return nil, err
	}
	return h.Admin(ctx, method, in)
}

// Close implements Caller.
func (c *loopCaller) Close() error { return nil }

// JoinCall calls the OnJoin of the node that advertises addr.
func (n *Network) JoinCall(ctx context.Context, addr string, in []byte) ([]byte, error) {
	n.mu.Lock()
	var t *Loopback
	for _, l := range n.nodes {
		if l.id.Addr == addr {
			t = l
		}
	}
	n.mu.Unlock()
	if t == nil || t.o.OnJoin == nil {
		return nil, &shard.UnavailableError{Why: addr + " cannot be reached"}
	}
	out, err := t.o.OnJoin(ctx, "loopback", in)
	if err != nil {
		return nil, &shard.RemoteError{Text: err.Error()}
	}
	return out, nil
}
