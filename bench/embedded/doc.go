// Package embedded is Flotilla as a bench.Target: the embedded store behind any
// flotilla.KV, and a cluster of three nodes in this process whose calls are
// made at the node that leads the key's shard, as a program with one node per
// machine would arrange it.
//
// Goroutines: a Leaders target owns one, which looks up each second who leads
// what; Close ends it.
package embedded
