package shard

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/flotillakv/flotilla/multiraft/raft"
)

// Sentinels. Branch with errors.Is.
var (
	// ErrAmbiguous says that a write was handed to its shard and its fate is
	// unknown: it may have been applied, may be applied later, or never.
	// AmbiguousError carries what is known.
	ErrAmbiguous = errors.New("flotilla: the outcome of the write is unknown: it may or may not have been applied; read the key before trying again")
	// ErrLogBudget says that the logs of the leader's node may not grow now: they have
	// reached the limit that was set for them. The write was not applied.
	ErrLogBudget = errors.New("flotilla: the logs of the node have used up their disk budget (Limits.Log); the write was not applied; try again in a moment, and if it lasts, raise the limit or look at what keeps the logs from being cut: flotilla cluster status")
	// ErrDiskFull says that the disks of a shard's nodes have no room for what the
	// write would add. DiskFullError carries what is known. The write was not applied.
	ErrDiskFull = errors.New("flotilla: no space is left for new data")
	// ErrSessionExpired says that a write of a session came to its shard after its
	// deadline. SessionExpiredError carries what is known.
	ErrSessionExpired = errors.New("flotilla: the time within which the session may try this write again is over")
	// ErrClosed says that the store, node or client was closed before the
	// request was handed on. Nothing was applied.
	ErrClosed = errors.New("flotilla: it is closed; the request was not started; open it again first")
	// ErrNotFound says that the key, shard or node asked for does not exist.
	ErrNotFound = errors.New("flotilla: not found")
	// ErrUnknownOp says that the log holds a command this version does not know.
	// The replica stops applying; upgrade this node.
	ErrUnknownOp = errors.New("flotilla: the log holds a command that this version does not know; upgrade this node")
)

// Outcome tells what became of a write.
type Outcome int

// The outcomes of a write.
const (
	// NotApplied: the write has not been applied and never will be.
	NotApplied Outcome = iota
	// MaybeApplied: unknown, see ErrAmbiguous; also a write that was applied in part.
	MaybeApplied
	// Applied: the write was applied and is durable on a quorum.
	Applied
)

// String returns the outcome in words.
func (o Outcome) String() string {
	switch o {
	case NotApplied:
		return "not applied"
	case MaybeApplied:
		return "maybe applied"
	case Applied:
		return "applied"
	}
	return "outcome " + strconv.Itoa(int(o))
}

// definite is implemented by the typed errors that are returned only when
// nothing was applied.
type definite interface{ notApplied() }

// OutcomeOf tells what err says about the write that returned it: nil is
// Applied; the typed errors of this package are NotApplied, except for
// ErrAmbiguous and PartialError; anything else, a bare context error included,
// is MaybeApplied, because nothing proves otherwise.
func OutcomeOf(err error) Outcome {
	if err == nil {
		return Applied
	}
	var partial *PartialError
	if errors.Is(err, ErrAmbiguous) || errors.As(err, &partial) {
		return MaybeApplied
	}
	var gone *ResultGoneError
	if errors.As(err, &gone) {
		return gone.outcome()
	}
	var d definite
	if errors.As(err, &d) || errors.Is(err, ErrLogBudget) || errors.Is(err, ErrDiskFull) || errors.Is(err, ErrClosed) || errors.Is(err, ErrNotFound) {
		return NotApplied
	}
	return MaybeApplied
}

// AmbiguousError is ErrAmbiguous with what is known. It unwraps to ErrAmbiguous
// and, if the caller's context ended, to the context's error; never to an error
// that a caller would take as leave to try again.
type AmbiguousError struct {
	Shard raft.ShardID // zero: unknown
	// Why says in a few words what ended the wait.
	Why string
	// Cause is context.DeadlineExceeded, context.Canceled or nil.
	Cause error
	// Session and Seq name a write of a session: its number among those of the
	// session to the shard. Zero: it is of none. They do not travel.
	Session [16]byte
	Seq     uint64
}

// Error says what is unknown and what to do.
func (e *AmbiguousError) Error() string {
	why := e.Why
	if why == "" {
		why = "no answer came"
	}
	if e.Seq != 0 {
		return fmt.Sprintf("flotilla: the outcome of write %d of session %x%s is unknown (%s): it may or may not have been applied, once at most; when a later write of the session to the same shard succeeds, this one is settled; read the key then", e.Seq, e.Session, inShard(e.Shard), why)
	}
	return fmt.Sprintf("flotilla: the outcome of the write%s is unknown (%s): it may or may not have been applied; read the key before trying again", inShard(e.Shard), why)
}

// Is reports whether target is ErrAmbiguous.
func (e *AmbiguousError) Is(target error) bool { return target == ErrAmbiguous }

// Unwrap returns the context's error, if that ended the wait.
func (e *AmbiguousError) Unwrap() error { return contextCause(e.Cause) }

// NotLeaderError says that the asked replica does not lead the shard. Nothing
// was applied. Ask Leader, or any other replica of Descriptor.
type NotLeaderError struct {
	Shard raft.ShardID
	// Leader is the node believed to lead in Term; zero: unknown.
	Leader raft.NodeID
	// Addr is the leader's client address, if the answering node knows it.
	Addr string
	Term raft.Term
	// Descriptor is the shard's descriptor as the answering node knows it, or nil.
	Descriptor *Descriptor
}

// Error names the shard and the leader.
func (e *NotLeaderError) Error() string {
	if e.Leader == 0 {
		return fmt.Sprintf("flotilla: shard %d has no known leader at the asked node (term %d); nothing was applied; try again shortly", e.Shard, e.Term)
	}
	return fmt.Sprintf("flotilla: the asked node does not lead shard %d, node %d does (term %d); nothing was applied; ask that node", e.Shard, e.Leader, e.Term)
}

func (e *NotLeaderError) notApplied() {}

// EpochError says that the request was routed by an outdated descriptor, or
// that the asked node does not hold the shard. Nothing was applied. Descriptors
// holds what the answering node knows instead; it may be empty.
type EpochError struct {
	Shard       raft.ShardID
	Descriptors []Descriptor
}

// Error names the shard and the descriptor that is in force.
func (e *EpochError) Error() string {
	if len(e.Descriptors) == 0 {
		return fmt.Sprintf("flotilla: the asked node holds no replica of shard %d; nothing was applied; look the key up again", e.Shard)
	}
	d := &e.Descriptors[0]
	return fmt.Sprintf("flotilla: the keys asked for are not those of shard %d, which holds [%s, %s) of keyspace %d at version %d; nothing was applied; look the key up again",
		d.Shard, quoteKey(d.Start), quoteEnd(d.End), d.Keyspace, d.Version)
}

func (e *EpochError) notApplied() {}

// NoQuorumError says that so many replicas of the shard are down that nothing
// can be decided. Nothing was applied. The shard recovers by itself.
type NoQuorumError struct {
	Shard raft.ShardID
	// Down are the nodes believed to be down, ascending.
	Down []raft.NodeID
	// Forgot are the nodes whose replicas have forgotten what they promised (their
	// stores are older than they were), ascending. They count for nothing and do
	// not come back: with a majority of them the shard halts for good.
	Forgot []raft.NodeID
	// Since is when the quorum was lost, by the answering node's clock.
	Since time.Time
	// Voters is how many voters the shard has; zero: not known.
	Voters int
}

// Error names the shard, the nodes that are down and since when.
func (e *NoQuorumError) Error() string {
	var b strings.Builder
	fmt.Fprintf(&b, "flotilla: shard %d has no quorum", e.Shard)
	if e.Voters > 0 {
		fmt.Fprintf(&b, ": %d of %d reachable", max(0, e.Voters-len(e.Down)-len(e.Forgot)), e.Voters)
	}
	if !e.Since.IsZero() {
		fmt.Fprintf(&b, " since %s", e.Since.UTC().Format(time.RFC3339))
	}
	for i, n := range e.Down {
		if i == 0 {
			b.WriteString(", down: node")
		} else {
			b.WriteByte(',')
		}
		fmt.Fprintf(&b, " %d", n)
	}
	for i, n := range e.Forgot {
		if i == 0 {
			b.WriteString(", has forgotten what it promised: node")
		} else {
			b.WriteByte(',')
		}
		fmt.Fprintf(&b, " %d", n)
	}
	if len(e.Forgot) > 0 {
		b.WriteString("; nothing was applied; what has forgotten does not come back, the shard goes on if a majority of its nodes is up without it")
		return b.String()
	}
	b.WriteString("; nothing was applied; it recovers by itself once a majority of its nodes is up")
	return b.String()
}

func (e *NoQuorumError) notApplied() {}

// OverloadedError says that the request was refused to protect the node.
// Nothing was applied. Try again after RetryAfter.
type OverloadedError struct {
	RetryAfter time.Duration
	// Why names the queue or budget that is full.
	Why string
}

// Error says what is full and when to try again.
func (e *OverloadedError) Error() string {
	why := e.Why
	if why == "" {
		why = "too many requests at once"
	}
	return fmt.Sprintf("flotilla: overloaded (%s); nothing was applied; try again in %s", why, e.RetryAfter)
}

func (e *OverloadedError) notApplied() {}

// UnsyncedError says why the logs of the leader's node may not grow: the state machine of a
// shard, which keeps its state outside of the store, has not made it durable, so the log of
// that shard cannot be cut. Nothing was applied. It is ErrLogBudget.
type UnsyncedError struct {
	Shard raft.ShardID // whose machine it is
	Since time.Time    // when it failed first
	Why   string       // what the machine said last
}

// Error says what to look at.
func (e *UnsyncedError) Error() string {
	return fmt.Sprintf("flotilla: the logs of the node have used up their disk budget (Limits.Log), since the state machine of shard %d has not made its state durable after %s (%s), so that the shard's log cannot be cut; the write was not applied; writes go on when it has",
		e.Shard, e.Since.UTC().Format(time.RFC3339Nano), e.Why)
}

// Is reports whether target is ErrLogBudget.
func (e *UnsyncedError) Is(target error) bool { return target == ErrLogBudget }

// DiskFullError says that a write that adds data was refused, because the disk of
// the shard's leader is full, or so many other ones are that no majority could
// take it. Nothing was applied. Reads, deletes and administration go on; so do
// writes, by themselves, when there is space again. It is ErrDiskFull.
type DiskFullError struct {
	Shard raft.ShardID
	// Nodes are those whose disks are full, ascending.
	Nodes []raft.NodeID
}

// Error names the nodes and says what to do.
func (e *DiskFullError) Error() string {
	var b strings.Builder
	fmt.Fprintf(&b, "flotilla: no space is left for new data%s", inShard(e.Shard))
	for i, n := range e.Nodes {
		if i == 0 {
			b.WriteString(": full is the disk of node")
		} else {
			b.WriteByte(',')
		}
		fmt.Fprintf(&b, " %d", n)
	}
	b.WriteString("; nothing was applied; delete data, make space on the disk or raise its limit; writes go on by themselves then, reads and deletes do now")
	return b.String()
}

// Is reports whether target is ErrDiskFull.
func (e *DiskFullError) Is(target error) bool { return target == ErrDiskFull }

func (e *DiskFullError) notApplied() {}

// CrossShardError says that a batch, transaction or range has keys on both
// sides of a shard boundary. Nothing was applied.
type CrossShardError struct {
	// At is the boundary: the first key of the right-hand shard.
	At []byte
}

// Error names the boundary.
func (e *CrossShardError) Error() string {
	return fmt.Sprintf("flotilla: the operation crosses the shard boundary at key %s; nothing was applied; keep its keys on one side, or ask for a non-atomic write", quoteKey(e.At))
}

func (e *CrossShardError) notApplied() {}

// ConflictError says that a compare-and-swap found another version. Nothing was applied.
type ConflictError struct {
	// Have is the key's version; zero: the key is absent.
	Have Version
}

// Error names the version found.
func (e *ConflictError) Error() string {
	if e.Have.IsZero() {
		return "flotilla: the key is absent, so it does not have the wanted version; nothing was applied; read it again"
	}
	return fmt.Sprintf("flotilla: the key has version %d.%d.%d, not the wanted one; nothing was applied; read it again", e.Have.Lineage, e.Have.Index, e.Have.Slot)
}

func (e *ConflictError) notApplied() {}

// LimitError says that something is larger than allowed. Nothing was applied.
type LimitError struct {
	What       string // what is limited, with its unit: "bytes of a key"
	Limit, Got int
}

// Error names the limit and the value that was given.
func (e *LimitError) Error() string {
	return fmt.Sprintf("flotilla: %s are limited to %d, and %d were given; nothing was applied; make it smaller", e.What, e.Limit, e.Got)
}

func (e *LimitError) notApplied() {}

// ArgumentError says that an argument cannot be right. Nothing was applied.
type ArgumentError struct {
	Field  string
	Reason string
}

// Error names the argument and the reason.
func (e *ArgumentError) Error() string {
	return fmt.Sprintf("flotilla: invalid %s: %s; nothing was applied", e.Field, e.Reason)
}

func (e *ArgumentError) notApplied() {}

// UnavailableError says that the request reached no replica that could serve it,
// or that its time ended before it was handed to the shard. Nothing was applied.
type UnavailableError struct {
	Node raft.NodeID // the node that could not be reached; zero: none in particular
	// Why says in a few words what happened.
	Why string
	// Cause is context.DeadlineExceeded, context.Canceled, or an error of the
	// local node that is not carried over the wire; nil: none.
	Cause error
}

// Error says what could not be reached and why.
func (e *UnavailableError) Error() string {
	where := ""
	if e.Node != 0 {
		where = fmt.Sprintf(" at node %d", e.Node)
	}
	why := e.Why
	if why == "" && e.Cause != nil {
		why = e.Cause.Error()
	}
	if why == "" {
		why = "no replica could be reached"
	}
	return fmt.Sprintf("flotilla: the request could not be served%s (%s); nothing was applied; try again", where, why)
}

// Unwrap returns the cause.
func (e *UnavailableError) Unwrap() error { return e.Cause }

func (e *UnavailableError) notApplied() {}

// SessionExpiredError says that a write of a session reached its shard after the
// deadline that its first try set. This try was not applied, and no later one
// will be. It is ErrSessionExpired.
type SessionExpiredError struct {
	Shard raft.ShardID
	// Known says that no earlier try of the write was applied either. If it is
	// false and there was an earlier try whose outcome is unknown, that outcome
	// cannot be told any more.
	Known bool
	// Deadline and Now are the write's deadline and the shard's time. If they are
	// far apart, compare the clock of the client's machine with the cluster's.
	Deadline, Now time.Time
}

// Error names both times.
func (e *SessionExpiredError) Error() string {
	return fmt.Sprintf("flotilla: the session's write%s is expired (its time ended at %s, the shard's clock says %s); this try was not applied; write again in a new call, and if this came at once, compare the clocks",
		inShard(e.Shard), e.Deadline.UTC().Format(time.RFC3339Nano), e.Now.UTC().Format(time.RFC3339Nano))
}

// Is reports whether target is ErrSessionExpired.
func (e *SessionExpiredError) Is(target error) bool { return target == ErrSessionExpired }

func (e *SessionExpiredError) notApplied() {}

// SessionsFullError says that a shard remembers as many sessions as it may, and
// this is a new one. Nothing was applied. Sessions that are in use are never
// forgotten to make room; a place becomes free when the last write of some
// session is older than its time to live.
type SessionsFullError struct {
	Shard raft.ShardID
	Limit int
}

// Error names the limit.
func (e *SessionsFullError) Error() string {
	return fmt.Sprintf("flotilla: the shard%s remembers %d sessions already and takes no new one; nothing was applied; try again when sessions have ended, share sessions between callers, or give them a shorter time to live", inShard(e.Shard), e.Limit)
}

func (e *SessionsFullError) notApplied() {}

// ResultGoneError says that a write of a session took effect by an earlier try,
// once, and that (a part of) its result is no longer kept: it was too large, or
// the session had said that nobody waits for it.
type ResultGoneError struct {
	Shard raft.ShardID
	// Version is where it was applied. Zero: unknown; the write is settled, and
	// whether it took effect was answered, or could not be, to an earlier try.
	Version Version
	// Succeeded tells, of a transaction with a Version, which branch was applied.
	// What its gets read is lost.
	Succeeded bool
}

// Error says what is known.
func (e *ResultGoneError) Error() string {
	if e.Version.IsZero() {
		return fmt.Sprintf("flotilla: the session's write%s was settled before and is not applied again; its result is no longer kept; read the keys", inShard(e.Shard))
	}
	return fmt.Sprintf("flotilla: the session's write%s was applied, once, as %d.%d.%d; its result is no longer kept, because it is too large; read the keys", inShard(e.Shard), e.Version.Lineage, e.Version.Index, e.Version.Slot)
}

func (e *ResultGoneError) outcome() Outcome {
	if e.Version.IsZero() {
		return MaybeApplied
	}
	return Applied
}

// PartialError says that a write over several shards, for which atomicity was
// waived, was applied on some of them only.
type PartialError struct {
	Applied, Shards int   // how many shards applied their part, of how many
	Err             error // of the first part that was not, or may not have been, applied
}

// Error counts the parts and quotes the first failure.
func (e *PartialError) Error() string {
	return fmt.Sprintf("flotilla: %d of %d shards applied their part of the write; the first other says: %v", e.Applied, e.Shards, e.Err)
}

// Unwrap returns the error of the first part that was not applied.
func (e *PartialError) Unwrap() error { return e.Err }

// RemoteError is an error of another node that has no type here.
type RemoteError struct{ Text string }

// Error returns the other node's text.
func (e *RemoteError) Error() string { return e.Text }

func contextCause(err error) error {
	switch {
	case errors.Is(err, context.DeadlineExceeded):
		return context.DeadlineExceeded
	case errors.Is(err, context.Canceled):
		return context.Canceled
	}
	return nil
}

func inShard(s raft.ShardID) string {
	if s == 0 {
		return ""
	}
	return fmt.Sprintf(" in shard %d", s)
}

// quoteKey quotes a key for a message, cut after 64 bytes.
func quoteKey(k []byte) string {
	if len(k) > 64 {
		return strconv.Quote(string(k[:64])) + "..."
	}
	return strconv.Quote(string(k))
}

func quoteEnd(k []byte) string {
	if len(k) == 0 {
		return "end"
	}
	return quoteKey(k)
}
