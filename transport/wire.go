package transport

import (
	"errors"
	"fmt"
	"math"

	"google.golang.org/protobuf/encoding/protowire"

	"github.com/flotillakv/flotilla/multiraft/raft"
	"github.com/flotillakv/flotilla/shard"
)

// The messages of transportpb/kv.proto, encoded and decoded by hand: requests
// and responses are on the corridor, and generated code costs several
// allocations each. A fuzz test holds both codecs together. Embedded messages
// get a length of fixed width (a varint with padding, which protobuf permits),
// so that they are written in one pass.

// ErrWire is wrapped by the errors of decoding a request or response.
var ErrWire = errors.New("transport: malformed message")

func wireErr(what string) error { return fmt.Errorf("%w: %s", ErrWire, what) }

const maxWireBytes = 16 << 20 // one gRPC message of the client service

// --- encoding

func putUint(b []byte, num protowire.Number, v uint64) []byte {
	if v == 0 {
		return b
	}
	return protowire.AppendVarint(protowire.AppendTag(b, num, protowire.VarintType), v)
}

func putBool(b []byte, num protowire.Number, v bool) []byte {
	if !v {
		return b
	}
	return putUint(b, num, 1)
}

func putBytes(b []byte, num protowire.Number, v []byte) []byte {
	if len(v) == 0 {
		return b
	}
	return protowire.AppendBytes(protowire.AppendTag(b, num, protowire.BytesType), v)
}

const lenWidth = 4 // 28 bits of length

// open starts an embedded message; shut completes it.
func open(b []byte, num protowire.Number) ([]byte, int) {
	b = protowire.AppendTag(b, num, protowire.BytesType)
	b = append(b, 0x80, 0x80, 0x80, 0)
	return b, len(b)
}

func shut(b []byte, start int) []byte {
	n := len(b) - start
	l := b[start-lenWidth : start]
	l[0], l[1], l[2], l[3] = byte(n)|0x80, byte(n>>7)|0x80, byte(n>>14)|0x80, byte(n>>21)&0x7f
	return b
}

func putVersion(b []byte, num protowire.Number, v shard.Version) []byte {
	if v.IsZero() {
		return b
	}
	b, at := open(b, num)
	b = putUint(b, 1, uint64(v.Lineage))
	b = putUint(b, 2, uint64(v.Index))
	b = putUint(b, 3, uint64(v.Slot))
	return shut(b, at)
}

func putValue(b []byte, num protowire.Number, v *shard.Value) []byte {
	b, at := open(b, num)
	b = putBytes(b, 1, v.Bytes)
	b = putVersion(b, 2, v.Version)
	return shut(b, at)
}

// appendRequest appends the Request message with id and timeout in place of r's.
func appendRequest(b []byte, r *shard.Request, id uint64, timeoutNanos int64) []byte {
	b = putUint(b, 1, id)
	b = putUint(b, 2, uint64(r.Shard))
	b = putUint(b, 3, r.DescVersion)
	b = putUint(b, 4, uint64(r.Keyspace))
	b = putUint(b, 5, uint64(r.Hop))
	b = putUint(b, 6, uint64(r.Consistency))
	b = putUint(b, 7, uint64(timeoutNanos))
	var at int
	switch r.Kind {
	case shard.KindGet:
		b, at = open(b, 8)
		b = putBytes(b, 1, r.Key)
	case shard.KindScan:
		b, at = open(b, 9)
		b = putBytes(b, 1, r.Start)
		b = putBytes(b, 2, r.End)
		b = putUint(b, 3, uint64(r.Limit))
		b = putUint(b, 4, uint64(r.MaxBytes))
		b = putBool(b, 5, r.Reverse)
	case shard.KindWrite:
		b, at = open(b, 10)
		b = putUint(b, 1, uint64(r.Command.Op))
		b = putUint(b, 2, uint64(r.Command.Flags))
		b = putBytes(b, 3, r.Command.Body)
		if s := r.Command.Session; s != nil {
			var sat int
			b, sat = open(b, 4)
			b = putBytes(b, 1, s.ID[:])
			b = putUint(b, 2, uint64(s.Lineage))
			b = putUint(b, 3, s.Seq)
			b = putUint(b, 4, s.AckedTo)
			b = putUint(b, 5, s.Deadline)
			b = shut(b, sat)
		}
	case shard.KindStats:
		b, at = open(b, 11)
	default:
		return b // no op: the server answers with an *ArgumentError
	}
	return shut(b, at)
}

// appendResponse appends the Response message with id in place of r.ID.
func appendResponse(b []byte, r *shard.Response, id uint64) []byte {
	b = putUint(b, 1, id)
	if r.Err != nil {
		code, payload := shard.EncodeError(r.Err)
		b = putUint(b, 2, uint64(code))
		b = putBytes(b, 3, payload)
	}
	b = putBool(b, 4, r.Found)
	if r.Value != nil {
		b = putValue(b, 5, r.Value)
	}
	for i := range r.Pairs {
		var at int
		b, at = open(b, 6)
		b = putBytes(b, 1, r.Pairs[i].Key)
		b = putBytes(b, 2, r.Pairs[i].Value)
		b = putVersion(b, 3, r.Pairs[i].Version)
		b = shut(b, at)
	}
	b = putBool(b, 7, r.More)
	b = putBytes(b, 8, r.Resume)
	b = putVersion(b, 9, r.Receipt.Version)
	if t := r.Txn; t != nil {
		var at int
		b, at = open(b, 10)
		b = putBool(b, 1, t.Succeeded)
		b = putVersion(b, 2, t.Receipt.Version)
		for i := range t.Gets {
			var gat int
			b, gat = open(b, 3)
			b = putBool(b, 1, t.Gets[i].Found)
			if t.Gets[i].Found {
				b = putValue(b, 2, &t.Gets[i].Value)
			}
			b = shut(b, gat)
		}
		b = shut(b, at)
	}
	if r.Result != nil {
		b = protowire.AppendBytes(protowire.AppendTag(b, 11, protowire.BytesType), r.Result)
	}
	return putUint(b, 12, uint64(r.Count))
}

// responseSize bounds what appendResponse appends for the bytes r carries.
func responseSize(r *shard.Response) int {
	n := 128 + len(r.Resume) + len(r.Result)
	if r.Value != nil {
		n += len(r.Value.Bytes)
	}
	for i := range r.Pairs {
		n += 64 + len(r.Pairs[i].Key) + len(r.Pairs[i].Value)
	}
	if r.Txn != nil {
		for i := range r.Txn.Gets {
			n += 64 + len(r.Txn.Gets[i].Value.Bytes)
		}
	}
	return n
}

// --- decoding

// fields walks the fields of one message. Usage: for f.next() { switch f.num ... }.
// A wrong wire type or a cut field ends the walk with err set.
type fields struct {
	b     []byte
	num   protowire.Number
	typ   protowire.Type
	v     uint64 // of a varint field
	bytes []byte // of a length-delimited field
	err   error
}

func (f *fields) next() bool {
	if f.err != nil || len(f.b) == 0 {
		return false
	}
	if tag := f.b[0]; tag >= 1<<3 && tag < 0x80 && len(f.b) > 1 && f.b[1] < 0x80 { // one byte each of tag, and of value or length
		v := f.b[1]
		switch protowire.Type(tag & 7) {
		case protowire.VarintType:
			f.num, f.typ, f.b, f.v, f.bytes = protowire.Number(tag>>3), protowire.VarintType, f.b[2:], uint64(v), nil
			return true
		case protowire.BytesType:
			if int(v) <= len(f.b)-2 {
				f.num, f.typ, f.b, f.v, f.bytes = protowire.Number(tag>>3), protowire.BytesType, f.b[2+v:], 0, f.b[2:2+v]
				return true
			}
		}
	}
	num, typ, n := protowire.ConsumeTag(f.b)
	if n < 0 {
		f.err = wireErr("a field's tag")
		return false
	}
	f.num, f.typ, f.b, f.v, f.bytes = num, typ, f.b[n:], 0, nil
	switch typ {
	case protowire.VarintType:
		f.v, n = protowire.ConsumeVarint(f.b)
	case protowire.BytesType:
		f.bytes, n = protowire.ConsumeBytes(f.b)
	default:
		n = protowire.ConsumeFieldValue(num, typ, f.b)
	}
	if n < 0 {
		f.err = wireErr("a field's value")
		return false
	}
	f.b = f.b[n:]
	return true
}

// count returns how many fields of number num lie ahead.
func (f *fields) count(num protowire.Number) (n int) {
	for ahead := *f; ahead.next(); {
		if ahead.num == num {
			n++
		}
	}
	return n
}

// is reports whether the field has type t, and fails the walk if it has not.
func (f *fields) is(t protowire.Type) bool {
	if f.typ != t && f.err == nil {
		f.err = wireErr(fmt.Sprintf("field %d has wire type %d", f.num, f.typ))
	}
	return f.typ == t
}

func (f *fields) uint(limit uint64) uint64 {
	if f.is(protowire.VarintType) && f.v > limit && f.err == nil {
		f.err = wireErr(fmt.Sprintf("field %d is %d, the limit is %d", f.num, f.v, limit))
	}
	return f.v
}

func (f *fields) int() int { return int(int64(f.uint(math.MaxUint64))) }

func (f *fields) flag() bool { return f.is(protowire.VarintType) && f.v != 0 }

func (f *fields) blob() []byte {
	if !f.is(protowire.BytesType) {
		return nil
	}
	return f.bytes[:len(f.bytes):len(f.bytes)]
}

func (f *fields) sub() fields { return fields{b: f.blob(), err: f.err} }

func decodeVersion(f fields) (v shard.Version, err error) {
	for f.next() {
		switch f.num {
		case 1:
			v.Lineage = raft.ShardID(f.uint(math.MaxUint64))
		case 2:
			v.Index = raft.Index(f.uint(math.MaxUint64))
		case 3:
			v.Slot = uint32(f.uint(math.MaxUint32))
		}
	}
	return v, f.err
}

func decodeValue(f fields) (v shard.Value, err error) {
	for f.next() {
		switch f.num {
		case 1:
			v.Bytes = f.blob()
		case 2:
			if v.Version, err = decodeVersion(f.sub()); err != nil {
				return v, err
			}
		}
	}
	return v, f.err
}

// decodeRequest decodes a Request message. Byte slices alias b. Unknown fields
// are skipped; when the op is of a later version the kind stays zero, which
// shard.Request.Check refuses.
func decodeRequest(b []byte) (*shard.Request, error) {
	r := new(shard.Request)
	if err := decodeRequestTo(r, b); err != nil {
		return nil, err
	}
	return r, nil
}

// decodeRequestTo is decodeRequest into r, which is zero.
func decodeRequestTo(r *shard.Request, b []byte) error {
	f := fields{b: b}
	for f.next() {
		switch f.num {
		case 1:
			r.ID = f.uint(math.MaxUint64)
		case 2:
			r.Shard = raft.ShardID(f.uint(math.MaxUint64))
		case 3:
			r.DescVersion = f.uint(math.MaxUint64)
		case 4:
			r.Keyspace = uint32(f.uint(math.MaxUint32))
		case 5:
			r.Hop = uint8(f.uint(math.MaxUint8))
		case 6:
			r.Consistency = shard.Consistency(f.uint(math.MaxUint8))
		case 7:
			r.TimeoutNanos = int64(f.uint(math.MaxUint64))
		case 8, 9, 10, 11:
			if r.Kind != 0 {
				f.err = wireErr("two operations")
				break
			}
			if err := decodeOp(f.num, f.sub(), r); err != nil {
				return err
			}
		}
	}
	return f.err
}

func decodeOp(num protowire.Number, f fields, r *shard.Request) error {
	switch num {
	case 8:
		r.Kind = shard.KindGet
		for f.next() {
			if f.num == 1 {
				r.Key = f.blob()
			}
		}
	case 9:
		r.Kind = shard.KindScan
		for f.next() {
			switch f.num {
			case 1:
				r.Start = f.blob()
			case 2:
				r.End = f.blob()
			case 3:
				r.Limit = f.int()
			case 4:
				r.MaxBytes = f.int()
			case 5:
				r.Reverse = f.flag()
			}
		}
	case 10:
		r.Kind = shard.KindWrite
		for f.next() {
			switch f.num {
			case 1:
				r.Command.Op = raft.Op(f.uint(math.MaxUint8))
			case 2:
				r.Command.Flags = uint8(f.uint(math.MaxUint8))
			case 3:
				r.Command.Body = f.blob()
			case 4:
				s, err := decodeSession(f.sub())
				if err != nil {
					return err
				}
				r.Command.Session = s
			}
		}
	case 11:
		r.Kind = shard.KindStats
		for f.next() {
		}
	}
	return f.err
}

func decodeSession(f fields) (*raft.SessionHeader, error) {
	s := new(raft.SessionHeader)
	for f.next() {
		switch f.num {
		case 1:
			id := f.blob()
			if len(id) != len(s.ID) {
				return nil, wireErr("a session id that is not of 16 bytes")
			}
			s.ID = [16]byte(id)
		case 2:
			s.Lineage = raft.ShardID(f.uint(math.MaxUint64))
		case 3:
			s.Seq = f.uint(math.MaxUint64)
		case 4:
			s.AckedTo = f.uint(math.MaxUint64)
		case 5:
			s.Deadline = f.uint(math.MaxUint64)
		}
	}
	return s, f.err
}

// decodeResponse decodes a Response message. If the response carries bytes, b is
// copied once, so that a small value does not keep a whole batch alive.
func decodeResponse(b []byte) (*shard.Response, error) {
	r := new(response)
	if err := r.decode(b); err != nil {
		return nil, err
	}
	return &r.Response, nil
}

// response is a Response with room for its value.
type response struct {
	shard.Response
	value shard.Value
}

// decode is decodeResponse into r, of which it keeps nothing.
func (r *response) decode(b []byte) error {
	*r = response{}
	var code uint64
	var payload []byte
	owned := false
	f := fields{b: b}
	for f.next() {
		switch f.num {
		case 5, 6, 8, 10, 11:
			if !owned && f.typ == protowire.BytesType { // from here on the copy is read
				c := make([]byte, len(f.bytes)+len(f.b))
				n := copy(c, f.bytes)
				copy(c[n:], f.b)
				f.bytes, f.b, owned = c[:n:n], c[n:], true
			}
		}
		switch f.num {
		case 1:
			r.ID = f.uint(math.MaxUint64)
		case 2:
			code = f.uint(math.MaxUint32)
		case 3:
			payload = f.blob()
		case 4:
			r.Found = f.flag()
		case 5:
			v, err := decodeValue(f.sub())
			if err != nil {
				return err
			}
			r.value = v
			r.Value = &r.value
		case 6:
			p, err := decodePair(f.sub())
			if err != nil {
				return err
			}
			if r.Pairs == nil { // one list of the right size, however many there are
				r.Pairs = make([]shard.Pair, 0, 1+f.count(6))
			}
			r.Pairs = append(r.Pairs, p)
		case 7:
			r.More = f.flag()
		case 8:
			r.Resume = f.blob()
		case 9:
			v, err := decodeVersion(f.sub())
			if err != nil {
				return err
			}
			r.Receipt.Version = v
		case 10:
			t, err := decodeTxn(f.sub())
			if err != nil {
				return err
			}
			r.Txn = t
		case 11:
			r.Result = f.blob()
		case 12:
			r.Count = f.int()
		}
	}
	if f.err != nil {
		return f.err
	}
	r.Err = shard.DecodeError(shard.Code(code), payload)
	return nil
}

// clone returns a copy that shares the bytes.
func (r *response) clone() *shard.Response {
	c := &response{r.Response, r.value}
	if r.Value != nil {
		c.Value = &c.value
	}
	return &c.Response
}

func decodePair(f fields) (p shard.Pair, err error) {
	for f.next() {
		switch f.num {
		case 1:
			p.Key = f.blob()
		case 2:
			p.Value = f.blob()
		case 3:
			if p.Version, err = decodeVersion(f.sub()); err != nil {
				return p, err
			}
		}
	}
	if f.err == nil && len(p.Key) == 0 {
		return p, wireErr("a pair without a key")
	}
	return p, f.err
}

func decodeTxn(f fields) (*shard.TxnResult, error) {
	t := new(shard.TxnResult)
	for f.next() {
		var err error
		switch f.num {
		case 1:
			t.Succeeded = f.flag()
		case 2:
			t.Receipt.Version, err = decodeVersion(f.sub())
		case 3:
			var g shard.TxnGet
			if len(t.Gets) == shard.MaxTxnGets {
				return nil, wireErr("more gets than a transaction may have")
			}
			g, err = decodeTxnGet(f.sub())
			t.Gets = append(t.Gets, g)
		}
		if err != nil {
			return nil, err
		}
	}
	return t, f.err
}

func decodeTxnGet(f fields) (g shard.TxnGet, err error) {
	for f.next() {
		switch f.num {
		case 1:
			g.Found = f.flag()
		case 2:
			if g.Value, err = decodeValue(f.sub()); err != nil {
				return g, err
			}
		}
	}
	return g, f.err
}

// decodeBatch walks a RequestBatch or ResponseBatch: message is called with each
// element, cancel (may be nil) with each id of field 2.
func decodeBatch(b []byte, message func([]byte) error, cancel func(uint64)) error {
	f := fields{b: b}
	for f.next() {
		switch {
		case f.num == 1:
			if !f.is(protowire.BytesType) {
				break
			}
			if err := message(f.bytes); err != nil {
				return err
			}
		case f.num == 2 && cancel != nil && f.typ == protowire.VarintType:
			cancel(f.v)
		case f.num == 2 && cancel != nil && f.typ == protowire.BytesType: // packed
			for p := f.bytes; len(p) > 0; {
				v, n := protowire.ConsumeVarint(p)
				if n < 0 {
					return wireErr("a list of ids")
				}
				cancel(v)
				p = p[n:]
			}
		}
	}
	return f.err
}
