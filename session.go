package flotilla

import (
	"context"
	"crypto/rand"
	"fmt"
	"time"

	"github.com/flotillakv/flotilla/router"
)

// Bounds of a session's time to live.
const (
	MinSessionTTL     = time.Second
	DefaultSessionTTL = time.Minute
	MaxSessionTTL     = time.Hour
)

// SessionOptions say how a session behaves. The zero value will do.
type SessionOptions struct {
	// TTL is for how long after its first try a write may be tried again, and for
	// how long after the session's last write its shards remember the session.
	// Zero: DefaultSessionTTL. Less than MinSessionTTL or more than MaxSessionTTL
	// is refused.
	TTL time.Duration
}

// Session is a KV whose writes take effect exactly once, however often they have
// to be tried. Where a plain write returns ErrAmbiguous because its answer was
// lost, a session tries it again until the context (or the client's Timeout) ends:
// its shard recognises a try that took effect before, over changes of leader,
// restarts and snapshots, and gives the answer of the first time.
//
// What a write may return besides the errors of KV:
//
//   - ErrAmbiguous, if the time ended before an answer came. The write may have
//     been applied, or may still be, once. A later write of the same session to
//     the same shard that succeeds puts an end to that: afterwards an earlier one
//     that was given up does not take effect any more.
//   - *SessionExpiredError, if the shard's clock passed the TTL: not applied.
//   - *SessionsFullError, if the shard remembers too many sessions: not applied.
//   - *ResultGoneError, if the write was applied, but what a Txn read was too
//     large to be kept (all results of a session in a shard that are not
//     acknowledged: 4 KiB). Its Outcome is Applied.
//
// Writes of one session may run at the same time, up to 64 per shard; more wait.
// Sessions need no keeping alive: a session that was idle is registered again by
// its next write. A session is not a lock, and ends no one else's writes.
type Session struct {
	access // KV

	space router.Space // without the session, for its end
	x     *router.Session
	id    [16]byte
}

var _ KV = (*Session)(nil)

// NewSession returns a new session. It costs nothing until its first write; each
// shard learns of it with the first write it gets.
func (a *access) NewSession(o SessionOptions) (*Session, error) {
	switch {
	case o.TTL == 0:
		o.TTL = DefaultSessionTTL
	case o.TTL < MinSessionTTL || o.TTL > MaxSessionTTL:
		return nil, &OptionError{Field: "TTL", Value: o.TTL.String(), Reason: fmt.Sprintf("must be between %s and %s", MinSessionTTL, MaxSessionTTL)}
	}
	s := &Session{space: a.space}
	if _, err := rand.Read(s.id[:]); err != nil {
		return nil, fmt.Errorf("flotilla: no random id for a session: %w", err)
	}
	s.x = a.space.NewSession(s.id, o.TTL)
	s.access.space = a.space.InSession(s.x)
	return s, nil
}

// ID returns the session's id, 32 hexadecimal digits, as it shows in logs.
func (s *Session) ID() string { return fmt.Sprintf("%x", s.id) }

// closeSessionTimeout bounds how long Close tells shards that a session ended.
const closeSessionTimeout = 2 * time.Second

// Close ends the session: further writes are refused with ErrClosed, and its
// shards are told that nobody waits for results, so that they drop them. It waits
// two seconds at most; a shard that could not be told forgets the session by
// itself when its TTL is over. It is idempotent. Reads still work.
func (s *Session) Close() error {
	ctx, cancel := context.WithTimeout(context.Background(), closeSessionTimeout)
	defer cancel()
	s.space.CloseSession(ctx, s.x)
	return nil
}
