package engine

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"runtime"
	"slices"
	"sync/atomic"
	"testing"
	"time"
)

// TestLanes: what a table says of a span does not depend on how its keys are divided
// into lanes, and neither does the order of all of them.
func TestLanes(t *testing.T) {
	rng := rand.New(rand.NewPCG(1, 2))
	key := func() []byte {
		switch rng.IntN(8) {
		case 0:
			return []byte{prefixData}[:rng.IntN(2)]
		case 1:
			return append([]byte{prefixData, 0, 0}, make([]byte, rng.IntN(2))...)
		case 2:
			return append(StatePrefix(1), byte(rng.IntN(4)))
		case 3:
			return dataLimit(nil, rng.Uint32N(3))
		default:
			return DataKey(rng.Uint32N(3), fmt.Appendf(nil, "%d", rng.IntN(1000)))
		}
	}
	for round := range 30 {
		tab := newTable(time.Now())
		var all [][]byte
		for range rng.IntN(3000) {
			k := key()
			tab.put(1, 0, entrySet, k, k)
			all = append(all, k)
			if rng.IntN(100) == 0 {
				tab.each(key(), key(), func(keyRef) {})
			}
		}
		slices.SortFunc(all, bytes.Compare)
		all = slices.CompactFunc(all, bytes.Equal)
		for range 50 {
			start, end := key(), key()
			var want, got [][]byte
			for _, k := range all {
				if bytes.Compare(start, k) <= 0 && bytes.Compare(k, end) < 0 {
					want = append(want, k)
				}
			}
			tab.each(start, end, func(r keyRef) { got = append(got, tab.key(r)) })
			slices.SortFunc(got, bytes.Compare)
			if !slices.EqualFunc(got, want, bytes.Equal) {
				t.Fatalf("round %d: [%x, %x): %d keys of %d", round, start, end, len(got), len(want))
			}
		}
		var got [][]byte
		for _, r := range tab.oneRun() {
			got = append(got, tab.key(r))
		}
		if !slices.EqualFunc(got, all, bytes.Equal) {
			t.Fatalf("round %d: %d keys in order of %d", round, len(got), len(all))
		}
	}
}

// TestScanOfMany: scans while keys are added see, in order, all that was committed when
// they began, however many are in disorder.
func TestScanOfMany(t *testing.T) {
	e := deferredEngine(t, NewMemFS(), func(o *Options) { o.DeferBytes, o.DeferLogBytes = 1<<30, 1<<30 })
	const keys, each = 30_000, 100
	for ks := range uint32(20) { // each in a lane of its own
		var done atomic.Int64
		go func() {
			for i := 0; i < keys; i += each {
				b := e.NewBatch()
				for j := range each { // neither ascending nor descending
					b.Set(ks, fmt.Appendf(nil, "k%06d", (i+j)*7919%keys), []byte("v"))
				}
				if err := b.Commit(false); err != nil {
					t.Error(err)
				}
				b.Close()
				done.Store(int64(i + each))
			}
		}()
		for done.Load() < keys/2 {
			runtime.Gosched()
		}
		for scans, before := 0, int64(0); before < keys; scans++ {
			before = done.Load()
			it, err := e.NewIter(ks, nil, nil)
			must(t, err)
			var last []byte
			n := int64(0)
			for ok := it.First(); ok; ok = it.Next() {
				if bytes.Compare(last, it.Key()) >= 0 {
					t.Fatalf("%s behind %s", it.Key(), last)
				}
				last = append(last[:0], it.Key()...)
				n++
			}
			after := done.Load()
			must(t, it.Close())
			if n < before || n > after+each || n%each != 0 {
				t.Fatalf("scan %d of %d saw %d keys; %d were committed before it, %d after", scans, ks, n, before, after)
			}
		}
	}
}
