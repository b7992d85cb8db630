package router

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/flotillakv/flotilla/multiraft/raft"
	"github.com/flotillakv/flotilla/multiraft/session"
	"github.com/flotillakv/flotilla/shard"
)

// inSession returns a keyspace whose writes are in a new session.
func inSession(r *Router, ttl time.Duration) (Space, *Session) {
	s := r.Space(1)
	x := s.NewSession([16]byte{1, 2, 3}, ttl)
	return s.InSession(x), x
}

// sessionCases are checks that a planted bug must fail. Each runs in virtual time.
var sessionCases = []struct {
	name string
	run  func(t *testing.T) error
}{
	{"a write whose answers are lost is applied once and succeeds", func(t *testing.T) error {
		f := newFleet()
		s, _ := inSession(f.warm(t), time.Minute)
		var b shard.Batch
		b.Put([]byte("a"), []byte("batch"))
		for name, write := range map[string]func() error{
			"put": func() error { _, err := s.Put(t.Context(), []byte("a"), []byte("put")); return err },
			"cas": func() error { _, err := s.CAS(t.Context(), []byte("b"), shard.Version{}, []byte("cas")); return err },
			"batch": func() error {
				_, err := s.Write(t.Context(), &b, false)
				return err
			},
			"txn": func() error {
				_, err := s.Txn(t.Context(), shard.Txn{Then: []shard.Op{shard.PutOp([]byte("c"), []byte("txn"))}})
				return err
			},
		} {
			lost := 0
			f.lose = func(*shard.Request) bool { lost++; return lost <= 5 }
			if err := write(); err != nil || lost < 6 || f.applied[name] != 1 {
				return fmt.Errorf("%s: %v, %d answers, applied %d times", name, err, lost, f.applied[name])
			}
		}
		return nil
	}},
	{"without a session such a write is sent once", func(t *testing.T) error {
		f := newFleet()
		s := f.warm(t).Space(1)
		lost := 0
		f.lose = func(*shard.Request) bool { lost++; return lost <= 1 }
		_, err := s.Put(t.Context(), []byte("a"), []byte("put"))
		if !errors.Is(err, shard.ErrAmbiguous) || f.applied["put"] != 1 {
			return fmt.Errorf("%v, applied %d times", err, f.applied["put"])
		}
		return nil
	}},
	{"after an unknown outcome no later refusal is the answer", func(t *testing.T) error {
		for name, refusal := range map[string]error{
			"no quorum":  &shard.NoQuorumError{Shard: 2, Down: []raft.NodeID{2, 3}},
			"no leader":  &shard.NotLeaderError{Shard: 2},
			"overloaded": &shard.OverloadedError{RetryAfter: time.Millisecond},
			"full":       &shard.SessionsFullError{Shard: 2},
			"disk full":  &shard.DiskFullError{Shard: 2},
			"crossing":   &shard.CrossShardError{At: []byte("a")},
			"forgotten":  &shard.SessionExpiredError{Shard: 2},
		} {
			f := newFleet()
			s, _ := inSession(f.warm(t), time.Minute)
			tries := 0
			f.interfere = func(_ raft.NodeID, q *shard.Request) (*shard.Response, error, bool) {
				tries++
				return q.Failed(refusal), nil, tries > 1
			}
			f.lose = func(*shard.Request) bool { return true }
			ctx, cancel := context.WithTimeout(t.Context(), 3*time.Second)
			_, err := s.Put(ctx, []byte("a"), []byte("put"))
			cancel()
			if shard.OutcomeOf(err) != shard.MaybeApplied || !errors.Is(err, shard.ErrAmbiguous) {
				return fmt.Errorf("%s: %v is %v", name, err, shard.OutcomeOf(err))
			}
		}
		return nil
	}},
	{"a refusal of the only try is definite", func(t *testing.T) error {
		for _, refusal := range []error{
			&shard.NoQuorumError{Shard: 2, Down: []raft.NodeID{2, 3}}, &shard.SessionsFullError{Shard: 2}, &shard.SessionExpiredError{Shard: 2},
			&shard.DiskFullError{Shard: 2, Nodes: []raft.NodeID{1}},
		} {
			f := newFleet()
			s, _ := inSession(f.warm(t), time.Minute)
			f.interfere = func(_ raft.NodeID, q *shard.Request) (*shard.Response, error, bool) {
				return q.Failed(refusal), nil, true
			}
			if _, err := s.Put(t.Context(), []byte("a"), nil); shard.OutcomeOf(err) != shard.NotApplied || err != refusal {
				return fmt.Errorf("%v is %v", err, shard.OutcomeOf(err))
			}
		}
		return nil
	}},
	{"a retry carries the header of the first try, a new try of nothing a new one", func(t *testing.T) error {
		f := newFleet()
		s, _ := inSession(f.warm(t), 10*time.Second)
		lost := 0
		f.lose = func(*shard.Request) bool { lost++; time.Sleep(300 * time.Millisecond); return lost <= 5 }
		if _, err := s.Put(t.Context(), []byte("a"), []byte("1")); err != nil {
			return err
		}
		for _, h := range f.headers {
			if h != f.headers[0] {
				return fmt.Errorf("headers %+v", f.headers)
			}
		}
		first := f.headers[0]
		f.lose = nil
		tries := 0
		f.interfere = func(node raft.NodeID, q *shard.Request) (*shard.Response, error, bool) {
			tries++
			time.Sleep(time.Second)
			return q.Failed(&shard.OverloadedError{RetryAfter: time.Second}), nil, tries <= 3
		}
		f.headers = nil
		if _, err := s.Put(t.Context(), []byte("a"), []byte("2")); err != nil {
			return err
		}
		h := f.headers[0]
		if len(f.headers) != 1 || h.Seq <= first.Seq || h.AckedTo != h.Seq-1 || h.Deadline < uint64(time.Now().Add(8*time.Second).UnixNano()) {
			return fmt.Errorf("after refusals: %+v, the first one had %+v", f.headers, first)
		}
		return nil
	}},
	{"a retry after the record went is not executed again", func(t *testing.T) error {
		f := newFleet()
		s, _ := inSession(f.warm(t), 2*time.Second)
		lost := 0
		f.lose = func(*shard.Request) bool {
			if lost++; lost == 1 {
				time.Sleep(3 * time.Second)
				clear(f.shard(2).sessions) // as a sweep may now
				return true
			}
			return false
		}
		_, err := s.Put(t.Context(), []byte("a"), []byte("put"))
		if f.applied["put"] != 1 || shard.OutcomeOf(err) != shard.MaybeApplied {
			return fmt.Errorf("applied %d times: %v", f.applied["put"], err)
		}
		return nil
	}},
	{"an expiry that is known to be one is definite", func(t *testing.T) error {
		f := newFleet()
		s, _ := inSession(f.warm(t), 2*time.Second)
		if _, err := s.Put(t.Context(), []byte("a"), []byte("0")); err != nil {
			return err
		}
		tries := 0
		f.interfere = func(raft.NodeID, *shard.Request) (*shard.Response, error, bool) {
			if tries++; tries == 1 {
				time.Sleep(3 * time.Second)
			}
			return nil, &shard.AmbiguousError{Why: "lost on its way there"}, tries == 1
		}
		_, err := s.Put(t.Context(), []byte("a"), []byte("1"))
		if !errors.Is(err, shard.ErrSessionExpired) || shard.OutcomeOf(err) != shard.NotApplied || f.applied["1"] != 0 {
			return fmt.Errorf("%v is %v, applied %d times", err, shard.OutcomeOf(err), f.applied["1"])
		}
		return nil
	}},
	{"a retry finds its record in the half that a split took away", func(t *testing.T) error {
		f := newFleet()
		s, _ := inSession(f.warm(t), time.Minute)
		lost := 0
		f.lose = func(*shard.Request) bool {
			if lost++; lost == 1 {
				f.split("m")
				return true
			}
			return false
		}
		if _, err := s.Put(t.Context(), []byte("z"), []byte("put")); err != nil || f.applied["put"] != 1 {
			return fmt.Errorf("%v, applied %d times", err, f.applied["put"])
		}
		if _, err := s.Put(t.Context(), []byte("z"), []byte("next")); err != nil {
			return err
		}
		if h := f.headers[len(f.headers)-1]; h.Lineage != 3 || h.Seq != 1 {
			return fmt.Errorf("the next write is counted as %+v", h)
		}
		return nil
	}},
}

// TestSession runs the checks of sessions, each in virtual time.
func TestSession(t *testing.T) {
	for _, c := range sessionCases {
		t.Run(c.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				if err := c.run(t); err != nil {
					t.Error(err)
				}
			})
		})
	}
}

// TestSessionClockSkew: a client whose clock is far behind is told so at once.
func TestSessionClockSkew(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFleet()
		f.clockAhead = time.Hour
		s, _ := inSession(f.warm(t), time.Minute)
		_, err := s.Put(t.Context(), []byte("a"), []byte("put"))
		if shard.OutcomeOf(err) != shard.NotApplied || !strings.Contains(err.Error(), "compare the clocks") {
			t.Error(err)
		}
	})
}

// TestSessionWindow: of one session and shard 64 writes are under way at most;
// the next one waits for the oldest, and gives up with its context.
func TestSessionWindow(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFleet("m")
		s, _ := inSession(f.warm(t), time.Minute)
		hold := make(chan struct{})
		slow := slowSender{f, hold}
		r := New(Options{Sender: slow, Source: f})
		defer r.Close()
		for _, d := range f.shards {
			r.Table().Merge(d.desc)
		}
		s.r = r
		var wg sync.WaitGroup
		for i := range session.Window {
			wg.Go(func() {
				if _, err := s.Put(t.Context(), []byte("a"), []byte(fmt.Sprint(i))); err != nil {
					t.Error(err)
				}
			})
		}
		synctest.Wait()
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		_, err := s.Put(ctx, []byte("a"), []byte("more"))
		if shard.OutcomeOf(err) != shard.NotApplied || !errors.Is(err, context.DeadlineExceeded) || !strings.Contains(err.Error(), "64 earlier writes") {
			t.Error(err)
		}
		wg.Go(func() {
			if _, err := s.Put(t.Context(), []byte("a"), []byte("patient")); err != nil {
				t.Error(err)
			}
		})
		synctest.Wait()
		if f.applied["patient"]+f.applied["more"] != 0 {
			t.Error("a write beyond the window was sent")
		}
		close(hold)
		wg.Wait()
		if f.applied["patient"] != 1 || f.applied["more"] != 0 {
			t.Error(f.applied)
		}
	})
}

// slowSender holds everything until hold is closed.
type slowSender struct {
	*fleet
	hold chan struct{}
}

func (s slowSender) Send(ctx context.Context, node raft.NodeID, q *shard.Request) (*shard.Response, error) {
	select {
	case <-s.hold:
	case <-ctx.Done():
		return nil, &shard.UnavailableError{Cause: ctx.Err()}
	}
	return s.fleet.Send(ctx, node, q)
}

// TestSessionClose: the end of a session is told to each shard it wrote to, and
// to no other; further writes are refused, reads are not.
func TestSessionClose(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFleet("m", "t")
		s, x := inSession(f.warm(t), time.Minute)
		for _, k := range []string{"a", "z", "b"} {
			if _, err := s.Put(t.Context(), []byte(k), []byte(k)); err != nil {
				t.Fatal(err)
			}
		}
		s.CloseSession(t.Context(), x)
		s.CloseSession(t.Context(), x)
		slices.Sort(f.ended)
		if !slices.Equal(f.ended, []raft.ShardID{2, 4}) {
			t.Errorf("told %v", f.ended)
		}
		if _, err := s.Put(t.Context(), []byte("a"), nil); !errors.Is(err, shard.ErrClosed) {
			t.Error(err)
		}
		if _, err := s.Get(t.Context(), []byte("a"), shard.Linearizable); err != nil {
			t.Error(err)
		}
	})
}

// TestUnknownOutcomeNamesTheSession: what a user reads when nothing is known of a
// session's write: which write of which session it was, and what settles it.
func TestUnknownOutcomeNamesTheSession(t *testing.T) {
	h := &raft.SessionHeader{ID: [16]byte{0xab, 15: 1}, Seq: 7}
	const text = "flotilla: the outcome of write 7 of session ab000000000000000000000000000001 in shard 5 is unknown (%s): it may or may not have been applied, once at most; when a later write of the session to the same shard succeeds, this one is settled; read the key then"
	gone := &shard.UnavailableError{Node: 2, Why: "it is gone"}
	for _, c := range []struct {
		name  string
		stamp stamp
		err   error
		want  string
	}{
		{"lost on its way", stamp{h: h}, &shard.AmbiguousError{Shard: 5, Why: "the connection broke"}, fmt.Sprintf(text, "the connection broke")},
		{"a refusal behind one that was lost", stamp{h: h, unknown: true}, gone, fmt.Sprintf(text, "of an earlier try nothing is known, and the last one says: "+gone.Error())},
		{"a refusal of the first try", stamp{h: h}, gone, gone.Error()},
		{"a conflict behind one that was lost", stamp{h: h, unknown: true}, &shard.ConflictError{}, (&shard.ConflictError{}).Error()},
	} {
		err := c.stamp.honest(5, c.err)
		if err.Error() != c.want {
			t.Errorf("%s:\n%v\nwant\n%s", c.name, err, c.want)
		}
		if named := strings.Contains(c.want, "session"); named != errors.Is(err, shard.ErrAmbiguous) {
			t.Errorf("%s: %v", c.name, err)
		}
	}
}
