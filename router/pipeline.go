package router

import (
	"bytes"
	"context"
	"errors"
	"sync"
	"sync/atomic"
	"time"

	"github.com/flotillakv/flotilla/internal/invariants"
	"github.com/flotillakv/flotilla/internal/mutants"
	"github.com/flotillakv/flotilla/multiraft/raft"
	"github.com/flotillakv/flotilla/shard"
)

// ErrPipelineFull says that as many calls of a pipeline are under way, or wait to
// be received from Done, as it may hold. The call was not started.
var ErrPipelineFull = errors.New("flotilla: the pipeline is full: receive from Done first")

// Bounds of a pipeline's depth.
const (
	DefaultPipelineDepth = 256
	MaxPipelineDepth     = 1 << 20
)

// Pipeline lets one caller have many operations under way at a time, without a
// goroutine for each. A method starts an operation and returns; the Call comes
// out of Done when it is over, with the result and the error that the same method
// of a store that waits would have returned.
//
// A pipeline holds at most Depth calls, from their start until they are received
// from Done; a method that would start one more returns ErrPipelineFull. So it
// never blocks, and nobody who completes a call ever waits for its receiver.
//
// Calls that are under way at the same time are concurrent, as those of several
// goroutines would be: they may take effect in any order, also those of one key.
// A call that is started after an earlier one was received sees what that did.
// Operations that have to happen in order belong into one batch or transaction.
//
// The context given at the start bounds the call as a whole, like that of a call
// that waits: when it ends, a write that was handed to its shard ends with
// shard.ErrAmbiguous. A pipeline watches one context at a time cheaply; each
// change to another one costs about as much as starting a call.
//
// The first try of a call needs no goroutine of its own if its range is in the
// router's table and the Sender is a Starter. What comes back unsettled (another
// leader, an overloaded node) is tried again on a goroutine, as long as that
// takes; so is a session's write beyond session.Window of its shard, and a write
// over several shards. All methods are safe for concurrent use.
type Pipeline struct {
	s       Space
	depth   int
	done    chan *Call // room for depth
	starter Starter    // nil: each call takes a goroutine
	ctx     context.Context
	cancel  context.CancelFunc // at Close
	idle    chan struct{}      // closed when the pipeline is closed and done has all its calls

	mu struct {
		sync.Mutex // guards what follows; held briefly
		// under counts the calls that were started and are not in done.
		// Invariant: under + len(done) <= depth.
		under  int
		list   Call // sentinel of the calls under way, the oldest first
		closed bool
		watch  *watch    // of the latest call; nil: its context cannot end
		free   []*flight // for the next calls; at most maxFreeFlights
		timer  *time.Timer
		armed  bool
	}
}

// Call is an operation of a Pipeline. Its fields may be read once it was received
// from Done, and are the receiver's.
type Call struct {
	// Tag is what the caller gave to tell its calls apart.
	Tag any
	// Err is nil, or what the method that waits would have returned.
	Err error
	// Receipt is that of a write.
	Receipt shard.Receipt
	// Value is what a get found. Its bytes belong to the receiver.
	Value shard.Value
	// Txn is what became of a transaction.
	Txn shard.TxnResult

	p          *Pipeline
	prev, next *Call   // in the pipeline's list
	flight     *flight // nil: it is over; guarded by Pipeline.mu
	late       uint32  // atomic, 1: it was to be given up, maybe before it was sent
	gaveUp     bool    // maybe before flight.conn was known; guarded by Pipeline.mu
}

// flight is the inner part of a Call, which the Sender answers. It is used again
// for another call when the Sender has answered it, and only then: nobody else
// keeps it, except under Pipeline.mu by its Call.
type flight struct {
	call     *Call
	ctx      context.Context
	watch    *watch
	q        shard.Request
	at       place
	fit      fit
	op       callOp
	parts    *shard.Batch // to be applied shard by shard if it spans several
	chain    chain
	stamp    stamp
	begun    time.Time
	deadline time.Time
	timed    bool            // deadline is not that of the context
	try      attempt         // the first one
	state    atomic.Int32    // callLaunching, callSent, callOver
	conn     shard.Abandoner // where it is under way; guarded by Pipeline.mu
	id       uint64
}

type callOp uint8

const (
	callGet callOp = iota
	callWrite
	callTxn
)

// The states of a call. Whoever moves it to callOver owns it from then on.
const (
	callLaunching = iota // its starter works on it
	callSent             // its first try is at the Sender
	callOver             // that was answered, or nobody waits for it any more
)

// maxFreeFlights bounds what a pipeline keeps for its next calls.
const maxFreeFlights = 1024

// watch is a context that ends the calls started with it.
type watch struct {
	ctx  context.Context
	done <-chan struct{}
	stop func() bool
	refs int // calls under way; guarded by Pipeline.mu
}

// NewPipeline returns a pipeline of at most depth calls. Zero: DefaultPipelineDepth.
// It costs nothing while no call is under way, and must be closed.
func (s Space) NewPipeline(depth int) *Pipeline {
	if depth <= 0 {
		depth = DefaultPipelineDepth
	}
	depth = min(depth, MaxPipelineDepth)
	p := &Pipeline{s: s, depth: depth, done: make(chan *Call, depth), idle: make(chan struct{})}
	p.starter, _ = s.r.o.Sender.(Starter)
	p.ctx, p.cancel = context.WithCancel(context.Background())
	p.mu.list.prev, p.mu.list.next = &p.mu.list, &p.mu.list
	return p
}

// Done hands out each call that was started, once, when it is over. It is closed
// when the pipeline is closed and every call has been handed out.
func (p *Pipeline) Done() <-chan *Call { return p.done }

// Depth returns how many calls the pipeline can hold.
func (p *Pipeline) Depth() int { return p.depth }

// Pending returns how many calls were started and have not been received from
// Done yet. A caller that alone starts and receives may wait on Done if it is not
// zero, and start a call without an error if it is below Depth.
func (p *Pipeline) Pending() int {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.mu.under + len(p.done)
}

// Close refuses further calls with shard.ErrClosed, ends those under way as if
// their contexts had been cancelled, and returns when all of them can be received
// from Done, which is closed. It is idempotent and leaves no goroutine.
func (p *Pipeline) Close() error {
	p.mu.Lock()
	if !p.mu.closed {
		p.mu.closed = true
		p.endIfIdleLocked()
		if p.mu.watch != nil {
			p.mu.watch.stop()
		}
		if p.mu.timer != nil {
			p.mu.timer.Stop()
		}
	}
	calls := p.chooseLocked(func(*Call) bool { return true })
	p.mu.Unlock()
	p.cancel()
	for _, c := range calls {
		c.abandon(p.ctx)
	}
	<-p.idle
	return nil
}

// endIfIdleLocked closes Done once nothing can come any more.
func (p *Pipeline) endIfIdleLocked() {
	if p.mu.closed && p.mu.under == 0 {
		close(p.done)
		close(p.idle)
	}
}

// chooseLocked lists the calls under way for which f holds.
func (p *Pipeline) chooseLocked(f func(*Call) bool) (out []*Call) {
	for c := p.mu.list.next; c != &p.mu.list; c = c.next {
		if f(c) {
			out = append(out, c)
		}
	}
	return out
}

// Get starts a read of key. The call's Err is shard.ErrNotFound if there is none.
func (p *Pipeline) Get(ctx context.Context, key []byte, how shard.Consistency, tag any) error {
	err := shard.CheckKeySize(key)
	if err == nil && how == shard.Linearizable {
		if v, found, ok := p.s.readNear(ctx, key); ok {
			return p.startOver(tag, v, found)
		}
	}
	if err == nil {
		key = bytes.Clone(key)
	}
	return p.start(ctx, tag, callGet, shard.Request{Kind: shard.KindGet, Consistency: how, Key: key}, place{key: key}, nil, nil, err)
}

// Put starts a write of value under key.
func (p *Pipeline) Put(ctx context.Context, key, value []byte, tag any) error {
	cmd, err := shard.PutCommand(key, value)
	return p.startPoint(ctx, tag, key, cmd, err)
}

// Delete starts the removal of key.
func (p *Pipeline) Delete(ctx context.Context, key []byte, tag any) error {
	cmd, err := shard.DeleteCommand(key)
	return p.startPoint(ctx, tag, key, cmd, err)
}

// CAS starts a write of value under key, to take effect if the key's version is want.
func (p *Pipeline) CAS(ctx context.Context, key []byte, want shard.Version, value []byte, tag any) error {
	cmd, err := shard.CASCommand(key, want, value)
	return p.startPoint(ctx, tag, key, cmd, err)
}

// startPoint starts a write of one key.
func (p *Pipeline) startPoint(ctx context.Context, tag any, key []byte, cmd raft.Command, err error) error {
	if err == nil && !mutants.On("F6d") {
		key = pointKey(cmd) // the slice given is the caller's again
	}
	return p.start(ctx, tag, callWrite, shard.Request{Kind: shard.KindWrite, Command: cmd}, place{key: key}, nil, nil, err)
}

// pointKey returns the key of a checked command of one key, as a part of it.
func pointKey(cmd raft.Command) (key []byte) {
	var err error
	switch cmd.Op {
	case shard.OpPut:
		key, _, err = shard.DecodePut(cmd.Body)
	case shard.OpDelete:
		key, err = shard.DecodeDelete(cmd.Body)
	case shard.OpCAS:
		key, _, _, err = shard.DecodeCAS(cmd.Body)
	}
	invariants.Must(key != nil && err == nil, "a command of %v was made without a key: %v", cmd.Op, err)
	return key
}

// DeleteRange starts the removal of the keys of [start, end); see Space.DeleteRange.
func (p *Pipeline) DeleteRange(ctx context.Context, start, end []byte, nonAtomic bool, tag any) error {
	q := shard.Request{Kind: shard.KindWrite}
	var err error
	q.Command, err = shard.DeleteRangeCommand(start, end)
	var parts *shard.Batch
	if nonAtomic && err == nil {
		parts = new(shard.Batch)
		parts.DeleteRange(start, end)
	}
	return p.start(ctx, tag, callWrite, q, place{key: bytes.Clone(start)}, fitCommand, parts, err)
}

// Write starts the application of a batch, which must not be changed until the
// call was received; see Space.Write.
func (p *Pipeline) Write(ctx context.Context, b *shard.Batch, nonAtomic bool, tag any) error {
	q := shard.Request{Kind: shard.KindWrite}
	var at place
	var parts *shard.Batch
	var err error
	if q.Command, err = b.Command(); err == nil {
		for o := range b.Ops() {
			at.key = o.Key
			break
		}
		if nonAtomic {
			parts = b
		}
	}
	return p.start(ctx, tag, callWrite, q, at, fitCommand, parts, err)
}

// Txn starts a transaction.
func (p *Pipeline) Txn(ctx context.Context, t shard.Txn, tag any) error {
	q := shard.Request{Kind: shard.KindWrite}
	var at place
	var fit fit
	var err error
	if q.Command, err = t.Command(); err == nil {
		at, fit, err = aim(&q)
	}
	return p.start(ctx, tag, callTxn, q, at, fit, nil, err)
}

// Fail starts a call that ends with err.
func (p *Pipeline) Fail(ctx context.Context, err error, tag any) error {
	return p.start(ctx, tag, callWrite, shard.Request{Kind: shard.KindWrite}, place{}, nil, nil, err)
}

// startOver takes in a call that is over already: a get that was read here.
func (p *Pipeline) startOver(tag any, v shard.Value, found bool) error {
	c := &Call{Tag: tag, Value: v}
	if !found {
		c.Err = shard.ErrNotFound
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if err := p.roomLocked(); err != nil {
		return err
	}
	p.handOutLocked(c)
	return nil
}

// start takes a call in and makes its first try. bad is what is wrong with its
// arguments; the call then ends with it.
func (p *Pipeline) start(ctx context.Context, tag any, op callOp, q shard.Request, at place, fit fit, parts *shard.Batch, bad error) error {
	r := p.s.r
	c := &Call{Tag: tag, p: p}
	f, err := p.enter(ctx, c, r.o.Clock.Now())
	if err != nil {
		return err
	}
	f.op, f.q, f.at, f.fit, f.parts = op, q, at, fit, parts
	f.q.Keyspace = p.s.id
	if bad != nil {
		f.finish(f.q.Failed(bad), false)
		return nil
	}
	r.stats.requests.Add(1)
	if err := ctx.Err(); err != nil {
		f.finish(f.q.Failed(&shard.UnavailableError{Why: "the context had ended before the request was sent", Cause: err}), false)
		return nil
	}
	f.chain = r.newChain(&f.q, nil)
	if p.s.session != nil && op != callGet {
		f.stamp.x = p.s.session
		f.chain.stamp = &f.stamp
	}
	f.launch()
	return nil
}

// enter counts a call in and gives it a flight.
func (p *Pipeline) enter(ctx context.Context, c *Call, now time.Time) (*flight, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if err := p.roomLocked(); err != nil {
		return nil, err
	}
	var f *flight
	if n := len(p.mu.free); n > 0 {
		f, p.mu.free[n-1] = p.mu.free[n-1], nil
		p.mu.free = p.mu.free[:n-1]
	} else {
		f = new(flight)
	}
	c.flight, f.call, f.ctx, f.begun = f, c, ctx, now
	deadline, has := ctx.Deadline()
	if f.deadline, f.timed = deadline, !has; !has {
		f.deadline = now.Add(p.s.r.o.Timeout)
	}
	p.mu.under++
	c.prev, c.next = p.mu.list.prev, &p.mu.list
	c.prev.next, c.next.prev = c, c
	p.watchLocked(f)
	if f.timed && !p.mu.armed {
		p.armLocked(f.deadline.Sub(now))
	}
	return f, nil
}

// roomLocked returns nil if one more call can be started.
func (p *Pipeline) roomLocked() error {
	switch {
	case p.mu.closed:
		return shard.ErrClosed
	case p.mu.under+len(p.done) >= p.depth && !mutants.On("S19-pipeline"):
		return ErrPipelineFull
	}
	return nil
}

// handOutLocked puts a call that is over, and not counted in under, into Done.
func (p *Pipeline) handOutLocked(c *Call) {
	select {
	case p.done <- c: // there is room: see under
	default:
		invariants.Must(mutants.On("S19-pipeline"), "a pipeline of %d calls holds more", p.depth)
	}
}

// watchLocked lets the end of its context end the call.
func (p *Pipeline) watchLocked(f *flight) {
	done := f.ctx.Done()
	w := p.mu.watch
	if w != nil && w.done != done {
		if p.mu.watch = nil; w.refs == 0 { // else the last call under way stops it
			w.stop()
		}
		w = nil
	}
	if done == nil {
		return
	}
	if w == nil {
		w = &watch{ctx: f.ctx, done: done}
		w.stop = context.AfterFunc(w.ctx, func() { p.ended(w) })
		p.mu.watch = w
	}
	w.refs++
	f.watch = w
}

// ended gives up the calls of a context that is over.
func (p *Pipeline) ended(w *watch) {
	p.mu.Lock()
	calls := p.chooseLocked(func(c *Call) bool { return c.flight.watch == w })
	p.mu.Unlock()
	for _, c := range calls {
		c.abandon(w.ctx)
	}
}

// armLocked lets expire run after d. One timer serves all calls: those that the
// router's own timeout bounds are in the list in the order of their deadlines.
func (p *Pipeline) armLocked(d time.Duration) {
	if p.mu.armed = true; p.mu.timer == nil {
		p.mu.timer = time.AfterFunc(d, p.expire)
		return
	}
	p.mu.timer.Reset(d)
}

// expire gives up the calls whose time is over.
func (p *Pipeline) expire() {
	p.mu.Lock()
	p.mu.armed = false
	now := p.s.r.o.Clock.Now()
	calls := p.chooseLocked(func(c *Call) bool {
		if !c.flight.timed {
			return false
		}
		left := c.flight.deadline.Sub(now)
		if left > 0 && !p.mu.armed && !p.mu.closed {
			p.armLocked(left)
		}
		return left <= 0
	})
	p.mu.Unlock()
	for _, c := range calls {
		c.expire(now)
	}
}

// expire gives the call up because its time is over.
func (c *Call) expire(now time.Time) {
	ctx, cancel := context.WithDeadline(context.Background(), now)
	defer cancel()
	c.abandon(ctx)
}

// launch makes the first try without waiting, if it can.
func (f *flight) launch() {
	c, ctx := f.call, f.ctx // f may be another call's once it was sent
	p, r := c.p, c.p.s.r
	route, ok := r.lookup(f.q.Keyspace, f.at)
	if p.starter == nil || !ok || mutants.On("H9b") {
		f.goOn(nil)
		return
	}
	if st := f.chain.stamp; st != nil {
		if f.fit != nil { // a write that is refused here gets no number
			q := f.q
			if _, err := f.fit(route.Desc, &q); err != nil {
				f.refused(f.q.Failed(err))
				return
			}
		}
		h, _, err := st.x.tryBegin(route.Desc.Shard, f.at.key)
		switch {
		case err != nil:
			f.finish(f.q.Failed(err), false)
			return
		case h == nil: // the window is full: begin waits
			f.goOn(nil)
			return
		}
		st.h, st.ahead = h, true
	}
	f.try.route = route
	resp, _, ok := r.prepareAt(f.ctx, &f.q, f.at, f.fit, &f.chain, f.deadline.Sub(f.begun), nil, &f.try)
	switch {
	case ok:
	case resp != nil:
		f.refused(resp)
		return
	default:
		f.goOn(nil)
		return
	}
	f.state.Store(callSent)
	conn, id, ok := p.starter.Start(f.try.node, f.try.req, f)
	if !ok {
		if f.state.CompareAndSwap(callSent, callOver) {
			f.goOn(&f.try)
		}
		return
	}
	r.stats.sends.Add(1)
	if conn != nil {
		p.mu.Lock()
		if c.flight != nil {
			f.conn, f.id = conn, id
		}
		gaveUp := c.gaveUp
		p.mu.Unlock()
		if gaveUp {
			conn.Abandon(id)
		}
	}
	if atomic.LoadUint32(&c.late) == 0 {
		return
	}
	// Whoever looked for calls to give up before this one was sent passed it over.
	switch {
	case ctx.Err() != nil:
		c.abandon(ctx)
	case p.ctx.Err() != nil:
		c.abandon(p.ctx)
	default:
		c.expire(r.o.Clock.Now())
	}
}

// refused ends a call that was not sent, unless it may be cut into parts.
func (f *flight) refused(resp *shard.Response) {
	if f.parts != nil && isCross(resp.Err) {
		f.goOn(nil)
		return
	}
	f.finish(resp, false)
}

func isCross(err error) bool {
	var cross *shard.CrossShardError
	return errors.As(err, &cross)
}

// Answered is the Sender's word on the first try. It may run on a loop's goroutine.
func (f *flight) Answered(resp *shard.Response, err error) {
	if !f.state.CompareAndSwap(callSent, callOver) {
		return // nobody waits for it any more
	}
	r, t := f.call.p.s.r, &f.try
	t.answered = true
	t.resp, t.err = outcome(t.req, resp, err)
	if r.noPatience(t.err) { // as goOn would find, on a goroutine
		f.finish(f.q.Failed(f.chain.stamp.honest(0, t.err)), true)
		return
	}
	if t.err != nil && !f.chain.ends(t.err) {
		f.goOn(t)
		return
	}
	resp, _ = r.settle(f.ctx, &f.q, f.at, &f.chain, t)
	f.finish(resp, true)
}

// ends reports whether judge would stop at err, which teaches heal nothing.
func (c *chain) ends(err error) bool {
	switch err.(type) {
	case *shard.AmbiguousError:
		return c.write && c.stamp == nil && !mutants.On("F9")
	case *shard.ConflictError, *shard.LimitError, *shard.ArgumentError, *shard.ResultGoneError, *shard.SessionExpiredError:
		return true
	}
	return err == error(senderClosedError{})
}

// abandon ends the call if its first try is still under way. ctx says why, and is over.
func (c *Call) abandon(ctx context.Context) {
	c.p.mu.Lock()
	f := c.flight
	if f == nil {
		c.p.mu.Unlock()
		return // over
	}
	// launch stores the state and then reads this.
	atomic.StoreUint32(&c.late, 1)
	if !f.state.CompareAndSwap(callSent, callOver) {
		c.p.mu.Unlock()
		return // answered just now; or tried again, under a context that is over as well; or not sent yet
	}
	c.gaveUp = true
	conn, id := f.conn, f.id
	c.p.mu.Unlock()
	if conn != nil {
		conn.Abandon(id)
	}
	t := &f.try
	t.answered, t.err = true, error(&shard.UnavailableError{Node: t.node, Why: "its time ended while it waited for the shard", Cause: ctx.Err()})
	if f.q.Kind == shard.KindWrite && !mutants.On("F9b") {
		t.err = &shard.AmbiguousError{Shard: t.req.Shard, Why: "its time ended while it waited for the shard", Cause: ctx.Err()}
	}
	f.finish(c.p.s.r.goOn(ctx, &f.q, f.at, f.fit, &f.chain, f.begun, f.deadline, t), mutants.On("F6e")) // the context being over, it does not wait
}

// goOn carries the call through on a goroutine, from the try t on; nil: from the start.
func (f *flight) goOn(t *attempt) {
	p := f.call.p
	r := p.s.r
	f.state.Store(callOver)
	if !r.beginCall() {
		if t != nil && t.answered {
			if resp, _ := r.settle(f.ctx, &f.q, f.at, &f.chain, t); resp != nil {
				f.finish(resp, false)
				return
			}
		}
		id := f.q.Shard
		if t != nil {
			id = t.route.Desc.Shard
		}
		f.finish(f.q.Failed(f.chain.stamp.honest(id, shard.ErrClosed)), false)
		return
	}
	go func() {
		defer r.calls.Done()
		ctx, cancel := f.ctx, context.CancelFunc(nil)
		if f.timed {
			ctx, cancel = r.o.Clock.WithTimeout(ctx, f.deadline.Sub(r.o.Clock.Now()))
		} else {
			ctx, cancel = context.WithCancel(ctx)
		}
		defer cancel()
		defer context.AfterFunc(p.ctx, cancel)()
		defer context.AfterFunc(r.ctx, cancel)()
		resp := r.goOn(ctx, &f.q, f.at, f.fit, &f.chain, f.begun, f.deadline, t)
		if f.parts != nil && isCross(resp.Err) {
			f.chain.stamp.end() // the parts have numbers of their own
			receipt, err := p.s.writeParts(ctx, f.parts, 0)
			resp = &shard.Response{Receipt: receipt, Err: err}
		}
		if resp.Err != nil && r.ctx.Err() != nil && f.ctx.Err() == nil && p.ctx.Err() == nil && shard.OutcomeOf(resp.Err) == shard.NotApplied && errors.Is(resp.Err, context.Canceled) {
			resp = f.q.Failed(shard.ErrClosed) // it was the router that cancelled
		}
		f.finish(resp, false)
	}()
}

// finish takes the result out of the response and hands the call out. f is given
// to the next call if again is set: its Sender is done with it, and nobody else
// works on it.
func (f *flight) finish(resp *shard.Response, again bool) {
	c := f.call
	f.chain.stamp.end()
	c.Err = resp.Err
	switch f.op {
	case callGet:
		if c.Err == nil && (!resp.Found || resp.Value == nil) {
			c.Err = shard.ErrNotFound
		} else if c.Err == nil {
			c.Value = *resp.Value
		}
	case callWrite:
		c.Receipt = resp.Receipt
	case callTxn:
		c.Txn, c.Err = txnResult(resp)
	}
	p := c.p
	p.mu.Lock()
	defer p.mu.Unlock()
	c.prev.next, c.next.prev = c.next, c.prev
	c.prev, c.next, c.flight = nil, nil, nil
	if w := f.watch; w != nil {
		if w.refs--; w.refs == 0 && w != p.mu.watch {
			w.stop()
		}
	}
	if again && len(p.mu.free) < maxFreeFlights {
		*f = flight{}
		p.mu.free = append(p.mu.free, f)
	}
	p.mu.under--
	p.handOutLocked(c)
	p.endIfIdleLocked()
}
