package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math"
	"os"
	"strconv"
	"strings"
	"sync/atomic"
	"time"

	"github.com/spf13/cobra"

	"github.com/flotillakv/flotilla"
	"github.com/flotillakv/flotilla/bench"
	"github.com/flotillakv/flotilla/bench/embedded"
	"github.com/flotillakv/flotilla/bench/workload"
	"github.com/flotillakv/flotilla/internal/localcluster"
)

const (
	// benchNodes is the number of nodes, and of replicas of each shard, of an
	// embedded cluster.
	benchNodes = 3
	// benchConns is the number of connections to a remote cluster.
	benchConns = 4
	// benchSample is how many records are read back after a run.
	benchSample = 1000
)

// benchFlags are what bench run can be told.
type benchFlags struct {
	clients, shards int
	pipelines       int
	conns           int
	pids            []int
	rate            rate
	outstanding     int
	value           size
	keys            uint64
	duration, warm  time.Duration
	dist, dir       string
	seed            uint64
	timing          flotilla.Timing // of the embedded cluster
}

func newBench(a *app) *cobra.Command {
	b := benchFlags{value: 128}
	value := settingFlag{b.value.String(), "size"}
	cmd := &cobra.Command{
		Use:       "run WORKLOAD",
		Short:     "Load records, run a YCSB workload, and print what it took",
		ValidArgs: workload.Names(),
		Long: `run loads records, lets clients work on them, and measures throughput, latency,
CPU time, memory and bytes written to disk. Workloads are those of YCSB: A (50%
read, 50% update), B (95/5), C (100% read), D (95% read of the latest, 5% insert),
E (95% scan of 1 to 100, 5% insert), F (50% read, 50% read-modify-write). W1 is
100% update, W2 100% read, W3 90% read and 10% update, all uniform.

With --pipelines the clients are not goroutines that wait: that many goroutines keep
--clients operations in flight, as a program does that uses Pipeline.

Without --addr it runs on a cluster of three nodes inside this process, with real
sockets, real files and fsync; calls are made at the node that leads the key's
shard, and CPU and memory are those of all three nodes and of the clients. Without
--rate the loop is closed: each client sends its next operation when the last one
was answered. With --rate the loop is open: operations arrive evenly spaced,
whatever became of those before, and latency counts from the planned arrival, so
that a stall shows in full. A rate in percent is one of the peak, which a closed
loop of the same clients measures first, in the same call.

With -o json standard output gets one object on one line, and nothing else.`,
		Example: lines(
			"  flotilla bench run A",
			"  flotilla bench run W1 --clients 1024 --rate 70%",
			"  flotilla bench run B --rate 20000 --shards 48 --value 1KiB --duration 1m -o json"),
		Args: arguments("WORKLOAD"),
		RunE: func(cmd *cobra.Command, args []string) error {
			spec, err := workload.Parse(args[0])
			if err != nil {
				return usageError("%v", err)
			}
			if err := b.value.UnmarshalText([]byte(value.text)); err != nil {
				return usageError("--value: %v", err)
			}
			if err := b.check(cmd.Flags()); err != nil {
				return err
			}
			return a.bench(cmd.Context(), spec, &b, cmd.Flags().Changed("addr"))
		},
	}
	f := cmd.Flags()
	f.IntVar(&b.clients, "clients", 64, "number of clients; in an open loop the most operations in flight (default then 1024)")
	f.Var(&b.rate, "rate", "operations that arrive per second (open loop), such as 20000, or 70% of the closed loop's peak; 0: closed loop")
	f.IntVar(&b.outstanding, "outstanding", 4096, "most operations of an open loop that have arrived and not ended; arrivals beyond are shed and counted")
	f.IntVar(&b.pipelines, "pipelines", 0, "goroutines that keep the operations in flight without waiting for each; 0: one goroutine per client")
	f.IntVar(&b.conns, "conns", benchConns, "connections to each node of a cluster given by --addr")
	f.IntSliceVar(&b.pids, "pids", nil, "processes of the nodes given by --addr, if they run on this machine: their CPU and memory count too")
	f.IntVar(&b.shards, "shards", 48, "shards of the embedded cluster")
	f.Var(&value, "value", "size of a value, such as 128 or 1KiB")
	f.Uint64Var(&b.keys, "keys", 100_000, "records loaded before the run")
	f.DurationVar(&b.duration, "duration", 30*time.Second, "measured time")
	f.DurationVar(&b.warm, "warmup", 3*time.Second, "time worked before that, not measured")
	f.StringVar(&b.dist, "distribution", "", "zipfian, uniform or latest; empty: the workload's own")
	f.StringVar(&b.dir, "dir", "", "directory for the embedded cluster's data, which is removed at the end; with --addr: one on the disk of the nodes, if it is of this machine; empty: a temporary one")
	f.Uint64Var(&b.seed, "seed", 1, "seed of the generator")
	return clientFlags(a, group(&cobra.Command{Use: "bench", Short: "Measure"}, cmd, newBenchRemote(a), newBenchOverload(a), newBenchSoak(a), newBenchMemory(a), newBenchLogBound(a), newBenchLogBoundNode(a), newBenchIdle(a), newBenchGroups(a), newBenchCompare(a)))
}

// newBenchCompare explains the comparison, which is a module of its own: the
// peers must not become dependencies of this binary.
func newBenchCompare(a *app) *cobra.Command {
	return &cobra.Command{
		Use:   "compare",
		Short: "Say how to compare with other engines on this machine",
		Args:  arguments(),
		RunE: func(*cobra.Command, []string) error {
			_, err := fmt.Fprint(a.out, compareHelp)
			return err
		},
	}
}

const compareHelp = `The comparison with Dragonboat and etcd is not part of this binary, so that it does
not carry them. It runs from the source tree, where it is a module of its own:

  cd bench/compare
  go run .                                          # writes, 48 shards, 1024 clients, five pairs
  go run . --workload W2 --engines flotilla,etcd    # linearizable reads, against etcd
  go run . table --json figures.json                # every point of docs/performance.md

Each engine gets three replicas in one process over loopback, real files, fsync on,
and the same clients; engines take turns, and ratios are taken pair by pair.
The limits of the machine itself, for comparison: go run ./bench/floors
`

// rate is the rate of an open loop: operations per second, or a share of the peak.
type rate struct {
	perSec float64
	share  float64 // of the peak; zero: perSec counts
}

// Set implements pflag.Value.
func (r *rate) Set(text string) error {
	number, percent := strings.CutSuffix(text, "%")
	x, err := strconv.ParseFloat(number, 64)
	if err != nil || math.IsNaN(x) || math.IsInf(x, 0) {
		return errors.New("must be a number of operations per second, or a percentage of the peak such as 70%")
	}
	if *r = (rate{perSec: x}); percent {
		*r = rate{share: x / 100}
	}
	return nil
}

// Type implements pflag.Value.
func (r *rate) Type() string { return "rate" }

func (r *rate) String() string {
	if r.share != 0 {
		return strconv.FormatFloat(100*r.share, 'g', -1, 64) + "%"
	}
	return strconv.FormatFloat(r.perSec, 'g', -1, 64)
}

func (r *rate) open() bool { return r.perSec > 0 || r.share > 0 }

func (b *benchFlags) check(given interface{ Changed(string) bool }) error {
	if b.rate.open() && !given.Changed("clients") {
		b.clients = 1024
	}
	switch {
	case b.clients < 1 || b.clients > 1<<20:
		return usageError("--clients %d: must lie between 1 and %d", b.clients, 1<<20)
	case b.pipelines < 0 || b.pipelines > b.clients:
		return usageError("--pipelines %d: must lie between 0 and --clients", b.pipelines)
	case b.conns < 1 || b.conns > 1024:
		return usageError("--conns %d: must lie between 1 and 1024", b.conns)
	case b.rate.perSec < 0 || b.rate.share < 0:
		return usageError("--rate %s: must not be negative", &b.rate)
	case given.Changed("outstanding") && !b.rate.open():
		return usageError("--outstanding is for an open loop: give it a --rate")
	case b.outstanding < 1 || b.outstanding > 1<<24:
		return usageError("--outstanding %d: must lie between 1 and %d", b.outstanding, 1<<24)
	case b.shards < 1 || b.shards > flotilla.MaxShards:
		return usageError("--shards %d: must lie between 1 and %d", b.shards, flotilla.MaxShards)
	case b.keys < 1:
		return usageError("--keys 0: at least one record is needed")
	case b.value < 0 || b.value > workload.MaxValueBytes:
		return usageError("--value %s: must lie between 0 and %s", b.value, size(workload.MaxValueBytes))
	case b.duration <= 0 || b.warm < 0:
		return usageError("--duration %s, --warmup %s: must be more than 0, and at least 0", b.duration, b.warm)
	}
	return nil
}

// benchStore is what a bench runs on.
type benchStore struct {
	targets []bench.Target
	dir     string // of the data, if it is on this machine
	shards  int
	scope   string // what the CPU time covers
	close   func()
}

func (a *app) bench(ctx context.Context, spec workload.Spec, b *benchFlags, remote bool) error {
	dist := spec.Dist
	if b.dist != "" {
		d, err := workload.ParseDist(b.dist)
		if err != nil {
			return usageError("--distribution: %v", err)
		}
		dist = d
	}
	set, err := workload.New(workload.Config{Spec: spec, Dist: dist, Records: b.keys, ValueBytes: int(b.value), Seed: b.seed})
	if err != nil {
		return usageError("%v", err)
	}
	open := a.embedded
	if remote {
		open = a.remote
	}
	store, err := open(ctx, b)
	if err != nil {
		return err
	}
	defer store.close()
	machine, err := bench.Inspect(store.dir)
	if err != nil {
		return err
	}

	live := a.out
	if a.json() {
		live = a.errOut
	}
	if a.quiet {
		live = io.Discard
	}
	a.benchHeader(live, spec, set, b, store, &machine)
	if err := a.load(ctx, set, store, live); err != nil {
		return err
	}
	config := bench.Config{
		Set: set, Targets: store.targets, Clients: b.clients, Pipelines: b.pipelines, Processes: b.pids, Warmup: b.warm, Duration: b.duration,
		Timeout: a.timeout, Verify: benchSample, DataDir: store.dir, Classify: errorKind, OnSecond: (&bench.Lines{W: live}).Second,
	}
	var peak float64
	if b.rate.share > 0 {
		res, err := bench.Run(ctx, config)
		if err != nil {
			return err
		}
		peak = res.OpsPerSec
		fmt.Fprintf(live, "\npeak     %s ops/s in a closed loop, p99 %.1f ms; now %s of it in an open one\n\n", countText(int64(peak)), res.ServiceMs.P99, &b.rate)
		config.OnSecond = (&bench.Lines{W: live}).Second
	}
	config.Rate, config.Outstanding = b.rate.perSec+b.rate.share*peak, b.outstanding
	if b.pipelines > 0 && config.Rate > 0 {
		config.Clients = max(b.clients, b.outstanding)
	}
	res, err := bench.Run(ctx, config)
	if err != nil {
		return err
	}
	res.PeakPerSec = peak
	if err := bench.Sample(ctx, set, store.targets, benchSample); err != nil {
		return failure(exitFailed, err, "", "the records do not read back as written: %v", err)
	}
	res.Engine, res.Workload, res.Shards, res.Replicas = "flotilla", spec.Name, store.shards, benchNodes
	res.CPUScope = store.scope
	res.Fsync, res.FsyncP50Ms, res.FsyncP99Ms = machine.Durable || remote, machine.FsyncP50Ms, machine.FsyncP99Ms
	res.Machine, res.Commit = machine.String(), machine.Commit
	if a.json() {
		return res.WriteJSON(a.out)
	}
	return res.WriteTable(a.out)
}

func (a *app) benchHeader(w io.Writer, spec workload.Spec, set *workload.Set, b *benchFlags, store *benchStore, m *bench.Machine) {
	loop := fmt.Sprintf("CLOSED LOOP %d clients", b.clients)
	switch {
	case b.rate.share > 0:
		loop = fmt.Sprintf("OPEN LOOP at %s of the peak of %d clients", &b.rate, b.clients)
	case b.rate.open():
		loop = fmt.Sprintf("OPEN LOOP %s/s", countText(int64(b.rate.perSec)))
	case b.pipelines > 0:
		loop = fmt.Sprintf("CLOSED LOOP %d operations in flight from %d goroutines", b.clients, b.pipelines)
	}
	fmt.Fprintf(w, "machine  %s\n", m)
	fmt.Fprintf(w, "load     YCSB %s (%s), %s, %s keys, values of %d bytes, %d shards, 3 replicas, fsync on, %s\n",
		spec.Name, spec.Note, set.Dist(), countText(int64(b.keys)), b.value, store.shards, loop)
	if store.dir != "" && !m.Durable {
		a.note("note: %s is in memory (%s), where fsync does nothing; --dir names a directory on a disk", store.dir, m.FileSystem)
	}
	if m.Busy() {
		a.note("note: the machine is busy (load average %.1f on %d cores); the numbers will be low", m.Load, m.Cores)
	}
}

func (a *app) load(ctx context.Context, set *workload.Set, store *benchStore, live io.Writer) error {
	start := time.Now()
	var done atomic.Uint64
	show := a.startProgress(func() (float64, string) {
		n := done.Load()
		return float64(n) / float64(set.Records()), "loading " + countText(int64(n)) + " keys"
	})
	err := bench.Load(ctx, set, store.targets, func(n uint64) { done.Store(n) })
	show.stop()
	if err != nil {
		return err
	}
	took := time.Since(start)
	fmt.Fprintf(live, "loaded   %s keys in %s, %s keys/s\n", countText(int64(set.Records())), secondsText(took), countText(int64(float64(set.Records())/took.Seconds())))
	return nil
}

// embedded starts a cluster in this process.
func (a *app) embedded(ctx context.Context, b *benchFlags) (*benchStore, error) {
	dir, err := os.MkdirTemp(b.dir, "flotilla-bench-")
	if err != nil {
		return nil, failure(exitUsage, err, "--dir names a directory that can be written", "cannot make a directory for the data: %v", err)
	}
	c, err := localcluster.Start(ctx, localcluster.Options{Nodes: benchNodes, Dir: dir, SplitAt: workload.Splits(b.shards), Timing: b.timing, Logger: a.logger("error", "auto")})
	if err != nil {
		os.RemoveAll(dir)
		return nil, err
	}
	s := &benchStore{dir: dir, shards: b.shards, scope: "three nodes and the clients"}
	target := embedded.NewLeaders(ctx, c.Nodes())
	s.targets = []bench.Target{target}
	s.close = func() {
		target.Close()
		c.Close()
		os.RemoveAll(dir)
	}
	return s, nil
}

// remote connects to a running cluster.
func (a *app) remote(ctx context.Context, b *benchFlags) (*benchStore, error) {
	s := &benchStore{scope: "the clients only", dir: b.dir}
	if len(b.pids) > 0 {
		s.scope = fmt.Sprintf("the clients and %d processes of nodes", len(b.pids))
	}
	var clients []client
	s.close = func() {
		for _, c := range clients {
			c.Close()
		}
	}
	for range min(b.conns, b.clients) {
		c, err := a.connect(ctx)
		if err != nil {
			s.close()
			return nil, err
		}
		clients = append(clients, c)
		s.targets = append(s.targets, embedded.Target{KV: c})
	}
	all, err := clients[0].Shards(ctx)
	if err != nil {
		s.close()
		return nil, fmt.Errorf("counting the shards of %s: %w", strings.Join(a.addrs, ","), err)
	}
	for _, sh := range all {
		if userShard(&sh) {
			s.shards++
		}
	}
	return s, nil
}

// userShard reports whether a shard holds records, and not the catalog.
func userShard(s *flotilla.ShardInfo) bool { return s.Keyspace != 0 }
