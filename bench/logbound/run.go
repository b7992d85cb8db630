package logbound

import (
	"bytes"
	"cmp"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"time"

	"github.com/flotillakv/flotilla"
	"github.com/flotillakv/flotilla/bench/workload"
)

// Nodes is the size of the cluster.
const Nodes = 3

// ErrDown is returned by Cluster.Count for a node that does not run.
var ErrDown = errors.New("logbound: the node does not run")

// Cluster is what is put to the test. Calls for one node are not made at the same time,
// but for Count.
type Cluster interface {
	// Dir returns the directory of node i, from 0.
	Dir(i int) string
	// Count reads the logs of node i, and what it did. ErrDown: it does not run.
	Count(ctx context.Context, i int) (Counted, error)
	// Kill ends a node at once; Restart returns when it serves again.
	Kill(i int) error
	Restart(ctx context.Context, i int) error
	// KV reaches the cluster, whichever nodes run.
	KV() flotilla.KV
	// Allowance is flotilla.Node.DiskAllowance of any node.
	Allowance(largestShard int64) ([]flotilla.DiskTerm, error)
	Close() error
}

// Counted is what is read of a node that runs.
type Counted struct {
	// Logs and WAL are the two of flotilla.Node.CountLog.
	Logs int64 `json:"logs"`
	WAL  int64 `json:"wal"`
	Work
}

// Work is what a node did since it was started.
type Work struct {
	// Device counts the bytes that its process wrote to the device; zero: not known, or
	// the node has no process of its own.
	Device int64 `json:"device_bytes"`
	// Snapshots were sent to replicas that lagged, Images of them from images made before.
	Snapshots int64 `json:"snapshots_sent"`
	Images    int64 `json:"images_sent"`
	SentBytes int64 `json:"snapshot_bytes_sent"`
	// Kept images of shards were made, to be kept beside the log.
	Kept      int64 `json:"images_kept"`
	KeptBytes int64 `json:"image_bytes_kept"`
}

// WorkOf reads what n did; Device is left out.
func WorkOf(n *flotilla.Node) Work {
	m := n.Metrics()
	return Work{Snapshots: int64(m.Snapshots.Sent), Images: int64(m.Host.Images), SentBytes: int64(m.Snapshots.SentBytes),
		Kept: int64(m.Snapshots.Kept), KeptBytes: int64(m.Snapshots.KeptBytes)}
}

func (w *Work) add(v Work) {
	w.Device += v.Device
	w.Snapshots += v.Snapshots
	w.Images += v.Images
	w.SentBytes += v.SentBytes
	w.Kept += v.Kept
	w.KeptBytes += v.KeptBytes
}

// Config says what to do. All fields but the functions are needed.
type Config struct {
	Keys       uint64
	ValueBytes int
	Shards     int
	Writers    int
	Phase      time.Duration // of each phase, at least
	PhaseBytes int64         // of keys and values, written at least while a node is dead; half in other phases, an eighth in the crash loop
	Every      time.Duration // between two samples
	CrashEvery time.Duration // in the crash loop, between a restart and the next kill
	Patience   time.Duration // for one write, tries included
	// Rate is how many writes are begun in a second, all writers together: less if the
	// cluster does not follow. Zero: as many as it takes.
	Rate       float64
	Limits     flotilla.Limits
	Compaction flotilla.Compaction
	OnBounds   func(*Result) // the bounds are counted; nothing was written yet
	OnSample   func(*Sample)
}

// Phases, in their order.
const (
	Load   = "load"
	Steady = "steady"
	Dead   = "dead follower"
	Back   = "back again"
	Crash  = "crash loop"
	Idle   = "idle"
)

// Sample is what one node takes at one moment. All sizes in bytes.
type Sample struct {
	Seconds float64 `json:"seconds"` // since the beginning
	Phase   string  `json:"phase"`
	Node    int     `json:"node"`
	Up      bool    `json:"up"`
	// Disk is what the node's directory takes, and what of it are files of the
	// write-ahead log, tables, and snapshots that come in.
	Disk    int64 `json:"disk_bytes"`
	WALs    int64 `json:"wal_file_bytes"`
	Tables  int64 `json:"table_bytes"`
	Staging int64 `json:"staging_bytes"`
	// Logs are the Raft logs as read, WAL the write-ahead log of what is not in tables.
	// Both are -1 while the node is down.
	Logs int64 `json:"log_bytes"`
	WAL  int64 `json:"wal_bytes"`
	// Written counts the bytes of keys and values acknowledged so far.
	Written int64 `json:"written_bytes"`
}

// Result is one run.
type Result struct {
	Policy flotilla.CompactionPolicy `json:"policy"`
	// Live are the bytes of keys and values of one replica, Shard those of the largest shard.
	Live       int64               `json:"live_bytes"`
	Shard      int64               `json:"largest_shard_bytes"`
	Terms      []flotilla.DiskTerm `json:"allowance"`
	Allowance  int64               `json:"allowance_bytes"`
	DiskBound  int64               `json:"disk_bound_bytes"` // 1.3 Live + LogLimit + Allowance
	DiskLimit  int64               `json:"disk_limit_bytes"` // Limits.Disk; zero: none
	LogLimit   int64               `json:"log_limit_bytes"`
	Phases     []PhaseSum          `json:"phases"`
	Restarts   int                 `json:"restarts"`
	Retries    int64               `json:"retries"`
	Verified   int                 `json:"records_verified"`
	Violations int                 `json:"violations"`
	Written    int64               `json:"written_bytes"` // keys and values acknowledged
	// Work is what all nodes did, over all of their lives; what a node did between its last
	// count and its kill is missing.
	Work    Work     `json:"work"`
	Samples []Sample `json:"samples"`
}

// Most returns the most that a node took in any sample: its directory, and its logs with
// the write-ahead log.
func (r *Result) Most() (disk, logs int64) {
	for i := range r.Phases {
		disk, logs = max(disk, r.Phases[i].DiskMax), max(logs, r.Phases[i].LogMax)
	}
	return disk, logs
}

// PhaseSum is what the worst node took in a phase.
type PhaseSum struct {
	Phase   string  `json:"phase"`
	Seconds float64 `json:"seconds"`
	Writes  float64 `json:"writes_per_s"`
	DiskMax int64   `json:"disk_max_bytes"`
	LogMax  int64   `json:"log_max_bytes"` // with the write-ahead log
}

// Violation is a sample that exceeds a bound.
type Violation struct {
	Sample Sample
	What   string
}

func (v *Violation) Error() string {
	s := &v.Sample
	return fmt.Sprintf("%s: second %.0f, %s, node %d: directory %d bytes (log files %d, tables %d, staging %d), Raft logs %d, write-ahead log %d",
		v.What, s.Seconds, s.Phase, s.Node, s.Disk, s.WALs, s.Tables, s.Staging, s.Logs, s.WAL)
}

// check compares a sample with the bounds.
func (r *Result) check(s *Sample) error {
	switch {
	case r.DiskLimit > 0 && s.Disk > r.DiskLimit:
		return &Violation{*s, fmt.Sprintf("more than the %d bytes of Limits.Disk", r.DiskLimit)}
	case s.Disk > r.DiskBound:
		return &Violation{*s, fmt.Sprintf("more than the %d bytes of 1.3 x live data + Limits.Log + allowance", r.DiskBound)}
	case s.Logs >= 0 && s.Logs+s.WAL > r.LogLimit:
		return &Violation{*s, fmt.Sprintf("more than the %d bytes of Limits.Log", r.LogLimit)}
	}
	return nil
}

// Live returns the bytes of keys and values of c, and of the largest shard.
func (c *Config) Live() (live, shard int64) {
	per := int64(len(workload.AppendKey(nil, 0)) + c.ValueBytes)
	splits, counts := workload.Splits(c.Shards), make([]int64, c.Shards)
	for rec := range c.Keys {
		key, s := workload.AppendKey(nil, rec), 0
		for s < len(splits) && bytes.Compare(splits[s], key) <= 0 {
			s++
		}
		counts[s]++
		shard = max(shard, counts[s]*per)
	}
	return int64(c.Keys) * per, shard
}

// run is the state of Run.
type run struct {
	c       Config
	cluster Cluster
	res     *Result
	began   time.Time
	last    []uint64 // by record: number of the newest version
	retries atomic.Int64
	written atomic.Int64
	writes  atomic.Int64
	phase   atomic.Pointer[string]
	fail    context.CancelCauseFunc
	mu      sync.Mutex // of what a sample changes in res, and of what follows
	down    [Nodes]bool
	work    [Nodes]Work // of lives that are not over
}

// Run goes through all phases. The result is there, as far as it goes, with an error
// too: a *Violation, a write that was not taken in time, or what the cluster said.
func Run(ctx context.Context, cluster Cluster, c Config) (*Result, error) {
	r := &run{c: c, cluster: cluster, res: &Result{Policy: cmp.Or(c.Compaction.Policy, flotilla.CompactPiggybacked), LogLimit: c.Limits.Log, DiskLimit: c.Limits.Disk}, last: make([]uint64, c.Keys)}
	res := r.res
	res.Live, res.Shard = c.Live()
	var err error
	if res.Terms, err = cluster.Allowance(res.Shard); err != nil {
		return res, err
	}
	for _, t := range res.Terms {
		res.Allowance += t.Bytes
	}
	res.DiskBound = res.Live/10*13 + res.LogLimit + res.Allowance
	if c.OnBounds != nil {
		c.OnBounds(res)
	}
	ctx, r.fail = context.WithCancelCause(ctx)
	defer r.fail(nil)
	r.began = time.Now()
	first := Load
	r.phase.Store(&first)
	stop := make(chan struct{})
	var sampling sync.WaitGroup
	sampling.Go(func() { r.sampleLoop(ctx, stop) })
	for _, p := range []struct {
		name string
		do   func(context.Context) error
	}{
		{Load, r.load}, {Steady, r.steady}, {Dead, r.dead}, {Back, r.back}, {Crash, r.crashLoop}, {Idle, r.idle},
	} {
		name, before := p.name, r.writes.Load()
		began := time.Now()
		r.phase.Store(&name)
		err := p.do(ctx)
		took := time.Since(began).Seconds()
		r.mu.Lock()
		sum := r.sum(name)
		sum.Seconds, sum.Writes = took, float64(r.writes.Load()-before)/took
		r.mu.Unlock()
		if cause := context.Cause(ctx); cause != nil {
			err = cause
		}
		if err != nil {
			r.fail(err)
			break
		}
	}
	close(stop)
	sampling.Wait()
	for i := range Nodes {
		r.closeLife(ctx, i)
	}
	res.Retries, res.Written = r.retries.Load(), r.written.Load()
	if err := context.Cause(ctx); err != nil {
		return res, err
	}
	return res, r.verify(ctx)
}

// sum returns the summary of a phase. r.mu is held.
func (r *run) sum(phase string) *PhaseSum {
	for i := range r.res.Phases {
		if r.res.Phases[i].Phase == phase {
			return &r.res.Phases[i]
		}
	}
	r.res.Phases = append(r.res.Phases, PhaseSum{Phase: phase})
	return &r.res.Phases[len(r.res.Phases)-1]
}

func (r *run) sampleLoop(ctx context.Context, stop <-chan struct{}) {
	t := time.NewTicker(r.c.Every)
	defer t.Stop()
	for {
		for i := range Nodes {
			s, err := r.sample(ctx, i)
			if err == nil {
				err = r.res.check(s)
			}
			var bad *Violation
			if errors.As(err, &bad) {
				r.res.Violations++
			}
			if err != nil && ctx.Err() == nil {
				r.fail(err)
				return
			}
		}
		select {
		case <-t.C:
		case <-stop:
			return
		case <-ctx.Done():
			return
		}
	}
}

func (r *run) sample(ctx context.Context, i int) (*Sample, error) {
	s := &Sample{Phase: *r.phase.Load(), Node: i + 1, Up: true, Written: r.written.Load()}
	n, err := r.cluster.Count(ctx, i)
	s.Logs, s.WAL = n.Logs, n.WAL
	if err != nil {
		if !errors.Is(err, ErrDown) {
			return nil, fmt.Errorf("count the logs of node %d: %w", i+1, err)
		}
		s.Up, s.Logs, s.WAL = false, -1, -1
	}
	du(r.cluster.Dir(i), s)
	s.Seconds = time.Since(r.began).Seconds()
	r.mu.Lock()
	r.res.Samples = append(r.res.Samples, *s)
	if s.Up && !r.down[i] {
		r.work[i] = n.Work
	}
	sum := r.sum(s.Phase)
	sum.DiskMax, sum.LogMax = max(sum.DiskMax, s.Disk), max(sum.LogMax, s.Logs+s.WAL)
	r.mu.Unlock()
	if r.c.OnSample != nil {
		r.c.OnSample(s)
	}
	return s, nil
}

// closeLife adds what a node did, as far as it tells.
func (r *run) closeLife(ctx context.Context, i int) {
	n, err := r.cluster.Count(ctx, i)
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.down[i] {
		return
	}
	if err == nil {
		r.work[i] = n.Work
	}
	r.res.Work.add(r.work[i])
	r.work[i], r.down[i] = Work{}, true
}

// kill ends a node.
func (r *run) kill(ctx context.Context, i int) error {
	r.closeLife(ctx, i)
	if err := r.cluster.Kill(i); err != nil {
		return fmt.Errorf("kill node %d: %w", i+1, err)
	}
	return nil
}

func (r *run) load(ctx context.Context) error { return r.overwrite(ctx, nil) }

func (r *run) steady(ctx context.Context) error { return r.during(ctx, r.c.PhaseBytes/2, nil) }

func (r *run) dead(ctx context.Context) error {
	if err := r.kill(ctx, Nodes-1); err != nil {
		return err
	}
	return r.during(ctx, r.c.PhaseBytes, nil)
}

func (r *run) back(ctx context.Context) error {
	return r.during(ctx, r.c.PhaseBytes/2, func(ctx context.Context) error { return r.restart(ctx, Nodes-1) })
}

// crashLoop kills one node after the other, each right after the one before serves again.
func (r *run) crashLoop(ctx context.Context) error {
	return r.during(ctx, r.c.PhaseBytes/8, func(ctx context.Context) error {
		for i := 0; ctx.Err() == nil; i = (i + 1) % Nodes {
			if err := r.kill(ctx, i); err != nil {
				return err
			}
			// Not ctx: the node shall be up when the phase ends.
			if err := r.restart(context.WithoutCancel(ctx), i); err != nil {
				return err
			}
			wait(ctx, r.c.CrashEvery)
		}
		return nil
	})
}

func (r *run) restart(ctx context.Context, i int) error {
	ctx, cancel := context.WithTimeout(ctx, r.c.Patience)
	defer cancel()
	if err := r.cluster.Restart(ctx, i); err != nil {
		return fmt.Errorf("start node %d again: %w", i+1, err)
	}
	r.mu.Lock()
	r.res.Restarts++
	r.down[i] = false
	r.mu.Unlock()
	return nil
}

func (r *run) idle(ctx context.Context) error {
	wait(ctx, r.c.Phase)
	return nil
}

func wait(ctx context.Context, d time.Duration) {
	if d <= 0 {
		return
	}
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
	case <-ctx.Done():
	}
}

// during writes for one phase, so many bytes at least, while beside runs until its
// context ends.
func (r *run) during(ctx context.Context, bytes int64, beside func(context.Context) error) error {
	phase, cancel := context.WithCancel(ctx)
	defer cancel()
	enough := r.written.Load() + bytes
	go func() {
		wait(phase, r.c.Phase)
		for r.written.Load() < enough && phase.Err() == nil {
			wait(phase, r.c.Every)
		}
		cancel()
	}()
	failed := make(chan error, 1)
	if beside != nil {
		go func() { failed <- beside(phase) }()
	} else {
		failed <- nil
	}
	err := r.overwrite(ctx, phase)
	return errors.Join(err, <-failed)
}

// overwrite writes records at random until phase ends; each once in order if it is nil.
func (r *run) overwrite(ctx, phase context.Context) error {
	writers := min(uint64(r.c.Writers), r.c.Keys)
	var wg sync.WaitGroup
	for w := range writers {
		wg.Go(func() {
			draw := rand.New(rand.NewPCG(w, r.last[w]))
			mine := (r.c.Keys - w + writers - 1) / writers
			var val []byte
			began := time.Now()
			for i := uint64(0); ; i++ {
				if r.c.Rate > 0 {
					due := time.Duration(float64(i*writers+w) / r.c.Rate * float64(time.Second))
					if phase != nil {
						wait(phase, due-time.Since(began))
					} else {
						wait(ctx, due-time.Since(began))
					}
				}
				rec := w + writers*i
				if phase != nil {
					rec = w + writers*draw.Uint64N(mine)
				}
				if phase != nil && phase.Err() != nil || phase == nil && i == mine {
					return
				}
				var err error
				if val, err = r.write(ctx, rec, val); err != nil {
					r.fail(err)
					return
				}
			}
		})
	}
	wg.Wait()
	return context.Cause(ctx)
}

// value is version n of a record: bytes that do not compress.
func (r *run) value(dst []byte, rec, n uint64) []byte {
	g := rand.NewPCG(rec, n)
	dst = dst[:0]
	for len(dst) < r.c.ValueBytes {
		dst = binary.LittleEndian.AppendUint64(dst, g.Uint64())
	}
	return dst[:r.c.ValueBytes]
}

// write writes the next version of a record, which only its caller does.
func (r *run) write(ctx context.Context, rec uint64, val []byte) ([]byte, error) {
	n := r.last[rec] + 1
	val = r.value(val, rec, n)
	key := workload.AppendKey(nil, rec)
	for began := time.Now(); ; {
		_, err := r.cluster.KV().Put(ctx, key, val)
		if err == nil {
			r.last[rec] = n
			r.written.Add(int64(len(key) + len(val)))
			r.writes.Add(1)
			return val, nil
		}
		if ctx.Err() != nil {
			return val, context.Cause(ctx)
		}
		if time.Since(began) > r.c.Patience {
			return val, fmt.Errorf("no writes are taken any more: %q is refused for %s: %w", key, r.c.Patience, err)
		}
		r.retries.Add(1) // the same value: twice is once
		wait(ctx, 10*time.Millisecond)
	}
}

// verifyRecords is how many records are read back.
const verifyRecords = 1000

func (r *run) verify(ctx context.Context) error {
	step := max(1, r.c.Keys/verifyRecords)
	for rec := uint64(0); rec < r.c.Keys; rec += step {
		key := workload.AppendKey(nil, rec)
		got, err := r.cluster.KV().Get(ctx, key)
		if err != nil {
			return fmt.Errorf("read %q back: %w", key, err)
		}
		if !bytes.Equal(got.Bytes, r.value(nil, rec, r.last[rec])) {
			return fmt.Errorf("%q does not hold what was acknowledged last", key)
		}
		r.res.Verified++
	}
	return nil
}
