package multiraft

import (
	"errors"
	"fmt"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/flotillakv/flotilla/engine"
	"github.com/flotillakv/flotilla/internal/mutants"
	"github.com/flotillakv/flotilla/multiraft/raft"
)

const (
	// maxInFlightSyncs bounds the batches of one loop whose sync is not confirmed. While
	// syncs are kept apart, several of them share one; what comes in later waits here.
	maxInFlightSyncs = 4
	// maxRoundBytes bounds the payload of one round's batch; one entry may exceed it.
	maxRoundBytes = 4 << 20
	// A fenced leader tries to hand over at once and then ever more seldom.
	handOffMin, handOffMax = time.Second, time.Minute
)

// loop owns a share of the node's groups. All its methods run on one goroutine.
type loop struct {
	h  *Host
	id int
	in inbox

	// Replicas that are awake: by id, and in the order of id unless unordered (inOrder).
	byID      map[raft.ShardID]*replica
	order     []*replica
	unordered bool
	peak      int // most of them since shed
	// Those that sleep; the first scanLeft of them are to be looked at.
	stubs              stubs
	scanAt             raft.Time
	scanLeft           int
	scanOver           bool     // and then all of them once more
	scanRank           int      // electRank of those that are woken
	scanMore           bool     // some have a higher one
	rousing            sync.Map // shards that the loop was told to wake
	toRouse            []raft.ShardID
	standing           []stoodBack // they wake later; ascending by time
	maxRound, maxAsked uint64      // highest numbers of all naps, see raft.Nap
	napBuf, memberBuf  []raft.NapMember

	out     raft.Out
	timers  timerHeap
	touched []*replica
	queued  []*replica // have proposals that are not in the log yet
	done    completions

	spare     items
	backlog   backlog
	spareAcks []ack
	gone      chan struct{} // closed when everything open was answered for good
	failed    bool          // this loop found the node's failure: its round must not be committed
	inFlight  int
	submitted uint64 // batches handed to the syncer, and confirmed by it
	acked     uint64
	heldLater []heldMsgs
	syncer    *syncer

	admission admission

	// Of the cap of the logs.
	logFull bool           // entries of leaders are not taken in this round
	pressed []pressedGroup // what groups of this loop were told

	// For Host.Alive: when the last round began, and whether the loop waits for work.
	roundAt atomic.Int64
	idle    atomic.Bool

	// Of the entries that cores keep in memory.
	tails    int64        // what they take
	tailHand int          // whose turn it is to forget some
	tailNow  atomic.Int64 // tails, for everybody

	// through are replicas whose whole applied side goes to the disk with this round.
	through []*replica
	// afterAck is what a simulation has done once the next sync has returned.
	afterAck []func(now raft.Time)

	cuts    []raft.CutTask // images to be made for them, in this order
	cutting bool           // one is being made

	dying     map[raft.ShardID]*replica // being destroyed
	wantSync  bool                      // this round's batch has to be synced, whatever is in it
	sweepAt   raft.Time
	sweepNext int

	batch      *engine.Batch
	roundBytes int // of payload in this round
	ownBytes   int // of which proposals made here
	peers      []peerOut
	feeds      []feed // by node that lags
	window     int    // of each feed, in bytes
	readCtx    uint64
	leaseOK    bool // the clock of this round may be used for leases
	applyCtx   ApplyContext

	// Memory that is used again, so that a round costs no allocations of its own.
	cmds    []raft.Command // of the entry being proposed
	results [][]byte       // of the entry being applied
	dones   spares[Waiter]
	held    spares[raft.Msg]
	marks   spares[shardMark]
	cores   raft.Spares
	// leaseBuf is memory for comparing.
	leaseBuf [raft.MaxReplicas]raft.LeaseVoter
}

// spares are slices that were used and can be used again.
type spares[T any] struct {
	free  [][]T
	elems int // room in all of them
}

// maxSpareElems bounds the elements for which spares keep memory.
const maxSpareElems = 1 << 16

// take returns an empty slice.
func (s *spares[T]) take() []T {
	n := len(s.free)
	if n == 0 {
		return nil
	}
	v := s.free[n-1]
	s.free[n-1] = nil
	s.free = s.free[:n-1]
	s.elems -= cap(v)
	return v
}

// give takes back a slice to which nobody else refers any more.
func (s *spares[T]) give(v []T) {
	if cap(v) == 0 || s.elems+cap(v) > maxSpareElems {
		return
	}
	clear(v)
	s.free = append(s.free, v[:0])
	s.elems += cap(v)
}

// heldMsgs wait until after batches of this loop are durable.
type heldMsgs struct {
	after uint64
	msgs  []raft.Msg
}

// peerOut collects a round's messages for one node.
type peerOut struct {
	node raft.NodeID
	msgs []raft.Msg
}

func newLoop(h *Host, id int) *loop {
	l := &loop{h: h, id: id, window: feedBytes, byID: make(map[raft.ShardID]*replica), dying: make(map[raft.ShardID]*replica), gone: make(chan struct{})}
	l.in.wake = make(chan struct{}, 1)
	l.done.waiting = &h.reads
	l.syncer = newSyncer(l)
	return l
}

// step runs one round at time now. It reports whether it did anything.
func (l *loop) step(now raft.Time) bool {
	l.admission.turn(now)
	l.lookAtLog(now)
	acks := l.in.takeAcks(l.spareAcks)
	for i := range acks {
		l.onAck(now, &acks[i])
	}
	worked := len(acks) > 0
	clear(acks)
	l.spareAcks = acks[:0]
	if l.inFlight >= maxInFlightSyncs {
		return l.stepLight(now, worked)
	}

	it := l.in.swap(l.spare, !l.backlog.empty())
	l.spare = items{}
	if len(it.acks) > 0 {
		for i := range it.acks {
			l.onAck(now, &it.acks[i])
		}
		worked = true
	}
	if !it.empty() || !l.backlog.empty() || len(l.queued) > 0 {
		worked = true
	}
	// The clock may have moved far since now was read, if this process was stopped
	// in between; what came in by then must not be judged by a time from before it.
	token := l.h.leaseClock.LeaseArm()
	now, l.leaseOK = l.leaseTime(now, token)
	for _, f := range it.funcs {
		f(now)
	}
	limit := l.h.roundMax
	if len(it.props) > 0 || len(l.queued) > 0 {
		limit /= 2 // the other half is theirs
	}
	l.stepMsgs(now, it.msgs, limit)
	for i := range it.props {
		l.takeProposal(now, &it.props[i])
	}
	for i := range it.reads {
		l.takeRead(now, &it.reads[i])
	}
	it.reset()
	l.spare = it
	if len(l.toRouse) > 0 || now >= l.nextRouse() {
		l.rouseSome(now)
		worked = true
	}

	for r := l.timers.first(); r != nil && r.dueAt <= now; r = l.timers.first() {
		r.core.Tick(now, &l.out)
		l.talk(now, r)
		l.compare(now, r)
		l.askRebuild(now, r)
		l.touch(r)
		d := min(r.due(), l.napDue(r))
		if d <= now { // never spin on one deadline
			d = now + 1
		}
		l.timers.set(r, d)
		worked = true
	}
	if now >= l.nextScan() {
		l.scan(now)
		worked = true
	}
	if now >= l.sweepAt && len(l.order) > 0 {
		l.sweep(now)
		worked = true
	}
	if !worked {
		return false
	}
	l.proposeQueued(now)
	l.askReads(now)
	l.endRound(now)
	return true
}

// stepLight is a round while as many syncs are under way as may be. What would
// need another one accumulates until one of them returns: natural group commit.
// But answers of followers, and reads, need none: what became committed is
// applied, and its clients are told, while the disk is at work.
func (l *loop) stepLight(now raft.Time, worked bool) bool {
	it := l.in.swapLight(l.spare)
	l.spare = items{}
	for i := range it.acks { // they came since
		l.onAck(now, &it.acks[i])
	}
	worked = worked || len(it.acks)+len(it.msgs)+len(it.reads) > 0
	if worked {
		token := l.h.leaseClock.LeaseArm()
		now, l.leaseOK = l.leaseTime(now, token)
	}
	for i := range it.msgs {
		l.stepMsg(now, &it.msgs[i])
	}
	for i := range it.reads {
		l.takeRead(now, &it.reads[i])
	}
	it.reset()
	l.spare = it
	if worked {
		l.askReads(now)
		l.endRound(now)
	}
	return worked
}

// endRound lets the cores that were touched give out what they have gathered, and
// carries it out.
func (l *loop) endRound(now raft.Time) {
	for i := 0; i < len(l.touched); i++ {
		r := l.touched[i]
		if r.fenced != nil {
			l.handOff(now, r)
		}
		r.core.Flush(now, &l.out)
	}
	l.commitRound(now)
}

// next returns when step has to run again even if nothing arrives, and whether
// there is work left already.
func (l *loop) next() (deadline raft.Time, hasDeadline, busy bool) {
	if l.inFlight < maxInFlightSyncs && (!l.backlog.empty() || len(l.queued)+len(l.toRouse) > 0) {
		return 0, false, true
	}
	look := min(l.nextLook(), l.nextScan(), l.nextRouse())
	if l.inFlight >= maxInFlightSyncs {
		look = l.nextLook()
	}
	if len(l.timers) == 0 || l.inFlight >= maxInFlightSyncs {
		return look, look != raft.Never, false
	}
	return min(l.timers.first().dueAt, max(l.sweepAt, 1), look), true, false
}

func (l *loop) touch(r *replica) {
	if !r.touched {
		r.touched = true
		l.touched = append(l.touched, r)
	}
}

// touchStirred touches r if something follows from what its core was handed. It
// often does not: of three acknowledgements of a write, one commits it.
func (l *loop) touchStirred(r *replica) {
	if r.core.Stirred() {
		l.touch(r)
	}
}

func (l *loop) onAck(now raft.Time, a *ack) {
	l.inFlight--
	l.acked++
	l.sendHeld(a.held)
	n := 0
	for n < len(l.heldLater) && l.heldLater[n].after <= l.acked {
		l.sendHeld(l.heldLater[n].msgs)
		n++
	}
	l.heldLater = slices.Delete(l.heldLater, 0, n)
	for _, m := range a.marks {
		if r := l.byID[m.shard]; r != nil && !r.removed {
			r.core.Appended(now, m.mark, &l.out)
			l.touchStirred(r)
		}
	}
	l.held.give(a.held)
	l.marks.give(a.marks)
	for _, f := range l.afterAck {
		f(now)
	}
	l.afterAck = l.afterAck[:0]
}

// backlog is messages that did not fit into the round they came in. While there
// are any, the loop takes no others from its inbox.
type backlog struct {
	msgs  []raft.Msg
	next  int // the first one not looked at yet
	bytes int // of entries from there on
}

func (b *backlog) empty() bool { return b.next == len(b.msgs) }

// stepMsgs hands messages to their cores, the backlog before fresh ones, until
// the round holds limit bytes.
func (l *loop) stepMsgs(now raft.Time, fresh []raft.Msg, limit int) {
	b := &l.backlog
	late := !b.empty()
	msgs := fresh
	if late { // then nothing fresh was taken in
		msgs = b.msgs[b.next:]
	}
	n, bytes := 0, 0
	for n < len(msgs) && l.roundBytes < limit {
		m := &msgs[n]
		size := entryBytes(msgs[n : n+1])
		n++
		bytes += size
		if l.stepMsg(now, m) && m.Type == raft.MsgApp {
			l.roundBytes += size
		}
	}
	switch {
	case late:
		clear(msgs[:n])
		b.next += n
		b.bytes -= bytes
		if b.empty() {
			*b = backlog{msgs: b.msgs[:0]}
		}
	case n < len(msgs):
		*b = backlog{msgs: append(b.msgs[:0], msgs[n:]...), bytes: entryBytes(msgs[n:])}
	default:
		return
	}
	l.in.hold(len(b.msgs)-b.next, b.bytes)
}

// stepMsg hands a message to its core, and reports whether there is one.
func (l *loop) stepMsg(now raft.Time, m *raft.Msg) bool {
	if l.stepMember(now, m) || l.stepDigest(now, m) {
		return false
	}
	r := l.byID[m.Shard]
	if r == nil {
		if st, g, ok := l.stubs.get(m.Shard); ok && needless(&st, g, l.h.live, m) {
			return false
		}
		r = l.wake(now, m.Shard)
	}
	if r == nil {
		if l.dying[m.Shard] == nil {
			l.h.onUnknownShard(l, m, &l.out)
		}
		return false
	}
	if m.ToReplica > r.self && r.questAt() > now.Add(askFirst) {
		// Somebody sees a newer replica of the group on this node.
		q := r.questions()
		q.at, q.wait = now, askFirst
		l.touch(r)
	}
	if l.logFull && m.Type == raft.MsgApp && len(m.Entries) > 0 && m.Shard != raft.MetaShard && !mutants.On("LC2") {
		// No room for them: the leader sends them again later. What it says besides counts.
		m.Entries = nil
		l.h.stats.logTurned.Add(1)
	}
	r.stirredAt(now)
	r.core.Step(now, m, &l.out)
	l.touchStirred(r)
	return true
}

func (l *loop) takeProposal(now raft.Time, p *proposal) {
	r := l.get(now, p.shard)
	if r != nil && p.cmd.Session != nil && r.joinFlight(p, l) {
		return
	}
	if r == nil {
		l.done.propose(p.done, nil, 0, 0, ErrUnknownShard)
		l.release(p.size)
		return
	}
	if err := r.closed(); err != nil {
		l.done.propose(p.done, nil, 0, 0, err)
		l.release(p.size)
		return
	}
	if len(r.queue) == 0 {
		l.queued = append(l.queued, r)
	}
	r.queue = append(r.queue, *p)
	r.stirredAt(now)
	l.touch(r)
}

// proposeQueued turns queued commands into entries, many commands per entry.
func (l *loop) proposeQueued(now raft.Time) {
	if len(l.queued) == 0 {
		return
	}
	wall := l.h.clock.Wall()
	keep := l.queued[:0]
	partly := false
	for _, r := range l.queued {
		if len(r.queue) == 0 { // all of it was refused meanwhile
			continue
		}
		l.touch(r)
		if err := r.closed(); err != nil {
			r.failQueued(err, &l.done)
			continue
		}
		before := len(r.queue)
		l.proposeReplica(now, wall, r)
		if len(r.queue) > 0 {
			partly = partly || len(keep) == 0 && len(r.queue) < before
			keep = append(keep, r)
		}
	}
	if partly { // the round ended within its queue: in the next one it comes last
		first := keep[0]
		copy(keep, keep[1:])
		keep[len(keep)-1] = first
	}
	clear(l.queued[len(keep):])
	l.queued = keep
}

func (l *loop) proposeReplica(now raft.Time, wall uint64, r *replica) {
	n := 0
	for n < len(r.queue) && (l.roundBytes < l.h.roundMax || l.ownBytes < l.h.roundMax/2) {
		from := n
		size := 0
		clear(l.cmds)
		cmds := l.cmds[:0]
		for n < len(r.queue) && len(cmds) < raft.CoalesceCmds && (size == 0 || size+r.queue[n].size <= raft.CoalesceBytes) {
			cmds = append(cmds, r.queue[n].cmd)
			size += r.queue[n].size
			n++
		}
		ts := max(r.lastTs+1, wall)
		if mutants.On("B0-C6") {
			ts = wall
		}
		mark, err := r.core.Propose(now, raft.EntryHeader{GroupTs: ts}, cmds, &l.out)
		l.cmds = cmds
		if err != nil {
			// Nothing of [from, n) was proposed: a definite answer.
			if errors.Is(err, raft.ErrTooLarge) {
				err = &TooLargeError{Shard: r.shard, Bytes: raft.EntrySize(cmds), Limit: raft.MaxEntryBytes}
			} else {
				err = l.proposeError(r, err)
			}
			for i := from; i < n; i++ {
				l.done.propose(r.queue[i].done, nil, 0, 0, err)
				if !mutants.On("B10b") {
					l.release(r.queue[i].size)
				}
			}
			continue
		}
		r.lastTs = ts
		l.roundBytes += size
		l.ownBytes += size
		w := pendingEntry{mark: mark, bytes: size, dones: l.dones.take()}
		for i := from; i < n; i++ {
			w.dones = append(w.dones, r.queue[i].done)
		}
		r.await(w)
		l.h.stats.entries.Add(1)
		l.h.stats.commands.Add(uint64(n - from))
	}
	clear(l.cmds)
	rest := copy(r.queue, r.queue[n:])
	clear(r.queue[rest:])
	r.queue = r.queue[:rest]
}

func (l *loop) proposeError(r *replica, err error) error {
	var busy *raft.BusyError
	switch {
	case errors.Is(err, raft.ErrNotLeader):
		return r.notLeader()
	case errors.As(err, &busy):
		return &OverloadedError{RetryAfter: busy.RetryAfter, Why: fmt.Sprintf("shard %d has too many uncommitted bytes", r.shard)}
	case errors.Is(err, raft.ErrTransferring):
		return &OverloadedError{RetryAfter: 50 * time.Millisecond, Why: fmt.Sprintf("shard %d is handing its leadership over", r.shard)}
	default:
		return &RefusedError{Shard: r.shard, Err: err}
	}
}

func (l *loop) takeRead(now raft.Time, q *readRequest) {
	r := l.get(now, q.shard)
	if r == nil {
		l.done.read(q.done, 0, ErrUnknownShard)
		return
	}
	if err := r.closed(); err != nil {
		l.done.read(q.done, 0, err)
		return
	}
	x := r.reading()
	x.fresh[q.how] = append(x.fresh[q.how], q.done)
	r.asked = true
	r.stirredAt(now)
	l.touch(r)
}

// commitRound carries out everything in l.out: messages first (a leader's
// entries leave before its own sync), then the one batch, then the answers.
func (l *loop) commitRound(now raft.Time) {
	o := &l.out
	if l.failed {
		return
	}
	if l.batch == nil {
		l.batch = l.h.engine.NewBatch()
	}
	l.takeForgets()
	if l.failed {
		return
	}
	l.applyAll(now)
	l.fetchAll(now)
	if l.failed { // the batch lacks something: nothing of the round may be seen
		return
	}
	l.answerReads(o)

	b := l.batch
	for i := range o.HardStates {
		t := &o.HardStates[i]
		if r := l.byID[t.Shard]; r != nil {
			r.hard = t.State
		}
		b.SetHardState(t.Shard, t.State)
	}
	for i := range o.Appends {
		t := &o.Appends[i]
		b.Append(t.Shard, t.OldLast, t.Entries)
	}
	if mutants.On("E5") { // the entries go before the record that allows it
		l.batch = l.h.engine.NewBatch()
		l.truncateAll()
		_ = l.batch.Commit(false)
		l.batch.Close()
		l.batch = b
	}
	l.truncateAll()
	l.hideLeases()
	for _, r := range l.touched {
		if r.asDirty {
			as := r.as
			if mutants.On("F2") && as.Applied > as.TruncIndex {
				as.Applied-- // the rest comes with the next batch
			}
			if mutants.On("F2c") { // the effects and the index they stand for come apart
				_ = b.Commit(false)
				b.Close()
				b = l.h.engine.NewBatch()
				l.batch = b
			}
			b.SetApplied(r.shard, as)
			r.asDirty = false
		}
		if r.ill != nil && r.ill.ward.dirt && !mutants.On("IG5") {
			b.SetQuarantine(r.shard, r.ill.ward.mark)
			r.ill.ward.dirt = false
		}
	}
	if s := l.h.stepper; s != nil && s.OnRound != nil {
		s.OnRound(l.id, o)
	}
	l.sendMsgs(o.Msgs)
	if mutants.On("B15b") { // what rests on the disk leaves with the rest
		l.sendMsgs(o.Held)
		o.Held = o.Held[:0]
	}
	l.startSnapshots()
	l.startSizes()

	if mutants.On("B15c") {
		l.sendHeld(o.Held)
		o.Held = o.Held[:0]
	}
	needSync := len(o.Appends) > 0 || len(o.HardStates) > 0 || l.wantSync
	l.wantSync = false
	switch {
	case needSync:
		f := inFlight{batch: b, ack: ack{marks: marksOf(l.marks.take(), o), held: append(l.held.take(), o.Held...)}}
		if s := l.h.stepper; s != nil && s.OnCommit != nil {
			s.OnCommit(l.id)
		}
		if err := b.Commit(len(o.Appends) > 0 || !mutants.On("B15c")); err != nil {
			l.fatal(err)
			return
		}
		if s := l.h.stepper; s != nil && s.OnCommitted != nil {
			s.OnCommitted(l.id)
		}
		l.holdLogs()
		l.inFlight++
		l.submitted++
		l.h.stats.syncs.Add(1)
		l.batch = nil
		l.syncer.submit(f)
	case !b.Empty():
		if err := b.Commit(false); err != nil {
			l.fatal(err)
			return
		}
		l.holdLogs()
		b.Close()
		l.batch = nil
		l.sendHeldAfterEarlier(o.Held)
	default:
		l.sendHeldAfterEarlier(o.Held)
	}
	l.h.stats.rounds.Add(1)
	if mutants.On("D8c") {
		l.done.flush()
	}

	wall := time.Time{}
	for _, r := range l.touched {
		r.touched = false
		if r.removed {
			continue
		}
		l.countTail(r)
		l.readyReads(r)
		if wall.IsZero() {
			wall = time.Unix(0, int64(l.h.clock.Wall()))
		}
		old := r.pub.Load()
		changed := r.publish(now, wall)
		if v := r.pub.Load(); v != old {
			if changed && l.h.onRole != nil {
				l.h.onRole(r.view(old), r.view(v))
			}
			if l.h.onDesc != nil && (old.desc.ConfVer != v.desc.ConfVer || old.desc.Version != v.desc.Version) {
				l.h.onDesc(r.view(v))
			}
		}
		l.watch(now, r)
		l.planComparison(now, r)
		l.cutOld(now, r, wall)
		if r.out != nil {
			l.tend(now, r, wall)
		}
		if r.retiring {
			l.retire(r)
			continue
		}
		if l.nap(now, r) {
			continue
		}
		l.timers.set(r, min(r.due(), l.napDue(r)))
	}
	clear(l.touched)
	l.touched = l.touched[:0]
	l.evictTails()
	l.roundBytes, l.ownBytes = 0, 0
	l.carryCuts()
	o.Reset()
	l.done.flush()
	if l.peak > shedFrom && len(l.order) < l.peak/shedShare {
		l.shed()
	}
}

// holdLogs says of the replicas that were written as a whole that their logs are
// not needed as redo any more: where applying is deferred, a descriptor takes the
// whole group with it.
func (l *loop) holdLogs() {
	for _, r := range l.through {
		if l.h.engine.DefersApply() {
			r.hold(r.as.Applied)
			r.loose.flushed(r.as.Applied, r.as.Applied)
		}
	}
	clear(l.through)
	l.through = l.through[:0]
}

// onFlush lets the logs of groups be cut up to where a flush has made them durable.
func (l *loop) onFlush(n uint64, groups []engine.Flushed) {
	for _, g := range groups {
		if r := l.byID[g.Shard]; r != nil && !r.removed && n >= r.flushFrom {
			r.hold(g.Index)
			r.loose.flushed(g.Index, r.as.Applied)
			l.touch(r)
		}
	}
}

// sendHeld sends what was held, but for promises that newer ones have outdated.
func (l *loop) sendHeld(held []raft.Msg) {
	keep := held[:0]
	for i := range held {
		if r := l.byID[held[i].Shard]; r != nil && !r.removed && r.core.StillHolds(&held[i]) {
			keep = append(keep, held[i])
		}
	}
	l.sendMsgs(keep)
}

// sendHeldAfterEarlier sends messages that rest on durable state in a round
// that syncs nothing itself. They may rest on what earlier rounds wrote, so they
// wait for the newest sync in flight.
func (l *loop) sendHeldAfterEarlier(held []raft.Msg) {
	if len(held) == 0 {
		return
	}
	if l.inFlight == 0 {
		l.sendHeld(held)
		return
	}
	l.heldLater = append(l.heldLater, heldMsgs{after: l.submitted, msgs: slices.Clone(held)})
}

// applyAll hands committed entries to the state machine until the cores have
// nothing left to apply, or something failed.
func (l *loop) applyAll(now raft.Time) {
	o := &l.out
	for i := 0; i < len(o.Applies) && !l.failed; i++ {
		t := o.Applies[i]
		r := l.byID[t.Shard]
		if r == nil || r.removed || r.fenced != nil && !(mutants.On("IG8") && r.quarantined()) {
			continue
		}
		if r.out != nil && r.out.busy {
			r.out.held = append(r.out.held, t.Entries...)
			continue
		}
		if held := r.loose.held; held != nil && !mutants.On("ST1") {
			*held = append(*held, t.Entries...)
			continue
		}
		for j := range t.Entries {
			if t.Entries[j].Type == raft.EntryConf && l.settle(r, t.Entries[j:]) {
				break
			}
			if !l.applyEntry(now, r, t.Entries[j]) {
				break
			}
		}
	}
}

// applyEntry applies one entry. It reports false when nothing behind it may be
// applied: the replica was fenced, or the node failed.
func (l *loop) applyEntry(now raft.Time, r *replica, e raft.Entry) bool {
	if e.Index <= r.as.Applied {
		return true
	}
	if e.Index != r.as.Applied+1 && r.as.Applied > 0 {
		l.fatal(fmt.Errorf("multiraft: shard %d: entry %d came to be applied behind %d", r.shard, e.Index, r.as.Applied))
		return false
	}
	hdr, err := e.Header()
	if err != nil {
		l.fatal(fmt.Errorf("multiraft: shard %d index %d: %w", r.shard, e.Index, err))
		return false
	}
	dones := r.takeWaiters(e, &l.done)
	if mutants.On("B0-A3") { // committed: what can go wrong?
		for i, d := range dones {
			l.done.propose(d, nil, e.Index, uint32(i), nil)
		}
		dones = nil
	}

	ac := &l.applyCtx
	*ac = ApplyContext{Desc: r.desc, Entry: e, Header: hdr, TimeBefore: r.as.GroupTs}
	if mutants.On("F1d") {
		ac.Header.GroupTs = l.h.clock.Wall()
	}
	ac.ahead = r.out != nil && e.Index <= r.out.at && !mutants.On("X2")
	if len(dones) > 0 {
		l.results = append(l.results[:0], make([][]byte, len(dones))...)
		ac.Results = l.results
	}
	switch e.Type {
	case raft.EntryEmpty:
		r.noteApplied(e, nil, 0)
	case raft.EntryConf:
		l.applyConf(now, r, e, ac.Results)
		r.noteApplied(e, nil, raft.Digest(r.desc.ConfVer))
	case raft.EntryCut: // the rest once it is applied
		r.noteApplied(e, nil, 0)
	case raft.EntryNormal:
		mark := l.batch.Mark()
		if err := l.applyMachine(ac); err != nil {
			l.batch.RollbackTo(mark)
			if errors.Is(err, engine.ErrDamaged) {
				for _, d := range dones {
					l.done.propose(d, nil, 0, 0, ErrAmbiguous)
				}
				l.unreadable(r, err)
				return false
			}
			if errors.Is(err, engine.ErrFailed) { // no fault of the entry's: the disk's
				l.fatal(fmt.Errorf("multiraft: shard %d index %d: %w", r.shard, e.Index, err))
				for _, d := range dones {
					l.done.propose(d, nil, 0, 0, ErrAmbiguous)
				}
				return false
			}
			l.fence(r, e.Index, err, dones)
			return false
		}
		r.as.WrittenBytes += ac.WrittenBytes
		r.as.WrittenKeys += ac.WrittenKeys
		r.noteApplied(e, l.batch.Effects(mark), ac.answered)
		if len(ac.skipped) > 0 {
			l.skip(r, e.Index, ac.skipped)
		}
	default:
		// Written by a newer release. To skip it would be to differ from it.
		l.fence(r, e.Index, fmt.Errorf("multiraft: this version does not know entries of type %d; upgrade this node", e.Type), dones)
		return false
	}
	r.as.Applied, r.as.AppliedTerm = e.Index, e.Term
	if mutants.On("E7") {
		r.as.AppliedTerm = r.core.Status().Term
	}
	r.as.GroupTs = max(r.as.GroupTs, hdr.GroupTs)
	r.lastTs = max(r.lastTs, hdr.GroupTs)
	r.asDirty = true
	r.loose.applied(e)
	if r.out != nil {
		r.out.applied(now, e, hdr.GroupTs)
	}
	l.touch(r)
	r.core.Applied(e.Index, e.Term, len(e.Value), &l.out)
	if e.Type == raft.EntryCut {
		l.applyCut(r, e)
	}
	for i, d := range dones {
		l.done.propose(d, ac.Results[i], e.Index, uint32(i), nil)
	}
	l.dones.give(dones)
	clear(ac.Results)
	l.h.stats.applied.Add(1)
	if r.want == e.Index {
		l.reached(now, r)
	}
	return true
}

// fence stops a replica at index, which it cannot apply, for good: nothing
// behind it is applied, and everybody who waits is answered. dones wait for that
// entry itself. The replica goes on to vote and to store, but does not lead if
// another one can.
func (l *loop) fence(r *replica, index raft.Index, err error, dones []Waiter) {
	r.fenced = &fenceError{index, err}
	x := r.illness()
	x.handOffAt, x.handOffWait = 0, handOffMin
	l.h.logger.Error("replica fenced: an entry cannot be applied", "shard", r.shard, "index", index, "err", err)
	for _, d := range dones {
		l.done.propose(d, nil, 0, 0, ErrAmbiguous) // other replicas may have applied it
	}
	r.failWaiting(ErrAmbiguous, &l.done)
	r.failQueued(r.refused(), &l.done)
	r.failReads(r.refused(), &l.done)
	l.touch(r)
}

// handOff lets a fenced leader hand its leadership to the other voters, one
// after the other. If they are fenced too it comes back; the pauses bound that.
func (l *loop) handOff(now raft.Time, r *replica) {
	x := r.illness()
	if now < x.handOffAt || r.core.Status().Role != raft.RoleLeader {
		return
	}
	x.handOffAt = now.Add(x.handOffWait)
	x.handOffWait = min(2*x.handOffWait, handOffMax)
	for range r.desc.Replicas {
		to := r.desc.Replicas[x.handOffTo%len(r.desc.Replicas)]
		x.handOffTo++
		if to.ID != r.self && r.core.Transfer(now, to.ID, &l.out) == nil {
			return
		}
	}
}

// due returns when the replica needs a round even if nothing arrives for it.
func (r *replica) due() raft.Time {
	d := min(r.core.Deadline(), r.nextTalk(), r.cmp.at)
	if x := r.ill; x != nil {
		d = min(d, x.ward.at)
		if r.fenced != nil && r.core.Status().Role == raft.RoleLeader {
			d = min(d, x.handOffAt)
		}
	}
	if r.out != nil {
		d = min(d, r.out.look)
	}
	return d
}

// fatal stops the node, and this round before it reaches the store.
func (l *loop) fatal(err error) {
	l.failed = true
	l.h.fatal(err)
}

// applyMachine runs the state machine and turns a panic into an error.
func (l *loop) applyMachine(ac *ApplyContext) (err error) {
	defer func() {
		switch p := recover().(type) {
		case nil:
		case error:
			err = fmt.Errorf("multiraft: state machine panicked at index %d: %w", ac.Entry.Index, p)
		default:
			err = fmt.Errorf("multiraft: state machine panicked at index %d: %v", ac.Entry.Index, p)
		}
	}()
	return l.h.machine.Apply(l.batch, ac)
}

func (l *loop) applyConf(now raft.Time, r *replica, e raft.Entry, results [][]byte) {
	var cc raft.ConfChange
	var err error
	for _, c := range e.Commands() {
		cc, err = raft.DecodeConfChange(c.Body)
	}
	var next raft.Descriptor
	if err == nil {
		next, err = r.desc.Apply(cc)
	}
	if err != nil {
		// Rejected alike on every replica; the configuration stays.
		if len(results) > 0 {
			results[0] = []byte(err.Error())
		}
		next = *r.desc
	} else {
		l.noteConf(now, r, &next)
		l.voidImage(r) // it has the old descriptor
		r.desc = &next
		r.as.ConfIndex = e.Index
		l.through = append(l.through, r)
		if !mutants.On("C5") || !r.isRemoved() {
			l.batch.SetDescriptor(r.desc)
		}
	}
	r.core.ConfApplied(now, next, e.Index, &l.out)
	if err == nil {
		r.desc = r.core.Descriptor() // the same, once
	}
}

// noteConf sees to who is on the way out by the descriptor that takes the place
// of r.desc: a replica that is removed here, or others under this leader.
func (l *loop) noteConf(now raft.Time, r *replica, next *raft.Descriptor) {
	if _, stays := next.Replica(r.self); !stays && !r.isRemoved() && !mutants.On("G11") {
		// The descriptor does not tell any more who this is; and no replica of its
		// age shall ever be put here.
		l.batch.SetTombstone(r.shard, r.self+1)
	}
	if r.core.Status().Role != raft.RoleLeader {
		return
	}
	for _, p := range r.desc.Replicas {
		if _, stays := next.Replica(p.ID); !stays && p.ID != r.self {
			if r.departed == nil {
				r.departed = new(departures)
			}
			r.departed.list = append(r.departed.list, departed{Replica: p, at: now.Add(tellFirst), wait: tellFirst})
		}
	}
}

// answerReads moves answered reads to the list that waits for the applied index.
func (l *loop) answerReads(o *raft.Out) {
	for i := range o.Reads {
		s := &o.Reads[i]
		r := l.byID[s.Shard]
		if r == nil {
			continue
		}
		x := r.reads
		if x == nil {
			continue
		}
		k := slices.IndexFunc(x.asked, func(g readGroup) bool { return g.ctx == s.Context })
		if k < 0 {
			continue
		}
		g := x.asked[k]
		x.asked = slices.Delete(x.asked, k, k+1)
		l.touch(r)
		for _, a := range g.asks {
			r.core.AnswerRead(a, s.Index, s.Err == nil, o)
		}
		if s.Err != nil {
			err := s.Err
			if errors.Is(err, raft.ErrNotLeader) {
				err = r.notLeader()
			}
			for _, d := range g.dones {
				l.done.read(d, 0, err)
			}
			continue
		}
		g.index = s.Index
		x.ready = append(x.ready, g)
	}
}

// readyReads completes reads whose index is applied and visible.
func (l *loop) readyReads(r *replica) {
	x := r.reads
	if x == nil || len(x.ready) == 0 {
		return
	}
	keep := x.ready[:0]
	for _, g := range x.ready {
		if g.index > r.as.Applied && !mutants.On("A16b") {
			keep = append(keep, g)
			continue
		}
		for _, d := range g.dones {
			l.done.read(d, g.index, nil)
		}
	}
	clear(x.ready[len(keep):])
	x.ready = keep
}

// truncateAll cuts logs in the same batch; never above what is applied in it (I2).
func (l *loop) truncateAll() {
	o := &l.out
	for i := 0; i < len(o.Truncates); i++ {
		t := &o.Truncates[i]
		r := l.byID[t.Shard]
		if r == nil || t.Index <= r.as.TruncIndex || t.Index > r.as.Applied {
			continue
		}
		l.batch.Truncate(t.Shard, r.as.TruncIndex, t.Index, t.Term)
		if r.out != nil {
			l.unskip(r, t.Index)
		}
		r.as.TruncIndex, r.as.TruncTerm = t.Index, t.Term
		r.asDirty = !mutants.On("E4")
		r.core.Truncated(t.Index, t.Term)
		l.dropImage(r, t.Index)
		l.touch(r)
	}
}

func (l *loop) startSnapshots() {
	for _, t := range l.out.Snapshots {
		r := l.byID[t.Shard]
		if r == nil || r.snapsBusy[t.ToReplica] {
			continue
		}
		if err := r.shut(); err != nil && errors.Is(err, ErrDiverged) { // it is not to be spread
			l.h.refuseSnapshot(l, t)
			continue
		}
		if r.snapsBusy == nil {
			r.snapsBusy = make(map[raft.ReplicaID]bool)
		}
		r.snapsBusy[t.ToReplica] = true
		l.h.sendSnapshot(l, r, t)
	}
}

// startSizes finds out how large shards are whose logs somebody holds back. It reads
// the tables' metadata, which may wait for the disk: not on the loop.
func (l *loop) startSizes() {
	if len(l.out.Sizes) == 0 || l.h.stepper != nil { // what is in tables depends on their background work
		return
	}
	descs := make([]raft.Descriptor, 0, len(l.out.Sizes))
	for _, t := range l.out.Sizes {
		if r := l.byID[t.Shard]; r != nil {
			descs = append(descs, *r.desc)
		}
	}
	l.h.spawn(func() {
		for _, d := range descs {
			n, err := l.h.engine.DataSize(d.Keyspace, d.Start, d.End)
			if err != nil { // it asks again
				continue
			}
			l.in.put(func(it *items) {
				it.funcs = append(it.funcs, func(raft.Time) {
					if r := l.byID[d.Shard]; r != nil && !r.removed {
						r.core.Sized(int64(n))
						l.touchStirred(r)
					}
				})
			})
		}
	})
}

// sendMsgs hands each peer its messages of the round.
func (l *loop) sendMsgs(msgs []raft.Msg) {
	if len(msgs) == 0 {
		return
	}
	for i := range msgs {
		m := &msgs[i]
		k := 0
		for k < len(l.peers) && l.peers[k].node != m.To {
			k++
		}
		if k == len(l.peers) {
			l.peers = append(l.peers, peerOut{node: m.To})
		}
		l.peers[k].msgs = append(l.peers[k].msgs, *m)
	}
	for k := range l.peers {
		p := &l.peers[k]
		if len(p.msgs) == 0 {
			continue
		}
		l.h.net.Send(p.node, p.msgs)
		clear(p.msgs)
		p.msgs = p.msgs[:0]
	}
}
