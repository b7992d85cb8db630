package e2e

import (
	"crypto/sha256"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// digest describes every file below dir; "" when dir does not exist.
func digest(t *testing.T, dir string) string {
	t.Helper()
	var b strings.Builder
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		content, err := os.ReadFile(path)
		fmt.Fprintf(&b, "%s %x\n", path, sha256.Sum256(content))
		return err
	})
	if err != nil && !os.IsNotExist(err) {
		t.Fatal(err)
	}
	return b.String()
}

// What cannot be right is refused with its place, its reason and a way out, and
// nothing is created, changed or lost.
func TestRefusals(t *testing.T) {
	t.Parallel()
	c := startCluster(t, 3, "--shards", "4")
	const other = "00112233445566778899aabbccddeeff"
	id := c.status(t, c.addr).Cluster
	for i := range 20 {
		must(t, "kv", "put", fmt.Sprintf("%c%d", 'A'+7*i, i), fmt.Sprint(i), "--addr", c.addr)
	}
	want := must(t, "kv", "export", "--addr", c.addr)
	scratch := t.TempDir()
	fresh := func() string { return filepath.Join(scratch, "fresh") }
	file := func(name string, content string) string {
		t.Helper()
		path := filepath.Join(scratch, name)
		if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	free := addresses(t, 2)
	serve := func(args ...string) result {
		t.Helper()
		r := invocation{args: append([]string{"serve", "--log-level", "warn", "--quiet"}, args...), limit: 20 * time.Second}.run(t)
		return r
	}
	kv := func(args ...string) result {
		t.Helper()
		return command(t, append([]string{"kv", "--addr", c.addr}, args...)...)
	}
	nothing := func() {
		t.Helper()
		if _, err := os.Stat(fresh()); err == nil {
			t.Errorf("%s was created", fresh())
		}
	}

	// Command line and configuration.
	refused(t, serve("--dirr", fresh()), 2, "unknown flag --dirr", `did you mean "--dir"?`)
	conf := file("flotilla.toml", "[node]\ndir = \""+fresh()+"\"\n\n[raft]\nheartbeet = \"500ms\"\n")
	refused(t, serve("--config", conf), 2, conf+":5", `unknown key "heartbeet" in [raft]`, `did you mean "heartbeat"?`)
	refused(t, serve("--dir", fresh(), "--heartbeat", "10s"), 2, "four heartbeats")
	refused(t, serve("--dir", fresh(), "--cluster-id", "1234"), 2, "32 hexadecimal digits")
	r := invocation{args: []string{"serve", "--dir", fresh()}, env: []string{"FLOTILLA_SHARDS=many"}}.run(t)
	refused(t, r, 2, "FLOTILLA_SHARDS", `"many" is not a whole number`)
	nothing()

	// Ports that others hold.
	refused(t, serve("--dir", fresh(), "--client-listen", c.clients[0]), 1, c.clients[0], "in use", "try: ")
	refused(t, serve("--dir", fresh(), "--client-listen", free[1], "--listen", c.peers[1]), 1, c.peers[1], "in use", "try: ")
	nothing()

	// Keys, values and ranges.
	long := strings.Repeat("k", 16<<10)
	value := file("value", strings.Repeat("v", 3<<20))
	large := file("large", strings.Repeat("v", 3<<20+1))
	refused(t, kv("put", long+"k", "v"), 2, "16384", "16385", "nothing was applied")
	refused(t, kv("put", "k", "--from", large), 2, "3145728", "nothing was applied")
	refused(t, kv("put", "", "v"), 2, "key", "empty")
	refused(t, kv("get", ""), 2, "key", "empty")
	refused(t, kv("del", ""), 2, "key", "empty")
	refused(t, kv("scan", "--start", "b", "--end", "a"), 2, `"b"`, `"a"`, "after")
	if r := kv("put", long, "--from", value); r.code != 0 { // just within the limits
		t.Errorf("the largest record: exit code %d\n%s", r.code, r.err)
	}
	if r := kv("get", long); r.code != 0 || len(r.out) != 3<<20 {
		t.Errorf("the largest record comes back with %d bytes, exit code %d\n%s", len(r.out), r.code, r.err)
	}
	if r := kv("del", long); r.code != 0 {
		t.Errorf("the largest record: exit code %d\n%s", r.code, r.err)
	}

	// Clusters that are not the one that was meant.
	refused(t, command(t, "kv", "get", "A0", "--addr", c.addr, "--cluster-id", other), 5, other, id)
	refused(t, command(t, "cluster", "status", "--addr", c.addr, "--cluster-id", other), 5, other, id)
	if got := must(t, "kv", "get", "A0", "--addr", c.addr, "--cluster-id", id); got != "0" {
		t.Errorf("with the right cluster id get prints %q", got)
	}
	refused(t, command(t, "kv", "get", "A0", "--addr", free[0], "--timeout", "1s"), 4, free[0], "try: ")

	// A directory that is in use, and directories that hold something else.
	refused(t, serve("--dir", c.data(0), "--listen", free[0], "--client-listen", free[1], "--join", c.peers[1]), 5, c.data(0), "locked", fmt.Sprintf("process %d uses it", c.nodes[0].cmd.Process.Pid), "stop that process")
	refused(t, serve("--dir", filepath.Join(c.data(0), "inner")), 5, "inside another store", c.data(0), "choose a directory outside of it")
	if err := os.Mkdir(fresh(), 0o700); err != nil {
		t.Fatal(err)
	}
	photo := filepath.Join(fresh(), "photo.jpg")
	if err := os.WriteFile(photo, []byte("x"), 0o600); err != nil {
		t.Fatal(err)
	}
	refused(t, serve("--dir", fresh(), "--client-listen", free[1]), 5, fresh(), "photo.jpg")
	if got := digest(t, fresh()); strings.Count(got, "\n") != 1 {
		t.Errorf("the refused directory now holds:\n%s", got)
	}
	if err := os.RemoveAll(fresh()); err != nil {
		t.Fatal(err)
	}

	// Two nodes with one id, and a node that lost its disk.
	join := []string{"--join", strings.Join(c.peers, ","), "--listen", free[0], "--client-listen", free[1]}
	as := func(dir string, args ...string) result {
		t.Helper()
		return serve(append(append([]string{"--dir", dir}, join...), args...)...)
	}
	refused(t, as(filepath.Join(scratch, "twin"), "--node-id", "1"), 5, "id 1", "belongs to the node")
	refused(t, as(filepath.Join(scratch, "astray"), "--cluster-id", other), 5, other, id)
	victim := 2
	if code := c.nodes[victim].stop(t); code != 0 {
		t.Errorf("node %d ended with %d", victim+1, code)
	}
	join = []string{"--join", strings.Join(c.peers, ","), "--listen", c.peers[victim], "--client-listen", c.clients[victim]}
	lost := fmt.Sprint(idOf(c, victim))
	refused(t, as(filepath.Join(scratch, "wiped1"), "--bootstrap", "3"), 5, "lost its disk", id, "--rejoin")
	refused(t, as(filepath.Join(scratch, "wiped2"), "--node-id", lost), 5, "id "+lost, "votes", "flotilla node remove n"+lost)
	before := digest(t, c.data(victim))
	refused(t, as(c.data(victim), "--node-id", fmt.Sprint(1+idOf(c, victim)%3)), 5, c.data(victim), "node "+lost)
	refused(t, as(c.data(victim), "--cluster-id", other), 5, c.data(victim), other, id)
	if digest(t, c.data(victim)) != before {
		t.Error("refusals changed the data directory")
	}

	// It all did no harm.
	c.restart(t, victim)
	c.healthy(t)
	if got := must(t, "kv", "export", "--addr", c.addr); got != want {
		t.Errorf("export gives %q, before %q", got, want)
	}
	if s := c.status(t, c.addr); len(s.Nodes) != 3 {
		t.Errorf("the refused nodes are in the list: %+v", s.Nodes)
	}

	// Without a quorum nothing is acknowledged, and the answer comes in time.
	c.nodes[0].kill()
	c.nodes[1].kill()
	one := c.clients[2]
	begun := time.Now()
	r = command(t, "kv", "put", "A0", "new", "--addr", one)
	if r.code != 4 && r.code != 6 || r.out != "" {
		t.Errorf("put without a quorum: exit code %d\n%s", r.code, r.err)
	}
	t.Logf("put without a quorum ended after %.1fs: %s", time.Since(begun).Seconds(), strings.TrimSpace(r.err))
	wait(t, time.Minute, "a refusal that names the quorum or the nodes", func() bool {
		begun = time.Now()
		r = command(t, "kv", "put", "A0", "new", "--addr", one)
		if r.code != 4 && r.code != 6 {
			t.Fatalf("put without a quorum: exit code %d\n%s", r.code, r.err)
		}
		return r.code == 4
	})
	refused(t, r, 4, "has no quorum: 1 of 3 reachable since ", "down: node ", "nothing was applied", "flotilla cluster status")
	refused(t, command(t, "kv", "get", "A0", "--addr", one), 4, "has no quorum: 1 of 3 reachable since ")
	if s := command(t, "cluster", "status", "--addr", one); !strings.Contains(s.out, "UNAVAILABLE") {
		t.Errorf("status without a quorum: exit code %d\n%s%s", s.code, s.out, s.err)
	}
	t.Logf("later after %.1fs: %s", time.Since(begun).Seconds(), strings.TrimSpace(r.err))
	c.restart(t, 0)
	wait(t, time.Minute, "writes after a quorum is back", func() bool {
		return command(t, "kv", "put", "B", "back", "--addr", one).code == 0
	})
}
