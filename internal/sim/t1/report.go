package t1

import (
	"fmt"
	"path/filepath"
	"strings"
	"time"

	"github.com/flotillakv/flotilla/internal/sim"
)

// Story returns what a run was and reached; it is the same for equal runs.
func (r *Result) Story() string {
	s := fmt.Sprintf("seed %d, profile %s: %s\n%s\n", r.Schedule.Seed, r.Schedule.Profile, r.Summary(), strings.TrimSpace(r.Counts.String()))
	if r.Failure == nil {
		s += "no rule was violated\n"
	}
	return s
}

// Replay returns the command that runs this run again. A run of a given schedule
// is run again by its file; see [File].
func (r *Result) Replay() string {
	if r.opts.Schedule != nil {
		return "flotilla sim replay FILE (the run had a schedule of its own)"
	}
	s := fmt.Sprintf("flotilla sim run --tier t1 --seed %d --profile %s", r.Schedule.Seed, r.Schedule.Profile)
	if r.opts.Duration != 0 {
		s += fmt.Sprintf(" --duration %v", r.opts.Duration)
	}
	return s
}

// Report returns what a reader of a failure needs: what rule was violated and
// how, by which seed of which program, the last events, and how to see it again.
// It is empty if the run passed.
func (r *Result) Report(lines int) string {
	f := r.Failure
	if f == nil {
		return ""
	}
	var b strings.Builder
	fmt.Fprintf(&b, "FAILED at %v of virtual time: %s\n", f.At, sim.OracleWords(f.Oracle))
	fmt.Fprintf(&b, "  %s\n", strings.ReplaceAll(f.Detail, "\n", "\n  "))
	fmt.Fprintf(&b, "seed %d, profile %s, commit %s\nreplay: %s\n", r.Schedule.Seed, r.Schedule.Profile, sim.Commit(), r.Replay())
	if lines > 0 && f.Tail != "" {
		tail := strings.SplitAfter(strings.TrimRight(f.Tail, "\n"), "\n")
		tail = tail[max(0, len(tail)-lines):]
		fmt.Fprintf(&b, "the last %d events (time, node, event):\n%s\n", len(tail), strings.Join(tail, ""))
	}
	return b.String()
}

// Verbose runs a failed run once more, for a trace that can be read, and returns
// that run if it fails in the same way, else r.
func (r *Result) Verbose() *Result {
	o := r.opts
	if o.Verbose || r.Failure == nil || r.Failure.Oracle == "replay" {
		return r
	}
	o.Verbose, o.Cache, o.Coverage, o.Trace = true, nil, nil, nil
	if again := Run(o); again.Failure != nil && again.Failure.Oracle == r.Failure.Oracle {
		again.opts = r.opts
		return again
	}
	return r
}

// Keep shrinks the schedule of a failed run with at most runs further runs and
// for at most limit, and writes two files into the folder dir, which it makes if
// it is missing: the schedule (PROFILE-SEED-ORACLE.json, see [File]) and, with
// the ending .txt, what a reader needs. It returns the path of the schedule and
// the run of what was written. Runs of a user's own machine are not kept.
func (r *Result) Keep(dir string, runs int, limit time.Duration) (path string, small *Result, err error) {
	f := r.Failure
	if r.opts.Custom != nil {
		return "", r, nil
	}
	s := r.Schedule
	if f.Oracle != "replay" {
		s = shrink(r.Schedule, f.Oracle, runs, time.Now().Add(limit))
	}
	if small = Run(Options{Schedule: &s, Verbose: true}); small.Failure == nil || small.Failure.Oracle != f.Oracle {
		small = r
	}
	path = filepath.Join(dir, sim.KeptName(r.Schedule.Profile, r.Schedule.Seed, f.Oracle))
	text := fmt.Sprintf("found as: %s\nruns again: flotilla sim replay %s\n\n%s\n%s", r.Replay(), path, small.Story(), small.Report(4*sim.KeptLines))
	return path, small, sim.WriteKept(path, File{Oracle: f.Oracle, Note: small.Failure.Detail, Schedule: small.Schedule}.Encode(), text)
}
