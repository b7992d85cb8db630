package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/spf13/cobra"

	"github.com/flotillakv/flotilla/engine"
	"github.com/flotillakv/flotilla/internal/sim"
	"github.com/flotillakv/flotilla/internal/sim/coverage"
	"github.com/flotillakv/flotilla/internal/sim/score"
	"github.com/flotillakv/flotilla/internal/sim/t1"
)

// newSim holds the commands that search for bugs.
func newSim(a *app) *cobra.Command {
	return group(&cobra.Command{
		Use:   "sim",
		Short: "Search for bugs: simulated clusters, planted bugs, real processes under faults",
		Long: `sim searches for bugs in Flotilla itself.

  flotilla sim run --seed 42        one simulated cluster under faults, told in words
  flotilla sim run --seeds 1000     many of them
  flotilla sim replay FILE          one that found something once
  flotilla sim mutants              how many of the bugs planted on purpose are found
  flotilla sim processes            real servers on this machine under faults`,
	}, newSimRun(a), newSimReplay(a), newSimMutants(a), newSimProcesses(a))
}

// simFlags are what sim run can be told.
type simFlags struct {
	tier     string
	seed     uint64
	seeds    int
	profile  string
	duration time.Duration
	nodes    int
	budget   time.Duration
	workers  int
	tail     int
	shrink   int
	out      string
	trace    string
	coverage bool
}

func newSimRun(a *app) *cobra.Command {
	var f simFlags
	cmd := &cobra.Command{
		Use:   "run",
		Short: "Simulate a cluster under faults and check every step",
		Long: `run simulates a cluster in virtual time, on one goroutine, from one seed. The seed
draws the cluster, the faults and what clients do; the code under test is the real
one. After every step the rules of consensus are checked, and at the end the faults
stop and there has to be progress. A run of one seed prints what happened in words,
and a line "trace" with a hash of everything: it is the same on each run.

Tiers:
  t0   the Raft cores of one shard on a model of disk and network; milliseconds a run
  t1   whole nodes with many shards on real storage; about a second a run

With --seeds or --budget it runs many seeds, each under all profiles unless
--profile names one, and prints the sum. The first violation ends it with exit code
1: the rule, what was seen, the last events, and the command that repeats it. The
fewest actions that still show it are kept in a file for "flotilla sim replay", with
a text beside it that tells the run: in the directory of --out, else of
FLOTILLA_SIM_OUT, else in that for temporary files.

--trace FILE writes every event of one run as a line of JSON ("-": to the output, in
place of the story). --coverage prints which kinds of faults hit which operations,
and in how many states of the core.`,
		Example: lines(
			"  flotilla sim run --seed 42",
			"  flotilla sim run --seeds 1000",
			"  flotilla sim run --tier t1 --profile crash --budget 1m",
			"  flotilla sim run --seed 42 --trace run.ndjson",
			"  flotilla sim run --seeds 200 --coverage"),
		Args: arguments(),
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := f.check(); err != nil {
				return err
			}
			many := cmd.Flags().Changed("seeds") || f.budget > 0
			if f.trace != "" && many {
				return usageError("--trace goes with one seed, not with --seeds or --budget")
			}
			if f.out == "" {
				f.out, _ = a.env("FLOTILLA_SIM_OUT")
			}
			if cmd.Flags().Changed("seeds") || f.budget > 0 {
				return a.simMany(cmd.Context(), &f, !cmd.Flags().Changed("seeds"))
			}
			return a.simOne(&f)
		},
	}
	fs := cmd.Flags()
	fs.StringVar(&f.tier, "tier", "t0", "t0: Raft cores; t1: whole nodes on real storage")
	fs.Uint64Var(&f.seed, "seed", 1, "seed, or the first of many")
	fs.IntVar(&f.seeds, "seeds", 1, "number of seeds")
	fs.StringVar(&f.profile, "profile", "", "mix of faults; empty: swarm, or with many seeds all in turn")
	fs.DurationVar(&f.duration, "duration", 0, "virtual time with faults; 0: drawn from the seed")
	fs.IntVar(&f.nodes, "nodes", 0, "number of nodes of t0, 2 to 8; 0: drawn from the seed")
	fs.DurationVar(&f.budget, "budget", 0, "go on with further seeds for this much real time")
	fs.IntVar(&f.workers, "workers", 0, "runs at the same time; 0: one per core")
	fs.IntVar(&f.tail, "tail", 40, "how many of the last events are printed for a violation")
	fs.IntVar(&f.shrink, "shrink", 500, "most runs spent on finding fewer actions that show a violation")
	fs.StringVar(&f.out, "out", "", "directory for the schedule of a violation; empty: FLOTILLA_SIM_OUT, else that for temporary files")
	fs.StringVar(&f.trace, "trace", "", "write every event as a line of JSON to this file; -: to the output")
	fs.BoolVar(&f.coverage, "coverage", false, "print which faults hit which operations")
	_ = cmd.RegisterFlagCompletionFunc("tier", cobra.FixedCompletions([]string{"t0", "t1"}, cobra.ShellCompDirectiveNoFileComp))
	_ = cmd.RegisterFlagCompletionFunc("profile", func(*cobra.Command, []string, string) ([]string, cobra.ShellCompDirective) {
		return f.profiles(), cobra.ShellCompDirectiveNoFileComp
	})
	return cmd
}

// profiles lists those of the tier.
func (f *simFlags) profiles() []string {
	if f.tier == "t1" {
		return t1.Profiles
	}
	return slices.Concat(sim.Profiles, sim.Long)
}

func (f *simFlags) check() error {
	switch {
	case f.tier != "t0" && f.tier != "t1":
		return usageError("--tier %q: must be t0 or t1", f.tier)
	case f.seeds < 1:
		return usageError("--seeds %d: must be 1 or more", f.seeds)
	case f.workers < 0:
		return usageError("--workers %d: must be 0 or more", f.workers)
	case f.duration < 0 || f.duration > 30*24*time.Hour:
		return usageError("--duration %s: must be between 0 and 720h", f.duration)
	case f.nodes != 0 && (f.nodes < 2 || f.nodes > 8):
		return usageError("--nodes %d: must be 2 to 8, or 0", f.nodes)
	case f.nodes != 0 && f.tier == "t1":
		return usageError("--nodes goes with --tier t0; in t1 the seed draws the number of nodes")
	case f.profile != "" && !slices.Contains(f.profiles(), f.profile):
		return usageError("%s has no profile %q%s; it has %s", f.tier, f.profile, didYouMean(f.profile, f.profiles()), strings.Join(f.profiles(), ", "))
	}
	return nil
}

// simOutcome is what the tiers have in common of a run.
type simOutcome struct {
	Tier      string  `json:"tier"`
	Seed      uint64  `json:"seed"`
	Profile   string  `json:"profile"`
	Trace     string  `json:"trace"`
	Events    uint64  `json:"events"`
	Virtual   float64 `json:"virtual_seconds"`
	Leaders   int     `json:"leaders"`
	Committed uint64  `json:"committed"`
	Crashes   int     `json:"crashes"`
	Oracle    string  `json:"oracle,omitempty"`
	Detail    string  `json:"detail,omitempty"`
	Replay    string  `json:"replay,omitempty"`
	Schedule  string  `json:"schedule,omitempty"` // file

	Coverage []coverage.Cell `json:"coverage,omitempty"`

	hash    uint64
	story   string
	report  string // of a violation, to be printed
	covered *coverage.Table
	// keep shrinks the schedule of a violation and writes it; nil: there is none.
	keep func(dir string, runs int) (path string, err error)
}

// run runs one seed.
func (f *simFlags) run(seed uint64, profile string, cache *engine.Cache) *simOutcome {
	if f.tier == "t1" {
		return f.runT1(t1.Options{Seed: seed, Profile: profile, Duration: f.duration, Cache: cache}, nil)
	}
	return f.runT0(sim.Options{Seed: seed, Profile: profile, Duration: f.duration, Nodes: f.nodes}, nil)
}

// table is where a run counts what its faults hit; nil: it does not.
func (f *simFlags) table() *coverage.Table {
	if !f.coverage {
		return nil
	}
	return &coverage.Table{}
}

// runT0 runs the Raft cores alone.
func (f *simFlags) runT0(in sim.Options, trace io.Writer) *simOutcome {
	in.Trace, in.Coverage = trace, f.table()
	o := outcomeT0(sim.Run(in), f.tail)
	o.covered = in.Coverage
	return o
}

func outcomeT0(r *sim.Result, tail int) *simOutcome {
	o := &simOutcome{
		Tier: "t0", Seed: r.Schedule.Seed, Profile: r.Schedule.Profile, Trace: fmt.Sprintf("%016x", r.Hash), hash: r.Hash, Events: r.Events,
		Virtual: r.Virtual.Seconds(), Leaders: r.Leaders, Committed: uint64(r.Commits), Crashes: r.Crashes, story: r.Story(),
	}
	if r.Failure != nil {
		o.Oracle, o.Detail, o.Replay = r.Failure.Oracle, r.Failure.Detail, r.Replay()
		o.report = r.Report(tail)
		o.keep = func(dir string, runs int) (string, error) {
			path, _, err := r.Keep(dir, runs, time.Minute)
			return path, err
		}
	}
	return o
}

// runT1 runs whole nodes.
func (f *simFlags) runT1(in t1.Options, trace io.Writer) *simOutcome {
	in.Trace, in.Coverage = trace, f.table()
	r := t1.Run(in)
	o := &simOutcome{
		Tier: "t1", Seed: r.Schedule.Seed, Profile: r.Schedule.Profile, Trace: fmt.Sprintf("%016x", r.Hash), hash: r.Hash, Events: r.Events,
		Virtual: r.Virtual.Seconds(), Leaders: r.Leaders, Committed: r.Commits, Crashes: r.Reopens, covered: in.Coverage,
	}
	o.story = r.Story()
	if r.Failure != nil {
		r = r.Verbose()
		o.Oracle, o.Detail, o.Replay, o.report = r.Failure.Oracle, r.Failure.Detail, r.Replay(), r.Report(f.tail)
		o.keep = func(dir string, runs int) (string, error) {
			path, _, err := r.Keep(dir, runs, time.Minute)
			return path, err
		}
	}
	return o
}

// ruleText says what a rule means, in brackets.
func ruleText(id string) string {
	for _, o := range sim.Oracles() {
		if o.ID == id {
			return " (" + o.Words + ")"
		}
	}
	return ""
}

// simOne runs one seed and tells of it.
func (a *app) simOne(f *simFlags) error {
	profile := f.profile
	if profile == "" {
		profile = "swarm"
	}
	if f.trace == "" {
		return a.simTell(f, f.run(f.seed, profile, nil), true)
	}
	w, done, err := a.traceTo(f.trace)
	if err != nil {
		return failure(exitUsage, err, "--trace", "cannot write the trace: %v", err)
	}
	var o *simOutcome
	if f.tier == "t1" {
		o = f.runT1(t1.Options{Seed: f.seed, Profile: profile, Duration: f.duration}, w)
	} else {
		o = f.runT0(sim.Options{Seed: f.seed, Profile: profile, Duration: f.duration, Nodes: f.nodes}, w)
	}
	if err := done(); err != nil {
		return failure(exitFailed, err, "--trace", "cannot write the trace: %v", err)
	}
	if f.trace == "-" {
		if o.Oracle != "" {
			return failure(exitFailed, nil, o.Replay, "seed %d, profile %s violates %s%s", o.Seed, o.Profile, o.Oracle, ruleText(o.Oracle))
		}
		return nil
	}
	return a.simTell(f, o, true)
}

// traceTo opens what a trace is written to; done closes it, and returns the
// first error of writing.
func (a *app) traceTo(path string) (w io.Writer, done func() error, err error) {
	e := &errWriter{}
	if path == "-" {
		e.w = a.out
		return e, func() error { return e.err }, nil
	}
	file, err := os.Create(path)
	if err != nil {
		return nil, nil, err
	}
	e.w = file
	return e, func() error { return errors.Join(e.err, file.Close()) }, nil
}

// errWriter remembers the first error.
type errWriter struct {
	w   io.Writer
	err error
}

// Write implements io.Writer.
func (e *errWriter) Write(p []byte) (int, error) {
	n, err := e.w.Write(p)
	if e.err == nil {
		e.err = err
	}
	return n, err
}

// simCoverage prints what the faults of runs hit.
func (a *app) simCoverage(f *simFlags, t *coverage.Table) {
	if t == nil {
		return
	}
	tier := coverage.T0
	if f.tier == "t1" {
		tier = coverage.T1
	}
	fmt.Fprintf(a.out, "\n%s\n", t.Text(tier))
}

// simTell prints the outcome of a run, and returns the error of a violation.
func (a *app) simTell(f *simFlags, o *simOutcome, whole bool) error {
	if o.Oracle != "" {
		o.Schedule = f.keep(o)
		if a.planted != "" {
			o.Replay += " --plant " + a.planted
			o.report = strings.Replace(o.report, "\nreplay: ", fmt.Sprintf("\nplanted bug %s\nreplay: ", a.planted), 1)
		}
	}
	if a.json() {
		if o.covered != nil {
			o.Coverage = o.covered.Cells()
		}
		if err := a.printJSON(o); err != nil {
			return err
		}
	} else {
		if whole {
			fmt.Fprint(a.out, o.story)
			a.simCoverage(f, o.covered)
		}
		if o.Oracle != "" {
			fmt.Fprint(a.out, o.report)
			if o.Schedule != "" {
				fmt.Fprintf(a.out, "the actions that show it: %s; flotilla sim replay %s\n", o.Schedule, o.Schedule)
			}
		}
		fmt.Fprintf(a.out, "trace %s\n", o.Trace)
	}
	if o.Oracle != "" {
		return failure(exitFailed, nil, o.Replay, "seed %d, profile %s violates %s%s", o.Seed, o.Profile, o.Oracle, ruleText(o.Oracle))
	}
	return nil
}

// keep shrinks the schedule of a violation and writes it to a file; "" if there
// is none or it cannot be written.
func (f *simFlags) keep(o *simOutcome) string {
	if o.keep == nil || f.shrink < 0 {
		return ""
	}
	dir := f.out
	if dir == "" {
		dir = filepath.Join(os.TempDir(), "flotilla-sim")
	}
	path, err := o.keep(dir, f.shrink)
	if err != nil {
		return ""
	}
	return path
}

// simSum sums up many runs.
type simSum struct {
	Tier       string          `json:"tier"`
	Runs       int             `json:"runs"`
	Violations int             `json:"violations"`
	Virtual    float64         `json:"virtual_seconds"`
	Seconds    float64         `json:"seconds"`
	Events     uint64          `json:"events"`
	Leaders    int             `json:"leaders"`
	Committed  uint64          `json:"committed"`
	Crashes    int             `json:"crashes"`
	Trace      string          `json:"trace,omitempty"`
	Coverage   []coverage.Cell `json:"coverage,omitempty"`
	hash       uint64
	covered    *coverage.Table
}

func (s *simSum) add(o *simOutcome) {
	s.Runs++
	s.Virtual += o.Virtual
	s.Events += o.Events
	s.Leaders += o.Leaders
	s.Committed += o.Committed
	s.Crashes += o.Crashes
	// A sum, so that the order in which workers end does not matter.
	s.hash += (o.hash ^ o.Seed*0x9e3779b97f4a7c15) * 0xbf58476d1ce4e5b9
	if o.Oracle != "" {
		s.Violations++
	}
	if o.covered != nil {
		if s.covered == nil {
			s.covered = &coverage.Table{}
		}
		s.covered.Add(o.covered)
	}
}

func (s *simSum) text() string {
	virtual := time.Duration(s.Virtual * 1e9).Round(time.Second)
	return fmt.Sprintf("%s runs, %s of virtual time in %s: %s events, %s terms with a leader, %s entries committed, %s crashes",
		countText(int64(s.Runs)), virtual, secondsText(time.Duration(s.Seconds*1e9)), countText(int64(s.Events)), countText(int64(s.Leaders)),
		countText(int64(s.Committed)), countText(int64(s.Crashes)))
}

// simMany runs many seeds until one violates a rule. open: until the budget is spent.
func (a *app) simMany(ctx context.Context, f *simFlags, open bool) error {
	profiles := []string{f.profile}
	if f.profile == "" {
		profiles = sim.Profiles
		if f.tier == "t1" {
			profiles = t1.Profiles
		}
	}
	all := f.seeds * len(profiles)
	began := time.Now()
	var (
		mu    sync.Mutex // guards what follows
		next  int
		sum   = simSum{Tier: f.tier}
		first *simOutcome
		wg    sync.WaitGroup
	)
	take := func() (seed uint64, profile string, ok bool) {
		mu.Lock()
		defer mu.Unlock()
		if ctx.Err() != nil || first != nil || !open && next >= all || f.budget > 0 && time.Since(began) >= f.budget {
			return 0, "", false
		}
		next++
		return f.seed + uint64((next-1)/len(profiles)), profiles[(next-1)%len(profiles)], true
	}
	bar := a.startProgress(func() (float64, string) {
		mu.Lock()
		defer mu.Unlock()
		share := float64(next) / float64(all)
		if open {
			share = float64(time.Since(began)) / float64(f.budget)
		}
		return share, fmt.Sprintf("%s runs, no rule violated", countText(int64(sum.Runs)))
	})
	workers := f.workers
	if workers == 0 {
		workers = runtime.NumCPU()
	}
	for range workers {
		wg.Go(func() {
			var cache *engine.Cache
			if f.tier == "t1" {
				cache = engine.NewCache(2 << 20)
				defer cache.Close()
			}
			for {
				seed, profile, ok := take()
				if !ok {
					return
				}
				o := f.run(seed, profile, cache)
				mu.Lock()
				sum.add(o)
				if o.Oracle != "" && first == nil {
					first = o
				}
				mu.Unlock()
			}
		})
	}
	wg.Wait()
	bar.stop()
	sum.Seconds = time.Since(began).Seconds()
	if !open && next >= all && first == nil {
		sum.Trace = fmt.Sprintf("%016x", sum.hash)
	}
	if first != nil {
		err := a.simTell(f, first, false)
		if !a.json() {
			fmt.Fprintln(a.out, sum.text())
		}
		return err
	}
	if a.json() {
		if sum.covered != nil {
			sum.Coverage = sum.covered.Cells()
		}
		return a.printJSON(&sum)
	}
	a.simCoverage(f, sum.covered)
	fmt.Fprintf(a.out, "%s: %s\n", a.colour(a.outTTY, green, "no rule was violated"), sum.text())
	if sum.Trace != "" {
		fmt.Fprintf(a.out, "trace %s\n", sum.Trace)
	}
	return ctx.Err()
}

func newSimReplay(a *app) *cobra.Command {
	f := simFlags{shrink: -1}
	cmd := &cobra.Command{
		Use:   "replay FILE",
		Short: "Run a schedule again that found something once",
		Long: `replay runs the schedule in FILE, as "flotilla sim run" leaves it behind and as the
regression folders of the repository hold them, of either tier, and tells what
happens. The exit code
is 1 if a rule is violated, 0 if none is. A schedule that was kept for a planted bug
shows it in a build with planted bugs (go run -tags mutants ./cmd/flotilla sim replay
FILE); in any other build it has to pass.`,
		Example: lines(
			"  flotilla sim replay internal/sim/testdata/regress/001-s3-a1.json",
			"  flotilla sim replay internal/sim/t1/testdata/regress/wall-clock-stops-timers.json"),
		Args: arguments("FILE"),
		RunE: func(cmd *cobra.Command, args []string) error {
			o, err := a.replay(&f, args[0])
			if err != nil {
				return err
			}
			if o.Replay != "" {
				o.report = strings.Replace(o.report, o.Replay, "flotilla sim replay "+args[0], 1)
				o.Replay = "flotilla sim replay " + args[0]
			}
			return a.simTell(&f, o, true)
		},
		ValidArgsFunction: func(*cobra.Command, []string, string) ([]string, cobra.ShellCompDirective) {
			return []string{"json"}, cobra.ShellCompDirectiveFilterFileExt
		},
	}
	cmd.Flags().IntVar(&f.tail, "tail", 40, "how many of the last events are printed for a violation")
	cmd.Flags().StringVar(&f.trace, "trace", "", "write every event as a line of JSON to this file")
	return cmd
}

// replay runs the schedule of a file, of either tier.
func (a *app) replay(f *simFlags, path string) (o *simOutcome, err error) {
	data, err := os.ReadFile(path)
	if err != nil {
		return nil, failure(exitUsage, err, "", "cannot read the schedule: %v", err)
	}
	f.tier = "t0"
	var (
		t0 sim.File
		t  t1.File
	)
	if t1.IsFile(data) {
		f.tier = "t1"
		t, err = t1.DecodeFile(data)
		t0.Mutant, t0.Oracle, t0.Note = t.Mutant, t.Oracle, t.Note
	} else {
		t0, err = sim.DecodeFile(data)
	}
	if err != nil {
		return nil, failure(exitUsage, err, "", "cannot read the schedule: %s: %v", path, err)
	}
	if t0.Mutant != "" && a.planted == "" {
		if plantForReplay(t0.Mutant) {
			a.note("planted bug %s is switched on: the schedule was kept for it, and has to violate %s", t0.Mutant, t0.Oracle)
		} else {
			a.note("kept for planted bug %s, which this build does not have: no rule may be violated", t0.Mutant)
		}
	}
	if t0.Note != "" {
		a.note("%s", t0.Note)
	}
	var w io.Writer
	done := func() error { return nil }
	if f.trace != "" {
		if w, done, err = a.traceTo(f.trace); err != nil {
			return nil, failure(exitUsage, err, "--trace", "cannot write the trace: %v", err)
		}
	}
	if f.tier == "t1" {
		o = f.runT1(t1.Options{Seed: t.Schedule.Seed, Profile: t.Schedule.Profile, Schedule: &t.Schedule}, w)
	} else {
		o = f.runT0(sim.Options{Schedule: &t0.Schedule}, w)
	}
	if err := done(); err != nil {
		return nil, failure(exitFailed, err, "--trace", "cannot write the trace: %v", err)
	}
	return o, nil
}

func newSimMutants(a *app) *cobra.Command {
	var o score.Options
	cmd := &cobra.Command{
		Use:   "mutants",
		Short: "Measure how many planted bugs are found",
		Long: `mutants switches on one planted bug after the other (small errors made on purpose,
most of which a system like this one really had) and runs what should find it. It
prints one line per bug: the rule that caught it, by which seed or test, after how
many tries and how much processor time; and the score. A bug that nothing finds is a
hole in the tests; then the exit code is 1.

Planted bugs are compiled in by a build tag only:

  go run -tags mutants ./cmd/flotilla sim mutants`,
		Example: lines(
			"  go run -tags mutants ./cmd/flotilla sim mutants",
			"  go run -tags mutants ./cmd/flotilla sim mutants --only A4,B5 --budget 1m"),
		Args: arguments(),
		RunE: func(cmd *cobra.Command, _ []string) error {
			w := a.out
			if a.json() {
				w = a.errOut
			}
			if o.Workers == 0 {
				o.Workers = runtime.NumCPU()
			}
			s, err := score.Run(cmd.Context(), w, o)
			if errors.Is(err, score.ErrNotBuilt) {
				return usageError("%v", err)
			}
			if a.json() && len(s.Rows) > 0 {
				if err := a.printJSON(s); err != nil {
					return err
				}
			}
			switch {
			case err != nil && len(s.Rows) == 0 && cmd.Context().Err() == nil:
				return usageError("%v", err)
			case err != nil:
				return failure(exitFailed, err, "", "%v", err)
			}
			return nil
		},
	}
	f := cmd.Flags()
	f.StringSliceVar(&o.Only, "only", nil, "ids of planted bugs; empty: all")
	f.DurationVar(&o.Budget, "budget", 10*time.Minute, "processor time after which a bug counts as not found")
	f.IntVar(&o.Workers, "workers", 0, "runs at the same time; 0: one per core")
	f.StringVar(&o.Root, "root", "", "directory of the module's source, for bugs that tests of packages find; empty: looked for upwards from here")
	return cmd
}
