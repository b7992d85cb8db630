package nemesis

import (
	"fmt"
	"sync"
	"time"
)

// Clients stands for this process, as the end of a link. Nodes count from 0.
const Clients = -1

// pair is a direction of traffic: bytes that from sends and to receives.
type pair struct{ from, to int }

// condition is what is wrong with a direction.
type condition struct {
	Hole   bool          // bytes are held; they go on, late, when it is mended
	Refuse bool          // new connections are closed at once
	Delay  time.Duration // most of what a piece of up to 32 KiB is held
	Rate   int           // bytes per second; zero: no bound
	// Loss and Duplicate are shares of packets, on networks that have packets.
	Loss, Duplicate float64
}

// fabric is the network between the processes.
type fabric interface {
	// reach says where node i listens, for nodes and for clients, and where others find that.
	reach(i int) (peer, client, peerVia, clientVia string, err error)
	// wrap makes a command line run where node i lives.
	wrap(i int, argv []string) []string
	// change replaces the condition of a direction.
	change(dir pair, f func(*condition))
	// cut makes holes or closes them.
	cut(hole bool, dirs ...pair)
	// reset breaks the connections between two ends, in whichever direction they
	// were made, perhaps in the middle of a frame; zero: there were none.
	reset(a, b int) int
	// heal mends every direction.
	heal()
	// lossy reports whether packets can be lost and doubled.
	lossy() bool
	close()
}

// shared is the conditions of all directions.
type shared struct {
	mu    sync.Mutex // guards links; never held across I/O
	links map[pair]*link
}

// link is one direction.
type link struct {
	cond    condition
	changed chan struct{} // closed when cond is replaced
}

func (n *shared) init() { n.links = map[pair]*link{} }

// at returns a copy of a direction's state.
func (n *shared) at(dir pair) link {
	n.mu.Lock()
	defer n.mu.Unlock()
	return *n.linkLocked(dir)
}

func (n *shared) linkLocked(dir pair) *link {
	l := n.links[dir]
	if l == nil {
		l = &link{changed: make(chan struct{})}
		n.links[dir] = l
	}
	return l
}

// change replaces the state of a direction.
func (n *shared) change(dir pair, f func(*condition)) {
	n.mu.Lock()
	defer n.mu.Unlock()
	l := n.linkLocked(dir)
	f(&l.cond)
	close(l.changed)
	l.changed = make(chan struct{})
}

// cut makes holes or closes them.
func (n *shared) cut(hole bool, dirs ...pair) {
	for _, d := range dirs {
		n.change(d, func(c *condition) { c.Hole = hole })
	}
}

// heal mends every direction.
func (n *shared) heal() {
	n.mu.Lock()
	dirs := make([]pair, 0, len(n.links))
	for d := range n.links {
		dirs = append(dirs, d)
	}
	n.mu.Unlock()
	for _, d := range dirs {
		n.change(d, func(c *condition) { *c = condition{} })
	}
}

func (d pair) String() string { return endName(d.from) + ">" + endName(d.to) }

func endName(i int) string {
	if i == Clients {
		return "clients"
	}
	return fmt.Sprintf("n%d", i+1)
}
