package snapshot

import (
	"cmp"
	"slices"

	"github.com/flotillakv/flotilla/multiraft/raft"
)

// Limits says how much log is kept for whom. The zero value means the defaults.
type Limits struct {
	// TailEntries is how many entries below the applied index are kept even if
	// nobody is known to need them, so that a replica that answers late needs no
	// snapshot. Zero: none.
	TailEntries uint64
	// HoldEntries and HoldBytes bound what a replica on a node that is not live
	// may hold back. Zero: 1<<20 entries; HoldBytesFor(DataBytes).
	HoldEntries uint64
	HoldBytes   int64
	// LiveBytes bounds what a replica on a live node may hold back; beyond it a
	// snapshot is cheaper for everybody. Zero: eight times what a dead one may.
	LiveBytes int64
}

// HoldBytesFor returns how much log a dead or slow replica of a shard with
// dataBytes of data may hold back: half the data, at least 1 MiB, at most
// 16 MiB. Beyond that, sending the data is cheaper than keeping the log.
func HoldBytesFor(dataBytes int64) int64 {
	return raft.KeepBytes(16<<20, max(1, dataBytes))
}

// PeerLog is what the leader knows of one other replica.
type PeerLog struct {
	// Match is the last index known to be in the replica's log. Zero: unknown.
	Match raft.Index
	// Live says that its node is supported: it is up, as far as is known.
	Live bool
	// Pinned is the index of a snapshot that is on its way to it; the entries
	// above are needed when it arrives. Zero: none. The owner drops the pin when
	// the sending has failed, ended, or lasted too long.
	Pinned raft.Index
}

// Log is the log of the leader.
type Log struct {
	First   raft.Index // entries up to First are gone
	Last    raft.Index
	Applied raft.Index
	Bytes   int64 // of the entries (First, Last]
	// DataBytes is the size of the shard's data, by which a snapshot is priced. Zero: unknown.
	DataBytes int64
}

// CutTo returns the index up to which the log may be cut now: no live
// follower within its limits, no snapshot on its way and no dead replica
// within its limits needs an entry at or below it, and all of it is applied.
// It never exceeds Applied and is at least First. Replicas that fall behind it
// need a snapshot.
func CutTo(log Log, peers []PeerLog, lim Limits) raft.Index {
	hold := lim.HoldBytes
	if hold == 0 {
		hold = HoldBytesFor(log.DataBytes)
	}
	entries := lim.HoldEntries
	if entries == 0 {
		entries = 1 << 20
	}
	live := lim.LiveBytes
	if live == 0 {
		live = 8 * hold
	}
	to := log.Applied
	if t := raft.Index(lim.TailEntries); t > 0 {
		to = min(to, max(log.Applied, t)-t)
	}
	for _, p := range peers {
		need := p.Match
		if p.Pinned != 0 {
			need = max(need, p.Pinned)
		}
		held := log.bytesAbove(need)
		switch {
		case need < log.First:
			// Already beyond help: it gets a snapshot, the log does not wait.
		case p.Live || p.Pinned != 0:
			if held <= live {
				to = min(to, need)
			}
		case held <= hold && uint64(log.Last-min(need, log.Last)) <= entries:
			to = min(to, need)
		}
	}
	return max(to, log.First)
}

// bytesAbove estimates the bytes of the entries (i, Last] by their average size.
func (l Log) bytesAbove(i raft.Index) int64 {
	if i >= l.Last || l.Last <= l.First {
		return 0
	}
	return int64(float64(l.Bytes) * float64(l.Last-max(i, l.First)) / float64(l.Last-l.First))
}

// Holding is how much log one shard of a node keeps.
type Holding struct {
	Shard raft.ShardID
	Bytes int64
}

// OverBudget returns the shards whose logs must be cut without regard to dead
// and slow replicas so that all logs together fit into budget bytes: the
// biggest holders first, ties by shard. held is not changed.
func OverBudget(held []Holding, budget int64) []raft.ShardID {
	var total int64
	for _, h := range held {
		total += h.Bytes
	}
	if total <= budget {
		return nil
	}
	byBytes := slices.Clone(held)
	slices.SortFunc(byBytes, func(a, b Holding) int {
		return cmp.Or(cmp.Compare(b.Bytes, a.Bytes), cmp.Compare(a.Shard, b.Shard))
	})
	var out []raft.ShardID
	for _, h := range byBytes {
		if total <= budget {
			break
		}
		out = append(out, h.Shard)
		total -= h.Bytes
	}
	return out
}

// CheckOverlap refuses a snapshot whose span overlaps the span of another
// shard with a replica here (live, in any order): its installation would
// delete the other's data. What a split or a merge makes of the two is decided
// by their logs; until then the snapshot waits.
func CheckOverlap(d *raft.Descriptor, live []raft.Descriptor) error {
	for i := range live {
		o := &live[i]
		if o.Shard == d.Shard || o.Keyspace != d.Keyspace {
			continue
		}
		if (len(d.End) == 0 || string(o.Start) < string(d.End)) && (len(o.End) == 0 || string(d.Start) < string(o.End)) {
			return &OverlapError{Shard: d.Shard, Other: o.Shard}
		}
	}
	return nil
}
