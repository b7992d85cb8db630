package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/cockroachdb/pebble/v2"
	"github.com/cockroachdb/pebble/v2/vfs"
	"github.com/lni/dragonboat/v4/statemachine"
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

// Every engine goes through all steps of the measurement of many groups.
func TestGroups(t *testing.T) {
	for name := range manyEngines {
		t.Run(name, func(t *testing.T) {
			g := groupsFlags{counts: []int{5}, one: name, memory: 1 << 40, settle: time.Millisecond, window: 50 * time.Millisecond, dir: t.TempDir()}
			var out bytes.Buffer
			if err := g.measure(t.Context(), &out); err != nil {
				t.Fatal(err)
			}
			lines := strings.Split(strings.TrimSpace(out.String()), "\n")
			var row groupsRow
			if err := json.Unmarshal([]byte(lines[len(lines)-1]), &row); err != nil {
				t.Fatal(err)
			}
			if row.Failed != "" || row.Doing != "" || row.Heap == 0 || row.StartSeconds <= 0 || row.FailoverSeconds <= 0 || row.RestartSeconds <= 0 || row.RestartAllSeconds < row.RestartSeconds {
				t.Errorf("%+v", row)
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

// TestBounded: W6 at a small size runs on both, and ends with a node that has everything.
func TestBounded(t *testing.T) {
	for _, name := range []string{"flotilla", "dragonboat-disk"} {
		t.Run(name, func(t *testing.T) {
			p := point{Workload: "W6", Shards: 2, Clients: 8, Value: 256, Keys: 64, Overwrite: 8, Settle: time.Millisecond, Dir: t.TempDir(), AnyDisk: true}
			o, err := runBounded(t.Context(), name, p)
			if err != nil {
				t.Fatal(err)
			}
			if o.Verified != 64 || o.Compared != 32 || o.DiskMax < 1 || o.DiskEnd < 1 || o.CatchUpS <= 0 || o.Live != 64*(256+16) || o.Missed != o.Written*3/4 {
				t.Errorf("%+v", o)
			}
		})
	}
}

// TestBoundedNotices: a replica, or a read, that does not hold what was acknowledged
// ends the run.
func TestBoundedNotices(t *testing.T) {
	e := &fakeBounded{data: make(map[string][]byte)}
	w := &overwriter{e: e, p: point{Clients: 2, Value: 16, Keys: 16}, last: make([]uint64, 16)}
	if err := w.run(t.Context(), 16, true); err != nil {
		t.Fatal(err)
	}
	if err := w.run(t.Context(), 100, false); err != nil {
		t.Fatal(err)
	}
	var o boundedOutcome
	if err := w.verify(t.Context(), &o); err != nil || o.Verified != 16 {
		t.Fatalf("%+v, %v", o, err)
	}
	w.last[3]++
	if err := w.verify(t.Context(), &o); err == nil {
		t.Error("a lost write is not noticed")
	}
}

type fakeBounded struct {
	bounded
	mu   sync.Mutex
	data map[string][]byte
}

func (f *fakeBounded) Put(_ context.Context, k, v []byte) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.data[string(k)] = bytes.Clone(v)
	return nil
}

func (f *fakeBounded) Get(_ context.Context, k []byte) ([]byte, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.data[string(k)], nil
}

func (f *fakeBounded) Local(ctx context.Context, _ int, k []byte) ([]byte, error) {
	return f.Get(ctx, k)
}

// TestDiskMachineSnapshot: a machine that is given the snapshot of another one holds
// what that one held, and nothing else; other shards of the store stay as they are.
func TestDiskMachineSnapshot(t *testing.T) {
	open := func() *pebble.DB {
		db, err := pebble.Open("", &pebble.Options{FS: vfs.NewMem(), Logger: quiet{}})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { db.Close() })
		return db
	}
	put := func(m *diskMachine, index uint64, kv ...string) {
		var cmd []byte
		for i := 0; i < len(kv); i += 2 {
			cmd = appendRecord(cmd, []byte(kv[i]), []byte(kv[i+1]))
		}
		if _, err := m.Update([]statemachine.Entry{{Index: index, Cmd: cmd}}); err != nil {
			t.Fatal(err)
		}
	}
	a, db := &diskMachine{db: open(), shard: 2}, open()
	b, other := &diskMachine{db: db, shard: 2}, &diskMachine{db: db, shard: 3}
	put(a, 7, "x", "1", "y", "2")
	put(b, 3, "x", "0", "gone", "0")
	put(other, 9, "x", "3")
	ctx, err := a.PrepareSnapshot()
	if err != nil {
		t.Fatal(err)
	}
	put(a, 8, "x", "later")
	var buf bytes.Buffer
	if err := errors.Join(a.SaveSnapshot(ctx, &buf, nil), b.RecoverFromSnapshot(&buf, nil)); err != nil {
		t.Fatal(err)
	}
	for k, want := range map[string]string{"x": "1", "y": "2", "gone": ""} {
		if got, err := b.get([]byte(k)); err != nil || string(got) != want {
			t.Errorf("%s: %q, %v", k, got, err)
		}
	}
	if i, err := b.Open(nil); err != nil || i != 7 {
		t.Errorf("applied through %d, %v", i, err)
	}
	if got, _ := other.get([]byte("x")); string(got) != "3" {
		t.Errorf("the other shard has %q", got)
	}
}
