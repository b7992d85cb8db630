package t1

import (
	"fmt"
	"strings"
)

// traceKeep is how many of the last lines of a run are kept for printing.
const traceKeep = 3000

// line is one record of the trace, formatted only if somebody reads it.
type line struct {
	at   int64
	node int
	what string
	a, b uint64
	text fmt.Stringer
}

// tracer hashes everything that must be equal in two runs of a seed, and keeps
// the last lines.
type tracer struct {
	hash uint64
	n    uint64
	ring []line
}

func (t *tracer) add(l line) {
	if l.text != nil { // for the reader only
		t.keep(l)
		return
	}
	t.hash = mix(mix(mix(mix(t.hash, uint64(l.at)), uint64(l.node+1)<<8^hashString(l.what)), l.a), l.b)
	t.keep(l)
}

func (t *tracer) keep(l line) {
	if len(t.ring) < traceKeep {
		t.ring = append(t.ring, l)
	} else {
		t.ring[t.n%traceKeep] = l
	}
	t.n++
}

// tail formats the last n lines, oldest first.
func (t *tracer) tail(n int) string {
	n = min(n, len(t.ring))
	var b strings.Builder
	for i := t.n - uint64(n); i < t.n; i++ {
		l := &t.ring[i%traceKeep]
		fmt.Fprintf(&b, "%12.6f ", float64(l.at)/1e9)
		if l.node >= 0 {
			fmt.Fprintf(&b, "n%d ", l.node+1)
		} else {
			b.WriteString("-- ")
		}
		if l.text != nil {
			fmt.Fprintf(&b, "%-10s %s\n", l.what, l.text)
		} else {
			fmt.Fprintf(&b, "%-10s %d %d\n", l.what, l.a, l.b)
		}
	}
	return b.String()
}

// text is a line that was formatted when it was written.
type text string

func (s text) String() string { return string(s) }

// mix folds v into the running hash h.
func mix(h, v uint64) uint64 {
	h ^= v
	h *= 0x9E3779B97F4A7C15
	return h ^ h>>29
}

// hashBytes returns a 64-bit hash of b (FNV-1a, eight bytes at a time).
func hashBytes(b []byte) uint64 {
	h := uint64(14695981039346656037) ^ uint64(len(b))
	for len(b) >= 8 {
		v := uint64(b[0]) | uint64(b[1])<<8 | uint64(b[2])<<16 | uint64(b[3])<<24 | uint64(b[4])<<32 | uint64(b[5])<<40 | uint64(b[6])<<48 | uint64(b[7])<<56
		h = mix(h, v)
		b = b[8:]
	}
	for _, c := range b {
		h = (h ^ uint64(c)) * 1099511628211
	}
	return h ^ h>>31
}

func hashString(s string) uint64 {
	h := uint64(14695981039346656037)
	for i := range len(s) {
		h = (h ^ uint64(s[i])) * 1099511628211
	}
	return h
}
