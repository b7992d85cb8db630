package bench

import (
	"context"
	"errors"
	"fmt"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"
)

// pipedTarget is a memTarget that counts what is under way.
type pipedTarget struct {
	*memTarget
	under, most atomic.Int64
	closed      atomic.Int64
}

type memPipe struct {
	t    *pipedTarget
	room atomic.Int64
	done chan memCall
}

type memCall struct {
	tag   any
	found bool
	err   error
}

func (t *pipedTarget) Pipe(depth int) (Pipe, error) {
	p := &memPipe{t: t, done: make(chan memCall, depth)}
	p.room.Store(int64(depth))
	return p, nil
}

func (p *memPipe) start(tag any, f func() memCall) error {
	if p.room.Add(-1) < 0 {
		return errors.New("the pipe is full")
	}
	n := p.t.under.Add(1)
	p.t.most.Store(max(p.t.most.Load(), n)) // one starter at a time in virtual time
	go func() {
		c := f()
		c.tag = tag
		p.t.under.Add(-1)
		p.done <- c
	}()
	return nil
}

func (p *memPipe) Read(ctx context.Context, key []byte, tag any) error {
	k := string(key)
	return p.start(tag, func() memCall {
		_, found, err := p.t.memTarget.Read(ctx, []byte(k))
		return memCall{found: found, err: err}
	})
}

func (p *memPipe) Write(ctx context.Context, key, value []byte, tag any) error {
	k := string(key)
	return p.start(tag, func() memCall { return memCall{err: p.t.memTarget.Write(ctx, []byte(k), value)} })
}

func (p *memPipe) Receive() (any, bool, error) {
	c := <-p.done
	p.room.Add(1)
	return c.tag, c.found, c.err
}

func (p *memPipe) Close() error { p.t.closed.Add(1); return nil }

// A pipelined loop keeps as many operations under way as there are clients, from
// few goroutines, and counts, times and proves them like a loop of clients.
func TestPipelinedLoop(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		set, target := newSet(t, "A", 100), &pipedTarget{memTarget: newMemTarget(0)}
		if err := Load(t.Context(), set, []Target{target}, nil); err != nil {
			t.Fatal(err)
		}
		target.took = 10 * time.Millisecond
		res, err := Run(t.Context(), Config{Set: set, Targets: []Target{target}, Clients: 10, Pipelines: 3, Verify: 10,
			Warmup: 105 * time.Millisecond, Duration: time.Second})
		if err != nil {
			t.Fatal(err)
		}
		if res.Ops != 1000 || res.Errors != 0 || res.Pipelines != 3 || res.ServiceMs.P50 < 9.9 || res.ServiceMs.Max > 10.1 || res.Verified == 0 {
			t.Errorf("%+v", res)
		}
		if target.most.Load() != 10 || target.under.Load() != 0 || target.closed.Load() != 3 {
			t.Errorf("at most %d operations were under way, %d are left, %d pipes were closed", target.most.Load(), target.under.Load(), target.closed.Load())
		}
		if res.LatencyMs["read"].Count == 0 || res.LatencyMs["update"].Count == 0 {
			t.Errorf("%+v", res.LatencyMs)
		}
	})
}

// Operations that fail are counted and tried no faster than once in a millisecond;
// a record that is gone is an error of its own.
func TestPipelinedErrors(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		target := &pipedTarget{memTarget: newMemTarget(0)}
		target.refusals.Store(1 << 40)
		res, err := Run(t.Context(), Config{Set: newSet(t, "A", 10), Targets: []Target{target}, Clients: 4, Pipelines: 1, Duration: 100 * time.Millisecond,
			Classify: func(error) string { return "refused" }})
		if err != nil {
			t.Fatal(err)
		}
		if n := res.ErrorKinds["refused"] + res.ErrorKinds["not_found"]; res.Ops != 0 || n < 90 || n > 110 || res.ErrorKinds["refused"] == 0 || res.ErrorKinds["not_found"] == 0 {
			t.Errorf("%+v", res)
		}
	})
}

// What cannot be pipelined is refused before anything runs.
func TestPipelinedRefusals(t *testing.T) {
	piped := &pipedTarget{memTarget: newMemTarget(0)}
	for name, c := range map[string]Config{
		"scans":           {Set: newSet(t, "E", 10), Targets: []Target{piped}, Clients: 4, Pipelines: 1},
		"more than work":  {Set: newSet(t, "A", 10), Targets: []Target{piped}, Clients: 4, Pipelines: 5},
		"a simple target": {Set: newSet(t, "A", 10), Targets: []Target{piped, piped.memTarget}, Clients: 4, Pipelines: 2},
	} {
		t.Run(fmt.Sprint(name), func(t *testing.T) {
			if res, err := Run(t.Context(), c); err == nil {
				t.Errorf("%+v", res)
			}
		})
	}
}

// A pipelined open loop starts operations as they arrive, whatever became of those
// before; latency counts from the planned arrival; what finds no place is shed.
func TestPipelinedOpenLoop(t *testing.T) {
	for _, c := range []struct {
		took         time.Duration
		ops, shed    int64
		p50ms, maxms float64
	}{
		{10 * time.Millisecond, 1000, 0, 10, 10.3},   // ten under way
		{100 * time.Millisecond, 200, 800, 100, 101}, // twenty places, 0.1 s each
	} {
		synctest.Test(t, func(t *testing.T) {
			set, target := newSet(t, "A", 100), &pipedTarget{memTarget: newMemTarget(0)}
			if err := Load(t.Context(), set, []Target{target}, nil); err != nil {
				t.Fatal(err)
			}
			target.took = c.took
			res, err := Run(t.Context(), Config{Set: set, Targets: []Target{target}, Clients: 20, Pipelines: 3, Rate: 1000, Verify: 10,
				Warmup: 505 * time.Millisecond, Duration: time.Second})
			if err != nil {
				t.Fatal(err)
			}
			near := func(got, want int64) bool { return got >= want-want/10 && got <= want+want/10 }
			up := res.LatencyMs["update"]
			if !near(res.Ops, c.ops) || !near(res.Shed, c.shed) || res.Loop != "open" || up.P50 < c.p50ms-0.1 || up.Max > c.maxms || res.Verified == 0 {
				t.Errorf("%+v", res)
			}
			if target.under.Load() != 0 || target.closed.Load() != 3 {
				t.Errorf("%d are left, %d pipes were closed", target.under.Load(), target.closed.Load())
			}
		})
	}
}
