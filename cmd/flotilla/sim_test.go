package main

import (
	"bytes"
	"context"
	"encoding/json"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/flotillakv/flotilla/internal/mutants"
	"github.com/flotillakv/flotilla/internal/sim"
	"github.com/flotillakv/flotilla/internal/sim/t1"
)

// call runs a command line in this process.
func call(args ...string) (code int, out, errOut string) {
	var o, e bytes.Buffer
	a := newApp()
	a.out, a.errOut, a.outTTY, a.errTTY = &o, &e, false, false
	a.env = func(string) (string, bool) { return "", false }
	code = run(context.Background(), a, args)
	return code, o.String(), e.String()
}

var traceLine = regexp.MustCompile(`(?m)^trace [0-9a-f]{16}$`)

// A run tells the same story and the same trace each time, in both tiers and
// for many seeds whatever the number of workers; another seed has another trace.
func TestSimRunRepeats(t *testing.T) {
	seen := map[string]string{}
	for _, args := range []string{
		"--seed 42",
		"--seed 43",
		"--seed 42 --profile reads --duration 2s --nodes 3",
		"--tier t1 --seed 42 --duration 1s",
		"--seeds 5 --profile tiny --duration 1s",
	} {
		line := append([]string{"sim", "run", "--quiet"}, strings.Fields(args)...)
		many := strings.Contains(args, "--seeds")
		if many {
			line = append(line, "--workers", "1")
		}
		code, out, errOut := call(line...)
		if code != 0 {
			t.Fatalf("%s: exit code %d\n%s%s", args, code, out, errOut)
		}
		traces := traceLine.FindAllString(out, -1)
		if len(traces) != 1 || !strings.Contains(out, "no rule was violated") {
			t.Fatalf("%s: %d trace lines in\n%s", args, len(traces), out)
		}
		if other := seen[traces[0]]; other != "" {
			t.Errorf("%s and %s have the same trace", args, other)
		}
		seen[traces[0]] = args
		if many {
			line[len(line)-1] = "3"
		}
		_, again, _ := call(line...)
		if many { // the sum of many runs tells how long they took
			again, out = traceLine.FindString(again), traces[0]
		}
		if again != out {
			t.Errorf("%s: the second run differs:\n%s\n%s", args, out, again)
		}
	}
}

// What cannot be right is refused with exit code 2 and a hint.
func TestSimRefuses(t *testing.T) {
	for args, says := range map[string]string{
		"run --tier t2":                    "must be t0 or t1",
		"run --profile swram":              `did you mean "swarm"`,
		"run --nodes 9":                    "must be 2 to 8",
		"run --tier t1 --nodes 3":          "--nodes goes with --tier t0",
		"run --seeds 0":                    "1 or more",
		"run --seeds 2 --trace x":          "goes with one seed",
		"run --duration -1s":               "between 0 and 720h",
		"replay nosuch.json":               "no such file",
		"processes --nodes 2":              "must be 3 to 7",
		"processes --faults loss":          "needs --netns",
		"processes --round 1h":             "1s to 5m",
		"replay":                           "takes FILE",
		"processes --faults kil --nodes 3": `no fault "kil"`,
	} {
		code, out, errOut := call(append([]string{"sim"}, strings.Fields(args)...)...)
		if code != exitUsage || out != "" || !strings.Contains(errOut, says) {
			t.Errorf("sim %s: exit code %d, %q, %q", args, code, out, errOut)
		}
	}
	if code, _, errOut := call("sim", "mutants"); !mutants.Enabled && (code != exitUsage ||
		!strings.Contains(errOut, "built without planted bugs; run: go run -tags mutants ./cmd/flotilla sim mutants")) {
		t.Errorf("sim mutants: exit code %d, %q", code, errOut)
	}
}

// A schedule file is run and told like any other; one that is damaged is refused.
func TestSimReplay(t *testing.T) {
	s := sim.Draw(7, "swarm", 0, 0)
	path := filepath.Join(t.TempDir(), "one.json")
	write := func(b []byte) {
		t.Helper()
		if err := os.WriteFile(path, b, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	write(sim.File{Note: "why it is kept", Schedule: s}.Encode())
	code, out, errOut := call("sim", "replay", path)
	if code != 0 || !strings.Contains(errOut, "why it is kept") {
		t.Fatalf("exit code %d, %q", code, errOut)
	}
	if _, direct, _ := call("sim", "run", "--seed", "7"); traceLine.FindString(out) != traceLine.FindString(direct) {
		t.Errorf("the file and its seed differ: %s, %s", traceLine.FindString(out), traceLine.FindString(direct))
	}
	whole := t1.Draw(7, "crash", 300*time.Millisecond)
	write(t1.File{Note: "of whole nodes", Schedule: whole}.Encode())
	code, out, errOut = call("sim", "replay", path)
	if code != 0 || !strings.Contains(errOut, "of whole nodes") {
		t.Fatalf("exit code %d, %q", code, errOut)
	}
	if _, direct, _ := call("sim", "run", "--tier", "t1", "--seed", "7", "--profile", "crash", "--duration", "300ms"); traceLine.FindString(out) != traceLine.FindString(direct) {
		t.Errorf("the file and its seed differ: %s, %s", traceLine.FindString(out), traceLine.FindString(direct))
	}
	write([]byte(`{"version":1,"schedul":{}}`))
	if code, _, errOut := call("sim", "replay", path); code != exitUsage || !strings.Contains(errOut, path) {
		t.Errorf("a damaged file: exit code %d, %q", code, errOut)
	}
}

// A violation ends with exit code 1, the rule in words, the trace, the command
// that repeats it, and a shrunk schedule that shows it.
func TestSimViolation(t *testing.T) {
	f := simFlags{tier: "t0", shrink: 0, out: t.TempDir(), tail: 3}
	r := sim.Run(sim.Options{Seed: 7})
	r.Failure = &sim.Failure{Oracle: "S3", Detail: "seen"}
	o := outcomeT0(r, f.tail)
	for _, output := range []string{"table", "json"} {
		var out, errOut bytes.Buffer
		a := newApp()
		a.out, a.errOut, a.outTTY, a.output = &out, &errOut, false, output
		if code := a.report(a.simTell(&f, o, true)); code != exitFailed {
			t.Errorf("exit code %d", code)
		}
		if !strings.Contains(errOut.String(), "violates S3 (a leader has every entry") || !strings.Contains(errOut.String(), o.Replay) {
			t.Errorf("%s: %s", output, errOut.String())
		}
		file := filepath.Join(f.out, "swarm-7-s3.json")
		if output == "json" {
			var got simOutcome
			if err := json.Unmarshal(out.Bytes(), &got); err != nil || got.Oracle != "S3" || got.Schedule != file {
				t.Errorf("%v in %s", err, out.String())
			}
		} else if !strings.Contains(out.String(), "FAILED at") || !strings.Contains(out.String(), "commit ") || !strings.Contains(out.String(), "flotilla sim replay "+file) || traceLine.FindString(out.String()) == "" {
			t.Errorf("printed:\n%s", out.String())
		}
		if kept, err := sim.ReadFile(file); err != nil || kept.Oracle != "S3" {
			t.Errorf("%v, %+v", err, kept.Oracle)
		}
		if text, err := os.ReadFile(strings.TrimSuffix(file, ".json") + ".txt"); err != nil || !strings.Contains(string(text), "flotilla sim replay "+file) {
			t.Errorf("%v, %s", err, text)
		}
	}
}

// The trace of a run is a line of JSON per event, the same each time, and ends
// with the hash of the line "trace"; coverage is printed as a table and as data.
func TestSimTraceAndCoverage(t *testing.T) {
	for _, tier := range []string{"t0", "t1"} {
		file := filepath.Join(t.TempDir(), "run.ndjson")
		args := []string{"sim", "run", "--tier", tier, "--seed", "5", "--duration", "500ms"}
		code, out, errOut := call(append(args, "--trace", file, "--coverage")...)
		if code != 0 || !strings.Contains(out, "| state |") {
			t.Fatalf("exit code %d, %s%s", code, out, errOut)
		}
		data, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		if _, direct, _ := call(append(args, "--trace", "-")...); direct != string(data) {
			t.Errorf("%s: two traces of a run differ", tier)
		}
		lines := strings.Split(strings.TrimSpace(string(data)), "\n")
		var last struct{ Event, Hash string }
		if err := json.Unmarshal([]byte(lines[len(lines)-1]), &last); err != nil || last.Event != "end" || "trace "+last.Hash != traceLine.FindString(out) {
			t.Errorf("%s: the trace ends with %+v, %v", tier, last, err)
		}
		_, out, _ = call(append(args, "--coverage", "-o", "json")...)
		var got simOutcome
		if err := json.Unmarshal([]byte(out), &got); err != nil || len(got.Coverage) == 0 {
			t.Errorf("%s: %v in %.300s", tier, err, out)
		}
	}
}
