package simfs

import (
	"slices"
	"syscall"
)

// Effect is what a fault does to an operation.
type Effect uint8

// The effects.
const (
	// Fail: the operation fails with Fault.Err and does nothing.
	Fail Effect = iota
	// TornWrite: a write fails with Fault.Err after its first sectors, at most half of it.
	TornWrite
	// SyncLost: a sync fails with EIO, and what was to become durable never will,
	// though readers see it and later syncs succeed. This is what most kernels do.
	SyncLost
	// SyncLies: a sync reports success and does nothing.
	SyncLies
	// FlipRead: one bit of what is read is inverted, this once.
	FlipRead
	// FlipWrite: one bit of what is written is inverted, for good.
	FlipWrite
	// Misdirect: a write reports success and lands one block (4 KiB) further on.
	Misdirect
)

// Fault makes operations go wrong.
type Fault struct {
	// Kind and Class say which operations; AnyClass takes all files.
	Kind     OpKind
	Class    Class
	AnyClass bool
	// Nth says which of them, counted from 1 (0 means 1); Sticky adds all later ones.
	Nth    int
	Sticky bool
	Effect Effect
	// Err is what a failed operation returns. Zero: EIO.
	Err syscall.Errno
	// Bit chooses the bit of FlipRead and FlipWrite, modulo the length.
	Bit int64
}

func (x *Fault) error() error {
	if x.Err == 0 {
		return syscall.EIO
	}
	return x.Err
}

// NoSpace are the faults of a disk that takes nothing more in files of a class:
// what grows fails with ENOSPC, what is there can be read and removed.
func NoSpace(c Class, any bool) []Fault {
	var out []Fault
	for _, k := range []OpKind{OpWrite, OpCreate, OpMkdir, OpLink} {
		out = append(out, Fault{Kind: k, Class: c, AnyClass: any, Sticky: true, Err: syscall.ENOSPC})
	}
	return out
}

// Faults are the faults of a file system.
type Faults struct {
	list []Fault
	seen []int
	hits []int
}

// SetFaults replaces the faults; none takes them away.
func (f *FS) SetFaults(list ...Fault) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.faults = &Faults{list: list, seen: make([]int, len(list)), hits: make([]int, len(list))}
}

// Hits returns how often each fault of SetFaults happened.
func (f *FS) Hits() []int {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.faults == nil {
		return nil
	}
	return append([]int(nil), f.faults.hits...)
}

// SetSpace bounds the bytes that all files together may hold; a write that
// would exceed it fails with ENOSPC and does nothing. Zero: no bound. Removed
// files give their bytes back once nothing names them.
func (f *FS) SetSpace(bytes int64) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.space = bytes
}

// fault returns the fault that hits an operation, nil if none; f.mu is held.
func (f *FS) fault(kind OpKind, name string) *Fault {
	if f.faults == nil {
		return nil
	}
	class := classOf(name)
	var hit *Fault
	for i := range f.faults.list {
		x := &f.faults.list[i]
		if x.Kind != kind || !x.AnyClass && x.Class != class {
			continue
		}
		f.faults.seen[i]++
		n := max(x.Nth, 1)
		if hit == nil && (f.faults.seen[i] == n || x.Sticky && f.faults.seen[i] > n) {
			f.faults.hits[i]++
			hit = x
		}
	}
	return hit
}

// hasSpace reports whether files may grow by n bytes; f.mu is held.
func (f *FS) hasSpace(n int64) bool {
	if f.space == 0 || n <= 0 {
		return true
	}
	return f.used()+n <= f.space
}

// used sums up all files; f.mu is held.
func (f *FS) used() (used int64) {
	seen := map[*node]bool{}
	var walk func(n *node)
	walk = func(n *node) {
		if seen[n] {
			return
		}
		seen[n] = true
		used += int64(len(n.data))
		for _, c := range n.names {
			walk(c)
		}
	}
	walk(f.root)
	return used
}

// faultyWrite carries out a write that a fault hits.
func (f *file) faultyWrite(x *Fault, p []byte, off int64) (int, error) {
	switch x.Effect {
	case TornWrite:
		n := len(p) / 2 / sector * sector
		f.store(p[:n], off)
		return n, pathErr("write", f.name, x.error())
	case FlipWrite:
		q := append([]byte(nil), p...)
		flip(q, x.Bit)
		f.store(q, off)
		return len(p), nil
	case Misdirect:
		f.store(p, off+block)
		return len(p), nil
	}
	return 0, pathErr("write", f.name, x.error())
}

func flip(p []byte, bit int64) {
	if len(p) > 0 {
		bit %= int64(len(p)) * 8
		p[bit/8] ^= 1 << (bit % 8)
	}
}

// faultySync carries out a sync that a fault hits.
func (f *file) faultySync(x *Fault) error {
	switch x.Effect {
	case SyncLies:
		return nil
	case SyncLost:
		f.n.dropUnsynced()
		f.fs.record(entry{op: opOf(OpSync, f.name), node: f.n.id, lost: true})
	}
	return pathErr("sync", f.name, x.error())
}

// Used returns the bytes that all files together hold.
func (f *FS) Used() int64 {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.used()
}

// Rot inverts one bit of a durable byte of a file of a class that readers see:
// which file and which bit pick says, counted over all of them in the order of
// their names. It reports the file, and false if there is none.
func (f *FS) Rot(c Class, pick uint64) (string, bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	type found struct {
		name string
		n    *node
	}
	var files []found
	var total uint64
	var walk func(n *node, name string)
	walk = func(n *node, name string) {
		if !n.dir {
			if classOf(name) == c && len(n.data) > 0 {
				files = append(files, found{name, n})
				total += uint64(len(n.data))
			}
			return
		}
		for _, base := range sorted(n.names) {
			walk(n.names[base], name+"/"+base)
		}
	}
	walk(f.root, "")
	if total == 0 {
		return "", false
	}
	bit := int64(pick % (total * 8))
	for _, x := range files {
		if size := int64(len(x.n.data)) * 8; bit >= size {
			bit -= size
			continue
		}
		x.n.rot(bit)
		return x.name, true
	}
	return "", false
}

// rot inverts a bit wherever it is kept.
func (n *node) rot(bit int64) {
	at := bit / 8
	n.data = slices.Clone(n.data)
	n.dataShared = false
	n.data[at] ^= 1 << (bit % 8)
	if at < int64(len(n.durable)) {
		n.durable = slices.Clone(n.durable)
		n.durableShared = false
		n.durable[at] ^= 1 << (bit % 8)
	}
	for i := range n.writes {
		if w := &n.writes[i]; at >= w.off && at < w.off+int64(len(w.data)) {
			w.data = slices.Clone(w.data)
			w.data[at-w.off] ^= 1 << (bit % 8)
		}
	}
}

// Scrap ends a file system that nobody looks at any more: every operation fails
// from now on, and what it held is given back to the memory, whoever still has a
// file of it open.
func (f *FS) Scrap() {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.dead = true
	seen := map[*node]bool{}
	var walk func(n *node)
	walk = func(n *node) {
		if n == nil || seen[n] {
			return
		}
		seen[n] = true
		for _, c := range n.names {
			walk(c)
		}
		for _, c := range n.durableNames {
			walk(c)
		}
		for _, c := range n.changes {
			walk(c.node)
		}
		*n = node{id: n.id, dir: n.dir}
	}
	walk(f.root)
	f.root = f.newDir()
	f.faults, f.unsettled, f.journal = nil, nil, nil
}
