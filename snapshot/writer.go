package snapshot

import (
	"context"
	"errors"
	"fmt"
	"io"

	"github.com/flotillakv/flotilla/engine"
	"github.com/flotillakv/flotilla/internal/mutants"
	"github.com/flotillakv/flotilla/multiraft/raft"
)

// checkEvery is after how many keys a build looks at its context.
const checkEvery = 1024

// Built is a snapshot that is ready to be sent. Its tables lie in the staging
// directory until Close.
type Built struct {
	Meta Meta

	fs     engine.FS
	dir    string   // empty: no tables
	paths  []string // per file; empty: a list
	lists  [][]byte // per file; nil: a table
	open   engine.File
	opened int
}

// Build takes a consistent view of the replica of desc and makes a snapshot of
// it, without stopping writes. The view is held until all of it is written. It
// fails with ErrNothingApplied, the context's error, or the store's; nothing
// remains staged then.
func (s *Store) Build(ctx context.Context, desc *raft.Descriptor) (*Built, error) {
	view, err := s.o.Engine.View(desc)
	if err != nil {
		return nil, err
	}
	b := &Built{fs: s.fs, opened: -1}
	b.Meta.ID = s.o.NewID()
	b.Meta.Desc, b.Meta.Applied = view.Desc(), view.Applied()
	b.Meta.Shard = b.Meta.Desc.Shard
	if mutants.On("E6") && b.Meta.Applied.Applied > 0 { // the state is behind what it says
		b.Meta.Applied.Applied++
		b.Meta.Applied.TruncIndex++
	}
	b.Meta.Index, b.Meta.Term = b.Meta.Applied.Applied, b.Meta.Applied.AppliedTerm
	if b.Meta.Index == 0 && !mutants.On("E1") {
		err = ErrNothingApplied
	}
	if err == nil {
		err = s.buildData(ctx, view, b)
	}
	if err == nil {
		// Lists come last: a receiver that restarts has lost them, but goes on
		// behind the tables it has.
		err = s.buildState(ctx, view, b)
	}
	err = errors.Join(err, view.Close())
	if err == nil {
		err = b.Meta.check() // what is sent is what a receiver accepts
	}
	if err != nil {
		b.Close()
		return nil, err
	}
	return b, nil
}

// eachPair walks over one part of the view.
func eachPair(ctx context.Context, view *engine.View, part engine.ViewPart, f func(key, val []byte) error) error {
	it, err := view.Iter(part)
	if err != nil {
		return err
	}
	n := 0
	for ok := it.First(); ok && err == nil; ok = it.Next() {
		if n++; n%checkEvery == 0 && ctx.Err() != nil {
			err = ctx.Err()
			break
		}
		val := it.Value()
		if err = it.Err(); err == nil {
			err = f(it.Key(), val)
		}
	}
	if err == nil {
		err = it.Err()
	}
	return errors.Join(err, it.Close())
}

// isOwn reports whether a suffix of the applied side is written by the
// installation itself: applied state and descriptor travel in the manifest.
func isOwn(suffix []byte) bool {
	return len(suffix) == 1 && (suffix[0] == 'a' || suffix[0] == 'd')
}

func (s *Store) buildState(ctx context.Context, view *engine.View, b *Built) error {
	var list []byte
	err := eachPair(ctx, view, engine.ViewState, func(key, val []byte) error {
		if isOwn(key) {
			return nil
		}
		if list = appendKV(list, key, val); len(list) > maxListBytes {
			return fmt.Errorf("snapshot: the records of shard %d exceed %d bytes", b.Meta.Shard, maxListBytes)
		}
		return nil
	})
	if err == nil && len(list) > 0 {
		b.addList(FileState, list)
	}
	return err
}

// buildData collects pairs in a list, and goes over to tables when the list
// grows beyond the small class.
func (s *Store) buildData(ctx context.Context, view *engine.View, b *Built) error {
	t := tables{s: s, b: b}
	var list []byte
	err := eachPair(ctx, view, engine.ViewData, func(key, val []byte) error {
		if t.used {
			return t.add(key, val)
		}
		if list = appendKV(list, key, val); len(list) <= s.o.SmallBytes {
			return nil
		}
		t.used = true
		pairs, err := decodeKVs(list)
		for i := 0; i < len(pairs) && err == nil; i++ {
			err = t.add(pairs[i].Key, pairs[i].Value)
		}
		return err
	})
	if t.used {
		return errors.Join(err, t.finish())
	}
	if err == nil && len(list) > 0 {
		b.addList(FileData, list)
	}
	return err
}

func (b *Built) addList(kind FileKind, list []byte) {
	f := File{Kind: kind, Size: int64(len(list))}
	for at := 0; at < len(list); at += ChunkBytes {
		f.Sums = append(f.Sums, sum(list[at:min(at+ChunkBytes, len(list))]))
	}
	b.Meta.Files = append(b.Meta.Files, f)
	b.paths = append(b.paths, "")
	b.lists = append(b.lists, list)
}

// tables writes the row of tables of a large shard.
type tables struct {
	s    *Store
	b    *Built
	used bool
	w    *engine.SSTWriter
	path string
	file File
	n    int
	key  []byte // the last one
}

func (t *tables) add(key, val []byte) error {
	ks := t.b.Meta.Desc.Keyspace
	if t.w == nil {
		if err := t.begin(); err != nil {
			return err
		}
		t.file = File{Kind: FileTable, First: clip(engine.DataKey(ks, key))}
	}
	t.key = append(t.key[:0], key...)
	if err := t.w.Set(engine.DataKey(ks, key), val); err != nil {
		return fmt.Errorf("snapshot: write table of shard %d: %w", t.b.Meta.Shard, err)
	}
	if t.n++; t.n%64 == 0 || len(val) > 64<<10 {
		if t.w.EstimatedSize() >= uint64(t.s.o.TableBytes) {
			return t.finish()
		}
	}
	return nil
}

func (t *tables) begin() error {
	b := t.b
	if b.dir == "" {
		dir := b.fs.PathJoin(t.s.o.Engine.StagingDir(), "out-"+b.Meta.ID.String())
		if err := b.fs.MkdirAll(dir, 0o700); err != nil {
			return fmt.Errorf("snapshot: make staging directory: %w", err)
		}
		b.dir = dir
	}
	if len(b.Meta.Files) == MaxFiles {
		return fmt.Errorf("snapshot: shard %d needs more than %d files", b.Meta.Shard, MaxFiles)
	}
	t.path = b.fs.PathJoin(b.dir, tableName(len(b.Meta.Files)))
	var err error
	t.w, err = t.s.o.Engine.NewSSTWriter(t.path)
	return err
}

// finish completes the open table, if there is one, and takes its checksums
// from what can be read back.
func (t *tables) finish() error {
	if t.w == nil {
		return nil
	}
	w, b := t.w, t.b
	t.w = nil
	size, err := w.Finish()
	if err != nil {
		return err
	}
	t.file.Size, t.file.Last = size, clip(engine.DataKey(b.Meta.Desc.Keyspace, t.key))
	f, err := b.fs.Open(t.path)
	if err != nil {
		return fmt.Errorf("snapshot: read table back: %w", err)
	}
	defer f.Close()
	buf := make([]byte, ChunkBytes)
	for left := size; left > 0; left -= int64(len(buf)) {
		buf = buf[:min(left, ChunkBytes)]
		if _, err := io.ReadFull(f, buf); err != nil {
			return fmt.Errorf("snapshot: read table back: %w", err)
		}
		t.file.Sums = append(t.file.Sums, sum(buf))
	}
	b.Meta.Files = append(b.Meta.Files, t.file)
	b.paths = append(b.paths, t.path)
	b.lists = append(b.lists, nil)
	return nil
}

// Chunk appends the n-th message of the stream to dst, n < Meta.Chunks(). What
// is read from a table is held against its checksum: a disk that lies is found
// here, not at the receiver.
func (b *Built) Chunk(n int, dst []byte) ([]byte, error) {
	i, c := b.Meta.chunkAt(n)
	f := &b.Meta.Files[i]
	at, size := int64(c)*ChunkBytes, f.chunkLen(c)
	if b.lists[i] != nil {
		return encodeChunk(dst, f.Kind, i, c, b.lists[i][at:at+int64(size)]), nil
	}
	if b.opened != i {
		if err := b.closeFile(); err != nil {
			return nil, err
		}
		file, err := b.fs.Open(b.paths[i])
		if err != nil {
			return nil, fmt.Errorf("snapshot: open table: %w", err)
		}
		b.open, b.opened = file, i
	}
	buf := make([]byte, size)
	if _, err := b.open.ReadAt(buf, at); err != nil && !(errors.Is(err, io.EOF) && at+int64(size) == f.Size) {
		return nil, fmt.Errorf("snapshot: read table: %w", err)
	}
	if sum(buf) != f.Sums[c] {
		return nil, corrupt("chunk %d of file %d changed on disk since it was built", c, i)
	}
	return encodeChunk(dst, f.Kind, i, c, buf), nil
}

func (b *Built) closeFile() error {
	if b.open == nil {
		return nil
	}
	err := b.open.Close()
	b.open, b.opened = nil, -1
	return err
}

// Close removes what was staged. It is idempotent.
func (b *Built) Close() error {
	err := b.closeFile()
	if b.dir != "" {
		err = errors.Join(err, b.fs.RemoveAll(b.dir))
		b.dir = ""
	}
	return err
}
