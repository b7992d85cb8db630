package interop

import (
	"hash/fnv"

	"github.com/flotillakv/flotilla/multiraft/raft"
)

// oracle sees everything.
type oracle struct {
	leaders map[raft.Term]raft.ReplicaID
	votes   map[ballot]raft.ReplicaID
	entries []uint64 // digest of the state after each index, from the first one on
	first   raft.Index
	confs   map[uint64]raft.Descriptor // by ConfVer
	reads   map[uint64]raft.Index      // what was applied anywhere when the read began
	newest  raft.Index
	readCtx uint64
	fresh   bool // the entry that was applied last had not been applied anywhere before
}

type ballot struct {
	voter raft.ReplicaID
	term  raft.Term
}

func newOracle(first *snapshot) *oracle {
	return &oracle{
		leaders: map[raft.Term]raft.ReplicaID{}, votes: map[ballot]raft.ReplicaID{}, confs: map[uint64]raft.Descriptor{},
		reads: map[uint64]raft.Index{}, first: first.index, newest: first.index, entries: []uint64{first.state.digest},
	}
}

func (o *oracle) leader(w *world, t raft.Term, id raft.ReplicaID, kind string) {
	if was, ok := o.leaders[t]; ok && was != id {
		w.fail("replicas %d and %d (%s) both lead term %d", was, id, kind, t)
	}
	o.leaders[t] = id
	w.note("replica %d (%s) leads term %d", id, kind, t)
}

func (o *oracle) vote(w *world, voter raft.ReplicaID, t raft.Term, candidate raft.ReplicaID) {
	k := ballot{voter, t}
	if was, ok := o.votes[k]; ok && was != candidate {
		w.fail("replica %d votes for %d and for %d in term %d", voter, was, candidate, t)
	}
	o.votes[k] = candidate
}

// apply moves a replica's state over one entry and compares it with what others
// had there.
func (o *oracle) apply(w *world, id raft.ReplicaID, st *state, e raft.Entry) {
	h := fnv.New64a()
	var b [8]byte
	for i := range b {
		b[i] = byte(st.digest >> (8 * i))
	}
	h.Write(b[:])
	h.Write(e.Value) // holds the term; the checksum in it covers the index
	st.digest = h.Sum64()
	if e.Type == raft.EntryConf {
		cc, err := e.ConfChange()
		w.must(err)
		if next, err := st.desc.Apply(cc); err == nil {
			st.desc, st.confIndex = next, e.Index
			w.res.Confs++
			if was, ok := o.confs[next.ConfVer]; !ok {
				o.confs[next.ConfVer] = next
				for _, r := range next.Replicas {
					w.homes[r.ID] = r.Node
				}
				w.note("entry %d: configuration %d: %v", e.Index, next.ConfVer, next.Replicas)
			} else if !sameConf(&was, &next) {
				w.fail("configuration %d is %v at replica %d, elsewhere %v", next.ConfVer, next.Replicas, id, was.Replicas)
			}
		}
	}
	o.fresh = false
	o.state(w, id, e.Index, st)
	if o.fresh && w.scripted {
		for _, c := range e.Commands() {
			if e.Type == raft.EntryNormal {
				w.commands = append(w.commands, string(c.Body))
			}
		}
	}
}

func sameConf(a, b *raft.Descriptor) bool { return string(a.Encode(nil)) == string(b.Encode(nil)) }

// state compares a replica's state at index with what others had there.
func (o *oracle) state(w *world, id raft.ReplicaID, index raft.Index, st *state) {
	switch i := int(index - o.first); {
	case i < len(o.entries):
		if o.entries[i] != st.digest {
			w.fail("replica %d has another state at index %d than others", id, index)
		}
	case i == len(o.entries):
		o.entries = append(o.entries, st.digest)
		o.newest = index
		o.fresh = true
	default:
		w.fail("replica %d is at index %d, nobody was at %d", id, index, o.newest+1)
	}
}

// begins opens a read.
func (o *oracle) begins() uint64 {
	o.readCtx++
	o.reads[o.readCtx] = o.newest
	return o.readCtx
}

func (o *oracle) answered(w *world, ctx uint64, index raft.Index) {
	least, ok := o.reads[ctx]
	if !ok {
		return
	}
	delete(o.reads, ctx)
	w.res.Reads++
	if index < least {
		w.fail("a read that began when %d was applied got index %d", least, index)
	}
}
