package main

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/flotillakv/flotilla"
)

// hashTree hashes all names and bytes below dir.
func hashTree(t *testing.T, dir string) string {
	t.Helper()
	h := sha256.New()
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			fmt.Fprintln(h, path)
			return err
		}
		b, err := os.ReadFile(path)
		fmt.Fprintln(h, path, len(b))
		h.Write(b)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return fmt.Sprintf("%x", h.Sum(nil))
}

// TestCheckCommand: a directory in use is refused and its process named, a stopped one
// is sound, a damaged one is reported, and in no case is a byte of it changed.
func TestCheckCommand(t *testing.T) {
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	dir := t.TempDir()
	n, err := flotilla.Open(ctx, flotilla.Options{Dir: dir, Listen: "127.0.0.1:0", Bootstrap: 1, Shards: 2, Limits: flotilla.Limits{Memory: 16 << 20}})
	if err != nil {
		t.Fatal(err)
	}
	closed := false
	defer func() {
		if !closed {
			n.Close()
		}
	}()
	for i := range 50 {
		if _, err := n.Put(ctx, fmt.Appendf(nil, "%c%03d", "\x20\xe0"[i%2], i), bytes.Repeat([]byte{byte(i)}, 1<<10)); err != nil {
			t.Fatal(err)
		}
	}
	check := func(want int, args ...string) (string, string) {
		t.Helper()
		var out, errOut bytes.Buffer
		a := newApp()
		a.out, a.errOut = &out, &errOut
		if code := run(ctx, a, append([]string{"check"}, args...)); code != want {
			t.Fatalf("check %v: exit code %d, want %d\n%s%s", args, code, want, &out, &errOut)
		}
		return out.String(), errOut.String()
	}
	if _, text := check(exitUsage, dir); !strings.Contains(text, fmt.Sprintf("process %d uses it", os.Getpid())) {
		t.Errorf("of a directory in use it says: %s", text)
	}
	closed = true
	if err := n.Close(); err != nil {
		t.Fatal(err)
	}
	check(exitUsage)
	check(exitUsage, dir, dir)
	check(exitUsage, t.TempDir())
	check(exitUsage, filepath.Join(dir, "none"))
	before := hashTree(t, dir)
	text, _ := check(exitOK, dir, "--digest")
	if !strings.HasPrefix(text, "SOUND") || !strings.Contains(text, "DIGEST") {
		t.Errorf("of a sound directory it says\n%s", text)
	}
	text, _ = check(exitOK, "--dir", dir, "--digest", "-o", "json")
	var r flotilla.CheckReport
	if err := json.Unmarshal([]byte(text), &r); err != nil {
		t.Fatal(err)
	}
	if r.Shards != 3 || r.Keys < 50 || len(r.Digests) != 3 || len(r.Digests[2].Digest) != 64 {
		t.Errorf("the report is %s", text)
	}
	if hashTree(t, dir) != before {
		t.Error("the directory has changed")
	}
	for file, want := range map[string]string{"IDENT": "identity", "cluster.json": "formation", "db/*.sst": "table"} {
		names, err := filepath.Glob(filepath.Join(dir, file))
		if err != nil || len(names) == 0 {
			t.Fatalf("%s: %v, %v", file, names, err)
		}
		b, err := os.ReadFile(names[0])
		if err != nil {
			t.Fatal(err)
		}
		at := len(b) / 2
		if file == "IDENT" {
			at = 30
		}
		if file == "cluster.json" {
			at = bytes.Index(b, []byte("members"))
		}
		b[at] ^= 1
		if err := os.WriteFile(names[0], b, 0o600); err != nil {
			t.Fatal(err)
		}
		before := hashTree(t, dir)
		text, _ := check(exitFailed, dir)
		if !strings.HasPrefix(text, "DAMAGED  ") || !strings.Contains(text, "fault "+want+", ") || !strings.Contains(text, filepath.Base(names[0])) || !strings.Contains(text, "next: ") {
			t.Errorf("of a flipped bit of %s it says\n%s", file, text)
		}
		if hashTree(t, dir) != before {
			t.Errorf("%s: the directory has changed", file)
		}
		b[at] ^= 1
		if err := os.WriteFile(names[0], b, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	check(exitOK, dir)
}
