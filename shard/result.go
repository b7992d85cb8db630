package shard

import (
	"encoding/binary"
	"errors"
	"time"
)

// Status tells how the evaluation of a committed command ended. Everything but
// StatusOK is a rejection: deterministic, without effect on any key, and the
// applied index advances all the same.
type Status uint8

// The statuses of a command.
const (
	// StatusOK: applied.
	StatusOK Status = 0
	// StatusConflict: the key of a CAS has another version (Have).
	StatusConflict Status = 1
	// StatusEpoch: a key lies outside the shard, whose bounds changed since the
	// proposer read its descriptor.
	StatusEpoch Status = 2
	// StatusRange: a key lies outside the shard by the proposer's own descriptor.
	StatusRange Status = 3
	// StatusMalformed: the body does not decode (Text).
	StatusMalformed Status = 4
	// StatusLimit: evaluating would exceed a limit (Text, Limit, Got).
	StatusLimit Status = 5
	// StatusReplay: an earlier try of the session's command was executed, with
	// the result that follows.
	StatusReplay Status = 6
	// StatusExpired: the session's command came after its deadline.
	StatusExpired Status = 7
	// StatusSessionsFull: the shard takes no new session.
	StatusSessionsFull Status = 8
	// StatusSettled: the session had settled the command before; it was not executed now.
	StatusSettled Status = 9
)

// ErrBadResult says that the encoded result of a command does not decode.
var ErrBadResult = errors.New("shard: the result of a command does not decode; nodes of different versions run in one cluster")

// Layout of a command's result (version 1). A plain success is empty: the
// proposer knows the entry's index and the command's slot, which are the receipt.
//
//	ver u8, status u8, then by status:
//	ok         a transaction: succeeded u8, nGets uvarint, per get: found u8, [version, valueLen, value]
//	conflict   version
//	epoch, range   applied descriptor version uvarint
//	malformed  textLen, text
//	limit      whatLen, what, limit uvarint, got uvarint
//	replay     version of the execution, cut u8, the result it had (or, if cut,
//	           its short form), which is no replay itself
//	expired    known u8, deadline u64, group time u64
//	sessions full   limit uvarint
//	settled    nothing
const resultVersion = 1

// Result is the decoded result of one command.
type Result struct {
	Status Status
	// Receipt is the Version of the keys the command wrote.
	Receipt Receipt
	// Have is the version found by a CAS in conflict.
	Have Version
	// DescVersion is the descriptor version applied at the replica, of StatusEpoch and StatusRange.
	DescVersion uint64
	// Text names the field of StatusMalformed, the limit of StatusLimit.
	Text       string
	Limit, Got int
	// Txn is set for an applied OpTxn.
	Txn *TxnResult

	// Cut says that the result of an earlier execution was too large to keep: the
	// values that a transaction read are missing.
	Cut bool
	// Known, Deadline and Now are of StatusExpired.
	Known         bool
	Deadline, Now uint64
}

// Append appends the encoded result to dst. The receipt is not encoded.
func (r *Result) Append(dst []byte) []byte {
	if r.Status == StatusOK && r.Txn == nil {
		return dst
	}
	dst = append(dst, resultVersion, byte(r.Status))
	switch r.Status {
	case StatusOK:
		dst = r.Txn.append(dst)
	case StatusConflict:
		dst = r.Have.Append(dst)
	case StatusEpoch, StatusRange:
		dst = binary.AppendUvarint(dst, r.DescVersion)
	case StatusMalformed:
		dst = appendBytes(dst, []byte(r.Text))
	case StatusLimit:
		dst = appendBytes(dst, []byte(r.Text))
		dst = binary.AppendUvarint(dst, uint64(r.Limit))
		dst = binary.AppendUvarint(dst, uint64(r.Got))
	case StatusExpired:
		dst = append(dst, boolByte(r.Known))
		dst = binary.BigEndian.AppendUint64(dst, r.Deadline)
		dst = binary.BigEndian.AppendUint64(dst, r.Now)
	case StatusSessionsFull:
		dst = binary.AppendUvarint(dst, uint64(r.Limit))
	}
	return dst
}

// AppendReplay appends the result of a command of a session that was executed
// before, at the given position, with the given encoded result.
func AppendReplay(dst []byte, at Version, cut bool, result []byte) []byte {
	dst = at.Append(append(dst, resultVersion, byte(StatusReplay)))
	return append(append(dst, boolByte(cut)), result...)
}

// AppendShort appends the short form of the result: what is kept of it when the
// whole is too large. It has at most 32 bytes.
func (r *Result) AppendShort(dst []byte) []byte {
	s := *r
	if s.Txn != nil {
		s.Txn = &TxnResult{Succeeded: s.Txn.Succeeded}
	}
	s.Text = ""
	return s.Append(dst)
}

func (t *TxnResult) append(dst []byte) []byte {
	dst = binary.AppendUvarint(append(dst, boolByte(t.Succeeded)), uint64(len(t.Gets)))
	for _, g := range t.Gets {
		dst = append(dst, boolByte(g.Found))
		if g.Found {
			dst = appendBytes(g.Value.Version.Append(dst), g.Value.Bytes)
		}
	}
	return dst
}

// DecodeResult decodes a result of the command at the given position of its
// shard's log. Values of a transaction alias b. Its only error is ErrBadResult.
func DecodeResult(b []byte, at Version) (Result, error) {
	out := Result{Receipt: Receipt{at}}
	if len(b) == 0 {
		return out, nil
	}
	r := reader{b: b}
	if r.byte() != resultVersion {
		return Result{}, ErrBadResult
	}
	out.Status = Status(r.byte())
	if out.Status == StatusReplay {
		at, cut := r.version(), r.bool()
		if r.bad || len(r.b) > 1 && r.b[1] == byte(StatusReplay) {
			return Result{}, ErrBadResult
		}
		out, err := DecodeResult(r.b, at)
		out.Cut = cut
		return out, err
	}
	switch out.Status {
	case StatusOK:
		out.Txn = r.txnResult()
		if out.Txn != nil {
			out.Txn.Receipt = out.Receipt
		}
	case StatusConflict:
		out.Have = r.version()
	case StatusEpoch, StatusRange:
		out.DescVersion = r.uvarint()
	case StatusMalformed:
		out.Text = string(r.bytes())
	case StatusLimit:
		out.Text, out.Limit, out.Got = string(r.bytes()), r.int(), r.int()
	case StatusExpired:
		out.Known, out.Deadline, out.Now = r.bool(), r.u64(), r.u64()
	case StatusSessionsFull:
		out.Limit = r.int()
	case StatusSettled:
	default:
		r.fail()
	}
	if !r.done() {
		return Result{}, ErrBadResult
	}
	return out, nil
}

func (r *reader) txnResult() *TxnResult {
	t := &TxnResult{Succeeded: r.bool()}
	n := r.uvarint()
	if n > MaxTxnGets || n > uint64(len(r.b)) {
		r.fail()
		return nil
	}
	if n > 0 {
		t.Gets = make([]TxnGet, n)
	}
	for i := range t.Gets {
		g := &t.Gets[i]
		if g.Found = r.bool(); g.Found {
			g.Value = Value{Version: r.version(), Bytes: r.bytes()}
		}
	}
	if r.bad {
		return nil
	}
	return t
}

// Err returns nil for StatusOK, else the typed error of the rejection. d is the
// proposer's newest descriptor of the shard; it rides in the error of a command
// that missed the shard's range. All of these errors mean: not applied, but for
// *ResultGoneError, which see.
func (r *Result) Err(d *Descriptor) error {
	switch r.Status {
	case StatusOK:
		if r.Cut {
			return &ResultGoneError{Shard: d.Shard, Version: r.Receipt.Version, Succeeded: r.Txn != nil && r.Txn.Succeeded}
		}
		return nil
	case StatusExpired:
		return &SessionExpiredError{Shard: d.Shard, Known: r.Known, Deadline: time.Unix(0, int64(r.Deadline)).UTC(), Now: time.Unix(0, int64(r.Now)).UTC()}
	case StatusSessionsFull:
		return &SessionsFullError{Shard: d.Shard, Limit: r.Limit}
	case StatusSettled:
		return &ResultGoneError{Shard: d.Shard}
	case StatusConflict:
		return &ConflictError{Have: r.Have}
	case StatusEpoch, StatusRange:
		return epochErrorOf(d)
	case StatusMalformed:
		return &ArgumentError{Field: "command body", Reason: r.Text}
	case StatusLimit:
		return &LimitError{What: r.Text, Limit: r.Limit, Got: r.Got}
	}
	return ErrBadResult
}

// Rejection returns the result that reports err, an error of this package's
// decoders, as a deterministic rejection.
func Rejection(err error) Result {
	var limit *LimitError
	if errors.As(err, &limit) {
		return Result{Status: StatusLimit, Text: limit.What, Limit: limit.Limit, Got: limit.Got}
	}
	var arg *ArgumentError
	if errors.As(err, &arg) {
		return Result{Status: StatusMalformed, Text: arg.Field + ": " + arg.Reason}
	}
	return Result{Status: StatusMalformed, Text: "it cannot be evaluated"}
}

func (r *reader) u64() uint64 {
	if len(r.b) < 8 {
		r.fail()
		return 0
	}
	v := binary.BigEndian.Uint64(r.b)
	r.b = r.b[8:]
	return v
}

func (r *reader) bool() bool {
	v := r.byte()
	if v > 1 {
		r.fail()
	}
	return v == 1
}

// int reads a uvarint that fits 31 bits.
func (r *reader) int() int {
	v := r.uvarint()
	if v > 1<<31-1 {
		r.fail()
		return 0
	}
	return int(v)
}

func boolByte(b bool) byte {
	if b {
		return 1
	}
	return 0
}
