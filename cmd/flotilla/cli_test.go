package main

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/spf13/cobra"

	"github.com/flotillakv/flotilla"
)

var rewrite = flag.Bool("rewrite", false, "write the golden files anew")

func golden(t *testing.T, name, got string) {
	t.Helper()
	path := filepath.Join("testdata", name)
	if *rewrite {
		if err := os.WriteFile(path, []byte(got), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if got != string(want) {
		t.Errorf("%s differs (-rewrite accepts it); got:\n%s", path, got)
	}
}

// The command tree is exactly this, and the help of every command is what the
// golden file says.
func TestCommandTree(t *testing.T) {
	var names []string
	var help strings.Builder
	var walk func(c *cobra.Command)
	walk = func(c *cobra.Command) {
		if c.Hidden {
			return
		}
		if !c.HasSubCommands() {
			names = append(names, c.CommandPath())
		}
		if c.Name() != "completion" && !strings.Contains(c.CommandPath(), "completion ") {
			fmt.Fprintf(&help, "==== %s\n%s", c.CommandPath(), c.UsageString())
		}
		for _, sub := range c.Commands() {
			walk(sub)
		}
	}
	root := newRoot(newApp())
	root.InitDefaultCompletionCmd()
	walk(root)
	want := "flotilla backup create,flotilla backup list,flotilla backup prune,flotilla backup restore,flotilla backup verify,flotilla bench compare,flotilla bench groups,flotilla bench idle,flotilla bench log-bound,flotilla bench memory,flotilla bench overload,flotilla bench remote,flotilla bench run,flotilla bench soak,flotilla check,flotilla cluster status,flotilla completion bash,flotilla completion fish," +
		"flotilla completion powershell,flotilla completion zsh,flotilla config default,flotilla config show,flotilla demo,flotilla dev," +
		"flotilla kv cas,flotilla kv del,flotilla kv export,flotilla kv get,flotilla kv import,flotilla kv put,flotilla kv scan," +
		"flotilla node list,flotilla node remove,flotilla serve,flotilla shard list,flotilla shard replicas,flotilla shard show,flotilla shard transfer," +
		"flotilla sim mutants,flotilla sim processes,flotilla sim replay,flotilla sim run,flotilla snapshot list,flotilla snapshot take,flotilla snapshot verify,flotilla version"
	if got := strings.Join(names, ","); got != want {
		t.Errorf("commands are\n%s, want\n%s", got, want)
	}
	golden(t, "help.txt", help.String())
}

// Every error has one exit code, which scripts rely on.
func TestExitCodes(t *testing.T) {
	for _, c := range []struct {
		err  error
		want int
	}{
		{errors.New("anything"), exitFailed},
		{&flotilla.LimitError{What: "bytes of a key", Limit: 1, Got: 2}, exitUsage},
		{&flotilla.ArgumentError{Field: "key", Reason: "it is empty"}, exitUsage},
		{&flotilla.CrossShardError{At: []byte("m")}, exitUsage},
		{&flotilla.OptionError{Field: "Dir"}, exitUsage},
		{fmt.Errorf("shard 7: %w", flotilla.ErrNotFound), exitNotFound},
		{&flotilla.NoQuorumError{Shard: 3}, exitUnreachable},
		{&flotilla.UnavailableError{Why: "connection refused"}, exitUnreachable},
		{&flotilla.UnavailableError{Cause: context.DeadlineExceeded}, exitUnreachable},
		{&flotilla.NotLeaderError{Shard: 3}, exitUnreachable},
		{flotilla.ErrClosed, exitUnreachable},
		{context.DeadlineExceeded, exitUnreachable},
		{&flotilla.ConflictError{}, exitConflict},
		{&flotilla.OverloadedError{RetryAfter: time.Second}, exitConflict},
		{flotilla.ErrLogBudget, exitConflict},
		{&flotilla.DiskFullError{Shard: 1, Nodes: nil}, exitConflict},
		{&flotilla.OpenError{Path: "/data"}, exitConflict},
		{context.Canceled, exitFailed},
		{&flotilla.RefusedError{Reason: 1, Detail: "its cluster is 01, this node's 02"}, exitConflict},
		{&flotilla.JoinError{Addr: "10.0.0.1:7101", Reason: "it lost its disk"}, exitConflict},
		{&flotilla.MembershipError{Shard: 5, Reason: "no majority would be left"}, exitConflict},
		{flotilla.ErrAmbiguous, exitUnknown},
		{&flotilla.PartialError{Applied: 1, Shards: 2, Err: &flotilla.NoQuorumError{}}, exitUnknown},
	} {
		c2 := newCommand()
		c2.kv.fail = []fault{{err: c.err}}
		if got := c2.run(t, "kv", "put", "a", "b"); got != c.want {
			t.Errorf("%v: exit code %d, want %d", c.err, got, c.want)
		}
		if text := c2.errOut.String(); !strings.HasPrefix(text, "error: ") || c2.out.Len() > 0 {
			t.Errorf("%v: standard error %q, standard output %q", c.err, text, c2.out.String())
		}
	}
}

// With -o json an error is one JSON object on standard error.
func TestErrorsAsJSON(t *testing.T) {
	c := newCommand()
	c.kv.fail = []fault{{err: flotilla.ErrAmbiguous, applied: true}}
	if code := c.run(t, "kv", "put", "a", "b", "-o", "json"); code != exitUnknown {
		t.Fatalf("exit code %d", code)
	}
	var got struct {
		Error, Try string
		ExitCode   int `json:"exit_code"`
	}
	if err := json.Unmarshal(c.errOut.Bytes(), &got); err != nil || got.ExitCode != exitUnknown || got.Error == "" || got.Try != "flotilla kv get a" {
		t.Errorf("%v: %s", err, c.errOut.String())
	}
}

// What a person gets for a command line that cannot be right: one line, exit
// code 2, and what was probably meant.
func TestCommandLinesThatCannotBeRight(t *testing.T) {
	for _, c := range []struct{ line, want string }{
		{"kv gte a", `unknown command "gte" for "flotilla kv"; did you mean "get"?`},
		{"clutser status", `unknown command "clutser" for "flotilla"; did you mean "cluster"?`},
		{"frobnicate", `unknown command "frobnicate" for "flotilla"; it has`},
		{"kv", "flotilla kv needs one of its commands: cas, del, export, get, import, put, scan"},
		{"bench run A --shrads 3", `unknown flag --shrads for "flotilla bench run"; did you mean "--shards"?`},
		{"bench run A --clients many", `invalid argument "many" for "--clients"`},
		{"bench run G", `workload "G" does not exist: choose one of A, B, C, D, E, F, W1, W2, W3`},
		{"bench run A --value 4GiB", "--value 4GiB: must lie between 0 and 3MiB"},
		{"bench run A --distribution normal", `distribution "normal" does not exist`},
		{"bench run A --clients 0", "--clients 0: must lie between"},
		{"bench run A --rate 70%%", `invalid argument "70%%" for "--rate"`},
		{"bench run A --clients 4 --pipelines 5", "--pipelines 5: must lie between 0 and --clients"},
		{"bench run A --conns 0", "--conns 0: must lie between"},
		{"bench remote E", "workload E cannot be pipelined"},
		{"bench log-bound --value 4", "--value 4: must lie between 8 and"},
		{"bench log-bound --log-limit 64Mb", "--log-limit: \"64Mb\" is not a size"},
		{"bench log-bound --log-limit 1MiB", "Limits.Log"},
		{"bench log-bound --policy inlog", `--policy "inlog": must be one of all, piggybacked, in-log, replica, leader-image; did you mean "in-log"?`},
		{"bench log-bound --policy replica,replica", "--policy replica: is named twice"},
		{"bench log-bound --rate -1", "--rate -1: must lie between"},
		{"bench log-bound --phase 10ms", "--phase 10ms: must lie between 1s"},
		{"bench remote --rounds 0", "--rounds 0: must lie between"},
		{"bench run A --rate -5%", "--rate -5%: must not be negative"},
		{"bench run A --outstanding 10", "--outstanding is for an open loop: give it a --rate"},
		{"bench run A --rate 5 --outstanding 0", "--outstanding 0: must lie between"},
		{"bench overload --times 2,0", "--times 0: must be above 0 and at most 1000"},
		{"bench overload --memory much", `--memory: "much" is not a size`},
		{"bench soak --spin -1", "--spin -1"},
		{"bench memory --limits much", `--limits: "much" is not a size`},
		{"bench memory --limits 64MiB", "--limits 64MiB: must be at least 128MiB"},
		{"bench memory --values 0", "--values 0: must lie between 1 and"},
		{"bench memory --times 0", "--times 0: must be above 0 and at most 1000"},
		{"bench memory --faults slo", "must be one of slow, dead; did you mean"},
		{"bench memory --shards 0", "--shards 0: must lie between"},
		{"bench soak --every 1ms", "--every 1ms"},
		{"bench soak --heartbeat 1s --support 2s", "must be at least four heartbeats (4s)"},
		{"kv get", "flotilla kv get takes KEY, and 0 were given"},
		{"kv put a", "flotilla kv put takes KEY and VALUE, and 1 were given"},
		{"kv put a --from b c", "flotilla kv put takes KEY, and 2 were given"},
		{"kv cas a b", "either --expect-version or --absent"},
		{"kv cas a b --absent --expect-version 1.2.3", "either --expect-version or --absent"},
		{"kv cas a b --expect-version 12", `version "12" is not three numbers`},
		{"kv scan --prefix a --start b", "--prefix cannot stand with --start"},
		{"kv get a --consistency locl", `--consistency "locl" does not exist: choose one of linearizable, no-clock, follower, local; did you mean "local"?`},
		{"kv scan --consistency stale", `--consistency "stale" does not exist: choose one of linearizable, no-clock, follower, local`},
		{"kv scan --limit -1", "--limit -1: must not be negative"},
		{"kv scan --start b --end a", "invalid range: its start is after its end"},
		{"kv get a -o yaml", `output format "yaml" does not exist: choose table, json or jsonl`},
		{"kv get a --timeout 0s", "--timeout 0s: must be more than 0"},
		{"kv import nowhere.tsv", "cannot read the file to import"},
		{"kv import - --format csv", `format "csv" does not exist: choose tsv or jsonl`},
		{"kv import - --from-line 0", "lines count from 1"},
		{"kv export --format csv", `format "csv" does not exist`},
		{"backup prune --from d", "say which backups to remove: --keep-last N, --older-than AGE"},
		{"backup prune --from d --keep-last 0", "--keep-last 0: at least the last one is kept"},
		{"backup prune --keep-last 1", "--from: say where the backups are"},
		{"backup prune --from d --older-than soon", `invalid argument "soon" for "--older-than" flag: "soon" is not an age, such as 12h, 30d or 8w`},
		{"backup prune --from d --older-than 99999999d", "is not an age"},
		{"backup prune --from d --keep-last 1 --wait 0s", "--wait 0s: must be more than 0"},
		{"backup create --to d --wait -1s", "--wait -1s: must be more than 0"},
		{"snapshot take --to d", "name the shards to take a snapshot of, or say --all"},
		{"snapshot take 3 --all --to d", "name the shards to take a snapshot of, or say --all"},
		{"snapshot take x --to d", `shard id "x" is not a number`},
		{"snapshot take 3", "--to: say where the backups are"},
		{"snapshot verify", "--from: say where the backups are"},
		{"snapshot list 3", "flotilla snapshot list takes no argument"},
		{"shard show x", `shard id "x" is not a number`},
		{"serve --listen 127.0.0.1:0 extra", "flotilla serve takes no argument, and 1 were given"},
		{"serve", `node.dir = "" (default): a directory for the data is needed`},
		{"serve --heartbeat 5", `--heartbeat: "5" is not a duration`},
		{"serve --memory lots", `--memory: "lots" is not a size`},
		{"serve --dir d --bootstrap 3", "cluster.join = [] (default)"},
		{"serve --dir d --log-level wran", `log.level = "wran" (flag --log-level): must be one of debug, info, warn, error; did you mean "warn"?`},
		{"serve --dir d --compaction inlog", `compaction.policy = "inlog" (flag --compaction): must be one of piggybacked, in-log, replica, leader-image; did you mean "in-log"?`},
		{"serve --dir d --compaction-idle 0s", "compaction.idle = 0s (flag --compaction-idle): must be more than 0"},
		{"serve --dir d --compaction-entries 0", "compaction.entries = 0 (flag --compaction-entries): must be more than 0"},
		{"serve --dir d --compaction-bytes 2TiB", "compaction.bytes = 2199023255552 (flag --compaction-bytes): must be between 0 (1 MiB) and 1 TiB"},
		{"serve --dir d --rejoin", "cluster.join = [] (default): Rejoin needs the address of a node of the cluster"},
		{"serve --dir d --rejoin --node-id 3 --listen 127.0.0.1:0 --join 127.0.0.1:1", "node.id = 3 (flag --node-id): a node that rejoins gets a new id from the cluster: the votes of the old one are lost; leave NodeID zero"},
		{"serve --dir d --listen 7101", `network.listen = "7101" (flag --listen): must be host:port, such as 10.0.0.1:7101`},
		{"serve --dir d --client-listen localhost:http", `network.client_listen = "localhost:http" (flag --client-listen): must be host:port`},
		{"serve --dir d --listen 127.0.0.1:1 --bootstrap 3 --join 127.0.0.1:1,127.0.0.1:2,127.0.0.1:2", "cluster.join = 127.0.0.1:2 (flag --join): is named twice"},
		{"serve --dir d --listen 127.0.0.1:1 --bootstrap 1 --replicas 3", "cluster.replicas = 3 (flag --replicas): there are only 1 nodes"},
		{"serve --dir d --memory 1MiB", "limits.memory = 1048576 (flag --memory): must be 0 or between 16 MiB and 16 TiB"},
		{"serve --dir d --memory 64MiB", "limits.memory = 67108864 (flag --memory): must be at least 128 MiB"},
		{"serve --dir d --memory 1000TiB", "limits.memory = 1099511627776000 (flag --memory): must be 0 or between 16 MiB and 16 TiB"},
		{"serve --dir d --heartbeat 0s", "raft.heartbeat = 0s (flag --heartbeat): must be more than 0"},
		{"serve --dir d --memory 0", "limits.memory = 0 (flag --memory): must be more than 0"},
		{"serve --dir d --heartbeat -1s", `--heartbeat: "-1s" is not a duration`},
		{"serve --dir d --shards 10000000", "cluster.shards = 10000000 (flag --shards): must be between 0 and 4194304"},
		{"serve --dir d --tls-ca ca.pem", `tls.cert = "" (default): TLS needs a CA, a certificate and a key`},
		{"dev --shards 3 --split-at testdata/help.txt", "testdata/help.txt:"},
		{"demo now", "flotilla demo takes no argument"},
	} {
		cmd := newCommand()
		code := cmd.run(t, strings.Fields(c.line)...)
		if code != exitUsage {
			t.Errorf("%s: exit code %d, want %d", c.line, code, exitUsage)
		}
		first, _, _ := strings.Cut(cmd.errOut.String(), "\n")
		if !strings.HasPrefix(first, "error: ") || !strings.Contains(first, c.want) {
			t.Errorf("%s: %q does not say %q", c.line, first, c.want)
		}
		if cmd.out.Len() > 0 {
			t.Errorf("%s: printed %q on standard output", c.line, cmd.out.String())
		}
	}
}

// Where a command connects to: --addr, else FLOTILLA_ADDR, else the default.
func TestAddresses(t *testing.T) {
	c := newCommand()
	c.mustRun(t, "cluster", "status")
	if got := strings.Join(c.dialed, " "); got != defaultAddr {
		t.Errorf("dialed %q", got)
	}
	c.env["FLOTILLA_ADDR"] = "a:1,b:2"
	c.mustRun(t, "cluster", "status")
	if got := strings.Join(c.dialed, " "); got != "a:1 b:2" {
		t.Errorf("dialed %q", got)
	}
	c.mustRun(t, "cluster", "status", "--addr", "c:3,d:4")
	if got := strings.Join(c.dialed, " "); got != "c:3 d:4" {
		t.Errorf("dialed %q", got)
	}
	c.dialErr = errors.New("connection refused")
	if code := c.run(t, "cluster", "status"); code != exitUnreachable || !strings.Contains(c.errOut.String(), "cannot connect to a:1, b:2: connection refused") {
		t.Errorf("exit code %d: %s", code, c.errOut.String())
	}
}

// The round of one key: absent, created, read, swapped, removed.
func TestKV(t *testing.T) {
	c := newCommand()
	if code := c.run(t, "kv", "get", "user/1"); code != exitNotFound || c.out.Len() > 0 || !strings.Contains(c.errOut.String(), `key "user/1" is absent`) {
		t.Errorf("exit code %d, %q, %q", code, c.out.String(), c.errOut.String())
	}
	c.mustRun(t, "kv", "put", "user/1", "ada")
	if got := c.mustRun(t, "kv", "get", "user/1"); got != "ada" {
		t.Errorf("get printed %q, want the raw value", got)
	}
	got := c.mustRun(t, "kv", "get", "user/1", "-o", "json")
	if got != `{"key":"dXNlci8x","value":"YWRh","version":"2.1.0"}`+"\n" {
		t.Errorf("get -o json printed %s", got)
	}
	if code := c.run(t, "kv", "cas", "user/1", "eve", "--absent"); code != exitConflict {
		t.Errorf("cas --absent of a present key: exit code %d", code)
	}
	if code := c.run(t, "kv", "cas", "user/1", "eve", "--expect-version", "2.9.0"); code != exitConflict {
		t.Errorf("cas with a wrong version: exit code %d", code)
	}
	if got := c.mustRun(t, "kv", "cas", "user/1", "grace", "--expect-version", "2.1.0", "-o", "json"); got != `{"version":"2.2.0"}`+"\n" {
		t.Errorf("cas printed %s", got)
	}
	c.stdin = "from\nstdin\x00"
	c.mustRun(t, "kv", "put", "bin", "--from", "-")
	if got := c.mustRun(t, "kv", "get", "bin"); got != c.stdin {
		t.Errorf("get printed %q", got)
	}
	want := "bin\t\"from\\nstdin\\x00\"\nuser/1\tgrace\n"
	if got := c.mustRun(t, "kv", "scan"); got != want {
		t.Errorf("scan printed %q, want %q", got, want)
	}
	if got := c.mustRun(t, "kv", "scan", "--reverse", "--limit", "1"); got != "user/1\tgrace\n" {
		t.Errorf("scan printed %q", got)
	}
	if got := c.mustRun(t, "kv", "scan", "--prefix", "user/", "-o", "json"); got != `[{"key":"dXNlci8x","value":"Z3JhY2U=","version":"2.2.0"}`+"\n]\n" {
		t.Errorf("scan -o json printed %q", got)
	}
	if got := c.mustRun(t, "kv", "scan", "--prefix", "none", "-o", "json"); got != "[]\n" {
		t.Errorf("scan -o json of nothing printed %q", got)
	}
	c.mustRun(t, "kv", "del", "user/1")
	if code := c.run(t, "kv", "get", "user/1"); code != exitNotFound {
		t.Errorf("exit code %d after del", code)
	}
	c.stdin = strings.Repeat("x", flotilla.MaxValueBytes+1)
	if code := c.run(t, "kv", "put", "big", "--from", "-"); code != exitUsage || !strings.Contains(c.errOut.String(), "limited to 3145728") {
		t.Errorf("exit code %d: %s", code, c.errOut.String())
	}
	if code := c.run(t, "kv", "put", "", "x"); code != exitUsage {
		t.Errorf("empty key: exit code %d", code)
	}
}

// Tables and JSON of the cluster, its nodes and shards; the JSON field names
// are an interface.
func TestStatusOutput(t *testing.T) {
	c := newCommand()
	c.kv.status = flotilla.ClusterStatus{
		State: "DEGRADED", Cluster: "9f2e", Shards: 2, ShardsWithLeader: 2, UnderReplicated: 1, Note: "node 2 does not answer",
		Warnings: []string{"the disk of n1 is full (91 MiB taken of 100 MiB, 9 MiB left): writes that add data are refused, deletes are not"},
		Nodes: []flotilla.NodeInfo{
			{ID: 1, Addr: "127.0.0.1:7001", ClientAddr: "127.0.0.1:7002", State: "up", Leaders: 2, Replicas: 3, DiskBytes: 5 << 30, LogBytes: 41 << 20, Lag: 3, FsyncP99Ms: 1.84, Version: "0.1.0", Started: time.Unix(1700000000, 0).UTC()},
			{ID: 2, Addr: "127.0.0.1:7011", ClientAddr: "127.0.0.1:7012", State: "down"},
		},
	}
	reps := []flotilla.ReplicaInfo{{Node: 1, Replica: 1, Role: "leader", State: "up", Applied: 9, Commit: 9, Last: 10}, {Node: 2, Replica: 2, Role: "follower", State: "unknown", Lag: 3}}
	c.kv.shards = []flotilla.ShardInfo{
		{ID: 2, Keyspace: 1, Start: []byte{}, End: []byte("m\x00"), Leader: 1, Term: 4, Replicas: reps, ConfVer: 1, Version: 1, LogBytes: 1 << 20, DataBytes: 900, State: "under-replicated"},
		{ID: 1, Leader: 1, Term: 2, Replicas: reps[:1], ConfVer: 1, Version: 1, State: "ok"},
		{ID: 3, Keyspace: 1, Start: []byte("m\x00"), Replicas: reps, State: "no leader"},
	}
	c.kv.snapshots = []flotilla.SnapshotInfo{
		{Node: 1, Peer: 2, Shard: 3, State: "sending", Index: 12345, Bytes: 1 << 30, Done: 300 << 20},
		{Node: 2, Peer: 1, Shard: 3, State: "receiving", Index: 12345, Bytes: 1 << 30, Done: 299 << 20},
		{Node: 1, Peer: 2, Shard: 17, State: "preparing"},
	}
	var all strings.Builder
	for _, line := range []string{"cluster status", "node list", "shard list", "shard show 2", "snapshot list", "snapshot list -o json",
		"cluster status -o json", "node list -o json", "node list -o jsonl", "shard list -o jsonl", "shard show 2 -o json"} {
		fmt.Fprintf(&all, "$ flotilla %s\n%s", line, c.mustRun(t, strings.Fields(line)...))
	}
	golden(t, "status.txt", all.String())
	if code := c.run(t, "shard", "show", "9"); code != exitNotFound || !strings.Contains(c.errOut.String(), "shard 9 does not exist") {
		t.Errorf("exit code %d: %s", code, c.errOut.String())
	}
}

func TestVersionAndCompletion(t *testing.T) {
	c := newCommand()
	if got := c.mustRun(t, "version"); !strings.HasPrefix(got, "flotilla v"+flotilla.ReleaseVersion+" (go") {
		t.Errorf("version printed %q", got)
	}
	var b buildInfo
	if err := json.Unmarshal([]byte(c.mustRun(t, "version", "-o", "json")), &b); err != nil || b.Version != flotilla.ReleaseVersion {
		t.Errorf("%v: %+v", err, b)
	}
	if got := c.mustRun(t, "completion", "bash"); !strings.Contains(got, "__start_flotilla") {
		t.Errorf("completion bash printed %d bytes", len(got))
	}
	if got := c.mustRun(t, "__complete", "kv", "g"); !strings.Contains(got, "get\t") {
		t.Errorf("completing kv g gives %q", got)
	}
}

// Colour is only for terminals, and not with NO_COLOR or --no-color.
func TestColour(t *testing.T) {
	env := map[string]string{}
	a := &app{env: func(k string) (string, bool) { v, ok := env[k]; return v, ok }}
	if got := a.colour(true, red, "x"); got != "\x1b[31mx\x1b[0m" {
		t.Errorf("%q", got)
	}
	if got := a.colour(false, red, "x"); got != "x" {
		t.Errorf("not a terminal: %q", got)
	}
	a.noColor = true
	if got := a.colour(true, red, "x"); got != "x" {
		t.Errorf("--no-color: %q", got)
	}
	a.noColor, env["NO_COLOR"] = false, "1"
	if got := a.colour(true, red, "x"); got != "x" {
		t.Errorf("NO_COLOR: %q", got)
	}
}

func TestNearest(t *testing.T) {
	words := []string{"heartbeat", "support", "election_rank", "put"}
	for got, want := range map[string]string{"heartbaet": "heartbeat", "suport": "support", "election": "election_rank", "xyz": "", "pt": "put", "HEARTBEAT": "heartbeat"} {
		if n := nearest(got, words); n != want {
			t.Errorf("nearest(%q) = %q, want %q", got, n, want)
		}
	}
}

func TestTexts(t *testing.T) {
	for n, want := range map[int64]string{0: "0 B", 1023: "1023 B", 1024: "1.0 KiB", 5 << 30: "5.0 GiB"} {
		if got := bytesText(n); got != want {
			t.Errorf("bytesText(%d) = %q, want %q", n, got, want)
		}
	}
	for n, want := range map[int64]string{0: "0", 999: "999", 1000: "1,000", -1000: "-1,000", 1234567: "1,234,567"} {
		if got := countText(n); got != want {
			t.Errorf("countText(%d) = %q, want %q", n, got, want)
		}
	}
	for in, want := range map[string]string{"ada": "ada", "a b": "a b", "a\tb": `"a\tb"`, "\xff": `"\xff"`, `"x"`: `"\"x\""`, "ümlaut": "ümlaut"} {
		if got := plain([]byte(in)); got != want {
			t.Errorf("plain(%q) = %s, want %s", in, got, want)
		}
	}
}
