package engine

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"

	"github.com/flotillakv/flotilla/multiraft/raft"
)

// A record: version u8, runs, crc32c u32 of everything before it.
// A run: shard u64, first index u64, number of entries u32, then of each entry its
// length uvarint and its bytes.
const (
	recordVersion = 1
	recordMin     = 1 + 4
	runHead       = 8 + 8 + 4
)

// appendRun adds a run to a record that lacks its checksum.
func appendRun(dst []byte, s raft.ShardID, ents []raft.Entry) []byte {
	dst = binary.BigEndian.AppendUint64(dst, uint64(s))
	dst = binary.BigEndian.AppendUint64(dst, uint64(ents[0].Index))
	dst = binary.BigEndian.AppendUint32(dst, uint32(len(ents)))
	for i := range ents {
		dst = binary.AppendUvarint(dst, uint64(len(ents[i].Value)))
		dst = append(dst, ents[i].Value...)
	}
	return dst
}

var errBadRecord = fmt.Errorf("log record is damaged: %w", raft.ErrCorrupt)

// parseRecord appends the runs of a record to dst.
func parseRecord(dst []run, b []byte) ([]run, error) {
	if len(b) < recordMin || b[0] != recordVersion {
		return dst, errBadRecord
	}
	body := b[:len(b)-4]
	if crc32.Checksum(body, castagnoli) != binary.BigEndian.Uint32(b[len(b)-4:]) {
		return dst, errBadRecord
	}
	for at := 1; at < len(body); {
		if len(body)-at < runHead {
			return dst, errBadRecord
		}
		r := run{
			shard: raft.ShardID(binary.BigEndian.Uint64(body[at:])),
			first: raft.Index(binary.BigEndian.Uint64(body[at+8:])),
			n:     binary.BigEndian.Uint32(body[at+16:]),
			off:   uint32(at),
		}
		at += runHead
		if r.n == 0 || r.first == 0 || r.last() < r.first {
			return dst, errBadRecord
		}
		for range r.n {
			n, used := binary.Uvarint(body[at:])
			if used <= 0 || n > uint64(len(body)-at-used) || used != uvarintLen(n) {
				return dst, errBadRecord
			}
			at += used + int(n)
		}
		dst = append(dst, r)
	}
	return dst, nil
}

// eachOf calls f with the entries of the run at offset off of a record that was
// checked when it was written or read first.
func eachOf(b []byte, off uint32, f func(i raft.Index, v []byte) bool) error {
	if uint64(off)+runHead > uint64(len(b)) {
		return errBadRecord
	}
	b = b[off:]
	first := raft.Index(binary.BigEndian.Uint64(b[8:]))
	n := binary.BigEndian.Uint32(b[16:])
	b = b[runHead:]
	for i := range n {
		size, used := binary.Uvarint(b)
		if used <= 0 || size > uint64(len(b)-used) {
			return errBadRecord
		}
		if !f(first+raft.Index(i), b[used:used+int(size):used+int(size)]) {
			return nil
		}
		b = b[used+int(size):]
	}
	return nil
}

// EachLogged calls f with every entry of a log record (KindRecord), in the order in
// which they were appended; fresh is set for the first one of a run, which takes the
// place of everything that the group had from there on. It is for those who look at a
// whole store (EachKey).
func EachLogged(record []byte, f func(s raft.ShardID, i raft.Index, fresh bool, value []byte) error) error {
	runs, err := parseRecord(nil, record)
	for i := range runs {
		r := &runs[i]
		if e := eachOf(record, r.off, func(at raft.Index, v []byte) bool {
			err = errors.Join(err, f(r.shard, at, at == r.first, v))
			return err == nil
		}); e != nil || err != nil {
			return errors.Join(err, e)
		}
	}
	return err
}

// A void mark: version u8, boot epoch u64, number u64. The runs of the group in
// records before it do not count.
func encodeVoid(dst []byte, id recordID) []byte {
	dst = binary.BigEndian.AppendUint64(append(dst, 1), id.epoch)
	return binary.BigEndian.AppendUint64(dst, id.seq)
}

func decodeVoid(b []byte) (recordID, error) {
	if len(b) != 17 || b[0] != 1 {
		return recordID{}, fmt.Errorf("void mark %x is damaged: %w", b, raft.ErrCorrupt)
	}
	return recordID{binary.BigEndian.Uint64(b[1:]), binary.BigEndian.Uint64(b[9:])}, nil
}
