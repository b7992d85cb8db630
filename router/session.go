package router

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/flotillakv/flotilla/internal/mutants"
	"github.com/flotillakv/flotilla/multiraft/raft"
	"github.com/flotillakv/flotilla/multiraft/session"
	"github.com/flotillakv/flotilla/shard"
)

// Session makes writes take effect exactly once although they are tried again
// after an unknown outcome. It numbers the writes shard by shard; what the
// shards remember of them is package multiraft/session. All methods are safe for
// concurrent use. It owns no goroutine.
type Session struct {
	ttl   time.Duration
	clock Clock

	mu     sync.Mutex // guards what follows; held briefly
	client session.Client
	keys   map[raft.ShardID][]byte // a key that was written, per lineage
	freed  chan struct{}           // closed and replaced when a command is settled
	closed bool
}

// NewSession returns a session with a random id. ttl is for how long after its
// first try a write may be tried again, and for how long the shards remember it.
func (s Space) NewSession(id [16]byte, ttl time.Duration) *Session {
	return &Session{
		ttl: ttl, clock: s.r.o.Clock, client: session.Client{ID: id},
		keys: make(map[raft.ShardID][]byte), freed: make(chan struct{}),
	}
}

// InSession returns the keyspace with all writes in x.
func (s Space) InSession(x *Session) Space {
	s.session = x
	return s
}

// begin numbers a write that goes to the shard, and waits while too many before
// it are under way. Its errors mean that nothing was sent.
func (x *Session) begin(ctx context.Context, id raft.ShardID, key []byte) (*raft.SessionHeader, error) {
	for {
		h, freed, err := x.tryBegin(id, key)
		if h != nil || err != nil {
			return h, err
		}
		select {
		case <-freed:
		case <-ctx.Done():
			return nil, &shard.UnavailableError{
				Why:   fmt.Sprintf("%d earlier writes of the session to shard %d were still under way", session.Window, id),
				Cause: ctx.Err(),
			}
		}
	}
}

// tryBegin is begin without waiting: if too many writes are under way, header and
// error are nil, and freed is closed when that may have changed.
func (x *Session) tryBegin(id raft.ShardID, key []byte) (_ *raft.SessionHeader, freed <-chan struct{}, _ error) {
	x.mu.Lock()
	defer x.mu.Unlock()
	if x.closed {
		return nil, nil, shard.ErrClosed
	}
	h, ok := x.client.Begin(id, uint64(x.clock.Now().Add(x.ttl).UnixNano()))
	if !ok {
		return nil, x.freed, nil
	}
	if _, has := x.keys[id]; !has && len(key) > 0 {
		x.keys[id] = append([]byte(nil), key...)
	}
	return h, nil, nil
}

// end settles a write: its outcome is known, or nobody waits for it any more.
func (x *Session) end(h *raft.SessionHeader) {
	x.mu.Lock()
	x.client.End(h)
	close(x.freed)
	x.freed = make(chan struct{})
	x.mu.Unlock()
}

// CloseSession refuses further writes of x with shard.ErrClosed and tells the
// shards that what it did is settled, so that they drop the results they keep.
// Writes under way go on. What cannot be told in time does no harm: shards forget
// a session by themselves once its last write is older than its time to live.
func (s Space) CloseSession(ctx context.Context, x *Session) {
	type last struct {
		h   *raft.SessionHeader
		key []byte
	}
	x.mu.Lock()
	if x.closed {
		x.mu.Unlock()
		return
	}
	x.closed = true
	var ends []last
	for _, id := range x.client.Lineages() {
		if h, ok := x.client.Begin(id, uint64(x.clock.Now().Add(x.ttl).UnixNano())); ok && h.AckedTo == h.Seq-1 {
			ends = append(ends, last{h, x.keys[id]})
		}
	}
	x.mu.Unlock()
	var g errgroup.Group
	g.SetLimit(s.r.o.Parallel)
	for _, e := range ends {
		cmd, err := shard.EndSessionCommand(e.key)
		if err != nil {
			continue
		}
		cmd.Session = e.h
		g.Go(func() error {
			q := &shard.Request{Keyspace: s.id, Kind: shard.KindWrite, Command: cmd}
			s.r.run(ctx, q, place{key: e.key}, nil)
			return nil
		})
	}
	_ = g.Wait() // best effort
}

// stamp is the session's part in one request's tries.
type stamp struct {
	x *Session
	h *raft.SessionHeader // nil before the first try
	// unknown: the outcome of a try is not known, so that nothing but the
	// session's record in the shard can settle the request.
	unknown bool
	// ahead: h was drawn for the try that is about to be made.
	ahead bool
}

// header returns the header for a try at the shard. As long as every try
// certainly was without effect, the write is counted anew, where it goes; after
// that it keeps its number, its lineage and its deadline.
func (t *stamp) header(ctx context.Context, id raft.ShardID, key []byte) (*raft.SessionHeader, error) {
	if t.ahead {
		if t.ahead = false; t.h.Lineage == id {
			return t.h, nil
		}
	}
	if t.h != nil {
		if mutants.On("F1i") && t.unknown {
			h := *t.h
			h.Deadline = uint64(t.x.clock.Now().Add(t.x.ttl).UnixNano())
			return &h, nil
		}
		if t.unknown {
			return t.h, nil
		}
		t.end()
	}
	h, err := t.x.begin(ctx, id, key)
	t.h = h
	return h, err
}

// end settles the write at the session.
func (t *stamp) end() {
	if t != nil && t.h != nil {
		t.x.end(t.h)
		t.h = nil
	}
}

// settles reports whether err, which a shard answered, is the last word on a
// write of which an earlier try may have been carried out.
func settles(err error) bool {
	var (
		conflict *shard.ConflictError
		limit    *shard.LimitError
		argument *shard.ArgumentError
		gone     *shard.ResultGoneError
		expired  *shard.SessionExpiredError
	)
	switch {
	case errors.Is(err, shard.ErrAmbiguous):
		return false
	case errors.As(err, &conflict), errors.As(err, &limit), errors.As(err, &argument), errors.As(err, &gone):
		return true
	case errors.As(err, &expired):
		return expired.Known || mutants.On("F5")
	}
	return false
}

// honest returns the error of a request so that it says no more than is known: if
// an earlier try may have been carried out, a definite refusal of a later one is
// not the outcome.
func (t *stamp) honest(id raft.ShardID, err error) error {
	switch {
	case t == nil || err == nil:
		return err
	case errors.Is(err, shard.ErrAmbiguous):
		return t.named(err)
	case !t.unknown || settles(err) || mutants.On("F5b"):
		return err
	}
	return t.named(&shard.AmbiguousError{Shard: id, Why: "of an earlier try nothing is known, and the last one says: " + err.Error(), Cause: contextError(err)})
}

// named says in an ambiguous error which write of which session it is about.
func (t *stamp) named(err error) error {
	var a *shard.AmbiguousError
	if t.h == nil || !errors.As(err, &a) {
		return err
	}
	e := *a
	e.Session, e.Seq = t.h.ID, t.h.Seq
	return &e
}

func contextError(err error) error {
	switch {
	case errors.Is(err, context.DeadlineExceeded):
		return context.DeadlineExceeded
	case errors.Is(err, context.Canceled):
		return context.Canceled
	}
	return nil
}
