package raft

import "time"

// NodeID names a process with one store directory. It is assigned once per
// cluster and never reused. Zero means "no node".
type NodeID uint32

// ShardID names a contiguous key range and the Raft group that replicates it.
// Shard 1 is the meta shard. Zero means "no shard".
type ShardID uint64

// ReplicaID names one incarnation of a shard's replica; it is never reused
// within its shard. Zero means "unknown".
type ReplicaID uint32

// Term is a Raft term (paper section 5.1). Zero is before the first election.
type Term uint64

// Index is a position in a group's log; the first entry has index 1.
type Index uint64

// Epoch is a node-pair liveness epoch: bootEpoch<<32 | n. Zero means "none".
type Epoch uint64

// Time is a reading of the owner's monotonic clock, in nanoseconds since an
// arbitrary origin that differs from node to node and from boot to boot. It is
// never compared across nodes and never derived from the wall clock.
type Time int64

// Add returns t+d.
func (t Time) Add(d time.Duration) Time { return t + Time(d) }

// Sub returns t-u as a duration.
func (t Time) Sub(u Time) time.Duration { return time.Duration(t - u) }

// MetaShard is the id of the meta shard's group, which holds the catalog.
const MetaShard ShardID = 1

// EntryType tells what an entry carries.
type EntryType uint8

const (
	// EntryEmpty is the entry a leader appends on election (paper section 8).
	EntryEmpty EntryType = 1
	// EntryNormal carries one or more commands for the state machine.
	EntryNormal EntryType = 2
	// EntryConf carries exactly one encoded ConfChange.
	EntryConf EntryType = 3
	// EntryAdmin carries exactly one administrative command (reserved: split, merge, freeze).
	EntryAdmin EntryType = 4
	// EntryCut carries exactly one encoded Cut.
	EntryCut EntryType = 5
)

// Entry is one log entry. Value holds the complete encoded form, which is the
// same on the wire and on disk (codec.go); Term and Type are decoded from it.
// Value is immutable once the entry was handed to a Core.
type Entry struct {
	Index Index
	Term  Term
	Type  EntryType
	Value []byte
}

// Op is a command's operation code. Codes below 128 belong to the built-in
// key-value machine and administration (package shard lists them); 128 is User.
type Op uint8

// SessionHeader is the exactly-once header of a command (package
// multiraft/session). A retry carries the header of the first try.
type SessionHeader struct {
	ID      [16]byte
	Lineage ShardID // the shard at which Seq was counted
	Seq     uint64  // from 1
	// AckedTo: the client has settled all its commands up to this one. Below Seq.
	AckedTo  uint64
	Deadline uint64 // group time, nanoseconds
}

// Command is one client command inside an entry. Body is immutable once proposed.
type Command struct {
	Op      Op
	Flags   uint8
	Session *SessionHeader // nil: no session
	Body    []byte
}

// EntryHeader is the header all commands of one entry share.
type EntryHeader struct {
	// DescVersion is the descriptor version the proposing leader had applied.
	DescVersion uint64
	// GroupTs is the entry's group time: max(previous+1, leader's clock), nanoseconds.
	GroupTs uint64
	Flags   uint8
}

// HardState is what a replica must not forget, apart from its log. It is
// written when Term, Vote, Lead, LeadEpoch or Leased change; a change of
// Commit alone never causes a write (Commit is a hint that rides along).
type HardState struct {
	Term Term
	Vote ReplicaID
	// Lead is the replica this one fortified in Term, LeadEpoch the pair epoch
	// at which its node was supported then. Both zero: none.
	Lead     ReplicaID
	LeadNode NodeID
	// Leased says that this replica may claim leases when it leads. It is set from
	// Config.Leased with each election this replica wins: groups of before become
	// leased with their next leader.
	Leased    bool
	LeadEpoch Epoch
	Commit    Index
}

// AppliedState is the applied side of a replica. It is written in the same
// batch as the effects it describes. Counters, not live sizes: blind writes do
// not read.
type AppliedState struct {
	Applied      Index
	AppliedTerm  Term
	TruncIndex   Index // entries (0, TruncIndex] are gone from the log
	TruncTerm    Term
	ConfIndex    Index // index of the entry that produced the current Descriptor's replicas
	WrittenBytes uint64
	WrittenKeys  uint64
	GroupTs      uint64
	// Digest sums up what was applied, through Applied, since the chain began at
	// DigestFrom. NoDigest there: none is known.
	Digest     Digest
	DigestFrom Index
}

// Role is a replica's role in a configuration.
type Role uint8

const (
	// Voter votes and counts for commit, in both halves of a joint configuration.
	Voter Role = 1
	// Learner receives the log and counts for nothing.
	Learner Role = 2
	// VoterIncoming is a voter of the new half only (joint configuration).
	VoterIncoming Role = 3
	// VoterOutgoing is a voter of the old half only, removed when joint ends.
	VoterOutgoing Role = 4
	// VoterDemoting is a voter of the old half that becomes a learner when joint ends.
	VoterDemoting Role = 5
)

// Replica is one member of a group.
type Replica struct {
	Node NodeID
	ID   ReplicaID
	Role Role
}

// Descriptor tells which keys a shard holds and who replicates it. A change of
// Replicas raises ConfVer, a change of [Start, End) raises Version.
// Replicas are sorted by Node. The configuration is joint exactly if one of
// the roles VoterIncoming, VoterOutgoing or VoterDemoting occurs.
type Descriptor struct {
	Shard       ShardID
	Keyspace    uint32
	Start       []byte // inclusive; empty: from the first key
	End         []byte // exclusive; empty: to the last key
	ConfVer     uint64
	Version     uint64
	NextReplica ReplicaID // next unused replica id
	Replicas    []Replica
	MergeState  uint8 // reserved
}

// ConfChange is a membership change (joint consensus, paper section 6). Each
// step names a replica and the role it shall have; Remove takes it out. A
// change of at most one voter is applied directly; others go through a joint
// configuration that the leader leaves by itself (an empty change leaves it).
type ConfChange struct {
	Steps []ConfStep
	// ConfVer is the configuration the change was validated against. A change
	// whose ConfVer is not the applied one is rejected deterministically.
	ConfVer uint64
}

// ConfStep is one step of a ConfChange.
type ConfStep struct {
	Remove bool
	Replica
}

// MsgType is the kind of a Raft message.
type MsgType uint8

// The message types of wire version 1. In brackets: what the fields of Msg mean.
const (
	// MsgApp replicates entries [Index, LogTerm: the entry before Entries;
	// Commit, CompactTo; Round: read round to be confirmed; FlagFortify].
	MsgApp MsgType = 1
	// MsgAppResp answers MsgApp [accepted: Index = last index known to match;
	// FlagReject: Commit = the refused previous index, Index and LogTerm = hint
	// (the follower's last entry with term <= the leader's); Epoch: fortification;
	// Round: echoed].
	MsgAppResp MsgType = 2
	// MsgVote and MsgPreVote ask for a vote [Index, LogTerm: last entry; FlagGrant:
	// campaign by leadership transfer, Epoch unused].
	MsgVote        MsgType = 3
	MsgVoteResp    MsgType = 4 // [FlagReject, then Commit, LogTerm: the voter's commit index and its term]
	MsgPreVote     MsgType = 5
	MsgPreVoteResp MsgType = 6 // [FlagReject; Term = the term asked for when granted, else the voter's; Commit, LogTerm as above, also when granted]
	// MsgTimeoutNow tells the target to campaign at once (transfer).
	MsgTimeoutNow MsgType = 7
	// MsgCommit is a commit record, or a read-round ping [Commit, CompactTo, Round].
	MsgCommit MsgType = 8
	// MsgCommitResp echoes a read round [Round].
	MsgCommitResp MsgType = 9
	// MsgFortify re-fortifies a leader after an epoch change; MsgFortifyResp returns [Epoch].
	MsgFortify     MsgType = 10
	MsgFortifyResp MsgType = 11
	// MsgStepDown says: the sender leads the group no more in Term [Epoch: leadEpoch].
	MsgStepDown MsgType = 12
	// MsgLeadQuery asks the believed leader of Term whether it still leads.
	MsgLeadQuery MsgType = 13
	// MsgNeedSnapshot says: the sender has no usable replica state and wants a snapshot.
	MsgNeedSnapshot MsgType = 14
	// MsgSnapStatus reports an install [Index, LogTerm: snapshot; FlagReject: failed].
	MsgSnapStatus MsgType = 15
	// MsgReadReq and MsgReadResp ask the leader for a read index on behalf of a
	// follower [Round: context; Index: answer, Commit, CompactTo; FlagReject: not leader].
	MsgReadReq  MsgType = 16
	MsgReadResp MsgType = 17
	// MsgMember asks a member whether the sender is one still. MsgMemberResp
	// says that the replica it is for is none [one entry of type EntryAdmin at
	// Index+1, whose command holds the sender's descriptor, durable where it was
	// sent], or, with FlagReject, that a replica was destroyed [Index: the lowest
	// replica id that may live on the sender's node]. Both are the owner's
	// business; a Core does not know them.
	MsgMember     MsgType = 18
	MsgMemberResp MsgType = 19
	// MsgForgot tells a replica that it has forgotten what it promised [Index,
	// LogTerm: the entry through which it acknowledged the log, which is missing
	// now; or Index zero and Commit: a term in which it voted].
	MsgForgot MsgType = 20
	// MsgDigest asks a member for its digest at an index [Index; Epoch: the chain
	// (AppliedState.DigestFrom), Round: the leader's digest there, if FlagGrant is set].
	// MsgDigestResp answers [Index, Epoch, Round: the member's; FlagReject: it cannot
	// tell, any more; FlagProbe: it is disputed, and an answer like this can end that].
	// MsgDigestVerdict tells a member what came of a comparison [Index, Epoch;
	// FlagReject: a majority has the digest Round there, and the member has not;
	// FlagProbe: there is no majority, nobody may be believed; neither: all is well].
	// MsgRebuild asks the leader for a snapshot to take the place of a quarantined
	// replica's state. All four are the owner's business; a Core does not know them.
	MsgDigest        MsgType = 21
	MsgDigestResp    MsgType = 22
	MsgDigestVerdict MsgType = 23
	MsgRebuild       MsgType = 24
)

// MsgLast is the highest type that this version knows.
const MsgLast = MsgRebuild

// Flag bits of Msg.Flags.
const (
	FlagReject  uint8 = 1 << 0
	FlagFortify uint8 = 1 << 1
	FlagGrant   uint8 = 1 << 2
	FlagProbe   uint8 = 1 << 3
)

// Msg is one Raft message. From and To come from the frame; everything else is
// in the fixed record of the message (package transport). Entries alias the
// frame buffer until the receiver retains them.
type Msg struct {
	Type        MsgType
	Flags       uint8
	Shard       ShardID
	From, To    NodeID
	FromReplica ReplicaID
	ToReplica   ReplicaID
	Term        Term
	Index       Index
	LogTerm     Term
	Commit      Index
	CompactTo   Index
	Epoch       Epoch
	Round       uint64
	Entries     []Entry
	// Boot is the boot epoch of the sender's store. It comes from the frame, too;
	// zero: not known.
	Boot uint64
}

// Reject reports whether FlagReject is set.
func (m *Msg) Reject() bool { return m.Flags&FlagReject != 0 }

// LogMark names a position of the log by the term of the leader whose append
// put it there. An acknowledgement of storage counts only if its mark's Term
// is the term of the last accepted append (this prevents the ABA of an entry
// that was overwritten while its write was in flight).
type LogMark struct {
	Term  Term
	Index Index
}

// AppendTask asks the owner to write Entries to the log of Shard. Entries
// (Entries[0].Index-1, OldLast] that exist on disk are overwritten and must be
// deleted in the same batch. Mark is given back through Core.Appended once the
// batch is durable.
type AppendTask struct {
	Shard   ShardID
	OldLast Index
	Entries []Entry
	Mark    LogMark
}

// HardStateTask asks the owner to write State in this round's batch, durably.
type HardStateTask struct {
	Shard ShardID
	State HardState
}

// ApplyTask hands committed entries to the state machine, in order, each
// exactly once per life of the Core. The owner answers with Core.Applied.
type ApplyTask struct {
	Shard   ShardID
	Entries []Entry
}

// LogPressure says how much a node wants of a group that its log be cut.
type LogPressure uint8

const (
	// PressureNone: what replicas that are away may hold back (Tuning.LogKeepEntries,
	// LogKeepBytes) is kept for them.
	PressureNone LogPressure = iota
	// PressureDead: for a replica on a node that is not live nothing is kept. The slowest
	// live one gets its entries from the log.
	PressureDead
	// PressureAll: the log is cut through all that is applied and not needed as redo
	// (Core.Hold), by each replica for itself. Who lags needs a snapshot.
	PressureAll
)

// TruncateTask says that entries up to and including Index (of Term) may be
// deleted from the log of Shard as far as they are applied.
type TruncateTask struct {
	Shard ShardID
	Index Index
	Term  Term
}

// CutTask asks the owner to propose that the logs of Shard be cut through Index
// (Core.ProposeCut). A leader whose Tuning.Cut is CutInLog emits it, once for each Index.
// Under CutLeaderImage it asks for an image of all that is applied, Index or later, and
// for Core.Imaged or ImageFailed; with Index zero, to drop the image, which nobody needs.
type CutTask struct {
	Shard ShardID
	Index Index
}

// FetchTask asks the owner to read entries [Next, Last] of Shard from disk, at
// most MaxBytes (but at least one entry), for the peer To, and to hand them to
// Core.Fetched. Emitted when a peer lags behind the in-memory tail.
type FetchTask struct {
	Shard    ShardID
	To       ReplicaID
	Next     Index
	Last     Index
	MaxBytes int
}

// SnapshotTask asks the owner to send a snapshot of Shard to a peer that lags
// behind the log, and to report with Core.SnapshotSent.
type SnapshotTask struct {
	Shard     ShardID
	To        NodeID
	ToReplica ReplicaID
	// Fresh: it has to hold all that is applied now, so nothing made earlier will do.
	Fresh bool
}

// SizeTask asks the owner how many bytes the data of Shard take, and to answer with
// Core.Sized: a peer that is away holds back so much log that it matters. Without an
// answer the data are taken for large.
type SizeTask struct {
	Shard ShardID
}

// ReadState answers Core.ReadIndex: when Err is nil, a read that sees every
// entry up to Index is linearizable.
type ReadState struct {
	Shard   ShardID
	Context uint64
	Index   Index
	Err     error // nil or ErrNotLeader (the read has not been served)
}

// RoleChange reports that the replica's view of leadership changed.
type RoleChange struct {
	Shard      ShardID
	Term       Term
	Lead       ReplicaID // zero: unknown
	LeadNode   NodeID
	IsLeader   bool
	IsReady    bool  // the leader's own-term entry is committed (reads are possible)
	FirstIndex Index // IsLeader: index of the empty entry of this term
}

// DropTask reports that proposals of Shard at indexes >= Index in terms <= Term
// are lost definitely: their entries were overwritten, and an entry of another
// term is committed in their place. (An entry that was overwritten but not yet
// outlived by a commit may still come back, paper section 5.4.2, figure 8; it
// is not reported.)
type DropTask struct {
	Shard ShardID
	Index Index
	Term  Term
}

// ForgetTask reports that a replica has forgotten what it promised: entries
// through Index that it acknowledged, of which it has those through Has, or,
// where Index is zero, that it voted in Term. Its store is older than it was.
// Where Node is the own node, this replica itself was told so, by By: the owner
// must stop the node for good, since nothing it ever promised can be relied on.
// Of another node it is to be shown to people, who have to replace it; the core
// counts that replica for nothing from then on.
type ForgetTask struct {
	Shard   ShardID
	Node    NodeID
	Replica ReplicaID
	Has     Index
	Index   Index
	Term    Term
	By      NodeID
}

// Out collects the effects of stepping cores. One Out is shared by all cores
// of a loop and reused from round to round; slices keep the order in which
// effects were produced. The owner must, per round: (1) send Msgs at any time;
// (2) write Appends and HardStates of the round in one batch in order and sync
// it; (3) send Held only after that batch and all earlier ones are durable (what
// Core.StillHolds refuses by then may be dropped), and call Appended with each
// AppendTask's Mark and with LogMark{Term: State.Term} for each HardStateTask;
// (4) carry out the others.
type Out struct {
	Msgs       []Msg
	Held       []Msg
	Appends    []AppendTask
	HardStates []HardStateTask
	Applies    []ApplyTask
	Truncates  []TruncateTask
	Cuts       []CutTask
	Fetches    []FetchTask
	Snapshots  []SnapshotTask
	Sizes      []SizeTask
	Reads      []ReadState
	Roles      []RoleChange
	Drops      []DropTask
	Asks       []ReadAsk
	Forgets    []ForgetTask
}

// Reset empties o and keeps its memory. Pointers in it are cleared.
func (o *Out) Reset() {
	clear(o.Msgs)
	clear(o.Held)
	clear(o.Appends)
	clear(o.Applies)
	clear(o.Reads)
	o.Msgs, o.Held = o.Msgs[:0], o.Held[:0]
	o.Appends, o.HardStates = o.Appends[:0], o.HardStates[:0]
	o.Applies, o.Truncates, o.Cuts = o.Applies[:0], o.Truncates[:0], o.Cuts[:0]
	o.Fetches, o.Snapshots, o.Sizes = o.Fetches[:0], o.Snapshots[:0], o.Sizes[:0]
	o.Reads, o.Roles, o.Drops, o.Asks = o.Reads[:0], o.Roles[:0], o.Drops[:0], o.Asks[:0]
	o.Forgets = o.Forgets[:0]
}

// Liveness is the node-pair liveness table as a core sees it (package
// multiraft/liveness). Calls are cheap reads of published values.
type Liveness interface {
	// SupportFor returns the epoch at which this node supports node n, and
	// whether that support still stands. Withdrawal is durable before it shows here.
	SupportFor(n NodeID) (e Epoch, live bool)
	// SupportFrom returns the epoch at which node n supports this node, and
	// until when by this node's clock. For the own node: (bootEpoch, far future
	// while the own disk and loops are alive).
	SupportFrom(n NodeID) (e Epoch, until Time)
}

// TermRun says that entries from First on (up to the next run) have Term.
type TermRun struct {
	First Index
	Term  Term
}

// State is what a Core is built from: the durable state of one replica.
type State struct {
	Hard    HardState
	Applied AppliedState
	Desc    Descriptor
	// Last is the last index of the log, max(TruncIndex, last key in the log).
	Last Index
	// Runs give the term of every index in (TruncIndex, Last], ascending.
	Runs []TermRun
	// Tail holds at least the entries (Applied.Applied, Last].
	Tail []Entry
}

// CtlKind is the kind of a control record.
type CtlKind uint8

// Control records travel first in every frame.
const (
	CtlHeartbeat  CtlKind = 1 // Epoch, Seq, Wall: sender asks for support
	CtlReply      CtlKind = 2 // Epoch: the epoch recorded for the asker; Seq echoed; Refused
	CtlWithdrawn  CtlKind = 3 // Epoch: support up to this epoch was withdrawn, durably
	CtlRelinquish CtlKind = 4 // Epoch: the sender gives back all promises of this epoch
)

// Ctl is one node-pair liveness record.
type Ctl struct {
	Kind    CtlKind
	Refused bool
	Score   uint8 // overload score of the sender, 0..255
	Epoch   Epoch
	Seq     uint64
	Echo    uint64 // reserved: closed-time echo
	Wall    uint64 // heartbeats: the sender's wall clock, Unix nanoseconds (clock-skew guard); replies: the supporter's duration, nanoseconds (zero: the asker's own)
}
