package engine

import (
	"errors"
	"fmt"
	"math"
	"sync"
	"sync/atomic"
	"time"

	"github.com/flotillakv/flotilla/internal/mutants"
)

// SpaceState says how much room a store has left to grow.
type SpaceState uint8

// The states, from good to bad. A store that has no limit, on a file system that
// does not tell what is free, is always SpaceOK.
const (
	// SpaceOK: there is room.
	SpaceOK SpaceState = iota
	// SpaceWarning: 85 % of the space are taken. Nothing is refused.
	SpaceWarning
	// SpaceFull: 92 % are taken, or the reserve for flushes and compactions is
	// touched. The node takes no writes that grow the store.
	SpaceFull
	// SpaceCritical: 97 % are taken. The ballast is given up.
	SpaceCritical
)

// String returns the state in one word.
func (s SpaceState) String() string {
	switch s {
	case SpaceOK:
		return "ok"
	case SpaceWarning:
		return "warning"
	case SpaceFull:
		return "full"
	case SpaceCritical:
		return "critical"
	}
	return fmt.Sprintf("state %d", uint8(s))
}

// Space is what a store takes of its disk, and what is left. All sizes in bytes.
type Space struct {
	State SpaceState
	// Used is what the files of the store's directory take, as du counts it: blocks
	// that are allocated, directories and the ballast with them.
	Used int64
	// Limit is Options.SpaceLimit; zero: none.
	Limit int64
	// Free and Total are of the file system, for users without privileges; both
	// zero: not known.
	Free, Total int64
	// Ballast is the part of Used that only keeps space.
	Ballast int64
}

// Room returns how much more the store may take: what Limit and the file system
// leave, whichever is less; at least zero. math.MaxInt64: not bounded.
func (s *Space) Room() int64 {
	room := int64(math.MaxInt64)
	if s.Limit > 0 {
		room = s.Limit - s.Used
	}
	if s.Total > 0 {
		room = min(room, s.Free)
	}
	return max(room, 0)
}

// before returns how much more the store may take before it is in state.
func (s *Space) before(state SpaceState, reserve int64) int64 {
	room := int64(math.MaxInt64)
	if s.Limit > 0 {
		room = s.Limit - s.Used - spaceMark(state, s.Limit, reserve)
	}
	if s.Total > 0 {
		room = min(room, s.Free-spaceMark(state, s.Total, reserve))
	}
	return max(room, 0)
}

// spaceFactor is how many bytes of its disk a committed byte may take for a while:
// in the write-ahead log, in a table, and in a compaction of it.
const spaceFactor = 3

// SpaceGoing says that the share 1/part of what was left before SpaceFull, by the
// last look, may have been taken since: look again, or take nothing more (part 1).
func (e *Engine) SpaceGoing(part int64) bool {
	head := e.headroom.Load()
	return head > 0 && e.grown.Load() > (head-1)/(spaceFactor*part) && !mutants.On("H2h")
}

// RoomForSnapshots returns how many bytes snapshots that come in may take, by the
// last look: what is left before SpaceCritical. math.MaxInt64: not bounded.
func (e *Engine) RoomForSnapshots() int64 {
	if room := e.snapshotRoom.Load(); room > 0 {
		return room - 1
	}
	return math.MaxInt64
}

// Marks of the states, as the room that is left: a share of the capacity, but no
// more than an absolute amount, since a few GiB are enough for what a node does
// without being written to, however large the disk.
const (
	spaceWarnPercent, spaceWarnMax         = 15, 64 << 30
	spaceFullPercent, spaceFullMax         = 8, 16 << 30
	spaceCriticalPercent, spaceCriticalMax = 3, 4 << 30
)

// spaceMark returns the room below which a store of the given capacity is in
// state, or worse. reserve is what flushes and compactions that are due may take
// when nothing is written any more; it counts up to a quarter of the capacity.
func spaceMark(state SpaceState, capacity, reserve int64) int64 {
	full := max(min(capacity/100*spaceFullPercent, spaceFullMax), min(reserve, capacity/4))
	switch state {
	case SpaceWarning:
		return max(min(capacity/100*spaceWarnPercent, spaceWarnMax), full+full/4)
	case SpaceFull:
		return full
	case SpaceCritical:
		return min(max(min(capacity/100*spaceCriticalPercent, spaceCriticalMax), 2*MinFreeBytes), full/2)
	}
	return math.MaxInt64
}

// nextSpace is the rule: the state that follows was, for a store that takes s. A
// state is entered below its mark, and left above six fifths of it, so that a
// store at one level does not go back and forth.
func nextSpace(was SpaceState, s *Space, reserve int64) SpaceState {
	worst := SpaceOK
	look := func(capacity, room int64) {
		for state := SpaceCritical; state > worst; state-- {
			mark := spaceMark(state, capacity, reserve)
			if state <= was && !mutants.On("H2d") {
				mark += mark / 5
			}
			if room < mark {
				worst = state
			}
		}
	}
	if s.Limit > 0 {
		look(s.Limit, s.Limit-s.Used)
	}
	if s.Total > 0 {
		look(s.Total, s.Free)
	}
	return worst
}

// space watches the disk. Its lock is held across looking at all files, which may last
// as long as the disk stands still; what was found last is read without it.
type space struct {
	sync.Mutex
	now       atomic.Pointer[Space]
	ballastAt time.Time // when a ballast was tried last
}

// ballastName is the file that keeps space. It may be removed at any time.
const ballastName = "BALLAST"

// ballastPause is the least time between two tries to make the ballast.
const ballastPause = time.Minute

// LookAtSpace looks at all files of the store and at the file system, and returns
// what they take; it also gives up the ballast in SpaceCritical and makes it anew
// in SpaceOK. took is how long that lasted: callers who look again and again leave
// pauses in proportion. An error: the file system cannot be asked; the state is
// that of the last look then.
func (e *Engine) LookAtSpace() (s Space, took time.Duration, err error) {
	if err := e.usable(); err != nil {
		return Space{}, 0, err
	}
	e.space.Lock()
	defer e.space.Unlock()
	began, grown := time.Now(), e.grown.Load()
	was := e.Space()
	s, err = e.measureSpace()
	if err != nil {
		return was, time.Since(began), fmt.Errorf("engine: look at the space on the disk: %w", err)
	}
	s.State = nextSpace(was.State, &s, e.spaceReserve())
	if e.tendBallast(&s) {
		if again, err := e.measureSpace(); err == nil {
			again.State = s.State // what that changes counts from the next look on
			s = again
		}
	}
	found := s
	e.space.now.Store(&found)
	e.headroom.Store(min(s.before(SpaceFull, e.spaceReserve()), math.MaxInt64-1) + 1)
	e.snapshotRoom.Store(min(s.before(SpaceCritical, e.spaceReserve()), math.MaxInt64-1) + 1)
	e.grown.Add(-grown) // what was committed during the look may not have been seen
	e.spaceRoom.Store(min(s.Room(), math.MaxInt64-1) + 1)
	return s, time.Since(began), nil
}

// Space returns what LookAtSpace found last. It never waits for the disk.
func (e *Engine) Space() (s Space) {
	if found := e.space.now.Load(); found != nil {
		s = *found
	}
	return s
}

// spaceReserve is what the store may still write when nothing new comes in:
// memtables and what is applied in memory go to tables, and a compaction of their
// size has its inputs beside its outputs.
func (e *Engine) spaceReserve() int64 {
	return 2*e.opts.MemTableBytes + 2*e.opts.DeferBytes + MinFreeBytes
}

func (e *Engine) measureSpace() (Space, error) {
	s := Space{Limit: e.opts.SpaceLimit}
	used, err := diskUse(e.disk, e.dir)
	if err != nil {
		return s, err
	}
	s.Used = used
	if u, err := e.disk.GetDiskUsage(e.dir); err == nil && u.TotalBytes > 0 && u.TotalBytes <= math.MaxInt64 {
		s.Free, s.Total = int64(min(u.AvailBytes, u.TotalBytes)), int64(u.TotalBytes)
	}
	if info, err := e.disk.Stat(e.ballastPath()); err == nil {
		s.Ballast = allocated(info)
	}
	return s, nil
}

// diskUse counts what a file, or a directory with all that is in it, takes. Files
// that vanish meanwhile do not count.
func diskUse(fs FS, dir string) (int64, error) {
	var seen map[uint64]bool // files with several names
	var walk func(path string) (int64, error)
	walk = func(path string) (int64, error) {
		info, err := fs.Stat(path)
		if err != nil {
			if isNotExist(err) {
				return 0, nil
			}
			return 0, err
		}
		n := allocated(info)
		if !info.IsDir() {
			if id := inode(info); id != 0 && links(info) > 1 {
				if seen[id] {
					return 0, nil
				}
				if seen == nil {
					seen = map[uint64]bool{}
				}
				seen[id] = true
			}
			return n, nil
		}
		names, err := fs.List(path)
		if err != nil && !isNotExist(err) {
			return n, err
		}
		for _, name := range names {
			below, err := walk(fs.PathJoin(path, name))
			if err != nil {
				return n, err
			}
			n += below
		}
		return n, nil
	}
	return walk(dir)
}

func (e *Engine) ballastPath() string { return e.disk.PathJoin(e.dir, ballastName) }

// ballastSize returns how large the ballast is to be: Options.BallastBytes, but no
// more than a hundredth of what the store may take.
func (e *Engine) ballastSize(s *Space) int64 {
	capacity := s.Total
	if s.Limit > 0 && (capacity == 0 || s.Limit < capacity) {
		capacity = s.Limit
	}
	return min(e.opts.BallastBytes, capacity/100)
}

// tendBallast gives up or makes the ballast, as s.State asks for, and reports
// whether it changed anything.
func (e *Engine) tendBallast(s *Space) bool {
	if s.Ballast > 0 {
		if s.State != SpaceCritical || mutants.On("H2e") {
			return false
		}
		if err := e.dropBallast(e.disk); err != nil {
			e.log.Error("the ballast cannot be removed", "err", err)
			return false
		}
		e.log.Warn("the disk is nearly full: the ballast was given up", "bytes", s.Ballast)
		return true
	}
	size := e.ballastSize(s)
	after := *s // with the ballast, the state must be what it was
	after.Used, after.Free = after.Used+size, after.Free-size
	now := time.Now()
	if size <= 0 || s.State != SpaceOK || nextSpace(SpaceWarning, &after, e.spaceReserve()) != SpaceOK ||
		!e.space.ballastAt.IsZero() && now.Sub(e.space.ballastAt) < ballastPause {
		return false
	}
	e.space.ballastAt = now
	if err := e.makeBallast(size); err != nil {
		_ = e.dropBallast(e.disk)
		e.log.Warn("no ballast could be made", "bytes", size, "err", err)
		return false
	}
	e.log.Info("ballast made: space for when the disk is full", "bytes", size, "file", e.ballastPath())
	return true
}

// makeBallast makes the file with all its blocks.
func (e *Engine) makeBallast(size int64) error {
	f, err := e.disk.Create(e.ballastPath(), "unspecified")
	if err != nil {
		return err
	}
	// Most file systems can give blocks to a file without writing them.
	err = f.Preallocate(0, size)
	if err == nil {
		_, err = f.WriteAt([]byte{1}, size-1)
	}
	if info, serr := f.Stat(); err != nil || serr != nil || allocated(info) < size || !blocksKnown(info) {
		err = e.fillBallast(f, size)
	}
	return errors.Join(err, f.Sync(), f.Close())
}

// fillBallast writes the file, with what does not get smaller by compression.
func (e *Engine) fillBallast(f File, size int64) error {
	buf := make([]byte, 256<<10)
	x := uint64(size) | 1
	for off := int64(0); off < size; off += int64(len(buf)) {
		for i := range buf {
			x ^= x << 13
			x ^= x >> 7
			x ^= x << 17
			buf[i] = byte(x)
		}
		if _, err := f.WriteAt(buf[:min(int64(len(buf)), size-off)], off); err != nil {
			return err
		}
		if !e.working() {
			return ErrClosed
		}
	}
	return nil
}

func (e *Engine) dropBallast(fs FS) error {
	err := fs.Remove(fs.PathJoin(e.dir, ballastName))
	if isNotExist(err) {
		return nil
	}
	return errors.Join(err, syncDir(fs, e.dir))
}

// checkFree refuses a disk without free space at path. If giving up the ballast
// makes the difference, it does that (give), or lets it be done later.
func (e *Engine) checkFree(fs FS, path string, give bool) error {
	u, err := fs.GetDiskUsage(path)
	if err != nil || u.AvailBytes >= MinFreeBytes { // not every file system knows
		return nil
	}
	ballast := fs.PathJoin(e.dir, ballastName)
	if info, serr := fs.Stat(ballast); serr == nil && !mutants.On("H2f") {
		kept := uint64(allocated(info))
		if !give && u.AvailBytes+kept >= MinFreeBytes {
			return nil
		}
		if give && e.dropBallast(fs) == nil {
			e.log.Warn("the disk is full: the ballast was given up, so that the store can open", "bytes", kept)
			if u, err = fs.GetDiskUsage(path); err != nil || u.AvailBytes >= MinFreeBytes {
				return nil
			}
		}
	}
	return e.openErr(NoSpace, spaceHint, fmt.Errorf("%d MiB are free on its disk, %d MiB are needed", u.AvailBytes>>20, MinFreeBytes>>20))
}
