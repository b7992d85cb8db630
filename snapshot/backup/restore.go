package backup

import (
	"context"
	"fmt"
)

// Target is the cluster that is restored into.
type Target interface {
	// Empty reports whether there is no key in [start, end); an empty end is behind
	// the last key.
	Empty(ctx context.Context, start, end []byte) (bool, error)
	// Clear removes all keys in [start, end). It may be repeated.
	Clear(ctx context.Context, start, end []byte) error
	// Write sets pairs, in any order and not atomically. It may be repeated.
	Write(ctx context.Context, pairs []Pair) error
}

// IfNotEmpty says what Restore does with a cluster that has keys where the backup
// or snapshot reaches: that is everywhere, or the ranges of a snapshot's shards.
type IfNotEmpty int

// What to do with a cluster that has keys.
const (
	// Refuse writes nothing and returns ErrNotEmpty.
	Refuse IfNotEmpty = iota
	// Resume writes the backup over what there is: for a restore that was
	// interrupted. Keys that the backup does not have stay.
	Resume
	// Replace removes these keys first.
	Replace
)

const (
	// A write of a restore holds neighbouring pairs, so that few shards share it.
	writePairs = 512
	writeBytes = 256 << 10
)

// Restore writes a backup or a snapshot into a cluster, which may have any number of
// nodes and shards. Every chunk is checked before any of it is written. What a failed
// Restore has written stays; given again with Resume it completes. The error is
// ErrNotEmpty, *DamageError (a chunk), the store's, the target's or the context's.
//
// Values come back as they were; versions and the memory of sessions do not: the
// writes of a restore are new writes.
func Restore(ctx context.Context, src Store, m *Manifest, dst Target, how IfNotEmpty, o Options) error {
	if err := o.fill(); err != nil {
		return err
	}
	if err := m.check(); err != nil {
		return fmt.Errorf("backup: manifest: %w", err)
	}
	for start, end := range m.Ranges() {
		err := o.Retry(ctx, func(ctx context.Context) error {
			empty, err := dst.Empty(ctx, start, end)
			if err == nil && !empty && how == Refuse {
				return ErrNotEmpty
			}
			return err
		})
		if err != nil {
			return err
		}
	}
	for start, end := range m.Ranges() {
		if how != Replace {
			break
		}
		if err := o.Retry(ctx, func(ctx context.Context) error { return dst.Clear(ctx, start, end) }); err != nil {
			return err
		}
	}
	type place struct{ shard, chunk int }
	var places []place
	for i := range m.Shards {
		for j := range m.Shards[i].Chunks {
			places = append(places, place{i, j})
		}
	}
	o.Progress.ChunksTotal.Store(int64(len(places)))
	o.Progress.PairsTotal.Store(m.Pairs())
	o.Progress.BytesTotal.Store(m.Bytes())
	return parallel(ctx, o.Parallel, len(places), func(ctx context.Context, i int) error {
		s := &m.Shards[places[i].shard]
		return restoreChunk(ctx, src, s, places[i].chunk, dst, &o)
	})
}

func restoreChunk(ctx context.Context, src Store, s *Shard, j int, dst Target, o *Options) error {
	hash := s.Chunks[j].Hash
	b, err := getChunk(ctx, src, hash)
	if err != nil {
		return err
	}
	pairs := make([]Pair, 0, s.Chunks[j].Pairs)
	c, err := openChunk(hash, b, func(p Pair) error { pairs = append(pairs, p); return nil })
	if err == nil {
		err = s.fits(j, &c)
	}
	if err != nil {
		return &DamageError{Object: chunkName(hash), Reason: err.Error()}
	}
	for len(pairs) > 0 {
		n, size := 0, 0
		for n < len(pairs) && n < writePairs {
			size += len(pairs[n].Key) + len(pairs[n].Value)
			if n > 0 && size > writeBytes {
				size -= len(pairs[n].Key) + len(pairs[n].Value)
				break
			}
			n++
		}
		if err := o.Retry(ctx, func(ctx context.Context) error { return dst.Write(ctx, pairs[:n]) }); err != nil {
			return err
		}
		o.Progress.Pairs.Add(int64(n))
		o.Progress.Bytes.Add(int64(size))
		pairs = pairs[n:]
	}
	o.Progress.Chunks.Add(1)
	return nil
}
