package raft

import (
	"errors"
	"math/rand/v2"
	"slices"
	"testing"
	"time"
)

// TestApplyConf goes through the steps of a membership change one by one.
func TestApplyConf(t *testing.T) {
	step := func(n NodeID, id ReplicaID, role Role) ConfStep {
		return ConfStep{Replica: Replica{Node: n, ID: id, Role: role}}
	}
	remove := func(n NodeID) ConfStep { return ConfStep{Remove: true, Replica: Replica{Node: n}} }
	for _, c := range []struct {
		name  string
		from  []Role
		steps []ConfStep
		ver   uint64
		want  []Replica
		err   error
	}{
		{"add learner", []Role{Voter}, []ConfStep{step(5, 0, Learner)}, 1, []Replica{{1, 1, Voter}, {5, 2, Learner}}, nil},
		{"add one voter directly", []Role{Voter, Voter}, []ConfStep{step(3, 7, Voter)}, 1, []Replica{{1, 1, Voter}, {2, 2, Voter}, {3, 7, Voter}}, nil},
		{"remove one voter directly", []Role{Voter, Voter, Voter}, []ConfStep{remove(2)}, 1, []Replica{{1, 1, Voter}, {3, 3, Voter}}, nil},
		{"promote directly", []Role{Voter, Learner}, []ConfStep{step(2, 0, Voter)}, 1, []Replica{{1, 1, Voter}, {2, 2, Voter}}, nil},
		{"demote directly", []Role{Voter, Voter}, []ConfStep{step(2, 2, Learner)}, 1, []Replica{{1, 1, Voter}, {2, 2, Learner}}, nil},
		{"swap goes joint", []Role{Voter, Voter}, []ConfStep{step(3, 0, Voter), remove(2)}, 1, []Replica{{1, 1, Voter}, {2, 2, VoterOutgoing}, {3, 3, VoterIncoming}}, nil},
		{"demote and promote go joint", []Role{Voter, Voter, Learner}, []ConfStep{step(2, 0, Learner), step(3, 0, Voter)}, 1, []Replica{{1, 1, Voter}, {2, 2, VoterDemoting}, {3, 3, VoterIncoming}}, nil},
		{"learners come along in a joint change", []Role{Voter, Voter, Learner}, []ConfStep{remove(3), step(4, 0, Voter), step(5, 0, Voter), step(6, 0, Learner)}, 1,
			[]Replica{{1, 1, Voter}, {2, 2, Voter}, {4, 4, VoterIncoming}, {5, 5, VoterIncoming}, {6, 6, Learner}}, nil},
		{"leave joint", []Role{Voter, VoterOutgoing, VoterIncoming, VoterDemoting}, nil, 1, []Replica{{1, 1, Voter}, {3, 3, Voter}, {4, 4, Learner}}, nil},
		{"leave without being joint", []Role{Voter}, nil, 1, nil, ErrConfInvalid},
		{"change within joint", []Role{Voter, VoterIncoming}, []ConfStep{remove(1)}, 1, nil, ErrConfInvalid},
		{"other version", []Role{Voter}, []ConfStep{step(2, 0, Voter)}, 2, nil, ErrConfVersion},
		{"last voter", []Role{Voter, Learner}, []ConfStep{remove(1)}, 1, nil, ErrConfInvalid},
		{"unknown node removed", []Role{Voter}, []ConfStep{remove(9)}, 1, nil, ErrConfInvalid},
		{"node twice", []Role{Voter}, []ConfStep{step(2, 0, Voter), step(2, 0, Learner)}, 1, nil, ErrConfInvalid},
		{"used replica id", []Role{Voter}, []ConfStep{step(2, 1, Voter)}, 1, nil, ErrConfInvalid},
		{"other replica on the node", []Role{Voter, Voter}, []ConfStep{step(2, 9, Learner)}, 1, nil, ErrConfInvalid},
		{"same role", []Role{Voter, Voter}, []ConfStep{step(2, 2, Voter)}, 1, nil, ErrConfInvalid},
		{"joint role asked for", []Role{Voter}, []ConfStep{step(2, 0, VoterIncoming)}, 1, nil, ErrConfInvalid},
		{"no node", []Role{Voter}, []ConfStep{step(0, 0, Voter)}, 1, nil, ErrConfInvalid},
	} {
		d := testDesc(c.from...)
		before := d.Clone()
		got, err := d.Apply(ConfChange{ConfVer: c.ver, Steps: c.steps})
		if !errors.Is(err, c.err) {
			t.Errorf("%s: %v, want %v", c.name, err, c.err)
			continue
		}
		if err == nil && (!slices.Equal(got.Replicas, c.want) || got.ConfVer != 2) {
			t.Errorf("%s: %+v version %d, want %+v", c.name, got.Replicas, got.ConfVer, c.want)
		}
		if !slices.Equal(d.Replicas, before.Replicas) || d.NextReplica != before.NextReplica {
			t.Errorf("%s changed its argument", c.name)
		}
	}
}

// TestConfQuorumsIntersect draws random chains of changes and shows that any
// quorum of a configuration meets any quorum of the next one (S10), that
// replica ids are never reused, and that joint configurations can be left.
func TestConfQuorumsIntersect(t *testing.T) {
	rng := rand.New(rand.NewPCG(1, 2))
	for range 300 {
		d := testDesc(Voter, Voter, Voter)
		maxID := d.NextReplica
		for range 12 {
			var cc ConfChange
			cc.ConfVer = d.ConfVer
			if !d.IsJoint() {
				for n := NodeID(1); n <= 6; n++ {
					r, ok := d.ReplicaOn(n)
					switch x := rng.IntN(5); {
					case x == 0 && ok:
						cc.Steps = append(cc.Steps, ConfStep{Remove: true, Replica: r})
					case x == 1 && (!ok || r.Role != Voter):
						cc.Steps = append(cc.Steps, ConfStep{Replica: Replica{Node: n, Role: Voter}})
					case x == 2 && (!ok || r.Role != Learner):
						cc.Steps = append(cc.Steps, ConfStep{Replica: Replica{Node: n, Role: Learner}})
					}
				}
			}
			next, err := d.Apply(cc)
			if err != nil {
				if d.IsJoint() {
					t.Fatalf("cannot leave %+v: %v", d.Replicas, err)
				}
				continue
			}
			for _, r := range next.Replicas {
				if _, was := d.Replica(r.ID); !was && r.ID < maxID {
					t.Fatalf("replica id %d used again", r.ID)
				}
			}
			maxID = next.NextReplica
			if a, b, ok := disjoint(&d, &next); ok {
				t.Fatalf("quorums %b of %+v and %b of %+v are disjoint", a, d.Replicas, b, next.Replicas)
			}
			d = next
		}
	}
}

// disjoint looks for two quorums of a and b that share no node.
func disjoint(a, b *Descriptor) (x, y int, found bool) {
	won := func(d *Descriptor, set int) bool {
		var t tally
		for _, r := range d.Replicas {
			t.add(r.Role, set>>r.Node&1 == 1)
		}
		return t.won()
	}
	const all = 1<<7 - 1
	for x := 0; x <= all; x++ {
		if won(a, x) && won(b, all&^x) {
			return x, all &^ x, true
		}
	}
	return 0, 0, false
}

// TestQuorumOf compares the quorum index with a count by hand.
func TestQuorumOf(t *testing.T) {
	rng := rand.New(rand.NewPCG(3, 4))
	for range 2000 {
		plain := rng.IntN(2) == 0
		peers := make([]progress, 1+rng.IntN(7))
		for i := range peers {
			if peers[i].role = Role(1 + rng.IntN(5)); plain {
				peers[i].role = Voter
			}
			peers[i].match = Index(rng.IntN(10))
		}
		got := Index(quorumOf(peers, matchOf))
		var want Index
		for x := Index(1); x < 10; x++ {
			var y tally
			for i := range peers {
				y.add(peers[i].role, peers[i].match >= x)
			}
			if y.won() {
				want = x
			}
		}
		if got != want {
			t.Fatalf("%+v: %d, want %d", peers, got, want)
		}
	}
}

// TestInflight shows the window: bounded by count and bytes, one always passes,
// an acknowledgement frees everything up to it, the bytes come out even.
func TestInflight(t *testing.T) {
	var f inflight
	if f.full(1, 1) {
		t.Error("an empty window is full")
	}
	rng := rand.New(rand.NewPCG(5, 6))
	type sent struct {
		last  Index
		bytes int
	}
	var model []sent
	next := Index(1)
	for range 5000 {
		if !f.full(8, 100) {
			b := rng.IntN(40)
			f.add(next, b)
			model = append(model, sent{next, b})
			next += Index(1 + rng.IntN(3))
		}
		if rng.IntN(3) == 0 {
			to := Index(rng.IntN(int(next) + 1))
			f.freeTo(to)
			for len(model) > 0 && model[0].last <= to {
				model = model[1:]
			}
		}
		bytes := 0
		for _, m := range model {
			bytes += m.bytes
		}
		if f.count() != len(model) || f.bytes() != bytes {
			t.Fatalf("%d appends of %d bytes, want %d of %d", f.count(), f.bytes(), len(model), bytes)
		}
		if len(model) > 8 {
			t.Fatalf("%d in flight", len(model))
		}
	}
	if cap(f.sent) > 64 {
		t.Errorf("the window grew to %d slots", cap(f.sent))
	}
}

// TestLogModel compares the in-memory log with a plain slice of terms under
// random appends, overwrites, evictions and cuts.
func TestLogModel(t *testing.T) {
	rng := rand.New(rand.NewPCG(7, 8))
	for range 200 {
		l, err := newLog(&State{})
		if err != nil {
			t.Fatal(err)
		}
		model := []Term{0}
		term := Term(1)
		for range 60 {
			switch rng.IntN(6) {
			case 0, 1, 2:
				if rng.IntN(4) == 0 {
					term++
				}
				i := l.last + 1
				l.append([]Entry{{Index: i, Term: term, Value: make([]byte, 10)}})
				model = append(model, term)
			case 3:
				if l.last > l.commit {
					i := l.commit + 1 + Index(rng.IntN(int(l.last-l.commit)))
					l.cutSuffix(i)
					model = model[:i]
					term++
				}
			case 4:
				l.commit += Index(rng.IntN(int(l.last-l.commit) + 1))
				l.applying, l.applied, l.stable = l.commit, l.commit, l.last
				l.evict(rng.IntN(60))
			case 5:
				if l.applied > l.trunc {
					i := l.trunc + 1 + Index(rng.IntN(int(l.applied-l.trunc)))
					l.truncated(i, model[i])
				}
			}
			if l.last != Index(len(model)-1) || l.lastTerm != model[l.last] {
				t.Fatalf("log ends at %d/%d, want %d/%d", l.last, l.lastTerm, len(model)-1, model[len(model)-1])
			}
			for i := Index(0); i <= l.last+1; i++ {
				got, ok := l.term(i)
				if wantKnown := i <= l.last && (i >= l.trunc || i >= l.prev); ok != wantKnown || ok && got != model[i] {
					t.Fatalf("term(%d) = %d, %v; trunc %d prev %d last %d", i, got, ok, l.trunc, l.prev, l.last)
				}
			}
			if i, h := l.hint(l.last, 1); h > 1 || i > l.last {
				t.Fatalf("hint %d/%d", i, h)
			}
			if len(l.ents) > 0 {
				lo := l.prev + 1 + Index(rng.IntN(len(l.ents)))
				if s := l.slice(lo, l.last, 25); len(s) == 0 || len(s) > 2 || s[0].Index != lo {
					t.Fatalf("slice from %d: %d entries", lo, len(s))
				}
			}
		}
	}
}

// TestLogKeepsWhatItHandedOut shows that an overwrite does not change entries
// that are still on their way to disk or to a peer (they share memory).
func TestLogKeepsWhatItHandedOut(t *testing.T) {
	l, _ := newLog(&State{})
	l.append(terms(1, 1, 1))
	out := l.slice(1, 3, 1<<20)
	l.cutSuffix(2)
	l.append([]Entry{{Index: 2, Term: 2}, {Index: 3, Term: 2}})
	if out[1].Term != 1 || out[2].Term != 1 {
		t.Errorf("handed out entries became %+v", out)
	}
}

// TestStaleMark shows that the acknowledgement of a write that was overwritten
// in the meantime does not count (the ABA of asynchronous appends).
func TestStaleMark(t *testing.T) {
	r := newRig(t, stateOf(three, HardState{}, nil))
	app := func(m Msg) []AppendTask {
		var tasks []AppendTask
		m.Type, m.Shard, m.FromReplica, m.To, m.ToReplica = MsgApp, 7, ReplicaID(m.From), 1, 1
		r.do(false, func(o *Out) { r.c.Step(r.now, &m, o); tasks = append(tasks, o.Appends...) })
		return tasks
	}
	first := app(Msg{From: 2, Term: 1, Entries: terms(1, 1)})
	second := app(Msg{From: 3, Term: 2, Entries: terms(2, 2)})
	if first[0].Mark != (LogMark{1, 2}) || second[0].Mark != (LogMark{2, 2}) || second[0].OldLast != 2 {
		t.Fatalf("marks %+v, %+v", first, second)
	}
	r.do(false, func(o *Out) { r.c.Appended(r.now, first[0].Mark, o) })
	if r.c.log.stable != 0 {
		t.Fatalf("the old write's acknowledgement made %d durable", r.c.log.stable)
	}
	r.do(false, func(o *Out) { r.c.Appended(r.now, second[0].Mark, o) })
	if r.c.log.stable != 2 {
		t.Fatalf("durable through %d", r.c.log.stable)
	}
}

// TestCommitRecordOfForeignTail shows rule A5: a commit record counts only if
// the log is known to be a prefix of its sender's.
func TestCommitRecordOfForeignTail(t *testing.T) {
	r := newRig(t, stateOf(three, HardState{}, terms(1, 1, 1)))
	r.step(Msg{Type: MsgCommit, From: 2, Term: 2, Commit: 3})
	if r.c.log.commit != 0 {
		t.Fatal("a record of term 2 committed a tail of term 1")
	}
	r.step(Msg{Type: MsgApp, From: 2, Term: 2, Index: 1, LogTerm: 1}) // matches, but says nothing about 2 and 3
	r.step(Msg{Type: MsgCommit, From: 2, Term: 2, Commit: 3})
	if r.c.log.commit != 0 {
		t.Fatal("a probe below the tail made it trusted")
	}
	r.step(Msg{Type: MsgApp, From: 2, Term: 2, Index: 1, LogTerm: 1, Entries: terms(1, 2)[1:]})
	r.step(Msg{Type: MsgCommit, From: 2, Term: 2, Commit: 9})
	if r.c.log.commit != 2 {
		t.Fatalf("commit %d, want the end of the log", r.c.log.commit)
	}
}

// TestRuleV goes through the rule by which a promise to a leader holds up
// elections, and its exceptions.
func TestRuleV(t *testing.T) {
	promised := func() *rig {
		r := newRig(t, stateOf(three, HardState{}, nil))
		r.step(Msg{Type: MsgApp, From: 2, Term: 1, Flags: FlagFortify, Entries: terms(1)})
		if r.hard.Lead != 2 || r.hard.LeadEpoch == 0 || r.hard.LeadNode != 2 {
			t.Fatalf("no promise on disk: %+v", r.hard)
		}
		return r
	}
	vote := Msg{Type: MsgVote, From: 3, Term: 2, Index: 1, LogTerm: 1}
	granted := func(r *rig, m Msg) bool {
		a := find(r.step(m), MsgVoteResp, m.From)
		return a != nil && !a.Reject() && a.Term == m.Term
	}

	r := promised()
	out := r.step(vote)
	if a := r.want(out, MsgVoteResp, 3); !a.Reject() || a.Term != 2 {
		t.Errorf("answer %+v: must refuse in the asked term", a)
	}
	if q := r.want(out, MsgLeadQuery, 2); q.Term != 1 {
		t.Errorf("query %+v", q)
	}
	if find(r.step(vote), MsgLeadQuery, 2) != nil {
		t.Error("queries are not rate limited")
	}
	r.do(true, func(o *Out) { r.c.Campaign(r.now, o) })
	if ms := r.take(); find(ms, MsgPreVote, 3) != nil || r.c.role != RoleFollower {
		t.Error("campaigns against its promise")
	}

	r = promised() // over a restart, too
	r = newRig(t, stateOf(three, r.hard, terms(1)))
	if granted(r, vote) {
		t.Error("the restart forgot the promise")
	}

	m := vote
	m.From = 2
	if r = promised(); !granted(r, m) {
		t.Error("(a) the leader itself was refused")
	}
	m = vote
	m.Flags = FlagGrant
	if r = promised(); !granted(r, m) {
		t.Error("(b) the leader's grant was not honoured")
	}
	m.Term = 3
	if r = promised(); granted(r, m) {
		t.Error("a grant of term 1 counts for term 2 only")
	}
	m = vote
	m.Term, m.LogTerm = 9, 8
	if r = promised(); !granted(r, m) {
		t.Error("(c) proof of a newer leader was ignored")
	}
	r = promised()
	r.step(Msg{Type: MsgApp, From: 3, Term: 2, Index: 1, LogTerm: 1})
	if r.c.lead != 3 || r.c.hs.Term != 2 {
		t.Error("(c) an append of a newer leader was ignored")
	}
	r = promised()
	r.step(Msg{Type: MsgAppResp, From: 3, Term: 5, Flags: FlagReject})
	if r.c.hs.Term != 1 {
		t.Error("took over a term from a message that is no leader's")
	}
	r = promised()
	r.step(Msg{Type: MsgStepDown, From: 3, Term: 1})
	if granted(r, vote) {
		t.Error("(d) somebody else stepped down for the leader")
	}
	r.step(Msg{Type: MsgStepDown, From: 2, Term: 1})
	if !granted(r, vote) {
		t.Error("(d) the leader's step-down was ignored")
	}
	r = promised()
	r.live.down[2] = true
	if !granted(r, vote) {
		t.Error("the support lapsed and the promise still stands")
	}
}

// TestLeadQuery shows who answers that he leads no more.
func TestLeadQuery(t *testing.T) {
	r := newRig(t, stateOf(three, HardState{Term: 3, Vote: 1, Lead: 1, LeadNode: 1, LeadEpoch: 4}, terms(3)))
	if r.c.hs.Lead != 0 {
		t.Error("a restarted leader waits for itself")
	}
	r.want(r.step(Msg{Type: MsgLeadQuery, From: 2, Term: 3}), MsgStepDown, 2)
	if m := r.want(r.step(Msg{Type: MsgLeadQuery, From: 2, Term: 2}), MsgStepDown, 2); m.Term != 2 {
		t.Errorf("answer %+v", m)
	}
	if ms := r.step(Msg{Type: MsgLeadQuery, From: 2, Term: 4}); len(ms) != 0 {
		t.Errorf("answers for a term it does not know: %+v", ms)
	}
	// Replica 4 of node 4 was removed by a change that it does not know of; others
	// that do not know of it either may still need its vote.
	r.c.desc.NextReplica = 5
	r.want(r.step(Msg{Type: MsgLeadQuery, From: 4, FromReplica: 4, Term: 3}), MsgStepDown, 4)
	r.lead()
	if ms := r.step(Msg{Type: MsgLeadQuery, From: 2, Term: 4}); find(ms, MsgApp, 2) == nil || find(ms, MsgStepDown, 2) != nil {
		t.Errorf("a leader answers %+v", ms)
	}
}

// TestUncommittedBound shows the bound: the first proposal always passes, the
// counter comes back to zero with commits and with the loss of leadership.
func TestUncommittedBound(t *testing.T) {
	st := stateOf(three, HardState{}, nil)
	r := &rig{t: t, live: &fakeLive{down: map[NodeID]bool{}}, now: 1e9}
	c, err := NewCore(Config{Node: 1, Liveness: r.live, Tuning: Tuning{UncommittedBytes: 400}}, st, r.now)
	if err != nil {
		t.Fatal(err)
	}
	r.c = c
	r.lead()
	r.step(Msg{Type: MsgAppResp, From: 2, Term: 1, Index: 1})
	propose := func(n int) error {
		var err error
		r.do(true, func(o *Out) {
			_, err = c.Propose(r.now, EntryHeader{}, []Command{{Op: 1, Body: make([]byte, n)}}, o)
		})
		return err
	}
	var busy *BusyError
	if err := propose(1000); err != nil {
		t.Fatalf("the first one: %v", err)
	}
	if err := propose(1); !errors.As(err, &busy) || busy.RetryAfter <= 0 {
		t.Fatalf("over the bound: %v", err)
	}
	r.step(Msg{Type: MsgAppResp, From: 2, Term: 1, Index: 2})
	if c.uncommitted != 0 {
		t.Fatalf("%d bytes left over", c.uncommitted)
	}
	if err := propose(1); err != nil {
		t.Fatal(err)
	}
	r.step(Msg{Type: MsgApp, From: 3, Term: 5})
	if err := propose(1); !errors.Is(err, ErrNotLeader) || c.uncommitted != 0 {
		t.Fatalf("%v, %d bytes", err, c.uncommitted)
	}
	if _, err := c.Propose(r.now, EntryHeader{}, nil, &r.o); !errors.Is(err, ErrNotLeader) {
		t.Fatal(err)
	}
}

// TestTooLarge shows that an entry beyond the hard limit is refused.
func TestTooLarge(t *testing.T) {
	r := newRig(t, stateOf(testDesc(Voter), HardState{}, nil))
	r.lead()
	for _, cmds := range [][]Command{nil, {{Op: 1, Body: make([]byte, MaxEntryBytes)}}} {
		r.do(true, func(o *Out) {
			if _, err := r.c.Propose(r.now, EntryHeader{}, cmds, o); !errors.Is(err, ErrTooLarge) {
				t.Errorf("%d commands: %v", len(cmds), err)
			}
		})
	}
}

// TestTransferErrors shows what a transfer refuses, and that it can be tried
// again after it timed out.
func TestTransferErrors(t *testing.T) {
	r := newRig(t, stateOf(testDesc(Voter, Voter, Voter, Learner), HardState{}, nil))
	try := func(to ReplicaID, want error) {
		t.Helper()
		r.do(true, func(o *Out) {
			if err := r.c.Transfer(r.now, to, o); !errors.Is(err, want) {
				t.Errorf("to %d: %v, want %v", to, err, want)
			}
		})
	}
	try(2, ErrNotLeader)
	r.lead()
	for _, id := range []ReplicaID{1, 4, 9} {
		try(id, ErrTransferTarget)
	}
	r.live.down[3] = true
	try(3, ErrTransferTarget)
	try(2, nil)
	try(2, nil)
	r.live.down[3] = false
	try(3, ErrTransferring)
	if find(r.take(), MsgTimeoutNow, 2) != nil {
		t.Error("TimeoutNow before the target holds the log")
	}
	if m := find(r.step(Msg{Type: MsgAppResp, From: 2, Term: 1, Index: 1}), MsgTimeoutNow, 2); m == nil || m.Flags&FlagGrant == 0 {
		t.Errorf("TimeoutNow %+v", m)
	}
	r.now = r.now.Add(time.Second)
	r.do(true, func(o *Out) { r.c.Tick(r.now, o) })
	try(3, nil)
}

// TestTimeoutNowIsChecked shows that only a voter without a pending
// configuration campaigns by grant, and only for the present leader's term.
func TestTimeoutNowIsChecked(t *testing.T) {
	r := newRig(t, stateOf(testDesc(Learner, Voter, Voter), HardState{Term: 1}, nil))
	r.step(Msg{Type: MsgTimeoutNow, From: 2, Term: 1, Flags: FlagGrant})
	if r.c.hs.Term != 1 {
		t.Error("a learner campaigned")
	}
	r = newRig(t, stateOf(three, HardState{Term: 5}, nil))
	r.step(Msg{Type: MsgTimeoutNow, From: 2, Term: 4, Flags: FlagGrant})
	if r.c.hs.Term != 5 {
		t.Error("an old grant counted")
	}
	if m := r.want(r.step(Msg{Type: MsgTimeoutNow, From: 2, Term: 5, Flags: FlagGrant}), MsgVote, 3); m.Term != 6 || m.Flags&FlagGrant == 0 {
		t.Errorf("vote request %+v", m)
	}
}

// TestBrokenStateIsRefused shows that a core does not start from a state that
// contradicts itself.
func TestBrokenStateIsRefused(t *testing.T) {
	for name, breakIt := range map[string]func(*State){
		"applied behind the log":     func(s *State) { s.Applied.Applied = 9 },
		"cut above applied":          func(s *State) { s.Applied.TruncIndex = 2; s.Applied.Applied = 1 },
		"unapplied entries missing":  func(s *State) { s.Tail = nil },
		"tail with a gap":            func(s *State) { s.Tail = []Entry{s.Tail[0], s.Tail[2]} },
		"tail of other terms":        func(s *State) { s.Runs[0].Term = 2 },
		"runs out of order":          func(s *State) { s.Runs = []TermRun{{1, 2}, {2, 1}} },
		"log without runs":           func(s *State) { s.Runs = nil },
		"hard state before the log":  func(s *State) { s.Hard.Term = 0 },
		"tail behind the last index": func(s *State) { s.Last = 2 },
	} {
		st := stateOf(three, HardState{}, terms(1, 1, 1))
		breakIt(&st)
		if _, err := NewCore(Config{Node: 1, Liveness: &fakeLive{}}, st, 0); !errors.Is(err, ErrCorrupt) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if _, err := NewCore(Config{Node: 9, Liveness: &fakeLive{}}, stateOf(three, HardState{}, nil), 0); err == nil {
		t.Error("a node without a replica got a core")
	}
}

// TestRestartAppliesThroughHint shows rule A2: after a restart entries are
// applied through min(commit hint, last), and no further.
func TestRestartAppliesThroughHint(t *testing.T) {
	for _, c := range []struct{ hint, want Index }{{0, 0}, {2, 2}, {9, 3}} {
		r := newRig(t, stateOf(three, HardState{Commit: c.hint}, terms(1, 1, 1)))
		r.do(true, func(o *Out) {})
		if Index(len(r.done)) != c.want {
			t.Errorf("hint %d: applied %d", c.hint, len(r.done))
		}
	}
}

// TestMalformedAppend shows that entries that do not fit together are dropped
// and counted, and break nothing.
func TestMalformedAppend(t *testing.T) {
	r := newRig(t, stateOf(three, HardState{}, nil))
	for _, ents := range [][]Entry{
		{{Index: 2, Term: 1}}, {{Index: 1, Term: 9}}, {{Index: 1, Term: 2}, {Index: 2, Term: 1}}, {{Index: 1, Term: 1}, {Index: 3, Term: 1}},
	} {
		r.step(Msg{Type: MsgApp, From: 2, Term: 3, Entries: ents})
	}
	if st := r.c.Status(); st.Last != 0 || st.Anomalies != 4 {
		t.Errorf("status %+v", st)
	}
}

// TestSteadyStateAllocs bounds the allocations of the corridor: a proposal
// through append, acknowledgements, commit and apply on the leader.
func TestSteadyStateAllocs(t *testing.T) {
	r := newRig(t, stateOf(three, HardState{}, nil))
	r.lead()
	for _, n := range []NodeID{2, 3} {
		r.step(Msg{Type: MsgAppResp, From: n, Term: 1, Index: 1})
	}
	var o Out
	cmds := []Command{{Op: 1, Body: make([]byte, 128)}}
	ack := Msg{Type: MsgAppResp, Shard: 7, From: 2, FromReplica: 2, To: 1, ToReplica: 1, Term: 1}
	round := func() {
		o.Reset()
		mark, err := r.c.Propose(r.now, EntryHeader{}, cmds, &o)
		if err != nil {
			t.Fatal(err)
		}
		r.c.Flush(r.now, &o)
		r.c.Appended(r.now, mark, &o)
		ack.Index = mark.Index
		for _, n := range []NodeID{2, 3} {
			ack.From, ack.FromReplica = n, ReplicaID(n)
			r.c.Step(r.now, &ack, &o)
		}
		r.c.Flush(r.now, &o)
		for _, a := range o.Applies {
			for _, e := range a.Entries {
				r.c.Applied(e.Index, e.Term, len(e.Value), &o)
			}
		}
		for _, tr := range o.Truncates {
			r.c.Truncated(tr.Index, tr.Term)
		}
	}
	for range 5000 {
		round()
	}
	if n := testing.AllocsPerRun(2000, round); n > 2 {
		t.Errorf("%v allocations per proposal", n)
	}
	if r.c.log.bytes > 2*r.c.tun.TailBytes || r.c.log.last-r.c.log.trunc > 200 {
		t.Errorf("memory %d bytes, disk log %d entries", r.c.log.bytes, r.c.log.last-r.c.log.trunc)
	}
}

// BenchmarkPropose is the leader's side of one committed entry.
func BenchmarkPropose(b *testing.B) {
	live := &fakeLive{}
	c, err := NewCore(Config{Node: 1, Liveness: live}, stateOf(testDesc(Voter), HardState{}, nil), 0)
	if err != nil {
		b.Fatal(err)
	}
	var o Out
	c.Campaign(0, &o)
	c.Appended(0, LogMark{Term: 1}, &o)
	cmds := []Command{{Op: 1, Body: make([]byte, 128)}}
	b.ReportAllocs()
	for b.Loop() {
		o.Reset()
		mark, err := c.Propose(0, EntryHeader{}, cmds, &o)
		if err != nil {
			b.Fatal(err)
		}
		c.Appended(0, mark, &o)
		c.Flush(0, &o)
		for _, a := range o.Applies {
			for _, e := range a.Entries {
				c.Applied(e.Index, e.Term, len(e.Value), &o)
			}
		}
		for _, t := range o.Truncates {
			c.Truncated(t.Index, t.Term)
		}
	}
}

// TestStillHolds shows which promises a slow disk makes worthless.
func TestStillHolds(t *testing.T) {
	r := newRig(t, stateOf(three, HardState{}, nil))
	r.do(true, func(o *Out) { r.c.Campaign(r.now, o) })
	vote := r.want(r.step(Msg{Type: MsgPreVoteResp, From: 2, Term: 1}), MsgVote, 3)
	if !r.c.StillHolds(&vote) {
		t.Error("a running campaign's request")
	}
	ack := r.want(r.step(Msg{Type: MsgApp, From: 2, Term: 1, Entries: terms(1)}), MsgAppResp, 2)
	if r.c.StillHolds(&vote) || !r.c.StillHolds(&ack) {
		t.Error("the campaign is over, the acknowledgement is not")
	}
	r.step(Msg{Type: MsgApp, From: 3, Term: 2})
	if r.c.StillHolds(&ack) {
		t.Error("an acknowledgement to the leader of an older term")
	}
}

// TestTwoChangesOverACrash shows why the commit index is written along with a
// configuration entry. The log of node 1 holds the changes C2 and C3, C2 is
// known to be committed, but neither is applied when the process dies. It must
// not come back and campaign in C1: a majority of C1 need not meet one of C3.
func TestTwoChangesOverACrash(t *testing.T) {
	conf := func(idx Index, ver uint64, n NodeID) Entry {
		cc := ConfChange{ConfVer: ver, Steps: []ConfStep{{Remove: true, Replica: Replica{Node: n}}}}
		return Entry{Index: idx, Term: 1, Type: EntryConf, Value: EncodeEntry(nil, idx, 1, EntryConf, EntryHeader{}, []Command{{Body: cc.Encode(nil)}})}
	}
	r := newRig(t, stateOf(five, HardState{}, nil))
	log := append(terms(1), conf(2, 1, 5), conf(3, 2, 4))
	r.step(Msg{Type: MsgApp, From: 2, Term: 1, Entries: log[:2], Commit: 1})
	r.step(Msg{Type: MsgApp, From: 2, Term: 1, Index: 2, LogTerm: 1, Entries: log[2:], Commit: 2})
	if r.hard.Commit != 2 {
		t.Fatalf("commit index on disk %d", r.hard.Commit)
	}
	r = newRig(t, stateOf(five, r.hard, log)) // nothing was applied
	var ms []Msg
	r.c.Campaign(r.now, &r.o)
	ms = append(ms, r.o.Msgs...)
	if find(ms, MsgPreVote, 2) != nil || r.c.log.commit != 2 {
		t.Fatalf("campaigns in an old configuration: %+v", ms)
	}
}

// TestRefusalTellsCommit shows how a group of {1, 2} that became {1} gets going
// again when 1 forgot that the change was committed and 2, a voter no more,
// refuses its vote for a longer log: the refusal carries the commit index.
func TestRefusalTellsCommit(t *testing.T) {
	cc := ConfChange{ConfVer: 1, Steps: []ConfStep{{Remove: true, Replica: Replica{Node: 2}}}}
	conf := Entry{Index: 2, Term: 1, Type: EntryConf, Value: EncodeEntry(nil, 2, 1, EntryConf, EntryHeader{}, []Command{{Body: cc.Encode(nil)}})}
	r := newRig(t, stateOf(testDesc(Voter, Voter), HardState{}, append(terms(1), conf)))
	r.do(true, func(o *Out) { r.c.Campaign(r.now, o) })
	r.step(Msg{Type: MsgPreVoteResp, From: 2, Term: 1, Flags: FlagReject, Commit: 2, LogTerm: 9})
	if r.c.log.commit != 0 {
		t.Fatal("a commit index of another log was taken over")
	}
	r.step(Msg{Type: MsgPreVoteResp, From: 2, Term: 1, Flags: FlagReject, Commit: 2, LogTerm: 1})
	if r.c.log.commit != 2 || len(r.done) != 2 || r.hard.Commit != 2 {
		t.Fatalf("commit %d, applied %d, on disk %d", r.c.log.commit, len(r.done), r.hard.Commit)
	}

	v := newRig(t, stateOf(three, HardState{Commit: 1}, terms(1, 1)))
	a := v.want(v.step(Msg{Type: MsgPreVote, From: 2, Term: 5, Index: 1, LogTerm: 1}), MsgPreVoteResp, 2)
	if !a.Reject() || a.Commit != 1 || a.LogTerm != 1 {
		t.Fatalf("refusal %+v", a)
	}
}

// TestCutGoesOn: a log that was held back for long is cut to where it may be, though
// one cut is bounded and nothing else happens.
func TestCutGoesOn(t *testing.T) {
	c := newTestCore(t, 1, testDesc(Voter), &fakeLive{}, Tuning{})
	var o Out
	now := c.Deadline()
	cut := Index(0)
	c.Hold(0)
	round := func() {
		c.Tick(now, &o)
		c.Flush(now, &o)
		for k := 0; k < len(o.Applies); k++ {
			for _, e := range o.Applies[k].Entries {
				c.Applied(e.Index, e.Term, len(e.Value), &o)
			}
		}
		for _, t := range o.Truncates {
			cut = t.Index
			c.Truncated(t.Index, t.Term)
		}
		var marks []LogMark
		for _, h := range o.HardStates {
			marks = append(marks, LogMark{Term: h.State.Term})
		}
		for _, a := range o.Appends {
			marks = append(marks, a.Mark)
		}
		o.Reset()
		for _, m := range marks {
			c.Appended(now, m, &o)
		}
	}
	for range 10 {
		if d := c.Deadline(); d != Never {
			now = max(now, d)
		}
		round()
	}
	const entries = truncMaxEntries + 5000
	for i := range entries {
		if _, err := c.Propose(now, EntryHeader{GroupTs: uint64(i + 1)}, []Command{{Body: []byte("x")}}, &o); err != nil {
			t.Fatal(i, err)
		}
		if i%500 == 0 {
			round()
			round()
		}
	}
	for range 10 {
		round()
	}
	st := c.Status()
	if st.Applied < entries || cut != 0 {
		t.Fatalf("applied %d, cut %d", st.Applied, cut)
	}
	c.Hold(st.Applied)
	for range 20 {
		if d := c.Deadline(); d != Never {
			now = max(now, d)
		}
		round()
	}
	if cut != st.Applied {
		t.Errorf("cut through %d of %d, and nothing is due: %v", cut, st.Applied, c.Deadline() == Never)
	}
}
