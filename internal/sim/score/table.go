//go:build mutants

package score

import (
	"fmt"
	"io"
	"slices"
	"time"
)

func (s *Summary) add(r Row) {
	s.Rows = append(s.Rows, r)
	if r.Skipped {
		s.Skipped++
		return
	}
	s.Planted++
	if !r.Caught() {
		return
	}
	s.Caught++
	if r.Core >= s.Worst {
		s.Worst, s.WorstID = r.Core, r.ID
	}
	var t []time.Duration
	for i := range s.Rows {
		if s.Rows[i].Caught() {
			t = append(t, s.Rows[i].Core)
		}
	}
	slices.Sort(t)
	s.Median = t[len(t)/2]
}

// header and line print the table.
func header(w io.Writer) {
	fmt.Fprintf(w, "%-20s %-7s %-10s %-22s %6s %9s  %s\n", "id", "oracle", "tier", "found by", "tries", "core", "bug")
}

func (r *Row) line(w io.Writer) {
	oracle := r.Oracle
	switch {
	case r.Skipped:
		oracle = "skip"
	case !r.Caught():
		oracle = "NONE"
	}
	fmt.Fprintf(w, "%-20s %-7s %-10s %-22s %6d %9s  %s\n", r.ID, oracle, r.Tier, r.Where, r.Tries, seconds(r.Core), r.Title)
	if r.Skipped || !r.Caught() && r.Detail != "" {
		fmt.Fprintf(w, "%-20s %s\n", "", r.Detail)
	}
}
