package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"

	"github.com/flotillakv/flotilla"
	"github.com/flotillakv/flotilla/bench"
	"github.com/flotillakv/flotilla/bench/embedded"
	"github.com/flotillakv/flotilla/bench/workload"
	"github.com/flotillakv/flotilla/internal/localcluster"
)

type flotillaEngine struct {
	c *localcluster.Cluster
	t *embedded.Leaders
}

func openFlotilla(ctx context.Context, s setup) (engine, error) {
	log := slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: slog.LevelError}))
	c, err := localcluster.Start(ctx, localcluster.Options{Nodes: 3, Dir: s.dir, SplitAt: workload.Splits(s.shards), Logger: log})
	if err != nil {
		return nil, err
	}
	return &flotillaEngine{c, embedded.NewLeaders(ctx, c.Nodes())}, nil
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
	return fmt.Sprintf("defaults; leaders per node %v", e.t.PerNode())
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
