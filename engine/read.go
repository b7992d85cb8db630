package engine

import (
	"bytes"
	"errors"
	"fmt"
	"hash/maphash"
	"slices"
	"syscall"

	"github.com/cockroachdb/pebble/v2"
	"github.com/cockroachdb/pebble/v2/batchrepr"

	"github.com/flotillakv/flotilla/internal/mutants"
	"github.com/flotillakv/flotilla/multiraft/raft"
)

// Get returns the value of a user key, appended to dst[:0]. It sees every
// committed batch.
func (e *Engine) Get(ks uint32, key, dst []byte) (val []byte, ok bool, err error) {
	if err := e.enter(); err != nil {
		return nil, false, err
	}
	defer e.leave()
	kb := e.keys.Get().(*[]byte)
	*kb = appendData((*kb)[:0], ks, key)
	if e.def != nil {
		if val, kind := e.def.get(*kb, dst[:0]); kind != entryNone {
			e.keys.Put(kb)
			return val, kind == entrySet, nil
		}
	}
	v, c, err := e.db.Get(*kb)
	e.keys.Put(kb)
	if err != nil {
		if errors.Is(err, pebble.ErrNotFound) {
			return nil, false, nil
		}
		return nil, false, e.iterError(err)
	}
	val = append(dst[:0], v...)
	if err := c.Close(); err != nil {
		return nil, false, e.iterError(err)
	}
	return val, true, nil
}

// getRaw returns a copy of the value of a raw key. It is called between enter
// and leave.
func (e *Engine) getRaw(key []byte) ([]byte, bool, error) {
	if e.def != nil && deferrable(key) {
		if val, kind := e.def.get(key, []byte{}); kind != entryNone {
			return val, kind == entrySet, nil
		}
	}
	v, c, err := e.db.Get(key)
	if err != nil {
		if errors.Is(err, pebble.ErrNotFound) {
			return nil, false, nil
		}
		return nil, false, e.iterError(err)
	}
	v = slices.Clone(v)
	if v == nil {
		v = []byte{}
	}
	if err := c.Close(); err != nil {
		return nil, false, e.iterError(err)
	}
	return v, true, nil
}

// iterError turns an error of a read into the engine's. Corruption stops the
// node, and so does a disk that cannot be read: a replica that went on would
// refuse reads for as long as it leads, and could not apply what others do.
func (e *Engine) iterError(err error) error {
	if err == nil {
		return nil
	}
	if info := pebble.ExtractDataCorruptionInfo(err); info != nil && e.damaged(info) {
		return fmt.Errorf("%w: %w", ErrDamaged, err)
	}
	if pebble.IsCorruptionError(err) || errors.Is(err, syscall.EIO) && !mutants.On("F1-read-on") {
		return e.fail(fmt.Errorf("read: %w", err))
	}
	return fmt.Errorf("engine: read: %w", err)
}

func bounds(lower, upper []byte) *pebble.IterOptions {
	return &pebble.IterOptions{LowerBound: lower, UpperBound: upper}
}

func (e *Engine) newRawIter(lower, upper []byte) (*pebble.Iterator, error) {
	it, err := e.db.NewIter(bounds(lower, upper))
	if err != nil {
		return nil, e.iterError(err)
	}
	return it, nil
}

// Iter walks over user keys of one keyspace, or over raw keys of a View, in
// key order. Its view does not change after it was made. It is owned by one
// goroutine and must be closed before the Engine.
type Iter struct {
	it    *pebble.Iterator
	m     *merged  // over it; nil: nothing in memory is in the way
	mem   *memView // to be closed with it; nil: none, or another's
	e     *Engine
	head  []byte // what is cut off and put before keys
	batch *pebble.Batch
	key   []byte
}

// NewIter returns an iterator over the user keys [start, end) of a keyspace; an
// empty end means: to the last key. It is not positioned.
func (e *Engine) NewIter(ks uint32, start, end []byte) (*Iter, error) {
	if err := e.enter(); err != nil {
		return nil, err
	}
	defer e.leave()
	lower, upper := DataSpan(ks, start, end)
	return e.newIter(lower, upper, lower[:dataHead:dataHead], nil)
}

// newIter returns an iterator over raw keys [lower, upper) of the applied side; own
// are operations that come on top (nil: none). It is called between enter and leave.
func (e *Engine) newIter(lower, upper, head []byte, own *table) (*Iter, error) {
	if e.def == nil {
		it, err := e.newRawIter(lower, upper)
		if err != nil {
			return nil, err
		}
		return &Iter{it: it, e: e, head: head}, nil
	}
	e.def.mu.Lock()
	v := e.def.viewLocked()
	it, err := e.newRawIter(lower, upper)
	e.def.mu.Unlock()
	if err != nil {
		v.close()
		return nil, err
	}
	i := &Iter{it: it, e: e, head: head, mem: v}
	i.merge(v, lower, upper, own)
	return i, nil
}

// merge puts what a view of memory, and own, hold of [lower, upper) on top.
func (i *Iter) merge(v *memView, lower, upper []byte, own *table) {
	if m := newMerged(v, i.it, lower, upper, own); len(m.layers) > 1 {
		i.m = m
	}
}

// NewGroupIter returns an iterator over the records that SetGroup wrote for a
// group. Keys are suffixes. It is not positioned.
func (e *Engine) NewGroupIter(s raft.ShardID) (*Iter, error) {
	if err := e.enter(); err != nil {
		return nil, err
	}
	defer e.leave()
	head := StatePrefix(s)
	return e.newIter(append(head[:groupKeyLen:groupKeyLen], suffixDesc+1), PrefixEnd(head), head, nil)
}

// First moves to the first key and reports whether there is one.
func (i *Iter) First() bool {
	if i.m != nil {
		return i.m.seekGE(nil)
	}
	return i.it.First()
}

// Last moves to the last key and reports whether there is one.
func (i *Iter) Last() bool {
	if i.m != nil {
		return i.m.seekLT(nil)
	}
	return i.it.Last()
}

// Next moves to the next key and reports whether there is one.
func (i *Iter) Next() bool {
	if i.m != nil {
		return i.m.next()
	}
	return i.it.Next()
}

// Prev moves to the previous key and reports whether there is one.
func (i *Iter) Prev() bool {
	if i.m != nil {
		return i.m.prev()
	}
	return i.it.Prev()
}

// SeekGE moves to the first key >= key.
func (i *Iter) SeekGE(key []byte) bool {
	if i.m != nil {
		return i.m.seekGE(i.raw(key))
	}
	return i.it.SeekGE(i.raw(key))
}

// SeekLT moves to the last key < key.
func (i *Iter) SeekLT(key []byte) bool {
	if i.m != nil {
		return i.m.seekLT(i.raw(key))
	}
	return i.it.SeekLT(i.raw(key))
}

func (i *Iter) raw(key []byte) []byte {
	i.key = append(append(i.key[:0], i.head...), key...)
	return i.key
}

// Valid reports whether the iterator is at a key.
func (i *Iter) Valid() bool {
	if i.m != nil {
		return i.m.at >= 0
	}
	return i.it.Valid()
}

// Key returns the key without its keyspace. It is valid until the next move.
func (i *Iter) Key() []byte {
	if i.m != nil {
		return i.m.cur[len(i.head):]
	}
	return i.it.Key()[len(i.head):]
}

// Value returns the value. It is valid until the next move.
func (i *Iter) Value() []byte {
	if i.m != nil {
		if i.m.at < 0 {
			return nil
		}
		v, err := i.m.layers[i.m.at].value()
		if err != nil {
			return nil // shows in Err
		}
		return v
	}
	v, err := i.it.ValueAndErr()
	if err != nil {
		return nil // shows in Err
	}
	return v
}

// Err returns the error that ended the iteration, nil at its regular end.
func (i *Iter) Err() error { return i.e.iterError(i.it.Error()) }

// Close releases the iterator and returns its error. It is idempotent.
func (i *Iter) Close() error {
	if i.it == nil {
		return nil
	}
	err := i.e.iterError(i.it.Close())
	i.it, i.m = nil, nil
	if i.mem != nil {
		i.mem.close()
		i.mem = nil
	}
	if i.batch != nil {
		err = errors.Join(err, i.batch.Close())
		i.batch = nil
	}
	return err
}

// Get returns the value of a user key as it will be after the batch: own
// writes first, then what is committed. It is valid until the batch is closed
// or rolled back.
func (b *Batch) Get(ks uint32, key []byte) (val []byte, ok bool, err error) {
	b.key = appendData(b.key[:0], ks, key)
	return b.getKey()
}

// GetGroup returns a record that SetGroup wrote, as it will be after the batch:
// own writes first, then what is committed. It is valid until the batch is
// closed or rolled back.
func (b *Batch) GetGroup(s raft.ShardID, suffix []byte) (val []byte, ok bool, err error) {
	b.key = append(appendGroup(b.key[:0], prefixApplied, s), suffix...)
	return b.getKey()
}

// getKey reads the raw key in b.key.
func (b *Batch) getKey() (val []byte, ok bool, err error) {
	if v, state := b.overlay.lookup(b.d, b.key); state != unknown {
		return v, state == present, nil
	}
	if err := b.e.enter(); err != nil {
		return nil, false, err
	}
	defer b.e.leave()
	if b.e.def != nil {
		at := len(b.arena)
		v, kind := b.e.def.get(b.key, b.arena)
		if kind == entrySet {
			b.arena = v
			return v[at:len(v):len(v)], true, nil
		}
		if kind == entryDelete {
			return nil, false, nil
		}
	}
	v, c, err := b.e.db.Get(b.key)
	if err != nil {
		if errors.Is(err, pebble.ErrNotFound) {
			return nil, false, nil
		}
		return nil, false, b.e.iterError(err)
	}
	// A grown arena leaves earlier values where they are.
	at := len(b.arena)
	b.arena = append(b.arena, v...)
	if err := c.Close(); err != nil {
		return nil, false, b.e.iterError(err)
	}
	return b.arena[at:len(b.arena):len(b.arena)], true, nil
}

// Iter returns an iterator over user keys [start, end) as they will be after
// the batch. It copies the batch into an indexed one, so it is for rare use.
// It does not see writes made after it.
func (b *Batch) Iter(ks uint32, start, end []byte) (*Iter, error) {
	if b.d.Empty() {
		return b.e.NewIter(ks, start, end)
	}
	if err := b.e.enter(); err != nil {
		return nil, err
	}
	defer b.e.leave()
	if b.e.def != nil {
		lower, upper := DataSpan(ks, start, end)
		return b.e.newIter(lower, upper, lower[:dataHead:dataHead], batchTable(b.d.Repr()))
	}
	ib := b.e.db.NewIndexedBatchWithSize(b.b.Len())
	if err := ib.Apply(b.b, nil); err != nil {
		return nil, errors.Join(fmt.Errorf("engine: index batch: %w", err), ib.Close())
	}
	lower, upper := DataSpan(ks, start, end)
	it, err := ib.NewIter(bounds(lower, upper))
	if err != nil {
		return nil, errors.Join(b.e.iterError(err), ib.Close())
	}
	return &Iter{it: it, e: b.e, head: lower[:dataHead:dataHead], batch: ib}, nil
}

// overlay is a hash index over the user keys and group records written in a batch. It is built
// when a batch is first read, and continued from where it ended at each later
// read, so a batch that is only written pays nothing. It holds offsets into
// the batch, no keys, and reuses its memory.
type overlay struct {
	slots  []overlaySlot // open addressing; power of two
	used   int
	done   int // offset in the batch up to which operations are indexed
	ranges []overlayRange
}

type overlaySlot struct {
	hash uint64
	at   uint32 // offset of the operation in the batch; 0: free
}

type overlayRange struct{ at uint32 } // offset of a DeleteRange

type presence uint8

const (
	unknown presence = iota // the batch says nothing about the key
	present
	absent
)

var overlaySeed = maphash.MakeSeed()

func (o *overlay) reset() {
	if o.done == 0 {
		return
	}
	clear(o.slots)
	o.used, o.done, o.ranges = 0, 0, o.ranges[:0]
}

// lookup says what the batch does to a raw key.
func (o *overlay) lookup(pb *pebble.Batch, key []byte) ([]byte, presence) {
	if pb.Empty() {
		return nil, unknown
	}
	data := pb.Repr()
	o.extend(data)
	var at uint32
	if o.used > 0 {
		if s := o.find(data, maphash.Bytes(overlaySeed, key), key); s.at != 0 {
			at = s.at
		}
	}
	// A later range deletion hides the point write.
	for i := len(o.ranges) - 1; i >= 0 && o.ranges[i].at > at; i-- {
		_, start, end := opAt(data, o.ranges[i].at)
		if bytes.Compare(start, key) <= 0 && bytes.Compare(key, end) < 0 {
			return nil, absent
		}
	}
	if at == 0 {
		return nil, unknown
	}
	if kind, _, v := opAt(data, at); kind == pebble.InternalKeyKindSet {
		return v[:len(v):len(v)], present
	}
	if mutants.On("F8") { // as before the deletion
		return nil, unknown
	}
	return nil, absent
}

// extend indexes the operations that were added since the last time.
func (o *overlay) extend(data []byte) {
	if o.done == 0 {
		o.done = batchrepr.HeaderLen
	}
	r := batchrepr.Reader(data[o.done:])
	for len(r) > 0 {
		at := uint32(len(data) - len(r))
		kind, key, _, ok, err := r.Next()
		if !ok || err != nil {
			panic(fmt.Sprintf("engine: damaged batch at offset %d: %v", at, err))
		}
		if !overlaid(key) {
			continue
		}
		if kind == pebble.InternalKeyKindRangeDelete {
			o.ranges = append(o.ranges, overlayRange{at})
			continue
		}
		if 2*(o.used+1) > len(o.slots) {
			o.grow()
		}
		h := maphash.Bytes(overlaySeed, key)
		s := o.find(data, h, key)
		if s.at == 0 {
			o.used++
		}
		s.hash, s.at = h, at
	}
	o.done = len(data)
}

// overlaid reports whether a raw key is one that batches are asked for: user
// keys and records of SetGroup.
func overlaid(key []byte) bool {
	if len(key) == 0 {
		return false
	}
	switch key[0] {
	case prefixData:
		return true
	case prefixApplied:
		return len(key) > groupKeyLen && key[groupKeyLen] != suffixApplied && key[groupKeyLen] != suffixDesc
	}
	return false
}

// find returns the slot of key, or the free one where it belongs.
func (o *overlay) find(data []byte, h uint64, key []byte) *overlaySlot {
	mask := uint64(len(o.slots) - 1)
	for i := h & mask; ; i = (i + 1) & mask {
		s := &o.slots[i]
		if s.at == 0 {
			return s
		}
		if s.hash == h {
			if _, k, _ := opAt(data, s.at); bytes.Equal(k, key) {
				return s
			}
		}
	}
}

func (o *overlay) grow() {
	old := o.slots
	o.slots = make([]overlaySlot, max(64, 2*len(old)))
	mask := uint64(len(o.slots) - 1)
	for _, s := range old {
		if s.at == 0 {
			continue
		}
		i := s.hash & mask
		for o.slots[i].at != 0 {
			i = (i + 1) & mask
		}
		o.slots[i] = s
	}
}

// opAt decodes the operation at an offset that extend has seen.
func opAt(data []byte, at uint32) (kind pebble.InternalKeyKind, key, val []byte) {
	r := batchrepr.Reader(data[at:])
	kind, key, val, _, _ = r.Next()
	return kind, key, val
}
