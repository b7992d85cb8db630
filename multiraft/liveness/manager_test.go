package liveness

import (
	"errors"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/flotillakv/flotilla/multiraft/raft"
)

// handClock is moved by the test.
type handClock struct {
	now  raft.Time
	wall uint64
}

func (c *handClock) Now() raft.Time                  { return c.now }
func (c *handClock) Wall() uint64                    { return c.wall + uint64(c.now) }
func (c *handClock) Wait(raft.Time, <-chan struct{}) {}
func (c *handClock) at(m *Manager, d time.Duration)  { c.now = raft.Time(time.Hour).Add(d); m.Step() }
func hand() *handClock                               { return &handClock{now: raft.Time(time.Hour), wall: 1e18} }
func hb(boot, n, seq uint64) raft.Ctl {
	return raft.Ctl{Kind: raft.CtlHeartbeat, Epoch: raft.Epoch(boot<<32 | n), Seq: seq}
}

// memStore keeps the last record per node.
type memStore struct {
	mu    sync.Mutex
	recs  map[raft.NodeID]Record
	syncs int
	err   error
	stall chan struct{} // non-nil: calls wait for it
}

func (s *memStore) wait() error {
	s.mu.Lock()
	stall := s.stall
	s.mu.Unlock()
	if stall != nil {
		<-stall
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.syncs++
	return s.err
}

func (s *memStore) SaveSupport(recs ...Record) error {
	if err := s.wait(); err != nil {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.recs == nil {
		s.recs = map[raft.NodeID]Record{}
	}
	for _, r := range recs {
		s.recs[r.Node] = r
	}
	return nil
}

func (s *memStore) SyncNow() error { return s.wait() }

// sentNet remembers what was sent.
type sentNet struct{ sent []Send }

func (n *sentNet) SendCtl(to raft.NodeID, c raft.Ctl) { n.sent = append(n.sent, Send{to, c}) }

func (n *sentNet) take() []Send {
	s := n.sent
	n.sent = nil
	return s
}

func handManager(t *testing.T, cfg Config) (*Manager, *handClock, *memStore, *sentNet) {
	t.Helper()
	clock, store, net := hand(), &memStore{}, &sentNet{}
	cfg.Node, cfg.BootEpoch = 1, 7
	m, err := New(cfg, store, net, clock)
	if err != nil {
		t.Fatal(err)
	}
	return m, clock, store, net
}

// TestHeartbeatNeedsADiskThatSyncs: without a sync in the last interval, the
// heartbeat leaves only after the manager's own sync; a store that syncs
// anyway (NoteSync) needs none.
func TestHeartbeatNeedsADiskThatSyncs(t *testing.T) {
	m, clock, store, net := handManager(t, Config{})
	m.AddPeer(2)
	clock.at(m, 0)
	clock.at(m, 0)
	if got := net.take(); len(got) != 1 || store.syncs != 0 {
		t.Fatalf("first heartbeat right after boot: sent %v, %d syncs", got, store.syncs)
	}
	clock.at(m, 500*time.Millisecond)
	if got := net.take(); len(got) != 0 {
		t.Fatalf("sent %v though nothing was synced for an interval", got)
	}
	if !m.DiskStep() || store.syncs != 1 {
		t.Fatalf("the gate's sync was not asked for (%d syncs)", store.syncs)
	}
	clock.at(m, 501*time.Millisecond)
	if got := net.take(); len(got) != 1 {
		t.Fatalf("after the sync: sent %v, want one heartbeat at once", got)
	}
	m.NoteSync(clock.now.Add(300 * time.Millisecond))
	clock.at(m, 1001*time.Millisecond)
	if got := net.take(); len(got) != 1 || m.DiskStep() {
		t.Fatalf("with a busy store: sent %v, want one heartbeat and no sync", got)
	}
}

// TestStalledDiskStopsSelfSupport: a disk that stands still for more than an
// interval and D/2 takes the node's own vote out of its quorums; it is noticed
// by time, and the owner is told both ways.
func TestStalledDiskStopsSelfSupport(t *testing.T) {
	var told []raft.NodeID
	m, clock, _, _ := handManager(t, Config{OnChange: func(n raft.NodeID) { told = append(told, n) }})
	clock.at(m, 1750*time.Millisecond)
	if _, until := m.SupportFrom(1); until != FarFuture {
		t.Fatalf("own support ended early: %v", until)
	}
	clock.at(m, 1751*time.Millisecond)
	if e, until := m.SupportFrom(1); until != 0 || e != 7 {
		t.Fatalf("own support with a stalled disk: %v until %v", e, until)
	}
	m.DiskStep()
	clock.at(m, 1752*time.Millisecond)
	if _, until := m.SupportFrom(1); until != FarFuture {
		t.Fatalf("own support after the disk came back: %v", until)
	}
	if !slices.Equal(told, []raft.NodeID{1, 1}) {
		t.Fatalf("told %v, want the own node twice", told)
	}
}

// TestLoopGateStopsHeartbeats is rule C4's other half: loops that stand still.
func TestLoopGateStopsHeartbeats(t *testing.T) {
	open := false
	m, clock, _, net := handManager(t, Config{Gate: func(raft.Time) bool { return open }, Peers: func() []raft.NodeID { return []raft.NodeID{1, 2, 3} }})
	clock.at(m, 0)
	m.DiskStep()
	clock.at(m, time.Millisecond)
	if got := net.take(); len(got) != 0 {
		t.Fatalf("sent %v with the loops standing still", got)
	}
	open = true
	clock.at(m, 2*time.Millisecond)
	if got := net.take(); len(got) != 2 {
		t.Fatalf("sent %v, want a heartbeat to each of the two peers", got)
	}
}

// TestOnChangeByTime: a withdrawal and a lapse are noticed and told without any message.
func TestOnChangeByTime(t *testing.T) {
	var told []raft.NodeID
	m, clock, store, net := handManager(t, Config{OnChange: func(n raft.NodeID) { told = append(told, n) }})
	m.AddPeer(3)
	m.OnCtl(2, clock.now, hb(5, 1, 1))
	clock.at(m, 0)
	m.DiskStep()
	clock.at(m, time.Millisecond)
	var asked raft.Ctl
	for _, s := range net.take() {
		if s.To == 3 {
			asked = s.Ctl
		}
	}
	m.OnCtl(3, clock.now, raft.Ctl{Kind: raft.CtlReply, Epoch: asked.Epoch, Seq: asked.Seq, Score: 9})
	clock.at(m, 2*time.Millisecond)
	want := []PeerState{
		{Node: 2, For: 5<<32 | 1, Supported: true, Since: raft.Time(time.Hour).Add(time.Millisecond)},
		{Node: 3, From: 7<<32 | 1, Supports: true, Score: 9, Since: raft.Time(time.Hour).Add(2 * time.Millisecond)},
	}
	if got := m.Snapshot(); !slices.Equal(got, want) {
		t.Fatalf("snapshot %+v\nwant %+v", got, want)
	}
	if !slices.Equal(told, []raft.NodeID{2, 3}) {
		t.Fatalf("told %v", told)
	}
	told = nil
	for range 200 { // by deadlines alone
		if clock.now = max(clock.now, m.Deadline()); clock.now > raft.Time(time.Hour).Add(4*time.Second) {
			break
		}
		m.Step()
		m.DiskStep()
	}
	if !slices.Contains(told, 2) || !slices.Contains(told, 3) {
		t.Fatalf("told %v, want the withdrawal for 2 and the lapse of 3 among them", told)
	}
	if _, live := m.SupportFor(2); live {
		t.Fatal("node 2 is still supported after 4s of silence")
	}
	if r := store.recs[2]; !r.Withdrawn || r.Epoch != 5<<32|1 {
		t.Fatalf("record of node 2: %+v", r)
	}
	if st := m.Stats(); st.Withdrawn != 1 || st.Lost != 1 || st.Beats == 0 {
		t.Fatalf("stats %+v", st)
	}
}

// TestStoreFailureSilencesTheNode: after a failed write nothing is answered or asked.
func TestStoreFailureSilencesTheNode(t *testing.T) {
	m, clock, store, net := handManager(t, Config{})
	store.err = errors.New("disk is gone")
	m.OnCtl(2, clock.now, hb(5, 1, 1))
	clock.at(m, 0)
	m.DiskStep()
	m.AddPeer(3)
	m.OnCtl(2, clock.now, hb(5, 1, 2))
	clock.at(m, 10*time.Millisecond)
	clock.at(m, time.Second)
	if got := net.take(); len(got) != 0 {
		t.Fatalf("sent %v after the store failed", got)
	}
	if e, live := m.SupportFor(2); live || e != 0 {
		t.Fatalf("support of node 2 shown (%v) though its record was never durable", e)
	}
	if _, until := m.SupportFrom(1); until != 0 {
		t.Fatal("own support stands on a dead disk")
	}
}

// TestCtlQueueIsBounded: records beyond the bound are dropped and counted.
func TestCtlQueueIsBounded(t *testing.T) {
	m, clock, _, _ := handManager(t, Config{})
	for range maxQueuedCtl + 3 {
		m.OnCtl(2, clock.now, hb(5, 1, 1))
	}
	if d := m.Stats().Dropped; d != 3 {
		t.Fatalf("dropped %d, want 3", d)
	}
}

// TestClockAhead is rule C6's input: the median of the peers' wall clocks.
func TestClockAhead(t *testing.T) {
	for _, tc := range []struct {
		name  string
		peers []time.Duration // their clocks minus ours
		ahead time.Duration
		ok    bool
	}{
		{"nobody heard", nil, 0, true},
		{"one, the same", []time.Duration{0}, 0, true},
		{"we are 11s ahead of the only peer", []time.Duration{-11 * time.Second}, 11 * time.Second, false},
		{"one of two is behind", []time.Duration{-time.Hour, 0}, 0, true},
		{"both are behind", []time.Duration{-time.Hour, -11 * time.Second}, 11 * time.Second, false},
		{"one of three is ahead", []time.Duration{-20 * time.Second, -20 * time.Second, time.Hour}, 20 * time.Second, false},
		{"we are behind", []time.Duration{time.Minute}, -time.Minute, true},
	} {
		t.Run(tc.name, func(t *testing.T) {
			m, clock, _, _ := handManager(t, Config{})
			for i, off := range tc.peers {
				c := hb(5, 1, 1)
				c.Wall = uint64(int64(clock.Wall()) + int64(off))
				m.OnCtl(raft.NodeID(2+i), clock.now, c)
			}
			clock.at(m, 0)
			if got := m.ClockAhead(); got != tc.ahead || m.ClockOK() != tc.ok {
				t.Fatalf("ahead %v ok %v, want %v %v", got, m.ClockOK(), tc.ahead, tc.ok)
			}
			clock.at(m, 11*time.Second) // not heard for long: no opinion
			if got := m.ClockAhead(); got != 0 {
				t.Fatalf("ahead %v by peers that are gone", got)
			}
		})
	}
}

func TestTimingValidate(t *testing.T) {
	for _, tc := range []struct {
		t  Timing
		ok bool
	}{
		{Timing{}, true},
		{Timing{Interval: 150 * time.Millisecond, Duration: 750 * time.Millisecond}, true},
		{Timing{Interval: 500 * time.Millisecond, Duration: 1999 * time.Millisecond}, false},
		{Timing{Interval: time.Microsecond}, false},
		{Timing{Interval: 10 * time.Millisecond, Duration: 40 * time.Millisecond}, false},
		{Timing{Rho: 0.6}, false},
		{Timing{Duration: 2 * time.Hour}, false},
	} {
		if err := tc.t.WithDefaults().Validate(); (err == nil) != tc.ok {
			t.Errorf("%+v: %v", tc.t, err)
		}
	}
	if _, err := New(Config{BootEpoch: 1}, &memStore{}, &sentNet{}, hand()); err == nil {
		t.Error("node 0 was accepted")
	}
	if _, err := New(Config{Node: 1}, &memStore{}, &sentNet{}, hand()); err == nil {
		t.Error("boot epoch 0 was accepted")
	}
}

// bus connects managers that run.
type bus struct {
	mu    sync.Mutex
	nodes map[raft.NodeID]*Manager
	clock Clock
}

type busEnd struct {
	b    *bus
	from raft.NodeID
}

func (e busEnd) SendCtl(to raft.NodeID, c raft.Ctl) {
	e.b.mu.Lock()
	m := e.b.nodes[to]
	e.b.mu.Unlock()
	if m != nil {
		m.OnCtl(e.from, e.b.clock.Now(), c)
	}
}

// TestThreeNodes runs three managers with their goroutines in virtual time:
// all support each other; the disk of node 3 stalls, and within D and a bit
// the others withdraw; it comes back, and they support it again, at a new
// epoch; a clean stop gives everything back at once.
func TestThreeNodes(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := &bus{nodes: map[raft.NodeID]*Manager{}, clock: NewSystemClock()}
		stores := map[raft.NodeID]*memStore{}
		var changes atomic.Int64
		for id := raft.NodeID(1); id <= 3; id++ {
			stores[id] = &memStore{}
			m, err := New(Config{Node: id, BootEpoch: uint64(id), Peers: func() []raft.NodeID { return []raft.NodeID{1, 2, 3} },
				OnChange: func(raft.NodeID) { changes.Add(1) }}, stores[id], busEnd{b, id}, b.clock)
			if err != nil {
				t.Fatal(err)
			}
			b.mu.Lock()
			b.nodes[id] = m
			b.mu.Unlock()
		}
		for id := raft.NodeID(1); id <= 3; id++ {
			b.nodes[id].Start()
		}
		agree := func(want bool) {
			t.Helper()
			synctest.Wait()
			for _, id := range []raft.NodeID{1, 2} {
				e, live := b.nodes[id].SupportFor(3)
				f, until := b.nodes[3].SupportFrom(id)
				if live != want || (b.clock.Now() < until) != want || want && e != f {
					t.Fatalf("node %d supports node 3: %v at %s; node 3 counts it until %v at %s", id, live, showEpoch(e), until, showEpoch(f))
				}
			}
		}
		time.Sleep(time.Second)
		agree(true)
		first, _ := b.nodes[1].SupportFor(3)

		stall := make(chan struct{})
		stores[3].mu.Lock()
		stores[3].stall = stall
		stores[3].mu.Unlock()
		time.Sleep(3100 * time.Millisecond)
		agree(false)

		stores[3].mu.Lock()
		stores[3].stall = nil
		stores[3].mu.Unlock()
		close(stall)
		time.Sleep(600 * time.Millisecond)
		agree(true)
		if again, _ := b.nodes[1].SupportFor(3); again <= first {
			t.Fatalf("epoch %s after %s", showEpoch(again), showEpoch(first))
		}

		b.nodes[3].Relinquish()
		time.Sleep(time.Millisecond)
		agree(false)
		if changes.Load() == 0 {
			t.Fatal("nobody was told of any change")
		}
		for id := raft.NodeID(1); id <= 3; id++ {
			b.nodes[id].Close()
			b.nodes[id].Close()
		}
		b.nodes[3].Relinquish() // after Close: returns
	})
}

// TestReadersDoNotWait reads the table from many goroutines while it grows;
// the race detector is the judge.
func TestReadersDoNotWait(t *testing.T) {
	m, clock, _, _ := handManager(t, Config{})
	var wg sync.WaitGroup
	var stop atomic.Bool
	for range 4 {
		wg.Go(func() {
			for !stop.Load() {
				for n := raft.NodeID(1); n < 300; n += 7 {
					if e, live := m.SupportFor(n); live && e == 0 {
						t.Error("live at no epoch")
					}
					m.SupportFrom(n)
				}
				m.Snapshot()
			}
		})
	}
	for n := raft.NodeID(2); n < 300; n++ {
		m.OnCtl(n, clock.now, hb(5, 1, 1))
		m.AddPeer(n)
		m.Step()
		m.DiskStep()
	}
	m.Step()
	stop.Store(true)
	wg.Wait()
	if e, live := m.SupportFor(299); !live || e != 5<<32|1 {
		t.Fatalf("node 299: %v %v", e, live)
	}
}

func BenchmarkSupportFrom(b *testing.B) {
	m, err := New(Config{Node: 1, BootEpoch: 1}, &memStore{}, &sentNet{}, hand())
	if err != nil {
		b.Fatal(err)
	}
	b.ReportAllocs()
	for b.Loop() {
		m.SupportFrom(1)
	}
}
