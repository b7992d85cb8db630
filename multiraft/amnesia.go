package multiraft

import (
	"fmt"

	"github.com/flotillakv/flotilla/multiraft/raft"
)

// AmnesiaError says that a replica has forgotten what it promised: its store is
// older than it was. Nothing it holds can be relied on; the node has to be
// replaced by a new one.
type AmnesiaError struct {
	Shard   raft.ShardID
	Node    raft.NodeID // whose store it is
	Replica raft.ReplicaID
	// Index is through which it had acknowledged the log, Has how far it goes now.
	// Index zero: it voted in Term, and does not know.
	Index, Has raft.Index
	Term       raft.Term
	// By is the node that told so; zero: found out here, about another node.
	By raft.NodeID
}

// Error names the node, the shard and what is missing.
func (e *AmnesiaError) Error() string {
	what := fmt.Sprintf("it acknowledged entries through %d and holds them through %d", e.Index, e.Has)
	if e.Index == 0 {
		what = fmt.Sprintf("it voted in term %d and does not know that term", e.Term)
	}
	by := ""
	if e.By != 0 {
		by = fmt.Sprintf(" (node %d says so)", e.By)
	}
	return fmt.Sprintf("multiraft: replica %d of shard %d on node %d has forgotten what it promised: %s%s; replace the node by a new one", e.Replica, e.Shard, e.Node, what, by)
}

// takeForgets carries out what the cores found: a replica of this node that has
// forgotten stops the node for good, before anything of this round is written or
// said; one of another node is told to people. Its own node hears of it from the
// core.
func (l *loop) takeForgets() {
	for i := range l.out.Forgets {
		t := &l.out.Forgets[i]
		err := &AmnesiaError{Shard: t.Shard, Node: t.Node, Replica: t.Replica, Index: t.Index, Has: t.Has, Term: t.Term, By: t.By}
		if t.Node == l.h.node {
			l.fatal(l.h.engine.MarkAmnesiac(err))
			return
		}
		l.h.stats.amnesiacs.Add(1)
		l.h.logger.Error("a replica has forgotten what it promised and counts for nothing any more; replace its node", "shard", t.Shard, "node", t.Node, "err", err)
		if l.h.onForget != nil {
			l.h.onForget(*err)
		}
	}
}
