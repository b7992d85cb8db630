package multiraft

import (
	"errors"
	"fmt"
	"testing"
	"time"

	"github.com/flotillakv/flotilla/multiraft/raft"
)

// leaseCases are the rules of reads under leases, one by one: each plays a
// scenario and returns what contradicts the rule.
var leaseCases = []struct {
	name string
	run  func(t *testing.T) error
}{
	{"served without the loop", leaseServed},
	{"in the round", leaseInRound},
	{"expired", leaseExpired},
	{"clock of before", leaseStaleClock},
	{"suspended", leaseSuspended},
	{"timers of a wall clock", leaseTimers},
	{"published before told", leasePublished},
	{"hidden before messages", leaseHidden},
	{"behind the commit index", leaseBehind},
	{"does not stand", leaseStands},
	{"no clock", leaseNoClock},
	{"off", leaseIsOff},
	{"at a follower", readAtFollower},
	{"for a follower", readForFollower},
}

func TestLeaseReads(t *testing.T) {
	for _, c := range leaseCases {
		t.Run(c.name, func(t *testing.T) {
			if err := c.run(t); err != nil {
				t.Fatal(err)
			}
		})
	}
}

// newLeaseRig is a rig whose node leads with the promise of node 2 and has
// applied everything.
func newLeaseRig(t *testing.T) *rig {
	r := newRigWith(t, true)
	r.lead(2)
	r.promise(2)
	return r
}

// promise lets a follower acknowledge everything, and fortify the leader.
func (r *rig) promise(from raft.NodeID) {
	r.t.Helper()
	s := r.rep().core.Status()
	r.in(raft.Msg{Type: raft.MsgAppResp, From: from, Term: s.Term, Index: s.Last, Epoch: 1 << 32})
}

func (r *rig) leaseRead() *outcome {
	o := &outcome{}
	r.h.Read(7, func(_ raft.Index, err error) { o.n++; o.err = err })
	return o
}

func (r *rig) pings() (n int) {
	for i := range r.sent {
		if r.sent[i].Round != 0 {
			n++
		}
	}
	return n
}

func leaseServed(t *testing.T) error {
	r := newRigWith(t, true)
	if r.h.LeaseRead(7) || r.h.LeaseRead(8) {
		return errors.New("a lease without a leader")
	}
	r.lead(2)
	if r.h.LeaseRead(7) {
		return errors.New("a lease before anything is committed")
	}
	r.promise(2)
	if !r.h.LeaseRead(7) {
		return errors.New("no lease")
	}
	g := r.h.Generation(7)
	if g == 0 || r.h.Generation(8) != 0 {
		return errors.New("no generation, or one of a shard that is not here")
	}
	r.h.Halt()
	if r.h.LeaseRead(7) {
		return errors.New("a node that was stopped serves")
	}
	return nil
}

// A read that comes to the loop all the same is answered in its round.
func leaseInRound(t *testing.T) error {
	r := newLeaseRig(t)
	r.sent = nil
	o := r.leaseRead()
	r.l.step(r.now)
	if o.n != 1 || o.err != nil || r.pings() != 0 {
		return fmt.Errorf("answered %d times, err %v, asked %d others", o.n, o.err, r.pings())
	}
	r.until = r.now
	o = r.leaseRead()
	r.turn()
	if o.n != 0 || r.pings() == 0 {
		return errors.New("no lease, and no quorum was asked")
	}
	s := r.rep().core.Status()
	r.in(raft.Msg{Type: raft.MsgCommitResp, From: 2, Term: s.Term, Round: 1 << 40})
	if o.n != 1 || o.err != nil {
		return fmt.Errorf("a quorum answered, the read has not: %d, %v", o.n, o.err)
	}
	return nil
}

func leaseExpired(t *testing.T) error {
	r := newLeaseRig(t)
	r.until = r.now + 1
	if !r.h.LeaseRead(7) {
		return errors.New("no lease in its last nanosecond")
	}
	r.now++
	if r.h.LeaseRead(7) {
		return errors.New("a lease at its end")
	}
	return nil
}

// A round that began before the process stood still must not judge by its own
// beginning what came in afterwards.
func leaseStaleClock(t *testing.T) error {
	r := newLeaseRig(t)
	r.until = r.now.Add(time.Second)
	began := r.now
	r.now = r.now.Add(time.Minute) // in which others lead and write
	o := r.leaseRead()
	r.l.step(began)
	if o.n != 0 && o.err == nil {
		return errors.New("served by a clock from before the read")
	}
	return nil
}

func leaseSuspended(t *testing.T) error {
	r := newLeaseRig(t)
	r.unsound = true
	o := r.leaseRead()
	r.l.step(r.now)
	if o.n != 0 || r.h.LeaseRead(7) {
		return errors.New("served although the machine may have been suspended")
	}
	return nil
}

// A wall clock that jumps must not move the timers of the cores.
func leaseTimers(t *testing.T) error {
	r := newLeaseRig(t)
	r.unsound, r.ahead = true, time.Hour
	r.in(raft.Msg{Type: raft.MsgStepDown, From: 2, Term: 9}) // a follower, whose election is armed
	if d := r.rep().core.Deadline(); d > r.now.Add(time.Minute) {
		return fmt.Errorf("the next timer runs out in %v", d.Sub(r.now))
	}
	return nil
}

// Who was told of a write finds it covered by what is published (P2).
func leasePublished(t *testing.T) (err error) {
	r := newLeaseRig(t)
	told := false
	r.h.Propose(7, raft.Command{Op: 1, Body: []byte("x")}, func(_ []byte, index raft.Index, _ uint32, e error) {
		told = true
		if v, _ := r.h.View(7); e != nil || v.Commit < index || v.Applied < index {
			err = fmt.Errorf("told of index %d (%v) while committed %d and applied %d are published", index, e, v.Commit, v.Applied)
		}
	})
	r.turn()
	r.promise(2)
	if err == nil && !told {
		return errors.New("never told")
	}
	return err
}

// Nobody may hear that a leader stops before its lease is out of sight (P1).
func leaseHidden(t *testing.T) error {
	for name, end := range map[string]func(r *rig){
		"another leader": func(r *rig) {
			r.in(raft.Msg{Type: raft.MsgApp, From: 3, Term: 9, Index: 1, LogTerm: 1})
		},
		"a transfer": func(r *rig) {
			r.promise(3)
			r.on(func(now raft.Time) { _ = r.rep().core.Transfer(now, 3, &r.l.out) })
		},
	} {
		r := newLeaseRig(t)
		heard, served := 0, false
		r.onSend = func(m *raft.Msg) {
			if m.Type == raft.MsgStepDown || m.Type == raft.MsgTimeoutNow {
				heard++
				served = served || r.h.LeaseRead(7)
			}
		}
		end(r)
		if heard == 0 {
			return fmt.Errorf("%s: nobody heard of it", name)
		}
		if served || r.h.LeaseRead(7) {
			return fmt.Errorf("%s: the lease is in sight", name)
		}
	}
	return nil
}

// What is committed and not applied is not served from the store.
func leaseBehind(t *testing.T) error {
	r := newLeaseRig(t)
	r.rep().pos.commit.Add(1)
	if r.h.LeaseRead(7) {
		return errors.New("served without what is committed")
	}
	return nil
}

// What was read counts while the replica and its range are the same, whatever
// else happens to it, and not afterwards (P3).
func leaseStands(t *testing.T) error {
	r := newLeaseRig(t)
	g, ok := r.h.Grant(7)
	if !ok || !g.Stands() || g.Desc().Version != 1 {
		return errors.New("no grant, or not this shard's")
	}
	r.propose("x")
	r.turn()
	r.in(raft.Msg{Type: raft.MsgApp, From: 3, Term: 9, Index: 1, LogTerm: 1}) // another leader
	if r.h.LeaseRead(7) || !g.Stands() {
		return errors.New("a lease that ended makes a read void that began under it")
	}
	r.on(func(raft.Time) {
		d := *r.rep().desc
		d.Version++
		r.rep().desc = &d
	})
	if g.Stands() {
		return errors.New("stands although the range is another")
	}
	r = newLeaseRig(t)
	g, _ = r.h.Grant(7)
	r.h.forget(r.rep())
	if g.Stands() {
		return errors.New("stands although the replica is gone")
	}
	if err := r.h.AddGroups([]raft.State{{Desc: rigDesc()}}); err != nil {
		return err
	}
	if g.Stands() {
		return errors.New("stands although the replica is another")
	}
	return nil
}

// A read that shall not rest on a lease asks a quorum.
func leaseNoClock(t *testing.T) error {
	r := newLeaseRig(t)
	r.sent = nil
	o := r.read()
	r.turn()
	if o.n != 0 || r.pings() == 0 {
		return fmt.Errorf("answered %d times, %d asked", o.n, r.pings())
	}
	return nil
}

func leaseIsOff(t *testing.T) error {
	r := newRig(t)
	r.lead(2)
	r.promise(2)
	o := r.leaseRead()
	r.turn()
	if o.n != 0 || r.h.LeaseRead(7) {
		return errors.New("a lease although they are off")
	}
	return nil
}

// followerRead begins one at this node.
func (r *rig) followerRead() *outcome {
	o := &outcome{}
	r.h.FollowerRead(7, func(_ raft.Index, err error) { o.n++; o.err = err })
	return o
}

// questions returns what the leader on node 2 is asked.
func (r *rig) questions() (q []raft.Msg) {
	for _, m := range r.sent {
		if m.Type == raft.MsgReadReq && m.To == 2 {
			q = append(q, m)
		}
	}
	r.sent = nil
	return q
}

// A follower asks once for all reads of a round, and waits until it has applied
// what the leader says.
func readAtFollower(t *testing.T) error {
	r := newRigWith(t, true)
	o := r.followerRead()
	if o.n != 1 || o.err == nil {
		return fmt.Errorf("no leader, and the read is answered %v", o.err)
	}
	r.follow(0, rigEntry(1, raft.EntryEmpty, ""))
	a, b := r.followerRead(), r.followerRead()
	r.turn()
	q := r.questions()
	if len(q) != 1 {
		return fmt.Errorf("%d questions for two reads of a round", len(q))
	}
	r.in(raft.Msg{Type: raft.MsgReadResp, From: 2, Term: 1, Round: q[0].Round, Index: 2, Commit: 2})
	if a.n+b.n != 0 {
		return errors.New("served before the index is applied")
	}
	r.follow(1, rigEntry(2, raft.EntryNormal, "x"))
	if a.n != 1 || b.n != 1 || a.err != nil || b.err != nil {
		return fmt.Errorf("answers %+v %+v", a, b)
	}
	c := r.followerRead()
	r.turn()
	r.in(raft.Msg{Type: raft.MsgReadResp, From: 2, Term: 1, Round: r.questions()[0].Round, Flags: raft.FlagReject})
	var elsewhere *NotLeaderError
	if c.n != 1 || !errors.As(c.err, &elsewhere) {
		return fmt.Errorf("refused by the leader: %+v", c)
	}
	return nil
}

// The leader answers at once under its lease, else when a quorum has confirmed.
func readForFollower(t *testing.T) error {
	r := newLeaseRig(t)
	s := r.rep().core.Status()
	answers := func() (n int, index raft.Index) {
		for _, m := range r.sent {
			if m.Type == raft.MsgReadResp && m.To == 3 && !m.Reject() {
				n, index = n+1, m.Index
			}
		}
		r.sent = nil
		return n, index
	}
	r.sent = nil
	r.in(raft.Msg{Type: raft.MsgReadReq, From: 3, Term: s.Term, Round: 5})
	if n, index := answers(); n != 1 || index != s.Commit {
		return fmt.Errorf("%d answers with %d under the lease", n, index)
	}
	r.until = r.now
	r.in(raft.Msg{Type: raft.MsgReadReq, From: 3, Term: s.Term, Round: 6})
	if n, _ := answers(); n != 0 {
		return errors.New("answered without a lease")
	}
	r.in(raft.Msg{Type: raft.MsgCommitResp, From: 2, Term: s.Term, Round: 1 << 40})
	if n, index := answers(); n != 1 || index != s.Commit {
		return fmt.Errorf("%d answers with %d by a quorum", n, index)
	}
	return nil
}
