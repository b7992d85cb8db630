package engine

import (
	"errors"
	"os"
	"path/filepath"
	"strings"

	"github.com/cockroachdb/pebble/v2/vfs"
)

// FS is the file system a store lives in. Implementations must be safe for
// concurrent use; tests bring their own.
type FS = vfs.FS

// File is an open file of an FS.
type File = vfs.File

// OSFS returns the file system of the operating system.
func OSFS() FS { return vfs.Default }

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

// dirSyncFS syncs the directory after a MANIFEST was created in it. Pebble
// v2.1.7 syncs the MANIFEST's content, then creates the marker file that names
// it, then syncs the directory: a power cut in between can keep the marker and
// lose the MANIFEST, and the store does not open again.
type dirSyncFS struct{ FS }

func (d dirSyncFS) Create(name string, c vfs.DiskWriteCategory) (vfs.File, error) {
	f, err := d.FS.Create(name, c)
	if err != nil || !strings.HasPrefix(d.FS.PathBase(name), "MANIFEST-") {
		return f, err
	}
	if err := syncDir(d.FS, d.FS.PathDir(name)); err != nil {
		_ = f.Close()
		return nil, err
	}
	return f, nil
}

func (d dirSyncFS) Unwrap() vfs.FS { return d.FS }

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
	if fs != vfs.Default {
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
	if err := fs.MkdirAll(dir, 0o755); err != nil {
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
