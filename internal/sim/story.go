package sim

import (
	"fmt"
	"math/bits"
	"strings"
	"time"

	"github.com/flotillakv/flotilla/internal/sim/coverage"
)

// maxStory bounds the turns of a run's story.
const maxStory = 20_000

// turn is one thing worth telling about a run. It is kept unformatted.
type turn struct {
	at   int64
	node int
	what string
	a, b uint64
	act  *Action
}

// tell notes a turn of the story.
func (w *World) tell(node int, what string, a, b uint64) {
	if len(w.res.turns) < maxStory {
		w.res.turns = append(w.res.turns, turn{at: w.now, node: node, what: what, a: a, b: b})
	}
}

// Trace returns the line that is the same for equal runs: "trace" and the hash
// of everything that happened.
func (r *Result) Trace() string { return fmt.Sprintf("trace %016x", r.Hash) }

// Story returns what happened in a run in words, one line per turn, with the
// parameters before and the figures behind. It is the same for equal runs.
func (r *Result) Story() string {
	var b strings.Builder
	p := &r.Schedule.Params
	fmt.Fprintf(&b, "seed %d, profile %s: %s\n", r.Schedule.Seed, r.Schedule.Profile, p.words())
	fmt.Fprintf(&b, "%d actions in %v: %s\n\n", len(r.Schedule.Actions), r.Schedule.Duration, r.Schedule.words())
	for i := range r.turns {
		if s := r.turns[i].words(); s != "" {
			fmt.Fprintf(&b, "%12.6f s  %s\n", float64(r.turns[i].at)/1e9, s)
		}
	}
	if len(r.turns) == maxStory {
		b.WriteString("              (and so on)\n")
	}
	b.WriteString("\n")
	b.WriteString(r.Figures())
	b.WriteString("\n")
	if r.Failure == nil {
		fmt.Fprintf(&b, "no rule was violated; checked after every step (docs/testing.md says what each means): %s\n", strings.Join(oracleIDs(), " "))
	}
	return b.String()
}

// Figures returns what a run reached, in one line.
func (r *Result) Figures() string {
	s := fmt.Sprintf("%v of virtual time, %d events: %d leaders, %d entries committed, %d configurations, %d crashes, %d snapshots, %d commands acknowledged, %d reads answered",
		r.Virtual.Round(time.Millisecond), r.Events, r.Leaders, r.Commits, r.Confs, r.Crashes, r.Snaps, r.Acks, r.Reads)
	if r.Amnesias > 0 {
		s += fmt.Sprintf(", %d disks that came back older than they were, %d of them found out", r.Amnesias, r.Forgot)
	}
	if r.Halted {
		s += "; a majority forgot, and the group halted"
	}
	if r.Headless {
		s += "; a voter without state made a quorum impossible, so progress was not asked for"
	}
	return s
}

// words describes the parameters of a run.
func (p *Params) words() string {
	var b strings.Builder
	fmt.Fprintf(&b, "%d nodes, of which 1 to %d start as voters. ", p.Nodes, p.Voters)
	link := "messages overtake each other"
	if p.Stream {
		link = "messages stay in order"
	}
	fmt.Fprintf(&b, "A hop takes %v and more, mostly below %v; %s", p.DelayMin, (p.DelayMin + 2*p.DelayMean).Round(10*time.Microsecond), link)
	if p.Loss > 0 {
		fmt.Fprintf(&b, "; %.1f %% are lost", p.Loss*100)
	}
	if p.Dup > 0 {
		fmt.Fprintf(&b, "; %.1f %% come twice", p.Dup*100)
	}
	fmt.Fprintf(&b, ". A disk sync takes %v and more, mostly below %v. A node counts as alive for %v after a heartbeat", p.SyncMin, (p.SyncMin + 2*p.SyncMean).Round(10*time.Microsecond), p.Support)
	return b.String()
}

// words counts the actions of a schedule by kind.
func (s *Schedule) words() string {
	var n [len(actionNames)]int
	for i := range s.Actions {
		n[s.Actions[i].Kind]++
	}
	var out []string
	for k, c := range n {
		if c > 0 {
			out = append(out, fmt.Sprintf("%d %s", c, actionNames[k]))
		}
	}
	if len(out) == 0 {
		return "none"
	}
	return strings.Join(out, ", ")
}

// words describes one turn; "" where it is not worth a line.
func (t *turn) words() string {
	n := t.node + 1
	if t.act != nil {
		return t.act.words()
	}
	switch t.what {
	case "boot":
		if t.a == 1 {
			return fmt.Sprintf("node %d starts", n)
		}
		return fmt.Sprintf("node %d starts again from its disk", n)
	case "crash":
		return fmt.Sprintf("node %d crashes; %d of %d unsynced writes survive", n, t.a, t.b)
	case "leads":
		return fmt.Sprintf("node %d leads term %d; its log ends at %d", n, t.a, t.b)
	case "conf":
		return fmt.Sprintf("entry %d makes configuration %d (node %d is first to apply it)", t.a, t.b, n)
	case "install":
		return fmt.Sprintf("node %d installs a snapshot of entry %d as replica %d", n, t.a, t.b)
	case "destroy":
		return fmt.Sprintf("node %d removes its replica %d", n, t.a)
	case "heal":
		return fmt.Sprintf("the faults end: %s are healthy from here on, the others stay broken; now there must be progress", nodeList(t.a))
	case "hurt":
		return fmt.Sprintf("node %d stays %s", n, brokenWords[t.a])
	case "hand":
		return fmt.Sprintf("node %d has to lead next: the leader is asked to hand over", n)
	case "struck":
		return fmt.Sprintf("node %d is in the middle of what a fault waited for: %s", n, coverage.Op(t.a))
	case "live":
		return fmt.Sprintf("every healthy voter led in turn, kept what it had, and all healthy members hold entry %d", t.b)
	}
	return ""
}

func nodeList(set uint64) string {
	var s []string
	for i := range 64 {
		if set>>i&1 != 0 {
			s = append(s, fmt.Sprint(i+1))
		}
	}
	if bits.OnesCount64(set) == 1 {
		return "node " + s[0]
	}
	return "nodes " + strings.Join(s, ", ")
}

// words describes an action; "" for those of clients.
func (a *Action) words() string {
	n, q, d := a.Node+1, a.Peer+1, a.Dur.Round(time.Millisecond)
	switch a.Kind {
	case ActCrash, ActKillLeader, ActPropose, ActRead:
		return "" // the crash itself is told
	case ActCrashAll:
		return fmt.Sprintf("power cut: all nodes crash, for about %v", d)
	case ActIsolate:
		return fmt.Sprintf("node %d is cut off for %v", n, d)
	case ActIsolateIn:
		return fmt.Sprintf("node %d hears nothing for %v", n, d)
	case ActIsolateOut:
		return fmt.Sprintf("node %d is not heard for %v", n, d)
	case ActSplit:
		return fmt.Sprintf("the network splits for %v: nodes are on the side of bits %08b", d, uint8(a.R))
	case ActCut:
		return fmt.Sprintf("nothing gets from node %d to node %d for %v", n, q, d)
	case ActCutBoth:
		return fmt.Sprintf("nothing gets between node %d and node %d for %v", n, q, d)
	case ActClog:
		return fmt.Sprintf("the link from node %d to node %d holds everything back for %v", n, q, d)
	case ActSlowDisk:
		return fmt.Sprintf("the disk of node %d takes up to %v per sync, for %v", n, d, 3*d)
	case ActSlowLeader:
		return fmt.Sprintf("the disk of the leader takes up to %v per sync, for %v", d, 3*d)
	case ActPause:
		return fmt.Sprintf("node %d stands still for %v", n, d)
	case ActSuspend:
		return fmt.Sprintf("the machine of node %d is suspended for %v", n, d)
	case ActWall:
		return fmt.Sprintf("somebody sets the wall clock of node %d by at most %v", n, d)
	case ActReset:
		return fmt.Sprintf("the stream between node %d and node %d breaks", n, q)
	case ActDropType:
		return fmt.Sprintf("messages of one type are lost for %v", d)
	case ActFollow:
		return fmt.Sprintf("the leader is cut off for %v", d)
	case ActStorm:
		return fmt.Sprintf("a third of all messages is lost for %v", d)
	case ActTransfer:
		return "a transfer of the leadership is asked for"
	case ActConf:
		return "a membership change is asked for"
	case ActCampaign:
		return fmt.Sprintf("node %d campaigns", n)
	case ActDuel:
		return "all nodes campaign"
	case ActStop:
		return fmt.Sprintf("node %d stops in order, for %v", n, d)
	case ActOldDisk:
		return fmt.Sprintf("somebody tries to put an old copy of the disk of node %d back", n)
	case ActMinority:
		return fmt.Sprintf("the leader is left with a minority for %v; then the links come back one by one", d)
	case ActStall:
		return fmt.Sprintf("the disk of node %d halts for %v", n, d)
	case ActLate:
		return fmt.Sprintf("half of all messages have late copies for %v", d)
	case ActSnap:
		return fmt.Sprintf("node %d sends node %d a snapshot nobody asked for", n, q)
	}
	return a.Kind.String()
}

// Replay returns the command that runs this run again. A run of a given
// schedule is run again by its file; see [File].
func (r *Result) Replay() string {
	if r.opts.Schedule != nil {
		return "flotilla sim replay FILE (the run had a schedule of its own)"
	}
	s := fmt.Sprintf("flotilla sim run --seed %d --profile %s", r.Schedule.Seed, r.Schedule.Profile)
	if r.opts.Duration != 0 {
		s += fmt.Sprintf(" --duration %v", r.opts.Duration)
	}
	if r.opts.Nodes != 0 {
		s += fmt.Sprintf(" --nodes %d", r.opts.Nodes)
	}
	return s
}

// Report returns what a reader of a failure needs: what rule was violated and
// how, by which seed of which program, the last events, and how to see it
// again. It is empty if the run passed.
func (r *Result) Report(lines int) string {
	f := r.Failure
	if f == nil {
		return ""
	}
	var b strings.Builder
	fmt.Fprintf(&b, "FAILED at %v of virtual time: %s\n", f.At, OracleWords(f.Oracle))
	fmt.Fprintf(&b, "  %s\n", strings.ReplaceAll(f.Detail, "\n", "\n  "))
	fmt.Fprintf(&b, "seed %d, profile %s, commit %s\nreplay: %s\n", r.Schedule.Seed, r.Schedule.Profile, Commit(), r.Replay())
	if lines > 0 && f.Tail != "" {
		tail := strings.SplitAfter(f.Tail, "\n")
		tail = tail[max(0, len(tail)-lines-1):]
		fmt.Fprintf(&b, "the last %d events (time, node, event; message fields: t term, i index, lt term of the entry before, c commit index):\n%s", len(tail)-1, strings.Join(tail, ""))
	}
	return b.String()
}

// Oracle is one rule that runs are checked against.
type Oracle struct {
	ID    string
	Words string
	// T0 tells whether runs of this package check it; the others are checked by
	// the simulator of whole nodes (package t1), or where T0 says so in part.
	T0 bool
}

// Oracles lists the rules, with what each means.
func Oracles() []Oracle {
	return []Oracle{
		{"S1", "at most one leader per term", true},
		{"S2", "logs match: equal index and term means equal entries before, and only the term's leader makes entries", true},
		{"S3", "a leader has every entry committed before its term; nothing committed is overwritten", true},
		{"S4", "the same entry at the same index everywhere, applied once and in order", true},
		{"S5", "commit and applied index stay within the log and never go back", true},
		{"S6", "no promise leaves before its record is durable; committed means durable on a quorum", true},
		{"S7", "one vote per replica and term over all restarts", true},
		{"S8", "the state on disk is the log replayed through the applied index, at every crash point", false},
		{"S9", "a command takes effect at most once", true},
		{"S10", "consecutive quorums meet; the configuration is the fold of the log, one change at a time", true},
		{"S11", "only live replicas and voters take part", true},
		{"S12", "every key lies in exactly one newest shard", false},
		{"S13", "no command is applied outside of its shard's range and version", false},
		{"S14", "no support is withdrawn while its beneficiary counts on it; serving intervals of two leaders are disjoint", true},
		{"S15", "reads see everything that was committed before they began", true},
		{"S16", "what is reported as definitely not done is never done", true},
		{"S17", "a snapshot is the state of one instant", true},
		{"S18", "the log has no hole, and nothing is cut that is not applied", true},
		{"S19", "what a node holds in memory and in its queues is bounded", true},
		{"S20", "equal state at equal applied index", true},
		{"L1", "with a healthy quorum there is progress", true},
		{"L2", "a leader that kept its quorum stays", true},
		{"L3", "every healthy member catches up", true},
		{"L4", "who sleeps wakes when there is something to do", true},
		{"L5", "nothing is left over after the healing", true},
		{"F1", "a node that cannot go on stops with a reason", true},
		{"F2", "a request that is not allowed is refused and changes nothing", true},
	}
}

func oracleIDs() []string {
	var ids []string
	for _, o := range Oracles() {
		if o.T0 {
			ids = append(ids, o.ID)
		}
	}
	return ids
}

// OracleWords returns a rule's id and what it means.
func OracleWords(id string) string {
	for _, o := range Oracles() {
		if o.ID == id {
			return id + " (" + o.Words + ")"
		}
	}
	switch id {
	case "panic":
		return "the code under test panicked"
	case "spin":
		return "events without end at one instant"
	}
	return id
}
