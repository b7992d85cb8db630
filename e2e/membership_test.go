package e2e

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

type shardInfo struct {
	ID       int    `json:"id"`
	Leader   int    `json:"leader"`
	State    string `json:"state"`
	Replicas []struct {
		Node int    `json:"node"`
		Role string `json:"role"`
	} `json:"replicas"`
}

// A machine dies and is replaced by the command line: another one joins, the dead
// one is removed, and the data are what they were, also when a second machine
// dies. What is left of the first one comes back and ends with a reason.
func TestReplaceMachine(t *testing.T) {
	t.Parallel()
	c := startCluster(t, 3, "--shards", "8", "--heartbeat", "200ms", "--support", "1s")
	file := filepath.Join(t.TempDir(), "records.tsv")
	var tsv strings.Builder
	for i := range 300 {
		fmt.Fprintf(&tsv, "%c%d\tvalue %d\n", 'a'+i%26, i, i)
	}
	if err := os.WriteFile(file, []byte(tsv.String()), 0o600); err != nil {
		t.Fatal(err)
	}
	must(t, "kv", "import", "--addr", c.addr, file)
	want := must(t, "kv", "export", "--addr", c.addr)
	dead := idOf(c, 2)
	c.nodes[2].kill()

	begun := time.Now()
	a := addresses(t, 2)
	late := start(t, "serve", "--ballast", "0", "--dir", filepath.Join(c.dir, "new"), "--listen", a[0], "--client-listen", a[1],
		"--join", strings.Join(c.peers, ","), "--heartbeat", "200ms", "--support", "1s")
	late.ready(t)
	addr := strings.Join([]string{c.clients[0], c.clients[1], a[1]}, ",")
	name := fmt.Sprintf("n%d", dead)
	refused(t, command(t, "node", "remove", name, "--addr", addr), 2, name+" would be removed for good, and its 9 replicas moved", "--yes")
	if out := must(t, "node", "remove", name, "--yes", "--addr", addr); !strings.Contains(out, name+" removed, 9 replicas moved") {
		t.Errorf("node remove says %q", out)
	}
	t.Logf("replaced in %.1fs", time.Since(begun).Seconds())
	if out := must(t, "node", "remove", name, "--yes", "--addr", addr); !strings.Contains(out, "is no member") {
		t.Errorf("node remove, again, says %q", out)
	}
	wait(t, time.Minute, "a healthy cluster of the others", func() bool {
		s := c.status(t, addr)
		return s.State == "HEALTHY" && len(s.Nodes) == 3
	})
	for _, s := range decode[[]shardInfo](t, must(t, "shard", "list", "-o", "json", "--addr", addr)) {
		for _, r := range s.Replicas {
			if len(s.Replicas) != 3 || r.Node == dead || r.Role != "voter" || s.State != "ok" {
				t.Errorf("shard %d: %+v", s.ID, s)
			}
		}
	}
	if got := must(t, "kv", "export", "--addr", addr); got != want {
		t.Error("the data are not what they were")
	}

	// The shards are led, moved and changed one by one as well.
	first := idOf(c, 0)
	if out := must(t, "shard", "transfer", "2", "--to", "n4", "--addr", addr); !strings.Contains(out, "shard 2  led by n4") {
		t.Errorf("shard transfer says %q", out)
	}
	holds := func(out string) bool { // the part before "(was ..."
		now, _, _ := strings.Cut(out, " (")
		return strings.Contains(now+" ", fmt.Sprintf("n%d ", first))
	}
	if out := must(t, "shard", "replicas", "2", "--remove", fmt.Sprint(first), "--yes", "--addr", addr); holds(out) || !strings.Contains(out, "n4*") {
		t.Errorf("shard replicas --remove says %q", out)
	}
	if out := must(t, "shard", "replicas", "2", "--add", fmt.Sprint(first), "--addr", addr); !holds(out) {
		t.Errorf("shard replicas --add says %q", out)
	}
	refused(t, command(t, "shard", "replicas", "2", "--add", "9", "--addr", addr), 3)

	// The new machine counts: with it and one of the old ones everything is served.
	c.nodes[1].kill()
	wait(t, 15*time.Second, "leaders without the second machine", func() bool {
		r := command(t, "kv", "export", "--addr", a[1]+","+c.clients[0], "--timeout", "5s")
		return r.code == 0 && r.out == want
	})
	c.restart(t, 1)

	// The dead one comes back with its old disk.
	c.start(t, 2)
	if code := c.nodes[2].end(t); code == 0 || !strings.Contains(c.nodes[2].err.String(), fmt.Sprintf("node %d was removed from cluster", dead)) {
		t.Errorf("the removed node ended with %d:\n%s", code, c.nodes[2].err)
	}
}
