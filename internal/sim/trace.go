package sim

import (
	"fmt"
	"strings"
	"time"

	"github.com/flotillakv/flotilla/multiraft/raft"
)

// traceKeep is how many of the last trace records a run keeps for printing.
const traceKeep = 4096

// record is one line of the trace. Records are kept unformatted; their numbers
// enter the trace hash.
type record struct {
	at   int64
	node int
	what string
	a, b uint64
	msg  *raft.Msg // immutable once recorded
	act  bool      // an action of the schedule; what names it
}

// tracer hashes every record and keeps the last ones.
type tracer struct {
	hash uint64
	n    uint64
	ring []record
	feed *Feed // gets every record; nil: none
}

// add appends one record.
func (t *tracer) add(r record) {
	h := t.hash
	h = mix(h, uint64(r.at))
	h = mix(h, uint64(r.node)<<8|uint64(len(r.what)))
	h = mix(h, r.a)
	h = mix(h, r.b)
	if m := r.msg; m != nil {
		h = mix(h, uint64(m.Type)|uint64(m.Flags)<<8|uint64(m.From)<<16|uint64(m.To)<<32)
		h = mix(h, uint64(m.Term)<<32|uint64(m.LogTerm))
		h = mix(h, uint64(m.Index))
		h = mix(h, uint64(m.Commit)<<32^uint64(m.CompactTo))
		h = mix(h, uint64(m.Epoch)^m.Round<<48)
		h = mix(h, uint64(len(m.Entries)))
	}
	t.hash = h
	if t.feed != nil {
		t.feed.put(&r)
	}
	if len(t.ring) < traceKeep {
		t.ring = append(t.ring, r)
	} else {
		t.ring[t.n%traceKeep] = r
	}
	t.n++
}

// tail formats the last n records, oldest first, one line each.
func (t *tracer) tail(n int) string {
	n = min(n, len(t.ring))
	var b strings.Builder
	for i := t.n - uint64(n); i < t.n; i++ {
		t.ring[i%traceKeep].format(&b)
	}
	return b.String()
}

func (r *record) format(b *strings.Builder) {
	fmt.Fprintf(b, "%12.6f ", float64(r.at)/1e9)
	if r.node >= 0 {
		fmt.Fprintf(b, "n%d ", r.node+1)
	} else {
		b.WriteString("-- ")
	}
	if r.msg != nil {
		fmt.Fprintf(b, "%-8s %s\n", r.what, FormatMsg(r.msg))
		return
	}
	what := r.what
	if r.act {
		what = "do " + what
	}
	fmt.Fprintf(b, "%-8s", what)
	r.named(func(name string, v uint64) {
		if name == "for" {
			fmt.Fprintf(b, " for %v", time.Duration(v))
			return
		}
		fmt.Fprintf(b, " %s=%d", name, v)
	})
	b.WriteString("\n")
}

// fields are the names of the two numbers of an event.
var fields = map[string][2]string{
	"boot": {"life", "epoch"}, "crash": {"kept", "unsynced"}, "synced": {"batches", "waiting"}, "conf": {"index", "conf"}, "conf-no": {"index", "conf"},
	"ask-conf": {"index", "refusal"}, "ask-bad": {"index", "refusal"}, "truncate": {"from", "to"}, "read": {"id", "need"}, "read-ok": {"id", "index"},
	"read-no": {"id", ""}, "read-lease": {"term", "index"}, "propose": {"command", "index"}, "refused": {"command", "refusal"}, "transfer": {"to", "refusal"},
	"destroy": {"replica", ""}, "install": {"index", "replica"}, "snap": {"to", "index"}, "snap-no": {"index", ""}, "snap-old": {"index", ""},
	"apply": {"first", "count"}, "fetch": {"next", "count"}, "commit": {"index", "term"}, "drop": {"index", "term"}, "heal": {"nodes", ""}, "hurt": {"how", ""},
	"live": {"", "index"}, "campaign": {"", ""},
}

// named calls f with each number of a record that holds no message.
func (r *record) named(f func(name string, v uint64)) {
	switch names, ok := fields[r.what]; {
	case r.act:
		f("peer", r.a)
		f("for", r.b)
	case r.what == "role":
		f("term", r.a)
		f("lead", r.b>>2)
		f("leads", r.b>>1&1)
		f("ready", r.b&1)
	case r.what == "pair":
		f("peer", r.a)
		f("epoch", r.b>>1)
		f("live", r.b&1)
	case ok:
		for i, v := range [2]uint64{r.a, r.b} {
			if names[i] != "" {
				f(names[i], v)
			}
		}
	default:
		f("a", r.a)
		f("b", r.b)
	}
}

var msgNames = [...]string{
	raft.MsgApp: "App", raft.MsgAppResp: "AppResp", raft.MsgVote: "Vote", raft.MsgVoteResp: "VoteResp",
	raft.MsgPreVote: "PreVote", raft.MsgPreVoteResp: "PreVoteResp", raft.MsgTimeoutNow: "TimeoutNow",
	raft.MsgCommit: "Commit", raft.MsgCommitResp: "CommitResp", raft.MsgFortify: "Fortify",
	raft.MsgFortifyResp: "FortifyResp", raft.MsgStepDown: "StepDown", raft.MsgLeadQuery: "LeadQuery",
	raft.MsgNeedSnapshot: "NeedSnapshot", raft.MsgSnapStatus: "SnapStatus",
	raft.MsgReadReq: "ReadReq", raft.MsgReadResp: "ReadResp", raft.MsgMember: "Member", raft.MsgMemberResp: "MemberResp", raft.MsgForgot: "Forgot",
}

// FormatMsg returns one message as a short line; zero fields are left out.
func FormatMsg(m *raft.Msg) string {
	var b strings.Builder
	name := fmt.Sprintf("type%d", m.Type)
	if int(m.Type) < len(msgNames) && msgNames[m.Type] != "" {
		name = msgNames[m.Type]
	}
	fmt.Fprintf(&b, "%s %d.%d>%d.%d t%d", name, m.From, m.FromReplica, m.To, m.ToReplica, m.Term)
	field := func(name string, v uint64) {
		if v != 0 {
			fmt.Fprintf(&b, " %s=%d", name, v)
		}
	}
	field("i", uint64(m.Index))
	field("lt", uint64(m.LogTerm))
	field("c", uint64(m.Commit))
	field("cut", uint64(m.CompactTo))
	if m.Epoch != 0 {
		fmt.Fprintf(&b, " e=%d.%d", m.Epoch>>32, uint32(m.Epoch))
	}
	field("r", m.Round)
	for _, f := range []struct {
		bit  uint8
		name string
	}{{raft.FlagReject, "reject"}, {raft.FlagFortify, "fortify"}, {raft.FlagGrant, "grant"}, {raft.FlagProbe, "probe"}} {
		if m.Flags&f.bit != 0 {
			b.WriteString(" " + f.name)
		}
	}
	if n := len(m.Entries); n > 0 {
		fmt.Fprintf(&b, " ents=%d/%d..%d/%d", m.Entries[0].Index, m.Entries[0].Term, m.Entries[n-1].Index, m.Entries[n-1].Term)
	}
	return b.String()
}

// mix folds v into the running hash h.
func mix(h, v uint64) uint64 {
	h ^= v
	h *= 0x9E3779B97F4A7C15
	return h ^ h>>29
}

// hashBytes returns a 64-bit hash of b (FNV-1a).
func hashBytes(b []byte) uint64 {
	h := uint64(14695981039346656037)
	for _, c := range b {
		h = (h ^ uint64(c)) * 1099511628211
	}
	return h
}
