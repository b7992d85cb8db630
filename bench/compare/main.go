package main

import (
	"context"
	"encoding/json"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"runtime"
	"strings"
	"syscall"
	"time"
)

const (
	exitFailed = 1
	exitUsage  = 2
)

// point is what is compared: one workload at one size.
type point struct {
	Workload string        `json:"workload"`
	Shards   int           `json:"shards"`
	Clients  int           `json:"clients"`
	Value    int           `json:"value_bytes"`
	Keys     uint64        `json:"keys"`
	Warmup   time.Duration `json:"warmup_ns"`
	Duration time.Duration `json:"duration_ns"`
	// Overwrite and Settle are of W6: how often the keys are overwritten, and how long
	// the engines are left alone afterwards.
	Overwrite int `json:"overwrite,omitempty"`
	// Foreground is of snapshot: a load of so many hundredths of the peak goes on.
	Foreground int           `json:"foreground_percent,omitempty"`
	Settle     time.Duration `json:"settle_ns,omitempty"`
	Dir        string        `json:"-"`
	// AnyDisk lets it run where fsync does nothing, which compares nothing.
	AnyDisk bool `json:"-"`
}

func (p point) String() string {
	return fmt.Sprintf("%s, %d shards, %d clients, %d B", p.Workload, p.Shards, p.Clients, p.Value)
}

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	err := run(ctx, os.Args[1:])
	stop()
	if err != nil {
		fmt.Fprintln(os.Stderr, "compare:", err)
		os.Exit(exitFailed)
	}
}

func run(ctx context.Context, args []string) error {
	if len(args) > 0 && args[0] == "groups" {
		return runGroups(ctx, args[1:])
	}
	f := flag.NewFlagSet("compare", flag.ContinueOnError)
	var p point
	f.StringVar(&p.Workload, "workload", "W1", "W1 writes, W2 linearizable reads, W3 90% reads; or A to F of YCSB without scans; W6: disk and catch-up after overwrites; snapshot: a shard to a node that lost its disk")
	f.IntVar(&p.Shards, "shards", 48, "shards")
	f.IntVar(&p.Clients, "clients", 1024, "clients, each with one operation under way")
	f.IntVar(&p.Value, "value", 128, "bytes of a value")
	f.Uint64Var(&p.Keys, "keys", 100_000, "records loaded before the run, 16-byte keys")
	f.DurationVar(&p.Warmup, "warmup", 4*time.Second, "worked before the measured time")
	f.DurationVar(&p.Duration, "duration", 10*time.Second, "measured time")
	f.IntVar(&p.Overwrite, "overwrite", 10, "W6: how often the keys are overwritten")
	f.IntVar(&p.Foreground, "foreground", 0, "snapshot: write meanwhile, at so many hundredths of the peak rate")
	f.DurationVar(&p.Settle, "settle", 10*time.Second, "W6: time between the end of everything and the last look at the disk; snapshot: before the order")
	f.StringVar(&p.Dir, "dir", "", "directory for the data, on a real disk; empty: a temporary one")
	names := f.String("engines", "flotilla,dragonboat-disk", "engines that take turns, of "+engineNames())
	pairs := f.Int("pairs", 5, "turns")
	out := f.String("json", "", "file that gets one JSON object per point, appended")
	one := f.String("one", "", "run one engine once in this process and print its result as JSON")
	profile := f.String("cpuprofile", "", "with --one: write a CPU profile of the measured time")
	heap := f.String("memprofile", "", "with --one: write a profile of what was allocated since the start, every 16 KiB sampled")
	only := f.String("only", "", "with table: only points whose name contains this")
	word := ""
	if len(args) > 0 && (args[0] == "table" || args[0] == "costs") {
		word, args = args[0], args[1:]
	}
	if err := f.Parse(args); err != nil {
		os.Exit(exitUsage)
	}
	if p.isBounded() || p.isSnapshot() {
		set := map[string]bool{}
		f.Visit(func(f *flag.Flag) { set[f.Name] = true })
		for _, d := range []struct {
			name string
			set  func()
		}{
			{"shards", func() { p.Shards = 16 }}, {"clients", func() { p.Clients = 64 }}, {"value", func() { p.Value = 1 << 10 }},
			{"keys", func() { p.Keys = 16 << 10 }}, {"pairs", func() { *pairs = 3 }},
		} {
			if !set[d.name] {
				d.set()
			}
		}
		if p.isSnapshot() {
			p.Overwrite = 0
			if !set["shards"] {
				p.Shards = 1
			}
			if !set["keys"] {
				p.Keys = 1 << 20 // with 1 KiB each, 1 GiB
			}
		}
	} else {
		p.Overwrite, p.Settle = 0, 0
	}
	if f.NArg() > 0 {
		fmt.Fprintf(os.Stderr, "compare: %q is not understood: flags come first, and before them only the words table, costs or groups\n", f.Arg(0))
		os.Exit(exitUsage)
	}
	if *one != "" && p.isBounded() {
		res, err := runBounded(ctx, *one, p)
		if err != nil {
			return err
		}
		return json.NewEncoder(os.Stdout).Encode(res)
	}
	if *one != "" && p.isSnapshot() {
		res, err := runSnapshot(ctx, *one, p, *profile)
		if err != nil {
			return err
		}
		return json.NewEncoder(os.Stdout).Encode(res)
	}
	if *one != "" {
		if *heap != "" {
			runtime.MemProfileRate = 16 << 10
		}
		res, err := single(ctx, *one, p, *profile, *heap)
		if err != nil {
			return err
		}
		return json.NewEncoder(os.Stdout).Encode(res)
	}
	if word == "costs" {
		return costs(ctx, p, os.Stdout)
	}
	list := strings.Split(*names, ",")
	for _, n := range list {
		if _, err := findEngine(n); err != nil {
			fmt.Fprintln(os.Stderr, "compare:", err)
			os.Exit(exitUsage)
		}
	}
	points := []point{p}
	if word == "table" {
		points = published(p)
	}
	for _, p := range points {
		if *only != "" && !strings.Contains(p.String(), *only) {
			continue
		}
		c, err := compareAny(ctx, list, p, *pairs)
		if err != nil {
			return err
		}
		c.print(os.Stdout)
		if *out != "" {
			if err := c.append(*out); err != nil {
				return err
			}
		}
	}
	return nil
}

// printer is a comparison that was made.
type printer interface {
	print(w io.Writer)
	append(path string) error
}

func compareAny(ctx context.Context, engines []string, p point, pairs int) (printer, error) {
	if p.isBounded() {
		return compareBounded(ctx, engines, p, pairs)
	}
	if p.isSnapshot() {
		return compareSnapshot(ctx, engines, p, pairs)
	}
	return compare(ctx, engines, p, pairs)
}

// isBounded tells W6 from the workloads that count operations.
func (p point) isBounded() bool { return p.Workload == "W6" }

// isSnapshot tells the moving of a shard from the others.
func (p point) isSnapshot() bool { return p.Workload == "snapshot" }

// published lists the points of the table in docs/performance.md.
func published(base point) []point {
	var all []point
	add := func(workload string, shards, clients, value int) {
		p := base
		p.Workload, p.Shards, p.Clients, p.Value = workload, shards, clients, value
		all = append(all, p)
	}
	add("W1", 48, 1024, 128)
	add("W1", 48, 64, 128)
	add("W1", 1024, 1024, 128)
	add("W1", 1024, 4096, 128)
	add("W1", 1, 1024, 128)
	add("W1", 1, 1, 128)
	add("W2", 48, 1024, 128)
	add("W3", 48, 1024, 128)
	add("W1", 48, 1024, 16)
	add("W1", 48, 1024, 1024)
	return all
}
