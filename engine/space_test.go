package engine

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"

	"github.com/flotillakv/flotilla/internal/sim/simfs"
)

// Shows at which room each state begins, by the limit and by the file system, and
// that it ends only a fifth above.
func TestSpaceRule(t *testing.T) {
	const mib, gib = 1 << 20, 1 << 30
	for _, c := range []struct {
		was         SpaceState
		s           Space
		reserve     int64
		want        SpaceState
		description string
	}{
		{SpaceOK, Space{}, mib, SpaceOK, "nothing is known"},
		{SpaceOK, Space{Limit: 100 * gib, Used: 84 * gib}, mib, SpaceOK, "84 % of the limit"},
		{SpaceOK, Space{Limit: 100 * gib, Used: 86 * gib}, mib, SpaceWarning, "86 %"},
		{SpaceWarning, Space{Limit: 100 * gib, Used: 84 * gib}, mib, SpaceWarning, "84 % on the way back"},
		{SpaceWarning, Space{Limit: 100 * gib, Used: 81 * gib}, mib, SpaceOK, "81 % on the way back"},
		{SpaceOK, Space{Limit: 100 * gib, Used: 93 * gib}, mib, SpaceFull, "93 %"},
		{SpaceFull, Space{Limit: 100 * gib, Used: 91 * gib}, mib, SpaceFull, "91 % on the way back"},
		{SpaceFull, Space{Limit: 100 * gib, Used: 90 * gib}, mib, SpaceWarning, "90 % on the way back"},
		{SpaceOK, Space{Limit: 100 * gib, Used: 98 * gib}, mib, SpaceCritical, "98 %"},
		{SpaceOK, Space{Limit: 100 * gib, Used: 200 * gib}, mib, SpaceCritical, "beyond the limit"},
		{SpaceOK, Space{Limit: 1000 * gib, Used: 1 * gib, Total: 100 * gib, Free: 7 * gib}, mib, SpaceFull, "others filled the file system"},
		{SpaceOK, Space{Total: 100_000 * gib, Free: 70 * gib}, mib, SpaceOK, "a large disk, 70 GiB free"},
		{SpaceOK, Space{Total: 100_000 * gib, Free: 15 * gib}, mib, SpaceFull, "a large disk, 15 GiB free"},
		{SpaceOK, Space{Limit: gib, Used: gib * 80 / 100}, 200 * mib, SpaceWarning, "a reserve of 200 MiB: 20 % left"},
		{SpaceOK, Space{Limit: gib, Used: gib * 82 / 100}, 200 * mib, SpaceFull, "a reserve of 200 MiB: 18 % left"},
		{SpaceOK, Space{Limit: 400 * mib, Used: 290 * mib}, gib, SpaceWarning, "the reserve counts a quarter at most"},
	} {
		if got := nextSpace(c.was, &c.s, c.reserve); got != c.want {
			t.Errorf("%s: %v after %v, want %v", c.description, got, c.was, c.want)
		}
	}
}

// Shows, for random sizes: at one level the state comes to rest in one step, less
// room never gives a better state, and noise of a hundredth around any level makes
// the state change at most once and not back.
func TestSpaceRuleRests(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 14))
	for range 50_000 {
		capacity := int64(64<<20) << r.IntN(20)
		reserve := r.Int64N(capacity/2) + 1
		s := Space{Limit: capacity}
		if r.IntN(2) == 0 {
			s = Space{Total: capacity}
		}
		set := func(room int64) *Space {
			if s.Limit > 0 {
				s.Used = capacity - room
			} else {
				s.Free = room
			}
			return &s
		}
		room := r.Int64N(capacity / 3)
		was := SpaceState(r.IntN(4))
		state := nextSpace(was, set(room), reserve)
		if again := nextSpace(state, set(room), reserve); again != state {
			t.Fatalf("capacity %d, reserve %d, room %d: %v, then %v", capacity, reserve, room, state, again)
		}
		if less := nextSpace(was, set(room-room/10), reserve); less < state {
			t.Fatalf("capacity %d, reserve %d: %v with room %d, %v with a tenth less", capacity, reserve, state, room, less)
		}
		changes := 0
		for range 20 {
			next := nextSpace(state, set(room+r.Int64N(room/50+1)-room/100), reserve)
			if next != state {
				changes++
			}
			state = next
		}
		if changes > 1 {
			t.Fatalf("capacity %d, reserve %d, room around %d: the state changed %d times", capacity, reserve, room, changes)
		}
	}
}

// tellingFS is a file system in memory that says how much of its space is free.
type tellingFS struct {
	*simfs.FS
	total, others int64 // others: what is taken by somebody else
}

// leave has others take all but free bytes.
func (f *tellingFS) leave(free int64) { f.others = f.total - f.Used() - free }

func (f *tellingFS) GetDiskUsage(string) (vfs.DiskUsage, error) {
	used := min(f.Used()+f.others, f.total)
	return vfs.DiskUsage{AvailBytes: uint64(f.total - used), TotalBytes: uint64(f.total), UsedBytes: uint64(used)}, nil
}

// Shows the life of a ballast: made while there is room, counted, given up at the
// critical state, not made again while space is short, made again afterwards. And a
// store whose disk is full opens if the ballast makes the difference, again and
// again, and says what it needs when it does not.
func TestBallast(t *testing.T) {
	fs := &tellingFS{FS: simfs.New(), total: 8 << 30}
	o := Options{Dir: "/data/n1", FS: fs, Create: true, CacheBytes: 1 << 20, BallastBytes: 1 << 20, OnFatal: func(err error) { t.Error(err) }}
	e, err := Open(o)
	must(t, err)
	look := func() Space {
		t.Helper()
		s, _, err := e.LookAtSpace()
		must(t, err)
		return s
	}
	has := func() bool { _, err := fs.Stat("/data/n1/" + ballastName); return err == nil }
	if s := look(); s.State != SpaceOK || s.Ballast != 1<<20 || !has() || s.Used != used(t, fs, o.Dir) {
		t.Fatalf("an empty store: %+v", s)
	}
	fs.leave(200 << 20)
	s := look()
	if s.State != SpaceCritical || has() || s.Ballast != 0 {
		t.Fatalf("200 MiB of 8 GiB are left: %+v, ballast there: %t", s, has())
	}
	if s = look(); has() {
		t.Fatalf("made again without space: %+v", s)
	}
	fs.leave(7 << 30)
	if s = look(); s.State != SpaceOK || has() {
		t.Fatalf("space is back: %+v; a ballast is tried at most once a minute", s)
	}
	e.space.ballastAt = e.space.ballastAt.Add(-ballastPause)
	if s = look(); !has() || s.Ballast != 1<<20 {
		t.Fatalf("space is back: %+v", s)
	}
	must(t, e.Close())

	fs.leave(MinFreeBytes - 512<<10) // half a MiB short of what a store needs
	e, err = Open(o)
	must(t, err)
	if has() {
		t.Fatal("the store is open, and its ballast is there still")
	}
	must(t, e.Close())
	for range 2 {
		fs.leave(MinFreeBytes - 512<<10)
		var oe *OpenError
		if _, err = Open(o); !errors.As(err, &oe) || oe.Reason != NoSpace || !strings.Contains(oe.Hint, "free") {
			t.Fatalf("a full disk without a ballast: %v", err)
		}
	}
}

// hangingFS does not answer what is free until it is let go.
type hangingFS struct {
	FS
	asked, answer chan struct{}
}

func (f *hangingFS) GetDiskUsage(path string) (vfs.DiskUsage, error) {
	if f.asked != nil {
		f.asked <- struct{}{}
		<-f.answer
	}
	return f.FS.GetDiskUsage(path)
}

// While a disk that stands still is looked at, what was found last can be read: who
// wants to tell that it stands still asks for it.
func TestSpaceWhileLooking(t *testing.T) {
	fs := &hangingFS{FS: &tellingFS{FS: simfs.New(), total: 8 << 30}}
	e, err := Open(Options{Dir: "/data/n1", FS: fs, Create: true, CacheBytes: 1 << 20, OnFatal: func(err error) { t.Error(err) }})
	must(t, err)
	first, _, err := e.LookAtSpace()
	must(t, err)
	fs.asked, fs.answer = make(chan struct{}), make(chan struct{})
	looked := make(chan error)
	go func() {
		_, _, err := e.LookAtSpace()
		looked <- err
	}()
	<-fs.asked
	read := make(chan Space, 1)
	go func() { read <- e.Space() }()
	select {
	case s := <-read:
		if s != first {
			t.Errorf("%+v, not %+v", s, first)
		}
	case <-time.After(10 * time.Second):
		t.Error("it waits for the disk")
	}
	close(fs.answer)
	must(t, <-looked)
	fs.asked = nil
	must(t, e.Close())
}

// Shows that what a store counts is what du counts, with ballast, that the ballast
// has all its blocks, and that a store with a ballast opens again.
func TestSpaceIsWhatDuCounts(t *testing.T) {
	du, err := exec.LookPath("du")
	if err != nil {
		t.Fatal("du is needed: ", err)
	}
	dir := filepath.Join(t.TempDir(), "n1")
	o := Options{Dir: dir, Create: true, CacheBytes: 1 << 20, BallastBytes: 3 << 20, OnFatal: func(err error) { t.Error(err) }}
	for round := range 2 {
		e, err := Open(o)
		must(t, err)
		if round == 0 {
			createGroup(t, e, 1)
		}
		for i := range 200 {
			b := e.NewBatch()
			b.Set(1, fmt.Appendf(nil, "key%05d", i), make([]byte, 10_000))
			must(t, b.Commit(true))
			must(t, b.Wait())
			b.Close()
		}
		if round == 1 {
			must(t, e.db.Flush())
			must(t, e.db.Compact(t.Context(), []byte{0}, []byte{255}, false))
		}
		e.LookAtSpace()
		var out []byte
		var s Space
		for range 100 { // files come and go behind the scenes
			before, _, err := e.LookAtSpace()
			must(t, err)
			out, err = exec.Command(du, "-s", "--block-size=1", dir).Output()
			must(t, err)
			if s, _, err = e.LookAtSpace(); err == nil && s.Used == before.Used {
				break
			}
		}
		want, err := strconv.ParseInt(strings.Fields(string(out))[0], 10, 64)
		must(t, err)
		if s.Used != want || s.Ballast < 3<<20 || s.Total == 0 {
			t.Errorf("counted %d, du says %d: %+v", s.Used, want, s)
		}
		must(t, e.Close())
	}
}

// TestSpaceGoing: what is committed after a look at the space counts, until the next.
func TestSpaceGoing(t *testing.T) {
	fs := &tellingFS{FS: simfs.New(), total: 8 << 30}
	e, err := Open(Options{Dir: "/data/n1", FS: fs, Create: true, CacheBytes: 1 << 20, OnFatal: func(err error) { t.Error(err) }})
	must(t, err)
	defer e.Close()
	createGroup(t, e, 1)
	if e.SpaceGoing(1) || e.RoomForSnapshots() < 1<<62 {
		t.Fatal("bounds before the first look")
	}
	mark := spaceMark(SpaceFull, fs.total, e.spaceReserve())
	fs.leave(mark + 9<<20) // 3 MiB may be committed
	look := func() {
		t.Helper()
		s, _, err := e.LookAtSpace()
		must(t, err)
		if s.State != SpaceWarning {
			t.Fatalf("%+v", s)
		}
	}
	look()
	if room, want := e.RoomForSnapshots(), mark+9<<20-spaceMark(SpaceCritical, fs.total, e.spaceReserve()); room != want {
		t.Errorf("room for snapshots: %d, want %d", room, want)
	}
	write := func(n int) {
		b := e.NewBatch()
		defer b.Close()
		b.Set(1, []byte("key"), make([]byte, n))
		must(t, b.Commit(true))
		must(t, b.Wait())
	}
	write(1 << 20)
	if e.SpaceGoing(1) || !e.SpaceGoing(4) {
		t.Errorf("1 of 3 MiB: all %t, a quarter %t", e.SpaceGoing(1), e.SpaceGoing(4))
	}
	write(2 << 20)
	if !e.SpaceGoing(1) {
		t.Error("3 of 3 MiB pass for nothing")
	}
	fs.leave(mark + 9<<20) // others give way
	look()
	if e.SpaceGoing(4) {
		t.Error("what a look has seen counts still")
	}
}
