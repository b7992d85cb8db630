package fleet

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/flotillakv/flotilla/bench"
	"github.com/flotillakv/flotilla/bench/embedded"
	"github.com/flotillakv/flotilla/bench/workload"
	"github.com/flotillakv/flotilla/internal/localcluster"
)

// GroupsRow is what many shards do to those that are used.
type GroupsRow struct {
	Shards int `json:"shards"`
	// Awake shards were written to before a node was killed; LedByKilled is how many
	// shards that node led, of all.
	Awake       int `json:"awake"`
	LedByKilled int `json:"led_by_killed"`
	// Memory is what the process held when they were awake, and AwakeHeap by how many bytes
	// its heap had grown since before, per replica that had woken: what was written
	// last included.
	Memory    Memory `json:"memory"`
	AwakeHeap int    `json:"awake_heap_bytes"`
	// From the kill on: WithdrawnSeconds until all others had withdrawn their support for the
	// killed node, before which nobody may be elected; LedSeconds until as many shards as
	// before had a leader that serves; and until awake shards had accepted a write, which
	// were all begun at the kill: half of them, 99 % and all. A write that failed was made again,
	// AgainWrites in all. BeforeSeconds is what the same writes took before, all of them.
	WithdrawnSeconds   float64 `json:"withdrawn_s"`
	LedSeconds         float64 `json:"led_s"`
	AcceptedP50Seconds float64 `json:"accepted_p50_s"`
	AcceptedP99Seconds float64 `json:"accepted_p99_s"`
	AcceptedSeconds    float64 `json:"accepted_s"`
	AgainWrites        int     `json:"again_writes"`
	BeforeSeconds      float64 `json:"before_s"`
	// Hot shards among all were written to, and as many in a cluster of their own, in
	// Pairs of runs that follow each other. The other fields are their medians.
	Hot       int     `json:"hot,omitempty"`
	Pairs     []Pair  `json:"pairs,omitempty"`
	HotPerS   float64 `json:"hot_ops_per_s,omitempty"`
	AlonePerS float64 `json:"alone_ops_per_s,omitempty"`
	OfAlone   float64 `json:"of_alone,omitempty"`
	HotCPU    float64 `json:"hot_cpu_us,omitempty"`
	AloneCPU  float64 `json:"alone_cpu_us,omitempty"`
	Failed    string  `json:"failed,omitempty"`
}

// Pair is two runs that followed each other.
type Pair struct {
	HotPerS   float64 `json:"hot_ops_per_s"`
	AlonePerS float64 `json:"alone_ops_per_s"`
	OfAlone   float64 `json:"of_alone"` // the first divided by the second
	// Processor time of the process per write, in microseconds.
	HotCPU   float64 `json:"hot_cpu_us"`
	AloneCPU float64 `json:"alone_cpu_us"`
}

// Groups measures how fast a few shards among many are, and how the cluster of all of
// them survives a node. On an error the row holds what was measured before.
func Groups(ctx context.Context, c Config) (row GroupsRow, err error) {
	row.Shards, row.Awake = c.Shards, min(c.Awake, c.Shards)
	if c.Hot > 0 {
		row.Hot = min(c.Hot, c.Shards)
		if _, _, err := c.alone(ctx); err != nil { // not counted: memory is new to the process in its first run
			return row, err
		}
		for i := range c.Pairs {
			var p Pair
			runs := []func() error{
				func() (err error) { p.HotPerS, p.HotCPU, err = c.among(ctx); return err },
				func() (err error) { p.AlonePerS, p.AloneCPU, err = c.alone(ctx); return err },
			}
			if i%2 == 1 { // what drifts from run to run favours neither
				runs[0], runs[1] = runs[1], runs[0]
			}
			for _, run := range runs {
				if err := run(); err != nil {
					return row, err
				}
			}
			p.OfAlone = p.HotPerS / max(p.AlonePerS, 1)
			row.add(p)
			c.step("pair %d: %.0f %% of what they do alone", i+1, 100*p.OfAlone)
		}
	}
	if c.Awake == 0 {
		return row, nil
	}
	c.step("creating %d shards", c.Shards)
	s, err := c.open(ctx, localcluster.Options{Shards: c.Shards})
	if err != nil {
		return row, err
	}
	err = s.guard(ctx, "electing after a kill", func(ctx context.Context) error { return s.kill(ctx, &row) })
	return row, errors.Join(err, s.close())
}

// add takes one more pair in.
func (row *GroupsRow) add(p Pair) {
	row.Pairs = append(row.Pairs, p)
	median := func(of func(Pair) float64) float64 {
		v := make([]float64, len(row.Pairs))
		for i, p := range row.Pairs {
			v[i] = of(p)
		}
		slices.Sort(v)
		return (v[len(v)/2] + v[(len(v)-1)/2]) / 2
	}
	row.HotPerS = median(func(p Pair) float64 { return p.HotPerS })
	row.AlonePerS = median(func(p Pair) float64 { return p.AlonePerS })
	row.OfAlone = median(func(p Pair) float64 { return p.OfAlone })
	row.HotCPU = median(func(p Pair) float64 { return p.HotCPU })
	row.AloneCPU = median(func(p Pair) float64 { return p.AloneCPU })
}

// among measures the hot shards in a cluster of all.
func (c *Config) among(ctx context.Context) (perSec, cpu float64, err error) {
	return c.hot(ctx, localcluster.Options{Shards: c.Shards}, fmt.Sprintf("%d of %d shards", min(c.Hot, c.Shards), c.Shards))
}

// alone measures a cluster of the hot shards only.
func (c *Config) alone(ctx context.Context) (perSec, cpu float64, err error) {
	return c.hot(ctx, localcluster.Options{SplitAt: c.keys(c.Hot)[1:]}, fmt.Sprintf("%d shards alone", min(c.Hot, c.Shards)))
}

// hot measures the hot shards of a new cluster.
func (c *Config) hot(ctx context.Context, o localcluster.Options, what string) (perSec, cpu float64, err error) {
	readMemory() // what the run before left is not collected in this one
	s, err := c.open(ctx, o)
	if err != nil {
		return 0, 0, err
	}
	defer func() { err = errors.Join(err, s.close()) }()
	err = s.guard(ctx, "writing to the busy shards", func(ctx context.Context) (err error) {
		if err = s.settle(ctx); err == nil { // some shards elect a leader by themselves at first
			perSec, cpu, err = s.load(ctx, what)
		}
		return err
	})
	return perSec, cpu, err
}

// kill wakes shards, kills a node, and waits until the others have taken over.
func (s *site) kill(ctx context.Context, row *GroupsRow) error {
	keys := s.c.keys(row.Awake)
	idle, asleep := readMemory(), s.awake()
	s.c.step("waking %d shards", len(keys))
	took, again, err := s.put(ctx, keys, putDepth)
	if err != nil {
		return err
	}
	s.c.step("all %d had accepted a write after %.2f s, %d of them more than one", len(keys), took[len(took)-1].Seconds(), again)
	if took, _, err = s.put(ctx, keys, len(keys)); err != nil {
		return err
	}
	row.BeforeSeconds = took[len(took)-1].Seconds()
	took = nil
	row.Memory = readMemory()
	if n := s.awake() - asleep; n > 0 {
		row.AwakeHeap = int(row.Memory.Heap-idle.Heap) / n
	}
	const victim = Nodes - 1 // writes are made at the first
	row.LedByKilled = s.fleet.Node(victim).Metrics().Leaders
	led := s.ready()
	var before [Nodes]uint64
	for i, n := range s.fleet.Nodes() {
		before[i] = n.Metrics().Live.Withdrawn
	}
	s.c.step("killing a node that leads %d of %d shards", row.LedByKilled, led)
	killed := make(chan error, 1)
	go func() { killed <- s.fleet.Kill(victim) }() // which also closes its files: that takes a while
	for s.fleet.Node(victim) != nil {
		if err := pause(ctx, 100*time.Microsecond); err != nil {
			return err
		}
	}
	began := time.Now()
	accepted := make(chan error, 1)
	go func() {
		took, again, err := s.put(ctx, keys, len(keys))
		if n := len(took); err == nil && n > 0 {
			row.AcceptedP50Seconds, row.AcceptedP99Seconds, row.AcceptedSeconds = took[n/2].Seconds(), took[n*99/100].Seconds(), took[n-1].Seconds()
		}
		row.AgainWrites = again
		accepted <- err
	}()
	err = s.await(ctx, func() (bool, string) {
		withdrawn := 0
		for i, n := range s.fleet.Nodes() {
			if n.Metrics().Live.Withdrawn > before[i] {
				withdrawn++
			}
		}
		return withdrawn == Nodes-1, fmt.Sprintf("%d of %d nodes have withdrawn their support", withdrawn, Nodes-1)
	})
	if err == nil {
		row.WithdrawnSeconds = time.Since(began).Seconds()
		err = s.await(ctx, func() (bool, string) {
			n := s.ready()
			return n >= led, fmt.Sprintf("%d of %d shards have a leader", n, led)
		})
	}
	if err == nil {
		row.LedSeconds = time.Since(began).Seconds()
	}
	if err = errors.Join(err, <-accepted, <-killed); err != nil {
		return err
	}
	s.c.step("support withdrawn after %.2f s, all led after %.2f s, all %d accept writes after %.2f s", row.WithdrawnSeconds, row.LedSeconds, len(keys), row.AcceptedSeconds)
	return nil
}

// load keeps the hot shards busy. It returns the writes per second, and the processor time
// of each in microseconds.
func (s *site) load(ctx context.Context, what string) (perSec, cpu float64, err error) {
	s.c.step("%d clients write to %s", s.c.Clients, what)
	spec, err := workload.Parse("W1")
	if err != nil {
		return 0, 0, err
	}
	set, err := workload.New(workload.Config{Spec: spec, Dist: spec.Dist, Records: hotRecords, ValueBytes: 128, Seed: 1})
	if err != nil {
		return 0, 0, err
	}
	nodes := s.fleet.Nodes()
	var targets []bench.Target
	for _, n := range nodes {
		targets = append(targets, &spread{embedded.Target{KV: n}, s.c.keys(s.c.Hot)})
	}
	if err := bench.Load(ctx, set, targets, func(uint64) {}); err != nil {
		return 0, 0, err
	}
	res, err := bench.Run(ctx, bench.Config{Set: set, Targets: targets, Clients: s.c.Clients, Warmup: s.c.Warmup, Duration: s.c.Duration, DataDir: s.o.Dir})
	if err != nil {
		return 0, 0, err
	}
	if res.Errors > 0 {
		return 0, 0, fmt.Errorf("%d writes to %s failed", res.Errors, what)
	}
	led := make([]int, Nodes) // of the busy shards
	for _, key := range s.c.keys(s.c.Hot) {
		if info, err := nodes[0].ShardsFrom(ctx, key, 1); err == nil && len(info) == 1 && info[0].Leader > 0 {
			led[info[0].Leader-1]++
		}
	}
	s.c.step("%.0f writes/s of %.1f us to %s, of which the nodes lead %v", res.OpsPerSec, res.CPUPer1M, what, led)
	return res.OpsPerSec, res.CPUPer1M, nil
}

// hotRecords is how many records the hot shards hold.
const hotRecords = 50_000

// spread puts the records of a workload into the hot shards: the first bytes of a
// key, which is a hash, choose which.
type spread struct {
	bench.Target
	starts [][]byte
}

func (s *spread) key(k []byte) []byte {
	h := uint64(0)
	for _, b := range k[:min(len(k), 8)] {
		h = h*31 + uint64(b)
	}
	start := s.starts[h%uint64(len(s.starts))]
	return append(append(append(make([]byte, 0, len(start)+1+len(k)), start...), 0), k...) // 0: to stay below the next start
}

// Read implements bench.Target.
func (s *spread) Read(ctx context.Context, key []byte) ([]byte, bool, error) {
	return s.Target.Read(ctx, s.key(key))
}

// Write implements bench.Target.
func (s *spread) Write(ctx context.Context, key, value []byte) error {
	return s.Target.Write(ctx, s.key(key), value)
}

// Load implements bench.Target.
func (s *spread) Load(ctx context.Context, keys, values [][]byte) error {
	moved := make([][]byte, len(keys))
	for i, k := range keys {
		moved[i] = s.key(k)
	}
	return s.Target.Load(ctx, moved, values)
}
