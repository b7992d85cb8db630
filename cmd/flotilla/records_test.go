package main

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"sort"
	"strings"
	"testing"

	"github.com/flotillakv/flotilla"

	"github.com/flotillakv/flotilla/internal/fuzzing"
)

// An import followed by an export gives the sorted input back, byte for byte:
// values with trailing spaces, carriage returns and tabs, empty values, bytes
// that are no text, a last line without a line feed.
func TestImportExportIsByteIdentical(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 2))
	var in []string
	for i := range 3000 {
		value := make([]byte, r.IntN(200))
		for j := range value {
			if value[j] = byte(r.IntN(256)); value[j] == '\n' {
				value[j] = '\t'
			}
		}
		in = append(in, fmt.Sprintf("key-%d-%x\t%s", r.Uint32(), i, value))
	}
	in = append(in, "empty\t", "spaces\t  x  ", "cr\tx\r", "tabs\t\ta\t", " \t ", "\xff\xfe\tö")
	sorted := append([]string(nil), in...)
	sort.Slice(sorted, func(i, j int) bool {
		a, _, _ := strings.Cut(sorted[i], "\t")
		b, _, _ := strings.Cut(sorted[j], "\t")
		return a < b
	})
	c := newCommand()
	c.stdin = strings.Join(in, "\n") // no line feed at the end
	c.mustRun(t, "kv", "import", "-")
	want := strings.Join(sorted, "\n") + "\n"
	if got := c.mustRun(t, "kv", "export"); got != want {
		t.Errorf("the TSV export has %d bytes, want %d", len(got), len(want))
	}
	jsonl := c.mustRun(t, "kv", "export", "--format", "jsonl")
	other := newCommand()
	other.stdin = jsonl
	other.mustRun(t, "kv", "import", "--format", "jsonl", "-")
	if got := other.mustRun(t, "kv", "export"); got != want {
		t.Errorf("the export after JSONL has %d bytes, want %d", len(got), len(want))
	}
}

// Lines that cannot be records are named by number and left out, the rest is
// stored, the exit code is 2.
func TestBadLines(t *testing.T) {
	c := newCommand()
	c.stdin = "a\t1\nno tab\n\tempty key\n\nb\t2\n" + strings.Repeat("k", flotilla.MaxKeyBytes+1) + "\tx\nc\t" + strings.Repeat("v", flotilla.MaxValueBytes+1) + "\n" +
		"d\t" + strings.Repeat("v", maxLineBytes+10) + "\ne\t5"
	if code := c.run(t, "kv", "import", "-"); code != exitUsage {
		t.Errorf("exit code %d", code)
	}
	for _, want := range []string{"-: line 2: no tab", "-: line 3: the key is empty", "-: line 4: no tab", "-: line 6: the key has 16385 bytes, the limit is 16384",
		"-: line 7: the value has 3145729 bytes", "-: line 8: longer than", "6 of the lines were refused, the first is line 2"} {
		if !strings.Contains(c.errOut.String(), want) {
			t.Errorf("standard error does not say %q:\n%s", want, c.errOut.String())
		}
	}
	if got := c.mustRun(t, "kv", "export"); got != "a\t1\nb\t2\ne\t5\n" {
		t.Errorf("stored %q", got)
	}
	many := newCommand()
	many.stdin = strings.Repeat("bad\n", 100)
	if code := many.run(t, "kv", "import", "-", "-o", "json"); code != exitUsage || strings.Count(many.errOut.String(), ": line ") != badLinesShown {
		t.Errorf("exit code %d, %d lines reported", code, strings.Count(many.errOut.String(), ": line "))
	}
	if got := many.out.String(); !strings.Contains(got, `"bad_lines":100`) {
		t.Errorf("printed %s", got)
	}
}

// Writes are repeated while the cluster cannot take them, and when their
// outcome is unknown; an error that stays stops the import and says from where
// to resume, and resuming completes it.
func TestImportRetriesAndResumes(t *testing.T) {
	c := newCommand()
	c.kv.fail = []fault{{err: &flotilla.NoQuorumError{Shard: 2}}, {err: flotilla.ErrAmbiguous, applied: true}, {err: flotilla.ErrAmbiguous}, {err: &flotilla.OverloadedError{}}}
	c.stdin = "a\t1\nb\t2\n"
	c.mustRun(t, "kv", "import", "-")
	if got := c.mustRun(t, "kv", "export"); got != "a\t1\nb\t2\n" {
		t.Errorf("stored %q", got)
	}

	var in strings.Builder
	for i := range windowRecords + 10 {
		fmt.Fprintf(&in, "%06d\t%d\n", i, i)
	}
	c = newCommand()
	c.stdin = in.String()
	c.kv.failAfter(windowRecords/batchRecords, errors.New("the disk is full"))
	if code := c.run(t, "kv", "import", "-"); code != exitFailed {
		t.Errorf("exit code %d", code)
	}
	want := fmt.Sprintf("resume with --from-line %d", windowRecords+1)
	if !strings.Contains(c.errOut.String(), want) || !strings.Contains(c.errOut.String(), "the disk is full") {
		t.Errorf("standard error does not say %q:\n%s", want, c.errOut.String())
	}
	c.kv.failAfter(-1, nil)
	c.mustRun(t, "kv", "import", "-", "--from-line", fmt.Sprint(windowRecords+1))
	if got := c.mustRun(t, "kv", "export"); got != in.String() {
		t.Errorf("after resuming %d bytes are stored, want %d", len(got), in.Len())
	}
}

// Of two lines with one key the later wins.
func TestLaterLineWins(t *testing.T) {
	c := newCommand()
	c.stdin = "a\t1\nb\t1\na\t2\na\t3\n"
	c.mustRun(t, "kv", "import", "-")
	if got := c.mustRun(t, "kv", "export"); got != "a\t3\nb\t1\n" {
		t.Errorf("stored %q", got)
	}
}

// An export reads page by page, survives a page that fails midway without
// losing or repeating a record, and refuses what TSV cannot hold.
func TestExport(t *testing.T) {
	c := newCommand()
	var want strings.Builder
	for i := range 2*scanPage + 5 {
		k := fmt.Sprintf("%06d", i)
		c.kv.data[k] = flotilla.Value{Bytes: []byte("v")}
		fmt.Fprintf(&want, "%s\tv\n", k)
	}
	c.kv.fail = []fault{{err: &flotilla.NoQuorumError{Shard: 2}}, {err: &flotilla.UnavailableError{}}}
	if got := c.mustRun(t, "kv", "export"); got != want.String() {
		t.Errorf("exported %d bytes, want %d", len(got), want.Len())
	}
	for key, value := range map[string]string{"a\tb": "x", "a\nb": "x", "k": "a\nb"} {
		c := newCommand()
		c.kv.data[key] = flotilla.Value{Bytes: []byte(value)}
		if code := c.run(t, "kv", "export"); code != exitUsage || !strings.Contains(c.errOut.String(), "cannot be written as TSV") || !strings.Contains(c.errOut.String(), "--format jsonl") {
			t.Errorf("%q=%q: exit code %d: %s", key, value, code, c.errOut.String())
		}
		if got := c.mustRun(t, "kv", "export", "--format", "jsonl"); !strings.HasPrefix(got, `{"key":"`) {
			t.Errorf("JSONL printed %s", got)
		}
	}
}

// Reverse scans page downwards.
func TestScanPages(t *testing.T) {
	c := newCommand()
	for i := range scanPage + 5 {
		c.kv.data[fmt.Sprintf("%06d", i)] = flotilla.Value{}
	}
	for _, args := range [][]string{{"kv", "scan"}, {"kv", "scan", "--reverse"}} {
		lines := strings.Split(strings.TrimSuffix(c.mustRun(t, args...), "\n"), "\n")
		if len(lines) != scanPage+5 || !sort.SliceIsSorted(lines, func(i, j int) bool { return (lines[i] < lines[j]) == (len(args) == 2) }) {
			t.Errorf("%v printed %d lines from %q to %q", args, len(lines), lines[0], lines[len(lines)-1])
		}
	}
	if got := c.mustRun(t, "kv", "scan", "--limit", fmt.Sprint(scanPage+1)); strings.Count(got, "\n") != scanPage+1 {
		t.Errorf("%d lines", strings.Count(got, "\n"))
	}
}

// Whatever a line holds, reading it gives a record, a line that is refused, or
// the end; never a panic, and every line is numbered. A record that was read is
// written and read back the same.
func FuzzRecords(tf *testing.F) {
	f := fuzzing.New(tf)
	f.Add([]byte("a\tb\nc\td"), false)
	f.Add([]byte("\t\n\n\x00\t\xff\n"), false)
	f.Add([]byte(`{"key":"YQ==","value":""}`+"\n"+`{"key":"YQ==","value":"Yg==","version":"1.2.3"}`), true)
	f.Add([]byte(`{"key":"YQ==","valeu":""}`+"\n{}\nnull\n[]"), true)
	f.Fuzz(func(t testing.TB, in []byte, jsonl bool) {
		format := formatTSV
		if jsonl {
			format = formatJSONL
		}
		rr := newRecordReader(bytes.NewReader(in), format)
		var out []byte
		var records []record
		for {
			rec, err := rr.next()
			if err == io.EOF {
				break
			}
			if bad := new(badLine); errors.As(err, &bad) {
				if bad.line != rr.line {
					t.Fatalf("line %d is reported as %d", rr.line, bad.line)
				}
				continue
			}
			if err != nil {
				t.Fatal(err)
			}
			records = append(records, rec)
			if out, err = appendRecord(out, format, rec.key, rec.value); err != nil {
				t.Fatal(err)
			}
		}
		if want := int64(bytes.Count(bytes.TrimSuffix(in, []byte("\n")), []byte("\n")) + 1); len(in) > 0 && rr.line != want {
			t.Fatalf("%d lines read, want %d", rr.line, want)
		}
		back := newRecordReader(bytes.NewReader(out), format)
		for _, rec := range records {
			got, err := back.next()
			if err != nil || !bytes.Equal(got.key, rec.key) || !bytes.Equal(got.value, rec.value) {
				t.Fatalf("%q=%q came back as %q=%q, %v", rec.key, rec.value, got.key, got.value, err)
			}
		}
		if _, err := back.next(); err != io.EOF {
			t.Fatalf("after the last record: %v", err)
		}
	})
}
