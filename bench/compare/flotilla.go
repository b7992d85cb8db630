package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"sync"
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
	// installed counts the snapshots that nodes took in.
	installed *atomic.Int64
	lost      uint32 // the node that was replaced
	// arrived has the shards whose snapshots came: a node without a replica asks others.
	arrived *sync.Map
	wanted  atomic.Pointer[[]uint64]
}

// openFlotilla starts three nodes with so much memory each; zero: the default.
func openFlotilla(ctx context.Context, s setup, memory int64) (engine, error) {
	log := slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: slog.LevelError}))
	installed, arrived := new(atomic.Int64), new(sync.Map)
	c, err := localcluster.Start(ctx, localcluster.Options{Nodes: 3, Dir: s.dir, SplitAt: workload.Splits(s.shards), MemoryPerNode: memory, Logger: log,
		Observer: flotilla.Observer{OnSnapshot: func(ev flotilla.SnapshotEvent) {
			if !ev.Sent && ev.Err == nil {
				installed.Add(1)
				arrived.Store(ev.Shard, true)
			}
		}}})
	if err != nil {
		return nil, err
	}
	return &flotillaEngine{c: c, t: embedded.NewLeaders(ctx, c.Nodes()), memory: memory, installed: installed, arrived: arrived}, nil
}

func (e *flotillaEngine) Target() bench.Target { return e.t }

func (e *flotillaEngine) Local(ctx context.Context, node int, key []byte) ([]byte, error) {
	if e.lost != 0 && node == stopped {
		ids := e.wanted.Load()
		if ids == nil {
			return nil, errStopped
		}
		for _, id := range *ids {
			if _, ok := e.arrived.Load(id); !ok {
				return nil, errStopped
			}
		}
	}
	v, err := e.c.Node(node).Get(ctx, key, flotilla.Local())
	if errors.Is(err, flotilla.ErrNotFound) {
		return nil, nil
	}
	return v.Bytes, err
}

func (e *flotillaEngine) Note() string {
	what := "defaults"
	if e.memory != 0 {
		what = fmt.Sprintf("%d MiB of memory per node", e.memory>>20)
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

// Wipe starts an empty node, of a new id, in the place of another one.
func (e *flotillaEngine) Wipe(ctx context.Context, node int) error {
	e.lost = e.c.Node(node).ID()
	e.t.Close()
	return e.c.Replace(ctx, node)
}

// Fill puts replicas on the new node in the place of those of the lost one.
func (e *flotillaEngine) Fill(ctx context.Context, node int) error {
	list, err := e.c.Node(0).Shards(ctx)
	if err != nil {
		return err
	}
	var ids []uint64
	for _, s := range list {
		if s.Keyspace != 0 { // the table of shards
			ids = append(ids, s.ID)
		}
	}
	e.arrived.Clear() // followers got some while the shards were loaded
	e.wanted.Store(&ids)
	for _, id := range ids {
		_, err := e.c.Node(0).ChangeReplicas(ctx, id, flotilla.ReplicaChange{Node: e.c.Node(node).ID(), Role: flotilla.RoleVoter},
			flotilla.ReplicaChange{Node: e.lost, Role: flotilla.RoleNone})
		if err != nil {
			return err
		}
	}
	return nil
}

func (e *flotillaEngine) Stop(node int) error                         { return e.c.Kill(node) }
func (e *flotillaEngine) Restart(ctx context.Context, node int) error { return e.c.Restart(ctx, node) }
