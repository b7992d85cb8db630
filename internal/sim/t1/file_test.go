package t1

import (
	"os"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/flotillakv/flotilla/internal/fuzzing"
)

// TestFile: a schedule that was written and read again is the same run.
func TestFile(t *testing.T) {
	s := Draw(5, "crash", 500*time.Millisecond)
	f := File{Tier: "t1", Version: fileVersion, Oracle: "S3", Mutant: "A1", Note: "because", Schedule: s}
	data := f.Encode()
	again, err := DecodeFile(data)
	if err != nil || !IsFile(data) || !reflect.DeepEqual(again, f) {
		t.Fatalf("%v, %+v", err, again)
	}
	if a, b := Run(Options{Schedule: &s}), Run(Options{Schedule: &again.Schedule}); a.Hash != b.Hash {
		t.Fatalf("%s, then %s", a.Summary(), b.Summary())
	}
}

// TestFileVersion1: a schedule of version 1, in which actions and images are
// numbers, is read, and written with names it is the same.
func TestFileVersion1(t *testing.T) {
	data, err := os.ReadFile("testdata/regress/wall-clock-v1.json")
	if err != nil {
		t.Fatal(err)
	}
	old, err := DecodeFile(data)
	if err != nil || !IsFile(data) {
		t.Fatal(err)
	}
	kept, err := ReadFile("testdata/regress/wall-clock-stops-timers.json")
	if err != nil {
		t.Fatal(err)
	}
	if !reflect.DeepEqual(old, kept) {
		t.Errorf("read as\n%s\nkept as\n%s", old.Encode(), kept.Encode())
	}
}

// TestFileRefused: nonsense is refused, with the reason.
func TestFileRefused(t *testing.T) {
	good := string(File{Schedule: Draw(5, "crash", 500*time.Millisecond)}.Encode())
	for _, c := range []struct{ old, new, want string }{
		{`"version": 2`, `"version": 3`, "version 3 of schedules is not known"},
		{`"version": 2`, `"version": 1`, "not a schedule"},
		{`"tier": "t1"`, `"tier": "t0"`, `tier "t0"`},
		{`"nodes": `, `"nodes": 9`, "nodes is 9"},
		{`"nodes": `, `"colour": 1, "nodes": `, "unknown field"},
		{`"none"`, `"nothing"`, `no image mode "nothing"`},
		{`"do":"op"`, `"do":"opp"`, `no action "opp"`},
		{`"node":1`, `"node":-1`, "makes no sense"},
		{`"beat": `, `"beat": 9`, "beat"},
		{`"at":"`, `"at":"9`, "comes before"},
	} {
		bad := strings.Replace(good, c.old, c.new, 1)
		if bad == good {
			t.Fatalf("%s is not in the file:\n%.900s", c.old, good)
		}
		if _, err := DecodeFile([]byte(bad)); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: error %v", c.new, err)
		}
	}
}

// FuzzFile shows that no bytes make the decoder panic, and what it accepts is
// written well.
func FuzzFile(tf *testing.F) {
	f := fuzzing.New(tf)
	f.Add(File{Schedule: Draw(1, "swarm", 50*time.Millisecond)}.Encode())
	f.Add([]byte(`{"version":1,"schedule":{"params":{"images":"AAE="},"actions":[{"kind":2}]}}`))
	f.Fuzz(func(t testing.TB, data []byte) {
		file, err := DecodeFile(data)
		if err != nil {
			return
		}
		if _, err := DecodeFile(file.Encode()); err != nil {
			t.Fatalf("what was read is not written well: %v", err)
		}
	})
}
