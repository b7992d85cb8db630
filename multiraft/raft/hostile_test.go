package raft

import (
	"fmt"
	"math/rand/v2"
	"testing"
)

// TestNumbersBeyondReason: a term or an index that no cluster reaches is dropped
// and counted: taken over, it would leave the group no room for another one.
func TestNumbersBeyondReason(t *testing.T) {
	if err := beyondReason(t); err != nil {
		t.Error(err)
	}
}

func beyondReason(t *testing.T) (fault error) {
	huge := uint64(1) << 62
	for name, m := range map[string]Msg{
		"append of the last term":     {Type: MsgApp, Term: ^Term(0)},
		"vote in the last term":       {Type: MsgVote, Term: ^Term(0), Index: 9, LogTerm: 9},
		"pre-vote in a huge term":     {Type: MsgPreVote, Term: Term(huge), Index: 9, LogTerm: 9},
		"vote with a huge log":        {Type: MsgVote, Term: 2, Index: Index(huge), LogTerm: 9},
		"vote with a log of the last": {Type: MsgVote, Term: 2, Index: 9, LogTerm: ^Term(0)},
		"huge commit":                 {Type: MsgCommit, Term: 1, Commit: ^Index(0)},
		"huge place to compact to":    {Type: MsgCommit, Term: 1, CompactTo: Index(huge)},
		"append behind a huge index":  {Type: MsgApp, Term: 1, Index: ^Index(0)},
		"huge acknowledgement":        {Type: MsgAppResp, Term: 1, Index: ^Index(0)},
		"step down in a huge term":    {Type: MsgStepDown, Term: ^Term(0)},
		"snapshot of a huge index":    {Type: MsgSnapStatus, Index: ^Index(0)},
	} {
		r := newRig(t, stateOf(three, HardState{Term: 1}, terms(1, 1, 1)))
		m.From = 2
		before := r.c.Status()
		if ms := r.step(m); len(ms) != 0 {
			fault = fmt.Errorf("%s is answered with %+v", name, ms)
		}
		st := r.c.Status()
		if st.Anomalies != before.Anomalies+1 || st.Term != 1 || st.Commit != before.Commit || st.Last != 3 {
			fault = fmt.Errorf("%s: %+v", name, st)
		}
	}
	return fault
}

// TestHostileMessages throws messages of every type with fields drawn from what
// lies at the edges at replicas in every role. Whatever they do to the group
// they are about, which a member may harm, they never panic a node, and never
// move what is committed.
func TestHostileMessages(t *testing.T) {
	runs := 300
	if testing.Short() {
		runs = 50
	}
	for seed := range uint64(runs) {
		rng := rand.New(rand.NewPCG(seed, 7))
		r := newRig(t, stateOf(three, HardState{Term: 2, Commit: 2}, terms(1, 1, 2, 2)))
		if seed%3 == 0 {
			r.lead()
		}
		pick := func(near uint64) uint64 {
			switch rng.IntN(12) {
			case 0:
				return ^uint64(0) >> rng.IntN(4)
			case 1:
				return rng.Uint64()
			case 2:
				return 0
			}
			return near + uint64(rng.IntN(5)) - min(near, 2)
		}
		for range 400 {
			st := r.c.Status()
			m := Msg{
				Type: MsgType(rng.IntN(22)), Flags: uint8(rng.IntN(16)), Shard: 7, From: NodeID(rng.IntN(5)), To: 1,
				FromReplica: ReplicaID(rng.IntN(6)), ToReplica: 1,
				Term: Term(pick(uint64(st.Term))), Index: Index(pick(uint64(st.Last))), LogTerm: Term(pick(uint64(st.LastTerm))),
				Commit: Index(pick(uint64(st.Commit))), CompactTo: Index(pick(uint64(st.Trunc))), Epoch: Epoch(pick(1)), Round: pick(1),
			}
			if rng.IntN(4) > 0 {
				m.FromReplica = ReplicaID(m.From)
			}
			if rng.IntN(12) == 0 {
				m.ToReplica, m.Shard = ReplicaID(rng.IntN(3)), ShardID(6+rng.IntN(3))
			}
			if rng.IntN(2) == 0 {
				term, at := Term(pick(uint64(st.Term))), m.Index
				for range rng.IntN(4) {
					at++
					if rng.IntN(10) == 0 {
						at++
					}
					if rng.IntN(10) == 0 {
						term--
					}
					m.Entries = append(m.Entries, Entry{Index: at, Term: term, Type: EntryEmpty, Value: EncodeEntry(nil, at, term, EntryEmpty, EntryHeader{}, nil)})
				}
			}
			r.do(rng.IntN(4) > 0, func(o *Out) { r.c.Step(r.now, &m, o) })
			r.take()
			after := r.c.Status()
			if after.Commit < st.Commit || after.Applied < st.Applied || after.Commit > after.Last || after.Term < st.Term || uint64(after.Term)>>63 != 0 {
				t.Fatalf("seed %d: %+v became %+v by %+v", seed, st, after, m)
			}
			if rng.IntN(8) == 0 {
				r.now = r.now.Add(50e6)
				r.do(true, func(o *Out) { r.c.Tick(r.now, o) })
			}
		}
	}
}
