package nemesis

import (
	"context"
	"math/rand/v2"
	"net"
	"os"
	"sync"
	"time"
)

// proxies is the network on the loopback interface: TCP proxies between the nodes of a cluster, and between
// clients and nodes.
type proxies struct {
	wg   sync.WaitGroup
	stop context.CancelFunc
	ctx  context.Context
	pids func() map[int]int // pid of each process that runs -> node
	// given holds the addresses of the processes that were handed out.
	given map[string]bool

	shared

	held      sync.Mutex // guards what follows; never held across I/O
	listeners []net.Listener
	conns     map[*proxied]struct{}
}

// proxied is a connection: dialler's end and target's end.
type proxied struct {
	dialler, target int
	ends            [2]*net.TCPConn
}

func newProxies(pids func() map[int]int) *proxies {
	n := &proxies{pids: pids, given: map[string]bool{}, conns: map[*proxied]struct{}{}}
	n.init()
	n.ctx, n.stop = context.WithCancel(context.Background())
	return n
}

// proxy opens a listener in front of an address of node target.
func (n *proxies) proxy(target int, behind string) (addr string, err error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return "", err
	}
	n.held.Lock()
	n.listeners = append(n.listeners, l)
	n.held.Unlock()
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
func (n *proxies) carry(c *net.TCPConn, target int, behind string) {
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
	n.held.Lock()
	n.conns[p] = struct{}{}
	n.held.Unlock()
	if n.ctx.Err() != nil {
		p.reset()
	}
	var wg sync.WaitGroup
	wg.Go(func() { n.pump(p, 0) })
	wg.Go(func() { n.pump(p, 1) })
	wg.Wait()
	n.held.Lock()
	delete(n.conns, p)
	n.held.Unlock()
	p.reset()
}

func (n *proxies) diallerOf(c net.Conn) (node int, ok bool) {
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
func (n *proxies) pump(p *proxied, i int) {
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
func (n *proxies) open(dir pair) bool {
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

// reset resets the connections between two ends, in whichever direction they
// were made, perhaps in the middle of a frame, and reports how many there were.
func (n *proxies) reset(a, b int) int {
	n.held.Lock()
	var hit []*proxied
	for p := range n.conns {
		if p.dialler == a && p.target == b || p.dialler == b && p.target == a {
			hit = append(hit, p)
		}
	}
	n.held.Unlock()
	for _, p := range hit {
		p.reset()
	}
	return len(hit)
}

// close ends all connections and listeners and waits for their goroutines.
func (n *proxies) close() {
	n.stop()
	n.held.Lock()
	for _, l := range n.listeners {
		l.Close()
	}
	var all []*proxied
	for p := range n.conns {
		all = append(all, p)
	}
	n.held.Unlock()
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

// reach: a node listens on ports of its own, and everybody else comes to the
// proxies before them.
func (n *proxies) reach(i int) (peer, client, peerVia, clientVia string, err error) {
	addrs, err := addresses(2, n.given)
	if err != nil {
		return
	}
	peer, client = addrs[0], addrs[1]
	if peerVia, err = n.proxy(i, peer); err == nil {
		clientVia, err = n.proxy(i, client)
	}
	return
}

func (n *proxies) wrap(_ int, argv []string) []string { return argv }

func (n *proxies) lossy() bool { return false }
