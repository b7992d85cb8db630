package multiraft

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"

	"github.com/flotillakv/flotilla/engine"
	"github.com/flotillakv/flotilla/multiraft/raft"
	"github.com/flotillakv/flotilla/multiraft/session"
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
	resultOK    = 0 // what the machine answered
	resultError = 1 // the text of its error
	// cut u8, then the result of an earlier try (if cut, its first byte only, and perhaps
	// where it was carried out: lineage, index, slot, uvarints)
	resultReplay  = 2
	resultSession = 3 // verdict u8, known u8, reason: not carried out
)

// SessionError says why a command of a session was not carried out now.
type SessionError struct {
	// Verdict is Expired, Full, Invalid or Settled: never carried out, except that
	// of Settled, and of Expired unless Known, an earlier try may have been.
	// Replay: an earlier try was carried out, and what the machine answered was
	// too large to keep.
	Verdict session.Verdict
	Known   bool
	Reason  string // of Invalid
	// Of Replay, if it is known: where the command was carried out.
	Lineage raft.ShardID
	Index   raft.Index
	Slot    uint32
}

// Error says what is known.
func (e *SessionError) Error() string {
	switch e.Verdict {
	case session.Replay:
		return "multiraft: the session's command was carried out before, once; what it answered is no longer kept"
	case session.Settled:
		return "multiraft: the session's command was settled before and is not carried out again"
	case session.Expired:
		return "multiraft: the deadline of the session's command has passed; this try was not carried out"
	case session.Full:
		return fmt.Sprintf("multiraft: the group remembers %d sessions already and takes no new one; the command was not carried out", session.MaxSessions)
	}
	return "multiraft: the session header cannot be right: " + e.Reason + "; the command was not carried out"
}

// sessioned applies a command of a session, unless that was done before, and
// returns its encoded result, which is the same on every replica.
func (c *Custom) sessioned(b *engine.Batch, a *ApplyContext, cmd raft.Command, slot uint32) ([]byte, error) {
	t := session.Table{Store: &groupRecords{b, a.Desc.Shard}, Now: a.GroupTime()}
	j, err := t.Judge(cmd.Session)
	switch {
	case err != nil:
		return nil, err
	case j.Verdict == session.Replay:
		return append([]byte{resultReplay, boolByte(j.Result.Cut)}, j.Result.Bytes...), nil
	case j.Verdict != session.Execute:
		known := j.Known || j.Verdict == session.Full || j.Verdict == session.Invalid
		return append([]byte{resultSession, byte(j.Verdict), boolByte(known)}, j.Reason...), nil
	}
	out := c.command(b, a, cmd)
	return out, t.Record(cmd.Session, session.Result{Lineage: a.Desc.Shard, Index: a.Entry.Index, Slot: slot, Bytes: out}, out[:1])
}

func decodeResult(b []byte) ([]byte, error) {
	switch {
	case len(b) == 0:
	case b[0] == resultOK:
		return b[1:], nil
	case b[0] == resultError:
		return nil, &MachineError{Text: string(b[1:])}
	case b[0] == resultReplay && len(b) > 2 && b[2] != resultReplay:
		if b[1] != 0 {
			e := &SessionError{Verdict: session.Replay, Known: true}
			var at [3]uint64
			for r, i := b[3:], 0; i < len(at); i++ {
				v, n := binary.Uvarint(r)
				if n <= 0 {
					return nil, e
				}
				at[i], r = v, r[n:]
			}
			e.Lineage, e.Index, e.Slot = raft.ShardID(at[0]), raft.Index(at[1]), uint32(at[2])
			return nil, e
		}
		return decodeResult(b[2:])
	case b[0] == resultSession && len(b) > 2:
		return nil, &SessionError{Verdict: session.Verdict(b[1]), Known: b[2] != 0, Reason: string(b[3:])}
	}
	return nil, ErrAmbiguous
}

// groupRecords are the session records of one group within a batch.
type groupRecords struct {
	b     *engine.Batch
	shard raft.ShardID
}

func (g *groupRecords) Get(suffix []byte) ([]byte, bool, error) { return g.b.GetGroup(g.shard, suffix) }
func (g *groupRecords) Set(suffix, val []byte)                  { g.b.SetGroup(g.shard, suffix, val) }
func (g *groupRecords) Delete(suffix []byte)                    { g.b.DeleteGroup(g.shard, suffix) }

func boolByte(b bool) byte {
	if b {
		return 1
	}
	return 0
}

// Apply implements StateMachine.
func (c *Custom) Apply(b *engine.Batch, a *ApplyContext) (err error) {
	for i, cmd := range a.Entry.Commands() {
		if cmd.Op != OpUser {
			return fmt.Errorf("multiraft: a custom state machine got operation %d at index %d; upgrade this node", cmd.Op, a.Entry.Index)
		}
		var out []byte
		if cmd.Session == nil {
			out = c.command(b, a, cmd)
		} else if out, err = c.sessioned(b, a, cmd, uint32(i)); err != nil {
			return fmt.Errorf("multiraft: shard %d index %d slot %d: %w", a.Desc.Shard, a.Entry.Index, i, err)
		}
		a.Answer(out)
		if a.Results != nil {
			a.Results[i] = out
		}
	}
	return nil
}

// command applies one command and returns its encoded result.
func (c *Custom) command(b *engine.Batch, a *ApplyContext, cmd raft.Command) []byte {
	mark := b.Mark()
	tx := Tx{b: b, desc: a.Desc}
	out, err := c.m.Apply(&tx, cmd.Body)
	if err != nil {
		b.RollbackTo(mark)
		return append([]byte{resultError}, err.Error()...)
	}
	a.WrittenBytes += tx.n
	a.WrittenKeys += tx.keys
	return append([]byte{resultOK}, out...)
}

// Propose carries cmd through the log of shard, whose leader must be on h, and
// returns what the machine answered. A context that ends after the hand-over to
// Raft gives ErrAmbiguous; other errors as Host.Propose, and *MachineError.
func (c *Custom) Propose(ctx context.Context, h *Host, shard raft.ShardID, cmd []byte) ([]byte, error) {
	return c.ProposeIn(ctx, h, shard, nil, cmd)
}

// ProposeIn is Propose as a command of a session (nil: of none). After
// ErrAmbiguous the same command may be proposed again with the same header, here
// or at the node that leads then: it takes effect at most once, and the answer is
// that of the first time. Headers come from a session.Client; deadlines are Unix
// nanoseconds. A command that is not carried out because of its session is a
// *SessionError.
func (c *Custom) ProposeIn(ctx context.Context, h *Host, shard raft.ShardID, s *raft.SessionHeader, cmd []byte) ([]byte, error) {
	type answer struct {
		data []byte
		err  error
	}
	ch := make(chan answer, 1)
	h.Propose(shard, raft.Command{Op: OpUser, Session: s, Body: bytes.Clone(cmd)}, func(data []byte, _ raft.Index, _ uint32, err error) {
		ch <- answer{data, err}
	})
	select {
	case a := <-ch:
		if a.err != nil {
			return nil, a.err
		}
		return decodeResult(a.data)
	case <-ctx.Done():
		return nil, fmt.Errorf("%w (%w)", ErrAmbiguous, ctx.Err())
	}
}

// Answer takes apart what Host.Propose gave back for a command of a Machine: what
// the machine answered, or *MachineError. ErrAmbiguous: there is nothing in it.
func Answer(data []byte) ([]byte, error) { return decodeResult(data) }

// NewReader returns a Reader of the keys of the group of desc. Whether they are
// fresh is the caller's business (Host.ReadIndex).
func NewReader(e *engine.Engine, desc raft.Descriptor) *Reader { return &Reader{e: e, desc: desc} }

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
