package transport

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"testing"

	"github.com/flotillakv/flotilla/shard"
)

// told is an Answerer that counts how often it was told, and what.
type told struct {
	mu    sync.Mutex
	times int
	resp  *shard.Response
	err   error
	wake  chan struct{} // gets one token when it is told; may be nil
}

func (a *told) Answered(resp *shard.Response, err error) {
	a.mu.Lock()
	a.times++
	if a.err = err; resp != nil { // it is valid only now
		a.resp = (&response{Response: *resp}).clone()
		if resp.Value != nil {
			*a.resp.Value = *resp.Value
		}
	}
	a.mu.Unlock()
	if a.wake != nil {
		a.wake <- struct{}{}
	}
}

// what returns what it was told, if that was once.
func (a *told) what() (*shard.Response, error, bool) {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.resp, a.err, a.times == 1
}

// Many requests that nobody waits for share one stream in few frames; each gets
// its own answer, once, with the id its caller gave.
func TestClientStart(t *testing.T) {
	for name, h := range map[string]RequestHandler{"blocking": handlerFunc(echo), "async": asyncHandler{echo}} {
		t.Run(name, func(t *testing.T) {
			checkLeaks(t)
			_, c := startServer(t, h, Options{})
			const n = 2000
			wake := make(chan struct{}, 2*n)
			answers := make([]told, 2*n)
			for i := range n {
				for j, q := range []*shard.Request{get(fmt.Sprint(i)), put(fmt.Sprint(i))} {
					a := &answers[2*i+j]
					a.wake = wake
					if conn, _, ok := c.Start(q, a); !ok || conn == nil {
						t.Fatal("not started")
					}
				}
			}
			for range 2 * n {
				<-wake
			}
			for i := range n {
				if resp, err, once := answers[2*i].what(); !once || err != nil || resp.ID != 12345 || string(resp.Value.Bytes) != fmt.Sprint("value of ", i) {
					t.Fatalf("get %d: %+v, %v, once: %t", i, resp, err, once)
				}
				if resp, err, once := answers[2*i+1].what(); !once || err != nil || int(resp.Receipt.Slot) != len(fmt.Sprint(i)) {
					t.Fatalf("put %d: %+v, %v, once: %t", i, resp, err, once)
				}
			}
			if frames := c.mu.conn.frames.Load(); frames > n {
				t.Errorf("%d requests left in %d frames", 2*n, frames)
			}
		})
	}
}

// A request that was given up is not answered, and its node is told.
func TestClientAbandon(t *testing.T) {
	checkLeaks(t)
	running, ended := make(chan struct{}), make(chan struct{})
	_, c := startServer(t, handlerFunc(func(ctx context.Context, r *shard.Request) *shard.Response {
		if string(r.Key) == "quick" {
			return echo(ctx, r)
		}
		close(running)
		<-ctx.Done()
		close(ended)
		return r.Failed(shard.ErrClosed)
	}), Options{})
	var a told
	conn, id, ok := c.Start(get("slow"), &a)
	if !ok {
		t.Fatal("not started")
	}
	<-running
	conn.Abandon(id)
	conn.Abandon(id) // does nothing
	<-ended
	if _, err := c.Do(testContext(t), get("quick")); err != nil { // behind the answer of the other one
		t.Fatal(err)
	}
	if n := len(c.mu.conn.pending); a.times != 0 || n != 0 {
		t.Errorf("told %d times, %d requests are kept", a.times, n)
	}
}

// When a connection breaks under requests that nobody waits for, a write that was
// sent is ambiguous; a read, and what was not sent, had no effect.
func TestClientStartConnectionLost(t *testing.T) {
	checkLeaks(t)
	running := make(chan struct{}, 2)
	g, c := startServer(t, handlerFunc(func(ctx context.Context, r *shard.Request) *shard.Response {
		running <- struct{}{}
		<-ctx.Done()
		return r.Failed(shard.ErrClosed)
	}), Options{})
	wake := make(chan struct{}, 4)
	write, read, unsent := told{wake: wake}, told{wake: wake}, told{wake: wake}
	c.Start(put("w"), &write)
	c.Start(get("r"), &read)
	<-running
	<-running
	cn := c.mu.conn
	cn.register(1<<40, waiter{to: &unsent, shard: 7, kind: shard.KindWrite}) // an id that the sender has not come to
	g.Close()
	for range 3 {
		<-wake
	}
	for _, x := range []struct {
		what string
		a    *told
		want shard.Outcome
	}{{"a write that was sent", &write, shard.MaybeApplied}, {"a read that was sent", &read, shard.NotApplied}, {"a write that was not sent", &unsent, shard.NotApplied}} {
		if resp, err, once := x.a.what(); resp != nil || !once || shard.OutcomeOf(err) != x.want {
			t.Fatalf("%s: %+v, %v, once: %t", x.what, resp, err, once)
		}
	}
	var ambiguous *shard.AmbiguousError
	if _, err, _ := write.what(); !errors.As(err, &ambiguous) || ambiguous.Shard != 7 {
		t.Fatalf("the ambiguous write: %v", err)
	}
	var late told
	if _, _, ok := c.Start(put("w2"), &late); ok { // the break may be known to the sender only
		if _, err, once := late.what(); !once || shard.OutcomeOf(err) != shard.NotApplied {
			t.Fatalf("a write after the break: %v, once: %t", err, once)
		}
	}
	c.Close()
	var closed told
	if _, _, ok := c.Start(put("w3"), &closed); !ok || !errors.Is(closed.err, shard.ErrClosed) {
		t.Fatalf("a write of a closed client: started %t, %v", ok, closed.err)
	}
}
