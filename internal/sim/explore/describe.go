package explore

import (
	"fmt"
	"strings"

	"github.com/flotillakv/flotilla/multiraft/raft"
)

// Describe is Model.
func (m *Group) Describe(w *World, act uint64) string {
	if act == 0 {
		return "a leader is elected and its first entry committed"
	}
	kind, i, arg := uint8(act>>40), int(act>>32&0xff), uint32(act)
	stays := kind&repeated != 0
	kind &^= repeated
	r := m.local(w.node[i], kind, arg)
	unsynced := kind&slow != 0
	kind &^= slow
	var b strings.Builder
	fmt.Fprintf(&b, "node %d ", i+1)
	switch kind {
	case actDeliver:
		fmt.Fprintf(&b, "receives %s", FormatMsg(&m.msgs[arg].m))
		if stays {
			b.WriteString(" (and again, later)")
		}
	case actPersist:
		b.WriteString("has synced its oldest batch")
	case actCrash:
		fmt.Fprintf(&b, "crashes, loses %d batches, and restarts", len(m.nodes[w.node[i]].pending))
	case actFire:
		fmt.Fprintf(&b, "timer: %v", raft.TimerKind(arg>>8))
		if p := arg & 0xff; p != 0 {
			fmt.Fprintf(&b, " of %d", p)
		}
	case actPropose:
		b.WriteString("proposes")
	case actConf:
		b.WriteString("proposes a configuration change")
	case actRead:
		fmt.Fprintf(&b, "begins a read, committed are %d", arg)
	case actTransfer:
		fmt.Fprintf(&b, "hands the leadership to %d", arg)
	case actLapse:
		fmt.Fprintf(&b, "counts node %d's support no more", arg+1)
	case actCut:
		b.WriteString("counts nobody's support any more")
	case actCount:
		fmt.Fprintf(&b, "counts node %d's support", arg+1)
	case actAccept:
		fmt.Fprintf(&b, "supports node %d at epoch %d.%d", arg&0xff+1, arg>>8&0xff, arg>>16)
	case actWithdraw:
		fmt.Fprintf(&b, "withdraws its support for node %d", arg+1)
	}
	if unsynced {
		b.WriteString(", the disk is slow")
	}
	if r.fail != 0 {
		return b.String()
	}
	n := m.nodes[r.next]
	fmt.Fprintf(&b, " -> %v t%d last %d/t%d commit %d", n.st.Role, n.st.Term, n.st.Last, n.st.LastTerm, n.st.Commit)
	if n.leased {
		b.WriteString(" leased")
	}
	if k := len(n.pending); k > 0 {
		fmt.Fprintf(&b, ", %d unsynced", k)
	}
	for _, id := range m.sent[r.msgs : r.msgs+uint32(r.n)] {
		fmt.Fprintf(&b, "; sends %s", FormatMsg(&m.msgs[id].m))
	}
	return b.String()
}

var msgNames = [...]string{"?", "App", "AppResp", "Vote", "VoteResp", "PreVote", "PreVoteResp", "TimeoutNow", "Commit", "CommitResp",
	"Fortify", "FortifyResp", "StepDown", "LeadQuery", "NeedSnapshot", "SnapStatus", "ReadReq", "ReadResp"}

// FormatMsg writes a message in a few words.
func FormatMsg(m *raft.Msg) string {
	var b strings.Builder
	name := "?"
	if int(m.Type) < len(msgNames) {
		name = msgNames[m.Type]
	}
	fmt.Fprintf(&b, "%s %d>%d t%d", name, m.From, m.To, m.Term)
	if m.Index != 0 || m.LogTerm != 0 {
		fmt.Fprintf(&b, " at %d/t%d", m.Index, m.LogTerm)
	}
	for i := range m.Entries {
		fmt.Fprintf(&b, " +%d/t%d%s", m.Entries[i].Index, m.Entries[i].Term, [...]string{"?", "-", "", "conf", "admin", "cut"}[m.Entries[i].Type])
	}
	if m.Commit != 0 {
		fmt.Fprintf(&b, " commit %d", m.Commit)
	}
	if m.Epoch != 0 {
		fmt.Fprintf(&b, " epoch %d.%d", m.Epoch>>32, uint32(m.Epoch))
	}
	if m.Round != 0 {
		fmt.Fprintf(&b, " round %d", m.Round)
	}
	for k, s := range [...]string{" reject", " fortify", " grant", " probe"} {
		if m.Flags>>k&1 != 0 {
			b.WriteString(s)
		}
	}
	return b.String()
}
