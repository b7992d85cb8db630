package engine

import (
	"errors"
	"fmt"
	"testing"

	"github.com/flotillakv/flotilla/multiraft/raft"
)

// cleanEngine has one group, of keyspace 1, and flushes by hand.
func cleanEngine(t *testing.T) (*Engine, *raft.Descriptor) {
	e := deferredEngine(t, NewMemFS(), func(o *Options) { o.FlushInline = true })
	d := &raft.Descriptor{Shard: 1, Keyspace: 1, ConfVer: 1, Version: 1, NextReplica: 2, Replicas: []raft.Replica{{Node: 1, ID: 1, Role: raft.Voter}}}
	writeClean(t, e, func(b *Batch) {
		b.SetDescriptor(d)
		b.SetApplied(1, raft.AppliedState{})
		b.SetHardState(1, raft.HardState{})
	})
	return e, d
}

func writeClean(t *testing.T, e *Engine, f func(b *Batch)) {
	t.Helper()
	b := e.NewBatch()
	f(b)
	if err := b.Commit(false); err != nil {
		t.Fatal(err)
	}
	b.Close()
}

// inMemory returns what memory, without Pebble, says of a user key.
func inMemory(e *Engine, key string) string {
	val, kind := e.def.get(appendData(nil, 1, []byte(key)), nil)
	switch kind {
	case entrySet:
		return string(val)
	case entryDelete:
		return "deleted"
	}
	return "nothing"
}

// TestCleanTables: what was flushed is read from memory, until something newer is
// there or what it says is in Pebble is not any more.
func TestCleanTables(t *testing.T) {
	if err := cleanTables(t); err != nil {
		t.Fatal(err)
	}
	withoutRule(t, "J4c", cleanTables)
}

func cleanTables(t *testing.T) error {
	e, d := cleanEngine(t)
	var bad error
	want := func(key, memory, read string) {
		t.Helper()
		v, ok, err := e.Get(1, []byte(key), nil)
		got := string(v)
		if !ok {
			got = "deleted"
		}
		if m := inMemory(e, key); err != nil || m != memory || got != read {
			bad = errors.Join(bad, fmt.Errorf("%s: memory says %q, want %q; read %q, %v, want %q", key, m, memory, got, err, read))
		}
	}
	flush := func() {
		t.Helper()
		if err := e.flushAll(); err != nil {
			t.Fatal(err)
		}
	}
	writeClean(t, e, func(b *Batch) {
		for _, k := range []string{"a", "b", "c", "d"} {
			b.Set(1, []byte(k), []byte("1"))
		}
	})
	flush()
	if !e.def.mem.empty() || e.def.imm != nil {
		t.Fatal("not flushed")
	}
	want("a", "1", "1")
	writeClean(t, e, func(b *Batch) {
		b.Set(1, []byte("a"), []byte("2"))
		b.Delete(1, []byte("b"))
		b.DeleteRange(1, []byte("c"), []byte("d"))
	})
	for range 2 { // before and after its flush
		want("a", "2", "2")
		want("b", "deleted", "deleted")
		want("c", "deleted", "deleted")
		want("d", "1", "1")
		flush()
	}
	// A descriptor takes its group to Pebble, with what is written beside it.
	writeClean(t, e, func(b *Batch) {
		d.ConfVer++
		b.SetDescriptor(d)
		b.Set(1, []byte("a"), []byte("3"))
		b.Delete(1, []byte("d"))
	})
	want("a", "nothing", "3")
	want("b", "nothing", "deleted")
	want("d", "nothing", "deleted")
	writeClean(t, e, func(b *Batch) { b.Set(1, []byte("e"), []byte("4")) })
	flush()
	want("e", "4", "4")
	want("a", "nothing", "3")
	return bad
}

// TestCleanTablesAreBounded: the newest flush is kept, and of older ones what
// DeferBytes leave room for.
func TestCleanTablesAreBounded(t *testing.T) {
	e, _ := cleanEngine(t)
	val := make([]byte, 64<<10)
	for i := range 40 {
		writeClean(t, e, func(b *Batch) { b.Set(1, fmt.Appendf(nil, "k%d", i), val) })
		if err := e.flushAll(); err != nil {
			t.Fatal(err)
		}
		bytes := 0
		for _, c := range e.def.clean {
			bytes += c.bytes
		}
		if bytes > int(e.opts.DeferBytes) || len(e.def.clean) == 0 {
			t.Fatalf("%d bytes in %d tables are kept, the bound is %d", bytes, len(e.def.clean), e.opts.DeferBytes)
		}
		if got := inMemory(e, fmt.Sprintf("k%d", i)); got != string(val) {
			t.Fatalf("the newest is not kept: %.20q", got)
		}
	}
	if got := inMemory(e, "k0"); got != "nothing" {
		t.Errorf("the oldest is kept")
	}
	if v, ok, err := e.Get(1, []byte("k0"), nil); err != nil || !ok || len(v) != len(val) {
		t.Errorf("the oldest is gone: %v %v", ok, err)
	}
}

// TestRest: what is kept for reads goes when none finds anything there any more, and not
// before; what is known of empty logs goes, too.
func TestRest(t *testing.T) {
	if err := atRest(t); err != nil {
		t.Fatal(err)
	}
	withoutRule(t, "GV8", atRest)
}

func atRest(t *testing.T) error {
	e, _ := cleanEngine(t)
	writeClean(t, e, func(b *Batch) { b.Set(1, []byte("a"), []byte("1")) })
	if err := e.flushAll(); err != nil {
		t.Fatal(err)
	}
	read := func() {
		if v, ok, err := e.Get(1, []byte("a"), nil); err != nil || !ok || string(v) != "1" {
			t.Fatalf("read %q, %v, %v", v, ok, err)
		}
	}
	e.Rest()
	if err := e.flushAll(); err != nil {
		t.Fatal(err)
	}
	writeClean(t, e, func(b *Batch) { b.Set(1, []byte("a"), []byte("1")) })
	if err := e.flushAll(); err != nil {
		t.Fatal(err)
	}
	for range 3 {
		read()
		if e.Rest(); inMemory(e, "a") != "1" { // which is a read as well
			return errors.New("it goes though it is read")
		}
	}
	e.Rest() // there was that read
	if e.Rest(); inMemory(e, "a") != "nothing" || e.MemoryUse().Deferred >= 1<<20 {
		return fmt.Errorf("nobody reads, and memory holds %q, %d bytes", inMemory(e, "a"), e.MemoryUse().Deferred)
	}
	read()
	if n := len(e.journal.groups); n != 0 {
		return fmt.Errorf("%d empty logs are known", n)
	}
	return nil
}
