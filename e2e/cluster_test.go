package e2e

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

type record struct {
	Key     []byte `json:"key"`
	Value   []byte `json:"value"`
	Version string `json:"version"`
}

// Three nodes form a cluster, serve, stop without a complaint, and come back with
// what they had; a fourth joins and gets an id.
func TestCluster(t *testing.T) {
	t.Parallel()
	c := startCluster(t, 3, "--shards", "48")
	for i, p := range c.nodes {
		if out := p.out.String(); !strings.Contains(out, fmt.Sprintf("node n%d ", idOf(c, i))) || !strings.Contains(out, c.clients[i]) || !strings.Contains(out, "48 shards") {
			t.Errorf("node %d says when it is ready:\n%s", i+1, out)
		}
	}
	t.Run("records", func(t *testing.T) { testRecords(t, c) })
	t.Run("status", func(t *testing.T) { testStatus(t, c) })

	want := must(t, "kv", "export", "--addr", c.addr)
	begun := time.Now()
	c.stopAll(t)
	t.Logf("all three stopped in %.2fs", time.Since(begun).Seconds())
	for i, p := range c.nodes {
		if loud := p.loud(); len(loud) > 0 {
			t.Errorf("node %d wrote above INFO in a run without a fault:\n%s", i+1, strings.Join(loud, ""))
		}
	}
	refused(t, command(t, "kv", "get", "a", "--addr", c.addr, "--timeout", "2s"), 4, "cannot connect to "+strings.ReplaceAll(c.addr, ",", ", "), "try: ")

	begun = time.Now()
	for i := range c.nodes {
		c.start(t, i)
	}
	for _, p := range c.nodes {
		p.ready(t)
	}
	t.Logf("all three restarted in %.2fs", time.Since(begun).Seconds())
	if got := must(t, "kv", "export", "--addr", c.addr); got != want || got == "" {
		t.Errorf("after the restart export gives %q, before %q", got, want)
	}

	t.Run("join", func(t *testing.T) { testJoin(t, c) })
}

// idOf returns the id of node i: ids follow the order of the addresses.
func idOf(c *cluster, i int) int {
	id := 1
	for _, a := range c.peers {
		if a < c.peers[i] {
			id++
		}
	}
	return id
}

func testRecords(t *testing.T, c *cluster) {
	kv := func(args ...string) result {
		return command(t, append([]string{"kv", "--addr", c.addr}, args...)...)
	}
	good := func(out string, args ...string) {
		t.Helper()
		if r := kv(args...); r.code != 0 || r.out != out {
			t.Errorf("kv %q: exit code %d, output %q, want %q\n%s", args, r.code, r.out, out, r.err)
		}
	}
	good("", "put", "a", "1")
	good("", "put", "b", "two\twords")
	good("", "put", "\xff\x00"[:1], "\xfe") // the last shard; bytes that are not text
	good("1", "get", "a")
	good("\xfe", "get", "\xff")
	refused(t, kv("get", "absent"), 3, `key "absent" is absent`)
	good("", "del", "absent")
	for i := range c.clients { // any node accepts any request
		if got := must(t, "kv", "get", "b", "--addr", c.clients[i]); got != "two\twords" {
			t.Errorf("node %d answers %q", i+1, got)
		}
	}

	// Compare and swap.
	good("", "cas", "c", "first", "--absent")
	refused(t, kv("cas", "c", "again", "--absent"), 5, "version")
	rec := decode[record](t, must(t, "kv", "get", "c", "-o", "json", "--addr", c.addr))
	if string(rec.Key) != "c" || string(rec.Value) != "first" || strings.Count(rec.Version, ".") != 2 {
		t.Errorf("get -o json prints %+v", rec)
	}
	good("", "cas", "c", "second", "--expect-version", rec.Version)
	refused(t, kv("cas", "c", "third", "--expect-version", rec.Version), 5, "try: flotilla kv get")
	good("second", "get", "c")

	// Scans, over shards, in both directions.
	good("a\t1\nb\t\"two\\twords\"\nc\tsecond\n\"\\xff\"\t\"\\xfe\"\n", "scan")
	good("c\tsecond\nb\t\"two\\twords\"\n", "scan", "--start", "b", "--end", "d", "--reverse")
	good("b\t\"two\\twords\"\n", "scan", "--start", "aa", "--limit", "1")
	good("a\t1\n", "scan", "--prefix", "a")
	good("[]\n", "scan", "--prefix", "nothing", "-o", "json")
	if all := decode[[]record](t, kv("scan", "-o", "json").out); len(all) != 4 || string(all[1].Value) != "two\twords" {
		t.Errorf("scan -o json prints %+v", all)
	}
	lines := strings.Split(strings.TrimSuffix(kv("scan", "-o", "jsonl").out, "\n"), "\n")
	if len(lines) != 4 || string(decode[record](t, lines[3]).Key) != "\xff" {
		t.Errorf("scan -o jsonl prints %q", lines)
	}
	good("", "del", "b")
	if r := kv("get", "b", "-o", "json"); r.code != 3 || r.out != "" || decode[struct {
		Code int `json:"exit_code"`
	}](t, r.err).Code != 3 {
		t.Errorf("get -o json of an absent key: %+v", r)
	}

	// Files of records: any bytes in JSONL; TSV names the record it cannot hold.
	good("", "put", "line", "one\ntwo")
	r := kv("export")
	if r.code != 2 || !strings.Contains(r.err, "jsonl") || !strings.Contains(r.err, "line") {
		t.Errorf("export of what TSV cannot hold: exit code %d\n%s", r.code, r.err)
	}
	dump := kv("export", "--format", "jsonl").out
	file := filepath.Join(t.TempDir(), "dump.jsonl")
	if err := os.WriteFile(file, []byte(dump), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, k := range []string{"a", "c", "line", "\xff"} {
		good("", "del", k)
	}
	good("", "export", "--format", "jsonl")
	good("", "import", "--format", "jsonl", file)
	good(dump, "export", "--format", "jsonl")
	good("", "del", "line")
	bad := invocation{args: []string{"kv", "import", "-", "--addr", c.addr}, stdin: strings.NewReader("d\t4\nno tab here\n\tno key\ne\t5\n")}.run(t)
	if bad.code != 2 || !strings.Contains(bad.err, "line 2") || !strings.Contains(bad.err, "line 3") || !strings.Contains(bad.err, "imported 2 records") {
		t.Errorf("import of two bad lines: exit code %d\n%s", bad.code, bad.err)
	}
	good("a\t1\nc\tsecond\nd\t4\ne\t5\n\xff\t\xfe\n", "export")
}

func testStatus(t *testing.T, c *cluster) {
	s := c.status(t, c.addr)
	if s.State != "HEALTHY" || len(s.Cluster) != 32 || len(s.Nodes) != 3 || s.Shards != 49 || s.ShardsWithLeader != 49 || s.UnderReplicated != 0 {
		t.Errorf("cluster status: %+v", s)
	}
	nodes := decode[[]nodeInfo](t, must(t, "node", "list", "-o", "json", "--addr", c.addr))
	leaders := 0
	for i, n := range nodes {
		leaders += n.Leaders
		if n.ID != i+1 || n.State != "up" || n.Replicas != 49 || n.DiskBytes <= 0 || n.Version == "" {
			t.Errorf("node list: %+v", n)
		}
	}
	if leaders != 49 {
		t.Errorf("the nodes lead %d shards, there are 49", leaders)
	}
	if lines := strings.Split(strings.TrimSpace(must(t, "node", "list", "-o", "jsonl", "--addr", c.addr)), "\n"); len(lines) != 3 || decode[nodeInfo](t, lines[2]).ID != 3 {
		t.Errorf("node list -o jsonl: %q", lines)
	}
	table := must(t, "cluster", "status", "--addr", c.addr)
	for _, part := range append([]string{"HEALTHY", "3/3 nodes", "49/49 shards have a leader"}, c.clients...) {
		if !strings.Contains(table, part) {
			t.Errorf("cluster status does not say %q:\n%s", part, table)
		}
	}
	type shard struct {
		ID       int             `json:"id"`
		Leader   int             `json:"leader"`
		State    string          `json:"state"`
		Start    json.RawMessage `json:"start"`
		End      json.RawMessage `json:"end"`
		Replicas []struct {
			Node    int `json:"node"`
			Applied int `json:"applied"`
		} `json:"replicas"`
	}
	shards := decode[[]shard](t, must(t, "shard", "list", "-o", "json", "--addr", c.addr))
	if len(shards) != 49 {
		t.Fatalf("shard list prints %d shards", len(shards))
	}
	for i, s := range shards {
		if s.ID != i+1 || s.Leader == 0 || s.State != "ok" || len(s.Replicas) != 3 {
			t.Errorf("shard list: %+v", s)
		}
		if i > 1 && string(s.Start) != string(shards[i-1].End) {
			t.Errorf("shard %d starts at %s, the one before ends at %s", s.ID, s.Start, shards[i-1].End)
		}
	}
	if s := decode[shard](t, must(t, "shard", "show", "49", "-o", "json", "--addr", c.addr)); s.ID != 49 || len(s.Replicas) != 3 || s.Replicas[0].Applied == 0 {
		t.Errorf("shard show 49: %+v", s)
	}
	if text := must(t, "shard", "show", "2", "--addr", c.addr); !strings.Contains(text, "shard 2") || !strings.Contains(text, "leader") {
		t.Errorf("shard show 2:\n%s", text)
	}
	refused(t, command(t, "shard", "show", "50", "--addr", c.addr), 3, "shard 50 does not exist", "try: flotilla shard list")
}

// testJoin adds a fourth node; it keeps its id over a restart.
func testJoin(t *testing.T, c *cluster) {
	a := addresses(t, 2)
	args := []string{"serve", "--ballast", "0", "--dir", filepath.Join(c.dir, "late"), "--listen", a[0], "--client-listen", a[1], "--join", strings.Join(c.peers, ",")}
	late := start(t, args...)
	late.ready(t)
	check := func() {
		t.Helper()
		if out := late.out.String(); !strings.Contains(out, "node n4 ") {
			t.Errorf("the fourth node says:\n%s", out)
		}
		wait(t, time.Minute, "the fourth node in the list of nodes", func() bool {
			nodes := decode[[]nodeInfo](t, must(t, "node", "list", "-o", "json", "--addr", c.addr))
			return len(nodes) == 4 && nodes[3].ID == 4 && nodes[3].ClientAddr == a[1] && nodes[3].State == "up" && nodes[3].Replicas == 0
		})
		if got := must(t, "kv", "get", "a", "--addr", a[1]); got != "1" {
			t.Errorf("the fourth node answers %q", got)
		}
		if s := c.status(t, a[1]); s.State != "HEALTHY" || len(s.Nodes) != 4 {
			t.Errorf("the fourth node sees %+v", s)
		}
	}
	check()
	if code := late.stop(t); code != 0 {
		t.Errorf("the fourth node ended with %d:\n%s", code, late.err)
	}
	late = start(t, args...)
	late.ready(t)
	check()
	if loud := late.loud(); len(loud) > 0 {
		t.Errorf("the fourth node wrote above INFO:\n%s", strings.Join(loud, ""))
	}
	if code := late.stop(t); code != 0 {
		t.Errorf("the fourth node ended with %d:\n%s", code, late.err)
	}
}
