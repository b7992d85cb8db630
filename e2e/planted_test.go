//go:build mutants

package e2e

import (
	"os"
	"os/exec"
	"path/filepath"
	"testing"
)

// A leader that commits what half of the voters have is caught on real processes:
// acknowledged writes are lost, the run ends with exit code 1, and the
// history and the nodes' logs are there.
func TestNemesisFindsPlanted(t *testing.T) {
	before := binary
	t.Cleanup(func() { binary = before })
	binary = filepath.Join(t.TempDir(), "flotilla")
	build := exec.Command("go", "build", "-tags", "mutants", "-o", binary, "github.com/flotillakv/flotilla/cmd/flotilla")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	dir := filepath.Join(t.TempDir(), "run")
	r, s := nemesis(t, "--plant", "K4", "--faults", "kill-leader,isolate-leader,kill,split", "--duration", "4m", "--round", "15s", "--dir", dir)
	if r.code != 1 || len(s.Violations) == 0 || s.Artifacts != dir {
		t.Fatalf("exit code %d, %+v\n%s", r.code, s, r.err)
	}
	t.Logf("caught in round %d: %v", s.Rounds, s.Violations)
	for _, pattern := range []string{"history-*.jsonl", "n1.log", "n3.log"} {
		found, err := filepath.Glob(filepath.Join(dir, pattern))
		if err != nil || len(found) == 0 {
			t.Errorf("no %s in %s", pattern, dir)
			continue
		}
		if i, err := os.Stat(found[0]); err != nil || i.Size() == 0 {
			t.Errorf("%s: %v", found[0], err)
		}
	}
}
