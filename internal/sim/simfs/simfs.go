package simfs

import (
	"errors"
	"io"
	"os"
	"path"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"
)

// ErrCrashed is returned by every operation after Crash.
var ErrCrashed = errors.New("simfs: the machine has crashed")

// OpKind says what an operation does.
type OpKind uint8

// The kinds of operations that an injector sees.
const (
	OpCreate OpKind = iota + 1
	OpWrite
	OpSync    // of a file
	OpDirSync // of a directory
	OpRemove
	OpRename
	OpLink
	OpMkdir
	OpOpen
	OpRead
	OpLock
)

// Op is an operation about to be done.
type Op struct {
	Kind  OpKind
	Path  string
	Class Class
}

// Class is what a file is for.
type Class uint8

// The classes, by file name.
const (
	ClassOther Class = iota
	ClassWAL
	ClassManifest
	ClassMarker
	ClassTable
	ClassIdent
	ClassStaging
	ClassDir
)

// classOf tells the class of a file by its path.
func classOf(name string) Class {
	base := path.Base(name)
	switch {
	case strings.Contains(name, "/staging/"):
		return ClassStaging
	case strings.HasSuffix(base, ".log"):
		return ClassWAL
	case strings.HasPrefix(base, "MANIFEST-"):
		return ClassManifest
	case strings.HasPrefix(base, "marker."):
		return ClassMarker
	case strings.HasSuffix(base, ".sst"):
		return ClassTable
	case base == "IDENT":
		return ClassIdent
	}
	return ClassOther
}

// Sync is a sync of a file or directory that is about to be done (After
// false) or was done. N counts the syncs of the file system from 1.
type Sync struct {
	N     int
	After bool
	Op    Op
}

// FS is the file system. The zero value is not usable; see New and Image.
type FS struct {
	mu    sync.Mutex
	root  *node
	locks map[string]bool
	syncs int
	dead  bool

	// The hooks are set before the file system is used.
	onSync  func(Sync)
	inject  atomic.Pointer[func(Op) error]
	noReuse bool

	nextID  uint64   // of nodes
	journal *Journal // nil: nothing is recorded
	faults  *Faults  // nil: none
	space   int64    // bytes that all files may hold; zero: no bound

	// See history.go.
	keeps     bool
	settled   int
	unsettled []*node
	lastSync  map[Class]int
}

var _ vfs.FS = (*FS)(nil)

// New returns an empty file system.
func New() *FS {
	f := &FS{locks: map[string]bool{}}
	f.root = f.newDir()
	return f
}

// OnSync sets the hook that sees every sync, before and after it. It runs on
// the goroutine that syncs, without locks; it may call Image.
func (f *FS) OnSync(hook func(Sync)) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.onSync = hook
}

// Inject sets the hook that is asked before every operation; the operation
// fails with the error it returns and changes nothing.
func (f *FS) Inject(hook func(Op) error) {
	if hook == nil {
		f.inject.Store(nil)
		return
	}
	f.inject.Store(&hook)
}

// NoReuse makes ReuseForWrite remove and create instead of recycling the file.
func (f *FS) NoReuse() { f.noReuse = true }

// Syncs returns the number of syncs so far.
func (f *FS) Syncs() int {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.syncs
}

// write is a change of a file's content since its last sync.
type write struct {
	off  int64
	data []byte
	at   int // syncs before it
}

// change is a change of a directory since its last sync: name (and, for a
// rename, gone) now lead to node; node nil: name was removed.
type change struct {
	name string
	node *node
	gone string // rename within the directory: the old name
	at   int    // syncs before it
}

// node is a file or a directory. Content, for files: data is what readers see,
// durable what survives, writes lead from one to the other. Likewise for
// directories.
type node struct {
	id  uint64 // within one FS
	dir bool

	data    []byte
	durable []byte
	writes  []write
	mod     time.Time
	// Images share content with what they were taken of until somebody writes.
	dataShared, durableShared bool

	names        map[string]*node
	durableNames map[string]*node
	changes      []change

	points []syncPoint // see history.go
}

func (f *FS) newFile() *node {
	f.nextID++
	return &node{id: f.nextID, mod: time.Unix(0, 0)}
}

func (f *FS) newDir() *node {
	f.nextID++
	return &node{id: f.nextID, dir: true, names: map[string]*node{}, durableNames: map[string]*node{}}
}

// note changes a directory.
func (f *FS) note(op Op, n *node, c change) {
	c.at = f.syncs
	n.changes = append(n.changes, c)
	c.apply(n.names)
	f.record(entry{op: op, node: n.id, change: &c})
}

func (c change) apply(m map[string]*node) {
	if c.gone != "" {
		delete(m, c.gone)
	}
	if c.node == nil {
		delete(m, c.name)
	} else {
		m[c.name] = c.node
	}
}

func (w write) apply(data []byte) []byte {
	end := w.off + int64(len(w.data))
	if grow := end - int64(len(data)); grow > 0 {
		data = append(data, make([]byte, grow)...)
	}
	copy(data[w.off:], w.data)
	return data
}

// sync makes everything of n durable.
func (n *node) sync() {
	if n.dir {
		for _, c := range n.changes {
			c.apply(n.durableNames)
		}
		n.changes = nil
		return
	}
	if len(n.writes) > 0 && n.durableShared {
		n.durable, n.durableShared = slices.Clone(n.durable), false
	}
	for _, w := range n.writes {
		n.durable = w.apply(n.durable)
	}
	n.writes = nil
}

// put is a write to a file.
func (n *node) put(w write) {
	if n.dataShared {
		n.data, n.dataShared = slices.Clone(n.data), false
	}
	n.data = w.apply(n.data)
	n.writes = append(n.writes, w)
}

func clean(name string) string { return path.Clean("/" + name) }

func pathErr(op, name string, err error) error {
	return &os.PathError{Op: op, Path: name, Err: err}
}

// begin asks the hooks and takes the lock.
func (f *FS) begin(kind OpKind, name string) error {
	op := opOf(kind, name)
	if hook := f.inject.Load(); hook != nil {
		if err := (*hook)(op); err != nil {
			return pathErr("simfs", name, err)
		}
	}
	f.mu.Lock()
	if f.dead {
		f.mu.Unlock()
		return pathErr("simfs", name, ErrCrashed)
	}
	if kind != OpWrite && kind != OpSync && kind != OpDirSync && kind != OpRead { // those know what to do
		if x := f.fault(kind, name); x != nil {
			f.mu.Unlock()
			return pathErr("simfs", name, x.error())
		}
	}
	return nil
}

// find returns the node at name, nil if there is none.
func (f *FS) find(name string) *node {
	n := f.root
	for part := range strings.SplitSeq(strings.TrimPrefix(clean(name), "/"), "/") {
		if part == "" {
			continue
		}
		if n == nil || !n.dir {
			return nil
		}
		n = n.names[part]
	}
	return n
}

// parent returns the directory that name is in, and its last element.
func (f *FS) parent(op, name string) (*node, string, error) {
	dir, base := path.Split(clean(name))
	p := f.find(dir)
	if p == nil {
		return nil, "", pathErr(op, name, os.ErrNotExist)
	}
	if !p.dir || base == "" {
		return nil, "", pathErr(op, name, syscall.ENOTDIR)
	}
	return p, base, nil
}

// Create implements vfs.FS.
func (f *FS) Create(name string, _ vfs.DiskWriteCategory) (vfs.File, error) {
	if err := f.begin(OpCreate, name); err != nil {
		return nil, err
	}
	defer f.mu.Unlock()
	return f.create(name)
}

func opOf(kind OpKind, name string) Op { return Op{Kind: kind, Path: name, Class: classOf(name)} }

func (f *FS) create(name string) (vfs.File, error) {
	p, base, err := f.parent("create", name)
	if err != nil {
		return nil, err
	}
	if old := p.names[base]; old != nil && old.dir {
		return nil, pathErr("create", name, syscall.EISDIR)
	}
	n := f.newFile()
	f.note(opOf(OpCreate, name), p, change{name: base, node: n})
	return &file{fs: f, n: n, name: clean(name), read: true, write: true}, nil
}

// Link implements vfs.FS.
func (f *FS) Link(oldname, newname string) error {
	if err := f.begin(OpLink, newname); err != nil {
		return err
	}
	defer f.mu.Unlock()
	n := f.find(oldname)
	if n == nil {
		return pathErr("link", oldname, os.ErrNotExist)
	}
	p, base, err := f.parent("link", newname)
	if err != nil {
		return err
	}
	if p.names[base] != nil {
		return pathErr("link", newname, os.ErrExist)
	}
	f.note(opOf(OpLink, newname), p, change{name: base, node: n})
	return nil
}

// Open implements vfs.FS.
func (f *FS) Open(name string, opts ...vfs.OpenOption) (vfs.File, error) {
	file, err := f.open(name, false)
	if err != nil {
		return nil, err
	}
	for _, o := range opts {
		o.Apply(file)
	}
	return file, nil
}

func (f *FS) open(name string, write bool) (vfs.File, error) {
	if err := f.begin(OpOpen, name); err != nil {
		return nil, err
	}
	defer f.mu.Unlock()
	n := f.find(name)
	if n == nil {
		if write {
			return f.create(name)
		}
		return nil, pathErr("open", name, os.ErrNotExist)
	}
	return &file{fs: f, n: n, name: clean(name), read: true, write: write && !n.dir}, nil
}

// OpenReadWrite implements vfs.FS.
func (f *FS) OpenReadWrite(name string, _ vfs.DiskWriteCategory, opts ...vfs.OpenOption) (vfs.File, error) {
	file, err := f.open(name, true)
	if err != nil {
		return nil, err
	}
	for _, o := range opts {
		o.Apply(file)
	}
	return file, nil
}

// OpenDir implements vfs.FS.
func (f *FS) OpenDir(name string) (vfs.File, error) {
	file, err := f.open(name, false)
	if err == nil && !file.(interface{ isDir() bool }).isDir() {
		return nil, pathErr("opendir", name, syscall.ENOTDIR)
	}
	return file, err
}

// Remove implements vfs.FS.
func (f *FS) Remove(name string) error {
	if err := f.begin(OpRemove, name); err != nil {
		return err
	}
	defer f.mu.Unlock()
	p, base, err := f.parent("remove", name)
	if err != nil {
		return err
	}
	n := p.names[base]
	if n == nil {
		return pathErr("remove", name, os.ErrNotExist)
	}
	if len(n.names) > 0 {
		return pathErr("remove", name, syscall.ENOTEMPTY)
	}
	f.note(opOf(OpRemove, name), p, change{name: base})
	return nil
}

// RemoveAll implements vfs.FS.
func (f *FS) RemoveAll(name string) error {
	if err := f.begin(OpRemove, name); err != nil {
		return err
	}
	defer f.mu.Unlock()
	p, base, err := f.parent("remove", name)
	if err != nil {
		if errors.Is(err, os.ErrNotExist) {
			return nil
		}
		return err
	}
	if n := p.names[base]; n != nil {
		f.empty(n, name)
		f.note(opOf(OpRemove, name), p, change{name: base})
	}
	return nil
}

// empty removes everything below n, which is at dir, in name order.
func (f *FS) empty(n *node, dir string) {
	for _, name := range sorted(n.names) {
		at := path.Join(dir, name)
		f.empty(n.names[name], at)
		f.note(opOf(OpRemove, at), n, change{name: name})
	}
}

func sorted(m map[string]*node) []string {
	out := make([]string, 0, len(m))
	for name := range m {
		out = append(out, name)
	}
	slices.Sort(out)
	return out
}

// Rename implements vfs.FS.
func (f *FS) Rename(oldname, newname string) error {
	if err := f.begin(OpRename, newname); err != nil {
		return err
	}
	defer f.mu.Unlock()
	return f.rename(oldname, newname)
}

func (f *FS) rename(oldname, newname string) error {
	from, oldbase, err := f.parent("rename", oldname)
	if err != nil {
		return err
	}
	to, newbase, err := f.parent("rename", newname)
	if err != nil {
		return err
	}
	n := from.names[oldbase]
	if n == nil {
		return pathErr("rename", oldname, os.ErrNotExist)
	}
	if from == to {
		if oldbase != newbase {
			f.note(opOf(OpRename, newname), to, change{name: newbase, node: n, gone: oldbase})
		}
		return nil
	}
	f.note(opOf(OpRename, newname), to, change{name: newbase, node: n})
	f.note(opOf(OpRename, oldname), from, change{name: oldbase})
	return nil
}

// ReuseForWrite implements vfs.FS: the file keeps its content under the new
// name, as on a disk, unless NoReuse was called.
func (f *FS) ReuseForWrite(oldname, newname string, _ vfs.DiskWriteCategory) (vfs.File, error) {
	if err := f.begin(OpRename, newname); err != nil {
		return nil, err
	}
	defer f.mu.Unlock()
	if f.noReuse {
		p, base, err := f.parent("reuse", oldname)
		if err != nil {
			return nil, err
		}
		if p.names[base] == nil {
			return nil, pathErr("reuse", oldname, os.ErrNotExist)
		}
		f.note(opOf(OpRemove, oldname), p, change{name: base})
		return f.create(newname)
	}
	if err := f.rename(oldname, newname); err != nil {
		return nil, err
	}
	return &file{fs: f, n: f.find(newname), name: clean(newname), read: true, write: true}, nil
}

// MkdirAll implements vfs.FS.
func (f *FS) MkdirAll(dir string, _ os.FileMode) error {
	if err := f.begin(OpMkdir, dir); err != nil {
		return err
	}
	defer f.mu.Unlock()
	n := f.root
	for part := range strings.SplitSeq(strings.TrimPrefix(clean(dir), "/"), "/") {
		if part == "" {
			continue
		}
		if n.names[part] == nil {
			f.note(opOf(OpMkdir, dir), n, change{name: part, node: f.newDir()})
		}
		if n = n.names[part]; !n.dir {
			return pathErr("mkdir", dir, syscall.ENOTDIR)
		}
	}
	return nil
}

// Lock implements vfs.FS. A lock is held until it is closed or the machine
// crashes; images hold none.
func (f *FS) Lock(name string) (io.Closer, error) {
	if err := f.begin(OpLock, name); err != nil {
		return nil, err
	}
	defer f.mu.Unlock()
	name = clean(name)
	if f.locks[name] {
		return nil, pathErr("lock", name, syscall.EAGAIN)
	}
	if _, err := f.create(name); err != nil {
		return nil, err
	}
	f.locks[name] = true
	return &lock{f, name}, nil
}

type lock struct {
	fs   *FS
	name string
}

func (l *lock) Close() error {
	l.fs.mu.Lock()
	defer l.fs.mu.Unlock()
	delete(l.fs.locks, l.name)
	return nil
}

// List implements vfs.FS; names are sorted.
func (f *FS) List(dir string) ([]string, error) {
	if err := f.begin(OpOpen, dir); err != nil {
		return nil, err
	}
	defer f.mu.Unlock()
	n := f.find(dir)
	if n == nil || !n.dir {
		return nil, pathErr("list", dir, os.ErrNotExist)
	}
	return sorted(n.names), nil
}

// Stat implements vfs.FS.
func (f *FS) Stat(name string) (vfs.FileInfo, error) {
	if err := f.begin(OpOpen, name); err != nil {
		return nil, err
	}
	defer f.mu.Unlock()
	n := f.find(name)
	if n == nil {
		return nil, pathErr("stat", name, os.ErrNotExist)
	}
	return n.info(path.Base(clean(name))), nil
}

// PathBase implements vfs.FS.
func (f *FS) PathBase(p string) string { return path.Base(p) }

// PathJoin implements vfs.FS.
func (f *FS) PathJoin(elem ...string) string { return path.Join(elem...) }

// PathDir implements vfs.FS.
func (f *FS) PathDir(p string) string { return path.Dir(p) }

// GetDiskUsage implements vfs.FS: the disk is large and empty.
func (f *FS) GetDiskUsage(string) (vfs.DiskUsage, error) {
	return vfs.DiskUsage{AvailBytes: 1 << 40, TotalBytes: 1 << 40}, nil
}

// Unwrap implements vfs.FS.
func (f *FS) Unwrap() vfs.FS { return nil }

func (n *node) info(name string) vfs.FileInfo {
	return fileInfo{name: name, size: int64(len(n.data)), dir: n.dir, mod: n.mod}
}

type fileInfo struct {
	name string
	size int64
	dir  bool
	mod  time.Time
}

func (i fileInfo) Name() string           { return i.name }
func (i fileInfo) Size() int64            { return i.size }
func (i fileInfo) ModTime() time.Time     { return i.mod }
func (i fileInfo) IsDir() bool            { return i.dir }
func (i fileInfo) Sys() any               { return nil }
func (i fileInfo) DeviceID() vfs.DeviceID { return vfs.DeviceID{} }
func (i fileInfo) Mode() os.FileMode {
	if i.dir {
		return os.ModeDir | 0o755
	}
	return 0o644
}
