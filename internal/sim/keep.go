package sim

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime/debug"
	"strings"
	"time"
)

// KeptLines is how many of the last events the text beside a kept schedule holds.
const KeptLines = 400

// Keep shrinks the schedule of a failed run with at most runs further runs and
// for at most limit, and writes two files into the folder dir, which it makes if
// it is missing: the schedule (PROFILE-SEED-ORACLE.json, see [File]) and, with
// the ending .txt, what a reader needs: rule, seed, commit, the command that
// runs it again, the story and the last events. It returns the path of the
// schedule and the run of what was written.
func (r *Result) Keep(dir string, runs int, limit time.Duration) (path string, small *Result, err error) {
	f := r.Failure
	s := shrink(r.Schedule, f.Oracle, runs, time.Now().Add(limit))
	if small = Run(Options{Schedule: &s}); small.Failure == nil || small.Failure.Oracle != f.Oracle {
		small = r
	}
	file := File{Oracle: f.Oracle, Note: small.Failure.Detail, Schedule: small.Schedule}
	path = filepath.Join(dir, KeptName(r.Schedule.Profile, r.Schedule.Seed, f.Oracle))
	text := fmt.Sprintf("found as: %s\nruns again: flotilla sim replay %s\n\n%s\n%s\n%s\n",
		r.Replay(), path, small.Report(0), small.Story(), small.Report(KeptLines))
	return path, small, WriteKept(path, file.Encode(), text)
}

// KeptName is the name of a file that holds the schedule of a failed run.
func KeptName(profile string, seed uint64, oracle string) string {
	return fmt.Sprintf("%s-%d-%s.json", profile, seed, strings.ToLower(oracle))
}

// WriteKept writes a schedule, and the text about it beside it.
func WriteKept(path string, schedule []byte, text string) error {
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return err
	}
	if err := os.WriteFile(strings.TrimSuffix(path, ".json")+".txt", []byte(text), 0o644); err != nil {
		return err
	}
	return os.WriteFile(path, schedule, 0o644)
}

// Commit names the source that this program was built from: the revision that
// the build has recorded; else, within a copy of this repository, what git says;
// else "unknown".
func Commit() string {
	if bi, ok := debug.ReadBuildInfo(); ok {
		rev, dirty := "", ""
		for _, s := range bi.Settings {
			switch {
			case s.Key == "vcs.revision":
				rev = s.Value
			case s.Key == "vcs.modified" && s.Value == "true":
				dirty = " (changed since)"
			}
		}
		if rev != "" {
			return rev + dirty
		}
	}
	git := func(args ...string) string {
		ctx, cancel := context.WithTimeout(context.Background(), 3*time.Second)
		defer cancel()
		out, err := exec.CommandContext(ctx, "git", args...).Output()
		if err != nil {
			return ""
		}
		return strings.TrimSpace(string(out))
	}
	if strings.HasPrefix(git("show", "HEAD:go.mod"), "module github.com/flotillakv/flotilla\n") {
		if s := git("describe", "--always", "--dirty", "--abbrev=12"); s != "" {
			return s
		}
	}
	return "unknown"
}
