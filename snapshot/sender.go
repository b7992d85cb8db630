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
		jobs   map[*job]struct{} // waiting or sent
		closed bool
	}
	wg sync.WaitGroup
}

// NewSender returns a Sender that opens its streams with open.
func NewSender(s *Store, open func(ctx context.Context, to raft.NodeID, header []byte) (Stream, error)) *Sender {
	ctx, cancel := context.WithCancel(context.Background())
	n := &Sender{store: s, open: open, ctx: ctx, cancel: cancel}
	n.mu.jobs = map[*job]struct{}{}
	return n
}

// SendSnapshot sends a snapshot of desc's shard to node to and returns at
// once. done is called exactly once, from any goroutine: with what was sent and
// nil when it is installed there, or with an error of Store.Send, ErrBusy (too
// many wait) or ErrClosed.
func (s *Sender) SendSnapshot(desc raft.Descriptor, to raft.NodeID, _ raft.ReplicaID, done func(index raft.Index, term raft.Term, err error)) {
	s.start(desc.Shard, to, done, func(j *job, open OpenFunc) (raft.Index, raft.Term, error) {
		return s.store.send(s.ctx, &desc, to, open, &j.t)
	})
}

// Image is Store.Image.
func (s *Sender) Image(desc *raft.Descriptor) ([]byte, raft.Index, error) { return s.store.Image(desc) }

// SendImage is SendSnapshot of an image that Image made.
func (s *Sender) SendImage(image []byte, shard raft.ShardID, to raft.NodeID, rep raft.ReplicaID, done func(index raft.Index, term raft.Term, err error)) {
	s.start(shard, to, done, func(j *job, open OpenFunc) (raft.Index, raft.Term, error) {
		return s.store.sendImage(s.ctx, image, to, rep, open, &j.t)
	})
}

// start runs send on a goroutine of its own, if there is room for one more.
func (s *Sender) start(shard raft.ShardID, to raft.NodeID, done func(index raft.Index, term raft.Term, err error), send func(*job, OpenFunc) (raft.Index, raft.Term, error)) {
	j := &job{shard: shard, to: to}
	s.mu.Lock()
	var err error
	switch {
	case s.mu.closed:
		err = ErrClosed
	case len(s.mu.jobs) >= maxWaiting:
		err = ErrBusy
	default:
		s.mu.jobs[j] = struct{}{}
		s.wg.Add(1)
	}
	s.mu.Unlock()
	if err != nil {
		done(0, 0, err)
		return
	}
	go func() {
		defer s.wg.Done()
		index, term, err := send(j, func(ctx context.Context, header []byte) (Stream, error) {
			return s.open(ctx, to, header)
		})
		s.mu.Lock()
		delete(s.mu.jobs, j)
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
