// Package linear records what clients of a store did and saw, and decides
// whether one order of all operations explains it: linearizability, checked
// with porcupine.
//
// Keys come in small groups that lie in one shard each; every group is checked
// by itself. A group of one key is a register with get, put, delete and
// compare-and-swap; a larger one adds batches, transactions, range deletions and
// scans, which read or write several keys at one point in time. One model serves
// both: an operation observes some keys, may have a condition, and writes some
// keys if the condition holds.
//
// Every written value is unique, which gives three things. A value that is seen
// names the write it comes from, so that a write of unknown outcome can be
// placed before its first observer, or left out if nobody saw it; only removals
// of unknown outcome stay open for ever. A value of a write that was refused for
// certain must never be seen by anybody. And versions and values must agree.
//
// The package has no goroutine; a History may be appended to by many.
package linear
