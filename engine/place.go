package engine

import (
	"errors"
	"fmt"
	"io"
	"os"
	"sync"
	"syscall"
)

// MinFreeBytes is the free space that a disk must have for a store to be opened
// on it: one memtable, one log and one compaction of their size. A store that
// runs out of space while it runs stops the node; one that begins without any
// would do so in the middle of its recovery.
const MinFreeBytes = 64 << 20

const spaceHint = "free at least 64 MiB on its disk, or choose another one"

// checkPlace refuses a disk without free space, and a new store inside another
// one: removing or copying the outer one would take the inner one with it.
func (e *Engine) checkPlace(fs FS, found bool) error {
	at := e.dir
	for {
		if _, err := fs.Stat(at); err == nil || !isNotExist(err) {
			break
		}
		up := fs.PathDir(at)
		if up == at {
			break
		}
		at = up
	}
	if err := e.checkFree(fs, at, false); err != nil {
		return err
	}
	if found {
		return nil
	}
	for at := fs.PathDir(e.dir); ; at = fs.PathDir(at) {
		_, err := readIdentFile(fs, fs.PathJoin(at, identName))
		if err == nil || errors.Is(err, errNewerIdent) {
			return e.openErr(InsideStore, "choose a directory outside of it", fmt.Errorf("%q is the directory of another store", at))
		}
		if fs.PathDir(at) == at {
			return nil
		}
	}
}

// replaceHint says what to do about a store that cannot be used any more. A
// copy of it from an earlier time must not be put in its place: it would have
// forgotten what the node had promised since.
func (e *Engine) replaceHint() string {
	id := "the old node"
	if n := e.identRec.Node; n != 0 {
		id = fmt.Sprintf("n%d", n)
	}
	return fmt.Sprintf("it cannot be repaired, and no older copy may take its place; start the node with an empty directory and --rejoin, then take %s out: flotilla node remove %s", id, id)
}

// locking makes taking a lock and asking who holds it one step: closing the file
// that was opened for the question would give up a lock that this process took
// on it in between.
var locking sync.Mutex

// lockOrOwner locks the file, or returns the error together with the process
// that holds the lock; zero: not known.
func lockOrOwner(fs FS, name string, isOS bool) (io.Closer, int, error) {
	locking.Lock()
	defer locking.Unlock()
	c, err := fs.Lock(name)
	switch {
	case err == nil:
		return c, 0, nil
	case !isOS:
		return nil, 0, err
	case errors.Is(err, syscall.EAGAIN):
		return nil, lockOwner(name), err
	case !isIO(err): // Pebble's list of the locks of this process
		return nil, os.Getpid(), err
	}
	return nil, 0, err
}
