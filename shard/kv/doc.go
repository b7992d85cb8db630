// Package kv is the key-value store of one node: the state machine that applies
// the built-in commands of every shard (Machine), and the door through which
// requests on a shard come in and are answered (Store).
//
// # The way of a write
//
//	Store.Do          execute.go  check the request, check it against the descriptor
//	Host.Propose      (multiraft) the command enters the group's log
//	Machine.Apply     machine.go  the committed command is evaluated into the round's batch
//	Store             execute.go  the result becomes the Response
//
// # The way of a read
//
//	Store.Do          execute.go
//	Host.ReadIndex    (multiraft) answered once what must be seen is applied here
//	readGet, readScan read.go     straight from the engine, on the caller's goroutine
//	                              the descriptor is checked again after reading
//
// # Evaluation
//
// Commands are evaluated when they are applied, never before they are proposed:
// there are no latches. Puts, deletes and range deletes write blind; only
// compare-and-swap and transactions read, and they read through the batch, so
// that a command sees the effects of the commands before it in the same entry.
// Everything evaluation depends on is replicated: the entry, the descriptor as
// of that entry, and the keys. A command that cannot be carried out (a key
// outside the shard, a malformed body, a conflict) is a result like any other:
// it is the same on every replica, changes nothing, and the applied index moves
// on. Only what must never happen stops a replica: a command that this version
// does not know, and a stored record that does not decode.
//
// # Goroutines and locks
//
// Gets that came in through DoAsync are read by a few goroutines of the store
// (readers.go), scans by one each; Store.Close waits for those. Machine is called by the host's loops; Store by any goroutine.
package kv
