package engine

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"slices"
	"strconv"
	"strings"

	"github.com/cockroachdb/pebble/v2"
	"github.com/cockroachdb/pebble/v2/batchrepr"
	"github.com/cockroachdb/pebble/v2/record"
	"github.com/cockroachdb/pebble/v2/sstable"
	"github.com/cockroachdb/pebble/v2/vfs"
	"github.com/cockroachdb/pebble/v2/wal"

	"github.com/flotillakv/flotilla/internal/mutants"
)

// manifest holds Pebble's list of tables against its checksum, and reads from it up to
// which sequence number it goes and which files of the write-ahead log count.
func (c *checker) manifest(name string) {
	base := c.fs.PathBase(name)
	file := c.fs.PathJoin(dbName, base)
	err := c.e.checkManifest(&pebble.DBDesc{Exists: true, ManifestFilename: name})
	if err != nil {
		var oe *OpenError
		if errors.As(err, &oe) && oe.Err != nil {
			err = oe.Err
		}
		c.fault(Fault{Kind: FaultManifest, File: file, Offset: -1}, "%v", err)
	}
	f, err := c.fs.Open(name, vfs.SequentialReadsOption)
	if err != nil {
		c.fault(Fault{Kind: FaultManifest, File: file, Offset: -1}, "it cannot be read: %v", err)
		return
	}
	defer f.Close()
	if info, err := f.Stat(); err == nil {
		c.r.Bytes += info.Size()
	}
	rr := record.NewReader(f, 0)
	for {
		r, err := rr.Next()
		if err != nil {
			return // its end, or what Pebble takes for it
		}
		b, err := io.ReadAll(r)
		if err != nil {
			return
		}
		c.versionEdit(b)
	}
}

// The tags of a version edit that stand before those of its tables.
const (
	editComparer       = 1
	editLogNumber      = 2
	editNextFile       = 3
	editLastSeq        = 4
	editPrevLog        = 9
	editCreatedBacking = 105
	editRemovedBacking = 106
)

// versionEdit reads the head of a record of the MANIFEST.
func (c *checker) versionEdit(b []byte) {
	u := func() uint64 {
		n, used := binary.Uvarint(b)
		if used <= 0 {
			b = nil
			return 0
		}
		b = b[used:]
		return n
	}
	for len(b) > 0 {
		switch u() {
		case editComparer:
			if n := u(); n <= uint64(len(b)) {
				b = b[n:]
			}
		case editLogNumber:
			c.minLog = u()
		case editNextFile, editPrevLog, editRemovedBacking:
			u()
		case editCreatedBacking:
			u()
			u()
		case editLastSeq:
			c.seq = max(c.seq, u()+1)
			return
		default:
			return
		}
	}
}

// tables verifies every block of every table.
func (c *checker) tables() {
	po := c.e.po
	var names []string
	if c.e.db != nil {
		infos, err := c.e.db.SSTables()
		if err != nil {
			c.fault(Fault{Kind: FaultTable}, "tables cannot be listed: %v", err)
			return
		}
		seen := map[string]bool{}
		for _, level := range infos {
			for i := range level {
				if n := fmt.Sprintf("%06d.sst", uint64(level[i].BackingSSTNum)); !seen[n] {
					seen[n] = true
					names = append(names, n)
				}
			}
		}
	} else {
		po = c.e.pebbleOptions()
		po.EnsureDefaults()
		all, err := c.fs.List(c.path(dbName))
		if err != nil {
			return // said before
		}
		for _, n := range all {
			if strings.HasSuffix(n, ".sst") {
				names = append(names, n)
			}
		}
		if len(names) > 0 {
			c.note("the list of tables is not known, so all %d in %s were looked at, also those of no account", len(names), dbName)
		}
	}
	slices.Sort(names)
	for _, n := range names {
		if c.ctx.Err() != nil {
			return
		}
		if err := c.table(c.path(dbName, n), po); err != nil {
			text := err.Error()
			if isNotExist(err) {
				text = "the file is missing"
			}
			c.fault(Fault{Kind: FaultTable, File: c.fs.PathJoin(dbName, n), Offset: offsetIn(text)}, "%s", text)
		}
		c.r.Tables++
	}
	if c.e.db != nil {
		c.attempt(Fault{Kind: FaultTable}, func() error { return c.e.db.CheckLevels(nil) })
	}
}

// offsetIn finds the offset in what Pebble says of a block; -1: it says none.
func offsetIn(text string) int64 {
	// "... at 123/45 ..." and "block 123/45".
	for _, f := range strings.FieldsFunc(text, func(r rune) bool { return strings.ContainsRune(" ,:()[]", r) }) {
		off, size, ok := strings.Cut(f, "/")
		if !ok {
			continue
		}
		n, err := strconv.ParseInt(off, 10, 64)
		if _, err2 := strconv.ParseInt(size, 10, 64); err == nil && err2 == nil {
			return n
		}
	}
	return -1
}

func (c *checker) table(name string, po *pebble.Options) (err error) {
	defer func() {
		if p := recover(); p != nil {
			err = fmt.Errorf("%v", p)
		}
	}()
	f, err := c.fs.Open(name, vfs.RandomReadsOption)
	if err != nil {
		return err
	}
	info, err := f.Stat()
	if err != nil {
		return closeWith(f, err)
	}
	readable, err := sstable.NewSimpleReadable(f)
	if err != nil {
		return closeWith(f, err)
	}
	r, err := sstable.NewReader(c.ctx, readable, po.MakeReaderOptions())
	if err != nil {
		return errors.Join(err, readable.Close())
	}
	defer func() { err = errors.Join(err, r.Close()) }()
	if mutants.On("E-check-blocks") {
		return nil
	}
	c.r.Bytes += info.Size()
	return r.ValidateBlockChecksums()
}

// walFiles reads the write-ahead log as a start of the node does.
func (c *checker) walFiles() {
	logs, err := wal.Scan(wal.Dir{FS: c.fs, Dirname: c.path(dbName)})
	if err != nil {
		if has, herr := exists(c.fs, c.path(dbName)); herr == nil && has {
			c.fault(Fault{Kind: FaultWAL}, "the files cannot be listed: %v", err)
		}
		return
	}
	for i, l := range logs {
		if uint64(l.Num) < c.minLog || c.ctx.Err() != nil {
			continue // what was in it is in tables
		}
		_, name := l.SegmentLocation(0)
		if n, err := l.PhysicalSize(); err == nil {
			c.r.Bytes += int64(n)
		}
		at, err := c.walFile(l, i == len(logs)-1)
		if err != nil && !mutants.On("E-check-wal") {
			c.fault(Fault{Kind: FaultWAL, File: c.fs.PathJoin(dbName, c.fs.PathBase(name)), Offset: at}, "%v", err)
		}
	}
}

// walFile reads one file. The last one may end anywhere.
func (c *checker) walFile(l wal.LogicalLog, last bool) (at int64, err error) {
	rr := l.OpenForRead()
	defer func() { err = errors.Join(err, rr.Close()) }()
	var buf bytes.Buffer
	for {
		r, off, err := rr.NextRecord()
		if err == nil {
			at = off.Physical
			buf.Reset()
			_, err = io.Copy(&buf, r)
		}
		switch {
		case errors.Is(err, io.EOF), last && errors.Is(err, record.ErrUnexpectedEOF):
			return at, nil
		case err != nil:
			return at, fmt.Errorf("the record behind offset %d cannot be read: %w", at, err)
		case buf.Len() < batchrepr.HeaderLen:
			return at, errors.New("a record is too short")
		}
		head, _ := batchrepr.ReadHeader(buf.Bytes())
		n := uint64(0)
		for ops := batchrepr.Read(buf.Bytes()); len(ops) > 0; n++ {
			if _, _, _, ok, err := ops.Next(); err != nil || !ok {
				return at, fmt.Errorf("a batch does not decode: %w", err)
			}
		}
		c.seq = max(c.seq, uint64(head.SeqNum)+uint64(head.Count))
	}
}

// watermark compares what was durable with what is there.
func (c *checker) watermark() {
	w, _, err := readWatermark(c.fs, c.path(markName))
	if err == nil && c.e.db != nil && c.seq < w.Seq && !mutants.On("E-check-mark") {
		c.fault(Fault{Kind: FaultAmnesia, File: markName, Offset: -1}, "the database ends at write %d, but write %d was durable in boot epoch %d", c.seq, w.Seq, w.BootEpoch)
	}
}

// staged says what lies in the directory for transfers. It belongs to nobody.
func (c *checker) staged() {
	names, err := c.fs.List(c.path(stagingName))
	if err != nil || len(names) == 0 {
		return
	}
	files, size, kept := 0, int64(0), 0
	for _, n := range names {
		if strings.HasPrefix(n, KeptPrefix) {
			kept++
			continue
		}
		in, err := c.fs.List(c.path(stagingName, n))
		if err != nil {
			in = []string{"."}
		}
		for _, f := range in {
			info, err := c.fs.Stat(c.path(stagingName, n, f))
			if err != nil {
				c.fault(Fault{Kind: FaultDatabase, File: c.fs.PathJoin(stagingName, n), Offset: -1, Next: "check the disk"}, "it cannot be read: %v", err)
				continue
			}
			if !info.IsDir() {
				files, size = files+1, size+info.Size()
			}
		}
	}
	if kept > 0 {
		c.note("%d images of shards are kept in %s, for replicas that lag; each is held against its checksums when it is sent", kept, stagingName)
	}
	if files > 0 {
		c.note("%d files of %d bytes in %s are of transfers that did not end; the node removes them as it starts", files, size, stagingName)
	}
}
