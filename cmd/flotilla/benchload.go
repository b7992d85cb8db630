package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"runtime"
	"runtime/metrics"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/spf13/cobra"

	"github.com/flotillakv/flotilla"
	"github.com/flotillakv/flotilla/bench"
	"github.com/flotillakv/flotilla/bench/embedded"
	"github.com/flotillakv/flotilla/bench/workload"
)

// loadFlags are what bench overload and bench soak can be told beyond benchFlags.
type loadFlags struct {
	benchFlags
	times    []float64
	memory   size
	workload string
	spin     int
	every    time.Duration
}

// newBenchOverload offers a cluster more than it can do.
func newBenchOverload(a *app) *cobra.Command {
	b := loadFlags{benchFlags: benchFlags{value: 128}, memory: 2 << 30}
	value, memory := settingFlag{b.value.String(), "size"}, settingFlag{b.memory.String(), "size"}
	cmd := &cobra.Command{
		Use:   "overload",
		Short: "Offer a cluster more writes than it can do, and see what it does",
		Long: `overload measures the peak of a closed loop of writes on a cluster of three nodes
inside this process, and then lets writes arrive at multiples of it, whatever
becomes of those before. Peak and overload take turns, and each overload is judged
by the peaks on both sides of it, since the speed of a machine drifts.

The table says what was served, what was refused with a typed error and what that
asked the caller to wait, and how much memory it took. The exit code is 1 if less
than 90 % of the peak was served, if the process grew beyond --memory, if a write
failed in any other way, or if a promise of support between nodes ended or a
leader was lost although nothing failed.

Clients, nodes and disk share this machine: what it costs to ask, and to be
refused, is taken from what can be served.`,
		Example: lines("  flotilla bench overload", "  flotilla bench overload --times 2,10,50 --duration 1m -o json"),
		Args:    arguments(),
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := b.value.UnmarshalText([]byte(value.text)); err != nil {
				return usageError("--value: %v", err)
			}
			if err := b.memory.UnmarshalText([]byte(memory.text)); err != nil {
				return usageError("--memory: %v", err)
			}
			b.rate = rate{share: 1} // an open loop, so that --outstanding counts
			if err := b.check(cmd.Flags()); err != nil {
				return err
			}
			b.rate = rate{} // the first load is a closed loop
			return a.overload(cmd.Context(), &b)
		},
	}
	f := cmd.Flags()
	f.IntVar(&b.clients, "clients", 1024, "number of clients of the closed loop")
	f.IntVar(&b.outstanding, "outstanding", 65536, "most writes of an open loop in flight; arrivals beyond are shed and counted")
	f.IntVar(&b.pipelines, "pipelines", 1, "goroutines that start the writes without waiting for each; 0: one goroutine per write in flight")
	f.Var(&memory, "memory", "bound of the resident memory of the process, three nodes and all clients")
	f.Float64SliceVar(&b.times, "times", []float64{2, 10}, "multiples of the peak to offer")
	b.common(cmd, &value, 15*time.Second)
	return cmd
}

// newBenchSoak keeps a cluster busy and counts what must not happen.
func newBenchSoak(a *app) *cobra.Command {
	b := loadFlags{benchFlags: benchFlags{value: 128}}
	value := settingFlag{b.value.String(), "size"}
	cmd := &cobra.Command{
		Use:   "soak",
		Short: "Keep a cluster busy for a long time, and count leaders lost for no reason",
		Long: `soak keeps all processors busy with clients in a closed loop on a cluster of three
nodes inside this process. Nothing is made to fail, so every promise of support
between nodes that ends, and every leader that is lost, is a false alarm: both
counts have to be zero, or the exit code is 1.`,
		Example: lines("  flotilla bench soak --duration 10m", "  flotilla bench soak --heartbeat 150ms --support 750ms --spin 4"),
		Args:    arguments(),
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := b.value.UnmarshalText([]byte(value.text)); err != nil {
				return usageError("--value: %v", err)
			}
			if b.timing.Support == 0 {
				b.timing.Support = 5 * b.timing.Heartbeat
			}
			if err := b.check(cmd.Flags()); err != nil {
				return err
			}
			return a.soak(cmd.Context(), &b)
		},
	}
	f := cmd.Flags()
	f.StringVar(&b.workload, "workload", "A", "what the clients do: A to F, W1 to W3")
	f.IntVar(&b.clients, "clients", 1024, "number of clients")
	f.IntVar(&b.spin, "spin", 0, "goroutines that compute without a pause, besides")
	f.DurationVar(&b.every, "every", 10*time.Second, "time between two lines")
	f.DurationVar(&b.timing.Heartbeat, "heartbeat", 500*time.Millisecond, "interval of node liveness")
	f.DurationVar(&b.timing.Support, "support", 0, "how long a promise of support lasts (default five heartbeats)")
	b.common(cmd, &value, 10*time.Minute)
	b.outstanding = 1
	return cmd
}

// common defines the flags both have.
func (b *loadFlags) common(cmd *cobra.Command, value *settingFlag, duration time.Duration) {
	f := cmd.Flags()
	f.IntVar(&b.shards, "shards", 48, "shards of the cluster")
	f.Var(value, "value", "size of a value, such as 128 or 1KiB")
	f.Uint64Var(&b.keys, "keys", 100_000, "records loaded before the run")
	f.DurationVar(&b.duration, "duration", duration, "measured time, of each load")
	f.DurationVar(&b.warm, "warmup", 3*time.Second, "time worked before that, not measured")
	f.StringVar(&b.dir, "dir", "", "directory of the cluster's data, removed from it at the end; empty: a temporary one")
	f.Uint64Var(&b.seed, "seed", 1, "seed of the generator")
	b.conns = 1
}

// loadRow is what one load did to the cluster.
type loadRow struct {
	Load      string  `json:"load"`
	Offered   float64 `json:"offered_per_s"` // what arrived, which is less than planned if the machine has no time for it
	Served    float64 `json:"served_per_s"`
	OfPeak    float64 `json:"of_peak"`       // of the mean of the peaks before and after
	Refused   float64 `json:"refused_per_s"` // with a typed error that says when to come back
	RetryMin  float64 `json:"retry_after_min_ms"`
	RetryMean float64 `json:"retry_after_mean_ms"`
	RetryMax  float64 `json:"retry_after_max_ms"`
	Failed    int64   `json:"failed"`     // in any other way
	Shed      float64 `json:"shed_per_s"` // by the bench, at its bound
	P50Ms     float64 `json:"p50_ms"`     // of what was served, from when it was sent
	P99Ms     float64 `json:"p99_ms"`
	RSSMiB    float64 `json:"rss_mib"`   // largest of the samples taken each second
	HeapMiB   float64 `json:"heap_mib"`  // the same, of the heap in use
	StackMiB  float64 `json:"stack_mib"` // the same, of the stacks; mostly the clients'
	CPU       float64 `json:"cpu_cores"`
	Withdrawn uint64  `json:"withdrawn"`
	Lost      uint64  `json:"leaders_lost"`
	LateBeats uint64  `json:"late_beats"`
	Resets    uint64  `json:"resets"`
	Stalls    uint64  `json:"stalls"`
}

// loadStore is a benchStore whose cluster can be looked at.
func (a *app) loadStore(ctx context.Context, b *loadFlags) (*benchStore, *embedded.Leaders, error) {
	store, err := a.embedded(ctx, &b.benchFlags)
	if err != nil {
		return nil, nil, err
	}
	return store, store.targets[0].(*embedded.Leaders), nil
}

func (a *app) overload(ctx context.Context, b *loadFlags) error {
	for _, x := range b.times {
		if x <= 0 || x > 1000 {
			return usageError("--times %g: must be above 0 and at most 1000", x)
		}
	}
	store, cluster, err := a.loadStore(ctx, b)
	if err != nil {
		return err
	}
	defer store.close()
	spec, err := workload.Parse("W1")
	if err != nil {
		return err
	}
	live, set, err := a.prepare(ctx, spec, b, store)
	if err != nil {
		return err
	}
	var rows []loadRow
	run := func(name string, rate float64) error {
		fmt.Fprintf(live, "\n%s\n", name)
		c := b.config(a, set, store, live)
		if rate > 0 {
			c.Rate, c.Clients, c.Outstanding = rate, max(b.clients, b.outstanding), b.outstanding
		}
		row, err := loadOnce(ctx, name, c, cluster)
		rows = append(rows, row)
		return err
	}
	if err := run("peak", 0); err != nil {
		return err
	}
	for _, x := range b.times {
		peak := rows[len(rows)-1].Served
		if err := run(strconv.FormatFloat(x, 'g', -1, 64)+"x", x*peak); err != nil {
			return err
		}
		if err := run("peak", 0); err != nil {
			return err
		}
	}
	for i := range rows {
		rows[i].OfPeak = 1
		if i%2 == 1 {
			rows[i].OfPeak = 2 * rows[i].Served / max(rows[i-1].Served+rows[i+1].Served, 1)
		}
	}
	return a.printLoads(rows, int64(b.memory))
}

// leastOfPeak is the share of the peak that has to be served under any overload.
const leastOfPeak = 0.9

// config is what both loads have in common.
func (b *loadFlags) config(a *app, set *workload.Set, store *benchStore, live io.Writer) bench.Config {
	return bench.Config{
		Set: set, Targets: store.targets, Clients: b.clients, Pipelines: b.pipelines, Warmup: b.warm, Duration: b.duration, Timeout: a.timeout,
		DataDir: store.dir, Classify: errorKind, OnSecond: (&bench.Lines{W: live}).Second,
	}
}

func (a *app) prepare(ctx context.Context, spec workload.Spec, b *loadFlags, store *benchStore) (io.Writer, *workload.Set, error) {
	set, err := workload.New(workload.Config{Spec: spec, Dist: spec.Dist, Records: b.keys, ValueBytes: int(b.value), Seed: b.seed})
	if err != nil {
		return nil, nil, usageError("%v", err)
	}
	machine, err := bench.Inspect(store.dir)
	if err != nil {
		return nil, nil, err
	}
	live := a.out
	if a.json() {
		live = a.errOut
	}
	if a.quiet {
		live = io.Discard
	}
	a.benchHeader(live, spec, set, &b.benchFlags, store, &machine)
	return live, set, a.load(ctx, set, store, live)
}

// loadOnce carries out one load and counts what it did to the cluster.
func loadOnce(ctx context.Context, name string, c bench.Config, cluster *embedded.Leaders) (loadRow, error) {
	before, err := cluster.Health(ctx)
	if err != nil {
		return loadRow{}, err
	}
	var asked retries
	var heap, stack float64
	second := c.OnSecond
	c.Classify, c.OnSecond = asked.kind, func(s bench.Second) {
		h, st := memoryInUse()
		heap, stack = max(heap, h), max(stack, st)
		second(s)
	}
	res, err := bench.Run(ctx, c)
	if err != nil {
		return loadRow{}, err
	}
	after, err := cluster.Health(ctx)
	if err != nil {
		return loadRow{}, err
	}
	did := after.Since(before)
	refused := res.ErrorKinds["overloaded"]
	row := loadRow{
		Load: name, Offered: res.OpsPerSec + float64(res.Errors+res.Shed)/res.Seconds, Served: res.OpsPerSec, Refused: float64(refused) / res.Seconds, Failed: res.Errors - refused,
		RetryMin: asked.min.Seconds() * 1e3, RetryMean: asked.mean().Seconds() * 1e3, RetryMax: asked.max.Seconds() * 1e3,
		Shed: float64(res.Shed) / res.Seconds, P50Ms: res.ServiceMs.P50, P99Ms: res.ServiceMs.P99, RSSMiB: res.RSSMiB, HeapMiB: heap, StackMiB: stack,
		CPU: res.CPUPer1M * res.OpsPerSec / 1e6, Withdrawn: did.Withdrawn, Lost: did.Terms, LateBeats: did.LateBeats, Resets: did.Resets, Stalls: did.Stalls,
	}
	return row, nil
}

// retries sums up what refused callers were told to wait.
type retries struct {
	mu            sync.Mutex
	n             int64
	min, max, sum time.Duration
}

// kind is errorKind, and notes the time an overloaded node asks for.
func (r *retries) kind(err error) string {
	var busy *flotilla.OverloadedError
	if errors.As(err, &busy) {
		r.mu.Lock()
		if r.n++; r.n == 1 || busy.RetryAfter < r.min {
			r.min = busy.RetryAfter
		}
		r.max = max(r.max, busy.RetryAfter)
		r.sum += busy.RetryAfter
		r.mu.Unlock()
	}
	return errorKind(err)
}

func (r *retries) mean() time.Duration { return r.sum / time.Duration(max(r.n, 1)) }

// memoryInUse returns what the heap and the stacks hold, in MiB.
func memoryInUse() (heap, stack float64) {
	s := []metrics.Sample{{Name: "/memory/classes/heap/objects:bytes"}, {Name: "/memory/classes/heap/stacks:bytes"}}
	metrics.Read(s)
	return float64(s[0].Value.Uint64()) / (1 << 20), float64(s[1].Value.Uint64()) / (1 << 20)
}

func (a *app) printLoads(rows []loadRow, memory int64) error {
	bad := uint64(0)
	var faults []string
	t := newTable("", "LOAD", "OFFERED/s", "SERVED/s", "OF PEAK", "REFUSED/s", "RETRY AFTER(ms)", "SHED/s", "FAILED", "P50(ms)", "P99(ms)",
		"RSS(MiB)", "HEAP", "STACKS", "CPU", "WITHDRAWN", "LEADERS LOST", "LATE BEATS", "RESETS")
	for _, r := range rows {
		bad += r.Withdrawn + r.Lost
		if r.OfPeak < leastOfPeak {
			faults = append(faults, fmt.Sprintf("%.0f%% of the peak were served at %s", 100*r.OfPeak, r.Load))
		}
		if r.RSSMiB > float64(memory)/(1<<20) {
			faults = append(faults, fmt.Sprintf("%.0f MiB of memory were taken at %s, bounded by %s", r.RSSMiB, r.Load, size(memory)))
		}
		if r.Failed > 0 {
			faults = append(faults, fmt.Sprintf("%d writes failed at %s, other than by being refused", r.Failed, r.Load))
		}
		t.add(r.Load, countText(int64(r.Offered)), countText(int64(r.Served)), fmt.Sprintf("%.0f%%", 100*r.OfPeak), countText(int64(r.Refused)),
			fmt.Sprintf("%.0f..%.0f..%.0f", r.RetryMin, r.RetryMean, r.RetryMax),
			countText(int64(r.Shed)), countText(r.Failed), fmt.Sprintf("%.1f", r.P50Ms), fmt.Sprintf("%.1f", r.P99Ms), fmt.Sprintf("%.0f", r.RSSMiB),
			fmt.Sprintf("%.0f", r.HeapMiB), fmt.Sprintf("%.0f", r.StackMiB),
			fmt.Sprintf("%.2f", r.CPU), fmt.Sprint(r.Withdrawn), fmt.Sprint(r.Lost), fmt.Sprint(r.LateBeats), fmt.Sprint(r.Resets))
	}
	var err error
	if a.json() {
		err = printList(a, rows)
	} else {
		_, err = fmt.Fprintf(a.out, "\n%s", t)
	}
	if err != nil {
		return err
	}
	if err := falseAlarms(bad); err != nil || len(faults) == 0 {
		return err
	}
	return failure(exitFailed, errors.New("overload"), "", "%s", strings.Join(faults, "; "))
}

// falseAlarms is the failure of a run that lost something although nothing failed.
func falseAlarms(n uint64) error {
	if n == 0 {
		return nil
	}
	return failure(exitFailed, errors.New("false alarms"), "", "%d promises of support or leaders were lost although nothing failed", n)
}

// soakLine is what one interval of a soak did.
type soakLine struct {
	Seconds   float64 `json:"seconds"` // since the start
	OpsPerSec float64 `json:"ops_per_s"`
	P99Ms     float64 `json:"p99_ms"` // the worst second's
	MaxMs     float64 `json:"max_ms"`
	CPU       float64 `json:"cpu_cores"`
	Errors    int64   `json:"errors"` // since the start
	Withdrawn uint64  `json:"withdrawn"`
	Lost      uint64  `json:"leaders_lost"`
	LateBeats uint64  `json:"late_beats"`
	Resets    uint64  `json:"resets"`
}

func (a *app) soak(ctx context.Context, b *loadFlags) error {
	spec, err := workload.Parse(b.workload)
	if err != nil {
		return usageError("%v", err)
	}
	if b.spin < 0 || b.spin > 1024 || b.every < time.Second {
		return usageError("--spin %d, --every %s: must lie between 0 and 1024, and be at least 1s", b.spin, b.every)
	}
	store, cluster, err := a.loadStore(ctx, b)
	if err != nil {
		return err
	}
	defer store.close()
	live, set, err := a.prepare(ctx, spec, b, store)
	if err != nil {
		return err
	}
	before, err := cluster.Health(ctx)
	if err != nil {
		return err
	}
	defer spin(b.spin)()

	c := b.config(a, set, store, live)
	var now soakLine
	var seconds float64
	told := time.Duration(0)
	c.OnSecond = func(s bench.Second) {
		seconds++
		now.Seconds, now.Errors = s.Elapsed.Seconds(), s.Errors
		now.P99Ms, now.MaxMs = max(now.P99Ms, s.P99), max(now.MaxMs, s.Max)
		now.OpsPerSec += s.OpsPerSec
		now.CPU += s.CPUPercent / 100
		if s.Elapsed-told < b.every {
			return
		}
		now.OpsPerSec /= seconds
		now.CPU /= seconds
		if h, err := cluster.Health(ctx); err == nil {
			did := h.Since(before)
			now.Withdrawn, now.Lost, now.LateBeats, now.Resets = did.Withdrawn, did.Terms, did.LateBeats, did.Resets
		}
		fmt.Fprintf(live, "%8.0fs %9s ops/s  p99 %7.1f ms  max %7.1f ms  cpu %.2f  errors %d  withdrawn %d  leaders lost %d  late beats %d  resets %d\n",
			now.Seconds, countText(int64(now.OpsPerSec)), now.P99Ms, now.MaxMs, now.CPU, now.Errors, now.Withdrawn, now.Lost, now.LateBeats, now.Resets)
		told, seconds, now = s.Elapsed, 0, soakLine{}
	}
	res, err := bench.Run(ctx, c)
	if err != nil {
		return err
	}
	after, err := cluster.Health(ctx)
	if err != nil {
		return err
	}
	did := after.Since(before)
	sum := soakLine{
		Seconds: res.Seconds, OpsPerSec: res.OpsPerSec, P99Ms: res.ServiceMs.P99, MaxMs: res.ServiceMs.Max, CPU: res.CPUPer1M * res.OpsPerSec / 1e6,
		Errors: res.Errors, Withdrawn: did.Withdrawn, Lost: did.Terms, LateBeats: did.LateBeats, Resets: did.Resets,
	}
	if a.json() {
		err = a.printJSON(sum)
	} else {
		_, err = fmt.Fprintf(a.out, "\n%s of load, %s ops/s, %.2f of %d processors busy, %d errors: %d promises withdrawn, %d leaders lost, %d heartbeats late\n",
			time.Duration(sum.Seconds*float64(time.Second)).Round(time.Second), countText(int64(sum.OpsPerSec)), sum.CPU, runtime.NumCPU(), sum.Errors, sum.Withdrawn, sum.Lost, sum.LateBeats)
	}
	if err != nil {
		return err
	}
	return falseAlarms(did.Withdrawn + did.Terms)
}

// spin keeps n goroutines computing until the returned function is called.
func spin(n int) (stop func()) {
	var wg sync.WaitGroup
	over := make(chan struct{})
	for range n {
		wg.Go(func() {
			x := uint64(1)
			for i := 0; ; i++ {
				x = x*6364136223846793005 + 1
				if i%(1<<20) == 0 {
					select {
					case <-over:
						return
					default:
					}
				}
			}
		})
	}
	return func() { close(over); wg.Wait() }
}
