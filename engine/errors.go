package engine

import (
	"errors"
	"fmt"

	"github.com/flotillakv/flotilla/multiraft/raft"
)

var (
	// ErrAmnesia says that the store has lost writes that others count on: it is an
	// old copy, or its disk forgot what was synced. It has to be replaced.
	ErrAmnesia = errors.New("engine: the store has forgotten what it had promised; remove the directory and let the node join as a new one")
	// ErrClosed is returned by calls on an Engine after Close. Nothing was read or written.
	ErrClosed = errors.New("engine: closed")
	// ErrFailed marks every error of a store that stopped after a failed sync
	// or corruption (errors.Is). What had not been acknowledged before may or
	// may not be on disk; nothing further is written.
	ErrFailed = errors.New("engine: the store has failed")
	// ErrCompacted is returned by Entries and Term for entries that the log no
	// longer (or not yet) holds.
	ErrCompacted = raft.ErrCompacted
	// ErrTombstone is returned by InstallSnapshot for a replica that was
	// destroyed here, or is older than one that was. Nothing was written.
	ErrTombstone = errors.New("engine: replica was destroyed on this node")
	// ErrOverlap is returned by InstallSnapshot when the span of the snapshot
	// overlaps a live group of this node. Nothing was written.
	ErrOverlap = errors.New("engine: span overlaps another group of this node")
	// ErrStale is returned by InstallSnapshot when the snapshot would set the
	// replica back: a lower term than its hard state has, or an applied index
	// below its own. Nothing was written.
	ErrStale = errors.New("engine: snapshot is older than the replica")
	// ErrIdentity is returned by SetIdent when the store already belongs to a
	// different cluster or node. Nothing was written.
	ErrIdentity = errors.New("engine: the store already has another identity")
)

// Reason says why a store was not opened.
type Reason uint8

// The reasons of an OpenError. In none of these cases was anything created or changed.
const (
	// Locked: another Engine, of this or of another process, holds the directory.
	Locked Reason = iota + 1
	// OtherCluster: the store belongs to another cluster than Options.Cluster.
	OtherCluster
	// OtherNode: the store belongs to another node than Options.Node.
	OtherNode
	// NewerLayout: the store was written by a newer release.
	NewerLayout
	// NotWritable: the directory cannot be created, read or written.
	NotWritable
	// Corrupt: files of the store are damaged or missing.
	Corrupt
	// NotAStore: there is no store at the path and Options.Create is false, or
	// the directory holds something else.
	NotAStore
	// Amnesia: the store has lost writes that were acknowledged as durable.
	Amnesia
	// NoSpace: the disk has too little free space to run a store on.
	NoSpace
	// InsideStore: a store was to be created inside another one.
	InsideStore
)

// String returns the reason in words.
func (r Reason) String() string {
	switch r {
	case Locked:
		return "locked"
	case OtherCluster:
		return "other cluster"
	case OtherNode:
		return "other node"
	case NewerLayout:
		return "newer layout"
	case NotWritable:
		return "not writable"
	case Corrupt:
		return "corrupt"
	case NotAStore:
		return "not a store"
	case Amnesia:
		return "amnesia"
	case NoSpace:
		return "no space"
	case InsideStore:
		return "inside another store"
	}
	return fmt.Sprintf("reason(%d)", uint8(r))
}

// OpenError says which store could not be opened, why, and what to do about it.
type OpenError struct {
	Path   string
	Reason Reason
	// Hint is one sentence: what the operator can do.
	Hint string
	Err  error // the cause; nil when Reason says it all
}

// Error returns one sentence naming path, cause and remedy.
func (e *OpenError) Error() string {
	s := fmt.Sprintf("engine: cannot open store %q: %s", e.Path, e.Reason)
	if e.Err != nil {
		s += ": " + e.Err.Error()
	}
	if e.Hint != "" {
		s += " (" + e.Hint + ")"
	}
	return s
}

// Unwrap returns the cause.
func (e *OpenError) Unwrap() error { return e.Err }

// GroupError says that the durable state of one group is inconsistent.
type GroupError struct {
	Shard raft.ShardID
	Index raft.Index // zero: not about one entry
	Err   error
}

// Error names the shard and the index.
func (e *GroupError) Error() string {
	if e.Index != 0 {
		return fmt.Sprintf("engine: shard %d, log index %d: %v", e.Shard, e.Index, e.Err)
	}
	return fmt.Sprintf("engine: shard %d: %v", e.Shard, e.Err)
}

// Unwrap returns the cause.
func (e *GroupError) Unwrap() error { return e.Err }
