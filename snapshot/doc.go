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
// one list of pairs; a larger one is a row of sorted tables of about
// TableBytes, made by the sender and ingested as they are by the receiver. A
// group's other replicated records (sessions) travel as a list. The hard state
// and the log never travel: after installation the log is empty, and the hard
// state is the receiver's own.
//
// The sender (source) makes one table in memory while it sends the one before; its
// disk is only read. The record of each file, with the checksum of every chunk, goes
// before the chunks. The receiver refuses a snapshot that it does not want before any
// data came, and a chunk that is not the announced one. What came of a snapshot that
// was cut stays, also over a restart: the same snapshot goes on behind it, and any
// other of the shard, of whatever sender and index, is not sent the chunks that are
// there already (leftovers). Since tables end where their keys say, most of them are
// the same while most of the data is.
//
// Everything is all-or-nothing: until the engine's one ingestion has returned, the old
// replica is whole; after it, the new one is. Staged files belong to nobody
// until then.
//
// Policy (CutTo, OverBudget, CheckOverlap) and Limiter are pure. Send and Handle run on
// their caller's goroutine; each has at most one beside it, which makes the next table
// or syncs the last one, and ends before they do. Store.mu guards slots and
// the list of receptions and is held across no I/O.
//
// The two classes, the tables built by the sender and the one ingestion with
// its range deletions follow CockroachDB (pkg/kv/kvserver/snapshot_apply_prepare.go)
// with the SST building moved to the sending side; Raft paper section 7.
package snapshot
