// Package interop puts the reference implementation of Raft, go.etcd.io/raft,
// into one simulated group with Flotilla's own core (multiraft/raft), and runs
// both through elections, conflict repair, joint membership changes, transfers,
// snapshots, crashes and partitions in virtual time.
//
// # What flows
//
//	Options{Seed, Ours, Theirs} -> Run -> Result (figures, or the first violation)
//
// A member of the group is a core of ours (ours.go) or a RawNode of theirs
// (theirs.go), each with a store that a crash cuts back. Messages travel in the
// sender's form and are translated where they arrive, if the receiver is of the
// other kind (translate.go). Mixed groups run without leases and without
// fortification: reads go by read index, the adapter drops requests to fortify,
// and it makes heartbeats out of node liveness where the reference expects them.
// One entry of theirs carries one of ours as opaque bytes; what their leader
// proposes itself is encoded as our entry on the way.
//
// # What is checked
//
// One leader per term; the same entry at the same index everywhere, applied in
// order; the same configuration after the same change; no vote for two
// candidates in one term; read indexes at or above everything that was applied
// anywhere before the read began; and that the group commits and every member
// catches up once the faults end.
//
// It is a module of its own, so that nobody who uses Flotilla depends on the
// reference implementation.
package interop
