// Package invariants holds the assertions of the whole code base. Must is cheap
// and always on; costly checks sit behind Enabled, which the build tags
// "invariants" and "race" switch on. Nothing flows in or out, it owns no
// goroutine and no lock, and every package may import it.
package invariants

import "fmt"

// Must panics with the formatted message when cond is false. It marks bugs of
// the program itself, never mistakes of a user, a disk or a peer.
func Must(cond bool, format string, args ...any) {
	if !cond {
		panic("invariant violated: " + fmt.Sprintf(format, args...))
	}
}

// Fail panics with the formatted message. Hot paths write
//
//	if !cond { invariants.Fail(...) }
//
// because the arguments of Must are allocated even when cond holds.
func Fail(format string, args ...any) {
	panic("invariant violated: " + fmt.Sprintf(format, args...))
}
