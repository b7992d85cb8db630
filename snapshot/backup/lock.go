package backup

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"strings"
	"sync"
	"time"

	"github.com/flotillakv/flotilla/internal/mutants"
)

// A lock is an object under locks/ that says who works in a store: backups share
// it, a prune must be alone. Both put theirs first and look for the others' then,
// so that of two one sees the other (Dijkstra 1965; it needs a store that lists
// what was put before). A prune that sees anybody takes its own away and waits; a
// backup keeps its own and waits until no prune is left. The owner writes its lock
// anew every lockRenew; one that did not change for lockStale, on the clock of who
// looks, is of a process that crashed, and is removed. An owner that could not
// renew for lockFresh gives up before anybody can think so. No clock is compared
// with another one's.
const (
	lockDir   = "locks/"
	lockMagic = "flotilla-lock/1\n"
	lockRenew = 15 * time.Second
	lockFresh = 45 * time.Second
	lockStale = 2 * time.Minute
	lockPoll  = time.Second
	// lockStep bounds one step of a prune, so that what began while the lock was fresh
	// is over before anybody takes the owner for dead.
	lockStep = 30 * time.Second
)

const (
	workBackup = "backup"
	workPrune  = "prune"
)

// BusyError says that others work in the store, for longer than one was to wait.
// Nothing was stored or removed.
type BusyError struct {
	Who []string // names of their locks
}

func (e *BusyError) Error() string {
	return fmt.Sprintf("backup: others work there: %s", strings.Join(e.Who, ", "))
}

// ErrLockLost says that the process stood still, or the store could not be written,
// for so long that others may have taken it for dead. There is no new backup; what
// was stored is used by the next one.
var ErrLockLost = errors.New("backup: the lock could not be kept")

type lock struct {
	s    Store
	o    *Options
	name string
	stop context.CancelFunc
	done chan struct{}

	mu    sync.Mutex // guards what follows; not held across I/O
	n     int        // written so often
	wrote time.Time  // when the last write of it began
	lost  bool
}

// seenLock is what somebody else's lock held, and since when.
type seenLock struct {
	text  string
	since time.Time
}

// hold takes the lock for what, waiting for others as long as o.Wait. The caller
// releases it. Errors: *BusyError, the store's, the context's.
func hold(ctx context.Context, s Store, o *Options, what string) (*lock, error) {
	l := &lock{s: s, o: o, name: lockDir + what + "-" + newID(o.Now().UTC()), done: make(chan struct{})}
	began := o.Now()
	seen := map[string]seenLock{}
	for told := false; ; told = true {
		if err := l.write(ctx); err != nil {
			l.remove()
			return nil, err
		}
		who, err := l.others(ctx, what, seen)
		if err == nil && len(who) == 0 {
			var rctx context.Context
			rctx, l.stop = context.WithCancel(context.WithoutCancel(ctx))
			go l.renew(rctx)
			return l, nil
		}
		if err != nil || what == workPrune {
			l.remove()
		}
		if err == nil && o.Now().Sub(began) >= o.Wait {
			err = &BusyError{Who: who}
		}
		if err == nil {
			if !told && o.OnWait != nil {
				o.OnWait(who)
			}
			err = o.sleep(ctx, lockPoll+rand.N(lockPoll/2))
		}
		if err != nil {
			l.remove()
			return nil, err
		}
	}
}

// others returns the locks that l has to wait for, and removes those of the dead.
func (l *lock) others(ctx context.Context, what string, seen map[string]seenLock) ([]string, error) {
	objects, err := l.s.List(ctx, lockDir)
	if err != nil {
		return nil, err
	}
	var who []string
	for _, o := range objects {
		if o.Name == l.name || what == workBackup && !strings.HasPrefix(o.Name, lockDir+workPrune) {
			continue
		}
		if mutants.On("H-prune-alone") {
			continue
		}
		b, err := l.s.Get(ctx, o.Name, 1<<10)
		damage := new(DamageError)
		switch {
		case errors.Is(err, ErrNoObject):
			continue
		case err != nil && !errors.As(err, &damage):
			return nil, err
		}
		now := l.o.Now()
		if was, ok := seen[o.Name]; !ok || was.text != string(b) {
			seen[o.Name] = seenLock{string(b), now}
		} else if now.Sub(was.since) >= lockStale {
			if err := l.s.Delete(ctx, o.Name); err != nil {
				return nil, err
			}
			continue
		}
		who = append(who, o.Name)
	}
	return who, nil
}

// write puts the lock, differently each time.
func (l *lock) write(ctx context.Context) error {
	began := l.o.Now()
	l.mu.Lock()
	l.n++
	n := l.n
	l.mu.Unlock()
	host, _ := os.Hostname() // for people
	text := fmt.Sprintf("%s%s\n%q process %d, write %d\n", lockMagic, began.UTC().Format(time.RFC3339), host, os.Getpid(), n)
	if err := l.s.Put(ctx, l.name, []byte(text)); err != nil {
		return err
	}
	l.mu.Lock()
	l.wrote = began
	l.mu.Unlock()
	return nil
}

// renew writes the lock until the context ends, or it is lost.
func (l *lock) renew(ctx context.Context) {
	defer close(l.done)
	t := time.NewTicker(l.o.renew)
	defer t.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-t.C:
		}
		if l.check() != nil {
			return
		}
		_ = l.write(ctx) // again at the next tick
	}
}

// check fails with ErrLockLost once somebody may think that l's owner is dead.
func (l *lock) check() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	now := l.o.Now()
	// A machine that sleeps stops the monotonic clock, and a clock that is set moves the
	// other one.
	if max(now.Sub(l.wrote), now.Round(0).Sub(l.wrote.Round(0))) >= lockFresh {
		l.lost = true
	}
	if l.lost {
		return ErrLockLost
	}
	return nil
}

// release gives the lock back.
func (l *lock) release() {
	l.stop()
	<-l.done
	l.remove()
}

// remove takes the object away, also if the context that it was made with ended.
// What cannot be removed now is taken for dead later.
func (l *lock) remove() {
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	_ = l.s.Delete(ctx, l.name)
}
