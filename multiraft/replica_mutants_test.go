//go:build mutants

package multiraft

import "testing"

// TestWaiterMutants: who waits for an entry that was cut off would wait for ever.
func TestWaiterMutants(t *testing.T) {
	withoutRule(t, "F6f", cutWaiter)
}
