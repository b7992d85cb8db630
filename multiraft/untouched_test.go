package multiraft

import (
	"errors"
	"fmt"
	"slices"
	"testing"

	"github.com/flotillakv/flotilla/engine"
	"github.com/flotillakv/flotilla/multiraft/raft"
)

// rigDealt deals shards [first, first+n) of keyspace 2 to nodes 1, 2 and 3, with lead as
// their leader; zero: each to another one.
type rigDealt struct {
	first, n raft.ShardID
	lead     raft.NodeID
}

func (d rigDealt) Leader(s raft.ShardID) raft.NodeID {
	if d.lead != 0 {
		return d.lead
	}
	return raft.NodeID(1 + s%3)
}

func (d rigDealt) Each(f func(raft.ShardID, []raft.Replica) bool) {
	for s := range d.n {
		if !f(d.first+s, rigDesc().Replicas) {
			return
		}
	}
}

func (d rigDealt) Descriptor(s raft.ShardID) (raft.Descriptor, bool) {
	if s < d.first || s >= d.first+d.n {
		return raft.Descriptor{}, false
	}
	desc := rigDesc()
	desc.Shard, desc.Keyspace, desc.Start = s, 2, fmt.Appendf(nil, "%04d", s)
	if s+1 < d.first+d.n {
		desc.End = fmt.Appendf(nil, "%04d", s+1)
	}
	return desc, true
}

// untouchedCases are the rules of groups that nobody used, to be broken one by one.
var untouchedCases = []struct {
	name string
	run  func(*testing.T) error
}{{"first", untouchedFirst}, {"vote", untouchedVote}, {"gone", untouchedGone}, {"quiet", untouchedQuiet}, {"turns", untouchedTurns}, {"storm", wakeStorm}, {"line", wakeLine}, {"orphans", wakeOrphans}, {"calls", wakeCalls}}

func TestUntouchedRules(t *testing.T) {
	for _, c := range untouchedCases {
		t.Run(c.name, func(t *testing.T) {
			if err := c.run(t); err != nil {
				t.Fatal(err)
			}
		})
	}
}

// untouchedFirst: a group without a record is seen like any other, and its first request
// has it campaign.
func untouchedFirst(t *testing.T) error {
	r := newRig(t)
	if err := r.h.AddUntouched(rigDealt{1, 100, 0}); err != nil { // 7 is there already
		return err
	}
	if err := r.h.AddUntouched(rigDealt{1, 100, 0}); err == nil {
		return errors.New("added twice")
	}
	if c := r.h.Census(); c.Replicas != 100 || c.Asleep != 99 {
		return fmt.Errorf("%+v", c)
	}
	if _, ok, err := r.e.Load(8); ok || err != nil {
		return fmt.Errorf("the store has a record of it: %v, %w", ok, err)
	}
	all := r.h.Views()
	if len(all) != 100 || all[6].Desc.Keyspace != 1 || string(all[7].Desc.Start) != "0008" || all[7].Replica != 1 || !all[7].Asleep {
		return fmt.Errorf("%d views, %+v", len(all), all[7])
	}
	if some := r.h.SomeViews(10); len(some) != 10 || !slices.ContainsFunc(some, func(v View) bool { return v.Shard == 7 && !v.Asleep }) {
		return fmt.Errorf("%d of at most 10 views, %+v", len(some), some)
	}
	var err error
	r.h.Propose(8, raft.Command{Op: 1}, func(_ []byte, _ raft.Index, _ uint32, e error) { err = e })
	if elsewhere := new(NotLeaderError); !errors.As(err, &elsewhere) || elsewhere.Leader != 0 {
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

// untouchedVote: what a replica promises when it is used first is not forgotten, whatever
// was there of it before.
func untouchedVote(t *testing.T) error {
	r := newRig(t)
	if err := r.h.AddUntouched(rigDealt{1, 100, 0}); err != nil {
		return err
	}
	r.l.in.putMsgs([]raft.Msg{{Type: raft.MsgVote, Shard: 9, From: 2, FromReplica: 2, To: 1, ToReplica: 1, Term: 5}})
	r.sent = nil
	r.turn()
	if !slices.ContainsFunc(r.sent, func(m raft.Msg) bool { return m.Type == raft.MsgVoteResp && m.Shard == 9 && !m.Reject() }) {
		return fmt.Errorf("no vote was given: %v", r.sent)
	}
	states, err := r.e.Boot()
	if err != nil {
		return err
	}
	i := slices.IndexFunc(states, func(s engine.GroupState) bool { return s.Desc.Shard == 9 })
	if i < 0 || states[i].Hard.Term != 5 || states[i].Hard.Vote != 2 || string(states[i].Desc.Start) != "0009" {
		return fmt.Errorf("after a restart the vote is not known: %+v", states)
	}
	return nil
}

// untouchedGone: a replica that was destroyed is not one that was never used.
func untouchedGone(t *testing.T) error {
	r := newRig(t)
	d, _ := rigDealt{1, 100, 0}.Descriptor(10)
	if err := r.e.Destroy(10, &d, 2); err != nil {
		return err
	}
	if err := r.h.AddUntouched(rigDealt{1, 100, 0}); err != nil {
		return err
	}
	if v, ok := r.h.View(10); ok {
		return fmt.Errorf("it is back: %+v", v)
	}
	return nil
}

// untouchedQuiet: nobody campaigns for a group that was never used, and who is asked to
// vote keeps to that.
func untouchedQuiet(t *testing.T) error {
	r := newRig(t)
	r.until = 0
	r.turn()
	r.until = 1 << 61
	if err := r.h.AddUntouched(rigDealt{1, 100, 0}); err != nil {
		return err
	}
	r.sent = nil
	r.l.scanFrom(r.now)
	for range 20 {
		r.now = r.now.Add(scanEvery)
		r.turn()
	}
	if r.l.scanLeft != 0 {
		return errors.New("the loop did not come by")
	}
	if c := r.h.Census(); c.Asleep != 99 {
		return fmt.Errorf("%+v, sent %v", c, r.sent)
	}
	return nil
}

// untouchedTurns: a replica that was used elects a leader after a restart, though it would
// be for another node, whose replica was never used and does not know of it.
func untouchedTurns(t *testing.T) error {
	r := newRig(t)
	g := ground{kind: kindUnsure, members: membersOf(nil, &raft.Descriptor{Replicas: rigDesc().Replicas})}
	shard := raft.ShardID(20)
	for r.h.electRank(shard, &g) != 2 {
		shard++
	}
	d, _ := rigDealt{1, 1000, 0}.Descriptor(shard)
	r.h.awake, r.until = 0, 0
	if err := r.h.CreateGroups([]raft.Descriptor{d}); err != nil {
		return err
	}
	r.turn()
	r.until = 1 << 61
	r.sent = nil
	r.l.scanFrom(r.now)
	for turn := range 60 {
		r.now = r.now.Add(scanEvery)
		r.turn()
		if v, _ := r.h.View(shard); v.Asleep {
			continue
		}
		if turn < 10 {
			return fmt.Errorf("it campaigns before the others had their turn")
		}
		if r.l.scanLeft != 0 {
			return errors.New("the loop goes on for ever")
		}
		return nil
	}
	return errors.New("nobody elects")
}

// wakeLine: of groups that are woken by who looks for their leaders, this node campaigns at
// once for those that were dealt to it, and leaves the others asleep: to the nodes that they were
// dealt to, for a while, if these are alive. However many groups are used first at the same
// time, they are led as evenly as they were dealt.
func wakeLine(t *testing.T) error {
	r := newRig(t)
	const n = 3000
	deal := rigDealt{100, n, 0}
	if err := r.h.AddUntouched(deal); err != nil {
		return err
	}
	ask := func() {
		for s := range raft.ShardID(n) {
			r.h.Propose(100+s, raft.Command{Op: 1}, func([]byte, raft.Index, uint32, error) {})
		}
	}
	asked := make(map[raft.ShardID]bool)
	campaign := func() {
		r.sent = nil
		r.turn()
		for _, m := range r.sent {
			if m.Type == raft.MsgPreVote && m.Shard >= 100 {
				asked[m.Shard] = true
			}
		}
	}
	from := r.now
	for range 3 { // nor does it help to ask again
		ask()
		campaign()
	}
	if r.now >= from.Add(standBack) {
		return errors.New("the test takes too long")
	}
	for s := range raft.ShardID(n) {
		v, _ := r.h.View(100 + s)
		if mine := deal.Leader(100+s) == 1; asked[100+s] != mine || v.Asleep == mine {
			return fmt.Errorf("shard %d was dealt to node %d: this one campaigns %v, sleeps %v", 100+s, deal.Leader(100+s), asked[100+s], v.Asleep)
		}
	}
	// One of the others elects, and it is over: who follows is not woken.
	d, _ := deal.Descriptor(101)
	app := raft.Msg{Type: raft.MsgApp, Shard: 101, From: deal.Leader(101), FromReplica: raft.ReplicaID(deal.Leader(101)), To: 1, ToReplica: 1, Term: 1, Flags: raft.FlagFortify}
	app.Entries = []raft.Entry{{Index: 1, Term: 1, Type: raft.EntryEmpty, Value: raft.EncodeEntry(nil, 1, 1, raft.EntryEmpty, raft.EntryHeader{}, nil)}}
	r.l.in.putMsgs([]raft.Msg{app})
	clear(asked)
	for range 10 {
		r.now = r.now.Add(standBack / 2)
		campaign()
	}
	if asked[101] {
		return fmt.Errorf("a campaign against the leader of shard %d", d.Shard)
	}
	if len(asked) != n-1 {
		return fmt.Errorf("in the end this node campaigns for %d of %d groups that nobody else led", len(asked), n-1)
	}
	return nil
}

// wakeOrphans: what was dealt to a node that is dead is not waited for.
func wakeOrphans(t *testing.T) error {
	r := newRig(t)
	const n = 300
	if err := r.h.AddUntouched(rigDealt{100, n, 2}); err != nil {
		return err
	}
	r.dead = 2
	for s := range raft.ShardID(n) {
		r.h.Propose(100+s, raft.Command{Op: 1}, func([]byte, raft.Index, uint32, error) {})
	}
	r.sent = nil
	from := r.now
	r.turn()
	asked := 0
	for _, m := range r.sent {
		if m.Type == raft.MsgPreVote && m.Shard >= 100 && m.To == 3 {
			asked++
		}
	}
	// Half of them are for the other one that is left.
	if asked < n/3 || asked > n*2/3 || r.now >= from.Add(standBack) {
		return fmt.Errorf("it campaigns for %d of %d groups of a dead node", asked, n)
	}
	return nil
}

// wakeCalls: however many leaders are looked for, messages have their turn in between.
func wakeCalls(t *testing.T) error {
	r := newRig(t)
	const n = 3000
	if err := r.h.AddUntouched(rigDealt{100, n, 1}); err != nil {
		return err
	}
	for s := range raft.ShardID(n - 1) {
		for range 2 {
			r.h.Propose(100+s, raft.Command{Op: 1}, func([]byte, raft.Index, uint32, error) {})
		}
	}
	r.l.in.putMsgs([]raft.Msg{{Type: raft.MsgPreVote, Shard: 100 + n - 1, From: 2, FromReplica: 2, To: 1, ToReplica: 1, Term: 1}})
	r.now += 1000
	r.l.step(r.now)
	if got := r.h.table.count(); got > maxRoundBytes/wakeBytes+2 {
		return fmt.Errorf("%d woke in one round", got)
	}
	if r.l.byID[100+n-1] == nil {
		return errors.New("a message waits until all are awake")
	}
	r.turn()
	if got := r.h.table.count(); got != n+1 {
		return fmt.Errorf("%d of %d are awake", got, n+1)
	}
	return nil
}

// wakeStorm: however many sleeping replicas something comes for at once, a round wakes a
// bounded number of them, and all have their turn.
func wakeStorm(t *testing.T) error {
	r := newRig(t)
	const n = 3000
	if err := r.h.AddUntouched(rigDealt{100, n, 0}); err != nil {
		return err
	}
	var storm []raft.Msg
	for s := range raft.ShardID(n) {
		storm = append(storm, raft.Msg{Type: raft.MsgPreVote, Shard: 100 + s, From: 2, FromReplica: 2, To: 1, ToReplica: 1, Term: 1})
	}
	r.sent = nil
	r.l.in.putMsgs(storm)
	for awake := 1; ; {
		r.now += 1000
		did := r.l.step(r.now)
		now := r.h.table.count()
		if now-awake > maxRoundBytes/wakeBytes+1 {
			return fmt.Errorf("%d woke in one round", now-awake)
		}
		awake = now
		if r.l.inFlight > 0 {
			r.l.syncer.step()
		} else if !did {
			break
		}
	}
	answered := 0
	for _, m := range r.sent {
		if m.Type == raft.MsgPreVoteResp {
			answered++
		}
	}
	if answered != n {
		return fmt.Errorf("%d of %d were answered", answered, n)
	}
	return nil
}
