package sim

import (
	"bytes"
	"encoding/json"
	"fmt"
	"strings"
	"testing"
	"time"
)

// TestFeed: the trace of a run as data is JSON, the same each time and for a run
// that writes none; and the violation of a run is its end.
func TestFeed(t *testing.T) {
	for _, p := range Profiles {
		o := Options{Seed: 4, Profile: p, Duration: time.Second}
		plain := Run(o)
		var a, b bytes.Buffer
		o.Trace = &a
		r := Run(o)
		o.Trace = &b
		Run(o)
		if r.Hash != plain.Hash || r.TraceErr != nil || !bytes.Equal(a.Bytes(), b.Bytes()) {
			t.Fatalf("profile %s: %s and %s, %v; %d and %d bytes", p, r.Trace(), plain.Trace(), r.TraceErr, a.Len(), b.Len())
		}
		kinds := map[string]int{}
		lines := strings.Split(strings.TrimSpace(a.String()), "\n")
		for i, l := range lines {
			var e map[string]any
			if err := json.Unmarshal([]byte(l), &e); err != nil {
				t.Fatalf("profile %s, line %d: %v: %s", p, i+1, err, l)
			}
			if i > 0 && e["n"] != float64(i) {
				t.Fatalf("profile %s: line %d is numbered %v", p, i+1, e["n"])
			}
			kinds[fmt.Sprint(e["event"])]++
			if i == len(lines)-1 && e["hash"] != fmt.Sprintf("%016x", r.Hash) {
				t.Fatalf("profile %s: it ends with %s", p, l)
			}
		}
		for _, want := range []string{"boot", "send", "recv", "role", "synced", "commit", "end"} {
			if kinds[want] == 0 {
				t.Errorf("profile %s: no event %q in %v", p, want, kinds)
			}
		}
	}
}

// TestFeedTellsTheViolation: the last line of a failed run says what it violates.
func TestFeedTellsTheViolation(t *testing.T) {
	var b bytes.Buffer
	r := Run(Options{Seed: 4, Duration: time.Second, Trace: &b, Hook: func(w *World) {
		w.after(100*time.Millisecond, event{kind: evUndo, arg: func() { w.fail("S3", "a \"quoted\" reason\nof two lines") }})
	}})
	var end struct{ Event, Oracle, Detail string }
	lines := strings.Split(strings.TrimSpace(b.String()), "\n")
	if err := json.Unmarshal([]byte(lines[len(lines)-1]), &end); err != nil || r.Failure == nil || end.Oracle != "S3" || end.Detail != r.Failure.Detail {
		t.Errorf("%v: %+v, %v", err, end, r.Failure)
	}
}
