package kv

import (
	"context"
	"errors"
	"fmt"
	"reflect"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/flotillakv/flotilla/engine"
	"github.com/flotillakv/flotilla/multiraft"
	"github.com/flotillakv/flotilla/multiraft/raft"
	"github.com/flotillakv/flotilla/shard"
)

var (
	_  Host = (*fakeHost)(nil)
	bg      = context.Background()
)

func newStore(t testing.TB, descs ...raft.Descriptor) (*Store, *fakeHost) {
	h := newHost(t, descs...)
	s := NewStore(Options{Host: h, Engine: h.e, Addr: func(n raft.NodeID) string { return fmt.Sprintf("node%d:1", n) }})
	t.Cleanup(s.Close)
	return s, h
}

func write(c raft.Command) *shard.Request {
	return &shard.Request{ID: 5, Shard: 7, Keyspace: 1, Kind: shard.KindWrite, Command: c}
}

func get(key string) *shard.Request {
	return &shard.Request{ID: 5, Shard: 7, Keyspace: 1, Kind: shard.KindGet, Key: bs(key)}
}

// Shows the answers to reads and writes through the door.
func TestStoreDo(t *testing.T) {
	s, _ := newStore(t)
	r := s.Do(bg, write(put("k", "v")))
	if r.Err != nil || r.ID != 5 || r.Receipt.Version != at(1, 0) {
		t.Fatalf("put: %+v", r)
	}
	for _, level := range []shard.Consistency{shard.Linearizable, shard.NoClock, shard.Local} {
		req := get("k")
		req.Consistency = level
		if r := s.Do(bg, req); r.Err != nil || !r.Found || string(r.Value.Bytes) != "v" || r.Value.Version != at(1, 0) || r.ID != 5 {
			t.Errorf("get at level %d: %+v", level, r)
		}
	}
	if r := s.Do(bg, get("x")); r.Err != nil || r.Found || r.Value != nil {
		t.Errorf("get of an absent key: %+v", r)
	}
	var conflict *shard.ConflictError
	if r := s.Do(bg, write(cas("k", at(9, 9), "w"))); !errors.As(r.Err, &conflict) || conflict.Have != at(1, 0) || r.Receipt != (shard.Receipt{}) {
		t.Errorf("cas in conflict: %+v", r)
	}
	if r := s.Do(bg, write(cas("k", at(1, 0), "w"))); r.Err != nil || r.Receipt.Version != at(3, 0) {
		t.Errorf("cas: %+v", r)
	}
	r = s.Do(bg, write(txn(shard.Txn{If: []shard.Cond{shard.IfExists(bs("k"))}, Then: []shard.Op{shard.GetOp(bs("k"))}})))
	want := &shard.TxnResult{Succeeded: true, Receipt: shard.Receipt{Version: at(4, 0)}, Gets: []shard.TxnGet{{Found: true, Value: shard.Value{Bytes: bs("w"), Version: at(3, 0)}}}}
	if r.Err != nil || !reflect.DeepEqual(r.Txn, want) {
		t.Errorf("txn: %+v", r)
	}
	if r := s.Do(bg, &shard.Request{Shard: 7, Keyspace: 1, Kind: shard.KindStats}); r.Err != nil || r.Count < 0 {
		t.Errorf("stats: %+v", r)
	}
}

// Shows that what is wrong with a request is answered at the door, typed and
// definite, before anything is proposed.
func TestStoreRefuses(t *testing.T) {
	d := raft.Descriptor{Shard: 7, Keyspace: 1, Version: 3, Start: bs("c"), End: bs("m")}
	s, h := newStore(t, d)
	long := strings.Repeat("k", shard.MaxKeyBytes+1)
	epoch := &shard.EpochError{Shard: 7, Descriptors: []raft.Descriptor{d}}
	scan := func(start, end string, reverse bool) *shard.Request {
		return &shard.Request{Shard: 7, Keyspace: 1, Kind: shard.KindScan, Start: bs(start), End: bs(end), Reverse: reverse}
	}
	stale, nowhere, otherSpace := get("d"), get("d"), get("d")
	stale.DescVersion, nowhere.Shard, otherSpace.Keyspace = 2, 8, 2
	session := write(put("d", ""))
	session.Command.Session = &raft.SessionHeader{}
	wide := scan("c", "m", false)
	wide.MaxBytes = shard.MaxScanBytes + 1
	level := get("d")
	level.Consistency = 9
	for _, c := range []struct {
		name string
		req  *shard.Request
		want error
	}{
		{"no shard", &shard.Request{Kind: shard.KindGet, Key: bs("d")}, &shard.ArgumentError{Field: "shard", Reason: "the request names none"}},
		{"unknown kind", &shard.Request{Shard: 7, Kind: 99}, &shard.ArgumentError{Field: "kind", Reason: "this version does not know the kind of request"}},
		{"unknown level", level, &shard.ArgumentError{Field: "consistency", Reason: "this version does not know the level asked for"}},
		{"get of an empty key", get(""), &shard.ArgumentError{Field: "key", Reason: "it is empty; a key has at least one byte"}},
		{"get of a long key", get(long), &shard.LimitError{What: "bytes of a key", Limit: shard.MaxKeyBytes, Got: len(long)}},
		{"put of a long key", write(raft.Command{Op: shard.OpPut, Body: shard.AppendPut(nil, bs(long), nil)}), &shard.LimitError{What: "bytes of a key", Limit: shard.MaxKeyBytes, Got: len(long)}},
		{"put of a big value", write(raft.Command{Op: shard.OpPut, Body: shard.AppendPut(nil, bs("d"), make([]byte, shard.MaxValueBytes+1))}), &shard.LimitError{What: "bytes of a value", Limit: shard.MaxValueBytes, Got: shard.MaxValueBytes + 1}},
		{"scan with start after end", scan("e", "d", false), &shard.ArgumentError{Field: "range", Reason: `its start "e" is after its end "d"`}},
		{"scan of too many bytes", wide, &shard.LimitError{What: "bytes of a scan page", Limit: shard.MaxScanBytes, Got: shard.MaxScanBytes + 1}},
		{"a session without an id", session, &shard.ArgumentError{Field: "session", Reason: "the id is zero"}},
		{"an embedder's command", write(raft.Command{Op: shard.OpUser}), &shard.ArgumentError{Field: "operation", Reason: "this shard is served by the key-value machine, which does not have it"}},
		{"a shard that is not here", nowhere, &shard.EpochError{Shard: 8}},
		{"another keyspace", otherSpace, epoch},
		{"an outdated descriptor", stale, epoch},
		{"get outside", get("z"), epoch},
		{"put outside", write(put("b", "")), epoch},
		{"delete range outside", write(delRange("m", "n")), epoch},
		{"batch across the end", write(batchOf(shard.DeleteOp(bs("d")), shard.DeleteOp(bs("m")))), &shard.CrossShardError{At: bs("m")}},
		{"delete range across the start", write(delRange("a", "d")), &shard.CrossShardError{At: bs("c")}},
		{"scan that begins before", scan("b", "d", false), epoch},
		{"scan that begins behind", scan("m", "", false), epoch},
		{"reverse scan that begins behind", scan("c", "n", true), epoch},
		{"reverse scan from the end of the keyspace", scan("c", "", true), epoch},
		{"reverse scan that begins before", scan("a", "c", true), epoch},
	} {
		r := s.Do(bg, c.req)
		if !reflect.DeepEqual(r.Err, c.want) {
			t.Errorf("%s: got %v, want %v", c.name, r.Err, c.want)
		}
		if shard.OutcomeOf(r.Err) != shard.NotApplied {
			t.Errorf("%s: not definite", c.name)
		}
	}
	if h.index != 0 {
		t.Errorf("%d commands were proposed", h.index)
	}
}

// Shows how each error of the host reaches the client, and that only those that
// prove it say "not applied".
func TestStoreTranslatesErrors(t *testing.T) {
	s, h := newStore(t)
	d := h.descs[0]
	since := time.Unix(5, 0)
	for _, c := range []struct {
		err  error
		want error
		read error // nil: as for the write
	}{
		{err: &multiraft.NotLeaderError{Shard: 7, Leader: 2, Term: 4}, want: &shard.NotLeaderError{Shard: 7, Leader: 2, Addr: "node2:1", Term: 4, Descriptor: &d}},
		{err: &multiraft.NotLeaderError{Shard: 7, Term: 4}, want: &shard.NotLeaderError{Shard: 7, Term: 4, Descriptor: &d}},
		{err: &multiraft.NoQuorumError{Shard: 7, Down: []raft.NodeID{2, 3}, Since: since, Voters: 3}, want: &shard.NoQuorumError{Shard: 7, Down: []raft.NodeID{2, 3}, Since: since, Voters: 3}},
		{err: &multiraft.OverloadedError{RetryAfter: time.Second, Why: "x"}, want: &shard.OverloadedError{RetryAfter: time.Second, Why: "x"}},
		{err: &multiraft.TooLargeError{Shard: 7, Bytes: 9, Limit: 8}, want: &shard.LimitError{What: "bytes of a log entry", Limit: 8, Got: 9}},
		{err: &multiraft.RefusedError{Shard: 7, Err: errors.New("x")}, want: &shard.UnavailableError{Why: "the shard refused to take it in"}},
		{err: multiraft.ErrUnknownShard, want: &shard.EpochError{Shard: 7}},
		{err: multiraft.ErrDropped, want: &shard.UnavailableError{Why: "another leader's entry took its place in the log", Cause: multiraft.ErrDropped}},
		{err: multiraft.ErrClosed, want: shard.ErrClosed},
		{err: multiraft.ErrAmbiguous, want: &shard.AmbiguousError{Shard: 7, Why: "the node stopped or lost track of it before it was confirmed"}},
		{err: errors.New("new kind"), want: &shard.AmbiguousError{Shard: 7, Why: "new kind"}, read: &shard.UnavailableError{Why: "the read failed", Cause: errors.New("new kind")}},
	} {
		h.refuse = fmt.Errorf("wrapped: %w", c.err)
		if got := s.Do(bg, write(put("k", "v"))); !sameText(got.Err, c.want) || reflect.TypeOf(got.Err) != reflect.TypeOf(c.want) {
			t.Errorf("write, %v: got %#v", c.err, got.Err)
		} else if fmt.Sprint(shard.OutcomeOf(got.Err)) != fmt.Sprint(shard.OutcomeOf(c.want)) {
			t.Errorf("write, %v: outcome %v", c.err, shard.OutcomeOf(got.Err))
		}
		want := c.want
		if c.read != nil {
			want = c.read
		}
		if got := s.Do(bg, get("k")); !sameText(got.Err, want) || reflect.TypeOf(got.Err) != reflect.TypeOf(want) {
			t.Errorf("read, %v: got %#v", c.err, got.Err)
		}
	}
	h.refuse = fmt.Errorf("%w: shard 7: broken", multiraft.ErrFenced)
	if r := s.Do(bg, write(put("k", "v"))); shard.OutcomeOf(r.Err) != shard.NotApplied || !strings.Contains(r.Err.Error(), "fenced") {
		t.Errorf("fenced: %v", r.Err)
	}
}

func sameText(a, b error) bool {
	return a != nil && strings.ReplaceAll(a.Error(), "wrapped: ", "") == b.Error()
}

// Shows when the end of the caller's time is definite: before the hand-over, and
// for reads; and when it is not.
func TestStoreContextEnds(t *testing.T) {
	s, h := newStore(t)
	ended, cancel := context.WithCancel(bg)
	cancel()
	if r := s.Do(ended, write(put("k", "1"))); shard.OutcomeOf(r.Err) != shard.NotApplied || !errors.Is(r.Err, context.Canceled) || h.index != 0 {
		t.Errorf("ended before: %v", r.Err)
	}

	h.hold = true
	ctx, cancel := context.WithCancel(bg)
	answers := make(chan *shard.Response)
	go func() { answers <- s.Do(ctx, write(put("k", "2"))) }()
	<-h.holds
	cancel()
	r := <-answers
	if !errors.Is(r.Err, shard.ErrAmbiguous) || !errors.Is(r.Err, context.Canceled) || r.ID != 5 {
		t.Errorf("ended after the hand-over: %v", r.Err)
	}
	timed := write(put("k", "3"))
	timed.TimeoutNanos = int64(time.Millisecond)
	if r := s.Do(bg, timed); !errors.Is(r.Err, shard.ErrAmbiguous) || !errors.Is(r.Err, context.DeadlineExceeded) {
		t.Errorf("the request's own time ended: %v", r.Err)
	}
	read := get("k")
	read.TimeoutNanos = int64(time.Millisecond)
	if r := s.Do(bg, read); shard.OutcomeOf(r.Err) != shard.NotApplied || !errors.Is(r.Err, context.DeadlineExceeded) {
		t.Errorf("a read's time ended: %v", r.Err)
	}
	for range 10 { // the timers of calls that end in time do not end later ones
		h.mu.Lock()
		h.hold = false
		h.mu.Unlock()
		quick := write(put("q", "1"))
		quick.TimeoutNanos = int64(time.Millisecond)
		if r := s.Do(bg, quick); r.Err != nil && !errors.Is(r.Err, context.DeadlineExceeded) {
			t.Errorf("a quick write: %v", r.Err)
		}
		h.mu.Lock()
		h.hold = true
		h.mu.Unlock()
		slow := write(put("q", "2"))
		slow.TimeoutNanos = int64(20 * time.Millisecond)
		began := time.Now()
		if r := s.Do(bg, slow); !errors.Is(r.Err, context.DeadlineExceeded) || time.Since(began) < 20*time.Millisecond {
			t.Errorf("a slow write ended after %v: %v", time.Since(began), r.Err)
		}
	}
	h.release() // the late completions find their own calls, nobody else's
	if r := s.Do(bg, get("k")); r.Err != nil || string(r.Value.Bytes) != "3" {
		t.Errorf("afterwards: %+v", r)
	}
}

// Shows that a read is thrown away when the shard was cut or went away while it
// was read: the keys it did not find may live elsewhere by now.
func TestStoreReadChecksAfterwards(t *testing.T) {
	s, h := newStore(t)
	next := h.descs[0]
	next.Version, next.End = 2, bs("c")
	h.onRead = func() {
		h.mu.Lock()
		h.descs = []raft.Descriptor{next}
		h.mu.Unlock()
	}
	var epoch *shard.EpochError
	if r := s.Do(bg, get("k")); !errors.As(r.Err, &epoch) || epoch.Descriptors[0].Version != 2 || r.Found {
		t.Errorf("the shard was cut: %+v", r)
	}
	h.onRead = func() {
		h.mu.Lock()
		h.descs = nil
		h.mu.Unlock()
	}
	r := s.Do(bg, &shard.Request{ID: 9, Shard: 7, Keyspace: 1, Kind: shard.KindScan, End: bs("c")})
	if !errors.As(r.Err, &epoch) || len(epoch.Descriptors) != 0 || r.Pairs != nil || r.ID != 9 {
		t.Errorf("the shard went away: %+v", r)
	}
}

// Shows that a damaged record is an error of the read, not an absent key.
func TestStoreReadsDamagedRecord(t *testing.T) {
	s, h := newStore(t)
	b := h.e.NewBatch()
	b.Set(1, bs("k"), []byte{0xff, 1})
	if err := b.Commit(false); err != nil {
		t.Fatal(err)
	}
	b.Close()
	for _, req := range []*shard.Request{get("k"), {Shard: 7, Keyspace: 1, Kind: shard.KindScan}} {
		if r := s.Do(bg, req); !errors.Is(r.Err, shard.ErrBadRecord) {
			t.Errorf("%+v", r)
		}
	}
}

// Shows that a closed store and a closed engine refuse, definitely.
func TestStoreClosed(t *testing.T) {
	s, h := newStore(t)
	s.Close()
	s.Close()
	for _, req := range []*shard.Request{write(put("k", "v")), get("k")} {
		if r := s.Do(bg, req); r.Err != shard.ErrClosed {
			t.Errorf("got %v", r.Err)
		}
		s.DoAsync(req, shard.AnswerFunc(func(r *shard.Response) {
			if r.Err != shard.ErrClosed {
				t.Errorf("got %v", r.Err)
			}
		}))
	}
	if h.index != 0 {
		t.Error("something was proposed")
	}
	e := openEngine(t)
	s = NewStore(Options{Host: h, Engine: e})
	if err := e.Close(); err != nil {
		t.Fatal(err)
	}
	if r := s.Do(bg, get("k")); !errors.Is(r.Err, shard.ErrClosed) || errors.Is(r.Err, engine.ErrClosed) {
		t.Errorf("closed engine: %v", r.Err)
	}
}

// Shows that DoAsync answers every request exactly once, and that Close waits
// for its reads.
func TestStoreDoAsync(t *testing.T) {
	s, h := newStore(t)
	h.hold = true
	var mu sync.Mutex
	answers := map[uint64]*shard.Response{}
	answer := func(r *shard.Response) {
		mu.Lock()
		defer mu.Unlock()
		if answers[r.ID] != nil {
			t.Errorf("request %d was answered twice", r.ID)
		}
		answers[r.ID] = r
	}
	reqs := []*shard.Request{write(put("k", "v")), get("k"), get(""), get("k"), {Shard: 7, Keyspace: 1, Kind: shard.KindScan}, {Shard: 7, Keyspace: 1, Kind: shard.KindStats}}
	reqs[3].Consistency = shard.Local
	for i, r := range reqs {
		r.ID = uint64(i)
		s.DoAsync(r, shard.AnswerFunc(answer))
	}
	h.release()
	s.Close()
	mu.Lock()
	defer mu.Unlock()
	if len(answers) != len(reqs) {
		t.Fatalf("%d answers to %d requests", len(answers), len(reqs))
	}
	if answers[0].Err != nil || answers[1].Err != nil || string(answers[1].Value.Bytes) != "v" || answers[2].Err == nil || answers[3].Err != nil || len(answers[4].Pairs) != 1 || answers[5].Err != nil {
		t.Errorf("%+v", answers)
	}
	h.refuse = multiraft.ErrAmbiguous
}

// Shows that a host that completes a call twice, against its contract, cannot
// make the answer reach anybody twice or reach another caller.
func TestStoreDoubleCompletion(t *testing.T) {
	s, h := newStore(t)
	double := &doubleHost{fakeHost: h}
	s.host = double
	for i := range 50 {
		want := fmt.Sprint(i)
		if r := s.Do(bg, write(put("k", want))); r.Err != nil || r.Receipt.Index != raft.Index(i+1) {
			t.Fatalf("put %d: %+v", i, r)
		}
		double.again()
		if r := s.Do(bg, get("k")); r.Err != nil || string(r.Value.Bytes) != want {
			t.Fatalf("get %d: %+v", i, r)
		}
		double.again()
	}
}

type doubleHost struct {
	*fakeHost
	again func()
}

func (d *doubleHost) Propose(s raft.ShardID, c raft.Command, done func([]byte, raft.Index, uint32, error)) {
	d.again = func() { done(nil, 0, 0, multiraft.ErrClosed) }
	d.fakeHost.Propose(s, c, done)
}

func (d *doubleHost) ReadIndex(s raft.ShardID, done func(raft.Index, error)) {
	d.again = func() { done(0, multiraft.ErrClosed) }
	d.fakeHost.ReadIndex(s, done)
}

// Shows that many callers whose time ends at any moment get each their own answer.
func TestStoreConcurrent(t *testing.T) {
	s, _ := newStore(t)
	var wg sync.WaitGroup
	for g := range 8 {
		wg.Go(func() {
			key := fmt.Sprintf("key%d", g)
			last, unsure := "", false
			for i := range 100 {
				ctx, cancel := context.WithCancel(bg)
				if i%3 == 0 {
					go cancel()
				}
				val := fmt.Sprintf("%d.%d", g, i)
				r := s.Do(ctx, write(put(key, val)))
				cancel()
				switch shard.OutcomeOf(r.Err) {
				case shard.Applied:
					last, unsure = val, false
				case shard.MaybeApplied:
					unsure = true
				}
				if got := s.Do(bg, get(key)); got.Err != nil || (!unsure && last != "" && string(got.Value.Bytes) != last) {
					t.Errorf("%s: %+v, want %q", key, got, last)
				}
			}
		})
	}
	wg.Wait()
}

// BenchmarkDoPut measures the door over a host without Raft.
func BenchmarkDoPut(b *testing.B) {
	s, h := newStore(b)
	s.host = instantHost{h}
	c := put("key", strings.Repeat("x", 128))
	ctx, cancel := context.WithTimeout(bg, time.Hour)
	defer cancel()
	b.ReportAllocs()
	for b.Loop() {
		if r := s.Do(ctx, write(c)); r.Err != nil {
			b.Fatal(r.Err)
		}
	}
}

// instantHost completes writes without applying them.
type instantHost struct{ *fakeHost }

func (instantHost) Propose(_ raft.ShardID, _ raft.Command, done func([]byte, raft.Index, uint32, error)) {
	done(nil, 1, 0, nil)
}

// Shows that a read whose index arrives after Close leaves the engine alone,
// which may be closed by then.
func TestStoreClosedBeforeTheRead(t *testing.T) {
	s, h := newStore(t)
	h.hold = true
	got := make(chan *shard.Response)
	go func() { got <- s.Do(bg, get("k")) }()
	<-h.holds
	s.Close()
	h.release()
	if r := <-got; r.Err != shard.ErrClosed {
		t.Errorf("got %+v", r)
	}
}
