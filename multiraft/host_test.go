package multiraft

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"sync"
	"testing"
	"time"

	"github.com/flotillakv/flotilla/engine"
	"github.com/flotillakv/flotilla/multiraft/raft"
)

// counter is a custom state machine: "add N" to a key, answer the sum.
type counter struct{}

var errNegative = errors.New("negative")

func (counter) Apply(tx *Tx, cmd []byte) ([]byte, error) {
	key, n := cmd[8:], int64(binary.BigEndian.Uint64(cmd))
	old, _, err := tx.Get(key)
	if err != nil {
		return nil, err
	}
	sum := n
	if len(old) == 8 {
		sum += int64(binary.BigEndian.Uint64(old))
	}
	if n == 666 {
		panic("a bug in the machine")
	}
	val := binary.BigEndian.AppendUint64(nil, uint64(sum))
	if err := tx.Set(key, val); err != nil {
		return nil, err
	}
	if n < 0 {
		return nil, errNegative // after the write: it must be dropped
	}
	return val, nil
}

func (counter) Query(v *Reader, q []byte) ([]byte, error) {
	val, ok, err := v.Get(q)
	if err == nil && !ok {
		err = errors.New("absent")
	}
	return val, err
}

func add(n int64, key string) []byte {
	return append(binary.BigEndian.AppendUint64(nil, uint64(n)), key...)
}

// meshNet delivers messages between hosts of one process.
type meshNet struct {
	mu    sync.Mutex
	hosts map[raft.NodeID]*Host
	cut   map[raft.NodeID]bool
}

type meshDoor struct {
	net  *meshNet
	from raft.NodeID
}

func (d meshDoor) Send(to raft.NodeID, msgs []raft.Msg) {
	d.net.mu.Lock()
	h, cut := d.net.hosts[to], d.net.cut[to] || d.net.cut[d.from]
	d.net.mu.Unlock()
	if h == nil || cut {
		return
	}
	h.OnMessages(d.from, append([]raft.Msg(nil), msgs...))
}

// alive is a liveness table in which every node supports every other, but for those cut off.
type alive struct {
	net  *meshNet
	self raft.NodeID
}

func (a alive) ok(n raft.NodeID) bool {
	a.net.mu.Lock()
	defer a.net.mu.Unlock()
	return n == a.self || !a.net.cut[n] && !a.net.cut[a.self]
}

func (a alive) SupportFor(n raft.NodeID) (raft.Epoch, bool) { return 1<<32 | 1, a.ok(n) }

func (a alive) SupportFrom(n raft.NodeID) (raft.Epoch, raft.Time) {
	if a.ok(n) {
		return 1<<32 | 1, 1 << 62
	}
	return 1<<32 | 1, 0
}

type wallClock struct{ start time.Time }

func (c wallClock) Now() raft.Time { return raft.Time(time.Since(c.start) + time.Hour) }
func (c wallClock) Wall() uint64   { return uint64(time.Now().UnixNano()) }

type mesh struct {
	net   *meshNet
	fs    []engine.FS
	hosts []*Host
	engs  []*engine.Engine
	m     *Custom
}

func (m *mesh) open(t *testing.T, i int) {
	t.Helper()
	e, err := engine.Open(engine.Options{Dir: "d", FS: m.fs[i], Create: true, MemTableBytes: 4 << 20, OnFatal: func(error) {}})
	if err != nil {
		t.Fatal(err)
	}
	id := raft.NodeID(i + 1)
	h, err := New(Config{
		Node: id, Engine: e, Net: meshDoor{m.net, id}, Liveness: alive{m.net, id}, Clock: wallClock{time.Now()},
		Machine: m.m, Loops: 2, Seed: uint64(i),
	})
	if err != nil {
		t.Fatal(err)
	}
	states, err := e.Boot()
	if err != nil {
		t.Fatal(err)
	}
	for _, s := range states {
		if err := h.AddGroups([]raft.State{s.State}); err != nil {
			t.Fatal(err)
		}
	}
	m.engs[i], m.hosts[i] = e, h
	m.net.mu.Lock()
	m.net.hosts[id] = h
	m.net.mu.Unlock()
	h.Start()
}

func (m *mesh) close(i int) {
	m.net.mu.Lock()
	delete(m.net.hosts, raft.NodeID(i+1))
	m.net.mu.Unlock()
	m.hosts[i].Close()
	m.engs[i].Close()
}

// newMesh runs three hosts with the given groups, all on in-memory stores.
func newMesh(t *testing.T, groups int) *mesh {
	m := &mesh{
		net: &meshNet{hosts: map[raft.NodeID]*Host{}, cut: map[raft.NodeID]bool{}},
		fs:  make([]engine.FS, 3), hosts: make([]*Host, 3), engs: make([]*engine.Engine, 3), m: NewCustom(counter{}),
	}
	for i := range 3 {
		m.fs[i] = engine.NewMemFS()
		m.open(t, i)
		if err := m.hosts[i].CreateGroups(groupDescs(groups)); err != nil {
			t.Fatal(err)
		}
	}
	t.Cleanup(func() {
		for i := range 3 {
			m.close(i)
		}
	})
	return m
}

func groupDescs(n int) (out []raft.Descriptor) {
	for g := range n {
		d := raft.Descriptor{Shard: raft.ShardID(g + 1), Keyspace: 7, ConfVer: 1, Version: 1, NextReplica: 4}
		if g > 0 {
			d.Start = fmt.Appendf(nil, "g%03d", g)
		}
		if g < n-1 {
			d.End = fmt.Appendf(nil, "g%03d", g+1)
		}
		for i := range 3 {
			d.Replicas = append(d.Replicas, raft.Replica{Node: raft.NodeID(i + 1), ID: raft.ReplicaID(i + 1), Role: raft.Voter})
		}
		out = append(out, d)
	}
	return out
}

// until polls for a condition that other goroutines bring about.
func until(t *testing.T, what string, f func() bool) {
	t.Helper()
	deadline := time.Now().Add(time.Minute)
	tick := time.NewTicker(time.Millisecond)
	defer tick.Stop()
	for !f() {
		if time.Now().After(deadline) {
			t.Fatalf("not in time: %s", what)
		}
		<-tick.C
	}
}

// propose finds the leader of the group and proposes there.
func (m *mesh) propose(t *testing.T, shard raft.ShardID, cmd []byte) ([]byte, error) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	for {
		for _, h := range m.hosts {
			out, err := m.m.Propose(ctx, h, shard, cmd)
			var nl *NotLeaderError
			var nq *NoQuorumError
			if !errors.As(err, &nl) && !errors.As(err, &nq) && !errors.Is(err, ErrClosed) {
				return out, err
			}
		}
		if ctx.Err() != nil {
			t.Fatalf("no leader of shard %d", shard)
		}
	}
}

// TestCustomMachine: a counter replicated in eight groups; results come back, a
// refused command leaves nothing, and all replicas end with the same state.
func TestCustomMachine(t *testing.T) {
	m := newMesh(t, 8)
	key := func(g int) string { return fmt.Sprintf("g%03dx", g) }
	var wg sync.WaitGroup
	for g := range 8 {
		wg.Go(func() {
			for range 50 {
				if _, err := m.propose(t, raft.ShardID(g+1), add(2, key(g))); err != nil {
					t.Error(err)
					return
				}
			}
			out, err := m.propose(t, raft.ShardID(g+1), add(-1, key(g)))
			var me *MachineError
			if !errors.As(err, &me) || me.Text != "negative" {
				t.Errorf("refused command: %q, %v", out, err)
			}
			out, err = m.propose(t, raft.ShardID(g+1), add(0, key(g)))
			if err != nil || binary.BigEndian.Uint64(out) != 100 {
				t.Errorf("sum: %x, %v", out, err)
			}
		})
	}
	wg.Wait()
	if _, err := m.propose(t, 1, add(1, "g005")); err == nil {
		t.Error("a key outside the group's span was written")
	}
	for g := range 8 {
		for i := range m.engs {
			until(t, "replica applied", func() bool {
				v, ok, err := m.engs[i].Get(7, []byte(key(g)), nil)
				return err == nil && ok && binary.BigEndian.Uint64(v) == 100
			})
		}
	}
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	answered := 0
	for _, h := range m.hosts {
		if v, err := m.m.Query(ctx, h, 3, []byte(key(2))); err == nil && binary.BigEndian.Uint64(v) == 100 {
			answered++
		}
	}
	if answered != 1 {
		t.Errorf("%d hosts answered a linearizable query, want the leader alone", answered)
	}
}

// TestHostRestart: hosts are closed and opened on their stores again; nothing
// acknowledged is missing, and requests to a closed host are refused.
func TestHostRestart(t *testing.T) {
	m := newMesh(t, 4)
	for i := range 40 {
		if _, err := m.propose(t, raft.ShardID(i%4+1), add(1, fmt.Sprintf("g%03dk", i%4))); err != nil {
			t.Fatal(err)
		}
	}
	for i := range 3 {
		m.close(i)
	}
	if _, err := m.m.Propose(context.Background(), m.hosts[0], 1, add(1, "g000k")); !errors.Is(err, ErrClosed) {
		t.Fatalf("closed host: %v", err)
	}
	for i := range 3 {
		m.open(t, i)
	}
	for g := range 4 {
		out, err := m.propose(t, raft.ShardID(g+1), add(0, fmt.Sprintf("g%03dk", g)))
		if err != nil || binary.BigEndian.Uint64(out) != 10 {
			t.Fatalf("group %d after restart: %x, %v", g, out, err)
		}
	}
}

// TestPanicFencesTheReplica: a panic in a machine stops that group's replica and
// nothing else; what it wrote is gone, and the proposer learns that the outcome is unknown.
func TestPanicFencesTheReplica(t *testing.T) {
	m := newMesh(t, 2)
	if _, err := m.propose(t, 1, add(5, "g000k")); err != nil {
		t.Fatal(err)
	}
	if _, err := m.propose(t, 1, add(666, "g000k")); !errors.Is(err, ErrAmbiguous) {
		t.Fatalf("panicking command: %v", err)
	}
	for i, h := range m.hosts {
		until(t, "fenced everywhere", func() bool { v, _ := h.View(1); return v.Fenced != nil })
		v, _, err := m.engs[i].Get(7, []byte("g000k"), nil)
		if err != nil || binary.BigEndian.Uint64(v) != 5 {
			t.Fatalf("host %d holds %x, %v", i+1, v, err)
		}
	}
	if _, err := m.m.Propose(context.Background(), m.hosts[0], 1, add(1, "g000k")); !errors.Is(err, ErrFenced) {
		t.Fatalf("fenced replica: %v", err)
	}
	if _, err := m.propose(t, 2, add(1, "g001k")); err != nil {
		t.Fatalf("the other group: %v", err)
	}
}

// TestIsolatedLeader: a leader cut off from the others refuses new requests with
// *NoQuorumError, the others elect, and after healing the old one follows. The
// proposal that was in its log meets its fate by the entry committed there.
func TestIsolatedLeader(t *testing.T) {
	m := newMesh(t, 1)
	if _, err := m.propose(t, 1, add(1, "k")); err != nil {
		t.Fatal(err)
	}
	old := -1
	until(t, "a leader", func() bool {
		for i, h := range m.hosts {
			if v, _ := h.View(1); v.IsLeader && v.IsReady {
				old = i
				return true
			}
		}
		return false
	})
	setCut := func(cut bool) {
		m.net.mu.Lock()
		m.net.cut[raft.NodeID(old+1)] = cut
		m.net.mu.Unlock()
		for _, h := range m.hosts {
			for n := range 3 {
				h.LivenessChanged(raft.NodeID(n + 1))
			}
		}
	}
	setCut(true)
	fate := make(chan error, 1)
	m.hosts[old].Propose(1, raft.Command{Op: OpUser, Body: add(100, "k")}, func(_ []byte, _ raft.Index, _ uint32, err error) { fate <- err })
	until(t, "the cut-off leader refuses", func() bool {
		// Until it notices, it takes the proposal, whose outcome then stays open.
		ctx, cancel := context.WithTimeout(context.Background(), time.Millisecond)
		defer cancel()
		_, err := m.m.Propose(ctx, m.hosts[old], 1, add(1000, "k"))
		var nq *NoQuorumError
		return errors.As(err, &nq)
	})
	out, err := m.propose(t, 1, add(1, "k"))
	if err != nil || binary.BigEndian.Uint64(out) != 2 {
		t.Fatalf("the majority: %x, %v", out, err)
	}
	setCut(false)
	for i := range m.hosts {
		m.hosts[i].PeerReset(raft.NodeID(old + 1))
	}
	err = <-fate
	var nl *NotLeaderError
	var nq *NoQuorumError
	if !errors.Is(err, ErrDropped) && !errors.As(err, &nl) && !errors.As(err, &nq) {
		t.Fatalf("the minority's proposal: %v", err)
	}
	until(t, "the old leader caught up", func() bool {
		v, ok, err := m.engs[old].Get(7, []byte("k"), nil)
		return err == nil && ok && binary.BigEndian.Uint64(v) == 2
	})
}
