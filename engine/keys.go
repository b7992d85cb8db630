package engine

import (
	"encoding/binary"
	"fmt"

	"github.com/flotillakv/flotilla/multiraft/raft"
)

// The key table. All integers are big-endian and fixed size, so that the byte
// order of keys is the order of shards, indexes and user keys.
//
//	+----+-----------------------------+---------------------------------------------------+
//	| 00 | 'I'                         | store identity (copy of the identity file)        |
//	| 00 | 'C'                         | cluster version, feature gates (reserved)         |
//	| 00 | 'D' shard(8)                | destroy intent {span, replica}: carried out at boot |
//	| 00 | 'L' 'R'                     | liveness requester {boot epoch}                   |
//	| 00 | 'L' 'S' node(4)             | liveness supporter {epoch, withdrawn}             |
//	| 00 | 'N'                         | groups that were dealt and have no record yet     |
//	| 00 | 'T' shard(8)                | tombstone {lowest replica id that may live here}  |
//	+----+-----------------------------+---------------------------------------------------+
//	| 01 | shard(8) index(8)           | log entry that has moved out of its record        |
//	+----+-----------------------------+---------------------------------------------------+
//	| 02 | shard(8) 'h'                | hard state (never part of a snapshot's source)    |
//	| 02 | shard(8) 't'                | how far the log is cut (if applying is deferred)  |
//	| 02 | shard(8) 'v'                | void mark: log records before it do not count     |
//	| 02 | shard(8) 'q'                | quarantine: the replica's state is not to be used |
//	| 02 | shard(8) 'x' index(8)       | commands of an entry that were not carried out    |
//	+----+-----------------------------+---------------------------------------------------+
//	| 03 | shard(8) 'a'                | applied state: applied and truncated index, ...   |
//	| 03 | shard(8) 'd'                | descriptor                                        |
//	| 03 | shard(8) 's' ..., 't' ...   | session records (package multiraft/session)       |
//	| 03 | shard(8) 'k' ...            | reserved: locks of cross-shard transactions       |
//	+----+-----------------------------+---------------------------------------------------+
//	| 04 | boot epoch(8) number(8)     | log record: the entries of one batch (journal)    |
//	+----+-----------------------------+---------------------------------------------------+
//	| 10 | keyspace(4) user key        | value record (opaque to the engine)               |
//	+----+-----------------------------+---------------------------------------------------+
//	| 11 | ...                         | reserved: versioned data                          |
//	+----+-----------------------------+---------------------------------------------------+
//
// Prefixes 01, 02 and 03 are separate so that a snapshot carries one table per
// prefix: a table that spanned them would overlap the keys of every group.
const (
	prefixStore   byte = 0x00
	prefixLog     byte = 0x01
	prefixHard    byte = 0x02
	prefixApplied byte = 0x03
	prefixRecord  byte = 0x04
	prefixData    byte = 0x10

	tagIdent     byte = 'I'
	tagIntent    byte = 'D'
	tagLiveness  byte = 'L'
	tagRequester byte = 'R'
	tagSupporter byte = 'S'
	tagTombstone byte = 'T'
	tagDealt     byte = 'N'

	suffixHard    byte = 'h'
	suffixTrunc   byte = 't'
	suffixVoid    byte = 'v'
	suffixQuar    byte = 'q'
	suffixSkipped byte = 'x'
	suffixApplied byte = 'a'
	suffixDesc    byte = 'd'

	logKeyLen   = 17
	groupKeyLen = 9 // prefix and shard
	dataHead    = 5 // prefix and keyspace
)

func appendGroup(dst []byte, prefix byte, s raft.ShardID) []byte {
	dst = append(dst, prefix)
	return binary.BigEndian.AppendUint64(dst, uint64(s))
}

// LogPrefix returns the prefix of the log entries of a shard that have keys of their own.
func LogPrefix(s raft.ShardID) []byte { return appendGroup(nil, prefixLog, s) }

// HardPrefix returns the prefix of the hard state of a shard.
func HardPrefix(s raft.ShardID) []byte { return appendGroup(nil, prefixHard, s) }

// StatePrefix returns the prefix of the applied side of a shard: applied
// state, descriptor and everything written with Batch.SetGroup.
func StatePrefix(s raft.ShardID) []byte { return appendGroup(nil, prefixApplied, s) }

// DataKey returns the raw key of a user key.
func DataKey(ks uint32, key []byte) []byte {
	return appendData(make([]byte, 0, dataHead+len(key)), ks, key)
}

// DataSpan returns the raw half-open span of the user keys [start, end) of a
// keyspace. An empty end means: to the last key of the keyspace.
func DataSpan(ks uint32, start, end []byte) (lower, upper []byte) {
	lower = DataKey(ks, start)
	if len(end) == 0 {
		return lower, dataLimit(nil, ks)
	}
	return lower, DataKey(ks, end)
}

// PrefixEnd returns the first key after all keys that start with prefix, nil
// if there is none (a prefix of 0xff bytes only, or an empty one).
func PrefixEnd(prefix []byte) []byte {
	end := append([]byte(nil), prefix...)
	for i := len(end) - 1; i >= 0; i-- {
		if end[i] != 0xff {
			end[i]++
			return end[:i+1]
		}
	}
	return nil
}

func appendData(dst []byte, ks uint32, key []byte) []byte {
	dst = append(dst, prefixData)
	dst = binary.BigEndian.AppendUint32(dst, ks)
	return append(dst, key...)
}

// dataLimit appends the first raw key after keyspace ks.
func dataLimit(dst []byte, ks uint32) []byte {
	if ks == ^uint32(0) {
		return append(dst, prefixData+1)
	}
	dst = append(dst, prefixData)
	return binary.BigEndian.AppendUint32(dst, ks+1)
}

func appendLogKey(dst []byte, s raft.ShardID, i raft.Index) []byte {
	dst = appendGroup(dst, prefixLog, s)
	return binary.BigEndian.AppendUint64(dst, uint64(i))
}

// putLogKey writes a log key into dst, which has logKeyLen bytes.
func putLogKey(dst []byte, s raft.ShardID, i raft.Index) {
	_ = dst[logKeyLen-1]
	dst[0] = prefixLog
	binary.BigEndian.PutUint64(dst[1:], uint64(s))
	binary.BigEndian.PutUint64(dst[9:], uint64(i))
}

// putRecordKey writes the key of a log record into dst, which has logKeyLen bytes.
func putRecordKey(dst []byte, id recordID) {
	_ = dst[logKeyLen-1]
	dst[0] = prefixRecord
	binary.BigEndian.PutUint64(dst[1:], id.epoch)
	binary.BigEndian.PutUint64(dst[9:], id.seq)
}

func hardKey(dst []byte, s raft.ShardID) []byte {
	return append(appendGroup(dst, prefixHard, s), suffixHard)
}

func truncKey(dst []byte, s raft.ShardID) []byte {
	return append(appendGroup(dst, prefixHard, s), suffixTrunc)
}

func voidKey(dst []byte, s raft.ShardID) []byte {
	return append(appendGroup(dst, prefixHard, s), suffixVoid)
}

func quarantineKey(dst []byte, s raft.ShardID) []byte {
	return append(appendGroup(dst, prefixHard, s), suffixQuar)
}

func skippedKey(dst []byte, s raft.ShardID, i raft.Index) []byte {
	return binary.BigEndian.AppendUint64(append(appendGroup(dst, prefixHard, s), suffixSkipped), uint64(i))
}

func appliedKey(dst []byte, s raft.ShardID) []byte {
	return append(appendGroup(dst, prefixApplied, s), suffixApplied)
}

func descKey(dst []byte, s raft.ShardID) []byte {
	return append(appendGroup(dst, prefixApplied, s), suffixDesc)
}

func identKey(dst []byte) []byte { return append(dst, prefixStore, tagIdent) }

func requesterKey(dst []byte) []byte {
	return append(dst, prefixStore, tagLiveness, tagRequester)
}

func supporterKey(dst []byte, n raft.NodeID) []byte {
	dst = append(dst, prefixStore, tagLiveness, tagSupporter)
	return binary.BigEndian.AppendUint32(dst, uint32(n))
}

func tombstoneKey(dst []byte, s raft.ShardID) []byte {
	dst = append(dst, prefixStore, tagTombstone)
	return binary.BigEndian.AppendUint64(dst, uint64(s))
}

func dealtKey(dst []byte) []byte { return append(dst, prefixStore, tagDealt) }

func intentKey(dst []byte, s raft.ShardID) []byte {
	dst = append(dst, prefixStore, tagIntent)
	return binary.BigEndian.AppendUint64(dst, uint64(s))
}

// KeyKind says what a raw key is.
type KeyKind uint8

// The kinds of raw keys.
const (
	KindStore      KeyKind = iota + 1 // identity, versions, reserved keys below 00
	KindIntent                        // destroy intent: Shard
	KindRequester                     // boot epoch
	KindSupporter                     // support record: Node
	KindTombstone                     // tombstone: Shard
	KindEntry                         // log entry: Shard, Index
	KindHard                          // hard state: Shard
	KindApplied                       // applied state: Shard
	KindDesc                          // descriptor: Shard
	KindGroup                         // other key of the applied side: Shard, Rest
	KindData                          // user key: Keyspace, Rest
	KindTrunc                         // how far the log is cut: Shard
	KindVoid                          // void mark: Shard
	KindRecord                        // log record: Epoch, Seq
	KindQuarantine                    // quarantine: Shard
	KindSkipped                       // commands that were not carried out: Shard, Index
)

// Key is a raw key taken apart. Rest aliases the raw key.
type Key struct {
	Kind     KeyKind
	Shard    raft.ShardID
	Index    raft.Index
	Node     raft.NodeID
	Keyspace uint32
	Epoch    uint64
	Seq      uint64
	Rest     []byte
}

// ParseKey takes a raw key apart. It fails on every key that this layout does
// not contain.
func ParseKey(raw []byte) (Key, error) {
	bad := func() (Key, error) { return Key{}, fmt.Errorf("engine: unknown key %x", raw) }
	if len(raw) < 2 {
		return bad()
	}
	u64 := func(at int) uint64 { return binary.BigEndian.Uint64(raw[at:]) }
	switch raw[0] {
	case prefixStore:
		switch {
		case raw[1] == tagIdent && len(raw) == 2, raw[1] == 'C' && len(raw) == 2, raw[1] == 'N':
			return Key{Kind: KindStore, Rest: raw[1:]}, nil
		case raw[1] == tagIntent && len(raw) == 10:
			return Key{Kind: KindIntent, Shard: raft.ShardID(u64(2))}, nil
		case raw[1] == tagTombstone && len(raw) == 10:
			return Key{Kind: KindTombstone, Shard: raft.ShardID(u64(2))}, nil
		case raw[1] == tagLiveness && len(raw) == 3 && raw[2] == tagRequester:
			return Key{Kind: KindRequester}, nil
		case raw[1] == tagLiveness && len(raw) == 7 && raw[2] == tagSupporter:
			return Key{Kind: KindSupporter, Node: raft.NodeID(binary.BigEndian.Uint32(raw[3:]))}, nil
		}
	case prefixLog:
		if len(raw) == logKeyLen {
			return Key{Kind: KindEntry, Shard: raft.ShardID(u64(1)), Index: raft.Index(u64(9))}, nil
		}
	case prefixHard:
		if len(raw) == groupKeyLen+1 && raw[9] == suffixHard {
			return Key{Kind: KindHard, Shard: raft.ShardID(u64(1))}, nil
		}
		if len(raw) == groupKeyLen+1 && raw[9] == suffixTrunc {
			return Key{Kind: KindTrunc, Shard: raft.ShardID(u64(1))}, nil
		}
		if len(raw) == groupKeyLen+1 && raw[9] == suffixVoid {
			return Key{Kind: KindVoid, Shard: raft.ShardID(u64(1))}, nil
		}
		if len(raw) == groupKeyLen+1 && raw[9] == suffixQuar {
			return Key{Kind: KindQuarantine, Shard: raft.ShardID(u64(1))}, nil
		}
		if len(raw) == groupKeyLen+9 && raw[9] == suffixSkipped {
			return Key{Kind: KindSkipped, Shard: raft.ShardID(u64(1)), Index: raft.Index(u64(10))}, nil
		}
	case prefixRecord:
		if len(raw) == logKeyLen {
			return Key{Kind: KindRecord, Epoch: u64(1), Seq: u64(9)}, nil
		}
	case prefixApplied:
		if len(raw) <= groupKeyLen {
			break
		}
		k := Key{Kind: KindGroup, Shard: raft.ShardID(u64(1)), Rest: raw[9:]}
		if len(raw) == groupKeyLen+1 {
			switch raw[9] {
			case suffixApplied:
				k.Kind, k.Rest = KindApplied, nil
			case suffixDesc:
				k.Kind, k.Rest = KindDesc, nil
			}
		}
		return k, nil
	case prefixData:
		if len(raw) >= dataHead {
			return Key{Kind: KindData, Keyspace: binary.BigEndian.Uint32(raw[1:]), Rest: raw[dataHead:]}, nil
		}
	}
	return bad()
}

// Raw is the inverse of ParseKey.
func (k Key) Raw() []byte {
	switch k.Kind {
	case KindStore:
		return append([]byte{prefixStore}, k.Rest...)
	case KindIntent:
		return intentKey(nil, k.Shard)
	case KindRequester:
		return requesterKey(nil)
	case KindSupporter:
		return supporterKey(nil, k.Node)
	case KindTombstone:
		return tombstoneKey(nil, k.Shard)
	case KindEntry:
		return appendLogKey(nil, k.Shard, k.Index)
	case KindHard:
		return hardKey(nil, k.Shard)
	case KindTrunc:
		return truncKey(nil, k.Shard)
	case KindVoid:
		return voidKey(nil, k.Shard)
	case KindQuarantine:
		return quarantineKey(nil, k.Shard)
	case KindSkipped:
		return skippedKey(nil, k.Shard, k.Index)
	case KindRecord:
		raw := make([]byte, logKeyLen)
		putRecordKey(raw, recordID{k.Epoch, k.Seq})
		return raw
	case KindApplied:
		return appliedKey(nil, k.Shard)
	case KindDesc:
		return descKey(nil, k.Shard)
	case KindGroup:
		return append(StatePrefix(k.Shard), k.Rest...)
	case KindData:
		return DataKey(k.Keyspace, k.Rest)
	}
	return nil
}
