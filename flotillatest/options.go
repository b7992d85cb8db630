package flotillatest

import (
	"log/slog"
	"time"

	"github.com/flotillakv/flotilla"
)

// Option changes what NewCluster makes.
type Option func(*options)

type options struct {
	shards   int
	splitAt  [][]byte
	replicas int
	seed     uint64
	timing   flotilla.Timing
	timeout  time.Duration
	logger   *slog.Logger
	observer func(node int) flotilla.Observer
}

func defaults() options {
	return options{
		shards: 4, seed: 1, timeout: 30 * time.Second,
		timing: flotilla.Timing{Heartbeat: 25 * time.Millisecond, Support: 200 * time.Millisecond, ElectionRank: 20 * time.Millisecond},
	}
}

// WithShards sets the number of shards. The default is 4. Their boundaries cut
// the space of keys evenly by their first two bytes.
func WithShards(n int) Option {
	return func(o *options) { o.shards, o.splitAt = n, nil }
}

// WithSplitAt sets the boundaries of the shards.
func WithSplitAt(keys ...[]byte) Option {
	return func(o *options) { o.shards, o.splitAt = 0, keys }
}

// WithReplicas sets the number of voters of each shard. The default is 3, or
// the number of nodes if that is less.
func WithReplicas(n int) Option { return func(o *options) { o.replicas = n } }

// WithSeed sets the seed of the faults: what a power loss takes, which frames
// get lost. The default is 1.
func WithSeed(seed uint64) Option { return func(o *options) { o.seed = seed } }

// WithTiming sets the timing of liveness and elections. The default lets a
// leader's failure be noticed after 200 ms.
func WithTiming(t flotilla.Timing) Option { return func(o *options) { o.timing = t } }

// WithTimeout bounds each step that waits: start, restart, the Await methods.
// The default is 30 s. A step that takes longer fails the test.
func WithTimeout(d time.Duration) Option { return func(o *options) { o.timeout = d } }

// WithLogger sets the logger of all nodes; each adds its "node".
func WithLogger(l *slog.Logger) Option { return func(o *options) { o.logger = l } }

// WithObserver sets the observer of each node.
func WithObserver(f func(node int) flotilla.Observer) Option {
	return func(o *options) { o.observer = f }
}
