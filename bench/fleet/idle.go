package fleet

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"
	"time"

	"github.com/flotillakv/flotilla/bench"
	"github.com/flotillakv/flotilla/internal/localcluster"
)

// IdleRow is what a cluster of idle shards takes. Figures per replica are of the
// process as a whole, divided, with what a cluster of one shard takes left out (see
// Subtract).
type IdleRow struct {
	Shards int `json:"shards"`
	// CreateSeconds: from nothing until all nodes serve, and a sample of shards all over
	// the keyspace has accepted a write. Shards may elect a leader only then.
	CreateSeconds float64 `json:"create_s"`
	// Used shards hold something, the others nothing. UsedSeconds: until those beyond the
	// sample had accepted a write.
	Used        int     `json:"used"`
	UsedSeconds float64 `json:"used_s,omitempty"`
	// SettleSeconds: until the cluster came to rest after that, at most Config.Settle.
	SettleSeconds float64 `json:"settle_s"`
	Memory
	HeapPerReplica float64 `json:"heap_per_replica"`
	RSSPerReplica  float64 `json:"rss_per_replica"`
	// At rest: of the whole process, in percent of one core; bytes per second that the
	// nodes sent each other, and that the machine sent over loopback; synced batches.
	CPUPercent    float64 `json:"cpu_percent"`
	PeerBytes     float64 `json:"peer_bytes_per_s"`
	LoopbackBytes float64 `json:"loopback_bytes_per_s"`
	FsyncsPerS    float64 `json:"fsyncs_per_s"`
	RoundsPerS    float64 `json:"rounds_per_s"`
	// The blocks of all files of the three nodes: DiskTables of tables, DiskLogs of
	// write-ahead logs, also those that are kept to be written over, the rest of lists and
	// records of the node. Logs do not grow with the replicas.
	DiskPerReplica   float64 `json:"disk_per_replica"`
	TablesPerReplica float64 `json:"tables_per_replica"`
	DiskBytes        int64   `json:"disk_bytes"`
	DiskTables       int64   `json:"disk_table_bytes"`
	DiskLogs         int64   `json:"disk_log_bytes"`
	// CloseSeconds: all nodes, one after the other. RestartSeconds: all at the same
	// time, until the first key that is asked for is read back.
	CloseSeconds   float64 `json:"close_s"`
	RestartSeconds float64 `json:"restart_s"`
	// Failed says why the row is not complete.
	Failed string `json:"failed,omitempty"`
}

// Subtract fills in the figures per replica, given the row of a cluster of one shard.
func (r *IdleRow) Subtract(one IdleRow) {
	if n := float64(Nodes * (r.Shards - one.Shards)); n > 0 && r.Heap > 0 {
		r.HeapPerReplica = float64(r.Heap-one.Heap) / n
		r.RSSPerReplica = float64(r.RSS-one.RSS) / n
		r.DiskPerReplica = float64(r.DiskBytes-one.DiskBytes) / n
		r.TablesPerReplica = float64(r.DiskTables-one.DiskTables) / n
	}
}

// Idle measures a cluster of idle shards. On an error the row holds what was
// measured before.
func Idle(ctx context.Context, c Config) (row IdleRow, err error) {
	row.Shards = c.Shards
	c.step("creating %d shards", c.Shards)
	began := time.Now()
	s, err := c.open(ctx, localcluster.Options{Shards: c.Shards})
	if err != nil {
		return row, err
	}
	defer func() { err = errors.Join(err, s.close()) }()
	keys := c.keys(sample)
	if err := s.guard(ctx, "waiting for leaders", func(ctx context.Context) error { _, _, err := s.put(ctx, keys, putDepth); return err }); err != nil {
		return row, err
	}
	row.CreateSeconds = time.Since(began).Seconds()
	c.step("created in %.2f s", row.CreateSeconds)
	if row.Used = len(keys); c.Used > len(keys) {
		keys = c.keys(c.Used)
		row.Used = len(keys)
		c.step("writing to %d shards", len(keys))
		began = time.Now()
		if err := s.guard(ctx, "writing to the shards", func(ctx context.Context) error { _, _, err := s.put(ctx, keys, putDepth); return err }); err != nil {
			return row, err
		}
		row.UsedSeconds = time.Since(began).Seconds()
	}
	probe := bytes.Clone(keys[len(keys)/2])
	keys = nil // which would count as the cluster's memory
	c.step("coming to rest")
	began = time.Now()
	if err := s.guard(ctx, "coming to rest", s.settle); err != nil {
		return row, err
	}
	row.SettleSeconds = time.Since(began).Seconds()
	row.Memory = readMemory()

	c.step("at rest after %.1f s, %d MiB of heap, %d MiB resident; watching for %s", row.SettleSeconds, row.Heap>>20, row.RSS>>20, c.Window)
	before := s.look()
	if err := pause(ctx, c.Window); err != nil {
		return row, err
	}
	after := s.look()
	window := after.at.Sub(before.at).Seconds()
	row.CPUPercent = 100 * (after.cpu - before.cpu).Seconds() / window
	row.PeerBytes = float64(after.peers-before.peers) / window
	row.LoopbackBytes = float64(after.loopback-before.loopback) / window
	row.FsyncsPerS = float64(after.syncs-before.syncs) / window
	row.RoundsPerS = float64(after.rounds-before.rounds) / window
	if err := row.readDisk(s.o.Dir); err != nil {
		return row, fmt.Errorf("looking at the files: %w", err)
	}
	c.step("%.2f %% of a core, %.0f bytes/s between the nodes; restarting", row.CPUPercent, row.PeerBytes)
	began = time.Now()
	if err := s.fleet.Close(); err != nil {
		return row, fmt.Errorf("closing the cluster: %w", err)
	}
	s.fleet = nil
	row.CloseSeconds = time.Since(began).Seconds()
	began = time.Now()
	if err := s.start(ctx, "restarting"); err != nil {
		return row, err
	}
	v, err := s.fleet.Node(0).Get(ctx, probe)
	if err != nil || string(v.Bytes) != "fleet" {
		return row, fmt.Errorf("the first read after the restart gave %q, %w", v.Bytes, err)
	}
	row.RestartSeconds = time.Since(began).Seconds()
	c.step("first read %.2f s after the restart began", row.RestartSeconds)
	return row, nil
}

// sample is how many shards are asked in the place of all.
const sample = 256

// restShare is the share of a core below which a cluster is at rest, and the change
// from one second to the next, as a share of the larger, from which it will not become any quieter.
const restShare, restChange = 0.02, 0.05

// restAfter is how long the cluster is left alone at least: shards that nobody uses
// fall asleep a few seconds after their last message.
const restAfter = 8 * time.Second

// settle waits until no replica has anything to do any more, the stores are made small (engine.Rest)
// and the process takes next to no processor time, or always the same, but not longer than Config.Settle.
func (s *site) settle(ctx context.Context) error {
	began, last := time.Now(), -1.0
	for time.Since(began) < s.c.Settle {
		at, cpu := time.Now(), bench.CPUTime()
		if err := pause(ctx, min(time.Second, s.c.Settle)); err != nil {
			return err
		}
		share := float64(bench.CPUTime()-cpu) / float64(time.Since(at))
		if time.Since(began) > restAfter && s.awake() <= restAwake && s.resting() && (share < restShare || last >= 0 && max(share, last)-min(share, last) < restChange*max(share, last)) {
			return nil
		}
		last = share
	}
	return nil
}

// restAwake is how many replicas of a cluster at rest may be awake: those of the catalog.
const restAwake = Nodes

// awake counts the replicas that are not asleep.
func (s *site) awake() (n int) {
	for _, node := range s.fleet.Nodes() {
		m := node.Metrics()
		n += m.Replicas - m.Asleep
	}
	return n
}

// resting reports whether all stores are at rest.
func (s *site) resting() bool {
	for _, node := range s.fleet.Nodes() {
		if m := node.Metrics(); !m.Engine.Resting {
			return false
		}
	}
	return true
}

// readDisk counts the blocks of all files below dir. Files that go meanwhile do not count.
func (r *IdleRow) readDisk(dir string) error {
	r.DiskBytes, r.DiskTables, r.DiskLogs = 0, 0, 0
	return filepath.WalkDir(dir, func(path string, entry fs.DirEntry, err error) error {
		if err == nil {
			var info fs.FileInfo
			if info, err = entry.Info(); err == nil {
				n := bench.Blocks(info)
				r.DiskBytes += n
				switch filepath.Ext(path) {
				case ".sst":
					r.DiskTables += n
				case ".log":
					r.DiskLogs += n
				}
			}
		}
		if errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		return err
	})
}

// glance is a reading of what only grows.
type glance struct {
	at              time.Time
	cpu             time.Duration
	peers, loopback int64
	syncs, rounds   uint64
}

func (s *site) look() glance {
	var g glance
	for _, n := range s.fleet.Nodes() {
		m := n.Metrics()
		for _, p := range m.Peers {
			g.peers += int64(p.BytesSent)
		}
		g.syncs += m.Engine.Syncs
		g.rounds += m.Host.Rounds
	}
	g.loopback = bench.LoopbackBytes()
	g.cpu, g.at = bench.CPUTime(), time.Now()
	return g
}

func pause(ctx context.Context, d time.Duration) error {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-t.C:
		return nil
	}
}
