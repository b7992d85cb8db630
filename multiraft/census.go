package multiraft

// Census counts the replicas of a node.
type Census struct {
	// Replicas are all, awake or asleep; Leaders of them lead, or did when they fell
	// asleep, and Ready of these serve.
	Replicas, Leaders, Ready int
	// Asleep of them had nothing to do for some time.
	Asleep int
	// NoQuorum of them cannot reach a majority.
	NoQuorum int
}

// Census counts without a copy of anything, unlike Views.
func (h *Host) Census() (c Census) {
	for _, r := range h.table.all() {
		v := r.pub.Load()
		c.Replicas++
		if v.isLeader {
			c.Leaders++
			if v.isReady {
				c.Ready++
			}
		}
		if v.noQuorum != nil {
			c.NoQuorum++
		}
	}
	for _, l := range h.loops {
		l.stubs.mu.RLock()
		c.Replicas += l.stubs.n
		c.Asleep += l.stubs.n
		for _, g := range l.stubs.grounds {
			if g != nil && g.kind == kindLeader {
				c.Leaders += g.stubs
				c.Ready += g.stubs
			}
		}
		l.stubs.mu.RUnlock()
	}
	return c
}
