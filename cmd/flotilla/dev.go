package main

import (
	"context"
	"fmt"
	"os"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/flotillakv/flotilla/internal/localcluster"
)

// stopTimeout bounds how long a local cluster hands leaderships over before it closes.
const stopTimeout = 5 * time.Second

func newDev(a *app) *cobra.Command {
	var nodes, shards int
	var dir, client, splitAt, level string
	cmd := &cobra.Command{
		Use:   "dev",
		Short: "Run a cluster on this machine until it is told to stop",
		Long: `dev runs a cluster of several nodes in this process, with real sockets and real
files, until SIGTERM or an interrupt. It prints a line that begins with "ready"
once it serves.`,
		Example: lines("  flotilla dev --dir ./data", "  flotilla dev --nodes 3 --dir ./data --client 127.0.0.1:7002 --shards 48"),
		Args:    arguments(),
		RunE: func(cmd *cobra.Command, _ []string) error {
			splits, err := readSplits(splitAt)
			if err != nil {
				return err
			}
			if splits != nil {
				if cmd.Flags().Changed("shards") {
					return usageError("--shards cannot stand with --split-at: the file says how many shards there are")
				}
				shards = 0
			}
			if dir == "" {
				if dir, err = os.MkdirTemp("", "flotilla-dev-"); err != nil {
					return failure(exitFailed, err, "--dir", "cannot make a temporary directory: %v", err)
				}
				defer os.RemoveAll(dir)
				a.note("data in %s, removed at the end; --dir keeps it", dir)
			}
			return a.dev(cmd.Context(), localcluster.Options{
				Nodes: nodes, Dir: dir, Shards: shards, SplitAt: splits, ClientListen: client, Logger: a.logger(level, "auto"),
			})
		},
	}
	f := cmd.Flags()
	f.IntVar(&nodes, "nodes", 3, "number of nodes")
	f.StringVar(&dir, "dir", "", "directory of the data; empty: a temporary one")
	f.StringVar(&client, "client", defaultAddr, "client address of the first node; the others take the following ports")
	f.IntVar(&shards, "shards", 16, "shards of a new cluster, of equal width")
	f.StringVar(&splitAt, "split-at", "", "file with the boundaries of a new cluster's shards, one key per line, ascending")
	f.StringVar(&level, "log-level", "warn", "debug, info, warn or error")
	return cmd
}

func (a *app) dev(ctx context.Context, o localcluster.Options) error {
	start := time.Now()
	c, err := localcluster.Start(ctx, o)
	if err != nil {
		if ctx.Err() != nil {
			return nil
		}
		return err
	}
	addrs, took := c.ClientAddrs(), time.Since(start)
	shards := countShards(ctx, c.Node(0))
	if a.json() {
		err = a.printJSON(map[string]any{"ready": true, "seconds": took.Seconds(), "nodes": len(addrs), "clients": addrs, "dir": o.Dir, "shards": shards})
	} else {
		_, err = fmt.Fprintf(a.out, "ready in %.2fs: %d nodes, %d shards, clients at %s, data in %s\n",
			took.Seconds(), len(addrs), shards, strings.Join(addrs, ","), o.Dir)
		a.note("try: flotilla kv put user/1 ada --addr %s", addrs[0])
	}
	if err == nil {
		<-ctx.Done()
		a.note("stopping")
	}
	stop, cancel := context.WithTimeout(context.Background(), stopTimeout)
	defer cancel()
	if stopErr := c.Stop(stop); err == nil {
		err = stopErr
	}
	return err
}
