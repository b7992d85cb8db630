package interop

import (
	"container/heap"
	cryptorand "crypto/rand"
	"fmt"
	"math/rand/v2"
	"strings"
	"time"

	pb "go.etcd.io/raft/v3/raftpb"

	"github.com/flotillakv/flotilla/multiraft/raft"
)

// Options chooses a run.
type Options struct {
	Seed uint64
	// Ours and Theirs are the nodes of each kind, 2 to 7 in all. The first
	// voters are at most five of them, of both kinds; the others are spare.
	Ours, Theirs int
	// Duration is the virtual length of the faulty phase. Zero: 30 s.
	Duration time.Duration
	// Rate is proposals per virtual second. Zero: 200.
	Rate int
}

// Result is what a run did.
type Result struct {
	Commits              raft.Index
	OurTerms, TheirTerms int // terms that a member of each kind led
	Confs, Snaps, Reads  int
	Crashes, Transfers   int
	Virtual              time.Duration
	Failure              error    // nil: no violation
	Story                []string // the last notes
}

type kind uint8

const (
	kindOurs kind = iota
	kindTheirs
)

// member is a replica of either kind. Methods run on the world's goroutine.
type member interface {
	replica() raft.ReplicaID
	descriptor() *raft.Descriptor
	appliedAt() raft.Index
	leads() bool
	boot()
	crash()
	tick()
	beats()
	livenessChanged(n raft.NodeID)
	deliver(p *packet)
	propose(body []byte) bool
	change(cc raft.ConfChange) bool
	transfer(to raft.ReplicaID)
	read(ctx uint64)
	snapshotSent(to raft.ReplicaID, index raft.Index, term raft.Term, ok bool)
	describe() string
}

// peerSight is what a node knows of another one.
type peerSight struct {
	heardAt int64 // last packet
	heedAt  int64 // last packet that said that the other one hears this node
	epoch   raft.Epoch
	live    bool
}

// node is a process. It answers its cores' questions about liveness.
type node struct {
	w    *world
	id   raft.NodeID
	kind kind
	up   bool
	m    member // nil: none yet
	boot raft.Epoch
	see  []peerSight // by node id - 1
}

// beatEvery is the period of heartbeats between nodes, and the tick of theirs.
const beatEvery = 100 * time.Millisecond

// SupportFor implements raft.Liveness.
func (n *node) SupportFor(o raft.NodeID) (raft.Epoch, bool) {
	if o == n.id {
		return n.boot, true
	}
	s := &n.see[o-1]
	return s.epoch, s.live
}

// SupportFrom implements raft.Liveness.
func (n *node) SupportFrom(o raft.NodeID) (raft.Epoch, raft.Time) {
	if o == n.id {
		return n.boot, raft.Never
	}
	s := &n.see[o-1]
	if s.heedAt == 0 {
		return 0, 0
	}
	return s.epoch, raft.Time(s.heedAt + int64(n.w.sight))
}

// hear notes a packet of another node.
func (n *node) hear(p *packet) {
	s := &n.see[p.from-1]
	s.heardAt = n.w.now
	if p.beat && p.heard {
		s.heedAt = n.w.now
	}
	if !s.live {
		s.live = true
		s.epoch++
		if n.m != nil {
			n.m.livenessChanged(p.from)
		}
	}
}

func (n *node) watch() {
	for i := range n.see {
		if s := &n.see[i]; s.live && n.w.now-s.heardAt > int64(n.w.sight) {
			s.live = false
			if n.m != nil {
				n.m.livenessChanged(raft.NodeID(i + 1))
			}
		}
	}
}

type event struct {
	at  int64
	seq uint64
	do  func()
}

type queue []event

func (q queue) Len() int { return len(q) }
func (q queue) Less(i, j int) bool {
	return q[i].at < q[j].at || q[i].at == q[j].at && q[i].seq < q[j].seq
}
func (q queue) Swap(i, j int) { q[i], q[j] = q[j], q[i] }
func (q *queue) Push(x any)   { *q = append(*q, x.(event)) }
func (q *queue) Pop() any {
	old := *q
	e := old[len(old)-1]
	*q = old[:len(old)-1]
	return e
}

type world struct {
	o     Options
	rng   *rand.Rand
	now   int64
	seq   uint64
	q     queue
	nodes []*node
	orc   *oracle
	res   *Result
	keep  int
	loss  float64
	dup   float64
	delay time.Duration
	cut   [8][8]bool
	calm  bool
	next  uint64
	sight time.Duration // how long a node counts as alive after it was heard
	ticks int           // of 100 ms: the election timeout of theirs
	homes map[raft.ReplicaID]raft.NodeID
	// scripted: no faults and no clients but those of a script.
	scripted bool
	commands []string // committed, in order; kept for scripts only
}

type violation struct{ error }

func (w *world) fail(format string, args ...any) { panic(violation{fmt.Errorf(format, args...)}) }

func (w *world) must(err error) {
	if err != nil {
		w.fail("%v", err)
	}
}

func (w *world) note(format string, args ...any) {
	if len(w.res.Story) >= 200 {
		w.res.Story = append(w.res.Story[:0], w.res.Story[100:]...)
	}
	w.res.Story = append(w.res.Story, fmt.Sprintf("%9.3fs ", float64(w.now)/1e9)+fmt.Sprintf(format, args...))
}

func (w *world) at(t int64, do func()) {
	w.seq++
	heap.Push(&w.q, event{max(t, w.now+1), w.seq, do})
}

func (w *world) after(d time.Duration, do func()) { w.at(w.now+int64(d), do) }

// every repeats do.
func (w *world) every(d time.Duration, do func()) {
	w.after(d, func() { do(); w.every(d, do) })
}

func (w *world) exp(mean time.Duration) time.Duration {
	return time.Duration(float64(mean) * min(w.rng.ExpFloat64(), 8))
}

func (w *world) syncTime() time.Duration { return w.exp(2 * time.Millisecond) }

func (w *world) kindOf(n raft.NodeID) kind { return w.nodes[n-1].kind }

// nodeOf returns where a replica lives or lived; zero: unknown.
func (w *world) nodeOf(id raft.ReplicaID) raft.NodeID { return w.homes[id] }

// send puts a packet on the network.
func (w *world) send(p *packet) {
	if w.cut[p.from][p.to] || !w.calm && w.rng.Float64() < w.loss {
		return
	}
	n := 1
	if !w.calm && w.rng.Float64() < w.dup {
		n = 2
	}
	for range n {
		w.after(time.Millisecond+w.exp(w.delay), func() { w.arrive(p) })
	}
}

func (w *world) arrive(p *packet) {
	n := w.nodes[p.to-1]
	if !n.up || w.cut[p.from][p.to] {
		return
	}
	n.hear(p)
	switch {
	case p.beat:
	case n.m == nil || n.m.replica() < p.target():
		w.stranger(n, p)
	default:
		n.m.deliver(p)
	}
}

// target returns the replica that a packet is for; zero: none.
func (p *packet) target() raft.ReplicaID {
	switch {
	case p.ours != nil:
		return p.ours.ToReplica
	case p.theirs != nil:
		return raft.ReplicaID(p.theirs.GetTo())
	}
	return 0
}

// stranger answers an append for a replica that is not here yet: it has an
// empty log and needs a snapshot.
func (w *world) stranger(n *node, p *packet) {
	switch {
	case p.ours != nil && p.ours.Type == raft.MsgApp:
		w.send(&packet{from: n.id, to: p.from, ours: &raft.Msg{
			Type: raft.MsgNeedSnapshot, Shard: group, From: n.id, To: p.from, FromReplica: p.ours.ToReplica, ToReplica: p.ours.FromReplica, Term: p.ours.Term,
		}})
	case p.theirs != nil && p.theirs.GetType() == pb.MsgApp:
		w.send(&packet{from: n.id, to: p.from, theirs: &pb.Message{
			Type: pb.MsgAppResp.Enum(), From: p.theirs.To, To: p.theirs.From, Term: p.theirs.Term, Index: p.theirs.Index, Reject: new(true), RejectHint: new(uint64(0)),
		}})
	case p.theirs != nil && p.theirs.GetType() == pb.MsgHeartbeat:
		// Their leader goes on sending only to who answers.
		w.send(&packet{from: n.id, to: p.from, theirs: &pb.Message{
			Type: pb.MsgHeartbeatResp.Enum(), From: p.theirs.To, To: p.theirs.From, Term: p.theirs.Term,
		}})
	}
}

// sendSnapshot sends a snapshot, and tells the sender how it went.
func (w *world) sendSnapshot(from *node, s *snapshot) {
	to := w.nodeOf(s.to)
	sender := from.m
	done := func(ok bool) {
		if from.up && from.m == sender {
			sender.snapshotSent(s.to, s.index, s.term, ok)
		}
	}
	if to == 0 || w.cut[from.id][to] || !w.calm && w.rng.Float64() < 4*w.loss {
		w.after(time.Second, func() { done(false) })
		return
	}
	s.state.desc = s.state.desc.Clone()
	w.after(5*time.Millisecond+w.exp(20*time.Millisecond), func() {
		n := w.nodes[to-1]
		if !n.up || w.cut[from.id][to] {
			done(false)
			return
		}
		if n.m == nil || n.m.replica() < s.to {
			if _, ok := s.state.desc.Replica(s.to); !ok {
				done(false)
				return
			}
			w.note("replica %d comes to life on node %d by a snapshot of %d", s.to, to, s.index)
			w.create(n, s.to, s)
		} else {
			n.m.deliver(&packet{from: from.id, to: to, snap: s})
		}
		done(true)
	})
}

// create makes a member out of a snapshot.
func (w *world) create(n *node, id raft.ReplicaID, s *snapshot) {
	if n.m != nil {
		n.m.crash()
	}
	w.homes[id] = n.id
	c := *s
	if n.kind == kindOurs {
		n.m = newOurs(w, n, id, &c)
	} else {
		n.m = newTheirs(w, n, id, &c)
	}
}

// Run runs one simulation to its end or to the first violation. The reference
// draws its election timeouts from crypto/rand, so Run puts a source of its own
// there: a seed decides everything. Not for concurrent use.
func Run(o Options) (res *Result) {
	if o.Duration == 0 {
		o.Duration = 30 * time.Second
	}
	if o.Rate == 0 {
		o.Rate = 200
	}
	res = &Result{}
	cryptorand.Reader = rand.NewChaCha8([32]byte{byte(o.Seed), byte(o.Seed >> 8), byte(o.Seed >> 16), 'e'})
	w := &world{o: o, rng: rand.New(rand.NewPCG(o.Seed, 77)), res: res, homes: map[raft.ReplicaID]raft.NodeID{}}
	defer func() {
		if p := recover(); p != nil {
			v, ok := p.(violation)
			if !ok {
				panic(fmt.Sprintf("seed %d, %d ours, %d theirs, at %.3fs: %v\n%s", o.Seed, o.Ours, o.Theirs, float64(w.now)/1e9, p, strings.Join(res.Story, "\n")))
			}
			res.Failure = v.error
		}
		if w.orc != nil {
			res.Commits = w.orc.newest - w.orc.first
		}
		res.Virtual = time.Duration(w.now)
	}()
	w.build()
	w.until(int64(o.Duration))
	w.heal()
	return res
}

func (w *world) build() {
	total := w.o.Ours + w.o.Theirs
	if total < 2 || total > 7 {
		w.fail("%d nodes, must be 2 to 7", total)
	}
	w.keep = 20 + w.rng.IntN(200)
	w.loss = []float64{0, 0.01, 0.05, 0.1}[w.rng.IntN(4)]
	w.dup = []float64{0, 0.02, 0.2}[w.rng.IntN(3)]
	w.sight = time.Duration(400+w.rng.IntN(1600)) * time.Millisecond
	w.ticks = 3 + w.rng.IntN(9)
	w.delay = []time.Duration{time.Millisecond, 5 * time.Millisecond, 20 * time.Millisecond}[w.rng.IntN(3)]
	desc := raft.Descriptor{Shard: group, Keyspace: 1, ConfVer: 1, Version: 1}
	voters := min(total, 5)
	if total > 3 && w.rng.IntN(2) == 0 {
		voters = 3
	}
	kinds := make([]kind, total)
	for i := range w.o.Theirs {
		kinds[i] = kindTheirs
	}
	w.rng.Shuffle(total, func(i, j int) { kinds[i], kinds[j] = kinds[j], kinds[i] })
	for i := range voters {
		desc.Replicas = append(desc.Replicas, raft.Replica{Node: raft.NodeID(i + 1), ID: raft.ReplicaID(i + 1), Role: raft.Voter})
		w.homes[raft.ReplicaID(i+1)] = raft.NodeID(i + 1)
	}
	desc.NextReplica = raft.ReplicaID(voters + 1)
	first := &snapshot{index: 5, term: 1, state: state{digest: w.o.Seed, desc: desc}}
	w.orc = newOracle(first)
	for i := range total {
		w.nodes = append(w.nodes, &node{w: w, id: raft.NodeID(i + 1), kind: kinds[i], up: true, boot: 1 << 32, see: make([]peerSight, total)})
	}
	for i := range voters {
		w.create(w.nodes[i], raft.ReplicaID(i+1), first)
	}
	for _, n := range w.nodes {
		w.after(w.exp(beatEvery), func() {
			w.every(beatEvery, func() { w.beat(n) })
		})
	}
	if w.scripted {
		w.loss, w.dup, w.delay = 0, 0, time.Millisecond
		return
	}
	w.every(time.Second/time.Duration(w.o.Rate), w.client)
	w.every(20*time.Millisecond, w.reader)
	w.after(w.exp(time.Second), w.fault)
}

// beat is a node's heartbeat.
func (w *world) beat(n *node) {
	if !n.up {
		return
	}
	n.watch()
	for _, p := range w.nodes {
		if p != n {
			w.send(&packet{from: n.id, to: p.id, beat: true, heard: n.see[p.id-1].live})
		}
	}
	if n.m != nil {
		n.m.tick()
		n.m.beats()
	}
}

// leader returns a member that believes to lead, or nil.
func (w *world) leader() member {
	at := w.rng.IntN(len(w.nodes))
	for i := range w.nodes {
		if n := w.nodes[(at+i)%len(w.nodes)]; n.up && n.m != nil && n.m.leads() {
			return n.m
		}
	}
	return nil
}

func (w *world) client() {
	if m := w.leader(); m != nil {
		w.next++
		m.propose(fmt.Appendf(nil, "command %d of %d", w.next, w.o.Seed))
	}
}

func (w *world) reader() {
	if m := w.leader(); m != nil {
		m.read(w.orc.begins())
	}
}

func (w *world) fault() {
	if w.calm {
		return
	}
	n := w.nodes[w.rng.IntN(len(w.nodes))]
	switch k := w.rng.IntN(12); {
	case k < 3:
		w.kill(n, w.exp(time.Second))
	case k == 3: // the leader
		if m := w.leader(); m != nil {
			w.kill(w.nodes[w.homes[m.replica()]-1], w.exp(time.Second))
		}
	case k < 6:
		w.partition(w.exp(2 * time.Second))
	case k < 8:
		if m := w.leader(); m != nil {
			d := m.descriptor()
			to := d.Replicas[w.rng.IntN(len(d.Replicas))]
			if to.ID != m.replica() {
				w.res.Transfers++
				m.transfer(to.ID)
			}
		}
	default:
		w.reconfigure()
	}
	w.after(w.exp(700*time.Millisecond), w.fault)
}

func (w *world) kill(n *node, down time.Duration) {
	if !n.up {
		return
	}
	w.res.Crashes++
	w.note("node %d crashes for %v", n.id, down.Round(time.Millisecond))
	n.up = false
	if n.m != nil {
		n.m.crash()
	}
	w.after(down, func() { w.restart(n) })
}

func (w *world) restart(n *node) {
	if n.up {
		return
	}
	n.up = true
	n.boot += 1 << 32
	for i := range n.see {
		n.see[i] = peerSight{epoch: n.see[i].epoch + 1<<32}
	}
	if n.m != nil {
		n.m.boot()
	}
}

// partition cuts random links, in one or both directions.
func (w *world) partition(d time.Duration) {
	side := w.rng.Uint64()
	oneWay := w.rng.IntN(3) == 0
	var cut [][2]raft.NodeID
	for _, a := range w.nodes {
		for _, b := range w.nodes {
			if side>>a.id&1 < side>>b.id&1 || !oneWay && side>>a.id&1 > side>>b.id&1 {
				if !w.cut[a.id][b.id] {
					w.cut[a.id][b.id] = true
					cut = append(cut, [2]raft.NodeID{a.id, b.id})
				}
			}
		}
	}
	w.note("cut %v for %v", cut, d.Round(time.Millisecond))
	w.after(d, func() {
		for _, c := range cut {
			w.cut[c[0]][c[1]] = false
		}
	})
}

// reconfigure proposes a change of one voter, of one learner, or of two voters
// at once (through a joint configuration).
func (w *world) reconfigure() {
	m := w.leader()
	if m == nil || m.descriptor().IsJoint() {
		return
	}
	d := m.descriptor()
	var in, out []raft.NodeID // nodes with and without a replica
	voters := 0
	for _, n := range w.nodes {
		if r, ok := d.ReplicaOn(n.id); ok {
			if r.Role == raft.Voter {
				voters++
			}
			if r.ID != m.replica() {
				in = append(in, n.id)
			}
		} else if n.m == nil || n.m.replica() < d.NextReplica && !n.up || n.m.descriptor().ConfVer >= d.ConfVer {
			out = append(out, n.id)
		}
	}
	cc := raft.ConfChange{ConfVer: d.ConfVer}
	remove := func() {
		if len(in) > 0 && voters > 2 {
			r, _ := d.ReplicaOn(in[w.rng.IntN(len(in))])
			cc.Steps = append(cc.Steps, raft.ConfStep{Remove: true, Replica: r})
		}
	}
	next := d.NextReplica
	add := func() { // never as a voter: a voter without a log helps nobody
		if len(out) > 0 {
			i := w.rng.IntN(len(out))
			cc.Steps = append(cc.Steps, raft.ConfStep{Replica: raft.Replica{Node: out[i], ID: next, Role: raft.Learner}})
			next++
			out = append(out[:i], out[i+1:]...)
		}
	}
	promote := func() {
		for _, r := range d.Replicas {
			if r.Role == raft.Learner && w.present(r, m.appliedAt()) {
				r.Role = raft.Voter
				cc.Steps = append(cc.Steps, raft.ConfStep{Replica: r})
				return
			}
		}
	}
	switch w.rng.IntN(6) {
	case 0:
		remove()
	case 1, 2:
		add()
	case 3:
		promote()
	case 4: // replace: joint
		promote()
		remove()
	case 5: // demote one, promote another: joint
		promote()
		if len(in) == 0 {
			return
		}
		if r, _ := d.ReplicaOn(in[w.rng.IntN(len(in))]); r.Role == raft.Voter {
			r.Role = raft.Learner
			cc.Steps = append(cc.Steps, raft.ConfStep{Replica: r})
		}
	}
	if len(cc.Steps) == 0 {
		return
	}
	to, err := d.Apply(cc)
	if err != nil || len(cc.Steps) > 1 && !to.IsJoint() {
		return // theirs would take a joint way where ours takes a direct one
	}
	for _, r := range to.Replicas {
		if r.Role != raft.Learner && !w.present(r, m.appliedAt()) {
			return // the change could leave the group without a quorum that knows of it
		}
	}
	m.change(cc)
}

// present reports whether a replica runs and has about caught up.
func (w *world) present(r raft.Replica, applied raft.Index) bool {
	n := w.nodes[r.Node-1]
	return n.up && n.m != nil && n.m.replica() == r.ID && n.m.appliedAt()+100 >= applied
}

func (w *world) until(t int64) {
	for len(w.q) > 0 && w.q[0].at <= t {
		e := heap.Pop(&w.q).(event)
		w.now = e.at
		e.do()
	}
	w.now = t
}

// heal ends the faults. The group must commit, and all members must catch up.
func (w *world) heal() {
	w.calm = true
	w.cut = [8][8]bool{}
	w.note("all is mended")
	for _, n := range w.nodes {
		w.restart(n)
	}
	w.until(w.now + int64(10*time.Second))
	goal := w.orc.newest + 10
	deadline := w.now + int64(30*time.Second)
	for w.now < deadline {
		w.until(w.now + int64(100*time.Millisecond))
		if w.orc.newest >= goal && w.caughtUp(goal) {
			return
		}
	}
	var all []string
	for _, n := range w.nodes {
		if n.m != nil {
			all = append(all, fmt.Sprintf("node %d replica %d: %s", n.id, n.m.replica(), n.m.describe()))
		}
	}
	w.fail("no progress after all was mended: at %d of %d\n%s", w.orc.newest, goal, strings.Join(all, "\n"))
}

func (w *world) caughtUp(goal raft.Index) bool {
	m := w.leader()
	if m == nil || m.descriptor().IsJoint() {
		return false
	}
	for _, r := range m.descriptor().Replicas {
		n := w.nodes[r.Node-1]
		if n.m == nil || n.m.replica() != r.ID || n.m.appliedAt() < goal {
			return false
		}
	}
	return true
}
