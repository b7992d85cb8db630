// Package mutants holds the switches of planted bugs: small, deliberate errors
// in pure code that the simulator (internal/sim) must find.
//
// A planted bug is one condition in the code it spoils:
//
//	if m.Term < c.term && !mutants.On("A4") { ... }
//
// In the default build On is a function that returns the constant false and is
// inlined away, so a planted bug costs nothing and cannot be switched on. With
// the build tag "mutants" one binary holds all of them and [Set] chooses at most
// one at run time; the score table is printed by
//
//	go run -tags mutants ./cmd/flotilla sim mutants
//
// Ids name rows of the bug ledger (A: elections, B: log, C: membership,
// D: reads and leases; K: classic errors of a Raft core). A letter behind the
// number tells variants of one row apart ("B1", "B1b").
//
// The package owns no goroutine and no lock. Set is for single-threaded tests.
package mutants
