package snapshot

import (
	"context"
	"sync"

	"github.com/flotillakv/flotilla/multiraft/raft"
)

// maxWaiting bounds the snapshots of a Sender that wait for a slot or are sent.
const maxWaiting = 1024

// Sender sends snapshots in the background, in the form in which a host asks
// for them. It owns one goroutine per snapshot, which ends with the sending or
// with Close.
type Sender struct {
	store  *Store
	open   func(ctx context.Context, to raft.NodeID, header []byte) (Stream, error)
	ctx    context.Context
	cancel context.CancelFunc

	mu struct {
		sync.Mutex
		waiting int
		closed  bool
	}
	wg sync.WaitGroup
}

// NewSender returns a Sender that opens its streams with open.
func NewSender(s *Store, open func(ctx context.Context, to raft.NodeID, header []byte) (Stream, error)) *Sender {
	ctx, cancel := context.WithCancel(context.Background())
	return &Sender{store: s, open: open, ctx: ctx, cancel: cancel}
}

// SendSnapshot sends a snapshot of desc's shard to node to and returns at
// once. done is called exactly once, from any goroutine: with what was sent and
// nil when it is installed there, or with an error of Store.Send, ErrBusy (too
// many wait) or ErrClosed.
func (s *Sender) SendSnapshot(desc raft.Descriptor, to raft.NodeID, _ raft.ReplicaID, done func(index raft.Index, term raft.Term, err error)) {
	s.mu.Lock()
	var err error
	switch {
	case s.mu.closed:
		err = ErrClosed
	case s.mu.waiting >= maxWaiting:
		err = ErrBusy
	default:
		s.mu.waiting++
		s.wg.Add(1)
	}
	s.mu.Unlock()
	if err != nil {
		done(0, 0, err)
		return
	}
	go func() {
		defer s.wg.Done()
		index, term, err := s.store.Send(s.ctx, &desc, func(ctx context.Context, header []byte) (Stream, error) {
			return s.open(ctx, to, header)
		})
		s.mu.Lock()
		s.mu.waiting--
		s.mu.Unlock()
		done(index, term, err)
	}()
}

// Close ends what is being sent and waits for it. It is idempotent.
func (s *Sender) Close() {
	s.mu.Lock()
	s.mu.closed = true
	s.mu.Unlock()
	s.cancel()
	s.wg.Wait()
}
