package engine

import (
	"fmt"
	"testing"
)

// BenchmarkDoorBatch is what a round writes, per entry: to each of 48 groups one
// entry of one 128-byte command, the one before it applied and truncated, in a
// batch on a file system in memory.
func BenchmarkDoorBatch(b *testing.B) { benchRound(b, NewMemFS(), "/n1", 48, false) }

// BenchmarkDoorGet reads committed keys with values of 128 bytes.
func BenchmarkDoorGet(b *testing.B) {
	e, err := Open(Options{Dir: "/n1", FS: NewMemFS(), Create: true})
	if err != nil {
		b.Fatal(err)
	}
	defer e.Close()
	w := e.NewBatch()
	keys := make([][]byte, 1000)
	for i := range keys {
		keys[i] = fmt.Appendf(nil, "user%012d", i)
		w.Set(1, keys[i], make([]byte, 128))
	}
	if err := w.Commit(false); err != nil {
		b.Fatal(err)
	}
	w.Close()
	var dst []byte
	b.ReportAllocs()
	for i := 0; b.Loop(); i++ {
		var ok bool
		if dst, ok, err = e.Get(1, keys[i%len(keys)], dst); !ok || err != nil {
			b.Fatal(ok, err)
		}
	}
}
