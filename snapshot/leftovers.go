package snapshot

import (
	"cmp"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"

	"github.com/flotillakv/flotilla/engine"
	"github.com/flotillakv/flotilla/internal/mutants"
)

// leftovers are tables that came, whole or in part, of snapshots of a shard that were
// never installed. Another snapshot of the shard, of whatever node and index, takes
// from them the chunks that it needs: they are looked up by size and CRC-32C and
// known for the same by SHA-256, which both sides compute only of chunks that the
// lookup finds. They may be of an earlier life of the node and hold anything: their
// bytes are read before they count.
type leftovers struct {
	files []*leftover
	index map[chunkKey][]chunkPlace // nil: to be made
}

type leftover struct {
	path string
	size int64    // of what is there
	sums []uint32 // of the chunks that are there; nil: to be read
	used bool     // it is part of the snapshot that comes
	// earlier: it is of an earlier life of the node.
	earlier bool
}

type chunkKey struct {
	size int
	sum  uint32
}

type chunkPlace struct {
	from *leftover
	at   int // chunk
}

// kept is a chunk of the file that comes, and where it is.
type kept struct {
	chunk int
	sum   hash
	chunkPlace
}

// add takes in what came of a file: its first chunks.
func (l *leftovers) add(path string, f *File, chunks int) {
	if path == "" || chunks == 0 || !f.Kind.staged() {
		return
	}
	size := min(f.Size, int64(chunks)*ChunkBytes)
	l.files, l.index = append(l.files, &leftover{path: path, size: size, sums: f.Sums[:chunks]}), nil
}

// adopt makes everything that came of old, which is on no list any more, leftovers of r.
func (r *reception) adopt(s *Store, old *reception) {
	old.closeFile()
	if old.dir == "" || mutants.On("E-cut-forgets") {
		return
	}
	l := old.old
	if l == nil {
		l = new(leftovers)
	}
	l.files = slices.DeleteFunc(l.files, func(f *leftover) bool { return f.used }) // they are among the paths
	for i := range old.meta.Files {
		l.add(old.paths[i], &old.meta.Files[i], len(old.meta.Files[i].Sums))
	}
	if old.rec != nil {
		l.add(old.path, old.rec, old.chunk)
	}
	r.dir, r.names = old.dir, old.names
	if err := l.tidy(s, 2*max(r.meta.Estimate, 4<<20)); err != nil {
		s.o.Logger.Warn("snapshot: staged files not read", "err", err) // they go with the directory
	} else if len(l.files) > 0 {
		r.old = l
	}
	if err := s.writeHead(r); err != nil {
		s.o.Logger.Warn("snapshot: head of staged files not written", "err", err)
	}
}

// tidy removes files that hold nothing which larger ones do not, and what exceeds limit
// bytes together.
func (l *leftovers) tidy(s *Store, limit int64) error {
	if err := l.makeIndex(s); err != nil {
		return err
	}
	have := map[chunkKey]bool{}
	slices.SortStableFunc(l.files, func(a, b *leftover) int { return cmp.Compare(b.size, a.size) })
	total := int64(0)
	l.files = slices.DeleteFunc(l.files, func(f *leftover) bool {
		more := false
		for i, sum := range f.sums {
			k := chunkKey{f.chunkLen(i), sum}
			more = more || !have[k]
			have[k] = true
		}
		if more && total+f.size <= limit {
			total += f.size
			return false
		}
		_ = s.fs.Remove(f.path)
		return true
	})
	l.index = nil
	return nil
}

// find returns chunks of f, from chunk from on, that look like some that are here.
// An error: they could not be read, which is the store's.
func (l *leftovers) find(s *Store, f *File, from int) (out []kept, err error) {
	if l.index == nil {
		if err := l.makeIndex(s); err != nil {
			return nil, err
		}
	}
	for c := from; c < len(f.Sums); c++ {
		places := l.index[chunkKey{f.chunkLen(c), f.Sums[c]}]
		if len(places) == 0 {
			continue
		}
		p := places[0]
		for _, o := range places { // go on in the file of the chunk before, if possible
			if n := len(out); n > 0 && o.from == out[n-1].from && o.at == out[n-1].at+1 {
				p = o
			}
		}
		k := kept{chunk: c, chunkPlace: p}
		b, err := k.read(s, f.chunkLen(c))
		if err != nil {
			return nil, err
		}
		if sum(b) != f.Sums[c] {
			continue // it rotted
		}
		k.sum = sha256.Sum256(b)
		out = append(out, k)
	}
	return out, nil
}

func (l *leftovers) makeIndex(s *Store) error {
	l.index = map[chunkKey][]chunkPlace{}
	for _, f := range l.files {
		if f.sums == nil {
			if err := f.readSums(s.fs); err != nil {
				return err
			}
		}
		for i, sum := range f.sums {
			k := chunkKey{f.chunkLen(i), sum}
			l.index[k] = append(l.index[k], chunkPlace{f, i})
		}
	}
	return nil
}

func (f *leftover) chunkLen(i int) int { return int(min(ChunkBytes, f.size-int64(i)*ChunkBytes)) }

// readSums finds out what is in a file of an earlier life.
func (f *leftover) readSums(fs engine.FS) error {
	file, err := fs.Open(f.path)
	if err != nil {
		return fmt.Errorf("snapshot: open staged table: %w", err)
	}
	defer file.Close()
	buf := make([]byte, ChunkBytes)
	f.size, f.sums = 0, []uint32{}
	for {
		n, err := io.ReadFull(file, buf)
		if n > 0 {
			f.sums, f.size = append(f.sums, sum(buf[:n])), f.size+int64(n)
		}
		if err != nil {
			if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
				return nil
			}
			return fmt.Errorf("snapshot: read staged table: %w", err)
		}
	}
}

// read reads the chunk, which has n bytes.
func (p chunkPlace) read(s *Store, n int) ([]byte, error) {
	file, err := s.fs.Open(p.from.path)
	if err != nil {
		return nil, fmt.Errorf("snapshot: open staged table: %w", err)
	}
	b := make([]byte, n)
	_, err = file.ReadAt(b, int64(p.at)*ChunkBytes)
	if errors.Is(err, io.EOF) {
		err = nil
	}
	if err != nil {
		err = fmt.Errorf("snapshot: read staged table: %w", err)
	}
	return b, errors.Join(err, file.Close())
}

// e2 is a planted bug: what an earlier life left passes for what it should be.
func (l *leftovers) e2(n int, f *File) *leftover {
	if !mutants.On("E2") || l == nil || f.Kind != FileTable {
		return nil
	}
	for _, o := range l.files {
		if o.earlier && !o.used && strings.HasSuffix(o.path, tableName(n)) {
			return o
		}
	}
	return nil
}

// stage makes the directory of a reception, and says there of what it is.
func (s *Store) stage(r *reception) error {
	if r.dir != "" {
		return nil
	}
	dir := s.fs.PathJoin(s.o.Engine.StagingDir(), "in-"+r.meta.ID.String())
	if err := s.fs.MkdirAll(dir, 0o700); err != nil {
		return fmt.Errorf("snapshot: make staging directory: %w", err)
	}
	r.dir = dir
	return s.writeHead(r)
}

// writeHead puts the head of the manifest beside the tables, so that a restart can find
// out of which shard they are. It needs no sync: its checksum says whether it is whole.
func (s *Store) writeHead(r *reception) error {
	f, err := s.fs.Create(s.fs.PathJoin(r.dir, headName), "unspecified")
	if err == nil {
		head := r.meta
		head.Files = nil
		_, err = f.Write(head.Encode(nil))
		err = errors.Join(err, f.Close())
	}
	if err != nil {
		return fmt.Errorf("snapshot: write staged head: %w", err)
	}
	return nil
}

// restore takes up what an earlier life of the node left behind: the chunks in it
// need not be sent again. At most MaxIn shards' are kept. So are whole images
// (restoreKept). Everything else in the staging directory is removed.
func (s *Store) restore() error {
	dir := s.o.Engine.StagingDir()
	names, err := s.fs.List(dir)
	if err != nil {
		return fmt.Errorf("snapshot: list staging directory: %w", err)
	}
	slices.Sort(names)
	kept := s.restoreKept(names)
	for _, name := range names {
		if !strings.HasPrefix(name, "in-") || len(s.mu.in) == s.o.MaxIn {
			continue
		}
		r := s.restoreOne(s.fs.PathJoin(dir, name))
		if r == nil || slices.ContainsFunc(s.mu.in, func(o *reception) bool { return o.meta.Shard == r.meta.Shard }) {
			continue
		}
		s.mu.in = append(s.mu.in, r)
		kept[name] = true
	}
	return s.o.Engine.CleanStaging(func(name string) bool { return kept[name] })
}

// restoreOne looks at one directory; nil if there is nothing of use in it.
func (s *Store) restoreOne(dir string) *reception {
	b, err := s.readFile(s.fs.PathJoin(dir, headName), MaxManifestBytes+1)
	if err != nil {
		return nil
	}
	m, err := DecodeMeta(b)
	if err != nil || len(m.Files) > 0 || s.wanted(&m) != nil { // it may have been installed
		return nil
	}
	m.ID = ID{} // which of its files are whole is not known
	r := &reception{meta: m, since: s.o.Clock.Now(), dir: dir, old: new(leftovers)}
	names, err := s.fs.List(dir)
	if err != nil {
		return nil
	}
	slices.Sort(names)
	for _, name := range names {
		var n int
		if _, err := fmt.Sscanf(name, "%d.sst", &n); err != nil || name != tableName(n) {
			continue
		}
		r.names = max(r.names, n+1)
		info, err := s.fs.Stat(s.fs.PathJoin(dir, name))
		if err == nil && info.Size() > 0 {
			r.old.files = append(r.old.files, &leftover{path: s.fs.PathJoin(dir, name), size: info.Size(), earlier: true})
		}
	}
	if len(r.old.files) == 0 {
		return nil
	}
	t := s.begin(&m, 0, true)
	for _, f := range r.old.files {
		t.done.Add(f.size)
	}
	r.t.Store(t)
	return r
}

func (s *Store) readFile(path string, limit int64) ([]byte, error) {
	f, err := s.fs.Open(path)
	if err != nil {
		return nil, err
	}
	b, err := io.ReadAll(io.LimitReader(f, limit))
	return b, errors.Join(err, f.Close())
}
