package flotilla

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/flotillakv/flotilla/internal/filemachine"
	"github.com/flotillakv/flotilla/internal/sim/simfs"
	"github.com/flotillakv/flotilla/multiraft/raft"
)

// machineCluster is three nodes whose user shards are served by machines with files on
// the same disk as the node's.
type machineCluster struct {
	t        *testing.T
	nodes    []*Node
	open     func(int) error
	disks    [3]*simfs.FS
	machines [3]*filemachine.Machine
	rebuilt  atomic.Int32
	spoilt   atomic.Bool // one is, and may be found
}

func newMachineCluster(t *testing.T, shards int) *machineCluster {
	t.Helper()
	c := &machineCluster{t: t}
	for i := range c.disks {
		c.disks[i] = simfs.New()
	}
	c.nodes, c.open = openThree(t, func(i int) Options {
		m, err := filemachine.New(c.disks[i], "/machine", i == 1)
		if err != nil {
			t.Error(err)
		}
		c.machines[i] = m
		return Options{
			Dir: "/node", FS: c.disks[i], Shards: shards, Machine: ExternalMachine(m), Limits: Limits{Memory: 16 << 20, Log: 16 << 20, LogKeep: 4 << 10},
			Timing:     Timing{Heartbeat: 50 * time.Millisecond, Support: 1500 * time.Millisecond, Compare: 50 * time.Millisecond},
			Compaction: Compaction{Entries: 20, Bytes: 64 << 10, Idle: 50 * time.Millisecond},
			Observer: Observer{OnIntegrity: func(e IntegrityEvent) {
				if e.Rebuilt {
					c.rebuilt.Add(1)
				} else if !strings.Contains(fmt.Sprint(e.Err), "has lost what it had") && !(c.spoilt.Load() && e.Node == 1) {
					t.Errorf("n%d: %+v", i+1, e)
				}
			}},
		}
	})
	return c
}

// kill stops a node as a crash does: of what its store and its machine had not synced,
// mode says what is left.
func (c *machineCluster) kill(i int, mode simfs.Mode, seed uint64) {
	left := c.disks[i].Crash(mode, seed)
	_ = c.nodes[i].Kill()
	c.disks[i] = left
}

// same waits until the machines have the same in all shards of the user.
func (c *machineCluster) same() {
	c.t.Helper()
	until(c.t, "the machines are the same", func() bool {
		for _, v := range c.nodes[0].host.Views() {
			if v.Desc.Keyspace != userKeyspace {
				continue
			}
			want := c.machines[0].Sum(v.Shard)
			for i, n := range c.nodes {
				w, ok := n.host.View(v.Shard)
				if !ok || c.machines[i].Sum(v.Shard) != want || w.Fenced != nil || w.Applied != v.Last {
					return false
				}
			}
		}
		return true
	})
}

// words returns what the machine of node i has under key.
func (c *machineCluster) words(ctx context.Context, i int, key string) map[string]int {
	c.t.Helper()
	b, err := c.nodes[i].Query(ctx, []byte(key), nil)
	if err != nil {
		c.t.Fatal(err)
	}
	out := map[string]int{}
	for _, w := range strings.Fields(string(b)) {
		out[w]++
	}
	return out
}

// TestMachine: what a machine outside of the store is for, and what it is not for.
func TestMachine(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	c := newMachineCluster(t, 2)
	for i := range 60 {
		key := fmt.Appendf(nil, "%c", "az"[i%2])
		out, r, err := c.nodes[i%3].Propose(ctx, key, fmt.Appendf(nil, "w%d", i))
		if err != nil || string(out) != fmt.Sprint(i/2+1) || r.Index == 0 {
			t.Fatalf("%d: %q, %+v, %v", i, out, r, err)
		}
		if b, err := c.nodes[(i+1)%3].Query(ctx, key, nil); err != nil || !strings.HasSuffix(string(b), fmt.Sprintf("w%d", i)) {
			t.Fatalf("query behind %d: %q, %v", i, b, err)
		}
	}
	var refused *MachineError
	if _, _, err := c.nodes[1].Propose(ctx, []byte("a"), []byte(filemachine.Refuse)); !errors.As(err, &refused) || refused.Text != "refuse is refused" {
		t.Errorf("refused: %v", err)
	}
	var arg *ArgumentError
	for what, f := range map[string]func() error{
		"put":  func() error { _, err := c.nodes[0].Put(ctx, []byte("a"), nil); return err },
		"get":  func() error { _, err := c.nodes[0].Get(ctx, []byte("a")); return err },
		"near": func() error { _, err := c.nodes[1].Get(ctx, []byte("a"), Local()); return err },
		"scan": func() error {
			for _, err := range c.nodes[0].Scan(ctx, Range{}) {
				return err
			}
			return nil
		},
		"no key": func() error { _, err := c.nodes[0].Query(ctx, nil, nil); return err },
		"backup": func() error {
			id, err := c.nodes[0].space.Shard(ctx, []byte("a"))
			if err == nil {
				_, err = c.nodes[0].openCut(ctx, uint64(id))
			}
			return err
		},
	} {
		if err := f(); !errors.As(err, &arg) {
			t.Errorf("%s: %v", what, err)
		}
	}
	c.same()

	// The logs are cut when the machines have synced, and on demand.
	id, err := c.nodes[0].space.Shard(ctx, []byte("a"))
	if err != nil {
		t.Fatal(err)
	}
	v, _ := c.nodes[2].host.View(id)
	if at, err := c.nodes[2].SyncMachine(ctx, uint64(id)); err != nil || at < v.Applied {
		t.Errorf("synced through %d of %d: %v", at, v.Applied, err)
	}
	if _, err := c.nodes[2].SyncMachine(ctx, 99999); !errors.Is(err, ErrNotFound) {
		t.Errorf("of no shard: %v", err)
	}
	if _, err := c.nodes[2].SyncMachine(ctx, uint64(raft.MetaShard)); err == nil {
		t.Error("the catalog is in the store")
	}
	until(t, "the logs are cut", func() bool {
		for _, n := range c.nodes {
			n.eng.ReclaimLog()
			if st, ok, err := n.eng.Load(id); err != nil || !ok || st.Applied.TruncIndex < v.Applied {
				return false
			}
		}
		return true
	})

	// A machine that has lost its files, while its node was down.
	if err := c.nodes[2].Close(); err != nil {
		t.Fatal(err)
	}
	if err := c.disks[2].RemoveAll("/machine"); err != nil {
		t.Fatal(err)
	}
	if err := c.open(2); err != nil {
		t.Fatal(err)
	}
	until(t, "both shards of n3 are rebuilt", func() bool { return c.rebuilt.Load() == 2 })
	c.same()

	// One that was away for longer than the log goes back.
	if err := c.nodes[1].Close(); err != nil {
		t.Fatal(err)
	}
	for i := range 100 {
		if _, _, err := c.nodes[0].Propose(ctx, []byte("a"), fmt.Appendf(nil, "x%d-%s", i, strings.Repeat("x", 2<<10))); err != nil {
			t.Fatal(err)
		}
	}
	until(t, "the log is cut", func() bool {
		c.nodes[0].eng.ReclaimLog()
		c.nodes[2].eng.ReclaimLog()
		return c.nodes[0].eng.LogSize(id) < 100<<10 && c.nodes[2].eng.LogSize(id) < 100<<10
	})
	if err := c.open(1); err != nil {
		t.Fatal(err)
	}
	c.same()
	if got := c.words(ctx, 1, "a"); len(got) != 130 {
		t.Errorf("%d words", len(got))
	}

	// One that does not have what the others have.
	c.spoilt.Store(true)
	c.machines[0].Spoil(id, "a", "wrong")
	if _, _, err := c.nodes[2].Propose(ctx, []byte("a"), []byte("right")); err != nil {
		t.Fatal(err)
	}
	until(t, "the shard of n1 is rebuilt", func() bool { return c.rebuilt.Load() == 3 })
	c.same()
	if got := c.words(ctx, 0, "a"); len(got) != 131 || got["wrong"] != 0 {
		t.Errorf("%d words, %d of them wrong", len(got), got["wrong"])
	}
}

// TestNoMachine: without a machine, and with one that is none, the calls say so.
func TestNoMachine(t *testing.T) {
	ctx := testContext(t)
	var bad *OptionError
	if _, err := Open(ctx, Options{InMemory: true, Machine: ExternalMachine(nil)}); !errors.As(err, &bad) || bad.Field != "Machine" {
		t.Errorf("no machine at all: %v", err)
	}
	n, err := Open(ctx, Options{InMemory: true})
	if err != nil {
		t.Fatal(err)
	}
	defer n.Close()
	var arg *ArgumentError
	for what, f := range map[string]func() error{
		"propose": func() error { _, _, err := n.Propose(ctx, []byte("k"), []byte("c")); return err },
		"query":   func() error { _, err := n.Query(ctx, []byte("k"), nil); return err },
		"sync":    func() error { _, err := n.SyncMachine(ctx, 2); return err },
	} {
		if err := f(); !errors.As(err, &arg) {
			t.Errorf("%s: %v", what, err)
		}
	}
	if _, err := n.Put(ctx, []byte("k"), []byte("v")); err != nil {
		t.Errorf("the key-value store goes on: %v", err)
	}
}

// TestMachineKilled: nodes are killed again and again, in the middle of syncs and loads
// too, while clients with and without sessions write. Nothing that was acknowledged is lost,
// nothing comes twice, and the machines are the same at the end.
func TestMachineKilled(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), 4*time.Minute)
	defer cancel()
	const seed = 1
	rng := rand.New(rand.NewPCG(seed, 0))
	c := newMachineCluster(t, 2)
	var stop atomic.Bool
	var writers sync.WaitGroup
	var mu sync.Mutex
	type write struct {
		key, word      string
		certain, maybe bool
	}
	var all []write
	for w := range 4 {
		client, err := Dial(ctx, []string{"n1", "n2", "n3"}, ClientOptions{Network: c.nodes[0].o.Network})
		if err != nil {
			t.Fatal(err)
		}
		defer client.Close()
		propose := client.Propose
		if w%2 == 0 {
			s, err := client.NewSession(SessionOptions{})
			if err != nil {
				t.Fatal(err)
			}
			propose = s.Propose
		}
		writers.Go(func() {
			for i := 0; !stop.Load() && ctx.Err() == nil; i++ {
				x := write{key: string("az"[i%2]), word: fmt.Sprintf("w%d-%d", w, i)}
				call, done := context.WithTimeout(ctx, 10*time.Second)
				_, _, err := propose(call, []byte(x.key), []byte(x.word))
				done()
				x.certain, x.maybe = Outcome(err) == Applied, Outcome(err) == MaybeApplied
				mu.Lock()
				all = append(all, x)
				mu.Unlock()
			}
		})
	}
	written := func() int {
		mu.Lock()
		defer mu.Unlock()
		return len(all)
	}
	kills := 9
	if testing.Short() {
		kills = 3
	}
	modes := []simfs.Mode{simfs.All, simfs.None, simfs.Prefix}
	steps := []string{"", "sync", "sync.rename", "load.rename", "apply"}
	for k := range kills {
		i, step, n := rng.IntN(3), steps[k%len(steps)], written()
		if step != "" && step != "load.rename" { // in the middle of it
			var once sync.Once
			var frozen *simfs.FS
			at := make(chan struct{})
			hook := func(s string, _ raft.ShardID) error {
				if s == step {
					once.Do(func() { frozen = c.disks[i].Crash(modes[k%3], uint64(k)); close(at) })
				}
				return nil
			}
			c.machines[i].SetHook(hook)
			select {
			case <-at:
			case <-time.After(20 * time.Second):
				t.Fatalf("kill %d: no %s", k, step)
			}
			_ = c.nodes[i].Kill()
			c.disks[i] = frozen
		} else {
			until(t, "some writes", func() bool { return written() > n+30 })
			c.kill(i, modes[k%3], uint64(k))
		}
		n = written()
		until(t, "some writes without it", func() bool { return written() > n+50 })
		until(t, "it is back", func() bool { return c.open(i) == nil })
	}
	n := written()
	until(t, "some writes at the end", func() bool { return written() > n+30 })
	stop.Store(true)
	writers.Wait()
	c.same()
	for i := range c.nodes {
		got := map[string]map[string]int{"a": c.words(ctx, i, "a"), "z": c.words(ctx, i, "z")}
		total := 0
		for _, x := range all {
			n := got[x.key][x.word]
			total += n
			if n > 1 || n == 0 && x.certain || n == 1 && !x.certain && !x.maybe {
				t.Errorf("n%d: %+v is there %d times", i+1, x, n)
			}
		}
		if total != len(got["a"])+len(got["z"]) {
			t.Errorf("n%d: %d words of %d were written", i+1, total, len(got["a"])+len(got["z"]))
		}
	}
	if n := c.rebuilt.Load(); n != 0 {
		t.Errorf("%d replicas were rebuilt: a machine had lost what it had synced", n)
	}
	t.Logf("%d writes", len(all))
}

// TestMachineDoesNotSync: a machine that cannot make its state durable fills the logs, and
// then writes are refused with a sentence that says why; they go on when it can.
func TestMachineDoesNotSync(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	fs := simfs.New()
	m, err := filemachine.New(fs, "/machine", false)
	if err != nil {
		t.Fatal(err)
	}
	var broken atomic.Bool
	broken.Store(true)
	m.SetHook(func(step string, _ raft.ShardID) error {
		if step == "sync" && broken.Load() {
			return errors.New("the machine's disk is full")
		}
		return nil
	})
	n, err := Open(ctx, Options{Dir: "/node", FS: fs, InMemory: true, Machine: ExternalMachine(m), Limits: Limits{Memory: 16 << 20, Log: 16 << 20},
		Compaction: Compaction{Idle: 50 * time.Millisecond}})
	if err != nil {
		t.Fatal(err)
	}
	defer n.Close()
	big := strings.Repeat("x", 256<<10)
	refused := func() (err error) {
		for i := range 400 {
			if _, _, err = n.Propose(ctx, []byte("k"), fmt.Appendf(nil, "%d%s", i, big)); errors.Is(err, ErrLogBudget) {
				return err
			}
		}
		return err
	}()
	if !errors.Is(refused, ErrLogBudget) || !strings.Contains(refused.Error(), "the state machine of shard") || !strings.Contains(refused.Error(), "the machine's disk is full") {
		t.Fatalf("refused with: %v", refused)
	}
	var unsynced *UnsyncedError
	if Outcome(refused) != NotApplied || !errors.As(refused, &unsynced) || unsynced.Since.IsZero() {
		t.Errorf("not typed: %#v", refused)
	}
	broken.Store(false)
	until(t, "writes go on", func() bool {
		_, _, err := n.Propose(ctx, []byte("k"), []byte("again"))
		return err == nil
	})
}
