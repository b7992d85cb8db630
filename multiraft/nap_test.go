package multiraft

import (
	"errors"
	"fmt"
	"slices"
	"testing"
	"time"

	"github.com/flotillakv/flotilla/multiraft/raft"
)

// asleep returns whether the group of the rig sleeps.
func (r *rig) asleep() bool {
	v, ok := r.h.View(7)
	if !ok {
		r.t.Fatal("the replica is not found")
	}
	return v.Asleep
}

// settleDown lets the leader of the rig have nothing to do any more: its followers
// hold all, were told so, and the logs are cut.
func (r *rig) settleDown() {
	r.t.Helper()
	for _, n := range []raft.NodeID{2, 3} {
		s := r.rep().core.Status()
		r.in(raft.Msg{Type: raft.MsgAppResp, From: n, Term: s.Term, Index: s.Last, Epoch: 1 << 32})
	}
	for range 4 { // commit records, the cut, the two looks
		r.now = r.now.Add(2 * time.Second)
		r.turn()
		r.now = r.now.Add(DefaultIdleAfter)
		r.turn()
	}
}

// TestNap: a leader falls asleep, serves reads by its lease meanwhile, and goes on
// where it was when something comes.
func TestNap(t *testing.T) {
	r := newRigWith(t, true)
	r.h.digestEvery = -1 // the others would have to answer
	r.lead(2)
	r.ack(2)
	core := r.rep().core
	r.settleDown()
	if !r.asleep() {
		t.Fatalf("it does not sleep: %+v", r.rep().core.Status())
	}
	before, _ := r.h.View(7)
	if !before.IsLeader || !before.IsReady || before.Applied != before.Last || before.Last == 0 || before.Desc.Shard != 7 {
		t.Fatalf("%+v", before)
	}
	if n := r.h.Census(); n != (Census{Replicas: 1, Asleep: 1, Leaders: 1, Ready: 1}) {
		t.Fatalf("%+v", n)
	}
	g, ok := r.h.Grant(7)
	if !ok || !g.Stands() || g.Desc().Shard != 7 {
		t.Fatal("no read while it sleeps")
	}
	r.sent = nil
	r.now = r.now.Add(time.Hour)
	r.turn()
	if len(r.sent) > 0 || !r.asleep() {
		t.Fatalf("asleep it sends %v", r.sent)
	}
	if _, has, busy := r.l.next(); has && r.l.sweepAt == 0 || busy {
		t.Fatal("the loop has something to do")
	}
	// What it knows already does not wake it, what it does not know does.
	r.in(raft.Msg{Type: raft.MsgAppResp, From: 2, Term: before.Term, Index: before.Last})
	if !r.asleep() {
		t.Fatal("an old acknowledgement woke it")
	}
	var got []byte
	r.h.Propose(7, raft.Command{Op: raft.Op(128), Body: []byte("x")}, func(data []byte, _ raft.Index, _ uint32, err error) {
		if err != nil {
			t.Error(err)
		}
		got = data
	})
	r.turn()
	if r.asleep() || !g.Stands() {
		t.Fatalf("asleep %v, the grant stands %v", r.asleep(), g.Stands())
	}
	if r.rep().core != core {
		t.Error("it woke in other memory than that it had given back")
	}
	r.ack(2)
	if string(got) != "x" {
		t.Fatalf("applied %q", got)
	}
	if v, _ := r.h.View(7); v.Term != before.Term || v.Last != before.Last+1 || v.Generation != before.Generation || !v.IsLeader {
		t.Fatalf("%+v after %+v", v, before)
	}
}

// napCases are the rules of sleep that a test can break one by one.
var napCases = []struct {
	name string
	run  func(*testing.T) error
}{{"lease", napLease}, {"held", napHeld}, {"unsure", napUnsure}, {"lost", napNobody},
	{"orphan", napOrphan}, {"lags", napLags}, {"kept", napKept}, {"thrash", napThrash}, {"sweep", napSweep}}

func TestNapRules(t *testing.T) {
	for _, c := range napCases {
		t.Run(c.name, func(t *testing.T) {
			if err := c.run(t); err != nil {
				t.Fatal(err)
			}
		})
	}
}

// napLease: a sleeping leader serves no read when a quorum's promise has ended, or
// the clock must not be used.
func napLease(t *testing.T) error {
	r := newRigWith(t, true)
	r.h.digestEvery = -1 // the others would have to answer
	r.lead(2)
	r.ack(2)
	r.settleDown()
	if !r.asleep() || !r.h.LeaseRead(7) {
		return errors.New("no read while it sleeps")
	}
	r.until = r.now
	if r.h.LeaseRead(7) {
		return errors.New("a read after the promises ended")
	}
	r.until = 1 << 61
	r.unsound = true
	if r.h.LeaseRead(7) {
		return errors.New("a read by a clock that must not be used")
	}
	return nil
}

// napHeld: a replica does not fall asleep while a promise of it is on its way to the
// disk, and what was to be said then is said.
func napHeld(t *testing.T) error {
	r := newRigWith(t, true)
	r.h.digestEvery = -1 // the others would have to answer
	app := raft.Msg{Type: raft.MsgApp, From: 2, Term: 1, Flags: raft.FlagFortify, Entries: []raft.Entry{{Index: 1, Term: 1, Type: raft.EntryEmpty}}}
	app.Entries[0].Value = raft.EncodeEntry(nil, 1, 1, raft.EntryEmpty, raft.EntryHeader{}, nil)
	app.Commit, app.CompactTo = 1, 1
	r.in(app)
	r.now = r.now.Add(3 * time.Second)
	r.in(raft.Msg{Type: raft.MsgCommit, From: 2, Term: 1, Commit: 1, CompactTo: 1})
	r.now = r.now.Add(3 * time.Second)
	r.turn()
	if s := r.rep().core.Status(); s.Trunc != 1 || s.Lead != 2 {
		return fmt.Errorf("not quiet: %+v", s)
	}
	// It promises anew, and the disk takes its time.
	r.sent = nil
	r.l.in.putMsgs([]raft.Msg{{Type: raft.MsgFortify, From: 2, Term: 1, Shard: 7, To: 1, ToReplica: 1, FromReplica: 2}})
	for range 20 {
		r.now = r.now.Add(DefaultIdleAfter)
		r.l.step(r.now)
	}
	if r.asleep() {
		return errors.New("it sleeps with a promise on its way to the disk")
	}
	r.turn()
	if !slices.ContainsFunc(r.sent, func(m raft.Msg) bool { return m.Type == raft.MsgFortifyResp }) {
		return fmt.Errorf("the promise was not told: %v", r.sent)
	}
	for range 6 {
		r.now = r.now.Add(DefaultIdleAfter)
		r.turn()
	}
	if !r.asleep() {
		return errors.New("it does not sleep")
	}
	return nil
}

// napUnsure: a replica that sleeps from the start is woken by the first request, which
// is told that there is no leader yet, and campaigns.
func napUnsure(t *testing.T) error {
	r := newRig(t)
	d := rigDesc()
	d.Shard, d.Keyspace = 8, 2
	r.h.awake = 0
	r.until = 0 // nobody is heard
	if err := r.h.CreateGroups([]raft.Descriptor{d}); err != nil {
		return err
	}
	r.turn() // the loop comes by, and finds no reason to wake it
	r.l.scanLeft = 0
	v, ok := r.h.View(8)
	if !ok || !v.Asleep || v.Leader != 0 || v.Desc.Keyspace != 2 {
		return fmt.Errorf("%+v", v)
	}
	r.until = 1 << 61
	var err error
	r.h.Propose(8, raft.Command{Op: raft.Op(128)}, func(_ []byte, _ raft.Index, _ uint32, e error) { err = e })
	var elsewhere *NotLeaderError
	if !errors.As(err, &elsewhere) || elsewhere.Leader != 0 {
		return fmt.Errorf("the proposal got %v", err)
	}
	r.sent = nil
	r.turn()
	for range 2 { // its turn comes
		r.now = r.now.Add(standBack)
		r.turn()
	}
	asked := 0
	for _, m := range r.sent {
		if m.Type == raft.MsgPreVote && m.Shard == 8 {
			asked++
		}
	}
	if v, _ := r.h.View(8); v.Asleep || asked != 2 {
		return fmt.Errorf("%+v, sent %v", v, r.sent)
	}
	return nil
}

// napNobody: a replica without a leader sleeps when nobody could elect one, as long as that
// is so, and not before.
func napNobody(t *testing.T) error {
	r := newRig(t)
	idle := func() {
		for range 4 * napLost * napSecond {
			r.now = r.now.Add(DefaultIdleAfter / napSecond)
			r.turn()
		}
	}
	if idle(); r.asleep() {
		return errors.New("it sleeps though others are alive")
	}
	r.deaf = true
	r.h.LivenessChanged(2)
	r.h.LivenessChanged(3)
	if idle(); !r.asleep() {
		return fmt.Errorf("it goes on to campaign: %+v", r.rep().core.Status())
	}
	r.sent = nil
	if idle(); len(r.sent) > 0 || !r.asleep() {
		return fmt.Errorf("asleep it sends %v", r.sent)
	}
	r.deaf = false
	r.h.LivenessChanged(2)
	r.now = r.now.Add(scanEvery)
	for range 30 {
		r.now = r.now.Add(scanEvery)
		r.turn()
	}
	if r.asleep() {
		return errors.New("it sleeps on")
	}
	r.lead(2)
	return nil
}

// napFollower has the replica of the rig fall asleep as a follower of node 2, with one entry.
func napFollower(r *rig) error {
	r.h.digestEvery = -1 // the others would have to answer
	app := raft.Msg{Type: raft.MsgApp, From: 2, Term: 1, Flags: raft.FlagFortify, Entries: []raft.Entry{rigEntry(1, raft.EntryEmpty, "")}}
	app.Commit, app.CompactTo = 1, 1
	r.in(app)
	r.now = r.now.Add(3 * time.Second)
	r.in(raft.Msg{Type: raft.MsgCommit, From: 2, Term: 1, Commit: 1, CompactTo: 1})
	for range 6 {
		r.now = r.now.Add(DefaultIdleAfter)
		r.turn()
	}
	if v, _ := r.h.View(7); !v.Asleep || v.Leader != 2 {
		return fmt.Errorf("it does not sleep: %+v", v)
	}
	return nil
}

// napOrphan: a follower sleeps on when its leader's node dies, of which nobody tells it. Who
// asks it for the leader hears of none any more, and it campaigns.
func napOrphan(t *testing.T) error {
	r := newRigWith(t, true)
	if err := napFollower(r); err != nil {
		return err
	}
	ask := func() raft.NodeID {
		var elsewhere *NotLeaderError
		if o := r.propose("x"); !errors.As(o.err, &elsewhere) {
			t.Fatalf("the proposal got %v", o.err)
		}
		return elsewhere.Leader
	}
	if leader := ask(); leader != 2 || !r.asleep() {
		return fmt.Errorf("leader %d, asleep %v", leader, r.asleep())
	}
	r.dead, r.sent = 2, nil
	if r.turn(); !r.asleep() {
		return errors.New("it wakes though nobody asks")
	}
	if leader := ask(); leader != 0 {
		return fmt.Errorf("it names node %d, which is dead", leader)
	}
	for range 4 { // it may be the other one's turn first
		r.now = r.now.Add(standBack / 2)
		r.turn()
	}
	if r.asleep() || !slices.ContainsFunc(r.sent, func(m raft.Msg) bool { return m.Type == raft.MsgPreVote && m.To == 3 }) {
		return fmt.Errorf("nobody elects; sent %v", r.sent)
	}
	return nil
}

// napLags: a leader sleeps though the replica on a dead node lacks some of its log, wakes when
// that node is back, and sends what it owes.
func napLags(t *testing.T) error {
	r := newRigWith(t, true)
	r.h.digestEvery = -1 // the others would have to answer
	r.lead(2)
	r.dead = 3
	r.silent = 3
	r.ack(2)
	s := r.rep().core.Status()
	r.in(raft.Msg{Type: raft.MsgAppResp, From: 2, Term: s.Term, Index: s.Last, Epoch: 1 << 32})
	for range 20 {
		r.now = r.now.Add(DefaultIdleAfter / 2)
		r.turn()
	}
	if !r.asleep() {
		return fmt.Errorf("it does not sleep while node 3 is dead: %+v", r.rep().core.Status())
	}
	r.dead, r.silent, r.sent = 0, 0, nil
	r.h.digestEvery = time.Second
	r.h.LivenessChanged(3)
	for range 3 {
		r.turn()
		r.now = r.now.Add(scanEvery)
	}
	if r.asleep() || !slices.ContainsFunc(r.sent, func(m raft.Msg) bool { return m.Type == raft.MsgApp && m.To == 3 }) {
		return fmt.Errorf("asleep %v, sent %v", r.asleep(), r.sent)
	}
	// It was never compared with who was away.
	s = r.rep().core.Status()
	r.in(raft.Msg{Type: raft.MsgAppResp, From: 3, Term: s.Term, Index: s.Last, Epoch: 1 << 32})
	r.now = r.now.Add(2 * time.Second)
	if r.turn(); !slices.ContainsFunc(r.sent, func(m raft.Msg) bool { return m.Type == raft.MsgDigest && m.To == 3 }) {
		return errors.New("who was away is not compared")
	}
	return nil
}

// napKept: a follower sleeps while the node of another member is dead, with the log that is kept
// for that one, and cuts it when its leader says so.
func napKept(t *testing.T) error {
	r := newRigWith(t, true)
	r.h.digestEvery = -1 // the others would have to answer
	r.dead, r.silent = 3, 3
	app := raft.Msg{Type: raft.MsgApp, From: 2, Term: 1, Flags: raft.FlagFortify, Entries: []raft.Entry{rigEntry(1, raft.EntryEmpty, "")}, Commit: 1}
	r.in(app)
	for range 8 {
		r.now = r.now.Add(DefaultIdleAfter / 2)
		r.turn()
	}
	if !r.asleep() {
		return fmt.Errorf("it does not sleep while node 3 is dead: %+v", r.rep().core.Status())
	}
	if st, _, err := r.e.Load(7); err != nil || st.Applied.TruncIndex != 0 {
		return fmt.Errorf("nothing is kept of its log: %+v, %w", st.Applied, err)
	}
	r.dead, r.silent = 0, 0 // and has all of the log by now
	r.in(raft.Msg{Type: raft.MsgCommit, From: 2, Term: 1, Commit: 1, CompactTo: 1})
	for range 8 {
		r.now = r.now.Add(DefaultIdleAfter / 2)
		r.turn()
	}
	if st, _, err := r.e.Load(7); err != nil || st.Applied.TruncIndex != 1 || !r.asleep() {
		return fmt.Errorf("its log is not cut: %+v, %w, asleep %v", st.Applied, err, r.asleep())
	}
	return nil
}

// napThrash: a replica that is woken soon after it fell asleep stays awake for twice as long
// the next time, up to sixteen times, and one that slept long begins anew.
func napThrash(t *testing.T) error {
	r := newRigWith(t, true)
	r.h.digestEvery = -1 // the others would have to answer
	r.lead(2)
	r.ack(2)
	awake := func() time.Duration {
		o := r.propose("x")
		for _, n := range []raft.NodeID{2, 3} {
			s := r.rep().core.Status()
			r.in(raft.Msg{Type: raft.MsgAppResp, From: n, Term: s.Term, Index: s.Last, Epoch: 1 << 32})
		}
		if o.n != 1 || o.err != nil {
			t.Fatalf("told %d times, %v", o.n, o.err)
		}
		from := r.now
		for !r.asleep() {
			if r.now = r.now.Add(DefaultIdleAfter / 10); r.now > from.Add(time.Hour) {
				t.Fatalf("it never sleeps: %+v", r.rep().core.Status())
			}
			r.turn()
		}
		return r.now.Sub(from)
	}
	awake()
	r.now = r.now.Add(time.Minute)
	for k, want := range []time.Duration{1, 2, 4, 8, 16, 16, 1, 2} {
		if want == 1 {
			r.now = r.now.Add(time.Minute) // a long sleep
			r.turn()
		}
		if got := awake(); got < want*DefaultIdleAfter || got >= (want*2)*DefaultIdleAfter {
			return fmt.Errorf("wake %d: it stayed awake for %v, %d times %v were due", k, got, want, DefaultIdleAfter)
		}
	}
	return nil
}

// napSweep: when a node dies that led thousands of groups whose replicas sleep here, none of
// them wakes at once. The loop comes by: so many in a tenth of a second and no more, those whose
// turn it is on this node first, and in the end all that nobody else had elected.
func napSweep(t *testing.T) error {
	r := newRig(t)
	r.h.digestEvery = -1 // the others would have to answer
	const n = 3000
	var descs []raft.Descriptor
	for s := range raft.ShardID(n) {
		d, _ := rigDealt{first: 100, n: n}.Descriptor(100 + s)
		descs = append(descs, d)
	}
	r.h.awake = 0
	if err := r.h.CreateGroups(descs); err != nil {
		return err
	}
	g := ground{kind: kindFollower, lead: raft.NapMember{Node: 2, ID: 2, Epoch: 1 << 32}, members: membersOf(nil, &raft.Descriptor{Replicas: rigDesc().Replicas})}
	mine := 0
	r.dead = 2
	for s := range raft.ShardID(n) { // they slept under a leader
		st, _, _ := r.l.stubs.get(100 + s)
		r.l.stubs.remove(100 + s)
		r.l.stubs.put(st, &g)
		if r.h.electRank(100+s, &g) == 0 {
			mine++
		}
	}
	r.dead = 0
	r.h.LivenessChanged(3)
	for range 20 {
		r.now = r.now.Add(scanEvery)
		r.turn()
	}
	woken := func() int { return n - r.h.Census().Asleep }
	if got := woken(); got != 0 {
		return fmt.Errorf("%d wake though their leader is well", got)
	}
	r.dead = 2
	r.h.LivenessChanged(2)
	for tenths, before := 0, 0; r.l.scanLeft > 0 || tenths == 0; tenths++ {
		r.turn()
		now := woken()
		switch {
		case now-before > scanWakes:
			return fmt.Errorf("%d wake at once", now-before)
		case now > mine && tenths <= mine/scanWakes:
			return fmt.Errorf("%d are awake before the other node had its turn, which has %d of them", now, n-mine)
		case tenths > 10*n/scanWakes:
			return fmt.Errorf("%d of %d are awake after %d tenths of a second", now, n, tenths)
		}
		before = now
		r.now = r.now.Add(scanEvery)
	}
	if got := woken(); got != n {
		return fmt.Errorf("%d of %d are awake in the end", got, n)
	}
	return nil
}
