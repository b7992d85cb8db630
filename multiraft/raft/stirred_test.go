package raft

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"testing"
	"time"
)

// stirredCases tell, one by one, what stirs a core and what does not. Each plays a
// scenario on node 1 and returns what is wrong.
var stirredCases = []struct {
	name string
	run  func(t *testing.T) error
}{
	{"acknowledgements of one write", stirAcks},
	{"a quorum by an answer", stirQuorum},
	{"a quorum by the own disk", stirOwnDisk},
	{"nobody else votes", stirSole},
	{"a follower's disk", stirFollower},
	{"a candidate's disk", stirCandidate},
	{"before the first commit", stirNotReady},
	{"the window opens", stirWindow},
	{"what is not an acknowledgement", stirOthers},
	{"a probe finds its place", stirProbe},
	{"a promise comes with it", stirPromise},
	{"a read waits", stirRead},
	{"a transfer waits", stirTransfer},
	{"a joint configuration", stirJoint},
	{"the cutting of logs waits", stirCut},
	{"silence is noticed earlier", stirRetry},
	{"memory waits for the disk", stirMemory},
	{"a peer is cut off", stirSnapshot},
}

func TestStirred(t *testing.T) {
	for _, c := range stirredCases {
		t.Run(c.name, func(t *testing.T) {
			if err := c.run(t); err != nil {
				t.Fatal(err)
			}
		})
	}
}

// input hands the core one thing and returns whether it is stirred by it. If it is
// not, the Flush is left out, and nothing may be owed. If it is, it is flushed,
// and nothing of what comes out is carried out but the applying.
func (r *rig) input(f func(o *Out)) (bool, error) {
	r.t.Helper()
	if r.c.Stirred() {
		return false, errors.New("stirred before anything came in")
	}
	before := r.c.Deadline()
	f(&r.o)
	if r.c.Stirred() {
		r.do(false, func(*Out) {})
		return true, nil
	}
	if n := len(r.o.Msgs) + len(r.o.Held) + len(r.o.Reads) + len(r.o.HardStates) + len(r.o.Appends) + len(r.o.Asks) + len(r.o.Forgets); n > 0 {
		return false, fmt.Errorf("not stirred, and gives out %+v", r.o)
	}
	if d := r.c.Deadline(); d < before {
		return false, fmt.Errorf("not stirred, and the deadline comes from %d to %d", before, d)
	}
	return false, r.c.CheckQuiet(r.now)
}

// stirs says whether f stirs the core, as it is wanted to.
func (r *rig) stirs(what string, want bool, f func(o *Out)) error {
	r.t.Helper()
	got, err := r.input(f)
	if err == nil && got != want {
		err = fmt.Errorf("stirred: %v, want %v", got, want)
	}
	if err != nil {
		return fmt.Errorf("%s: %w", what, err)
	}
	return nil
}

// msg is a message of node n to the core.
func (r *rig) msg(n NodeID, m Msg) func(o *Out) {
	m.Shard, m.From, m.To, m.ToReplica, m.FromReplica = 7, n, 1, 1, ReplicaID(n)
	if m.Term == 0 {
		m.Term = r.c.hs.Term
	}
	return func(o *Out) { r.c.Step(r.now, &m, o) }
}

// ack is the acknowledgement of everything through i by node n.
func (r *rig) ack(n NodeID, i Index) func(o *Out) { return r.msg(n, Msg{Type: MsgAppResp, Index: i}) }

// synced is the acknowledgement of the own disk.
func (r *rig) synced(i Index) func(o *Out) {
	mark := LogMark{Term: r.c.hs.Term, Index: i}
	return func(o *Out) { r.c.Appended(r.now, mark, o) }
}

// newSteadyRig makes node 1 the leader of a group in which everything is
// acknowledged, committed, applied and known.
func newSteadyRig(t *testing.T, roles ...Role) *rig {
	t.Helper()
	if len(roles) == 0 {
		roles = []Role{Voter, Voter, Voter}
	}
	r := newRig(t, stateOf(testDesc(roles...), HardState{}, nil))
	r.lead()
	for n := range NodeID(len(roles)) {
		if n > 0 {
			r.step(Msg{Type: MsgAppResp, From: n + 1, Term: 1, Index: r.c.log.last, Epoch: 1<<32 | 1})
		}
	}
	r.now = r.now.Add(50 * time.Millisecond) // the commit record is due
	r.do(true, func(o *Out) { r.c.Tick(r.now, o) })
	r.take()
	if st := r.c.Status(); !st.Ready || st.Commit != st.Last || r.c.Stirred() {
		t.Fatalf("not steady: %+v", st)
	}
	return r
}

// propose appends an entry whose write stays under way, and returns its index.
func (r *rig) propose(size int) Index {
	r.t.Helper()
	r.do(false, func(o *Out) {
		if _, err := r.c.Propose(r.now, EntryHeader{}, []Command{{Body: make([]byte, size)}}, o); err != nil {
			r.t.Fatal(err)
		}
	})
	return r.c.log.last
}

func first(errs ...error) error {
	for _, err := range errs {
		if err != nil {
			return err
		}
	}
	return nil
}

// Of the three acknowledgements of a write that a leader gets one commits it,
// whichever comes second.
func stirAcks(t *testing.T) error {
	for _, order := range [][3]int{{1, 2, 3}, {1, 3, 2}, {2, 1, 3}, {2, 3, 1}, {3, 1, 2}, {3, 2, 1}} {
		r := newSteadyRig(t)
		for range 3 {
			i := r.propose(10)
			for k, n := range order {
				f := r.synced(i)
				if n > 1 {
					f = r.ack(NodeID(n), i)
				}
				if err := r.stirs(fmt.Sprintf("%v: of node %d", order, n), k == 1, f); err != nil {
					return err
				}
			}
			if st := r.c.Status(); st.Commit != i || st.Applied != i {
				return fmt.Errorf("%v: %+v", order, st)
			}
			if err := r.stirs("once more", false, r.ack(2, i)); err != nil {
				return err
			}
		}
	}
	return nil
}

func stirQuorum(t *testing.T) error {
	r := newSteadyRig(t, Voter, Voter, Voter, Voter, Voter, Learner)
	i := r.propose(10)
	return first(
		r.stirs("of a learner", false, r.ack(6, i)),
		r.stirs("the first of five", false, r.ack(2, i)),
		r.stirs("the second", false, r.ack(3, i)),
		r.stirs("the third", true, r.ack(4, i)),
		r.stirs("the fourth", false, r.ack(5, i)),
		r.stirs("the own", false, r.synced(i)),
	)
}

func stirOwnDisk(t *testing.T) error {
	r := newSteadyRig(t)
	i := r.propose(10)
	j := r.propose(10)
	return first(
		r.stirs("of another, for both", false, r.ack(2, j)),
		r.stirs("the own, for the first", true, r.synced(i)),
		r.stirs("the own, for the first again", false, r.synced(i)),
		r.stirs("the own, for the second", true, r.synced(j)),
	)
}

func stirSole(t *testing.T) error {
	r := newSteadyRig(t, Voter, Learner)
	i := r.propose(10)
	return first(
		r.stirs("of the learner", false, r.ack(2, i)),
		r.stirs("of the own disk", true, r.synced(i)),
	)
}

func stirFollower(t *testing.T) error {
	r := newRig(t, stateOf(three, HardState{}, nil))
	r.do(false, func(*Out) {})
	es := terms(1, 1, 1)
	if err := r.stirs("an append", true, r.msg(2, Msg{Type: MsgApp, Term: 1, Entries: es[:2], Commit: 1})); err != nil {
		return err
	}
	r.c.hs.Term = 1
	return first(
		r.stirs("its sync", false, r.synced(2)),
		r.stirs("a commit record", true, r.msg(2, Msg{Type: MsgCommit, Commit: 2})),
		r.stirs("a probe", true, r.msg(2, Msg{Type: MsgApp, Index: 2, LogTerm: 1, Flags: FlagProbe, Commit: 2})),
		r.stirs("the sync of a hard state", false, func(o *Out) { r.c.Appended(r.now, LogMark{Term: 1}, o) }),
	)
}

// The candidate's own vote may make it the leader.
func stirCandidate(t *testing.T) error {
	r := newRig(t, stateOf(three, HardState{}, nil))
	r.do(true, func(o *Out) { r.c.Campaign(r.now, o) })
	r.do(false, r.msg(2, Msg{Type: MsgPreVoteResp, Term: 1}))
	if r.c.role != RoleCandidate {
		return fmt.Errorf("no candidate: %+v", r.c.Status())
	}
	if err := r.stirs("a vote", true, r.msg(2, Msg{Type: MsgVoteResp})); err != nil {
		return err
	}
	if err := r.stirs("the own vote", true, func(o *Out) { r.c.Appended(r.now, LogMark{Term: 1}, o) }); err != nil {
		return err
	}
	if r.c.role != RoleLeader {
		return fmt.Errorf("no leader: %+v", r.c.Status())
	}
	return nil
}

// Entries of earlier terms are not committed by being held by a quorum.
func stirNotReady(t *testing.T) error {
	r := newRig(t, stateOf(three, HardState{}, terms(1, 1)))
	r.lead()
	if err := r.stirs("an old entry", true, r.ack(2, 2)); err != nil { // a probe finds its place
		return err
	}
	if c := r.c.log.commit; c != 0 {
		return fmt.Errorf("committed %d", c)
	}
	return r.stirs("the first of the term", true, r.ack(2, 3))
}

func stirWindow(t *testing.T) error {
	r := newSteadyRig(t)
	r.c.tun.InflightMsgs = 2
	var last Index
	for range 3 {
		last = r.propose(10)
	}
	if p := r.c.peer(2); p.next != last {
		return fmt.Errorf("next is %d, want %d", p.next, last)
	}
	r.take()
	// Nothing can be committed by it: the own disk and node 3 are slow.
	if err := r.stirs("an answer", true, r.ack(2, last-2)); err != nil {
		return err
	}
	if find(r.take(), MsgApp, 2) == nil {
		return errors.New("the window is open, and the next append was not sent")
	}
	return r.stirs("an answer with nothing left to send", false, r.ack(2, last-1))
}

func stirOthers(t *testing.T) error {
	r := newSteadyRig(t)
	i := r.propose(10)
	return first(
		r.stirs("a refusal", true, r.msg(2, Msg{Type: MsgAppResp, Flags: FlagReject, Index: 1, LogTerm: 1, Commit: i - 1})),
		r.stirs("the own sync", false, r.synced(i)),
		r.stirs("an answer from beyond the log", true, r.ack(3, i+5)),
		r.stirs("an answer of another term", true, r.msg(3, Msg{Type: MsgAppResp, Term: 2, Index: i})),
	)
}

func stirProbe(t *testing.T) error {
	r := newSteadyRig(t)
	r.do(false, func(o *Out) { r.c.PeerReset(r.now, 2, o) })
	return first(
		r.stirs("the answer to a probe", true, r.ack(2, r.c.log.last)),
		r.stirs("the answer behind it", false, r.ack(2, r.c.log.last)),
	)
}

// What a lease rests on may have changed.
func stirPromise(t *testing.T) error {
	r := newSteadyRig(t)
	i := r.propose(10)
	return first(
		r.stirs("the same promise", false, r.msg(2, Msg{Type: MsgAppResp, Index: i, Epoch: 1<<32 | 1})),
		r.stirs("a new one", true, r.msg(3, Msg{Type: MsgAppResp, Index: i - 1, Epoch: 1<<32 | 2})),
		r.stirs("a new one by itself", true, r.msg(2, Msg{Type: MsgFortifyResp, Epoch: 1<<32 | 2})),
	)
}

func stirRead(t *testing.T) error {
	r := newSteadyRig(t)
	if err := r.stirs("a confirmation that nobody waits for", false, r.msg(2, Msg{Type: MsgCommitResp, Round: 1})); err != nil {
		return err
	}
	r = newSteadyRig(t)
	i := r.propose(10)
	r.do(false, func(o *Out) { r.c.ReadIndex(r.now, 1, o) })
	return first(
		r.stirs("an acknowledgement", true, r.ack(2, i)),
		r.stirs("a confirmation", true, r.msg(3, Msg{Type: MsgCommitResp, Round: r.c.readRound})),
		r.stirs("a late one", false, r.msg(2, Msg{Type: MsgCommitResp, Round: r.c.readRound})),
	)
}

func stirTransfer(t *testing.T) error {
	r := newSteadyRig(t)
	i := r.propose(10)
	r.do(false, func(o *Out) {
		if err := r.c.Transfer(r.now, 2, o); err != nil {
			t.Fatal(err)
		}
	})
	r.take()
	if err := r.stirs("the target has it all", true, r.ack(2, i)); err != nil {
		return err
	}
	if find(r.take(), MsgTimeoutNow, 2) == nil {
		return errors.New("the target was not told to campaign")
	}
	return nil
}

func stirJoint(t *testing.T) error {
	r := newRig(t, stateOf(testDesc(Voter, VoterOutgoing, VoterIncoming), HardState{}, nil))
	r.lead()
	for n := NodeID(2); n <= 3; n++ {
		r.step(Msg{Type: MsgAppResp, From: n, Term: 1, Index: 1})
	}
	if r.c.log.last != 2 || r.c.log.commit != 1 { // the second is the change that leaves
		return fmt.Errorf("%+v", r.c.Status())
	}
	return r.stirs("an acknowledgement of one half", true, r.ack(2, 2))
}

// An acknowledgement that comes after the quiet time has to see to the cutting
// of the logs; one that comes earlier leaves it to the timer.
func stirCut(t *testing.T) error {
	r := newSteadyRig(t)
	i := r.propose(10)
	if err := first(
		r.stirs("the own disk", false, r.synced(i)),
		r.stirs("the first", true, r.ack(2, i)),
	); err != nil {
		return err
	}
	r.live.down[3] = true // nobody sends again to a node that is down
	for range 4 {
		r.now = r.now.Add(3 * time.Second)
		r.do(false, func(o *Out) { r.c.Tick(r.now, o) })
	}
	if d := r.c.truncAt; d != Never {
		return fmt.Errorf("a log that node 3 holds up is to be cut at %d", d)
	}
	if err := r.stirs("the last", true, r.ack(3, i)); err != nil {
		return err
	}
	if r.c.compactTo != i || r.c.truncAt == Never {
		return fmt.Errorf("logs may be cut through %d, want %d; timer %d", r.c.compactTo, i, r.c.truncAt)
	}
	return nil
}

// Silence is measured from the last acknowledgement; if that was long ago, the
// wait may be longer than the one that begins now.
func stirRetry(t *testing.T) error {
	r := newSteadyRig(t)
	i := r.propose(10)
	j := r.propose(10)
	r.c.peer(2).retryAt = r.now.Add(time.Minute)
	return first(
		r.stirs("after a long wait", true, r.ack(2, i)),
		r.stirs("after a short one", false, r.ack(2, j)),
	)
}

// A peer that the log does not reach back to any more gets a snapshot at once.
func stirSnapshot(t *testing.T) error {
	r := newSteadyRig(t)
	r.c.tun.InflightMsgs = 1
	i := r.propose(10)
	r.propose(10)
	if err := r.stirs("the first of two", true, first2(r.ack(2, i), r.synced(i))); err != nil {
		return err
	}
	r.o.Reset()
	r.c.Truncated(i, 1)
	if r.c.Stirred() {
		return errors.New("stirred by a cut that concerns nobody")
	}
	j := r.propose(10)
	if err := r.stirs("the next", true, first2(r.ack(2, j), r.synced(j))); err != nil {
		return err
	}
	r.o.Reset()
	r.c.Truncated(j, 1)
	if !r.c.Stirred() {
		return errors.New("not stirred, and node 3 needs a snapshot")
	}
	return nil
}

func first2(f, g func(o *Out)) func(o *Out) {
	return func(o *Out) {
		f(o)
		g(o)
	}
}

func stirMemory(t *testing.T) error {
	r := newSteadyRig(t)
	r.c.tun.TailBytes = 100
	i := r.propose(10)
	if err := r.stirs("little", false, r.synced(i)); err != nil {
		return err
	}
	i = r.propose(1000)
	r.do(false, r.ack(2, i))
	r.do(false, r.ack(3, i))
	if err := r.stirs("much", true, r.synced(i)); err != nil {
		return err
	}
	if r.c.log.bytes > 100 {
		return fmt.Errorf("%d bytes are kept in memory", r.c.log.bytes)
	}
	return nil
}

// TestIdleGroupComesToRest writes to a group whose rounds are left out wherever
// the cores are not stirred, with answers in a random order, and then leaves it
// alone: all logs must be cut to their ends, and no timer may go on and on.
func TestIdleGroupComesToRest(t *testing.T) {
	for seed := range uint64(300) {
		if err := idleGroup(seed); err != nil {
			t.Fatalf("seed %d: %v", seed, err)
		}
	}
}

func idleGroup(seed uint64) error {
	g := newQuietGroup(seed)
	if err := g.elect(); err != nil {
		return err
	}
	for range 5 + g.rng.IntN(20) {
		g.propose()
		for range g.rng.IntN(30) {
			if err := g.deliver(); err != nil {
				return err
			}
		}
		g.pass(time.Duration(g.rng.IntN(int(400 * time.Millisecond))))
		if err := g.fire(); err != nil {
			return err
		}
	}
	fired := 0
	for range 200 {
		for len(g.queue) > 0 {
			if err := g.deliver(); err != nil {
				return err
			}
		}
		next := Never
		for i := range g.c {
			next = min(next, g.due[i])
		}
		if next == Never {
			break
		}
		g.now = max(g.now, next)
		if err := g.fire(); err != nil {
			return err
		}
		fired++
	}
	for i, c := range g.c {
		st := c.Status()
		if st.Trunc != st.Last || st.Applied != st.Last || st.Last < 6 {
			return fmt.Errorf("node %d is left with a log through %d, applied through %d, cut through %d", i+1, st.Last, st.Applied, st.Trunc)
		}
		if g.due[i] != Never || c.Stirred() {
			return fmt.Errorf("node %d: a timer goes on after it fired with %d others: %d, now %d", i+1, fired, g.due[i], g.now)
		}
	}
	if g.quiet == 0 {
		return errors.New("no round was left out")
	}
	return nil
}

// quietGroup is three cores whose owners flush only where they have to, keep the
// deadline of their last flush, and sync and answer in any order.
type quietGroup struct {
	rng   *rand.Rand
	now   Time
	c     [3]*Core
	o     [3]Out
	due   [3]Time
	queue []func() error
	quiet int
}

func newQuietGroup(seed uint64) *quietGroup {
	g := &quietGroup{rng: rand.New(rand.NewPCG(seed, 1)), now: 1e9}
	for i := range g.c {
		c, err := NewCore(Config{Node: NodeID(i + 1), Liveness: &fakeLive{down: map[NodeID]bool{}}, Rand: seed}, stateOf(three, HardState{}, nil), g.now)
		if err != nil {
			panic(err)
		}
		g.c[i], g.due[i] = c, g.now
	}
	return g
}

func (g *quietGroup) pass(d time.Duration) { g.now = g.now.Add(d) }

func (g *quietGroup) elect() error {
	g.c[0].Campaign(g.now, &g.o[0])
	if err := g.end(0); err != nil {
		return err
	}
	for len(g.queue) > 0 {
		if err := g.deliver(); err != nil {
			return err
		}
	}
	if !g.c[0].Status().Ready {
		return fmt.Errorf("no leader: %+v", g.c[0].Status())
	}
	return nil
}

func (g *quietGroup) propose() {
	if _, err := g.c[0].Propose(g.now, EntryHeader{}, []Command{{Body: []byte("x")}}, &g.o[0]); err == nil {
		err = g.end(0)
		if err != nil {
			panic(err)
		}
	}
}

// deliver lets one of the things that are under way arrive.
func (g *quietGroup) deliver() error {
	if len(g.queue) == 0 {
		return nil
	}
	k := g.rng.IntN(min(len(g.queue), 4))
	f := g.queue[k]
	g.queue = append(g.queue[:k:k], g.queue[k+1:]...)
	return f()
}

// fire lets the timers come that are due.
func (g *quietGroup) fire() error {
	for i := range g.c {
		if g.now >= g.due[i] {
			g.c[i].Tick(g.now, &g.o[i])
			if err := g.end(i); err != nil {
				return err
			}
		}
	}
	return nil
}

// end ends a round of core i.
func (g *quietGroup) end(i int) error {
	c, o := g.c[i], &g.o[i]
	if !c.Stirred() {
		g.quiet++
		if n := len(o.Msgs) + len(o.Held) + len(o.Reads) + len(o.HardStates); n > 0 {
			return fmt.Errorf("node %d is not stirred, and gives out %+v", i+1, *o)
		}
		if d := c.Deadline(); d < g.due[i] && g.due[i] > g.now {
			return fmt.Errorf("node %d is not stirred, and its deadline comes from %d to %d", i+1, g.due[i], d)
		}
		return c.CheckQuiet(g.now)
	}
	c.Flush(g.now, o)
	st, b := c.Status(), c.Brief()
	if want := (Brief{st.Term, st.LeadNode, st.Role == RoleLeader, st.Ready, st.QuorumLost, st.Last, st.Commit, st.Anomalies}); b != want {
		return fmt.Errorf("node %d: in brief %+v, want %+v", i+1, b, want)
	}
	for k := 0; k < len(o.Applies); k++ {
		for _, e := range o.Applies[k].Entries {
			c.Applied(e.Index, e.Term, len(e.Value), o)
		}
	}
	for _, t := range o.Truncates {
		if t.Index <= c.Status().Applied {
			c.Truncated(t.Index, t.Term)
		}
	}
	send := func(msgs []Msg) {
		for _, m := range msgs {
			to := int(m.To - 1)
			g.queue = append(g.queue, func() error {
				g.c[to].Step(g.now, &m, &g.o[to])
				return g.end(to)
			})
		}
	}
	send(append([]Msg(nil), o.Msgs...))
	held := append([]Msg(nil), o.Held...)
	var marks []LogMark
	for _, h := range o.HardStates {
		marks = append(marks, LogMark{Term: h.State.Term})
	}
	for _, a := range o.Appends {
		marks = append(marks, a.Mark)
	}
	if len(marks)+len(held) > 0 {
		g.queue = append(g.queue, func() error {
			send(held)
			for _, m := range marks {
				c.Appended(g.now, m, o)
			}
			return g.end(i)
		})
	}
	o.Reset()
	g.due[i] = c.Deadline()
	return nil
}
