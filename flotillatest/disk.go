package flotillatest

import (
	"errors"
	"sync"

	"github.com/flotillakv/flotilla/internal/sim/simfs"
)

// disk is the file system of one node's life between two crashes, with a gate
// before its syncs.
type disk struct {
	fs *simfs.FS

	mu     sync.Mutex
	cond   sync.Cond
	inside int  // syncs under way
	frozen bool // syncs wait
	failed bool // syncs fail
}

var errPower = errors.New("flotillatest: the machine has lost its power")

func newDisk(fs *simfs.FS) *disk {
	d := &disk{fs: fs}
	d.cond.L = &d.mu
	fs.OnSync(func(s simfs.Sync) {
		if s.After {
			d.leave()
		} else {
			d.enter()
		}
	})
	fs.Inject(func(op simfs.Op) error {
		if op.Kind != simfs.OpSync && op.Kind != simfs.OpDirSync {
			return nil
		}
		d.mu.Lock()
		defer d.mu.Unlock()
		if d.failed {
			return errPower
		}
		return nil
	})
	return d
}

func (d *disk) enter() {
	d.mu.Lock()
	defer d.mu.Unlock()
	for d.frozen {
		d.cond.Wait()
	}
	d.inside++
}

func (d *disk) leave() {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.inside--
	d.cond.Broadcast()
}

// freeze holds back every sync that has not begun, and waits for the others.
func (d *disk) freeze() {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.frozen = true
	for d.inside > 0 {
		d.cond.Wait()
	}
}

// release lets the held syncs go on: to success, on a tree that nobody will see
// again, or to failure.
func (d *disk) release(fail bool) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.frozen, d.failed = false, fail
	d.cond.Broadcast()
}
