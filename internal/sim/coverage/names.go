package coverage

// Fault is a kind of fault.
type Fault uint8

// The kinds of faults.
const (
	Kill          Fault = iota // the process ends, the disk keeps every write
	CrashLost                  // nothing unsynced survives
	CrashPart                  // a first part of what was unsynced survives
	CrashTorn                  // and the next write in part
	CrashSubset                // names survive independently of each other
	CrashZeroed                // lengths survive, contents read as zeros
	CrashBlocks                // any blocks of what was unsynced survive
	CrashReorder               // writes and names survive in any order
	CrashRecovery              // a second crash within the recovery
	PowerCut                   // several nodes at the same time
	Stop                       // a clean stop
	Pause                      // the process stands still
	Suspend                    // the machine does, with its monotonic clock
	WallJump                   // the wall clock is set
	Drift                      // the clock is off by nearly what is allowed
	SlowDisk                   // a sync takes long
	StalledDisk                // syncs come to a halt
	WriteError                 // a write of the store fails
	TornWrite                  // in the middle
	SyncError                  // a sync fails
	SyncLost                   // a sync fails and what it was for is gone
	ReadError                  // a read fails
	DiskFull                   // no space is left
	Rot                        // what is read or written is not what it was
	Drop                       // a message is lost
	DropType                   // all messages of a type are
	Dup                        // comes twice
	Reorder                    // overtakes another one
	Late                       // a copy comes much later
	Cut                        // the link is cut both ways
	OneWay                     // one way only
	Clog                       // the link holds everything back
	Reset                      // the stream breaks
	Corrupt                    // bits of a frame flip, or it is cut short
	LostAnswer                 // the answer to a client is lost
	LateCopy                   // a client's command comes again, much later
	Faults                     // how many kinds there are
)

var faultNames = [Faults]string{
	"process killed", "crash: unsynced lost", "crash: a part kept", "crash: torn", "crash: names apart", "crash: zeroed", "crash: blocks", "crash: reordered",
	"crash in recovery", "power cut", "clean stop", "pause", "suspend", "wall clock set", "clock drift", "slow disk", "disk halts",
	"write error", "torn write", "sync error", "sync lost", "read error", "disk full", "rot",
	"message lost", "type lost", "message doubled", "reordered", "late copy", "link cut", "cut one way", "link clogged", "stream reset", "frame corrupted",
	"answer lost", "late command",
}

// String returns the name in tables.
func (f Fault) String() string { return faultNames[f] }

// Op is an operation that a fault can hit.
type Op uint8

// The operations.
const (
	Idle        Op = iota // nothing is under way on the node
	Election              // it campaigns, a vote is not durable yet, a vote or a question for the leader travels
	Fortify               // a follower's promise to a leader is made
	Append                // entries travel, or are not durable yet
	Repair                // a leader looks for where logs agree, or a follower overwrites entries
	Commit                // a commit index travels
	Apply                 // committed entries are not applied yet
	SnapSend              // a snapshot is built or sent
	SnapInstall           // a snapshot arrives, is installed, or has just been
	Conf                  // a membership change is in the log and not applied, or the configuration is joint
	Transfer              // the leadership is handed over
	LeaseRead             // a lease is held, by which reads are served at any instant
	QuorumRead            // a leader asks a quorum for a read index
	RemoteRead            // a follower asks the leader for a read index
	Command               // a client's command waits for its answer
	Session               // one of a session does
	Compact               // a cut of the log is not durable yet
	Restart               // the node started a moment ago
	Destroy               // a replica was removed and is still there, or asks whether it was
	Support               // node liveness: heartbeats, records of support
	Ops                   // how many there are
)

var opNames = [Ops]string{
	"idle", "election", "fortify", "append", "repair", "commit", "apply", "snapshot sent", "snapshot installed", "membership change", "transfer",
	"lease held", "read by quorum", "read at follower", "command", "session command", "log cut", "restart", "removal", "node liveness",
}

// String returns the name in tables.
func (o Op) String() string { return opNames[o] }

// Set is a set of operations.
type Set uint32

// With adds o if is.
func (s Set) With(o Op, is bool) Set {
	if is {
		s |= 1 << o
	}
	return s
}

// State is the state of a core.
type State uint8

// The states. Those from JointFollower on are in a joint configuration.
const (
	Absent        State = iota // the node holds no replica of the group
	Removed                    // one that is not in the configuration any more
	Learner                    //
	Follower                   //
	PreCandidate               //
	Candidate                  //
	NewLeader                  // nothing of its term is committed yet
	Leader                     //
	JointLearner               //
	JointFollower              //
	JointPreCand               //
	JointCand                  //
	JointNewLead               //
	JointLeader                //
	States                     // how many there are
)

var stateNames = [States]string{
	"no replica", "removed", "learner", "follower", "pre-candidate", "candidate", "new leader", "leader",
	"joint learner", "joint follower", "joint pre-candidate", "joint candidate", "joint new leader", "joint leader",
}

// String returns the name in tables.
func (s State) String() string { return stateNames[s] }

// Moments are the operations that faults are aimed at: rare ones, and those that
// are over in a moment.
var Moments = []Op{Fortify, Apply, SnapSend, SnapInstall, Conf, Transfer, QuorumRead, RemoteRead, Destroy, Repair, Compact, Session}

// ParseOp returns the operation of a name.
func ParseOp(name string) (Op, bool) {
	for o, s := range opNames {
		if s == name {
			return Op(o), true
		}
	}
	return 0, false
}
