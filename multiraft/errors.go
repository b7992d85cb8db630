package multiraft

import (
	"errors"
	"fmt"
	"time"

	"github.com/flotillakv/flotilla/multiraft/raft"
)

var (
	// ErrClosed is returned for requests to a host that was stopped. Nothing was proposed.
	ErrClosed = errors.New("multiraft: the node is stopped")
	// ErrUnknownShard is returned for a shard without a replica on this node. Nothing was proposed.
	ErrUnknownShard = errors.New("multiraft: this node has no replica of the shard")
	// ErrDropped says that another leader's entry was committed at the place of
	// the proposal: the command has not been and will never be applied.
	ErrDropped = errors.New("multiraft: the proposal lost its place to another leader's entry; it was not applied")
	// ErrAmbiguous says that the proposal was handed to Raft and its outcome is
	// unknown: it may have been applied or may still be.
	ErrAmbiguous = errors.New("multiraft: outcome unknown: the proposal was handed to Raft but not confirmed")
	// ErrFenced is returned by a replica that cannot apply an entry of its log: its
	// state machine failed, or the entry is of a newer release. Nothing was proposed.
	ErrFenced = errors.New("multiraft: the replica is fenced because its state machine failed")
	// ErrLogBudget says that the logs of this node have used up their budget
	// (Config.LogBytes). Nothing was proposed.
	ErrLogBudget = errors.New("multiraft: the logs of this node have used up their budget")
	// ErrSnapshotStale is returned by InstallSnapshot when the replica leads, or holds
	// what the snapshot would bring. Nothing was installed and nothing is needed.
	ErrSnapshotStale = errors.New("multiraft: the replica does not need the snapshot")
)

// TooLargeError says that a command does not fit into a log entry. Nothing was proposed.
type TooLargeError struct {
	Shard raft.ShardID
	Bytes int // of the entry, bounded from above
	Limit int
}

func (e *TooLargeError) Error() string {
	return fmt.Sprintf("multiraft: an entry of %d bytes for shard %d; the limit is %d", e.Bytes, e.Shard, e.Limit)
}

// RefusedError says that Raft refused a proposal, a configuration change above
// all, for the reason it unwraps to (ErrConfPending and others of package raft).
// Nothing was proposed.
type RefusedError struct {
	Shard raft.ShardID
	Err   error
}

func (e *RefusedError) Error() string { return fmt.Sprintf("multiraft: shard %d: %v", e.Shard, e.Err) }
func (e *RefusedError) Unwrap() error { return e.Err }

// NotLeaderError says that this replica does not lead the shard. Nothing was proposed.
type NotLeaderError struct {
	Shard  raft.ShardID
	Leader raft.NodeID // zero: unknown
	Term   raft.Term
}

func (e *NotLeaderError) Error() string {
	if e.Leader == 0 {
		return fmt.Sprintf("multiraft: shard %d has no known leader (term %d)", e.Shard, e.Term)
	}
	return fmt.Sprintf("multiraft: shard %d is led by node %d (term %d)", e.Shard, e.Leader, e.Term)
}

// NoQuorumError says that the shard cannot reach a majority of its voters
// since Since. Nothing was proposed.
type NoQuorumError struct {
	Shard raft.ShardID
	Down  []raft.NodeID
	// Voters is how many voters the shard has, in both halves of a joint configuration.
	Voters int
	// Forgot are the nodes whose replicas have forgotten what they promised. They
	// count for nothing and do not come back.
	Forgot []raft.NodeID
	Since  time.Time
}

func (e *NoQuorumError) Error() string {
	s := fmt.Sprintf("multiraft: shard %d has no quorum: nodes %v do not answer since %s", e.Shard, e.Down, e.Since.Format(time.RFC3339))
	if len(e.Forgot) > 0 {
		s += fmt.Sprintf("; nodes %v have forgotten what they promised and have to be replaced", e.Forgot)
	}
	return s
}

// OverloadedError says that a limit was reached before anything was proposed.
type OverloadedError struct {
	RetryAfter time.Duration
	Why        string
}

func (e *OverloadedError) Error() string {
	return fmt.Sprintf("multiraft: overloaded (%s); retry after %s", e.Why, e.RetryAfter)
}
