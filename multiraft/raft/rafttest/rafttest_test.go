package rafttest

import (
	"flag"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

var rewrite = flag.Bool("rewrite", false, "write the scenarios' outputs anew")

// TestScenarios runs every file of testdata and compares what the cores do
// with what the file says. A line that begins with "error:" fails in any case.
func TestScenarios(t *testing.T) {
	files, err := filepath.Glob("../testdata/*.txt")
	if err != nil || len(files) < 10 {
		t.Fatalf("%d scenarios: %v", len(files), err)
	}
	for _, f := range files {
		t.Run(strings.TrimSuffix(filepath.Base(f), ".txt"), func(t *testing.T) {
			want, err := os.ReadFile(f)
			if err != nil {
				t.Fatal(err)
			}
			got := replay(t, string(want))
			if *rewrite {
				if err := os.WriteFile(f, []byte(got), 0o644); err != nil {
					t.Fatal(err)
				}
			} else if got != string(want) {
				t.Errorf("%s: the cores do something else than the file says; first difference:\n%s", f, diff(string(want), got))
			}
		})
	}
}

// replay runs the commands of a file and returns the file with the outputs of
// this run.
func replay(t *testing.T, file string) string {
	var b strings.Builder
	e := New()
	var cmd []string
	skip := false
	for line := range strings.SplitSeq(strings.TrimRight(file, "\n"), "\n") {
		switch {
		case line == "----":
			out := e.Run(strings.Join(cmd, "\n"))
			if strings.Contains(out, "error:") {
				t.Errorf("%s\n%s", strings.Join(cmd, "\n"), out)
			}
			b.WriteString("----\n" + out)
			cmd, skip = nil, true
		case line == "":
			b.WriteString("\n")
			skip = false
		case skip:
		case strings.HasPrefix(line, "#"):
			b.WriteString(line + "\n")
		default:
			b.WriteString(line + "\n")
			cmd = append(cmd, line)
		}
	}
	return b.String()
}

func diff(want, got string) string {
	w, g := strings.Split(want, "\n"), strings.Split(got, "\n")
	for i := range w {
		if i >= len(g) || w[i] != g[i] {
			lo := max(0, i-6)
			return strings.Join(w[lo:i], "\n") + "\n- " + strings.Join(w[i:min(len(w), i+5)], "\n- ") +
				"\n+ " + strings.Join(g[min(i, len(g)):min(len(g), i+5)], "\n+ ")
		}
	}
	return "the run is longer"
}
