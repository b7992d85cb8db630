package sim

import (
	"slices"
	"time"
)

// Shrink deletes actions from a failing schedule as long as the run still ends
// with a violation of the same oracle, and returns the smaller schedule. It
// runs at most budget simulations.
func Shrink(s Schedule, oracle string, budget int) Schedule {
	return shrink(s, oracle, budget, time.Time{})
}

// shrink ends at a time, too, unless that is zero.
func shrink(s Schedule, oracle string, budget int, until time.Time) Schedule {
	fails := func(c Schedule) bool {
		if budget--; !until.IsZero() && time.Now().After(until) {
			budget = 0
			return false
		}
		r := Run(Options{Schedule: &c})
		return r.Failure != nil && r.Failure.Oracle == oracle
	}
	// What comes after the failure does not matter.
	if r := Run(Options{Schedule: &s}); r.Failure != nil && r.Failure.At < s.Duration {
		c := s
		c.Actions = slices.DeleteFunc(slices.Clone(s.Actions), func(a Action) bool { return a.At > int64(r.Failure.At) })
		if fails(c) {
			s = c
		}
	}
	for chunk := (len(s.Actions) + 1) / 2; chunk >= 1 && budget > 0; {
		shrunk := false
		for i := 0; i+chunk <= len(s.Actions) && budget > 0; {
			c := s
			c.Actions = slices.Delete(slices.Clone(s.Actions), i, i+chunk)
			if fails(c) {
				s, shrunk = c, true
			} else {
				i += chunk
			}
		}
		if chunk == 1 && !shrunk {
			break
		}
		chunk = max(chunk/2, 1)
		if chunk == 1 && !shrunk && len(s.Actions) == 0 {
			break
		}
	}
	return s
}
