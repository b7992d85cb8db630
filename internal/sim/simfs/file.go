package simfs

import (
	"io"
	"os"
	"path"
	"slices"
	"syscall"

	"github.com/cockroachdb/pebble/v2/vfs"
)

// file is an open file or directory.
type file struct {
	fs          *FS
	n           *node
	name        string
	pos         int64 // of Read and Write; guarded by fs.mu
	read, write bool
	closed      bool
}

var _ vfs.File = (*file)(nil)

func (f *file) isDir() bool { return f.n.dir }

// begin is FS.begin for an open file.
func (f *file) begin(kind OpKind) error {
	if err := f.fs.begin(kind, f.name); err != nil {
		return err
	}
	if f.closed {
		f.fs.mu.Unlock()
		return pathErr("simfs", f.name, os.ErrClosed)
	}
	return nil
}

// Close implements vfs.File. It syncs nothing.
func (f *file) Close() error {
	f.fs.mu.Lock()
	defer f.fs.mu.Unlock()
	if f.closed {
		return pathErr("close", f.name, os.ErrClosed)
	}
	f.closed = true
	return nil
}

// Read implements vfs.File.
func (f *file) Read(p []byte) (int, error) {
	if err := f.begin(OpRead); err != nil {
		return 0, err
	}
	defer f.fs.mu.Unlock()
	n, err := f.readAt(p, f.pos)
	f.pos += int64(n)
	if n > 0 {
		err = nil
	}
	return n, err
}

// ReadAt implements vfs.File.
func (f *file) ReadAt(p []byte, off int64) (int, error) {
	if err := f.begin(OpRead); err != nil {
		return 0, err
	}
	defer f.fs.mu.Unlock()
	return f.readAt(p, off)
}

func (f *file) readAt(p []byte, off int64) (int, error) {
	if f.n.dir || !f.read {
		return 0, pathErr("read", f.name, syscall.EBADF)
	}
	if off >= int64(len(f.n.data)) {
		return 0, io.EOF
	}
	n := copy(p, f.n.data[off:])
	if x := f.fs.fault(OpRead, f.name); x != nil {
		if x.Effect != FlipRead {
			return 0, pathErr("read", f.name, x.error())
		}
		flip(p[:n], x.Bit)
	}
	if n < len(p) {
		return n, io.EOF
	}
	return n, nil
}

// Write implements vfs.File.
func (f *file) Write(p []byte) (int, error) {
	if err := f.begin(OpWrite); err != nil {
		return 0, err
	}
	defer f.fs.mu.Unlock()
	n, err := f.writeAt(p, f.pos)
	f.pos += int64(n)
	return n, err
}

// WriteAt implements vfs.File.
func (f *file) WriteAt(p []byte, off int64) (int, error) {
	if err := f.begin(OpWrite); err != nil {
		return 0, err
	}
	defer f.fs.mu.Unlock()
	return f.writeAt(p, off)
}

func (f *file) writeAt(p []byte, off int64) (int, error) {
	if f.n.dir || !f.write {
		return 0, pathErr("write", f.name, syscall.EBADF)
	}
	if !f.fs.hasSpace(off + int64(len(p)) - int64(len(f.n.data))) {
		return 0, pathErr("write", f.name, syscall.ENOSPC)
	}
	if x := f.fs.fault(OpWrite, f.name); x != nil {
		return f.faultyWrite(x, p, off)
	}
	f.store(p, off)
	return len(p), nil
}

func (f *file) store(p []byte, off int64) {
	w := write{off: off, data: slices.Clone(p), at: f.fs.syncs}
	f.n.put(w)
	f.fs.record(entry{op: opOf(OpWrite, f.name), node: f.n.id, write: &w})
}

// Sync implements vfs.File.
func (f *file) Sync() error {
	kind := OpSync
	if f.n.dir {
		kind = OpDirSync
	}
	f.fs.mu.Lock()
	hook := f.fs.onSync
	f.fs.mu.Unlock()
	if hook != nil {
		f.fs.mu.Lock()
		f.fs.syncs++
		s := Sync{N: f.fs.syncs, Op: Op{Kind: kind, Path: f.name, Class: classOf(f.name)}}
		f.fs.mu.Unlock()
		hook(s)
		defer func() {
			s.After = true
			hook(s)
		}()
	}
	if err := f.begin(kind); err != nil {
		return err
	}
	defer f.fs.mu.Unlock()
	if hook == nil {
		f.fs.syncs++
	}
	if x := f.fs.fault(kind, f.name); x != nil {
		return f.faultySync(x)
	}
	if f.fs.keeps {
		f.fs.noteSync(f.n, f.name)
	} else {
		f.n.sync()
	}
	f.fs.record(entry{op: opOf(kind, f.name), node: f.n.id})
	return nil
}

// SyncData implements vfs.File.
func (f *file) SyncData() error { return f.Sync() }

// SyncTo implements vfs.File; it promises nothing and does nothing.
func (f *file) SyncTo(int64) (bool, error) { return false, nil }

// Stat implements vfs.File.
func (f *file) Stat() (vfs.FileInfo, error) {
	if err := f.begin(OpOpen); err != nil {
		return nil, err
	}
	defer f.fs.mu.Unlock()
	return f.n.info(path.Base(f.name)), nil
}

// Preallocate implements vfs.File; it does nothing.
func (f *file) Preallocate(int64, int64) error { return nil }

// Prefetch implements vfs.File; it does nothing.
func (f *file) Prefetch(int64, int64) error { return nil }

// Fd implements vfs.File.
func (f *file) Fd() uintptr { return vfs.InvalidFd }
