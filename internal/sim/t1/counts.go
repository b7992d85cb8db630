package t1

import (
	"fmt"
	"sort"
	"strings"
	"time"
)

// Counts says what a run, or many, reached.
type Counts struct {
	Runs       int
	Events     uint64
	Commits    uint64 // entries committed, each counted once
	Applies    uint64 // entries applied by replicas
	Leaders    int    // terms with a leader
	Boots      int    // first starts of nodes
	Reopens    int    // starts of nodes from a disk that a crash or a stop left
	Images     int    // crash images taken, each opened and compared with what it may hold
	Recovery   int    // of them: taken in the middle of an opening
	Batches    int    // synced rounds
	LostSyncs  int    // rounds that were synced and that a crash took back before anybody was told
	Frames     uint64
	Confs      int // configurations applied
	Destroyed  int // replicas
	Headless   int // runs without a liveness phase: a voter without state made a quorum impossible
	SnapsSent  int // snapshots that arrived and were installed
	KeptSent   int // of them, sent from images that leaders keep
	Refused    int // corrupted frames that were refused
	Histories  int // groups of keys whose operations have an order
	Undecided  int // groups for which the search took too long
	Ops        int // operations of clients
	Reads      int
	LeaseReads int  // of them: served by a lease, without asking anybody
	Writes     int  // acknowledged
	Unknown    int  // writes of unknown outcome
	Denied     int  // writes that were refused for certain
	Naps       int  // replicas that fell asleep
	Wakes      int  // and woke
	AsleepRead int  // reads that a sleeping leader served by its lease
	FailStops  int  // nodes that stopped because of their disk
	Refusals   int  // nodes that did not start again because bits of their disk were wrong
	Compared   int  // times that replicas were compared
	Strays     int  // state machines that did what the others do not
	Rebuilt    int  // replicas that were rebuilt after that
	Yields     int  // times that support was given back because a disk stood still
	Stays      int  // runs in which leaders had to last for a while
	Loose      bool // a fault struck Pebble's own goroutines: another run of the seed may differ
	Faults     map[string]int
}

// Add adds o to c.
func (c *Counts) Add(o *Counts) {
	c.Runs += o.Runs
	c.Events += o.Events
	c.Commits += o.Commits
	c.Applies += o.Applies
	c.Leaders += o.Leaders
	c.Boots += o.Boots
	c.Reopens += o.Reopens
	c.Images += o.Images
	c.Recovery += o.Recovery
	c.Batches += o.Batches
	c.LostSyncs += o.LostSyncs
	c.Frames += o.Frames
	c.Confs += o.Confs
	c.Destroyed += o.Destroyed
	c.Headless += o.Headless
	c.SnapsSent += o.SnapsSent
	c.KeptSent += o.KeptSent
	c.Refused += o.Refused
	c.Histories += o.Histories
	c.Undecided += o.Undecided
	c.Ops += o.Ops
	c.Reads += o.Reads
	c.LeaseReads += o.LeaseReads
	c.Writes += o.Writes
	c.Unknown += o.Unknown
	c.Denied += o.Denied
	c.Naps += o.Naps
	c.Wakes += o.Wakes
	c.AsleepRead += o.AsleepRead
	c.FailStops += o.FailStops
	c.Refusals += o.Refusals
	c.Yields += o.Yields
	c.Stays += o.Stays
	c.Compared += o.Compared
	c.Strays += o.Strays
	c.Rebuilt += o.Rebuilt
	for k, v := range o.Faults {
		c.fault(k, v)
	}
}

func (c *Counts) fault(kind string, n int) {
	if c.Faults == nil {
		c.Faults = map[string]int{}
	}
	c.Faults[kind] += n
}

// String returns all counts as text, one subject per line.
func (c *Counts) String() string {
	var kinds []string
	for k := range c.Faults {
		kinds = append(kinds, k)
	}
	sort.Strings(kinds)
	var f strings.Builder
	for _, k := range kinds {
		fmt.Fprintf(&f, " %s=%d", k, c.Faults[k])
	}
	return fmt.Sprintf(`seeds %d, events %d
disk: %d reopens, %d crash images (%d within a recovery), %d synced rounds, %d of them lost untold, %d nodes stopped by their disk, %d not started again, %d gave support back as it stood still
raft: %d terms with a leader, %d entries committed, %d applied, %d configurations, %d replicas destroyed, %d snapshots installed (%d were kept images), %d frames, %d refused
digests: %d comparisons, %d state machines strayed, %d replicas rebuilt
clients: %d operations, %d reads (%d by lease, %d of them asleep), %d writes, %d unknown, %d denied; %d linearizable histories, %d undecided
sleep: %d replicas fell asleep, %d woke
faults:%s`,
		c.Runs, c.Events, c.Reopens, c.Images, c.Recovery, c.Batches, c.LostSyncs, c.FailStops, c.Refusals, c.Yields,
		c.Leaders, c.Commits, c.Applies, c.Confs, c.Destroyed, c.SnapsSent, c.KeptSent, c.Frames, c.Refused,
		c.Compared, c.Strays, c.Rebuilt,
		c.Ops, c.Reads, c.LeaseReads, c.AsleepRead, c.Writes, c.Unknown, c.Denied, c.Histories, c.Undecided, c.Naps, c.Wakes, f.String())
}

// Summary returns one line about a run; it is the same on each run of a seed.
func (r *Result) Summary() string {
	p := &r.Schedule.Params
	return fmt.Sprintf("%d nodes, %d shards, %d loops, %v virtual, %d events; %d reopens, %d images, %d elections, %d entries, %d snapshots; %d operations, %d histories; trace %016x",
		p.Nodes, p.Shards, p.Loops, r.Virtual.Round(time.Millisecond), r.Events, r.Reopens, r.Images, r.Leaders, r.Commits, r.SnapsSent, r.Ops, r.Histories, r.Hash)
}
