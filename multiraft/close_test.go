package multiraft

import (
	"context"
	"errors"
	"sync"
	"testing"
	"time"

	"github.com/flotillakv/flotilla/engine"
	"github.com/flotillakv/flotilla/internal/sim/simfs"
	"github.com/flotillakv/flotilla/multiraft/raft"
)

// told collects outcomes that other goroutines report.
type told struct {
	mu  sync.Mutex
	all map[string]error
	wg  sync.WaitGroup
}

func (d *told) expect(name string) func(error) {
	d.wg.Add(1)
	return func(err error) {
		d.mu.Lock()
		defer d.mu.Unlock()
		if d.all == nil {
			d.all = map[string]error{}
		}
		if _, twice := d.all[name]; twice {
			err = errors.New("told twice")
		}
		d.all[name] = err
		d.wg.Done()
	}
}

// within fails the test if f does not return in time.
func within(t *testing.T, what string, f func()) {
	t.Helper()
	done := make(chan struct{})
	go func() { defer close(done); f() }()
	select {
	case <-done:
	case <-time.After(10 * time.Second):
		t.Fatalf("not in time: %s", what)
	}
}

// TestFatalAnswersWhatIsOpen: when the node fails everybody who waits learns it
// at once, and not only when the host is closed; OnFatal may close it.
func TestFatalAnswersWhatIsOpen(t *testing.T) {
	r := newRig(t)
	var d told
	var h *Host
	h, err := New(Config{Node: 1, Engine: r.e, Net: r, Liveness: r, Clock: r, Machine: r, Loops: 1, OnFatal: func(error) { h.Close(); d.wg.Done() }})
	if err != nil {
		t.Fatal(err)
	}
	st, _, err := r.e.Load(7)
	if err != nil || h.AddGroups([]raft.State{st}) != nil {
		t.Fatal(err)
	}
	r.h, r.l = h, h.loops[0]
	r.lead(2)
	r.ack(2)
	inLog, read := d.expect("in the log"), d.expect("read")
	h.Propose(7, raft.Command{Op: 1, Body: []byte("a")}, func(_ []byte, _ raft.Index, _ uint32, err error) { inLog(err) })
	r.turn()
	h.ReadIndex(7, func(_ raft.Index, err error) { read(err) })
	r.turn()
	inbox, inboxRead := d.expect("in the inbox"), d.expect("read in the inbox")
	h.Propose(7, raft.Command{Op: 1, Body: []byte("b")}, func(_ []byte, _ raft.Index, _ uint32, err error) { inbox(err) })
	h.ReadIndex(7, func(_ raft.Index, err error) { inboxRead(err) })
	on := d.expect("on")
	go func() { on(h.On(context.Background(), 7, func(raft.Time, *raft.Core, *raft.Out) error { return nil })) }()
	until(t, "queued", func() bool {
		h.loops[0].in.mu.Lock()
		defer h.loops[0].in.mu.Unlock()
		return len(h.loops[0].in.in.funcs) == 1
	})

	h.dead.Store(nil)
	d.wg.Add(1) // OnFatal
	h.fatal(errors.New("the disk is gone"))
	h.Start()
	within(t, "everybody was told", d.wg.Wait)
	want := map[string]error{"in the log": ErrAmbiguous, "read": ErrClosed, "in the inbox": ErrClosed, "read in the inbox": ErrClosed, "on": ErrClosed}
	for name, w := range want {
		if !errors.Is(d.all[name], w) {
			t.Errorf("%s: %v, want %v", name, d.all[name], w)
		}
	}
	if n := h.pending.Load(); n != 0 {
		t.Errorf("%d bytes of proposals still counted", n)
	}
	if h.Alive(r.now, time.Hour) {
		t.Error("a failed host passes for alive")
	}
}

// gateNet lets the test hold a loop within a round.
type gateNet struct {
	in   chan struct{} // a loop is in the gate
	open chan struct{}
	once sync.Once
}

func (g *gateNet) Send(raft.NodeID, []raft.Msg) {
	g.once.Do(func() { close(g.in) })
	<-g.open
}

func gated(t *testing.T, e *engine.Engine, r *rig) (*Host, *gateNet) {
	g := &gateNet{in: make(chan struct{}), open: make(chan struct{})}
	h, err := New(Config{Node: 1, Engine: e, Net: g, Liveness: r, Clock: r, Machine: r, Loops: 1})
	if err != nil {
		t.Fatal(err)
	}
	if st, ok, err := e.Load(7); err != nil || !ok {
		if err = h.CreateGroups([]raft.Descriptor{rigDesc()}); err != nil {
			t.Fatal(err)
		}
	} else if err := h.AddGroups([]raft.State{st}); err != nil {
		t.Fatal(err)
	}
	h.Start()
	go h.On(context.Background(), 7, func(now raft.Time, c *raft.Core, o *raft.Out) error {
		o.HardStates = append(o.HardStates, raft.HardStateTask{Shard: 7, State: c.HardState()})
		o.Msgs = append(o.Msgs, raft.Msg{Type: raft.MsgCommit, Shard: 7, From: 1, To: 2})
		return nil
	})
	<-g.in
	return h, g
}

// TestCloseWaitsForTheLastBatch: a batch that a loop submits while the host is
// being closed is waited for too.
func TestCloseWaitsForTheLastBatch(t *testing.T) {
	r := newRig(t)
	h, g := gated(t, r.e, r)
	h.Halt()
	close(g.open)
	within(t, "closed", h.Close)
	if n := len(h.loops[0].syncer.q); n != 0 || h.loops[0].submitted != 1 {
		t.Errorf("%d of %d batches were left in the queue", n, h.loops[0].submitted)
	}
}

// TestCloseLeavesALoopInAFailedStore: after a failure of the store a loop may
// never come back from it. Close does not wait for it for ever.
func TestCloseLeavesALoopInAFailedStore(t *testing.T) {
	r := newRig(t)
	fs := simfs.New()
	e, err := engine.Open(engine.Options{Dir: "s", FS: fs, Create: true, NoDiskWatch: true, Node: 1, CacheBytes: 1 << 20, MemTableBytes: 16 << 20, OnFatal: func(error) {}})
	if err != nil {
		t.Fatal(err)
	}
	h, g := gated(t, e, r) // the loop hangs in the gate as it would in the store
	var d told
	read := d.expect("read")
	h.loops[0].in.putRead(readRequest{shard: 7, done: func(_ raft.Index, err error) { read(err) }})
	fs.Inject(func(op simfs.Op) error {
		if op.Kind == simfs.OpSync {
			return errors.New("boom")
		}
		return nil
	})
	if err := e.SyncNow(); !errors.Is(err, engine.ErrFailed) {
		t.Fatalf("the store did not fail: %v", err)
	}
	within(t, "closed without the loop", h.Close)
	if err := d.all["read"]; !errors.Is(err, ErrClosed) {
		t.Errorf("what the loop had not seen: %v", err)
	}
	close(g.open)
	h.wg.Wait()
	e.Close()
}

// TestB0_C4 is the loops' part of the gate of heartbeats: a node one of whose
// loops does not get on with its work, whatever holds it (a log that nobody
// reads, a lock, the network), is not alive, and is again when that is over.
func TestB0_C4(t *testing.T) {
	r := newRig(t)
	h, g := gated(t, r.e, r)
	h.loops[0].in.putRead(readRequest{shard: 7, done: func(raft.Index, error) {}})
	began := raft.Time(h.loops[0].roundAt.Load())
	if !h.Alive(began.Add(time.Second), time.Second) {
		t.Error("not alive within the limit")
	}
	if h.Alive(began.Add(time.Second+1), time.Second) {
		t.Error("alive while its loop stands still")
	}
	close(g.open)
	until(t, "the loop rests", func() bool { return h.Alive(began.Add(time.Hour), time.Second) })
	within(t, "closed", h.Close)
}
