package main

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/flotillakv/flotilla"
	"github.com/flotillakv/flotilla/snapshot/backup"
	"github.com/flotillakv/flotilla/snapshot/backup/s3"
)

// placeFlags say where backups are.
type placeFlags struct {
	place            string
	endpoint, region string
	parallel         int
}

func (p *placeFlags) add(cmd *cobra.Command, name string) {
	f := cmd.Flags()
	f.StringVar(&p.place, name, "", "where the backups are: a directory, or s3://BUCKET/PREFIX (env FLOTILLA_BACKUP)")
	f.StringVar(&p.endpoint, "s3-endpoint", "", "of an S3 service, HOST[:PORT] or URL; default AWS (env FLOTILLA_S3_ENDPOINT)")
	f.StringVar(&p.region, "s3-region", "", "of the bucket; default: ask the service (env AWS_REGION)")
}

// open returns the store that the flags, or the environment, name.
func (a *app) openPlace(p *placeFlags, name string) (backup.Store, error) {
	if p.place == "" {
		p.place, _ = a.env("FLOTILLA_BACKUP")
	}
	if p.place == "" {
		return nil, usageError("--%s: say where the backups are, a directory or s3://BUCKET/PREFIX", name)
	}
	o, isS3, err := s3.Parse(p.place)
	if err != nil {
		return nil, usageError("--%s: %s", name, strings.TrimPrefix(err.Error(), "s3: "))
	}
	if isS3 {
		for _, v := range []struct {
			field *string
			flag  string
			env   string
		}{{&o.Endpoint, p.endpoint, "FLOTILLA_S3_ENDPOINT"}, {&o.Region, p.region, "AWS_REGION"}} {
			if v.flag != "" {
				*v.field = v.flag
			}
			if *v.field == "" {
				*v.field, _ = a.env(v.env)
			}
		}
		s, err := s3.Open(o)
		if err != nil {
			return nil, failure(exitUsage, err, "", "--%s %s: %v", name, p.place, err)
		}
		return s, nil
	}
	s, err := backup.OpenDir(p.place)
	if err != nil {
		return nil, failure(exitUsage, err, "", "--%s %s: %v", name, p.place, trimBackup(err))
	}
	return s, nil
}

func trimBackup(err error) string { return strings.TrimPrefix(err.Error(), "backup: ") }

// backupError gives an error of package backup the project's exit codes.
func backupError(err error, s backup.Store, kind backup.Kind, what string) error {
	if err == nil {
		return nil
	}
	var damage *backup.DamageError
	var busy *backup.BusyError
	code, text, try := describe(err)
	switch {
	case errors.As(err, &busy):
		code, try = exitConflict, "again when they are done; what a crash left is removed after two minutes (--wait)"
	case errors.Is(err, backup.ErrLockLost):
		code, try = exitFailed, "the same command again"
	case errors.Is(err, backup.ErrCutLost):
		code, try = exitUnreachable, "flotilla cluster status; then the same command again, which uses what was stored; with a smaller --parallel where the place is slow"
	case errors.As(err, &damage):
		code, try = exitFailed, fmt.Sprintf("flotilla %s verify names all that is damaged; flotilla %[1]s list shows others", kind)
	case errors.Is(err, backup.ErrNoBackup):
		code, try = exitNotFound, fmt.Sprintf("flotilla %s list --from %s", kind, s)
	case errors.Is(err, backup.ErrNotEmpty):
		code, try = exitConflict, "--resume to go on with a restore that was interrupted, --replace to remove all keys first"
	}
	return failure(code, err, try, "%s %s: %s", what, s, strings.TrimPrefix(text, "backup: "))
}

func newBackup(a *app) *cobra.Command {
	return clientFlags(a, group(&cobra.Command{
		Use:   "backup",
		Short: "Copy the data out of a cluster, and back into one",
		Long: `backup keeps copies of a cluster's data in a directory, or in a bucket of an S3
service; its credentials are taken from the environment (AWS_ACCESS_KEY_ID,
AWS_SECRET_ACCESS_KEY), the AWS credentials file or the machine's role.

Each shard is copied as of one moment, which the backup names; writes go on
meanwhile. Data lies in chunks that are named by their SHA-256, and what did not
change since an earlier backup in the same place is not stored again; still, each
backup is complete by itself. A backup is listed when all of it is stored.`,
	}, newBackupCreate(a), newBackupList(a), newBackupVerify(a), newBackupRestore(a), newBackupPrune(a)))
}

// backupInfo is what is printed of a backup.
type backupInfo struct {
	ID      string       `json:"id"`
	Cluster string       `json:"cluster,omitempty"`
	Release string       `json:"release,omitempty"`
	Started time.Time    `json:"started,omitzero"`
	Ended   time.Time    `json:"ended,omitzero"`
	Shards  int          `json:"shards"`
	Pairs   int64        `json:"pairs"`
	Bytes   int64        `json:"bytes"`  // before compression
	Stored  int64        `json:"stored"` // of all its chunks
	Error   string       `json:"error,omitempty"`
	New     *backupAdded `json:"new,omitempty"`
}

// backupAdded is what create stored now.
type backupAdded struct {
	Chunks  int64   `json:"chunks"`
	Reused  int64   `json:"reused"`
	Bytes   int64   `json:"bytes"`
	Seconds float64 `json:"seconds"`
}

func infoOf(l backup.Listed) backupInfo {
	if l.Manifest == nil {
		return backupInfo{ID: l.ID, Error: trimBackup(l.Err)}
	}
	m := l.Manifest
	return backupInfo{ID: m.ID, Cluster: m.Cluster, Release: m.Release, Started: m.Started, Ended: m.Ended,
		Shards: len(m.Shards), Pairs: m.Pairs(), Bytes: m.Bytes(), Stored: m.Stored()}
}

func newBackupCreate(a *app) *cobra.Command {
	var p makeFlags
	cmd := &cobra.Command{
		Use:   "create --to PLACE",
		Short: "Back up all shards",
		Long: `create backs up all shards. Everything that was acknowledged before it began is
in the backup. Each shard is read as of one moment, from a follower where there is
one; the moments of different shards differ.

If it is interrupted there is no new backup, and what was stored already is used by
the next one.`,
		Example: lines("  flotilla backup create --to /mnt/backups", "  flotilla backup create --to s3://bucket/prefix --s3-endpoint http://127.0.0.1:7070"),
		Args:    arguments(),
		RunE: func(cmd *cobra.Command, _ []string) error {
			s, err := a.openPlace(&p.placeFlags, "to")
			if err != nil {
				return err
			}
			return a.makeBackup(cmd.Context(), s, &p, backup.Backup, func(ctx context.Context, c client, o backup.Options) (*backup.Manifest, error) {
				return c.Backup(ctx, s, o)
			})
		},
	}
	p.add(cmd)
	return cmd
}

// makeFlags are those of commands that make a backup or a snapshot.
type makeFlags struct {
	placeFlags
	patience, wait time.Duration
}

func (p *makeFlags) add(cmd *cobra.Command) {
	p.placeFlags.add(cmd, "to")
	cmd.Flags().IntVar(&p.parallel, "parallel", 4, "shards to copy at a time, 1 to 64")
	cmd.Flags().DurationVar(&p.patience, "retry-for", time.Minute, "how long to repeat a question that the cluster cannot answer")
	addWait(cmd, &p.wait, "a prune of the place")
}

func addWait(cmd *cobra.Command, wait *time.Duration, who string) {
	cmd.Flags().DurationVar(wait, "wait", 5*time.Minute, "how long to wait for "+who)
}

// waitsFor tells the person why nothing happens.
func (a *app) waitsFor(who []string) {
	a.note("waiting for others who work there: %s", strings.Join(who, ", "))
}

// makeBackup connects, lets do make a backup or a snapshot in s, and prints which.
func (a *app) makeBackup(ctx context.Context, s backup.Store, p *makeFlags, kind backup.Kind, do func(context.Context, client, backup.Options) (*backup.Manifest, error)) error {
	if p.wait <= 0 {
		return usageError("--wait %s: must be more than 0", p.wait)
	}
	c, err := a.connect(ctx)
	if err != nil {
		return err
	}
	defer c.Close()
	start := time.Now()
	var did backup.Progress
	show := a.startProgress(func() (float64, string) {
		share := -1.0
		if n := did.Shards.Load(); n > 0 {
			share = float64(did.ShardsDone.Load()) / float64(n)
		}
		return share, fmt.Sprintf("%s records  %s  stored %s", countText(did.Pairs.Load()), bytesText(did.Bytes.Load()), bytesText(did.Stored.Load()))
	})
	m, err := do(ctx, c, backup.Options{Parallel: p.parallel, Progress: &did, Retry: a.retrying(p.patience), Wait: p.wait, OnWait: a.waitsFor})
	show.stop()
	if err != nil {
		return backupError(err, s, kind, "no "+string(kind)+" was made in")
	}
	info := infoOf(backup.Listed{ID: m.ID, Manifest: m})
	info.New = &backupAdded{did.Chunks.Load(), did.Reused.Load(), did.Stored.Load(), time.Since(start).Seconds()}
	if a.json() {
		return a.printJSON(info)
	}
	fmt.Fprintln(a.out, m.ID)
	a.note("%s of %s records (%s) of %d shards in %s: %d new chunks (%s), %d that were there already", kind,
		countText(info.Pairs), bytesText(info.Bytes), info.Shards, secondsText(time.Since(start)), info.New.Chunks, bytesText(info.New.Bytes), info.New.Reused)
	return nil
}

// retrying is retry as package backup takes it.
func (a *app) retrying(patience time.Duration) func(context.Context, func(context.Context) error) error {
	return func(ctx context.Context, f func(context.Context) error) error {
		return retry(ctx, a.timeout, patience, f)
	}
}

func newBackupList(a *app) *cobra.Command {
	var p placeFlags
	cmd := &cobra.Command{
		Use:     "list --from PLACE",
		Short:   "List the backups, oldest first",
		Example: lines("  flotilla backup list --from /mnt/backups"),
		Args:    arguments(),
		RunE: func(cmd *cobra.Command, _ []string) error {
			s, err := a.openPlace(&p, "from")
			if err != nil {
				return err
			}
			return a.listPlace(cmd.Context(), s, backup.Backup)
		},
	}
	p.add(cmd, "from")
	return cmd
}

// listPlace prints the backups, or the snapshots, of a place.
func (a *app) listPlace(ctx context.Context, s backup.Store, kind backup.Kind) error {
	list, err := backup.List(ctx, s, kind)
	if err != nil {
		return backupError(err, s, kind, "cannot list")
	}
	infos := make([]backupInfo, len(list))
	for i, l := range list {
		infos[i] = infoOf(l)
	}
	if a.json() {
		return printList(a, infos)
	}
	if len(list) == 0 {
		a.note("no %ss in %s", kind, s)
		return nil
	}
	t := newTable("SHARDS RECORDS SIZE STORED", "ID", "ENDED", "SHARDS", "RECORDS", "SIZE", "STORED", "CLUSTER")
	for _, i := range infos {
		if i.Error != "" {
			t.add(i.ID, "-", "-", "-", "-", "-", a.colour(a.outTTY, red, "damaged: "+i.Error))
			continue
		}
		t.add(i.ID, i.Ended.Format(time.RFC3339), fmt.Sprint(i.Shards), countText(i.Pairs), bytesText(i.Bytes), bytesText(i.Stored), i.Cluster)
	}
	fmt.Fprint(a.out, t)
	return nil
}

// chosen returns the backup, or the snapshot, that was asked for; without an id the
// newest backup.
func chosen(ctx context.Context, s backup.Store, args []string) (*backup.Manifest, error) {
	if len(args) == 0 {
		m, err := backup.Latest(ctx, s, backup.Backup)
		return m, backupError(err, s, backup.Backup, "no backup to use in")
	}
	m, err := backup.Load(ctx, s, backup.Backup, args[0])
	if errors.Is(err, backup.ErrNoBackup) {
		if snap, serr := backup.Load(ctx, s, backup.Snapshot, args[0]); !errors.Is(serr, backup.ErrNoBackup) {
			return snap, backupError(serr, s, backup.Snapshot, "cannot use the snapshot in")
		}
	}
	return m, backupError(err, s, backup.Backup, "cannot use the backup in")
}

func newBackupVerify(a *app) *cobra.Command {
	return newVerify(a, backup.Backup, &cobra.Command{
		Short: "Read every byte of a backup, or of all, and name what is damaged",
		Long: `verify reads every byte of a backup, without an ID of all backups in a place, and
names the objects that are missing or not as they were written; then the exit code
is 1. A damaged chunk that is removed is stored again by the next create, if the
data is still the same.`,
	})
}

// newVerify makes cmd the verify command of a kind.
func newVerify(a *app, kind backup.Kind, cmd *cobra.Command) *cobra.Command {
	var p placeFlags
	cmd.Use = "verify [ID] --from PLACE"
	cmd.Example = lines("  flotilla " + string(kind) + " verify --from /mnt/backups")
	cmd.Args = cobra.MaximumNArgs(1)
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		s, err := a.openPlace(&p, "from")
		if err != nil {
			return err
		}
		return a.verify(cmd.Context(), s, kind, args, p.parallel)
	}
	p.add(cmd, "from")
	cmd.Flags().IntVar(&p.parallel, "parallel", 4, "chunks to read at a time, 1 to 64")
	return cmd
}

func (a *app) verify(ctx context.Context, s backup.Store, kind backup.Kind, ids []string, atATime int) error {
	start := time.Now()
	list, err := backup.List(ctx, s, kind)
	if err != nil {
		return backupError(err, s, kind, "cannot list")
	}
	if len(ids) > 0 {
		list = slices.DeleteFunc(list, func(l backup.Listed) bool { return !slices.Contains(ids, l.ID) })
	}
	if len(list) == 0 {
		return backupError(backup.ErrNoBackup, s, kind, "nothing to verify in")
	}
	var did backup.Progress
	show := a.startProgress(func() (float64, string) {
		return float64(did.Chunks.Load()) / float64(max(1, did.ChunksTotal.Load())), bytesText(did.Bytes.Load())
	})
	damage, err := backup.Verify(ctx, s, list, backup.Options{Parallel: atATime, Progress: &did})
	show.stop()
	if a.json() && err == nil {
		type object struct {
			Object string `json:"object"`
			Reason string `json:"reason"`
		}
		out := struct {
			Backups   int      `json:"backups"`
			Snapshots int      `json:"snapshots"`
			Chunks    int64    `json:"chunks"`
			Bytes     int64    `json:"bytes"`
			Damaged   []object `json:"damaged"`
		}{0, 0, did.ChunksTotal.Load(), did.Bytes.Load(), []object{}}
		if kind == backup.Snapshot {
			out.Snapshots = len(list)
		} else {
			out.Backups = len(list)
		}
		for _, d := range damage {
			out.Damaged = append(out.Damaged, object{d.Object, d.Reason})
		}
		if err := a.printJSON(out); err != nil {
			return err
		}
	} else {
		for _, d := range damage {
			fmt.Fprintf(a.out, "%s: %s\n", d.Object, d.Reason)
		}
	}
	if err != nil {
		return backupError(err, s, kind, "verify stopped in")
	}
	if len(damage) > 0 {
		return failure(exitFailed, damage[0], fmt.Sprintf("use another %s, or make a new one", kind), "%d objects in %s are damaged, the first is %s", len(damage), s, damage[0].Object)
	}
	a.note("all of %d %ss is as it was written: %d chunks, %s of records, in %s", len(list), kind, did.ChunksTotal.Load(), bytesText(did.Bytes.Load()), secondsText(time.Since(start)))
	return nil
}

func newBackupRestore(a *app) *cobra.Command {
	var p placeFlags
	var patience time.Duration
	var dry, resume, replace, yes bool
	cmd := &cobra.Command{
		Use:   "restore [ID] --from PLACE",
		Short: "Write a backup into a cluster",
		Long: `restore writes a backup, without an ID the newest, into a running cluster, with
whatever nodes and shards it has. Every chunk is checked before it is written. ID may
also be that of a snapshot; then all that follows is about its shards' ranges alone.

A cluster that has keys is refused, unless --resume or --replace is given:
  --resume   goes on with a restore that was interrupted: writes the whole backup
             over what there is; keys that the backup does not have stay
  --replace  removes all keys of the cluster first (needs --yes)

Nobody else should write meanwhile. Values come back as they were; their versions,
and what sessions remember, do not: the writes of a restore are new writes.`,
		Example: lines(
			"  flotilla backup restore --from /mnt/backups --dry-run",
			"  flotilla backup restore 20260102t150405z-1a2b3c4d --from /mnt/backups"),
		Args: cobra.MaximumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			if resume && replace {
				return usageError("--resume and --replace: give one of them")
			}
			s, err := a.openPlace(&p, "from")
			if err != nil {
				return err
			}
			ctx := cmd.Context()
			m, err := chosen(ctx, s, args)
			if err != nil {
				return err
			}
			c, err := a.connect(ctx)
			if err != nil {
				return err
			}
			defer c.Close()
			how, plan := backup.Refuse, ""
			switch {
			case resume:
				how, plan = backup.Resume, ", over what it has"
			case replace && m.Kind == backup.Snapshot:
				how, plan = backup.Replace, ", after all keys in the ranges of these shards are removed"
			case replace:
				how, plan = backup.Replace, ", after all its keys are removed"
			}
			plan = fmt.Sprintf("%s %s of %s: %s records (%s) of %d shards into the cluster%s", m.Kind, m.ID, m.Ended.Format(time.RFC3339), countText(m.Pairs()), bytesText(m.Bytes()), len(m.Shards), plan)
			if dry {
				return a.restorePlan(ctx, c, m, how, plan)
			}
			if replace && !yes {
				return failure(exitUsage, nil, "--yes to carry it out, --dry-run to see it only", "%s", plan)
			}
			return a.restore(ctx, c, s, m, how, p.parallel, patience)
		},
	}
	p.add(cmd, "from")
	f := cmd.Flags()
	f.IntVar(&p.parallel, "parallel", 16, "chunks to write at a time, 1 to 64")
	f.DurationVar(&patience, "retry-for", time.Minute, "how long to repeat a write that the cluster cannot take")
	f.BoolVar(&dry, "dry-run", false, "print what would be done")
	f.BoolVar(&resume, "resume", false, "write over what the cluster has")
	f.BoolVar(&replace, "replace", false, "remove all keys of the cluster first")
	f.BoolVar(&yes, "yes", false, "carry out --replace")
	return cmd
}

// restorePlan prints what a restore would do.
func (a *app) restorePlan(ctx context.Context, c client, m *backup.Manifest, how backup.IfNotEmpty, plan string) error {
	ctx, cancel := context.WithTimeout(ctx, a.timeout)
	defer cancel()
	empty := true
	for start, end := range m.Ranges() {
		for _, err := range c.Scan(ctx, flotilla.Range{Start: start, End: end, Limit: 1}) {
			if err != nil {
				return err
			}
			empty = false
		}
	}
	if a.json() {
		return a.printJSON(struct {
			backupInfo
			Empty   bool `json:"cluster_empty"`
			Refused bool `json:"refused"`
		}{infoOf(backup.Listed{ID: m.ID, Manifest: m}), empty, !empty && how == backup.Refuse})
	}
	fmt.Fprintln(a.out, plan)
	if !empty && how == backup.Refuse {
		fmt.Fprintln(a.out, "it would be refused: the cluster has keys there (--resume, --replace)")
	}
	return nil
}

func (a *app) restore(ctx context.Context, c client, s backup.Store, m *backup.Manifest, how backup.IfNotEmpty, parallel int, patience time.Duration) error {
	start := time.Now()
	var did backup.Progress
	show := a.startProgress(func() (float64, string) {
		return float64(did.Bytes.Load()) / float64(max(1, did.BytesTotal.Load())), fmt.Sprintf("%s records  %s", countText(did.Pairs.Load()), bytesText(did.Bytes.Load()))
	})
	err := c.Restore(ctx, s, m, how, backup.Options{Parallel: parallel, Progress: &did, Retry: a.retrying(patience)})
	show.stop()
	if errors.Is(err, backup.ErrNotEmpty) {
		return backupError(err, s, m.Kind, "nothing was restored from")
	}
	if err != nil {
		code, text, _ := describe(backupError(err, s, m.Kind, "restoring from"))
		return failure(code, err, fmt.Sprintf("flotilla backup restore %s --from %s --resume", m.ID, s), "the restore is not complete: %s", text)
	}
	took := time.Since(start)
	if a.json() {
		return a.printJSON(map[string]any{"id": m.ID, "pairs": did.Pairs.Load(), "bytes": did.Bytes.Load(), "seconds": took.Seconds()})
	}
	a.note("restored %s: %s records (%s) in %s", m.ID, countText(did.Pairs.Load()), bytesText(did.Bytes.Load()), secondsText(took))
	return nil
}

func newBackupPrune(a *app) *cobra.Command {
	var p placeFlags
	var o backup.PruneOptions
	var older age
	var yes bool
	cmd := &cobra.Command{
		Use:   "prune --from PLACE",
		Short: "Remove old backups, and what none needs any more",
		Long: `prune removes the backups of a place that are neither among the last --keep-last of
their cluster nor younger than --older-than, and then all data that no backup and no
snapshot left there names. Snapshots stay; one whose file under snapshots/ was removed
is cleaned up after.

It may run at any time: backups that are being made there are waited for, and wait for
it, for as long as --wait says. If it is interrupted, what is listed is still whole, and
the next prune does the rest. A manifest that is damaged stops it before anything is
removed: remove that file, which cannot be restored, first.`,
		Example: lines("  flotilla backup prune --from /mnt/backups --keep-last 7 --dry-run", "  flotilla backup prune --from s3://bucket/prefix --keep-last 3 --older-than 30d --yes"),
		Args:    arguments(),
		RunE: func(cmd *cobra.Command, _ []string) error {
			if !cmd.Flags().Changed("keep-last") && !cmd.Flags().Changed("older-than") {
				return usageError("say which backups to remove: --keep-last N, --older-than AGE, or both")
			}
			if o.KeepLast < 1 {
				return usageError("--keep-last %d: at least the last one is kept", o.KeepLast)
			}
			if o.Wait <= 0 {
				return usageError("--wait %s: must be more than 0", o.Wait)
			}
			s, err := a.openPlace(&p, "from")
			if err != nil {
				return err
			}
			o.Parallel, o.OlderThan, o.OnWait = p.parallel, time.Duration(older), a.waitsFor
			return a.prune(cmd.Context(), s, o, yes)
		},
	}
	p.add(cmd, "from")
	f := cmd.Flags()
	f.IntVar(&o.KeepLast, "keep-last", 1, "keep at least the last N backups of each cluster")
	f.Var(&older, "older-than", "keep what is younger: 12h, 30d, 8w")
	f.BoolVar(&o.DryRun, "dry-run", false, "print what would be done")
	f.BoolVar(&yes, "yes", false, "carry it out")
	f.IntVar(&p.parallel, "parallel", 16, "objects to remove at a time, 1 to 64")
	addWait(cmd, &o.Wait, "backups that are being made")
	return cmd
}

func (a *app) prune(ctx context.Context, s backup.Store, o backup.PruneOptions, yes bool) error {
	var did backup.Progress
	o.Progress = &did
	show := a.startProgress(func() (float64, string) {
		return float64(did.Chunks.Load()) / float64(max(1, did.ChunksTotal.Load())), bytesText(did.Stored.Load())
	})
	asked := o.DryRun
	o.DryRun = asked || !yes
	res, err := backup.Prune(ctx, s, o)
	show.stop()
	var damage *backup.DamageError
	if errors.As(err, &damage) {
		return failure(exitFailed, err, "remove "+damage.Object+", which cannot be restored, and prune again", "nothing was removed from %s: %s", s, trimBackup(err))
	}
	if err != nil {
		return backupError(err, s, backup.Backup, "pruning")
	}
	plan := fmt.Sprintf("%d of %d backups and %d chunks (%s) that no other needs", len(res.Removed), len(res.Removed)+len(res.Kept), res.Chunks, bytesText(res.Bytes))
	if !yes && !asked {
		return failure(exitUsage, nil, "--yes to carry it out, --dry-run to see it only", "would remove %s", plan)
	}
	if a.json() {
		out := struct {
			Removed []backupInfo `json:"removed"`
			Kept    int          `json:"kept"`
			Chunks  int64        `json:"chunks"`
			Bytes   int64        `json:"bytes"`
			DryRun  bool         `json:"dry_run"`
		}{[]backupInfo{}, len(res.Kept), res.Chunks, res.Bytes, o.DryRun}
		for _, m := range res.Removed {
			out.Removed = append(out.Removed, infoOf(backup.Listed{ID: m.ID, Manifest: m}))
		}
		return a.printJSON(out)
	}
	for _, m := range res.Removed {
		fmt.Fprintln(a.out, m.ID)
	}
	if !o.DryRun {
		a.note("removed %s from %s", plan, s)
	} else {
		a.note("would remove %s from %s", plan, s)
	}
	return nil
}

// age is a duration that may be given in days and weeks.
type age time.Duration

func (v *age) String() string {
	if *v == 0 {
		return ""
	}
	return time.Duration(*v).String()
}

func (v *age) Type() string { return "age" }

func (v *age) Set(s string) error {
	unit := map[byte]time.Duration{'d': 24 * time.Hour, 'w': 7 * 24 * time.Hour}
	if n := len(s) - 1; n > 0 && unit[s[n]] > 0 {
		count, err := strconv.ParseUint(s[:n], 10, 16)
		if err != nil {
			return fmt.Errorf("%q is not an age, such as 12h, 30d or 8w", s)
		}
		*v = age(time.Duration(count) * unit[s[n]])
		return nil
	}
	d, err := time.ParseDuration(s)
	if err != nil || d < 0 {
		return fmt.Errorf("%q is not an age, such as 12h, 30d or 8w", s)
	}
	*v = age(d)
	return nil
}
