package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math"
	"os"
	"os/exec"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/flotillakv/flotilla/bench"
	"github.com/flotillakv/flotilla/bench/fleet"
)

// fleetFlags are what bench idle and bench groups can be told.
type fleetFlags struct {
	fleet.Config
	counts     []int
	limit      time.Duration // of one count
	memory     size
	memoryText settingFlag
	chart      string
	one        int  // measure this count only, and print its row: the child of a sweep
	here       bool // measure in this process, for tests
}

// maxFleet bounds the shards of one cluster in a sweep.
const maxFleet = 1 << 20

func newBenchIdle(a *app) *cobra.Command {
	b := fleetFlags{}
	cmd := &cobra.Command{
		Use:   "idle",
		Short: "Say what idle shards cost: memory, processor, network, restart",
		Long: `idle makes a cluster of three nodes for each number of shards, leaves it alone, and
says what it takes: how long until every shard had a leader, the heap and resident
memory per replica, the processor time of the whole process and what went over the
network and was synced while nobody did anything, and how long a restart of all
three nodes takes until the first key is read.

A shard that nobody used yet takes less on the disk, and at a start, than one that holds
something: --used says how many are written to before the cluster is left alone.

Each number is measured in a process of its own. What a cluster of one shard takes is
measured first and left out of the figures per replica. A number that would not fit
into the memory is not begun, and one that outgrows --memory is given up.`,
		Example: lines("  flotilla bench idle", "  flotilla bench idle --counts 1000,10000,100000,1000000 --limit 30m --chart idle.svg"),
		Args:    arguments(),
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := b.check(); err != nil {
				return err
			}
			if b.one > 0 {
				b.Shards = b.one
				row, err := fleet.Idle(cmd.Context(), b.child(a))
				row.Failed = text(err)
				return a.printJSON(row)
			}
			return a.idle(cmd.Context(), &b)
		},
	}
	f := cmd.Flags()
	f.IntVar(&b.Used, "used", 256, "most shards that hold something; the others were never used")
	f.DurationVar(&b.Window, "window", 20*time.Second, "how long to watch a cluster at rest")
	b.flags(cmd)
	return cmd
}

func newBenchGroups(a *app) *cobra.Command {
	b := fleetFlags{}
	cmd := &cobra.Command{
		Use:   "groups",
		Short: "Say what many shards do to those that are used, and to a failover",
		Long: `groups makes a cluster of three nodes for each number of shards. First clients write
to a few shards while the others are idle, and to a cluster of those few shards alone,
in pairs of runs that follow each other; the figures are medians. Then it writes to
many shards, so that they are awake, says what the process holds then, kills a node,
and says how long it took until the others had withdrawn their support for it, until
all shards had a leader again, and until 50 %, 99 % and all of those that were awake had accepted a write. Writes to all of
them are under way meanwhile; what the same writes took before the kill is told too.

With --asleep it also kills a node when many shards that hold something sleep, and says
how long it took until all of them had a leader again, and what that cost meanwhile.

Each number is measured in a process of its own.`,
		Example: lines("  flotilla bench groups", "  flotilla bench groups --counts 10000,100000 --awake 10000 -o json"),
		Args:    arguments(),
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := b.check(); err != nil {
				return err
			}
			if b.one > 0 {
				b.Shards = b.one
				row, err := fleet.Groups(cmd.Context(), b.child(a))
				row.Failed = text(err)
				return a.printJSON(row)
			}
			return a.groups(cmd.Context(), &b)
		},
	}
	f := cmd.Flags()
	f.IntVar(&b.Awake, "awake", 10_000, "most shards to wake before a node is killed; 0: leave this part out")
	f.IntVar(&b.Asleep, "asleep", 0, "shards that hold something and sleep when a node is killed, in a cluster of their own; 0: leave this part out")
	f.IntVar(&b.Hot, "hot", 48, "busy shards among the idle ones; 0: leave this part out")
	f.IntVar(&b.Clients, "clients", 1024, "clients that write to the busy shards")
	f.IntVar(&b.Pairs, "pairs", 5, "how often they are measured with the others and alone")
	f.DurationVar(&b.Duration, "duration", 10*time.Second, "measured time of each load")
	f.DurationVar(&b.Warmup, "warmup", 3*time.Second, "time worked before that, not measured")
	b.flags(cmd)
	return cmd
}

// flags defines what both have.
func (b *fleetFlags) flags(cmd *cobra.Command) {
	f := cmd.Flags()
	f.DurationVar(&b.Settle, "settle", 30*time.Second, "longest time to wait for a cluster to come to rest")
	f.IntSliceVar(&b.counts, "counts", []int{1000, 10_000}, "numbers of shards")
	f.DurationVar(&b.limit, "limit", 10*time.Minute, "longest time for one number")
	b.memoryText = settingFlag{b.memory.String(), "size"}
	f.Var(&b.memoryText, "memory", "most resident memory of the process that is measured; 0: three quarters of what is available")
	f.StringVar(&b.Dir, "dir", "", "directory for the data, which is removed at the end; empty: a temporary one")
	f.StringVar(&b.chart, "chart", "", "file to draw a chart into, as SVG")
	f.IntVar(&b.one, "one", 0, "measure this number in this process and print its row")
	f.BoolVar(&b.here, "here", false, "measure in this process")
	for _, hidden := range []string{"one", "here"} {
		_ = f.MarkHidden(hidden)
	}
}

func (b *fleetFlags) check() error {
	if err := b.memory.UnmarshalText([]byte(b.memoryText.text)); err != nil {
		return usageError("--memory: %v", err)
	}
	if len(b.counts) == 0 || len(b.counts) > 64 {
		return usageError("--counts: give 1 to 64 numbers of shards")
	}
	for _, n := range append(slices.Clone(b.counts), b.Used, b.Awake, b.Asleep, b.Hot, b.one) {
		if n < 0 || n > maxFleet {
			return usageError("%d shards: must lie between 1 and %d", n, maxFleet)
		}
	}
	switch {
	case slices.Contains(b.counts, 0):
		return usageError("--counts: at least one shard is needed")
	case b.limit <= 0 || b.Settle < 0 || b.Window < 0 || b.Duration < 0 || b.Warmup < 0:
		return usageError("--limit must be more than 0, other times at least 0")
	case b.Hot > 0 && (b.Pairs < 1 || b.Pairs > 100):
		return usageError("--pairs %d: must lie between 1 and 100", b.Pairs)
	case b.Hot > 0 && (b.Clients < 1 || b.Clients > 1<<20 || b.Duration <= 0):
		return usageError("--clients %d, --duration %s: must lie between 1 and %d, and be more than 0", b.Clients, b.Duration, 1<<20)
	case b.memory < 0:
		return usageError("--memory %s: must not be negative", b.memory)
	}
	slices.Sort(b.counts)
	return nil
}

// child is the configuration of one measurement.
func (b *fleetFlags) child(a *app) fleet.Config {
	c := b.Config
	c.Memory = b.bound()
	c.Step = func(format string, args ...any) { a.note("%6d  "+format, append([]any{c.Shards}, args...)...) }
	return c
}

// bound is how large the process that is measured may become.
func (b *fleetFlags) bound() int64 {
	if b.memory > 0 {
		return int64(b.memory)
	}
	return bench.Available() / 4 * 3
}

func text(err error) string {
	if err == nil {
		return ""
	}
	return err.Error()
}

// measure runs one count in a process of its own, and decodes its row.
func (a *app) measure(ctx context.Context, b *fleetFlags, what string, count int, row any) error {
	ctx, cancel := context.WithTimeout(ctx, b.limit)
	defer cancel()
	if b.here {
		c := *b
		c.Shards = count
		var got any
		var err error
		if what == "idle" {
			var r fleet.IdleRow
			r, err = fleet.Idle(ctx, c.child(a))
			r.Failed = text(err)
			got = r
		} else {
			var r fleet.GroupsRow
			r, err = fleet.Groups(ctx, c.child(a))
			r.Failed = text(err)
			got = r
		}
		out, err := json.Marshal(got)
		if err != nil {
			return err
		}
		return json.Unmarshal(out, row)
	}
	self, err := os.Executable()
	if err != nil {
		return failure(exitFailed, err, "", "cannot find this program's own file: %v", err)
	}
	dir, err := os.MkdirTemp(b.Dir, "flotilla-bench-") // removed with what a child leaves that had to be ended
	if err != nil {
		return failure(exitUsage, err, "--dir names a directory that can be written", "cannot make a directory for the data: %v", err)
	}
	defer os.RemoveAll(dir)
	args := []string{"bench", what, "--one", fmt.Sprint(count), "--dir", dir, "--memory", fmt.Sprint(b.bound()), "--settle", b.Settle.String()}
	if what == "idle" {
		args = append(args, "--window", b.Window.String(), "--used", fmt.Sprint(b.Used))
	} else {
		args = append(args, "--awake", fmt.Sprint(b.Awake), "--asleep", fmt.Sprint(b.Asleep), "--hot", fmt.Sprint(b.Hot), "--clients", fmt.Sprint(max(b.Clients, 1)), "--pairs", fmt.Sprint(max(b.Pairs, 1)),
			"--duration", b.Duration.String(), "--warmup", b.Warmup.String())
	}
	if a.quiet {
		args = append(args, "--quiet")
	}
	cmd := exec.CommandContext(ctx, self, args...)
	cmd.WaitDelay = 5 * time.Second
	cmd.Cancel = func() error { return cmd.Process.Signal(os.Interrupt) }
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, a.errOut
	err = cmd.Run()
	if json.Unmarshal(out.Bytes(), row) == nil {
		return nil // what failed is in it
	}
	if ctx.Err() != nil {
		err = ctx.Err()
	}
	return failure(exitFailed, err, "", "measuring %d shards: %v", count, err)
}

// fits says whether the next count can be begun, by what a replica took in the row before.
func (b *fleetFlags) fits(count, before int, rss int64) error {
	if before < 1 || rss <= 0 {
		return nil
	}
	const alone = 256 << 20 // of three nodes without shards, generously; else the first step up would be judged by it
	need := alone + int64(float64(max(rss-alone, 0))/float64(before)*float64(count))
	if limit := b.bound(); limit > 0 && need > limit {
		return fmt.Errorf("not begun: by what %d shards took, %d would take about %d MiB, and %d MiB may be used (--memory)", before, count, need>>20, limit>>20)
	}
	return nil
}

func (a *app) fleetMachine(b *fleetFlags) (string, error) {
	dir := b.Dir
	if dir == "" {
		dir = os.TempDir()
	}
	m, err := bench.Inspect(dir)
	if err != nil {
		return "", err
	}
	if m.Busy() {
		a.note("note: the machine is busy (load average %.1f on %d cores)", m.Load, m.Cores)
	}
	if !m.Durable {
		a.note("note: %s is in memory (%s), where fsync does nothing; --dir names a directory on a disk", dir, m.FileSystem)
	}
	a.note("machine  %s", m)
	return m.String(), nil
}

// idleReport is what bench idle prints for programs.
type idleReport struct {
	Machine string          `json:"machine"`
	Nodes   int             `json:"nodes"`
	One     fleet.IdleRow   `json:"one_shard"`
	Rows    []fleet.IdleRow `json:"rows"`
}

func (a *app) idle(ctx context.Context, b *fleetFlags) error {
	r := idleReport{Nodes: fleet.Nodes}
	var err error
	if r.Machine, err = a.fleetMachine(b); err != nil {
		return err
	}
	if err := a.measure(ctx, b, "idle", 1, &r.One); err != nil {
		return err
	}
	failed := r.One.Failed
	last := r.One
	for _, n := range b.counts {
		row := fleet.IdleRow{Shards: n}
		if failed == "" {
			if err := b.fits(n, last.Shards, last.RSS); err != nil {
				row.Failed = err.Error()
			} else if err := a.measure(ctx, b, "idle", n, &row); err != nil {
				row.Failed = err.Error()
			}
			row.Subtract(r.One)
			last, failed = row, row.Failed
			r.Rows = append(r.Rows, row)
		}
		if ctx.Err() != nil {
			return ctx.Err()
		}
	}
	if b.chart != "" {
		if err := writeChart(b.chart, idleChart(r.Rows)); err != nil {
			return err
		}
	}
	if a.json() {
		err = a.printJSON(r)
	} else {
		err = printIdle(a.out, &r)
	}
	return errors.Join(err, sweepFailure(failed))
}

// sweepFailure is the failure of a sweep that was not completed.
func sweepFailure(why string) error {
	if why == "" {
		return nil
	}
	return failure(exitFailed, errors.New("sweep"), "", "the sweep ended early: %s", why)
}

func printIdle(w io.Writer, r *idleReport) error {
	t := newTable("", "SHARDS", "USED", "CREATE(s)", "HEAP/REPLICA", "RSS/REPLICA", "HEAP(MiB)", "RSS(MiB)", "CPU(%)", "PEERS(B/s)", "LO(B/s)", "FSYNC/s", "DISK/REPLICA", "TABLES/REPLICA", "LOGS/NODE(KiB)", "CLOSE(s)", "RESTART(s)")
	for i, x := range append([]fleet.IdleRow{r.One}, r.Rows...) {
		heap, rss, disk, tables := "-", "-", "-", "-"
		if i > 0 {
			heap, rss = countText(int64(x.HeapPerReplica)), countText(int64(x.RSSPerReplica))
			disk, tables = countText(int64(x.DiskPerReplica)), countText(int64(x.TablesPerReplica))
		}
		t.add(countText(int64(x.Shards)), countText(int64(x.Used)), fmt.Sprintf("%.2f", x.CreateSeconds), heap, rss, fmt.Sprint(x.Heap>>20), fmt.Sprint(x.RSS>>20), fmt.Sprintf("%.2f", x.CPUPercent),
			countText(int64(x.PeerBytes)), countText(int64(x.LoopbackBytes)), fmt.Sprintf("%.1f", x.FsyncsPerS), disk, tables, countText(x.DiskLogs/int64(r.Nodes)>>10), fmt.Sprintf("%.2f", x.CloseSeconds), fmt.Sprintf("%.2f", x.RestartSeconds))
	}
	_, err := fmt.Fprint(w, t)
	return err
}

// groupsReport is what bench groups prints for programs.
type groupsReport struct {
	Machine string            `json:"machine"`
	Nodes   int               `json:"nodes"`
	Rows    []fleet.GroupsRow `json:"rows"`
}

func (a *app) groups(ctx context.Context, b *fleetFlags) error {
	r := groupsReport{Nodes: fleet.Nodes}
	var err error
	if r.Machine, err = a.fleetMachine(b); err != nil {
		return err
	}
	failed := ""
	for _, n := range b.counts {
		row := fleet.GroupsRow{Shards: n}
		if failed == "" {
			if err := a.measure(ctx, b, "groups", n, &row); err != nil {
				row.Failed = err.Error()
			}
			failed = row.Failed
			r.Rows = append(r.Rows, row)
		}
		if ctx.Err() != nil {
			return ctx.Err()
		}
	}
	if b.chart != "" {
		if err := writeChart(b.chart, groupsChart(r.Rows)); err != nil {
			return err
		}
	}
	if a.json() {
		err = a.printJSON(r)
	} else {
		err = printGroups(a.out, &r)
	}
	return errors.Join(err, sweepFailure(failed))
}

func printGroups(w io.Writer, r *groupsReport) error {
	t := newTable("", "SHARDS", "AWAKE", "HEAP/REPLICA(B)", "RSS(MiB)", "LED BY KILLED", "WITHDRAWN(s)", "ALL LED(s)", "ACCEPTED 50%, 99%, ALL(s)", "SAME BEFORE(s)", "HOT", "HOT/s", "ALONE/s", "OF ALONE", "CPU/WRITE(us)")
	for _, x := range r.Rows {
		hot, alone, of, cpu, heap := "-", "-", "-", "-", "-"
		if x.AwakeHeap > 0 {
			heap = countText(int64(x.AwakeHeap))
		}
		if len(x.Pairs) > 0 {
			hot, alone = countText(int64(x.HotPerS)), countText(int64(x.AlonePerS))
			lo, hi := math.Inf(1), 0.0
			for _, p := range x.Pairs {
				lo, hi = min(lo, p.OfAlone), max(hi, p.OfAlone)
			}
			cpu = fmt.Sprintf("%.1f, alone %.1f", x.HotCPU, x.AloneCPU)
			of = fmt.Sprintf("%.0f%% [%.0f, %.0f]", 100*x.OfAlone, 100*lo, 100*hi)
		}
		t.add(countText(int64(x.Shards)), countText(int64(x.Awake)), heap, countText(x.Memory.RSS>>20), countText(int64(x.LedByKilled)), fmt.Sprintf("%.2f", x.WithdrawnSeconds), fmt.Sprintf("%.2f", x.LedSeconds),
			fmt.Sprintf("%.2f, %.2f, %.2f", x.AcceptedP50Seconds, x.AcceptedP99Seconds, x.AcceptedSeconds), fmt.Sprintf("%.2f", x.BeforeSeconds), fmt.Sprint(x.Hot), hot, alone, of, cpu)
	}
	_, err := fmt.Fprint(w, t)
	return err
}

// panel is one curve over the number of shards; both axes are logarithmic.
type panel struct {
	title  string
	xs, ys []float64
}

func idleChart(rows []fleet.IdleRow) []panel {
	ps := []panel{{title: "heap per replica (bytes)"}, {title: "resident memory (MiB)"}, {title: "processor at rest (% of a core)"}, {title: "between the nodes at rest (bytes/s)"}, {title: "create (s)"}, {title: "restart (s)"}}
	for _, r := range rows {
		if r.Failed != "" {
			continue
		}
		for i, y := range []float64{r.HeapPerReplica, float64(r.RSS) / (1 << 20), r.CPUPercent, r.PeerBytes, r.CreateSeconds, r.RestartSeconds} {
			ps[i].xs, ps[i].ys = append(ps[i].xs, float64(r.Shards)), append(ps[i].ys, y)
		}
	}
	return ps
}

func groupsChart(rows []fleet.GroupsRow) []panel {
	ps := []panel{{title: "all awake shards accept writes after a kill (s)"}, {title: "writes/s to the busy shards"}}
	for _, r := range rows {
		if r.Failed != "" {
			continue
		}
		for i, y := range []float64{r.AcceptedSeconds, r.HotPerS} {
			ps[i].xs, ps[i].ys = append(ps[i].xs, float64(r.Shards)), append(ps[i].ys, y)
		}
	}
	return ps
}

// writeChart draws panels side by side, in rows of three.
func writeChart(path string, ps []panel) error {
	const w, h, pad = 300, 200, 46
	var b strings.Builder
	cols := min(len(ps), 3)
	fmt.Fprintf(&b, `<svg xmlns="http://www.w3.org/2000/svg" width="%d" height="%d" font-family="sans-serif" font-size="11">`+"\n", cols*w, (len(ps)+2)/3*h)
	fmt.Fprintf(&b, `<rect width="100%%" height="100%%" fill="white"/>`+"\n")
	for i, p := range ps {
		x0, y0 := float64(i%3*w), float64(i/3*h)
		fmt.Fprintf(&b, `<text x="%.0f" y="%.0f" text-anchor="middle">%s</text>`+"\n", x0+w/2, y0+16, p.title)
		fmt.Fprintf(&b, `<rect x="%.0f" y="%.0f" width="%d" height="%d" fill="none" stroke="#bbb"/>`+"\n", x0+pad, y0+24, w-pad-12, h-24-34)
		lx, hx := decades(p.xs)
		ly, hy := decades(p.ys)
		at := func(x, y float64) (float64, float64) {
			fx := (math.Log10(max(x, math.Pow(10, lx))) - lx) / (hx - lx)
			fy := (math.Log10(max(y, math.Pow(10, ly))) - ly) / (hy - ly)
			return x0 + pad + fx*(w-pad-12), y0 + 24 + (1-fy)*(h-24-34)
		}
		for d := lx; d <= hx; d++ {
			x, _ := at(math.Pow(10, d), 1)
			fmt.Fprintf(&b, `<text x="%.1f" y="%.1f" text-anchor="middle">%s</text>`+"\n", x, y0+h-20, decade(d))
		}
		for d := ly; d <= hy; d++ {
			_, y := at(1, math.Pow(10, d))
			fmt.Fprintf(&b, `<text x="%.1f" y="%.1f" text-anchor="end">%s</text><line x1="%.1f" x2="%.1f" y1="%.1f" y2="%.1f" stroke="#eee"/>`+"\n", x0+pad-4, y+4, decade(d), x0+pad, x0+w-12, y, y)
		}
		fmt.Fprintf(&b, `<text x="%.0f" y="%.0f" text-anchor="middle">shards</text>`+"\n", x0+w/2, y0+h-6)
		var line []string
		for k := range p.xs {
			x, y := at(p.xs[k], p.ys[k])
			line = append(line, fmt.Sprintf("%.1f,%.1f", x, y))
			fmt.Fprintf(&b, `<circle cx="%.1f" cy="%.1f" r="3" fill="#1f5fa8"><title>%.0f shards: %.4g</title></circle>`+"\n", x, y, p.xs[k], p.ys[k])
		}
		fmt.Fprintf(&b, `<polyline points="%s" fill="none" stroke="#1f5fa8" stroke-width="1.5"/>`+"\n", strings.Join(line, " "))
	}
	b.WriteString("</svg>\n")
	if err := os.WriteFile(path, []byte(b.String()), 0o644); err != nil {
		return failure(exitUsage, err, "--chart names a file that can be written", "cannot write the chart: %v", err)
	}
	return nil
}

// decades returns the powers of ten around the values, at least one apart.
func decades(v []float64) (lo, hi float64) {
	lo, hi = math.Inf(1), math.Inf(-1)
	for _, x := range v {
		if x > 0 {
			lo, hi = min(lo, math.Floor(math.Log10(x))), max(hi, math.Ceil(math.Log10(x)))
		}
	}
	if lo > hi {
		return 0, 1
	}
	return lo, max(hi, lo+1)
}

// decade writes a power of ten.
func decade(d float64) string {
	switch {
	case d >= 9 || d < -3:
		return fmt.Sprintf("1e%.0f", d)
	case d >= 6:
		return fmt.Sprintf("%.0fM", math.Pow(10, d-6))
	case d >= 3:
		return fmt.Sprintf("%.0fk", math.Pow(10, d-3))
	}
	return fmt.Sprintf("%g", math.Pow(10, d))
}
