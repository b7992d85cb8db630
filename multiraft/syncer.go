package multiraft

import (
	"sync"

	"github.com/flotillakv/flotilla/engine"
	"github.com/flotillakv/flotilla/multiraft/raft"
)

// inFlight is a batch whose sync has not been confirmed.
type inFlight struct {
	batch *engine.Batch
	ack   ack
}

// syncer waits for batches of one loop to become durable, first in first out,
// and posts one acknowledgement each. Goroutine "syncer".
type syncer struct {
	l    *loop
	mu   sync.Mutex // guards queue; innermost, held for an append only
	cond sync.Cond
	q    []inFlight
	stop bool
}

func newSyncer(l *loop) *syncer {
	s := &syncer{l: l}
	s.cond.L = &s.mu
	return s
}

func (s *syncer) submit(f inFlight) {
	s.mu.Lock()
	s.q = append(s.q, f)
	s.mu.Unlock()
	s.cond.Signal()
}

func (s *syncer) len() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.q)
}

// step waits for one batch. It reports false once stopped and drained.
func (s *syncer) step() bool {
	s.mu.Lock()
	for len(s.q) == 0 && !s.stop {
		s.cond.Wait()
	}
	if len(s.q) == 0 {
		s.mu.Unlock()
		return false
	}
	f := s.q[0]
	copy(s.q, s.q[1:])
	s.q[len(s.q)-1] = inFlight{}
	s.q = s.q[:len(s.q)-1]
	s.mu.Unlock()

	if err := f.batch.Wait(); err != nil {
		// Nothing held for this batch may ever leave: the node stops.
		s.l.h.fatal(err)
		return true
	}
	f.batch.Close()
	if s.l.h.onSync != nil {
		s.l.h.onSync(s.l.h.clock.Now())
	}
	s.l.in.putAck(f.ack)
	return true
}

func (s *syncer) finish() {
	s.mu.Lock()
	s.stop = true
	s.mu.Unlock()
	s.cond.Broadcast()
}

// marksOf collects what the owner must acknowledge once the round's batch is durable.
func marksOf(dst []shardMark, o *raft.Out) []shardMark {
	for i := range o.HardStates {
		t := &o.HardStates[i]
		dst = append(dst, shardMark{t.Shard, raft.LogMark{Term: t.State.Term}})
	}
	for i := range o.Appends {
		t := &o.Appends[i]
		dst = append(dst, shardMark{t.Shard, t.Mark})
	}
	return dst
}
