package filemachine

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
	"testing"
	"time"

	"github.com/flotillakv/flotilla/internal/sim/simfs"
	"github.com/flotillakv/flotilla/multiraft"
	"github.com/flotillakv/flotilla/multiraft/raft"
)

// counted counts the syncs of a machine.
func (n *node) counted(into *int) {
	n.m.SetHook(func(step string, _ raft.ShardID) error {
		if step == "sync" {
			*into++
		}
		return nil
	})
}

// TestTriggers: a machine is synced after so many entries, so many bytes, when the oldest
// entry is so old and when the shard rests, each alone; a restart in between does
// not put that off.
func TestTriggers(t *testing.T) {
	const never = 24 * time.Hour
	for _, c := range []struct {
		name string
		with func(c *multiraft.Config)
		then time.Duration // behind the entries
		from int           // entries without a sync, and with one
		to   int
	}{
		{"entries", func(c *multiraft.Config) { c.Tuning.CutEntries = 12 }, 0, 11, 12},
		{"bytes", func(c *multiraft.Config) { c.Tuning.CutBytes = 1000 }, 0, 6, 25},
		{"age", func(c *multiraft.Config) { c.CutAge = time.Minute }, time.Minute, 10, 10},
		{"idle", func(c *multiraft.Config) { c.Tuning.IdleTruncate = time.Second }, time.Second, 10, 10},
	} {
		for _, restart := range []bool{false, true} {
			t.Run(fmt.Sprintf("%s, restart %v", c.name, restart), func(t *testing.T) {
				with := func(x *multiraft.Config) {
					x.Tuning.CutEntries, x.Tuning.CutBytes, x.Tuning.IdleTruncate, x.CutAge = 1<<20, 1<<30, never, never
					c.with(x)
				}
				h := makeHistory(40)
				fs := simfs.New()
				n, err := openAt(raft.Time(time.Hour), fs, 1, false, with)
				check(t, err)
				defer func() { n.close() }()
				check(t, n.h.CreateGroups([]raft.Descriptor{desc()}))
				check(t, n.turn())
				syncs := 0
				n.counted(&syncs)
				check(t, n.feed(h, raft.Index(c.from), 1))
				check(t, n.pass(c.then/2))
				if syncs != 0 {
					t.Fatalf("%d syncs before it is time", syncs)
				}
				if restart {
					check(t, n.e.Flush())
					now := n.now
					n.close()
					n, err = openAt(now, fs, 1, false, with)
					check(t, err)
					n.counted(&syncs)
				}
				check(t, n.feed(h, raft.Index(c.to), 1))
				check(t, n.pass(c.then))
				if syncs != 1 {
					t.Errorf("%d syncs", syncs)
				}
				check(t, h.holds(n.m))
			})
		}
	}
}

// alone opens a node whose shard has no other replica, and lets it lead.
func alone(t *testing.T, with func(c *multiraft.Config)) *node {
	t.Helper()
	n, err := openAt(raft.Time(time.Hour), simfs.New(), 1, false, with)
	check(t, err)
	t.Cleanup(n.close)
	d := desc()
	d.Replicas = d.Replicas[:1]
	check(t, n.h.CreateGroups([]raft.Descriptor{d}))
	check(t, n.turn())
	check(t, n.call(func() error { return n.h.Campaign(context.Background(), shard) }))
	return n
}

// propose appends a word to the list of "k".
func (n *node) propose(word string) error {
	return n.call(func() error {
		ch := make(chan error, 1)
		n.h.Propose(shard, raft.Command{Op: multiraft.OpKeyed, Body: []byte("\x01k" + word)}, func(data []byte, _ raft.Index, _ uint32, err error) {
			if err == nil {
				_, err = multiraft.Answer(data)
			}
			ch <- err
		})
		return <-ch
	})
}

// TestSleep: a shard that rests is synced and cut, sleeps, and goes on when something comes.
func TestSleep(t *testing.T) {
	n := alone(t, func(c *multiraft.Config) { c.IdleAfter = time.Second })
	check(t, n.propose("a"))
	asleep := func() bool {
		v, _ := n.h.View(shard)
		return v.Asleep
	}
	check(t, n.e.Flush())
	for range 10 {
		check(t, n.pass(time.Second))
	}
	if !asleep() {
		in, _ := n.st.Inside(shard)
		t.Fatalf("it does not sleep: %+v", in.Status)
	}
	if v, _ := n.h.View(shard); v.Applied == 0 {
		t.Fatalf("%+v", v)
	}
	check(t, n.propose("b"))
	if asleep() {
		t.Fatal("it sleeps")
	}
	if got, _ := n.m.Query(shard, []byte("k"), nil); string(got) != "a b" {
		t.Errorf("the machine has %q", got)
	}
	at := raft.Index(0)
	check(t, n.call(func() (err error) { at, err = n.h.SyncExternal(context.Background(), shard); return err }))
	if v, _ := n.h.View(shard); at != v.Applied {
		t.Errorf("synced through %d of %d", at, v.Applied)
	}
}

// TestPanics: a panic of the machine, in whatever method, fences the replica, and the
// node lives; an error of Save or Sync does not fence it.
func TestPanics(t *testing.T) {
	for _, step := range []string{"apply", "sync", "save"} {
		t.Run(step, func(t *testing.T) {
			n := alone(t, func(c *multiraft.Config) { c.Tuning.IdleTruncate = time.Hour })
			check(t, n.propose("a"))
			do := map[string]func() error{
				"apply": func() error { return n.propose("b") },
				"sync":  func() error { _, err := n.h.SyncExternal(context.Background(), shard); return err },
				"save": func() error {
					s, _, err := n.h.SaveExternal(context.Background(), shard)
					if err == nil {
						_, err = io.Copy(io.Discard, s)
					}
					return err
				},
			}[step]
			call := func() error {
				if step == "apply" {
					return do()
				}
				return n.call(do)
			}
			boom := errors.New("boom")
			n.m.SetHook(func(s string, _ raft.ShardID) error {
				if s == step {
					return boom
				}
				return nil
			})
			if step != "apply" { // there an error is as bad
				if err := call(); !errors.Is(err, boom) {
					t.Errorf("an error: %v", err)
				}
				check(t, n.propose("b"))
			}
			n.m.SetHook(func(s string, _ raft.ShardID) error {
				if s == step {
					panic("boom")
				}
				return nil
			})
			if err := call(); err == nil {
				t.Error("a panic passed")
			}
			v, _ := n.h.View(shard)
			if v.Fenced == nil || !strings.Contains(v.Fenced.Error(), "panicked") || n.err != nil {
				t.Errorf("fenced: %v, the node: %v", v.Fenced, n.err)
			}
			if err := n.propose("c"); !errors.Is(err, multiraft.ErrFenced) {
				t.Errorf("fenced it says %v", err)
			}
		})
	}
}
