package main

import (
	"bytes"
	"context"
	"errors"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/flotillakv/flotilla"
)

// kvTarget lets bench drive a flotilla.KV.
type kvTarget struct{ kv flotilla.KV }

func (t kvTarget) Read(ctx context.Context, key []byte) (bool, error) {
	_, err := t.kv.Get(ctx, key)
	if errors.Is(err, flotilla.ErrNotFound) {
		return false, nil
	}
	return err == nil, err
}

func (t kvTarget) Write(ctx context.Context, key, value []byte) error {
	_, err := t.kv.Put(ctx, key, value)
	return err
}

func (t kvTarget) Scan(ctx context.Context, start []byte, n int) (int, error) {
	got := 0
	for _, err := range t.kv.Scan(ctx, flotilla.Range{Start: start, Limit: n}) {
		if err != nil {
			return got, err
		}
		got++
	}
	return got, nil
}

// loadPatience is how long a load repeats a write that the cluster cannot take.
const loadPatience = 30 * time.Second

func (t kvTarget) Load(ctx context.Context, keys, values [][]byte) error {
	return retry(ctx, 10*time.Second, loadPatience, func(ctx context.Context) error {
		if len(keys) == 1 {
			return t.Write(ctx, keys[0], values[0])
		}
		var b flotilla.Batch
		for i := range keys {
			b.Put(keys[i], values[i])
		}
		_, err := t.kv.Write(ctx, &b, flotilla.NonAtomic())
		return err
	})
}

// leadersEvery is how often leaderTarget looks up who leads what.
const leadersEvery = time.Second

// leaderTarget makes each call at the node of this process that leads the key's
// shard, as an embedding program with a node per machine would arrange it; the
// node passes a request on when leadership has moved meanwhile. It owns one
// goroutine, from newLeaderTarget to close.
type leaderTarget struct {
	nodes []*flotilla.Node
	table atomic.Pointer[leaderTable]
	stop  context.CancelFunc
	wg    sync.WaitGroup
}

// leaderTable lists the shards by range: the first key of each and the index
// of the node that leads it.
type leaderTable struct {
	starts [][]byte
	node   []int
}

func newLeaderTarget(ctx context.Context, nodes []*flotilla.Node) *leaderTarget {
	ctx, stop := context.WithCancel(ctx)
	t := &leaderTarget{nodes: nodes, stop: stop}
	t.refresh(ctx)
	t.wg.Go(func() {
		tick := time.NewTicker(leadersEvery)
		defer tick.Stop()
		for {
			select {
			case <-tick.C:
				t.refresh(ctx)
			case <-ctx.Done():
				return
			}
		}
	})
	return t
}

func (t *leaderTarget) close() {
	t.stop()
	t.wg.Wait()
}

// refresh keeps the old table when the catalog does not answer.
func (t *leaderTarget) refresh(ctx context.Context) {
	all, err := t.nodes[0].Shards(ctx)
	if err != nil {
		return
	}
	slices.SortFunc(all, func(x, y flotilla.ShardInfo) int { return bytes.Compare(x.Start, y.Start) })
	table := new(leaderTable)
	for i := range all {
		if !userShard(&all[i]) {
			continue
		}
		at := slices.IndexFunc(t.nodes, func(n *flotilla.Node) bool { return n.ID() == all[i].Leader })
		table.starts = append(table.starts, all[i].Start)
		table.node = append(table.node, max(at, 0))
	}
	t.table.Store(table)
}

func (t *leaderTarget) at(key []byte) kvTarget {
	table := t.table.Load()
	if table == nil || len(table.starts) == 0 {
		return kvTarget{t.nodes[0]}
	}
	i, found := slices.BinarySearchFunc(table.starts, key, bytes.Compare)
	if !found {
		i--
	}
	return kvTarget{t.nodes[table.node[max(i, 0)]]}
}

func (t *leaderTarget) Read(ctx context.Context, key []byte) (bool, error) {
	return t.at(key).Read(ctx, key)
}

func (t *leaderTarget) Write(ctx context.Context, key, value []byte) error {
	return t.at(key).Write(ctx, key, value)
}

func (t *leaderTarget) Scan(ctx context.Context, start []byte, n int) (int, error) {
	return t.at(start).Scan(ctx, start, n)
}

func (t *leaderTarget) Load(ctx context.Context, keys, values [][]byte) error {
	return t.at(keys[0]).Load(ctx, keys, values)
}

// errorKind names an error for the counts of a bench.
func errorKind(err error) string {
	var noQuorum *flotilla.NoQuorumError
	var overloaded *flotilla.OverloadedError
	switch {
	case errors.As(err, &noQuorum):
		return "no_quorum"
	case errors.As(err, &overloaded), errors.Is(err, flotilla.ErrLogBudget):
		return "overloaded"
	case errors.Is(err, flotilla.ErrAmbiguous):
		return "outcome_unknown"
	case errors.Is(err, context.DeadlineExceeded):
		return "timeout"
	}
	if code, _, _ := describe(err); code == exitUnreachable {
		return "unreachable"
	}
	return "other"
}
