package kv

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"strings"
	"testing"

	"github.com/flotillakv/flotilla/internal/fuzzing"
	"github.com/flotillakv/flotilla/multiraft"
	"github.com/flotillakv/flotilla/multiraft/raft"
	"github.com/flotillakv/flotilla/shard"
)

// Shows what each operation answers and leaves behind. The entries are applied
// in order, one after the other, over one state; each has one or more commands.
func TestMachineOperations(t *testing.T) {
	e, m := openEngine(t), NewMachine()
	d := &raft.Descriptor{Shard: 7, Keyspace: 1, Version: 1}
	for i, step := range []struct {
		name  string
		cmds  []raft.Command
		want  string // the results
		state string
	}{
		{"put", []raft.Command{put("a", "1")}, "ok", "a=1@1.0"},
		{"put over it, and a new one, in one entry", []raft.Command{put("a", "2"), put("b", "1")}, "ok,ok", "a=2@2.0 b=1@2.1"},
		{"delete, also of an absent key", []raft.Command{del("a"), del("zz")}, "ok,ok", "b=1@2.1"},
		{"an empty value is a value", []raft.Command{put("e", "")}, "ok", "b=1@2.1 e=@4.0"},
		{"cas on the version", []raft.Command{cas("b", at(2, 1), "2")}, "ok", "b=2@5.0 e=@4.0"},
		{"cas on an older version", []raft.Command{cas("b", at(2, 1), "3")}, "conflict have 5.0", "b=2@5.0 e=@4.0"},
		{"cas on the right index but another slot", []raft.Command{cas("b", at(5, 1), "3")}, "conflict have 5.0", "b=2@5.0 e=@4.0"},
		{"cas on absence of a present key", []raft.Command{cas("e", shard.Version{}, "3")}, "conflict have 4.0", "b=2@5.0 e=@4.0"},
		{"cas on absence", []raft.Command{cas("c", shard.Version{}, "1")}, "ok", "b=2@5.0 c=1@9.0 e=@4.0"},
		{"cas on a version of an absent key", []raft.Command{cas("x", at(1, 0), "1")}, "conflict have 0.0", "b=2@5.0 c=1@9.0 e=@4.0"},
		{"cas sees the command before it in its entry", []raft.Command{put("b", "3"), cas("b", at(11, 0), "4"), cas("b", at(5, 0), "5")}, "ok,ok,conflict have 11.1", "b=4@11.1 c=1@9.0 e=@4.0"},
		{"cas sees a delete before it in its entry", []raft.Command{del("b"), cas("b", shard.Version{}, "5")}, "ok,ok", "b=5@12.1 c=1@9.0 e=@4.0"},
		{"cas sees a range delete before it in its entry", []raft.Command{delRange("b", "d"), cas("c", shard.Version{}, "6"), cas("b", at(12, 1), "7")}, "ok,ok,conflict have 0.0", "c=6@13.1 e=@4.0"},
		{"batch: one version, later operations win", []raft.Command{batchOf(shard.PutOp(bs("a"), bs("1")), shard.PutOp(bs("a"), bs("2")), shard.DeleteOp(bs("c")), shard.PutOp(bs("d"), bs("1")))}, "ok", "a=2@14.0 d=1@14.0 e=@4.0"},
		{"batch with a range delete between puts", []raft.Command{batchOf(shard.PutOp(bs("b"), bs("1")), shard.DeleteRangeOp(bs("a"), bs("e")), shard.PutOp(bs("c"), bs("1")))}, "ok", "c=1@15.0 e=@4.0"},
		{"delete range with equal bounds", []raft.Command{delRange("c", "c")}, "ok", "c=1@15.0 e=@4.0"},
		{"delete range to the end of the keyspace", []raft.Command{delRange("d", "")}, "ok", "c=1@15.0"},
		{"delete range of everything", []raft.Command{put("z", "1"), delRange("", ""), put("a", "1")}, "ok,ok,ok", "a=1@18.2"},
		{"txn: conditions hold", []raft.Command{txn(shard.Txn{
			If:   []shard.Cond{shard.IfVersion(bs("a"), at(18, 2)), shard.IfExists(bs("a")), shard.IfAbsent(bs("b")), shard.IfValue(bs("a"), bs("1")), shard.IfVersion(bs("b"), shard.Version{})},
			Then: []shard.Op{shard.PutOp(bs("b"), bs("1")), shard.DeleteOp(bs("a")), shard.GetOp(bs("a")), shard.GetOp(bs("b"))},
			Else: []shard.Op{shard.PutOp(bs("x"), bs("1"))},
		})}, "txn true 1@18.2 absent", "b=1@19.0"},
		{"txn: one condition fails", []raft.Command{txn(shard.Txn{
			If:   []shard.Cond{shard.IfExists(bs("b")), shard.IfValue(bs("b"), bs("2"))},
			Then: []shard.Op{shard.DeleteOp(bs("b"))},
			Else: []shard.Op{shard.GetOp(bs("b")), shard.PutOp(bs("c"), bs("1"))},
		})}, "txn false 1@19.0", "b=1@19.0 c=1@20.0"},
		{"txn: a value condition on an absent key fails, also for the empty value", []raft.Command{txn(shard.Txn{If: []shard.Cond{shard.IfValue(bs("x"), nil)}, Then: []shard.Op{shard.DeleteOp(bs("b"))}})}, "txn false", "b=1@19.0 c=1@20.0"},
		{"txn without conditions", []raft.Command{txn(shard.Txn{Then: []shard.Op{shard.DeleteRangeOp(bs("c"), nil), shard.GetOp(bs("c"))}})}, "txn true 1@20.0", "b=1@19.0"},
		{"txn with conditions only", []raft.Command{txn(shard.Txn{If: []shard.Cond{shard.IfAbsent(bs("b"))}})}, "txn false", "b=1@19.0"},
		{"txn sees the commands before it in its entry", []raft.Command{put("b", "9"), txn(shard.Txn{If: []shard.Cond{shard.IfVersion(bs("b"), at(24, 0))}, Then: []shard.Op{shard.GetOp(bs("b"))}})}, "ok,txn true 9@24.0", "b=9@24.0"},
	} {
		index := raft.Index(i + 1)
		results, err := applyEntry(e, m, d, 1, index, step.cmds...)
		if err != nil {
			t.Fatalf("%s: %v", step.name, err)
		}
		var got []string
		for slot, r := range results {
			res, err := shard.DecodeResult(r, at(index, uint32(slot)))
			if err != nil {
				t.Fatalf("%s: %v", step.name, err)
			}
			got = append(got, describe(res))
		}
		if s := strings.Join(got, ","); s != step.want {
			t.Errorf("%d %s: got %s, want %s", index, step.name, s, step.want)
		}
		if s := contents(t, e, 1); s != step.state {
			t.Errorf("%d %s: left %s, want %s", index, step.name, s, step.state)
		}
	}
	if s := dump(t, e, 0) + dump(t, e, 2); s != "" {
		t.Errorf("other keyspaces were written: %s", s)
	}
}

// Shows the guard below Raft: a command with any key outside the shard is
// rejected as a whole, its neighbours in the entry are not, and the answer tells
// whether the proposer's descriptor was outdated.
func TestMachineRejectsKeysOutside(t *testing.T) {
	e, m := openEngine(t), NewMachine()
	d := &raft.Descriptor{Shard: 7, Keyspace: 1, Version: 3, Start: bs("c"), End: bs("m")}
	cmds := []raft.Command{
		put("c", "in"), put("b", "1"), put("m", "1"), del("m"), cas("z", shard.Version{}, "1"),
		delRange("b", "d"), delRange("c", ""), delRange("d", "m"),
		batchOf(shard.PutOp(bs("d"), bs("1")), shard.PutOp(bs("m"), bs("1"))),
		batchOf(shard.PutOp(bs("e"), bs("in")), shard.DeleteRangeOp(bs("f"), bs("m"))),
		txn(shard.Txn{If: []shard.Cond{shard.IfAbsent(bs("a"))}, Then: []shard.Op{shard.PutOp(bs("d"), nil)}}),
		txn(shard.Txn{Then: []shard.Op{shard.PutOp(bs("d"), nil)}, Else: []shard.Op{shard.GetOp(bs("z"))}}),
		put("l", "in"),
	}
	want := func(rejected string) string {
		r := rejected
		return strings.Join([]string{"ok", r, r, r, r, r, r, "ok", r, "ok", r, r, "ok"}, ",")
	}
	for i, version := range []uint64{2, 3} {
		results, err := applyEntry(e, m, d, version, raft.Index(i+1), cmds...)
		if err != nil {
			t.Fatal(err)
		}
		var got []string
		for _, r := range results {
			res, err := shard.DecodeResult(r, shard.Version{})
			if err != nil {
				t.Fatal(err)
			}
			got = append(got, describe(res))
		}
		rejected := []string{"epoch 3", "range 3"}[i]
		if s := strings.Join(got, ","); s != want(rejected) {
			t.Errorf("proposed at version %d:\n got %s\nwant %s", version, s, want(rejected))
		}
	}
	if s := contents(t, e, 1); s != "c=in@2.0 e=in@2.9 l=in@2.12" {
		t.Errorf("left %s", s)
	}
}

// Shows that malformed bodies are rejections, and that the commands around them apply.
func TestMachineRejectsMalformed(t *testing.T) {
	e, m := openEngine(t), NewMachine()
	d := &raft.Descriptor{Shard: 7, Keyspace: 1, Version: 1}
	bad := []raft.Command{{Op: shard.OpPut}, {Op: shard.OpPut, Body: []byte{9, 'k'}}, {Op: shard.OpPut, Body: []byte{0, 'v'}},
		{Op: shard.OpDelete, Body: []byte{1, 'k', 'x'}}, {Op: shard.OpDeleteRange, Body: []byte{1, 'b', 1, 'a'}},
		{Op: shard.OpCAS, Body: []byte{1, 'k', 1}}, {Op: shard.OpBatch, Body: []byte{0, 0, 0, 2, 2, 1, 'k'}},
		{Op: shard.OpBatch, Body: []byte{0, 0, 0, 1, 7, 1, 'k'}}, {Op: shard.OpTxn, Body: []byte{0, 0, 0}}, {Op: shard.OpTxn, Body: []byte{1, 9, 1, 'k', 0, 0}}}
	cmds := append([]raft.Command{put("a", "1")}, bad...)
	results, err := applyEntry(e, m, d, 1, 1, append(cmds, put("b", "1"))...)
	if err != nil {
		t.Fatal(err)
	}
	for i := range bad {
		res, err := shard.DecodeResult(results[i+1], at(1, 0))
		if err != nil || res.Status != shard.StatusMalformed || shard.OutcomeOf(res.Err(d)) != shard.NotApplied {
			t.Errorf("body %x of operation %d: %+v, %v", bad[i].Body, bad[i].Op, res, err)
		}
	}
	if s := contents(t, e, 1); s != fmt.Sprintf("a=1@1.0 b=1@1.%d", len(bad)+1) {
		t.Errorf("left %s", s)
	}
}

// Shows that a transaction that reads too much writes nothing.
func TestMachineTxnReadLimit(t *testing.T) {
	e, m := openEngine(t), NewMachine()
	d := &raft.Descriptor{Shard: 7, Keyspace: 1, Version: 1}
	big := strings.Repeat("x", shard.MaxTxnResultBytes/2)
	if _, err := applyEntry(e, m, d, 1, 1, put("a", big)); err != nil {
		t.Fatal(err)
	}
	x := txn(shard.Txn{Then: []shard.Op{shard.PutOp(bs("w"), nil), shard.GetOp(bs("a")), shard.GetOp(bs("a")), shard.GetOp(bs("b")), shard.GetOp(bs("w"))}})
	y := txn(shard.Txn{Then: []shard.Op{shard.PutOp(bs("w"), nil), shard.GetOp(bs("a")), shard.GetOp(bs("a")), shard.GetOp(bs("a"))}})
	results, err := applyEntry(e, m, d, 1, 2, y, x)
	if err != nil {
		t.Fatal(err)
	}
	if res, err := shard.DecodeResult(results[0], at(2, 0)); err != nil || res.Status != shard.StatusLimit {
		t.Errorf("too much: %s, %v", describe(res), err)
	}
	if res, err := shard.DecodeResult(results[1], at(2, 1)); err != nil || res.Txn == nil || len(res.Txn.Gets) != 4 || res.Txn.Gets[3].Found {
		t.Errorf("just enough: %v", err)
	}
}

// Shows what fences a replica: commands of a newer version, and damaged records.
func TestMachineFences(t *testing.T) {
	e, m := openEngine(t), NewMachine()
	d := &raft.Descriptor{Shard: 7, Keyspace: 1, Version: 1}
	b := e.NewBatch()
	b.Set(1, bs("damaged"), []byte{0xff})
	if err := b.Commit(false); err != nil {
		t.Fatal(err)
	}
	b.Close()
	newer := put("a", "1")
	newer.Flags = 2
	for _, c := range []struct {
		name string
		cmd  raft.Command
		want error
	}{
		{"code 0", raft.Command{}, shard.ErrUnknownOp},
		{"a get as a command", raft.Command{Op: shard.OpGet, Body: []byte{1, 'k'}}, shard.ErrUnknownOp},
		{"a split", raft.Command{Op: shard.OpSplit}, shard.ErrUnknownOp},
		{"an embedder's command", raft.Command{Op: shard.OpUser}, shard.ErrUnknownOp},
		{"a flag", newer, shard.ErrUnknownOp},
		{"cas of a damaged record", cas("damaged", at(1, 0), ""), shard.ErrBadRecord},
		{"txn on a damaged record", txn(shard.Txn{If: []shard.Cond{shard.IfExists(bs("damaged"))}}), shard.ErrBadRecord},
		{"txn that reads a damaged record", txn(shard.Txn{Then: []shard.Op{shard.GetOp(bs("damaged"))}}), shard.ErrBadRecord},
	} {
		if _, err := applyEntry(e, m, d, 1, 1, put("x", "1"), c.cmd); !errors.Is(err, c.want) {
			t.Errorf("%s: got %v", c.name, err)
		}
	}
	if s := dump(t, e, 1); strings.Contains(s, `"x"`) {
		t.Errorf("a fenced entry left %s", s)
	}
}

// Shows that what a replica stores and answers depends on nothing but the
// entries: the same random entries, applied one batch each and with results on
// one engine, many per batch and without results on the other, leave the same bytes.
func TestMachineDeterminism(t *testing.T) {
	e1, e2, m := openEngine(t), openEngine(t), NewMachine()
	d := &raft.Descriptor{Shard: 7, Keyspace: 1, Version: 4, Start: bs("b"), End: bs("y")}
	rng := rand.New(rand.NewPCG(1, 2))
	b2 := e2.NewBatch()
	conflicts, applied := 0, 0
	var written [2]uint64
	for index := raft.Index(1); index <= 1500; index++ {
		cmds := make([]raft.Command, 1+rng.IntN(5))
		for i := range cmds {
			cmds[i] = randomCommand(rng, index)
		}
		ent, err := entryOf(index, uint64(3+rng.IntN(2)), cmds...)
		if err != nil {
			t.Fatal(err)
		}
		h, err := ent.Header()
		if err != nil {
			t.Fatal(err)
		}
		b1 := e1.NewBatch()
		a1 := &multiraft.ApplyContext{Desc: d, Entry: ent, Header: h, Results: make([][]byte, len(cmds))}
		a2 := &multiraft.ApplyContext{Desc: d, Entry: ent, Header: h}
		if err := errors.Join(m.Apply(b1, a1), b1.Commit(false), m.Apply(b2, a2)); err != nil {
			t.Fatal(err)
		}
		b1.Close()
		written[0] += a1.WrittenBytes + a1.WrittenKeys
		written[1] += a2.WrittenBytes + a2.WrittenKeys
		for _, r := range a1.Results {
			res, err := shard.DecodeResult(r, shard.Version{})
			if err != nil {
				t.Fatal(err)
			}
			if res.Status == shard.StatusConflict {
				conflicts++
			} else if res.Status == shard.StatusOK {
				applied++
			}
		}
		if rng.IntN(40) == 0 {
			if err := b2.Commit(false); err != nil {
				t.Fatal(err)
			}
			b2.Close()
			b2 = e2.NewBatch()
		}
	}
	if err := b2.Commit(false); err != nil {
		t.Fatal(err)
	}
	b2.Close()
	if s1, s2 := dump(t, e1, 1), dump(t, e2, 1); s1 != s2 || s1 == "" {
		t.Errorf("the replicas differ:\n%s\n%s", s1, s2)
	}
	if written[0] != written[1] || written[0] == 0 {
		t.Errorf("the counters differ: %d and %d", written[0], written[1])
	}
	if conflicts < 50 || applied < 1000 {
		t.Errorf("only %d conflicts and %d applied: the test shows too little", conflicts, applied)
	}
}

func randomCommand(rng *rand.Rand, index raft.Index) raft.Command {
	key := func() []byte { return []byte{byte('a' + rng.IntN(26)), byte('0' + rng.IntN(3))} }
	version := func() shard.Version {
		if rng.IntN(2) == 0 {
			return shard.Version{}
		}
		return at(index-min(index, raft.Index(rng.IntN(30))), uint32(rng.IntN(2)))
	}
	op := func(gets bool) shard.Op {
		switch rng.IntN(8) {
		case 0:
			s, e := key(), key()
			if string(s) > string(e) {
				s, e = e, s
			}
			return shard.DeleteRangeOp(s, e)
		case 1, 2:
			return shard.DeleteOp(key())
		case 3:
			if gets {
				return shard.GetOp(key())
			}
		}
		return shard.PutOp(key(), fmt.Appendf(nil, "%d", rng.Uint32()))
	}
	switch rng.IntN(6) {
	case 0:
		return cmd(shard.PutCommand(key(), fmt.Appendf(nil, "%d", index)))
	case 1:
		return cmd(shard.DeleteCommand(key()))
	case 2, 3:
		return cmd(shard.CASCommand(key(), version(), fmt.Appendf(nil, "%d", index)))
	case 4:
		return batchOf(op(false), op(false))
	}
	x := shard.Txn{Then: []shard.Op{op(true), op(true)}, Else: []shard.Op{op(true)}}
	switch rng.IntN(4) {
	case 0:
		x.If = []shard.Cond{shard.IfExists(key())}
	case 1:
		x.If = []shard.Cond{shard.IfAbsent(key()), shard.IfVersion(key(), version())}
	case 2:
		x.If = []shard.Cond{shard.IfValue(key(), []byte("1"))}
	}
	return txn(x)
}

// Shows that a plain put costs the machine no allocation of its own.
func TestMachinePutAllocations(t *testing.T) {
	e, m := openEngine(t), NewMachine()
	ent, err := entryOf(1, 1, put("key", strings.Repeat("x", 128)))
	if err != nil {
		t.Fatal(err)
	}
	a := &multiraft.ApplyContext{Desc: &raft.Descriptor{Shard: 7, Keyspace: 1, Version: 1}, Entry: ent, Results: make([][]byte, 1)}
	b := e.NewBatch()
	defer b.Close()
	n := testing.AllocsPerRun(200, func() {
		mark := b.Mark()
		if err := m.Apply(b, a); err != nil {
			t.Error(err)
		}
		b.RollbackTo(mark)
	})
	if n > 2 {
		t.Errorf("%v allocations per entry of one put", n)
	}
}

// FuzzApply feeds arbitrary bodies to the machine: no panic, no error for known
// operations, and a rejected command writes nothing.
func FuzzApply(tf *testing.F) {
	f := fuzzing.New(tf)
	for _, c := range []raft.Command{put("k", "v"), del("k"), delRange("a", "b"), cas("k", at(1, 0), "v"),
		batchOf(shard.PutOp(bs("a"), bs("b")), shard.DeleteRangeOp(bs("a"), bs("b"))),
		txn(shard.Txn{If: []shard.Cond{shard.IfExists(bs("k"))}, Then: []shard.Op{shard.GetOp(bs("k"))}, Else: []shard.Op{shard.PutOp(bs("k"), nil)}})} {
		f.Add(uint8(c.Op), c.Body)
	}
	e, m := openEngine(f), NewMachine()
	d := &raft.Descriptor{Shard: 7, Keyspace: 1, Version: 1, Start: bs("a"), End: bs("z")}
	if _, err := applyEntry(e, m, d, 1, 1, put("k", "v")); err != nil {
		f.Fatal(err)
	}
	f.Fuzz(func(t testing.TB, op uint8, body []byte) {
		b := e.NewBatch()
		defer b.Close()
		results, err := applyTo(b, m, d, 1, 2, raft.Command{Op: raft.Op(op), Body: body})
		if err != nil {
			if shard.KnownOp(raft.Op(op), 0) || !errors.Is(err, shard.ErrUnknownOp) {
				t.Fatal(err)
			}
			return
		}
		res, err := shard.DecodeResult(results[0], at(2, 0))
		if err != nil {
			t.Fatal(err)
		}
		if res.Status != shard.StatusOK && !b.Empty() {
			t.Fatalf("rejected (%s), but it wrote", describe(res))
		}
	})
}

// BenchmarkApply measures an entry of 64 puts of 128 bytes.
func BenchmarkApply(b *testing.B) {
	e, m := openEngine(b), NewMachine()
	cmds := make([]raft.Command, 64)
	for i := range cmds {
		cmds[i] = put(fmt.Sprintf("key%06d", i), strings.Repeat("x", 128))
	}
	ent, err := entryOf(1, 1, cmds...)
	if err != nil {
		b.Fatal(err)
	}
	a := &multiraft.ApplyContext{Desc: &raft.Descriptor{Shard: 7, Keyspace: 1, Version: 1}, Entry: ent, Results: make([][]byte, 64)}
	w := e.NewBatch()
	defer w.Close()
	b.ReportAllocs()
	for b.Loop() {
		if err := m.Apply(w, a); err != nil {
			b.Fatal(err)
		}
		w.RollbackTo(0)
	}
}
