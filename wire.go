package flotilla

import (
	"context"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"github.com/flotillakv/flotilla/engine"
	"github.com/flotillakv/flotilla/multiraft"
	"github.com/flotillakv/flotilla/multiraft/liveness"
	"github.com/flotillakv/flotilla/multiraft/raft"
	"github.com/flotillakv/flotilla/router"
	"github.com/flotillakv/flotilla/shard"
	"github.com/flotillakv/flotilla/transport"
)

// This file joins layers that do not know each other: each type adapts one
// layer's interface to another layer's implementation.

// systemClock is the process's monotonic clock, and the wall clock for what
// people read. It is the only place where a node asks for the time of day.
type systemClock struct{ start time.Time }

func newSystemClock() *systemClock { return &systemClock{start: time.Now()} }

// Now begins at one hour, so that small subtractions stay positive.
func (c *systemClock) Now() raft.Time { return raft.Time(time.Since(c.start) + time.Hour) }

func (c *systemClock) Wall() uint64 { return uint64(time.Now().UnixNano()) }

// Instant reads both in one go (liveness.Instant).
func (c *systemClock) Instant() (raft.Time, uint64) {
	t := time.Now()
	return raft.Time(t.Sub(c.start) + time.Hour), uint64(t.UnixNano())
}

func (c *systemClock) Wait(until raft.Time, wake <-chan struct{}) {
	t := time.NewTimer(until.Sub(c.Now()))
	defer t.Stop()
	select {
	case <-t.C:
	case <-wake:
	}
}

// supportStore keeps liveness records in the engine.
type supportStore struct{ e *engine.Engine }

func (s supportStore) SaveSupport(recs ...liveness.Record) error {
	out := make([]engine.SupportRecord, len(recs))
	for i, r := range recs {
		out[i] = engine.SupportRecord(r)
	}
	return s.e.SaveSupport(out...)
}

func (s supportStore) SyncNow() error { return s.e.SyncNow() }

func (s supportStore) load() ([]liveness.Record, error) {
	recs, err := s.e.LoadSupport()
	if err != nil {
		return nil, err
	}
	out := make([]liveness.Record, len(recs))
	for i, r := range recs {
		out[i] = liveness.Record(r)
	}
	return out, nil
}

// silentNet is the network of a node without peers.
type silentNet struct{}

func (silentNet) Send(raft.NodeID, []raft.Msg)  {}
func (silentNet) SendCtl(raft.NodeID, raft.Ctl) {}
func (silentNet) SetPeer(raft.NodeID, string)   {}
func (silentNet) Stats() []transport.PeerStats  { return nil }
func (silentNet) Close() error                  { return nil }
func (silentNet) OpenSnapshot(context.Context, raft.NodeID, []byte) (transport.SnapshotStream, error) {
	return nil, transport.ErrUnknownNode
}

// netRef is the node's transport, which may be replaced while the node starts.
type netRef struct {
	p atomic.Pointer[transport.Transport]
}

func (r *netRef) set(t transport.Transport) { r.p.Store(&t) }

// get returns nil before the first set.
func (r *netRef) get() transport.Transport {
	if p := r.p.Load(); p != nil {
		return *p
	}
	return nil
}

func (r *netRef) Send(to raft.NodeID, msgs []raft.Msg) { r.get().Send(to, msgs) }
func (r *netRef) SendCtl(to raft.NodeID, c raft.Ctl)   { r.get().SendCtl(to, c) }

// door takes what the transport brings in and hands it to the layer concerned.
type door struct{ n *Node }

func (d door) OnMessages(from raft.NodeID, msgs []raft.Msg) { d.n.host.OnMessages(from, msgs) }

func (d door) OnCtl(from raft.NodeID, ctl []raft.Ctl) {
	now := d.n.clock.Now()
	for _, c := range ctl {
		d.n.live.OnCtl(from, now, c)
	}
}

func (d door) OnPeer(node raft.NodeID, up bool) {
	if up {
		d.n.live.PeerUp(node)
	}
	d.n.host.PeerReset(node)
	d.n.events.peer(PeerEvent{Node: uint32(node), Up: up})
}

func (d door) OnSnapshot(from raft.NodeID, header []byte, next func() ([]byte, error), reply func([]byte) error) error {
	return d.n.receiveSnapshot(from, header, next, reply)
}

func (d door) Do(ctx context.Context, r *shard.Request) *shard.Response { return d.n.serve(ctx, r) }

// DoAsync needs no goroutine for what the local store answers by itself.
func (d door) DoAsync(ctx context.Context, r *shard.Request, a shard.Answerer) {
	d.n.serveAsync(ctx, r, a)
}

func (d door) Admin(ctx context.Context, method string, in []byte) ([]byte, error) {
	return d.n.admin(ctx, method, in)
}

// senders sends requests to nodes: to this process's own store, or through one
// client per node, which connects when first used.
type senders struct {
	self   raft.NodeID // zero: a remote client
	local  func(ctx context.Context, r *shard.Request) *shard.Response
	start  func(r *shard.Request, a shard.Answerer)                             // local, without waiting
	near   func(d *raft.Descriptor, key []byte) (v shard.Value, found, ok bool) // nil: a remote client
	dial   func(node raft.NodeID, addr string) transport.Caller
	addr   func(raft.NodeID) string // client address; empty: unknown
	mu     sync.RWMutex             // guards what follows; not held across calls
	conns  map[raft.NodeID]sender
	closed bool
}

type sender struct {
	addr string
	c    transport.Caller
}

// Send carries r to node. An error of the connection says by its type whether r
// may have been carried out.
func (s *senders) Send(ctx context.Context, node raft.NodeID, r *shard.Request) (*shard.Response, error) {
	if node == s.self && s.local != nil {
		s.mu.RLock()
		closed := s.closed
		s.mu.RUnlock()
		if closed {
			return nil, shard.ErrClosed
		}
		return s.local(ctx, r), nil
	}
	c, err := s.to(node)
	if err != nil {
		return nil, err
	}
	return c.Do(ctx, r)
}

// starter is a Caller that needs no goroutine to wait for an answer.
type starter interface {
	Start(r *shard.Request, a shard.Answerer) (conn shard.Abandoner, id uint64, ok bool)
}

// Start is Send without waiting (router.Starter).
func (s *senders) Start(node raft.NodeID, r *shard.Request, a shard.Answerer) (shard.Abandoner, uint64, bool) {
	if node == s.self && s.start != nil {
		s.mu.RLock()
		closed := s.closed
		s.mu.RUnlock()
		if closed {
			a.Answered(nil, shard.ErrClosed)
		} else {
			s.start(r, a)
		}
		return nil, 0, true
	}
	c, err := s.to(node)
	if err != nil {
		a.Answered(nil, err)
		return nil, 0, true
	}
	if c, ok := c.(starter); ok {
		return c.Start(r, a)
	}
	return nil, 0, false
}

// ReadNear reads from the own store what that may serve at once.
func (s *senders) ReadNear(d *raft.Descriptor, key []byte) (v shard.Value, found, ok bool) {
	if s.near == nil {
		return shard.Value{}, false, false
	}
	return s.near(d, key)
}

// to returns the client of node. Nothing was sent when it fails.
func (s *senders) to(node raft.NodeID) (transport.Caller, error) {
	addr := s.addr(node)
	if addr == "" {
		return nil, &shard.UnavailableError{Node: node, Why: "no client address of the node is known"}
	}
	s.mu.RLock()
	have, closed := s.conns[node], s.closed
	s.mu.RUnlock()
	if closed {
		return nil, shard.ErrClosed
	}
	if have.c != nil && have.addr == addr {
		return have.c, nil
	}
	s.mu.Lock()
	have = s.conns[node]
	if s.closed || have.c != nil && have.addr == addr {
		defer s.mu.Unlock()
		if s.closed {
			return nil, shard.ErrClosed
		}
		return have.c, nil
	}
	c := s.dial(node, addr)
	if s.conns == nil {
		s.conns = map[raft.NodeID]sender{}
	}
	s.conns[node] = sender{addr, c}
	s.mu.Unlock()
	if have.c != nil {
		have.c.Close()
	}
	return c, nil
}

// Admin asks a node a named query.
func (s *senders) Admin(ctx context.Context, node raft.NodeID, method string, in []byte) ([]byte, error) {
	c, err := s.to(node)
	if err != nil {
		return nil, err
	}
	return c.Admin(ctx, method, in)
}

// Close ends all connections.
func (s *senders) Close() {
	s.mu.Lock()
	conns := s.conns
	s.conns, s.closed = nil, true
	s.mu.Unlock()
	for _, c := range conns {
		c.c.Close()
	}
}

var (
	_ multiraft.Clock = (*systemClock)(nil)
	_ router.Starter  = (*senders)(nil)
	_ liveness.Clock  = (*systemClock)(nil)
	_ liveness.Store  = supportStore{}
)

// wrapOpen puts the step that failed in front of an error of Open.
func wrapOpen(step string, err error) error {
	if err == nil {
		return nil
	}
	return fmt.Errorf("flotilla: %s: %w", step, err)
}
