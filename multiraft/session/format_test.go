package session

import (
	"bytes"
	"errors"
	"flag"
	"fmt"
	"os"
	"strings"
	"testing"

	"github.com/flotillakv/flotilla/internal/fuzzing"
)

var rewrite = flag.Bool("rewrite", false, "write the golden files anew")

func sample() Record {
	return Record{
		maxSeq: 300, acked: 297, done: 1<<63 | 0b1101, deadline: 17e17, born: 16e17,
		results: []kept{
			{298, Result{Lineage: 7, Index: 1000, Slot: 2, Bytes: []byte("ab")}},
			{300, Result{Lineage: 9, Index: 1001, Cut: true}},
		},
	}
}

// Shows that the layouts have not moved: a difference is a format change, which
// needs a new version.
func TestGolden(t *testing.T) {
	r := sample()
	key := []byte{tagSlot, 0, 0, 0, 5}
	got := fmt.Sprintf("record %x\nhead %x\nslot-key %x\n", r.appendTo(nil), appendHead(nil, 300, 17), key)
	if !bytes.Equal(slotKey(5), key) {
		t.Fatalf("slot key %x", slotKey(5))
	}
	const name = "testdata/session.golden"
	if *rewrite {
		if err := os.WriteFile(name, []byte(got), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(name)
	if err != nil || string(want) != got {
		t.Fatalf("the layout moved:\n got %s\nwant %s (%v)", got, want, err)
	}
	var back Record
	if err := back.decode(r.appendTo(nil)); err != nil || fmt.Sprint(back) != fmt.Sprint(r) {
		t.Fatalf("%+v, %v", back, err)
	}
}

// Shows that each kind of damage and a newer version are refused.
func TestDecodeRefuses(t *testing.T) {
	good := sample()
	b := good.appendTo(nil)
	spoil := func(f func(r *Record)) []byte {
		r := sample()
		f(&r)
		return r.appendTo(nil)
	}
	newer := bytes.Clone(b)
	newer[0] = 2
	for name, b := range map[string][]byte{
		"empty": nil, "a newer version": newer, "cut": b[:len(b)-1], "left over": append(bytes.Clone(b), 0),
		"no command":           spoil(func(r *Record) { r.maxSeq = 0 }),
		"acked beyond":         spoil(func(r *Record) { r.acked = 301 }),
		"the highest not run":  spoil(func(r *Record) { r.done &^= 1 }),
		"a result not run":     spoil(func(r *Record) { r.done &^= 4 }),
		"a result acked":       spoil(func(r *Record) { r.acked = 298 }),
		"results out of order": spoil(func(r *Record) { r.results[0], r.results[1] = r.results[1], r.results[0] }),
		"below the window":     spoil(func(r *Record) { r.acked, r.results[0].seq = 200, 236 }),
		"too many bytes":       spoil(func(r *Record) { r.results[0].Bytes = make([]byte, MaxResultBytes+1) }),
		"run before the first": spoil(func(r *Record) { r.maxSeq, r.acked, r.results, r.done = 3, 0, nil, 0b1001 }),
	} {
		var r Record
		if err := r.decode(b); !errors.Is(err, ErrBadRecord) {
			t.Errorf("%s: %v, %+v", name, err, r)
		}
	}
	for name, m := range map[string]memStore{
		"a damaged record":   {string(header0()): {1}},
		"a damaged head":     {"s": {1}},
		"a newer head":       {"s": {2, 0, 0}},
		"a missing slot":     {"s": {1, 5, 0}},
		"a record gone":      {"s": {1, 1, 0}, string(slotKey(0)): append([]byte{slotVersion}, make([]byte, 24)...)},
		"a slot of a newer":  {"s": {1, 1, 0}, string(slotKey(0)): append([]byte{2}, make([]byte, 24)...)},
		"a head beyond 2^32": {"s": {1, 0xff, 0xff, 0xff, 0xff, 0xff, 1, 0}},
	} {
		r := &rig{Table: Table{Store: m}, m: m, runs: map[string]int{}}
		if got, err := r.do(10, header(1, 1, 0, 60), 0); !errors.Is(err, ErrBadRecord) {
			t.Errorf("%s: %q, %v", name, got, err)
		}
	}
}

// header0 is the key of the record of session 1.
func header0() []byte {
	h := header(1, 1, 0, 1)
	return append(append([]byte{tagRecord}, h.ID[:]...), 0, 0, 0, 0, 0, 0, 0, 7)
}

// FuzzRecord: no panic, and what decodes survives encoding and use.
func FuzzRecord(tf *testing.F) {
	f := fuzzing.New(tf)
	r := sample()
	f.Add(r.appendTo(nil), uint64(301), uint64(299))
	f.Add((&Record{maxSeq: 1, done: 1}).appendTo(nil), uint64(2), uint64(0))
	f.Fuzz(func(t testing.TB, b []byte, seq, acked uint64) {
		var r Record
		if r.decode(b) != nil {
			return
		}
		enc := r.appendTo(nil)
		var again Record
		if err := again.decode(enc); err != nil || !bytes.Equal(again.appendTo(nil), enc) {
			t.Fatalf("%x becomes %x: %v", b, enc, err)
		}
		h := header(1, seq, acked, 60)
		if Check(h) != "" || r.executed(seq) || r.settled(seq) {
			return
		}
		r.note(h, Result{Lineage: 1, Index: 1, Bytes: []byte("result")}, []byte{1})
		if err := again.decode(r.appendTo(nil)); err != nil || !r.executed(seq) {
			t.Fatalf("after command %d: %v, %s", seq, err, &r)
		}
	})
}

// FuzzHead: no panic, and what decodes survives encoding.
func FuzzHead(tf *testing.F) {
	f := fuzzing.New(tf)
	f.Add(appendHead(nil, 3, 1))
	f.Fuzz(func(t testing.TB, b []byte) {
		tab := Table{Store: memStore{"s": b}}
		live, hand, err := tab.head()
		if err != nil {
			return
		}
		tab = Table{Store: memStore{"s": appendHead(nil, live, hand)}}
		if l, h, err := tab.head(); err != nil || l != live || h != hand {
			t.Fatalf("%x: %d %d, then %d %d %v", b, live, hand, l, h, err)
		}
	})
}

// Shows that the short forms of a full window fit, so that a record always knows
// at least the short form of what it remembers, and that a full table fits a
// snapshot's list of 64 MiB.
func TestBounds(t *testing.T) {
	r := newRig()
	for seq := uint64(1); seq <= Window; seq++ {
		if _, err := r.do(10, header(1, seq, 0, 60), MaxResultBytes/Window); err != nil {
			t.Fatal(err)
		}
	}
	n := len(r.m[string(header0())])
	if n > MaxResultBytes+Window*20+64 {
		t.Fatalf("a record of %d bytes", n)
	}
	if total := MaxSessions * (MaxResultBytes + Window*36 + 128); total > 64<<20 {
		t.Fatalf("a full table may have %d bytes", total)
	}
	if got := r.rec.String(); !strings.Contains(got, "executed 64 of the last 64") {
		t.Fatal(got)
	}
}
