package engine

import (
	"os"
	"sync"
	"time"
)

// Where a file system tells the disk of each block that gets free (the mount option
// discard), the syncs of the log wait while the disk takes note: 15 to 30 ms for a
// table of 16 MiB (docs/performance.md). So a table is cut shorter by steps before it
// is removed, each of which is made durable by itself, since all that was not is told
// at once. RocksDB does the same (bytes_max_delete_chunk).
const (
	shrinkStep  = 2 << 20
	shrinkPause = 50 * time.Millisecond
	// Beyond so much that waits to be removed, tables are removed whole: disk space
	// counts more.
	shrinkBacklog = 256 << 20
)

// shrinking is held by the one store of the process that shrinks a table.
var shrinking sync.Mutex

// shrink makes a table of the operating system's file system small, as a preparation
// for its removal. What fails is left to that.
func (e *Engine) shrink(name string) {
	if !e.paced.Load() || e.opts.FS != nil && e.opts.FS != OSFS() || e.full.Load() {
		return
	}
	info, err := os.Lstat(name)
	if err != nil || !info.Mode().IsRegular() || info.Size() <= 2*shrinkStep || links(info) != 1 {
		return // another name of it stays
	}
	if e.db.Metrics().Table.ObsoleteSize > shrinkBacklog {
		return
	}
	f, err := os.OpenFile(name, os.O_WRONLY, 0)
	if err != nil {
		return
	}
	defer f.Close()
	shrinking.Lock()
	defer shrinking.Unlock()
	for size := info.Size() - shrinkStep; size > 0 && !e.closed.Load() && e.failed.Load() == nil; size -= shrinkStep {
		if f.Truncate(size) != nil || f.Sync() != nil {
			return
		}
		time.Sleep(shrinkPause)
	}
}
