package router

import (
	"context"
	"math/rand/v2"
	"time"

	"github.com/flotillakv/flotilla/multiraft/raft"
	"github.com/flotillakv/flotilla/shard"
)

// Sender carries a request to a node and its answer back. It must be safe for
// concurrent use. It may read the request until it is answered, even after the
// context ended; the router hands every try its own Request.
type Sender interface {
	// Send returns the node's response, or an error when there is none: an
	// *shard.UnavailableError if the request certainly was not handed on,
	// shard.ErrClosed if the sender itself was closed, and otherwise an error
	// that is shard.ErrAmbiguous.
	Send(ctx context.Context, node raft.NodeID, r *shard.Request) (*shard.Response, error)
}

// Starter is a Sender that needs no goroutine to wait for an answer.
type Starter interface {
	Sender
	// Start begins what Send does, without waiting: a is told, once, what Send
	// would return, maybe before Start returns and maybe on a goroutine that must
	// not be blocked. If ok is false, Start cannot do so now and did nothing. With
	// conn, unless it is nil, the caller can give up.
	Start(node raft.NodeID, r *shard.Request, a shard.Answerer) (conn shard.Abandoner, id uint64, ok bool)
}

// LeaderHint says that Node led Shard in Term. The type has no name of its own,
// so that package catalog can produce it without importing this one.
type LeaderHint = struct {
	Shard raft.ShardID
	Node  raft.NodeID
	Term  raft.Term
}

// Source knows all ranges: the catalog. It is asked for what the table does not
// hold.
type Source interface {
	// Lookup returns the descriptor of the range that holds key and up to n-1
	// of its right-hand neighbours, in key order, with the leaders it knows of.
	// If no range holds key, the first one above key comes first. No
	// descriptors: there is none at or above key.
	Lookup(ctx context.Context, keyspace uint32, key []byte, n int) ([]shard.Descriptor, []LeaderHint, error)
}

// Clock is the router's notion of time. The default is the system's.
type Clock interface {
	Now() time.Time
	// Sleep returns nil after d, or the context's error as soon as it ends.
	Sleep(ctx context.Context, d time.Duration) error
	// WithTimeout is context.WithTimeout by this clock.
	WithTimeout(ctx context.Context, d time.Duration) (context.Context, context.CancelFunc)
}

// Options configures a Router.
type Options struct {
	// Sender is required.
	Sender Sender
	// Source may be set later, by SetSource, since it usually reads the catalog
	// through the router itself.
	Source Source
	// Root is the descriptor of the meta shard, which holds keyspace 0. Keyspace 0
	// is never looked up at the Source; an owner that learns the descriptor
	// later merges it into the table.
	Root *shard.Descriptor
	// Self is the node this router lives in, asked first when no leader is
	// known. Zero: a remote client.
	Self raft.NodeID
	// Forward lets a replica be asked to forward a request when its leader
	// cannot be reached from here. For remote clients.
	Forward bool
	// Timeout bounds a request whose context has no deadline. Zero: 10 s.
	Timeout time.Duration
	// MaxRedirects bounds the replies of one round that may send a request
	// elsewhere; after that it waits before it goes on. Zero: 8.
	MaxRedirects int
	// Prefetch is the number of neighbouring ranges a lookup asks the source
	// for. Zero: 128.
	Prefetch int
	// Ranges bounds the ranges of a keyspace that are remembered, of some 300 bytes
	// each. Zero: 131,072; negative: no bound.
	Ranges int
	// Parallel bounds the shards one non-atomic write or one MultiGet works on
	// at the same time. Zero: 16.
	Parallel int
	// Patience bounds the requests that wait at the same time because a node is
	// overloaded; further ones get *shard.OverloadedError at once. Zero: 1024;
	// negative: none waits.
	Patience int
	// Clock is the system's by default.
	Clock Clock
	// Rand returns random bits for jitter and the choice of replicas. It must be
	// safe for concurrent use. Default: math/rand/v2.
	Rand func() uint64
}

func (o Options) withDefaults() Options {
	if o.Timeout <= 0 {
		o.Timeout = 10 * time.Second
	}
	if o.MaxRedirects <= 0 {
		o.MaxRedirects = 8
	}
	if o.Prefetch <= 0 {
		o.Prefetch = 128
	}
	switch {
	case o.Ranges == 0:
		o.Ranges = 1 << 17
	case o.Ranges < 0:
		o.Ranges = 0
	}
	if o.Parallel <= 0 {
		o.Parallel = 16
	}
	if o.Patience == 0 {
		o.Patience = 1024
	}
	if o.Clock == nil {
		o.Clock = systemClock{}
	}
	if o.Rand == nil {
		o.Rand = rand.Uint64
	}
	return o
}

// systemClock is the Clock of production.
type systemClock struct{}

func (systemClock) Now() time.Time { return time.Now() }

func (systemClock) Sleep(ctx context.Context, d time.Duration) error {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

func (systemClock) WithTimeout(ctx context.Context, d time.Duration) (context.Context, context.CancelFunc) {
	return context.WithTimeout(ctx, d)
}
