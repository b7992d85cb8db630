package main

import (
	"encoding/json"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"text/tabwriter"
	"time"

	"github.com/flotillakv/flotilla/bench"
)

// figure is what one floor reached.
type figure struct {
	Name      string  `json:"name"`
	Unit      string  `json:"unit"` // what is counted
	PerSecond float64 `json:"per_s"`
	P50Ms     float64 `json:"p50_ms"` // of one sync, commit or frame
	CPUMicros float64 `json:"cpu_us_per_unit"`
}

// floor measures for about the given time in an empty directory of its own. It
// returns how many units were done, and how long steps took.
type floor struct {
	name, unit string
	run        func(dir string, d time.Duration) (units int, steps []time.Duration, err error)
}

func main() {
	only := flag.String("only", "", "only floors whose name contains this")
	each := flag.Duration("each", 3*time.Second, "time for each")
	dir := flag.String("dir", "", "directory on the disk to measure; empty: a temporary one")
	out := flag.String("json", "", "file to write the figures to")
	flag.Parse()
	if err := run(*only, *each, *dir, *out); err != nil {
		fmt.Fprintln(os.Stderr, "floors:", err)
		os.Exit(1)
	}
}

func run(only string, each time.Duration, dir, out string) error {
	base, err := os.MkdirTemp(dir, "flotilla-floors-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(base)
	machine, err := bench.Inspect(base)
	if err != nil {
		return err
	}
	fmt.Printf("%s, load %.1f\n", machine, machine.Load)
	if !machine.Durable {
		return fmt.Errorf("%s is in memory, where fsync does nothing: name a directory on a disk with --dir", base)
	}
	t := tabwriter.NewWriter(os.Stdout, 0, 8, 2, ' ', 0)
	fmt.Fprintln(t, "FLOOR\tPER SECOND\tP50 ms\tCPU us\tUNIT")
	var all []figure
	for i, f := range floors() {
		if !strings.Contains(f.name, only) {
			continue
		}
		sub := filepath.Join(base, fmt.Sprint(i))
		if err := os.Mkdir(sub, 0o700); err != nil {
			return err
		}
		cpu, began := cpuTime(), time.Now()
		n, steps, err := f.run(sub, each)
		if err != nil {
			return fmt.Errorf("%s: %w", f.name, err)
		}
		took, used := time.Since(began), cpuTime()-cpu
		slices.Sort(steps)
		g := figure{Name: f.name, Unit: f.unit, PerSecond: float64(n) / took.Seconds(), CPUMicros: float64(used.Microseconds()) / float64(max(n, 1))}
		if len(steps) > 0 {
			g.P50Ms = steps[len(steps)/2].Seconds() * 1e3
		}
		all = append(all, g)
		fmt.Fprintf(t, "%s\t%.0f\t%.3f\t%.2f\t%s\n", g.Name, g.PerSecond, g.P50Ms, g.CPUMicros, g.Unit)
		if err := os.RemoveAll(sub); err != nil {
			return err
		}
	}
	t.Flush()
	if out == "" {
		return nil
	}
	b, err := json.MarshalIndent(map[string]any{"machine": machine.String(), "commit": machine.Commit, "floors": all}, "", "  ")
	if err != nil {
		return err
	}
	return os.WriteFile(out, append(b, '\n'), 0o644)
}

func cpuTime() time.Duration {
	var ru syscall.Rusage
	if syscall.Getrusage(syscall.RUSAGE_SELF, &ru) != nil {
		return 0
	}
	return time.Duration(ru.Utime.Nano() + ru.Stime.Nano())
}

func floors() []floor {
	return []floor{
		{"fdatasync 4 KiB, appended", "sync", func(dir string, d time.Duration) (int, []time.Duration, error) { return syncs(dir, d, false) }},
		{"fdatasync 4 KiB, into written blocks", "sync", func(dir string, d time.Duration) (int, []time.Duration, error) { return syncs(dir, d, true) }},
		{"pebble, 1 store, 1 committer, 1 record of 16+16 B, sync", "record", commits(1, 1, 1, 16, true)},
		{"pebble, 1 store, 64 committers, 1 record, sync", "record", commits(1, 64, 1, 16, true)},
		{"pebble, 1 store, 1024 committers, 1 record, sync", "record", commits(1, 1024, 1, 16, true)},
		{"pebble, 3 stores, 64 committers, 1 record, sync", "record", commits(3, 64, 1, 16, true)},
		{"pebble, 3 stores, 1 committer, 64 records, sync", "record", commits(3, 1, 64, 16, true)},
		{"pebble, 3 stores, 1 committer, 1024 records, sync", "record", commits(3, 1, 1024, 16, true)},
		{"pebble, 3 stores, 1 committer, 64 records of 16+1024 B, sync", "record", commits(3, 1, 64, 1024, true)},
		{"pebble, 3 stores, 1 committer, 1024 records of 16+1024 B, sync", "record", commits(3, 1, 1024, 1024, true)},
		{"pebble, 1 store, 64 records of 16+128 B, not synced", "record", commits(1, 1, 64, 128, false)},
		{"pattern: rounds of 256 operations over 48 groups, three stores", "operation", pattern(256, 48, true)},
		{"pattern: rounds of 1024 operations over 48 groups, three stores", "operation", pattern(1024, 48, true)},
		{"pattern: rounds of 1024 operations over 1024 groups, three stores", "operation", pattern(1024, 1024, true)},
		{"pattern: rounds of 256 operations over 48 groups, the log alone", "operation", pattern(256, 48, false)},
		{"grpc: one-way stream, frames of 100 B", "frame", stream(100, false)},
		{"grpc: one-way stream, frames of 1 KiB", "frame", stream(1<<10, false)},
		{"grpc: one-way stream, frames of 64 KiB", "frame", stream(64<<10, false)},
		{"grpc: stream round trip, 100 B", "round trip", stream(100, true)},
	}
}
