package snapshot

import (
	"context"
	"errors"
	"fmt"
	"math"
	"math/bits"

	"github.com/flotillakv/flotilla/engine"
	"github.com/flotillakv/flotilla/internal/mutants"
	"github.com/flotillakv/flotilla/multiraft/raft"
)

// checkEvery is after how many keys a build looks at its context.
const checkEvery = 1024

// growAfter is after how many tables their size doubles, so that MaxFiles are
// enough for large shards, too.
const growAfter = 1024

// source makes the files of one snapshot, one after the other, from a view that it
// holds. Nothing touches the disk: a file is made in memory when it is asked for,
// and again when it is asked for again. Unless told otherwise it makes the next file
// on a goroutine of its own while the last one is sent. It is owned by one goroutine.
//
// Where tables end depends on keys and sizes of records alone: a change in one place
// shifts the ends near it and no others, so another replica, or the same one later,
// makes mostly the same tables. (Content-defined chunking as in LBFS, SOSP 2001,
// with keys in place of bytes.)
type source struct {
	s    *Store
	view *engine.View // nil: all files are made
	made []*builtFile
	kept *keptImage // files are read from it; nil: they are not
	meta Meta       // without files until they are known

	known []knownFile
	// kinds of what comes behind known: data is over, the records are, all is over
	tables, dataOver, stateOver, over bool

	ext    *externalSource // nil: there is nothing outside of the store
	pieces []*builtFile    // the last ones of it

	now  *builtFile     // the last one that was asked for
	next <-chan nextOne // the one behind it is being made; nil: it is not
	free [][]byte       // buffers of tables
}

// knownFile is a file that was made once.
type knownFile struct {
	start []byte // user key from which a table goes on
	last  []byte // the last user key of a table
}

// builtFile is a file in memory.
type builtFile struct {
	n     int
	file  File
	bytes []byte
}

type nextOne struct {
	f   *builtFile
	err error
}

// open takes a view of the replica of desc. It fails with ErrNothingApplied or the
// store's error.
func (s *Store) source(desc *raft.Descriptor) (*source, error) {
	view, err := s.o.Engine.View(desc)
	if err != nil {
		return nil, err
	}
	c := &source{s: s, view: view}
	m := &c.meta
	m.ID = s.o.NewID()
	m.Desc, m.Applied = view.Desc(), view.Applied()
	m.Shard = m.Desc.Shard
	if mutants.On("E6") && m.Applied.Applied > 0 { // the state is behind what it says
		m.Applied.Applied++
		m.Applied.TruncIndex++
	}
	m.Index, m.Term = m.Applied.Applied, m.Applied.AppliedTerm
	m.Estimate = view.Size()
	if s.o.Inline {
		if m.Estimate, err = c.pairBytes(); err != nil {
			return nil, errors.Join(err, view.Close())
		}
	}
	if m.Index == 0 && !mutants.On("E1") {
		return nil, errors.Join(ErrNothingApplied, view.Close())
	}
	return c, nil
}

// pairBytes adds up the keys and values: an estimate that does not depend on when the
// store's background work wrote which tables.
func (c *source) pairBytes() (n int64, err error) {
	for _, part := range [...]engine.ViewPart{engine.ViewData, engine.ViewState} {
		err = errors.Join(err, c.eachPair(context.Background(), part, nil, func(key, val []byte) error {
			n += int64(len(key) + len(val))
			return nil
		}))
	}
	return n, err
}

// close lets go of the view.
func (c *source) close() (err error) {
	c.settle()
	if c.ext != nil {
		err = c.ext.s.Close()
		c.ext = nil
	}
	if c.view == nil {
		return err
	}
	err = errors.Join(err, c.view.Close())
	c.view = nil
	return err
}

// settle waits for the file that is being made.
func (c *source) settle() *nextOne {
	if c.next == nil {
		return nil
	}
	got := <-c.next
	c.next = nil
	return &got
}

// foresee takes note of the first n files of a kept image, of which the receiver says that
// it has them: from a transfer that this source knows nothing of.
func (c *source) foresee(n int) {
	if c.kept == nil || mutants.On("CI8") {
		return
	}
	for i := len(c.known); i < min(n, len(c.kept.meta.Files)); i++ {
		c.known = append(c.known, knownFile{})
		c.meta.Files = append(c.meta.Files, c.kept.meta.Files[i])
	}
}

// get returns file n, which is at most one behind those that were asked for before;
// nil: there is none. It is valid until the next call.
func (c *source) get(ctx context.Context, n int) (*builtFile, error) {
	if c.now != nil && c.now.n == n {
		return c.now, nil
	}
	var f *builtFile
	var err error
	if got := c.settle(); got != nil && (got.err != nil || got.f == nil || got.f.n == n) {
		f, err = got.f, got.err
		if f == nil && err == nil && n < len(c.meta.Files) {
			f, err = c.make(ctx, n)
		}
	} else {
		f, err = c.make(ctx, n)
	}
	c.recycle()
	c.now = f
	if err != nil || f == nil || c.s.o.Inline || c.over && n+1 >= len(c.known) {
		return f, err
	}
	c.next = aside(func() nextOne {
		f, err := c.make(ctx, n+1)
		return nextOne{f, err}
	})
	return f, nil
}

// recycle takes the buffer of the last file back.
func (c *source) recycle() {
	if f := c.now; f != nil && f.file.Kind == FileTable && len(c.free) < 2 {
		c.free = append(c.free, f.bytes[:0])
	}
	c.now = nil
}

// make makes file n.
func (c *source) make(ctx context.Context, n int) (*builtFile, error) {
	if n > len(c.known) {
		return nil, fmt.Errorf("snapshot: file %d is asked for, %d are known", n, len(c.known))
	}
	f, k, err := c.build(ctx, n)
	if err != nil || f == nil {
		return nil, err
	}
	if n == len(c.known) {
		if n == MaxFiles {
			return nil, fmt.Errorf("snapshot: shard %d needs more than %d files", c.meta.Shard, MaxFiles)
		}
		c.known = append(c.known, k)
		c.meta.Files = append(c.meta.Files, f.file)
		return f, c.meta.check() // what is sent is what a receiver accepts
	}
	if !f.file.equal(&c.meta.Files[n]) {
		return nil, corrupt("file %d of %v is another one when it is made again", n, &c.meta)
	}
	return f, nil
}

func (c *source) build(ctx context.Context, n int) (f *builtFile, k knownFile, err error) {
	if c.kept != nil {
		if n == len(c.kept.meta.Files) {
			return nil, k, nil
		}
		c.over = n+1 == len(c.kept.meta.Files)
		var buf []byte
		if m := len(c.free); m > 0 {
			buf, c.free = c.free[m-1], c.free[:m-1]
		}
		f, err = c.kept.read(c.s, n, buf)
		return f, k, err
	}
	if c.view == nil {
		if n == len(c.made) {
			return nil, k, nil
		}
		c.over = n+1 == len(c.made)
		return c.made[n], k, nil
	}
	if n < len(c.known) && c.meta.Files[n].Kind == FileExternal || n == len(c.known) && c.stateOver {
		if n == len(c.known) && c.over {
			return nil, k, nil
		}
		f, err = c.piece(ctx, n)
		return f, k, err
	}
	if n < len(c.known) && c.meta.Files[n].Kind != FileTable || n == len(c.known) && c.dataOver {
		if n == len(c.known) && c.over {
			return nil, k, nil
		}
		if n < len(c.known) && c.meta.Files[n].Kind == FileData {
			f, _, err = c.list(ctx, n)
			return f, k, err
		}
		return c.state(ctx, n)
	}
	if n == 0 && !c.tables {
		var fits bool
		if f, fits, err = c.list(ctx, n); err != nil || fits && f != nil {
			c.dataOver = fits
			return f, k, err
		} else if fits {
			c.dataOver = true
			return c.state(ctx, n)
		}
		c.tables = true
	}
	start := []byte{}
	switch {
	case n < len(c.known):
		start = c.known[n].start
	case n > 0:
		start = append(append(start, c.known[n-1].last...), 0)
	}
	return c.table(ctx, n, start)
}

// list makes the list of a small shard's data. fits: the data is not larger than that;
// a list that would be empty is nil.
func (c *source) list(ctx context.Context, n int) (f *builtFile, fits bool, err error) {
	var list []byte
	errLarge := errors.New("large")
	err = c.eachPair(ctx, engine.ViewData, nil, func(key, val []byte) error {
		if list = appendKV(list, key, val); len(list) > c.s.o.SmallBytes {
			return errLarge
		}
		return nil
	})
	if errors.Is(err, errLarge) {
		return nil, false, nil
	}
	return listFile(n, FileData, list), err == nil, err
}

// state makes the list of the group's other records, which is the last file.
func (c *source) state(ctx context.Context, n int) (*builtFile, knownFile, error) {
	var list []byte
	err := c.eachPair(ctx, engine.ViewState, nil, func(key, val []byte) error {
		if isOwn(key) {
			return nil
		}
		if list = appendKV(list, key, val); len(list) > maxListBytes {
			return fmt.Errorf("snapshot: the records of shard %d exceed %d bytes", c.meta.Shard, maxListBytes)
		}
		return nil
	})
	f := listFile(n, FileState, list)
	c.stateOver = err == nil
	if c.over = c.stateOver && c.ext == nil; c.stateOver && !c.over && f == nil {
		f, err = c.piece(ctx, n)
	}
	return f, knownFile{}, err
}

func listFile(n int, kind FileKind, list []byte) *builtFile {
	if len(list) == 0 {
		return nil
	}
	return &builtFile{n: n, file: File{Kind: kind, Size: int64(len(list)), Sums: sums(list)}, bytes: list}
}

// sums returns the checksum of each chunk of b.
func sums(b []byte) (out []uint32) {
	for at := 0; at < len(b); at += ChunkBytes {
		out = append(out, sum(b[at:min(at+ChunkBytes, len(b))]))
	}
	return out
}

// isOwn reports whether a suffix of the applied side is written by the
// installation itself: applied state and descriptor travel in the manifest.
func isOwn(suffix []byte) bool {
	return len(suffix) == 1 && (suffix[0] == 'a' || suffix[0] == 'd')
}

// errFull ends a walk: the table is full.
var errFull = errors.New("snapshot: table full")

// table makes a table that begins with the first key from start on.
func (c *source) table(ctx context.Context, n int, start []byte) (_ *builtFile, _ knownFile, err error) {
	k := knownFile{start: start}
	avg := uint64(c.s.o.TableBytes) << min(3, n/growAfter)
	cut := cutter{least: avg / 2, most: 2 * avg, further: avg - avg/2}
	var buf []byte
	if m := len(c.free); m > 0 {
		buf, c.free = c.free[m-1], c.free[:m-1]
	}
	var w *engine.SSTWriter
	raw := engine.DataKey(c.meta.Desc.Keyspace, nil)
	head := len(raw)
	var first []byte
	work := duty{s: c.s}
	rest := uint64(32 << 10)
	work.start()
	err = c.eachPair(ctx, engine.ViewData, start, func(key, val []byte) (err error) {
		if cut.before(key, len(val)) {
			return errFull
		}
		if cut.size >= rest {
			rest = cut.size + 32<<10
			if err := work.stop(ctx, restMost); err != nil {
				return err
			}
			work.start()
		}
		raw = append(raw[:head], key...)
		if w == nil {
			if w, err = c.s.o.Engine.NewTableBuffer(buf); err != nil {
				return err
			}
			first = append(first, clip(raw)...)
		}
		if err := w.Set(raw, val); err != nil {
			return fmt.Errorf("snapshot: make table of shard %d: %w", c.meta.Shard, err)
		}
		return nil
	})
	full := errors.Is(err, errFull)
	if full {
		err = nil
	}
	if w == nil { // nothing more
		if err != nil {
			return nil, k, err
		}
		c.dataOver = true
		return c.state(ctx, n)
	}
	if err != nil {
		w.Abort()
		return nil, k, err
	}
	size, err := w.Finish()
	if err != nil {
		return nil, k, err
	}
	k.last = append([]byte(nil), raw[head:]...)
	f := &builtFile{n: n, bytes: w.Bytes()}
	f.file = File{Kind: FileTable, Size: size, First: first, Last: append([]byte(nil), clip(raw)...), Sums: sums(f.bytes)}
	return f, k, nil
}

// cutter says where tables end.
type cutter struct {
	// A table has at least least bytes of records, at most most, and about further
	// more than least.
	least, most, further uint64
	size                 uint64
}

// before reports whether the table ends before this record, else it counts it in.
func (c *cutter) before(key []byte, val int) bool {
	n := uint64(len(key) + val)
	if c.size > 0 && (c.size+n > c.most || c.size >= c.least && c.ends(key, n)) {
		return true
	}
	c.size += n
	return false
}

// ends is true for a record of n bytes with a chance of n in further, by its key alone.
func (c *cutter) ends(key []byte, n uint64) bool {
	h := uint64(14695981039346656037) // FNV-1a
	for _, b := range key {
		h = (h ^ uint64(b)) * 1099511628211
	}
	h ^= h >> 33 // and the last step of MurmurHash3: FNV's high bits are poor
	h *= 0xff51afd7ed558ccd
	h ^= h >> 33
	over, below := bits.Mul64(math.MaxUint64/max(1, c.further), n)
	return over > 0 || h < below
}

// eachPair walks over one part of the view, from a key (or suffix) on.
func (c *source) eachPair(ctx context.Context, part engine.ViewPart, start []byte, f func(key, val []byte) error) error {
	return eachPair(ctx, c.view, part, start, f)
}

func eachPair(ctx context.Context, view *engine.View, part engine.ViewPart, start []byte, f func(key, val []byte) error) error {
	it, err := view.Iter(part)
	if err != nil {
		return err
	}
	ok := false
	if len(start) == 0 {
		ok = it.First()
	} else {
		ok = it.SeekGE(start)
	}
	for n := 1; ok && err == nil; n++ {
		if n%checkEvery == 0 && ctx.Err() != nil {
			err = ctx.Err()
			break
		}
		val := it.Value()
		if err = it.Err(); err == nil {
			if err = f(it.Key(), val); err == nil {
				ok = it.Next()
			}
		}
	}
	if err == nil {
		err = it.Err()
	}
	return errors.Join(err, it.Close())
}
