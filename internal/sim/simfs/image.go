package simfs

import (
	"fmt"
	"hash/fnv"
	"hash/maphash"
	"os"
	"path/filepath"
	"slices"
	"strings"
)

// Mode says what of the unsynced state survives a crash.
type Mode uint8

// The modes of images.
const (
	// None: only what was synced.
	None Mode = iota
	// All: everything, as after the kill of a process that had written it.
	All
	// Prefix: of each file the first writes since its last sync, of each
	// directory the first changes, how many is drawn.
	Prefix
	// Torn: like Prefix, and the next write survives up to a sector boundary.
	Torn
	// Subset: like Prefix, but the names made in a directory survive
	// independently of each other (a removal survives only if all changes
	// before it did). File systems without ordered metadata do this.
	Subset
	// Zeroed: like Prefix, but a file has the length that more of its writes gave
	// it; what they wrote behind its durable end reads as zeros. File systems that
	// journal sizes ahead of contents do this.
	Zeroed
	// Blocks: of the writes since the last sync any blocks of 4 KiB survive, later
	// ones without earlier ones; directories as in Subset.
	Blocks
	// Reordered: each write, and each change of a directory, removals too,
	// survives or not, whatever becomes of the others.
	Reordered
)

// Modes are all modes.
var Modes = []Mode{None, All, Prefix, Torn, Subset, Zeroed, Blocks, Reordered}

// String names the mode.
func (m Mode) String() string {
	return [...]string{"none", "all", "prefix", "torn", "subset", "zeroed", "blocks", "reordered"}[m]
}

// ParseMode returns the mode of a name.
func ParseMode(name string) (Mode, bool) {
	for _, m := range Modes {
		if m.String() == name {
			return m, true
		}
	}
	return None, false
}

const (
	// sector is the unit in which a write is torn, in bytes.
	sector = 512
	// block is the unit in which a cache is written back, in bytes.
	block = 4096
)

// Image returns the file system that a crash at this moment leaves behind; f
// goes on. Equal trees, modes and seeds give equal images. The image has no
// hooks and no locks, and everything in it is durable.
func (f *FS) Image(mode Mode, seed uint64) *FS {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.image(mode, seed)
}

// Crash freezes f, so that every later operation on it fails, and returns the
// image that is left behind.
func (f *FS) Crash(mode Mode, seed uint64) *FS {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.dead = true
	return f.image(mode, seed)
}

func (f *FS) image(mode Mode, seed uint64) *FS {
	img := &FS{locks: map[string]bool{}}
	b := builder{mode: mode, seed: seed, fs: img, made: map[*node]*node{}, rank: map[Class]int{}}
	img.root = b.build(f.root, "/")
	return img
}

// builder builds one image. A node with several names is built once.
type builder struct {
	mode Mode
	seed uint64
	fs   *FS
	made map[*node]*node
	rank map[Class]int

	past bool // see history.go
	at   int
}

// draw returns a number in [0, n) that depends on seed, class, rank of the
// file in its class, and ordinal only.
func (b *builder) draw(c Class, rank, ordinal, n int) int {
	h := fnv.New64a()
	fmt.Fprintf(h, "%d/%d/%d/%d", b.seed, c, rank, ordinal)
	x := h.Sum64()
	// Mix: fnv leaves the low bits of short inputs similar.
	x ^= x >> 33
	x *= 0xff51afd7ed558ccd
	x ^= x >> 33
	return int(x % uint64(n))
}

func (b *builder) build(n *node, name string) *node {
	if m := b.made[n]; m != nil {
		return m
	}
	class := classOf(name)
	if n.dir {
		class = ClassDir
	}
	rank := b.rank[class]
	b.rank[class]++
	m := b.fs.newFile()
	m.dir, m.mod = n.dir, n.mod
	b.made[n] = m
	n = b.asOf(n, class)
	if !n.dir {
		m.data = b.content(n, class, rank)
		m.durable, m.dataShared, m.durableShared = m.data, true, true
		return m
	}
	names := b.entries(n, rank)
	m.names, m.durableNames = map[string]*node{}, map[string]*node{}
	for _, base := range sorted(names) {
		c := b.build(names[base], strings.TrimSuffix(name, "/")+"/"+base)
		m.names[base], m.durableNames[base] = c, c
	}
	return m
}

// content returns what survives of a file.
func (b *builder) content(n *node, class Class, rank int) []byte {
	switch {
	case b.mode == All:
		n.dataShared = true
		return n.data
	case b.mode == None || len(n.writes) == 0:
		n.durableShared = true
		return n.durable
	}
	if b.past && class == ClassWAL {
		return b.logContent(n)
	}
	data := slices.Clone(n.durable)
	switch b.mode {
	case Reordered:
		for i, w := range n.writes {
			if b.draw(class, rank, i, 2) == 0 {
				data = w.apply(data)
			}
		}
		return data
	case Blocks:
		for i, w := range n.writes {
			for at := int64(0); at < int64(len(w.data)); {
				end := min(int64(len(w.data)), (w.off+at)/block*block+block-w.off)
				if b.draw(class, rank, i<<20+int(at/block), 2) == 0 {
					data = write{off: w.off + at, data: w.data[at:end]}.apply(data)
				}
				at = end
			}
		}
		return data
	}
	keep := b.draw(class, rank, 0, len(n.writes)+1)
	for _, w := range n.writes[:keep] {
		data = w.apply(data)
	}
	if keep == len(n.writes) {
		return data
	}
	switch w := n.writes[keep]; b.mode {
	case Torn:
		sectors := b.draw(class, rank, 1, len(w.data)/sector+1)
		// The cut is at a sector of the disk, not of the write.
		if cut := int64(sectors*sector) - w.off%sector; cut > 0 {
			w.data = w.data[:min(cut, int64(len(w.data)))]
			data = w.apply(data)
		}
	case Zeroed:
		more := b.draw(class, rank, 1, len(n.writes)-keep+1)
		size := len(data)
		for _, w := range n.writes[keep : keep+more] {
			size = max(size, int(w.off)+len(w.data))
		}
		data = append(data, make([]byte, size-len(data))...)
	}
	return data
}

// entries returns what survives of a directory.
func (b *builder) entries(n *node, rank int) map[string]*node {
	out := map[string]*node{}
	for name, c := range n.durableNames {
		out[name] = c
	}
	switch b.mode {
	case None:
	case All:
		for _, c := range n.changes {
			c.apply(out)
		}
	case Subset, Blocks, Reordered:
		whole := true
		for i, c := range n.changes {
			if c.node == nil && !whole && b.mode != Reordered || b.draw(ClassDir, rank, i, 2) == 0 {
				whole = false
				continue
			}
			c.apply(out)
		}
	default:
		for _, c := range n.changes[:b.draw(ClassDir, rank, 0, len(n.changes)+1)] {
			c.apply(out)
		}
	}
	return out
}

// Digest returns a hash of all names and contents that readers see.
func (f *FS) Digest() uint64 {
	f.mu.Lock()
	defer f.mu.Unlock()
	h := fnv.New64a()
	var walk func(n *node, name string)
	walk = func(n *node, name string) {
		fmt.Fprintf(h, "%s %v %d\n", name, n.dir, len(n.data))
		_, _ = h.Write(n.data)
		for _, base := range sorted(n.names) {
			walk(n.names[base], name+"/"+base)
		}
	}
	walk(f.root, "")
	return h.Sum64()
}

// Flip inverts one bit of a file, in what readers see and in what is durable:
// rot on the disk. It reports whether there is such a bit.
func (f *FS) Flip(name string, bit int64) bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	n := f.find(name)
	if n == nil || n.dir || bit < 0 || bit/8 >= int64(len(n.data)) {
		return false
	}
	n.data, n.durable = slices.Clone(n.data), slices.Clone(n.durable)
	n.dataShared, n.durableShared = false, false
	n.data[bit/8] ^= 1 << (bit % 8)
	if bit/8 < int64(len(n.durable)) {
		n.durable[bit/8] ^= 1 << (bit % 8)
	}
	return true
}

var keySeed = maphash.MakeSeed()

// Key is a fast hash of all names and contents that readers see; it is
// comparable within one process only.
func (f *FS) Key() uint64 {
	f.mu.Lock()
	defer f.mu.Unlock()
	var h maphash.Hash
	h.SetSeed(keySeed)
	var walk func(n *node, name string)
	walk = func(n *node, name string) {
		_, _ = h.WriteString(name)
		_ = h.WriteByte(0)
		_, _ = h.Write(n.data)
		for _, base := range sorted(n.names) {
			walk(n.names[base], name+"/"+base)
		}
	}
	walk(f.root, "")
	return h.Sum64()
}

// Dump copies all files to a directory of the operating system.
func (f *FS) Dump(dir string) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	var walk func(n *node, at string) error
	walk = func(n *node, at string) error {
		if !n.dir {
			return os.WriteFile(at, n.data, 0o600)
		}
		if err := os.MkdirAll(at, 0o700); err != nil {
			return err
		}
		for _, base := range sorted(n.names) {
			if err := walk(n.names[base], filepath.Join(at, base)); err != nil {
				return err
			}
		}
		return nil
	}
	return walk(f.root, dir)
}
