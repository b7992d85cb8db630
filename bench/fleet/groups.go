package fleet

import (
	"context"
	"errors"
	"fmt"
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
	// LedSeconds: from the kill until every shard has a leader that serves, where all
	// were awake; else zero. AcceptedSeconds: until every shard that was awake has
	// accepted a write, which were all begun at the kill. BeforeSeconds is what the same writes took before.
	LedSeconds      float64 `json:"led_s"`
	AcceptedSeconds float64 `json:"accepted_s"`
	BeforeSeconds   float64 `json:"before_s"`
	// HotPerS: writes per second to Hot shards among all; AlonePerS: to a cluster of
	// as many shards, before and after. OfAlone is the first, divided by the mean of the others.
	Hot       int        `json:"hot,omitempty"`
	HotPerS   float64    `json:"hot_ops_per_s,omitempty"`
	AlonePerS [2]float64 `json:"alone_ops_per_s,omitempty"`
	OfAlone   float64    `json:"of_alone,omitempty"`
	Failed    string     `json:"failed,omitempty"`
}

// Groups measures how a cluster of many shards survives a node, and how fast a few of
// them are. On an error the row holds what was measured before.
func Groups(ctx context.Context, c Config) (row GroupsRow, err error) {
	row.Shards, row.Awake = c.Shards, min(c.Awake, c.Shards)
	if c.Hot > 0 {
		row.Hot = min(c.Hot, c.Shards)
		if row.AlonePerS[0], err = c.alone(ctx); err != nil {
			return row, err
		}
	}
	if err := c.among(ctx, &row); err != nil {
		return row, err
	}
	if c.Hot > 0 {
		if row.AlonePerS[1], err = c.alone(ctx); err != nil {
			return row, err
		}
		row.OfAlone = 2 * row.HotPerS / max(row.AlonePerS[0]+row.AlonePerS[1], 1)
	}
	return row, nil
}

// among measures in the cluster of all shards.
func (c *Config) among(ctx context.Context, row *GroupsRow) (err error) {
	c.step("creating %d shards", c.Shards)
	s, err := c.open(ctx, localcluster.Options{Shards: c.Shards})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, s.close()) }()
	if c.Hot > 0 {
		if err := s.guard(ctx, "coming to rest", s.settle); err != nil {
			return err
		}
		if row.HotPerS, err = s.load(ctx, fmt.Sprintf("%d of %d shards", row.Hot, c.Shards)); err != nil {
			return err
		}
	}
	return s.guard(ctx, "electing after a kill", func(ctx context.Context) error { return s.kill(ctx, row) })
}

// alone measures a cluster of the hot shards only.
func (c *Config) alone(ctx context.Context) (perSec float64, err error) {
	s, err := c.open(ctx, localcluster.Options{SplitAt: c.keys(c.Hot)[1:]})
	if err != nil {
		return 0, err
	}
	defer func() { err = errors.Join(err, s.close()) }()
	return s.load(ctx, fmt.Sprintf("%d shards alone", c.Hot))
}

// kill wakes shards, kills a node, and waits until the others have taken over.
func (s *site) kill(ctx context.Context, row *GroupsRow) error {
	keys := s.c.keys(row.Awake)
	s.c.step("waking %d shards", len(keys))
	if err := s.put(ctx, keys); err != nil {
		return err
	}
	began := time.Now()
	if err := s.put(ctx, keys); err != nil {
		return err
	}
	row.BeforeSeconds = time.Since(began).Seconds()
	const victim = Nodes - 1 // writes are made at the first
	row.LedByKilled = s.fleet.Node(victim).Metrics().Leaders
	s.c.step("killing a node that leads %d shards", row.LedByKilled)
	killed := make(chan error, 1)
	go func() { killed <- s.fleet.Kill(victim) }() // which also closes its files: that takes a while
	for s.fleet.Node(victim) != nil {
		if err := pause(ctx, 100*time.Microsecond); err != nil {
			return err
		}
	}
	began = time.Now()
	accepted := make(chan error, 1)
	go func() {
		err := s.put(ctx, keys)
		row.AcceptedSeconds = time.Since(began).Seconds()
		accepted <- err
	}()
	var err error
	if row.Awake == s.c.Shards {
		if err = s.awaitLed(ctx); err == nil {
			row.LedSeconds = time.Since(began).Seconds()
		}
	}
	if err = errors.Join(err, <-accepted, <-killed); err != nil {
		return err
	}
	s.c.step("all %d accept writes after %.2f s", len(keys), row.AcceptedSeconds)
	return nil
}

// load keeps the hot shards busy.
func (s *site) load(ctx context.Context, what string) (perSec float64, err error) {
	s.c.step("%d clients write to %s", s.c.Clients, what)
	spec, err := workload.Parse("W1")
	if err != nil {
		return 0, err
	}
	set, err := workload.New(workload.Config{Spec: spec, Dist: spec.Dist, Records: hotRecords, ValueBytes: 128, Seed: 1})
	if err != nil {
		return 0, err
	}
	nodes := s.fleet.Nodes()
	var targets []bench.Target
	for _, n := range nodes {
		targets = append(targets, &spread{embedded.Target{KV: n}, s.c.keys(s.c.Hot)})
	}
	if err := bench.Load(ctx, set, targets, func(uint64) {}); err != nil {
		return 0, err
	}
	res, err := bench.Run(ctx, bench.Config{Set: set, Targets: targets, Clients: s.c.Clients, Warmup: s.c.Warmup, Duration: s.c.Duration, DataDir: s.o.Dir})
	if err != nil {
		return 0, err
	}
	if res.Errors > 0 {
		return 0, fmt.Errorf("%d writes to %s failed", res.Errors, what)
	}
	s.c.step("%.0f writes/s to %s", res.OpsPerSec, what)
	return res.OpsPerSec, nil
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
