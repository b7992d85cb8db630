package transport

import (
	"context"
	"errors"
	"fmt"
	"net"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	healthpb "google.golang.org/grpc/health/grpc_health_v1"
	reflectpb "google.golang.org/grpc/reflection/grpc_reflection_v1"

	"github.com/flotillakv/flotilla/multiraft/raft"
	"github.com/flotillakv/flotilla/shard"
	"github.com/flotillakv/flotilla/transport/transportpb"
)

// handlerFunc is a RequestHandler made of a function.
type handlerFunc func(ctx context.Context, r *shard.Request) *shard.Response

func (f handlerFunc) Do(ctx context.Context, r *shard.Request) *shard.Response { return f(ctx, r) }

func (f handlerFunc) Admin(_ context.Context, method string, in []byte) ([]byte, error) {
	if method != "echo" {
		return nil, &shard.ArgumentError{Field: "method", Reason: "there is no " + method}
	}
	return in, nil
}

// asyncHandler answers from goroutines of its own.
type asyncHandler struct{ handlerFunc }

func (h asyncHandler) DoAsync(ctx context.Context, r *shard.Request, a shard.Answerer) {
	go func() { a.Answered(h.Do(ctx, r), nil) }()
}

// echo answers a get with the key as value.
func echo(_ context.Context, r *shard.Request) *shard.Response {
	if r.Kind == shard.KindWrite {
		return &shard.Response{ID: r.ID, Receipt: shard.Receipt{Version: shard.Version{Lineage: r.Shard, Index: 1, Slot: uint32(len(r.Command.Body))}}}
	}
	if string(r.Key) == "missing" {
		return &shard.Response{ID: r.ID}
	}
	return &shard.Response{ID: r.ID, Found: true, Value: &shard.Value{Bytes: append([]byte("value of "), r.Key...)}}
}

func startServer(t testing.TB, h RequestHandler, o Options) (*GRPC, *Client) {
	t.Helper()
	o.ClientListen = "127.0.0.1:0"
	o.Requests = h
	g, _ := startNode(t, 1, 1, o)
	c, err := DialClient(testContext(t), g.ClientAddr(), ClientOptions{Cluster: testCluster, Node: 1})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return g, c
}

func get(key string) *shard.Request {
	return &shard.Request{ID: 12345, Shard: 7, Kind: shard.KindGet, Key: []byte(key)}
}

func put(body string) *shard.Request {
	return &shard.Request{Shard: 7, Kind: shard.KindWrite, Command: raft.Command{Op: 1, Body: []byte(body)}}
}

// Many callers share one stream; each gets its own answer, with handlers that
// block and with those that do not.
func TestClientPipelining(t *testing.T) {
	for name, h := range map[string]RequestHandler{"blocking": handlerFunc(echo), "async": asyncHandler{echo}} {
		t.Run(name, func(t *testing.T) {
			checkLeaks(t)
			g, c := startServer(t, h, Options{})
			var wg sync.WaitGroup
			for i := range 64 {
				wg.Add(1)
				go func() {
					defer wg.Done()
					for j := range 50 {
						key := fmt.Sprintf("%d/%d", i, j)
						resp, err := c.Do(testContext(t), get(key))
						if err != nil || resp.ID != 12345 || !resp.Found || string(resp.Value.Bytes) != "value of "+key {
							t.Errorf("%s: %+v, %v", key, resp, err)
							return
						}
						if resp, err = c.Do(testContext(t), put(key)); err != nil || resp.Receipt.Slot != uint32(len(key)) {
							t.Errorf("%s: %+v, %v", key, resp, err)
							return
						}
					}
				}()
			}
			wg.Wait()
			eventually(t, "nothing is in flight", func() bool { return g.Counters().RequestsInFlight == 0 })
			if n := g.Counters().Requests; n != 64*50*2 {
				t.Fatalf("%d requests served", n)
			}
		})
	}
}

// A slow request does not hold up the others, and the number being served is bounded.
func TestClientOutOfOrderAndBound(t *testing.T) {
	checkLeaks(t)
	gate := make(chan struct{})
	var running, most atomic.Int32
	g, c := startServer(t, handlerFunc(func(ctx context.Context, r *shard.Request) *shard.Response {
		n := running.Add(1)
		for m := most.Load(); n > m && !most.CompareAndSwap(m, n); m = most.Load() {
		}
		defer running.Add(-1)
		if strings.HasPrefix(string(r.Key), "slow") {
			<-gate
		}
		return echo(ctx, r)
	}), Options{MaxInFlight: 4})
	var wg sync.WaitGroup
	for i := range 3 {
		wg.Add(1)
		go func() {
			defer wg.Done()
			if _, err := c.Do(testContext(t), get(fmt.Sprint("slow", i))); err != nil {
				t.Error(err)
			}
		}()
	}
	eventually(t, "the slow ones run", func() bool { return g.Counters().RequestsInFlight == 3 })
	for range 20 {
		if _, err := c.Do(testContext(t), get("quick")); err != nil {
			t.Fatal(err)
		}
	}
	for range 10 {
		wg.Add(1)
		go func() {
			defer wg.Done()
			if _, err := c.Do(testContext(t), get("slow")); err != nil {
				t.Error(err)
			}
		}()
	}
	eventually(t, "all slots are taken", func() bool { return g.Counters().RequestsInFlight == 4 })
	close(gate)
	wg.Wait()
	if most.Load() > 4 {
		t.Fatalf("%d requests ran at a time", most.Load())
	}
}

// The caller's deadline and its cancellation reach the handler; a write given up
// after it was sent is ambiguous, a read is not.
func TestClientDeadlineAndCancel(t *testing.T) {
	checkLeaks(t)
	type seen struct {
		left time.Duration
		err  error
	}
	started, ended := make(chan seen, 1), make(chan seen, 1)
	_, c := startServer(t, handlerFunc(func(ctx context.Context, r *shard.Request) *shard.Response {
		d, _ := ctx.Deadline()
		started <- seen{left: time.Until(d)}
		<-ctx.Done()
		ended <- seen{err: ctx.Err()}
		return r.Failed(&shard.UnavailableError{Cause: ctx.Err()})
	}), Options{})
	for _, write := range []bool{false, true} {
		r := get("k")
		if write {
			r = put("k")
		}
		ctx, cancel := context.WithTimeout(context.Background(), time.Hour)
		go func() {
			if s := <-started; s.left < 59*time.Minute || s.left > time.Hour {
				t.Errorf("the handler has %v left", s.left)
			}
			cancel()
		}()
		_, err := c.Do(ctx, r)
		if !errors.Is(err, context.Canceled) {
			t.Fatalf("got %v", err)
		}
		if errors.Is(err, shard.ErrAmbiguous) != write {
			t.Fatalf("write: %v, got %v", write, err)
		}
		if s := <-ended; s.err != context.Canceled {
			t.Fatalf("the handler's context ended by %v", s.err)
		}
	}
	ctx, cancel := context.WithTimeout(context.Background(), time.Hour)
	cancel()
	if _, err := c.Do(ctx, put("k")); shard.OutcomeOf(err) != shard.NotApplied || !errors.Is(err, context.Canceled) {
		t.Fatalf("a write that was never sent: %v", err)
	}
}

// When the server dies in the middle, writes that were sent are ambiguous, reads
// are unavailable, and what comes later is definitely unsent, until the server
// is back, when the same client works again.
func TestClientServerDies(t *testing.T) {
	checkLeaks(t)
	running := make(chan struct{}, 10)
	g, c := startServer(t, handlerFunc(func(ctx context.Context, r *shard.Request) *shard.Response {
		running <- struct{}{}
		<-ctx.Done()
		return r.Failed(shard.ErrClosed)
	}), Options{})
	errs := make(chan error, 2)
	go func() { _, err := c.Do(testContext(t), put("w")); errs <- err }()
	<-running
	go func() {
		_, err := c.Do(testContext(t), get("r"))
		if shard.OutcomeOf(err) != shard.NotApplied {
			t.Errorf("a read: %v", err)
		}
		errs <- shard.ErrAmbiguous
	}()
	<-running
	addr := g.ClientAddr()
	g.Close()
	for range 2 {
		if err := <-errs; !errors.Is(err, shard.ErrAmbiguous) {
			t.Fatalf("a write that was sent: %v", err)
		}
	}
	var unavailable *shard.UnavailableError
	if _, err := c.Do(testContext(t), put("w2")); !errors.As(err, &unavailable) || shard.OutcomeOf(err) != shard.NotApplied {
		t.Fatalf("a write to a dead server: %v", err)
	}
	g2, _ := startNode(t, 1, 2, Options{ClientListen: addr, Requests: handlerFunc(echo)})
	defer g2.Close()
	eventually(t, "the client works again", func() bool {
		resp, err := c.Do(testContext(t), get("k"))
		return err == nil && resp.Found
	})
	c.Close()
	if _, err := c.Do(testContext(t), get("k")); !errors.Is(err, shard.ErrClosed) {
		t.Fatalf("a closed client: %v", err)
	}
}

// A client that expects another cluster or node is refused with a reason.
func TestClientRefused(t *testing.T) {
	checkLeaks(t)
	g, c := startServer(t, handlerFunc(echo), Options{})
	if h, ok := c.Server(); !ok || h.Node != 1 || h.Cluster != testCluster {
		t.Fatalf("the server says %+v", h)
	}
	_, err := DialClient(testContext(t), g.ClientAddr(), ClientOptions{Cluster: [16]byte{5}})
	var r *RefusedError
	if !errors.As(err, &r) || r.Reason != RefusedCluster || r.ByUs {
		t.Fatalf("got %v", err)
	}
	_, err = DialClient(testContext(t), g.ClientAddr(), ClientOptions{Node: 2})
	if !errors.As(err, &r) || r.Reason != RefusedNode {
		t.Fatalf("got %v", err)
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	addr := l.Addr().String()
	l.Close()
	var unavailable *shard.UnavailableError
	if _, err := DialClient(testContext(t), addr, ClientOptions{}); !errors.As(err, &unavailable) {
		t.Fatalf("nobody listens: %v", err)
	}
}

// A listener that accepts and says nothing costs DialTimeout, not for ever.
func TestClientSilentServer(t *testing.T) {
	checkLeaks(t)
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	c := NewClient(l.Addr().String(), ClientOptions{DialTimeout: 50 * time.Millisecond})
	defer c.Close()
	_, err = c.Do(testContext(t), put("x"))
	if shard.OutcomeOf(err) != shard.NotApplied || !strings.Contains(err.Error(), "did not answer") {
		t.Fatalf("got %v", err)
	}
	a, _ := startNode(t, 1, 1, Options{DialTimeout: 50 * time.Millisecond})
	a.SetPeer(2, l.Addr().String())
	eventually(t, "the peer is given up", func() bool { return strings.Contains(a.Stats()[0].LastError, "did not answer") })
}

// Typed errors, admin queries, large values and answers that fit no message.
func TestClientErrorsAdminAndSizes(t *testing.T) {
	checkLeaks(t)
	big := make([]byte, 3<<20)
	_, c := startServer(t, handlerFunc(func(_ context.Context, r *shard.Request) *shard.Response {
		switch string(r.Key) {
		case "conflict":
			return r.Failed(&shard.ConflictError{Have: shard.Version{Index: 9}})
		case "nil":
			return nil
		case "huge":
			resp := &shard.Response{ID: r.ID}
			for range 6 {
				resp.Pairs = append(resp.Pairs, shard.Pair{Key: []byte("k"), Value: big})
			}
			return resp
		}
		if r.Kind == shard.KindWrite {
			return &shard.Response{ID: r.ID, Count: len(r.Command.Body)}
		}
		return &shard.Response{ID: r.ID, Found: true, Value: &shard.Value{Bytes: big}}
	}), Options{})
	ctx := testContext(t)
	resp, err := c.Do(ctx, get("conflict"))
	var conflict *shard.ConflictError
	if err != nil || !errors.As(resp.Err, &conflict) || conflict.Have.Index != 9 {
		t.Fatalf("%+v, %v", resp, err)
	}
	if resp, err = c.Do(ctx, get("nil")); err != nil || !errors.Is(resp.Err, shard.ErrAmbiguous) {
		t.Fatalf("%+v, %v", resp, err)
	}
	if resp, err = c.Do(ctx, get("huge")); err != nil || resp.Err == nil || !strings.Contains(resp.Err.Error(), "larger than") {
		t.Fatalf("%+v, %v", resp, err)
	}
	if resp, err = c.Do(ctx, get("big")); err != nil || len(resp.Value.Bytes) != len(big) {
		t.Fatal(err)
	}
	if resp, err = c.Do(ctx, put(string(big))); err != nil || resp.Count != len(big) {
		t.Fatal(err)
	}
	out, err := c.Admin(ctx, "echo", []byte(`{"a":1}`))
	if err != nil || string(out) != `{"a":1}` {
		t.Fatalf("%q, %v", out, err)
	}
	var arg *shard.ArgumentError
	if _, err := c.Admin(ctx, "nonsense", nil); !errors.As(err, &arg) {
		t.Fatalf("got %v", err)
	}
}

// Generated code talks to the server: unary, stream, health and reflection.
func TestGeneratedClient(t *testing.T) {
	checkLeaks(t)
	g, _ := startServer(t, handlerFunc(echo), Options{})
	cc, err := grpc.NewClient(g.ClientAddr(), grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	defer cc.Close()
	ctx := testContext(t)
	kv := transportpb.NewKVClient(cc)
	req := func(id uint64, key string) *transportpb.Request {
		return &transportpb.Request{Id: id, Shard: 7, TimeoutNanos: 1e9, Op: &transportpb.Request_Get{Get: &transportpb.Get{Key: []byte(key)}}}
	}
	resp, err := kv.Do(ctx, req(5, "k"))
	if err != nil || resp.Id != 5 || string(resp.GetValue().GetData()) != "value of k" {
		t.Fatalf("%v, %v", resp, err)
	}
	admin, err := kv.Admin(ctx, &transportpb.AdminRequest{Method: "echo", Json: []byte("1")})
	if err != nil || string(admin.Json) != "1" {
		t.Fatalf("%v, %v", admin, err)
	}
	s, err := kv.Stream(ctx)
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Send(&transportpb.RequestBatch{Requests: []*transportpb.Request{req(1, "a"), req(2, "b")}, Cancel: []uint64{9}}); err != nil {
		t.Fatal(err)
	}
	got := map[uint64]string{}
	for len(got) < 2 {
		b, err := s.Recv()
		if err != nil {
			t.Fatal(err)
		}
		for _, r := range b.Responses {
			got[r.Id] = string(r.GetValue().GetData())
		}
	}
	if got[1] != "value of a" || got[2] != "value of b" {
		t.Fatalf("got %v", got)
	}
	h, err := healthpb.NewHealthClient(cc).Check(ctx, &healthpb.HealthCheckRequest{Service: "flotilla.kv.v1.KV"})
	if err != nil || h.Status != healthpb.HealthCheckResponse_SERVING {
		t.Fatalf("%v, %v", h, err)
	}
	r, err := reflectpb.NewServerReflectionClient(cc).ServerReflectionInfo(ctx)
	if err != nil {
		t.Fatal(err)
	}
	if err := r.Send(&reflectpb.ServerReflectionRequest{MessageRequest: &reflectpb.ServerReflectionRequest_FileContainingSymbol{FileContainingSymbol: "flotilla.kv.v1.KV"}}); err != nil {
		t.Fatal(err)
	}
	if m, err := r.Recv(); err != nil || len(m.GetFileDescriptorResponse().GetFileDescriptorProto()) == 0 {
		t.Fatalf("%v, %v", m, err)
	}
}

// A client that sends garbage loses its stream and nothing else.
func TestClientGarbage(t *testing.T) {
	checkLeaks(t)
	g, c := startServer(t, handlerFunc(echo), Options{})
	cc, err := grpc.NewClient(g.ClientAddr(), grpc.WithTransportCredentials(insecure.NewCredentials()), grpc.WithDefaultCallOptions(grpc.ForceCodecV2(kvCodec{})))
	if err != nil {
		t.Fatal(err)
	}
	defer cc.Close()
	for _, garbage := range []string{"\xff\xff\xff", "\x0a\x03\x08\xff\xff", "\x0a\x04\x42\x02\x0a\x09", "\x0a\x02\x28\xff\x7f"} {
		s, err := cc.NewStream(testContext(t), &grpc.StreamDesc{ClientStreams: true, ServerStreams: true}, transportpb.KV_Stream_FullMethodName)
		if err != nil {
			t.Fatal(err)
		}
		if err := s.SendMsg(&rawBytes{[]byte(garbage)}); err != nil {
			t.Fatal(err)
		}
		if err := s.RecvMsg(&rawBytes{}); err == nil || !strings.Contains(err.Error(), "malformed") {
			t.Fatalf("%q: got %v", garbage, err)
		}
		var out rawBytes
		if err := cc.Invoke(testContext(t), transportpb.KV_Do_FullMethodName, &rawBytes{[]byte(garbage[2:])}, &out); err == nil && len(garbage) == 3 {
			t.Fatalf("%q: unary garbage was answered", garbage)
		}
	}
	if _, err := c.Do(testContext(t), get("k")); err != nil {
		t.Fatal(err)
	}
}

func BenchmarkClientDo(b *testing.B) {
	_, c := startServer(b, asyncHandler{echo}, Options{})
	ctx := context.Background()
	r := put(strings.Repeat("x", 150))
	b.ReportAllocs()
	b.SetParallelism(256)
	b.RunParallel(func(pb *testing.PB) {
		for pb.Next() {
			if _, err := c.Do(ctx, r); err != nil {
				b.Error(err)
				return
			}
		}
	})
}
