package flotilla_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/flotillakv/flotilla"
	"github.com/flotillakv/flotilla/engine"
	"github.com/flotillakv/flotilla/flotillatest"
	"github.com/flotillakv/flotilla/internal/sim/simfs"
	"github.com/flotillakv/flotilla/multiraft/raft"
	"github.com/flotillakv/flotilla/shard"
	"github.com/flotillakv/flotilla/transport"
)

func badContext(t *testing.T) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	t.Cleanup(cancel)
	return ctx
}

// is returns a check that an error has type E and, if match is given, that it matches.
func is[E error](match func(E) bool) func(error) error {
	return func(err error) error {
		var e E
		if !errors.As(err, &e) {
			return fmt.Errorf("got %T (%v), want %T", err, err, e)
		}
		if match != nil && !match(e) {
			return fmt.Errorf("got %+v", e)
		}
		return nil
	}
}

func isErr(want error) func(error) error {
	return func(err error) error {
		if !errors.Is(err, want) {
			return fmt.Errorf("got %v, want %v", err, want)
		}
		return nil
	}
}

// dump reads a whole store.
func dump(t *testing.T, kv flotilla.KV) string {
	t.Helper()
	var b strings.Builder
	for p, err := range kv.Scan(badContext(t), flotilla.Range{}) {
		if err != nil {
			t.Fatal(err)
		}
		fmt.Fprintf(&b, "%q=%q@%v\n", p.Key, p.Value, p.Version)
	}
	return b.String()
}

// TestBadRequests: each bad request, through an embedded node and through a
// client, is refused with its type, is known to have had no effect, and has none.
func TestBadRequests(t *testing.T) {
	c := flotillatest.NewCluster(t, 3, flotillatest.WithSplitAt([]byte("m")))
	ctx := badContext(t)
	a, z, long := []byte("a"), []byte("z"), bytes.Repeat([]byte("k"), flotilla.MaxKeyBytes+1)
	huge := make([]byte, flotilla.MaxValueBytes+1)
	for _, k := range [][]byte{a, z} {
		if _, err := c.KV().Put(ctx, k, []byte("1")); err != nil {
			t.Fatal(err)
		}
	}
	batch := func(f func(*flotilla.Batch)) *flotilla.Batch {
		b := new(flotilla.Batch)
		f(b)
		return b
	}
	scan := func(kv flotilla.KV, r flotilla.Range) (err error) {
		for _, err = range kv.Scan(ctx, r) {
			if err == nil {
				return errors.New("the scan yields pairs")
			}
		}
		return err
	}
	write := func(kv flotilla.KV, b *flotilla.Batch) error {
		_, err := kv.Write(ctx, b)
		return err
	}
	key := is(func(e *flotilla.ArgumentError) bool { return e.Field == "key" })
	keySize := is(func(e *flotilla.LimitError) bool { return e.Limit == flotilla.MaxKeyBytes && e.Got == len(long) })
	cross := is(func(e *flotilla.CrossShardError) bool { return string(e.At) == "m" })
	rangeErr := is(func(e *flotilla.ArgumentError) bool { return e.Field == "range" })
	rows := []struct {
		name string
		do   func(flotilla.KV) error
		want func(error) error
	}{
		{"get of an empty key", func(kv flotilla.KV) error { _, err := kv.Get(ctx, nil); return err }, key},
		{"put of an empty key", func(kv flotilla.KV) error { _, err := kv.Put(ctx, nil, a); return err }, key},
		{"delete of an empty key", func(kv flotilla.KV) error { _, err := kv.Delete(ctx, []byte{}); return err }, key},
		{"cas of an empty key", func(kv flotilla.KV) error { _, err := kv.CAS(ctx, nil, flotilla.Version{}, a); return err }, key},
		{"batch with an empty key", func(kv flotilla.KV) error {
			return write(kv, batch(func(b *flotilla.Batch) { b.Put(a, z); b.Put(nil, z) }))
		}, key},
		{"txn with an empty key", func(kv flotilla.KV) error {
			_, err := kv.Txn(ctx, flotilla.Txn{Then: []flotilla.Op{flotilla.PutOp(nil, a)}})
			return err
		}, key},
		{"get of an oversized key", func(kv flotilla.KV) error { _, err := kv.Get(ctx, long); return err }, keySize},
		{"put of an oversized key", func(kv flotilla.KV) error { _, err := kv.Put(ctx, long, a); return err }, keySize},
		{"delete of an oversized key", func(kv flotilla.KV) error { _, err := kv.Delete(ctx, long); return err }, keySize},
		{"oversized value", func(kv flotilla.KV) error { _, err := kv.Put(ctx, a, huge); return err },
			is(func(e *flotilla.LimitError) bool {
				return e.Limit == flotilla.MaxValueBytes && e.Got == len(huge) && strings.Contains(e.What, "value")
			})},
		{"oversized value to swap", func(kv flotilla.KV) error { _, err := kv.CAS(ctx, a, flotilla.Version{}, huge); return err },
			is(func(e *flotilla.LimitError) bool { return e.Limit == flotilla.MaxValueBytes })},
		{"oversized batch", func(kv flotilla.KV) error {
			return write(kv, batch(func(b *flotilla.Batch) { b.Put(a, huge[:2<<20]); b.Put([]byte("b"), huge[:2<<20]) }))
		}, is(func(e *flotilla.LimitError) bool { return e.Limit == flotilla.MaxBatchBytes })},
		{"empty batch", func(kv flotilla.KV) error { return write(kv, new(flotilla.Batch)) }, is[*flotilla.ArgumentError](nil)},
		{"nil batch", func(kv flotilla.KV) error { return write(kv, nil) }, is[*flotilla.ArgumentError](nil)},
		{"empty txn", func(kv flotilla.KV) error { _, err := kv.Txn(ctx, flotilla.Txn{}); return err }, is[*flotilla.ArgumentError](nil)},
		{"scan with start after end", func(kv flotilla.KV) error { return scan(kv, flotilla.Range{Start: z, End: a}) }, rangeErr},
		{"reverse scan with start after end", func(kv flotilla.KV) error {
			return scan(kv, flotilla.Range{Start: z, End: a, Reverse: true})
		}, rangeErr},
		{"range deletion with start after end", func(kv flotilla.KV) error {
			_, err := kv.DeleteRange(ctx, flotilla.Range{Start: z, End: a})
			return err
		}, rangeErr},
		{"batch over two shards", func(kv flotilla.KV) error {
			return write(kv, batch(func(b *flotilla.Batch) { b.Put(a, a); b.Delete(z) }))
		}, cross},
		{"txn over two shards", func(kv flotilla.KV) error {
			_, err := kv.Txn(ctx, flotilla.Txn{If: []flotilla.Cond{flotilla.IfExists(a)}, Then: []flotilla.Op{flotilla.DeleteOp(z)}})
			return err
		}, cross},
		{"range deletion over two shards", func(kv flotilla.KV) error {
			_, err := kv.DeleteRange(ctx, flotilla.Range{Start: a})
			return err
		}, cross},
		{"swap of a key that is there", func(kv flotilla.KV) error { _, err := kv.CAS(ctx, a, flotilla.Version{}, z); return err },
			is(func(e *flotilla.ConflictError) bool { return !e.Have.IsZero() })},
		{"swap of a key that is not", func(kv flotilla.KV) error {
			_, err := kv.CAS(ctx, []byte("b"), flotilla.Version{Lineage: 1, Index: 1}, z)
			return err
		}, is(func(e *flotilla.ConflictError) bool { return e.Have.IsZero() })},
		{"get of an absent key", func(kv flotilla.KV) error { _, err := kv.Get(ctx, []byte("b")); return err }, isErr(flotilla.ErrNotFound)},
	}
	before := dump(t, c.KV())
	for _, door := range []struct {
		name string
		kv   flotilla.KV
	}{{"node", c.Node(0)}, {"other node", c.Node(2)}, {"client", c.KV()}} {
		for _, r := range rows {
			t.Run(door.name+"/"+r.name, func(t *testing.T) {
				err := r.do(door.kv)
				if err == nil {
					t.Fatal("no error")
				}
				if bad := r.want(err); bad != nil {
					t.Error(bad)
				}
				if got := flotilla.Outcome(err); got != flotilla.NotApplied {
					t.Errorf("outcome %v of %v", got, err)
				}
			})
		}
	}
	if after := dump(t, c.KV()); after != before {
		t.Errorf("the store holds\n%snow, not\n%s", after, before)
	}
	c.AwaitEqualReplicas()
}

// TestKeyOutsideEveryShard: a request that names a keyspace without shards, or a
// shard that does not hold its key, finds no taker.
func TestKeyOutsideEveryShard(t *testing.T) {
	net := transport.NewNetwork()
	ctx := badContext(t)
	n, err := flotilla.Open(ctx, flotilla.Options{InMemory: true, NodeID: 1, Network: net, Bootstrap: 1, SplitAt: [][]byte{[]byte("m")}})
	if err != nil {
		t.Fatal(err)
	}
	defer n.Close()
	shards, err := n.Shards(ctx)
	if err != nil {
		t.Fatal(err)
	}
	low := shards[0]
	for _, s := range shards {
		if s.Keyspace == 1 && len(s.Start) == 0 {
			low = s
		}
	}
	put, err := shard.PutCommand([]byte("z"), []byte("1"))
	if err != nil {
		t.Fatal(err)
	}
	before := dump(t, n)
	caller := net.Caller(0, 1)
	defer caller.Close()
	for _, tc := range []struct {
		name string
		req  shard.Request
		want func(error) error
	}{
		{"a keyspace that is not there", shard.Request{Keyspace: 7, Kind: shard.KindWrite, Command: put}, is(func(e *flotilla.ArgumentError) bool { return e.Field == "key" })},
		{"a key of another shard", shard.Request{Keyspace: 1, Shard: raft.ShardID(low.ID), DescVersion: low.Version, Hop: shard.MaxHops, Kind: shard.KindWrite, Command: put},
			is(func(e *flotilla.EpochError) bool { return len(e.Descriptors) > 0 })},
		{"a shard that is not there", shard.Request{Keyspace: 1, Shard: 999, DescVersion: 1, Hop: shard.MaxHops, Kind: shard.KindGet, Key: []byte("z")}, is[*flotilla.EpochError](nil)},
	} {
		t.Run(tc.name, func(t *testing.T) {
			ctx, cancel := context.WithTimeout(ctx, 300*time.Millisecond)
			defer cancel()
			resp, err := caller.Do(ctx, &tc.req)
			if err == nil {
				err = resp.Err
			}
			if err == nil {
				t.Fatal("no error")
			}
			if bad := tc.want(err); bad != nil {
				t.Error(bad)
			}
			if got := flotilla.Outcome(err); got != flotilla.NotApplied {
				t.Errorf("outcome %v of %v", got, err)
			}
		})
	}
	if after := dump(t, n); after != before {
		t.Errorf("the store holds\n%snow, not\n%s", after, before)
	}
}

// TestStopped: a node and a client that were closed refuse everything at once,
// and closing them again is no error.
func TestStopped(t *testing.T) {
	flotillatest.CheckLeaks(t)
	ctx := badContext(t)
	net := transport.NewNetwork()
	n, err := flotilla.Open(ctx, flotilla.Options{InMemory: true, NodeID: 1, Network: net, Bootstrap: 1})
	if err != nil {
		t.Fatal(err)
	}
	client, err := flotilla.Dial(ctx, []string{"n1"}, flotilla.ClientOptions{Network: net})
	if err != nil {
		t.Fatal(err)
	}
	gone, err := flotilla.Dial(ctx, []string{"n1"}, flotilla.ClientOptions{Network: net})
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(client.Close(), client.Close(), n.Close(), n.Close()); err != nil {
		t.Fatal(err)
	}
	defer gone.Close()
	k := []byte("k")
	calls := map[string]func(kv flotilla.KV, ctx context.Context) error{
		"get":    func(kv flotilla.KV, ctx context.Context) error { _, err := kv.Get(ctx, k); return err },
		"put":    func(kv flotilla.KV, ctx context.Context) error { _, err := kv.Put(ctx, k, k); return err },
		"delete": func(kv flotilla.KV, ctx context.Context) error { _, err := kv.Delete(ctx, k); return err },
		"range": func(kv flotilla.KV, ctx context.Context) error {
			_, err := kv.DeleteRange(ctx, flotilla.Prefix(k))
			return err
		},
		"cas": func(kv flotilla.KV, ctx context.Context) error {
			_, err := kv.CAS(ctx, k, flotilla.Version{}, k)
			return err
		},
		"txn": func(kv flotilla.KV, ctx context.Context) error {
			_, err := kv.Txn(ctx, flotilla.Txn{Then: []flotilla.Op{flotilla.PutOp(k, k)}})
			return err
		},
		"batch": func(kv flotilla.KV, ctx context.Context) error {
			var b flotilla.Batch
			b.Put(k, k)
			_, err := kv.Write(ctx, &b)
			return err
		},
		"scan": func(kv flotilla.KV, ctx context.Context) (err error) {
			for _, err = range kv.Scan(ctx, flotilla.Range{}) {
			}
			return err
		},
	}
	for name, call := range calls {
		if bad := isErr(flotilla.ErrClosed)(call(n, ctx)); bad != nil {
			t.Errorf("%s of a closed node: %v", name, bad)
		}
		if bad := isErr(flotilla.ErrClosed)(call(client, ctx)); bad != nil {
			t.Errorf("%s of a closed client: %v", name, bad)
		}
		short, cancel := context.WithTimeout(ctx, 50*time.Millisecond)
		err := call(gone, short)
		cancel()
		if bad := is[*flotilla.UnavailableError](nil)(err); bad != nil {
			t.Errorf("%s of a client whose node is gone: %v", name, bad)
		}
		if got := flotilla.Outcome(err); got != flotilla.NotApplied {
			t.Errorf("%s of a client whose node is gone: outcome %v of %v", name, got, err)
		}
	}
	for name, err := range map[string]error{
		"status": second(n.Status(ctx)), "nodes": second(n.Nodes(ctx)), "shards": second(n.Shards(ctx)), "shard": second(n.Shard(ctx, 1)),
		"transfer":        n.TransferLeader(ctx, 1, 1),
		"client's status": second(client.Status(ctx)), "client's nodes": second(client.Nodes(ctx)), "client's shards": second(client.Shards(ctx)),
	} {
		if bad := isErr(flotilla.ErrClosed)(err); bad != nil {
			t.Errorf("%s: %v", name, bad)
		}
	}
	short, cancel := context.WithTimeout(ctx, 100*time.Millisecond)
	defer cancel()
	_, err = flotilla.Dial(short, []string{"n1"}, flotilla.ClientOptions{Network: net})
	if bad := is[*flotilla.UnavailableError](nil)(err); bad != nil {
		t.Errorf("dial: %v", bad)
	}
}

func second[T any](_ T, err error) error { return err }

// TestWrongDirectory: a directory that is not this node's is refused with path
// and reason, and not a byte of it changes.
func TestWrongDirectory(t *testing.T) {
	ctx := badContext(t)
	fs := simfs.New()
	options := func() flotilla.Options {
		return flotilla.Options{InMemory: true, FS: fs, Dir: "/data/n1"}
	}
	n, err := flotilla.Open(ctx, options())
	if err != nil {
		t.Fatal(err)
	}
	if _, err := n.Put(ctx, []byte("k"), []byte("v")); err != nil {
		t.Fatal(err)
	}
	reason := func(want engine.Reason, texts ...string) func(error) error {
		return is(func(e *flotilla.OpenError) bool {
			for _, s := range texts {
				if !strings.Contains(e.Error(), s) {
					return false
				}
			}
			return e.Reason == want && e.Path == "/data/n1"
		})
	}
	_, err = flotilla.Open(ctx, options())
	if bad := reason(engine.Locked)(err); bad != nil {
		t.Errorf("locked: %v", bad)
	}
	if v, err := n.Get(ctx, []byte("k")); err != nil || string(v.Bytes) != "v" {
		t.Errorf("the node that holds the lock: %q, %v", v.Bytes, err)
	}
	cluster := n.Cluster()
	if err := n.Close(); err != nil {
		t.Fatal(err)
	}
	other := strings.Repeat("0f", 16)
	before := fs.Digest()
	for _, tc := range []struct {
		name string
		edit func(*flotilla.Options)
		want func(error) error
	}{
		{"another node", func(o *flotilla.Options) { o.NodeID = 2 }, reason(engine.OtherNode, "1", "2")},
		{"another cluster", func(o *flotilla.Options) { o.ClusterID = other }, reason(engine.OtherCluster, cluster, other)},
		{"another cluster and node", func(o *flotilla.Options) { o.ClusterID, o.NodeID = other, 2 }, is[*flotilla.OpenError](nil)},
		{"options that make no sense", func(o *flotilla.Options) { o.Shards = -1 }, is(func(e *flotilla.OptionError) bool { return e.Field == "Shards" })},
	} {
		t.Run(tc.name, func(t *testing.T) {
			o := options()
			tc.edit(&o)
			n, err := flotilla.Open(ctx, o)
			if err == nil {
				n.Close()
				t.Fatal("no error")
			}
			if bad := tc.want(err); bad != nil {
				t.Error(bad)
			}
			if fs.Digest() != before {
				t.Error("files have changed")
			}
		})
	}
	if n, err = flotilla.Open(ctx, options()); err != nil {
		t.Fatal(err)
	}
	defer n.Close()
	if v, err := n.Get(ctx, []byte("k")); err != nil || string(v.Bytes) != "v" {
		t.Errorf("in the end: %q, %v", v.Bytes, err)
	}
}

// TestNoDirectory: a path that cannot be a directory is refused.
func TestNoDirectory(t *testing.T) {
	file := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(file, []byte("precious"), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, dir := range []string{file, filepath.Join(file, "below")} {
		n, err := flotilla.Open(badContext(t), flotilla.Options{Dir: dir})
		if err == nil {
			n.Close()
			t.Fatalf("%s opens", dir)
		}
		if bad := is(func(e *flotilla.OpenError) bool { return e.Path == dir })(err); bad != nil {
			t.Error(bad)
		}
	}
	if b, err := os.ReadFile(file); err != nil || string(b) != "precious" {
		t.Errorf("the file holds %q, %v", b, err)
	}
	_, err := flotilla.Open(badContext(t), flotilla.Options{})
	if bad := is(func(e *flotilla.OptionError) bool { return e.Field == "Dir" })(err); bad != nil {
		t.Error(bad)
	}
}

// TestWrongCluster: a client that wants another cluster is refused, in process
// and over sockets.
func TestWrongCluster(t *testing.T) {
	flotillatest.CheckLeaks(t)
	ctx := badContext(t)
	other := strings.Repeat("0f", 16)
	refused := is(func(e *flotilla.RefusedError) bool { return e.Reason == transport.RefusedCluster })
	network := transport.NewNetwork()
	n, err := flotilla.Open(ctx, flotilla.Options{InMemory: true, NodeID: 1, Network: network, Bootstrap: 1})
	if err != nil {
		t.Fatal(err)
	}
	defer n.Close()
	_, err = flotilla.Dial(ctx, []string{"n1"}, flotilla.ClientOptions{Network: network, ClusterID: other})
	if bad := refused(err); bad != nil {
		t.Errorf("in process: %v", bad)
	}
	s, err := flotilla.Open(ctx, flotilla.Options{InMemory: true, ClientListen: "127.0.0.1:0"})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	_, err = flotilla.Dial(ctx, []string{s.Addr()}, flotilla.ClientOptions{ClusterID: other})
	if bad := refused(err); bad != nil {
		t.Errorf("over sockets: %v", bad)
	}
	_, err = flotilla.Dial(ctx, []string{s.Addr()}, flotilla.ClientOptions{ClusterID: "xyz"})
	if bad := is(func(e *flotilla.OptionError) bool { return e.Field == "ClusterID" })(err); bad != nil {
		t.Error(bad)
	}
	c, err := flotilla.Dial(ctx, []string{s.Addr()}, flotilla.ClientOptions{ClusterID: s.Cluster()})
	if err != nil {
		t.Fatal(err)
	}
	if err := c.Close(); err != nil {
		t.Fatal(err)
	}
}

// TestPortInUse: a port that is taken is an error that names it, for peers and
// for clients; the directory can be opened afterwards.
func TestPortInUse(t *testing.T) {
	flotillatest.CheckLeaks(t)
	ctx := badContext(t)
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	addr := l.Addr().String()
	fs := simfs.New()
	for name, o := range map[string]flotilla.Options{
		"peers":                        {Listen: addr},
		"clients":                      {ClientListen: addr},
		"clients of a node with peers": {Listen: "127.0.0.1:0", ClientListen: addr},
	} {
		o.InMemory, o.FS, o.Dir, o.Bootstrap = true, fs, "/data", 1
		n, err := flotilla.Open(ctx, o)
		if err == nil {
			n.Close()
			t.Fatalf("%s: it opens", name)
		}
		if bad := is[*net.OpError](nil)(err); bad != nil {
			t.Errorf("%s: %v", name, bad)
		}
		if !errors.Is(err, syscall.EADDRINUSE) || !strings.Contains(err.Error(), addr) {
			t.Errorf("%s: %v", name, err)
		}
	}
	n, err := flotilla.Open(ctx, flotilla.Options{InMemory: true, FS: fs, Dir: "/data"})
	if err != nil {
		t.Fatal(err)
	}
	if err := n.Close(); err != nil {
		t.Fatal(err)
	}
}

// TestTwoNodesOneID: of the nodes that are to form a cluster two have one id:
// whoever finds out refuses, and no cluster comes into being.
func TestTwoNodesOneID(t *testing.T) {
	flotillatest.CheckLeaks(t)
	ctx, cancel := context.WithCancel(badContext(t))
	defer cancel()
	ids := []uint32{1, 2, 2}
	var addrs []string
	peers := make([]net.Listener, len(ids))
	for i := range ids {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		peers[i], addrs = l, append(addrs, l.Addr().String())
	}
	errs := make(chan error, len(ids))
	for i, id := range ids {
		go func() {
			n, err := flotilla.Open(ctx, flotilla.Options{
				InMemory: true, NodeID: id, PeerListener: peers[i], ClientListen: "127.0.0.1:0", Bootstrap: len(ids), Join: addrs,
			})
			if err == nil {
				err = fmt.Errorf("node %d of %v serves", i, ids)
				n.Close()
			}
			errs <- err
		}()
	}
	found := false
	for range ids {
		err := <-errs
		var join *flotilla.JoinError
		switch {
		case errors.As(err, &join):
			found = true
			if !strings.Contains(err.Error(), "id 2") || !strings.Contains(err.Error(), addrs[1]) || !strings.Contains(err.Error(), addrs[2]) {
				t.Errorf("the error names neither the id nor both addresses: %v", err)
			}
			cancel()
		case !errors.Is(err, context.Canceled):
			t.Error(err)
		}
	}
	if !found {
		t.Error("nobody found out")
	}
}

// TestSecondNodeOfAnID: a node with an empty directory and the id of a member is
// refused by the running cluster, which goes on.
func TestSecondNodeOfAnID(t *testing.T) {
	ctx := badContext(t)
	peer := func() net.Listener {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		return l
	}
	listeners := []net.Listener{peer(), peer()}
	addrs := []string{listeners[0].Addr().String(), listeners[1].Addr().String()}
	nodes := make([]*flotilla.Node, 2)
	errs := make(chan error, 2)
	for i := range nodes {
		go func() {
			var err error
			nodes[i], err = flotilla.Open(ctx, flotilla.Options{
				InMemory: true, NodeID: uint32(i + 1), PeerListener: listeners[i], ClientListen: "127.0.0.1:0", Bootstrap: 2, Join: addrs,
			})
			errs <- err
		}()
	}
	if err := errors.Join(<-errs, <-errs); err != nil {
		t.Fatal(err)
	}
	for _, n := range nodes {
		defer n.Close()
	}
	for id := uint32(1); id <= 2; id++ {
		short, cancel := context.WithTimeout(ctx, 5*time.Second)
		n, err := flotilla.Open(short, flotilla.Options{
			InMemory: true, NodeID: id, PeerListener: peer(), ClientListen: "127.0.0.1:0", Bootstrap: 2, Join: addrs,
		})
		cancel()
		if err == nil {
			n.Close()
			t.Fatalf("a second node %d serves", id)
		}
		if bad := is[*flotilla.JoinError](nil)(err); bad != nil {
			t.Errorf("node %d: %v", id, bad)
		}
	}
	if _, err := nodes[0].Put(ctx, []byte("k"), []byte("v")); err != nil {
		t.Fatal(err)
	}
	if v, err := nodes[1].Get(ctx, []byte("k")); err != nil || string(v.Bytes) != "v" {
		t.Fatalf("%q, %v", v.Bytes, err)
	}
}

// TestContextOver: a call whose context is over already does nothing, says so, and
// is known to have done nothing; through a node, a client and a session.
func TestContextOver(t *testing.T) {
	flotillatest.CheckLeaks(t)
	ctx := badContext(t)
	network := transport.NewNetwork()
	n, err := flotilla.Open(ctx, flotilla.Options{InMemory: true, NodeID: 1, Network: network, Bootstrap: 1})
	if err != nil {
		t.Fatal(err)
	}
	defer n.Close()
	client, err := flotilla.Dial(ctx, []string{"n1"}, flotilla.ClientOptions{Network: network})
	if err != nil {
		t.Fatal(err)
	}
	defer client.Close()
	session, err := client.NewSession(flotilla.SessionOptions{})
	if err != nil {
		t.Fatal(err)
	}
	defer session.Close()
	k := []byte("k")
	over, cancel := context.WithCancel(ctx)
	cancel()
	before := dump(t, n)
	for door, kv := range map[string]flotilla.KV{"node": n, "client": client, "session": session} {
		for name, call := range map[string]func() error{
			"get":    func() error { _, err := kv.Get(over, k); return err },
			"put":    func() error { _, err := kv.Put(over, k, k); return err },
			"delete": func() error { _, err := kv.Delete(over, k); return err },
			"range":  func() error { _, err := kv.DeleteRange(over, flotilla.Prefix(k)); return err },
			"cas":    func() error { _, err := kv.CAS(over, k, flotilla.Version{}, k); return err },
			"txn": func() error {
				_, err := kv.Txn(over, flotilla.Txn{Then: []flotilla.Op{flotilla.PutOp(k, k)}})
				return err
			},
			"batch": func() error {
				var b flotilla.Batch
				b.Put(k, k)
				_, err := kv.Write(over, &b)
				return err
			},
			"scan": func() (err error) {
				for _, err = range kv.Scan(over, flotilla.Range{}) {
				}
				return err
			},
		} {
			err := call()
			if !errors.Is(err, context.Canceled) || flotilla.Outcome(err) != flotilla.NotApplied || !strings.Contains(err.Error(), "nothing was applied") {
				t.Errorf("%s, %s: %v (%v)", door, name, err, flotilla.Outcome(err))
			}
		}
	}
	if after := dump(t, n); after != before {
		t.Errorf("the store holds %q, before %q", after, before)
	}
}
