package flotilla

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"sync/atomic"
	"time"

	"github.com/flotillakv/flotilla/engine"
	"github.com/flotillakv/flotilla/internal/mutants"
	"github.com/flotillakv/flotilla/multiraft/liveness"
	"github.com/flotillakv/flotilla/multiraft/raft"
	"github.com/flotillakv/flotilla/shard"
)

// How often a node looks at its disk.
const (
	diskTick = 200 * time.Millisecond // at what others say, and whether syncs stand still
	diskLook = time.Second            // at all files of the store, while there is room
	// diskShare: looking at the files takes no more than this part of the time.
	diskShare = 50
	// shedAtOnce bounds the leaderships that a node with a full disk hands over per look.
	shedAtOnce = 64
)

// DefaultBallast is what flotilla serve keeps as ballast, unless it is told otherwise.
const DefaultBallast = 1 << 30

// The overload scores by which nodes tell each other how their disks are.
const (
	scoreWarning  = 96
	scoreFull     = 160
	scoreCritical = 224
)

func spaceScore(s engine.SpaceState) uint8 {
	return [...]uint8{0, scoreWarning, scoreFull, scoreCritical}[min(s, engine.SpaceCritical)]
}

// diskWatch is what a node knows about its own disk and those of others.
type diskWatch struct {
	state   atomic.Uint32 // engine.SpaceState
	stalled atomic.Bool
	// tight: the own disk is full, or that of some other node is. Only then a write
	// costs a closer look.
	tight   atomic.Bool
	look    chan struct{} // capacity 1: look at the space now
	refused atomic.Uint64 // writes refused for want of space
	stalls  atomic.Uint64 // how often the disk stood still
	shed    atomic.Uint64 // leaderships handed over because of the disk
}

// DiskStats is what a node knows about its disk.
type DiskStats struct {
	// Space is what the store takes and what is left, as of the last look: a second
	// ago while there is room, less when there is little.
	Space engine.Space
	// Stalled: the disk takes no writes now. Stalls counts how often that began.
	Stalled bool
	Stalls  uint64
	// Refused counts the writes that were refused because disks are full.
	Refused uint64
	// Shed counts the leaderships handed over because the disk was full.
	Shed uint64
}

func (n *Node) diskStats() DiskStats {
	d := &n.disk
	return DiskStats{Space: n.eng.Space(), Stalled: d.stalled.Load(), Stalls: d.stalls.Load(), Refused: d.refused.Load(), Shed: d.shed.Load()}
}

// lookAtDisk takes one look, and returns how long to wait for the next one.
func (n *Node) lookAtDisk() time.Duration {
	s, took, err := n.eng.LookAtSpace()
	if err != nil {
		n.log.Debug("the disk's space is not known", "err", err)
		return diskLook
	}
	was := engine.SpaceState(n.disk.state.Swap(uint32(s.State)))
	if s.State >= engine.SpaceFull {
		n.disk.tight.Store(true) // now, not at the next tick
	}
	if s.State != was {
		n.log.Warn("the disk's space", "state", s.State, "was", was, "used", s.Used, "limit", s.Limit, "free", s.Free, "total", s.Total, "ballast", s.Ballast)
		n.tellDisk()
		if s.State == engine.SpaceCritical {
			if held := n.cuts.end(false); held > 0 { // they keep files that are not needed otherwise
				n.log.Warn("views that backups read were given up: the disk is nearly used up", "views", held)
			}
		}
	}
	wait := diskLook
	if s.State != engine.SpaceOK {
		wait = diskTick
	}
	return max(wait, diskShare*took)
}

// spaceLoop looks at the space on the disk, which may take as long as the disk
// stands still.
func (n *Node) spaceLoop() {
	t := time.NewTimer(diskTick)
	defer t.Stop()
	for {
		select {
		case <-n.stop:
			return
		case <-t.C:
		case <-n.disk.look:
		}
		t.Reset(n.lookAtDisk())
		// What is left of cut snapshots goes in time, or when it is in the way.
		n.snaps.Sweep(engine.SpaceState(n.disk.state.Load()) >= engine.SpaceFull)
	}
}

// diskLoop notes what others say about their disks, and whether the own one
// stands still. It never touches the disk.
func (n *Node) diskLoop() {
	t := time.NewTicker(diskTick)
	defer t.Stop()
	for shed := 0; ; shed++ {
		select {
		case <-n.stop:
			return
		case <-t.C:
		}
		if n.eng.SpaceGoing(4) {
			n.lookSoon()
		}
		n.disk.tight.Store(n.takesNoGrowth() || slices.ContainsFunc(n.live.Snapshot(), func(p liveness.PeerState) bool { return p.Score >= scoreFull }))
		if since, stalled := n.live.Stalled(); stalled != n.disk.stalled.Load() {
			n.disk.stalled.Store(stalled)
			if stalled {
				n.disk.stalls.Add(1)
				n.log.Error("the disk stands still: leaderships go to other nodes", "since", since)
			} else {
				n.log.Warn("the disk takes writes again")
			}
			n.tellDisk()
		}
		if shed%5 == 0 && n.takesNoGrowth() {
			n.shedLeaders()
		}
	}
}

// lookSoon has spaceLoop look now.
func (n *Node) lookSoon() {
	select {
	case n.disk.look <- struct{}{}:
	default:
	}
}

func (n *Node) tellDisk() {
	s := n.diskStats()
	n.events.disk(DiskEvent{State: s.Space.State.String(), Stalled: s.Stalled, Used: s.Space.Used, Room: s.Space.Room()})
}

// takesNoGrowth says that the own disk is full, or may be since the last look.
func (n *Node) takesNoGrowth() bool {
	return n.eng.SpaceGoing(1) || engine.SpaceState(n.disk.state.Load()) >= engine.SpaceFull
}

// fullNodes lists the voters of d whose disks are full, and whether the rest is
// enough for a majority, in both halves of a joint configuration.
func (n *Node) fullNodes(d *raft.Descriptor) (full []raft.NodeID, majority bool) {
	self := raft.NodeID(n.ID())
	peers := n.live.Snapshot()
	isFull := func(node raft.NodeID) bool {
		if node == self {
			return n.takesNoGrowth()
		}
		i, ok := slices.BinarySearchFunc(peers, node, func(p liveness.PeerState, node raft.NodeID) int { return int(p.Node) - int(node) })
		return ok && peers[i].Score >= scoreFull
	}
	var all, able [2]int // of the old and the new half
	for _, r := range d.Replicas {
		if !r.Role.IsVoter() {
			continue
		}
		f := isFull(r.Node)
		if f {
			full = append(full, r.Node)
		}
		for half, in := range [2]bool{r.Role != raft.VoterIncoming, r.Role == raft.Voter || r.Role == raft.VoterIncoming} {
			if in {
				all[half]++
				if !f {
					able[half]++
				}
			}
		}
	}
	slices.Sort(full)
	return full, able[0] > all[0]/2 && able[1] > all[1]/2
}

// growth refuses writes that add data to a shard led here when the disk here is
// full, or so many others are that no majority could take it. The catalog's shard
// is not refused: administration goes on.
func (n *Node) growth(d *raft.Descriptor, c raft.Command) error {
	if n.eng.SpaceGoing(4) {
		n.lookSoon()
	}
	if !n.disk.tight.Load() && !n.eng.SpaceGoing(1) || d.Keyspace == 0 || mutants.On("H2c") {
		return nil
	}
	if v, ok := n.host.View(d.Shard); !ok || !v.IsLeader {
		return nil // whoever leads decides
	}
	if !shard.Grows(c) {
		return nil
	}
	full, majority := n.fullNodes(d)
	if majority && !n.takesNoGrowth() {
		return nil
	}
	n.disk.refused.Add(1)
	return &shard.DiskFullError{Shard: d.Shard, Nodes: full}
}

// shedLeaders hands leaderships to nodes that have space, where a majority has:
// the shards can be written to then, while this node only follows.
func (n *Node) shedLeaders() {
	ctx, cancel := context.WithTimeout(context.Background(), diskTick)
	defer cancel()
	left := shedAtOnce
	for _, v := range n.host.AwakeViews() {
		if left == 0 || ctx.Err() != nil {
			return
		}
		if !v.IsLeader || !v.IsReady {
			continue
		}
		full, majority := n.fullNodes(&v.Desc)
		if !majority {
			continue
		}
		if to := n.successorBut(&v, full); to != 0 && n.host.Transfer(ctx, v.Shard, to) == nil {
			n.disk.shed.Add(1)
			left--
		}
	}
}

// diskText says in one sentence what is wrong with a node's disk; "": nothing.
func diskText(n *NodeInfo) string {
	var parts []string
	if n.DiskStalled {
		parts = append(parts, "takes no writes now (it stands still)")
	}
	taken := mib(n.DiskUsed) + " taken"
	if n.DiskLimit > 0 {
		taken += " of " + mib(n.DiskLimit)
	}
	taken += ", " + mib(n.DiskRoom) + " left"
	switch n.DiskState {
	case "warning":
		parts = append(parts, "is filling up ("+taken+")")
	case "full":
		parts = append(parts, "is full ("+taken+"): writes that add data are refused, deletes are not")
	case "critical":
		parts = append(parts, "is nearly used up ("+taken+"): the node stops when its log cannot be written; make space now")
	}
	if len(parts) == 0 {
		return ""
	}
	return fmt.Sprintf("the disk of n%d %s", n.ID, strings.Join(parts, " and "))
}

func mib(n int64) string { return fmt.Sprintf("%d MiB", n>>20) }
