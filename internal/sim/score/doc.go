// Package score keeps the list of planted bugs and measures which of them the
// tests of Flotilla find.
//
// A planted bug ([internal/mutants]) is a small deliberate error, mostly one
// that a system like this one really had (the bug ledger). Built with the tag
// mutants, [Run] switches on one after the other and runs what should find it:
// the simulator of the cores with random schedules (tier T0), the simulator of
// whole nodes (T1), or a test of the package it is planted in. It prints one
// line per bug: what caught it, after how many tries, and the processor time
// that took. A bug that survives is a hole in the tests.
//
// Without the tag the list is not compiled in and Run says so.
//
// The package owns goroutines only while Run runs.
//
// [internal/mutants]: ../../mutants
package score

import (
	"errors"
	"fmt"
	"strings"
	"time"
)

// ErrNotBuilt: this program was built without the planted bugs. Nothing ran.
var ErrNotBuilt = errors.New("built without planted bugs; run: go run -tags mutants ./cmd/flotilla sim mutants")

// Options says what [Run] runs.
type Options struct {
	// Budget is the processor time after which a planted bug counts as not
	// caught. Zero means ten minutes.
	Budget time.Duration
	// Only holds the ids of the bugs to plant. Empty means all of them. An
	// unknown id is an error.
	Only []string
	// Workers is how many cores may be busy. Zero or below means one.
	Workers int
	// Root is the folder of the module's source, for bugs that a test of the
	// package catches. Empty means that it is looked for from the working
	// directory upwards; where it is not found, those bugs are skipped.
	Root string
}

// Row is the outcome for one planted bug.
type Row struct {
	ID     string
	Ledger string // the row of the bug ledger, or what it varies
	Title  string
	Tier   string // T0, T1, or the package whose test catches it
	// Oracle is what caught it ("S3", "L1", ...); empty: nothing did.
	Oracle string
	Where  string // profile and seed, or the test
	Detail string // what the oracle saw, one line
	Tries  int    // runs until it was caught
	Core   time.Duration
	// Skipped: it could not be run here, Detail says why. It counts neither as
	// planted nor as caught.
	Skipped bool
}

// Caught reports whether something found the bug.
func (r *Row) Caught() bool { return r.Oracle != "" }

// Summary is the outcome of [Run].
type Summary struct {
	Rows    []Row
	Planted int // without the skipped ones
	Caught  int
	Skipped int
	// Median and Worst are processor times of the bugs that were caught.
	Median, Worst time.Duration
	WorstID       string
}

// String returns the score as one line.
func (s *Summary) String() string {
	var b strings.Builder
	fmt.Fprintf(&b, "score: %d of %d planted bugs caught", s.Caught, s.Planted)
	if s.Caught > 0 {
		fmt.Fprintf(&b, "; median %s, worst %s (%s) of one core", seconds(s.Median), seconds(s.Worst), s.WorstID)
	}
	if s.Skipped > 0 {
		fmt.Fprintf(&b, "; %d skipped", s.Skipped)
	}
	var missed []string
	for i := range s.Rows {
		if r := &s.Rows[i]; !r.Caught() && !r.Skipped {
			missed = append(missed, r.ID)
		}
	}
	if len(missed) > 0 {
		fmt.Fprintf(&b, "; NOT caught: %s", strings.Join(missed, " "))
	}
	return b.String()
}

func seconds(d time.Duration) string { return fmt.Sprintf("%.2f s", d.Seconds()) }
