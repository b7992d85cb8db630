package flotilla

import (
	"cmp"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"strconv"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/flotillakv/flotilla/engine"
	"github.com/flotillakv/flotilla/multiraft"
	"github.com/flotillakv/flotilla/multiraft/raft"
	"github.com/flotillakv/flotilla/router/catalog"
	"github.com/flotillakv/flotilla/transport"
)

// ReleaseVersion is the release of this module.
const ReleaseVersion = "0.1.0"

// MaxShards bounds the shards a cluster can begin with.
const MaxShards = catalog.MaxLayoutShards

// Options say how to open a node. Only Dir is needed: that gives a durable store
// of one node, without any network.
type Options struct {
	// Dir is the node's data directory. It is created if it does not exist.
	Dir string
	// InMemory keeps everything in memory, for tests and examples. Dir is not used.
	InMemory bool

	// NodeID is the node's id within its cluster, 1 and up. Zero: taken from Dir,
	// else by the order of the addresses at bootstrap, else assigned at join; 1 for
	// a store of one node.
	NodeID uint32
	// ClusterID, if given, is the cluster (32 hexadecimal digits) the data must be of.
	ClusterID string

	// Listen is the address for other nodes, "host:port". Empty: a node without peers.
	Listen string
	// Advertise is the address other nodes reach Listen at. Empty: Listen's.
	Advertise string
	// ClientListen is the address for remote clients. Empty: none are served,
	// unless Listen is set (then it is a free port on the same host).
	ClientListen string
	// ClientAdvertise is the address clients reach ClientListen at. Empty: ClientListen's.
	ClientAdvertise string
	// Bootstrap forms a new cluster of that many nodes, the ones of Join and this
	// one. Each of them is started with the same number. Not used once the
	// directory belongs to a cluster.
	Bootstrap int
	// Join lists peer addresses of the cluster (its own may be among them).
	Join []string
	// Rejoin lets a node whose directory is empty join as a new node, with a new
	// id, where Bootstrap would have it refused as one that lost its disk. Bootstrap
	// is not used then. Not used once the directory belongs to a cluster.
	Rejoin bool

	// Shards is the number of shards of a new cluster. Zero: 1, or SplitAt's. At most MaxShards.
	Shards int
	// SplitAt gives the boundaries of a new cluster's shards; ascending, without duplicates.
	SplitAt [][]byte
	// Replicas is the number of voters per shard of a new cluster. Zero: min(3, nodes).
	Replicas int

	// TLS secures the listeners and all connections of the node. Nil: no TLS; then
	// run it on a network you trust.
	TLS *TLSFiles

	// Compress packs frames of 4 KiB and more to other nodes with snappy: worth it
	// where the network is slower than the processor.
	Compress bool

	// NoClock keeps this node from relying on clocks for reads: it claims no leases,
	// and every linearizable read it serves as a leader is confirmed by a majority.
	// Set it, on all nodes, where a clock may run more than 0.5 % fast or slow, or a
	// machine may be frozen together with all its clocks.
	NoClock bool

	// Timeout bounds a call whose context has no deadline. Zero: 10 s.
	Timeout time.Duration
	// Limits of memory and disk.
	Limits Limits
	// WholeProcess says that the process belongs to this node: Limits.Memory then bounds
	// what the kernel counts as resident for all of it, and the node sets the soft memory
	// limit of Go's runtime, again and again. flotilla serve does that. At most one open
	// node of a process can have it.
	WholeProcess bool
	// Timing of liveness and elections.
	Timing Timing
	// Compaction says when and by whom the Raft logs are cut. The zero value will do.
	Compaction Compaction

	// Machine serves the user's shards in place of the key-value store: the methods of KV
	// are refused with *ArgumentError then, Propose and Query take their place. It has to
	// be the same on all nodes, from the first start of the cluster on. What it keeps does
	// not count in Limits. Nil: none.
	Machine *Machine

	// Logger receives what the node has to say. Nil: nothing.
	Logger *slog.Logger
	// Registerer receives the node's metrics. Nil: none.
	Registerer prometheus.Registerer
	// Observer is told of events.
	Observer Observer

	// FS replaces the file system. For tests.
	FS engine.FS
	// Network joins the node to an in-process network instead of sockets. For tests.
	Network *transport.Network
	// PeerListener and ClientListener replace Listen and ClientListen by open
	// listeners, which the node takes over.
	PeerListener, ClientListener net.Listener
	// Cache is a block cache shared by several nodes of one process.
	Cache *engine.Cache
	// OnFatal is called once when the node stops itself because it cannot go on
	// safely, such as after a failed write to its log. Nil: it is logged.
	OnFatal func(error)

	// machine stands before the state machine. For tests of this package.
	machine func(multiraft.StateMachine) multiraft.StateMachine
}

// Limits bound what a node uses. Zero fields have defaults.
type Limits struct {
	// Memory is what the node may hold in memory: block cache, memtables, what is applied
	// and not in tables yet, proposals, entries, frames and requests (Node.Memory lists
	// them; docs/operations.md says how it is shared out). Where the node shares the
	// process (WholeProcess is not set), garbage comes on top, up to as much again as the
	// part in Go's heap (GOGC); set the runtime's limit (debug.SetMemoryLimit) yourself.
	// Zero: 512 MiB. At least 16 MiB, and 128 MiB with WholeProcess.
	Memory int64
	// Proposals bounds the writes waiting on the node. Zero: a sixteenth of Memory, at
	// most 256 MiB.
	Proposals int64
	// Wait bounds how long a write may be expected to wait on the node, from what
	// waits already and how fast that drains. Beyond it writes are refused with
	// *OverloadedError before anything was done for them, so that a node that is
	// offered too much serves what it can. It should be well above a few round
	// trips between the nodes, and below what callers are willing to wait. Zero:
	// 500 ms. At least 10 ms.
	Wait time.Duration
	// Disk is the most that the node's directory may take, in bytes as du counts
	// them. Short of it (docs/operations.md, When the disk fills) writes that add data
	// are refused with ErrDiskFull, and deletes are not. Zero: what the file system
	// has. At least 64 MiB.
	Disk int64
	// Ballast is the size of a file in the directory that only keeps space, to be
	// given up when the disk is full. It takes at most a hundredth of what the node
	// may use. Zero: none.
	Ballast int64
	// LogKeep bounds how much of one shard's log is kept for a replica that is
	// away; one that was away for longer is sent a snapshot. It is a ceiling: no more
	// is kept than half of what the shard's data take in tables, or 1 MiB, since a
	// snapshot is faster then. A replica that is merely slow may hold back sixteen
	// times as much. Zero: 16 MiB. At least 4 KiB.
	LogKeep int64
	// Log bounds what the Raft logs of all shards take on the disk together, the
	// write-ahead log included. From half of it on nothing is kept for replicas that are
	// away, from 70 % on logs are cut through all that is applied (who lags is sent a
	// snapshot), and near the limit writes get *OverloadedError, then ErrLogBudget: nothing
	// was done for them. A quarter of it, at most 256 MiB, may be what a restart has to
	// apply again. Zero: 1 GiB. At least 16 MiB.
	Log int64
}

// Timing holds durations. Zero fields have defaults.
type Timing struct {
	// Heartbeat is the interval of node liveness. Zero: 500 ms.
	Heartbeat time.Duration
	// Support is how long a promise of support lasts; the failure of a node is
	// noticed after that. At least four heartbeats. Zero: 2.5 s.
	Support time.Duration
	// ElectionRank is the delay between the ranks of candidates. Zero: 40 ms. It
	// should be well above a network round trip.
	ElectionRank time.Duration
	// Compare is about how often the replicas of a shard compare digests of what they
	// have applied, if anything was applied since. Zero: 10 s. Negative: never.
	Compare time.Duration
	// CompareState is after about how long without a write the replicas of a shard are compared
	// by all that they hold. Zero: 1 h. Negative: never.
	CompareState time.Duration
	// Scrub is how long after one pass over all tables on the disk, in which every
	// block is held against its checksum, the next one begins. Zero: 6 h. Negative: never.
	Scrub time.Duration
}

func (o *Options) logger() *slog.Logger {
	if o.Logger == nil {
		return slog.New(slog.DiscardHandler)
	}
	return o.Logger
}

// log returns the cap of the logs.
func (l *Limits) log() int64 { return cmp.Or(l.Log, 1<<30) }

func (o *Options) timeout() time.Duration {
	if o.Timeout == 0 {
		return 10 * time.Second
	}
	return o.Timeout
}

// Validate returns every fault of o, joined, each an *OptionError. It touches nothing.
func (o *Options) Validate() error {
	var errs []error
	bad := func(field string, value any, reason string) {
		errs = append(errs, &OptionError{Field: field, Value: fmt.Sprint(value), Reason: reason})
	}
	if o.Dir == "" && !o.InMemory {
		bad("Dir", `""`, "a directory is needed for a durable store; set InMemory for one that forgets")
	}
	if o.Bootstrap < 0 || o.Bootstrap > 1024 {
		bad("Bootstrap", o.Bootstrap, "must be between 0 and 1024 nodes")
	}
	if o.Bootstrap > 1 && len(o.Join) == 0 {
		bad("Join", "[]", "Bootstrap needs the addresses of the nodes that form the cluster")
	}
	if o.Rejoin && len(o.Join) == 0 {
		bad("Join", "[]", "Rejoin needs the address of a node of the cluster")
	}
	if o.Rejoin && o.NodeID != 0 {
		bad("NodeID", o.NodeID, "a node that rejoins gets a new id from the cluster: the votes of the old one are lost; leave NodeID zero")
	}
	if (o.Bootstrap > 1 || len(o.Join) > 0) && o.Listen == "" && o.PeerListener == nil && o.Network == nil {
		bad("Listen", `""`, "a node with peers needs an address for them")
	}
	if o.Network == nil { // an in-process network has names instead
		seen := map[string]bool{}
		addrs := []struct{ field, value string }{{"Listen", o.Listen}, {"Advertise", o.Advertise}, {"ClientListen", o.ClientListen}, {"ClientAdvertise", o.ClientAdvertise}}
		for _, a := range o.Join {
			addrs = append(addrs, struct{ field, value string }{"Join", a})
			if seen[a] {
				bad("Join", a, "is named twice; each node of the cluster has an address of its own")
			}
			seen[a] = true
		}
		for _, a := range addrs {
			if _, port, err := net.SplitHostPort(a.value); a.value != "" || a.field == "Join" {
				if _, notPort := strconv.ParseUint(port, 10, 16); err != nil || notPort != nil {
					bad(a.field, fmt.Sprintf("%q", a.value), "must be host:port, such as 10.0.0.1:7101")
				}
			}
		}
	}
	if o.Shards < 0 || o.Shards > MaxShards {
		bad("Shards", o.Shards, fmt.Sprintf("must be between 0 and %d", MaxShards))
	}
	if len(o.SplitAt) > 0 && o.Shards != 0 && o.Shards != len(o.SplitAt)+1 {
		bad("Shards", o.Shards, fmt.Sprintf("SplitAt makes %d shards; leave Shards zero", len(o.SplitAt)+1))
	}
	for i, k := range o.SplitAt {
		if len(k) == 0 || len(k) > catalog.MaxSplitKeyBytes {
			bad("SplitAt", fmt.Sprintf("%.64q", k), fmt.Sprintf("a boundary has 1 to %d bytes", catalog.MaxSplitKeyBytes))
		}
		if i > 0 && string(o.SplitAt[i-1]) >= string(k) {
			bad("SplitAt", fmt.Sprintf("%q", k), "boundaries must be ascending and without duplicates")
		}
	}
	if o.Replicas < 0 || o.Replicas > 7 {
		bad("Replicas", o.Replicas, "must be between 0 and 7")
	}
	if o.Bootstrap > 0 && o.Replicas > o.Bootstrap {
		bad("Replicas", o.Replicas, fmt.Sprintf("there are only %d nodes", o.Bootstrap))
	}
	if o.TLS != nil {
		for _, f := range []struct{ field, value string }{{"TLS.CA", o.TLS.CA}, {"TLS.Cert", o.TLS.Cert}, {"TLS.Key", o.TLS.Key}} {
			if f.value == "" {
				bad(f.field, `""`, "TLS needs a CA, a certificate and a key")
			}
		}
		if o.Network != nil {
			bad("TLS", o.TLS.Cert, "an in-process network has no TLS")
		}
	}
	if o.Timeout < 0 || o.Timeout > 24*time.Hour {
		bad("Timeout", o.Timeout, "must be between 0 and 24h")
	}
	if m := o.Limits.Memory; m < 0 || m > 0 && m < MinMemory || m > 1<<44 {
		bad("Limits.Memory", m, "must be 0 or between 16 MiB and 16 TiB")
	} else if m > 0 && m < MinProcessMemory && o.WholeProcess {
		bad("Limits.Memory", m, "must be at least 128 MiB (134217728): the program itself and its stacks take some 40 MiB of it")
	}
	if o.Limits.Proposals < 0 || o.Limits.Proposals > 0 && o.Limits.Proposals < 4<<20 || o.Limits.Proposals > 1<<40 {
		bad("Limits.Proposals", o.Limits.Proposals, "must be 0 or between 4 MiB and 1 TiB")
	}
	if o.Limits.Wait < 0 || o.Limits.Wait > 0 && o.Limits.Wait < 10*time.Millisecond || o.Limits.Wait > time.Hour {
		bad("Limits.Wait", o.Limits.Wait, "must be 0 or between 10ms and 1h")
	}
	if o.Limits.LogKeep < 0 || o.Limits.LogKeep > 0 && o.Limits.LogKeep < 4<<10 || o.Limits.LogKeep > 1<<40 {
		bad("Limits.LogKeep", o.Limits.LogKeep, "must be 0 or between 4 KiB and 1 TiB")
	}
	if o.Limits.Log < 0 || o.Limits.Log > 0 && o.Limits.Log < 16<<20 || o.Limits.Log > 1<<40 {
		bad("Limits.Log", o.Limits.Log, "must be 0 or between 16 MiB and 1 TiB")
	}
	if o.Limits.Disk < 0 || o.Limits.Disk > 0 && o.Limits.Disk < 64<<20 || o.Limits.Disk > 1<<50 {
		bad("Limits.Disk", o.Limits.Disk, "must be 0 (what the file system has) or between 64 MiB and 1 PiB")
	}
	if o.Limits.Ballast < 0 || o.Limits.Ballast > 1<<40 {
		bad("Limits.Ballast", o.Limits.Ballast, "must be between 0 (none) and 1 TiB")
	}
	o.Compaction.validate(bad)
	if o.Machine != nil && o.Machine.external == nil {
		bad("Machine", "nil", "ExternalMachine was given none")
	}
	t := o.Timing.withDefaults()
	if t.Heartbeat < time.Millisecond || t.Heartbeat > time.Minute {
		bad("Timing.Heartbeat", t.Heartbeat, "must be between 1ms and 1m")
	}
	if t.Support < 4*t.Heartbeat {
		bad("Timing.Support", t.Support, fmt.Sprintf("must be at least four heartbeats (%s)", 4*t.Heartbeat))
	}
	if t.ElectionRank < time.Millisecond || t.ElectionRank > 10*time.Second {
		bad("Timing.ElectionRank", t.ElectionRank, "must be between 1ms and 10s")
	}
	if t.Compare > 0 && t.Compare < 10*time.Millisecond || t.Compare > 24*time.Hour {
		bad("Timing.Compare", t.Compare, "must be 0 (10s), negative (never), or between 10ms and 24h")
	}
	if t.CompareState > 0 && t.CompareState < 10*time.Millisecond {
		bad("Timing.CompareState", t.CompareState, "must be 0 (1h), negative (never), or at least 10ms")
	}
	if t.Scrub > 0 && t.Scrub < 10*time.Millisecond {
		bad("Timing.Scrub", t.Scrub, "must be 0 (6h), negative (never), or at least 10ms")
	}
	if o.ClusterID != "" {
		if _, err := parseClusterID(o.ClusterID); err != nil {
			bad("ClusterID", o.ClusterID, err.Error())
		}
	}
	return errors.Join(errs...)
}

func (t Timing) withDefaults() Timing {
	if t.Heartbeat == 0 {
		t.Heartbeat = 500 * time.Millisecond
	}
	if t.Support == 0 {
		t.Support = 5 * t.Heartbeat
	}
	if t.ElectionRank == 0 {
		t.ElectionRank = 40 * time.Millisecond
	}
	return t
}

func (o *Options) tuning() raft.Tuning {
	t := o.Timing.withDefaults()
	return raft.Tuning{ElectionRank: t.ElectionRank, ElectionJitter: t.ElectionRank, LogKeepBytes: int(o.Limits.LogKeep),
		Cut: cutPolicies[o.Compaction.Policy], CutEntries: o.Compaction.Entries, CutBytes: int(o.Compaction.Bytes), IdleTruncate: o.Compaction.Idle}
}
