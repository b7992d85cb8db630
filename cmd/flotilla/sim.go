package main

import (
	"context"
	"errors"
	"fmt"
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
1: the rule, what was seen, the last events, the command that repeats it, and for t0
a file with the fewest actions that still show it, for "flotilla sim replay".`,
		Example: lines(
			"  flotilla sim run --seed 42",
			"  flotilla sim run --seeds 1000",
			"  flotilla sim run --tier t1 --profile power --budget 1m"),
		Args: arguments(),
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := f.check(); err != nil {
				return err
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
	fs.StringVar(&f.out, "out", "", "directory for the schedule of a violation; empty: that for temporary files")
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

	hash   uint64
	story  string
	report string        // of a violation, to be printed
	t0     *sim.Schedule // of a violation that can be shrunk
}

// run runs one seed.
func (f *simFlags) run(seed uint64, profile string, cache *engine.Cache) *simOutcome {
	if f.tier == "t1" {
		return f.runT1(seed, profile, cache)
	}
	r := sim.Run(sim.Options{Seed: seed, Profile: profile, Duration: f.duration, Nodes: f.nodes})
	return outcomeT0(r, f.tail)
}

func outcomeT0(r *sim.Result, tail int) *simOutcome {
	o := &simOutcome{
		Tier: "t0", Seed: r.Schedule.Seed, Profile: r.Schedule.Profile, Trace: fmt.Sprintf("%016x", r.Hash), hash: r.Hash, Events: r.Events,
		Virtual: r.Virtual.Seconds(), Leaders: r.Leaders, Committed: uint64(r.Commits), Crashes: r.Crashes, story: r.Story(),
	}
	if r.Failure != nil {
		o.Oracle, o.Detail, o.Replay = r.Failure.Oracle, r.Failure.Detail, r.Replay()
		o.report, o.t0 = r.Report(tail), &r.Schedule
	}
	return o
}

func (f *simFlags) runT1(seed uint64, profile string, cache *engine.Cache) *simOutcome {
	in := t1.Options{Seed: seed, Profile: profile, Duration: f.duration, Cache: cache}
	r := t1.Run(in)
	o := &simOutcome{
		Tier: "t1", Seed: seed, Profile: r.Schedule.Profile, Trace: fmt.Sprintf("%016x", r.Hash), hash: r.Hash, Events: r.Events,
		Virtual: r.Virtual.Seconds(), Leaders: r.Leaders, Committed: r.Commits, Crashes: r.Reopens,
	}
	o.story = fmt.Sprintf("seed %d, profile %s: %s\n%s\n", seed, o.Profile, r.Summary(), strings.TrimSpace(r.Counts.String()))
	if r.Failure == nil {
		o.story += "no rule was violated\n"
		return o
	}
	o.Oracle, o.Detail = r.Failure.Oracle, r.Failure.Detail
	o.Replay = fmt.Sprintf("flotilla sim run --tier t1 --seed %d --profile %s", seed, o.Profile)
	if f.duration > 0 {
		o.Replay += fmt.Sprintf(" --duration %s", f.duration)
	}
	last := strings.SplitAfter(strings.TrimRight(r.Failure.Tail, "\n"), "\n")
	last = last[max(0, len(last)-f.tail):]
	o.report = fmt.Sprintf("FAILED at %v of virtual time: %s%s\n  %s\nseed %d, profile %s\nreplay: %s\nthe last %d events:\n%s\n", r.Failure.At, o.Oracle, ruleText(o.Oracle),
		strings.ReplaceAll(o.Detail, "\n", "\n  "), seed, o.Profile, o.Replay, len(last), strings.Join(last, ""))
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
	return a.simTell(f, f.run(f.seed, profile, nil), true)
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
		if err := a.printJSON(o); err != nil {
			return err
		}
	} else {
		if whole {
			fmt.Fprint(a.out, o.story)
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
	if o.t0 == nil || f.shrink < 0 {
		return ""
	}
	s := sim.Shrink(*o.t0, o.Oracle, f.shrink)
	dir := f.out
	if dir == "" {
		dir = os.TempDir()
	}
	path := filepath.Join(dir, fmt.Sprintf("flotilla-sim-%s-%d-%s.json", o.Profile, o.Seed, o.Oracle))
	file := sim.File{Oracle: o.Oracle, Note: o.Detail, Schedule: s}
	if os.MkdirAll(dir, 0o755) != nil || os.WriteFile(path, file.Encode(), 0o644) != nil {
		return ""
	}
	return path
}

// simSum sums up many runs.
type simSum struct {
	Tier       string  `json:"tier"`
	Runs       int     `json:"runs"`
	Violations int     `json:"violations"`
	Virtual    float64 `json:"virtual_seconds"`
	Seconds    float64 `json:"seconds"`
	Events     uint64  `json:"events"`
	Leaders    int     `json:"leaders"`
	Committed  uint64  `json:"committed"`
	Crashes    int     `json:"crashes"`
	Trace      string  `json:"trace,omitempty"`
	hash       uint64
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
		return a.printJSON(&sum)
	}
	fmt.Fprintf(a.out, "%s: %s\n", a.colour(a.outTTY, green, "no rule was violated"), sum.text())
	if sum.Trace != "" {
		fmt.Fprintf(a.out, "trace %s\n", sum.Trace)
	}
	return ctx.Err()
}

func newSimReplay(a *app) *cobra.Command {
	f := simFlags{tier: "t0", shrink: -1}
	cmd := &cobra.Command{
		Use:   "replay FILE",
		Short: "Run a schedule again that found something once",
		Long: `replay runs the schedule in FILE, as "flotilla sim run" leaves it behind and as the
regression folder of the repository holds them, and tells what happens. The exit code
is 1 if a rule is violated, 0 if none is. A schedule that was kept for a planted bug
shows it in a build with planted bugs (go run -tags mutants ./cmd/flotilla sim replay
FILE); in any other build it has to pass.`,
		Example: "  flotilla sim replay internal/sim/regress/0001.json",
		Args:    arguments("FILE"),
		RunE: func(cmd *cobra.Command, args []string) error {
			file, err := sim.ReadFile(args[0])
			if err != nil {
				return failure(exitUsage, err, "", "cannot read the schedule: %v", err)
			}
			if file.Mutant != "" && a.planted == "" {
				if plantForReplay(file.Mutant) {
					a.note("planted bug %s is switched on: the schedule was kept for it, and has to violate %s", file.Mutant, file.Oracle)
				} else {
					a.note("kept for planted bug %s, which this build does not have: no rule may be violated", file.Mutant)
				}
			}
			if file.Note != "" {
				a.note("%s", file.Note)
			}
			o := outcomeT0(sim.Run(sim.Options{Schedule: &file.Schedule}), f.tail)
			if o.Replay != "" {
				o.Replay = "flotilla sim replay " + args[0]
			}
			return a.simTell(&f, o, true)
		},
		ValidArgsFunction: func(*cobra.Command, []string, string) ([]string, cobra.ShellCompDirective) {
			return []string{"json"}, cobra.ShellCompDirectiveFilterFileExt
		},
	}
	cmd.Flags().IntVar(&f.tail, "tail", 40, "how many of the last events are printed for a violation")
	return cmd
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
