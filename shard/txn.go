package shard

import (
	"encoding/binary"
	"fmt"
	"iter"

	"github.com/flotillakv/flotilla/multiraft/raft"
)

// CondKind is the kind of a transaction's condition.
type CondKind uint8

// The kinds of conditions.
const (
	// KeyVersion holds when the key's version is Version (zero: absent).
	KeyVersion CondKind = 1
	// KeyExists holds when the key has a value, be it empty.
	KeyExists CondKind = 2
	// KeyAbsent holds when the key has no value.
	KeyAbsent CondKind = 3
	// ValueEquals holds when the key exists and its value is Value.
	ValueEquals CondKind = 4
)

// Cond is one condition of a transaction.
type Cond struct {
	Kind    CondKind
	Key     []byte
	Version Version // of KeyVersion
	Value   []byte  // of ValueEquals
}

// IfVersion returns the condition that key has version v.
func IfVersion(key []byte, v Version) Cond { return Cond{Kind: KeyVersion, Key: key, Version: v} }

// IfExists returns the condition that key exists.
func IfExists(key []byte) Cond { return Cond{Kind: KeyExists, Key: key} }

// IfAbsent returns the condition that key does not exist.
func IfAbsent(key []byte) Cond { return Cond{Kind: KeyAbsent, Key: key} }

// IfValue returns the condition that key exists and holds value.
func IfValue(key, value []byte) Cond { return Cond{Kind: ValueEquals, Key: key, Value: value} }

// Txn is a conditional transaction over keys of one shard: if all conditions of
// If hold, Then is applied, else Else. It is one command: it is evaluated at
// one point of the shard's log and never takes effect in part. Reads (GetOp) of
// the chosen list return the keys as they were before the transaction's own
// writes. No conditions means Then. The encoded transaction is at most
// MaxBatchBytes, and the values it reads are at most MaxTxnResultBytes together.
type Txn struct {
	If         []Cond
	Then, Else []Op
}

// TxnGet is the answer to one GetOp.
type TxnGet struct {
	Found bool
	Value Value // zero when not Found
}

// TxnResult is the outcome of a transaction that was applied.
type TxnResult struct {
	// Succeeded says that all conditions held and Then was applied, not Else.
	Succeeded bool
	// Receipt holds the Version of the keys it wrote.
	Receipt Receipt
	// Gets answers the GetOps of the chosen list, in order.
	Gets []TxnGet
}

// MaxTxnResultBytes bounds the values one transaction may read. A transaction
// that reads more is rejected with a *LimitError and writes nothing.
const MaxTxnResultBytes = 4 << 20

// Append appends the body of OpTxn to dst, unchecked.
func (t *Txn) Append(dst []byte) []byte {
	dst = binary.AppendUvarint(dst, uint64(len(t.If)))
	for _, c := range t.If {
		dst = appendCond(dst, c)
	}
	dst = binary.AppendUvarint(dst, uint64(len(t.Then)))
	for _, o := range t.Then {
		dst = appendOp(dst, o)
	}
	dst = binary.AppendUvarint(dst, uint64(len(t.Else)))
	for _, o := range t.Else {
		dst = appendOp(dst, o)
	}
	return dst
}

// Command returns the checked command of the transaction, or *ArgumentError or
// *LimitError. Its body is a copy.
func (t *Txn) Command() (raft.Command, error) {
	body := t.Append(nil)
	if _, err := DecodeTxn(body); err != nil {
		return raft.Command{}, err
	}
	return raft.Command{Op: OpTxn, Body: body}, nil
}

// appendCond appends kind u8, keyLen, key and, by kind, version or valueLen, value.
func appendCond(dst []byte, c Cond) []byte {
	dst = appendBytes(append(dst, byte(c.Kind)), c.Key)
	switch c.Kind {
	case KeyVersion:
		dst = c.Version.Append(dst)
	case ValueEquals:
		dst = appendBytes(dst, c.Value)
	}
	return dst
}

// CondView is a validated, allocation-free view of encoded conditions.
type CondView struct {
	n    int
	body []byte
}

// Len returns the number of conditions.
func (v CondView) Len() int { return v.n }

// All yields the conditions in order; their slices alias the encoded body.
func (v CondView) All() iter.Seq[Cond] {
	return func(yield func(Cond) bool) {
		r := reader{b: v.body}
		for range v.n {
			if !yield(r.cond()) {
				return
			}
		}
	}
}

// TxnView is a validated, allocation-free view of an OpTxn body.
type TxnView struct {
	If         CondView
	Then, Else OpView
}

// DecodeTxn validates an OpTxn body and returns a view of it.
func DecodeTxn(body []byte) (TxnView, error) {
	if len(body) > MaxBatchBytes {
		return TxnView{}, &LimitError{What: "bytes of a transaction", Limit: MaxBatchBytes, Got: len(body)}
	}
	r := reader{b: body}
	var v TxnView
	var err error
	if v.If, err = r.conds(r.uvarint()); err != nil {
		return TxnView{}, err
	}
	if v.Then, err = r.ops(r.uvarint(), true); err != nil {
		return TxnView{}, err
	}
	if v.Else, err = r.ops(r.uvarint(), true); err != nil {
		return TxnView{}, err
	}
	if !r.done() {
		return TxnView{}, errMalformed(OpTxn)
	}
	if v.If.n+v.Then.n+v.Else.n == 0 {
		return TxnView{}, &ArgumentError{Field: "transaction", Reason: "it is empty"}
	}
	return v, nil
}

func (r *reader) cond() Cond {
	c := Cond{Kind: CondKind(r.byte()), Key: r.bytes()}
	switch c.Kind {
	case KeyVersion:
		c.Version = r.version()
	case ValueEquals:
		c.Value = r.bytes()
	}
	return c
}

// conds validates n conditions and returns a view of them.
func (r *reader) conds(n uint64) (CondView, error) {
	if n > MaxBatchOps {
		return CondView{}, &LimitError{What: "conditions of a transaction", Limit: MaxBatchOps, Got: int(min(n, 1<<31-1))}
	}
	start := r.b
	for range n {
		c := r.cond()
		if r.bad {
			return CondView{}, errBadOps
		}
		if c.Kind < KeyVersion || c.Kind > ValueEquals {
			return CondView{}, &ArgumentError{Field: "condition", Reason: fmt.Sprintf("this version does not know kind %d", c.Kind)}
		}
		if err := CheckKeySize(c.Key); err != nil {
			return CondView{}, err
		}
	}
	return CondView{n: int(n), body: start[:len(start)-len(r.b)]}, nil
}
