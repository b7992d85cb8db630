// Package crashpoint crashes scripted scenarios everywhere. A scenario is run
// once, on a disk (package simfs) that keeps a journal of every operation that
// changes it. Beside it stand the states that each store has shown (moments) and
// what it has told others (promises: votes, acknowledgements, fortifications,
// boot epochs, results). Then, for a crash before any operation and for every way
// in which a disk may lose what was not synced, the disk is made again as the
// crash leaves it, the stores are opened as a node opens them, and it is checked
// that they open; that what came back is one of the moments, whole; that no
// promise made before the crash needs a later one; that boot epochs rise; and
// that nothing is left behind. Some recoveries are crashed themselves, at their
// own operations, and checked in the same way.
//
// Moments need no model of the store: all writes go through one log, so what
// comes back is a prefix of what was committed (docs/architecture.md). What the
// moments themselves may look like, one after the other, is checked while they
// are recorded.
package crashpoint
