package engine

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"

	"github.com/cockroachdb/pebble/v2/vfs"

	"github.com/flotillakv/flotilla/internal/mutants"
)

// FS is the file system a store lives in. Implementations must be safe for
// concurrent use; tests bring their own.
type FS = vfs.FS

// File is an open file of an FS.
type File = vfs.File

// OSFS returns the file system of the operating system. What it creates can be
// read and written by its user alone, whatever the umask: files have mode 0600,
// directories 0700. Directories that were there before are left as they are.
func OSFS() FS { return privateFS{vfs.Default} }

// privateFS makes files before Pebble does, with its own mode. Where a file
// system has no modes the directory above keeps others out.
type privateFS struct{ FS }

// touch makes an empty file, or says os.ErrExist without having opened it.
func (p privateFS) touch(name string) error {
	mode := os.FileMode(0o600)
	if mutants.On("H12") {
		mode = 0o666
	}
	f, err := os.OpenFile(name, os.O_WRONLY|os.O_CREATE|os.O_EXCL, mode)
	if err != nil {
		return err
	}
	return f.Close()
}

func (p privateFS) Create(name string, c vfs.DiskWriteCategory) (vfs.File, error) {
	err := p.touch(name)
	for errors.Is(err, os.ErrExist) { // a new file takes the place of an old one
		if err = os.Remove(name); err == nil || errors.Is(err, os.ErrNotExist) {
			err = p.touch(name)
		}
	}
	if err != nil {
		return nil, err
	}
	return p.FS.OpenReadWrite(name, c)
}

func (p privateFS) OpenReadWrite(name string, c vfs.DiskWriteCategory, o ...vfs.OpenOption) (vfs.File, error) {
	if err := p.touch(name); err != nil && !errors.Is(err, os.ErrExist) {
		return nil, err
	}
	return p.FS.OpenReadWrite(name, c, o...)
}

func (p privateFS) MkdirAll(dir string, perm os.FileMode) error {
	return p.FS.MkdirAll(dir, perm&0o700)
}

func (p privateFS) Lock(name string) (io.Closer, error) {
	if err := p.touch(name); err != nil && !errors.Is(err, os.ErrExist) {
		return nil, err
	}
	return p.FS.Lock(name)
}

func (p privateFS) Unwrap() vfs.FS { return p.FS }

// NewMemFS returns an empty file system in memory. It survives closing a store
// but models no crash: what was written is there.
func NewMemFS() FS { return WrapReuse(vfs.NewMem()) }

// WrapReuse returns fs with ReuseForWrite done as remove and create. The memory
// file system of Pebble takes one of its locks twice in ReuseForWrite and can
// hang a concurrent crash clone; wrappers that inject faults lose sight of
// files that pass through it.
func WrapReuse(fs FS) FS { return reuseFS{fs} }

type reuseFS struct{ FS }

func (r reuseFS) ReuseForWrite(oldname, newname string, c vfs.DiskWriteCategory) (vfs.File, error) {
	if err := r.FS.Remove(oldname); err != nil {
		return nil, err
	}
	return r.FS.Create(newname, c)
}

func (r reuseFS) Unwrap() vfs.FS { return r.FS }

// storeFS is what Pebble sees: the file system with three cures.
//
// It syncs the directory after a MANIFEST was created in it. Pebble v2.1.7
// syncs the MANIFEST's content, then creates the marker file that names it,
// then syncs the directory: a power cut in between can keep the marker and
// lose the MANIFEST, and the store does not open again. The same goes for a new
// marker: Pebble removes the old one before it syncs the directory, and a file
// system that does not order such changes may keep the removal alone.
//
// It notes what was synced of a MANIFEST in the file CHECKSUM: see checksum.go.
//
// It stops the node at the first failed operation on a write-ahead log. Pebble
// panics when the log cannot be rotated, in a place where the panic itself
// dies of an unlocked mutex, so the reason would be lost.
type storeFS struct {
	FS
	e *Engine
}

func (d storeFS) Create(name string, c vfs.DiskWriteCategory) (vfs.File, error) {
	if strings.HasSuffix(name, ".sst") {
		d.e.pauseIfFull()
	}
	f, err := d.FS.Create(name, c)
	base := d.FS.PathBase(name)
	if strings.HasSuffix(base, ".log") {
		return d.wal(name, f, err)
	}
	if err == nil && strings.HasSuffix(base, ".sst") {
		f = politeTable{f, d.e.yield}
	}
	number, isManifest := manifestNumber(base)
	if err == nil && isManifest {
		f = &manifestFile{File: f, e: d.e, sum: manifestSum{Number: number}}
	}
	if err != nil || d.e.opts.noDirSync || mutants.On("B16") || !isManifest && !strings.HasPrefix(base, "marker.") {
		return f, err
	}
	if err := syncDir(d.FS, d.FS.PathDir(name)); err != nil {
		_ = f.Close()
		return nil, err
	}
	return f, nil
}

func (d storeFS) ReuseForWrite(oldname, newname string, c vfs.DiskWriteCategory) (vfs.File, error) {
	if d.e.dropLogs.Load() > 0 && !mutants.On("GV10") && d.FS.Remove(oldname) == nil {
		return d.Create(newname, c) // which is what Pebble allows ReuseForWrite to be
	}
	f, err := d.FS.ReuseForWrite(oldname, newname, c)
	return d.wal(newname, f, err)
}

func (d storeFS) Remove(name string) error {
	if strings.HasSuffix(name, ".sst") {
		return d.e.removeTable(name, d.FS.Remove)
	}
	return d.FS.Remove(name)
}

// GetDiskUsage tells Pebble, which sizes compactions by it, how much the store may
// still take.
func (d storeFS) GetDiskUsage(path string) (vfs.DiskUsage, error) {
	u, err := d.FS.GetDiskUsage(path)
	limit, room := d.e.opts.SpaceLimit, d.e.spaceRoom.Load()
	if limit <= 0 || room <= 0 {
		return u, err
	}
	if err != nil {
		u = vfs.DiskUsage{AvailBytes: uint64(limit), TotalBytes: uint64(limit)}
	}
	u.AvailBytes = min(u.AvailBytes, uint64(room-1))
	return u, nil
}

func (d storeFS) Unwrap() vfs.FS { return d.FS }

func (d storeFS) wal(name string, f vfs.File, err error) (vfs.File, error) {
	if err != nil {
		d.e.fail(fmt.Errorf("make write-ahead log %s: %w", name, err))
		park()
	}
	return &walFile{File: f, e: d.e, name: name, atRest: d.e.dropLogs.Load() > 0}, nil
}

// walFile is a write-ahead log. Failed writes and syncs go on to Pebble, which
// hands them to whoever waits; but a goroutine that would rotate a failed log
// is parked.
type walFile struct {
	vfs.File
	e    *Engine
	name string
	// Of a log begun at rest (tidy.go): what Pebble would have it take of the disk
	// ahead is taken when restLog bytes were written. Used by the one goroutine that writes.
	atRest         bool
	written, ahead int64
}

// restLog is how long a log that is begun at rest takes no more of the disk than was written.
const restLog = 1 << 20

// Preallocate implements vfs.File.
func (w *walFile) Preallocate(off, n int64) error {
	if w.atRest && !mutants.On("GV11") {
		w.ahead = max(w.ahead, off+n)
		return nil
	}
	return w.File.Preallocate(off, n)
}

// takeAhead is called before a write.
func (w *walFile) takeAhead(n int) {
	if w.written += int64(n); w.written >= restLog {
		if w.atRest = false; w.ahead > 0 {
			_ = w.File.Preallocate(0, w.ahead) // Pebble does not ask either
		}
	}
}

func (w *walFile) check(what string, err error) error {
	if err != nil && mutants.On("H4") && what == "sync" { // tried again, and believed
		return w.File.Sync()
	}
	if err != nil {
		w.e.fail(fmt.Errorf("%s write-ahead log %s: %w", what, w.name, err))
	}
	return err
}

func (w *walFile) Write(p []byte) (int, error) {
	if w.atRest {
		w.takeAhead(len(p))
	}
	n, err := w.File.Write(p)
	return n, w.check("write", err)
}

func (w *walFile) Sync() error { return w.check("sync", w.File.Sync()) }

func (w *walFile) SyncData() error { return w.check("sync", w.File.SyncData()) }

func (w *walFile) SyncTo(n int64) (bool, error) {
	full, err := w.File.SyncTo(n)
	return full, w.check("sync", err)
}

func (w *walFile) Close() error {
	err := w.check("close", w.File.Close())
	if w.e.failed.Load() != nil && !w.e.discarded.Load() {
		park()
	}
	return err
}

func syncDir(fs FS, dir string) error {
	f, err := fs.OpenDir(dir)
	if err != nil {
		return err
	}
	return closeWith(f, f.Sync())
}

// closeWith closes f and returns the first error.
func closeWith(f interface{ Close() error }, err error) error {
	if cerr := f.Close(); err == nil {
		err = cerr
	}
	return err
}

// canonicalDir gives one name to a directory of the operating system, so that
// two names of it meet at one lock. Other file systems have no links.
func canonicalDir(fs FS, dir string) string {
	if fs != OSFS() {
		return dir
	}
	abs, err := filepath.Abs(dir)
	if err != nil {
		return dir
	}
	if real, err := filepath.EvalSymlinks(abs); err == nil {
		return real
	}
	return abs
}

// mkdirSynced creates dir and makes it durable in its parent.
func mkdirSynced(fs FS, dir string) error {
	var missing []string
	for d := dir; ; d = fs.PathDir(d) {
		if _, err := fs.Stat(d); err == nil {
			break
		} else if !errors.Is(err, os.ErrNotExist) {
			return err
		}
		missing = append(missing, d)
		if p := fs.PathDir(d); p == d {
			break
		}
	}
	if len(missing) == 0 {
		return nil
	}
	if err := fs.MkdirAll(dir, 0o700); err != nil || mutants.On("B16b") {
		return err
	}
	for _, d := range missing {
		if err := syncDir(fs, d); err != nil {
			return err
		}
		if p := fs.PathDir(d); p != d {
			if err := syncDir(fs, p); err != nil {
				return err
			}
		}
	}
	return nil
}

func exists(fs FS, name string) (bool, error) {
	_, err := fs.Stat(name)
	if err == nil {
		return true, nil
	}
	if errors.Is(err, os.ErrNotExist) {
		return false, nil
	}
	return false, err
}
