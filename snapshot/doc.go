// Package snapshot moves whole shards between nodes: it builds a snapshot from
// a consistent view of a replica, streams it in checksummed chunks, stages it
// at the receiver and installs it in one step; and it decides how far a log
// may be cut, which is what makes snapshots necessary.
//
// What flows in: a shard's descriptor and the store (package engine) at the
// sender; a manifest and chunks at the receiver. What flows out: a stream
// (interface Stream, which the owner connects to its transport), and a Staged
// snapshot that the owner installs on the loop of the shard, where its hard
// state is frozen.
//
// A snapshot is a manifest (Meta) and files. A shard of at most SmallBytes is
// one list of pairs; a larger one is a row of sorted tables of at most about
// TableBytes, built by the sender and ingested as they are by the receiver. A
// group's other replicated records (sessions) travel as a list. The hard state
// and the log never travel: after installation the log is empty, and the hard
// state is the receiver's own.
//
// The manifest holds the checksum of every chunk and travels first, so the
// receiver refuses a snapshot that it does not want before any data came,
// refuses a chunk that is not the announced one, and after an interruption
// finds out from the staged bytes alone which chunks it has: a sender that
// tries again asks for that first and sends the rest. Everything is
// all-or-nothing: until the engine's one ingestion has returned, the old
// replica is whole; after it, the new one is. Staged files belong to nobody
// until then, and are deleted at boot.
//
// Policy (CutTo, OverBudget, CheckOverlap) and Limiter are pure. Store owns no
// goroutine; Send and Handle run on their caller's. Store.mu guards slots and
// the list of receptions and is held across no I/O.
//
// The two classes, the tables built by the sender and the one ingestion with
// its range deletions follow CockroachDB (pkg/kv/kvserver/snapshot_apply_prepare.go)
// with the SST building moved to the sending side; Raft paper section 7.
package snapshot
