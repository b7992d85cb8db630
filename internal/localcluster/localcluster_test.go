package localcluster

import (
	"context"
	"fmt"
	"testing"
	"time"
)

// TestKillAndRestart: three nodes over real sockets; one is killed, the others
// serve, it comes back and catches up.
func TestKillAndRestart(t *testing.T) {
	ctx, cancel := context.WithTimeout(context.Background(), 60*time.Second)
	defer cancel()
	c, err := Start(ctx, Options{Dir: t.TempDir(), Shards: 8})
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	// First leaders are dealt round robin: nine groups, the meta shard included.
	for _, n := range c.Nodes() {
		if m := n.Metrics(); m.Leaders != 3 {
			t.Errorf("node %d leads %d shards, want 3", n.ID(), m.Leaders)
		}
	}
	put := func(i int) {
		t.Helper()
		n := c.Nodes()[i%len(c.Nodes())]
		for {
			_, err := n.Put(ctx, fmt.Appendf(nil, "key%04d", i), fmt.Appendf(nil, "value%d", i))
			if err == nil {
				return
			}
			if ctx.Err() != nil {
				t.Fatalf("put %d: %v", i, err)
			}
		}
	}
	for i := range 100 {
		put(i)
	}
	if err := c.Kill(1); err != nil {
		t.Fatal(err)
	}
	for i := 100; i < 200; i++ {
		put(i)
	}
	if err := c.Restart(ctx, 1); err != nil {
		t.Fatal(err)
	}
	for i := range 200 {
		v, err := c.Node(1).Get(ctx, fmt.Appendf(nil, "key%04d", i))
		if err != nil || string(v.Bytes) != fmt.Sprintf("value%d", i) {
			t.Fatalf("key %d: %q, %v", i, v.Bytes, err)
		}
	}
}
