package multiraft

import (
	"fmt"
	"sync"
	"time"

	"github.com/flotillakv/flotilla/internal/mutants"
	"github.com/flotillakv/flotilla/multiraft/raft"
)

// How replicas fall asleep and wake
//
// A replica for which nothing came for Config.IdleAfter is put away: its core is
// dropped, and a stub takes its place (package raft, Nap, says what has to hold). It
// wakes when anything comes for it that a stub cannot answer: a message, a proposal, a
// read without a lease, administration. Sleeping is a matter of each replica alone;
// no other one is asked or told.
//
//	Z1  Whoever looks for a replica finds it, awake or asleep: it is a stub before it
//	    is taken out of the table, and in the table before its stub goes.
//	Z2  No batch with something of it is under way when it falls asleep: it is looked
//	    at twice, and all that was handed to the disk by the first look is durable at
//	    the second.
//	Z3  What is seen of a sleeping leader (its lease, its positions) is not seen any
//	    more before a message of it leaves: its stub goes first (rule P1 of lease.go).
//	Z4  A generation lasts over sleep: nothing is taken away meanwhile.
//
// Nobody tells stubs of a node that died or came back. Who follows a dead leader is
// elected anew when somebody asks for it, or when the loop comes by: it looks through
// its stubs after each change of liveness, and wakes those that have no leader, each
// on one node only, and leaders that owe something to a node that is back.

const (
	// DefaultIdleAfter is how long nothing has to come for a replica before it sleeps.
	DefaultIdleAfter = 5 * time.Second
	// One that could not fall asleep is looked at again after a fifth of IdleAfter
	// (napAgain); the second look comes after a fiftieth (napSecond). One that wakes
	// after less than two of them (wokenSoon) stays awake for twice as long the next
	// time, up to 1<<napMost times IdleAfter.
	napAgain, napSecond, wokenSoon, napMost = 5, 50, 2, 4
	// One without a leader sleeps after napLost times IdleAfter, if no majority is alive:
	// nobody can elect one then, and to try costs as much as to work.
	napLost = 6
	// wakeBytes is what waking one counts in a round's payload.
	wakeBytes = maxRoundBytes / 256
	// rouseAtOnce is how many are woken in a round because somebody asked for them, and
	// rouseLooks how many are looked at.
	rouseAtOnce = maxRoundBytes / wakeBytes / 2
	rouseLooks  = 16 * rouseAtOnce
	// standBack is how long one that was asked for leaves the election to the node whose turn
	// it is. With thousands of elections under way one takes some ten milliseconds.
	standBack = 200 * time.Millisecond
	// Every scanEvery, while there is a reason, scanStubs stubs are looked at and
	// scanWakes of them are woken at most. One that sleeps since the start of the node
	// counts scanUnsure times: perhaps its group needs nothing, and there may be very many.
	scanEvery  = 100 * time.Millisecond
	scanStubs  = 16384
	scanWakes  = 200
	scanUnsure = 20
	// scanAgain is how long after all were looked at the next node has its turn.
	scanAgain = time.Second
	// DefaultAwake is how many replicas are awake from the start.
	DefaultAwake = 1024
)

// doze is what a replica notes of its own sleep.
type doze struct {
	active raft.Time // when something came for it last
	tryAt  raft.Time // not before: next look
	seq    uint64    // batches handed to the disk by the first look
	looked bool      // once since active
	naps   uint8     // see stub
}

// stirredAt notes that something came for r.
func (r *replica) stirredAt(now raft.Time) {
	r.doze.active, r.doze.looked = now, false
}

// napDue returns when r has to be looked at.
func (l *loop) napDue(r *replica) raft.Time {
	if l.h.idleAfter < 0 {
		return raft.Never
	}
	return max(r.doze.active.Add(l.h.idleAfter<<r.doze.naps), r.doze.tryAt)
}

// mayNap reports whether the host has nothing for r.
func (l *loop) mayNap(r *replica) bool {
	if r.out != nil && !r.out.rests() {
		return false
	}
	return r.fenced == nil && r.loose.held == nil && !r.gone && !r.removed && !r.retiring && !r.asDirty && !r.asked &&
		len(r.queue)+len(r.waiting)+len(r.flights)+len(r.snapsBusy) == 0 && r.departed == nil &&
		r.want == 0 && !r.readsOpen() && (r.cmp.at == raft.Never || r.cmp.state) && !r.cmp.asking() && !r.cmp.asked() && r.cmp.disputed == nil && !r.cmp.wasDisputed && !r.quarantined() &&
		r.newestConf() == 0 && r.slow.share.Load() == 0
}

// nap puts r to sleep if it is time and nothing speaks against it. It is called at
// the end of a round, when r was published.
func (l *loop) nap(now raft.Time, r *replica) bool {
	d := &r.doze
	if now < l.napDue(r) {
		return false
	}
	n, ok := raft.Nap{}, false
	if l.mayNap(r) {
		n, ok = r.core.Nap(l.napBuf[:0])
	}
	if lostAt := d.active.Add(napLost * l.h.idleAfter); ok && n.Lost && now < lostAt {
		d.looked, d.tryAt = false, lostAt
		return false
	}
	if !ok || n.Term>>32 != 0 {
		d.looked, d.tryAt = false, now.Add(l.h.idleAfter/napAgain)
		return false
	}
	if !d.looked {
		d.looked, d.seq, d.tryAt = true, l.submitted, now.Add(l.h.idleAfter/napSecond)
		return false
	}
	if l.acked < d.seq && !mutants.On("Z2") {
		d.tryAt = now.Add(l.h.idleAfter / napSecond)
		return false
	}
	g := ground{kind: kindLeader, flag: n.Leased, members: n.Members}
	if !n.Leads {
		g = ground{kind: kindLost, flag: n.Restarted, members: membersOf(l.memberBuf[:0], r.desc)}
		l.memberBuf = g.members
		if !n.Lost {
			g.kind, g.flag, g.lead = kindFollower, false, n.Members[0]
		}
	} else {
		l.napBuf = n.Members
		for i := range n.Members { // who was away when the others were compared is owed that, too
			m := &n.Members[i]
			m.Lags = m.Lags || r.cmp.absent && m.Node != l.h.node && !l.live(m.Node) && !mutants.On("Z14")
		}
	}
	if n.Lost && l.h.needsWaking(&g) && !mutants.On("Z7") {
		d.looked, d.tryAt = false, now.Add(l.h.idleAfter)
		return false
	}
	l.maxRound, l.maxAsked = max(l.maxRound, n.Round), max(l.maxAsked, n.Asked)
	l.stubs.put(stub{
		shard: r.shard, last: n.Last, gen: r.gen, term: uint32(n.Term), since: uint32(time.Duration(now) / time.Millisecond), nap: d.naps, kept: n.Kept,
	}, &g)
	l.dismiss(r)
	l.h.table.remove(r)
	l.cores.Put(r.core)
	r.core = nil // others may still hold r, but only its loop ever looks at the core
	l.h.stats.naps.Add(1)
	return true
}

// membersOf appends the members of d to dst.
func membersOf(dst []raft.NapMember, d *raft.Descriptor) []raft.NapMember {
	for _, m := range d.Replicas {
		dst = append(dst, raft.NapMember{Node: m.Node, ID: m.ID, Role: m.Role})
	}
	return dst
}

// dismiss takes r off the loop's lists.
func (l *loop) dismiss(r *replica) {
	delete(l.byID, r.shard)
	last := len(l.order) - 1
	if int(r.place) != last {
		l.order[r.place] = l.order[last]
		l.order[r.place].place = r.place
		l.unordered = true
	}
	l.order[last] = nil
	l.order = l.order[:last]
	l.tails -= int64(r.tail)
	r.tail = 0
	l.timers.remove(r)
}

// When of more than shedFrom replicas a loop had awake all but one in shedShare fell
// asleep, it gives back the memory that their work left with it.
const shedFrom, shedShare = 128, 4

// shed is called at the end of a round.
func (l *loop) shed() {
	l.peak = len(l.order)
	byID := make(map[raft.ShardID]*replica, len(l.byID))
	for _, r := range l.order {
		byID[r.shard] = r
	}
	l.byID, l.order, l.timers = byID, append([]*replica(nil), l.order...), append(timerHeap(nil), l.timers...)
	l.out, l.spare, l.spareAcks, l.peers, l.touched = raft.Out{}, items{}, nil, nil, nil
	l.cmds, l.results = nil, nil
	l.dones, l.held, l.marks, l.cores = spares[Waiter]{}, spares[raft.Msg]{}, spares[shardMark]{}, raft.Spares{}
	l.done.props, l.done.reads = nil, nil
	if l.backlog.empty() {
		l.backlog = backlog{}
	}
	if len(l.queued) == 0 {
		l.queued = nil
	}
	if len(l.heldLater) == 0 {
		l.heldLater = nil
	}
	l.in.shed()
	l.h.table.shed()
}

// get returns the replica of shard, which wakes if it sleeps; nil: there is none, or
// the node has failed.
func (l *loop) get(now raft.Time, shard raft.ShardID) *replica {
	if r := l.byID[shard]; r != nil {
		return r
	}
	return l.wake(now, shard)
}

func (l *loop) wake(now raft.Time, shard raft.ShardID) *replica {
	st, g, ok := l.stubs.get(shard)
	if !ok || l.failed {
		return nil
	}
	r, err := l.h.awaken(l, now, &st, g)
	if err != nil {
		l.fatal(fmt.Errorf("multiraft: shard %d does not wake: %w", shard, err))
		return nil
	}
	if r.doze.naps = 0; time.Duration(uint32(time.Duration(now)/time.Millisecond)-st.since)*time.Millisecond < wokenSoon*l.h.idleAfter && g.kind != kindUnsure && !mutants.On("Z10") {
		r.doze.naps = min(st.nap+1, napMost)
	}
	l.h.table.put(r)
	l.stubs.remove(shard)
	l.adopt(now, r)
	if !mutants.On("Z6") {
		l.roundBytes += wakeBytes
	}
	l.h.stats.wakes.Add(1)
	return r
}

// awaken makes a replica of its stub and what the disk says.
func (h *Host) awaken(l *loop, now raft.Time, st *stub, g *ground) (*replica, error) {
	var state raft.State
	var ok bool
	var err error
	if st.fresh {
		state, ok, err = h.begin(st.shard)
	} else {
		if !st.kept {
			state, ok, err = h.engine.LoadCut(st.shard, st.last)
		}
		if err == nil && !ok {
			state, ok, err = h.engine.Load(st.shard)
		}
	}
	if err != nil {
		return nil, err
	}
	if !ok {
		return nil, fmt.Errorf("its state is not in the store any more")
	}
	me, ok := state.Desc.ReplicaOn(h.node)
	if !ok {
		return nil, fmt.Errorf("its descriptor does not hold it any more")
	}
	var core *raft.Core
	cfg := h.coreConfig(st.shard, me.ID)
	cfg.Spares = &l.cores
	if g.kind == kindUnsure {
		cfg.Restarted = g.flag
		core, err = raft.NewCore(cfg, state, now)
	} else {
		n := raft.Nap{Leads: g.kind == kindLeader, Leased: g.flag, Lost: g.kind == kindLost, Restarted: g.kind == kindLost && g.flag, Term: raft.Term(st.term), Last: st.last, Kept: st.kept, Members: g.members, Round: l.maxRound, Asked: l.maxAsked}
		if g.kind == kindFollower {
			n.Members = []raft.NapMember{g.lead}
		}
		core, err = raft.WakeCore(cfg, state, &n, now, &l.out)
	}
	if err != nil {
		return nil, err
	}
	r, err := h.newReplica(now, me.ID, core, state, st.gen)
	if err == nil && g.kind != kindUnsure && (!g.lags && !st.kept || mutants.On("Z14")) {
		r.cmp.agreed = r.as.Applied // it was compared, with all members, before it fell asleep
	}
	return r, err
}

// needless reports whether a stub has nothing to do for m: it says what the replica
// knew when it fell asleep.
func needless(st *stub, g *ground, live raft.Liveness, m *raft.Msg) bool {
	if m.Term != raft.Term(st.term) || m.Reject() {
		return false
	}
	switch m.Type {
	case raft.MsgAppResp:
		return g.kind == kindLeader && m.Index == st.last && m.Round == 0 && m.Epoch == 0
	case raft.MsgCommit:
		return g.kind == kindFollower && m.Commit <= st.last && m.CompactTo <= st.last && (!st.kept || mutants.On("N8")) && m.Round == 0 &&
			m.From == g.lead.Node && m.FromReplica == g.lead.ID && g.leader(0, live) != 0
	}
	return false
}

// find returns the replica of a shard if it is awake, else its stub.
func (h *Host) find(shard raft.ShardID) (r *replica, st stub, g *ground) {
	l := h.loopOf(shard)
	for range 3 { // it may fall asleep or wake in between
		if r = h.table.get(shard); r != nil {
			return r, st, nil
		}
		var ok bool
		if st, g, ok = l.stubs.get(shard); ok {
			return nil, st, g
		}
	}
	return nil, stub{}, nil
}

// has reports whether a shard has a replica here.
func (h *Host) has(shard raft.ShardID) bool {
	r, _, g := h.find(shard)
	return r != nil || g != nil
}

// refuseAsleep is refuse for a sleeping replica. Who has no leader wakes.
func (h *Host) refuseAsleep(st *stub, g *ground, atFollower bool) error {
	if h.dead.Load() != nil {
		return ErrClosed
	}
	if g.kind == kindLeader {
		return nil
	}
	leader := g.leader(h.node, h.live)
	if leader != 0 && atFollower {
		return nil
	}
	if leader == 0 && !mutants.On("Z1") {
		h.rouse(st.shard)
	}
	return &NotLeaderError{Shard: st.shard, Leader: leader, Term: raft.Term(st.term)}
}

// rouse has a replica without a leader wake and campaign, if it is this node's turn, and
// else stand back for a while: whoever looks for the leader asks all replicas, one after the
// other, and if each of them campaigned at once none would win, or whichever node has the
// least to do. However many ask for it, the loop is told once.
func (h *Host) rouse(shard raft.ShardID) {
	l := h.loopOf(shard)
	if _, told := l.rousing.LoadOrStore(shard, struct{}{}); told {
		return
	}
	l.in.put(func(it *items) {
		it.funcs = append(it.funcs, func(raft.Time) { l.toRouse = append(l.toRouse, shard) })
	})
}

// stoodBack is a sleeping replica that left its election to another node.
type stoodBack struct {
	shard raft.ShardID
	until raft.Time
}

// nextRouse returns when the first one of those that stand back has waited long enough.
func (l *loop) nextRouse() raft.Time {
	if len(l.standing) == 0 {
		return raft.Never
	}
	return l.standing[0].until
}

// rouseSome wakes some of those that were asked for. However many there are, messages for
// the others have their turn in between: among them those that elect their leaders.
func (l *loop) rouseSome(now raft.Time) {
	woken, looked := 0, 0
	full := func() bool { return woken >= rouseAtOnce && !mutants.On("Z9") }
	for ; len(l.standing) > 0 && l.standing[0].until <= now && !full(); l.standing = l.standing[1:] {
		shard := l.standing[0].shard
		l.rousing.Delete(shard)
		if _, g, ok := l.stubs.get(shard); ok && g.leader(l.h.node, l.h.live) == 0 && l.rouse(now, shard, false) {
			woken++
		}
	}
	if len(l.standing) == 0 {
		l.standing = nil
	}
	for ; looked < min(len(l.toRouse), rouseLooks) && !full(); looked++ {
		shard := l.toRouse[looked]
		if l.standsBack(shard) {
			l.standing = append(l.standing, stoodBack{shard, now.Add(standBack)})
			continue
		}
		l.rousing.Delete(shard)
		if l.rouse(now, shard, true) {
			woken++
		}
	}
	if l.toRouse = l.toRouse[looked:]; len(l.toRouse) == 0 {
		l.toRouse = nil
	}
}

// standsBack reports whether it is another node's turn to have the group of a sleeping
// replica elect a leader.
func (l *loop) standsBack(shard raft.ShardID) bool {
	_, g, ok := l.stubs.get(shard)
	return ok && g.kind != kindLeader && l.h.electRank(shard, g) > 0 && !mutants.On("Z8")
}

// rouse wakes a replica if it sleeps, and reports whether it did. It campaigns: now, if it is
// the first in line or does not have to wait for its turn.
func (l *loop) rouse(now raft.Time, shard raft.ShardID, atOnce bool) bool {
	if l.byID[shard] != nil {
		return false // it does by itself what it can
	}
	r := l.wake(now, shard)
	if r == nil {
		return false
	}
	if r.core.Brief().LeadNode == 0 && (atOnce || r.core.First()) {
		r.core.Campaign(now, &l.out)
	}
	l.touch(r)
	return true
}

// scanFrom has the loop look through all of its stubs: from now on, or when it is through with
// what it is at, so that the last ones have their turn however often liveness changes.
func (l *loop) scanFrom(now raft.Time) {
	if l.scanLeft > 0 {
		l.scanOver = true
		return
	}
	l.scanAt = now
	l.scanLeft, l.scanRank, l.scanMore = l.stubs.count(), 0, false
}

// nextScan returns when the loop goes on with looking through its stubs.
func (l *loop) nextScan() raft.Time {
	if l.scanLeft == 0 {
		return raft.Never
	}
	return l.scanAt
}

// scan looks at some stubs, and wakes those that need it. A group without a leader is
// woken on one node; should it have none when all were looked at, on the next one: the
// replica on the first may never have been used, and not know that others were.
// It goes from the last stub to the first: the place of one that wakes is taken by the last one,
// which was looked at.
func (l *loop) scan(now raft.Time) {
	l.scanAt = now.Add(scanEvery)
	verdict := make(map[uint32]bool) // of grounds: whether to look closer
	var wake []raft.ShardID
	l.stubs.mu.RLock()
	cost := 0
	l.scanLeft = min(l.scanLeft, l.stubs.n)
	for n := scanStubs; n > 0 && l.scanLeft > 0 && (cost < scanWakes || mutants.On("Z11")); n-- {
		l.scanLeft--
		st := l.stubs.at(l.scanLeft)
		g := l.stubs.grounds[st.ground]
		look, known := verdict[st.ground]
		if !known {
			look = l.h.needsWaking(g)
			verdict[st.ground] = look
		}
		if !look || st.fresh {
			continue // who was never used elects a leader when it is
		}
		if g.kind != kindLeader {
			if rank := l.h.electRank(st.shard, g); rank != l.scanRank {
				l.scanMore = l.scanMore || rank > l.scanRank
				continue
			}
		}
		wake = append(wake, st.shard)
		if cost++; g.kind == kindUnsure {
			cost += scanUnsure - 1
		}
	}
	if l.scanLeft == 0 {
		switch {
		case l.scanOver:
			l.scanLeft, l.scanRank, l.scanMore, l.scanOver = l.stubs.n, 0, false, false
		case l.scanMore && !mutants.On("Z5"):
			l.scanLeft, l.scanMore = l.stubs.n, false
			l.scanRank++
			l.scanAt = now.Add(scanAgain)
		}
	}
	l.stubs.mu.RUnlock()
	for _, s := range wake {
		l.rouse(now, s, true) // on one node only
	}
}

// needsWaking reports whether stubs on this ground have something to do: they have no
// leader and could elect one, or owe something to a node that is back.
func (h *Host) needsWaking(g *ground) bool {
	if g.kind == kindLeader {
		for i := range g.members {
			if m := &g.members[i]; m.Lags && h.hears(m.Node) && !mutants.On("Z12") {
				return true
			}
		}
		return false
	}
	if g.leader(h.node, h.live) != 0 {
		return false
	}
	voters, up := 0, 0
	for i := range g.members {
		if m := &g.members[i]; m.Role.IsVoter() {
			voters++
			if h.hears(m.Node) {
				up++
			}
		}
	}
	return up > voters/2
}

// hears reports whether a node is this one or supported by it.
func (h *Host) hears(n raft.NodeID) bool {
	_, live := h.live.SupportFor(n)
	return live || n == h.node
}

// electRank returns when it is this node's turn to have a group without a leader elect
// one: after how many others of the nodes that are alive. The order is the same on all
// of them: first comes the node that the group was dealt to, then the others, in another
// order for another group.
func (h *Host) electRank(shard raft.ShardID, g *ground) (rank int) {
	dealt := h.dealtLeader(shard)
	order := func(n raft.NodeID) uint64 {
		if n == dealt && !mutants.On("U4") {
			return 1 << 63
		}
		return mix(uint64(shard)^uint64(n)<<40) >> 1
	}
	mine := order(h.node)
	for i := range g.members {
		if m := &g.members[i]; m.Role.IsVoter() && m.Node != h.node && h.hears(m.Node) && order(m.Node) > mine {
			rank++
		}
	}
	return rank
}

// descCache keeps descriptors of sleeping groups that were asked for lately.
type descCache struct {
	mu        sync.Mutex
	cur, past map[raft.ShardID]cachedDesc
}

type cachedDesc struct {
	gen  uint64
	last raft.Index
	desc raft.Descriptor // read-only
}

// descCacheSize is how many are kept, up to twice.
const descCacheSize = 2048

// descOf returns the descriptor of a sleeping group. It is read-only.
func (h *Host) descOf(st *stub) (raft.Descriptor, bool) {
	if st.fresh {
		return h.dealtDesc(st.shard)
	}
	c := &h.descs
	c.mu.Lock()
	d, ok := c.cur[st.shard]
	if !ok {
		d, ok = c.past[st.shard]
	}
	c.mu.Unlock()
	if ok && d.gen == st.gen && d.last == st.last {
		return d.desc, true
	}
	desc, ok, err := h.engine.Descriptor(st.shard)
	if err != nil || !ok {
		return raft.Descriptor{}, false
	}
	// It is that of the stub if the group slept all the time.
	if now, _, ok := h.loopOf(st.shard).stubs.get(st.shard); !ok || now.gen != st.gen || now.last != st.last {
		return raft.Descriptor{}, false
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if len(c.cur) >= descCacheSize || c.cur == nil {
		c.past, c.cur = c.cur, make(map[raft.ShardID]cachedDesc)
	}
	c.cur[st.shard] = cachedDesc{st.gen, st.last, desc}
	return desc, true
}

// look returns what is known of a replica, awake or asleep.
func (h *Host) look(shard raft.ShardID) (View, bool) {
	for range 4 {
		r, st, g := h.find(shard)
		switch {
		case r != nil:
			return r.view(r.pub.Load()), true
		case g == nil:
			return View{}, false
		}
		if d, ok := h.descOf(&st); ok {
			return h.viewOf(&st, g, d), true
		}
	}
	return View{}, false
}

// viewOf returns what is known of a sleeping replica.
func (h *Host) viewOf(st *stub, g *ground, d raft.Descriptor) View {
	me, _ := d.ReplicaOn(h.node)
	v := View{
		Shard: st.shard, Replica: me.ID, Desc: d, Term: raft.Term(st.term), Leader: g.leader(h.node, h.live), Generation: st.gen,
		Commit: st.last, Applied: st.last, Last: st.last, Asleep: true, lease: g.lease,
	}
	v.IsLeader = g.kind == kindLeader
	v.IsReady = v.IsLeader
	return v
}
