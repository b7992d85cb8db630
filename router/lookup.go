package router

import (
	"bytes"
	"context"
	"errors"
	"fmt"

	"github.com/flotillakv/flotilla/shard"
)

// find returns the range at a place: from the table, else from the source.
func (r *Router) find(ctx context.Context, keyspace uint32, at place) (Route, error) {
	if route, ok := r.lookup(keyspace, at); ok {
		return route, nil
	}
	return r.findSlow(ctx, keyspace, at)
}

// findSlow asks the source. Requests that miss close to each other (in one
// keyspace, with keys of the same first byte) share one question at a time:
// the answer brings the neighbours as well, so that most of them find their
// range in the table afterwards.
func (r *Router) findSlow(ctx context.Context, keyspace uint32, at place) (Route, error) {
	if keyspace == 0 { // the source itself reads it: asking would be asking oneself
		if r.o.Root != nil { // start again from what we were given
			r.table.Merge(*r.o.Root)
		}
		if route, ok := r.lookup(keyspace, at); ok {
			return route, nil
		}
		return Route{}, &shard.UnavailableError{Why: "the meta shard is not known yet"}
	}
	at.key = bytes.Clone(at.key) // a lookup may outlive its first caller
	seek := at.key
	if at.below {
		seek = justBelow(at.key)
	}
	flight := fmt.Sprintf("%d/%.1x", keyspace, seek)
	for {
		ch := r.flights.DoChan(flight, func() (any, error) {
			if _, ok := r.lookup(keyspace, at); ok { // a lookup that was over just now brought it
				return at, nil
			}
			return r.ask(keyspace, seek, at)
		})
		select {
		case <-ctx.Done():
			return Route{}, &shard.UnavailableError{Why: "the range of the key was still being looked up", Cause: ctx.Err()}
		case res := <-ch:
			if route, ok := r.lookup(keyspace, at); ok {
				return route, nil
			}
			if res.Err != nil {
				return Route{}, res.Err
			}
			if asked := res.Val.(place); asked.below == at.below && bytes.Equal(asked.key, at.key) {
				return Route{}, noShard(keyspace, at)
			}
		}
	}
}

// ask puts one question to the source, or several if its answer ends short of
// the place (which only happens on the way back from a bound of a reverse
// scan), and takes the answers into the table.
func (r *Router) ask(keyspace uint32, seek []byte, at place) (place, error) {
	if !r.beginLookup() {
		return at, shard.ErrClosed
	}
	defer r.lookups.Done()
	source := r.source.Load()
	if source == nil {
		return at, noShard(keyspace, at)
	}
	ctx, cancel := r.o.Clock.WithTimeout(r.ctx, r.o.Timeout)
	defer cancel()
	for {
		r.stats.lookups.Add(1)
		descs, hints, err := (*source).Lookup(ctx, keyspace, seek, r.o.Prefetch)
		if err != nil {
			return at, err
		}
		r.learn(descs, hints)
		if _, ok := r.lookup(keyspace, at); ok || len(descs) == 0 || !at.below {
			return at, nil
		}
		end := descs[len(descs)-1].End
		if len(end) == 0 || bytes.Compare(end, seek) <= 0 || len(at.key) > 0 && bytes.Compare(end, at.key) >= 0 {
			return at, nil
		}
		seek = end
	}
}

// learn takes descriptors and the leaders of their shards into the table.
func (r *Router) learn(descs []shard.Descriptor, hints []LeaderHint) {
	r.table.Merge(descs...)
	i := 0
	for _, h := range hints { // in the order of the descriptors, some left out
		for i < len(descs) && descs[i].Shard != h.Shard {
			i++
		}
		if i == len(descs) {
			return
		}
		r.table.SetLeader(descs[i].Keyspace, descs[i].Start, h.Shard, h.Node, h.Term)
	}
}

// beginLookup counts a lookup in, unless the router is closed.
func (r *Router) beginLookup() bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.mu.closed {
		return false
	}
	r.lookups.Add(1)
	return true
}

// retryLookup reports whether a failed lookup is worth another one later.
func retryLookup(err error) bool {
	var unavailable *shard.UnavailableError
	var notLeader *shard.NotLeaderError
	var overloaded *shard.OverloadedError
	var noQuorum *shard.NoQuorumError
	if errors.As(err, &noQuorum) || errors.Is(err, context.DeadlineExceeded) || errors.Is(err, context.Canceled) {
		return false
	}
	return errors.As(err, &unavailable) || errors.As(err, &notLeader) || errors.As(err, &overloaded) || errors.Is(err, shard.ErrAmbiguous)
}

// justBelow returns a key a little below end (empty: the end of the keyspace).
// A boundary between the two is unlikely; ask walks on if there is one.
func justBelow(end []byte) []byte {
	const pad = 16
	k := bytes.Clone(end)
	switch n := len(k); {
	case n == 0:
	case k[n-1] == 0:
		return k[:n-1]
	default:
		k[n-1]--
	}
	return append(k, bytes.Repeat([]byte{0xff}, pad)...)
}

// noShard says that the keyspace has no range at a place.
func noShard(keyspace uint32, at place) error {
	where := fmt.Sprintf("key %.64q", at.key)
	switch {
	case at.below && len(at.key) == 0:
		where = "the end of the keyspace"
	case at.below:
		where = fmt.Sprintf("the keys below %.64q", at.key)
	}
	return &shard.ArgumentError{Field: "key", Reason: fmt.Sprintf("%s lies in no shard of keyspace %d", where, keyspace)}
}
