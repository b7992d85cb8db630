// Package fuzzing helps the fuzz tests of decoders: it holds a decoder to an
// allocation budget, so that a short hostile input cannot make a node allocate
// much, and soaks them: runs them very often on mutated seeds (-soak.execs).
//
// The package owns no goroutine and no lock. It is for tests only.
package fuzzing

import (
	"runtime/metrics"
	"testing"
)

const (
	// Factor is how many bytes a decoder may allocate for each byte of its input.
	Factor = 4
	// Slack is what it may allocate besides, in bytes: errors, small structures,
	// and the grain in which the runtime counts.
	Slack = 96 << 10
)

// Decode runs decode, which reads an input of n bytes, and fails the test if it
// allocated more than Factor*n+Slack bytes. decode must be repeatable: when other
// goroutines allocate meanwhile, it is run again, up to three times, and the
// least figure counts.
func Decode(tb testing.TB, n int, decode func()) {
	tb.Helper()
	DecodeList(tb, n, Factor, decode)
}

// DecodeList is Decode for formats whose smallest element is much shorter than
// the structure it becomes: factor, instead of Factor, is that ratio.
func DecodeList(tb testing.TB, n, factor int, decode func()) {
	tb.Helper()
	if s, ok := tb.(*soaking); ok && !s.budgeted() {
		return
	}
	limit := uint64(factor*n + Slack)
	least := allocated(decode)
	for i := 0; i < 2 && least > limit; i++ {
		least = min(least, allocated(decode))
	}
	if least > limit {
		tb.Fatalf("an input of %d bytes made the decoder allocate %d bytes; its budget is %d", n, least, limit)
	}
}

// allocated returns the bytes that the process allocated on the heap while f
// ran. Large objects are counted at once, small ones when their span is full.
func allocated(f func()) uint64 {
	sample := []metrics.Sample{{Name: "/gc/heap/allocs:bytes"}}
	metrics.Read(sample)
	before := sample[0].Value.Uint64()
	f()
	metrics.Read(sample)
	return sample[0].Value.Uint64() - before
}
