package snapshot

import (
	"bytes"
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"hash/crc32"
	"math"
	"slices"

	"github.com/flotillakv/flotilla/engine"
	"github.com/flotillakv/flotilla/internal/mutants"
	"github.com/flotillakv/flotilla/multiraft/raft"
)

const (
	manifestVersion = 2

	// ChunkBytes is the size of every chunk of a file but the last.
	ChunkBytes = 512 << 10
	// MaxFiles bounds the files of a snapshot.
	MaxFiles = 4096
	// MaxFileBytes bounds one file.
	MaxFileBytes = 256 << 20
	// MaxManifestBytes bounds an encoded manifest.
	MaxManifestBytes = 1 << 20
	// maxBoundBytes is how much of the first and last key of a file the manifest holds.
	maxBoundBytes = 64
	// maxListBytes bounds a FileData or FileState, which are held in memory.
	maxListBytes = 64 << 20

	manifestHead = 1 + 4
)

// FileKind says what a file of a snapshot is.
type FileKind uint8

const (
	// FileTable is a sorted table of data keys, ready to be ingested.
	FileTable FileKind = 1
	// FileData is a list of data keys and values (small shards).
	FileData FileKind = 2
	// FileState is a list of the group's other replicated records (sessions):
	// suffixes below the state prefix, and values.
	FileState FileKind = 3
	// FileExternal is a piece of the state of a machine outside of the store. The pieces
	// follow each other and come last; together they are a stream with a head (external.go).
	FileExternal FileKind = 4
)

// staged reports whether files of the kind are kept on the receiver's disk, not in memory.
func (k FileKind) staged() bool { return k == FileTable || k == FileExternal }

// ID names one built snapshot. It is drawn at random, so two builds never
// share one.
type ID [16]byte

// String returns the id in hexadecimal, as it names the staging directory.
func (id ID) String() string { return hex.EncodeToString(id[:]) }

// File describes one file of a snapshot.
type File struct {
	Kind FileKind
	Size int64
	// First and Last are the first and last raw key of a FileTable, cut to 64
	// bytes; empty otherwise.
	First, Last []byte
	// Sums holds the CRC-32C of every chunk: ceil(Size/ChunkBytes) of them.
	Sums []uint32
}

// Meta is the manifest of a snapshot: what it is of, and every file of it down
// to the checksum of each chunk. On the wire it comes in pieces: first without
// files, so that a receiver can refuse before a byte of data came, then each
// file's record before its chunks.
type Meta struct {
	ID    ID
	Shard raft.ShardID // Desc.Shard
	// Index and Term are the last entry the snapshot contains: Applied.Applied
	// and Applied.AppliedTerm.
	Index raft.Index
	Term  raft.Term
	Desc  raft.Descriptor
	// Applied is the sender's applied state at the cut. Its log positions are
	// the sender's; the receiver's log is empty after installation.
	Applied raft.AppliedState
	// Estimate is about how many bytes the files will have, for the receiver to keep
	// room for; what counts in the end are the files.
	Estimate int64
	Files    []File
}

// Bytes returns the size of all files together.
func (m *Meta) Bytes() (n int64) {
	for i := range m.Files {
		n += m.Files[i].Size
	}
	return n
}

// Chunks returns the number of chunks of all files together.
func (m *Meta) Chunks() (n int) {
	for i := range m.Files {
		n += len(m.Files[i].Sums)
	}
	return n
}

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

func sum(b []byte) uint32 { return crc32.Checksum(b, castagnoli) }

// Encode appends the manifest to dst. The layout:
//
//	version u8 | crc32c u32 of what follows
//	id 16 bytes | descLen uvarint, descriptor | appliedLen uvarint, applied state
//	estimate uvarint | files uvarint; per file: kind u8 | size uvarint
//	  | firstLen uvarint, first | lastLen uvarint, last | crc32c u32 per chunk
func (m *Meta) Encode(dst []byte) []byte {
	at := len(dst)
	dst = append(dst, manifestVersion, 0, 0, 0, 0)
	dst = append(dst, m.ID[:]...)
	dst = appendBytes(dst, m.Desc.Encode(nil))
	dst = appendBytes(dst, m.Applied.Encode(nil))
	dst = binary.AppendUvarint(dst, uint64(m.Estimate))
	dst = binary.AppendUvarint(dst, uint64(len(m.Files)))
	for i := range m.Files {
		dst = m.Files[i].append(dst)
	}
	binary.BigEndian.PutUint32(dst[at+1:], sum(dst[at+manifestHead:]))
	return dst
}

// append appends the record of a file.
func (f *File) append(dst []byte) []byte {
	dst = append(dst, byte(f.Kind))
	dst = binary.AppendUvarint(dst, uint64(f.Size))
	dst = appendBytes(dst, f.First)
	dst = appendBytes(dst, f.Last)
	for _, s := range f.Sums {
		dst = binary.BigEndian.AppendUint32(dst, s)
	}
	return dst
}

// file takes the record of a file; nil if it is damaged. The result shares no
// memory with what is read.
func (r *reader) file() *File {
	f := &File{Kind: FileKind(r.byte())}
	f.Size = int64(r.uvarint(MaxFileBytes))
	f.First = append([]byte(nil), r.bytes(maxBoundBytes)...)
	f.Last = append([]byte(nil), r.bytes(maxBoundBytes)...)
	sums := r.take(4 * int((f.Size+ChunkBytes-1)/ChunkBytes))
	if r.bad || f.Kind < FileTable || f.Kind > FileExternal || f.Size == 0 {
		return nil
	}
	for ; len(sums) > 0; sums = sums[4:] {
		f.Sums = append(f.Sums, binary.BigEndian.Uint32(sums))
	}
	return f
}

// equal reports whether two records are the same.
func (f *File) equal(o *File) bool {
	return f.Kind == o.Kind && f.Size == o.Size && slices.Equal(f.Sums, o.Sums) && bytes.Equal(f.First, o.First) && bytes.Equal(f.Last, o.Last)
}

// DecodeMeta is the inverse of Encode. The result shares no memory with b.
// Errors wrap ErrCorrupt.
func DecodeMeta(b []byte) (Meta, error) {
	var m Meta
	if len(b) < manifestHead || len(b) > MaxManifestBytes {
		return m, corrupt("manifest of %d bytes", len(b))
	}
	if b[0] != manifestVersion {
		return m, corrupt("manifest version %d (this release reads %d)", b[0], manifestVersion)
	}
	if binary.BigEndian.Uint32(b[1:]) != sum(b[manifestHead:]) {
		return m, corrupt("manifest checksum")
	}
	r := reader{b: b[manifestHead:]}
	copy(m.ID[:], r.take(len(m.ID)))
	desc, applied := r.bytes(MaxManifestBytes), r.bytes(MaxManifestBytes)
	m.Estimate = int64(r.uvarint(math.MaxInt64))
	files := r.uvarint(MaxFiles)
	if r.bad {
		return m, corrupt("manifest is cut")
	}
	var err error
	if m.Desc, err = raft.DecodeDescriptor(desc); err != nil {
		return m, corrupt("manifest: %v", err)
	}
	m.Desc = m.Desc.Clone()
	if m.Applied, err = raft.DecodeAppliedState(applied); err != nil {
		return m, corrupt("manifest: %v", err)
	}
	m.Shard, m.Index, m.Term = m.Desc.Shard, m.Applied.Applied, m.Applied.AppliedTerm
	for range files {
		f := r.file()
		if f == nil {
			return m, corrupt("manifest: file %d is damaged", len(m.Files))
		}
		m.Files = append(m.Files, *f)
	}
	if len(r.b) != 0 {
		return m, corrupt("%d bytes after the manifest", len(r.b))
	}
	return m, m.check()
}

// check holds the manifest against itself: an applied index, tables in order
// and inside the shard's span, at most one list of each kind.
func (m *Meta) check() error {
	if m.Shard == 0 || (m.Index == 0 || m.Term == 0) && !mutants.On("E1") {
		return corrupt("shard %d at index %d term %d", m.Shard, m.Index, m.Term)
	}
	lower, upper := engine.DataSpan(m.Desc.Keyspace, m.Desc.Start, m.Desc.End)
	if len(m.Files) > MaxFiles {
		return corrupt("%d files", len(m.Files))
	}
	var tables, data, state, external int
	var last []byte
	for i := range m.Files {
		f := &m.Files[i]
		if f.Kind == FileExternal {
			if external++; len(f.First)+len(f.Last) != 0 {
				return corrupt("piece %d of a machine's state has keys", i)
			}
			continue
		}
		if external > 0 {
			return corrupt("file %d comes behind the machine's state", i)
		}
		if f.Kind != FileTable {
			if f.Kind == FileData {
				data++
			} else {
				state++
			}
			if f.Size > maxListBytes || len(f.First)+len(f.Last) != 0 {
				return corrupt("list %d of %d bytes", i, f.Size)
			}
			continue
		}
		tables++
		if string(f.First) < string(clip(lower)) || string(f.Last) > string(clip(upper)) || string(f.First) > string(f.Last) {
			return corrupt("table %d holds keys outside the span of shard %d", i, m.Shard)
		}
		if string(f.First) < string(last) {
			return corrupt("tables %d and %d overlap", i-1, i)
		}
		last = f.Last
	}
	if data > 1 || state > 1 || tables > 0 && data > 0 {
		return corrupt("%d tables, %d lists of data, %d lists of state", tables, data, state)
	}
	return nil
}

// clip cuts a key to what a manifest holds of it.
func clip(key []byte) []byte { return key[:min(len(key), maxBoundBytes)] }

// chunkLen returns the length of a chunk of f.
func (f *File) chunkLen(chunk int) int {
	return int(min(ChunkBytes, f.Size-int64(chunk)*ChunkBytes))
}

// appendKV appends one pair of a list: keyLen uvarint, key, valueLen uvarint, value.
func appendKV(dst, key, value []byte) []byte {
	return appendBytes(appendBytes(dst, key), value)
}

// decodeKVs takes a list apart; the pairs alias b. Keys must ascend.
func decodeKVs(b []byte) ([]engine.KV, error) {
	n := 0
	for r := (reader{b: b}); len(r.b) > 0 && !r.bad; n++ {
		r.bytes(math.MaxInt32)
		r.bytes(math.MaxInt32)
	}
	r := reader{b: b}
	out := make([]engine.KV, 0, n)
	for len(r.b) > 0 {
		p := engine.KV{Key: r.bytes(math.MaxInt32), Value: r.bytes(math.MaxInt32)}
		if r.bad {
			return nil, corrupt("list of pairs is cut")
		}
		if n := len(out); n > 0 && string(out[n-1].Key) >= string(p.Key) {
			return nil, corrupt("keys of a list do not ascend")
		}
		out = append(out, p)
	}
	return out, nil
}

func appendBytes(dst, b []byte) []byte {
	return append(binary.AppendUvarint(dst, uint64(len(b))), b...)
}

// reader takes fields off b; bad stays set once a field was not there.
type reader struct {
	b   []byte
	bad bool
}

func (r *reader) take(n int) []byte {
	if r.bad || n < 0 || n > len(r.b) {
		r.bad = true
		return nil
	}
	v := r.b[:n:n]
	r.b = r.b[n:]
	return v
}

func (r *reader) byte() byte {
	if v := r.take(1); v != nil {
		return v[0]
	}
	return 0
}

func (r *reader) uvarint(limit uint64) uint64 {
	v, n := binary.Uvarint(r.b)
	if r.bad || n <= 0 || v > limit {
		r.bad = true
		return 0
	}
	r.b = r.b[n:]
	return v
}

func (r *reader) bytes(limit uint64) []byte { return r.take(int(r.uvarint(limit))) }

// String tells what the snapshot is, for logs.
func (m *Meta) String() string {
	return fmt.Sprintf("snapshot %s of shard %d at index %d term %d (%d files, %d bytes)", m.ID, m.Shard, m.Index, m.Term, len(m.Files), m.Bytes())
}
