package raft

import (
	"bytes"
	"fmt"
	"testing"
)

// TestDigest: the values are on disks and on the wire, so they may not change; and
// every bit, the order, the length and the place in the log count.
func TestDigest(t *testing.T) {
	long := bytes.Repeat([]byte("flotilla"), 20)
	for _, c := range []struct {
		got, want Digest
	}{
		{Digest(0).Entry(1, 1, EntryEmpty), 0x76390e0ea28b1b21},
		{Digest(0).Entry(7, 3, EntryNormal).Add(nil), 0xe0cdf0847c3122b0},
		{Digest(1).Add([]byte("abc")), 0x4af473a635c7fec6},
		{Digest(1).Add(long), 0x5e91aa7d3fc92a9a},
	} {
		if c.got != c.want {
			t.Errorf("%#x, want %#x", uint64(c.got), uint64(c.want))
		}
	}
	seen := map[Digest]string{}
	for _, d := range []Digest{0, 1} { // short inputs count from the first one on
		if a, b := d.Add([]byte("a")), d.Add([]byte("b")); a == b || a.Add([]byte("c")) == a.Add([]byte("d")) || a == 0 {
			t.Errorf("from %d: %#x, %#x", d, uint64(a), uint64(b))
		}
	}
	note := func(d Digest, what string) {
		if o, ok := seen[d]; ok {
			t.Errorf("%s and %s have one digest", what, o)
		}
		seen[d] = what
	}
	for n := 1; n <= len(long); n++ {
		note(Digest(5).Add(make([]byte, n)), "zeros")
		b := bytes.Clone(long[:n])
		note(Digest(5).Add(b), "text")
		for bit := range 8 * n {
			b[bit/8] ^= 1 << (bit % 8)
			note(Digest(5).Add(b), "text with a bit flipped")
			b[bit/8] ^= 1 << (bit % 8)
		}
	}
	for i := range Index(50) {
		for term := range Term(50) {
			for typ := EntryEmpty; typ <= EntryConf; typ++ {
				note(Digest(5).Entry(i, term, typ), "an entry")
			}
		}
	}
	if Digest(5).Add([]byte("a")).Add([]byte("b")) == Digest(5).Add([]byte("b")).Add([]byte("a")) {
		t.Error("the order does not count")
	}
}

func BenchmarkDigest(b *testing.B) {
	for _, n := range []int{32, 160, 1024} {
		v := make([]byte, n)
		b.Run(fmt.Sprint(n), func(b *testing.B) {
			d := Digest(0)
			for b.Loop() {
				d = d.Entry(1, 1, EntryNormal).Add(v)
			}
			if d == 0 {
				b.Fatal(d)
			}
		})
	}
}
