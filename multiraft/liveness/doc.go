// Package liveness keeps, for every ordered pair of nodes, one durable promise
// instead of heartbeats for every Raft group.
//
// Node A asks its peers for support twice a second. Node B that hears it
// promises: "I support you at epoch e until my clock says u". While B supports
// A at e, no group that B fortified for a leader on A at e lets B vote for
// anyone else (rule V of package multiraft/raft). When B has not heard A for
// the support duration D it withdraws: it writes the withdrawal to disk, and
// only then shows it. A on its side counts B's support for a shorter time,
// D*(1-rho) - 5 ms after it *sent* the heartbeat, so that with clocks whose
// rates differ by less than rho A always stops counting before B withdraws.
// (B's answer carries B's own D, and the shorter one counts.)
// No wall clock takes part, and no promise is compared across clocks.
//
// An epoch is bootEpoch<<32 | n. The boot epoch is durable before the first
// heartbeat, n is counted in memory and grows with every refusal and every
// lapse, so that an epoch which was once withdrawn or abandoned never comes back.
//
// What flows in: control records of peers (raft.Ctl), time, and the node's own
// gate: a node whose disk or loops stand still sends no heartbeat and loses its
// support. What flows out: control records, records to persist, and a table
// that implements raft.Liveness with lock-free reads.
//
// Rules is the pure part: values in, effects out, no goroutine, clock, lock or
// disk. Manager runs it: one goroutine steps the rules (named
// "liveness.Manager.run"), a second one ("liveness.Manager.runDisk") writes
// records and syncs the disk for the gate, so that a stalled disk never delays
// an answer or the notice of a lapse. Both are owned by Manager, started by
// Start and gone when Close returns. The only lock, Manager.mu, guards the two
// queues between them and is held across no call.
//
// Which rule is kept where (each has a test of its name):
//
//	B2  nothing is answered from the decision to withdraw on; an acceptance is
//	    durable before its first reply                       supporter.go
//	B3  a new n on each refusal or lapse                      requester.go
//	B6  support is no longer counted when Relinquish leaves   requester.go
//	C2  a lapse seen by the asker abandons the epoch          requester.go
//	C4  no heartbeat while disk or loops stand still          rules.go, manager.go
//	C5  the epoch of self-support is the boot epoch           rules.go
//	C6  clock skew against the median of the peers            skew.go
//
// What it does not cover: a machine whose monotonic clock stands still while
// the others' run (a suspended virtual machine) counts support for too long
// when it wakes. Leaders therefore must not serve reads on support alone; they
// confirm with a quorum. A later lease has to look at a clock that runs on.
//
// The idea is CockroachDB's store liveness (pkg/kv/kvserver/storeliveness),
// with monotonic durations in place of its hybrid clock.
package liveness
