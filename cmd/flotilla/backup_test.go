package main

import (
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"
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
