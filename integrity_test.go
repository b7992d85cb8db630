package flotilla

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/flotillakv/flotilla/engine"
	"github.com/flotillakv/flotilla/internal/sim/simfs"
	"github.com/flotillakv/flotilla/multiraft"
	"github.com/flotillakv/flotilla/multiraft/raft"
)

// moody is a state machine that does not always do what the others do: of a put in
// keyspace 1 to a key with "!" in it, it changes the value while it is switched on.
type moody struct {
	multiraft.StateMachine
	on *atomic.Bool
}

func (m moody) Apply(b *engine.Batch, a *multiraft.ApplyContext) error {
	err := m.StateMachine.Apply(b, a)
	if err != nil || !m.on.Load() || a.Desc.Keyspace != 1 {
		return err
	}
	for _, c := range a.Entry.Commands() {
		if i := strings.IndexByte(string(c.Body), '!'); i > 0 {
			key := c.Body[i-1 : i+2]
			if val, ok, err := b.Get(a.Desc.Keyspace, key); err == nil && ok {
				wrong := append([]byte(nil), val...)
				wrong[len(wrong)-1] ^= 1
				b.Set(a.Desc.Keyspace, key, wrong)
			}
		}
	}
	return nil
}

// integrityCluster is three nodes that compare often.
type integrityCluster struct {
	nodes []*Node
	open  func(int) error
	disks [3]*simfs.FS
	moods [3]atomic.Bool

	mu     sync.Mutex
	events [3][]IntegrityEvent
}

func newIntegrityCluster(t *testing.T, with func(o *Options)) *integrityCluster {
	t.Helper()
	c := new(integrityCluster)
	for i := range c.disks {
		c.disks[i] = simfs.New()
	}
	c.nodes, c.open = openThree(t, func(i int) Options {
		o := Options{
			Dir: "/node", FS: c.disks[i], Shards: 1, Limits: Limits{Memory: 16 << 20}, Timing: Timing{Compare: 50 * time.Millisecond},
			Observer: Observer{OnIntegrity: func(e IntegrityEvent) {
				c.mu.Lock()
				defer c.mu.Unlock()
				c.events[i] = append(c.events[i], e)
			}},
			machine: func(m multiraft.StateMachine) multiraft.StateMachine { return moody{m, &c.moods[i]} },
		}
		if with != nil {
			with(&o)
		}
		return o
	})
	return c
}

// saw reports whether node i told of something.
func (c *integrityCluster) saw(i int, is func(e IntegrityEvent) bool) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, e := range c.events[i] {
		if is(e) {
			return true
		}
	}
	return false
}

// leadBy makes node i lead every shard.
func (c *integrityCluster) leadBy(t *testing.T, ctx context.Context, i int) {
	t.Helper()
	for _, v := range c.nodes[i].host.Views() {
		until(t, "the leadership moves", func() bool {
			v, _ := c.nodes[i].host.View(v.Shard)
			if !v.IsLeader {
				_ = c.nodes[i].TransferLeader(ctx, uint64(v.Shard), uint32(i+1))
			}
			return v.IsReady
		})
	}
}

// same waits until all nodes hold the same, and none is fenced.
func (c *integrityCluster) same(t *testing.T, ctx context.Context) {
	t.Helper()
	until(t, "all replicas are the same and serve", func() bool {
		for _, v := range c.nodes[0].host.Views() {
			at, want, err := c.nodes[0].LocalDigest(ctx, uint64(v.Shard))
			for _, n := range c.nodes {
				i, d, err2 := n.LocalDigest(ctx, uint64(v.Shard))
				if w, _ := n.host.View(v.Shard); err != nil || err2 != nil || w.Fenced != nil || i != at || d != want {
					return false
				}
			}
		}
		return true
	})
}

// TestMoodyMachine: one node's state machine does not do what the others' do. That is
// found when digests are compared, told by the leader and by the node, shown in the
// status, and repaired by itself; nothing that is read from the other replicas is
// ever wrong. So it is where that node leads, and after it was restarted in quarantine.
func TestMoodyMachine(t *testing.T) {
	for _, leader := range []int{0, 2} {
		t.Run(fmt.Sprintf("led by n%d", leader+1), func(t *testing.T) {
			ctx, cancel := context.WithTimeout(t.Context(), 3*time.Minute)
			defer cancel()
			c := newIntegrityCluster(t, nil)
			put := func(k, v string) {
				t.Helper()
				if _, err := c.nodes[0].Put(ctx, []byte(k), []byte(v)); err != nil {
					t.Fatal(err)
				}
			}
			for i := range 100 {
				put(fmt.Sprintf("k%02d", i), "v")
			}
			put("a!b", "right")
			c.leadBy(t, ctx, leader)
			c.same(t, ctx)

			var stop atomic.Bool
			var readers sync.WaitGroup
			for i := range 2 { // of the replicas that are well
				readers.Go(func() {
					for !stop.Load() {
						v, err := c.nodes[i].Get(ctx, []byte("a!b"), Local())
						if err == nil && string(v.Bytes) != "right" {
							t.Errorf("n%d reads %q", i+1, v.Bytes)
							return
						}
					}
				})
			}
			defer readers.Wait()
			defer stop.Store(true)
			c.moods[2].Store(true)
			put("a!b", "right")
			found := func(e IntegrityEvent) bool { return e.Node == 3 && errors.Is(e.Err, ErrDiverged) }
			until(t, "the replica is found", func() bool { return c.saw(2, found) })
			if leader == 0 && !c.saw(0, found) {
				t.Error("the leader tells nobody")
			}
			c.moods[2].Store(false)
			until(t, "the replica is rebuilt", func() bool {
				return c.saw(2, func(e IntegrityEvent) bool { return e.Node == 3 && e.Rebuilt && e.Err == nil })
			})
			c.same(t, ctx)
			for i, n := range c.nodes {
				for _, o := range []ReadOption{Linearizable(), Follower(), Local()} {
					if v, err := n.Get(ctx, []byte("a!b"), o); err != nil || string(v.Bytes) != "right" {
						t.Errorf("n%d reads %q, %v", i+1, v.Bytes, err)
					}
				}
			}
			if m := c.nodes[2].Metrics(); m.Host.Rebuilt == 0 || m.Host.Diverged == 0 {
				t.Errorf("counted %+v", m.Host)
			}
			for i := range 2 {
				if c.saw(i, func(e IntegrityEvent) bool { return e.Node != 3 }) {
					t.Errorf("n%d tells %+v", i+1, c.events[i])
				}
			}
			if _, err := c.nodes[0].Put(ctx, []byte("z"), nil); err != nil {
				t.Error(err)
			}
			c.same(t, ctx)
		})
	}
}

// TestQuarantineOutlivesRestart: a replica that was found out and not rebuilt yet is
// rebuilt after a restart of its node. (That it serves nothing until then: package
// multiraft, TestLeaderInTheMinority.)
func TestQuarantineOutlivesRestart(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), 3*time.Minute)
	defer cancel()
	c := newIntegrityCluster(t, nil)
	if _, err := c.nodes[0].Put(ctx, []byte("a!b"), []byte("right")); err != nil {
		t.Fatal(err)
	}
	var shard raft.ShardID
	for _, v := range c.nodes[2].host.Views() {
		if v.Desc.Keyspace == 1 {
			shard = v.Shard
		}
	}
	if err := c.nodes[2].Close(); err != nil {
		t.Fatal(err)
	}
	// As if it had crashed between the finding and the repair.
	e, err := engine.Open(engine.Options{Dir: "/node", FS: c.disks[2], Node: 3, OnFatal: func(error) {}})
	if err != nil {
		t.Fatal(err)
	}
	b := e.NewBatch()
	b.SetQuarantine(shard, engine.Quarantine{Why: engine.QuarantineDiffers, Index: 1})
	if err := errors.Join(b.Commit(true), b.Wait()); err != nil {
		t.Fatal(err)
	}
	b.Close()
	if err := e.Close(); err != nil {
		t.Fatal(err)
	}
	if err := c.open(2); err != nil {
		t.Fatal(err)
	}
	until(t, "the replica is rebuilt", func() bool { return c.saw(2, func(e IntegrityEvent) bool { return e.Rebuilt }) })
	c.same(t, ctx)
	if v, err := c.nodes[2].Get(ctx, []byte("a!b"), Local()); err != nil || string(v.Bytes) != "right" {
		t.Errorf("rebuilt, and serves %q, %v", v.Bytes, err)
	}
}

// flipTable flips a bit in the middle of the largest table of a disk.
func flipTable(fs *simfs.FS) (name string, ok bool) {
	names, err := fs.List("/node/db")
	if err != nil {
		return "", false
	}
	var most int64
	for _, n := range names {
		if info, err := fs.Stat("/node/db/" + n); err == nil && strings.HasSuffix(n, ".sst") && info.Size() > most {
			name, most = "/node/db/"+n, info.Size()
		}
	}
	return name, most > 256<<10 && fs.Flip(name, most*4)
}

func TestFlippedTable(t *testing.T) {
	for _, running := range []bool{true, false} {
		t.Run(map[bool]string{true: "running", false: "stopped"}[running], func(t *testing.T) {
			if err := checkFlippedTable(t, running); err != nil {
				t.Error(err)
			}
		})
	}
}

// checkFlippedTable flips a bit of a table of one node, which runs or does not. It is
// found, by a read, a compaction or the scrub; the replicas concerned are quarantined
// and rebuilt, by themselves, and the node goes on. Who reads meanwhile, at whatever
// replica, gets the right value or an error.
func checkFlippedTable(t *testing.T, running bool) error {
	ctx, cancel := context.WithTimeout(t.Context(), 3*time.Minute)
	defer cancel()
	var fatal atomic.Pointer[error]
	c := newIntegrityCluster(t, func(o *Options) {
		o.Shards, o.Timing.Scrub = 3, 20*time.Millisecond
		o.OnFatal = func(err error) { fatal.Store(&err) }
	})
	const keys = 1500
	key := func(i int) []byte { return fmt.Appendf(nil, "%c%05d", byte(i*37), i) }
	value := func(i int) string { return strings.Repeat(fmt.Sprintf("%08d", i*i), 512) }
	var writers sync.WaitGroup
	var failed atomic.Pointer[error]
	for w := range 8 {
		writers.Go(func() {
			for i := w; i < keys; i += 8 {
				if _, err := c.nodes[0].Put(ctx, key(i), []byte(value(i))); err != nil {
					failed.Store(&err)
				}
			}
		})
	}
	if writers.Wait(); failed.Load() != nil {
		return *failed.Load()
	}
	c.same(t, ctx)
	var stop atomic.Bool
	var readers sync.WaitGroup
	wrong := make(chan error, 16)
	var served [3]atomic.Int64
	read := func(node, i int, o ReadOption) {
		c.mu.Lock()
		n := c.nodes[node]
		c.mu.Unlock()
		v, err := n.Get(ctx, key(i), o)
		switch {
		case err == nil && string(v.Bytes) == value(i):
			served[node].Add(1)
		case err == nil, errors.Is(err, ErrNotFound):
			select {
			case wrong <- fmt.Errorf("n%d reads key %d: %.20q, %v", node+1, i, v.Bytes, err):
			default:
			}
		}
	}
	if !running {
		if err := c.nodes[2].Close(); err != nil {
			return err
		}
	}
	file, ok := flipTable(c.disks[2])
	if !ok {
		return fmt.Errorf("no table large enough (%s)", file)
	}
	if !running {
		if err := c.open(2); err != nil {
			return err
		}
	}
	for node := range 3 {
		readers.Go(func() {
			for i := 0; !stop.Load(); i++ {
				read(node, i%keys, []ReadOption{Local(), Follower(), Linearizable()}[i%3])
			}
		})
	}
	defer readers.Wait()
	defer stop.Store(true)
	ended := func(is func(e IntegrityEvent) bool) bool {
		return c.saw(2, is) || fatal.Load() != nil || len(wrong) > 0
	}
	until(t, "the damage is found", func() bool {
		return ended(func(e IntegrityEvent) bool { return e.Node == 3 && errors.Is(e.Err, ErrDiverged) })
	})
	until(t, "a replica is rebuilt", func() bool { return ended(func(e IntegrityEvent) bool { return e.Node == 3 && e.Rebuilt }) })
	if p := fatal.Load(); p != nil {
		return fmt.Errorf("a node stopped: %w", *p)
	}
	if len(wrong) > 0 {
		return <-wrong
	}
	c.same(t, ctx)
	stop.Store(true)
	readers.Wait()
	for i := range keys {
		for node := range 3 {
			read(node, i, Local())
		}
	}
	if len(wrong) > 0 {
		return <-wrong
	}
	for i := range served {
		if served[i].Load() < keys {
			return fmt.Errorf("n%d served %d reads", i+1, served[i].Load())
		}
	}
	for i := range 2 {
		if c.saw(i, func(e IntegrityEvent) bool { return e.Node != 3 }) {
			return fmt.Errorf("n%d tells %+v", i+1, c.events[i])
		}
	}
	return nil
}
