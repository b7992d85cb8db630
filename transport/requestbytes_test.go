package transport

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/flotillakv/flotilla/shard"
)

// TestRequestBytes: a node whose handler answers nobody is sent 64 writes of half a
// mebibyte, and may hold four mebibytes. Those beyond are refused with the typed error;
// what is held is bounded and counted, and gone when all is answered.
func TestRequestBytes(t *testing.T) {
	if err := checkRequestBytes(t); err != nil {
		t.Error(err)
	}
}

func checkRequestBytes(t *testing.T) error {
	const writes, size, limit = 64, 512 << 10, 4 << 20
	release := make(chan struct{})
	h := asyncHandler{func(ctx context.Context, r *shard.Request) *shard.Response {
		if r.Kind == shard.KindWrite {
			<-release
		}
		return echo(ctx, r)
	}}
	g, c := startServer(t, h, Options{RequestBytes: limit})
	ctx := testContext(t)
	var wg sync.WaitGroup
	answers := make(chan error, writes)
	for range writes {
		wg.Go(func() {
			resp, err := c.Do(ctx, put(strings.Repeat("x", size)))
			if err == nil {
				err = resp.Err
			}
			answers <- err
		})
	}
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	refused := 0
	for refused < writes-limit/size-2 {
		var busy *shard.OverloadedError
		var err error
		answered := true
		select {
		case err = <-answers:
		case <-tick.C:
			answered = false
		case <-ctx.Done():
		}
		if held := g.Counters().RequestBytes; held > limit+2*size || ctx.Err() != nil {
			close(release)
			wg.Wait()
			return fmt.Errorf("%d bytes of requests are held, of %d allowed; %d are refused", held, limit, refused)
		}
		if !answered {
			continue
		}
		if !errors.As(err, &busy) || busy.RetryAfter <= 0 || shard.OutcomeOf(err) != shard.NotApplied {
			t.Fatalf("a write beyond what may be held: %v", err)
		}
		refused++
	}
	// Reads go on.
	if resp, err := c.Do(ctx, get("a")); err != nil || !resp.Found {
		t.Errorf("a read meanwhile: %v", err)
	}
	close(release)
	wg.Wait()
	close(answers)
	served := 0
	for err := range answers {
		if err == nil {
			served++
		}
	}
	eventually(t, "nothing is held", func() bool { // an answer leaves before its request is let go
		n := g.Counters()
		return n.RequestBytes == 0 && n.ResponseBytes == 0 && n.RequestsInFlight == 0
	})
	if n := g.Counters(); n.RequestsRefused < uint64(refused) || served == 0 {
		t.Errorf("at the end: %+v, %d served", n, served)
	}
	return nil
}

// TestAnswerBytes: reads whose answers are large are refused when those under way will
// fill what answers may take, once it is known how large they are.
func TestAnswerBytes(t *testing.T) {
	if err := checkAnswerBytes(t); err != nil {
		t.Error(err)
	}
}

func checkAnswerBytes(t *testing.T) error {
	const reads, size, limit = 64, 512 << 10, 4 << 20
	value := []byte(strings.Repeat("x", size))
	release := make(chan struct{})
	h := asyncHandler{func(_ context.Context, r *shard.Request) *shard.Response {
		if string(r.Key) == "wait" {
			<-release
		}
		return &shard.Response{ID: r.ID, Found: true, Value: &shard.Value{Bytes: value}}
	}}
	_, c := startServer(t, h, Options{RequestBytes: limit})
	ctx := testContext(t)
	if resp, err := c.Do(ctx, get("first")); err != nil || len(resp.Value.Bytes) != size {
		t.Fatal(err)
	}
	// Requests of one stream are looked at in order.
	answers := make(chan error, reads)
	var wg sync.WaitGroup
	for range reads {
		wg.Go(func() {
			resp, err := c.Do(ctx, get("wait"))
			if err == nil {
				err = resp.Err
			}
			answers <- err
		})
	}
	refused := 0
	for refused < reads-limit/size-2 && ctx.Err() == nil {
		select {
		case err := <-answers:
			var busy *shard.OverloadedError
			if !errors.As(err, &busy) || busy.RetryAfter <= 0 {
				t.Fatalf("a read beyond what answers may take: %v", err)
			}
			refused++
		case <-time.After(2 * time.Second):
			close(release)
			wg.Wait()
			return fmt.Errorf("%d reads of %d KiB are being served, and may answer %d KiB; %d were refused", reads, size>>10, limit>>10, refused)
		}
	}
	close(release)
	wg.Wait()
	if resp, err := c.Do(ctx, get("again")); err != nil || resp.Err != nil {
		t.Errorf("a read when the others were answered: %v", err)
	}
	return nil
}
