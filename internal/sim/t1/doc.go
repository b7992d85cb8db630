// Package t1 simulates whole nodes: the second tier of the simulator.
//
// A cluster of three to seven nodes with many shards runs in one goroutine, in
// virtual time, from one seed. Each node is made of the product's own parts: the
// liveness manager, the host with its loops and cores, the key-value machine and
// its request executor, the snapshot store, and the engine over a real Pebble on
// the fault file system (package simfs). Messages pass through the frame codec of
// the transport, snapshots through manifest, chunks, staging and installation.
// What is modelled is the world around: a network that loses, doubles, delays,
// reorders, cuts and corrupts, disks that are slow, fail and forget, clocks that
// drift and jump, processes that pause and crash, and clients that retry.
//
// What flows: a seed draws a [Schedule], which is data: parameters and a timed
// list of faults and client operations. [Run] carries it out and returns a
// [Result] with what was reached and the first violation. The safety phase is
// followed by a liveness phase, in which a random healthy core must finish
// everything.
//
// Time and disk. All nodes share one heap of events. A round of a loop commits
// its batch to Pebble and the driver waits until it is physically synced; that
// the sync has ended is told to the node by a later event, at a time that the
// seed draws. A crash in between takes the image of the disk from before the
// sync, from after it, or from the middle of it: simfs keeps the history that is
// needed for this. So slow and stalled disks cost no real time, and no goroutine
// of Pebble's ever decides anything: two runs of a seed send the same frames,
// commit the same batches, answer the same results and end in the same state
// ([Result.Hash]). The order of Pebble's own file operations is no part of that.
//
// Snapshot streams are written as straight code in the product. They run as
// coroutines here, which the driver resumes one at a time.
//
// The checks: see oracle.go (what every round and message must obey, after
// Ongaro's thesis and the bug ledger of the project), model.go (a second
// execution of every committed entry, against which disks and answers are held)
// and package linear (one order of all operations explains what clients saw).
//
// The package owns no lock. The goroutines it causes are Pebble's, a worker's
// share of [RunMany], and those that an injected disk failure parks for good.
package t1
