package score

import (
	"bytes"
	"context"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/flotillakv/flotilla/internal/mutants"
)

// TestProductBinary builds the program as users get it and shows by symbol and
// by string that nothing of the planted bugs is left in it: no switch, no list.
// Run with the tag, the test builds a program with the tag, too, and finds them
// there: it looks for the right things.
func TestProductBinary(t *testing.T) {
	symbols := []string{"internal/mutants.", "score.planted", "score.corePlants"}
	strs := []string{"E-ack-unsynced", "votes go to the longer log although terms differ"}
	tags := []string{""}
	if mutants.Enabled {
		tags = append(tags, "mutants")
	}
	for _, tag := range tags {
		bin := filepath.Join(t.TempDir(), "flotilla")
		cmd := exec.Command("go", "build", "-trimpath", "-buildvcs=false", "-tags", tag, "-o", bin, "../../../cmd/flotilla")
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Fatalf("build: %v\n%s", err, out)
		}
		nm, err := exec.Command("go", "tool", "nm", bin).Output()
		if err != nil {
			t.Fatal(err)
		}
		data, err := os.ReadFile(bin)
		if err != nil {
			t.Fatal(err)
		}
		if !strings.Contains(string(nm), "multiraft/raft.(*Core).Step") {
			t.Fatal("the program has no core in it")
		}
		want := tag != ""
		if got := strings.Contains(string(nm), symbols[0]); got != want {
			t.Errorf("tags %q: symbols of %q: %v", tag, symbols[0], got)
		}
		for _, s := range symbols[1:] {
			if !want && strings.Contains(string(nm), s) {
				t.Errorf("tags %q: symbol %q", tag, s)
			}
		}
		if got := bytes.Contains(data, []byte(strs[0])); got != want {
			t.Errorf("tags %q: string %q: %v", tag, strs[0], got)
		}
		if !want && bytes.Contains(data, []byte(strs[1])) {
			t.Errorf("tags %q: string %q", tag, strs[1])
		}
	}
}

// TestWithoutTag shows what a build without planted bugs answers.
func TestWithoutTag(t *testing.T) {
	if mutants.Enabled {
		return
	}
	var b bytes.Buffer
	if _, err := Run(context.Background(), &b, Options{}); !errors.Is(err, ErrNotBuilt) || b.Len() > 0 {
		t.Fatalf("%v, printed %q", err, b.String())
	}
}
