package e2e

import (
	"encoding/json"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// nemesisSummary is the last line of sim processes -o jsonl.
type nemesisSummary struct {
	Rounds     int            `json:"rounds"`
	Operations int            `json:"operations"`
	Reads      int            `json:"reads"`
	Writes     int            `json:"writes"`
	Histories  int            `json:"histories"`
	Reread     int            `json:"reread"`
	Starts     int            `json:"starts"`
	Faults     map[string]int `json:"faults"`
	Violations []string       `json:"violations"`
	Artifacts  string         `json:"artifacts"`
}

// nemesis runs sim processes and returns what it printed at the end.
func nemesis(t *testing.T, args ...string) (result, nemesisSummary) {
	t.Helper()
	r := invocation{args: append([]string{"sim", "processes", "-o", "jsonl"}, args...), limit: 5 * time.Minute}.run(t)
	var s nemesisSummary
	for d := json.NewDecoder(strings.NewReader(r.out)); ; {
		var line struct {
			Round int `json:"round"`
			nemesisSummary
		}
		if err := d.Decode(&line); err == io.EOF {
			return r, s
		} else if err != nil {
			t.Fatalf("%v in %q; %s", err, r.out, r.err)
		}
		if line.Round == 0 {
			s = line.nemesisSummary
		}
	}
}

// One round of real processes under faults: what clients saw has an order, every
// group of keys was checked and read again, and nothing is left behind.
func TestNemesis(t *testing.T) {
	tmp := t.TempDir()
	t.Setenv("TMPDIR", tmp)
	r, s := nemesis(t, "--rounds", "1", "--round", "12s", "--seed", "7")
	if r.code != 0 || len(s.Violations) > 0 {
		t.Fatalf("exit code %d: %v\n%s", r.code, s.Violations, r.err)
	}
	kinds := 0
	for range s.Faults {
		kinds++
	}
	if s.Rounds != 1 || s.Histories != 36 || s.Reads < 100 || s.Writes < 100 || s.Reread != 36*4 || kinds < 3 {
		t.Errorf("too little happened: %+v", s)
	}
	if left, err := filepath.Glob(filepath.Join(tmp, "flotilla-*")); err != nil || len(left) > 0 {
		t.Errorf("left behind: %v, %v", left, err)
	}
}

// A command line that cannot be right is refused before anything is started.
func TestNemesisRefuses(t *testing.T) {
	refused(t, command(t, "sim", "processes", "--nodes", "2"), 2, "2 nodes", "3 to 7")
	refused(t, command(t, "sim", "processes", "--faults", "kil"), 2, `no fault "kil"`, "kill")
	used := t.TempDir()
	if err := os.WriteFile(filepath.Join(used, "x"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	refused(t, command(t, "sim", "processes", "--dir", used), 2, used, "is not empty")
}
