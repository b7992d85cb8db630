package transport

import (
	"bytes"
	"testing"

	"github.com/flotillakv/flotilla/multiraft/raft"
)

// Two nodes exchange messages with entries and control records both ways.
func TestExchange(t *testing.T) {
	checkLeaks(t)
	a, ra := startNode(t, 1, 1, Options{})
	b, rb := startNode(t, 2, 1, Options{})
	a.SetPeer(2, b.Addr())
	b.SetPeer(1, a.Addr())
	ra.waitUp(t, 2)
	rb.waitUp(t, 1)

	a.SendCtl(2, raft.Ctl{Kind: raft.CtlHeartbeat, Epoch: 5, Seq: 6, Wall: 7, Score: 8})
	a.Send(2, []raft.Msg{
		{Type: raft.MsgApp, Flags: raft.FlagFortify, Shard: 9, FromReplica: 3, ToReplica: 4, Term: 5, Index: 10, LogTerm: 4,
			Commit: 8, CompactTo: 2, Epoch: 11, Round: 12, Entries: []raft.Entry{testEntry(11, 5, []byte("one")), testEntry(12, 5, []byte("two"))}},
		{Type: raft.MsgCommit, Shard: 7, Term: 2, Commit: 3},
	})
	rb.wait(t, "two messages and a control record", func() bool { return len(rb.msgs[1]) == 2 && len(rb.ctl[1]) == 1 })
	m := rb.msgs[1][0]
	if m.From != 1 || m.To != 2 || m.Shard != 9 || m.Term != 5 || m.Index != 10 || m.Epoch != 11 || m.Round != 12 || len(m.Entries) != 2 {
		t.Fatalf("got %+v", m)
	}
	if e := m.Entries[1]; e.Index != 12 || e.Term != 5 || e.Type != raft.EntryNormal || !bytes.Equal(e.Value, testEntry(12, 5, []byte("two")).Value) {
		t.Fatalf("got entry %+v", e)
	}
	if c := rb.ctl[1][0]; c.Epoch != 5 || c.Seq != 6 || c.Wall != 7 || c.Score != 8 || c.Kind != raft.CtlHeartbeat {
		t.Fatalf("got %+v", c)
	}
	b.Send(1, []raft.Msg{{Type: raft.MsgAppResp, Shard: 9, Term: 5, Index: 12}})
	ra.wait(t, "the answer", func() bool { return len(ra.msgs[2]) == 1 })
}
