package multiraft

import (
	"github.com/flotillakv/flotilla/engine"
	"github.com/flotillakv/flotilla/multiraft/raft"
)

// ApplyContext tells a state machine what it applies.
type ApplyContext struct {
	// Desc is the group's descriptor as of the entry before this one. Read-only.
	Desc *raft.Descriptor
	// Entry is the committed entry; its commands are Entry.Commands().
	Entry  raft.Entry
	Header raft.EntryHeader
	// Results has one slot per command and is nil when nobody waits for the
	// results (a follower). What is stored there is handed to the proposer; it
	// must not alias memory that is reused. The slice itself must not be kept.
	Results [][]byte
	// WrittenBytes and WrittenKeys are counters the machine adds to.
	WrittenBytes uint64
	WrittenKeys  uint64

	// TimeBefore is the group's time as of the entry before this one.
	TimeBefore uint64

	answered raft.Digest
	// ahead: the machine outside of the store has applied the entry before.
	ahead bool
	// skipped are the commands that such a machine did not carry out.
	skipped []uint32
}

// Answer notes what a command is answered, whether anybody waits for it or not: the
// digest by which replicas are compared covers it. Commands of which the answer
// follows from what they write need not be noted. b is not kept.
func (a *ApplyContext) Answer(b []byte) { a.answered = a.answered.Add(b) }

// GroupTime returns the group's time as of the entry, in nanoseconds: the
// highest time stamp of the log so far. It never goes back and is the same on
// every replica. Machines must use no other clock.
func (a *ApplyContext) GroupTime() uint64 { return max(a.TimeBefore, a.Header.GroupTs) }

// StateMachine applies committed entries of the groups it serves. One value
// serves many groups; calls for one group never overlap, calls for different
// groups may come from different loops.
type StateMachine interface {
	// Apply applies all commands of a.Entry, in order, through b, touching only
	// keys of the descriptor's keyspace and range (and group-local state). It
	// must be deterministic: equal entries over equal state give equal effects
	// and results on every replica. A command that cannot be carried out is a
	// deterministic result, not an error. An error (or a panic) fences the
	// replica: nothing of the entry is kept and nothing further is applied.
	Apply(b *engine.Batch, a *ApplyContext) error
}
