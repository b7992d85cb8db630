package multiraft

import (
	"sync"

	"github.com/flotillakv/flotilla/internal/mutants"
	"github.com/flotillakv/flotilla/multiraft/raft"
)

// ProposeFunc is told the outcome of a proposal, exactly once. On success data
// is what the state machine answered and (index, slot) where the command stands
// in the group's log. It is called on a loop's goroutine (or, for a refusal, on
// the caller's) and must not block.
type ProposeFunc func(data []byte, index raft.Index, slot uint32, err error)

// Proposed calls f, unless that is nil.
func (f ProposeFunc) Proposed(data []byte, index raft.Index, slot uint32, err error) {
	if f != nil {
		f(data, index, slot, err)
	}
}

// Waiter is told the outcome of a proposal by its method, as by a ProposeFunc.
type Waiter interface {
	Proposed(data []byte, index raft.Index, slot uint32, err error)
}

// ReadFunc is told, exactly once, that a linearizable read may be served from
// the engine now (the state machine has applied everything up to index), or why
// not. It must not block.
type ReadFunc func(index raft.Index, err error)

type proposal struct {
	shard raft.ShardID
	size  int
	cmd   raft.Command
	done  Waiter // nil: nobody asks
}

type readRequest struct {
	shard raft.ShardID
	how   readHow
	done  ReadFunc
}

// readHow says on what a read may rest.
type readHow uint8

const (
	byLease    readHow = iota // the leader's lease, else a quorum
	byQuorum                  // a quorum
	byFollower                // the word of the leader, wherever it is
	numReadHow
)

// ack says that a batch of this loop is durable.
type ack struct {
	held  []raft.Msg
	marks []shardMark
}

type shardMark struct {
	shard raft.ShardID
	mark  raft.LogMark
}

// items is what an inbox holds; the loop swaps it for an empty one.
type items struct {
	msgs  []raft.Msg
	props []proposal
	reads []readRequest
	acks  []ack
	funcs []func(now raft.Time)
}

func (it *items) empty() bool {
	return len(it.msgs) == 0 && len(it.props) == 0 && len(it.reads) == 0 && len(it.acks) == 0 && len(it.funcs) == 0
}

func (it *items) reset() {
	clear(it.msgs)
	clear(it.props)
	clear(it.reads)
	clear(it.acks)
	clear(it.funcs)
	it.msgs, it.props, it.reads = it.msgs[:0], it.props[:0], it.reads[:0]
	it.acks, it.funcs = it.acks[:0], it.funcs[:0]
}

// inbox is a loop's door: many producers, one consumer. Its size is bounded by
// its producers: proposals and reads by the node's admission budgets, messages
// by maxBytes and maxInboxMsgs (more are dropped, which Raft repairs).
type inbox struct {
	mu       sync.Mutex // rank 2
	in       items
	maxBytes int // what msgBytes and heldBytes may reach
	msgBytes int // of entries in in.msgs
	// What the loop took out and has not looked at yet counts on.
	heldMsgs  int
	heldBytes int
	closed    bool
	// light counts the messages in in.msgs that need no sync; looked is how many of
	// the first of in.msgs are known to be others.
	light, looked int
	wake          chan struct{} // capacity 1
	dropped       uint64
}

// Bounds of the messages that wait for one loop. A frame is taken whole or not
// at all; one is always taken if nothing waits.
const (
	maxInboxMsgBytes = 64 << 20 // of their entries
	maxInboxMsgs     = 1 << 17
)

func (b *inbox) signal() {
	select {
	case b.wake <- struct{}{}:
	default:
	}
}

// put appends under the lock and wakes the loop if it had nothing to do. It
// reports whether the inbox is open.
func (b *inbox) put(f func(it *items)) bool {
	b.mu.Lock()
	if b.closed {
		b.mu.Unlock()
		return false
	}
	wasEmpty := b.in.empty()
	f(&b.in)
	b.mu.Unlock()
	if wasEmpty {
		b.signal()
	}
	return true
}

// putAck always wakes the loop: it may be waiting for acknowledgements alone.
func (b *inbox) putAck(a ack) {
	b.mu.Lock()
	if !b.closed {
		b.in.acks = append(b.in.acks, a)
	}
	b.mu.Unlock()
	b.signal()
}

func (b *inbox) putProposal(p *proposal) bool {
	b.mu.Lock()
	if b.closed {
		b.mu.Unlock()
		return false
	}
	wasEmpty := b.in.empty()
	b.in.props = append(b.in.props, *p)
	b.mu.Unlock()
	if wasEmpty {
		b.signal()
	}
	return true
}

func (b *inbox) putRead(r readRequest) bool {
	b.mu.Lock()
	if b.closed {
		b.mu.Unlock()
		return false
	}
	first := len(b.in.reads) == 0 // the loop may be waiting with other work at hand
	b.in.reads = append(b.in.reads, r)
	b.mu.Unlock()
	if first {
		b.signal()
	}
	return true
}

// putMsgs takes the messages of one frame. It reports false when the inbox is full or closed:
// the messages were dropped.
func (b *inbox) putMsgs(msgs []raft.Msg) bool {
	n := entryBytes(msgs)
	b.mu.Lock()
	bytes, count := b.msgBytes+b.heldBytes, len(b.in.msgs)+b.heldMsgs
	if b.closed || !mutants.On("H10") && (bytes > 0 && bytes+n > b.maxBytes || count > 0 && count+len(msgs) > maxInboxMsgs) {
		b.dropped += uint64(len(msgs))
		b.mu.Unlock()
		return false
	}
	wake := b.in.empty()
	b.msgBytes += n
	b.in.msgs = append(b.in.msgs, msgs...)
	if light := countLight(msgs); light > 0 {
		wake = wake || b.light == 0
		b.light += light
	}
	b.mu.Unlock()
	if wake {
		b.signal()
	}
	return true
}

// isLight reports whether a message can be worked on without a sync, and without
// regard to those that came before it: it answers one that its receiver sent.
func isLight(m *raft.Msg) bool {
	return m.Type == raft.MsgAppResp || m.Type == raft.MsgCommitResp || m.Type == raft.MsgReadReq || m.Type == raft.MsgReadResp
}

func countLight(msgs []raft.Msg) (n int) {
	for i := range msgs {
		if isLight(&msgs[i]) {
			n++
		}
	}
	return n
}

// entryBytes counts the bytes of entries in msgs.
func entryBytes(msgs []raft.Msg) (n int) {
	for i := range msgs {
		for _, e := range msgs[i].Entries {
			n += len(e.Value)
		}
	}
	return n
}

// swap hands out what has arrived and takes spare as the new, empty store. With
// keepMsgs the messages stay: the loop has others to work through first.
func (b *inbox) swap(spare items, keepMsgs bool) items {
	b.mu.Lock()
	got := b.in
	b.in = spare
	if keepMsgs {
		got.msgs, b.in.msgs = b.in.msgs, got.msgs
	} else {
		b.msgBytes, b.light, b.looked = 0, 0, 0
	}
	b.mu.Unlock()
	return got
}

// swapLight hands out, in the empty spare, what can be worked on without a sync,
// and leaves the rest in its order.
func (b *inbox) swapLight(spare items) items {
	b.mu.Lock()
	b.in.acks, spare.acks = spare.acks, b.in.acks
	b.in.reads, spare.reads = spare.reads, b.in.reads
	if b.light > 0 {
		msgs := b.in.msgs
		keep := msgs[:b.looked]
		for i := b.looked; i < len(msgs); i++ {
			if isLight(&msgs[i]) {
				spare.msgs = append(spare.msgs, msgs[i])
			} else {
				keep = append(keep, msgs[i])
			}
		}
		clear(msgs[len(keep):])
		b.in.msgs, b.light = keep, 0
	}
	b.looked = len(b.in.msgs)
	b.mu.Unlock()
	return spare
}

// hold tells what of the messages that were handed out still waits.
func (b *inbox) hold(msgs, bytes int) {
	b.mu.Lock()
	b.heldMsgs, b.heldBytes = msgs, bytes
	b.mu.Unlock()
}

// waiting reports whether anything waits in the inbox.
func (b *inbox) waiting() bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	return !b.in.empty()
}

// waitingLight reports whether anything waits in the inbox that needs no sync.
func (b *inbox) waitingLight() bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	return len(b.in.acks)+len(b.in.reads)+b.light > 0
}

// takeAcks removes only the acknowledgements.
func (b *inbox) takeAcks(spare []ack) []ack {
	b.mu.Lock()
	got := b.in.acks
	b.in.acks = spare
	b.mu.Unlock()
	return got
}

// shed gives back memory that is not in use.
func (b *inbox) shed() {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.in.empty() {
		b.in = items{}
	}
}

// close refuses everything from now on and returns what was waiting.
func (b *inbox) close() items {
	b.mu.Lock()
	got := b.in
	b.in = items{}
	b.closed = true
	b.mu.Unlock()
	return got
}
