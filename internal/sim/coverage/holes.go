package coverage

import "fmt"

// Tier says which faults and operations a simulator has, and which cells cannot
// be reached in it, with the reason.
type Tier struct {
	Name   string
	Faults uint64 // bits
	Ops    Set
	// Seldom are operations that [Table.Missing] does not ask for: they are under
	// way for moments only.
	Seldom Set
	never  []never
}

// never is a set of cells that cannot be reached.
type never struct {
	faults uint64
	ops    Set
	why    string
}

// Hole is a cell that could have been reached and was not.
type Hole struct {
	Fault Fault
	Op    Op
}

// String names the cell.
func (h Hole) String() string { return fmt.Sprintf("%s x %s", h.Fault, h.Op) }

func (t *Tier) has(o Op) bool { return t.Ops>>o&1 != 0 }

// why returns the reason why a cell stays empty; "" if there is none.
func (t *Tier) why(f Fault, o Op) string {
	for i := range t.never {
		if n := &t.never[i]; n.faults>>f&1 != 0 && n.ops>>o&1 != 0 {
			return n.why
		}
	}
	return ""
}

// Reasons lists why cells stay empty.
func (t *Tier) Reasons() []string {
	var out []string
	for i := range t.never {
		out = append(out, t.never[i].why)
	}
	return out
}

// Holes lists the cells of the tier that could have been reached and were not.
func (t *Table) Holes(tier Tier) []Hole {
	var out []Hole
	for f := range Faults {
		for o := range Ops {
			if tier.Faults>>f&1 == 0 || !tier.has(o) || tier.why(f, o) != "" {
				continue
			}
			if k, _ := t.Pair(f, o); k == 0 {
				out = append(out, Hole{f, o})
			}
		}
	}
	return out
}

func faults(list ...Fault) (bits uint64) {
	for _, f := range list {
		bits |= 1 << f
	}
	return bits
}

func ops(list ...Op) (s Set) {
	for _, o := range list {
		s |= 1 << o
	}
	return s
}

func without(s Set, list ...Op) Set { return s &^ ops(list...) }

const allOps = Set(1<<Ops - 1)

var (
	// travel are the operations that consist of messages, one operation per message.
	travel = ops(Election, Fortify, Append, Repair, Commit, SnapSend, SnapInstall, Conf, Transfer, QuorumRead, RemoteRead, Support)
	// perMessage are the faults that hit single messages.
	perMessage = faults(Drop, DropType, Dup, Reorder, Late, Cut, OneWay, Clog, Corrupt)
)

// T0 is the simulator of the Raft cores of one group.
var T0 = Tier{
	Name: "T0",
	Faults: faults(Kill, CrashLost, CrashPart, PowerCut, Stop, Pause, Suspend, WallJump, Drift, SlowDisk, StalledDisk,
		Drop, DropType, Dup, Reorder, Late, Cut, OneWay, Clog, Reset),
	Ops: without(allOps, Session),
	never: []never{
		{perMessage, allOps &^ travel, "a lost, doubled, late or held back message belongs to the operation it is part of; what a node does by itself has none, and the model's questions for membership are not sent"},
		{faults(Drift), without(allOps, Election, LeaseRead, Support), "a clock that is off acts on elections, leases and the support of nodes; it is counted at these"},
		{faults(CrashLost, CrashPart), ops(Idle), "there is something unsynced, so something is under way"},
		{faults(SlowDisk, StalledDisk), ops(Idle), "a sync has something to write"},
		{faults(Kill, CrashLost, CrashPart, PowerCut, Stop, Pause, Suspend, WallJump, SlowDisk, StalledDisk, Reset), ops(Commit), "a commit index is news that travels, not work of a node"},
	},
}

// T1 is the simulator of whole nodes.
var T1 = Tier{
	Name: "T1",
	Faults: faults(Kill, CrashLost, CrashPart, CrashTorn, CrashSubset, CrashZeroed, CrashBlocks, CrashReorder, CrashRecovery, PowerCut, Stop, Pause, Suspend, WallJump, Drift,
		SlowDisk, WriteError, TornWrite, SyncError, SyncLost, ReadError, DiskFull, Rot, Drop, DropType, Dup, Reorder, Late, Cut, OneWay, Clog, Reset, Corrupt, LostAnswer, LateCopy),
	Ops:    allOps,
	Seldom: ops(Apply, SnapInstall),
	never: []never{
		{perMessage, allOps &^ travel &^ ops(Destroy), "a lost, doubled, late or held back message belongs to the operation it is part of; what a node does by itself has none"},
		{faults(Drift), without(allOps, Election, LeaseRead, Support), "a clock that is off acts on elections, leases and the support of nodes; it is counted at these"},
		{faults(LostAnswer, LateCopy), without(allOps, Command, Session), "a fault of a client's connection"},
		{faults(LateCopy), ops(Command), "only commands of sessions come again: any other would be another command"},
		{faults(CrashRecovery), without(allOps, Restart), "the node has no cores yet"},
		{faults(Drop, DropType, Dup, Reorder, Late, Cut), ops(SnapInstall), "an install is answered on the snapshot's own stream; what breaks that is counted as cut one way (the first direction that is cut ends it), clogged, reset or corrupted"},
		{^perMessage, ops(Commit), "a commit index is news that travels, not work of a node"},
	},
}

// Class is a group of faults that hit in a similar way.
type Class struct {
	Name   string
	faults uint64
}

// Classes are the classes of faults.
var Classes = []Class{
	{"crashes", faults(Kill, CrashLost, CrashPart, CrashTorn, CrashSubset, CrashZeroed, CrashBlocks, CrashReorder, PowerCut)},
	{"nodes that stop or stand still", faults(Stop, Pause, Suspend, WallJump)},
	{"disks", faults(SlowDisk, StalledDisk, WriteError, TornWrite, SyncError, SyncLost, ReadError, DiskFull, Rot)},
	{"messages", faults(Drop, DropType, Dup, Reorder, Late, Corrupt)},
	{"links", faults(Cut, OneWay, Clog, Reset)},
}

// Missing lists what even a few hundred runs must reach: every class of faults
// hits every operation, and every fault hits at least three (all, if it can hit
// fewer). [Table.Holes] asks for every single cell, which takes minutes.
func (t *Table) Missing(tier Tier) []string {
	var out []string
	for _, c := range Classes {
		for o := range Ops {
			can, did := false, tier.Seldom>>o&1 != 0
			for f := range Faults {
				if c.faults>>f&1 != 0 && tier.Faults>>f&1 != 0 && tier.has(o) && tier.why(f, o) == "" {
					k, _ := t.Pair(f, o)
					can, did = true, did || k > 0
				}
			}
			if can && !did {
				out = append(out, c.Name+" x "+o.String())
			}
		}
	}
	for f := range Faults {
		if tier.Faults>>f&1 == 0 {
			continue
		}
		can, did := 0, 0
		for o := range Ops {
			if tier.has(o) && tier.why(f, o) == "" {
				can++
				if k, _ := t.Pair(f, o); k > 0 {
					did++
				}
			}
		}
		if did < min(can, 3) {
			out = append(out, fmt.Sprintf("%s x at least %d operations", f, min(can, 3)))
		}
	}
	return out
}
