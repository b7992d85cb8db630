package transport

import (
	"context"
	"errors"
	"testing"
	"time"

	"github.com/flotillakv/flotilla/multiraft/raft"
	"github.com/flotillakv/flotilla/shard"
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

// Losses are drawn from the seed, delays keep the order, corrupted frames are
// refused and reset the link, one-way cuts cut one way.
func TestLoopbackFaults(t *testing.T) {
	checkLeaks(t)
	n := NewNetwork()
	a, ra := joinLoop(n, 1)
	b, rb := joinLoop(n, 2)
	defer a.Close()
	defer b.Close()
	ra.waitUp(t, 2)
	rb.waitUp(t, 1)
	commit := func(i int) []raft.Msg { return []raft.Msg{{Type: raft.MsgCommit, Shard: raft.ShardID(i)}} }
	count := func() int {
		rb.mu.Lock()
		defer rb.mu.Unlock()
		return len(rb.msgs[1])
	}

	n.SetLink(1, 2, LinkState{Loss: 0.5})
	sent := 0
	frames := func() uint64 { return a.Stats()[0].FramesSent }
	for ; sent < 200; sent++ {
		before := frames()
		a.Send(2, commit(sent))
		eventually(t, "the frame went out", func() bool { return frames() > before })
	}
	if got := count(); got < 60 || got > 140 {
		t.Fatalf("%d of 200 messages arrived at a loss of one half", got)
	}
	if !ra.up[2] {
		t.Fatal("a loss told the sender")
	}

	n.SetLink(1, 2, LinkState{Delay: 20 * time.Millisecond})
	base, start := count(), time.Now()
	for i := range 10 {
		a.Send(2, commit(1000+i))
	}
	rb.wait(t, "delayed messages", func() bool { return len(rb.msgs[1]) == base+10 })
	if d := time.Since(start); d < 20*time.Millisecond {
		t.Fatalf("they took %v", d)
	}
	for i, m := range rb.msgs[1][base:] {
		if m.Shard != raft.ShardID(1000+i) {
			t.Fatalf("message %d is of shard %d", i, m.Shard)
		}
	}

	n.SetLink(1, 2, LinkState{Corrupt: 1})
	ups := ra.ups[2]
	a.Send(2, commit(1))
	ra.wait(t, "a corrupted frame resets the link", func() bool { return ra.ups[2] > ups })
	if b.Refused() == 0 {
		t.Fatal("no frame was refused")
	}

	n.SetLink(1, 2, LinkState{Drop: true})
	ra.wait(t, "peer is down", func() bool { return !ra.up[2] })
	b.Send(1, commit(7))
	ra.wait(t, "the other way works", func() bool { return len(ra.msgs[2]) == 1 })
	n.Heal()
	ra.waitUp(t, 2)

	n.Isolate(2)
	ra.wait(t, "peer is down", func() bool { return !ra.up[2] })
	rb.wait(t, "peer is down", func() bool { return !rb.up[1] })
	n.Heal()
	ra.waitUp(t, 2)
	rb.waitUp(t, 1)

	b.Close()
	ra.wait(t, "a closed node is down", func() bool { return !ra.up[2] })
	b2, rb2 := joinLoop(n, 2)
	defer b2.Close()
	ra.waitUp(t, 2)
	a.Send(2, commit(8))
	rb2.wait(t, "the new incarnation is heard", func() bool { return len(rb2.msgs[1]) == 1 })
}

// Requests, admin queries and joins in process obey the links of clients: lost
// requests are definitely unsent, lost answers of writes ambiguous.
func TestLoopbackRequests(t *testing.T) {
	checkLeaks(t)
	n := NewNetwork()
	a := n.JoinWith(Options{Identity: Identity{Cluster: testCluster, Node: 1, Addr: "one"}, Handler: newRecorder(), Requests: handlerFunc(echo),
		OnJoin: func(_ context.Context, _ string, in []byte) ([]byte, error) { return in, nil }})
	defer a.Close()
	ctx := testContext(t)
	c := n.Caller(0, 1)
	resp, err := c.Do(ctx, get("k"))
	if err != nil || string(resp.Value.Bytes) != "value of k" {
		t.Fatalf("%+v, %v", resp, err)
	}
	if out, err := c.Admin(ctx, "echo", []byte("1")); err != nil || string(out) != "1" {
		t.Fatalf("%q, %v", out, err)
	}
	if out, err := n.JoinCall(ctx, "one", []byte("2")); err != nil || string(out) != "2" {
		t.Fatalf("%q, %v", out, err)
	}
	if _, err := n.JoinCall(ctx, "two", nil); shard.OutcomeOf(err) != shard.NotApplied {
		t.Fatalf("got %v", err)
	}
	n.SetLink(0, 1, LinkState{Drop: true})
	if _, err := c.Do(ctx, put("k")); shard.OutcomeOf(err) != shard.NotApplied {
		t.Fatalf("a request that was lost: %v", err)
	}
	n.Heal()
	n.SetLink(1, 0, LinkState{Drop: true})
	if _, err := c.Do(ctx, put("k")); !errors.Is(err, shard.ErrAmbiguous) {
		t.Fatalf("an answer that was lost: %v", err)
	}
	if _, err := c.Do(ctx, get("k")); shard.OutcomeOf(err) != shard.NotApplied {
		t.Fatalf("a read whose answer was lost: %v", err)
	}
}
