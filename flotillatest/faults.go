package flotillatest

import (
	"time"

	"github.com/flotillakv/flotilla/transport"
)

// Clients stands for all clients where a fault takes a node.
const Clients = -1

// Partition lets only nodes of the same group talk to each other. Nodes in no
// group are alone. Clients reach everybody. Loss and delay stay as they are.
func (c *Cluster) Partition(groups ...[]int) {
	side := map[int]int{}
	for g, members := range groups {
		for _, i := range members {
			side[i] = g + 1
		}
	}
	c.eachLink(func(from, to int, s *transport.LinkState) {
		s.Drop = side[from] == 0 || side[from] != side[to]
	})
}

// OneWay drops everything on the way from one node to another; the way back
// stays as it is. Either may be Clients: then requests, or answers, are lost.
func (c *Cluster) OneWay(from, to int) {
	c.mu.Lock()
	defer c.mu.Unlock()
	s := c.links[[2]int{from, to}]
	s.Drop = true
	c.set(from, to, s)
}

// Isolate cuts a node off from everybody, clients included.
func (c *Cluster) Isolate(i int) {
	for j := Clients; j < len(c.members); j++ {
		if j != i {
			c.OneWay(i, j)
			c.OneWay(j, i)
		}
	}
}

// Loss lets each frame between nodes vanish with probability p.
func (c *Cluster) Loss(p float64) {
	c.eachLink(func(_, _ int, s *transport.LinkState) { s.Loss = p })
}

// Delay makes each frame between nodes take d longer.
func (c *Cluster) Delay(d time.Duration) {
	c.eachLink(func(_, _ int, s *transport.LinkState) { s.Delay = d })
}

// Heal ends all faults of the network. Nodes that are down stay down.
func (c *Cluster) Heal() {
	c.mu.Lock()
	defer c.mu.Unlock()
	clear(c.links)
	c.net.Heal()
}

// eachLink changes the links between nodes, those of nodes that are down included.
func (c *Cluster) eachLink(change func(from, to int, s *transport.LinkState)) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for from := range c.members {
		for to := range c.members {
			if from == to {
				continue
			}
			s := c.links[[2]int{from, to}]
			change(from, to, &s)
			c.set(from, to, s)
		}
	}
}

// set records and sets the state of a link. c.mu is held.
func (c *Cluster) set(from, to int, s transport.LinkState) {
	c.links[[2]int{from, to}] = s
	c.net.SetLink(node(from), node(to), s)
}
