package flotillatest

import (
	"errors"
	"fmt"
	"testing"

	"github.com/flotillakv/flotilla"
	"github.com/flotillakv/flotilla/engine"
	"github.com/flotillakv/flotilla/internal/sim/simfs"
)

// TestOldCopy restores an old copy of one node's directory, of before its last
// boot, under a running cluster. The node has forgotten votes and acknowledgements
// that others count on. It finds out from its peers and stops, for good, with a
// message that says what to do; the others go on with every write that was
// acknowledged.
func TestOldCopy(t *testing.T) {
	c := NewCluster(t, 3)
	kv := c.KV()
	ctx, cancel := c.context()
	defer cancel()
	put := func(from, to int) {
		t.Helper()
		for i := from; i < to; i++ {
			if _, err := kv.Put(ctx, fmt.Appendf(nil, "key%03d", i), fmt.Appendf(nil, "value%d", i)); err != nil {
				t.Fatal(err)
			}
		}
	}
	put(0, 10)
	c.mu.Lock()
	old := c.members[2].disk.fs.Image(simfs.None, 1)
	c.mu.Unlock()
	for range 2 {
		c.Stop(2)
		c.Restart(2)
		put(10, 30)
	}
	c.AwaitCaughtUp()
	c.Stop(2)
	put(30, 40)

	// Opened by hand: the cluster would take it for a failure that it stops.
	stopped := make(chan error, 1)
	open := func() (*flotilla.Node, error) {
		return flotilla.Open(ctx, flotilla.Options{
			InMemory: true, Dir: "/node", FS: old, NodeID: 3, Network: c.net, Bootstrap: 3,
			Join: []string{addr(0), addr(1), addr(2)}, Timing: c.o.timing,
			OnFatal: func(err error) { stopped <- err },
		})
	}
	n, err := open()
	if err == nil {
		select {
		case err = <-stopped:
		case <-ctx.Done():
			t.Fatal("the old copy serves")
		}
		_ = n.Kill()
	}
	if !errors.Is(err, engine.ErrAmnesia) {
		t.Fatalf("the old copy ended with %v", err)
	}
	t.Log(err)
	old = old.Image(simfs.None, 1) // the process is gone, and what it had not synced
	var oe *flotilla.OpenError
	if n, err := open(); !errors.As(err, &oe) || oe.Reason != engine.Amnesia {
		if n != nil {
			_ = n.Kill()
		}
		t.Fatalf("opened again: %v", err)
	}
	t.Log(oe)
	put(40, 50)
	for i := range 50 {
		v, err := kv.Get(ctx, fmt.Appendf(nil, "key%03d", i))
		if err != nil || string(v.Bytes) != fmt.Sprintf("value%d", i) {
			t.Fatalf("key %d: %q, %v", i, v.Bytes, err)
		}
	}
}
