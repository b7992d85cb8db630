package multiraft

import (
	"errors"
	"fmt"
	"testing"
	"time"

	"github.com/flotillakv/flotilla/multiraft/raft"
)

// TestStatesAreCompared: a group that has come to rest is compared by what it holds, once;
// one that moved meanwhile is not; a member that holds something else is condemned.
func TestStatesAreCompared(t *testing.T) {
	r := newRig(t)
	r.h.stateEvery = time.Minute
	r.leads()
	q := r.asked()
	mine := r.rep().as.Digest
	r.tell(q, 2, mine)
	r.tell(q, 3, mine)
	q = r.asked()
	r.settle(func() bool { return r.rep().known() })
	state := r.rep().cmp.question.mine
	if q.Flags != raft.FlagProbe || q.Index != 2 || state == mine {
		t.Fatalf("asked %+v", q)
	}
	q.Epoch = raft.Epoch(stateChain)
	r.tell(q, 2, state)
	r.tell(q, 3, state)
	if c := &r.rep().cmp; c.stated != 2 || c.at != raft.Never {
		t.Fatalf("compared through %d, again at %d", c.stated, c.at)
	}
	r.propose("b")
	r.ack(2)
	q = r.asked()
	mine = r.rep().as.Digest
	r.tell(q, 2, mine)
	r.tell(q, 3, mine)
	q = r.asked()
	r.settle(func() bool { return r.rep().known() })
	r.propose("c") // no rest
	r.ack(2)
	q.Epoch = raft.Epoch(stateChain)
	r.sent = nil
	r.tell(q, 2, state+1)
	r.tell(q, 3, state)
	if len(r.sent) != 0 || r.rep().closed() != nil || r.rep().cmp.state {
		t.Fatalf("judged states of another index: %+v", r.sent)
	}
	q = r.asked()
	if q.Flags&raft.FlagProbe != 0 {
		t.Fatalf("asked %+v", q)
	}
	mine = r.rep().as.Digest
	r.tell(q, 2, mine)
	r.tell(q, 3, mine)
	q = r.asked()
	r.settle(func() bool { return r.rep().known() })
	state = r.rep().cmp.question.mine
	q.Epoch = raft.Epoch(stateChain)
	r.tell(q, 2, state)
	r.sent = nil
	r.tell(q, 3, state+1)
	if v := r.took(raft.MsgDigestVerdict); len(v) != 2 || v[1].To != 3 || !v[1].Reject() || v[1].Round != uint64(state) || raft.Index(v[1].Epoch) != stateChain {
		t.Fatalf("verdict %+v", v)
	}
}

// TestFollowerTellsItsState: only at the index that it has applied; and what it told
// is what it is held to.
func TestFollowerTellsItsState(t *testing.T) {
	r := newRig(t)
	r.followed()
	ask := func(i raft.Index) raft.Msg {
		r.sent = nil
		r.in(raft.Msg{Type: raft.MsgDigest, From: 2, Term: 1, Index: i, Flags: raft.FlagProbe})
		var a []raft.Msg
		r.settle(func() bool { a = append(a, r.took(raft.MsgDigestResp)...); return len(a) > 0 })
		return a[0]
	}
	if a := ask(3); !a.Reject() {
		t.Fatalf("an index not applied: %+v", a)
	}
	a := ask(2)
	if a.Reject() || raft.Index(a.Epoch) != stateChain || a.Index != 2 {
		t.Fatalf("answered %+v", a)
	}
	b := r.e.NewBatch()
	b.Set(1, []byte("k"), []byte("v"))
	if err := b.Commit(false); err != nil {
		t.Fatal(err)
	}
	b.Close()
	if o := ask(2); o.Round == a.Round || o.Reject() {
		t.Fatalf("what it holds has changed, and its digest has not: %+v", o)
	}
	r.in(raft.Msg{Type: raft.MsgDigestVerdict, Flags: raft.FlagReject, From: 2, Term: 1, Index: 2, Round: a.Round, Epoch: raft.Epoch(stateChain)})
	if !errors.Is(r.rep().closed(), ErrDiverged) {
		t.Fatal("it differs, and serves")
	}
	if o := ask(2); !o.Reject() {
		t.Fatalf("in quarantine: %+v", o)
	}
}

// settle turns the loop until something that happens aside has happened.
func (r *rig) settle(is func() bool) {
	r.t.Helper()
	end := time.Now().Add(20 * time.Second)
	for tick := time.NewTicker(time.Millisecond); !is(); <-tick.C {
		if r.turn(); time.Now().After(end) {
			r.t.Fatal(fmt.Errorf("waited in vain"))
		}
	}
}
