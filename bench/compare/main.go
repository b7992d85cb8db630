package main

import (
	"context"
	"encoding/json"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"runtime"
	"strings"
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
	Dir      string        `json:"-"`
	// AnyDisk lets it run where fsync does nothing, which compares nothing.
	AnyDisk bool `json:"-"`
}

func (p point) String() string {
	return fmt.Sprintf("%s, %d shards, %d clients, %d B", p.Workload, p.Shards, p.Clients, p.Value)
}

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	err := run(ctx, os.Args[1:])
	stop()
	if err != nil {
		fmt.Fprintln(os.Stderr, "compare:", err)
		os.Exit(exitFailed)
	}
}

func run(ctx context.Context, args []string) error {
	f := flag.NewFlagSet("compare", flag.ContinueOnError)
	var p point
	f.StringVar(&p.Workload, "workload", "W1", "W1 writes, W2 linearizable reads, W3 90% reads; or A to F of YCSB without scans")
	f.IntVar(&p.Shards, "shards", 48, "shards")
	f.IntVar(&p.Clients, "clients", 1024, "clients, each with one operation under way")
	f.IntVar(&p.Value, "value", 128, "bytes of a value")
	f.Uint64Var(&p.Keys, "keys", 100_000, "records loaded before the run, 16-byte keys")
	f.DurationVar(&p.Warmup, "warmup", 4*time.Second, "worked before the measured time")
	f.DurationVar(&p.Duration, "duration", 10*time.Second, "measured time")
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
	if f.NArg() > 0 {
		fmt.Fprintf(os.Stderr, "compare: %q is not understood: flags come first, and before them only the words table or costs\n", f.Arg(0))
		os.Exit(exitUsage)
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
		c, err := compare(ctx, list, p, *pairs)
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
