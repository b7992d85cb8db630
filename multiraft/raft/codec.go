package raft

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"iter"
)

// Format versions. A change of a layout raises its version, keeps the old
// reader and adds a golden file.
const (
	entryVersion      = 1
	hardStateVersion  = 1
	appliedVersion    = 2 // 1 had no digest
	descriptorVersion = 1
	confChangeVersion = 1
)

const (
	// MaxEntryBytes bounds the encoded form of one entry; larger ones are
	// refused when proposed and when decoded.
	MaxEntryBytes = 4<<20 - 4096
	// CoalesceBytes and CoalesceCmds bound the commands that an owner puts into
	// one entry. One larger command makes an entry of its own.
	CoalesceBytes = 64 << 10
	// CoalesceCmds bounds the commands of one entry.
	CoalesceCmds = 256
	// MaxReplicas bounds the replicas of one descriptor.
	MaxReplicas = 16
	// maxEntryCmds bounds the commands of a decoded entry.
	maxEntryCmds = 1 << 20
)

// entryFixed is the length of version, type, flags and checksum.
const entryFixed = 3 + 4

// cmdSession is the bit of a command's flag byte that says a session header
// follows. It is taken from Command.Flags, whose other seven bits are free.
const cmdSession = 0x80

// ErrCorrupt is wrapped by every decode error: the bytes are not a value that
// the encoder wrote, or not for this place.
var ErrCorrupt = errors.New("raft: corrupt record")

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

func corrupt(what, why string) error {
	return fmt.Errorf("raft: %s: %s: %w", what, why, ErrCorrupt)
}

// EncodeEntry appends the encoded entry to dst and returns it. The layout:
//
//	version u8 | type u8 | flags u8 | crc32c u32
//	term uvarint | descVersion uvarint | groupTs uvarint | commands uvarint
//	per command: op u8 | flags u8 | session? | bodyLen uvarint | body
//	session: id 16 bytes | lineage uvarint | seq uvarint | ackedTo uvarint | deadline uvarint
//
// The checksum (Castagnoli) covers the index (8 bytes, big-endian, not
// stored), the three bytes before the checksum and everything after it, so an
// entry that was moved to another index does not decode. Integers are
// big-endian; uvarints are minimal.
func EncodeEntry(dst []byte, index Index, term Term, typ EntryType, h EntryHeader, cmds []Command) []byte {
	start := len(dst)
	dst = append(dst, entryVersion, byte(typ), h.Flags, 0, 0, 0, 0)
	dst = binary.AppendUvarint(dst, uint64(term))
	dst = binary.AppendUvarint(dst, h.DescVersion)
	dst = binary.AppendUvarint(dst, h.GroupTs)
	dst = binary.AppendUvarint(dst, uint64(len(cmds)))
	for i := range cmds {
		c := &cmds[i]
		flags := c.Flags &^ cmdSession
		if c.Session != nil {
			flags |= cmdSession
		}
		dst = append(dst, byte(c.Op), flags)
		if s := c.Session; s != nil {
			dst = append(dst, s.ID[:]...)
			dst = binary.AppendUvarint(dst, uint64(s.Lineage))
			dst = binary.AppendUvarint(dst, s.Seq)
			dst = binary.AppendUvarint(dst, s.AckedTo)
			dst = binary.AppendUvarint(dst, s.Deadline)
		}
		dst = binary.AppendUvarint(dst, uint64(len(c.Body)))
		dst = append(dst, c.Body...)
	}
	v := dst[start:]
	binary.BigEndian.PutUint32(v[3:], entryCRC(index, v))
	return dst
}

// EntrySize bounds the bytes EncodeEntry appends for cmds from above.
func EntrySize(cmds []Command) int {
	n := entryFixed + 4*binary.MaxVarintLen64
	for i := range cmds {
		n += 2 + binary.MaxVarintLen32 + len(cmds[i].Body)
		if cmds[i].Session != nil {
			n += 16 + 4*binary.MaxVarintLen64
		}
	}
	return n
}

func entryCRC(index Index, v []byte) uint32 {
	// The first bytes by hand: a buffer for them would be allocated.
	crc := ^uint32(0)
	for shift := 56; shift >= 0; shift -= 8 {
		crc = castagnoli[byte(crc)^byte(index>>shift)] ^ crc>>8
	}
	for _, b := range v[:3] {
		crc = castagnoli[byte(crc)^b] ^ crc>>8
	}
	return crc32.Update(^crc, castagnoli, v[entryFixed:])
}

// DecodeEntry checks the encoded entry for the given index (version, type,
// checksum, the whole structure) and returns it. The entry aliases value.
func DecodeEntry(index Index, value []byte) (Entry, error) {
	if len(value) < entryFixed+4 {
		return Entry{}, corrupt("entry", "too short")
	}
	if len(value) > MaxEntryBytes {
		return Entry{}, corrupt("entry", "longer than the limit")
	}
	if value[0] != entryVersion {
		return Entry{}, corrupt("entry", fmt.Sprintf("unknown version %d", value[0]))
	}
	if binary.BigEndian.Uint32(value[3:]) != entryCRC(index, value) {
		return Entry{}, corrupt("entry", "checksum mismatch")
	}
	e := Entry{Index: index, Type: EntryType(value[1]), Value: value}
	r := reader{b: value[entryFixed:]}
	e.Term = Term(r.uvarint())
	r.uvarint()
	r.uvarint()
	n := r.uvarint()
	if r.bad || n > maxEntryCmds {
		return Entry{}, corrupt("entry", "malformed header")
	}
	for i := uint64(0); i < n; i++ {
		var c Command
		if !r.command(&c, nil) {
			return Entry{}, corrupt("entry", "malformed command")
		}
		if e.Type == EntryConf {
			if _, err := DecodeConfChange(c.Body); err != nil {
				return Entry{}, err
			}
		}
		if e.Type == EntryCut {
			if cut, err := DecodeCut(c.Body); err != nil || cut.Index >= index {
				return Entry{}, corrupt("entry", "a cut that cannot be")
			}
		}
	}
	if len(r.b) != 0 {
		return Entry{}, corrupt("entry", "bytes after the last command")
	}
	if e.Term == 0 || index == 0 {
		return Entry{}, corrupt("entry", "zero term or index")
	}
	ok := false
	switch e.Type {
	case EntryEmpty:
		ok = n == 0
	case EntryNormal:
		ok = n >= 1
	case EntryConf, EntryAdmin, EntryCut:
		ok = n == 1
	}
	if !ok {
		return Entry{}, corrupt("entry", fmt.Sprintf("type %d with %d commands", e.Type, n))
	}
	return e, nil
}

// PeekEntry returns term and type without checking the checksum. It is for
// bytes this process has checked before.
func PeekEntry(value []byte) (Term, EntryType, error) {
	if len(value) < entryFixed+1 || value[0] != entryVersion {
		return 0, 0, corrupt("entry", "too short or of an unknown version")
	}
	r := reader{b: value[entryFixed:]}
	t := Term(r.uvarint())
	if r.bad {
		return 0, 0, corrupt("entry", "malformed term")
	}
	return t, EntryType(value[1]), nil
}

// Header returns the header that the entry's commands share.
func (e Entry) Header() (EntryHeader, error) {
	if len(e.Value) < entryFixed || e.Value[0] != entryVersion {
		return EntryHeader{}, corrupt("entry", "too short or of an unknown version")
	}
	h := EntryHeader{Flags: e.Value[2]}
	r := reader{b: e.Value[entryFixed:]}
	r.uvarint()
	h.DescVersion = r.uvarint()
	h.GroupTs = r.uvarint()
	if r.bad {
		return EntryHeader{}, corrupt("entry", "malformed header")
	}
	return h, nil
}

// Commands yields the entry's commands with their slot, from 0. Bodies alias
// Value. Nothing is allocated, except for session headers. The entry must have
// passed DecodeEntry or come from EncodeEntry; a malformed one ends the
// sequence early.
func (e Entry) Commands() iter.Seq2[int, Command] {
	return func(yield func(int, Command) bool) {
		if len(e.Value) < entryFixed || e.Value[0] != entryVersion {
			return
		}
		r := reader{b: e.Value[entryFixed:]}
		r.uvarint()
		r.uvarint()
		r.uvarint()
		n := r.uvarint()
		for i := uint64(0); i < n && !r.bad; i++ {
			var c Command
			if len(r.b) >= 2 && r.b[1]&cmdSession != 0 {
				s := new(SessionHeader)
				if !r.command(&c, s) {
					return
				}
				c.Session = s
			} else if !r.command(&c, nil) {
				return
			}
			if !yield(int(i), c) {
				return
			}
		}
	}
}

// Len returns how many commands the entry holds.
func (e Entry) Len() int {
	if len(e.Value) < entryFixed || e.Value[0] != entryVersion {
		return 0
	}
	r := reader{b: e.Value[entryFixed:]}
	r.uvarint()
	r.uvarint()
	r.uvarint()
	n := r.uvarint()
	if r.bad || n > maxEntryCmds {
		return 0
	}
	return int(n)
}

// ConfChange returns the change that an EntryConf carries.
func (e Entry) ConfChange() (ConfChange, error) {
	if e.Type != EntryConf {
		return ConfChange{}, corrupt("entry", "not a configuration change")
	}
	for _, c := range e.Commands() {
		return DecodeConfChange(c.Body)
	}
	return ConfChange{}, corrupt("entry", "configuration change without a body")
}

// reader takes a byte string apart. After the first malformed field bad is set
// and everything reads as zero.
type reader struct {
	b   []byte
	bad bool
}

func (r *reader) uvarint() uint64 {
	if r.bad {
		return 0
	}
	v, n := binary.Uvarint(r.b)
	if n <= 0 || (n > 1 && r.b[n-1] == 0) {
		r.bad = true
		return 0
	}
	r.b = r.b[n:]
	return v
}

func (r *reader) take(n uint64) []byte {
	if r.bad || n > uint64(len(r.b)) {
		r.bad = true
		return nil
	}
	v := r.b[:n:n]
	r.b = r.b[n:]
	return v
}

func (r *reader) u8() byte {
	if v := r.take(1); v != nil {
		return v[0]
	}
	return 0
}

func (r *reader) u32() uint32 {
	if v := r.take(4); v != nil {
		return binary.BigEndian.Uint32(v)
	}
	return 0
}

func (r *reader) u64() uint64 {
	if v := r.take(8); v != nil {
		return binary.BigEndian.Uint64(v)
	}
	return 0
}

// command reads one command into c, and its session header, if any, into s.
func (r *reader) command(c *Command, s *SessionHeader) bool {
	c.Op = Op(r.u8())
	flags := r.u8()
	c.Flags = flags &^ cmdSession
	if flags&cmdSession != 0 {
		id := r.take(16)
		lineage, seq, acked, deadline := r.uvarint(), r.uvarint(), r.uvarint(), r.uvarint()
		if r.bad {
			return false
		}
		if s != nil {
			*s = SessionHeader{Lineage: ShardID(lineage), Seq: seq, AckedTo: acked, Deadline: deadline}
			copy(s.ID[:], id)
		}
	}
	c.Body = r.take(r.uvarint())
	return !r.bad
}

// Small records share one frame: version u8 | crc32c u32 | body. The checksum
// covers a letter that names the kind (not stored), the version and the body.
const recordFixed = 1 + 4

func beginRecord(dst []byte, version byte) []byte {
	return append(dst, version, 0, 0, 0, 0)
}

func recordCRC(kind byte, v []byte) uint32 {
	crc := ^uint32(0) // by hand, as in entryCRC
	for _, b := range [2]byte{kind, v[0]} {
		crc = castagnoli[byte(crc)^b] ^ crc>>8
	}
	return crc32.Update(^crc, castagnoli, v[recordFixed:])
}

func endRecord(dst []byte, start int, kind byte) []byte {
	v := dst[start:]
	binary.BigEndian.PutUint32(v[1:], recordCRC(kind, v))
	return dst
}

func openRecord(v []byte, kind, version byte, what string) (reader, error) {
	if len(v) < recordFixed {
		return reader{}, corrupt(what, "too short")
	}
	if v[0] != version {
		return reader{}, corrupt(what, fmt.Sprintf("unknown version %d", v[0]))
	}
	if binary.BigEndian.Uint32(v[1:]) != recordCRC(kind, v) {
		return reader{}, corrupt(what, "checksum mismatch")
	}
	return reader{b: v[recordFixed:]}, nil
}

func (r *reader) close(what string) error {
	if r.bad {
		return corrupt(what, "malformed field")
	}
	if len(r.b) != 0 {
		return corrupt(what, "bytes after the last field")
	}
	return nil
}

// Encode appends the record to dst: frame, then term, vote, lead, leadNode,
// leadEpoch, commit (u64, u32, u32, u32, u64, u64) and flags u8 (bit 0: leased).
func (h HardState) Encode(dst []byte) []byte {
	start := len(dst)
	dst = beginRecord(dst, hardStateVersion)
	dst = binary.BigEndian.AppendUint64(dst, uint64(h.Term))
	dst = binary.BigEndian.AppendUint32(dst, uint32(h.Vote))
	dst = binary.BigEndian.AppendUint32(dst, uint32(h.Lead))
	dst = binary.BigEndian.AppendUint32(dst, uint32(h.LeadNode))
	dst = binary.BigEndian.AppendUint64(dst, uint64(h.LeadEpoch))
	dst = binary.BigEndian.AppendUint64(dst, uint64(h.Commit))
	var flags byte
	if h.Leased {
		flags = 1
	}
	dst = append(dst, flags)
	return endRecord(dst, start, 'h')
}

// DecodeHardState reads what HardState.Encode wrote.
func DecodeHardState(v []byte) (HardState, error) {
	r, err := openRecord(v, 'h', hardStateVersion, "hard state")
	if err != nil {
		return HardState{}, err
	}
	h := HardState{
		Term: Term(r.u64()), Vote: ReplicaID(r.u32()), Lead: ReplicaID(r.u32()), LeadNode: NodeID(r.u32()),
		LeadEpoch: Epoch(r.u64()), Commit: Index(r.u64()),
	}
	flags := r.u8()
	h.Leased = flags == 1
	if flags > 1 {
		return HardState{}, corrupt("hard state", "unknown flag")
	}
	if err := r.close("hard state"); err != nil {
		return HardState{}, err
	}
	return h, nil
}

// Encode appends the record to dst: frame, then the ten fields in the order
// of the struct, each u64.
func (a AppliedState) Encode(dst []byte) []byte {
	start := len(dst)
	dst = beginRecord(dst, appliedVersion)
	for _, v := range [...]uint64{
		uint64(a.Applied), uint64(a.AppliedTerm), uint64(a.TruncIndex), uint64(a.TruncTerm),
		uint64(a.ConfIndex), a.WrittenBytes, a.WrittenKeys, a.GroupTs,
		uint64(a.Digest), uint64(a.DigestFrom),
	} {
		dst = binary.BigEndian.AppendUint64(dst, v)
	}
	return endRecord(dst, start, 'a')
}

// DecodeAppliedState reads what AppliedState.Encode wrote, of this version or of
// version 1, which has no digest.
func DecodeAppliedState(v []byte) (AppliedState, error) {
	version := byte(appliedVersion)
	if len(v) > 0 && v[0] == 1 {
		version = 1
	}
	r, err := openRecord(v, 'a', version, "applied state")
	if err != nil {
		return AppliedState{}, err
	}
	a := AppliedState{
		Applied: Index(r.u64()), AppliedTerm: Term(r.u64()), TruncIndex: Index(r.u64()), TruncTerm: Term(r.u64()),
		ConfIndex: Index(r.u64()), WrittenBytes: r.u64(), WrittenKeys: r.u64(), GroupTs: r.u64(),
		DigestFrom: NoDigest,
	}
	if version > 1 {
		a.Digest, a.DigestFrom = Digest(r.u64()), Index(r.u64())
	}
	if err := r.close("applied state"); err != nil {
		return AppliedState{}, err
	}
	if a.TruncIndex > a.Applied {
		return AppliedState{}, corrupt("applied state", "log cut above the applied index")
	}
	return a, nil
}

// Encode appends the record to dst: frame, then shard u64, keyspace u32,
// confVer, version, nextReplica uvarint, mergeState u8, start and end (length
// uvarint, bytes), the number of replicas uvarint and per replica node u32,
// id u32, role u8.
func (d *Descriptor) Encode(dst []byte) []byte {
	start := len(dst)
	dst = beginRecord(dst, descriptorVersion)
	dst = binary.BigEndian.AppendUint64(dst, uint64(d.Shard))
	dst = binary.BigEndian.AppendUint32(dst, d.Keyspace)
	dst = binary.AppendUvarint(dst, d.ConfVer)
	dst = binary.AppendUvarint(dst, d.Version)
	dst = binary.AppendUvarint(dst, uint64(d.NextReplica))
	dst = append(dst, d.MergeState)
	dst = binary.AppendUvarint(dst, uint64(len(d.Start)))
	dst = append(dst, d.Start...)
	dst = binary.AppendUvarint(dst, uint64(len(d.End)))
	dst = append(dst, d.End...)
	dst = binary.AppendUvarint(dst, uint64(len(d.Replicas)))
	for _, p := range d.Replicas {
		dst = appendReplica(dst, p)
	}
	return endRecord(dst, start, 'd')
}

// DecodeDescriptor reads what Descriptor.Encode wrote. The keys are copied.
func DecodeDescriptor(v []byte) (Descriptor, error) {
	r, err := openRecord(v, 'd', descriptorVersion, "descriptor")
	if err != nil {
		return Descriptor{}, err
	}
	d := Descriptor{Shard: ShardID(r.u64()), Keyspace: r.u32(), ConfVer: r.uvarint(), Version: r.uvarint()}
	next := r.uvarint()
	d.NextReplica = ReplicaID(next)
	d.MergeState = r.u8()
	d.Start = append([]byte(nil), r.take(r.uvarint())...)
	d.End = append([]byte(nil), r.take(r.uvarint())...)
	n := r.uvarint()
	if r.bad || n > MaxReplicas || next != uint64(d.NextReplica) {
		return Descriptor{}, corrupt("descriptor", "malformed field")
	}
	for i := uint64(0); i < n; i++ {
		p := r.replica()
		if k := len(d.Replicas); k > 0 && d.Replicas[k-1].Node >= p.Node {
			return Descriptor{}, corrupt("descriptor", "replicas not sorted by node")
		}
		d.Replicas = append(d.Replicas, p)
	}
	if err := r.close("descriptor"); err != nil {
		return Descriptor{}, err
	}
	for _, p := range d.Replicas {
		if p.Node == 0 || p.ID == 0 || p.Role < Voter || p.Role > VoterDemoting {
			return Descriptor{}, corrupt("descriptor", "malformed replica")
		}
	}
	return d, nil
}

func appendReplica(dst []byte, p Replica) []byte {
	dst = binary.BigEndian.AppendUint32(dst, uint32(p.Node))
	dst = binary.BigEndian.AppendUint32(dst, uint32(p.ID))
	return append(dst, byte(p.Role))
}

func (r *reader) replica() Replica {
	return Replica{Node: NodeID(r.u32()), ID: ReplicaID(r.u32()), Role: Role(r.u8())}
}

// Encode appends the record to dst: frame, then confVer uvarint, the number of
// steps uvarint, and per step remove u8 and the replica as in a descriptor.
func (c ConfChange) Encode(dst []byte) []byte {
	start := len(dst)
	dst = beginRecord(dst, confChangeVersion)
	dst = binary.AppendUvarint(dst, c.ConfVer)
	dst = binary.AppendUvarint(dst, uint64(len(c.Steps)))
	for _, s := range c.Steps {
		var remove byte
		if s.Remove {
			remove = 1
		}
		dst = append(dst, remove)
		dst = appendReplica(dst, s.Replica)
	}
	return endRecord(dst, start, 'c')
}

// DecodeConfChange reads what ConfChange.Encode wrote.
func DecodeConfChange(v []byte) (ConfChange, error) {
	r, err := openRecord(v, 'c', confChangeVersion, "configuration change")
	if err != nil {
		return ConfChange{}, err
	}
	c := ConfChange{ConfVer: r.uvarint()}
	n := r.uvarint()
	if r.bad || n > 2*MaxReplicas {
		return ConfChange{}, corrupt("configuration change", "malformed field")
	}
	for i := uint64(0); i < n; i++ {
		remove := r.u8()
		if remove > 1 {
			return ConfChange{}, corrupt("configuration change", "malformed step")
		}
		c.Steps = append(c.Steps, ConfStep{Remove: remove == 1, Replica: r.replica()})
	}
	if err := r.close("configuration change"); err != nil {
		return ConfChange{}, err
	}
	return c, nil
}
