package engine

import (
	"bytes"
	"fmt"
	"testing"

	"github.com/flotillakv/flotilla/multiraft/raft"
)

// testOptions returns options for a small store in fs.
func testOptions(t testing.TB, fs FS) Options {
	return Options{
		Dir: "/n1", FS: fs, Create: true, CacheBytes: 1 << 20, MemTableBytes: 1 << 20,
		OnFatal: func(err error) { t.Errorf("unexpected failure: %v", err) },
	}
}

func openTest(t testing.TB, fs FS) *Engine {
	t.Helper()
	e, err := Open(testOptions(t, fs))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := e.Close(); err != nil {
			t.Errorf("close: %v", err)
		}
	})
	return e
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// entry makes an entry with one command whose body says index and term.
func entry(i raft.Index, term raft.Term) raft.Entry {
	body := fmt.Appendf(nil, "%d@%d", i, term)
	v := raft.EncodeEntry(nil, i, term, raft.EntryNormal, raft.EntryHeader{}, []raft.Command{{Op: 1, Body: body}})
	return raft.Entry{Index: i, Term: term, Type: raft.EntryNormal, Value: v}
}

func entries(lo, hi raft.Index, term raft.Term) []raft.Entry {
	var out []raft.Entry
	for i := lo; i <= hi; i++ {
		out = append(out, entry(i, term))
	}
	return out
}

// testDesc describes shard s with the keys "s<id>/..." in keyspace 1.
func testDesc(s raft.ShardID) raft.Descriptor {
	return raft.Descriptor{
		Shard: s, Keyspace: 1, ConfVer: 1, Version: 1, NextReplica: 4,
		Start: fmt.Appendf(nil, "s%04d/", s), End: fmt.Appendf(nil, "s%04d0", s),
		Replicas: []raft.Replica{{Node: 1, ID: 1, Role: raft.Voter}, {Node: 2, ID: 2, Role: raft.Voter}, {Node: 3, ID: 3, Role: raft.Voter}},
	}
}

func createGroup(t testing.TB, e *Engine, s raft.ShardID) raft.Descriptor {
	t.Helper()
	d := testDesc(s)
	b := e.NewBatch()
	defer b.Close()
	b.SetDescriptor(&d)
	b.SetApplied(s, raft.AppliedState{})
	b.SetHardState(s, raft.HardState{Term: 1})
	must(t, b.Commit(true))
	must(t, b.Wait())
	return d
}

// TestRoundTrip shows one life of a group: create, append, apply, truncate,
// overwrite, close, open, boot.
func TestRoundTrip(t *testing.T) {
	fs := NewMemFS()
	e := openTest(t, fs)
	if e.BootEpoch() != 1 {
		t.Fatalf("boot epoch %d", e.BootEpoch())
	}
	d := createGroup(t, e, 7)
	b := e.NewBatch()
	b.Append(7, 0, entries(1, 10, 1))
	b.SetHardState(7, raft.HardState{Term: 1, Vote: 2, Commit: 6})
	for i := 1; i <= 6; i++ {
		b.Set(1, fmt.Appendf(nil, "s0007/%d", i), []byte("v"))
	}
	b.SetGroup(7, []byte("sess"), []byte("x"))
	b.SetApplied(7, raft.AppliedState{Applied: 6, AppliedTerm: 1, TruncIndex: 4, TruncTerm: 1})
	b.Truncate(7, 0, 4, 1)
	must(t, b.Commit(true))
	must(t, b.Wait())
	b.Close()

	// A new leader overwrites 9 and 10.
	b = e.NewBatch()
	b.Append(7, 10, entries(9, 9, 2))
	must(t, b.Commit(true))
	b.Close() // waits

	check := func(e *Engine) {
		t.Helper()
		groups, err := e.Boot()
		must(t, err)
		if len(groups) != 1 {
			t.Fatalf("%d groups", len(groups))
		}
		g := groups[0]
		if g.Last != 9 || len(g.Tail) != 3 || g.Tail[0].Index != 7 || g.Tail[2].Term != 2 || g.Hard.Vote != 2 ||
			g.Applied.TruncIndex != 4 || !bytes.Equal(g.Desc.Start, d.Start) {
			t.Fatalf("state %+v", g.State)
		}
		if want := []raft.TermRun{{First: 5, Term: 1}, {First: 9, Term: 2}}; len(g.Runs) != 2 || g.Runs[0] != want[0] || g.Runs[1] != want[1] {
			t.Fatalf("runs %v", g.Runs)
		}
		st, ok, err := e.Load(7)
		if err != nil || !ok || st.Last != 9 || len(st.Tail) != 3 {
			t.Fatalf("load: %v %v %+v", err, ok, st)
		}
		if _, ok, err := e.Load(8); ok || err != nil {
			t.Fatalf("load of an absent group: %v %v", ok, err)
		}
		v, ok, err := e.Get(1, []byte("s0007/3"), nil)
		if err != nil || !ok || string(v) != "v" {
			t.Fatalf("get: %q %v %v", v, ok, err)
		}
		ents, err := e.Entries(nil, 7, 5, 9, 0)
		must(t, err)
		if len(ents) != 5 || ents[4].Term != 2 {
			t.Fatalf("entries %v", ents)
		}
		if ents, err = e.Entries(nil, 7, 6, 9, 1); err != nil || len(ents) != 1 {
			t.Fatalf("at least one: %v %v", ents, err)
		}
	}
	check(e)
	must(t, e.Close())
	if err := e.SyncNow(); err != ErrClosed {
		t.Fatalf("after close: %v", err)
	}
	e2 := openTest(t, fs)
	if e2.BootEpoch() != 2 {
		t.Fatalf("boot epoch %d", e2.BootEpoch())
	}
	check(e2)
	if n := e2.Metrics().Misuse; n != 0 {
		t.Fatalf("%d suspicious deletes", n)
	}
}
