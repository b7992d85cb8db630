package multiraft

import (
	"errors"
	"testing"

	"github.com/flotillakv/flotilla/multiraft/raft"
)

// bigApp is a message from the leader on node 2 with one entry of size bytes.
func bigApp(i raft.Index, size int) raft.Msg {
	e := rigEntry(i, raft.EntryNormal, string(make([]byte, size)))
	return raft.Msg{Type: raft.MsgApp, Shard: 7, From: 2, To: 1, FromReplica: 2, ToReplica: 1, Term: 1, Index: i - 1, LogTerm: min(1, raft.Term(i-1)), Entries: []raft.Entry{e}}
}

// TestInboxBounds: messages are dropped when too many of them, or too many bytes
// of entries, wait in the inbox and behind it. The next messages are not taken
// out before the earlier ones are through, and keep their order.
func TestInboxBounds(t *testing.T) {
	r := newRig(t)
	const n = 20
	for i := raft.Index(1); i <= n; i++ {
		if !r.l.in.putMsgs([]raft.Msg{bigApp(i, 1<<20)}) {
			t.Fatalf("message %d was dropped", i)
		}
	}
	r.l.step(r.now)
	b := &r.l.backlog
	if b.empty() || r.l.in.heldMsgs != len(b.msgs)-b.next || r.l.in.heldBytes != b.bytes || b.bytes < 15<<20 || b.bytes > 17<<20 {
		t.Fatalf("backlog of %d bytes in %d messages; the inbox counts %d in %d", b.bytes, len(b.msgs)-b.next, r.l.in.heldBytes, r.l.in.heldMsgs)
	}
	if r.l.in.putMsgs([]raft.Msg{bigApp(n+1, 3<<20), {Entries: make([]raft.Entry, 1)}, {Entries: []raft.Entry{{Value: make([]byte, maxInboxMsgBytes-18<<20)}}}}) {
		t.Fatal("the bytes of the backlog do not count")
	}
	if !r.l.in.putMsgs([]raft.Msg{bigApp(n+1, 100)}) {
		t.Fatal("a small message was dropped")
	}
	r.l.syncer.step()
	r.now++
	r.l.step(r.now)
	if len(r.l.in.in.msgs) != 1 {
		t.Fatal("a message was taken out although earlier ones wait")
	}
	r.turn()
	if last := r.rep().core.Status().Last; last != n+1 || r.l.in.heldMsgs != 0 || r.l.in.heldBytes != 0 || r.l.in.msgBytes != 0 {
		t.Fatalf("log through %d; still counted: %d messages, %d and %d bytes", last, r.l.in.heldMsgs, r.l.in.heldBytes, r.l.in.msgBytes)
	}
	heartbeat := raft.Msg{Type: raft.MsgCommit, Shard: 9}
	if !r.l.in.putMsgs([]raft.Msg{heartbeat}) {
		t.Fatal("one message was dropped")
	}
	r.l.in.hold(maxInboxMsgs-1, 0)
	if r.l.in.putMsgs([]raft.Msg{heartbeat}) || r.l.in.dropped != 4 {
		t.Fatalf("messages without entries are not counted; dropped %d", r.l.in.dropped)
	}
}

// TestProposalsHaveTheirShare: proposals get into every round, however much
// comes in from other leaders, and groups with much to propose take turns.
func TestProposalsHaveTheirShare(t *testing.T) {
	r := newRig(t)
	other := rigDesc()
	other.Shard = 8
	if err := r.h.CreateGroups([]raft.Descriptor{other}); err != nil {
		t.Fatal(err)
	}
	r.lead(2)
	r.ack(2)
	before := r.rep().core.Status().Last
	for i := raft.Index(1); i <= 20; i++ {
		m := bigApp(i, 1<<20)
		m.Shard = 8
		r.l.in.putMsgs([]raft.Msg{m})
	}
	r.l.step(r.now)
	late := len(r.l.backlog.msgs) - r.l.backlog.next
	r.proposeOnly("mine")
	r.l.syncer.step()
	r.now++
	r.l.step(r.now)
	if last := r.rep().core.Status().Last; last != before+1 {
		t.Fatalf("the proposal waits behind %d messages", late)
	}
	if n := late - (len(r.l.backlog.msgs) - r.l.backlog.next); n != 2 {
		t.Fatalf("%d messages in a round shared with proposals, want 2", n)
	}
	r.turn()
	r.ack(2)

	a, b := &replica{shard: 1, loop: r.l, heapPos: -1}, &replica{shard: 2, loop: r.l, heapPos: -1}
	a.core, b.core = r.rep().core, r.rep().core
	big := proposal{cmd: raft.Command{Op: 1, Body: make([]byte, 64<<10)}, size: 64 << 10}
	for range 8 {
		a.queue, b.queue = append(a.queue, big), append(b.queue, big)
	}
	r.l.queued = append(r.l.queued, a, b)
	r.l.roundBytes, r.l.ownBytes = maxRoundBytes, maxRoundBytes/2-64<<10*2 // room for two
	r.l.proposeQueued(r.now)
	if len(a.queue) != 6 || len(b.queue) != 8 || r.l.queued[0] != b || r.l.queued[1] != a {
		t.Fatalf("%d and %d left, first in line is %d", len(a.queue), len(b.queue), r.l.queued[0].shard)
	}
	r.l.queued, r.l.touched = nil, nil
}

// TestReadBudget: reads are refused when too many wait, and count no longer
// than they wait.
func TestReadBudget(t *testing.T) {
	r := newRig(t)
	r.lead(2)
	r.ack(2)
	first := r.read()
	r.turn()
	if n := r.h.reads.Load(); n != 1 {
		t.Fatalf("%d reads counted", n)
	}
	r.h.reads.Add(maxReads - 1)
	over := r.read()
	var busy *OverloadedError
	if !errors.As(over.err, &busy) || over.n != 1 {
		t.Fatalf("one read too many: %v", over.err)
	}
	r.h.reads.Add(1 - maxReads)
	for _, m := range r.sent {
		if m.Round != 0 && m.To == 2 {
			r.in(raft.Msg{Type: raft.MsgCommitResp, From: 2, Term: m.Term, Round: m.Round})
		}
	}
	if n := r.h.reads.Load(); n != 0 || first.n != 1 || first.err != nil {
		t.Fatalf("%d reads counted; the first one was told %d times: %v", n, first.n, first.err)
	}
	last := r.read()
	r.turn()
	r.h.Close()
	if n := r.h.reads.Load(); n != 0 || !errors.Is(last.err, ErrClosed) {
		t.Fatalf("%d reads counted after Close; %v", n, last.err)
	}
}
