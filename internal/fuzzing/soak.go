package fuzzing

import (
	"encoding/hex"
	"flag"
	"fmt"
	"math/rand/v2"
	"reflect"
	"testing"
	"time"
)

var (
	soakExecs = flag.Int("soak.execs", 0, "run each fuzz target that often on mutated seeds, without coverage, instead of on its seeds alone")
	soakSeed  = flag.Uint64("soak.seed", 1, "seed of the mutations")
)

// F is a *testing.F whose target can also be soaked: run very often in this
// process on mutations of its seeds. Go's own fuzzing is guided by coverage and
// runs some ten thousand inputs a second; a soak is blind and runs a million.
//
//	go test ./transport -run FuzzDecodeFrame -soak.execs 10000000 -soak.seed 7
type F struct {
	*testing.F
	seeds [][]any
}

// New wraps f.
func New(f *testing.F) *F { return &F{F: f} }

// Add adds a seed, as testing.F.Add does.
func (f *F) Add(args ...any) {
	f.F.Add(args...)
	f.seeds = append(f.seeds, args)
}

// Fuzz takes the target: a function of a testing.TB and of the seeds' types.
// With -soak.execs it soaks it first; then it goes on as testing.F.Fuzz.
func (f *F) Fuzz(target any) {
	v := reflect.ValueOf(target)
	if *soakExecs > 0 {
		f.soak(v)
	}
	in := []reflect.Type{reflect.TypeFor[*testing.T]()}
	for i := 1; i < v.Type().NumIn(); i++ {
		in = append(in, v.Type().In(i))
	}
	f.F.Fuzz(reflect.MakeFunc(reflect.FuncOf(in, nil, false), v.Call).Interface())
}

// soaking is the testing.TB of a soak: a failure prints the input.
type soaking struct {
	testing.TB
	target reflect.Value
	n      int
	args   []any
}

func (s *soaking) Fatal(args ...any) { s.Helper(); s.fail(fmt.Sprintln(args...)) }

func (s *soaking) Fatalf(format string, args ...any) {
	s.Helper()
	s.fail(fmt.Sprintf(format, args...))
}

func (s *soaking) Error(args ...any) { s.Helper(); s.fail(fmt.Sprintln(args...)) }

func (s *soaking) Errorf(format string, args ...any) {
	s.Helper()
	s.fail(fmt.Sprintf(format, args...))
}

func (s *soaking) fail(what string) {
	s.Helper()
	s.TB.Fatalf("%s\nexecution %d of -soak.seed=%d, input %s", what, s.n, *soakSeed, show(s.args))
}

func show(args []any) (out string) {
	for _, a := range args {
		if b, ok := a.([]byte); ok {
			out += " " + hex.EncodeToString(b)
		} else {
			out += fmt.Sprintf(" %T(%v)", a, a)
		}
	}
	return out
}

// budgeted says whether this execution is held to the allocation budget, which
// costs more than most decoders.
func (s *soaking) budgeted() bool { return s.n%16 == 0 }

func (f *F) soak(v reflect.Value) {
	s := &soaking{TB: f.F, target: v}
	m := mutator{rng: rand.New(rand.NewPCG(*soakSeed, 0x50a4))}
	for _, seed := range f.seeds {
		for _, a := range seed {
			if b, ok := a.([]byte); ok {
				m.seeds = append(m.seeds, b)
			}
		}
	}
	defer func() {
		if p := recover(); p != nil {
			f.F.Errorf("panic: %v\nexecution %d of -soak.seed=%d, input %s", p, s.n, *soakSeed, show(s.args))
			panic(p)
		}
	}()
	call := caller(v, s)
	start := time.Now()
	for s.n = 0; s.n < *soakExecs; s.n++ {
		seed := f.seeds[m.rng.IntN(len(f.seeds))]
		s.args = s.args[:0]
		for _, a := range seed {
			s.args = append(s.args, m.mutate(a))
		}
		call()
	}
	f.F.Logf("soak: %d executions, %.0f/s", s.n, float64(s.n)/time.Since(start).Seconds())
}

// caller avoids reflection for the usual shapes.
func caller(v reflect.Value, s *soaking) func() {
	switch t := v.Interface().(type) {
	case func(testing.TB, []byte):
		return func() { t(s, s.args[0].([]byte)) }
	case func(testing.TB, []byte, bool):
		return func() { t(s, s.args[0].([]byte), s.args[1].(bool)) }
	case func(testing.TB, uint64, []byte):
		return func() { t(s, s.args[0].(uint64), s.args[1].([]byte)) }
	case func(testing.TB, uint8, []byte):
		return func() { t(s, s.args[0].(uint8), s.args[1].([]byte)) }
	case func(testing.TB, uint32, []byte):
		return func() { t(s, s.args[0].(uint32), s.args[1].([]byte)) }
	}
	return func() {
		in := []reflect.Value{reflect.ValueOf(s)}
		for _, a := range s.args {
			in = append(in, reflect.ValueOf(a))
		}
		v.Call(in)
	}
}

// mutator changes seeds at random.
type mutator struct {
	rng   *rand.Rand
	seeds [][]byte // all byte strings among the seeds
	buf   []byte
}

// maxSoakInput bounds a mutated input in bytes; what is longer is cut.
const maxSoakInput = 1 << 10

func (m *mutator) mutate(a any) any {
	r := m.rng
	switch v := a.(type) {
	case []byte:
		return m.bytes(v)
	case bool:
		return r.Uint64()&1 == 0
	case uint8:
		return m.number(uint64(v)).(uint8)
	case uint64:
		switch r.IntN(4) {
		case 0:
			return r.Uint64() >> r.UintN(64)
		case 1:
			return v + uint64(r.IntN(3)) - 1
		}
		return v
	case uint32:
		if r.IntN(3) == 0 {
			return r.Uint32() >> r.UintN(32)
		}
		return v
	}
	return a
}

func (m *mutator) number(v uint64) any {
	if m.rng.IntN(3) == 0 {
		return uint8(m.rng.Uint32())
	}
	return uint8(v)
}

// numbers that decoders stumble over.
var numbers = [...]uint64{0, 1, 2, 127, 128, 255, 256, 1<<15 - 1, 1 << 15, 1<<16 - 1, 1 << 24, 1<<31 - 1, 1 << 31, 1<<32 - 1, 1 << 62, 1<<63 - 1, 1 << 63, 1<<64 - 1}

// bytes returns a mutation of seed, in a buffer that the next call reuses.
func (m *mutator) bytes(seed []byte) []byte {
	r := m.rng
	b := append(m.buf[:0], seed[:min(len(seed), maxSoakInput)]...)
	for n := 1 + r.IntN(4); n > 0; n-- {
		at := 0
		if len(b) > 0 {
			at = r.IntN(len(b))
		}
		switch k := r.IntN(10); {
		case len(b) == 0 || k == 0 && len(b) < maxSoakInput: // insert
			ins := 1 + r.IntN(8)
			b = append(b, make([]byte, ins)...)
			copy(b[at+ins:], b[at:])
			for i := range ins {
				b[at+i] = byte(r.Uint32())
			}
		case k <= 2:
			b[at] ^= 1 << r.UintN(8)
		case k == 3:
			b[at] = byte(r.Uint32())
		case k == 4: // cut
			b = b[:at]
		case k == 5: // remove a part
			end := min(len(b), at+1+r.IntN(16))
			b = append(b[:at], b[end:]...)
		case k == 6 || k == 7: // a number of 1, 2, 4 or 8 bytes, either order
			x, size := numbers[r.IntN(len(numbers))], 1<<r.UintN(4)
			swap := r.Uint64()&1 == 0
			for i := 0; i < size && at+i < len(b); i++ {
				j := i
				if swap {
					j = size - 1 - i
				}
				b[at+i] = byte(x >> (8 * j))
			}
		case k == 8: // repeat a part
			end := min(len(b), at+1+r.IntN(32))
			if len(b)+end-at <= maxSoakInput {
				b = append(b, b[at:end]...)
			}
		default: // splice another seed in
			o := m.seeds[r.IntN(len(m.seeds))]
			if len(o) > 0 {
				from := r.IntN(len(o))
				b = append(b[:at], o[from:max(from, min(len(o), from+maxSoakInput-at))]...)
			}
		}
	}
	m.buf = b
	return b
}
