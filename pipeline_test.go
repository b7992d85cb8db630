package flotilla_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"runtime"
	"slices"
	"testing"
	"time"

	"github.com/flotillakv/flotilla"
	"github.com/flotillakv/flotilla/internal/localcluster"
)

// drain receives all calls that are pending.
func drain(p *flotilla.Pipeline, f func(c *flotilla.Call)) {
	for p.Pending() > 0 {
		f(<-p.Done())
	}
}

// throughDoor writes, swaps, deletes and reads through a pipeline from one
// goroutine and compares with what calls that wait see.
func throughDoor(ctx context.Context, kv flotilla.KV, prefix string, depth int) error {
	p, err := kv.NewPipeline(flotilla.PipelineOptions{Depth: depth})
	if err != nil {
		return err
	}
	defer p.Close()
	const n = 400
	key := func(i int) []byte { return fmt.Appendf(nil, "%c%s%d", 'a'+i%26, prefix, i) }
	receipts := make([]flotilla.Receipt, n)
	var bad error
	note := func(format string, args ...any) {
		if bad == nil {
			bad = fmt.Errorf(format, args...)
		}
	}
	each := func(what string, start func(i int) error, check func(i int, c *flotilla.Call)) {
		receive := func() {
			c := <-p.Done()
			check(c.Tag.(int), c)
		}
		for i := range n {
			if p.Pending() == p.Depth() {
				receive()
			}
			if err := start(i); err != nil {
				note("%s %d does not start: %w", what, i, err)
			}
		}
		for p.Pending() > 0 {
			receive()
		}
	}
	each("put", func(i int) error { return p.Put(ctx, key(i), fmt.Append(nil, i), i) }, func(i int, c *flotilla.Call) {
		if receipts[i] = c.Receipt; c.Err != nil || c.Receipt.IsZero() {
			note("put %d: %v, %w", i, c.Receipt, c.Err)
		}
	})
	each("get", func(i int) error { return p.Get(ctx, key(i), i) }, func(i int, c *flotilla.Call) {
		if c.Err != nil || string(c.Value.Bytes) != fmt.Sprint(i) || c.Value.Version != receipts[i].Version {
			note("get %d: %q %v, %w", i, c.Value.Bytes, c.Value.Version, c.Err)
		}
	})
	each("swap", func(i int) error {
		want := receipts[i].Version
		if i%2 == 1 {
			want = flotilla.Version{}
		}
		return p.CAS(ctx, key(i), want, []byte("swapped"), i)
	}, func(i int, c *flotilla.Call) {
		var conflict *flotilla.ConflictError
		if i%2 == 0 && c.Err != nil || i%2 == 1 && (!errors.As(c.Err, &conflict) || conflict.Have != receipts[i].Version) {
			note("swap %d: %w", i, c.Err)
		}
	})
	each("delete", func(i int) error {
		if i%4 == 0 {
			return p.Delete(ctx, key(i), i)
		}
		return p.Get(ctx, append(key(i), "nothing"...), i, flotilla.NoClock())
	}, func(i int, c *flotilla.Call) {
		if i%4 == 0 && c.Err != nil || i%4 != 0 && !errors.Is(c.Err, flotilla.ErrNotFound) {
			note("delete or get of nothing %d: %w", i, c.Err)
		}
	})
	var all flotilla.Batch
	for i := range 26 {
		all.Put(fmt.Appendf(nil, "%c%sbatch", 'a'+i, prefix), nil)
	}
	var cross *flotilla.CrossShardError
	if err := p.Write(ctx, &all, 0); err != nil {
		return err
	}
	if c := <-p.Done(); !errors.As(c.Err, &cross) {
		note("a batch over shards: %w", c.Err)
	}
	if err := errors.Join(p.Write(ctx, nil, 0), p.Write(ctx, &all, 1, flotilla.NonAtomic()),
		p.Txn(ctx, flotilla.Txn{Else: []flotilla.Op{flotilla.DeleteOp(key(2))}, If: []flotilla.Cond{flotilla.IfAbsent(key(2))}, Then: nil}, 2)); err != nil {
		return err
	}
	drain(p, func(c *flotilla.Call) {
		var argument *flotilla.ArgumentError
		if (c.Tag == 0) != errors.As(c.Err, &argument) || c.Tag != 0 && c.Err != nil || c.Tag == 2 && c.Txn.Succeeded {
			note("call %v: %+v, %w", c.Tag, c.Txn, c.Err)
		}
	})
	count := 0
	for pair, err := range kv.Scan(ctx, flotilla.Range{}) {
		switch {
		case err != nil:
			note("scan: %w", err)
		case bytes.Contains(pair.Key, []byte(prefix)):
			count++
		}
	}
	if want := n - n/4 - 1 + 26; count != want {
		note("%d keys are there, %d expected", count, want)
	}
	return bad
}

// Shows that a pipeline does what the methods of KV do, at an embedded node, a
// remote client, and in sessions of both, on three nodes over real sockets.
func TestPipelineDoors(t *testing.T) {
	ctx := t.Context()
	before := runtime.NumGoroutine()
	c, err := localcluster.Start(ctx, localcluster.Options{Dir: t.TempDir(), Shards: 6, SplitAt: [][]byte{[]byte("e"), []byte("i"), []byte("m"), []byte("q"), []byte("u")}})
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	client, err := flotilla.Dial(ctx, []string{c.Node(0).Addr()}, flotilla.ClientOptions{})
	if err != nil {
		t.Fatal(err)
	}
	session := func(s *flotilla.Session, err error) *flotilla.Session {
		if err != nil {
			t.Fatal(err)
		}
		return s
	}
	for name, kv := range map[string]flotilla.KV{
		"node": c.Node(1), "client": client,
		"session of a node":   session(c.Node(2).NewSession(flotilla.SessionOptions{})),
		"session of a client": session(client.NewSession(flotilla.SessionOptions{})),
	} {
		for _, depth := range []int{3, 300} {
			if err := throughDoor(ctx, kv, fmt.Sprintf("/%s/%d/", name, depth), depth); err != nil {
				t.Errorf("%s, depth %d: %v", name, depth, err)
			}
		}
	}
	client.Close()
	c.Close()
	awaitGoroutines(t, before)
}

// awaitGoroutines waits until no more goroutines run than before.
func awaitGoroutines(t *testing.T, before int) {
	t.Helper()
	tick := time.NewTicker(time.Millisecond)
	defer tick.Stop()
	for deadline := time.Now().Add(5 * time.Second); runtime.NumGoroutine() > before; <-tick.C {
		if time.Now().After(deadline) {
			buf := make([]byte, 1<<20)
			t.Fatalf("%d goroutines before, %d now\n%s", before, runtime.NumGoroutine(), buf[:runtime.Stack(buf, true)])
		}
	}
}

// Shows that closing the node under a pipeline ends every call, acknowledged ones
// are there after a restart, and what is said not to be applied is not.
func TestPipelineNodeCloses(t *testing.T) {
	ctx := t.Context()
	dir := t.TempDir()
	n, err := flotilla.Open(ctx, flotilla.Options{Dir: dir, Shards: 4})
	if err != nil {
		t.Fatal(err)
	}
	p, err := n.NewPipeline(flotilla.PipelineOptions{Depth: 512})
	if err != nil {
		t.Fatal(err)
	}
	defer p.Close()
	key := func(i int) []byte { return fmt.Appendf(nil, "%c%d", byte(i*37), i) }
	outcome := map[int]flotilla.OutcomeCode{}
	receive := func(c *flotilla.Call) {
		outcome[c.Tag.(int)] = flotilla.Outcome(c.Err)
		if c.Err != nil && !errors.Is(c.Err, flotilla.ErrClosed) && !errors.Is(c.Err, flotilla.ErrAmbiguous) {
			t.Errorf("call %v: %v", c.Tag, c.Err)
		}
	}
	closed := make(chan error)
	started := 0
	for ; started < 200000; started++ {
		if p.Pending() == p.Depth() {
			c := <-p.Done()
			if receive(c); c.Err != nil {
				break
			}
		}
		if started == 2000 {
			go func() { closed <- n.Close() }()
		}
		if err := p.Put(ctx, key(started), nil, started); err != nil {
			t.Fatalf("put %d: %v", started, err)
		}
	}
	drain(p, receive)
	if err := <-closed; err != nil {
		t.Fatal(err)
	}
	if len(outcome) != started {
		t.Fatalf("%d calls started, %d came out", started, len(outcome))
	}
	if err := p.Put(ctx, key(0), nil, 0); err != nil {
		t.Fatalf("a call after the node was closed: %v", err)
	}
	if c := <-p.Done(); !errors.Is(c.Err, flotilla.ErrClosed) {
		t.Errorf("a call after the node was closed ended with %v", c.Err)
	}
	if n, err = flotilla.Open(ctx, flotilla.Options{Dir: dir}); err != nil {
		t.Fatal(err)
	}
	defer n.Close()
	have := map[string]bool{}
	for pair, err := range n.Scan(ctx, flotilla.Range{}) {
		if err != nil {
			t.Fatal(err)
		}
		have[string(pair.Key)] = true
	}
	count := map[flotilla.OutcomeCode]int{}
	for i, o := range outcome {
		count[o]++
		if there := have[string(key(i))]; o == flotilla.Applied && !there || o == flotilla.NotApplied && there {
			t.Errorf("write %d: %v, and it is there: %t", i, o, there)
		}
	}
	if count[flotilla.Applied] == 0 || len(count) < 2 {
		t.Errorf("the test shows nothing: outcomes %v", count)
	}
}

// Shows that a remote client's pipeline survives a node that dies under it: every
// call comes out once, later ones go to the new leaders, acknowledged writes are
// there at the end, and what is said not to be applied is not.
func TestPipelineNodeDies(t *testing.T) {
	ctx := t.Context()
	c, err := localcluster.Start(ctx, localcluster.Options{Dir: t.TempDir(), Shards: 6,
		Timing: flotilla.Timing{Heartbeat: 100 * time.Millisecond, Support: 600 * time.Millisecond}})
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	client, err := flotilla.Dial(ctx, []string{c.Node(0).Addr(), c.Node(1).Addr()}, flotilla.ClientOptions{})
	if err != nil {
		t.Fatal(err)
	}
	defer client.Close()
	p, err := client.NewPipeline(flotilla.PipelineOptions{Depth: 128})
	if err != nil {
		t.Fatal(err)
	}
	defer p.Close()
	key := func(i int) []byte { return fmt.Appendf(nil, "%c%d", byte(i*37), i) }
	outcome := map[int]flotilla.OutcomeCode{}
	receive := func(c *flotilla.Call) {
		if _, twice := outcome[c.Tag.(int)]; twice {
			t.Errorf("call %v came out twice", c.Tag)
		}
		outcome[c.Tag.(int)] = flotilla.Outcome(c.Err)
	}
	const n, dies = 8000, 3000
	for i := range n {
		if i == dies {
			c.Kill(2)
		}
		if p.Pending() == p.Depth() {
			receive(<-p.Done())
		}
		if err := p.Put(ctx, key(i), nil, i); err != nil {
			t.Fatalf("put %d: %v", i, err)
		}
	}
	drain(p, receive)
	have := map[string]bool{}
	for pair, err := range client.Scan(ctx, flotilla.Range{}) {
		if err != nil {
			t.Fatal(err)
		}
		have[string(pair.Key)] = true
	}
	late := 0
	for i := range n {
		o, out := outcome[i]
		there := have[string(key(i))]
		if !out || o == flotilla.Applied && !there || o == flotilla.NotApplied && there {
			t.Errorf("write %d: came out %t, %v, and it is there: %t", i, out, o, there)
		}
		if i >= n-1000 && o == flotilla.Applied {
			late++
		}
	}
	if late < 900 {
		t.Errorf("only %d of the last 1000 writes were applied", late)
	}
}

// Shows that options out of bounds are refused.
func TestPipelineOptions(t *testing.T) {
	n, err := flotilla.Open(t.Context(), flotilla.Options{InMemory: true})
	if err != nil {
		t.Fatal(err)
	}
	defer n.Close()
	for _, depth := range []int{-1, flotilla.MaxPipelineDepth + 1} {
		var bad *flotilla.OptionError
		if _, err := n.NewPipeline(flotilla.PipelineOptions{Depth: depth}); !errors.As(err, &bad) || bad.Field != "Depth" {
			t.Errorf("depth %d: %v", depth, err)
		}
	}
	p, err := n.NewPipeline(flotilla.PipelineOptions{})
	if err != nil || p.Depth() != flotilla.DefaultPipelineDepth {
		t.Fatalf("depth %d, %v", p.Depth(), err)
	}
	if err := errors.Join(p.Close(), p.Close()); err != nil {
		t.Error(err)
	}
	if c, open := <-p.Done(); open {
		t.Errorf("a closed pipeline hands out %+v", c)
	}
}

// One goroutine keeps many writes under way.
func ExamplePipeline() {
	n := memory(flotilla.Options{Shards: 4})
	defer n.Close()
	ctx := context.Background()

	p := must(n.NewPipeline(flotilla.PipelineOptions{Depth: 16}))
	defer p.Close()
	var failed []error
	receive := func() {
		if c := <-p.Done(); c.Err != nil {
			failed = append(failed, fmt.Errorf("%v: %w", c.Tag, c.Err))
		}
	}
	for i := range 100 {
		if p.Pending() == p.Depth() { // full: one has to end first
			receive()
		}
		key := fmt.Sprintf("user/%02d", i)
		if err := p.Put(ctx, []byte(key), []byte("ada"), key); err != nil {
			failed = append(failed, err)
		}
	}
	for p.Pending() > 0 {
		receive()
	}

	var keys []string
	for pair, err := range n.Scan(ctx, flotilla.Prefix([]byte("user/"))) {
		if err != nil {
			failed = append(failed, err)
		}
		keys = append(keys, string(pair.Key))
	}
	fmt.Println(len(keys), "keys in order:", slices.IsSorted(keys), "errors:", failed)
	// Output: 100 keys in order: true errors: []
}
