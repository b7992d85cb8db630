package engine

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"strconv"
	"strings"
	"sync"

	"github.com/cockroachdb/pebble/v2"
	"github.com/cockroachdb/pebble/v2/vfs"

	"github.com/flotillakv/flotilla/internal/mutants"
)

// Pebble's MANIFEST says which tables there are. Pebble v2.1.7 takes the first
// record of it that does not pass its checksum for the end of the file, as a
// crash in the middle of a write leaves it. So one flipped bit makes it forget
// tables, and with them logs and votes that were synced long ago, without any
// sign; and it deletes them, since nothing names them any more (measured: a node
// of one shard, five of six flips in its MANIFEST; it served on without two thirds
// of its records).
//
// The file CHECKSUM beside the database says up to which length the MANIFEST was
// synced, and what was in it. It is written after each sync of the MANIFEST,
// before Pebble goes on. A store whose MANIFEST does not begin so is refused. What
// was appended between the last sync of the MANIFEST and that of CHECKSUM is not
// covered.
//
// Four slots of one sector, the record with sequence number n in slot n mod 4: a
// new MANIFEST is synced, and noted, before it takes the place of the old one, so
// the last records of both have to be there.
//
//	magic "FLOTMSUM" | version u8 | reserved 7 bytes | sequence number u64 |
//	number of the MANIFEST u64 | length u64 | crc32c u32 of that many bytes | crc32c u32 of all before
const (
	sumName    = "CHECKSUM"
	sumMagic   = "FLOTMSUM"
	sumVersion = 1
	sumLen     = 8 + 8 + 8 + 8 + 8 + 4 + 4
	sumSlots   = 4
)

// manifestSum is one record: the first Length bytes of MANIFEST-Number were
// durable and had this checksum.
type manifestSum struct {
	Seq, Number, Length uint64
	CRC                 uint32
}

var errBadSum = errors.New("checksum record is damaged")

func (s manifestSum) encode(dst []byte) []byte {
	at := len(dst)
	dst = append(dst, sumMagic...)
	dst = append(dst, sumVersion, 0, 0, 0, 0, 0, 0, 0)
	dst = binary.BigEndian.AppendUint64(dst, s.Seq)
	dst = binary.BigEndian.AppendUint64(dst, s.Number)
	dst = binary.BigEndian.AppendUint64(dst, s.Length)
	dst = binary.BigEndian.AppendUint32(dst, s.CRC)
	return binary.BigEndian.AppendUint32(dst, crc32.Checksum(dst[at:], castagnoli))
}

// decodeManifestSum reads one slot; bytes after the record are ignored.
func decodeManifestSum(b []byte) (manifestSum, error) {
	if len(b) < sumLen || string(b[:8]) != sumMagic || b[8] != sumVersion ||
		crc32.Checksum(b[:sumLen-4], castagnoli) != binary.BigEndian.Uint32(b[sumLen-4:]) {
		return manifestSum{}, errBadSum
	}
	return manifestSum{
		binary.BigEndian.Uint64(b[16:]), binary.BigEndian.Uint64(b[24:]), binary.BigEndian.Uint64(b[32:]), binary.BigEndian.Uint32(b[40:]),
	}, nil
}

// readSums returns the valid records of a file. No file: none.
func readSums(fs FS, name string) ([]manifestSum, error) {
	f, err := fs.Open(name)
	if err != nil {
		if isNotExist(err) {
			err = nil
		}
		return nil, err
	}
	b := make([]byte, sumSlots*identSlot)
	n, err := io.ReadFull(f, b)
	if err == io.EOF || err == io.ErrUnexpectedEOF {
		err = nil
	}
	if err = closeWith(f, err); err != nil {
		return nil, err
	}
	var out []manifestSum
	for i := range sumSlots {
		if s, err := decodeManifestSum(b[min(i*identSlot, n):n]); err == nil {
			out = append(out, s)
		}
	}
	return out, nil
}

// summer is the engine's side of the file.
type summer struct {
	mu    sync.Mutex // held across the file's I/O
	seq   uint64
	isNew bool
}

func (e *Engine) sumPath() string { return e.fs.PathJoin(e.dir, sumName) }

// manifestNumber returns n of MANIFEST-n.
func manifestNumber(base string) (uint64, bool) {
	digits, ok := strings.CutPrefix(base, "MANIFEST-")
	if !ok {
		return 0, false
	}
	n, err := strconv.ParseUint(digits, 10, 64)
	return n, err == nil
}

// checkManifest holds the MANIFEST that Pebble is about to read against what is
// known of it, and remembers where to write next.
func (e *Engine) checkManifest(desc *pebble.DBDesc) error {
	sums, err := readSums(e.fs, e.sumPath())
	if err != nil {
		return e.openErr(NotWritable, "check the path and its permissions", err)
	}
	base := e.fs.PathBase(desc.ManifestFilename)
	number, ok := manifestNumber(base)
	var want manifestSum
	e.sums.seq, e.sums.isNew = 0, len(sums) == 0
	for _, s := range sums {
		e.sums.seq = max(e.sums.seq, s.Seq)
		if s.Number == number && s.Seq > want.Seq {
			want = s
		}
	}
	if !ok || want.Seq == 0 || mutants.On("B18f") {
		return nil
	}
	f, err := e.fs.Open(desc.ManifestFilename, vfs.SequentialReadsOption)
	if err != nil {
		if isNotExist(err) {
			return e.openErr(Corrupt, e.replaceHint(), fmt.Errorf("%s is missing", base))
		}
		return e.openErr(NotWritable, "check the disk and its permissions", err)
	}
	crc := crc32.New(castagnoli)
	n, err := io.Copy(crc, io.LimitReader(f, int64(want.Length)))
	if err = closeWith(f, err); err != nil {
		return e.openErr(NotWritable, "check the disk", err)
	}
	switch {
	case uint64(n) < want.Length:
		return e.openErr(Amnesia, e.replaceHint(), fmt.Errorf("%s ends after %d bytes, %d were durable", base, n, want.Length))
	case crc.Sum32() != want.CRC:
		return e.openErr(Corrupt, e.replaceHint(), fmt.Errorf("%s is damaged: its first %d bytes have the checksum %08x, and had %08x when they were written", base, want.Length, crc.Sum32(), want.CRC))
	}
	return nil
}

// noteManifest makes a record durable.
func (e *Engine) noteManifest(s manifestSum) error {
	m := &e.sums
	m.mu.Lock()
	defer m.mu.Unlock()
	s.Seq = m.seq + 1
	f, err := e.fs.OpenReadWrite(e.sumPath(), vfs.WriteCategoryUnspecified)
	if err != nil {
		return err
	}
	if _, err := f.WriteAt(s.encode(nil), int64(s.Seq%sumSlots)*identSlot); err != nil {
		return closeWith(f, err)
	}
	if err := closeWith(f, f.SyncData()); err != nil {
		return err
	}
	if m.isNew {
		if err := syncDir(e.fs, e.dir); err != nil {
			return err
		}
	}
	m.seq, m.isNew = s.Seq, false
	return nil
}

// forgetManifests removes the records of a database that is made anew: its files
// will have the old numbers.
func (e *Engine) forgetManifests() error {
	e.sums.seq, e.sums.isNew = 0, true
	if err := e.fs.Remove(e.sumPath()); err != nil && !isNotExist(err) {
		return err
	}
	return nil
}

// manifestFile is a MANIFEST that Pebble writes from its beginning, by one
// goroutine at a time.
type manifestFile struct {
	vfs.File
	e   *Engine
	sum manifestSum
}

func (m *manifestFile) Write(p []byte) (int, error) {
	crc := crc32.Update(m.sum.CRC, castagnoli, p) // before: Write may change what it is given
	n, err := m.File.Write(p)
	if err == nil {
		m.sum.CRC, m.sum.Length = crc, m.sum.Length+uint64(n)
	}
	return n, err // after an error Pebble writes no more to this file
}

func (m *manifestFile) Sync() error {
	if err := m.File.Sync(); err != nil {
		return err
	}
	return m.e.noteManifest(m.sum)
}

func (m *manifestFile) SyncData() error {
	if err := m.File.SyncData(); err != nil {
		return err
	}
	return m.e.noteManifest(m.sum)
}
