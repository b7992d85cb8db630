package shard

import (
	"encoding/binary"
	"errors"
)

// ErrBadRecord says that a stored value record does not decode: it is damaged
// or was written by a newer version.
var ErrBadRecord = errors.New("shard: a stored value record does not decode; it is damaged or was written by a newer version")

// Layout of a value record (version 1):
//
//	ver|flags u8   version in the high four bits, flags in the low four
//	lineage uvarint, index uvarint, slot uvarint   the Version that wrote it
//	expiry u64     big-endian, only with flag 1
//	value          the rest
const (
	recordVersion    = 1 << 4
	recordFlagExpiry = 1 << 0
)

// Record is the decoded form of what is stored under a key.
type Record struct {
	Version Version
	// Expiry is group time in nanoseconds, zero for none. Reserved: this version
	// stores none and ignores it when read.
	Expiry uint64
	Bytes  []byte // aliases the encoded record
}

// AppendRecord appends the encoded record to dst.
func AppendRecord(dst []byte, v Version, expiry uint64, value []byte) []byte {
	if expiry == 0 {
		dst = append(dst, recordVersion)
		return append(v.Append(dst), value...)
	}
	dst = append(dst, recordVersion|recordFlagExpiry)
	dst = binary.BigEndian.AppendUint64(v.Append(dst), expiry)
	return append(dst, value...)
}

// DecodeRecord decodes a stored record without copying. Its only error is
// ErrBadRecord.
func DecodeRecord(b []byte) (Record, error) {
	r := reader{b: b}
	head := r.byte()
	if r.bad || head&^recordFlagExpiry != recordVersion {
		return Record{}, ErrBadRecord
	}
	rec := Record{Version: r.version()}
	if head&recordFlagExpiry != 0 && !r.bad {
		if len(r.b) < 8 {
			return Record{}, ErrBadRecord
		}
		rec.Expiry = binary.BigEndian.Uint64(r.b)
		r.b = r.b[8:]
	}
	if r.bad {
		return Record{}, ErrBadRecord
	}
	rec.Bytes = r.b
	return rec, nil
}
