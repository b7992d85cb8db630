// Package sim is the deterministic simulator of Flotilla. Tier T0, in this
// package, runs the Raft cores of one group (multiraft/raft) of three to five
// nodes, with node liveness, against a model store and a model network. One
// heap of events in virtual time drives everything on one goroutine; every
// choice is drawn from the seed, so a run replays bit for bit.
//
// # What flows
//
//	Options{Seed, Profile} -> Schedule (faults and client actions, plain data)
//	                       -> World (event heap, nodes, network, stores)
//	                       -> Result (figures, trace hash, the first Failure)
//
// A node of the simulation is the owner of its core: it drains an inbox, steps
// the core, writes one batch to the model store, sends the messages and hands
// back the acknowledgements (host.go; the production owner is package multiraft).
// The model store (disk.go) keeps a durable image and a list of batches that
// are visible but not synced; a crash keeps a prefix of that list. The network
// loses, duplicates, reorders, delays, clogs and partitions one way or both.
//
// # What is checked
//
// Oracles (oracle.go) look at every round of every node: one leader per term
// (S1), log matching (S2), leader completeness (S3), same entries applied in
// the same order (S4), monotonic commit and applied indexes within the log
// (S5), no promise before its record is durable (S6), one vote per term over
// all restarts (S7), equal state at equal applied index (S20), a command takes
// effect at most once (S9), intersecting consecutive quorums and
// configuration = fold of the log (S10), read indexes at or above everything
// committed before the read began (S15), no definite failure that takes effect
// (S16), no support withdrawn while its beneficiary still counts on it (S14).
// At the end a random quorum is healed while the rest stays broken, and the
// group must make progress in bounded virtual time (L1), and its members catch
// up (L3).
//
// # Reproducing
//
// A failure names the seed, the profile and the command that replays it, and
// carries the last events as one line each. Shrink deletes events of the
// schedule as long as the same oracle fails. Planted bugs (internal/mutants)
// measure how sharp the oracles are.
package sim
