package snapshot

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math"
	"slices"
	"sync"
	"sync/atomic"

	"github.com/flotillakv/flotilla/engine"
	"github.com/flotillakv/flotilla/internal/mutants"
	"github.com/flotillakv/flotilla/multiraft/raft"
)

// reception is a snapshot on its way in. Files come in order, and their chunks. One
// Handle at a time owns it (busy).
type reception struct {
	meta  Meta // files that are there
	from  raft.NodeID
	since raft.Time // when a message came last
	busy  bool
	// complete: all came, the snapshot waits for its installation.
	complete bool
	// gone: the slot was given to another snapshot, because the stream stood
	// still for StallFor.
	gone bool
	t    atomic.Pointer[transfer]

	// bytes is how many bytes of tables came; promised how many of room are kept for it.
	bytes, promised atomic.Int64

	dir   string   // empty: none yet
	names int      // of tables in dir, so far
	paths []string // per file; empty: a list
	lists [][]byte // per file; nil: a table

	// The file that comes.
	rec           *File // nil: none
	chunk         int   // the next one
	path          string
	file          engine.File // nil: a list, or not open
	list          []byte
	offered, keep []kept       // chunks that may be and are taken from old, ascending
	sync          <-chan error // of the table before; nil: it is done

	old    *leftovers // of other snapshots of the shard; nil: none
	rotten *leftover  // see e2
}

// toCome returns how many bytes of tables are still to be written, as far as is known.
// Any goroutine may call it.
func (r *reception) toCome() int64 { return max(0, r.promised.Load()-r.bytes.Load()) }

// closeFile closes what is open; what was written stays.
func (r *reception) closeFile() {
	if r.file != nil {
		_ = r.file.Close()
		r.file = nil
	}
	if r.sync != nil {
		<-r.sync
		r.sync = nil
	}
}

// headName is the name of the head of a snapshot in its staging directory.
const headName = "HEAD"

// Handle receives a snapshot: header is its manifest without files, next returns one
// message after the other and io.EOF at the end, reply sends one to the sender. On
// success everything is staged, checked and synced, and the caller installs it on the
// loop of the shard, then closes it. On failure nothing of the present state was
// touched; the error's text is to be returned to the sender through the transport as
// it is (the sender reads a verdict from it). Errors: ErrCorrupt, ErrStale,
// ErrNotMember, *OverlapError, ErrBusy and ErrNoSpace refuse; what came is kept for
// RetainFor after ErrTruncated or a broken stream, and the same snapshot goes on
// behind it, or another one of the shard takes from it what is equal.
func (s *Store) Handle(from raft.NodeID, header []byte, next func() ([]byte, error), reply func([]byte) error) (*Staged, error) {
	r, err := s.admit(from, header)
	if err != nil {
		return nil, verdictOf(err, 0)
	}
	t := s.begin(&r.meta, from, true)
	t.skip(r.meta.Files)
	r.t.Store(t)
	err = s.receive(r, next, reply)
	t.end(err)
	if err == nil {
		return &Staged{Meta: r.meta, s: s, r: r}, nil
	}
	s.release(r, errors.Is(err, ErrTruncated)) // which drops it all the same if it gave way
	return nil, verdictOf(err, 0)
}

// admit decides on the manifest alone, before any data came.
func (s *Store) admit(from raft.NodeID, header []byte) (*reception, error) {
	m, err := DecodeMeta(header)
	if err != nil {
		return nil, err
	}
	if len(m.Files) > 0 {
		return nil, corrupt("the header names %d files", len(m.Files))
	}
	if err := s.wanted(&m); err != nil {
		return nil, err
	}
	now := s.o.Clock.Now()
	s.sweep(false)
	r, old, err := s.enlist(&m, from, now, s.room())
	if err == nil && old != nil { // another snapshot: what came of that is of use
		r.adopt(s, old)
	}
	return r, err
}

// room returns how much what comes in may take.
func (s *Store) room() int64 {
	if s.o.Room == nil {
		return math.MaxInt64
	}
	return s.o.Room()
}

// enlist gives the snapshot a slot: that of its interrupted reception, or a new
// one; and the room for what is still to come of it, which nobody else gets while it
// has the slot. old is an interrupted reception of another snapshot of the shard,
// which is on no list any more.
func (s *Store) enlist(m *Meta, from raft.NodeID, now raft.Time, room int64) (r, old *reception, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.mu.closed {
		return nil, nil, ErrClosed
	}
	busy := 0
	for _, o := range slices.Clone(s.mu.in) {
		if o.busy && !o.complete && now.Sub(o.since) >= StallFor && o.meta.ID != m.ID {
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
	need := &reception{meta: *m, from: from}
	need.promised.Store(m.Estimate)
	if old != nil && old.meta.ID == m.ID && old.from == from {
		need, old = old, nil
	}
	if err := s.fitsLocked(need, need.toCome(), room); err != nil {
		return nil, nil, err
	}
	need.busy, need.since = true, now
	if old != nil {
		s.forgetLocked(old)
	}
	if !slices.Contains(s.mu.in, need) {
		s.mu.in = append(s.mu.in, need)
	}
	return need, old, nil
}

// fitsLocked refuses a reception of which so much is to come for lack of room.
func (s *Store) fitsLocked(r *reception, left, room int64) error {
	promised := int64(0)
	for _, o := range s.mu.in {
		if o != r && (o.busy || o.meta.Shard != r.meta.Shard) {
			promised += o.toCome()
		}
	}
	for _, k := range s.mu.keeping {
		promised += k.bytes
	}
	if left > room-promised && !mutants.On("H2i") {
		return fmt.Errorf("%w: %d bytes of shard %d are to come, there is room for %d", ErrNoSpace, left, r.meta.Shard, max(0, room-promised))
	}
	return nil
}

// expect keeps room for a file that was not foreseen. What came already counts again,
// since it is not known whether the last look at the disk saw it.
func (s *Store) expect(r *reception, f *File) error {
	if !f.Kind.staged() || r.bytes.Load()+f.Size <= r.promised.Load() {
		return nil
	}
	room := s.room()
	s.mu.Lock()
	defer s.mu.Unlock()
	if err := s.fitsLocked(r, r.bytes.Load()+f.Size, room); err != nil {
		return err
	}
	r.promised.Store(r.bytes.Load() + f.Size)
	return nil
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
		if err := CheckOverlap(&m.Desc, s.o.Live(&m.Desc)); err != nil {
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
	q, err := s.o.Engine.Quarantined(m.Shard)
	if err != nil {
		return err
	}
	// A quarantined replica needs its state anew, be it as of the same entry.
	if m.Index < as.Applied || m.Index == as.Applied && q.Why == 0 {
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

// receive takes messages until all is there.
func (s *Store) receive(r *reception, next func() ([]byte, error), reply func([]byte) error) error {
	early := func(err error) error {
		if errors.Is(err, io.EOF) {
			return fmt.Errorf("%w: %d files came", ErrTruncated, len(r.meta.Files))
		}
		return fmt.Errorf("%w: %d files came: %w", ErrTruncated, len(r.meta.Files), err)
	}
	y := ready{asks: r.rec != nil || r.old != nil, files: len(r.meta.Files)}
	if err := reply(y.encode(nil)); err != nil {
		return early(err)
	}
	work := duty{s: s}
	for {
		b, err := next()
		if err != nil {
			return early(err)
		}
		work.start()
		kind, body, err := open(b)
		if err != nil {
			return err
		}
		switch kind {
		case msgFile:
			err = s.beginFile(r, body, y.asks, reply)
		case msgKeep:
			err = s.keepChunks(r, b)
		case msgChunk:
			if err = s.takeChunk(r, body); err == nil {
				err = work.stop(context.Background(), restMost)
			}
		case msgEnd:
			var e end
			if e, err = decodeEnd(b); err == nil {
				err = s.complete(r, e)
			}
			if err != nil {
				return err
			}
			// Drain what a confused sender may still send, within a bound, so that the
			// stream ends in order.
			for range 4 {
				if _, err := next(); err != nil {
					break
				}
			}
			return nil
		default:
			err = corrupt("message of kind %d", kind)
		}
		if err != nil {
			return err
		}
		if !s.touch(r) {
			return fmt.Errorf("%w: the stream stood still for %v and gave way to another", ErrBusy, StallFor)
		}
	}
}

// beginFile takes the record of the next file.
func (s *Store) beginFile(r *reception, body reader, asks bool, reply func([]byte) error) error {
	n, f, err := decodeFile(body)
	if err != nil {
		return err
	}
	if n != len(r.meta.Files) || r.rec != nil && r.chunk == len(r.rec.Sums) {
		return corrupt("the record of file %d came in place of %d", n, len(r.meta.Files))
	}
	with := r.meta
	with.Files = append(slices.Clip(with.Files), *f)
	if err := with.check(); err != nil {
		return err
	}
	if r.rec != nil && !r.rec.equal(f) { // made anew; not by this release
		if err := s.setAside(r); err != nil {
			return err
		}
	}
	if err := s.expect(r, f); err != nil {
		return err
	}
	if r.rec == nil {
		r.rec, r.chunk, r.path, r.list = f, 0, "", nil
	}
	r.offered, r.keep = nil, nil
	if !asks {
		return nil
	}
	o := offer{file: n, have: r.chunk}
	if r.rotten = r.old.e2(n, f); r.rotten != nil {
		o.have = len(f.Sums)
	} else if f.Kind.staged() && r.old != nil {
		if r.offered, err = r.old.find(s, f, r.chunk); err != nil {
			return err
		}
		for _, k := range r.offered {
			o.may = append(o.may, offered{k.chunk, k.sum})
		}
	}
	if err := reply(o.encode(nil)); err != nil {
		return fmt.Errorf("%w: %w", ErrTruncated, err)
	}
	return nil
}

// keepChunks takes the sender's word about the offer.
func (s *Store) keepChunks(r *reception, b []byte) error {
	n, chunks, err := decodeKeep(b)
	if err != nil {
		return err
	}
	if r.rec == nil || n != len(r.meta.Files) {
		return corrupt("chunks of file %d are the same", n)
	}
	offered := r.offered
	r.offered, r.keep = nil, nil
	for _, c := range chunks {
		for len(offered) > 0 && offered[0].chunk < c {
			offered = offered[1:]
		}
		if len(offered) == 0 || offered[0].chunk != c {
			return corrupt("chunk %d of file %d was not offered", c, n)
		}
		r.keep = append(r.keep, offered[0])
		offered = offered[1:]
	}
	for i := range r.chunk {
		r.t.Load().spare(r.rec.chunkLen(i))
	}
	if r.rotten != nil {
		return s.useWhole(r, r.rotten)
	}
	if whole := r.whole(); whole != nil {
		return s.useWhole(r, whole)
	}
	return s.fillKept(r)
}

// whole returns the file that all of the chunks come from, at the same places; nil:
// there is none.
func (r *reception) whole() *leftover {
	if r.chunk > 0 || len(r.keep) != len(r.rec.Sums) {
		return nil
	}
	l := r.keep[0].from
	for i, k := range r.keep {
		if k.from != l || k.at != i {
			return nil
		}
	}
	if l.size != r.rec.Size || l.used {
		return nil
	}
	return l
}

// useWhole makes a file of before, which is equal, one of this snapshot.
func (s *Store) useWhole(r *reception, l *leftover) error {
	f, err := s.fs.OpenReadWrite(l.path, "unspecified")
	if err != nil {
		return fmt.Errorf("snapshot: open staged table: %w", err)
	}
	for i := range r.rec.Sums {
		r.t.Load().spare(r.rec.chunkLen(i))
	}
	l.used = true
	r.file, r.path, r.chunk, r.keep = f, l.path, len(r.rec.Sums), nil
	r.bytes.Add(r.rec.Size)
	return s.endFile(r)
}

// fillKept copies the chunks that are kept, as far as they are next.
func (s *Store) fillKept(r *reception) error {
	for r.rec != nil && len(r.keep) > 0 && r.keep[0].chunk == r.chunk {
		b, err := r.keep[0].read(s, r.rec.chunkLen(r.chunk))
		if err != nil {
			return err
		}
		if sum(b) != r.rec.Sums[r.chunk] {
			return corrupt("staged chunk %d of %s changed", r.keep[0].at, r.keep[0].from.path)
		}
		r.keep = r.keep[1:]
		r.t.Load().spare(len(b))
		if err := s.put(r, b); err != nil {
			return err
		}
	}
	return nil
}

// takeChunk takes the next chunk of the file.
func (s *Store) takeChunk(r *reception, body reader) error {
	if r.rec == nil {
		return corrupt("a chunk came before the record of its file")
	}
	payload, err := r.rec.decodeChunk(body, len(r.meta.Files), r.chunk)
	if err != nil {
		return err
	}
	r.t.Load().add(len(payload))
	if err := s.put(r, payload); err != nil {
		return err
	}
	return s.fillKept(r)
}

// put writes the next chunk of the file.
func (s *Store) put(r *reception, payload []byte) error {
	if !r.rec.Kind.staged() {
		r.list = append(r.list, payload...)
	} else {
		if r.file == nil {
			if err := s.openFile(r); err != nil {
				return err
			}
		}
		n := len(payload)
		// Write may scribble on what it is given.
		if _, err := r.file.Write(payload); err != nil {
			return fmt.Errorf("snapshot: write staged table: %w", err)
		}
		r.bytes.Add(int64(n))
	}
	if r.chunk++; r.chunk < len(r.rec.Sums) {
		return nil
	}
	return s.endFile(r)
}

// openFile makes the table that comes, and the directory before the first one.
func (s *Store) openFile(r *reception) error {
	if err := s.stage(r); err != nil {
		return err
	}
	if r.path != "" && r.chunk > 0 { // closed with its store
		return corrupt("staged table %s is closed", r.path)
	}
	r.path = s.fs.PathJoin(r.dir, tableName(r.names))
	r.names++
	file, err := s.fs.Create(r.path, "unspecified")
	if err != nil {
		return fmt.Errorf("snapshot: create staged table: %w", err)
	}
	r.file = engine.Smooth(file)
	return nil
}

// endFile ends a file all of whose chunks are there.
func (s *Store) endFile(r *reception) error {
	r.meta.Files = append(r.meta.Files, *r.rec)
	r.paths, r.lists = append(r.paths, r.path), append(r.lists, r.list)
	file := r.file
	r.rec, r.chunk, r.path, r.file, r.list = nil, 0, "", nil, nil
	if file == nil {
		return nil
	}
	if mutants.On("E5b") {
		return file.Close()
	}
	finish := func() error {
		err := file.Sync()
		if err != nil {
			err = fmt.Errorf("snapshot: sync staged table: %w", err)
		}
		return errors.Join(err, file.Close())
	}
	if s.o.Inline {
		return finish()
	}
	// The next table comes while this one is synced.
	if err := r.synced(); err != nil {
		return errors.Join(err, file.Close())
	}
	r.sync = aside(finish)
	return nil
}

// synced waits for the sync of the table before.
func (r *reception) synced() error {
	if r.sync == nil {
		return nil
	}
	err := <-r.sync
	r.sync = nil
	return err
}

// setAside makes what came of the present file a leftover.
func (s *Store) setAside(r *reception) error {
	if r.file != nil {
		if err := r.file.Close(); err != nil {
			return fmt.Errorf("snapshot: close staged table: %w", err)
		}
	}
	if r.old == nil {
		r.old = new(leftovers)
	}
	r.old.add(r.path, r.rec, r.chunk)
	r.bytes.Add(-int64(r.chunk) * ChunkBytes)
	r.rec, r.chunk, r.path, r.file, r.list = nil, 0, "", nil, nil
	return nil
}

// complete ends the reception: all that the sender names is there.
func (s *Store) complete(r *reception, e end) error {
	if r.rec != nil || e != r.meta.total() {
		return corrupt("the end says %d files with %d bytes, %d with %d came", e.files, e.bytes, len(r.meta.Files), r.meta.Bytes())
	}
	if err := r.meta.check(); err != nil {
		return err
	}
	if err := r.synced(); err != nil {
		return err
	}
	if r.dir != "" {
		if err := s.syncDir(r.dir); err != nil {
			return err
		}
	}
	r.t.Load().total.Store(r.meta.Bytes())
	s.mu.Lock()
	r.complete = true
	gone := r.gone
	s.mu.Unlock()
	if gone {
		return ErrBusy
	}
	return nil
}

func tableName(file int) string { return fmt.Sprintf("%04d.sst", file) }

// Staged is a snapshot that is complete on this node's disk (or in memory, if
// small) and not installed. It keeps its slot until Close.
type Staged struct {
	Meta Meta

	s       *Store
	r       *reception
	keepLog bool
	loaded  atomic.Bool // what is outside of the store

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
	in := engine.Install{Desc: g.Meta.Desc, Applied: g.Meta.Applied, Hard: hs, KeepLog: g.keepLog}
	for i := range g.Meta.Files {
		f := &g.Meta.Files[i]
		if f.Kind == FileExternal { // it is in the machine
			if !g.loaded.Load() {
				return fmt.Errorf("snapshot: the state of the machine of shard %d was not loaded", g.Meta.Shard)
			}
			continue
		}
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
// what the replica has applied, exists whether there is one, keepLog whether the state
// alone is replaced. It returns the state from which the replica goes on.
func (g *Staged) InstallOn(hs raft.HardState, applied raft.AppliedState, exists, keepLog bool) (raft.State, error) {
	if exists && !keepLog && g.Meta.Index <= applied.Applied && !mutants.On("E3") {
		return raft.State{}, verdictOf(fmt.Errorf("%w: shard %d is applied through %d, the snapshot through %d", ErrStale, g.Meta.Shard, applied.Applied, g.Meta.Index), 0)
	}
	g.keepLog = keepLog
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
