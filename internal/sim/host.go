package sim

import (
	"encoding/binary"
	"errors"
	"slices"
	"time"

	"github.com/flotillakv/flotilla/internal/sim/coverage"
	"github.com/flotillakv/flotilla/multiraft/liveness"
	"github.com/flotillakv/flotilla/multiraft/raft"
)

// node is one process: the owner of a core, its store and its liveness rules.
type node struct {
	w   *World
	id  raft.NodeID
	idx int

	up          bool
	held        bool   // the liveness phase keeps it down
	hurt        broken // how the liveness phase keeps it broken
	gen         uint32 // its life, counted from 1
	bootAt      int64  // virtual time of boot
	origin      raft.Time
	pausedUntil int64
	suspendEnd  int64         // the clock stands still until then
	suspended   time.Duration // that the clock has missed in this life
	wallSet     time.Duration // by how much the wall clock was set, in all
	slowUntil   int64
	slow        time.Duration
	// stalledUntil: syncs do not end before.
	stalledUntil int64
	bootEpoch    uint64 // durable

	disk   disk
	forgot amnesia
	pairs  *liveness.Rules
	eff    liveness.Effects
	// effSpare is the memory of effects that were carried out.
	effSpare liveness.Effects
	// lastSync is when a sync last completed, by the node's clock.
	lastSync raft.Time

	core      *raft.Core
	desc      raft.Descriptor // what the core was told last
	replica   raft.ReplicaID
	coreLife  uint32 // counts cores of this node
	out       raft.Out
	inbox     []event
	roundSet  bool
	tickAt    int64
	tickSeq   uint64
	pairsAt   int64
	applyQ    []raft.Entry
	applySet  bool
	waiting   []proposal
	reads     []readWait
	asks      []askWait
	shown     shown
	leaseBuf  []raft.LeaseVoter
	lastTs    uint64
	removed   raft.Index // of the entry that took this replica out; zero: a member
	removedAt int64
	arriving  int   // snapshots on their way to this node
	departing int   // snapshots it is about to build or has sent, of this life
	installed int64 // when the last one was
	obs       observed
	before    struct { // when the round began
		voter bool
		role  raft.RaftRole
	}
}

// proposal is an entry of this node's log that a client waits for.
type proposal struct {
	mark raft.LogMark
	ids  []uint64
}

// readWait is a read index asked for and not answered.
type readWait struct {
	ctx  uint64
	need raft.Index // committed anywhere when the read began
	at   int64
}

// snapshot is the state of a replica as it travels.
type snapshot struct {
	from, to    int
	fromReplica raft.ReplicaID
	toReplica   raft.ReplicaID
	applied     raft.AppliedState
	sum         uint64
	desc        raft.Descriptor
}

// inputs of a core that are not messages travel as events of these kinds.
const (
	inAppended eventKind = iota + 100
	inPropose
	inConf
	inRead
	inTransfer
	inCampaign
	inPairs
	inReset
	inTick
	inFetched
	inSnapSent
	inSnapArrived
)

func newNode(w *World, i int) *node {
	return &node{w: w, id: raft.NodeID(i + 1), idx: i, bootEpoch: 0}
}

// clock returns the node's monotonic clock.
func (n *node) clock() raft.Time { return n.clockAt(n.w.now) }

func (n *node) clockAt(t int64) raft.Time {
	t = max(t, n.suspendEnd) - int64(n.suspended)
	return n.origin + raft.Time(float64(t-n.bootAt)*(1+n.w.p.Drift[n.idx]))
}

// suspend stops the machine, its monotonic clock included.
func (n *node) suspend(d time.Duration) {
	from := max(n.w.now, n.suspendEnd)
	n.suspendEnd = from + int64(d)
	n.suspended += d
	n.pausedUntil = max(n.pausedUntil, n.suspendEnd)
}

// resume ends a suspend early.
func (n *node) resume() {
	if left := n.suspendEnd - n.w.now; left > 0 {
		n.suspended -= time.Duration(left)
		n.suspendEnd = n.w.now
	}
}

// realAt returns the first virtual time at which the clock shows at least t.
func (n *node) realAt(t raft.Time) int64 {
	return n.bootAt + int64(n.suspended) + int64(float64(t-n.origin)/(1+n.w.p.Drift[n.idx])) + 1
}

// boot starts the node from what its disk holds.
func (n *node) boot() {
	w := n.w
	n.up = true
	n.gen++
	n.keepOld()
	n.bootEpoch++ // synced before anything else
	n.bootAt, n.suspendEnd, n.suspended = w.now, 0, 0
	n.asks, n.shown = nil, shown{}
	n.origin = raft.Time(1 + w.rng.Int64N(1e12))
	n.pausedUntil, n.tickAt, n.pairsAt = 0, 0, 0
	n.departing, n.installed = 0, 0
	n.inbox, n.roundSet, n.applyQ, n.applySet = nil, false, nil, false
	n.waiting, n.reads, n.core, n.removed = nil, nil, nil, 0
	n.disk.visible = n.disk.durable.clone()
	w.log(n.idx, "boot", uint64(n.gen), n.bootEpoch)
	w.tell(n.idx, "boot", n.bootEpoch, 0)

	now := n.clock()
	n.lastSync = now
	var recs []liveness.Record
	for i, s := range n.disk.durable.support {
		if s.epoch != 0 {
			recs = append(recs, liveness.Record{Node: raft.NodeID(i + 1), Epoch: s.epoch, Withdrawn: s.withdrawn})
		}
	}
	n.eff.Reset()
	var err error
	n.pairs, err = liveness.NewRules(liveness.RulesConfig{Node: n.id, BootEpoch: n.bootEpoch,
		Timing: liveness.Timing{Interval: w.p.Beat, Duration: w.p.Support, Rho: 0.011}}, recs, now, &n.eff)
	if err != nil {
		w.fail("F1", "liveness rules of node %d: %v", n.id, err)
	}
	for _, p := range w.nodes {
		if p != n {
			n.pairs.AddPeer(now, p.id, &n.eff)
		}
	}
	for i := len(w.nodes); i < w.p.Nodes; i++ { // first boot: the others follow
		if raft.NodeID(i+1) != n.id {
			n.pairs.AddPeer(now, raft.NodeID(i+1), &n.eff)
		}
	}
	n.pairEffects()
	if n.disk.visible.exists {
		n.start(n.disk.visible.state())
	}
}

// start makes the core from a durable state.
func (n *node) start(st raft.State) {
	id := n.disk.visible.replica
	n.coreLife++
	if me, ok := st.Desc.ReplicaOn(n.id); !ok {
		n.linger(st.Applied.ConfIndex)
	} else if me.ID != id {
		n.w.fail("S10", "node %d starts replica %d, its descriptor names %d", n.id, id, me.ID)
	}
	n.w.orc.recovered(n)
	core, err := raft.NewCore(raft.Config{Node: n.id, Replica: id, Liveness: n, Leased: !n.w.p.NoLease, Restarted: n.bootEpoch > 1,
		Rand: mix(n.w.sched.Seed, uint64(n.idx)<<32|uint64(n.gen)), Tuning: n.w.p.Tuning}, st, n.clock())
	if err != nil {
		n.w.fail("F1", "node %d: NewCore: %v", n.id, err)
	}
	n.core, n.desc, n.replica = core, st.Desc, id
	n.obs = observed{commit: core.Status().Commit, applied: st.Applied.Applied}
	n.wake()
}

// crash stops the node and loses what was not synced, but keep batches.
func (n *node) crash() {
	w := n.w
	ops, state := coverage.Set(0), coverage.State(0)
	if w.cov != nil {
		ops, state = n.underWay(), n.state()
	}
	n.up = false
	n.gen++
	keep := 0
	switch r := w.rng.Float64(); {
	case r < w.p.KeepAll:
		keep = len(n.disk.pending)
	case r < w.p.KeepAll+w.p.KeepNone:
	default:
		keep = w.rng.IntN(len(n.disk.pending) + 1)
	}
	w.log(n.idx, "crash", uint64(keep), uint64(len(n.disk.pending)))
	switch keep {
	case len(n.disk.pending):
		w.cov.HitAll(coverage.Kill, ops, state)
	case 0:
		w.cov.HitAll(coverage.CrashLost, ops, state)
	default:
		w.cov.HitAll(coverage.CrashPart, ops, state)
	}
	w.tell(n.idx, "crash", uint64(keep), uint64(len(n.disk.pending)))
	for i := range keep {
		w.orc.durable(n, &n.disk.pending[i])
	}
	n.disk.crash(keep)
	n.core = nil
	w.res.Crashes++
	if w.p.Stream {
		for i := range w.nodes {
			if i != n.idx {
				w.net.reset(i, n.idx)
			}
		}
	}
}

// SupportFor is raft.Liveness.
func (n *node) SupportFor(id raft.NodeID) (raft.Epoch, bool) { return n.pairs.SupportFor(id) }

// SupportFrom is raft.Liveness.
func (n *node) SupportFrom(id raft.NodeID) (raft.Epoch, raft.Time) { return n.pairs.SupportFrom(id) }

// handle takes one event: most go to the inbox and are stepped in a round.
func (n *node) handle(e *event) {
	w := n.w
	switch e.kind {
	case evCtl:
		now := n.clock()
		n.eff.Reset()
		n.pairs.Step(n.at(), raft.NodeID(e.x+1), now, e.ctl, &n.eff)
		n.pairEffects()
	case evPairs:
		if e.at < n.pairsAt {
			return
		}
		n.tickPairs()
	case inRead:
		n.readShown()
		n.input(*e)
	case evSync:
		if n.stalledUntil > w.now { // the halt caught this one, too
			e.at = n.stalledUntil
			w.at(*e)
			return
		}
		n.synced()
	case evTick:
		if e.x != n.tickSeq {
			return
		}
		n.tickAt = 0
		n.input(event{kind: inTick})
	case evLinger:
		n.lingered(uint32(e.x))
	case evReset:
		n.pairs.PeerUp(n.clock(), raft.NodeID(e.x+1))
		n.planPairs()
		n.input(event{kind: inReset, x: e.x})
	case evRound:
		n.roundSet = false
		n.round()
	case evApply:
		n.applySet = false
		n.applyRound()
	case evFetch:
		n.fetch(e.arg.(raft.FetchTask))
	case evSnapBuild:
		n.buildSnapshot(e.arg.(raft.SnapshotTask), false)
	case evSnapArrive:
		n.arriving--
		n.input(event{kind: inSnapArrived, arg: e.arg})
	case inSnapSent:
		n.departing--
		n.input(*e)
	case evDeliver:
		w.trace.add(record{at: w.now, node: n.idx, what: "recv", msg: e.msg})
		n.input(*e)
	default:
		n.input(*e)
	}
}

// input puts an event into the inbox and wakes the loop.
func (n *node) input(e event) {
	n.inbox = append(n.inbox, e)
	n.wake()
}

func (n *node) wake() {
	if !n.roundSet {
		n.roundSet = true
		n.w.after(n.w.exp(n.w.p.RoundDelay), event{kind: evRound, node: int32(n.idx), gen: n.gen})
	}
}

// round drains the inbox into the core and carries out what comes out.
func (n *node) round() {
	w := n.w
	in := n.inbox
	n.inbox = nil
	if len(in) > 1 && w.rng.IntN(3) == 0 { // a short round: the rest comes later
		k := 1 + w.rng.IntN(len(in)-1)
		n.inbox = append(n.inbox, in[k:]...)
		in = in[:k]
		n.wake()
	}
	n.beginRound()
	now := n.clock()
	for i := range in {
		n.step(now, &in[i])
	}
	if n.core != nil {
		n.settleAsks(now)
		if n.core.Stirred() {
			n.core.Flush(now, &n.out)
		} else if err := n.core.CheckQuiet(now); err != nil {
			w.fail("L3", "node %d: %v", n.id, err)
		}
	}
	n.commitRound(now)
}

// beginRound notes what the oracles compare the end of the round with.
func (n *node) beginRound() {
	n.out.Reset()
	if n.core != nil {
		me, ok := n.desc.Replica(n.replica)
		n.before.voter = ok && me.Role != raft.Learner
		n.before.role = n.core.Status().Role
	}
}

// step hands one input to the core.
func (n *node) step(now raft.Time, e *event) {
	c, o := n.core, &n.out
	if e.kind == inSnapArrived {
		n.install(now, e.arg.(*snapshot))
		return
	}
	if c == nil {
		if e.kind == evDeliver {
			n.unknown(e.msg)
		}
		return
	}
	switch e.kind {
	case evDeliver:
		if e.msg.ToReplica > n.replica && e.msg.Type == raft.MsgApp {
			n.unknown(e.msg) // this replica was replaced and does not know it yet
			return
		}
		m := *e.msg
		m.Entries = slices.Clone(m.Entries)
		c.Step(now, &m, o)
	case inAppended:
		if uint32(e.x) == n.coreLife {
			c.Appended(now, e.arg.(raft.LogMark), o)
		}
	case inTick:
		if now >= c.Deadline() {
			c.Tick(now, o)
		}
	case inReset:
		c.PeerReset(now, raft.NodeID(e.x+1), o)
	case inPairs:
		c.LivenessChanged(now, raft.NodeID(e.x+1), o)
	case inPropose:
		n.propose(now, e.x)
	case inRead:
		n.startRead(now)
	case inTransfer:
		if to, ok := n.desc.ReplicaOn(raft.NodeID(e.x + 1)); ok {
			err := c.Transfer(now, to.ID, o)
			n.w.log(n.idx, "transfer", e.x+1, errCode(err))
		}
	case inCampaign:
		n.w.log(n.idx, "campaign", 0, 0)
		c.Campaign(now, o)
	case inConf:
		if !n.w.calm { // the healthy set was chosen for the changes known by then
			n.proposeConf(now, e.x)
		}
	case inFetched:
		f := e.arg.(*fetched)
		if f.life == n.coreLife {
			c.Fetched(now, f.to, f.prev, f.ents, f.err, o)
		}
	case inSnapSent:
		f := e.arg.(*snapSent)
		if f.life == n.coreLife {
			c.SnapshotSent(now, f.to, f.index, f.term, f.ok, o)
		}
	}
}

type fetched struct {
	life uint32
	to   raft.ReplicaID
	prev raft.Term
	ents []raft.Entry
	err  error
}

type snapSent struct {
	life  uint32
	to    raft.ReplicaID
	index raft.Index
	term  raft.Term
	ok    bool
}

// unknown answers a message for a replica that is not here.
func (n *node) unknown(m *raft.Msg) {
	if m.Type != raft.MsgApp || m.ToReplica == 0 || m.ToReplica < n.disk.visible.tomb {
		return
	}
	n.out.Msgs = append(n.out.Msgs, raft.Msg{Type: raft.MsgNeedSnapshot, Shard: m.Shard, From: n.id, To: m.From,
		FromReplica: m.ToReplica, ToReplica: m.FromReplica, Term: m.Term})
}

// propose hands 1..3 new commands to the core.
func (n *node) propose(now raft.Time, r uint64) {
	w := n.w
	k := 1 + int(r%3)
	cmds := make([]raft.Command, k)
	ids := make([]uint64, k)
	for i := range cmds {
		w.nextID++
		ids[i] = w.nextID
		body := make([]byte, 8+int(r>>8)%w.p.Payload)
		binary.LittleEndian.PutUint64(body, w.nextID)
		cmds[i] = raft.Command{Op: 1, Body: body}
	}
	n.lastTs = max(n.lastTs+1, uint64(w.now))
	last := n.core.Status().Last
	mark, err := n.core.Propose(now, raft.EntryHeader{GroupTs: n.lastTs}, cmds, &n.out)
	if err != nil {
		if n.core.Status().Last != last {
			w.fail("S16", "node %d refuses command %d (%v) and appends it all the same", n.id, ids[0], err)
		}
		w.log(n.idx, "refused", ids[0], errCode(err))
		w.orc.definite(ids)
		return
	}
	w.log(n.idx, "propose", ids[0], uint64(mark.Index))
	n.waiting = append(n.waiting, proposal{mark: mark, ids: ids})
}

func errCode(err error) uint64 {
	var busy *raft.BusyError
	switch {
	case err == nil:
		return 0
	case errors.Is(err, raft.ErrNotLeader):
		return 1
	case errors.Is(err, raft.ErrTransferring):
		return 2
	case errors.As(err, &busy):
		return 3
	case errors.Is(err, raft.ErrConfPending):
		return 4
	case errors.Is(err, raft.ErrConfUnsafe):
		return 5
	case errors.Is(err, raft.ErrConfLagging):
		return 6
	}
	return 9
}

// commitRound does what the production owner does at the end of a round, in
// the same order: applies, reads, one batch, messages.
func (n *node) commitRound(now raft.Time) {
	w, o := n.w, &n.out
	if n.forgets() {
		return
	}
	b := batch{life: n.coreLife}
	for i := range o.Roles {
		w.orc.role(n, &o.Roles[i])
	}
	if w.p.ApplyDelay == 0 {
		n.applyTasks(now, &b)
	} else {
		for i := range o.Applies {
			n.applyQ = append(n.applyQ, o.Applies[i].Entries...)
		}
		if len(n.applyQ) > 0 && !n.applySet {
			n.applySet = true
			w.after(n.applyDelay(), event{kind: evApply, node: int32(n.idx), gen: n.gen})
		}
	}
	n.writeRound(now, &b)
}

func (n *node) applyDelay() time.Duration {
	d := n.w.exp(n.w.p.ApplyDelay)
	if n.w.calm { // entries that are applied one by one must not need longer than there is time
		return min(d, 10*time.Millisecond)
	}
	return min(d*time.Duration(n.w.p.ApplyFactor[n.idx]), 2*time.Second)
}

// applyRound applies queued entries in a round of its own.
func (n *node) applyRound() {
	if n.core == nil || len(n.applyQ) == 0 {
		n.applyQ = nil
		return
	}
	w := n.w
	n.beginRound()
	now := n.clock()
	k := len(n.applyQ)
	if w.p.ApplyChunk {
		k = 1 + w.rng.IntN(k)
	}
	n.out.Applies = append(n.out.Applies, raft.ApplyTask{Shard: shard, Entries: slices.Clone(n.applyQ[:k])})
	n.applyQ = slices.Clone(n.applyQ[k:])
	b := batch{life: n.coreLife}
	w.log(n.idx, "apply", uint64(n.out.Applies[0].Entries[0].Index), uint64(k))
	n.applyTasks(now, &b)
	k0 := len(n.out.Applies)
	if n.core != nil {
		n.core.Flush(now, &n.out)
		for i := k0; i < len(n.out.Applies); i++ {
			n.applyQ = append(n.applyQ, n.out.Applies[i].Entries...)
		}
	}
	for i := range n.out.Roles {
		w.orc.role(n, &n.out.Roles[i])
	}
	if len(n.applyQ) > 0 {
		n.applySet = true
		w.after(n.applyDelay(), event{kind: evApply, node: int32(n.idx), gen: n.gen})
	}
	n.writeRound(now, &b)
}

// applyTasks applies o.Applies; with a delay configured, only the first task
// is this round's, the others queue up behind it.
func (n *node) applyTasks(now raft.Time, b *batch) {
	o := &n.out
	for i := 0; i < len(o.Applies); i++ {
		if i > 0 && n.w.p.ApplyDelay > 0 {
			n.applyQ = append(n.applyQ, o.Applies[i].Entries...)
			continue
		}
		ents := slices.Clone(o.Applies[i].Entries)
		for _, e := range ents {
			if n.core == nil {
				return
			}
			n.applyEntry(now, e, b)
		}
	}
}

func (n *node) applyEntry(now raft.Time, e raft.Entry, b *batch) {
	w, im := n.w, &n.disk.visible
	as := im.applied
	for i := range b.ops { // this round's own writes
		if b.ops[i].kind == opApplied {
			as = b.ops[i].applied
		}
	}
	sum := w.orc.apply(n, as.Applied, e)
	as.Applied, as.AppliedTerm = e.Index, e.Term
	next := n.desc
	if e.Type == raft.EntryConf {
		var cc raft.ConfChange
		var err error
		for _, c := range e.Commands() {
			cc, err = raft.DecodeConfChange(c.Body)
		}
		if err == nil {
			next, err = n.desc.Apply(cc)
		}
		if err != nil {
			next = n.desc
			w.log(n.idx, "conf-no", uint64(e.Index), cc.ConfVer)
		} else {
			w.log(n.idx, "conf", uint64(e.Index), next.ConfVer)
			n.desc = next
			as.ConfIndex = e.Index
			b.ops = append(b.ops, op{kind: opDesc, desc: next.Clone()})
			w.orc.conf(n, e.Index, e.Term, next)
		}
	}
	b.ops = append(b.ops, op{kind: opApplied, applied: as, sum: sum})
	n.acknowledge(e)
	if e.Type == raft.EntryConf {
		n.core.ConfApplied(now, next.Clone(), e.Index, &n.out)
		if _, ok := next.ReplicaOn(n.id); !ok {
			n.linger(e.Index)
		}
	}
	n.core.Applied(e.Index, e.Term, len(e.Value), &n.out)
}

// acknowledge ends the proposals that wait for e's index.
func (n *node) acknowledge(e raft.Entry) {
	keep := n.waiting[:0]
	for _, p := range n.waiting {
		switch {
		case p.mark.Index != e.Index:
			keep = append(keep, p)
		case p.mark.Term == e.Term:
			n.w.orc.acked(n, e, p.ids)
		default:
			n.w.orc.definite(p.ids) // another leader's entry is committed here
		}
	}
	n.waiting = keep
}

// writeRound sends the messages of the round and writes its batch.
func (n *node) writeRound(now raft.Time, b *batch) {
	w, o := n.w, &n.out
	for i := range o.Drops {
		w.orc.dropped(n, &o.Drops[i])
	}
	for i := range o.Reads {
		n.answerRead(&o.Reads[i])
	}
	for i := range o.Fetches {
		w.after(w.exp(300*time.Microsecond), event{kind: evFetch, node: int32(n.idx), gen: n.gen, arg: o.Fetches[i]})
	}
	for i := range o.Snapshots {
		n.departing++
		w.after(w.exp(3*time.Millisecond), event{kind: evSnapBuild, node: int32(n.idx), gen: n.gen, arg: o.Snapshots[i]})
	}
	for i := range o.HardStates {
		b.ops = append(b.ops, op{kind: opHard, hard: o.HardStates[i].State})
		b.marks = append(b.marks, raft.LogMark{Term: o.HardStates[i].State.Term})
		b.sync = true
	}
	for i := range o.Appends {
		t := o.Appends[i]
		t.Entries = slices.Clone(t.Entries)
		w.orc.appending(n, &t, b)
		b.ops = append(b.ops, op{kind: opAppend, append: t})
		b.marks = append(b.marks, t.Mark)
		b.sync = true
	}
	for i := range o.Truncates {
		n.truncate(&o.Truncates[i], b)
	}
	b.held = slices.Clone(o.Held)
	if len(b.held) > 0 && (b.sync || len(n.disk.pending) > 0) {
		b.sync = true
	}
	n.hideLease()
	for i := range o.Msgs {
		w.orc.sending(n, &o.Msgs[i])
		w.net.send(&o.Msgs[i])
	}
	switch {
	case len(b.ops) > 0 || b.sync:
		n.disk.commit(*b)
		n.startSync()
	case len(b.held) > 0:
		for i := range b.held {
			w.orc.sending(n, &b.held[i])
			w.net.send(&b.held[i])
		}
	}
	w.orc.round(n)
	n.show()
	n.planTick(now)
}

// linger keeps a replica that was taken out at index until a quorum of the
// configuration without it has applied that, durably: before, the others may
// still need its vote, because a replica counts by the configuration it has
// applied.
func (n *node) linger(index raft.Index) {
	if n.removed == 0 {
		n.removedAt = n.w.now
	}
	n.removed = index
	n.w.after(50*time.Millisecond+n.w.exp(500*time.Millisecond), event{kind: evLinger, node: int32(n.idx), gen: n.gen, x: uint64(n.coreLife)})
}

// lingered looks whether the removed replica may go.
func (n *node) lingered(life uint32) {
	w := n.w
	if n.core == nil || n.removed == 0 || life != n.coreLife {
		return
	}
	d := w.newestConf()
	if !quorum(d, func(r raft.Replica) bool {
		im := &w.nodes[r.Node-1].disk.durable
		return im.exists && im.replica == r.ID && im.applied.Applied >= n.removed
	}) {
		n.linger(n.removed)
		return
	}
	n.destroy()
}

// destroy removes the replica, durably and at once.
func (n *node) destroy() {
	w := n.w
	w.log(n.idx, "destroy", uint64(n.replica), 0)
	w.tell(n.idx, "destroy", uint64(n.replica), 0)
	n.removed = 0
	n.core = nil
	n.coreLife++
	n.applyQ, n.waiting, n.reads, n.asks, n.shown = nil, nil, nil, nil, shown{}
	n.syncAll()
	w.orc.buried(&n.disk.durable)
	n.disk.commit(batch{ops: []op{{kind: opDestroy}}})
	n.persistOne()
}

// truncate cuts the log in this round's batch, never above what is applied in it.
func (n *node) truncate(t *raft.TruncateTask, b *batch) {
	applied, trunc := n.disk.visible.applied.Applied, n.disk.visible.applied.TruncIndex
	for i := range b.ops {
		switch b.ops[i].kind {
		case opApplied:
			applied = b.ops[i].applied.Applied
		case opTruncate:
			trunc = b.ops[i].applied.TruncIndex
		}
	}
	if t.Index <= trunc || n.core == nil {
		return
	}
	n.w.orc.truncating(n, t, applied)
	n.w.log(n.idx, "truncate", uint64(trunc), uint64(t.Index))
	b.ops = append(b.ops, op{kind: opTruncate, applied: raft.AppliedState{TruncIndex: t.Index, TruncTerm: t.Term}})
	n.core.Truncated(t.Index, t.Term)
}

func (n *node) answerRead(r *raft.ReadState) {
	if n.answerAsk(r) {
		return
	}
	i := slices.IndexFunc(n.reads, func(q readWait) bool { return q.ctx == r.Context })
	if i < 0 {
		return
	}
	q := n.reads[i]
	n.reads = slices.Delete(n.reads, i, i+1)
	if r.Err != nil {
		n.w.log(n.idx, "read-no", r.Context, 0)
		return
	}
	n.w.log(n.idx, "read-ok", r.Context, uint64(r.Index))
	n.w.orc.read(n, &q, r.Index)
}

// planTick schedules the core's deadline.
func (n *node) planTick(now raft.Time) {
	if n.core == nil {
		n.tickSeq++
		n.tickAt = 0
		return
	}
	d := n.core.Deadline()
	if d > now.Add(time.Hour) {
		n.tickSeq++
		n.tickAt = 0
		return
	}
	at := max(n.realAt(d), n.w.now+1000)
	if at == n.tickAt {
		return
	}
	n.tickAt = at
	n.tickSeq++
	n.w.at(event{at: at, kind: evTick, node: int32(n.idx), gen: n.gen, x: n.tickSeq})
}

// startSync begins a sync if one is wanted and none is in progress.
func (n *node) startSync() {
	d := &n.disk
	if d.busy || !d.wantSync() {
		return
	}
	d.busy, d.covers = true, len(d.pending)
	w := n.w
	lat := w.p.SyncMin + w.exp(w.p.SyncMean)
	if n.slowUntil > w.now && !w.calm {
		w.cover(coverage.SlowDisk, n)
		lat += time.Duration(float64(n.slow) * w.rng.Float64())
	}
	if w.p.StallProb > 0 && !w.calm && w.rng.Float64() < w.p.StallProb {
		w.cover(coverage.StalledDisk, n)
		lat += w.exp(w.p.StallMean)
	}
	if n.stalledUntil > w.now {
		w.cover(coverage.StalledDisk, n)
	}
	lat = max(lat, time.Duration(n.stalledUntil-w.now))
	w.after(lat, event{kind: evSync, node: int32(n.idx), gen: n.gen})
}

// synced is the end of a sync: what it covers is durable.
func (n *node) synced() {
	d := &n.disk
	k := min(d.covers, len(d.pending))
	d.busy, d.covers = false, 0
	n.lastSync = n.clock()
	n.w.log(n.idx, "synced", uint64(k), uint64(len(d.pending)-k))
	for range k {
		n.persistOne()
	}
	n.startSync()
}

// syncAll makes everything durable at once, as an ingest does.
func (n *node) syncAll() {
	for len(n.disk.pending) > 0 {
		n.persistOne()
	}
	n.disk.covers = 0
}

// persistOne makes the oldest batch durable and does what waited for it.
func (n *node) persistOne() {
	w := n.w
	b := n.disk.persist()
	w.orc.durable(n, &b)
	for i := range b.held {
		if w.p.DropHeld && n.core != nil && b.life == n.coreLife && !n.core.StillHolds(&b.held[i]) {
			continue
		}
		w.orc.sending(n, &b.held[i])
		w.net.send(&b.held[i])
	}
	for _, m := range b.marks {
		n.input(event{kind: inAppended, x: uint64(b.life), arg: m})
	}
	for _, t := range b.token {
		n.eff.Reset()
		n.pairs.Done(n.at(), uint64(t), &n.eff)
		n.pairEffects()
	}
}

// fetch reads entries for a lagging peer from what is visible.
func (n *node) fetch(t raft.FetchTask) {
	if n.core == nil {
		return
	}
	im := &n.disk.visible
	f := &fetched{life: n.coreLife, to: t.To}
	ents := im.entries(t.Next, t.Last)
	size := 0
	for i := range ents {
		size += len(ents[i].Value)
		if i > 0 && size > t.MaxBytes {
			ents = ents[:i]
			break
		}
	}
	prev, ok := im.term(t.Next - 1)
	if len(ents) == 0 || !ok {
		ents, f.err = nil, raft.ErrCompacted
	}
	f.prev, f.ents = prev, ents
	n.w.log(n.idx, "fetch", uint64(t.Next), uint64(len(ents)))
	n.input(event{kind: inFetched, arg: f})
}

// buildSnapshot takes the visible applied state and sends it. Of an unasked
// one the core is not told.
func (n *node) buildSnapshot(t raft.SnapshotTask, unasked bool) {
	if n.core == nil {
		n.departing -= int(b2u(!unasked))
		return
	}
	w, im := n.w, &n.disk.visible
	s := &snapshot{from: n.idx, to: int(t.To) - 1, fromReplica: n.replica, toReplica: t.ToReplica,
		applied: im.applied, sum: im.sum, desc: im.desc.Clone()}
	w.log(n.idx, "snap", uint64(t.To), uint64(s.applied.Applied))
	first, _ := w.net.route(n.idx, s.to, w.cargoFor(n, coverage.SnapSend))
	sent := &snapSent{life: n.coreLife, to: t.ToReplica, index: s.applied.Applied, term: s.applied.AppliedTerm, ok: first > 0}
	if first > 0 {
		first += int64(w.exp(w.p.SnapMean))
		w.nodes[s.to].arriving++
		w.at(event{at: first, kind: evSnapArrive, node: int32(s.to), arg: s})
	} else {
		first = w.now + int64(w.exp(20*time.Millisecond))
	}
	if unasked {
		return
	}
	w.at(event{at: first + int64(w.exp(time.Millisecond)), kind: inSnapSent, node: int32(n.idx), gen: n.gen, arg: sent})
}

// install takes over a snapshot that arrived, unless it is stale.
func (n *node) install(now raft.Time, s *snapshot) {
	w, im := n.w, &n.disk.visible
	me, ok := s.desc.ReplicaOn(n.id)
	status := raft.Msg{Type: raft.MsgSnapStatus, Shard: shard, From: n.id, To: raft.NodeID(s.from + 1),
		FromReplica: s.toReplica, ToReplica: s.fromReplica, Index: s.applied.Applied, LogTerm: s.applied.AppliedTerm}
	old := n.core != nil
	switch {
	case !ok || me.ID != s.toReplica || me.ID < im.tomb || old && me.ID < n.replica:
		w.log(n.idx, "snap-no", uint64(s.applied.Applied), 1)
		status.Flags |= raft.FlagReject
		n.out.Msgs = append(n.out.Msgs, status)
		return
	case old && me.ID == n.replica && !n.wants(s):
		// The log holds all of it already (an install would throw away entries
		// behind it that were acknowledged), or this replica believes to lead.
		w.log(n.idx, "snap-old", uint64(s.applied.Applied), 2)
		status.Term = n.core.Status().Term
		if n.core.Status().Role == raft.RoleLeader {
			status.Flags |= raft.FlagReject
		}
		n.out.Msgs = append(n.out.Msgs, status)
		return
	}
	if old {
		// What the core has just asked for precedes the install.
		n.commitRound(now)
		if !n.up {
			return
		}
		n.out.Reset()
	}
	n.syncAll()
	hard := im.hard
	replaced := !old || me.ID != n.replica
	if replaced {
		w.orc.buried(&n.disk.durable)
	}
	if replaced {
		hard = raft.HardState{}
	}
	if hard.Term < s.applied.AppliedTerm {
		hard = raft.HardState{Term: s.applied.AppliedTerm, Leased: hard.Leased}
	}
	hard.Commit = max(hard.Commit, s.applied.Applied)
	as := s.applied
	as.TruncIndex, as.TruncTerm = as.Applied, as.AppliedTerm
	w.log(n.idx, "install", uint64(as.Applied), uint64(me.ID))
	w.tell(n.idx, "install", uint64(as.Applied), uint64(me.ID))
	w.res.Snaps++
	n.installed = w.now
	n.disk.commit(batch{ops: []op{{kind: opInstall, replica: me.ID, hard: hard, applied: as, sum: s.sum, desc: s.desc.Clone()}}})
	n.persistOne()
	w.orc.installed(n, s)
	st := n.disk.visible.state()
	n.applyQ = nil
	if replaced {
		n.core, n.waiting, n.reads, n.removed = nil, nil, nil, 0
		n.start(st)
	} else {
		n.desc = st.Desc
		n.waiting = slices.DeleteFunc(n.waiting, func(p proposal) bool { return p.mark.Index <= as.Applied }) // outcome unknown
		n.core.Restore(now, st, &n.out)
		n.obs = observed{commit: max(n.obs.commit, as.Applied), applied: as.Applied}
	}
	status.Term = n.core.Status().Term
	n.out.Msgs = append(n.out.Msgs, status)
}

// wants asks the core whether the snapshot brings it forward.
func (n *node) wants(s *snapshot) bool {
	return n.core.WantsSnapshot(s.applied.Applied, s.applied.AppliedTerm)
}

// at is the instant the liveness rules see.
func (n *node) at() liveness.At {
	// The wall clock runs off the same quartz, but through suspends.
	return liveness.At{Now: n.clock(), Wall: 1<<60 + uint64(n.bootAt) + uint64(n.suspended) + uint64(n.clock()-n.origin) + uint64(n.wallSet)}
}

// tickPairs runs the liveness rules' timers.
func (n *node) tickPairs() {
	n.pairsAt = 0
	now := n.clock()
	d := &n.disk
	// The disk gate: an idle disk is synced on purpose; a sync in progress for
	// more than half the duration closes the gate.
	if !d.busy {
		n.lastSync = now
	}
	open := now.Sub(n.lastSync) < n.w.p.Support/2
	n.eff.Reset()
	n.pairs.Tick(n.at(), liveness.Gate{Beat: open, Self: open}, &n.eff)
	n.pairEffects()
}

// pairEffects carries out what the liveness rules want.
func (n *node) pairEffects() {
	w := n.w
	// Effects are consumed before the next step of the rules can overwrite them.
	eff := n.eff
	n.eff = n.effSpare
	defer func() {
		eff.Reset()
		n.effSpare = eff
	}()
	for i := range eff.Table {
		t := &eff.Table[i]
		w.orc.support(n, t)
		w.drifting(n, coverage.Support)
		if t.Ahead && n.up && !n.forgot.judged {
			if n.forgot.ghost == nil {
				w.fail("F1", "node %d is told by node %d that it was in a later boot than %d, and its disk never was older than it is", n.id, t.Node, n.bootEpoch)
			}
			gen := n.gen
			w.after(1, event{kind: evUndo, arg: func() {
				if n.up && n.gen == gen {
					n.halt()
				}
			}})
		}
		if t.Notify {
			w.log(n.idx, "pair", uint64(t.Node), uint64(t.For)<<1|b2u(t.ForLive))
			n.input(event{kind: inPairs, x: uint64(t.Node - 1)})
		}
	}
	for i := range eff.Sends {
		s := &eff.Sends[i]
		w.orc.promise(n, s)
		w.net.sendCtl(n.idx, s.To, s.Ctl)
	}
	for i := range eff.Persists {
		p := &eff.Persists[i]
		n.disk.commit(batch{sync: true, token: []int{int(p.Token)}, ops: []op{{kind: opSupport, node: int(p.Record.Node) - 1,
			support: support{epoch: p.Record.Epoch, withdrawn: p.Record.Withdrawn}}}})
	}
	if len(eff.Persists) > 0 {
		n.startSync()
	}
	n.planPairs()
}

func (n *node) planPairs() {
	d := n.pairs.Deadline()
	if d > n.clock().Add(time.Hour) {
		return
	}
	at := max(n.realAt(d), n.w.now+1000)
	if n.pairsAt != 0 && n.pairsAt <= at {
		return
	}
	n.pairsAt = at
	n.w.at(event{at: at, kind: evPairs, node: int32(n.idx), gen: n.gen})
}

func b2u(b bool) uint64 {
	if b {
		return 1
	}
	return 0
}
