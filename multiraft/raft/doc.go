// Package raft is one Raft group as a pure state machine, and the vocabulary
// of all packages above it.
//
// What flows in: messages (Core.Step), commands (Core.Propose), acknowledgements
// of storage (Core.Appended), of the state machine (Core.Applied) and readings
// of the owner's monotonic clock. What flows out: an Out, filled with messages,
// log writes, entries to apply and answers to reads. There is no I/O, clock,
// goroutine, lock, logger or global random source in here; the same calls with
// the same arguments give the same effects, bit for bit. A Core has one owner
// (a loop of package multiraft, or the simulator) which calls it from one
// goroutine at a time.
//
// A round of the owner: hand in everything that arrived (Step, Propose,
// ProposeConf, ReadIndex, Appended, Tick, ...), call Flush once for every core
// that was touched, send Out.Msgs, write Out.Appends and Out.HardStates in one
// batch, apply Out.Applies into the same batch, and when the batch is durable
// send Out.Held and call Appended. Applied, ConfApplied and Truncated may be
// called while the batch is being built: they emit nothing themselves; what
// follows from them comes with the next Flush, for which Deadline is due at
// once.
//
// The protocol is that of "In Search of an Understandable Consensus Algorithm"
// (Ongaro, Ousterhout; "the paper") and of Ongaro's thesis, with pre-vote,
// leadership transfer, batched ReadIndex, joint consensus, and three changes:
// node-pair liveness replaces heartbeats per group, so an idle group sends
// nothing; a follower that promised its support to a leader's node ("fortified")
// does not help to depose that leader while the promise stands; and election
// delays are dealt by rank, with a jitter, instead of drawn from a wide range.
package raft
