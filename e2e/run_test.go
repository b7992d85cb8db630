package e2e

import (
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"
)

// A cluster for developers says when it is ready, keeps its data, and ends well
// on SIGTERM.
func TestDev(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	addr := addresses(t, 1)[0] // the other nodes take the next two ports
	args := []string{"dev", "--nodes", "3", "--dir", dir, "--client", addr, "--shards", "8"}
	for round := range 2 {
		p := start(t, args...)
		p.ready(t)
		if out := p.out.String(); !strings.Contains(out, "3 nodes, 8 shards") || !strings.Contains(out, addr) {
			t.Errorf("dev says:\n%s", out)
		}
		if round == 0 {
			must(t, "kv", "put", "k", "v", "--addr", addr)
		}
		if got := must(t, "kv", "get", "k", "--addr", addr); got != "v" {
			t.Errorf("get prints %q", got)
		}
		begun := time.Now()
		if code := p.stop(t); code != 0 {
			t.Errorf("dev ended with %d:\n%s", code, p.err)
		}
		t.Logf("stopped in %.2fs", time.Since(begun).Seconds())
		if loud := p.loud(); len(loud) > 0 {
			t.Errorf("dev wrote:\n%s", strings.Join(loud, ""))
		}
	}
}

var unpleasant = regexp.MustCompile(`(?i)\b(error|warning|fail|failed|panic)`)

// The demo ends well in time, says nothing that frightens, and leaves nothing behind.
func TestDemo(t *testing.T) {
	if !*long {
		// The short form stops it early: it must clean up then, too.
		tmp := t.TempDir()
		t.Setenv("TMPDIR", tmp)
		p := start(t, "demo")
		wait(t, time.Minute, "the cluster of the demo", func() bool { return strings.Contains(p.out.String(), "cluster formed") })
		p.stop(t)
		empty(t, tmp)
		return
	}
	for range *rounds {
		tmp := t.TempDir()
		begun := time.Now()
		r := invocation{args: []string{"demo"}, env: []string{"TMPDIR=" + tmp}, limit: 90 * time.Second}.run(t)
		t.Logf("exit code %d in %.1fs\n%s%s", r.code, time.Since(begun).Seconds(), r.out, r.err)
		if word := unpleasant.FindString(r.out + r.err); r.code != 0 || word != "" {
			t.Errorf("exit code %d, and it says %q", r.code, word)
		}
		empty(t, tmp)
	}
}

func empty(t *testing.T, dir string) {
	t.Helper()
	left, err := filepath.Glob(filepath.Join(dir, "*"))
	if err != nil || len(left) > 0 {
		t.Errorf("left behind: %v, %v", left, err)
	}
}

// A bench prints one object on one line for the program that asked.
func TestBench(t *testing.T) {
	t.Parallel()
	tmp := t.TempDir()
	r := invocation{
		args: []string{"bench", "run", "A", "--shards", "8", "--clients", "32", "--keys", "2000", "--value", "100", "--duration", "1s", "-o", "json"},
		env:  []string{"TMPDIR=" + tmp},
	}.run(t)
	if r.code != 0 || strings.Count(r.out, "\n") != 1 {
		t.Fatalf("exit code %d, %d lines\n%s\n%s", r.code, strings.Count(r.out, "\n"), r.out, r.err)
	}
	empty(t, tmp)
	o := decode[map[string]any](t, r.out)
	for name, kind := range map[string]string{
		"engine": "text", "workload": "text", "machine": "text", "fsync": "bool",
		"shards": "number", "clients": "number", "value_bytes": "number", "ops": "number", "seconds": "number", "ops_per_s": "number",
		"errors": "number", "cpu_s_per_1m_ops": "number", "disk_bytes_per_op": "number", "rss_mib": "number",
	} {
		ok := false
		switch o[name].(type) {
		case string:
			ok = kind == "text"
		case float64:
			ok = kind == "number"
		case bool:
			ok = kind == "bool"
		}
		if !ok {
			t.Errorf("%s is %v, want a %s", name, o[name], kind)
		}
	}
	if o["workload"] != "A" || o["shards"] != 8.0 || o["clients"] != 32.0 || o["value_bytes"] != 100.0 || o["errors"] != 0.0 || o["fsync"] != true {
		t.Errorf("bench says %s", r.out)
	}
	latency, _ := o["latency_ms"].(map[string]any)
	for _, op := range []string{"read", "update"} {
		l, _ := latency[op].(map[string]any)
		for _, q := range []string{"p50", "p99", "p999", "max"} {
			if v, ok := l[q].(float64); !ok || v <= 0 {
				t.Errorf("latency_ms.%s.%s is %v", op, q, l[q])
			}
		}
	}
}
