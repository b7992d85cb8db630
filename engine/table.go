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

	tail []keyRef   // keys not in a run yet
	runs [][]keyRef // sorted by key, of falling size
	// ranges are range deletions, oldest first. A point of the same table is always
	// newer than they are, since they delete what they find in it.
	ranges  []tableRange
	touched byte // keeps the compiler from leaving out what only warms the cache
	// taken counts how often anything was taken out (take).
	taken int
	pause func() // called now and then while keys are put in order; nil: they are soon
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
	// sortTail is how many keys wait unsorted in a table that is being scanned.
	sortTail = 1024
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
func (t *table) putAll(seq, keep uint64, ops []tableOp, sorted bool) {
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
		t.putHashed(o.hash, seq, keep, o.kind, o.key, o.val, sorted)
	}
}

// put writes a version of key. keep is the newest open snapshot: what it can see
// stays. sorted says that scans go on.
func (t *table) put(seq, keep uint64, kind entryKind, key, val []byte, sorted bool) {
	t.putHashed(maphash.Bytes(tableSeed, key), seq, keep, kind, key, val, sorted)
}

func (t *table) putHashed(h, seq, keep uint64, kind entryKind, key, val []byte, sorted bool) {
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
	t.tail = append(t.tail, r)
	if sorted && len(t.tail) >= sortTail {
		t.order()
	}
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
	t.order()
	for _, run := range t.runs {
		for i := t.search(run, start); i < len(run) && bytes.Compare(t.key(run[i]), end) < 0; i++ {
			f(run[i])
		}
	}
}

// search returns the position of the first key >= key in a run.
func (t *table) search(run []keyRef, key []byte) int {
	return sort.Search(len(run), func(i int) bool { return bytes.Compare(t.key(run[i]), key) >= 0 })
}

// order puts the tail into the runs. Each run is at least twice as long as the next.
func (t *table) order() {
	if len(t.tail) == 0 {
		return
	}
	t.runs = append(t.runs, t.sorted(t.tail))
	t.tail = nil
	for n := len(t.runs); n > 1 && len(t.runs[n-2]) < 2*len(t.runs[n-1]); n = len(t.runs) {
		t.runs[n-2] = t.merge(t.runs[n-2], t.runs[n-1])
		t.runs = t.runs[:n-1]
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

// oneRun returns all keys in order.
func (t *table) oneRun() []keyRef {
	t.order()
	for n := len(t.runs); n > 1; n = len(t.runs) {
		t.runs[n-2] = t.merge(t.runs[n-2], t.runs[n-1])
		t.runs = t.runs[:n-1]
	}
	if len(t.runs) == 0 {
		return nil
	}
	return t.runs[0]
}
