package linear

import (
	"bytes"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/flotillakv/flotilla/shard"
)

func ver(i uint64) shard.Version { return shard.Version{Lineage: 1, Index: 1, Slot: uint32(i)} }

func put(call, ret int64, v Value, out shard.Outcome) Op {
	return Op{Name: "put", Call: call, Return: ret, Write: 1, Values: State{v}, Outcome: out, Held: true}
}

func get(call, ret int64, v Value) Op {
	return Op{Name: "get", Call: call, Return: ret, Read: 1, Saw: State{v}, Outcome: shard.Applied}
}

// TestCheck: one history per kind of contradiction, and the neighbours of each
// that are in order.
func TestCheck(t *testing.T) {
	cas := func(call, ret int64, want, v Value, held bool, out shard.Outcome) Op {
		return Op{Name: "cas", Call: call, Return: ret, Write: 1, Values: State{v}, Conditional: true, Want: want, Held: held, Outcome: out}
	}
	del := func(call, ret int64, out shard.Outcome) Op {
		return Op{Name: "delete", Call: call, Return: ret, Write: 1, Outcome: out, Held: true}
	}
	batch := func(call, ret int64, a, b Value, out shard.Outcome) Op {
		return Op{Name: "batch", Call: call, Return: ret, Write: 3, Values: State{a, b}, Outcome: out, Held: true}
	}
	scan := func(call, ret int64, a, b Value) Op {
		return Op{Name: "scan", Call: call, Return: ret, Read: 3, Saw: State{a, b}, Outcome: shard.Applied}
	}
	const ok, maybe, no = shard.Applied, shard.MaybeApplied, shard.NotApplied
	withHave := func(o Op, v shard.Version) Op { o.Have = v; return o }
	withReceipt := func(o Op, v shard.Version) Op { o.Receipt = v; return o }
	withVersion := func(o Op, v shard.Version) Op { o.SawVersions[0] = v; return o }
	for _, tc := range []struct {
		name string
		ops  []Op
		bad  string // empty: in order
	}{
		{"a write is read", []Op{put(0, 1, 1, ok), get(2, 3, 1)}, ""},
		{"a concurrent write is read or not", []Op{put(0, 10, 1, ok), get(1, 2, 1), get(3, 4, 1)}, ""},
		{"new then old", []Op{put(0, 10, 1, ok), get(1, 2, 1), get(3, 4, 0)}, "no order"},
		{"an acknowledged write is lost", []Op{put(0, 1, 1, ok), get(2, 3, 0)}, "no order"},
		{"an old value comes back", []Op{put(0, 1, 1, ok), put(2, 3, 2, ok), get(4, 5, 1)}, "no order"},
		{"unknown, never seen", []Op{put(0, 1, 1, maybe), get(2, 3, 0)}, ""},
		{"unknown, seen late", []Op{put(0, 1, 1, maybe), get(2, 3, 0), get(4, 5, 1)}, ""},
		{"unknown, seen and gone", []Op{put(0, 1, 1, maybe), get(2, 3, 1), get(4, 5, 0)}, "no order"},
		{"unknown removal takes effect late", []Op{put(0, 1, 1, ok), del(2, 3, maybe), get(4, 5, 1), get(6, 7, 0)}, ""},
		{"unknown removal, then back", []Op{put(0, 1, 1, ok), del(2, 3, maybe), get(4, 5, 0), get(6, 7, 1)}, "no order"},
		{"refused, seen", []Op{put(0, 1, 1, no), get(2, 3, 1)}, "refused"},
		{"refused removal took effect", []Op{put(0, 1, 1, ok), del(2, 3, no), get(4, 5, 0)}, "no order"},
		{"from nowhere", []Op{get(2, 3, 7)}, "nobody wrote"},
		{"from the future", []Op{get(2, 3, 7), put(5, 6, 7, ok)}, "before it was written"},
		{"swap", []Op{put(0, 1, 1, ok), cas(2, 3, 1, 2, true, ok), get(4, 5, 2)}, ""},
		{"two swaps of one value", []Op{put(0, 1, 1, ok), cas(2, 3, 1, 2, true, ok), cas(2, 3, 1, 3, true, ok)}, "no order"},
		{"conflict without a reason", []Op{put(0, 1, 1, ok), cas(2, 3, 1, 2, false, ok)}, "no order"},
		{"conflict with an unknown write", []Op{put(0, 1, 1, ok), put(2, 3, 2, maybe), cas(4, 5, 1, 3, false, ok)}, ""},
		{"conflict that names its reason", []Op{withReceipt(put(0, 1, 1, ok), ver(1)), withReceipt(put(2, 3, 2, ok), ver(2)), withHave(cas(4, 5, 1, 3, false, ok), ver(2))}, ""},
		{"conflict that names an old reason", []Op{withReceipt(put(0, 1, 1, ok), ver(1)), withReceipt(put(2, 3, 2, ok), ver(2)), withHave(cas(4, 5, 9, 3, false, ok), ver(1))}, "no order"},
		{"conflict that took effect", []Op{put(0, 1, 1, ok), put(1, 2, 4, ok), cas(2, 3, 1, 2, false, ok), get(4, 5, 2)}, "condition"},
		{"half a batch", []Op{batch(0, 1, 1, 2, ok), scan(2, 3, 1, 0)}, "no order"},
		{"half an unknown batch", []Op{batch(0, 1, 1, 2, maybe), scan(2, 3, 0, 2)}, "no order"},
		{"an unknown batch", []Op{batch(0, 1, 1, 2, maybe), scan(2, 3, 0, 0), scan(4, 5, 1, 2)}, ""},
		{"a scan torn by two batches", []Op{batch(0, 1, 1, 2, ok), batch(2, 9, 3, 4, ok), scan(3, 8, 1, 4)}, "no order"},
		{"two versions of a value", []Op{withReceipt(put(0, 1, 1, ok), ver(1)), withVersion(get(2, 3, 1), ver(2))}, "version"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			h := NewHistory()
			for _, o := range tc.ops {
				h.Add(o)
			}
			good, bad := Check(h, time.Minute)
			switch {
			case tc.bad == "" && (len(bad) > 0 || good != 1):
				t.Fatalf("%d good, bad: %v", good, bad)
			case tc.bad != "" && len(bad) == 0:
				t.Fatal("not found")
			case tc.bad != "" && !strings.Contains(bad[0].Error(), tc.bad):
				t.Fatalf("found %v, want %q", bad[0], tc.bad)
			}
		})
	}
}

// TestWriteRead: a history on disk is the history.
func TestWriteRead(t *testing.T) {
	h := NewHistory()
	h.Add(put(0, 1, h.Fresh(), shard.Applied))
	h.Add(get(2, 3, 0))
	var b bytes.Buffer
	if err := h.Write(&b); err != nil {
		t.Fatal(err)
	}
	again, err := Read(&b)
	if err != nil {
		t.Fatal(err)
	}
	if c := again.Counts(); c != h.Counts() || c.Ops != 2 || c.Reads != 1 {
		t.Fatalf("%+v", c)
	}
	_, bad := Check(again, time.Minute)
	if len(bad) != 1 {
		t.Fatalf("%v", bad)
	}
	path := filepath.Join(t.TempDir(), "picture.html")
	if err := bad[0].Draw(path); err != nil {
		t.Fatal(err)
	}
	if st, err := os.Stat(path); err != nil || st.Size() == 0 {
		t.Fatalf("%v, %v", st, err)
	}
}
