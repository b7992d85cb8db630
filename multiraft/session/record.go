package session

import (
	"encoding/binary"
	"errors"
	"fmt"
	"math/bits"

	"github.com/flotillakv/flotilla/internal/mutants"
	"github.com/flotillakv/flotilla/multiraft/raft"
)

// Bounds of what a group keeps. They are part of the replicated behaviour: all
// nodes of a cluster must have the same.
const (
	// Window is the number of sequence numbers a record tells apart, ending with
	// the highest one seen. A client has at most so many commands of one session
	// and lineage unsettled.
	Window = 64
	// MaxResultBytes bounds the results kept in one record, in bytes.
	MaxResultBytes = 4 << 10
	// MaxSessions bounds the records of one group. Past it new sessions are refused.
	MaxSessions = 10_000
	// MaxAheadNanos bounds how far a deadline may lie ahead of group time: two hours.
	MaxAheadNanos = 2 * 3600 * 1_000_000_000
)

// ErrBadRecord says that a stored session record does not decode: it is damaged
// or was written by a newer version.
var ErrBadRecord = errors.New("session: a stored session record does not decode; it is damaged or was written by a newer version; upgrade this node")

// Result is what became of an executed command.
type Result struct {
	// Where it was executed: the shard whose log holds it, index and slot.
	Lineage raft.ShardID
	Index   raft.Index
	Slot    uint32
	// Cut says that Bytes is the short form, because the full one was too large
	// to keep.
	Cut bool
	// Bytes is the result, opaque here. It aliases the record it was decoded from.
	Bytes []byte
}

// kept is a result that the client has not acknowledged.
type kept struct {
	seq uint64
	Result
}

// Record is what a group knows of one session and lineage.
type Record struct {
	// maxSeq is the highest sequence number executed, at least 1.
	maxSeq uint64
	// acked: the client has settled everything up to here. At most maxSeq.
	acked uint64
	// done has bit k set if maxSeq-k was executed. Bit 0 is set.
	done uint64
	// deadline is the latest deadline of any command executed, group time.
	deadline uint64
	// born is the group time at which the record was made. There may have been an
	// earlier one, all of whose deadlines were below it.
	born uint64
	// results, ascending by seq, each above acked, within the window, with its bit set.
	results []kept
}

// The layout of a session record (version 1), the value under 's' client lineage:
//
//	ver u8, maxSeq uvarint, acked uvarint, done u64, deadline u64, born u64,
//	n uvarint, per result: maxSeq-seq u8, flags u8 (bit 0: cut),
//	  lineage uvarint, index uvarint, slot uvarint, resultLen uvarint, result
const recordVersion = 1

const flagCut = 1 << 0

// appendTo appends the encoded record to dst.
func (r *Record) appendTo(dst []byte) []byte {
	dst = append(dst, recordVersion)
	dst = binary.AppendUvarint(dst, r.maxSeq)
	dst = binary.AppendUvarint(dst, r.acked)
	dst = binary.BigEndian.AppendUint64(dst, r.done)
	dst = binary.BigEndian.AppendUint64(dst, r.deadline)
	dst = binary.BigEndian.AppendUint64(dst, r.born)
	dst = binary.AppendUvarint(dst, uint64(len(r.results)))
	for i := range r.results {
		k := &r.results[i]
		flags := byte(0)
		if k.Cut {
			flags = flagCut
		}
		dst = append(dst, byte(r.maxSeq-k.seq), flags)
		dst = binary.AppendUvarint(dst, uint64(k.Lineage))
		dst = binary.AppendUvarint(dst, uint64(k.Index))
		dst = binary.AppendUvarint(dst, uint64(k.Slot))
		dst = binary.AppendUvarint(dst, uint64(len(k.Bytes)))
		dst = append(dst, k.Bytes...)
	}
	return dst
}

// decode reads b into r, whose memory it reuses. Results alias b. The only error
// is ErrBadRecord.
func (r *Record) decode(b []byte) error {
	results := r.results[:0]
	*r = Record{}
	c := cursor{b: b}
	if c.u8() != recordVersion {
		return ErrBadRecord
	}
	r.maxSeq, r.acked, r.done, r.deadline, r.born = c.uvarint(), c.uvarint(), c.u64(), c.u64(), c.u64()
	n := c.uvarint()
	if c.bad || r.maxSeq == 0 || r.acked > r.maxSeq || r.done&1 == 0 || n > Window ||
		r.maxSeq < Window && r.done>>r.maxSeq != 0 {
		return ErrBadRecord
	}
	sum := 0
	for range n {
		back := uint64(c.u8())
		flags := c.u8()
		k := kept{seq: r.maxSeq - back}
		k.Cut = flags == flagCut
		k.Lineage, k.Index = raft.ShardID(c.uvarint()), raft.Index(c.uvarint())
		slot := c.uvarint()
		k.Slot, k.Bytes = uint32(slot), c.bytes()
		sum += len(k.Bytes)
		if c.bad || back >= Window || back >= r.maxSeq || flags > flagCut || slot > 1<<32-1 || k.seq <= r.acked || r.done>>back&1 == 0 ||
			len(results) > 0 && results[len(results)-1].seq >= k.seq {
			return ErrBadRecord
		}
		results = append(results, k)
	}
	if c.bad || len(c.b) > 0 || sum > MaxResultBytes {
		return ErrBadRecord
	}
	r.results = results
	return nil
}

// executed reports whether seq is known to have been executed. Below the window
// nothing is known.
func (r *Record) executed(seq uint64) bool {
	return seq <= r.maxSeq && r.maxSeq-seq < Window && r.done>>(r.maxSeq-seq)&1 == 1
}

// settled reports whether the client has said that it wants nothing more of seq,
// or would have had to before it could go on to maxSeq.
func (r *Record) settled(seq uint64) bool {
	below := r.maxSeq >= Window && seq <= r.maxSeq-Window
	return seq <= r.acked || below
}

// result returns the result kept for seq.
func (r *Record) result(seq uint64) (Result, bool) {
	for i := range r.results {
		if r.results[i].seq == seq || mutants.On("F1g") {
			return r.results[i].Result, true
		}
	}
	return Result{}, false
}

// note takes in that seq was executed. The header of seq has passed check. short
// is the form of the result to be kept if the full one does not fit.
func (r *Record) note(h *raft.SessionHeader, res Result, short []byte) {
	switch {
	case r.maxSeq == 0:
		r.maxSeq, r.done = h.Seq, 1
	case h.Seq > r.maxSeq:
		by := h.Seq - r.maxSeq
		if mutants.On("F1c") {
			by--
		}
		r.done = r.done<<by | 1 // a shift by 64 or more leaves nothing
		r.maxSeq = h.Seq
	default:
		r.done |= 1 << (r.maxSeq - h.Seq)
	}
	r.deadline = max(r.deadline, h.Deadline)
	r.acked = max(r.acked, h.AckedTo)
	n, sum := 0, 0
	for _, k := range r.results {
		if k.seq > r.acked && r.maxSeq-k.seq < Window {
			r.results[n] = k
			n++
			sum += len(k.Bytes)
		}
	}
	r.results = r.results[:n]
	if h.Seq <= r.acked {
		return
	}
	if sum+len(res.Bytes) > MaxResultBytes {
		res.Cut, res.Bytes = true, short
		if sum+len(short) > MaxResultBytes {
			res.Bytes = nil
		}
	}
	at := n
	for at > 0 && r.results[at-1].seq > h.Seq {
		at--
	}
	r.results = append(r.results, kept{})
	copy(r.results[at+1:], r.results[at:])
	r.results[at] = kept{h.Seq, res}
}

// String describes the record for people.
func (r *Record) String() string {
	return fmt.Sprintf("max %d acked %d executed %d of the last %d, %d results, deadline %d",
		r.maxSeq, r.acked, bits.OnesCount64(r.done), min(r.maxSeq, Window), len(r.results), r.deadline)
}

// cursor reads an encoded record. The first bad read sets bad; later ones return zero.
type cursor struct {
	b   []byte
	bad bool
}

func (c *cursor) take(n uint64) []byte {
	if n > uint64(len(c.b)) {
		c.b, c.bad = nil, true
		return nil
	}
	v := c.b[:n:n]
	c.b = c.b[n:]
	return v
}

func (c *cursor) u8() byte {
	if v := c.take(1); v != nil {
		return v[0]
	}
	return 0
}

func (c *cursor) u64() uint64 {
	if v := c.take(8); v != nil {
		return binary.BigEndian.Uint64(v)
	}
	return 0
}

func (c *cursor) uvarint() uint64 {
	v, n := binary.Uvarint(c.b)
	if n <= 0 {
		c.b, c.bad = nil, true
		return 0
	}
	c.b = c.b[n:]
	return v
}

func (c *cursor) bytes() []byte { return c.take(c.uvarint()) }
