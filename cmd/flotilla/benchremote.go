package main

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/spf13/cobra"

	"github.com/flotillakv/flotilla/bench"
	"github.com/flotillakv/flotilla/bench/workload"
)

const (
	// nodeStart and nodeStop bound how long a process of a node may take.
	nodeStart = 60 * time.Second
	nodeStop  = 20 * time.Second
)

// The ways to reach the store that bench remote compares, in the order of a round.
const (
	wayEmbedded  = "embedded"
	wayRemote    = "remote"
	wayPipelined = "pipelined"
)

var ways = []string{wayEmbedded, wayRemote, wayPipelined}

// remoteFlags are what bench remote can be told.
type remoteFlags struct {
	rounds, clients, pipelines, conns, shards int
	value                                     string
	keys                                      uint64
	duration, warm                            time.Duration
	dir                                       string
}

func newBenchRemote(a *app) *cobra.Command {
	var b remoteFlags
	cmd := &cobra.Command{
		Use:       "remote [WORKLOAD]",
		Short:     "Compare clients of three processes with the embedded store",
		ValidArgs: workload.Names(),
		Long: `remote measures what it costs to be a client. In each round it runs the same load
three times, each time on a new cluster of three nodes with real files and fsync:

  embedded   three nodes and the clients in one process, calls at the shard's leader
  remote     three processes of this program, and one with the clients
  pipelined  the same, but --pipelines goroutines keep all operations in flight

and prints medians, and the ratios to the embedded figure, taken round by round. CPU
is that of all processes together. It stops each process that it started.`,
		Example: lines(
			"  flotilla bench remote",
			"  flotilla bench remote W2 --rounds 5 --clients 1024 --shards 48 -o json"),
		Args: cobra.MaximumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			spec, err := workload.Parse(append(args, "W1")[0])
			switch {
			case err != nil:
				return usageError("%v", err)
			case b.rounds < 1 || b.rounds > 100:
				return usageError("--rounds %d: must lie between 1 and 100", b.rounds)
			case spec.Share[workload.Scan]+spec.Share[workload.ReadModifyWrite] > 0:
				return usageError("workload %s cannot be pipelined: choose one of reads and writes only", spec.Name)
			}
			return a.benchRemote(cmd.Context(), spec, &b)
		},
	}
	f := cmd.Flags()
	f.IntVar(&b.rounds, "rounds", 3, "number of rounds")
	f.IntVar(&b.clients, "clients", 1024, "operations in flight")
	f.IntVar(&b.pipelines, "pipelines", 1, "goroutines that keep them in flight, when pipelined")
	f.IntVar(&b.conns, "conns", 1, "connections to each node")
	f.IntVar(&b.shards, "shards", 48, "number of shards")
	f.StringVar(&b.value, "value", "128", "size of a value, such as 128 or 1KiB")
	f.Uint64Var(&b.keys, "keys", 100_000, "records loaded before each run")
	f.DurationVar(&b.duration, "duration", 10*time.Second, "measured time of each run")
	f.DurationVar(&b.warm, "warmup", 3*time.Second, "time worked before that, not measured")
	f.StringVar(&b.dir, "dir", "", "directory for the data, which is removed at the end; empty: a temporary one")
	return cmd
}

// remoteResult is what bench remote prints.
type remoteResult struct {
	Workload  string    `json:"workload"`
	Rounds    int       `json:"rounds"`
	Embedded  wayResult `json:"embedded"`
	Remote    wayResult `json:"remote"`
	Pipelined wayResult `json:"pipelined"`
	Machine   string    `json:"machine"`
	Commit    string    `json:"commit"`
	Busy      bool      `json:"busy"` // other work ran on the machine when the first run began
}

// wayResult is what came of one way.
type wayResult struct {
	OpsPerSec span            `json:"ops_per_s"`
	Ratio     span            `json:"ratio_to_embedded"` // of operations per second, round by round
	P50Ms     span            `json:"p50_ms"`
	P99Ms     span            `json:"p99_ms"`
	CPUPerOp  span            `json:"cpu_us_per_op"` // of all processes
	Errors    int64           `json:"errors"`
	Runs      []*bench.Result `json:"runs"`
}

// span is a median with the extremes it was drawn from.
type span struct {
	Median float64 `json:"median"`
	Least  float64 `json:"least"`
	Most   float64 `json:"most"`
}

func spanOf(all []float64) span {
	slices.Sort(all)
	mid := all[len(all)/2]
	if len(all)%2 == 0 {
		mid = (mid + all[len(all)/2-1]) / 2
	}
	return span{mid, all[0], all[len(all)-1]}
}

func (s span) text(digits int) string {
	return fmt.Sprintf("%.*f [%.*f, %.*f]", digits, s.Median, digits, s.Least, digits, s.Most)
}

func (a *app) benchRemote(ctx context.Context, spec workload.Spec, b *remoteFlags) (err error) {
	program, err := os.Executable()
	if err != nil {
		return failure(exitFailed, err, "", "cannot find this program's own file: %v", err)
	}
	dir, err := os.MkdirTemp(b.dir, "flotilla-bench-")
	if err != nil {
		return failure(exitUsage, err, "--dir names a directory that can be written", "cannot make a directory for the data: %v", err)
	}
	defer os.RemoveAll(dir)
	machine, err := bench.Inspect(dir)
	if err != nil {
		return err
	}
	a.note("machine  %s", machine)
	if machine.Busy() {
		a.note("note: the machine is busy (load average %.1f on %d cores); the ratios will spread", machine.Load, machine.Cores)
	}
	r := &remoteRun{program: program, spec: spec, flags: b, dir: dir}
	runs := map[string][]*bench.Result{}
	for round := range b.rounds {
		for _, way := range ways {
			res, err := r.one(ctx, way)
			if err != nil {
				return failure(exitFailed, err, "", "round %d, %s: %v", round+1, way, err)
			}
			a.note("round %d  %-9s %9s ops/s  p50 %.2f ms  p99 %.2f ms  %.1f us CPU/op  %d errors", round+1, way,
				countText(int64(res.OpsPerSec)), res.ServiceMs.P50, res.ServiceMs.P99, res.CPUPer1M, res.Errors)
			runs[way] = append(runs[way], res)
		}
	}
	out := remoteResult{Workload: spec.Name, Rounds: b.rounds, Machine: machine.String(), Commit: machine.Commit, Busy: machine.Busy()}
	for way, to := range map[string]*wayResult{wayEmbedded: &out.Embedded, wayRemote: &out.Remote, wayPipelined: &out.Pipelined} {
		*to = summary(runs[way], runs[wayEmbedded])
	}
	if a.json() {
		return a.printJSON(out)
	}
	t := newTable("", "WAY", "OPS/S", "OF EMBEDDED", "P50 ms", "P99 ms", "CPU us/op", "ERRORS")
	for _, way := range ways {
		w := map[string]*wayResult{wayEmbedded: &out.Embedded, wayRemote: &out.Remote, wayPipelined: &out.Pipelined}[way]
		t.add(way, w.OpsPerSec.text(0), w.Ratio.text(2), w.P50Ms.text(2), w.P99Ms.text(2), w.CPUPerOp.text(1), strconv.FormatInt(w.Errors, 10))
	}
	_, err = fmt.Fprintf(a.out, "\n%s, %d operations in flight (pipelined: goroutines that keep them so: %d), values of %s, %d shards, 3 replicas, fsync on; medians [least, most] of %d rounds\n\n%s",
		spec.Name, b.clients, b.pipelines, b.value, b.shards, b.rounds, t)
	return err
}

func summary(runs, base []*bench.Result) wayResult {
	of := func(f func(i int) float64) span {
		var all []float64
		for i := range runs {
			all = append(all, f(i))
		}
		return spanOf(all)
	}
	w := wayResult{
		OpsPerSec: of(func(i int) float64 { return runs[i].OpsPerSec }),
		Ratio:     of(func(i int) float64 { return runs[i].OpsPerSec / max(base[i].OpsPerSec, 1) }),
		P50Ms:     of(func(i int) float64 { return runs[i].ServiceMs.P50 }),
		P99Ms:     of(func(i int) float64 { return runs[i].ServiceMs.P99 }),
		CPUPerOp:  of(func(i int) float64 { return runs[i].CPUPer1M }),
		Runs:      runs,
	}
	for _, r := range runs {
		w.Errors += r.Errors
	}
	return w
}

// remoteRun starts the processes of a comparison.
type remoteRun struct {
	program string
	spec    workload.Spec
	flags   *remoteFlags
	dir     string
	n       int      // runs so far
	serve   []string // further arguments of each node
	peers   []string // of the last cluster
}

// splitsFile holds the boundaries of the shards, beside the nodes' directories.
const splitsFile = "splits"

// one makes one run on a new cluster.
func (r *remoteRun) one(ctx context.Context, way string) (_ *bench.Result, err error) {
	r.n++
	dir := filepath.Join(r.dir, strconv.Itoa(r.n))
	if err := os.Mkdir(dir, 0o700); err != nil {
		return nil, err
	}
	defer os.RemoveAll(dir)
	b := r.flags
	args := []string{"bench", "run", r.spec.Name, "-o", "json", "--dir", dir, "--clients", strconv.Itoa(b.clients), "--shards", strconv.Itoa(b.shards),
		"--value", b.value, "--keys", strconv.FormatUint(b.keys, 10), "--duration", b.duration.String(), "--warmup", b.warm.String()}
	if way == wayPipelined {
		args = append(args, "--pipelines", strconv.Itoa(b.pipelines))
	}
	if way != wayEmbedded {
		nodes, err := r.cluster(ctx, dir)
		defer stopNodes(nodes)
		if err != nil {
			return nil, err
		}
		var addrs, pids []string
		for _, n := range nodes {
			addrs = append(addrs, n.addr)
			pids = append(pids, strconv.Itoa(n.cmd.Process.Pid))
		}
		args = append(args, "--addr", strings.Join(addrs, ","), "--conns", strconv.Itoa(b.conns), "--pids", strings.Join(pids, ","))
	}
	var out, notes bytes.Buffer
	cmd := r.command(ctx, args...)
	cmd.Stdout, cmd.Stderr = &out, &notes
	if err := cmd.Run(); err != nil {
		return nil, fmt.Errorf("%w: %s", err, lastLine(notes.String()))
	}
	res := new(bench.Result)
	if err := json.Unmarshal(out.Bytes(), res); err != nil {
		return nil, fmt.Errorf("reading the result of a run: %w", err)
	}
	if res.Ops == 0 {
		return nil, errors.New("no operation succeeded")
	}
	return res, nil
}

// command prepares a process of this program that no setting of the environment
// reaches, and that is told to stop when ctx ends.
func (r *remoteRun) command(ctx context.Context, args ...string) *exec.Cmd {
	cmd := exec.CommandContext(ctx, r.program, args...)
	for _, v := range os.Environ() {
		if !strings.HasPrefix(v, "FLOTILLA_") {
			cmd.Env = append(cmd.Env, v)
		}
	}
	cmd.Cancel = func() error { return cmd.Process.Signal(syscall.SIGTERM) }
	cmd.WaitDelay = nodeStop
	return cmd
}

// nodeProcess is a node that runs.
type nodeProcess struct {
	cmd  *exec.Cmd
	addr string // for clients
	stop context.CancelFunc
	log  bytes.Buffer // read only after cmd.Wait
}

// cluster starts three nodes and returns when all serve. What it returns has to
// be stopped, also after an error.
func (r *remoteRun) cluster(ctx context.Context, dir string) (nodes []*nodeProcess, err error) {
	if err := os.WriteFile(filepath.Join(dir, splitsFile), append(bytes.Join(workload.Splits(r.flags.shards), []byte("\n")), '\n'), 0o600); err != nil {
		return nil, err
	}
	peers, err := freeAddrs(benchNodes)
	if err != nil {
		return nil, err
	}
	r.peers = peers
	ready := make(chan string, benchNodes)
	for i := range benchNodes {
		n, err := r.start(ctx, dir, i, peers, func(addr string) { ready <- addr })
		if err != nil {
			return nodes, err
		}
		nodes = append(nodes, n)
	}
	limit := time.NewTimer(nodeStart)
	defer limit.Stop()
	for range nodes {
		select {
		case addr := <-ready:
			if addr == "" {
				return nodes, fmt.Errorf("a node ended before it served: %s", endOf(nodes))
			}
		case <-limit.C:
			return nodes, fmt.Errorf("the nodes do not serve after %s", nodeStart)
		case <-ctx.Done():
			return nodes, ctx.Err()
		}
	}
	return nodes, nil
}

// start starts the i-th node of a cluster. ready is told where its clients connect, or
// "" when it ended before it served.
func (r *remoteRun) start(ctx context.Context, dir string, i int, peers []string, ready func(addr string)) (*nodeProcess, error) {
	args := []string{"serve", "-o", "json", "--dir", filepath.Join(dir, fmt.Sprintf("n%d", i+1)), "--node-id", strconv.Itoa(i + 1), "--listen", peers[i],
		"--client-listen", "127.0.0.1:0", "--bootstrap", strconv.Itoa(benchNodes), "--join", strings.Join(peers, ","), "--log-level", "error"}
	if r.flags.shards > 1 {
		args = append(args, "--split-at", filepath.Join(dir, splitsFile))
	}
	nctx, stop := context.WithCancel(ctx)
	n := &nodeProcess{cmd: r.command(nctx, append(args, r.serve...)...), stop: stop}
	n.cmd.Stderr = &n.log
	out, err := n.cmd.StdoutPipe()
	if err == nil {
		err = n.cmd.Start()
	}
	if err != nil {
		stop()
		return nil, err
	}
	go func() { // ends with its process
		line, _ := bufio.NewReader(out).ReadBytes('\n')
		var a struct{ Clients string }
		_ = json.Unmarshal(line, &a) // the process ended early: no address
		n.addr = a.Clients
		ready(a.Clients)
	}()
	return n, nil
}

// endOf stops the nodes and returns the last that one of them said.
func endOf(nodes []*nodeProcess) string {
	stopNodes(nodes)
	for _, n := range nodes {
		if said := lastLine(n.log.String()); said != "" {
			return said
		}
	}
	return "it said nothing"
}

// stopNodes ends processes and waits until they have ended.
func stopNodes(nodes []*nodeProcess) {
	for _, n := range nodes {
		n.stop()
	}
	for _, n := range nodes {
		_ = n.cmd.Wait() // it was told to stop; again: does nothing
	}
}

// freeAddrs returns addresses of this machine that nobody listens at.
func freeAddrs(n int) (addrs []string, err error) {
	for range n {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			return nil, err
		}
		defer l.Close()
		addrs = append(addrs, l.Addr().String())
	}
	return addrs, nil
}

func lastLine(s string) string {
	all := strings.Split(strings.TrimSpace(s), "\n")
	return all[len(all)-1]
}
