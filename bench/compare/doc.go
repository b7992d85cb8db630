// Command compare runs the same workload on Flotilla and on its peers, in
// pairs, on the machine it stands on.
//
// Every engine gets three replicas in one process over loopback TCP, real files
// with fsync, and the same closed-loop clients, which make each call at the
// node that leads the key's shard. Each run is a process of its own, so that
// no engine inherits another one's heap. Engines take turns (A B A B ...);
// what is printed are the medians, the ratio of each pair, and their spread.
//
//	cd bench/compare && go run . --workload W1 --shards 48 --clients 1024
//	cd bench/compare && go run . table     # every point of the published table
//	cd bench/compare && go run . costs     # where Flotilla's processor time goes
//	cd bench/compare && go run . groups    # what many groups take that nobody uses
//
// A run proves its writes: followed records are read back and have to hold what
// was acknowledged last, and all replicas have to have applied every
// acknowledged write.
//
// It is a module of its own, since nothing of the peers may become a dependency
// of Flotilla.
package main
