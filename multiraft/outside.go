package multiraft

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"sync"
	"time"

	"github.com/flotillakv/flotilla/engine"
	"github.com/flotillakv/flotilla/internal/mutants"
	"github.com/flotillakv/flotilla/multiraft/raft"
)

// Replicas whose state is outside of the store
//
// The store of such a group holds its log, its applied state and the records of its
// sessions; what its commands do is in an External. The two become durable each by
// itself, so after a crash either may be ahead of the other:
//
//	X1  The machine is behind (the store flushed, the machine had not synced): the entries
//	    between are handed to the machine once more, when the replica is loaded, and to
//	    nobody else. The log holds them: it is cut through what both have durably (X3).
//	    Commands of sessions that were not carried out the first time are left out again:
//	    that is noted in the store, in the batch that applies the entry (engine.Skipped).
//	X2  The machine is ahead (its files survived, the store had applied in memory): the
//	    entries between are applied to the store alone. What the store gets of an entry
//	    does not depend on what the machine answered, so it is the same as the first time.
//	X3  The log is cut through min(flushed here, Sync) at most.
//	X4  A machine that is behind the log's beginning has lost its state: the replica is
//	    quarantined, and rebuilt by a snapshot.
//	X5  A snapshot is taken of the store first and of the machine then, so the machine is as
//	    far or ahead; it is loaded into the machine first and into the store then, with
//	    the same in view. A crash between the two leaves X2. What lies between was committed.
//
// What takes long (Sync, Save, Load) runs aside, one at a time for a group; meanwhile the
// group's entries wait (held). The core bounds them by Tuning.ApplyBytes.

const (
	// A Sync that failed is tried again after syncRetry, with pauses that double up to
	// syncRetryMost.
	syncRetry     = time.Second
	syncRetryMost = time.Minute
	// maxAside bounds what may wait to run aside for a group.
	maxAside = 8
)

// outside is a replica's state outside of the store.
type outside struct {
	m External
	// at is the index of the machine's state; it may be below that of the store only while
	// the replica is loaded. synced: durable there, as far as is known here.
	at, synced raft.Index
	flushed    raft.Index // of the store's part

	busy bool
	held []raft.Entry // committed, waiting for what runs aside
	next []aside      // waiting to run aside

	skips []engine.Skipped // entries of the log with commands that were not carried out

	moved  raft.Time // something was applied last
	oldest uint64    // group time of the first entry behind synced; zero: unknown
	now    bool      // sync as soon as possible
	asked  []func(raft.Index, error)
	look   raft.Time // when to think of syncing next
	retry  raft.Time // not before, unless somebody asks
	wait   time.Duration
	since  time.Time // of the first of the failures in a row

	run sync.Mutex // held by what calls the machine aside
}

// aside is something that runs beside the loop while a group's entries wait.
type aside struct {
	// may is asked on the loop before call. Nil: it may.
	may func(r *replica) error
	// call calls the machine, whose state is as of index at.
	call func(m External, at raft.Index) error
	// done is told once, on the loop unless that has ended. r is nil if the replica is gone.
	done func(now raft.Time, r *replica, at raft.Index, err error)
}

// SyncError says that a machine outside of the store has not made its state durable, so
// that the log of its shard cannot be cut. It is ErrLogBudget where it is why writes are
// refused: nothing was applied.
type SyncError struct {
	Shard raft.ShardID
	Since time.Time // when it failed first
	Err   error     // the machine's
}

// Error says what is known.
func (e *SyncError) Error() string {
	return fmt.Sprintf("multiraft: the log may not grow now: the state machine of shard %d has not made its state durable since %s (%v), so the shard's log cannot be cut", e.Shard, e.Since.UTC().Format(time.RFC3339), e.Err)
}

// Is makes errors.Is(err, ErrLogBudget) hold.
func (e *SyncError) Is(err error) bool { return err == ErrLogBudget }

// Unwrap returns the machine's error.
func (e *SyncError) Unwrap() error { return e.Err }

// unsynced are the groups whose machines fail to sync.
type unsynced struct {
	mu sync.Mutex // leaf
	by map[raft.ShardID]*SyncError
}

func (u *unsynced) set(shard raft.ShardID, e *SyncError) {
	u.mu.Lock()
	defer u.mu.Unlock()
	if e == nil {
		delete(u.by, shard)
		return
	}
	if u.by == nil {
		u.by = map[raft.ShardID]*SyncError{}
	}
	u.by[shard] = e
}

// worst returns the one that has failed for longest; nil: none fails.
func (u *unsynced) worst() (out *SyncError) {
	u.mu.Lock()
	defer u.mu.Unlock()
	for _, e := range u.by {
		if out == nil || e.Since.Before(out.Since) || e.Since.Equal(out.Since) && e.Shard < out.Shard {
			out = e
		}
	}
	return out
}

// External returns the machine outside of the store that has the groups of a keyspace; nil: none.
func (h *Host) External(keyspace uint32) External {
	if x, ok := h.machine.(externals); ok {
		return x.External(keyspace)
	}
	return nil
}

// hold says through where the store's part of r is durable.
func (r *replica) hold(idx raft.Index) {
	if x := r.out; x != nil {
		x.flushed = max(x.flushed, idx)
		if idx = min(x.flushed, x.synced); mutants.On("X3") {
			idx = x.flushed
		}
	}
	r.core.Hold(idx)
}

// openOutside brings the machine to where the store is (X1, X2, X4), when r is loaded.
func (h *Host) openOutside(now raft.Time, r *replica, m External) error {
	x := &outside{m: m, synced: r.as.TruncIndex, flushed: r.as.Applied, moved: now, look: now}
	r.out = x
	if !h.engine.DefersApply() {
		x.flushed = ^raft.Index(0)
	}
	r.hold(0)
	var err error
	if x.skips, err = h.engine.Skipped(r.shard); err != nil {
		return err
	}
	if r.quarantined() {
		x.at = r.as.Applied
		return nil // what it has does not count
	}
	bad := func(err error) error {
		r.fenced = &fenceError{r.as.Applied, err}
		r.illness()
		return nil
	}
	if err := safely(func() (err error) { x.at, err = m.Applied(r.shard); return err }); err != nil {
		return bad(fmt.Errorf("multiraft: the state machine does not say how far it is: %w", err))
	}
	if x.at < r.as.TruncIndex {
		why := fmt.Sprintf("its state machine has the state as of index %d, and the log begins behind %d: it has lost what it had", x.at, r.as.TruncIndex)
		derr := &DivergedError{Shard: r.shard, Node: h.node, Replica: r.self, Index: r.as.Applied, Why: why}
		r.illness().ward = ward{mark: engine.Quarantine{Why: engine.QuarantineUnreadable, Index: r.as.Applied}, dirt: true}
		x.at = r.as.Applied
		return bad(derr)
	}
	if x.synced < r.as.Applied {
		if ents, err := h.engine.Entries(nil, r.shard, x.synced+1, x.synced+1, 1); err == nil && len(ents) == 1 {
			if hdr, err := ents[0].Header(); err == nil {
				x.oldest = hdr.GroupTs
			}
		}
	}
	if err := h.redo(r); err != nil {
		return bad(err)
	}
	return nil
}

// redoBytes is how much of a log is read at a time to be applied once more.
const redoBytes = 4 << 20

// redo hands the entries to the machine that the store has applied and it has not (X1).
func (h *Host) redo(r *replica) error {
	x := r.out
	for x.at < r.as.Applied {
		ents, err := h.engine.Entries(nil, r.shard, x.at+1, r.as.Applied, redoBytes)
		if err != nil {
			return err
		}
		for _, e := range ents {
			if e.Type == raft.EntryNormal {
				hdr, err := e.Header()
				if err != nil {
					return err
				}
				run := ExternalEntry{Shard: r.shard, Index: e.Index, Time: hdr.GroupTs}
				skips := x.skipped(e.Index)
				for i, cmd := range e.Commands() {
					if cmd.Op == OpKeyed && (!slices.Contains(skips, uint32(i)) || mutants.On("X1")) {
						run.Commands = append(run.Commands, keyed(cmd.Body))
					}
				}
				if len(run.Commands) > 0 {
					if err := safely(func() error { return x.m.Apply(&run) }); err != nil {
						return fmt.Errorf("multiraft: entry %d of shard %d cannot be applied once more: %w", e.Index, r.shard, err)
					}
				}
			}
			x.at = e.Index
		}
	}
	return nil
}

// skipped returns the slots of an entry that were not carried out.
func (x *outside) skipped(i raft.Index) []uint32 {
	for k := range x.skips {
		if x.skips[k].Index == i {
			return x.skips[k].Slots
		}
	}
	return nil
}

// applied takes note that the store has applied e.
func (x *outside) applied(now raft.Time, e raft.Entry, ts uint64) {
	x.at, x.moved = max(x.at, e.Index), now
	if x.oldest == 0 && e.Index > x.synced {
		x.oldest = ts
	}
	x.look = 0 // thought of at the end of the round
}

// skip notes in the round's batch which commands of an entry were not carried out.
func (l *loop) skip(r *replica, i raft.Index, slots []uint32) {
	if mutants.On("X1b") {
		return
	}
	x := r.out
	k := engine.Skipped{Index: i, Slots: slices.Clone(slots)}
	l.batch.SetSkipped(r.shard, k)
	if x.skipped(i) == nil {
		x.skips = append(x.skips, k)
	}
}

// unskip forgets that in the round's batch, which cuts the log through i.
func (l *loop) unskip(r *replica, i raft.Index) {
	x := r.out
	x.skips = slices.DeleteFunc(x.skips, func(k engine.Skipped) bool {
		if k.Index <= i {
			l.batch.DeleteSkipped(r.shard, k.Index)
		}
		return k.Index <= i
	})
}

// rests reports whether nothing is under way outside.
func (x *outside) rests() bool {
	return !x.busy && len(x.next)+len(x.held)+len(x.asked) == 0
}

// tend has the machine sync if it is time to, and starts what waits to run aside. It is
// called once per round in which r was touched.
func (l *loop) tend(now raft.Time, r *replica, wall time.Time) {
	x := r.out
	if x.busy {
		x.look = raft.Never
		return
	}
	for len(x.next) > 0 {
		a := x.next[0]
		x.next = slices.Delete(x.next, 0, 1)
		if a.may != nil {
			if err := a.may(r); err != nil {
				a.done(now, r, x.at, err)
				continue
			}
		}
		l.start(r, a)
		return
	}
	if r.fenced != nil { // it waits for a snapshot, or a restart
		x.held, x.look = nil, raft.Never
		x.answer(0, r.closed())
		return
	}
	if r.as.Applied <= x.synced { // so is the machine, unless it is ahead
		x.now, x.oldest, x.look = false, 0, raft.Never
		x.answer(x.synced, nil)
		return
	}
	if now < x.retry && len(x.asked) == 0 {
		x.look = x.retry
		return
	}
	t := &l.h.tuning
	age := l.h.cutAge
	quiet := x.moved.Add(t.IdleTruncate)
	old := raft.Never
	if x.oldest > 0 {
		old = now.Add(max(0, age-wall.Sub(time.Unix(0, int64(x.oldest)))))
	}
	n := r.as.Applied - x.synced
	if !x.now && len(x.asked) == 0 && n < raft.Index(t.CutEntries) && r.core.HeldBehind(x.synced) < int64(t.CutBytes) && now < quiet && now < old {
		x.look = min(quiet, old)
		return
	}
	x.now = false
	asked := x.asked
	x.asked = nil
	l.start(r, aside{
		call: func(m External, at raft.Index) error { return m.Sync(r.shard, at) },
		done: func(now raft.Time, r *replica, at raft.Index, err error) {
			if r != nil {
				l.synced(now, r, at, err)
			}
			for _, f := range asked {
				f(at, err)
			}
		},
	})
}

// answer tells those who asked for a sync.
func (x *outside) answer(at raft.Index, err error) {
	asked := x.asked
	x.asked = nil
	for _, f := range asked {
		f(at, err)
	}
}

// start runs a beside the loop. Until it is done the group's entries wait.
func (l *loop) start(r *replica, a aside) {
	x := r.out
	x.busy, x.look = true, raft.Never
	at, h := x.at, l.h
	h.spawn(func() {
		x.run.Lock()
		err := safely(func() error { return a.call(x.m, at) })
		x.run.Unlock()
		ok := l.in.put(func(it *items) {
			it.funcs = append(it.funcs, func(now raft.Time) {
				if l.byID[r.shard] != r || r.removed {
					a.done(now, nil, at, errors.Join(err, ErrUnknownShard))
					return
				}
				l.touch(r)
				r.stirredAt(now)
				x.busy, x.look = false, 0
				if errors.Is(err, errMachinePanic) && r.fenced == nil {
					l.fence(r, r.as.Applied, err, nil)
				}
				a.done(now, r, at, err)
				if held := x.held; len(held) > 0 {
					x.held = nil
					l.handBack(r, held)
				}
			})
		})
		if !ok {
			a.done(0, nil, at, ErrClosed)
		}
	})
}

// synced takes the outcome of a Sync.
func (l *loop) synced(now raft.Time, r *replica, at raft.Index, err error) {
	x := r.out
	if err != nil {
		if x.since.IsZero() {
			x.since = time.Unix(0, int64(l.h.clock.Wall()))
			l.h.logger.Error("the state machine outside of the store did not sync; the log of the shard cannot be cut", "shard", r.shard, "err", err)
		}
		l.h.unsynced.set(r.shard, &SyncError{Shard: r.shard, Since: x.since, Err: err})
		x.wait = min(max(2*x.wait, syncRetry), syncRetryMost)
		x.retry = now.Add(x.wait)
		return
	}
	x.retry = 0
	if x.wait > 0 {
		x.wait, x.since = 0, time.Time{}
		l.h.unsynced.set(r.shard, nil)
	}
	x.synced, x.oldest = max(x.synced, at), 0
	r.hold(0)
	l.touch(r)
}

// giveUp refuses what waits for a replica that is destroyed.
func (l *loop) giveUp(now raft.Time, r *replica) {
	x := r.out
	x.held, x.look = nil, raft.Never
	x.answer(0, ErrUnknownShard)
	for _, a := range x.next {
		a.done(now, nil, x.at, ErrUnknownShard)
	}
	x.next = nil
}

// SyncExternal has the machine of a shard make its state durable, and returns the index
// through which it is then; the log may be cut through that. ErrUnknownShard, ErrFenced,
// ErrClosed, the context's error and what the machine returns: the log is as it was.
func (h *Host) SyncExternal(ctx context.Context, shard raft.ShardID) (raft.Index, error) {
	type answer struct {
		at  raft.Index
		err error
	}
	ch := make(chan answer, 1)
	err := h.on(ctx, shard, func(now raft.Time, r *replica, _ *raft.Out) error {
		switch {
		case r.out == nil:
			return fmt.Errorf("multiraft: the state of shard %d is in the store", shard)
		case r.fenced != nil:
			return r.refused()
		case len(r.out.asked) >= maxAsked:
			return &OverloadedError{RetryAfter: time.Second, Why: fmt.Sprintf("too many wait for the state machine of shard %d", shard)}
		}
		r.out.asked = append(r.out.asked, func(at raft.Index, err error) { ch <- answer{at, err} })
		r.out.look = 0
		return nil
	})
	if err != nil {
		return 0, err
	}
	select {
	case a := <-ch:
		return a.at, a.err
	case <-ctx.Done():
		return 0, ctx.Err()
	case <-h.stop:
		return 0, ErrClosed
	}
}

// maxAsked bounds who may wait for one Sync.
const maxAsked = 1 << 10

// SaveExternal returns the state of a shard outside of the store as a stream, which the
// caller closes, and the index as of which it is: at least what the store had applied
// before the call. Errors: ErrUnknownShard, ErrFenced, ErrClosed, *OverloadedError, the
// context's and the machine's.
func (h *Host) SaveExternal(ctx context.Context, shard raft.ShardID) (io.ReadCloser, raft.Index, error) {
	var mu sync.Mutex // guards s and gone
	var s io.ReadCloser
	gone := false
	at, err := h.besideOf(ctx, shard, aside{
		may: func(r *replica) error {
			if r.fenced != nil { // not to be spread
				return r.refused()
			}
			return nil
		},
		call: func(m External, _ raft.Index) error {
			saved, err := m.Save(shard)
			mu.Lock()
			defer mu.Unlock()
			if saved != nil && (err != nil || gone) {
				return errors.Join(err, saved.Close())
			}
			if s = saved; saved == nil && err == nil {
				err = errors.New("multiraft: the state machine saved nothing")
			}
			return err
		},
	})
	mu.Lock()
	defer mu.Unlock()
	if err != nil {
		if gone = true; s != nil {
			_ = s.Close()
		}
		return nil, 0, err
	}
	return s, at, nil
}

// LoadExternal replaces the state of a shard outside of the store by that of a snapshot of
// (index, term): it is what the stream holds, as of index at. It comes before
// InstallSnapshot, and leaves the store as it is; if nothing follows, the machine is ahead
// of the store, or has a state without a replica, which the next snapshot replaces.
// ErrSnapshotStale: the snapshot is not needed. ErrClosed, the context's error and the
// machine's: it is not known whether the state was replaced, if it is not the machine's.
func (h *Host) LoadExternal(ctx context.Context, d *raft.Descriptor, index raft.Index, term raft.Term, at raft.Index, stream io.Reader) error {
	m := h.External(d.Keyspace)
	if m == nil {
		return fmt.Errorf("multiraft: this node has no state machine for shard %d, the sender has one", d.Shard)
	}
	if at < index {
		return fmt.Errorf("multiraft: the snapshot of shard %d has the state of the machine as of index %d, and that of the store as of %d", d.Shard, at, index)
	}
	stream = ctxReader{ctx, stream}
	if !h.has(d.Shard) {
		if h.isDying(ctx, d.Shard) {
			return fmt.Errorf("multiraft: a replica of shard %d is being destroyed here", d.Shard)
		}
		return safely(func() error { return m.Load(d.Shard, at, stream) })
	}
	_, err := h.besideOf(ctx, d.Shard, aside{
		may: func(r *replica) error {
			if !r.keepsLog(index, term) && !r.core.WantsSnapshot(index, term) {
				return fmt.Errorf("%w of shard %d, index %d", ErrSnapshotStale, d.Shard, index)
			}
			return nil
		},
		call: func(m External, _ raft.Index) error {
			if mutants.On("X5") { // what the store says has to do
				return nil
			}
			return m.Load(d.Shard, at, stream)
		},
		done: func(_ raft.Time, r *replica, _ raft.Index, err error) {
			if r != nil && err == nil {
				r.out.at, r.out.synced, r.out.oldest = at, at, 0
				r.hold(0)
			}
		},
	})
	return err
}

// isDying reports whether a replica of shard is being destroyed here, or that cannot be told.
func (h *Host) isDying(ctx context.Context, shard raft.ShardID) bool {
	l := h.loopOf(shard)
	ch := make(chan error, 1)
	ok := l.in.put(func(it *items) {
		it.funcs = append(it.funcs, func(raft.Time) {
			if l.dying[shard] != nil {
				ch <- ErrUnknownShard
				return
			}
			ch <- nil
		})
	})
	return !ok || l.await(ctx, ch) != nil
}

// besideOf has a run aside for a shard, and waits for it, even if ctx ends meanwhile: a.call
// has to notice.
func (h *Host) besideOf(ctx context.Context, shard raft.ShardID, a aside) (raft.Index, error) {
	type answer struct {
		at  raft.Index
		err error
	}
	ch := make(chan answer, 1)
	call, done := a.call, a.done
	a.call = func(m External, at raft.Index) error {
		if err := ctx.Err(); err != nil {
			return err
		}
		return call(m, at)
	}
	a.done = func(now raft.Time, r *replica, at raft.Index, err error) {
		if done != nil {
			done(now, r, at, err)
		}
		ch <- answer{at, err}
	}
	err := h.on(ctx, shard, func(_ raft.Time, r *replica, _ *raft.Out) error {
		if r.out == nil {
			return fmt.Errorf("multiraft: the state of shard %d is in the store", shard)
		}
		if len(r.out.next) >= maxAside {
			return &OverloadedError{RetryAfter: time.Second, Why: fmt.Sprintf("too much waits for the state machine of shard %d", shard)}
		}
		r.out.next = append(r.out.next, a)
		return nil
	})
	if err != nil {
		return 0, err
	}
	select {
	case a := <-ch:
		return a.at, a.err
	case <-h.stop:
		return 0, ErrClosed
	}
}

// ctxReader ends with its context.
type ctxReader struct {
	ctx context.Context
	r   io.Reader
}

func (r ctxReader) Read(b []byte) (int, error) {
	if err := r.ctx.Err(); err != nil {
		return 0, err
	}
	return r.r.Read(b)
}

// digestOf returns what r is compared by at the index that is applied: its chain and, if it
// can tell, the state outside of the store. ok is false if that is not of this index, or
// cannot be asked now.
func (l *loop) digestOf(r *replica) (d raft.Digest, ok bool) {
	d = r.as.Digest
	x := r.out
	if x == nil {
		return d, true
	}
	m, has := x.m.(ExternalDigester)
	if !has {
		return d, true
	}
	if x.busy || x.at != r.as.Applied || r.fenced != nil {
		return 0, false
	}
	var sum uint64
	err := safely(func() (err error) { sum, err = m.Digest(r.shard); return err })
	switch {
	case errors.Is(err, errMachinePanic):
		l.fence(r, r.as.Applied, err, nil)
		return 0, false
	case err != nil:
		return 0, false
	}
	return d.Entry(raft.Index(sum), 0, 0), true
}

// dropOutside removes the state of a replica that is being destroyed. It comes before the
// store's part: what a crash leaves there is destroyed later, and this with it.
func (r *replica) dropOutside() {
	if r.out == nil {
		return
	}
	r.out.run.Lock()
	defer r.out.run.Unlock()
	if err := safely(func() error { return r.out.m.Drop(r.shard) }); err != nil {
		r.loop.h.logger.Error("the state machine did not drop the state of a destroyed replica", "shard", r.shard, "err", err)
	}
}
