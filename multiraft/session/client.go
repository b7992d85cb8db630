package session

import (
	"slices"

	"github.com/flotillakv/flotilla/multiraft/raft"
)

// Client counts the commands of one session, lineage by lineage. It has one
// owner, or is guarded by one; there is no lock inside.
type Client struct {
	// ID is the session's, random and never zero.
	ID [16]byte

	lineages []lineage // ascending by shard
}

// lineage counts the commands of the session at one shard.
type lineage struct {
	shard raft.ShardID
	next  uint64   // the sequence number that comes next
	open  []uint64 // under way, ascending
}

// Begin counts a command at the shard and returns its header. ok is false while
// Window commands are not settled there, counted from the oldest one under way:
// try again when one of them was ended.
func (c *Client) Begin(shard raft.ShardID, deadline uint64) (h *raft.SessionHeader, ok bool) {
	i, found := slices.BinarySearchFunc(c.lineages, shard, compare)
	if !found {
		c.lineages = slices.Insert(c.lineages, i, lineage{shard: shard, next: 1})
	}
	l := &c.lineages[i]
	acked := l.acked()
	if l.next-acked > Window {
		return nil, false
	}
	h = &raft.SessionHeader{ID: c.ID, Lineage: shard, Seq: l.next, AckedTo: acked, Deadline: deadline}
	l.open = append(l.open, l.next)
	l.next++
	return h, true
}

// End says that the command of h is settled: its outcome is known, or nobody
// waits for it any more.
func (c *Client) End(h *raft.SessionHeader) {
	i, found := slices.BinarySearchFunc(c.lineages, h.Lineage, compare)
	if !found {
		return
	}
	l := &c.lineages[i]
	if k, ok := slices.BinarySearch(l.open, h.Seq); ok {
		l.open = slices.Delete(l.open, k, k+1)
	}
}

// Lineages returns the shards at which commands were counted, ascending.
func (c *Client) Lineages() []raft.ShardID {
	out := make([]raft.ShardID, len(c.lineages))
	for i := range c.lineages {
		out[i] = c.lineages[i].shard
	}
	return out
}

// acked returns the highest number up to which everything is settled.
func (l *lineage) acked() uint64 {
	if len(l.open) > 0 {
		return l.open[0] - 1
	}
	return l.next - 1
}

func compare(l lineage, s raft.ShardID) int {
	switch {
	case l.shard < s:
		return -1
	case l.shard > s:
		return 1
	}
	return 0
}
