// Package shard is the vocabulary of the keyspace: what a shard holds
// (Descriptor), what a client asks of it (Request, Response), what is
// replicated on its behalf (commands and their results, value records) and
// everything that can go wrong, as typed errors that survive the wire.
//
// It is pure: values in, values out; no goroutine, lock, clock or I/O. It is
// imported by everything that touches keys: transport carries its requests,
// router routes them, shard/kv evaluates its commands, and the root package
// re-exports its user-facing types.
//
// The map of the package:
//
//	descriptor.go  which keys a shard holds; split planning
//	epoch.go       checks of a key, a range or a command against a descriptor
//	request.go     Request and Response, the one door of a shard
//	command.go     op codes and command bodies (the replicated form)
//	batch.go       Batch: many writes, one command
//	txn.go         Txn: if/then/else over keys of one shard, one command
//	result.go      what a command answers when it is applied
//	record.go      the value record stored under each key
//	errors.go      typed errors, Outcome; errcodec.go: their wire form
//
// A command's body has no version byte of its own: its layout is named by the
// op code and the command's Flags, inside an entry that is versioned and
// checksummed as a whole (package raft). A new layout is a new op code or a new
// flag, and a replica that does not know it stops the shard with "upgrade this
// node" instead of skipping it.
package shard
