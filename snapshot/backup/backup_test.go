package backup

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
)

// fakeCluster has one shard per split, and serves cuts of what it holds.
type fakeCluster struct {
	mu     sync.Mutex
	data   map[string]string
	splits []string
	page   int                     // pairs per page
	lost   func(shard uint64) bool // whether the next page of a cut is lost
	index  uint64
}

func newFake(splits ...string) *fakeCluster {
	return &fakeCluster{data: map[string]string{}, splits: splits, page: 100}
}

func (f *fakeCluster) Cluster() string { return strings.Repeat("c", 32) }

func (f *fakeCluster) Shards(context.Context) ([]uint64, error) {
	ids := []uint64{}
	for i := range len(f.splits) + 1 {
		ids = append(ids, uint64(len(f.splits)+1-i)) // in no particular order
	}
	return ids, nil
}

func (f *fakeCluster) Open(_ context.Context, id uint64) (Cut, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.index++
	c := &fakeCut{f: f, at: ShardCut{Shard: id, Keyspace: 1, Start: []byte{}, End: []byte{}, Index: f.index, Term: 1}}
	if id > 1 {
		c.at.Start = []byte(f.splits[id-2])
	}
	if int(id) <= len(f.splits) {
		c.at.End = []byte(f.splits[id-1])
	}
	for _, k := range slices.Sorted(maps.Keys(f.data)) {
		if c.at.holds([]byte(k)) {
			c.pairs = append(c.pairs, Pair{[]byte(k), []byte(f.data[k])})
		}
	}
	return c, nil
}

type fakeCut struct {
	f     *fakeCluster
	at    ShardCut
	pairs []Pair
}

func (c *fakeCut) At() ShardCut { return c.at }
func (c *fakeCut) Close()       {}
func (c *fakeCut) Next(context.Context) ([]Pair, bool, error) {
	if c.f.lost != nil && c.f.lost(c.at.Shard) {
		return nil, false, fmt.Errorf("a test: %w", ErrCutLost)
	}
	n := min(c.f.page, len(c.pairs))
	out := c.pairs[:n]
	c.pairs = c.pairs[n:]
	return out, len(c.pairs) > 0, nil
}

func (f *fakeCluster) Empty(_ context.Context, start, end []byte) (bool, error) {
	r := ShardCut{Start: start, End: end}
	for k := range f.data {
		if r.holds([]byte(k)) {
			return false, nil
		}
	}
	return true, nil
}

func (f *fakeCluster) Clear(_ context.Context, start, end []byte) error {
	r := ShardCut{Start: start, End: end}
	maps.DeleteFunc(f.data, func(k, _ string) bool { return r.holds([]byte(k)) })
	return nil
}

func (f *fakeCluster) Write(_ context.Context, pairs []Pair) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, p := range pairs {
		f.data[string(p.Key)] = string(p.Value)
	}
	return nil
}

// fill gives the cluster n pairs, whose values are of the round.
func (f *fakeCluster) fill(n, round int) {
	for i := range n {
		k := fmt.Sprintf("%c%04d", 'a'+i%26, i)
		f.data[k] = strings.Repeat(fmt.Sprintf("%s-%d.", k, round), 60)
	}
}

// faultStore fails the Put with number fail (from 0), before or after the object
// is stored, and every later one.
type faultStore struct {
	Store
	mu    sync.Mutex
	puts  int
	fail  int // negative: never
	after bool
	names []string
}

var errPlanned = errors.New("a fault of the test")

func (s *faultStore) Put(ctx context.Context, name string, data []byte) error {
	if strings.HasPrefix(name, lockDir) {
		return s.Store.Put(ctx, name, data)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	n := s.puts
	s.puts++
	s.names = append(s.names, name)
	bad := s.fail >= 0 && n >= s.fail
	if bad && (!s.after || n > s.fail) {
		return errPlanned
	}
	if err := s.Store.Put(ctx, name, data); err != nil {
		return err
	}
	if bad {
		return errPlanned
	}
	return nil
}

func openDir(t testing.TB) *Dir {
	t.Helper()
	d, err := OpenDir(filepath.Join(t.TempDir(), "deep", "store"))
	check(t, err)
	return d
}

func verify(t testing.TB, s Store) []*DamageError {
	t.Helper()
	list, err := List(t.Context(), s, Backup)
	check(t, err)
	damage, err := Verify(t.Context(), s, list, Options{})
	check(t, err)
	return damage
}

// What was backed up comes back, whatever the shards were; empty shards and an
// empty cluster too.
func TestRoundTrip(t *testing.T) {
	for _, n := range []int{0, 1, 5000} {
		src, dst, s := newFake("d", "dd", "q"), newFake("f"), openDir(t)
		src.fill(n, 0)
		var p Progress
		m, err := Create(t.Context(), src, s, Options{Progress: &p, Release: "1"})
		check(t, err)
		if len(m.Shards) != 4 || m.Pairs() != int64(n) || p.Pairs.Load() != int64(n) || p.ShardsDone.Load() != 4 {
			t.Fatalf("%+v", m)
		}
		latest, err := Latest(t.Context(), s, Backup)
		check(t, err)
		check(t, Restore(t.Context(), s, latest, dst, Refuse, Options{}))
		if !maps.Equal(src.data, dst.data) {
			t.Errorf("%d pairs became %d", len(src.data), len(dst.data))
		}
		if d := verify(t, s); len(d) > 0 {
			t.Error(d)
		}
	}
}

// interrupted ends a Create at each of its Puts in turn, before and after the
// object is stored. Nothing is listed unless it is complete, and the next Create
// stores only what is not there.
func interrupted(t testing.TB) error {
	src := newFake("m")
	src.fill(4000, 0)
	whole := &faultStore{Store: openDir(t), fail: -1}
	m, err := Create(t.Context(), src, whole, Options{Parallel: 1})
	if err != nil {
		return err
	}
	if whole.puts < 4 || whole.names[whole.puts-1] != m.name() {
		return fmt.Errorf("puts: %q", whole.names)
	}
	for at := range whole.puts {
		for _, after := range []bool{false, true} {
			s := &faultStore{Store: openDir(t), fail: at, after: after}
			if _, err := Create(t.Context(), src, s, Options{Parallel: 1}); !errors.Is(err, errPlanned) {
				return fmt.Errorf("interrupted at %d: %v", at, err)
			}
			stored := at
			if after {
				stored++
			}
			list, err := List(t.Context(), s, Backup)
			if err != nil {
				return err
			}
			if stored < whole.puts && len(list) > 0 {
				return fmt.Errorf("interrupted at object %d (after: %v), %s is listed", at, after, list[0].ID)
			}
			if d, err := Verify(t.Context(), s, list, Options{}); err != nil || len(d) > 0 {
				return fmt.Errorf("interrupted at object %d (after: %v): %v, %v", at, after, d, err)
			}
			s.fail, s.puts = -1, 0
			m, err := Create(t.Context(), src, s, Options{Parallel: 1})
			if err != nil {
				return err
			}
			if want := whole.puts - min(stored, whole.puts-1); s.puts != want {
				return fmt.Errorf("after an end at object %d (after: %v) the next one puts %d objects, want %d", at, after, s.puts, want)
			}
			dst := newFake()
			if err := Restore(t.Context(), s, m, dst, Refuse, Options{}); err != nil {
				return err
			}
			if !maps.Equal(src.data, dst.data) {
				return errors.New("the restored cluster differs")
			}
		}
	}
	return nil
}

func TestInterrupted(t *testing.T) { check(t, interrupted(t)) }

// A file half written, as a crash leaves it, is not an object.
func TestTemporaryFiles(t *testing.T) {
	s := openDir(t)
	src := newFake()
	src.fill(10, 0)
	_, err := Create(t.Context(), src, s, Options{})
	check(t, err)
	check(t, os.WriteFile(s.path(Backup.dir()+tempPrefix+"123"), []byte("half"), 0o600))
	list, err := List(t.Context(), s, Backup)
	if err != nil || len(list) != 1 {
		t.Errorf("%v, %v", list, err)
	}
}

// damaged flips one bit in each region of each file of a backup, cuts each short
// and removes each in turn: Verify names the file, and Restore writes nothing of it.
func damaged(t testing.TB) error {
	s := openDir(t)
	src := newFake("m")
	src.fill(4000, 0)
	m, err := Create(t.Context(), src, s, Options{})
	if err != nil {
		return err
	}
	objects, err := s.List(t.Context(), "")
	if err != nil {
		return err
	}
	if len(objects) != int(m.Chunks())+1 || len(objects) < 4 {
		return fmt.Errorf("%d objects, %d chunks", len(objects), m.Chunks())
	}
	if d := verify(t, s); len(d) > 0 {
		return fmt.Errorf("before: %v", d[0])
	}
	for _, o := range objects {
		path := s.path(o.Name)
		whole, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		spoilt := [][]byte{{}, whole[:len(whole)/2], whole[:len(whole)-1], append(bytes.Clone(whole), 0), nil}
		for i := range 16 {
			at := i // the head
			if i >= 8 {
				at = (i - 8) * (len(whole) - 1) / 7 // and all over, to the last byte
			}
			bad := bytes.Clone(whole)
			bad[at] ^= 1 << (i % 8)
			spoilt = append(spoilt, bad)
		}
		for i, bad := range spoilt {
			if bad == nil {
				err = os.Remove(path)
			} else {
				err = os.WriteFile(path, bad, 0o600)
			}
			if err != nil {
				return err
			}
			isManifest := strings.HasPrefix(o.Name, Backup.dir())
			if bad == nil && isManifest {
				continue // there is no backup then
			}
			d := verify(t, s)
			if len(d) != 1 || d[0].Object != o.Name {
				return fmt.Errorf("%s, change %d: verify says %v", o.Name, i, d)
			}
			if isManifest {
				if _, err := Latest(t.Context(), s, Backup); !errors.As(err, new(*DamageError)) {
					return fmt.Errorf("%s, change %d: Latest says %v", o.Name, i, err)
				}
				continue
			}
			if i%8 == 0 {
				dst := newFake()
				var named *DamageError
				if err := Restore(t.Context(), s, m, dst, Refuse, Options{}); !errors.As(err, &named) || named.Object != o.Name {
					return fmt.Errorf("%s, change %d: restore says %v", o.Name, i, err)
				}
				for k, v := range dst.data {
					if src.data[k] != v {
						return fmt.Errorf("%s, change %d: restored %q as %q", o.Name, i, k, v)
					}
				}
			}
		}
		if err := os.WriteFile(path, whole, 0o600); err != nil {
			return err
		}
	}
	return nil
}

func TestDamaged(t *testing.T) { check(t, damaged(t)) }

// exchanged: chunks that are whole, but not what the manifest says, are found.
func TestExchanged(t *testing.T) {
	src := newFake("m")
	src.fill(4000, 0)
	for name, spoil := range map[string]func(m *Manifest){
		"another number of pairs":   func(m *Manifest) { m.Shards[0].Chunks[0].Pairs++ },
		"another number of bytes":   func(m *Manifest) { m.Shards[0].Chunks[0].Bytes++ },
		"another first key":         func(m *Manifest) { m.Shards[0].Chunks[0].First = []byte("a") },
		"a chunk of another place":  func(m *Manifest) { c := m.Shards[0].Chunks; c[0].Hash = c[1].Hash },
		"a chunk of another shard":  func(m *Manifest) { m.Shards[0].Chunks[0].Hash = m.Shards[1].Chunks[0].Hash },
		"a shard that ends earlier": func(m *Manifest) { m.Shards[0].End, m.Shards[1].Start = []byte("l3"), []byte("l3") },
	} {
		s := openDir(t)
		m, err := Create(t.Context(), src, s, Options{})
		check(t, err)
		spoil(m)
		b, err := m.encode()
		check(t, err)
		check(t, s.Put(t.Context(), m.name(), b))
		if d := verify(t, s); len(d) != 1 || d[0].Object != m.name() {
			t.Errorf("%s: verify says %v", name, d)
		}
		if err := Restore(t.Context(), s, m, newFake(), Refuse, Options{}); !errors.As(err, new(*DamageError)) {
			t.Errorf("%s: restore says %v", name, err)
		}
	}
}

// short: a chunk that is not whole in the store is stored again by the next
// backup that has it.
func short(t testing.TB) error {
	s := openDir(t)
	src := newFake()
	src.fill(100, 0)
	m, err := Create(t.Context(), src, s, Options{})
	if err != nil {
		return err
	}
	if err := os.Truncate(s.path(chunkName(m.Shards[0].Chunks[0].Hash)), 10); err != nil {
		return err
	}
	if _, err := Create(t.Context(), src, s, Options{}); err != nil {
		return err
	}
	if d := verify(t, s); len(d) > 0 {
		return d[0]
	}
	return nil
}

func TestShortChunkIsStoredAgain(t *testing.T) { check(t, short(t)) }

// A cut that is lost is taken again, a few times; the pairs of the lost one are
// not in the backup.
func TestLostCuts(t *testing.T) {
	src := newFake("m")
	src.fill(3000, 0)
	calls := 0
	src.lost = func(uint64) bool { calls++; return calls == 4 || calls == 9 }
	s := openDir(t)
	var p Progress
	m, err := Create(t.Context(), src, s, Options{Parallel: 1, Progress: &p})
	check(t, err)
	if p.Restarts.Load() != 2 || m.Pairs() != int64(len(src.data)) {
		t.Errorf("%d restarts, %d pairs", p.Restarts.Load(), m.Pairs())
	}
	src.lost = func(id uint64) bool { return id == 2 }
	if _, err := Create(t.Context(), src, s, Options{}); !errors.Is(err, ErrCutLost) || !strings.Contains(err.Error(), "shard 2") {
		t.Errorf("always lost: %v", err)
	}
	if list, err := List(t.Context(), s, Backup); err != nil || len(list) != 1 {
		t.Errorf("%d backups, %v", len(list), err)
	}
}

// Only what changed is stored again, and each backup is complete by itself.
func TestIncremental(t *testing.T) {
	s := openDir(t)
	src := newFake("h", "q")
	src.fill(20000, 0)
	first, err := Create(t.Context(), src, s, Options{})
	check(t, err)
	before := maps.Clone(src.data)
	for k := range src.data {
		if k[0] == 'k' {
			src.data[k] += "new"
		}
	}
	delete(src.data, "c0002")
	var p Progress
	second, err := Create(t.Context(), src, s, Options{Progress: &p})
	check(t, err)
	if p.Reused.Load() < second.Chunks()*3/4 || p.Chunks.Load() < 2 {
		t.Errorf("%d chunks stored, %d reused of %d", p.Chunks.Load(), p.Reused.Load(), second.Chunks())
	}
	for n := range 20 { // within a second, too, they are in order
		m, err := Create(t.Context(), newFake(), s, Options{})
		check(t, err)
		list, err := List(t.Context(), s, Backup)
		if check(t, err); len(list) != n+3 || list[n+2].ID != m.ID {
			t.Fatalf("the newest of %d is %s, not %s", len(list), list[len(list)-1].ID, m.ID)
		}
	}
	for m, want := range map[*Manifest]map[string]string{first: before, second: src.data} {
		dst := newFake()
		check(t, Restore(t.Context(), s, m, dst, Refuse, Options{}))
		if !maps.Equal(dst.data, want) {
			t.Error("a backup does not come back")
		}
	}
}

// Into a cluster that has keys: refused, over them, or instead of them.
func TestNotEmpty(t *testing.T) {
	s, src := openDir(t), newFake()
	src.fill(50, 0)
	m, err := Create(t.Context(), src, s, Options{})
	check(t, err)
	dst := newFake()
	dst.data["stray"] = "x"
	if err := Restore(t.Context(), s, m, dst, Refuse, Options{}); !errors.Is(err, ErrNotEmpty) || len(dst.data) != 1 {
		t.Errorf("%v, %d keys", err, len(dst.data))
	}
	check(t, Restore(t.Context(), s, m, dst, Resume, Options{}))
	if len(dst.data) != len(src.data)+1 {
		t.Errorf("%d keys", len(dst.data))
	}
	check(t, Restore(t.Context(), s, m, dst, Replace, Options{}))
	if !maps.Equal(dst.data, src.data) {
		t.Errorf("%d keys", len(dst.data))
	}
	if err := Restore(t.Context(), s, m, dst, Replace, Options{Parallel: 65}); err == nil {
		t.Error("65 at a time")
	}
}

// A snapshot of some shards holds these alone, is checked like a backup, and comes
// back into their ranges, whatever there is elsewhere.
func TestTake(t *testing.T) {
	s, src := openDir(t), newFake("d", "k", "q") // shards 1 to 4
	src.fill(6000, 0)
	_, err := Create(t.Context(), src, s, Options{})
	check(t, err)
	var p Progress
	m, err := Take(t.Context(), src, s, []uint64{4, 1, 2, 4}, Options{Progress: &p})
	check(t, err)
	if m.Kind != Snapshot || len(m.Shards) != 3 || m.Shards[2].Shard != 4 || p.Chunks.Load() != 0 || p.Reused.Load() != m.Chunks() {
		t.Errorf("%+v, %d chunks were stored again", m, p.Chunks.Load())
	}
	if list, err := List(t.Context(), s, Backup); err != nil || len(list) != 1 {
		t.Errorf("%v, %v: a snapshot is listed as a backup", list, err)
	}
	list, err := List(t.Context(), s, Snapshot)
	if err != nil || len(list) != 1 || list[0].ID != m.ID {
		t.Fatalf("%v, %v", list, err)
	}
	if latest, err := Latest(t.Context(), s, Snapshot); err != nil || latest.ID != m.ID {
		t.Errorf("%v, %v", latest, err)
	}
	dst := newFake()
	dst.data["m"] = "outside"
	check(t, Restore(t.Context(), s, m, dst, Refuse, Options{}))
	want := map[string]string{"m": "outside"}
	for k, v := range src.data {
		if k < "k" || k >= "q" {
			want[k] = v
		}
	}
	if !maps.Equal(dst.data, want) {
		t.Errorf("%d keys, want %d", len(dst.data), len(want))
	}
	dst.data["a stray"] = ""
	if err := Restore(t.Context(), s, m, dst, Refuse, Options{}); !errors.Is(err, ErrNotEmpty) {
		t.Errorf("into ranges that have keys: %v", err)
	}
	check(t, Restore(t.Context(), s, m, dst, Replace, Options{}))
	if !maps.Equal(dst.data, want) {
		t.Errorf("replaced: %d keys, want %d", len(dst.data), len(want))
	}

	path := s.path(chunkName(m.Shards[1].Chunks[0].Hash))
	b, err := os.ReadFile(path)
	check(t, err)
	b[len(b)/3] ^= 32
	check(t, os.WriteFile(path, b, 0o600))
	damage, err := Verify(t.Context(), s, list, Options{})
	if err != nil || len(damage) != 1 || damage[0].Object != chunkName(m.Shards[1].Chunks[0].Hash) {
		t.Errorf("%v, %v", damage, err)
	}
	if all, err := Take(t.Context(), src, s, nil, Options{}); err != nil || all.Kind != Snapshot || all.Pairs() != int64(len(src.data)) {
		t.Errorf("all shards: %+v, %v", all, err)
	}
}
