package logbound

import (
	"bytes"
	"context"
	"encoding/xml"
	"errors"
	"io"
	"strings"
	"testing"
	"time"

	"github.com/flotillakv/flotilla"
)

// checkBounds goes through all phases with small limits. While a node is dead more is written
// than the logs may take.
func checkBounds(t *testing.T) (*Result, error) {
	c := Config{
		Keys: 1000, ValueBytes: 8 << 10, Shards: 4, Writers: 32,
		Phase: time.Second, PhaseBytes: 20 << 20, Every: 100 * time.Millisecond, CrashEvery: 200 * time.Millisecond, Patience: 20 * time.Second,
		Limits: flotilla.Limits{Memory: 16 << 20, Log: 16 << 20, LogKeep: 1 << 30, Disk: 256 << 20},
	}
	if testing.Short() { // with the race detector
		c.PhaseBytes = 4 << 20
	}
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	cluster, err := StartLocal(ctx, t.TempDir(), &c, flotilla.Timing{Heartbeat: 50 * time.Millisecond, Support: 1500 * time.Millisecond})
	if err != nil {
		t.Fatal(err)
	}
	defer cluster.Close()
	res, err := Run(ctx, cluster, c)
	for _, p := range res.Phases {
		t.Logf("%-14s %.1f s  %6.0f writes/s  directory %5.1f of %.1f MiB  logs %4.1f of %.1f MiB", p.Phase, p.Seconds, p.Writes,
			float64(p.DiskMax)/(1<<20), float64(res.DiskBound)/(1<<20), float64(p.LogMax)/(1<<20), float64(res.LogLimit)/(1<<20))
	}
	return res, err
}

// TestBounds keeps both bounds through all phases, in a cluster of this process.
func TestBounds(t *testing.T) {
	res, err := checkBounds(t)
	if err != nil {
		t.Fatal(err)
	}
	if len(res.Phases) != 6 || res.Restarts < 2 || res.Verified == 0 || len(res.Samples) < 3*10 {
		t.Fatalf("%d phases, %d restarts, %d records read back, %d samples: something was left out", len(res.Phases), res.Restarts, res.Verified, len(res.Samples))
	}
	var chart bytes.Buffer
	if err := WriteChart(&chart, "a < b", []*Result{res}); err != nil {
		t.Fatal(err)
	}
	for d := xml.NewDecoder(&chart); ; {
		if _, err := d.Token(); errors.Is(err, io.EOF) {
			break
		} else if err != nil {
			t.Fatalf("the chart is no XML: %v", err)
		}
	}
}

// TestCheck: each bound is kept by itself.
func TestCheck(t *testing.T) {
	r := &Result{DiskBound: 100, DiskLimit: 90, LogLimit: 10}
	for _, c := range []struct {
		s    Sample
		want string
	}{
		{Sample{Disk: 90, Logs: 6, WAL: 4}, ""},
		{Sample{Disk: 91}, "Limits.Disk"},
		{Sample{Disk: 1, Logs: 6, WAL: 5}, "Limits.Log"},
		{Sample{Disk: 90, Logs: -1, WAL: -1}, ""},
	} {
		err := r.check(&c.s)
		if (err == nil) != (c.want == "") || err != nil && !strings.Contains(err.Error(), c.want) {
			t.Errorf("%+v: %v, want %q", c.s, err, c.want)
		}
	}
	r.DiskLimit = 0
	if err := r.check(&Sample{Disk: 101}); err == nil || !strings.Contains(err.Error(), "allowance") {
		t.Errorf("more than live data, logs and allowance: %v", err)
	}
}

// TestCSV: one line per sample, with all columns.
func TestCSV(t *testing.T) {
	var b bytes.Buffer
	if err := WriteCSV(&b, []*Result{{Policy: "p", Samples: []Sample{{Phase: Steady, Node: 2, Up: true, Disk: 7, Logs: -1, WAL: -1}}}}); err != nil {
		t.Fatal(err)
	}
	lines := strings.Split(strings.TrimSpace(b.String()), "\n")
	if len(lines) != 2 || strings.Count(lines[0], ",") != strings.Count(lines[1], ",") || !strings.HasPrefix(lines[1], "p,0.000,steady,2,true,7,") {
		t.Errorf("%q", lines)
	}
}
