package shard

import (
	"context"
	"encoding/binary"
	"errors"
	"time"

	"github.com/flotillakv/flotilla/multiraft/raft"
)

// Code names the type of an error on the wire. Zero is "no error". Codes are
// never reused.
type Code uint32

// The codes of version 1.
const (
	CodeOK          Code = 0
	CodeRemote      Code = 1 // text
	CodeAmbiguous   Code = 2 // shard, why, cause u8
	CodeNotLeader   Code = 3 // shard, leader, addr, term, hasDescriptor u8, [descriptor]
	CodeEpoch       Code = 4 // shard, n, descriptors
	CodeNoQuorum    Code = 5 // shard, since (Unix ns u64, 0: unknown), n, nodes
	CodeOverloaded  Code = 6 // retryAfter ns, why
	CodeCrossShard  Code = 7 // at
	CodeConflict    Code = 8 // version
	CodeLimit       Code = 9 // what, limit, got
	CodeArgument    Code = 10
	CodeUnavailable Code = 11 // node, why, cause u8
	CodePartial     Code = 12 // applied, shards, code, payload
	CodeLogBudget   Code = 13
	CodeClosed      Code = 14
	CodeNotFound    Code = 15
	CodeUnknownOp   Code = 16

	CodeSessionExpired Code = 17 // shard, known u8, deadline u64, now u64
	CodeSessionsFull   Code = 18 // shard, limit
	CodeResultGone     Code = 19 // shard, version, succeeded u8
	CodeForgot         Code = 20 // as CodeNoQuorum, then n (not zero), nodes

	CodeNoQuorumOf Code = 21 // voters (not zero), code, payload of an error without quorum
	CodeDiskFull   Code = 22 // shard, n, nodes
	CodeUnsynced   Code = 23 // shard, since u64, why
)

// errVersion is the first byte of every error payload.
const errVersion = 1

// maxErrText bounds the texts that travel with an error, in bytes.
const maxErrText = 1 << 10

// maxErrDescriptors bounds the descriptors that travel with an EpochError.
const maxErrDescriptors = 256

// EncodeError returns the wire form of err: a code and a payload. A nil err is
// CodeOK. Unknown types become CodeRemote with their text; what an error wraps
// beyond the fields of its type stays at home. Integers are uvarints and byte
// strings carry their length, behind one version byte.
func EncodeError(err error) (Code, []byte) {
	if err == nil {
		return CodeOK, nil
	}
	return encodeError(err, []byte{errVersion})
}

func encodeError(err error, p []byte) (Code, []byte) {
	var (
		ambiguous   *AmbiguousError
		partial     *PartialError
		notLeader   *NotLeaderError
		epoch       *EpochError
		noQuorum    *NoQuorumError
		overloaded  *OverloadedError
		cross       *CrossShardError
		conflict    *ConflictError
		limit       *LimitError
		argument    *ArgumentError
		unavailable *UnavailableError
		expired     *SessionExpiredError
		full        *SessionsFullError
		gone        *ResultGoneError
		diskFull    *DiskFullError
		unsynced    *UnsyncedError
	)
	switch {
	// What is unknown goes first: nothing it wraps may turn it into a definite error.
	case errors.As(err, &partial):
		p = appendUvarints(p, uint64(partial.Applied), uint64(partial.Shards))
		if nested := (*PartialError)(nil); errors.As(partial.Err, &nested) {
			return CodePartial, appendBytes(appendUvarints(p, uint64(CodeRemote)), appendText([]byte{errVersion}, partial.Err.Error()))
		}
		code, inner := EncodeError(partial.Err)
		return CodePartial, appendBytes(appendUvarints(p, uint64(code)), inner)
	case errors.As(err, &ambiguous):
		p = appendText(appendUvarints(p, uint64(ambiguous.Shard)), ambiguous.Why)
		return CodeAmbiguous, append(p, causeByte(ambiguous.Cause))
	case errors.Is(err, ErrAmbiguous):
		return CodeAmbiguous, append(appendText(appendUvarints(p, 0), ""), causeByte(err))
	case errors.As(err, &notLeader):
		p = appendUvarints(p, uint64(notLeader.Shard), uint64(notLeader.Leader))
		p = appendUvarints(appendText(p, notLeader.Addr), uint64(notLeader.Term))
		if notLeader.Descriptor == nil {
			return CodeNotLeader, append(p, 0)
		}
		return CodeNotLeader, appendDescriptor(append(p, 1), notLeader.Descriptor)
	case errors.As(err, &epoch):
		ds := epoch.Descriptors[:min(len(epoch.Descriptors), maxErrDescriptors)]
		p = appendUvarints(p, uint64(epoch.Shard), uint64(len(ds)))
		for i := range ds {
			p = appendDescriptor(p, &ds[i])
		}
		return CodeEpoch, p
	case errors.As(err, &noQuorum) && noQuorum.Voters > 0:
		plain := *noQuorum
		plain.Voters = 0
		code, inner := EncodeError(&plain)
		return CodeNoQuorumOf, appendBytes(appendUvarints(p, uint64(noQuorum.Voters), uint64(code)), inner)
	case errors.As(err, &noQuorum):
		var since uint64
		if !noQuorum.Since.IsZero() {
			since = uint64(noQuorum.Since.UnixNano())
		}
		p = appendUvarints(p, uint64(noQuorum.Shard), since, uint64(len(noQuorum.Down)))
		for _, n := range noQuorum.Down {
			p = appendUvarints(p, uint64(n))
		}
		if len(noQuorum.Forgot) == 0 {
			return CodeNoQuorum, p
		}
		p = appendUvarints(p, uint64(len(noQuorum.Forgot)))
		for _, n := range noQuorum.Forgot {
			p = appendUvarints(p, uint64(n))
		}
		return CodeForgot, p
	case errors.As(err, &overloaded):
		return CodeOverloaded, appendText(appendUvarints(p, uint64(max(overloaded.RetryAfter, 0))), overloaded.Why)
	case errors.As(err, &cross):
		return CodeCrossShard, appendBytes(p, cross.At)
	case errors.As(err, &conflict):
		return CodeConflict, conflict.Have.Append(p)
	case errors.As(err, &limit):
		return CodeLimit, appendUvarints(appendText(p, limit.What), clampInt(limit.Limit), clampInt(limit.Got))
	case errors.As(err, &argument):
		return CodeArgument, appendText(appendText(p, argument.Field), argument.Reason)
	case errors.As(err, &unavailable):
		why := unavailable.Why
		if why == "" && unavailable.Cause != nil {
			why = unavailable.Cause.Error()
		}
		return CodeUnavailable, append(appendText(appendUvarints(p, uint64(unavailable.Node)), why), causeByte(unavailable.Cause))
	case errors.As(err, &expired):
		p = append(appendUvarints(p, uint64(expired.Shard)), boolByte(expired.Known))
		p = binary.BigEndian.AppendUint64(p, uint64(expired.Deadline.UnixNano()))
		return CodeSessionExpired, binary.BigEndian.AppendUint64(p, uint64(expired.Now.UnixNano()))
	case errors.As(err, &full):
		return CodeSessionsFull, appendUvarints(p, uint64(full.Shard), clampInt(full.Limit))
	case errors.As(err, &gone):
		p = gone.Version.Append(appendUvarints(p, uint64(gone.Shard)))
		return CodeResultGone, append(p, boolByte(gone.Succeeded))
	case errors.As(err, &diskFull):
		p = appendUvarints(p, uint64(diskFull.Shard), uint64(len(diskFull.Nodes)))
		for _, n := range diskFull.Nodes {
			p = appendUvarints(p, uint64(n))
		}
		return CodeDiskFull, p
	case errors.Is(err, ErrDiskFull):
		return CodeDiskFull, appendUvarints(p, 0, 0)
	case errors.As(err, &unsynced):
		p = binary.BigEndian.AppendUint64(appendUvarints(p, uint64(unsynced.Shard)), uint64(unsynced.Since.UnixNano()))
		return CodeUnsynced, appendText(p, unsynced.Why)
	case errors.Is(err, ErrLogBudget):
		return CodeLogBudget, p
	case errors.Is(err, ErrClosed):
		return CodeClosed, p
	case errors.Is(err, ErrNotFound):
		return CodeNotFound, p
	case errors.Is(err, ErrUnknownOp):
		return CodeUnknownOp, p
	}
	return CodeRemote, appendText(p, err.Error())
}

// DecodeError returns the error that EncodeError encoded: nil for CodeOK, else
// an error of the same type with the same fields. A code of a newer version or
// a payload that does not decode becomes a *RemoteError, whose outcome is
// MaybeApplied. The result does not alias payload.
func DecodeError(code Code, payload []byte) error {
	if code == CodeOK {
		return nil
	}
	r := reader{b: payload}
	if r.byte() != errVersion {
		return &RemoteError{Text: "flotilla: the other node answered with an error of an unknown version"}
	}
	err := r.error(code)
	if err == nil || !r.done() {
		return &RemoteError{Text: "flotilla: the other node answered with an error that does not decode"}
	}
	return err
}

func (r *reader) error(code Code) error {
	switch code {
	case CodeRemote:
		return &RemoteError{Text: r.text()}
	case CodeAmbiguous:
		return &AmbiguousError{Shard: raft.ShardID(r.uvarint()), Why: r.text(), Cause: r.cause()}
	case CodeNotLeader:
		e := &NotLeaderError{Shard: raft.ShardID(r.uvarint()), Leader: r.node(), Addr: r.text(), Term: raft.Term(r.uvarint())}
		if r.bool() {
			d := r.descriptor()
			e.Descriptor = &d
		}
		return e
	case CodeEpoch:
		e := &EpochError{Shard: raft.ShardID(r.uvarint())}
		n := r.uvarint()
		if n > maxErrDescriptors {
			return nil
		}
		for range n {
			e.Descriptors = append(e.Descriptors, r.descriptor())
			if r.bad {
				return nil
			}
		}
		return e
	case CodeNoQuorum, CodeForgot:
		e := &NoQuorumError{Shard: raft.ShardID(r.uvarint())}
		if since := r.uvarint(); since != 0 {
			e.Since = time.Unix(0, int64(since)).UTC()
		}
		n := r.uvarint()
		if n > uint64(len(r.b)) {
			return nil
		}
		for range n {
			e.Down = append(e.Down, r.node())
		}
		if code == CodeNoQuorum {
			return e
		}
		if n = r.uvarint(); n == 0 || n > uint64(len(r.b)) {
			return nil
		}
		for range n {
			e.Forgot = append(e.Forgot, r.node())
		}
		return e
	case CodeNoQuorumOf:
		voters, code := r.uvarint(), Code(r.uvarint())
		inner := r.bytes()
		if r.bad || voters == 0 || voters > maxErrDescriptors || code == CodeNoQuorumOf {
			return nil
		}
		e, ok := DecodeError(code, inner).(*NoQuorumError)
		if !ok {
			return nil
		}
		e.Voters = int(voters)
		return e
	case CodeOverloaded:
		return &OverloadedError{RetryAfter: time.Duration(r.uvarint() &^ (1 << 63)), Why: r.text()}
	case CodeCrossShard:
		return &CrossShardError{At: append([]byte(nil), r.bytes()...)}
	case CodeConflict:
		return &ConflictError{Have: r.version()}
	case CodeLimit:
		return &LimitError{What: r.text(), Limit: r.int(), Got: r.int()}
	case CodeArgument:
		return &ArgumentError{Field: r.text(), Reason: r.text()}
	case CodeUnavailable:
		return &UnavailableError{Node: r.node(), Why: r.text(), Cause: r.cause()}
	case CodePartial:
		e := &PartialError{Applied: r.int(), Shards: r.int()}
		inner, payload := Code(r.int()), r.bytes()
		if r.bad || inner == CodePartial {
			return nil
		}
		e.Err = DecodeError(inner, payload)
		return e
	case CodeSessionExpired:
		return &SessionExpiredError{Shard: raft.ShardID(r.uvarint()), Known: r.bool(), Deadline: r.time(), Now: r.time()}
	case CodeSessionsFull:
		return &SessionsFullError{Shard: raft.ShardID(r.uvarint()), Limit: r.int()}
	case CodeResultGone:
		return &ResultGoneError{Shard: raft.ShardID(r.uvarint()), Version: r.version(), Succeeded: r.bool()}
	case CodeDiskFull:
		e := &DiskFullError{Shard: raft.ShardID(r.uvarint())}
		n := r.uvarint()
		if n > uint64(len(r.b)) {
			return nil
		}
		for range n {
			e.Nodes = append(e.Nodes, r.node())
		}
		return e
	case CodeUnsynced:
		return &UnsyncedError{Shard: raft.ShardID(r.uvarint()), Since: r.time(), Why: r.text()}
	case CodeLogBudget:
		return ErrLogBudget
	case CodeClosed:
		return ErrClosed
	case CodeNotFound:
		return ErrNotFound
	case CodeUnknownOp:
		return ErrUnknownOp
	}
	return nil
}

func (r *reader) text() string {
	b := r.bytes()
	if len(b) > maxErrText {
		r.fail()
		return ""
	}
	return string(b)
}

func (r *reader) node() raft.NodeID {
	n := r.uvarint()
	if n > 1<<32-1 {
		r.fail()
	}
	return raft.NodeID(n)
}

func (r *reader) time() time.Time {
	v := r.u64()
	return time.Unix(0, int64(v)).UTC()
}

func (r *reader) cause() error {
	switch r.byte() {
	case 0:
		return nil
	case 1:
		return context.DeadlineExceeded
	case 2:
		return context.Canceled
	}
	r.fail()
	return nil
}

func (r *reader) descriptor() Descriptor {
	b := r.bytes()
	if r.bad {
		return Descriptor{}
	}
	d, err := raft.DecodeDescriptor(b)
	if err != nil {
		r.fail()
		return Descriptor{}
	}
	return d.Clone()
}

func causeByte(err error) byte {
	switch contextCause(err) {
	case context.DeadlineExceeded:
		return 1
	case context.Canceled:
		return 2
	}
	return 0
}

func appendDescriptor(p []byte, d *Descriptor) []byte { return appendBytes(p, d.Encode(nil)) }

func appendText(p []byte, s string) []byte {
	s = s[:min(len(s), maxErrText)]
	return append(binary.AppendUvarint(p, uint64(len(s))), s...)
}

func appendUvarints(p []byte, vs ...uint64) []byte {
	for _, v := range vs {
		p = binary.AppendUvarint(p, v)
	}
	return p
}

func clampInt(v int) uint64 { return uint64(min(max(v, 0), 1<<31-1)) }
