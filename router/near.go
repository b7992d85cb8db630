package router

import (
	"context"

	"github.com/flotillakv/flotilla/multiraft/raft"
	"github.com/flotillakv/flotilla/shard"
)

// Near is a Sender that can read some shards by itself, at once. Its Send to
// Options.Self keeps to the TimeoutNanos of a request if the context has no deadline.
type Near interface {
	Sender
	// ReadNear returns the value of key as a linearizable read that began before
	// the call must see it. d is the descriptor of the shard that holds key, as far
	// as the router knows. If ok is false, nothing was read, and Send has to be asked.
	ReadNear(d *raft.Descriptor, key []byte) (v shard.Value, found, ok bool)
}

// readNear looks for the short way of a linearizable get: no request, no tries, no
// deadline, since nothing on it waits. ok is false if there is none.
func (s Space) readNear(ctx context.Context, key []byte) (v shard.Value, found, ok bool) {
	r := s.r
	if r.near == nil || ctx.Err() != nil {
		return shard.Value{}, false, false
	}
	route, ok := r.table.Lookup(s.id, key)
	if !ok {
		return shard.Value{}, false, false
	}
	if v, found, ok = r.near.ReadNear(route.Desc, key); ok {
		r.stats.near.Add(1)
	}
	return v, found, ok
}
