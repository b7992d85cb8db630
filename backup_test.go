package flotilla_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/flotillakv/flotilla"
	"github.com/flotillakv/flotilla/flotillatest"
	"github.com/flotillakv/flotilla/snapshot/backup"
)

// export returns all pairs of a cluster, in key order.
func export(t *testing.T, c *flotillatest.Cluster) []byte {
	t.Helper()
	var out []byte
	again(t, c, func() error {
		out = nil
		for p, err := range c.KV().Scan(t.Context(), flotilla.Range{}) {
			if err != nil {
				return err
			}
			out = fmt.Appendf(out, "%q\t%q\n", p.Key, p.Value)
		}
		return nil
	})
	return out
}

// fillAtRandom writes n pairs of very different sizes.
func fillAtRandom(t *testing.T, c *flotillatest.Cluster, n int) {
	t.Helper()
	r := rand.New(rand.NewPCG(1, 2))
	var b flotilla.Batch
	for i := range n {
		key := make([]byte, 1+r.IntN(20))
		for j := range key {
			key[j] = byte(r.Uint32())
		}
		val := make([]byte, r.IntN(1+1<<(i%13)))
		for j := range val {
			val[j] = "abcdefgh"[r.IntN(8)]
		}
		b.Put(key, val)
		if i%500 == 499 || i == n-1 {
			again(t, c, func() error {
				_, err := c.KV().Write(t.Context(), &b, flotilla.NonAtomic())
				return err
			})
			b.Reset()
		}
	}
}

// A cluster of 3 nodes and 4 shards is backed up and restored into one of 5 nodes
// and 12 shards: all pairs are the same. A second backup stores nothing but what
// changed, and restores too.
func TestBackupRestoreElsewhere(t *testing.T) {
	dir, err := backup.OpenDir(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	a := flotillatest.NewCluster(t, 3, flotillatest.WithShards(4))
	fillAtRandom(t, a, 8_000)
	if _, err := a.KV().Put(t.Context(), []byte("big"), bytes.Repeat([]byte("x"), flotilla.MaxValueBytes)); err != nil {
		t.Fatal(err)
	}
	var p1, p2 backup.Progress
	m1, err := a.Client().Backup(t.Context(), dir, backup.Options{Progress: &p1, Retry: patient(a)})
	if err != nil {
		t.Fatal(err)
	}
	want1 := export(t, a)
	if len(m1.Shards) != 4 || m1.Pairs() != int64(bytes.Count(want1, []byte("\n"))) || m1.Chunks() < 6 {
		t.Fatalf("%d shards, %d pairs, %d chunks", len(m1.Shards), m1.Pairs(), m1.Chunks())
	}
	if _, err := a.KV().Put(t.Context(), []byte("m"), []byte("new")); err != nil {
		t.Fatal(err)
	}
	want2 := export(t, a)
	m2, err := a.Node(1).Backup(t.Context(), dir, backup.Options{Progress: &p2, Retry: patient(a)})
	if err != nil {
		t.Fatal(err)
	}
	if p2.Chunks.Load() != 1 || p2.Reused.Load() != m2.Chunks()-1 {
		t.Errorf("one key changed: %d of %d chunks were stored", p2.Chunks.Load(), m2.Chunks())
	}
	list, err := backup.List(t.Context(), dir, backup.Backup)
	if err != nil || len(list) != 2 {
		t.Fatalf("%d backups, %v", len(list), err)
	}
	if damage, err := backup.Verify(t.Context(), dir, list, backup.Options{}); err != nil || len(damage) > 0 {
		t.Fatalf("%v, %v", damage, err)
	}
	a.Close()

	b := flotillatest.NewCluster(t, 5, flotillatest.WithShards(12))
	if err := b.Client().Restore(t.Context(), dir, m1, backup.Refuse, backup.Options{Parallel: 8, Retry: patient(b)}); err != nil {
		t.Fatal(err)
	}
	if got := export(t, b); !bytes.Equal(got, want1) {
		t.Errorf("the restored cluster exports %d bytes, the first one %d", len(got), len(want1))
	}
	if err := b.Client().Restore(t.Context(), dir, m2, backup.Refuse, backup.Options{}); err == nil {
		t.Error("a cluster with keys was restored into")
	}
	if _, err := b.KV().Put(t.Context(), []byte("stray"), nil); err != nil {
		t.Fatal(err)
	}
	if err := b.Node(2).Restore(t.Context(), dir, m2, backup.Replace, backup.Options{Parallel: 8, Retry: patient(b)}); err != nil {
		t.Fatal(err)
	}
	if got := export(t, b); !bytes.Equal(got, want2) {
		t.Errorf("replaced: %d bytes, want %d", len(got), len(want2))
	}
}

// pairWriters keep two far keys of a shard equal, in batches, until stopped. Some
// of the writes that were acknowledged are told.
func pairWriters(t *testing.T, kv flotilla.KV, shards int) (acked <-chan struct{}, stop func()) {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	told := make(chan struct{})
	for s := range shards {
		wg.Go(func() {
			for n := 0; ctx.Err() == nil; n++ {
				v := fmt.Appendf(nil, "%d", n)
				var b flotilla.Batch
				b.Put(fmt.Appendf(nil, "s%d/a", s), v)
				b.Put(fmt.Appendf(nil, "s%d/z", s), v)
				if _, err := kv.Write(ctx, &b); err == nil {
					select {
					case told <- struct{}{}:
					default:
					}
				}
			}
		})
	}
	return told, func() { cancel(); wg.Wait() }
}

// pagesApart fills each shard so that its two keys lie pages apart.
func pagesApart(t *testing.T, kv flotilla.KV, shards int) {
	t.Helper()
	put := func(key string, v []byte) {
		for {
			_, err := kv.Put(t.Context(), []byte(key), v)
			if err == nil {
				return
			}
			var none *flotilla.NoQuorumError // the machine may be too busy for short timeouts
			if t.Context().Err() != nil || !errors.As(err, &none) && !errors.Is(err, flotilla.ErrAmbiguous) {
				t.Fatal(err)
			}
		}
	}
	for s := range shards {
		for _, end := range "az" {
			put(fmt.Sprintf("s%d/%c", s, end), []byte("0"))
		}
		for i := range 24 {
			put(fmt.Sprintf("s%d/m%02d", s, i), bytes.Repeat([]byte{byte(i)}, 200<<10))
		}
	}
}

func splitsFor(shards int) flotillatest.Option {
	var at [][]byte
	for s := 1; s < shards; s++ {
		at = append(at, fmt.Appendf(nil, "s%d", s))
	}
	return flotillatest.WithSplitAt(at...)
}

// backupUnderLoad backs up while each shard has two keys, pages apart, that
// transactions keep equal. They must be equal in the backup, not older than what
// was acknowledged before it began, and the cut must be where the shard was.
func backupUnderLoad(t *testing.T, rounds int) error {
	const shards = 2
	c := flotillatest.NewCluster(t, 3, splitsFor(shards))
	pagesApart(t, c.KV(), shards)
	acked, stop := pairWriters(t, c.KV(), shards)
	defer stop()
	for round := range rounds {
		for range 20 {
			<-acked
		}
		before := map[string]flotilla.Value{}
		for s := range shards {
			k := fmt.Sprintf("s%d/a", s)
			v, err := c.KV().Get(t.Context(), []byte(k))
			if err != nil {
				return err
			}
			before[k] = v
		}
		mem := newMemory()
		m, err := c.Client().Backup(t.Context(), mem, backup.Options{Retry: patient(c)})
		if err != nil {
			return err
		}
		got := map[string]string{}
		if err := backup.Restore(t.Context(), mem, m, into(got), backup.Refuse, backup.Options{Parallel: 1}); err != nil {
			return err
		}
		for s := range shards {
			a, z := got[fmt.Sprintf("s%d/a", s)], got[fmt.Sprintf("s%d/z", s)]
			if a == "" || a != z {
				return fmt.Errorf("round %d: shard %d has %q and %q, which are written together", round, s, a, z)
			}
			v := before[fmt.Sprintf("s%d/a", s)]
			if len(a) < len(v.Bytes) || len(a) == len(v.Bytes) && a < string(v.Bytes) || m.Shards[s].Index < uint64(v.Version.Index) {
				return fmt.Errorf("round %d: shard %d is cut at %d with %q; %q of %d was read before", round, s, m.Shards[s].Index, a, v.Bytes, v.Version.Index)
			}
		}
	}
	return nil
}

func TestBackupUnderLoad(t *testing.T) {
	if err := backupUnderLoad(t, 5); err != nil {
		t.Fatal(err)
	}
}

// backupWithStaleFollower writes while one of three nodes is cut off from the
// others, but not from clients, and backs up: what was acknowledged is in the
// backup, though the node that is behind is among those asked.
func backupWithStaleFollower(t *testing.T) error {
	const shards = 6
	c := flotillatest.NewCluster(t, 3, splitsFor(shards))
	cl, err := c.Dial(flotilla.ClientOptions{Timeout: 2 * time.Second})
	if err != nil {
		return err
	}
	write := func(v string) {
		for s := range shards {
			again(t, c, func() error {
				_, err := c.KV().Put(t.Context(), fmt.Appendf(nil, "s%d/k", s), []byte(v))
				return err
			})
		}
	}
	write("old")
	c.AwaitCaughtUp()
	c.Partition([]int{0, 1}, []int{2})
	c.AwaitLeaders()
	write("new")
	mem := newMemory()
	var m *backup.Manifest
	again(t, c, func() (err error) {
		m, err = cl.Backup(t.Context(), mem, backup.Options{Parallel: shards})
		return err
	})
	got := map[string]string{}
	if err := backup.Restore(t.Context(), mem, m, into(got), backup.Refuse, backup.Options{}); err != nil {
		return err
	}
	for s := range shards {
		if v := got[fmt.Sprintf("s%d/k", s)]; v != "new" {
			return fmt.Errorf("shard %d is backed up with %q, which a later write had replaced before the backup began", s, v)
		}
	}
	return nil
}

func TestBackupWithStaleFollower(t *testing.T) {
	if err := backupWithStaleFollower(t); err != nil {
		t.Fatal(err)
	}
}

// onceStore runs f before its first Put of a chunk.
type onceStore struct {
	*memStore
	once sync.Once
	f    func()
}

func (s *onceStore) Put(ctx context.Context, name string, data []byte) error {
	if !strings.HasPrefix(name, "locks/") {
		s.once.Do(s.f)
	}
	return s.memStore.Put(ctx, name, data)
}

// The node that holds a cut crashes and comes back in the middle of a backup: the
// shard is cut anew, and the backup is whole.
func TestBackupOverCrash(t *testing.T) {
	c := flotillatest.NewCluster(t, 1, splitsFor(2))
	pagesApart(t, c.KV(), 2)
	mem := &onceStore{memStore: newMemory(), f: func() { c.Kill(0); c.Restart(0) }}
	var p backup.Progress
	m, err := c.Client().Backup(t.Context(), mem, backup.Options{Parallel: 1, Progress: &p, Retry: patient(c)})
	if err != nil {
		t.Fatal(err)
	}
	if p.Restarts.Load() == 0 {
		t.Error("the cut outlived its node")
	}
	got := map[string]string{}
	if err := backup.Restore(t.Context(), mem, m, into(got), backup.Refuse, backup.Options{Parallel: 1}); err != nil {
		t.Fatal(err)
	}
	n := 0
	for pair, err := range c.KV().Scan(t.Context(), flotilla.Range{}) {
		if n++; err != nil || got[string(pair.Key)] != string(pair.Value) {
			t.Fatalf("%q: %v", pair.Key, err)
		}
	}
	if n != len(got) || n < 52 {
		t.Errorf("%d keys in the backup, %d in the cluster", len(got), n)
	}
}

// again repeats what may fail because the machine is busy and nodes lose sight of
// each other.
func again(t *testing.T, c *flotillatest.Cluster, f func() error) {
	t.Helper()
	var noQuorum *flotilla.NoQuorumError
	var unavailable *flotilla.UnavailableError
	var err error
	for range 20 {
		if err = f(); err == nil {
			return
		}
		if !errors.As(err, &noQuorum) && !errors.As(err, &unavailable) && !errors.Is(err, flotilla.ErrAmbiguous) {
			break
		}
		c.AwaitLeaders()
	}
	t.Fatal(err)
}

// patient is Options.Retry by again.
func patient(c *flotillatest.Cluster) func(context.Context, func(context.Context) error) error {
	return func(ctx context.Context, f func(context.Context) error) (err error) {
		for range 20 {
			if err = f(ctx); err == nil || errors.Is(err, backup.ErrNotEmpty) {
				break
			}
			c.AwaitLeaders()
		}
		return err
	}
}

var intoMu sync.Mutex

// into is a map as the target of a restore.
type into map[string]string

func (m into) Empty(_ context.Context, _, _ []byte) (bool, error) { return len(m) == 0, nil }
func (m into) Clear(_ context.Context, _, _ []byte) error         { clear(m); return nil }
func (m into) Write(_ context.Context, pairs []backup.Pair) error {
	intoMu.Lock() // a restore writes several shards at a time
	defer intoMu.Unlock()
	for _, p := range pairs {
		m[string(p.Key)] = string(p.Value)
	}
	return nil
}

// memStore is a backup.Store in memory.
type memStore struct {
	mu      sync.Mutex
	objects map[string][]byte
}

func newMemory() *memStore { return &memStore{objects: map[string][]byte{}} }

func (m *memStore) String() string { return "memory" }

func (m *memStore) Put(_ context.Context, name string, data []byte) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.objects[name] = bytes.Clone(data)
	return nil
}

func (m *memStore) Get(_ context.Context, name string, _ int64) ([]byte, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if b, ok := m.objects[name]; ok {
		return b, nil
	}
	return nil, backup.ErrNoObject
}

func (m *memStore) Size(ctx context.Context, name string) (int64, error) {
	b, err := m.Get(ctx, name, 0)
	return int64(len(b)), err
}

func (m *memStore) List(_ context.Context, prefix string) (out []backup.Object, _ error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, name := range slices.Sorted(maps.Keys(m.objects)) {
		if strings.HasPrefix(name, prefix) {
			out = append(out, backup.Object{Name: name, Size: int64(len(m.objects[name]))})
		}
	}
	return out, nil
}

func (m *memStore) Delete(_ context.Context, name string) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	delete(m.objects, name)
	return nil
}
