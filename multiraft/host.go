package multiraft

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/flotillakv/flotilla/engine"
	"github.com/flotillakv/flotilla/internal/mutants"
	"github.com/flotillakv/flotilla/multiraft/raft"
)

// Net carries Raft messages to other nodes. Send never blocks, does not retain
// msgs, and may lose them.
type Net interface {
	Send(to raft.NodeID, msgs []raft.Msg)
}

// Clock gives the node's monotonic time, and its wall clock in Unix nanoseconds
// (used for group time and for what people read, never for safety).
type Clock interface {
	Now() raft.Time
	Wall() uint64
}

// SnapshotSender builds a snapshot of a shard and sends it to a node, in the
// background. done is called once, from any goroutine.
type SnapshotSender interface {
	SendSnapshot(desc raft.Descriptor, to raft.NodeID, toReplica raft.ReplicaID, done func(index raft.Index, term raft.Term, err error))
}

// Config is what a Host is made of. Node, Engine, Net, Liveness, Clock and
// Machine are required.
type Config struct {
	Node      raft.NodeID
	Engine    *engine.Engine
	Net       Net
	Liveness  raft.Liveness
	Clock     Clock
	Machine   StateMachine
	Snapshots SnapshotSender // nil: lagging replicas that need a snapshot stay behind
	Tuning    raft.Tuning
	// Loops is the number of loops. Zero: one per two processors, at most 16. It
	// never enters a format.
	Loops int
	// Seed seeds the random streams of all cores.
	Seed uint64
	// ProposalBytes bounds the bytes of proposals that wait on this node. Zero: 256 MiB.
	ProposalBytes int64
	// ProposalWait bounds how long a proposal may be expected to wait for its
	// outcome, from what waits and how fast that drains; beyond, proposals are
	// refused. It has to be longer than a few round trips to the other nodes.
	// Zero: DefaultProposalWait.
	ProposalWait time.Duration
	// LogBytes bounds what the Raft logs take on the disk (engine.LogUsage); how it is
	// kept is said at logCap. Zero: no bound.
	LogBytes int64
	Logger   *slog.Logger
	// OnRole is called on a loop when a replica's view of its leadership or its
	// quorum changed. It must not block.
	OnRole func(old, now View)
	// Leases lets leaders on this node claim leases, if Liveness tells when they
	// may trust the clock (LeaseClock).
	Leases bool
	// ClockOK says whether this node's wall clock agrees with its peers' well
	// enough to stamp entries. While it does not, proposals are refused. Nil: always.
	ClockOK func() bool
	// OnSync is told when a batch was made durable, on a syncer's goroutine. It must not block.
	OnSync func(at raft.Time)
	// OnDescriptor is called on a loop when a replica has applied another
	// descriptor. It must not block.
	OnDescriptor func(v View)
	// OnDestroy is called when a replica was destroyed after its removal: its data
	// are gone.
	OnDestroy func(shard raft.ShardID, replica raft.ReplicaID)
	// OnAmnesia is called on a loop when a replica of another node is found to have
	// forgotten what it promised. It must not block.
	OnAmnesia func(AmnesiaError)
	// Nodes lists the nodes of the cluster, to be asked by replicas that know of
	// no member that is left. Nil: such replicas stay. It must not block.
	Nodes func() []raft.NodeID
	// OnFatal is called once, on a goroutine of its own, when the node cannot go on
	// (a failed log write, a corrupt entry); it may call Close. Everything open is
	// answered and requests are refused from then on, with or without it.
	OnFatal func(error)
}

// Host runs all Raft groups of a node.
type Host struct {
	node    raft.NodeID
	engine  *engine.Engine
	net     Net
	live    raft.Liveness
	clock   Clock
	machine StateMachine
	snaps   SnapshotSender
	tuning  raft.Tuning
	seed    uint64
	logger  *slog.Logger
	onRole  func(old, now View)
	clockOK func() bool
	onSync  func(raft.Time)
	onFatal func(error)
	loops   []*loop
	leases  bool
	logCap  logCap
	// leaseClock is live, or one that never lets a lease through.
	leaseClock LeaseClock
	gens       atomic.Uint64 // View.Generation, the last one given
	maxBytes   int64
	pending    atomic.Int64 // bytes of proposals not yet resolved
	typical    atomic.Int64 // size of a proposal, within a factor of two
	reads      atomic.Int64 // reads not yet answered
	onDesc     func(View)
	onDestroy  func(raft.ShardID, raft.ReplicaID)
	onForget   func(AmnesiaError)
	nodes      func() []raft.NodeID

	mu      sync.Mutex // rank 1: creation of groups, start, close
	started bool
	closed  bool
	dead    atomic.Pointer[error]
	wg      sync.WaitGroup // loops and what they start
	syncs   sync.WaitGroup // syncers, which outlive their loops
	stop    chan struct{}
	join    sync.Once

	table atomic.Pointer[map[raft.ShardID]*replica] // copied on write
	// stepper is set, before anything runs, if the host is stepped by hand.
	stepper *Stepper
	stats   stats
}

type stats struct {
	rounds, syncs, entries, commands, applied, unknown, joined, anomalies, amnesiacs, refused, logTurned atomic.Uint64
	anomalyToldAt                                                                                        atomic.Int64 // Clock.Now of the last log line
}

// Stats counts what the host did since its start.
type Stats struct {
	Rounds, Syncs, Entries, Commands, Applied uint64
	UnknownShard                              uint64 // messages for shards without a replica here
	Anomalies                                 uint64 // messages that no correct peer sends; they were dropped
	JoinedTries                               uint64 // tries of session commands that joined one under way
	Amnesiacs                                 uint64 // replicas of other nodes that had forgotten what they promised
	Refused                                   uint64 // proposals refused because of overload
	PendingBytes                              int64  // of proposals not yet resolved
	PendingReads                              int64  // not yet answered
}

// New makes a host. It does nothing before Start.
func New(c Config) (*Host, error) {
	if c.Node == 0 || c.Engine == nil || c.Net == nil || c.Liveness == nil || c.Clock == nil || c.Machine == nil {
		return nil, errors.New("multiraft: Config needs Node, Engine, Net, Liveness, Clock and Machine")
	}
	c.Tuning = c.Tuning.WithDefaults()
	if err := c.Tuning.Validate(); err != nil {
		return nil, fmt.Errorf("multiraft: %w", err)
	}
	if c.Loops <= 0 {
		c.Loops = defaultLoops()
	}
	if c.ProposalBytes <= 0 {
		c.ProposalBytes = 256 << 20
	}
	if c.Logger == nil {
		c.Logger = slog.New(slog.DiscardHandler)
	}
	h := &Host{
		node: c.Node, engine: c.Engine, net: c.Net, live: c.Liveness, clock: c.Clock, machine: c.Machine,
		snaps: c.Snapshots, tuning: c.Tuning.WithDefaults(), seed: c.Seed, logger: c.Logger, onRole: c.OnRole, clockOK: c.ClockOK, onSync: c.OnSync, onFatal: c.OnFatal,
		maxBytes: c.ProposalBytes, stop: make(chan struct{}),
	}
	h.logCap.limit = c.LogBytes
	h.leaseClock = noLeaseClock{}
	if lc, ok := c.Liveness.(LeaseClock); ok && c.Leases {
		h.leases, h.leaseClock = true, lc
	}
	h.onDesc, h.onDestroy, h.onForget, h.nodes = c.OnDescriptor, c.OnDestroy, c.OnAmnesia, c.Nodes
	for i := range c.Loops {
		l := newLoop(h, i)
		l.admission.init(c.ProposalWait)
		h.loops = append(h.loops, l)
	}
	h.table.Store(&map[raft.ShardID]*replica{})
	h.engine.OnFlush(h.onFlush)
	return h, nil
}

// onFlush hands the news of a flush to the loops of its groups.
func (h *Host) onFlush(n uint64, groups []engine.Flushed) {
	byLoop := make(map[*loop][]engine.Flushed)
	for _, g := range groups {
		l := h.loopOf(g.Shard)
		byLoop[l] = append(byLoop[l], g)
	}
	for l, groups := range byLoop {
		l.in.put(func(it *items) {
			it.funcs = append(it.funcs, func(raft.Time) { l.onFlush(n, groups) })
		})
	}
}

func (h *Host) loopOf(s raft.ShardID) *loop {
	return h.loops[mix(uint64(s))%uint64(len(h.loops))]
}

// mix is the finalizer of splitmix64.
func mix(x uint64) uint64 {
	x += 0x9e3779b97f4a7c15
	x = (x ^ x>>30) * 0xbf58476d1ce4e5b9
	x = (x ^ x>>27) * 0x94d049bb133111eb
	return x ^ x>>31
}

// AddGroups loads replicas from their durable states, before or after Start.
// A state whose descriptor has no replica on this node is left alone.
func (h *Host) AddGroups(states []raft.State) error {
	return h.addGroups(states, h.engine.BootEpoch() > 1)
}

// addGroups is AddGroups; restarted says that the replicas were there before
// this boot.
func (h *Host) addGroups(states []raft.State, restarted bool) error {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.closed {
		return ErrClosed
	}
	now := h.clock.Now()
	old := *h.table.Load()
	table := make(map[raft.ShardID]*replica, len(old)+len(states))
	for k, v := range old {
		table[k] = v
	}
	var fresh []*replica
	for _, st := range states {
		id := st.Desc.Shard
		if table[id] != nil {
			continue
		}
		me, ok := st.Desc.ReplicaOn(h.node)
		if !ok {
			// It was removed by a configuration change, and stays until nobody needs it.
			// The tombstone that came with the change says which one it was.
			lowest, dead, err := h.engine.Tombstone(id)
			if err != nil {
				return fmt.Errorf("multiraft: shard %d: %w", id, err)
			}
			if !dead || mutants.On("G15") {
				h.logger.Warn("state of a shard that has no replica on this node; it is left alone", "shard", id)
				continue
			}
			me.ID = lowest - 1
		}
		core, err := raft.NewCore(raft.Config{
			Node: h.node, Replica: me.ID, Liveness: h.live, Leased: h.leases, Restarted: restarted,
			Rand: mix(h.seed ^ uint64(id)<<20 ^ uint64(h.node)), Shared: &h.tuning,
		}, st, now)
		if err != nil {
			return fmt.Errorf("multiraft: shard %d: %w", id, err)
		}
		r := &replica{
			shard: id, self: me.ID, loop: h.loopOf(id), core: core, desc: st.Desc, as: st.Applied,
			hard: st.Hard, lastTs: st.Applied.GroupTs, heapPos: -1, gen: h.gens.Add(1),
			quest: quest{at: raft.Never}, flushFrom: h.engine.NextFlush(),
		}
		if h.engine.DefersApply() {
			core.Hold(st.Applied.Applied)
		}
		r.publish(now, time.Unix(0, int64(h.clock.Wall())))
		table[id] = r
		fresh = append(fresh, r)
	}
	h.table.Store(&table)
	for _, r := range fresh {
		if !h.started {
			r.loop.adopt(r)
			continue
		}
		r.loop.in.put(func(it *items) {
			it.funcs = append(it.funcs, func(raft.Time) { r.loop.adopt(r) })
		})
	}
	return nil
}

// adopt makes the loop the owner of r.
func (l *loop) adopt(r *replica) {
	l.byID[r.shard] = r
	i, _ := slices.BinarySearchFunc(l.order, r.shard, func(a *replica, s raft.ShardID) int {
		switch {
		case a.shard < s:
			return -1
		case a.shard > s:
			return 1
		}
		return 0
	})
	l.order = slices.Insert(l.order, i, r)
	l.touch(r)
	l.timers.set(r, r.core.Deadline())
}

// CreateGroups writes the first state of new groups, durably, in one batch, and
// adds them. Groups that exist, or whose replica was destroyed here, are left
// alone. All others are there when it returns nil; on an error none of the new
// ones may be relied on.
func (h *Host) CreateGroups(descs []raft.Descriptor) error {
	table := *h.table.Load()
	var states []raft.State
	b := h.engine.NewBatch()
	for i := range descs {
		d := &descs[i]
		if table[d.Shard] != nil {
			continue
		}
		me, ok := d.ReplicaOn(h.node)
		if !ok {
			continue
		}
		if lowest, dead, err := h.engine.Tombstone(d.Shard); err != nil {
			b.Close()
			return fmt.Errorf("multiraft: create groups: %w", err)
		} else if dead && me.ID < lowest && !mutants.On("G15b") {
			continue
		}
		b.SetDescriptor(d)
		b.SetApplied(d.Shard, raft.AppliedState{})
		b.SetHardState(d.Shard, raft.HardState{})
		states = append(states, raft.State{Desc: d.Clone()})
	}
	if len(states) == 0 {
		b.Close()
		return nil
	}
	err := b.Commit(true)
	if err == nil {
		err = b.Wait()
	}
	b.Close()
	if err != nil {
		h.fatal(err)
		return fmt.Errorf("multiraft: create groups: %w", err)
	}
	return h.addGroups(states, false)
}

func (h *Host) lookup(s raft.ShardID) *replica { return (*h.table.Load())[s] }

// Propose hands a command to the leader of shard, if that is here. done is told
// the outcome exactly once; see ProposeFunc. Errors that mean "nothing was
// proposed": *NotLeaderError, *NoQuorumError, *OverloadedError, *TooLargeError,
// *RefusedError, ErrUnknownShard, ErrFenced, ErrClosed. ErrDropped: proposed and certainly not applied.
// ErrAmbiguous: unknown.
func (h *Host) Propose(shard raft.ShardID, cmd raft.Command, done func(data []byte, index raft.Index, slot uint32, err error)) {
	h.ProposeFor(shard, cmd, ProposeFunc(done))
}

// ProposeFor is Propose on behalf of w.
func (h *Host) ProposeFor(shard raft.ShardID, cmd raft.Command, w Waiter) {
	r := h.lookup(shard)
	if err := h.refuse(shard, r); err != nil {
		w.Proposed(nil, 0, 0, err)
		return
	}
	if h.clockOK != nil && !h.clockOK() && !mutants.On("B0-C6b") {
		w.Proposed(nil, 0, 0, &OverloadedError{RetryAfter: time.Second, Why: "this node's clock is too far ahead of the others'; set it right"})
		return
	}
	p := proposal{shard: shard, cmd: cmd, done: w, size: len(cmd.Body) + 32}
	if err := h.admit(r, p.size); err != nil {
		w.Proposed(nil, 0, 0, err)
		if !mutants.On("S19-effect") {
			return
		}
		p.done = nil
	}
	if !r.loop.in.putProposal(&p) {
		r.loop.admission.withdraw(p.size)
		h.release(p.size)
		w.Proposed(nil, 0, 0, ErrClosed)
	}
}

// refuse answers what can be answered without asking the loop.
func (h *Host) refuse(shard raft.ShardID, r *replica) error {
	if h.dead.Load() != nil {
		return ErrClosed
	}
	if r == nil {
		return ErrUnknownShard
	}
	v := r.pub.Load()
	switch {
	case v.Fenced != nil:
		return fmt.Errorf("%w: shard %d: %w", ErrFenced, shard, v.Fenced)
	case v.NoQuorum != nil:
		return v.NoQuorum
	case !v.IsLeader:
		return &NotLeaderError{Shard: shard, Leader: v.Leader, Term: v.Term}
	}
	return nil
}

func (h *Host) release(bytes int) { h.pending.Add(-int64(bytes)) }

// maxReads bounds the reads that wait on a node for permission.
const maxReads = 1 << 17

// ReadIndex asks for permission to serve a linearizable read of shard from the
// engine; see ReadFunc. Only the leader answers, and by the word of a quorum: no
// clock is relied on. The same definite errors as Propose.
func (h *Host) ReadIndex(shard raft.ShardID, done func(index raft.Index, err error)) {
	h.read(shard, byQuorum, done)
}

// Read is ReadIndex, but for a leader whose lease holds: it answers by itself.
// See LeaseRead for asking that without the loop.
func (h *Host) Read(shard raft.ShardID, done func(index raft.Index, err error)) {
	h.read(shard, byLease, done)
}

// FollowerRead is Read on any replica: the index comes from the leader, asked
// once per round for all reads of a group, and done is called when this replica
// has applied it.
func (h *Host) FollowerRead(shard raft.ShardID, done func(index raft.Index, err error)) {
	h.read(shard, byFollower, done)
}

func (h *Host) read(shard raft.ShardID, how readHow, done func(index raft.Index, err error)) {
	r := h.lookup(shard)
	err := h.refuse(shard, r)
	var elsewhere *NotLeaderError
	if how == byFollower && errors.As(err, &elsewhere) && elsewhere.Leader != 0 {
		err = nil
	}
	if err != nil {
		done(0, err)
		return
	}
	if h.reads.Add(1) > maxReads {
		h.reads.Add(-1)
		done(0, &OverloadedError{RetryAfter: 100 * time.Millisecond, Why: "too many reads wait on this node"})
		return
	}
	if !r.loop.in.putRead(readRequest{shard: shard, how: how, done: done}) {
		h.reads.Add(-1)
		done(0, ErrClosed)
	}
}

// Descriptor returns the applied descriptor of a shard on this node.
func (h *Host) Descriptor(shard raft.ShardID) (raft.Descriptor, bool) {
	r := h.lookup(shard)
	if r == nil {
		return raft.Descriptor{}, false
	}
	return r.pub.Load().Desc, true
}

// View returns what is known of one replica.
func (h *Host) View(shard raft.ShardID) (View, bool) {
	r := h.lookup(shard)
	if r == nil {
		return View{}, false
	}
	return r.view(r.pub.Load()), true
}

// Views returns all replicas of this node, in order of shard id.
func (h *Host) Views() []View {
	table := *h.table.Load()
	out := make([]View, 0, len(table))
	for _, r := range table {
		out = append(out, r.view(r.pub.Load()))
	}
	slices.SortFunc(out, func(a, b View) int {
		switch {
		case a.Shard < b.Shard:
			return -1
		case a.Shard > b.Shard:
			return 1
		}
		return 0
	})
	return out
}

// Stats returns counters.
func (h *Host) Stats() Stats {
	return Stats{
		Rounds: h.stats.rounds.Load(), Syncs: h.stats.syncs.Load(), Entries: h.stats.entries.Load(),
		Commands: h.stats.commands.Load(), Applied: h.stats.applied.Load(),
		UnknownShard: h.stats.unknown.Load(), Anomalies: h.stats.anomalies.Load(), JoinedTries: h.stats.joined.Load(), Amnesiacs: h.stats.amnesiacs.Load(), Refused: h.stats.refused.Load(), PendingBytes: h.pending.Load(),
		PendingReads: h.reads.Load(),
	}
}

// anomalyEvery is the least time between two log lines about anomalies.
const anomalyEvery = 10 * time.Second

// noteAnomalies counts n messages that no correct peer sends.
func (h *Host) noteAnomalies(now raft.Time, shard raft.ShardID, n uint64) {
	all := h.stats.anomalies.Add(n)
	last := h.stats.anomalyToldAt.Load()
	if last != 0 && now.Sub(raft.Time(last)) < anomalyEvery || !h.stats.anomalyToldAt.CompareAndSwap(last, int64(now)) {
		return
	}
	h.logger.Warn("a message that no correct node sends was dropped", "shard", shard, "so_far", all)
}

// OnMessages takes the messages of one frame. It never blocks; a full inbox
// drops the messages, which Raft repairs.
func (h *Host) OnMessages(_ raft.NodeID, msgs []raft.Msg) {
	if len(h.loops) == 1 {
		h.loops[0].in.putMsgs(msgs)
		return
	}
	n := uint64(len(h.loops))
	for i := 0; i < len(msgs); {
		k := mix(uint64(msgs[i].Shard)) % n
		j := i + 1
		for j < len(msgs) && mix(uint64(msgs[j].Shard))%n == k {
			j++
		}
		h.loops[k].in.putMsgs(msgs[i:j])
		i = j
	}
}

// onUnknownShard drops a message for a shard that has no replica here.
func (h *Host) onUnknownShard(l *loop, m *raft.Msg, o *raft.Out) {
	h.stats.unknown.Add(1)
	if m.Type == raft.MsgLeadQuery {
		// Whoever believes in a leader here shall not wait for it.
		o.Msgs = append(o.Msgs, raft.Msg{
			Type: raft.MsgStepDown, Shard: m.Shard, From: m.To, To: m.From,
			FromReplica: m.ToReplica, ToReplica: m.FromReplica, Term: m.Term,
		})
		return
	}
	if m.Type != raft.MsgApp || m.ToReplica == 0 {
		return
	}
	// A leader believes that a replica is here. One that is only late (its groups
	// are being created) or was added by a configuration change takes a snapshot;
	// a destroyed one stays away.
	lowest, dead, err := h.engine.Tombstone(m.Shard)
	if err != nil {
		return
	}
	if dead && m.ToReplica < lowest && !mutants.On("G12b") {
		l.sayGone(m, lowest)
		return
	}
	o.Msgs = append(o.Msgs, raft.Msg{
		Type: raft.MsgNeedSnapshot, Shard: m.Shard, From: m.To, To: m.From,
		FromReplica: m.ToReplica, ToReplica: m.FromReplica, Term: m.Term,
	})
}

// each runs f on every loop, for every replica of it.
func (h *Host) each(f func(l *loop, r *replica, now raft.Time)) {
	for _, l := range h.loops {
		l.in.put(func(it *items) {
			it.funcs = append(it.funcs, func(now raft.Time) {
				for _, r := range l.order {
					f(l, r, now)
					l.touch(r)
				}
			})
		})
	}
}

// PeerReset tells that the stream to a node broke or was made anew: what was in
// flight there may be lost.
func (h *Host) PeerReset(node raft.NodeID) {
	h.each(func(l *loop, r *replica, now raft.Time) { r.core.PeerReset(now, node, &l.out) })
}

// LivenessChanged tells that support for or from a node changed.
func (h *Host) LivenessChanged(node raft.NodeID) {
	h.each(func(l *loop, r *replica, now raft.Time) { r.core.LivenessChanged(now, node, &l.out) })
}

// On runs f on the loop that owns shard, with its replica's core, and waits. It
// fails with ErrUnknownShard, ErrClosed or the context's error; in the last case
// f may still run.
func (h *Host) On(ctx context.Context, shard raft.ShardID, f func(now raft.Time, c *raft.Core, o *raft.Out) error) error {
	r := h.lookup(shard)
	if r == nil {
		return ErrUnknownShard
	}
	ch := make(chan error, 1)
	l := r.loop
	ok := l.in.put(func(it *items) {
		it.funcs = append(it.funcs, func(now raft.Time) {
			if r.removed {
				ch <- ErrUnknownShard
				return
			}
			r.loop.touch(r)
			ch <- f(now, r.core, &r.loop.out)
		})
	})
	if !ok {
		return ErrClosed
	}
	return l.await(ctx, ch)
}

// await waits for what a function on the loop answers. The loop may end without
// having run it.
func (l *loop) await(ctx context.Context, ch <-chan error) error {
	select {
	case err := <-ch:
		return err
	case <-ctx.Done():
		return ctx.Err()
	case <-l.h.stop:
	case <-l.gone:
	}
	select {
	case err := <-ch:
		return err
	default:
		return ErrClosed
	}
}

// Campaign asks the replica of shard to start an election at once, if no leader
// of it is alive.
func (h *Host) Campaign(ctx context.Context, shard raft.ShardID) error {
	return h.On(ctx, shard, func(now raft.Time, c *raft.Core, o *raft.Out) error {
		c.Campaign(now, o)
		return nil
	})
}

// Transfer starts handing the leadership of shard to another node. It returns
// once the attempt has begun; the outcome shows in View.
func (h *Host) Transfer(ctx context.Context, shard raft.ShardID, to raft.NodeID) error {
	d, ok := h.Descriptor(shard)
	if !ok {
		return ErrUnknownShard
	}
	rep, ok := d.ReplicaOn(to)
	if !ok {
		return fmt.Errorf("multiraft: shard %d has no replica on node %d", shard, to)
	}
	return h.On(ctx, shard, func(now raft.Time, c *raft.Core, o *raft.Out) error {
		return c.Transfer(now, rep.ID, o)
	})
}

// ChangeConf proposes a configuration change. An error (those of Propose) says
// that nothing was proposed, unless it is the context's, and that done is not
// called; else done as for Propose; a rejection at apply comes back as data (its
// text), err nil.
func (h *Host) ChangeConf(ctx context.Context, shard raft.ShardID, cc raft.ConfChange, done ProposeFunc) error {
	r := h.lookup(shard)
	if r == nil {
		return ErrUnknownShard
	}
	return h.On(ctx, shard, func(now raft.Time, c *raft.Core, o *raft.Out) error {
		if r.fenced != nil {
			return r.refused()
		}
		if c.Status().Role == raft.RoleLeader {
			if err := h.safeConf(&r.desc, &cc); err != nil {
				return err
			}
		}
		ts := max(r.lastTs+1, h.clock.Wall())
		mark, err := c.ProposeConf(now, cc, raft.EntryHeader{GroupTs: ts}, o)
		if err != nil {
			return r.loop.proposeError(r, err)
		}
		r.lastTs = ts
		r.await(pendingEntry{mark: mark, dones: []Waiter{done}})
		return nil
	})
}

// InstallSnapshot replaces the state of shard on this node by a snapshot of (index, term). install runs on the
// shard's loop with the hard state to be kept; it must make the new state
// durable in one step and return it, or leave the old one whole. A shard without
// a replica here is created from the installed state. ErrSnapshotStale: install
// was not called. If install failed half-way, so that the store holds another
// state than this host, the node stops.
func (h *Host) InstallSnapshot(ctx context.Context, shard raft.ShardID, index raft.Index, term raft.Term, install InstallFunc) error {
	ch := make(chan error, 1)
	if err := h.InstallAside(shard, index, term, install, func(err error) { ch <- err }); err != nil {
		return err
	}
	return h.loopOf(shard).await(ctx, ch)
}

// InstallFunc makes a snapshot the durable state of a replica; see InstallSnapshot.
type InstallFunc func(hs raft.HardState, applied raft.AppliedState, exists bool) (raft.State, error)

// InstallAside is InstallSnapshot without waiting: done gets the outcome on the
// shard's loop, and must not block. After ErrClosed it is not called; it may
// never be called if the host is closed meanwhile.
func (h *Host) InstallAside(shard raft.ShardID, index raft.Index, term raft.Term, install InstallFunc, done func(error)) error {
	l := h.loopOf(shard)
	ok := l.in.put(func(it *items) {
		it.funcs = append(it.funcs, func(now raft.Time) { done(l.install(now, shard, index, term, install)) })
	})
	if !ok {
		return ErrClosed
	}
	return nil
}

func (l *loop) install(now raft.Time, shard raft.ShardID, index raft.Index, term raft.Term, install InstallFunc) error {
	r := l.byID[shard]
	if r == nil {
		if l.dying[shard] != nil && !mutants.On("G13") {
			return fmt.Errorf("multiraft: a replica of shard %d is being destroyed here", shard)
		}
		st, err := install(raft.HardState{}, raft.AppliedState{}, false)
		if err != nil {
			return l.notInstalled(shard, index, term, err)
		}
		l.h.spawn(func() { // AddGroups takes Host.mu, which a loop must not wait for
			if err := l.h.addGroups([]raft.State{st}, false); err != nil {
				l.h.logger.Warn("replica from snapshot not added", "shard", shard, "err", err)
			}
		})
		return nil
	}
	if !r.core.WantsSnapshot(index, term) && !mutants.On("E3") {
		return fmt.Errorf("%w of shard %d, index %d", ErrSnapshotStale, shard, index)
	}
	st, err := install(r.core.HardState(), r.as, true)
	if err != nil {
		return l.notInstalled(shard, index, term, err)
	}
	if r.as, r.hard = st.Applied, st.Hard; !mutants.On("C9") {
		r.desc = st.Desc
	}
	r.lastTs = max(r.lastTs, st.Applied.GroupTs)
	r.fenced = nil
	r.core.Restore(now, st, &l.out)
	r.passOver(r.as.Applied, &l.done)
	l.touch(r)
	return nil
}

// notInstalled returns err, with which an install of (index, term) ended, after
// it made sure that the old state is whole. If the store does hold the snapshot,
// or cannot tell, what this loop has in memory is of no worth any more.
func (l *loop) notInstalled(shard raft.ShardID, index raft.Index, term raft.Term, err error) error {
	st, ok, lerr := l.h.engine.Load(shard)
	_, here := st.Desc.ReplicaOn(l.h.node)
	if lerr != nil || ok && here && st.Applied.Applied == index && st.Applied.AppliedTerm == term {
		l.fatal(fmt.Errorf("multiraft: the snapshot of shard %d was installed and could not be taken over: %w", shard, errors.Join(err, lerr)))
	}
	return err
}

func (h *Host) sendSnapshot(l *loop, desc raft.Descriptor, t raft.SnapshotTask) {
	finish := func(index raft.Index, term raft.Term, err error) {
		if err != nil {
			h.logger.Warn("snapshot not sent", "shard", t.Shard, "to", t.To, "err", err)
		}
		l.in.put(func(it *items) {
			it.funcs = append(it.funcs, func(now raft.Time) {
				if r := l.byID[t.Shard]; r != nil && !(mutants.Enabled && mutants.On("E15") && err != nil) {
					delete(r.snapsBusy, t.ToReplica)
					r.core.SnapshotSent(now, t.ToReplica, index, term, err == nil, &l.out)
					l.touch(r)
				}
			})
		})
	}
	if h.snaps == nil {
		finish(0, 0, errors.New("multiraft: this host sends no snapshots"))
		return
	}
	h.snaps.SendSnapshot(desc, t.To, t.ToReplica, finish)
}

// readLog reads entries for a lagging peer.
func (h *Host) readLog(t raft.FetchTask) (ents []raft.Entry, prev raft.Term, err error) {
	ents, err = h.engine.Entries(nil, t.Shard, t.Next, t.Last, t.MaxBytes)
	if err != nil {
		return nil, 0, err
	}
	if t.Next > 1 {
		prev, err = h.engine.Term(t.Shard, t.Next-1)
	}
	return ents, prev, err
}

// Alive reports whether every loop that has work finished a round within
// limit before now: the loops' part of the gate of heartbeats.
func (h *Host) Alive(now raft.Time, limit time.Duration) bool {
	if h.dead.Load() != nil {
		return false
	}
	for _, l := range h.loops {
		if !l.idle.Load() && !mutants.On("D12") && now.Sub(raft.Time(l.roundAt.Load())) > limit {
			return false
		}
	}
	return true
}

// fatal stops the node's work once, with a reason. A failed log write is never retried.
func (h *Host) fatal(err error) {
	if !h.dead.CompareAndSwap(nil, &err) {
		return
	}
	h.logger.Error("the node stops", "err", err)
	for _, l := range h.loops {
		l.in.signal() // to answer what is open
	}
	if h.onFatal != nil {
		if h.stepper != nil {
			h.onFatal(err)
			return
		}
		go h.onFatal(err) // it may close the host, which waits for the caller of this
	}
}

// Stopping is closed when Close has begun: the loops take in nothing any more.
func (h *Host) Stopping() <-chan struct{} { return h.stop }

// Fatal returns the reason the node stopped, if it did.
func (h *Host) Fatal() error {
	if p := h.dead.Load(); p != nil {
		return *p
	}
	return nil
}
