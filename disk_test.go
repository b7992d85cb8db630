package flotilla

import (
	"errors"
	"fmt"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"

	"github.com/flotillakv/flotilla/internal/sim/simfs"
	"github.com/flotillakv/flotilla/multiraft/raft"
)

// crowdedFS is a file system in memory whose space others can take.
type crowdedFS struct {
	*simfs.FS
	total, others atomic.Int64
}

func newCrowdedFS() *crowdedFS {
	f := &crowdedFS{FS: simfs.New()}
	f.total.Store(100 << 30)
	return f
}

func (f *crowdedFS) GetDiskUsage(string) (vfs.DiskUsage, error) {
	used := min(f.Used()+f.others.Load(), f.total.Load())
	return vfs.DiskUsage{AvailBytes: uint64(f.total.Load() - used), TotalBytes: uint64(f.total.Load()), UsedBytes: uint64(used)}, nil
}

// fill leaves so many percent of the space free.
func (f *crowdedFS) fill(free int64) {
	f.others.Store(f.total.Load()/100*(100-free) - f.Used())
}

// diskCluster is three nodes with such file systems.
type diskCluster struct {
	nodes []*Node
	disks [3]*crowdedFS

	mu     sync.Mutex
	events [3][]DiskEvent
}

func newDiskCluster(t *testing.T, shards int, timing Timing) *diskCluster {
	t.Helper()
	c := new(diskCluster)
	for i := range c.disks {
		c.disks[i] = newCrowdedFS()
	}
	c.nodes, _ = openThree(t, func(i int) Options {
		return Options{
			Dir: "/node", FS: c.disks[i], Shards: shards, Limits: Limits{Memory: 16 << 20, Ballast: 1 << 20}, Timing: timing,
			Observer: Observer{OnDisk: func(e DiskEvent) {
				c.mu.Lock()
				defer c.mu.Unlock()
				c.events[i] = append(c.events[i], e)
			}},
			OnFatal: func(err error) { t.Errorf("node %d: %v", i+1, err) },
		}
	})
	return c
}

func (c *diskCluster) eventsOf(i int) []DiskEvent {
	c.mu.Lock()
	defer c.mu.Unlock()
	return append([]DiskEvent(nil), c.events[i]...)
}

// until waits for a condition.
func until(t *testing.T, what string, f func() bool) {
	t.Helper()
	end := time.Now().Add(time.Minute)
	for tick := time.NewTicker(5 * time.Millisecond); ; <-tick.C {
		if f() {
			tick.Stop()
			return
		}
		if time.Now().After(end) {
			t.Fatalf("waited in vain for: %s", what)
		}
	}
}

// TestDiskFull: the disks of a majority fill up. Writes that add data are refused
// by every node, before anything is proposed, with an error that names the nodes;
// deletes, reads, administration and writes to the catalog go on; the states show in
// status, metrics and events; when space returns so do writes; nothing that was
// acknowledged is lost, and nothing that was refused is there.
func TestDiskFull(t *testing.T) {
	c := newDiskCluster(t, 4, Timing{Heartbeat: 100 * time.Millisecond, Support: time.Second})
	ctx := t.Context()
	kv := c.nodes[0]
	key := func(i int) []byte { return fmt.Appendf([]byte{byte(i * 64)}, "key%d", i) }
	for i := range 4 {
		if _, err := kv.Put(ctx, key(i), []byte("old")); err != nil {
			t.Fatal(err)
		}
	}
	c.disks[1].fill(7)
	c.disks[2].fill(7)
	until(t, "writes are refused for every shard", func() bool {
		for _, n := range c.nodes { // leaderships may move meanwhile
			if full, _ := n.fullNodes(&raft.Descriptor{Replicas: []raft.Replica{{Node: 1, Role: raft.Voter}, {Node: 2, Role: raft.Voter}, {Node: 3, Role: raft.Voter}}}); len(full) != 2 || !n.disk.tight.Load() {
				return false
			}
		}
		for i := range 4 {
			var full *DiskFullError
			if _, err := kv.Put(ctx, key(i), []byte("old")); !errors.As(err, &full) || len(full.Nodes) < 2 {
				return false
			}
		}
		return true
	})
	growing := map[string]func(KV, []byte) error{
		"put": func(kv KV, k []byte) error { _, err := kv.Put(ctx, k, []byte("new")); return err },
		"cas": func(kv KV, k []byte) error {
			_, err := kv.CAS(ctx, append(k, 'x'), Version{}, []byte("new"))
			return err
		},
		"batch": func(kv KV, k []byte) error {
			b := new(Batch)
			b.Delete(k)
			b.Put(append(k, 'x'), []byte("new"))
			_, err := kv.Write(ctx, b)
			return err
		},
		"txn": func(kv KV, k []byte) error {
			_, err := kv.Txn(ctx, Txn{Else: []Op{PutOp(append(k, 'x'), []byte("new"))}})
			return err
		},
	}
	for name, grow := range growing {
		for i := range 4 {
			for _, n := range c.nodes {
				err := grow(n, key(i))
				var full *DiskFullError
				if !errors.As(err, &full) || Outcome(err) != NotApplied || fmt.Sprint(full.Nodes) != "[2 3]" || !strings.Contains(err.Error(), "node 2, 3;") {
					t.Fatalf("%s of shard %d at n%d on full disks: %v", name, i, n.ID(), err)
				}
			}
		}
	}
	refused := func() (sum uint64) {
		for _, n := range c.nodes {
			sum += n.Metrics().Disk.Refused
		}
		return sum
	}
	before := refused()
	if before < uint64(len(growing)*4*len(c.nodes)) {
		t.Fatalf("%d writes were counted as refused", before)
	}
	if _, err := kv.Delete(ctx, key(0)); err != nil {
		t.Fatalf("delete on full disks: %v", err)
	}
	b := new(Batch)
	b.Delete(key(1))
	if _, err := kv.Write(ctx, b); err != nil {
		t.Fatalf("batch of deletes on full disks: %v", err)
	}
	if _, err := kv.Txn(ctx, Txn{Then: []Op{DeleteOp(key(2))}}); err != nil {
		t.Fatalf("transaction with a delete on full disks: %v", err)
	}
	if _, err := kv.DeleteRange(ctx, Range{Start: key(2), End: append(key(2), 0)}); err != nil {
		t.Fatalf("range delete on full disks: %v", err)
	}
	if n := refused(); n != before {
		t.Fatalf("%d deletes were counted as refused", n-before)
	}
	if v, err := kv.Get(ctx, key(3)); err != nil || string(v.Bytes) != "old" {
		t.Fatalf("read on full disks: %v %v", v, err)
	}
	s, err := kv.Status(ctx)
	if err != nil || s.State != "DEGRADED" || len(s.Warnings) != 2 || !strings.HasPrefix(s.Warnings[0], "the disk of n2 is full (") {
		t.Fatalf("status: %+v, %v", s, err)
	}
	if m := c.nodes[1].Metrics().Disk; m.Space.State.String() != "full" {
		t.Fatalf("metrics of n2: %+v", m)
	}
	if ev := c.eventsOf(1); len(ev) != 1 || ev[0].State != "full" || c.eventsOf(0) != nil {
		t.Fatalf("events of n2: %+v, of n1: %+v", ev, c.eventsOf(0))
	}

	// n3 gets space again: a majority has it, and the shards of n2 move.
	c.disks[2].fill(50)
	until(t, "all shards take writes, led by nodes with space", func() bool {
		for i := range 4 {
			if _, err := kv.Put(ctx, key(i), []byte("again")); err != nil {
				if !errors.Is(err, ErrDiskFull) {
					t.Fatal(err)
				}
				return false
			}
		}
		return c.nodes[1].Metrics().Leaders == 0
	})
	if s, err = kv.Status(ctx); err != nil || len(s.Warnings) != 1 {
		t.Fatalf("status: %+v, %v", s, err)
	}
	c.disks[1].fill(50)
	until(t, "the cluster is well", func() bool {
		s, err := kv.Status(ctx)
		return err == nil && s.State == "HEALTHY" && len(s.Warnings) == 0
	})
	for i := range 4 {
		if v, err := kv.Get(ctx, key(i)); err != nil || string(v.Bytes) != "again" {
			t.Errorf("shard %d: %q %v", i, v.Bytes, err)
		}
		if v, err := kv.Get(ctx, append(key(i), 'x')); !errors.Is(err, ErrNotFound) {
			t.Errorf("shard %d: what was refused is there: %q %v", i, v.Bytes, err)
		}
	}
	if ev := c.eventsOf(1); len(ev) != 2 || ev[1].State != "ok" {
		t.Errorf("events of n2: %+v", ev)
	}
}

// TestDiskLimit: a node alone writes until its limit. It never takes more than
// that; what was acknowledged is there, after a restart too, which finds the disk
// full; and deletes make space for writes.
func TestDiskLimit(t *testing.T) {
	fs := simfs.New()
	o := Options{InMemory: true, Dir: "/node", FS: fs, Limits: Limits{Memory: 16 << 20, Disk: 96 << 20},
		OnFatal: func(err error) { t.Errorf("the node stopped: %v", err) }}
	n, err := Open(t.Context(), o)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { n.Close() }()
	val := make([]byte, 256<<10)
	for i := range val {
		val[i] = byte(i * i >> 3)
	}
	key := func(i int) []byte { return fmt.Appendf(nil, "key%05d", i) }
	put := func(i int) error { _, err := n.Put(t.Context(), key(i), val); return err }
	most, acked := int64(0), 0
	for ; ; acked++ {
		err := put(acked)
		if most = max(most, fs.Used()); errors.Is(err, ErrDiskFull) {
			break
		}
		if err != nil || acked > 4000 {
			t.Fatalf("write %d: %v", acked, err)
		}
	}
	if most > o.Limits.Disk {
		t.Fatalf("%d bytes taken, the limit is %d", most, o.Limits.Disk)
	}
	t.Logf("%d writes of 256 KiB; %d MiB of %d taken at most", acked, most>>20, o.Limits.Disk>>20)
	if err := n.Close(); err != nil {
		t.Fatal(err)
	}
	if n, err = Open(t.Context(), o); err != nil {
		t.Fatalf("restart on a full disk: %v", err)
	}
	for i := range acked {
		if _, err := n.Get(t.Context(), key(i)); err != nil {
			t.Fatalf("acknowledged write %d of %d: %v", i, acked, err)
		}
	}
	if err := put(acked); err != nil && !errors.Is(err, ErrDiskFull) {
		t.Fatal(err)
	}
	if _, err := n.DeleteRange(t.Context(), Range{}); err != nil {
		t.Fatalf("delete everything: %v", err)
	}
	until(t, "space is back", func() bool { return put(0) == nil })
	if fs.Used() > o.Limits.Disk {
		t.Errorf("%d bytes taken in the end", fs.Used())
	}
}
