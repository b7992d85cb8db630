package multiraft

import (
	"errors"
	"fmt"
	"testing"
	"time"

	"github.com/flotillakv/flotilla/engine"
	"github.com/flotillakv/flotilla/multiraft/raft"
)

// asked lets the leader ask, and returns its question.
func (r *rig) asked() raft.Msg {
	r.t.Helper()
	r.sent = nil
	r.now = r.rep().cmp.at
	if r.now == raft.Never {
		r.t.Fatal("no question is planned")
	}
	r.turn()
	qs := r.took(raft.MsgDigest)
	if len(qs) != 2 || qs[0].To != 2 || qs[1].To != 3 || qs[0].Index == 0 {
		r.t.Fatalf("asked %+v", qs)
	}
	return qs[0]
}

// tell answers a question for a node.
func (r *rig) tell(q raft.Msg, from raft.NodeID, d raft.Digest) {
	r.t.Helper()
	r.in(raft.Msg{Type: raft.MsgDigestResp, From: from, Term: q.Term, Index: q.Index, Epoch: q.Epoch, Round: uint64(d)})
}

// leads is a leader with one entry behind its first, all of it applied.
func (r *rig) leads() {
	r.t.Helper()
	r.lead(2)
	r.ack(2)
	r.propose("a")
	r.ack(2)
	r.ack(3)
	if v, _ := r.h.View(7); v.Applied != 2 {
		r.t.Fatalf("applied %d", v.Applied)
	}
}

// TestDigestsAgree: the leader asks once after something was applied, names the last
// index of its log, and nobody says anything more once all have the same.
func TestDigestsAgree(t *testing.T) {
	r := newRig(t)
	r.leads()
	q := r.asked()
	mine := r.rep().as.Digest
	if q.Index != 2 || q.Round != uint64(mine) || q.Flags&raft.FlagGrant == 0 || mine == 0 {
		t.Fatalf("asked %+v, own digest %#x", q, mine)
	}
	r.sent = nil
	r.tell(q, 2, mine)
	if r.rep().cmp.agreed != 0 {
		t.Fatal("judged before all have answered")
	}
	r.tell(q, 3, mine)
	if c := &r.rep().cmp; c.agreed != 2 || c.at != raft.Never || len(r.sent) != 0 {
		t.Fatalf("agreed through %d, asks again at %d, sent %+v", c.agreed, c.at, r.sent)
	}
	for range 10 {
		r.now += raft.Time(time.Minute)
		r.turn()
	}
	if len(r.took(raft.MsgDigest)) != 0 {
		t.Fatal("an idle group is asked")
	}
	r.propose("b")
	r.ack(2)
	if q := r.asked(); q.Index != 3 {
		t.Fatalf("asked %+v", q)
	}
	// Entries that are not applied yet: the leader compares when it has got there.
	r2 := newRig(t)
	r2.leads()
	r2.propose("b") // nobody acknowledges
	q = r2.asked()
	if q.Index != 3 || q.Flags != 0 {
		t.Fatalf("asked %+v", q)
	}
	before := r2.rep().as.Digest
	r2.ack(3)
	after := r2.rep().as.Digest
	r2.tell(q, 2, after)
	r2.tell(q, 3, after)
	if before == after || r2.rep().cmp.agreed != 3 {
		t.Fatalf("agreed through %d", r2.rep().cmp.agreed)
	}
}

// TestMinorityIsQuarantined: a follower that differs is told the majority's digest
// and reported; what is old, or of somebody who was not asked, does not count.
func TestMinorityIsQuarantined(t *testing.T) {
	r := newRig(t)
	var told []DivergedError
	r.h.onDiverged = func(e DivergedError) { told = append(told, e) }
	r.leads()
	q := r.asked()
	mine := r.rep().as.Digest
	r.sent = nil
	r.tell(q, 2, mine)
	stale := q
	stale.Index--
	r.tell(stale, 3, mine)
	r.tell(q, 2, mine+1) // it has answered
	if len(told) != 0 || len(r.sent) != 0 {
		t.Fatalf("told %v, sent %+v", told, r.sent)
	}
	r.tell(q, 3, mine+1)
	v := r.took(raft.MsgDigestVerdict)
	if len(v) != 2 || v[1].To != 3 || !v[1].Reject() || v[1].Round != uint64(mine) || v[1].Index != 2 {
		t.Fatalf("verdict %+v", v)
	}
	if len(told) != 1 || told[0].Node != 3 || told[0].Index != 2 || r.rep().closed() != nil || r.h.Stats().Diverged != 1 {
		t.Fatalf("told %v", told)
	}
}

// TestLeaderInTheMinority: a leader that two others contradict fences itself, durably,
// and hands over; it comes back quarantined.
func TestLeaderInTheMinority(t *testing.T) {
	r := newRig(t)
	r.leads()
	q := r.asked()
	d := r.rep().as.Digest + 1
	r.tell(q, 2, d)
	r.sent = nil
	r.tell(q, 3, d)
	if len(r.took(raft.MsgTimeoutNow)) == 0 {
		t.Error("it keeps the leadership")
	}
	if o := r.propose("x"); !errors.Is(o.err, ErrFenced) || !errors.Is(o.err, ErrDiverged) {
		t.Errorf("a proposal: %v", o.err)
	}
	if o := r.read(); !errors.Is(o.err, ErrDiverged) {
		t.Errorf("a read: %v", o.err)
	}
	if q, err := r.e.Quarantined(7); err != nil || q != (engine.Quarantine{Why: engine.QuarantineDiffers, Index: 2}) {
		t.Errorf("on the disk: %+v, %v", q, err)
	}
	again, err := New(Config{Node: 1, Engine: r.e, Net: r, Liveness: r, Clock: r, Machine: r, Loops: 1, Seed: 1})
	if err != nil {
		t.Fatal(err)
	}
	defer again.Close()
	st, _, err := r.e.Load(7)
	if err := errors.Join(err, again.AddGroups([]raft.State{st})); err != nil {
		t.Fatal(err)
	}
	if v, _ := again.View(7); v.Fenced == nil || !errors.Is(v.Fenced, ErrDiverged) {
		t.Errorf("after a restart: %v", v.Fenced)
	}
}

// TestNoMajority: with one voter away and two that differ nobody serves anything,
// until the third one decides.
func TestNoMajority(t *testing.T) {
	r := newRig(t)
	r.leads()
	q := r.asked()
	mine := r.rep().as.Digest
	r.tell(q, 2, mine+1)
	r.sent = nil
	r.now = r.rep().cmp.at // 3 does not answer
	r.turn()
	v := r.took(raft.MsgDigestVerdict)
	if len(v) != 1 || v[0].To != 2 || v[0].Flags != raft.FlagProbe {
		t.Fatalf("verdict %+v", v)
	}
	if o := r.propose("x"); !errors.Is(o.err, ErrDiverged) {
		t.Errorf("a proposal: %v", o.err)
	}
	if o := r.read(); !errors.Is(o.err, ErrDiverged) {
		t.Errorf("a read: %v", o.err)
	}
	if v, _ := r.h.View(7); v.lease != nil || v.Fenced == nil || !v.IsLeader {
		t.Errorf("%+v", v)
	}
	q = r.asked()
	r.tell(q, 3, mine)
	r.tell(q, 2, mine+1)
	if v, _ := r.h.View(7); v.Fenced != nil {
		t.Errorf("decided, and still %v", v.Fenced)
	}
	if o := r.propose("x"); o.err != nil {
		t.Errorf("a proposal: %v", o.err)
	}
}

// TestDisputeOutlivesItsLeader: a leader that knows of no dispute hears from a member that
// it is disputed, tells it that a majority agrees, and asks again until it has heard it.
func TestDisputeOutlivesItsLeader(t *testing.T) {
	r := newRig(t)
	r.leads()
	answer := func(q raft.Msg, from raft.NodeID, flags uint8) {
		r.in(raft.Msg{Type: raft.MsgDigestResp, Flags: flags, From: from, Term: q.Term, Index: q.Index, Epoch: q.Epoch, Round: uint64(r.rep().as.Digest)})
	}
	for range 2 {
		q := r.asked()
		r.sent = nil
		answer(q, 2, raft.FlagProbe)
		answer(q, 3, 0)
		if v := r.took(raft.MsgDigestVerdict); len(v) != 2 || v[0].To != 2 || v[0].Flags != 0 {
			t.Fatalf("verdict %+v", v)
		}
	}
	q := r.asked()
	answer(q, 2, 0)
	answer(q, 3, 0)
	if c := &r.rep().cmp; c.at != raft.Never || c.wasDisputed {
		t.Errorf("asks again at %d, %+v", c.at, c)
	}
	r.sent = nil
	r.propose("b")
	r.ack(2)
	r.ack(3)
	q = r.asked()
	r.sent = nil
	answer(q, 2, 0)
	answer(q, 3, 0)
	if v := r.took(raft.MsgDigestVerdict); len(v) != 0 {
		t.Errorf("a verdict that nobody waits for: %+v", v)
	}
}

// TestStateDispute: a follower that is disputed for its state does not hear from equal
// chains that this is over.
func TestStateDispute(t *testing.T) {
	r := newRig(t)
	r.followed()
	r.question(2, 0)
	r.on(func(raft.Time) { r.rep().cmp.answer.told.from = stateChain })
	r.in(raft.Msg{Type: raft.MsgDigestVerdict, Flags: raft.FlagProbe, From: 2, Term: 1, Index: 2, Epoch: raft.Epoch(stateChain)})
	if r.rep().closed() == nil {
		t.Fatal("it is not disputed")
	}
	r.question(2, 0)
	if a := r.took(raft.MsgDigestResp); len(a) != 1 || a[0].Flags != 0 {
		t.Errorf("answers %+v", a)
	}
	r.in(raft.Msg{Type: raft.MsgDigestVerdict, From: 2, Term: 1, Index: 2})
	if r.rep().closed() == nil {
		t.Error("equal chains end a dispute about states")
	}
}

// followed is a follower of node 2 with two entries applied.
func (r *rig) followed() {
	r.t.Helper()
	r.follow(0, rigEntry(1, raft.EntryEmpty, ""), rigEntry(2, raft.EntryNormal, "a"))
}

// question is what node 2 asks in term 1.
func (r *rig) question(i raft.Index, from raft.Index) {
	r.t.Helper()
	r.sent = nil
	r.in(raft.Msg{Type: raft.MsgDigest, From: 2, Term: 1, Index: i, Epoch: raft.Epoch(from), Round: 77, Flags: raft.FlagGrant})
}

// TestFollowerAnswers: at once, later, or not at all; and it joins the chain of a
// leader whose store had none.
func TestFollowerAnswers(t *testing.T) {
	r := newRig(t)
	r.followed()
	r.question(2, 0)
	a := r.took(raft.MsgDigestResp)
	if len(a) != 1 || a[0].To != 2 || a[0].Index != 2 || a[0].Round != uint64(r.rep().as.Digest) || a[0].Epoch != 0 || a[0].Reject() {
		t.Fatalf("answered %+v", a)
	}
	r.question(1, 0)
	if a := r.took(raft.MsgDigestResp); len(a) != 1 || !a[0].Reject() {
		t.Fatalf("an index that is passed: %+v", a)
	}
	r.question(4, 0)
	if a := r.took(raft.MsgDigestResp); len(a) != 0 {
		t.Fatalf("an index not applied: %+v", a)
	}
	r.follow(2, rigEntry(3, raft.EntryNormal, "b"), rigEntry(4, raft.EntryNormal, "c"), rigEntry(5, raft.EntryNormal, "d"))
	if a := r.took(raft.MsgDigestResp); len(a) != 1 || a[0].Index != 4 || a[0].Round == uint64(r.rep().as.Digest) {
		t.Fatalf("then %+v", a)
	}
	r.question(5, 5)
	if a := r.took(raft.MsgDigestResp); len(a) != 1 || a[0].Epoch != 5 || a[0].Round != 77 || r.rep().as.Digest != 77 {
		t.Fatalf("another chain: %+v", a)
	}
	r.sent = nil
	r.in(raft.Msg{Type: raft.MsgDigest, From: 3, Term: 1, Index: 5})
	r.in(raft.Msg{Type: raft.MsgDigest, From: 2, Term: 2, Index: 5})
	if len(r.sent) != 0 {
		t.Fatalf("who does not lead is told %+v", r.sent)
	}
}

// TestFollowerIsRebuilt: quarantined by its leader's word, a replica applies nothing,
// goes on to acknowledge, asks for a snapshot, and takes one as of the entry it had
// applied; its log stays, and what is behind that entry is applied again.
func TestFollowerIsRebuilt(t *testing.T) {
	r := newRig(t)
	var told []DivergedError
	r.h.onDiverged = func(e DivergedError) { told = append(told, e) }
	r.followed()
	r.question(2, 0)
	mine := r.rep().as.Digest
	r.in(raft.Msg{Type: raft.MsgDigestVerdict, Flags: raft.FlagReject, From: 2, Term: 1, Index: 2, Round: uint64(mine)})
	r.in(raft.Msg{Type: raft.MsgDigestVerdict, Flags: raft.FlagReject, From: 2, Term: 1, Index: 1, Round: uint64(mine + 1)})
	if r.rep().quarantined() {
		t.Fatal("quarantined for what it did not say")
	}
	r.sent = nil
	r.in(raft.Msg{Type: raft.MsgDigestVerdict, Flags: raft.FlagReject, From: 2, Term: 1, Index: 2, Round: uint64(mine + 1)})
	if q, err := r.e.Quarantined(7); err != nil || q.Why != engine.QuarantineDiffers {
		t.Fatalf("on the disk: %+v, %v", q, err)
	}
	r.follow(2, rigEntry(3, raft.EntryNormal, "b"), rigEntry(4, raft.EntryNormal, "c"))
	acks := r.took(raft.MsgAppResp)
	if len(r.applied) != 1 || len(acks) == 0 || acks[len(acks)-1].Index != 4 {
		t.Fatalf("applied %q, acknowledged %+v", r.applied, acks)
	}
	for try := range 5 {
		r.sent = nil
		r.now = r.rep().due()
		r.turn()
		if m := r.took(raft.MsgRebuild); len(m) != 1 || m[0].To != 2 {
			t.Fatalf("try %d: asked %+v", try, m)
		}
	}
	if w := r.rep().ill.ward.wait; w < 8*time.Second {
		t.Errorf("asks again after %v", w)
	}
	if err := r.rebuilt(1); !errors.Is(err, ErrSnapshotStale) {
		t.Fatalf("a snapshot from before: %v", err)
	}
	if err := r.rebuilt(2); err != nil {
		t.Fatal(err)
	}
	if v, _ := r.h.View(7); v.Fenced != nil || v.Applied != 4 || v.Last != 4 || len(r.applied) != 3 {
		t.Fatalf("rebuilt: %+v, applied %q", v, r.applied)
	}
	if q, err := r.e.Quarantined(7); err != nil || q.Why != 0 {
		t.Fatalf("still quarantined: %+v, %v", q, err)
	}
	if len(told) != 2 || told[0].Rebuilt || !told[1].Rebuilt || r.h.Stats().Rebuilt != 1 {
		t.Fatalf("told %+v", told)
	}
	if st, _, err := r.e.Load(7); err != nil || st.Last != 4 || st.Applied.Applied != 4 || st.Applied.TruncIndex != 0 {
		t.Fatalf("on the disk %+v, %v", st.Applied, err)
	}
}

// TestOneRebuildAtATime: a leader that sends a snapshot to one member of the group
// sends none to another.
func TestOneRebuildAtATime(t *testing.T) {
	r := newRig(t)
	snaps := &heldSnaps{}
	r.h.snaps = snaps
	r.leads()
	ask := func(from raft.NodeID) {
		r.in(raft.Msg{Type: raft.MsgRebuild, From: from, Term: r.rep().core.Status().Term, Index: 2})
	}
	ask(2)
	ask(3)
	ask(2)
	if len(snaps.to) != 1 || snaps.to[0] != 2 {
		t.Fatalf("sent to %v", snaps.to)
	}
	snaps.done[0](2, 1, nil)
	r.turn()
	ask(3)
	if len(snaps.to) != 2 || snaps.to[1] != 3 {
		t.Fatalf("sent to %v", snaps.to)
	}
}

// heldSnaps are snapshots that are never done by themselves.
type heldSnaps struct {
	to   []raft.NodeID
	done []func(raft.Index, raft.Term, error)
}

func (s *heldSnaps) SendSnapshot(_ raft.Descriptor, to raft.NodeID, _ raft.ReplicaID, done func(raft.Index, raft.Term, error)) {
	s.to, s.done = append(s.to, to), append(s.done, done)
}

// integrityScenarios show the rules one by one, by the planted bug that breaks each.
var integrityScenarios = map[string]func(r *rig) error{
	"IG1": func(r *rig) error { // who differs is told
		r.leads()
		q, mine := r.asked(), r.rep().as.Digest
		r.tell(q, 2, mine)
		r.sent = nil
		r.tell(q, 3, mine+1)
		if v := r.took(raft.MsgDigestVerdict); len(v) != 2 || !v[1].Reject() {
			return fmt.Errorf("one of three differs: %+v", v)
		}
		return nil
	},
	"IG2": func(r *rig) error { // less than a majority decides nothing
		r.leads()
		q, mine := r.asked(), r.rep().as.Digest
		r.tell(q, 2, mine+1)
		r.now = r.rep().cmp.at
		r.turn()
		if o := r.read(); o.err == nil {
			return errors.New("a leader serves that one contradicts and nobody confirms")
		}
		for _, v := range r.took(raft.MsgDigestVerdict) {
			if v.Reject() {
				return fmt.Errorf("one of two is condemned: %+v", v)
			}
		}
		return nil
	},
	"IG5": func(r *rig) error { // the mark is durable
		r.condemned()
		if q, err := r.e.Quarantined(7); err != nil || q.Why == 0 {
			return fmt.Errorf("on the disk: %+v, %v", q, err)
		}
		return nil
	},
	"IG6": func(r *rig) error { // what was acknowledged is kept
		r.condemned()
		r.follow(2, rigEntry(3, raft.EntryNormal, "b"), rigEntry(4, raft.EntryNormal, "c"))
		if err := r.rebuilt(2); err != nil {
			return err
		}
		if st, _, err := r.e.Load(7); err != nil || st.Last != 4 || st.Applied.Applied != 4 {
			return fmt.Errorf("the log ends at %d, applied is %d: %v", st.Last, st.Applied.Applied, err)
		}
		return nil
	},
	"IG7": func(r *rig) error { // nothing that was read counts
		r.condemned()
		if err := r.h.Distrust(7); !errors.Is(err, ErrDiverged) {
			return fmt.Errorf("a quarantined replica is believed: %v", err)
		}
		return nil
	},
	"IG10": func(r *rig) error { // who is disputed says so, to leaders that know nothing of it
		r.followed()
		r.question(2, 0)
		r.in(raft.Msg{Type: raft.MsgDigestVerdict, Flags: raft.FlagProbe, From: 2, Term: 1, Index: 2})
		if r.rep().closed() == nil {
			return errors.New("it is not disputed")
		}
		r.question(2, 0)
		if a := r.took(raft.MsgDigestResp); len(a) != 1 || a[0].Flags != raft.FlagProbe {
			return fmt.Errorf("answers %+v", a)
		}
		r.in(raft.Msg{Type: raft.MsgDigestVerdict, From: 2, Term: 1, Index: 2})
		if err := r.rep().closed(); err != nil {
			return fmt.Errorf("it is over, and still %w", err)
		}
		return nil
	},
	"IG8": func(r *rig) error { // it applies nothing
		r.condemned()
		r.follow(2, rigEntry(3, raft.EntryNormal, "b"))
		if len(r.applied) != 1 {
			return fmt.Errorf("a quarantined replica applies %q", r.applied)
		}
		return nil
	},
}

// TestIntegrityRules: the scenarios, with all rules in force.
func TestIntegrityRules(t *testing.T) {
	for id, run := range integrityScenarios {
		t.Run(id, func(t *testing.T) {
			if err := run(newRig(t)); err != nil {
				t.Error(err)
			}
		})
	}
}

// condemned is a follower that its leader has found to differ at index 2.
func (r *rig) condemned() {
	r.t.Helper()
	r.followed()
	r.question(2, 0)
	r.in(raft.Msg{Type: raft.MsgDigestVerdict, Flags: raft.FlagReject, From: 2, Term: 1, Index: 2, Round: uint64(r.rep().as.Digest + 1)})
}

// rebuilt installs a snapshot that ends at index.
func (r *rig) rebuilt(index raft.Index) (err error) {
	r.t.Helper()
	r.on(func(now raft.Time) {
		err = r.l.install(now, 7, index, 1, func(hs raft.HardState, as raft.AppliedState, exists, keepLog bool) (raft.State, error) {
			in := engine.Install{Desc: rigDesc(), Applied: raft.AppliedState{Applied: index, AppliedTerm: 1, Digest: 99}, Hard: hs, KeepLog: keepLog}
			if err := r.e.InstallSnapshot(in); err != nil {
				return raft.State{}, err
			}
			st, _, err := r.e.Load(7)
			return st, err
		})
	})
	return err
}

// known reports whether the leader has its own digest at the index it asks about.
func (r *replica) known() bool { return r.cmp.question != nil && r.cmp.question.known }
