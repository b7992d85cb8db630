package router

import (
	"bytes"
	"encoding/binary"
	"iter"
	"slices"
	"sort"
	"sync/atomic"

	"github.com/flotillakv/flotilla/internal/mutants"
	"github.com/flotillakv/flotilla/multiraft/raft"
)

// Table remembers which shard holds which key range, and who led it last.
//
// Reads take no lock and allocate nothing: a keyspace is a sorted list of
// blocks of at most blockMax entries, published through one atomic pointer.
// A writer copies the list of blocks and the blocks it touches, and publishes
// the new list by compare-and-swap; a loser does its work again. Leader hints
// change far more often than ranges, so they live behind an atomic pointer of
// their own inside the entry and cost no copy.
//
// A table is a cache: it may be stale and it may have holes. Merge resolves
// what contradicts itself, by version; the reply of a node that was asked in
// vain brings the newer descriptors. The zero Table is empty and ready to use.
//
// A table with a limit forgets ranges that were not looked up for the longest time,
// block by block (the second-chance clock).
type Table struct {
	state atomic.Pointer[tableState]
	limit atomic.Int64 // of the ranges of a keyspace; zero: none
}

// SetLimit bounds the ranges that are kept of each keyspace, roughly: a few blocks
// that were changed last always stay. Zero: no bound.
func (t *Table) SetLimit(ranges int) { t.limit.Store(int64(ranges)) }

// blockMax bounds the entries of one block; a fuller one is cut in half. One
// update copies at most one block's entries and the list of blocks.
const blockMax = 256

// tableState is one immutable state of a Table. Keyspaces are few and sorted.
type tableState struct {
	spaces []space
}

// space holds the ranges of one keyspace: blocks sorted by their first entry.
// Invariant: no block is empty, ranges are disjoint and ascending.
type space struct {
	id     uint32
	blocks []*block
	firsts KeyIndex // first start key of each block
	count  int
}

// block is an immutable run of entries once its table state is published.
type block struct {
	owner  *edit       // the edit that made the block may still change it
	used   atomic.Bool // looked up since the clock came by
	ents   []*entry
	starts KeyIndex
	// abuts[i] says that ents[i] ends where ents[i+1] starts, so that no key
	// between the two start keys needs a look at the end.
	abuts []bool
}

// entry is one cached range. desc never changes; hint is swapped.
type entry struct {
	desc raft.Descriptor
	hint atomic.Pointer[leader]
}

// leader is a leader hint: node zero means that nobody is known to lead in term.
type leader struct {
	node raft.NodeID
	term raft.Term
}

// Route is a cached range as found by a lookup. It is a small value; the
// descriptor it points to is shared and must not be changed.
type Route struct {
	// Desc is the cached descriptor. Nil only in the zero Route.
	Desc *raft.Descriptor
	e    *entry
}

// Leader returns the last known leader of the range's shard and the term in
// which it led. A zero node means unknown; the term then says since when.
func (r Route) Leader() (raft.NodeID, raft.Term) {
	if r.e == nil {
		return 0, 0
	}
	if h := r.e.hint.Load(); h != nil {
		return h.node, h.term
	}
	return 0, 0
}

// SetLeader remembers that node led in term, and reports whether that was
// news. A hint of a lower term is ignored; in the same term a known leader
// replaces an unknown one and nothing else, since a term has one leader. Node
// zero says that term began and its leader is not known.
func (r Route) SetLeader(node raft.NodeID, term raft.Term) bool {
	for {
		old := r.e.hint.Load()
		if old != nil && (term < old.term || term == old.term && (old.node != 0 || node == 0)) {
			return false
		}
		if r.e.hint.CompareAndSwap(old, &leader{node: node, term: term}) {
			return true
		}
	}
}

// DropLeader forgets the hint if it still names node: node itself denied that
// it leads, or could not be reached. The term is kept.
func (r Route) DropLeader(node raft.NodeID) {
	old := r.e.hint.Load()
	if old != nil && old.node == node {
		r.e.hint.CompareAndSwap(old, &leader{term: old.term})
	}
}

// ConfirmLeader remembers that node just answered as the leader, in a term the
// answer did not tell. The term of the hint stays, so that any hint of a later
// term still wins.
func (r Route) ConfirmLeader(node raft.NodeID) {
	old := r.e.hint.Load()
	switch {
	case old == nil:
		r.e.hint.CompareAndSwap(nil, &leader{node: node})
	case old.node != node:
		r.e.hint.CompareAndSwap(old, &leader{node: node, term: old.term})
	}
}

// Lookup returns the cached range that holds key. It allocates nothing.
func (t *Table) Lookup(keyspace uint32, key []byte) (Route, bool) {
	s := t.state.Load().space(keyspace)
	if s == nil {
		return Route{}, false
	}
	i := s.firsts.Floor(key, s.blockStart)
	if i < 0 {
		return Route{}, false
	}
	b := s.blocks[i]
	if !b.used.Load() { // else nothing is written, and no processor takes the line from others
		b.used.Store(true)
	}
	i = b.starts.Floor(key, b.start)
	e := b.ents[i]
	if !b.abuts[i] && !before(key, e.desc.End) {
		return Route{}, false
	}
	return Route{Desc: &e.desc, e: e}, true
}

// LookupBefore returns the cached range that holds the keys just below end,
// that is Start < end <= End. An empty end stands for the end of the keyspace.
// A reverse scan walks the shards with it.
func (t *Table) LookupBefore(keyspace uint32, end []byte) (Route, bool) {
	s := t.state.Load().space(keyspace)
	if s == nil {
		return Route{}, false
	}
	e := s.below(end)
	if e == nil || len(e.desc.End) > 0 && (len(end) == 0 || bytes.Compare(e.desc.End, end) < 0) {
		return Route{}, false
	}
	return Route{Desc: &e.desc, e: e}, true
}

// SetLeader is Route.SetLeader for the range that holds key, if it is cached
// and belongs to shard.
func (t *Table) SetLeader(keyspace uint32, key []byte, shard raft.ShardID, node raft.NodeID, term raft.Term) bool {
	r, ok := t.Lookup(keyspace, key)
	return ok && r.Desc.Shard == shard && r.SetLeader(node, term)
}

// Len returns the number of cached ranges of a keyspace.
func (t *Table) Len(keyspace uint32) int {
	if s := t.state.Load().space(keyspace); s != nil {
		return s.count
	}
	return 0
}

// All yields the cached ranges of a keyspace in key order, as of the call.
func (t *Table) All(keyspace uint32) iter.Seq[Route] {
	s := t.state.Load().space(keyspace)
	return func(yield func(Route) bool) {
		if s == nil {
			return
		}
		for _, b := range s.blocks {
			for _, e := range b.ents {
				if !yield(Route{Desc: &e.desc, e: e}) {
					return
				}
			}
		}
	}
}

// Merge takes descriptors into the table and returns how many of them changed
// it. The table keeps copies. For each descriptor:
//
//  1. The same shard is cached: the higher (Version, ConfVer) stays. The leader
//     hint moves to the new entry.
//  2. Other shards are cached that overlap it: a higher Version wins over a
//     lower one, since a split or merge raises the version above that of every
//     range it came from; of equal versions the higher shard id, the younger
//     shard, wins. If any overlapping entry wins, the descriptor is dropped;
//     else all of them are removed, even if that leaves a hole (which the next
//     lookup fills).
//
// A descriptor whose Start is not below its End, or without shard, is ignored.
func (t *Table) Merge(descs ...raft.Descriptor) int {
	if !slices.ContainsFunc(descs, func(d raft.Descriptor) bool { return !t.knows(&d) }) {
		return 0 // as most replies tell what is known, this costs no copy
	}
	for {
		old := t.state.Load()
		ed := newEdit(old)
		changed := 0
		for i := range descs {
			if ed.merge(&descs[i]) {
				changed++
			}
		}
		if changed == 0 {
			return 0
		}
		ed.trim(int(t.limit.Load()))
		if t.state.CompareAndSwap(old, ed.finish()) {
			return changed
		}
	}
}

// knows reports whether Merge would drop d: the entry at its start wins over it.
func (t *Table) knows(d *raft.Descriptor) bool {
	r, ok := t.Lookup(d.Keyspace, d.Start)
	return ok && !newer(d, r.Desc)
}

// Evict removes the entry that r was found in, unless a newer one has taken
// its place. The next lookup of its keys asks the source.
func (t *Table) Evict(r Route) bool {
	for {
		old := t.state.Load()
		ed := newEdit(old)
		if !ed.evict(r.e) {
			return false
		}
		if t.state.CompareAndSwap(old, ed.finish()) {
			return true
		}
	}
}

// space returns the ranges of keyspace id, or nil.
func (st *tableState) space(id uint32) *space {
	if st == nil {
		return nil
	}
	for i := range st.spaces {
		if st.spaces[i].id == id {
			return &st.spaces[i]
		}
	}
	return nil
}

// below returns the entry with the highest Start < end (empty: no bound), or nil.
func (s *space) below(end []byte) *entry {
	if len(end) == 0 {
		last := s.blocks[len(s.blocks)-1]
		return last.ents[len(last.ents)-1]
	}
	bi, i := s.position(end)
	if i--; i < 0 {
		if bi--; bi < 0 {
			return nil
		}
		i = len(s.blocks[bi].ents) - 1
	}
	return s.blocks[bi].ents[i]
}

// position returns where an entry with this start key is or would be put:
// block and offset of the first entry with Start >= key. The offset may be one
// past the block's last entry.
func (s *space) position(key []byte) (bi, i int) {
	bi = sort.Search(len(s.blocks), func(i int) bool {
		return bytes.Compare(s.blocks[i].ents[0].desc.Start, key) > 0
	}) - 1
	if bi < 0 {
		return 0, 0
	}
	ents := s.blocks[bi].ents
	return bi, sort.Search(len(ents), func(i int) bool { return bytes.Compare(ents[i].desc.Start, key) >= 0 })
}

func (s *space) blockStart(i int) []byte { return s.blocks[i].ents[0].desc.Start }
func (b *block) start(i int) []byte      { return b.ents[i].desc.Start }

// KeyIndex speeds up the search among sorted start keys that are stored
// elsewhere: it holds 8 bytes of each key as a number, taken behind the bytes
// all keys share, so that most probes read one machine word of one array.
// The first key takes no part in the shared bytes: the first range of a
// keyspace starts at the empty key, which shares nothing.
type KeyIndex struct {
	shared []byte
	word   []uint64
	// rest is the number of bytes each key has behind the shared ones, at most
	// restMax, which stands for "more than word holds".
	rest []uint8
}

const restMax = 9

// IndexKeys builds the index over n sorted keys, of which key(i) is the i-th.
func IndexKeys(n int, key func(int) []byte) KeyIndex {
	x := KeyIndex{word: make([]uint64, n), rest: make([]uint8, n)}
	if n > 1 {
		x.shared = sharedPrefix(key(1), key(n-1))
	}
	for i := 1; i < n; i++ {
		rest := key(i)[len(x.shared):]
		x.word[i], x.rest[i] = word(rest), uint8(min(len(rest), restMax))
	}
	return x
}

// Floor returns the index of the last key <= k, or -1. key is that of IndexKeys.
func (x *KeyIndex) Floor(k []byte, key func(int) []byte) int {
	if i := x.floorBehindFirst(k, key); i > 0 {
		return i
	}
	if len(x.word) == 0 || bytes.Compare(key(0), k) > 0 {
		return -1
	}
	return 0
}

// floorBehindFirst is Floor among keys[1:]. It returns 0 if none of them is <= k.
func (x *KeyIndex) floorBehindFirst(k []byte, key func(int) []byte) int {
	n := len(x.word)
	if n < 2 {
		return 0
	}
	if len(x.shared) > 0 {
		if !bytes.HasPrefix(k, x.shared) {
			if bytes.Compare(k, x.shared) < 0 {
				return 0
			}
			return n - 1
		}
		k = k[len(x.shared):]
	}
	w := word(k)
	base := 0 // the last index known to have word <= w; word[0] is 0
	for size := n; size > 1; {
		half := size / 2
		next := base
		if x.word[base+half] <= w {
			next = base + half // compiles to a conditional move
		}
		base = next
		size -= half
	}
	if base == 0 || x.word[base] != w || !x.above(base, k, key) {
		return base
	}
	return sort.Search(base, func(i int) bool { return i > 0 && x.word[i] == w && x.above(i, k, key) }) - 1
}

// above reports whether keys[i], whose word equals that of k, is above k. k
// lacks the shared bytes.
func (x *KeyIndex) above(i int, k []byte, key func(int) []byte) bool {
	switch rest := int(x.rest[i]); {
	case rest < restMax && len(k) < restMax:
		return rest > len(k)
	case rest < restMax:
		return false
	case len(k) < restMax:
		return true
	}
	return bytes.Compare(key(i)[len(x.shared):], k) > 0
}

// word returns the first 8 bytes of key, zero-padded, as a number that orders
// like the key: word(a) < word(b) implies a < b.
func word(key []byte) uint64 {
	if len(key) >= 8 {
		return binary.BigEndian.Uint64(key)
	}
	var w uint64
	for i, c := range key {
		w |= uint64(c) << (56 - 8*i)
	}
	return w
}

func sharedPrefix(a, b []byte) []byte {
	n := 0
	for n < len(a) && n < len(b) && a[n] == b[n] {
		n++
	}
	return a[:n:n]
}

// before reports whether key lies below the exclusive bound end (empty: none).
func before(key, end []byte) bool { return len(end) == 0 || bytes.Compare(key, end) < 0 }

// edit is one change of a table in the making: a private list of blocks, of
// which those it owns may be changed in place.
type edit struct {
	spaces []space
	dirty  []bool // spaces[i].blocks is private to this edit
}

func newEdit(st *tableState) *edit {
	ed := &edit{}
	if st != nil {
		ed.spaces = slices.Clone(st.spaces)
	}
	ed.dirty = make([]bool, len(ed.spaces))
	return ed
}

// finish builds the indexes of what was changed and returns the new state.
func (ed *edit) finish() *tableState {
	for i := range ed.spaces {
		if !ed.dirty[i] {
			continue
		}
		s := &ed.spaces[i]
		for _, b := range s.blocks {
			if b.owner == ed {
				b.index()
			}
		}
		s.firsts = IndexKeys(len(s.blocks), s.blockStart)
	}
	spaces := slices.DeleteFunc(ed.spaces, func(s space) bool { return s.count == 0 })
	return &tableState{spaces: spaces}
}

// index builds what lookups need and hands the block over to them.
func (b *block) index() {
	b.starts = IndexKeys(len(b.ents), b.start)
	b.abuts = make([]bool, len(b.ents))
	for i := range b.ents[1:] {
		b.abuts[i] = bytes.Equal(b.ents[i].desc.End, b.ents[i+1].desc.Start)
	}
	b.owner = nil
}

// merge applies the rules of Table.Merge to one descriptor.
func (ed *edit) merge(d *raft.Descriptor) bool {
	if d.Shard == 0 || !before(d.Start, d.End) {
		return false
	}
	s := ed.open(d.Keyspace)
	bi, i := s.position(d.Start)
	bi, i = stepBack(s, bi, i, d.Start)
	n := 0 // entries (bi, i) on that overlap d
	var same *entry
	for e := range s.from(bi, i) {
		if !before(e.desc.Start, d.End) {
			break
		}
		if !newer(d, &e.desc) {
			return false
		}
		if e.desc.Shard == d.Shard {
			same = e
		}
		n++
	}
	e := &entry{desc: cloneDescriptor(d)}
	if same != nil {
		e.hint.Store(same.hint.Load())
	}
	ed.replace(s, bi, i, n, e)
	return true
}

// trim removes blocks of keyspaces that hold more than limit ranges, until an eighth
// of the limit is free: those that were not looked up since the last time, and if that
// is not enough, others. Blocks of this edit stay.
func (ed *edit) trim(limit int) {
	for k := range ed.spaces {
		s := &ed.spaces[k]
		if limit <= 0 || s.count <= limit || !ed.dirty[k] || mutants.On("R-limit") {
			continue
		}
		for pass := range 2 {
			s.blocks = slices.DeleteFunc(s.blocks, func(b *block) bool {
				if s.count <= limit-limit/8 || b.owner == ed || pass == 0 && b.used.Swap(false) {
					return false
				}
				s.count -= len(b.ents)
				return true
			})
		}
	}
}

// evict removes e if it is still in the table.
func (ed *edit) evict(e *entry) bool {
	if e == nil {
		return false
	}
	k := slices.IndexFunc(ed.spaces, func(s space) bool { return s.id == e.desc.Keyspace })
	if k < 0 {
		return false
	}
	s := ed.open(e.desc.Keyspace)
	bi, i := s.position(e.desc.Start)
	if bi >= len(s.blocks) || i >= len(s.blocks[bi].ents) || s.blocks[bi].ents[i] != e {
		return false
	}
	ed.replace(s, bi, i, 1, nil)
	return true
}

// newer reports whether d takes the place of the overlapping cached old.
func newer(d, old *raft.Descriptor) bool {
	switch {
	case d.Version != old.Version:
		return d.Version > old.Version
	case d.Shard != old.Shard:
		return d.Shard > old.Shard
	default:
		return d.ConfVer > old.ConfVer
	}
}

// stepBack moves a position to the entry before it if that one reaches beyond start.
func stepBack(s *space, bi, i int, start []byte) (int, int) {
	pb, pi := bi, i-1
	if pi < 0 {
		if pb--; pb < 0 {
			return bi, i
		}
		pi = len(s.blocks[pb].ents) - 1
	}
	if len(s.blocks) > 0 && before(start, s.blocks[pb].ents[pi].desc.End) {
		return pb, pi
	}
	return bi, i
}

// from yields the entries from a position on.
func (s *space) from(bi, i int) iter.Seq[*entry] {
	return func(yield func(*entry) bool) {
		for ; bi < len(s.blocks); bi, i = bi+1, 0 {
			for ; i < len(s.blocks[bi].ents); i++ {
				if !yield(s.blocks[bi].ents[i]) {
					return
				}
			}
		}
	}
}

// open returns a space whose list of blocks may be changed, making it if needed.
func (ed *edit) open(id uint32) *space {
	i, ok := slices.BinarySearchFunc(ed.spaces, id, func(s space, id uint32) int {
		switch {
		case s.id < id:
			return -1
		case s.id > id:
			return 1
		}
		return 0
	})
	if !ok {
		ed.spaces = slices.Insert(ed.spaces, i, space{id: id})
		ed.dirty = slices.Insert(ed.dirty, i, true)
	} else if !ed.dirty[i] {
		ed.spaces[i].blocks = slices.Clone(ed.spaces[i].blocks)
		ed.dirty[i] = true
	}
	return &ed.spaces[i]
}

// own returns block bi as one this edit may change.
func (ed *edit) own(s *space, bi int) *block {
	b := s.blocks[bi]
	if b.owner != ed {
		b = &block{owner: ed, ents: append(make([]*entry, 0, len(b.ents)+1), b.ents...)}
		s.blocks[bi] = b
	}
	return b
}

// replace removes n entries at a position and puts e, unless nil, in their place.
func (ed *edit) replace(s *space, bi, i, n int, e *entry) {
	if len(s.blocks) == 0 {
		if e != nil {
			s.blocks = append(s.blocks, &block{owner: ed, ents: []*entry{e}})
			s.count = 1
		}
		return
	}
	s.count -= n
	first := true
	for at := bi; n > 0 || first; {
		b := ed.own(s, at)
		k := min(n, len(b.ents)-i)
		b.ents = slices.Delete(b.ents, i, i+k)
		n -= k
		if first && e != nil {
			b.ents = slices.Insert(b.ents, i, e)
			s.count++
		}
		first = false
		if len(b.ents) == 0 {
			s.blocks = slices.Delete(s.blocks, at, at+1)
		} else {
			at++
		}
		i = 0
	}
	if bi < len(s.blocks) && len(s.blocks[bi].ents) > blockMax {
		b := s.blocks[bi]
		half := len(b.ents) / 2
		right := &block{owner: ed, ents: slices.Clone(b.ents[half:])}
		clear(b.ents[half:])
		b.ents = b.ents[:half]
		s.blocks = slices.Insert(s.blocks, bi+1, right)
	}
}

// cloneDescriptor copies d with everything it points to.
func cloneDescriptor(d *raft.Descriptor) raft.Descriptor {
	c := *d
	keys := make([]byte, 0, len(d.Start)+len(d.End))
	keys = append(append(keys, d.Start...), d.End...)
	c.Start, c.End = keys[:len(d.Start):len(d.Start)], keys[len(d.Start):]
	c.Replicas = slices.Clone(d.Replicas)
	return c
}
