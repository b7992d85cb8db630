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
	// ErrFenced is returned by a replica whose state machine failed. Nothing was proposed.
	ErrFenced = errors.New("multiraft: the replica is fenced because its state machine failed")
)

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
	Since time.Time
}

func (e *NoQuorumError) Error() string {
	return fmt.Sprintf("multiraft: shard %d has no quorum: nodes %v do not answer since %s", e.Shard, e.Down, e.Since.Format(time.RFC3339))
}

// OverloadedError says that a limit was reached before anything was proposed.
type OverloadedError struct {
	RetryAfter time.Duration
	Why        string
}

func (e *OverloadedError) Error() string {
	return fmt.Sprintf("multiraft: overloaded (%s); retry after %s", e.Why, e.RetryAfter)
}
