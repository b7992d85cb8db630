package main

import (
	"context"
	"fmt"
	"strconv"

	"github.com/spf13/cobra"

	"github.com/flotillakv/flotilla"
	"github.com/flotillakv/flotilla/snapshot/backup"
)

func newSnapshot(a *app) *cobra.Command {
	return clientFlags(a, group(&cobra.Command{
		Use:   "snapshot",
		Short: "See snapshots on their way, take one of a shard, and check it",
		Long: `snapshot shows the snapshots by which replicas catch up, and takes snapshots of
single shards to a directory or a bucket, in the form of backups: flotilla backup
restore ID writes one back. They lie beside the backups of a place and share what
is the same with them.`,
	}, newSnapshotList(a), newSnapshotTake(a), newVerify(a, backup.Snapshot, &cobra.Command{
		Short: "Read every byte of a snapshot, or of all, and name what is damaged",
		Long: `verify reads every byte of a snapshot that was taken, without an ID of all in a
place, and names the objects that are missing or not as they were written; then the
exit code is 1.`,
	})))
}

func newSnapshotTake(a *app) *cobra.Command {
	var p makeFlags
	var all bool
	cmd := &cobra.Command{
		Use:   "take SHARD... --to PLACE",
		Short: "Take a snapshot of some shards",
		Long: `take copies the shards with these ids, or with --all all of them, each as of one
moment that lies behind everything acknowledged before the command began; writes go
on meanwhile. It prints the id of the snapshot. If it is interrupted there is none.`,
		Example: lines("  flotilla snapshot take 17 --to /mnt/backups", "  flotilla snapshot take --all --to s3://bucket/prefix"),
		RunE: func(cmd *cobra.Command, args []string) error {
			if all == (len(args) > 0) {
				return usageError("name the shards to take a snapshot of, or say --all: flotilla snapshot take SHARD... --to PLACE")
			}
			var ids []uint64
			for _, arg := range args {
				id, err := strconv.ParseUint(arg, 10, 64)
				if err != nil {
					return usageError("shard id %q is not a number", arg)
				}
				ids = append(ids, id)
			}
			s, err := a.openPlace(&p.placeFlags, "to")
			if err != nil {
				return err
			}
			return a.makeBackup(cmd.Context(), s, &p, backup.Snapshot, func(ctx context.Context, c client, o backup.Options) (*backup.Manifest, error) {
				return c.TakeSnapshot(ctx, s, ids, o)
			})
		},
	}
	p.add(cmd)
	cmd.Flags().BoolVar(&all, "all", false, "take all shards")
	return cmd
}

func newSnapshotList(a *app) *cobra.Command {
	var p placeFlags
	cmd := &cobra.Command{
		Use:   "list [--from PLACE]",
		Short: "List the snapshots on their way in the cluster, or those taken to a place",
		Long: `list prints the snapshots that are being sent, received or installed now, and how far
each has come, as the nodes tell it: both ends of a transfer are listed. With --from it
lists the snapshots that were taken to a place instead, oldest first.`,
		Example: lines("  flotilla snapshot list", "  flotilla snapshot list --from /mnt/backups"),
		Args:    arguments(),
		RunE: func(cmd *cobra.Command, _ []string) error {
			if cmd.Flags().Changed("from") {
				s, err := a.openPlace(&p, "from")
				if err != nil {
					return err
				}
				return a.listPlace(cmd.Context(), s, backup.Snapshot)
			}
			return a.with(cmd.Context(), func(ctx context.Context, c client) error {
				list, err := c.Snapshots(ctx)
				if err != nil {
					return err
				}
				if a.json() {
					return printList(a, list)
				}
				if len(list) == 0 {
					a.note("no snapshot is on its way")
					return nil
				}
				_, err = fmt.Fprint(a.out, snapshotsText(list))
				return err
			})
		},
	}
	p.add(cmd, "from")
	return cmd
}

func snapshotsText(list []flotilla.SnapshotInfo) string {
	t := newTable("SHARD INDEX DONE SIZE", "SHARD", "NODE", "PEER", "STATE", "INDEX", "DONE", "SIZE", "PROGRESS")
	for _, s := range list {
		index, done, size, share := "-", "-", "-", "-"
		if s.Index > 0 {
			index, done, size, share = countText(int64(s.Index)), bytesText(s.Done), bytesText(s.Bytes), fmt.Sprintf("%d%%", 100*s.Done/max(1, s.Bytes))
		}
		t.add(fmt.Sprint(s.Shard), fmt.Sprintf("n%d", s.Node), fmt.Sprintf("n%d", s.Peer), s.State, index, done, size, share)
	}
	return t.String()
}
