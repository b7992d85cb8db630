package flotilla

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/flotillakv/flotilla/engine"
	"github.com/flotillakv/flotilla/multiraft"
	"github.com/flotillakv/flotilla/multiraft/liveness"
	"github.com/flotillakv/flotilla/router"
	"github.com/flotillakv/flotilla/shard/kv"
	"github.com/flotillakv/flotilla/snapshot"
	"github.com/flotillakv/flotilla/transport"
)

// Metrics is a reading of a node's counters. Its String is meant for people.
type Metrics struct {
	Host   multiraft.Stats
	Engine engine.Metrics
	Live   liveness.Stats
	Router router.Stats
	Peers  []transport.PeerStats
	// Sessions counts commands of sessions that were answered here.
	Sessions kv.Stats
	// Leaders and Replicas count the shards led and replicated here.
	Leaders, Replicas int
	// Ready counts the Leaders that serve: an entry of their own term is committed.
	Ready int
	// Asleep counts the replicas that had nothing to do for some time.
	Asleep int
	// NoQuorum counts the replicas here that cannot reach a majority.
	NoQuorum int
	// Log is what the Raft logs take, and may.
	Log multiraft.LogStatus
	// Disk is how the disk is.
	Disk DiskStats
	// Snapshots counts what snapshots moved; SnapshotsUnderway how many are moving, or
	// wait to be sent, now, and SnapshotBytesLeft about how many bytes of those are to come.
	Snapshots         snapshot.Counters
	SnapshotsUnderway int
	SnapshotBytesLeft int64
	// Memory says who holds the node's memory.
	Memory MemoryInfo
	// Scrubbed counts the bytes of tables that were read to look for damage.
	Scrubbed int64
	// EventsDropped counts events the observer was too slow for.
	EventsDropped uint64
}

// Metrics reads the node's counters.
func (n *Node) Metrics() Metrics {
	m := Metrics{
		Host: n.host.Stats(), Engine: n.eng.Metrics(), Live: n.live.Stats(), Router: n.router.Stats(),
		Peers: n.net.get().Stats(), Sessions: n.store.Stats(), Log: n.host.LogStatus(), Disk: n.diskStats(), Memory: n.Memory(), Scrubbed: n.scrubbed.Load(), EventsDropped: n.events.dropped.Load(),
	}
	m.Snapshots = n.snaps.Counters()
	for _, t := range slices.Concat(n.sending.Transfers(), n.snaps.Transfers()) {
		if t.State != snapshot.TransferInterrupted {
			m.SnapshotsUnderway++
			m.SnapshotBytesLeft += t.Bytes - t.Done
		}
	}
	c := n.host.Census()
	m.Replicas, m.Asleep, m.Leaders, m.Ready, m.NoQuorum = c.Replicas, c.Asleep, c.Leaders, c.Ready, c.NoQuorum
	return m
}

// String renders the readings in a few lines.
func (m Metrics) String() string {
	var b strings.Builder
	perSync := 0.0
	if m.Host.Syncs > 0 {
		perSync = float64(m.Host.Entries) / float64(m.Host.Syncs)
	}
	fmt.Fprintf(&b, "shards  %d replicas, %d led, %d without quorum\n", m.Replicas, m.Leaders, m.NoQuorum)
	fmt.Fprintf(&b, "writes  %d commands in %d entries, %d rounds, %d syncs (%.1f own entries per sync)\n", m.Host.Commands, m.Host.Entries, m.Host.Rounds, m.Host.Syncs, perSync)
	fmt.Fprintf(&b, "disk    %d MiB, fsync p50 %s p99 %s, %d write stalls\n", m.Engine.DiskBytes>>20, m.Engine.FsyncP50.Round(10*time.Microsecond), m.Engine.FsyncP99.Round(10*time.Microsecond), m.Engine.Stalls)
	for _, p := range m.Peers {
		fmt.Fprintf(&b, "peer %d  up %t, sent %d frames %d messages, received %d frames\n", p.Node, p.Up, p.FramesSent, p.MsgsSent, p.FramesReceived)
	}
	return b.String()
}

// collector hands Metrics to Prometheus: one reading per scrape.
type collector struct {
	n      *Node
	gauges []metric
	// Of each consumer of memory.
	held, budget *prometheus.Desc
}

type metric struct {
	desc  *prometheus.Desc
	kind  prometheus.ValueType
	value func(m *Metrics) float64
}

func newCollector(n *Node) *collector {
	c := &collector{n: n}
	label := prometheus.Labels{"store": fmt.Sprint(n.ID())}
	add := func(kind prometheus.ValueType, name, help string, f func(m *Metrics) float64) {
		c.gauges = append(c.gauges, metric{prometheus.NewDesc("flotilla_"+name, help, nil, label), kind, f})
	}
	g, k := prometheus.GaugeValue, prometheus.CounterValue
	add(g, "shard_leaders", "Shards led by this node.", func(m *Metrics) float64 { return float64(m.Leaders) })
	add(g, "shard_replicas", "Replicas on this node.", func(m *Metrics) float64 { return float64(m.Replicas) })
	add(g, "shard_asleep", "Replicas that had nothing to do for some time, and cost next to nothing.", func(m *Metrics) float64 { return float64(m.Asleep) })
	add(g, "shard_without_quorum", "Replicas that cannot reach a majority.", func(m *Metrics) float64 { return float64(m.NoQuorum) })
	add(k, "raft_commands_total", "Commands proposed on this node.", func(m *Metrics) float64 { return float64(m.Host.Commands) })
	add(k, "raft_entries_total", "Entries proposed on this node.", func(m *Metrics) float64 { return float64(m.Host.Entries) })
	add(k, "raft_applied_entries_total", "Entries applied on this node.", func(m *Metrics) float64 { return float64(m.Host.Applied) })
	add(k, "raft_rounds_total", "Rounds of the loops.", func(m *Metrics) float64 { return float64(m.Host.Rounds) })
	add(k, "raft_anomalies_total", "Messages that no correct node sends; they were dropped.", func(m *Metrics) float64 { return float64(m.Host.Anomalies) })
	add(k, "raft_unknown_shard_total", "Messages for shards without a replica here.", func(m *Metrics) float64 { return float64(m.Host.UnknownShard) })
	add(g, "raft_pending_bytes", "Bytes of proposals whose outcome is open.", func(m *Metrics) float64 { return float64(m.Host.PendingBytes) })
	add(k, "raft_refused_total", "Proposals refused because of overload.", func(m *Metrics) float64 { return float64(m.Host.Refused) })
	add(g, "raft_log_bytes", "Bytes of the Raft logs on the disk, the write-ahead log included.", func(m *Metrics) float64 { return float64(m.Log.Bytes) })
	add(g, "raft_log_limit_bytes", "What raft_log_bytes may reach.", func(m *Metrics) float64 { return float64(m.Log.Limit) })
	add(g, "raft_log_zone", "How near their limit the logs are: 0 far, 1 soft, 2 firm, 3 hard (writes are refused).", func(m *Metrics) float64 { return float64(m.Log.Zone) })
	add(g, "raft_log_pressed_shards", "Shards told to cut their logs harder.", func(m *Metrics) float64 { return float64(m.Log.Pressed) })
	add(k, "raft_log_turned_total", "Messages of leaders whose entries found no room in the logs.", func(m *Metrics) float64 { return float64(m.Log.Turned) })
	add(k, "raft_amnesiac_replicas_total", "Replicas of other nodes that had forgotten what they promised.", func(m *Metrics) float64 { return float64(m.Host.Amnesiacs) })
	add(k, "raft_digest_comparisons_total", "Times that the replicas of a shard led here were compared.", func(m *Metrics) float64 { return float64(m.Host.Compared) })
	add(k, "raft_diverged_replicas_total", "Replicas found to differ from the others of their shard, or not to be readable, here or by leaders here.", func(m *Metrics) float64 { return float64(m.Host.Diverged) })
	add(k, "raft_rebuilt_replicas_total", "Replicas of this node that were rebuilt from another one.", func(m *Metrics) float64 { return float64(m.Host.Rebuilt) })
	add(k, "engine_scrubbed_bytes_total", "Bytes of tables that were read to look for damage.", func(m *Metrics) float64 { return float64(m.Scrubbed) })
	add(k, "session_replays_total", "Tries of session commands that had taken effect before.", func(m *Metrics) float64 { return float64(m.Sessions.Replayed) })
	add(k, "session_joins_total", "Tries of session commands that met an earlier one under way.", func(m *Metrics) float64 { return float64(m.Host.JoinedTries) })
	add(k, "session_expired_total", "Session commands that came after their deadline.", func(m *Metrics) float64 { return float64(m.Sessions.Expired) })
	add(k, "session_refused_total", "Commands of new sessions for which a shard had no room.", func(m *Metrics) float64 { return float64(m.Sessions.Refused) })
	add(k, "engine_syncs_total", "Synced batches.", func(m *Metrics) float64 { return float64(m.Engine.Syncs) })
	add(k, "engine_write_stalls_total", "How often writes waited for flushes or compactions.", func(m *Metrics) float64 { return float64(m.Engine.Stalls) })
	add(g, "engine_fsync_p99_seconds", "99th percentile from commit to durable.", func(m *Metrics) float64 { return m.Engine.FsyncP99.Seconds() })
	add(g, "engine_disk_bytes", "Bytes of all files of the store.", func(m *Metrics) float64 { return float64(m.Engine.DiskBytes) })
	add(g, "engine_deferred_bytes", "Bytes that were applied in memory and are not in tables yet.", func(m *Metrics) float64 { return float64(m.Engine.DeferredBytes) })
	add(g, "engine_redo_bytes", "Bytes of write-ahead log since the last flush of what was applied in memory.", func(m *Metrics) float64 { return float64(m.Engine.RedoBytes) })
	add(g, "engine_wal_bytes", "Bytes of write-ahead logs in use.", func(m *Metrics) float64 { return float64(m.Engine.WALBytes) })
	add(g, "snapshot_underway", "Snapshots that are sent, received or installed, or wait to be sent.", func(m *Metrics) float64 { return float64(m.SnapshotsUnderway) })
	add(g, "snapshot_left_bytes", "About how many bytes of the snapshots under way are to come.", func(m *Metrics) float64 { return float64(m.SnapshotBytesLeft) })
	add(k, "snapshot_sent_bytes_total", "Bytes of snapshots that were sent.", func(m *Metrics) float64 { return float64(m.Snapshots.SentBytes) })
	add(k, "snapshot_received_bytes_total", "Bytes of snapshots that were received.", func(m *Metrics) float64 { return float64(m.Snapshots.ReceivedBytes) })
	add(k, "snapshot_spared_bytes_total", "Bytes of snapshots to this node that did not have to be sent, because they had come before.", func(m *Metrics) float64 { return float64(m.Snapshots.ReceivedSpared) })
	add(k, "snapshot_failed_total", "Transfers of snapshots, either way, that did not get through.", func(m *Metrics) float64 { return float64(m.Snapshots.Failed) })
	add(k, "snapshot_images_sent_total", "Snapshots that were sent from images that were there, in the log or kept beside it.", func(m *Metrics) float64 { return float64(m.Host.Images) })
	add(k, "snapshot_images_kept_total", "Images of shards that leaders made to be kept beside the log.", func(m *Metrics) float64 { return float64(m.Snapshots.Kept) })
	add(k, "snapshot_images_kept_bytes_total", "Bytes of these.", func(m *Metrics) float64 { return float64(m.Snapshots.KeptBytes) })
	add(g, "snapshot_images_bytes", "What kept images of shards take on the disk, with those that are being made.", func(m *Metrics) float64 { return float64(m.Snapshots.KeptNow) })
	add(k, "snapshot_paced_seconds_total", "Time that transfers of snapshots left to others.", func(m *Metrics) float64 { return float64(m.Snapshots.PacedNanos) / 1e9 })
	add(k, "liveness_withdrawn_total", "Promises of support to other nodes that ended.", func(m *Metrics) float64 { return float64(m.Live.Withdrawn) })
	add(k, "liveness_lost_total", "Promises of support by other nodes that ended.", func(m *Metrics) float64 { return float64(m.Live.Lost) })
	add(k, "liveness_late_beats_total", "Heartbeats put off by a slow disk or loop.", func(m *Metrics) float64 { return float64(m.Live.LateBeats) })
	add(k, "router_requests_total", "Requests routed by this node.", func(m *Metrics) float64 { return float64(m.Router.Requests) })
	add(k, "router_redirects_total", "Replies that corrected the routing table.", func(m *Metrics) float64 { return float64(m.Router.Redirects) })
	add(k, "transport_bytes_sent_total", "Bytes of frames sent to peers.", func(m *Metrics) float64 {
		sum := uint64(0)
		for _, p := range m.Peers {
			sum += p.BytesSent
		}
		return float64(sum)
	})
	add(k, "transport_frames_refused_total", "Frames of peers that were refused.", func(m *Metrics) float64 {
		sum := uint64(0)
		for _, p := range m.Peers {
			sum += p.Refused
		}
		return float64(sum)
	})
	add(g, "transport_peers_up", "Peers whose stream is open.", func(m *Metrics) float64 {
		up := 0
		for _, p := range m.Peers {
			if p.Up {
				up++
			}
		}
		return float64(up)
	})
	add(g, "disk_state", "Space on the disk: 0 ok, 1 warning, 2 full (no growth), 3 critical.", func(m *Metrics) float64 { return float64(m.Disk.Space.State) })
	add(g, "disk_used_bytes", "Bytes that the store's directory takes, ballast included.", func(m *Metrics) float64 { return float64(m.Disk.Space.Used) })
	add(g, "disk_limit_bytes", "Bytes that the store's directory may take; 0: no limit.", func(m *Metrics) float64 { return float64(m.Disk.Space.Limit) })
	add(g, "disk_room_bytes", "Bytes that the store may still take.", func(m *Metrics) float64 { return float64(m.Disk.Space.Room()) })
	add(g, "disk_ballast_bytes", "Bytes that are kept for when the disk is full.", func(m *Metrics) float64 { return float64(m.Disk.Space.Ballast) })
	add(k, "disk_refused_writes_total", "Writes refused because disks are full.", func(m *Metrics) float64 { return float64(m.Disk.Refused) })
	add(k, "disk_shed_leaders_total", "Leaderships handed over because the disk was full.", func(m *Metrics) float64 { return float64(m.Disk.Shed) })
	add(g, "disk_stalled", "1 while the disk takes no writes.", func(m *Metrics) float64 {
		if m.Disk.Stalled {
			return 1
		}
		return 0
	})
	add(k, "disk_stalls_total", "How often the disk took no writes for so long that leaderships were given up.", func(m *Metrics) float64 { return float64(m.Disk.Stalls) })
	add(k, "disk_slow_operations_total", "Disk operations that took longer than 5 s.", func(m *Metrics) float64 { return float64(m.Engine.SlowWrites) })
	add(g, "memory_limit_bytes", "Limits.Memory.", func(m *Metrics) float64 { return float64(m.Memory.Limit) })
	add(g, "memory_resident_bytes", "What the whole process has in memory.", func(m *Metrics) float64 { return float64(m.Memory.Resident) })
	add(g, "memory_go_limit_bytes", "Soft limit of Go's runtime; 0: the process is not the node's alone.", func(m *Metrics) float64 { return float64(m.Memory.GoLimit) })
	add(g, "memory_cache_reserved_bytes", "What was taken from the block cache for others.", func(m *Metrics) float64 { return float64(m.Memory.CacheReserved) })
	add(g, "memory_braked", "1 while writes are refused because the memory is used up.", func(m *Metrics) float64 {
		if m.Memory.Braked {
			return 1
		}
		return 0
	})
	add(k, "memory_brakes_total", "How often writes began to be refused because the memory was used up.", func(m *Metrics) float64 { return float64(m.Memory.Brakes) })
	c.held = prometheus.NewDesc("flotilla_memory_held_bytes", "What a consumer of memory holds.", []string{"consumer"}, label)
	c.budget = prometheus.NewDesc("flotilla_memory_budget_bytes", "What a consumer of memory may hold; 0: it follows from others.", []string{"consumer"}, label)
	add(k, "events_dropped_total", "Events the observer was too slow for.", func(m *Metrics) float64 { return float64(m.EventsDropped) })
	return c
}

// Describe implements prometheus.Collector.
func (c *collector) Describe(ch chan<- *prometheus.Desc) {
	for _, g := range c.gauges {
		ch <- g.desc
	}
	ch <- c.held
	ch <- c.budget
}

// Collect implements prometheus.Collector.
func (c *collector) Collect(ch chan<- prometheus.Metric) {
	m := c.n.Metrics()
	for _, g := range c.gauges {
		ch <- prometheus.MustNewConstMetric(g.desc, g.kind, g.value(&m))
	}
	for _, u := range m.Memory.Uses {
		ch <- prometheus.MustNewConstMetric(c.held, prometheus.GaugeValue, float64(u.Held), u.Name)
		ch <- prometheus.MustNewConstMetric(c.budget, prometheus.GaugeValue, float64(u.Budget), u.Name)
	}
}

// register hands the node's metrics to the registry of its options, if there is one.
func (n *Node) register() error {
	if n.o.Registerer == nil {
		return nil
	}
	c := newCollector(n)
	if err := n.o.Registerer.Register(c); err != nil {
		var dup prometheus.AlreadyRegisteredError
		if errors.As(err, &dup) {
			return &OptionError{Field: "Registerer", Value: fmt.Sprintf("%T", n.o.Registerer), Reason: fmt.Sprintf("it holds the metrics of another node %d already; give each its own registry", n.ID())}
		}
		return wrapOpen("register metrics", err)
	}
	n.collector = c
	return nil
}

func (n *Node) unregister() {
	if n.collector != nil {
		n.o.Registerer.Unregister(n.collector)
	}
}
