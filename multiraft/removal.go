package multiraft

import (
	"slices"
	"time"

	"github.com/flotillakv/flotilla/internal/mutants"
	"github.com/flotillakv/flotilla/multiraft/raft"
)

// How a removed replica ends
//
// A replica that has applied its removal must stay for a while: the others may
// still count by the configuration that holds it, and need its vote.
//
//  1. {2, 3} becomes {3} while 3 leads; 2 applies that and is destroyed.
//  2. 3 crashes and comes back with the change in its log, not knowing that it
//     was committed. By what it has applied it needs the vote of 2, for ever.
//
// So it asks the members of the newest configuration it knows of (MsgMember).
// Who is asked by a replica that its descriptor does not hold answers with that
// descriptor, when it is durable (MsgMemberResp). Replica ids are never used
// again, so one such descriptor is proof that the replica is none any more; a
// quorum of the newest one seen having it durably is proof that nobody needs
// the replica. Then it is destroyed: every request is answered, the store keeps
// a tombstone, its data are removed.
//
// A replica that missed its removal goes the same way. It asks when it has had
// no leader for some time, when a message comes for a newer replica on this
// node, when the leader that removed it says so (which it repeats until it
// hears that the replica is gone), and, seldom, in turn with all others that
// do not lead.

const (
	// A removed replica asks after askFirst, and then with twice the pause each
	// time up to askMost. It goes when all voters have answered, or a quorum if
	// the others have not for lingerAll.
	askFirst  = 20 * time.Millisecond
	askMost   = 2 * time.Second
	lingerAll = 3 * time.Second
	// A replica without a leader asks after doubtAfter, with pauses up to doubtMost.
	doubtAfter = 2 * time.Second
	doubtMost  = 30 * time.Second
	// A leader tells a replica that was removed under it after tellFirst, with
	// pauses up to tellMost, at most tellTimes.
	tellFirst = 200 * time.Millisecond
	tellMost  = 5 * time.Second
	tellTimes = 16
	// Every sweepEvery, sweepCount replicas of a loop that do not lead ask the
	// leader they believe in whether they are members.
	sweepEvery = 5 * time.Second
	sweepCount = 16
	// askEverybody says each how manieth question goes to all nodes, not only to
	// the members known: all of those may be gone.
	askEverybody = 3
)

// quest is what a replica knows of its own end.
type quest struct {
	at    raft.Time // next question; raft.Never: none is planned
	wait  time.Duration
	tries int
	since raft.Time // newest is known since then
	// newest is the newest descriptor seen that does not hold the replica; lacks
	// are the replicas that have such a one durably.
	newest raft.Descriptor
	lacks  []raft.ReplicaID
	// leaderless is since when no leader is known; zero: one is.
	leaderless raft.Time
}

// departed is a replica that was removed under this leader, and has not said
// that it is gone.
type departed struct {
	raft.Replica
	at    raft.Time
	wait  time.Duration
	tries int
}

// departures are all of a replica's departed.
type departures struct{ list []departed }

// keep leaves list of r.departed, which is d.
func (d *departures) keep(r *replica, list []departed) {
	if d.list = list; len(list) == 0 {
		r.departed = nil
	}
}

// questions returns r.quest, to be changed.
func (r *replica) questions() *quest {
	if r.quest == nil {
		r.quest = &quest{at: raft.Never}
	}
	return r.quest
}

// questAt returns when the replica asks next.
func (r *replica) questAt() raft.Time {
	if r.quest == nil {
		return raft.Never
	}
	return r.quest.at
}

// newestConf returns the version of the newest descriptor seen that does not hold the
// replica; zero: none was seen.
func (r *replica) newestConf() uint64 {
	if r.quest == nil {
		return 0
	}
	return r.quest.newest.ConfVer
}

// isRemoved reports whether the applied descriptor does not hold the replica.
func (r *replica) isRemoved() bool {
	_, ok := r.desc.Replica(r.self)
	return !ok
}

// nextTalk returns when the replica has to ask or to tell.
func (r *replica) nextTalk() raft.Time {
	d := r.questAt()
	if r.departed != nil {
		for i := range r.departed.list {
			d = min(d, r.departed.list[i].at)
		}
	}
	return d
}

// watch plans the questions of a replica, once per round in which it was touched.
func (l *loop) watch(now raft.Time, r *replica) {
	v := &r.shown
	switch {
	case r.gone:
		if q := r.questions(); q.at == raft.Never {
			q.at, q.wait = now.Add(askFirst), askFirst
		}
	case v.isLeader || v.leader != 0 && r.newestConf() == 0:
		if r.quest != nil && r.quest.leaderless != 0 {
			r.quest = nil
		}
	case v.leader == 0:
		if q := r.questions(); q.leaderless == 0 {
			q.leaderless = max(now, 1)
			if q.at == raft.Never {
				q.at, q.wait = now.Add(doubtAfter), doubtAfter
			}
		}
	}
	if !v.isLeader && r.departed != nil {
		r.departed = nil // the next leader knows, or they ask themselves
	}
}

// talk asks and tells what is due.
func (l *loop) talk(now raft.Time, r *replica) {
	if now >= r.questAt() {
		l.ask(now, r)
	}
	if r.departed == nil {
		return
	}
	keep := r.departed.list[:0]
	for _, p := range r.departed.list {
		if now >= p.at {
			if p.tries++; p.tries > tellTimes {
				continue
			}
			p.wait = min(2*p.wait, tellMost)
			p.at = now.Add(p.wait)
			l.tellGone(r, p.Node, p.ID)
		}
		keep = append(keep, p)
	}
	r.departed.keep(r, keep)
}

// ask sends the question to everybody who may know.
func (l *loop) ask(now raft.Time, r *replica) {
	q := r.questions()
	q.tries++
	most := doubtMost
	if r.isRemoved() || q.newest.ConfVer > 0 {
		most = askMost
	}
	q.wait = min(2*max(q.wait, askFirst), most)
	q.at = now.Add(q.wait)
	var to []raft.NodeID
	add := func(n raft.NodeID) {
		if n != l.h.node && n != 0 && !slices.Contains(to, n) {
			to = append(to, n)
		}
	}
	for _, d := range []*raft.Descriptor{r.desc, &q.newest} {
		for _, m := range d.Replicas {
			add(m.Node)
		}
	}
	if q.tries%askEverybody == 0 && l.h.nodes != nil {
		for _, n := range l.h.nodes() {
			add(n)
		}
	}
	for _, n := range to {
		l.askNode(r, n)
	}
}

func (l *loop) askNode(r *replica, n raft.NodeID) {
	l.out.Msgs = append(l.out.Msgs, raft.Msg{
		Type: raft.MsgMember, Shard: r.shard, From: l.h.node, To: n, FromReplica: r.self, Term: max(1, r.core.Status().Term),
	})
}

// stepMember takes the messages of this protocol. It reports whether m was one.
func (l *loop) stepMember(now raft.Time, m *raft.Msg) bool {
	if m.Type != raft.MsgMember && m.Type != raft.MsgMemberResp {
		return false
	}
	r := l.get(now, m.Shard)
	switch m.Type {
	case raft.MsgMember:
		if r == nil || m.FromReplica >= r.desc.NextReplica {
			return true // no idea
		}
		if _, ok := r.desc.Replica(m.FromReplica); !ok {
			l.tellGone(r, m.From, m.FromReplica)
		}
	case raft.MsgMemberResp:
		switch {
		case m.Reject():
			if r != nil && r.departed != nil && m.ToReplica == r.self {
				r.departed.keep(r, slices.DeleteFunc(r.departed.list, func(p departed) bool { return p.ID == m.FromReplica }))
			}
		case r == nil || r.self > m.ToReplica:
			if l.dying[m.Shard] == nil {
				l.sayGone(m, m.ToReplica+1)
			}
		case r.self == m.ToReplica:
			l.learnGone(now, r, m)
		}
	}
	return true
}

// tellGone tells a replica that it is none any more: once the descriptor that
// says so is durable here, and with it, in this descriptor's words.
func (l *loop) tellGone(r *replica, node raft.NodeID, id raft.ReplicaID) {
	st := r.core.Status()
	term := max(1, st.Term)
	m := raft.Msg{Type: raft.MsgMemberResp, Shard: r.shard, From: l.h.node, To: node, FromReplica: r.self, ToReplica: id, Term: term}
	m.Entries = []raft.Entry{{Index: 1, Term: term, Type: raft.EntryAdmin,
		Value: raft.EncodeEntry(nil, 1, term, raft.EntryAdmin, raft.EntryHeader{}, []raft.Command{{Body: r.desc.Encode(nil)}})}}
	l.touch(r)
	if mutants.On("C5b") { // before it is durable
		l.out.Msgs = append(l.out.Msgs, m)
		return
	}
	r.asDirty, l.wantSync = true, true // a batch that is synced makes all before it durable
	l.out.Held = append(l.out.Held, m)
}

// sayGone answers a message for a replica that was destroyed here, or never was.
func (l *loop) sayGone(m *raft.Msg, lowest raft.ReplicaID) {
	l.out.Msgs = append(l.out.Msgs, raft.Msg{
		Type: raft.MsgMemberResp, Flags: raft.FlagReject, Shard: m.Shard, From: l.h.node, To: m.From,
		FromReplica: m.ToReplica, ToReplica: m.FromReplica, Term: max(1, m.Term), Index: raft.Index(lowest),
	})
}

// learnGone takes the answer that this replica is none any more.
func (l *loop) learnGone(now raft.Time, r *replica, m *raft.Msg) {
	if len(m.Entries) != 1 || m.Entries[0].Type != raft.EntryAdmin {
		return
	}
	var d raft.Descriptor
	var err error
	for _, c := range m.Entries[0].Commands() {
		d, err = raft.DecodeDescriptor(c.Body)
	}
	if _, ok := d.Replica(r.self); err != nil || ok || d.Shard != r.shard || d.NextReplica <= r.self {
		return
	}
	q := r.questions()
	if d.ConfVer > q.newest.ConfVer || mutants.On("C13") {
		if q.newest.ConfVer == 0 {
			q.since = now
		}
		q.newest = d.Clone()
	}
	if !slices.Contains(q.lacks, m.FromReplica) {
		q.lacks = append(q.lacks, m.FromReplica)
	}
	if q.at > now.Add(askFirst) { // there may be more to learn
		q.at, q.wait = now.Add(askFirst), askFirst
	}
	l.touch(r)
	if r.mayGo(now) {
		r.retiring = true // at the end of the round: its batch may still hold writes of the replica
	}
}

// mayGo reports whether nobody needs the replica any more.
func (r *replica) mayGo(now raft.Time) bool {
	q := r.questions()
	if mutants.On("G11b") { // one answer is enough
		return len(q.lacks) > 0
	}
	// In the new half and, while joint, in the old one.
	var have, need [2]int
	for _, m := range q.newest.Replicas {
		in := [2]bool{
			m.Role == raft.Voter || m.Role == raft.VoterIncoming,
			m.Role == raft.Voter || m.Role == raft.VoterOutgoing || m.Role == raft.VoterDemoting,
		}
		for h, is := range in {
			if is {
				need[h]++
				if slices.Contains(q.lacks, m.ID) {
					have[h]++
				}
			}
		}
	}
	for h := range need {
		if have[h] <= need[h]/2 {
			return false
		}
	}
	return have == need || now.Sub(q.since) >= lingerAll
}

// retire takes the replica off the loop, between two rounds, and has it
// destroyed. Everybody who waits for it is answered by the end of the round;
// messages for it find nothing from here on.
func (l *loop) retire(r *replica) {
	r.removed = true
	l.dropImage(r, anyIndex)
	l.dismiss(r)
	if mutants.On("F7") {
		l.byID[r.shard] = r
	}
	if !mutants.On("F6") {
		r.failQueued(ErrUnknownShard, &l.done)
		r.failWaiting(ErrAmbiguous, &l.done)
		r.failReads(ErrUnknownShard, &l.done)
	}
	if r.out != nil {
		l.giveUp(0, r)
		l.h.unsynced.set(r.shard, nil)
	}
	l.queued = slices.DeleteFunc(l.queued, func(o *replica) bool { return o == r })
	l.dying[r.shard] = r
	lowest := r.self + 1
	if mutants.On("G12") {
		lowest = r.self
	}
	h := l.h
	h.logger.Info("a removed replica is destroyed", "shard", r.shard, "replica", r.self, "conf_ver", r.newestConf())
	h.spawn(func() {
		// First nobody finds it any more (a reader looks again after its read), then
		// its data go.
		h.forget(r)
		r.dropOutside()
		err := h.engine.Destroy(r.shard, r.desc, lowest)
		if err != nil {
			h.fatal(err)
		}
		l.in.put(func(it *items) {
			it.funcs = append(it.funcs, func(raft.Time) { delete(l.dying, r.shard) })
		})
		if err == nil && h.onDestroy != nil {
			h.onDestroy(r.shard, r.self)
		}
	})
}

// forget takes r out of the table.
func (h *Host) forget(r *replica) {
	h.mu.Lock() // whoever adds replicas looks first whether they are there
	defer h.mu.Unlock()
	h.table.remove(r)
}

// sweep lets some replicas ask, in turn, whether they are members still.
func (l *loop) sweep(now raft.Time) {
	first := l.sweepAt == 0
	if l.sweepAt = now.Add(sweepEvery); first {
		return
	}
	order := l.inOrder()
	for range min(sweepCount, len(order)) {
		if l.sweepNext >= len(order) {
			l.sweepNext = 0
		}
		r := order[l.sweepNext]
		l.sweepNext++
		if mutants.On("L2-restless") && r.core.Status().Role == raft.RoleLeader { // leaders take turns
			for _, p := range r.desc.Replicas {
				if p.ID != r.self && r.core.Transfer(now, p.ID, &l.out) == nil {
					l.touch(r)
					break
				}
			}
		}
		if v := r.pub.Load(); !v.isLeader && v.leader != 0 && v.leader != l.h.node {
			l.askNode(r, v.leader)
		}
	}
}

// remove takes r out.
func (h *timerHeap) remove(r *replica) {
	i := int(r.heapPos)
	if i < 0 {
		return
	}
	last := len(*h) - 1
	h.swap(i, last)
	(*h)[last] = nil
	*h = (*h)[:last]
	r.heapPos = -1
	if i < last {
		h.up(i)
		h.down(i)
	}
}
