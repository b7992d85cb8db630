package main

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/flotillakv/flotilla"
	"github.com/flotillakv/flotilla/snapshot/backup"
)

// devCluster starts a development cluster and returns its client addresses.
func devCluster(t *testing.T, args ...string) []string {
	t.Helper()
	ready, stop := background(t, append([]string{"dev", "--dir", t.TempDir(), "--client", "127.0.0.1:0", "--quiet", "--log-level", "error"}, args...)...)
	t.Cleanup(func() { stop() })
	_, list, _ := strings.Cut(ready, "clients at ")
	list, _, _ = strings.Cut(list, ", data")
	return strings.Split(list, ",")
}

// expect runs a command and checks its exit code, and what it says where.
func expect(t *testing.T, code int, want string, args ...string) string {
	t.Helper()
	out, e, got := real(t, args...)
	if got != code || !strings.Contains(out+e, want) {
		t.Fatalf("flotilla %s: exit code %d, want %d and %q:\n%s%s", strings.Join(args, " "), got, code, want, out, e)
	}
	return out
}

// The four verbs on two clusters of different shape, with their exit codes: the
// restored cluster exports the same bytes, a damaged chunk is named by verify
// and not restored.
func TestBackupCommands(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "b")
	from := "--addr=" + devCluster(t, "--nodes", "3", "--shards", "2")[0]
	tsv := filepath.Join(t.TempDir(), "in.tsv")
	var in strings.Builder
	for i := range 500 {
		in.WriteString(strings.Repeat(string(rune('a'+i%26)), 1+i/26) + "\tvalue\n")
	}
	if err := os.WriteFile(tsv, []byte(in.String()), 0o600); err != nil {
		t.Fatal(err)
	}
	expect(t, exitUsage, "--to", "backup", "create", from)
	expect(t, exitUsage, "not a directory", "backup", "create", from, "--to", tsv)
	expect(t, exitOK, "no backups", "backup", "list", "--from", dir)
	expect(t, exitNotFound, "no such backup", "backup", "verify", "--from", dir)
	expect(t, exitOK, "", "kv", "import", tsv, from)
	want := expect(t, exitOK, "", "kv", "export", from)
	id := strings.TrimSpace(expect(t, exitOK, "500 records", "backup", "create", from, "--to", dir))
	expect(t, exitOK, "0 new chunks", "backup", "create", from, "--to", dir)
	var list []backupInfo
	if err := json.Unmarshal([]byte(expect(t, exitOK, id, "backup", "list", "--from", dir, "-o", "json")), &list); err != nil || len(list) != 2 || list[0].Pairs != 500 || list[0].Shards != 2 {
		t.Fatalf("%+v, %v", list, err)
	}
	expect(t, exitOK, "2 backups", "backup", "verify", "--from", dir)

	to := "--addr=" + devCluster(t, "--nodes", "1", "--shards", "6")[0]
	expect(t, exitNotFound, "no such backup", "backup", "restore", "20000101-none", "--from", dir, to)
	expect(t, exitOK, "500 records", "backup", "restore", id, "--from", dir, to, "--dry-run")
	if got := expect(t, exitOK, "", "kv", "export", to); got != "" {
		t.Fatalf("--dry-run wrote %q", got)
	}
	expect(t, exitOK, "500 records", "backup", "restore", id, "--from", dir, to)
	if got := expect(t, exitOK, "", "kv", "export", to); got != want {
		t.Errorf("restored %d bytes, want %d", len(got), len(want))
	}
	expect(t, exitConflict, "not empty", "backup", "restore", "--from", dir, to)
	expect(t, exitOK, "would be refused", "backup", "restore", "--from", dir, to, "--dry-run")
	expect(t, exitUsage, "--yes", "backup", "restore", "--from", dir, to, "--replace")
	expect(t, exitOK, "", "kv", "put", "~", "stray", to)
	expect(t, exitOK, "", "backup", "restore", "--from", dir, to, "--resume")
	if got := expect(t, exitOK, "", "kv", "export", to); got != want+"~\tstray\n" {
		t.Errorf("resumed to %d bytes", len(got))
	}
	expect(t, exitOK, "", "backup", "restore", "--from", dir, to, "--replace", "--yes")
	if got := expect(t, exitOK, "", "kv", "export", to); got != want {
		t.Errorf("replaced to %d bytes, want %d", len(got), len(want))
	}

	chunks, err := filepath.Glob(filepath.Join(dir, "chunks", "*", "*"))
	if err != nil || len(chunks) == 0 {
		t.Fatal(chunks, err)
	}
	b, err := os.ReadFile(chunks[0])
	if err != nil {
		t.Fatal(err)
	}
	b[len(b)/2] ^= 4
	if err := os.WriteFile(chunks[0], b, 0o600); err != nil {
		t.Fatal(err)
	}
	name := filepath.Base(chunks[0])
	expect(t, exitFailed, name, "backup", "verify", "--from", dir)
	expect(t, exitFailed, `"object":"chunks/`+name[:2]+"/"+name, "backup", "verify", id, "--from", dir, "-o", "json")
	expect(t, exitFailed, name, "backup", "restore", "--from", dir, to, "--replace", "--yes")
}

// Old backups go, with what they alone name; --dry-run and a missing --yes remove
// nothing; another one's lock is waited for and named.
func TestPruneCommand(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "b")
	addr := "--addr=" + devCluster(t, "--nodes", "1", "--shards", "2")[0]
	var ids []string
	for i := range 3 {
		expect(t, exitOK, "", "kv", "put", "a", fmt.Sprint(i), addr)
		ids = append(ids, strings.TrimSpace(expect(t, exitOK, "", "backup", "create", "--to", dir, addr)))
	}
	snap := strings.TrimSpace(expect(t, exitOK, "", "snapshot", "take", "--all", "--to", dir, addr))
	chunks := func() int {
		list, err := filepath.Glob(filepath.Join(dir, "chunks", "*", "*"))
		if err != nil {
			t.Fatal(err)
		}
		return len(list)
	}
	expect(t, exitUsage, "--yes", "backup", "prune", "--from", dir, "--keep-last", "1")
	expect(t, exitOK, "would remove 2 of 3 backups and 2 chunks", "backup", "prune", "--from", dir, "--keep-last", "1", "--dry-run")
	expect(t, exitOK, "would remove 0 of 3 backups", "backup", "prune", "--from", dir, "--older-than", "1d", "--dry-run")
	if n := chunks(); n != 3 {
		t.Fatalf("%d chunks", n)
	}
	if err := os.MkdirAll(filepath.Join(dir, "locks"), 0o700); err != nil {
		t.Fatal(err)
	}
	lock := filepath.Join(dir, "locks", "backup-of-another-one")
	if err := os.WriteFile(lock, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	expect(t, exitConflict, "locks/backup-of-another-one", "backup", "prune", "--from", dir, "--keep-last", "2", "--yes", "--wait", "10ms")
	if err := os.Remove(lock); err != nil {
		t.Fatal(err)
	}
	if out := expect(t, exitOK, "removed 1 of 3 backups and 1 chunks", "backup", "prune", "--from", dir, "--keep-last", "2", "--yes"); out != ids[0]+"\n" {
		t.Errorf("%q, want %q", out, ids[0])
	}
	expect(t, exitOK, `"removed":[{"id":"`+ids[1], "backup", "prune", "--from", dir, "--keep-last", "1", "--yes", "-o", "json")
	if n := chunks(); n != 1 {
		t.Errorf("%d chunks are left", n)
	}
	expect(t, exitOK, "1 backups", "backup", "verify", "--from", dir)
	expect(t, exitOK, "1 snapshots", "snapshot", "verify", snap, "--from", dir)
	if err := os.WriteFile(filepath.Join(dir, "backups", ids[2]), []byte("?"), 0o600); err != nil {
		t.Fatal(err)
	}
	expect(t, exitFailed, "remove backups/"+ids[2], "backup", "prune", "--from", dir, "--keep-last", "1", "--yes")
}

// Snapshots of shards: taken, listed, checked, and written back into their ranges;
// the exit codes of what cannot be.
func TestSnapshotCommands(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "b")
	addr := "--addr=" + devCluster(t, "--nodes", "3", "--shards", "3")[0]
	put := func(keys string) {
		for _, k := range keys {
			expect(t, exitOK, "", "kv", "put", string(k), "value of "+string(k), addr)
		}
	}
	put("0aÿ") // one in each shard
	want := expect(t, exitOK, "", "kv", "export", addr)
	var shards []flotilla.ShardInfo
	if err := json.Unmarshal([]byte(expect(t, exitOK, "", "shard", "list", addr, "-o", "json")), &shards); err != nil {
		t.Fatal(err)
	}
	shards = slices.DeleteFunc(shards, func(s flotilla.ShardInfo) bool { return s.Keyspace == 0 })
	if len(shards) != 3 {
		t.Fatalf("%+v", shards)
	}
	id := fmt.Sprint(shards[0].ID)
	expect(t, exitOK, "no snapshot is on its way", "snapshot", "list", addr)
	expect(t, exitOK, "[]", "snapshot", "list", addr, "-o", "json")
	expect(t, exitOK, "no snapshots in", "snapshot", "list", "--from", dir)
	expect(t, exitNotFound, "no such backup", "snapshot", "verify", "--from", dir)
	expect(t, exitNotFound, "shard 99999", "snapshot", "take", "99999", "--to", dir, addr)
	expect(t, exitUnreachable, "cannot connect", "snapshot", "take", id, "--to", dir, "--addr=127.0.0.1:1", "--timeout=200ms")
	one := strings.TrimSpace(expect(t, exitOK, "of 1 shards", "snapshot", "take", id, "--to", dir, addr))
	all := strings.TrimSpace(expect(t, exitOK, "of 3 shards", "snapshot", "take", "--all", "--to", dir, addr))
	expect(t, exitOK, "no backups", "backup", "list", "--from", dir)
	var list []backupInfo
	if err := json.Unmarshal([]byte(expect(t, exitOK, one, "snapshot", "list", "--from", dir, "-o", "json")), &list); err != nil || len(list) != 2 {
		t.Fatalf("%+v, %v", list, err)
	}
	for _, i := range list {
		if n := map[string]int{one: 1, all: 3}[i.ID]; n == 0 || i.Shards != n || i.Pairs != int64(n) {
			t.Errorf("%+v", i)
		}
	}
	expect(t, exitOK, "2 snapshots", "snapshot", "verify", "--from", dir)
	expect(t, exitOK, `"snapshots":1`, "snapshot", "verify", one, "--from", dir, "-o", "json")

	put("1b")
	expect(t, exitConflict, "not empty", "backup", "restore", one, "--from", dir, addr)
	expect(t, exitOK, "in the ranges of these shards", "backup", "restore", one, "--from", dir, addr, "--replace", "--dry-run")
	expect(t, exitOK, "1 records", "backup", "restore", one, "--from", dir, addr, "--replace", "--yes")
	var keep []string
	for _, line := range strings.SplitAfter(expect(t, exitOK, "", "kv", "export", addr), "\n") {
		if end := shards[0].End; line == "" || line[:1] >= string(end[:1]) {
			continue
		}
		keep = append(keep, line)
	}
	if len(keep) != 1 || keep[0] != "0\tvalue of 0\n" {
		t.Errorf("the first shard holds %q", keep)
	}
	expect(t, exitOK, "", "backup", "restore", all, "--from", dir, addr, "--replace", "--yes")
	if got := expect(t, exitOK, "", "kv", "export", addr); got != want {
		t.Errorf("%q, want %q", got, want)
	}

	path := filepath.Join(dir, "snapshots", one)
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	b[len(b)/2] ^= 1
	if err := os.WriteFile(path, b, 0o600); err != nil {
		t.Fatal(err)
	}
	expect(t, exitFailed, "snapshots/"+one, "snapshot", "verify", "--from", dir)
	expect(t, exitFailed, "snapshots/"+one, "backup", "restore", one, "--from", dir, addr)
	expect(t, exitOK, "damaged", "snapshot", "list", "--from", dir)
}

// What backups fail with has the exit code of its kind, and says what to do.
func TestBackupErrors(t *testing.T) {
	for _, x := range []struct {
		err  error
		code int
		want string
	}{
		{fmt.Errorf("shard 3: %w: node 2 was restarted", backup.ErrCutLost), exitUnreachable, "uses what was stored"},
		{&backup.BusyError{Who: []string{"locks/prune-1"}}, exitConflict, "locks/prune-1"},
		{backup.ErrLockLost, exitFailed, "the same command again"},
		{fmt.Errorf("shard 9: %w", flotilla.ErrNotFound), exitNotFound, "shard 9"},
		{&flotilla.OverloadedError{Why: "backups read 16 shards from the node already", RetryAfter: 1}, exitConflict, "try again"},
	} {
		c := newCommand()
		c.kv.fail = []fault{{err: x.err}}
		if code := c.run(t, "backup", "create", "--to", t.TempDir()); code != x.code || !strings.Contains(c.errOut.String(), x.want) {
			t.Errorf("%v: exit code %d, want %d:\n%s", x.err, code, x.code, c.errOut.String())
		}
	}
}
