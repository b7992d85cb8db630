package main

import (
	"encoding/json"
	"io"
	"os"
	"strings"
	"testing"
)

// bench overload and bench soak on an embedded cluster print what they counted, and
// remove their data. The times are too short for a verdict on the served share.
func TestBenchLoads(t *testing.T) {
	dir := t.TempDir()
	small := []string{"--dir", dir, "--shards", "4", "--keys", "500", "--clients", "64", "--warmup", "50ms", "-o", "json"}
	out, e, code := real(t, append([]string{"bench", "overload", "--duration", "200ms", "--times", "3", "--outstanding", "2000"}, small...)...)
	var rows []loadRow
	if err := json.Unmarshal([]byte(out), &rows); err != nil {
		t.Fatalf("%v\nexit code %d: %s", err, code, e)
	}
	if len(rows) != 3 || rows[1].Load != "3x" || rows[1].Offered < rows[1].Served || rows[1].Served == 0 || rows[2].Served == 0 {
		t.Errorf("%+v", rows)
	}
	for _, r := range rows {
		if r.Failed+int64(r.Withdrawn+r.Lost) > 0 {
			t.Errorf("%+v", r)
		}
	}
	out, e, code = real(t, append([]string{"bench", "soak", "--duration", "1100ms", "--every", "1s", "--spin", "1"}, small...)...)
	var sum soakLine
	if err := json.Unmarshal([]byte(out), &sum); err != nil || code != 0 {
		t.Fatalf("%v\nexit code %d: %s", err, code, e)
	}
	if sum.OpsPerSec == 0 || sum.Errors > 0 || strings.Count(e, "withdrawn 0  leaders lost 0") != 1 {
		t.Errorf("%+v\n%s", sum, e)
	}
	if left, err := os.ReadDir(dir); err != nil || len(left) > 0 {
		t.Errorf("left behind: %v, %v", left, err)
	}
}

// What bench overload finds fault with.
func TestOverloadVerdict(t *testing.T) {
	peak := loadRow{Load: "peak", OfPeak: 1}
	for _, c := range []struct {
		name string
		row  loadRow
		want string
	}{
		{"good", loadRow{Load: "2x", OfPeak: 0.9, Refused: 1, RSSMiB: 100}, ""},
		{"slow", loadRow{Load: "2x", OfPeak: 0.89}, "89% of the peak were served at 2x"},
		{"large", loadRow{Load: "2x", OfPeak: 1, RSSMiB: 101}, "101 MiB of memory were taken at 2x, bounded by 100MiB"},
		{"failing", loadRow{Load: "2x", OfPeak: 1, Failed: 3}, "3 writes failed at 2x"},
		{"withdrawn", loadRow{Load: "2x", OfPeak: 1, Withdrawn: 1}, "1 promises of support or leaders were lost"},
		{"lost", loadRow{Load: "2x", OfPeak: 1, Lost: 2}, "2 promises of support or leaders were lost"},
	} {
		a := newApp()
		a.out = io.Discard
		err := a.printLoads([]loadRow{peak, c.row, peak}, 100<<20)
		if c.want == "" && err != nil || c.want != "" && (err == nil || !strings.Contains(err.Error(), c.want)) {
			t.Errorf("%s: %v", c.name, err)
		}
		if err != nil {
			if code, _, _ := describe(err); code != exitFailed {
				t.Errorf("%s: exit code %d", c.name, code)
			}
		}
	}
}
