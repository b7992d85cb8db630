package flotilla

import (
	"fmt"

	"github.com/flotillakv/flotilla/engine"
	"github.com/flotillakv/flotilla/multiraft"
	"github.com/flotillakv/flotilla/shard"
	"github.com/flotillakv/flotilla/transport"
)

// Sentinel errors; branch with errors.Is.
var (
	// ErrNotFound: the key, shard or node asked for does not exist.
	ErrNotFound = shard.ErrNotFound
	// ErrAmbiguous: the write was handed to its shard and its outcome is unknown.
	ErrAmbiguous = shard.ErrAmbiguous
	// ErrLogBudget: the log may not grow now. Nothing was applied.
	ErrLogBudget = shard.ErrLogBudget
	// ErrDiskFull: the disks have no room for what the write would add. Nothing was applied.
	ErrDiskFull = shard.ErrDiskFull
	// ErrClosed: the node or client was closed before the request was started.
	ErrClosed = shard.ErrClosed
	// ErrDiverged is wrapped by what is told of a replica that does not have what the
	// others of its shard have (IntegrityEvent).
	ErrDiverged = multiraft.ErrDiverged
	// ErrSessionExpired: a write of a Session came to its shard after its TTL.
	ErrSessionExpired = shard.ErrSessionExpired
)

// Typed errors; branch with errors.As. All but PartialError and ResultGoneError
// mean that the write was not applied.
type (
	// NotLeaderError: the asked node does not lead the shard. The router retries it; it surfaces when time runs out.
	NotLeaderError = shard.NotLeaderError
	// EpochError: the sender's table of shards is out of date; it carries the newer descriptors.
	EpochError = shard.EpochError
	// NoQuorumError: a majority of the shard's voters does not answer.
	NoQuorumError = shard.NoQuorumError
	// OverloadedError: a limit was reached; try again after RetryAfter.
	OverloadedError = shard.OverloadedError
	// DiskFullError: which nodes have no room for what the write would add. It is ErrDiskFull.
	DiskFullError = shard.DiskFullError
	// UnsyncedError: a Machine has not made its state durable, so that a log cannot be cut. It is ErrLogBudget.
	UnsyncedError = shard.UnsyncedError
	// CrossShardError: the keys lie in several shards; At is the first boundary between them.
	CrossShardError = shard.CrossShardError
	// ConflictError: CAS found another version, Have.
	ConflictError = shard.ConflictError
	// LimitError: a key, value, batch or page is larger than its limit.
	LimitError = shard.LimitError
	// ArgumentError: an argument makes no sense.
	ArgumentError = shard.ArgumentError
	// UnavailableError: no node could be reached to take the request.
	UnavailableError = shard.UnavailableError
	// RefusedError: two processes do not talk to each other, because they are of
	// different clusters or releases, or one is not the node it was taken for.
	RefusedError = transport.RefusedError
	// PartialError: a write that gave up atomicity was applied in part.
	PartialError = shard.PartialError
	// SessionExpiredError: the shard's time passed the TTL of a session's write. It is ErrSessionExpired.
	SessionExpiredError = shard.SessionExpiredError
	// SessionsFullError: the shard remembers as many sessions as it may.
	SessionsFullError = shard.SessionsFullError
	// ResultGoneError: a session's write took effect by an earlier try, and its result is no longer kept.
	ResultGoneError = shard.ResultGoneError
	// OpenError: the data directory was refused; Path and Reason say which and why. Nothing in it was changed.
	OpenError = engine.OpenError
)

// OutcomeCode tells what became of a write.
type OutcomeCode = shard.Outcome

// The outcomes of a write.
const (
	NotApplied   = shard.NotApplied
	MaybeApplied = shard.MaybeApplied
	Applied      = shard.Applied
)

// Outcome tells what became of the write that returned err: Applied for nil,
// NotApplied when it certainly had no effect, MaybeApplied otherwise.
func Outcome(err error) OutcomeCode { return shard.OutcomeOf(err) }

// JoinError says that another node refused this one when it wanted to form or
// join a cluster: two nodes have one id, the directory of a known node is empty,
// the cluster is another one. Nothing of this node's data was changed.
type JoinError struct {
	Addr   string // of the node that refused, or that the refusal is about
	Reason string
}

func (e *JoinError) Error() string {
	return fmt.Sprintf("flotilla: the node at %s refuses: %s", e.Addr, e.Reason)
}

// OptionError says that a field of Options has a value it cannot have. Nothing
// was created or opened.
type OptionError struct {
	Field, Value, Reason string
}

func (e *OptionError) Error() string {
	return fmt.Sprintf("flotilla: Options.%s = %s: %s", e.Field, e.Value, e.Reason)
}
