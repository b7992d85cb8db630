// Command floors measures what the machine under a benchmark can do at best:
// syncs, Pebble commits, gRPC streams, and the storage pattern of a node
// without Raft, network and clients. With it every figure can be read as a
// share of the limit of the machine it was measured on.
//
//	go run ./bench/floors                   # all of it, about a minute
//	go run ./bench/floors --only pebble     # what has the word in its name
//	go run ./bench/floors --json floors.json
//
// CPU is that of the whole process per record or frame.
package main
