package kv

import (
	"bytes"
	"fmt"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/flotillakv/flotilla/engine"
	"github.com/flotillakv/flotilla/multiraft"
	"github.com/flotillakv/flotilla/multiraft/raft"
	"github.com/flotillakv/flotilla/shard"
)

func openEngine(t testing.TB) *engine.Engine {
	t.Helper()
	e, err := engine.Open(engine.Options{
		Dir: "store", FS: engine.NewMemFS(), Create: true, NoDiskWatch: true,
		CacheBytes: 1 << 20, MemTableBytes: 16 << 20,
		OnFatal: func(err error) { t.Errorf("engine: %v", err) },
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := e.Close(); err != nil {
			t.Error(err)
		}
	})
	return e
}

// fakeHost is one node that commits every command at once: the real machine on
// a real engine, without Raft. Hooks make it refuse, hold back, or change the
// shard under a reader.
type fakeHost struct {
	e *engine.Engine
	m *Machine

	mu     sync.Mutex
	descs  []raft.Descriptor
	index  raft.Index
	refuse error // completes every call with this error, nothing done
	hold   bool  // keeps completions until release
	held   []func()
	holds  chan struct{} // a signal per held completion
	onRead func()        // runs when a read index is answered

	lease     bool // LeaseRead
	gen       atomic.Uint64
	readCalls [2]int // of Read, FollowerRead; guarded by mu

	onDescriptor func() // runs when a descriptor is looked at
}

func newHost(t testing.TB, descs ...raft.Descriptor) *fakeHost {
	if len(descs) == 0 {
		descs = []raft.Descriptor{{Shard: 7, Keyspace: 1, Version: 1, ConfVer: 1}}
	}
	return &fakeHost{e: openEngine(t), m: NewMachine(), descs: descs, holds: make(chan struct{}, 100)}
}

func (h *fakeHost) Descriptor(s raft.ShardID) (raft.Descriptor, bool) {
	if h.onDescriptor != nil {
		h.onDescriptor()
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	for _, d := range h.descs {
		if d.Shard == s {
			return d, true
		}
	}
	return raft.Descriptor{}, false
}

func (h *fakeHost) Propose(s raft.ShardID, cmd raft.Command, done func([]byte, raft.Index, uint32, error)) {
	d, ok := h.Descriptor(s)
	if !ok {
		done(nil, 0, 0, multiraft.ErrUnknownShard)
		return
	}
	if h.refuse != nil {
		done(nil, 0, 0, h.refuse)
		return
	}
	h.complete(func() {
		h.mu.Lock()
		h.index++
		index := h.index
		h.mu.Unlock()
		results, err := applyEntry(h.e, h.m, &d, d.Version, index, cmd)
		if err != nil {
			done(nil, 0, 0, multiraft.ErrAmbiguous)
			return
		}
		done(results[0], index, 0, nil)
	})
}

func (h *fakeHost) ReadIndex(s raft.ShardID, done func(raft.Index, error)) {
	if h.refuse != nil {
		done(0, h.refuse)
		return
	}
	h.complete(func() {
		if h.onRead != nil {
			h.onRead()
		}
		h.mu.Lock()
		index := h.index
		h.mu.Unlock()
		done(index, nil)
	})
}

func (h *fakeHost) Read(s raft.ShardID, done func(raft.Index, error)) {
	h.mu.Lock()
	h.readCalls[0]++
	h.mu.Unlock()
	h.ReadIndex(s, done)
}

func (h *fakeHost) FollowerRead(s raft.ShardID, done func(raft.Index, error)) {
	h.mu.Lock()
	h.readCalls[1]++
	h.mu.Unlock()
	h.ReadIndex(s, done)
}

func (h *fakeHost) LeaseRead(raft.ShardID) bool { return h.lease }

func (h *fakeHost) Generation(raft.ShardID) uint64 { return h.gen.Load() }

func (h *fakeHost) complete(f func()) {
	h.mu.Lock()
	if h.hold {
		h.held = append(h.held, f)
		h.mu.Unlock()
		h.holds <- struct{}{}
		return
	}
	h.mu.Unlock()
	f()
}

func (h *fakeHost) release() {
	h.mu.Lock()
	held := h.held
	h.held, h.hold = nil, false
	h.mu.Unlock()
	for _, f := range held {
		f()
	}
}

func entryOf(index raft.Index, version uint64, cmds ...raft.Command) (raft.Entry, error) {
	return raft.DecodeEntry(index, raft.EncodeEntry(nil, index, 1, raft.EntryNormal, raft.EntryHeader{DescVersion: version}, cmds))
}

// applyEntry applies one entry and commits it.
func applyEntry(e *engine.Engine, m *Machine, d *raft.Descriptor, version uint64, index raft.Index, cmds ...raft.Command) ([][]byte, error) {
	b := e.NewBatch()
	defer b.Close()
	results, err := applyTo(b, m, d, version, index, cmds...)
	if err != nil {
		return nil, err
	}
	return results, b.Commit(false)
}

func applyTo(b *engine.Batch, m *Machine, d *raft.Descriptor, version uint64, index raft.Index, cmds ...raft.Command) ([][]byte, error) {
	ent, err := entryOf(index, version, cmds...)
	if err != nil {
		return nil, err
	}
	h, err := ent.Header()
	if err != nil {
		return nil, err
	}
	a := &multiraft.ApplyContext{Desc: d, Entry: ent, Header: h, Results: make([][]byte, len(cmds))}
	return a.Results, m.Apply(b, a)
}

// dump returns the keys and raw records of a keyspace.
func dump(t testing.TB, e *engine.Engine, ks uint32) string {
	t.Helper()
	it, err := e.NewIter(ks, nil, nil)
	if err != nil {
		t.Fatal(err)
	}
	defer it.Close()
	var b strings.Builder
	for ok := it.First(); ok; ok = it.Next() {
		fmt.Fprintf(&b, "%q=%x\n", it.Key(), it.Value())
	}
	if err := it.Err(); err != nil {
		t.Fatal(err)
	}
	return b.String()
}

// contents returns "key=value@index.slot ..." of a keyspace.
func contents(t testing.TB, e *engine.Engine, ks uint32) string {
	t.Helper()
	it, err := e.NewIter(ks, nil, nil)
	if err != nil {
		t.Fatal(err)
	}
	defer it.Close()
	var out []string
	for ok := it.First(); ok; ok = it.Next() {
		rec, err := shard.DecodeRecord(it.Value())
		if err != nil {
			t.Fatal(err)
		}
		out = append(out, fmt.Sprintf("%s=%s@%d.%d", it.Key(), rec.Bytes, rec.Version.Index, rec.Version.Slot))
	}
	return strings.Join(out, " ")
}

func cmd(c raft.Command, err error) raft.Command {
	if err != nil {
		panic(err)
	}
	return c
}

func put(k, v string) raft.Command { return cmd(shard.PutCommand([]byte(k), []byte(v))) }
func del(k string) raft.Command    { return cmd(shard.DeleteCommand([]byte(k))) }
func delRange(s, e string) raft.Command {
	return cmd(shard.DeleteRangeCommand([]byte(s), []byte(e)))
}
func cas(k string, want shard.Version, v string) raft.Command {
	return cmd(shard.CASCommand([]byte(k), want, []byte(v)))
}
func batchOf(ops ...shard.Op) raft.Command {
	var b shard.Batch
	for _, o := range ops {
		b.Add(o)
	}
	return cmd(b.Command())
}
func txn(x shard.Txn) raft.Command { return cmd(x.Command()) }
func bs(s string) []byte           { return []byte(s) }

func at(index raft.Index, slot uint32) shard.Version {
	return shard.Version{Lineage: 7, Index: index, Slot: slot}
}

func describe(res shard.Result) string {
	switch res.Status {
	case shard.StatusOK:
		if res.Txn == nil {
			return "ok"
		}
		var b bytes.Buffer
		fmt.Fprintf(&b, "txn %v", res.Txn.Succeeded)
		for _, g := range res.Txn.Gets {
			if !g.Found {
				b.WriteString(" absent")
				continue
			}
			fmt.Fprintf(&b, " %s@%d.%d", g.Value.Bytes, g.Value.Version.Index, g.Value.Version.Slot)
		}
		return b.String()
	case shard.StatusConflict:
		return fmt.Sprintf("conflict have %d.%d", res.Have.Index, res.Have.Slot)
	case shard.StatusEpoch:
		return fmt.Sprintf("epoch %d", res.DescVersion)
	case shard.StatusRange:
		return fmt.Sprintf("range %d", res.DescVersion)
	case shard.StatusMalformed:
		return "malformed"
	case shard.StatusLimit:
		return fmt.Sprintf("limit %d got %d", res.Limit, res.Got)
	}
	return "?"
}
