package sim

import (
	"fmt"
	"slices"

	"github.com/flotillakv/flotilla/multiraft/raft"
)

// support is the durable record of the support one node gives another.
type support struct {
	epoch     raft.Epoch
	withdrawn bool
}

// image is the content of one node's model store.
type image struct {
	exists  bool           // a replica of the group is here
	replica raft.ReplicaID // its id
	tomb    raft.ReplicaID // replicas with a smaller id were destroyed here
	hard    raft.HardState
	applied raft.AppliedState
	desc    raft.Descriptor
	sum     uint64       // digest of the state machine
	log     []raft.Entry // (applied.TruncIndex, last()]
	support [maxNodes]support
}

func (im *image) last() raft.Index {
	return im.applied.TruncIndex + raft.Index(len(im.log))
}

// term returns the term of entry i, or false if i was truncated or is missing.
func (im *image) term(i raft.Index) (raft.Term, bool) {
	switch trunc := im.applied.TruncIndex; {
	case i == trunc:
		return im.applied.TruncTerm, true
	case i < trunc || i > im.last():
		return 0, false
	default:
		return im.log[i-trunc-1].Term, true
	}
}

// entries returns a copy of the entries [lo, hi].
func (im *image) entries(lo, hi raft.Index) []raft.Entry {
	trunc := im.applied.TruncIndex
	if lo <= trunc || lo > hi || lo > im.last() {
		return nil
	}
	return slices.Clone(im.log[lo-trunc-1 : min(hi, im.last())-trunc])
}

func (im *image) clone() image {
	c := *im
	c.log = slices.Clone(im.log)
	c.desc = im.desc.Clone()
	return c
}

// state returns what a core is built from.
func (im *image) state() raft.State {
	st := raft.State{Hard: im.hard, Applied: im.applied, Desc: im.desc.Clone(), Last: im.last()}
	for _, e := range im.log {
		if n := len(st.Runs); n == 0 || st.Runs[n-1].Term != e.Term {
			st.Runs = append(st.Runs, raft.TermRun{First: e.Index, Term: e.Term})
		}
	}
	st.Tail = im.entries(im.applied.Applied+1, im.last())
	return st
}

// op is one write of a batch. Exactly one pointer or the kind alone is used.
type op struct {
	kind    opKind
	append  raft.AppendTask
	hard    raft.HardState
	applied raft.AppliedState
	sum     uint64
	desc    raft.Descriptor
	replica raft.ReplicaID
	node    int
	support support
}

type opKind uint8

const (
	opAppend opKind = iota + 1
	opHard
	opApplied // applied and sum
	opDesc
	opTruncate // applied.TruncIndex, applied.TruncTerm
	opInstall  // everything of a replica
	opDestroy
	opSupport
)

// do carries out one write.
func (im *image) do(o *op) {
	switch o.kind {
	case opAppend:
		first := o.append.Entries[0].Index
		if first <= im.applied.TruncIndex || first > im.last()+1 {
			panic(violation{"S18", fmt.Sprintf("append at %d to a log (%d, %d]", first, im.applied.TruncIndex, im.last())})
		}
		im.log = append(im.log[:first-im.applied.TruncIndex-1], o.append.Entries...)
	case opHard:
		im.hard = o.hard
	case opApplied:
		t, tt := im.applied.TruncIndex, im.applied.TruncTerm
		im.applied, im.sum = o.applied, o.sum
		im.applied.TruncIndex, im.applied.TruncTerm = t, tt
	case opDesc:
		im.desc = o.desc
	case opTruncate:
		n := int(o.applied.TruncIndex - im.applied.TruncIndex)
		im.log = slices.Clone(im.log[n:])
		im.applied.TruncIndex, im.applied.TruncTerm = o.applied.TruncIndex, o.applied.TruncTerm
	case opInstall:
		im.exists, im.replica = true, o.replica
		im.hard, im.applied, im.sum, im.desc = o.hard, o.applied, o.sum, o.desc
		im.log, im.tomb = nil, max(im.tomb, o.replica)
	case opDestroy:
		tomb, sup := max(im.tomb, im.replica+1), im.support
		*im = image{tomb: tomb, support: sup}
	case opSupport:
		im.support[o.node] = o.support
	}
}

// batch is one atomic write: visible at once, durable after a sync.
type batch struct {
	ops   []op
	held  []raft.Msg     // to be sent once durable
	marks []raft.LogMark // to be handed to Core.Appended once durable
	sync  bool           // somebody waits for durability
	token []int          // liveness records of these nodes wait
	life  uint32         // the core that held and marks belong to
}

// disk is the model store of one node. Invariant: visible is durable plus all
// pending batches in order; a crash keeps durable plus a prefix of pending.
type disk struct {
	durable image
	visible image
	pending []batch
	busy    bool // a sync is in progress
	covers  int  // how many pending batches the sync in progress covers
}

// commit makes a batch visible.
func (d *disk) commit(b batch) {
	for i := range b.ops {
		d.visible.do(&b.ops[i])
	}
	d.pending = append(d.pending, b)
}

// persist makes the oldest pending batch durable and returns it.
func (d *disk) persist() batch {
	b := d.pending[0]
	d.pending = d.pending[1:]
	for i := range b.ops {
		d.durable.do(&b.ops[i])
	}
	return b
}

// crash loses all pending batches but the first keep ones.
func (d *disk) crash(keep int) {
	for range keep {
		d.persist()
	}
	d.pending, d.busy, d.covers = nil, false, 0
	d.visible = d.durable.clone()
}

// wantSync reports whether a pending batch waits for a sync.
func (d *disk) wantSync() bool {
	for i := range d.pending {
		if d.pending[i].sync {
			return true
		}
	}
	return false
}
