package kv

import "testing"

// TestB0_B5 is the rule of the design that a read which waits looks, before it is
// served, whether its replica is still the one that it was allowed for.
func TestB0_B5(t *testing.T) {
	if err := readReplaced(t); err != nil {
		t.Fatal(err)
	}
	withoutRule(t, "D7b", readReplaced)
}
