package backup

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/flotillakv/flotilla/internal/mutants"
)

// PruneOptions say which backups Prune removes: those to which everything given
// applies.
type PruneOptions struct {
	// KeepLast is how many of each cluster's backups are kept, the newest ones, whatever
	// their age: 1 or more. Zero: 1.
	KeepLast int
	// OlderThan lets backups be kept that ended less than this ago. Zero: none.
	OlderThan time.Duration
	// DryRun says what would be removed and removes nothing.
	DryRun bool
	// Options: Parallel (objects to remove at a time), Progress (Chunks and Stored of
	// what was removed, ChunksTotal), Now, Wait and OnWait are used.
	Options
}

// Pruned says what Prune removed, or would remove.
type Pruned struct {
	Removed, Kept []*Manifest // backups, oldest first
	Chunks        int64       // that nothing names any more
	Bytes         int64       // of these, as stored
}

// sweeper is a Store that can remove what interrupted Puts left behind.
type sweeper interface {
	sweep(ctx context.Context) error
}

// Prune removes old backups, and the chunks that no backup and no snapshot in the
// store names then. Snapshots are not removed. It waits for backups that are being
// made there, and they for it. If it is interrupted, what is listed is whole, and
// the next Prune completes it.
//
// Errors: *DamageError if a manifest cannot be read (nothing was removed, since what
// it names is not known), *BusyError (nothing was removed), ErrLockLost, the store's
// or the context's.
func Prune(ctx context.Context, s Store, o PruneOptions) (*Pruned, error) {
	if err := o.fill(); err != nil {
		return nil, err
	}
	if o.KeepLast == 0 {
		o.KeepLast = 1
	}
	if o.KeepLast < 0 || o.OlderThan < 0 {
		return nil, fmt.Errorf("backup: KeepLast %d and OlderThan %v must not be negative", o.KeepLast, o.OlderThan)
	}
	if o.DryRun {
		out, _, err := planPrune(ctx, s, &o)
		return out, err
	}
	l, err := hold(ctx, s, &o.Options, workPrune)
	if err != nil {
		return nil, err
	}
	defer l.release()
	out, garbage, err := planPrune(ctx, s, &o)
	if err != nil {
		return nil, err
	}
	remove := func(ctx context.Context, name string) error {
		if err := l.check(); err != nil {
			return err
		}
		ctx, cancel := context.WithTimeout(ctx, lockStep)
		defer cancel()
		return s.Delete(ctx, name)
	}
	chunks := func() error {
		o.Progress.ChunksTotal.Store(int64(len(garbage)))
		return parallel(ctx, o.Parallel, len(garbage), func(ctx context.Context, i int) error {
			if err := remove(ctx, garbage[i].Name); err != nil {
				return err
			}
			o.Progress.Chunks.Add(1)
			o.Progress.Stored.Add(garbage[i].Size)
			return nil
		})
	}
	if mutants.On("H-prune-order") { // the chunks of backups that are still listed
		if err := chunks(); err != nil {
			return nil, err
		}
	}
	for _, m := range out.Removed {
		if err := remove(ctx, m.name()); err != nil {
			return nil, err
		}
	}
	if err := chunks(); err != nil {
		return nil, err
	}
	if sw, ok := s.(sweeper); ok {
		if err := l.check(); err != nil {
			return nil, err
		}
		if err := sw.sweep(ctx); err != nil {
			return nil, err
		}
	}
	return out, nil
}

// planPrune returns what Prune would remove: manifests, and objects.
func planPrune(ctx context.Context, s Store, o *PruneOptions) (*Pruned, []Object, error) {
	out := &Pruned{}
	named := map[string]bool{} // by what stays
	keep := func(m *Manifest) {
		for i := range m.Shards {
			for j := range m.Shards[i].Chunks {
				named[chunkName(m.Shards[i].Chunks[j].Hash)] = true
			}
		}
	}
	for _, kind := range kinds {
		list, err := List(ctx, s, kind)
		if err != nil {
			return nil, nil, err
		}
		newer := map[string]int{} // backups of a cluster
		for _, l := range slices.Backward(list) {
			if l.Err != nil {
				return nil, nil, l.Err
			}
			old := o.Now().Sub(l.Manifest.Ended) >= o.OlderThan
			if kind == Backup && newer[l.Manifest.Cluster] >= o.KeepLast && old {
				out.Removed = append(out.Removed, l.Manifest)
				continue
			}
			if kind == Backup {
				newer[l.Manifest.Cluster]++
				out.Kept = append(out.Kept, l.Manifest)
			} else if mutants.On("H-prune-snapshots") {
				continue
			}
			keep(l.Manifest)
		}
	}
	slices.Reverse(out.Removed)
	slices.Reverse(out.Kept)
	objects, err := s.List(ctx, chunkDir)
	if err != nil {
		return nil, nil, err
	}
	garbage := slices.DeleteFunc(objects, func(c Object) bool {
		hash := c.Name[strings.LastIndexByte(c.Name, '/')+1:]
		return named[c.Name] || !validHash(hash) || chunkName(hash) != c.Name // not ours
	})
	out.Chunks = int64(len(garbage))
	for _, c := range garbage {
		out.Bytes += c.Size
	}
	return out, garbage, nil
}

// present returns an error unless all chunks of m are in the store, whole.
func present(ctx context.Context, s Store, m *Manifest) error {
	objects, err := s.List(ctx, chunkDir)
	if err != nil {
		return err
	}
	sizes := make(map[string]int64, len(objects))
	for _, o := range objects {
		sizes[o.Name] = o.Size
	}
	for i := range m.Shards {
		for _, c := range m.Shards[i].Chunks {
			if n, ok := sizes[chunkName(c.Hash)]; !ok || n != c.Stored {
				return fmt.Errorf("%w: %s", errVanished, chunkName(c.Hash))
			}
		}
	}
	return nil
}

var errVanished = errors.New("backup: something removes or changes chunks while a backup is made; make it again")
