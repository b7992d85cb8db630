package main

import (
	"cmp"
	"context"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"text/tabwriter"

	"github.com/google/pprof/profile"
)

// A cost is a part of the processor time of an operation, known by functions
// that stand on the stack. The first that matches counts, so the order matters.
type cost struct {
	name  string
	marks []string
}

var costsOf = []cost{
	{"client of the bench: drawing, histograms", []string{"flotilla/bench.(*recorder", "flotilla/bench.(*hists", "flotilla/bench/workload.", "hdrhistogram"}},
	{"garbage collection", []string{"runtime.gcBgMarkWorker", "runtime.gcAssistAlloc", "runtime.bgsweep", "runtime.bgscavenge", "runtime.gcStart", "runtime.sweepone"}},
	{"compactions", []string{"pebble/v2.(*DB).compact1", "pebble/v2.(*tableCompaction).Execute"}},
	{"flushes of memtables", []string{"pebble/v2.(*DB).flush1", "pebble/v2.(*DB).flush"}},
	{"the log of the store: checksums, writes, syncs", []string{"pebble/v2/record.", "pebble/v2.(*commitPipeline).prepare", "pebble/v2.(*DB).commitWrite"}},
	{"the memtable: inserting", []string{"pebble/v2.(*memTable).", "arenaskl."}},
	{"the rest of committing a batch", []string{"pebble/v2.(*DB).applyInternal", "engine.(*Batch).Commit", "engine.(*Batch).Wait", "pebble/v2.(*commitPipeline)"}},
	{"gRPC and sockets", []string{"google.golang.org/grpc", "golang.org/x/net/http2", "internal/poll.(*FD)", "net.(*conn)"}},
	{"frames: encoding, decoding, queues", []string{"flotilla/transport."}},
	{"machine: decoding commands, filling the batch", []string{"multiraft.(*loop).applyAll"}},
	{"raft core", []string{"multiraft/raft.(*Core)"}},
	{"telling clients", []string{"multiraft.(*completions).flush"}},
	{"rounds of the loop", []string{"multiraft.(*loop)", "multiraft.(*syncer)"}},
	{"router and key-value store, waiting clients", []string{"flotilla/router.", "shard/kv.", "flotilla.(*access)", "flotilla/bench.(*run)"}},
	{"liveness, timers, reports", []string{"multiraft/liveness", "flotilla.(*Node)", "flotilla/bench."}},
	{"scheduler", []string{"runtime.schedule", "runtime.mcall", "runtime.park_m", "runtime.findRunnable", "runtime.goschedImpl"}},
}

// costs runs Flotilla once and prints where the processor time of an operation went.
func costs(ctx context.Context, p point, w io.Writer) error {
	dir, err := os.MkdirTemp("", "flotilla-costs-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	path := filepath.Join(dir, "cpu")
	o, err := single(ctx, "flotilla", p, path, "")
	if err != nil {
		return err
	}
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer f.Close()
	prof, err := profile.Parse(f)
	if err != nil {
		return err
	}
	parts, total := split(prof)
	fmt.Fprintf(w, "%s: %.0f ops/s, %.1f us of CPU per operation in all (three nodes and the clients)\n\n", p, o.OpsPerSec, o.CPUPer1M)
	t := tabwriter.NewWriter(w, 0, 8, 2, ' ', tabwriter.AlignRight)
	fmt.Fprintln(t, "us per operation\tshare\t  \t")
	names := make([]string, 0, len(parts))
	for name := range parts {
		names = append(names, name)
	}
	slices.SortFunc(names, func(a, b string) int { return cmp.Compare(parts[b], parts[a]) })
	for _, name := range names {
		share := float64(parts[name]) / float64(total)
		fmt.Fprintf(t, "%.2f\t%.1f %%\t  \t%s\n", share*o.CPUPer1M, share*100, name)
	}
	return t.Flush()
}

// split deals the samples of a profile of CPU time to the costs.
func split(p *profile.Profile) (parts map[string]int64, total int64) {
	parts = make(map[string]int64)
	at := len(p.SampleType) - 1 // nanoseconds
	for _, s := range p.Sample {
		total += s.Value[at]
		parts[costOf(s)] += s.Value[at]
	}
	return parts, max(total, 1)
}

func costOf(s *profile.Sample) string {
	var stack []string
	for _, l := range s.Location {
		for _, line := range l.Line {
			if line.Function != nil {
				stack = append(stack, line.Function.Name)
			}
		}
	}
	for _, c := range costsOf {
		for _, f := range stack {
			for _, m := range c.marks {
				if strings.Contains(f, m) {
					return c.name
				}
			}
		}
	}
	return "everything else"
}
