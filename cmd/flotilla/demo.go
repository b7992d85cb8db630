package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/HdrHistogram/hdrhistogram-go"
	"github.com/spf13/cobra"

	"github.com/flotillakv/flotilla"
	"github.com/flotillakv/flotilla/bench"
	"github.com/flotillakv/flotilla/bench/embedded"
	"github.com/flotillakv/flotilla/bench/workload"
	"github.com/flotillakv/flotilla/internal/localcluster"
)

const (
	demoNodes   = 3
	demoShards  = 64
	demoKeys    = 100_000
	demoValue   = 128
	demoClients = 256
	// demoLoad bounds the time spent on writing; fewer keys are written when
	// the machine is too slow for all.
	demoLoad = 15 * time.Second
	// demoLimit bounds the whole run.
	demoLimit = 85 * time.Second
	// demoBefore is how long writers work before the node is killed.
	demoBefore = time.Second
)

func newDemo(a *app) *cobra.Command {
	return &cobra.Command{
		Use:   "demo",
		Short: "Watch a cluster form, take data, lose a node and lose nothing",
		Long: `demo runs three nodes with 64 shards in this process, on real sockets and real
files with fsync. It writes up to 100,000 keys, kills the node that leads the most
shards while writes go on, measures how long writes stalled, checks that every
acknowledged write is there, brings the node back, and compares the replicas on
all three nodes. It takes about half a minute, exits with 0 only if every line is
ok, and leaves nothing behind.`,
		Args: arguments(),
		RunE: func(cmd *cobra.Command, _ []string) error {
			ctx, cancel := context.WithTimeout(cmd.Context(), demoLimit)
			defer cancel()
			return a.demo(ctx)
		},
	}
}

// demoStep is one line of the demo.
type demoStep struct {
	OK      bool    `json:"ok"`
	Step    string  `json:"step"`
	Seconds float64 `json:"seconds"` // since the start, at its end
	Text    string  `json:"text"`
}

type demo struct {
	a         *app
	start     time.Time
	cluster   *localcluster.Cluster
	set       *workload.Set
	shards    []flotilla.ShardInfo // those that hold records, by range
	loaded    int
	victim    int // index of the node to kill
	writers   []*demoWriter
	log       logBuffer
	snapshots sync.Map // shard id -> installed by snapshot after the kill
	steps     []demoStep
}

func (a *app) demo(ctx context.Context) error {
	dir, err := os.MkdirTemp("", "flotilla-demo-")
	if err != nil {
		return failure(exitFailed, err, "set TMPDIR to a directory that can be written", "cannot make a temporary directory: %v", err)
	}
	defer os.RemoveAll(dir)
	d := &demo{a: a, start: time.Now()}
	if !a.json() {
		fmt.Fprintf(a.out, "flotilla demo   %d nodes, %d shards, data in %s (removed at the end)\n", demoNodes, demoShards, dir)
	}
	defer func() {
		if d.cluster != nil {
			d.cluster.Close()
		}
	}()
	for _, step := range []struct {
		name string
		run  func(context.Context) (string, error)
	}{
		{"form", func(ctx context.Context) (string, error) { return d.form(ctx, dir) }},
		{"load", d.load},
		{"kill", d.kill},
		{"verify", d.verify},
		{"rejoin", d.rejoin},
		{"compare", d.compare},
	} {
		text, err := step.run(ctx)
		d.print(step.name, text, err)
		if err != nil {
			return d.stopped(ctx, step.name, err)
		}
	}
	if a.json() {
		return a.printJSON(map[string]any{"ok": true, "seconds": time.Since(d.start).Seconds(), "steps": d.steps})
	}
	fmt.Fprintf(a.out, "Next:  flotilla dev      a cluster that stays        flotilla bench run A      numbers for your machine\n")
	return nil
}

// print shows one step, good or bad.
func (d *demo) print(name, text string, err error) {
	took := time.Since(d.start)
	mark := "ok  "
	if name == "kill" {
		mark = "kill"
	}
	if err != nil {
		mark = "FAIL"
		text = err.Error()
	}
	d.steps = append(d.steps, demoStep{err == nil, name, took.Seconds(), text})
	if d.a.json() {
		return
	}
	code := green
	if err != nil {
		code = red
	}
	fmt.Fprintf(d.a.out, "  %s %5.1fs  %s\n", d.a.colour(d.a.outTTY, code, mark), took.Seconds(), text)
}

// logBuffer keeps what the nodes have to say, up to a bound: a killed node makes
// the others complain, which is of interest only if the demo does not succeed.
type logBuffer struct {
	mu  sync.Mutex
	buf bytes.Buffer
}

const logBufferMax = 64 << 10

func (l *logBuffer) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.buf.Len()+len(p) <= logBufferMax {
		l.buf.Write(p)
	}
	return len(p), nil
}

func (l *logBuffer) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.buf.String()
}

func (d *demo) stopped(ctx context.Context, step string, err error) error {
	if log := d.log.String(); log != "" && !errors.Is(ctx.Err(), context.Canceled) {
		d.a.note("what the nodes said meanwhile:\n%s", strings.TrimSuffix(log, "\n"))
	}
	if d.a.json() {
		if err := d.a.printJSON(map[string]any{"ok": false, "seconds": time.Since(d.start).Seconds(), "steps": d.steps}); err != nil {
			return err
		}
	}
	switch {
	case errors.Is(ctx.Err(), context.DeadlineExceeded):
		return failure(exitFailed, err, "again on a quieter machine", "the demo stopped at step %q: it took longer than %s", step, demoLimit)
	case ctx.Err() != nil:
		return failure(exitFailed, err, "", "the demo was interrupted at step %q; its directory is removed", step)
	}
	return failure(exitFailed, err, "", "the demo stopped at step %q: %v", step, err)
}

// form starts the cluster and waits until every shard has a leader.
func (d *demo) form(ctx context.Context, dir string) (string, error) {
	var err error
	d.cluster, err = localcluster.Start(ctx, localcluster.Options{
		Nodes: demoNodes, Dir: dir, SplitAt: workload.Splits(demoShards),
		Logger: slog.New(slog.NewTextHandler(&d.log, &slog.HandlerOptions{Level: slog.LevelWarn})),
		Observer: flotilla.Observer{OnSnapshot: func(e flotilla.SnapshotEvent) {
			if !e.Sent && e.Err == nil {
				d.snapshots.Store(e.Shard, true)
			}
		}},
	})
	if err != nil {
		return "", err
	}
	err = d.await(ctx, func() (bool, error) {
		d.shards = d.shards[:0]
		all, err := d.cluster.Node(0).Shards(ctx)
		led := 0
		for _, s := range all {
			if userShard(&s) {
				d.shards = append(d.shards, s)
				if s.Leader != 0 {
					led++
				}
			}
		}
		return err == nil && led == demoShards, err
	})
	if err != nil {
		return "", err
	}
	slices.SortFunc(d.shards, func(x, y flotilla.ShardInfo) int { return strings.Compare(string(x.Start), string(y.Start)) })
	leaders := make([]int, demoNodes)
	for _, s := range d.shards {
		leaders[s.Leader-1]++
	}
	text := fmt.Sprintf("cluster formed, %d leaders:", demoShards)
	for i, n := range leaders {
		text += fmt.Sprintf(" n%d %d ", i+1, n)
		if n > leaders[d.victim] {
			d.victim = i
		}
	}
	return strings.TrimSpace(text), nil
}

// await asks until the condition holds; the last error is told when time runs out.
func (d *demo) await(ctx context.Context, holds func() (bool, error)) error {
	tick := time.NewTicker(25 * time.Millisecond)
	defer tick.Stop()
	for {
		ok, err := holds()
		if ok {
			return nil
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return errors.Join(ctx.Err(), err)
		}
	}
}

// load writes keys one by one with many clients.
func (d *demo) load(ctx context.Context) (string, error) {
	spec, err := workload.Parse("A")
	if err != nil {
		return "", err
	}
	if d.set, err = workload.New(workload.Config{Spec: spec, Records: demoKeys, ValueBytes: demoValue, Seed: 1}); err != nil {
		return "", err
	}
	var next, done atomic.Int64
	hist := hdrhistogram.New(1, int64(time.Minute/time.Microsecond), 3)
	var mu sync.Mutex // guards hist
	show := d.a.startProgress(func() (float64, string) {
		n := done.Load()
		return float64(n) / demoKeys, countText(n) + " keys written"
	})
	start := time.Now()
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	var wg sync.WaitGroup
	for i := range demoClients {
		wg.Go(func() {
			target := embedded.Target{KV: d.cluster.Node(i % demoNodes)}
			for time.Since(start) < demoLoad {
				rec := next.Add(1) - 1
				if rec >= demoKeys {
					return
				}
				sent := time.Now()
				if err := target.Write(ctx, workload.AppendKey(nil, uint64(rec)), d.set.Value(uint64(rec))); err != nil {
					cancel(err)
					return
				}
				done.Add(1)
				mu.Lock()
				_ = hist.RecordValue(min(time.Since(sent).Microseconds(), hist.HighestTrackableValue()))
				mu.Unlock()
			}
		})
	}
	wg.Wait()
	show.stop()
	if err := context.Cause(ctx); err != nil {
		return "", err
	}
	d.loaded = int(done.Load())
	machine, err := bench.Inspect(os.TempDir())
	fsync := "on"
	if err == nil && !machine.Durable {
		fsync = "on, but " + machine.FileSystem + " is memory"
	}
	ms := func(p float64) float64 { return float64(hist.ValueAtPercentile(p)) / 1000 }
	return fmt.Sprintf("wrote %s keys         %s ops/s   p50 %.1f ms   p99 %.1f ms   (fsync %s)", countText(int64(d.loaded)),
		countText(int64(float64(d.loaded)/time.Since(start).Seconds())), ms(50), ms(99), fsync), nil
}

// demoWriter writes to one shard, one write after the other, and remembers what
// was acknowledged.
type demoWriter struct {
	shard     *flotilla.ShardInfo
	acked     []string
	firstBack time.Time // when the first write begun after the kill was acknowledged
}

func (w *demoWriter) key(n int) string {
	return fmt.Sprintf("%s/demo/%06d", w.shard.Start, n)
}

// run writes until a write that began after the kill was acknowledged.
func (w *demoWriter) run(ctx context.Context, kv flotilla.KV, killed <-chan struct{}) {
	for n := 0; ctx.Err() == nil; n++ {
		after := false
		select {
		case <-killed:
			after = true
		default:
		}
		key := w.key(n)
		attempt, cancel := context.WithTimeout(ctx, time.Second)
		_, err := kv.Put(attempt, []byte(key), []byte(key))
		cancel()
		if err != nil {
			select { // refused or unknown: not counted; a short rest, then on
			case <-time.After(2 * time.Millisecond):
			case <-ctx.Done():
			}
			continue
		}
		w.acked = append(w.acked, key)
		if after {
			w.firstBack = time.Now()
			return
		}
	}
}

// kill ends the node that leads the most shards, while one writer per shard
// works through the other nodes, and measures until all shards take writes again.
func (d *demo) kill(ctx context.Context) (string, error) {
	led := 0
	for _, s := range d.shards {
		if int(s.Leader) == d.victim+1 {
			led++
		}
	}
	killed := make(chan struct{})
	var wg sync.WaitGroup
	for i := range d.shards {
		w := &demoWriter{shard: &d.shards[i]}
		d.writers = append(d.writers, w)
		kv := d.cluster.Node((d.victim + 1 + i%(demoNodes-1)) % demoNodes)
		wg.Go(func() { w.run(ctx, kv, killed) })
	}
	select {
	case <-time.After(demoBefore):
	case <-ctx.Done():
	}
	at := time.Now()
	err := d.cluster.Kill(d.victim)
	close(killed)
	wg.Wait()
	if err = errors.Join(ctx.Err(), err); err != nil {
		return "", err
	}
	stall := time.Duration(0)
	for _, w := range d.writers {
		stall = max(stall, w.firstBack.Sub(at))
	}
	return fmt.Sprintf("node n%d (%d leaders)        writes stalled %d ms at most, then every shard took writes again", d.victim+1, led, stall.Milliseconds()), nil
}

// verify reads everything back on a node that lived through it.
func (d *demo) verify(ctx context.Context) (string, error) {
	want := make(map[string]string, d.loaded+1000)
	for rec := range uint64(d.loaded) {
		want[string(workload.AppendKey(nil, rec))] = string(d.set.Value(rec))
	}
	during := 0
	for _, w := range d.writers {
		during += len(w.acked)
		for _, key := range w.acked {
			want[key] = key
		}
	}
	total := len(want)
	kv := d.cluster.Node((d.victim + 1) % demoNodes)
	for p, err := range kv.Scan(ctx, flotilla.Range{}) {
		if err != nil {
			return "", err
		}
		if v, ok := want[string(p.Key)]; ok && v == string(p.Value) {
			delete(want, string(p.Key))
		}
	}
	if len(want) > 0 {
		return "", fmt.Errorf("%s of %s acknowledged writes lost", countText(int64(len(want))), countText(int64(total)))
	}
	return fmt.Sprintf("0 acknowledged writes lost   %s read back, %s of them written around the kill", countText(int64(total)), countText(int64(during))), nil
}

// rejoin starts the killed node again and waits until it lags behind nobody.
func (d *demo) rejoin(ctx context.Context) (string, error) {
	if err := d.cluster.Restart(ctx, d.victim); err != nil {
		return "", err
	}
	err := d.await(ctx, func() (bool, error) {
		s, err := d.cluster.Node((d.victim + 1) % demoNodes).Status(ctx)
		if err != nil {
			return false, err
		}
		lag := uint64(0)
		for _, n := range s.Nodes {
			lag += n.Lag
		}
		if s.State != "HEALTHY" || lag > 0 {
			return false, fmt.Errorf("the cluster is %s, %d entries behind", s.State, lag)
		}
		return true, nil
	})
	if err != nil {
		return "", err
	}
	bySnapshot := 0
	for _, s := range d.shards {
		if _, ok := d.snapshots.Load(s.ID); ok {
			bySnapshot++
		}
	}
	return fmt.Sprintf("n%d back and caught up       %d shards by log, %d by snapshot", d.victim+1, demoShards-bySnapshot, bySnapshot), nil
}

// compare computes a digest of every replica at one applied index per shard.
func (d *demo) compare(ctx context.Context) (string, error) {
	same := 0
	for _, s := range d.shards {
		err := d.await(ctx, func() (bool, error) {
			applied, digest, err := d.cluster.Node(0).LocalDigest(ctx, s.ID)
			if err != nil {
				return false, err
			}
			for i := 1; i < demoNodes; i++ {
				a, g, err := d.cluster.Node(i).LocalDigest(ctx, s.ID)
				if err != nil || a != applied {
					return false, err // not at the same place of the log yet
				}
				if g != digest {
					return true, nil // differs at the same place: no use to wait
				}
			}
			same++
			return true, nil
		})
		if err != nil {
			return "", err
		}
	}
	if same < demoShards {
		return "", fmt.Errorf("replicas differ in %d of %d shards", demoShards-same, demoShards)
	}
	return fmt.Sprintf("replicas identical        %d/%d digests match on %d nodes", same, demoShards, demoNodes), nil
}
