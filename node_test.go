package flotilla

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/flotillakv/flotilla/transport"
)

func testContext(t *testing.T) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	t.Cleanup(cancel)
	return ctx
}

// TestSingleNode: only Dir is set; what was written is there after a restart.
func TestSingleNode(t *testing.T) {
	ctx := testContext(t)
	dir := t.TempDir()
	n, err := Open(ctx, Options{Dir: dir})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := n.Put(ctx, []byte("a"), []byte("1")); err != nil {
		t.Fatal(err)
	}
	v, err := n.Get(ctx, []byte("a"))
	if err != nil || string(v.Bytes) != "1" {
		t.Fatalf("got %q, %v", v.Bytes, err)
	}
	if err := n.Close(); err != nil {
		t.Fatal(err)
	}
	if err := n.Close(); err != nil {
		t.Fatalf("second close: %v", err)
	}
	if _, err := n.Get(ctx, []byte("a")); !errors.Is(err, ErrClosed) {
		t.Fatalf("get after close: %v", err)
	}
	n, err = Open(ctx, Options{Dir: dir})
	if err != nil {
		t.Fatal(err)
	}
	defer n.Close()
	v, err = n.Get(ctx, []byte("a"))
	if err != nil || string(v.Bytes) != "1" {
		t.Fatalf("after restart: got %q, %v", v.Bytes, err)
	}
	if _, err := n.Get(ctx, []byte("b")); !errors.Is(err, ErrNotFound) {
		t.Fatalf("absent key: %v", err)
	}
}

// openThree opens nodes 1 to 3 of a new cluster in this process, each with what with
// says of it besides, and closes them at the end of the test. open opens one of them
// anew that was closed.
func openThree(t *testing.T, with func(i int) Options) (nodes []*Node, open func(i int) error) {
	t.Helper()
	net := transport.NewNetwork()
	nodes = make([]*Node, 3)
	open = func(i int) error {
		o := with(i)
		o.InMemory, o.NodeID, o.Network, o.Bootstrap, o.Join = true, uint32(i+1), net, 3, []string{"n1", "n2", "n3"}
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		n, err := Open(ctx, o)
		if err != nil {
			return fmt.Errorf("node %d: %w", i+1, err)
		}
		nodes[i] = n
		return nil
	}
	t.Cleanup(func() {
		for _, n := range nodes {
			if n != nil {
				n.Close()
			}
		}
	})
	errs := make(chan error, len(nodes))
	for i := range nodes {
		go func() { errs <- open(i) }()
	}
	var err error
	for range nodes {
		err = errors.Join(err, <-errs)
	}
	if err != nil {
		t.Fatal(err)
	}
	return nodes, open
}

// TestThreeNodesInProcess: three nodes form a cluster over an in-process network
// and serve each other's keys.
func TestThreeNodesInProcess(t *testing.T) {
	ctx := testContext(t)
	nodes, _ := openThree(t, func(int) Options { return Options{Shards: 8} })
	for i := range 200 {
		if _, err := nodes[i%3].Put(ctx, fmt.Appendf(nil, "%c%03d", 'a'+i%26, i), fmt.Appendf(nil, "v%d", i)); err != nil {
			t.Fatalf("put %d: %v", i, err)
		}
	}
	for _, n := range nodes {
		count := 0
		for _, err := range n.Scan(ctx, Range{}) {
			if err != nil {
				t.Fatal(err)
			}
			count++
		}
		if count != 200 {
			t.Fatalf("node %d scans %d keys", n.ID(), count)
		}
	}
}

// TestMetrics: the readings reach a registry while the node is open, and it is
// free for the next one afterwards.
func TestMetrics(t *testing.T) {
	ctx := testContext(t)
	reg := prometheus.NewRegistry()
	for range 2 {
		n, err := Open(ctx, Options{InMemory: true, Registerer: reg, Shards: 4})
		if err != nil {
			t.Fatal(err)
		}
		if _, err := n.Put(ctx, []byte("a"), []byte("1")); err != nil {
			t.Fatal(err)
		}
		if _, err := Open(ctx, Options{InMemory: true, Registerer: reg}); err == nil {
			t.Fatal("a second node with the same id registered in the same registry")
		}
		fams, err := reg.Gather()
		if err != nil {
			t.Fatal(err)
		}
		got := map[string]float64{}
		for _, f := range fams {
			m := f.GetMetric()[0]
			got[f.GetName()] = m.GetGauge().GetValue() + m.GetCounter().GetValue()
		}
		if got["flotilla_shard_leaders"] != 5 || got["flotilla_raft_commands_total"] < 2 || got["flotilla_engine_syncs_total"] == 0 {
			t.Fatalf("readings: %v", got)
		}
		if s := n.Metrics().String(); !strings.Contains(s, "5 replicas, 5 led") {
			t.Fatalf("metrics read %q", s)
		}
		if err := n.Close(); err != nil {
			t.Fatal(err)
		}
	}
}
