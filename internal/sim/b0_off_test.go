//go:build !mutants

package sim

import "testing"

// withoutRule needs the build tag mutants.
func withoutRule(*testing.T, []string, string) {}
