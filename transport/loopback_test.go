package transport

import (
	"testing"

	"github.com/flotillakv/flotilla/multiraft/raft"
)

func joinLoop(n *Network, node raft.NodeID) (*Loopback, *recorder) {
	rec := newRecorder()
	return n.Join(Identity{Cluster: testCluster, Node: node, BootEpoch: 1}, rec, nil), rec
}

// Frames flow in process; control records come before messages; a drop shows as
// a peer that is down, and healing brings it back.
func TestLoopbackExchangeAndPartition(t *testing.T) {
	checkLeaks(t)
	n := NewNetwork()
	a, ra := joinLoop(n, 1)
	b, rb := joinLoop(n, 2)
	defer a.Close()
	defer b.Close()
	ra.waitUp(t, 2)
	rb.waitUp(t, 1)
	a.Send(2, []raft.Msg{{Type: raft.MsgApp, Shard: 4, Index: 6, Entries: []raft.Entry{testEntry(7, 2, []byte("x"))}}})
	a.SendCtl(2, raft.Ctl{Kind: raft.CtlReply, Seq: 9})
	rb.wait(t, "a message and a record", func() bool { return len(rb.msgs[1]) == 1 && len(rb.ctl[1]) == 1 })

	n.Partition([]raft.NodeID{1}, []raft.NodeID{2})
	ra.wait(t, "peer is down", func() bool { return !ra.up[2] })
	a.Send(2, []raft.Msg{{Type: raft.MsgCommit, Shard: 4}})
	n.Heal()
	ra.waitUp(t, 2)
	a.Send(2, []raft.Msg{{Type: raft.MsgCommit, Shard: 5}})
	rb.wait(t, "only the later message", func() bool { return len(rb.msgs[1]) == 2 })
	if got := rb.msgs[1][1].Shard; got != 5 {
		t.Fatalf("a message of shard %d came through a partition", got)
	}
}
