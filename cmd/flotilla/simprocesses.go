package main

import (
	"context"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/flotillakv/flotilla/internal/nemesis"
)

func newSimProcesses(a *app) *cobra.Command {
	o := nemesis.Options{}
	verbose, keep := false, false
	cmd := &cobra.Command{
		Use:   "processes",
		Short: "Run real server processes under faults and check what clients saw",
		Long: `processes starts server processes on this machine, with real directories and real
fsync, and torments them for --duration: it kills, pauses, stops and restarts them,
and cuts, resets, delays and throttles the connections between them and to their
clients, and moves leaderships and replicas. Meanwhile clients read, write, swap,
delete, scan, and commit batches and transactions, some of them in sessions.

It works in rounds. Each ends with everything mended; then every node has to be
ready, every shard to have a leader, every key to be readable through every node,
and all replicas to be equal, each within a bounded time. The histories of all
clients must have one order that explains all they saw, and a write that was
refused must not have taken effect. One line is printed per round.

The first violation ends the run with exit code 1: it prints what is wrong, the
command that repeats the round, and the directory with the history and the nodes'
logs. The seed fixes the faults and their order, not what the machine makes of them:
a round may have to be repeated a few times.

With --netns each process has a network namespace of its own. Packets between them
pass through this process, which loses, doubles, delays and reorders them. It needs
root, and leaves nothing behind.

Faults (loss, loss-link and duplicate with --netns): ` + wrapList(nemesis.Kinds(), 78) + `.`,
		Example: lines(
			"  flotilla sim processes --duration 5m",
			"  flotilla sim processes --seed 42 --nodes 5 --rounds 1 --verbose",
			"  flotilla sim processes --faults kill-leader,one-way --duration 1h -o jsonl"),
		Args: arguments(),
		RunE: func(cmd *cobra.Command, _ []string) error {
			if o.Rounds > 0 && !cmd.Flags().Changed("duration") {
				o.Duration = time.Duration(o.Rounds) * time.Hour
			}
			return a.simProcesses(cmd.Context(), o, verbose, keep)
		},
	}
	f := cmd.Flags()
	f.DurationVar(&o.Duration, "duration", time.Minute, "how long to go on")
	f.Uint64Var(&o.Seed, "seed", 1, "seed of the first round; each round has the next")
	f.IntVar(&o.Nodes, "nodes", 3, "number of server processes, 3 to 7")
	f.IntVar(&o.Shards, "shards", 6, "number of shards")
	f.IntVar(&o.Rounds, "rounds", 0, "number of rounds; 0: as many as fit into --duration")
	f.DurationVar(&o.Storm, "round", 30*time.Second, "how long clients and faults work in each round, 1s to 5m")
	f.IntVar(&o.Rate, "rate", 200, "operations per second, over all clients")
	f.StringSliceVar(&o.Faults, "faults", nil, "kinds of faults to choose from; empty: all")
	f.BoolVar(&o.Netns, "netns", false, "give each process a network namespace, and lose, double and delay packets (Linux, root)")
	f.StringVar(&o.Dir, "dir", "", "new directory for data, logs and histories; empty: a temporary one, removed if all is well")
	f.BoolVar(&keep, "keep", false, "keep the temporary directory")
	f.BoolVarP(&verbose, "verbose", "v", false, "print every fault")
	_ = cmd.RegisterFlagCompletionFunc("faults", cobra.FixedCompletions(nemesis.Kinds(), cobra.ShellCompDirectiveNoFileComp))
	return cmd
}

func (a *app) simProcesses(ctx context.Context, o nemesis.Options, verbose, keep bool) (err error) {
	if o.Binary, err = os.Executable(); err != nil {
		return failure(exitFailed, err, "", "cannot find this program's own file: %v", err)
	}
	if a.planted != "" {
		o.ServeArgs = []string{"--plant", a.planted}
	}
	temporary := o.Dir == ""
	if temporary {
		o.Dir = filepath.Join(os.TempDir(), "flotilla-nemesis-new") // for Validate; made below
	}
	if err := o.Validate(); err != nil {
		return usageError("%s", strings.TrimPrefix(err.Error(), "nemesis: "))
	}
	if temporary {
		if o.Dir, err = os.MkdirTemp("", "flotilla-nemesis-"); err != nil {
			return failure(exitFailed, err, "--dir", "cannot make a temporary directory: %v", err)
		}
	}
	if verbose {
		o.OnEvent = func(s string) { a.note("%s", s) }
	}
	o.OnRound = func(r nemesis.Round) {
		if a.json() {
			a.printJSON(r)
			return
		}
		fmt.Fprintln(a.out, a.roundText(&r))
	}
	if !a.json() {
		limit := o.Duration.String()
		if o.Rounds > 0 {
			limit = fmt.Sprintf("%d rounds", o.Rounds)
		}
		fmt.Fprintf(a.out, "flotilla sim processes   %d nodes, %d shards, seed %d, %s, data in %s\n", o.Nodes, o.Shards, o.Seed, limit, o.Dir)
	}
	sum, err := nemesis.Run(ctx, o)
	if temporary && !keep && err == nil && len(sum.Violations) == 0 {
		os.RemoveAll(o.Dir)
	}
	if err != nil {
		return failure(exitFailed, err, "", "%s; what was written lies in %s", strings.TrimPrefix(err.Error(), "nemesis: "), o.Dir)
	}
	if a.json() {
		if err := a.printJSON(sum); err != nil {
			return err
		}
	} else {
		a.printSummary(&sum)
	}
	if len(sum.Violations) > 0 {
		seed := sum.Seed + uint64(max(sum.Rounds-1, 0))
		try := fmt.Sprintf("flotilla sim processes --seed %d --rounds 1 --nodes %d --shards %d --round %s --rate %d", seed, o.Nodes, o.Shards, o.Storm, o.Rate)
		if len(o.Faults) > 0 {
			try += " --faults " + strings.Join(o.Faults, ",")
		}
		if o.Netns {
			try += " --netns"
		}
		if a.planted != "" {
			try += " --plant " + a.planted
		}
		return failure(exitFailed, nil, try, "%d violations; histories and logs in %s", len(sum.Violations), sum.Artifacts)
	}
	return nil
}

// roundText is the line of a round.
func (a *app) roundText(r *nemesis.Round) string {
	word := a.colour(a.outTTY, green, "ok  ")
	if len(r.Violations) > 0 {
		word = a.colour(a.outTTY, red, "FAIL")
	}
	text := fmt.Sprintf("%s %4d  seed %-6d %5.1fs  %2d faults, whole again after %4.1fs  %5s ops: %s read, %s written, %s unheld, %s unknown, %s refused  %d histories in order",
		word, r.Number, r.Seed, r.Seconds, r.FaultCount(), r.HealSeconds, countText(int64(r.Operations)), countText(int64(r.Reads)), countText(int64(r.Writes)),
		countText(int64(r.Unheld)), countText(int64(r.Ambiguous)), countText(int64(r.Refused)), r.Histories)
	if f := faultsText(r.Faults); f != "" {
		text += "  " + f
	}
	return text
}

func (a *app) printSummary(s *nemesis.Summary) {
	for _, v := range s.Violations {
		fmt.Fprintf(a.out, "%s %s\n", a.colour(a.outTTY, red, "violation"), v)
	}
	state := "no violation"
	if len(s.Violations) > 0 {
		state = fmt.Sprintf("%d violations", len(s.Violations))
	}
	if s.Interrupted {
		state += ", interrupted"
	}
	fmt.Fprintf(a.out, "%s in %s: %d rounds, %s faults, %s process starts\n", a.colour(a.outTTY, bold, state), time.Duration(s.Seconds*1e9).Round(time.Second),
		s.Rounds, countText(int64(s.FaultCount())), countText(int64(s.Starts)))
	fmt.Fprintf(a.out, "  %s operations: %s read, %s written, %s conditions unheld, %s of unknown outcome, %s refused\n", countText(int64(s.Operations)),
		countText(int64(s.Reads)), countText(int64(s.Writes)), countText(int64(s.Unheld)), countText(int64(s.Ambiguous)), countText(int64(s.Refused)))
	fmt.Fprintf(a.out, "  %s histories in order, %s keys of earlier rounds read again\n", countText(int64(s.Histories)), countText(int64(s.Reread)))
	if f := faultsText(s.Faults); f != "" {
		fmt.Fprintf(a.out, "  faults: %s\n", f)
	}
}

// faultsText lists kinds of faults with their numbers.
func faultsText(m map[string]int) string {
	var parts []string
	for _, k := range slices.Sorted(maps.Keys(m)) {
		parts = append(parts, fmt.Sprintf("%s %d", k, m[k]))
	}
	return strings.Join(parts, ", ")
}

// wrapList joins words with commas over several lines.
func wrapList(words []string, width int) string {
	var b strings.Builder
	col := len("Faults (loss, loss-link and duplicate with --netns): ")
	for i, w := range words {
		if i > 0 {
			b.WriteString(",")
			if col+len(w)+2 > width {
				b.WriteString("\n")
				col = 0
			} else {
				b.WriteString(" ")
				col++
			}
		}
		b.WriteString(w)
		col += len(w) + 1
	}
	return b.String()
}
