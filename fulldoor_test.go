package flotilla

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/flotillakv/flotilla/snapshot/backup"
)

// remote opens a node and a client that reaches it over a socket.
func remote(t *testing.T, o Options) (*Node, *Client) {
	t.Helper()
	o.InMemory, o.ClientListen = true, "127.0.0.1:0"
	n, err := Open(t.Context(), o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { n.Close() })
	c, err := Dial(t.Context(), []string{n.Addr()}, ClientOptions{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return n, c
}

// TestDiskFullRemotely: a remote client gets the typed error of a full disk for each
// kind of write that adds data, and can go on to delete, read, look and back up.
func TestDiskFullRemotely(t *testing.T) {
	disk := newCrowdedFS()
	n, c := remote(t, Options{Dir: "/node", FS: disk, Shards: 2, Limits: Limits{Memory: 16 << 20, Ballast: 1 << 20}})
	ctx := t.Context()
	for i := range 8 {
		if _, err := c.Put(ctx, fmt.Appendf(nil, "k%d", i), []byte("old")); err != nil {
			t.Fatal(err)
		}
	}
	session, err := c.NewSession(SessionOptions{})
	if err != nil {
		t.Fatal(err)
	}
	disk.fill(6)
	until(t, "writes are refused", func() bool {
		_, err := c.Put(ctx, []byte("k0"), []byte("old"))
		return errors.Is(err, ErrDiskFull)
	})
	batch, mixed := new(Batch), new(Batch)
	batch.Put([]byte("new"), nil)
	mixed.Delete([]byte("k0"))
	mixed.Put([]byte("new"), nil)
	for name, write := range map[string]func() (Receipt, error){
		"put":        func() (Receipt, error) { return c.Put(ctx, []byte("new"), nil) },
		"cas":        func() (Receipt, error) { return c.CAS(ctx, []byte("new"), Version{}, nil) },
		"batch":      func() (Receipt, error) { return c.Write(ctx, batch) },
		"with a del": func() (Receipt, error) { return c.Write(ctx, mixed) },
		"session":    func() (Receipt, error) { return session.Put(ctx, []byte("new"), nil) },
	} {
		_, err := write()
		var full *DiskFullError
		if !errors.As(err, &full) || !errors.Is(err, ErrDiskFull) || Outcome(err) != NotApplied || len(full.Nodes) != 1 || full.Nodes[0] != 1 || !strings.Contains(err.Error(), "full is the disk of node 1") {
			t.Errorf("%s: %v", name, err)
		}
	}
	if v, err := c.Get(ctx, []byte("k0")); err != nil || string(v.Bytes) != "old" {
		t.Errorf("read: %q, %v", v.Bytes, err)
	}
	removed := new(Batch)
	removed.Delete([]byte("k1"))
	for name, write := range map[string]func() error{
		"delete":            func() error { _, err := c.Delete(ctx, []byte("k0")); return err },
		"range delete":      func() error { _, err := c.DeleteRange(ctx, Range{Start: []byte("k4"), End: []byte("k6")}); return err },
		"batch of deletes":  func() error { _, err := c.Write(ctx, removed); return err },
		"delete in session": func() error { _, err := session.Delete(ctx, []byte("k2")); return err },
		"backup":            func() error { _, err := c.Backup(ctx, newFullStore(t), backup.Options{}); return err },
		"nodes": func() error {
			nodes, err := c.Nodes(ctx)
			if err == nil && (len(nodes) != 1 || nodes[0].DiskState != "full" && nodes[0].DiskState != "critical") {
				err = fmt.Errorf("%+v", nodes)
			}
			return err
		},
		"status": func() error {
			s, err := c.Status(ctx)
			if err == nil && (s.State != "DEGRADED" || len(s.Warnings) != 1 || !strings.HasPrefix(s.Warnings[0], "the disk of n1 is full")) {
				err = fmt.Errorf("%+v", s)
			}
			return err
		},
		"shards": func() error { _, err := c.Shards(ctx); return err },
	} {
		if err := write(); err != nil {
			t.Errorf("%s on a full disk: %v", name, err)
		}
	}
	disk.fill(50)
	until(t, "writes are taken again", func() bool { _, err := c.Put(ctx, []byte("k0"), []byte("x")); return err == nil })
	var keys []string
	for p, err := range c.Scan(ctx, Range{}) {
		if err != nil {
			t.Fatal(err)
		}
		keys = append(keys, string(p.Key))
	}
	if fmt.Sprint(keys) != "[k0 k3 k6 k7]" {
		t.Errorf("there is %v", keys)
	}
	if n.Metrics().Disk.Refused < 5 {
		t.Errorf("%d writes were counted as refused", n.Metrics().Disk.Refused)
	}
}

func newFullStore(t *testing.T) backup.Store {
	t.Helper()
	d, err := backup.OpenDir(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	return d
}

// TestLogBudgetRemotely: while the disk takes nothing, writes pile up until the logs
// may not grow: a remote client gets the typed error, before anything was done, and
// can still read and look. When the disk goes on, so do writes.
func TestLogBudgetRemotely(t *testing.T) {
	disk := newCrowdedFS()
	g := newGate(disk.FS)
	t.Cleanup(func() { g.set(false) })
	_, c := remote(t, Options{
		Dir: "/node", FS: disk, Shards: 1, Limits: Limits{Memory: 512 << 20, Proposals: 256 << 20, Ballast: 1 << 20, Log: 16 << 20, Wait: time.Hour},
		Timing: Timing{Heartbeat: time.Second, Support: 60 * time.Second}, // the stall is none yet
	})
	ctx := t.Context()
	if _, err := c.Put(ctx, []byte("k"), []byte("old")); err != nil {
		t.Fatal(err)
	}
	g.set(true)
	part, large := make([]byte, 512<<10), make([]byte, 1<<20)
	var wg sync.WaitGroup
	wctx, cancel := context.WithCancel(ctx)
	t.Cleanup(func() { g.set(false); cancel(); wg.Wait() })
	for i := range 32 { // as much as the limit; what is admitted waits for the disk
		wg.Go(func() { c.Put(wctx, fmt.Appendf(nil, "part%02d", i), part) })
	}
	until(t, "the logs may not grow", func() bool {
		short, cancel := context.WithTimeout(ctx, time.Second)
		defer cancel()
		_, err := c.Put(short, []byte("large"), large)
		return errors.Is(err, ErrLogBudget)
	})
	if _, err := c.Put(ctx, []byte("new"), large); !errors.Is(err, ErrLogBudget) || Outcome(err) != NotApplied || !strings.Contains(err.Error(), "Limits.Log") {
		t.Errorf("refused with: %v", err)
	}
	if v, err := c.Get(ctx, []byte("k")); err != nil || string(v.Bytes) != "old" {
		t.Errorf("read: %q, %v", v.Bytes, err)
	}
	if s, err := c.Status(ctx); err != nil || len(s.Nodes) != 1 || s.Nodes[0].LogLimit != 16<<20 {
		t.Errorf("status: %+v, %v", s, err)
	}
	g.set(false)
	until(t, "writes are taken again", func() bool { _, err := c.Put(ctx, []byte("k"), []byte("x")); return err == nil })
	if _, err := c.Get(ctx, []byte("new")); !errors.Is(err, ErrNotFound) {
		t.Errorf("what was refused is there: %v", err)
	}
}
