// Package nemesis torments a cluster of real server processes: tier T3 of the
// tests (docs/testing.md). One seed draws what is done and when.
//
// # What it is
//
// A run starts three to seven processes of the flotilla command on the loopback
// interface, with real directories and real fsync. Every address that a node
// tells the others or clients is that of a TCP proxy in this process, one per
// listener (proxy.go), which knows by the process that dialled which link a
// connection belongs to and can hold, delay, throttle, reset and refuse it, per
// direction. With Options.Netns each process has a network namespace, and this
// process carries the packets between them (packets_linux.go): then they can be
// lost, doubled and reordered as well.
//
// A run is a row of rounds. In each, clients work on a fresh set of keys while
// faults are made and mended (faults.go); then everything is mended, and it must
// hold within a bounded time: every node is ready, every shard has a leader,
// every key can be read through every node, all replicas of a shard hold the
// same at the same index. The histories of all groups of keys, the last reads
// included, go to package linear: one order must explain them, and what was
// refused must not have taken effect. Keys of earlier rounds are read again, a
// sample after each round and all of them at the end of the run. A process
// that ends without being told to is a violation, too.
//
// # Who calls it
//
// flotilla sim processes, and the end-to-end tests.
//
// # Goroutines
//
// Run owns all of them: two per proxied connection and one per listener
// (proxies) or one per namespace (packets), one per process that waits for its end (process), the clients, and
// the slots that make faults. All of them have ended when Run returns; the
// processes, too, which also die with this one.
//
// The real network and scheduler take part: the same seed gives the same faults
// in the same order, not the same interleaving.
package nemesis
