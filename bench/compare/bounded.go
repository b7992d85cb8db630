package main

import (
	"bytes"
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"text/tabwriter"
	"time"

	"github.com/flotillakv/flotilla/bench/workload"
)

// W6: a constant set of keys is overwritten again and again. After a quarter of the
// load one node is stopped; the rest goes on without it. Then it is started again.
// What is compared is how much disk the three directories take for each byte that is
// alive, and how long the node needs until it has everything.

// bounded is an engine whose nodes can be stopped and started.
type bounded interface {
	engine
	// Put writes at a node that runs.
	Put(ctx context.Context, key, value []byte) error
	// Get is a linearizable read at a node that runs.
	Get(ctx context.Context, key []byte) ([]byte, error)
	Stop(node int) error
	// Restart returns when the node has been started, which may be before it serves.
	Restart(ctx context.Context, node int) error
}

const (
	stopped      = 2                // the node that is away
	catchUpLimit = 5 * time.Minute  // for it to have everything
	writeLimit   = 30 * time.Second // for one write, tries included
)

// boundedOutcome is one run of one engine.
type boundedOutcome struct {
	Engine  string `json:"engine"`
	Note    string `json:"note"`
	Machine string `json:"machine"`
	Commit  string `json:"commit"`
	// Live are the bytes of keys and values of one replica; Written those of all
	// acknowledged overwrites.
	Live      int64   `json:"live_bytes"`
	Written   int64   `json:"written_bytes"`
	OpsPerSec float64 `json:"ops_per_s"`
	// Bytes on disk, all three directories, per live byte and replica: the most of all
	// one-second samples, as the load ended (one node still stopped), and at the end.
	DiskMax   float64 `json:"disk_max"`
	DiskLoad  float64 `json:"disk_after_load"`
	DiskEnd   float64 `json:"disk_settled"`
	OpenS     float64 `json:"open_s"`     // until the node was started
	CatchUpS  float64 `json:"catch_up_s"` // from the same moment, until it had everything
	Missed    int64   `json:"missed_bytes"`
	Retries   int64   `json:"retries"`
	Verified  int     `json:"records_verified"`
	Compared  int     `json:"records_compared"`
	Samples   int     `json:"samples"`
	DiskBytes int64   `json:"disk_bytes_settled"`
}

// du is what the files below dir take on the disk, in bytes. Files that go while it
// counts do not count.
func du(dir string) (total int64) {
	_ = filepath.WalkDir(dir, func(_ string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return nil
		}
		if info, err := d.Info(); err == nil {
			if st, ok := info.Sys().(*syscall.Stat_t); ok {
				total += st.Blocks * 512
			} else {
				total += info.Size()
			}
		}
		return nil
	})
	return total
}

// runBounded runs one engine once in this process.
func runBounded(ctx context.Context, name string, p point) (*boundedOutcome, error) {
	open, err := findEngine(name)
	if err != nil {
		return nil, err
	}
	dir, machine, err := workDir(p)
	if err != nil {
		return nil, err
	}
	defer os.RemoveAll(dir)
	any, err := open(ctx, setup{dir: dir, shards: p.Shards, snapshotEntries: max(1, p.Keys/uint64(p.Shards))})
	if err != nil {
		return nil, err
	}
	defer any.Close()
	e, ok := any.(bounded)
	if !ok {
		return nil, fmt.Errorf("%s: its nodes cannot be stopped one by one here", name)
	}
	w := &overwriter{e: e, p: p, last: make([]uint64, p.Keys)}
	o := &boundedOutcome{Engine: name, Machine: machine.String(), Commit: machine.Commit}
	o.Live = int64(p.Keys) * int64(p.Value+len(workload.AppendKey(nil, 0)))
	if err := w.run(ctx, int64(p.Keys), true); err != nil {
		return nil, fmt.Errorf("load: %w", err)
	}
	per := func(b int64) float64 { return float64(b) / float64(3*o.Live) }
	stop := make(chan struct{})
	var sampling sync.WaitGroup
	endSampling := sync.OnceFunc(func() { close(stop); sampling.Wait() })
	defer endSampling()
	sampling.Go(func() {
		tick := time.NewTicker(time.Second)
		defer tick.Stop()
		for {
			o.DiskMax = max(o.DiskMax, per(du(dir)))
			o.Samples++
			select {
			case <-tick.C:
			case <-stop:
				return
			}
		}
	})
	all := int64(p.Keys) * int64(p.Overwrite)
	began := time.Now()
	if err := w.run(ctx, all/4, false); err != nil {
		return nil, err
	}
	if err := e.Stop(stopped); err != nil {
		return nil, fmt.Errorf("stop a node: %w", err)
	}
	if err := w.run(ctx, all-all/4, false); err != nil {
		return nil, err
	}
	o.OpsPerSec = float64(all) / time.Since(began).Seconds()
	o.Written = all * int64(p.Value+len(workload.AppendKey(nil, 0)))
	o.Missed = o.Written - o.Written/4
	// The last write of each shard: who has them has everything.
	marks, err := w.marks(ctx)
	if err != nil {
		return nil, err
	}
	o.DiskLoad = per(du(dir))
	began = time.Now()
	if err := e.Restart(ctx, stopped); err != nil {
		return nil, fmt.Errorf("start the node again: %w", err)
	}
	o.OpenS = time.Since(began).Seconds()
	for shard, rec := range marks {
		key := workload.AppendKey(nil, rec)
		for {
			got, err := e.Local(ctx, stopped, key)
			if err == nil && bytes.Equal(got, w.value(nil, rec, w.last[rec])) {
				break
			}
			if time.Since(began) > catchUpLimit {
				return nil, fmt.Errorf("the node that was away does not have everything of shard %d after %v: %v", shard, catchUpLimit, err)
			}
			select {
			case <-time.After(5 * time.Millisecond):
			case <-ctx.Done():
				return nil, ctx.Err()
			}
		}
	}
	o.CatchUpS = time.Since(began).Seconds()
	select {
	case <-time.After(p.Settle):
	case <-ctx.Done():
		return nil, ctx.Err()
	}
	endSampling()
	o.DiskBytes = du(dir)
	o.DiskEnd = per(o.DiskBytes)
	if err := w.verify(ctx, o); err != nil {
		return nil, err
	}
	o.Retries, o.Note = w.retries.Load(), e.Note()
	return o, nil
}

// overwriter writes records and knows what was acknowledged last: a record is written
// by one client only.
type overwriter struct {
	e       bounded
	p       point
	last    []uint64 // by record: number of the newest version
	retries atomic.Int64
}

// value is version n of a record: bytes that do not compress.
func (w *overwriter) value(dst []byte, rec, n uint64) []byte {
	r := rand.NewPCG(rec, n)
	dst = dst[:0]
	for len(dst) < w.p.Value {
		dst = binary.LittleEndian.AppendUint64(dst, r.Uint64())
	}
	return dst[:w.p.Value]
}

// run makes so many writes; each: every record once, in order.
func (w *overwriter) run(ctx context.Context, writes int64, each bool) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	clients := uint64(min(int64(w.p.Clients), int64(w.p.Keys)))
	var left atomic.Int64
	left.Store(writes)
	var wg sync.WaitGroup
	for c := range clients {
		wg.Go(func() {
			draw := rand.New(rand.NewPCG(c, w.last[c]))
			mine := (w.p.Keys - c + clients - 1) / clients
			var val []byte
			for i := uint64(0); each && i < mine || !each && left.Add(-1) >= 0; i++ {
				rec := c + clients*i
				if !each {
					rec = c + clients*draw.Uint64N(mine)
				}
				var err error
				if val, err = w.write(ctx, rec, val); err != nil {
					cancel(err)
					return
				}
			}
		})
	}
	wg.Wait()
	return context.Cause(ctx)
}

func (w *overwriter) write(ctx context.Context, rec uint64, val []byte) ([]byte, error) {
	n := w.last[rec] + 1
	val = w.value(val, rec, n)
	key := workload.AppendKey(nil, rec)
	for began := time.Now(); ; {
		err := w.e.Put(ctx, key, val)
		if err == nil {
			w.last[rec] = n
			return val, nil
		}
		if ctx.Err() != nil || time.Since(began) > writeLimit {
			return val, fmt.Errorf("write %q: %w", key, err)
		}
		w.retries.Add(1) // the same value: twice is once
		select {
		case <-time.After(10 * time.Millisecond):
		case <-ctx.Done():
		}
	}
}

// marks writes one record of each shard once more, and returns which.
func (w *overwriter) marks(ctx context.Context) ([]uint64, error) {
	splits := workload.Splits(w.p.Shards)
	found := make(map[int]uint64)
	for rec := uint64(0); rec < w.p.Keys && len(found) < w.p.Shards; rec++ {
		key, shard := workload.AppendKey(nil, rec), 0
		for shard < len(splits) && bytes.Compare(splits[shard], key) <= 0 {
			shard++
		}
		if _, ok := found[shard]; !ok {
			found[shard] = rec
		}
	}
	if len(found) < w.p.Shards {
		return nil, errors.New("compare: fewer shards have records than there are")
	}
	var out []uint64
	for shard := range w.p.Shards {
		if _, err := w.write(ctx, found[shard], nil); err != nil {
			return nil, err
		}
		out = append(out, found[shard])
	}
	return out, nil
}

// verify reads records back, and compares others on all replicas.
func (w *overwriter) verify(ctx context.Context, o *boundedOutcome) error {
	step := max(1, w.p.Keys/verifyRecords)
	for rec := uint64(0); rec < w.p.Keys; rec += step {
		key, want := workload.AppendKey(nil, rec), w.value(nil, rec, w.last[rec])
		got, err := w.e.Get(ctx, key)
		if err != nil || !bytes.Equal(got, want) {
			return fmt.Errorf("%q does not hold what was acknowledged last: %v", key, err)
		}
		o.Verified++
		if o.Verified%2 == 0 {
			continue
		}
		for node := range 3 {
			for end := time.Now().Add(settleFor); ; time.Sleep(5 * time.Millisecond) {
				got, err := w.e.Local(ctx, node, key)
				if err == nil && bytes.Equal(got, want) {
					break
				}
				if time.Now().After(end) {
					return fmt.Errorf("the replica of node %d does not hold what was acknowledged under %q: %v", node+1, key, err)
				}
			}
		}
		o.Compared++
	}
	return nil
}

// boundedComparison is W6 at one size, run on all engines in turn.
type boundedComparison struct {
	Point   point                        `json:"point"`
	Command string                       `json:"command"`
	Runs    map[string][]*boundedOutcome `json:"runs"`
	Ratios  []boundedRatio               `json:"ratios"`
	engines []string
}

// boundedRatio is the first engine over another one, pair by pair.
type boundedRatio struct {
	Engine   string `json:"engine"`
	Over     string `json:"over"`
	DiskMax  spread `json:"disk_max"`
	DiskLoad spread `json:"disk_after_load"`
	DiskEnd  spread `json:"disk_settled"`
	CatchUp  spread `json:"catch_up"`
	Ops      spread `json:"ops_per_s"`
}

func compareBounded(ctx context.Context, engines []string, p point, pairs int) (*boundedComparison, error) {
	c := &boundedComparison{Point: p, Runs: make(map[string][]*boundedOutcome), engines: engines}
	c.Command = fmt.Sprintf("go run . --engines %s --pairs %d %s", strings.Join(engines, ","), pairs, strings.Join(p.flags(), " "))
	for i := range pairs {
		for _, name := range engines {
			o := new(boundedOutcome)
			if err := childInto(ctx, name, p, o); err != nil {
				return nil, fmt.Errorf("%s, %s: %w", name, p, err)
			}
			fmt.Fprintf(os.Stderr, "%s  pair %d  %-16s disk per live byte: most %.2f, after load %.2f, settled %.2f  catch-up %.1f s (open %.1f)  %.0f writes/s  %d retries\n",
				p, i+1, name, o.DiskMax, o.DiskLoad, o.DiskEnd, o.CatchUpS, o.OpenS, o.OpsPerSec, o.Retries)
			c.Runs[name] = append(c.Runs[name], o)
		}
	}
	for _, other := range engines[1:] {
		a, b := c.Runs[engines[0]], c.Runs[other]
		of := func(f func(*boundedOutcome) float64) spread {
			var all []float64
			for i := range a {
				if y := f(b[i]); y > 0 {
					all = append(all, f(a[i])/y)
				}
			}
			return spreadOf(all)
		}
		c.Ratios = append(c.Ratios, boundedRatio{
			Engine: engines[0], Over: other,
			DiskMax:  of(func(o *boundedOutcome) float64 { return o.DiskMax }),
			DiskLoad: of(func(o *boundedOutcome) float64 { return o.DiskLoad }),
			DiskEnd:  of(func(o *boundedOutcome) float64 { return o.DiskEnd }),
			CatchUp:  of(func(o *boundedOutcome) float64 { return o.CatchUpS }),
			Ops:      of(func(o *boundedOutcome) float64 { return o.OpsPerSec }),
		})
	}
	return c, nil
}

func (c *boundedComparison) print(w io.Writer) {
	first := c.Runs[c.engines[0]][0]
	fmt.Fprintf(w, "\n%s, %d keys overwritten %d times, one of 3 nodes away for the last three quarters, fsync on; medians [least, most] of %d runs\n%s, %s\n\n",
		c.Point, c.Point.Keys, c.Point.Overwrite, len(c.Runs[c.engines[0]]), first.Machine, first.Commit)
	t := tabwriter.NewWriter(w, 0, 8, 2, ' ', 0)
	fmt.Fprintln(t, "ENGINE\tDISK/LIVE most\tafter load\tsettled\tCATCH-UP s\tof that open\tWRITES/S\tRETRIES")
	for _, name := range c.engines {
		of := func(f func(*boundedOutcome) float64) spread {
			var all []float64
			for _, o := range c.Runs[name] {
				all = append(all, f(o))
			}
			return spreadOf(all)
		}
		disk, load, end, up := of(func(o *boundedOutcome) float64 { return o.DiskMax }), of(func(o *boundedOutcome) float64 { return o.DiskLoad }),
			of(func(o *boundedOutcome) float64 { return o.DiskEnd }), of(func(o *boundedOutcome) float64 { return o.CatchUpS })
		fmt.Fprintf(t, "%s\t%s\t%s\t%s\t%.1f [%.1f, %.1f]\t%.1f\t%.0f\t%.0f\n", name, disk, load, end, up.Median, up.Min, up.Max,
			of(func(o *boundedOutcome) float64 { return o.OpenS }).Median, of(func(o *boundedOutcome) float64 { return o.OpsPerSec }).Median,
			of(func(o *boundedOutcome) float64 { return float64(o.Retries) }).Median)
	}
	t.Flush()
	for _, r := range c.Ratios {
		fmt.Fprintf(w, "%s over %s, pair by pair: disk most %s, after load %s, settled %s, catch-up %s, writes/s %s\n",
			r.Engine, r.Over, r.DiskMax, r.DiskLoad, r.DiskEnd, r.CatchUp, r.Ops)
	}
	for _, name := range c.engines {
		o := c.Runs[name][0]
		fmt.Fprintf(w, "%s: %s; %d records read back, %d equal on all replicas\n", name, o.Note, o.Verified, o.Compared)
	}
	fmt.Fprintf(w, "again: %s\n", c.Command)
}

func (c *boundedComparison) append(path string) error { return appendJSON(path, c) }

// appendJSON adds a value to a file, as one line.
func appendJSON(path string, v any) error {
	f, err := os.OpenFile(path, os.O_APPEND|os.O_CREATE|os.O_WRONLY, 0o644)
	if err != nil {
		return err
	}
	err = json.NewEncoder(f).Encode(v)
	if cerr := f.Close(); err == nil {
		err = cerr
	}
	return err
}
