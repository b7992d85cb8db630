package kv

import (
	"github.com/flotillakv/flotilla/multiraft/raft"
	"github.com/flotillakv/flotilla/multiraft/session"
	"github.com/flotillakv/flotilla/shard"
)

// groupRecords are the session records of one group within a batch.
type groupRecords struct {
	b     batch
	shard raft.ShardID
}

func (g *groupRecords) Get(suffix []byte) ([]byte, bool, error) { return g.b.GetGroup(g.shard, suffix) }
func (g *groupRecords) Set(suffix, val []byte)                  { g.b.SetGroup(g.shard, suffix, val) }
func (g *groupRecords) Delete(suffix []byte)                    { g.b.DeleteGroup(g.shard, suffix) }

// sessioned evaluates a command of a session, unless it was evaluated before,
// and appends its encoded result to dst. Unlike those of other commands, results
// are computed on every replica alike, whether somebody waits for them or not:
// they are kept in the session's record.
func (ev *evaluator) sessioned(dst []byte, c raft.Command) ([]byte, error) {
	ev.records = groupRecords{b: ev.b, shard: ev.desc.Shard}
	t := &ev.sessions
	t.Store, t.Now = &ev.records, ev.a.GroupTime()
	j, err := t.Judge(c.Session)
	if err != nil {
		return dst, err
	}
	var res shard.Result
	switch j.Verdict {
	case session.Replay:
		at := shard.Version{Lineage: j.Result.Lineage, Index: j.Result.Index, Slot: j.Result.Slot}
		return shard.AppendReplay(dst, at, j.Result.Cut, j.Result.Bytes), nil
	case session.Settled:
		res.Status = shard.StatusSettled
	case session.Expired:
		res = shard.Result{Status: shard.StatusExpired, Known: j.Known, Deadline: c.Session.Deadline, Now: t.Now}
	case session.Full:
		res = shard.Result{Status: shard.StatusSessionsFull, Limit: session.MaxSessions}
	case session.Invalid:
		res = shard.Result{Status: shard.StatusMalformed, Text: "session: " + j.Reason}
	default:
		return ev.first(dst, c)
	}
	return res.Append(dst), nil
}

// first evaluates a command that was judged new, and notes what became of it. A
// command that belongs to another shard leaves no note: it is that shard's.
func (ev *evaluator) first(dst []byte, c raft.Command) ([]byte, error) {
	res, err := ev.command(c)
	if err != nil {
		return dst, err
	}
	from := len(dst)
	dst = res.Append(dst)
	if res.Status == shard.StatusEpoch || res.Status == shard.StatusRange {
		return dst, nil
	}
	h := c.Session
	if c.Op == shard.OpEndSession {
		h = session.End(h)
	}
	var short [64]byte
	return dst, ev.sessions.Record(h, session.Result{
		Lineage: ev.at.Lineage, Index: ev.at.Index, Slot: ev.at.Slot, Bytes: dst[from:],
	}, res.AppendShort(short[:0]))
}
