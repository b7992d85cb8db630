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
	// Asleep shards held something and slept when a node was killed that led AsleepLed of them.
	// From when support for it was withdrawn on: TouchedSeconds until a sample of shards all over
	// the keyspace had accepted a write, which was begun then; SweptSeconds until all had a leader
	// again, most of them without being asked for one. Meanwhile, for the whole process:
	// processor time in percent of one core, replicas that woke and bytes between the nodes, per
	// second. StillAwake replicas were awake when the cluster had come to rest again, the node
	// still dead.
	Asleep         int     `json:"asleep,omitempty"`
	AsleepLed      int     `json:"asleep_led,omitempty"`
	TouchedSeconds float64 `json:"touched_s,omitempty"`
	SweptSeconds   float64 `json:"swept_s,omitempty"`
	SweepCPU       float64 `json:"sweep_cpu_percent,omitempty"`
	SweepWakes     float64 `json:"sweep_wakes_per_s,omitempty"`
	SweepBytes     float64 `json:"sweep_bytes_per_s,omitempty"`
	StillAwake     int     `json:"still_awake,omitempty"`
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
	for _, part := range []struct {
		shards int
		run    func(*site, context.Context, *GroupsRow) error
	}{{c.Awake, (*site).kill}, {c.Asleep, (*site).killAsleep}} {
		if part.shards == 0 {
			continue
		}
		c.step("creating %d shards", c.Shards)
		s, err := c.open(ctx, localcluster.Options{Shards: c.Shards})
		if err != nil {
			return row, err
		}
		err = s.guard(ctx, "electing after a kill", func(ctx context.Context) error { return part.run(s, ctx, &row) })
		if err = errors.Join(err, s.close()); err != nil {
			return row, err
		}
	}
	return row, nil
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
	row.LedByKilled = s.fleet.Node(victim).Metrics().Leaders
	led := s.ready()
	s.c.step("killing a node that leads %d of %d shards", row.LedByKilled, led)
	withdrawn := s.withdrawn()
	killed, err := s.killVictim(ctx)
	if err != nil {
		return err
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
	err = s.await(ctx, withdrawn)
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

// victim is the node that is killed; writes are made at the first.
const victim = Nodes - 1

// killVictim kills a node, and returns when it is dead. What comes out of the channel later is
// whether its files could be closed.
func (s *site) killVictim(ctx context.Context) (<-chan error, error) {
	killed := make(chan error, 1)
	go func() { killed <- s.fleet.Kill(victim) }()
	for s.fleet.Node(victim) != nil {
		if err := pause(ctx, 100*time.Microsecond); err != nil {
			return killed, err
		}
	}
	return killed, nil
}

// withdrawn returns a condition for await: all others have withdrawn support that they gave the
// victim at the time of the call.
func (s *site) withdrawn() func() (bool, string) {
	var before [Nodes]uint64
	for i, n := range s.fleet.Nodes() {
		before[i] = n.Metrics().Live.Withdrawn
	}
	return func() (bool, string) {
		withdrawn := 0
		for i, n := range s.fleet.Nodes() {
			if n.Metrics().Live.Withdrawn > before[i] {
				withdrawn++
			}
		}
		return withdrawn == Nodes-1, fmt.Sprintf("%d of %d nodes have withdrawn their support", withdrawn, Nodes-1)
	}
}

// killAsleep has shards hold something and fall asleep, kills a node, and waits until all of them
// have a leader again, and the cluster is at rest.
func (s *site) killAsleep(ctx context.Context, row *GroupsRow) error {
	row.Asleep = min(s.c.Asleep, s.c.Shards)
	s.c.step("writing to %d shards", row.Asleep)
	if _, _, err := s.put(ctx, s.c.keys(row.Asleep), putDepth); err != nil {
		return err
	}
	s.c.step("coming to rest")
	if err := s.settle(ctx); err != nil {
		return err
	}
	row.AsleepLed = s.fleet.Node(victim).Metrics().Leaders
	led, awake := s.ready(), s.awake()
	s.c.step("killing a node that leads %d of %d shards; %d replicas are awake", row.AsleepLed, led, awake)
	withdrawn := s.withdrawn()
	killed, err := s.killVictim(ctx)
	if err == nil {
		err = s.await(ctx, withdrawn)
	}
	if err != nil {
		return errors.Join(err, <-killed)
	}
	before, wakes := s.look(), s.wakes()
	took, _, err := s.put(ctx, s.c.keys(min(sample, row.Asleep)), putDepth)
	if n := len(took); err == nil && n > 0 {
		row.TouchedSeconds = took[n-1].Seconds()
		err = s.await(ctx, func() (bool, string) {
			n := s.ready()
			return n >= led, fmt.Sprintf("%d of %d shards have a leader", n, led)
		})
	}
	if err = errors.Join(err, <-killed); err != nil {
		return err
	}
	after := s.look()
	row.SweptSeconds = after.at.Sub(before.at).Seconds()
	row.SweepCPU = 100 * (after.cpu - before.cpu).Seconds() / row.SweptSeconds
	row.SweepWakes = float64(s.wakes()-wakes) / row.SweptSeconds
	row.SweepBytes = float64(after.peers-before.peers) / row.SweptSeconds
	s.c.step("all led again %.2f s after support was withdrawn (%d that were asked for %.2f s): %.1f %% of a core, %.0f wakes/s, %.0f bytes/s",
		row.SweptSeconds, len(took), row.TouchedSeconds, row.SweepCPU, row.SweepWakes, row.SweepBytes)
	if err := s.settle(ctx); err != nil {
		return err
	}
	row.StillAwake = s.awake()
	s.c.step("%d replicas are awake at rest, the node still dead; %d MiB of heap", row.StillAwake, readMemory().Heap>>20)
	return nil
}

// wakes counts the replicas that woke so far.
func (s *site) wakes() (n uint64) {
	for _, node := range s.fleet.Nodes() {
		n += node.Metrics().Host.Wakes
	}
	return n
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
