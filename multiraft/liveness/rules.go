package liveness

import (
	"fmt"
	"slices"
	"time"

	"github.com/flotillakv/flotilla/internal/mutants"
	"github.com/flotillakv/flotilla/multiraft/raft"
)

const (
	// Slack is taken off the time for which support is counted, beside rho. It
	// covers clock granularity and the time between reading the clock and
	// acting on it.
	Slack = 5 * time.Millisecond
	// FarFuture is the end of the own support while the own gate is open.
	FarFuture = raft.Time(1 << 62)
	// MaxPeers bounds the peers of one node. Heartbeats of further ones are ignored.
	MaxPeers = 4096
	// sentRing is how many heartbeats to one peer may be unanswered until a
	// late reply to the oldest is no longer counted. With D >= 4 intervals a
	// reply that old would be worthless anyway.
	sentRing = 16
)

// Record is what a supporter must not forget about one node. The zero Record
// is never stored.
type Record struct {
	Node raft.NodeID
	// Epoch is the last epoch of Node that was accepted.
	Epoch raft.Epoch
	// Withdrawn says that support at Epoch and all epochs below has ended for good.
	Withdrawn bool
}

// Timing holds the three numbers the promises are made of. All nodes of a
// cluster should agree on them. Where durations differ, the shorter one of a
// pair counts: an answer carries the supporter's.
type Timing struct {
	// Interval (h) is the time between two heartbeats. Zero means 500 ms.
	Interval time.Duration
	// Duration (D) is how long one heartbeat is good for at the supporter. Zero means 2.5 s.
	Duration time.Duration
	// Rho is the bound on the difference of two clocks' rates, in [0.001, 0.5). Zero means 0.01.
	Rho float64
}

// WithDefaults returns t with zero fields replaced by their defaults.
func (t Timing) WithDefaults() Timing {
	if t.Interval == 0 {
		t.Interval = 500 * time.Millisecond
	}
	if t.Duration == 0 {
		t.Duration = 2500 * time.Millisecond
	}
	if t.Rho == 0 {
		t.Rho = 0.01
	}
	return t
}

// Validate reports the first rule that t (with defaults filled in) breaks.
func (t Timing) Validate() error {
	switch {
	case t.Interval < time.Millisecond:
		return fmt.Errorf("liveness: interval %v is below 1ms", t.Interval)
	case t.Duration < 4*t.Interval:
		return fmt.Errorf("liveness: duration %v is below four intervals of %v", t.Duration, t.Interval)
	case t.Duration < 10*Slack:
		return fmt.Errorf("liveness: duration %v is below %v", t.Duration, 10*Slack)
	case t.Duration > time.Hour:
		return fmt.Errorf("liveness: duration %v is above 1h", t.Duration)
	case !(t.Rho >= 0.001 && t.Rho < 0.5):
		return fmt.Errorf("liveness: rho %v is outside [0.001, 0.5)", t.Rho)
	}
	return nil
}

// counted returns for how long after sending a heartbeat its answer is
// counted, when the supporter's duration is d: the shorter of the two decides,
// so that nodes with different settings stay safe.
func (t Timing) counted(d time.Duration) time.Duration {
	d = min(d, t.Duration)
	if mutants.On("D9b") {
		return d
	}
	return d - time.Duration(float64(d)*t.Rho) - Slack
}

// rebooted returns for how long after boot a promise from an earlier life stands.
func (t Timing) rebooted() time.Duration {
	return t.Duration + time.Duration(float64(t.Duration)*t.Rho)
}

// RulesConfig is what Rules needs to know of its node.
type RulesConfig struct {
	Node raft.NodeID
	// BootEpoch was raised and synced before any Rules of this boot was made.
	// It is at least 1 and below 1<<31.
	BootEpoch uint64
	Timing
}

// At is an instant as the node sees it.
type At struct {
	// Now is the monotonic clock. It never runs backwards from call to call.
	Now raft.Time
	// Wall is the wall clock in Unix nanoseconds. It is only compared with
	// peers' wall clocks and decides nothing about support.
	Wall uint64
}

// Gate is the node's opinion of itself.
type Gate struct {
	// Beat allows heartbeats: the disk synced something within the last
	// interval, and every loop with work finished a round lately.
	Beat bool
	// Self says that this node may count itself towards a quorum.
	Self bool
}

// Send is a control record to be sent to a node. Losing it is harmless.
type Send struct {
	To  raft.NodeID
	Ctl raft.Ctl
}

// Persist is a record to be written and synced. Rules.Done(Token) must be
// called once it is durable, and must not be called if writing failed.
type Persist struct {
	Token  uint64
	Record Record
}

// Entry is what is to be published about one node.
type Entry struct {
	Node raft.NodeID
	// For and ForLive: this node supports Node at epoch For; ForLive says that
	// the promise still stands. ForLive goes false only after the withdrawal is durable.
	For     raft.Epoch
	ForLive bool
	// From and Until: Node supports this node at epoch From, and that may be
	// counted while the own clock is below Until. Until zero: not supported.
	From  raft.Epoch
	Until raft.Time
	// Ahead: Node remembers a later boot of this node than the present one, so
	// this store is an old copy and Node refuses to support it.
	Ahead bool
	// Score is Node's overload score as of its last answer.
	Score uint8
	// Notify says that more than an extension happened: support was gained,
	// withdrawn, lost, or changed its epoch.
	Notify bool
}

// Effects collects what a step wants done. The owner must (1) publish Table,
// then (2) send Sends and (3) start Persists; (4) tell others about entries
// with Notify. Rule B6 and B2 rest on publishing before sending.
type Effects struct {
	Table    []Entry
	Sends    []Send
	Persists []Persist
}

// Reset empties e and keeps its memory.
func (e *Effects) Reset() {
	e.Table, e.Sends, e.Persists = e.Table[:0], e.Sends[:0], e.Persists[:0]
}

func (e *Effects) send(to raft.NodeID, c raft.Ctl) {
	e.Sends = append(e.Sends, Send{To: to, Ctl: c})
}

// Rules is node-pair liveness as a state machine. It is not safe for
// concurrent use. Every method takes the present instant and appends to the
// Effects given; none keeps a reference to it.
type Rules struct {
	cfg       RulesConfig
	peers     []*peer // sorted by node, the own node is not among them
	lastToken uint64
	nextBeat  raft.Time
	// blocked: a heartbeat was due and the gate was closed.
	blocked bool
	// stopped: Relinquish was called, no heartbeat leaves any more.
	stopped  bool
	selfOpen bool
	score    uint8
	anchor   anchor
}

// peer is both sides of the pair (own node, node).
type peer struct {
	node raft.NodeID
	sup  supporter
	req  requester
	// offset is the peer's wall clock minus ours when its last heartbeat came in.
	offset    time.Duration
	offsetAt  raft.Time
	hasOffset bool
	score     uint8
}

// NewRules returns the rules of a node that has just booted at now with the
// records its store holds. Records that were not withdrawn are promises that
// still stand, until now + D*(1+rho). The initial table is in e.
func NewRules(cfg RulesConfig, records []Record, now raft.Time, e *Effects) (*Rules, error) {
	cfg.Timing = cfg.Timing.WithDefaults()
	if err := cfg.Timing.Validate(); err != nil {
		return nil, err
	}
	if cfg.Node == 0 {
		return nil, fmt.Errorf("liveness: node id is zero")
	}
	if cfg.BootEpoch == 0 || cfg.BootEpoch >= 1<<31 {
		return nil, fmt.Errorf("liveness: boot epoch %d is outside [1, 1<<31)", cfg.BootEpoch)
	}
	r := &Rules{cfg: cfg, nextBeat: now, selfOpen: true}
	for _, rec := range records {
		if rec.Node == cfg.Node || rec.Node == 0 || rec.Epoch == 0 {
			continue // never written by this package
		}
		p := r.ensure(rec.Node)
		if p == nil {
			return nil, fmt.Errorf("liveness: more than %d support records", MaxPeers)
		}
		p.sup.restore(rec, now.Add(cfg.rebooted()))
		p.publish(e, false)
	}
	e.Table = append(e.Table, r.selfEntry(false))
	return r, nil
}

// AddPeer makes r ask node for support from now on. Adding one twice, or the
// own node, changes nothing.
func (r *Rules) AddPeer(now raft.Time, node raft.NodeID, e *Effects) {
	if node == r.cfg.Node || node == 0 {
		return
	}
	p := r.ensure(node)
	if p == nil || p.req.asking {
		return
	}
	p.req.asking = true
	p.req.epoch = raft.Epoch(r.cfg.BootEpoch<<32 | 1)
	if mutants.On("B0-B3") {
		p.req.epoch = 1 << 32 // the same in every boot
	}
	p.publish(e, false)
	r.nextBeat = min(r.nextBeat, now)
}

// PeerUp says that messages to node get through (again): the next Tick asks
// for support at once instead of at the next interval.
func (r *Rules) PeerUp(now raft.Time, node raft.NodeID) {
	if p := r.find(node); p != nil && p.req.asking {
		r.nextBeat = min(r.nextBeat, now)
	}
}

// SetScore sets the overload score that replies carry.
func (r *Rules) SetScore(score uint8) { r.score = score }

// Step takes a control record of node from, received at recv by the own clock
// (recv <= at.Now; a heartbeat that was received before a promise ran out
// extends it even if it is stepped later, as long as no Tick came between). Records of unknown kind are ignored.
func (r *Rules) Step(at At, from raft.NodeID, recv raft.Time, c raft.Ctl, e *Effects) {
	if from == r.cfg.Node || from == 0 {
		return
	}
	recv = min(recv, at.Now)
	r.noteClocks(at, e)
	p := r.find(from)
	if p == nil {
		// A node that we do not know yet may be promised support all the same;
		// nothing else can concern it.
		if c.Kind != raft.CtlHeartbeat {
			return
		}
		if p = r.ensure(from); p == nil {
			return
		}
	}
	switch c.Kind {
	case raft.CtlHeartbeat:
		if c.Epoch == 0 || c.Epoch>>63 != 0 {
			return
		}
		p.noteWall(at, recv, c.Wall)
		r.heartbeat(p, at.Now, recv, c.Epoch, c.Seq, e)
	case raft.CtlReply:
		p.score = c.Score
		r.reply(p, at.Now, c, e)
	case raft.CtlWithdrawn:
		r.withdrawnBy(p, at.Now, c.Epoch, e)
	case raft.CtlRelinquish:
		r.relinquishedBy(p, at.Now, c.Epoch, e)
	}
}

// Done says that the record of a Persist is durable.
func (r *Rules) Done(at At, token uint64, e *Effects) {
	for _, p := range r.peers {
		if p.sup.token == token && token != 0 {
			r.persisted(p, at.Now, e)
			return
		}
	}
}

// Tick does what time asks for: withdraws promises that ran out, abandons
// epochs whose support lapsed, and sends heartbeats that are due, if the gate
// lets them. The owner calls it when Deadline has come, and when the gate opens.
func (r *Rules) Tick(at At, g Gate, e *Effects) {
	r.noteClocks(at, e)
	for _, p := range r.peers {
		r.lapse(p, at.Now, e)
		r.expire(p, at.Now, e)
	}
	if open := g.Self && !r.stopped; open != r.selfOpen {
		r.selfOpen = open
		e.Table = append(e.Table, r.selfEntry(true))
	}
	if !r.BeatDue(at.Now) && !(r.blocked && g.Beat) || r.stopped {
		return
	}
	r.blocked = !g.Beat && !mutants.On("B0-C4")
	if r.blocked {
		// C4: nothing leaves. Look again soon: the owner ticks at once when a
		// sync completes, a loop's recovery is seen by this retry.
		r.nextBeat = at.Now.Add(max(r.cfg.Interval/8, time.Millisecond))
		return
	}
	r.slewAnchor(at)
	for _, p := range r.peers {
		r.ask(p, at, e)
	}
	r.nextBeat = at.Now.Add(r.cfg.Interval)
}

// BeatDue reports whether it is time for heartbeats, so that the owner looks
// at the gate (and syncs the disk for it) before Tick.
func (r *Rules) BeatDue(now raft.Time) bool { return !r.stopped && now >= r.nextBeat }

// Deadline returns when Tick wants to be called next.
func (r *Rules) Deadline() raft.Time {
	d := FarFuture
	if !r.stopped {
		d = r.nextBeat
	}
	for _, p := range r.peers {
		d = min(d, p.sup.deadline(), p.req.deadline(r.cfg.Duration))
	}
	return d
}

// Relinquish gives back all support: from now on nothing is counted and no
// heartbeat leaves, for the rest of this boot. Leaders have been moved away
// before. Publishing the table comes before sending (rule B6).
func (r *Rules) Relinquish(now raft.Time, e *Effects) {
	if r.stopped {
		return
	}
	r.stopped = true
	r.selfOpen = false
	e.Table = append(e.Table, r.selfEntry(true))
	for _, p := range r.peers {
		r.giveBack(p, e)
	}
}

// Yield gives back all support for now: nothing that was promised so far is counted
// any more, and the peers are told, so that they need not wait for their promises to
// run out. Support is asked for anew, at higher epochs, when the gate lets
// heartbeats out again. As at Relinquish, publishing comes before sending (B6).
func (r *Rules) Yield(now raft.Time, e *Effects) {
	if r.stopped {
		return
	}
	for _, p := range r.peers {
		r.lapse(p, now, e)
		r.giveBack(p, e)
	}
}

// SupportFor returns the promise to n as it may be shown (see raft.Liveness).
func (r *Rules) SupportFor(n raft.NodeID) (raft.Epoch, bool) {
	if n == r.cfg.Node {
		if mutants.On("B0-C5") {
			return 1, true
		}
		return raft.Epoch(r.cfg.BootEpoch), true
	}
	if p := r.find(n); p != nil {
		return p.sup.shown, p.sup.shownLive
	}
	return 0, false
}

// SupportFrom returns the promise of n as it may be counted (see raft.Liveness).
func (r *Rules) SupportFrom(n raft.NodeID) (raft.Epoch, raft.Time) {
	if n == r.cfg.Node {
		en := r.selfEntry(false)
		return en.From, en.Until
	}
	if p := r.find(n); p != nil {
		return p.req.epoch, p.req.until
	}
	return 0, 0
}

// selfEntry is rule C5: the epoch of self-support is the boot epoch.
func (r *Rules) selfEntry(notify bool) Entry {
	en := Entry{Node: r.cfg.Node, For: raft.Epoch(r.cfg.BootEpoch), ForLive: true, From: raft.Epoch(r.cfg.BootEpoch), Notify: notify}
	if r.selfOpen {
		en.Until = FarFuture
	}
	if mutants.On("B0-C5") {
		en.For, en.From = 1, 1
	}
	return en
}

func (p *peer) publish(e *Effects, notify bool) {
	e.Table = append(e.Table, Entry{Node: p.node, For: p.sup.shown, ForLive: p.sup.shownLive,
		From: p.req.epoch, Until: p.req.until, Ahead: p.req.ahead, Score: p.score, Notify: notify})
}

func (r *Rules) find(n raft.NodeID) *peer {
	if i, ok := r.search(n); ok {
		return r.peers[i]
	}
	return nil
}

// ensure returns the peer n, new if needed; nil when MaxPeers are known.
func (r *Rules) ensure(n raft.NodeID) *peer {
	i, ok := r.search(n)
	if ok {
		return r.peers[i]
	}
	if len(r.peers) >= MaxPeers {
		return nil
	}
	r.peers = slices.Insert(r.peers, i, &peer{node: n})
	return r.peers[i]
}

func (r *Rules) search(n raft.NodeID) (int, bool) {
	return slices.BinarySearchFunc(r.peers, n, func(p *peer, n raft.NodeID) int {
		switch {
		case p.node < n:
			return -1
		case p.node > n:
			return 1
		}
		return 0
	})
}
