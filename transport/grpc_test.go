package transport

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"runtime"
	"strings"
	"sync/atomic"
	"testing"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/metadata"

	"github.com/flotillakv/flotilla/multiraft/raft"
	"github.com/flotillakv/flotilla/shard"
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

// A peer that goes away and comes back, with a newer boot epoch and at another
// address, is found again: its hello tells the address.
func TestReconnectAfterRestart(t *testing.T) {
	checkLeaks(t)
	a, ra := startNode(t, 1, 1, Options{})
	b, _ := startNode(t, 2, 1, Options{})
	addr := b.Addr()
	a.SetPeer(2, addr)
	b.SetPeer(1, a.Addr())
	ra.waitUp(t, 2)
	b.Close()
	ra.wait(t, "peer is down", func() bool { return !ra.up[2] })
	a.Send(2, []raft.Msg{{Type: raft.MsgCommit, Shard: 1}})

	b2, rb2 := startNode(t, 2, 2, Options{Listen: addr})
	b2.SetPeer(1, a.Addr())
	ra.wait(t, "peer is up again", func() bool { return ra.up[2] && ra.ups[2] == 2 })
	a.Send(2, []raft.Msg{{Type: raft.MsgCommit, Shard: 2}})
	rb2.wait(t, "a message", func() bool { return len(rb2.msgs[1]) > 0 && rb2.msgs[1][len(rb2.msgs[1])-1].Shard == 2 })
	eventually(t, "the counters tell", func() bool { return a.Stats()[0].Connects == 2 && a.Stats()[0].Up })
	b2.Close()

	ra.wait(t, "peer is down", func() bool { return !ra.up[2] })
	b3, rb3 := startNode(t, 2, 3, Options{}) // another port
	b3.SetPeer(1, a.Addr())
	rb3.waitUp(t, 1)
	ra.wait(t, "peer is up at its new address", func() bool { return ra.up[2] && ra.ups[2] == 3 })
	if got := a.Stats()[0].Addr; got != b3.Addr() {
		t.Fatalf("node 1 knows node 2 at %s, not %s", got, b3.Addr())
	}
}

// refusals collects what OnRefused is told.
type refusals struct{ ch chan *RefusedError }

func newRefusals() *refusals { return &refusals{ch: make(chan *RefusedError, 1000)} }

func (r *refusals) on(_ raft.NodeID, err *RefusedError) {
	select {
	case r.ch <- err:
	default:
	}
}

func (r *refusals) wait(t *testing.T, want Reason) *RefusedError {
	t.Helper()
	ctx := testContext(t)
	for {
		select {
		case err := <-r.ch:
			if err.Reason == want {
				return err
			}
		case <-ctx.Done():
			t.Fatalf("no refusal for reason %q", want)
		}
	}
}

// A node of another cluster, and a node that is not who it should be, are
// refused before any frame, with a reason on both sides and a log line.
func TestWrongClusterAndWrongNodeRefused(t *testing.T) {
	checkLeaks(t)
	var log logBuffer
	a, ra := startNode(t, 1, 1, Options{Logger: newTestLogger(&log)})
	other := newRefusals()
	b, rb := startNode(t, 2, 1, Options{Identity: Identity{Cluster: [16]byte{9}}, OnRefused: other.on})
	b.SetPeer(1, a.Addr())
	if err := other.wait(t, RefusedCluster); err.ByUs {
		t.Fatalf("%+v", err)
	}
	wrong := newRefusals()
	c, rc := startNode(t, 3, 1, Options{OnRefused: wrong.on})
	c.SetPeer(4, a.Addr()) // node 1 answers there
	wrong.wait(t, RefusedNode)

	eventually(t, "refusals are counted", func() bool {
		n := a.Counters().HellosRefused
		return n[RefusedCluster] > 0 && n[RefusedNode] > 0
	})
	eventually(t, "refusals are logged", func() bool { return strings.Contains(log.String(), "another cluster") })
	if len(ra.ups) != 0 || len(rb.ups) != 0 || len(rc.ups) != 0 {
		t.Fatal("a stream came up")
	}
	eventually(t, "stats name the reason", func() bool { return strings.Contains(b.Stats()[0].LastError, "another cluster") })
}

// Two live processes with one node id and one boot epoch: the later one is
// refused and told why; the earlier one goes on.
func TestDuplicateNodeID(t *testing.T) {
	checkLeaks(t)
	a, ra := startNode(t, 1, 1, Options{})
	b, _ := startNode(t, 2, 7, Options{})
	b.SetPeer(1, a.Addr())
	ra.waitUp(t, 2)
	dup := newRefusals()
	b2, rb2 := startNode(t, 2, 7, Options{OnRefused: dup.on})
	b2.SetPeer(1, a.Addr())
	dup.wait(t, RefusedDuplicate)
	rb2.mu.Lock()
	if rb2.ups[1] != 0 {
		t.Error("the duplicate got a stream")
	}
	rb2.mu.Unlock()
	b.Send(1, []raft.Msg{{Type: raft.MsgCommit, Shard: 3}})
	ra.wait(t, "the first one is heard", func() bool { return len(ra.msgs[2]) == 1 })

	// A newer incarnation takes over, and the old one is told that it is stale.
	// Its own stream is what ends it.
	b3, rb3 := startNode(t, 2, 8, Options{})
	b3.SetPeer(1, a.Addr())
	rb3.waitUp(t, 1)
	eventually(t, "the old one is refused as stale", func() bool { return a.Counters().HellosRefused[RefusedStale] > 0 })
	b3.Send(1, []raft.Msg{{Type: raft.MsgCommit, Shard: 4}})
	ra.wait(t, "the new one is heard", func() bool { return len(ra.msgs[2]) == 2 && ra.msgs[2][1].Shard == 4 })
}

// rawStream opens a stream to a node as node 9 and lets the test send any bytes.
func rawStream(t *testing.T, g *GRPC, boot uint64) grpc.ClientStream {
	t.Helper()
	conn, err := dialPeer(g.Addr(), insecure.NewCredentials(), nil)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	h := Hello{MinVersion: 1, MaxVersion: 1, Cluster: testCluster, Node: 9, BootEpoch: boot, Incarnation: 1}
	ctx := metadata.AppendToOutgoingContext(testContext(t), helloKey, string(h.Encode(nil)))
	s, err := conn.NewStream(ctx, &clientStreamDesc, framesMethod)
	if err != nil {
		t.Fatal(err)
	}
	if md, err := s.Header(); err != nil || len(md.Get(helloKey)) != 1 {
		t.Fatalf("no hello: %v, %v", md, err)
	}
	return s
}

// A frame that is cut, flipped, forged or out of order ends its stream with a
// reason and a counter, reaches nobody, and the next stream works.
func TestBadFramesRefused(t *testing.T) {
	checkLeaks(t)
	var log logBuffer
	a, ra := startNode(t, 1, 1, Options{Logger: newTestLogger(&log)})
	frame := func(h FrameHeader) []byte {
		b, err := EncodeFrame(nil, h, testCtls(), testMsgs(9, 1), false)
		if err != nil {
			t.Fatal(err)
		}
		return b
	}
	good := FrameHeader{From: 9, To: 1, BootEpoch: 5, Seq: 1}
	with := func(f func(h *FrameHeader)) []byte {
		h := good
		f(&h)
		return frame(h)
	}
	bad := [][]byte{
		nil,
		frame(good)[:50],
		append(frame(good)[:100], frame(good)[101:]...),
		func() []byte { b := frame(good); b[77] ^= 4; return b }(),
		with(func(h *FrameHeader) { h.From = 8 }),
		with(func(h *FrameHeader) { h.To = 2 }),
		with(func(h *FrameHeader) { h.BootEpoch = 4 }),
		with(func(h *FrameHeader) { h.Seq = 2 }),
		make([]byte, MaxFrameBytes),
	}
	for i, b := range bad {
		s := rawStream(t, a, 5)
		if err := s.SendMsg(&rawBytes{b}); err != nil {
			t.Fatalf("frame %d: %v", i, err)
		}
		err := s.RecvMsg(&rawBytes{})
		r := decodeRefusal(strings.Join(s.Trailer().Get(refusalKey), ""), "")
		if err == nil || r == nil || r.Reason != RefusedFrame {
			t.Fatalf("frame %d: %v, %+v", i, err, r)
		}
	}
	if n := a.Counters().FramesRefused; n != uint64(len(bad)) {
		t.Fatalf("%d frames refused, %d were bad", n, len(bad))
	}
	if !strings.Contains(log.String(), "a frame was refused") || strings.Count(log.String(), "\n") > 3 {
		t.Fatalf("the log is not one line per reason and time:\n%s", log.String())
	}
	ra.mu.Lock()
	if len(ra.msgs[9]) != 0 || len(ra.ctl[9]) != 0 {
		t.Error("something of a bad frame was delivered")
	}
	ra.mu.Unlock()
	s := rawStream(t, a, 5)
	if err := s.SendMsg(&rawBytes{frame(good)}); err != nil {
		t.Fatal(err)
	}
	ra.wait(t, "the good frame", func() bool { return len(ra.msgs[9]) == 3 && len(ra.ctl[9]) == 2 })
	if ra.order[0] != "ctl" {
		t.Fatal("control records did not come first")
	}
}

// A frame above the limit is refused by the receiver before it is read whole.
func TestOversizedFrameRefused(t *testing.T) {
	a, _ := startNode(t, 1, 1, Options{})
	conn, err := grpc.NewClient("passthrough:///"+a.Addr(), append(dialOptions(insecure.NewCredentials(), nil), grpc.WithDefaultCallOptions(grpc.ForceCodecV2(rawCodec{})))...)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	h := Hello{MinVersion: 1, MaxVersion: 1, Cluster: testCluster, Node: 9, BootEpoch: 1, Incarnation: 1}
	s, err := conn.NewStream(metadata.AppendToOutgoingContext(testContext(t), helloKey, string(h.Encode(nil))), &clientStreamDesc, framesMethod)
	if err != nil {
		t.Fatal(err)
	}
	_ = s.SendMsg(&rawBytes{make([]byte, MaxFrameBytes+1)}) // may fail already
	var r *RefusedError
	if err := streamError(s.RecvMsg(&rawBytes{}), nil, a.Addr()); !errors.As(err, &r) || r.Reason != RefusedFrame {
		t.Fatalf("got %v", err)
	}
	eventually(t, "it is counted", func() bool { return a.Counters().FramesRefused == 1 })
}

// Streams without a proper hello are refused.
func TestMissingHelloRefused(t *testing.T) {
	a, _ := startNode(t, 1, 1, Options{})
	conn, err := dialPeer(a.Addr(), insecure.NewCredentials(), nil)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	for _, hello := range [][]string{nil, {helloKey, "garbage"}} {
		s, err := conn.NewStream(metadata.AppendToOutgoingContext(testContext(t), hello...), &clientStreamDesc, framesMethod)
		if err != nil {
			t.Fatal(err)
		}
		err = s.RecvMsg(&rawBytes{})
		if r := decodeRefusal(strings.Join(s.Trailer().Get(refusalKey), ""), ""); r == nil || r.Reason != RefusedHello {
			t.Fatalf("%v, %+v", err, r)
		}
	}
}

// The largest entry travels alone, plain and packed.
func TestBigFrame(t *testing.T) {
	checkLeaks(t)
	for _, compress := range []bool{false, true} {
		a, ra := startNode(t, 1, 1, Options{Compress: compress})
		b, rb := startNode(t, 2, 1, Options{Compress: compress})
		a.SetPeer(2, b.Addr())
		ra.waitUp(t, 2)
		e := testEntry(8, 1, bytes.Repeat([]byte("0123456789abcdef"), (raft.MaxEntryBytes-64)/16))
		a.Send(2, []raft.Msg{
			{Type: raft.MsgCommit, Shard: 1},
			{Type: raft.MsgApp, Shard: 2, Index: 7, Entries: []raft.Entry{e}},
			{Type: raft.MsgCommit, Shard: 3},
		})
		rb.wait(t, "three messages", func() bool { return len(rb.msgs[1]) == 3 })
		if m := rb.msgs[1][1]; m.Shard != 2 || !bytes.Equal(m.Entries[0].Value, e.Value) {
			t.Fatal("the big entry changed on the way")
		}
		a.Close()
		b.Close()
	}
}

// When a peer does not read, its queue fills, is dropped, and the stream is
// reset, which the owner sees; memory stays bounded.
func TestOverflowResetsThePeer(t *testing.T) {
	checkLeaks(t)
	a, ra := startNode(t, 1, 1, Options{QueueBytes: 1 << 20})
	b, rb := startNode(t, 2, 1, Options{})
	rb.block = make(chan struct{})
	a.SetPeer(2, b.Addr())
	ra.waitUp(t, 2)
	msg := []raft.Msg{{Type: raft.MsgApp, Entries: []raft.Entry{testEntry(1, 1, make([]byte, 200<<10))}}}
	for a.Stats()[0].Overflows == 0 {
		a.Send(2, msg)
		if q := a.Stats()[0].QueueBytes; q > 1<<20 {
			t.Fatalf("%d bytes queued", q)
		}
	}
	ra.wait(t, "the reset shows", func() bool { return ra.ups[2] >= 2 || !ra.up[2] })
	close(rb.block)
	ra.wait(t, "a new stream", func() bool { return ra.ups[2] >= 2 && ra.up[2] })
	if a.Stats()[0].MsgsDropped == 0 {
		t.Fatal("nothing counted as dropped")
	}
}

// A transport without identity refuses streams as not ready, answers joins, and
// works once it is activated.
func TestActivateAndJoin(t *testing.T) {
	checkLeaks(t)
	a, ra := startNode(t, 1, 1, Options{})
	var from string
	b, err := NewGRPC(Options{Listen: "127.0.0.1:0", ClientListen: "127.0.0.1:0", Logger: quiet(), BackoffMin: 5e6, BackoffMax: 5e7,
		OnJoin: func(_ context.Context, addr string, in []byte) ([]byte, error) {
			from = addr
			if string(in) == "bad" {
				return nil, errors.New("no")
			}
			return append([]byte("re:"), in...), nil
		}})
	if err != nil {
		t.Fatal(err)
	}
	defer b.Close()
	a.SetPeer(2, b.Addr())
	eventually(t, "node 1 is told to wait", func() bool { return b.Counters().HellosRefused[RefusedNotReady] > 0 })
	ctx := testContext(t)
	out, err := JoinCall(ctx, b.Addr(), []byte("hi"))
	if err != nil || string(out) != "re:hi" || !strings.HasPrefix(from, "127.0.0.1:") {
		t.Fatalf("%q, %v, from %q", out, err, from)
	}
	var remote *shard.RemoteError
	if _, err := JoinCall(ctx, b.Addr(), []byte("bad")); !errors.As(err, &remote) || remote.Text != "no" {
		t.Fatalf("got %v", err)
	}
	if _, err := JoinCall(ctx, a.Addr(), nil); !errors.As(err, &remote) {
		t.Fatalf("a node that takes no joins: %v", err)
	}
	var unavailable *shard.UnavailableError
	cl := NewClient(b.ClientAddr(), ClientOptions{})
	defer cl.Close()
	if _, err := cl.Do(ctx, &shard.Request{Shard: 1, Kind: shard.KindGet}); !errors.As(err, &unavailable) {
		t.Fatalf("a client of a node that does not serve yet: %v", err)
	}
	rb := newRecorder()
	b.Activate(Identity{Cluster: testCluster, Node: 2, BootEpoch: 1}, rb, nil)
	ra.waitUp(t, 2)
	a.Send(2, []raft.Msg{{Type: raft.MsgCommit, Shard: 6}})
	rb.wait(t, "a message", func() bool { return len(rb.msgs[1]) == 1 })
	rb.waitUp(t, 1) // it learnt node 1's address from its hello
}

// A port in use is a typed error that names it; nothing is left behind.
func TestPortInUse(t *testing.T) {
	checkLeaks(t)
	a, _ := startNode(t, 1, 1, Options{})
	for _, o := range []Options{{Listen: a.Addr()}, {Listen: "127.0.0.1:0", ClientListen: a.Addr()}} {
		g, err := NewGRPC(o)
		var le *ListenError
		if g != nil || !errors.As(err, &le) || !le.InUse || !strings.Contains(err.Error(), a.Addr()) {
			t.Fatalf("got %v", err)
		}
	}
	if _, err := NewGRPC(Options{Listen: "256.0.0.1:1"}); err == nil || strings.Contains(err.Error(), "in use") {
		t.Fatalf("got %v", err)
	}
	a.Close()
	if err := a.Close(); err != nil { // again
		t.Fatal(err)
	}
}

// Forgetting a peer, unknown peers and a closed transport do no harm.
func TestUnknownPeersAndClose(t *testing.T) {
	checkLeaks(t)
	a, ra := startNode(t, 1, 1, Options{})
	b, rb := startNode(t, 2, 1, Options{})
	a.Send(7, testMsgs(1, 7))
	a.SendCtl(7, testCtls()[0])
	a.SetPeer(2, b.Addr())
	ra.waitUp(t, 2)
	a.SetPeer(2, "")
	ra.wait(t, "the stream is broken", func() bool { return !ra.up[2] })
	// Node 2 learnt the address of node 1 from its hello, and calls it still.
	was := 0
	rb.wait(t, "node 2 calls", func() bool { was = rb.ups[1]; return rb.up[1] })
	b.Reset(1)
	rb.wait(t, "node 2 called again", func() bool { return rb.ups[1] > was })
	if _, err := a.OpenSnapshot(testContext(t), 2, nil); !errors.Is(err, ErrUnknownNode) {
		t.Fatalf("got %v", err)
	}
	a.SetPeer(2, b.Addr())
	ra.wait(t, "the stream is back", func() bool { return ra.ups[2] == 2 })
	a.Reset(2)
	ra.wait(t, "the stream was reset", func() bool { return ra.ups[2] == 3 })
	a.Close()
	a.Send(2, testMsgs(1, 2))
	a.SetPeer(5, "127.0.0.1:1")
	if _, err := a.OpenSnapshot(testContext(t), 2, nil); err == nil {
		t.Fatal("a closed transport opens a snapshot stream")
	}
}

// BenchmarkFrames sends frames of 32 appends of 128 bytes over TCP and waits
// until all arrived: the cost of a frame on both sides.
func BenchmarkFrames(b *testing.B) {
	for _, perFrame := range []int{1, 32, 256} {
		b.Run(fmt.Sprintf("msgs=%d", perFrame), func(b *testing.B) {
			sink := &countingHandler{arrived: make(chan struct{}, 1)}
			x, rx := startNode(b, 1, 1, Options{})
			y, _ := startNode(b, 2, 1, Options{Handler: sink})
			x.SetPeer(2, y.Addr())
			rx.waitUp(b, 2)
			var msgs []raft.Msg
			for i := range perFrame {
				msgs = append(msgs, raft.Msg{Type: raft.MsgApp, Shard: raft.ShardID(i), Index: 9, Entries: []raft.Entry{testEntry(10, 1, make([]byte, 128))}})
			}
			b.ReportAllocs()
			total := 0
			for b.Loop() {
				for x.Stats()[0].QueueBytes > 1<<20 {
					runtime.Gosched()
				}
				x.Send(2, msgs)
				total += perFrame
			}
			for sink.n.Load() < int64(total) {
				<-sink.arrived
			}
			s := x.Stats()[0]
			b.ReportMetric(float64(s.MsgsSent)/float64(s.FramesSent), "msgs/frame")
			b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(total), "ns/msg")
		})
	}
}

// BenchmarkFramePing sends one frame and waits for its arrival.
func BenchmarkFramePing(b *testing.B) {
	sink := &countingHandler{arrived: make(chan struct{}, 1)}
	x, rx := startNode(b, 1, 1, Options{})
	y, _ := startNode(b, 2, 1, Options{Handler: sink})
	x.SetPeer(2, y.Addr())
	rx.waitUp(b, 2)
	var msgs []raft.Msg
	for i := range 32 {
		msgs = append(msgs, raft.Msg{Type: raft.MsgApp, Shard: raft.ShardID(i), Index: 9, Entries: []raft.Entry{testEntry(10, 1, make([]byte, 128))}})
	}
	b.ReportAllocs()
	for b.Loop() {
		x.Send(2, msgs)
		<-sink.arrived
	}
}

type countingHandler struct {
	n       atomic.Int64
	arrived chan struct{}
}

func (h *countingHandler) OnMessages(_ raft.NodeID, msgs []raft.Msg) {
	h.n.Add(int64(len(msgs)))
	select {
	case h.arrived <- struct{}{}:
	default:
	}
}
func (h *countingHandler) OnCtl(raft.NodeID, []raft.Ctl) {}
func (h *countingHandler) OnPeer(raft.NodeID, bool)      {}
func (h *countingHandler) OnSnapshot(raft.NodeID, []byte, func() ([]byte, error), func([]byte) error) error {
	return nil
}
