package engine

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/cockroachdb/pebble/v2"
	"github.com/cockroachdb/pebble/v2/vfs"

	"github.com/flotillakv/flotilla/internal/mutants"
)

// Engine is an open store. All methods may be called from any goroutine; a
// group's state is written by one goroutine at a time (its loop).
type Engine struct {
	opts Options
	dir  string // canonical
	fs   FS     // the file system Pebble sees
	disk FS     // the one below it
	log  *slog.Logger
	db   *pebble.DB
	po   *pebble.Options // for table writers
	lock io.Closer

	watch io.Closer // disk watch; nil: none

	bootEpoch uint64

	// identMu guards the identity file and identRec. It is held across the
	// file's I/O and a synced write: both happen once in the life of a node.
	identMu  sync.Mutex
	identRec identRecord

	// failed is set once, before OnFatal is called.
	failed   atomic.Pointer[failure]
	failOnce sync.Once
	down     chan struct{} // closed when failed is set
	// ending is done when the store is being closed or has failed.
	ending context.Context
	end    context.CancelFunc
	// opening is the channel on which Open waits while Pebble opens; then nil.
	opening atomic.Pointer[chan error]

	full      atomic.Bool // the last flush or compaction found no space
	fullTold  atomic.Int64
	closed    atomic.Bool
	discarded atomic.Bool // see Discard
	closeOnce sync.Once
	closeErr  error
	// open counts calls that use Pebble, so that Close waits for them.
	open sync.RWMutex

	// markMu guards the watermark file; it is held across the file's I/O.
	markMu sync.Mutex
	mark   marker
	sums   summer

	onFlush atomic.Pointer[func(uint64, []Flushed)]
	// memBytes were committed since the present memtable was begun.
	memBytes atomic.Int64
	// walBytes are in the write-ahead logs of memtables that are not in tables yet: as of
	// the last look, and what was committed since.
	walBytes atomic.Int64
	usageMu  sync.Mutex // one look at a time; innermost but for Pebble's

	dropLogs  atomic.Int32 // logs that wait to be used again are removed instead
	through   atomic.Bool  // a memtable may hold writes to the applied side
	paced     atomic.Bool  // background work takes a share of the processors only
	hurry     atomic.Int32 // calls that wait for background work
	memtables atomic.Int32 // that wait to be flushed, at levelsAt
	sublevels atomic.Int32 // of level 0, at levelsAt
	levelsAt  atomic.Int64 // Unix milliseconds: see lookAtLevels

	def *deferred // nil: batches are applied at once

	journal journal
	damage  damages

	space space
	// headroom is one more than what was left before SpaceFull, grown what was
	// committed since.
	headroom, grown atomic.Int64
	snapshotRoom    atomic.Int64 // one more than RoomForSnapshots
	spaceRoom       atomic.Int64 // one more than what LookAtSpace found to be left; zero: it did not look yet

	// cache is the block cache, if it is of this store alone; reserved bytes of it are
	// not to be used.
	cacheMu   sync.Mutex // innermost but for the cache's own
	cache     *pebble.Cache
	reserved  int64
	unreserve func()

	batchBytes atomic.Int64 // of batches that were committed and not closed

	batches sync.Pool // *Batch
	keys    sync.Pool // *[]byte
	stats   stats
	seq     atomic.Uint64 // names of staged files
}

type failure struct{ err error }

const (
	lockName    = "LOCK"
	dbName      = "db"
	stagingName = "staging"
)

// Open opens the store at o.Dir, or makes it. Every error is an *OpenError;
// when it is returned nothing has been created or changed, except that a
// creation which a crash had cut short may have been completed in part.
func Open(o Options) (*Engine, error) {
	e := &Engine{opts: o.withDefaults(), down: make(chan struct{})}
	e.ending, e.end = context.WithCancel(context.Background())
	e.log = e.opts.Logger
	e.fs = e.opts.FS
	if e.fs == nil {
		e.fs = OSFS()
	}
	e.dir = canonicalDir(e.fs, o.Dir)
	e.batches.New = func() any { return &Batch{e: e} }
	if o.DeferBytes > 0 {
		e.def = &deferred{mem: newTable(e.opts.Now()), now: e.opts.Now}
	}
	e.keys.New = func() any { b := make([]byte, 0, 64); return &b }
	if o.Dir == "" {
		return nil, e.openErr(NotAStore, "name a directory", errors.New("no directory given"))
	}
	if err := e.openFiles(); err != nil {
		e.release()
		return nil, err
	}
	if f := e.failed.Load(); f != nil {
		// Damage was found in the background when Pebble had just been opened: it was
		// told to this call, not to OnFatal.
		return nil, e.openErr(Corrupt, e.replaceHint(), f.err)
	}
	e.paced.Store(!o.FlushInline)
	e.log.Info("store open", "dir", e.dir, "node", e.identRec.Node, "boot_epoch", e.bootEpoch)
	return e, nil
}

// openFiles does the steps of Open in order; on an error the caller releases
// what e holds.
func (e *Engine) openFiles() error {
	fs := e.fs
	rec, found, err := e.inspect(fs)
	if err != nil {
		return err
	}
	if err := e.checkPlace(fs, found); err != nil {
		return err
	}
	if e.opts.FS == nil && !e.opts.NoDiskWatch {
		fs, e.watch = vfs.WithDiskHealthChecks(fs, diskSlow, nil, e.onDiskSlow)
	}
	e.disk = fs
	fs = storeFS{fs, e}
	e.fs = fs
	if !found {
		if err := mkdirSynced(fs, e.dir); err != nil {
			return e.openErr(NotWritable, "check the path and its permissions", err)
		}
	}
	lockFile := fs.PathJoin(e.dir, lockName)
	lock, owner, err := lockOrOwner(fs, lockFile, e.opts.FS == nil)
	switch {
	case err == nil:
		e.lock = lock
	case isPermission(err):
		return e.openErr(NotWritable, "check the path and its permissions", err)
	case owner != 0:
		return e.openErr(Locked, "stop that process, or choose another directory", fmt.Errorf("process %d uses it", owner))
	default:
		return e.openErr(Locked, "stop the other process that uses this directory, or choose another one", err)
	}
	if err := e.checkFree(e.disk, e.dir, true); err != nil {
		return err
	}
	// Read again under the lock.
	if rec, found, err = e.inspect(fs); err != nil {
		return err
	}
	if !found || rec.State == stateCreating {
		if err := e.create(rec, found); err != nil {
			return err
		}
	} else {
		e.identRec = rec
		if err := e.openDB(false); err != nil {
			return err
		}
	}
	if err := e.openWatermark(); err != nil {
		return err
	}
	if err := e.loadIdent(); err != nil {
		return err
	}
	if err := e.openJournal(); err != nil {
		return err
	}
	return e.openStaging()
}

// inspect looks at the directory without changing anything. found says that an
// identity file is there and readable.
func (e *Engine) inspect(fs FS) (rec identRecord, found bool, err error) {
	info, err := fs.Stat(e.dir)
	switch {
	case isNotExist(err):
		if !e.opts.Create {
			return rec, false, e.openErr(NotAStore, "create it first, or check the path", errors.New("no such directory"))
		}
		return rec, false, nil
	case err != nil:
		return rec, false, e.openErr(NotWritable, "check the path and its permissions", err)
	case !info.IsDir():
		return rec, false, e.openErr(NotAStore, "name a directory", errors.New("not a directory"))
	}
	rec, err = readIdentFile(fs, fs.PathJoin(e.dir, identName))
	hasDB, derr := exists(fs, fs.PathJoin(e.dir, dbName))
	switch {
	case err == nil:
		if err := e.checkIdent(rec); err != nil {
			return rec, false, err
		}
		if rec.State == stateAmnesiac {
			e.identRec = rec
			return rec, false, e.openErr(Amnesia, e.replaceHint(),
				errors.New("it was found to have forgotten what it had promised to other nodes"))
		}
		if rec.State == stateReady && !hasDB {
			e.identRec = rec
			return rec, false, e.openErr(Corrupt, e.replaceHint(), errors.New("the database directory is missing"))
		}
		if rec.State == stateCreating && !e.opts.Create {
			return rec, false, e.openErr(NotAStore, "create it first", errors.New("its creation was never completed"))
		}
		return rec, true, nil
	case errors.Is(err, errNewerIdent):
		return rec, false, e.openErr(NewerLayout, "start the release that wrote it, or a newer one", err)
	case !isNotExist(err) && !errors.Is(err, errBadIdent):
		return rec, false, e.openErr(NotWritable, "check the path and its permissions", err)
	case derr != nil:
		return rec, false, e.openErr(NotWritable, "check the path and its permissions", derr)
	case hasDB:
		// The identity file is durable before the database directory exists.
		return rec, false, e.openErr(Corrupt, e.replaceHint(), fmt.Errorf("a database without a usable identity file: %w", err))
	case !e.opts.Create:
		return rec, false, e.openErr(NotAStore, "create it first, or check the path", err)
	}
	names, err := fs.List(e.dir)
	if err != nil {
		return rec, false, e.openErr(NotWritable, "check the path and its permissions", err)
	}
	for _, n := range names {
		if n != identName && n != markName && n != sumName && n != lockName && n != stagingName && n != ballastName && n != "lost+found" {
			return rec, false, e.openErr(NotAStore, "choose an empty directory", fmt.Errorf("the directory holds %q, which is no part of a store", n))
		}
	}
	return identRecord{}, false, nil
}

// create makes a store, or completes a creation that a crash cut short:
// (1) identity file saying "creating", durable; (2) a fresh database, opened,
// closed and opened again; (3) identity file saying "ready".
//
// The second opening matters: Pebble creates the first write-ahead log of a
// new store before it raises the format, so that log has no sync chunks, and a
// flipped bit in it would silently end the log there.
func (e *Engine) create(rec identRecord, found bool) error {
	bad := func(err error) error {
		return e.openErr(NotWritable, "check the path and its permissions", err)
	}
	if !found {
		rec = newIdent(e.opts)
		if err := writeIdentFile(e.fs, e.identPath(), &rec); err != nil {
			return bad(err)
		}
		if err := syncDir(e.fs, e.dir); err != nil {
			return bad(err)
		}
	}
	db := e.fs.PathJoin(e.dir, dbName)
	if err := errors.Join(e.fs.RemoveAll(db), e.forgetManifests()); err != nil {
		return bad(err)
	}
	if err := syncDir(e.fs, e.dir); err != nil {
		return bad(err)
	}
	if err := mkdirSynced(e.fs, db); err != nil {
		return bad(err)
	}
	e.identRec = rec
	if err := e.openDB(true); err != nil {
		return err
	}
	if !mutants.On("E-no-reopen") {
		first := e.db
		e.db = nil
		if err := first.Close(); err != nil {
			return bad(err)
		}
		if err := e.openDB(false); err != nil {
			return err
		}
	}
	rec.State = stateReady
	if err := writeIdentFile(e.fs, e.identPath(), &rec); err != nil {
		return bad(err)
	}
	e.identRec = rec
	return nil
}

// openDB opens Pebble. Pebble reports some failures by Logger.Fatalf from a
// goroutine of its own, or by a panic; both end here as an error.
func (e *Engine) openDB(create bool) error {
	dir := e.fs.PathJoin(e.dir, dbName)
	if !create {
		desc, err := pebble.Peek(dir, e.fs)
		switch {
		case err != nil && isPermission(err):
			return e.openErr(NotWritable, "check the path and its permissions", err)
		case err != nil:
			return e.openErr(NewerLayout, "start the release that wrote it; if there is none, the directory is damaged", err)
		case desc.FormatMajorVersion > format:
			return e.openErr(NewerLayout, "start the release that wrote it, or a newer one",
				fmt.Errorf("database format %d, this release reads up to %d", desc.FormatMajorVersion, format))
		case !desc.Exists:
			return e.openErr(Corrupt, e.replaceHint(), errors.New("the database is gone"))
		}
		if err := e.checkManifest(desc); err != nil {
			return err
		}
	}
	if e.opts.Cache == nil && e.cache == nil {
		e.cache = pebble.NewCache(e.opts.CacheBytes)
	}
	po := e.pebbleOptions()
	po.ErrorIfExists, po.ErrorIfNotExists = create, !create
	type result struct {
		db  *pebble.DB
		err error
	}
	fatal := make(chan error, 1)
	e.opening.Store(&fatal)
	defer e.opening.Store(nil)
	done := make(chan result, 1)
	go func() {
		var r result
		defer func() {
			if p := recover(); p != nil {
				r.err = fmt.Errorf("database: %v", p)
			}
			done <- r
		}()
		r.db, r.err = pebble.Open(dir, po)
	}()
	var r result
	select {
	case r = <-done:
	case r.err = <-fatal:
		// Pebble may be open all the same, by and by; nobody will use it.
		e.discarded.Store(true)
		go func() {
			defer func() { _ = recover() }()
			if late := <-done; late.db != nil {
				_ = late.db.Close()
			}
		}()
	}
	if r.err != nil {
		reason, hint := Corrupt, e.replaceHint()
		if isPermission(r.err) || errors.Is(r.err, syscall.ENOSPC) || !pebble.IsCorruptionError(r.err) && isIO(r.err) {
			reason, hint = NotWritable, "check the disk and its permissions"
		}
		return e.openErr(reason, hint, r.err)
	}
	e.db, e.po = r.db, po
	e.po.EnsureDefaults()
	return nil
}

func (e *Engine) openErr(r Reason, hint string, err error) error {
	var oe *OpenError
	if errors.As(err, &oe) {
		return err
	}
	if errors.Is(err, syscall.ENOSPC) {
		r, hint = NoSpace, spaceHint
	}
	return &OpenError{Path: e.opts.Dir, Reason: r, Hint: hint, Err: err}
}

func isPermission(err error) bool {
	return errors.Is(err, os.ErrPermission) || errors.Is(err, syscall.EROFS)
}

func isIO(err error) bool {
	var errno syscall.Errno
	return errors.As(err, &errno)
}

// release gives up what Open had taken.
func (e *Engine) release() {
	if e.failed.Load() != nil {
		return // Pebble may still be at work: the directory stays locked
	}
	if e.db != nil {
		if err := e.db.Close(); err != nil {
			e.log.Error("close after failed open", "err", err)
		}
	}
	e.closeCache()
	if e.lock != nil {
		_ = e.lock.Close()
	}
	if e.watch != nil {
		_ = e.watch.Close()
	}
	e.db, e.lock, e.watch = nil, nil, nil
}

// Close makes everything durable that was committed, and gives up the
// directory. All batches, iterators and views must have been closed. It is
// idempotent. After a failure it returns the failure and changes nothing:
// goroutines of Pebble may still be there, parked or about to find out, so the
// directory stays locked until the process ends.
func (e *Engine) Close() error {
	e.closeOnce.Do(func() {
		e.closed.Store(true)
		e.end()
		if f := e.failed.Load(); f != nil {
			e.closeErr = f.err
			return
		}
		done := make(chan error, 1)
		go func() { done <- e.closeDB() }()
		select {
		case e.closeErr = <-done:
		case <-e.down:
			e.closeErr = e.failed.Load().err
			return
		}
		if e.lock != nil {
			_ = e.lock.Close()
		}
		if e.watch != nil {
			_ = e.watch.Close()
		}
	})
	return e.closeErr
}

// Discard gives the memory of a failed store back, as far as that is possible.
// It is for simulators, which go on in the same process: the file system must
// refuse everything by then, since Pebble's close writes. It does not wait. What a
// goroutine of Pebble's holds that is parked under Pebble's locks stays: to end
// that goroutine would run its deferred unlocking of locks that it does not hold.
func (e *Engine) Discard() {
	if e.failed.Load() == nil || e.db == nil || e.discarded.Swap(true) {
		return
	}
	go func() {
		defer func() { _ = recover() }() // it complains about what was left open
		_ = e.db.Close()
	}()
}

// closeDB waits for the calls that are under way, closes Pebble, and turns its
// panics (a leaked iterator) into errors. If the store fails, or has failed,
// it may never return.
func (e *Engine) closeDB() (err error) {
	e.open.Lock()
	defer e.open.Unlock()
	defer func() {
		if p := recover(); p != nil {
			err = fmt.Errorf("engine: close: %v", p)
		}
	}()
	if e.def != nil {
		if err := e.flushAll(); err != nil && !errors.Is(err, syscall.ENOSPC) { // on a full disk the log is enough
			return err
		}
		e.def.mu.Lock()
		e.def.closing = true
		e.def.mu.Unlock()
		e.def.running.Wait()
	}
	seq, err := e.syncLogSeq()
	if err != nil {
		return err
	}
	if err := e.db.Close(); err != nil {
		return err
	}
	e.closeCache()
	return e.noteDurable(seq, true)
}

// usable says whether the store may be used.
func (e *Engine) usable() error {
	if f := e.failed.Load(); f != nil {
		return f.err
	}
	if e.closed.Load() {
		return ErrClosed
	}
	return nil
}

// enter begins a use of Pebble that Close waits for; leave ends it. Between
// the two, no other engine lock may be taken.
func (e *Engine) enter() error {
	if err := e.usable(); err != nil {
		return err
	}
	e.open.RLock()
	if err := e.usable(); err != nil {
		e.open.RUnlock()
		return err
	}
	return nil
}

func (e *Engine) leave() { e.open.RUnlock() }

// fail stops the store for good: the one function through which a failed sync,
// a failed write and corruption end. It returns the error that all later calls
// get too.
func (e *Engine) fail(cause error) error {
	e.failOnce.Do(func() {
		err := fmt.Errorf("%w: %w", ErrFailed, cause)
		e.failed.Store(&failure{err})
		close(e.down)
		e.end()
		e.log.Error("the store has failed; the node stops", "dir", e.dir, "err", cause)
		if ch := e.opening.Load(); ch != nil {
			*ch <- err
			return
		}
		if e.opts.OnFatal != nil {
			e.opts.OnFatal(err)
			return
		}
		fmt.Fprintf(os.Stderr, "%v\n", err)
		os.Exit(1)
	})
	return e.failed.Load().err
}

// park never returns. Pebble's goroutines end here after a failure: Pebble
// promises nothing about its state once it has asked to be killed.
func park() { select {} }

// pebbleLogger hands Pebble's log lines on and stops the node on Fatalf.
type pebbleLogger struct{ e *Engine }

func (l pebbleLogger) Infof(format string, args ...any) {
	l.e.log.Debug("pebble: " + fmt.Sprintf(format, args...))
}

func (l pebbleLogger) Errorf(format string, args ...any) {
	l.e.log.Error("pebble: " + fmt.Sprintf(format, args...))
}

// Fatalf never returns.
func (l pebbleLogger) Fatalf(format string, args ...any) {
	l.e.fail(fmt.Errorf("pebble: "+format, args...))
	if !mutants.On("E-fatalf-returns") {
		park()
	}
}

// Writes that hang longer than diskSlow are counted; longer than diskStuck
// they stop the node, so that another replica takes over.
const (
	diskSlow  = 5 * time.Second
	diskStuck = 20 * time.Second
)

func (e *Engine) onDiskSlow(info vfs.DiskSlowInfo) {
	e.stats.slowWrites.Add(1)
	e.log.Warn("slow disk", "op", info.OpType.String(), "path", info.Path, "for", info.Duration)
	if info.Duration >= diskStuck {
		// The caller watches all other writes and must not block.
		go e.fail(fmt.Errorf("disk operation %s on %s has been hanging for %v", info.OpType, info.Path, info.Duration))
	}
}

// fullPause is how long Pebble is kept from writing a table again that found no space.
const fullPause = 100 * time.Millisecond

// onFull is told of a flush or compaction that found no space. Pebble tries it
// again, at once and without end; the log decides whether the node can go on. But
// while the store is being opened nobody else would find out, and Open would never
// return. It is called under Pebble's locks.
func (e *Engine) onFull(err error) {
	if e.opening.Load() != nil && !mutants.On("H2") {
		e.fail(fmt.Errorf("no space left for a flush or compaction: %w", err))
		park()
	}
	if now := time.Now().UnixNano(); e.full.Swap(true) || now-e.fullTold.Swap(now) < int64(10*time.Second) {
		return
	}
	e.log.Error("no space left for a flush or compaction; it is tried again", "err", err)
}

// pauseIfFull holds up the next table after one that found no space.
func (e *Engine) pauseIfFull() {
	if !e.full.Swap(false) {
		return
	}
	t := time.NewTimer(fullPause)
	defer t.Stop()
	select {
	case <-t.C:
	case <-e.down:
	}
}

// eventListener counts what the metrics show and stops the node on damage.
func (e *Engine) eventListener() *pebble.EventListener {
	return &pebble.EventListener{
		WALCreated: func(pebble.WALCreateInfo) { e.memBytes.Store(0) }, // a new memtable
		WriteStallBegin: func(info pebble.WriteStallBeginInfo) {
			e.stats.stalled.Store(true)
			e.stats.stalls.Add(1)
			e.log.Warn("writes stall", "reason", info.Reason)
		},
		WriteStallEnd: func() { e.stats.stalled.Store(false) },
		DataCorruption: func(info pebble.DataCorruptionInfo) {
			if !e.damaged(&info) {
				e.fail(fmt.Errorf("corruption in %s: %w", info.Path, info.Details))
			}
		},
		BackgroundError: func(err error) {
			if errors.Is(err, pebble.ErrCancelledCompaction) {
				return // an excise took its tables; Pebble compacts again what is left
			}
			if errors.Is(err, syscall.ENOSPC) && !mutants.On("H2b") {
				e.onFull(err)
				return
			}
			if info := pebble.ExtractDataCorruptionInfo(err); info != nil && e.damaged(info) {
				time.Sleep(damagePause) // Pebble tries again at once
				return
			}
			if e.failed.Load() != nil {
				// Pebble tries again and again, without a pause where it reads the statistics
				// of a damaged table, for as long as the process lives.
				time.Sleep(time.Second)
			}
			e.fail(fmt.Errorf("flush or compaction: %w", err))
		},
		PossibleAPIMisuse: func(info pebble.PossibleAPIMisuseInfo) {
			e.stats.misuse.Add(1)
			e.log.Warn("suspicious delete", "kind", fmt.Sprint(info.Kind), "key", fmt.Sprintf("%x", info.UserKey))
		},
		LowDiskSpace: func(info pebble.LowDiskSpaceInfo) {
			e.log.Warn("low disk space", "info", info.String())
		},
	}
}
