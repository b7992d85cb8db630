package backup

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/flotillakv/flotilla/internal/mutants"
)

// Source is the cluster that is backed up.
type Source interface {
	// Cluster returns the cluster's id.
	Cluster() string
	// Shards lists the shards of the keyspace.
	Shards(ctx context.Context) ([]uint64, error)
	// Open cuts a shard: everything acknowledged before the call is in it.
	Open(ctx context.Context, shard uint64) (Cut, error)
}

// Cut is one state of one shard, which does not change. It is owned by one
// goroutine.
type Cut interface {
	// At says which state it is.
	At() ShardCut
	// Next returns the next pairs, in key order, and whether more follow. Pairs
	// are valid until the following call. ErrCutLost: the shard must be cut again.
	Next(ctx context.Context) (pairs []Pair, more bool, err error)
	// Close lets the node forget the cut.
	Close()
}

// Options of Create, Verify and Restore. The zero value will do.
type Options struct {
	// Parallel is how many shards Create reads, and how many chunks Verify and
	// Restore read, at a time: 1 to 64. Zero: 4.
	Parallel int
	// Progress, if given, is kept up to date.
	Progress *Progress
	// Retry runs an action that may be repeated, again and again as it sees fit.
	// Nil: once. It is used for opening cuts and for writes.
	Retry func(ctx context.Context, action func(ctx context.Context) error) error
	// Release is written to the manifest.
	Release string
	// Now is the wall clock. Nil: the system's.
	Now func() time.Time
	// Wait is how long Create waits for a Prune that works in the same store, and Prune
	// for all others. Zero: 5 minutes, which is longer than it takes to find out that
	// one has crashed (2 minutes).
	Wait time.Duration
	// OnWait, if given, is told when that waiting begins, and for whom.
	OnWait func(who []string)

	// For tests.
	sleep func(ctx context.Context, d time.Duration) error
	renew time.Duration // of the lock
}

// Progress counts what was done. Its fields may be read at any time.
type Progress struct {
	Shards, ShardsDone          atomic.Int64
	Chunks                      atomic.Int64 // stored now, or read
	Reused                      atomic.Int64 // chunks that were there already
	Pairs, Bytes                atomic.Int64 // before compression
	Stored                      atomic.Int64 // bytes of the objects that were stored now
	PairsTotal, BytesTotal      atomic.Int64 // zero: not known
	Restarts                    atomic.Int64 // shards that had to be cut again
	ChunksTotal, DamagedObjects atomic.Int64
}

func (o *Options) fill() error {
	if o.Parallel == 0 {
		o.Parallel = 4
	}
	if o.Parallel < 1 || o.Parallel > 64 {
		return fmt.Errorf("backup: Parallel is %d, not between 1 and 64", o.Parallel)
	}
	if o.Progress == nil {
		o.Progress = new(Progress)
	}
	if o.Retry == nil {
		o.Retry = func(ctx context.Context, f func(ctx context.Context) error) error { return f(ctx) }
	}
	if o.Now == nil {
		o.Now = time.Now
	}
	if o.Wait == 0 {
		o.Wait = 5 * time.Minute
	}
	if o.Wait < 0 {
		return fmt.Errorf("backup: Wait is %v, it must not be negative", o.Wait)
	}
	if o.sleep == nil {
		o.sleep = sleep
	}
	if o.renew == 0 {
		o.renew = lockRenew
	}
	return nil
}

func sleep(ctx context.Context, d time.Duration) error {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// cutTries is how often a shard is cut in one backup.
const cutTries = 5

// Create backs up all shards of src to dst and returns the manifest, which is in
// dst then. After an error there is no new backup in dst, only chunks that the
// next Create need not store again. The error is of the source, the store or the
// context, *BusyError (a Prune works in dst) or ErrLockLost.
func Create(ctx context.Context, src Source, dst Store, o Options) (*Manifest, error) {
	if err := o.fill(); err != nil {
		return nil, err
	}
	return create(ctx, src, dst, Backup, nil, &o)
}

// Take is Create for some shards, none named: for all, and gives a snapshot instead
// of a backup. Its error is also the source's for a shard that it does not have.
func Take(ctx context.Context, src Source, dst Store, shards []uint64, o Options) (*Manifest, error) {
	if err := o.fill(); err != nil {
		return nil, err
	}
	shards = slices.Compact(slices.Sorted(slices.Values(shards)))
	return create(ctx, src, dst, Snapshot, shards, &o)
}

func create(ctx context.Context, src Source, dst Store, kind Kind, shards []uint64, o *Options) (*Manifest, error) {
	// Before any chunk is looked for: from now on none is removed.
	l, err := hold(ctx, dst, o, workBackup)
	if err != nil {
		return nil, err
	}
	defer l.release()
	m := &Manifest{Kind: kind, Cluster: src.Cluster(), Release: o.Release, Started: o.Now().UTC()}
	m.ID = newID(m.Started)
	if mutants.On("H-backup-early") { // the manifest before what it names
		if err := dst.Put(ctx, m.name(), []byte("flotilla-backup")); err != nil {
			return nil, err
		}
	}
	if len(shards) == 0 {
		err := o.Retry(ctx, func(ctx context.Context) (err error) {
			shards, err = src.Shards(ctx)
			return err
		})
		if err != nil {
			return nil, err
		}
	}
	o.Progress.Shards.Store(int64(len(shards)))
	m.Shards = make([]Shard, len(shards))
	err = parallel(ctx, o.Parallel, len(shards), func(ctx context.Context, i int) (err error) {
		c := creation{src: src, dst: dst, o: o}
		m.Shards[i], err = c.shard(ctx, shards[i])
		return err
	})
	if err != nil {
		return nil, err
	}
	sortShards(m.Shards)
	m.Ended = o.Now().UTC()
	b, err := m.encode()
	if err != nil {
		return nil, err
	}
	if err := present(ctx, dst, m); err != nil {
		return nil, err
	}
	if err := l.check(); err != nil {
		return nil, err
	}
	err = dst.Put(ctx, m.name(), b)
	if err == nil {
		err = l.check()
	}
	if errors.Is(err, ErrLockLost) { // a prune may have begun before the manifest was there
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), lockStep)
		defer cancel()
		return nil, errors.Join(err, dst.Delete(ctx, m.name()))
	}
	if err != nil {
		return nil, err
	}
	return m, nil
}

const idTime = "20060102t150405"

// newID returns a name that sorts by time and that no other backup has.
func newID(t time.Time) string {
	var b [4]byte
	rand.Read(b[:])
	return t.Format(idTime) + "z-" + hex.EncodeToString(b[:])
}

// creation is one goroutine's part of Create.
type creation struct {
	src Source
	dst Store
	o   *Options
	cutter
	obj []byte
}

func (c *creation) shard(ctx context.Context, id uint64) (Shard, error) {
	for try := 1; ; try++ {
		s, err := c.oneCut(ctx, id)
		if err == nil {
			p := c.o.Progress
			p.ShardsDone.Add(1)
			return s, nil
		}
		if try == cutTries || ctx.Err() != nil || !errors.Is(err, ErrCutLost) {
			return Shard{}, fmt.Errorf("shard %d: %w", id, err)
		}
		c.o.Progress.Restarts.Add(1)
	}
}

func (c *creation) oneCut(ctx context.Context, id uint64) (s Shard, err error) {
	var cut Cut
	err = c.o.Retry(ctx, func(ctx context.Context) (err error) {
		cut, err = c.src.Open(ctx, id)
		return err
	})
	if err != nil {
		return Shard{}, err
	}
	defer cut.Close()
	s.ShardCut = cut.At()
	c.reset()
	for more := true; more; {
		var pairs []Pair
		if pairs, more, err = cut.Next(ctx); err != nil {
			return Shard{}, err
		}
		for _, p := range pairs {
			if !s.holds(p.Key) {
				return Shard{}, fmt.Errorf("key %q lies outside the shard", p.Key[:min(len(p.Key), 64)])
			}
			if c.full(p.Key, p.Value) {
				if err := c.put(ctx, &s); err != nil {
					return Shard{}, err
				}
			}
			c.add(p.Key, p.Value)
		}
	}
	if c.n > 0 && !mutants.On("H-backup-tail") {
		if err := c.put(ctx, &s); err != nil {
			return Shard{}, err
		}
	}
	return s, nil
}

// put stores the gathered chunk, unless the store has it, and adds it to s.
func (c *creation) put(ctx context.Context, s *Shard) error {
	c.obj = encodeChunk(c.obj[:0], c.buf)
	ch := Chunk{Hash: hashOf(c.obj), Stored: int64(len(c.obj)), Bytes: int64(len(c.buf)), Pairs: c.n, First: c.first}
	name := chunkName(ch.Hash)
	p := c.o.Progress
	size, err := c.dst.Size(ctx, name)
	switch {
	case err == nil && (size == ch.Stored || mutants.On("H-backup-short")):
		p.Reused.Add(1)
	case err != nil && !errors.Is(err, ErrNoObject):
		return err
	default: // not there, or not whole
		if err := c.dst.Put(ctx, name, c.obj); err != nil {
			return err
		}
		p.Chunks.Add(1)
		p.Stored.Add(ch.Stored)
	}
	p.Pairs.Add(ch.Pairs)
	p.Bytes.Add(ch.Bytes)
	s.Chunks = append(s.Chunks, ch)
	c.reset()
	return nil
}

// parallel calls f for 0 to n-1 on k goroutines and waits for them. It returns
// the first error, which ends the others' context.
func parallel(ctx context.Context, k, n int, f func(ctx context.Context, i int) error) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	var next atomic.Int64
	var wg sync.WaitGroup
	for range min(k, n) {
		wg.Go(func() {
			for {
				i := int(next.Add(1)) - 1
				if i >= n || ctx.Err() != nil {
					return
				}
				if err := f(ctx, i); err != nil {
					cancel(err)
					return
				}
			}
		})
	}
	wg.Wait()
	return context.Cause(ctx)
}
