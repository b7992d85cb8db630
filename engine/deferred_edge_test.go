package engine

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"

	"github.com/cockroachdb/pebble/v2"
	"github.com/cockroachdb/pebble/v2/vfs"

	"github.com/flotillakv/flotilla/internal/sim/simfs"
	"github.com/flotillakv/flotilla/multiraft/raft"
)

// edgeEngine keeps all it is given in memory.
func edgeEngine(t *testing.T, fs FS) *Engine {
	return deferredEngine(t, fs, func(o *Options) {
		o.MemTableBytes, o.DeferBytes, o.DeferLogBytes = 64<<20, 256<<20, 1<<30
	})
}

func edgeDesc(s raft.ShardID) *raft.Descriptor {
	return &raft.Descriptor{
		Shard: s, Keyspace: 1, Start: fmt.Appendf(nil, "%03d", s), End: fmt.Appendf(nil, "%03d", s+1),
		ConfVer: 1, Version: 1, NextReplica: 2, Replicas: []raft.Replica{{Node: 1, ID: 1, Role: raft.Voter}},
	}
}

// TestDeferredValueSizes: values about as large as a piece of memory come back.
func TestDeferredValueSizes(t *testing.T) {
	e := edgeEngine(t, NewMemFS())
	writeClean(t, e, func(b *Batch) {
		for i := range 3 { // the table is not small any more
			b.Set(1, fmt.Appendf(nil, "fill%d", i), make([]byte, 700<<10))
		}
	})
	val := []byte(strings.Repeat("v", tableChunk))
	for n := tableChunk - 80; n <= tableChunk; n++ {
		key := fmt.Appendf(nil, "k%07d", n)
		writeClean(t, e, func(b *Batch) { b.Set(1, key, val[:n]) })
		if got, ok, err := e.Get(1, key, nil); err != nil || !ok || len(got) != n {
			t.Fatalf("%d bytes came back as %d: %v %v", n, len(got), ok, err)
		}
	}
}

// TestViewsOfDescriptors: a view taken while the descriptor of its group goes to
// Pebble, with the whole group, is of one moment.
func TestViewsOfDescriptors(t *testing.T) {
	e := edgeEngine(t, NewMemFS())
	d := edgeDesc(1)
	writeClean(t, e, func(b *Batch) {
		b.SetDescriptor(d)
		b.SetApplied(1, raft.AppliedState{})
	})
	seen := d.Clone()
	done := make(chan error, 1)
	go func() {
		for i := 1; i <= 3000; i++ {
			b := e.NewBatch()
			b.Set(1, fmt.Appendf(nil, "001/%06d", i), []byte("v"))
			if i%2 == 0 {
				d.ConfVer++
				b.SetDescriptor(d)
			}
			b.SetApplied(1, raft.AppliedState{Applied: raft.Index(i), AppliedTerm: 1})
			err := b.Commit(false)
			b.Close()
			if err != nil {
				done <- err
				return
			}
		}
		done <- nil
	}()
	views := 0
	for ; ; views++ {
		select {
		case err := <-done:
			must(t, err)
			if views < 5 {
				t.Errorf("only %d views", views)
			}
			return
		default:
		}
		v, err := e.View(&seen)
		must(t, err)
		it, err := v.Iter(ViewData)
		must(t, err)
		last := 0
		if it.Last() {
			_, err := fmt.Sscanf(string(it.Key()), "001/%d", &last)
			must(t, err)
		}
		must(t, it.Close())
		if i := int(v.Applied().Applied); last != i || int(v.Desc().ConfVer) != 1+i/2 {
			t.Fatalf("applied through %d, data through %d, descriptor %d", i, last, v.Desc().ConfVer)
		}
		must(t, v.Close())
	}
}

// TestFlushOnFullDisk: nobody waits for room on the disk but those who write: a view
// says so, and Close leaves what is in memory to the log.
func TestFlushOnFullDisk(t *testing.T) {
	fs := simfs.New()
	o := crashOptions(fs)
	o.MemTableBytes, o.DeferBytes, o.DeferLogBytes = 16<<20, 64<<20, 1<<30
	e, err := Open(o)
	must(t, err)
	d := edgeDesc(1)
	write := func(from, n int) {
		b := e.NewBatch()
		if from == 0 {
			b.SetDescriptor(d)
		}
		for i := range n {
			b.Set(1, fmt.Appendf(nil, "001/%06d", from+i), incompressible(30000, uint64(from+i)))
		}
		b.SetApplied(1, raft.AppliedState{})
		must(t, b.Commit(false))
		b.Close()
	}
	write(0, 300)
	must(t, e.Flush())
	write(400, 60)
	fs.SetSpace(used(t, fs, o.Dir) + 256<<10)
	if v, err := e.View(d); !errors.Is(err, syscall.ENOSPC) {
		t.Errorf("view of a large group: %v %v", v, err)
	}
	must(t, e.Close())
}

func incompressible(n int, seed uint64) []byte {
	b := make([]byte, n)
	x := seed*0x9e3779b97f4a7c15 + 1
	for i := range b {
		x ^= x << 13
		x ^= x >> 7
		x ^= x << 17
		b[i] = byte(x)
	}
	return b
}

// TestTakeNothing: who takes nothing out of a table does not make its flush begin
// again, and one that has to begin again too often is left alone.
func TestTakeNothing(t *testing.T) {
	e := edgeEngine(t, NewMemFS())
	for s := range raft.ShardID(2) {
		writeClean(t, e, func(b *Batch) {
			b.SetDescriptor(edgeDesc(s))
			b.SetApplied(s, raft.AppliedState{})
		})
	}
	writeClean(t, e, func(b *Batch) { b.Set(1, []byte("000/x"), []byte("v")) })
	table := e.def.mem
	describe := func(s raft.ShardID) int {
		writeClean(t, e, func(b *Batch) { b.SetDescriptor(edgeDesc(s)) })
		return table.taken
	}
	if n := describe(1); n != 0 {
		t.Errorf("a group of which nothing is in memory took something out %d times", n)
	}
	if n := describe(0); n != 1 {
		t.Errorf("a group of which something is in memory took something out %d times", n)
	}
	if n := describe(0); n != 1 {
		t.Errorf("what was taken is taken again (%d)", n)
	}
}

// gateFS holds up whoever makes a table of the database, or has no room for it.
type gateFS struct {
	FS
	full    atomic.Bool
	shut    atomic.Bool
	arrived chan struct{} // one for each table held up
	open    chan struct{}
}

func (g *gateFS) Create(name string, c vfs.DiskWriteCategory) (vfs.File, error) {
	if strings.HasSuffix(name, ".sst") && g.PathBase(g.PathDir(name)) == dbName {
		if g.full.Load() {
			return nil, syscall.ENOSPC
		}
		if g.shut.Load() {
			g.arrived <- struct{}{}
			<-g.open
		}
	}
	return g.FS.Create(name, c)
}

// TestCommitDuringFlush: commits go on while a flush waits for a memtable with writes
// that went past it. Were the tables ingested at once, Pebble would wait for that
// memtable in the midst of its commits.
func TestCommitDuringFlush(t *testing.T) {
	fs := &gateFS{FS: NewMemFS(), arrived: make(chan struct{}, 16), open: make(chan struct{})}
	e := deferredEngine(t, fs, func(o *Options) {
		o.tune = func(p *pebble.Options) {
			p.Experimental.DisableIngestAsFlushable = func() bool { return true } // as if many memtables were full
		}
	})
	d := testDesc(7)
	commit := func() {
		b := e.NewBatch()
		defer b.Close()
		b.Set(d.Keyspace, append(slices.Clone(d.Start), 'x'), []byte("v"))
		b.Append(d.Shard, 0, []raft.Entry{entry(1, 1)})
		must(t, b.Commit(false))
	}
	b := e.NewBatch()
	b.SetDescriptor(&d)
	must(t, b.Commit(false))
	b.Close()
	commit()
	fs.shut.Store(true)
	flushed := e.startFlush()
	<-fs.arrived
	commit()
	select {
	case <-flushed:
		t.Error("the flush did not wait for the memtable")
	default:
	}
	close(fs.open)
	<-flushed
	if v, ok, err := e.Get(d.Keyspace, append(slices.Clone(d.Start), 'x'), nil); err != nil || !ok || string(v) != "v" {
		t.Errorf("%q %v %v", v, ok, err)
	}
}

// TestFlushThroughOnFullDisk: nobody waits for ever for a memtable for which there is no
// room, and the flush is made up for when there is some.
func TestFlushThroughOnFullDisk(t *testing.T) {
	fs := &gateFS{FS: NewMemFS()}
	e := deferredEngine(t, fs, nil)
	d := testDesc(7)
	b := e.NewBatch()
	b.SetDescriptor(&d)
	must(t, b.Commit(false))
	b.Close()
	b = e.NewBatch()
	b.Set(d.Keyspace, append(slices.Clone(d.Start), 'x'), []byte("v"))
	must(t, b.Commit(false))
	b.Close()
	fs.full.Store(true)
	if err := e.flushAll(); !errors.Is(err, syscall.ENOSPC) {
		t.Errorf("flush on a full disk: %v", err)
	}
	fs.full.Store(false)
	must(t, e.flushAll())
	if n := e.Metrics().Flushes; n != 1 {
		t.Errorf("%d flushes", n)
	}
}
