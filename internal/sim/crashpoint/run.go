package crashpoint

import (
	"fmt"
	"math/rand/v2"
	"time"

	"github.com/flotillakv/flotilla/engine"
	"github.com/flotillakv/flotilla/internal/sim/simfs"
	"github.com/flotillakv/flotilla/multiraft/raft"
)

// Run is a scenario being recorded. One disk holds the directories of all nodes
// of the scenario, so that an image of it is a power cut of all of them at once.
type Run struct {
	name  string
	rng   *rand.Rand
	fs    *simfs.FS
	j     *simfs.Journal
	now   time.Time
	nodes []*node
	acks  []clientAck
	note  []noted
	// What replicas of a shard held at an applied index: equal for all of them.
	held map[appliedAt]content
	// deferred is how much of what is applied stays in memory between flushes; 0: none.
	deferred int64
}

type appliedAt struct {
	shard raft.ShardID
	index raft.Index
}

type content struct {
	node          raft.NodeID
	data, records uint64
	keys          int
}

// noted says what the scenario did when the journal had at operations.
type noted struct {
	at   int
	what string
}

// moment is a state of a store and when it could first be on disk.
type moment struct {
	from int // operations in the journal before anything of it was written
	s    *State
}

// promise is something that a node told somebody.
type promise struct {
	at    int // operations in the journal when it was told
	what  string
	state int               // the moment that must be durable; used if test is nil
	test  func(*State) bool // first true at the moment that must be durable
	// keep, if set, says for which later moments test must stay true.
	keep func(*State) bool
}

// clientAck is a result that a client was told.
type clientAck struct {
	at    int
	shard raft.ShardID
	index raft.Index
	term  raft.Term
}

// node is one store of the run and what is known of it.
type node struct {
	r        *Run
	id       raft.NodeID
	dir      string
	e        *engine.Engine
	moments  []moment
	promises []promise
	epochs   []epochMark
	fatal    error
	mayFail  bool // the scenario breaks the disk
	// flushed is through where a log that is needed as redo may be cut.
	flushed map[raft.ShardID]raft.Index
}

// epochMark: from operation at on, others may know of boot epoch.
type epochMark struct {
	at    int
	epoch uint64
}

func newRun(name string, seed uint64, d Defer) *Run {
	r := &Run{name: name, rng: rand.New(rand.NewPCG(seed, hashOf(name))), fs: simfs.New(), now: time.Unix(1<<30, 0), held: map[appliedAt]content{}}
	r.j = r.fs.Record()
	if k := hashOf(name) + seed; d != DeferNever && (k%3 > 0 || d == DeferAlways) {
		r.deferred = 1 << 10 << (k % 5)
	}
	return r
}

func hashOf(s string) uint64 { return mix(0, []byte(s)) }

// Note marks what follows in the failures' reports.
func (r *Run) Note(format string, args ...any) {
	r.note = append(r.note, noted{r.j.Len(), fmt.Sprintf(format, args...)})
}

// Restart begins the record anew: everything on disk now counts as durable, and
// only crashes from here on are looked at. For scenarios that need a past.
func (r *Run) Restart() error {
	for _, n := range r.nodes {
		if n.e != nil {
			if err := n.e.SyncNow(); err != nil {
				return err
			}
			if r.deferred > 0 { // what the disk holds was seen after this
				if err := n.e.Flush(); err != nil {
					return err
				}
			}
		}
	}
	r.j = r.fs.Record()
	r.note, r.acks = nil, nil
	for _, n := range r.nodes {
		n.promises = nil
		n.moments = nil
		for i := range n.epochs {
			n.epochs[i].at = 0
		}
		if n.e != nil {
			if err := n.see(0); err != nil {
				return err
			}
			n.durable("what was before")
		}
	}
	return nil
}

// storeOptions rotate everything often.
func storeOptions(fs engine.FS, dir string, id raft.NodeID, deferred int64) engine.Options {
	return engine.Options{
		DeferBytes: deferred, DeferLogBytes: 4 * deferred, FlushInline: true,
		Dir: dir, FS: fs, Create: true, Node: id, Cluster: [16]byte{7}, CacheBytes: 256 << 10, MemTableBytes: 64 << 10,
		JournalBytes:  2 << 10 << (2 * (id % 3)),
		ManifestBytes: 1, NoDiskWatch: true, Nonce: func() uint64 { return uint64(id) },
	}
}

// AddNode opens a store on the disk, or makes it.
func (r *Run) AddNode(id raft.NodeID) (*node, error) {
	n := &node{r: r, id: id, dir: fmt.Sprintf("/n%d", id), flushed: map[raft.ShardID]raft.Index{}}
	r.nodes = append(r.nodes, n)
	return n, n.open()
}

func (n *node) open() error {
	from := n.r.j.Len()
	o := storeOptions(n.r.fs, n.dir, n.id, n.r.deferred)
	o.OnFatal = func(err error) { n.fatal = err }
	o.Now = func() time.Time { n.r.now = n.r.now.Add(time.Second); return n.r.now }
	e, err := engine.Open(o)
	if err != nil {
		return err
	}
	n.e = e
	e.OnFlush(func(_ uint64, groups []engine.Flushed) {
		for _, g := range groups {
			n.flushed[g.Shard] = max(n.flushed[g.Shard], g.Index)
		}
	})
	n.epochs = append(n.epochs, epochMark{n.r.j.Len(), e.BootEpoch()})
	if _, err := e.Boot(); err != nil {
		return err
	}
	return n.see(from)
}

// see notes the state of the store, which could not be on disk before operation
// from. A state that equals the one before it is the same moment.
func (n *node) see(from int) error {
	s, err := Capture(n.e)
	if err != nil {
		return fmt.Errorf("node %d: %w", n.id, err)
	}
	if k := len(n.moments); k > 0 {
		if n.moments[k-1].s.text == s.text {
			return nil
		}
		if err := lawful(n.moments[k-1].s, s); err != nil {
			return fmt.Errorf("node %d: %w", n.id, err)
		}
	}
	n.moments = append(n.moments, moment{from, s})
	for id, g := range s.Groups {
		at, c := appliedAt{id, g.Applied.Applied}, content{n.id, g.Data, g.Records, g.Keys}
		was, ok := n.r.held[at]
		if ok && (was.data != c.data || was.records != c.records) && g.Applied.Applied > 0 && len(n.r.nodes) > 1 {
			return fmt.Errorf("shard %d at applied index %d: node %d and node %d hold different things (%d and %d keys)", id, at.index, was.node, n.id, was.keys, c.keys)
		}
		n.r.held[at] = c
	}
	return nil
}

// durable promises that what the store shows now is on disk.
func (n *node) durable(what string) {
	n.promises = append(n.promises, promise{at: n.r.j.Len(), what: what, state: len(n.moments) - 1})
}

// promised notes a promise by what the state must hold.
func (n *node) promised(what string, test, keep func(*State) bool) {
	n.promises = append(n.promises, promise{at: n.r.j.Len(), what: what, test: test, keep: keep})
}

// lawful holds two states of one store, one after the other, against the rules
// that no step may break.
func lawful(a, b *State) error {
	for id, g := range a.Groups {
		h := b.Groups[id]
		if h == nil {
			if b.Tombs[id] == 0 {
				return fmt.Errorf("shard %d went away without a tombstone", id)
			}
			continue
		}
		switch x, y := g.Hard, h.Hard; {
		case y.Term < x.Term:
			return fmt.Errorf("shard %d: term %d after term %d", id, y.Term, x.Term)
		case y.Term == x.Term && x.Vote != 0 && y.Vote != x.Vote:
			return fmt.Errorf("shard %d: vote for %d after a vote for %d in term %d", id, y.Vote, x.Vote, x.Term)
		case h.Applied.Applied < g.Applied.Applied || h.Applied.TruncIndex < g.Applied.TruncIndex:
			return fmt.Errorf("shard %d: applied %d, truncated %d after %d, %d", id, h.Applied.Applied, h.Applied.TruncIndex, g.Applied.Applied, g.Applied.TruncIndex)
		case h.Desc.ConfVer < g.Desc.ConfVer:
			return fmt.Errorf("shard %d: configuration %d after %d", id, h.Desc.ConfVer, g.Desc.ConfVer)
		}
		// What is applied never changes, nor does what the leader of the present term
		// made (Raft paper, section 5.3).
		for i := h.Applied.TruncIndex; i <= g.Last(); i++ {
			x, ok := g.Term(i)
			if y, there := h.Term(i); ok && (!there || x != y) && (x == h.Hard.Term || i <= g.Applied.Applied) {
				return fmt.Errorf("shard %d: entry %d of term %d is gone, in term %d (applied %d)", id, i, x, h.Hard.Term, g.Applied.Applied)
			}
		}
	}
	for id, r := range a.Tombs {
		if b.Tombs[id] < r {
			return fmt.Errorf("shard %d: tombstone %d after %d", id, b.Tombs[id], r)
		}
	}
	for n, x := range a.Support {
		if y := b.Support[n]; y.Epoch < x.Epoch || y.Epoch == x.Epoch && x.Withdrawn && !y.Withdrawn {
			return fmt.Errorf("support of node %d: %+v after %+v", n, y, x)
		}
	}
	return nil
}
