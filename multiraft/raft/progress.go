package raft

import (
	"time"

	"github.com/flotillakv/flotilla/internal/mutants"
)

// progressState is how a leader treats a peer.
type progressState uint8

const (
	// stateProbe: the peer's log is unknown; one append at a time.
	stateProbe progressState = iota
	// stateReplicate: the logs agree through match; appends are pipelined.
	stateReplicate
	// stateSnapshot: the peer needs a snapshot; nothing is sent.
	stateSnapshot
)

const (
	voteNone uint8 = iota
	voteGranted
	voteRefused
)

// progress is what a replica knows of one member of its configuration, itself
// included. Invariant for a leader's peers: match < next.
type progress struct {
	node NodeID
	id   ReplicaID
	role Role

	vote    uint8 // in the newest campaign
	preVote uint8 // in the newest pre-vote

	state    progressState
	paused   bool // stateProbe: an append is out, wait for its answer or retryAt
	fetching bool // a FetchTask from next on is out
	wantSnap bool // said that it has no usable state
	// forgot: it has forgotten what it promised, and counts for nothing any more.
	forgot bool

	match       Index
	next        Index
	sentCommit  Index
	sentCompact Index
	inflight    *inflight // nil: nothing was sent yet
	round       uint64    // newest read round the peer confirmed in this term
	epoch       Epoch     // at which the peer fortified this leader in this term
	fortifyAt   Time      // not before: next MsgFortify

	retryAt   Time          // when silence means a loss
	retryWait time.Duration // current retry interval

	mem memory // what it promised, over terms and boots

	behind *behind // nil: all of it is zero
}

// behind is what is known of a member that needs, or needed, a snapshot, or has forgotten.
type behind struct {
	failures  int   // snapshots in a row that did not arrive
	snapIndex Index // stateSnapshot: the log is kept from here on
	snapSince Time
	lost      Index // forgot: through which index it should hold the log; zero: it lost a vote
}

// notBehind is the behind of members that were never far away. It stays zero.
var notBehind behind

// gap returns what there is of p.behind, to be read.
func (p *progress) gap() *behind {
	if p.behind == nil {
		return &notBehind
	}
	return p.behind
}

// ownGap returns p.behind, to be changed.
func (p *progress) ownGap() *behind {
	if p.behind == nil {
		p.behind = new(behind)
	}
	return p.behind
}

func (p *progress) toProbe(next Index) {
	p.state, p.paused, p.fetching = stateProbe, false, false
	p.next = max(next, p.match+1)
	p.inflight.reset()
}

func (p *progress) toReplicate() {
	p.state, p.paused, p.fetching = stateReplicate, false, false
	p.next = p.match + 1
	if b := p.behind; b != nil {
		b.failures = 0
	}
	p.inflight.reset()
}

func (p *progress) toSnapshot(now Time, keepFrom Index) {
	p.state, p.paused, p.fetching = stateSnapshot, false, false
	b := p.ownGap()
	b.snapIndex, b.snapSince = keepFrom, now
	p.inflight.reset()
}

// inflight is the window of appends sent and not yet acknowledged, bounded by
// count and by bytes. It grows on demand and keeps its memory. A nil window is
// empty, and nothing can be added to it.
type inflight struct {
	sent []sentAppend
	head int
	size int // bytes
}

type sentAppend struct {
	last  Index
	bytes int
}

func (f *inflight) reset() {
	if f == nil {
		return
	}
	f.sent, f.head = f.sent[:0], 0
	if !mutants.On("B9") {
		f.size = 0
	}
}

func (f *inflight) count() int {
	if f == nil {
		return 0
	}
	return len(f.sent) - f.head
}

func (f *inflight) bytes() int {
	if f == nil {
		return 0
	}
	return f.size
}

// full reports whether nothing more may be sent. One append always passes an
// empty window.
func (f *inflight) full(maxMsgs, maxBytes int) bool {
	n := f.count()
	if mutants.On("B9") && f.bytes() >= maxBytes {
		return true
	}
	return n > 0 && (n >= maxMsgs || f.bytes() >= maxBytes)
}

func (f *inflight) add(last Index, bytes int) {
	if f.head > 0 && f.head >= len(f.sent)/2 && len(f.sent) == cap(f.sent) {
		n := copy(f.sent, f.sent[f.head:])
		f.sent, f.head = f.sent[:n], 0
	}
	f.sent = append(f.sent, sentAppend{last, bytes})
	f.size += bytes
}

// freeTo releases what an acknowledgement through index i covers.
func (f *inflight) freeTo(i Index) {
	if f == nil {
		return
	}
	for f.head < len(f.sent) && f.sent[f.head].last <= i {
		f.size -= f.sent[f.head].bytes
		f.head++
	}
	if f.head == len(f.sent) {
		f.reset()
	}
}

// tally counts members of both halves of a configuration. In a configuration
// that is not joint the halves are equal.
type tally struct{ newAll, newYes, oldAll, oldYes int }

func (t *tally) add(r Role, yes bool) {
	n := 0
	if yes {
		n = 1
	}
	if r.inNew() {
		t.newAll++
		t.newYes += n
	}
	if r.inOld() {
		t.oldAll++
		t.oldYes += n
	}
}

// won reports whether a majority of each half said yes.
func (t *tally) won() bool {
	if mutants.On("A2") && t.newAll%2 == 0 && t.newYes >= t.newAll/2 && t.oldYes >= t.oldAll/2 {
		return true
	}
	return t.newYes > t.newAll/2 && (t.oldYes > t.oldAll/2 || mutants.On("C3"))
}

// quorumOf returns the highest value that a majority of each half reaches.
func quorumOf(peers []progress, value func(*progress) int64) int64 {
	var v [MaxReplicas]int64
	for i := range peers {
		v[i] = value(&peers[i])
	}
	return quorumIn(peers, &v)
}

// quorumIn is quorumOf of the values in v, one for each of peers.
func quorumIn(peers []progress, v *[MaxReplicas]int64) int64 {
	if len(peers) == 3 && peers[0].role == Voter && peers[1].role == Voter && peers[2].role == Voter && !mutants.On("K4") {
		// As most groups are: the middle one.
		return max(min(v[0], v[1]), min(max(v[0], v[1]), v[2]))
	}
	var a, b [MaxReplicas]int64
	na, nb := 0, 0
	for i := range peers {
		p := &peers[i]
		if p.role.inNew() {
			insertDesc(a[:na+1], v[i])
			na++
		}
		if p.role.inOld() {
			insertDesc(b[:nb+1], v[i])
			nb++
		}
	}
	if na == 0 || nb == 0 {
		return 0
	}
	switch {
	case mutants.On("A2b") && na%2 == 0:
		return a[na/2-1]
	case mutants.On("K4") && na > 1:
		return a[na/2-1]
	case mutants.On("C3b"):
		return a[na/2]
	}
	return min(a[na/2], b[nb/2])
}

func matchOf(p *progress) int64 { return int64(p.match) }

func roundOf(p *progress) int64 { return int64(p.round) }

// insertDesc puts v into s, whose last slot is free and whose rest descends.
func insertDesc(s []int64, v int64) {
	i := len(s) - 1
	for i > 0 && s[i-1] < v {
		s[i] = s[i-1]
		i--
	}
	s[i] = v
}
