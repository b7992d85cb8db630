// Package fleet measures what many shards cost a cluster of three nodes in this
// process when nearly all of them are idle: memory, processor time, network and
// disk at rest, how long it takes to create them, to restart and to lose a node,
// and what a few busy shards can do among them.
//
// Each measurement wants a process of its own, since what an earlier one left behind
// in the heap cannot be told from what the present one needs: Idle and Groups measure
// one number of shards each, and whoever sweeps starts a process per number.
//
// Goroutines: those of the cluster, and of the clients of package bench; all of them
// have ended when a measurement returns.
package fleet
