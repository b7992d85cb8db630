package house

import (
	"bytes"
	"encoding/hex"
	"fmt"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/flotillakv/flotilla/multiraft/raft"
	"github.com/flotillakv/flotilla/router/catalog"
	"github.com/flotillakv/flotilla/shard"
	"github.com/flotillakv/flotilla/snapshot"
	"github.com/flotillakv/flotilla/snapshot/backup"
	"github.com/flotillakv/flotilla/transport"
)

// notFormats are the files in testdata folders that hold no layout of bytes:
// scenarios, schedules, and texts that commands print. Every other file there is a golden
// file and must be named in docs/formats.md.
var notFormats = []string{
	"multiraft/raft/testdata/*.txt",
	"multiraft/raft/rafttest/testdata/*.txt",
	"multiraft/liveness/testdata/*.txt",
	"internal/sim/testdata/*.txt",
	"internal/sim/testdata/regress/*.json", // schedules of the simulator; versioned, described in sim.File
	"internal/sim/t1/testdata/regress/*.json",
	"internal/sim/testdata/regress/*.txt", // what a reader needs of a schedule
	"internal/sim/t1/testdata/regress/*.txt",
	"internal/house/testdata/embedder-modules.txt",
	"cmd/flotilla/testdata/*.txt",
	"cmd/flotilla/testdata/default.toml",
}

// limits are the constants that the table of limits gives.
var limits = map[string]int{
	"raft.MaxEntryBytes": raft.MaxEntryBytes, "raft.CoalesceBytes": raft.CoalesceBytes,
	"raft.CoalesceCmds": raft.CoalesceCmds, "raft.MaxReplicas": raft.MaxReplicas,
	"shard.MaxKeyBytes": shard.MaxKeyBytes, "shard.MaxValueBytes": shard.MaxValueBytes,
	"shard.MaxBatchBytes": shard.MaxBatchBytes, "shard.MaxBatchOps": shard.MaxBatchOps,
	"shard.MaxRangeDeletes": shard.MaxRangeDeletes, "shard.MaxTxnGets": shard.MaxTxnGets,
	"shard.MaxTxnResultBytes": shard.MaxTxnResultBytes, "shard.MaxUserBytes": shard.MaxUserBytes,
	"shard.MaxHops": shard.MaxHops, "shard.MaxScanPairs": shard.MaxScanPairs, "shard.MaxScanBytes": shard.MaxScanBytes,
	"catalog.MaxSplitKeyBytes": catalog.MaxSplitKeyBytes,
	"snapshot.ChunkBytes":      snapshot.ChunkBytes, "snapshot.MaxFiles": snapshot.MaxFiles,
	"snapshot.MaxFileBytes": snapshot.MaxFileBytes, "snapshot.MaxManifestBytes": snapshot.MaxManifestBytes,
	"backup.ChunkMaxBytes": backup.ChunkMaxBytes, "backup.MaxManifestBytes": backup.MaxManifestBytes,
	"transport.MaxFrameBytes": transport.MaxFrameBytes, "transport.FrameTargetBytes": transport.FrameTargetBytes,
	"transport.CompressMinBytes": transport.CompressMinBytes, "transport.MaxChunkBytes": transport.MaxChunkBytes,
}

// TestFormats: docs/formats.md names every golden file and every line of it,
// names none that does not exist, and its dumps and limits are the real ones.
func TestFormats(t *testing.T) {
	doc, err := os.ReadFile(filepath.Join(root(t), "docs", "formats.md"))
	if err != nil {
		t.Fatal(err)
	}
	files := goldenFiles(t)
	if len(files) < 30 {
		t.Fatalf("only %d golden files found: the test looks in the wrong place", len(files))
	}
	for _, fault := range checkFormats(string(doc), files) {
		t.Error(fault)
	}
}

// TestFormatsFails: each kind of drift between the document and the golden
// files is found, in copies with one fault each.
func TestFormatsFails(t *testing.T) {
	b, err := os.ReadFile(filepath.Join(root(t), "docs", "formats.md"))
	if err != nil {
		t.Fatal(err)
	}
	doc := string(b)
	files := goldenFiles(t)
	change := func(name, content string) map[string]string {
		out := map[string]string{name: content}
		for n, c := range files {
			if n != name {
				out[n] = c
			}
		}
		return out
	}
	const frame, put = "transport/testdata/frame_empty.golden", "shard/testdata/commands.golden"
	for _, c := range []struct {
		name  string
		doc   string
		files map[string]string
		want  string
	}{
		{"a golden file that nobody described", doc, change("engine/testdata/new.golden", "00\n"), "engine/testdata/new.golden"},
		{"a file that is gone", doc, map[string]string{}, "does not exist"},
		{"a name that is misspelt", strings.Replace(doc, "testdata/hello.golden", "testdata/hallo.golden", 1), files, "hallo.golden"},
		{"a byte of a file that moved", doc, change(frame, strings.Replace(files[frame], "464c01", "464c02", 1)), frame},
		{"a byte of the document that moved", strings.Replace(doc, "464c 01 00 ", "464c 01 01 ", 1), files, frame},
		{"a file cut short", doc, change(frame, files[frame][:len(files[frame])-3]+"\n"), frame},
		{"a line that was added", doc, change(put, files[put]+"increment 00\n"), `"increment"`},
		{"a line that was renamed", doc, change(put, strings.Replace(files[put], "put ", "store ", 1)), `"put"`},
		{"a comment without a dump", strings.Replace(doc, "<!-- golden: "+frame+" -->\n```", "<!-- golden: "+frame+" -->\n", 1), files, "no dump"},
		{"a limit that changed", strings.Replace(doc, "| 4190208 |", "| 4194304 |", 1), files, "raft.MaxEntryBytes"},
		{"a limit that went missing", strings.Replace(doc, "| `shard.MaxHops` |", "| `shard.Hops` |", 1), files, "shard.MaxHops"},
	} {
		faults := checkFormats(c.doc, c.files)
		if !slices.ContainsFunc(faults, func(f string) bool { return strings.Contains(f, c.want) }) {
			t.Errorf("%s: nothing said %q, but %q", c.name, c.want, faults)
		}
	}
}

// goldenFiles returns all files of testdata folders that hold a layout: path
// within the module, with slashes, and content.
func goldenFiles(t *testing.T) map[string]string {
	t.Helper()
	top := root(t)
	out := map[string]string{}
	err := filepath.WalkDir(top, func(p string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		rel, err := filepath.Rel(top, p)
		if err != nil {
			return err
		}
		rel = filepath.ToSlash(rel)
		if d.IsDir() {
			if p != top && strings.HasPrefix(d.Name(), ".") || d.Name() == "fuzz" && path.Base(path.Dir(rel)) == "testdata" {
				return filepath.SkipDir
			}
			return nil
		}
		isGolden := strings.HasSuffix(rel, ".golden")
		if !isGolden && !strings.Contains("/"+rel, "/testdata/") {
			return nil
		}
		if !isGolden && slices.ContainsFunc(notFormats, func(pat string) bool { ok, _ := path.Match(pat, rel); return ok }) {
			return nil
		}
		b, err := os.ReadFile(p)
		out[rel] = string(b)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return out
}

var (
	goldenName = regexp.MustCompile(`[\w./-]+\.golden`)
	codeSpan   = regexp.MustCompile("`[^`\n]+`")
	exampleTag = regexp.MustCompile(`(?m)^<!-- golden: (\S+?)(?: (.+?))? -->\n`)
	limitRow   = regexp.MustCompile("(?m)^\\| `([a-z]+\\.\\w+)` \\| (\\d+) \\|")
)

// checkFormats returns what is wrong between the document and the files.
func checkFormats(doc string, files map[string]string) (faults []string) {
	bad := func(format string, args ...any) {
		faults = append(faults, fmt.Sprintf("docs/formats.md: "+format, args...))
	}

	spans := map[string]bool{}
	for _, s := range codeSpan.FindAllString(doc, -1) {
		spans[strings.Trim(s, "`")] = true
	}
	for name, content := range files {
		if !spans[name] {
			bad("%s is not named (in backquotes)", name)
		}
		for line := range namedLines(content) {
			if !spans[line] {
				bad("the line %q of %s is not named (in backquotes)", line, name)
			}
		}
	}
	for _, name := range slices.Compact(slices.Sorted(slices.Values(goldenName.FindAllString(doc, -1)))) {
		if _, ok := files[name]; !ok {
			bad("%s does not exist", name)
		}
	}

	examples := exampleTag.FindAllStringSubmatchIndex(doc, -1)
	if len(examples) < 20 {
		bad("only %d dumps found", len(examples))
	}
	for _, m := range examples {
		name, line := doc[m[2]:m[3]], ""
		if m[4] >= 0 {
			line = doc[m[4]:m[5]]
		}
		want, err := goldenBytes(files[name], line)
		if err != nil {
			bad("dump of %s %q: %v", name, line, err)
			continue
		}
		rest, ok := strings.CutPrefix(doc[m[1]:], "```\n")
		block, _, closed := strings.Cut(rest, "\n```\n")
		if !ok || !closed {
			bad("no dump follows the comment of %s %q", name, line)
			continue
		}
		got, err := dumpBytes(block)
		if err != nil {
			bad("dump of %s %q: %v", name, line, err)
			continue
		}
		if !bytes.Equal(got, want) {
			at := 0
			for at < min(len(got), len(want)) && got[at] == want[at] {
				at++
			}
			bad("the dump of %s %q differs from the file at byte %d of %d:\n%x\nthe file has\n%x", name, line, at, len(want), got, want)
		}
	}

	rows := map[string]bool{}
	for _, m := range limitRow.FindAllStringSubmatch(doc, -1) {
		rows[m[1]] = true
		v, ok := limits[m[1]]
		if n, err := strconv.Atoi(m[2]); !ok || err != nil || n != v {
			bad("the limit %s is %d, not %s", m[1], v, m[2])
		}
	}
	for name := range limits {
		if !rows[name] {
			bad("the limit %s is missing", name)
		}
	}
	slices.Sort(faults)
	return faults
}

// namedLines takes a golden file of "name hex" lines apart; nil for a file of
// another kind. Names may hold blanks, the hex may be empty.
func namedLines(content string) map[string]string {
	out := map[string]string{}
	for line := range strings.Lines(content) {
		line = strings.TrimSuffix(line, "\n")
		i := strings.LastIndexByte(line, ' ')
		if i < 0 || strings.HasSuffix(line, "|") {
			return nil
		}
		out[strings.TrimSpace(line[:i])] = line[i+1:]
	}
	return out
}

// goldenBytes returns the bytes of a golden file, or of one line of it. Files
// hold hex, "name hex" lines, or a dump with offsets and characters.
func goldenBytes(content, line string) ([]byte, error) {
	if line != "" {
		enc, ok := namedLines(content)[line]
		if !ok {
			return nil, fmt.Errorf("the file has no such line")
		}
		return hex.DecodeString(enc)
	}
	var enc strings.Builder
	for l := range strings.Lines(content) {
		l = strings.TrimSuffix(l, "\n")
		if offset, rest, ok := strings.Cut(l, "  "); ok && len(offset) == 8 {
			l, _, _ = strings.Cut(rest, "  |")
		}
		enc.WriteString(strings.ReplaceAll(l, " ", ""))
	}
	if enc.Len() == 0 {
		return nil, fmt.Errorf("the file is empty or has lines with names")
	}
	return hex.DecodeString(enc.String())
}

// dumpBytes reads a dump of the document: per line hex, with single blanks
// where it helps, and behind two blanks what it means.
func dumpBytes(block string) ([]byte, error) {
	var enc strings.Builder
	for line := range strings.Lines(block) {
		data, _, _ := strings.Cut(strings.TrimSuffix(line, "\n"), "  ")
		enc.WriteString(strings.ReplaceAll(data, " ", ""))
	}
	return hex.DecodeString(enc.String())
}
