package multiraft

import (
	"fmt"
	"sync/atomic"
	"time"

	"github.com/flotillakv/flotilla/internal/mutants"
	"github.com/flotillakv/flotilla/multiraft/raft"
)

// pendingEntry is an entry of this replica's log that somebody waits for.
type pendingEntry struct {
	mark  raft.LogMark
	bytes int
	dones []Waiter
}

// readGroup is all reads of one round behind one read index request.
type readGroup struct {
	ctx   uint64
	index raft.Index // set once answered
	dones []ReadFunc
	asks  []raft.ReadAsk // of other members, who wait for the index alone
}

// View is what other goroutines may know of a replica without asking its loop.
type View struct {
	Shard    raft.ShardID
	Replica  raft.ReplicaID
	Desc     raft.Descriptor // read-only
	Term     raft.Term
	Leader   raft.NodeID // zero: unknown
	IsLeader bool
	// IsReady: this leader has committed an entry of its own term.
	IsReady bool
	Commit  raft.Index
	Applied raft.Index
	Last    raft.Index
	// NoQuorum is set while the replica cannot reach a majority of the voters.
	NoQuorum *NoQuorumError
	// Removed: the applied descriptor does not hold the replica any more. It
	// stays until the others need it no more, and is destroyed then.
	Removed bool
	// Asleep: it had nothing to do for some time, and takes next to no memory.
	Asleep bool
	// Fenced is set once the state machine failed on this replica.
	Fenced error
	// Generation tells one life of a replica on this node from the next: who reads
	// the store on the strength of a View has to look again afterwards.
	Generation uint64
	// lease is what this leader's lease rests on; nil: it claims none. It never changes.
	lease *raft.Lease
}

// standing is what other goroutines see of a replica that is awake; a View is made of
// it. It never changes.
type standing struct {
	desc       *raft.Descriptor
	term       raft.Term
	leader     raft.NodeID
	isLeader   bool
	isReady    bool
	removed    bool
	noQuorum   *NoQuorumError
	fenced     *fenceError
	generation uint64
	lease      *raft.Lease
}

// shown is what of a standing tells whether another one has to take its place: all else
// in it follows from this, or stays the same for as long as no quorum is lost.
type shown struct {
	lease    *raft.Lease
	term     raft.Term
	leader   raft.NodeID
	isLeader bool
	isReady  bool
	noQuorum bool
	fenced   *fenceError
	confVer  uint64
	version  uint64
}

// show publishes v.
func (r *replica) show(v *standing) {
	r.pub.Store(v)
	r.gone = v.removed
	r.shown = shown{
		lease: v.lease, term: v.term, leader: v.leader, isLeader: v.isLeader, isReady: v.isReady, noQuorum: v.noQuorum != nil,
		fenced: v.fenced, confVer: v.desc.ConfVer, version: v.desc.Version,
	}
}

// positions are how far a replica is. The loop stores them in one order and
// everybody else loads them in the other, so that applied <= commit <= last holds
// in what is loaded, though a round may come in between.
type positions struct{ last, commit, applied atomic.Uint64 }

func (p *positions) store(last, commit, applied raft.Index) {
	if uint64(last) != p.last.Load() {
		p.last.Store(uint64(last))
	}
	if uint64(commit) != p.commit.Load() {
		p.commit.Store(uint64(commit))
	}
	if uint64(applied) != p.applied.Load() {
		p.applied.Store(uint64(applied))
	}
}

// replica is one group on this node. Only its loop touches it; the rest of the
// process reads pub and pos.
type replica struct {
	// What every round with this replica looks at comes first, in few cache lines.

	core  *raft.Core
	shard raft.ShardID
	loop  *loop
	self  raft.ReplicaID

	heapPos int32 // in loop.timers; -1: not there
	place   int32 // in loop.order
	tail    int32 // bytes that its core holds, as counted in loop.tails

	touched   bool
	leaseKept bool // this round changes nothing of the lease
	asDirty   bool
	removed   bool // destroyed, or about to be: off the loop
	retiring  bool // to be taken off at the end of the round
	gone      bool // Removed of the View
	mixed     bool // waiting holds entries of several terms, in no order of index
	asked     bool // reads holds some of this round

	// want is the index at which the digest is asked for; zero: none.
	want raft.Index

	fenced *fenceError // nil: it is not
	slow   logSlow
	as     raft.AppliedState
	shown  shown                    // of pub
	pub    atomic.Pointer[standing] // all but the positions, which move in most rounds
	pos    positions

	dueAt    raft.Time // when it needs a round; Never: when something arrives
	deadline raft.Time // as the heap knows it: not later

	queue     []proposal // not yet in the log
	waiting   []pendingEntry
	lastTs    uint64      // newest group time proposed or applied, nanoseconds
	anomalies uint64      // of the core, as counted so far
	departed  *departures // nil: none
	quest     *quest      // nil: there is nothing to ask
	cmp       comparison
	doze      doze

	desc  *raft.Descriptor // replaced as a whole, never changed
	hard  raft.HardState
	reads *reading // nil: none is under way

	images *imageRecord // nil: none was made
	ill    *illness     // nil: neither fenced nor quarantined

	out   *outside // its state outside of the store; nil: there is none
	loose loose

	flights map[flightKey]*flight // commands of sessions that are queued or in the log

	// flushFrom is the first flush that can hold anything of this replica.
	flushFrom uint64
	snapsBusy map[raft.ReplicaID]bool

	gen uint64 // View.Generation
}

// reading is the reads of a replica that are under way.
type reading struct {
	fresh [numReadHow][]ReadFunc // of this round
	asks  []raft.ReadAsk         // of this round
	asked []readGroup            // not answered; in order of ctx
	ready []readGroup            // answered, waiting for the applied index; in order of index
}

// reading returns r.reads, to be changed.
func (r *replica) reading() *reading {
	if r.reads == nil {
		r.reads = new(reading)
	}
	return r.reads
}

// readsOpen reports whether reads are under way.
func (r *replica) readsOpen() bool {
	x := r.reads
	return x != nil && len(x.asks)+len(x.asked)+len(x.ready)+len(x.fresh[byLease])+len(x.fresh[byQuorum])+len(x.fresh[byFollower]) > 0
}

// imageRecord is what is known of images of a replica.
type imageRecord struct {
	at raft.Index // newest entry with an image that was applied since the boot; zero: none
	// Of images outside the log: the index that the core was told, zero for none; and what is
	// counted up when those made so far became void.
	kept raft.Index
	life uint32
	// ageAt is when cutOld looks next.
	ageAt raft.Time
}

// imaged returns r.images, to be changed.
func (r *replica) imaged() *imageRecord {
	if r.images == nil {
		r.images = new(imageRecord)
	}
	return r.images
}

// illness is how a fenced replica gets on.
type illness struct {
	ward ward
	// Of a leader: when it tries next to hand over, how long it waits after that, and to
	// whose turn it comes.
	handOffAt   raft.Time
	handOffWait time.Duration
	handOffTo   int
}

// illness returns r.ill, to be changed.
func (r *replica) illness() *illness {
	if r.ill == nil {
		r.ill = &illness{ward: ward{at: raft.Never}, handOffWait: handOffMin}
	}
	return r.ill
}

// fenceError is why a replica is fenced. It is a pointer, so that it compares
// with others whatever it wraps.
type fenceError struct {
	index raft.Index
	err   error
}

func (e *fenceError) Error() string { return fmt.Sprintf("index %d: %v", e.index, e.err) }
func (e *fenceError) Unwrap() error { return e.err }

// shut returns why the replica serves nobody, as View.Fenced; nil: it does.
func (r *replica) shut() *fenceError {
	if r.fenced == nil {
		return r.cmp.disputed
	}
	return r.fenced
}

// refused is what a fenced replica answers to whatever it did not propose.
func (r *replica) refused() error {
	return fmt.Errorf("%w: shard %d: %w", ErrFenced, r.shard, r.fenced)
}

// voters counts the voters of the configuration in force.
func (r *replica) voters() (n int) {
	for i := range r.desc.Replicas {
		if r.desc.Replicas[i].Role.IsVoter() {
			n++
		}
	}
	return n
}

// forgot counts the replicas in v.noQuorum that have forgotten.
func (v *standing) forgot() int {
	if v.noQuorum == nil {
		return 0
	}
	return len(v.noQuorum.Forgot)
}

// view returns v, which is or was r.pub, with the positions of now.
func (r *replica) view(v *standing) View {
	out := View{
		Shard: r.shard, Replica: r.self, Desc: *v.desc, Term: v.term, Leader: v.leader, IsLeader: v.isLeader, IsReady: v.isReady,
		NoQuorum: v.noQuorum, Removed: v.removed, Generation: v.generation, lease: v.lease,
	}
	if v.fenced != nil {
		out.Fenced = v.fenced
	}
	out.Applied = raft.Index(r.pos.applied.Load())
	out.Commit = raft.Index(r.pos.commit.Load())
	out.Last = raft.Index(r.pos.last.Load())
	return out
}

// publish makes the replica's state visible to other goroutines if it changed:
// the positions first, so that who sees a lease sees no older ones (rule P2 of
// lease.go). It reports whether leadership changed.
func (r *replica) publish(now raft.Time, wall time.Time) (leadershipChanged bool) {
	b := r.core.Brief()
	if b.Anomalies != r.anomalies {
		r.loop.h.noteAnomalies(now, r.shard, b.Anomalies-r.anomalies)
		r.anomalies = b.Anomalies
	}
	lease := r.shown.lease
	if !r.leaseKept { // else it was looked at a moment ago, by hideLeases
		lease = r.lease(lease)
	}
	r.leaseKept = false
	r.pos.store(b.Last, b.Commit, r.as.Applied)
	same := r.shown == shown{
		lease: lease, term: b.Term, leader: b.LeadNode, isLeader: b.IsLeader, isReady: b.Ready, noQuorum: b.QuorumLost,
		fenced: r.shut(), confVer: r.desc.ConfVer, version: r.desc.Version,
	}
	old := r.pub.Load()
	if same && old != nil && !b.QuorumLost {
		return false
	}
	st := r.core.Status()
	if same && old != nil && old.forgot() == len(st.Forgot) {
		return false
	}
	v := &standing{
		desc: r.desc, term: st.Term, leader: st.LeadNode, isLeader: st.Role == raft.RoleLeader, isReady: st.Ready,
		removed: r.isRemoved(), fenced: r.shut(), generation: r.gen, lease: lease,
	}
	if st.QuorumLost {
		if old != nil && old.noQuorum != nil && old.forgot() == len(st.Forgot) {
			v.noQuorum = old.noQuorum
		} else {
			v.noQuorum = &NoQuorumError{Shard: r.shard, Down: st.QuorumDown, Forgot: st.Forgot, Voters: r.voters(), Since: wall.Add(-now.Sub(st.Since))}
		}
	}
	r.show(v)
	return old != nil && (old.leader != v.leader || old.isLeader != v.isLeader || old.isReady != v.isReady ||
		old.term != v.term || (old.noQuorum == nil) != (v.noQuorum == nil))
}

// failQueued refuses everything not yet in the log. Nothing of it was proposed.
func (r *replica) failQueued(err error, c *completions) {
	for i := range r.queue {
		c.propose(r.queue[i].done, nil, 0, 0, err)
		r.loop.release(r.queue[i].size)
	}
	clear(r.queue)
	r.queue = r.queue[:0]
}

// await notes an entry that somebody waits for. Within one term indexes ascend;
// a replica that leads again in a later term may propose at lower indexes than
// its overwritten entries of before had, which still wait for their fate.
func (r *replica) await(w pendingEntry) {
	if n := len(r.waiting); n > 0 && r.waiting[n-1].mark.Term != w.mark.Term {
		r.mixed = true
	}
	r.waiting = append(r.waiting, w)
}

// takeWaiters removes what waits at the index of e, which is applied now, and returns
// those who proposed e itself. Who proposed another entry at that index is told that it
// will never be applied; so is everybody who waits for an entry of a term before e's,
// wherever in the log: terms do not descend along a log, and every leader to come has e.
// (Their entries may have been cut off with nothing to follow at their indexes.)
func (r *replica) takeWaiters(e raft.Entry, c *completions) (dones []Waiter) {
	if len(r.waiting) == 0 {
		return nil
	}
	first := &r.waiting[0]
	over := first.mark.Term < e.Term && !mutants.On("F6f")
	if !r.mixed && !over && first.mark.Index != e.Index {
		return nil
	}
	n, bytes := len(r.waiting), 0
	if !r.mixed && !over {
		n = 1
	}
	keep := r.waiting[:0]
	for i := range n {
		w := r.waiting[i]
		if w.mark.Index != e.Index && (w.mark.Term >= e.Term || mutants.On("F6f")) {
			keep = append(keep, w)
			continue
		}
		bytes += w.bytes
		if w.mark.Term == e.Term || mutants.On("F6c") && w.mark.Index == e.Index {
			dones = w.dones
			continue
		}
		for _, d := range w.dones {
			c.propose(d, nil, 0, 0, ErrDropped)
		}
	}
	r.forget(append(keep, r.waiting[n:]...), bytes)
	return dones
}

// passOver ends what waits at or below index: a snapshot of (index, term) went over it,
// so its outcome is not known here. What waits behind it from an earlier term will never
// be applied (takeWaiters says why).
func (r *replica) passOver(index raft.Index, term raft.Term, c *completions) {
	bytes := 0
	keep := r.waiting[:0]
	for _, w := range r.waiting {
		err := ErrAmbiguous
		if w.mark.Index > index {
			if w.mark.Term >= term {
				keep = append(keep, w)
				continue
			}
			err = ErrDropped
		}
		bytes += w.bytes
		for _, d := range w.dones {
			c.propose(d, nil, 0, 0, err)
		}
	}
	r.forget(keep, bytes)
}

// forget keeps a prefix of r.waiting's memory as what still waits.
func (r *replica) forget(keep []pendingEntry, bytes int) {
	clear(r.waiting[len(keep):])
	r.waiting = keep
	if len(keep) == 0 {
		r.mixed = false
	}
	r.loop.release(bytes)
}

// failWaiting ends everything that was handed to Raft: outcome unknown.
func (r *replica) failWaiting(err error, c *completions) {
	for i := range r.waiting {
		w := &r.waiting[i]
		for _, d := range w.dones {
			c.propose(d, nil, 0, 0, err)
		}
		r.loop.release(w.bytes)
	}
	clear(r.waiting)
	r.waiting, r.mixed = r.waiting[:0], false
}

func (r *replica) failReads(err error, c *completions) {
	x := r.reads
	if x == nil {
		return
	}
	for _, g := range x.asked {
		for _, d := range g.dones {
			c.read(d, 0, err)
		}
	}
	for _, g := range x.ready {
		for _, d := range g.dones {
			c.read(d, 0, err)
		}
	}
	for _, dones := range x.fresh {
		for _, d := range dones {
			c.read(d, 0, err)
		}
	}
	r.reads, r.asked = nil, false
}

func (r *replica) notLeader() error {
	st := r.core.Status()
	return &NotLeaderError{Shard: r.shard, Leader: st.LeadNode, Term: st.Term}
}

// completions are outcomes to be told after the round's batch is visible.
type completions struct {
	props   []propDone
	reads   []readDone
	waiting *atomic.Int64 // the host's count of reads; nil: none
}

type propDone struct {
	w     Waiter
	data  []byte
	index raft.Index
	slot  uint32
	err   error
}

type readDone struct {
	f     ReadFunc
	index raft.Index
	err   error
}

func (c *completions) propose(w Waiter, data []byte, index raft.Index, slot uint32, err error) {
	if w != nil {
		c.props = append(c.props, propDone{w, data, index, slot, err})
	}
}

func (c *completions) read(f ReadFunc, index raft.Index, err error) {
	c.reads = append(c.reads, readDone{f, index, err})
}

// spoil takes back the good news of a round that was not committed.
func (c *completions) spoil() {
	for i := range c.props {
		if p := &c.props[i]; p.err == nil {
			p.data, p.err = nil, ErrAmbiguous
		}
	}
	for i := range c.reads {
		if r := &c.reads[i]; r.err == nil {
			r.err = ErrClosed
		}
	}
}

// flush tells everybody. Callbacks must not block.
func (c *completions) flush() {
	for i := range c.props {
		p := &c.props[i]
		p.w.Proposed(p.data, p.index, p.slot, p.err)
	}
	if len(c.reads) > 0 && c.waiting != nil && !(mutants.On("S19-reads") && c.reads[0].err != nil) {
		c.waiting.Add(-int64(len(c.reads)))
	}
	for i := range c.reads {
		r := &c.reads[i]
		r.f(r.index, r.err)
	}
	clear(c.props)
	clear(c.reads)
	c.props, c.reads = c.props[:0], c.reads[:0]
}

// timerHeap orders replicas by deadline. What is put off stays where it is until it
// comes to the top: in a group that writes, most deadlines move on before they come.
type timerHeap []*replica

func (h timerHeap) less(i, j int) bool { return h[i].deadline < h[j].deadline }

func (h timerHeap) swap(i, j int) {
	h[i], h[j] = h[j], h[i]
	h[i].heapPos, h[j].heapPos = int32(i), int32(j)
}

func (h timerHeap) up(i int) {
	for i > 0 {
		p := (i - 1) / 2
		if !h.less(i, p) {
			return
		}
		h.swap(i, p)
		i = p
	}
}

func (h timerHeap) down(i int) {
	for {
		c := 2*i + 1
		if c >= len(h) {
			return
		}
		if c+1 < len(h) && h.less(c+1, c) {
			c++
		}
		if !h.less(c, i) {
			return
		}
		h.swap(i, c)
		i = c
	}
}

// set says that r needs a round at d.
func (h *timerHeap) set(r *replica, d raft.Time) {
	r.dueAt = d
	if r.heapPos < 0 {
		r.deadline, r.heapPos = d, int32(len(*h))
		*h = append(*h, r)
		h.up(int(r.heapPos))
		return
	}
	if d < r.deadline {
		r.deadline = d
		h.up(int(r.heapPos))
	}
}

// first returns the replica that needs a round before all others, at its dueAt;
// nil: there is none at all.
func (h timerHeap) first() *replica {
	if len(h) == 0 {
		return nil
	}
	for h[0].deadline < h[0].dueAt {
		h[0].deadline = h[0].dueAt
		h.down(0)
	}
	return h[0]
}
