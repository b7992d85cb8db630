package bench

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/flotillakv/flotilla/bench/workload"
)

// memTarget is a store in memory that takes a fixed time per operation and can
// be told to stall or to refuse.
type memTarget struct {
	mu       sync.Mutex
	data     map[string][]byte
	took     time.Duration
	stall    chan struct{} // while the store hangs: closed at the end of it
	refusals atomic.Int64  // how many of the next writes to refuse
}

var errRefused = errors.New("refused")

func newMemTarget(took time.Duration) *memTarget {
	return &memTarget{data: make(map[string][]byte), took: took}
}

func (m *memTarget) wait() {
	m.mu.Lock()
	stall := m.stall
	m.mu.Unlock()
	if stall != nil { // a channel: a goroutine that waits for a mutex stops virtual time
		<-stall
	}
	if m.took > 0 {
		<-time.After(m.took)
	}
}

func (m *memTarget) Read(_ context.Context, key []byte) ([]byte, bool, error) {
	m.wait()
	m.mu.Lock()
	defer m.mu.Unlock()
	v, ok := m.data[string(key)]
	return v, ok, nil
}

func (m *memTarget) Write(_ context.Context, key, value []byte) error {
	m.wait()
	if m.refusals.Add(-1) >= 0 {
		return errRefused
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	m.data[string(key)] = value
	return nil
}

func (m *memTarget) Scan(_ context.Context, start []byte, n int) (int, error) {
	m.wait()
	m.mu.Lock()
	defer m.mu.Unlock()
	got := 0
	for _, k := range slices.Sorted(maps.Keys(m.data)) {
		if k >= string(start) && got < n {
			got++
		}
	}
	return got, nil
}

func (m *memTarget) Load(ctx context.Context, keys, values [][]byte) error {
	for i := range keys {
		if err := m.Write(ctx, keys[i], values[i]); err != nil {
			return err
		}
	}
	return nil
}

func newSet(t testing.TB, name string, records uint64) *workload.Set {
	t.Helper()
	spec, err := workload.Parse(name)
	if err != nil {
		t.Fatal(err)
	}
	set, err := workload.New(workload.Config{Spec: spec, Records: records, ValueBytes: 100, Seed: 1})
	if err != nil {
		t.Fatal(err)
	}
	return set
}

// Load stores every record exactly once with its value, and Sample notices a
// record that is gone.
func TestLoadStoresEveryRecord(t *testing.T) {
	set, target := newSet(t, "A", 5000), newMemTarget(0)
	var last atomic.Uint64
	if err := Load(t.Context(), set, []Target{target}, func(n uint64) { last.Store(max(last.Load(), n)) }); err != nil {
		t.Fatal(err)
	}
	if len(target.data) != 5000 || last.Load() != 5000 {
		t.Fatalf("%d records stored, progress ended at %d, want 5000", len(target.data), last.Load())
	}
	for rec := range uint64(5000) {
		if key := workload.AppendKey(nil, rec); !bytes.Equal(target.data[string(key)], set.Value(rec)) {
			t.Fatalf("record %d has a wrong value", rec)
		}
	}
	if err := Sample(t.Context(), set, []Target{target}, 5000); err != nil {
		t.Fatal(err)
	}
	delete(target.data, string(workload.AppendKey(nil, 17)))
	if err := Sample(t.Context(), set, []Target{target}, 5000); err == nil {
		t.Error("a record that is gone was not noticed")
	}
	target.refusals.Store(1)
	if err := Load(t.Context(), set, []Target{target}, nil); !errors.Is(err, errRefused) {
		t.Errorf("load of a refusing store returned %v", err)
	}
}

// A closed loop of 4 clients on a store that takes 10 ms does 400 operations a
// second, whatever the workload, and its latencies are those of the store. Time
// is virtual.
func TestClosedLoop(t *testing.T) {
	for _, name := range []string{"A", "C", "D", "E"} {
		synctest.Test(t, func(t *testing.T) {
			set, target := newSet(t, name, 300), newMemTarget(0)
			if err := Load(t.Context(), set, []Target{target}, nil); err != nil {
				t.Fatal(err)
			}
			target.took = 10 * time.Millisecond
			seconds := 0
			res, err := Run(t.Context(), Config{Set: set, Targets: []Target{target}, Clients: 4,
				Warmup: time.Second, Duration: 5 * time.Second, OnSecond: func(s Second) { seconds++ }})
			if err != nil {
				t.Fatal(err)
			}
			if res.Ops < 1980 || res.Ops > 2020 || res.Errors != 0 || seconds != 5 || res.Seconds != 5 {
				t.Errorf("%s: %d ops, %d errors in %.1f s, %d lines", name, res.Ops, res.Errors, res.Seconds, seconds)
			}
			for op, l := range res.LatencyMs {
				if l.Count > 0 && (l.P50 < 9.9 || l.Max > 10.2) {
					t.Errorf("%s: %s took p50 %.2f, max %.2f ms", name, op, l.P50, l.Max)
				}
			}
		})
	}
}

// An open loop charges a stall to every operation that was planned during it:
// the store hangs for one second of ten, so about a tenth of the response times
// are long although only few operations were in flight, and then it catches up.
func TestOpenLoopSeesStalls(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		set, target := newSet(t, "C", 300), newMemTarget(0)
		if err := Load(t.Context(), set, []Target{target}, nil); err != nil {
			t.Fatal(err)
		}
		target.took = time.Millisecond
		time.AfterFunc(3500*time.Millisecond, func() {
			stall := make(chan struct{})
			target.mu.Lock()
			target.stall = stall
			target.mu.Unlock()
			time.AfterFunc(time.Second, func() {
				target.mu.Lock()
				target.stall = nil
				target.mu.Unlock()
				close(stall)
			})
		})
		var behind int64
		res, err := Run(t.Context(), Config{Set: set, Targets: []Target{target}, Clients: 8, Rate: 1000, Outstanding: 2000,
			Duration: 10 * time.Second, OnSecond: func(s Second) { behind = max(behind, s.Behind) }})
		if err != nil {
			t.Fatal(err)
		}
		if res.Loop != "open" || res.Ops < 9900 || res.Ops > 10_010 {
			t.Errorf("%s loop did %d of 10,000 operations", res.Loop, res.Ops)
		}
		read := res.LatencyMs["read"]
		if read.P50 > 2 || read.P99 < 500 || read.Max < 990 {
			t.Errorf("response p50 %.1f p99 %.1f max %.1f ms: the stall is not visible", read.P50, read.P99, read.Max)
		}
		if res.ServiceMs.P99 > 10 || res.ServiceMs.Max < 990 {
			t.Errorf("service p99 %.1f max %.1f ms", res.ServiceMs.P99, res.ServiceMs.Max)
		}
		if behind < 300 {
			t.Errorf("%d operations behind during the stall", behind)
		}
		if res.Shed != 0 {
			t.Errorf("%d arrivals shed below the bound", res.Shed)
		}
	})
}

// What arrives while as many operations as are allowed are outstanding is shed
// and counted: every arrival is shed, done, refused, or open at the end.
func TestOpenLoopSheds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		set, target := newSet(t, "W1", 300), newMemTarget(0)
		if err := Load(t.Context(), set, []Target{target}, nil); err != nil {
			t.Fatal(err)
		}
		target.took = 10 * time.Millisecond // 8 clients do 800 a second
		target.refusals.Store(100)
		shed := int64(0)
		res, err := Run(t.Context(), Config{Set: set, Targets: []Target{target}, Clients: 8, Rate: 2000, Outstanding: 20,
			Duration: 10 * time.Second, OnSecond: func(s Second) { shed = s.Shed }})
		if err != nil {
			t.Fatal(err)
		}
		if res.Ops < 7850 || res.Ops > 7920 || res.Errors != 100 || res.Unfinished < 12 || res.Unfinished > 20 {
			t.Errorf("%d done, %d errors, %d unfinished; want about 7,890, 100, 12 to 20", res.Ops, res.Errors, res.Unfinished)
		}
		if all := res.Ops + res.Errors + res.Shed + res.Unfinished; all < 19_990 || all > 20_001 {
			t.Errorf("%d of 20,000 arrivals are accounted for", all)
		}
		if shed != res.Shed {
			t.Errorf("the last line says %d shed, the result %d", shed, res.Shed)
		}
		if l := res.LatencyMs["update"]; l.P50 < 20 || l.Max > 40 { // 20 outstanding at 800 a second
			t.Errorf("p50 %.1f max %.1f ms with a bound of 25 ms", l.P50, l.Max)
		}
	})
}

// Errors are counted by kind and never as operations; a missing record is one.
func TestErrorsAreCountedByKind(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		set, target := newSet(t, "A", 100), newMemTarget(0)
		if err := Load(t.Context(), set, []Target{target}, nil); err != nil {
			t.Fatal(err)
		}
		target.took = time.Millisecond
		delete(target.data, string(workload.AppendKey(nil, 3)))
		target.refusals.Store(10)
		res, err := Run(t.Context(), Config{Set: set, Targets: []Target{target}, Clients: 1, Duration: 2 * time.Second,
			Classify: func(err error) string { return fmt.Sprintf("kind of %v", err) }})
		if err != nil {
			t.Fatal(err)
		}
		if res.ErrorKinds["kind of refused"] != 10 || res.Errors < 10 {
			t.Errorf("errors %v, %d in all", res.ErrorKinds, res.Errors)
		}
	})
}

// An interrupted run gives what it measured and leaves no client behind.
func TestInterrupt(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		set, target := newSet(t, "F", 100), newMemTarget(0)
		if err := Load(t.Context(), set, []Target{target}, nil); err != nil {
			t.Fatal(err)
		}
		target.took = time.Millisecond
		ctx, cancel := context.WithTimeout(t.Context(), 2500*time.Millisecond)
		defer cancel()
		res, err := Run(ctx, Config{Set: set, Targets: []Target{target}, Clients: 3, Duration: time.Hour})
		if !errors.Is(err, context.DeadlineExceeded) || res.Seconds != 2.5 || res.Ops < 1000 || res.Errors != 0 {
			t.Errorf("%v: %d ops, %d errors in %.1f s", err, res.Ops, res.Errors, res.Seconds)
		}
	})
}

// The JSON form is one line, with every field that scripts rely on, numbers as
// numbers.
func TestResultJSON(t *testing.T) {
	set, target := newSet(t, "A", 100), newMemTarget(0)
	if err := Load(t.Context(), set, []Target{target}, nil); err != nil {
		t.Fatal(err)
	}
	res, err := Run(t.Context(), Config{Set: set, Targets: []Target{target}, Clients: 2, Duration: 50 * time.Millisecond, DataDir: t.TempDir()})
	if err != nil {
		t.Fatal(err)
	}
	var out bytes.Buffer
	if err := res.WriteJSON(&out); err != nil {
		t.Fatal(err)
	}
	if strings.Count(out.String(), "\n") != 1 || !strings.HasSuffix(out.String(), "}\n") {
		t.Fatalf("not one line: %q", out.String())
	}
	var got map[string]any
	if err := json.Unmarshal(out.Bytes(), &got); err != nil {
		t.Fatal(err)
	}
	for field, want := range map[string]any{
		"engine": "", "workload": "", "shards": 0.0, "clients": 0.0, "value_bytes": 0.0, "ops": 0.0, "seconds": 0.0,
		"ops_per_s": 0.0, "errors": 0.0, "cpu_s_per_1m_ops": 0.0, "disk_bytes_per_op": 0.0, "rss_mib": 0.0, "fsync": false, "machine": "",
	} {
		if v, ok := got[field]; !ok || fmt.Sprintf("%T", v) != fmt.Sprintf("%T", want) {
			t.Errorf("field %q is %T (%v), want %T", field, v, v, want)
		}
	}
	lat, _ := got["latency_ms"].(map[string]any)
	for _, op := range []string{"read", "update"} {
		series, _ := lat[op].(map[string]any)
		for _, p := range []string{"p50", "p99", "p999", "max"} {
			if v, ok := series[p].(float64); !ok || v <= 0 {
				t.Errorf("latency_ms.%s.%s is %v", op, p, series[p])
			}
		}
	}
	if got["ops"].(float64) <= 0 || got["cpu_s_per_1m_ops"].(float64) <= 0 || got["rss_mib"].(float64) <= 0 {
		t.Errorf("nothing measured: %s", out.String())
	}
	var table bytes.Buffer
	if err := res.WriteTable(&table); err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"total ", "read ", "update ", "cpu ", "disk ", "BenchmarkYCSB/"} {
		if !strings.Contains(table.String(), "\n"+want) && !strings.HasPrefix(table.String(), want) && want != "BenchmarkYCSB/" {
			t.Errorf("the table has no line %q:\n%s", want, table.String())
		}
	}
}

// Inspect measures a directory and describes the machine in one line.
func TestInspect(t *testing.T) {
	m, err := Inspect(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	if m.Cores < 1 || m.FsyncP99Ms < m.FsyncP50Ms || strings.Contains(m.String(), "\n") || !strings.Contains(m.String(), "cores") {
		t.Errorf("%+v: %s", m, m)
	}
	if _, err := Inspect(t.TempDir() + "/absent"); err == nil {
		t.Error("a directory that does not exist was measured")
	}
}

func TestLinesRepeatTheHeader(t *testing.T) {
	var out bytes.Buffer
	l := &Lines{W: &out}
	for i := range headerEvery + 1 {
		l.Second(Second{Elapsed: time.Duration(i) * time.Second, OpsPerSec: 12345.6})
	}
	if n := strings.Count(out.String(), "_elapsed_"); n != 2 {
		t.Errorf("%d headers over %d lines", n, headerEvery+1)
	}
	if !strings.Contains(out.String(), "12,345.6") {
		t.Errorf("no grouped number in\n%s", out.String())
	}
}

func TestGroup(t *testing.T) {
	for in, want := range map[float64]string{0: "0", 999: "999", 1000: "1,000", 1234567: "1,234,567", -1000: "-1,000"} {
		if got := group(in, 0); got != want {
			t.Errorf("group(%v) = %q, want %q", in, got, want)
		}
	}
}
