package t1

import (
	"cmp"
	"math/rand/v2"
	"slices"
	"time"

	"github.com/flotillakv/flotilla/internal/sim/coverage"
	"github.com/flotillakv/flotilla/multiraft/raft"
)

// maxNodes bounds the nodes of a simulated cluster.
const maxNodes = 7

// Schedule is everything that a seed decides before a run: the parameters and
// the timed list of faults and client operations. It is plain data, so that a
// failing run can be kept, and shrunk by deleting actions.
type Schedule struct {
	Seed     uint64        `json:"seed"`
	Profile  string        `json:"profile"`
	Params   Params        `json:"params"`
	Duration time.Duration `json:"duration"` // of the safety phase, virtual
	Actions  []Action      `json:"actions"`  // ascending by At
}

// Params are the drawn parameters of one run.
type Params struct {
	Nodes    int               `json:"nodes"`    // 3..7
	Replicas int               `json:"replicas"` // of each shard: 3 or 5
	Shards   int               `json:"shards"`   // 1..12
	Groups   int               `json:"groups"`   // of keys that are checked together
	Loops    int               `json:"loops"`    // of each node: 1..3
	Clients  int               `json:"clients"`
	Support  time.Duration     `json:"support"`
	Beat     time.Duration     `json:"beat"`
	Drift    [maxNodes]float64 `json:"drift"` // clock rate error, within +-0.5 %

	DelayMin   time.Duration `json:"delay_min"` // one network hop
	DelayMean  time.Duration `json:"delay_mean"`
	Loss       float64       `json:"loss"` // probabilities per frame
	Dup        float64       `json:"dup"`
	Corrupt    float64       `json:"corrupt"`
	LostAnswer float64       `json:"lost_answer"`           // of a client
	ChunkDelay time.Duration `json:"chunk_delay,omitempty"` // mean time between chunks of a snapshot, beside DelayMean
	Stream     bool          `json:"stream"`                // links are FIFO and a loss resets them
	Compress   bool          `json:"compress"`
	SyncMin    time.Duration `json:"sync_min"`
	SyncMean   time.Duration `json:"sync_mean"`
	RoundDelay time.Duration `json:"round_delay"` // mean time between input and round
	ReadDelay  time.Duration `json:"read_delay"`  // mean time between permission and read

	NoLease bool `json:"no_lease,omitempty"`

	Images   images  `json:"images"`   // simfs modes of crash images
	Recovery float64 `json:"recovery"` // probability of a crash in the recovery
	Reuse    bool    `json:"reuse"`    // Pebble recycles its logs
	MemTable int64   `json:"mem_table"`
	// Defer is how much of what is applied stays in memory between flushes; 0: none.
	Defer int64 `json:"defer,omitempty"`
	// PointDeletes is up to how many log entries are deleted one by one; 0: the default.
	PointDeletes raft.Index `json:"point_deletes,omitempty"`
	// Journal is from how many bytes of log records on entries are moved out of them; 0:
	// the default.
	Journal int64 `json:"journal,omitempty"`
	// LogBytes is the cap of the logs of a node; 0: none.
	LogBytes int64 `json:"log_bytes,omitempty"`
	// Compare is how often leaders compare the replicas of their shards; 0: never.
	Compare time.Duration `json:"compare,omitempty"`
	// Yield: nodes whose disks stand still give back what others promised them.
	Yield bool `json:"yield,omitempty"`
	// Stray is when the state machine of a node does what those of others do not, once;
	// 0: it never does.
	Stray time.Duration `json:"stray,omitempty"`
	// IdleAfter is how long nothing comes for a replica before it sleeps, below zero:
	// never. Awake is how many do not sleep from the start, below zero: none.
	IdleAfter time.Duration `json:"idle_after,omitempty"`
	Awake     int           `json:"awake,omitempty"`
	// Untouched: replicas have no record in the store before they are used.
	Untouched bool `json:"untouched,omitempty"`

	Payload    int           `json:"payload"` // bytes of a value, at most
	Timeout    time.Duration `json:"timeout"` // of a client's operation, mean
	SmallBytes int           `json:"small_bytes"`
	TableBytes int           `json:"table_bytes"`
	Tuning     raft.Tuning   `json:"tuning"`
}

// ActionKind is what an Action does.
type ActionKind uint8

// Faults and client operations. R is the action's own random number.
const (
	ActOp         ActionKind = iota + 1 // client Node does something
	ActCrash                            // Node stops and restarts after Dur
	ActCrashSome                        // power loss of several (bits of R)
	ActCrashAll                         // power loss of all
	ActKillLeader                       // crash of a leader of the shard R chooses
	ActIsolate                          // Node is cut off, both ways
	ActDeaf                             // Node hears nothing
	ActMute                             // Node is not heard
	ActSplit                            // nodes split in two sides (bits of R)
	ActCut                              // one link, one way
	ActCutBoth                          // one link, both ways: the triangle
	ActFlap                             // one link goes and comes
	ActFollow                           // isolate a leader
	ActClog                             // one link delays everything until the end of Dur
	ActSwizzle                          // links clog one by one and clear in another order
	ActReset                            // the stream between Node and Peer breaks
	ActDropType                         // messages of one type (R) are lost
	ActStorm                            // loss and duplication rise to a third
	ActPause                            // Node stands still
	ActSlowDisk                         // syncs of Node take up to Dur
	ActWall                             // Node's wall clock jumps by up to an hour
	ActTransfer                         // leadership transfer
	ActCampaign                         // Node's replica of a shard campaigns
	ActStop                             // clean stop and restart
	ActDiskFault                        // a disk operation of Node fails
	ActOld                              // frames from long ago arrive
	ActConf                             // a membership change
	ActSuspend                          // Node stands still, and its monotonic clock with it
	ActFull                             // Node's disk has no space left for some time
	ActReadError                        // Node's disk cannot be read
	ActRot                              // a bit of Node's disk is another one
)

var actionNames = [...]string{
	ActOp: "op", ActCrash: "crash", ActCrashSome: "crash-some", ActCrashAll: "crash-all", ActKillLeader: "kill-leader",
	ActIsolate: "isolate", ActDeaf: "deaf", ActMute: "mute", ActSplit: "split", ActCut: "cut", ActCutBoth: "cut-both",
	ActFlap: "flap", ActFollow: "isolate-leader", ActClog: "clog", ActSwizzle: "swizzle", ActReset: "reset",
	ActDropType: "drop-type", ActStorm: "storm", ActPause: "pause", ActSlowDisk: "slow-disk", ActWall: "wall",
	ActTransfer: "transfer", ActCampaign: "campaign", ActStop: "stop", ActDiskFault: "disk-fault", ActOld: "old-frames",
	ActSuspend: "suspend", ActConf: "conf", ActFull: "full-disk", ActReadError: "read-error", ActRot: "rot",
}

// String returns the action's name in traces.
func (k ActionKind) String() string {
	if int(k) < len(actionNames) && actionNames[k] != "" {
		return actionNames[k]
	}
	return "unknown"
}

// Action is one timed fault or client operation.
type Action struct {
	At   int64 // virtual nanoseconds
	Kind ActionKind
	Node int
	Peer int
	Dur  time.Duration
	R    uint64
	// On, unless Idle, lets the action wait until some node is in the middle of
	// this operation, and strike that one.
	On coverage.Op
}

// Profiles lists the names that [Draw] accepts. Each is "swarm" with some rates
// fixed: "calm" has no faults, "crash" many crashes of all kinds, "net" many
// network faults, "snap" small logs and long absences, so that snapshots travel,
// "disk" failing and slow disks, "conf" many membership changes, "many" seven
// nodes and twelve shards, "rot" disks that cannot be read, are full anywhere, or
// have a bit wrong. What strikes in "rot" strikes Pebble's own goroutines too, whose
// order no seed decides: two runs of one seed may differ there ([Counts.Loose]).
var Profiles = []string{"swarm", "calm", "crash", "net", "snap", "disk", "conf", "many", "rot"}

// Fleet is a profile besides: thousands of shards that sleep most of the time, on three nodes
// that crash, alone and together, so that elections of all of them at once, wakes of all of
// them at once, and sleep while nodes come and go, are frequent. A run takes seconds.
const Fleet = "fleet"

// Draw draws the schedule of a seed. Zero duration: drawn.
func Draw(seed uint64, profile string, duration time.Duration) Schedule {
	rng := rand.New(rand.NewPCG(seed, 0x7e57ed))
	if duration == 0 {
		duration = time.Duration(2500+rng.IntN(3500)) * time.Millisecond
	}
	s := Schedule{Seed: seed, Profile: profile, Duration: duration, Params: drawParams(rng, profile)}
	p := &s.Params
	if k := seed % 8; k > 0 { // not drawn, so that the rest is what it was
		p.Defer = 1 << 10 << (k * 3 / 2)
	}
	if p.PointDeletes = []raft.Index{0, 1 << 40, 4, 1 << 40}[seed/8%4]; p.PointDeletes > 4 {
		p.MemTable = 32 << 10 // compactions tell of deletions that are mistakes
	}
	p.Journal = []int64{0, 2 << 10, 16 << 10}[seed/3%3] // not drawn either
	if p.LogBytes = []int64{0, 0, 24 << 10, 0, 96 << 10}[seed/5%5]; p.LogBytes > 0 {
		p.Journal = p.LogBytes / 4
	}
	p.Compare = []time.Duration{0, 100 * time.Millisecond, 500 * time.Millisecond}[seed/2%3]
	p.Yield = seed/4%2 == 1
	if p.Compare > 0 && seed/6%4 == 3 && profile != "rot" {
		p.Stray = duration / 4 * time.Duration(1+seed%3)
	}
	p.IdleAfter = []time.Duration{5, 20, -1, 60, 200}[seed/7%5] * time.Millisecond
	p.Awake = []int{0, -1, 1}[seed/11%3]
	p.Untouched = seed/5%2 == 1
	if p.Stray > 0 && seed%2 == 1 {
		p.IdleAfter = -1 // what a sleeping replica holds is compared when it was woken
	}
	if profile == Fleet {
		p.IdleAfter, p.Awake = []time.Duration{20, 60, 200}[seed/7%3]*time.Millisecond, -1
		p.Compare, p.Stray, p.LogBytes = 0, 0, 0
	}
	n := p.Nodes
	// Each fault is off in half of the seeds.
	rate := func(hi float64) float64 {
		on, r := rng.IntN(2) == 0, rng.Float64()
		if !on || profile == "calm" {
			return 0
		}
		return hi * r
	}
	type source struct {
		kind   ActionKind
		perSec float64
		dur    time.Duration // mean
	}
	sources := []source{
		{ActCrash, rate(4), 120 * time.Millisecond},
		{ActCrashSome, rate(1), 120 * time.Millisecond},
		{ActCrashAll, rate(0.7), 100 * time.Millisecond},
		{ActKillLeader, rate(2), 120 * time.Millisecond},
		{ActStop, rate(1.2), 50 * time.Millisecond},
		{ActIsolate, rate(0.5), 500 * time.Millisecond},
		{ActDeaf, rate(0.4), 500 * time.Millisecond},
		{ActMute, rate(0.4), 500 * time.Millisecond},
		{ActSplit, rate(0.5), 600 * time.Millisecond},
		{ActCut, rate(0.5), 500 * time.Millisecond},
		{ActCutBoth, rate(0.5), 500 * time.Millisecond},
		{ActFlap, rate(0.4), 900 * time.Millisecond},
		{ActFollow, rate(0.4), 600 * time.Millisecond},
		{ActClog, rate(0.6), 400 * time.Millisecond},
		{ActSwizzle, rate(0.3), 700 * time.Millisecond},
		{ActReset, rate(1.5), 0},
		{ActDropType, rate(0.5), 500 * time.Millisecond},
		{ActStorm, rate(0.3), 500 * time.Millisecond},
		{ActPause, rate(1.2), 300 * time.Millisecond},
		{ActSuspend, rate(0.8), 250 * time.Millisecond},
		{ActSlowDisk, rate(0.8), 200 * time.Millisecond},
		{ActWall, rate(0.8), 700 * time.Millisecond},
		{ActTransfer, rate(2), 0},
		{ActCampaign, rate(1), 0},
		{ActConf, rate(4), 0},
		{ActOld, rate(1), 0},
		{ActDiskFault, rate(0.15), 200 * time.Millisecond},
		{ActFull, rate(0.1), 300 * time.Millisecond},
		{ActReadError, 0, 0},
		{ActRot, 0, 0},
		{ActOp, 50 + 70*rng.Float64(), 0},
	}
	for i := range sources {
		src := &sources[i]
		boost := 0.5 + rng.Float64()
		switch {
		case profile == "crash" && (src.kind == ActCrash || src.kind == ActKillLeader || src.kind == ActCrashSome || src.kind == ActCrashAll):
			src.perSec = max(src.perSec, 1.5*boost)
		case profile == "net" && src.kind >= ActIsolate && src.kind <= ActStorm:
			src.perSec = max(src.perSec, 0.5*boost)
		case profile == "snap" && (src.kind == ActCrash || src.kind == ActIsolate || src.kind == ActCutBoth):
			src.perSec, src.dur = max(src.perSec, 0.8*boost), 1400*time.Millisecond
		case (profile == "snap" || profile == Fleet) && src.kind == ActOp:
			src.perSec = 350
		case profile == Fleet && (src.kind == ActCrash || src.kind == ActStop || src.kind == ActIsolate || src.kind == ActCrashAll):
			src.perSec, src.dur = max(src.perSec, 0.5*boost), 500*time.Millisecond
		case profile == "conf" && src.kind == ActConf:
			src.perSec = 8 * boost
		case profile == "disk" && src.kind == ActDiskFault:
			src.perSec = 0.6 * boost
		case (profile == "disk" || profile == "rot") && src.kind == ActFull:
			src.perSec = 0.3 * boost
		case profile == "rot" && src.kind == ActReadError:
			src.perSec = 0.2 * boost
		case profile == "rot" && src.kind == ActRot:
			src.perSec = 0.5 * boost
		case profile == "rot" && src.kind == ActCrash:
			src.perSec = max(src.perSec, 1.5*boost) // what is read is what was written long ago
		case profile == "disk" && src.kind == ActSlowDisk:
			src.perSec = 1.5 * boost
		}
		if src.perSec <= 0 {
			continue
		}
		for at := 0.25; ; {
			at += rng.ExpFloat64() / src.perSec
			if at >= duration.Seconds() {
				break
			}
			a := Action{At: int64(at * 1e9), Kind: src.kind, Node: rng.IntN(n), R: rng.Uint64()}
			a.Peer = (a.Node + 1 + rng.IntN(n-1)) % n
			if src.kind == ActOp {
				a.Node, a.Peer = rng.IntN(p.Clients), 0
				if profile == "snap" && time.Duration(a.At)%(400*time.Millisecond) < 150*time.Millisecond {
					continue // idle leaders cut their logs
				}
			}
			a.Dur = time.Duration(float64(src.dur) * min(rng.ExpFloat64(), 6))
			s.Actions = append(s.Actions, a)
		}
	}
	slices.SortStableFunc(s.Actions, func(a, b Action) int { return cmp.Compare(a.At, b.At) })
	s.aim()
	return s
}

func drawParams(rng *rand.Rand, profile string) Params {
	p := Params{Replicas: 3}
	p.Nodes = 3 + rng.IntN(3)*rng.IntN(2)
	if p.Nodes == 5 && rng.IntN(2) == 0 {
		p.Replicas = 5
	}
	p.Shards = 1 + rng.IntN(6)
	if profile == "many" {
		p.Nodes, p.Shards = maxNodes, 12
	}
	if profile == "snap" {
		p.Shards = 1 + rng.IntN(4)
	}
	if profile == Fleet {
		p.Nodes, p.Replicas, p.Shards = 3, 3, 1000+rng.IntN(2000)
	}
	if profile == "conf" {
		p.Nodes = max(p.Nodes, 5)
		p.Shards = min(p.Shards, 3)
	}
	p.Groups = p.Shards * (1 + rng.IntN(3))
	if profile == "snap" {
		p.Groups = p.Shards * 6
	}
	if profile == Fleet {
		p.Groups = p.Shards
	}
	p.Loops = 1 + rng.IntN(3)*rng.IntN(2)
	p.Clients = 4 + rng.IntN(8)
	if profile == "snap" {
		p.Clients = 16
	}
	p.Support = []time.Duration{200, 300, 500, 900}[rng.IntN(4)] * time.Millisecond
	p.Beat = p.Support / 5
	for i := range p.Drift {
		p.Drift[i] = (rng.Float64() - 0.5) / 100
	}
	p.DelayMin = time.Duration(20+rng.IntN(200)) * time.Microsecond
	p.DelayMean = time.Duration(float64(200*time.Microsecond) * (1 + 20*rng.Float64()*rng.Float64()))
	p.Stream = rng.IntN(3) > 0
	loss, dup := rng.Float64()*rng.Float64()*0.15, rng.Float64()*rng.Float64()*0.3
	if rng.IntN(2) == 0 && profile != "calm" {
		p.Loss = loss
		if p.Stream {
			p.Loss /= 10 // each breaks the stream
		}
	}
	if rng.IntN(2) == 0 && profile != "calm" && !p.Stream {
		p.Dup = dup
	}
	if rng.IntN(3) == 0 && profile != "calm" {
		p.Corrupt = 0.02 * rng.Float64()
	}
	if profile != "calm" {
		p.LostAnswer = 0.05 * rng.Float64()
	}
	p.Compress = rng.IntN(2) == 0
	p.SyncMin = time.Duration(50+rng.IntN(300)) * time.Microsecond
	p.SyncMean = time.Duration(float64(300*time.Microsecond) * (1 + 30*rng.Float64()*rng.Float64()*rng.Float64()))
	p.RoundDelay = time.Duration(rng.IntN(200)) * time.Microsecond
	p.ReadDelay = time.Duration(rng.IntN(400)) * time.Microsecond
	if rng.IntN(3) == 0 {
		p.ReadDelay *= 50
	}
	for i := range 8 {
		if i < 2 || rng.IntN(2) == 0 {
			p.Images = append(p.Images, uint8(i))
		}
	}
	p.NoLease = rng.IntN(4) == 0
	p.Recovery = 0.3 * rng.Float64() * float64(rng.IntN(2))
	p.Reuse = rng.IntN(2) == 0
	p.MemTable = 256 << 10
	p.Payload = []int{16, 100, 400, 2000}[rng.IntN(4)]
	p.Timeout = time.Duration(100+rng.IntN(1500)) * time.Millisecond
	p.SmallBytes = []int{256, 4 << 10, 256 << 10}[rng.IntN(3)]
	p.TableBytes = []int{512, 8 << 10, 1 << 20}[rng.IntN(3)]
	t := &p.Tuning
	if rng.IntN(2) == 0 {
		t.MaxMsgBytes = 512 << rng.IntN(6)
		t.InflightMsgs = 1 + rng.IntN(8)
		t.InflightBytes = 1024 << rng.IntN(6)
		t.UncommittedBytes = 2048 << rng.IntN(6)
		t.TailBytes = 256 << rng.IntN(6)
		t.ApplyBytes = 512 << rng.IntN(8)
	}
	if profile == "snap" || rng.IntN(2) == 0 {
		t.LogKeepEntries = 4 << rng.IntN(5)
		t.LogKeepBytes = 1024 << rng.IntN(5)
	}
	t.IdleTruncate = time.Duration(50+rng.IntN(300)) * time.Millisecond
	t.ElectionRank = time.Duration(2+rng.IntN(30)) * time.Millisecond
	t.ElectionJitter = t.ElectionRank
	t.SnapshotTimeout = 5 * time.Second
	if rng.IntN(2) == 0 {
		p.ChunkDelay = time.Duration(rng.IntN(60)) * time.Millisecond
	}
	if profile == "snap" { // logs are cut soon after somebody is gone, and snapshots take their time
		p.Support = time.Duration(200+rng.IntN(100)) * time.Millisecond
		p.Beat = p.Support / 5
		p.ChunkDelay = time.Duration(rng.IntN(150)) * time.Millisecond
		p.Payload = []int{400, 2000}[rng.IntN(2)]
		p.SmallBytes, p.TableBytes = 256, []int{512, 4 << 10}[rng.IntN(2)]
		t.LogKeepEntries, t.LogKeepBytes = 2<<rng.IntN(3), 512<<rng.IntN(3)
		t.IdleTruncate = time.Duration(20+rng.IntN(60)) * time.Millisecond
	}
	// Who cuts the logs is drawn from what was drawn before, so that runs with the default
	// stay what they were.
	if x := uint64(p.DelayMean) ^ uint64(p.SyncMean); x%2 == 0 {
		t.Cut = 1 + raft.CutPolicy(x/2%cutPolicies)
		t.CutEntries, t.CutBytes = 2<<(x/8%6), 512<<(x/64%6)
	}
	return p
}

// cutPolicies is how many policies there are besides the default.
const cutPolicies = 3
