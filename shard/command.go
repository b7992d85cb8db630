package shard

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"iter"

	"github.com/flotillakv/flotilla/multiraft/raft"
	"github.com/flotillakv/flotilla/multiraft/session"
)

// Op codes of replicated commands. Codes below 128 belong to the built-in
// key-value machine and to administration; they are never reused.
const (
	// OpPut stores a value under a key, whatever was there.
	//	keyLen uvarint, key, value...
	OpPut raft.Op = 1
	// OpDelete removes a key; an absent key is no error.
	//	keyLen uvarint, key
	OpDelete raft.Op = 2
	// OpDeleteRange removes the keys [start, end); an empty end is the end of the keyspace.
	//	startLen uvarint, start, endLen uvarint, end
	OpDeleteRange raft.Op = 3
	// OpCAS stores a value if the key's version is the wanted one (zero: absent).
	//	keyLen uvarint, key, version, value...
	OpCAS raft.Op = 4
	// OpBatch applies many puts, deletes and range deletes together.
	//	count u32, ops
	OpBatch raft.Op = 5
	// OpTxn evaluates conditions and applies one of two lists of ops.
	//	nIf uvarint, conds, nThen uvarint, ops, nElse uvarint, ops
	OpTxn raft.Op = 6
	// OpGet reads a key; it occurs only inside the lists of OpTxn.
	//	keyLen uvarint, key
	OpGet raft.Op = 7
	// OpEndSession settles everything a session did in the shard that holds the
	// key; results kept for it go. It only makes sense with a session header.
	//	keyLen uvarint, key
	OpEndSession raft.Op = 8

	// OpSplit, OpFreeze, OpMerge and OpAbortMerge are reserved for
	// administration; this version does not apply them.
	OpSplit      raft.Op = 64
	OpFreeze     raft.Op = 65
	OpMerge      raft.Op = 66
	OpAbortMerge raft.Op = 67

	// OpUser is a command of an embedder's own state machine; its body is opaque here.
	OpUser raft.Op = 128
	// OpKeyed is a command of an embedder's own state machine about a key, by which it is routed.
	//	keyLen uvarint, key, command...
	OpKeyed raft.Op = 129
)

// Limits of keys, values and commands, in bytes unless said otherwise.
const (
	// MaxKeyBytes bounds a key. A key has at least one byte.
	MaxKeyBytes = 16 << 10
	// MaxValueBytes bounds one value. The empty value is legal.
	MaxValueBytes = 3 << 20
	// MaxBatchBytes bounds the encoded body of a batch or transaction.
	MaxBatchBytes = 3 << 20
	// MaxBatchOps bounds the number of operations of a batch, and of the
	// conditions and of each list of a transaction.
	MaxBatchOps = 1 << 16
	// MaxTxnGets bounds the reads in one list of a transaction.
	MaxTxnGets = 1 << 10
	// MaxRangeDeletes bounds the range deletes of a batch, or of one list of a
	// transaction: each is a tombstone that later reads of the store must cross.
	MaxRangeDeletes = 128
	// MaxUserBytes bounds the body of OpUser.
	MaxUserBytes = 3<<20 + MaxKeyBytes
)

// Op is one operation of a batch or of a transaction's list.
type Op struct {
	// Kind is OpPut, OpDelete, OpDeleteRange, or, in transactions, OpGet.
	Kind raft.Op
	// Key is the key; of OpDeleteRange the inclusive start (empty: the first key).
	Key []byte
	// End is the exclusive end of OpDeleteRange (empty: the end of the keyspace).
	End []byte
	// Value of OpPut.
	Value []byte
}

// PutOp returns an operation that stores value under key.
func PutOp(key, value []byte) Op { return Op{Kind: OpPut, Key: key, Value: value} }

// DeleteOp returns an operation that removes key.
func DeleteOp(key []byte) Op { return Op{Kind: OpDelete, Key: key} }

// DeleteRangeOp returns an operation that removes [start, end).
func DeleteRangeOp(start, end []byte) Op { return Op{Kind: OpDeleteRange, Key: start, End: end} }

// GetOp returns an operation that reads key inside a transaction.
func GetOp(key []byte) Op { return Op{Kind: OpGet, Key: key} }

// Span returns the keys the operation touches.
func (o Op) Span() Span {
	if o.Kind == OpDeleteRange {
		return Span{Start: o.Key, End: o.End}
	}
	return Span{Start: o.Key, Point: true}
}

// check validates sizes. Only transactions may hold OpGet.
func (o Op) check(inTxn bool) error {
	switch o.Kind {
	case OpPut:
		if err := CheckKeySize(o.Key); err != nil {
			return err
		}
		return CheckValueSize(o.Value)
	case OpDelete:
		return CheckKeySize(o.Key)
	case OpDeleteRange:
		return CheckBounds(o.Key, o.End)
	case OpGet:
		if inTxn {
			return CheckKeySize(o.Key)
		}
	}
	return &ArgumentError{Field: "operation", Reason: fmt.Sprintf("code %d cannot stand here", o.Kind)}
}

// CheckKeySize returns nil for a key of 1 to MaxKeyBytes bytes, else an
// *ArgumentError (empty) or *LimitError.
func CheckKeySize(key []byte) error {
	if len(key) == 0 {
		return &ArgumentError{Field: "key", Reason: "it is empty; a key has at least one byte"}
	}
	if len(key) > MaxKeyBytes {
		return &LimitError{What: "bytes of a key", Limit: MaxKeyBytes, Got: len(key)}
	}
	return nil
}

// CheckValueSize returns nil for a value of at most MaxValueBytes bytes, else a *LimitError.
func CheckValueSize(value []byte) error {
	if len(value) > MaxValueBytes {
		return &LimitError{What: "bytes of a value", Limit: MaxValueBytes, Got: len(value)}
	}
	return nil
}

// CheckBounds returns nil when [start, end) is a legal range: start not after
// end (an empty end is the end of the keyspace), each at most one byte longer
// than a key may be. Equal bounds are legal and hold no key.
func CheckBounds(start, end []byte) error {
	if n := max(len(start), len(end)); n > MaxKeyBytes+1 {
		return &LimitError{What: "bytes of a range bound", Limit: MaxKeyBytes + 1, Got: n}
	}
	if len(end) > 0 && bytes.Compare(start, end) > 0 {
		return &ArgumentError{Field: "range", Reason: "its start " + quoteKey(start) + " is after its end " + quoteKey(end)}
	}
	return nil
}

// KeyedCommand returns the OpKeyed with this key and command, of at most MaxValueBytes.
// Its errors are those of CheckKeySize, and a *LimitError.
func KeyedCommand(key, cmd []byte) (raft.Command, error) {
	if err := CheckKeySize(key); err != nil {
		return raft.Command{}, err
	}
	if len(cmd) > MaxValueBytes {
		return raft.Command{}, &LimitError{What: "bytes of a command", Limit: MaxValueBytes, Got: len(cmd)}
	}
	return raft.Command{Op: OpKeyed, Body: AppendPut(make([]byte, 0, PutBytes(key, cmd)), key, cmd)}, nil
}

// AppendPut appends the body of OpPut to dst.
func AppendPut(dst, key, value []byte) []byte { return append(appendBytes(dst, key), value...) }

// AppendDelete appends the body of OpDelete to dst.
func AppendDelete(dst, key []byte) []byte { return appendBytes(dst, key) }

// AppendDeleteRange appends the body of OpDeleteRange to dst.
func AppendDeleteRange(dst, start, end []byte) []byte {
	return appendBytes(appendBytes(dst, start), end)
}

// AppendCAS appends the body of OpCAS to dst.
func AppendCAS(dst, key []byte, want Version, value []byte) []byte {
	return append(want.Append(appendBytes(dst, key)), value...)
}

// Append appends v as three uvarints: lineage, index, slot.
func (v Version) Append(dst []byte) []byte {
	dst = binary.AppendUvarint(dst, uint64(v.Lineage))
	dst = binary.AppendUvarint(dst, uint64(v.Index))
	return binary.AppendUvarint(dst, uint64(v.Slot))
}

// PutCommand returns a checked command that stores value under key.
func PutCommand(key, value []byte) (raft.Command, error) { return PutCommandIn(nil, key, value) }

// PutCommandIn is PutCommand, with the body in the memory behind dst's length if
// it has room for PutBytes.
func PutCommandIn(dst, key, value []byte) (raft.Command, error) {
	if err := (Op{Kind: OpPut, Key: key, Value: value}).check(false); err != nil {
		return raft.Command{}, err
	}
	if n := PutBytes(key, value); cap(dst)-len(dst) < n {
		dst = make([]byte, 0, n)
	}
	return raft.Command{Op: OpPut, Body: AppendPut(dst[len(dst):], key, value)}, nil
}

// PutBytes returns how long the body of a put may be at most.
func PutBytes(key, value []byte) int { return 3 + len(key) + len(value) }

// DeleteCommand returns a checked command that removes key.
func DeleteCommand(key []byte) (raft.Command, error) {
	if err := CheckKeySize(key); err != nil {
		return raft.Command{}, err
	}
	return raft.Command{Op: OpDelete, Body: AppendDelete(make([]byte, 0, 3+len(key)), key)}, nil
}

// DeleteRangeCommand returns a checked command that removes [start, end).
func DeleteRangeCommand(start, end []byte) (raft.Command, error) {
	if err := CheckBounds(start, end); err != nil {
		return raft.Command{}, err
	}
	return raft.Command{Op: OpDeleteRange, Body: AppendDeleteRange(nil, start, end)}, nil
}

// EndSessionCommand returns a checked command that ends a session in the shard
// that holds key. It has to be given a session header.
func EndSessionCommand(key []byte) (raft.Command, error) {
	c, err := DeleteCommand(key)
	c.Op = OpEndSession
	return c, err
}

// CASCommand returns a checked command that stores value under key if the key's
// version is want; the zero Version means that the key must be absent.
func CASCommand(key []byte, want Version, value []byte) (raft.Command, error) {
	if err := (Op{Kind: OpPut, Key: key, Value: value}).check(false); err != nil {
		return raft.Command{}, err
	}
	return raft.Command{Op: OpCAS, Body: AppendCAS(make([]byte, 0, 28+len(key)+len(value)), key, want, value)}, nil
}

// DecodePut returns views of the key and value of an OpPut body.
func DecodePut(body []byte) (key, value []byte, err error) {
	r := reader{b: body}
	key = r.bytes()
	value = r.b
	if r.bad {
		return nil, nil, errMalformed(OpPut)
	}
	return key, value, (Op{Kind: OpPut, Key: key, Value: value}).check(false)
}

// DecodeDelete returns a view of the key of an OpDelete body.
func DecodeDelete(body []byte) (key []byte, err error) {
	r := reader{b: body}
	key = r.bytes()
	if !r.done() {
		return nil, errMalformed(OpDelete)
	}
	return key, CheckKeySize(key)
}

// DecodeDeleteRange returns views of the bounds of an OpDeleteRange body.
func DecodeDeleteRange(body []byte) (start, end []byte, err error) {
	r := reader{b: body}
	start, end = r.bytes(), r.bytes()
	if !r.done() {
		return nil, nil, errMalformed(OpDeleteRange)
	}
	return start, end, CheckBounds(start, end)
}

// DecodeCAS returns views of the parts of an OpCAS body.
func DecodeCAS(body []byte) (key []byte, want Version, value []byte, err error) {
	r := reader{b: body}
	key, want = r.bytes(), r.version()
	value = r.b
	if r.bad {
		return nil, Version{}, nil, errMalformed(OpCAS)
	}
	return key, want, value, (Op{Kind: OpPut, Key: key, Value: value}).check(false)
}

// KnownOp reports whether this version's key-value machine applies commands of
// op with the given flags.
func KnownOp(op raft.Op, flags uint8) bool {
	return (op >= OpPut && op <= OpTxn || op == OpEndSession) && flags == 0
}

// CheckCommand validates op, flags and the whole body of a command that a
// client wants replicated. It returns nil, *ArgumentError or *LimitError;
// nothing has been done. Bodies of OpUser are opaque: only their size is checked.
func CheckCommand(c raft.Command) error {
	if c.Session != nil {
		if why := session.Check(c.Session); why != "" {
			return &ArgumentError{Field: "session", Reason: why}
		}
	} else if c.Op == OpEndSession {
		return &ArgumentError{Field: "session", Reason: "the command ends one and names none"}
	}
	if c.Flags != 0 {
		return &ArgumentError{Field: "flags", Reason: "this version does not know the command's flags"}
	}
	if c.Op == OpUser {
		if len(c.Body) > MaxUserBytes {
			return &LimitError{What: "bytes of a command", Limit: MaxUserBytes, Got: len(c.Body)}
		}
		return nil
	}
	return VisitSpans(c, nil)
}

// VisitSpans decodes the command's body once, validates all of it, and calls
// visit (if not nil) for the keys of each part in order: conditions, then ops.
// It stops at the first error. Unknown op codes are an *ArgumentError.
func VisitSpans(c raft.Command, visit func(Span) error) error {
	if visit == nil {
		visit = func(Span) error { return nil }
	}
	switch c.Op {
	case OpPut, OpKeyed:
		key, _, err := DecodePut(c.Body)
		return visitOne(Span{Start: key, Point: true}, err, visit)
	case OpDelete, OpEndSession:
		key, err := DecodeDelete(c.Body)
		return visitOne(Span{Start: key, Point: true}, err, visit)
	case OpDeleteRange:
		start, end, err := DecodeDeleteRange(c.Body)
		return visitOne(Span{Start: start, End: end}, err, visit)
	case OpCAS:
		key, _, _, err := DecodeCAS(c.Body)
		return visitOne(Span{Start: key, Point: true}, err, visit)
	case OpBatch:
		ops, err := DecodeBatch(c.Body)
		if err != nil {
			return err
		}
		return visitOps(ops.All(), visit)
	case OpTxn:
		v, err := DecodeTxn(c.Body)
		if err != nil {
			return err
		}
		for cond := range v.If.All() {
			if err := visit(Span{Start: cond.Key, Point: true}); err != nil {
				return err
			}
		}
		if err := visitOps(v.Then.All(), visit); err != nil {
			return err
		}
		return visitOps(v.Else.All(), visit)
	}
	return &ArgumentError{Field: "operation", Reason: fmt.Sprintf("code %d is not a command of the key-value store", c.Op)}
}

func visitOne(s Span, err error, visit func(Span) error) error {
	if err != nil {
		return err
	}
	return visit(s)
}

func visitOps(ops iter.Seq[Op], visit func(Span) error) error {
	for o := range ops {
		if err := visit(o.Span()); err != nil {
			return err
		}
	}
	return nil
}

// OpView is a validated, allocation-free view of encoded operations.
type OpView struct {
	n    int
	body []byte
}

// Len returns the number of operations.
func (v OpView) Len() int { return v.n }

// All yields the operations in order; their slices alias the encoded body.
func (v OpView) All() iter.Seq[Op] {
	return func(yield func(Op) bool) {
		r := reader{b: v.body}
		for range v.n {
			if !yield(r.op()) {
				return
			}
		}
	}
}

// appendOp appends one operation: kind u8, then the body of its kind. The value
// of a put carries its length here, because more follows.
//
//	put 1: keyLen, key, valueLen, value   delete 2: keyLen, key
//	delete range 3: startLen, start, endLen, end   get 7: keyLen, key
func appendOp(dst []byte, o Op) []byte {
	dst = appendBytes(append(dst, byte(o.Kind)), o.Key)
	switch o.Kind {
	case OpPut:
		dst = appendBytes(dst, o.Value)
	case OpDeleteRange:
		dst = appendBytes(dst, o.End)
	}
	return dst
}

func appendBytes(dst, b []byte) []byte {
	return append(binary.AppendUvarint(dst, uint64(len(b))), b...)
}

func errMalformed(op raft.Op) error {
	return &ArgumentError{Field: "command body", Reason: fmt.Sprintf("it does not decode as operation %d", op)}
}

// reader is a cursor over an encoded body. The first bad read sets bad; later
// reads return zero values.
type reader struct {
	b   []byte
	bad bool
}

// done reports whether everything was read and nothing was bad.
func (r *reader) done() bool { return !r.bad && len(r.b) == 0 }

func (r *reader) fail() { r.bad, r.b = true, nil }

func (r *reader) uvarint() uint64 {
	v, n := binary.Uvarint(r.b)
	if n <= 0 {
		r.fail()
		return 0
	}
	r.b = r.b[n:]
	return v
}

func (r *reader) byte() byte {
	if len(r.b) == 0 {
		r.fail()
		return 0
	}
	v := r.b[0]
	r.b = r.b[1:]
	return v
}

func (r *reader) bytes() []byte {
	n := r.uvarint()
	if n > uint64(len(r.b)) {
		r.fail()
		return nil
	}
	v := r.b[:n:n]
	r.b = r.b[n:]
	return v
}

func (r *reader) version() Version {
	v := Version{Lineage: raft.ShardID(r.uvarint()), Index: raft.Index(r.uvarint())}
	slot := r.uvarint()
	if slot > 1<<32-1 {
		r.fail()
	}
	v.Slot = uint32(slot)
	return v
}

func (r *reader) op() Op {
	o := Op{Kind: raft.Op(r.byte()), Key: r.bytes()}
	switch o.Kind {
	case OpPut:
		o.Value = r.bytes()
	case OpDeleteRange:
		o.End = r.bytes()
	}
	return o
}

// ops validates n operations and returns a view of them.
func (r *reader) ops(n uint64, inTxn bool) (OpView, error) {
	if n > MaxBatchOps {
		return OpView{}, &LimitError{What: "operations of a batch or transaction", Limit: MaxBatchOps, Got: int(min(n, 1<<31-1))}
	}
	start, gets, ranges := r.b, 0, 0
	for range n {
		o := r.op()
		if r.bad {
			return OpView{}, errBadOps
		}
		if err := o.check(inTxn); err != nil {
			return OpView{}, err
		}
		switch o.Kind {
		case OpGet:
			gets++
		case OpDeleteRange:
			ranges++
		}
	}
	if ranges > MaxRangeDeletes {
		return OpView{}, &LimitError{What: "range deletes of a batch or transaction", Limit: MaxRangeDeletes, Got: ranges}
	}
	if gets > MaxTxnGets {
		return OpView{}, &LimitError{What: "reads of a transaction", Limit: MaxTxnGets, Got: gets}
	}
	return OpView{n: int(n), body: start[:len(start)-len(r.b)]}, nil
}

var errBadOps = &ArgumentError{Field: "command body", Reason: "its operations are cut off or of a wrong length"}
