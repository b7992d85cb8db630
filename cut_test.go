package flotilla

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/flotillakv/flotilla/engine"
	"github.com/flotillakv/flotilla/multiraft/raft"
	"github.com/flotillakv/flotilla/snapshot/backup"
	"github.com/flotillakv/flotilla/transport"
)

// cutNode is a node with one shard, and a client of it.
func cutNode(t *testing.T, o Options) (*Node, *Client, raft.Descriptor) {
	t.Helper()
	net := transport.NewNetwork()
	o.InMemory, o.Shards, o.Network, o.NodeID, o.Bootstrap, o.Join = true, 1, net, 1, 1, []string{"n1"}
	n, err := Open(t.Context(), o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { n.Close() })
	c, err := Dial(t.Context(), []string{"n1"}, ClientOptions{Network: net})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	for _, d := range n.descriptors() {
		if d.Keyspace == userKeyspace {
			return n, c, d
		}
	}
	t.Fatal("no shard")
	return nil, nil, raft.Descriptor{}
}

// TestCutsExpire: a cut ends when nobody has read it for long enough, and when it
// is too old however often it is read.
func TestCutsExpire(t *testing.T) {
	n, _, d := cutNode(t, Options{})
	view := func() *heldCut {
		v, err := n.eng.View(&d)
		if err != nil {
			t.Fatal(err)
		}
		it, err := v.Iter(engine.ViewData)
		if err != nil {
			t.Fatal(err)
		}
		return &heldCut{view: v, it: it}
	}
	idle, busy := view(), view()
	synctest.Test(t, func(t *testing.T) {
		c := new(cuts)
		if err := errors.Join(c.add(idle), c.add(busy)); err != nil {
			t.Fatal(err)
		}
		gone := func(h *heldCut) bool { synctest.Wait(); return c.open[h.id] == nil }
		began := time.Now()
		for range 3 {
			time.Sleep(cutIdleLimit - time.Second)
			if c.get(idle.id) != idle || c.get(busy.id) != busy {
				t.Fatalf("read in time, and gone after %v", time.Since(began))
			}
		}
		for time.Since(began) < cutLifeLimit-cutIdleLimit {
			time.Sleep(cutIdleLimit - time.Second)
			if c.get(busy.id) != busy {
				t.Fatalf("read all the time, and gone after %v", time.Since(began))
			}
		}
		if !gone(idle) || !idle.gone || gone(busy) {
			t.Fatalf("after %v: idle gone %v, busy gone %v", time.Since(began), idle.gone, busy.gone)
		}
		time.Sleep(cutLifeLimit - time.Since(began) - time.Second)
		if c.get(busy.id) != busy {
			t.Fatal("gone before its time")
		}
		time.Sleep(time.Second + 1)
		if !gone(busy) || !busy.gone {
			t.Fatalf("still there after %v", time.Since(began))
		}
		if c.get(busy.id) != nil {
			t.Fatal("what is gone can be read")
		}
	})
}

// openAt opens a cut as a client does.
func openAt(ctx context.Context, c *Client, d raft.Descriptor) (cutAnswer, error) {
	in, err := json.Marshal(shardQuery{uint64(d.Shard)})
	if err != nil {
		return cutAnswer{}, err
	}
	return c.cutSource().openAt(ctx, 1, in)
}

// TestCutsAreBounded: a node holds so many cuts and no more; the client learns that
// it is too busy, and gets one when another one is closed.
func TestCutsAreBounded(t *testing.T) {
	n, c, d := cutNode(t, Options{})
	ctx := t.Context()
	var last cutAnswer
	for range maxCuts {
		a, err := openAt(ctx, c, d)
		if err != nil {
			t.Fatal(err)
		}
		last = a
	}
	var over *OverloadedError
	if _, err := openAt(ctx, c, d); !errors.As(err, &over) || over.RetryAfter <= 0 || !strings.Contains(err.Error(), fmt.Sprintf("backups read %d shards", maxCuts)) || Outcome(err) != NotApplied {
		t.Fatalf("one more: %v", err)
	}
	// A backup waits for its turn, if it is told how to try again.
	tries := 0
	_, err := c.Backup(ctx, newTestStore(t), backup.Options{Retry: func(ctx context.Context, f func(context.Context) error) (err error) {
		for err = f(ctx); errors.As(err, &over); err = f(ctx) {
			if tries++; tries == 3 {
				(&remoteCut{s: c.cutSource(), node: 1, answer: last}).Close()
			}
		}
		return err
	}})
	if err != nil || tries != 3 {
		t.Fatalf("after %d tries: %v", tries, err)
	}
	if _, err := openAt(ctx, c, d); err != nil {
		t.Fatalf("after one was closed: %v", err)
	}
	n.cuts.end(true)
	if _, err := n.openCut(ctx, uint64(d.Shard)); !errors.Is(err, ErrClosed) {
		t.Fatalf("at a node that closes: %v", err)
	}
}

// readAll reads the rest of a cut.
func (r *remoteCut) readAll(ctx context.Context) (out string, err error) {
	for more := true; more; {
		var pairs []backup.Pair
		if pairs, more, err = r.Next(ctx); err != nil {
			return out, err
		}
		for _, p := range pairs {
			out += fmt.Sprintf("%s=%d of %q\n", p.Key, len(p.Value), p.Value[0])
		}
	}
	return out, nil
}

// TestCutHeld: a cut that is held while all its data is replaced, removed and
// compacted away still reads as of its moment, to the end.
func TestCutHeld(t *testing.T) {
	n, c, d := cutNode(t, Options{})
	ctx := t.Context()
	fill := func(with byte) (want string) {
		for i := range 30 {
			k := fmt.Sprintf("k%02d", i)
			if _, err := n.Put(ctx, []byte(k), []byte(strings.Repeat(string(with), 200<<10))); err != nil {
				t.Fatal(err)
			}
			want += fmt.Sprintf("%s=%d of %q\n", k, 200<<10, with)
		}
		return want
	}
	want := fill('a')
	a, err := openAt(ctx, c, d)
	if err != nil {
		t.Fatal(err)
	}
	cut := &remoteCut{s: c.cutSource(), node: 1, answer: a}
	pairs, more, err := cut.Next(ctx)
	if err != nil || !more || len(pairs) == 30 {
		t.Fatalf("%d pairs, more %v, %v", len(pairs), more, err)
	}
	for _, with := range "bcd" {
		fill(byte(with))
		if err := errors.Join(n.eng.Flush(), n.eng.Compact(ctx)); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := n.DeleteRange(ctx, Range{}); err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(n.eng.Flush(), n.eng.Compact(ctx)); err != nil {
		t.Fatal(err)
	}
	cut.after = nil // from the start
	if got, err := cut.readAll(ctx); err != nil || got != want {
		t.Fatalf("read %d bytes, want %d: %v", len(got), len(want), err)
	}
	cut.Close()
	if _, _, err := cut.Next(ctx); !errors.Is(err, backup.ErrCutLost) || !strings.Contains(err.Error(), "node 1 was restarted, nobody read it for 30s") {
		t.Fatalf("after it was closed: %v", err)
	}
}

// TestCutsGiveWay: when the disk is nearly used up, the files that cuts keep are
// given up; a backup is made all the same.
func TestCutsGiveWay(t *testing.T) {
	disk := newCrowdedFS()
	n, c, d := cutNode(t, Options{Dir: "/node", FS: disk, Limits: Limits{Memory: 16 << 20, Ballast: 1 << 20}})
	ctx := t.Context()
	if _, err := n.Put(ctx, []byte("k"), []byte("v")); err != nil {
		t.Fatal(err)
	}
	a, err := openAt(ctx, c, d)
	if err != nil {
		t.Fatal(err)
	}
	disk.fill(6)
	until(t, "the disk is full", func() bool { return n.eng.Space().State == engine.SpaceFull })
	cut := &remoteCut{s: c.cutSource(), node: 1, answer: a}
	if _, _, err := cut.Next(ctx); err != nil {
		t.Fatalf("with a full disk: %v", err)
	}
	disk.fill(2)
	until(t, "the cut was given up", func() bool {
		_, _, err := cut.Next(ctx)
		return errors.Is(err, backup.ErrCutLost)
	})
	m, err := c.Backup(ctx, newTestStore(t), backup.Options{})
	if err != nil || m.Pairs() != 1 {
		t.Fatalf("a backup of what is nearly full: %+v, %v", m, err)
	}
}

// TestCutOverRestart: a node that is started again while a shard is read, each time,
// ends the backup with an error that says so; nothing is listed.
func TestCutOverRestart(t *testing.T) {
	n, c, _ := cutNode(t, Options{})
	ctx := t.Context()
	for i := range 20 {
		if _, err := n.Put(ctx, fmt.Appendf(nil, "k%02d", i), make([]byte, 200<<10)); err != nil {
			t.Fatal(err)
		}
	}
	dst := newTestStore(t)
	dst.look = func() { n.cuts.end(false) } // as a restart does
	var p backup.Progress
	_, err := c.Backup(ctx, dst, backup.Options{Progress: &p})
	if !errors.Is(err, backup.ErrCutLost) || p.Restarts.Load() != 4 || !strings.Contains(err.Error(), "was restarted") {
		t.Fatalf("%d cuts anew: %v", p.Restarts.Load(), err)
	}
	if list, err := backup.List(ctx, dst, backup.Backup); err != nil || len(list) != 0 {
		t.Fatalf("%v, %v", list, err)
	}
}

func newTestStore(t *testing.T) *testStore {
	t.Helper()
	d, err := backup.OpenDir(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	return &testStore{Dir: d}
}

// testStore calls look before it says whether it has an object.
type testStore struct {
	*backup.Dir
	look func()
}

func (s *testStore) Size(ctx context.Context, name string) (int64, error) {
	if s.look != nil {
		s.look()
	}
	return s.Dir.Size(ctx, name)
}
