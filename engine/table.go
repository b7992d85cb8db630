package engine

import (
	"bytes"
	"encoding/binary"
	"hash/maphash"
	"slices"
	"sort"
	"time"
)

// table is one generation of the write buffer: the newest writes of raw keys, in
// memory. A hash index finds single keys; the order of the keys, which only scans
// and flushes need, is made when it is asked for, as a few sorted runs.
//
// Keys and versions live in chunks of plain memory, so the garbage collector has
// nothing to follow. A version that an open snapshot can see is never changed; all
// others are overwritten in place.
//
// The owner locks: writes and order exclusively, reads shared.
type table struct {
	chunks [][]byte
	used   int // bytes of the last chunk
	bytes  int // of all chunks
	born   time.Time

	slots []tableSlot // open addressing; power of two
	keys  int

	lanes  map[uint64]*lane
	laneID uint64 // of last
	last   *lane  // that got a key
	// ranges are range deletions, oldest first. A point of the same table is always
	// newer than they are, since they delete what they find in it.
	ranges  []tableRange
	touched byte // keeps the compiler from leaving out what only warms the cache
	// taken counts how often anything was taken out (take).
	taken int
	pause func() // called now and then while keys are put in order; nil: they are soon
}

// lane is what orders the keys of one keyspace, or of one prefix of the others: a scan
// of a few keys needs no order of all.
type lane struct {
	head    []byte     // all keys begin with it
	tail    []keyRef   // keys not in a run yet
	runs    [][]keyRef // sorted by key, of falling size
	ordered int        // how often the tail went into the runs
	scanned bool       // somebody scans: keys are kept nearly sorted
}

// laneOf returns the number of a key's lane, and the length of its head.
func laneOf(key []byte) (id uint64, head int) {
	switch {
	case len(key) == 0:
		return 0, 0
	case key[0] == prefixData && len(key) >= dataHead:
		return 1<<40 | uint64(key[0])<<32 | uint64(binary.BigEndian.Uint32(key[1:])), dataHead
	}
	return uint64(key[0])<<32 | 1<<41, 1
}

// overlaps reports whether a key of [start, end) can be in the lane; a nil end: no bound.
func (l *lane) overlaps(start, end []byte) bool {
	if end != nil && bytes.Compare(end, l.head) <= 0 {
		return false
	}
	return bytes.Compare(start, l.head) <= 0 || bytes.HasPrefix(start, l.head)
}

// keyRef is where a record is: the chunk in the upper half, the offset in the lower.
type keyRef uint64

type tableSlot struct {
	hash uint64
	ref  keyRef // zero: free
}

type tableRange struct {
	seq        uint64
	start, end []byte
}

// What a version says of its key.
type entryKind uint8

const (
	entryNone entryKind = iota // nothing: what lies below counts
	entrySet
	entryDelete
)

const (
	tableChunk = 1 << 20
	// A key record: newest version, length of the key, key.
	keyHead = 8 + 4
	// A version: sequence number, older version, room for the value, its length, kind, value.
	versionHead = 8 + 8 + 4 + 4 + 1
	// sortTail is how many keys wait unsorted in a lane that is being scanned.
	sortTail = 1024
	// sortApart is how many are put in order without the lock first, and mergeBelow how
	// many are merged with it, unless a lane has manyRuns already.
	sortApart  = 4 * sortTail
	mergeBelow = 32 * sortTail
	manyRuns   = 16
)

var tableSeed = maphash.MakeSeed()

func newTable(now time.Time) *table { return &table{born: now} }

// size is about how much memory the table takes, in bytes.
func (t *table) size() int {
	const slot, ref, ranged = 16, 8, 128
	return t.bytes + slot*len(t.slots) + ref*t.keys + ranged*len(t.ranges)
}

// empty reports whether nothing was written.
func (t *table) empty() bool { return t.keys == 0 && len(t.ranges) == 0 }

func (t *table) at(r keyRef) []byte { return t.chunks[r>>32][uint32(r):] }

func (t *table) alloc(n int) keyRef {
	if len(t.chunks) == 0 || t.used+n > len(t.chunks[len(t.chunks)-1]) {
		size := tableChunk
		switch {
		case n > tableChunk-8:
			size = n + 8
		case t.bytes < tableChunk: // a small table stays small
			size = max(4<<10, min(tableChunk, 2*t.bytes), n+8)
		}
		t.chunks = append(t.chunks, make([]byte, size))
		t.used = 8 // no reference is zero
		t.bytes += size
	}
	r := keyRef(len(t.chunks)-1)<<32 | keyRef(t.used)
	t.used += (n + 7) &^ 7
	return r
}

func (t *table) key(r keyRef) []byte {
	b := t.at(r)
	n := binary.LittleEndian.Uint32(b[8:])
	return b[keyHead : keyHead+n : keyHead+n]
}

func (t *table) newest(r keyRef) keyRef { return keyRef(binary.LittleEndian.Uint64(t.at(r))) }

// version takes a version apart.
func (t *table) version(v keyRef) (seq uint64, older keyRef, kind entryKind, val []byte) {
	b := t.at(v)
	n := binary.LittleEndian.Uint32(b[20:])
	return binary.LittleEndian.Uint64(b), keyRef(binary.LittleEndian.Uint64(b[8:])), entryKind(b[24]), b[versionHead : versionHead+n : versionHead+n]
}

func (t *table) find(h uint64, key []byte) *tableSlot {
	mask := uint64(len(t.slots) - 1)
	for i := h & mask; ; i = (i + 1) & mask {
		s := &t.slots[i]
		if s.ref == 0 || s.hash == h && bytes.Equal(t.key(s.ref), key) {
			return s
		}
	}
}

func (t *table) grow() {
	old := t.slots
	t.slots = make([]tableSlot, max(256, 2*len(old)))
	mask := uint64(len(t.slots) - 1)
	for _, s := range old {
		if s.ref == 0 {
			continue
		}
		i := s.hash & mask
		for t.slots[i].ref != 0 {
			i = (i + 1) & mask
		}
		t.slots[i] = s
	}
}

// tableOp is an operation to put into a table.
type tableOp struct {
	kind     entryKind
	key, val []byte
	hash     uint64
	ref      keyRef
}

// putAll is put for some operations, in order. A table is larger than the caches of a
// processor, and each operation would wait for memory two times in turn: so the places
// of all of them are looked up first, and their records touched, none waiting for
// another.
func (t *table) putAll(seq, keep uint64, ops []tableOp) {
	for i := range ops {
		ops[i].hash = maphash.Bytes(tableSeed, ops[i].key)
	}
	if mask := uint64(len(t.slots) - 1); len(t.slots) > 0 {
		for i := range ops {
			ops[i].ref = t.slots[ops[i].hash&mask].ref
		}
		for i := range ops {
			if r := ops[i].ref; r != 0 {
				b := t.at(r)
				t.touched ^= b[0] ^ b[min(64, len(b)-1)] ^ b[min(128, len(b)-1)]
			}
		}
	}
	for i := range ops {
		o := &ops[i]
		t.putHashed(o.hash, seq, keep, o.kind, o.key, o.val)
	}
}

// put writes a version of key. keep is the newest open snapshot: what it can see
// stays.
func (t *table) put(seq, keep uint64, kind entryKind, key, val []byte) {
	t.putHashed(maphash.Bytes(tableSeed, key), seq, keep, kind, key, val)
}

func (t *table) putHashed(h, seq, keep uint64, kind entryKind, key, val []byte) {
	if 3*(t.keys+1) > 2*len(t.slots) {
		t.grow()
	}
	s := t.find(h, key)
	if s.ref != 0 {
		t.rewrite(s.ref, seq, keep, kind, val)
		return
	}
	n := (keyHead + len(key) + 7) &^ 7
	r := t.alloc(n + versionHead + len(val))
	b := t.at(r)
	v := r + keyRef(n)
	binary.LittleEndian.PutUint64(b, uint64(v))
	binary.LittleEndian.PutUint32(b[8:], uint32(len(key)))
	copy(b[keyHead:], key)
	t.fill(v, seq, 0, len(val), kind, val)
	s.hash, s.ref = h, r
	t.keys++
	l := t.lane(key)
	l.tail = append(l.tail, r)
	if l.scanned && len(l.tail) >= sortTail {
		t.order(l)
	}
}

// lane returns the lane of a key, which it makes.
func (t *table) lane(key []byte) *lane {
	id, head := laneOf(key)
	if t.last != nil && t.laneID == id {
		return t.last
	}
	l := t.lanes[id]
	if l == nil {
		if t.lanes == nil {
			t.lanes = map[uint64]*lane{}
		}
		l = &lane{head: bytes.Clone(key[:head])}
		t.lanes[id] = l
	}
	t.laneID, t.last = id, l
	return l
}

// within returns the lanes in which keys of [start, end) can be; a nil end: no bound.
func (t *table) within(start, end []byte) (out []*lane) {
	if id, head := laneOf(start); head == dataHead && end != nil && bytes.HasPrefix(end, start[:head]) {
		if l := t.lanes[id]; l != nil { // of one keyspace; a shorter key cannot be in between
			out = append(out, l)
		}
		return out
	}
	for _, l := range t.lanes {
		if l.overlaps(start, end) {
			out = append(out, l)
		}
	}
	return out
}

// rewrite gives the key at r a new version.
func (t *table) rewrite(r keyRef, seq, keep uint64, kind entryKind, val []byte) {
	v := t.newest(r)
	b := t.at(v)
	was, room := binary.LittleEndian.Uint64(b), int(binary.LittleEndian.Uint32(b[16:]))
	older := v
	switch {
	case keep == 0:
		older = 0
	case was > keep: // nobody can see this one, but perhaps what is behind it
		older = keyRef(binary.LittleEndian.Uint64(b[8:]))
	}
	if older != v && len(val) <= room {
		t.fill(v, seq, older, room, kind, val)
		return
	}
	n := t.alloc(versionHead + len(val))
	t.fill(n, seq, older, len(val), kind, val)
	binary.LittleEndian.PutUint64(t.at(r), uint64(n))
}

func (t *table) fill(v keyRef, seq uint64, older keyRef, room int, kind entryKind, val []byte) {
	b := t.at(v)
	binary.LittleEndian.PutUint64(b, seq)
	binary.LittleEndian.PutUint64(b[8:], uint64(older))
	binary.LittleEndian.PutUint32(b[16:], uint32(room))
	binary.LittleEndian.PutUint32(b[20:], uint32(len(val)))
	b[24] = byte(kind)
	copy(b[versionHead:], val)
}

// get returns what the table says of key now. The value is valid while the caller
// holds the lock. entryNone: look below.
func (t *table) get(key []byte) (kind entryKind, val []byte) {
	if t.keys > 0 {
		if s := t.find(maphash.Bytes(tableSeed, key), key); s.ref != 0 {
			_, _, kind, val = t.version(t.newest(s.ref))
			if kind != entryNone {
				return kind, val
			}
		}
	}
	for i := range t.ranges {
		if r := &t.ranges[i]; bytes.Compare(r.start, key) <= 0 && bytes.Compare(key, r.end) < 0 {
			return entryDelete, nil
		}
	}
	return entryNone, nil
}

// seen returns what a snapshot at seq sees of the key at r. The value does not
// change while the snapshot is open.
func (t *table) seen(r keyRef, seq uint64) (entryKind, []byte) {
	for v := t.newest(r); v != 0; {
		s, older, kind, val := t.version(v)
		if s <= seq {
			return kind, val
		}
		v = older
	}
	return entryNone, nil
}

// deleteRange deletes [start, end).
func (t *table) deleteRange(seq, keep uint64, start, end []byte) {
	t.each(start, end, func(r keyRef) { t.rewrite(r, seq, keep, entryDelete, nil) })
	t.ranges = append(t.ranges, tableRange{seq, bytes.Clone(start), bytes.Clone(end)})
}

// take makes the table say nothing of [start, end) any more: it was written
// elsewhere, or must not be written at all.
func (t *table) take(seq, keep uint64, start, end []byte) {
	some := false
	t.each(start, end, func(r keyRef) {
		if _, _, kind, _ := t.version(t.newest(r)); kind != entryNone {
			t.rewrite(r, seq, keep, entryNone, nil)
			some = true
		}
	})
	var rest []tableRange
	for _, r := range t.ranges {
		if bytes.Compare(r.end, start) <= 0 || bytes.Compare(end, r.start) <= 0 {
			rest = append(rest, r)
			continue
		}
		some = true
		if bytes.Compare(r.start, start) < 0 {
			rest = append(rest, tableRange{r.seq, r.start, bytes.Clone(start)})
		}
		if bytes.Compare(end, r.end) < 0 {
			rest = append(rest, tableRange{r.seq, bytes.Clone(end), r.end})
		}
	}
	t.ranges = rest
	if some {
		t.taken++
	}
}

// each calls f for the keys in [start, end), in no particular order.
func (t *table) each(start, end []byte, f func(keyRef)) {
	for _, l := range t.within(start, end) {
		t.order(l)
		for _, run := range l.runs {
			for i := t.search(run, start); i < len(run) && bytes.Compare(t.key(run[i]), end) < 0; i++ {
				f(run[i])
			}
		}
	}
}

// search returns the position of the first key >= key in a run.
func (t *table) search(run []keyRef, key []byte) int {
	return sort.Search(len(run), func(i int) bool { return bytes.Compare(t.key(run[i]), key) >= 0 })
}

// order puts the tail of a lane into its runs. Each run is at least twice as long as
// the next, but for large ones, which would be merged for long.
func (t *table) order(l *lane) {
	if len(l.tail) > 0 {
		t.addRun(l, t.sorted(l.tail))
		l.tail = nil
		l.ordered++
	}
}

func (t *table) addRun(l *lane, run []keyRef) {
	l.runs = append(l.runs, run)
	for n := len(l.runs); n > 1; n = len(l.runs) {
		a, b := len(l.runs[n-2]), len(l.runs[n-1])
		if a >= 2*b || a+b > mergeBelow && n <= manyRuns {
			return
		}
		l.runs[n-2] = t.merge(l.runs[n-2], l.runs[n-1])
		l.runs = l.runs[:n-1]
	}
}

// sorted sorts keys in place. The first bytes behind the common prefix are compared
// as numbers, which spares most looks at the keys themselves.
func (t *table) sorted(refs []keyRef) []keyRef {
	type item struct {
		head uint64
		ref  keyRef
	}
	if len(refs) < 2 {
		return refs
	}
	common := t.key(refs[0])
	for _, r := range refs[1:] {
		k := t.key(r)
		n := 0
		for n < len(common) && n < len(k) && common[n] == k[n] {
			n++
		}
		if common = common[:n]; n == 0 {
			break
		}
	}
	skip := len(common)
	items := make([]item, len(refs))
	for i, r := range refs {
		var head [8]byte
		copy(head[:], t.key(r)[skip:])
		items[i] = item{binary.BigEndian.Uint64(head[:]), r}
	}
	n := 0
	slices.SortFunc(items, func(a, b item) int {
		if n++; n%1024 == 0 && t.pause != nil {
			t.pause()
		}
		switch {
		case a.head < b.head:
			return -1
		case a.head > b.head:
			return 1
		}
		return bytes.Compare(t.key(a.ref), t.key(b.ref))
	})
	for i := range items {
		refs[i] = items[i].ref
	}
	return refs
}

// merge merges two runs into a new one: cursors may be on the old ones.
func (t *table) merge(a, b []keyRef) []keyRef {
	out := make([]keyRef, 0, len(a)+len(b))
	if len(a) > 0 && len(b) > 0 && bytes.Compare(t.key(b[len(b)-1]), t.key(a[0])) < 0 {
		a, b = b, a // one behind the other, as lanes are
	}
	if len(a) > 0 && len(b) > 0 && bytes.Compare(t.key(a[len(a)-1]), t.key(b[0])) < 0 {
		return append(append(out, a...), b...)
	}
	for len(a) > 0 && len(b) > 0 {
		if len(out)%1024 == 0 && t.pause != nil {
			t.pause()
		}
		if bytes.Compare(t.key(a[0]), t.key(b[0])) < 0 {
			out, a = append(out, a[0]), a[1:]
		} else {
			out, b = append(out, b[0]), b[1:]
		}
	}
	return append(append(out, a...), b...)
}

// oneRun returns all keys in order. It leaves the tails in disorder.
func (t *table) oneRun() []keyRef {
	var runs [][]keyRef
	for _, l := range t.lanes {
		runs = append(runs, l.runs...)
		if len(l.tail) > 0 {
			runs = append(runs, t.sorted(l.tail))
		}
	}
	// Of equal length if possible, so that no key is merged often.
	for len(runs) > 1 {
		slices.SortFunc(runs, func(a, b []keyRef) int { return len(b) - len(a) })
		n := len(runs)
		runs[n-2] = t.merge(runs[n-2], runs[n-1])
		runs = runs[:n-1]
	}
	if len(runs) == 0 {
		return nil
	}
	return runs[0]
}
