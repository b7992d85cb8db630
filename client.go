package flotilla

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"github.com/flotillakv/flotilla/multiraft/raft"
	"github.com/flotillakv/flotilla/router"
	"github.com/flotillakv/flotilla/router/catalog"
	"github.com/flotillakv/flotilla/shard"
	"github.com/flotillakv/flotilla/transport"
)

// ClientOptions say how to reach a cluster. The zero value will do.
type ClientOptions struct {
	// ClusterID, if given, is the cluster (32 hexadecimal digits) that must answer.
	ClusterID string
	// Timeout bounds a call whose context has no deadline. Zero: 10 s.
	Timeout time.Duration
	// Logger receives what the client has to say. Nil: nothing.
	Logger *slog.Logger
	// TLS proves who the client is and checks the nodes. Nil: no TLS.
	TLS *TLSFiles
	// Network reaches nodes of an in-process network. For tests.
	Network *transport.Network
}

// Client is a remote cluster as a KV. It routes by itself: it learns ranges and
// leaders from the cluster and talks to each node over one pipelined stream.
type Client struct {
	access // KV

	o       ClientOptions
	seeds   []string
	cluster string
	tls     *transport.TLS // nil: none
	senders *senders
	router  *router.Router
	book    addressBook

	mu     sync.Mutex // guards seedConns
	conns  map[string]transport.Caller
	closed bool
}

var _ KV = (*Client)(nil)

// Dial connects to the cluster that one of addrs (client addresses of its
// nodes) belongs to. It returns when one of them answered, or an error when
// none did before ctx ended (or Timeout passed): *UnavailableError, or the
// refusal of a node of another cluster.
func Dial(ctx context.Context, addrs []string, o ClientOptions) (*Client, error) {
	if len(addrs) == 0 {
		return nil, &OptionError{Field: "addrs", Value: "[]", Reason: "at least one address of a node is needed"}
	}
	if o.Timeout < 0 {
		return nil, &OptionError{Field: "Timeout", Value: o.Timeout.String(), Reason: "must not be negative"}
	}
	if o.Timeout == 0 {
		o.Timeout = 10 * time.Second
	}
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	if o.ClusterID != "" {
		if _, err := parseClusterID(o.ClusterID); err != nil {
			return nil, &OptionError{Field: "ClusterID", Value: o.ClusterID, Reason: err.Error()}
		}
	}
	c := &Client{o: o, seeds: addrs, cluster: o.ClusterID, conns: map[string]transport.Caller{}}
	if o.TLS != nil {
		var err error
		if c.tls, err = loadTLS(o.TLS, o.Logger); err != nil {
			return nil, err
		}
	}
	ctx, cancel := c.bound(ctx)
	defer cancel()
	a, err := c.routes(ctx, routesQuery{})
	if err != nil {
		c.Close()
		return nil, err
	}
	meta, err := raft.DecodeDescriptor(a.Meta)
	if err != nil {
		c.Close()
		return nil, fmt.Errorf("flotilla: the node's answer does not decode: %w", err)
	}
	c.cluster = a.Cluster
	c.senders = &senders{dial: c.dial, addr: c.book.clientAddr}
	c.router = router.New(router.Options{Sender: c.senders, Root: &meta, Timeout: o.Timeout, Source: c, Forward: true})
	c.space = c.router.Space(userKeyspace)
	return c, nil
}

func (c *Client) bound(ctx context.Context) (context.Context, context.CancelFunc) {
	if _, ok := ctx.Deadline(); ok {
		return context.WithCancel(ctx)
	}
	return context.WithTimeout(ctx, c.o.Timeout)
}

func (c *Client) dial(node raft.NodeID, addr string) transport.Caller {
	if c.o.Network != nil {
		return c.o.Network.Caller(0, node)
	}
	cluster, _ := parseClusterID(c.cluster)
	return transport.NewClient(addr, transport.ClientOptions{Cluster: cluster, Node: node, TLS: c.tls})
}

// seed returns the connection to a node known by address only.
func (c *Client) seed(addr string) (transport.Caller, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.closed {
		return nil, ErrClosed
	}
	s := c.conns[addr]
	if s == nil {
		if c.o.Network != nil {
			var node raft.NodeID
			if _, err := fmt.Sscanf(addr, "n%d", &node); err != nil {
				return nil, &OptionError{Field: "addrs", Value: addr, Reason: "nodes of an in-process network are called n1, n2, ..."}
			}
			s = c.o.Network.Caller(0, node)
		} else {
			cluster, _ := parseClusterID(c.cluster) // zero: any
			s = transport.NewClient(addr, transport.ClientOptions{Cluster: cluster, TLS: c.tls})
		}
		c.conns[addr] = s
	}
	return s, nil
}

// ask puts a named query to one node after the other, the known ones and the
// seeds, until one answers.
func (c *Client) ask(ctx context.Context, method string, q, a any) error {
	ctx, cancel := c.bound(ctx)
	defer cancel()
	in, err := json.Marshal(q)
	if err != nil {
		return err
	}
	addrs := append([]string(nil), c.seeds...)
	for _, m := range c.book.all() {
		if m.ClientAddr != "" {
			addrs = append(addrs, m.ClientAddr)
		}
	}
	var last error
	pause := 20 * time.Millisecond
	for round := 0; ; round++ {
		for _, addr := range addrs {
			s, err := c.seed(addr)
			if err != nil {
				return err
			}
			tctx, cancel := context.WithTimeout(ctx, 3*time.Second)
			out, err := s.Admin(tctx, method, in)
			cancel()
			if err == nil {
				return json.Unmarshal(out, a)
			}
			var refused *transport.RefusedError
			if errors.As(err, &refused) && (refused.Reason == transport.RefusedCluster || refused.Reason == transport.RefusedVersion) {
				return refused // asking again does not help
			}
			if errors.Is(err, ErrNotFound) {
				return err
			}
			var quorum *shard.NoQuorumError
			if !errors.As(last, &quorum) { // the best reason there can be: keep it
				last = fmt.Errorf("%s: %w", addr, err)
			}
			c.o.Logger.Debug("a node does not answer", "addr", addr, "err", err)
		}
		if round == 2 {
			return noAnswer(last)
		}
		select {
		case <-ctx.Done():
			return noAnswer(last)
		case <-time.After(pause):
		}
		pause *= 4
	}
}

// noAnswer says why no node answered. When the nodes are there but without a
// quorum, that is the reason.
func noAnswer(last error) error {
	var quorum *shard.NoQuorumError
	var unavailable *shard.UnavailableError
	switch {
	case errors.As(last, &quorum):
		return quorum
	case errors.As(last, &unavailable) && (unavailable.Why != "" || unavailable.Cause != nil):
		why := unavailable.Why
		if why == "" {
			why = unavailable.Cause.Error()
		}
		return &shard.UnavailableError{Why: "no node answers: " + why, Cause: last}
	case last != nil:
		return &shard.UnavailableError{Why: "no node answers: " + last.Error(), Cause: last}
	}
	return &shard.UnavailableError{Why: "no node answers"}
}

func (c *Client) routes(ctx context.Context, q routesQuery) (a routesAnswer, err error) {
	if err = c.ask(ctx, adminRoutes, q, &a); err != nil {
		return a, err
	}
	if c.cluster != "" && a.Cluster != c.cluster {
		return a, &RefusedError{Reason: transport.RefusedCluster, Detail: fmt.Sprintf("the node is of cluster %s, not %s", a.Cluster, c.cluster), ByUs: true}
	}
	for _, m := range a.Nodes {
		c.book.set(m)
	}
	return a, nil
}

// Lookup implements the router's source: it asks any node for a part of the catalog.
func (c *Client) Lookup(ctx context.Context, keyspace uint32, key []byte, n int) ([]shard.Descriptor, []router.LeaderHint, error) {
	a, err := c.routes(ctx, routesQuery{Keyspace: keyspace, Key: key, N: n})
	if err != nil {
		return nil, nil, err
	}
	var descs []shard.Descriptor
	var hints []router.LeaderHint
	for _, b := range a.Routes {
		r, err := catalog.DecodeRoute(b)
		if err != nil {
			return nil, nil, err
		}
		descs = append(descs, r.Desc)
		if r.Leader != 0 {
			hints = append(hints, router.LeaderHint{Shard: r.Desc.Shard, Node: r.Leader, Term: r.Term})
		}
	}
	return descs, hints, nil
}

// Cluster returns the cluster's id, 32 hexadecimal digits.
func (c *Client) Cluster() string { return c.cluster }

// Status describes the cluster as the first node that answers sees it.
func (c *Client) Status(ctx context.Context) (s ClusterStatus, err error) {
	err = c.ask(ctx, adminStatus, struct{}{}, &s)
	return s, err
}

// Nodes describes the nodes of the cluster, by id.
func (c *Client) Nodes(ctx context.Context) (out []NodeInfo, err error) {
	err = c.ask(ctx, adminNodes, struct{}{}, &out)
	return out, err
}

// Shards describes the shards of the cluster, in key order. Where there may be very
// many, ask for them in pages: ShardsFrom.
func (c *Client) Shards(ctx context.Context) (out []ShardInfo, err error) {
	var limit *shard.LimitError
	if err = c.ask(ctx, adminShards, struct{}{}, &out); !errors.As(err, &limit) {
		return out, err
	}
	out = nil
	for from := []byte(nil); ; {
		page, err := c.ShardsFrom(ctx, from, pageShards)
		if err != nil {
			return nil, err
		}
		out = append(out, page...)
		if from = pageAfter(page); from == nil {
			return out, nil
		}
	}
}

// ShardsFrom is Node.ShardsFrom, asked of the first node that answers.
func (c *Client) ShardsFrom(ctx context.Context, key []byte, limit int) (out []ShardInfo, err error) {
	err = c.ask(ctx, adminPage, pageQuery{From: key, Limit: limit}, &out)
	return out, err
}

// Shard describes one shard; ErrNotFound if there is none with this id.
func (c *Client) Shard(ctx context.Context, id uint64) (s ShardInfo, err error) {
	err = c.ask(ctx, adminShard, shardQuery{id}, &s)
	return s, err
}

// Snapshots lists the snapshots that are on their way; see Node.Snapshots.
func (c *Client) Snapshots(ctx context.Context) (out []SnapshotInfo, err error) {
	err = c.ask(ctx, adminSnapshots, struct{}{}, &out)
	return out, err
}

// Close ends the connections. Requests under way end with ErrClosed or
// ErrAmbiguous. It is idempotent.
func (c *Client) Close() error {
	c.mu.Lock()
	if c.closed {
		c.mu.Unlock()
		return nil
	}
	c.closed = true
	conns := c.conns
	c.mu.Unlock()
	if c.senders != nil {
		c.senders.Close()
	}
	if c.router != nil {
		c.router.Close()
		c.router.Wait()
	}
	for _, s := range conns {
		s.Close()
	}
	return nil
}
