package kv

import (
	"github.com/flotillakv/flotilla/multiraft"
	"github.com/flotillakv/flotilla/multiraft/raft"
	"github.com/flotillakv/flotilla/shard"
)

// granter is a Host that permits reads under leases in one step; *multiraft.Host
// is one.
type granter interface {
	Grant(raft.ShardID) (multiraft.Grant, bool)
}

// ReadNear is the short way of most reads: a linearizable get under a lease, on
// the caller's goroutine, without a Request and a Response. d is the descriptor
// the caller routed by. If ok is false, nothing is said about the key, and Do
// has to be asked; that is so whenever anything is out of the ordinary.
func (s *Store) ReadNear(d *raft.Descriptor, key []byte) (v shard.Value, found, ok bool) {
	if s.granter == nil {
		return shard.Value{}, false, false
	}
	g, ok := s.granter.Grant(d.Shard)
	if !ok {
		return shard.Value{}, false, false
	}
	have := g.Desc()
	if have.Version != d.Version || have.Keyspace != d.Keyspace || !shard.HoldsKey(have, key) || s.isClosed() {
		return shard.Value{}, false, false
	}
	s.yielder.read()
	// The engine itself keeps a Close waiting for this read.
	val, found, err := s.engine.Get(have.Keyspace, key, nil)
	if err == nil && found {
		var rec shard.Record
		rec, err = shard.DecodeRecord(val)
		v = shard.Value{Bytes: rec.Bytes, Version: rec.Version}
	}
	if err != nil || !g.Stands() {
		return shard.Value{}, false, false
	}
	return v, found, true
}
