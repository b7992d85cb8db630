package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/spf13/cobra"

	"github.com/flotillakv/flotilla"
	"github.com/flotillakv/flotilla/bench"
	"github.com/flotillakv/flotilla/bench/workload"
)

// memoryRatio is by how much a node's process may exceed its limit of memory.
const memoryRatio = 1.2

// Loads of bench memory beyond the peak and its multiples.
const (
	faultSlow = "slow" // a node that gets a third of the time
	faultDead = "dead" // a node that is killed, and comes back
)

// memoryFlags are what bench memory can be told.
type memoryFlags struct {
	benchFlags
	memory, values []string
	shardCounts    []int
	times          []float64
	faults         []string
	loadMiB        int
}

func newBenchMemory(a *app) *cobra.Command {
	b := memoryFlags{}
	cmd := &cobra.Command{
		Use:   "memory",
		Short: "Hold the memory of node processes against their limit, under overload",
		Long: `memory starts three processes of this program for each combination of --limits,
--values and --shards, offers them the closed loop's peak of writes, multiples of it,
and twice of it while one node gets a third of the time (slow), is dead, and comes
back (dead). Each second it prints what each process has resident, and at the end the
largest share of the limit that any of them ever had (the kernel's high-water mark).

Before that it prints what the limit is shared out to, as the nodes say themselves,
and at the end what each part held at most. The exit code is 1 if a process took more
than 1.2 times its limit, or if a write failed other than by being refused.`,
		Example: lines("  flotilla bench memory", "  flotilla bench memory --limits 256MiB --values 64KiB --shards 1024 --faults dead"),
		Args:    arguments(),
		RunE: func(cmd *cobra.Command, _ []string) error {
			return a.benchMemory(cmd.Context(), &b)
		},
	}
	f := cmd.Flags()
	f.StringSliceVar(&b.memory, "limits", []string{"256MiB", "512MiB", "1GiB"}, "limits of memory of a node to try")
	f.StringSliceVar(&b.values, "values", []string{"128", "1KiB", "64KiB"}, "sizes of values to try")
	f.IntSliceVar(&b.shardCounts, "shards", []int{48, 1024}, "numbers of shards to try")
	f.Float64SliceVar(&b.times, "times", []float64{2, 10}, "multiples of the peak to offer")
	f.StringSliceVar(&b.faults, "faults", []string{faultSlow, faultDead}, "what else to try at twice the peak: slow, dead")
	f.IntVar(&b.clients, "clients", 1024, "clients of the closed loop")
	f.DurationVar(&b.duration, "duration", 10*time.Second, "measured time of each load")
	f.DurationVar(&b.warm, "warmup", time.Second, "time worked before that")
	f.IntVar(&b.loadMiB, "load", 256, "MiB of records loaded first")
	f.StringVar(&b.dir, "dir", "", "directory of the nodes' data, removed from it at the end; empty: a temporary one")
	f.Uint64Var(&b.seed, "seed", 1, "seed of the generator")
	return cmd
}

// memoryRow is what one load made of the nodes' memory.
type memoryRow struct {
	Limit     string           `json:"limit"`
	Value     string           `json:"value"`
	Shards    int              `json:"shards"`
	Load      string           `json:"load"`
	Offered   float64          `json:"offered_per_s"`
	Served    float64          `json:"served_per_s"`
	Refused   float64          `json:"refused_per_s"`
	Failed    int64            `json:"failed"`
	P99Ms     float64          `json:"p99_ms"`
	PeakMiB   []float64        `json:"peak_mib"`   // by node: high-water mark of the load
	MedianMiB []float64        `json:"median_mib"` // by node: of the samples of each second
	Ratio     float64          `json:"ratio"`      // the largest peak, of the limit
	Errors    map[string]int64 `json:"errors_by_kind,omitempty"`
}

func (a *app) benchMemory(ctx context.Context, b *memoryFlags) error {
	var limits, values []size
	for _, l := range []struct {
		flag string
		text []string
		to   *[]size
	}{{"--limits", b.memory, &limits}, {"--values", b.values, &values}} {
		for _, t := range l.text {
			var s size
			if err := s.UnmarshalText([]byte(t)); err != nil {
				return usageError("%s: %v", l.flag, err)
			}
			*l.to = append(*l.to, s)
		}
	}
	for _, l := range limits {
		if l < flotilla.MinProcessMemory {
			return usageError("--limits %s: must be at least %s", l, size(flotilla.MinProcessMemory))
		}
	}
	for _, x := range b.times {
		if x <= 0 || x > 1000 {
			return usageError("--times %g: must be above 0 and at most 1000", x)
		}
	}
	for _, f := range b.faults {
		if f != faultSlow && f != faultDead {
			return usageError("--faults %s: must be one of slow, dead%s", f, didYouMean(f, []string{faultSlow, faultDead}))
		}
	}
	if b.loadMiB < 1 || b.loadMiB > 1<<20 {
		return usageError("--load %d: must lie between 1 and %d", b.loadMiB, 1<<20)
	}
	for _, v := range values {
		if v < 1 || v > workload.MaxValueBytes {
			return usageError("--values %s: must lie between 1 and %s", v, size(workload.MaxValueBytes))
		}
	}
	b.conns, b.rate, b.keys = benchConns, rate{}, 1
	for _, n := range b.shardCounts {
		b.shards, b.outstanding = n, 1
		if err := b.check(neverGiven{}); err != nil {
			return err
		}
	}
	program, err := os.Executable()
	if err != nil {
		return failure(exitFailed, err, "", "cannot find this program's own file: %v", err)
	}
	dir, err := os.MkdirTemp(b.dir, "flotilla-bench-")
	if err != nil {
		return failure(exitUsage, err, "--dir names a directory that can be written", "cannot make a directory for the data: %v", err)
	}
	defer os.RemoveAll(dir)
	live := a.out
	if a.json() {
		live = a.errOut
	}
	if a.quiet {
		live = io.Discard
	}
	machine, err := bench.Inspect(dir)
	if err != nil {
		return err
	}
	fmt.Fprintf(live, "machine  %s\n", machine.String())
	var rows []memoryRow
	n := 0
	for _, limit := range limits {
		for _, shards := range b.shardCounts {
			for _, value := range values {
				n++
				c := *b
				c.shards, c.value = shards, value
				m := &memoryRun{a: a, b: &c, limit: limit, live: live, dir: filepath.Join(dir, strconv.Itoa(n)), program: program, seen: map[string]int64{}}
				got, err := m.run(ctx)
				rows = append(rows, got...)
				if err != nil {
					return err
				}
			}
		}
	}
	return a.printMemory(rows)
}

// neverGiven says of every flag that it was not given.
type neverGiven struct{}

func (neverGiven) Changed(string) bool { return false }

// memoryRun is one cluster under all loads.
type memoryRun struct {
	a       *app
	b       *memoryFlags
	limit   size
	live    io.Writer
	dir     string
	program string

	r      *remoteRun
	nodes  []*nodeProcess
	store  *benchStore
	set    *workload.Set
	peak   float64
	rows   []memoryRow
	budget []flotilla.MemoryUse
	seen   map[string]int64 // by consumer: most that any node held
}

func (m *memoryRun) run(ctx context.Context) (_ []memoryRow, err error) {
	if err := os.Mkdir(m.dir, 0o700); err != nil {
		return nil, err
	}
	defer os.RemoveAll(m.dir)
	m.r = &remoteRun{program: m.program, dir: m.dir, flags: &remoteFlags{shards: m.b.shards}, serve: []string{"--memory", m.limit.String(), "--ballast", "0"}}
	m.nodes, err = m.r.cluster(ctx, m.dir)
	defer func() { stopNodes(m.nodes) }()
	if err != nil {
		return nil, err
	}
	spec, err := workload.Parse("W1")
	if err != nil {
		return nil, err
	}
	m.b.keys = max(uint64(m.b.loadMiB)<<20/uint64(m.b.value), 1000)
	m.b.keys = min(m.b.keys, 500_000)
	if m.set, err = workload.New(workload.Config{Spec: spec, Dist: spec.Dist, Records: m.b.keys, ValueBytes: int(m.b.value), Seed: m.b.seed}); err != nil {
		return nil, err
	}
	old := m.a.addrs
	defer func() { m.a.addrs = old }()
	m.a.addrs = nil
	for _, n := range m.nodes {
		m.a.addrs = append(m.a.addrs, n.addr)
	}
	if m.store, err = m.a.remote(ctx, &m.b.benchFlags); err != nil {
		return nil, err
	}
	defer m.store.close()
	fmt.Fprintf(m.live, "\nlimit %s, values of %s, %d shards, %s keys\n", m.limit, m.b.value, m.b.shards, countText(int64(m.b.keys)))
	m.note(ctx)
	m.printBudget()
	if err := m.a.load(ctx, m.set, m.store, m.live); err != nil {
		return nil, err
	}
	if err := m.load(ctx, "peak", 0, nil); err != nil {
		return m.rows, err
	}
	m.peak = m.rows[0].Served
	for _, x := range m.b.times {
		if err := m.load(ctx, strconv.FormatFloat(x, 'g', -1, 64)+"x", x*m.peak, nil); err != nil {
			return m.rows, err
		}
	}
	victim := len(m.nodes) - 1
	if slices.Contains(m.b.faults, faultSlow) {
		if err := m.load(ctx, "2x slow", 2*m.peak, func(ctx context.Context) { m.slow(ctx, victim) }); err != nil {
			return m.rows, err
		}
	}
	if slices.Contains(m.b.faults, faultDead) {
		_ = m.nodes[victim].cmd.Process.Kill()
		_ = m.nodes[victim].cmd.Wait()
		if err := m.load(ctx, "2x dead", 2*m.peak, nil); err != nil {
			return m.rows, err
		}
		up := make(chan string, 1)
		n, err := m.r.start(ctx, m.dir, victim, m.r.peers, func(addr string) { up <- addr })
		if err != nil {
			return m.rows, err
		}
		m.nodes[victim] = n
		if err := m.load(ctx, "2x back", 2*m.peak, nil); err != nil {
			return m.rows, err
		}
		select {
		case addr := <-up:
			if addr == "" {
				return m.rows, fmt.Errorf("the node did not come back: %s", lastLine(n.log.String()))
			}
		case <-time.After(nodeStart):
			return m.rows, fmt.Errorf("the node that came back does not serve after %s", nodeStart)
		}
	}
	m.printSeen()
	return m.rows, nil
}

// slow lets a node work for 100 ms of every 300 ms.
func (m *memoryRun) slow(ctx context.Context, victim int) {
	p := m.nodes[victim].cmd.Process
	defer p.Signal(syscall.SIGCONT)
	for ctx.Err() == nil {
		for _, s := range []struct {
			sig  os.Signal
			wait time.Duration
		}{{syscall.SIGSTOP, 200 * time.Millisecond}, {syscall.SIGCONT, 100 * time.Millisecond}} {
			_ = p.Signal(s.sig)
			select {
			case <-ctx.Done():
			case <-time.After(s.wait):
			}
		}
	}
}

// load carries out one load and watches the processes meanwhile.
func (m *memoryRun) load(ctx context.Context, name string, rate float64, fault func(ctx context.Context)) error {
	c := bench.Config{Set: m.set, Targets: m.store.targets, Clients: m.b.clients, Pipelines: 1, Warmup: m.b.warm, Duration: m.b.duration, Timeout: m.a.timeout, Classify: errorKind}
	if rate > 0 {
		// What the clients hold is theirs: no more than 256 MiB.
		c.Rate, c.Outstanding = rate, max(m.b.clients, min(65536, int(256<<20/(m.b.value+256))))
		c.Clients = c.Outstanding
	}
	work, stop := context.WithCancel(ctx)
	var wg sync.WaitGroup
	if fault != nil {
		wg.Go(func() { fault(work) })
	}
	w := m.watch(name)
	wg.Go(func() { w.run(work) })
	res, err := bench.Run(ctx, c)
	m.note(ctx)
	stop()
	wg.Wait()
	if err != nil {
		return fmt.Errorf("%s: %w", name, err)
	}
	refused := res.ErrorKinds["overloaded"]
	row := memoryRow{
		Limit: m.limit.String(), Value: m.b.value.String(), Shards: m.b.shards, Load: name,
		Offered: res.OpsPerSec + float64(res.Errors+res.Shed)/res.Seconds, Served: res.OpsPerSec, Refused: float64(refused) / res.Seconds,
		Failed: res.Errors - refused, P99Ms: res.ServiceMs.P99, Errors: res.ErrorKinds,
	}
	for i := range m.nodes {
		row.PeakMiB = append(row.PeakMiB, mibOf(w.most[i]))
		slices.Sort(w.samples[i])
		median := int64(0)
		if n := len(w.samples[i]); n > 0 {
			median = w.samples[i][n/2]
		}
		row.MedianMiB = append(row.MedianMiB, mibOf(median))
		row.Ratio = max(row.Ratio, float64(w.most[i])/float64(m.limit))
	}
	m.rows = append(m.rows, row)
	fmt.Fprintf(m.live, "%-8s %9s/s offered, %9s/s served, %9s/s refused, p99 %.1f ms; most %s MiB: %.2f of the limit\n", name,
		countText(int64(row.Offered)), countText(int64(row.Served)), countText(int64(row.Refused)), row.P99Ms, mibTexts(row.PeakMiB), row.Ratio)
	return nil
}

func mibOf(n int64) float64 { return float64(n) / (1 << 20) }

func mibTexts(all []float64) string {
	var parts []string
	for _, x := range all {
		parts = append(parts, fmt.Sprintf("%.0f", x))
	}
	return strings.Join(parts, " ")
}

// memoryWatch samples what processes have resident.
type memoryWatch struct {
	m       *memoryRun
	name    string
	pids    []int
	most    []int64 // high-water marks
	samples [][]int64
}

func (m *memoryRun) watch(name string) *memoryWatch {
	w := &memoryWatch{m: m, name: name, most: make([]int64, len(m.nodes)), samples: make([][]int64, len(m.nodes))}
	for _, n := range m.nodes {
		w.pids = append(w.pids, n.cmd.Process.Pid)
		// Begins the high-water mark anew; where it cannot, it is that of the whole run.
		_ = os.WriteFile(fmt.Sprintf("/proc/%d/clear_refs", n.cmd.Process.Pid), []byte("5"), 0)
	}
	return w
}

func (w *memoryWatch) run(ctx context.Context) {
	t := time.NewTicker(time.Second)
	defer t.Stop()
	for s := 1; ; s++ {
		done := false
		select {
		case <-ctx.Done():
			done = true
		case <-t.C:
		}
		var now []float64
		for i, pid := range w.pids {
			rss, most := residentBytes(pid)
			w.most[i] = max(w.most[i], rss, most)
			if rss > 0 && !done {
				w.samples[i] = append(w.samples[i], rss)
			}
			now = append(now, mibOf(rss))
		}
		if done {
			return
		}
		fmt.Fprintf(w.m.live, "  %-8s %3ds  resident %s MiB\n", w.name, s, mibTexts(now))
		if s%3 == 0 {
			w.m.note(ctx)
		}
	}
}

// residentBytes returns what a process has in memory, and had at most; zero if there is
// no such process, or nobody can tell.
func residentBytes(pid int) (now, most int64) {
	f, err := os.Open(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		return 0, 0
	}
	defer f.Close()
	for s := bufio.NewScanner(f); s.Scan(); {
		name, rest, _ := strings.Cut(s.Text(), ":")
		kib, _ := strconv.ParseInt(strings.TrimSuffix(strings.TrimSpace(rest), " kB"), 10, 64)
		switch name {
		case "VmRSS":
			now = kib << 10
		case "VmHWM":
			most = kib << 10
		}
	}
	return now, most
}

// note asks the nodes what holds how much of their memory.
func (m *memoryRun) note(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, 2*time.Second)
	defer cancel()
	c, err := m.a.connect(ctx)
	if err != nil {
		return
	}
	defer c.Close()
	nodes, err := c.Nodes(ctx)
	if err != nil {
		return
	}
	for i := range nodes {
		if nodes[i].Memory == nil {
			continue
		}
		for _, u := range nodes[i].Memory.Uses {
			m.seen[u.Name] = max(m.seen[u.Name], u.Held)
		}
		if m.budget == nil {
			m.budget = nodes[i].Memory.Uses
		}
	}
}

func (m *memoryRun) printBudget() {
	if m.budget == nil {
		return
	}
	t := newTable("", "CONSUMER", "BUDGET(MiB)", "HELD(MiB)")
	for _, u := range m.budget {
		t.add(u.Name, fmt.Sprintf("%.1f", mibOf(u.Budget)), fmt.Sprintf("%.1f", mibOf(u.Held)))
	}
	fmt.Fprint(m.live, t)
}

func (m *memoryRun) printSeen() {
	t := newTable("", "CONSUMER", "BUDGET(MiB)", "MOST(MiB)")
	for _, u := range m.budget {
		t.add(u.Name, fmt.Sprintf("%.1f", mibOf(u.Budget)), fmt.Sprintf("%.1f", mibOf(m.seen[u.Name])))
	}
	fmt.Fprint(m.live, t)
}

func (a *app) printMemory(rows []memoryRow) error {
	var faults []string
	t := newTable("", "LIMIT", "SHARDS", "VALUE", "LOAD", "OFFERED/s", "SERVED/s", "REFUSED/s", "FAILED", "P99(ms)", "MEDIAN(MiB)", "MOST(MiB)", "OF LIMIT")
	for _, r := range rows {
		at := fmt.Sprintf("limit %s, %d shards, values of %s, %s", r.Limit, r.Shards, r.Value, r.Load)
		if r.Ratio > memoryRatio {
			faults = append(faults, fmt.Sprintf("%s: %.2f of the limit", at, r.Ratio))
		}
		t.add(r.Limit, strconv.Itoa(r.Shards), r.Value, r.Load, countText(int64(r.Offered)), countText(int64(r.Served)), countText(int64(r.Refused)), countText(r.Failed),
			fmt.Sprintf("%.1f", r.P99Ms), mibTexts(r.MedianMiB), mibTexts(r.PeakMiB), fmt.Sprintf("%.2f", r.Ratio))
	}
	var err error
	if a.json() {
		err = printList(a, rows)
	} else {
		_, err = fmt.Fprintf(a.out, "\n%s", t)
	}
	if err != nil || len(faults) == 0 {
		return err
	}
	return failure(exitFailed, errors.New("memory"), "", "%s", strings.Join(faults, "; "))
}
