package main

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/exec"
	"runtime"
	"runtime/debug"
	"slices"
	"strconv"
	"strings"
	"sync"
	"text/tabwriter"
	"time"

	"github.com/lni/dragonboat/v4/client"

	"github.com/flotillakv/flotilla/bench"
	"github.com/flotillakv/flotilla/bench/workload"
	"github.com/flotillakv/flotilla/internal/localcluster"
)

// The word "groups": three nodes with ever more groups, each of which holds one record.
// How long they need to start, what they take when nobody uses them, how long a failover
// and a restart take. Each engine goes as far as it gets within a bound of memory and time.

// many is an engine under this measurement. Group g holds one record.
type many interface {
	// start starts all nodes, at the same time, for the first time or again.
	start(ctx context.Context) error
	// put writes the record of a group, once, by way of the first node.
	put(ctx context.Context, group int) error
	// get reads it, linearizably, by way of the first node.
	get(ctx context.Context, group int) error
	// kill ends the third node.
	kill() error
	// stop ends all nodes that run.
	stop() error
}

var manyEngines = map[string]func(dir string, groups int) (many, error){
	"flotilla":            newManyFlotilla,
	"dragonboat":          func(dir string, n int) (many, error) { return newManyDragonboat(dir, n, false) },
	"dragonboat-quiesced": func(dir string, n int) (many, error) { return newManyDragonboat(dir, n, true) },
}

// groupsRow is what an engine takes with so many groups. Bytes per group are of the whole
// process, with what it takes with one group left out.
type groupsRow struct {
	Engine string `json:"engine"`
	Groups int    `json:"groups"`
	// StartSeconds: from nothing until every group has accepted a write.
	StartSeconds float64 `json:"start_s,omitempty"`
	Heap         int64   `json:"heap_bytes,omitempty"`
	RSS          int64   `json:"rss_bytes,omitempty"`
	HeapPerGroup float64 `json:"heap_per_group,omitempty"`
	RSSPerGroup  float64 `json:"rss_per_group,omitempty"`
	// At rest: of the process, in percent of one core; bytes per second over loopback.
	CPUPercent float64 `json:"cpu_percent,omitempty"`
	Loopback   float64 `json:"loopback_bytes_per_s,omitempty"`
	// FailoverSeconds: from the end of one node until every group has accepted a write; all
	// are begun then, and those that fail are made again. FailoverP50: until half of them had.
	FailoverP50     float64 `json:"failover_p50_s,omitempty"`
	FailoverSeconds float64 `json:"failover_s,omitempty"`
	CloseSeconds    float64 `json:"close_s,omitempty"`
	// After a stop of all nodes: until one record was read, and until all were.
	RestartSeconds    float64 `json:"restart_s,omitempty"`
	RestartAllSeconds float64 `json:"restart_all_s,omitempty"`
	// Doing is what was begun last; Failed says why it went no further.
	Doing  string `json:"doing,omitempty"`
	Failed string `json:"failed,omitempty"`
}

type groupsFlags struct {
	counts         []int
	engines        []string
	memory         int64
	limit          time.Duration // of one count
	settle, window time.Duration
	dir            string
	out            string
	one            string // measure this engine in this process
}

func runGroups(ctx context.Context, args []string) error {
	f := flag.NewFlagSet("compare groups", flag.ContinueOnError)
	g := groupsFlags{}
	counts := f.String("counts", "100,1000", "numbers of groups")
	engines := f.String("engines", "flotilla,dragonboat,dragonboat-quiesced", "engines, one after the other for each number")
	memory := f.Int64("memory", 8192, "most resident memory of a process, in MiB; beyond it an engine is given up")
	f.DurationVar(&g.limit, "limit", 3*time.Minute, "longest time for one engine with one number of groups")
	f.DurationVar(&g.settle, "settle", 20*time.Second, "how long the engine is left alone before it is watched")
	f.DurationVar(&g.window, "window", 10*time.Second, "how long it is watched at rest")
	f.StringVar(&g.dir, "dir", "", "directory for the data, on a real disk; empty: a temporary one")
	f.StringVar(&g.out, "json", "", "file that gets one JSON object per row, appended")
	f.StringVar(&g.one, "one", "", "measure one engine with the first number in this process")
	if err := f.Parse(args); err != nil {
		os.Exit(exitUsage)
	}
	for _, c := range strings.Split(*counts, ",") {
		n, err := strconv.Atoi(c)
		if err != nil || n < 1 || n > 1<<20 {
			return fmt.Errorf("--counts %q: numbers between 1 and %d, with commas between them", *counts, 1<<20)
		}
		g.counts = append(g.counts, n)
	}
	slices.Sort(g.counts)
	g.engines, g.memory = strings.Split(*engines, ","), *memory<<20
	for _, name := range append(slices.Clone(g.engines), g.one) {
		if _, ok := manyEngines[name]; !ok && name != "" {
			return fmt.Errorf("engine %q cannot be measured with many groups: choose of flotilla, dragonboat, dragonboat-quiesced", name)
		}
	}
	if g.one != "" {
		return g.measure(ctx, os.Stdout)
	}
	return g.sweep(ctx)
}

// sweep measures all, each in a process of its own, and prints a table.
func (g *groupsFlags) sweep(ctx context.Context) error {
	machine, err := bench.Inspect(cmpDir(g.dir))
	if err != nil {
		return err
	}
	fmt.Fprintln(os.Stderr, "machine ", machine)
	var rows []groupsRow
	base, over := map[string]groupsRow{}, map[string]string{}
	for _, n := range append([]int{1}, g.counts...) {
		for _, name := range g.engines {
			row := groupsRow{Engine: name, Groups: n}
			if why := over[name]; why != "" {
				row.Failed = "not begun: " + why
			} else {
				row = g.child(ctx, name, n)
				if row.Failed != "" {
					over[name] = fmt.Sprintf("it did not get through %d", n)
				}
			}
			if ctx.Err() != nil {
				return ctx.Err()
			}
			if n == 1 && len(base) < len(g.engines) {
				base[name] = row
			} else if b := base[name]; row.Heap > 0 && n > 1 {
				row.HeapPerGroup, row.RSSPerGroup = float64(row.Heap-b.Heap)/float64(n-1), float64(row.RSS-b.RSS)/float64(n-1)
			}
			rows = append(rows, row)
			if g.out != "" {
				if err := appendJSON(g.out, row); err != nil {
					return err
				}
			}
		}
	}
	return printGroups(os.Stdout, rows)
}

func cmpDir(dir string) string {
	if dir == "" {
		return os.TempDir()
	}
	return dir
}

// child measures one engine in a process of its own, which is ended at the limit.
func (g *groupsFlags) child(ctx context.Context, name string, n int) groupsRow {
	row := groupsRow{Engine: name, Groups: n}
	self, err := os.Executable()
	if err != nil {
		row.Failed = err.Error()
		return row
	}
	dir, err := os.MkdirTemp(g.dir, "flotilla-compare-")
	if err != nil {
		row.Failed = err.Error()
		return row
	}
	defer os.RemoveAll(dir)
	ctx, cancel := context.WithTimeout(ctx, g.limit)
	defer cancel()
	cmd := exec.CommandContext(ctx, self, "groups", "--one", name, "--counts", fmt.Sprint(n), "--memory", fmt.Sprint(g.memory>>20),
		"--settle", g.settle.String(), "--window", g.window.String(), "--dir", dir)
	cmd.Stderr, cmd.WaitDelay = os.Stderr, 5*time.Second
	var out bytes.Buffer
	cmd.Stdout = &out
	err = cmd.Run()
	for lines := bufio.NewScanner(&out); lines.Scan(); { // the last one is the newest
		var r groupsRow
		if json.Unmarshal(lines.Bytes(), &r) == nil {
			row = r
		}
	}
	switch {
	case row.Failed != "":
	case ctx.Err() != nil:
		row.Failed = fmt.Sprintf("not done after %v, while %s", g.limit, row.Doing)
	case err != nil:
		row.Failed = fmt.Sprintf("%v, while %s", err, row.Doing)
	}
	return row
}

// measure measures one engine here. The row is written anew with each step.
func (g *groupsFlags) measure(ctx context.Context, w io.Writer) error {
	var mu sync.Mutex // guards row and w
	row := groupsRow{Engine: g.one, Groups: g.counts[0]}
	say := func(doing string, failed error) {
		mu.Lock()
		defer mu.Unlock()
		if row.Doing = doing; failed != nil {
			row.Failed = failed.Error()
		}
		_ = json.NewEncoder(w).Encode(row)
		if doing != "" {
			fmt.Fprintf(os.Stderr, "%-20s %7d  %s\n", row.Engine, row.Groups, doing)
		}
	}
	set := func(f func()) {
		mu.Lock()
		defer mu.Unlock()
		f()
	}
	done := make(chan struct{})
	defer close(done)
	go func() {
		for {
			select {
			case <-done:
				return
			case <-time.After(100 * time.Millisecond):
			}
			if rss := bench.Resident(); rss > g.memory {
				mu.Lock()
				doing := row.Doing
				mu.Unlock()
				say(doing, fmt.Errorf("%d MiB are more than %d, while %s", rss>>20, g.memory>>20, doing))
				os.Exit(exitFailed) // an engine that is starting cannot be told
			}
		}
	}()
	err := g.steps(ctx, &row, set, func(doing string) { say(doing, nil) })
	if err != nil {
		say(row.Doing, fmt.Errorf("%s: %w", row.Doing, err))
		return err
	}
	say("", nil)
	return nil
}

func (g *groupsFlags) steps(ctx context.Context, row *groupsRow, set func(func()), say func(string)) error {
	dir, err := os.MkdirTemp(g.dir, "groups-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	e, err := manyEngines[g.one](dir, row.Groups)
	if err != nil {
		return err
	}
	since := func(t time.Time) float64 { return time.Since(t).Seconds() }

	say("starting")
	began := time.Now()
	if err := e.start(ctx); err != nil {
		return err
	}
	stopped := false
	defer func() {
		if !stopped {
			_ = e.stop()
		}
	}()
	say("writing to all groups")
	if _, _, err := everywhere(ctx, row.Groups, e.put); err != nil {
		return err
	}
	set(func() { row.StartSeconds = since(began) })

	say("coming to rest")
	if err := pause(ctx, g.settle); err != nil {
		return err
	}
	runtime.GC()
	debug.FreeOSMemory()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	set(func() { row.Heap, row.RSS = int64(m.HeapAlloc), bench.Resident() })
	say("resting")
	cpu, lo, at := bench.CPUTime(), bench.LoopbackBytes(), time.Now()
	if err := pause(ctx, g.window); err != nil {
		return err
	}
	set(func() {
		row.CPUPercent = 100 * (bench.CPUTime() - cpu).Seconds() / since(at)
		row.Loopback = float64(bench.LoopbackBytes()-lo) / since(at)
	})

	say("waking all groups")
	if _, _, err := everywhere(ctx, row.Groups, e.put); err != nil {
		return err
	}
	say("failing over")
	killed := make(chan error, 1)
	go func() { killed <- e.kill() }()
	half, all, err := everywhere(ctx, row.Groups, e.put)
	if err = errors.Join(err, <-killed); err != nil {
		return err
	}
	set(func() { row.FailoverP50, row.FailoverSeconds = half.Seconds(), all.Seconds() })

	say("stopping")
	began = time.Now()
	stopped = true
	if err := e.stop(); err != nil {
		return err
	}
	set(func() { row.CloseSeconds = since(began) })
	say("restarting")
	began = time.Now()
	stopped = false
	if err := e.start(ctx); err != nil {
		return err
	}
	if _, _, err := everywhere(ctx, 1, func(ctx context.Context, _ int) error { return e.get(ctx, row.Groups/2) }); err != nil {
		return err
	}
	set(func() { row.RestartSeconds = since(began) })
	say("reading all groups")
	if _, _, err := everywhere(ctx, row.Groups, e.get); err != nil {
		return err
	}
	set(func() { row.RestartAllSeconds = since(began) })
	return nil
}

// tryFor is how long one try may take, and tryAgain the pause before the next one.
const tryFor, tryAgain = time.Second, 10 * time.Millisecond

// everywhere calls f for every group, all at the same time and again until it succeeds,
// and returns after how long half and all of them had.
func everywhere(ctx context.Context, groups int, f func(ctx context.Context, group int) error) (half, all time.Duration, err error) {
	began := time.Now()
	took := make([]time.Duration, groups)
	errs := make([]error, groups)
	var wg sync.WaitGroup
	for i := range groups {
		wg.Go(func() {
			for {
				try, cancel := context.WithTimeout(ctx, tryFor)
				err := f(try, i)
				cancel()
				if err == nil {
					took[i] = time.Since(began)
					return
				}
				if perr := pause(ctx, tryAgain); perr != nil {
					errs[i] = errors.Join(perr, err)
					return
				}
			}
		})
	}
	wg.Wait()
	for _, err := range errs {
		if err != nil {
			return 0, 0, err
		}
	}
	slices.Sort(took)
	return took[groups/2], took[groups-1], nil
}

func printGroups(w io.Writer, rows []groupsRow) error {
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', tabwriter.AlignRight)
	fmt.Fprintln(t, "groups\tengine\tstart s\theap/group\tRSS/group\theap MiB\tRSS MiB\tCPU %\tloopback B/s\tfailover 50 %, all s\tstop s\trestart: one, all s\t")
	for _, r := range rows {
		num := func(v float64, format string) string {
			if v == 0 {
				return "-"
			}
			return fmt.Sprintf(format, v)
		}
		fmt.Fprintf(t, "%d\t%s\t%s\t%s\t%s\t%s\t%s\t%s\t%s\t%s, %s\t%s\t%s, %s\t\n", r.Groups, r.Engine, num(r.StartSeconds, "%.2f"), num(r.HeapPerGroup, "%.0f"), num(r.RSSPerGroup, "%.0f"),
			num(float64(r.Heap)/(1<<20), "%.0f"), num(float64(r.RSS)/(1<<20), "%.0f"), num(r.CPUPercent, "%.1f"), num(r.Loopback, "%.0f"),
			num(r.FailoverP50, "%.2f"), num(r.FailoverSeconds, "%.2f"), num(r.CloseSeconds, "%.2f"), num(r.RestartSeconds, "%.2f"), num(r.RestartAllSeconds, "%.2f"))
	}
	if err := t.Flush(); err != nil {
		return err
	}
	for _, r := range rows {
		if r.Failed != "" {
			fmt.Fprintf(w, "%s, %d groups: %s\n", r.Engine, r.Groups, r.Failed)
		}
	}
	return nil
}

// manyFlotilla is Flotilla with its defaults.
type manyFlotilla struct {
	o    localcluster.Options
	keys [][]byte
	c    *localcluster.Cluster
}

func newManyFlotilla(dir string, groups int) (many, error) {
	e := &manyFlotilla{o: localcluster.Options{
		Nodes: dbNodes, Dir: dir, SplitAt: workload.Splits(groups), Logger: slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: slog.LevelError})),
	}}
	e.keys = append([][]byte{{0}}, e.o.SplitAt...)
	return e, nil
}

func (e *manyFlotilla) start(ctx context.Context) (err error) {
	e.c, err = localcluster.Start(ctx, e.o)
	return err
}

func (e *manyFlotilla) put(ctx context.Context, group int) error {
	_, err := e.c.Node(0).Put(ctx, e.keys[group], []byte("one"))
	return err
}

func (e *manyFlotilla) get(ctx context.Context, group int) error {
	v, err := e.c.Node(0).Get(ctx, e.keys[group])
	if err == nil && string(v.Bytes) != "one" {
		return fmt.Errorf("group %d holds %q", group, v.Bytes)
	}
	return err
}

func (e *manyFlotilla) kill() error { return e.c.Kill(dbNodes - 1) }
func (e *manyFlotilla) stop() error { return e.c.Close() }

// manyDragonboat is Dragonboat with its machine in memory. Its nodes have no call to be
// killed by: they are closed, which tells nobody either.
type manyDragonboat struct {
	*dragonboatEngine
	groups int
	no     []*client.Session
}

func newManyDragonboat(dir string, groups int, quiesce bool) (many, error) {
	e, err := newDragonboat(setup{dir: dir, shards: groups, quiesce: quiesce}, inMemory)
	return &manyDragonboat{dragonboatEngine: e, groups: groups}, err
}

func (e *manyDragonboat) start(context.Context) error {
	errs := make([]error, dbNodes)
	var wg sync.WaitGroup
	for i := range dbNodes {
		wg.Go(func() { errs[i] = e.dragonboatEngine.start(i) })
	}
	wg.Wait()
	if err := errors.Join(errs...); err != nil {
		return err
	}
	e.no = e.no[:0]
	for g := range e.groups {
		e.no = append(e.no, e.host(0).GetNoOPSession(uint64(g+1)))
	}
	return nil
}

func (e *manyDragonboat) put(ctx context.Context, group int) error {
	_, err := e.host(0).SyncPropose(ctx, e.no[group], appendRecord(nil, []byte("k"), []byte("one")))
	return err
}

func (e *manyDragonboat) get(ctx context.Context, group int) error {
	v, err := e.host(0).SyncRead(ctx, uint64(group+1), []byte("k"))
	if b, _ := v.([]byte); err == nil && string(b) != "one" {
		return fmt.Errorf("group %d holds %q", group, b)
	}
	return err
}

func (e *manyDragonboat) kill() error { return e.Stop(dbNodes - 1) }

func (e *manyDragonboat) stop() error {
	var errs []error
	for i := range dbNodes {
		if e.host(i) != nil {
			errs = append(errs, e.Stop(i))
		}
	}
	return errors.Join(errs...)
}
