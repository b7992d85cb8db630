package bench

import (
	"bytes"
	"context"
	"fmt"
	"sync"
	"time"

	"github.com/flotillakv/flotilla/bench/workload"
)

const (
	// trackOneIn says which of many records are followed through a run, so that its
	// writes can be proved afterwards.
	trackOneIn = 64
	// trackPerRecord bounds the writes kept per record; older ones that cannot
	// be the last are dropped first.
	trackPerRecord = 64
)

// tracker keeps, for some records, the writes that may be the last one.
type tracker struct {
	oneIn uint64
	mu    sync.Mutex
	all   map[uint64]*tracked
}

type tracked struct {
	writes   []trackedWrite
	overflow bool // more writes at the same time than are kept
	unknown  bool // some write failed: any value may be there
}

type trackedWrite struct {
	value       []byte
	sent, ended time.Time
}

func (t *tracker) follows(record uint64) bool { return t != nil && record%t.oneIn == 0 }

// newTracker follows all of few records, and one in many of many.
func newTracker(records uint64) *tracker {
	return &tracker{oneIn: max(1, min(trackOneIn, records/64)), all: make(map[uint64]*tracked)}
}

// done keeps an acknowledged write, and forgets those that were over before it began.
func (t *tracker) done(record uint64, w trackedWrite) {
	t.mu.Lock()
	defer t.mu.Unlock()
	r := t.record(record)
	kept := r.writes[:0]
	latest := w.sent
	for _, o := range r.writes {
		if o.sent.After(latest) {
			latest = o.sent
		}
	}
	for _, o := range append(r.writes, w) {
		if !o.ended.Before(latest) || o.sent.Equal(latest) {
			kept = append(kept, o)
		}
	}
	if len(kept) > trackPerRecord {
		kept, r.overflow = kept[:trackPerRecord], true
	}
	r.writes = kept
}

func (t *tracker) failed(record uint64) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.record(record).unknown = true
}

func (t *tracker) record(record uint64) *tracked {
	r := t.all[record]
	if r == nil {
		r = new(tracked)
		t.all[record] = r
	}
	return r
}

// readBackFor and readBackPause are how long, and how often, a read that fails is
// tried again when records are proved: that a shard has no leader just then says
// nothing about what it holds.
const readBackFor, readBackPause = 15 * time.Second, 50 * time.Millisecond

// readBack reads a record that has to be proved.
func readBack(ctx context.Context, t Target, key []byte) (value []byte, found bool, err error) {
	for since := time.Now(); ; {
		if value, found, err = t.Read(ctx, key); err == nil || time.Since(since) > readBackFor {
			return value, found, err
		}
		select {
		case <-time.After(readBackPause):
		case <-ctx.Done():
			return value, found, err
		}
	}
}

// verify reads up to n followed records back through every target in turn, and
// returns how many held the value of a write that can have been the last.
func (t *tracker) verify(ctx context.Context, targets []Target, n int) (int, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	proved := 0
	for record, r := range t.all {
		if proved >= n {
			break
		}
		if r.unknown || r.overflow {
			continue
		}
		key := workload.AppendKey(nil, record)
		got, found, err := readBack(ctx, targets[proved%len(targets)], key)
		if err != nil {
			return proved, fmt.Errorf("reading record %q back: %w", key, err)
		}
		if !found {
			return proved, fmt.Errorf("record %q was acknowledged and is gone", key)
		}
		match := false
		for _, w := range r.writes {
			match = match || bytes.Equal(w.value, got)
		}
		if !match {
			return proved, fmt.Errorf("record %q does not hold the value of its last acknowledged write", key)
		}
		proved++
	}
	return proved, nil
}
