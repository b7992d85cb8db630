package fuzzing

import (
	"fmt"
	"testing"
)

// recorder notes whether a check failed instead of failing.
type recorder struct {
	testing.TB
	failed string
}

func (r *recorder) Helper() {}

func (r *recorder) Fatalf(format string, args ...any) { r.failed = fmt.Sprintf(format, args...) }

var sink []byte

// TestDecode shows that the budget can be kept and can be broken.
func TestDecode(t *testing.T) {
	for _, c := range []struct {
		input, allocates int
		ok               bool
	}{
		{0, 0, true}, {10, 1 << 10, true}, {1 << 20, 3 << 20, true},
		{10, 1 << 20, false}, {1 << 20, 5 << 20, false},
	} {
		r := &recorder{TB: t}
		Decode(r, c.input, func() { sink = make([]byte, c.allocates) })
		if (r.failed == "") != c.ok {
			t.Errorf("%d bytes for an input of %d: %q", c.allocates, c.input, r.failed)
		}
	}
}

func BenchmarkDecode(b *testing.B) {
	for b.Loop() {
		Decode(b, 0, func() {})
	}
}
