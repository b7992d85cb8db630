package catalog

import (
	"encoding/binary"

	"github.com/flotillakv/flotilla/multiraft/raft"
)

// The keys of keyspace 0. Numbers are big endian so that keys sort like them.
//
//	cluster                       the cluster record
//	next|node, next|shard         the next free ids
//	node|  id u32                 a node
//	route| keyspace u32  0 end    a range, under its exclusive end
//	route| keyspace u32  1        the range that reaches to the end of the keyspace
//	layout| keyspace u32          how the keyspace was cut when it was made
//
// Ranges are filed under their end, so that one seek to the first end above a
// key finds the range that holds the key.
const (
	clusterKey   = "cluster"
	nextNodeKey  = "next|node"
	nextShardKey = "next|shard"
	nodePrefix   = "node|"
	routePrefix  = "route|"
	layoutPrefix = "layout|"

	endBounded = 0
	endOpen    = 1
)

// MaxSplitKeyBytes bounds the start and end key of a range, so that its record's
// key stays far below shard.MaxKeyBytes.
const MaxSplitKeyBytes = 4 << 10

func nodeKey(id raft.NodeID) []byte {
	return binary.BigEndian.AppendUint32([]byte(nodePrefix), uint32(id))
}

func layoutKey(keyspace uint32) []byte {
	return binary.BigEndian.AppendUint32([]byte(layoutPrefix), keyspace)
}

// routeKey is the key of the range that ends at end (empty: the last one).
func routeKey(keyspace uint32, end []byte) []byte {
	k := binary.BigEndian.AppendUint32([]byte(routePrefix), keyspace)
	if len(end) == 0 {
		return append(k, endOpen)
	}
	return append(append(k, endBounded), end...)
}

// seekKey is at or below the key of the range that holds key, and above the
// keys of all ranges before it. No end is longer than MaxSplitKeyBytes, so the
// bytes of key behind that decide nothing.
func seekKey(keyspace uint32, key []byte) []byte {
	k := binary.BigEndian.AppendUint32([]byte(routePrefix), keyspace)
	k = append(append(k, endBounded), key[:min(len(key), MaxSplitKeyBytes)]...)
	return append(k, 0) // the first key behind it: an end equal to key is too low
}

// prefixEnd returns the first key behind all keys that begin with prefix, which
// must not end in 0xff.
func prefixEnd(prefix []byte) []byte {
	end := append([]byte(nil), prefix...)
	end[len(end)-1]++
	return end
}

// routesEnd is the first key behind the ranges of a keyspace.
func routesEnd(keyspace uint32) []byte {
	return append(binary.BigEndian.AppendUint32([]byte(routePrefix), keyspace), endOpen+1)
}
