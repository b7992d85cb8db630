package linear

import (
	"bufio"
	"encoding/json"
	"io"
	"sync"
	"time"

	"github.com/flotillakv/flotilla/shard"
)

// History is what happened. All methods may be called from many goroutines.
type History struct {
	start time.Time

	mu   sync.Mutex
	ops  []Op
	next Value
}

// NewHistory returns an empty history that begins now.
func NewHistory() *History { return &History{start: time.Now()} }

// Now returns the nanoseconds since the start.
func (h *History) Now() int64 { return int64(time.Since(h.start)) }

// Fresh returns a value that was never used.
func (h *History) Fresh() Value {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.next++
	return h.next
}

// Add records an operation that has ended.
func (h *History) Add(o Op) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.ops = append(h.ops, o)
}

// Ops returns a copy of the operations, in the order in which they ended.
func (h *History) Ops() []Op {
	h.mu.Lock()
	defer h.mu.Unlock()
	return append([]Op(nil), h.ops...)
}

// Write writes the history as one line of JSON per operation.
func (h *History) Write(w io.Writer) error {
	b := bufio.NewWriter(w)
	e := json.NewEncoder(b)
	for _, o := range h.Ops() {
		if err := e.Encode(o); err != nil {
			return err
		}
	}
	return b.Flush()
}

// Read reads what Write has written.
func Read(r io.Reader) (*History, error) {
	h := NewHistory()
	d := json.NewDecoder(r)
	for {
		var o Op
		if err := d.Decode(&o); err == io.EOF {
			return h, nil
		} else if err != nil {
			return nil, err
		}
		h.ops = append(h.ops, o)
	}
}

// Counts of a history.
type Counts struct {
	Ops, Reads, Writes, Ambiguous, Refused, Unheld int
	Groups                                         int
}

// Counts counts.
func (h *History) Counts() Counts {
	var c Counts
	groups := map[int]bool{}
	for _, o := range h.Ops() {
		groups[o.Group] = true
		c.Ops++
		switch {
		case o.Write == 0:
			c.Reads++
		case o.Outcome == shard.MaybeApplied:
			c.Ambiguous++
		case o.Outcome == shard.NotApplied:
			c.Refused++
		case o.Conditional && !o.Held:
			c.Unheld++
		default:
			c.Writes++
		}
	}
	c.Groups = len(groups)
	return c
}
