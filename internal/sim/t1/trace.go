package t1

import (
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/flotillakv/flotilla/internal/sim"
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
	act  bool // an action of the schedule; what names it
}

// tracer hashes everything that must be equal in two runs of a seed, and keeps
// the last lines.
type tracer struct {
	hash uint64
	n    uint64
	ring []line
	feed *sim.Feed // gets every line; nil: none
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
	if t.feed != nil {
		l.put(t.feed)
	}
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
		what := l.what
		if l.act {
			what = "do " + what
		}
		fmt.Fprintf(&b, "%-10s", what)
		if l.text != nil {
			fmt.Fprintf(&b, " %s\n", l.text)
			continue
		}
		l.named(func(name string, v uint64) {
			switch name {
			case "for":
				fmt.Fprintf(&b, " for %v", time.Duration(v))
			case "hash":
				fmt.Fprintf(&b, " hash=%016x", v)
			default:
				fmt.Fprintf(&b, " %s=%d", name, v)
			}
		})
		b.WriteString("\n")
	}
	return b.String()
}

// fields are the names of the two numbers of an event. A name with a stroke
// stands for two numbers in one, split at the bit behind the colon; one with a
// plus for a node counted from 0, which is told counted from 1.
var fields = map[string][2]string{
	"boot": {"epoch", "groups"}, "crash": {"image", "rounds"}, "recrash": {"try", ""}, "stop": {"", ""}, "failed": {"", ""}, "batch": {"loop", "hash"},
	"frame": {"to+/bytes:32", "hash"}, "chunk": {"to+/bytes:32", "hash"}, "refused": {"from+", ""}, "support": {"node/withdrawn:1", "epoch"}, "yield": {"times", ""},
	"role": {"shard/term:40", "lead/state:2"}, "commit": {"shard/index:40", "hash"}, "conf": {"shard/index:40", "conf"}, "destroyed": {"shard", "replica"},
	"installed": {"shard", "index"}, "snap-sent": {"shard/to:32", "index/failed:1"}, "answer": {"shard/index:40", "slot/bytes:32"}, "denied": {"shard", "unknown"},
	"client": {"client/outcome:32", "call"}, "final": {"shard/applied:40", "hash"}, "heal": {"nodes", ""}, "live": {"ns_after", ""}, "headless": {"shard", ""},
}

// named calls f with each number of a line.
func (l *line) named(f func(name string, v uint64)) {
	names, ok := fields[l.what]
	if l.act {
		names = [2]string{"peer", "for"}
	} else if !ok {
		names = [2]string{"a", "b"}
	}
	tell := func(name string, v uint64) {
		if s, from0 := strings.CutSuffix(name, "+"); from0 {
			name, v = s, v+1
		}
		f(name, v)
	}
	for i, v := range [2]uint64{l.a, l.b} {
		first, rest, two := strings.Cut(names[i], "/")
		switch {
		case first == "":
		case !two:
			tell(first, v)
		default:
			second, bits, _ := strings.Cut(rest, ":")
			k, _ := strconv.Atoi(bits)
			tell(first, v>>k)
			tell(second, v&(1<<k-1))
		}
	}
}

// put writes the line as data.
func (l *line) put(to *sim.Feed) {
	what := l.what
	if l.act {
		what = "action"
	}
	to.Begin(l.at, l.node+1, what)
	if l.act {
		to.Str("do", l.what)
	}
	if l.text != nil {
		to.Str("text", l.text.String())
	} else {
		l.named(to.Num)
	}
	to.Line()
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
