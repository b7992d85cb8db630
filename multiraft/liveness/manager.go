package liveness

import (
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"github.com/flotillakv/flotilla/internal/mutants"
	"github.com/flotillakv/flotilla/multiraft/raft"
)

// maxQueuedCtl bounds the control records that wait for the manager. Further
// ones are dropped: heartbeats come again, and a lost withdrawal or
// relinquishment is made good by time.
const maxQueuedCtl = 8192

// Store is the durable side of liveness.
type Store interface {
	// SaveSupport writes recs, later ones over earlier ones of the same node,
	// and returns when they are synced. An error means that nothing may be
	// assumed about any of them; the manager then falls silent.
	SaveSupport(recs ...Record) error
	// SyncNow proves that the disk takes writes: it writes and syncs something.
	SyncNow() error
}

// Net sends control records.
type Net interface {
	// SendCtl queues c for node to. It never blocks and may drop.
	SendCtl(to raft.NodeID, c raft.Ctl)
}

// Clock is the node's clock, the same one its Raft cores are stepped with.
type Clock interface {
	// Now returns the monotonic time.
	Now() raft.Time
	// Wall returns the wall clock in Unix nanoseconds.
	Wall() uint64
	// Wait returns when Now has reached until or wake delivers, whichever is first.
	Wait(until raft.Time, wake <-chan struct{})
}

// Config configures a Manager.
type Config struct {
	// Node is the own node; not zero.
	Node raft.NodeID
	// BootEpoch was raised and synced at this boot, before New.
	BootEpoch uint64
	// Timing of the promises; zero fields have defaults.
	Timing
	// Records are what the store holds (SaveSupport's last records, one per node).
	Records []Record
	// Peers lists the nodes to ask for support; looked at before each
	// heartbeat, so it may grow. It must not block. Nil: only AddPeer counts.
	Peers func() []raft.NodeID
	// Gate says whether the node's loops are alive: every loop with work
	// finished a round within D/2 (rule C4). The manager adds the disk's part.
	// It must not block. Nil: always open.
	Gate func(now raft.Time) bool
	// Yield lets the manager give all support back when the disk has stood still for
	// so long that the own node is not counted any more (Gate.Self): leaders elsewhere
	// can be elected at once, instead of when the last promise has run out.
	Yield bool
	// Score returns the overload score that is shown to peers. Nil: zero.
	Score func() uint8
	// OnChange is called after the published support for or from node changed
	// otherwise than by an extension: gained, withdrawn, lapsed, new epoch. It
	// runs on the manager's goroutine and must not block. node may be the own
	// node (own gate opened or closed). Nil: nobody is told.
	OnChange func(node raft.NodeID)
	// OnOldCopy is called when a peer answers that it was shown a later boot of
	// this node: the store of this node is an old copy. It runs on the manager's
	// goroutine and must not block. Nil: nobody is told.
	OnOldCopy func(peer raft.NodeID)
	// Logger gets lines about lost and regained support. Nil: none.
	Logger *slog.Logger
}

// PeerState is the published state of one node, for status pages.
type PeerState struct {
	Node raft.NodeID
	// For, Supported: this node's promise to Node.
	For       raft.Epoch
	Supported bool
	// From, Supports: Node's promise to this node, counted now.
	From     raft.Epoch
	Supports bool
	// Since is when one of them changed last, by the own monotonic clock.
	Since raft.Time
	// Score is Node's overload score.
	Score uint8
	// OldCopy: Node has seen a later boot of this node; the own store is an old copy.
	OldCopy bool
}

// Stats counts what happened since New.
type Stats struct {
	Beats     uint64 // rounds of heartbeats sent
	Yields    uint64 // how often support was given back because the disk stood still
	LateBeats uint64 // of them: put off for more than half an interval by the gate
	Withdrawn uint64 // promises to others that ended
	Returned  uint64 // notices of others that they give a promise back
	Lost      uint64 // promises of others that ended
	Dropped   uint64 // control records dropped by a full queue
}

// Manager runs Rules. It implements raft.Liveness: SupportFor and SupportFrom
// are lock-free and may be called from any goroutine.
type Manager struct {
	cfg   Config
	store Store
	net   Net
	clock Clock

	instant Instant // the clock, if it can read both times at once

	table    table
	anchor   atomic.Int64 // for LeaseNow; notAnchored: none yet
	ahead    atomic.Int64 // ClockAhead, nanoseconds
	lastSync atomic.Int64 // raft.Time of the last sync known to have succeeded
	writing  atomic.Bool  // DiskStep is at the disk
	// stalledAt is when the disk took a write last, while it stands still; else zero.
	stalledAt atomic.Int64
	failed    atomic.Bool // the store failed: no heartbeat, no answer any more
	stats     struct {
		yields, beats, lateBeats, withdrawn, returned, lost, dropped atomic.Uint64
	}

	// Only the goroutine that steps touches these.
	rules   *Rules
	fx      Effects
	ctl     []ctlIn
	tokens  []uint64
	events  []event
	changed []raft.NodeID
	beatDue raft.Time // since when heartbeats are due; zero: not due

	// mu guards the queues. It is a leaf lock: held across no call, no I/O.
	mu struct {
		sync.Mutex
		ctl      []ctlIn
		tokens   []uint64 // durable
		events   []event
		persists []Persist
		wantSync bool
		started  bool
		closed   bool
	}
	wake     chan struct{} // to run
	wakeDisk chan struct{} // to runDisk
	wg       sync.WaitGroup
	stop     atomic.Bool
}

type ctlIn struct {
	from raft.NodeID
	recv raft.Time
	ctl  raft.Ctl
}

type eventKind uint8

const (
	eventAddPeer eventKind = iota
	eventPeerUp
	eventRelinquish
)

type event struct {
	kind eventKind
	node raft.NodeID
	done chan struct{}
}

var _ raft.Liveness = (*Manager)(nil)

// New returns a manager whose table already shows the promises of cfg.Records.
// It sends nothing before Start, or before Step for owners who step by hand.
func New(cfg Config, store Store, net Net, clock Clock) (*Manager, error) {
	m := &Manager{cfg: cfg, store: store, net: net, clock: clock,
		wake: make(chan struct{}, 1), wakeDisk: make(chan struct{}, 1)}
	m.cfg.Timing = cfg.Timing.WithDefaults()
	m.instant, _ = clock.(Instant)
	m.anchor.Store(notAnchored)
	now := clock.Now()
	rules, err := NewRules(RulesConfig{Node: cfg.Node, BootEpoch: cfg.BootEpoch, Timing: m.cfg.Timing}, cfg.Records, now, &m.fx)
	if err != nil {
		return nil, err
	}
	m.rules = rules
	m.lastSync.Store(int64(now)) // the boot epoch was synced just now
	for _, en := range m.fx.Table {
		m.table.set(en, now)
	}
	m.fx.Reset()
	return m, nil
}

// Start starts the two goroutines. Call it once; not at all to step by hand.
func (m *Manager) Start() {
	m.mu.Lock()
	if m.mu.started || m.mu.closed {
		m.mu.Unlock()
		return
	}
	m.mu.started = true
	m.mu.Unlock()
	m.wg.Add(2)
	go m.run()
	go m.runDisk()
}

func (m *Manager) run() {
	defer m.wg.Done()
	for !m.stop.Load() {
		m.Step()
		m.clock.Wait(m.Deadline(), m.wake)
	}
}

func (m *Manager) runDisk() {
	defer m.wg.Done()
	for !m.stop.Load() {
		if !m.DiskStep() {
			<-m.wakeDisk
		}
	}
}

// Close stops the goroutines and waits for them. Nothing is withdrawn or given
// back by it. It may be called more than once.
func (m *Manager) Close() {
	m.mu.Lock()
	m.mu.closed = true
	m.mu.Unlock()
	m.stop.Store(true)
	kick(m.wake)
	kick(m.wakeDisk)
	m.wg.Wait()
	m.mu.Lock()
	events := m.mu.events
	m.mu.events = nil
	m.mu.Unlock()
	for _, ev := range events {
		ev.finish()
	}
}

// OnCtl takes a control record that came from node from at recv, by the
// manager's clock. It never blocks.
func (m *Manager) OnCtl(from raft.NodeID, recv raft.Time, c raft.Ctl) {
	m.mu.Lock()
	full := len(m.mu.ctl) >= maxQueuedCtl
	if !full {
		m.mu.ctl = append(m.mu.ctl, ctlIn{from, recv, c})
	}
	m.mu.Unlock()
	if full {
		m.stats.dropped.Add(1)
		return
	}
	kick(m.wake)
}

// AddPeer makes the manager ask node for support from now on.
func (m *Manager) AddPeer(node raft.NodeID) { m.post(event{kind: eventAddPeer, node: node}) }

// PeerUp says that messages to node get through again, so that support is
// asked for at once instead of after up to one interval.
func (m *Manager) PeerUp(node raft.NodeID) { m.post(event{kind: eventPeerUp, node: node}) }

// NoteSync says that the store synced something at t, by the manager's clock;
// a busy store thus needs no syncs of the gate's own. Any goroutine may call it.
func (m *Manager) NoteSync(t raft.Time) {
	for {
		old := m.lastSync.Load()
		if int64(t) <= old || m.lastSync.CompareAndSwap(old, int64(t)) {
			return
		}
	}
}

// Relinquish gives back all support this node has: nothing is counted any
// more when it returns, the peers have been told (if messages get through),
// and no heartbeat leaves for the rest of this boot. For a clean stop, after
// leaders were transferred away.
func (m *Manager) Relinquish() {
	ev := event{kind: eventRelinquish, done: make(chan struct{})}
	if started, ok := m.post(ev); !ok {
		return
	} else if !started {
		m.Step()
	}
	<-ev.done
}

// post queues ev; ok is false if the manager is closed.
func (m *Manager) post(ev event) (started, ok bool) {
	m.mu.Lock()
	started, ok = m.mu.started, !m.mu.closed
	if ok {
		m.mu.events = append(m.mu.events, ev)
	}
	m.mu.Unlock()
	kick(m.wake)
	return started, ok
}

// Step takes in everything that is queued and does what time asks for. It is
// called by the manager's goroutine, or by an owner who did not call Start.
func (m *Manager) Step() {
	if mutants.On("B0-D2") {
		m.DiskStep()
	}
	m.mu.Lock()
	m.ctl, m.mu.ctl = m.mu.ctl, m.ctl[:0]
	m.tokens, m.mu.tokens = m.mu.tokens, m.tokens[:0]
	m.events, m.mu.events = m.mu.events, m.events[:0]
	m.mu.Unlock()

	at := m.at()
	if m.cfg.Score != nil {
		m.rules.SetScore(m.cfg.Score())
	}
	for _, t := range m.tokens {
		m.rules.Done(at, t, &m.fx)
	}
	for _, in := range m.ctl {
		if m.failed.Load() {
			break // a node that cannot keep a promise makes none
		}
		if in.ctl.Kind == raft.CtlRelinquish {
			m.stats.returned.Add(1)
		}
		m.rules.Step(at, in.from, in.recv, in.ctl, &m.fx)
	}
	for _, ev := range m.events {
		switch ev.kind {
		case eventAddPeer:
			m.rules.AddPeer(at.Now, ev.node, &m.fx)
		case eventPeerUp:
			m.rules.PeerUp(at.Now, ev.node)
		case eventRelinquish:
			m.rules.Relinquish(at.Now, &m.fx)
		}
	}
	m.tick(at)
	ahead, _ := m.rules.ClockAhead(at.Now)
	m.ahead.Store(int64(ahead))
	m.carryOut(at.Now)
	for i := range m.events {
		m.events[i].finish()
		m.events[i] = event{}
	}
}

// tick looks at the gate and ticks the rules.
func (m *Manager) tick(at At) {
	var g Gate
	if !m.failed.Load() {
		loops := m.cfg.Gate == nil || m.cfg.Gate(at.Now)
		idle := at.Now.Sub(raft.Time(m.lastSync.Load()))
		g.Self = loops && idle <= m.cfg.Interval+m.cfg.Duration/2
		g.Beat = loops && idle < m.cfg.Interval
		m.watchDisk(at, idle)
	}
	due := m.rules.BeatDue(at.Now)
	if due && m.beatDue == 0 {
		m.beatDue = at.Now
		if m.cfg.Peers != nil {
			for _, n := range m.cfg.Peers() {
				m.rules.AddPeer(at.Now, n, &m.fx)
			}
		}
	}
	switch {
	case m.beatDue != 0 && g.Beat:
		m.stats.beats.Add(1)
		if at.Now.Sub(m.beatDue) > m.cfg.Interval/2 {
			m.stats.lateBeats.Add(1)
		}
		m.beatDue = 0
	case due:
		m.mu.Lock()
		m.mu.wantSync = true
		m.mu.Unlock()
		kick(m.wakeDisk)
	}
	m.rules.Tick(at, g, &m.fx)
}

// watchDisk notices a disk that stands still: a write of this manager's is under
// way, and nothing was synced for as long as the own node may count itself.
func (m *Manager) watchDisk(at At, idle time.Duration) {
	stalled := idle > m.cfg.Interval+m.cfg.Duration/2 && m.writing.Load()
	if stalled && m.stalledAt.Load() == 0 {
		m.stalledAt.Store(max(m.lastSync.Load(), 1))
		m.stats.yields.Add(1)
		if m.cfg.Yield && !mutants.On("H1a") {
			m.rules.Yield(at.Now, &m.fx)
		}
	}
	if idle < m.cfg.Interval {
		m.stalledAt.Store(0)
	}
}

// Stalled reports whether the disk stands still, and for how long nothing was
// synced. Any goroutine may call it.
func (m *Manager) Stalled() (time.Duration, bool) {
	at := m.stalledAt.Load()
	return m.clock.Now().Sub(raft.Time(at)), at != 0
}

// carryOut publishes, then sends, then starts writes, then tells.
func (m *Manager) carryOut(now raft.Time) {
	m.changed = m.changed[:0]
	for _, en := range m.fx.Table {
		m.note(en)
		m.table.set(en, now)
		if en.Notify {
			m.changed = append(m.changed, en.Node)
		}
	}
	if a := m.rules.anchor; a.known {
		m.anchor.Store(int64(a.diff)) // behind the table: LeaseArm
	}
	for _, s := range m.fx.Sends {
		m.net.SendCtl(s.To, s.Ctl)
	}
	if len(m.fx.Persists) > 0 {
		m.mu.Lock()
		m.mu.persists = append(m.mu.persists, m.fx.Persists...)
		m.mu.Unlock()
		kick(m.wakeDisk)
	}
	m.fx.Reset()
	if m.cfg.OnChange == nil {
		return
	}
	for i, n := range m.changed {
		if i == 0 || m.changed[i-1] != n {
			m.cfg.OnChange(n)
		}
	}
}

// note counts and logs what en changes.
func (m *Manager) note(en Entry) {
	old := m.table.get(en.Node)
	if old == nil || en.Node == m.cfg.Node {
		return
	}
	if old.ForLive && !en.ForLive {
		m.stats.withdrawn.Add(1)
		m.log("liveness: support withdrawn", en.Node, en.For)
	}
	if !old.ForLive && en.ForLive {
		m.log("liveness: support given", en.Node, en.For)
	}
	if old.Until != 0 && en.Until == 0 {
		m.stats.lost.Add(1)
		m.log("liveness: support lost", en.Node, old.From)
	}
	if old.Until == 0 && en.Until != 0 {
		m.log("liveness: support gained", en.Node, en.From)
	}
	if !old.Ahead && en.Ahead && m.cfg.OnOldCopy != nil {
		m.cfg.OnOldCopy(en.Node)
	}
	if !old.Ahead && en.Ahead && m.cfg.Logger != nil {
		m.cfg.Logger.Error("liveness: a peer remembers a later boot of this node; this store is an old copy and gets no support",
			"peer", en.Node, "boot_epoch", m.cfg.BootEpoch)
	}
}

func (m *Manager) log(what string, node raft.NodeID, epoch raft.Epoch) {
	if m.cfg.Logger != nil {
		m.cfg.Logger.Info(what, "peer", node, "epoch_boot", uint64(epoch)>>32, "epoch_n", uint64(epoch)&0xffffffff)
	}
}

// DiskStep writes what waits to be written, or syncs for the gate, and reports
// whether there was anything to do. It blocks as long as the disk does. It is
// called by the second goroutine, or by an owner who did not call Start.
func (m *Manager) DiskStep() (worked bool) {
	m.mu.Lock()
	persists, wantSync := m.mu.persists, m.mu.wantSync
	m.mu.persists, m.mu.wantSync = nil, false
	m.mu.Unlock()
	if len(persists) == 0 && !wantSync || m.failed.Load() {
		return false
	}
	var err error
	m.writing.Store(true)
	defer m.writing.Store(false)
	if len(persists) > 0 {
		recs := make([]Record, len(persists))
		for i, p := range persists {
			recs[i] = p.Record
		}
		err = m.store.SaveSupport(recs...)
	} else {
		err = m.store.SyncNow()
	}
	if err != nil {
		// Whether anything was written is unknown, so nothing may be promised
		// any more: no token is completed and the gate stays closed.
		m.failed.Store(true)
		if m.cfg.Logger != nil {
			m.cfg.Logger.Error("liveness: store failed, this node gives no answers and asks for no support", "err", err)
		}
		kick(m.wake)
		return true
	}
	m.NoteSync(m.clock.Now())
	m.mu.Lock()
	for _, p := range persists {
		m.mu.tokens = append(m.mu.tokens, p.Token)
	}
	m.mu.Unlock()
	kick(m.wake)
	return true
}

// DiskBegin says that a DiskStep is at the disk from now on: for an owner in whose
// time that takes long, though the call itself does not.
func (m *Manager) DiskBegin() { m.writing.Store(true) }

// DiskPending reports whether DiskStep has something to do.
func (m *Manager) DiskPending() bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	return (len(m.mu.persists) > 0 || m.mu.wantSync) && !m.failed.Load()
}

// Deadline returns when Step has to be called at the latest. Only the
// goroutine that steps may call it.
func (m *Manager) Deadline() raft.Time {
	m.mu.Lock()
	waiting := len(m.mu.ctl)+len(m.mu.tokens)+len(m.mu.events) > 0
	m.mu.Unlock()
	if waiting {
		return 0
	}
	d := m.rules.Deadline()
	if !m.failed.Load() {
		// Notice a disk or a loop that stands still while nothing else happens.
		d = min(d, m.clock.Now().Add(m.cfg.Interval))
	}
	return d
}

// SupportFor implements raft.Liveness.
func (m *Manager) SupportFor(n raft.NodeID) (raft.Epoch, bool) {
	if p := m.table.get(n); p != nil {
		return p.For, p.ForLive
	}
	return 0, false
}

// SupportFrom implements raft.Liveness.
func (m *Manager) SupportFrom(n raft.NodeID) (raft.Epoch, raft.Time) {
	if p := m.table.get(n); p != nil {
		return p.From, p.Until
	}
	return 0, 0
}

// ClockAhead returns how far the own wall clock is ahead of the median of the
// peers' (see Rules.ClockAhead); zero while none was heard. Any goroutine may call it.
func (m *Manager) ClockAhead() time.Duration { return time.Duration(m.ahead.Load()) }

// ClockOK reports that proposals may be accepted as far as the clock is
// concerned (rule C6).
func (m *Manager) ClockOK() bool { return m.ClockAhead() <= MaxClockAhead }

// Snapshot returns the published state of every known node but the own one,
// ordered by node. Any goroutine may call it.
func (m *Manager) Snapshot() []PeerState {
	v := m.table.view.Load()
	now := m.clock.Now()
	out := make([]PeerState, 0, len(v.nodes))
	for _, n := range v.nodes {
		p := m.table.get(n)
		if n == m.cfg.Node {
			continue
		}
		out = append(out, PeerState{Node: n, For: p.For, Supported: p.ForLive, From: p.From,
			Supports: now < p.Until, Since: p.since, Score: p.Score, OldCopy: p.Ahead})
	}
	return out
}

// Stats returns the counters. Any goroutine may call it.
func (m *Manager) Stats() Stats {
	return Stats{Yields: m.stats.yields.Load(), Beats: m.stats.beats.Load(), LateBeats: m.stats.lateBeats.Load(),
		Withdrawn: m.stats.withdrawn.Load(), Returned: m.stats.returned.Load(), Lost: m.stats.lost.Load(), Dropped: m.stats.dropped.Load()}
}

func (ev *event) finish() {
	if ev.done != nil {
		close(ev.done)
		ev.done = nil
	}
}

// kick wakes the reader of a one-slot channel.
func kick(c chan struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}

// SystemClock is the Clock of a real node.
type SystemClock struct{ origin time.Time }

// NewSystemClock returns a clock whose Now starts near one hour, so that a
// time in the past is still positive.
func NewSystemClock() *SystemClock { return &SystemClock{origin: time.Now().Add(-time.Hour)} }

// Now implements Clock.
func (c *SystemClock) Now() raft.Time { return raft.Time(time.Since(c.origin)) }

// Wall implements Clock.
func (c *SystemClock) Wall() uint64 { return uint64(time.Now().UnixNano()) }

// Instant reads both clocks in one go.
func (c *SystemClock) Instant() (raft.Time, uint64) {
	t := time.Now()
	return raft.Time(t.Sub(c.origin)), uint64(t.UnixNano())
}

// Wait implements Clock.
func (c *SystemClock) Wait(until raft.Time, wake <-chan struct{}) {
	d := until.Sub(c.Now())
	if d <= 0 {
		select {
		case <-wake:
		default:
		}
		return
	}
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
	case <-wake:
	}
}
