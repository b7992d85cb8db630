package transport

import (
	"bytes"
	"context"
	"errors"
	"io"
	"sync/atomic"
	"testing"

	"github.com/flotillakv/flotilla/multiraft/raft"
)

// snapshotPair is a sender and a receiver of snapshots, over TCP or in process.
type snapshotPair struct {
	name string
	open func(t *testing.T, rb *recorder) Transport
}

func snapshotPairs() []snapshotPair {
	return []snapshotPair{
		{"tcp", func(t *testing.T, rb *recorder) Transport {
			a, _ := startNode(t, 1, 1, Options{})
			b, _ := startNode(t, 2, 1, Options{Handler: rb})
			a.SetPeer(2, b.Addr())
			return a
		}},
		{"loopback", func(t *testing.T, rb *recorder) Transport {
			n := NewNetwork()
			a, _ := joinLoop(n, 1)
			b := n.Join(Identity{Cluster: testCluster, Node: 2, BootEpoch: 1}, rb, nil)
			t.Cleanup(func() { a.Close(); b.Close() })
			return a
		}},
	}
}

// A snapshot of several megabytes arrives whole and in order, its sender is held
// back by a receiver that does not read, and learns the verdict.
func TestSnapshotStream(t *testing.T) {
	for _, p := range snapshotPairs() {
		t.Run(p.name, func(t *testing.T) {
			checkLeaks(t)
			rb := newRecorder()
			gate, done := make(chan struct{}), make(chan []byte, 1)
			rb.snap = func(from raft.NodeID, header []byte, next func() ([]byte, error), reply func([]byte) error) error {
				if from != 1 || string(header) != "header" {
					t.Errorf("from %d, header %q", from, header)
				}
				<-gate
				var all []byte
				for {
					c, err := next()
					if err == io.EOF {
						done <- all
						return nil
					}
					if err != nil {
						return err
					}
					all = append(all, c...)
				}
			}
			a := p.open(t, rb)
			s, err := a.OpenSnapshot(testContext(t), 2, []byte("header"))
			if err != nil {
				t.Fatal(err)
			}
			var sent atomic.Int64
			finished := make(chan error, 1)
			const chunks = 40
			go func() {
				chunk := make([]byte, 512<<10)
				for i := range chunks {
					for j := range chunk {
						chunk[j] = byte(i + j)
					}
					if err := s.Send(chunk); err != nil {
						finished <- err
						return
					}
					sent.Add(1)
				}
				finished <- s.CloseAndRecv()
			}()
			close(gate)
			if err := <-finished; err != nil {
				t.Fatal(err)
			}
			all := <-done
			if len(all) != chunks*512<<10 {
				t.Fatalf("%d bytes arrived", len(all))
			}
			for i, c := range all {
				if c != byte(i/(512<<10)+i%(512<<10)) {
					t.Fatalf("byte %d is %d", i, c)
				}
			}
			if err := s.Send(nil); err == nil {
				t.Fatal("an empty chunk was taken")
			}
		})
	}
}

// Replies reach the sender in order while it sends, and their end is known to it; those
// that it does not wait for are no obstacle to the verdict.
func TestSnapshotReplies(t *testing.T) {
	for _, p := range snapshotPairs() {
		t.Run(p.name, func(t *testing.T) {
			checkLeaks(t)
			rb := newRecorder()
			rb.snap = func(_ raft.NodeID, _ []byte, next func() ([]byte, error), reply func([]byte) error) error {
				if err := reply([]byte("ready")); err != nil {
					return err
				}
				for {
					c, err := next()
					if err == io.EOF {
						return errors.New("enough")
					}
					if err == nil {
						err = reply(append([]byte("re: "), c...))
					}
					if err != nil {
						return err
					}
				}
			}
			a := p.open(t, rb)
			s, err := a.OpenSnapshot(testContext(t), 2, []byte("h"))
			if err != nil {
				t.Fatal(err)
			}
			expect := func(want string) {
				t.Helper()
				if b, err := s.Recv(); err != nil || string(b) != want {
					t.Fatalf("%q, %v; want %q", b, err, want)
				}
			}
			expect("ready")
			for _, m := range []string{"one", "two"} {
				if err := s.Send([]byte(m)); err != nil {
					t.Fatal(err)
				}
			}
			expect("re: one")
			var refused *SnapshotError
			if err := s.CloseAndRecv(); !errors.As(err, &refused) || refused.Text != "enough" {
				t.Fatalf("the verdict is %v", err)
			}

			s, err = a.OpenSnapshot(testContext(t), 2, []byte("h"))
			if err != nil {
				t.Fatal(err)
			}
			expect("ready")
			a.Close()
			if b, err := s.Recv(); err == nil {
				t.Fatalf("a stream of a closed transport replies %q", b)
			}
			_ = s.CloseAndRecv()
		})
	}
}

// A sender does not run ahead of a receiver that does not read.
func TestSnapshotBackPressure(t *testing.T) {
	checkLeaks(t)
	rb := newRecorder()
	gate := make(chan struct{})
	rb.snap = func(_ raft.NodeID, _ []byte, next func() ([]byte, error), reply func([]byte) error) error {
		<-gate
		return errors.New("no more")
	}
	a := snapshotPairs()[0].open(t, rb)
	s, err := a.OpenSnapshot(testContext(t), 2, nil)
	if err != nil {
		t.Fatal(err)
	}
	var sent atomic.Int64
	finished := make(chan error, 1)
	go func() {
		for range 1000 {
			if s.Send(make([]byte, 1<<20)) != nil {
				break
			}
			sent.Add(1)
		}
		finished <- s.CloseAndRecv()
	}()
	eventually(t, "the window fills", func() bool { return sent.Load() >= 8 })
	close(gate)
	var refused *SnapshotError
	if err := <-finished; !errors.As(err, &refused) || refused.Text != "no more" || refused.Node != 2 {
		t.Fatalf("got %v", err)
	}
	if n := sent.Load(); n > 32 {
		t.Fatalf("%d MiB were sent to a receiver that reads nothing", n)
	}
}

// When the sender's context ends, or the sender closes, the receiver's next says
// so, and it is not an end of file.
func TestSnapshotBrokenOff(t *testing.T) {
	for _, p := range snapshotPairs() {
		t.Run(p.name, func(t *testing.T) {
			checkLeaks(t)
			rb := newRecorder()
			got := make(chan error, 1)
			rb.snap = func(_ raft.NodeID, _ []byte, next func() ([]byte, error), reply func([]byte) error) error {
				for {
					if _, err := next(); err != nil {
						got <- err
						return err
					}
				}
			}
			a := p.open(t, rb)
			ctx, cancel := context.WithCancel(testContext(t))
			s, err := a.OpenSnapshot(ctx, 2, []byte("h"))
			if err != nil {
				t.Fatal(err)
			}
			if err := s.Send(bytes.Repeat([]byte{1}, 100)); err != nil {
				t.Fatal(err)
			}
			cancel()
			if err := <-got; err == nil || errors.Is(err, io.EOF) {
				t.Fatalf("the receiver sees %v", err)
			}
			if err := s.CloseAndRecv(); err == nil {
				t.Fatal("a broken stream ended well")
			}
			s, err = a.OpenSnapshot(testContext(t), 2, []byte("h"))
			if err != nil {
				t.Fatal(err)
			}
			if err := s.Send([]byte{2}); err != nil {
				t.Fatal(err)
			}
			a.Close()
			if err := <-got; err == nil || errors.Is(err, io.EOF) {
				t.Fatalf("the receiver sees %v", err)
			}
			if err := s.CloseAndRecv(); err == nil {
				t.Fatal("a stream of a closed transport ended well")
			}
		})
	}
}
