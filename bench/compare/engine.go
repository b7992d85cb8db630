package main

import (
	"context"
	"fmt"
	"sort"
	"strings"

	"github.com/flotillakv/flotilla/bench"
)

// engine is a store of three replicas in this process.
type engine interface {
	// Target is where the clients send their operations.
	Target() bench.Target
	// Local reads what the replica of one node (0 to 2) holds, which may lag.
	Local(ctx context.Context, node int, key []byte) ([]byte, error)
	// Note says what a reader of the figures has to know.
	Note() string
	Close()
}

// setup is what an engine is started with.
type setup struct {
	dir    string
	shards int
	// snapshotEntries is after how many entries of a shard those engines that have such
	// a setting take a snapshot. Zero: never.
	snapshotEntries uint64
	// quiesce lets shards that nobody uses stop their ticks and heartbeats.
	quiesce bool
}

type opener func(ctx context.Context, s setup) (engine, error)

var engines = map[string]opener{
	"flotilla":         func(ctx context.Context, s setup) (engine, error) { return openFlotilla(ctx, s, 0) },
	"flotilla-small":   func(ctx context.Context, s setup) (engine, error) { return openFlotilla(ctx, s, 64<<20) },
	"dragonboat-disk":  func(ctx context.Context, s setup) (engine, error) { return openDragonboat(ctx, s, onDisk) },
	"dragonboat-mem":   func(ctx context.Context, s setup) (engine, error) { return openDragonboat(ctx, s, inMemory) },
	"dragonboat-tan":   func(ctx context.Context, s setup) (engine, error) { return openDragonboat(ctx, s, onDiskTan) },
	"dragonboat-small": func(ctx context.Context, s setup) (engine, error) { return openDragonboat(ctx, s, onDiskSmall) },
	"etcd":             openEtcd,
}

func engineNames() string {
	var names []string
	for n := range engines {
		names = append(names, n)
	}
	sort.Strings(names)
	return strings.Join(names, ", ")
}

func findEngine(name string) (opener, error) {
	if o, ok := engines[name]; ok {
		return o, nil
	}
	return nil, fmt.Errorf("engine %q does not exist: choose of %s", name, engineNames())
}
