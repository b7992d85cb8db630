package router

import (
	"testing"
	"testing/synctest"
)

// TestB0_A4 is the rule of the design that a retry carries the number and the
// deadline of its first try. Its other half waits for splits and merges.
func TestB0_A4(t *testing.T) {
	run := func(t *testing.T) (err error) {
		for _, c := range sessionCases {
			synctest.Test(t, func(t *testing.T) {
				if e := c.run(t); e != nil && err == nil {
					err = e
				}
			})
		}
		return err
	}
	if err := run(t); err != nil {
		t.Fatal(err)
	}
	withoutRule(t, "F1i", run)
}
