package main

import (
	"fmt"
	"slices"
	"strings"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
)

// distance is the number of letters to insert, delete, replace or swap with
// their neighbour to turn a into b.
func distance(a, b string) int {
	s, t := []rune(a), []rune(b)
	before, prev, cur := make([]int, len(t)+1), make([]int, len(t)+1), make([]int, len(t)+1)
	for j := range prev {
		prev[j] = j
	}
	for i := 1; i <= len(s); i++ {
		cur[0] = i
		for j := 1; j <= len(t); j++ {
			cost := 1
			if s[i-1] == t[j-1] {
				cost = 0
			}
			cur[j] = min(prev[j]+1, cur[j-1]+1, prev[j-1]+cost)
			if i > 1 && j > 1 && s[i-1] == t[j-2] && s[i-2] == t[j-1] {
				cur[j] = min(cur[j], before[j-2]+1)
			}
		}
		before, prev, cur = prev, cur, before
	}
	return prev[len(t)]
}

// nearest returns the candidate a person most likely meant, or "".
func nearest(got string, candidates []string) string {
	best, limit := "", len(got)/3+1
	for _, c := range candidates {
		switch d := distance(strings.ToLower(got), strings.ToLower(c)); {
		case d <= limit:
			best, limit = c, d-1
		case best == "" && len(got) >= 3 && strings.HasPrefix(c, got):
			best = c
		}
	}
	return best
}

func didYouMean(got string, candidates []string) string {
	if n := nearest(got, candidates); n != "" {
		return fmt.Sprintf("; did you mean %q?", n)
	}
	return ""
}

// flagError turns what pflag says about a command line into one sentence.
func flagError(cmd *cobra.Command, err error) error {
	text := err.Error()
	name, ok := strings.CutPrefix(text, "unknown flag: --")
	if !ok {
		return usageError("%s: %s; see %s --help", cmd.CommandPath(), text, cmd.CommandPath())
	}
	var names []string
	cmd.Flags().VisitAll(func(f *pflag.Flag) { names = append(names, "--"+f.Name) })
	return usageError("unknown flag --%s for %q%s; see %s --help", name, cmd.CommandPath(),
		didYouMean("--"+name, names), cmd.CommandPath())
}

// group makes a command that only holds others: without one of them, or with
// an unknown one, it says what there is.
func group(cmd *cobra.Command, children ...*cobra.Command) *cobra.Command {
	cmd.AddCommand(children...)
	cmd.Args = cobra.ArbitraryArgs
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		var names []string
		for _, c := range cmd.Commands() {
			if c.IsAvailableCommand() {
				names = append(names, c.Name())
			}
		}
		slices.Sort(names)
		if len(args) == 0 {
			return usageError("%s needs one of its commands: %s; see %s --help", cmd.CommandPath(), strings.Join(names, ", "), cmd.CommandPath())
		}
		return usageError("unknown command %q for %q%s; it has %s", args[0], cmd.CommandPath(), didYouMean(args[0], names), strings.Join(names, ", "))
	}
	return cmd
}

// arguments checks the number of arguments of a command against their names in
// its usage line.
func arguments(names ...string) cobra.PositionalArgs {
	return func(cmd *cobra.Command, args []string) error {
		if len(args) == len(names) {
			return nil
		}
		want := "takes no argument"
		if len(names) > 0 {
			want = "takes " + strings.Join(names, " and ")
		}
		return usageError("%s %s, and %d were given; see %s --help", cmd.CommandPath(), want, len(args), cmd.CommandPath())
	}
}
