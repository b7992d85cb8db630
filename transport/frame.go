package transport

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"

	"github.com/golang/snappy"

	"github.com/flotillakv/flotilla/multiraft/raft"
)

// A frame, all integers little endian:
//
//	header, 40 bytes
//	  0  magic    u16  0x4c46 ("FL")
//	  2  version  u8   1
//	  3  flags    u8   bit 0: the body is one snappy block
//	  4  from     u32  node id
//	  8  to       u32  node id
//	 12  boot     u64  boot epoch of the sender
//	 20  seq      u64  1, 2, 3, ... per stream
//	 28  nCtl     u16
//	 30  nMsg     u16
//	 32  bodyLen  u32  bytes after the header, as transmitted
//	 36  crc      u32  crc32c of header[0:36] and the body as transmitted
//	body: nCtl control records of 36 bytes
//	  0  kind u8 | flags u8 (bit 0: refused) | score u8 | zero u8
//	  4  epoch u64 | seq u64 | echo u64 | wall u64
//	then nMsg messages, each a record of 80 bytes followed by its entries
//	  0  shard u64
//	  8  type u8 | flags u8 | nEnt u16
//	 12  fromReplica u32 | toReplica u32
//	 20  entBytes u32  bytes of the entries that follow the record
//	 24  term u64 | index u64 | logTerm u64 | commit u64 | compactTo u64 | epoch u64 | round u64
//	 80  nEnt times: length u32, the entry's log value (indexes index+1, index+2, ...)
//
// A message or control record of a kind that this version does not know is
// skipped by its length. Everything else that is not as drawn refuses the
// whole frame.
const (
	frameMagic   = 0x4c46
	frameVersion = 1

	frameHeaderBytes = 40
	ctlRecordBytes   = 36
	msgRecordBytes   = 80
	entryPrefixBytes = 4

	frameFlagSnappy = 1 << 0
	ctlFlagRefused  = 1 << 0
)

const (
	// MaxFrameBytes bounds one frame, header included, before and after
	// decompression: one entry of the largest size plus room for the control
	// section. Longer ones are refused by the receiver and never sent.
	MaxFrameBytes = 4<<20 + 128<<10
	// FrameTargetBytes is the size up to which messages are coalesced into one
	// frame. One bigger message travels alone.
	FrameTargetBytes = 256 << 10
	// CompressMinBytes is the body size from which a frame is compressed when
	// Options.Compress is set.
	CompressMinBytes = 4 << 10

	maxMsgBytes      = MaxFrameBytes - frameHeaderBytes - maxCtlPerFrame*ctlRecordBytes
	maxCtlPerFrame   = 256
	maxMsgsPerFrame  = 1<<16 - 1
	maxEntriesPerMsg = 1<<16 - 1
)

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// ErrFrame is wrapped by every error of DecodeFrame: the frame is cut,
// corrupted, too large or of an unknown version. Nothing of it was used.
var ErrFrame = errors.New("transport: bad frame")

// errMsgTooLarge tells that a message cannot be put into any frame.
var errMsgTooLarge = errors.New("transport: message does not fit into a frame")

// FrameHeader is the part of a frame that is not its content.
type FrameHeader struct {
	From, To  raft.NodeID
	BootEpoch uint64 // of the sender
	Seq       uint64 // 1, 2, 3, ... within one stream
}

// Frame is a decoded frame. Entries alias the buffer that was decoded (or the
// one it was decompressed into). Ctl and Msgs are not shared with anything.
type Frame struct {
	FrameHeader
	Ctl     []raft.Ctl
	Msgs    []raft.Msg
	Skipped int // records of a kind this version does not know
}

// EncodeFrame appends a frame with ctl and msgs to dst. Messages carry the
// frame's From and To, whatever theirs say. It fails, leaving dst as it was,
// when the content does not fit into one frame or the entries of a message are
// not at Index+1, Index+2 and so on.
func EncodeFrame(dst []byte, h FrameHeader, ctl []raft.Ctl, msgs []raft.Msg, compress bool) ([]byte, error) {
	if len(ctl) > maxCtlPerFrame || len(msgs) > maxMsgsPerFrame {
		return dst, fmt.Errorf("transport: %d control records and %d messages do not fit into a frame", len(ctl), len(msgs))
	}
	start := len(dst)
	out := append(dst, make([]byte, frameHeaderBytes)...)
	for i := range ctl {
		out = appendCtl(out, &ctl[i])
	}
	for i := range msgs {
		size, err := msgSize(&msgs[i])
		if err != nil {
			return dst, err
		}
		if len(out)-start+size > MaxFrameBytes {
			return dst, errMsgTooLarge
		}
		out = appendMsg(out, &msgs[i], size)
	}
	body := out[start+frameHeaderBytes:]
	var flags uint8
	if compress && len(body) >= CompressMinBytes {
		packed := snappy.Encode(nil, body)
		if len(packed) < len(body) {
			out = append(out[:start+frameHeaderBytes], packed...)
			body = out[start+frameHeaderBytes:]
			flags |= frameFlagSnappy
		}
	}
	putFrameHeader(out[start:], h, flags, len(ctl), len(msgs), body, nil)
	return out, nil
}

// putFrameHeader fills hdr[0:40] for a body that lies in two parts.
func putFrameHeader(hdr []byte, h FrameHeader, flags uint8, nCtl, nMsg int, body1, body2 []byte) {
	le := binary.LittleEndian
	_ = hdr[frameHeaderBytes-1]
	le.PutUint16(hdr[0:], frameMagic)
	hdr[2] = frameVersion
	hdr[3] = flags
	le.PutUint32(hdr[4:], uint32(h.From))
	le.PutUint32(hdr[8:], uint32(h.To))
	le.PutUint64(hdr[12:], h.BootEpoch)
	le.PutUint64(hdr[20:], h.Seq)
	le.PutUint16(hdr[28:], uint16(nCtl))
	le.PutUint16(hdr[30:], uint16(nMsg))
	le.PutUint32(hdr[32:], uint32(len(body1)+len(body2)))
	crc := crc32.Update(0, castagnoli, hdr[:36])
	crc = crc32.Update(crc, castagnoli, body1)
	crc = crc32.Update(crc, castagnoli, body2)
	le.PutUint32(hdr[36:], crc)
}

func appendCtl(dst []byte, c *raft.Ctl) []byte {
	var flags uint8
	if c.Refused {
		flags |= ctlFlagRefused
	}
	le := binary.LittleEndian
	dst = append(dst, uint8(c.Kind), flags, c.Score, 0)
	dst = le.AppendUint64(dst, uint64(c.Epoch))
	dst = le.AppendUint64(dst, c.Seq)
	dst = le.AppendUint64(dst, c.Echo)
	return le.AppendUint64(dst, c.Wall)
}

// msgSize returns the encoded size of m, or why it cannot be encoded.
func msgSize(m *raft.Msg) (int, error) {
	size := msgRecordBytes
	if len(m.Entries) == 0 {
		return size, nil
	}
	if len(m.Entries) > maxEntriesPerMsg {
		return 0, errMsgTooLarge
	}
	for i := range m.Entries {
		if m.Entries[i].Index != m.Index+1+raft.Index(i) {
			return 0, fmt.Errorf("transport: entry %d of a message of shard %d has index %d, want %d",
				i, m.Shard, m.Entries[i].Index, m.Index+1+raft.Index(i))
		}
		size += entryPrefixBytes + len(m.Entries[i].Value)
	}
	if size > maxMsgBytes {
		return 0, errMsgTooLarge
	}
	return size, nil
}

// appendMsg appends m, whose size msgSize returned.
func appendMsg(dst []byte, m *raft.Msg, size int) []byte {
	le := binary.LittleEndian
	var r [msgRecordBytes]byte
	le.PutUint64(r[0:], uint64(m.Shard))
	r[8] = uint8(m.Type)
	r[9] = m.Flags
	le.PutUint16(r[10:], uint16(len(m.Entries)))
	le.PutUint32(r[12:], uint32(m.FromReplica))
	le.PutUint32(r[16:], uint32(m.ToReplica))
	le.PutUint32(r[20:], uint32(size-msgRecordBytes))
	le.PutUint64(r[24:], uint64(m.Term))
	le.PutUint64(r[32:], uint64(m.Index))
	le.PutUint64(r[40:], uint64(m.LogTerm))
	le.PutUint64(r[48:], uint64(m.Commit))
	le.PutUint64(r[56:], uint64(m.CompactTo))
	le.PutUint64(r[64:], uint64(m.Epoch))
	le.PutUint64(r[72:], m.Round)
	dst = append(dst, r[:]...)
	for i := range m.Entries {
		v := m.Entries[i].Value
		dst = le.AppendUint32(dst, uint32(len(v)))
		dst = append(dst, v...)
	}
	return dst
}

func frameErr(format string, args ...any) error {
	return fmt.Errorf("%w: %s", ErrFrame, fmt.Sprintf(format, args...))
}

// DecodeFrame decodes one whole frame. It checks sizes before it allocates,
// and the checksum before it looks at the content; what it allocates is
// bounded by a small multiple of MaxFrameBytes. Log entries are checked whole
// (raft.DecodeEntry): what passes can be stored and applied. Every error wraps
// ErrFrame.
func DecodeFrame(b []byte) (Frame, error) {
	le := binary.LittleEndian
	if len(b) < frameHeaderBytes {
		return Frame{}, frameErr("%d bytes, a header has %d", len(b), frameHeaderBytes)
	}
	if len(b) > MaxFrameBytes {
		return Frame{}, frameErr("%d bytes, the limit is %d", len(b), MaxFrameBytes)
	}
	if m := le.Uint16(b); m != frameMagic {
		return Frame{}, frameErr("magic %#04x", m)
	}
	if b[2] != frameVersion {
		return Frame{}, frameErr("version %d, this node speaks %d", b[2], frameVersion)
	}
	flags := b[3]
	if flags&^frameFlagSnappy != 0 {
		return Frame{}, frameErr("unknown flags %#02x", flags)
	}
	body := b[frameHeaderBytes:]
	if n := le.Uint32(b[32:]); uint64(n) != uint64(len(body)) {
		return Frame{}, frameErr("body of %d bytes, the header says %d", len(body), n)
	}
	crc := crc32.Update(0, castagnoli, b[:36])
	crc = crc32.Update(crc, castagnoli, body)
	if want := le.Uint32(b[36:]); crc != want {
		return Frame{}, frameErr("checksum %08x, want %08x", crc, want)
	}
	f := Frame{FrameHeader: FrameHeader{
		From: raft.NodeID(le.Uint32(b[4:])), To: raft.NodeID(le.Uint32(b[8:])),
		BootEpoch: le.Uint64(b[12:]), Seq: le.Uint64(b[20:]),
	}}
	nCtl, nMsg := int(le.Uint16(b[28:])), int(le.Uint16(b[30:]))
	if flags&frameFlagSnappy != 0 {
		n, err := snappy.DecodedLen(body)
		if err != nil {
			return Frame{}, frameErr("snappy: %v", err)
		}
		if n > MaxFrameBytes-frameHeaderBytes {
			return Frame{}, frameErr("%d bytes when decompressed, the limit is %d", n, MaxFrameBytes)
		}
		if n > maxSnappyRatio*len(body) {
			return Frame{}, frameErr("%d bytes cannot hold %d compressed ones", len(body), n)
		}
		if body, err = snappy.Decode(make([]byte, n), body); err != nil {
			return Frame{}, frameErr("snappy: %v", err)
		}
	}
	if need := nCtl*ctlRecordBytes + nMsg*msgRecordBytes; need > len(body) {
		return Frame{}, frameErr("%d control records and %d messages in %d bytes", nCtl, nMsg, len(body))
	}
	if nCtl > 0 {
		f.decodeCtl(body, nCtl)
		body = body[nCtl*ctlRecordBytes:]
	}
	if err := f.decodeMsgs(body, nMsg); err != nil {
		return Frame{}, err
	}
	return f, nil
}

// maxSnappyRatio bounds what one compressed byte becomes: the densest element
// of the format, a copy, makes 64 bytes from three.
const maxSnappyRatio = 22

// decodeCtl reads n records from b, which is long enough.
func (f *Frame) decodeCtl(b []byte, n int) {
	le := binary.LittleEndian
	f.Ctl = make([]raft.Ctl, 0, n)
	for ; n > 0; n, b = n-1, b[ctlRecordBytes:] {
		k := raft.CtlKind(b[0])
		if k < raft.CtlHeartbeat || k > raft.CtlRelinquish {
			f.Skipped++
			continue
		}
		f.Ctl = append(f.Ctl, raft.Ctl{
			Kind: k, Refused: b[1]&ctlFlagRefused != 0, Score: b[2],
			Epoch: raft.Epoch(le.Uint64(b[4:])), Seq: le.Uint64(b[12:]),
			Echo: le.Uint64(b[20:]), Wall: le.Uint64(b[28:]),
		})
	}
}

// decodeMsgs reads n messages, which must fill b exactly.
func (f *Frame) decodeMsgs(b []byte, n int) error {
	le := binary.LittleEndian
	ents, err := countEntries(b, n)
	if err != nil {
		return err
	}
	if n == 0 {
		return nil
	}
	f.Msgs = make([]raft.Msg, 0, n)
	var pool []raft.Entry
	if ents > 0 {
		pool = make([]raft.Entry, 0, ents)
	}
	for ; n > 0; n-- {
		entBytes := int(le.Uint32(b[20:]))
		rec, vals := b, b[msgRecordBytes:msgRecordBytes+entBytes]
		b = b[msgRecordBytes+entBytes:]
		typ := raft.MsgType(rec[8])
		if typ < raft.MsgApp || typ > raft.MsgLast {
			f.Skipped++
			continue
		}
		m := raft.Msg{
			Type: typ, Flags: rec[9], Shard: raft.ShardID(le.Uint64(rec)),
			From: f.From, To: f.To,
			FromReplica: raft.ReplicaID(le.Uint32(rec[12:])), ToReplica: raft.ReplicaID(le.Uint32(rec[16:])),
			Term: raft.Term(le.Uint64(rec[24:])), Index: raft.Index(le.Uint64(rec[32:])),
			LogTerm: raft.Term(le.Uint64(rec[40:])), Commit: raft.Index(le.Uint64(rec[48:])),
			CompactTo: raft.Index(le.Uint64(rec[56:])), Epoch: raft.Epoch(le.Uint64(rec[64:])),
			Round: le.Uint64(rec[72:]), Boot: f.BootEpoch,
		}
		if nEnt := int(le.Uint16(rec[10:])); nEnt > 0 {
			if m.Index > 1<<63 {
				return frameErr("entries after index %d", m.Index)
			}
			first := len(pool)
			for i := range nEnt {
				size := int(le.Uint32(vals))
				v := vals[entryPrefixBytes : entryPrefixBytes+size : entryPrefixBytes+size]
				vals = vals[entryPrefixBytes+size:]
				e, err := raft.DecodeEntry(m.Index+1+raft.Index(i), v)
				if err != nil {
					return frameErr("entry %d of shard %d: %v", m.Index+1+raft.Index(i), m.Shard, err)
				}
				pool = append(pool, e)
			}
			m.Entries = pool[first:len(pool):len(pool)]
		}
		f.Msgs = append(f.Msgs, m)
	}
	return nil
}

// countEntries walks n messages without decoding them and checks that every
// length fits, that entries fill exactly what their record says, and that the
// messages fill b exactly. It returns the number of entries.
func countEntries(b []byte, n int) (int, error) {
	le := binary.LittleEndian
	ents := 0
	for i := range n {
		if len(b) < msgRecordBytes {
			return 0, frameErr("message %d of %d is cut", i, n)
		}
		entBytes, nEnt := uint64(le.Uint32(b[20:])), int(le.Uint16(b[10:]))
		b = b[msgRecordBytes:]
		if entBytes > uint64(len(b)) {
			return 0, frameErr("message %d of %d: %d bytes of entries in %d bytes", i, n, entBytes, len(b))
		}
		vals := b[:entBytes]
		b = b[entBytes:]
		for range nEnt {
			if len(vals) < entryPrefixBytes {
				return 0, frameErr("message %d of %d: entries are cut", i, n)
			}
			size := uint64(le.Uint32(vals))
			vals = vals[entryPrefixBytes:]
			if size > uint64(len(vals)) {
				return 0, frameErr("message %d of %d: an entry of %d bytes in %d", i, n, size, len(vals))
			}
			vals = vals[size:]
		}
		if len(vals) != 0 {
			return 0, frameErr("message %d of %d: %d bytes after its entries", i, n, len(vals))
		}
		ents += nEnt
	}
	if len(b) != 0 {
		return 0, frameErr("%d bytes after the last message", len(b))
	}
	return ents, nil
}
