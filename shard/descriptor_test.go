package shard

import (
	"bytes"
	"errors"
	"fmt"
	"testing"

	"github.com/flotillakv/flotilla/multiraft/raft"
)

// Shows which keys, ranges and commands a shard accepts, and with what it
// refuses the others.
func TestCheckAgainstDescriptor(t *testing.T) {
	mid := &Descriptor{Shard: 7, Keyspace: 1, Start: []byte("c"), End: []byte("m"), Version: 3}
	all := &Descriptor{Shard: 8, Version: 1}
	b := func(s string) []byte { return []byte(s) }
	for _, c := range []struct {
		key       string
		mid, last bool
	}{{"b", false, true}, {"c", true, true}, {"lzz", true, true}, {"m", false, true}} {
		if got := CheckKey(mid, b(c.key)) == nil; got != c.mid {
			t.Errorf("key %q in [c,m): %v", c.key, got)
		}
		if got := CheckKey(all, b(c.key)) == nil; got != c.last {
			t.Errorf("key %q in all: %v", c.key, got)
		}
	}
	for _, c := range []struct {
		start, end string
		ok         bool
	}{{"c", "m", true}, {"d", "e", true}, {"c", "", false}, {"", "d", false}, {"c", "n", false}, {"b", "d", false}} {
		if got := CheckRange(mid, b(c.start), b(c.end)) == nil; got != c.ok {
			t.Errorf("range [%q,%q) in [c,m): %v", c.start, c.end, got)
		}
		if CheckRange(all, b(c.start), b(c.end)) != nil {
			t.Errorf("range [%q,%q) is not in all", c.start, c.end)
		}
	}
	var epoch *EpochError
	if err := CheckKey(mid, b("z")); !errors.As(err, &epoch) || len(epoch.Descriptors) != 1 || epoch.Descriptors[0].Version != 3 {
		t.Errorf("the refusal carries no descriptor: %v", err)
	}
	if CheckVersion(mid, 3) != nil || CheckVersion(mid, 0) != nil || !errors.As(CheckVersion(mid, 2), &epoch) {
		t.Error("descriptor versions are compared wrongly")
	}
}

// Shows that a command inside passes, one across a boundary names it, and one
// outside is routed again.
func TestCheckCommandSpan(t *testing.T) {
	d := &Descriptor{Shard: 7, Start: []byte("c"), End: []byte("m"), Version: 3}
	batch := func(keys ...string) raft.Command {
		var b Batch
		for _, k := range keys {
			b.Delete([]byte(k))
		}
		return must(b.Command())
	}
	txn := Txn{If: []Cond{IfExists([]byte("d"))}, Then: []Op{GetOp([]byte("e"))}, Else: []Op{DeleteRangeOp([]byte("c"), []byte("n"))}}
	for _, c := range []struct {
		name string
		cmd  raft.Command
		want string
	}{
		{"inside", batch("c", "d", "l"), "<nil>"},
		{"over the end", batch("c", "m"), `cross "m"`},
		{"over the start", batch("b", "d"), `cross "c"`},
		{"outside", batch("a", "z"), "epoch"},
		{"a key outside", must(DeleteCommand([]byte("z"))), "epoch"},
		{"a range that is the shard", must(DeleteRangeCommand([]byte("c"), []byte("m"))), "<nil>"},
		{"a range over the end", must(DeleteRangeCommand([]byte("d"), nil)), `cross "m"`},
		{"a range over the start", must(DeleteRangeCommand(nil, []byte("d"))), `cross "c"`},
		{"a range to the right", must(DeleteRangeCommand([]byte("m"), nil)), "epoch"},
		{"a range to the left", must(DeleteRangeCommand(nil, []byte("c"))), "epoch"},
		{"a transaction whose else crosses", must(txn.Command()), `cross "m"`},
	} {
		err := CheckCommandSpan(d, c.cmd)
		got := fmt.Sprint(err)
		var cross *CrossShardError
		var epoch *EpochError
		switch {
		case errors.As(err, &cross):
			got = fmt.Sprintf("cross %q", cross.At)
		case errors.As(err, &epoch):
			got = "epoch"
		}
		if got != c.want {
			t.Errorf("%s: got %s, want %s", c.name, got, c.want)
		}
	}
}

// Shows that planned splits ascend strictly, lie inside the bounds, come in the
// asked number where there is room, and cut the space evenly.
func TestEvenSplits(t *testing.T) {
	b := func(s string) []byte { return []byte(s) }
	if got := fmt.Sprintf("%x", EvenSplits(4)); got != "[40 80 c0]" {
		t.Errorf("four shards: %s", got)
	}
	for _, c := range []struct {
		start, end string
		n, want    int
	}{
		{"", "", 0, 0}, {"", "", 1, 0}, {"", "", 2, 1}, {"", "", 48, 47}, {"", "", 65536, 65535},
		{"user", "uses", 64, 63}, {"user0", "user:", 10, 9}, {"b", "a", 4, 0}, {"a", "a", 4, 0}, {"a", "a\x00", 4, 0}, {"\xff\xff", "", 16, 15},
	} {
		keys := EvenSplitsBetween(b(c.start), b(c.end), c.n)
		if len(keys) != c.want {
			t.Errorf("[%q,%q) in %d: %d keys, want %d", c.start, c.end, c.n, len(keys), c.want)
		}
		last := b(c.start)
		for _, k := range keys {
			if bytes.Compare(k, last) <= 0 || (c.end != "" && bytes.Compare(k, b(c.end)) >= 0) {
				t.Fatalf("[%q,%q) in %d: %q after %q", c.start, c.end, c.n, k, last)
			}
			last = k
		}
		if spans, err := SplitRanges(keys); err != nil || len(spans) != len(keys)+1 {
			t.Errorf("[%q,%q) in %d: %v", c.start, c.end, c.n, err)
		}
	}
	if _, err := SplitRanges([][]byte{b("b"), b("a")}); err == nil {
		t.Error("descending split keys pass")
	}
	if _, err := SplitRanges([][]byte{nil}); err == nil {
		t.Error("an empty split key passes")
	}
}
