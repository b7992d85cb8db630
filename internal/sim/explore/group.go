package explore

import (
	"encoding/binary"
	"fmt"
	"math/bits"
	"slices"

	"github.com/flotillakv/flotilla/multiraft/raft"
)

// Scope bounds the model of a group: how often each fault and each client
// action may occur on one path. Zero: never.
type Scope struct {
	Name string
	// Roles of the replicas on nodes 1, 2 and 3.
	Roles [nodesMax]raft.Role
	// Led starts with node 1 leading term 1 and its first entry committed
	// everywhere. Otherwise the group is new.
	Led bool
	// Terms is the highest term in which anybody campaigns.
	Terms int
	// OneEntry lets an append carry one entry at most.
	OneEntry  bool
	Proposals int
	Conf      ConfKind // the change a leader may propose, once
	Crashes   int      // with loss of what is not durable, and restart
	// Dups is how often a message stays in flight when it is delivered. Below
	// zero: always, without limit.
	Dups int
	// Campaigns is how often an election timer fires.
	Campaigns int
	// Resends is how often a timer may fire that only sends something again: retry,
	// read round, lag, fortify, leader loss.
	Resends int
	// Slow is how often a node with nothing unsynced leaves a round's batch
	// unsynced. While it has unsynced batches every round adds to them, until each
	// is synced in an action of its own. All other rounds are synced at once.
	Slow      int
	Lapses    int // a node stops to count another one's support
	Cuts      int // a node stops to count anybody's support
	Reads     int
	Transfers int
	// Symmetry takes states that differ in the names of nodes of the same role for one.
	Symmetry bool
}

// ConfKind names a configuration change.
type ConfKind uint8

const (
	// NoConf: none.
	NoConf ConfKind = iota
	// SwapConf makes a voter of the learner and a learner of the other voter,
	// through a joint configuration.
	SwapConf
	// AloneConf makes learners of all but the leader, through a joint configuration.
	AloneConf
	// RemoveConf takes the highest other voter out.
	RemoveConf
)

// Places in World.used.
const (
	usedProposals = iota
	usedConfs
	usedCrashes
	usedSlow
	usedDups
	usedResends
	usedCampaigns
	usedLapses
	usedCuts
	usedReads
	usedTransfers
	usedKinds
)

// netMax bounds the messages in flight. When there is no room for one more, one
// is lost: one that has no effect at its receiver now, else the new one.
const netMax = 32

// World is a state of the group: what each node is, what was sent, what an
// onlooker knows, and how much of the scope is used up. All by number.
//
// What is in net may be delivered at any time or never: loss and overtaking are
// unlimited. A delivery takes a message out, except for Scope.Dups. Deliveries
// without any effect are not looked at.
type World struct {
	node [nodesMax]uint32
	orc  uint32
	used [usedKinds]uint8
	n    uint8
	net  [netMax]uint32 // ascending
	sum  [6]uint64      // of the hashes of what is in net, by renaming
}

// onlooker knows what no node knows.
type onlooker struct {
	leaders [termsMax + 1]uint8 // by term: node, zero: none
	n       uint8
	log     [entryMax]uint32 // committed entries by number
	by      [entryMax]uint8  // term of the leader that committed it
}

// entry is a log entry that ever existed.
type entry struct {
	e    raft.Entry
	hash []uint64
}

type message struct {
	m    raft.Msg
	hash []uint64
}

// Actions of the model: kind, node and argument in one number.
const (
	actDeliver uint8 = iota + 1 // argument: message
	actPersist
	actCrash
	actFire // timer kind and peer
	actPropose
	actConf
	actRead     // index committed so far
	actTransfer // to node
	actLapse    // node stops to count the peer's support and asks at a new epoch
	actCount    // node counts the peer's support
	actAccept   // node supports the peer at the epoch it asks for
	actWithdraw // node withdraws its support
	actCut      // node stops to count anybody's support
)

func action(kind uint8, node int, arg uint32) uint64 {
	return uint64(kind)<<40 | uint64(node)<<32 | uint64(arg)
}

// result is what a step of one node leads to. It depends on the node's state and
// the input alone, so it is computed once.
type result struct {
	next    uint32
	msgs    uint32 // in Group.sent
	n       uint8
	elected uint8
	flags   uint8
	fail    uint16 // in Group.fails
	commits uint32 // in Group.commits; zero: none
}

const (
	appended = 1 << iota // the log
	nothing              // not enabled
)

// marks is a set of messages.
type marks []uint64

func (b *marks) set(i uint32) {
	for int(i>>6) >= len(*b) {
		*b = append(*b, 0)
	}
	(*b)[i>>6] |= 1 << (i & 63)
}

func (b marks) has(i uint32) bool { return int(i>>6) < len(b) && b[i>>6]>>(i&63)&1 != 0 }

// Group is the model of one Raft group of three nodes over the real raft.Core.
// The steps of a node are computed by the core itself, once for each pair of a
// node's state and an input, and remembered; a state of the group is a few
// numbers.
type Group struct {
	scope  Scope
	tuning raft.Tuning
	names  [][]uint32 // renamings, the first one changes nothing
	forms  []raft.StateForm

	nodes    []*node
	nodeNums map[uint64]uint32
	msgs     []*message
	msgNums  map[uint64]uint32
	entries  []*entry
	entryNum map[string]uint32
	orcs     []onlooker
	orcHash  [][]uint64
	orcNums  map[onlooker]uint32

	memo    table
	results []result
	sent    []uint32
	fails   []*Failure
	commits [][]commit

	out     raft.Out
	buf     []byte
	initial World
	early   *Failure // on the way to initial
	steps   uint64   // computed by a core
}

// NewGroup returns the model.
func NewGroup(s Scope) *Group {
	m := &Group{scope: s, nodeNums: map[uint64]uint32{}, msgNums: map[uint64]uint32{}, entryNum: map[string]uint32{}, orcNums: map[onlooker]uint32{}}
	m.nodes, m.msgs, m.fails, m.results = []*node{nil}, []*message{nil}, []*Failure{nil}, []result{{}}
	m.commits = [][]commit{nil}
	if s.OneEntry {
		m.tuning.MaxMsgBytes = 1
	}
	m.names = [][]uint32{{0, 1, 2, 3}}
	if s.Symmetry {
		for _, p := range [][]uint32{{0, 1, 3, 2}, {0, 2, 1, 3}, {0, 2, 3, 1}, {0, 3, 1, 2}, {0, 3, 2, 1}} {
			same := !s.Led || p[1] == 1
			for i := range s.Roles {
				same = same && s.Roles[i] == s.Roles[p[i+1]-1]
			}
			if s.Conf == RemoveConf {
				same = false // it names the highest node
			}
			if same {
				m.names = append(m.names, p)
			}
		}
	}
	for k := range m.names {
		m.forms = append(m.forms, raft.StateForm{Rename: m.names[k], Entry: func(dst []byte, e *raft.Entry) []byte {
			return binary.LittleEndian.AppendUint64(dst, m.entries[m.entryNumber(e)].hash[k])
		}})
	}
	m.start()
	return m
}

func (m *Group) start() {
	d := &raft.Descriptor{Shard: shardID, ConfVer: 1, Version: 1, NextReplica: nodesMax + 1}
	for i, r := range m.scope.Roles {
		if r != 0 {
			d.Replicas = append(d.Replicas, raft.Replica{Node: raft.NodeID(i + 1), ID: raft.ReplicaID(i + 1), Role: r})
		}
	}
	w := World{orc: m.orcNumber(onlooker{})}
	for i := range w.node {
		n := &node{at: i, boot: 1, durable: image{desc: d}}
		for k := range n.pairs {
			if k != i {
				n.pairs[k] = pair{given: 1<<32 | 1, givenLive: true, asked: 1<<32 | 1, counted: true}
			}
		}
		var fx effects
		m.out.Reset()
		n.start(m, &fx)
		if len(fx.msgs) > 0 {
			fx.broken("F1", "a new node is not quiet: %v", fx.msgs)
		}
		if fx.fail != nil {
			m.early = fx.fail
			return
		}
		w.node[i] = m.nodeNumber(n)
	}
	m.initial = w
	if m.scope.Led {
		m.lead()
	}
}

// lead takes the group to where node 1 leads and all is quiet.
func (m *Group) lead() {
	scope := m.scope
	m.scope.Terms, m.scope.Campaigns = 1, 1
	w := m.initial
	take := func(want func(uint64) bool) bool {
		if m.early != nil {
			return false
		}
		for _, s := range m.Successors(&w, nil) {
			if want(s.Act) {
				if s.Fail != nil {
					m.early = s.Fail
					return false
				}
				w = s.To
				return true
			}
		}
		return false
	}
	is := func(kind uint8) func(uint64) bool { return func(a uint64) bool { return uint8(a>>40) == kind } }
	elect := action(actFire, 0, uint32(raft.TimerElection)<<8)
	take(func(a uint64) bool { return a == elect })
	for take(is(actPersist)) || take(is(actDeliver)) || take(func(a uint64) bool {
		return a == action(actFire, 0, uint32(raft.TimerCommit)<<8)
	}) {
	}
	n := m.nodes[w.node[0]]
	for i := range w.node {
		if st := &m.nodes[w.node[i]].st; m.early == nil && (st.Commit != 1 || st.LeadNode != 1 || n.st.Role != raft.RoleLeader) {
			m.early = &Failure{"L1", "node 1 did not come to lead, with nothing in its way"}
		}
	}
	w.used, w.n, w.net, w.sum = [usedKinds]uint8{}, 0, [netMax]uint32{}, [6]uint64{} // all has arrived, and nothing comes twice
	m.scope, m.initial = scope, w
}

// Initial is Model.
func (m *Group) Initial() World { return m.initial }

// Figures returns how many states of single nodes and messages were met, and how
// many steps the cores took.
func (m *Group) Figures() (nodes, msgs int, steps uint64) {
	return len(m.nodes) - 1, len(m.msgs) - 1, m.steps
}

// Fingerprint is Model.
func (m *Group) Fingerprint(w *World) uint64 {
	least := ^uint64(0)
	used := hash(w.used[:])
	for k := range m.names {
		h := used + m.orcHash[w.orc][k] + w.sum[k]
		for _, n := range w.node {
			h += m.nodes[n].hash[k]
		}
		least = min(least, mix(h, 7))
	}
	return least
}

// Successors is Model.
func (m *Group) Successors(w *World, out []Succ[World]) []Succ[World] {
	if m.early != nil && *w == m.initial {
		return append(out, Succ[World]{Fail: m.early})
	}
	s, used := &m.scope, &w.used
	left := func(kind, limit int) bool { return int(used[kind]) < limit }
	for i := range w.node {
		n := m.nodes[w.node[i]]
		if len(n.pending) > 0 {
			out = m.step(w, out, actPersist, i, 0, -1)
		}
		if left(usedCrashes, s.Crashes) {
			out = m.step(w, out, actCrash, i, 0, usedCrashes)
		}
		for _, t := range n.timers {
			use := usedResends
			switch t.Kind {
			case raft.TimerElection:
				if use = usedCampaigns; int(n.st.Term) >= s.Terms || !left(usedCampaigns, s.Campaigns) {
					continue
				}
			case raft.TimerCommit, raft.TimerQuorum:
				use = -1
			case raft.TimerTransfer: // which may raise the term
				if use = -1; int(n.st.Term) >= s.Terms {
					continue
				}
			default:
				if !left(usedResends, s.Resends) {
					continue
				}
			}
			out = m.step(w, out, actFire, i, uint32(t.Kind)<<8|uint32(t.Peer), use)
		}
		if n.st.Role == raft.RoleLeader {
			if left(usedProposals, s.Proposals) && n.st.Last < entryMax {
				out = m.step(w, out, actPropose, i, 0, usedProposals)
			}
			if s.Conf != NoConf && left(usedConfs, 1) {
				out = m.step(w, out, actConf, i, 0, usedConfs)
			}
			if left(usedTransfers, s.Transfers) && int(n.st.Term) < s.Terms {
				for k := range w.node {
					if k != i {
						out = m.step(w, out, actTransfer, i, uint32(k+1), usedTransfers)
					}
				}
			}
		}
		if left(usedReads, s.Reads) && n.st.Lead != 0 {
			out = m.step(w, out, actRead, i, uint32(m.orcs[w.orc].n), usedReads)
		}
		if left(usedCuts, s.Cuts) {
			out = m.step(w, out, actCut, i, 0, usedCuts)
		}
		for k := range w.node {
			if k == i {
				continue
			}
			p, q := &n.pairs[k], &m.nodes[w.node[k]].pairs[i]
			// p: what this node gives to k and asks of it; q: the other side.
			switch {
			case p.counted && left(usedLapses, s.Lapses):
				out = m.step(w, out, actLapse, i, uint32(k), usedLapses)
			case !p.counted && q.givenLive && q.given == p.asked:
				out = m.step(w, out, actCount, i, uint32(k), -1)
			}
			if q.asked > p.given {
				out = m.step(w, out, actAccept, i, uint32(k)|uint32(q.asked>>32)<<8|uint32(q.asked&0xff)<<16, -1)
			}
			if p.givenLive && !(q.counted && q.asked == p.given) {
				out = m.step(w, out, actWithdraw, i, uint32(k), -1)
			}
		}
	}
	for _, id := range w.net[:w.n] {
		i := int(m.msgs[id].m.To) - 1
		if m.nodes[w.node[i]].idle.has(id) {
			continue
		}
		from := len(out)
		out = m.step(w, out, actDeliver, i, id, -1)
		if s.Dups < 0 {
			continue
		}
		end := len(out)
		if left(usedDups, s.Dups) {
			for j := from; j < end; j++ {
				out = append(out, out[j])
				out[len(out)-1].Act |= uint64(repeated) << 40
				out[len(out)-1].To.used[usedDups]++
			}
		}
		for j := from; j < end; j++ {
			m.remove(&out[j].To, id)
		}
	}
	return out
}

// add puts a message in flight and reports whether that changed anything.
func (m *Group) add(t *World, id uint32) bool {
	at, found := slices.BinarySearch(t.net[:t.n], id)
	if found {
		return false
	}
	if t.n == netMax {
		k := slices.IndexFunc(t.net[:], func(old uint32) bool {
			msg := m.msgs[old]
			return m.nodes[t.node[msg.m.To-1]].idle.has(old)
		})
		if k < 0 {
			return false
		}
		m.remove(t, t.net[k])
		at, _ = slices.BinarySearch(t.net[:t.n], id)
	}
	copy(t.net[at+1:t.n+1], t.net[at:t.n])
	t.net[at] = id
	t.n++
	for k, h := range m.msgs[id].hash {
		t.sum[k] += h
	}
	return true
}

func (m *Group) remove(t *World, id uint32) {
	at, found := slices.BinarySearch(t.net[:t.n], id)
	if !found {
		return // it was lost for want of room
	}
	copy(t.net[at:], t.net[at+1:t.n])
	t.n--
	t.net[t.n] = 0
	for k, h := range m.msgs[id].hash {
		t.sum[k] -= h
	}
}

const (
	slow     = 0x80 // marks an action whose batch stays unsynced
	repeated = 0x40 // marks a delivery after which the message stays in flight
)

// step appends what an action leads to, with a fast disk and with a slow one.
func (m *Group) step(w *World, out []Succ[World], kind uint8, i int, arg uint32, use int) []Succ[World] {
	out = m.take(w, out, kind, i, arg, use)
	if int(w.used[usedSlow]) >= m.scope.Slow || kind == actPersist || kind == actCrash || len(m.nodes[w.node[i]].pending) > 0 {
		return out
	}
	n := len(out)
	out = m.take(w, out, kind|slow, i, arg, use)
	if len(out) > n {
		if t := &out[n].To; out[n].Fail == nil && len(m.nodes[t.node[i]].pending) == 0 {
			return out[:n] // nothing was written
		} else {
			t.used[usedSlow]++
		}
	}
	return out
}

func (m *Group) take(w *World, out []Succ[World], kind uint8, i int, arg uint32, use int) []Succ[World] {
	r := m.local(w.node[i], kind, arg)
	if r.flags&nothing != 0 {
		return out
	}
	act := action(kind, i, arg)
	if r.fail != 0 {
		return append(out, Succ[World]{Act: act, Fail: m.fails[r.fail]})
	}
	out = append(out, Succ[World]{Act: act, To: *w})
	t := &out[len(out)-1].To
	t.node[i] = r.next
	same := r.next == w.node[i]
	for _, id := range m.sent[r.msgs : r.msgs+uint32(r.n)] {
		if m.add(t, id) {
			same = false
		}
	}
	if same {
		return out[:len(out)-1]
	}
	if use >= 0 {
		t.used[use]++
	}
	out[len(out)-1].Fail = m.look(w, t, i, &r)
	return out
}

// local returns what an input does to a node.
func (m *Group) local(num uint32, kind uint8, arg uint32) result {
	key := uint64(kind)<<56 | uint64(num)<<24 | uint64(arg)
	if i := m.memo.get(key); i != 0 {
		return m.results[i]
	}
	r := m.compute(m.nodes[num], kind, arg)
	if kind == actDeliver && r.next == num && r.n == 0 && r.fail == 0 {
		m.nodes[num].idle.set(arg)
	}
	m.memo.put(key, uint32(len(m.results)))
	m.results = append(m.results, r)
	return r
}

func (m *Group) compute(was *node, kind uint8, arg uint32) (r result) {
	m.steps++
	n := was.clone()
	o := &m.out
	o.Reset()
	var fx effects
	ok, fast := true, kind&slow == 0 && kind != actPersist && len(n.pending) == 0
	kind &^= slow
	func() {
		defer func() {
			if p := recover(); p != nil {
				fx.broken("F1", "node %d panics: %v", n.id(), p)
			}
		}()
		ok = m.input(n, kind, arg, &fx)
		for k := 0; ok && fast && fx.fail == nil && len(n.pending) > 0; k++ {
			if k == 32 {
				fx.broken("F1", "node %d writes without end", n.id())
			}
			o.Reset()
			n.persist(m, &fx)
		}
	}()
	if !ok {
		return result{flags: nothing}
	}
	if fx.fail != nil {
		m.fails = append(m.fails, fx.fail)
		return result{fail: uint16(len(m.fails) - 1)}
	}
	r = result{next: m.nodeNumber(n), msgs: uint32(len(m.sent)), elected: uint8(fx.elected)}
	for i := range fx.msgs {
		if to := fx.msgs[i].To; to == 0 || to > nodesMax {
			continue
		}
		id := m.msgNumber(&fx.msgs[i])
		if !slices.Contains(m.sent[r.msgs:], id) {
			m.sent = append(m.sent, id)
			r.n++
		}
	}
	if len(fx.commits) > 0 {
		r.commits = uint32(len(m.commits))
		m.commits = append(m.commits, fx.commits)
	}
	if fx.appended {
		r.flags |= appended
	}
	return r
}

// input does one thing to n and ends the round. It reports whether the thing can
// be done.
func (m *Group) input(n *node, kind uint8, arg uint32, fx *effects) bool {
	const now = raft.FrozenTime
	o := &m.out
	switch kind {
	case actDeliver:
		msg := m.msgs[arg].m
		n.core.Step(now, &msg, o)
	case actPersist:
		n.persist(m, fx)
		return true
	case actCrash:
		n.boot++
		for i := range n.pairs {
			if i != n.at {
				n.pairs[i].asked, n.pairs[i].counted = raft.Epoch(n.boot)<<32|1, false
			}
		}
		n.start(m, fx)
		return true
	case actFire:
		n.core.Fire(raft.Timer{Kind: raft.TimerKind(arg >> 8), Peer: raft.ReplicaID(arg & 0xff)}, o)
	case actPropose:
		if _, err := n.core.Propose(now, raft.EntryHeader{}, []raft.Command{{Op: 1, Body: []byte{byte(n.at + 1)}}}, o); err != nil {
			return false
		}
	case actConf:
		cc, ok := confChange(m.scope.Conf, n)
		if !ok {
			return false
		}
		if _, err := n.core.ProposeConf(now, cc, raft.EntryHeader{}, o); err != nil {
			return false
		}
	case actRead:
		ctx := n.newContext()
		n.reads = append(n.reads, read{ctx: ctx, need: raft.Index(arg)})
		if n.st.Role == raft.RoleLeader {
			n.core.ReadIndex(now, ctx, o)
		} else {
			n.core.FollowerRead(now, ctx, o)
		}
	case actTransfer:
		if n.core.Transfer(now, raft.ReplicaID(arg), o) != nil {
			return false
		}
	case actLapse:
		p := &n.pairs[arg]
		p.asked, p.counted = p.asked+1, false
		n.core.LivenessChanged(now, raft.NodeID(arg+1), o)
	case actCut:
		for k := range n.pairs {
			if p := &n.pairs[k]; p.counted {
				p.asked, p.counted = p.asked+1, false
				n.core.LivenessChanged(now, raft.NodeID(k+1), o)
			}
		}
	case actCount:
		n.pairs[arg].counted = true
		n.core.LivenessChanged(now, raft.NodeID(arg+1), o)
	case actAccept:
		p := &n.pairs[arg&0xff]
		p.given, p.givenLive = raft.Epoch(arg>>8&0xff)<<32|raft.Epoch(arg>>16), true
		n.core.LivenessChanged(now, raft.NodeID(arg&0xff+1), o)
	case actWithdraw:
		n.pairs[arg].givenLive = false
		n.core.LivenessChanged(now, raft.NodeID(arg+1), o)
	}
	n.finish(m, fx)
	return true
}

func confChange(k ConfKind, n *node) (raft.ConfChange, bool) {
	cc := raft.ConfChange{ConfVer: n.desc.ConfVer}
	if n.desc.IsJoint() {
		return cc, false
	}
	for _, r := range slices.Backward(n.desc.Replicas) {
		s := raft.ConfStep{Replica: r}
		switch {
		case r.Node == n.id():
			continue
		case k == RemoveConf:
			s.Remove = true
		case r.Role == raft.Learner:
			s.Role = raft.Voter
		default:
			s.Role = raft.Learner
		}
		cc.Steps = append(cc.Steps, s)
		if k == RemoveConf {
			break
		}
	}
	slices.Reverse(cc.Steps)
	return cc, len(cc.Steps) > 0
}

// look is the onlooker: it checks what a step of node i shows about the whole
// group.
func (m *Group) look(w, t *World, i int, r *result) *Failure {
	n := m.nodes[t.node[i]]
	if r.flags&appended != 0 {
		if f := m.matching(t, i); f != nil {
			return f
		}
	}
	leased := n.leased && !m.nodes[w.node[i]].leased
	if r.elected == 0 && r.commits == 0 && !leased {
		return nil
	}
	orc := m.orcs[t.orc]
	if r.elected != 0 {
		if f := m.elected(&orc, t, n, raft.Term(r.elected)); f != nil {
			return f
		}
	}
	if r.commits != 0 {
		if f := m.committed(&orc, t, n, m.commits[r.commits]); f != nil {
			return f
		}
	}
	if orc != m.orcs[t.orc] {
		t.orc = m.orcNumber(orc)
	}
	for k := range t.node {
		l := m.nodes[t.node[k]]
		if !l.leased {
			continue
		}
		for term := int(l.st.Term) + 1; term <= termsMax; term++ {
			if orc.leaders[term] != 0 {
				return &Failure{"S14", fmt.Sprintf("node %d holds a lease in term %d and node %d was elected in term %d", l.id(), l.st.Term, orc.leaders[term], term)}
			}
		}
		if int(l.lease) < int(orc.n) {
			return &Failure{"S15", fmt.Sprintf("node %d would serve a read under its lease at index %d, committed are %d", l.id(), l.lease, orc.n)}
		}
	}
	return nil
}

// elected checks a new leader: S1, S10 (its votes), S3.
func (m *Group) elected(orc *onlooker, t *World, n *node, term raft.Term) *Failure {
	if term > termsMax {
		return nil
	}
	if l := orc.leaders[term]; l != 0 && l != uint8(n.at+1) {
		return &Failure{"S1", fmt.Sprintf("term %d has two leaders, node %d and node %d", term, l, n.id())}
	}
	orc.leaders[term] = uint8(n.at + 1)
	if !quorum(n.desc, func(r raft.Replica) bool { return m.nodes[t.node[r.Node-1]].votes[term] == uint8(n.at+1) }) {
		return &Failure{"S10", fmt.Sprintf("node %d leads term %d without durable votes of a quorum", n.id(), term)}
	}
	for i := range int(orc.n) {
		if raft.Term(orc.by[i]) >= term {
			continue
		}
		if i >= len(n.visible.log) || m.entryNumber(&n.visible.log[i]) != orc.log[i] {
			return &Failure{"S3", fmt.Sprintf("node %d leads term %d without entry %d, committed in term %d", n.id(), term, i+1, orc.by[i])}
		}
	}
	return nil
}

// committed checks a commit index that moved: S3, S5, S6.
func (m *Group) committed(orc *onlooker, t *World, n *node, steps []commit) *Failure {
	for i := range int(n.st.Commit) {
		num := m.entryNumber(&n.visible.log[i])
		if i < int(orc.n) {
			if num != orc.log[i] {
				return &Failure{"S3", fmt.Sprintf("node %d holds entry %d of term %d as committed, elsewhere term %d was committed there", n.id(), i+1, n.visible.log[i].Term, m.entries[orc.log[i]].e.Term)}
			}
			continue
		}
		k := 0
		for k < len(steps)-1 && int(steps[k].index) <= i {
			k++
		}
		if led := steps[k].led; led == 0 || orc.leaders[led] != uint8(n.at+1) {
			return &Failure{"S3", fmt.Sprintf("node %d is the first to commit entry %d and does not lead term %d", n.id(), i+1, n.st.Term)}
		}
		if !quorum(steps[k].desc, func(r raft.Replica) bool {
			d := &m.nodes[t.node[r.Node-1]].durable
			return i < len(d.log) && m.entryNumber(&d.log[i]) == num
		}) {
			return &Failure{"S6", fmt.Sprintf("node %d commits entry %d of term %d, which is not durable on a quorum", n.id(), i+1, n.visible.log[i].Term)}
		}
		if i >= entryMax {
			return nil
		}
		orc.log[i], orc.by[i], orc.n = num, uint8(steps[k].led), uint8(i+1)
	}
	return nil
}

// matching checks the log of node i against the others: S2.
func (m *Group) matching(t *World, i int) *Failure {
	a := m.nodes[t.node[i]].visible.log
	for k := range t.node {
		if k == i {
			continue
		}
		b := m.nodes[t.node[k]].visible.log
		same := true
		for j := range min(len(a), len(b)) {
			eq := m.entryNumber(&a[j]) == m.entryNumber(&b[j])
			if !eq && a[j].Term == b[j].Term || eq && !same {
				return &Failure{"S2", fmt.Sprintf("the logs of nodes %d and %d have term %d at %d and differ there or before", i+1, k+1, a[j].Term, j+1)}
			}
			same = same && eq
		}
	}
	return nil
}

// nodeNumber returns the number of a node's state.
func (m *Group) nodeNumber(n *node) uint32 {
	n.st = n.core.Status()
	n.st.Since, n.st.QuorumDown = 0, nil
	m.buf = n.appendForm(m.buf[:0], &m.forms[0])
	h := hash(m.buf)
	if i, ok := m.nodeNums[h]; ok {
		return i
	}
	n.timers = n.core.Timers(nil)
	n.timers = slices.DeleteFunc(n.timers, func(t raft.Timer) bool { return t.Kind == raft.TimerTruncate })
	n.lease, n.leased = n.core.LeaseRead(raft.FrozenTime)
	n.hash = make([]uint64, len(m.forms))
	n.hash[0] = h
	for k := 1; k < len(m.forms); k++ {
		m.buf = n.appendForm(m.buf[:0], &m.forms[k])
		n.hash[k] = hash(m.buf)
	}
	i := uint32(len(m.nodes))
	m.nodes = append(m.nodes, n)
	m.nodeNums[h] = i
	return i
}

func (m *Group) msgNumber(msg *raft.Msg) uint32 {
	m.buf = m.forms[0].AppendMsg(append(m.buf[:0], 'm'), msg)
	h := hash(m.buf)
	if i, ok := m.msgNums[h]; ok {
		return i
	}
	c := &message{m: *msg, hash: make([]uint64, len(m.forms))}
	c.m.Entries = slices.Clone(msg.Entries)
	c.hash[0] = h
	for k := 1; k < len(m.forms); k++ {
		m.buf = m.forms[k].AppendMsg(append(m.buf[:0], 'm'), msg)
		c.hash[k] = hash(m.buf)
	}
	i := uint32(len(m.msgs))
	m.msgs = append(m.msgs, c)
	m.msgNums[h] = i
	return i
}

// entryNumber returns the number of an entry. Its form under a renaming is that
// of its content: who proposed it, or the steps of the change.
func (m *Group) entryNumber(e *raft.Entry) uint32 {
	if i, ok := m.entryNum[string(e.Value)]; ok {
		return i
	}
	x := &entry{e: *e, hash: make([]uint64, len(m.names))}
	for k, name := range m.names {
		b := []byte{byte(e.Index), byte(e.Term), byte(e.Type)}
		for _, c := range e.Commands() {
			if e.Type != raft.EntryConf {
				for _, id := range c.Body {
					b = append(b, byte(name[id]))
				}
				continue
			}
			cc, err := raft.DecodeConfChange(c.Body)
			if err != nil {
				panic(err)
			}
			var steps [nodesMax + 1][]byte
			for _, s := range cc.Steps {
				steps[name[s.Node]] = []byte{byte(name[s.Node]), byte(name[s.ID]), byte(s.Role), bit(s.Remove)}
			}
			b = append(b, byte(cc.ConfVer))
			for _, s := range steps {
				b = append(b, s...)
			}
		}
		x.hash[k] = hash(b)
	}
	i := uint32(len(m.entries))
	m.entries = append(m.entries, x)
	m.entryNum[string(e.Value)] = i
	return i
}

func (m *Group) orcNumber(o onlooker) uint32 {
	if i, ok := m.orcNums[o]; ok {
		return i
	}
	hs := make([]uint64, len(m.names))
	for k, name := range m.names {
		b := []byte{'o', o.n}
		for _, l := range o.leaders {
			b = append(b, byte(name[l]))
		}
		for i := range int(o.n) {
			b = append(binary.LittleEndian.AppendUint64(b, m.entries[o.log[i]].hash[k]), o.by[i])
		}
		hs[k] = hash(b)
	}
	i := uint32(len(m.orcs))
	m.orcs, m.orcHash = append(m.orcs, o), append(m.orcHash, hs)
	m.orcNums[o] = i
	return i
}

// hash is a 64-bit hash of b.
func hash(b []byte) uint64 {
	h := uint64(len(b))*0x9e3779b97f4a7c15 + 0x1234567
	for len(b) >= 8 {
		h = mix(h, binary.LittleEndian.Uint64(b))
		b = b[8:]
	}
	var tail [8]byte
	copy(tail[:], b)
	return mix(mix(h, binary.LittleEndian.Uint64(tail[:])), 0x5851f42d4c957f2d)
}

func mix(a, b uint64) uint64 {
	hi, lo := bits.Mul64(a^0xa0761d6478bd642f, b^0xe7037ed1a0b428db)
	hi2, lo2 := bits.Mul64(hi^a, lo^0x8ebc6af09c88c6e3)
	return hi2 ^ lo2
}

// table maps numbers to numbers above zero.
type table struct {
	keys []uint64
	vals []uint32
	n    int
}

func (t *table) get(k uint64) uint32 {
	if len(t.keys) == 0 {
		return 0
	}
	mask := uint64(len(t.keys) - 1)
	for i := mix(k, 1) & mask; t.vals[i] != 0; i = (i + 1) & mask {
		if t.keys[i] == k {
			return t.vals[i]
		}
	}
	return 0
}

func (t *table) put(k uint64, v uint32) {
	if t.n*3 >= len(t.keys)*2 {
		old, vals := t.keys, t.vals
		size := max(1<<12, 2*len(old))
		t.keys, t.vals, t.n = make([]uint64, size), make([]uint32, size), 0
		for i, x := range vals {
			if x != 0 {
				t.put(old[i], x)
			}
		}
	}
	mask := uint64(len(t.keys) - 1)
	i := mix(k, 1) & mask
	for t.vals[i] != 0 {
		i = (i + 1) & mask
	}
	t.keys[i], t.vals[i] = k, v
	t.n++
}
