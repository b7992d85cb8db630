package engine

import (
	"encoding/binary"
	"math/rand/v2"
	"testing"
	"time"
)

// BenchmarkTablePut puts random keys out of 100,000, one by one and 16 at a time.
func BenchmarkTablePut(b *testing.B) {
	t := newTable(time.Now())
	val := make([]byte, 140)
	rng := rand.New(rand.NewPCG(1, 2))
	ops := make([]tableOp, 16)
	for i := range ops {
		ops[i] = tableOp{kind: entrySet, key: make([]byte, 21), val: val}
	}
	draw := func() {
		for i := range ops {
			binary.BigEndian.PutUint64(ops[i].key[13:], rng.Uint64N(100000))
		}
	}
	for range 100000 / 4 {
		draw()
		t.putAll(1, 0, ops)
	}
	b.Run("one", func(b *testing.B) {
		for i := 0; i < b.N; i += 16 {
			draw()
			for k := range ops {
				t.put(2, 0, entrySet, ops[k].key, ops[k].val)
			}
		}
	})
	b.Run("all", func(b *testing.B) {
		for i := 0; i < b.N; i += 16 {
			draw()
			t.putAll(2, 0, ops)
		}
	})
}
