package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"runtime/pprof"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"text/tabwriter"
	"time"

	"github.com/flotillakv/flotilla/bench/workload"
)

// The workload "snapshot": a shard is loaded, one of the three nodes loses its disk, and
// an empty one takes its place. What is compared is how long it takes from the order to
// make a replica there until the replica serves the data; and, with --foreground, what
// that does to writes that go on meanwhile.

// replaceable is an engine whose nodes can be replaced by empty ones.
type replaceable interface {
	engine
	Put(ctx context.Context, key, value []byte) error
	// Wipe stops a node, deletes all it had and starts an empty one in its place, which
	// holds no replica.
	Wipe(ctx context.Context, node int) error
	// Fill orders replicas of all shards at the empty node. It may return before they are there.
	Fill(ctx context.Context, node int) error
}

const (
	loadBatch   = 256 << 10       // bytes of one write while loading
	fillLimit   = 5 * time.Minute // for the replica to be there
	fillSamples = 64              // records that it has to hold
	peakFor     = 3 * time.Second
	quietFor    = 5 * time.Second // of the load before the replica is ordered
)

// snapshotOutcome is one run of one engine.
type snapshotOutcome struct {
	Engine  string  `json:"engine"`
	Note    string  `json:"note"`
	Machine string  `json:"machine"`
	Commit  string  `json:"commit"`
	Bytes   int64   `json:"bytes"` // of keys and values
	Seconds float64 `json:"seconds"`
	MBPerS  float64 `json:"mb_per_s"` // of keys and values, 10^6
	// The load, with --foreground: what the engine can do, what it was given, and how
	// long a write took before and meanwhile.
	PeakOps    float64 `json:"peak_ops,omitempty"`
	LoadOps    float64 `json:"load_ops,omitempty"`
	BeforeP50  float64 `json:"before_p50_ms,omitempty"`
	BeforeP99  float64 `json:"before_p99_ms,omitempty"`
	DuringP50  float64 `json:"during_p50_ms,omitempty"`
	DuringP99  float64 `json:"during_p99_ms,omitempty"`
	DuringRate float64 `json:"during_ops,omitempty"`
	Errors     int64   `json:"errors,omitempty"`
	Verified   int     `json:"records_verified"`
}

func runSnapshot(ctx context.Context, name string, p point, profile string) (*snapshotOutcome, error) {
	open, err := findEngine(name)
	if err != nil {
		return nil, err
	}
	dir, machine, err := workDir(p)
	if err != nil {
		return nil, err
	}
	defer os.RemoveAll(dir)
	any, err := open(ctx, setup{dir: dir, shards: p.Shards, snapshotEntries: 256})
	if err != nil {
		return nil, err
	}
	defer any.Close()
	e, ok := any.(replaceable)
	if !ok {
		return nil, fmt.Errorf("%s: its nodes cannot be replaced here", name)
	}
	o := &snapshotOutcome{Engine: name, Machine: machine.String(), Commit: machine.Commit}
	w := &overwriter{p: p}
	if err := loadAll(ctx, e, w); err != nil {
		return nil, fmt.Errorf("load: %w", err)
	}
	o.Bytes = int64(p.Keys) * int64(p.Value+len(workload.AppendKey(nil, 0)))
	if err := e.Wipe(ctx, stopped); err != nil {
		return nil, fmt.Errorf("replace a node: %w", err)
	}
	if err := pause(ctx, p.Settle); err != nil {
		return nil, err
	}
	f := &foreground{e: e, w: w}
	if p.Foreground > 0 {
		if o.PeakOps, err = f.peak(ctx, p.Clients); err != nil {
			return nil, err
		}
		if err := pause(ctx, p.Settle); err != nil {
			return nil, err
		}
		o.LoadOps = o.PeakOps * float64(p.Foreground) / 100
		f.start(ctx, o.LoadOps)
		defer f.stop()
		if err := pause(ctx, quietFor); err != nil {
			return nil, err
		}
		f.take() // the first writes found everything cold
		if err := pause(ctx, quietFor); err != nil {
			return nil, err
		}
		before := f.take()
		o.BeforeP50, o.BeforeP99 = before.at(0.5), before.at(0.99)
	}
	if profile != "" {
		file, err := os.Create(profile)
		if err != nil {
			return nil, err
		}
		defer file.Close()
		if err := pprof.StartCPUProfile(file); err != nil {
			return nil, err
		}
		defer pprof.StopCPUProfile()
	}
	f.take()
	began := time.Now()
	filled := make(chan error, 1)
	go func() { filled <- e.Fill(ctx, stopped) }()
	// The upper half of the records is not overwritten.
	for i := range uint64(fillSamples) {
		rec := p.Keys - 1 - i*(p.Keys/2/fillSamples)
		key, want := workload.AppendKey(nil, rec), w.value(nil, rec, 1)
		for {
			got, err := e.Local(ctx, stopped, key)
			if err == nil && bytes.Equal(got, want) {
				o.Verified++
				break
			}
			if time.Since(began) > fillLimit {
				return nil, fmt.Errorf("the replica does not have %q after %v: %v", key, fillLimit, err)
			}
			if err := pause(ctx, 2*time.Millisecond); err != nil {
				return nil, err
			}
		}
	}
	o.Seconds = time.Since(began).Seconds()
	o.MBPerS = float64(o.Bytes) / 1e6 / o.Seconds
	pprof.StopCPUProfile()
	if p.Foreground > 0 {
		during := f.take()
		o.DuringP50, o.DuringP99, o.DuringRate = during.at(0.5), during.at(0.99), float64(len(during))/o.Seconds
		f.stop()
		o.Errors = f.errors.Load()
	}
	if err := <-filled; err != nil {
		return nil, fmt.Errorf("make a replica: %w", err)
	}
	o.Note = e.Note()
	return o, nil
}

func pause(ctx context.Context, d time.Duration) error {
	select {
	case <-time.After(d):
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// loadAll writes every record once, in batches.
func loadAll(ctx context.Context, e engine, w *overwriter) error {
	per := max(1, uint64(loadBatch/max(1, w.p.Value)))
	var next atomic.Uint64
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	var wg sync.WaitGroup
	for range 4 {
		wg.Go(func() {
			for ctx.Err() == nil {
				from := (next.Add(1) - 1) * per
				if from >= w.p.Keys {
					return
				}
				var keys, values [][]byte
				for rec := from; rec < min(from+per, w.p.Keys); rec++ {
					keys, values = append(keys, workload.AppendKey(nil, rec)), append(values, w.value(nil, rec, 1))
				}
				if err := e.Target().Load(ctx, keys, values); err != nil {
					cancel(err)
				}
			}
		})
	}
	wg.Wait()
	return context.Cause(ctx)
}

// foreground overwrites records of the lower half.
type foreground struct {
	e      replaceable
	w      *overwriter
	errors atomic.Int64
	cancel context.CancelFunc
	wg     sync.WaitGroup

	mu  sync.Mutex
	lat []float64 // ms
}

type latencies []float64

// at returns a quantile in ms; zero if nothing was measured.
func (l latencies) at(q float64) float64 {
	if len(l) == 0 {
		return 0
	}
	slices.Sort(l)
	return l[min(len(l)-1, int(q*float64(len(l))))]
}

// take returns what was measured since the last call.
func (f *foreground) take() latencies {
	f.mu.Lock()
	defer f.mu.Unlock()
	l := f.lat
	f.lat = nil
	return l
}

func (f *foreground) write(ctx context.Context, rng *rand.Rand, due time.Time) {
	rec := rng.Uint64N(f.w.p.Keys / 2)
	err := f.e.Put(ctx, workload.AppendKey(nil, rec), f.w.value(nil, rec, rng.Uint64()))
	if err != nil {
		if ctx.Err() == nil {
			f.errors.Add(1)
		}
		return
	}
	ms := float64(time.Since(due).Microseconds()) / 1e3
	f.mu.Lock()
	f.lat = append(f.lat, ms)
	f.mu.Unlock()
}

// peak is the rate of so many clients in a closed loop.
func (f *foreground) peak(ctx context.Context, clients int) (float64, error) {
	ctx, cancel := context.WithTimeout(ctx, peakFor)
	defer cancel()
	var wg sync.WaitGroup
	for i := range clients {
		wg.Go(func() {
			rng := rand.New(rand.NewPCG(7, uint64(i)))
			for ctx.Err() == nil {
				f.write(ctx, rng, time.Now())
			}
		})
	}
	wg.Wait()
	n := len(f.take())
	if n == 0 {
		return 0, errors.New("no write succeeded")
	}
	return float64(n) / peakFor.Seconds(), nil
}

// start begins an open loop: writes are due at a constant rate, whatever became of those
// before, and their time counts from when they were due.
func (f *foreground) start(ctx context.Context, rate float64) {
	ctx, f.cancel = context.WithCancel(ctx)
	const workers = 256
	due := make(chan time.Time, 1<<16)
	f.wg.Go(func() {
		defer close(due)
		began := time.Now()
		for n := 0; ; n++ {
			at := began.Add(time.Duration(float64(n) / rate * float64(time.Second)))
			if d := time.Until(at); d > 0 && pause(ctx, d) != nil || ctx.Err() != nil {
				return
			}
			select {
			case due <- at:
			default:
				f.errors.Add(1)
			}
		}
	})
	for i := range workers {
		f.wg.Go(func() {
			rng := rand.New(rand.NewPCG(8, uint64(i)))
			for at := range due {
				f.write(ctx, rng, at)
			}
		})
	}
}

func (f *foreground) stop() {
	if f.cancel != nil {
		f.cancel()
		f.wg.Wait()
	}
}

// snapshotComparison is the workload at one size, run on all engines in turn.
type snapshotComparison struct {
	Point   point                         `json:"point"`
	Command string                        `json:"command"`
	Runs    map[string][]*snapshotOutcome `json:"runs"`
	Ratios  map[string]spread             `json:"mb_per_s_of_the_first_over"`
	engines []string
}

func compareSnapshot(ctx context.Context, engines []string, p point, pairs int) (*snapshotComparison, error) {
	c := &snapshotComparison{Point: p, Runs: make(map[string][]*snapshotOutcome), Ratios: make(map[string]spread), engines: engines}
	c.Command = fmt.Sprintf("go run . --engines %s --pairs %d %s", strings.Join(engines, ","), pairs, strings.Join(p.flags(), " "))
	for i := range pairs {
		for _, name := range engines {
			o := new(snapshotOutcome)
			if err := childInto(ctx, name, p, o); err != nil {
				return nil, fmt.Errorf("%s, %s: %w", name, p, err)
			}
			fmt.Fprintf(os.Stderr, "%s  pair %d  %-16s %.1f s, %.0f MB/s  load %.0f of %.0f writes/s (got %.0f), p99 %.1f ms, meanwhile %.1f ms, %d errors\n",
				p, i+1, name, o.Seconds, o.MBPerS, o.LoadOps, o.PeakOps, o.DuringRate, o.BeforeP99, o.DuringP99, o.Errors)
			c.Runs[name] = append(c.Runs[name], o)
		}
	}
	for _, other := range engines[1:] {
		var all []float64
		for i, o := range c.Runs[other] {
			all = append(all, c.Runs[engines[0]][i].MBPerS/o.MBPerS)
		}
		c.Ratios[other] = spreadOf(all)
	}
	return c, nil
}

func (c *snapshotComparison) print(w io.Writer) {
	first := c.Runs[c.engines[0]][0]
	fmt.Fprintf(w, "\n%s, %d keys, %.0f MB to an empty node, one of 3; medians [least, most] of %d runs\n%s, %s\n\n",
		c.Point, c.Point.Keys, float64(first.Bytes)/1e6, len(c.Runs[c.engines[0]]), first.Machine, first.Commit)
	t := tabwriter.NewWriter(w, 0, 8, 2, ' ', 0)
	fmt.Fprintln(t, "ENGINE\tMB/S\tSECONDS\tPEAK writes/s\tLOAD\tP99 ms before\tmeanwhile\tERRORS")
	for _, name := range c.engines {
		of := func(f func(*snapshotOutcome) float64) spread {
			var all []float64
			for _, o := range c.Runs[name] {
				all = append(all, f(o))
			}
			return spreadOf(all)
		}
		mb := of(func(o *snapshotOutcome) float64 { return o.MBPerS })
		fmt.Fprintf(t, "%s\t%.0f [%.0f, %.0f]\t%.1f\t%.0f\t%.0f\t%.1f\t%.1f\t%.0f\n", name, mb.Median, mb.Min, mb.Max,
			of(func(o *snapshotOutcome) float64 { return o.Seconds }).Median, of(func(o *snapshotOutcome) float64 { return o.PeakOps }).Median,
			of(func(o *snapshotOutcome) float64 { return o.LoadOps }).Median, of(func(o *snapshotOutcome) float64 { return o.BeforeP99 }).Median,
			of(func(o *snapshotOutcome) float64 { return o.DuringP99 }).Median, of(func(o *snapshotOutcome) float64 { return float64(o.Errors) }).Median)
	}
	t.Flush()
	for _, name := range c.engines[1:] {
		fmt.Fprintf(w, "%s over %s, pair by pair: MB/s %s\n", c.engines[0], name, c.Ratios[name])
	}
	for _, name := range c.engines {
		fmt.Fprintf(w, "%s: %s\n", name, c.Runs[name][0].Note)
	}
	fmt.Fprintf(w, "again: %s\n", c.Command)
}

func (c *snapshotComparison) append(path string) error { return appendJSON(path, c) }
