package shard

import (
	"bytes"
	"encoding/hex"
	"flag"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

var rewrite = flag.Bool("rewrite", false, "rewrite the golden files in testdata")

// golden compares named encodings with testdata/<file>.golden, one
// "name hex" line each: a byte that moves is a format change.
type golden struct {
	t    *testing.T
	file string
	got  strings.Builder
	want map[string][]byte
}

func openGolden(t *testing.T, file string) *golden {
	t.Helper()
	g := &golden{t: t, file: filepath.Join("testdata", file+".golden"), want: map[string][]byte{}}
	b, err := os.ReadFile(g.file)
	if err != nil && !*rewrite {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(b)) {
		name, enc, ok := strings.Cut(strings.TrimSuffix(line, "\n"), " ")
		raw, err := hex.DecodeString(enc)
		if (!ok && name != "") || err != nil {
			t.Fatalf("%s: bad line %q", g.file, line)
		}
		g.want[name] = raw
	}
	t.Cleanup(g.close)
	return g
}

func (g *golden) check(name string, enc []byte) {
	g.t.Helper()
	g.got.WriteString(name + " " + hex.EncodeToString(enc) + "\n")
	if *rewrite {
		return
	}
	want, ok := g.want[name]
	if !ok {
		g.t.Errorf("%s: no line %q", g.file, name)
	} else if !bytes.Equal(want, enc) {
		g.t.Errorf("%s: %s: the layout moved\n got %x\nwant %x", g.file, name, enc, want)
	}
}

func (g *golden) close() {
	if !*rewrite {
		return
	}
	if err := os.MkdirAll("testdata", 0o755); err != nil {
		g.t.Fatal(err)
	}
	if err := os.WriteFile(g.file, []byte(g.got.String()), 0o644); err != nil {
		g.t.Fatal(err)
	}
}
