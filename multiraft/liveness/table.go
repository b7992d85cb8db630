package liveness

import (
	"slices"
	"sync/atomic"

	"github.com/flotillakv/flotilla/multiraft/raft"
)

// denseNodes is below which node id the table is an array.
const denseNodes = 256

// table is the published state: read by every loop, written by one goroutine.
type table struct {
	view atomic.Pointer[tableView]
}

// tableView is replaced when a node appears; its cells stay the same.
type tableView struct {
	dense  [denseNodes]*cell
	sparse map[raft.NodeID]*cell
	nodes  []raft.NodeID // ascending
}

// cell holds the published entry of one node. An entry is immutable, so that a
// reader never sees an epoch with another one's end.
type cell struct {
	entry atomic.Pointer[published]
}

type published struct {
	Entry
	since raft.Time // when Notify was set last
}

func (t *table) get(n raft.NodeID) *published {
	v := t.view.Load()
	if v == nil {
		return nil
	}
	var c *cell
	if n < denseNodes {
		c = v.dense[n]
	} else {
		c = v.sparse[n]
	}
	if c == nil {
		return nil
	}
	return c.entry.Load()
}

// set publishes en. Only one goroutine may call it.
func (t *table) set(en Entry, now raft.Time) {
	p := &published{Entry: en, since: now}
	if old := t.get(en.Node); old != nil {
		if !en.Notify {
			p.since = old.since
		}
		v := t.view.Load()
		if en.Node < denseNodes {
			v.dense[en.Node].entry.Store(p)
		} else {
			v.sparse[en.Node].entry.Store(p)
		}
		return
	}
	next := &tableView{}
	if v := t.view.Load(); v != nil {
		next.dense = v.dense
		next.nodes = slices.Clone(v.nodes)
		next.sparse = make(map[raft.NodeID]*cell, len(v.sparse)+1)
		for _, n := range v.nodes {
			if n >= denseNodes {
				next.sparse[n] = v.sparse[n]
			}
		}
	} else {
		next.sparse = make(map[raft.NodeID]*cell)
	}
	c := &cell{}
	c.entry.Store(p)
	if en.Node < denseNodes {
		next.dense[en.Node] = c
	} else {
		next.sparse[en.Node] = c
	}
	i, _ := slices.BinarySearch(next.nodes, en.Node)
	next.nodes = slices.Insert(next.nodes, i, en.Node)
	t.view.Store(next)
}
