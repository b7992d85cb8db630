package e2e

import (
	"bufio"
	"bytes"
	"fmt"
	"hash/fnv"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"
)

const shards = 48

// generate writes records with unique keys in random order: names that share
// long prefixes, values from nothing to a few KiB with any bytes but line feeds,
// tabs among them.
func generate(t *testing.T, path string, n int) {
	t.Helper()
	rnd := rand.New(rand.NewPCG(1, uint64(n)))
	f, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	w := bufio.NewWriter(f)
	var value []byte
	for _, i := range rnd.Perm(n) {
		size := rnd.IntN(1200)
		if i%16 == 0 {
			size = rnd.IntN(8000)
		}
		value = value[:0]
		for range size {
			b := byte(rnd.Uint32())
			if b == '\n' {
				b = '\t'
			}
			value = append(value, b)
		}
		h := fnv.New32a()
		fmt.Fprint(h, i)
		fmt.Fprintf(w, "%s%c-%06d\t", []string{"lib", "python3-", "", "\xc3\xa9t\xc3\xa9 "}[h.Sum32()%4], 'a'+rune(h.Sum32()>>8%26), i)
		w.Write(append(value, '\n'))
	}
	if err := w.Flush(); err != nil {
		t.Fatal(err)
	}
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
}

// sorted returns the lines of a file in the order of their bytes up to the tab.
func sorted(t *testing.T, path string) (lines [][]byte) {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	lines = bytes.SplitAfter(b, []byte("\n"))
	if len(lines[len(lines)-1]) == 0 {
		lines = lines[:len(lines)-1]
	}
	slices.SortFunc(lines, func(a, b []byte) int { return bytes.Compare(key(a), key(b)) })
	for i := range lines[1:] {
		if bytes.Equal(key(lines[i]), key(lines[i+1])) {
			t.Fatalf("%s: key %q is there twice", path, key(lines[i]))
		}
	}
	return lines
}

func key(line []byte) []byte {
	k, _, _ := bytes.Cut(line, []byte("\t"))
	return k
}

// Records are imported while one node after another is killed and restarted.
// Then every node exports exactly the records, in order; and once more after all
// of them were killed at once.
func TestImportWhileANodeIsKilled(t *testing.T) {
	t.Parallel()
	inputs := strings.Split(*files, ",")
	if *files == "" {
		inputs = []string{filepath.Join(t.TempDir(), "generated.tsv")}
		generate(t, inputs[0], 20_000)
	}
	for _, input := range inputs {
		lines := sorted(t, input)
		want := bytes.Join(lines, nil)
		var splits bytes.Buffer
		for i := 1; i < shards; i++ {
			splits.Write(key(lines[len(lines)*i/shards]))
			splits.WriteByte('\n')
		}
		at := filepath.Join(t.TempDir(), "splits")
		if err := os.WriteFile(at, splits.Bytes(), 0o600); err != nil {
			t.Fatal(err)
		}
		for round := range *rounds {
			t.Run(fmt.Sprintf("%s/%d", filepath.Base(input), round+1), func(t *testing.T) {
				importWithKill(t, input, at, want, len(lines), round%3)
			})
		}
	}
}

func importWithKill(t *testing.T, input, splits string, want []byte, records, victim int) {
	c := startCluster(t, 3, "--split-at", splits)
	if s := c.status(t, c.addr); s.Shards != shards+1 {
		t.Fatalf("the cluster has %d shards", s.Shards)
	}
	// The first third is fed, the node dies once it begins to be there, and the
	// rest is fed; the node is back as soon as the others have noticed.
	in, feed := io.Pipe()
	rest := make(chan struct{})
	go func() {
		third := len(want) / 3
		b, err := os.ReadFile(input)
		if err == nil {
			_, err = feed.Write(b[:third])
		}
		<-rest
		if err == nil {
			_, err = feed.Write(b[third:])
		}
		feed.CloseWithError(err)
	}()
	im := startWith(t, in, "kv", "import", "-", "--addr", c.addr)
	if records > 3*(1<<15) { // less is one window of the import, which begins when all is read
		wait(t, time.Minute, "the first imported record", func() bool {
			return must(t, "kv", "scan", "--limit", "1", "--addr", c.addr) != ""
		})
	}
	close(rest)
	if records <= 3*(1<<15) {
		wait(t, time.Minute, "the first imported record", func() bool {
			return must(t, "kv", "scan", "--limit", "1", "--addr", c.addr) != ""
		})
	}
	c.nodes[victim].kill()
	killed := time.Now()
	over := c.clients[(victim+1)%3]
	wait(t, time.Minute, "the others notice the death", func() bool {
		s := c.status(t, over)
		return s.Nodes[idOf(c, victim)-1].State == "down" && s.State == "DEGRADED"
	})
	down := time.Since(killed)
	c.restart(t, victim)
	serving := time.Since(c.nodes[victim].started)
	im.endWithin(t, 2*time.Minute)
	took := time.Since(im.started)
	if code := im.cmd.ProcessState.ExitCode(); code != 0 {
		t.Fatalf("import: exit code %d\n%s", code, im.err)
	}
	c.healthy(t)
	t.Logf("%d records imported in %.2fs; node %d killed after %.2fs, noticed and taken over after %.2fs, serving %.2fs after its restart, import over %.2fs after the kill",
		records, took.Seconds(), victim+1, killed.Sub(im.started).Seconds(), down.Seconds(), serving.Seconds(), im.started.Add(took).Sub(killed).Seconds())
	compare(t, c, want)
	for i, p := range c.nodes {
		if loud := strings.Join(p.loud(), ""); strings.Contains(loud, `"ERROR"`) || strings.Contains(loud, "panic") {
			t.Errorf("node %d wrote:\n%s", i+1, loud)
		}
	}

	// All at once.
	for _, p := range c.nodes {
		p.cmd.Process.Kill()
	}
	for _, p := range c.nodes {
		p.kill()
	}
	again := time.Now()
	for i := range c.nodes {
		c.start(t, i)
	}
	for _, p := range c.nodes {
		p.ready(t)
	}
	t.Logf("all three killed; ready again in %.2fs", time.Since(again).Seconds())
	compare(t, c, want)
	c.stopAll(t)
}

// compare exports from each node.
func compare(t *testing.T, c *cluster, want []byte) {
	t.Helper()
	for i, addr := range c.clients {
		var got bytes.Buffer
		begun := time.Now()
		r := invocation{args: []string{"kv", "export", "--addr", addr}, out: &got, limit: 2 * time.Minute}.run(t)
		if r.code != 0 {
			t.Fatalf("export from node %d: exit code %d\n%s", i+1, r.code, r.err)
		}
		if !bytes.Equal(got.Bytes(), want) {
			name := filepath.Join(os.TempDir(), fmt.Sprintf("flotilla-export-%d.tsv", i+1))
			os.WriteFile(name, got.Bytes(), 0o600)
			t.Fatalf("node %d exports %d bytes, %d lines; %d bytes, %d lines went in; kept in %s", i+1, got.Len(), bytes.Count(got.Bytes(), []byte("\n")), len(want), bytes.Count(want, []byte("\n")), name)
		}
		t.Logf("node %d exports the same %d bytes in %.2fs", i+1, len(want), time.Since(begun).Seconds())
	}
}
