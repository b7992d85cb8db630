package multiraft

import (
	"errors"
	"testing"

	"github.com/flotillakv/flotilla/engine"
	"github.com/flotillakv/flotilla/multiraft/raft"
)

// TestForgetfulFollower: a follower that comes back without entries that it
// acknowledged is no follower that lags. It is told, shown to people, and counts
// for nothing: not for what is committed, and, with the other one gone, the error
// of who asks says why there is no quorum.
func TestForgetfulFollower(t *testing.T) {
	r := newRig(t)
	var found []AmnesiaError
	r.h.onForget = func(e AmnesiaError) { found = append(found, e) }
	r.lead(2)
	for range 4 {
		r.propose("x")
	}
	r.in(raft.Msg{Type: raft.MsgAppResp, From: 2, Term: 1, Index: 5, Boot: 3})
	r.ack(3)
	if st := r.rep().core.Status(); st.Commit != 5 {
		t.Fatalf("commit %d", st.Commit)
	}
	// A refusal of before its acknowledgement is late, not a lie.
	r.in(raft.Msg{Type: raft.MsgAppResp, Flags: raft.FlagReject, From: 2, Term: 1, Commit: 4, Index: 2, LogTerm: 1, Boot: 3})
	if len(found) != 0 {
		t.Fatalf("a late refusal: %v", &found[0])
	}
	r.sent = nil
	r.in(raft.Msg{Type: raft.MsgAppResp, Flags: raft.FlagReject, From: 2, Term: 1, Commit: 5, Index: 2, LogTerm: 1, Boot: 4})
	if len(found) != 1 || found[0].Node != 2 || found[0].Index != 5 || found[0].Has != 2 || r.h.Stats().Amnesiacs != 1 {
		t.Fatalf("found %+v, counted %d", found, r.h.Stats().Amnesiacs)
	}
	if m := r.took(raft.MsgForgot); len(m) != 1 || m[0].To != 2 || m[0].Index != 5 || m[0].LogTerm != 1 {
		t.Fatalf("it was told %+v", m)
	}
	// Its word counts for nothing, and it gets no entries.
	o := r.propose("y")
	r.in(raft.Msg{Type: raft.MsgAppResp, From: 2, Term: 1, Index: 6, Boot: 4})
	if o.n != 0 || len(r.to(2, raft.MsgApp)) != 0 {
		t.Fatalf("committed by who forgot: %v, sent %v", o, r.to(2, raft.MsgApp))
	}
	r.ack(3)
	if o.n != 1 || o.err != nil {
		t.Fatalf("with the other follower: %+v", o)
	}
	// Without the third there is no quorum, and the reason is said.
	r.until = 0
	r.now += raft.Time(10e9)
	r.on(func(now raft.Time) { r.h.LivenessChanged(3) })
	r.now += raft.Time(10e9)
	r.turn()
	o = r.propose("z")
	var nq *NoQuorumError
	if !errors.As(o.err, &nq) || len(nq.Forgot) != 1 || nq.Forgot[0] != 2 || len(nq.Down) != 1 || nq.Down[0] != 3 {
		t.Fatalf("without a quorum: %v", o.err)
	}
	t.Log(nq)
}

// TestForgetfulVoter: who voted in a term and comes back in an earlier one has
// lost its vote, and gets none.
func TestForgetfulVoter(t *testing.T) {
	r := newRig(t)
	r.lead(2)
	r.in(raft.Msg{Type: raft.MsgVote, From: 3, Term: 4, Index: 0, Boot: 7})
	r.sent = nil
	r.in(raft.Msg{Type: raft.MsgPreVote, From: 3, Term: 5, Index: 9, LogTerm: 4, Boot: 8})
	if len(r.took(raft.MsgForgot)) != 0 {
		t.Fatal("the next campaign is no loss")
	}
	r.in(raft.Msg{Type: raft.MsgVote, From: 3, Term: 4, Index: 9, LogTerm: 3, Boot: 8})
	if m := r.took(raft.MsgForgot); len(m) != 1 || m[0].Index != 0 || m[0].Commit != 4 || r.h.Stats().Amnesiacs != 1 {
		t.Fatalf("a second campaign in the same term: %+v", m)
	}
}

// TestForgetfulSelf: a replica that is told so, and does lack it, stops its node
// for good; the store does not open again.
func TestForgetfulSelf(t *testing.T) {
	r := newRig(t)
	r.follow(0, rigEntry(1, raft.EntryEmpty, ""), rigEntry(2, raft.EntryNormal, "a"))
	r.in(raft.Msg{Type: raft.MsgForgot, From: 2, Term: 1, Index: 2, LogTerm: 1})
	if r.l.failed {
		t.Fatal("it holds what it is said to lack")
	}
	r.in(raft.Msg{Type: raft.MsgForgot, From: 2, Term: 1, Index: 7, LogTerm: 1})
	if err := <-r.fatal; !errors.Is(err, engine.ErrAmnesia) {
		t.Fatalf("stopped by %v", err)
	}
	if err := r.e.SyncNow(); !errors.Is(err, engine.ErrAmnesia) {
		t.Fatalf("the store: %v", err)
	}
}

// to returns what was sent to a node.
func (r *rig) to(node raft.NodeID, typ raft.MsgType) (out []raft.Msg) {
	for _, m := range r.sent {
		if m.To == node && m.Type == typ {
			out = append(out, m)
		}
	}
	return out
}
