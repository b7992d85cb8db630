package kv

import (
	"context"
	"fmt"
	"testing"
	"time"

	"github.com/flotillakv/flotilla/multiraft"
	"github.com/flotillakv/flotilla/multiraft/raft"
	"github.com/flotillakv/flotilla/shard"
)

// doorHost leads its one shard under a lease and commits at once.
type doorHost struct{ d raft.Descriptor }

func (h *doorHost) Propose(_ raft.ShardID, _ raft.Command, done func([]byte, raft.Index, uint32, error)) {
	done(nil, 1, 0, nil)
}
func (h *doorHost) ProposeFor(_ raft.ShardID, _ raft.Command, w multiraft.Waiter) {
	w.Proposed(nil, 1, 0, nil)
}
func (h *doorHost) LeaseRead(raft.ShardID) bool                               { return true }
func (h *doorHost) Read(_ raft.ShardID, done func(raft.Index, error))         { done(1, nil) }
func (h *doorHost) ReadIndex(_ raft.ShardID, done func(raft.Index, error))    { done(1, nil) }
func (h *doorHost) FollowerRead(_ raft.ShardID, done func(raft.Index, error)) { done(1, nil) }
func (h *doorHost) Generation(raft.ShardID) uint64                            { return 1 }
func (h *doorHost) Descriptor(raft.ShardID) (raft.Descriptor, bool)           { return h.d, true }

// busyHost is overloaded.
type busyHost struct{ doorHost }

func (h *busyHost) ProposeFor(_ raft.ShardID, _ raft.Command, w multiraft.Waiter) {
	w.Proposed(nil, 0, 0, &multiraft.OverloadedError{RetryAfter: time.Second, Why: "writes would wait"})
}

// BenchmarkDoorStore is the door to a node's shards: a put up to the proposal and
// back, over a host without Raft, and a get of 128 bytes under a lease.
func BenchmarkDoorStore(b *testing.B) {
	e := openEngine(b)
	s := NewStore(Options{Host: &doorHost{raft.Descriptor{Shard: 7, Keyspace: 1, Version: 1, ConfVer: 1}}, Engine: e})
	b.Cleanup(s.Close)
	w := e.NewBatch()
	keys := make([][]byte, 1024)
	for i := range keys {
		keys[i] = fmt.Appendf(nil, "user%012d", i)
		w.Set(1, keys[i], shard.AppendRecord(nil, at(1, uint32(i)), 0, make([]byte, 128)))
	}
	if err := w.Commit(false); err != nil {
		b.Fatal(err)
	}
	w.Close()
	ctx, cancel := context.WithTimeout(bg, time.Hour)
	defer cancel()
	b.Run("put", func(b *testing.B) {
		r := &shard.Request{Shard: 7, Keyspace: 1, DescVersion: 1, Kind: shard.KindWrite, Command: cmd(shard.PutCommand(keys[0], make([]byte, 128)))}
		b.ReportAllocs()
		for b.Loop() {
			if resp := s.Do(ctx, r); resp.Err != nil {
				b.Fatal(resp.Err)
			}
		}
	})
	b.Run("put/refused", func(b *testing.B) {
		s := NewStore(Options{Host: &busyHost{*s.host.(*doorHost)}, Engine: e})
		b.Cleanup(s.Close)
		r := &shard.Request{Shard: 7, Keyspace: 1, DescVersion: 1, Kind: shard.KindWrite, Command: cmd(shard.PutCommand(keys[0], make([]byte, 128)))}
		b.ReportAllocs()
		for b.Loop() {
			if resp := s.Do(ctx, r); resp.Err == nil {
				b.Fatal("taken in")
			}
		}
	})
	b.Run("get", func(b *testing.B) {
		r := &shard.Request{Shard: 7, Keyspace: 1, DescVersion: 1, Kind: shard.KindGet}
		b.ReportAllocs()
		for i := 0; b.Loop(); i++ {
			r.Key = keys[i%len(keys)]
			if resp := s.Do(ctx, r); resp.Err != nil || !resp.Found {
				b.Fatal(resp)
			}
		}
	})
}

// BenchmarkDoorNear is a get of 128 bytes on the short way, under the lease of a
// group of one replica.
func BenchmarkDoorNear(b *testing.B) {
	d := nearDesc()
	s := openLeased(b, d)
	s.do(b, &shard.Request{Shard: 2, Keyspace: 1, Kind: shard.KindWrite, Command: cmd(shard.PutCommand(bs("c"), make([]byte, 128)))})
	key := bs("c")
	b.ReportAllocs()
	for b.Loop() {
		if _, found, ok := s.ReadNear(&d, key); !found || !ok {
			b.Fatal("not served")
		}
	}
}

// BenchmarkDoorApply is the state machine, per command of an entry of 16 puts of
// 128 bytes.
func BenchmarkDoorApply(b *testing.B) {
	e, m := openEngine(b), NewMachine()
	d := &raft.Descriptor{Shard: 7, Keyspace: 1, Version: 1}
	w := e.NewBatch()
	defer w.Close()
	cmds := make([]raft.Command, 16)
	for i := range cmds {
		cmds[i] = cmd(shard.PutCommand(fmt.Appendf(nil, "user%012d", i), make([]byte, 128)))
	}
	ent, err := entryOf(1, 1, cmds...)
	if err != nil {
		b.Fatal(err)
	}
	a := &multiraft.ApplyContext{Desc: d, Entry: ent}
	b.ReportAllocs()
	b.ResetTimer()
	for done := 0; done < b.N; done += len(cmds) {
		if err := m.Apply(w, a); err != nil {
			b.Fatal(err)
		}
		w.RollbackTo(0)
	}
}
