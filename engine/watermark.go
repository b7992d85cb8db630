package engine

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"time"

	"github.com/cockroachdb/pebble/v2"
	"github.com/cockroachdb/pebble/v2/vfs"

	"github.com/flotillakv/flotilla/internal/mutants"
)

// The watermark guards against a store that silently lost what it had synced:
// the end of the write-ahead log cut off or rotten, an old copy restored under
// a running cluster. Such a node has forgotten votes and acknowledgements that
// others count on. The file beside the database says up to which sequence
// number writes were durable at least; it is written after a sync, at most once
// a second and at a clean close, so it never promises too much. A store that
// opens with a lower sequence number is refused (Amnesia). What was written
// since the last watermark is not covered.
//
// Two slots of one sector, written in turn; the valid one with the higher
// sequence number counts:
//
//	magic "FLOTMARK" | version u8 | reserved 7 bytes | seqNum u64 | bootEpoch u64 | crc32c u32 of all before
const (
	markName    = "WATERMARK"
	markMagic   = "FLOTMARK"
	markVersion = 1
	markLen     = 8 + 8 + 8 + 8 + 4
	// markEvery is the least time between two watermarks.
	markEvery = time.Second
)

type watermark struct{ Seq, BootEpoch uint64 }

var errBadMark = errors.New("watermark is damaged")

func (w watermark) encode(dst []byte) []byte {
	at := len(dst)
	dst = append(dst, markMagic...)
	dst = append(dst, markVersion, 0, 0, 0, 0, 0, 0, 0)
	dst = binary.BigEndian.AppendUint64(dst, w.Seq)
	dst = binary.BigEndian.AppendUint64(dst, w.BootEpoch)
	return binary.BigEndian.AppendUint32(dst, crc32.Checksum(dst[at:], castagnoli))
}

// decodeWatermark reads one slot; bytes after the record are ignored.
func decodeWatermark(b []byte) (watermark, error) {
	if len(b) < markLen || string(b[:8]) != markMagic || b[8] != markVersion ||
		crc32.Checksum(b[:markLen-4], castagnoli) != binary.BigEndian.Uint32(b[markLen-4:]) {
		return watermark{}, errBadMark
	}
	return watermark{binary.BigEndian.Uint64(b[16:]), binary.BigEndian.Uint64(b[24:])}, nil
}

// readWatermark returns the highest watermark and its slot. No file, or no
// valid slot (torn at the first write): zero, which promises nothing.
func readWatermark(fs FS, name string) (w watermark, slot int, err error) {
	f, err := fs.Open(name)
	if err != nil {
		if isNotExist(err) {
			err = nil
		}
		return w, 1, err
	}
	b := make([]byte, 2*identSlot)
	n, err := io.ReadFull(f, b)
	if err == io.EOF || err == io.ErrUnexpectedEOF {
		err = nil
	}
	if err = closeWith(f, err); err != nil {
		return w, 1, err
	}
	slot = 1
	for i := range 2 {
		if v, err := decodeWatermark(b[min(i*identSlot, n):n]); err == nil && v.Seq >= w.Seq {
			w, slot = v, i
		}
	}
	return w, slot, nil
}

// marker is the engine's side of the file.
type marker struct {
	slot int
	last watermark
	at   time.Time
}

// openWatermark compares the watermark with what the database came back with.
func (e *Engine) openWatermark() error {
	w, slot, err := readWatermark(e.fs, e.markPath())
	if err != nil {
		return e.openErr(NotWritable, "check the path and its permissions", err)
	}
	pb := e.db.NewBatch()
	_ = pb.LogData(nil, nil) // never fails
	if err := e.db.Apply(pb, pebble.NoSync); err != nil {
		return e.openErr(NotWritable, "check the disk", err)
	}
	seq := uint64(pb.SeqNum())
	if err := pb.Close(); err != nil {
		return e.openErr(NotWritable, "check the disk", err)
	}
	if seq < w.Seq && !mutants.On("B18") {
		// Once refused, always refused: its sequence numbers would grow past the
		// mark if something else opened it.
		e.identRec.State = stateAmnesiac
		if err := writeIdentFile(e.fs, e.identPath(), &e.identRec); err != nil {
			e.log.Error("the amnesia of the store could not be noted", "err", err)
		}
		return e.openErr(Amnesia, "its promises to other nodes are lost: remove the directory and let the node join as a new one",
			fmt.Errorf("the database ends at write %d, but write %d was durable in boot epoch %d", seq, w.Seq, w.BootEpoch))
	}
	e.mark.slot, e.mark.last = slot, w
	return nil
}

// noteDurable writes a watermark for a sequence number that is durable. It
// keeps to markEvery unless always is set.
func (e *Engine) noteDurable(seq uint64, always bool) error {
	e.markMu.Lock()
	defer e.markMu.Unlock()
	m := &e.mark
	if seq <= m.last.Seq || !always && !e.opts.markAlways && e.opts.Now().Sub(m.at) < markEvery {
		return nil
	}
	isNew := m.last == watermark{}
	w := watermark{Seq: seq, BootEpoch: e.bootEpoch}
	f, err := e.fs.OpenReadWrite(e.markPath(), vfs.WriteCategoryUnspecified)
	if err != nil {
		return err
	}
	if _, err := f.WriteAt(w.encode(nil), int64(1-m.slot)*identSlot); err != nil {
		return closeWith(f, err)
	}
	if err := closeWith(f, f.SyncData()); err != nil {
		return err
	}
	if isNew {
		if err := syncDir(e.fs, e.dir); err != nil {
			return err
		}
	}
	m.slot, m.last, m.at = 1-m.slot, w, e.opts.Now()
	return nil
}

func (e *Engine) markPath() string { return e.fs.PathJoin(e.dir, markName) }
