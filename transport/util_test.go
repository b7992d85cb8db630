package transport

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/flotillakv/flotilla/multiraft/raft"
)

const testTimeout = 15 * time.Second

var testCluster = [16]byte{1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16}

// recorder is a Handler that remembers what came and lets tests wait for it.
type recorder struct {
	mu      sync.Mutex
	changed chan struct{} // closed and replaced on every change
	msgs    map[raft.NodeID][]raft.Msg
	ctl     map[raft.NodeID][]raft.Ctl
	order   []string
	up      map[raft.NodeID]bool
	ups     map[raft.NodeID]int
	snap    func(from raft.NodeID, header []byte, next func() ([]byte, error), reply func([]byte) error) error
	block   chan struct{} // if set, OnMessages waits for it
}

func newRecorder() *recorder {
	return &recorder{
		changed: make(chan struct{}), msgs: map[raft.NodeID][]raft.Msg{}, ctl: map[raft.NodeID][]raft.Ctl{},
		up: map[raft.NodeID]bool{}, ups: map[raft.NodeID]int{},
	}
}

func (r *recorder) change(f func()) {
	r.mu.Lock()
	defer r.mu.Unlock()
	f()
	close(r.changed)
	r.changed = make(chan struct{})
}

func (r *recorder) OnMessages(from raft.NodeID, msgs []raft.Msg) {
	r.mu.Lock()
	block := r.block
	r.mu.Unlock()
	if block != nil {
		<-block
	}
	r.change(func() {
		r.msgs[from] = append(r.msgs[from], msgs...)
		r.order = append(r.order, "msgs")
	})
}

func (r *recorder) OnCtl(from raft.NodeID, ctl []raft.Ctl) {
	r.change(func() {
		r.ctl[from] = append(r.ctl[from], ctl...)
		r.order = append(r.order, "ctl")
	})
}

func (r *recorder) OnPeer(node raft.NodeID, up bool) {
	r.change(func() {
		r.up[node] = up
		if up {
			r.ups[node]++
		}
	})
}

func (r *recorder) OnSnapshot(from raft.NodeID, header []byte, next func() ([]byte, error), reply func([]byte) error) error {
	if r.snap != nil {
		return r.snap(from, header, next, reply)
	}
	for {
		if _, err := next(); err == io.EOF {
			return nil
		} else if err != nil {
			return err
		}
	}
}

// wait returns when cond holds, which is asked after every change.
func (r *recorder) wait(t testing.TB, what string, cond func() bool) {
	t.Helper()
	deadline := time.NewTimer(testTimeout)
	defer deadline.Stop()
	for {
		r.mu.Lock()
		ok, changed := cond(), r.changed
		r.mu.Unlock()
		if ok {
			return
		}
		select {
		case <-changed:
		case <-deadline.C:
			t.Fatalf("timed out waiting: %s", what)
		}
	}
}

func (r *recorder) waitUp(t testing.TB, node raft.NodeID) {
	t.Helper()
	r.wait(t, fmt.Sprintf("stream to node %d is up", node), func() bool { return r.up[node] })
}

// eventually polls cond through a ticker, for state without a notification.
func eventually(t testing.TB, what string, cond func() bool) {
	t.Helper()
	deadline := time.NewTimer(testTimeout)
	defer deadline.Stop()
	tick := time.NewTicker(2 * time.Millisecond)
	defer tick.Stop()
	for !cond() {
		select {
		case <-tick.C:
		case <-deadline.C:
			t.Fatalf("timed out waiting: %s", what)
		}
	}
}

// checkLeaks fails the test if goroutines started during it outlive it.
func checkLeaks(t testing.TB) {
	t.Helper()
	before := runtime.NumGoroutine()
	t.Cleanup(func() {
		deadline := time.NewTimer(testTimeout)
		defer deadline.Stop()
		tick := time.NewTicker(2 * time.Millisecond)
		defer tick.Stop()
		for runtime.NumGoroutine() > before {
			select {
			case <-tick.C:
			case <-deadline.C:
				buf := make([]byte, 1<<20)
				t.Fatalf("%d goroutines before, %d after:\n%s", before, runtime.NumGoroutine(), buf[:runtime.Stack(buf, true)])
			}
		}
	})
}

// logBuffer collects log lines.
type logBuffer struct {
	mu sync.Mutex
	b  strings.Builder
}

func (l *logBuffer) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *logBuffer) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

func newTestLogger(w io.Writer) *slog.Logger { return slog.New(slog.NewTextHandler(w, nil)) }

func quiet() *slog.Logger { return slog.New(slog.NewTextHandler(io.Discard, nil)) }

// startNode starts a GRPC transport on free ports of the loopback interface.
func startNode(t testing.TB, node raft.NodeID, boot uint64, o Options) (*GRPC, *recorder) {
	t.Helper()
	rec := newRecorder()
	if o.Identity.Cluster == [16]byte{} {
		o.Identity.Cluster = testCluster
	}
	o.Identity.Node, o.Identity.BootEpoch = node, boot
	if o.Listen == "" && o.Listener == nil {
		o.Listen = "127.0.0.1:0"
	}
	if o.Handler == nil {
		o.Handler = rec
	}
	if o.Logger == nil {
		o.Logger = quiet()
	}
	if o.BackoffMin == 0 {
		o.BackoffMin, o.BackoffMax = 5*time.Millisecond, 50*time.Millisecond
	}
	g, err := NewGRPC(o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { g.Close() })
	return g, rec
}

func testEntry(index raft.Index, term raft.Term, body []byte) raft.Entry {
	v := raft.EncodeEntry(nil, index, term, raft.EntryNormal, raft.EntryHeader{DescVersion: 3, GroupTs: 77}, []raft.Command{{Op: 1, Body: body}})
	return raft.Entry{Index: index, Term: term, Type: raft.EntryNormal, Value: v}
}

func testContext(t testing.TB) context.Context {
	ctx, cancel := context.WithTimeout(context.Background(), testTimeout)
	t.Cleanup(cancel)
	return ctx
}
