package sim

import (
	"cmp"
	"math"
	"math/rand/v2"
	"slices"
	"time"

	"github.com/flotillakv/flotilla/internal/sim/coverage"
	"github.com/flotillakv/flotilla/multiraft/raft"
)

// maxNodes bounds the processes of one simulated cluster.
const maxNodes = 8

// Schedule is everything a seed decides before a run starts: the parameters of
// the cluster and the timed list of faults and client actions. It is plain
// data, so that a failing run can be shrunk by deleting actions.
type Schedule struct {
	Seed     uint64        `json:"seed"`
	Profile  string        `json:"profile"`
	Duration time.Duration `json:"duration"` // of the safety phase, virtual
	Params   Params        `json:"params"`
	Actions  []Action      `json:"actions"` // ascending by At
}

// Params are the drawn parameters of one run.
type Params struct {
	Nodes   int // processes, 3..maxNodes
	Voters  int // initial voters, on nodes 1..Voters
	Support time.Duration
	Beat    time.Duration
	Drift   [maxNodes]float64 // clock rate error, within +-0.5 %

	DelayMin, DelayMean time.Duration // one network hop
	Loss, Dup           float64       // probabilities per message
	StormLoss           float64       // the same while ActStorm lasts
	Stream              bool          // links are FIFO and a loss resets the link
	SyncMin, SyncMean   time.Duration
	StallProb           float64       // probability of a sync that halts
	StallMean           time.Duration // and for how long
	LateProb            float64       // probability that a message has a late copy (not on FIFO links)
	LateMean            time.Duration // and how late
	SnapMean            time.Duration // mean travel time of a snapshot
	RoundDelay          time.Duration // mean time a message waits in the inbox
	ApplyDelay          time.Duration // mean delay of apply; zero: applied in the round
	ApplyFactor         [maxNodes]int // of a node that applies slowly
	ApplyChunk          bool          // apply tasks are cut at random places
	KeepAll             float64       // probability that a crash keeps every unsynced batch
	KeepNone            float64       // probability that it keeps none of them
	DropHeld            bool          // held messages that a slow disk outdated are dropped
	// OldMajority ends the run with a majority that comes back with old disks.
	OldMajority bool `json:",omitempty"`
	Payload     int  // bytes of a command, at most
	NoLease     bool `json:",omitempty"` // leaders claim no leases
	Tuning      raft.Tuning
}

// ActionKind is what an Action does.
type ActionKind uint8

// Faults and client actions. Node and Peer are indexes from 0; R is the
// action's private random number.
const (
	ActCrash      ActionKind = iota + 1 // Node stops and restarts after Dur
	ActCrashAll                         // all nodes at once
	ActIsolate                          // Node is cut off, both ways
	ActIsolateIn                        // Node hears nothing
	ActIsolateOut                       // Node is not heard
	ActSplit                            // nodes split in two sides (bits of R)
	ActCut                              // one link, one way
	ActCutBoth                          // one link, both ways
	ActClog                             // one link delays everything until the end of Dur
	ActSlowDisk                         // syncs of Node take up to Dur
	ActPause                            // Node stands still for Dur
	ActReset                            // the stream between Node and Peer breaks
	ActDropType                         // messages of one type (R) are lost for Dur
	ActFollow                           // isolate whoever leads
	ActKillLeader                       // crash whoever leads
	ActStorm                            // loss and duplication rise to a third for Dur
	ActPropose                          // a client command
	ActRead                             // a read index
	ActTransfer                         // leadership transfer
	ActConf                             // a membership change
	ActCampaign                         // somebody campaigns
	ActSlowLeader                       // syncs of whoever leads take up to Dur
	ActSnap                             // an unasked snapshot from Node to Peer
	ActDuel                             // everybody campaigns
	ActSuspend                          // Node stands still for Dur, its monotonic clock, too
	ActWall                             // the wall clock of Node is set, by at most Dur
	ActMinority                         // whoever leads is left with a minority; the links come back one by one
	ActStall                            // syncs of Node come to a halt until the end of Dur
	ActLate                             // half of all messages have a late copy for Dur
	ActStop                             // Node stops in order: it gives back its support, and ends a little later
	ActOldDisk                          // Node comes back with an older state of its disk: of an earlier boot, or of Dur ago
)

var actionNames = [...]string{
	ActCrash: "crash", ActCrashAll: "crash-all", ActIsolate: "isolate", ActIsolateIn: "deaf", ActIsolateOut: "mute",
	ActSplit: "split", ActCut: "cut", ActCutBoth: "cut-both", ActClog: "clog", ActSlowDisk: "slow-disk",
	ActPause: "pause", ActReset: "reset", ActDropType: "drop-type", ActFollow: "isolate-leader",
	ActKillLeader: "kill-leader", ActStorm: "storm", ActPropose: "propose", ActRead: "read",
	ActTransfer: "transfer", ActConf: "conf", ActCampaign: "campaign", ActDuel: "duel",
	ActSlowLeader: "slow-leader", ActSnap: "unasked", ActSuspend: "suspend", ActWall: "set-clock", ActMinority: "minority", ActStall: "stall", ActLate: "late", ActStop: "stop", ActOldDisk: "old-disk",
}

// String returns the action's name in traces.
func (k ActionKind) String() string { return actionNames[k] }

// Action is one timed fault or client action.
type Action struct {
	At         int64 // virtual nanoseconds
	Kind       ActionKind
	Node, Peer int
	Dur        time.Duration
	R          uint64
	// On, unless Idle, lets the action wait until some node is in the middle of
	// this operation, and strike that one.
	On coverage.Op
}

// Profiles lists the names [Draw] accepts.
var Profiles = []string{"swarm", "calm", "conf", "elect", "log", "reads", "tiny", "eight", "stall", "late", "joint", "amnesia"}

// Long lists the profiles of long runs: "days" is hours to days of a cluster
// with the timing of production, few client operations, and a fault of some
// kind every half minute or so. [Draw] accepts them beside [Profiles].
var Long = []string{"days"}

// Draw draws the schedule of seed under profile. Every profile is swarm with
// some rates fixed: "calm" has no faults, "conf" many membership changes,
// "elect" many transfers, campaigns and leader faults, "log" many crashes and
// resets under load, "reads" many reads, "tiny" the smallest limits, "eight"
// five nodes whose leaders die young (figure 8 of the Raft paper), "stall" disks
// that halt and leaders that change meanwhile, "late" old copies of messages and
// leaders left with a minority, "joint" membership changes under slow apply,
// "amnesia" one disk that comes back older than it was, now and then two.
// A zero duration means the profile's own; zero nodes means drawn.
func Draw(seed uint64, profile string, duration time.Duration, nodes int) Schedule {
	rng := rand.New(rand.NewPCG(seed, 0x5eed))
	days := profile == "days"
	if duration == 0 && days {
		duration = time.Duration(6+rng.IntN(31)) * time.Hour
	}
	if duration == 0 {
		duration = time.Duration(4+rng.IntN(12)) * time.Second
	}
	s := Schedule{Seed: seed, Profile: profile, Duration: duration}
	s.Params = drawParams(rng, profile, nodes)
	n := s.Params.Nodes

	// rate returns events per virtual second; each fault is off in half of the seeds.
	rate := func(hi float64) float64 {
		on, r := rng.IntN(2) == 0, rng.Float64()
		if profile == "calm" || !on {
			return 0
		}
		return hi * r * r
	}
	sources := []source{
		{ActCrash, rate(1.5), 400 * time.Millisecond},
		{ActCrashAll, rate(0.15), 200 * time.Millisecond},
		{ActIsolate, rate(0.7), 800 * time.Millisecond},
		{ActIsolateIn, rate(0.4), 800 * time.Millisecond},
		{ActIsolateOut, rate(0.4), 800 * time.Millisecond},
		{ActSplit, rate(0.7), 900 * time.Millisecond},
		{ActCut, rate(0.7), 700 * time.Millisecond},
		{ActCutBoth, rate(0.7), 700 * time.Millisecond},
		{ActClog, rate(0.7), 500 * time.Millisecond},
		{ActSlowDisk, rate(0.7), 300 * time.Millisecond},
		{ActSlowLeader, rate(0.6), 500 * time.Millisecond},
		{ActSnap, rate(1.5), 0},
		{ActPause, rate(0.5), 500 * time.Millisecond},
		{ActReset, rate(1.5), 0},
		{ActDropType, rate(0.5), 600 * time.Millisecond},
		{ActFollow, rate(0.5), 900 * time.Millisecond},
		{ActKillLeader, rate(0.5), 500 * time.Millisecond},
		{ActStorm, rate(0.3), 700 * time.Millisecond},
		{ActTransfer, rate(1.5), 0},
		{ActConf, rate(2.5), 0},
		{ActCampaign, rate(1.0), 0},
		{ActDuel, rate(3.0), 0},
		{ActMinority, rate(0.7), 900 * time.Millisecond},
		{ActStall, rate(0.5), 600 * time.Millisecond},
		{ActLate, rate(0.3), 900 * time.Millisecond},
		{ActStop, rate(0.5), 400 * time.Millisecond},
		{ActRead, 20 * rng.Float64(), 0},
		{ActPropose, 10 + 90*rng.Float64(), 0},
		{ActSuspend, rate(0.3), 900 * time.Millisecond},
		{ActWall, rate(0.5), time.Second},
	}
	for i := range sources {
		src := &sources[i]
		if days {
			src.slow(rng)
		}
		switch {
		case profile == "conf" && src.kind == ActConf:
			src.perSec = 3 + 3*rng.Float64()
		case profile == "elect" && (src.kind == ActTransfer || src.kind == ActCampaign || src.kind == ActKillLeader || src.kind == ActFollow):
			src.perSec = 0.4 + rng.Float64()
		case profile == "elect" && src.kind == ActDuel:
			src.perSec = 6
		case profile == "log" && (src.kind == ActCrash || src.kind == ActReset || src.kind == ActKillLeader || src.kind == ActSlowLeader || src.kind == ActSnap || src.kind == ActFollow):
			src.perSec = 0.4 + rng.Float64()
		case profile == "reads" && src.kind == ActRead:
			src.perSec = 80
		case profile == "reads" && (src.kind == ActFollow || src.kind == ActTransfer):
			src.perSec = 0.4 + rng.Float64()
		case profile == "stall" && (src.kind == ActFollow || src.kind == ActKillLeader || src.kind == ActStall || src.kind == ActMinority || src.kind == ActCrash):
			src.perSec = 0.4 + rng.Float64()
		case profile == "late" && (src.kind == ActMinority || src.kind == ActFollow || src.kind == ActTransfer || src.kind == ActDuel):
			src.perSec = 0.5 + rng.Float64()
		case profile == "joint" && src.kind == ActConf:
			src.perSec = 6 + 6*rng.Float64()
		case profile == "joint" && (src.kind == ActCrash || src.kind == ActKillLeader || src.kind == ActFollow || src.kind == ActMinority || src.kind == ActSlowDisk):
			src.perSec = 0.4 + rng.Float64()
		case profile == "eight" && src.kind == ActPropose:
			src.perSec = 15
		case profile == "eight" && (src.kind == ActKillLeader || src.kind == ActFollow || src.kind == ActSplit):
			src.perSec = 1 + rng.Float64()
		}
		if src.perSec <= 0 {
			continue
		}
		for at := 0.3; ; {
			at += rng.ExpFloat64() / src.perSec
			if at >= duration.Seconds() {
				break
			}
			a := Action{At: int64(at * 1e9), Kind: src.kind, Node: rng.IntN(n), R: rng.Uint64()}
			a.Peer = (a.Node + 1 + rng.IntN(n-1)) % n
			a.Dur = time.Duration(float64(src.dur) * rng.ExpFloat64())
			s.Actions = append(s.Actions, a)
		}
	}
	if end := int64(duration); profile == "elect" && rng.IntN(2) == 0 {
		// The last transfer is lost on its way.
		s.Actions = append(s.Actions,
			Action{At: end - int64(20*time.Millisecond), Kind: ActDropType, R: 7, Dur: time.Second, Peer: 1},
			Action{At: end - int64(10*time.Millisecond), Kind: ActTransfer, R: rng.Uint64() | 7, Peer: 1})
	}
	if profile == "amnesia" {
		s.amnesia(rng)
	}
	slices.SortStableFunc(s.Actions, func(a, b Action) int { return cmp.Compare(a.At, b.At) })
	s.aim()
	return s
}

// amnesia adds tries to put an old disk back. Each works only where somebody can
// find it out, so there are many; a group of n voters has to do without one or two
// for good.
func (s *Schedule) amnesia(rng *rand.Rand) {
	n, end := s.Params.Nodes, int64(s.Duration)
	if rng.IntN(6) == 0 {
		s.Params.OldMajority = true
		return
	}
	for range 40 {
		a := Action{At: end/5 + rng.Int64N(end*3/5), Kind: ActOldDisk, Node: rng.IntN(n), R: rng.Uint64()}
		a.Peer = (a.Node + 1) % n
		a.Dur = time.Duration(float64(50*time.Millisecond) * rng.ExpFloat64())
		s.Actions = append(s.Actions, a)
	}
}

// source makes actions of one kind.
type source struct {
	kind   ActionKind
	perSec float64
	dur    time.Duration // mean
}

// slow draws the rate and the length of a fault in the life of a real cluster:
// each kind in three of four seeds, once in two minutes to once in an hour.
func (s *source) slow(rng *rand.Rand) {
	on, every := rng.IntN(4) > 0, 120*math.Pow(30, rng.Float64())
	switch s.kind {
	case ActPropose:
		s.perSec = 0.02 + 0.2*rng.Float64()
		return
	case ActRead:
		s.perSec = 0.02 + 0.05*rng.Float64()
		return
	}
	s.perSec = 0
	if on {
		s.perSec = 1 / every
	}
	s.dur *= time.Duration(1 + rng.IntN(40)) // up to half a minute and more
}

func drawParams(rng *rand.Rand, profile string, nodes int) Params {
	p := Params{Nodes: nodes}
	p.Voters = 3 + rng.IntN(3)
	if profile == "eight" {
		p.Voters = 5
	}
	spare := rng.IntN(3)
	if p.Nodes == 0 {
		p.Nodes = p.Voters + spare
	}
	p.Voters = min(p.Voters, p.Nodes)
	p.Support = []time.Duration{200, 300, 600, 1500}[rng.IntN(4)] * time.Millisecond
	p.Beat = p.Support / 5
	for i := range p.Drift {
		p.Drift[i] = (rng.Float64() - 0.5) / 100
	}
	p.DelayMin = time.Duration(20+rng.IntN(200)) * time.Microsecond
	p.DelayMean = time.Duration(float64(200*time.Microsecond) * (1 + 20*rng.Float64()*rng.Float64()))
	p.Stream = rng.IntN(2) == 0
	if profile == "late" {
		p.Stream = false
	}
	if (profile == "late" || profile == "stall") && rng.IntN(4) > 0 {
		p.Support = time.Duration(200+rng.IntN(100)) * time.Millisecond
		p.Beat = p.Support / 5
	}
	loss, dup := rng.Float64()*rng.Float64()*0.15, rng.Float64()*rng.Float64()*0.3
	if rng.IntN(2) == 0 && profile != "calm" {
		p.Loss = loss
	}
	if rng.IntN(2) == 0 && profile != "calm" && !p.Stream {
		p.Dup = dup
	}
	p.SyncMin = time.Duration(50+rng.IntN(300)) * time.Microsecond
	p.SyncMean = time.Duration(float64(300*time.Microsecond) * (1 + 30*rng.Float64()*rng.Float64()*rng.Float64()))
	if rng.IntN(4) == 0 || profile == "stall" {
		p.StallProb = 0.02 + 0.4*rng.Float64()*rng.Float64()
		p.StallMean = time.Duration(50+rng.IntN(700)) * time.Millisecond
	}
	if rng.IntN(4) == 0 || profile == "late" {
		p.LateProb = 0.02 + 0.5*rng.Float64()*rng.Float64()
		p.LateMean = time.Duration(20+rng.IntN(2000)) * time.Millisecond
	}
	if profile == "calm" {
		p.StallProb, p.LateProb = 0, 0
	}
	p.RoundDelay = time.Duration(rng.IntN(300)) * time.Microsecond
	if rng.IntN(2) == 0 {
		p.ApplyDelay = time.Duration(rng.IntN(5000)) * time.Microsecond
		if rng.IntN(3) == 0 {
			p.ApplyDelay *= 20
		}
	}
	if profile == "joint" && rng.IntN(4) > 0 {
		p.ApplyDelay = time.Duration(1+rng.IntN(60)) * time.Millisecond
	}
	for i := range p.ApplyFactor {
		p.ApplyFactor[i] = 1
		if rng.IntN(5) == 0 {
			p.ApplyFactor[i] = 100
		}
	}
	p.SnapMean = 5 * time.Millisecond
	if rng.IntN(2) == 0 {
		p.SnapMean = time.Duration(rng.IntN(800)) * time.Millisecond
	}
	p.ApplyChunk = rng.IntN(2) == 0
	p.KeepAll, p.KeepNone = 0.2*rng.Float64(), 0.5*rng.Float64()
	p.Payload = []int{16, 64, 256, 3000}[rng.IntN(4)]

	p.DropHeld = rng.IntN(2) == 0
	t := &p.Tuning
	if profile == "tiny" || rng.IntN(2) == 0 {
		t.MaxMsgBytes = 256 << rng.IntN(6)
		t.InflightMsgs = 1 + rng.IntN(8)
		t.InflightBytes = 512 << rng.IntN(6)
		t.UncommittedBytes = 1024 << rng.IntN(6)
		t.TailBytes = 256 << rng.IntN(6)
		t.ApplyBytes = 512 << rng.IntN(8)
		t.LogKeepEntries = 4 << rng.IntN(6)
		t.LogKeepBytes = 1024 << rng.IntN(6)
	}
	t.ElectionRank = time.Duration(1+rng.IntN(40)) * time.Millisecond
	t.ElectionJitter = t.ElectionRank
	p.StormLoss = 0.33
	if profile == "days" {
		if p.Stream {
			p.StormLoss = 0.02 // every loss breaks a stream
		}
		p.Support, p.Beat = 2500*time.Millisecond, 500*time.Millisecond
		p.Loss, p.Dup, p.StallProb, p.LateProb = p.Loss/100, p.Dup/100, p.StallProb/50, p.LateProb/50
		t.ElectionRank, t.ElectionJitter = 0, 0
		if nodes == 0 {
			p.Nodes = []int{3, 3, 3, 3, 4, 5}[rng.IntN(6)]
			p.Voters = min(3+2*(p.Nodes/5), p.Nodes)
		}
	}
	return p
}
