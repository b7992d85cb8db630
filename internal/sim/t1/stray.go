package t1

import (
	"errors"
	"time"

	"github.com/flotillakv/flotilla/engine"
	"github.com/flotillakv/flotilla/multiraft"
	"github.com/flotillakv/flotilla/multiraft/raft"
)

// stray is a state machine that, once, on one node, does what those of the others do
// not: it writes a record of the group that no read looks at. The replica has to be
// found out and rebuilt; and where no machine has strayed, nobody may ever be said to
// differ. A leader that strayed may send others a snapshot before it is found out:
// then they are of its kind, and where they are the majority the others are rebuilt.
type stray struct {
	w       *World
	node    int
	at      int64 // virtual; 0: never
	shard   raft.ShardID
	strayed bool
}

var straySuffix, strayValue = []byte("zstray"), []byte("1")

func (s *stray) init(w *World) {
	s.w, s.at, s.node = w, int64(w.p.Stray), int(w.sched.Seed/24)%w.p.Nodes
}

// apply comes behind the entry.
func (s *stray) apply(n *node, b *engine.Batch, a *multiraft.ApplyContext) {
	if s.at == 0 || s.strayed || s.w.now < s.at || n.idx != s.node || s.w.calm {
		return
	}
	if s.w.sched.Seed%2 == 1 { // what it holds changes behind its back
		s.strayed, s.shard = true, a.Desc.Shard
		s.w.res.Strays++
		s.w.after(time.Millisecond, func() { s.behind(n) })
		return
	}
	s.strayed, s.shard = true, a.Desc.Shard
	s.w.res.Strays++
	b.SetGroup(a.Desc.Shard, straySuffix, strayValue)
	s.w.log(n.idx, "stray", uint64(a.Desc.Shard), uint64(a.Entry.Index))
}

// behind writes the record without the state machine, which no chain sees.
func (s *stray) behind(n *node) {
	if !n.up || n.eng == nil || n.died.Load() != nil {
		return
	}
	if _, ok := n.host.View(s.shard); !ok {
		return
	}
	b := n.eng.NewBatch()
	defer b.Close()
	b.SetGroup(s.shard, straySuffix, strayValue)
	_ = b.Commit(false)
	s.w.log(n.idx, "stray-behind", uint64(s.shard), 0)
}

// told takes a report of a host.
func (s *stray) told(n *node, e *multiraft.DivergedError) {
	if e.Rebuilt {
		s.w.res.Rebuilt++
		s.w.log(n.idx, "rebuilt", uint64(e.Shard), uint64(e.Index))
		return
	}
	s.w.log(n.idx, "diverged", uint64(e.Shard)<<32|uint64(e.Node), uint64(e.Index))
	if !s.strayed || e.Shard != s.shard {
		s.w.fail("S21", "node %d: a false alarm: %v", n.id, e)
	}
}

// excuses reports whether a replica may be fenced for err.
func (s *stray) excuses(id raft.ShardID, err error) bool {
	return s.strayed && id == s.shard && errors.Is(err, multiraft.ErrDiverged)
}

// shows reports whether a replica's content is off by what the stray machine wrote.
func (s *stray) shows(n *node, id raft.ShardID, off uint64) bool {
	return s.strayed && id == s.shard && off == ownHash(straySuffix, strayValue)
}

// settled reports whether the replicas of a core are all of one kind.
func (s *stray) settled(set []bool) bool {
	if !s.strayed {
		return true
	}
	with, without := 0, 0
	for i, n := range s.w.nodes {
		if !set[i] || !n.up {
			continue
		}
		if _, ok := n.host.View(s.shard); !ok {
			continue
		}
		_, has, err := n.eng.GetGroup(s.shard, straySuffix)
		if err != nil {
			return false
		}
		if has {
			with++
		} else {
			without++
		}
	}
	return with == 0 || without == 0
}

// hung reports whether the members are so divided that nobody can know who is right:
// the shard stays closed, as it should.
func (s *stray) hung() bool {
	if !s.strayed {
		return false
	}
	with, without := 0, 0
	d := s.w.orc.groups[s.shard].newest()
	cut := raft.Index(0) // the leader's log begins behind it
	for _, r := range d.Replicas {
		n := s.w.nodes[r.Node-1]
		if !n.up {
			continue
		}
		if v, ok := n.host.View(s.shard); ok && v.IsLeader {
			if x := n.shadow.visible[s.shard]; x != nil {
				cut = max(cut, x.trunc)
			}
		}
	}
	for _, r := range d.Replicas {
		n := s.w.nodes[r.Node-1]
		if !n.up {
			continue
		}
		if v, ok := n.host.View(s.shard); !ok || v.Last < cut {
			continue // it waits for a snapshot, and nobody is sure enough to send one
		}
		if _, has, err := n.eng.GetGroup(s.shard, straySuffix); err == nil && has {
			with++
		} else {
			without++
		}
	}
	return with > 0 && with <= len(d.Replicas)/2 && without <= len(d.Replicas)/2
}

// compareEvery makes a host's setting of the parameter.
func compareEvery(d time.Duration) time.Duration {
	if d == 0 {
		return -1
	}
	return d
}
