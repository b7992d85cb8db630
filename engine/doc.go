// Package engine is the store of one node: one Pebble database that holds the
// Raft logs, hard states, applied states and data of all groups of the node,
// and a small identity file beside it. It is the only importer of Pebble.
//
// # What flows through it
//
// A loop of the host (package multiraft) builds one Batch per round over all
// its groups - log entries, hard states, applied effects, truncations - and
// commits it; the commit is visible at once and durable after Batch.Wait.
// Package snapshot reads a consistent View of a group and installs one with
// InstallSnapshot. Package liveness persists its support records. Everything
// in the store is described by the key table in keys.go.
//
// # Why one write-ahead log makes this safe
//
// The invariants below carry numbers; each has a crash test of that name.
//
//	I1  Prefix. After a crash the store holds a prefix of the write-ahead log.
//	    A group is owned by one loop, so the batches of a group are in log order.
//	I2  Order. Append(i) precedes apply(i) precedes truncate(<=i) in log order,
//	    so every recovered prefix is consistent, and neither applying nor
//	    truncating ever needs a sync.
//	I3  Applying an entry that a quorum has committed, but that is not yet
//	    durable here, is safe: a crash takes the effect and the entry together.
//	I4  An ingested table is durable through the MANIFEST, independently of the
//	    tail of the write-ahead log. Hence all Raft state of a group travels
//	    inside the tables of its snapshot, the log is synced before each ingest,
//	    and the group is frozen by its owner until the ingest returned.
//	I5  (split and merge; reserved)
//	I6  Sync before leaving the log. A destructive act outside the log (Excise,
//	    removal of staged files) is preceded by a synced record that makes it
//	    legal: Destroy syncs tombstone, deletions and intent first.
//
// # Deferred applying
//
// With Options.DeferBytes the applied side does not go through the write-ahead log.
// It gathers in memory, in front of the tables, and is written to them in bulk; the
// Raft log in Pebble is its redo. I2 and I3 then hold for the log alone, and
// J1 to J4 (deferred.go) for the rest: a group comes back as it was applied at some
// earlier moment, whole, with every later entry in its log.
//
// # Failing
//
// A failed sync, a failed write of the log or the MANIFEST, and corruption
// stop the node once, through one function (Engine.fail): it remembers the
// reason, calls Options.OnFatal (default: log and exit the process) and never
// lets Pebble continue. Nothing is retried. Every later Commit is refused with
// ErrFailed.
//
// # Goroutines and locks
//
// Pebble owns its flush, compaction and log-writer goroutines; they end with
// Close. The engine itself starts one for each flush of what is applied in memory,
// for which Close waits. Batches are owned by
// one goroutine at a time. Engine methods may be called from any goroutine.
// Engine locks are leaves: none is held while another one is taken, or across
// I/O, except identMu and markMu (the identity file and the watermark), and
// deferred.flushMu, which is held across the end of a flush, an install or a
// destruction, and journal.gate, which is held while logs are committed. The order is
// flushMu, gate, deferred.mu, journal.mu.
//
// The idea of deleting what the log wrote while it is in the memtable, so that it dies
// there, comes from CockroachDB's log store; the order of destroying a replica from its replica-storage code. That the entries of many groups
// stand in one record in the order of writing, and those of slow groups are written
// anew when the oldest records are to go, is how log-structured engines for Raft logs
// work (TiKV's raft-engine); here the records lie in Pebble, whose log they share with
// everything else.
package engine
