package flotilla

import (
	"context"
	"crypto/rand"
	"encoding/binary"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/flotillakv/flotilla/engine"
	"github.com/flotillakv/flotilla/internal/mutants"
	"github.com/flotillakv/flotilla/multiraft/raft"
	"github.com/flotillakv/flotilla/shard"
	"github.com/flotillakv/flotilla/snapshot/backup"
)

// Bounds of the cuts that a node holds for backups. A cut keeps memory or files
// that would be freed without it; all end when the disk is nearly used up.
const (
	maxCuts      = 16               // more are refused with *OverloadedError
	cutIdleLimit = 30 * time.Second // since the last page
	cutLifeLimit = 2 * time.Hour    // enough for a large shard over a slow line
	cutPageBytes = 1 << 20          // of pairs; one pair may exceed it
)

// cuts are the views of shards that backups read from this node page by page.
type cuts struct {
	mu     sync.Mutex // guards what follows; not held while reading
	open   map[uint64]*heldCut
	closed bool
}

// heldCut is a view that one request at a time reads.
type heldCut struct {
	id   uint64
	ends time.Time
	idle *time.Timer // closes the cut

	mu   sync.Mutex // guards what follows; held while a page is read
	view *engine.View
	it   *engine.Iter
	gone bool
}

type cutQuery struct {
	Cut   uint64 `json:"cut"`
	After []byte `json:"after,omitempty"` // the last key that was received; empty: none
}

type cutAnswer struct {
	Cut uint64          `json:"cut"`
	At  backup.ShardCut `json:"at"`
}

// openCut takes a view of this node's replica of a shard that has everything
// acknowledged before the call. Any replica will do: it asks the leader how far
// it has to be, and waits until it is.
func (n *Node) openCut(ctx context.Context, shardID uint64) (a cutAnswer, err error) {
	n.using.RLock()
	defer n.using.RUnlock()
	if n.isClosed() {
		return a, ErrClosed
	}
	id := raft.ShardID(shardID)
	d, ok := n.host.Descriptor(id)
	if !ok {
		return a, fmt.Errorf("shard %d on node %d: %w", shardID, n.ID(), ErrNotFound)
	}
	if d.Keyspace != userKeyspace {
		return a, &shard.ArgumentError{Field: "shard", Reason: fmt.Sprintf("shard %d is not of the user's keyspace", shardID)}
	}
	if n.hasMachine(d.Keyspace) {
		return a, &shard.ArgumentError{Field: "shard", Reason: fmt.Sprintf("shard %d is served by a state machine of the program's own, whose state is not in the store and cannot be backed up from here", shardID)}
	}
	if err := n.cuts.room(); err != nil {
		return a, err
	}
	if !mutants.On("H-cut-stale") { // what the replica happens to have applied
		fresh := make(chan error, 1)
		n.host.FollowerRead(id, func(_ raft.Index, err error) { fresh <- err })
		select {
		case err = <-fresh:
		case <-ctx.Done():
			err = ctx.Err()
		case <-n.stop:
			err = ErrClosed
		}
	}
	if err != nil {
		return a, fmt.Errorf("shard %d on node %d is not up to date: %w", shardID, n.ID(), err)
	}
	view, err := n.eng.View(&d)
	if err != nil {
		return a, err
	}
	it, err := view.Iter(engine.ViewData)
	if err != nil {
		view.Close()
		return a, err
	}
	h := &heldCut{view: view, it: it}
	if err := n.cuts.add(h); err != nil {
		h.close()
		return a, err
	}
	at, desc := view.Applied(), view.Desc()
	return cutAnswer{Cut: h.id, At: backup.ShardCut{
		Shard: uint64(desc.Shard), Keyspace: desc.Keyspace, Start: desc.Start, End: desc.End,
		Index: uint64(at.Applied), Term: uint64(at.AppliedTerm), Time: at.GroupTs,
	}}, nil
}

// readCut answers the page of a cut behind q.After (backup.AppendPage).
func (n *Node) readCut(q cutQuery) ([]byte, error) {
	n.using.RLock()
	defer n.using.RUnlock()
	if n.isClosed() {
		return nil, ErrClosed
	}
	h := n.cuts.get(q.Cut)
	if h == nil {
		return nil, fmt.Errorf("cut %d on node %d: %w", q.Cut, n.ID(), ErrNotFound)
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.gone {
		return nil, fmt.Errorf("cut %d on node %d: %w", q.Cut, n.ID(), ErrNotFound)
	}
	if mutants.On("H-cut-moves") { // each page sees what there is by then
		d := h.view.Desc()
		it, err := n.eng.NewIter(d.Keyspace, d.Start, d.End)
		if err != nil {
			return nil, err
		}
		h.it.Close()
		h.it = it
	}
	return h.page(q.After)
}

func (h *heldCut) page(after []byte) ([]byte, error) {
	var pairs []byte
	ok := false
	if len(after) == 0 {
		ok = h.it.First()
	} else {
		ok = h.it.SeekGE(append(append([]byte(nil), after...), 0))
	}
	for ; ok && len(pairs) < cutPageBytes; ok = h.it.Next() {
		key, stored := h.it.Key(), h.it.Value()
		rec, err := shard.DecodeRecord(stored)
		if err != nil {
			return nil, errors.Join(h.it.Err(), fmt.Errorf("key %q: %w", key[:min(len(key), 64)], err))
		}
		pairs = backup.AppendPair(pairs, key, rec.Bytes)
	}
	if err := h.it.Err(); err != nil {
		return nil, err
	}
	return backup.AppendPage(nil, pairs, ok), nil
}

// close frees what the cut holds.
func (h *heldCut) close() {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.gone {
		return
	}
	h.gone = true
	h.it.Close() // an error was, or will be, met by somebody who needs the data
	h.view.Close()
}

func (c *cuts) room() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.roomLocked()
}

func (c *cuts) roomLocked() error {
	if c.closed {
		return ErrClosed
	}
	if len(c.open) >= maxCuts {
		return &OverloadedError{Why: fmt.Sprintf("backups read %d shards from the node already", maxCuts), RetryAfter: time.Second}
	}
	return nil
}

// add takes a cut in and gives it a number that nobody had.
func (c *cuts) add(h *heldCut) error {
	var b [8]byte
	rand.Read(b[:])
	h.id = binary.LittleEndian.Uint64(b[:])
	c.mu.Lock()
	defer c.mu.Unlock()
	if err := c.roomLocked(); err != nil {
		return err
	}
	if c.open == nil {
		c.open = map[uint64]*heldCut{}
	}
	c.open[h.id] = h
	h.ends = time.Now().Add(cutLifeLimit)
	h.idle = time.AfterFunc(cutIdleLimit, func() { c.drop(h.id) })
	return nil
}

// get returns a cut, which lives for longer then; nil: there is none.
func (c *cuts) get(id uint64) *heldCut {
	c.mu.Lock()
	defer c.mu.Unlock()
	h := c.open[id]
	if h != nil {
		h.idle.Reset(min(cutIdleLimit, time.Until(h.ends)))
	}
	return h
}

// drop closes a cut. It may be gone already.
func (c *cuts) drop(id uint64) {
	c.mu.Lock()
	h := c.open[id]
	delete(c.open, id)
	c.mu.Unlock()
	if h != nil {
		h.idle.Stop()
		h.close()
	}
}

// end closes all cuts, and with refuse takes no more. It waits for pages that are
// read, and returns how many there were.
func (c *cuts) end(refuse bool) int {
	c.mu.Lock()
	open := c.open
	c.open, c.closed = nil, c.closed || refuse
	c.mu.Unlock()
	for _, h := range open {
		h.idle.Stop()
		h.close()
	}
	return len(open)
}
