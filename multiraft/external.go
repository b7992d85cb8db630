package multiraft

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"

	"github.com/flotillakv/flotilla/engine"
	"github.com/flotillakv/flotilla/multiraft/raft"
	"github.com/flotillakv/flotilla/multiraft/session"
)

// OpKeyed is the operation code of commands of an External: a body is the length of a
// key, uvarint, the key by which the command was routed, and the command itself.
const OpKeyed raft.Op = 129

// opEndSession is the operation code by which a session ends (package shard).
const opEndSession raft.Op = 8

// External is a custom state machine whose state lies outside of the node's store: in
// files of its own, in another database, in another process. One value serves all shards
// of a node, each with a state of its own.
//
// What it owes. The state of a shard is that as of one index of the shard's log, and the
// machine knows which: it keeps the index with the state, so that a crash at any moment
// leaves both as they were together, after a whole entry. How often it makes them durable
// by itself is its own business; Sync says when it has to. After a restart it may be at
// any index it ever was at, but not before the last Sync that returned nil. What lies
// behind comes again, in order, and nothing comes twice.
//
// What follows. The log of a shard is cut only through what Sync has returned for, and a
// restart applies from there on. Commands of sessions take effect once, over crashes too,
// but what the machine answered is not kept: a try of a command that took effect before
// gets a *SessionError with the verdict Replay. Such shards cannot be split, and backups
// do not hold what is outside of the store.
//
// Who calls. For one shard no two of Apply, Sync, Save, Load and Drop run at the same time,
// nor does Applied with any of them. Query may run at any time, several at once, beside all
// others. Calls for different shards may come from different goroutines at the same time.
// While Sync, Save or Load runs, the shard's commands are stored and acknowledged by other
// nodes, but wait here to be applied; other shards do not wait. A node that is closed waits
// for calls to return.
//
// What fails. A command that cannot be carried out is a deterministic result
// (ExternalCommand.Err), not an error. An error of Apply or Applied fences the replica, and
// so does a panic in any method: nothing further is applied here, the shard goes on with its
// other replicas, and only a restart or a snapshot from another node makes it serve again.
// An error of Sync is tried again, ever more seldom; meanwhile the log of the shard cannot
// be cut, so that in the end writes are refused for want of room (ErrLogBudget). An error of
// Save or Load fails that snapshot, which is tried again.
type External interface {
	// Apply carries out the commands of one entry, in order, and sets their Result or Err.
	// It must be deterministic: no clock, randomness, map order or anything local. Indexes
	// of a shard ascend, with gaps. It runs on a loop that serves many shards: it should not
	// wait for a disk. e and the bodies are valid until it returns.
	Apply(e *ExternalEntry) error
	// Query answers q, about the key by which it was routed, without changing anything. It
	// sees all commands that were acknowledged before it was asked for, perhaps later ones.
	Query(shard raft.ShardID, key, q []byte) ([]byte, error)
	// Applied returns the index as of which the state of shard is: that of the last entry it
	// carried out, or of a Sync or Load behind that; zero if there is no state. It is called
	// when a replica is loaded: at the start, and when a shard that slept wakes.
	Applied(shard raft.ShardID) (raft.Index, error)
	// Sync makes the state of shard durable, and that it is the one as of index at, which is
	// at least that of the last entry it was given: the entries between hold no commands.
	// After it returned nil a crash leads back to at or behind.
	Sync(shard raft.ShardID, at raft.Index) error
	// Save returns the state of shard as it is now, as a stream for Load on another node. It
	// should be quick: the shard waits. The stream is read later, beside calls of Apply
	// that must not show in it, and is closed, perhaps before its end.
	Save(shard raft.ShardID) (io.ReadCloser, error)
	// Load replaces the state of shard, if there is one, by what Save returned on another
	// node, which is the state as of index at: durably, and as a whole. A crash at any
	// moment before it returns leaves the old state or the new one. An error, of r too:
	// the old one is as it was.
	Load(shard raft.ShardID, at raft.Index, r io.Reader) error
	// Drop removes the state of shard: its replica is gone from this node, or begins anew.
	// It is no error that there is none.
	Drop(shard raft.ShardID) error
}

// ExternalDigester is what an External can be besides. Replicas compare then not only what
// they applied, but what came of it: one that differs from the majority is quarantined and
// rebuilt (Config.DigestEvery).
type ExternalDigester interface {
	// Digest returns a checksum of the state of shard, which is the same on all nodes whose
	// state is as of the same entry, whatever Sync and Load did in between. It runs on a loop
	// that serves many shards, never beside Apply, Sync, Save, Load or Drop of the shard: the
	// checksum should be kept with the state and not be computed here. An error: the replica
	// is not compared now.
	Digest(shard raft.ShardID) (uint64, error)
}

// ExternalEntry is what of one log entry an External carries out.
type ExternalEntry struct {
	Shard raft.ShardID
	Index raft.Index
	// Time is what the clock of the leader said that proposed the entry, in nanoseconds since
	// 1970; the same on every replica. It may go back where the leader changed: a machine
	// that needs it not to keeps the highest one with its state. It must use no other clock.
	Time     uint64
	Commands []ExternalCommand // at least one
}

// ExternalCommand is one command and what came of it.
type ExternalCommand struct {
	Key, Body []byte
	// Result is what the proposer gets. It must not alias memory that is used again.
	Result []byte
	// Err refuses the command. It is a replicated result: the machine has not carried it
	// out, on any replica, and its text reaches the proposer as *MachineError.
	Err error
}

// externals is a StateMachine that keeps the state of some groups outside of the store.
type externals interface {
	// External returns the machine of the groups of a keyspace; nil: they are in the store.
	External(keyspace uint32) External
}

// ExternalMachine is the StateMachine of an External.
type ExternalMachine struct{ m External }

// NewExternal returns the StateMachine that applies m. A StateMachine that wraps it has to
// have its method External, too.
func NewExternal(m External) *ExternalMachine { return &ExternalMachine{m: m} }

// External returns the machine.
func (x *ExternalMachine) External(uint32) External { return x.m }

// Apply implements StateMachine. What the store gets, the records of sessions, does not
// depend on what the machine answers: the machine may be ahead of the store.
func (x *ExternalMachine) Apply(b *engine.Batch, a *ApplyContext) error {
	e := ExternalEntry{Shard: a.Desc.Shard, Index: a.Entry.Index, Time: a.Header.GroupTs}
	var slots []int
	t := session.Table{Store: &groupRecords{b, a.Desc.Shard}, Now: a.GroupTime()}
	for i, cmd := range a.Entry.Commands() {
		if cmd.Op != OpKeyed && (cmd.Op != opEndSession || cmd.Session == nil) {
			return fmt.Errorf("multiraft: a machine outside of the store got operation %d at index %d; all nodes need the same machine", cmd.Op, e.Index)
		}
		if cmd.Session != nil {
			out, err := judge(&t, a, &cmd, uint32(i))
			if err != nil {
				return fmt.Errorf("multiraft: shard %d index %d slot %d: %w", e.Shard, e.Index, i, err)
			}
			if out != nil {
				a.Answer(out)
				if a.Results != nil {
					a.Results[i] = out
				}
				if cmd.Op == OpKeyed {
					a.skipped = append(a.skipped, uint32(i))
				}
				continue
			}
		}
		if cmd.Op == OpKeyed {
			e.Commands, slots = append(e.Commands, keyed(cmd.Body)), append(slots, i)
			a.WrittenBytes += uint64(len(cmd.Body))
			a.WrittenKeys++
		}
	}
	if len(e.Commands) == 0 {
		return nil
	}
	if !a.ahead {
		if err := x.m.Apply(&e); err != nil {
			return err
		}
	}
	for k, i := range slots {
		if a.Results == nil {
			break
		}
		switch c := &e.Commands[k]; {
		case a.ahead: // carried out before; nobody knows any more what was answered
			a.Results[i] = carriedOut(e.Shard, e.Index, uint32(i))
		case c.Err != nil:
			a.Results[i] = append([]byte{resultError}, c.Err.Error()...)
		default:
			a.Results[i] = append([]byte{resultOK}, c.Result...)
		}
	}
	return nil
}

// judge decides about a command of a session, and notes it if it is to be carried out:
// out is nil then. Of the result nothing is kept.
func judge(t *session.Table, a *ApplyContext, cmd *raft.Command, slot uint32) (out []byte, err error) {
	j, err := t.Judge(cmd.Session)
	switch {
	case err != nil:
		return nil, err
	case cmd.Op == opEndSession && j.Verdict != session.Execute:
		return []byte{}, nil // it is over
	case j.Verdict == session.Replay:
		return carriedOut(j.Result.Lineage, j.Result.Index, j.Result.Slot), nil
	case j.Verdict != session.Execute:
		known := j.Known || j.Verdict == session.Full || j.Verdict == session.Invalid
		return append([]byte{resultSession, byte(j.Verdict), boolByte(known)}, j.Reason...), nil
	}
	h := cmd.Session
	if cmd.Op == opEndSession {
		h = session.End(h)
	}
	return nil, t.Record(h, session.Result{Lineage: a.Desc.Shard, Index: a.Entry.Index, Slot: slot, Cut: true}, nil)
}

// carriedOut is the result of a command that was carried out there, with an answer that is
// not known any more.
func carriedOut(lineage raft.ShardID, i raft.Index, slot uint32) []byte {
	b := binary.AppendUvarint([]byte{resultReplay, 1, resultOK}, uint64(lineage))
	return binary.AppendUvarint(binary.AppendUvarint(b, uint64(i)), uint64(slot))
}

// keyed takes the body of an OpKeyed apart. One that is damaged was never proposed by this
// release; it is a command without a key, on all replicas alike.
func keyed(body []byte) ExternalCommand {
	n, w := binary.Uvarint(body)
	if w > 0 && n <= uint64(len(body)-w) {
		end := w + int(n)
		return ExternalCommand{Key: body[w:end:end], Body: body[end:]}
	}
	return ExternalCommand{Body: body}
}

// errMachinePanic is wrapped by what came of a panic of the embedder's machine.
var errMachinePanic = errors.New("the state machine panicked")

// safely turns a panic of f into an error.
func safely(f func() error) (err error) {
	defer func() {
		if p := recover(); p != nil {
			err = fmt.Errorf("multiraft: %w: %v", errMachinePanic, p)
		}
	}()
	return f()
}
