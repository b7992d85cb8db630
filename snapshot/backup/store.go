package backup

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
)

// ErrNoObject says that a store has no object of that name.
var ErrNoObject = errors.New("backup: there is no such object")

// Object is one entry of Store.List.
type Object struct {
	Name string
	Size int64 // bytes
}

// Store keeps objects by name. Names are relative paths of letters, digits,
// '-' and '/'. All methods may be called from many goroutines.
type Store interface {
	// Put writes an object whole: after an error, or a crash, it is there with
	// all of data or it is as before. A second Put of a name replaces the object.
	// When Put returned nil the object survives a crash.
	Put(ctx context.Context, name string, data []byte) error
	// Get returns an object of at most limit bytes. ErrNoObject: there is none.
	Get(ctx context.Context, name string, limit int64) ([]byte, error)
	// Size returns the bytes of an object. ErrNoObject: there is none.
	Size(ctx context.Context, name string) (int64, error)
	// List returns the objects whose names begin with prefix, by name; all that were
	// put before the call, and not deleted.
	List(ctx context.Context, prefix string) ([]Object, error)
	// Delete removes an object. When it returned nil the object is gone, also after a
	// crash; it is no error if there was none.
	Delete(ctx context.Context, name string) error
	// String names the place for people, without secrets.
	String() string
}

// Dir is a Store in a directory.
type Dir struct{ root string }

// tempPrefix begins the names of files that are being written.
const tempPrefix = ".tmp-"

// OpenDir returns the store in a directory, which is made when the first object
// is put. It fails if root is something else than a directory.
func OpenDir(root string) (*Dir, error) {
	st, err := os.Stat(root)
	if err == nil && !st.IsDir() {
		return nil, fmt.Errorf("backup: %s is not a directory", root)
	}
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("backup: %w", err)
	}
	return &Dir{root}, nil
}

// String returns the directory.
func (d *Dir) String() string { return d.root }

func (d *Dir) path(name string) string { return filepath.Join(d.root, filepath.FromSlash(name)) }

// Put implements Store: a temporary file beside the object, synced and renamed.
func (d *Dir) Put(ctx context.Context, name string, data []byte) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	path := d.path(name)
	dir := filepath.Dir(path)
	if err := d.makeDir(dir); err != nil {
		return fmt.Errorf("backup: %w", err)
	}
	f, err := os.CreateTemp(dir, tempPrefix+"*")
	if err != nil {
		return fmt.Errorf("backup: %w", err)
	}
	_, err = f.Write(data)
	if err == nil {
		err = f.Sync()
	}
	if closeErr := f.Close(); err == nil {
		err = closeErr
	}
	if err == nil {
		err = os.Rename(f.Name(), path)
	}
	if err != nil {
		os.Remove(f.Name())
		return fmt.Errorf("backup: %w", err)
	}
	return syncDir(dir)
}

// makeDir makes dir and what is above it, so that they survive a crash.
func (d *Dir) makeDir(dir string) error {
	if _, err := os.Stat(dir); err == nil {
		return nil
	}
	parent := filepath.Dir(dir)
	if parent != dir {
		if err := d.makeDir(parent); err != nil {
			return err
		}
	}
	if err := os.Mkdir(dir, 0o700); err != nil && !errors.Is(err, fs.ErrExist) {
		return err
	}
	return syncDir(parent)
}

func syncDir(dir string) error {
	f, err := os.Open(dir)
	if err != nil {
		return fmt.Errorf("backup: %w", err)
	}
	err = f.Sync()
	if closeErr := f.Close(); err == nil {
		err = closeErr
	}
	if err != nil {
		return fmt.Errorf("backup: sync of %s: %w", dir, err)
	}
	return nil
}

// Get implements Store.
func (d *Dir) Get(ctx context.Context, name string, limit int64) ([]byte, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	f, err := os.Open(d.path(name))
	if err != nil {
		return nil, d.failed(name, err)
	}
	defer f.Close()
	b, err := io.ReadAll(io.LimitReader(f, limit+1))
	if err != nil {
		return nil, d.failed(name, err)
	}
	if int64(len(b)) > limit {
		return nil, &DamageError{Object: name, Reason: fmt.Sprintf("it has more than %d bytes", limit)}
	}
	return b, nil
}

// Size implements Store.
func (d *Dir) Size(ctx context.Context, name string) (int64, error) {
	if err := ctx.Err(); err != nil {
		return 0, err
	}
	st, err := os.Stat(d.path(name))
	if err != nil {
		return 0, d.failed(name, err)
	}
	return st.Size(), nil
}

func (d *Dir) failed(name string, err error) error {
	if errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("%s: %w", name, ErrNoObject)
	}
	return fmt.Errorf("backup: %w", err)
}

// Delete implements Store.
func (d *Dir) Delete(ctx context.Context, name string) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	path := d.path(name)
	err := os.Remove(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("backup: %w", err)
	}
	return syncDir(filepath.Dir(path))
}

// sweep removes the temporary files of Puts that a crash ended. Nobody may be at
// work but those who wait for a lock.
func (d *Dir) sweep(ctx context.Context) error {
	for _, dir := range []string{chunkDir, Backup.dir(), Snapshot.dir()} {
		err := d.walk(ctx, dir, func(path string, e fs.DirEntry) error {
			if strings.HasPrefix(e.Name(), tempPrefix) {
				return os.Remove(path)
			}
			return nil
		})
		if err != nil {
			return err
		}
	}
	return nil
}

// List implements Store.
func (d *Dir) List(ctx context.Context, prefix string) ([]Object, error) {
	var out []Object
	err := d.walk(ctx, prefix, func(path string, e fs.DirEntry) error {
		if strings.HasPrefix(e.Name(), tempPrefix) {
			return nil
		}
		st, err := e.Info()
		if errors.Is(err, fs.ErrNotExist) { // removed meanwhile
			return nil
		}
		if err != nil {
			return err
		}
		rel, err := filepath.Rel(d.root, path)
		out = append(out, Object{Name: filepath.ToSlash(rel), Size: st.Size()})
		return err
	})
	if err != nil {
		return nil, err
	}
	slices.SortFunc(out, func(a, b Object) int { return strings.Compare(a.Name, b.Name) })
	return out, nil
}

// walk calls f for the files whose names begin with prefix.
func (d *Dir) walk(ctx context.Context, prefix string, f func(path string, e fs.DirEntry) error) error {
	err := filepath.WalkDir(d.root, func(path string, e fs.DirEntry, err error) error {
		if err != nil {
			if errors.Is(err, fs.ErrNotExist) {
				return nil
			}
			return err
		}
		if ctx.Err() != nil {
			return ctx.Err()
		}
		rel, err := filepath.Rel(d.root, path)
		if err != nil {
			return err
		}
		name := filepath.ToSlash(rel)
		if e.IsDir() {
			if path != d.root && !strings.HasPrefix(prefix, name+"/") && !strings.HasPrefix(name+"/", prefix) {
				return filepath.SkipDir
			}
			return nil
		}
		if !strings.HasPrefix(name, prefix) {
			return nil
		}
		return f(path, e)
	})
	if err != nil {
		return fmt.Errorf("backup: %w", err)
	}
	return nil
}
