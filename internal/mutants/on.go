//go:build mutants

package mutants

// Enabled tells whether planted bugs are compiled in.
const Enabled = true

var active string

// On reports whether the planted bug id is switched on.
func On(id string) bool { return active == id }

// Set switches the planted bug id on and every other one off; the empty string
// switches all off. It must not run concurrently with code that asks [On].
func Set(id string) { active = id }
