package main

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/spf13/cobra"

	"github.com/flotillakv/flotilla"
	"github.com/flotillakv/flotilla/bench"
	"github.com/flotillakv/flotilla/bench/logbound"
	"github.com/flotillakv/flotilla/bench/workload"
)

// boundFlags are what bench log-bound can be told.
type boundFlags struct {
	config              logbound.Config
	value               string
	memory, log, disk   string
	logKeep             string
	policies            []string
	dir, csvTo, chartTo string
}

func newBenchLogBound(a *app) *cobra.Command {
	b := boundFlags{config: logbound.Config{Every: time.Second, Patience: time.Minute}}
	cmd := &cobra.Command{
		Use:   "log-bound",
		Short: "Overwrite a constant set of keys, and keep the bounds of disk and logs",
		Long: `log-bound overwrites a constant set of keys on a cluster of three processes of this
program, as fast as it can, through phases of --phase each: all nodes run; one is
dead; it is back again; one node after the other is killed and started again; nothing
is written. A node is killed with SIGKILL.

First it prints the fixed allowance, counted term by term from the limits. Then it
looks at every node once a second. Two bounds must hold in every sample, of every node:

  du of the directory  below Limits.Disk, and below 1.3 x live data + Limits.Log + allowance
  Raft logs            as read from the store, and the write-ahead log of what is not in
                       tables yet, together below Limits.Log

The first sample that exceeds a bound ends the run with exit code 1 and is printed; so
does a write that is not taken within a minute, and a record that does not read back.

--policy names one compaction policy or several ("all"): each gets a cluster of its own
and the same load, one after the other, and a table compares them: what a directory and
the logs took at most, what the nodes' processes wrote to the device, of that for each
byte acknowledged, and the snapshots they sent, with how many came from images made
before. --rate makes the loads equal where the policies are not equally fast.`,
		Example: lines(
			"  flotilla bench log-bound",
			"  flotilla bench log-bound --phase 2m --log-limit 128MiB --chart bound.svg --csv bound.csv",
			"  flotilla bench log-bound --policy all --phase 12s --rate 3000 --chart policies.svg"),
		Args: arguments(),
		RunE: func(cmd *cobra.Command, _ []string) error { return a.benchLogBound(cmd.Context(), &b) },
	}
	f := cmd.Flags()
	f.DurationVar(&b.config.Phase, "phase", 30*time.Second, "how long each phase lasts")
	f.Uint64Var(&b.config.Keys, "keys", 100_000, "number of keys")
	f.StringVar(&b.value, "value", "1KiB", "size of a value, such as 128 or 1KiB")
	f.IntVar(&b.config.Shards, "shards", 8, "number of shards")
	f.StringSliceVar(&b.policies, "policy", []string{string(flotilla.CompactPiggybacked)}, "compaction policies to run under, one after the other; all: every one")
	f.Float64Var(&b.config.Rate, "rate", 0, "writes to begin in a second; 0: as many as the cluster takes")
	f.IntVar(&b.config.Writers, "clients", 64, "writes in flight")
	f.DurationVar(&b.config.CrashEvery, "crash-every", 2*time.Second, "in the crash loop, from the moment at which a node serves again to the next kill")
	f.StringVar(&b.memory, "memory-limit", "64MiB", "limits.memory of each node")
	f.StringVar(&b.log, "log-limit", "64MiB", "limits.log of each node")
	f.StringVar(&b.logKeep, "log-keep", "1GiB", "how much of a shard's log is kept for a dead node if the log's limit lets it")
	f.StringVar(&b.disk, "disk-limit", "", "limits.disk of each node; empty: a tenth more than the bound")
	f.StringVar(&b.dir, "dir", "", "directory for the data, which is removed from it at the end; empty: a temporary one")
	f.StringVar(&b.csvTo, "csv", "", "write all samples to this file")
	f.StringVar(&b.chartTo, "chart", "", "draw the samples into this file, as SVG")
	return cmd
}

// limits reads the sizes among the flags into b.config.
func (b *boundFlags) limits() error {
	var value, memory, log, keep, disk size
	for _, f := range []struct {
		flag, text string
		to         *size
	}{{"value", b.value, &value}, {"memory-limit", b.memory, &memory}, {"log-limit", b.log, &log}, {"log-keep", b.logKeep, &keep}, {"disk-limit", b.disk, &disk}} {
		if f.text == "" {
			continue
		}
		if err := f.to.UnmarshalText([]byte(f.text)); err != nil {
			return usageError("--%s: %v", f.flag, err)
		}
	}
	c := &b.config
	c.ValueBytes = int(value)
	c.Limits = flotilla.Limits{Memory: int64(memory), Log: int64(log), LogKeep: int64(keep), Disk: int64(disk)}
	switch {
	case c.Phase < time.Second || c.Phase > 24*time.Hour:
		return usageError("--phase %s: must lie between 1s and 24h", c.Phase)
	case c.Keys < 1 || c.Keys > 1<<32:
		return usageError("--keys %d: must lie between 1 and %d", c.Keys, uint64(1)<<32)
	case value < 8 || value > workload.MaxValueBytes:
		return usageError("--value %s: must lie between 8 and %s", value, size(workload.MaxValueBytes))
	case c.Shards < 1 || c.Shards > 65536:
		return usageError("--shards %d: must lie between 1 and 65536", c.Shards)
	case c.Writers < 1 || c.Writers > 1<<16:
		return usageError("--clients %d: must lie between 1 and %d", c.Writers, 1<<16)
	case c.CrashEvery < 0:
		return usageError("--crash-every %s: must not be negative", c.CrashEvery)
	case log == 0 || memory == 0:
		return usageError("--log-limit and --memory-limit: must be more than 0")
	case c.Rate < 0 || c.Rate > 1e9:
		return usageError("--rate %g: must lie between 0 and 1e9", c.Rate)
	case len(b.policies) == 0:
		return usageError("--policy: must be one of all, %s", strings.Join(policyNames(), ", "))
	}
	if slices.Equal(b.policies, []string{"all"}) {
		b.policies = policyNames()
	}
	for i, p := range b.policies {
		if !slices.Contains(policyNames(), p) {
			return usageError("--policy %q: must be one of all, %s%s", p, strings.Join(policyNames(), ", "), didYouMean(p, policyNames()))
		}
		if slices.Contains(b.policies[:i], p) {
			return usageError("--policy %s: is named twice", p)
		}
	}
	if err := (&flotilla.Options{InMemory: true, Limits: c.Limits}).Validate(); err != nil {
		return usageError("%v", err)
	}
	return nil
}

func (a *app) benchLogBound(ctx context.Context, b *boundFlags) error {
	if err := b.limits(); err != nil {
		return err
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
	live := a.out
	if a.json() {
		live = a.errOut
	}
	if a.quiet {
		live = io.Discard
	}
	fmt.Fprintf(live, "machine  %s\n", &machine)
	var runs []*logbound.Result
	for _, p := range b.policies {
		if len(b.policies) > 1 {
			fmt.Fprintf(live, "\npolicy   %s\n", p)
		}
		var res *logbound.Result
		res, err = a.boundRun(ctx, b, flotilla.CompactionPolicy(p), filepath.Join(dir, p), live)
		if res != nil {
			runs = append(runs, res)
		}
		if rerr := os.RemoveAll(filepath.Join(dir, p)); err == nil {
			err = rerr
		}
		if err != nil {
			break
		}
	}
	if len(runs) > 0 {
		if werr := b.write(runs); err == nil {
			err = werr
		}
		if werr := a.printBounds(runs); err == nil {
			err = werr
		}
	}
	if err != nil {
		return failure(exitFailed, err, "", "%v", err)
	}
	return nil
}

// boundRun makes one run on a new cluster below dir.
func (a *app) boundRun(ctx context.Context, b *boundFlags, p flotilla.CompactionPolicy, dir string, live io.Writer) (*logbound.Result, error) {
	c := b.config
	c.Compaction.Policy = p
	cluster, err := newBoundCluster(ctx, dir, &c)
	if err != nil {
		return nil, err
	}
	defer cluster.Close()
	c.OnBounds = func(r *logbound.Result) { boundHeader(live, &c, r) }
	c.OnSample = func(s *logbound.Sample) {
		if s.Node > 1 {
			return // the worst of all is in the summary
		}
		fmt.Fprintf(live, "%6.0fs  %-13s  n1 directory %7.1f MiB (log files %.1f, tables %.1f, staging %.1f)  Raft logs %.1f + %.1f MiB  written %.0f MiB\n",
			s.Seconds, s.Phase, mibs(s.Disk), mibs(s.WALs), mibs(s.Tables), mibs(s.Staging), mibs(s.Logs), mibs(s.WAL), mibs(s.Written))
	}
	return logbound.Run(ctx, cluster, c)
}

func mibs(n int64) float64 { return float64(max(n, 0)) / (1 << 20) }

// boundHeader prints what is counted before anything is written.
func boundHeader(w io.Writer, c *logbound.Config, r *logbound.Result) {
	fmt.Fprintf(w, "load     %s keys, values of %d bytes, %d shards, 3 replicas, fsync on, %d writes in flight; live data %.1f MiB per node\n\nfixed allowance of each node, from its limits (memory %s, log %s):\n",
		countText(int64(c.Keys)), c.ValueBytes, c.Shards, c.Writers, mibs(r.Live), size(c.Limits.Memory), size(c.Limits.Log))
	t := newTable("MiB", "TERM", "MiB", "COUNTED AS")
	for _, term := range r.Terms {
		t.add(term.Name, fmt.Sprintf("%.1f", mibs(term.Bytes)), term.Count)
	}
	t.add("together", fmt.Sprintf("%.1f", mibs(r.Allowance)), "")
	limit := "none"
	if r.DiskLimit > 0 {
		limit = fmt.Sprintf("%.1f MiB", mibs(r.DiskLimit))
	}
	fmt.Fprintf(w, "%s\nbounds   du of a directory: 1.3 x live + Limits.Log + allowance = %.1f MiB; Limits.Disk = %s; Raft logs: Limits.Log = %.1f MiB\n\n", t, mibs(r.DiskBound), limit, mibs(r.LogLimit))
}

// write writes the files that were asked for.
func (b *boundFlags) write(runs []*logbound.Result) error {
	to := func(path string, f func(io.Writer) error) error {
		if path == "" {
			return nil
		}
		var buf bytes.Buffer
		if err := f(&buf); err != nil {
			return err
		}
		return os.WriteFile(path, buf.Bytes(), 0o644)
	}
	title := fmt.Sprintf("A constant %.0f MiB of live data, overwritten for ever (flotilla bench log-bound)", mibs(runs[0].Live))
	return errors.Join(to(b.csvTo, func(w io.Writer) error { return logbound.WriteCSV(w, runs) }),
		to(b.chartTo, func(w io.Writer) error { return logbound.WriteChart(w, title, runs) }))
}

func (a *app) printBounds(runs []*logbound.Result) error {
	if a.json() {
		return printList(a, runs)
	}
	t := newTable("SECONDS WRITES/S DIRECTORY LOGS OF", "POLICY", "PHASE", "SECONDS", "WRITES/S", "DIRECTORY most (MiB)", "OF BOUND", "LOGS most (MiB)", "OF LIMIT")
	for _, r := range runs {
		for _, p := range r.Phases {
			t.add(string(r.Policy), p.Phase, fmt.Sprintf("%.0f", p.Seconds), countText(int64(p.Writes)), fmt.Sprintf("%.1f", mibs(p.DiskMax)), fmt.Sprintf("%.0f%%", 100*float64(p.DiskMax)/float64(r.DiskBound)),
				fmt.Sprintf("%.1f", mibs(p.LogMax)), fmt.Sprintf("%.0f%%", 100*float64(p.LogMax)/float64(r.LogLimit)))
		}
	}
	if _, err := fmt.Fprintf(a.out, "\n%s", t); err != nil {
		return err
	}
	if len(runs) > 1 {
		t := newTable("WRITTEN DIRECTORY LOGS OF DEVICE PER SNAPSHOTS FROM SENT IMAGES", "POLICY", "WRITTEN (MiB)", "DIRECTORY most (MiB)", "OF BOUND", "LOGS most (MiB)", "OF LIMIT",
			"DEVICE (MiB)", "PER BYTE", "SNAPSHOTS", "FROM IMAGES", "SENT (MiB)", "IMAGES KEPT (MiB)")
		for _, r := range runs {
			disk, logs := r.Most()
			w := &r.Work
			t.add(string(r.Policy), fmt.Sprintf("%.0f", mibs(r.Written)), fmt.Sprintf("%.1f", mibs(disk)), fmt.Sprintf("%.0f%%", 100*float64(disk)/float64(r.DiskBound)),
				fmt.Sprintf("%.1f", mibs(logs)), fmt.Sprintf("%.0f%%", 100*float64(logs)/float64(r.LogLimit)),
				fmt.Sprintf("%.0f", mibs(w.Device)), fmt.Sprintf("%.2f", float64(w.Device)/float64(max(1, r.Written))),
				countText(w.Snapshots), countText(w.Images), fmt.Sprintf("%.1f", mibs(w.SentBytes)), fmt.Sprintf("%s (%.1f)", countText(w.Kept), mibs(w.KeptBytes)))
		}
		if _, err := fmt.Fprintf(a.out, "\n%s", t); err != nil {
			return err
		}
	}
	for _, r := range runs {
		fmt.Fprintf(a.out, "\n%d samples, %d violations, %d restarts, %s retries, %s records read back\n", len(r.Samples), r.Violations, r.Restarts, countText(r.Retries), countText(int64(r.Verified)))
	}
	return nil
}

// boundCluster is three processes of this program.
type boundCluster struct {
	ctx     context.Context
	program string
	dir     string
	c       *logbound.Config
	peers   []string
	clients []string
	client  *flotilla.Client
	mu      [logbound.Nodes]sync.Mutex // guards the node
	nodes   [logbound.Nodes]*boundProcess
}

// boundProcess is a node that runs. It answers each line on its input.
type boundProcess struct {
	cmd *exec.Cmd
	in  io.WriteCloser
	out *bufio.Scanner
	log bytes.Buffer // read only after cmd.Wait
}

// boundAnswer is a line of output of a node.
type boundAnswer struct {
	Ready     bool                `json:"ready,omitempty"`
	Allowance []flotilla.DiskTerm `json:"allowance,omitempty"`
	logbound.Counted
	Error string `json:"error,omitempty"`
}

func newBoundCluster(ctx context.Context, dir string, c *logbound.Config) (*boundCluster, error) {
	program, err := os.Executable()
	if err != nil {
		return nil, fmt.Errorf("cannot find this program's own file: %w", err)
	}
	addrs, err := freeAddrs(2 * logbound.Nodes)
	if err != nil {
		return nil, err
	}
	b := &boundCluster{ctx: ctx, program: program, dir: dir, c: c, peers: addrs[:logbound.Nodes], clients: addrs[logbound.Nodes:]}
	if c.Limits.Disk == 0 {
		// How much is bound to be enough follows from the limits, which a node knows
		// when it runs: one that never ran is asked.
		n, err := flotilla.Open(ctx, flotilla.Options{InMemory: true, Limits: c.Limits, Compaction: c.Compaction})
		if err != nil {
			return nil, err
		}
		live, shard := c.Live()
		need := live/10*13 + c.Limits.Log
		for _, t := range n.DiskAllowance(shard) {
			need += t.Bytes
		}
		if err := n.Close(); err != nil {
			return nil, err
		}
		c.Limits.Disk = need + need/10
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, err
	}
	if err := os.WriteFile(filepath.Join(dir, "splits"), append(bytes.Join(workload.Splits(c.Shards), []byte("\n")), '\n'), 0o600); err != nil {
		return nil, err
	}
	started := make(chan error, logbound.Nodes)
	for i := range logbound.Nodes {
		go func() { started <- b.Restart(ctx, i) }()
	}
	for range logbound.Nodes {
		err = errors.Join(err, <-started)
	}
	if err == nil {
		b.client, err = flotilla.Dial(ctx, b.clients, flotilla.ClientOptions{})
	}
	if err != nil {
		b.Close()
		return nil, err
	}
	return b, nil
}

func (b *boundCluster) Dir(i int) string { return filepath.Join(b.dir, fmt.Sprintf("n%d", i+1)) }
func (b *boundCluster) KV() flotilla.KV  { return b.client }

// Restart implements logbound.Cluster.
func (b *boundCluster) Restart(ctx context.Context, i int) error {
	l := &b.c.Limits
	num := func(n int64) string { return strconv.FormatInt(n, 10) }
	p := &boundProcess{cmd: exec.CommandContext(b.ctx, b.program, "bench", "log-bound-node", "--dir", b.Dir(i), "--id", strconv.Itoa(i+1), "--listen", b.peers[i], "--client-listen", b.clients[i],
		"--join", strings.Join(b.peers, ","), "--splits", filepath.Join(b.dir, "splits"), "--shards", strconv.Itoa(b.c.Shards),
		"--memory-limit", num(l.Memory), "--log-limit", num(l.Log), "--log-keep", num(l.LogKeep), "--disk-limit", num(l.Disk), "--policy", string(b.c.Compaction.Policy))}
	p.cmd.Stderr = &p.log
	out, err := p.cmd.StdoutPipe()
	if err == nil {
		p.in, err = p.cmd.StdinPipe()
	}
	if err == nil {
		err = p.cmd.Start()
	}
	if err != nil {
		return err
	}
	p.out = bufio.NewScanner(out)
	stop := context.AfterFunc(ctx, func() { _ = p.cmd.Process.Kill() })
	ans, err := p.answer()
	if !stop() || err == nil && !ans.Ready {
		err = errors.Join(errors.New("it does not serve"), ctx.Err())
	}
	if err != nil {
		_ = p.cmd.Process.Kill()
		_ = p.cmd.Wait()
		return fmt.Errorf("%w: %s", err, lastLine(p.log.String()))
	}
	b.mu[i].Lock()
	b.nodes[i] = p
	b.mu[i].Unlock()
	return nil
}

// answer reads one line.
func (p *boundProcess) answer() (a boundAnswer, err error) {
	if !p.out.Scan() {
		return a, errors.Join(errors.New("the process of a node ended"), p.out.Err())
	}
	if err := json.Unmarshal(p.out.Bytes(), &a); err != nil {
		return a, err
	}
	if a.Error != "" {
		err = errors.New(a.Error)
	}
	return a, err
}

// ask has node i answer a line.
func (b *boundCluster) ask(i int, line string) (boundAnswer, error) {
	b.mu[i].Lock()
	defer b.mu[i].Unlock()
	p := b.nodes[i]
	if p == nil {
		return boundAnswer{}, logbound.ErrDown
	}
	if _, err := io.WriteString(p.in, line+"\n"); err != nil {
		return boundAnswer{}, err
	}
	return p.answer()
}

// Count implements logbound.Cluster.
func (b *boundCluster) Count(_ context.Context, i int) (logbound.Counted, error) {
	a, err := b.ask(i, "count")
	return a.Counted, err
}

// Allowance implements logbound.Cluster.
func (b *boundCluster) Allowance(largestShard int64) ([]flotilla.DiskTerm, error) {
	a, err := b.ask(0, "allowance "+strconv.FormatInt(largestShard, 10))
	return a.Allowance, err
}

// Kill implements logbound.Cluster: SIGKILL.
func (b *boundCluster) Kill(i int) error {
	b.mu[i].Lock()
	defer b.mu[i].Unlock()
	p := b.nodes[i]
	if p == nil {
		return nil
	}
	b.nodes[i] = nil
	err := p.cmd.Process.Kill()
	_ = p.cmd.Wait() // it was killed
	return err
}

// Close implements logbound.Cluster.
func (b *boundCluster) Close() error {
	if b.client != nil {
		_ = b.client.Close()
	}
	var errs []error
	for i := range logbound.Nodes {
		errs = append(errs, b.Kill(i))
	}
	return errors.Join(errs...)
}

// newBenchLogBoundNode is a node of boundCluster, which reads questions from its input
// and ends with it.
func newBenchLogBoundNode(a *app) *cobra.Command {
	var o flotilla.Options
	var id uint32
	var splits, policy string
	cmd := &cobra.Command{
		Use: "log-bound-node", Short: "A node of bench log-bound", Hidden: true, Args: arguments(),
		RunE: func(cmd *cobra.Command, _ []string) error {
			o.NodeID, o.Bootstrap, o.Compaction.Policy = id, len(o.Join), flotilla.CompactionPolicy(policy)
			if o.Shards > 1 {
				text, err := os.ReadFile(splits)
				if err != nil {
					return err
				}
				o.SplitAt = bytes.Split(bytes.TrimSpace(text), []byte("\n"))
			}
			return a.logBoundNode(cmd.Context(), o)
		},
	}
	f := cmd.Flags()
	f.StringVar(&o.Dir, "dir", "", "directory")
	f.Uint32Var(&id, "id", 0, "node id")
	f.StringVar(&o.Listen, "listen", "", "address for the other nodes")
	f.StringVar(&o.ClientListen, "client-listen", "", "address for clients")
	f.StringSliceVar(&o.Join, "join", nil, "addresses of all nodes")
	f.StringVar(&splits, "splits", "", "file with the boundaries of the shards")
	f.IntVar(&o.Shards, "shards", 1, "number of shards")
	f.Int64Var(&o.Limits.Memory, "memory-limit", 0, "limits.memory in bytes")
	f.Int64Var(&o.Limits.Log, "log-limit", 0, "limits.log in bytes")
	f.Int64Var(&o.Limits.LogKeep, "log-keep", 0, "log kept for a replica that is away, in bytes")
	f.Int64Var(&o.Limits.Disk, "disk-limit", 0, "limits.disk in bytes")
	f.StringVar(&policy, "policy", "", "compaction policy")
	return cmd
}

func (a *app) logBoundNode(ctx context.Context, o flotilla.Options) error {
	o.Logger = a.logger("error", "auto")
	node, err := flotilla.Open(ctx, o)
	if err != nil {
		return err
	}
	defer node.Close()
	if err := a.printJSON(boundAnswer{Ready: true}); err != nil {
		return err
	}
	questions := bufio.NewScanner(a.in)
	for questions.Scan() {
		var ans boundAnswer
		question, arg, _ := strings.Cut(questions.Text(), " ")
		switch question {
		case "count":
			ans.Work = logbound.WorkOf(node)
			ans.Device = bench.ProcessBytes()
			ans.Logs, ans.WAL, err = node.CountLog()
		case "allowance":
			var shard int64
			if shard, err = strconv.ParseInt(arg, 10, 64); err == nil {
				ans.Allowance = node.DiskAllowance(shard)
			}
		default:
			err = fmt.Errorf("unknown question %q", question)
		}
		if err != nil {
			ans = boundAnswer{Error: err.Error()}
		}
		if err := a.printJSON(ans); err != nil {
			return err
		}
	}
	return questions.Err()
}
