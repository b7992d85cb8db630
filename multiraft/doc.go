// Package multiraft runs all Raft groups of one node on a few loops.
//
// # What flows in and out
//
// In: messages of other nodes (Host.OnMessages), proposals (Host.Propose),
// read requests (Host.ReadIndex), liveness and connection events, and
// acknowledgements of storage. Out: messages (Net), one engine batch per round,
// completions of requests, snapshots to be sent (SnapshotSender).
//
// # One round
//
// A group is pinned to one loop, which is its only writer: there is no
// goroutine, ticker or lock per group. A round of a loop drains the inbox, steps
// the cores concerned, hands each peer its messages, writes appends, hard
// states, applied commands and truncations of ALL groups of the round as ONE
// engine batch, and completes the requests whose commands it applied. A batch
// with something to make durable is committed with a sync in flight; a waiter
// (syncer.go) posts one acknowledgement when it is durable, and only then the
// messages held for it leave. At most two such batches are in flight per loop;
// further work accumulates (group commit).
//
// # Goroutines and locks
//
// Per loop: "loop" (drive.go; four lines around loop.step) and "syncer". Both
// are started by Host.Start and ended by Host.Close, which waits for them.
//
// Lock order, outermost first: (1) Host.mu (creation of groups, close);
// (2) inbox.mu of a loop. Neither is held across I/O, a channel send or a
// callback. The table shard -> replica is copied on write and read without a lock.
//
// # Members
//
// Replicas come as learners and get their votes when they have caught up; several
// come and go in one joint change (membership.go: a pure plan from the descriptor,
// so that every leader goes on where the last one stopped). A replica that was
// removed lingers until a quorum of the newest configuration says that it has the
// removal durably, and is destroyed then (removal.go).
//
// # Outcomes
//
// A request ends definite (applied; or refused before it was handed to Raft, or
// displaced by another leader's committed entry) or ambiguous. A leader that
// steps down keeps the requests in its log waiting: the entry committed at their
// index decides. Whoever stops waiting earlier must treat the outcome as unknown.
package multiraft
