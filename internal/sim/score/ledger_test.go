//go:build mutants

package score

import (
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
)

var flagLedger = flag.Bool("score.ledger", false, "rewrite what docs/testing-ledger.md says of planted bugs")

// TestLedger holds docs/testing-ledger.md against the list: each row names the
// bugs that are planted for it, or says why there is none.
func TestLedger(t *testing.T) {
	path := filepath.Join(findRoot(), "docs", "testing-ledger.md")
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	by := map[string][]string{}
	for _, p := range planted() {
		for _, row := range strings.Split(p.ledger, ", ") {
			by[row] = append(by[row], fmt.Sprintf("`%s` (%s)", p.id, p.tier))
		}
	}
	row := regexp.MustCompile(`^\| ([A-H]\d+|rule [A-E]\d) \|`)
	seen := map[string]bool{}
	rows, some := 0, 0
	lines := strings.Split(string(data), "\n")
	for i, line := range lines {
		m := row.FindStringSubmatch(line)
		if m == nil {
			continue
		}
		name := strings.Replace(m[1], "rule", "B0", 1)
		if seen[name] {
			t.Errorf("row %s is there twice", name)
		}
		seen[name] = true
		rule := name != m[1]
		if !rule {
			rows++
		}
		if len(by[name]) == 0 {
			if !strings.Contains(line, "| not planted: ") {
				t.Errorf("row %s: nothing is planted for it, and no reason is given", name)
			}
			continue
		}
		if !rule {
			some++
		}
		head := strings.TrimSuffix(line, " |")
		lines[i] = head[:strings.LastIndex(head, " | ")] + " | " + strings.Join(by[name], ", ") + " |"
	}
	for name := range by {
		if !seen[name] && name != "core" && name != "found here" {
			t.Errorf("bugs are planted for %s, which is no row", name)
		}
	}
	text := strings.Join(lines, "\n")
	numbers := regexp.MustCompile(`(?s)Of \d+ rows \d+ are planted, with \d+ planted bugs in all; \d+ are not, for a reason\s+that is given\.`)
	if !numbers.MatchString(text) {
		t.Fatal("the sentence with the numbers is not there")
	}
	text = numbers.ReplaceAllString(text, fmt.Sprintf("Of %d rows %d are planted, with %d planted bugs in all; %d are not, for a reason\nthat is given.", rows, some, len(planted()), rows-some))
	if rows != 133 {
		t.Errorf("%d rows", rows)
	}
	if text == string(data) {
		return
	}
	if *flagLedger {
		if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
		return
	}
	old := strings.Split(string(data), "\n")
	for i, line := range strings.Split(text, "\n") {
		if i >= len(old) || line != old[i] {
			t.Errorf("%s: line %d should be\n%s\n(go test -tags mutants ./internal/sim/score -run TestLedger -score.ledger)", path, i+1, line)
		}
	}
}

// TestNamedScenarios holds the table of the binding rules in docs/testing.md
// against the code: the scenarios it names exist.
func TestNamedScenarios(t *testing.T) {
	root := findRoot()
	data, err := os.ReadFile(filepath.Join(root, "docs", "testing.md"))
	if err != nil {
		t.Fatal(err)
	}
	named := regexp.MustCompile("`(TestB0[_/][A-Za-z0-9-]+)` \\(([a-z0-9/]+)\\)").FindAllStringSubmatch(string(data), -1)
	if len(named) < 20 {
		t.Fatalf("%d scenarios are named", len(named))
	}
	ids := IDs()
	for _, m := range named {
		test, sub, _ := strings.Cut(m[1], "/")
		files, err := filepath.Glob(filepath.Join(root, filepath.FromSlash(m[2]), "*_test.go"))
		if err != nil || len(files) == 0 {
			t.Errorf("%s: no tests in %s", m[1], m[2])
		}
		if !slices.ContainsFunc(files, func(f string) bool {
			b, err := os.ReadFile(f)
			return err == nil && strings.Contains(string(b), "func "+test+"(t *testing.T)") && (sub == "" || strings.Contains(string(b), `"`+sub+`"`))
		}) {
			t.Errorf("%s is not in %s", m[1], m[2])
		}
		if sub != "" && !slices.Contains(ids, sub) {
			t.Errorf("%s: no planted bug %s", m[1], sub)
		}
	}
}
