package multiraft

import (
	"errors"
	"fmt"
	"slices"

	"github.com/flotillakv/flotilla/internal/mutants"
	"github.com/flotillakv/flotilla/multiraft/raft"
)

const (
	// feedBytes bounds what is read from the logs for one node that lags and is not
	// acknowledged yet, of all groups: half of what the transport holds for a node.
	// A node that comes back may lag in thousands of groups, each with a window of its
	// own; together they would fill that up, which resets the stream and drops
	// everything else in it.
	feedBytes = 4 << 20
	// maxFeedTasks bounds what waits for one node. Groups beyond ask again by their timers.
	maxFeedTasks = 1 << 16
)

// feed is what one node lacks of the logs on this loop.
type feed struct {
	node  raft.NodeID
	tasks []raft.FetchTask // wait, in order
	out   []fed            // have entries under way
}

type fed struct {
	shard raft.ShardID
	to    raft.ReplicaID
}

// fetchAll reads entries for peers that lag behind the memory of their leader.
func (l *loop) fetchAll(now raft.Time) {
	o := &l.out
	for _, t := range o.Fetches {
		r := l.byID[t.Shard]
		if r == nil {
			continue
		}
		if p, ok := r.desc.Replica(t.To); ok {
			if f := l.feedOf(p.Node); len(f.tasks) < maxFeedTasks {
				f.tasks = append(f.tasks, t)
			}
		}
	}
	for i := range l.feeds {
		if f := &l.feeds[i]; len(f.tasks) > 0 && !l.failed {
			l.feed(now, f)
		}
	}
}

func (l *loop) feedOf(node raft.NodeID) *feed {
	for i := range l.feeds {
		if l.feeds[i].node == node {
			return &l.feeds[i]
		}
	}
	l.feeds = append(l.feeds, feed{node: node})
	return &l.feeds[len(l.feeds)-1]
}

// feed does what fits into the node's window. The rest is looked at again in the round
// that an acknowledgement comes in, or a group's timer.
func (l *loop) feed(now raft.Time, f *feed) {
	under := 0
	keep := f.out[:0]
	for _, g := range f.out {
		if r := l.byID[g.shard]; r != nil {
			if n := r.core.Unacknowledged(g.to); n > 0 {
				under += n
				keep = append(keep, g)
			}
		}
	}
	f.out = keep
	done := 0
	for done < len(f.tasks) && (under < l.window || mutants.On("LK3")) {
		t := f.tasks[done]
		done++
		r := l.byID[t.Shard]
		if r == nil || !r.core.Awaits(&t) {
			continue
		}
		ents, prev, err := l.h.readLog(t)
		if err != nil && !errors.Is(err, raft.ErrCompacted) {
			// What was acknowledged once cannot be read: a peer would wait for it for ever.
			l.fatal(fmt.Errorf("multiraft: shard %d: read the log at %d: %w", t.Shard, t.Next, err))
			return
		}
		before := r.core.Unacknowledged(t.To)
		r.core.Fetched(now, t.To, prev, ents, err, &l.out)
		under += r.core.Unacknowledged(t.To) - before
		l.touch(r)
		if g := (fed{t.Shard, t.To}); !slices.Contains(f.out, g) {
			under += before
			f.out = append(f.out, g)
		}
	}
	f.tasks = f.tasks[:copy(f.tasks, f.tasks[done:])]
}
