package main

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/flotillakv/flotilla"
	"github.com/flotillakv/flotilla/bench/logbound"
)

// background runs a command that stays until its context ends, and returns its
// first line that begins with "ready".
func background(t *testing.T, args ...string) (ready string, stop func() int) {
	t.Helper()
	a := newApp()
	a.env = func(string) (string, bool) { return "", false }
	var notes bytes.Buffer
	r, w := io.Pipe()
	a.out, a.errOut = w, &notes
	ctx, cancel := context.WithCancel(t.Context())
	code := make(chan int, 1)
	go func() {
		code <- run(ctx, a, args)
		w.Close()
	}()
	lines := bufio.NewScanner(r)
	for lines.Scan() {
		if ready = lines.Text(); strings.HasPrefix(ready, "ready") {
			break
		}
	}
	go io.Copy(io.Discard, r)
	stop = func() int { cancel(); return <-code }
	if !strings.HasPrefix(ready, "ready") {
		c := stop()
		t.Fatalf("flotilla %s ended with %d before it was ready:\n%s", strings.Join(args, " "), c, notes.String())
	}
	return ready, stop
}

// real runs a command against a real cluster.
func real(t *testing.T, args ...string) (out, errOut string, code int) {
	t.Helper()
	a := newApp()
	var o, e bytes.Buffer
	a.out, a.errOut, a.outTTY, a.errTTY = &o, &e, false, false
	a.env = func(string) (string, bool) { return "", false }
	ctx, cancel := context.WithTimeout(t.Context(), 3*time.Minute) // beyond that it hangs
	defer cancel()
	code = run(ctx, a, args)
	return o.String(), e.String(), code
}

// A development cluster of three nodes takes a write at one node, gives it back
// at another, and stops with exit code 0.
func TestDevCluster(t *testing.T) {
	ready, stop := background(t, "dev", "--nodes", "3", "--shards", "4", "--dir", t.TempDir(), "--client", "127.0.0.1:0", "--quiet", "--log-level", "error")
	_, list, _ := strings.Cut(ready, "clients at ")
	list, _, _ = strings.Cut(list, ", data")
	addrs := strings.Split(list, ",")
	if len(addrs) != 3 || !strings.Contains(ready, "4 shards") {
		t.Fatalf("ready line %q", ready)
	}
	if _, e, code := real(t, "kv", "put", "user/1", "ada", "--addr", addrs[0]); code != 0 {
		t.Fatalf("put: exit code %d: %s", code, e)
	}
	if out, e, code := real(t, "kv", "get", "user/1", "--addr", addrs[2]); code != 0 || out != "ada" {
		t.Fatalf("get printed %q, exit code %d: %s", out, code, e)
	}
	for _, how := range []string{"linearizable", "no-clock", "follower"} {
		if out, e, code := real(t, "kv", "get", "user/1", "--addr", addrs[1], "--consistency", how); code != 0 || out != "ada" {
			t.Errorf("get --consistency %s printed %q, exit code %d: %s", how, out, code, e)
		}
	}
	if out, e, code := real(t, "kv", "scan", "--addr", addrs[1], "--consistency", "local"); code != 0 || out != "" && out != "user/1\tada\n" {
		t.Errorf("scan --consistency local printed %q, exit code %d: %s", out, code, e)
	}
	if out, e, code := real(t, "cluster", "status", "--addr", addrs[1], "-o", "json"); code != 0 || !strings.Contains(out, `"state":"HEALTHY"`) {
		t.Errorf("status printed %s, exit code %d: %s", out, code, e)
	}
	if _, e, code := real(t, "kv", "get", "user/1", "--addr", addrs[0], "--cluster-id", strings.Repeat("0", 31)+"1", "--timeout", "2s"); code != exitConflict || !strings.Contains(e, "another cluster") {
		t.Errorf("another cluster's id: exit code %d: %s", code, e)
	}
	if code := stop(); code != 0 {
		t.Fatalf("dev ended with %d", code)
	}
	if _, e, code := real(t, "kv", "get", "user/1", "--addr", addrs[0], "--timeout", "500ms"); code != exitUnreachable {
		t.Errorf("get from a stopped node: exit code %d: %s", code, e)
	}
}

// serve with a directory alone is a durable store of one node; what it cannot
// open it names.
func TestServeOneNode(t *testing.T) {
	dir := t.TempDir()
	_, stop := background(t, "serve", "--dir", dir, "--client-listen", "127.0.0.1:0", "--quiet", "--log-level", "error")
	if _, e, code := real(t, "serve", "--dir", dir, "--client-listen", "127.0.0.1:0"); code != exitConflict || !strings.Contains(e, dir) {
		t.Errorf("a directory in use: exit code %d: %s", code, e)
	}
	if code := stop(); code != 0 {
		t.Fatalf("serve ended with %d", code)
	}
	if _, e, code := real(t, "serve", "--dir", dir, "--cluster-id", strings.Repeat("0", 31)+"1", "--client-listen", "127.0.0.1:0"); code != exitConflict || !strings.Contains(e, "other cluster") {
		t.Errorf("another cluster's directory: exit code %d: %s", code, e)
	}
}

// bench run on an embedded cluster prints exactly one JSON object on one line,
// without an error, and removes its data.
func TestBenchEmbedded(t *testing.T) {
	dir := t.TempDir()
	out, e, code := real(t, "bench", "run", "a", "--dir", dir, "--shards", "4", "--keys", "500", "--clients", "8", "--duration", "300ms", "--warmup", "50ms", "-o", "json")
	if code != 0 {
		t.Fatalf("exit code %d: %s", code, e)
	}
	if strings.Count(out, "\n") != 1 {
		t.Errorf("standard output has %d lines", strings.Count(out, "\n"))
	}
	var res struct {
		Engine, Workload             string
		Shards, Clients, Ops, Errors int
		ValueBytes                   int     `json:"value_bytes"`
		CPU                          float64 `json:"cpu_s_per_1m_ops"`
	}
	if err := json.Unmarshal([]byte(out), &res); err != nil {
		t.Fatal(err)
	}
	if res.Engine != "flotilla" || res.Workload != "A" || res.Shards != 4 || res.Clients != 8 || res.Ops < 1 || res.Errors != 0 || res.ValueBytes != 128 || res.CPU <= 0 {
		t.Errorf("%s", out)
	}
	if left, err := os.ReadDir(dir); err != nil || len(left) > 0 {
		t.Errorf("left behind: %v, %v", left, err)
	}
}

// asProgram lets this test's file be the program itself, for commands that start
// processes of their own.
const asProgram = "TEST_AS_THE_PROGRAM"

func TestMain(m *testing.M) {
	if os.Getenv(asProgram) != "" {
		main()
	}
	os.Exit(m.Run())
}

// bench remote runs the embedded store, and clients of three processes with and
// without pipelines, compares them, and leaves nothing behind.
func TestBenchRemote(t *testing.T) {
	t.Setenv(asProgram, "1")
	t.Setenv("FLOTILLA_MEMORY", "not a size") // settings are not of a bench
	dir := t.TempDir()
	out, e, code := real(t, "bench", "remote", "w3", "--dir", dir, "--rounds", "1", "--shards", "4", "--keys", "300", "--clients", "8", "--pipelines", "2", "--duration", "200ms", "--warmup", "50ms", "-o", "json")
	if code != 0 {
		t.Fatalf("exit code %d: %s", code, e)
	}
	var res remoteResult
	if err := json.Unmarshal([]byte(out), &res); err != nil {
		t.Fatal(err)
	}
	for i, w := range []*wayResult{&res.Embedded, &res.Remote, &res.Pipelined} {
		if w.Errors > 0 || w.OpsPerSec.Median <= 0 || w.CPUPerOp.Median <= 0 || len(w.Runs) != 1 {
			t.Fatalf("%s: %s", ways[i], out)
		}
		run := w.Runs[0]
		if run.Shards != 4 || run.Clients != 8 || run.Workload != "W3" || run.Verified == 0 || (run.Pipelines == 2) != (ways[i] == wayPipelined) {
			t.Errorf("%s: %+v", ways[i], run)
		}
		if want := run.OpsPerSec / res.Embedded.Runs[0].OpsPerSec; w.Ratio.Median != want {
			t.Errorf("%s: ratio %v, want %v", ways[i], w.Ratio, want)
		}
	}
	if res.Embedded.Runs[0].CPUScope == res.Remote.Runs[0].CPUScope {
		t.Errorf("CPU is of %q both times", res.Remote.Runs[0].CPUScope)
	}
	if left, err := os.ReadDir(dir); err != nil || len(left) > 0 {
		t.Errorf("left behind: %v, %v", left, err)
	}
}

// bench log-bound prints what it allows, goes through its phases on three processes,
// writes samples and a chart, and leaves nothing else behind.
func TestBenchLogBound(t *testing.T) {
	t.Setenv(asProgram, "1")
	dir, files := t.TempDir(), t.TempDir()
	csv, chart := filepath.Join(files, "s.csv"), filepath.Join(files, "c.svg")
	out, e, code := real(t, "bench", "log-bound", "--dir", dir, "--phase", "1s", "--keys", "500", "--shards", "2", "--clients", "8", "--crash-every", "100ms",
		"--log-limit", "16MiB", "--memory-limit", "16MiB", "--csv", csv, "--chart", chart, "--policy", "replica,in-log", "--rate", "2000", "-o", "json")
	if code != 0 {
		t.Fatalf("exit code %d: %s", code, e)
	}
	if !strings.Contains(e, "fixed allowance") || strings.Index(e, "fixed allowance") > strings.Index(e, "Raft logs 0.0") {
		t.Errorf("the allowance is not printed first: %.2000s", e)
	}
	var res []logbound.Result
	if err := json.Unmarshal([]byte(out), &res); err != nil || len(res) != 2 {
		t.Fatalf("%v: %.500s", err, out)
	}
	for i, p := range []flotilla.CompactionPolicy{flotilla.CompactByReplica, flotilla.CompactInLog} {
		r := &res[i]
		if r.Policy != p || len(r.Phases) != 6 || r.Violations > 0 || r.Restarts < 2 || r.Verified == 0 || r.DiskLimit <= r.DiskBound || r.DiskBound <= r.LogLimit || r.Written == 0 {
			t.Errorf("%s: %.2000s", p, out)
		}
		for _, p := range r.Phases {
			if p.Writes > 2600 {
				t.Errorf("%s: %.0f writes a second, for a rate of 2000", p.Phase, p.Writes)
			}
		}
	}
	for _, f := range []struct{ path, holds string }{{csv, "in-log,"}, {chart, "in-log: Raft logs"}} {
		if b, err := os.ReadFile(f.path); err != nil || !strings.Contains(string(b), f.holds) {
			t.Errorf("%s: %v, %.200s", f.path, err, b)
		}
	}
	if left, err := os.ReadDir(dir); err != nil || len(left) > 0 {
		t.Errorf("left behind: %v, %v", left, err)
	}
}

// A node whose disk is full refuses what adds data, with exit code 5 and the way to
// find out more; deletes, reads, status and backups go on, and writes when there is
// room again.
func TestFullDiskCommands(t *testing.T) {
	dir := t.TempDir()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	addr := "--addr=" + l.Addr().String()
	l.Close()
	// The node takes all of the process for its own, with what other tests left.
	_, stop := background(t, "serve", "--dir", dir, "--client-listen", strings.TrimPrefix(addr, "--addr="), "--disk-limit", "64MiB", "--ballast", "0", "--memory", "1GiB", "--log-limit", "128MiB", "--quiet", "--log-level", "error")
	defer stop()
	for _, k := range []string{"a", "b"} {
		expect(t, exitOK, "", "kv", "put", k, "old", addr)
	}
	pad := filepath.Join(dir, "PAD") // of somebody else; it counts as du does
	if err := os.WriteFile(pad, make([]byte, 60<<20), 0o600); err != nil {
		t.Fatal(err)
	}
	until := func(what string, f func() bool) {
		t.Helper()
		end := time.Now().Add(20 * time.Second)
		for tick := time.NewTicker(20 * time.Millisecond); !f(); <-tick.C {
			if time.Now().After(end) {
				t.Fatalf("waited in vain for: %s", what)
			}
		}
	}
	put := func() (string, int) { _, e, code := real(t, "kv", "put", "a", "new", addr); return e, code }
	until("writes are refused", func() bool { _, code := put(); return code != exitOK })
	if e, code := put(); code != exitConflict || !strings.Contains(e, "no space is left for new data") || !strings.Contains(e, "disk of node 1") || !strings.Contains(e, "try: flotilla cluster status") {
		t.Errorf("exit code %d:\n%s", code, e)
	}
	expect(t, exitConflict, `"exit_code":5`, "kv", "put", "a", "new", addr, "-o", "json")
	expect(t, exitConflict, "no space is left", "kv", "cas", "c", "new", "--absent", addr)
	expect(t, exitOK, "the disk of n1 is", "cluster", "status", addr)
	expect(t, exitOK, `"state":"DEGRADED"`, "cluster", "status", addr, "-o", "json")
	expect(t, exitOK, "n1", "node", "list", addr)
	expect(t, exitOK, "old", "kv", "get", "b", addr)
	expect(t, exitOK, "", "kv", "del", "b", addr)
	expect(t, exitOK, "1 records", "backup", "create", "--to", filepath.Join(t.TempDir(), "b"), addr)
	if err := os.Remove(pad); err != nil {
		t.Fatal(err)
	}
	until("writes are taken again", func() bool { _, code := put(); return code == exitOK })
	expect(t, exitOK, "new", "kv", "get", "a", addr)
}
