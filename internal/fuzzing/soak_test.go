package fuzzing

import (
	"bytes"
	"math/rand/v2"
	"reflect"
	"strings"
	"testing"
)

// FuzzWrapped shows that a wrapped target runs its seeds.
func FuzzWrapped(tf *testing.F) {
	f := New(tf)
	f.Add([]byte("seed"), true)
	ran := 0
	f.Fuzz(func(t testing.TB, b []byte, _ bool) { ran++ })
	if *soakExecs > 0 && ran < *soakExecs {
		f.Fatalf("%d of %d executions", ran, *soakExecs)
	}
}

// TestSoakFinds shows that mutation reaches a fault two changes away from the
// seed within a hundred thousand executions, and that the failure names the input.
func TestSoakFinds(t *testing.T) {
	m := mutator{rng: rand.New(rand.NewPCG(3, 4)), seeds: [][]byte{[]byte("length=00; rest")}}
	r := &recorder{TB: t}
	s := &soaking{TB: r}
	for s.n = 0; s.n < 100_000 && r.failed == ""; s.n++ {
		s.args = []any{m.mutate(m.seeds[0])}
		call := caller(reflect.ValueOf(func(t testing.TB, b []byte) {
			if i := bytes.IndexByte(b, '='); i >= 0 && bytes.HasPrefix(b[i:], []byte{'=', 0xff, 0xff}) {
				t.Fatal("read past the end")
			}
		}), s)
		call()
	}
	if !strings.Contains(r.failed, "read past the end") || !strings.Contains(r.failed, "3dffff") {
		t.Fatalf("after %d executions: %q", s.n, r.failed)
	}
}
