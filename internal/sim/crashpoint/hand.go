package crashpoint

import (
	"fmt"
	"slices"
	"strings"

	"github.com/flotillakv/flotilla/engine"
	"github.com/flotillakv/flotilla/multiraft"
	"github.com/flotillakv/flotilla/multiraft/raft"
	"github.com/flotillakv/flotilla/shard"
	"github.com/flotillakv/flotilla/shard/kv"
)

// hand does to a store what the loop of a host does, step by step by hand.
type hand struct {
	*node
	groups  map[raft.ShardID]*handGroup
	machine *kv.Machine
	value   int // bytes of the values that entries put
}

type handGroup struct {
	desc raft.Descriptor
	hard raft.HardState
	as   raft.AppliedState
	log  []raft.Entry // behind as.TruncIndex
}

func (g *handGroup) last() raft.Index { return g.as.TruncIndex + raft.Index(len(g.log)) }

func (g *handGroup) at(i raft.Index) raft.Entry { return g.log[i-g.as.TruncIndex-1] }

// byHand opens node 1.
func byHand(r *Run) (*hand, error) {
	n, err := r.AddNode(1)
	return &hand{node: n, groups: map[raft.ShardID]*handGroup{}, machine: kv.NewMachine(), value: 20 + r.rng.IntN(300)}, err
}

// reopen closes the store in order, or leaves it as a crash of the process does,
// and opens it again.
func (h *hand) reopen() error {
	h.r.Note("close and open")
	from := h.r.j.Len()
	if err := h.e.Close(); err != nil {
		return err
	}
	h.durable("a clean close")
	if err := h.open(); err != nil {
		return err
	}
	return h.see(from)
}

// spanOf gives every shard a span of its own.
func spanOf(s raft.ShardID) (start, end []byte) {
	return fmt.Appendf(nil, "s%04d", s), fmt.Appendf(nil, "s%04d", s+1)
}

func descOf(s raft.ShardID, nodes ...raft.NodeID) raft.Descriptor {
	start, end := spanOf(s)
	d := raft.Descriptor{Shard: s, Keyspace: 1, Start: start, End: end, ConfVer: 1, Version: 1, NextReplica: raft.ReplicaID(len(nodes) + 1)}
	for i, n := range nodes {
		d.Replicas = append(d.Replicas, raft.Replica{Node: n, ID: raft.ReplicaID(i + 1), Role: raft.Voter})
	}
	return d
}

// round commits ops as one batch. A synced one is waited for, and promised.
func (h *hand) round(sync bool, ops ...func(b *engine.Batch) error) error {
	b := h.e.NewBatch()
	defer b.Close()
	for _, op := range ops {
		if err := op(b); err != nil {
			return err
		}
	}
	from := h.r.j.Len()
	if err := b.Commit(sync); err != nil {
		return err
	}
	if err := h.see(from); err != nil || !sync {
		return err
	}
	if err := b.Wait(); err != nil {
		return err
	}
	h.durable("a synced round")
	return nil
}

func (h *hand) create(ids ...raft.ShardID) error {
	h.r.Note("create %v", ids)
	return h.round(true, func(b *engine.Batch) error {
		for _, id := range ids {
			g := &handGroup{desc: descOf(id, 1, 2, 3), hard: raft.HardState{Term: 1}}
			if lowest, ok, err := h.e.Tombstone(id); err != nil {
				return err
			} else if ok {
				g.desc.Replicas[0].ID = lowest
				g.desc.NextReplica = lowest + 3
			}
			h.groups[id] = g
			b.SetDescriptor(&g.desc)
			b.SetApplied(id, g.as)
			b.SetHardState(id, g.hard)
		}
		return nil
	})
}

// put makes the command of entry i.
func (h *hand) put(g *handGroup, i raft.Index) raft.Command {
	key := fmt.Appendf(nil, "%s/%05d", g.desc.Start, int(i)%200)
	var c raft.Command
	var err error
	switch {
	case i%11 == 10:
		c, err = shard.DeleteCommand(key)
	case i%17 == 16:
		c, err = shard.DeleteRangeCommand(fmt.Appendf(nil, "%s/%05d", g.desc.Start, max(0, int(i)%200-9)), key)
	default:
		c, err = shard.PutCommand(key, []byte(fmt.Sprintf("%d@%d", i, g.hard.Term)+strings.Repeat("v", h.value)))
	}
	if err != nil {
		panic(err) // a key of this function's own making
	}
	return c
}

// appendTo extends the log of a group by n entries from index first on.
func (h *hand) appendTo(id raft.ShardID, first raft.Index, n int) func(b *engine.Batch) error {
	return func(b *engine.Batch) error {
		g := h.groups[id]
		old := g.last()
		if first == 0 {
			first = old + 1
		}
		if first <= old {
			g.hard.Term++
		}
		var ents []raft.Entry
		for i := first; i < first+raft.Index(n); i++ {
			c := h.put(g, i)
			v := raft.EncodeEntry(nil, i, g.hard.Term, raft.EntryNormal, raft.EntryHeader{DescVersion: 1, GroupTs: uint64(i)}, []raft.Command{c})
			ents = append(ents, raft.Entry{Index: i, Term: g.hard.Term, Type: raft.EntryNormal, Value: v})
		}
		g.log = append(slices.Clone(g.log[:first-g.as.TruncIndex-1]), ents...)
		b.Append(id, old, ents)
		b.SetHardState(id, g.hard)
		return nil
	}
}

// apply applies up to n entries.
func (h *hand) apply(id raft.ShardID, n int) func(b *engine.Batch) error {
	return func(b *engine.Batch) error {
		g := h.groups[id]
		for range n {
			if g.as.Applied == g.last() {
				break
			}
			e := g.at(g.as.Applied + 1)
			hdr, err := e.Header()
			if err != nil {
				return err
			}
			a := multiraft.ApplyContext{Desc: &g.desc, Entry: e, Header: hdr}
			if err := h.machine.Apply(b, &a); err != nil {
				return err
			}
			g.as.Applied, g.as.AppliedTerm, g.as.GroupTs = e.Index, e.Term, hdr.GroupTs
			g.as.WrittenBytes += a.WrittenBytes
			g.as.WrittenKeys += a.WrittenKeys
		}
		b.SetApplied(id, g.as)
		return nil
	}
}

// truncate cuts the log behind what is applied, keeping some entries.
func (h *hand) truncate(id raft.ShardID, keep int) func(b *engine.Batch) error {
	return func(b *engine.Batch) error {
		g := h.groups[id]
		from := g.as.TruncIndex
		if int(g.as.Applied-from) <= keep {
			return nil
		}
		to := g.as.Applied - raft.Index(keep)
		if h.e.DefersApply() {
			if to = min(to, h.flushed[id]); to <= from {
				return nil
			}
		}
		term := g.at(to).Term
		b.Truncate(id, from, to, term)
		g.log = slices.Clone(g.log[to-from:])
		g.as.TruncIndex, g.as.TruncTerm = to, term
		b.SetApplied(id, g.as)
		return nil
	}
}

// vote changes the hard state.
func (h *hand) vote(id raft.ShardID, term raft.Term, vote raft.ReplicaID) func(b *engine.Batch) error {
	return func(b *engine.Batch) error {
		g := h.groups[id]
		g.hard = raft.HardState{Term: term, Vote: vote}
		b.SetHardState(id, g.hard)
		return nil
	}
}

// step does something that is complete and durable when it returns.
func (h *hand) step(what string, f func() error) error {
	h.r.Note("%s", what)
	from := h.r.j.Len()
	if err := f(); err != nil {
		return fmt.Errorf("%s: %w", what, err)
	}
	if err := h.see(from); err != nil {
		return fmt.Errorf("%s: %w", what, err)
	}
	h.durable(what)
	return nil
}

func (h *hand) gate() error  { return h.step("disk gate", h.e.SyncNow) }
func (h *hand) flush() error { return h.step("flush", h.e.Flush) }

func (h *hand) destroy(id raft.ShardID) error {
	g := h.groups[id]
	delete(h.groups, id)
	delete(h.flushed, id)
	return h.step(fmt.Sprintf("destroy %d", id), func() error { return h.e.Destroy(id, &g.desc, g.desc.Replicas[0].ID+1) })
}

// install replaces a group by a snapshot that is ahead of it by some entries.
func (h *hand) install(id raft.ShardID, keys int, tables bool) error {
	g := h.groups[id]
	if g == nil {
		g = &handGroup{desc: descOf(id, 1, 2, 3), hard: raft.HardState{Term: 1}}
		if lowest, ok, err := h.e.Tombstone(id); err != nil {
			return err
		} else if ok {
			g.desc.Replicas[0].ID = lowest
		}
		h.groups[id] = g
	}
	g.hard = raft.HardState{Term: g.hard.Term + 1}
	at := g.last() + 10
	if next := g.as.Applied + 1; next < g.last() { // the rest of its log has gone another way than its leader's
		at = next
	}
	g.as = raft.AppliedState{Applied: at, AppliedTerm: g.hard.Term, TruncIndex: at, TruncTerm: g.hard.Term, GroupTs: uint64(at)}
	g.log = nil
	h.flushed[id] = at
	var kvs []engine.KV
	for i := range keys {
		v := shard.AppendRecord(nil, shard.Version{Lineage: id, Index: at}, 0, []byte(fmt.Sprintf("snapshot %d", at)+strings.Repeat("v", h.value)))
		kvs = append(kvs, engine.KV{Key: fmt.Appendf(nil, "%s/%05d", g.desc.Start, i*3), Value: v})
	}
	in := engine.Install{Desc: g.desc, Applied: g.as, Hard: g.hard, State: []engine.KV{{Key: []byte("s-test"), Value: []byte(fmt.Sprint(at))}}}
	return h.step(fmt.Sprintf("install a snapshot of %d, tables %v", id, tables), func() error {
		if !tables {
			in.SmallKVs = kvs
			return h.e.InstallSnapshot(in)
		}
		path := h.e.FS().PathJoin(h.e.StagingDir(), fmt.Sprintf("t%d-%d", id, at))
		w, err := h.e.NewSSTWriter(path)
		if err != nil {
			return err
		}
		for _, kv := range kvs {
			if err := w.Set(engine.DataKey(1, kv.Key), kv.Value); err != nil {
				return err
			}
		}
		if _, err := w.Finish(); err != nil {
			return err
		}
		in.Data = []string{path}
		return h.e.InstallSnapshot(in)
	})
}

// do runs steps until one fails.
func do(steps ...func() error) error {
	for _, s := range steps {
		if err := s(); err != nil {
			return err
		}
	}
	return nil
}

// kill ends the process without a word: what was not synced and not written by
// Pebble is lost. The disk goes on with what it holds.
func (h *hand) kill() error {
	h.r.Note("process killed")
	return h.reopen()
}
