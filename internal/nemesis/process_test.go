package nemesis

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// A node that is stopped before its process has written a word is stopped well;
// one that has begun must end with exit code 0; one that ends without being told
// to is noticed.
func TestStop(t *testing.T) {
	for name, c := range map[string]struct {
		script string
		begun  bool
		says   string // of stop
	}{
		"before it begins": {"exec sleep 60", false, ""},
		"in order":         {"trap 'exit 0' TERM; echo ready; while :; do sleep 0.01; done", true, ""},
		"with an error":    {"trap 'exit 3' TERM; echo ready; while :; do sleep 0.01; done", true, "exit code 3"},
		"by the signal":    {"echo ready; exec sleep 60", true, "exit code -1"},
	} {
		t.Run(name, func(t *testing.T) {
			c0 := &cluster{binary: script(t, c.script), net: newProxies(nil)}
			n := &node{log: filepath.Join(t.TempDir(), "log")}
			c0.nodes = []*node{n}
			t.Cleanup(c0.close)
			if err := c0.start(n); err != nil {
				t.Fatal(err)
			}
			if c.begun {
				<-n.current().out.ready
			}
			err := n.stop()
			if c.says == "" && err != nil || c.says != "" && (err == nil || !strings.Contains(err.Error(), c.says)) {
				t.Errorf("stop: %v", err)
			}
			if bad := c0.ended(); len(bad) > 0 {
				t.Errorf("it was told to end: %v", bad)
			}
		})
	}
	c := &cluster{binary: script(t, "exit 7"), net: newProxies(nil)}
	n := &node{log: filepath.Join(t.TempDir(), "log")}
	c.nodes = []*node{n}
	t.Cleanup(c.close)
	if err := c.start(n); err != nil {
		t.Fatal(err)
	}
	c.wg.Wait()
	if bad := c.ended(); len(bad) != 1 || !strings.Contains(bad[0], "ended by itself: exit status 7") {
		t.Errorf("a process that ends by itself: %q", bad)
	}
}

func script(t *testing.T, text string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "script")
	if err := os.WriteFile(path, []byte("#!/bin/sh\n"+text+"\n"), 0o755); err != nil {
		t.Fatal(err)
	}
	return path
}
