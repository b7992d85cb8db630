package flotilla

import (
	"sync"
	"sync/atomic"
)

// Observer is told of events. Every field is optional. The callbacks run one
// after another on a goroutine of the node, off the path of requests, behind a
// queue of bounded length; events that do not fit are dropped and counted
// (Metrics.EventsDropped). A callback must not close the node, which waits for it.
type Observer struct {
	// OnLeader: a replica of this node has learned of another leader (zero: none).
	OnLeader func(LeaderEvent)
	// OnQuorum: a replica of this node lost or regained the majority of its voters.
	OnQuorum func(QuorumEvent)
	// OnPeer: the stream of another node came up or went down.
	OnPeer func(PeerEvent)
	// OnSnapshot: a snapshot was sent or installed.
	OnSnapshot func(SnapshotEvent)
	// OnAmnesia: a replica on another node has forgotten what it promised.
	OnAmnesia func(AmnesiaEvent)
	// OnDisk: the disk of this node filled up or got room again, or stands still, or
	// takes writes again.
	OnDisk func(DiskEvent)
	// OnIntegrity: replicas of a shard differ, or one cannot be read, and when it has
	// been rebuilt.
	OnIntegrity func(IntegrityEvent)
}

// IntegrityEvent reports a replica that does not have what the others of its shard
// have, or cannot be read: it serves nothing and is rebuilt from another one. It is
// told by the node that found it and by the replica's own.
type IntegrityEvent struct {
	Shard uint64
	// Node whose replica it is. Zero: replicas differ and no majority agrees; the shard
	// serves nothing until a further replica decides, or the faulty one is removed.
	Node uint32
	// Index through which digests were compared, or through which it was rebuilt.
	Index uint64
	// Rebuilt: it has a good state again.
	Rebuilt bool
	// Err says what was found; nil if Rebuilt. It is an ErrDiverged.
	Err error
}

// DiskEvent reports how the disk of this node is.
type DiskEvent struct {
	// State is how much space is left: ok, warning, full (writes that add data are
	// refused) or critical.
	State string
	// Stalled: the disk has taken no write for so long that this node gave its
	// leaderships up.
	Stalled bool
	// Used is what the store takes, Room what it may still take, in bytes.
	Used, Room int64
}

// LeaderEvent reports a change of leadership.
type LeaderEvent struct {
	Shard  uint64
	Term   uint64
	Leader uint32 // zero: unknown
	Here   bool   // this node leads
}

// QuorumEvent reports that a shard lost or regained its majority, as seen here.
type QuorumEvent struct {
	Shard uint64
	Lost  bool
	Down  []uint32
}

// PeerEvent reports that another node can or cannot be heard.
type PeerEvent struct {
	Node uint32
	Up   bool
}

// SnapshotEvent reports a snapshot.
type SnapshotEvent struct {
	Shard uint64
	Peer  uint32
	// Sent: to Peer; else installed here, from Peer.
	Sent  bool
	Index uint64
	Err   error
}

// AmnesiaEvent reports that a node came back with an older state of its disk than
// it had: its replica of Shard acknowledged entries, or voted, and does not know.
// It counts for nothing any more, stops by itself when it is told, and has to be
// replaced. Err says what is missing.
type AmnesiaEvent struct {
	Shard uint64
	Node  uint32
	Err   error
}

// eventQueueMax bounds the events waiting for an observer.
const eventQueueMax = 4096

// events hands events to an Observer. Goroutine "events", started with the
// first observer field that is set.
type events struct {
	o       Observer
	ch      chan func()
	dropped atomic.Uint64
	wg      sync.WaitGroup
	once    sync.Once
	stop    chan struct{}
}

func newEvents(o Observer) *events {
	e := &events{o: o, stop: make(chan struct{})}
	if o.OnLeader == nil && o.OnQuorum == nil && o.OnPeer == nil && o.OnSnapshot == nil && o.OnAmnesia == nil && o.OnDisk == nil && o.OnIntegrity == nil {
		return e
	}
	e.ch = make(chan func(), eventQueueMax)
	e.wg.Go(func() {
		for {
			select {
			case f := <-e.ch:
				f()
			case <-e.stop:
				return
			}
		}
	})
	return e
}

func (e *events) post(f func()) {
	if e.ch == nil {
		return
	}
	select {
	case e.ch <- f:
	default:
		e.dropped.Add(1)
	}
}

func (e *events) leader(v LeaderEvent) {
	if e.o.OnLeader != nil {
		e.post(func() { e.o.OnLeader(v) })
	}
}

func (e *events) quorum(v QuorumEvent) {
	if e.o.OnQuorum != nil {
		e.post(func() { e.o.OnQuorum(v) })
	}
}

func (e *events) peer(v PeerEvent) {
	if e.o.OnPeer != nil {
		e.post(func() { e.o.OnPeer(v) })
	}
}

func (e *events) snapshot(v SnapshotEvent) {
	if e.o.OnSnapshot != nil {
		e.post(func() { e.o.OnSnapshot(v) })
	}
}

// close waits for the callback that runs; events still queued are dropped.
func (e *events) close() {
	e.once.Do(func() { close(e.stop) })
	e.wg.Wait()
}

func (e *events) amnesia(v AmnesiaEvent) {
	if e.o.OnAmnesia != nil {
		e.post(func() { e.o.OnAmnesia(v) })
	}
}

func (e *events) disk(v DiskEvent) {
	if e.o.OnDisk != nil {
		e.post(func() { e.o.OnDisk(v) })
	}
}

func (e *events) integrity(v IntegrityEvent) {
	if e.o.OnIntegrity != nil {
		e.post(func() { e.o.OnIntegrity(v) })
	}
}
