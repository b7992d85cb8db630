package snapshot

import (
	"context"
	"errors"
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
	wg      sync.WaitGroup
	keeping chan struct{} // holds one while an image is made
}

// NewSender returns a Sender that opens its streams with open.
func NewSender(s *Store, open func(ctx context.Context, to raft.NodeID, header []byte) (Stream, error)) *Sender {
	ctx, cancel := context.WithCancel(context.Background())
	n := &Sender{store: s, open: open, ctx: ctx, cancel: cancel}
	n.mu.jobs = map[*job]struct{}{}
	n.keeping = make(chan struct{}, 1)
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

// KeepImage has an image of desc's shard made and kept (Store.Keep), one at a time, and
// returns at once. done is called exactly once, from any goroutine. later: an image is being
// made or sent, so this was no time for it.
func (s *Sender) KeepImage(desc raft.Descriptor, done func(index raft.Index, bytes int64, later bool, err error)) {
	var bytes int64
	end := func(index raft.Index, _ raft.Term, err error) { done(index, bytes, errors.Is(err, ErrBusy), err) }
	s.mu.Lock()
	many := len(s.mu.jobs) >= maxWaiting/2
	s.mu.Unlock()
	if many { // the other half is for those that are sent
		end(0, 0, ErrBusy)
		return
	}
	s.start(desc.Shard, 0, end, func(*job, OpenFunc) (index raft.Index, _ raft.Term, err error) {
		select {
		case s.keeping <- struct{}{}:
		case <-s.ctx.Done():
			return 0, 0, ErrClosed
		}
		defer func() { <-s.keeping }()
		index, bytes, err = s.store.Keep(s.ctx, &desc)
		return index, 0, err
	})
}

// KeptImage is Store.Kept.
func (s *Sender) KeptImage(shard raft.ShardID) (index raft.Index, bytes int64, ok bool) {
	return s.store.Kept(shard)
}

// DropImage is Store.DropKept.
func (s *Sender) DropImage(shard raft.ShardID, below raft.Index) bool {
	return s.store.DropKept(shard, below)
}

// SendKept is SendSnapshot of the image that is kept of a shard, if it is of index.
func (s *Sender) SendKept(shard raft.ShardID, index raft.Index, to raft.NodeID, rep raft.ReplicaID, done func(index raft.Index, term raft.Term, err error)) {
	s.start(shard, to, done, func(j *job, open OpenFunc) (raft.Index, raft.Term, error) {
		return s.store.sendKept(s.ctx, shard, index, to, rep, open, &j.t)
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
