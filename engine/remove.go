package engine

import (
	"os"
	"sync"
	"time"

	"github.com/flotillakv/flotilla/internal/mutants"
)

// Where a file system tells the disk of each block that gets free (the mount option
// discard), the syncs of the log wait while the disk takes note: 15 to 30 ms for a
// table of 16 MiB, and 5 ms for each of the many small ones of a compaction
// (docs/performance.md). So tables are removed one after the other, with pauses, and a
// large one is cut shorter by steps before, as RocksDB does (bytes_max_delete_chunk).
const (
	removeStep  = 1 << 20
	removePause = 25 * time.Millisecond // for each step
)

// removing is held by the one store of the process that removes a table.
var removing sync.Mutex

// removeTable removes a table of the operating system's file system, without haste.
func (e *Engine) removeTable(name string, remove func(string) error) error {
	if mutants.On("LB1") {
		return nil
	}
	if !e.paced.Load() || e.opts.FS != nil && e.opts.FS != OSFS() || e.full.Load() {
		return remove(name)
	}
	info, err := os.Lstat(name)
	if err != nil || !info.Mode().IsRegular() || links(info) != 1 || e.db.Metrics().Table.ObsoleteSize > uint64(e.opts.baseBytes()) {
		return remove(name) // or another name of it stays, or disk space counts more
	}
	removing.Lock()
	defer removing.Unlock()
	size := info.Size()
	if f, err := os.OpenFile(name, os.O_WRONLY, 0); err == nil {
		for size > removeStep && e.working() {
			size -= removeStep
			if f.Truncate(size) != nil {
				break
			}
			time.Sleep(removePause)
		}
		_ = f.Close()
	}
	err = remove(name)
	if e.working() {
		time.Sleep(time.Duration(float64(removePause) * min(1, max(0.1, float64(size)/removeStep))))
	}
	return err
}

// working reports whether the store goes on.
func (e *Engine) working() bool { return !e.closed.Load() && e.failed.Load() == nil }
