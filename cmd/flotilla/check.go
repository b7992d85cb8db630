package main

import (
	"errors"
	"fmt"
	"time"

	"github.com/spf13/cobra"

	"github.com/flotillakv/flotilla"
)

func newCheck(a *app) *cobra.Command {
	var dir string
	var digest bool
	cmd := &cobra.Command{
		Use:   "check DIR",
		Short: "Look for damage in the directory of a stopped node",
		Long: `check reads everything in the directory of a stopped node and reports all that is
wrong: checksums of every block of every file, the write-ahead log, the Raft logs, what
the replicas have promised and applied, ranges, sessions and records. It changes
nothing, and refuses a directory that is in use.

--digest also prints a digest of each shard's applied data. Replicas of a shard on
several stopped nodes that have applied the same index must have the same one.

It ends with exit code 0 if nothing is wrong, 1 if something is, and 2 if there is
no store to look at.`,
		Example: lines(
			"  flotilla check /var/lib/flotilla",
			"  flotilla check --dir /var/lib/flotilla --digest -o json"),
		Args: func(_ *cobra.Command, args []string) error {
			if len(args) > 1 || len(args) == 1 && dir != "" {
				return usageError("one directory is checked at a time: flotilla check DIR")
			}
			return nil
		},
		RunE: func(cmd *cobra.Command, args []string) error {
			if len(args) == 1 {
				dir = args[0]
			}
			if dir == "" {
				return usageError("which directory? flotilla check DIR")
			}
			return a.check(cmd, dir, digest)
		},
	}
	cmd.Flags().StringVar(&dir, "dir", "", "the directory of the stopped node; the same as the argument")
	cmd.Flags().BoolVar(&digest, "digest", false, "also print a digest of the applied data of each shard")
	return cmd
}

func (a *app) check(cmd *cobra.Command, dir string, digest bool) error {
	r, err := flotilla.CheckDir(cmd.Context(), dir, flotilla.CheckOptions{Digest: digest})
	var open *flotilla.OpenError
	if errors.As(err, &open) {
		cause := open.Reason.String()
		if open.Err != nil {
			cause = open.Err.Error()
		}
		return failure(exitUsage, err, open.Hint, "nothing was checked in %s: %s", dir, cause)
	}
	if err != nil {
		return err
	}
	if a.json() {
		if err := a.printJSON(r); err != nil {
			return err
		}
	} else if err := a.printCheck(r, digest); err != nil {
		return err
	}
	if n := len(r.Faults) + r.More; n > 0 {
		e := failure(exitFailed, nil, "", "%s", countedFaults(n))
		e.shown = true // the first line says it
		return e
	}
	return nil
}

func countedFaults(n int) string {
	if n == 1 {
		return "1 fault"
	}
	return countText(int64(n)) + " faults"
}

// printCheck prints a report for a person: the verdict first.
func (a *app) printCheck(r *flotilla.CheckReport, digest bool) error {
	verdict := a.colour(a.outTTY, green, "SOUND") + "  nothing is wrong"
	if n := len(r.Faults) + r.More; n > 0 {
		verdict = a.colour(a.outTTY, red, "DAMAGED") + "  " + countedFaults(n)
	}
	fmt.Fprintf(a.out, "%s in %s (n%d)\n", verdict, r.Dir, r.Node)
	t := newTable("SHARDS ENTRIES UNAPPLIED KEYS TABLES CHECKED TOOK", "SHARDS", "ENTRIES", "UNAPPLIED", "KEYS", "TABLES", "CHECKED", "TOOK")
	t.add(countText(int64(r.Shards)), countText(int64(r.Entries)), countText(int64(r.Unapplied)), countText(int64(r.Keys)), countText(int64(r.Tables)), bytesText(r.Bytes), secondsText(time.Duration(r.Nanos)))
	fmt.Fprint(a.out, t.String())
	for _, f := range r.Faults {
		fmt.Fprintf(a.out, "%s %s\n       next: %s\n", a.colour(a.outTTY, red, "fault"), f, f.Next)
	}
	if r.More > 0 {
		fmt.Fprintf(a.out, "and %s more\n", countText(int64(r.More)))
	}
	if r.Unapplied > 0 {
		fmt.Fprintf(a.out, "note  %s entries are in logs and not in tables yet; the node applies what is committed of them as it starts\n", countText(int64(r.Unapplied)))
	}
	for _, n := range r.Notes {
		fmt.Fprintf(a.out, "note  %s\n", n)
	}
	if digest {
		t := newTable("SHARD APPLIED LAST KEYS", "SHARD", "APPLIED", "LAST", "KEYS", "RANGE", "DIGEST")
		for _, d := range r.Digests {
			t.add(fmt.Sprint(d.Shard), fmt.Sprint(uint64(d.Applied)), fmt.Sprint(uint64(d.Last)), countText(int64(d.Keys)), rangeText(&flotilla.ShardInfo{Keyspace: d.Keyspace, Start: d.Start, End: d.End}), d.Digest)
		}
		fmt.Fprint(a.out, t.String())
	}
	return nil
}
