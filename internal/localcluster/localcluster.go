// Package localcluster runs a cluster of several nodes in this process, with
// real sockets on the loopback interface and real directories: what the demo,
// the developer's cluster and the benches run on.
package localcluster

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"sync"

	"github.com/flotillakv/flotilla"
	"github.com/flotillakv/flotilla/engine"
)

// Options of a local cluster. Dir is needed.
type Options struct {
	// Nodes is the number of nodes. Zero: 3.
	Nodes int
	// Dir gets one directory per node: n1, n2, ...
	Dir string
	// Shards and SplitAt as in flotilla.Options.
	Shards  int
	SplitAt [][]byte
	// ClientListen is the client address of the first node; the others take the
	// following ports. Empty: free ports.
	ClientListen string
	// MemoryPerNode as flotilla.Limits.Memory. Zero: the default.
	MemoryPerNode int64
	// LogKeep and Log as in flotilla.Limits. Zero: the default.
	LogKeep int64
	Log     int64
	// Limits are those of each node, but for what is given above.
	Limits flotilla.Limits
	Timing flotilla.Timing
	// Compaction as in flotilla.Options.
	Compaction flotilla.Compaction
	Logger     *slog.Logger
	Observer   flotilla.Observer
}

// Cluster is a running local cluster.
type Cluster struct {
	o     Options
	cache *engine.Cache

	mu    sync.Mutex
	nodes []*flotilla.Node // nil: killed
	addrs []addrs
}

type addrs struct {
	peer, client string
	replaced     bool // the node joined anew
}

// Start forms (or, on directories of an earlier run, restarts) a cluster and
// returns once every node is ready. On an error nothing keeps running.
func Start(ctx context.Context, o Options) (*Cluster, error) {
	if o.Nodes == 0 {
		o.Nodes = 3
	}
	if o.Nodes < 1 || o.Nodes > 16 {
		return nil, fmt.Errorf("flotilla: a local cluster has 1 to 16 nodes, not %d", o.Nodes)
	}
	if err := os.MkdirAll(o.Dir, 0o700); err != nil {
		return nil, fmt.Errorf("flotilla: %w", err)
	}
	mem := cmp.Or(o.MemoryPerNode, o.Limits.Memory)
	if mem == 0 {
		mem = flotilla.DefaultMemory
	}
	c := &Cluster{o: o, nodes: make([]*flotilla.Node, o.Nodes), addrs: make([]addrs, o.Nodes), cache: engine.NewCache(mem / 5 * 2 * int64(o.Nodes))}
	var host, port string
	if o.ClientListen != "" {
		var err error
		if host, port, err = net.SplitHostPort(o.ClientListen); err != nil {
			return nil, fmt.Errorf("flotilla: client address %q: %w", o.ClientListen, err)
		}
	}
	peers := make([]net.Listener, o.Nodes)
	clients := make([]net.Listener, o.Nodes)
	fail := func(err error) (*Cluster, error) {
		for i := range peers {
			for _, l := range []net.Listener{peers[i], clients[i]} {
				if l != nil {
					l.Close()
				}
			}
		}
		c.cache.Close()
		return nil, err
	}
	base := 0
	if port != "" {
		var err error
		if base, err = net.LookupPort("tcp", port); err != nil {
			return fail(fmt.Errorf("flotilla: client address %q: %w", o.ClientListen, err))
		}
	}
	for i := range o.Nodes {
		var err error
		if peers[i], err = net.Listen("tcp", "127.0.0.1:0"); err != nil {
			return fail(fmt.Errorf("flotilla: listen: %w", err))
		}
		at := "127.0.0.1:0"
		if o.ClientListen != "" {
			at = o.ClientListen
			if i > 0 && base != 0 {
				at = net.JoinHostPort(host, fmt.Sprint(base+i))
			} else if i > 0 {
				at = net.JoinHostPort(host, "0")
			}
		}
		if clients[i], err = net.Listen("tcp", at); err != nil {
			return fail(fmt.Errorf("flotilla: client address %s is not free: %w", at, err))
		}
		c.addrs[i] = addrs{peer: peers[i].Addr().String(), client: clients[i].Addr().String()}
	}
	errs := make([]error, o.Nodes)
	var wg sync.WaitGroup
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	for i := range o.Nodes {
		wg.Go(func() {
			c.nodes[i], errs[i] = flotilla.Open(ctx, c.options(i, peers[i], clients[i]))
			if errs[i] != nil {
				cancel()
			}
		})
	}
	wg.Wait()
	if err := firstCause(errs); err != nil {
		c.Close()
		return nil, err
	}
	return c, nil
}

// firstCause prefers an error that is not the cancellation the first one caused.
func firstCause(errs []error) error {
	var second error
	for _, err := range errs {
		if err != nil && !errors.Is(err, context.Canceled) {
			return err
		}
		if err != nil {
			second = err
		}
	}
	return second
}

func (c *Cluster) options(i int, peer, client net.Listener) flotilla.Options {
	o := flotilla.Options{
		Dir: filepath.Join(c.o.Dir, fmt.Sprintf("n%d", i+1)), NodeID: uint32(i + 1),
		PeerListener: peer, ClientListener: client,
		Shards: c.o.Shards, SplitAt: c.o.SplitAt, Cache: c.cache, Observer: c.o.Observer, Timing: c.o.Timing,
		Limits: c.o.Limits, Compaction: c.o.Compaction, Bootstrap: c.o.Nodes,
	}
	o.Limits.Memory = cmp.Or(c.o.MemoryPerNode, o.Limits.Memory)
	o.Limits.LogKeep = cmp.Or(c.o.LogKeep, o.Limits.LogKeep)
	o.Limits.Log = cmp.Or(c.o.Log, o.Limits.Log)
	if c.o.Logger != nil {
		o.Logger = c.o.Logger.With("node", i+1)
	}
	if c.o.Nodes > 1 {
		for _, a := range c.addrs {
			o.Join = append(o.Join, a.peer)
		}
	}
	if c.addrs[i].replaced {
		o.NodeID, o.Rejoin, o.Bootstrap = 0, true, 0
	}
	return o
}

// Size returns the number of nodes, killed ones included.
func (c *Cluster) Size() int { return len(c.nodes) }

// Node returns node i (from 0), or nil while it is killed.
func (c *Cluster) Node(i int) *flotilla.Node {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.nodes[i]
}

// Nodes returns the nodes that run.
func (c *Cluster) Nodes() []*flotilla.Node {
	c.mu.Lock()
	defer c.mu.Unlock()
	var out []*flotilla.Node
	for _, n := range c.nodes {
		if n != nil {
			out = append(out, n)
		}
	}
	return out
}

// ClientAddrs returns the client address of every node.
func (c *Cluster) ClientAddrs() []string {
	var out []string
	for _, a := range c.addrs {
		out = append(out, a.client)
	}
	return out
}

// Kill ends node i at once: it hands nothing over and tells nobody. Killing a
// killed node does nothing.
func (c *Cluster) Kill(i int) error {
	c.mu.Lock()
	n := c.nodes[i]
	c.nodes[i] = nil
	c.mu.Unlock()
	if n == nil {
		return nil
	}
	return n.Kill()
}

// Restart opens a killed node again, on its directory and addresses.
func (c *Cluster) Restart(ctx context.Context, i int) error {
	if c.Node(i) != nil {
		return fmt.Errorf("flotilla: node %d runs", i+1)
	}
	peer, err := net.Listen("tcp", c.addrs[i].peer)
	if err != nil {
		return fmt.Errorf("flotilla: listen: %w", err)
	}
	client, err := net.Listen("tcp", c.addrs[i].client)
	if err != nil {
		peer.Close()
		return fmt.Errorf("flotilla: listen: %w", err)
	}
	n, err := flotilla.Open(ctx, c.options(i, peer, client))
	if err != nil {
		return err
	}
	c.mu.Lock()
	c.nodes[i] = n
	c.mu.Unlock()
	return nil
}

// Replace ends node i as Kill does, deletes its directory, and starts a new node of the
// cluster, with a new id and without data, at its addresses.
func (c *Cluster) Replace(ctx context.Context, i int) error {
	if err := c.Kill(i); err != nil {
		return err
	}
	if err := os.RemoveAll(filepath.Join(c.o.Dir, fmt.Sprintf("n%d", i+1))); err != nil {
		return fmt.Errorf("flotilla: %w", err)
	}
	c.mu.Lock()
	c.addrs[i].replaced = true
	c.mu.Unlock()
	return c.Restart(ctx, i)
}

// Stop closes all nodes after they have handed their leaderships over as far as
// that is possible. Directories stay.
func (c *Cluster) Stop(ctx context.Context) error {
	var errs []error
	for _, n := range c.Nodes() {
		errs = append(errs, n.Shutdown(ctx))
	}
	return errors.Join(append(errs, c.Close())...)
}

// Close closes all nodes at once.
func (c *Cluster) Close() error {
	c.mu.Lock()
	nodes := c.nodes
	c.nodes = make([]*flotilla.Node, len(nodes))
	cache := c.cache
	c.cache = nil
	c.mu.Unlock()
	var errs []error
	for _, n := range nodes {
		if n != nil {
			errs = append(errs, n.Close())
		}
	}
	if cache != nil {
		cache.Close()
	}
	return errors.Join(errs...)
}
