package snapshot

import (
	"cmp"
	"slices"
	"sync/atomic"
	"time"

	"github.com/flotillakv/flotilla/multiraft/raft"
)

// TransferState says what is being done with a snapshot.
type TransferState string

// States of transfers.
const (
	TransferPreparing   TransferState = "preparing"   // waits for its turn
	TransferSending     TransferState = "sending"     // to the other node
	TransferReceiving   TransferState = "receiving"   // from the other node
	TransferInterrupted TransferState = "interrupted" // what came is kept until a sender goes on, or RetainFor
	TransferInstalling  TransferState = "installing"  // all of it came
)

// Transfer is a snapshot on its way between this node and another one.
type Transfer struct {
	Shard raft.ShardID
	Peer  raft.NodeID // the other node; zero: not known any more
	State TransferState
	Index raft.Index // of the last entry in it; zero: not known yet
	// Bytes is about how many all its files have, until all came; zero: not known yet.
	// Done is how many of them are at the receiver, Spared the part of these that were
	// there before and not sent.
	Bytes, Done, Spared int64
	// Took is the time since the transfer began, or went on after an interruption; Rate
	// is how many bytes were sent per second of it.
	Took time.Duration
	Rate int64
}

// Counters are what the transfers of a Store did since it was made.
type Counters struct {
	SentBytes, ReceivedBytes   uint64 // of chunks
	SentSpared, ReceivedSpared uint64 // bytes of chunks that were there already
	Sent, Received, Failed     uint64 // transfers that ended; Failed: of both
	PacedNanos                 uint64 // that sending waited for its pace
	Kept, KeptBytes            uint64 // images that were made to be kept, and what they took
	KeptNow                    int64  // bytes that kept images take now
}

// transfer is the progress of one. Any goroutine may read it.
type transfer struct {
	s                        *Store
	in                       bool
	shard                    raft.ShardID
	peer                     raft.NodeID
	index                    raft.Index
	began                    raft.Time
	total, done, spared, net atomic.Int64 // net: sent or received since began
}

func (s *Store) begin(m *Meta, peer raft.NodeID, in bool) *transfer {
	t := &transfer{s: s, in: in, shard: m.Shard, peer: peer, index: m.Index, began: s.o.Clock.Now()}
	t.total.Store(m.Estimate)
	return t
}

// look returns the transfer as it is now.
func (t *transfer) look(state TransferState) Transfer {
	v := Transfer{Shard: t.shard, Peer: t.peer, State: state, Index: t.index, Done: t.done.Load(), Spared: t.spared.Load(), Took: t.s.o.Clock.Now().Sub(t.began)}
	v.Bytes = max(t.total.Load(), v.Done)
	if secs := v.Took.Seconds(); secs > 0 {
		v.Rate = int64(float64(t.net.Load()) / secs)
	}
	return v
}

// add counts bytes that were sent or received.
func (t *transfer) add(n int) {
	t.done.Add(int64(n))
	t.net.Add(int64(n))
	if t.in {
		t.s.count.received.Add(uint64(n))
	} else {
		t.s.count.sent.Add(uint64(n))
	}
}

// spare counts bytes that are there already.
func (t *transfer) spare(n int) {
	t.done.Add(int64(n))
	t.spared.Add(int64(n))
	if t.in {
		t.s.count.receivedSpared.Add(uint64(n))
	} else {
		t.s.count.sentSpared.Add(uint64(n))
	}
}

// skip sets the transfer back to files that arrived before the stream broke.
func (t *transfer) skip(files []File) {
	var n int64
	for i := range files {
		n += files[i].Size
	}
	t.done.Store(n)
}

// end counts the transfer.
func (t *transfer) end(err error) {
	c := &t.s.count
	switch {
	case err != nil:
		c.failed.Add(1)
	case t.in:
		c.ins.Add(1)
	default:
		c.outs.Add(1)
	}
}

// counters are the sums behind Counters.
type counters struct {
	sent, received, sentSpared, receivedSpared atomic.Uint64
	outs, ins, failed, paced, kept, keptBytes  atomic.Uint64
}

// Counters returns the sums since the Store was made.
func (s *Store) Counters() Counters {
	c := &s.count
	s.mu.Lock()
	now := s.keptBytesLocked()
	s.mu.Unlock()
	return Counters{
		Kept: c.kept.Load(), KeptBytes: c.keptBytes.Load(), KeptNow: now,
		SentBytes: c.sent.Load(), ReceivedBytes: c.received.Load(), SentSpared: c.sentSpared.Load(), ReceivedSpared: c.receivedSpared.Load(),
		Sent: c.outs.Load(), Received: c.ins.Load(), Failed: c.failed.Load(), PacedNanos: c.paced.Load(),
	}
}

// Transfers lists the snapshots that come in, by shard.
func (s *Store) Transfers() []Transfer {
	s.mu.Lock()
	defer s.mu.Unlock()
	out := make([]Transfer, 0, len(s.mu.in))
	for _, r := range s.mu.in {
		t := r.t.Load()
		if t == nil {
			continue // admitted right now
		}
		state := TransferReceiving
		switch {
		case r.complete:
			state = TransferInstalling
		case !r.busy:
			state = TransferInterrupted
		}
		out = append(out, t.look(state))
	}
	sortTransfers(out)
	return out
}

// job is one snapshot of a Sender.
type job struct {
	shard raft.ShardID
	to    raft.NodeID
	t     atomic.Pointer[transfer] // nil: it waits
}

// Transfers lists the snapshots that wait to be sent or are sent, by shard.
func (s *Sender) Transfers() []Transfer {
	s.mu.Lock()
	out := make([]Transfer, 0, len(s.mu.jobs))
	for j := range s.mu.jobs {
		if j.to == 0 {
			continue // it makes an image
		}
		if t := j.t.Load(); t != nil {
			out = append(out, t.look(TransferSending))
		} else {
			out = append(out, Transfer{Shard: j.shard, Peer: j.to, State: TransferPreparing})
		}
	}
	s.mu.Unlock()
	sortTransfers(out)
	return out
}

func sortTransfers(t []Transfer) {
	slices.SortFunc(t, func(a, b Transfer) int { return cmp.Or(cmp.Compare(a.Shard, b.Shard), cmp.Compare(a.Peer, b.Peer)) })
}
