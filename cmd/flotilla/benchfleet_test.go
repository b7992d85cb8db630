package main

import (
	"encoding/json"
	"encoding/xml"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/flotillakv/flotilla/bench/fleet"
)

// bench idle measures each number and one shard, draws a chart, and leaves nothing
// behind. It is too short to be a measurement.
func TestBenchIdle(t *testing.T) {
	dir, chart := t.TempDir(), filepath.Join(t.TempDir(), "idle.svg")
	out, e, code := real(t, "bench", "idle", "--here", "--counts", "8", "--settle", "100ms", "--window", "200ms", "--dir", dir, "--chart", chart, "-o", "json")
	var r idleReport
	if err := json.Unmarshal([]byte(out), &r); err != nil || code != 0 {
		t.Fatalf("%v, exit code %d: %s", err, code, e)
	}
	if len(r.Rows) != 1 || r.Rows[0].Shards != 8 || r.One.Shards != 1 {
		t.Fatalf("%+v", r)
	}
	for _, row := range append(r.Rows, r.One) {
		if row.Failed != "" || row.CreateSeconds <= 0 || row.RestartSeconds <= 0 || row.Heap <= 0 || row.RSS <= 0 {
			t.Errorf("%+v", row)
		}
	}
	var svg struct{}
	b, err := os.ReadFile(chart)
	if err != nil || xml.Unmarshal(b, &svg) != nil || strings.Count(string(b), "<circle") != 6 {
		t.Errorf("the chart: %v\n%s", err, b)
	}
	if left, err := os.ReadDir(dir); err != nil || len(left) > 0 {
		t.Errorf("left behind: %v, %v", left, err)
	}
}

// bench groups kills a node, and all shards accept writes again.
func TestBenchGroups(t *testing.T) {
	dir := t.TempDir()
	out, e, code := real(t, "bench", "groups", "--here", "--counts", "24", "--asleep", "24", "--hot", "4", "--pairs", "2", "--clients", "16", "--duration", "100ms", "--warmup", "10ms", "--settle", "10ms", "--dir", dir, "-o", "json")
	var r groupsReport
	if err := json.Unmarshal([]byte(out), &r); err != nil || code != 0 {
		t.Fatalf("%v, exit code %d: %s", err, code, e)
	}
	if len(r.Rows) != 1 {
		t.Fatalf("%+v", r)
	}
	row := r.Rows[0]
	if row.Failed != "" || row.LedByKilled == 0 || row.LedSeconds <= 0 || row.AcceptedSeconds <= 0 || row.HotPerS <= 0 || row.OfAlone <= 0 || row.Memory.Heap <= 0 || row.Memory.RSS <= 0 {
		t.Errorf("%+v", row)
	}
	if left, err := os.ReadDir(dir); err != nil || len(left) > 0 {
		t.Errorf("left behind: %v, %v", left, err)
	}
}

// A number that cannot fit is not begun, one that outgrows its bound is given up, and both are told.
func TestBenchIdleMemory(t *testing.T) {
	b := fleetFlags{memory: 4 << 30}
	if err := b.fits(10_000, 1000, 1<<30); err == nil || !strings.Contains(err.Error(), "by what 1000 shards took, 10000 would take about 7936 MiB, and 4096 MiB may be used") {
		t.Errorf("%v", err)
	}
	if err := b.fits(2000, 1000, 1<<30); err != nil {
		t.Error(err)
	}
	out, e, code := real(t, "bench", "idle", "--here", "--counts", "8", "--settle", "1h", "--memory", "1", "--dir", t.TempDir(), "-o", "json")
	var r idleReport
	if err := json.Unmarshal([]byte(out), &r); err != nil || code != int(exitFailed) {
		t.Fatalf("%v, exit code %d: %s", err, code, e)
	}
	if len(r.Rows) != 0 || !strings.Contains(r.One.Failed, "1 shards do not fit into 0 MiB") || !strings.Contains(e, "the sweep ended early") {
		t.Errorf("%+v: %s", r, e)
	}
}

// The figures per replica leave out what one shard takes.
func TestIdleSubtract(t *testing.T) {
	r := fleet.IdleRow{Shards: 101, Memory: fleet.Memory{Heap: 3_010_000, RSS: 6_010_000}, DiskBytes: 90_500}
	r.Subtract(fleet.IdleRow{Shards: 1, Memory: fleet.Memory{Heap: 10_000, RSS: 10_000}, DiskBytes: 500})
	if r.HeapPerReplica != 10_000 || r.RSSPerReplica != 20_000 || r.DiskPerReplica != 300 {
		t.Errorf("%+v", r)
	}
}
