package flotilla

import "time"

// ClusterStatus is the state of a cluster in one glance.
type ClusterStatus struct {
	// State is HEALTHY, DEGRADED (every shard has a leader, but some replica or
	// node is away, or a disk is full or stands still) or UNAVAILABLE (some shard has no leader).
	State            string     `json:"state"`
	Cluster          string     `json:"cluster"`
	Nodes            []NodeInfo `json:"nodes"`
	Shards           int        `json:"shards"`
	ShardsWithLeader int        `json:"shards_with_leader"`
	UnderReplicated  int        `json:"under_replicated"`
	Note             string     `json:"note,omitempty"`
	// Warnings are sentences about what is wrong with single nodes, such as a disk
	// that is full or stands still.
	Warnings []string `json:"warnings,omitempty"`
}

// NodeInfo describes one node.
type NodeInfo struct {
	ID         uint32 `json:"id"`
	Addr       string `json:"addr"`
	ClientAddr string `json:"client_addr"`
	// State is up, down or unknown.
	State    string `json:"state"`
	Leaders  int    `json:"leaders"`
	Replicas int    `json:"replicas"`
	// DiskBytes is what the store takes on disk.
	DiskBytes int64 `json:"disk_bytes"`
	// LogBytes is what the Raft logs take of it, the write-ahead log included (log records
	// that are in both count twice), and LogLimit the cap on that (Limits.Log).
	LogBytes int64 `json:"log_bytes"`
	LogLimit int64 `json:"log_limit_bytes,omitempty"`
	// LogZone says how near the cap the logs are: none, soft (nothing is kept for replicas
	// that are away), firm (logs are cut through all that is in tables) or hard (writes
	// are refused).
	LogZone string `json:"log_zone,omitempty"`
	// DiskState is how much space is left: ok, warning, full (writes that add data
	// are refused) or critical.
	DiskState string `json:"disk_state,omitempty"`
	// DiskStalled: the disk takes no writes now.
	DiskStalled bool `json:"disk_stalled,omitempty"`
	// DiskUsed is what the store's directory takes as du counts it, DiskLimit what it
	// may take (zero: no limit), DiskRoom what it may still take by that limit and by
	// what is free (zero with DiskState ok: not known).
	DiskUsed  int64 `json:"disk_used_bytes"`
	DiskLimit int64 `json:"disk_limit_bytes,omitempty"`
	DiskRoom  int64 `json:"disk_room_bytes"`
	// Lag is the largest number of entries a replica of the node is behind its leader's commit index.
	Lag        uint64    `json:"lag"`
	FsyncP99Ms float64   `json:"fsync_p99_ms"`
	Version    string    `json:"version"`
	Started    time.Time `json:"started"`
	// Memory says who holds the node's memory; nil: it does not answer.
	Memory *MemoryInfo `json:"memory,omitempty"`
}

// ShardInfo describes one shard.
type ShardInfo struct {
	ID       uint64 `json:"id"`
	Keyspace uint32 `json:"keyspace"`
	Start    []byte `json:"start"`
	End      []byte `json:"end"`
	// Leader is zero while there is none.
	Leader   uint32        `json:"leader"`
	Term     uint64        `json:"term"`
	Replicas []ReplicaInfo `json:"replicas"`
	ConfVer  uint64        `json:"conf_ver"`
	Version  uint64        `json:"version"`
	// LogBytes and DataBytes are the leader's estimates.
	LogBytes  int64 `json:"log_bytes"`
	DataBytes int64 `json:"data_bytes"`
	// State is ok, under-replicated or no leader.
	State string `json:"state"`
}

// ReplicaInfo describes one replica of a shard.
type ReplicaInfo struct {
	Node    uint32 `json:"node"`
	Replica uint32 `json:"replica"`
	Role    string `json:"role"`
	// State is up, fenced (it serves nothing; ClusterStatus.Warnings says why), or
	// unknown when the node does not answer.
	State   string `json:"state"`
	Applied uint64 `json:"applied"`
	Commit  uint64 `json:"commit"`
	Last    uint64 `json:"last"`
	// Lag is the number of entries the replica is behind the leader's commit index.
	Lag uint64 `json:"lag"`
}

// SnapshotInfo describes a snapshot that is on its way to a replica, as one of the
// two nodes sees it.
type SnapshotInfo struct {
	// Node says so; Peer is the other one.
	Node  uint32 `json:"node"`
	Peer  uint32 `json:"peer"`
	Shard uint64 `json:"shard"`
	// State is preparing (waits for its turn or is being built) or sending, at the
	// sender; receiving, interrupted (what came is kept for the sender to go on) or
	// installing, at the receiver.
	State string `json:"state"`
	// Index is that of the last entry in it; zero: not known yet.
	Index uint64 `json:"index,omitempty"`
	// Bytes is the size of the snapshot (zero: not known yet), Done what of it has been
	// sent or has arrived.
	Bytes int64 `json:"bytes"`
	Done  int64 `json:"done"`
}
