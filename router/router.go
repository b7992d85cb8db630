package router

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sync/singleflight"

	"github.com/flotillakv/flotilla/internal/mutants"
	"github.com/flotillakv/flotilla/multiraft/raft"
	"github.com/flotillakv/flotilla/shard"
)

// Router carries requests to the shards that can serve them. It owns no
// goroutine except one per catalog lookup under way, which Close ends and waits
// for, and one per call of a Pipeline that has to be tried again, for which Wait
// waits. All methods are safe for concurrent use.
//
// What is tried again, within the caller's deadline (or Options.Timeout):
// whatever certainly was not applied, and every read; what an overloaded node
// refused after the time it asked for, while not too many requests wait for that
// (Options.Patience). What is not: a write
// whose outcome is unknown, unless it is one of a Session. Not even a blind put,
// since another client may have written the key in the meantime and the second
// try would overwrite it. A shard without a quorum, the one with the ranges
// included, is reported at once, after its other replicas, asked once each, knew
// no better or did not answer.
type Router struct {
	o       Options
	table   Table
	source  atomic.Pointer[Source]
	flights singleflight.Group
	stats   counters
	near    Near         // the Sender, if it is one; nil: every read is a request
	patient atomic.Int64 // requests that wait because a node is overloaded
	waiting atomic.Int64 // requests between two rounds of tries

	mu struct { // guards the start of lookups against Close
		sync.Mutex
		closed bool
	}
	lookups sync.WaitGroup
	calls   sync.WaitGroup  // of pipelines, that are tried again
	ctx     context.Context // of lookups, which several requests may share
	cancel  context.CancelFunc
}

// Stats counts what a Router did since it was made.
type Stats struct {
	Requests  uint64 // requests taken
	Sends     uint64 // tries handed to the Sender
	Redirects uint64 // replies that corrected the table
	Waits     uint64 // waits between rounds of tries
	Lookups   uint64 // questions to the Source
	// TurnedAway counts requests that got *shard.OverloadedError without a wait,
	// since Options.Patience others waited.
	TurnedAway uint64
}

type counters struct{ requests, sends, redirects, waits, lookups, turnedAway, near atomic.Uint64 }

// New makes a router. It does nothing until it is asked.
func New(o Options) *Router {
	r := &Router{o: o.withDefaults()}
	r.near, _ = o.Sender.(Near)
	r.table.SetLimit(r.o.Ranges)
	r.ctx, r.cancel = context.WithCancel(context.Background())
	if o.Source != nil {
		r.SetSource(o.Source)
	}
	if o.Root != nil {
		r.table.Merge(*o.Root)
	}
	return r
}

// SetSource sets or replaces the source of ranges.
func (r *Router) SetSource(s Source) { r.source.Store(&s) }

// Table returns the router's table, so that its owner can add what it learns
// elsewhere: descriptors by Merge, leaders by SetLeader.
func (r *Router) Table() *Table { return &r.table }

// Stats returns the counters.
func (r *Router) Stats() Stats {
	c := &r.stats
	near := c.near.Load() // each a request and a try in one
	return Stats{near + c.requests.Load(), near + c.sends.Load(), c.redirects.Load(), c.waits.Load(), c.lookups.Load(), c.turnedAway.Load()}
}

// Close ends lookups under way and refuses new requests with shard.ErrClosed.
// Requests at a Sender end when the Sender lets them. It may be called again.
func (r *Router) Close() error {
	r.mu.Lock()
	r.mu.closed = true
	r.mu.Unlock()
	r.cancel()
	r.lookups.Wait()
	return nil
}

// Wait waits, after Close, for the calls of pipelines that are being tried again.
// They end by themselves once the Sender is closed and has answered.
func (r *Router) Wait() { r.calls.Wait() }

// beginCall counts a goroutine of a Pipeline in, unless the router is closed.
func (r *Router) beginCall() bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.mu.closed {
		return false
	}
	r.calls.Add(1)
	return true
}

// Do carries out a request on the one shard that holds its keys; it fills in
// the request's shard and version itself. A write whose keys lie in several
// shards is refused with *shard.CrossShardError. A scan answers for the first
// shard of its range (the last one when Reverse) and says by More and Resume
// where to go on. The response is never nil; its Err is nil or one of the
// errors of package shard, where a bare context error cannot occur.
func (r *Router) Do(ctx context.Context, q *shard.Request) *shard.Response {
	at, fit, err := aim(q)
	if err != nil {
		return q.Failed(err)
	}
	own := *q
	return r.run(ctx, &own, at, fit)
}

// place names a range by a key: the range that holds key or, if below is set,
// the one that holds the keys just below key (empty: the last range).
type place struct {
	key   []byte
	below bool
}

// fit adapts a request to the range it goes to, or refuses it. It returns the
// key at which a scan goes on behind the range, nil if nowhere.
type fit func(d *raft.Descriptor, q *shard.Request) (resume []byte, err error)

// aim tells where a request goes and how it fits there.
func aim(q *shard.Request) (place, fit, error) {
	switch q.Kind {
	case shard.KindGet:
		return place{key: q.Key}, nil, shard.CheckKeySize(q.Key)
	case shard.KindScan:
		err := shard.CheckBounds(q.Start, q.End)
		if q.Reverse {
			return place{key: q.End, below: true}, fitReverse, err
		}
		return place{key: q.Start}, fitForward, err
	case shard.KindWrite:
		var first *shard.Span
		n := 0
		err := shard.VisitSpans(q.Command, func(s shard.Span) error {
			if n++; first == nil {
				first = &s
			}
			return nil
		})
		switch {
		case err != nil:
			return place{}, nil, err
		case n == 1 && first.Point:
			return place{key: first.Start}, nil, nil
		}
		return place{key: first.Start}, fitCommand, nil
	case shard.KindStats:
		return place{key: q.Start}, nil, nil
	}
	return place{}, nil, &shard.ArgumentError{Field: "kind", Reason: "this version does not know the kind of request"}
}

// fitForward cuts a scan at the end of the range.
func fitForward(d *raft.Descriptor, q *shard.Request) ([]byte, error) {
	if len(d.End) > 0 && (len(q.End) == 0 || bytes.Compare(d.End, q.End) < 0) {
		q.End = d.End
		return d.End, nil
	}
	return nil, nil
}

// fitReverse cuts a scan at the start of the range.
func fitReverse(d *raft.Descriptor, q *shard.Request) ([]byte, error) {
	if bytes.Compare(q.Start, d.Start) < 0 {
		q.Start = d.Start
		return d.Start, nil
	}
	return nil, nil
}

// fitCommand refuses a command that reaches beyond the range.
func fitCommand(d *raft.Descriptor, q *shard.Request) ([]byte, error) {
	return nil, shard.CheckCommandSpan(d, q.Command)
}

// run is the retry loop. It owns q, except for its byte slices.
func (r *Router) run(ctx context.Context, q *shard.Request, at place, fit fit) *shard.Response {
	return r.runIn(ctx, q, at, fit, nil)
}

// runIn is run for a write of the session x, unless that is nil.
func (r *Router) runIn(ctx context.Context, q *shard.Request, at place, fit fit, x *Session) *shard.Response {
	r.stats.requests.Add(1)
	if err := ctx.Err(); err != nil {
		return q.Failed(&shard.UnavailableError{Why: "the context had ended before the request was sent", Cause: err})
	}
	start := r.o.Clock.Now()
	deadline, ok := ctx.Deadline()
	c := r.newChain(q, x)
	if c.stamp != nil {
		defer c.stamp.end()
	}
	var t attempt
	var first *attempt
	if !ok {
		deadline = start.Add(r.o.Timeout)
		left := r.o.Timeout
		if fit == nil && r.tryHere(ctx, q, at, &c, deadline, &t) {
			if t.answered && t.err == nil {
				resp, _ := r.settle(ctx, q, at, &c, &t)
				return resp
			}
			first = &t
			left = deadline.Sub(r.o.Clock.Now())
		}
		var cancel context.CancelFunc
		ctx, cancel = r.o.Clock.WithTimeout(ctx, left)
		defer cancel()
	}
	return r.goOn(ctx, q, at, fit, &c, start, deadline, first)
}

// tryHere makes the first try of a request if its shard is led by this process's
// own store: that keeps to the time the request states, so that ctx needs no
// deadline, which would cost more than the request. It reports whether t is a try.
func (r *Router) tryHere(ctx context.Context, q *shard.Request, at place, c *chain, deadline time.Time, t *attempt) bool {
	if r.near == nil || c.local || c.stamp != nil {
		return false
	}
	route, ok := r.lookup(q.Keyspace, at)
	if !ok {
		return false
	}
	if leader, _ := route.Leader(); leader == 0 || leader != r.o.Self {
		return false
	}
	if _, _, ok := r.prepare(ctx, q, at, nil, c, deadline, nil, t); !ok {
		return false
	}
	if t.node == r.o.Self { // else leadership has just moved
		r.stats.sends.Add(1)
		t.resp, t.err = r.send(ctx, t.node, t.req)
		t.answered = true
	}
	return true
}

// newChain begins the memory of a request's tries.
func (r *Router) newChain(q *shard.Request, x *Session) chain {
	c := chain{
		write: q.Kind == shard.KindWrite, local: q.Kind != shard.KindWrite && (q.Consistency == shard.Local || q.Consistency == shard.Follower),
		forward: r.o.Forward, self: r.o.Self, maxRedirects: r.o.MaxRedirects,
	}
	if x != nil {
		c.stamp = &stamp{x: x}
	}
	return c
}

// goOn tries until the request is settled or its time is over. first is a try
// that was made or prepared already; nil: none.
func (r *Router) goOn(ctx context.Context, q *shard.Request, at place, fit fit, c *chain, start, deadline time.Time, first *attempt) *shard.Response {
	for {
		resp, wait, last := r.round(ctx, q, at, fit, c, deadline, first)
		first = nil
		if resp != nil {
			return resp
		}
		leave, ok := r.queueUp(last)
		if !ok {
			return q.Failed(c.stamp.honest(0, last))
		}
		if wait > 0 { // asked for: do not come back all at the same time
			wait += time.Duration(r.o.Rand() % uint64(wait/4+1))
		}
		wait = max(wait, backoff(c.waits, r.o.Rand()), apart(r.waiting.Add(1), r.o.Rand()))
		c.endRound()
		r.stats.waits.Add(1)
		now := r.o.Clock.Now()
		cause := ctx.Err()
		switch {
		case cause != nil:
		case wait >= deadline.Sub(now):
			cause = context.DeadlineExceeded
		default:
			cause = r.o.Clock.Sleep(ctx, wait)
		}
		r.waiting.Add(-1)
		leave()
		if cause != nil {
			if c.stamp == nil {
				last = definite(last)
			}
			return q.Failed(&gaveUpError{last: c.stamp.honest(0, last), tries: c.tries, took: now.Sub(start), cause: cause})
		}
	}
}

// queueUp lets a request wait for an overloaded node, if not too many do: those
// beyond get their error at once, which costs nobody anything. leave is to be
// called after the wait. A wait for anything else is not counted.
func (r *Router) queueUp(last error) (leave func(), ok bool) {
	if !isOverloaded(last) || mutants.On("S19-patience") {
		return func() {}, true
	}
	if r.patient.Add(1) > int64(r.o.Patience) {
		r.patient.Add(-1)
		r.stats.turnedAway.Add(1)
		return nil, false
	}
	return func() { r.patient.Add(-1) }, true
}

func isOverloaded(err error) bool {
	if _, busy := err.(*shard.OverloadedError); busy {
		return true
	}
	var busy *shard.OverloadedError
	return errors.As(err, &busy)
}

// noPatience reports whether a request that was refused with err would have to wait
// where enough others do; then it has been turned away.
func (r *Router) noPatience(err error) bool {
	if _, busy := err.(*shard.OverloadedError); !busy || r.patient.Load() < int64(r.o.Patience) || mutants.On("S19-patience") {
		return false
	}
	r.stats.turnedAway.Add(1)
	return true
}

// attempt is one try of a request: what is sent and to whom, and what came of it.
type attempt struct {
	route  Route
	req    *shard.Request
	node   raft.NodeID
	relay  bool   // node shall forward it
	resume []byte // where a scan goes on behind the range
	// answered: resp and err are the outcome, as send returns them.
	answered bool
	resp     *shard.Response
	err      error
}

// round asks nodes one after the other until one of them settles the request
// (resp is set), or all were asked, or one asks for a pause (resp is nil, last
// is the error to report if there is no time for another round). The round
// begins with first, unless that is nil.
func (r *Router) round(ctx context.Context, q *shard.Request, at place, fit fit, c *chain, deadline time.Time, first *attempt) (resp *shard.Response, wait time.Duration, last error) {
	for {
		t := first
		if first = nil; t == nil {
			t = new(attempt)
			if resp, last, ok := r.prepare(ctx, q, at, fit, c, deadline, last, t); !ok {
				return resp, 0, last
			}
		}
		if !t.answered {
			r.stats.sends.Add(1)
			t.resp, t.err = r.send(ctx, t.node, t.req)
		}
		if resp, v := r.settle(ctx, q, at, c, t); resp != nil {
			return resp, 0, nil
		} else if v.act == actWait || ctx.Err() != nil {
			return nil, v.after, t.err
		}
		last = t.err
	}
}

// prepare makes the next try of a round: it finds the range, cuts the request to
// fit, numbers a session's write and picks the node. If there is none to make, ok
// is false, and resp and last are what the round returns. last is the error of
// the try before.
func (r *Router) prepare(ctx context.Context, q *shard.Request, at place, fit fit, c *chain, deadline time.Time, last error, t *attempt) (_ *shard.Response, _ error, ok bool) {
	route, err := r.find(ctx, q.Keyspace, at)
	if err != nil {
		if retryLookup(err) {
			c.tries++
			return nil, err, false
		}
		return q.Failed(c.stamp.honest(0, err)), nil, false
	}
	t.route = route
	return r.prepareAt(ctx, q, at, fit, c, deadline.Sub(r.o.Clock.Now()), last, t)
}

// prepareAt is prepare for the range t.route, with the time that is left.
func (r *Router) prepareAt(ctx context.Context, q *shard.Request, at place, fit fit, c *chain, left time.Duration, last error, t *attempt) (_ *shard.Response, _ error, ok bool) {
	route := t.route
	var err error
	try := q
	if fit != nil || c.tries > 0 || c.stamp != nil { // every try its own: a sender may still read an earlier one
		again := *q
		try = &again
	}
	try.Shard, try.DescVersion, try.Hop = route.Desc.Shard, route.Desc.Version, shard.MaxHops
	try.TimeoutNanos = int64(max(left, 1))
	t.req = try
	if fit != nil {
		if t.resume, err = fit(route.Desc, try); err != nil {
			return q.Failed(c.stamp.honest(route.Desc.Shard, err)), nil, false
		}
	}
	if c.stamp != nil {
		if try.Command.Session, err = c.stamp.header(ctx, route.Desc.Shard, at.key); err != nil {
			return q.Failed(c.stamp.honest(route.Desc.Shard, err)), nil, false
		}
	}
	leader, _ := route.Leader()
	if leader == 0 || c.local {
		c.spread(r.o.Rand)
	}
	if t.node, t.relay, ok = c.pick(route.Desc, leader); !ok {
		if c.noQuorum != nil {
			if c.stamp != nil && c.stamp.unknown { // it may come back in time to tell
				return nil, c.noQuorum, false
			}
			return q.Failed(c.noQuorum), nil, false
		}
		if c.foreign { // every replica disowns the range: ask the source again
			r.table.Evict(route)
		}
		if last == nil {
			last = &shard.UnavailableError{Why: fmt.Sprintf("shard %d has no replica to ask", route.Desc.Shard)}
		}
		return nil, last, false
	}
	if t.relay {
		try.Hop = 0
	}
	return nil, nil, true
}

// settle takes in the outcome of a try. The response is the request's if that
// ends with it; else it is nil, and the verdict says how to go on.
func (r *Router) settle(ctx context.Context, q *shard.Request, at place, c *chain, t *attempt) (*shard.Response, verdict) {
	if t.err == nil {
		if !t.relay && !c.local {
			t.route.ConfirmLeader(t.node)
		}
		if t.resume != nil && !t.resp.More {
			t.resp.More, t.resp.Resume = true, t.resume
		}
		t.resp.ID = q.ID
		return t.resp, verdict{}
	}
	id := t.route.Desc.Shard
	v := c.judge(t.node, t.err, r.heal(q.Keyspace, t.route, at, t.node, t.err))
	switch {
	case v.act == actStop:
		return q.Failed(c.stamp.honest(id, final(t.err, c.write, id))), v
	case ctx.Err() != nil && c.noQuorum != nil:
		// Says more than whoever else could not be reached.
		return q.Failed(c.stamp.honest(id, c.noQuorum)), v
	}
	return nil, v
}

// spread draws where the search for a replica begins, once per chain.
func (c *chain) spread(random func() uint64) {
	if c.offset == 0 {
		c.offset = 1 + int(random()>>1%(1<<20))
	}
}

// send makes one try. A response that carries an error comes back as that error.
func (r *Router) send(ctx context.Context, node raft.NodeID, q *shard.Request) (*shard.Response, error) {
	resp, err := r.o.Sender.Send(ctx, node, q)
	return outcome(q, resp, err)
}

// outcome is what a Sender answered, with the error of a response as error.
func outcome(q *shard.Request, resp *shard.Response, err error) (*shard.Response, error) {
	switch {
	case errors.Is(err, shard.ErrClosed): // of the sender itself, unlike one in a response
		return nil, senderClosedError{}
	case err != nil:
		return nil, err
	case resp == nil:
		return nil, &shard.AmbiguousError{Shard: q.Shard, Why: "the answer was empty"}
	}
	return resp, resp.Err
}

// senderClosedError is shard.ErrClosed to the caller, but no reason to ask
// another node.
type senderClosedError struct{}

func (senderClosedError) Error() string { return shard.ErrClosed.Error() }
func (senderClosedError) Unwrap() error { return shard.ErrClosed }

// definite returns the last error of a request that was given up between two
// tries. Only reads are tried again after an unknown outcome, and of a read
// there is nothing to wonder about.
func definite(last error) error {
	if errors.Is(last, shard.ErrAmbiguous) {
		return &shard.UnavailableError{Why: "no answer came"}
	}
	return last
}

// final gives an error that ends a request the form that tells its outcome: a
// bare context error says nothing about it.
func final(err error, write bool, id raft.ShardID) error {
	if shard.OutcomeOf(err) == shard.NotApplied || errors.Is(err, shard.ErrAmbiguous) {
		return err
	}
	cause := context.DeadlineExceeded
	switch {
	case errors.Is(err, context.Canceled):
		cause = context.Canceled
	case !errors.Is(err, context.DeadlineExceeded):
		return err
	}
	if write {
		return &shard.AmbiguousError{Shard: id, Why: "the caller stopped waiting for the answer", Cause: cause}
	}
	return &shard.UnavailableError{Why: "no answer came in time", Cause: cause}
}

// heal takes what an error reply says about ranges and leaders into the table,
// and reports whether the range at the request's place is another one now.
func (r *Router) heal(keyspace uint32, route Route, at place, node raft.NodeID, err error) bool {
	if _, busy := err.(*shard.OverloadedError); busy {
		return false
	}
	var (
		notLeader   *shard.NotLeaderError
		epoch       *shard.EpochError
		noQuorum    *shard.NoQuorumError
		unavailable *shard.UnavailableError
	)
	switch {
	case errors.As(err, &notLeader):
		r.stats.redirects.Add(1)
		if notLeader.Descriptor != nil {
			r.table.Merge(*notLeader.Descriptor)
		}
		route.DropLeader(node)
		now, ok := r.lookup(keyspace, at)
		if ok && now.Desc.Shard == notLeader.Shard && notLeader.Leader != node {
			now.SetLeader(notLeader.Leader, notLeader.Term)
		}
	case errors.As(err, &epoch):
		r.stats.redirects.Add(1)
		r.table.Merge(epoch.Descriptors...)
	case errors.As(err, &noQuorum), errors.As(err, &unavailable), errors.Is(err, shard.ErrClosed):
		route.DropLeader(node)
		return false
	default:
		return false
	}
	now, ok := r.lookup(keyspace, at)
	return !ok || now.e != route.e
}

// lookup finds a place in the table.
func (r *Router) lookup(keyspace uint32, at place) (Route, bool) {
	if at.below {
		return r.table.LookupBefore(keyspace, at.key)
	}
	return r.table.Lookup(keyspace, at.key)
}
