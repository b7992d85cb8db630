package embedded

import (
	"bytes"
	"context"
	"errors"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/flotillakv/flotilla"
	"github.com/flotillakv/flotilla/router"
)

const (
	// loadPatience is how long a load repeats a write that the cluster cannot take.
	loadPatience = 30 * time.Second
	loadTry      = 10 * time.Second
	loadPause    = 50 * time.Millisecond
	// leadersEvery is how often Leaders looks up who leads what. With a thousand
	// shards, to do so each second costs one write in twenty.
	leadersEvery = 5 * time.Second
)

// Target lets bench drive a flotilla.KV.
type Target struct{ KV flotilla.KV }

// Read implements bench.Target.
func (t Target) Read(ctx context.Context, key []byte) ([]byte, bool, error) {
	it, err := t.KV.Get(ctx, key)
	if errors.Is(err, flotilla.ErrNotFound) {
		return nil, false, nil
	}
	return it.Bytes, err == nil, err
}

// Write implements bench.Target.
func (t Target) Write(ctx context.Context, key, value []byte) error {
	_, err := t.KV.Put(ctx, key, value)
	return err
}

// Scan implements bench.Target.
func (t Target) Scan(ctx context.Context, start []byte, n int) (int, error) {
	got := 0
	for _, err := range t.KV.Scan(ctx, flotilla.Range{Start: start, Limit: n}) {
		if err != nil {
			return got, err
		}
		got++
	}
	return got, nil
}

// Load implements bench.Target. A batch that is refused or whose outcome is not
// known is sent again.
func (t Target) Load(ctx context.Context, keys, values [][]byte) error {
	for since := time.Now(); ; {
		err := t.load(ctx, keys, values)
		if err == nil || ctx.Err() != nil || time.Since(since) > loadPatience {
			return err
		}
		select {
		case <-time.After(loadPause):
		case <-ctx.Done():
			return err
		}
	}
}

func (t Target) load(ctx context.Context, keys, values [][]byte) error {
	ctx, cancel := context.WithTimeout(ctx, loadTry)
	defer cancel()
	if len(keys) == 1 {
		return t.Write(ctx, keys[0], values[0])
	}
	var b flotilla.Batch
	for i := range keys {
		b.Put(keys[i], values[i])
	}
	_, err := t.KV.Write(ctx, &b, flotilla.NonAtomic())
	return err
}

// Leaders makes each call at the node of this process that leads the key's
// shard; the node passes a request on when leadership has moved meanwhile.
type Leaders struct {
	nodes []*flotilla.Node
	table atomic.Pointer[leaderTable]
	stop  context.CancelFunc
	wg    sync.WaitGroup

	mu    sync.Mutex
	terms map[uint64]uint64 // the highest seen, by shard
}

// leaderTable lists the shards by range: the first key of each and the index
// of the node that leads it.
type leaderTable struct {
	starts [][]byte
	node   []int
	index  router.KeyIndex // of starts
}

func (t *leaderTable) start(i int) []byte { return t.starts[i] }

// NewLeaders returns a target over the nodes of one cluster.
func NewLeaders(ctx context.Context, nodes []*flotilla.Node) *Leaders {
	ctx, stop := context.WithCancel(ctx)
	t := &Leaders{nodes: nodes, stop: stop, terms: make(map[uint64]uint64)}
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

// Close ends the target; the nodes stay open.
func (t *Leaders) Close() {
	t.stop()
	t.wg.Wait()
}

// refresh keeps the old table when the catalog does not answer.
func (t *Leaders) refresh(ctx context.Context) {
	all, err := t.nodes[0].Shards(ctx)
	if err != nil {
		return
	}
	slices.SortFunc(all, func(x, y flotilla.ShardInfo) int { return bytes.Compare(x.Start, y.Start) })
	table := new(leaderTable)
	for i := range all {
		if all[i].Keyspace == 0 { // the catalog's own
			continue
		}
		at := slices.IndexFunc(t.nodes, func(n *flotilla.Node) bool { return n.ID() == all[i].Leader })
		table.starts = append(table.starts, all[i].Start)
		table.node = append(table.node, max(at, 0))
	}
	table.index = router.IndexKeys(len(table.starts), table.start)
	t.table.Store(table)
}

// PerNode returns how many shards each node leads, in the order of the nodes.
func (t *Leaders) PerNode() []int {
	n := make([]int, len(t.nodes))
	if table := t.table.Load(); table != nil {
		for _, at := range table.node {
			n[at]++
		}
	}
	return n
}

func (t *Leaders) at(key []byte) Target { return Target{t.nodes[t.index(key)]} }

// index returns which node leads the key's shard.
func (t *Leaders) index(key []byte) int {
	table := t.table.Load()
	if table == nil || len(table.starts) == 0 {
		return 0
	}
	return table.node[max(table.index.Floor(key, table.start), 0)]
}

// Read implements bench.Target.
func (t *Leaders) Read(ctx context.Context, key []byte) ([]byte, bool, error) {
	return t.at(key).Read(ctx, key)
}

// Write implements bench.Target.
func (t *Leaders) Write(ctx context.Context, key, value []byte) error {
	return t.at(key).Write(ctx, key, value)
}

// Scan implements bench.Target.
func (t *Leaders) Scan(ctx context.Context, start []byte, n int) (int, error) {
	return t.at(start).Scan(ctx, start, n)
}

// Load implements bench.Target.
func (t *Leaders) Load(ctx context.Context, keys, values [][]byte) error {
	return t.at(keys[0]).Load(ctx, keys, values)
}
