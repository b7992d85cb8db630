package sim

import (
	"path/filepath"
	"testing"
)

// TestRegress runs every schedule that once found something: it must pass. (That
// each still finds its planted bug is shown with the build tag mutants, in
// package score.)
func TestRegress(t *testing.T) {
	files, err := filepath.Glob("testdata/regress/*.json")
	if err != nil {
		t.Fatal(err)
	}
	if len(files) < 10 {
		t.Fatalf("only %d schedules found", len(files))
	}
	for _, path := range files {
		f, err := ReadFile(path)
		if err != nil {
			t.Error(err)
			continue
		}
		if r := Run(Options{Schedule: &f.Schedule}); r.Failure != nil {
			t.Errorf("%s:\n%s", path, r.Report(40))
		}
	}
}
