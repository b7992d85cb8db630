package shard

import (
	"bytes"
	"encoding/binary"
	"errors"
	"reflect"
	"testing"

	"github.com/flotillakv/flotilla/internal/fuzzing"
	"github.com/flotillakv/flotilla/multiraft/raft"
)

var v1 = Version{Lineage: 7, Index: 300, Slot: 2}

// must returns the command of a constructor that has to succeed.
func must(c raft.Command, err error) raft.Command {
	if err != nil {
		panic(err)
	}
	return c
}

func sampleBatch() *Batch {
	var b Batch
	b.Put([]byte("a"), []byte("1"))
	b.Delete([]byte("b"))
	b.DeleteRange([]byte("c"), []byte("d"))
	b.Put([]byte("e"), nil)
	return &b
}

func sampleTxn() *Txn {
	return &Txn{
		If:   []Cond{IfVersion([]byte("a"), v1), IfExists([]byte("b")), IfAbsent([]byte("c")), IfValue([]byte("d"), []byte("x"))},
		Then: []Op{PutOp([]byte("a"), []byte("1")), GetOp([]byte("b")), DeleteRangeOp([]byte("c"), nil)},
		Else: []Op{DeleteOp([]byte("a")), GetOp([]byte("d"))},
	}
}

func sampleCommands() map[string]raft.Command {
	k, v := []byte("key"), []byte("value")
	return map[string]raft.Command{
		"put":         must(PutCommand(k, v)),
		"delete":      must(DeleteCommand(k)),
		"deleterange": must(DeleteRangeCommand([]byte("a"), []byte("b"))),
		"cas":         must(CASCommand(k, v1, v)),
		"casabsent":   must(CASCommand(k, Version{}, nil)),
		"batch":       must(sampleBatch().Command()),
		"txn":         must(sampleTxn().Command()),
		"keyed":       must(KeyedCommand(k, v)),
	}
}

// Shows that the bytes of each command body are those on record.
func TestCommandGolden(t *testing.T) {
	g := openGolden(t, "commands")
	cs := sampleCommands()
	for _, name := range []string{"put", "delete", "deleterange", "cas", "casabsent", "batch", "txn", "keyed"} {
		g.check(name, cs[name].Body)
		if err := CheckCommand(cs[name]); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// Shows that decoding gives back what was encoded.
func TestCommandRoundTrip(t *testing.T) {
	cs := sampleCommands()
	if k, v, err := DecodePut(cs["put"].Body); err != nil || string(k) != "key" || string(v) != "value" {
		t.Fatal(k, v, err)
	}
	if k, err := DecodeDelete(cs["delete"].Body); err != nil || string(k) != "key" {
		t.Fatal(k, err)
	}
	if s, e, err := DecodeDeleteRange(cs["deleterange"].Body); err != nil || string(s) != "a" || string(e) != "b" {
		t.Fatal(s, e, err)
	}
	if k, w, v, err := DecodeCAS(cs["cas"].Body); err != nil || string(k) != "key" || w != v1 || string(v) != "value" {
		t.Fatal(k, w, v, err)
	}
	ops, err := DecodeBatch(cs["batch"].Body)
	if err != nil || ops.Len() != 4 {
		t.Fatal(ops.Len(), err)
	}
	var again Batch
	for o := range ops.All() {
		again.Add(o)
	}
	if !bytes.Equal(must(again.Command()).Body, cs["batch"].Body) {
		t.Fatal("a batch rebuilt from its operations differs")
	}
	v, err := DecodeTxn(cs["txn"].Body)
	if err != nil {
		t.Fatal(err)
	}
	var txn Txn
	for c := range v.If.All() {
		txn.If = append(txn.If, c)
	}
	for o := range v.Then.All() {
		txn.Then = append(txn.Then, o)
	}
	for o := range v.Else.All() {
		txn.Else = append(txn.Else, o)
	}
	if !bytes.Equal(txn.Append(nil), cs["txn"].Body) {
		t.Fatal("a transaction rebuilt from its view differs")
	}
}

// Shows, for each limit and malformed argument, which typed error names it.
func TestCommandLimits(t *testing.T) {
	k := []byte("k")
	long := bytes.Repeat(k, MaxKeyBytes+1)
	big := make([]byte, MaxValueBytes+1)
	manyOps, bigBatch, ranges := &Batch{}, &Batch{}, &Batch{}
	for range MaxRangeDeletes + 1 {
		ranges.DeleteRange(k, nil)
	}
	for range MaxBatchOps + 1 {
		manyOps.Delete(k)
	}
	for range 4 {
		bigBatch.Put(k, big[:MaxBatchBytes/4])
	}
	gets := make([]Op, MaxTxnGets+1)
	for i := range gets {
		gets[i] = GetOp(k)
	}
	batch := func(b *Batch) func() (raft.Command, error) { return b.Command }
	txn := func(x Txn) func() (raft.Command, error) { return x.Command }
	inBatch := func(o Op) func() (raft.Command, error) {
		b := &Batch{}
		b.Add(o)
		return b.Command
	}
	for _, c := range []struct {
		name string
		make func() (raft.Command, error)
		want error
	}{
		{"put of an empty key", func() (raft.Command, error) { return PutCommand(nil, k) }, &ArgumentError{Field: "key"}},
		{"put of a long key", func() (raft.Command, error) { return PutCommand(long, k) }, &LimitError{"bytes of a key", MaxKeyBytes, len(long)}},
		{"put of a big value", func() (raft.Command, error) { return PutCommand(k, big) }, &LimitError{"bytes of a value", MaxValueBytes, len(big)}},
		{"put of the longest key and biggest value", func() (raft.Command, error) { return PutCommand(long[1:], big[1:]) }, nil},
		{"delete of an empty key", func() (raft.Command, error) { return DeleteCommand(nil) }, &ArgumentError{Field: "key"}},
		{"cas of a long key", func() (raft.Command, error) { return CASCommand(long, v1, k) }, &LimitError{"bytes of a key", MaxKeyBytes, len(long)}},
		{"cas of a big value", func() (raft.Command, error) { return CASCommand(k, v1, big) }, &LimitError{"bytes of a value", MaxValueBytes, len(big)}},
		{"range with start after end", func() (raft.Command, error) { return DeleteRangeCommand([]byte("b"), []byte("a")) }, &ArgumentError{Field: "range"}},
		{"range with equal bounds", func() (raft.Command, error) { return DeleteRangeCommand(k, k) }, nil},
		{"range without bounds", func() (raft.Command, error) { return DeleteRangeCommand(nil, nil) }, nil},
		{"range with a long bound", func() (raft.Command, error) { return DeleteRangeCommand(append(long, 'x'), nil) }, &LimitError{"bytes of a range bound", MaxKeyBytes + 1, len(long) + 1}},
		{"empty batch", batch(&Batch{}), &ArgumentError{Field: "batch"}},
		{"batch of too many operations", batch(manyOps), &LimitError{"operations of a batch or transaction", MaxBatchOps, MaxBatchOps + 1}},
		{"batch of too many bytes", batch(bigBatch), &LimitError{"bytes of a batch", MaxBatchBytes, bigBatch.Bytes()}},
		{"batch of too many range deletes", batch(ranges), &LimitError{"range deletes of a batch or transaction", MaxRangeDeletes, MaxRangeDeletes + 1}},
		{"batch with an empty key", inBatch(PutOp(nil, k)), &ArgumentError{Field: "key"}},
		{"batch with a get", inBatch(GetOp(k)), &ArgumentError{Field: "operation"}},
		{"empty transaction", txn(Txn{}), &ArgumentError{Field: "transaction"}},
		{"transaction with too many gets", txn(Txn{Then: gets}), &LimitError{"reads of a transaction", MaxTxnGets, len(gets)}},
		{"transaction of too many bytes", txn(Txn{If: []Cond{IfValue(k, big)}}), &LimitError{"bytes of a transaction", MaxBatchBytes, len(big) + 10}},
		{"transaction with an unknown condition", txn(Txn{If: []Cond{{Kind: 9, Key: k}}}), &ArgumentError{Field: "condition"}},
		{"transaction with an empty condition key", txn(Txn{If: []Cond{IfExists(nil)}}), &ArgumentError{Field: "key"}},
	} {
		cmd, err := c.make()
		sameError(t, c.name, err, c.want)
		if err == nil {
			if err := CheckCommand(cmd); err != nil {
				t.Errorf("%s: made but not accepted: %v", c.name, err)
			}
		}
	}
}

// sameError compares type and the fields that want sets.
func sameError(t *testing.T, name string, got, want error) {
	t.Helper()
	if w, ok := want.(*ArgumentError); ok {
		var g *ArgumentError
		if !errors.As(got, &g) || g.Field != w.Field || g.Reason == "" {
			t.Errorf("%s: got %v, want an invalid %s", name, got, w.Field)
		}
		return
	}
	if !reflect.DeepEqual(got, want) {
		t.Errorf("%s: got %v, want %v", name, got, want)
	}
}

// Shows that commands this version does not serve are refused at the door.
func TestCheckCommandRefuses(t *testing.T) {
	put := must(PutCommand([]byte("k"), nil))
	session, flags := put, put
	session.Session = &raft.SessionHeader{}
	ending := must(EndSessionCommand([]byte("k")))
	flags.Flags = 1
	for _, c := range []struct {
		name string
		cmd  raft.Command
		want error
	}{
		{"a session without a number", session, &ArgumentError{Field: "session"}},
		{"the end of no session", ending, &ArgumentError{Field: "session"}},
		{"flags", flags, &ArgumentError{Field: "flags"}},
		{"code 0", raft.Command{}, &ArgumentError{Field: "operation"}},
		{"a get", raft.Command{Op: OpGet, Body: AppendDelete(nil, []byte("k"))}, &ArgumentError{Field: "operation"}},
		{"an admin command", raft.Command{Op: OpSplit}, &ArgumentError{Field: "operation"}},
		{"a user command", raft.Command{Op: OpUser, Body: []byte("x")}, nil},
		{"a big user command", raft.Command{Op: OpUser, Body: make([]byte, MaxUserBytes+1)}, &LimitError{"bytes of a command", MaxUserBytes, MaxUserBytes + 1}},
		{"a keyed command", must(KeyedCommand([]byte("k"), nil)), nil},
		{"a keyed command without its key", raft.Command{Op: OpKeyed, Body: []byte{5, 'k'}}, &ArgumentError{Field: "command body"}},
		{"a cut body", raft.Command{Op: OpPut, Body: []byte{5, 'k'}}, &ArgumentError{Field: "command body"}},
		{"a delete with more behind it", raft.Command{Op: OpDelete, Body: []byte{1, 'k', 0}}, &ArgumentError{Field: "command body"}},
		{"a batch with more behind it", raft.Command{Op: OpBatch, Body: append(must(sampleBatch().Command()).Body, 0)}, &ArgumentError{Field: "command body"}},
		{"a transaction with more behind it", raft.Command{Op: OpTxn, Body: append(must(sampleTxn().Command()).Body, 0)}, &ArgumentError{Field: "command body"}},
		{"a batch whose count lies", raft.Command{Op: OpBatch, Body: binary.BigEndian.AppendUint32(nil, 3)}, &ArgumentError{Field: "command body"}},
	} {
		sameError(t, c.name, CheckCommand(c.cmd), c.want)
	}
}

// Shows that a reset batch encodes as a new one and that a clone is independent.
func TestBatchReuse(t *testing.T) {
	b := sampleBatch()
	clone, under := b.Clone(), must(b.Command())
	b.Reset()
	b.Put([]byte("x"), []byte("y"))
	var fresh Batch
	fresh.Put([]byte("x"), []byte("y"))
	if !bytes.Equal(must(b.Command()).Body, must(fresh.Command()).Body) {
		t.Error("a reset batch differs from a new one")
	}
	if !bytes.Equal(must(clone.Command()).Body, must(sampleBatch().Command()).Body) {
		t.Error("the clone changed with its original")
	}
	if !bytes.Equal(under.Body, must(sampleBatch().Command()).Body) {
		t.Error("a command under way changed with its batch")
	}
	b.Reset()
	if b.Len() != 0 || b.Check() == nil {
		t.Error("a reset batch is not empty")
	}
	for range b.Ops() {
		t.Error("a reset batch has operations")
	}
	b.Add(PutOp([]byte("x"), []byte("y")))
	if b.Len() != 1 || b.Bytes() != fresh.Bytes() {
		t.Error("a batch reused twice differs")
	}
}

// FuzzCommand feeds arbitrary bodies to every op: no panic, and a body that is
// accepted gives the same body when encoded again from its parts.
func FuzzCommand(tf *testing.F) {
	f := fuzzing.New(tf)
	for _, c := range sampleCommands() {
		f.Add(uint8(c.Op), c.Body)
	}
	f.Fuzz(func(t testing.TB, op uint8, body []byte) {
		c := raft.Command{Op: raft.Op(op), Body: body}
		fuzzing.Decode(t, len(body), func() { VisitSpans(c, func(Span) error { return nil }); CheckCommand(c) })
		spans := 0
		if err := VisitSpans(c, func(s Span) error { spans++; return nil }); err != nil || CheckCommand(c) != nil {
			if CheckCommand(c) == nil && c.Op != OpUser {
				t.Fatal("checked but not visited")
			}
			return
		}
		if spans == 0 {
			t.Fatal("an accepted command touches no key")
		}
		again := reencode(t, c)
		if err := CheckCommand(again); err != nil || !bytes.Equal(reencode(t, again).Body, again.Body) {
			t.Fatalf("not stable: %x", body)
		}
	})
}

func reencode(t testing.TB, c raft.Command) raft.Command {
	t.Helper()
	switch c.Op {
	case OpPut:
		k, v, _ := DecodePut(c.Body)
		return must(PutCommand(k, v))
	case OpKeyed:
		k, v, _ := DecodePut(c.Body)
		return must(KeyedCommand(k, v))
	case OpDelete:
		k, _ := DecodeDelete(c.Body)
		return must(DeleteCommand(k))
	case OpDeleteRange:
		s, e, _ := DecodeDeleteRange(c.Body)
		return must(DeleteRangeCommand(s, e))
	case OpCAS:
		k, w, v, _ := DecodeCAS(c.Body)
		return must(CASCommand(k, w, v))
	case OpBatch:
		ops, _ := DecodeBatch(c.Body)
		var b Batch
		for o := range ops.All() {
			b.Add(o)
		}
		return must(b.Command())
	case OpTxn:
		v, _ := DecodeTxn(c.Body)
		var x Txn
		for cond := range v.If.All() {
			x.If = append(x.If, cond)
		}
		for o := range v.Then.All() {
			x.Then = append(x.Then, o)
		}
		for o := range v.Else.All() {
			x.Else = append(x.Else, o)
		}
		return must(x.Command())
	}
	t.Fatalf("op %d was accepted", c.Op)
	return c
}
