//go:build mutants

package score

import (
	"context"
	"flag"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/flotillakv/flotilla/internal/mutants"
	"github.com/flotillakv/flotilla/internal/sim"
)

var (
	flagBudget  = flag.Duration("score.budget", 0, "processor time per planted bug; zero: a sample of the ones that are found fast")
	flagOnly    = flag.String("score.only", "", "ids of planted bugs, separated by commas")
	flagWorkers = flag.Int("score.workers", 1, "cores in use")
)

// TestScore plants bugs one after the other and shows that each is found. With
// no flags it is a sample: the ones that the simulator of the cores finds
// within few runs.
func TestScore(t *testing.T) {
	o := Options{Budget: *flagBudget, Workers: *flagWorkers}
	if *flagOnly != "" {
		o.Only = strings.Split(*flagOnly, ",")
	} else if *flagBudget == 0 {
		o.Only = sample()
	}
	if o.Budget == 0 {
		o.Budget = time.Minute
	}
	var b strings.Builder
	s, err := Run(context.Background(), &b, o)
	t.Log("\n" + b.String())
	if err != nil {
		t.Fatal(err)
	}
	if s.Caught < len(o.Only) || s.Median > 60*time.Second {
		t.Fatalf("%s", s.String())
	}
}

// sample returns the ids of bugs that are found within a second or so.
func sample() []string {
	slow := map[string]bool{"A3": true, "A5c": true, "A10": true, "A19": true, "A19b": true, "B2": true, "B6": true, "B22": true, "K3": true, "K9": true, "K18": true}
	var ids []string
	for _, p := range corePlants() {
		if !slow[p.id] {
			ids = append(ids, p.id)
		}
	}
	return ids
}

// TestSoundWithoutBug shows that with the build tag and nothing switched on the
// code is sound: what is found is found because of the bug.
func TestSoundWithoutBug(t *testing.T) {
	mutants.Set("")
	for _, p := range sim.Profiles {
		if r := sim.Run(sim.Options{Seed: 1, Profile: p}); r.Failure != nil {
			t.Fatalf("profile %s: %v", p, r.Failure)
		}
	}
}

// TestRegistry compares the list with the code: every planted bug is listed
// once, and every listed one is planted.
func TestRegistry(t *testing.T) {
	ids := IDs()
	slices.Sort(ids)
	for i, id := range ids {
		if i > 0 && ids[i-1] == id {
			t.Errorf("%s is listed twice", id)
		}
	}
	root := findRoot()
	if root == "" {
		t.Fatal("the source is not here")
	}
	switches := regexp.MustCompile(`mutants\.On\("([^"]+)"\)`)
	inCode := map[string]string{}
	err := filepath.WalkDir(root, func(path string, d os.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if d.IsDir() && path != root && (strings.HasPrefix(d.Name(), ".") || d.Name() == "mutants" || d.Name() == "testdata") {
			return filepath.SkipDir
		}
		if !strings.HasSuffix(path, ".go") || strings.HasSuffix(path, "_test.go") {
			return nil
		}
		data, err := os.ReadFile(path)
		for _, m := range switches.FindAllStringSubmatch(string(data), -1) {
			inCode[m[1]] = path
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	for id, path := range inCode {
		if _, ok := slices.BinarySearch(ids, id); !ok {
			t.Errorf("%s is planted in %s and not listed", id, strings.TrimPrefix(path, root))
		}
	}
	for _, id := range ids {
		if inCode[id] == "" {
			t.Errorf("%s is listed and not planted", id)
		}
	}
}

// TestFinders shows that the tests which are to find planted bugs are there.
func TestFinders(t *testing.T) {
	root := findRoot()
	funcs := regexp.MustCompile(`(?m)^func (Test\w+)\(\w+ \*testing\.T\)`)
	names := map[string][]string{}
	for _, p := range planted() {
		if p.test == "" {
			continue
		}
		if names[p.tier] == nil {
			files, err := filepath.Glob(filepath.Join(root, filepath.FromSlash(p.tier), "*_test.go"))
			if err != nil {
				t.Fatal(err)
			}
			for _, f := range files {
				data, err := os.ReadFile(f)
				if err != nil {
					t.Fatal(err)
				}
				for _, m := range funcs.FindAllStringSubmatch(string(data), -1) {
					names[p.tier] = append(names[p.tier], m[1])
				}
			}
		}
		if want := regexp.MustCompile(p.test); !slices.ContainsFunc(names[p.tier], want.MatchString) {
			t.Errorf("%s: there is no test %s in %s", p.id, p.test, p.tier)
		}
	}
}

// TestSurvivor shows that a bug nobody finds is reported as such.
func TestSurvivor(t *testing.T) {
	p := plant{id: "none", tier: "T0", try: corePlants()[0].try}
	r := hunt(context.Background(), &p, &Options{Budget: 200 * time.Millisecond, Workers: 2})
	var s Summary
	s.add(r)
	if r.Caught() || r.Tries == 0 || !strings.Contains(s.String(), "NOT caught: none") {
		t.Fatalf("%+v; %s", r, s.String())
	}
}
