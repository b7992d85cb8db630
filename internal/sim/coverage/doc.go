// Package coverage counts what simulated runs have really tried: how often a
// fault of each kind hit while each operation was under way, and in which state
// of the core. Systems that trusted "the tests passed" were later caught by a new
// dimension of input, not by more of the same; so the dimensions are counted.
//
// What flows: both simulators (packages sim and t1) call [Table.Hit] for each
// fault that takes hold, with the operations under way where it does; tables of
// many runs are added up and printed ([Table.Text]). [Table.Holes] names the
// cells that should have been reached and were not; what cannot happen is
// declared in holes.go, with the reason.
//
// A table is a fixed array of counters. It is no part of a run's trace, and
// counting changes nothing in a run. The package owns no goroutine and no lock.
package coverage
