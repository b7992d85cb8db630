// Package transport moves Raft frames, snapshots and client requests between
// processes. It is the only importer of gRPC and protobuf.
//
// # What flows
//
// Between nodes: one client-streaming gRPC stream per ordered pair of nodes
// carries frames (frame.go). A frame holds the control records (liveness)
// first, then the messages of all groups that the sender coalesced since the
// last flush. Snapshots travel on a connection of their own
// (snapshotstream.go), so a gigabyte of data never stands before a heartbeat.
// Join requests are unary calls on the peer listener.
//
// Between clients and nodes: protobuf messages (transportpb) over one
// bidirectional stream per client connection on which both sides batch
// (request.go), or unary calls. Clients and peers have separate listeners and
// separate gRPC servers, because the frame codec is forced server-wide.
//
// # Identity
//
// Every stream starts with a Hello (hello.go): cluster, node, boot epoch,
// incarnation, wire versions. A peer of another cluster, with another node id
// than expected, with the node id of another live process, or without a
// common version is refused with a typed reason, before any frame is read. A
// frame that is cut, corrupted, too large, or not from the node of the hello is
// refused with a counter and a rate-limited log line, and its stream is
// closed; the sender reconnects.
//
// # Guarantees
//
// Frames of one stream arrive in order or not at all. Everything else may be
// lost: Send never blocks, and what does not fit into a peer's queue (8 MiB) is
// dropped together with that queue, after which the stream is reset, so that
// the owner learns of the loss by OnPeer(down), OnPeer(up).
//
// # Goroutines
//
// Per known peer: one sender (peer.go), plus one watcher while connected. Per
// inbound stream: one receiver, which calls the Handler. Per client
// connection: a sender and a receiver. All end before Close returns. Locks:
// GRPC.mu (peer and inbound tables) before peer.mu (queue); neither is held
// across I/O or a callback.
//
// Loopback (loopback.go) is the same interface in process: it encodes and
// decodes real frames and can drop, lose and delay per directed link.
package transport
