package router

import (
	"bytes"
	"context"
	"errors"

	"golang.org/x/sync/errgroup"

	"github.com/flotillakv/flotilla/multiraft/raft"
	"github.com/flotillakv/flotilla/shard"
)

// maxParts bounds the shards a non-atomic write is cut for.
const maxParts = 1 << 16

// Write applies a batch. If its keys lie in one shard it is atomic. If they lie
// in several it is refused as a whole with *shard.CrossShardError, unless
// nonAtomic is set: then each shard applies its part atomically, and the
// receipt is zero. An error then says what became of the whole: of
// shard.OutcomeOf NotApplied only if no part was applied; a
// *shard.PartialError counts the parts that were.
// The batch must not be changed until Write returns; after an ambiguous error
// it must not be reused at all (see shard.Batch.Command).
func (s Space) Write(ctx context.Context, b *shard.Batch, nonAtomic bool) (shard.Receipt, error) {
	cmd, err := b.Command()
	if err != nil {
		return shard.Receipt{}, err
	}
	var first shard.Op
	for o := range b.Ops() {
		first = o
		break
	}
	receipt, err := s.write(ctx, &shard.Request{Command: cmd}, place{key: first.Key}, fitCommand)
	var cross *shard.CrossShardError
	if !nonAtomic || !errors.As(err, &cross) {
		return receipt, err
	}
	return s.writeParts(ctx, b, 0)
}

// DeleteRange removes the keys of [start, end). A range over several shards is
// refused with *shard.CrossShardError, unless nonAtomic is set; see Write.
func (s Space) DeleteRange(ctx context.Context, start, end []byte, nonAtomic bool) (shard.Receipt, error) {
	cmd, err := shard.DeleteRangeCommand(start, end)
	if err != nil {
		return shard.Receipt{}, err
	}
	receipt, err := s.write(ctx, &shard.Request{Command: cmd}, place{key: start}, fitCommand)
	var cross *shard.CrossShardError
	if !nonAtomic || !errors.As(err, &cross) {
		return receipt, err
	}
	var b shard.Batch
	b.DeleteRange(start, end)
	return s.writeParts(ctx, &b, 0)
}

// writeParts cuts a batch by shard and applies the parts. A part that meets a
// new boundary on its way (its shard split) is cut again, depth times at most.
func (s Space) writeParts(ctx context.Context, b *shard.Batch, depth int) (shard.Receipt, error) {
	parts, err := split(b, func(key []byte) (*raft.Descriptor, error) {
		route, err := s.r.find(ctx, s.id, place{key: key})
		return route.Desc, err
	})
	if err != nil {
		return shard.Receipt{}, err
	}
	if len(parts) == 1 {
		return s.writePart(ctx, parts[0], depth)
	}
	errs := make([]error, len(parts))
	var g errgroup.Group // without a context: a part that fails does not stop the others
	g.SetLimit(s.r.o.Parallel)
	for i := range parts {
		g.Go(func() error {
			_, errs[i] = s.writePart(ctx, parts[i], depth)
			return nil
		})
	}
	_ = g.Wait() // the parts' errors are in errs
	return shard.Receipt{}, joinParts(errs)
}

func (s Space) writePart(ctx context.Context, p part, depth int) (shard.Receipt, error) {
	cmd, err := p.batch.Command()
	if err != nil {
		return shard.Receipt{}, err
	}
	receipt, err := s.write(ctx, &shard.Request{Command: cmd}, place{key: p.key}, fitCommand)
	var cross *shard.CrossShardError
	if depth < s.r.o.MaxRedirects && errors.As(err, &cross) {
		return s.writeParts(ctx, p.batch, depth+1)
	}
	return receipt, err
}

// part is the share of a batch that one shard applies.
type part struct {
	shard raft.ShardID
	key   []byte // of its first operation
	batch *shard.Batch
}

// split cuts a batch by the ranges that rangeOf names. Operations keep their
// order within each part; a range deletion is cut at the boundaries. Parts are
// in the order in which their shards first occur.
func split(b *shard.Batch, rangeOf func(key []byte) (*raft.Descriptor, error)) ([]part, error) {
	var parts []part
	at := make(map[raft.ShardID]int)
	add := func(d *raft.Descriptor, o shard.Op) error {
		i, ok := at[d.Shard]
		if !ok {
			if len(parts) == maxParts {
				return &shard.LimitError{What: "shards of one non-atomic write", Limit: maxParts, Got: maxParts + 1}
			}
			i = len(parts)
			at[d.Shard] = i
			parts = append(parts, part{shard: d.Shard, key: o.Key, batch: new(shard.Batch)})
		}
		parts[i].batch.Add(o)
		return nil
	}
	for o := range b.Ops() {
		for {
			d, err := rangeOf(o.Key)
			if err != nil {
				return nil, err
			}
			if o.Kind != shard.OpDeleteRange || !cuts(d, o.End) {
				if err := add(d, o); err != nil {
					return nil, err
				}
				break
			}
			if err := add(d, shard.DeleteRangeOp(o.Key, d.End)); err != nil {
				return nil, err
			}
			o.Key = d.End
		}
	}
	return parts, nil
}

// cuts reports whether d ends before the exclusive bound end.
func cuts(d *raft.Descriptor, end []byte) bool {
	return len(d.End) > 0 && (len(end) == 0 || bytes.Compare(d.End, end) < 0)
}

// joinParts makes one error of the parts' errors, so that its outcome is that
// of the whole: nil if all parts were applied, MaybeApplied if some were or may
// have been, NotApplied if none was.
func joinParts(errs []error) error {
	applied, maybe := 0, false
	var first, ambiguous error
	for _, err := range errs {
		if err == nil {
			applied++
			continue
		}
		if first == nil {
			first = err
		}
		var partial *shard.PartialError
		if errors.As(err, &partial) { // cut again on its way, and applied in part
			maybe = true
		}
		if shard.OutcomeOf(err) == shard.MaybeApplied && ambiguous == nil {
			ambiguous = err
		}
	}
	switch {
	case first == nil:
		return nil
	case applied > 0 || maybe:
		return &shard.PartialError{Applied: applied, Shards: len(errs), Err: first}
	case ambiguous != nil:
		return ambiguous
	}
	return first
}
