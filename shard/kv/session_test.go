package kv

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"reflect"
	"strings"
	"testing"

	"github.com/flotillakv/flotilla/engine"
	"github.com/flotillakv/flotilla/multiraft"
	"github.com/flotillakv/flotilla/multiraft/raft"
	"github.com/flotillakv/flotilla/multiraft/session"
	"github.com/flotillakv/flotilla/shard"
)

// in gives a command the header of session id: command seq of shard 7, which
// acknowledges all before it down to acked, with a deadline in seconds.
func in(c raft.Command, id byte, seq, acked, deadline uint64) raft.Command {
	c.Session = &raft.SessionHeader{ID: [16]byte{id}, Lineage: 7, Seq: seq, AckedTo: acked, Deadline: deadline * 1e9}
	return c
}

// applyAt applies one entry with a time stamp in seconds and returns the results.
func applyAt(b *engine.Batch, m *Machine, d *raft.Descriptor, index raft.Index, now uint64, cmds ...raft.Command) ([][]byte, error) {
	h := raft.EntryHeader{DescVersion: d.Version, GroupTs: now * 1e9}
	ent, err := raft.DecodeEntry(index, raft.EncodeEntry(nil, index, 1, raft.EntryNormal, h, cmds))
	if err != nil {
		return nil, err
	}
	a := &multiraft.ApplyContext{Desc: d, Entry: ent, Header: h, Results: make([][]byte, len(cmds))}
	return a.Results, m.Apply(b, a)
}

// machineState returns what the state machine keeps of a group besides the data.
func machineState(t testing.TB, e *engine.Engine, d *raft.Descriptor) string {
	t.Helper()
	b := e.NewBatch()
	b.SetDescriptor(d)
	b.SetApplied(d.Shard, raft.AppliedState{})
	if err := b.Commit(false); err != nil {
		t.Fatal(err)
	}
	b.Close()
	v, err := e.View(d)
	if err != nil {
		t.Fatal(err)
	}
	defer v.Close()
	it, err := v.Iter(engine.ViewMachine)
	if err != nil {
		t.Fatal(err)
	}
	defer it.Close()
	var out strings.Builder
	for ok := it.First(); ok; ok = it.Next() {
		fmt.Fprintf(&out, "%x=%x\n", it.Key(), it.Value())
	}
	if err := it.Err(); err != nil {
		t.Fatal(err)
	}
	return out.String()
}

func describeSession(r []byte, index raft.Index, slot uint32) string {
	res, err := shard.DecodeResult(r, at(index, slot))
	if err != nil {
		return err.Error()
	}
	switch res.Status {
	case shard.StatusExpired:
		return fmt.Sprintf("expired %v %d %d", res.Known, res.Deadline/1e9, res.Now/1e9)
	case shard.StatusSessionsFull:
		return "full"
	case shard.StatusSettled:
		return "settled"
	}
	out := fmt.Sprintf("%s %d.%d", describe(res), res.Receipt.Index, res.Receipt.Slot)
	if res.Cut {
		out += " cut"
	}
	return out
}

// Shows what commands of sessions answer and leave behind: a copy has the result
// and the receipt of the first, whatever became of the key since.
func TestSessionCommands(t *testing.T) {
	e, m := openEngine(t), NewMachine()
	d := &raft.Descriptor{Shard: 7, Keyspace: 1, Version: 3, Start: bs("a"), End: bs("q")}
	big := strings.Repeat("x", 5000)
	read := shard.Txn{If: []shard.Cond{shard.IfExists(bs("big"))}, Then: []shard.Op{shard.GetOp(bs("big")), shard.PutOp(bs("m"), bs("1"))}}
	for i, step := range []struct {
		name  string
		now   uint64
		cmds  []raft.Command
		want  string
		state string
	}{
		{"the first", 10, []raft.Command{in(put("a", "1"), 1, 1, 0, 60)}, "ok 1.0", "a=1@1.0"},
		{"another write of the key, then a copy of the first", 11, []raft.Command{put("a", "2"), in(put("a", "1"), 1, 1, 0, 60)}, "ok 2.0,ok 1.0", "a=2@2.0"},
		{"a copy in one entry with the first", 12, []raft.Command{in(put("b", "1"), 1, 2, 0, 60), put("b", "2"), in(put("b", "1"), 1, 2, 0, 60)}, "ok 3.0,ok 3.1,ok 3.0", "a=2@2.0 b=2@3.1"},
		{"a conflict stays a conflict", 13, []raft.Command{in(cas("b", at(9, 9), "3"), 1, 3, 0, 60), del("b"), in(cas("b", at(9, 9), "3"), 1, 3, 0, 60)}, "conflict have 3.1 4.0,ok 4.1,conflict have 3.1 4.0", "a=2@2.0"},
		{"success stays success", 14, []raft.Command{in(cas("b", shard.Version{}, "4"), 1, 4, 0, 60), in(cas("b", shard.Version{}, "4"), 1, 4, 0, 60)}, "ok 5.0,ok 5.0", "a=2@2.0 b=4@5.0"},
		{"a key of another shard leaves no trace of its number", 15, []raft.Command{in(put("z", "1"), 1, 5, 0, 60), in(put("c", "1"), 1, 5, 0, 60)}, "range 3 6.0,ok 6.1", "a=2@2.0 b=4@5.0 c=1@6.1"},
		{"a malformed body is answered the same way again", 16, []raft.Command{in(raft.Command{Op: shard.OpPut, Body: []byte{9}}, 1, 6, 0, 60), in(put("c", "9"), 1, 6, 0, 60)}, "malformed 7.0,malformed 7.0", "a=2@2.0 b=4@5.0 c=1@6.1"},
		{"acknowledged", 17, []raft.Command{in(del("c"), 1, 8, 7, 60), in(put("a", "1"), 1, 1, 0, 60), in(put("a", "7"), 1, 7, 0, 60)}, "ok 8.0,settled,settled", "a=2@2.0 b=4@5.0"},
		{"what a transaction read is too large to keep", 18, []raft.Command{put("big", big), in(txn(read), 1, 9, 8, 60), del("m"), in(txn(read), 1, 9, 8, 60)}, "ok 9.0,txn true BIG@9.0 9.1,ok 9.2,txn true 9.1 cut", "a=2@2.0 b=4@5.0 big=BIG@9.0"},
		{"expired", 61, []raft.Command{in(put("a", "9"), 1, 10, 9, 60), in(put("a", "9"), 2, 1, 0, 60), in(put("b", "1"), 1, 2, 0, 60)}, "expired true 60 61,expired false 60 61,settled", "a=2@2.0 b=4@5.0 big=BIG@9.0"},
		{"a header that cannot be right", 62, []raft.Command{in(put("a", "9"), 1, 100, 1, 90)}, "malformed 11.0", "a=2@2.0 b=4@5.0 big=BIG@9.0"},
		{"the end of a session", 63, []raft.Command{in(raft.Command{Op: shard.OpEndSession, Body: shard.AppendDelete(nil, bs("a"))}, 1, 10, 9, 90), in(txn(read), 1, 9, 8, 60), {Op: shard.OpEndSession, Body: shard.AppendDelete(nil, bs("a"))}}, "ok 12.0,settled,ok 12.2", "a=2@2.0 b=4@5.0 big=BIG@9.0"},
	} {
		index := raft.Index(i + 1)
		b := e.NewBatch()
		results, err := applyAt(b, m, d, index, step.now, step.cmds...)
		if err != nil {
			t.Fatalf("%s: %v", step.name, err)
		}
		if err := b.Commit(false); err != nil {
			t.Fatal(err)
		}
		b.Close()
		var got []string
		for slot, r := range results {
			got = append(got, describeSession(r, index, uint32(slot)))
		}
		if s := strings.ReplaceAll(strings.Join(got, ","), big, "BIG"); s != step.want {
			t.Errorf("%d %s: got %s, want %s", index, step.name, s, step.want)
		}
		if s := strings.ReplaceAll(contents(t, e, 1), big, "BIG"); s != step.state {
			t.Errorf("%d %s: left %s, want %s", index, step.name, s, step.state)
		}
	}
}

// checkSessionDeterminism applies random session commands on three replicas: one
// entry per batch; many entries per batch with a restart now and then; and one
// that begins with a copy of what the first one keeps, as a snapshot brings it.
// All must end with the same bytes, and every number may take effect once.
func checkSessionDeterminism(t testing.TB, seed uint64) error {
	rnd := rand.New(rand.NewPCG(seed, 3))
	d := &raft.Descriptor{Shard: 7, Keyspace: 1, Version: 1}
	m := NewMachine()
	e1, e2, e3 := openEngine(t), openEngine(t), openEngine(t)
	clients := make([]session.Client, 12)
	for i := range clients {
		clients[i].ID = [16]byte{byte(i + 1)}
	}
	var old []raft.Command
	b2 := e2.NewBatch()
	flush := func() error {
		err := b2.Commit(false)
		b2.Close()
		b2 = e2.NewBatch()
		return err
	}
	const entries = 400
	now := uint64(100)
	for i := range raft.Index(entries) {
		now += rnd.Uint64N(8)
		var cmds []raft.Command
		for range 1 + rnd.IntN(5) {
			c := &clients[rnd.IntN(len(clients))]
			h, ok := c.Begin(7, (now+rnd.Uint64N(40))*1e9)
			if len(old) > 0 && rnd.IntN(3) == 0 {
				cmds = append(cmds, old[len(old)-1-rnd.IntN(min(len(old), 100))])
			}
			if !ok {
				continue
			}
			if rnd.IntN(3) > 0 {
				c.End(h)
			}
			cmd := put(fmt.Sprint("k", rnd.IntN(20)), fmt.Sprint(h.ID[0], ".", h.Seq))
			if rnd.IntN(4) == 0 {
				cmd = txn(shard.Txn{Then: []shard.Op{shard.GetOp(bs("k1")), shard.PutOp(bs("k2"), bs(strings.Repeat("v", rnd.IntN(3000))))}})
			}
			cmd.Session = h
			cmds = append(cmds, cmd)
			old = append(old, cmd)
		}
		if len(cmds) == 0 {
			continue
		}
		index := i + 1
		if i == entries/2 { // what a snapshot carries
			if err := copyGroup(t, e1, e3, d); err != nil {
				return err
			}
		}
		b := e1.NewBatch()
		r1, err := applyAt(b, m, d, index, now, cmds...)
		if err == nil {
			err = b.Commit(false)
		}
		b.Close()
		if err != nil {
			return err
		}
		r2, err := applyAt(b2, m, d, index, now, cmds...)
		if err != nil {
			return err
		}
		if !reflect.DeepEqual(r1, r2) {
			return fmt.Errorf("entry %d: one replica answers %x, another %x", index, r1, r2)
		}
		if rnd.IntN(10) == 0 {
			if err := flush(); err != nil {
				return err
			}
		}
		if i >= entries/2 {
			b := e3.NewBatch()
			r3, err := applyAt(b, NewMachine(), d, index, now, cmds...)
			if err == nil {
				err = b.Commit(false)
			}
			b.Close()
			if err != nil {
				return err
			}
			if !reflect.DeepEqual(r1, r3) {
				return fmt.Errorf("entry %d: one replica answers %x, one from a snapshot %x", index, r1, r3)
			}
		}
	}
	if err := flush(); err != nil {
		return err
	}
	b2.Close()
	want := dump(t, e1, 1) + machineState(t, e1, d)
	for i, e := range []*engine.Engine{e2, e3} {
		if got := dump(t, e, 1) + machineState(t, e, d); got != want {
			return fmt.Errorf("replica %d differs:\n%s\nwant\n%s", i+2, got, want)
		}
	}
	return nil
}

// copyGroup carries a group from one engine to another as a snapshot does.
func copyGroup(t testing.TB, from, to *engine.Engine, d *raft.Descriptor) error {
	_ = machineState(t, from, d) // writes the descriptor
	if err := to.SetIdent([16]byte{1}, 1); err != nil {
		return err
	}
	v, err := from.View(d)
	if err != nil {
		return err
	}
	defer v.Close()
	var in engine.Install
	in.Desc, in.Applied = *d, v.Applied()
	for part, list := range map[engine.ViewPart]*[]engine.KV{engine.ViewState: &in.State, engine.ViewData: &in.SmallKVs} {
		it, err := v.Iter(part)
		if err != nil {
			return err
		}
		for ok := it.First(); ok; ok = it.Next() {
			*list = append(*list, engine.KV{Key: append([]byte(nil), it.Key()...), Value: append([]byte(nil), it.Value()...)})
		}
		if err := it.Close(); err != nil {
			return err
		}
	}
	return to.InstallSnapshot(in)
}

// Shows that what replicas keep of sessions depends on nothing but the entries.
func TestSessionDeterminism(t *testing.T) {
	for seed := range uint64(4) {
		if err := checkSessionDeterminism(t, seed); err != nil {
			t.Fatalf("seed %d: %v", seed, err)
		}
	}
}

// Shows the errors a caller gets, through the store's door, and their outcomes.
func TestSessionErrors(t *testing.T) {
	h := newHost(t)
	s := NewStore(Options{Host: h, Engine: h.e})
	defer s.Close()
	do := func(c raft.Command) *shard.Response {
		return s.Do(context.Background(), &shard.Request{Shard: 7, Keyspace: 1, Kind: shard.KindWrite, Command: c})
	}
	first := do(in(put("a", "1"), 1, 1, 0, 60))
	again := do(in(put("a", "1"), 1, 1, 0, 60))
	if first.Err != nil || again.Err != nil || first.Receipt != again.Receipt || first.Receipt.Index != 1 {
		t.Fatalf("%+v, then %+v", first, again)
	}
	if r := do(in(put("a", "2"), 1, 3, 2, 60)); r.Err != nil {
		t.Fatal(r.Err)
	}
	var gone *shard.ResultGoneError
	if r := do(in(put("a", "1"), 1, 1, 0, 60)); !errors.As(r.Err, &gone) || !gone.Version.IsZero() || shard.OutcomeOf(r.Err) != shard.MaybeApplied {
		t.Fatalf("%+v", r)
	}
	big := do(put("big", strings.Repeat("x", 5000)))
	if big.Err != nil {
		t.Fatal(big.Err)
	}
	read := in(txn(shard.Txn{Then: []shard.Op{shard.GetOp(bs("big"))}}), 2, 1, 0, 60)
	if r := do(read); r.Err != nil || len(r.Txn.Gets[0].Value.Bytes) != 5000 {
		t.Fatalf("%+v", r)
	}
	if r := do(read); !errors.As(r.Err, &gone) || gone.Version.Index != 6 || !gone.Succeeded || shard.OutcomeOf(r.Err) != shard.Applied {
		t.Fatalf("%v", r.Err)
	}
	if got := s.Stats(); got != (Stats{Replayed: 3}) {
		t.Errorf("%+v", got)
	}
	var argument *shard.ArgumentError
	if r := do(in(put("a", "1"), 3, 1, 0, 7201)); !errors.As(r.Err, &argument) || shard.OutcomeOf(r.Err) != shard.NotApplied {
		t.Fatalf("%v", r.Err)
	}
}

// Shows that a group takes as many sessions as it may and refuses further ones.
func TestSessionsFull(t *testing.T) {
	e, m := openEngine(t), NewMachine()
	d := &raft.Descriptor{Shard: 7, Keyspace: 1, Version: 1}
	apply := func(index raft.Index, now uint64, from, n int) string {
		var cmds []raft.Command
		for i := range n {
			c := in(del("a"), 0, 1, 0, 60)
			c.Session.ID = [16]byte{1, byte((from + i) >> 8), byte(from + i)}
			cmds = append(cmds, c)
		}
		b := e.NewBatch()
		defer b.Close()
		results, err := applyAt(b, m, d, index, now, cmds...)
		if err == nil {
			err = b.Commit(false)
		}
		if err != nil {
			t.Fatal(err)
		}
		got := map[string]int{}
		for i, r := range results {
			word, _, _ := strings.Cut(describeSession(r, index, uint32(i)), " ")
			got[word]++
		}
		return fmt.Sprint(got)
	}
	for i := range session.MaxSessions / 250 {
		if got := apply(raft.Index(i+1), 10, i*250, 250); got != "map[ok:250]" {
			t.Fatal(i, got)
		}
	}
	if got := apply(100, 10, session.MaxSessions, 20); got != "map[full:20]" {
		t.Fatal(got)
	}
	if got := apply(101, 10, 0, 20); got != "map[ok:20]" {
		t.Fatal("sessions that are known: ", got)
	}
	// When time has passed, new ones find room.
	if got := apply(102, 61, session.MaxSessions, 20); got != "map[expired:20]" {
		t.Fatal(got)
	}
	cmd := in(put("a", "1"), 99, 1, 0, 120)
	b := e.NewBatch()
	defer b.Close()
	results, err := applyAt(b, m, d, 103, 61, cmd)
	if err != nil || describeSession(results[0], 103, 0) != "ok 103.0" {
		t.Fatal(err, describeSession(results[0], 103, 0))
	}
}
