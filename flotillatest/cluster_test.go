package flotillatest_test

import (
	"context"
	"fmt"
	"testing"
	"time"

	"github.com/flotillakv/flotilla"
	"github.com/flotillakv/flotilla/flotillatest"
)

func testContext(t *testing.T) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Minute)
	t.Cleanup(cancel)
	return ctx
}

// TestReady: a cluster is ready at once, and leaves nothing behind.
func TestReady(t *testing.T) {
	flotillatest.CheckLeaks(t)
	began := time.Now()
	c := flotillatest.NewCluster(t, 3)
	t.Logf("ready after %v", time.Since(began))
	ctx := testContext(t)
	if _, err := c.KV().Put(ctx, []byte("k"), []byte("v")); err != nil {
		t.Fatal(err)
	}
	for i, n := range c.Nodes() {
		if v, err := n.Get(ctx, []byte("k")); err != nil || string(v.Bytes) != "v" {
			t.Fatalf("node %d: %q, %v", i, v.Bytes, err)
		}
	}
}

// TestKillAndPowerLoss: what was acknowledged survives the crash of one node,
// of a majority and of all, and the replicas are equal in the end.
func TestKillAndPowerLoss(t *testing.T) {
	flotillatest.CheckLeaks(t)
	c := flotillatest.NewCluster(t, 3)
	ctx := testContext(t)
	n := 0
	put := func() {
		t.Helper()
		for range 20 {
			n++
			if _, err := c.KV().Put(ctx, fmt.Appendf(nil, "%c/%d", n*13, n), fmt.Appendf(nil, "%d", n)); err != nil {
				t.Fatalf("put %d: %v", n, err)
			}
		}
	}
	put()
	c.Kill(0)
	c.AwaitLeaders()
	put()
	c.Restart(0)
	put()
	c.PowerLoss(1)
	c.AwaitLeaders()
	put()
	c.Restart(1)
	put()
	c.PowerLoss()
	if got := len(c.Nodes()); got != 0 {
		t.Fatalf("%d nodes run after a power loss of all", got)
	}
	c.RestartAll()
	put()
	c.AwaitEqualReplicas()
	count := 0
	for _, err := range c.KV().Scan(ctx, flotilla.Range{}) {
		if err != nil {
			t.Fatal(err)
		}
		count++
	}
	if count != n {
		t.Fatalf("%d keys of %d", count, n)
	}
}

// TestPartition: a node that is alone serves nothing of its own, the majority
// goes on, and after the end of the partition all replicas are equal.
func TestPartition(t *testing.T) {
	flotillatest.CheckLeaks(t)
	c := flotillatest.NewCluster(t, 3)
	ctx := testContext(t)
	if _, err := c.KV().Put(ctx, []byte("k"), []byte("1")); err != nil {
		t.Fatal(err)
	}
	for alone := range 3 {
		c.Partition([]int{alone}, []int{(alone + 1) % 3, (alone + 2) % 3})
		c.AwaitLeaders()
		if _, err := c.KV().Put(ctx, []byte("k"), []byte("2")); err != nil {
			t.Fatal(err)
		}
		short, cancel := context.WithTimeout(ctx, 50*time.Millisecond)
		if v, err := c.Node(alone).Get(short, []byte("k")); err == nil {
			t.Fatalf("node %d is alone and serves %q", alone, v.Bytes)
		}
		cancel()
		c.Heal()
	}
	c.AwaitEqualReplicas()
}
