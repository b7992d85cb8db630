package multiraft

import (
	"cmp"
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
	// CutAge is how old the oldest entry of a log may become, where Tuning.Cut is not
	// raft.CutPiggyback. Zero: DefaultCutAge.
	CutAge time.Duration
	// TailBytes bounds the memory that the entries of all groups take which are applied and
	// durable, and are kept for slow peers. Zero: Tuning.TailBytes for each group.
	TailBytes int64
	// InboxBytes bounds the entries in messages that wait for one loop. Zero: 64 MiB.
	InboxBytes int
	// RoundBytes bounds the payload of one batch of a loop, of which up to four are under way.
	// Zero: 4 MiB.
	RoundBytes int
	Logger     *slog.Logger
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
	// DigestEvery is about how often the replicas of a group are compared, if anything
	// was applied since (digest.go). Zero: DefaultDigestEvery. Negative: never.
	DigestEvery time.Duration
	// StateEvery is after about how long of rest the replicas of a group are compared by
	// what they hold. Zero: DefaultStateEvery. Negative: never.
	StateEvery time.Duration
	// OnDiverged is called on a loop when replicas are found to differ, or one of this
	// node cannot be read, and when it has been rebuilt (Rebuilt). It must not block.
	OnDiverged func(DivergedError)
	// Rebuild lets the node live with damaged tables of user keys, if the engine does
	// (its Options.Rebuild): their replicas are quarantined and rebuilt. Else the node stops.
	Rebuild bool
	// Nodes lists the nodes of the cluster, to be asked by replicas that know of
	// no member that is left. Nil: such replicas stay. It must not block.
	Nodes func() []raft.NodeID
	// IdleAfter is how long nothing has to come for a replica before it sleeps.
	// Zero: DefaultIdleAfter. Negative: never.
	IdleAfter time.Duration
	// Awake is how many of the replicas that are there at the start are awake from
	// then on, and elect a leader by themselves; the others wake when they are asked
	// for. Zero: DefaultAwake. Negative: none.
	Awake int
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
	keeper  ImageKeeper // nil: no images are kept
	cutAge  time.Duration
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
	roundMax   int
	tailMax    int64        // of one loop; zero: no bound
	brake      atomic.Int64 // see Brake
	pending    atomic.Int64 // bytes of proposals not yet resolved
	typical    atomic.Int64 // size of a proposal, within a factor of two
	reads      atomic.Int64 // reads not yet answered
	onDesc     func(View)
	onDestroy  func(raft.ShardID, raft.ReplicaID)
	onForget   func(AmnesiaError)
	onDiverged func(DivergedError)
	nodes      func() []raft.NodeID

	digestEvery time.Duration
	stateEvery  time.Duration
	summing     chan struct{} // holds one while a state is read
	rebuilds    bool

	mu      sync.Mutex // rank 1: creation of groups, start, close
	started bool
	closed  bool
	dead    atomic.Pointer[error]
	wg      sync.WaitGroup // loops and what they start
	syncs   sync.WaitGroup // syncers, which outlive their loops
	stop    chan struct{}
	join    sync.Once

	unsynced  unsynced
	table     replicaTable // of replicas that are awake
	descs     descCache    // of those that are not
	dealt     Dealt        // nil: none; see AddUntouched
	idleAfter time.Duration
	awake     int // how many more are awake from the start
	startedAt raft.Time
	// stepper is set, before anything runs, if the host is stepped by hand.
	stepper *Stepper
	stats   stats
}

type stats struct {
	rounds, syncs, entries, commands, applied, unknown, joined, anomalies, amnesiacs, refused, logTurned atomic.Uint64
	compared, diverged, rebuilt, naps, wakes, images                                                     atomic.Uint64
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
	Compared                                  uint64 // times that replicas were compared, by leaders here
	Diverged                                  uint64 // replicas found to differ, or that could not be read
	Rebuilt                                   uint64 // replicas of this node that were rebuilt after that
	Images                                    uint64 // snapshots sent from images that were there, in the log or beside it
	PendingBytes                              int64  // of proposals not yet resolved
	PendingReads                              int64  // not yet answered
	Naps, Wakes                               uint64 // of replicas that had nothing to do
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
		snaps: c.Snapshots, cutAge: cmp.Or(c.CutAge, DefaultCutAge), tuning: c.Tuning.WithDefaults(), seed: c.Seed, logger: c.Logger, onRole: c.OnRole, clockOK: c.ClockOK, onSync: c.OnSync, onFatal: c.OnFatal,
		maxBytes: c.ProposalBytes, stop: make(chan struct{}), roundMax: cmp.Or(c.RoundBytes, maxRoundBytes), tailMax: c.TailBytes / int64(c.Loops),
	}
	h.logCap.limit = c.LogBytes
	if k, ok := c.Snapshots.(ImageKeeper); ok && c.Tuning.Cut == raft.CutLeaderImage {
		h.keeper = k
	}
	h.leaseClock = noLeaseClock{}
	if lc, ok := c.Liveness.(LeaseClock); ok && c.Leases {
		h.leases, h.leaseClock = true, lc
	}
	h.onDesc, h.onDestroy, h.onForget, h.nodes = c.OnDescriptor, c.OnDestroy, c.OnAmnesia, c.Nodes
	h.onDiverged, h.digestEvery = c.OnDiverged, c.DigestEvery
	if h.digestEvery == 0 {
		h.digestEvery = DefaultDigestEvery
	}
	if h.stateEvery, h.summing = c.StateEvery, make(chan struct{}, 1); h.stateEvery == 0 {
		h.stateEvery = DefaultStateEvery
	}
	for i := range c.Loops {
		l := newLoop(h, i)
		l.window = max(feedBytes/c.Loops, h.tuning.MaxMsgBytes)
		l.admission.init(c.ProposalWait)
		l.in.maxBytes = cmp.Or(c.InboxBytes, maxInboxMsgBytes)
		h.loops = append(h.loops, l)
	}
	h.idleAfter, h.awake, h.startedAt = c.IdleAfter, c.Awake, c.Clock.Now()
	if h.idleAfter == 0 {
		h.idleAfter = DefaultIdleAfter
	}
	if h.awake == 0 {
		h.awake = DefaultAwake
	}
	h.engine.OnFlush(h.onFlush)
	h.rebuilds = c.Rebuild
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
	var fresh []*replica
	for _, st := range states {
		id := st.Desc.Shard
		if h.has(id) {
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
		if h.awake <= 0 && ok && h.bed(&st, restarted) {
			continue
		}
		h.awake--
		cfg := h.coreConfig(id, me.ID)
		cfg.Restarted = restarted
		core, err := raft.NewCore(cfg, st, now)
		if err != nil {
			return fmt.Errorf("multiraft: shard %d: %w", id, err)
		}
		r, err := h.newReplica(now, me.ID, core, st, h.gens.Add(1))
		if err != nil {
			return fmt.Errorf("multiraft: shard %d: %w", id, err)
		}
		h.table.put(r)
		fresh = append(fresh, r)
	}
	for _, r := range fresh {
		if !h.started {
			r.loop.adopt(now, r)
			continue
		}
		r.loop.in.put(func(it *items) {
			it.funcs = append(it.funcs, func(now raft.Time) { r.loop.adopt(now, r) })
		})
	}
	for _, l := range h.loops {
		if !h.started {
			l.scanFrom(now)
			continue
		}
		l.in.put(func(it *items) {
			it.funcs = append(it.funcs, func(now raft.Time) { l.scanFrom(now) })
		})
	}
	return nil
}

// bed makes a replica a stub from the start, if it has nothing to do.
func (h *Host) bed(st *raft.State, restarted bool) bool {
	if st.Last != st.Applied.Applied || st.Desc.IsJoint() || st.Hard.Term>>32 != 0 {
		return false
	}
	g := ground{kind: kindUnsure, flag: restarted, members: membersOf(nil, &st.Desc)}
	h.loopOf(st.Desc.Shard).stubs.put(stub{shard: st.Desc.Shard, last: st.Last, gen: h.gens.Add(1), term: uint32(st.Hard.Term), kept: st.Applied.TruncIndex < st.Last}, &g)
	return true
}

func (h *Host) coreConfig(shard raft.ShardID, self raft.ReplicaID) raft.Config {
	return raft.Config{
		Node: h.node, Replica: self, Liveness: h.live, Leased: h.leases, Since: max(1, h.startedAt),
		Rand: mix(h.seed ^ uint64(shard)<<20 ^ uint64(h.node)), Shared: &h.tuning,
	}
}

// newReplica makes what belongs to a core.
func (h *Host) newReplica(now raft.Time, self raft.ReplicaID, core *raft.Core, st raft.State, gen uint64) (*replica, error) {
	r := &replica{
		shard: st.Desc.Shard, self: self, loop: h.loopOf(st.Desc.Shard), core: core, desc: core.Descriptor(), as: st.Applied,
		hard: st.Hard, lastTs: st.Applied.GroupTs, heapPos: -1, gen: gen,
		flushFrom: h.engine.NextFlush(), loose: loose{upTo: st.Applied.Applied}, doze: doze{active: now},
		cmp: comparison{at: raft.Never},
	}
	q, err := h.engine.Quarantined(r.shard)
	if err != nil {
		return nil, err
	}
	r.remain(q)
	if m := h.External(r.desc.Keyspace); m != nil {
		if err := h.openOutside(now, r, m); err != nil {
			return nil, err
		}
	} else if h.engine.DefersApply() {
		core.Hold(st.Applied.Applied)
	}
	r.publish(now, time.Unix(0, int64(h.clock.Wall())))
	return r, nil
}

// adopt makes the loop the owner of r.
func (l *loop) adopt(now raft.Time, r *replica) {
	l.byID[r.shard] = r
	if n := len(l.order); n > 0 && l.order[n-1].shard > r.shard {
		l.unordered = true
	}
	r.place = int32(len(l.order))
	l.order = append(l.order, r)
	if r.ill != nil && r.ill.ward.dirt { // it was found faulty as it was loaded
		l.wantSync = true
		var err *DivergedError
		if r.fenced != nil && errors.As(r.fenced, &err) {
			l.diverged(err)
		}
	}
	l.peak = max(l.peak, len(l.order))
	r.stirredAt(now)
	l.touch(r)
	l.timers.set(r, r.core.Deadline())
}

// inOrder returns the replicas that are awake, by shard id.
func (l *loop) inOrder() []*replica {
	if l.unordered {
		slices.SortFunc(l.order, func(a, b *replica) int { return cmp.Compare(a.shard, b.shard) })
		for i, r := range l.order {
			r.place = int32(i)
		}
		l.unordered = false
	}
	return l.order
}

// CreateGroups writes the first state of new groups, durably, in one batch, and
// adds them. Groups that exist, or whose replica was destroyed here, are left
// alone. All others are there when it returns nil; on an error none of the new
// ones may be relied on.
func (h *Host) CreateGroups(descs []raft.Descriptor) error {
	var states []raft.State
	b := h.engine.NewBatch()
	for i := range descs {
		d := &descs[i]
		if h.has(d.Shard) {
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
		if m := h.External(d.Keyspace); m != nil { // what an earlier life left there
			if err := safely(func() error { return m.Drop(d.Shard) }); err != nil {
				b.Close()
				return fmt.Errorf("multiraft: create groups: the state machine of shard %d: %w", d.Shard, err)
			}
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
	r, st, g := h.find(shard)
	if err := h.refuse(shard, r, &st, g, false); err != nil {
		w.Proposed(nil, 0, 0, err)
		return
	}
	l := h.loopOf(shard)
	if h.clockOK != nil && !h.clockOK() && !mutants.On("B0-C6b") {
		w.Proposed(nil, 0, 0, &OverloadedError{RetryAfter: time.Second, Why: "this node's clock is too far ahead of the others'; set it right"})
		return
	}
	p := proposal{shard: shard, cmd: cmd, done: w, size: len(cmd.Body) + 32}
	if err := h.admit(l, r, shard, p.size); err != nil {
		w.Proposed(nil, 0, 0, err)
		if !mutants.On("S19-effect") {
			return
		}
		p.done = nil
	}
	if !l.in.putProposal(&p) {
		l.admission.withdraw(p.size)
		h.release(p.size)
		w.Proposed(nil, 0, 0, ErrClosed)
	}
}

// refuse answers what can be answered without asking the loop. atFollower: a follower
// that knows its leader will do.
func (h *Host) refuse(shard raft.ShardID, r *replica, st *stub, g *ground, atFollower bool) error {
	if h.dead.Load() != nil {
		return ErrClosed
	}
	if r == nil && g != nil {
		return h.refuseAsleep(st, g, atFollower)
	}
	if r == nil {
		return ErrUnknownShard
	}
	v := r.pub.Load()
	switch {
	case v.fenced != nil:
		return fmt.Errorf("%w: shard %d: %w", ErrFenced, shard, v.fenced)
	case v.noQuorum != nil:
		return v.noQuorum
	case !v.isLeader && !(atFollower && v.leader != 0):
		return &NotLeaderError{Shard: shard, Leader: v.leader, Term: v.term}
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
	r, st, g := h.find(shard)
	if err := h.refuse(shard, r, &st, g, how == byFollower); err != nil {
		done(0, err)
		return
	}
	if h.reads.Add(1) > maxReads {
		h.reads.Add(-1)
		done(0, &OverloadedError{RetryAfter: 100 * time.Millisecond, Why: "too many reads wait on this node"})
		return
	}
	if !h.loopOf(shard).in.putRead(readRequest{shard: shard, how: how, done: done}) {
		h.reads.Add(-1)
		done(0, ErrClosed)
	}
}

// Descriptor returns the applied descriptor of a shard on this node.
func (h *Host) Descriptor(shard raft.ShardID) (raft.Descriptor, bool) {
	if r := h.table.get(shard); r != nil {
		return *r.pub.Load().desc, true
	}
	v, ok := h.look(shard)
	return v.Desc, ok
}

// View returns what is known of one replica.
func (h *Host) View(shard raft.ShardID) (View, bool) {
	return h.look(shard)
}

// Views returns all replicas of this node, in order of shard id. Of those that sleep
// the descriptor is read from the store, one by one: see AwakeViews and Census.
func (h *Host) Views() []View {
	out := h.AwakeViews()
	awake := len(out)
	for _, l := range h.loops {
		l.stubs.mu.RLock()
		ids := make([]raft.ShardID, 0, l.stubs.n)
		for i := range l.stubs.n {
			ids = append(ids, l.stubs.at(i).shard)
		}
		l.stubs.mu.RUnlock()
		for _, id := range ids {
			if v, ok := h.look(id); ok {
				out = append(out, v)
			}
		}
	}
	if len(out) == awake {
		return out
	}
	sortViews(out)
	return slices.CompactFunc(out, func(a, b View) bool { return a.Shard == b.Shard }) // one that woke meanwhile
}

// SomeViews returns at most limit replicas of this node, in order of shard id: fenced ones, then
// those that are awake, then others. It looks at no more of those that sleep.
func (h *Host) SomeViews(limit int) []View {
	out := h.AwakeViews()
	slices.SortStableFunc(out, func(a, b View) int {
		switch {
		case a.Fenced != nil && b.Fenced == nil:
			return -1
		case a.Fenced == nil && b.Fenced != nil:
			return 1
		}
		return 0
	})
	out = out[:min(limit, len(out))]
	h.EachAsleep(func(s raft.ShardID) bool {
		if len(out) >= limit {
			return false
		}
		if v, ok := h.View(s); ok {
			out = append(out, v)
		}
		return true
	})
	sortViews(out)
	return slices.CompactFunc(out, func(a, b View) bool { return a.Shard == b.Shard }) // one that woke meanwhile
}

// AwakeView is View of a replica that is awake.
func (h *Host) AwakeView(shard raft.ShardID) (View, bool) {
	if r := h.table.get(shard); r != nil {
		return r.view(r.pub.Load()), true
	}
	return View{}, false
}

// AwakeViews returns the replicas of this node that are awake, in order of shard id.
func (h *Host) AwakeViews() []View {
	all := h.table.all()
	out := make([]View, 0, len(all))
	for _, r := range all {
		out = append(out, r.view(r.pub.Load()))
	}
	sortViews(out)
	return out
}

// EachAsleep calls f with the shards whose replicas sleep, in no order, until it reports
// false. One that wakes or falls asleep meanwhile may be left out.
func (h *Host) EachAsleep(f func(raft.ShardID) bool) {
	for _, l := range h.loops {
		for from, some := 0, [256]raft.ShardID{}; ; from += len(some) {
			l.stubs.mu.RLock()
			n := 0
			for n < len(some) && from+n < l.stubs.n {
				some[n] = l.stubs.at(from + n).shard
				n++
			}
			l.stubs.mu.RUnlock()
			for _, s := range some[:n] {
				if !f(s) {
					return
				}
			}
			if n < len(some) {
				break
			}
		}
	}
}

func sortViews(out []View) {
	slices.SortFunc(out, func(a, b View) int {
		switch {
		case a.Shard < b.Shard:
			return -1
		case a.Shard > b.Shard:
			return 1
		}
		return 0
	})
}

// Stats returns counters.
func (h *Host) Stats() Stats {
	return Stats{
		Rounds: h.stats.rounds.Load(), Syncs: h.stats.syncs.Load(), Entries: h.stats.entries.Load(),
		Commands: h.stats.commands.Load(), Applied: h.stats.applied.Load(),
		UnknownShard: h.stats.unknown.Load(), Anomalies: h.stats.anomalies.Load(), JoinedTries: h.stats.joined.Load(), Amnesiacs: h.stats.amnesiacs.Load(), Refused: h.stats.refused.Load(), Compared: h.stats.compared.Load(), Diverged: h.stats.diverged.Load(), Rebuilt: h.stats.rebuilt.Load(), Images: h.stats.images.Load(), PendingBytes: h.pending.Load(),
		PendingReads: h.reads.Load(), Naps: h.stats.naps.Load(), Wakes: h.stats.wakes.Load(),
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
				for _, r := range l.inOrder() {
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
	for _, l := range h.loops {
		l.in.put(func(it *items) {
			it.funcs = append(it.funcs, func(now raft.Time) { l.scanFrom(now) })
		})
	}
}

// On runs f on the loop that owns shard, with its replica's core, and waits. It
// fails with ErrUnknownShard, ErrClosed or the context's error; in the last case
// f may still run.
func (h *Host) On(ctx context.Context, shard raft.ShardID, f func(now raft.Time, c *raft.Core, o *raft.Out) error) error {
	return h.on(ctx, shard, func(now raft.Time, r *replica, o *raft.Out) error { return f(now, r.core, o) })
}

// on is On for the replica.
func (h *Host) on(ctx context.Context, shard raft.ShardID, f func(now raft.Time, r *replica, o *raft.Out) error) error {
	if !h.has(shard) {
		return ErrUnknownShard
	}
	ch := make(chan error, 1)
	l := h.loopOf(shard)
	ok := l.in.put(func(it *items) {
		it.funcs = append(it.funcs, func(now raft.Time) {
			r := l.get(now, shard)
			if r == nil || r.removed {
				ch <- ErrUnknownShard
				return
			}
			r.stirredAt(now)
			l.touch(r)
			ch <- f(now, r, &l.out)
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
// text), err nil. It returns late where much of the group is in memory, which is
// flushed first (settle.go).
func (h *Host) ChangeConf(ctx context.Context, shard raft.ShardID, cc raft.ConfChange, done ProposeFunc) error {
	err := h.changeConf(ctx, shard, cc, done, h.stepper != nil)
	if !errors.Is(err, errLoose) {
		return err
	}
	flushed := make(chan struct{})
	h.engine.FlushAside(func() { close(flushed) })
	select {
	case <-flushed:
	case <-ctx.Done():
		return context.Cause(ctx)
	}
	return h.changeConf(ctx, shard, cc, done, true)
}

// changeConf is ChangeConf; unless settled it fails with errLoose, and proposes nothing,
// where memory should be flushed first.
func (h *Host) changeConf(ctx context.Context, shard raft.ShardID, cc raft.ConfChange, done ProposeFunc, settled bool) error {
	return h.on(ctx, shard, func(now raft.Time, r *replica, o *raft.Out) error {
		c := r.core
		if r.fenced != nil {
			return r.refused()
		}
		if c.Status().Role == raft.RoleLeader {
			if err := h.safeConf(r.desc, &cc); err != nil {
				return err
			}
			if !settled && r.loose.bytes > looseMost && h.engine.DefersApply() {
				return errLoose
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
// With keepLog the replica is quarantined and its log holds the snapshot's last entry:
// the log, and how far it is cut, have to stay as they are.
type InstallFunc func(hs raft.HardState, applied raft.AppliedState, exists, keepLog bool) (raft.State, error)

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
	r := l.get(now, shard)
	if r == nil {
		if l.dying[shard] != nil && !mutants.On("G13") {
			return fmt.Errorf("multiraft: a replica of shard %d is being destroyed here", shard)
		}
		st, err := install(raft.HardState{}, raft.AppliedState{}, false, false)
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
	keepLog := r.keepsLog(index, term)
	if !keepLog && !r.core.WantsSnapshot(index, term) && !mutants.On("E3") {
		return fmt.Errorf("%w of shard %d, index %d", ErrSnapshotStale, shard, index)
	}
	if r.out != nil && (r.out.busy || r.out.at < index) {
		return fmt.Errorf("multiraft: the state machine of shard %d has not loaded the snapshot of index %d", shard, index)
	}
	r.stirredAt(now)
	st, err := install(r.core.HardState(), r.as, true, keepLog)
	if err != nil {
		return l.notInstalled(shard, index, term, err)
	}
	if r.as, r.hard = st.Applied, st.Hard; !mutants.On("C9") {
		r.desc = &st.Desc
	}
	r.lastTs = max(r.lastTs, st.Applied.GroupTs)
	r.fenced = nil
	l.voidImage(r)
	l.released(r)
	r.core.Restore(now, st, &l.out)
	if r.desc == &st.Desc {
		r.desc = r.core.Descriptor() // the same, once
	}
	if x := r.out; x != nil {
		if x.held, x.look = nil, 0; !keepLog {
			x.skips = nil
		}
		r.hold(r.as.Applied)
	}
	r.loose = loose{upTo: r.as.Applied}
	r.passOver(r.as.Applied, r.as.AppliedTerm, &l.done)
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

func (h *Host) sendSnapshot(l *loop, r *replica, t raft.SnapshotTask) {
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
	if l.sendKept(r, t, finish) {
		return
	}
	if s, ok := h.snaps.(ImageSender); ok && r.images != nil && r.images.at > 0 && !t.Fresh {
		if image, at := h.image(r); image != nil {
			h.stats.images.Add(1)
			r.core.SnapshotFrom(t.ToReplica, at)
			s.SendImage(image, t.Shard, t.To, t.ToReplica, func(index raft.Index, term raft.Term, err error) {
				if err != nil {
					l.in.put(func(it *items) {
						it.funcs = append(it.funcs, func(raft.Time) { r.images.at = 0 }) // the next one is made anew
					})
				}
				finish(index, term, err)
			})
			return
		}
	}
	h.snaps.SendSnapshot(r.desc.Clone(), t.To, t.ToReplica, finish)
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
