package nemesis

import (
	"context"
	"fmt"
	"math/rand/v2"
	"net"
	"os"
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
}

// Network is the set of proxies between the nodes of a cluster, and between
// clients and nodes.
type Network struct {
	wg   sync.WaitGroup
	stop context.CancelFunc
	ctx  context.Context
	pids func() map[int]int // pid of each process that runs -> node

	mu        sync.Mutex // guards what follows; never held across I/O
	listeners []net.Listener
	links     map[pair]*link
	conns     map[*proxied]struct{}
}

// link is one direction.
type link struct {
	cond    condition
	changed chan struct{} // closed when cond is replaced
}

// proxied is a connection: dialler's end and target's end.
type proxied struct {
	dialler, target int
	ends            [2]*net.TCPConn
}

func newNetwork(pids func() map[int]int) *Network {
	n := &Network{pids: pids, links: map[pair]*link{}, conns: map[*proxied]struct{}{}}
	n.ctx, n.stop = context.WithCancel(context.Background())
	return n
}

// proxy opens a listener in front of an address of node target.
func (n *Network) proxy(target int, behind string) (addr string, err error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return "", err
	}
	n.mu.Lock()
	n.listeners = append(n.listeners, l)
	n.mu.Unlock()
	n.wg.Go(func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			n.wg.Go(func() { n.carry(c.(*net.TCPConn), target, behind) })
		}
	})
	return l.Addr().String(), nil
}

// carry serves one connection.
func (n *Network) carry(c *net.TCPConn, target int, behind string) {
	defer c.Close()
	dialler, ok := n.diallerOf(c)
	if !ok || n.at(pair{dialler, target}).cond.Refuse || n.at(pair{target, dialler}).cond.Refuse {
		c.SetLinger(0)
		return
	}
	// A connection is not made through a hole, in whichever direction.
	if !n.open(pair{dialler, target}) || !n.open(pair{target, dialler}) {
		return
	}
	d := net.Dialer{Timeout: 3 * time.Second}
	far, err := d.DialContext(n.ctx, "tcp", behind)
	if err != nil {
		c.SetLinger(0) // as the kernel would: refused
		return
	}
	p := &proxied{dialler: dialler, target: target, ends: [2]*net.TCPConn{c, far.(*net.TCPConn)}}
	n.mu.Lock()
	n.conns[p] = struct{}{}
	n.mu.Unlock()
	if n.ctx.Err() != nil {
		p.reset()
	}
	var wg sync.WaitGroup
	wg.Go(func() { n.pump(p, 0) })
	wg.Go(func() { n.pump(p, 1) })
	wg.Wait()
	n.mu.Lock()
	delete(n.conns, p)
	n.mu.Unlock()
	p.reset()
}

func (n *Network) diallerOf(c net.Conn) (node int, ok bool) {
	of := n.pids()
	pids := make([]int, 0, len(of)+1)
	for p := range of {
		pids = append(pids, p)
	}
	pid, ok := ownerOf(c, append(pids, os.Getpid()))
	if !ok {
		return 0, false
	}
	if node, ok := of[pid]; ok {
		return node, true
	}
	return Clients, true
}

// pump moves bytes from end i of a connection to the other.
func (n *Network) pump(p *proxied, i int) {
	from, to := p.ends[i], p.ends[1-i]
	dir := pair{p.dialler, p.target}
	if i == 1 {
		dir = pair{p.target, p.dialler}
	}
	buf := make([]byte, 32<<10)
	for {
		k, err := from.Read(buf)
		if k > 0 {
			if !n.open(dir) {
				return
			}
			c := n.at(dir).cond
			wait := time.Duration(0)
			if c.Delay > 0 {
				wait = rand.N(c.Delay)
			}
			if c.Rate > 0 {
				wait += time.Duration(k) * time.Second / time.Duration(c.Rate)
			}
			if wait > 0 && !sleep(n.ctx, wait) || !n.open(dir) {
				return
			}
			if _, err := to.Write(buf[:k]); err != nil {
				p.reset()
				return
			}
		}
		if err != nil {
			// The end of one direction is passed on, unless that is cut.
			if !n.open(dir) {
				return
			}
			to.CloseWrite()
			if _, isReset := err.(*net.OpError); isReset {
				p.reset()
			}
			return
		}
	}
}

// open waits until a direction carries bytes; false: the network is closed.
func (n *Network) open(dir pair) bool {
	for {
		l := n.at(dir)
		if !l.cond.Hole {
			return n.ctx.Err() == nil
		}
		select {
		case <-l.changed:
		case <-n.ctx.Done():
			return false
		}
	}
}

// at returns a copy of a direction's state.
func (n *Network) at(dir pair) link {
	n.mu.Lock()
	defer n.mu.Unlock()
	return *n.linkLocked(dir)
}

func (n *Network) linkLocked(dir pair) *link {
	l := n.links[dir]
	if l == nil {
		l = &link{changed: make(chan struct{})}
		n.links[dir] = l
	}
	return l
}

// change replaces the state of a direction.
func (n *Network) change(dir pair, f func(*condition)) {
	n.mu.Lock()
	defer n.mu.Unlock()
	l := n.linkLocked(dir)
	f(&l.cond)
	close(l.changed)
	l.changed = make(chan struct{})
}

// cut makes holes or closes them.
func (n *Network) cut(hole bool, dirs ...pair) {
	for _, d := range dirs {
		n.change(d, func(c *condition) { c.Hole = hole })
	}
}

// reset resets the connections between two ends, in whichever direction they
// were made, perhaps in the middle of a frame, and reports how many there were.
func (n *Network) reset(a, b int) int {
	n.mu.Lock()
	var hit []*proxied
	for p := range n.conns {
		if p.dialler == a && p.target == b || p.dialler == b && p.target == a {
			hit = append(hit, p)
		}
	}
	n.mu.Unlock()
	for _, p := range hit {
		p.reset()
	}
	return len(hit)
}

// heal mends every direction.
func (n *Network) heal() {
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

// close ends all connections and listeners and waits for their goroutines.
func (n *Network) close() {
	n.stop()
	n.mu.Lock()
	for _, l := range n.listeners {
		l.Close()
	}
	var all []*proxied
	for p := range n.conns {
		all = append(all, p)
	}
	n.mu.Unlock()
	for _, p := range all {
		p.reset()
	}
	n.wg.Wait()
}

func (p *proxied) reset() {
	for _, c := range p.ends {
		c.SetLinger(0)
		c.Close()
	}
}

func (d pair) String() string { return endName(d.from) + ">" + endName(d.to) }

func endName(i int) string {
	if i == Clients {
		return "clients"
	}
	return fmt.Sprintf("n%d", i+1)
}

// sleep waits for d and reports whether ctx lasted.
func sleep(ctx context.Context, d time.Duration) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return true
	case <-ctx.Done():
		return false
	}
}
