package multiraft

import (
	"slices"
	"testing"

	"github.com/flotillakv/flotilla/multiraft/raft"
)

// post puts a message into the inbox and reports whether the loop was woken.
func (r *rig) post(m raft.Msg) (woken bool) {
	select {
	case <-r.l.in.wake:
	default:
	}
	m.Shard, m.To, m.ToReplica, m.FromReplica = 7, 1, 1, raft.ReplicaID(m.From)
	r.l.in.putMsgs([]raft.Msg{m})
	return len(r.l.in.wake) == 1
}

// busy is a leader whose syncs are all under way: entries with "a" and "b", and "x"
// in between, wait for them, "c" waits for a round.
func busy(t *testing.T) (r *rig, a, b, c *outcome) {
	r = newLeaseRig(t)
	r.ack(2)
	r.ack(3)
	a = r.proposeOnly("a")
	r.l.step(r.now)
	for range maxInFlightSyncs - 2 {
		r.proposeOnly("x")
		r.l.step(r.now)
	}
	b = r.proposeOnly("b")
	r.l.step(r.now)
	c = r.proposeOnly("c")
	r.l.step(r.now)
	if r.l.inFlight != maxInFlightSyncs || len(r.l.in.in.props) != 1 {
		t.Fatalf("%d syncs under way, %d proposals wait", r.l.inFlight, len(r.l.in.in.props))
	}
	return r, a, b, c
}

// What followers acknowledge while the own disk is at work is applied and told;
// what needs the disk waits for it.
func TestRoundWhileSyncing(t *testing.T) {
	r, a, b, c := busy(t)
	s := r.rep().core.Status()
	acked := raft.Msg{Type: raft.MsgAppResp, From: 2, Term: s.Term, Index: s.Last}
	if !r.post(acked) {
		t.Error("an answer does not wake the loop")
	}
	acked.From = 3
	r.post(acked)
	r.l.step(r.now)
	if a.n != 1 || b.n != 1 || a.err != nil || b.err != nil || len(r.applied) != maxInFlightSyncs || r.applied[0] != "a" || r.applied[maxInFlightSyncs-1] != "b" {
		t.Errorf("a %+v, b %+v, applied %q", a, b, r.applied)
	}
	if v, _ := r.h.View(7); v.Applied != s.Last {
		t.Errorf("applied %d is published, not %d", v.Applied, s.Last)
	}
	if c.n != 0 || r.rep().core.Status().Last != s.Last || r.l.inFlight != maxInFlightSyncs {
		t.Errorf("c %+v, %+v, %d in flight", c, r.rep().core.Status(), r.l.inFlight)
	}
	read := r.leaseRead()
	if len(r.l.in.wake) != 1 {
		t.Error("a read does not wake the loop")
	}
	r.l.step(r.now)
	if read.n != 1 || read.err != nil {
		t.Errorf("a read under the lease: %+v", read)
	}
	if r.l.step(r.now) {
		t.Error("the loop spins")
	}
	r.turn()
	r.ack(2)
	if c.n != 1 || c.err != nil {
		t.Errorf("c in the end: %+v", c)
	}
}

// A follower's entries wait for the disk, in their order, and messages of which
// one may need it do not overtake them.
func TestEntriesWaitForTheDisk(t *testing.T) {
	r := newRig(t)
	r.follow(0, rigEntry(1, raft.EntryEmpty, ""))
	app := func(i raft.Index, body string) raft.Msg {
		return raft.Msg{Type: raft.MsgApp, From: 2, Term: 1, Index: i - 1, LogTerm: 1, Entries: []raft.Entry{rigEntry(i, raft.EntryNormal, body)}}
	}
	for i := range raft.Index(maxInFlightSyncs) {
		r.post(app(2+i, "x"))
		r.l.step(r.now)
	}
	last := raft.Index(1 + maxInFlightSyncs)
	r.post(app(last+1, "y"))
	r.post(raft.Msg{Type: raft.MsgCommit, From: 2, Term: 1, Commit: last + 1})
	for range 3 {
		r.l.step(r.now)
	}
	if s := r.rep().core.Status(); s.Last != last || r.l.inFlight != maxInFlightSyncs || len(r.applied) != 0 {
		t.Fatalf("%+v, %d in flight, applied %q", s, r.l.inFlight, r.applied)
	}
	r.turn()
	if s := r.rep().core.Status(); s.Commit != last+1 || len(r.applied) != maxInFlightSyncs+1 {
		t.Errorf("in the end: %+v, applied %q", s, r.applied)
	}
}

// An answer that ends the leader's term is recorded, whatever the disk has to do.
func TestStepDownWhileSyncing(t *testing.T) {
	r, a, _, c := busy(t)
	s := r.rep().core.Status()
	r.post(raft.Msg{Type: raft.MsgAppResp, Flags: raft.FlagReject, From: 2, Term: s.Term + 5})
	r.l.step(r.now)
	if r.h.LeaseRead(7) {
		t.Error("the lease is in sight")
	}
	if n := r.l.inFlight; n != maxInFlightSyncs+1 {
		t.Errorf("%d syncs under way: the new term is not among them", n)
	}
	r.turn()
	if st, ok, err := r.e.Load(7); err != nil || !ok || st.Hard.Term != s.Term+5 {
		t.Errorf("the store holds %+v, %v", st.Hard, err)
	}
	if a.n != 0 || c.n != 1 || c.err == nil {
		t.Errorf("a %+v, c %+v", a, c)
	}
}

// What is taken out early is what needs no sync; the rest keeps its order, and
// nothing is looked at twice.
func TestSwapLight(t *testing.T) {
	var b inbox
	b.wake = make(chan struct{}, 1)
	put := func(types ...raft.MsgType) {
		for _, typ := range types {
			b.putMsgs([]raft.Msg{{Type: typ, Round: uint64(len(b.in.msgs))}})
		}
	}
	types := func(msgs []raft.Msg) (out []raft.MsgType) {
		for i := range msgs {
			out = append(out, msgs[i].Type)
		}
		return out
	}
	want := func(got []raft.Msg, types_ ...raft.MsgType) {
		t.Helper()
		if !slices.Equal(types(got), types_) {
			t.Errorf("%v, want %v", types(got), types_)
		}
	}
	put(raft.MsgApp, raft.MsgAppResp, raft.MsgCommit, raft.MsgReadReq, raft.MsgVote)
	b.putAck(ack{})
	if !b.waitingLight() {
		t.Error("nothing to do without a sync")
	}
	it := b.swapLight(items{})
	want(it.msgs, raft.MsgAppResp, raft.MsgReadReq)
	want(b.in.msgs, raft.MsgApp, raft.MsgCommit, raft.MsgVote)
	if len(it.acks) != 1 || b.waitingLight() || b.looked != 3 {
		t.Errorf("%d acks, looked at %d", len(it.acks), b.looked)
	}
	<-b.wake
	put(raft.MsgApp)
	if len(b.wake) != 0 {
		t.Error("woken by what has to wait")
	}
	put(raft.MsgCommitResp, raft.MsgCommitResp, raft.MsgTimeoutNow)
	if len(b.wake) != 1 {
		t.Error("not woken")
	}
	it.reset()
	it = b.swapLight(it)
	want(it.msgs, raft.MsgCommitResp, raft.MsgCommitResp)
	want(b.in.msgs, raft.MsgApp, raft.MsgCommit, raft.MsgVote, raft.MsgApp, raft.MsgTimeoutNow)
	put(raft.MsgReadResp)
	it.reset()
	want(b.swap(it, false).msgs, raft.MsgApp, raft.MsgCommit, raft.MsgVote, raft.MsgApp, raft.MsgTimeoutNow, raft.MsgReadResp)
	if b.waitingLight() || b.looked != 0 {
		t.Error("the inbox is empty and remembers something")
	}
	put(raft.MsgAppResp)
	b.swap(items{}, true)
	if !b.waitingLight() {
		t.Error("messages that stay are forgotten")
	}
}
