package logbound

import (
	"context"
	"fmt"
	"path/filepath"
	"sync"

	"github.com/flotillakv/flotilla"
	"github.com/flotillakv/flotilla/bench/workload"
	"github.com/flotillakv/flotilla/internal/localcluster"
)

// local is a cluster in this process. A killed node is halted first: nothing that it
// had not made durable is acknowledged any more.
type local struct {
	dir     string
	cluster *localcluster.Cluster
	client  *flotilla.Client
	// counting is held shared while logs are read: a node is not closed meanwhile.
	counting [Nodes]sync.RWMutex
}

// StartLocal starts a cluster in this process, below dir.
func StartLocal(ctx context.Context, dir string, c *Config, timing flotilla.Timing) (Cluster, error) {
	lc, err := localcluster.Start(ctx, localcluster.Options{
		Nodes: Nodes, Dir: dir, SplitAt: workload.Splits(c.Shards), Timing: timing, Limits: c.Limits, Compaction: c.Compaction,
	})
	if err != nil {
		return nil, err
	}
	client, err := flotilla.Dial(ctx, lc.ClientAddrs(), flotilla.ClientOptions{})
	if err != nil {
		lc.Close()
		return nil, err
	}
	return &local{dir: dir, cluster: lc, client: client}, nil
}

func (l *local) Dir(i int) string { return filepath.Join(l.dir, fmt.Sprintf("n%d", i+1)) }
func (l *local) KV() flotilla.KV  { return l.client }

func (l *local) Count(_ context.Context, i int) (c Counted, err error) {
	l.counting[i].RLock()
	defer l.counting[i].RUnlock()
	n := l.cluster.Node(i)
	if n == nil {
		return c, ErrDown
	}
	c.Work = WorkOf(n)
	c.Logs, c.WAL, err = n.CountLog()
	return c, err
}

func (l *local) Kill(i int) error {
	l.counting[i].Lock()
	defer l.counting[i].Unlock()
	if n := l.cluster.Node(i); n != nil {
		n.Halt()
	}
	return l.cluster.Kill(i)
}

func (l *local) Restart(ctx context.Context, i int) error { return l.cluster.Restart(ctx, i) }

func (l *local) Allowance(largestShard int64) ([]flotilla.DiskTerm, error) {
	return l.cluster.Nodes()[0].DiskAllowance(largestShard), nil
}

func (l *local) Close() error {
	_ = l.client.Close()
	return l.cluster.Close()
}
