package main

import (
	"context"
	"fmt"
	"log/slog"
	"time"

	"github.com/spf13/cobra"

	"github.com/flotillakv/flotilla"
)

func newServe(a *app) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "serve",
		Short: "Run one node until it is told to stop",
		Long: `serve runs one node. Settings come from flags, the environment and a TOML file; a
flag wins over the environment, that over the file, that over the default. "flotilla
config show --origin" prints where each value comes from.

With only --dir it is a store of one node. A cluster of three forms when three
nodes are started with --bootstrap 3 and the peer addresses of all of them in
--join; a node that joins later gets --join alone. SIGTERM or an interrupt hands
leaderships over and stops; a second one stops at once.`,
		Example: lines(
			"  flotilla serve --dir /var/lib/flotilla",
			"  flotilla serve --dir n1 --listen 127.0.0.1:7101 --client-listen 127.0.0.1:7201 \\",
			"    --bootstrap 3 --join 127.0.0.1:7101,127.0.0.1:7102,127.0.0.1:7103"),
		Args: arguments(),
		RunE: func(cmd *cobra.Command, _ []string) error {
			r, err := resolve(cmd.Flags(), a.env)
			if err != nil {
				return err
			}
			return a.serve(cmd.Context(), r)
		},
	}
	addSettings(cmd.Flags())
	return cmd
}

func (a *app) serve(ctx context.Context, r *resolved) error {
	o, err := r.options()
	if err != nil {
		return err
	}
	fatal := make(chan error, 1)
	o.OnFatal = func(err error) { fatal <- err } // called once
	o.Logger = a.logger(r.Log.Level, r.Log.Format)
	start := time.Now()
	if o.Bootstrap > 1 {
		a.note("starting: a cluster forms as soon as all %d nodes can be reached", o.Bootstrap)
	}
	node, err := flotilla.Open(ctx, o)
	if err != nil {
		if ctx.Err() != nil {
			a.note("stopped before the node was ready")
			return nil
		}
		return err
	}
	if err := a.announce(ctx, node, r, time.Since(start)); err != nil {
		node.Close()
		return err
	}
	select {
	case err := <-fatal:
		node.Close()
		return failure(exitFailed, err, "", "the node stopped itself: %v", err)
	case <-ctx.Done():
	}
	a.note("stopping: handing leaderships over for at most %s; interrupt again to stop at once", r.Limits.Drain)
	drain, cancel := context.WithTimeout(context.Background(), r.Limits.Drain.d)
	defer cancel()
	if err := node.Shutdown(drain); err != nil {
		return fmt.Errorf("closing the node: %w", err)
	}
	a.note("stopped")
	return nil
}

// announce prints the first lines of a node that serves.
func (a *app) announce(ctx context.Context, node *flotilla.Node, r *resolved, took time.Duration) error {
	shards := countShards(ctx, node)
	if a.json() {
		return a.printJSON(map[string]any{"ready": true, "node": node.ID(), "cluster": node.Cluster(), "peers": node.PeerAddr(),
			"clients": node.Addr(), "dir": r.Node.Dir, "shards": shards, "seconds": took.Seconds()})
	}
	var text string
	row := func(name, value string) {
		if value != "" {
			text += fmt.Sprintf("  %-8s %s\n", name, value)
		}
	}
	row("peers", node.PeerAddr())
	row("clients", node.Addr())
	row("data", r.Node.Dir)
	_, err := fmt.Fprintf(a.out, "%s   node %s   cluster %s\n%sready in %.2fs: %d shards\n",
		readBuild(), nodeText(node.ID()), node.Cluster(), text, took.Seconds(), shards)
	return err
}

// countShards returns the number of shards that hold records, or 0 if that is not known at
// once. They are counted, not listed: there may be a million.
func countShards(ctx context.Context, node *flotilla.Node) int {
	ctx, cancel := context.WithTimeout(ctx, time.Second)
	defer cancel()
	s, err := node.Status(ctx)
	if err != nil {
		return 0
	}
	return max(s.Shards-1, 0) // the catalog's own
}

// logger returns the logger of a node: standard error, as text for a person or
// JSON for a program.
func (a *app) logger(level, format string) *slog.Logger {
	var l slog.Level
	if l.UnmarshalText([]byte(level)) != nil { // settings.check has refused other words
		l = slog.LevelInfo
	}
	o := &slog.HandlerOptions{Level: l}
	if format == "json" || format == "auto" && !a.errTTY {
		return slog.New(slog.NewJSONHandler(a.errOut, o))
	}
	return slog.New(slog.NewTextHandler(a.errOut, o))
}
