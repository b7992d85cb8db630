package bench

import (
	"context"
	"errors"
	"sync"
	"sync/atomic"
	"time"

	"github.com/flotillakv/flotilla/bench/workload"
)

// Config describes a run.
type Config struct {
	Set *workload.Set
	// Targets are dealt to the clients in turn.
	Targets []Target
	// Clients is the number of goroutines that send operations, at least 1. In
	// an open loop it bounds the operations in flight.
	Clients int
	// Pipelines, if not zero, is the number of goroutines that do the work of the
	// clients without waiting for each operation: each keeps its share of Clients
	// operations under way at a Piper. Timeout does not apply to them, the
	// target's own does. For loops of reads and writes. In an open loop they start
	// operations as they arrive, and none waits beyond Clients.
	Pipelines int
	// Rate is the number of operations that arrive per second, evenly spaced,
	// whatever becomes of those before. Zero means a closed loop.
	Rate float64
	// Outstanding bounds the operations of an open loop that arrived and have not
	// ended: those beyond Clients wait for a free one. An arrival beyond the bound
	// is counted as shed. Less than Clients means Clients.
	Outstanding int
	// Warmup is worked but not measured; Duration is measured.
	Warmup, Duration time.Duration
	// Timeout bounds one operation, to within an eighth of it more. Zero means 10 s.
	Timeout time.Duration
	// Verify is the number of records to read back after the run, each of which
	// has to hold a value that its last acknowledged write can have left. Zero:
	// none. It is not part of the measured time.
	Verify int
	// Processes are others whose CPU time and memory count: those of the nodes, if
	// they run on this machine.
	Processes []int
	// DataDir is where the store keeps its files; empty if it is elsewhere.
	DataDir string
	// Classify names the kind of an error. Nil means that all are "other".
	Classify func(error) string
	// OnSecond, which may be nil, is called after each second of the measured
	// time, by the goroutine that called Run.
	OnSecond func(Second)
}

// Second is what happened in one second of the measured time.
type Second struct {
	Elapsed               time.Duration // since the start of the measured time
	Errors                int64         // since the start of the measured time
	OpsPerSec, CumPerSec  float64       // in this second, and on average so far
	P50, P95, P99, Max    float64       // milliseconds, in this second
	Behind                int64         // operations that arrived and were not sent yet; open loop only
	Shed                  int64         // arrivals beyond the bound, since the start of the measured time; open loop only
	CPUPercent, DiskMBSec float64       // of one core; to the device
}

// errMissing is the error of a read that found nothing where a record must be.
var errMissing = errors.New("bench: a loaded record is missing")

// Run lets the clients work and returns what was measured. When ctx ends
// early, it returns what was measured until then together with ctx's error.
func Run(ctx context.Context, c Config) (*Result, error) {
	if c.Timeout == 0 {
		c.Timeout = 10 * time.Second
	}
	if c.Classify == nil {
		c.Classify = func(error) string { return "other" }
	}
	if err := c.checkPipes(); err != nil {
		return nil, err
	}
	r := &run{Config: c, rec: newRecorder(c.Clients), start: time.Now()}
	if c.Verify > 0 {
		r.track = newTracker(c.Set.Records())
	}
	work, stop := context.WithCancel(ctx)
	defer stop()
	var wg sync.WaitGroup
	if c.Rate > 0 && c.Pipelines == 0 {
		r.arrivals = make(chan time.Duration, max(c.Outstanding-c.Clients, 0))
		wg.Go(func() { r.arrive(work) })
	}
	workers, failed := c.Clients, make([]error, c.Pipelines)
	if c.Pipelines > 0 {
		workers = c.Pipelines
	}
	for i := range workers {
		wg.Go(func() {
			switch {
			case c.Pipelines > 0 && c.Rate > 0:
				failed[i] = r.openPipeline(work, i)
			case c.Pipelines > 0:
				failed[i] = r.pipeline(work, i)
			case c.Rate > 0:
				r.server(work, i)
			default:
				r.client(work, i)
			}
		})
	}
	select {
	case <-time.After(c.Warmup):
	case <-ctx.Done():
	}
	res := r.measure(ctx)
	r.stopped.Store(true)
	stopAfter := time.AfterFunc(c.Timeout, stop)
	wg.Wait()
	stopAfter.Stop()
	if err := errors.Join(failed...); err != nil {
		return nil, err
	}
	if r.track != nil && ctx.Err() == nil {
		proved, err := r.track.verify(ctx, c.Targets, c.Verify)
		if err != nil {
			return nil, err
		}
		res.Verified = proved
	}
	return res, ctx.Err()
}

type run struct {
	Config
	rec     *recorder
	track   *tracker // nil: writes are not followed
	start   time.Time
	stopped atomic.Bool
	open
}

// measure empties the recorder once per second until the measured time is over.
func (r *run) measure(ctx context.Context) *Result {
	var total, second hists
	errs := make(map[string]int64)
	r.rec.cut(errs) // the warm-up
	shed := r.shed.Load()
	began, before := time.Now(), r.usage()
	last, lastUsage, rss := began, before, before.rssBytes
	tick := time.NewTicker(time.Second)
	defer tick.Stop()
	end := time.NewTimer(r.Duration)
	defer end.Stop()
	r.rec.merge(&second)
	second = hists{}
	clear(errs)
	var lastShed, unfinished int64
	for over := false; !over; {
		select {
		case <-tick.C:
		case <-end.C:
			over = true
		case <-ctx.Done():
			over = true
		}
		r.rec.cut(errs)
		now, usage := time.Now(), r.usage()
		over = over || now.Sub(began) >= r.Duration
		lastShed, unfinished = r.shed.Load()-shed, r.taken.Load()-r.ended.Load()
		r.rec.merge(&second, &total)
		rss = max(rss, usage.rssBytes)
		if !over || now.Sub(last) > time.Second/2 {
			r.report(&second, &total, errs, lastShed, now.Sub(began), now.Sub(last), usage.since(lastUsage))
		}
		last, lastUsage = now, usage
		for _, h := range second {
			if h != nil {
				h.Reset()
			}
		}
	}
	res := r.result(&total, errs, last.Sub(began), lastUsage.since(before))
	res.RSSMiB = round(float64(rss)/(1<<20), 1)
	res.Shed, res.Unfinished = lastShed, unfinished
	return res
}

func (r *run) report(second, total *hists, errs map[string]int64, shed int64, elapsed, span time.Duration, used usage) {
	if r.OnSecond == nil {
		return
	}
	s := Second{
		Elapsed:    elapsed,
		OpsPerSec:  float64(second.count(seriesResponse)) / span.Seconds(),
		CumPerSec:  float64(total.count(seriesResponse)) / elapsed.Seconds(),
		P50:        second.millis(seriesResponse, 50),
		P95:        second.millis(seriesResponse, 95),
		P99:        second.millis(seriesResponse, 99),
		Max:        second.millis(seriesResponse, 100),
		CPUPercent: 100 * used.cpu.Seconds() / span.Seconds(),
		DiskMBSec:  float64(used.diskBytes) / 1e6 / span.Seconds(),
	}
	for _, n := range errs {
		s.Errors += n
	}
	s.Shed, s.Behind = shed, int64(len(r.arrivals))
	r.OnSecond(s)
}

// client is a client of a closed loop, until the run stops.
func (r *run) client(ctx context.Context, i int) {
	gen, target, rec := r.Set.Client(i), r.Targets[i%len(r.Targets)], r.rec.shard(i)
	timer := time.NewTimer(time.Hour)
	defer timer.Stop()
	pause := func(d time.Duration) bool {
		timer.Reset(d)
		select {
		case <-timer.C:
			return true
		case <-ctx.Done():
			return false
		}
	}
	limited, done := r.limit(ctx)
	defer func() { done() }()
	for !r.stopped.Load() && ctx.Err() == nil {
		now := time.Now()
		if now.Sub(limited.since) > r.Timeout/8 {
			done()
			limited, done = r.limit(ctx)
		}
		if err := r.turn(limited, gen, target, rec, now); err != nil && !pause(time.Millisecond) {
			return // do not spin on a store that refuses
		}
	}
}

// turn draws one operation, carries it out and records it.
func (r *run) turn(limited limitedContext, gen *workload.Gen, target Target, rec *recorderShard, planned time.Time) error {
	gen.Next()
	m, err := r.one(limited, gen, target, planned)
	gen.Done()
	switch {
	case err == nil:
		rec.done(m)
	case !r.interrupted(limited): // else no verdict on the store
		rec.failed(r.kind(err))
	}
	return err
}

// limit makes the context of a client's next operations. It is renewed after an
// eighth of the timeout and not for each operation, whose allocations would
// outnumber those of the store.
func (r *run) limit(ctx context.Context) (limitedContext, context.CancelFunc) {
	since := time.Now()
	limited, cancel := context.WithDeadline(ctx, since.Add(r.Timeout+r.Timeout/8))
	return limitedContext{limited, ctx, since}, cancel
}

type limitedContext struct {
	context.Context
	run   context.Context // without the deadline
	since time.Time
}

// interrupted reports whether the run was ended from outside.
func (r *run) interrupted(c limitedContext) bool { return c.run.Err() != nil }

func (r *run) kind(err error) string {
	if errors.Is(err, errMissing) {
		return "not_found"
	}
	return r.Classify(err)
}

// one sends one operation and waits for its answer.
func (r *run) one(limited limitedContext, g *workload.Gen, t Target, planned time.Time) (sample, error) {
	ctx := limited.Context
	m, sent := sample{op: g.Op}, planned
	if r.arrivals != nil { // else it is sent as soon as it is planned
		sent = time.Now()
	}
	var err error
	switch g.Op {
	case workload.Read, workload.ReadModifyWrite:
		var found bool
		if _, found, err = t.Read(ctx, g.Key); err == nil && !found {
			err = errMissing
		}
	case workload.Scan:
		_, err = t.Scan(ctx, g.Key, g.ScanLen)
	}
	if g.Op == workload.ReadModifyWrite {
		m.read = time.Since(sent)
	}
	if err == nil && g.Value != nil {
		err = t.Write(ctx, g.Key, g.Value)
	}
	end := time.Now()
	r.follow(g, sent, end, err)
	m.service, m.response = end.Sub(sent), end.Sub(planned)
	m.write = m.service - m.read
	return m, err
}
