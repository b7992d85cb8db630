package bench

import (
	"context"
	"fmt"
	"time"

	"github.com/flotillakv/flotilla/bench/workload"
)

// Piper is a Target that can be used without waiting for each operation.
type Piper interface {
	Target
	// Pipe returns a way to have up to depth operations under way from one
	// goroutine.
	Pipe(depth int) (Pipe, error)
}

// Pipe starts operations and receives them when they are over. One goroutine at a
// time starts operations, and one at a time, perhaps another, receives them.
type Pipe interface {
	// Read and Write start what the methods of Target do. Key and value are the
	// caller's again at once. After an error nothing was started.
	Read(ctx context.Context, key []byte, tag any) error
	Write(ctx context.Context, key, value []byte, tag any) error
	// Receive waits for an operation to be over and returns its tag and what came
	// of it; found is about reads. At least one must be under way.
	Receive() (tag any, found bool, err error)
	// Close ends the pipe and gives up what is under way.
	Close() error
}

// checkPipes reports why the run cannot be pipelined.
func (c *Config) checkPipes() error {
	if c.Pipelines == 0 {
		return nil
	}
	if s := c.Set.Spec().Share; s[workload.Scan]+s[workload.ReadModifyWrite] > 0 {
		return fmt.Errorf("bench: a pipelined loop has reads and writes only, which workload %s has not", c.Set.Spec().Name)
	}
	if c.Pipelines < 0 || c.Pipelines > c.Clients {
		return fmt.Errorf("bench: %d pipelines for %d operations in flight", c.Pipelines, c.Clients)
	}
	for _, t := range c.Targets {
		if _, ok := t.(Piper); !ok {
			return fmt.Errorf("bench: %T has no pipelines", t)
		}
	}
	return nil
}

// inFlight is an operation of a pipelined loop, the place of one client.
type inFlight struct {
	gen     *workload.Gen
	rec     *recorderShard
	sent    time.Time
	planned time.Time // zero: when it was sent
}

// pipeline is the loop of one goroutine that does the work of every
// r.Pipelines-th client, from the i-th on, until the run stops.
func (r *run) pipeline(ctx context.Context, i int) error {
	var places []*inFlight
	for c := i; c < r.Clients; c += r.Pipelines {
		places = append(places, &inFlight{gen: r.Set.Client(c), rec: r.rec.shard(c)})
	}
	p, err := r.Targets[i%len(r.Targets)].(Piper).Pipe(len(places))
	if err != nil {
		return err
	}
	defer p.Close()
	under := 0
	for _, f := range places {
		if err := r.send(ctx, p, f); err != nil {
			return err
		}
		under++
	}
	pause := time.NewTimer(time.Hour)
	defer pause.Stop()
	for under > 0 {
		tag, found, err := p.Receive()
		f := tag.(*inFlight)
		under--
		if err = r.received(ctx, f, found, err); err != nil { // do not spin on a store that refuses
			pause.Reset(time.Millisecond)
			select {
			case <-pause.C:
			case <-ctx.Done():
			}
		}
		if r.stopped.Load() || ctx.Err() != nil {
			continue
		}
		if err := r.send(ctx, p, f); err != nil {
			return err
		}
		under++
	}
	return nil
}

// send draws and starts the next operation of a client.
func (r *run) send(ctx context.Context, p Pipe, f *inFlight) error {
	f.gen.Next()
	f.sent = time.Now()
	if f.gen.Value != nil {
		return p.Write(ctx, f.gen.Key, f.gen.Value, f)
	}
	return p.Read(ctx, f.gen.Key, f)
}

// received records what became of an operation, and returns its error.
func (r *run) received(ctx context.Context, f *inFlight, found bool, err error) error {
	end := time.Now()
	if f.gen.Value == nil && err == nil && !found {
		err = errMissing
	}
	r.follow(f.gen, f.sent, end, err)
	f.gen.Done()
	took := end.Sub(f.sent)
	response := took
	if !f.planned.IsZero() {
		response = end.Sub(f.planned)
	}
	switch {
	case err == nil:
		f.rec.done(sample{op: f.gen.Op, service: took, response: response, write: took})
	case ctx.Err() == nil:
		f.rec.failed(r.kind(err))
	}
	return err
}

// follow keeps a write in mind if its record is one of those that are proved.
func (r *run) follow(g *workload.Gen, sent, end time.Time, err error) {
	if g.Value == nil || !r.track.follows(g.Record()) {
		return
	}
	if err == nil {
		r.track.done(g.Record(), trackedWrite{g.Value, sent, end})
	} else {
		r.track.failed(g.Record())
	}
}
