package flotilla

import (
	"cmp"
	"fmt"
	"time"

	"github.com/flotillakv/flotilla/multiraft"
	"github.com/flotillakv/flotilla/multiraft/raft"
)

// CompactionPolicy says who decides how far the Raft logs are cut, and how the others get
// to know it. Under each of them nothing is cut that is not applied and in tables here,
// and where Limits.Log comes near, more is cut whatever the policy.
type CompactionPolicy string

const (
	// CompactPiggybacked is the default: the leader says with each append what all live
	// replicas hold, and each replica cuts its log through that.
	CompactPiggybacked CompactionPolicy = "piggybacked"
	// CompactInLog is leader-initiated and stored in the log: an entry names the cut, and all
	// replicas cut when they apply it. For a shard of up to 256 KiB the entry carries the
	// whole state, from which a replica whose log ends before is restored.
	CompactInLog CompactionPolicy = "in-log"
	// CompactByReplica is initiated by each replica for itself: it cuts its own log through
	// what it has applied and brought to tables. A leader spares what live replicas need.
	CompactByReplica CompactionPolicy = "replica"
	// CompactLeaderImage is leader-initiated and stored outside the log: what a replica lacks
	// that is away or slow is cut only under an image of the shard, of any size, which the
	// leader keeps on its disk; then all replicas cut through it. Whoever needs more is sent
	// that image, and the log behind it. What all replicas hold is cut without one.
	CompactLeaderImage CompactionPolicy = "leader-image"
)

// CompactionPolicies lists the policies, the default first.
func CompactionPolicies() []CompactionPolicy {
	return []CompactionPolicy{CompactPiggybacked, CompactInLog, CompactByReplica, CompactLeaderImage}
}

// What zero in the fields of a Compaction means.
const (
	DefaultCompactEntries = raft.DefaultCutEntries   // 10,000
	DefaultCompactBytes   = raft.DefaultCutBytes     // 1 MiB
	DefaultCompactAge     = multiraft.DefaultCutAge  // 1 h
	DefaultCompactIdle    = raft.DefaultIdleTruncate // 1 s
)

// Compaction says when and by whom logs are cut. The zero value is the default. The leader's
// Policy counts for CompactInLog and CompactLeaderImage, each node's own for
// CompactByReplica. Entries, Bytes, Age and Idle are the triggers of these; each of
// them is enough. They follow from what is in the log, so a restart does not put them off.
// Under every policy they also say when a Machine is asked to make its state durable
// (External.Sync).
type Compaction struct {
	Policy  CompactionPolicy
	Entries int           // so many entries can be cut. Zero: DefaultCompactEntries
	Bytes   int64         // entries of so many bytes can be cut. Zero: DefaultCompactBytes
	Age     time.Duration // the oldest entry is so old. Zero: DefaultCompactAge
	Idle    time.Duration // the shard was quiet for so long; for every policy. Zero: DefaultCompactIdle
	// ImageBytes bounds what all images of CompactLeaderImage take on a node. Where it is
	// used up, logs are cut as by default. An image of more than 64 KiB is made anew only
	// when the log behind it takes a quarter of it, or by Age. Zero: as much as Limits.Log.
	ImageBytes int64
}

// cutPolicies are the policies as the core knows them.
var cutPolicies = map[CompactionPolicy]raft.CutPolicy{
	"": raft.CutPiggyback, CompactPiggybacked: raft.CutPiggyback, CompactInLog: raft.CutInLog, CompactByReplica: raft.CutAlone, CompactLeaderImage: raft.CutLeaderImage,
}

// images returns what the images of a node may take.
func (o *Options) images() int64 {
	if o.Compaction.Policy != CompactLeaderImage {
		return 0
	}
	return cmp.Or(o.Compaction.ImageBytes, o.Limits.log())
}

func (c *Compaction) validate(bad func(field string, value any, reason string)) {
	if _, ok := cutPolicies[c.Policy]; !ok {
		bad("Compaction.Policy", fmt.Sprintf("%q", c.Policy), fmt.Sprintf("must be empty or one of %q", CompactionPolicies()))
	}
	if c.Entries < 0 || c.Entries > 1<<30 {
		bad("Compaction.Entries", c.Entries, "must be between 0 (10,000) and 1073741824")
	}
	if c.Bytes < 0 || c.Bytes > 1<<40 {
		bad("Compaction.Bytes", c.Bytes, "must be between 0 (1 MiB) and 1 TiB")
	}
	if c.ImageBytes < 0 {
		bad("Compaction.ImageBytes", c.ImageBytes, "must not be negative")
	}
	if c.Age < 0 {
		bad("Compaction.Age", c.Age, "must not be negative")
	}
	if c.Idle < 0 {
		bad("Compaction.Idle", c.Idle, "must not be negative")
	}
}
