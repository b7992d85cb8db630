package sim

import (
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/flotillakv/flotilla/internal/fuzzing"
)

// TestFileRoundTrip shows that a schedule comes back from its file as it was,
// and its run is the same.
func TestFileRoundTrip(t *testing.T) {
	for _, p := range Profiles {
		s := Draw(3, p, 2*time.Second, 0)
		f := File{Tier: "t0", Version: fileVersion, Oracle: "S3", Mutant: "A1", Note: "a note", Schedule: s}
		got, err := DecodeFile(f.Encode())
		if err != nil {
			t.Fatalf("profile %s: %v", p, err)
		}
		if !reflect.DeepEqual(got, f) {
			t.Fatalf("profile %s: %+v came back as %+v", p, f, got)
		}
		if a, b := Run(Options{Schedule: &s}), Run(Options{Schedule: &got.Schedule}); a.Hash != b.Hash || a.Story() != b.Story() {
			t.Fatalf("profile %s: %s and %s", p, a.Trace(), b.Trace())
		}
	}
}

// TestFileRefused shows that a file that no run could carry out is refused.
func TestFileRefused(t *testing.T) {
	good := string(File{Schedule: Draw(3, "calm", time.Second, 3)}.Encode())
	for _, c := range []struct{ old, new, want string }{
		{`"version": 2`, `"version": 3`, "version 3 of schedules is not known"},
		{`"tier": "t0"`, `"tier": "t1"`, `tier "t1"`},
		{`"Nodes": 3`, `"Nodes": 99`, "99 nodes"},
		{`"Nodes": 3`, `"Nodes": 3, "Colour": 1`, "unknown field"},
		{`"do":"propose"`, `"do":"prpose"`, `no action "prpose"`},
		{`"node":1`, `"node":9`, "nodes 9 and"},
	} {
		bad := strings.Replace(good, c.old, c.new, 1)
		if bad == good {
			t.Fatalf("%s is not in the file:\n%.600s", c.old, good)
		}
		if _, err := DecodeFile([]byte(bad)); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: error %v", c.new, err)
		}
	}
}

// FuzzFile shows that no bytes make the decoder or a run of what it accepts
// panic outside of the run.
func FuzzFile(tf *testing.F) {
	f := fuzzing.New(tf)
	f.Add(File{Schedule: Draw(1, "swarm", 50*time.Millisecond, 3)}.Encode())
	f.Add([]byte(`{"version":1}`))
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
