//go:build mutants

package score

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"time"

	"github.com/flotillakv/flotilla/internal/mutants"
)

// tested is a bug that a test of the package it is planted in catches: the
// subtest named by the id switches the bug on and passes only if it was found.
// The test's log should say "found: ..." with what saw it.
func tested(id, ledger, title, pkg, test, oracle string) plant {
	return plant{id: id, ledger: ledger, title: title, tier: pkg, test: "^" + test + "$", alone: true,
		try: func(ctx context.Context, o *Options, n int) (*catch, error) {
			if n > 0 {
				return nil, errDone
			}
			bin, err := testBinary(ctx, o.Root, pkg)
			if err != nil {
				return nil, err
			}
			cmd := exec.CommandContext(ctx, bin, "-test.v", "-test.timeout", o.Budget.String(),
				"-test.run", "^"+test+"$/^"+regexp.QuoteMeta(id)+"$")
			cmd.Dir = filepath.Join(o.Root, filepath.FromSlash(pkg))
			out, err := cmd.CombinedOutput()
			text := string(out)
			switch {
			case err != nil:
				return nil, fmt.Errorf("%s/%s: %w: %s", test, id, err, lastLines(text))
			case !strings.Contains(text, "--- PASS: "+test+"/"+id):
				return nil, fmt.Errorf("%s has no subtest %s", test, id)
			}
			c := &catch{oracle: oracle, where: test, core: cmd.ProcessState.UserTime() + cmd.ProcessState.SystemTime()}
			if _, after, ok := strings.Cut(text, "found: "); ok {
				c.detail, _, _ = strings.Cut(after, "\n")
			}
			return c, nil
		}}
}

// failing is a bug that ordinary tests of a package catch: those that match
// tests pass, and with the bug switched on one of them fails.
func failing(id, ledger, title, pkg, tests, oracle string) plant {
	return plant{id: id, ledger: ledger, title: title, tier: pkg, test: tests, alone: true,
		try: func(ctx context.Context, o *Options, n int) (*catch, error) {
			if n > 0 {
				return nil, errDone
			}
			bin, err := testBinary(ctx, o.Root, pkg)
			if err != nil {
				return nil, err
			}
			run := func(plant string) (string, time.Duration, error) {
				cmd := exec.CommandContext(ctx, bin, "-test.v", "-test.failfast", "-test.timeout", o.Budget.String(), "-test.run", tests)
				cmd.Dir = filepath.Join(o.Root, filepath.FromSlash(pkg))
				cmd.Env = append(os.Environ(), mutants.EnvPlant+"="+plant)
				out, err := cmd.CombinedOutput()
				return string(out), cmd.ProcessState.UserTime() + cmd.ProcessState.SystemTime(), err
			}
			if out, _, err := run(""); err != nil || !strings.Contains(out, "--- PASS: ") {
				return nil, fmt.Errorf("%s does not pass without the bug: %w: %s", tests, err, lastLines(out))
			}
			out, core, err := run(id)
			if err == nil {
				return nil, errDone
			}
			c := &catch{oracle: oracle, where: strings.Trim(tests, "^$"), core: core, detail: lastLines(out)}
			for _, sign := range []string{"--- FAIL: ", "panic: "} {
				if _, after, ok := strings.Cut(out, sign); ok {
					c.detail = lastLines(after[:min(len(after), 400)])
					return c, nil
				}
			}
			return nil, fmt.Errorf("%s: %w: %s", tests, err, lastLines(out))
		}}
}

func lastLines(s string) string {
	lines := strings.Split(strings.TrimSpace(s), "\n")
	return strings.Join(lines[max(0, len(lines)-3):], " | ")
}

// binaries are the test programs built so far, one per package.
var binaries struct {
	sync.Mutex
	dir  string
	path map[string]string
	err  map[string]error
}

// testBinary builds the test program of a package, once.
func testBinary(ctx context.Context, root, pkg string) (string, error) {
	if root == "" {
		return "", fmt.Errorf("%w: the source of the module is not here", errSkip)
	}
	b := &binaries
	b.Lock()
	defer b.Unlock()
	if b.dir == "" {
		dir, err := os.MkdirTemp("", "flotilla-score-")
		if err != nil {
			return "", err
		}
		b.dir, b.path, b.err = dir, map[string]string{}, map[string]error{}
	}
	if p, ok := b.path[pkg]; ok {
		return p, b.err[pkg]
	}
	bin := filepath.Join(b.dir, strings.ReplaceAll(pkg, "/", "_")+".test")
	cmd := exec.CommandContext(ctx, "go", "test", "-tags", "mutants", "-c", "-o", bin, "./"+pkg)
	cmd.Dir = root
	if out, err := cmd.CombinedOutput(); err != nil {
		b.err[pkg] = fmt.Errorf("building the tests of %s: %w: %s", pkg, err, lastLines(string(out)))
	}
	b.path[pkg] = bin
	return bin, b.err[pkg]
}

// closeTests removes the test programs.
func closeTests() {
	b := &binaries
	b.Lock()
	defer b.Unlock()
	if b.dir != "" {
		_ = os.RemoveAll(b.dir)
		b.dir = ""
	}
}

// findRoot returns the folder with the module's go.mod, or "".
func findRoot() string {
	dir, err := os.Getwd()
	if err != nil {
		return ""
	}
	for {
		if data, err := os.ReadFile(filepath.Join(dir, "go.mod")); err == nil && strings.HasPrefix(string(data), "module github.com/flotillakv/flotilla\n") {
			return dir
		}
		up := filepath.Dir(dir)
		if up == dir {
			return ""
		}
		dir = up
	}
}
