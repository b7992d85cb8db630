package flotilla

import (
	"context"
	"errors"
	"fmt"
	"io"
	"time"

	"github.com/flotillakv/flotilla/engine"
	"github.com/flotillakv/flotilla/multiraft"
	"github.com/flotillakv/flotilla/multiraft/raft"
	"github.com/flotillakv/flotilla/multiraft/session"
	"github.com/flotillakv/flotilla/shard"
	"github.com/flotillakv/flotilla/snapshot"
)

// Machine is a state machine of the program's own, for Options.Machine. ExternalMachine
// makes one.
type Machine struct{ external External }

type (
	// External is a state machine whose state lies outside of the node's store. What it
	// owes and what it can rely on is said there.
	External = multiraft.External
	// ExternalDigester is what an External can be besides, so that its states are compared.
	ExternalDigester = multiraft.ExternalDigester
	// ExternalEntry is what of one log entry an External carries out.
	ExternalEntry = multiraft.ExternalEntry
	// ExternalCommand is one command of it and what came of it.
	ExternalCommand = multiraft.ExternalCommand
	// MachineError is what a machine refused a command with. The command was not carried out.
	MachineError = multiraft.MachineError
	// ShardID is the number of a shard.
	ShardID = raft.ShardID
	// Index is a place in the log of a shard.
	Index = raft.Index
)

// ExternalMachine returns the Machine of m, which keeps its state itself. m belongs to one
// node: two nodes of a process need two.
func ExternalMachine(m External) *Machine { return &Machine{external: m} }

// machines has one state machine for the catalog, and one for the user's shards.
type machines struct {
	catalog multiraft.StateMachine
	user    *multiraft.ExternalMachine
}

// Apply implements multiraft.StateMachine.
func (m machines) Apply(b *engine.Batch, a *multiraft.ApplyContext) error {
	if a.Desc.Keyspace == userKeyspace {
		return m.user.Apply(b, a)
	}
	return m.catalog.Apply(b, a)
}

// External tells multiraft which groups have their state outside of the store.
func (m machines) External(keyspace uint32) multiraft.External {
	if keyspace == userKeyspace {
		return m.user.External(keyspace)
	}
	return nil
}

// Propose carries cmd to the Machine (Options.Machine) of the shard that holds key, and
// returns what it answered, once the command is durable at a majority and applied at the
// shard's leader. Errors are those of KV's writes and *MachineError; ErrAmbiguous as
// there: in a Session the command is tried again until its outcome is known, and takes
// effect once. An earlier try that took effect shows as *ResultGoneError, whose Outcome is
// Applied: what the machine answered is not kept. At most 3 MiB.
func (a *access) Propose(ctx context.Context, key, cmd []byte) ([]byte, Receipt, error) {
	raw, receipt, err := a.space.Propose(ctx, key, cmd)
	if err != nil {
		return nil, Receipt{}, err
	}
	out, err := multiraft.Answer(raw)
	var s *multiraft.SessionError
	switch {
	case err == nil:
		return out, receipt, nil
	case errors.As(err, &s):
		return nil, Receipt{}, machineSession(s, receipt.Lineage)
	case errors.Is(err, multiraft.ErrAmbiguous):
		return nil, Receipt{}, &shard.AmbiguousError{Shard: receipt.Lineage, Why: "the answer of the state machine does not decode"}
	}
	return nil, receipt, err
}

// machineSession returns what a session's verdict is to a caller.
func machineSession(s *multiraft.SessionError, id raft.ShardID) error {
	switch s.Verdict {
	case session.Replay:
		return &ResultGoneError{Shard: id, Version: Version{Lineage: s.Lineage, Index: s.Index, Slot: s.Slot}}
	case session.Expired:
		return &SessionExpiredError{Shard: id, Known: s.Known}
	case session.Full:
		return &SessionsFullError{Shard: id, Limit: session.MaxSessions}
	case session.Invalid:
		return &ArgumentError{Field: "session", Reason: s.Reason}
	}
	return &ResultGoneError{Shard: id}
}

// errNoMachine: the call makes no sense on this node.
var errNoMachine = &shard.ArgumentError{Field: "machine", Reason: "this node has none (Options.Machine)"}

// Query asks the Machine (Options.Machine) of this node about key. It sees every command
// that was acknowledged before the call, whichever node leads the shard. A node without a
// replica of the shard refuses with *UnavailableError. The errors of KV's reads with
// Follower, and the machine's.
func (n *Node) Query(ctx context.Context, key, q []byte) ([]byte, error) {
	if n.o.Machine == nil {
		return nil, errNoMachine
	}
	if _, ok := ctx.Deadline(); !ok {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, n.o.timeout())
		defer cancel()
	}
	n.using.RLock() // the node does not close meanwhile
	defer n.using.RUnlock()
	if n.isClosed() {
		return nil, ErrClosed
	}
	id, err := n.space.Shard(ctx, key)
	if err != nil {
		return nil, err
	}
	pause := time.Millisecond
	for {
		gen := n.host.Generation(id)
		if err = n.awaitFresh(ctx, id); err == nil {
			out, qerr := n.o.Machine.external.Query(id, key, q)
			if err = n.host.Distrust(id); err == nil && n.host.Generation(id) == gen {
				return out, qerr
			}
		}
		var moved *multiraft.NotLeaderError
		switch {
		case errors.Is(err, multiraft.ErrUnknownShard):
			return nil, &shard.UnavailableError{Node: raft.NodeID(n.ID()), Why: fmt.Sprintf("it has no replica of shard %d; ask a node that has", id)}
		case errors.Is(err, multiraft.ErrClosed):
			return nil, ErrClosed
		case err != nil && !errors.As(err, &moved):
			return nil, &shard.UnavailableError{Why: fmt.Sprintf("the replica of shard %d on this node does not serve", id), Cause: err}
		}
		select { // a leader is being elected, or the replica was replaced
		case <-ctx.Done():
			return nil, &shard.UnavailableError{Why: "its time ended while it waited for the shard", Cause: ctx.Err()}
		case <-n.stop:
			return nil, ErrClosed
		case <-time.After(pause):
		}
		pause = min(2*pause, 50*time.Millisecond)
	}
}

// awaitFresh waits until this node's replica of a shard has all that was acknowledged before.
func (n *Node) awaitFresh(ctx context.Context, id raft.ShardID) error {
	ch := make(chan error, 1)
	n.host.FollowerRead(id, func(_ raft.Index, err error) { ch <- err })
	select {
	case err := <-ch:
		return err
	case <-ctx.Done():
		return ctx.Err()
	case <-n.stop:
		return multiraft.ErrClosed
	}
}

// SyncMachine has the Machine of this node make the state of a shard durable now (its
// method Sync), and returns the index as of which it is then: the log of this replica may
// be cut through that. It is what the triggers of Options.Compaction do by themselves; a
// machine that has made its state durable for reasons of its own asks for it so that the
// log goes. ErrNotFound: this node has no replica of the shard.
func (n *Node) SyncMachine(ctx context.Context, shardID uint64) (Index, error) {
	if n.o.Machine == nil {
		return 0, errNoMachine
	}
	at, err := n.host.SyncExternal(ctx, raft.ShardID(shardID))
	switch {
	case errors.Is(err, multiraft.ErrUnknownShard):
		return 0, fmt.Errorf("shard %d on node %d: %w", shardID, n.ID(), ErrNotFound)
	case errors.Is(err, multiraft.ErrClosed):
		return 0, ErrClosed
	case err != nil:
		return 0, fmt.Errorf("flotilla: the state machine of shard %d: %w", shardID, err)
	}
	return at, nil
}

// hasMachine reports whether a Machine serves a keyspace.
func (n *Node) hasMachine(keyspace uint32) bool {
	return n.o.Machine != nil && keyspace == userKeyspace
}

// saveMachine is what snapshots carry of a shard besides what is in the store.
func (n *Node) saveMachine(ctx context.Context, d *raft.Descriptor) (io.ReadCloser, raft.Index, error) {
	if !n.hasMachine(d.Keyspace) {
		return nil, 0, nil
	}
	return n.host.SaveExternal(ctx, d.Shard)
}

// loadMachineFor bounds how long a machine takes to load its part of a snapshot.
const loadMachineFor = 10 * time.Minute

// loadMachine hands the machine its part of a snapshot.
func (n *Node) loadMachine(staged *snapshot.Staged) error {
	m := &staged.Meta
	has := m.HasExternal()
	if has != n.hasMachine(m.Desc.Keyspace) {
		why := "this node has no Options.Machine, the sender has"
		if !has {
			why = "this node has Options.Machine, the sender has none"
		}
		return snapshot.Verdict(fmt.Errorf("%w: shard %d: %s", snapshot.ErrCorrupt, m.Shard, why))
	}
	if !has {
		return nil
	}
	ctx, cancel := context.WithTimeout(context.Background(), loadMachineFor)
	defer cancel()
	err := staged.LoadExternal(func(at raft.Index, r io.Reader) error {
		return n.host.LoadExternal(ctx, &m.Desc, m.Index, m.Term, at, r)
	})
	if errors.Is(err, multiraft.ErrSnapshotStale) {
		return snapshot.Verdict(fmt.Errorf("%w: %w", snapshot.ErrStale, err))
	}
	if err != nil {
		n.log.Warn("the state machine did not load its part of a snapshot", "shard", m.Shard, "index", m.Index, "err", err)
	}
	return err
}
