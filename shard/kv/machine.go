package kv

import (
	"bytes"
	"fmt"
	"sync"

	"github.com/flotillakv/flotilla/engine"
	"github.com/flotillakv/flotilla/multiraft"
	"github.com/flotillakv/flotilla/multiraft/raft"
	"github.com/flotillakv/flotilla/multiraft/session"
	"github.com/flotillakv/flotilla/shard"
)

// Machine is the state machine of the built-in commands. One value serves all
// shards of a node; it has no state of its own. It implements
// multiraft.StateMachine.
type Machine struct{}

var _ multiraft.StateMachine = (*Machine)(nil)

// NewMachine returns the key-value state machine.
func NewMachine() *Machine { return &Machine{} }

// Apply evaluates the commands of a committed entry in order and writes their
// effects to b. It returns an error, which fences the replica, only for a command
// that this version does not know (shard.ErrUnknownOp), for a stored record that
// does not decode (shard.ErrBadRecord, session.ErrBadRecord), and for an engine
// that cannot be read;
// b may then hold a part of the entry, which the caller must drop.
func (m *Machine) Apply(b *engine.Batch, a *multiraft.ApplyContext) error {
	return apply(b, a)
}

// Writer is what an entry is evaluated over: *engine.Batch, or a model of it.
type Writer = batch

// ApplyTo is Machine.Apply over any Writer. A simulator keeps a model of a shard
// with it, against which it holds the replicas.
func ApplyTo(w Writer, a *multiraft.ApplyContext) error { return apply(w, a) }

// batch is what evaluation needs of an engine batch. Get sees the batch's own writes.
type batch interface {
	Get(ks uint32, key []byte) (val []byte, ok bool, err error)
	Set(ks uint32, key, val []byte)
	Delete(ks uint32, key []byte)
	DeleteRange(ks uint32, start, end []byte)

	GetGroup(s raft.ShardID, suffix []byte) (val []byte, ok bool, err error)
	SetGroup(s raft.ShardID, suffix, val []byte)
	DeleteGroup(s raft.ShardID, suffix []byte)
}

// evaluator evaluates the commands of one entry.
type evaluator struct {
	b      batch
	a      *multiraft.ApplyContext
	desc   *raft.Descriptor
	at     shard.Version // of the command under way
	record []byte        // scratch: the record being written

	records  groupRecords
	sessions session.Table
}

var evaluators = sync.Pool{New: func() any { return new(evaluator) }}

// maxScratch bounds the scratch memory that an evaluator keeps between entries.
const maxScratch = 64 << 10

func apply(b batch, a *multiraft.ApplyContext) error {
	ev := evaluators.Get().(*evaluator)
	ev.b, ev.a, ev.desc = b, a, a.Desc
	err := ev.entry()
	record := ev.record[:0]
	if cap(record) > maxScratch {
		record = nil
	}
	*ev = evaluator{record: record}
	evaluators.Put(ev)
	return err
}

func (ev *evaluator) entry() error {
	for i, c := range ev.a.Entry.Commands() {
		ev.at = shard.Version{Lineage: ev.desc.Shard, Index: ev.a.Entry.Index, Slot: uint32(i)}
		if !shard.KnownOp(c.Op, c.Flags) {
			return fmt.Errorf("kv: shard %d index %d slot %d: operation %d with flags %#x: %w",
				ev.desc.Shard, ev.at.Index, i, c.Op, c.Flags, shard.ErrUnknownOp)
		}
		if c.Session != nil {
			out, err := ev.sessioned(nil, c)
			if err != nil {
				return fmt.Errorf("kv: shard %d index %d slot %d: %w", ev.desc.Shard, ev.at.Index, i, err)
			}
			ev.a.Answer(out)
			if i < len(ev.a.Results) && len(out) > 0 {
				ev.a.Results[i] = out
			}
			continue
		}
		res, err := ev.command(c)
		if err != nil {
			return fmt.Errorf("kv: shard %d index %d slot %d: %w", ev.desc.Shard, ev.at.Index, i, err)
		}
		// The result of a plain success is empty: nothing to store, nothing to allocate.
		if res.Status != shard.StatusOK || res.Txn != nil {
			if i < len(ev.a.Results) {
				ev.a.Results[i] = res.Append(nil)
				ev.a.Answer(ev.a.Results[i])
			} else {
				ev.record = res.Append(ev.record[:0])
				ev.a.Answer(ev.record)
			}
		}
	}
	return nil
}

func (ev *evaluator) command(c raft.Command) (shard.Result, error) {
	switch c.Op {
	case shard.OpPut:
		key, value, err := shard.DecodePut(c.Body)
		if err != nil {
			return shard.Rejection(err), nil
		}
		if !shard.HoldsKey(ev.desc, key) {
			return ev.outside(), nil
		}
		ev.put(key, value)
	case shard.OpDelete:
		key, err := shard.DecodeDelete(c.Body)
		if err != nil {
			return shard.Rejection(err), nil
		}
		if !shard.HoldsKey(ev.desc, key) {
			return ev.outside(), nil
		}
		ev.delete(key)
	case shard.OpDeleteRange:
		start, end, err := shard.DecodeDeleteRange(c.Body)
		if err != nil {
			return shard.Rejection(err), nil
		}
		if !shard.HoldsRange(ev.desc, start, end) {
			return ev.outside(), nil
		}
		ev.deleteRange(start, end)
	case shard.OpCAS:
		return ev.cas(c.Body)
	case shard.OpBatch:
		return ev.batch(c.Body), nil
	case shard.OpTxn:
		return ev.txn(c.Body)
	}
	return shard.Result{}, nil
}

func (ev *evaluator) cas(body []byte) (shard.Result, error) {
	key, want, value, err := shard.DecodeCAS(body)
	if err != nil {
		return shard.Rejection(err), nil
	}
	if !shard.HoldsKey(ev.desc, key) {
		return ev.outside(), nil
	}
	rec, _, err := ev.get(key)
	if err != nil {
		return shard.Result{}, err
	}
	if rec.Version != want {
		return shard.Result{Status: shard.StatusConflict, Have: rec.Version}, nil
	}
	ev.put(key, value)
	return shard.Result{}, nil
}

// batch applies all operations or none: every key is checked before the first write.
func (ev *evaluator) batch(body []byte) shard.Result {
	ops, err := shard.DecodeBatch(body)
	if err != nil {
		return shard.Rejection(err)
	}
	if !ev.holds(ops) {
		return ev.outside()
	}
	ev.write(ops)
	return shard.Result{}
}

// txn checks every key of all three parts, evaluates the conditions, reads, and
// then writes: reads see the keys as they were before the transaction.
func (ev *evaluator) txn(body []byte) (shard.Result, error) {
	v, err := shard.DecodeTxn(body)
	if err != nil {
		return shard.Rejection(err), nil
	}
	for c := range v.If.All() {
		if !shard.HoldsKey(ev.desc, c.Key) {
			return ev.outside(), nil
		}
	}
	if !ev.holds(v.Then) || !ev.holds(v.Else) {
		return ev.outside(), nil
	}
	out := &shard.TxnResult{Succeeded: true}
	for c := range v.If.All() {
		holds, err := ev.cond(c)
		if err != nil {
			return shard.Result{}, err
		}
		if !holds {
			out.Succeeded = false
			break
		}
	}
	ops := v.Then
	if !out.Succeeded {
		ops = v.Else
	}
	size := 0
	for o := range ops.All() {
		if o.Kind != shard.OpGet {
			continue
		}
		rec, ok, err := ev.get(o.Key)
		if err != nil {
			return shard.Result{}, err
		}
		if size += len(rec.Bytes); size > shard.MaxTxnResultBytes {
			return shard.Result{Status: shard.StatusLimit, Text: "bytes read by a transaction", Limit: shard.MaxTxnResultBytes, Got: size}, nil
		}
		out.Gets = append(out.Gets, shard.TxnGet{Found: ok, Value: shard.Value{Bytes: rec.Bytes, Version: rec.Version}})
	}
	ev.write(ops)
	return shard.Result{Txn: out}, nil
}

func (ev *evaluator) cond(c shard.Cond) (bool, error) {
	rec, ok, err := ev.get(c.Key)
	if err != nil {
		return false, err
	}
	switch c.Kind {
	case shard.KeyVersion:
		return rec.Version == c.Version, nil
	case shard.KeyExists:
		return ok, nil
	case shard.KeyAbsent:
		return !ok, nil
	case shard.ValueEquals:
		return ok && bytes.Equal(rec.Bytes, c.Value), nil
	}
	return false, nil // DecodeTxn lets no other kind through
}

// outside is the rejection of a command with keys outside the shard: the guard
// below Raft against a proposer that routed by an older descriptor.
func (ev *evaluator) outside() shard.Result {
	status := shard.StatusRange
	if ev.a.Header.DescVersion != ev.desc.Version {
		status = shard.StatusEpoch
	}
	return shard.Result{Status: status, DescVersion: ev.desc.Version}
}

func (ev *evaluator) holds(ops shard.OpView) bool {
	for o := range ops.All() {
		if !shard.HoldsSpan(ev.desc, o.Span()) {
			return false
		}
	}
	return true
}

func (ev *evaluator) write(ops shard.OpView) {
	for o := range ops.All() {
		switch o.Kind {
		case shard.OpPut:
			ev.put(o.Key, o.Value)
		case shard.OpDelete:
			ev.delete(o.Key)
		case shard.OpDeleteRange:
			ev.deleteRange(o.Key, o.End)
		}
	}
}

// get returns the record of key; the zero Record if there is none.
func (ev *evaluator) get(key []byte) (shard.Record, bool, error) {
	val, ok, err := ev.b.Get(ev.desc.Keyspace, key)
	if err != nil || !ok {
		return shard.Record{}, false, err
	}
	rec, err := shard.DecodeRecord(val)
	if err != nil {
		return shard.Record{}, false, fmt.Errorf("key %q: %w", key[:min(len(key), 64)], err)
	}
	return rec, true, nil
}

func (ev *evaluator) put(key, value []byte) {
	ev.record = shard.AppendRecord(ev.record[:0], ev.at, 0, value)
	ev.b.Set(ev.desc.Keyspace, key, ev.record)
	ev.count(len(key) + len(ev.record))
}

func (ev *evaluator) delete(key []byte) {
	ev.b.Delete(ev.desc.Keyspace, key)
	ev.count(len(key))
}

func (ev *evaluator) deleteRange(start, end []byte) {
	if len(end) > 0 && bytes.Equal(start, end) {
		return
	}
	ev.b.DeleteRange(ev.desc.Keyspace, start, end)
	ev.count(len(start) + len(end))
}

func (ev *evaluator) count(n int) {
	ev.a.WrittenKeys++
	ev.a.WrittenBytes += uint64(n)
}
