package main

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"os/exec"
	"slices"
	"strconv"
	"strings"
	"text/tabwriter"
	"time"
)

// comparison is one point, run on all engines in turn.
type comparison struct {
	Point   point                 `json:"point"`
	Command string                `json:"command"`
	Runs    map[string][]*outcome `json:"runs"`
	Ratios  []ratio               `json:"ratios"`
	engines []string
}

// spread is a median with the extremes it was drawn from.
type spread struct {
	Median float64 `json:"median"`
	Min    float64 `json:"min"`
	Max    float64 `json:"max"`
}

// ratio is the first engine over another one, pair by pair.
type ratio struct {
	Engine string `json:"engine"`
	Over   string `json:"over"`
	Ops    spread `json:"ops_per_s"`
	CPU    spread `json:"cpu_per_op"`
	Disk   spread `json:"disk_bytes_per_op"`
	P50    spread `json:"p50"`
	P99    spread `json:"p99"`
}

func compare(ctx context.Context, engines []string, p point, pairs int) (*comparison, error) {
	c := &comparison{Point: p, Runs: make(map[string][]*outcome), engines: engines}
	c.Command = fmt.Sprintf("go run . --engines %s --pairs %d %s", strings.Join(engines, ","), pairs, strings.Join(p.flags(), " "))
	for i := range pairs {
		for _, name := range engines {
			o, err := child(ctx, name, p)
			if err != nil {
				return nil, fmt.Errorf("%s, %s: %w", name, p, err)
			}
			fmt.Fprintf(os.Stderr, "%s  pair %d  %-16s %10.0f ops/s  p50 %.2f ms  p99 %.2f ms  %.1f us CPU/op  %.0f B/op  %d errors\n",
				p, i+1, name, o.OpsPerSec, o.ServiceMs.P50, o.ServiceMs.P99, o.CPUPer1M, o.DiskPerOp, o.Errors)
			c.Runs[name] = append(c.Runs[name], o)
		}
	}
	for _, other := range engines[1:] {
		r := ratio{Engine: engines[0], Over: other}
		a, b := c.Runs[engines[0]], c.Runs[other]
		of := func(f func(*outcome) float64) spread {
			var all []float64
			for i := range a {
				if y := f(b[i]); y > 0 {
					all = append(all, f(a[i])/y)
				}
			}
			return spreadOf(all)
		}
		r.Ops = of(func(o *outcome) float64 { return o.OpsPerSec })
		r.CPU = of(func(o *outcome) float64 { return o.CPUPer1M })
		r.Disk = of(func(o *outcome) float64 { return o.DiskPerOp })
		r.P50 = of(func(o *outcome) float64 { return o.ServiceMs.P50 })
		r.P99 = of(func(o *outcome) float64 { return o.ServiceMs.P99 })
		c.Ratios = append(c.Ratios, r)
	}
	return c, nil
}

func (p point) flags() []string {
	f := []string{
		"--workload", p.Workload, "--shards", strconv.Itoa(p.Shards), "--clients", strconv.Itoa(p.Clients), "--value", strconv.Itoa(p.Value),
		"--keys", strconv.FormatUint(p.Keys, 10), "--warmup", p.Warmup.String(), "--duration", p.Duration.String(),
	}
	if p.isBounded() {
		f = append(f, "--overwrite", strconv.Itoa(p.Overwrite), "--settle", p.Settle.String())
	}
	if p.isSnapshot() {
		f = append(f, "--foreground", strconv.Itoa(p.Foreground), "--settle", p.Settle.String())
	}
	return f
}

// child runs one engine once in a process of its own.
func child(ctx context.Context, name string, p point) (*outcome, error) {
	o := new(outcome)
	return o, childInto(ctx, name, p, o)
}

func childInto(ctx context.Context, name string, p point, o any) error {
	self, err := os.Executable()
	if err != nil {
		return err
	}
	args := append(p.flags(), "--one", name)
	if p.Dir != "" {
		args = append(args, "--dir", p.Dir)
	}
	cmd := exec.CommandContext(ctx, self, args...)
	cmd.Cancel = func() error { return cmd.Process.Signal(os.Interrupt) } // it removes its directory
	cmd.WaitDelay = time.Minute
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, os.Stderr
	if err := cmd.Run(); err != nil {
		return err
	}
	lines := strings.Split(strings.TrimSpace(out.String()), "\n")
	if err := json.Unmarshal([]byte(lines[len(lines)-1]), o); err != nil {
		return fmt.Errorf("reading its result: %w", err)
	}
	return nil
}

func spreadOf(all []float64) spread {
	if len(all) == 0 {
		return spread{}
	}
	slices.Sort(all)
	mid := all[len(all)/2]
	if len(all)%2 == 0 {
		mid = (mid + all[len(all)/2-1]) / 2
	}
	return spread{mid, all[0], all[len(all)-1]}
}

func (c *comparison) print(w io.Writer) {
	first := c.Runs[c.engines[0]][0]
	fmt.Fprintf(w, "\n%s, %d keys, 3 replicas, fsync on, closed loop; medians [least, most] of %d runs\n%s, %s\n\n",
		c.Point, c.Point.Keys, len(c.Runs[c.engines[0]]), first.Machine, first.Commit)
	t := tabwriter.NewWriter(w, 0, 8, 2, ' ', 0)
	fmt.Fprintln(t, "ENGINE\tOPS/S\tP50 ms\tP99 ms\tCPU us/op\tDISK B/op\tALLOCS/op\tRSS MiB\tERRORS")
	for _, name := range c.engines {
		of := func(f func(*outcome) float64) spread {
			var all []float64
			for _, o := range c.Runs[name] {
				all = append(all, f(o))
			}
			return spreadOf(all)
		}
		ops := of(func(o *outcome) float64 { return o.OpsPerSec })
		fmt.Fprintf(t, "%s\t%.0f [%.0f, %.0f]\t%.2f\t%.2f\t%.1f\t%.0f\t%.1f\t%.0f\t%.0f\n", name, ops.Median, ops.Min, ops.Max,
			of(func(o *outcome) float64 { return o.ServiceMs.P50 }).Median, of(func(o *outcome) float64 { return o.ServiceMs.P99 }).Median,
			of(func(o *outcome) float64 { return o.CPUPer1M }).Median, of(func(o *outcome) float64 { return o.DiskPerOp }).Median,
			of(func(o *outcome) float64 { return o.AllocsPerOp }).Median, of(func(o *outcome) float64 { return o.RSSMiB }).Median,
			of(func(o *outcome) float64 { return float64(o.Errors) }).Median)
	}
	t.Flush()
	for _, r := range c.Ratios {
		fmt.Fprintf(w, "%s over %s, pair by pair: ops/s %s, CPU per op %s, disk per op %s, p50 %s, p99 %s\n",
			r.Engine, r.Over, r.Ops, r.CPU, r.Disk, r.P50, r.P99)
	}
	for _, name := range c.engines {
		o := c.Runs[name][0]
		fmt.Fprintf(w, "%s: %s; %d followed writes read back, %d records equal on all replicas\n", name, o.Note, o.Verified, o.Compared)
	}
	fmt.Fprintf(w, "again: %s\n", c.Command)
}

func (s spread) String() string { return fmt.Sprintf("%.2fx [%.2f, %.2f]", s.Median, s.Min, s.Max) }

// append adds the comparison to a file, as one line.
func (c *comparison) append(path string) error { return appendJSON(path, c) }
