package multiraft

import (
	"bytes"
	"context"
	"errors"
	"fmt"

	"github.com/flotillakv/flotilla/engine"
	"github.com/flotillakv/flotilla/multiraft/raft"
)

// OpUser is the operation code of commands of custom state machines.
const OpUser raft.Op = 128

// Machine is a custom state machine. Its state lives in the group's own span of
// the node's one store, so that it is applied in the same atomic batch as the
// log, and snapshots of it come for free.
type Machine interface {
	// Apply carries out one command through tx. It must be deterministic: no
	// clock, randomness, map order or anything local. A returned error is a
	// replicated result: the command's writes are dropped on all replicas alike
	// and its text reaches the proposer as *MachineError. A panic fences the replica.
	Apply(tx *Tx, cmd []byte) (result []byte, err error)
	// Query answers q from v, without changing anything. It may run on any
	// goroutine, several at a time.
	Query(v *Reader, q []byte) ([]byte, error)
}

// MachineError is what a Machine returned for a command. Nothing of the command
// was applied.
type MachineError struct{ Text string }

func (e *MachineError) Error() string { return "multiraft: the state machine refused: " + e.Text }

// ErrOutsideSpan is returned for keys outside the group's span. Nothing was read or written.
var ErrOutsideSpan = errors.New("multiraft: key outside the span of the group")

// Tx is what a Machine applies a command through: the group's keys as they are
// after all earlier commands, own writes included. It must not be used after
// Apply returned.
type Tx struct {
	b    *engine.Batch
	desc *raft.Descriptor
	n    uint64 // bytes written
	keys uint64
}

func inside(d *raft.Descriptor, key []byte) error {
	if !d.Contains(key) {
		return fmt.Errorf("%w: %q is not in [%q, %q)", ErrOutsideSpan, key, d.Start, d.End)
	}
	return nil
}

// Get returns the value of key; ok is false when there is none. The value is
// valid until Apply returns.
func (t *Tx) Get(key []byte) (val []byte, ok bool, err error) {
	if err := inside(t.desc, key); err != nil {
		return nil, false, err
	}
	val, ok, err = t.b.Get(t.desc.Keyspace, key)
	if err != nil {
		panic(err) // a disk error is no result: it must not be replicated as one
	}
	return val, ok, nil
}

// Set sets key to val, which are copied.
func (t *Tx) Set(key, val []byte) error {
	if err := inside(t.desc, key); err != nil {
		return err
	}
	t.b.Set(t.desc.Keyspace, key, val)
	t.n, t.keys = t.n+uint64(len(key)+len(val)), t.keys+1
	return nil
}

// Delete removes key.
func (t *Tx) Delete(key []byte) error {
	if err := inside(t.desc, key); err != nil {
		return err
	}
	t.b.Delete(t.desc.Keyspace, key)
	t.n, t.keys = t.n+uint64(len(key)), t.keys+1
	return nil
}

// Reader reads a group's keys as they are now.
type Reader struct {
	e    *engine.Engine
	desc raft.Descriptor
}

// Get returns a copy of the value of key.
func (v *Reader) Get(key []byte) (val []byte, ok bool, err error) {
	if err := inside(&v.desc, key); err != nil {
		return nil, false, err
	}
	return v.e.Get(v.desc.Keyspace, key, nil)
}

// Each calls f for the keys of [start, end) within the group's span, in order,
// until it returns false. Key and value are valid during the call.
func (v *Reader) Each(start, end []byte, f func(key, val []byte) bool) error {
	if bytes.Compare(start, v.desc.Start) < 0 {
		start = v.desc.Start
	}
	if len(v.desc.End) > 0 && (len(end) == 0 || bytes.Compare(end, v.desc.End) > 0) {
		end = v.desc.End
	}
	it, err := v.e.NewIter(v.desc.Keyspace, start, end)
	if err != nil {
		return err
	}
	defer it.Close()
	for ok := it.First(); ok && f(it.Key(), it.Value()); ok = it.Next() {
	}
	return it.Err()
}

// Custom makes a StateMachine of a Machine.
type Custom struct{ m Machine }

// NewCustom returns the StateMachine that applies m.
func NewCustom(m Machine) *Custom { return &Custom{m: m} }

// The first byte of a result.
const (
	resultOK    = 0
	resultError = 1
)

// Apply implements StateMachine.
func (c *Custom) Apply(b *engine.Batch, a *ApplyContext) error {
	for i, cmd := range a.Entry.Commands() {
		if cmd.Op != OpUser {
			return fmt.Errorf("multiraft: a custom state machine got operation %d at index %d; upgrade this node", cmd.Op, a.Entry.Index)
		}
		mark := b.Mark()
		tx := Tx{b: b, desc: a.Desc}
		out, err := c.m.Apply(&tx, cmd.Body)
		status := byte(resultOK)
		if err != nil {
			b.RollbackTo(mark)
			status, out = resultError, []byte(err.Error())
		} else {
			a.WrittenBytes += tx.n
			a.WrittenKeys += tx.keys
		}
		if a.Results != nil {
			a.Results[i] = append([]byte{status}, out...)
		}
	}
	return nil
}

// Propose carries cmd through the log of shard, whose leader must be on h, and
// returns what the machine answered. A context that ends after the hand-over to
// Raft gives ErrAmbiguous; other errors as Host.Propose, and *MachineError.
func (c *Custom) Propose(ctx context.Context, h *Host, shard raft.ShardID, cmd []byte) ([]byte, error) {
	type answer struct {
		data []byte
		err  error
	}
	ch := make(chan answer, 1)
	h.Propose(shard, raft.Command{Op: OpUser, Body: bytes.Clone(cmd)}, func(data []byte, _ raft.Index, _ uint32, err error) {
		ch <- answer{data, err}
	})
	select {
	case a := <-ch:
		switch {
		case a.err != nil:
			return nil, a.err
		case len(a.data) == 0:
			return nil, ErrAmbiguous
		case a.data[0] == resultError:
			return nil, &MachineError{Text: string(a.data[1:])}
		}
		return a.data[1:], nil
	case <-ctx.Done():
		return nil, fmt.Errorf("%w (%w)", ErrAmbiguous, ctx.Err())
	}
}

// Query answers q from the state of shard, linearizably: it sees every command
// acknowledged before the call. The shard's leader must be on h.
func (c *Custom) Query(ctx context.Context, h *Host, shard raft.ShardID, q []byte) ([]byte, error) {
	ch := make(chan error, 1)
	h.Read(shard, func(_ raft.Index, err error) { ch <- err })
	select {
	case err := <-ch:
		if err != nil {
			return nil, err
		}
	case <-ctx.Done():
		return nil, ctx.Err()
	}
	desc, ok := h.Descriptor(shard)
	if !ok {
		return nil, ErrUnknownShard
	}
	return c.m.Query(&Reader{e: h.engine, desc: desc}, q)
}
