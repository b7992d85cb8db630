package flotilla

import "github.com/flotillakv/flotilla/engine"

// snapshotsIn is how many snapshots a node takes in at a time. Two senders send two each.
const snapshotsIn = 4

// DiskTerm is one part of what a node's directory may take besides its data and its logs.
type DiskTerm = engine.SpaceTerm

// DiskAllowance counts, from the node's limits, what its directory may take besides 1.3
// times its live data and Limits.Log: the files of the write-ahead log, what compactions
// need while they run, snapshots that come in, images that are kept, the ballast. largestShard is the size
// of the largest shard in bytes. What each term means: docs/operations.md, How much
// disk a node needs. Writes that come faster than the disk can merge them may exceed
// level 0's term up to twice, until they wait.
func (n *Node) DiskAllowance(largestShard int64) []DiskTerm {
	terms := n.eng.Allowance(largestShard, snapshotsIn)
	if b := n.o.images(); b > 0 {
		terms = append(terms, DiskTerm{Name: "images of shards", Bytes: b, Count: "Compaction.ImageBytes, else Limits.Log"})
	}
	return terms
}

// CountLog counts the bytes of the node's Raft logs by reading them all, and those of
// the write-ahead logs of what is not in tables yet. It does not use the counters by
// which Limits.Log is kept; it is there to check them, in tests and benches.
func (n *Node) CountLog() (logs, wal int64, err error) { return n.eng.CountLog() }
