package workload

import (
	"fmt"
	"math/rand/v2"
	"sync"
	"sync/atomic"
)

const (
	// poolSlack is how many bytes the pool of random bytes is longer than one
	// value: the number of different values.
	poolSlack = 1 << 20
	// MaxValueBytes bounds Config.ValueBytes.
	MaxValueBytes = 3 << 20
)

// Config describes a run's data.
type Config struct {
	Spec Spec
	// Dist overrides the law of popularity of the Spec. Empty keeps it.
	Dist Dist
	// Records is the number of records loaded before the run, at least 1.
	Records uint64
	// ValueBytes is the size of a value, in bytes, at most MaxValueBytes.
	ValueBytes int
	// Seed makes a run repeatable.
	Seed uint64
}

// Set is what all clients of a run share. It is safe for concurrent use.
type Set struct {
	spec     Spec
	dist     Dist
	records  uint64
	valueLen int
	seed     uint64
	pool     []byte
	next     atomic.Uint64 // number of the next record to insert
	acked    ackWindow
	// fromOp maps a draw from [0, 100) to an operation.
	fromOp [100]Op
}

// New returns the shared part of a run, or says which field of c is out of
// bounds.
func New(c Config) (*Set, error) {
	switch {
	case c.Records == 0:
		return nil, fmt.Errorf("workload: 0 records: at least 1 is needed")
	case c.ValueBytes < 0 || c.ValueBytes > MaxValueBytes:
		return nil, fmt.Errorf("workload: value of %d bytes: must lie between 0 and %d", c.ValueBytes, MaxValueBytes)
	}
	s := &Set{spec: c.Spec, dist: c.Spec.Dist, records: c.Records, valueLen: c.ValueBytes, seed: c.Seed}
	if c.Dist != "" {
		s.dist = c.Dist
	}
	n := 0
	for op, share := range c.Spec.Share {
		for range share {
			if n < len(s.fromOp) {
				s.fromOp[n] = Op(op)
			}
			n++
		}
	}
	if n != len(s.fromOp) {
		return nil, fmt.Errorf("workload: shares of workload %q add up to %d percent", c.Spec.Name, n)
	}
	s.pool = make([]byte, c.ValueBytes+poolSlack)
	r := rand.NewChaCha8([32]byte{byte(c.Seed), byte(c.Seed >> 8), 'p'})
	_, _ = r.Read(s.pool) // never returns an error
	s.next.Store(c.Records)
	s.acked.limit.Store(c.Records)
	return s, nil
}

// Spec returns the workload.
func (s *Set) Spec() Spec { return s.spec }

// Dist returns the law of popularity in force.
func (s *Set) Dist() Dist { return s.dist }

// Records returns the number of records loaded before the run.
func (s *Set) Records() uint64 { return s.records }

// Inserted returns one past the highest record below which every insert was
// acknowledged with Gen.Done.
func (s *Set) Inserted() uint64 { return s.acked.limit.Load() }

// Value returns the bytes a record is loaded with. The slice is shared and
// must not be changed.
func (s *Set) Value(record uint64) []byte {
	return s.value(mix(record ^ s.seed))
}

func (s *Set) value(draw uint64) []byte {
	at := draw % poolSlack
	return s.pool[at : at+uint64(s.valueLen) : at+uint64(s.valueLen)]
}

// ackWindow keeps the highest record below which all inserts are done, so that
// reads do not ask for a record whose insert is still in flight.
type ackWindow struct {
	limit atomic.Uint64
	mu    sync.Mutex
	ahead map[uint64]struct{} // done, but above limit
}

func (w *ackWindow) done(record uint64) {
	w.mu.Lock()
	defer w.mu.Unlock()
	at := w.limit.Load()
	if record != at {
		if w.ahead == nil {
			w.ahead = make(map[uint64]struct{})
		}
		w.ahead[record] = struct{}{}
		return
	}
	at++
	for {
		if _, ok := w.ahead[at]; !ok {
			break
		}
		delete(w.ahead, at)
		at++
	}
	w.limit.Store(at)
}
