package engine

import (
	"encoding/binary"
	"errors"
	"fmt"
	"slices"

	"github.com/cockroachdb/pebble/v2"

	"github.com/flotillakv/flotilla/internal/mutants"
	"github.com/flotillakv/flotilla/multiraft/raft"
)

// readApplied is the one function that reads an applied state.
func (e *Engine) readApplied(get getter, s raft.ShardID) (as raft.AppliedState, ok bool, err error) {
	var kb [16]byte
	b, ok, err := get(appliedKey(kb[:0], s))
	if err != nil || !ok {
		return as, false, err
	}
	if as, err = raft.DecodeAppliedState(b); err != nil {
		return as, false, &GroupError{Shard: s, Err: fmt.Errorf("applied state: %w", err)}
	}
	return as, true, nil
}

// SetApplied writes the applied state of a group: the one function that does.
// It belongs into the batch that holds the effects it describes (I2).
func (b *Batch) SetApplied(s raft.ShardID, as raft.AppliedState) {
	b.key = appliedKey(b.key[:0], s)
	b.val = as.Encode(b.val[:0])
	b.set(b.key, b.val)
}

// SetHardState writes the hard state of a group. The batch must be synced
// before anything that the hard state promises is told to a peer.
func (b *Batch) SetHardState(s raft.ShardID, hs raft.HardState) {
	b.key = hardKey(b.key[:0], s)
	b.val = hs.Encode(b.val[:0])
	b.set(b.key, b.val)
}

// SetDescriptor writes the descriptor of d.Shard. A group exists on this node
// if it has a descriptor; together with SetApplied and SetHardState this
// creates one.
func (b *Batch) SetDescriptor(d *raft.Descriptor) {
	b.key = descKey(b.key[:0], d.Shard)
	b.val = d.Encode(b.val[:0])
	b.set(b.key, b.val)
	if b.e.def == nil || b.throughSet[d.Shard] {
		return
	}
	if b.throughSet == nil {
		b.throughSet = make(map[raft.ShardID]bool)
	}
	b.throughSet[d.Shard] = true // a batch may create thousands of groups
	b.through = append(b.through, d.Clone())
}

// SetGroup writes a record of the applied side of a group other than applied
// state and descriptor (sessions, for example). It travels with snapshots.
// Suffixes 'a' and 'd' alone are taken.
func (b *Batch) SetGroup(s raft.ShardID, suffix, val []byte) {
	b.key = append(appendGroup(b.key[:0], prefixApplied, s), suffix...)
	b.set(b.key, val)
}

// DeleteGroup deletes a record that SetGroup wrote.
func (b *Batch) DeleteGroup(s raft.ShardID, suffix []byte) {
	b.key = append(appendGroup(b.key[:0], prefixApplied, s), suffix...)
	b.delete(b.key)
}

// GetGroup returns a copy of a record that SetGroup wrote.
func (e *Engine) GetGroup(s raft.ShardID, suffix []byte) ([]byte, bool, error) {
	if err := e.enter(); err != nil {
		return nil, false, err
	}
	defer e.leave()
	return e.getRaw(append(StatePrefix(s), suffix...))
}

// Descriptor returns the descriptor of a group; ok is false if it has none here.
func (e *Engine) Descriptor(s raft.ShardID) (d raft.Descriptor, ok bool, err error) {
	if err := e.enter(); err != nil {
		return d, false, err
	}
	defer e.leave()
	b, ok, err := e.getRaw(descKey(nil, s))
	if err != nil || !ok {
		return d, false, err
	}
	if d, err = raft.DecodeDescriptor(b); err != nil {
		return d, false, &GroupError{Shard: s, Err: fmt.Errorf("descriptor: %w", err)}
	}
	return d.Clone(), true, nil
}

// GroupState is the durable state of one group, complete for raft.NewCore:
// Tail holds the entries (Applied, Last].
type GroupState struct{ raft.State }

// getter reads a raw key; the value is the caller's.
type getter func(key []byte) ([]byte, bool, error)

// Load reads the state of one group. ok is false if it has no descriptor here.
func (e *Engine) Load(s raft.ShardID) (st raft.State, ok bool, err error) {
	if err := e.enter(); err != nil {
		return st, false, err
	}
	defer e.leave()
	// Nobody's log changes meanwhile: what is read through iterators and what is known in
	// memory are of one moment.
	e.journal.gate.Lock()
	defer e.journal.gate.Unlock()
	var state *pebble.Iterator
	var get getter
	if d := e.def; d != nil {
		// What is in memory is newer than what is in tables, and was applied after what
		// the log says: the iterators are made before anything else goes to memory.
		d.mu.RLock()
		val, kind := d.getLocked(appliedKey(nil, s), nil)
		state, err = e.newRawIter(StatePrefix(s), PrefixEnd(StatePrefix(s)))
		d.mu.RUnlock()
		get = func(key []byte) ([]byte, bool, error) {
			if kind == entrySet && len(key) == groupKeyLen+1 && key[groupKeyLen] == suffixApplied {
				return val, true, nil
			}
			return itGetter(state)(key)
		}
	} else if state, err = e.newRawIter(StatePrefix(s), PrefixEnd(StatePrefix(s))); err == nil {
		get = itGetter(state)
	}
	if err != nil {
		return st, false, err
	}
	defer state.Close()
	hard, err := state.Clone(pebble.CloneOptions{IterOptions: bounds(HardPrefix(s), PrefixEnd(HardPrefix(s)))})
	if err != nil {
		return st, false, err
	}
	defer hard.Close()
	logs, err := state.Clone(pebble.CloneOptions{IterOptions: bounds(LogPrefix(s), PrefixEnd(LogPrefix(s)))})
	if err != nil {
		return st, false, err
	}
	defer logs.Close()
	var val []byte
	var at recordID
	st, ok, err = e.loadGroup(s, get, itGetter(hard), logs, func(_ uint64, id recordID) ([]byte, error) {
		if at == id {
			return val, nil
		}
		v, done, err := e.readRecord(id)
		if err != nil {
			return nil, err
		}
		defer done()
		val, at = append(val[:0], v...), id
		return val, nil
	})
	if err == nil {
		err = e.iterError(errors.Join(state.Error(), hard.Error(), logs.Error()))
	}
	return st, ok, err
}

// LoadCut is Load for a group whose whole log is known to be applied and cut through last:
// it looks for no entries. ok is false if that is not so, or the group not here. The caller is
// the owner of the group, and nothing of it is being written.
func (e *Engine) LoadCut(s raft.ShardID, last raft.Index) (st raft.State, ok bool, err error) {
	if err := e.enter(); err != nil {
		return st, false, err
	}
	defer e.leave()
	bad := func(what string, err error) (raft.State, bool, error) {
		return raft.State{}, false, &GroupError{Shard: s, Err: fmt.Errorf("%s: %w", what, err)}
	}
	if st.Applied, ok, err = e.readApplied(e.getRaw, s); err != nil || !ok || st.Applied.Applied != last {
		return raft.State{}, false, err
	}
	var kb [logKeyLen]byte
	if as := &st.Applied; as.TruncIndex != last {
		b, ok, err := e.getRaw(truncKey(kb[:0], s))
		if err != nil || !ok {
			return raft.State{}, false, err
		}
		i, term, err := decodeTrunc(b)
		if err != nil {
			return bad("truncation", err)
		}
		if i != last {
			return raft.State{}, false, nil
		}
		as.TruncIndex, as.TruncTerm = i, term
	}
	b, ok, err := e.getRaw(descKey(kb[:0], s))
	if err != nil || !ok {
		return raft.State{}, false, err
	}
	d, err := raft.DecodeDescriptor(b) // of memory of its own
	if err != nil {
		return bad("descriptor", err)
	}
	if st.Desc = d; d.Shard != s {
		return bad("descriptor", fmt.Errorf("it is of shard %d: %w", d.Shard, raft.ErrCorrupt))
	}
	if b, ok, err = e.getRaw(hardKey(kb[:0], s)); err != nil {
		return raft.State{}, false, err
	} else if ok {
		if st.Hard, err = raft.DecodeHardState(b); err != nil {
			return bad("hard state", err)
		}
	}
	if st.Hard.Commit > last {
		return raft.State{}, false, nil // Load says what is wrong
	}
	st.Last = last
	return st, true, nil
}

// itGetter reads single keys through an iterator, so that all reads are of one view.
func itGetter(it *pebble.Iterator) getter {
	return func(key []byte) ([]byte, bool, error) {
		if !it.SeekGE(key) || string(it.Key()) != string(key) {
			return nil, false, it.Error()
		}
		v, err := it.ValueAndErr()
		return v, err == nil, err
	}
}

// loadGroup reads one group and checks that its parts belong together.
func (e *Engine) loadGroup(s raft.ShardID, state, hard getter, logs *pebble.Iterator, record func(uint64, recordID) ([]byte, error)) (st raft.State, ok bool, err error) {
	var kb [logKeyLen]byte
	bad := func(i raft.Index, format string, args ...any) (raft.State, bool, error) {
		return raft.State{}, false, &GroupError{Shard: s, Index: i, Err: fmt.Errorf(format, args...)}
	}
	as, _, applErr := e.readApplied(state, s) // keys are asked for in their order: see walker
	b, ok, err := state(descKey(kb[:0], s))
	if err != nil || !ok {
		return st, false, err
	}
	d, err := raft.DecodeDescriptor(b)
	if err != nil {
		return bad(0, "descriptor: %w", err)
	}
	if st.Desc = d; d.Shard != s { // of memory of its own
		return bad(0, "descriptor of shard %d: %w", st.Desc.Shard, raft.ErrCorrupt)
	}
	if st.Applied = as; applErr != nil {
		return st, false, applErr
	}
	if b, ok, err = hard(hardKey(kb[:0], s)); err != nil {
		return st, false, err
	} else if ok {
		if st.Hard, err = raft.DecodeHardState(b); err != nil {
			return bad(0, "hard state: %w", err)
		}
	}
	if mutants.On("F4") { // what is in the log is applied once more
		st.Applied.Applied, st.Applied.AppliedTerm = st.Applied.TruncIndex, st.Applied.TruncTerm
	}
	if b, ok, err = hard(truncKey(kb[:0], s)); err != nil {
		return st, false, err
	} else if ok {
		i, term, err := decodeTrunc(b)
		if err != nil {
			return bad(0, "truncation: %w", err)
		}
		if i > st.Applied.TruncIndex {
			st.Applied.TruncIndex, st.Applied.TruncTerm = i, term
		}
	}
	if as = st.Applied; as.TruncIndex > as.Applied {
		return bad(0, "truncated through %d, applied only through %d: %w", as.TruncIndex, as.Applied, raft.ErrCorrupt)
	}
	st.Last = as.TruncIndex
	err = e.eachEntry(s, st.Last, logs, record, func(i raft.Index, v []byte) error {
		fail := func(format string, args ...any) error {
			return &GroupError{Shard: s, Index: i, Err: fmt.Errorf(format, args...)}
		}
		if i != st.Last+1 {
			return fail("entry %d follows index %d (applied %d, truncated %d): %w", i, st.Last, as.Applied, as.TruncIndex, raft.ErrCorrupt)
		}
		var term raft.Term
		if i > as.Applied {
			en, err := raft.DecodeEntry(i, slices.Clone(v))
			if err != nil {
				return fail("%w", err)
			}
			term = en.Term
			st.Tail = append(st.Tail, en)
		} else {
			var err error
			if term, _, err = raft.PeekEntry(v); err != nil {
				return fail("%w", err)
			}
		}
		if n := len(st.Runs); n == 0 || st.Runs[n-1].Term != term {
			if n > 0 && st.Runs[n-1].Term > term {
				return fail("term %d after term %d: %w", term, st.Runs[n-1].Term, raft.ErrCorrupt)
			}
			st.Runs = append(st.Runs, raft.TermRun{First: i, Term: term})
		}
		st.Last = i
		return nil
	})
	if err != nil {
		return raft.State{}, false, err
	}
	if st.Last < as.Applied {
		return bad(0, "log ends at %d, applied through %d: %w", st.Last, as.Applied, raft.ErrCorrupt)
	}
	if st.Hard.Commit > st.Last {
		return bad(0, "log ends at %d, committed through %d: %w", st.Last, st.Hard.Commit, raft.ErrCorrupt)
	}
	return st, true, nil
}

// How far a log is cut, where applying is deferred: version u8, index u64, term
// u64. It goes with the deletions, since the applied state that says so too comes
// to the disk later.
func encodeTrunc(dst []byte, i raft.Index, t raft.Term) []byte {
	dst = binary.BigEndian.AppendUint64(append(dst, 1), uint64(i))
	return binary.BigEndian.AppendUint64(dst, uint64(t))
}

func decodeTrunc(b []byte) (raft.Index, raft.Term, error) {
	if len(b) != 17 || b[0] != 1 {
		return 0, 0, fmt.Errorf("record %x is damaged: %w", b, raft.ErrCorrupt)
	}
	return raft.Index(binary.BigEndian.Uint64(b[1:])), raft.Term(binary.BigEndian.Uint64(b[9:])), nil
}

// The boot epoch as stored in Pebble: version u8, epoch u64.
func encodeRequester(dst []byte, epoch uint64) []byte {
	return binary.BigEndian.AppendUint64(append(dst, 1), epoch)
}

func decodeRequester(b []byte) (uint64, error) {
	if len(b) != 9 || b[0] != 1 {
		return 0, fmt.Errorf("boot epoch record %x is damaged", b)
	}
	return binary.BigEndian.Uint64(b[1:]), nil
}

// SupportRecord says at which epoch this node supports (or has withdrawn its
// support of) another one.
type SupportRecord struct {
	Node      raft.NodeID
	Epoch     raft.Epoch
	Withdrawn bool
}

// A support record's value: version u8, epoch u64, flags u8 (bit 0: withdrawn).
func (r SupportRecord) encode(dst []byte) []byte {
	dst = binary.BigEndian.AppendUint64(append(dst, 1), uint64(r.Epoch))
	if r.Withdrawn {
		return append(dst, 1)
	}
	return append(dst, 0)
}

func decodeSupport(n raft.NodeID, b []byte) (SupportRecord, error) {
	if len(b) != 10 || b[0] != 1 || b[9] > 1 {
		return SupportRecord{}, fmt.Errorf("engine: support record %x of node %d is damaged", b, n)
	}
	return SupportRecord{Node: n, Epoch: raft.Epoch(binary.BigEndian.Uint64(b[1:])), Withdrawn: b[9] == 1}, nil
}

// SaveSupport writes support records; they are durable when it returns nil.
// An error means that the store has failed.
func (e *Engine) SaveSupport(recs ...SupportRecord) error {
	if err := e.enter(); err != nil {
		return err
	}
	defer e.leave()
	pb := e.db.NewBatch()
	for _, r := range recs {
		if err := pb.Set(supporterKey(nil, r.Node), r.encode(nil), nil); err != nil {
			return err
		}
	}
	return e.applySynced(pb)
}

// LoadSupport reads all support records, ordered by node. A damaged one refuses
// the store with an *OpenError.
func (e *Engine) LoadSupport() ([]SupportRecord, error) {
	if err := e.enter(); err != nil {
		return nil, err
	}
	defer e.leave()
	prefix := []byte{prefixStore, tagLiveness, tagSupporter}
	var out []SupportRecord
	err := e.eachRaw(prefix, PrefixEnd(prefix), func(k Key, v []byte) (bool, error) {
		r, err := decodeSupport(k.Node, v)
		if err != nil {
			return false, e.openErr(Corrupt, e.replaceHint(), err)
		}
		out = append(out, r)
		return true, nil
	})
	if err != nil {
		return nil, err
	}
	return out, nil
}
