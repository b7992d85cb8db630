package kv

import (
	"sync/atomic"
	"testing"
	"testing/synctest"
)

// Shows that what is pushed is read once each, by few goroutines as long as reads
// do not block, by more when they do, and never by more than the bound; that some
// are kept for the next reads, and none after close.
func TestReaders(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var gate chan struct{}
		var under, most, reads atomic.Int64
		p := newReaders(func(_ *reader, j readJob) {
			c := j.counted
			most.Store(max(most.Load(), under.Add(1)))
			if gate != nil {
				<-gate
			}
			under.Add(-1)
			reads.Add(1)
			if c.gen++; c.gen > 1 {
				t.Error("a call was read twice")
			}
		})
		goroutines := func() int {
			p.mu.Lock()
			defer p.mu.Unlock()
			return p.mu.busy + p.mu.idle
		}
		push := func(n int) {
			for range n {
				if !p.push(readJob{counted: new(call)}) {
					t.Error("refused")
				}
			}
			synctest.Wait()
		}
		for range 1000 {
			push(3)
		}
		if n := goroutines(); reads.Load() != 3000 || n > p.few {
			t.Errorf("%d reads by %d goroutines", reads.Load(), n)
		}
		gate = make(chan struct{})
		push(p.few + 1)
		if under.Load() != int64(p.few) {
			t.Errorf("%d reads under way, %d expected", under.Load(), p.few)
		}
		push(5000)
		if under.Load() != readersMax {
			t.Errorf("%d reads under way with 5000 that wait, %d expected", under.Load(), readersMax)
		}
		close(gate)
		synctest.Wait()
		if n := goroutines(); reads.Load() != 3000+int64(p.few)+1+5000 || n > readersIdle || n == 0 {
			t.Errorf("%d reads, %d goroutines are left", reads.Load(), n)
		}
		push(100)
		p.close()
		if p.push(readJob{}) {
			t.Error("taken in after close")
		}
		if n := goroutines(); n != 0 || reads.Load() != 8101+int64(p.few) {
			t.Errorf("%d reads, %d goroutines are left after close", reads.Load(), n)
		}
		if most.Load() > readersMax {
			t.Errorf("%d reads at a time", most.Load())
		}
	})
}
