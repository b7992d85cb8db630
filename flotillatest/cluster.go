package flotillatest

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"sync"
	"testing"
	"time"

	"github.com/flotillakv/flotilla"
	"github.com/flotillakv/flotilla/engine"
	"github.com/flotillakv/flotilla/internal/sim/simfs"
	"github.com/flotillakv/flotilla/multiraft/raft"
	"github.com/flotillakv/flotilla/shard"
	"github.com/flotillakv/flotilla/transport"
)

// Cluster is a cluster that lives as long as its test. Its methods fail the
// test when they cannot do what they say, and must therefore be called on the
// test's goroutine, except for KV, Client, Dial, Node and Nodes.
type Cluster struct {
	t     testing.TB
	o     options
	net   *transport.Network
	cache *engine.Cache
	kv    *flotilla.Client

	mu      sync.Mutex // guards what follows; not held while nodes start or stop
	members []*place
	clients []*flotilla.Client
	rand    *rand.Rand
	links   map[[2]int]transport.LinkState // by node, -1: clients
	closed  bool
}

// ErrStopped is the result of the start of a node that was stopped meanwhile.
var ErrStopped = errors.New("flotillatest: stopped while it started")

// place is where a node lives: the node, nil while it is down, and its disk.
type place struct {
	index int
	node  *flotilla.Node
	disk  *disk
	start *start // under way; nil: none
}

// start is the start of a node that Begin began.
type start struct {
	cancel context.CancelFunc
	over   chan struct{}
}

// NewCluster starts a cluster and returns when every shard has a leader. It is
// closed, and its nodes' own failures are reported, when the test ends.
func NewCluster(t testing.TB, nodes int, o ...Option) *Cluster {
	t.Helper()
	c := &Cluster{t: t, o: defaults(), net: transport.NewNetwork(), cache: engine.NewCache(32 << 20), links: map[[2]int]transport.LinkState{}}
	for _, f := range o {
		f(&c.o)
	}
	if nodes < 1 || nodes > 16 {
		t.Fatalf("flotillatest: a cluster has 1 to 16 nodes, not %d", nodes)
	}
	c.rand = rand.New(rand.NewPCG(c.o.seed, 1))
	c.net.Seed(c.o.seed)
	t.Cleanup(c.Close)
	for i := range nodes {
		c.members = append(c.members, &place{index: i, disk: newDisk(simfs.New())})
	}
	ctx, cancel := c.context()
	defer cancel()
	errs := make(chan error, nodes)
	for i := nodes - 1; i >= 0; i-- {
		if i == 0 { // the node that forms the cluster comes last, so that it finds the others
			for j := 1; j < nodes; j++ {
				for !c.reachable(j) && len(errs) == 0 && ctx.Err() == nil {
					pause(ctx, 200*time.Microsecond)
				}
			}
		}
		go func() { errs <- c.open(ctx, i) }()
	}
	var first error
	for range nodes {
		if err := <-errs; err != nil && (first == nil || errors.Is(first, context.Canceled)) {
			first = err
			cancel()
		}
	}
	if first != nil {
		t.Fatalf("flotillatest: start: %v", first)
	}
	c.kv = c.Client()
	return c
}

// context bounds one step.
func (c *Cluster) context() (context.Context, context.CancelFunc) {
	return context.WithTimeout(context.Background(), c.o.timeout)
}

// pause waits, but not beyond ctx.
func pause(ctx context.Context, d time.Duration) {
	select {
	case <-ctx.Done():
	case <-time.After(d):
	}
}

// reachable reports whether node i is on the network.
func (c *Cluster) reachable(i int) bool {
	_, err := c.net.JoinCall(context.Background(), addr(i), []byte("{}"))
	var no *shard.UnavailableError
	return !errors.As(err, &no)
}

func addr(i int) string { return fmt.Sprintf("n%d", i+1) }

// open starts node i on its disk.
func (c *Cluster) open(ctx context.Context, i int) error {
	c.mu.Lock()
	p := c.members[i]
	d, nodes := p.disk, len(c.members)
	c.mu.Unlock()
	o := flotilla.Options{
		InMemory: true, Dir: "/node", FS: d.fs, NodeID: uint32(i + 1), Network: c.net, Bootstrap: nodes,
		Shards: c.o.shards, SplitAt: c.o.splitAt, Replicas: c.o.replicas, Timing: c.o.timing, Cache: c.cache,
		Limits: flotilla.Limits{Memory: 16 << 20},
	}
	if nodes > 1 {
		for j := range nodes {
			o.Join = append(o.Join, addr(j))
		}
	}
	if c.o.logger != nil {
		o.Logger = c.o.logger.With("node", i+1)
	}
	if c.o.observer != nil {
		o.Observer = c.o.observer(i)
	}
	o.OnFatal = func(err error) {
		if !errors.Is(err, errPower) {
			c.t.Errorf("flotillatest: node %d stopped itself: %v", i, err)
		}
	}
	n, err := flotilla.Open(ctx, o)
	c.mu.Lock()
	defer c.mu.Unlock()
	if err != nil {
		if c.closed || p.disk != d || errors.Is(err, context.Canceled) {
			err = ErrStopped
		}
		return fmt.Errorf("node %d: %w", i, err)
	}
	if c.closed || p.disk != d || p.node != nil {
		n.Close()
		return fmt.Errorf("node %d: %w", i, ErrStopped)
	}
	p.node = n
	return nil
}

// Size returns the number of nodes, those that are down included.
func (c *Cluster) Size() int { return len(c.members) }

// Node returns node i, or nil while it is down.
func (c *Cluster) Node(i int) *flotilla.Node {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.members[i].node
}

// Starting reports whether node i is about to start; see Begin.
func (c *Cluster) Starting(i int) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.members[i].start != nil
}

// Nodes returns the nodes that run.
func (c *Cluster) Nodes() []*flotilla.Node {
	c.mu.Lock()
	defer c.mu.Unlock()
	var out []*flotilla.Node
	for _, p := range c.members {
		if p.node != nil {
			out = append(out, p.node)
		}
	}
	return out
}

// KV returns the cluster's store, reached by a client of its own.
func (c *Cluster) KV() flotilla.KV { return c.kv }

// Client connects a new client. It is closed with the cluster.
func (c *Cluster) Client() *flotilla.Client {
	c.t.Helper()
	cl, err := c.Dial(flotilla.ClientOptions{})
	if err != nil {
		c.t.Fatalf("flotillatest: dial: %v", err)
	}
	return cl
}

// Dial connects a client with options, whose Network it fills in. The client is
// closed with the cluster, if it is not closed before.
func (c *Cluster) Dial(o flotilla.ClientOptions) (*flotilla.Client, error) {
	ctx, cancel := c.context()
	defer cancel()
	o.Network = c.net
	var addrs []string
	for i := range c.members {
		addrs = append(addrs, addr(i))
	}
	cl, err := flotilla.Dial(ctx, addrs, o)
	if err != nil {
		return nil, err
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.clients = append(c.clients, cl)
	return cl, nil
}

// Stop closes node i in order. It does nothing to a node that is down.
func (c *Cluster) Stop(i int) {
	c.t.Helper()
	c.mu.Lock()
	p := c.members[i]
	n, s := p.node, p.start
	p.node = nil
	c.mu.Unlock()
	if s != nil {
		s.cancel()
		<-s.over
	}
	if n == nil {
		return
	}
	if err := n.Close(); err != nil {
		c.t.Errorf("flotillatest: close node %d: %v", i, err)
	}
}

// Kill ends node i as a killed process ends: nothing is handed over, nobody is
// told, and what it had handed to its operating system stays on its disk.
func (c *Cluster) Kill(i int) {
	c.t.Helper()
	c.crash([]int{i}, func() simfs.Mode { return simfs.All })
}

// PowerLoss cuts the power of nodes at one moment; without arguments, of all
// nodes. Of what was not synced nothing stays on their disks, or everything, or
// the beginning of it, drawn from the cluster's seed.
func (c *Cluster) PowerLoss(nodes ...int) {
	c.t.Helper()
	if len(nodes) == 0 {
		for i := range c.members {
			nodes = append(nodes, i)
		}
	}
	c.crash(nodes, func() simfs.Mode { return simfs.Modes[c.rand.IntN(len(simfs.Modes))] })
}

// crash replaces the disks of nodes by crash images, and stops the nodes. Those
// that are down lose what their disks have not synced, too.
func (c *Cluster) crash(nodes []int, mode func() simfs.Mode) {
	c.t.Helper()
	var olds []*place
	c.mu.Lock()
	for _, i := range nodes {
		old := *c.members[i]
		olds = append(olds, &old)
	}
	for _, old := range olds {
		old.disk.freeze()
	}
	for _, old := range olds {
		p := c.members[old.index]
		p.node, p.start, p.disk = nil, nil, newDisk(old.disk.fs.Image(mode(), c.rand.Uint64()))
	}
	c.mu.Unlock()
	var wg sync.WaitGroup
	for _, old := range olds {
		wg.Go(func() { c.stop(old) })
	}
	wg.Wait()
}

// stop ends a node whose syncs are held back.
func (c *Cluster) stop(p *place) {
	if p.node == nil {
		p.disk.release(true)
		if p.start != nil {
			p.start.cancel()
			<-p.start.over
		}
		return
	}
	// The held syncs may return once nothing that follows from them can get out.
	p.node.Halt()
	p.disk.release(false)
	// What the node could not write in the end is lost either way.
	_ = p.node.Kill()
}

// Restart starts a node that is down, on what its disk holds, and returns when
// it serves: when each of its shards has a leader.
func (c *Cluster) Restart(i int) {
	c.t.Helper()
	if err := <-c.Begin(i); err != nil {
		c.t.Fatalf("flotillatest: restart: %v", err)
	}
}

// RestartAll starts all nodes that are down, together.
func (c *Cluster) RestartAll() {
	c.t.Helper()
	var waits []<-chan error
	for i := range c.members {
		if c.Node(i) == nil && !c.Starting(i) {
			waits = append(waits, c.Begin(i))
		}
	}
	for _, w := range waits {
		if err := <-w; err != nil {
			c.t.Fatalf("flotillatest: restart: %v", err)
		}
	}
}

// Begin starts a node that is down without waiting until it serves, which may
// be never if the other nodes cannot be reached. The channel gets one result,
// which is ErrStopped if the node is stopped or crashes meanwhile.
func (c *Cluster) Begin(i int) <-chan error {
	out := make(chan error, 1)
	c.mu.Lock()
	defer c.mu.Unlock()
	p := c.members[i]
	if p.node != nil || p.start != nil || c.closed {
		out <- fmt.Errorf("flotillatest: node %d runs or is about to", i)
		return out
	}
	ctx, cancel := c.context()
	s := &start{cancel: cancel, over: make(chan struct{})}
	p.start = s
	go func() {
		defer close(s.over)
		defer cancel()
		err := c.open(ctx, i)
		c.mu.Lock()
		if p.start == s {
			p.start = nil
		}
		c.mu.Unlock()
		out <- err
	}()
	return out
}

// Close closes the clients and all nodes. NewCluster arranges for it to be
// called when the test ends.
func (c *Cluster) Close() {
	c.mu.Lock()
	if c.closed {
		c.mu.Unlock()
		return
	}
	c.closed = true
	clients := c.clients
	var members []place
	for _, p := range c.members {
		members = append(members, *p)
	}
	c.mu.Unlock()
	for _, p := range members {
		if p.start != nil {
			p.start.cancel()
			<-p.start.over
		}
	}
	for _, cl := range clients {
		if err := cl.Close(); err != nil {
			c.t.Errorf("flotillatest: close a client: %v", err)
		}
	}
	var wg sync.WaitGroup
	for _, p := range members {
		wg.Go(func() {
			if p.node == nil {
				return
			}
			if err := p.node.Close(); err != nil {
				c.t.Errorf("flotillatest: close node %d: %v", p.index, err)
			}
		})
	}
	wg.Wait()
	c.cache.Close()
}

// node is the id of node i on the network; -1 stands for clients.
func node(i int) raft.NodeID { return raft.NodeID(i + 1) }
