package snapshot

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"sync/atomic"
	"time"

	"github.com/flotillakv/flotilla/engine"
	"github.com/flotillakv/flotilla/internal/mutants"
	"github.com/flotillakv/flotilla/multiraft/raft"
)

// Kept images
//
// The leader of a shard can keep an image of it on its disk, outside the log
// (raft.CutLeaderImage), so that the log may be cut through the image's index though a
// replica lacks what is cut: that one is sent the image, and the log behind it, without
// a view of the present state.
//
// An image is a directory below the staging directory with the files of a snapshot, and
// its manifest, which names them down to the checksum of each chunk. The manifest is
// written last, when all else is durable, under another name, and takes its own when it
// is durable: a directory without one is half an image, and is removed. So is the image
// before, once the new one is there. Each chunk is held against the manifest as it is
// read; an image with a chunk that differs is removed.
//
// Nothing rests on an image: where there is none, a fresh snapshot is made.

const (
	keptPrefix   = engine.KeptPrefix
	manifestName = "MANIFEST"
	// keptAge is how old an image is before it makes room for another shard's.
	keptAge = time.Hour
	// keptExtra is what an image takes besides its files: manifest and directory.
	keptExtra = 16 << 10
)

// errKept is wrapped by errors about files of an image on the own disk.
var errKept = errors.New("snapshot: a kept image cannot be used")

// keptImage is a whole image on the disk. All but users and gone is constant.
type keptImage struct {
	meta  Meta // with all files
	dir   string
	bytes int64 // that it takes
	made  raft.Time

	users int  // transfers that read it; guarded by Store.mu
	gone  bool // on no list any more: to be removed when nobody reads it
	bad   atomic.Bool
}

// keeping is an image that is being made.
type keeping struct {
	bytes int64 // of room that it has
}

// Kept returns the image of a shard that is kept: the index of the last entry in it, and how
// many bytes it takes. It touches no file.
func (s *Store) Kept(shard raft.ShardID) (index raft.Index, bytes int64, ok bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	k := s.mu.kept[shard]
	if k == nil {
		return 0, 0, false
	}
	return k.meta.Index, k.bytes, true
}

// Keep makes an image of the replica of desc as it is now, which takes the place of the one
// that is kept of the shard. It returns what Kept does, once the image is durable. Errors,
// with the one before still there: ErrNoSpace (Options.KeepBytes, or the disk), ErrBusy (one
// is being made, or the one before is being sent), ErrNothingApplied, ErrClosed, the
// context's or the store's.
func (s *Store) Keep(ctx context.Context, desc *raft.Descriptor) (raft.Index, int64, error) {
	k, err := s.reserve(desc.Shard)
	if err != nil {
		return 0, 0, err
	}
	img, err := s.keep(ctx, desc, k)
	if err != nil {
		s.settleKept(desc.Shard, nil)
		s.removeKept(img)
		return 0, 0, err
	}
	s.removeKept(s.settleKept(desc.Shard, img))
	s.count.kept.Add(1)
	s.count.keptBytes.Add(uint64(img.bytes))
	s.o.Logger.Info("image kept", "what", img.meta.String())
	return img.meta.Index, img.bytes, nil
}

// reserve begins the making of an image.
func (s *Store) reserve(shard raft.ShardID) (*keeping, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.mu.closed {
		return nil, ErrClosed
	}
	if s.mu.tight {
		return nil, fmt.Errorf("%w: the disk is nearly full", ErrNoSpace)
	}
	if old := s.mu.kept[shard]; s.mu.keeping[shard] != nil || old != nil && old.users > 0 {
		return nil, fmt.Errorf("%w: an image of shard %d is being made or sent", ErrBusy, shard)
	}
	k := new(keeping)
	s.mu.keeping[shard] = k
	return k, nil
}

// grow gives k room for n bytes in all. Images of other shards that are old make room.
func (s *Store) grow(k *keeping, n int64) error {
	room := s.room()
	s.mu.Lock()
	taken := n + s.keptBytesLocked() - k.bytes
	var out []*keptImage
	if taken > s.o.KeepBytes {
		now := s.o.Clock.Now()
		for _, o := range s.keptLocked() {
			if taken <= s.o.KeepBytes {
				break
			}
			if o.users == 0 && s.mu.keeping[o.meta.Shard] == nil && now.Sub(o.made) >= keptAge {
				delete(s.mu.kept, o.meta.Shard)
				out = append(out, o)
				taken -= o.bytes
			}
		}
	}
	free := room
	for _, r := range s.mu.in {
		free -= r.toCome()
	}
	for _, o := range s.mu.keeping {
		if o != k {
			free -= o.bytes
		}
	}
	var err error
	switch {
	case taken > s.o.KeepBytes && !mutants.On("CI2"):
		err = fmt.Errorf("%w: an image of %d bytes, images may take %d", ErrNoSpace, n, s.o.KeepBytes)
	case n > free:
		err = fmt.Errorf("%w: an image of %d bytes, there is room for %d", ErrNoSpace, n, max(0, free))
	default:
		k.bytes = n
	}
	s.mu.Unlock()
	for _, o := range out {
		s.removeKept(o)
	}
	return err
}

// keptBytesLocked returns what images take, or may.
func (s *Store) keptBytesLocked() (n int64) {
	for _, o := range s.mu.kept {
		n += o.bytes
	}
	for _, o := range s.mu.leaving {
		n += o.bytes
	}
	for _, o := range s.mu.keeping {
		n += o.bytes
	}
	return n
}

// keptLocked lists the images, the oldest first.
func (s *Store) keptLocked() []*keptImage {
	out := make([]*keptImage, 0, len(s.mu.kept))
	for _, k := range s.mu.kept {
		out = append(out, k)
	}
	slices.SortFunc(out, func(a, b *keptImage) int {
		return cmp.Or(cmp.Compare(a.made, b.made), cmp.Compare(a.meta.Shard, b.meta.Shard))
	})
	return out
}

// keep writes an image. One that is returned with an error is to be removed.
func (s *Store) keep(ctx context.Context, desc *raft.Descriptor, room *keeping) (_ *keptImage, err error) {
	c, err := s.sourceOf(ctx, desc)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, c.close()) }()
	if err := s.grow(room, c.meta.Estimate+keptExtra); err != nil {
		return nil, err
	}
	img := &keptImage{made: s.o.Clock.Now(), bytes: keptExtra, dir: s.fs.PathJoin(s.o.Engine.StagingDir(), keptPrefix+c.meta.ID.String())}
	if err := s.fs.MkdirAll(img.dir, 0o700); err != nil {
		return img, fmt.Errorf("snapshot: make directory of an image: %w", err)
	}
	if err := s.syncDir(s.o.Engine.StagingDir()); err != nil {
		return img, err
	}
	for n := 0; ; n++ {
		f, err := c.get(ctx, n)
		if err != nil {
			return img, err
		}
		if f == nil {
			break
		}
		if img.bytes += f.file.Size; img.bytes > room.bytes {
			if err := s.grow(room, img.bytes+img.bytes/8); err != nil {
				return img, err
			}
		}
		if err := s.writeSynced(s.fs.PathJoin(img.dir, tableName(n)), f.bytes); err != nil {
			return img, err
		}
	}
	img.meta = c.meta
	img.meta.Files = slices.Clone(c.meta.Files)
	b := img.meta.Encode(nil)
	if len(b) > MaxManifestBytes {
		return img, fmt.Errorf("snapshot: manifest of %d bytes", len(b))
	}
	img.bytes += int64(len(b))
	to := s.fs.PathJoin(img.dir, manifestName)
	if err := s.writeSynced(to+".new", b); err != nil {
		return img, err
	}
	if err := s.syncDir(img.dir); err != nil { // all files are there before the manifest is
		return img, err
	}
	if err := s.fs.Rename(to+".new", to); err != nil {
		return img, fmt.Errorf("snapshot: name the manifest of an image: %w", err)
	}
	return img, s.syncDir(img.dir)
}

// writeSynced makes a file of b and syncs it.
func (s *Store) writeSynced(path string, b []byte) error {
	f, err := s.fs.Create(path, "unspecified")
	if err != nil {
		return fmt.Errorf("snapshot: make file of an image: %w", err)
	}
	durable := !mutants.On("CI3")
	if durable {
		f = engine.Smooth(f)
	}
	if _, err = f.Write(b); err == nil && durable {
		err = f.Sync()
	}
	if err = errors.Join(err, f.Close()); err != nil {
		return fmt.Errorf("snapshot: write file of an image: %w", err)
	}
	return nil
}

// settleKept ends the making of an image: img, if it is not nil, takes the place of the one
// before, which is returned.
func (s *Store) settleKept(shard raft.ShardID, img *keptImage) (old *keptImage) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.mu.keeping, shard)
	if img == nil {
		return nil
	}
	old = s.mu.kept[shard]
	s.mu.kept[shard] = img
	return old
}

// removeKept removes an image that is on no list any more, when nobody reads it.
func (s *Store) removeKept(k *keptImage) {
	if k == nil || mutants.On("CI4") {
		return
	}
	s.mu.Lock()
	k.gone = true
	s.mu.leaving = slices.DeleteFunc(s.mu.leaving, func(o *keptImage) bool { return o == k })
	busy := k.users > 0
	if busy {
		s.mu.leaving = append(s.mu.leaving, k)
	}
	s.mu.Unlock()
	if busy {
		return
	}
	if err := s.fs.RemoveAll(k.dir); err != nil { // the next boot removes it
		s.o.Logger.Warn("snapshot: image not removed", "dir", k.dir, "err", err)
	}
}

// DropKept forgets the image of a shard if it is of an index below below, and removes
// it: at once, or when it is not sent any more. It reports whether there was one. It may be called
// on a loop: unless Options.Inline, files are removed aside.
func (s *Store) DropKept(shard raft.ShardID, below raft.Index) bool {
	s.mu.Lock()
	k := s.mu.kept[shard]
	if k == nil || k.meta.Index >= below {
		s.mu.Unlock()
		return false
	}
	delete(s.mu.kept, shard)
	switch {
	case s.o.Inline:
		defer s.removeKept(k)
	case !s.mu.closed: // else the next boot removes it
		s.aside.Go(func() { s.removeKept(k) })
	}
	s.mu.Unlock()
	return true
}

// SendKept is Send of the image that is kept of a shard, if it is of index and names
// replica rep. If it cannot be read it is dropped.
func (s *Store) SendKept(ctx context.Context, shard raft.ShardID, index raft.Index, to raft.NodeID, rep raft.ReplicaID, open OpenFunc) (raft.Index, raft.Term, error) {
	return s.sendKept(ctx, shard, index, to, rep, open, new(atomic.Pointer[transfer]))
}

func (s *Store) sendKept(ctx context.Context, shard raft.ShardID, index raft.Index, to raft.NodeID, rep raft.ReplicaID, open OpenFunc, p *atomic.Pointer[transfer]) (raft.Index, raft.Term, error) {
	s.mu.Lock()
	k := s.mu.kept[shard]
	if k == nil || k.meta.Index != index {
		s.mu.Unlock()
		return 0, 0, fmt.Errorf("%w: there is none of shard %d, index %d", errKept, shard, index)
	}
	k.users++
	s.mu.Unlock()
	var err error
	var i raft.Index
	var t raft.Term
	if _, ok := k.meta.Desc.Replica(rep); !ok {
		k.bad.Store(true)
		err = fmt.Errorf("%w: it is older than replica %d of shard %d", errKept, rep, shard)
	} else {
		i, t, err = s.sendSource(ctx, to, open, p, func() (*source, error) {
			m := k.meta
			m.Files = nil
			return &source{s: s, kept: k, meta: m}, nil
		})
	}
	s.mu.Lock()
	k.users--
	gone := k.gone
	if k.bad.Load() && !gone && s.mu.kept[shard] == k {
		delete(s.mu.kept, shard)
		gone = true
	}
	s.mu.Unlock()
	if gone {
		s.removeKept(k)
	}
	if k.bad.Load() && err != nil && !errors.Is(err, errKept) { // the receiver's word about it
		err = fmt.Errorf("%w: %w", errKept, err)
	}
	return i, t, err
}

// read reads file n into buf.
func (k *keptImage) read(s *Store, n int, buf []byte) (*builtFile, error) {
	f := &builtFile{n: n, file: k.meta.Files[n]}
	b, err := s.readKept(k, n, buf)
	if err != nil {
		k.bad.Store(true)
		return nil, fmt.Errorf("%w: file %d of %v: %w", errKept, n, &k.meta, err)
	}
	f.bytes = b
	return f, nil
}

func (s *Store) readKept(k *keptImage, n int, buf []byte) ([]byte, error) {
	f := &k.meta.Files[n]
	file, err := s.fs.Open(s.fs.PathJoin(k.dir, tableName(n)))
	if err != nil {
		return nil, err
	}
	b := slices.Grow(buf[:0], int(f.Size))[:f.Size]
	_, err = io.ReadFull(file, b)
	if err = errors.Join(err, file.Close()); err != nil {
		return nil, err
	}
	if !slices.Equal(sums(b), f.Sums) && !mutants.On("CI5") {
		return nil, corrupt("checksum of a chunk")
	}
	return b, nil
}

// restoreKept takes up the images that an earlier life of the node kept: the newest whole
// one of each shard that has a replica here. It returns the names of their directories.
func (s *Store) restoreKept(names []string) (kept map[string]bool) {
	kept = map[string]bool{}
	for _, name := range names {
		if !strings.HasPrefix(name, keptPrefix) || s.o.KeepBytes <= 0 {
			continue
		}
		k := s.restoreOneKept(s.fs.PathJoin(s.o.Engine.StagingDir(), name))
		if k == nil || s.keptBytesLocked()+k.bytes > s.o.KeepBytes {
			continue
		}
		if old := s.mu.kept[k.meta.Shard]; old != nil {
			if old.meta.Index >= k.meta.Index {
				continue
			}
			delete(kept, s.fs.PathBase(old.dir))
		}
		s.mu.kept[k.meta.Shard] = k
		kept[name] = true
	}
	return kept
}

// restoreOneKept looks at one directory; nil if there is no whole image in it, or one of
// which nobody has use.
func (s *Store) restoreOneKept(dir string) *keptImage {
	b, err := s.readFile(s.fs.PathJoin(dir, manifestName), MaxManifestBytes+1)
	if err != nil {
		return nil
	}
	m, err := DecodeMeta(b)
	if err != nil {
		return nil
	}
	k := &keptImage{meta: m, dir: dir, bytes: keptExtra + int64(len(b)), made: s.o.Clock.Now()}
	for n := range m.Files {
		info, err := s.fs.Stat(s.fs.PathJoin(dir, tableName(n)))
		if err != nil || info.Size() != m.Files[n].Size {
			return nil
		}
		k.bytes += m.Files[n].Size
	}
	st, ok, err := s.o.Engine.Load(m.Shard)
	if err != nil || !ok || st.Applied.TruncIndex > m.Index {
		return nil
	}
	if _, here := st.Desc.ReplicaOn(s.o.Node); !here {
		return nil
	}
	if q, err := s.o.Engine.Quarantined(m.Shard); err != nil || q.Why != 0 {
		return nil // it may be as wrong as the replica
	}
	return k
}

// dropAllKept drops the images that are not being sent.
func (s *Store) dropAllKept() {
	s.mu.Lock()
	var out []*keptImage
	for _, k := range s.keptLocked() {
		if k.users == 0 {
			delete(s.mu.kept, k.meta.Shard)
			out = append(out, k)
		}
	}
	s.mu.Unlock()
	for _, k := range out {
		s.removeKept(k)
	}
}
