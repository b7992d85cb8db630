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
	return s.readNear(d.Shard, d.Keyspace, d.Version, key, nil)
}

// readNear is ReadNear of a descriptor with this version. The value lies in buf,
// which grows as needed, unless that is nil.
func (s *Store) readNear(id raft.ShardID, keyspace uint32, version uint64, key []byte, buf *[]byte) (v shard.Value, found, ok bool) {
	g, ok := s.granter.Grant(id)
	if !ok {
		return shard.Value{}, false, false
	}
	have := g.Desc()
	if have.Version != version || have.Keyspace != keyspace || s.machine(keyspace) || !shard.HoldsKey(have, key) || s.isClosed() {
		return shard.Value{}, false, false
	}
	s.yielder.read()
	// The engine itself keeps a Close waiting for this read.
	var to []byte
	if buf != nil {
		to = *buf
	}
	val, found, err := s.engine.Get(have.Keyspace, key, to)
	if buf != nil && val != nil {
		*buf = val
	}
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
