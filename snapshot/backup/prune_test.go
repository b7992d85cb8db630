package backup

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"maps"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"
)

// stepStore calls step before each operation.
type stepStore struct {
	Store
	mu   sync.Mutex
	n    int // operations so far
	step func(n int, op, name string) error
}

func (s *stepStore) do(op, name string) error {
	s.mu.Lock()
	n := s.n
	s.n++
	s.mu.Unlock()
	return s.step(n, op, name)
}

func (s *stepStore) Put(ctx context.Context, name string, data []byte) error {
	if err := s.do("put", name); err != nil {
		return err
	}
	return s.Store.Put(ctx, name, data)
}

func (s *stepStore) Get(ctx context.Context, name string, limit int64) ([]byte, error) {
	if err := s.do("get", name); err != nil {
		return nil, err
	}
	return s.Store.Get(ctx, name, limit)
}

func (s *stepStore) Size(ctx context.Context, name string) (int64, error) {
	if err := s.do("size", name); err != nil {
		return 0, err
	}
	return s.Store.Size(ctx, name)
}

func (s *stepStore) List(ctx context.Context, prefix string) ([]Object, error) {
	if err := s.do("list", prefix); err != nil {
		return nil, err
	}
	return s.Store.List(ctx, prefix)
}

func (s *stepStore) Delete(ctx context.Context, name string) error {
	if err := s.do("delete", name); err != nil {
		return err
	}
	return s.Store.Delete(ctx, name)
}

// memory is a store that is quick, and can be copied.
type memory struct {
	mu      sync.Mutex
	objects map[string][]byte
}

func newMemory() *memory { return &memory{objects: map[string][]byte{}} }

func (m *memory) clone() *memory { return &memory{objects: maps.Clone(m.objects)} }

func (m *memory) String() string { return "memory" }

func (m *memory) Put(_ context.Context, name string, data []byte) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.objects[name] = bytes.Clone(data)
	return nil
}

func (m *memory) Get(_ context.Context, name string, _ int64) ([]byte, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if b, ok := m.objects[name]; ok {
		return b, nil
	}
	return nil, ErrNoObject
}

func (m *memory) Size(ctx context.Context, name string) (int64, error) {
	b, err := m.Get(ctx, name, 0)
	return int64(len(b)), err
}

func (m *memory) List(_ context.Context, prefix string) (out []Object, _ error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, name := range slices.Sorted(maps.Keys(m.objects)) {
		if strings.HasPrefix(name, prefix) {
			out = append(out, Object{name, int64(len(m.objects[name]))})
		}
	}
	return out, nil
}

func (m *memory) Delete(_ context.Context, name string) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	delete(m.objects, name)
	return nil
}

// hands is a clock that moves when somebody sleeps, or is told to.
type hands struct {
	mu  sync.Mutex
	now time.Time
}

func newHands() *hands { return &hands{now: time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)} }

func (h *hands) Now() time.Time {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.now
}

func (h *hands) move(d time.Duration) {
	h.mu.Lock()
	h.now = h.now.Add(d)
	h.mu.Unlock()
}

// options on the clock; nothing is renewed by itself.
func (h *hands) options() Options {
	return Options{Parallel: 1, Now: h.Now, renew: time.Hour, sleep: func(ctx context.Context, d time.Duration) error {
		h.move(d)
		return ctx.Err()
	}}
}

func (h *hands) prune(keep int) PruneOptions {
	return PruneOptions{KeepLast: keep, Options: h.options()}
}

// exact checks that the store holds what is listed, whole, and nothing else.
func exact(ctx context.Context, s Store) error {
	want := map[string]bool{}
	for _, kind := range kinds {
		list, err := List(ctx, s, kind)
		if err != nil {
			return err
		}
		if damage, err := Verify(ctx, s, list, Options{}); err != nil || len(damage) > 0 {
			return fmt.Errorf("%v, %v", damage, err)
		}
		for _, l := range list {
			want[kind.name(l.ID)] = true
			for _, sh := range l.Manifest.Shards {
				for _, c := range sh.Chunks {
					want[chunkName(c.Hash)] = true
				}
			}
		}
	}
	objects, err := s.List(ctx, "")
	if err != nil {
		return err
	}
	for _, o := range objects {
		if !want[o.Name] {
			return fmt.Errorf("%s is left", o.Name)
		}
	}
	return nil
}

// whole checks that all that is listed is as it was written.
func whole(ctx context.Context, s Store) error {
	for _, kind := range kinds {
		list, err := List(ctx, s, kind)
		if err != nil {
			return err
		}
		if damage, err := Verify(ctx, s, list, Options{}); err != nil || len(damage) > 0 {
			return fmt.Errorf("%s that is listed: %v, %v", kind, damage, err)
		}
	}
	return nil
}

// history makes three backups that share little, an hour apart, and a snapshot of
// what the first one has.
func history(t testing.TB, s Store, h *hands) (*fakeCluster, []*Manifest, *Manifest) {
	t.Helper()
	src := newFake("m")
	var all []*Manifest
	var snap *Manifest
	for round := range 3 {
		h.move(time.Hour)
		src.fill(3000, round)
		src.data["a0000"] = "the same"
		m, err := Create(t.Context(), src, s, h.options())
		check(t, err)
		if all = append(all, m); round == 0 {
			snap, err = Take(t.Context(), src, s, []uint64{1}, h.options())
			check(t, err)
		}
	}
	return src, all, snap
}

// pruned checks which backups go, and that what the others and a snapshot name
// stays, and nothing else.
func pruned(t testing.TB) error {
	for _, c := range []struct {
		keep  int
		older time.Duration
		left  int
	}{
		{1, 0, 1}, {0, 0, 1}, {2, 0, 2}, {9, 0, 3},
		{1, 90 * time.Minute, 2}, {1, 24 * time.Hour, 3},
	} {
		d, h := openDir(t), newHands()
		src, all, snap := history(t, d, h)
		h.move(time.Minute)
		other := newFake() // of another cluster: counted by itself
		other.data["k"] = "v"
		alien, err := Create(t.Context(), named{other, "other"}, d, h.options())
		check(t, err)
		stray := d.path("chunks/README")
		check(t, os.WriteFile(stray, nil, 0o600))
		check(t, os.WriteFile(d.path(chunkName(all[2].Shards[0].Chunks[0].Hash))[:len(d.path("chunks/ff"))]+"/"+tempPrefix+"1", nil, 0o600))
		o := h.prune(c.keep)
		o.OlderThan, o.DryRun = c.older, true
		before, err := d.List(t.Context(), "")
		check(t, err)
		plan, err := Prune(t.Context(), d, o)
		check(t, err)
		if after, err := d.List(t.Context(), ""); err != nil || !slices.Equal(before, after) {
			return fmt.Errorf("a dry run changed the store: %v", err)
		}
		o.DryRun = false
		var p Progress
		o.Progress = &p
		got, err := Prune(t.Context(), d, o)
		if err != nil {
			return err
		}
		if len(got.Removed) != 3-c.left || len(plan.Removed) != len(got.Removed) || plan.Chunks != got.Chunks || plan.Bytes != got.Bytes || p.Chunks.Load() != got.Chunks || p.Stored.Load() != got.Bytes {
			return fmt.Errorf("%+v: planned %d backups, %d chunks; removed %d, %d, counted %d", c, len(plan.Removed), plan.Chunks, len(got.Removed), got.Chunks, p.Chunks.Load())
		}
		if _, err := os.Stat(stray); err != nil {
			return fmt.Errorf("what is no chunk was removed: %w", err)
		}
		check(t, os.Remove(stray))
		if err := exact(t.Context(), d); err != nil {
			return fmt.Errorf("%+v: %w", c, err)
		}
		if temps, err := os.ReadDir(d.path("chunks/" + all[2].Shards[0].Chunks[0].Hash[:2])); err != nil || slices.ContainsFunc(temps, func(e os.DirEntry) bool { return strings.HasPrefix(e.Name(), tempPrefix) }) {
			return fmt.Errorf("temporary files are left: %v, %v", temps, err)
		}
		list, err := List(t.Context(), d, Backup)
		if err != nil || len(list) != c.left+1 || list[len(list)-1].ID != alien.ID {
			return fmt.Errorf("%+v: %d backups are left, %v", c, len(list), err)
		}
		dst := newFake()
		if err := Restore(t.Context(), d, all[2], dst, Refuse, Options{}); err != nil || !maps.Equal(dst.data, src.data) {
			return fmt.Errorf("the newest backup: %w", err)
		}
		if err := Restore(t.Context(), d, snap, newFake(), Refuse, Options{}); err != nil {
			return fmt.Errorf("the snapshot: %w", err)
		}
	}
	return nil
}

// named is a cluster of another name.
type named struct {
	*fakeCluster
	name string
}

func (n named) Cluster() string { return n.name }

func TestPrune(t *testing.T) { check(t, pruned(t)) }

// pruneCrash ends a Prune at each of its operations in turn, its lock and all. What
// is listed is whole, and after the lock has been there for long enough the next
// Prune does the rest.
func pruneCrash(t testing.TB) error {
	base, h := newMemory(), newHands()
	_, all, _ := history(t, base, h)
	for at, ended := 0, false; !ended; at++ {
		d := base.clone()
		ended = true
		s := &stepStore{Store: d, step: func(n int, _, _ string) error {
			if n >= at {
				ended = false
				return errPlanned
			}
			return nil
		}}
		_, err := Prune(t.Context(), s, h.prune(1))
		if !ended && err == nil && at < s.n-1 { // the last is the removal of the lock
			return fmt.Errorf("crashed at operation %d of %d, and nobody noticed", at, s.n)
		}
		if err := whole(t.Context(), d); err != nil {
			return fmt.Errorf("crashed at operation %d: %w", at, err)
		}
		if _, err := Prune(t.Context(), d, h.prune(1)); err != nil {
			return fmt.Errorf("after a crash at operation %d: %w", at, err)
		}
		if err := exact(t.Context(), d); err != nil {
			return fmt.Errorf("after a crash at operation %d: %w", at, err)
		}
		if m, err := Latest(t.Context(), d, Backup); err != nil || m.ID != all[2].ID {
			return fmt.Errorf("after a crash at operation %d: %v, %w", at, m, err)
		}
		if ended && at < 10 {
			return fmt.Errorf("a prune has only %d operations", at)
		}
	}
	return nil
}

func TestPruneCrash(t *testing.T) { check(t, pruneCrash(t)) }

// pruneBesides runs a whole Prune at each operation of a Create that uses chunks of
// the backup to be removed, and the other way round. One of them may be turned
// away, but what is listed afterwards is whole.
func pruneBesides(t testing.TB) error {
	busy := func(err error) bool { return errors.As(err, new(*BusyError)) }
	base, h := newMemory(), newHands()
	src, _, _ := history(t, base, h)
	src.fill(3000, 0) // as in the first backup
	src.data["a0000"] = "the same"
	o := h.options()
	o.Wait = 1
	for _, pruneFirst := range []bool{false, true} {
		both, turned := 0, 0
		for at, ended := 0, false; !ended; at++ {
			d := base.clone()
			create := func(s Store) error { _, err := Create(t.Context(), src, s, o); return err }
			prune := func(s Store) error {
				_, err := Prune(t.Context(), s, PruneOptions{KeepLast: 1, Options: o})
				return err
			}
			outer, inner := create, prune
			if pruneFirst {
				outer, inner = prune, create
			}
			ended = true
			var in error
			s := &stepStore{Store: d}
			s.step = func(n int, _, _ string) error {
				if n == at {
					ended = false
					in = inner(d)
				}
				return nil
			}
			out := outer(s)
			if out != nil && !busy(out) || in != nil && !busy(in) {
				return fmt.Errorf("operation %d: %v, %v", at, out, in)
			}
			if out == nil && in == nil {
				both++
			} else {
				turned++
			}
			if err := whole(t.Context(), d); err != nil {
				return fmt.Errorf("the other one at operation %d (prune first: %v): %w", at, pruneFirst, err)
			}
		}
		if turned < 5 || both < 2 {
			return fmt.Errorf("prune first: %v: %d times both, %d times one of them", pruneFirst, both, turned)
		}
	}
	return nil
}

func TestPruneBesidesBackup(t *testing.T) { check(t, pruneBesides(t)) }

// A lock that does not change any more is of the dead; one that does is waited for,
// and named. Backups do not wait for each other.
func TestLocks(t *testing.T) {
	d, h := newMemory(), newHands()
	src, _, _ := history(t, d, h)
	dead := &stepStore{Store: d, step: func(_ int, op, name string) error {
		if op == "size" || op == "delete" {
			return errPlanned
		}
		return nil
	}}
	if _, err := Create(t.Context(), src, dead, h.options()); !errors.Is(err, errPlanned) {
		t.Fatal(err)
	}
	locks, err := d.List(t.Context(), lockDir)
	if err != nil || len(locks) != 1 {
		t.Fatal(locks, err)
	}
	began := h.Now()
	_, err = Create(t.Context(), src, d, h.options())
	check(t, err)
	if !h.Now().Equal(began) {
		t.Error("a backup waited for another one")
	}

	o := h.prune(1)
	alive, told := 0, 0
	o.OnWait = func(who []string) {
		if told++; !slices.Equal(who, []string{locks[0].Name}) {
			t.Errorf("waits for %q", who)
		}
	}
	o.sleep = func(ctx context.Context, d2 time.Duration) error {
		h.move(d2)
		alive++
		return d.Put(ctx, locks[0].Name, fmt.Append(nil, alive))
	}
	var busy *BusyError
	if _, err := Prune(t.Context(), d, o); !errors.As(err, &busy) || !slices.Equal(busy.Who, []string{locks[0].Name}) || !strings.Contains(err.Error(), locks[0].Name) {
		t.Errorf("besides one that lives: %v", err)
	}
	if waited := h.Now().Sub(began); waited < 5*time.Minute || waited > 6*time.Minute || told != 1 {
		t.Errorf("waited %v, told %d times", waited, told)
	}
	began = h.Now()
	o = h.prune(1)
	got, err := Prune(t.Context(), d, o)
	check(t, err)
	if waited := h.Now().Sub(began); waited < lockStale || waited > lockStale+10*time.Second || len(got.Removed) != 3 {
		t.Errorf("waited %v for the dead, removed %d", waited, len(got.Removed))
	}
	check(t, exact(t.Context(), d))

	// The other way round: a backup waits for a prune.
	l, err := hold(t.Context(), d, &o.Options, workPrune)
	check(t, err)
	co := h.options()
	co.sleep = func(ctx context.Context, dt time.Duration) error { h.move(dt); l.release(); return nil }
	_, err = Create(t.Context(), src, d, co)
	check(t, err)
	check(t, exact(t.Context(), d))
}

// The owner of a lock writes it anew, each time differently, until it is released.
func TestLockIsRenewed(t *testing.T) {
	d := openDir(t)
	var mu sync.Mutex
	seen := map[string]bool{}
	enough := make(chan struct{})
	s := &stepStore{Store: d, step: func(_ int, op, name string) error {
		if op != "put" {
			return nil
		}
		mu.Lock()
		defer mu.Unlock()
		b, _ := d.Get(context.Background(), name, 1<<10)
		if !bytes.HasPrefix(b, []byte(lockMagic)) && len(b) > 0 {
			t.Errorf("the lock holds %q", b)
		}
		if seen[string(b)] = true; len(seen) == 4 {
			close(enough)
		}
		return nil
	}}
	o := Options{renew: time.Millisecond}
	check(t, o.fill())
	l, err := hold(t.Context(), s, &o, workBackup)
	check(t, err)
	<-enough
	check(t, l.check())
	l.release()
	if left, err := d.List(t.Context(), ""); err != nil || len(left) > 0 {
		t.Errorf("%v, %v", left, err)
	}
}

// lockLost lets the owner stand still for a minute at each operation: a backup that
// somebody may have taken for dead is not listed, nor does a prune go on.
func lockLost(t testing.TB) error {
	base, h := newMemory(), newHands()
	src, _, _ := history(t, base, h)
	src.data["new"] = "new"
	for _, what := range []string{workBackup, workPrune} {
		lost := 0
		for at, ended := 0, false; !ended; at++ {
			d := base.clone()
			ended = true
			after := 0 // objects removed, or manifests written, and not removed again, after the stop
			s := &stepStore{Store: d, step: func(n int, op, name string) error {
				if n == at {
					ended = false
					h.move(time.Minute)
				}
				if n > at && op == "delete" && !strings.HasPrefix(name, lockDir) && what == workPrune {
					after++
				}
				return nil
			}}
			var err error
			if what == workBackup {
				_, err = Create(t.Context(), src, s, h.options())
			} else {
				_, err = Prune(t.Context(), s, h.prune(1))
			}
			list, lerr := List(t.Context(), d, Backup)
			if lerr != nil {
				return lerr
			}
			switch {
			case errors.Is(err, ErrLockLost):
				if lost++; what == workBackup && len(list) != 3 || after > 0 {
					return fmt.Errorf("%s stood still at operation %d: %d backups are listed, %d objects were removed afterwards", what, at, len(list), after)
				}
			case err != nil:
				return err
			}
		}
		if lost < 6 {
			return fmt.Errorf("%s: the lock was lost %d times only", what, lost)
		}
	}
	return nil
}

func TestLockLost(t *testing.T) { check(t, lockLost(t)) }

// A manifest that cannot be read may name anything: nothing is removed then. A
// backup whose chunks vanish while it is made is not listed.
func TestPruneRefuses(t *testing.T) {
	d, h := openDir(t), newHands()
	src, all, _ := history(t, d, h)
	before, err := d.List(t.Context(), "")
	check(t, err)
	path := d.path(all[1].name())
	b, err := os.ReadFile(path)
	check(t, err)
	check(t, os.WriteFile(path, append(b[:len(b)-1], '?'), 0o600))
	var damage *DamageError
	if _, err := Prune(t.Context(), d, h.prune(1)); !errors.As(err, &damage) || damage.Object != all[1].name() {
		t.Errorf("with a damaged manifest: %v", err)
	}
	if after, err := d.List(t.Context(), ""); err != nil || !slices.Equal(before, after) {
		t.Errorf("%d objects were %d, %v", len(after), len(before), err)
	}
	if _, err := Prune(t.Context(), d, h.prune(-1)); err == nil {
		t.Error("KeepLast -1")
	}
	o := h.options()
	o.Wait = -1
	if _, err := Create(t.Context(), src, d, o); err == nil {
		t.Error("Wait -1")
	}

	s := &stepStore{Store: d, step: func(_ int, op, name string) error {
		if op == "list" && name == chunkDir {
			return os.Remove(d.path(chunkName(all[2].Shards[0].Chunks[0].Hash)))
		}
		return nil
	}}
	if _, err := Create(t.Context(), src, s, h.options()); !errors.Is(err, errVanished) {
		t.Errorf("a chunk vanished: %v", err)
	}
}
