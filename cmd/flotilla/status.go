package main

import (
	"context"
	"fmt"
	"slices"
	"strconv"
	"strings"

	"github.com/spf13/cobra"

	"github.com/flotillakv/flotilla"
)

func newCluster(a *app) *cobra.Command {
	return clientFlags(a, group(&cobra.Command{Use: "cluster", Short: "Look at the cluster as a whole"}, &cobra.Command{
		Use:   "status",
		Short: "Print whether the cluster serves, and its nodes",
		Args:  arguments(),
		RunE: func(cmd *cobra.Command, _ []string) error {
			return a.with(cmd.Context(), func(ctx context.Context, c client) error {
				s, err := c.Status(ctx)
				if err != nil {
					return err
				}
				if a.json() {
					return a.printJSON(s)
				}
				_, err = fmt.Fprint(a.out, a.statusText(&s))
				return err
			})
		},
	}))
}

func (a *app) statusText(s *flotilla.ClusterStatus) string {
	up := 0
	for _, n := range s.Nodes {
		if n.State == "up" {
			up++
		}
	}
	code := green
	if s.State != "HEALTHY" {
		code = red
	}
	text := fmt.Sprintf("%s  %d/%d nodes, %d/%d shards have a leader, %d under-replicated\n",
		a.colour(a.outTTY, code, s.State), up, len(s.Nodes), s.ShardsWithLeader, s.Shards, s.UnderReplicated)
	if s.Note != "" {
		text += "  " + s.Note + "\n"
	}
	for _, w := range s.Warnings {
		text += "  " + w + "\n"
	}
	return text + nodesText(s.Nodes)
}

func newNode(a *app) *cobra.Command {
	return clientFlags(a, group(&cobra.Command{Use: "node", Short: "Look at the nodes, and take one out"}, newNodeRemove(a), &cobra.Command{
		Use:   "list",
		Short: "Print the nodes of the cluster",
		Args:  arguments(),
		RunE: func(cmd *cobra.Command, _ []string) error {
			return a.with(cmd.Context(), func(ctx context.Context, c client) error {
				nodes, err := c.Nodes(ctx)
				if err != nil {
					return err
				}
				if a.json() {
					return printList(a, nodes)
				}
				_, err = fmt.Fprint(a.out, nodesText(nodes))
				return err
			})
		},
	}))
}

func nodesText(nodes []flotilla.NodeInfo) string {
	t := newTable("LEADERS REPLICAS DISK LOG LAG FSYNC", "NODE", "ADDRESS", "CLIENTS", "STATE", "LEADERS", "REPLICAS", "DISK", "LOG", "LAG", "FSYNC p99", "VERSION")
	for _, n := range nodes {
		row := []string{nodeText(n.ID), dash(n.Addr), dash(n.ClientAddr), n.State, "-", "-", "-", "-", "-", "-", dash(n.Version)}
		if n.State == "up" {
			row[4], row[5] = strconv.Itoa(n.Leaders), strconv.Itoa(n.Replicas)
			row[6], row[7] = diskCell(&n), logCell(&n)
			row[8], row[9] = strconv.FormatUint(n.Lag, 10), fmt.Sprintf("%.1f ms", n.FsyncP99Ms)
		}
		t.add(row...)
	}
	return t.String()
}

// logCell is what the logs of a node take, of what they may.
func logCell(n *flotilla.NodeInfo) string {
	if n.LogLimit == 0 {
		return bytesText(n.LogBytes)
	}
	return bytesText(n.LogBytes) + " of " + bytesText(n.LogLimit)
}

// diskCell is what a node's store takes, and how its disk is unless that is well.
func diskCell(n *flotilla.NodeInfo) string {
	text := bytesText(n.DiskBytes)
	if n.DiskState != "" && n.DiskState != "ok" {
		text += " " + n.DiskState
	}
	if n.DiskStalled {
		text += " stalled"
	}
	return text
}

func nodeText(id uint32) string {
	if id == 0 {
		return "-"
	}
	return "n" + strconv.FormatUint(uint64(id), 10)
}

func dash(s string) string {
	if s == "" {
		return "-"
	}
	return s
}

func newShard(a *app) *cobra.Command {
	from, limit := "", 1000
	list := &cobra.Command{
		Use:   "list",
		Short: "Print the shards, their ranges and where they are",
		Args:  arguments(),
		RunE: func(cmd *cobra.Command, _ []string) error {
			if limit < 1 || limit > flotilla.MaxShards {
				return usageError("--limit %d: must lie between 1 and %d", limit, flotilla.MaxShards)
			}
			var start []byte
			if cmd.Flags().Changed("from") {
				start = []byte(from)
			}
			return a.with(cmd.Context(), func(ctx context.Context, c client) error {
				shards, next, err := listShards(ctx, c, start, limit)
				if err != nil {
					return err
				}
				if next != nil {
					a.note("there are more: flotilla shard list --from %q", next)
				}
				slices.SortFunc(shards, func(x, y flotilla.ShardInfo) int { return int(int64(x.ID) - int64(y.ID)) })
				if a.json() {
					return printList(a, shards)
				}
				_, err = fmt.Fprint(a.out, shardsText(shards))
				return err
			})
		},
	}
	list.Flags().StringVar(&from, "from", "", "key to begin with: that of the first shard to print; not given: all, the catalog's own first")
	list.Flags().IntVar(&limit, "limit", limit, "most shards to print")
	show := &cobra.Command{
		Use:   "show ID",
		Short: "Print one shard and its replicas",
		Args:  arguments("ID"),
		RunE: func(cmd *cobra.Command, args []string) error {
			id, err := shardArg(args[0])
			if err != nil {
				return err
			}
			return a.with(cmd.Context(), func(ctx context.Context, c client) error {
				s, err := findShard(ctx, c, id)
				if err != nil {
					return err
				}
				if a.json() {
					return a.printJSON(s)
				}
				_, err = fmt.Fprint(a.out, shardText(&s))
				return err
			})
		},
	}
	return clientFlags(a, group(&cobra.Command{Use: "shard", Short: "Look at the shards, and say where they are"}, list, show, newShardReplicas(a), newShardTransfer(a)))
}

// listShards asks for shards page by page, and returns where those begin that limit left out.
func listShards(ctx context.Context, c client, from []byte, limit int) (out []flotilla.ShardInfo, next []byte, err error) {
	for {
		page, err := c.ShardsFrom(ctx, from, limit-len(out))
		if err != nil {
			return nil, nil, err
		}
		out = append(out, page...)
		n := len(page)
		if n == 0 || userShard(&page[n-1]) && len(page[n-1].End) == 0 {
			return out, nil, nil
		}
		if from = append([]byte{}, page[n-1].End...); len(out) >= limit {
			return out, from, nil
		}
	}
}

func shardsText(shards []flotilla.ShardInfo) string {
	t := newTable("SHARD TERM LOG DATA LAG", "SHARD", "RANGE", "LEADER", "REPLICAS", "TERM", "LOG", "DATA", "LAG", "STATE")
	for i := range shards {
		s := &shards[i]
		var reps []string
		lag := uint64(0)
		for _, r := range s.Replicas {
			reps = append(reps, nodeText(r.Node))
			lag = max(lag, r.Lag)
		}
		t.add(strconv.FormatUint(s.ID, 10), rangeText(s), nodeText(s.Leader), strings.Join(reps, " "),
			strconv.FormatUint(s.Term, 10), bytesText(s.LogBytes), bytesText(s.DataBytes), strconv.FormatUint(lag, 10), s.State)
	}
	return t.String()
}

// rangeText writes the keys of a shard as a half-open interval. Keyspace 0 holds
// the cluster's own catalog.
func rangeText(s *flotilla.ShardInfo) string {
	if s.Keyspace == 0 {
		return "catalog"
	}
	end := "end"
	if len(s.End) > 0 {
		end = plain(s.End)
	}
	start := "start"
	if len(s.Start) > 0 {
		start = plain(s.Start)
	}
	return "[" + start + ", " + end + ")"
}

func shardText(s *flotilla.ShardInfo) string {
	text := fmt.Sprintf("shard %d  %s  %s, leader %s, term %d\n  log %s, data %s, descriptor version %d, membership version %d\n",
		s.ID, rangeText(s), s.State, nodeText(s.Leader), s.Term, bytesText(s.LogBytes), bytesText(s.DataBytes), s.Version, s.ConfVer)
	t := newTable("APPLIED COMMIT LAST LAG REPLICA", "NODE", "REPLICA", "ROLE", "STATE", "APPLIED", "COMMIT", "LAST", "LAG")
	for _, r := range s.Replicas {
		u := func(x uint64) string { return strconv.FormatUint(x, 10) }
		t.add(nodeText(r.Node), u(uint64(r.Replica)), r.Role, dash(r.State), u(r.Applied), u(r.Commit), u(r.Last), u(r.Lag))
	}
	return text + t.String()
}
