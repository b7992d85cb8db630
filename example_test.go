package flotilla_test

import (
	"context"
	"errors"
	"fmt"
	"log"
	"os"
	"testing"
	"time"

	"github.com/flotillakv/flotilla"
	"github.com/flotillakv/flotilla/flotillatest"
	"github.com/flotillakv/flotilla/transport"
)

// memory opens a store of one node that keeps everything in memory.
func memory(o flotilla.Options) *flotilla.Node {
	o.InMemory = true
	n, err := flotilla.Open(context.Background(), o)
	if err != nil {
		log.Fatal(err)
	}
	return n
}

func must[T any](v T, err error) T {
	if err != nil {
		log.Fatal(err)
	}
	return v
}

// A directory is all that a durable store of one node needs. What was written is
// there when it is opened again.
func Example() {
	ctx := context.Background()
	dir, err := os.MkdirTemp("", "flotilla")
	if err != nil {
		log.Fatal(err)
	}
	defer os.RemoveAll(dir)

	n, err := flotilla.Open(ctx, flotilla.Options{Dir: dir})
	if err != nil {
		log.Fatal(err)
	}
	if _, err := n.Put(ctx, []byte("greeting"), []byte("hello")); err != nil {
		log.Fatal(err)
	}
	if err := n.Close(); err != nil {
		log.Fatal(err)
	}

	n, err = flotilla.Open(ctx, flotilla.Options{Dir: dir})
	if err != nil {
		log.Fatal(err)
	}
	defer n.Close()
	v, err := n.Get(ctx, []byte("greeting"))
	fmt.Println(string(v.Bytes), err)
	// Output: hello <nil>
}

// A store in memory is for tests; here with three shards, of which the second
// begins at "h" and the third at "p".
func ExampleOpen() {
	n, err := flotilla.Open(context.Background(), flotilla.Options{
		InMemory: true,
		SplitAt:  [][]byte{[]byte("h"), []byte("p")},
	})
	if err != nil {
		log.Fatal(err)
	}
	defer n.Close()
	fmt.Println("node", n.ID(), "serves")
	// Output: node 1 serves
}

func ExampleKV_Get() {
	ctx := context.Background()
	n := memory(flotilla.Options{})
	defer n.Close()

	must(n.Put(ctx, []byte("colour"), []byte("blue")))
	v, err := n.Get(ctx, []byte("colour"))
	fmt.Println(string(v.Bytes), err)

	must(n.Delete(ctx, []byte("colour")))
	_, err = n.Get(ctx, []byte("colour"))
	fmt.Println(errors.Is(err, flotilla.ErrNotFound))
	// Output:
	// blue <nil>
	// true
}

// A scan crosses shards in the order of keys. Leaving the loop ends it.
func ExampleKV_Scan() {
	ctx := context.Background()
	n := memory(flotilla.Options{SplitAt: [][]byte{[]byte("c")}})
	defer n.Close()
	for _, k := range []string{"d", "b", "a", "c"} {
		must(n.Put(ctx, []byte(k), []byte("value of "+k)))
	}
	for p, err := range n.Scan(ctx, flotilla.Range{Start: []byte("b")}) {
		if err != nil {
			log.Fatal(err)
		}
		fmt.Printf("%s: %s\n", p.Key, p.Value)
	}
	// Output:
	// b: value of b
	// c: value of c
	// d: value of d
}

func ExampleKV_Scan_reverse() {
	ctx := context.Background()
	n := memory(flotilla.Options{Shards: 4})
	defer n.Close()
	for i := range 5 {
		must(n.Put(ctx, fmt.Appendf(nil, "event/%d", i), nil))
	}
	for p, err := range n.Scan(ctx, flotilla.Range{Reverse: true, Limit: 2}) {
		if err != nil {
			log.Fatal(err)
		}
		fmt.Println(string(p.Key))
	}
	// Output:
	// event/4
	// event/3
}

func ExamplePrefix() {
	ctx := context.Background()
	n := memory(flotilla.Options{})
	defer n.Close()
	for _, k := range []string{"user/1", "user/2", "users", "visit/1"} {
		must(n.Put(ctx, []byte(k), nil))
	}
	for p, err := range n.Scan(ctx, flotilla.Prefix([]byte("user/"))) {
		if err != nil {
			log.Fatal(err)
		}
		fmt.Println(string(p.Key))
	}
	// Output:
	// user/1
	// user/2
}

// A batch is applied as a whole.
func ExampleBatch() {
	ctx := context.Background()
	n := memory(flotilla.Options{})
	defer n.Close()
	must(n.Put(ctx, []byte("draft"), []byte("text")))

	var b flotilla.Batch
	b.Put([]byte("final"), []byte("text"))
	b.Delete([]byte("draft"))
	must(n.Write(ctx, &b))

	for p, err := range n.Scan(ctx, flotilla.Range{}) {
		fmt.Printf("%s=%s %v\n", p.Key, p.Value, err)
	}
	// Output: final=text <nil>
}

// A batch over several shards cannot be atomic. It is refused as a whole, and
// the error names the boundary, unless the caller does without atomicity.
func ExampleCrossShardError() {
	ctx := context.Background()
	n := memory(flotilla.Options{SplitAt: [][]byte{[]byte("m")}})
	defer n.Close()

	var b flotilla.Batch
	b.Put([]byte("a"), []byte("1"))
	b.Put([]byte("z"), []byte("2"))
	_, err := n.Write(ctx, &b)
	var cross *flotilla.CrossShardError
	if errors.As(err, &cross) {
		fmt.Printf("boundary %s, %v\n", cross.At, flotilla.Outcome(err))
	}

	_, err = n.Write(ctx, &b, flotilla.NonAtomic())
	fmt.Println(flotilla.Outcome(err))
	// Output:
	// boundary m, not applied
	// applied
}

// A value is replaced only if nobody else has replaced it since it was read.
func ExampleKV_CAS() {
	ctx := context.Background()
	n := memory(flotilla.Options{})
	defer n.Close()
	key := []byte("counter")

	r := must(n.CAS(ctx, key, flotilla.Version{}, []byte("1"))) // the zero version: put if absent
	must(n.CAS(ctx, key, r.Version, []byte("2")))

	_, err := n.CAS(ctx, key, r.Version, []byte("3"))
	var conflict *flotilla.ConflictError
	fmt.Println(errors.As(err, &conflict), string(must(n.Get(ctx, key)).Bytes))
	// Output: true 2
}

// Money moves only if it is there. Reads of a transaction see the keys as they
// were before its writes.
func ExampleKV_Txn() {
	ctx := context.Background()
	n := memory(flotilla.Options{})
	defer n.Close()
	from, to := []byte("account/1"), []byte("account/2")
	must(n.Put(ctx, from, []byte("100")))

	move := flotilla.Txn{
		If:   []flotilla.Cond{flotilla.IfValue(from, []byte("100")), flotilla.IfAbsent(to)},
		Then: []flotilla.Op{flotilla.PutOp(from, []byte("70")), flotilla.PutOp(to, []byte("30"))},
		Else: []flotilla.Op{flotilla.GetOp(from), flotilla.GetOp(to)},
	}
	fmt.Println(must(n.Txn(ctx, move)).Succeeded)

	again := must(n.Txn(ctx, move))
	fmt.Printf("%v: %s and %s\n", again.Succeeded, again.Gets[0].Value.Bytes, again.Gets[1].Value.Bytes)
	// Output:
	// true
	// false: 70 and 30
}

func ExampleKV_DeleteRange() {
	ctx := context.Background()
	n := memory(flotilla.Options{})
	defer n.Close()
	for _, k := range []string{"cache/1", "cache/2", "config"} {
		must(n.Put(ctx, []byte(k), nil))
	}
	must(n.DeleteRange(ctx, flotilla.Prefix([]byte("cache/"))))
	for p, err := range n.Scan(ctx, flotilla.Range{}) {
		fmt.Println(string(p.Key), err)
	}
	// Output: config <nil>
}

// A client needs the address of one node; it finds the others by itself.
func ExampleDial() {
	ctx := context.Background()
	n := memory(flotilla.Options{ClientListen: "127.0.0.1:0", Shards: 8})
	defer n.Close()

	c, err := flotilla.Dial(ctx, []string{n.Addr()}, flotilla.ClientOptions{ClusterID: n.Cluster()})
	if err != nil {
		log.Fatal(err)
	}
	defer c.Close()
	must(c.Put(ctx, []byte("k"), []byte("from afar")))
	fmt.Println(string(must(n.Get(ctx, []byte("k"))).Bytes))
	// Output: from afar
}

// An observer is told of what happens inside; here, of the first leader of the
// only shard of user data, whose id is 2 (1 is the cluster's catalog).
func ExampleObserver() {
	leads := make(chan flotilla.LeaderEvent, 64)
	n := memory(flotilla.Options{Observer: flotilla.Observer{
		OnLeader: func(e flotilla.LeaderEvent) {
			if e.Shard == 2 && e.Here {
				leads <- e
			}
		},
	}})
	defer n.Close()
	e := <-leads
	fmt.Println("node", e.Leader, "leads shard", e.Shard)
	// Output: node 1 leads shard 2
}

// Outcome says what a failed write has done. Only MaybeApplied leaves a doubt;
// then read before writing again.
func ExampleOutcome() {
	n := memory(flotilla.Options{})
	defer n.Close()
	ctx := context.Background()

	_, err := n.Put(ctx, []byte("k"), []byte("v"))
	fmt.Println("good:", flotilla.Outcome(err))

	_, err = n.Put(ctx, nil, []byte("v"))
	fmt.Println("empty key:", flotilla.Outcome(err))

	over, cancel := context.WithCancel(ctx)
	cancel()
	_, err = n.Put(over, []byte("k"), []byte("w"))
	fmt.Println("too late:", flotilla.Outcome(err))

	fmt.Println("no answer:", flotilla.Outcome(flotilla.ErrAmbiguous))
	// Output:
	// good: applied
	// empty key: not applied
	// too late: not applied
	// no answer: maybe applied
}

// In a session a write that got no answer is tried again, and takes effect once.
// The log of a plain counter shows it: every step names the version before it, so
// a second execution of any step would be a conflict for the next one.
func ExampleSession() {
	ctx := context.Background()
	n := memory(flotilla.Options{})
	defer n.Close()
	s, err := n.NewSession(flotilla.SessionOptions{TTL: 30 * time.Second})
	if err != nil {
		log.Fatal(err)
	}
	defer s.Close()

	var at flotilla.Version
	for i := range 3 {
		r, err := s.CAS(ctx, []byte("counter"), at, []byte(fmt.Sprint(i+1)))
		if errors.Is(err, flotilla.ErrAmbiguous) { // only if the context ends first
			log.Fatal(err)
		}
		at = r.Version
	}
	fmt.Println(string(must(s.Get(ctx, []byte("counter"))).Bytes))
	// Output: 3
}

// Three nodes form a cluster. Here they share a process and a network within it;
// on three machines each has Dir, Listen and Join with the others' addresses.
func ExampleOptions_cluster() {
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	network := transport.NewNetwork()
	nodes := make(chan *flotilla.Node, 3)
	for id := uint32(1); id <= 3; id++ {
		go func() {
			nodes <- must(flotilla.Open(ctx, flotilla.Options{
				InMemory: true, Network: network, NodeID: id, Bootstrap: 3, Join: []string{"n1", "n2", "n3"}, Shards: 4,
			}))
		}()
	}
	a, b, c := <-nodes, <-nodes, <-nodes
	defer a.Close()
	defer b.Close()
	defer c.Close()

	must(a.Put(ctx, []byte("k"), []byte("any node takes any key")))
	fmt.Println(string(must(c.Get(ctx, []byte("k"))).Bytes))
	s := must(b.Status(ctx))
	fmt.Println(s.State, len(s.Nodes))
	// Output:
	// any node takes any key
	// HEALTHY 3
}

// Local reads ask the nearest replica, without a round to the others. They may
// be old.
func ExampleLocal() {
	ctx := context.Background()
	n := memory(flotilla.Options{})
	defer n.Close()
	must(n.Put(ctx, []byte("k"), []byte("v")))
	v, err := n.Get(ctx, []byte("k"), flotilla.Local())
	fmt.Println(string(v.Bytes), err)
	// Output: v <nil>
}

// runExample is what `go test` gives a test; an example has to do without.
func runExample(test func(testing.TB)) {
	done := make(chan struct{})
	go func() {
		defer close(done)
		t := &exampleTB{}
		defer t.end()
		test(t)
	}()
	<-done
}

// exampleTB is the little of testing.TB that a cluster needs.
type exampleTB struct {
	testing.TB
	cleanups []func()
}

func (t *exampleTB) Helper()          {}
func (t *exampleTB) Cleanup(f func()) { t.cleanups = append(t.cleanups, f) }
func (t *exampleTB) Fatalf(format string, a ...any) {
	log.Fatalf(format, a...)
}
func (t *exampleTB) Errorf(format string, a ...any) { log.Printf(format, a...) }
func (t *exampleTB) end() {
	for i := len(t.cleanups) - 1; i >= 0; i-- {
		t.cleanups[i]()
	}
}

// Package flotillatest gives a test a whole cluster, and breaks it on demand.
func Example_testCluster() {
	runExample(func(t testing.TB) { // in a test: func TestMine(t *testing.T) {
		ctx := context.Background()
		c := flotillatest.NewCluster(t, 3)
		must(c.KV().Put(ctx, []byte("k"), []byte("v")))

		c.Kill(0)
		c.AwaitLeaders()
		fmt.Println("without one node:", string(must(c.KV().Get(ctx, []byte("k"))).Bytes))

		c.Restart(0)
		c.PowerLoss() // of all three
		c.RestartAll()
		fmt.Println("after a power loss of all:", string(must(c.KV().Get(ctx, []byte("k"))).Bytes))
	})
	// Output:
	// without one node: v
	// after a power loss of all: v
}
