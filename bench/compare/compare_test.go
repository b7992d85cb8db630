package main

import (
	"bytes"
	"strings"
	"testing"
	"time"
)

// Every engine starts, takes writes that can be proved afterwards, and ends.
func TestEngines(t *testing.T) {
	for name := range engines {
		t.Run(name, func(t *testing.T) {
			p := point{Workload: "W1", Shards: 3, Clients: 8, Value: 32, Keys: 500, Warmup: 100 * time.Millisecond, Duration: time.Second, Dir: t.TempDir(), AnyDisk: true}
			o, err := single(t.Context(), name, p, "", "")
			if err != nil {
				t.Fatal(err)
			}
			if o.Ops == 0 || o.Errors != 0 || o.Verified == 0 || o.Compared < 200 {
				t.Errorf("%d operations, %d errors, %d writes verified, %d records compared", o.Ops, o.Errors, o.Verified, o.Compared)
			}
		})
	}
}

func TestUnknownEngine(t *testing.T) {
	if _, err := findEngine("fast"); err == nil || !strings.Contains(err.Error(), "choose of dragonboat-disk") {
		t.Fatal(err)
	}
}

func TestRecords(t *testing.T) {
	cmd := appendRecord(appendRecord(nil, []byte("a"), []byte("one")), []byte("bb"), nil)
	var got [][]byte
	if err := eachRecord(cmd, func(k, v []byte) error { got = append(got, k, v); return nil }); err != nil {
		t.Fatal(err)
	}
	if s := string(bytes.Join(got, []byte("|"))); s != "a|one|bb|" {
		t.Fatalf("%q", s)
	}
	for cut := 1; cut < len(cmd); cut++ {
		if err := eachRecord(cmd[:cut], func(_, _ []byte) error { return nil }); (err == nil) != (cut == 10) {
			t.Fatalf("cut at %d: %v", cut, err)
		}
	}
}

func TestSpread(t *testing.T) {
	if s := spreadOf([]float64{3, 1, 2, 10}); s != (spread{2.5, 1, 10}) {
		t.Fatal(s)
	}
}
