package kv

import (
	"bytes"
	"fmt"

	"github.com/flotillakv/flotilla/engine"
	"github.com/flotillakv/flotilla/internal/mutants"
	"github.com/flotillakv/flotilla/multiraft/raft"
	"github.com/flotillakv/flotilla/shard"
)

// read carries out a read whose freshness is settled, and then checks that the
// shard still holds what was read: a replica that was destroyed, cut or replaced
// meanwhile would show absent keys where there are none.
//
//  1. the request is checked against descriptor version 3;
//  2. the shard loses the right half of its range, whose keys are removed here;
//  3. the read finds nothing there. Without the second look this would be
//     answered as "absent".
func (c *call) read() {
	if err := c.readEngine(); err != nil {
		c.resp = shard.Response{ID: c.req.ID, Err: err}
		return
	}
	d, ok := c.s.host.Descriptor(c.req.Shard)
	switch {
	case !ok:
		c.resp = shard.Response{ID: c.req.ID, Err: &shard.EpochError{Shard: c.req.Shard}}
	case d.Version != c.desc.Version:
		c.resp = shard.Response{ID: c.req.ID, Err: epochError(&d)}
	case c.s.host.Generation(c.req.Shard) != c.gen && !mutants.On("D7b"):
		c.resp = shard.Response{ID: c.req.ID, Err: &shard.UnavailableError{Why: "the replica was replaced while it was read"}}
	case c.s.doubter != nil:
		if err := c.s.doubter.Distrust(c.req.Shard); err != nil {
			c.resp = shard.Response{ID: c.req.ID, Err: c.s.translate(c.req, err)}
		}
	}
}

func (c *call) readEngine() error {
	var err error
	switch c.req.Kind {
	case shard.KindGet:
		err = c.readGet()
	case shard.KindScan:
		err = c.readScan()
	case shard.KindStats:
		err = c.readStats()
	}
	if err != nil {
		return c.s.translate(c.req, fmt.Errorf("kv: shard %d: %w", c.req.Shard, err))
	}
	return nil
}

func (c *call) readGet() error {
	val, ok, err := c.s.engine.Get(c.req.Keyspace, c.req.Key, nil)
	if err != nil || !ok {
		return err
	}
	rec, err := shard.DecodeRecord(val)
	if err != nil {
		return err
	}
	c.resp.Found = true
	c.resp.Value = &shard.Value{Bytes: rec.Bytes, Version: rec.Version}
	return nil
}

// readStats answers an estimate of the bytes the shard's keys take on disk.
func (c *call) readStats() error {
	n, err := c.s.engine.DataSize(c.desc.Keyspace, c.desc.Start, c.desc.End)
	c.resp.Count = int(n)
	return err
}

// cursor walks an engine iterator in one direction.
type cursor struct {
	it      *engine.Iter
	reverse bool
}

func (w cursor) first() bool {
	if w.reverse {
		return w.it.Last()
	}
	return w.it.First()
}

func (w cursor) next() bool {
	if w.reverse {
		return w.it.Prev()
	}
	return w.it.Next()
}

// readScan reads one page with one iterator, so that the page is one state of
// the shard. It stops at the page's bounds and at the shard's edge.
func (c *call) readScan() error {
	r := c.req
	start, end, beyond := clip(&c.desc, r.Start, r.End, r.Reverse)
	if len(end) > 0 && bytes.Equal(start, end) {
		c.atEdge(beyond)
		return nil
	}
	it, err := c.s.engine.NewIter(r.Keyspace, start, end)
	if err != nil {
		return err
	}
	err = c.readPage(cursor{it, r.Reverse}, beyond)
	if closeErr := it.Close(); err == nil {
		err = closeErr
	}
	return err
}

func (c *call) readPage(w cursor, beyond bool) error {
	limit := c.req.Limit
	if limit == 0 || limit > shard.MaxScanPairs {
		limit = shard.MaxScanPairs
	}
	left := c.req.MaxBytes
	if left == 0 {
		left = shard.DefaultScanBytes
	}
	var mem arena
	for ok := w.first(); ok; ok = w.next() {
		key := w.it.Key()
		if len(c.resp.Pairs) == limit {
			c.stopAt(key)
			return nil
		}
		rec, err := shard.DecodeRecord(w.it.Value())
		if err != nil {
			if itErr := w.it.Err(); itErr != nil {
				return itErr
			}
			return fmt.Errorf("key %q: %w", key[:min(len(key), 64)], err)
		}
		size := len(key) + len(rec.Bytes)
		if size > left && len(c.resp.Pairs) > 0 {
			c.stopAt(key)
			return nil
		}
		left -= size
		c.resp.Pairs = append(c.resp.Pairs, shard.Pair{Key: mem.copy(key), Value: mem.copy(rec.Bytes), Version: rec.Version})
	}
	if err := w.it.Err(); err != nil {
		return err
	}
	c.atEdge(beyond)
	return nil
}

// stopAt ends a page before next, the first key that is not part of it. A
// reverse page resumes below its last key, because the end of a range is exclusive.
func (c *call) stopAt(next []byte) {
	c.resp.More = true
	if c.req.Reverse {
		next = c.resp.Pairs[len(c.resp.Pairs)-1].Key
	}
	c.resp.Resume = bytes.Clone(next)
}

// atEdge ends a page at the end of the shard's part of the range.
func (c *call) atEdge(beyond bool) {
	if !beyond {
		return
	}
	c.resp.More = true
	if c.req.Reverse {
		c.resp.Resume = bytes.Clone(c.desc.Start)
	} else {
		c.resp.Resume = bytes.Clone(c.desc.End)
	}
}

// clip cuts the far end of [start, end), as seen by the scan, at the bound of d.
// beyond reports that it did: the range goes on in the next shard.
func clip(d *raft.Descriptor, start, end []byte, reverse bool) (lo, hi []byte, beyond bool) {
	if reverse {
		if bytes.Compare(start, d.Start) < 0 {
			return d.Start, end, true
		}
		return start, end, false
	}
	if len(d.End) > 0 && (len(end) == 0 || bytes.Compare(end, d.End) > 0) {
		return start, d.End, true
	}
	return start, end, false
}

// checkScan returns nil when the end at which the scan begins lies in d, else an
// *shard.EpochError. The other end may lie beyond: the page stops at the edge.
func checkScan(d *raft.Descriptor, start, end []byte, reverse bool) error {
	begins := bytes.Compare(start, d.Start) >= 0 && (len(d.End) == 0 || bytes.Compare(start, d.End) < 0)
	if reverse {
		begins = len(d.End) == 0 && len(end) == 0 ||
			len(end) > 0 && bytes.Compare(end, d.Start) > 0 && (len(d.End) == 0 || bytes.Compare(end, d.End) <= 0)
	}
	if begins || shard.HoldsRange(d, start, end) {
		return nil
	}
	return epochError(d)
}

func epochError(d *raft.Descriptor) error {
	return &shard.EpochError{Shard: d.Shard, Descriptors: []raft.Descriptor{*d}}
}

// arena copies keys and values of a page into few allocations.
type arena struct{ free []byte }

// arenaChunk is the size of the pieces an arena allocates, in bytes.
const arenaChunk = 16 << 10

func (m *arena) copy(b []byte) []byte {
	if len(b) > len(m.free) {
		if len(b) > arenaChunk/4 {
			return append(make([]byte, 0, len(b)), b...)
		}
		m.free = make([]byte, arenaChunk)
	}
	n := copy(m.free, b)
	out := m.free[:n:n]
	m.free = m.free[n:]
	return out
}
