package localcluster

import (
	"bytes"
	"context"
	"fmt"
	"sync/atomic"
	"testing"
	"time"

	"github.com/flotillakv/flotilla"
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

// TestCatchUpBySnapshot: a node is away for longer than its peers keep the log.
// It comes back, is sent snapshots of a large and of a small shard while writes
// go on, and ends with the same content as the others.
func TestCatchUpBySnapshot(t *testing.T) {
	ctx, cancel := context.WithTimeout(context.Background(), 60*time.Second)
	defer cancel()
	var installed atomic.Int64
	c, err := Start(ctx, Options{
		Dir: t.TempDir(), SplitAt: [][]byte{[]byte("m")}, LogKeep: 32 << 10,
		MemoryPerNode: 16 << 20, Log: 16 << 20, // logs are cut after 640 KiB
		Timing: flotilla.Timing{Heartbeat: 100 * time.Millisecond},
		Observer: flotilla.Observer{OnSnapshot: func(e flotilla.SnapshotEvent) {
			if !e.Sent && e.Err == nil {
				installed.Add(1)
			}
		}},
	})
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	write := func(prefix string, n, size int) {
		t.Helper()
		for i := range n {
			n := c.Nodes()[i%len(c.Nodes())]
			for {
				_, err := n.Put(ctx, fmt.Appendf(nil, "%s%05d", prefix, i), bytes.Repeat([]byte{byte(i)}, size))
				if err == nil {
					break
				}
				if ctx.Err() != nil {
					t.Fatal(err)
				}
			}
		}
	}
	write("a", 50, 100)
	write("x", 50, 100)
	if err := c.Kill(2); err != nil {
		t.Fatal(err)
	}
	write("a", 600, 4096) // 2.4 MiB: tables
	for range 12 {        // 200 KiB: a list, behind a log of 2.4 MiB
		write("x", 200, 1024)
	}
	if _, err := c.Node(0).Delete(ctx, []byte("a00003")); err != nil {
		t.Fatal(err)
	}
	if err := c.Restart(ctx, 2); err != nil {
		t.Fatal(err)
	}
	write("b", 50, 100) // while it catches up
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	for {
		same := true
		for _, id := range []uint64{2, 3} {
			a0, d0, err0 := c.Node(0).LocalDigest(ctx, id)
			a2, d2, err2 := c.Node(2).LocalDigest(ctx, id)
			if err0 != nil || err2 != nil {
				for _, n := range c.Nodes() {
					sh, err := n.Shard(context.Background(), id)
					t.Logf("as node %d sees it: %+v, %v\n%s", n.ID(), sh, err, n.Metrics())
				}
				t.Fatalf("digests: %v, %v; %d snapshots installed", err0, err2, installed.Load())
			}
			if a0 == a2 && d0 != d2 {
				t.Fatalf("shard %d differs at index %d", id, a0)
			}
			same = same && a0 == a2
		}
		if same && installed.Load() >= 2 {
			return
		}
		select {
		case <-ctx.Done():
			t.Fatalf("not caught up; %d snapshots installed", installed.Load())
		case <-tick.C:
		}
	}
}

// TestKeepFollowsData: by default no more log is kept for a node that is away than
// its data are worth. They are overwritten again and again, and it gets a snapshot.
func TestKeepFollowsData(t *testing.T) {
	ctx, cancel := context.WithTimeout(context.Background(), 60*time.Second)
	defer cancel()
	var installed atomic.Int64
	c, err := Start(ctx, Options{
		Dir: t.TempDir(), MemoryPerNode: 16 << 20, Timing: flotilla.Timing{Heartbeat: 100 * time.Millisecond},
		Observer: flotilla.Observer{OnSnapshot: func(e flotilla.SnapshotEvent) {
			if !e.Sent && e.Err == nil {
				installed.Add(1)
			}
		}},
	})
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if err := c.Kill(2); err != nil {
		t.Fatal(err)
	}
	const keys, size, writes = 16, 32 << 10, 384 // 12 MiB over half a MiB; 16 MiB may be kept
	for i := range writes {
		for {
			_, err := c.Node(0).Put(ctx, fmt.Appendf(nil, "k%d", i%keys), bytes.Repeat([]byte{byte(i)}, size))
			if err == nil {
				break
			}
			if ctx.Err() != nil {
				t.Fatal(err)
			}
		}
	}
	// It comes back when the log is cut behind what it lacks, which is all of it: when what
	// was applied is in tables and its size known.
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	for kept := int64(writes * size); kept > writes*size*3/4; {
		list, err := c.Node(0).Shards(ctx)
		for _, s := range list {
			for _, r := range s.Replicas {
				if s.Keyspace != 0 && r.Node == s.Leader && r.Applied >= writes { // what it said of before is of no use
					kept = s.LogBytes
				}
			}
		}
		select {
		case <-ctx.Done():
			t.Fatalf("%d bytes of log are kept for half a MiB of data: %v", kept, err)
		case <-tick.C:
		}
	}
	if err := c.Restart(ctx, 2); err != nil {
		t.Fatal(err)
	}
	for {
		last, err := c.Node(2).Get(ctx, fmt.Appendf(nil, "k%d", (writes-1)%keys), flotilla.Local())
		if err == nil && len(last.Bytes) == size && last.Bytes[0] == byte((writes-1)&0xff) && installed.Load() > 0 {
			return
		}
		select {
		case <-ctx.Done():
			t.Fatalf("not caught up: %v; %d snapshots installed", err, installed.Load())
		case <-tick.C:
		}
	}
}

// TestRestartElsewhere: all nodes come back on other ports than the ones their
// directories know, and find each other by the list they are started with.
func TestRestartElsewhere(t *testing.T) {
	ctx, cancel := context.WithTimeout(context.Background(), 60*time.Second)
	defer cancel()
	dir := t.TempDir()
	for round := range 3 {
		c, err := Start(ctx, Options{Dir: dir, Shards: 4})
		if err != nil {
			t.Fatalf("round %d: %v", round, err)
		}
		key := []byte("round")
		if round > 0 {
			v, err := c.Node(round%3).Get(ctx, key)
			if err != nil || string(v.Bytes) != fmt.Sprint(round-1) {
				t.Fatalf("round %d: %q, %v", round, v.Bytes, err)
			}
		}
		if _, err := c.Node(2).Put(ctx, key, fmt.Append(nil, round)); err != nil {
			t.Fatalf("round %d: %v", round, err)
		}
		if err := c.Close(); err != nil {
			t.Fatal(err)
		}
	}
}
