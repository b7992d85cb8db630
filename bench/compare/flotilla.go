package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"sync/atomic"

	"github.com/flotillakv/flotilla"
	"github.com/flotillakv/flotilla/bench"
	"github.com/flotillakv/flotilla/bench/embedded"
	"github.com/flotillakv/flotilla/bench/workload"
	"github.com/flotillakv/flotilla/internal/localcluster"
)

type flotillaEngine struct {
	c      *localcluster.Cluster
	t      *embedded.Leaders
	memory int64
	keep   int64
	// installed counts the snapshots that nodes took in.
	installed *atomic.Int64
}

// openFlotilla starts three nodes with so much memory each; zero: the default. With
// little memory a node that is away gets a snapshot as soon as that is smaller than what
// it missed of the log.
func openFlotilla(ctx context.Context, s setup, memory int64) (engine, error) {
	log := slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: slog.LevelError}))
	installed := new(atomic.Int64)
	keep := int64(0)
	if memory != 0 {
		keep = s.snapshotBytes
	}
	c, err := localcluster.Start(ctx, localcluster.Options{Nodes: 3, Dir: s.dir, SplitAt: workload.Splits(s.shards), MemoryPerNode: memory, LogKeep: keep, Logger: log,
		Observer: flotilla.Observer{OnSnapshot: func(ev flotilla.SnapshotEvent) {
			if !ev.Sent && ev.Err == nil {
				installed.Add(1)
			}
		}}})
	if err != nil {
		return nil, err
	}
	return &flotillaEngine{c, embedded.NewLeaders(ctx, c.Nodes()), memory, keep, installed}, nil
}

func (e *flotillaEngine) Target() bench.Target { return e.t }

func (e *flotillaEngine) Local(ctx context.Context, node int, key []byte) ([]byte, error) {
	v, err := e.c.Node(node).Get(ctx, key, flotilla.Local())
	if errors.Is(err, flotilla.ErrNotFound) {
		return nil, nil
	}
	return v.Bytes, err
}

func (e *flotillaEngine) Note() string {
	what := "defaults"
	if e.memory != 0 {
		what = fmt.Sprintf("%d MiB of memory per node, LogKeep %d KiB (the data of a shard)", e.memory>>20, e.keep>>10)
	}
	return fmt.Sprintf("%s; leaders per node %v; %d snapshots installed", what, e.t.PerNode(), e.installed.Load())
}

func (e *flotillaEngine) Close() {
	e.t.Close()
	e.c.Close()
}

func (e *flotillaEngine) Put(ctx context.Context, key, value []byte) error {
	_, err := e.c.Node(0).Put(ctx, key, value)
	return err
}

func (e *flotillaEngine) Get(ctx context.Context, key []byte) ([]byte, error) {
	v, err := e.c.Node(0).Get(ctx, key)
	return v.Bytes, err
}

func (e *flotillaEngine) Stop(node int) error                         { return e.c.Kill(node) }
func (e *flotillaEngine) Restart(ctx context.Context, node int) error { return e.c.Restart(ctx, node) }
