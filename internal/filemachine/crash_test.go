package filemachine

import (
	"context"
	"errors"
	"fmt"
	"io"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/flotillakv/flotilla/engine"
	"github.com/flotillakv/flotilla/internal/sim/simfs"
	"github.com/flotillakv/flotilla/multiraft"
	"github.com/flotillakv/flotilla/multiraft/raft"
	"github.com/flotillakv/flotilla/snapshot"
)

func check(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// shard of the tests: on nodes 1, 2 and 3. Node 2 is the leader of term 1, played by the test.
const shard raft.ShardID = 7

func desc() raft.Descriptor {
	return raft.Descriptor{Shard: shard, Keyspace: 1, Version: 1, ConfVer: 1, NextReplica: 4, Replicas: []raft.Replica{
		{Node: 1, ID: 1, Role: raft.Voter}, {Node: 2, ID: 2, Role: raft.Voter}, {Node: 3, ID: 3, Role: raft.Voter}}}
}

// history is a log, and what a machine holds that has applied its first entries.
type history struct {
	ents   []raft.Entry
	expect []map[string][]string // by index
}

// makeHistory has entries of one and of many commands and of none; commands of sessions that
// come again, some of them when their record tells nothing of them any more, or too late.
func makeHistory(n int) *history {
	h := &history{expect: []map[string][]string{{}}}
	done := map[string]bool{}
	now := map[string][]string{}
	for i := range n {
		index, ts := raft.Index(i+1), uint64(time.Hour)+uint64(1000*(i+1))
		type try struct {
			client  byte
			seq     uint64
			acked   uint64
			expired bool
			key     string
			word    string
		}
		var tries []try
		add := func(client byte, seq, acked uint64, expired bool) {
			word := fmt.Sprintf("w%d", i)
			if client > 0 {
				word = fmt.Sprintf("c%d-%d", client, seq)
			}
			tries = append(tries, try{client, seq, acked, expired, fmt.Sprintf("k%d", len(word)%2), fmt.Sprintf("%s.%d", word, len(tries))})
		}
		switch i % 8 {
		case 0: // none
		case 1, 5:
			add(0, 0, 0, false)
			add(1, uint64(i), 0, false)
		case 2: // again, and the next one, which settles it
			add(1, uint64(i-1), 0, false)
			add(1, uint64(i), uint64(i-1), false)
			add(0, 0, 0, false)
		case 3: // the settled one again; its record is silent about it
			add(1, uint64(i-2), 0, false)
		case 4: // too late
			add(2, uint64(i), 0, true)
			add(2, uint64(i+1), 0, false)
		case 6: // in one entry
			add(3, uint64(i), 0, false)
			add(3, uint64(i), 0, false)
		case 7:
			add(0, 0, 0, false)
		}
		var cmds []raft.Command
		for _, x := range tries {
			c := raft.Command{Op: multiraft.OpKeyed, Body: append([]byte{byte(len(x.key))}, x.key+x.word...)}
			run := true
			if x.client > 0 {
				c.Session = &raft.SessionHeader{ID: [16]byte{x.client}, Lineage: shard, Seq: x.seq, AckedTo: x.acked, Deadline: uint64(90 * time.Minute)}
				if x.expired {
					c.Session.Deadline = ts - 1
				}
				id := fmt.Sprint(x.client, x.seq)
				run = !done[id] && !x.expired
				done[id] = done[id] || run
			}
			if run {
				now[x.key] = append(now[x.key], x.word)
			}
			cmds = append(cmds, c)
		}
		typ := raft.EntryNormal
		if len(cmds) == 0 {
			typ = raft.EntryEmpty
		}
		h.ents = append(h.ents, raft.Entry{Index: index, Term: 1, Type: typ, Value: raft.EncodeEntry(nil, index, 1, typ, raft.EntryHeader{GroupTs: ts}, cmds)})
		at := map[string][]string{}
		for k, v := range now {
			at[k] = slices.Clone(v)
		}
		h.expect = append(h.expect, at)
	}
	return h
}

// holds says how m differs from the history up to where it is.
func (h *history) holds(m *Machine) error {
	at, err := m.Applied(shard)
	if err != nil {
		return err
	}
	for _, key := range []string{"k0", "k1"} {
		got, err := m.Query(shard, []byte(key), nil)
		if err != nil {
			return err
		}
		if want := strings.Join(h.expect[at][key], " "); string(got) != want {
			return fmt.Errorf("as of index %d the machine has under %s\n%s\nexpected\n%s", at, key, got, want)
		}
	}
	return nil
}

// node is one node, stepped by hand.
type node struct {
	id  raft.NodeID
	e   *engine.Engine
	h   *multiraft.Host
	st  *multiraft.Stepper
	m   *Machine
	now raft.Time
	err error
}

func (n *node) Send(raft.NodeID, []raft.Msg)                    {}
func (n *node) Now() raft.Time                                  { return n.now }
func (n *node) Wall() uint64                                    { return uint64(n.now) }
func (n *node) SupportFor(raft.NodeID) (raft.Epoch, bool)       { return 1 << 32, true }
func (n *node) SupportFrom(raft.NodeID) (raft.Epoch, raft.Time) { return 1 << 32, 1 << 61 }

const idle = 20 * time.Millisecond

// open opens the node with its store and its machine on one file system.
func open(fs engine.FS, id raft.NodeID, eager bool) (n *node, err error) {
	return openAt(raft.Time(time.Hour), fs, id, eager, func(*multiraft.Config) {})
}

// openAt is open at a time, with changes to the host's configuration.
func openAt(now raft.Time, fs engine.FS, id raft.NodeID, eager bool, with func(*multiraft.Config)) (n *node, err error) {
	n = &node{id: id, now: now}
	n.e, err = engine.Open(engine.Options{Dir: "/n", FS: fs, Create: true, NoDiskWatch: true, Node: id, Cluster: [16]byte{1}, CacheBytes: 1 << 20,
		MemTableBytes: 1 << 20, DeferBytes: 1 << 20, OnFatal: func(err error) { n.err = err }})
	if err != nil {
		return nil, err
	}
	if n.m, err = New(fs, "/machine", eager); err != nil {
		return nil, err
	}
	c := multiraft.Config{Node: id, Engine: n.e, Net: n, Liveness: n, Clock: n, Machine: multiraft.NewExternal(n.m), Loops: 1, Seed: 1,
		StateEvery: -1, DigestEvery: -1, IdleAfter: -1, Tuning: raft.Tuning{IdleTruncate: idle, CutEntries: 6}, OnFatal: func(err error) { n.err = err }}
	with(&c)
	if n.h, err = multiraft.New(c); err != nil {
		return nil, err
	}
	if n.st, err = n.h.Stepper(); err != nil {
		return nil, err
	}
	states, err := n.e.Boot()
	if err != nil {
		return nil, err
	}
	for _, s := range states {
		if err := n.h.AddGroups([]raft.State{s.State}); err != nil {
			return nil, err
		}
	}
	return n, n.turn()
}

func (n *node) close() {
	n.h.Close()
	n.e.Close()
}

// turn steps until nothing is left to do at this time.
func (n *node) turn() error {
	for range 1000 {
		n.now += 1000
		did := n.st.Step(0, n.now)
		for n.st.Unsynced(0) > 0 {
			did = true
			n.st.Complete(0)
		}
		if n.err != nil {
			return n.err
		}
		if !did {
			return nil
		}
	}
	return errors.New("the loop does not rest")
}

// pass lets time go by.
func (n *node) pass(d time.Duration) error {
	n.now = n.now.Add(d)
	return n.turn()
}

// call runs f, which waits for the loop, and steps.
func (n *node) call(f func() error) error {
	ch := make(chan error, 1)
	go func() { ch <- f() }()
	for {
		select {
		case err := <-ch:
			return errors.Join(err, n.turn())
		default:
			if err := n.turn(); err != nil {
				return err
			}
			runtime.Gosched()
		}
	}
}

// feed plays the leader: entries through index to, some at a time, each committed.
func (n *node) feed(h *history, to, some raft.Index) error {
	for range 200 {
		in, ok := n.st.Inside(shard)
		if !ok {
			return errors.New("there is no replica")
		}
		if in.Applied >= to {
			return nil
		}
		m := raft.Msg{Type: raft.MsgApp, Shard: shard, From: 2, FromReplica: 2, To: n.id, ToReplica: raft.ReplicaID(n.id), Term: 1, Index: in.Last}
		if in.Last > 0 {
			m.LogTerm = 1
		}
		m.Entries = h.ents[in.Last:min(max(in.Last, to), in.Last+some)]
		n.h.OnMessages(2, []raft.Msg{m})
		if err := n.turn(); err != nil {
			return err
		}
		n.h.OnMessages(2, []raft.Msg{{Type: raft.MsgCommit, Shard: shard, From: 2, FromReplica: 2, To: n.id, ToReplica: raft.ReplicaID(n.id), Term: 1,
			Commit: m.Index + raft.Index(len(m.Entries)), CompactTo: m.Index + raft.Index(len(m.Entries))}})
		if err := n.turn(); err != nil {
			return err
		}
	}
	v, _ := n.h.View(shard)
	return fmt.Errorf("it applies no more: %+v", v)
}

// image is a disk as a crash leaves it.
type image struct {
	what string
	fs   *simfs.FS
}

// watch collects an image for each operation on fs while it records, and one more for each step
// of the machine.
type watch struct {
	mu     sync.Mutex
	fs     *simfs.FS
	on     bool
	ops    int
	images []image
}

func watched(fs *simfs.FS) *watch {
	w := &watch{fs: fs}
	fs.Inject(func(op simfs.Op) error {
		w.mu.Lock()
		defer w.mu.Unlock()
		if w.on && op.Kind < simfs.OpOpen {
			w.ops++
			mode := simfs.Modes[w.ops%len(simfs.Modes)]
			if w.ops%3 == 0 {
				mode = simfs.All // the kill of the process
			}
			w.images = append(w.images, image{fmt.Sprintf("op %d (kind %d of %s), %v", w.ops, op.Kind, op.Path, mode), fs.Image(mode, uint64(w.ops))})
		}
		return nil
	})
	return w
}

func (w *watch) record(on bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.on = on
}

// recovers says why the node that a crash left is not of one moment in the machine, or does
// not get from there to the end of the history, with the digest that a node has without a crash.
func (im *image) recovers(h *history, eager bool, digest raft.Digest, again func(n *node) error) (err error) {
	n, err := open(im.fs, 1, eager)
	if err != nil {
		return err
	}
	defer n.close()
	end := raft.Index(len(h.ents))
	well := func() error {
		if v, ok := n.h.View(shard); ok && v.Fenced != nil {
			return v.Fenced
		}
		return h.holds(n.m)
	}
	steps := []func() error{
		well,
		func() error {
			if again == nil {
				return nil
			}
			return again(n)
		},
		func() error { return n.feed(h, end, 5) },
		func() error { return n.pass(idle) },
		func() error { return n.pass(idle) },
		well,
	}
	for i, f := range steps {
		if err := f(); err != nil {
			return fmt.Errorf("step %d: %w", i, err)
		}
	}
	if at, _ := n.m.Applied(shard); at != end {
		return fmt.Errorf("the machine is at index %d of %d", at, end)
	}
	if st, _, err := n.e.Load(shard); err != nil || st.Applied.Digest != digest {
		return fmt.Errorf("digest %x, without a crash %x (%v)", st.Applied.Digest, digest, err)
	}
	return nil
}

// TestCrashEverywhere: a crash at any operation on the disk, of the store or of the
// machine, leaves the machine as of one index, and what is behind comes again, once, whether the
// machine is behind the store or ahead of it. Commands of sessions that had been carried
// out are not carried out by it.
func TestCrashEverywhere(t *testing.T) {
	for _, eager := range []bool{false, true} {
		t.Run(fmt.Sprintf("eager %v", eager), func(t *testing.T) {
			n, err := crashEverywhere(eager, sample())
			check(t, err)
			t.Logf("%d images", n)
		})
	}
}

// sample is of how many images one is looked at.
func sample() int {
	if testing.Short() {
		return 4
	}
	return 1
}

func crashEverywhere(eager bool, every int) (images int, err error) {
	h := makeHistory(40)
	fs := simfs.New()
	n, err := open(fs, 1, eager)
	if err != nil {
		return 0, err
	}
	defer n.close()
	if err := errors.Join(n.h.CreateGroups([]raft.Descriptor{desc()}), n.turn()); err != nil {
		return 0, err
	}
	w := watched(fs)
	w.record(true)
	full := false
	n.m.SetHook(func(step string, _ raft.ShardID) error {
		w.mu.Lock()
		defer w.mu.Unlock()
		if full && step == "sync" {
			return errors.New("the machine's disk is full")
		}
		if w.on && strings.HasPrefix(step, "sync") {
			for i, mode := range []simfs.Mode{simfs.None, simfs.All} {
				w.images = append(w.images, image{"at " + step + " " + mode.String(), fs.Image(mode, uint64(i))})
			}
		}
		return nil
	})
	for i := raft.Index(1); i <= 40; i++ {
		err := n.feed(h, i, 1)
		switch {
		case err != nil:
		case i%9 == 3: // the store's part goes to the disk, the machine's does not
			err = errors.Join(n.e.Flush(), n.turn())
		case i%13 == 6: // the other way round
			err = n.pass(idle)
		case i == 25: // the machine cannot, and the log must not be cut
			full = true
			err = errors.Join(n.e.Flush(), n.pass(idle), n.pass(idle))
		case i == 30: // both
			full = false
			err = errors.Join(n.e.Flush(), n.pass(2*time.Second))
		}
		if err != nil {
			return 0, fmt.Errorf("entry %d: %w", i, err)
		}
	}
	w.record(false)
	if v, _ := n.h.View(shard); v.Fenced != nil {
		return 0, v.Fenced
	}
	if err := h.holds(n.m); err != nil {
		return 0, err
	}
	in, _ := n.st.Inside(shard)
	if in.Trunc == 0 || in.Trunc > 40 {
		return 0, fmt.Errorf("the log was cut through %d", in.Trunc)
	}
	st, _, err := n.e.Load(shard)
	if err != nil {
		return 0, err
	}
	for i, im := range w.images {
		if i%every != 0 {
			continue
		}
		if err := im.recovers(h, eager, st.Applied.Digest, nil); err != nil {
			return i, fmt.Errorf("%s: %w", im.what, err)
		}
	}
	return len(w.images), nil
}

// TestSnapshotCrash: a snapshot of store and machine is sent, loaded and installed; a crash
// at any operation on the receiver's disk leaves the machine as it was or as it is
// sent, and the replica gets to the end from there, by its log or by the snapshot again.
func TestSnapshotCrash(t *testing.T) {
	for _, old := range []raft.Index{0, 9} {
		t.Run(fmt.Sprintf("old replica at %d", old), func(t *testing.T) {
			n, err := snapshotCrash(old, sample())
			check(t, err)
			t.Logf("%d images", n)
		})
	}
}

func snapshotCrash(old raft.Index, every int) (images int, err error) {
	h := makeHistory(40)
	from, err := open(simfs.New(), 3, false)
	if err != nil {
		return 0, err
	}
	defer from.close()
	err = errors.Join(from.h.CreateGroups([]raft.Descriptor{desc()}), from.turn(), from.feed(h, 30, 4), from.pass(idle))
	if err != nil {
		return 0, err
	}
	fs := simfs.New()
	n, err := open(fs, 1, false)
	if err != nil {
		return 0, err
	}
	defer n.close()
	if old > 0 {
		if err := errors.Join(n.h.CreateGroups([]raft.Descriptor{desc()}), n.turn(), n.feed(h, old, 2), n.e.Flush()); err != nil {
			return 0, err
		}
	}
	w := watched(fs)
	w.record(true)
	if err := send(from, n); err != nil {
		return 0, err
	}
	w.record(false)
	if in, ok := n.st.Inside(shard); !ok || in.Applied != 30 {
		return 0, fmt.Errorf("installed: %v, %+v", ok, in)
	}
	if err := h.holds(n.m); err != nil {
		return 0, err
	}
	w.images = append(w.images, image{"installed, nothing unsynced survives", fs.Image(simfs.None, 1)})
	if err := n.feed(h, 40, 3); err != nil {
		return 0, err
	}
	st, _, err := n.e.Load(shard)
	if err != nil {
		return 0, err
	}
	for i, im := range w.images {
		if i%every != 0 && i < len(w.images)-4 {
			continue
		}
		err := im.recovers(h, false, st.Applied.Digest, func(n *node) error {
			if _, ok := n.st.Inside(shard); ok && i%2 == 1 {
				return nil
			}
			err := send(from, n)
			if in, ok := n.st.Inside(shard); ok && in.Applied == 30 {
				err = nil // it was installed already
			}
			return err
		})
		if err != nil {
			return i, fmt.Errorf("%s: %w", im.what, err)
		}
	}
	return len(w.images), nil
}

// sendClock is a clock that nobody waits for.
type sendClock struct{ n *node }

func (c sendClock) Now() raft.Time                           { return c.n.now }
func (sendClock) Sleep(context.Context, time.Duration) error { return nil }

// send sends a snapshot from one node to another, as the nodes of a cluster do.
func send(from, to *node) error {
	ctx := context.Background()
	out, err := snapshot.New(snapshot.Options{Engine: from.e, Node: from.id, Inline: true, Clock: sendClock{from}, TableBytes: 64,
		External: func(ctx context.Context, d *raft.Descriptor) (s io.ReadCloser, at raft.Index, err error) {
			err = from.call(func() (err error) { s, at, err = from.h.SaveExternal(ctx, d.Shard); return err })
			return s, at, err
		}})
	if err != nil {
		return err
	}
	in, err := snapshot.New(snapshot.Options{Engine: to.e, Node: to.id, Inline: true, Clock: sendClock{to}})
	if err != nil {
		return err
	}
	d := desc()
	_, _, err = out.Send(ctx, &d, to.id, func(_ context.Context, header []byte) (snapshot.Stream, error) {
		return snapshot.Pipe(func(next func() ([]byte, error), reply func([]byte) error) error {
			g, err := in.Handle(from.id, header, next, reply)
			if err != nil {
				return err
			}
			defer g.Close()
			m := &g.Meta
			err = g.LoadExternal(func(at raft.Index, r io.Reader) error {
				return to.call(func() error { return to.h.LoadExternal(ctx, &m.Desc, m.Index, m.Term, at, r) })
			})
			if err != nil {
				return snapshot.Verdict(err)
			}
			return to.call(func() error { return to.h.InstallSnapshot(ctx, m.Shard, m.Index, m.Term, g.InstallOn) })
		}), nil
	})
	return err
}
