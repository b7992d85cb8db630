package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strconv"
	"strings"

	"github.com/spf13/cobra"

	"github.com/flotillakv/flotilla"
	"github.com/flotillakv/flotilla/multiraft/raft"
)

func newKV(a *app) *cobra.Command {
	return clientFlags(a, group(&cobra.Command{
		Use:   "kv",
		Short: "Read and write records",
		Long: `kv reads and writes records. Keys and values are bytes, taken from the command
line as they are. With -o json and jsonl they are printed in base64, and versions
as three numbers joined by dots.`,
	}, newGet(a), newPut(a), newDel(a), newCAS(a), newScan(a), newImport(a), newExport(a)))
}

// versionText writes a version as three numbers; "0" means absent.
func versionText(v flotilla.Version) string {
	if v.IsZero() {
		return "0"
	}
	return fmt.Sprintf("%d.%d.%d", v.Lineage, v.Index, v.Slot)
}

func parseVersion(s string) (flotilla.Version, error) {
	bad := usageError("version %q is not three numbers joined by dots, as get -o json prints them", s)
	if s == "0" {
		return flotilla.Version{}, nil
	}
	parts := strings.Split(s, ".")
	if len(parts) != 3 {
		return flotilla.Version{}, bad
	}
	lineage, err1 := strconv.ParseUint(parts[0], 10, 64)
	index, err2 := strconv.ParseUint(parts[1], 10, 64)
	slot, err3 := strconv.ParseUint(parts[2], 10, 32)
	if errors.Join(err1, err2, err3) != nil {
		return flotilla.Version{}, bad
	}
	return flotilla.Version{Lineage: raft.ShardID(lineage), Index: raft.Index(index), Slot: uint32(slot)}, nil
}

// consistencies are the words for how a read is served.
var consistencies = []struct {
	name   string
	option flotilla.ReadOption
}{
	{"linearizable", flotilla.Linearizable()}, {"no-clock", flotilla.NoClock()}, {"follower", flotilla.Follower()}, {"local", flotilla.Local()},
}

// consistencyFlag gives a command that reads the flag --consistency.
func consistencyFlag(cmd *cobra.Command) *string {
	return cmd.Flags().String("consistency", "linearizable", "linearizable; no-clock: the same without reliance on clocks; follower: the same, by the nearest replica; local: what the nearest replica has, however old, without a quorum")
}

func readOption(name string) (flotilla.ReadOption, error) {
	var names []string
	for _, c := range consistencies {
		if c.name == name {
			return c.option, nil
		}
		names = append(names, c.name)
	}
	return nil, usageError("--consistency %q does not exist: choose one of %s%s", name, strings.Join(names, ", "), didYouMean(name, names))
}

func newGet(a *app) *cobra.Command {
	var how *string
	cmd := &cobra.Command{
		Use:   "get KEY",
		Short: "Print the value of a key, as it is",
		Long: `get prints the value of a key, byte for byte; on a terminal a line feed follows.
If the key is absent it says so on standard error and exits with 3.`,
		Args: arguments("KEY"),
		RunE: func(cmd *cobra.Command, args []string) error {
			read, err := readOption(*how)
			if err != nil {
				return err
			}
			return a.with(cmd.Context(), func(ctx context.Context, c client) error {
				key := []byte(args[0])
				v, err := c.Get(ctx, key, read)
				if errors.Is(err, flotilla.ErrNotFound) {
					return failure(exitNotFound, err, "", "key %s is absent", shortKey(key))
				}
				if err != nil {
					return err
				}
				if a.json() {
					return a.printJSON(jsonRecord{key, nonNil(v.Bytes), versionText(v.Version)})
				}
				if a.outTTY {
					v.Bytes = append(v.Bytes, '\n')
				}
				_, err = a.out.Write(v.Bytes)
				return outputError(err)
			})
		},
	}
	how = consistencyFlag(cmd)
	return cmd
}

func newPut(a *app) *cobra.Command {
	var from string
	cmd := &cobra.Command{
		Use:   "put KEY VALUE",
		Short: "Store a value under a key",
		Long: `put stores a value under a key and returns when a majority of the shard's nodes
has it on disk. --from takes the value from a file, or from standard input ("-").`,
		Example: lines("  flotilla kv put user/1 ada", "  flotilla kv put user/1/picture --from picture.png"),
		Args: func(cmd *cobra.Command, args []string) error {
			if cmd.Flags().Changed("from") {
				return arguments("KEY")(cmd, args)
			}
			return arguments("KEY", "VALUE")(cmd, args)
		},
		RunE: func(cmd *cobra.Command, args []string) error {
			value, err := a.valueArg(args, 1, from)
			if err != nil {
				return err
			}
			return a.with(cmd.Context(), func(ctx context.Context, c client) error {
				r, err := c.Put(ctx, []byte(args[0]), value)
				return a.receipt(r, err, args[0])
			})
		},
	}
	cmd.Flags().StringVar(&from, "from", "", "file with the value, or - for standard input")
	return cmd
}

// valueArg returns argument i, or the contents of the file given by --from.
func (a *app) valueArg(args []string, i int, from string) ([]byte, error) {
	if from == "" {
		return []byte(args[i]), nil
	}
	in := a.in
	if from != "-" {
		f, err := os.Open(from)
		if err != nil {
			return nil, failure(exitUsage, err, "", "cannot read the value: %v", err)
		}
		defer f.Close()
		in = f
	}
	// One byte more than allowed, so that the limit is refused and named where
	// all limits are.
	b, err := io.ReadAll(io.LimitReader(in, flotilla.MaxValueBytes+1))
	if err != nil {
		return nil, failure(exitUsage, err, "", "cannot read the value from %s: %v", from, err)
	}
	return b, nil
}

// receipt reports the result of a write.
func (a *app) receipt(r flotilla.Receipt, err error, key string) error {
	if errors.Is(err, flotilla.ErrAmbiguous) {
		_, text, _ := describe(err)
		return failure(exitUnknown, err, "flotilla kv get "+key, "%s", text)
	}
	if err != nil {
		return err
	}
	if a.json() {
		return a.printJSON(map[string]string{"version": versionText(r.Version)})
	}
	a.note("ok")
	return nil
}

func newDel(a *app) *cobra.Command {
	return &cobra.Command{
		Use:   "del KEY",
		Short: "Remove a key; removing an absent key is no error",
		Args:  arguments("KEY"),
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.with(cmd.Context(), func(ctx context.Context, c client) error {
				r, err := c.Delete(ctx, []byte(args[0]))
				return a.receipt(r, err, args[0])
			})
		},
	}
}

func newCAS(a *app) *cobra.Command {
	var expect, from string
	var absent bool
	cmd := &cobra.Command{
		Use:   "cas KEY VALUE (--expect-version V | --absent)",
		Short: "Store a value if the key has not changed since it was read",
		Long: `cas stores a value only if the key still has the version that get -o json printed,
or with --absent only if the key does not exist. Otherwise nothing is changed and
the exit code is 5.`,
		Example: lines("  flotilla kv cas user/1 ada --absent", "  flotilla kv cas user/1 grace --expect-version 2.17.0"),
		Args: func(cmd *cobra.Command, args []string) error {
			if cmd.Flags().Changed("from") {
				return arguments("KEY")(cmd, args)
			}
			return arguments("KEY", "VALUE")(cmd, args)
		},
		RunE: func(cmd *cobra.Command, args []string) error {
			if absent == cmd.Flags().Changed("expect-version") {
				return usageError("cas needs either --expect-version or --absent, and not both")
			}
			want, err := parseVersion(expect)
			if err != nil {
				return err
			}
			value, err := a.valueArg(args, 1, from)
			if err != nil {
				return err
			}
			return a.with(cmd.Context(), func(ctx context.Context, c client) error {
				r, err := c.CAS(ctx, []byte(args[0]), want, value)
				return a.receipt(r, err, args[0])
			})
		},
	}
	cmd.Flags().StringVar(&expect, "expect-version", "0", "version the key must have")
	cmd.Flags().BoolVar(&absent, "absent", false, "the key must not exist")
	cmd.Flags().StringVar(&from, "from", "", "file with the value, or - for standard input")
	return cmd
}

func newScan(a *app) *cobra.Command {
	var start, end, prefix string
	var limit int
	var reverse bool
	var how *string
	cmd := &cobra.Command{
		Use:   "scan",
		Short: "Print the records of a range of keys, in order",
		Long: `scan prints the records with keys from --start (included) to --end (not included),
one per line: key, tab, value, each quoted if it does not print as it is.`,
		Example: lines("  flotilla kv scan --prefix user/", "  flotilla kv scan --start a --end b --limit 10 -o jsonl"),
		Args:    arguments(),
		RunE: func(cmd *cobra.Command, _ []string) error {
			r := flotilla.Range{Start: []byte(start), End: []byte(end), Limit: limit, Reverse: reverse}
			if limit < 0 {
				return usageError("--limit %d: must not be negative; 0 means no limit", limit)
			}
			if prefix != "" {
				if start != "" || end != "" {
					return usageError("--prefix cannot stand with --start or --end: it sets both")
				}
				p := flotilla.Prefix([]byte(prefix))
				r.Start, r.End = p.Start, p.End
			}
			read, err := readOption(*how)
			if err != nil {
				return err
			}
			c, err := a.connect(cmd.Context())
			if err != nil {
				return err
			}
			defer c.Close()
			return a.scan(cmd.Context(), c, r, read)
		},
	}
	f := cmd.Flags()
	f.StringVar(&start, "start", "", "first key")
	f.StringVar(&end, "end", "", "key to stop before")
	f.StringVar(&prefix, "prefix", "", "only keys that begin with this")
	f.IntVar(&limit, "limit", 0, "print at most this many; 0 means all")
	f.BoolVar(&reverse, "reverse", false, "from the last key to the first")
	how = consistencyFlag(cmd)
	return cmd
}

func (a *app) scan(ctx context.Context, c client, r flotilla.Range, read ...flotilla.ReadOption) error {
	w := bufio.NewWriter(a.out)
	shown := *a
	shown.out = w
	n := 0
	err := a.scanAll(ctx, c, r, read, 0, func(p flotilla.Pair) error {
		n++
		switch a.output {
		case "json":
			if n == 1 {
				fmt.Fprint(w, "[")
			} else {
				fmt.Fprint(w, ",")
			}
			fallthrough
		case "jsonl":
			return shown.printJSON(jsonRecord{p.Key, nonNil(p.Value), versionText(p.Version)})
		}
		_, err := fmt.Fprintf(w, "%s\t%s\n", plain(p.Key), plain(p.Value))
		return outputError(err)
	})
	if a.output == "json" && err == nil {
		if n == 0 {
			fmt.Fprint(w, "[")
		}
		fmt.Fprintln(w, "]")
	}
	if flushErr := outputError(w.Flush()); err == nil {
		err = flushErr
	}
	if err == nil && !a.json() {
		a.note("%s records", countText(int64(n)))
	}
	return err
}
