package bench

import (
	"context"
	"time"
)

// pipedSpan is the shortest sleep between two bursts of arrivals of a pipelined open
// loop: it bounds the wake-ups, and what it adds to a latency.
const pipedSpan = 200 * time.Microsecond

// openPipeline lets every r.Pipelines-th operation arrive, from the i-th on, until
// the run stops: one goroutine starts them as they come, however many others are
// under way, and a second one receives them. So what is offered costs no goroutine
// per operation, and thousands that are refused are not thousands of goroutines
// waiting for a processor. An arrival that finds no place among Clients is shed.
func (r *run) openPipeline(ctx context.Context, i int) error {
	free := make(chan *inFlight, (r.Clients-i+r.Pipelines-1)/r.Pipelines)
	for c := i; c < r.Clients; c += r.Pipelines {
		free <- &inFlight{gen: r.Set.Client(c), rec: r.rec.shard(c)}
	}
	p, err := r.Targets[i%len(r.Targets)].(Piper).Pipe(cap(free))
	if err != nil {
		return err
	}
	defer p.Close()
	started, received := make(chan struct{}, cap(free)), make(chan struct{})
	go func() {
		defer close(received)
		for range started {
			tag, found, err := p.Receive()
			f := tag.(*inFlight)
			_ = r.received(ctx, f, found, err) // counted by received
			r.ended.Add(1)
			free <- f
		}
	}()
	defer func() { close(started); <-received }()

	timer := time.NewTimer(time.Hour)
	defer timer.Stop()
	for n := int64(i); !r.stopped.Load(); n += int64(r.Pipelines) {
		planned := time.Duration(float64(n) / r.Rate * float64(time.Second))
		if wait := planned - time.Since(r.start); wait > 0 {
			timer.Reset(max(wait, pipedSpan))
			select {
			case <-timer.C:
			case <-ctx.Done():
				return nil
			}
		}
		select {
		case f := <-free:
			r.taken.Add(1)
			f.planned = r.start.Add(planned)
			if err := r.send(ctx, p, f); err != nil {
				return err
			}
			started <- struct{}{}
		default:
			r.shed.Add(1)
		}
	}
	return nil
}
