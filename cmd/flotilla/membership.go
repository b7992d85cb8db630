package main

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/flotillakv/flotilla"
)

// changeTimeout is the default --timeout of commands that move data.
const changeTimeout = 5 * time.Minute

// withPatience is with, with a longer default timeout.
func (a *app) withPatience(cmd *cobra.Command, f func(ctx context.Context, c client) error) error {
	if !cmd.Flags().Changed("timeout") {
		short := a.timeout
		a.timeout = changeTimeout
		defer func() { a.timeout = short }()
	}
	return a.with(cmd.Context(), f)
}

// nodeArg reads a node id: 4 or n4.
func nodeArg(s string) (uint32, error) {
	id, err := strconv.ParseUint(strings.TrimPrefix(s, "n"), 10, 32)
	if err != nil || id == 0 {
		return 0, usageError("node id %q is not a number from 1 up; flotilla node list prints them", s)
	}
	return uint32(id), nil
}

func shardArg(s string) (uint64, error) {
	id, err := strconv.ParseUint(s, 10, 64)
	if err != nil || id == 0 {
		return 0, usageError("shard id %q is not a number from 1 up; flotilla shard list prints them", s)
	}
	return id, nil
}

// changeFlags are the flags that say who shall hold what.
type changeFlags struct {
	add, learner, remove, replace []string
}

// changes translates the flags; destructive reports whether a replica goes.
func (f *changeFlags) changes() (out []flotilla.ReplicaChange, destructive bool, err error) {
	put := func(s, role string) error {
		id, err := nodeArg(s)
		if err == nil {
			out = append(out, flotilla.ReplicaChange{Node: id, Role: role})
		}
		return err
	}
	var errs []error
	for _, s := range f.add {
		errs = append(errs, put(s, flotilla.RoleVoter))
	}
	for _, s := range f.learner {
		errs = append(errs, put(s, flotilla.RoleLearner))
	}
	for _, s := range f.remove {
		destructive = true
		errs = append(errs, put(s, flotilla.RoleNone))
	}
	for _, s := range f.replace {
		destructive = true
		from, to, ok := strings.Cut(s, "=")
		if !ok {
			return nil, false, usageError("--replace %s: must be OLD=NEW, two node ids", s)
		}
		errs = append(errs, put(to, flotilla.RoleVoter), put(from, flotilla.RoleNone))
	}
	for _, err := range errs {
		if err != nil {
			return nil, false, err
		}
	}
	return out, destructive, nil
}

func newShardReplicas(a *app) *cobra.Command {
	var flags changeFlags
	var yes, dry bool
	cmd := &cobra.Command{
		Use:   "replicas SHARD",
		Short: "Print the replicas of a shard, or change which nodes hold them",
		Long: `Without flags, replicas prints who holds the shard. With flags it brings the shard's
replicas to where they say, and returns when they are there. Giving the same command
again does nothing more, or goes on where the first one stopped.

A new replica receives the data first and its vote then; who is replaced keeps its
replica until the new one has caught up. Replicas that are removed are deleted.`,
		Example: lines("  flotilla shard replicas 5", "  flotilla shard replicas 5 --add n4", "  flotilla shard replicas 5 --replace n3=n4 --yes"),
		Args:    arguments("SHARD"),
		RunE: func(cmd *cobra.Command, args []string) error {
			id, err := shardArg(args[0])
			if err != nil {
				return err
			}
			changes, destructive, err := flags.changes()
			if err != nil {
				return err
			}
			return a.withPatience(cmd, func(ctx context.Context, c client) error {
				before, err := findShard(ctx, c, id)
				if err != nil {
					return err
				}
				if len(changes) == 0 {
					if a.json() {
						return a.printJSON(before)
					}
					_, err = fmt.Fprint(a.out, shardText(&before))
					return err
				}
				if dry || destructive && !yes {
					plan := fmt.Sprintf("shard %d, now %s: %s", id, membersText(&before), changesText(changes))
					if !dry {
						return failure(exitUsage, nil, "--yes to carry it out, --dry-run to see it only", "%s; a replica that is removed is deleted", plan)
					}
					_, err := fmt.Fprintln(a.out, plan)
					return err
				}
				began := time.Now()
				after, err := c.ChangeReplicas(ctx, id, changes...)
				if err != nil {
					return err
				}
				if a.json() {
					return a.printJSON(after)
				}
				was := "unchanged"
				if after.ConfVer != before.ConfVer {
					was = fmt.Sprintf("was %s, %.1fs", membersText(&before), time.Since(began).Seconds())
				}
				_, err = fmt.Fprintf(a.out, "shard %d  %s  (%s)\n", id, membersText(&after), was)
				return err
			})
		},
	}
	f := cmd.Flags()
	f.StringSliceVar(&flags.add, "add", nil, "nodes that shall hold a voter")
	f.StringSliceVar(&flags.learner, "learner", nil, "nodes that shall hold a learner, which gets the data and has no vote")
	f.StringSliceVar(&flags.remove, "remove", nil, "nodes that shall hold nothing of the shard")
	f.StringSliceVar(&flags.replace, "replace", nil, "OLD=NEW: node NEW takes the place of node OLD")
	f.BoolVar(&yes, "yes", false, "carry out what deletes replicas")
	f.BoolVar(&dry, "dry-run", false, "print what would be done")
	return cmd
}

func findShard(ctx context.Context, c client, id uint64) (flotilla.ShardInfo, error) {
	s, err := c.Shard(ctx, id)
	if errors.Is(err, flotilla.ErrNotFound) {
		return s, failure(exitNotFound, err, "flotilla shard list", "shard %d does not exist", id)
	}
	return s, err
}

// membersText lists the nodes of a shard: the leader with a star, learners in brackets.
func membersText(s *flotilla.ShardInfo) string {
	var out []string
	for _, r := range s.Replicas {
		t := nodeText(r.Node)
		if r.Node == s.Leader {
			t += "*"
		}
		if r.Role != "voter" {
			t += "(" + r.Role + ")"
		}
		out = append(out, t)
	}
	return strings.Join(out, " ")
}

func changesText(changes []flotilla.ReplicaChange) string {
	var out []string
	for _, c := range changes {
		switch c.Role {
		case flotilla.RoleNone:
			out = append(out, "removes "+nodeText(c.Node))
		default:
			out = append(out, "adds "+nodeText(c.Node)+" as a "+c.Role)
		}
	}
	return strings.Join(out, ", ")
}

func newShardTransfer(a *app) *cobra.Command {
	var to string
	cmd := &cobra.Command{
		Use:     "transfer SHARD --to NODE",
		Short:   "Hand the leadership of a shard to another of its nodes",
		Example: lines("  flotilla shard transfer 5 --to n2"),
		Args:    arguments("SHARD"),
		RunE: func(cmd *cobra.Command, args []string) error {
			id, err := shardArg(args[0])
			if err != nil {
				return err
			}
			if to == "" {
				return usageError("--to is missing: the node that shall lead")
			}
			node, err := nodeArg(to)
			if err != nil {
				return err
			}
			return a.with(cmd.Context(), func(ctx context.Context, c client) error {
				err := c.TransferLeader(ctx, id, node)
				if errors.Is(err, flotilla.ErrNotFound) {
					return failure(exitNotFound, err, fmt.Sprintf("flotilla shard replicas %d", id), "there is no shard %d with a replica on %s", id, nodeText(node))
				}
				if err != nil {
					return err
				}
				if a.json() {
					return a.printJSON(struct {
						Shard  uint64 `json:"shard"`
						Leader uint32 `json:"leader"`
					}{id, node})
				}
				_, err = fmt.Fprintf(a.out, "shard %d  led by %s\n", id, nodeText(node))
				return err
			})
		},
	}
	cmd.Flags().StringVar(&to, "to", "", "the node that shall lead")
	return cmd
}

func newNodeRemove(a *app) *cobra.Command {
	var o flotilla.RemovalOptions
	var yes bool
	cmd := &cobra.Command{
		Use:   "remove NODE",
		Short: "Take a node, running or dead, out of the cluster for good",
		Long: `remove moves the replicas of a node to the nodes that have the fewest, and takes the
node out of the list of nodes. The node may be dead; one that runs stops by itself.
Its id is never given out again: the machine may come back, with an empty directory,
as a new node. Giving the same command again does nothing more, or goes on.`,
		Example: lines("  flotilla node remove n3 --dry-run", "  flotilla node remove n3 --yes"),
		Args:    arguments("NODE"),
		RunE: func(cmd *cobra.Command, args []string) error {
			id, err := nodeArg(args[0])
			if err != nil {
				return err
			}
			return a.withPatience(cmd, func(ctx context.Context, c client) error {
				dry := o.Plan
				if !yes {
					o.Plan = true
				}
				began := time.Now()
				r, err := c.RemoveNode(ctx, id, o)
				if err != nil {
					return err
				}
				if !yes && !dry && !r.Gone {
					return failure(exitUsage, nil, "--yes to carry it out, --dry-run to see the plan",
						"%s would be removed for good, and its %d replicas moved", nodeText(id), len(r.Moves))
				}
				if a.json() {
					return a.printJSON(r)
				}
				_, err = fmt.Fprint(a.out, removalText(&r, time.Since(began)))
				return err
			})
		},
	}
	f := cmd.Flags()
	f.BoolVar(&o.Shrink, "shrink", false, "let shards have fewer replicas where no other node can take one")
	f.BoolVar(&o.Plan, "dry-run", false, "print what would be done")
	f.BoolVar(&yes, "yes", false, "carry it out")
	return cmd
}

func removalText(r *flotilla.Removal, took time.Duration) string {
	if r.Gone && len(r.Moves) == 0 {
		return fmt.Sprintf("%s is no member of the cluster\n", nodeText(r.Node))
	}
	head := fmt.Sprintf("%s would be removed, and %d replicas moved\n", nodeText(r.Node), len(r.Moves))
	if r.Gone {
		head = fmt.Sprintf("%s removed, %d replicas moved in %.1fs\n", nodeText(r.Node), len(r.Moves), took.Seconds())
	}
	t := newTable("SHARD", "SHARD", "FROM", "TO")
	for _, m := range r.Moves {
		t.add(strconv.FormatUint(m.Shard, 10), nodeText(m.From), nodeText(m.To))
	}
	if len(r.Moves) == 0 {
		return head
	}
	return head + t.String()
}
