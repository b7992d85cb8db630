package snapshot

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math"
	"slices"
	"strings"
	"sync"
	"sync/atomic"

	"github.com/flotillakv/flotilla/engine"
	"github.com/flotillakv/flotilla/internal/mutants"
	"github.com/flotillakv/flotilla/multiraft/raft"
)

// reception is a snapshot on its way in. Chunks come in order; have counts
// those that are there. One Handle at a time owns it (busy).
type reception struct {
	meta  Meta
	from  raft.NodeID
	since raft.Time // when a chunk came last
	busy  bool
	// complete: all chunks came, the snapshot waits for its installation.
	complete bool
	// gone: the slot was given to another snapshot, because the stream stood
	// still for RetainFor.
	gone bool
	have atomic.Int32 // written by its owner alone

	dir   string
	file  engine.File // the table being written
	lists [][]byte    // per file
	paths []string    // per file
}

func newReception(m *Meta, from raft.NodeID, now raft.Time) *reception {
	return &reception{meta: *m, from: from, since: now, lists: make([][]byte, len(m.Files)), paths: make([]string, len(m.Files))}
}

// toCome returns how many bytes of tables are still to be written. A table that is
// under way counts in full. Any goroutine may call it.
func (r *reception) toCome() (n int64) {
	have := int(r.have.Load())
	for i := range r.meta.Files {
		f := &r.meta.Files[i]
		if have -= len(f.Sums); have >= 0 || f.Kind != FileTable {
			continue
		}
		n += f.Size
	}
	return n
}

// manifestName is the name of the manifest in a staging directory.
const manifestName = "MANIFEST"

// Handle receives a snapshot: header is its manifest, next returns one chunk
// after the other and io.EOF at the end. On success everything is staged,
// checked and synced, and the caller installs it on the loop of the shard, then
// closes it. On failure nothing of the present state was touched; the error's
// text is to be returned to the sender through the transport as it is (the
// sender reads a verdict from it). Errors: ErrCorrupt, ErrStale, ErrNotMember,
// *OverlapError, ErrBusy and ErrNoSpace refuse; after ErrTruncated or a broken stream, what
// came is kept for RetainFor, and the same snapshot goes on behind it.
func (s *Store) Handle(from raft.NodeID, header []byte, next func() ([]byte, error)) (*Staged, error) {
	r, err := s.admit(from, header)
	if err != nil {
		return nil, verdictOf(err, 0)
	}
	err = s.receive(r, next)
	if err == nil {
		return &Staged{Meta: r.meta, s: s, r: r}, nil
	}
	keep := errors.Is(err, ErrTruncated) // release drops it all the same if it gave way
	have := int(r.have.Load())
	s.release(r, keep)
	return nil, verdictOf(err, have)
}

// admit decides on the manifest alone, before any data came.
func (s *Store) admit(from raft.NodeID, header []byte) (*reception, error) {
	m, err := DecodeMeta(header)
	if err != nil {
		return nil, err
	}
	if err := s.wanted(&m); err != nil {
		return nil, err
	}
	now := s.o.Clock.Now()
	s.Sweep(now)
	room := int64(math.MaxInt64)
	if s.o.Room != nil {
		room = s.o.Room()
	}
	r, old, err := s.enlist(&m, from, now, room)
	s.discard(old) // the sender has built a new one
	return r, err
}

// enlist gives the snapshot a slot: that of its interrupted reception, or a new
// one; and the room for what is still to come of it, which nobody else gets while it
// has the slot.
func (s *Store) enlist(m *Meta, from raft.NodeID, now raft.Time, room int64) (r, old *reception, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.mu.closed {
		return nil, nil, ErrClosed
	}
	busy := 0
	for _, o := range slices.Clone(s.mu.in) {
		if o.busy && !o.complete && now.Sub(o.since) >= RetainFor && o.meta.ID != m.ID {
			o.gone = true // its Handle ends when its stream does, and cleans up
			s.forgetLocked(o)
			continue
		}
		if o.busy {
			busy++
		}
		if o.meta.Shard == m.Shard {
			old = o
		}
	}
	if busy >= s.o.MaxIn {
		return nil, nil, ErrBusy
	}
	if old != nil && old.busy {
		return nil, nil, fmt.Errorf("%w: another snapshot of shard %d is coming in", ErrBusy, m.Shard)
	}
	need := newReception(m, from, now)
	if old != nil && old.meta.ID == m.ID && old.from == from {
		need = old
	}
	promised := int64(0)
	for _, o := range s.mu.in {
		if o != old {
			promised += o.toCome()
		}
	}
	if left := need.toCome(); left > room-promised && !mutants.On("H2i") {
		return nil, nil, fmt.Errorf("%w: %d bytes of shard %d are to come, there is room for %d", ErrNoSpace, left, m.Shard, max(0, room-promised))
	}
	if need == old {
		old.busy, old.since = true, now
		return old, nil, nil
	}
	if old != nil {
		s.forgetLocked(old)
	}
	r = need
	r.busy = true
	s.mu.in = append(s.mu.in, r)
	return r, old, nil
}

// wanted refuses what must not or need not be installed here. The engine looks
// again right before it installs.
func (s *Store) wanted(m *Meta) error {
	rep, ok := m.Desc.ReplicaOn(s.o.Node)
	if !ok {
		return fmt.Errorf("%w: shard %d, node %d", ErrNotMember, m.Shard, s.o.Node)
	}
	if lowest, dead, err := s.o.Engine.Tombstone(m.Shard); err != nil {
		return err
	} else if dead && rep.ID < lowest {
		return fmt.Errorf("%w: replica %d of shard %d was destroyed here", ErrNotMember, rep.ID, m.Shard)
	}
	if s.o.Live != nil && !mutants.On("B0-A6") {
		if err := CheckOverlap(&m.Desc, s.o.Live()); err != nil {
			return err
		}
	}
	st, ok, err := s.o.Engine.Load(m.Shard)
	if err != nil || !ok {
		return err
	}
	return s.newer(m, &st.Desc, st.Applied)
}

// newer refuses a snapshot that would set the replica back, or that is of
// another incarnation of it.
func (s *Store) newer(m *Meta, have *raft.Descriptor, as raft.AppliedState) error {
	if m.Index <= as.Applied {
		return fmt.Errorf("%w: shard %d is applied through %d, the snapshot through %d", ErrStale, m.Shard, as.Applied, m.Index)
	}
	if m.Desc.ConfVer < have.ConfVer || m.Desc.Version < have.Version {
		return fmt.Errorf("%w: shard %d has descriptor %d.%d, the snapshot %d.%d", ErrStale, m.Shard,
			have.ConfVer, have.Version, m.Desc.ConfVer, m.Desc.Version)
	}
	mine, _ := have.ReplicaOn(s.o.Node)
	his, _ := m.Desc.ReplicaOn(s.o.Node)
	if mine.ID != his.ID {
		return fmt.Errorf("%w: replica %d of shard %d lives here, the snapshot is for replica %d", ErrNotMember, mine.ID, m.Shard, his.ID)
	}
	return nil
}

// receive takes chunks until all are there.
func (s *Store) receive(r *reception, next func() ([]byte, error)) error {
	total := r.meta.Chunks()
	for int(r.have.Load()) < total {
		b, err := next()
		if err != nil {
			if errors.Is(err, io.EOF) {
				return fmt.Errorf("%w: %d of %d chunks", ErrTruncated, r.have.Load(), total)
			}
			return fmt.Errorf("%w: %d of %d chunks: %w", ErrTruncated, r.have.Load(), total, err)
		}
		i, c, payload, err := r.meta.decodeChunk(b)
		if err != nil {
			return err
		}
		wi, wc := r.meta.chunkAt(int(r.have.Load()))
		if i < wi || i == wi && c < wc {
			continue // sent twice
		}
		if i != wi || c != wc {
			return corrupt("chunk %d of file %d came in place of chunk %d of file %d", c, i, wc, wi)
		}
		if err := s.put(r, i, c, payload); err != nil {
			return err
		}
		r.have.Add(1)
		if !s.touch(r) {
			return fmt.Errorf("%w: the stream stood still for %v and gave way to another", ErrBusy, RetainFor)
		}
	}
	if r.dir != "" {
		if err := s.syncDir(r.dir); err != nil {
			return err
		}
	}
	s.mu.Lock()
	r.complete = true
	gone := r.gone
	s.mu.Unlock()
	if gone {
		return ErrBusy
	}
	// Drain what a confused sender may still send, within a bound, so that the
	// stream ends in order.
	for range 4 {
		if _, err := next(); err != nil {
			break
		}
	}
	return nil
}

// put writes one chunk, the next of all.
func (s *Store) put(r *reception, i, c int, payload []byte) error {
	f := &r.meta.Files[i]
	if f.Kind != FileTable {
		r.lists[i] = append(r.lists[i], payload...)
		return nil
	}
	if r.dir == "" {
		dir := s.fs.PathJoin(s.o.Engine.StagingDir(), "in-"+r.meta.ID.String())
		if err := s.fs.MkdirAll(dir, 0o700); err != nil {
			return fmt.Errorf("snapshot: make staging directory: %w", err)
		}
		r.dir = dir
		if err := s.writeManifest(r); err != nil {
			return err
		}
	}
	if r.file == nil {
		r.paths[i] = s.fs.PathJoin(r.dir, tableName(i))
		file, err := s.fs.Create(r.paths[i], "unspecified")
		if err != nil {
			return fmt.Errorf("snapshot: create staged table: %w", err)
		}
		r.file = file
	}
	// Write may scribble on what it is given.
	if _, err := r.file.Write(payload); err != nil {
		return fmt.Errorf("snapshot: write staged table: %w", err)
	}
	if c+1 < len(f.Sums) {
		return nil
	}
	file := r.file
	r.file = nil
	if mutants.On("E5b") {
		return file.Close()
	}
	if err := file.Sync(); err != nil {
		return errors.Join(fmt.Errorf("snapshot: sync staged table: %w", err), file.Close())
	}
	if err := file.Close(); err != nil {
		return fmt.Errorf("snapshot: close staged table: %w", err)
	}
	return nil
}

// writeManifest puts the manifest beside the tables, so that a restart can find
// out what they are. It needs no sync: its checksum says whether it is whole.
func (s *Store) writeManifest(r *reception) error {
	f, err := s.fs.Create(s.fs.PathJoin(r.dir, manifestName), "unspecified")
	if err == nil {
		head := binary.BigEndian.AppendUint32(nil, uint32(r.from))
		_, err = f.Write(r.meta.Encode(head))
		err = errors.Join(err, f.Close())
	}
	if err != nil {
		return fmt.Errorf("snapshot: write staged manifest: %w", err)
	}
	return nil
}

// restore takes up the receptions that an earlier life of the node left
// behind: the tables that are whole, by their checksums, need not be sent
// again. Everything else in the staging directory is removed.
func (s *Store) restore() error {
	dir := s.o.Engine.StagingDir()
	names, err := s.fs.List(dir)
	if err != nil {
		return fmt.Errorf("snapshot: list staging directory: %w", err)
	}
	slices.Sort(names)
	kept := map[string]bool{}
	for _, name := range names {
		if !strings.HasPrefix(name, "in-") || len(s.mu.in) == s.o.MaxIn {
			continue
		}
		if r := s.restoreOne(s.fs.PathJoin(dir, name)); r != nil && name == "in-"+r.meta.ID.String() {
			s.mu.in = append(s.mu.in, r)
			kept[name] = true
		}
	}
	return s.o.Engine.CleanStaging(func(name string) bool { return kept[name] })
}

// restoreOne reads one directory; nil if there is nothing of use in it.
func (s *Store) restoreOne(dir string) *reception {
	b, err := s.readFile(s.fs.PathJoin(dir, manifestName), MaxManifestBytes+4)
	if err != nil || len(b) < 4 {
		return nil
	}
	m, err := DecodeMeta(b[4:])
	if err != nil || s.wanted(&m) != nil { // it may have been installed
		return nil
	}
	r := newReception(&m, raft.NodeID(binary.BigEndian.Uint32(b)), s.o.Clock.Now())
	for i := range m.Files {
		f := &m.Files[i]
		path := s.fs.PathJoin(dir, tableName(i))
		if f.Kind != FileTable || s.verify(path, f) != nil && !mutants.On("E2") {
			break
		}
		r.paths[i] = path
		r.have.Add(int32(len(f.Sums)))
	}
	if r.have.Load() == 0 {
		return nil
	}
	r.dir = dir
	return r
}

// verify holds a staged table against its manifest, and makes it durable.
func (s *Store) verify(path string, f *File) error {
	file, err := s.fs.Open(path)
	if err != nil {
		return err
	}
	buf := make([]byte, ChunkBytes)
	for c := 0; c < len(f.Sums) && err == nil; c++ {
		b := buf[:f.chunkLen(c)]
		if _, err = io.ReadFull(file, b); err == nil && sum(b) != f.Sums[c] {
			err = corrupt("staged chunk %d", c)
		}
	}
	if err == nil {
		if n, _ := file.Read(buf[:1]); n != 0 {
			err = corrupt("staged table is too long")
		}
	}
	if err == nil {
		err = file.Sync()
	}
	return errors.Join(err, file.Close())
}

func (s *Store) readFile(path string, limit int64) ([]byte, error) {
	f, err := s.fs.Open(path)
	if err != nil {
		return nil, err
	}
	b, err := io.ReadAll(io.LimitReader(f, limit))
	return b, errors.Join(err, f.Close())
}

func tableName(file int) string { return fmt.Sprintf("%04d.sst", file) }

// Staged is a snapshot that is complete on this node's disk (or in memory, if
// small) and not installed. It keeps its slot until Close.
type Staged struct {
	Meta Meta

	s *Store
	r *reception

	// mu orders Install and Close, which may come from different goroutines: a
	// caller that stops waiting for the loop closes while the installation is
	// still to run, or runs. Held across no I/O.
	mu struct {
		sync.Mutex
		installing bool
		used       bool // installation was tried: the tables may be consumed
		closed     bool
	}
}

// Install makes the snapshot the state of the replica, in one durable step. It
// is called on the loop of the shard, which hands in the hard state it holds in
// memory and does nothing else with the shard meanwhile. ErrStale, ErrCorrupt,
// *OverlapError, engine.ErrOverlap, engine.ErrStale and engine.ErrTombstone
// refuse: the old state is whole. Any other error means that the store failed.
// It is tried once: a second time, and after Close, it is ErrClosed.
func (g *Staged) Install(eng *engine.Engine, hs raft.HardState) error {
	g.mu.Lock()
	if g.mu.closed || g.mu.used {
		g.mu.Unlock()
		return ErrClosed
	}
	g.mu.installing, g.mu.used = true, true
	g.mu.Unlock()
	err := g.install(eng, hs)
	g.mu.Lock()
	g.mu.installing = false
	closed := g.mu.closed
	g.mu.Unlock()
	if closed { // meanwhile
		g.s.release(g.r, false)
	}
	if err != nil {
		return verdictOf(err, 0)
	}
	return nil
}

func (g *Staged) install(eng *engine.Engine, hs raft.HardState) error {
	in := engine.Install{Desc: g.Meta.Desc, Applied: g.Meta.Applied, Hard: hs}
	for i := range g.Meta.Files {
		f := &g.Meta.Files[i]
		if f.Kind == FileTable {
			// The store fails if a table is not there: look while it is only us.
			if info, err := g.s.fs.Stat(g.r.paths[i]); err != nil || info.Size() != f.Size {
				return corrupt("staged table %d is not what was received (%v)", i, err)
			}
			in.Data = append(in.Data, g.r.paths[i])
			continue
		}
		pairs, err := decodeKVs(g.r.lists[i])
		if err != nil {
			return err
		}
		if f.Kind == FileState {
			in.State = pairs
			continue
		}
		for _, p := range pairs {
			if !g.Meta.Desc.Contains(p.Key) {
				return corrupt("key %q is outside the span of shard %d", clip(p.Key), g.Meta.Shard)
			}
		}
		in.SmallKVs = pairs
	}
	if in.Hard.Term < g.Meta.Term {
		// The log says that this term existed: the replica has not voted in it.
		in.Hard = raft.HardState{Term: g.Meta.Term, Leased: hs.Leased}
	}
	in.Hard.Commit = max(hs.Commit, g.Meta.Index)
	return eng.InstallSnapshot(in)
}

// InstallOn is Install in the form in which a host's loop calls it: applied is
// what the replica has applied, exists whether there is one. It returns the
// state from which the replica goes on.
func (g *Staged) InstallOn(hs raft.HardState, applied raft.AppliedState, exists bool) (raft.State, error) {
	if exists && g.Meta.Index <= applied.Applied && !mutants.On("E3") {
		return raft.State{}, verdictOf(fmt.Errorf("%w: shard %d is applied through %d, the snapshot through %d", ErrStale, g.Meta.Shard, applied.Applied, g.Meta.Index), 0)
	}
	if err := g.Install(g.s.o.Engine, hs); err != nil {
		return raft.State{}, err
	}
	st, ok, err := g.s.o.Engine.Load(g.Meta.Shard)
	if err == nil && !ok {
		err = fmt.Errorf("snapshot: shard %d is not there after its installation", g.Meta.Shard)
	}
	return st, err
}

// Close gives the slot back and removes what is staged, after an installation
// that is running has ended. It is idempotent, and does not wait.
func (g *Staged) Close() {
	g.mu.Lock()
	now := !g.mu.closed && !g.mu.installing
	g.mu.closed = true
	g.mu.Unlock()
	if now {
		g.s.release(g.r, false)
	}
}
