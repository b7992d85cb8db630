package rafttest

import (
	"fmt"
	"strings"

	"github.com/flotillakv/flotilla/multiraft/raft"
)

var names = [...]string{
	raft.MsgApp: "App", raft.MsgAppResp: "AppResp", raft.MsgVote: "Vote", raft.MsgVoteResp: "VoteResp",
	raft.MsgPreVote: "PreVote", raft.MsgPreVoteResp: "PreVoteResp", raft.MsgTimeoutNow: "TimeoutNow",
	raft.MsgCommit: "Commit", raft.MsgCommitResp: "CommitResp", raft.MsgFortify: "Fortify", raft.MsgFortifyResp: "FortifyResp",
	raft.MsgStepDown: "StepDown", raft.MsgLeadQuery: "LeadQuery", raft.MsgNeedSnapshot: "NeedSnapshot",
	raft.MsgSnapStatus: "SnapStatus", raft.MsgReadReq: "ReadReq", raft.MsgReadResp: "ReadResp",
	raft.MsgMember: "Member", raft.MsgMemberResp: "MemberResp", raft.MsgForgot: "Forgot",
}

func msgName(m *raft.Msg) string {
	if m.Type == 0 {
		return "Snapshot"
	}
	return names[m.Type]
}

// format draws a message as one line.
func format(m *raft.Msg) string {
	var b strings.Builder
	fmt.Fprintf(&b, "%d->%d %s t%d", m.From, m.To, msgName(m), m.Term)
	switch m.Type {
	case raft.MsgApp:
		fmt.Fprintf(&b, " prev=%d/%d %s commit=%d", m.Index, m.LogTerm, formatEntries(m.Entries), m.Commit)
	case raft.MsgAppResp:
		if m.Reject() {
			fmt.Fprintf(&b, " refuses %d, hint %d/%d", m.Commit, m.Index, m.LogTerm)
		} else {
			fmt.Fprintf(&b, " match=%d", m.Index)
		}
	case raft.MsgVote, raft.MsgPreVote:
		fmt.Fprintf(&b, " last=%d/%d", m.Index, m.LogTerm)
		if m.Flags&raft.FlagGrant != 0 {
			b.WriteString(" by grant")
		}
	case raft.MsgVoteResp, raft.MsgPreVoteResp:
		if m.Reject() {
			b.WriteString(" no")
		} else {
			b.WriteString(" yes")
		}
	case raft.MsgCommit:
		fmt.Fprintf(&b, " commit=%d", m.Commit)
	}
	if m.Round != 0 {
		fmt.Fprintf(&b, " round=%d", m.Round)
	}
	return b.String()
}

func formatEntries(ents []raft.Entry) string {
	if len(ents) == 0 {
		return "[]"
	}
	if len(ents) > 4 {
		return fmt.Sprintf("[%d/%d..%d/%d]", ents[0].Index, ents[0].Term, ents[len(ents)-1].Index, ents[len(ents)-1].Term)
	}
	var s []string
	for _, e := range ents {
		s = append(s, fmt.Sprintf("%d/%d:%s", e.Index, e.Term, body(e)))
	}
	return "[" + strings.Join(s, " ") + "]"
}

func formatConf(d *raft.Descriptor) string {
	var s []string
	for _, r := range d.Replicas {
		s = append(s, fmt.Sprintf("%d.%d %s", r.Node, r.ID, [...]string{"", "voter", "learner", "incoming", "outgoing", "demoting"}[r.Role]))
	}
	return strings.Join(s, ", ")
}
