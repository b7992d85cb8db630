//go:build mutants

package mutants

import "os"

// Enabled tells whether planted bugs are compiled in.
const Enabled = true

// EnvPlant names the environment variable with the planted bug that is switched
// on from the start of the process: for ordinary tests, which do not call [Set].
const EnvPlant = "FLOTILLA_PLANT"

var active = os.Getenv(EnvPlant)

// On reports whether the planted bug id is switched on.
func On(id string) bool { return active == id }

// Set switches the planted bug id on and every other one off; the empty string
// switches all off. It must not run concurrently with code that asks [On].
func Set(id string) { active = id }
