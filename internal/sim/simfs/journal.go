package simfs

import (
	"fmt"
	"slices"
)

// Journal is every change of a file system since Record, in order. From it the
// file system of any moment can be made again, and from that the images of a
// crash at that moment.
type Journal struct {
	fs   *FS // guards what follows with its mutex
	base *FS // what was there at Record
	list []entry
}

// entry is one change: of a directory (change), of a file (write), or, if both
// are nil, a sync.
type entry struct {
	op     Op
	node   uint64
	change *change
	write  *write
	lost   bool // a sync that failed and dropped what it should have made durable
}

// Record begins a journal of f, which replaces an earlier one. Everything that
// is in f now counts as durable.
func (f *FS) Record() *Journal {
	f.mu.Lock()
	defer f.mu.Unlock()
	j := &Journal{fs: f}
	j.base = copyOf(f, func(n, m *node) {
		n.sync()
		n.dataShared, n.durableShared = true, true
		m.data, m.durable = n.data, n.durable
		m.dataShared, m.durableShared = true, true
	})
	f.journal = j
	return j
}

// copyOf copies the tree of f as readers see it, with the ids of its nodes.
func copyOf(f *FS, content func(n, m *node)) *FS {
	out := &FS{locks: map[string]bool{}, nextID: f.nextID}
	made := map[*node]*node{}
	var walk func(n *node) *node
	walk = func(n *node) *node {
		if m := made[n]; m != nil {
			return m
		}
		m := &node{id: n.id, dir: n.dir, mod: n.mod}
		made[n] = m
		content(n, m)
		if n.dir {
			m.names, m.durableNames = map[string]*node{}, map[string]*node{}
			for _, name := range sorted(n.names) {
				c := walk(n.names[name])
				m.names[name], m.durableNames[name] = c, c
			}
		}
		return m
	}
	out.root = walk(f.root)
	return out
}

// record notes a change; f.mu is held.
func (f *FS) record(e entry) {
	if f.journal != nil {
		f.journal.list = append(f.journal.list, e)
	}
}

// Len returns the number of changes so far.
func (j *Journal) Len() int {
	j.fs.mu.Lock()
	defer j.fs.mu.Unlock()
	return len(j.list)
}

// Op describes the i-th change, counted from 0.
func (j *Journal) Op(i int) Op {
	j.fs.mu.Lock()
	defer j.fs.mu.Unlock()
	return j.list[i].op
}

// String names the operation.
func (o Op) String() string {
	kinds := [...]string{"?", "create", "write", "sync", "dirsync", "remove", "rename", "link", "mkdir", "open", "read", "lock"}
	return fmt.Sprintf("%s %s", kinds[min(int(o.Kind), len(kinds)-1)], o.Path)
}

// Cursor walks through a journal. It has a file system of its own, whose images
// are those of a crash after as many changes as it has made.
type Cursor struct {
	j     *Journal
	fs    *FS
	at    int
	nodes map[uint64]*node
}

// Cursor returns a cursor before the first change.
func (j *Journal) Cursor() *Cursor {
	j.fs.mu.Lock()
	defer j.fs.mu.Unlock()
	c := &Cursor{j: j, nodes: map[uint64]*node{}}
	c.fs = copyOf(j.base, func(n, m *node) {
		n.dataShared, n.durableShared = true, true
		m.data, m.durable = n.data, n.durable
		m.dataShared, m.durableShared = true, true
		c.nodes[n.id] = m
	})
	return c
}

// At returns the number of changes made.
func (c *Cursor) At() int { return c.at }

// Seek makes the changes up to n; a cursor does not go back.
func (c *Cursor) Seek(n int) {
	c.j.fs.mu.Lock()
	list := c.j.list
	c.j.fs.mu.Unlock()
	for ; c.at < n; c.at++ {
		c.make(&list[c.at])
	}
}

func (c *Cursor) make(e *entry) {
	n := c.nodes[e.node]
	switch {
	case e.write != nil:
		n.put(*e.write)
	case e.change != nil:
		ch := *e.change
		if ch.node != nil {
			m := c.nodes[ch.node.id]
			if m == nil {
				m = &node{id: ch.node.id, dir: ch.node.dir, mod: ch.node.mod}
				if m.dir {
					m.names, m.durableNames = map[string]*node{}, map[string]*node{}
				}
				c.nodes[m.id] = m
			}
			ch.node = m
		}
		n.changes = append(n.changes, ch)
		ch.apply(n.names)
	case e.lost:
		n.writes, n.changes = nil, nil
	default:
		n.sync()
	}
}

// Image returns the image of a crash at the cursor; see FS.Image.
func (c *Cursor) Image(mode Mode, seed uint64) *FS { return c.fs.Image(mode, seed) }

// Pending returns the paths of the files and directories that have something
// unsynced, in order.
func (c *Cursor) Pending() []string {
	var out []string
	var walk func(n *node, at string)
	walk = func(n *node, at string) {
		if len(n.writes)+len(n.changes) > 0 {
			out = append(out, clean(at))
		}
		for _, name := range sorted(n.names) {
			walk(n.names[name], at+"/"+name)
		}
	}
	walk(c.fs.root, "")
	slices.Sort(out)
	return out
}
