package transport

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"time"

	"github.com/flotillakv/flotilla/multiraft/raft"
	"github.com/flotillakv/flotilla/shard"
)

// Identity says who a node is. Addr and ClientAddr are what it advertises.
type Identity struct {
	Cluster   [16]byte
	Node      raft.NodeID
	BootEpoch uint64
	// Incarnation is the random number of the present boot of the store, and
	// Before that of the boot in front of it, as the store remembers it; zero: not
	// known. Two boots with one epoch and two numbers are those of two copies.
	Incarnation, Before uint64
	Addr, ClientAddr    string
}

func (id *Identity) ready() bool { return id.Node != 0 && id.Cluster != [16]byte{} }

// Handler receives what peers send. Calls for one peer come in the order of its
// stream; calls for different peers are concurrent.
type Handler interface {
	// OnMessages gets the messages of one frame. The slice and its entries belong
	// to the receiver; entries alias one buffer per frame, which is not reused.
	// It is called on the stream's goroutine and must not block.
	OnMessages(from raft.NodeID, msgs []raft.Msg)
	// OnCtl gets the control records of one frame, before its messages.
	OnCtl(from raft.NodeID, ctl []raft.Ctl)
	// OnPeer tells that the own stream to node came up or broke. Between two
	// calls with up=true anything sent may be lost.
	OnPeer(node raft.NodeID, up bool)
	// OnSnapshot receives one snapshot: header, then messages from next until
	// io.EOF. Another error of next means that the sender broke off. reply sends a
	// message of 1 to MaxChunkBytes bytes back. The error it returns reaches the sender
	// as *SnapshotError. It may block.
	OnSnapshot(from raft.NodeID, header []byte, next func() ([]byte, error), reply func([]byte) error) error
}

// RequestHandler serves clients, and other nodes that forward for theirs.
type RequestHandler interface {
	// Do answers r. ctx ends when the caller gives up, its connection breaks or
	// its time (r.TimeoutNanos) is over. Byte slices of r belong to the callee.
	Do(ctx context.Context, r *shard.Request) *shard.Response
	// Admin answers a named query; in and the answer are JSON.
	Admin(ctx context.Context, method string, in []byte) ([]byte, error)
}

// AsyncRequestHandler is a RequestHandler that needs no goroutine per request.
// A transport that finds its handler to implement it calls DoAsync instead of Do.
type AsyncRequestHandler interface {
	RequestHandler
	// DoAsync starts r and returns soon; a is told the response exactly once, from
	// any goroutine, maybe before DoAsync returns. a does not block and keeps
	// nothing of the response, bytes included. The handler keeps to r.TimeoutNanos by itself
	// and may drop work when ctx (that of the whole stream) ends.
	DoAsync(ctx context.Context, r *shard.Request, a shard.Answerer)
}

// JoinHandler answers Peer.Join: addr is where the caller's connection comes
// from, in and the answer are JSON.
type JoinHandler func(ctx context.Context, addr string, in []byte) ([]byte, error)

// SnapshotStream sends one snapshot. Exactly one goroutine uses it.
type SnapshotStream interface {
	// Send sends one chunk of 1 to MaxChunkBytes bytes and blocks while the
	// receiver is behind. The chunk may be reused afterwards. After an error the
	// stream is over; CloseAndRecv tells why.
	Send(chunk []byte) error
	// Recv returns what the receiver's OnSnapshot replies, message by message, and blocks
	// until there is one. An error, io.EOF too, means that there will be none:
	// CloseAndRecv tells why.
	Recv() ([]byte, error)
	// CloseAndRecv ends the stream and waits for the receiver's verdict: nil when
	// its OnSnapshot returned nil, *SnapshotError when it refused, and another
	// error when the connection broke (the verdict is unknown). It must be called
	// exactly once, also after Send failed, unless the context of OpenSnapshot ended.
	CloseAndRecv() error
}

// MaxChunkBytes bounds one chunk of a snapshot stream.
const MaxChunkBytes = 1 << 20

// SnapshotError is the receiver's refusal of a snapshot.
type SnapshotError struct {
	Node raft.NodeID
	Text string
}

// Error names the node and gives its reason.
func (e *SnapshotError) Error() string {
	return fmt.Sprintf("transport: node %d refused the snapshot: %s", e.Node, e.Text)
}

// Transport carries frames and snapshots between nodes.
type Transport interface {
	// SetPeer makes node known at addr, or changes its address; an open stream to
	// the old address is broken. An empty addr forgets the node: it is not
	// called until SetPeer names it again, though it may still call this one.
	SetPeer(node raft.NodeID, addr string)
	// Send queues msgs for one frame to node. It never blocks and does not retain
	// msgs or their entries. Messages to unknown or unreachable nodes are
	// dropped; when the queue (8 MiB) overflows it is dropped as a whole and the
	// stream is reset.
	Send(to raft.NodeID, msgs []raft.Msg)
	// SendCtl queues a control record, which goes before all messages.
	SendCtl(to raft.NodeID, c raft.Ctl)
	// OpenSnapshot connects to node for one snapshot. ctx bounds the whole stream.
	OpenSnapshot(ctx context.Context, to raft.NodeID, header []byte) (SnapshotStream, error)
	// Stats returns a row per known peer, by ascending node id.
	Stats() []PeerStats
	// Close breaks all streams and returns when no goroutine of the transport is
	// left and no Handler call is running. It is idempotent.
	Close() error
}

// PeerStats counts what went to and came from one peer since the start.
type PeerStats struct {
	Node raft.NodeID
	Addr string
	Up   bool // the own stream to it is open
	// LastError says why the stream is not open; empty when it is.
	LastError string

	FramesSent, BytesSent, MsgsSent, CtlSent uint64
	FramesReceived, BytesReceived            uint64
	MsgsReceived, CtlReceived                uint64
	// MsgsDropped counts messages that were not sent: unreachable, overflow, too large.
	MsgsDropped uint64
	// Overflows counts resets because the queue was full.
	Overflows uint64
	// Connects counts streams opened.
	Connects uint64
	// Refused counts frames of this peer that were refused.
	Refused uint64
	// Skipped counts records of a kind this version does not know.
	Skipped uint64
	// QueueBytes is the size of the queue now.
	QueueBytes int64
}

// Counters count what cannot be blamed on a known peer.
type Counters struct {
	// HellosRefused by reason; index with a Reason.
	HellosRefused [reasonMax + 1]uint64
	// FramesRefused over all peers.
	FramesRefused uint64
	// RequestsInFlight is the number of client requests being served now.
	RequestsInFlight int64
	// Requests counts client requests that were handed to the RequestHandler.
	Requests uint64
	// RequestBytes is the size of those being served now, as they came in, and
	// ResponseBytes that of answers that wait to be sent.
	RequestBytes, ResponseBytes int64
	// RequestsRefused counts those that were refused because of RequestBytes.
	RequestsRefused uint64
}

// Options configure NewGRPC. Zero values mean the documented defaults.
type Options struct {
	// Identity of this node. With a zero Cluster or Node all streams are refused
	// as "not ready" until Activate; Join calls are answered from the start.
	Identity Identity
	// Listen is the host:port for peers, unless Listener is set; empty and no
	// Listener: no peer can connect. Port 0 picks a free one; see GRPC.Addr.
	Listen   string
	Listener net.Listener
	// ClientListen and ClientListener are the same for clients.
	ClientListen   string
	ClientListener net.Listener

	// Handler may be nil until Activate. Requests too; clients get
	// *shard.UnavailableError until then.
	Handler  Handler
	Requests RequestHandler
	// OnJoin answers Join calls. Nil refuses them.
	OnJoin JoinHandler
	// OnRefused, if set, is told when a peer refuses this node or the reverse,
	// at most once per reconnect; it must not block.
	OnRefused func(node raft.NodeID, err *RefusedError)
	// Resolve turns a peer's address into what is dialled. Nil: as it is.
	Resolve func(addr string) string
	// TLS secures both listeners and the connections to peers; it must name this
	// node. Nil: no TLS.
	TLS *TLS
	// Dial opens the connections to peers. Nil: TCP.
	Dial func(ctx context.Context, addr string) (net.Conn, error)
	// Logger defaults to slog.Default().
	Logger *slog.Logger

	// Compress packs frames of CompressMinBytes and more with snappy.
	Compress bool
	// QueueBytes bounds the queue to one peer. Zero: 8 MiB.
	QueueBytes int
	// WindowBytes is how much of one peer's stream may have come in and not been looked at.
	// Zero: 8 MiB.
	WindowBytes int
	// ClientWindowBytes is the same for each connection of a client. Zero: 8 MiB.
	ClientWindowBytes int
	// RequestBytes bounds the requests of clients that are being served, and what reads will
	// answer, as far as can be told from what they answered lately. Those beyond get
	// *shard.OverloadedError: nothing was done for them. Zero: no bound.
	RequestBytes int64
	// BackoffMin and BackoffMax bound the pause between connection attempts.
	// Zero: 50 ms and 2 s.
	BackoffMin, BackoffMax time.Duration
	// DialTimeout bounds one attempt, hello included. Zero: 3 s.
	DialTimeout time.Duration
	// MaxInFlight bounds the client requests being served at a time; further ones
	// wait unread. Zero: 8192.
	MaxInFlight int
}

func (o Options) withDefaults() Options {
	if o.Logger == nil {
		o.Logger = slog.Default()
	}
	if o.QueueBytes <= 0 {
		o.QueueBytes = 8 << 20
	}
	if o.WindowBytes <= 0 {
		o.WindowBytes = windowStream
	}
	if o.ClientWindowBytes <= 0 {
		o.ClientWindowBytes = windowStream
	}
	if o.BackoffMin <= 0 {
		o.BackoffMin = 50 * time.Millisecond
	}
	if o.BackoffMax < o.BackoffMin {
		o.BackoffMax = max(2*time.Second, o.BackoffMin)
	}
	if o.DialTimeout <= 0 {
		o.DialTimeout = 3 * time.Second
	}
	if o.MaxInFlight <= 0 {
		o.MaxInFlight = 8192
	}
	if o.Resolve == nil {
		o.Resolve = func(addr string) string { return addr }
	}
	return o
}

// ErrClosed is returned by calls on a closed transport.
var ErrClosed = errors.New("transport: closed")

// ErrUnknownNode is returned for a node without a known address.
var ErrUnknownNode = errors.New("transport: no address of the node is known")

// ListenError says that an address cannot be listened on. No goroutine was started.
type ListenError struct {
	What  string // "peers" or "clients"
	Addr  string
	InUse bool // another process (or this one) listens there
	Err   error
}

// Error names the address and what to do.
func (e *ListenError) Error() string {
	if e.InUse {
		return fmt.Sprintf("transport: cannot listen for %s on %s: the port is in use; stop the other process or choose another port", e.What, e.Addr)
	}
	return fmt.Sprintf("transport: cannot listen for %s on %s: %v", e.What, e.Addr, e.Err)
}

// Unwrap returns the operating system's error.
func (e *ListenError) Unwrap() error { return e.Err }
