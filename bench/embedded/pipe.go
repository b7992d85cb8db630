package embedded

import (
	"context"
	"errors"
	"fmt"

	"github.com/flotillakv/flotilla"
	"github.com/flotillakv/flotilla/bench"
)

var (
	_ bench.Piper = Target{}
	_ bench.Piper = (*Leaders)(nil)
)

// Pipe implements bench.Piper.
func (t Target) Pipe(depth int) (bench.Pipe, error) {
	p, err := t.KV.NewPipeline(flotilla.PipelineOptions{Depth: depth})
	if err != nil {
		return nil, err
	}
	return pipe{p}, nil
}

// pipe is a flotilla.Pipeline.
type pipe struct{ p *flotilla.Pipeline }

func (p pipe) Read(ctx context.Context, key []byte, tag any) error { return p.p.Get(ctx, key, tag) }

func (p pipe) Write(ctx context.Context, key, value []byte, tag any) error {
	return p.p.Put(ctx, key, value, tag)
}

func (p pipe) Receive() (any, bool, error) { return received(<-p.p.Done()) }

func (p pipe) Close() error { return p.p.Close() }

func received(c *flotilla.Call) (tag any, found bool, err error) {
	if errors.Is(c.Err, flotilla.ErrNotFound) {
		return c.Tag, false, nil
	}
	return c.Tag, c.Err == nil, c.Err
}

// maxPipeNodes is how many nodes a pipe of Leaders can be of.
const maxPipeNodes = 3

// Pipe implements bench.Piper with one pipeline per node.
func (t *Leaders) Pipe(depth int) (bench.Pipe, error) {
	if len(t.nodes) > maxPipeNodes {
		return nil, fmt.Errorf("embedded: a pipe of %d nodes: at most %d", len(t.nodes), maxPipeNodes)
	}
	p := &leadersPipe{t: t}
	for i, n := range t.nodes {
		var err error
		if p.of[i], err = n.NewPipeline(flotilla.PipelineOptions{Depth: depth}); err != nil {
			return nil, errors.Join(err, p.Close())
		}
		p.done[i] = p.of[i].Done()
	}
	return p, nil
}

// leadersPipe starts each operation at the node that leads the key's shard.
type leadersPipe struct {
	t    *Leaders
	of   [maxPipeNodes]*flotilla.Pipeline
	done [maxPipeNodes]<-chan *flotilla.Call
}

func (p *leadersPipe) Read(ctx context.Context, key []byte, tag any) error {
	return p.of[p.t.index(key)].Get(ctx, key, tag)
}

func (p *leadersPipe) Write(ctx context.Context, key, value []byte, tag any) error {
	return p.of[p.t.index(key)].Put(ctx, key, value, tag)
}

func (p *leadersPipe) Receive() (any, bool, error) {
	select {
	case c := <-p.done[0]:
		return received(c)
	case c := <-p.done[1]:
		return received(c)
	case c := <-p.done[2]:
		return received(c)
	}
}

func (p *leadersPipe) Close() error {
	for _, one := range p.of {
		if one != nil {
			one.Close()
		}
	}
	return nil
}
