// Package explore checks Flotilla's protocols by explicit-state exploration:
// where a simulation takes random ways through the states of a system, this
// package visits all of them within a small scope, or, of a scope that is too
// large, all within some distance.
//
// # What flows
//
//	Model -> Run(Options) -> Report (states, transitions, depth, exhausted or not,
//	                         and a counterexample as a list of steps)
//
// Run (search.go) visits breadth first (a counterexample is a shortest one),
// depth first, or by random walks whose counterexamples are shrunk. It keeps 64
// bits for each state it has seen (set.go) and the whole state only while it
// waits.
//
// Group (group.go, node.go) is one Raft group of three nodes over the real
// raft.Core. Three ideas make it fast. A core is a pure function, so what an
// input does to a node is computed by the core once and remembered: a state of
// the group is three numbers of nodes, a set of messages, and counters. Time is
// an abstraction: armed deadlines come in any order (raft.Core.Freeze). And
// states that differ in the names of nodes are one. Node liveness is reduced to
// its contract: support is withdrawn only when it is not counted any more.
//
// Pair (pair.go) is one promise between two nodes over the real liveness.Rules,
// with clocks that drift, in relative time: it shows that they keep the contract,
// up to the bound of drift, and finds the violation just beyond.
//
// # What is checked
//
// One leader per term (S1), log matching (S2), leader completeness and commit
// safety (S3), entries applied in order (S4), monotonic terms and commit indexes
// (S5), no promise before it is durable, no commit without a durable quorum (S6),
// one vote per term over restarts (S7), intersecting quorums of consecutive
// configurations and votes of a quorum (S10), no message that no correct peer
// sends (S11), no lease beside a newer leader (S14), read indexes, by quorum, by
// lease and at followers, at or above what was committed before (S15), and no
// panic (F1).
//
// # Reproducing
//
//	go test ./internal/sim/explore -run TestCore -v
//	go test ./internal/sim/explore -run TestCore -v -timeout 0 -explore.scope all -explore.states 20000000
//	go test ./internal/sim/explore -run TestLease -v -timeout 0 -explore.states 20000000
//	go test -tags mutants ./internal/sim/explore -run TestMutants -v -timeout 0
//
// Runs are deterministic: the same scope gives the same figures.
//
// The package owns no goroutine and no lock; a model is used by one goroutine.
package explore
