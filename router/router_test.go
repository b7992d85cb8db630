package router

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/flotillakv/flotilla/multiraft/raft"
	"github.com/flotillakv/flotilla/shard"
)

// took runs f in virtual time and returns how long it took.
func took(f func()) time.Duration {
	start := time.Now()
	f()
	return time.Since(start)
}

// expectSent checks whom the requests since the last call went to.
func (f *fleet) expectSent(t *testing.T, want ...raft.NodeID) {
	t.Helper()
	if !slices.Equal(f.sent, want) {
		t.Errorf("asked nodes %v, want %v", f.sent, want)
	}
	f.sent = nil
}

// TestColdStart: the first request looks its range up; its neighbours and
// their leaders come along, so that the next requests go straight to them.
func TestColdStart(t *testing.T) {
	f := newFleet("g", "p")
	s := f.router(t).Space(1)
	if _, err := s.Put(t.Context(), []byte("a"), []byte("1")); err != nil {
		t.Fatal(err)
	}
	f.expectSent(t, 1)
	for key, node := range map[string]raft.NodeID{"h": 2, "q": 3} {
		if _, err := s.Get(t.Context(), []byte(key), shard.Linearizable); !errors.Is(err, shard.ErrNotFound) {
			t.Errorf("an absent key: %v", err)
		}
		f.expectSent(t, node)
	}
	if f.lookups != 1 {
		t.Errorf("%d lookups, want 1", f.lookups)
	}
	if v, err := s.Get(t.Context(), []byte("a"), shard.Linearizable); err != nil || string(v.Bytes) != "1" {
		t.Errorf("read back %q, %v", v.Bytes, err)
	}
}

// TestStaleLeader: a request to a node that leads no more costs one message
// more, once.
func TestStaleLeader(t *testing.T) {
	f := newFleet()
	s := f.warm(t).Space(1)
	f.move(2, 3)
	if _, err := s.Put(t.Context(), []byte("a"), []byte("1")); err != nil {
		t.Fatal(err)
	}
	f.expectSent(t, 1, 3)
	if _, err := s.Put(t.Context(), []byte("a"), []byte("2")); err != nil {
		t.Fatal(err)
	}
	f.expectSent(t, 3)
}

// TestStaleRange: a split that the table does not know is healed by the
// descriptors in the reply: one message more, and no question to the catalog.
func TestStaleRange(t *testing.T) {
	f := newFleet()
	s := f.warm(t).Space(1)
	f.split("m")
	for _, key := range []string{"z", "a"} {
		if _, err := s.Put(t.Context(), []byte(key), []byte(key)); err != nil {
			t.Fatal(err)
		}
	}
	// "z": the old shard refuses by version, the new one is known from the reply,
	// its leader is not: the search begins at any of the three.
	if n := len(f.sent); n < 3 || n > 4 || f.lookups != 0 {
		t.Errorf("asked nodes %v with %d lookups", f.sent, f.lookups)
	}
	f.sent = nil
	for _, key := range []string{"z", "a"} {
		if _, err := s.Put(t.Context(), []byte(key), []byte(key)); err != nil {
			t.Fatal(err)
		}
	}
	f.expectSent(t, 1, 1)
}

// TestUnknownLeader: without a hint the replicas are asked in turn, and the
// first that knows the leader ends the search.
func TestUnknownLeader(t *testing.T) {
	f := newFleet()
	f.move(2, 3)
	f.shard(2).deaf = map[raft.NodeID]bool{1: true, 2: true}
	r := f.router(t, func(o *Options) { o.Rand = func() uint64 { return 4 } }) // begins at the third replica from 0: 3%3=0
	r.Table().Merge(f.shard(2).desc)
	if _, err := r.Space(1).Put(t.Context(), []byte("a"), nil); err != nil {
		t.Fatal(err)
	}
	f.expectSent(t, 1, 2, 3)
}

// TestElection: the leader dies; for 3 s nobody leads. The request waits with
// growing pauses and succeeds once there is a leader.
func TestElection(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFleet()
		s := f.warm(t).Space(1)
		f.down[1] = true
		f.shard(2).leader = 0
		time.AfterFunc(3*time.Second, func() {
			f.mu.Lock()
			defer f.mu.Unlock()
			f.move(2, 2)
		})
		d := took(func() {
			if _, err := s.Put(t.Context(), []byte("a"), []byte("1")); err != nil {
				t.Error(err)
			}
		})
		if d < 3*time.Second || d > 3300*time.Millisecond {
			t.Errorf("took %v", d)
		}
		if len(f.sent) > 120 {
			t.Errorf("%d messages in 3 s", len(f.sent))
		}
		if f.applied["1"] != 1 {
			t.Errorf("applied %d times", f.applied["1"])
		}
	})
}

// TestNoQuorum: a shard without a quorum is reported at once, and the error
// stays what the node said.
func TestNoQuorum(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFleet()
		s := f.warm(t).Space(1)
		f.down[2], f.down[3] = true, true
		f.shard(2).noQuorum = &shard.NoQuorumError{Shard: 2, Down: []raft.NodeID{2, 3}, Since: time.Now()}
		var err error
		if d := took(func() { _, err = s.Put(t.Context(), []byte("a"), nil) }); d != 0 {
			t.Errorf("took %v", d)
		}
		var noQuorum *shard.NoQuorumError
		if !errors.As(err, &noQuorum) || len(noQuorum.Down) != 2 || shard.OutcomeOf(err) != shard.NotApplied {
			t.Errorf("got %v", err)
		}
		if len(f.sent) != 3 {
			t.Errorf("asked nodes %v", f.sent)
		}
	})
}

// TestNoQuorumOutranks: of three nodes one answers that there is no quorum, and
// the others are so far gone that the caller's time ends with them. The caller
// learns of the quorum and not of the last node that was tried.
func TestNoQuorumOutranks(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFleet()
		r := f.warm(t)
		ctx, cancel := context.WithTimeout(t.Context(), 2*time.Second)
		defer cancel()
		f.interfere = func(node raft.NodeID, q *shard.Request) (*shard.Response, error, bool) {
			if node == 1 {
				return q.Failed(&shard.NoQuorumError{Shard: 2, Down: []raft.NodeID{2, 3}}), nil, true
			}
			<-ctx.Done()
			return nil, &shard.UnavailableError{Node: node, Cause: ctx.Err()}, true
		}
		_, err := r.Space(1).Put(ctx, []byte("a"), nil)
		var noQuorum *shard.NoQuorumError
		if !errors.As(err, &noQuorum) || len(noQuorum.Down) != 2 || len(f.sent) != 2 {
			t.Errorf("asked %v: %v", f.sent, err)
		}
	})
}

// mute is a source that has no quorum itself.
type mute struct {
	err   error
	asked int
}

func (m *mute) Lookup(context.Context, uint32, []byte, int) ([]shard.Descriptor, []LeaderHint, error) {
	m.asked++
	return nil, nil, m.err
}

// TestNoQuorumOfTheSource: without the shard that holds the ranges, those that
// the table knows are served, and the others are refused at once with the reason.
func TestNoQuorumOfTheSource(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		lost := &shard.NoQuorumError{Shard: raft.MetaShard, Down: []raft.NodeID{2, 3}, Since: time.Now()}
		for _, err := range []error{lost, &shard.UnavailableError{Why: "no node answers", Cause: lost}} {
			f, m := newFleet(), &mute{err: err}
			r := f.warm(t, func(o *Options) { o.Source = m })
			if _, err := r.Space(1).Put(t.Context(), []byte("a"), nil); err != nil || m.asked != 0 {
				t.Errorf("a known range: %v, the source was asked %d times", err, m.asked)
			}
			if d := took(func() { _, err = r.Space(5).Put(t.Context(), []byte("a"), nil) }); d != 0 || m.asked != 1 {
				t.Errorf("an unknown range: took %v, the source was asked %d times", d, m.asked)
			}
			var noQuorum *shard.NoQuorumError
			if !errors.As(err, &noQuorum) || noQuorum.Shard != raft.MetaShard || shard.OutcomeOf(err) != shard.NotApplied {
				t.Errorf("an unknown range: %v", err)
			}
		}
	})
}

// TestIsolatedLeader: the node the table points to is cut off from its peers
// and reports no quorum, but the others have elected one of them.
func TestIsolatedLeader(t *testing.T) {
	f := newFleet()
	s := f.warm(t).Space(1)
	f.move(2, 3)
	f.interfere = func(node raft.NodeID, q *shard.Request) (*shard.Response, error, bool) {
		return q.Failed(&shard.NoQuorumError{Shard: 2, Down: []raft.NodeID{2, 3}}), nil, node == 1
	}
	for range 2 {
		if _, err := s.Put(t.Context(), []byte("a"), nil); err != nil {
			t.Fatal(err)
		}
	}
	if n := len(f.sent); f.sent[0] != 1 || n > 4 || f.sent[n-1] != 3 {
		t.Errorf("asked nodes %v", f.sent)
	}
}

// TestAmbiguous: a write whose answer was lost is sent once, whatever it is;
// a read is asked again.
func TestAmbiguous(t *testing.T) {
	f := newFleet()
	s := f.warm(t).Space(1)
	ctx := t.Context()
	var b shard.Batch
	b.Put([]byte("a"), []byte("batch"))
	writes := map[string]func() error{
		"put":          func() error { _, err := s.Put(ctx, []byte("a"), []byte("put")); return err },
		"delete":       func() error { _, err := s.Delete(ctx, []byte("a")); return err },
		"delete range": func() error { _, err := s.DeleteRange(ctx, []byte("a"), []byte("b"), true); return err },
		"cas":          func() error { _, err := s.CAS(ctx, []byte("absent"), shard.Version{}, []byte("cas")); return err },
		"batch":        func() error { _, err := s.Write(ctx, &b, true); return err },
		"txn": func() error {
			_, err := s.Txn(ctx, shard.Txn{Then: []shard.Op{shard.PutOp([]byte("a"), []byte("txn"))}})
			return err
		},
	}
	for name, write := range writes {
		f.lose = func(*shard.Request) bool { return true }
		err := write()
		if !errors.Is(err, shard.ErrAmbiguous) || shard.OutcomeOf(err) != shard.MaybeApplied {
			t.Errorf("%s: %v", name, err)
		}
		f.expectSent(t, 1)
		if n := f.applied[name]; n > 1 {
			t.Errorf("%s was applied %d times", name, n)
		}
	}
	lost := 0
	f.lose = func(*shard.Request) bool { lost++; return lost == 1 }
	f.data["a"] = shard.Value{Bytes: []byte("1")}
	if v, err := s.Get(ctx, []byte("a"), shard.Linearizable); err != nil || string(v.Bytes) != "1" || lost < 2 {
		t.Errorf("a read after a lost answer: %q, %v, %d answers", v.Bytes, err, lost)
	}
}

// TestOverload: a node that asks for a pause gets it.
func TestOverload(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFleet()
		s := f.warm(t).Space(1)
		start := time.Now()
		f.interfere = func(_ raft.NodeID, q *shard.Request) (*shard.Response, error, bool) {
			return q.Failed(&shard.OverloadedError{RetryAfter: 400 * time.Millisecond, Why: "queue"}), nil, time.Since(start) < time.Second
		}
		d := took(func() {
			if _, err := s.Put(t.Context(), []byte("a"), nil); err != nil {
				t.Error(err)
			}
		})
		if d < time.Second || d > 1600*time.Millisecond || len(f.sent) > 4 {
			t.Errorf("took %v and %d messages", d, len(f.sent))
		}
	})
}

// TestPatience: under overload as many requests wait as may, the others are
// told at once, what the node said and that nothing was applied; and no place
// in that line is lost.
func TestPatience(t *testing.T) {
	if err := patience(t); err != nil {
		t.Fatal(err)
	}
}

func patience(t *testing.T) (err error) {
	synctest.Test(t, func(t *testing.T) {
		f := newFleet()
		var r *Router
		s := f.warm(t, func(o *Options) { o.Patience = 3; o.Timeout = 2 * time.Second }).Space(1)
		r = s.r
		overloaded := true
		f.interfere = func(_ raft.NodeID, q *shard.Request) (*shard.Response, error, bool) {
			return q.Failed(&shard.OverloadedError{RetryAfter: 400 * time.Millisecond, Why: "queue"}), nil, overloaded
		}
		for range 2 { // the second time needs the places of the first
			var wg sync.WaitGroup
			var atOnce, late atomic.Int64
			for range 10 {
				wg.Go(func() {
					var perr error
					d := took(func() { _, perr = s.Put(t.Context(), []byte("a"), nil) })
					var busy *shard.OverloadedError
					switch {
					case !errors.As(perr, &busy) || busy.RetryAfter != 400*time.Millisecond || shard.OutcomeOf(perr) != shard.NotApplied:
						t.Errorf("got %v", perr)
					case d < time.Millisecond && !errors.Is(perr, context.DeadlineExceeded):
						atOnce.Add(1)
					case d > time.Second:
						late.Add(1)
					}
				})
			}
			wg.Wait()
			if atOnce.Load() != 7 || late.Load() != 3 {
				err = fmt.Errorf("%d were told at once, %d waited; want 7 and 3", atOnce.Load(), late.Load())
				return
			}
		}
		if n := r.Stats().TurnedAway; n != 14 {
			err = fmt.Errorf("%d counted as turned away", n)
		}
		overloaded = false
		if _, perr := s.Put(t.Context(), []byte("a"), nil); perr != nil {
			err = perr
		}
	})
	return err
}

// crowd: of very many requests for shards without a leader, each tries more seldom.
func crowd(t *testing.T) (err error) {
	synctest.Test(t, func(t *testing.T) {
		const n = 30_000
		f := newFleet()
		s := f.warm(t, func(o *Options) { o.Timeout = 3 * time.Second }).Space(1)
		f.interfere = func(_ raft.NodeID, q *shard.Request) (*shard.Response, error, bool) {
			return q.Failed(&shard.NotLeaderError{Shard: q.Shard}), nil, true
		}
		var wg sync.WaitGroup
		for range n {
			wg.Go(func() { _, _ = s.Put(t.Context(), []byte("a"), nil) })
		}
		wg.Wait()
		if each := s.r.Stats().Waits / n; each < 4 || each > 12 {
			err = fmt.Errorf("each of %d requests was tried %d times in 3 s", n, each)
		}
		if left := s.r.waiting.Load(); left != 0 {
			err = fmt.Errorf("%d are still counted", left)
		}
	})
	return err
}

func TestCrowd(t *testing.T) {
	if err := crowd(t); err != nil {
		t.Fatal(err)
	}
}

// TestTimeIsUp: what the caller gets when nothing helps: the last error, that
// time is up, and that nothing was applied.
func TestTimeIsUp(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFleet()
		s := f.warm(t, func(o *Options) { o.Timeout = 2 * time.Second }).Space(1)
		f.down = map[raft.NodeID]bool{1: true, 2: true, 3: true}
		var err error
		d := took(func() { _, err = s.Put(t.Context(), []byte("a"), nil) })
		var unavailable *shard.UnavailableError
		if !errors.As(err, &unavailable) || !errors.Is(err, context.DeadlineExceeded) || shard.OutcomeOf(err) != shard.NotApplied {
			t.Errorf("got %v", err)
		}
		if d > 2*time.Second || d < 1700*time.Millisecond {
			t.Errorf("took %v", d)
		}
		if !strings.Contains(err.Error(), "connection refused") || !strings.Contains(err.Error(), "tries") {
			t.Errorf("says %q", err)
		}

		ctx, cancel := context.WithCancel(t.Context())
		time.AfterFunc(time.Second, cancel)
		d = took(func() { _, err = s.Put(ctx, []byte("a"), nil) })
		if !errors.Is(err, context.Canceled) || shard.OutcomeOf(err) != shard.NotApplied || d != time.Second {
			t.Errorf("cancelled after %v: %v", d, err)
		}
		f.sent = nil
		_, err = s.Put(ctx, []byte("a"), nil)
		if !errors.Is(err, context.Canceled) || shard.OutcomeOf(err) != shard.NotApplied {
			t.Errorf("cancelled before: %v", err)
		}
		f.expectSent(t)
	})
}

// hangingSender never answers; it returns the bare context error, or what a
// transport makes of it.
type hangingSender struct{ wrap func(error) error }

func (h hangingSender) Send(ctx context.Context, _ raft.NodeID, q *shard.Request) (*shard.Response, error) {
	<-ctx.Done()
	return nil, h.wrap(ctx.Err())
}

// TestHangingNode: a request in flight when time is up is ambiguous if it is a
// write, also when the sender says nothing but "deadline exceeded".
func TestHangingNode(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFleet()
		for name, wrap := range map[string]func(error) error{
			"bare":  func(err error) error { return err },
			"typed": func(err error) error { return &shard.AmbiguousError{Cause: err} },
		} {
			s := f.warm(t, func(o *Options) { o.Sender, o.Timeout = hangingSender{wrap}, time.Second }).Space(1)
			var err error
			d := took(func() { _, err = s.Put(t.Context(), []byte("a"), nil) })
			if !errors.Is(err, shard.ErrAmbiguous) || !errors.Is(err, context.DeadlineExceeded) || d != time.Second {
				t.Errorf("%s: a write ended after %v with %v", name, d, err)
			}
			d = took(func() { _, err = s.Get(t.Context(), []byte("a"), shard.Linearizable) })
			if errors.Is(err, shard.ErrAmbiguous) || !errors.Is(err, context.DeadlineExceeded) || d != time.Second {
				t.Errorf("%s: a read ended after %v with %v", name, d, err)
			}
		}
	})
}

// TestRedirectLoops: replies that never agree are capped, first by redirects
// and waits, then by the deadline.
func TestRedirectLoops(t *testing.T) {
	loops := map[string]func(f *fleet, node raft.NodeID, q *shard.Request) error{
		"each names another, in ever higher terms": func(f *fleet, node raft.NodeID, q *shard.Request) error {
			return &shard.NotLeaderError{Shard: 2, Leader: node%3 + 1, Term: raft.Term(len(f.sent) + 10)}
		},
		"each has a newer range": func(f *fleet, node raft.NodeID, q *shard.Request) error {
			return &shard.EpochError{Shard: 2, Descriptors: []shard.Descriptor{rangeOf(2, "", "", uint64(len(f.sent)+10), 1)}}
		},
		"an older range":        func(*fleet, raft.NodeID, *shard.Request) error { return epochOf(rangeOf(2, "", "", 0, 1)) },
		"the same range":        func(*fleet, raft.NodeID, *shard.Request) error { return epochOf(rangeOf(2, "", "", 1, 1)) },
		"nobody has the shard":  func(*fleet, raft.NodeID, *shard.Request) error { return &shard.EpochError{Shard: 2} },
		"everybody is stopping": func(*fleet, raft.NodeID, *shard.Request) error { return shard.ErrClosed },
	}
	for name, reply := range loops {
		synctest.Test(t, func(t *testing.T) {
			f := newFleet()
			s := f.warm(t, func(o *Options) { o.Timeout = 2 * time.Second }).Space(1)
			f.interfere = func(node raft.NodeID, q *shard.Request) (*shard.Response, error, bool) {
				return q.Failed(reply(f, node, q)), nil, true
			}
			var err error
			d := took(func() { _, err = s.Put(t.Context(), []byte("a"), nil) })
			if err == nil || shard.OutcomeOf(err) != shard.NotApplied || d > 2*time.Second {
				t.Errorf("%s: %v after %v", name, err, d)
			}
			if n := len(f.sent); n < 20 || n > 400 {
				t.Errorf("%s: %d messages in 2 s", name, n)
			}
		})
	}
}

func epochOf(d shard.Descriptor) error {
	return &shard.EpochError{Shard: d.Shard, Descriptors: []shard.Descriptor{d}}
}

// TestDisowned: when every replica of a cached range disowns it, the range is
// looked up again.
func TestDisowned(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFleet()
		r := f.router(t)
		r.Table().Merge(rangeOf(99, "", "", 1, 1))
		if _, err := r.Space(1).Put(t.Context(), []byte("a"), nil); err != nil {
			t.Fatal(err)
		}
		if f.lookups != 1 || len(f.sent) != 4 {
			t.Errorf("%d lookups, asked nodes %v", f.lookups, f.sent)
		}
	})
}

// TestLocalReads: any replica may answer; the own one is asked first, and one
// that is down is passed over.
func TestLocalReads(t *testing.T) {
	f := newFleet()
	f.data["a"] = shard.Value{Bytes: []byte("1")}
	r := f.warm(t, func(o *Options) { o.Self = 3 })
	for _, down := range []raft.NodeID{0, 3} {
		f.down[down] = true
		if v, err := r.Space(1).Get(t.Context(), []byte("a"), shard.Local); err != nil || string(v.Bytes) != "1" {
			t.Errorf("with node %d down: %q, %v", down, v.Bytes, err)
		}
		if f.sent[0] != 3 || len(f.sent) > 2 {
			t.Errorf("with node %d down asked nodes %v", down, f.sent)
		}
		f.sent = nil
	}
	route, _ := r.Table().Lookup(1, []byte("a"))
	if node, _ := route.Leader(); node != 1 {
		t.Errorf("a local read changed the leader hint to %d", node)
	}
}

// TestRelay: a remote client that cannot reach the leader lets a replica forward.
func TestRelay(t *testing.T) {
	f := newFleet()
	r := f.warm(t, func(o *Options) { o.Forward = true })
	hops := map[uint8]int{}
	f.interfere = func(node raft.NodeID, q *shard.Request) (*shard.Response, error, bool) {
		hops[q.Hop]++
		return nil, &shard.UnavailableError{Node: 1}, node == 1
	}
	if _, err := r.Space(1).Put(t.Context(), []byte("a"), []byte("1")); err != nil {
		t.Fatal(err)
	}
	route, _ := r.Table().Lookup(1, []byte("a"))
	if node, _ := route.Leader(); node != 1 {
		t.Errorf("the relay, node %d, is taken for the leader", node)
	}
	if n := len(f.sent); n != 3 || f.sent[0] != 1 || f.sent[1] != f.sent[2] || hops[0] != 1 || hops[shard.MaxHops] != 2 {
		t.Errorf("asked nodes %v, hops %v", f.sent, hops)
	}
	if f.applied["1"] != 1 {
		t.Errorf("applied %d times", f.applied["1"])
	}
}

// scanAll collects a scan as "k k k", with the error at the end.
func scanAll(s Space, sc Scan) string {
	var out []string
	for p, err := range s.Scan(context.Background(), sc) {
		if err != nil {
			out = append(out, "error")
			if p.Key != nil || p.Value != nil {
				out = append(out, "with a pair")
			}
			continue
		}
		out = append(out, string(p.Key))
	}
	return strings.Join(out, " ")
}

// TestScan reads over three shards with pages of three pairs, both ways.
func TestScan(t *testing.T) {
	f := newFleet("d", "g")
	for _, k := range strings.Split("a b c d e f g h i j k", " ") {
		f.data[k] = shard.Value{Bytes: []byte(k)}
	}
	tests := []struct {
		name string
		sc   Scan
		want string
	}{
		{"everything", Scan{}, "a b c d e f g h i j k"},
		{"everything in reverse", Scan{Reverse: true}, "k j i h g f e d c b a"},
		{"bounds within shards", Scan{Start: []byte("b"), End: []byte("h")}, "b c d e f g"},
		{"the same in reverse", Scan{Start: []byte("b"), End: []byte("h"), Reverse: true}, "g f e d c b"},
		{"bounds at boundaries", Scan{Start: []byte("d"), End: []byte("g")}, "d e f"},
		{"the same in reverse", Scan{Start: []byte("d"), End: []byte("g"), Reverse: true}, "f e d"},
		{"a limit within the first page", Scan{Limit: 2}, "a b"},
		{"a limit beyond a boundary", Scan{Limit: 7}, "a b c d e f g"},
		{"a limit in reverse", Scan{Limit: 5, Reverse: true}, "k j i h g"},
		{"no keys", Scan{Start: []byte("x")}, ""},
		{"equal bounds", Scan{Start: []byte("b"), End: []byte("b")}, ""},
		{"start after end", Scan{Start: []byte("c"), End: []byte("b")}, "error"},
		{"a negative limit", Scan{Limit: -1}, "error"},
	}
	for _, tt := range tests {
		if got := scanAll(f.router(t).Space(1), tt.sc); got != tt.want {
			t.Errorf("%s: got %q, want %q", tt.name, got, tt.want)
		}
	}
	var got []string
	for p := range f.router(t).Space(1).Scan(t.Context(), Scan{}) {
		if got = append(got, string(p.Key)); len(got) == 4 {
			break
		}
	}
	if strings.Join(got, " ") != "a b c d" {
		t.Errorf("a scan that was left early: %v", got)
	}
}

// TestScanFails: an error in the third shard comes once and last, after the
// pairs of the others. A split on the way changes nothing.
func TestScanFails(t *testing.T) {
	f := newFleet("d", "g")
	for _, k := range strings.Split("a b c d e f g h", " ") {
		f.data[k] = shard.Value{Bytes: []byte(k)}
	}
	s := f.warm(t).Space(1)
	f.split("e")
	f.shard(4).noQuorum = &shard.NoQuorumError{Shard: 4}
	if got := scanAll(s, Scan{}); got != "a b c d e f error" {
		t.Errorf("got %q", got)
	}
	if got := scanAll(s, Scan{End: []byte("g"), Reverse: true}); got != "f e d c b a" {
		t.Errorf("in reverse got %q", got)
	}
}

// TestManyShardsInReverse: a reverse scan without a table finds its way when
// one answer of the source does not reach the end.
func TestManyShardsInReverse(t *testing.T) {
	splits := []string{"k"}
	for i := range 40 {
		splits = append(splits, "k\x00"+strings.Repeat("\xff", i+1))
	}
	f := newFleet(append(splits, "k\x01")...)
	for _, k := range append(splits, "0", "l") {
		f.data[k] = shard.Value{}
	}
	r := f.router(t, func(o *Options) { o.Prefetch = 3 })
	n := 0
	for _, err := range r.Space(1).Scan(t.Context(), Scan{Reverse: true, End: []byte("k\x01")}) {
		if err != nil {
			t.Fatal(err)
		}
		n++
	}
	if n != len(splits)+1 {
		t.Errorf("%d pairs, want %d", n, len(splits)+1)
	}
}

// TestBatch: within one shard a batch is one request; across shards it is
// refused with the boundary and nothing is sent, or cut if it may be.
func TestBatch(t *testing.T) {
	f := newFleet("g", "p")
	s := f.warm(t).Space(1)
	ctx := t.Context()
	var one, two, three shard.Batch
	one.Put([]byte("a"), []byte("a1"))
	one.Delete([]byte("b"))
	if r, err := s.Write(ctx, &one, false); err != nil || r.IsZero() {
		t.Errorf("one shard: %v, %v", r, err)
	}
	f.expectSent(t, 1)

	two.Put([]byte("h"), []byte("h1"))
	two.Put([]byte("a"), []byte("a2"))
	_, err := s.Write(ctx, &two, false)
	var cross *shard.CrossShardError
	if !errors.As(err, &cross) || string(cross.At) != "g" || shard.OutcomeOf(err) != shard.NotApplied {
		t.Errorf("two shards: %v", err)
	}
	f.expectSent(t)

	three.Put([]byte("h"), []byte("h2"))
	three.DeleteRange([]byte("a"), nil)
	three.Put([]byte("h"), []byte("h3"))
	three.Put([]byte("q"), []byte("q3"))
	if r, err := s.Write(ctx, &three, true); err != nil || !r.IsZero() {
		t.Errorf("three shards, not atomic: %v, %v", r, err)
	}
	if got := scanAll(s, Scan{}); got != "h q" || string(f.data["h"].Bytes) != "h3" {
		t.Errorf("left %q, h=%q: the order within a shard was not kept", got, f.data["h"].Bytes)
	}
}

// TestCrossShard: transactions and range deletions name the boundary.
func TestCrossShard(t *testing.T) {
	f := newFleet("g", "p")
	s := f.warm(t).Space(1)
	ctx := t.Context()
	tests := map[string]struct {
		do func() error
		at string
	}{
		"txn, condition elsewhere": {func() error {
			_, err := s.Txn(ctx, shard.Txn{If: []shard.Cond{shard.IfAbsent([]byte("a"))}, Then: []shard.Op{shard.PutOp([]byte("h"), nil)}})
			return err
		}, "g"},
		"txn, second branch elsewhere": {func() error {
			_, err := s.Txn(ctx, shard.Txn{Then: []shard.Op{shard.PutOp([]byte("q"), nil)}, Else: []shard.Op{shard.GetOp([]byte("h"))}})
			return err
		}, "p"},
		"delete range":               {func() error { _, err := s.DeleteRange(ctx, []byte("h"), []byte("q"), false); return err }, "p"},
		"delete range without bound": {func() error { _, err := s.DeleteRange(ctx, nil, nil, false); return err }, "g"},
	}
	for name, tt := range tests {
		err := tt.do()
		var cross *shard.CrossShardError
		if !errors.As(err, &cross) || string(cross.At) != tt.at || shard.OutcomeOf(err) != shard.NotApplied {
			t.Errorf("%s: %v", name, err)
		}
	}
	f.expectSent(t)
	for _, k := range []string{"a", "h", "o", "p", "z"} {
		f.data[k] = shard.Value{}
	}
	if _, err := s.DeleteRange(ctx, []byte("b"), []byte("q"), true); err != nil {
		t.Error(err)
	}
	if got := scanAll(s, Scan{}); got != "a z" {
		t.Errorf("left %q", got)
	}
}

// TestPartial: a non-atomic batch of which one shard refuses its part tells
// honestly what happened; so does one that no shard applied.
func TestPartial(t *testing.T) {
	f := newFleet("g", "p")
	s := f.warm(t).Space(1)
	ctx := t.Context()
	var b shard.Batch
	for _, k := range []string{"a", "h", "q"} {
		b.Put([]byte(k), []byte("v"+k))
	}
	f.shard(3).noQuorum = &shard.NoQuorumError{Shard: 3}
	_, err := s.Write(ctx, &b, true)
	var partial *shard.PartialError
	var noQuorum *shard.NoQuorumError
	if !errors.As(err, &partial) || partial.Applied != 2 || partial.Shards != 3 || !errors.As(err, &noQuorum) || shard.OutcomeOf(err) != shard.MaybeApplied {
		t.Errorf("one refused: %v", err)
	}
	for _, sh := range f.shards {
		sh.noQuorum = &shard.NoQuorumError{Shard: sh.desc.Shard}
	}
	if _, err = s.Write(ctx, &b, true); errors.As(err, &partial) && partial == nil || shard.OutcomeOf(err) != shard.NotApplied {
		t.Errorf("all refused: %v", err)
	}
	f.lose = func(q *shard.Request) bool { return q.Shard == 4 }
	if _, err = s.Write(ctx, &b, true); !errors.Is(err, shard.ErrAmbiguous) || shard.OutcomeOf(err) != shard.MaybeApplied {
		t.Errorf("one unknown, others refused: %v", err)
	}
}

// TestBatchMeetsSplit: a part whose shard splits on its way is cut again.
func TestBatchMeetsSplit(t *testing.T) {
	f := newFleet("g")
	s := f.warm(t).Space(1)
	f.split("c")
	f.split("j")
	var b shard.Batch
	for _, k := range []string{"a", "d", "h", "k"} {
		b.Put([]byte(k), []byte("v"+k))
	}
	if _, err := s.Write(t.Context(), &b, true); err != nil {
		t.Fatal(err)
	}
	for _, k := range []string{"a", "d", "h", "k"} {
		if f.applied["v"+k] != 1 {
			t.Errorf("%s was applied %d times", k, f.applied["v"+k])
		}
	}
}

// TestBadRequests: what cannot be right is refused before anything is sent.
func TestBadRequests(t *testing.T) {
	f := newFleet("g")
	f.shards = f.shards[:1] // nobody holds [g, ...)
	r := f.router(t)
	s := r.Space(1)
	ctx := t.Context()
	long := make([]byte, shard.MaxKeyBytes+1)
	var arg *shard.ArgumentError
	var limit *shard.LimitError
	tests := map[string]struct {
		do   func() error
		want any
	}{
		"empty key":             {func() error { _, err := s.Get(ctx, nil, 0); return err }, &arg},
		"empty key to put":      {func() error { _, err := s.Put(ctx, nil, nil); return err }, &arg},
		"long key":              {func() error { _, err := s.Delete(ctx, long); return err }, &limit},
		"long value":            {func() error { _, err := s.Put(ctx, []byte("a"), make([]byte, shard.MaxValueBytes+1)); return err }, &limit},
		"empty batch":           {func() error { _, err := s.Write(ctx, &shard.Batch{}, false); return err }, &arg},
		"empty txn":             {func() error { _, err := s.Txn(ctx, shard.Txn{}); return err }, &arg},
		"range upside down":     {func() error { _, err := s.DeleteRange(ctx, []byte("b"), []byte("a"), true); return err }, &arg},
		"key outside":           {func() error { _, err := s.Get(ctx, []byte("h"), 0); return err }, &arg},
		"batch partly outside":  {func() error { return writeKeys(s, true, "a", "h") }, &arg},
		"scan into the outside": {func() error { return lastError(s, Scan{}) }, &arg},
		"reverse from outside":  {func() error { return lastError(s, Scan{Reverse: true}) }, &arg},
		"unknown keyspace":      {func() error { _, err := r.Space(9).Get(ctx, []byte("a"), 0); return err }, &arg},
		"unknown kind":          {func() error { return r.Do(ctx, &shard.Request{Kind: 99}).Err }, &arg},
		"unknown operation": {func() error {
			return r.Do(ctx, &shard.Request{Kind: shard.KindWrite, Command: raft.Command{Op: 99}}).Err
		}, &arg},
	}
	for name, tt := range tests {
		f.sent = nil
		err := tt.do()
		if !errors.As(err, tt.want) || shard.OutcomeOf(err) != shard.NotApplied {
			t.Errorf("%s: %v", name, err)
		}
		if len(f.sent) > 0 && !strings.HasPrefix(name, "scan") {
			t.Errorf("%s: asked nodes %v", name, f.sent)
		}
	}
	_, err := s.Get(ctx, []byte("h"), 0)
	if !strings.Contains(err.Error(), `"h"`) || !strings.Contains(err.Error(), "keyspace 1") {
		t.Errorf("says %q", err)
	}
}

func writeKeys(s Space, nonAtomic bool, keys ...string) error {
	var b shard.Batch
	for _, k := range keys {
		b.Put([]byte(k), nil)
	}
	_, err := s.Write(context.Background(), &b, nonAtomic)
	return err
}

func lastError(s Space, sc Scan) (last error) {
	for _, err := range s.Scan(context.Background(), sc) {
		last = err
	}
	return last
}

// TestMultiGet reads keys of several shards, present and absent.
func TestMultiGet(t *testing.T) {
	f := newFleet("g", "p")
	f.data["a"], f.data["q"] = shard.Value{Bytes: []byte("1")}, shard.Value{Bytes: []byte("2")}
	s := f.warm(t).Space(1)
	got, err := s.MultiGet(t.Context(), [][]byte{[]byte("q"), []byte("h"), []byte("a")}, shard.Linearizable)
	if err != nil || len(got) != 3 || string(got[0].Value.Bytes) != "2" || got[1].Found || string(got[2].Value.Bytes) != "1" {
		t.Errorf("got %+v, %v", got, err)
	}
	f.shard(3).noQuorum = &shard.NoQuorumError{Shard: 3}
	var noQuorum *shard.NoQuorumError
	if _, err = s.MultiGet(t.Context(), [][]byte{[]byte("a"), []byte("h")}, shard.Linearizable); !errors.As(err, &noQuorum) {
		t.Errorf("with a shard down: %v", err)
	}
}

// blockingSource lets lookups wait until the test lets them go.
type blockingSource struct {
	f    *fleet
	gate chan struct{}
}

func (b blockingSource) Lookup(ctx context.Context, ks uint32, key []byte, n int) ([]shard.Descriptor, []LeaderHint, error) {
	select {
	case <-b.gate:
		return b.f.Lookup(ctx, ks, key, n)
	case <-ctx.Done():
		return nil, nil, &shard.UnavailableError{Why: "lookup ended", Cause: ctx.Err()}
	}
}

// TestMissesShareLookups: a crowd that misses together asks the source once, or
// as often as its answers, which hold the neighbours to the right, leave a rest.
func TestMissesShareLookups(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFleet("user3", "user6")
		src := blockingSource{f, make(chan struct{})}
		s := f.router(t, func(o *Options) { o.Source = src }).Space(1)
		for i := range 100 {
			go func() {
				if _, err := s.Get(t.Context(), fmt.Appendf(nil, "user%d", i%10), 0); !errors.Is(err, shard.ErrNotFound) {
					t.Error(err)
				}
			}()
		}
		synctest.Wait() // all of them wait for one lookup
		close(src.gate)
		synctest.Wait()
		if f.lookups < 1 || f.lookups > 3 {
			t.Errorf("%d lookups", f.lookups)
		}
	})
}

// TestClose: lookups under way end, later requests are refused, and closing
// again is harmless. A caller that stops waiting leaves the lookup behind.
func TestClose(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFleet()
		src := blockingSource{f, make(chan struct{})}
		r := f.router(t, func(o *Options) { o.Source = src })
		s := r.Space(1)
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		if _, err := s.Get(ctx, []byte("a"), 0); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("a caller in a hurry: %v", err)
		}
		done := make(chan error)
		go func() {
			_, err := s.Put(t.Context(), []byte("a"), nil)
			done <- err
		}()
		synctest.Wait()
		r.Close()
		if err := <-done; err == nil || shard.OutcomeOf(err) != shard.NotApplied {
			t.Errorf("a request that waited for a lookup: %v", err)
		}
		if _, err := s.Put(t.Context(), []byte("a"), nil); !errors.Is(err, shard.ErrClosed) {
			t.Errorf("a request after Close: %v", err)
		}
		r.Close()
	})
}

// TestMetaShard: keyspace 0 is found through the root descriptor, never through
// the source, which reads it; without a root it is unavailable.
func TestMetaShard(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFleet()
		meta := rangeOf(1, "", "", 1, 1)
		meta.Keyspace = 0
		f.shards = append(f.shards, &fleetShard{desc: meta, leader: 2, term: 1})
		r := f.router(t, func(o *Options) { o.Root = &meta })
		if _, err := r.Space(0).Put(t.Context(), []byte("cluster"), nil); err != nil {
			t.Error(err)
		}
		route, _ := r.Table().Lookup(0, []byte("cluster"))
		r.Table().Evict(route)
		if _, err := r.Space(0).Put(t.Context(), []byte("cluster"), nil); err != nil {
			t.Error(err)
		}
		if f.lookups != 0 {
			t.Errorf("%d lookups", f.lookups)
		}
		_, err := f.router(t).Space(0).Get(t.Context(), []byte("cluster"), 0)
		var unavailable *shard.UnavailableError
		if !errors.As(err, &unavailable) {
			t.Errorf("without a root: %v", err)
		}
	})
}

// TestStorm moves leaders, splits shards, stops nodes and loses answers at
// random under a random load, and holds the promise on outcomes: a write that
// was acknowledged was applied exactly once, one that was refused not at all,
// and an unknown one at most once. Afterwards everything can be read.
func TestStorm(t *testing.T) {
	for seed := range uint64(30) {
		synctest.Test(t, func(t *testing.T) { storm(t, seed) })
	}
}

func storm(t *testing.T, seed uint64) {
	rng := rand.New(rand.NewPCG(seed, 1))
	f := newFleet("2", "5", "8")
	s := f.router(t, func(o *Options) { o.Timeout, o.Rand = 3*time.Second, rng.Uint64 }).Space(1)
	f.lose = func(*shard.Request) bool { return rng.IntN(15) == 0 }
	f.interfere = func(node raft.NodeID, q *shard.Request) (*shard.Response, error, bool) {
		switch rng.IntN(12) {
		case 0:
			return nil, &shard.UnavailableError{Node: node}, true
		case 1: // an outdated follower
			return q.Failed(&shard.NotLeaderError{Shard: q.Shard, Leader: raft.NodeID(1 + rng.IntN(3)), Term: 1}), nil, true
		case 2:
			return q.Failed(&shard.OverloadedError{RetryAfter: time.Millisecond}), nil, true
		}
		return nil, nil, false
	}
	outcomes := map[shard.Outcome]int{}
	for i := range 300 {
		switch rng.IntN(10) {
		case 0:
			f.move(f.shards[rng.IntN(len(f.shards))].desc.Shard, raft.NodeID(1+rng.IntN(3)))
		case 1:
			f.split(fmt.Sprintf("%03d", rng.IntN(1000)))
		case 2:
			clear(f.down)
			f.down[raft.NodeID(1+rng.IntN(3))] = true
		case 3:
			clear(f.down)
		}
		key, value := fmt.Appendf(nil, "%03d", rng.IntN(1000)), fmt.Appendf(nil, "v%d", i)
		var err error
		switch rng.IntN(4) {
		case 0:
			var b shard.Batch
			b.Put(key, value)
			b.Put(append(key, 'x'), value[:1])
			_, err = s.Write(t.Context(), &b, true)
		case 1:
			_, err = s.CAS(t.Context(), key, f.data[string(key)].Version, value)
		case 2:
			_, err = s.Txn(t.Context(), shard.Txn{Then: []shard.Op{shard.PutOp(key, value)}})
		default:
			_, err = s.Put(t.Context(), key, value)
		}
		outcome := shard.OutcomeOf(err)
		outcomes[outcome]++
		n := f.applied[string(value)]
		if n > 1 || outcome == shard.Applied && n != 1 || outcome == shard.NotApplied && n != 0 {
			t.Fatalf("seed %d, write %d: applied %d times, but the caller was told %v (%v)", seed, i, n, outcome, err)
		}
	}
	if outcomes[shard.Applied] < 150 || outcomes[shard.MaybeApplied] == 0 {
		t.Errorf("seed %d: outcomes %v", seed, outcomes)
	}
	f.lose, f.interfere = nil, nil
	clear(f.down)
	n := 0
	for p, err := range s.Scan(t.Context(), Scan{}) {
		if err != nil || string(f.data[string(p.Key)].Bytes) != string(p.Value) {
			t.Fatalf("seed %d: scan: %q, %v", seed, p.Key, err)
		}
		n++
	}
	if n != len(f.data) {
		t.Errorf("seed %d: %d pairs, want %d", seed, n, len(f.data))
	}
}

// TestStats shows that the counters count.
func TestStats(t *testing.T) {
	f := newFleet()
	r := f.router(t)
	if _, err := r.Space(1).Put(t.Context(), []byte("a"), nil); err != nil {
		t.Fatal(err)
	}
	f.move(2, 3)
	if _, err := r.Space(1).Put(t.Context(), []byte("a"), nil); err != nil {
		t.Fatal(err)
	}
	if got, want := r.Stats(), (Stats{Requests: 2, Sends: 3, Redirects: 1, Lookups: 1}); got != want {
		t.Errorf("got %+v, want %+v", got, want)
	}
}

// okSender answers everything at once.
type okSender struct{ resp *shard.Response }

func (s okSender) Send(context.Context, raft.NodeID, *shard.Request) (*shard.Response, error) {
	return s.resp, nil
}

func BenchmarkPut(b *testing.B) {
	f := newFleet("g", "p")
	r := New(Options{Sender: okSender{&shard.Response{}}, Source: f})
	defer r.Close()
	ctx, cancel := context.WithTimeout(context.Background(), time.Hour)
	defer cancel()
	key, value := []byte("user0001"), make([]byte, 128)
	b.ReportAllocs()
	for b.Loop() {
		if _, err := r.Space(1).Put(ctx, key, value); err != nil {
			b.Fatal(err)
		}
	}
}
