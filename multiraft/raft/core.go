package raft

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"time"
	"unsafe"

	"github.com/flotillakv/flotilla/internal/invariants"
	"github.com/flotillakv/flotilla/internal/mutants"
)

var (
	// ErrNotLeader: this replica does not lead. Nothing was proposed or served.
	ErrNotLeader = errors.New("raft: not the leader")
	// ErrConfPending: a configuration change is in flight, or the leader has not
	// committed an entry of its own term yet. Nothing was proposed; try again.
	ErrConfPending = errors.New("raft: a configuration change is pending")
	// ErrConfUnsafe: the change would remove or demote the leader. Nothing was
	// proposed; transfer the leadership first.
	ErrConfUnsafe = errors.New("raft: change removes or demotes the leader; transfer its leadership first")
	// ErrConfLagging: the change would give a vote to a learner that has not
	// caught up (Tuning.PromoteLag), or cannot be reached. Nothing was proposed;
	// try again when it has.
	ErrConfLagging = errors.New("raft: change promotes a learner that has not caught up")
	// ErrTransferring: the leadership is being handed over. Nothing was proposed.
	ErrTransferring = errors.New("raft: leadership transfer in progress")
	// ErrTransferTarget: the target of a transfer is not another, reachable voter.
	ErrTransferTarget = errors.New("raft: transfer target is not another reachable voter")
	// ErrCompacted: the log does not reach back that far any more.
	ErrCompacted = errors.New("raft: log is cut above this index")
	// ErrTooLarge: the entry would exceed MaxEntryBytes, or has no command.
	// Nothing was proposed.
	ErrTooLarge = errors.New("raft: entry too large or empty")
)

// BusyError says that the group has too many uncommitted bytes. Nothing was
// proposed; the caller may try again after RetryAfter.
type BusyError struct {
	Uncommitted int
	RetryAfter  time.Duration
}

// Error names the bytes and the wait.
func (e *BusyError) Error() string {
	return fmt.Sprintf("raft: %d bytes are uncommitted; retry after %v", e.Uncommitted, e.RetryAfter)
}

// Config says who a Core is.
type Config struct {
	Node     NodeID
	Replica  ReplicaID // zero: the replica that the descriptor has on Node
	Liveness Liveness
	// Leased lets this replica claim leases when it leads (Core.LeaseRead). It
	// should be set only where monotonic clocks keep to the bound of package liveness.
	Leased bool
	// Restarted says that the replica was here before this boot of the node: it
	// neither votes nor campaigns before a majority of the voters' nodes has
	// answered this one, so that an old copy of its store can be found out.
	Restarted bool
	// Since is when the node started, of a replica that is made later. Zero: now.
	Since Time
	// Rand seeds the core's own random stream (election jitter).
	Rand   uint64
	Tuning Tuning
	// Shared, if set, takes the place of Tuning: many cores look at it, and none
	// changes it. It has every field set (Tuning.WithDefaults).
	Shared *Tuning
	// Spares, if set, may give the core its memory.
	Spares *Spares
}

// Spares keeps memory of cores that are not used any more, for others: groups that wake
// and fall asleep by the thousand cost the collector nothing for it. The zero value is
// empty. It is not safe for concurrent use.
type Spares struct{ free []*Core }

// maxSpares bounds the cores whose memory is kept, of about 1.2 KB each.
const maxSpares = 64

// Put takes the memory of c, to which nobody may refer any more.
func (s *Spares) Put(c *Core) {
	if len(s.free) < maxSpares {
		clear(c.peers)
		*c = Core{peers: c.peers[:0]} // refers to nothing
		s.free = append(s.free, c)
	}
}

// take returns an empty core. s may be nil.
func (s *Spares) take() *Core {
	if s == nil || len(s.free) == 0 {
		return new(Core)
	}
	last := len(s.free) - 1
	c := s.free[last]
	s.free[last] = nil
	s.free = s.free[:last]
	return c
}

// Tuning holds the limits and delays of a Core. Zero fields mean the default.
type Tuning struct {
	MaxMsgBytes      int           // of entries in one append; one entry may exceed it. 128 KiB
	InflightMsgs     int           // unacknowledged appends per peer. 128
	InflightBytes    int           // and their bytes. 2 MiB
	UncommittedBytes int           // proposed and not committed; the first proposal always passes. 4 MiB
	TailBytes        int           // applied entries kept in memory for slow peers. 256 KiB
	ApplyBytes       int           // handed to the state machine and not yet applied. 4 MiB
	ElectionRank     time.Duration // delay per rank. 40 ms
	ElectionJitter   time.Duration // width of the jitter, at least ElectionRank. 40 ms
	PreVoteRetry     time.Duration // before a campaign is tried again, on top of rank and jitter. 100 ms
	ProbeRetry       time.Duration // first wait for a silent peer; doubles to ten times as much. 200 ms
	TransferTimeout  time.Duration // after which a transfer is given up. 1 s
	QuorumGrace      time.Duration // how long a leader outlives the support of its quorum. 500 ms
	LeaderGrace      time.Duration // how long a leader without node support may be silent. 1 s
	LagQuery         time.Duration // after which a follower with uncommitted entries asks. 2 s
	CommitDelay      time.Duration // longest wait of a commit record for an append to ride on. 25 ms
	IdleTruncate     time.Duration // quiet time after which the whole applied log is cut. 1 s
	SnapshotTimeout  time.Duration // after which a snapshot that was not reported is given up. 2 min
	LogKeepEntries   int           // how far a dead peer may hold the log back. 16384
	LogKeepBytes     int           // the same in bytes, whatever the size of the data (KeepBytes). 16 MiB
	PromoteLag       int           // entries that a learner may lack and be promoted; in bytes, InflightBytes. 1024
	Cut              CutPolicy     // who decides how far logs are cut
	CutEntries       int           // under another policy than CutPiggyback: how many entries are worth a cut. 10000
	CutBytes         int           // the same in bytes. 1 MiB
}

// Defaults of the fields of Tuning that say when logs are cut.
const (
	DefaultCutEntries   = 10_000
	DefaultCutBytes     = 1 << 20
	DefaultIdleTruncate = time.Second
)

// WithDefaults returns t with every zero field replaced by its default.
func (t Tuning) WithDefaults() Tuning {
	def := func(v *int, d int) {
		if *v == 0 {
			*v = d
		}
	}
	dur := func(v *time.Duration, d time.Duration) {
		if *v == 0 {
			*v = d
		}
	}
	def(&t.MaxMsgBytes, 128<<10)
	def(&t.InflightMsgs, 128)
	def(&t.InflightBytes, 2<<20)
	def(&t.UncommittedBytes, 4<<20)
	def(&t.TailBytes, 256<<10)
	def(&t.ApplyBytes, 4<<20)
	dur(&t.ElectionRank, 40*time.Millisecond)
	dur(&t.ElectionJitter, t.ElectionRank)
	dur(&t.PreVoteRetry, 100*time.Millisecond)
	dur(&t.ProbeRetry, 200*time.Millisecond)
	dur(&t.TransferTimeout, time.Second)
	dur(&t.QuorumGrace, 500*time.Millisecond)
	dur(&t.LeaderGrace, time.Second)
	dur(&t.LagQuery, 2*time.Second)
	dur(&t.CommitDelay, 25*time.Millisecond)
	dur(&t.IdleTruncate, DefaultIdleTruncate)
	dur(&t.SnapshotTimeout, 2*time.Minute)
	def(&t.LogKeepEntries, 16384)
	def(&t.LogKeepBytes, 16<<20)
	def(&t.PromoteLag, 1024)
	def(&t.CutEntries, DefaultCutEntries)
	def(&t.CutBytes, DefaultCutBytes)
	return t
}

// Validate refuses values that make no sense. It looks at t as it is; apply
// WithDefaults first.
func (t Tuning) Validate() error {
	for _, v := range [...]int{t.MaxMsgBytes, t.InflightMsgs, t.InflightBytes, t.UncommittedBytes, t.TailBytes, t.ApplyBytes, t.LogKeepEntries, t.LogKeepBytes, t.PromoteLag, t.CutEntries, t.CutBytes} {
		if v <= 0 {
			return fmt.Errorf("raft: tuning: a limit is %d, must be positive", v)
		}
	}
	for _, v := range [...]time.Duration{t.ElectionRank, t.PreVoteRetry, t.ProbeRetry, t.TransferTimeout, t.QuorumGrace, t.LeaderGrace, t.LagQuery, t.CommitDelay, t.IdleTruncate, t.SnapshotTimeout} {
		if v <= 0 {
			return fmt.Errorf("raft: tuning: a delay is %v, must be positive", v)
		}
	}
	if t.Cut >= numCutPolicies {
		return fmt.Errorf("raft: tuning: there is no cut policy %d", t.Cut)
	}
	if t.ElectionJitter < t.ElectionRank {
		return fmt.Errorf("raft: tuning: election jitter %v is narrower than one rank step %v", t.ElectionJitter, t.ElectionRank)
	}
	return nil
}

// RaftRole is what a replica does at the moment.
type RaftRole uint8

// The roles. A learner is a follower whose Replica.Role is Learner.
const (
	RoleFollower RaftRole = iota
	RolePreCandidate
	RoleCandidate
	RoleLeader
)

// String returns the role's name.
func (r RaftRole) String() string {
	return [...]string{"follower", "pre-candidate", "candidate", "leader"}[r&3]
}

// Never is the Deadline of a core that waits for nothing but input.
const Never Time = 1 << 62

// Core is one replica of one group. It is not safe for concurrent use. The
// zero value is not usable; see NewCore.
type Core struct {
	// What most inputs look at comes first, in few cache lines: a node has thousands
	// of cores, and each input finds its core where the last one was long ago.

	live  Liveness
	tun   *Tuning // never changes
	shard ShardID
	node  NodeID
	id    ReplicaID
	now   Time      // newest time handed in
	hs    HardState // as last emitted
	role  RaftRole
	// leased: claims leases when it leads.
	leased bool
	// restarted: not enough others have answered since the boot (see unsure).
	restarted bool
	// forgotten: this replica was told that it forgot promises; it does nothing more.
	forgotten bool
	due       bool // Flush has something to do although nothing came in
	stirred   bool // something came in from which more may follow than what is noted
	ready     bool // leader: an entry of the own term is committed
	redoes    bool // see Hold
	truncNow  bool

	// Follower side.
	suspect bool // lead's node changed its epoch since: lead has to report soon
	// released: the leader of hs.Lead leads no more, the promise to it is void.
	// The disk learns that with the next term.
	released bool
	// leadOver: the leader of the present term said that it leads no more. What it
	// sent before that may still arrive, and must not bring it back.
	leadOver bool

	voteDurable bool // candidate: the own vote is on disk
	granted     bool // candidate: campaigned by the leader's grant
	timeoutSent bool
	grantSent   bool // leader: in this term somebody was granted a campaign
	quorumLost  bool
	gaveWay     bool // since a leader was known: let another one's campaign go first
	pressure    LogPressure
	attempts    int32 // campaigns since a leader was known

	lead     ReplicaID // believed leader of hs.Term; zero: unknown
	leadNode NodeID
	// transferTo is whom this leader hands over to; zero: nobody.
	transferTo ReplicaID
	anomalies  uint64

	log raftLog
	// peers has one element per replica of desc, in its order; self is this
	// replica's place, or -1 if the configuration does not hold it.
	peers []progress
	self  int

	leadEpoch Epoch // epoch at which lead's node was seen supported since its last message; zero: never
	contactAt Time  // last message of lead
	lagAt     Time  // ask lead for the rest; Never: not lagging

	electionAt Time // Never: a leader is known or this replica may not campaign
	campaigned Term // newest term in which this core asked for votes

	compactTo  Index
	cutTo      Index // by entries of cuts that are applied
	cutEntry   Index // the newest of these entries; zero: none was applied since the boot
	wish       Index // leader: how far it would cut the logs
	cutAsked   Index // leader: how far the owner was asked to
	cutRetry   Time  // leader: not before: ask again, after the owner could not
	redo       Index // see Hold
	dataBytes  int64 // see Sized; zero: unknown
	sizeDue    Time  // not before: next SizeTask
	truncAt    Time
	lastSeen   Index // log end and applied index when truncAt was set
	appliedAt  Index
	applyBytes int        // handed out and not yet applied
	told       RoleChange // what the owner knows
	seldom     *seldom    // nil: all of it is zero

	// Leader side.
	preLeading  Index  // last index before this leader's empty entry
	uncommitted int    // bytes above commit proposed in this term
	confIndex   Index  // index of the newest configuration entry that may be unapplied
	transferAt  Time   // deadline
	commitAt    Time   // when a commit record is due to peers that know less
	readRound   uint64 // newest round sent
	quorumFrom  Time   // no judgement of the quorum before

	desc *Descriptor // replaced as a whole, never changed

	// What is seldom looked at.
	rng         rand.PCG
	waitAll     Time // restarted: until then all of them have to answer
	waitMost    Time // until then a majority has to, and afterwards one
	queryAt     Time // not before: next LeadQuery
	voteMark    LogMark
	quorumSince Time
}

// seldom is what few cores have at any time. A core takes memory for it when it has.
type seldom struct {
	asking   asking
	image    imageState
	drops    []DropTask
	leaving  []Replica     // leader: members just removed, owed a last commit record
	reads    []pendingRead // leader
	readSent Time
}

// nothing is the seldom of cores that have none. It stays zero.
var nothing seldom

// few returns what there is of c.seldom, to be read.
func (c *Core) few() *seldom {
	if c.seldom == nil {
		return &nothing
	}
	return c.seldom
}

// own returns c.seldom, to be changed.
func (c *Core) own() *seldom {
	if c.seldom == nil {
		c.seldom = new(seldom)
	}
	return c.seldom
}

type pendingRead struct {
	ctx   uint64
	index Index
	round uint64
}

// NewCore builds a replica from its durable state. now is the owner's clock.
// An error wraps ErrCorrupt if st contradicts itself; the replica must not run
// then. The caller calls Flush (or Tick, when Deadline has come) afterwards.
func NewCore(cfg Config, st State, now Time) (*Core, error) {
	tun := cfg.Shared
	if tun == nil {
		t := cfg.Tuning.WithDefaults()
		tun = &t
	}
	if err := tun.Validate(); err != nil {
		return nil, err
	}
	id := cfg.Replica
	if id == 0 {
		r, _ := st.Desc.ReplicaOn(cfg.Node)
		id = r.ID
	}
	if cfg.Node == 0 || id == 0 || cfg.Liveness == nil || st.Desc.Shard == 0 {
		return nil, errors.New("raft: config without node, replica, liveness or shard")
	}
	c := cfg.Spares.take()
	*c = Core{live: cfg.Liveness, tun: tun, shard: st.Desc.Shard, node: cfg.Node, id: id, leased: cfg.Leased, restarted: cfg.Restarted, peers: c.peers}
	since := now
	if cfg.Since != 0 {
		since = cfg.Since
	}
	c.waitAll, c.waitMost = since.Add(tun.LeaderGrace), since.Add(mostGraces*tun.LeaderGrace)
	c.rng.Seed(cfg.Rand, uint64(st.Desc.Shard)*0x9e3779b97f4a7c15^uint64(id))
	if err := c.load(now, st); err != nil {
		return nil, fmt.Errorf("raft: shard %d: %w", c.shard, err)
	}
	return c, nil
}

// CoreBytes returns the bytes of a core, and of what it knows of one member besides.
func CoreBytes() (core, member uintptr) { return unsafe.Sizeof(Core{}), unsafe.Sizeof(progress{}) }

// load takes over a durable state; also after a snapshot.
func (c *Core) load(now Time, st State) error {
	l, err := newLog(&st)
	if err != nil {
		return err
	}
	if st.Hard.Term < l.lastTerm {
		return corrupt("state", "hard state is older than the log")
	}
	c.leadOver = c.leadOver && st.Hard.Term == c.hs.Term
	c.log, c.hs, c.now = l, st.Hard, now
	if c.hs.Lead == c.id && !mutants.On("B0-C5") || mutants.On("A11") {
		// A restarted leader leads no more and must not wait for itself.
		c.hs.Lead, c.hs.LeadNode, c.hs.LeadEpoch = 0, 0, 0
	}
	c.confIndex = 0
	for i := range l.ents {
		if e := &l.ents[i]; e.Type == EntryConf && e.Index > l.applied {
			// A leader proposes a change only when it has applied the one before,
			// so all but the last one in a log are committed. The commit index of
			// the disk does not know that: it is only a hint. Whoever campaigned by
			// the configuration before two such changes could win with voters that
			// the group does not consist of any more:
			//  1. A log holds the changes c1 (joint) and c2, applied is c0.
			//  2. c0's majority elects its owner, and commits by c0,
			//  3. while the majority of c2 has gone on with a leader of its own.
			if !mutants.On("A19b") {
				c.log.commit = max(c.log.commit, c.confIndex)
			}
			c.confIndex = e.Index
		}
	}
	c.role, c.released = RoleFollower, false
	c.lagAt, c.commitAt, c.truncAt, c.transferAt = Never, Never, Never, Never
	c.compactTo, c.cutTo, c.cutEntry, c.wish, c.cutAsked = l.trunc, l.trunc, 0, 0, 0
	c.applyBytes = 0
	if s := c.seldom; s != nil {
		s.image, s.drops = imageState{}, s.drops[:0]
	}
	c.quorumFrom = now.Add(2 * time.Second)
	c.due = true
	c.setDesc(st.Desc)
	c.armElection(now)
	return nil
}

// Step takes one message. It may be for anyone and of any age; what does not
// concern this replica has no effect. m.Entries are copied as needed.
func (c *Core) Step(now Time, m *Msg, o *Out) {
	stirred := c.stirred
	c.touch(now)
	if !c.accept(m, o) || !c.remembers(m, o) {
		return
	}
	switch m.Type {
	case MsgForgot:
		c.stepForgot(m, o)
		return
	case MsgPreVote, MsgVote:
		c.stepVoteRequest(now, m, o)
		return
	case MsgVoteResp:
		c.learnCommit(m)
	case MsgPreVoteResp:
		c.learnCommit(m)
		c.stepPreVoteResp(now, m, o)
		return
	case MsgLeadQuery:
		c.stepLeadQuery(now, m, o)
		return
	case MsgNeedSnapshot:
		c.stepNeedSnapshot(now, m)
		return
	case MsgSnapStatus:
		if m.Term <= c.hs.Term {
			c.SnapshotSent(now, m.FromReplica, m.Index, m.LogTerm, !m.Reject(), o)
			return
		}
	}
	if m.Term > c.hs.Term && !c.adopt(now, m, o) {
		return
	}
	if m.Term < c.hs.Term && !(mutants.On("B22") && m.Type == MsgApp) && !(mutants.On("K9") && (m.Type == MsgAppResp || m.Type == MsgCommitResp)) {
		c.neutralise(m, o)
		return
	}
	switch m.Type {
	case MsgApp:
		if c.follow(now, m, o) {
			c.stepApp(now, m, o)
		}
	case MsgCommit:
		if c.follow(now, m, o) {
			c.stepCommit(now, m, o)
		}
	case MsgFortify:
		if c.follow(now, m, o) {
			c.stepFortify(m, o)
		}
	case MsgTimeoutNow:
		if c.follow(now, m, o) {
			c.stepTimeoutNow(now, m, o)
		}
	case MsgStepDown:
		c.stepStepDown(now, m)
	case MsgVoteResp:
		c.stepVoteResp(now, m, o)
	case MsgAppResp:
		if c.stepAppResp(now, m, o) {
			c.stirred = stirred
		}
	case MsgCommitResp:
		if p := c.peer(m.FromReplica); p != nil && c.role == RoleLeader {
			if len(c.few().reads) == 0 {
				c.stirred = stirred // who asks later asks in a later round
			}
			p.round = max(p.round, m.Round)
			c.confirmReads(o)
		}
	case MsgFortifyResp:
		if p := c.peer(m.FromReplica); p != nil && c.role == RoleLeader && m.Epoch != 0 {
			p.epoch = m.Epoch
		}
	case MsgReadReq:
		c.stepReadReq(m, o)
	case MsgReadResp:
		c.stepReadResp(m, o)
	}
}

// touch notes that something came in at now.
func (c *Core) touch(now Time) {
	c.now = max(c.now, now)
	c.stirred = true
}

// Stirred reports whether Flush may do more than nothing: false says that what was
// handed in since the last Flush, if anything, moved only what the leader or the
// replica notes of acknowledgements. Then nothing is to be emitted, Status (but
// for Stable) and Lease are what they were, and Deadline is not earlier than it
// was. The owner may leave Flush out. It need not: Flush does no harm.
//
// What does not stir is named where it is found (Appended, stepAppResp, Step),
// anything else does.
func (c *Core) Stirred() bool { return c.stirred || c.due }

// accept drops messages that are not for this incarnation, or come from a
// replica that is known to be gone: its id is below the next unused one and
// the configuration does not hold it.
func (c *Core) accept(m *Msg, o *Out) bool {
	if m.beyondReason() && !mutants.On("H11b") {
		c.anomalies++
		return false
	}
	if m.Shard != c.shard || m.FromReplica == 0 || m.From == 0 || m.From == c.node {
		c.anomalies++
		return false
	}
	if m.ToReplica != c.id {
		if m.Type == MsgLeadQuery && m.ToReplica < c.id {
			// An earlier incarnation of this replica leads nothing any more.
			c.send(o, m.From, m.FromReplica, Msg{Type: MsgStepDown, Term: m.Term, FromReplica: m.ToReplica})
		}
		return false
	}
	if m.Type == MsgStepDown {
		return true // names the leader it is about, who may be gone
	}
	if m.Type == MsgLeadQuery && m.Term <= c.hs.Term {
		// Whoever asks may have been removed by a change it does not know of, and
		// still be needed as a voter by others that do not know of it either.
		return true
	}
	if m.FromReplica < c.desc.NextReplica {
		r, ok := c.desc.Replica(m.FromReplica)
		if ok && r.Node != m.From {
			c.anomalies++ // a node speaks for another one's replica
		}
		return ok && r.Node == m.From
	}
	return true
}

// beyondReason reports a term or index that no group reaches: counting on from
// there would soon end at zero.
func (m *Msg) beyondReason() bool {
	return (uint64(m.Term)|uint64(m.LogTerm)|uint64(m.Index)|uint64(m.Commit)|uint64(m.CompactTo))>>62 != 0
}

// adopt handles a message of a higher term. It reports whether the message
// shall be looked at further; then the own term is the message's.
func (c *Core) adopt(now Time, m *Msg, o *Out) bool {
	switch m.Type {
	case MsgApp, MsgCommit, MsgFortify, MsgTimeoutNow, MsgStepDown:
		// Proof that m.Term has, or had, a leader: no promise to an older one
		// stands in its way.
	default:
		if c.role != RoleLeader && c.fortified() {
			return false
		}
	}
	c.becomeFollower(now, m.Term, o)
	return true
}

// neutralise answers messages of an older term. A stale leader is told the
// newer term, so that it steps down.
func (c *Core) neutralise(m *Msg, o *Out) {
	if mutants.On("A6") {
		return
	}
	switch m.Type {
	case MsgApp, MsgCommit, MsgFortify:
		if mutants.On("D7") && m.Round != 0 {
			c.send(o, m.From, m.FromReplica, Msg{Type: MsgCommitResp, Term: m.Term, Round: m.Round})
			return
		}
		c.send(o, m.From, m.FromReplica, Msg{Type: MsgAppResp, Flags: FlagReject, Commit: m.Index, Index: c.log.last, LogTerm: c.log.lastTerm})
	case MsgReadReq:
		c.send(o, m.From, m.FromReplica, Msg{Type: MsgReadResp, Flags: FlagReject, Round: m.Round})
	}
}

// Appended says that a batch is durable. The owner calls it with the Mark of
// every AppendTask of the batch, and for every HardStateTask with
// LogMark{Term: State.Term} (Index zero); the latter may be left out where the
// same core had an AppendTask in the same batch.
func (c *Core) Appended(now Time, mark LogMark, o *Out) {
	stirred := c.stirred
	c.touch(now)
	if c.campaigned == c.hs.Term && !c.voteDurable && (c.role == RoleCandidate || c.role == RolePreCandidate) {
		if mark.Index == 0 && mark.Term == c.hs.Term || mark.Index != 0 && mark == c.voteMark {
			c.voteDurable = true
			c.countVote(now, c.id, true, o)
		}
		stirred = true
	}
	if mark.Index != 0 && (mark.Term == c.log.accTerm || mutants.On("B6")) {
		c.log.stable = max(c.log.stable, min(mark.Index, c.log.last))
	}
	// A follower's disk concerns the leader, who hears of it by what was held. A
	// leader's own may be what the commit waited for. Memory that the disk frees can
	// wait for the next Flush, if it is not much.
	if c.log.bytes <= 2*c.tun.TailBytes && (c.role == RoleFollower || c.role == RoleLeader && c.ready && (!c.canCommit() || mutants.On("K23"))) {
		c.stirred = stirred
	}
}

// Applied says that the state machine has applied the entries through idx, in
// the batch that is being built; bytes are the values' bytes of these entries.
// Nothing is emitted.
func (c *Core) Applied(idx Index, _ Term, bytes int, _ *Out) {
	if idx <= c.log.applied {
		return
	}
	if idx > c.log.applying {
		invariants.Fail("applied %d, handed out through %d", idx, c.log.applying)
	}
	c.log.applied = idx
	c.applyBytes = max(0, c.applyBytes-bytes)
	if idx == c.log.applying {
		c.applyBytes = 0
	}
	if c.log.applying < c.log.commit || c.role == RoleLeader && c.mustLeaveJoint() {
		c.due = true
	}
	if c.truncAt == Never {
		c.truncAt = c.now.Add(c.tun.IdleTruncate)
	}
}

// Truncated says that the disk's log is cut through idx in the batch that is
// being built. Memory may still hold entries below.
func (c *Core) Truncated(idx Index, term Term) {
	c.log.truncated(idx, term)
	if c.role != RoleLeader {
		return
	}
	for i := range c.peers {
		if p := &c.peers[i]; i != c.self && p.next <= c.log.trunc && p.state != stateSnapshot && !p.paused {
			c.due = true // it needs a snapshot now
		}
	}
}

// Hold says that the entries behind idx are needed after a restart, as redo of what
// was applied in memory only: the log is cut through idx at most, until Hold says
// more. Without a call, what is applied is not needed any more.
func (c *Core) Hold(idx Index) {
	if c.redoes && idx <= c.redo {
		return
	}
	c.redoes, c.redo, c.stirred = true, idx, true
	if c.truncAt == Never {
		c.truncAt = c.now.Add(c.tun.IdleTruncate)
	}
}

// HeldBehind returns about how many bytes the entries of the log behind idx take.
func (c *Core) HeldBehind(idx Index) int64 { return int64(c.log.heldBytes(idx)) }

// TailBytes returns about how much memory the entries take that the core holds: those
// that are not applied and durable, and Tuning.TailBytes of the others for slow peers.
func (c *Core) TailBytes() int { return c.log.memory() }

// Evict forgets entries that are applied and durable until those that the core holds
// take no more than keep bytes. Peers that need them get them from the disk.
func (c *Core) Evict(keep int) {
	c.log.evict(keep)
	c.log.compact()
}

// Press says how much the node wants the log cut, until it says otherwise. It changes
// no promise: what is cut is applied here, and committed.
func (c *Core) Press(p LogPressure) {
	if p == c.pressure {
		return
	}
	c.pressure, c.stirred = p, true
	if p != PressureNone {
		c.truncNow = true
	}
}

// Flush ends a round: it emits what follows from everything handed in since
// the last one. The owner calls it once per round for every core that was handed
// something and is Stirred.
func (c *Core) Flush(now Time, o *Out) {
	c.touch(now)
	c.due, c.stirred = false, false
	if c.role == RoleLeader {
		c.flushLeader(now, o)
	}
	c.flushApply(o)
	if s := c.seldom; s != nil {
		for len(s.drops) > 0 && c.log.commit >= s.drops[0].Index {
			o.Drops = append(o.Drops, s.drops[0])
			s.drops = s.drops[:copy(s.drops, s.drops[1:])]
		}
	}
	c.flushCut(now, o)
	c.flushTruncate(now, o)
	c.checkAsked(o)
	if c.log.commit < c.log.last && c.role == RoleFollower && c.lead != 0 && !mutants.On("N6") {
		if c.lagAt == Never {
			c.lagAt = now.Add(c.tun.LagQuery)
		}
	} else {
		c.lagAt = Never
	}
	c.tellRole(o)
}

// flushApply hands out committed entries, bounded by the bytes not yet applied.
func (c *Core) flushApply(o *Out) {
	l := &c.log
	for l.applying < l.commit && (c.applyBytes < c.tun.ApplyBytes || mutants.On("B12")) {
		e := l.slice(l.applying+1, l.commit, c.tun.ApplyBytes-c.applyBytes)
		if len(e) == 0 {
			invariants.Fail("committed entry %d is not in memory", l.applying+1)
		}
		for i := range e {
			c.applyBytes += len(e[i].Value)
			if e[i].Type == EntryConf && c.hs.Commit < e[i].Index && !mutants.On("A19b") {
				c.writeHard(o) // a configuration must not be forgotten once others act on it
			}
		}
		l.applying = e[len(e)-1].Index
		if mutants.On("B7") {
			l.applying = l.commit
		}
		o.Applies = append(o.Applies, ApplyTask{Shard: c.shard, Entries: e})
	}
}

const (
	truncLazyEntries = 64
	truncLazyBytes   = 256 << 10
	truncMaxEntries  = 1 << 17
)

func (c *Core) flushTruncate(now Time, o *Out) {
	l := &c.log
	l.evict(c.tun.TailBytes)
	to := min(max(c.compactTo, c.cutTo), l.applied)
	entries, bytes := truncLazyEntries, truncLazyBytes
	if c.tun.Cut == CutAlone {
		entries, bytes = c.tun.CutEntries, c.tun.CutBytes
		if c.role != RoleLeader {
			to = l.applied
		}
	}
	if c.pressure == PressureAll {
		to = l.applied
	}
	if mutants.On("T1") {
		to = min(c.compactTo, l.commit)
	}
	if c.redoes && !mutants.On("J3") {
		to = min(to, c.redo)
	}
	if l.last != c.lastSeen || l.applied != c.appliedAt {
		c.lastSeen, c.appliedAt = l.last, l.applied
		c.truncAt = now.Add(c.tun.IdleTruncate)
	}
	if to <= l.trunc {
		c.truncNow = false
		if c.role != RoleLeader {
			c.truncAt = Never
		}
		return
	}
	if c.truncAt == Never && !c.truncNow {
		c.truncAt = now.Add(c.tun.IdleTruncate)
	}
	n := to - l.trunc
	if n < Index(entries) && l.heldBytes(l.trunc)-l.heldBytes(to) < uint64(bytes) && !c.truncNow && c.pressure == PressureNone {
		return
	}
	c.truncNow = false
	if some := min(to, l.trunc+truncMaxEntries); some < to {
		to, c.truncAt = some, now // the rest follows at once
	}
	t, ok := l.term(to)
	invariants.Must(ok, "term of %d is unknown", to)
	o.Truncates = append(o.Truncates, TruncateTask{Shard: c.shard, Index: to, Term: t})
}

// tellRole reports a change of leadership, once.
func (c *Core) tellRole(o *Out) {
	r := RoleChange{Shard: c.shard, Term: c.hs.Term, Lead: c.lead, LeadNode: c.leadNode}
	if c.role == RoleLeader {
		r.IsLeader, r.IsReady, r.FirstIndex = true, c.ready || mutants.On("A16"), c.preLeading+1
	}
	if r != c.told {
		c.told = r
		o.Roles = append(o.Roles, r)
	}
}

// Deadline returns when Tick has to be called, or Never. It changes with every
// call of another method and with the liveness table.
func (c *Core) Deadline() Time {
	if c.due {
		return c.now
	}
	d := min(c.electionAt, c.truncAt)
	if c.role == RoleLeader {
		return min(d, c.leaderDeadline())
	}
	d = min(d, c.lagAt, c.askDue())
	if c.lead != 0 {
		d = min(d, c.leaderLossAt())
	}
	if c.now < c.quorumFrom && c.lead == 0 {
		d = min(d, c.quorumFrom)
	}
	return d
}

// Tick lets time pass. The owner calls it when Deadline has come, and Flush
// behind it.
func (c *Core) Tick(now Time, o *Out) {
	c.touch(now)
	if now >= c.truncAt {
		c.truncAt = Never
		c.truncNow = true
	}
	if c.role == RoleLeader {
		c.tickLeader(now, o)
	} else {
		c.tickFollower(now, o)
	}
}

// LivenessChanged says that support for or from node has changed.
func (c *Core) LivenessChanged(now Time, node NodeID, o *Out) {
	c.touch(now)
	c.unsure(0) // notes who has answered by now
	if c.role == RoleLeader {
		for i := range c.peers {
			if p := &c.peers[i]; p.node == node && i != c.self && c.alive(p.node) {
				p.paused = false
				p.retryWait = 0
			}
		}
		c.checkQuorum(now, o)
		return
	}
	if c.lead != 0 && c.leadNode == node {
		e, live := c.live.SupportFor(node)
		if live && e != c.leadEpoch && !(mutants.On("A10") && c.leadEpoch == 0) {
			// The leader's node restarted, lost its epoch, or was not supported when
			// it was last heard (then it may have restarted since): it has to report
			// soon. A node that lives but leads no more would be waited for for ever.
			c.leadEpoch = e
			if !c.suspect || mutants.On("V1") {
				// Only once: a leader that hears nobody takes up a new epoch again and
				// again, and each would be another respite.
				c.contactAt, c.suspect = now, true
			}
			c.queryLeader(now, c.leadNode, c.lead, o)
		}
		c.checkLeader(now)
	}
	c.checkQuorum(now, o)
	if c.lead == 0 && c.attempts > 1 && c.electionAt != Never && !c.quorumLost {
		c.attempts = 1
		c.armElection(now)
	}
}

// PeerReset says that the stream to node broke or came up: what was on its way
// may be lost.
func (c *Core) PeerReset(now Time, node NodeID, o *Out) {
	c.touch(now)
	for i := range c.peers {
		p := &c.peers[i]
		if p.node != node || i == c.self {
			continue
		}
		switch {
		case mutants.On("B0-C3a"): // what was lost with the stream stays lost
		case c.role == RoleLeader && p.state != stateSnapshot:
			if p.state == stateReplicate {
				p.toProbe(p.match + 1)
			}
			p.paused = false
			p.retryWait = 0
			p.sentCommit, p.sentCompact = 0, 0
			if len(c.few().reads) > 0 {
				c.own().readSent = 0
			}
		case c.role == RoleCandidate && p.vote == voteNone && c.voteDurable:
			c.askVote(p, o)
		case c.role == RolePreCandidate && p.vote == voteNone:
			c.askVote(p, o)
		}
	}
}

// StillHolds reports whether a message that waited for the disk (Out.Held) is
// still worth sending. What is not may be dropped, and better is: by the time a
// slow disk has synced, the term may be over, the entries overwritten, or the
// right to campaign gone.
func (c *Core) StillHolds(m *Msg) bool {
	if m.Type == MsgVote && (c.role == RoleFollower || c.role == RoleLeader || !c.isVoter()) {
		return false
	}
	return m.Term == c.hs.Term
}

// HardState returns the newest hard state, durable or on its way.
func (c *Core) HardState() HardState {
	h := c.hs
	h.Commit = c.log.commit
	return h
}

// Descriptor returns the applied descriptor. The caller does not change it.
func (c *Core) Descriptor() *Descriptor { return c.desc }

// Status is a snapshot of a core for its owner.
type Status struct {
	Shard      ShardID
	Replica    ReplicaID
	Role       RaftRole
	Learner    bool
	Term       Term
	Vote       ReplicaID
	Lead       ReplicaID // zero: unknown
	LeadNode   NodeID
	Commit     Index
	Applied    Index
	Last       Index
	LastTerm   Term
	Trunc      Index
	Stable     Index // durable through here (a lower bound)
	Ready      bool  // leads, and an entry of its term is committed
	QuorumLost bool  // no majority can be reached, as far as this replica knows
	QuorumDown []NodeID
	// Forgot lists the nodes whose replicas have forgotten what they promised, as
	// far as this replica found out. They count for nothing. Set only when
	// QuorumLost.
	Forgot []NodeID
	Since  Time // QuorumLost: since when
	// Transferee is the target of a running transfer.
	Transferee  ReplicaID
	Uncommitted int    // bytes
	Anomalies   uint64 // messages that no correct peer sends
}

// Status returns the state of the core. It allocates only when QuorumLost.
func (c *Core) Status() Status {
	s := Status{
		Shard: c.shard, Replica: c.id, Role: c.role, Term: c.hs.Term, Vote: c.hs.Vote, Lead: c.lead, LeadNode: c.leadNode,
		Learner: c.self >= 0 && c.peers[c.self].role == Learner,
		Commit:  c.log.commit, Applied: c.log.applied, Last: c.log.last, LastTerm: c.log.lastTerm, Trunc: c.log.trunc, Stable: c.log.stable,
		Ready: c.role == RoleLeader && c.ready, Transferee: c.transferTo, Uncommitted: c.uncommitted, Anomalies: c.anomalies,
		QuorumLost: c.quorumLost,
	}
	if c.quorumLost {
		s.Since = c.quorumSince
		for i := range c.peers {
			p := &c.peers[i]
			if i == c.self || !p.role.IsVoter() {
				continue
			}
			_, live := c.live.SupportFor(p.node)
			_, until := c.live.SupportFrom(p.node)
			if p.forgot {
				s.Forgot = append(s.Forgot, p.node)
			} else if !live || until <= c.now {
				s.QuorumDown = append(s.QuorumDown, p.node)
			}
		}
	}
	return s
}

// Brief is what of a Status changes, or is looked at, often.
type Brief struct {
	Term         Term
	LeadNode     NodeID // zero: unknown
	IsLeader     bool
	Ready        bool // leads, and an entry of its term is committed
	QuorumLost   bool
	Last, Commit Index
	Anomalies    uint64
}

// Brief returns the part of Status that costs next to nothing.
func (c *Core) Brief() Brief {
	lead := c.role == RoleLeader
	return Brief{
		Term: c.hs.Term, LeadNode: c.leadNode, IsLeader: lead, Ready: lead && c.ready, QuorumLost: c.quorumLost,
		Last: c.log.last, Commit: c.log.commit, Anomalies: c.anomalies,
	}
}

// PeerStatus is what a leader knows of one member.
type PeerStatus struct {
	Replica
	Match    Index
	Next     Index
	State    string // "probe", "replicate", "snapshot"; empty on a follower
	Inflight int    // appends sent and not acknowledged
	Epoch    Epoch  // at which it fortified this leader
	CaughtUp bool   // close enough to the end of the log to be promoted
}

// Peers appends the members of the configuration, this replica included, to
// dst. On a replica that does not lead only Replica is set.
func (c *Core) Peers(dst []PeerStatus) []PeerStatus {
	for i := range c.peers {
		p := &c.peers[i]
		s := PeerStatus{Replica: Replica{Node: p.node, ID: p.id, Role: p.role}}
		if c.role == RoleLeader {
			s.Match, s.Next, s.Inflight, s.Epoch = p.match, p.next, p.inflight.count(), p.epoch
			s.State = [...]string{"probe", "replicate", "snapshot"}[p.state]
			s.CaughtUp = i == c.self || c.caughtUp(p)
			if i == c.self {
				s.State = "replicate"
			}
		}
		dst = append(dst, s)
	}
	return dst
}

// send emits a message. Term and FromReplica are filled in where m leaves them
// zero.
func (c *Core) send(o *Out, to NodeID, replica ReplicaID, m Msg) {
	if to == c.node {
		return
	}
	c.fill(&m, to, replica)
	o.Msgs = append(o.Msgs, m)
}

// hold emits a message that leaves only when this round's batch is durable.
func (c *Core) hold(o *Out, to NodeID, replica ReplicaID, m Msg) {
	if to == c.node {
		return
	}
	c.fill(&m, to, replica)
	o.Held = append(o.Held, m)
}

func (c *Core) fill(m *Msg, to NodeID, replica ReplicaID) {
	m.Shard, m.From, m.To, m.ToReplica = c.shard, c.node, to, replica
	if m.FromReplica == 0 {
		m.FromReplica = c.id
	}
	if m.Term == 0 {
		m.Term = c.hs.Term
	}
}

// writeHard emits the hard state. One round writes it once per core: a newer
// one takes the older one's place.
func (c *Core) writeHard(o *Out) {
	c.hs.Commit = c.log.commit
	if mutants.On("B15") && c.hs.Vote != 0 && c.hs.Vote != c.id && len(o.HardStates) == 0 {
		return // nothing but the vote has changed, it seems
	}
	if n := len(o.HardStates); n > 0 && o.HardStates[n-1].Shard == c.shard {
		o.HardStates[n-1].State = c.hs
		return
	}
	o.HardStates = append(o.HardStates, HardStateTask{Shard: c.shard, State: c.hs})
}

// writeLog emits the write of the entries from first to the end of the log.
func (c *Core) writeLog(o *Out, oldLast, first Index) {
	l := &c.log
	mark := LogMark{Term: l.accTerm, Index: l.last}
	if n := len(o.Appends); n > 0 {
		t := &o.Appends[n-1]
		if t.Shard == c.shard && t.Mark.Term == mark.Term && t.Mark.Index == oldLast && first == oldLast+1 {
			lo := t.Entries[0].Index
			t.Entries = l.ents[lo-l.prev-1 : len(l.ents) : len(l.ents)]
			t.Mark = mark
			return
		}
	}
	o.Appends = append(o.Appends, AppendTask{
		Shard: c.shard, OldLast: oldLast, Mark: mark,
		Entries: l.ents[first-l.prev-1 : len(l.ents) : len(l.ents)],
	})
}

// alive reports whether node is heard, or hears this one.
func (c *Core) alive(node NodeID) bool {
	if _, live := c.live.SupportFor(node); live {
		return true
	}
	_, until := c.live.SupportFrom(node)
	return until > c.now
}

// commitTo advances the commit index.
func (c *Core) commitTo(i Index) {
	l := &c.log
	if i <= l.commit {
		return
	}
	if i > l.last {
		invariants.Fail("commit %d behind the end %d of the log", i, l.last)
	}
	if c.uncommitted > 0 && !mutants.On("B10") {
		for j := max(l.commit, c.preLeading) + 1; j <= i && c.uncommitted > 0; j++ {
			c.uncommitted -= len(l.ents[j-l.prev-1].Value)
		}
		c.uncommitted = max(0, c.uncommitted)
	}
	l.commit = i
}
