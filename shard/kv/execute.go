package kv

import (
	"context"
	"errors"
	"sync"
	"sync/atomic"
	"time"

	"github.com/flotillakv/flotilla/engine"
	"github.com/flotillakv/flotilla/multiraft"
	"github.com/flotillakv/flotilla/multiraft/raft"
	"github.com/flotillakv/flotilla/shard"
)

// Host is what the store needs of the runtime that replicates; *multiraft.Host
// implements it.
type Host interface {
	// Propose calls done exactly once, perhaps before it returns and perhaps on
	// a goroutine that must not be blocked.
	Propose(shard raft.ShardID, cmd raft.Command, done func(data []byte, index raft.Index, slot uint32, err error))
	// LeaseRead reports whether everything a linearizable read that has begun must
	// see is applied and visible here already, by the leader's lease.
	LeaseRead(shard raft.ShardID) bool
	// Read, ReadIndex and FollowerRead call done exactly once, like Propose. With a
	// nil error everything a linearizable read must see is applied and visible here.
	// Read may rest on a lease, ReadIndex does not, FollowerRead works on any replica.
	Read(shard raft.ShardID, done func(index raft.Index, err error))
	ReadIndex(shard raft.ShardID, done func(index raft.Index, err error))
	FollowerRead(shard raft.ShardID, done func(index raft.Index, err error))
	// Generation changes before data of the shard goes away here otherwise than by
	// a command. Zero: no replica is here.
	Generation(shard raft.ShardID) uint64
	// Descriptor returns the newest applied descriptor of a shard with a replica
	// here. It is read-only.
	Descriptor(shard raft.ShardID) (raft.Descriptor, bool)
}

// proposer is a Host that takes proposals of somebody who is told by a method.
type proposer interface {
	ProposeFor(raft.ShardID, raft.Command, multiraft.Waiter)
}

// doubter is a Host that tells which replicas are not to be believed, whatever is
// read from them: nil if this one is.
type doubter interface {
	Distrust(raft.ShardID) error
}

var (
	_ doubter  = (*multiraft.Host)(nil)
	_ Host     = (*multiraft.Host)(nil)
	_ proposer = (*multiraft.Host)(nil)
	_ granter  = (*multiraft.Host)(nil)
)

// Options are what a Store is made of. Host and Engine are required.
type Options struct {
	Host   Host
	Engine *engine.Engine
	// Addr returns the client address of a node for hints in errors, or "". Optional.
	Addr func(raft.NodeID) string
	// Growth judges a write before it is proposed, by whether it adds data to a shard
	// (shard.Grows): the error, one of package shard that says that nothing was applied,
	// refuses it. Nil: none is refused. It must be quick.
	Growth func(d *raft.Descriptor, c raft.Command) error
	// Machine reports whether a state machine of the embedder's serves a keyspace: its
	// commands are OpKeyed, and there is nothing to be read in the store. Nil: none.
	Machine func(keyspace uint32) bool
	// Go runs a read of DoAsync aside from the loop that allowed it. Nil: on one of
	// a few goroutines of the store. Simulators run it later by themselves.
	Go func(read func())
}

// Store executes requests on the shards of this node. It is safe for concurrent use.
type Store struct {
	host    Host
	engine  *engine.Engine
	addr    func(raft.NodeID) string
	growth  func(d *raft.Descriptor, c raft.Command) error
	machine func(keyspace uint32) bool
	goDo    func(read func()) // of Options
	aside   *readers          // nil if goDo was given
	// granter is host, if it is one; nil: there is no short way.
	granter granter
	doubter doubter
	// proposer is host, if it is one; nil: each proposal carries a closure.
	proposer proposer
	yielder  yielder

	ended atomic.Bool // Close has begun
	mu    struct {
		sync.RWMutex // guards closed against reads that begin; held briefly
		closed       bool
	}
	wg sync.WaitGroup // reads under way

	stats struct{ replayed, expired, full atomic.Uint64 }
}

// Stats counts what became of commands of sessions at this store since it was made.
type Stats struct {
	Replayed uint64 // tries of commands that had taken effect before
	Expired  uint64 // commands that came after their deadline
	Refused  uint64 // commands of sessions for which there was no room
}

// Stats returns the counters.
func (s *Store) Stats() Stats {
	return Stats{Replayed: s.stats.replayed.Load(), Expired: s.stats.expired.Load(), Refused: s.stats.full.Load()}
}

// NewStore returns a store over a host and its engine.
func NewStore(o Options) *Store {
	s := &Store{host: o.Host, engine: o.Engine, addr: o.Addr, growth: o.Growth, machine: o.Machine, goDo: o.Go}
	if s.machine == nil {
		s.machine = func(uint32) bool { return false }
	}
	s.granter, _ = o.Host.(granter)
	s.doubter, _ = o.Host.(doubter)
	s.proposer, _ = o.Host.(proposer)
	s.yielder.init()
	if s.goDo == nil {
		s.goDo = func(read func()) { go read() }
		s.aside = newReaders(func(r *reader, j readJob) { j.read(s, r) })
	}
	if s.addr == nil {
		s.addr = func(raft.NodeID) string { return "" }
	}
	return s
}

// Do executes r and waits for the answer, which it always returns; its Err is a
// typed error of package shard. The context, and r.TimeoutNanos if the context
// has no deadline, bound the wait: a write whose time ends before it was handed
// to Raft is a *shard.UnavailableError (not applied), one whose time ends
// afterwards is a *shard.AmbiguousError. r must not be changed before Do returns,
// and the body of a command whose outcome is ambiguous must not be changed at all.
func (s *Store) Do(ctx context.Context, r *shard.Request) *shard.Response {
	c := &call{s: s, req: r, sync: true}
	c.resp.ID = r.ID
	if err := ctx.Err(); err != nil {
		return c.failed(&shard.UnavailableError{Why: "its time had ended before it was started", Cause: err})
	}
	if !c.check() {
		return &c.resp
	}
	if c.readableNow() {
		s.yielder.read()
		return c.readHere()
	}
	c.done = signals.Get().(*signal)
	c.start()
	if !c.wait(ctx) {
		return c.gaveUp(ctx.Err())
	}
	if r.Kind != shard.KindWrite && c.resp.Err == nil {
		return c.readHere()
	}
	if _, busy := c.resp.Err.(*shard.OverloadedError); busy {
		yieldRefused()
	}
	return &c.resp
}

// DoAsync executes r and hands the answer to a, exactly once: perhaps before
// DoAsync returns, and for writes on a goroutine that must not be blocked. There is
// always a response; it and all its bytes are valid until a.Answered returns. It
// does not observe any deadline; whoever stops waiting for a write must treat
// its outcome as unknown. r must not be changed before the answer.
func (s *Store) DoAsync(r *shard.Request, a shard.Answerer) {
	if s.granter != nil && s.aside != nil && r.Kind == shard.KindGet && r.Consistency == shard.Linearizable && r.DescVersion != 0 &&
		shard.CheckKeySize(r.Key) == nil && s.aside.push(readJob{req: r, to: a}) {
		return
	}
	s.doAsync(r, a)
}

// doAsync is the long way of DoAsync.
func (s *Store) doAsync(r *shard.Request, a shard.Answerer) {
	c := &call{s: s, req: r, to: a}
	c.resp.ID = r.ID
	if !c.check() {
		c.reply()
		return
	}
	if c.readableNow() {
		c.readAside()
		return
	}
	c.start()
}

// Start is DoAsync for a caller that is not a loop of the host: what can be read
// without asking anybody is read before it returns.
func (s *Store) Start(r *shard.Request, a shard.Answerer) {
	c := &call{s: s, req: r, to: a}
	c.resp.ID = r.ID
	switch {
	case !c.check():
		a.Answered(&c.resp, nil)
	case c.readableNow():
		s.yielder.read()
		a.Answered(c.readHere(), nil)
	default:
		c.start()
	}
}

// readableNow reports whether the engine may be read without asking anybody.
func (c *call) readableNow() bool {
	switch {
	case c.req.Kind == shard.KindWrite:
		return false
	case c.req.Kind == shard.KindStats || c.req.Consistency == shard.Local:
		return true
	}
	return c.req.Consistency == shard.Linearizable && c.s.host.LeaseRead(c.req.Shard)
}

// Close refuses further requests with shard.ErrClosed and waits for the reads
// that are under way: the engine may be closed after it. It is idempotent.
func (s *Store) Close() {
	s.mu.Lock()
	s.mu.closed = true
	s.ended.Store(true)
	s.mu.Unlock()
	s.wg.Wait()
	if s.aside != nil {
		s.aside.close()
	}
}

func (s *Store) isClosed() bool { return s.ended.Load() }

// call is one request under way. It is never reused, so that a late completion
// can only find the request it belongs to.
type call struct {
	s    *Store
	req  *shard.Request
	desc raft.Descriptor // the request was checked against it
	gen  uint64          // and the replica's generation then
	resp shard.Response

	sync  bool
	to    shard.Answerer // of DoAsync and Start
	done  *signal        // of Do: gets one
	fired atomic.Bool    // the host completed the call
}

// signal is what a caller of Do waits with.
type signal struct {
	ch    chan struct{} // capacity 1
	timer *time.Timer   // nil until it is first needed; stopped
}

// after starts the timer.
func (s *signal) after(d time.Duration) <-chan time.Time {
	if s.timer == nil {
		s.timer = time.NewTimer(d)
	} else {
		s.timer.Reset(d)
	}
	return s.timer.C
}

// signals holds channels without a signal in them. A channel comes back only
// after its one signal was received.
var signals = sync.Pool{New: func() any { return &signal{ch: make(chan struct{}, 1)} }}

// check validates the request and everything that needs no waiting. It reports
// false when the answer is ready; nothing was done then.
func (c *call) check() bool {
	if c.s.isClosed() {
		c.resp.Err = shard.ErrClosed
		return false
	}
	r := c.req
	if err := r.Check(); err != nil {
		c.resp.Err = err
		return false
	}
	if r.Kind != shard.KindWrite { // what writes rest on is looked at when they are applied
		c.gen = c.s.host.Generation(r.Shard)
	}
	d, ok := c.s.host.Descriptor(r.Shard)
	if !ok {
		c.resp.Err = &shard.EpochError{Shard: r.Shard}
		return false
	}
	c.desc = d
	if r.Keyspace != d.Keyspace {
		c.resp.Err = epochError(&d)
	} else {
		c.resp.Err = c.s.checkAgainst(&d, r)
	}
	if c.resp.Err == nil && c.s.growth != nil && r.Kind == shard.KindWrite {
		// Before anything is proposed: what is in the log is applied everywhere alike.
		c.resp.Err = c.s.growth(&c.desc, r.Command)
	}
	return c.resp.Err == nil
}

// checkAgainst judges a request by the shard's descriptor.
func (s *Store) checkAgainst(d *raft.Descriptor, r *shard.Request) error {
	if err := shard.CheckVersion(d, r.DescVersion); err != nil {
		return err
	}
	if r.Kind != shard.KindStats && s.machine(d.Keyspace) {
		if op := r.Command.Op; r.Kind != shard.KindWrite || op != shard.OpKeyed && op != shard.OpEndSession {
			return &shard.ArgumentError{Field: "operation", Reason: "this shard is served by a state machine of the program's own, not by the key-value store; use Propose and Query"}
		}
		return shard.CheckCommandSpan(d, r.Command)
	}
	switch r.Kind {
	case shard.KindGet:
		return shard.CheckKey(d, r.Key)
	case shard.KindScan:
		return checkScan(d, r.Start, r.End, r.Reverse)
	case shard.KindWrite:
		if !shard.KnownOp(r.Command.Op, r.Command.Flags) {
			return &shard.ArgumentError{Field: "operation", Reason: "this shard is served by the key-value machine, which does not have it"}
		}
		return shard.CheckCommandSpan(d, r.Command)
	}
	return nil
}

// start hands the call to the host. After a proposal only the host's completion
// makes the outcome definite.
func (c *call) start() {
	if c.req.Kind == shard.KindWrite {
		if c.s.proposer != nil {
			c.s.proposer.ProposeFor(c.req.Shard, c.req.Command, c)
		} else {
			c.s.host.Propose(c.req.Shard, c.req.Command, c.Proposed)
		}
		return
	}
	switch c.req.Consistency {
	case shard.NoClock:
		c.s.host.ReadIndex(c.req.Shard, c.readable)
	case shard.Follower:
		c.s.host.FollowerRead(c.req.Shard, c.readable)
	default:
		c.s.host.Read(c.req.Shard, c.readable)
	}
}

// Proposed is the host's completion of a write (multiraft.Waiter).
func (c *call) Proposed(data []byte, index raft.Index, slot uint32, err error) {
	if !c.fired.CompareAndSwap(false, true) {
		return
	}
	if err != nil {
		c.resp.Err = c.s.translate(c.req, err)
	} else {
		c.setResult(data, shard.Version{Lineage: c.req.Shard, Index: index, Slot: slot})
	}
	c.complete()
}

func (c *call) setResult(data []byte, at shard.Version) {
	if c.req.Command.Op == shard.OpKeyed {
		c.resp.Result, c.resp.Receipt = data, shard.Receipt{Version: at}
		return
	}
	res, err := shard.DecodeResult(data, at)
	if err != nil {
		// Applied or rejected, but nobody here can tell which.
		c.resp.Err = &shard.AmbiguousError{Shard: c.req.Shard, Why: err.Error()}
		return
	}
	if c.req.Command.Session != nil {
		switch {
		case res.Status == shard.StatusExpired:
			c.s.stats.expired.Add(1)
		case res.Status == shard.StatusSessionsFull:
			c.s.stats.full.Add(1)
		case res.Status == shard.StatusSettled, res.Receipt.Version != at:
			c.s.stats.replayed.Add(1)
		}
	}
	if res.Status == shard.StatusEpoch || res.Status == shard.StatusRange {
		if d, ok := c.s.host.Descriptor(c.req.Shard); ok {
			c.desc = d
		}
	}
	if c.resp.Err = res.Err(&c.desc); c.resp.Err == nil {
		c.resp.Receipt, c.resp.Txn = res.Receipt, res.Txn
	}
}

// readable is the host's completion of a read index. The read itself happens on
// another goroutine: this one belongs to a loop.
func (c *call) readable(_ raft.Index, err error) {
	if !c.fired.CompareAndSwap(false, true) {
		return
	}
	if err != nil {
		c.resp.Err = c.s.translate(c.req, err)
		c.complete()
		return
	}
	if c.sync {
		c.complete()
		return
	}
	c.readAside()
}

func (c *call) complete() {
	if c.sync {
		c.done.ch <- struct{}{}
		return
	}
	c.reply()
}

// reply answers a call that nobody waits for.
func (c *call) reply() { c.to.Answered(&c.resp, nil) }

// begin lets a read use the engine until s.wg.Done, which Close waits for.
func (s *Store) begin() bool {
	s.mu.RLock()
	defer s.mu.RUnlock()
	if s.mu.closed {
		return false
	}
	s.wg.Add(1)
	return true
}

// readHere reads on the caller's goroutine.
func (c *call) readHere() *shard.Response {
	if !c.s.begin() {
		return c.failed(shard.ErrClosed)
	}
	defer c.s.wg.Done()
	c.read()
	return &c.resp
}

// readAside reads on a goroutine of the store and answers.
func (c *call) readAside() {
	s := c.s
	if !s.begin() {
		c.resp.Err = shard.ErrClosed
		c.reply()
		return
	}
	// What takes longer than a get must not hold up gets.
	if s.aside != nil && c.req.Kind == shard.KindGet && s.aside.push(readJob{counted: c}) {
		return
	}
	s.goDo(c.readCounted)
}

// readCounted reads and answers for a call that has begun.
func (c *call) readCounted() {
	defer c.s.wg.Done()
	c.s.yielder.read()
	c.read()
	c.reply()
}

// wait returns true once the host completed the call, false if ctx or the
// request's time ended first. In the latter case the channel is lost to the pool.
func (c *call) wait(ctx context.Context) bool {
	var expired <-chan time.Time
	if c.req.TimeoutNanos > 0 {
		if _, has := ctx.Deadline(); !has {
			expired = c.done.after(time.Duration(c.req.TimeoutNanos))
		}
	}
	ok := false
	select {
	case <-c.done.ch:
		ok = true
	case <-ctx.Done():
	case <-expired:
	}
	if expired != nil {
		c.done.timer.Stop()
	}
	if ok {
		signals.Put(c.done) // the next one has it from here on
	}
	return ok
}

// gaveUp answers a call whose time ended while the host has it. It does not
// touch c.resp, which the host may be filling in.
func (c *call) gaveUp(cause error) *shard.Response {
	if cause == nil {
		cause = context.DeadlineExceeded
	}
	why := "its time ended while it waited for the shard"
	if c.req.Kind == shard.KindWrite {
		return c.req.Failed(&shard.AmbiguousError{Shard: c.req.Shard, Why: why, Cause: cause})
	}
	return c.req.Failed(&shard.UnavailableError{Why: why, Cause: cause})
}

func (c *call) failed(err error) *shard.Response {
	c.resp.Err = err
	return &c.resp
}

// translate turns an error of the host into the typed error a client may act on.
// What it does not know is ambiguous for a write.
func (s *Store) translate(r *shard.Request, err error) error {
	if busy, ok := err.(*multiraft.OverloadedError); ok { // of which there may be many: the rest of the way is long
		return &shard.OverloadedError{RetryAfter: busy.RetryAfter, Why: busy.Why}
	}
	var (
		notLeader  *multiraft.NotLeaderError
		noQuorum   *multiraft.NoQuorumError
		overloaded *multiraft.OverloadedError
		tooLarge   *multiraft.TooLargeError
		refused    *multiraft.RefusedError
		unsynced   *multiraft.SyncError
	)
	switch {
	case errors.Is(err, multiraft.ErrAmbiguous):
		return &shard.AmbiguousError{Shard: r.Shard, Why: "the node stopped or lost track of it before it was confirmed"}
	case errors.As(err, &notLeader):
		e := &shard.NotLeaderError{Shard: r.Shard, Leader: notLeader.Leader, Term: notLeader.Term}
		if notLeader.Leader != 0 {
			e.Addr = s.addr(notLeader.Leader)
		}
		if d, ok := s.host.Descriptor(r.Shard); ok {
			e.Descriptor = &d
		}
		return e
	case errors.As(err, &noQuorum):
		return &shard.NoQuorumError{Shard: r.Shard, Down: noQuorum.Down, Forgot: noQuorum.Forgot, Since: noQuorum.Since, Voters: noQuorum.Voters}
	case errors.As(err, &overloaded):
		return &shard.OverloadedError{RetryAfter: overloaded.RetryAfter, Why: overloaded.Why}
	case errors.As(err, &unsynced):
		return &shard.UnsyncedError{Shard: unsynced.Shard, Since: unsynced.Since, Why: unsynced.Err.Error()}
	case errors.Is(err, multiraft.ErrLogBudget):
		return shard.ErrLogBudget
	case errors.As(err, &tooLarge):
		return &shard.LimitError{What: "bytes of a log entry", Limit: tooLarge.Limit, Got: tooLarge.Bytes}
	case errors.As(err, &refused):
		return &shard.UnavailableError{Why: "the shard refused to take it in", Cause: err}
	case errors.Is(err, multiraft.ErrUnknownShard):
		return &shard.EpochError{Shard: r.Shard}
	case errors.Is(err, multiraft.ErrDropped):
		return &shard.UnavailableError{Why: "another leader's entry took its place in the log", Cause: err}
	case errors.Is(err, multiraft.ErrDiverged):
		return &shard.UnavailableError{Why: "this replica is quarantined because it differs from the others", Cause: err}
	case errors.Is(err, multiraft.ErrFenced):
		return &shard.UnavailableError{Why: "this replica is fenced because its state machine failed", Cause: err}
	case errors.Is(err, multiraft.ErrClosed), errors.Is(err, engine.ErrClosed):
		return shard.ErrClosed
	}
	if r.Kind == shard.KindWrite {
		return &shard.AmbiguousError{Shard: r.Shard, Why: err.Error()}
	}
	return &shard.UnavailableError{Why: "the read failed", Cause: err}
}
