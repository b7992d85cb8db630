package coverage

import (
	"fmt"
	"strings"

	"github.com/flotillakv/flotilla/multiraft/raft"
)

// Table counts hits. The zero value is empty; a nil table counts nothing.
type Table struct {
	n [Faults][Ops][States]uint64
}

// Hit counts a fault that hit one operation in a state.
func (t *Table) Hit(f Fault, o Op, s State) {
	if t != nil {
		t.n[f][o][s]++
	}
}

// HitAll counts a fault that hit a node where the operations of ops were under
// way; Idle, if there are none.
func (t *Table) HitAll(f Fault, ops Set, s State) {
	if t == nil {
		return
	}
	if ops == 0 {
		ops = 1 << Idle
	}
	for o := range Ops {
		if ops>>o&1 != 0 {
			t.n[f][o][s]++
		}
	}
}

// Add adds the counts of o.
func (t *Table) Add(o *Table) {
	for f := range o.n {
		for p := range o.n[f] {
			for s, k := range o.n[f][p] {
				t.n[f][p][s] += k
			}
		}
	}
}

// Pair returns how often f hit o in any state, and in how many different ones.
func (t *Table) Pair(f Fault, o Op) (hits uint64, states int) {
	for _, k := range t.n[f][o] {
		hits += k
		if k > 0 {
			states++
		}
	}
	return hits, states
}

// Reached returns how many cells of the three dimensions are not empty, and how
// many hits there are in all.
func (t *Table) Reached() (cells int, hits uint64) {
	for f := range Faults {
		for o := range Ops {
			k, s := t.Pair(f, o)
			cells, hits = cells+s, hits+k
		}
	}
	return cells, hits
}

// seen reports whether a kind of fault hit anything at all.
func (t *Table) seen(f Fault) bool {
	for o := range Ops {
		if k, _ := t.Pair(f, o); k > 0 {
			return true
		}
	}
	return false
}

// Cell is one cell of the table that is not empty, for output as data.
type Cell struct {
	Fault     string `json:"fault"`
	Operation string `json:"operation"`
	State     string `json:"state"`
	Hits      uint64 `json:"hits"`
}

// Cells returns the cells that are not empty, by fault, operation and state.
func (t *Table) Cells() []Cell {
	var out []Cell
	for f := range Faults {
		for o := range Ops {
			for s, k := range t.n[f][o] {
				if k > 0 {
					out = append(out, Cell{f.String(), o.String(), State(s).String(), k})
				}
			}
		}
	}
	return out
}

// Text returns the table as Markdown: a line for each kind of fault of the tier,
// a column for each operation; a cell holds the hits and, behind the stroke, in
// how many states of the core. "-" is what cannot happen, with the reasons below,
// and "none" what can and did not.
func (t *Table) Text(tier Tier) string {
	var b strings.Builder
	cells, hits := t.Reached()
	fmt.Fprintf(&b, "%d of fault kinds x operations x states reached, %s hits\n\n| |", cells, short(hits))
	for o := range Ops {
		if tier.has(o) {
			fmt.Fprintf(&b, " %s |", o)
		}
	}
	b.WriteString("\n|---|")
	for o := range Ops {
		if tier.has(o) {
			b.WriteString("---|")
		}
	}
	b.WriteString("\n")
	for f := range Faults {
		if tier.Faults>>f&1 == 0 && !t.seen(f) {
			continue
		}
		fmt.Fprintf(&b, "| %s |", f)
		for o := range Ops {
			if !tier.has(o) {
				continue
			}
			k, s := t.Pair(f, o)
			switch {
			case k > 0:
				fmt.Fprintf(&b, " %s/%d |", short(k), s)
			case tier.why(f, o) != "":
				b.WriteString(" - |")
			default:
				b.WriteString(" none |")
			}
		}
		b.WriteString("\n")
	}
	b.WriteString("\n| state |")
	for o := range Ops {
		if tier.has(o) {
			fmt.Fprintf(&b, " %s |", o)
		}
	}
	b.WriteString("\n|---|")
	for o := range Ops {
		if tier.has(o) {
			b.WriteString("---|")
		}
	}
	b.WriteString("\n")
	for s := range States {
		fmt.Fprintf(&b, "| %s |", s)
		for o := range Ops {
			if tier.has(o) {
				k, kinds := uint64(0), 0
				for f := range Faults {
					k += t.n[f][o][s]
					if t.n[f][o][s] > 0 {
						kinds++
					}
				}
				if k == 0 {
					b.WriteString(" |")
				} else {
					fmt.Fprintf(&b, " %s/%d |", short(k), kinds)
				}
			}
		}
		b.WriteString("\n")
	}
	return b.String()
}

// short writes a count with at most four characters.
func short(k uint64) string {
	switch {
	case k < 10_000:
		return fmt.Sprint(k)
	case k < 10_000_000:
		return fmt.Sprintf("%dk", k/1000)
	case k < 10_000_000_000:
		return fmt.Sprintf("%dM", k/1_000_000)
	}
	return fmt.Sprintf("%dG", k/1_000_000_000)
}

// StateOf returns the state of a replica: st is its core's, in the configuration d.
func StateOf(st *raft.Status, d *raft.Descriptor) State {
	me, ok := d.Replica(st.Replica)
	if !ok {
		return Removed
	}
	s := Follower
	switch {
	case me.Role == raft.Learner:
		s = Learner
	case st.Role == raft.RolePreCandidate:
		s = PreCandidate
	case st.Role == raft.RoleCandidate:
		s = Candidate
	case st.Role == raft.RoleLeader && !st.Ready:
		s = NewLeader
	case st.Role == raft.RoleLeader:
		s = Leader
	}
	if d.IsJoint() {
		s += JointLearner - Learner
	}
	return s
}

// OpOf returns the operation that a message belongs to.
func OpOf(m *raft.Msg) Op {
	switch m.Type {
	case raft.MsgApp:
		if m.Flags&raft.FlagProbe != 0 || len(m.Entries) == 0 {
			return Repair
		}
		return Append
	case raft.MsgAppResp:
		if m.Reject() {
			return Repair
		}
		return Append
	case raft.MsgVote, raft.MsgVoteResp, raft.MsgPreVote, raft.MsgPreVoteResp, raft.MsgLeadQuery:
		return Election
	case raft.MsgTimeoutNow, raft.MsgStepDown:
		return Transfer
	case raft.MsgCommit, raft.MsgCommitResp:
		if m.Round != 0 {
			return QuorumRead
		}
		return Commit
	case raft.MsgFortify, raft.MsgFortifyResp:
		return Fortify
	case raft.MsgNeedSnapshot:
		return SnapSend
	case raft.MsgSnapStatus:
		return SnapInstall
	case raft.MsgReadReq, raft.MsgReadResp:
		return RemoteRead
	case raft.MsgMember, raft.MsgMemberResp:
		return Destroy
	}
	return Idle
}

// TypeOf returns a type of message that belongs to an operation, chosen by r, or
// 0 (records of node liveness) if none does.
func TypeOf(o Op, r uint64) raft.MsgType {
	var types []raft.MsgType
	for k := raft.MsgApp; k <= raft.MsgMemberResp; k++ {
		m := raft.Msg{Type: k}
		if k == raft.MsgApp {
			m.Entries = make([]raft.Entry, 1)
		}
		if OpOf(&m) == o {
			types = append(types, k)
		}
	}
	switch o {
	case Repair:
		types = append(types, raft.MsgApp, raft.MsgAppResp)
	case QuorumRead:
		types = append(types, raft.MsgCommit, raft.MsgCommitResp)
	case Conf, Apply, Compact, Session, Restart:
		types = append(types, raft.MsgApp, raft.MsgCommit)
	}
	if len(types) == 0 {
		return 0
	}
	return types[r%uint64(len(types))]
}
